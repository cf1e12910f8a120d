/* verify.c - every rule of a plan, from its words alone: nothing here is shared with the passes that made it.
 *
 * The invariant is that at every cursor position each validated op that has not run can be run by itself from what is in
 * memory. Instructions run in list order, each when the cursor has reached its ready point, so what has run is always a
 * prefix of the list, and it holds at every position if
 *   order      ready points grow along the list and lie behind the covered ops;
 *   closure    whatever an op depends on (RAW, WAR, WAW per storage) lies before it in the list;
 *   copies     a value that is the copy beside an external dies, and is read, before the optimizer writes both;
 *   elision    a value that is never stored is touched by one instruction only, which is ready behind its death;
 *   slots      who takes a slot comes after all that touch the former owner, and is ready behind its death;
 *   programs   an elementwise program reads and writes what its ops would, in program order. */
#include "graph/pass.h"

#include "terra/alloc.h"

#include <stdlib.h>
#include <string.h>

#define BUG(...) return TR_FAIL(TR_E_INTERNAL, __VA_ARGS__)

typedef struct checker {
    const tr_plan *plan;
    const tr_path *path;
    tr__pool pool;
    uint32_t n_refs;
    uint32_t *at;         /* per op: its place in `covered` */
    uint32_t *born;       /* per value: instruction of its birth; NIL */
    uint32_t *last;       /* per value: the last instruction that touches it */
    uint32_t *version;    /* per ref: 1 + step that holds it, in a program; 0 memory */
    uint32_t *user;       /* per ref: 1 + the op that was its first user in the program */
    const tr_meta **look; /* per ref: how the first user saw it */
    uint8_t *use;         /* per ref: what happened to it in the program */
} checker;

static const char *name_of(const checker *c, uint32_t op) {
    return tr_op_info_of((tr_op) c->path->ops[op].op)->name;
}

static tr_status check_cover(checker *c) {
    const tr_plan *plan = c->plan;
    const tr_path *p = c->path;
    uint32_t next = 0;
    for (uint32_t i = 0; i < plan->n_instrs; i++) {
        const tr_instr *instr = &plan->instrs[i];
        if (instr->first != next || instr->n_ops == 0 || instr->first + instr->n_ops > p->n_ops)
            BUG("cover: instruction %u covers [%u, +%u), expected from %u", i, instr->first, instr->n_ops, next);
        if (i > 0 && instr->ready < plan->instrs[i - 1].ready)
            BUG("order: instruction %u is ready at %u, its predecessor at %u", i, instr->ready, plan->instrs[i - 1].ready);
        if (instr->ready > p->n_ops + 1)
            BUG("order: instruction %u is never ready", i);
        for (uint32_t k = instr->first; k < instr->first + instr->n_ops; k++) {
            uint32_t op = plan->covered[k];
            if (op >= p->n_ops || c->at[op] != TR__NIL)
                BUG("cover: op %u is covered twice, or is none", op);
            if (k > instr->first && op < plan->covered[k - 1])
                BUG("cover: instruction %u has op %u out of program order", i, op);
            if (plan->instr_of[op] != i)
                BUG("cover: op %u thinks it is in instruction %u, not %u", op, plan->instr_of[op], i);
            if (instr->ready <= op)
                BUG("order: instruction %u is ready at %u and covers op %u", i, instr->ready, op);
            c->at[op] = k;
        }
        next += instr->n_ops;
    }
    if (next != p->n_ops)
        BUG("cover: %u of %u ops are covered", next, p->n_ops);
    return TR_OK;
}

static tr_status check_births(checker *c) {
    const tr_path *p = c->path;
    for (uint32_t k = 0; k < p->n_ops; k++) {
        const tr_path_op *op = &p->ops[k];
        for (uint32_t i = 0; i < tr__operand_count(op); i++) {
            tr_ref v = tr__operands(p, op)[i].ref;
            if (!tr_ref_is_value(v))
                continue;
            if (v >= p->n_values)
                BUG("path: op %u (%s) names value %u of %u", k, name_of(c, k), v, p->n_values);
            uint32_t in = c->plan->instr_of[k];
            if (tr__operand_born(op, i)) {
                if (c->born[v] != TR__NIL)
                    BUG("path: value %u is born twice, again by op %u (%s)", v, k, name_of(c, k));
                c->born[v] = c->last[v] = in;
            } else if (c->born[v] == TR__NIL) {
                BUG("path: op %u (%s) names value %u before its birth", k, name_of(c, k), v);
            }
            if (in > c->last[v])
                c->last[v] = in;
        }
    }
    return TR_OK;
}

/* Places in `covered` are the order of execution: list order, and program order within an instruction. */
static tr_status check_closure(checker *c) {
    const tr_path *p = c->path;
    uint32_t *write = tr__pool_take(&c->pool, c->n_refs, sizeof *write); // 1 + place of the last write
    uint32_t *reads = tr__pool_take(&c->pool, c->n_refs, sizeof *reads); // 1 + last place of the reads since
    if (c->pool.failed)
        return TR_FAIL(TR_E_NOMEM, "no memory to verify a plan");
    for (uint32_t k = 0; k < p->n_ops; k++) {
        const tr_path_op *op = &p->ops[k];
        uint32_t place = c->at[k] + 1;
        for (uint32_t i = 0; i < tr__operand_count(op); i++) {
            tr_ref ref = tr__operands(p, op)[i].ref;
            if (ref == TR_REF_NONE)
                continue;
            uint32_t r = tr__ref_index(p, ref);
            if (write[r] > place)
                BUG("closure: op %u (%s) runs before what wrote %u", k, name_of(c, k), ref);
            if (tr__operand_written(op, i)) {
                if (reads[r] > place)
                    BUG("closure: op %u (%s) writes %u before an earlier reader has run", k, name_of(c, k), ref);
                write[r] = place;
            }
            if (place > reads[r])
                reads[r] = place;
        }
    }
    return TR_OK;
}

/* The copy beside external e is value v. */
static tr_status check_copy(checker *c, uint32_t v) {
    const tr_plan *plan = c->plan;
    const tr_path *p = c->path;
    if (!plan->copy_of || !plan->copy_of[v] || !plan->homes || plan->carry[v] || p->fetched[v])
        BUG("copies: value %u is no copy", v);
    uint32_t e = plan->copy_of[v] - 1, cast = plan->covered[plan->instrs[c->born[v]].first];
    const tr_path_operand *o = tr__operands(p, &p->ops[cast]);
    if (plan->instrs[c->born[v]].kind != TR_INSTR_COPY || plan->instrs[c->born[v]].n_ops != 1 || p->ops[cast].op != TR_OP__cast ||
        o->ref != (TR_REF_EXTERNAL | e) || o[p->ops[cast].n_in].ref != v || o[p->ops[cast].n_in].meta->dtype != TR_BF16 ||
        !o->meta->contiguous || !o[p->ops[cast].n_in].meta->contiguous || !tr_home_has_copy(plan->homes[p->n_values + e]))
        BUG("copies: value %u is not born as the copy of external %u", v, e);
    for (uint32_t w = 0; w < v; w++)
        if (plan->slot[w] == TR_SLOT_COPY && plan->copy_of[w] == plan->copy_of[v])
            BUG("copies: values %u and %u are both external %u's", w, v, e);
    for (uint32_t k = 0; k < p->n_ops; k++)
        for (uint32_t i = 0; i < tr__operand_count(&p->ops[k]); i++) {
            const tr_path_operand *at = &tr__operands(p, &p->ops[k])[i];
            uint32_t in = plan->instr_of[k];
            bool written = tr__operand_written(&p->ops[k], i);
            if (at->ref == v && written && k != cast)
                BUG("copies: op %u (%s) writes value %u", k, name_of(c, k), v);
            if (at->ref == (TR_REF_EXTERNAL | e) && written && (in <= c->last[v] || plan->instrs[in].ready <= p->death[v]))
                BUG("copies: op %u (%s) writes external %u before value %u is dead", k, name_of(c, k), e, v);
        }
    return TR_OK;
}

static tr_status check_values(checker *c) {
    const tr_plan *plan = c->plan;
    const tr_path *p = c->path;
    for (uint32_t v = 0; v < p->n_values; v++) {
        bool carried = p->death[v] == TR_DEATH_NEVER;
        if (c->born[v] == TR__NIL)
            continue;
        if (plan->carry[v] != carried)
            BUG("slots: value %u %s carried", v, carried ? "is not" : "is needlessly");
        if (plan->slot[v] == TR_SLOT_ELIDED) {
            if (carried || p->fetched[v])
                BUG("elision: value %u is elided, but %s", v, carried ? "carried" : "fetched");
            if (c->last[v] != c->born[v])
                BUG("elision: value %u of instruction %u is elided, but instruction %u touches it", v, c->born[v], c->last[v]);
            if (plan->instrs[c->born[v]].ready <= p->death[v])
                BUG("elision: value %u dies at %u, its instruction %u is ready at %u", v, p->death[v], c->born[v],
                    plan->instrs[c->born[v]].ready);
            if (plan->instrs[c->born[v]].kind == TR_INSTR_OP || plan->instrs[c->born[v]].kind == TR_INSTR_MULTI)
                BUG("elision: value %u is elided by single ops", v);
            continue;
        }
        if (plan->slot[v] == TR_SLOT_COPY) {
            TR_TRY(check_copy(c, v));
            continue;
        }
        size_t room = carried ? plan->carry_bytes : plan->slab_bytes;
        if (plan->slot[v] < 0 || plan->slot[v] % 64 || (size_t) plan->slot[v] + p->value_bytes[v] > room)
            BUG("slots: value %u lies at %lld of %zu", v, (long long) plan->slot[v], room);
    }
    return TR_OK;
}

/* Do two looks name the same elements in the same order, given the same offset? */
static bool same_look(const tr_meta *a, const tr_meta *b) {
    if (a == b)
        return true;
    if (a->dtype != b->dtype || !tr_meta_same_shape(a, b))
        return false;
    for (int d = 0; d < a->ndim; d++)
        if (a->shape[d] > 1 && a->strides[d] != b->strides[d])
            return false;
    return true;
}

/* Does this look cover all of its value, so that its offset can only be 0? */
static bool whole(const checker *c, tr_ref r, const tr_meta *m) {
    return tr_ref_is_value(r) && m->dense && (size_t) m->numel * tr_dtype_size((tr_dtype) m->dtype) == c->path->value_bytes[r];
}

/* May `v` take bytes that `w` had? At the same instruction only if that loads the very elements that it stores there. */
static bool may_follow(const checker *c, uint32_t w, uint32_t v) {
    const tr_instr *instr = &c->plan->instrs[c->born[v]];
    if (instr->ready <= c->path->death[w] || c->born[w] >= c->born[v])
        return false;
    if (c->last[w] < c->born[v])
        return true;
    if (c->last[w] != c->born[v] || instr->kind != TR_INSTR_EW || c->plan->slot[v] != c->plan->slot[w])
        return false;
    const tr_meta *look = NULL;
    for (int a = 0; a < instr->program->n_args; a++)
        if (c->path->operands[instr->args[a]].ref == v)
            look = c->path->operands[instr->args[a]].meta;
    for (int a = 0; a < instr->program->n_args; a++) {
        const tr_path_operand *o = &c->path->operands[instr->args[a]];
        if (o->ref == w && !(look && same_look(o->meta, look) && whole(c, w, o->meta) && whole(c, v, look)))
            return false;
    }
    for (int s = 0; s < instr->program->n_steps; s++) {
        int to = instr->program->steps[s].store;
        if (to >= 0 && c->path->operands[instr->args[to]].ref == w)
            return false;
    }
    return true;
}

static int by_place(const void *a, const void *b, void *context) {
    const tr_plan *plan = context;
    uint32_t v = *(const uint32_t *) a, w = *(const uint32_t *) b;
    if (plan->carry[v] != plan->carry[w])
        return plan->carry[v] - plan->carry[w];
    return plan->slot[v] < plan->slot[w] ? -1 : plan->slot[v] > plan->slot[w];
}

static tr_status check_slots(checker *c) {
    const tr_path *p = c->path;
    uint32_t *list = tr__pool_take(&c->pool, p->n_values, sizeof *list), n = 0;
    if (c->pool.failed)
        return TR_FAIL(TR_E_NOMEM, "no memory to verify a plan");
    for (uint32_t v = 0; v < p->n_values; v++)
        if (c->born[v] != TR__NIL && c->plan->slot[v] >= 0 && p->value_bytes[v] > 0)
            list[n++] = v;
    qsort_r(list, n, sizeof *list, by_place, (void *) c->plan);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t v = list[i];
        int64_t end = c->plan->slot[v] + (int64_t) p->value_bytes[v];
        for (uint32_t j = i + 1; j < n; j++) {
            uint32_t w = list[j];
            if (c->plan->carry[w] != c->plan->carry[v] || c->plan->slot[w] >= end)
                break;
            if (c->plan->carry[v] || !(may_follow(c, v, w) || may_follow(c, w, v)))
                BUG("slots: values %u (instructions %u..%u, dies at %u) and %u (%u..%u, %u) share bytes", v, c->born[v],
                    c->last[v], p->death[v], w, c->born[w], c->last[w], p->death[w]);
        }
    }
    return TR_OK;
}

/* ------------------------------------------------------------------------------------------ elementwise programs */

enum { USED = 1, WRITTEN = 2, PARTIAL = 4, MIXED = 8, SHARED = 16 };

/* Notes that an op of the program touches a storage; says whether that may be, next to its other users there. */
static bool note_use(checker *c, uint32_t op, const tr_path_operand *o, bool written) {
    uint32_t r = tr__ref_index(c->path, o->ref);
    unsigned use = (unsigned) (USED | (written ? WRITTEN : 0) | (whole(c, o->ref, o->meta) ? 0 : PARTIAL));
    if (!c->use[r]) {
        c->user[r] = op + 1;
        c->look[r] = o->meta;
    }
    if (!same_look(c->look[r], o->meta))
        use |= MIXED;
    if (c->user[r] != op + 1)
        use |= SHARED;
    use |= c->use[r];
    c->use[r] = (uint8_t) use;
    return !(use & WRITTEN) || !(use & MIXED || (use & PARTIAL && use & SHARED));
}

static const tr_path_operand *target_of(const tr_path *p, const tr_path_op *op) {
    return &tr__operands(p, op)[op->n_out ? op->n_in : 0];
}

/* An elementwise program, and what it covers: an instruction's, or a stage's of rows. */
typedef struct program {
    uint32_t index; /* of the instruction */
    const tr_ew_program *e;
    const uint32_t *ops;
    uint32_t n_ops;
    uint32_t args[TR_EW_MAX_ARGS];
    const tr_meta *space;
    const tr_rows *rows; /* where stages pass values on */
} program;

/* A value that the program's own stages elsewhere read has no slot, but is stored. */
static bool is_stored(const checker *c, const program *e, tr_ref v) {
    if (!tr_ref_is_value(v) || c->plan->slot[v] != TR_SLOT_ELIDED)
        return true;
    for (uint32_t s = 0; e->rows && s < e->rows->n_stages; s++)
        for (uint32_t i = 0; i < e->rows->stages[s].n_args; i++)
            if (c->path->operands[e->rows->stages[s].args[i].operand].ref == v)
                return true;
    return false;
}

static tr_status check_operand(checker *c, const program *instr, uint32_t s, uint32_t k, uint32_t i) {
    const tr_path *p = c->path;
    const tr_path_op *op = &p->ops[k];
    const tr_path_operand *o = &tr__operands(p, op)[i];
    int16_t in = instr->e->steps[s].in[op->op == TR_OP__full ? 1 : i]; // a full is a fill of something new
    if (!o->meta || !tr__operand_read(op, i)) {
        if (in != TR_EW_ABSENT)
            BUG("programs: step %u (%s): operand %u should be absent", s, name_of(c, k), i);
        return TR_OK;
    }
    if (in == TR_EW_ABSENT || in >= (int) instr->e->n_args || ~in >= (int) s)
        BUG("programs: step %u (%s): operand %u is %d", s, name_of(c, k), i, in);
    uint32_t version = o->ref == TR_REF_NONE ? 0 : c->version[tr__ref_index(p, o->ref)];
    if (version) {
        if (in != ~(int) (version - 1))
            BUG("programs: step %u (%s): operand %u is %d, not step %u", s, name_of(c, k), i, in, version - 1);
        if (!same_look(c->look[tr__ref_index(p, o->ref)], o->meta) || !whole(c, o->ref, o->meta))
            BUG("programs: step %u (%s): operand %u sees a result in another order", s, name_of(c, k), i);
        return TR_OK;
    }
    if (in < 0)
        BUG("programs: step %u (%s): operand %u is not in a register", s, name_of(c, k), i);
    uint32_t from = instr->args[in];
    const tr_path_operand *f = &p->operands[from];
    if (from != op->operand + i &&
        (f->ref != o->ref || f->meta != o->meta || o->ref == TR_REF_NONE || !whole(c, o->ref, o->meta)))
        BUG("programs: step %u (%s): operand %u is read through another's argument", s, name_of(c, k), i);
    bool rival = i != 0 && o->ref != TR_REF_NONE && o->ref == target_of(p, op)->ref && !whole(c, o->ref, o->meta);
    if (rival || (o->ref != TR_REF_NONE && !note_use(c, k, o, false)))
        BUG("programs: step %u (%s): operand %u may overlap what the program writes", s, name_of(c, k), i);
    return TR_OK;
}

static tr_status check_program(checker *c, const program *instr) {
    const tr_path *p = c->path;
    const uint32_t *ops = instr->ops, index = instr->index;
    const tr_ew_program *program = instr->e;
    if (!program || program->n_steps != instr->n_ops || program->n_args > TR_EW_MAX_ARGS || program->n_steps > TR_EW_MAX_STEPS)
        BUG("programs: instruction %u has a malformed program", index);
    for (uint32_t s = 0; s < instr->n_ops; s++) {
        const tr_path_op *op = &p->ops[ops[s]];
        const tr_ew_step *step = &program->steps[s];
        const tr_path_operand *target = target_of(p, op);
        if (step->op != (op->op == TR_OP__full ? TR_OP_fill_ : op->op) || step->cdtype != op->cdtype ||
            step->dtype != target->meta->dtype || op->n_in > 5 || (op->n_attrs && step->attr != p->attrs[op->attr]))
            BUG("programs: step %u of instruction %u is not op %u (%s)", s, index, ops[s], name_of(c, ops[s]));
        if (!tr_meta_same_shape(target->meta, instr->space))
            BUG("programs: step %u of instruction %u has another shape", s, index);
        for (uint32_t i = 0; i < 5; i++)
            if (i < op->n_in)
                TR_TRY(check_operand(c, instr, s, ops[s], i));
            else if (step->in[i] != TR_EW_ABSENT && op->op != TR_OP__full)
                BUG("programs: step %u of instruction %u has too many operands", s, index);
        if (!note_use(c, ops[s], target, true))
            BUG("programs: step %u (%s) may write what the program reads elsewhere", s, name_of(c, ops[s]));
        c->version[tr__ref_index(p, target->ref)] = s + 1;
    }
    for (uint32_t s = 0; s < instr->n_ops; s++) {
        const tr_path_operand *target = target_of(p, &p->ops[ops[s]]);
        bool last = c->version[tr__ref_index(p, target->ref)] == s + 1;
        bool elided = !is_stored(c, instr, target->ref);
        int store = program->steps[s].store;
        if ((store >= 0) != (last && !elided) || store >= program->n_args)
            BUG("programs: step %u (%s) of instruction %u: store %d", s, name_of(c, ops[s]), index, store);
        if (store < 0)
            continue;
        const tr_path_operand *to = &p->operands[instr->args[store]];
        bool own = instr->args[store] >= p->ops[ops[s]].operand && to <= target;
        if (to->ref != target->ref || to->meta != target->meta || !(own || whole(c, to->ref, to->meta)))
            BUG("programs: step %u (%s) of instruction %u stores elsewhere", s, name_of(c, ops[s]), index);
    }
    for (uint32_t s = 0; s < instr->n_ops; s++) {
        const tr_path_op *op = &p->ops[ops[s]];
        for (uint32_t i = 0; i < tr__operand_count(op); i++)
            if (tr__operands(p, op)[i].ref != TR_REF_NONE) {
                uint32_t r = tr__ref_index(p, tr__operands(p, op)[i].ref);
                c->version[r] = 0;
                c->use[r] = 0;
            }
    }
    return TR_OK;
}

static tr_status check_elementwise(checker *c, uint32_t index) {
    const tr_instr *instr = &c->plan->instrs[index];
    program e = {index, instr->program, c->plan->covered + instr->first, instr->n_ops, {0}, instr->space, NULL};
    for (uint32_t i = 0; e.e && i < e.e->n_args && i < TR_EW_MAX_ARGS; i++)
        e.args[i] = instr->args[i];
    return check_program(c, &e);
}

/* Do two ops touch one storage, one of them writing it? */
static bool are_tied(const tr_path *p, uint32_t a, uint32_t b) {
    for (uint32_t i = 0; i < tr__operand_count(&p->ops[a]); i++)
        for (uint32_t j = 0; j < tr__operand_count(&p->ops[b]); j++) {
            tr_ref r = tr__operands(p, &p->ops[a])[i].ref;
            if (r != TR_REF_NONE && r == tr__operands(p, &p->ops[b])[j].ref &&
                (tr__operand_written(&p->ops[a], i) || tr__operand_written(&p->ops[b], j)))
                return true;
        }
    return false;
}

static tr_status check_stage_order(const checker *c, uint32_t index) {
    const tr_rows *r = c->plan->instrs[index].rows;
    for (uint32_t s = 0; s < r->n_stages; s++)
        for (uint32_t t = s + 1; t < r->n_stages; t++)
            for (uint32_t i = 0; i < r->stages[s].n_ops; i++)
                for (uint32_t j = 0; j < r->stages[t].n_ops; j++)
                    if (r->stages[s].ops[i] > r->stages[t].ops[j] && are_tied(c->path, r->stages[s].ops[i], r->stages[t].ops[j]))
                        BUG("rows: instruction %u runs op %u before op %u", index, r->stages[s].ops[i], r->stages[t].ops[j]);
    return TR_OK;
}

/* Stages cover the instruction's ops, each after what it hangs on; what the group writes is touched slice by slice only, the
 * same bytes by all; the rest may be shared by slices. */
static tr_status check_rows(checker *c, uint32_t index) {
    const tr_path *p = c->path;
    const tr_instr *instr = &c->plan->instrs[index];
    const tr_rows *r = instr->rows;
    uint32_t n_ops = 0;
    if (!r || r->n_stages == 0 || r->chunk <= 0 || r->n_chunks <= 0)
        BUG("rows: instruction %u has no stages", index);
    for (uint32_t k = instr->first; k < instr->first + instr->n_ops; k++)
        for (uint32_t i = 0; i < tr__operand_count(&p->ops[c->plan->covered[k]]); i++) {
            const tr_path_operand *o = &tr__operands(p, &p->ops[c->plan->covered[k]])[i];
            if (o->ref != TR_REF_NONE && tr__operand_written(&p->ops[c->plan->covered[k]], i))
                c->use[tr__ref_index(p, o->ref)] = WRITTEN;
        }
    for (uint32_t s = 0; s < r->n_stages; s++) {
        const tr_row_stage *stage = &r->stages[s];
        n_ops += stage->n_ops;
        for (uint32_t j = 0; j < stage->n_ops; j++) {
            uint32_t k = stage->ops[j];
            if (k >= p->n_ops || c->plan->instr_of[k] != index)
                BUG("rows: stage %u of instruction %u has op %u of another", s, index, k);
            for (uint32_t i = 0; i < tr__operand_count(&p->ops[k]); i++) {
                const tr_path_operand *o = &tr__operands(p, &p->ops[k])[i];
                if (o->ref == TR_REF_NONE || c->use[tr__ref_index(p, o->ref)] != WRITTEN)
                    continue;
                if (tr__row_kind_of(p, k, i) == TR__ROW_DRAWN) {
                    if (!r->draws || c->plan->slot[tr__operands(p, &p->ops[k])[p->ops[k].n_in + 1].ref] == TR_SLOT_ELIDED)
                        BUG("rows: op %u (%s) draws into nothing", k, name_of(c, k));
                    continue;
                }
                bool apart = r->n_chunks == 1 || (tr__row_kind_of(p, k, i) == TR__ROW_SLICED &&
                             tr__row_is_apart(p, o->ref, o->meta, p->args[p->ops[k].operand + i], r->n_chunks));
                if (!apart)
                    BUG("rows: op %u (%s) touches %u across slices", k, name_of(c, k), o->ref);
                if (tr_ref_is_external(o->ref))
                    continue;
                if (tr__operand_born(&p->ops[k], i))
                    c->version[o->ref] = s + 1;
                else if (c->version[o->ref] == 0 && c->born[o->ref] == index)
                    BUG("rows: op %u (%s) of stage %u comes before the birth of %u", k, name_of(c, k), s, o->ref);
            }
        }
        for (uint32_t i = 0; i < stage->n_args; i++) {
            const tr_row_arg *a = &stage->args[i];
            const tr_path_operand *o = &p->operands[a->operand];
            if (o->ref == TR_REF_NONE)
                continue;
            bool elided = tr_ref_is_value(o->ref) && c->plan->slot[o->ref] == TR_SLOT_ELIDED;
            size_t part = elided ? p->value_bytes[o->ref] / (size_t) r->n_chunks : 0;
            if (elided != (a->scratch >= 0) || (elided && (size_t) a->scratch + part > r->scratch))
                BUG("rows: stage %u of instruction %u: value %u lies nowhere", s, index, o->ref);
            if (a->step && (a->meta->shape[0] * r->n_chunks != o->meta->shape[0] ||
                            a->step != o->meta->strides[0] * a->meta->shape[0] * (int64_t) tr_dtype_size((tr_dtype) o->meta->dtype)))
                BUG("rows: stage %u of instruction %u: argument %u is cut wrongly", s, index, i);
            bool drawn = !stage->program && tr__row_kind_of(p, stage->ops[0], a->operand - p->ops[stage->ops[0]].operand) == TR__ROW_DRAWN;
            bool repeats = o->meta->ndim && o->meta->strides[0] == 0; // each slice is the same elements
            if (!a->step && !drawn && !repeats && r->n_chunks > 1 && (c->use[tr__ref_index(p, o->ref)] == WRITTEN || a->meta != o->meta))
                BUG("rows: stage %u of instruction %u: argument %u is taken whole", s, index, i);
        }
    }
    TR_TRY(check_stage_order(c, index));
    if (n_ops != instr->n_ops)
        BUG("rows: instruction %u has stages of %u ops, covers %u", index, n_ops, instr->n_ops);
    for (uint32_t k = instr->first; k < instr->first + instr->n_ops; k++)
        for (uint32_t i = 0; i < tr__operand_count(&p->ops[c->plan->covered[k]]); i++) {
            const tr_path_operand *o = &tr__operands(p, &p->ops[c->plan->covered[k]])[i];
            if (o->ref != TR_REF_NONE)
                c->use[tr__ref_index(p, o->ref)] = 0, c->version[tr__ref_index(p, o->ref)] = 0;
        }
    for (uint32_t s = 0; s < r->n_stages; s++) {
        const tr_row_stage *stage = &r->stages[s];
        if (!stage->program)
            continue;
        program e = {index, stage->program, stage->ops, stage->n_ops, {0}, NULL, r};
        for (uint32_t i = 0; i < stage->n_args && i < TR_EW_MAX_ARGS; i++)
            e.args[i] = stage->args[i].operand;
        e.space = target_of(p, &p->ops[stage->ops[0]])->meta;
        TR_TRY(check_program(c, &e));
    }
    return TR_OK;
}

/* Updates of one pass: the same op, and nothing written by one is touched by another. */
static tr_status check_multi(checker *c, uint32_t index) {
    const tr_path *p = c->path;
    const tr_instr *instr = &c->plan->instrs[index];
    const uint32_t *ops = c->plan->covered + instr->first;
    const tr_path_op *first = &p->ops[ops[0]];
    for (uint32_t s = 0; s < instr->n_ops; s++) {
        const tr_path_op *op = &p->ops[ops[s]];
        if (op->op != first->op || op->n_in != first->n_in || op->n_out != first->n_out || op->cdtype != first->cdtype ||
            memcmp(p->attrs + op->attr, p->attrs + first->attr, (size_t) op->n_attrs * 8) != 0)
            BUG("multi: op %u (%s) differs from op %u", ops[s], name_of(c, ops[s]), ops[0]);
        for (uint32_t i = 0; i < tr__operand_count(op); i++) {
            const tr_path_operand *o = &tr__operands(p, op)[i];
            if (o->ref == TR_REF_NONE)
                continue;
            uint32_t r = tr__ref_index(p, o->ref);
            bool written = tr__operand_written(op, i);
            if (c->use[r] && c->user[r] != ops[s] + 1 && (written || (c->use[r] & WRITTEN)))
                BUG("multi: op %u (%s) touches what op %u writes", ops[s], name_of(c, ops[s]), c->user[r] - 1);
            c->use[r] |= (uint8_t) (USED | (written ? WRITTEN : 0));
            c->user[r] = ops[s] + 1;
        }
    }
    for (uint32_t s = 0; s < instr->n_ops; s++)
        for (uint32_t i = 0; i < tr__operand_count(&p->ops[ops[s]]); i++)
            if (tr__operands(p, &p->ops[ops[s]])[i].ref != TR_REF_NONE)
                c->use[tr__ref_index(p, tr__operands(p, &p->ops[ops[s]])[i].ref)] = 0;
    return TR_OK;
}

/* What is skipped may have no effect but its own values. */
static tr_status check_skip(checker *c, uint32_t index) {
    const tr_path *p = c->path;
    const tr_instr *instr = &c->plan->instrs[index];
    for (uint32_t s = 0; s < instr->n_ops; s++) {
        uint32_t k = c->plan->covered[instr->first + s];
        const tr_path_op *op = &p->ops[k];
        for (uint32_t i = 0; i < tr__operand_count(op); i++) {
            tr_ref v = tr__operands(p, op)[i].ref;
            if (v != TR_REF_NONE && tr__operand_written(op, i) && !(tr_ref_is_value(v) && c->plan->slot[v] == TR_SLOT_ELIDED))
                BUG("skip: op %u (%s) writes %u, which is stored", k, name_of(c, k), v);
        }
    }
    return TR_OK;
}

/* A partition stores every result that isn't elided, and reads and writes only operands of its ops. */
static tr_status check_partition(checker *c, uint32_t index) {
    const tr_path *p = c->path;
    const tr_instr *instr = &c->plan->instrs[index];
    if (!instr->dnn)
        BUG("partition: instruction %u has none", index);
    for (uint32_t s = 0; s < instr->n_ops; s++) {
        const tr_path_op *op = &p->ops[c->plan->covered[instr->first + s]];
        for (uint32_t i = op->n_in; i < tr__operand_count(op); i++) {
            bool stored = false;
            for (uint32_t a = 0; a < instr->n_args; a++)
                stored |= instr->args[a] == op->operand + i;
            if (stored == (c->plan->slot[tr__operands(p, op)[i].ref] == TR_SLOT_ELIDED))
                BUG("partition: instruction %u %s value %u", index, stored ? "stores" : "forgets", tr__operands(p, op)[i].ref);
        }
    }
    for (uint32_t a = 0; a < instr->n_args + instr->n_guards; a++) {
        bool own = false;
        for (uint32_t s = 0; s < instr->n_ops; s++) {
            const tr_path_op *op = &p->ops[c->plan->covered[instr->first + s]];
            own |= instr->args[a] >= op->operand && instr->args[a] < op->operand + tr__operand_count(op);
        }
        if (!own || (p->operands[instr->args[a]].ref == TR_REF_NONE) != (a >= instr->n_args))
            BUG("partition: argument %u of instruction %u is operand %u", a, index, instr->args[a]);
    }
    return TR_OK;
}

/* batch_norm [add] [relu], or [add] threshold_backward batch_norm_backward: each the next one's operand, all of it. What the latter
 * add is kept nowhere, but their masked sum is. */
static tr_status check_norm(checker *c, uint32_t index) {
    const tr_path *p = c->path;
    const tr_instr *instr = &c->plan->instrs[index];
    const uint32_t *ops = c->plan->covered + instr->first;
    bool forward = p->ops[ops[0]].op == TR_OP_batch_norm;
    static const tr_op behind[] = {TR_OP_add, TR_OP_relu}, before[] = {TR_OP_add, TR_OP_threshold_backward, TR_OP_batch_norm_backward};
    if (instr->n_ops < 2 || instr->n_ops > 3 || (!forward && p->ops[ops[0]].op != before[3 - instr->n_ops]))
        BUG("norm: instruction %u begins with op %u (%s)", index, ops[0], name_of(c, ops[0]));
    for (uint32_t s = 1; s < instr->n_ops; s++) {
        const tr_path_op *from = &p->ops[ops[s - 1]], *op = &p->ops[ops[s]];
        const tr_path_operand *v = &tr__operands(p, from)[from->n_in], *o = tr__operands(p, op);
        bool known = forward ? op->op == behind[1] || (s == 1 && op->op == behind[0]) : op->op == before[3 - instr->n_ops + s];
        bool first = o[0].ref == v->ref && o[0].meta == v->meta;
        bool second = op->op == TR_OP_add && o[1].ref == v->ref && o[1].meta == v->meta;
        if (!known || first == second || (op->in_place && !first))
            BUG("norm: op %u (%s) doesn't follow op %u", ops[s], name_of(c, ops[s]), ops[s - 1]);
        bool elided = c->plan->slot[v->ref] == TR_SLOT_ELIDED;
        bool wanted = forward ? !op->in_place : s == 1 && instr->n_ops == 3;
        if ((forward || instr->n_ops == 3) && elided != wanted)
            BUG("norm: value %u between ops %u and %u is %s", v->ref, ops[s - 1], ops[s], elided ? "elided" : "not written");
    }
    return TR_OK;
}

/* An op whose bfloat16 result a cast takes, all of it, to a value that is at home as bfloat16. */
static tr_status check_narrow(checker *c, uint32_t index) {
    const tr_path *p = c->path;
    const tr_instr *instr = &c->plan->instrs[index];
    const uint32_t *ops = c->plan->covered + instr->first;
    if (instr->n_ops != 2 || p->ops[ops[1]].op != TR_OP__cast || p->ops[ops[0]].n_out != 1 || p->ops[ops[0]].in_place)
        BUG("narrow: instruction %u begins with op %u (%s)", index, ops[0], name_of(c, ops[0]));
    const tr_path_operand *made = &tr__operands(p, &p->ops[ops[0]])[p->ops[ops[0]].n_in], *o = tr__operands(p, &p->ops[ops[1]]);
    const tr_path_operand *result = &o[p->ops[ops[1]].n_in];
    if (o->ref != made->ref || o->meta != made->meta || o->meta->dtype != TR_BF16 || !whole(c, o->ref, o->meta) ||
        c->plan->slot[o->ref] != TR_SLOT_ELIDED)
        BUG("narrow: op %u doesn't cast what op %u makes", ops[1], ops[0]);
    if (result->meta->dtype != TR_F32 || !tr_meta_same_shape(result->meta, o->meta) || !o->meta->contiguous ||
        !result->meta->contiguous || !c->plan->homes || !tr_home_is_bf16(c->plan->homes[result->ref]))
        BUG("narrow: op %u (%s) is left out, but its result isn't at home as bfloat16", ops[1], name_of(c, ops[1]));
    return TR_OK;
}

static tr_status check_cast(checker *c, uint32_t index) {
    const tr_instr *instr = &c->plan->instrs[index];
    const tr_path_op *op = &c->path->ops[c->plan->covered[instr->first]];
    if (instr->n_ops != 1 || op->op != TR_OP__cast || c->plan->slot[target_of(c->path, op)->ref] != TR_SLOT_COPY)
        BUG("copies: instruction %u makes none", index);
    return TR_OK;
}

static tr_status check_instructions(checker *c) {
    for (uint32_t i = 0; i < c->plan->n_instrs; i++) {
        const tr_instr *instr = &c->plan->instrs[i];
        switch (instr->kind) {
            case TR_INSTR_OP:
                if (instr->n_ops != 1)
                    BUG("cover: instruction %u is a single op, but covers %u", i, instr->n_ops);
                break;
            case TR_INSTR_EW:
                TR_TRY(check_elementwise(c, i));
                break;
            case TR_INSTR_MULTI:
                TR_TRY(check_multi(c, i));
                break;
            case TR_INSTR_SKIP:
                TR_TRY(check_skip(c, i));
                break;
            case TR_INSTR_ROWS:
                TR_TRY(check_rows(c, i));
                break;
            case TR_INSTR_NORM:
                TR_TRY(check_norm(c, i));
                break;
            case TR_INSTR_COPY:
                TR_TRY(check_cast(c, i));
                break;
            case TR_INSTR_NARROW:
                TR_TRY(check_narrow(c, i));
                break;
            case TR_INSTR_DNN:
                TR_TRY(check_partition(c, i));
                break;
            default:
                break;
        }
    }
    return TR_OK;
}

static tr_status check_all(checker *c) {
    TR_TRY(check_cover(c));
    TR_TRY(check_births(c));
    TR_TRY(check_closure(c));
    TR_TRY(check_values(c));
    TR_TRY(check_slots(c));
    return check_instructions(c);
}

static void *filled(tr__pool *pool, uint32_t n) {
    void *block = tr__pool_take(pool, n, 4);
    if (block)
        memset(block, 0xff, (size_t) n * 4);
    return block;
}

/* Who lies otherwise than the program sees it lives inside the iteration, and all operands that name it see it alike. */
static tr_status check_looks(const tr_plan *plan) {
    const tr_path *p = plan->path;
    for (uint32_t i = 0; plan->looks && i < p->n_operands; i++) {
        const tr_path_operand *from = &p->operands[i], *to = &plan->looks[i];
        uint32_t home = tr_ref_is_value(from->ref) ? plan->relaid[from->ref] : 0;
        if (from->ref != to->ref || (!home && from->meta != to->meta))
            BUG("looks: operand %u differs from the path's", i);
        if (!home)
            continue;
        const tr_path_operand *born = &p->operands[home - 1], *lies = &plan->looks[home - 1];
        if (born->ref != from->ref || from->meta != born->meta || to->meta != lies->meta || !to->meta->dense ||
            to->meta->dtype != from->meta->dtype || !tr_meta_same_shape(to->meta, from->meta) ||
            (size_t) to->meta->numel * tr_dtype_size((tr_dtype) to->meta->dtype) != p->value_bytes[from->ref])
            BUG("looks: operand %u sees value %u otherwise than it lies", i, from->ref);
        if (p->death[from->ref] == TR_DEATH_NEVER)
            BUG("looks: value %u is carried, and lies otherwise than the program sees it", from->ref);
    }
    return TR_OK;
}

static const tr_home *home_of(const tr_plan *plan, const tr_path_operand *o) {
    return o->ref == TR_REF_NONE ? NULL : plan->homes[tr__ref_index(plan->path, o->ref)];
}

/* What is at home as bfloat16 is made by a cast that is left out, and read as a gradient by optimizers, no more. */
static tr_status check_bf16(const tr_plan *plan, uint32_t k, uint32_t i) {
    const tr_path_op *op = &plan->path->ops[k];
    const tr_path_operand *o = tr__operands(plan->path, op);
    bool made = op->op == TR_OP__cast && i == op->n_in && plan->instrs[plan->instr_of[k]].kind == TR_INSTR_NARROW;
    bool read = tr_op_info_of((tr_op) op->op)->op_class == TR_CLASS_OPTIM && i == 1 && o[0].meta == o[1].meta;
    if (!tr_ref_is_value(o[i].ref) || plan->path->fetched[o[i].ref] || !(made || read))
        BUG("homes: op %u (%s) can't have operand %u as bfloat16", k, tr_op_info_of((tr_op) op->op)->name, i);
    return TR_OK;
}

/* Who has a home is touched by convolutions, as weights, and by elementwise work over tensors that all have it. */
static tr_status check_homes(const tr_plan *plan) {
    const tr_path *p = plan->path;
    for (uint32_t k = 0; plan->homes && k < p->n_ops; k++) {
        const tr_path_op *op = &p->ops[k];
        const tr_path_operand *o = tr__operands(p, op);
        tr_op_class class = tr_op_info_of((tr_op) op->op)->op_class;
        bool alike = class == TR_CLASS_EW || class == TR_CLASS_OPTIM;
        const tr_path_operand *first = NULL;
        for (uint32_t i = 0; i < tr__operand_count(op); i++) {
            const tr_home *home = home_of(plan, &o[i]);
            if (!home)
                continue;
            if (!o[i].meta->contiguous || (size_t) o[i].meta->numel * tr_dtype_size((tr_dtype) o[i].meta->dtype) != tr_home_bytes(home))
                BUG("homes: op %u sees only part of operand %u", k, i);
            if (tr_home_has_copy(home)) {
                if (tr__operand_written(op, i) && (class != TR_CLASS_OPTIM || i != 0))
                    BUG("homes: op %u (%s) writes operand %u, but not its copy", k, tr_op_info_of((tr_op) op->op)->name, i);
                continue;
            }
            if (tr_home_is_bf16(home)) {
                TR_TRY(check_bf16(plan, k, i));
                continue;
            }
            bool weights = op->op == TR_OP_conv2d_backward_weights ? i == op->n_in : i == 1 && class == TR_CLASS_CONV;
            if (!alike && !weights)
                BUG("homes: op %u (%s) can't have operand %u at home", k, tr_op_info_of((tr_op) op->op)->name, i);
            first = first ? first : &o[i];
        }
        for (uint32_t i = 0; alike && first && i < tr__operand_count(op); i++)
            if (o[i].ref != TR_REF_NONE && o[i].meta->numel != 1 && !tr_home_is_bf16(home_of(plan, &o[i])) &&
                !tr_home_has_copy(home_of(plan, &o[i])) &&
                (home_of(plan, &o[i]) != home_of(plan, first) || o[i].meta != first->meta))
                BUG("homes: op %u (%s): operand %u lies otherwise", k, tr_op_info_of((tr_op) op->op)->name, i);
        if (op->op == TR_OP_conv2d_backward_weights && (home_of(plan, &o[0]) || home_of(plan, &o[1])))
            BUG("homes: op %u reads images at home", k);
    }
    return TR_OK;
}

tr_status tr_plan_verify(const tr_plan *original) {
    TR_TRY(check_looks(original));
    TR_TRY(check_homes(original));
    tr_path seen = tr__path_seen(original);
    tr_plan view = *original, *plan = &view;
    view.path = &seen;
    checker c = {.plan = plan, .path = plan->path, .n_refs = plan->path->n_values + plan->path->n_externals};
    c.at = filled(&c.pool, c.path->n_ops);
    c.born = filled(&c.pool, c.path->n_values);
    c.last = filled(&c.pool, c.path->n_values);
    c.version = tr__pool_take(&c.pool, c.n_refs, 4);
    c.user = tr__pool_take(&c.pool, c.n_refs, 4);
    c.look = tr__pool_take(&c.pool, c.n_refs, sizeof *c.look);
    c.use = tr__pool_take(&c.pool, c.n_refs, 1);
    tr_status status = c.pool.failed ? TR_FAIL(TR_E_NOMEM, "no memory to verify a plan") : check_all(&c);
    tr__pool_fini(&c.pool);
    return status;
}
