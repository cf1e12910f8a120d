/* vjp_reduce.c - derivatives of reductions, softmax, losses, normalisation. */
#include "tracer/vjp_rules.h"

#include "tracer/vjp.h"

#include <math.h>

static int64_t count_of(const tr_meta *m, int64_t mask) {
    int64_t n = 1;
    for (int d = 0; d < m->ndim; d++)
        if (mask >> d & 1)
            n *= m->shape[d];
    return n;
}

VJP(sum, 0, 0) { GIVE(0, unreduce(v, G, META(0), ATTR(0), true)); }
VJP(mean, 0, 0) {
    // Divided before it is expanded: the same values, less work.
    T g = WORD_A(div, A(0), tr_in(G), tr_in_double((double) count_of(META(0), ATTR(0))));
    GIVE(0, unreduce(v, g, META(0), ATTR(0), true));
}
VJP(amax, BIT(0), BIT(0)) {
    T best = unreduce(v, OUT(0), META(0), ATTR(0), false), g = unreduce(v, G, META(0), ATTR(0), false);
    T mask = WORD(eq, X(0), tr_in(best));
    T share = divide(v, g, sum_keep(v, mask, ATTR(0)));
    GIVE(0, mul(v, share, mask));
}
VJP(var, BIT(0), 0) {
    T x = IN(0), g = unreduce(v, G, META(0), ATTR(0), false);
    double n = (double) count_of(META(0), ATTR(0)) - NUMBER(1);
    T centred = sub(v, x, WORD_A(mean, A(ATTR(0), 1, -1), tr_in(x)));
    GIVE(0, mul(v, scale(v, g, 2 / n), centred));
}
VJP(vector_norm, BIT(0), BIT(0)) {
    double p = NUMBER(1);
    T x = IN(0), g = unreduce(v, G, META(0), ATTR(0), false), out = unreduce(v, OUT(0), META(0), ATTR(0), false);
    if (p == 0)
        GIVE(0, full_like(v, META(0), 0));
    else if (p == 1)
        GIVE(0, mul(v, WORD(sign, tr_in(x)), g));
    else if (p == 2)
        GIVE(0, where1(v, WORD(eq, tr_in(out), tr_in_int(0)), mul(v, x, divide(v, g, out))));
    else if (isinf(p)) {
        T mask = WORD(eq, tr_in(WORD(abs, tr_in(x))), tr_in(out));
        T share = divide(v, g, sum_keep(v, mask, ATTR(0)));
        GIVE(0, mul(v, mul(v, WORD(sign, tr_in(x)), share), mask));
    } else {
        T power = mul(v, WORD(sign, tr_in(x)), WORD(pow, tr_in(WORD(abs, tr_in(x))), tr_in_double(p - 1)));
        T d = mul(v, power, divide(v, g, WORD(pow, tr_in(out), tr_in_double(p - 1))));
        GIVE(0, where1(v, WORD(eq, tr_in(out), tr_in_int(0)), d));
    }
}
VJP(logsumexp, BIT(0), BIT(0)) {
    T g = unreduce(v, G, META(0), ATTR(0), false), out = unreduce(v, OUT(0), META(0), ATTR(0), false);
    GIVE(0, mul(v, g, WORD(exp, tr_in(sub(v, IN(0), out)))));
}
/* Products of all the others: running products from both sides, so that zeros need no case of their own. */
VJP(prod, BIT(0), 0) {
    const tr_meta *m = META(0);
    int64_t mask = ATTR(0), order[TR_MAX_DIMS], back[TR_MAX_DIMS];
    int n = 0;
    if (m->ndim == 0) {
        GIVE(0, G);
        return;
    }
    for (int pass = 0; pass < 2; pass++)
        for (int d = 0; d < m->ndim; d++)
            if ((mask >> d & 1) == pass)
                order[n++] = d;
    for (int d = 0; d < m->ndim; d++)
        back[order[d]] = d;
    int64_t len = count_of(m, mask);
    if (m->numel == 0) {
        GIVE(0, full_like(v, m, 0));
        return;
    }
    T p = NULL, flat = NULL;
    if (v->status == TR_OK)
        v->status = tr_permute(IN(0), order, &p);
    p = v->status == TR_OK ? tr__vjp_own(v, p) : NULL;
    if (v->status == TR_OK)
        v->status = tr_reshape(p, 2, A(-1, len), &flat);
    flat = v->status == TR_OK ? tr__vjp_own(v, flat) : NULL;
    T ones = flat ? full_like(v, tr_meta_get((tr_dtype) m->dtype, 2, A(flat->meta->shape[0], 1), NULL), 1) : NULL;
    T left = WORD_A(cumprod, A(1, -1), tr_in(WORD_A(cat, A(1), tr_in(ones), tr_in(WORD_A(slice, A(1, 0, len - 1, 1), tr_in(flat))))));
    T mirror = WORD_A(flip, A(2), tr_in(flat));
    T right = WORD_A(cumprod, A(1, -1), tr_in(WORD_A(cat, A(1), tr_in(ones), tr_in(WORD_A(slice, A(1, 0, len - 1, 1), tr_in(mirror))))));
    T others = mul(v, left, WORD_A(flip, A(2), tr_in(right)));
    T shaped = p ? view_as(v, others, p->meta) : NULL, home = NULL;
    if (v->status == TR_OK)
        v->status = tr_permute(shaped, back, &home);
    home = v->status == TR_OK ? tr__vjp_own(v, home) : NULL;
    if (v->status == TR_OK)
        GIVE(0, mul(v, home, unreduce(v, G, m, mask, false)));
}
/* Results picked by index: the gradient goes back to where they came from. */
VJP(select_index, 0, BIT(1)) {
    bool keeps = v->node->op == TR_OP_sort || v->node->op == TR_OP_topk;
    int64_t dim = v->node->op == TR_OP_topk ? ATTR(1) : ATTR(0);
    T g = v->grad[0], index = OUT(1);
    if (!g)
        return;
    if (!keeps && META(0)->ndim) {
        g = unreduce(v, g, META(0), (int64_t) 1 << dim, false);
        index = unreduce(v, index, META(0), (int64_t) 1 << dim, false);
    }
    GIVE(0, WORD_A(scatter, A(dim), tr_in(full_like(v, META(0), 0)), tr_in(index), tr_in(g)));
}
static T reverse_cumsum(tr_vjp *v, T t, int64_t dim) {
    if (t && t->meta->ndim == 0)
        return t;
    int64_t mask = (int64_t) 1 << dim;
    return WORD_A(flip, A(mask), tr_in(WORD_A(cumsum, A(dim, -1), tr_in(WORD_A(flip, A(mask), tr_in(t))))));
}
VJP(cumsum, 0, 0) { GIVE(0, reverse_cumsum(v, G, ATTR(0))); }
/* The derivative that can be differentiated again; a quotient would lose what lies at zeros:
 * dx[k] = sum over j >= k of g[j] prod(x[i], i <= j, i != k). Takes the memory of n times x. */
static T cumprod_by_pairs(tr_vjp *v, int64_t dim) {
    const tr_meta *m = META(0), *g = v->grad[0]->meta;
    int64_t n = m->shape[dim], outer = 1, inner = 1;
    for (int d = 0; d < m->ndim; d++)
        *(d < dim ? &outer : &inner) *= d == dim ? 1 : m->shape[d];
    const tr_meta *square = tr_meta_get(TR_F32, 2, A(n, n), NULL), *column = tr_meta_get(TR_BOOL, 3, A(n, n, 1), NULL);
    T eye = tr__word(v, TR_OP__eye, NULL, 0, NULL, square, 0);
    T others = view_as(v, WORD(eq, tr_in(eye), tr_in_int(0)), column); // [k, i, 1]: i != k
    T upper = WORD(ne, tr_in(WORD_A(triu, A(0), tr_in(full_like(v, square, 1)))), tr_in_int(0));
    upper = view_as(v, upper, column); // [k, j, 1]: j >= k
    T x = view_as(v, IN(0), tr_meta_get((tr_dtype) m->dtype, 4, A(outer, 1, n, inner), NULL));
    T grad = view_as(v, G, tr_meta_get((tr_dtype) g->dtype, 4, A(outer, 1, n, inner), NULL));
    T products = WORD_A(cumprod, A(2, -1), tr_in(WORD(where, tr_in(others), tr_in(x), tr_in_double(1)))); // [outer, k, j, inner]
    T all = WORD_A(sum, A(BIT(2), 0, -1), tr_in(where0(v, upper, mul(v, grad, products))));
    return view_as(v, all, m);
}
/* Before the first zero of a row the quotient holds; at it, the sum over what follows, up to the next zero; behind it, nothing. */
VJP(cumprod, BIT(0), BIT(0)) {
    int64_t dim = ATTR(0), mask = (int64_t) 1 << dim;
    if (!G)
        return;
    if (META(0)->ndim == 0 || META(0)->numel == 0 || META(0)->shape[dim] == 1) {
        GIVE(0, G);
        return;
    }
    if (v->create_graph) {
        GIVE(0, cumprod_by_pairs(v, dim));
        return;
    }
    T zero = WORD(eq, tr_in(IN(0)), tr_in_int(0));
    T zeros = WORD_A(cumsum, A(dim, -1), tr_in(zero)); // up to and including each element
    T before = WORD(eq, tr_in(zeros), tr_in_int(0)), within = WORD(eq, tr_in(zeros), tr_in_int(1));
    T first = WORD(logical_and, tr_in(within), tr_in(zero));
    T between = WORD(logical_and, tr_in(within), tr_in(WORD(logical_not, tr_in(zero))));
    T quotient = divide(v, reverse_cumsum(v, where0(v, before, mul(v, G, OUT(0))), dim), IN(0));
    T after = WORD_A(cumprod, A(dim, -1), tr_in(WORD(where, tr_in(between), tr_in(IN(0)), tr_in_double(1))));
    T sum = sum_keep(v, where0(v, within, mul(v, G, after)), mask);
    T head = WORD_A(prod, A(mask, 1, -1), tr_in(WORD(where, tr_in(before), tr_in(IN(0)), tr_in_double(1))));
    T at_zero = where0(v, first, mul(v, sum, head));
    GIVE(0, add(v, where0(v, before, quotient), at_zero));
}

/* ---- softmax and losses ---- */

VJP(softmax, 0, BIT(0)) { GIVE(0, WORD_A(_softmax_backward, A(ATTR(0)), tr_in(G), tr_in(OUT(0)))); }
static int64_t dim_mask(const tr_vjp *v) {
    return META(0)->ndim ? (int64_t) 1 << ATTR(0) : 0;
}
VJP(softmax_backward, 0x3, 0) {
    T g = IN(0), out = IN(1);
    if (NEEDS(0))
        GIVE(0, WORD_A(_softmax_backward, A(ATTR(0)), tr_in(G), tr_in(out)));
    if (NEEDS(1)) {
        T a = mul(v, G, sub(v, g, sum_keep(v, mul(v, out, g), dim_mask(v))));
        GIVE(1, sub(v, a, mul(v, g, sum_keep(v, mul(v, out, G), dim_mask(v)))));
    }
}
VJP(log_softmax, 0, BIT(0)) { GIVE(0, WORD_A(_log_softmax_backward, A(ATTR(0)), tr_in(G), tr_in(OUT(0)))); }
VJP(log_softmax_backward, 0x3, 0) {
    T p = WORD(exp, X(1));
    if (NEEDS(0))
        GIVE(0, sub(v, G, sum_keep(v, mul(v, G, p), dim_mask(v))));
    if (NEEDS(1))
        GIVE(1, neg(v, mul(v, mul(v, p, sum_keep(v, IN(0), dim_mask(v))), G)));
}
static tr_input optional(tr_vjp *v, int i) {
    return META(i) ? X(i) : (tr_input){0};
}
VJP(nll_loss, 0x7, BIT(1)) {
    tr_input ignore = {.meta = META(3), .number = v->node->edges[3].number};
    if (G)
        GIVE(0, WORD_A(nll_loss_backward, A(ATTR(0)), tr_in(G), X(0), X(1), optional(v, 2), tr_in(OUT(1)), ignore));
}
VJP(nll_loss_backward, BIT(2) | BIT(3), 0) {
    tr_input ignore = {.meta = META(5), .number = v->node->edges[5].number};
    if (NEEDS(0))
        GIVE(0, WORD_A(nll_loss, A(ATTR(0)), tr_in(G), X(2), optional(v, 3), ignore));
    if (NEEDS(1))
        GIVE(1, full_like(v, META(1), 0));
}
/* The rows' sums serve one pass over the logits; what can be differentiated again is composed. */
VJP(cross_entropy, BIT(0) | BIT(1) | BIT(2), BIT(1) | BIT(2)) {
    tr_input ignore = {.meta = META(3), .number = v->node->edges[3].number};
    if (!G)
        return;
    if (!v->create_graph) {
        GIVE(0, WORD_A(_cross_entropy_backward, A(ATTR(0)), tr_in(G), X(0), X(1), optional(v, 2), tr_in(OUT(1)), tr_in(OUT(2)),
                       ignore));
        return;
    }
    tr_input x = META(0)->dtype == TR_BF16 ? tr_in(WORD_A(_cast, A(TR_F32), X(0))) : X(0);
    T logs = WORD_A(_log_softmax, A(1), x);
    T d = WORD_A(nll_loss_backward, A(ATTR(0)), tr_in(G), tr_in(logs), X(1), optional(v, 2), tr_in(OUT(1)), ignore);
    GIVE(0, WORD_A(_log_softmax_backward, A(1), tr_in(d), tr_in(logs)));
}

/* ---- normalisation ---- */

static T mean_keep(tr_vjp *v, T t, int64_t mask) {
    return WORD_A(mean, A(mask, 1, -1), tr_in(t));
}

/* d input of a normalisation over `mask`, from ops that can be differentiated again; *hat: the normalised input. */
static T normalise_backward(tr_vjp *v, T g, T x, int64_t mask, double eps, T *hat) {
    T centred = sub(v, x, mean_keep(v, x, mask));
    T inv = WORD(rsqrt, tr_in(shift(v, mean_keep(v, square(v, centred), mask), eps)));
    *hat = mul(v, centred, inv);
    T inner = sub(v, sub(v, g, mean_keep(v, g, mask)), mul(v, *hat, mean_keep(v, mul(v, g, *hat), mask)));
    return mul(v, inv, inner);
}

static void give_affine(tr_vjp *v, T g, T hat, int64_t sum_mask, int weight, int bias) {
    if (META(weight) && NEEDS(weight))
        GIVE(weight, view_as(v, sum_keep(v, mul(v, g, hat), sum_mask), META(weight)));
    if (META(bias) && NEEDS(bias))
        GIVE(bias, view_as(v, sum_keep(v, g, sum_mask), META(bias)));
}

/* All three gradients by the op that makes them in one go; it can't be differentiated again. */
static void give_fused(tr_vjp *v, tr_op op) {
    T out[TR_MAX_OUTPUTS] = {0}, mean = OUT(1), inv = OUT(2), x = IN(0);
    tr_input in[] = {tr_in(G), tr_in(x), optional(v, 1), tr_in(mean), tr_in(inv)};
    if (v->status == TR_OK)
        v->status = tr_apply(op, in, 5, A(ATTR(0)), NULL, false, out);
    for (int i = 0; i < 3; i++) {
        if (v->status == TR_OK && tr__needs(v, i))
            v->results[i] = out[i];
        else
            tr_tensor_release(out[i]);
    }
}

VJP(batch_norm, BIT(0) | BIT(1), BIT(1) | BIT(2)) {
    const tr_meta *m = META(0);
    if (!G)
        return;
    if (!v->create_graph) {
        give_fused(v, TR_OP_batch_norm_backward);
        return;
    }
    int64_t mask = ((int64_t) 1 << m->ndim) - 1 - 2, shape[TR_MAX_DIMS];
    for (int d = 0; d < m->ndim; d++)
        shape[d] = d == 1 ? m->shape[1] : 1;
    const tr_meta *column = tr_meta_get((tr_dtype) m->dtype, m->ndim, shape, NULL);
    T scaled = META(1) ? mul(v, G, view_as(v, IN(1), column)) : G, hat, dx;
    if (ATTR(0))
        dx = normalise_backward(v, scaled, IN(0), mask, NUMBER(6), &hat);
    else {
        T inv = view_as(v, OUT(2), column);
        dx = mul(v, scaled, inv);
        hat = mul(v, sub(v, IN(0), view_as(v, OUT(1), column)), inv);
    }
    if (NEEDS(0))
        GIVE(0, dx);
    give_affine(v, G, hat, mask, 1, 2);
}
VJP(layer_norm, BIT(0) | BIT(1), BIT(1) | BIT(2)) {
    const tr_meta *m = META(0);
    if (!G)
        return;
    if (!v->create_graph) {
        give_fused(v, TR_OP_layer_norm_backward);
        return;
    }
    int64_t all = ((int64_t) 1 << m->ndim) - 1, outer = ((int64_t) 1 << (m->ndim - ATTR(0))) - 1, mask = all - outer;
    T scaled = META(1) ? mul(v, G, IN(1)) : G, hat;
    T dx = normalise_backward(v, scaled, IN(0), mask, NUMBER(3), &hat);
    if (NEEDS(0))
        GIVE(0, dx);
    give_affine(v, G, hat, outer, 1, 2);
}
