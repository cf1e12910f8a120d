/* isa_index.h - what the files of indexing and data movement share. Included by isa_*.c only. */
#ifndef TERRA_EXEC_ISA_INDEX_H
#define TERRA_EXEC_ISA_INDEX_H

#include "exec/kernels/kernels.h"

/* The result of an op that changes a copy of its first operand, or the operand itself in place, as row-major `dtype`. */
static inline tr_status open_changed(const tr_kernel_call *c, tr_dtype dtype, void **y) {
    const tr_arg *in = &c->in[0], *out = &c->out[0];
    TR_TRY(tr__dense_out(c, out, dtype, y));
    if (*y == in->data && in->meta->contiguous)
        return TR_OK;
    tr_meta m;
    tr__meta_make(&m, dtype, out->meta->ndim, out->meta->shape, NULL);
    tr_arg dst = {*y, &m, {0}};
    return tr__copy(c->ctx, &dst, in);
}

/* Of a row-major index, the place at strides. */
static inline int64_t offset_of(int n, const int64_t *shape, const int64_t *strides, int64_t index) {
    int64_t at = 0;
    for (int d = n - 1; d >= 0; d--) {
        at += index % shape[d] * strides[d];
        index /= shape[d];
    }
    return at;
}

/* y[i] += x[i] * s in a wide type. */
static inline void add_row(tr_dtype wide, void *y, const void *x, int64_t n, double s, int64_t whole) {
    if (wide == TR_F32) {
        float *a = y, k = (float) s;
        const float *b = x;
        if (s == 1)
            _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) a[i] += b[i];
        else
            _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) a[i] += b[i] * k;
    } else if (wide == TR_F64) {
        double *a = y;
        const double *b = x;
        for (int64_t i = 0; i < n; i++)
            a[i] += b[i] * s;
    } else {
        uint64_t *a = y;
        const uint64_t *b = x;
        for (int64_t i = 0; i < n; i++)
            a[i] += b[i] * (uint64_t) whole;
    }
}

#endif
