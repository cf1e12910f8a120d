/* vjp_index.c - derivatives of indexing, data movement and views. */
#include "tracer/vjp_rules.h"

#include "tracer/vjp.h"

#include <string.h>

VJP(embedding, BIT(1), 0) {
    GIVE(0, WORD_A(embedding_backward, A(META(0)->shape[0], ATTR(0)), tr_in(G), X(1)));
}
VJP(embedding_backward, BIT(1), 0) {
    T rows = WORD_A(embedding, A(-1), tr_in(G), X(1));
    if (ATTR(1) >= 0 && v->status == TR_OK) {
        T padding = WORD_A(unsqueeze, A(-1), tr_in(WORD(eq, X(1), tr_in_int(ATTR(1)))));
        rows = WORD(masked_fill, tr_in(rows), tr_in(padding), tr_in_int(0));
    }
    GIVE(0, rows);
}
VJP(index_select, BIT(1), 0) {
    GIVE(0, WORD_A(index_add, A(ATTR(0)), tr_in(full_like(v, META(0), 0)), X(1), tr_in(G), tr_in_int(1)));
}
VJP(index_add, BIT(1), 0) {
    if (NEEDS(0))
        GIVE(0, G);
    if (NEEDS(2)) {
        T g = WORD_A(index_select, A(ATTR(0)), tr_in(G), X(1));
        GIVE(2, NUMBER(3) == 1 ? g : scale(v, g, NUMBER(3)));
    }
}
VJP(gather, BIT(1), 0) {
    GIVE(0, WORD_A(scatter_add, A(ATTR(0)), tr_in(full_like(v, META(0), 0)), X(1), tr_in(G)));
}
VJP(scatter, BIT(1), 0) {
    if (NEEDS(0))
        GIVE(0, WORD_A(scatter, A(ATTR(0)), tr_in(G), X(1), tr_in_int(0)));
    if (NEEDS(2))
        GIVE(2, WORD_A(gather, A(ATTR(0)), tr_in(G), X(1)));
}
VJP(scatter_add, BIT(1), 0) {
    if (NEEDS(0))
        GIVE(0, G);
    if (NEEDS(2))
        GIVE(2, WORD_A(gather, A(ATTR(0)), tr_in(G), X(1)));
}

/* This node's index operands, from `first` on, behind n operands already in `in`. */
static int with_indices(tr_vjp *v, tr_input *in, int n, int first) {
    for (int i = first; i < v->node->n_in; i++)
        in[n++] = X(i);
    return n;
}
VJP(index, 0x1fe, 0) {
    tr_input in[2 + TR_MAX_DIMS] = {tr_in(full_like(v, META(0), 0)), tr_in(G)};
    int n = with_indices(v, in, 2, 1);
    GIVE(0, tr__word(v, TR_OP_index_put_, in, n, A(ATTR(0), 1), NULL, 0));
}
VJP(index_put_, 0x3fc, 0) {
    if (NEEDS(0)) {
        T g = G;
        if (!ATTR(1)) { // what was overwritten had no say
            tr_input in[2 + TR_MAX_DIMS] = {tr_in(WORD(clone, tr_in(G))), tr_in_double(0)};
            int n = with_indices(v, in, 2, 2);
            g = tr__word(v, TR_OP_index_put_, in, n, A(ATTR(0), 0), NULL, 0);
        }
        GIVE(0, g);
    }
    if (NEEDS(1)) {
        tr_input in[1 + TR_MAX_DIMS] = {tr_in(G)};
        int n = with_indices(v, in, 1, 2);
        GIVE(1, tr__word(v, TR_OP_index, in, n, A(ATTR(0)), NULL, 0));
    }
}
VJP_WITH(cat, 0, 0, false, true) {
    int64_t dim = ATTR(0), at = 0;
    for (int i = 0; i < v->node->n_in && v->status == TR_OK; i++) {
        const tr_meta *m = META(i);
        if (m->ndim == 1 && m->numel == 0 && G->meta->ndim != 1)
            continue;
        int64_t size = m->shape[dim];
        if (tr__needs(v, i)) {
            T part = NULL;
            v->status = tr_apply(TR_OP_slice, (tr_input[]){tr_in(G)}, 1, A(dim, at, at + size, 1), NULL, false, &part);
            if (v->status == TR_OK)
                v->results[i] = part; // not through the pool: a list may be long
        }
        at += size;
    }
}
VJP(constant_pad, 0, 0) {
    int64_t a[2 + 2 * TR_MAX_DIMS];
    memcpy(a, v->node->attrs, sizeof a);
    for (int d = 0; d < META(0)->ndim; d++) {
        a[1 + d] = -a[1 + d];
        a[2 + TR_MAX_DIMS + d] = -a[2 + TR_MAX_DIMS + d];
    }
    GIVE(0, WORD_A(constant_pad_nd, a, tr_in(G), tr_in_double(0)));
}
VJP(flip, 0, 0) { GIVE(0, WORD_A(flip, A(ATTR(0)), tr_in(G))); }
VJP(roll, 0, 0) { GIVE(0, WORD_A(roll, A(-ATTR(0), ATTR(1)), tr_in(G))); }
VJP(tril, 0, 0) { GIVE(0, WORD_A(tril, A(ATTR(0)), tr_in(G))); }
VJP(triu, 0, 0) { GIVE(0, WORD_A(triu, A(ATTR(0)), tr_in(G))); }

/* ---- views ---- */

VJP(view, 0, 0) { GIVE(0, view_as(v, G, META(0))); }
VJP(expand, 0, 0) { GIVE(0, G); } // the engine sums over what was broadcast
VJP(unsqueeze, 0, 0) { GIVE(0, view_as(v, G, META(0))); }
VJP(squeeze, 0, 0) { GIVE(0, view_as(v, G, META(0))); }
VJP(transpose, 0, 0) { GIVE(0, transposed(v, G, ATTR(0), ATTR(1))); }
VJP(permute, 0, 0) {
    int64_t back[TR_MAX_DIMS];
    T out = NULL;
    for (int d = 0; d < META(0)->ndim; d++)
        back[ATTR(1 + d)] = d;
    v->status = tr_permute(G, back, &out);
    if (v->status == TR_OK)
        GIVE(0, tr__vjp_own(v, out));
}
/* Zeros of the base's look with G at a view of it: its strides in a row-major base, its offset from the base's first. */
static void give_scattered(tr_vjp *v, const int64_t *strides, int64_t offset) {
    const tr_meta *m = META(0);
    int64_t a[2 + 2 * TR_MAX_DIMS] = {m->ndim};
    memcpy(a + 1, m->shape, sizeof m->shape);
    a[1 + TR_MAX_DIMS] = G->meta->ndim;
    memcpy(a + 2 + TR_MAX_DIMS, strides, sizeof m->strides);
    GIVE(0, WORD_A(as_strided_scatter, a, tr_in(G), tr_in_int(offset)));
}
static const tr_meta *row_major(tr_vjp *v) {
    return tr_meta_as_contiguous(META(0), (tr_dtype) META(0)->dtype);
}
VJP(slice, 0, 0) {
    const tr_meta *m = row_major(v);
    int64_t strides[TR_MAX_DIMS];
    memcpy(strides, m->strides, sizeof strides);
    int64_t offset = ATTR(1) * strides[ATTR(0)];
    strides[ATTR(0)] *= ATTR(3);
    give_scattered(v, strides, offset);
}
VJP(select, 0, 0) {
    const tr_meta *m = row_major(v);
    int64_t strides[TR_MAX_DIMS] = {0};
    int n = 0;
    for (int d = 0; d < m->ndim; d++)
        if (d != ATTR(0))
            strides[n++] = m->strides[d];
    give_scattered(v, strides, ATTR(1) * m->strides[ATTR(0)]);
}
VJP(diagonal, 0, 0) {
    const tr_meta *m = row_major(v);
    int64_t strides[TR_MAX_DIMS] = {0}, offset = ATTR(0);
    int64_t a = ATTR(1) < 0 ? ATTR(1) + m->ndim : ATTR(1), b = ATTR(2) < 0 ? ATTR(2) + m->ndim : ATTR(2);
    int n = 0;
    for (int d = 0; d < m->ndim; d++)
        if (d != a && d != b)
            strides[n++] = m->strides[d];
    strides[n] = m->strides[a] + m->strides[b];
    give_scattered(v, strides, offset > 0 ? offset * m->strides[b] : -offset * m->strides[a]);
}
VJP(unfold, 0, 0) {
    const tr_meta *m = row_major(v);
    int64_t strides[TR_MAX_DIMS] = {0}, dim = ATTR(0);
    memcpy(strides, m->strides, sizeof strides);
    if (m->ndim < TR_MAX_DIMS)
        strides[m->ndim] = m->ndim ? m->strides[dim] : 1;
    if (m->ndim)
        strides[dim] *= ATTR(2);
    give_scattered(v, strides, 0);
}
VJP(as_strided, 0, 0) {
    const tr_meta *m = META(0);
    if (m->contiguous) {
        give_scattered(v, v->node->attrs + 2 + TR_MAX_DIMS, v->node->attrs[2 + 2 * TR_MAX_DIMS]);
        return;
    }
    if (!m->dense) {
        v->status = TR_FAIL(TR_E_NOTIMPL, "backward of as_strided of a tensor with gaps");
        return;
    }
    // Zeros laid out as the base, so that the view's strides address them.
    T base = tr__word(v, TR_OP__full, (tr_input[]){tr_in_double(0)}, 1, NULL, m, 0), same = NULL;
    T part = WORD_A(as_strided, v->node->attrs, tr_in(base));
    if (v->status == TR_OK)
        v->status = tr_apply(TR_OP_add, (tr_input[]){tr_in(part), tr_in(G), tr_in_int(1)}, 3, NULL, NULL, true, &same);
    tr_tensor_release(same);
    GIVE(0, base);
}
VJP(as_strided_scatter, 0, 0) {
    const int64_t *a = v->node->attrs;
    int64_t b[3 + 2 * TR_MAX_DIMS] = {META(0)->ndim};
    memcpy(b + 1, META(0)->shape, sizeof META(0)->shape);
    memcpy(b + 1 + TR_MAX_DIMS, a + 1 + TR_MAX_DIMS, (1 + TR_MAX_DIMS) * sizeof *b);
    b[2 + 2 * TR_MAX_DIMS] = v->node->edges[1].number.i;
    T g = G;
    if (!g->meta->contiguous)
        g = WORD(_contiguous, tr_in(g));
    GIVE(0, WORD_A(as_strided, b, tr_in(g)));
}
