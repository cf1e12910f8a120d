/* isa_pool.h - what the files of pooling share: the operands, and an output's window. Included by isa_*.c only. */
#ifndef TERRA_EXEC_ISA_POOL_H
#define TERRA_EXEC_ISA_POOL_H

#include "exec/kernels/kernels.h"

/* One of the two dimensions that windows move along. */
typedef struct tr__pool_axis {
    int64_t size, out; /* of the input, of the output */
    int64_t kernel, stride, padding, dilation;
} tr__pool_axis;

/* Backwards x is the gradient, [n, c, out, out], and y the result, [n, c, size, size]. */
typedef struct tr__pool {
    int64_t n, c;
    tr__pool_axis down, across;
    int64_t divisor; /* 0: what the window counts */
    bool include_pad, adaptive;
    const void *x;
    const int64_t *from; /* indices, read */
    void *y;
    int64_t *at; /* indices, written */
    char *own;   /* scratch: `own_bytes` per thread */
    int64_t own_bytes;
    int64_t lanes, run; /* of planes: see isa_pool.c */
    int64_t *width;     /* [across.out]: what an average's windows count */
} tr__pool;

/* Where output `o` begins and ends in the input, and how much of that an average counts. */
typedef struct tr__extent {
    int64_t from, to, counted;
} tr__extent;

static inline tr__extent tr__extent_of(const tr__pool *j, const tr__pool_axis *a, int64_t o) {
    tr__extent e;
    if (j->adaptive) {
        e.from = o * a->size / a->out;
        e.to = ((o + 1) * a->size + a->out - 1) / a->out;
        e.counted = e.to - e.from;
        return e;
    }
    int64_t from = o * a->stride - a->padding, to = tr__min(from + a->kernel, a->size + a->padding);
    e.from = tr__max(from, 0);
    e.to = tr__max(e.from, tr__min(to, a->size));
    e.counted = j->include_pad ? to - from : e.to - e.from;
    return e;
}

/* What a window's sum is divided by; that of an empty one is 0, and stays so. */
static inline int64_t tr__divisor_of(const tr__pool *j, int64_t height, int64_t width) {
    return j->divisor ? j->divisor : tr__max(1, height * width);
}

/* Sums over many elements are kept in double, over few in the element's type. */
static inline bool tr__sums_wide(const tr__pool *j) {
    return j->adaptive || j->down.kernel * j->across.kernel > 64;
}

/* Images with channels last, float32 or bfloat16 (isa_pool_last.c). */
typedef enum tr__pool_kind { TR__POOL_MAX, TR__POOL_MAX_BACK, TR__POOL_AVG, TR__POOL_AVG_BACK, TR__POOL_KINDS } tr__pool_kind;
#ifdef TR_ISA
tr_status TR__SUFFIXED(tr__pool_last)(const tr_kernel_call *c, tr__pool_kind kind, tr__pool *j, bool bf16);
#endif

#endif
