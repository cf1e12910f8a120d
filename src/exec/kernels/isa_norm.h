/* isa_norm.h - statistics' operands: any float tensor as doubles in scratch, and back. Included by isa_*.c only. */
#ifndef TERRA_EXEC_ISA_NORM_H
#define TERRA_EXEC_ISA_NORM_H

#include "exec/kernels/kernels.h"

static inline tr_dtype tr__wide_float(tr_dtype d) {
    return d == TR_F64 ? TR_F64 : TR_F32;
}

/* NULL where `a` is absent. */
static inline tr_status tr__read_doubles(const tr_kernel_call *c, const tr_arg *a, const double **out) {
    const void *p;
    *out = NULL;
    if (tr__absent(a))
        return TR_OK;
    TR_TRY(tr__dense_in(c, a, TR_F64, &p));
    *out = p;
    return TR_OK;
}

static inline tr_status tr__write_doubles(const tr_kernel_call *c, const tr_arg *a, const double *x) {
    tr_meta m;
    if (tr__absent(a))
        return TR_OK;
    tr__meta_make(&m, TR_F64, a->meta->ndim, a->meta->shape, NULL);
    tr_arg src = {(void *) x, &m, {0}};
    return tr__copy(c->ctx, a, &src);
}

/* n zeros. */
static inline tr_status tr__doubles(const tr_kernel_call *c, int64_t n, double **out) {
    *out = tr__scratch(c, (size_t) n * sizeof **out);
    if (!*out)
        return TR_E_NOMEM;
    memset(*out, 0, (size_t) n * sizeof **out);
    return TR_OK;
}

#endif
