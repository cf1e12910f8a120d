/* new.c - tensors made from numbers. */
#include "exec/kernels/kernels.h"

#include <math.h>

TR__KERNEL(_full) {
    const tr_arg *v = &c->in[0];
    return tr__fill(c->ctx, &c->out[0], v->meta->dtype == TR_F64 ? TR_F64 : TR_I64, v->at);
}

/* PyTorch counts in vectors of 32 bytes, from a base that is rounded to the type: 1.6 may come out as 1.5999999. */
static double arange_at(double start, double step, int64_t i, int64_t n, tr_dtype dtype) {
    int64_t lanes = dtype == TR_F64 ? 4 : dtype == TR_F32 ? 8 : 16, base = i / lanes * lanes;
    if (base + lanes > n || i == base)
        return fma(step, (double) i, start);
    double from = fma(step, (double) base, start);
    if (dtype == TR_F32)
        from = (float) from;
    return fma(step, (double) (i - base), from);
}

TR__KERNEL(_arange) {
    const tr_arg *out = &c->out[0];
    int64_t n = out->meta->numel;
    bool real = tr_dtype_is_float((tr_dtype) out->meta->dtype);
    void *p;
    TR_TRY(tr__dense_out(c, out, real ? TR_F64 : TR_I64, &p));
    double start = tr_arg_double(&c->in[0]), step = tr_arg_double(&c->in[1]);
    int64_t first = tr_arg_int(&c->in[0]), by = tr_arg_int(&c->in[1]);
    for (int64_t i = 0; i < n; i++) {
        if (real)
            ((double *) p)[i] = arange_at(start, step, i, n, (tr_dtype) out->meta->dtype);
        else
            ((int64_t *) p)[i] = first + by * i;
    }
    return tr__dense_out_end(c, out, real ? TR_F64 : TR_I64, p);
}

/* From both ends, as PyTorch: symmetric to the bit, in the type of the result. */
TR__KERNEL(_linspace) {
    const tr_arg *out = &c->out[0];
    int64_t n = out->meta->numel;
    double start = tr_arg_double(&c->in[0]), end = tr_arg_double(&c->in[1]);
    tr_dtype wide = out->meta->dtype == TR_F64 ? TR_F64 : out->meta->dtype >= TR_BF16 ? TR_F32 : TR_F64;
    void *p;
    TR_TRY(tr__dense_out(c, out, wide, &p));
    float fstep = n > 1 ? ((float) end - (float) start) / (float) (n - 1) : 0;
    double step = n > 1 ? (end - start) / (double) (n - 1) : 0;
    for (int64_t i = 0; i < n; i++) {
        bool low = i < n / 2 || n == 1;
        if (wide == TR_F32)
            ((float *) p)[i] = low ? fmaf(fstep, (float) i, (float) start) : fmaf(-fstep, (float) (n - i - 1), (float) end);
        else
            ((double *) p)[i] = low ? fma(step, (double) i, start) : fma(-step, (double) (n - i - 1), end);
    }
    return tr__dense_out_end(c, out, wide, p);
}

TR__KERNEL(_eye) {
    const tr_arg *out = &c->out[0];
    TR_TRY(tr__fill(c->ctx, out, TR_I64, (tr_number){.i = 0}));
    int64_t n = tr__min(out->meta->shape[0], out->meta->shape[1]), step = out->meta->strides[0] + out->meta->strides[1];
    tr_meta m;
    tr__meta_make(&m, (tr_dtype) out->meta->dtype, 1, &n, &step);
    tr_arg diagonal = {out->data, &m, {0}};
    return tr__fill(c->ctx, &diagonal, TR_I64, (tr_number){.i = 1});
}

/* What it holds is nobody's business. */
TR__KERNEL(_empty) {
    return TR_OK;
}
