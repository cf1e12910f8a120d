/* pass_copy.c - parameters that keep their bfloat16 copy from one iteration to the next.
 *
 * Under autocast an iteration casts its parameters to bfloat16, and an optimizer updates them at its end: the next one casts them
 * anew. Where the optimizer alone writes a parameter, it writes the copy as well, while the new numbers are at hand, and the cast
 * has nothing to do: its result lies beside the parameter, which has a home that says so (terra/dnn.h). Whatever else looks at the
 * parameter, from outside the plan, makes it leave that home; the next cast makes the copy then.
 *
 * The optimizer may not run before all that reads the old copy: an order that the path doesn't show. Analysis asks here for copies
 * before it looks for the order. */
#include "graph/pass.h"

#include "terra/alloc.h"
#include "terra/options.h"

#ifdef TR_DEBUG
enum { LEAST = 2 };
#else
enum { LEAST = 4096 }; /* elements: smaller ones are cast in passing */
#endif

/* The op that writes all of external r, an optimizer's whose parameter it is, and the only one; NIL. */
static uint32_t sole_optimizer(const tr__graph *g, const tr_path_operand *parameter) {
    const tr_path *p = g->path;
    uint32_t r = tr__ref_index(p, parameter->ref), found = TR__NIL;
    for (uint32_t t = g->touch.at[r]; t < g->touch.at[r + 1]; t++) {
        uint32_t k = g->touch.item[t];
        const tr_path_op *op = &p->ops[k];
        const tr_path_operand *o = tr__operands(p, op);
        for (uint32_t i = 0; i < tr__operand_count(op); i++) {
            if (o[i].ref != parameter->ref || !tr__operand_written(op, i))
                continue;
            bool updates = tr_op_info_of((tr_op) op->op)->op_class == TR_CLASS_OPTIM && i == 0;
            if (!updates || found != TR__NIL || o[i].meta != parameter->meta)
                return TR__NIL;
            found = k;
        }
    }
    return found;
}

/* Is v only read, and dead when op k comes? */
static bool is_dead_before(const tr__graph *g, tr_ref v, uint32_t k) {
    const tr_path *p = g->path;
    if (p->fetched[v] || g->writes[v] || p->death[v] > k || g->touch.at[v + 1] - g->touch.at[v] < 2)
        return false;
    return g->touch.item[g->touch.at[v + 1] - 1] < k;
}

static bool keeps_copy(const tr__graph *g, uint32_t cast) {
    const tr_path *p = g->path;
    const tr_path_op *op = &p->ops[cast];
    const tr_path_operand *from = tr__operands(p, op), *to = from + op->n_in;
    if (op->op != TR_OP__cast || op->in_place || from->ref == TR_REF_NONE || !tr_ref_is_external(from->ref) ||
        from->meta->dtype != TR_F32 || to->meta->dtype != TR_BF16 || from->meta->numel < LEAST || !from->meta->contiguous ||
        !to->meta->contiguous || !tr__is_whole(p, to->ref, to->meta) || (g->homes && g->homes[tr__ref_index(p, from->ref)]))
        return false;
    uint32_t k = sole_optimizer(g, from);
    return k != TR__NIL && is_dead_before(g, to->ref, k);
}

tr_status tr__find_copies(tr__graph *g) {
    const tr_path *p = g->path;
    for (uint32_t k = 0; tr_options_get()->layouts && k < p->n_ops; k++) {
        const tr_path_operand *from = tr__operands(p, &p->ops[k]);
        if (!keeps_copy(g, k))
            continue;
        TR_TRY(tr__open_homes(g));
        if (!g->copy_of && !(g->copy_of = tr_calloc(p->n_values, sizeof *g->copy_of)))
            return TR_FAIL(TR_E_NOMEM, "no memory to find copies for %u values", p->n_values);
        if (!g->copied && !(g->copied = tr__pool_take(&g->pool, g->n_refs, sizeof *g->copied)))
            return TR_FAIL(TR_E_NOMEM, "no memory to find copies for %u storages", g->n_refs);
        tr_ref copy = from[p->ops[k].n_in].ref;
        uint32_t r = tr__ref_index(p, from->ref);
        TR_TRY(tr_home_with_copy(from->meta, &g->homes[r]));
        g->copy_of[copy] = tr_ref_slot(from->ref) + 1;
        g->copied[r] = copy + 1;
    }
    return TR_OK;
}
