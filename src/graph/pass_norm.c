/* pass_norm.c - batch norm with what stands next to it: an addition and a relu behind it; before its derivative the
 * relu's, and before that the sum of two gradients.
 *
 * Normalising reads and writes an image once; so would each of the others. Forward, what batch_norm alone gives is never
 * stored where only the next op sees it; in-place forms write over it, and nothing need be left out. Backward, the masked
 * gradient is stored only if a residual passes it on; only then the sum is joined, which is kept nowhere else. */
#include "graph/pass.h"

#include "terra/alloc.h"

enum { PATIENCE = 64 }; /* ops of Python's that the group may wait for the death of what it leaves out */

/* The next op behind k that touches v; NIL. */
static uint32_t next_toucher(const tr__graph *g, uint32_t k, tr_ref v) {
    for (uint32_t t = g->touch.at[v]; t < g->touch.at[v + 1]; t++)
        if (g->touch.item[t] > k)
            return g->touch.item[t];
    return TR__NIL;
}

static const tr_path_operand *result_of(const tr_path *p, uint32_t k) {
    return &tr__operands(p, &p->ops[k])[p->ops[k].n_in];
}

/* Are the op's image and its result of one type that the kernels know? What mean, weight and the like are doesn't matter. */
static bool is_known(const tr_path *p, uint32_t k) {
    const tr_path_op *op = &p->ops[k];
    const tr_path_operand *o = tr__operands(p, op);
    return (op->cdtype == TR_F32 || op->cdtype == TR_BF16) && o[0].meta->dtype == op->cdtype &&
           result_of(p, k)->meta->dtype == op->cdtype;
}

/* The number at operand i as the path has it. */
static double number_at(const tr_path *p, uint32_t k, uint32_t i) {
    const tr_path_op *op = &p->ops[k];
    tr_number n = {.i = p->args[op->operand + i]};
    return tr__operands(p, op)[i].meta->dtype == TR_F64 ? n.d : (double) n.i;
}

/* Is op u the sum of v and an image of the same looks and type, `other`? */
static bool is_sum(const tr_path *p, uint32_t u, const tr_path_operand *v, const tr_path_operand *other) {
    return p->ops[u].op == TR_OP_add && other->ref != TR_REF_NONE && tr_meta_same_shape(other->meta, v->meta) &&
           other->meta->dtype == v->meta->dtype && number_at(p, u, 2) == 1;
}

/* May op u follow in the group of k, reading (or overwriting) all of v? */
static bool follows(const tr__graph *g, uint32_t u, tr_op kind, const tr_path_operand *v) {
    const tr_path *p = g->path;
    const tr_path_op *op = &p->ops[u];
    const tr_path_operand *o = tr__operands(p, op);
    if (op->op != kind || op->cdtype != v->meta->dtype || g->groups[g->group[u]].n_ops > 1 || g->groups[g->group[u]].kind != TR_INSTR_OP)
        return false;
    bool first = o[0].ref == v->ref, second = kind == TR_OP_add && o[1].ref == v->ref;
    if (first == second || (op->in_place && !first))
        return false;
    if (kind == TR_OP_add && !is_sum(p, u, v, &o[first ? 1 : 0]))
        return false;
    return o[first ? 0 : 1].meta == v->meta && result_of(p, u)->meta->dtype == v->meta->dtype;
}

static bool join(tr__graph *g, uint32_t k, uint32_t u, tr_ref v) {
    bool writes_over = g->path->ops[u].in_place;
    if (u - k > PATIENCE || u >= g->groups[g->group[k]].deadline || (!writes_over && !tr__is_passing(g, v, k, u, PATIENCE)))
        return false;
    if (!tr__merge(g, g->group[k], g->group[u]))
        return false;
    g->groups[g->group[k]].kind = TR_INSTR_NORM;
    if (!writes_over)
        g->elided[v] = true;
    return true;
}

static void join_forward(tr__graph *g, uint32_t k) {
    const tr_path *p = g->path;
    static const tr_op order[] = {TR_OP_add, TR_OP_relu};
    uint32_t last = k;
    for (int step = 0; step < 2; step++) {
        const tr_path_operand *v = result_of(p, last);
        uint32_t u = next_toucher(g, last, v->ref);
        if (u != TR__NIL && follows(g, u, order[step], v) && join(g, last, u, v->ref))
            last = u;
    }
}

/* The op that makes what op u reads first, alone in its group, which nobody else has written: TR__NIL if op k can't be in it. */
static uint32_t maker_of(const tr__graph *g, uint32_t u, tr_op kind, uint32_t k) {
    const tr_path *p = g->path;
    const tr_path_operand *v = tr__operands(p, &p->ops[u]);
    if (!tr_ref_is_value(v->ref) || g->writes[v->ref])
        return TR__NIL;
    uint32_t maker = g->birth[v->ref];
    const tr_path_op *op = &p->ops[maker];
    const tr__group *group = &g->groups[g->group[maker]];
    bool fits = op->op == kind && !op->in_place && is_known(p, maker) && group->n_ops == 1 && group->kind == TR_INSTR_OP &&
                result_of(p, maker)->meta == v->meta && k - maker <= PATIENCE && k < group->deadline;
    return fits ? maker : TR__NIL;
}

/* Before the mask, the sum of what a residual's two ways bring back. */
static void join_sum(tr__graph *g, uint32_t mask, uint32_t k) {
    const tr_path *p = g->path;
    const tr_path_operand *grad = tr__operands(p, &p->ops[mask]);
    uint32_t sum = maker_of(g, mask, TR_OP_add, k);
    if (sum == TR__NIL || !is_sum(p, sum, grad, &tr__operands(p, &p->ops[sum])[0]) ||
        !is_sum(p, sum, grad, &tr__operands(p, &p->ops[sum])[1]) || !tr__is_passing(g, grad->ref, sum, mask, PATIENCE))
        return;
    if (tr__merge(g, g->group[sum], g->group[mask])) {
        g->groups[g->group[k]].kind = TR_INSTR_NORM;
        g->elided[grad->ref] = true;
    }
}

static void join_backward(tr__graph *g, uint32_t k) {
    const tr_path *p = g->path;
    tr_ref grad = tr__operands(p, &p->ops[k])->ref;
    uint32_t mask = maker_of(g, k, TR_OP_threshold_backward, k);
    if (mask == TR__NIL || number_at(p, mask, 2) != 0)
        return;
    bool passing = tr__is_passing(g, grad, mask, k, PATIENCE);
    if (!tr__merge(g, g->group[mask], g->group[k]))
        return;
    g->groups[g->group[k]].kind = TR_INSTR_NORM;
    g->elided[grad] = passing;
    if (!passing)
        join_sum(g, mask, k);
}

tr_status tr__pass_norm(tr__graph *g) {
    const tr_path *p = g->path;
    for (uint32_t k = 0; k < p->n_ops; k++) {
        if (g->groups[g->group[k]].n_ops > 1 || g->groups[g->group[k]].kind != TR_INSTR_OP)
            continue;
        if (p->ops[k].op == TR_OP_batch_norm && is_known(p, k))
            join_forward(g, k);
        else if (p->ops[k].op == TR_OP_batch_norm_backward && is_known(p, k))
            join_backward(g, k);
    }
    return TR_OK;
}

/* Guards: numbers that the fused forms know only one value of, add's alpha and the relu's threshold. */
tr_status tr__norm_lower(const tr__graph *g, uint32_t group, tr_instr *instr) {
    const tr_path *p = g->path;
    if (!(instr->args = tr_malloc(4 * sizeof *instr->args)))
        return TR_FAIL(TR_E_NOMEM, "no memory for a plan's norms");
    for (uint32_t k = g->groups[group].head; k != TR__NIL; k = g->next[k])
        if (p->ops[k].op == TR_OP_add || p->ops[k].op == TR_OP_threshold_backward)
            instr->args[instr->n_guards++] = p->ops[k].operand + 2;
    return TR_OK;
}
