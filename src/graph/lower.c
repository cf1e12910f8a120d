/* lower.c - groups become instructions, in the order of their ready points. */
#include "graph/pass.h"

#include "terra/alloc.h"
#include "terra/options.h"

/* Arrays that tr_plan_destroy frees one by one. */
static tr_status make_arrays(tr_plan *plan, uint32_t n_instrs) {
    const tr_path *p = plan->path;
    plan->instrs = tr_calloc(n_instrs, sizeof *plan->instrs);
    plan->covered = tr_calloc(p->n_ops, sizeof *plan->covered);
    plan->instr_of = tr_calloc(p->n_ops, sizeof *plan->instr_of);
    plan->slot = tr_calloc(p->n_values, sizeof *plan->slot);
    plan->carry = tr_calloc(p->n_values, sizeof *plan->carry);
    if (tr_options_get()->profile || plan->executors > 1)
        plan->ns = tr_calloc(n_instrs, sizeof *plan->ns);
    if (!plan->instrs || !plan->covered || !plan->instr_of || !plan->slot || !plan->carry)
        return TR_FAIL(TR_E_NOMEM, "no memory for a plan of %u instructions", n_instrs);
    plan->n_instrs = n_instrs;
    return TR_OK;
}

static void count_elided(const tr__graph *g, tr_instr *instr, const tr_path_op *op) {
    for (uint32_t i = op->n_in; !op->in_place && i < tr__operand_count(op); i++) {
        tr_ref v = tr__operands(g->path, op)[i].ref;
        if (g->elided[v]) {
            instr->n_elided++;
            instr->bytes_elided += (int64_t) g->path->value_bytes[v];
        }
    }
}

static bool has_homes(const tr__graph *g, const tr_path_op *op) {
    for (uint32_t i = 0; g->homes && i < tr__operand_count(op); i++) {
        tr_ref r = tr__operands(g->path, op)[i].ref;
        if (r != TR_REF_NONE && g->homes[tr__ref_index(g->path, r)])
            return true;
    }
    return false;
}

tr_status tr__lower(tr__graph *g, tr_plan *plan) {
    const tr_path *p = g->path;
    uint32_t *list = tr__pool_take(&g->pool, p->n_ops, sizeof *list);
    uint32_t n = list ? tr__order(g, list) : 0;
    if (g->pool.failed)
        return TR_FAIL(TR_E_NOMEM, "no memory to order %u ops", p->n_ops);
    TR_TRY(make_arrays(plan, n));
    uint32_t at = 0;
    for (uint32_t i = 0; i < n; i++) {
        const tr__group *group = &g->groups[list[i]];
        tr_instr *instr = &plan->instrs[i];
        *instr = (tr_instr){.kind = group->kind, .ready = group->ready, .first = at, .n_ops = group->n_ops};
        for (uint32_t k = group->head; k != TR__NIL; k = g->next[k]) {
            plan->covered[at++] = k;
            plan->instr_of[k] = i;
            count_elided(g, instr, &p->ops[k]);
            instr->has_homes |= has_homes(g, &p->ops[k]);
        }
        if (group->kind == TR_INSTR_EW)
            TR_TRY(tr__elementwise_lower(g, list[i], instr));
        else if (group->kind == TR_INSTR_ROWS)
            TR_TRY(tr__rows_lower(g, list[i], instr));
        else if (group->kind == TR_INSTR_NORM)
            TR_TRY(tr__norm_lower(g, list[i], instr));
        else if (group->kind == TR_INSTR_DNN)
            TR_TRY(tr__partition_lower(g, list[i], instr));
    }
    for (uint32_t v = 0; v < p->n_values; v++) {
        plan->carry[v] = p->death[v] == TR_DEATH_NEVER;
        plan->slot[v] = g->elided[v] ? TR_SLOT_ELIDED : g->copy_of && g->copy_of[v] ? TR_SLOT_COPY : 0;
    }
    return TR_OK;
}
