/* vjp.h - the words in which derivatives are written. Each makes one op; tensors belong to the vjp's pool; after a failure
 * every word does nothing and gives NULL, so that rules read as formulas. */
#ifndef TR_TRACER_VJP_H
#define TR_TRACER_VJP_H

#include "tracer/tape.h"

typedef tr_tensor *T;

static inline T tr__word(tr_vjp *v, tr_op op, const tr_input *in, int n, const int64_t *attrs, const tr_meta *given, int which) {
    T out[TR_MAX_OUTPUTS] = {0};
    if (v->status != TR_OK)
        return NULL;
    for (int i = 0; i < n; i++) // an operand that a former word failed to make
        if (!in[i].tensor && !in[i].meta && !(tr_op_info_of(op)->params[i].optional)) {
            v->status = TR_FAIL(TR_E_INTERNAL, "the derivative %s lacks operand %d of %s", tr_node_name(v->node), i,
                                tr_op_info_of(op)->name);
            return NULL;
        }
    v->status = tr_apply(op, in, n, attrs, given, false, out);
    if (v->status != TR_OK)
        return NULL;
    T result = NULL;
    int n_out = tr_op_info_of(op)->n_outputs ? tr_op_info_of(op)->n_outputs : 1;
    for (int i = 0; i < n_out; i++) {
        if (i == which)
            result = tr__vjp_own(v, out[i]);
        else
            tr_tensor_release(out[i]);
    }
    return result;
}

#define WORD(op, ...) \
    tr__word(v, TR_OP_##op, (tr_input[]){__VA_ARGS__}, (int) (sizeof((tr_input[]){__VA_ARGS__}) / sizeof(tr_input)), NULL, NULL, 0)
#define WORD_A(op, attrs, ...)                                                                                               \
    tr__word(v, TR_OP_##op, (tr_input[]){__VA_ARGS__}, (int) (sizeof((tr_input[]){__VA_ARGS__}) / sizeof(tr_input)), (attrs), \
             NULL, 0)
#define A(...) ((int64_t[]){__VA_ARGS__})

/* This node's: gradient of output 0, inputs (tensor or number) and outputs as saved, attributes. */
#define G (v->grad[0])
#define IN(i) tr__vjp_in(v, (i))
#define OUT(i) tr__vjp_out(v, (i))
#define ATTR(i) (v->node->attrs[i])
#define NEEDS(i) (v->status == TR_OK && tr__needs(v, (i)))
#define META(i) (v->node->in_meta[i])

static inline tr_input tr__operand(tr_vjp *v, int i) {
    if (tr__node_saves(v->node, i))
        return tr_in(tr__vjp_in(v, i));
    return (tr_input){.meta = v->node->in_meta[i], .number = v->node->edges[i].number};
}
#define X(i) tr__operand(v, (i))
static inline double tr__number(const tr_vjp *v, int i) {
    const tr_meta *m = v->node->in_meta[i];
    return m && m->dtype == TR_F64 ? v->node->edges[i].number.d : (double) v->node->edges[i].number.i;
}
#define NUMBER(i) tr__number(v, (i))

static inline void tr__give(tr_vjp *v, int i, T t) {
    if (!t || v->status != TR_OK)
        return;
    tr_tensor_retain(t);
    v->results[i] = t;
}
#define GIVE(i, t) tr__give(v, (i), (t))

static inline T add(tr_vjp *v, T a, T b) { return WORD(add, tr_in(a), tr_in(b), tr_in_int(1)); }
static inline T sub(tr_vjp *v, T a, T b) { return WORD(sub, tr_in(a), tr_in(b), tr_in_int(1)); }
static inline T mul(tr_vjp *v, T a, T b) { return WORD(mul, tr_in(a), tr_in(b)); }
static inline T divide(tr_vjp *v, T a, T b) { return WORD_A(div, A(0), tr_in(a), tr_in(b)); }
static inline T scale(tr_vjp *v, T a, double s) { return WORD(mul, tr_in(a), tr_in_double(s)); }
static inline T shift(tr_vjp *v, T a, double s) { return WORD(add, tr_in(a), tr_in_double(s), tr_in_int(1)); }
static inline T rshift(tr_vjp *v, double s, T a) { return WORD(sub, tr_in_double(s), tr_in(a), tr_in_int(1)); } /* s - a */
static inline T neg(tr_vjp *v, T a) { return WORD(neg, tr_in(a)); }
static inline T square(tr_vjp *v, T a) { return WORD(square, tr_in(a)); }
static inline T where0(tr_vjp *v, T c, T a) { return WORD(where, tr_in(c), tr_in(a), tr_in_double(0)); }   /* c ? a : 0 */
static inline T where1(tr_vjp *v, T c, T a) { return WORD(where, tr_in(c), tr_in_double(0), tr_in(a)); }   /* c ? 0 : a */
static inline T sum_keep(tr_vjp *v, T a, int64_t mask) { return WORD_A(sum, A(mask, 1, -1), tr_in(a)); }
static inline T full_like(tr_vjp *v, const tr_meta *m, double x) {
    const tr_meta *dense = tr_meta_as_contiguous(m, (tr_dtype) m->dtype);
    return tr__word(v, TR_OP__full, (tr_input[]){tr_in_double(x)}, 1, NULL, dense, 0);
}
static inline T view_as(tr_vjp *v, T a, const tr_meta *m) {
    T out = NULL;
    if (v->status == TR_OK && a)
        v->status = tr_reshape(a, m->ndim, m->shape, &out);
    return v->status == TR_OK ? tr__vjp_own(v, out) : NULL;
}
static inline T expand_as(tr_vjp *v, T a, const tr_meta *m) {
    T out = NULL;
    if (v->status == TR_OK && a)
        v->status = tr_expand(a, m->ndim, m->shape, &out);
    return v->status == TR_OK ? tr__vjp_own(v, out) : NULL;
}
static inline T transposed(tr_vjp *v, T a, int64_t d0, int64_t d1) { return WORD_A(transpose, A(d0, d1), tr_in(a)); }

/* A reduced tensor with its reduced dimensions back as 1, expanded over them. */
static inline T unreduce(tr_vjp *v, T a, const tr_meta *in, int64_t mask, bool expanded) {
    int64_t shape[TR_MAX_DIMS];
    for (int d = 0; d < in->ndim; d++)
        shape[d] = mask >> d & 1 ? 1 : in->shape[d];
    T out = NULL;
    if (v->status != TR_OK || !a)
        return NULL;
    v->status = tr_reshape(a, in->ndim, shape, &out);
    if (v->status != TR_OK)
        return NULL;
    a = tr__vjp_own(v, out);
    return expanded ? expand_as(v, a, in) : a;
}

/* Declares the rule of a derivative: VJP(name, saved inputs, saved outputs) { ... } */
#define VJP_WITH(name, in_, out_, cross_, variadic_)                                                            \
    static void vjp_##name(tr_vjp *v);                                                                           \
    const tr_vjp_rule tr__vjp_##name = {vjp_##name, (uint16_t) (in_), (uint16_t) (out_), cross_, variadic_};      \
    static void vjp_##name(tr_vjp *v)
#define VJP(name, in_, out_) VJP_WITH(name, in_, out_, false, false)
#define BIT(i) (1u << (i))

#endif
