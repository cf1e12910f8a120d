/* infer_view.c - rules of views: a new meta and an offset over the same storage. No view has a kernel. */
#include "tracer/infer_rules.h"

#include <stdio.h>
#include <string.h>

static tr_status out(tr_infer *c, int ndim, const int64_t *shape, const int64_t *strides) {
    c->cdtype = c->in[0].meta->dtype;
    c->out[0] = tr_meta_get(c->cdtype, ndim, shape, strides);
    return c->out[0] ? TR_OK : TR_E_NOMEM;
}

static tr_status copy_of(tr_infer *c, int64_t *shape, int64_t *strides) {
    memcpy(shape, c->in[0].meta->shape, sizeof c->in[0].meta->shape);
    memcpy(strides, c->in[0].meta->strides, sizeof c->in[0].meta->strides);
    return TR_OK;
}

/* As PyTorch's computeStride: runs of dimensions that lie in memory without gaps may be regrouped. */
bool tr__view_strides(const tr_meta *x, int ndim, const int64_t *shape, int64_t *strides) {
    if (x->numel == 0) {
        const tr_meta *m = tr_meta_get(TR_F32, ndim, shape, NULL);
        if (m)
            memcpy(strides, m->strides, sizeof m->strides);
        return m != NULL;
    }
    if (x->ndim == 0) {
        for (int d = 0; d < ndim; d++)
            strides[d] = 1;
        return true;
    }
    int view_d = ndim - 1;
    int64_t base = x->strides[x->ndim - 1], tensor_numel = 1, view_numel = 1;
    for (int d = x->ndim - 1; d >= 0; d--) {
        tensor_numel *= x->shape[d];
        if (d == 0 || (x->shape[d - 1] != 1 && x->strides[d - 1] != tensor_numel * base)) {
            while (view_d >= 0 && (view_numel < tensor_numel || shape[view_d] == 1)) {
                strides[view_d] = view_numel * base;
                view_numel *= shape[view_d];
                view_d--;
            }
            if (view_numel != tensor_numel)
                return false;
            if (d > 0) {
                base = x->strides[d - 1];
                tensor_numel = view_numel = 1;
            }
        }
    }
    return view_d == -1;
}

static tr_status wrong_size(const tr_meta *x, int ndim, const int64_t *shape, bool ambiguous) {
    char text[128] = "[";
    size_t at = 1;
    for (int d = 0; d < ndim && at < sizeof text; d++)
        at += (size_t) snprintf(text + at, sizeof text - at, "%s%lld", d ? ", " : "", (long long) shape[d]);
    if (ambiguous)
        return TR_FAIL(TR_E_RUNTIME, "cannot reshape tensor of 0 elements into shape %s] because the unspecified dimension size "
                                     "-1 can be any value and is ambiguous", text);
    return TR_FAIL(TR_E_SHAPE, "shape '%s]' is invalid for input of size %lld", text, (long long) x->numel);
}

tr_status infer_view(tr_infer *c) {
    const tr_meta *x = c->in[0].meta;
    int ndim = (int) c->attrs[0];
    int64_t *shape = c->attrs + 1, strides[TR_MAX_DIMS], known = 1;
    int hole = -1;
    for (int d = 0; d < ndim; d++) {
        if (shape[d] == -1) {
            if (hole >= 0)
                return TR_FAIL(TR_E_RUNTIME, "only one dimension can be inferred");
            hole = d;
        } else if (shape[d] < 0)
            return TR_FAIL(TR_E_RUNTIME, "invalid shape dimension %lld", (long long) shape[d]);
        else
            known *= shape[d];
    }
    bool ambiguous = hole >= 0 && known == 0;
    if (ambiguous || (hole >= 0 ? x->numel % known != 0 : x->numel != known))
        return wrong_size(x, ndim, shape, ambiguous);
    if (hole >= 0)
        shape[hole] = x->numel / known;
    if (!tr__view_strides(x, ndim, shape, strides))
        return TR_FAIL(TR_E_RUNTIME, "view size is not compatible with input tensor's size and stride (at least one dimension "
                                     "spans across two contiguous subspaces). Use .reshape(...) instead.");
    return out(c, ndim, shape, strides);
}

tr_status infer_expand(tr_infer *c) {
    const tr_meta *x = c->in[0].meta;
    int ndim = (int) c->attrs[0];
    int64_t *shape = c->attrs + 1, strides[TR_MAX_DIMS];
    if (ndim < x->ndim)
        return TR_FAIL(TR_E_RUNTIME, "expand: the number of sizes provided (%d) must be greater or equal to the number of "
                                     "dimensions in the tensor (%d)", ndim, x->ndim);
    for (int d = 0; d < ndim; d++) {
        int own = d - (ndim - x->ndim);
        int64_t size = own >= 0 ? x->shape[own] : 1;
        if (shape[d] == -1) {
            if (own < 0)
                return TR_FAIL(TR_E_RUNTIME, "The expanded size of the tensor (-1) isn't allowed in a leading, non-existing "
                                             "dimension %d", d);
            shape[d] = size;
        }
        if (shape[d] != size && size != 1)
            return TR_FAIL(TR_E_SHAPE, "The expanded size of the tensor (%lld) must match the existing size (%lld) at "
                                       "non-singleton dimension %d.", (long long) shape[d], (long long) size, d);
        strides[d] = own >= 0 && shape[d] == size ? x->strides[own] : 0;
    }
    return out(c, ndim, shape, strides);
}

tr_status infer_permute(tr_infer *c) {
    const tr_meta *x = c->in[0].meta;
    int64_t shape[TR_MAX_DIMS], strides[TR_MAX_DIMS];
    unsigned seen = 0;
    if (c->attrs[0] != x->ndim)
        return TR_FAIL(TR_E_RUNTIME, "permute(sparse_coo): number of dimensions in the tensor input does not match the length of "
                                     "the desired ordering of dimensions i.e. input.dim() = %d is not equal to len(dims) = %lld",
                       x->ndim, (long long) c->attrs[0]);
    for (int d = 0; d < x->ndim; d++) {
        int64_t from = c->attrs[1 + d];
        if (from < 0)
            from += x->ndim;
        if (from < 0 || from >= x->ndim)
            return TR_FAIL(TR_E_INDEX, "Dimension out of range (expected to be in range of [%d, %d], but got %lld)", -x->ndim,
                           x->ndim - 1, (long long) c->attrs[1 + d]);
        if (seen >> from & 1)
            return TR_FAIL(TR_E_RUNTIME, "permute(): duplicate dims are not allowed.");
        seen |= 1u << from;
        c->attrs[1 + d] = from;
        shape[d] = x->shape[from];
        strides[d] = x->strides[from];
    }
    return out(c, x->ndim, shape, strides);
}

tr_status infer_transpose(tr_infer *c) {
    int64_t shape[TR_MAX_DIMS], strides[TR_MAX_DIMS], a = c->attrs[0], b = c->attrs[1];
    copy_of(c, shape, strides);
    if (c->in[0].meta->ndim) {
        shape[a] = c->in[0].meta->shape[b];
        shape[b] = c->in[0].meta->shape[a];
        strides[a] = c->in[0].meta->strides[b];
        strides[b] = c->in[0].meta->strides[a];
    }
    return out(c, c->in[0].meta->ndim, shape, strides);
}

tr_status infer_unsqueeze(tr_infer *c) {
    const tr_meta *x = c->in[0].meta;
    int64_t shape[TR_MAX_DIMS + 1], strides[TR_MAX_DIMS + 1], dim = c->attrs[0];
    if (dim < -x->ndim - 1 || dim > x->ndim)
        return TR_FAIL(TR_E_INDEX, "Dimension out of range (expected to be in range of [%d, %d], but got %lld)", -x->ndim - 1,
                       x->ndim, (long long) dim);
    if (dim < 0)
        dim += x->ndim + 1;
    c->attrs[0] = dim;
    for (int d = 0, e = 0; e <= x->ndim; e++) {
        if (e == dim) {
            shape[e] = 1;
            strides[e] = d < x->ndim ? x->shape[d] * x->strides[d] : 1;
        } else {
            shape[e] = x->shape[d];
            strides[e] = x->strides[d++];
        }
    }
    return out(c, x->ndim + 1, shape, strides);
}

tr_status infer_squeeze(tr_infer *c) {
    const tr_meta *x = c->in[0].meta;
    int64_t shape[TR_MAX_DIMS], strides[TR_MAX_DIMS];
    int n = 0;
    for (int d = 0; d < x->ndim; d++)
        if (!((c->attrs[0] >> d & 1) && x->shape[d] == 1)) {
            shape[n] = x->shape[d];
            strides[n++] = x->strides[d];
        }
    return out(c, n, shape, strides);
}

tr_status infer_slice(tr_infer *c) {
    int64_t shape[TR_MAX_DIMS], strides[TR_MAX_DIMS];
    int64_t dim = c->attrs[0], start = c->attrs[1], stop = c->attrs[2], step = c->attrs[3];
    if (c->in[0].meta->ndim == 0)
        return TR_FAIL(TR_E_RUNTIME, "slice() cannot be applied to a 0-dim tensor.");
    if (step < 1)
        return TR_FAIL(TR_E_VALUE, "slice step must be positive");
    copy_of(c, shape, strides);
    int64_t size = shape[dim];
    start = start < 0 ? start + size : start;
    stop = stop < 0 ? stop + size : stop;
    start = start < 0 ? 0 : start > size ? size : start;
    stop = stop < start ? start : stop > size ? size : stop;
    c->attrs[1] = start;
    c->attrs[2] = stop;
    shape[dim] = (stop - start + step - 1) / step;
    c->offset = start * strides[dim];
    strides[dim] *= step;
    return out(c, c->in[0].meta->ndim, shape, strides);
}

tr_status infer_select(tr_infer *c) {
    const tr_meta *x = c->in[0].meta;
    int64_t shape[TR_MAX_DIMS], strides[TR_MAX_DIMS], dim = c->attrs[0], index = c->attrs[1];
    if (x->ndim == 0)
        return TR_FAIL(TR_E_INDEX, "select() cannot be applied to a 0-dim tensor.");
    if (index < -x->shape[dim] || index >= x->shape[dim])
        return TR_FAIL(TR_E_INDEX, "index %lld is out of bounds for dimension %lld with size %lld", (long long) index,
                       (long long) dim, (long long) x->shape[dim]);
    if (index < 0)
        index += x->shape[dim];
    c->attrs[1] = index;
    c->offset = index * x->strides[dim];
    int n = 0;
    for (int d = 0; d < x->ndim; d++)
        if (d != dim) {
            shape[n] = x->shape[d];
            strides[n++] = x->strides[d];
        }
    return out(c, n, shape, strides);
}

tr_status infer_diagonal(tr_infer *c) {
    const tr_meta *x = c->in[0].meta;
    int64_t shape[TR_MAX_DIMS], strides[TR_MAX_DIMS], offset = c->attrs[0];
    int64_t a = c->attrs[1] < 0 ? c->attrs[1] + x->ndim : c->attrs[1], b = c->attrs[2] < 0 ? c->attrs[2] + x->ndim : c->attrs[2];
    if (a < 0 || b < 0 || a >= x->ndim || b >= x->ndim)
        return TR_FAIL(TR_E_INDEX, "Dimension out of range (expected to be in range of [%d, %d])", -x->ndim, x->ndim - 1);
    if (a == b)
        return TR_FAIL(TR_E_RUNTIME, "diagonal dimensions cannot be identical %lld, %lld", (long long) a, (long long) b);
    int64_t rows = x->shape[a] + (offset < 0 ? offset : 0), columns = x->shape[b] - (offset > 0 ? offset : 0);
    int64_t size = rows < columns ? rows : columns;
    int n = 0;
    for (int d = 0; d < x->ndim; d++)
        if (d != a && d != b) {
            shape[n] = x->shape[d];
            strides[n++] = x->strides[d];
        }
    shape[n] = size > 0 ? size : 0;
    strides[n++] = x->strides[a] + x->strides[b];
    if (size > 0)
        c->offset = offset > 0 ? offset * x->strides[b] : -offset * x->strides[a];
    return out(c, n, shape, strides);
}

tr_status infer_unfold(tr_infer *c) {
    const tr_meta *x = c->in[0].meta;
    int64_t shape[TR_MAX_DIMS + 1], strides[TR_MAX_DIMS + 1], dim = c->attrs[0], size = c->attrs[1], step = c->attrs[2];
    int64_t have = x->ndim ? x->shape[dim] : 1;
    if (size < 0 || size > have)
        return TR_FAIL(TR_E_RUNTIME, "maximum size for tensor at dimension %lld is %lld but size is %lld", (long long) dim,
                       (long long) have, (long long) size);
    if (step < 1)
        return TR_FAIL(TR_E_RUNTIME, "step is %lld but must be > 0", (long long) step);
    copy_of(c, shape, strides);
    int n = x->ndim;
    shape[n] = size;
    strides[n] = x->ndim ? x->strides[dim] : 1;
    if (x->ndim) {
        shape[dim] = (have - size) / step + 1;
        strides[dim] *= step;
    }
    return out(c, n + 1, shape, strides);
}

tr_status infer_as_strided(tr_infer *c) {
    const int64_t *strides = c->attrs + 1 + TR_MAX_DIMS;
    if (c->attrs[0] != strides[0])
        return TR_FAIL(TR_E_RUNTIME, "mismatch in length of strides and shape");
    for (int d = 0; d < c->attrs[0]; d++)
        if (c->attrs[1 + d] < 0 || strides[1 + d] < 0)
            return TR_FAIL(TR_E_RUNTIME, "as_strided: Negative sizes and strides are not supported");
    // Counted from operand 0's first element; the Python room converts PyTorch's storage_offset.
    c->offset = c->attrs[2 + 2 * TR_MAX_DIMS];
    return out(c, (int) c->attrs[0], c->attrs + 1, strides + 1);
}

tr_status infer_alias(tr_infer *c) {
    c->cdtype = c->in[0].meta->dtype;
    c->out[0] = c->in[0].meta;
    return TR_OK;
}
