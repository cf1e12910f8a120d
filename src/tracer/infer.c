/* infer.c - one static function per rule of ops.def. The order: elementwise, reductions, products, windows, normalisation,
 * indexing, random and optimizers; views are in infer_view.c. Messages are PyTorch's where a program could see them. */
#include "tracer/infer.h"

#include "tracer/infer_rules.h"

#include <stdio.h>
#include <string.h>

#define SHAPE_TEXT(name, meta) \
    char name[128];            \
    tr_shape_print((meta), name, sizeof name)

static const char *op_name(const tr_infer *c) {
    return tr_op_info_of(c->op)->name;
}

static tr_status set_out(tr_infer *c, int i, tr_dtype dtype, int ndim, const int64_t *shape) {
    c->out[i] = tr_meta_get(dtype, ndim, shape, NULL);
    return c->out[i] ? TR_OK : TR_E_NOMEM;
}

static tr_status set_meta(tr_infer *c, int i, const tr_meta *meta) {
    c->out[i] = meta;
    return meta ? TR_OK : TR_E_NOMEM;
}

/* ------------------------------------------------------------------------------------------------ promotion */

static bool is_number(const tr_operand *o) {
    return !o->storage && o->meta;
}

static int combine(int higher, int lower) {
    if (higher >= 0 && tr_dtype_is_float((tr_dtype) higher))
        return higher;
    if (higher < 0)
        return lower;
    if (lower >= 0 && (higher == TR_BOOL || tr_dtype_is_float((tr_dtype) lower)))
        return lower > higher ? lower : higher;
    return higher;
}

static int promote2(int a, int b) {
    return a > b ? a : b;
}

tr_dtype tr__promote(const tr_operand *in, int n) {
    int dim = -1, zero = -1, number = -1;
    for (int i = 0; i < n; i++) {
        if (!in[i].meta)
            continue;
        if (is_number(&in[i]))
            number = promote2(number, in[i].meta->dtype == TR_F64 ? TR_F32 : in[i].meta->dtype);
        else if (in[i].meta->ndim == 0)
            zero = promote2(zero, in[i].meta->dtype);
        else
            dim = promote2(dim, in[i].meta->dtype);
    }
    int all = combine(dim, combine(zero, number));
    return all < 0 ? TR_F32 : (tr_dtype) all;
}

/* ------------------------------------------------------------------------------------------------ elementwise */

tr_status tr__broadcast(int64_t *shape, int *ndim, const tr_meta *b) {
    int n = *ndim > b->ndim ? *ndim : b->ndim;
    int64_t out[TR_MAX_DIMS];
    for (int d = 0; d < n; d++) {
        int ia = d - (n - *ndim), ib = d - (n - b->ndim);
        int64_t sa = ia >= 0 ? shape[ia] : 1, sb = ib >= 0 ? b->shape[ib] : 1;
        if (sa != sb && sa != 1 && sb != 1)
            return TR_FAIL(TR_E_SHAPE,
                           "The size of tensor a (%lld) must match the size of tensor b (%lld) at non-singleton dimension %d",
                           (long long) sa, (long long) sb, d);
        out[d] = sa == 1 ? sb : sa;
    }
    memcpy(shape, out, sizeof *shape * (size_t) n);
    *ndim = n;
    return TR_OK;
}

/* An operand's stride along result dimension d; 0 where it is broadcast. */
static int64_t stride_along(const tr_meta *m, int ndim, int d) {
    int own = d - (ndim - m->ndim);
    return own < 0 || m->shape[own] == 1 ? 0 : m->strides[own];
}

/* Which of two result dimensions is the outer one, by the operands' strides: 1 when d0 is, -1 when d1 is, 0 unknown. */
static int outer(const tr_infer *c, int ndim, const int64_t *shape, int d0, int d1) {
    for (int i = 0; i < c->n_in; i++) {
        if (!c->in[i].storage || c->in[i].meta->ndim == 0)
            continue;
        int64_t s0 = stride_along(c->in[i].meta, ndim, d0), s1 = stride_along(c->in[i].meta, ndim, d1);
        if (s0 == 0 || s1 == 0)
            continue;
        if (s0 != s1)
            return s0 > s1 ? 1 : -1;
        if (shape[d0] != shape[d1])
            return shape[d0] > shape[d1] ? 1 : -1;
    }
    return 0;
}

/* The result's strides: those of the operands where they agree on an order of the dimensions, as TensorIterator does. */
static tr_status elementwise_meta(tr_infer *c, tr_dtype dtype, int ndim, const int64_t *shape, const tr_meta **out) {
    bool plain = true;
    for (int i = 0; i < c->n_in && plain; i++)
        if (c->in[i].storage && c->in[i].meta->ndim)
            plain = c->in[i].meta->contiguous && (c->in[i].meta->ndim == ndim || c->in[i].meta->numel == 1);
    int64_t strides[TR_MAX_DIMS];
    if (!plain) {
        int order[TR_MAX_DIMS]; // from the innermost
        for (int i = 0; i < ndim; i++)
            order[i] = ndim - 1 - i;
        for (int i = 1; i < ndim; i++)
            for (int j = i, k = i - 1; k >= 0; k--) {
                int which = outer(c, ndim, shape, order[k], order[j]);
                if (which > 0) { // the one thought inner is outer: swap
                    int t = order[k];
                    order[k] = order[j];
                    order[j] = t;
                    j = k;
                } else if (which < 0)
                    break;
            }
        int64_t step = 1;
        for (int i = 0; i < ndim; i++) {
            strides[order[i]] = step;
            step *= shape[order[i]] > 1 ? shape[order[i]] : 1;
        }
    }
    *out = tr_meta_get(dtype, ndim, shape, plain ? NULL : strides);
    return *out ? TR_OK : TR_E_NOMEM;
}

static bool can_cast(tr_dtype from, tr_dtype to) {
    if (tr_dtype_is_float(from) && !tr_dtype_is_float(to))
        return false;
    return from == TR_BOOL || to != TR_BOOL;
}

static tr_status elementwise(tr_infer *c, tr_dtype compute, tr_dtype dtype) {
    int64_t shape[TR_MAX_DIMS];
    int ndim = 0;
    for (int i = 0; i < c->n_in; i++)
        if (c->in[i].storage)
            TR_TRY(tr__broadcast(shape, &ndim, c->in[i].meta));
    c->cdtype = compute;
    if (!c->in_place)
        return elementwise_meta(c, dtype, ndim, shape, &c->out[0]);
    const tr_meta *self = c->in[0].meta;
    const tr_meta *want = tr_meta_get(self->dtype, ndim, shape, NULL);
    if (!want)
        return TR_E_NOMEM;
    if (!tr_meta_same_shape(self, want)) {
        SHAPE_TEXT(a, self);
        SHAPE_TEXT(b, want);
        return TR_FAIL(TR_E_SHAPE, "output with shape %s doesn't match the broadcast shape %s", a, b);
    }
    if (!can_cast(dtype, self->dtype))
        return TR_FAIL(TR_E_RUNTIME, "result type %s can't be cast to the desired output type %s", tr_dtype_legacy(dtype),
                       tr_dtype_legacy(self->dtype));
    return set_meta(c, 0, self);
}

static tr_dtype float_of(tr_dtype d) {
    return tr_dtype_is_float(d) ? d : TR_F32;
}

static tr_status infer_same(tr_infer *c) {
    tr_dtype d = c->in[0].meta->dtype;
    if (d == TR_BOOL && c->op == TR_OP_neg)
        return TR_FAIL(TR_E_RUNTIME, "Negation, the `-` operator, on a bool tensor is not supported. If you are trying to "
                                     "invert a mask, use the `~` or `logical_not()` operator instead.");
    return elementwise(c, d, d);
}
static tr_status infer_float(tr_infer *c) {
    tr_dtype d = float_of(c->in[0].meta->dtype);
    return elementwise(c, d, d);
}
static tr_status infer_bool(tr_infer *c) {
    return elementwise(c, c->in[0].meta->dtype, TR_BOOL);
}
static tr_status infer_bits(tr_infer *c) {
    tr_dtype d = tr__promote(c->in, c->n_in);
    if (tr_dtype_is_float(d))
        return TR_FAIL(TR_E_RUNTIME, "\"%s_cpu\" not implemented for '%s'", op_name(c), tr_dtype_legacy(d));
    return elementwise(c, d, d);
}
static tr_status infer_contig(tr_infer *c) {
    c->cdtype = c->in[0].meta->dtype;
    return set_meta(c, 0, tr_meta_as_contiguous(c->in[0].meta, c->cdtype));
}
static tr_status infer_cast(tr_infer *c) {
    c->cdtype = c->in[0].meta->dtype;
    return elementwise(c, c->cdtype, (tr_dtype) c->attrs[0]);
}
static tr_status infer_arith(tr_infer *c) {
    tr_dtype d = tr__promote(c->in, c->n_in);
    if (d == TR_BOOL && c->op == TR_OP_sub)
        return TR_FAIL(TR_E_RUNTIME, "Subtraction, the `-` operator, with two bool tensors is not supported. Use the `^` or "
                                     "`logical_xor()` operator instead.");
    if (c->op == TR_OP_lerp || c->op == TR_OP_addcmul || c->op == TR_OP_addcdiv) {
        // A number (weight, value) has no say here.
        d = tr__promote(c->in, 2);
    }
    return elementwise(c, d, d);
}
static tr_status infer_arith_float(tr_infer *c) {
    tr_dtype d = float_of(tr__promote(c->in, c->n_in));
    return elementwise(c, d, d);
}
static tr_status infer_div(tr_infer *c) {
    tr_dtype d = tr__promote(c->in, c->n_in);
    if (c->attrs[0] == 0)
        d = float_of(d);
    return elementwise(c, d, d);
}
static tr_status infer_compare(tr_infer *c) {
    tr_dtype d = tr__promote(c->in, c->n_in);
    if (!c->in_place)
        return elementwise(c, d, TR_BOOL);
    TR_TRY(elementwise(c, d, c->in[0].meta->dtype));
    return TR_OK;
}
static tr_status infer_where(tr_infer *c) {
    if (c->in[0].meta->dtype != TR_BOOL && c->in[0].meta->dtype != TR_U8)
        return TR_FAIL(TR_E_RUNTIME, "where expected condition to be a boolean tensor, but got a tensor with dtype %s",
                       tr_dtype_legacy((tr_dtype) c->in[0].meta->dtype));
    tr_dtype d = tr__promote(c->in + 1, 2);
    return elementwise(c, d, d);
}
static tr_status infer_masked_fill(tr_infer *c) {
    tr_dtype d = c->in[0].meta->dtype;
    if (c->in[1].meta->dtype != TR_BOOL)
        return TR_FAIL(TR_E_RUNTIME, "masked_fill_ only supports boolean masks, but got mask with dtype %s",
                       tr_dtype_name((tr_dtype) c->in[1].meta->dtype));
    if (c->in[2].storage && c->in[2].meta->ndim)
        return TR_FAIL(TR_E_RUNTIME, "masked_fill only supports a 0-dimensional value tensor, but got tensor with %d "
                                     "dimension(s).", c->in[2].meta->ndim);
    if (!can_cast(c->in[2].meta->dtype == TR_F64 && !c->in[2].storage ? TR_F32 : (tr_dtype) c->in[2].meta->dtype, d) &&
        !(d == TR_BOOL && !tr_dtype_is_float((tr_dtype) c->in[2].meta->dtype)))
        return TR_FAIL(TR_E_RUNTIME, "value cannot be converted to type %s without overflow", tr_dtype_name(d));
    return elementwise(c, d, d);
}
static tr_status infer_clamp(tr_infer *c) {
    if (!c->in[1].meta && !c->in[2].meta)
        return TR_FAIL(TR_E_RUNTIME, "torch.clamp: At least one of 'min' or 'max' must not be None");
    tr_dtype d = tr__promote(c->in, c->n_in);
    return elementwise(c, d, d);
}
static tr_status infer_first(tr_infer *c) {
    tr_dtype d = c->in[0].meta->dtype;
    return elementwise(c, d, d);
}
/* The written operand stays as it is; what is read is broadcast to it. */
static tr_status infer_inplace(tr_infer *c) {
    const tr_meta *self = c->in[0].meta;
    if (c->op == TR_OP_fill_ && c->in[1].storage && c->in[1].meta->ndim)
        return TR_FAIL(TR_E_RUNTIME, "fill_ only supports 0-dimension value tensor but got tensor with %d dimensions.",
                       c->in[1].meta->ndim);
    for (int i = 1; i < c->n_in; i++) {
        if (!c->in[i].storage || tr_op_info_of(c->op)->op_class != TR_CLASS_EW)
            continue;
        int64_t shape[TR_MAX_DIMS];
        int ndim = self->ndim;
        memcpy(shape, self->shape, sizeof shape);
        TR_TRY(tr__broadcast(shape, &ndim, c->in[i].meta));
        bool same = ndim == self->ndim;
        for (int d = 0; d < ndim && same; d++)
            same = shape[d] == self->shape[d];
        if (!same) {
            SHAPE_TEXT(a, self);
            SHAPE_TEXT(b, tr_meta_get(self->dtype, ndim, shape, NULL));
            return TR_FAIL(TR_E_SHAPE, "output with shape %s doesn't match the broadcast shape %s", a, b);
        }
    }
    c->cdtype = self->dtype;
    return TR_OK;
}
static tr_status infer_given(tr_infer *c) {
    c->cdtype = c->given->dtype;
    return set_meta(c, 0, c->given);
}

/* ------------------------------------------------------------------------------------------------ reductions */

static tr_status reduced(tr_infer *c, int64_t mask, bool keep, tr_dtype dtype, int out) {
    const tr_meta *x = c->in[0].meta;
    int64_t shape[TR_MAX_DIMS];
    int n = 0;
    for (int d = 0; d < x->ndim; d++) {
        if (!(mask >> d & 1))
            shape[n++] = x->shape[d];
        else if (keep)
            shape[n++] = 1;
    }
    return set_out(c, out, dtype, n, shape);
}

static tr_status no_identity(tr_infer *c, int64_t mask) {
    const tr_meta *x = c->in[0].meta;
    if (x->numel == 0 && mask == (1 << x->ndim) - 1)
        return TR_FAIL(TR_E_INDEX, "%s(): Expected reduction dim to be specified for input.numel() == 0. Specify the "
                                   "reduction dim with the 'dim' argument.", op_name(c));
    for (int d = 0; d < x->ndim; d++)
        if ((mask >> d & 1) && x->shape[d] == 0)
            return TR_FAIL(TR_E_INDEX, "%s(): Expected reduction dim %d to have non-zero size.", op_name(c), d);
    return TR_OK;
}

static tr_status infer_reduce_sum(tr_infer *c) {
    tr_dtype d = c->in[0].meta->dtype;
    c->cdtype = c->attrs[2] >= 0 ? (tr_dtype) c->attrs[2] : tr_dtype_is_float(d) ? d : TR_I64;
    return reduced(c, c->attrs[0], c->attrs[1], c->cdtype, 0);
}
static tr_status infer_reduce_mean(tr_infer *c) {
    c->cdtype = c->attrs[2] >= 0 ? (tr_dtype) c->attrs[2] : (tr_dtype) c->in[0].meta->dtype;
    if (!tr_dtype_is_float(c->cdtype))
        return TR_FAIL(TR_E_RUNTIME, "mean(): could not infer output dtype. Input dtype must be either a floating point or "
                                     "complex dtype. Got: %s", tr_dtype_legacy(c->cdtype));
    return reduced(c, c->attrs[0], c->attrs[1], c->cdtype, 0);
}
static tr_status infer_reduce_same(tr_infer *c) {
    TR_TRY(no_identity(c, c->attrs[0]));
    c->cdtype = c->in[0].meta->dtype;
    return reduced(c, c->attrs[0], c->attrs[1], c->cdtype, 0);
}
static tr_status infer_reduce_bool(tr_infer *c) {
    c->cdtype = c->in[0].meta->dtype;
    return reduced(c, c->attrs[0], c->attrs[1], c->cdtype == TR_U8 ? TR_U8 : TR_BOOL, 0);
}
static tr_status infer_reduce_float(tr_infer *c) {
    c->cdtype = c->in[0].meta->dtype;
    if (!tr_dtype_is_float(c->cdtype)) {
        if (c->op != TR_OP_logsumexp)
            return TR_FAIL(TR_E_RUNTIME, "%s: Expected a floating point or complex tensor as input. Got %s",
                           c->op == TR_OP_var ? "std and var only support floating point and complex dtypes" : "linalg.vector_norm",
                           tr_dtype_legacy(c->cdtype));
        c->cdtype = TR_F32;
    }
    return reduced(c, c->attrs[0], c->attrs[1], c->cdtype, 0);
}
static tr_status infer_reduce_arg(tr_infer *c) {
    const tr_meta *x = c->in[0].meta;
    int64_t all = (1 << x->ndim) - 1;
    int64_t mask = c->attrs[0] == TR_NONE ? all : x->ndim ? (int64_t) 1 << c->attrs[0] : 0;
    if (x->numel == 0)
        TR_TRY(no_identity(c, mask));
    c->cdtype = x->dtype;
    return reduced(c, mask, c->attrs[1], TR_I64, 0);
}
static tr_status infer_reduce_with_index(tr_infer *c) {
    const tr_meta *x = c->in[0].meta;
    int64_t mask = x->ndim ? (int64_t) 1 << c->attrs[0] : 0;
    TR_TRY(no_identity(c, mask ? mask : 0));
    c->cdtype = x->dtype;
    TR_TRY(reduced(c, mask, c->attrs[1], c->cdtype, 0));
    return reduced(c, mask, c->attrs[1], TR_I64, 1);
}
static tr_status infer_cumulate(tr_infer *c) {
    tr_dtype d = c->in[0].meta->dtype;
    c->cdtype = c->attrs[1] >= 0 ? (tr_dtype) c->attrs[1] : tr_dtype_is_float(d) ? d : TR_I64;
    return set_meta(c, 0, tr_meta_as_contiguous(c->in[0].meta, c->cdtype));
}
static tr_status infer_softmax(tr_infer *c) {
    c->cdtype = c->in[0].meta->dtype;
    if (!tr_dtype_is_float(c->cdtype))
        return TR_FAIL(TR_E_RUNTIME, "\"%s_kernel_impl\" not implemented for '%s'",
                       c->op == TR_OP__softmax ? "softmax_lastdim" : "log_softmax_lastdim", tr_dtype_legacy(c->cdtype));
    return set_meta(c, 0, tr_meta_as_contiguous(c->in[0].meta, c->cdtype));
}
static tr_status infer_first_contig(tr_infer *c) {
    c->cdtype = c->in[0].meta->dtype;
    return set_meta(c, 0, tr_meta_as_contiguous(c->in[0].meta, c->cdtype));
}
static tr_status infer_nll_loss(tr_infer *c) {
    const tr_meta *x = c->in[0].meta, *t = c->in[1].meta, *w = c->in[2].meta;
    if (x->ndim < 1 || x->ndim > 2)
        return TR_FAIL(TR_E_RUNTIME, "input tensor should be 1D or 2D");
    if (t->ndim > 1)
        return TR_FAIL(TR_E_RUNTIME, "0D or 1D target tensor expected, multi-target not supported");
    if (!(x->ndim == 1 && t->ndim == 0) && (x->ndim != 2 || t->ndim != 1 || x->shape[0] != t->shape[0])) {
        SHAPE_TEXT(a, x);
        SHAPE_TEXT(b, t);
        return TR_FAIL(TR_E_VALUE, "Expected input batch_size (%lld) to match target batch_size (%lld).",
                       (long long) (x->ndim == 2 ? x->shape[0] : 1), (long long) (t->ndim ? t->shape[0] : 1));
    }
    if (t->dtype != TR_I64 && t->dtype != TR_U8)
        return TR_FAIL(TR_E_RUNTIME, "expected scalar type Long but found %s", tr_dtype_legacy((tr_dtype) t->dtype));
    if (w && (w->ndim != 1 || w->shape[0] != x->shape[x->ndim - 1])) {
        SHAPE_TEXT(a, w);
        return TR_FAIL(TR_E_RUNTIME, "weight tensor should be defined either for all %lld classes or no classes but got "
                                     "weight tensor of shape: %s", (long long) x->shape[x->ndim - 1], a);
    }
    c->cdtype = x->dtype;
    bool none = c->attrs[0] == 0;
    TR_TRY(set_out(c, 0, c->cdtype, none && x->ndim == 2 ? 1 : 0, x->shape));
    return set_out(c, 1, c->cdtype, 0, NULL);
}
static tr_status infer_cross_entropy(tr_infer *c) {
    const tr_meta *x = c->in[0].meta;
    TR_TRY(infer_nll_loss(c));
    if (x->ndim != 2 || !tr_dtype_is_float((tr_dtype) x->dtype))
        return TR_FAIL(TR_E_RUNTIME, "_cross_entropy: the input must have two dimensions and be of a floating-point type");
    if (x->dtype == TR_BF16) { // what autocast makes of it: as of a float32 copy
        c->cdtype = TR_F32;
        TR_TRY(set_out(c, 0, TR_F32, c->attrs[0] == 0, x->shape));
        TR_TRY(set_out(c, 1, TR_F32, 0, NULL));
    }
    return set_out(c, 2, c->cdtype, 1, x->shape);
}
static tr_status infer_nll_loss_backward(tr_infer *c) {
    c->cdtype = c->in[1].meta->dtype;
    return set_meta(c, 0, tr_meta_as_contiguous(c->in[1].meta, c->cdtype));
}

/* ------------------------------------------------------------------------------------------------ attention */

static tr_status infer_sdpa(tr_infer *c) {
    const tr_meta *q = c->in[0].meta, *k = c->in[1].meta, *v = c->in[2].meta, *mask = c->in[3].meta, *keep = c->in[4].meta;
    bool fits = q->ndim == 4 && k->ndim == 4 && v->ndim == 4;
    for (int d = 0; d < 2; d++)
        fits = fits && q->shape[d] == k->shape[d] && q->shape[d] == v->shape[d];
    if (!fits || q->shape[3] != k->shape[3] || k->shape[2] != v->shape[2] || !k->shape[2] || !q->shape[3])
        return TR_FAIL(TR_E_SHAPE, "_sdpa: query, key and value must be [B, H, L, D], [B, H, S, D] and [B, H, S, E]");
    if ((q->dtype != TR_F32 && q->dtype != TR_BF16) || k->dtype != q->dtype || v->dtype != q->dtype)
        return TR_FAIL(TR_E_RUNTIME, "_sdpa: query, key and value must all be float32 or bfloat16");
    const int64_t scores[] = {q->shape[0], q->shape[1], q->shape[2], k->shape[2]};
    fits = !mask || mask->ndim <= 4;
    for (int d = 0; mask && fits && d < mask->ndim; d++)
        fits = mask->shape[d] == 1 || mask->shape[d] == scores[d + 4 - mask->ndim];
    if (!fits || (keep && memcmp(keep->shape, scores, sizeof scores) != 0))
        return TR_FAIL(TR_E_SHAPE, "_sdpa: the mask does not fit the scores");
    c->cdtype = q->dtype;
    // As PyTorch has it: heads side by side, but not where there is dropout.
    const int64_t shape[] = {q->shape[0], q->shape[1], q->shape[2], v->shape[3]};
    const int64_t row = shape[1] * shape[3], strides[] = {shape[2] * row, shape[3], row, 1};
    bool beside = !keep && q->shape[3] == v->shape[3] && q->numel;
    TR_TRY(set_meta(c, 0, tr_meta_get(c->cdtype, 4, shape, beside ? strides : NULL)));
    return set_out(c, 1, TR_F32, 3, shape);
}

/* A dense meta with the dimensions of `m` in the order in which they lie in memory. */
static const tr_meta *dense_like(const tr_meta *m) {
    int order[TR_MAX_DIMS];
    int64_t strides[TR_MAX_DIMS], step = 1;
    for (int d = 0; d < m->ndim; d++) {
        int k = d;
        if (m->strides[d] == 0 && m->shape[d] != 1)
            return tr_meta_as_contiguous(m, (tr_dtype) m->dtype);
        for (; k > 0 && m->strides[order[k - 1]] < m->strides[d]; k--)
            order[k] = order[k - 1];
        order[k] = d;
    }
    for (int k = m->ndim - 1; k >= 0; k--) {
        strides[order[k]] = step;
        step *= m->shape[order[k]] > 1 ? m->shape[order[k]] : 1;
    }
    return tr_meta_get((tr_dtype) m->dtype, m->ndim, m->shape, strides);
}
static tr_status infer_sdpa_backward(tr_infer *c) {
    c->cdtype = c->in[1].meta->dtype;
    for (int i = 0; i < 3; i++)
        TR_TRY(set_meta(c, i, dense_like(c->in[1 + i].meta)));
    return TR_OK;
}

/* ------------------------------------------------------------------------------------------------ matrix products */

static tr_status same_dtypes(tr_infer *c, int a, int b) {
    if (c->in[a].meta->dtype != c->in[b].meta->dtype)
        return TR_FAIL(TR_E_RUNTIME, "expected m1 and m2 to have the same dtype, but got: %s != %s",
                       tr_dtype_legacy((tr_dtype) c->in[a].meta->dtype), tr_dtype_legacy((tr_dtype) c->in[b].meta->dtype));
    c->cdtype = c->in[a].meta->dtype;
    return TR_OK;
}
static tr_status product(tr_infer *c, int a, int b) {
    const tr_meta *x = c->in[a].meta, *y = c->in[b].meta;
    if (x->ndim != 2 || y->ndim != 2)
        return TR_FAIL(TR_E_RUNTIME, "%s must be a matrix, got %d-D tensor", x->ndim != 2 ? "mat1" : "mat2",
                       x->ndim != 2 ? x->ndim : y->ndim);
    if (x->shape[1] != y->shape[0])
        return TR_FAIL(TR_E_SHAPE, "mat1 and mat2 shapes cannot be multiplied (%lldx%lld and %lldx%lld)",
                       (long long) x->shape[0], (long long) x->shape[1], (long long) y->shape[0], (long long) y->shape[1]);
    TR_TRY(same_dtypes(c, a, b));
    return set_out(c, 0, c->cdtype, 2, (int64_t[]){x->shape[0], y->shape[1]});
}
static tr_status batched(tr_infer *c, int a, int b) {
    const tr_meta *x = c->in[a].meta, *y = c->in[b].meta;
    if (x->ndim != 3 || y->ndim != 3)
        return TR_FAIL(TR_E_RUNTIME, "batch%d must be a 3D tensor", x->ndim != 3 ? 1 : 2);
    if (x->shape[0] != y->shape[0] || x->shape[2] != y->shape[1])
        return TR_FAIL(TR_E_SHAPE, "Expected size for first two dimensions of batch2 tensor to be: [%lld, %lld] but got: "
                                   "[%lld, %lld].", (long long) x->shape[0], (long long) x->shape[2],
                       (long long) y->shape[0], (long long) y->shape[1]);
    TR_TRY(same_dtypes(c, a, b));
    return set_out(c, 0, c->cdtype, 3, (int64_t[]){x->shape[0], x->shape[1], y->shape[2]});
}
static tr_status added(tr_infer *c) {
    int64_t shape[TR_MAX_DIMS];
    int ndim = c->out[0]->ndim;
    memcpy(shape, c->out[0]->shape, sizeof shape);
    tr_status status = tr__broadcast(shape, &ndim, c->in[0].meta);
    if (status != TR_OK || ndim != c->out[0]->ndim || memcmp(shape, c->out[0]->shape, sizeof *shape * (size_t) ndim) != 0) {
        SHAPE_TEXT(a, c->in[0].meta);
        SHAPE_TEXT(b, c->out[0]);
        return TR_FAIL(TR_E_SHAPE, "The expanded size of the tensor %s must match the existing size %s", b, a);
    }
    if (c->in[0].meta->dtype != c->cdtype)
        return TR_FAIL(TR_E_RUNTIME, "self and mat2 must have the same dtype, but got %s and %s",
                       tr_dtype_legacy((tr_dtype) c->in[0].meta->dtype), tr_dtype_legacy(c->cdtype));
    return TR_OK;
}
static tr_status infer_mm(tr_infer *c) { return product(c, 0, 1); }
static tr_status infer_bmm(tr_infer *c) { return batched(c, 0, 1); }
static tr_status infer_addmm(tr_infer *c) {
    TR_TRY(product(c, 1, 2));
    return added(c);
}
static tr_status infer_baddbmm(tr_infer *c) {
    TR_TRY(batched(c, 1, 2));
    return added(c);
}

/* ------------------------------------------------------------------------------------------------ windows */

static int64_t window(int64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation, bool ceil_mode) {
    int64_t span = size + 2 * pad - dilation * (kernel - 1) - 1 + (ceil_mode ? stride - 1 : 0);
    int64_t n = (span >= 0 ? span / stride : -1) + 1;
    // The last window must start inside the input or the left padding.
    if (ceil_mode && (n - 1) * stride >= size + pad)
        n--;
    return n;
}

static tr_status infer_conv2d(tr_infer *c) {
    const tr_meta *x = c->in[0].meta, *w = c->in[1].meta, *b = c->in[2].meta;
    const int64_t *a = c->attrs, *stride = a, *pad = a + 2, *dilation = a + 4;
    int64_t groups = a[6];
    SHAPE_TEXT(xs, x);
    SHAPE_TEXT(ws, w);
    if (x->ndim != 4 || w->ndim != 4)
        return TR_FAIL(TR_E_RUNTIME, "Expected 3D (unbatched) or 4D (batched) input to conv2d, but got input of size: %s", xs);
    if (groups < 1 || stride[0] < 1 || stride[1] < 1 || dilation[0] < 1 || dilation[1] < 1 || pad[0] < 0 || pad[1] < 0)
        return TR_FAIL(TR_E_RUNTIME, "conv2d: stride, dilation and groups must be positive, padding not negative");
    if (w->shape[1] * groups != x->shape[1])
        return TR_FAIL(TR_E_SHAPE, "Given groups=%lld, weight of size %s, expected input%s to have %lld channels, but got "
                                   "%lld channels instead", (long long) groups, ws, xs, (long long) (w->shape[1] * groups),
                       (long long) x->shape[1]);
    if (w->shape[0] % groups)
        return TR_FAIL(TR_E_SHAPE, "Given groups=%lld, expected weight to be divisible by %lld at dimension 0, but got weight "
                                   "of size %s instead", (long long) groups, (long long) groups, ws);
    if (b && (b->ndim != 1 || b->shape[0] != w->shape[0])) {
        SHAPE_TEXT(bs, b);
        return TR_FAIL(TR_E_SHAPE, "Given weight of size %s, expected bias to be 1-dimensional with %lld elements, but got "
                                   "bias of size %s instead", ws, (long long) w->shape[0], bs);
    }
    int64_t shape[4] = {x->shape[0], w->shape[0]};
    for (int i = 0; i < 2; i++) {
        if (x->shape[2 + i] + 2 * pad[i] < dilation[i] * (w->shape[2 + i] - 1) + 1)
            return TR_FAIL(TR_E_RUNTIME, "Calculated padded input size per channel: (%lld x %lld). Kernel size: (%lld x %lld). "
                                         "Kernel size can't be greater than actual input size",
                           (long long) (x->shape[2] + 2 * pad[0]), (long long) (x->shape[3] + 2 * pad[1]),
                           (long long) w->shape[2], (long long) w->shape[3]);
        shape[2 + i] = window(x->shape[2 + i], w->shape[2 + i], stride[i], pad[i], dilation[i], false);
    }
    if (x->dtype != w->dtype)
        return TR_FAIL(TR_E_RUNTIME, "Input type (%s) and weight type (%s) should be the same",
                       tr_dtype_legacy((tr_dtype) x->dtype), tr_dtype_legacy((tr_dtype) w->dtype));
    if (!tr_dtype_is_float((tr_dtype) x->dtype))
        return TR_FAIL(TR_E_RUNTIME, "conv2d is not implemented for '%s'", tr_dtype_legacy((tr_dtype) x->dtype));
    c->cdtype = x->dtype;
    return set_out(c, 0, c->cdtype, 4, shape);
}
/* attrs: stride, padding, dilation, groups, size[2] of what is computed (H and W). */
static tr_status infer_conv2d_backward(tr_infer *c) {
    const tr_meta *g = c->in[0].meta, *w = c->in[1].meta;
    c->cdtype = g->dtype;
    return set_out(c, 0, c->cdtype, 4, (int64_t[]){g->shape[0], w->shape[1] * c->attrs[6], c->attrs[7], c->attrs[8]});
}
static tr_status infer_conv2d_backward_w(tr_infer *c) {
    const tr_meta *g = c->in[0].meta, *x = c->in[1].meta;
    c->cdtype = g->dtype;
    return set_out(c, 0, c->cdtype, 4, (int64_t[]){g->shape[1], x->shape[1] / c->attrs[6], c->attrs[7], c->attrs[8]});
}

static tr_status pooled(tr_infer *c, const int64_t *kernel, const int64_t *stride, const int64_t *pad, const int64_t *dilation,
                        bool ceil_mode, int64_t *shape) {
    const tr_meta *x = c->in[0].meta;
    SHAPE_TEXT(xs, x);
    if (x->ndim != 4)
        return TR_FAIL(TR_E_RUNTIME, "%s: Expected 3D or 4D (batch mode) tensor, but got input of size: %s", op_name(c), xs);
    memcpy(shape, x->shape, 2 * sizeof *shape);
    for (int i = 0; i < 2; i++) {
        if (kernel[i] < 1 || stride[i] < 1 || dilation[i] < 1)
            return TR_FAIL(TR_E_RUNTIME, "%s: kernel size, stride and dilation should be greater than zero", op_name(c));
        if (pad[i] < 0 || pad[i] > ((kernel[i] - 1) * dilation[i] + 1) / 2)
            return TR_FAIL(TR_E_RUNTIME, "pad should be at most half of effective kernel size, but got pad=%lld, "
                                         "kernel_size=%lld and dilation=%lld", (long long) pad[i], (long long) kernel[i],
                           (long long) dilation[i]);
        shape[2 + i] = window(x->shape[2 + i], kernel[i], stride[i], pad[i], dilation[i], ceil_mode);
        if (shape[2 + i] < 1)
            return TR_FAIL(TR_E_RUNTIME, "Given input size: (%lldx%lldx%lld). Calculated output size: too small. Output size is "
                                         "too small", (long long) x->shape[1], (long long) x->shape[2], (long long) x->shape[3]);
    }
    c->cdtype = x->dtype;
    return TR_OK;
}
static tr_status infer_max_pool2d(tr_infer *c) {
    int64_t shape[4], *a = c->attrs;
    TR_TRY(pooled(c, a, a + 2, a + 4, a + 6, a[8], shape));
    TR_TRY(set_out(c, 0, c->cdtype, 4, shape));
    return set_out(c, 1, TR_I64, 4, shape);
}
static tr_status infer_avg_pool2d(tr_infer *c) {
    static const int64_t one[2] = {1, 1};
    int64_t shape[4], *a = c->attrs;
    TR_TRY(pooled(c, a, a + 2, a + 4, one, a[6], shape));
    return set_out(c, 0, c->cdtype, 4, shape);
}
static tr_status infer_adaptive_avg_pool2d(tr_infer *c) {
    const tr_meta *x = c->in[0].meta;
    if (x->ndim != 4)
        return TR_FAIL(TR_E_RUNTIME, "adaptive_avg_pool2d(): Expected 3D or 4D tensor, but got %d dimensions", x->ndim);
    c->cdtype = x->dtype;
    return set_out(c, 0, c->cdtype, 4, (int64_t[]){x->shape[0], x->shape[1], c->attrs[0], c->attrs[1]});
}
static tr_status infer_like1(tr_infer *c) {
    c->cdtype = c->in[0].meta->dtype;
    return set_meta(c, 0, tr_meta_as_contiguous(c->in[1].meta, c->cdtype));
}

/* ------------------------------------------------------------------------------------------------ normalisation */

static tr_status infer_batch_norm(tr_infer *c) {
    const tr_meta *x = c->in[0].meta;
    if (x->ndim < 2)
        return TR_FAIL(TR_E_VALUE, "batch_norm: expected at least 2 dimensions, got %d", x->ndim);
    for (int i = 1; i <= 4; i++) {
        static const char *const what[] = {"", "weight", "bias", "running_mean", "running_var"};
        const tr_meta *m = c->in[i].meta;
        if (m && m->numel != x->shape[1])
            return TR_FAIL(TR_E_SHAPE, "%s should contain %lld elements not %lld", what[i], (long long) x->shape[1],
                           (long long) m->numel);
    }
    if (!c->attrs[0] && (!c->in[3].meta || !c->in[4].meta))
        return TR_FAIL(TR_E_RUNTIME, "Expected running_mean and running_var to be defined when training=False");
    c->cdtype = x->dtype;
    if (!tr_dtype_is_float(c->cdtype))
        return TR_FAIL(TR_E_RUNTIME, "batch_norm is not implemented for '%s'", tr_dtype_legacy(c->cdtype));
    tr_dtype stat = c->cdtype == TR_F64 ? TR_F64 : TR_F32;
    TR_TRY(set_meta(c, 0, tr_meta_as_contiguous(x, c->cdtype)));
    TR_TRY(set_out(c, 1, stat, 1, &x->shape[1]));
    return set_out(c, 2, stat, 1, &x->shape[1]);
}
static tr_status infer_layer_norm(tr_infer *c) {
    const tr_meta *x = c->in[0].meta;
    int k = (int) c->attrs[0];
    for (int i = 1; i <= 2; i++) {
        const tr_meta *m = c->in[i].meta;
        bool fits = !m || (m->ndim == k && x->ndim >= k);
        for (int d = 0; m && fits && d < k; d++)
            fits = m->shape[d] == x->shape[x->ndim - k + d];
        if (!fits) {
            SHAPE_TEXT(a, x);
            SHAPE_TEXT(b, m);
            return TR_FAIL(TR_E_SHAPE, "layer_norm: weight or bias of shape %s does not fit the input's last %d dimensions, %s",
                           b, k, a);
        }
    }
    c->cdtype = x->dtype;
    if (!tr_dtype_is_float(c->cdtype))
        return TR_FAIL(TR_E_RUNTIME, "\"LayerNormKernelImpl\" not implemented for '%s'", tr_dtype_legacy(c->cdtype));
    tr_dtype stat = c->cdtype == TR_F64 ? TR_F64 : TR_F32;
    int64_t shape[TR_MAX_DIMS];
    for (int d = 0; d < x->ndim; d++)
        shape[d] = d < x->ndim - k ? x->shape[d] : 1;
    TR_TRY(set_meta(c, 0, tr_meta_as_contiguous(x, c->cdtype)));
    TR_TRY(set_out(c, 1, stat, x->ndim, shape));
    return set_out(c, 2, stat, x->ndim, shape);
}
/* d input, d weight, d bias; the latter like the weight would be, computed in any case. */
static tr_status infer_norm_backward(tr_infer *c) {
    const tr_meta *x = c->in[1].meta;
    c->cdtype = x->dtype;
    TR_TRY(set_meta(c, 0, tr_meta_as_contiguous(x, c->cdtype)));
    tr_dtype d = c->in[2].meta ? (tr_dtype) c->in[2].meta->dtype : c->cdtype;
    bool batch = c->op == TR_OP_batch_norm_backward;
    int k = batch ? 1 : (int) c->attrs[0];
    const int64_t *shape = batch ? &x->shape[1] : &x->shape[x->ndim - k];
    TR_TRY(set_out(c, 1, d, k, shape));
    return set_out(c, 2, d, k, shape);
}

/* ------------------------------------------------------------------------------------------------ indexing */

static tr_status index_dtype(tr_infer *c, int i) {
    tr_dtype d = c->in[i].meta->dtype;
    if (d != TR_I64 && d != TR_I32)
        return TR_FAIL(TR_E_RUNTIME, "%s(): Expected dtype int32/int64 for index, got %s", op_name(c), tr_dtype_legacy(d));
    return TR_OK;
}
static tr_status infer_embedding(tr_infer *c) {
    const tr_meta *w = c->in[0].meta, *x = c->in[1].meta;
    if (w->ndim != 2)
        return TR_FAIL(TR_E_RUNTIME, "'weight' must be 2-D");
    if (x->dtype != TR_I64 && x->dtype != TR_I32)
        return TR_FAIL(TR_E_RUNTIME, "Expected tensor for argument #1 'indices' to have one of the following scalar types: "
                                     "Long, Int; but got torch.%sTensor instead (while checking arguments for embedding)",
                       tr_dtype_legacy((tr_dtype) x->dtype));
    int64_t shape[TR_MAX_DIMS + 1];
    memcpy(shape, x->shape, sizeof x->shape);
    shape[x->ndim] = w->shape[1];
    c->cdtype = w->dtype;
    return set_out(c, 0, c->cdtype, x->ndim + 1, shape);
}
static tr_status infer_embedding_backward(tr_infer *c) {
    const tr_meta *g = c->in[0].meta;
    c->cdtype = g->dtype;
    return set_out(c, 0, c->cdtype, 2, (int64_t[]){c->attrs[0], g->shape[g->ndim - 1]});
}
static tr_status infer_index_select(tr_infer *c) {
    const tr_meta *x = c->in[0].meta, *index = c->in[1].meta;
    TR_TRY(index_dtype(c, 1));
    if (index->ndim > 1)
        return TR_FAIL(TR_E_INDEX, "index_select(): Index is supposed to be a vector");
    int64_t shape[TR_MAX_DIMS];
    memcpy(shape, x->shape, sizeof shape);
    if (x->ndim)
        shape[c->attrs[0]] = index->numel;
    c->cdtype = x->dtype;
    return set_out(c, 0, c->cdtype, x->ndim, shape);
}
static tr_status infer_gather(tr_infer *c) {
    const tr_meta *x = c->in[0].meta, *index = c->in[1].meta;
    if (index->dtype != TR_I64)
        return TR_FAIL(TR_E_RUNTIME, "gather(): Expected dtype int64 for index");
    if (index->numel && (index->ndim ? index->ndim : 1) != (x->ndim ? x->ndim : 1))
        return TR_FAIL(TR_E_RUNTIME, "Index tensor must have the same number of dimensions as input tensor");
    for (int d = 0; d < x->ndim && index->numel; d++)
        if (d != c->attrs[0] && index->shape[d] > x->shape[d]) {
            SHAPE_TEXT(a, index);
            SHAPE_TEXT(b, x);
            return TR_FAIL(TR_E_RUNTIME, "Size does not match at dimension %d expected index %s to be no larger than self %s "
                                         "apart from dimension %lld", d, a, b, (long long) c->attrs[0]);
        }
    c->cdtype = x->dtype;
    return set_meta(c, 0, tr_meta_as_contiguous(index, c->cdtype));
}
static tr_status infer_scatter(tr_infer *c) {
    const tr_meta *x = c->in[0].meta, *index = c->in[1].meta, *src = c->in[2].meta;
    bool add = c->op == TR_OP_index_add;
    if (add)
        TR_TRY(index_dtype(c, 1));
    else if (index->dtype != TR_I64)
        return TR_FAIL(TR_E_RUNTIME, "%s(): Expected dtype int64 for index", op_name(c));
    if (c->in[2].storage && src->dtype != x->dtype)
        return TR_FAIL(TR_E_RUNTIME, "%s(): Expected self.dtype to be equal to src.dtype", op_name(c));
    if (!add && index->numel) {
        if ((index->ndim ? index->ndim : 1) != (x->ndim ? x->ndim : 1))
            return TR_FAIL(TR_E_RUNTIME, "Index tensor must have the same number of dimensions as self tensor");
        for (int d = 0; d < x->ndim && index->ndim; d++)
            if ((d != c->attrs[0] && index->shape[d] > x->shape[d]) || (c->in[2].storage && src->ndim && index->shape[d] > src->shape[d])) {
                SHAPE_TEXT(a, index);
                SHAPE_TEXT(b, x);
                return TR_FAIL(TR_E_RUNTIME, "Expected index %s to be no larger than self %s apart from dimension %lld and to "
                                             "be no larger than src", a, b, (long long) c->attrs[0]);
            }
    }
    if (add) {
        const int64_t dim = c->attrs[0];
        if (index->ndim > 1 || (src->ndim && src->shape[dim] != index->numel))
            return TR_FAIL(TR_E_RUNTIME, "index_add_(): Number of indices (%lld) should be equal to source.size(dim): (%lld)",
                           (long long) index->numel, (long long) (src->ndim ? src->shape[dim] : 1));
        for (int d = 0; d < x->ndim; d++)
            if (src->ndim != x->ndim || (d != dim && src->shape[d] != x->shape[d]))
                return TR_FAIL(TR_E_RUNTIME, "source tensor shape must match self tensor shape, excluding the specified "
                                             "dimension.");
    }
    c->cdtype = x->dtype;
    return set_meta(c, 0, c->in_place ? x : tr_meta_as_contiguous(x, c->cdtype));
}
/* The shape of x[indices]: PyTorch puts the indices' dimensions in place when they are adjacent, else first. */
static tr_status indexed_shape(tr_infer *c, int first, int64_t mask, int64_t *shape, int *ndim) {
    const tr_meta *x = c->in[0].meta;
    int n_index = c->n_in - first;
    if (n_index == 0)
        return TR_FAIL(TR_E_INDEX, "index: no index tensor");
    const tr_meta *index = c->in[first].meta;
    for (int i = first; i < c->n_in; i++)
        if (c->in[i].meta->dtype != TR_I64)
            return TR_FAIL(TR_E_INDEX, "tensors used as indices must be long, int, byte or bool tensors");
    int lowest = __builtin_ctzll((uint64_t) mask);
    bool adjacent = (mask >> lowest) == ((int64_t) 1 << n_index) - 1;
    int n = 0;
    if (x->ndim - n_index + index->ndim > TR_MAX_DIMS)
        return TR_FAIL(TR_E_NOTIMPL, "index: result of more than %d dimensions", TR_MAX_DIMS);
    if (!adjacent)
        for (int d = 0; d < index->ndim; d++)
            shape[n++] = index->shape[d];
    for (int d = 0; d < x->ndim; d++) {
        if (!(mask >> d & 1))
            shape[n++] = x->shape[d];
        else if (adjacent && d == lowest)
            for (int e = 0; e < index->ndim; e++)
                shape[n++] = index->shape[e];
    }
    *ndim = n;
    return TR_OK;
}
static tr_status infer_index(tr_infer *c) {
    int64_t shape[TR_MAX_DIMS];
    int ndim;
    TR_TRY(indexed_shape(c, 1, c->attrs[0], shape, &ndim));
    c->cdtype = c->in[0].meta->dtype;
    return set_out(c, 0, c->cdtype, ndim, shape);
}
static tr_status infer_index_put(tr_infer *c) {
    int64_t shape[TR_MAX_DIMS], want[TR_MAX_DIMS];
    int ndim, n;
    TR_TRY(indexed_shape(c, 2, c->attrs[0], shape, &ndim));
    c->cdtype = c->in[0].meta->dtype;
    if (!c->in[1].storage)
        return TR_OK;
    const tr_meta *v = c->in[1].meta;
    if (v->dtype != c->cdtype)
        return TR_FAIL(TR_E_RUNTIME, "Index put requires the source and destination dtypes match, got %s for the destination "
                                     "and %s for the source.", tr_dtype_legacy(c->cdtype), tr_dtype_legacy((tr_dtype) v->dtype));
    memcpy(want, shape, sizeof want);
    n = ndim;
    if (tr__broadcast(want, &n, v) != TR_OK || n != ndim || memcmp(want, shape, sizeof *want * (size_t) n) != 0) {
        SHAPE_TEXT(a, v);
        SHAPE_TEXT(b, tr_meta_get(TR_F32, ndim, shape, NULL));
        return TR_FAIL(TR_E_SHAPE, "shape mismatch: value tensor of shape %s cannot be broadcast to indexing result of shape %s",
                       a, b);
    }
    return TR_OK;
}
static tr_status infer_cat(tr_infer *c) {
    if (c->n_in == 0)
        return TR_FAIL(TR_E_RUNTIME, "torch.cat(): expected a non-empty list of Tensors");
    const tr_meta *like = NULL;
    for (int i = 0; i < c->n_in && !like; i++)
        if (!(c->in[i].meta->ndim == 1 && c->in[i].meta->numel == 0)) // PyTorch skips legacy empty tensors
            like = c->in[i].meta;
    c->cdtype = tr__promote(c->in, c->n_in);
    if (!like)
        return set_out(c, 0, c->cdtype, 1, (int64_t[]){0});
    if (like->ndim == 0)
        return TR_FAIL(TR_E_RUNTIME, "zero-dimensional tensor (at position 0) cannot be concatenated");
    int64_t dim = c->attrs[0], shape[TR_MAX_DIMS];
    memcpy(shape, like->shape, sizeof shape);
    shape[dim] = 0;
    for (int i = 0; i < c->n_in; i++) {
        const tr_meta *m = c->in[i].meta;
        if (m->ndim == 1 && m->numel == 0)
            continue;
        if (m->ndim != like->ndim)
            return TR_FAIL(TR_E_SHAPE, "Tensors must have same number of dimensions: got %d and %d", like->ndim, m->ndim);
        for (int d = 0; d < m->ndim; d++)
            if (d != dim && m->shape[d] != like->shape[d])
                return TR_FAIL(TR_E_SHAPE, "Sizes of tensors must match except in dimension %lld. Expected size %lld but got "
                                           "size %lld for tensor number %d in the list.", (long long) dim,
                               (long long) like->shape[d], (long long) m->shape[d], i);
        shape[dim] += m->shape[dim];
    }
    return set_out(c, 0, c->cdtype, like->ndim, shape);
}
static tr_status infer_constant_pad(tr_infer *c) {
    const tr_meta *x = c->in[0].meta;
    const int64_t *before = c->attrs, *after = c->attrs + 1 + TR_MAX_DIMS;
    int64_t shape[TR_MAX_DIMS];
    for (int d = 0; d < x->ndim; d++) {
        shape[d] = x->shape[d] + before[1 + d] + after[1 + d];
        if (shape[d] < 0)
            return TR_FAIL(TR_E_RUNTIME, "The input size %lld, plus negative padding %lld and %lld, resulted in a negative output "
                                         "size, which is invalid.", (long long) x->shape[d], (long long) before[1 + d],
                           (long long) after[1 + d]);
    }
    c->cdtype = x->dtype;
    return set_out(c, 0, c->cdtype, x->ndim, shape);
}
static tr_status infer_same_contig(tr_infer *c) {
    const tr_meta *x = c->in[0].meta;
    if ((c->op == TR_OP_tril || c->op == TR_OP_triu) && x->ndim < 2)
        return TR_FAIL(TR_E_RUNTIME, "%s: input tensor must have at least 2 dimensions", op_name(c));
    c->cdtype = x->dtype;
    return set_meta(c, 0, c->in_place ? x : tr_meta_as_contiguous(x, c->cdtype));
}
static tr_status infer_sort(tr_infer *c) {
    c->cdtype = c->in[0].meta->dtype;
    TR_TRY(set_meta(c, 0, tr_meta_as_contiguous(c->in[0].meta, c->cdtype)));
    return set_meta(c, 1, tr_meta_as_contiguous(c->in[0].meta, TR_I64));
}
static tr_status infer_topk(tr_infer *c) {
    const tr_meta *x = c->in[0].meta;
    int64_t k = c->attrs[0], dim = c->attrs[1], shape[TR_MAX_DIMS];
    if (k < 0 || k > (x->ndim ? x->shape[dim] : 1))
        return TR_FAIL(TR_E_RUNTIME, "selected index k out of range");
    memcpy(shape, x->shape, sizeof shape);
    if (x->ndim)
        shape[dim] = k;
    c->cdtype = x->dtype;
    TR_TRY(set_out(c, 0, c->cdtype, x->ndim, shape));
    return set_out(c, 1, TR_I64, x->ndim, shape);
}
static tr_status infer_scalar_i64(tr_infer *c) {
    c->cdtype = c->in[0].meta->dtype;
    return set_out(c, 0, TR_I64, 0, NULL);
}
static tr_status infer_nonzero(tr_infer *c) {
    c->cdtype = c->in[0].meta->dtype;
    return set_out(c, 0, TR_I64, 2, (int64_t[]){c->attrs[0], c->in[0].meta->ndim});
}
static tr_status infer_as_strided_scatter(tr_infer *c) {
    c->cdtype = c->in[0].meta->dtype;
    return set_out(c, 0, c->cdtype, (int) c->attrs[0], c->attrs + 1);
}

/* ------------------------------------------------------------------------------------------------ random, optimizers */

static double number_at(const tr_infer *c, int i) {
    return c->in[i].meta->dtype == TR_F64 ? c->in[i].at.d : (double) c->in[i].at.i;
}
/* Fills the written operand; what the numbers must satisfy is known at the call. */
static tr_status infer_random(tr_infer *c) {
    tr_dtype d = c->in[0].meta->dtype;
    double a = number_at(c, 1), b = c->n_in > 3 ? number_at(c, 2) : 0;
    c->cdtype = d;
    if (c->op == TR_OP__random_)
        return a < b ? TR_OK : TR_FAIL(TR_E_RUNTIME, "random_ expects 'from' to be less than 'to', but got from=%lld >= to=%lld",
                                       (long long) a, (long long) b);
    if (c->op == TR_OP__bernoulli_)
        return a >= 0 && a <= 1 ? TR_OK : TR_FAIL(TR_E_RUNTIME, "bernoulli_ expects p to be in [0, 1], but got p=%g", a);
    if (!tr_dtype_is_float(d))
        return TR_FAIL(TR_E_RUNTIME, "\"%s\" not implemented for '%s'", op_name(c), tr_dtype_legacy(d));
    if (c->op == TR_OP_uniform_ && !(a <= b))
        return TR_FAIL(TR_E_RUNTIME, "uniform_ expects to return a [from, to) range, but found from=%g > to=%g", a, b);
    if (c->op == TR_OP_normal_ && !(b >= 0))
        return TR_FAIL(TR_E_RUNTIME, "normal expects std >= 0.0, but found std %g", b);
    if (c->op == TR_OP_exponential_ && !(a > 0))
        return TR_FAIL(TR_E_RUNTIME, "exponential_ expects lambda > 0.0, but found lambda=%g", a);
    return TR_OK;
}
static tr_status infer_bernoulli(tr_infer *c) {
    c->cdtype = c->in[0].meta->dtype;
    if (!tr_dtype_is_float(c->cdtype))
        return TR_FAIL(TR_E_RUNTIME, "\"bernoulli_tensor_cpu_p_\" not implemented for '%s'", tr_dtype_legacy(c->cdtype));
    c->n_in = 1; // the generator has no say in the looks
    return elementwise_meta(c, c->cdtype, c->in[0].meta->ndim, c->in[0].meta->shape, &c->out[0]);
}
static tr_status infer_multinomial(tr_infer *c) {
    const tr_meta *x = c->in[0].meta;
    if (x->ndim < 1 || x->ndim > 2)
        return TR_FAIL(TR_E_RUNTIME, "prob_dist must be 1 or 2 dim");
    if (!tr_dtype_is_float((tr_dtype) x->dtype))
        return TR_FAIL(TR_E_RUNTIME, "multinomial only supports floating-point dtypes for input, got: %s",
                       tr_dtype_legacy((tr_dtype) x->dtype));
    if (c->attrs[0] <= 0)
        return TR_FAIL(TR_E_RUNTIME, "cannot sample n_sample <= 0 samples");
    if (!c->attrs[1] && c->attrs[0] > x->shape[x->ndim - 1])
        return TR_FAIL(TR_E_RUNTIME, "cannot sample n_sample > prob_dist.size(-1) samples without replacement");
    c->cdtype = x->dtype;
    int64_t shape[2] = {x->shape[0], c->attrs[0]};
    return set_out(c, 0, TR_I64, x->ndim, x->ndim == 2 ? shape : shape + 1);
}
static tr_status infer_dropout(tr_infer *c) {
    c->cdtype = c->in[0].meta->dtype;
    if (!tr_dtype_is_float(c->cdtype))
        return TR_FAIL(TR_E_RUNTIME, "result type Float can't be cast to the desired output type %s", tr_dtype_legacy(c->cdtype));
    c->n_in = 1; // the generator has no say in the looks
    TR_TRY(elementwise_meta(c, c->cdtype, c->in[0].meta->ndim, c->in[0].meta->shape, &c->out[0]));
    return set_meta(c, 1, tr_meta_with_dtype(c->out[0], TR_BOOL));
}
static tr_status infer_optim(tr_infer *c) {
    for (int i = 1; i < c->n_in; i++)
        if (c->in[i].storage && (!tr_meta_same_shape(c->in[i].meta, c->in[0].meta) || c->in[i].meta->dtype != c->in[0].meta->dtype)) {
            SHAPE_TEXT(a, c->in[0].meta);
            SHAPE_TEXT(b, c->in[i].meta);
            return TR_FAIL(TR_E_SHAPE, "%s: operand %d is %s %s, but the parameter is %s %s", op_name(c), i,
                           tr_dtype_name((tr_dtype) c->in[i].meta->dtype), b, tr_dtype_name((tr_dtype) c->in[0].meta->dtype), a);
        }
    c->cdtype = c->in[0].meta->dtype;
    if (!tr_dtype_is_float(c->cdtype))
        return TR_FAIL(TR_E_RUNTIME, "%s: parameters must be of a floating dtype, got %s", op_name(c), tr_dtype_name(c->cdtype));
    return TR_OK;
}

tr_status tr__infer(tr_infer *c) {
    static tr_status (*const rules[])(tr_infer *) = {
#define TR_OP(id, expose, class, rule, vjp, schema) [TR_OP_##id] = infer_##rule,
#include "terra/ops.def"
#undef TR_OP
    };
    return rules[c->op](c);
}
