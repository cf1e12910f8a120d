/* plain.h - matrix products and convolutions without a library (plain.c). */
#ifndef TERRA_EXEC_DNN_PLAIN_H
#define TERRA_EXEC_DNN_PLAIN_H

#include "exec/kernels/kernels.h"

/* y [m, n] += a [m, k] * b [k, n]; b and y row-major, a of any strides. F32, F64 or I64. */
typedef struct tr__product {
    int64_t m, n, k, a_row, a_col;
    tr_dtype dtype;
    const void *a, *b;
    void *y;
} tr__product;
void tr__product_add(tr_kernel_ctx *ctx, const tr__product *p);

/* mm, bmm, addmm, baddbmm and the three convolutions, any dtype and layout. */
tr_status tr__plain_matmul(const tr_kernel_call *c);
tr_status tr__plain_conv(const tr_kernel_call *c);
tr_status tr__plain_conv_data(const tr_kernel_call *c);
tr_status tr__plain_conv_weights(const tr_kernel_call *c);

#endif
