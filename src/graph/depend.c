/* depend.c - what must have run before each instruction, for executors that share a plan.
 *
 * One executor runs the list in its order, and needs none of this. Several keep to that order only where something demands it:
 *  - a storage: its readers come behind its writer, its next writer behind them (analyze.c);
 *  - the slab: a value's first instruction comes behind all that touch the values whose bytes it takes (memplan.c);
 *  - errors: nothing that outlives the iteration is written before what could still fail ahead of it in the list. */
#include "graph/pass.h"

#include "terra/alloc.h"
#include "terra/exec.h"

#include <string.h>

typedef struct resident {
    tr_ref value;
    int64_t at, end;
} resident;

typedef struct depend {
    tr__graph *g;
    tr_plan *plan;
    uint32_t n, room;    /* of plan->before */
    uint32_t *seen;      /* per instruction: 1 + the one whose list has it */
    resident *residents; /* values whose bytes nobody has taken over altogether */
    uint32_t n_residents;
    uint32_t failing; /* 1 + the latest instruction so far that may fail */
    bool failed;      /* no memory */
} depend;

static void add(depend *d, uint32_t from, uint32_t to) {
    if (from == to || d->seen[from] == to + 1 || d->failed)
        return;
    tr_check(from < to);
    if (d->n == d->room) {
        uint32_t room = 2 * d->room + 64;
        uint32_t *more = tr_realloc(d->plan->before, room * sizeof *more);
        if (!more) {
            d->failed = true;
            return;
        }
        d->plan->before = more;
        d->room = room;
    }
    d->seen[from] = to + 1;
    d->plan->before[d->n++] = from;
}

static void add_touches(depend *d, tr_ref value, uint32_t to) {
    const tr__lists *touch = &d->g->touch;
    for (uint32_t t = touch->at[value]; t < touch->at[value + 1]; t++)
        add(d, d->plan->instr_of[touch->item[t]], to);
}

/* The value is born in instruction i, and takes its bytes from those that had them. */
static void move_in(depend *d, tr_ref value, uint32_t i) {
    const tr_plan *plan = d->plan;
    int64_t at = plan->slot[value], end = at + (int64_t) plan->path->value_bytes[value];
    uint32_t kept = 0;
    for (uint32_t k = 0; k < d->n_residents; k++) {
        resident r = d->residents[k];
        if (r.at < end && at < r.end)
            add_touches(d, r.value, i);
        if (r.at < at || r.end > end)
            d->residents[kept++] = r;
    }
    d->residents[kept++] = (resident){value, at, end};
    d->n_residents = kept;
}

static bool writes_external(const tr_path *p, const tr_path_op *op) {
    for (uint32_t i = 0; i < tr__operand_count(op); i++) {
        tr_ref r = tr__operands(p, op)[i].ref;
        if (r != TR_REF_NONE && tr_ref_is_external(r) && tr__operand_written(op, i))
            return true;
    }
    return false;
}

static void add_op(depend *d, uint32_t k, uint32_t i) {
    const tr_plan *plan = d->plan;
    const tr_path_op *op = &plan->path->ops[k];
    for (uint32_t e = d->g->pred.at[k]; e < d->g->pred.at[k + 1]; e++)
        add(d, plan->instr_of[d->g->pred.item[e]], i);
    if (d->failing && (tr__may_fail(op) || writes_external(plan->path, op)))
        add(d, d->failing - 1, i);
    for (uint32_t j = op->n_in; !op->in_place && j < tr__operand_count(op); j++) {
        tr_ref v = tr__operands(plan->path, op)[j].ref;
        if (tr_ref_is_value(v) && plan->slot[v] >= 0 && !plan->carry[v] && plan->path->value_bytes[v])
            move_in(d, v, i);
    }
}

static void find_before(depend *d) {
    tr_plan *plan = d->plan;
    for (uint32_t i = 0; i < plan->n_instrs; i++) {
        const tr_instr *instr = &plan->instrs[i];
        plan->before_at[i] = d->n;
        bool may_fail = false;
        for (uint32_t c = instr->first; c < instr->first + instr->n_ops; c++) {
            add_op(d, plan->covered[c], i);
            may_fail |= tr__may_fail(&plan->path->ops[plan->covered[c]]);
        }
        if (may_fail)
            d->failing = i + 1;
    }
    plan->before_at[plan->n_instrs] = d->n;
}

/* Good enough for a first placement: the executors measure. Per thread: 50 GFLOP/s, 8 GB/s. */
static tr_status guess(tr_plan *plan) {
    tr__cost *costs = tr_calloc(plan->n_instrs + 1, sizeof *costs);
    if (!costs)
        return TR_FAIL(TR_E_NOMEM, "no memory to guess what instructions take");
    tr_status status = tr__plan_cost(plan, costs);
    double team = tr_exec_team();
    for (uint32_t i = 0; status == TR_OK && i < plan->n_instrs; i++) {
        double compute = costs[i].flop / (50 * team), move = costs[i].bytes / (8 * team);
        double ns = 1000 + (compute > move ? compute : move);
        plan->guess[i] = (tr_instr_guess){(float) ns, (float) costs[i].bytes};
    }
    tr_free(costs);
    return status;
}

tr_status tr__depend(tr__graph *g, tr_plan *plan) {
    depend d = {.g = g, .plan = plan};
    plan->before_at = tr_calloc(plan->n_instrs + 1, sizeof *plan->before_at);
    plan->guess = tr_calloc(plan->n_instrs + 1, sizeof *plan->guess);
    d.seen = tr__pool_take(&g->pool, plan->n_instrs + 1, sizeof *d.seen);
    d.residents = tr__pool_take(&g->pool, plan->path->n_values + 1, sizeof *d.residents);
    if (plan->before_at && plan->guess && !g->pool.failed)
        find_before(&d);
    if (!plan->before_at || !plan->guess || g->pool.failed || d.failed)
        return TR_FAIL(TR_E_NOMEM, "no memory for what hangs on what in %u instructions", plan->n_instrs);
    return guess(plan);
}
