/* matmul.c - mm, bmm, addmm, baddbmm. */
#include "exec/dnn/plain.h"

TR__KERNEL(mm) {
    return tr__plain_matmul(c);
}
TR__KERNEL(bmm) {
    return tr__plain_matmul(c);
}
TR__KERNEL(addmm) {
    return tr__plain_matmul(c);
}
TR__KERNEL(baddbmm) {
    return tr__plain_matmul(c);
}
