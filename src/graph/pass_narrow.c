/* pass_narrow.c - weights' gradients that stay bfloat16 on their way to the optimizer.
 *
 * Under autocast a product or a convolution gives the gradient of the rounded weights, and a cast makes it the parameter's, in
 * float32. Every element of that is still a bfloat16: where none but optimizers read it, the cast is left out, and the optimizer
 * reads half the bytes. The parameter's gradient has a home then (terra/dnn.h), so that whoever looks from outside the plan, in
 * this iteration or in later ones, finds float32. */
#include "graph/pass.h"

#include "terra/options.h"

enum { PATIENCE = 64 }; /* ops of Python's that the pair may wait for the death of what it leaves out */

static bool makes_gradients(const tr_path_op *op) {
    switch (op->op) {
        case TR_OP_mm:
        case TR_OP_conv2d_backward_weights:
            return op->n_out == 1 && !op->in_place;
        default:
            return false;
    }
}

/* Is every op that touches the value, but for the cast that makes it, an optimizer's whose gradient it is, and whose parameter lies
 * alike? */
static bool is_for_optimizers(const tr__graph *g, const tr_path_operand *grad, uint32_t cast) {
    const tr_path *p = g->path;
    uint32_t n = 0;
    for (uint32_t t = g->touch.at[grad->ref]; t < g->touch.at[grad->ref + 1]; t++, n++) {
        const tr_path_op *op = &p->ops[g->touch.item[t]];
        const tr_path_operand *o = tr__operands(p, op);
        if (g->touch.item[t] == cast)
            continue;
        if (tr_op_info_of((tr_op) op->op)->op_class != TR_CLASS_OPTIM || o[0].ref == grad->ref || o[0].meta != grad->meta)
            return false;
        for (uint32_t i = 1; i < tr__operand_count(op); i++)
            if (i == 1 ? o[i].ref != grad->ref || o[i].meta != grad->meta : o[i].ref == grad->ref)
                return false;
    }
    return n > 1;
}

static bool is_alone(const tr__graph *g, uint32_t k) {
    const tr__group *x = &g->groups[g->group[k]];
    return x->n_ops == 1 && x->kind == TR_INSTR_OP;
}

/* May this cast be left out, with the op that makes what it reads? Gives that. */
static bool is_idle(const tr__graph *g, uint32_t cast, uint32_t *maker) {
    const tr_path *p = g->path;
    const tr_path_op *op = &p->ops[cast];
    const tr_path_operand *v = tr__operands(p, op), *grad = v + op->n_in;
    if (op->op != TR_OP__cast || op->in_place || !tr_ref_is_value(v->ref) || v->meta->dtype != TR_BF16 ||
        grad->meta->dtype != TR_F32 || !v->meta->contiguous || !grad->meta->contiguous || grad->meta->numel == 0)
        return false;
    uint32_t k = *maker = g->birth[v->ref];
    return k != TR__NIL && makes_gradients(&p->ops[k]) && is_alone(g, k) && is_alone(g, cast) &&
           tr__operands(p, &p->ops[k])[p->ops[k].n_in].meta == v->meta && tr__is_whole(p, v->ref, v->meta) &&
           tr__is_whole(p, grad->ref, grad->meta) && !p->fetched[grad->ref] && !g->writes[v->ref] && !g->writes[grad->ref] &&
           cast - k <= PATIENCE &&
           tr__is_passing(g, v->ref, k, cast, PATIENCE) && is_for_optimizers(g, grad, cast);
}

tr_status tr__pass_narrow(tr__graph *g) {
    const tr_path *p = g->path;
    if (!tr_options_get()->layouts)
        return TR_OK;
    for (uint32_t cast = 0; cast < p->n_ops; cast++) {
        uint32_t maker;
        const tr_path_operand *o = tr__operands(p, &p->ops[cast]);
        const tr_home *home;
        if (!is_idle(g, cast, &maker))
            continue;
        TR_TRY(tr__open_homes(g));
        const tr_path_operand *grad = o + p->ops[cast].n_in;
        if (g->homes[grad->ref] || !tr__merge(g, g->group[maker], g->group[cast]))
            continue;
        TR_TRY(tr_home_of_bf16(grad->meta, &home));
        g->groups[g->group[cast]].kind = TR_INSTR_NARROW;
        g->homes[grad->ref] = home;
        g->elided[o->ref] = true;
    }
    return TR_OK;
}
