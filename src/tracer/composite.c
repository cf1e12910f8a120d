/* composite.c - functions of PyTorch's API that are several ops, and hot enough to be here rather than in Python. */
#include "tracer/dispatch.h"
#include "tracer/infer_rules.h"

#include "terra/alloc.h"

#include <string.h>

static tr_status sized(tr_op op, tr_tensor *t, int ndim, const int64_t *shape, tr_tensor **out) {
    if (ndim > TR_MAX_DIMS)
        return TR_FAIL(TR_E_NOTIMPL, "tensors of more than %d dimensions are not supported, got %d", TR_MAX_DIMS, ndim);
    int64_t a[1 + TR_MAX_DIMS] = {ndim};
    if (ndim)
        memcpy(a + 1, shape, (size_t) ndim * sizeof *a);
    return tr_apply(op, (tr_input[]){tr_in(t)}, 1, a, NULL, false, out);
}

tr_status tr_view(tr_tensor *t, int ndim, const int64_t *shape, tr_tensor **out) {
    return sized(TR_OP_view, t, ndim, shape, out);
}

tr_status tr_expand(tr_tensor *t, int ndim, const int64_t *shape, tr_tensor **out) {
    return sized(TR_OP_expand, t, ndim, shape, out);
}

tr_status tr_permute(tr_tensor *t, const int64_t *dims, tr_tensor **out) {
    return sized(TR_OP_permute, t, t->meta->ndim, dims, out);
}

tr_status tr_contiguous(tr_tensor *t, tr_tensor **out) {
    if (t->meta->contiguous) {
        tr_tensor_retain(t);
        *out = t;
        return TR_OK;
    }
    return tr_apply(TR_OP__contiguous, (tr_input[]){tr_in(t)}, 1, NULL, NULL, false, out);
}

tr_status tr_to_dtype(tr_tensor *t, tr_dtype dtype, tr_tensor **out) {
    if (t->meta->dtype == dtype) {
        tr_tensor_retain(t);
        *out = t;
        return TR_OK;
    }
    return tr_apply(TR_OP__cast, (tr_input[]){tr_in(t)}, 1, (int64_t[]){dtype}, NULL, false, out);
}

tr_status tr_reshape(tr_tensor *t, int ndim, const int64_t *shape, tr_tensor **out) {
    int64_t full[TR_MAX_DIMS], strides[TR_MAX_DIMS], known = 1;
    int hole = -1;
    if (ndim > TR_MAX_DIMS || t->meta->contiguous)
        return tr_view(t, ndim, shape, out);
    for (int d = 0; d < ndim; d++) {
        full[d] = shape[d];
        if (shape[d] == -1 && hole < 0)
            hole = d;
        else
            known *= shape[d];
    }
    if (hole >= 0)
        full[hole] = known ? t->meta->numel / known : 0;
    int64_t numel = 1;
    for (int d = 0; d < ndim; d++)
        numel *= full[d];
    // A wrong shape is reported by view.
    if (numel != t->meta->numel || tr__view_strides(t->meta, ndim, full, strides))
        return tr_view(t, ndim, shape, out);
    tr_tensor *packed = NULL;
    TR_TRY(tr_contiguous(t, &packed));
    tr_status status = tr_view(packed, ndim, shape, out);
    tr_tensor_release(packed);
    return status;
}

/* ------------------------------------------------------------------------------------------------ products */

static tr_status op2(tr_op op, tr_tensor *a, tr_tensor *b, tr_tensor **out) {
    return tr_apply(op, (tr_input[]){tr_in(a), tr_in(b)}, 2, NULL, NULL, false, out);
}

static tr_status matmul(tr_tensor *a, tr_tensor *b, tr_tensor **out);

static tr_status no_scalars(const tr_tensor *a, const tr_tensor *b) {
    if (a->meta->ndim == 0 || b->meta->ndim == 0)
        return TR_FAIL(TR_E_RUNTIME, "both arguments to matmul need to be at least 1D, but they are %dD and %dD", a->meta->ndim,
                       b->meta->ndim);
    return TR_OK;
}

/* [..., n, k] x [k, m] as one matrix product; b may be a vector. */
static tr_status matmul_folded(tr_tensor *a, tr_tensor *b, tr_tensor **out) {
    int n = a->meta->ndim;
    bool vector = b->meta->ndim == 1;
    int64_t k = a->meta->shape[n - 1], shape[TR_MAX_DIMS];
    memcpy(shape, a->meta->shape, sizeof shape);
    tr_tensor *rows = NULL, *columns = b, *product = NULL;
    tr_tensor_retain(b);
    tr_status status = k || a->meta->numel ? tr_reshape(a, 2, (int64_t[]){-1, k}, &rows)
                                           : tr_reshape(a, 2, (int64_t[]){0, k}, &rows);
    if (status == TR_OK && vector) {
        tr_tensor_release(columns);
        columns = NULL;
        status = tr_view(b, 2, (int64_t[]){b->meta->shape[0], 1}, &columns);
    }
    if (status == TR_OK)
        status = op2(TR_OP_mm, rows, columns, &product);
    if (status == TR_OK) {
        if (!vector)
            shape[n - 1] = columns->meta->shape[1];
        status = tr_view(product, vector ? n - 1 : n, shape, out);
    }
    tr_tensor_release(rows);
    tr_tensor_release(columns);
    tr_tensor_release(product);
    return status;
}

static tr_status expand_batch(tr_tensor *t, int n_batch, const int64_t *batch, int64_t numel, tr_tensor **out) {
    int n = t->meta->ndim;
    int64_t shape[TR_MAX_DIMS];
    memcpy(shape, batch, (size_t) n_batch * sizeof *shape);
    shape[n_batch] = t->meta->shape[n - 2];
    shape[n_batch + 1] = t->meta->shape[n - 1];
    tr_tensor *wide = NULL;
    TR_TRY(tr_expand(t, n_batch + 2, shape, &wide));
    tr_status status = tr_reshape(wide, 3, (int64_t[]){numel, shape[n_batch], shape[n_batch + 1]}, out);
    tr_tensor_release(wide);
    return status;
}

static tr_status matmul_batched(tr_tensor *a, tr_tensor *b, tr_tensor **out) {
    const tr_meta *x = a->meta, *y = b->meta;
    int64_t batch[TR_MAX_DIMS], numel = 1;
    int n_batch = x->ndim - 2;
    memcpy(batch, x->shape, sizeof batch);
    const tr_meta *lead = tr_meta_get(TR_F32, y->ndim - 2, y->shape, NULL);
    if (!lead)
        return TR_E_NOMEM;
    TR_TRY(tr__broadcast(batch, &n_batch, lead));
    for (int d = 0; d < n_batch; d++)
        numel *= batch[d];
    tr_tensor *p = NULL, *q = NULL, *product = NULL;
    tr_status status = expand_batch(a, n_batch, batch, numel, &p);
    if (status == TR_OK)
        status = expand_batch(b, n_batch, batch, numel, &q);
    if (status == TR_OK)
        status = op2(TR_OP_bmm, p, q, &product);
    if (status == TR_OK) {
        batch[n_batch] = x->shape[x->ndim - 2];
        batch[n_batch + 1] = y->shape[y->ndim - 1];
        status = tr_view(product, n_batch + 2, batch, out);
    }
    tr_tensor_release(p);
    tr_tensor_release(q);
    tr_tensor_release(product);
    return status;
}

/* A vector on the left: a row; the result loses it again. */
static tr_status matmul_row(tr_tensor *a, tr_tensor *b, tr_tensor **out) {
    tr_tensor *row = NULL, *product = NULL;
    TR_TRY(tr_view(a, 2, (int64_t[]){1, a->meta->shape[0]}, &row));
    tr_status status = matmul(row, b, &product);
    if (status == TR_OK) {
        int64_t shape[TR_MAX_DIMS];
        int n = 0;
        int drop = b->meta->ndim == 1 ? 0 : product->meta->ndim - 2;
        for (int d = 0; d < product->meta->ndim; d++)
            if (d != drop)
                shape[n++] = product->meta->shape[d];
        status = tr_view(product, n, shape, out);
    }
    tr_tensor_release(row);
    tr_tensor_release(product);
    return status;
}

/* Operands cast here, where parameters are still themselves and not views, are cast once in a region. */
static tr_status in_lower(tr_tensor *in[], int n) {
    for (int i = 0; i < n; i++) {
        tr_status status = in[i] ? tr_autocast_operand(TR_AUTOCAST_LOWER, in[i], &in[i]) : TR_OK;
        if (status != TR_OK) {
            while (i > 0)
                tr_tensor_release(in[--i]);
            return status;
        }
    }
    return TR_OK;
}

static tr_status matmul(tr_tensor *a, tr_tensor *b, tr_tensor **out) {
    TR_TRY(no_scalars(a, b));
    if (a->meta->ndim == 1)
        return matmul_row(a, b, out);
    if (a->meta->ndim == 2 && b->meta->ndim == 2)
        return op2(TR_OP_mm, a, b, out);
    if (a->meta->ndim == 3 && b->meta->ndim == 3 && a->meta->shape[0] == b->meta->shape[0])
        return op2(TR_OP_bmm, a, b, out);
    if (b->meta->ndim <= 2)
        return matmul_folded(a, b, out);
    return matmul_batched(a, b, out);
}

tr_status tr_matmul(tr_tensor *a, tr_tensor *b, tr_tensor **out) {
    if (TR_LIKELY(!tr__autocast.enabled))
        return matmul(a, b, out);
    tr_tensor *in[] = {a, b};
    TR_TRY(in_lower(in, 2));
    tr_status status = matmul(in[0], in[1], out);
    tr_tensor_release(in[0]);
    tr_tensor_release(in[1]);
    return status;
}

static tr_status linear(tr_tensor *x, tr_tensor *w, tr_tensor *b, tr_tensor **out) {
    if (w->meta->ndim != 2 || x->meta->ndim < 1)
        return TR_FAIL(TR_E_RUNTIME, "linear: weight must have 2 dimensions and input at least 1, got %d and %d", w->meta->ndim,
                       x->meta->ndim);
    tr_tensor *wt = NULL, *rows = NULL, *product = NULL;
    TR_TRY(tr_apply(TR_OP_transpose, (tr_input[]){tr_in(w)}, 1, (int64_t[]){0, 1}, NULL, false, &wt));
    if (!b) {
        tr_status status = matmul(x, wt, out);
        tr_tensor_release(wt);
        return status;
    }
    int n = x->meta->ndim;
    int64_t k = x->meta->shape[n - 1], count = 1, shape[TR_MAX_DIMS];
    for (int d = 0; d < n - 1; d++)
        count *= shape[d] = x->meta->shape[d];
    tr_status status = TR_OK;
    if (n == 2) {
        rows = x;
        tr_tensor_retain(x);
    } else
        status = tr_reshape(x, 2, (int64_t[]){count, k}, &rows);
    if (status == TR_OK)
        status = tr_apply(TR_OP_addmm, (tr_input[]){tr_in(b), tr_in(rows), tr_in(wt), tr_in_int(1), tr_in_int(1)}, 5, NULL, NULL,
                          false, n == 2 ? out : &product);
    if (status == TR_OK && n != 2) {
        shape[n - 1] = w->meta->shape[0];
        status = tr_view(product, n, shape, out);
    }
    tr_tensor_release(wt);
    tr_tensor_release(rows);
    tr_tensor_release(product);
    return status;
}

tr_status tr_linear(tr_tensor *x, tr_tensor *w, tr_tensor *b, tr_tensor **out) {
    if (TR_LIKELY(!tr__autocast.enabled))
        return linear(x, w, b, out);
    tr_tensor *in[] = {x, w, b};
    TR_TRY(in_lower(in, 3));
    tr_status status = linear(in[0], in[1], in[2], out);
    for (int i = 0; i < 3; i++)
        tr_tensor_release(in[i]);
    return status;
}

/* ------------------------------------------------------------------------------------------------ indexing */

tr_status tr_nonzero(tr_tensor *t, tr_tensor **out) {
    tr_tensor *count = NULL;
    tr_number n;
    TR_TRY(tr_apply(TR_OP__count_nonzero, (tr_input[]){tr_in(t)}, 1, NULL, NULL, false, &count));
    tr_status status = tr_tensor_item(count, &n);
    tr_tensor_release(count);
    TR_TRY(status);
    return tr_apply(TR_OP__nonzero, (tr_input[]){tr_in(t)}, 1, (int64_t[]){n.i}, NULL, false, out);
}

typedef struct indices {
    tr_tensor *at[TR_MAX_DIMS]; /* per dimension: int64, of one shape; retained; NULL: all of it */
    int64_t mask;
    int n;                      /* how many there are */
} indices;

static void indices_free(indices *x) {
    for (int d = 0; d < TR_MAX_DIMS; d++)
        tr_tensor_release(x->at[d]);
}

static bool is_mask(const tr_tensor *t) {
    return t->meta->dtype == TR_BOOL || t->meta->dtype == TR_U8;
}

/* A mask stands for one index column per dimension that it covers. */
static tr_status add_mask(indices *x, tr_tensor *t, int *dim, tr_tensor *mask) {
    for (int d = 0; d < mask->meta->ndim; d++)
        if (*dim + d >= t->meta->ndim || mask->meta->shape[d] != t->meta->shape[*dim + d]) {
            char a[128], b[128];
            return TR_FAIL(TR_E_INDEX, "The shape of the mask %s at index %d does not match the shape of the indexed tensor %s at "
                                       "index %d", tr_shape_print(mask->meta, a, sizeof a), d,
                           tr_shape_print(t->meta, b, sizeof b), *dim + d);
        }
    tr_tensor *where = NULL;
    TR_TRY(tr_nonzero(mask, &where));
    tr_status status = TR_OK;
    for (int d = 0; d < mask->meta->ndim && status == TR_OK; d++)
        status = tr_apply(TR_OP_select, (tr_input[]){tr_in(where)}, 1, (int64_t[]){1, d}, NULL, false, &x->at[(*dim)++]);
    tr_tensor_release(where);
    return status;
}

static tr_status collect(tr_tensor *t, tr_tensor *const *index, int n, indices *x) {
    int dim = 0;
    for (int i = 0; i < n; i++) {
        if (!index[i]) {
            dim++;
            continue;
        }
        if (is_mask(index[i]) && index[i]->meta->ndim > 0) {
            TR_TRY(add_mask(x, t, &dim, index[i]));
            continue;
        }
        if (dim >= t->meta->ndim)
            return TR_FAIL(TR_E_INDEX, "too many indices for tensor of dimension %d", t->meta->ndim);
        if (tr_dtype_is_float((tr_dtype) index[i]->meta->dtype))
            return TR_FAIL(TR_E_INDEX, "tensors used as indices must be long, int, byte or bool tensors");
        TR_TRY(tr_to_dtype(index[i], TR_I64, &x->at[dim++]));
    }
    if (dim > t->meta->ndim)
        return TR_FAIL(TR_E_INDEX, "too many indices for tensor of dimension %d", t->meta->ndim);
    int64_t shape[TR_MAX_DIMS];
    int ndim = 0;
    for (int d = 0; d < TR_MAX_DIMS; d++) {
        if (!x->at[d])
            continue;
        x->mask |= (int64_t) 1 << d;
        x->n++;
        if (tr__broadcast(shape, &ndim, x->at[d]->meta) != TR_OK)
            return TR_FAIL(TR_E_INDEX, "shape mismatch: indexing tensors could not be broadcast together: %s", tr_status_detail());
    }
    for (int d = 0; d < TR_MAX_DIMS; d++) {
        if (!x->at[d])
            continue;
        const tr_meta *m = x->at[d]->meta;
        if (m->ndim == ndim && memcmp(m->shape, shape, (size_t) ndim * sizeof *shape) == 0)
            continue;
        tr_tensor *wide = NULL;
        TR_TRY(tr_expand(x->at[d], ndim, shape, &wide));
        tr_tensor_release(x->at[d]);
        x->at[d] = wide;
    }
    return TR_OK;
}

tr_status tr_index_get(tr_tensor *t, tr_tensor *const *index, int n, tr_tensor **out) {
    indices x = {0};
    tr_status status = collect(t, index, n, &x);
    tr_input in[1 + TR_MAX_DIMS] = {tr_in(t)};
    int k = 1;
    for (int d = 0; d < TR_MAX_DIMS; d++)
        if (x.at[d])
            in[k++] = tr_in(x.at[d]);
    if (status == TR_OK)
        status = tr_apply(TR_OP_index, in, k, (int64_t[]){x.mask}, NULL, false, out);
    indices_free(&x);
    return status;
}

/* x[mask] = one value needs no count of the mask: it is a masked fill. */
static tr_status put_masked(tr_tensor *t, tr_tensor *mask, tr_input value) {
    int64_t shape[TR_MAX_DIMS];
    int n = t->meta->ndim;
    for (int d = 0; d < n; d++)
        shape[d] = d < mask->meta->ndim ? mask->meta->shape[d] : 1;
    for (int d = 0; d < mask->meta->ndim; d++)
        if (mask->meta->shape[d] != t->meta->shape[d]) {
            char a[128], b[128];
            return TR_FAIL(TR_E_INDEX, "The shape of the mask %s at index %d does not match the shape of the indexed tensor %s at "
                                       "index %d", tr_shape_print(mask->meta, a, sizeof a), d,
                           tr_shape_print(t->meta, b, sizeof b), d);
        }
    tr_tensor *wide = NULL, *flags = NULL, *same = NULL;
    tr_status status = tr_to_dtype(mask, TR_BOOL, &flags);
    if (status == TR_OK)
        status = tr_reshape(flags, n, shape, &wide);
    if (status == TR_OK)
        status = tr_apply(TR_OP_masked_fill, (tr_input[]){tr_in(t), tr_in(wide), value}, 3, NULL, NULL, true, &same);
    tr_tensor_release(flags);
    tr_tensor_release(wide);
    tr_tensor_release(same);
    return status;
}

tr_status tr_index_put(tr_tensor *t, tr_tensor *const *index, int n, tr_input value, bool accumulate) {
    bool single = !value.tensor || value.tensor->meta->ndim == 0;
    if (n == 1 && index[0] && is_mask(index[0]) && single && !accumulate && index[0]->meta->ndim <= t->meta->ndim)
        return put_masked(t, index[0], value);
    indices x = {0};
    tr_status status = collect(t, index, n, &x);
    tr_tensor *cast = NULL, *same = NULL;
    if (status == TR_OK && value.tensor && value.tensor->meta->dtype != t->meta->dtype) {
        status = tr_to_dtype(value.tensor, (tr_dtype) t->meta->dtype, &cast);
        value.tensor = cast;
    }
    tr_input in[2 + TR_MAX_DIMS] = {tr_in(t), value};
    int k = 2;
    for (int d = 0; d < TR_MAX_DIMS; d++)
        if (x.at[d])
            in[k++] = tr_in(x.at[d]);
    if (status == TR_OK)
        status = tr_apply(TR_OP_index_put_, in, k, (int64_t[]){x.mask, accumulate}, NULL, false, &same);
    tr_tensor_release(same);
    tr_tensor_release(cast);
    indices_free(&x);
    return status;
}
