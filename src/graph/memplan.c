/* memplan.c - where values lie: interval packing, best fit, over the order of the instructions.
 *
 * A value takes its slot at the instruction of its birth. The slot is free again for the first instruction that comes
 * after all that touch the value and whose ready point lies behind its death: until then Python may hold a reference, and
 * an op of the path not yet run may be run by itself. Several executors would have to wait for each other wherever one takes
 * over what another has just let go of: there a slot rests for some instructions. Carried values have a region of their own and
 * are never reused.
 *
 * A result of an elementwise program may take the slot of an operand at once, if the operand is dead by then and the program
 * loads the very elements that it stores: each is read before it is overwritten. */
#include "graph/pass.h"

#include "terra/alloc.h"

#include <string.h>

enum { ALIGN = 64, REST = 6 /* instructions per executor */ };

typedef struct hole {
    size_t at, bytes;
} hole;

typedef struct packer {
    hole *holes; /* by address; neighbours coalesced */
    uint32_t n_holes;
    size_t end; /* of the slab so far */
} packer;

static size_t rounded(size_t bytes) {
    return bytes ? (bytes + ALIGN - 1) & ~(size_t) (ALIGN - 1) : ALIGN;
}

static void remove_hole(packer *k, uint32_t i) {
    memmove(&k->holes[i], &k->holes[i + 1], (k->n_holes - i - 1) * sizeof *k->holes);
    k->n_holes--;
}

static size_t take(packer *k, size_t bytes) {
    uint32_t best = UINT32_MAX;
    for (uint32_t i = 0; i < k->n_holes; i++)
        if (k->holes[i].bytes >= bytes && (best == UINT32_MAX || k->holes[i].bytes < k->holes[best].bytes))
            best = i;
    if (best == UINT32_MAX) {
        // A hole at the end grows, else the slab does.
        hole *last = k->n_holes ? &k->holes[k->n_holes - 1] : NULL;
        size_t at = k->end;
        if (last && last->at + last->bytes == k->end) {
            at = last->at;
            k->n_holes--;
        }
        k->end = at + bytes;
        return at;
    }
    hole *h = &k->holes[best];
    size_t at = h->at;
    h->at += bytes;
    h->bytes -= bytes;
    if (h->bytes == 0)
        remove_hole(k, best);
    return at;
}

static void give(packer *k, size_t at, size_t bytes) {
    uint32_t lo = 0, hi = k->n_holes;
    while (lo < hi) {
        uint32_t mid = (lo + hi) / 2;
        if (k->holes[mid].at < at)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo > 0 && k->holes[lo - 1].at + k->holes[lo - 1].bytes == at) {
        k->holes[lo - 1].bytes += bytes;
        if (lo < k->n_holes && at + bytes == k->holes[lo].at) {
            k->holes[lo - 1].bytes += k->holes[lo].bytes;
            remove_hole(k, lo);
        }
    } else if (lo < k->n_holes && at + bytes == k->holes[lo].at) {
        k->holes[lo].at = at;
        k->holes[lo].bytes += bytes;
    } else {
        memmove(&k->holes[lo + 1], &k->holes[lo], (k->n_holes - lo) * sizeof *k->holes);
        k->holes[lo] = (hole){at, bytes};
        k->n_holes++;
    }
}

typedef struct lives {
    uint32_t *first, *last;    /* per value: the first and last instructions that touch it; NIL: none */
    bool *taken;               /* per value: a result has its slot now */
    uint32_t *free_at, *freed; /* values by the instruction before which their slots are free: n_instrs + 1 lists */
} lives;

static void find_lives(const tr_plan *plan, uint32_t *first, uint32_t *last) {
    const tr_path *p = plan->path;
    for (uint32_t v = 0; v < p->n_values; v++)
        first[v] = last[v] = TR__NIL;
    for (uint32_t k = 0; k < p->n_ops; k++) {
        const tr_path_op *op = &p->ops[k];
        for (uint32_t i = 0; i < tr__operand_count(op); i++) {
            tr_ref v = tr__operands(p, op)[i].ref;
            if (!tr_ref_is_value(v))
                continue;
            if (plan->instr_of[k] < first[v])
                first[v] = plan->instr_of[k];
            if (last[v] == TR__NIL || last[v] < plan->instr_of[k])
                last[v] = plan->instr_of[k];
        }
    }
}

/* The first instruction that may overwrite the value; n_instrs: none. */
static uint32_t first_free(const tr_plan *plan, const uint32_t *ready_at, uint32_t last, uint32_t death) {
    uint32_t n = plan->path->n_ops;
    uint32_t at = death < n + 1 ? ready_at[death + 1] : plan->n_instrs;
    uint32_t rest = plan->executors > 1 ? (uint32_t) plan->executors * REST : 0, behind = last + 1 + rest;
    if (at < behind)
        at = behind;
    return at < plan->n_instrs ? at : plan->n_instrs;
}

static void sort_by_end(const tr_plan *plan, lives *l, const uint32_t *ready_at) {
    const tr_path *p = plan->path;
    uint32_t n = plan->n_instrs;
    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t v = 0; v < p->n_values; v++) {
            if (l->last[v] == TR__NIL || plan->carry[v] || plan->slot[v] < 0)
                continue;
            uint32_t at = first_free(plan, ready_at, l->last[v], p->death[v]);
            if (pass == 0)
                l->free_at[at + 2]++;
            else
                l->freed[l->free_at[at + 1]++] = v;
        }
        for (uint32_t i = 0; pass == 0 && i <= n; i++)
            l->free_at[i + 2] += l->free_at[i + 1];
    }
}

/* Is w only read, and its elements always in the order of `look`? Nor may it be stored elsewhere as it is: the engine reads
 * such elements only when it stores them, which may be behind the store that overwrites them. */
static bool loads_only(const tr_plan *plan, const tr_instr *instr, tr_ref w, const tr_meta *look) {
    for (int a = 0; a < instr->program->n_args; a++) {
        const tr_path_operand *o = &plan->path->operands[instr->args[a]];
        if (o->ref == w && !(tr__same_look(o->meta, look) && tr__is_whole(plan->path, w, o->meta)))
            return false;
    }
    for (int s = 0; s < instr->program->n_steps; s++) {
        int to = instr->program->steps[s].store;
        if (to < 0)
            continue;
        int from = tr__passed_on(instr->program, s);
        if (plan->path->operands[instr->args[to]].ref == w || (from >= 0 && plan->path->operands[instr->args[from]].ref == w))
            return false;
    }
    return true;
}

/* The operand whose slot result v of instruction i takes; TR_REF_NONE: none. */
static tr_ref donor_of(const tr_plan *plan, uint32_t i, tr_ref v, const tr_meta *look, const lives *l) {
    const tr_path *p = plan->path;
    const tr_instr *instr = &plan->instrs[i];
    for (int a = 0; instr->kind == TR_INSTR_EW && a < instr->program->n_args; a++) {
        tr_ref w = p->operands[instr->args[a]].ref;
        if (tr_ref_is_value(w) && w != v && plan->slot[w] >= 0 && !plan->carry[w] && !l->taken[w] && l->first[w] < i &&
            l->last[w] == i && p->death[w] < instr->ready && rounded(p->value_bytes[w]) == rounded(p->value_bytes[v]) &&
            loads_only(plan, instr, w, look))
            return w;
    }
    return TR_REF_NONE;
}

static size_t take_slot(tr_plan *plan, packer *k, const lives *l, uint32_t i, const tr_path_operand *o) {
    tr_ref w = donor_of(plan, i, o->ref, o->meta, l);
    if (w == TR_REF_NONE)
        return take(k, rounded(plan->path->value_bytes[o->ref]));
    l->taken[w] = true;
    return (size_t) plan->slot[w];
}

static void pack(tr_plan *plan, packer *k, const lives *l) {
    const tr_path *p = plan->path;
    for (uint32_t i = 0; i < plan->n_instrs; i++) {
        for (uint32_t f = l->free_at[i]; f < l->free_at[i + 1]; f++)
            if (!l->taken[l->freed[f]])
                give(k, (size_t) plan->slot[l->freed[f]], rounded(p->value_bytes[l->freed[f]]));
        const tr_instr *instr = &plan->instrs[i];
        for (uint32_t c = instr->first; c < instr->first + instr->n_ops; c++) {
            const tr_path_op *op = &p->ops[plan->covered[c]];
            for (uint32_t j = op->n_in; !op->in_place && j < tr__operand_count(op); j++) {
                tr_ref v = tr__operands(p, op)[j].ref;
                if (plan->slot[v] < 0)
                    continue;
                size_t bytes = rounded(p->value_bytes[v]);
                if (plan->carry[v]) {
                    plan->slot[v] = (int64_t) plan->carry_bytes;
                    plan->carry_bytes += bytes;
                } else {
                    plan->slot[v] = (int64_t) take_slot(plan, k, l, i, &tr__operands(p, op)[j]);
                }
            }
        }
    }
    plan->slab_bytes = k->end;
}

static tr_status place(tr_plan *plan) {
    const tr_path *p = plan->path;
    uint32_t n = plan->n_instrs;
    tr__pool pool = {0};
    lives l = {
        .first = tr__pool_take(&pool, p->n_values, sizeof *l.first),
        .last = tr__pool_take(&pool, p->n_values, sizeof *l.last),
        .taken = tr__pool_take(&pool, p->n_values, sizeof *l.taken),
        .free_at = tr__pool_take(&pool, n + 3, sizeof *l.free_at),
        .freed = tr__pool_take(&pool, p->n_values, sizeof *l.freed),
    };
    uint32_t *ready_at = tr__pool_take(&pool, p->n_ops + 2, sizeof *ready_at);
    packer k = {.holes = tr__pool_take(&pool, p->n_values + 1, sizeof *k.holes)};
    tr_status status = pool.failed ? TR_FAIL(TR_E_NOMEM, "no memory to place %u values", p->n_values) : TR_OK;
    if (status == TR_OK) {
        for (uint32_t r = 0, i = 0; r <= p->n_ops + 1; r++) {
            while (i < n && plan->instrs[i].ready < r)
                i++;
            ready_at[r] = i;
        }
        find_lives(plan, l.first, l.last);
        sort_by_end(plan, &l, ready_at);
        pack(plan, &k, &l);
    }
    tr__pool_fini(&pool);
    return status;
}

tr_status tr__plan_memory(tr_plan *plan) {
    tr_path seen = tr__path_seen(plan);
    tr_plan view = *plan;
    view.path = &seen;
    TR_TRY(place(&view));
    plan->slab_bytes = view.slab_bytes;
    plan->carry_bytes = view.carry_bytes;
    return TR_OK;
}
