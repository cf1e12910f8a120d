/* vjp_product.c - derivatives of matrix products, convolutions and pooling. */
#include "tracer/vjp_rules.h"

#include "tracer/vjp.h"

#include <math.h>

static bool column_major(const tr_meta *m) {
    return m->strides[0] == 1 && m->strides[1] == m->shape[0] && !m->contiguous;
}
/* d a of a b, laid out as a is: what comes from x.t() goes back to x without a copy (PyTorch's mm_mat1_grad). */
static T product_left(tr_vjp *v, const tr_meta *a, T b) {
    if (column_major(a))
        return transposed(v, WORD(mm, tr_in(b), tr_in(transposed(v, G, 0, 1))), 0, 1);
    return WORD(mm, tr_in(G), tr_in(transposed(v, b, 0, 1)));
}
static T product_right(tr_vjp *v, T a, const tr_meta *b) {
    if (column_major(b))
        return transposed(v, WORD(mm, tr_in(transposed(v, G, 0, 1)), tr_in(a)), 0, 1);
    return WORD(mm, tr_in(transposed(v, a, 0, 1)), tr_in(G));
}
VJP_WITH(mm, 0x3, 0, true, false) {
    if (NEEDS(0))
        GIVE(0, product_left(v, META(0), IN(1)));
    if (NEEDS(1))
        GIVE(1, product_right(v, IN(0), META(1)));
}
VJP_WITH(bmm, 0x3, 0, true, false) {
    if (NEEDS(0))
        GIVE(0, WORD(bmm, tr_in(G), tr_in(transposed(v, IN(1), 1, 2))));
    if (NEEDS(1))
        GIVE(1, WORD(bmm, tr_in(transposed(v, IN(0), 1, 2)), tr_in(G)));
}
static T scaled(tr_vjp *v, T t, double s) {
    return s == 1 ? t : scale(v, t, s);
}
VJP_WITH(addmm, 0x6, 0, true, false) {
    if (NEEDS(0))
        GIVE(0, scaled(v, G, NUMBER(3)));
    if (NEEDS(1))
        GIVE(1, scaled(v, product_left(v, META(1), IN(2)), NUMBER(4)));
    if (NEEDS(2))
        GIVE(2, scaled(v, product_right(v, IN(1), META(2)), NUMBER(4)));
}
VJP_WITH(baddbmm, 0x6, 0, true, false) {
    if (NEEDS(0))
        GIVE(0, scaled(v, G, NUMBER(3)));
    if (NEEDS(1))
        GIVE(1, scaled(v, WORD(bmm, tr_in(G), tr_in(transposed(v, IN(2), 1, 2))), NUMBER(4)));
    if (NEEDS(2))
        GIVE(2, scaled(v, WORD(bmm, tr_in(transposed(v, IN(1), 1, 2)), tr_in(G)), NUMBER(4)));
}

/* ---- convolution: three ops that are each other's derivatives ---- */

#define WINDOW(h, w) A(ATTR(0), ATTR(1), ATTR(2), ATTR(3), ATTR(4), ATTR(5), ATTR(6), (h), (w))

VJP_WITH(conv2d, 0x3, 0, true, false) {
    const tr_meta *x = META(0), *w = META(1);
    if (NEEDS(0))
        GIVE(0, WORD_A(conv2d_backward_data, WINDOW(x->shape[2], x->shape[3]), tr_in(G), X(1)));
    if (NEEDS(1))
        GIVE(1, WORD_A(conv2d_backward_weights, WINDOW(w->shape[2], w->shape[3]), tr_in(G), X(0)));
    if (META(2) && NEEDS(2))
        GIVE(2, WORD_A(sum, A(1 | 4 | 8, 0, -1), tr_in(G)));
}
VJP(conv2d_backward_data, 0x3, 0) { // of (g, w); G looks like the input
    if (NEEDS(0))
        GIVE(0, WORD_A(conv2d, WINDOW(0, 0), tr_in(G), X(1), (tr_input){0}));
    if (NEEDS(1))
        GIVE(1, WORD_A(conv2d_backward_weights, WINDOW(META(1)->shape[2], META(1)->shape[3]), X(0), tr_in(G)));
}
VJP(conv2d_backward_weights, 0x3, 0) { // of (g, x); G looks like the weight
    if (NEEDS(0))
        GIVE(0, WORD_A(conv2d, WINDOW(0, 0), X(1), tr_in(G), (tr_input){0}));
    if (NEEDS(1))
        GIVE(1, WORD_A(conv2d_backward_data, WINDOW(META(1)->shape[2], META(1)->shape[3]), X(0), tr_in(G)));
}

/* ---- pooling ---- */

VJP(max_pool2d, BIT(0), BIT(1)) {
    if (G)
        GIVE(0, WORD(max_pool2d_backward, tr_in(G), X(0), tr_in(OUT(1))));
}
VJP(max_pool2d_backward, BIT(2), 0) {
    const tr_meta *x = META(1), *g = META(0);
    T index = IN(2), flat = NULL, at = NULL;
    if (!NEEDS(0))
        return;
    v->status = tr_reshape(G, 3, A(x->shape[0], x->shape[1], x->shape[2] * x->shape[3]), &flat);
    flat = v->status == TR_OK ? tr__vjp_own(v, flat) : NULL;
    if (v->status == TR_OK)
        v->status = tr_reshape(index, 3, A(g->shape[0], g->shape[1], g->shape[2] * g->shape[3]), &at);
    at = v->status == TR_OK ? tr__vjp_own(v, at) : NULL;
    GIVE(0, view_as(v, WORD_A(gather, A(2), tr_in(flat), tr_in(at)), g));
}
VJP(avg_pool2d, BIT(0), 0) { GIVE(0, WORD_A(avg_pool2d_backward, v->node->attrs, tr_in(G), X(0))); }
VJP(avg_pool2d_backward, 0, 0) {
    if (NEEDS(0))
        GIVE(0, WORD_A(avg_pool2d, v->node->attrs, tr_in(G)));
}
VJP(adaptive_avg_pool2d, BIT(0), 0) { GIVE(0, WORD(adaptive_avg_pool2d_backward, tr_in(G), X(0))); }
VJP(adaptive_avg_pool2d_backward, 0, 0) {
    if (NEEDS(0))
        GIVE(0, WORD_A(adaptive_avg_pool2d, A(META(0)->shape[2], META(0)->shape[3]), tr_in(G)));
}

/* ---- attention ---- */

static T product(tr_vjp *v, T a, T b) {
    T out = NULL;
    if (v->status == TR_OK && a && b)
        v->status = tr_matmul(a, b, &out);
    return v->status == TR_OK ? tr__vjp_own(v, out) : NULL;
}

/* By ops that can be differentiated again: the probabilities are computed once more. */
static void sdpa_composed(tr_vjp *v) {
    T q = IN(0), k = IN(1), value = IN(2), g = G;
    double factor = NUMBER(5), kept = 1 / (1 - NUMBER(6));
    T scores = scale(v, product(v, q, transposed(v, k, 2, 3)), factor);
    if (META(3) && META(3)->dtype == TR_BOOL)
        scores = WORD(where, X(3), tr_in(scores), tr_in_double(-INFINITY));
    else if (META(3))
        scores = add(v, scores, IN(3));
    if (ATTR(0) && scores) {
        T ones = full_like(v, tr_meta_get(TR_BOOL, 2, scores->meta->shape + 2, NULL), 1);
        scores = WORD(where, tr_in(WORD_A(tril, A(0), tr_in(ones))), tr_in(scores), tr_in_double(-INFINITY));
    }
    T p = WORD_A(_softmax, A(3), tr_in(scores)), dropped = p, dp = product(v, g, transposed(v, value, 2, 3));
    if (META(4)) {
        dropped = WORD(masked_scale, tr_in(p), X(4), tr_in_double(kept));
        dp = WORD(masked_scale, tr_in(dp), X(4), tr_in_double(kept));
    }
    T ds = scale(v, WORD_A(_softmax_backward, A(3), tr_in(dp), tr_in(p)), factor);
    if (NEEDS(0))
        GIVE(0, product(v, ds, k));
    if (NEEDS(1))
        GIVE(1, product(v, transposed(v, ds, 2, 3), q));
    if (NEEDS(2))
        GIVE(2, product(v, transposed(v, dropped, 2, 3), g));
}

VJP(sdpa, BIT(0) | BIT(1) | BIT(2) | BIT(3) | BIT(4), BIT(0) | BIT(1)) {
    if (!G)
        return;
    if (v->create_graph) {
        sdpa_composed(v);
        return;
    }
    T out[TR_MAX_OUTPUTS] = {0};
    tr_input mask = META(3) ? X(3) : (tr_input){0}, keep = META(4) ? X(4) : (tr_input){0};
    tr_input in[] = {tr_in(G), X(0), X(1), X(2), mask, keep, tr_in(OUT(0)), tr_in(OUT(1)), X(5), X(6)};
    if (v->status == TR_OK)
        v->status = tr_apply(TR_OP__sdpa_backward, in, 10, A(ATTR(0)), NULL, false, out);
    for (int i = 0; i < 3; i++) {
        if (v->status == TR_OK && tr__needs(v, i))
            v->results[i] = out[i];
        else
            tr_tensor_release(out[i]);
    }
}
