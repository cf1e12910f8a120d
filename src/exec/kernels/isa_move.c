/* isa_move.c - whole tensors moved: concatenation, padding, flips, triangles; and the derivative of a view. */
#include "exec/kernels/isa_index.h"

/* A piece of `a`: from `start`, of `shape`, as a tensor of its own. */
static tr_arg piece_of(const tr_arg *a, tr_meta *m, const int64_t *start, const int64_t *shape) {
    int64_t at = 0;
    for (int d = 0; d < a->meta->ndim; d++)
        at += start[d] * a->meta->strides[d];
    tr__meta_make(m, (tr_dtype) a->meta->dtype, a->meta->ndim, shape, a->meta->strides);
    return (tr_arg){(char *) a->data + at * (int64_t) tr_dtype_size((tr_dtype) a->meta->dtype), m, {0}};
}

/* Operands that lie densely, as the result does: each is a run of bytes in every row of the result. */
static bool are_rows(const tr_kernel_call *c) {
    bool rows = c->out[0].meta->contiguous;
    for (int k = 0; k < c->n_in && rows; k++)
        rows = c->in[k].data && c->in[k].meta->contiguous && c->in[k].meta->dtype == c->out[0].meta->dtype;
    return rows;
}

static void cat_rows(void *env, int64_t begin, int64_t end, int thread) {
    const tr_kernel_call *c = env;
    int64_t dim = c->attrs[0], outer = tr__axis_of(c->out[0].meta, dim).outer;
    int64_t size = (int64_t) tr_dtype_size((tr_dtype) c->out[0].meta->dtype), width = c->out[0].meta->numel / outer * size;
    for (int64_t r = begin; r < end; r++) {
        char *to = (char *) c->out[0].data + r * width;
        for (int k = 0; k < c->n_in; k++) {
            int64_t n = c->in[k].meta->numel / outer * size;
            memcpy(to, (const char *) c->in[k].data + r * n, (size_t) n);
            to += n;
        }
    }
}

TR__ISA_KERNEL(cat) {
    const tr_arg *out = &c->out[0];
    if (out->meta->numel && are_rows(c)) {
        int64_t outer = tr__axis_of(out->meta, c->attrs[0]).outer;
        tr__parallel(c->ctx, outer, tr__max(1, TR__GRAIN / (out->meta->numel / outer)), cat_rows, (void *) c);
        return TR_OK;
    }
    int64_t dim = c->attrs[0], start[TR_MAX_DIMS] = {0};
    for (int k = 0; k < c->n_in; k++) {
        const tr_meta *x = c->in[k].meta;
        if (x->numel == 0)
            continue; // also PyTorch's old-style empty tensors, of any shape
        tr_meta m;
        tr_arg dst = piece_of(out, &m, start, x->shape);
        TR_TRY(tr__copy(c->ctx, &dst, &c->in[k]));
        start[dim] += x->shape[dim];
    }
    return TR_OK;
}

TR__ISA_KERNEL(constant_pad_nd) {
    const tr_arg *in = &c->in[0], *out = &c->out[0];
    int n = in->meta->ndim, count = (int) c->attrs[0];
    int64_t from[TR_MAX_DIMS] = {0}, to[TR_MAX_DIMS] = {0}, shape[TR_MAX_DIMS];
    const int64_t *before = c->attrs + 1, *after = c->attrs + 2 + TR_MAX_DIMS;
    bool empty = false;
    for (int d = 0; d < n; d++) {
        int k = d - (n - count); // sizes belong to the last dimensions
        int64_t b = k >= 0 ? before[k] : 0, e = k >= 0 ? after[k] : 0;
        from[d] = tr__max(0, -b);
        to[d] = tr__max(0, b);
        shape[d] = in->meta->shape[d] + tr__min(0, b) + tr__min(0, e);
        empty |= shape[d] <= 0;
    }
    const tr_arg *value = &c->in[1];
    TR_TRY(tr__fill(c->ctx, out, value->meta->dtype == TR_F64 ? TR_F64 : TR_I64, value->at));
    if (empty)
        return TR_OK;
    tr_meta m, k;
    tr_arg src = piece_of(in, &m, from, shape), dst = piece_of(out, &k, to, shape);
    return tr__copy(c->ctx, &dst, &src);
}

TR__ISA_KERNEL(flip) {
    const tr_arg *in = &c->in[0];
    tr_meta m = *in->meta;
    int64_t at = 0;
    if (m.numel == 0)
        return TR_OK;
    for (int d = 0; d < m.ndim; d++)
        if (c->attrs[0] >> d & 1) {
            at += (m.shape[d] - 1) * m.strides[d];
            m.strides[d] = -m.strides[d];
        }
    m.contiguous = m.dense = false;
    tr_arg src = {(char *) in->data + at * (int64_t) tr_dtype_size((tr_dtype) m.dtype), &m, {0}};
    return tr__copy(c->ctx, &c->out[0], &src);
}

TR__ISA_KERNEL(roll) {
    const tr_arg *in = &c->in[0], *out = &c->out[0];
    int64_t dim = c->attrs[1], shape[TR_MAX_DIMS], zero[TR_MAX_DIMS] = {0}, at[TR_MAX_DIMS] = {0};
    if (in->meta->numel == 0)
        return TR_OK;
    if (in->meta->ndim == 0)
        return tr__copy(c->ctx, out, in);
    int64_t n = in->meta->shape[dim], shift = (c->attrs[0] % n + n) % n;
    tr_meta m, k;
    memcpy(shape, in->meta->shape, sizeof shape);
    shape[dim] = n - shift;
    at[dim] = shift;
    tr_arg src = piece_of(in, &m, zero, shape), dst = piece_of(out, &k, at, shape);
    TR_TRY(tr__copy(c->ctx, &dst, &src));
    shape[dim] = shift;
    at[dim] = n - shift;
    src = piece_of(in, &m, at, shape);
    dst = piece_of(out, &k, zero, shape);
    return shift ? tr__copy(c->ctx, &dst, &src) : TR_OK;
}

/* Keeps columns [lo(row), hi(row)) of each row and clears the rest. */
typedef struct band_job {
    char *y;
    int64_t rows, columns, diagonal;
    size_t size;
    bool upper;
} band_job;

static void clear_band(void *env, int64_t begin, int64_t end, int thread) {
    const band_job *j = env;
    for (int64_t k = begin; k < end; k++) {
        int64_t edge = k % j->rows + j->diagonal + (j->upper ? 0 : 1);
        edge = tr__max(0, tr__min(j->columns, edge));
        char *row = j->y + (size_t) (k * j->columns) * j->size;
        if (j->upper)
            memset(row, 0, (size_t) edge * j->size);
        else
            memset(row + (size_t) edge * j->size, 0, (size_t) (j->columns - edge) * j->size);
    }
}

static tr_status keep_band(const tr_kernel_call *c, bool upper) {
    const tr_arg *out = &c->out[0];
    tr_dtype dtype = (tr_dtype) out->meta->dtype;
    void *y;
    if (out->meta->numel == 0)
        return TR_OK;
    TR_TRY(open_changed(c, dtype, &y));
    int n = out->meta->ndim;
    band_job j = {y, out->meta->shape[n - 2], out->meta->shape[n - 1], c->attrs[0], tr_dtype_size(dtype), upper};
    tr__parallel(c->ctx, out->meta->numel / j.columns, tr__max(1, TR__GRAIN / j.columns), clear_band, &j);
    return tr__dense_out_end(c, out, dtype, y);
}

TR__ISA_KERNEL(tril) {
    return keep_band(c, false);
}
TR__ISA_KERNEL(triu) {
    return keep_band(c, true);
}

TR__ISA_KERNEL(as_strided_scatter) {
    const tr_arg *grad = &c->in[0], *out = &c->out[0];
    tr_dtype dtype = (tr_dtype) out->meta->dtype, wide = tr__wide(dtype);
    const int64_t *strides = c->attrs + 2 + TR_MAX_DIMS;
    const tr_meta *g = grad->meta;
    const void *x;
    void *y;
    TR_TRY(tr__dense_out(c, out, wide, &y));
    memset(y, 0, (size_t) out->meta->numel * tr_dtype_size(wide));
    if (g->numel == 0)
        return tr__dense_out_end(c, out, wide, y);
    TR_TRY(tr__dense_in(c, grad, wide, &x));
    int64_t inner = g->ndim ? g->shape[g->ndim - 1] : 1, step = g->ndim ? strides[g->ndim - 1] : 1;
    size_t size = tr_dtype_size(wide);
    for (int64_t k = 0; k < g->numel; k += inner) {
        int64_t at = tr_arg_int(&c->in[1]) + offset_of(g->ndim - 1, g->shape, strides, k / inner);
        char *row = (char *) y + at * (int64_t) size;
        const char *from = (const char *) x + (size_t) k * size;
        if (step == 1)
            add_row(wide, row, from, inner, 1, 1);
        else
            for (int64_t i = 0; i < inner; i++)
                add_row(wide, row + i * step * (int64_t) size, from + (size_t) i * size, 1, 1, 1);
    }
    return tr__dense_out_end(c, out, wide, y);
}
