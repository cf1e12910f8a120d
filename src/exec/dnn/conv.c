/* conv.c - conv2d and its two derivatives. */
#include "exec/dnn/plain.h"

TR__KERNEL(conv2d) {
    return tr__plain_conv(c);
}
TR__KERNEL(conv2d_backward_data) {
    return tr__plain_conv_data(c);
}
TR__KERNEL(conv2d_backward_weights) {
    return tr__plain_conv_weights(c);
}
