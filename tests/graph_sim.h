/* graph_sim.h - runs a plan on symbols instead of numbers: each op yields a hash of itself and of what it read. Mirrors the
 * executor: instructions when ready, ops one at a time on a demand or an exit, slots that overlap destroy each other. What
 * must come out is what the ops, one after the other in program order, leave. */
#ifndef TERRA_TESTS_GRAPH_SIM_H
#define TERRA_TESTS_GRAPH_SIM_H

#include "graph_path.h"

/* What a storage holds: `value` seen through the look it was stored with; look 0: a mixture, seen as raw bytes. */
typedef struct content {
    uint64_t value, look;
} content;

static inline uint64_t hash2(uint64_t a, uint64_t b) {
    uint64_t h = (a ^ (b + 0x9e3779b97f4a7c15u + (a << 6) + (a >> 2))) * 0xff51afd7ed558ccdu;
    return h ^ (h >> 31);
}

static inline uint64_t look_of(const tr_meta *m) {
    uint64_t h = hash2(m->dtype, m->ndim);
    for (int d = 0; d < m->ndim; d++) {
        h = hash2(h, (uint64_t) m->shape[d]);
        if (m->shape[d] > 1)
            h = hash2(h, (uint64_t) m->strides[d] + 77);
    }
    return h | 1;
}

static inline uint64_t see(content c, const tr_meta *m, int64_t offset) {
    uint64_t look = look_of(m);
    return c.look == look && offset == 0 ? c.value : hash2(hash2(c.value, c.look), hash2(look, (uint64_t) offset));
}

static inline bool sim_whole(const tr_path *p, tr_ref r, const tr_meta *m) {
    return tr_ref_is_value(r) && m->dense && (size_t) m->numel * tr_dtype_size((tr_dtype) m->dtype) == p->value_bytes[r];
}

/* The storage after `value` was written to it. */
static inline content put_value(const tr_path *p, content old, const tr_path_operand *o, int64_t offset, uint64_t value) {
    if (sim_whole(p, o->ref, o->meta))
        return (content){value, look_of(o->meta)};
    return (content){hash2(hash2(old.value, old.look), hash2(hash2(look_of(o->meta), (uint64_t) offset), value)), 0};
}

static inline uint64_t step_value(uint32_t op, uint32_t cdtype, uint32_t dtype, int64_t attr, const uint64_t in[5]) {
    uint64_t h = hash2(hash2(op, cdtype), hash2(dtype, (uint64_t) attr));
    for (int i = 0; i < 5; i++)
        h = hash2(h, in[i]);
    return h;
}

/* ---- one op over storages found by `at` ---- */
typedef content *(*sim_find)(void *env, tr_ref ref);
typedef void (*sim_wrote)(void *env, tr_ref ref);

static inline bool written_operand(const tr_path_op *op, uint32_t i) {
    return (op->in_place && i == 0) || (i < TR_MAX_FIXED && (tr_op_info_of((tr_op) op->op)->written >> i & 1));
}

static inline uint64_t seen_operand(const tr_path *p, const tr_path_op *op, uint32_t i, sim_find at, void *env) {
    const tr_path_operand *o = &p->operands[op->operand + i];
    if (!o->meta || (i == 0 && (op->op == TR_OP_copy_ || op->op == TR_OP_fill_)))
        return 0;
    if (o->ref == TR_REF_NONE)
        return hash2(99, (uint64_t) p->args[op->operand + i]);
    return see(*at(env, o->ref), o->meta, p->args[op->operand + i]);
}

static inline void sim_op(const tr_path *p, uint32_t k, sim_find at, sim_wrote wrote, void *env) {
    const tr_path_op *op = &p->ops[k];
    const tr_op_info *info = tr_op_info_of((tr_op) op->op);
    const tr_path_operand *o = p->operands + op->operand;
    const int64_t *args = p->args + op->operand;
    if (info->op_class == TR_CLASS_EW || op->op == TR_OP__full) { // a full is a fill of something new
        uint64_t in[5] = {0};
        bool full = op->op == TR_OP__full;
        for (uint32_t i = 0; i < op->n_in; i++)
            in[full ? 1 : i] = seen_operand(p, op, i, at, env);
        uint32_t t = op->n_out ? op->n_in : 0;
        uint64_t value =
            step_value(full ? TR_OP_fill_ : op->op, op->cdtype, o[t].meta->dtype, op->n_attrs ? p->attrs[op->attr] : 0, in);
        content *c = at(env, o[t].ref);
        *c = put_value(p, *c, &o[t], args[t], value);
        wrote(env, o[t].ref);
        return;
    }
    uint64_t h = hash2(op->op, op->cdtype);
    for (uint32_t i = 0; i < op->n_in; i++)
        h = hash2(h, seen_operand(p, op, i, at, env));
    for (uint32_t i = 0; i < op->n_in + (uint32_t) op->n_out; i++) {
        if (i < op->n_in ? !written_operand(op, i) || o[i].ref == TR_REF_NONE : op->in_place)
            continue;
        content *c = at(env, o[i].ref);
        *c = put_value(p, *c, &o[i], args[i], hash2(h, i));
        wrote(env, o[i].ref);
    }
}

/* ---- program order ---- */
typedef struct oracle {
    const tr_path *p;
    content *values, *externals;
} oracle;
static inline content *oracle_at(void *env, tr_ref r) {
    oracle *o = env;
    return tr_ref_is_value(r) ? &o->values[r] : &o->externals[tr_ref_slot(r)];
}
static inline void oracle_wrote(void *env, tr_ref r) {
}

/* ---- the plan ---- */
enum { AT_NOWHERE, AT_SLOT, AT_TEMP };
typedef struct machine {
    const tr_plan *plan;
    const tr_path *p; /* with operands as the plan lays them */
    tr_path seen;
    content *slots, *temps, *externals;
    uint8_t *where, *op_done, *broken, *ran;
    uint32_t n_ran, cursor;
    dice *shared; /* several executors: any order that plan->before leaves; NULL: the list's */
    bool ended;
    uint64_t garbage;
} machine;

static inline content *machine_at(void *env, tr_ref r) {
    machine *m = env;
    if (tr_ref_is_external(r))
        return &m->externals[tr_ref_slot(r)];
    static content nowhere;
    if (m->where[r] == AT_NOWHERE) {
        nowhere = (content){++m->garbage * 0x1234567891u, 0};
        return &nowhere;
    }
    return m->where[r] == AT_SLOT ? &m->slots[r] : &m->temps[r];
}

/* What shares bytes with the slot just written is gone. */
static inline void machine_wrote(void *env, tr_ref v) {
    machine *m = env;
    const tr_plan *plan = m->plan;
    for (uint32_t w = 0; plan->copy_of && tr_ref_is_external(v) && w < m->p->n_values; w++)
        if (plan->slot[w] == TR_SLOT_COPY && plan->copy_of[w] == tr_ref_slot(v) + 1 && m->where[w] == AT_SLOT)
            m->slots[w] = (content){++m->garbage * 0x7777777711u, 0}; // and so is the copy beside it
    if (tr_ref_is_external(v) || m->where[v] != AT_SLOT || plan->slot[v] < 0)
        return;
    int64_t from = plan->slot[v], to = from + (int64_t) m->p->value_bytes[v];
    for (uint32_t w = 0; w < m->p->n_values; w++) {
        if (w == v || plan->slot[w] < 0 || plan->carry[w] != plan->carry[v])
            continue;
        if (plan->slot[w] < to && from < plan->slot[w] + (int64_t) m->p->value_bytes[w])
            m->slots[w] = (content){++m->garbage * 0x9876543211u, 0};
    }
}

static inline bool op_ran(const machine *m, uint32_t k) {
    return m->ran[m->plan->instr_of[k]] || m->op_done[k];
}

static inline void run_one(machine *m, uint32_t k) {
    const tr_path_op *op = &m->p->ops[k];
    m->op_done[k] = 1;
    m->broken[m->plan->instr_of[k]] = 1;
    for (uint32_t i = 0; i < op->n_out && !op->in_place; i++) {
        tr_ref v = m->p->operands[op->operand + op->n_in + i].ref;
        m->where[v] = AT_TEMP;
        m->temps[v] = (content){0, 0};
    }
    sim_op(m->p, k, machine_at, machine_wrote, m);
}

static inline bool same_memory(const machine *m, tr_ref a, tr_ref b) {
    if (a == b || tr_ref_is_external(a) || tr_ref_is_external(b))
        return a == b;
    if (m->where[a] != AT_SLOT || m->where[b] != AT_SLOT || m->plan->carry[a] != m->plan->carry[b])
        return false;
    const tr_plan *plan = m->plan;
    return plan->slot[a] >= 0 && plan->slot[b] >= 0 && plan->slot[a] < plan->slot[b] + (int64_t) m->p->value_bytes[b] &&
           plan->slot[b] < plan->slot[a] + (int64_t) m->p->value_bytes[a];
}

/* Loads of all arguments first, stores last; memory that is both read and written must be the same elements. */
static inline void run_program(machine *m, const tr_instr *instr) {
    const tr_path *p = m->p;
    uint64_t args[TR_EW_MAX_ARGS], results[TR_EW_MAX_STEPS];
    const tr_ew_program *e = instr->program;
    for (int i = 0; i < e->n_args; i++) {
        const tr_path_operand *o = &p->operands[instr->args[i]];
        int64_t at = p->args[instr->args[i]];
        args[i] = o->ref == TR_REF_NONE ? hash2(99, (uint64_t) at) : see(*machine_at(m, o->ref), o->meta, at);
    }
    for (int s = 0; s < e->n_steps; s++) {
        uint64_t in[5] = {0};
        for (int i = 0; i < 5; i++)
            if (e->steps[s].in[i] != TR_EW_ABSENT)
                in[i] = e->steps[s].in[i] >= 0 ? args[e->steps[s].in[i]] : results[~e->steps[s].in[i]];
        results[s] = step_value(e->steps[s].op, e->steps[s].cdtype, e->steps[s].dtype, e->steps[s].attr, in);
    }
    for (int s = 0; s < e->n_steps; s++) {
        int to = e->steps[s].store;
        if (to < 0)
            continue;
        const tr_path_operand *o = &p->operands[instr->args[to]];
        int64_t at = p->args[instr->args[to]];
        bool safe = true;
        for (int i = 0; i < e->n_args; i++) {
            const tr_path_operand *other = &p->operands[instr->args[i]];
            if (i != to && other->ref != TR_REF_NONE && same_memory(m, other->ref, o->ref))
                safe &= look_of(other->meta) == look_of(o->meta) && p->args[instr->args[i]] == at;
        }
        for (int t = 0; t < s; t++)
            if (e->steps[t].store >= 0)
                safe &= p->operands[instr->args[e->steps[t].store]].ref != o->ref;
        content *c = machine_at(m, o->ref);
        *c = safe ? put_value(p, *c, o, at, results[s]) : (content){++m->garbage * 0x5555555511u, 0};
        machine_wrote(m, o->ref);
    }
}

static inline void set_elided(machine *m, const tr_instr *instr, uint8_t from, uint8_t to) {
    for (uint32_t c = instr->first; c < instr->first + instr->n_ops; c++) {
        const tr_path_op *op = &m->p->ops[m->plan->covered[c]];
        for (uint32_t i = op->n_in; !op->in_place && i < op->n_in + (uint32_t) op->n_out; i++) {
            tr_ref v = m->p->operands[op->operand + i].ref;
            if (m->plan->slot[v] == TR_SLOT_ELIDED && m->where[v] == from)
                m->where[v] = to;
        }
    }
}

static inline bool may_run(const machine *m, uint32_t i) {
    const tr_plan *plan = m->plan;
    if (m->ran[i] || (plan->instrs[i].ready > m->cursor && !m->ended))
        return false;
    for (uint32_t b = m->shared ? plan->before_at[i] : 0; m->shared && b < plan->before_at[i + 1]; b++)
        if (!m->ran[plan->before[b]])
            return false;
    return true;
}

/* The first that hasn't run, or any that may; n_instrs: none. */
static inline uint32_t next_instr(const machine *m) {
    uint32_t found = m->plan->n_instrs, n = 0;
    for (uint32_t i = 0; i < m->plan->n_instrs; i++) {
        if (!m->shared && !m->ran[i])
            return may_run(m, i) ? i : found;
        if (m->shared && may_run(m, i) && roll(m->shared, ++n) == 0)
            found = i;
    }
    return found;
}

static inline bool step_machine(machine *m) {
    const tr_plan *plan = m->plan;
    uint32_t next = next_instr(m);
    if (next == plan->n_instrs)
        return false;
    const tr_instr *instr = &plan->instrs[next];
    const uint32_t *ops = plan->covered + instr->first;
    if (m->broken[next]) {
        for (uint32_t i = 0; i < instr->n_ops; i++)
            if (!m->op_done[ops[i]])
                run_one(m, ops[i]);
    } else if (instr->kind == TR_INSTR_EW) {
        run_program(m, instr);
    } else if (instr->kind != TR_INSTR_SKIP) {
        set_elided(m, instr, AT_NOWHERE, AT_TEMP); // a partition's own
        for (uint32_t i = 0; i < instr->n_ops; i++)
            sim_op(m->p, ops[i], machine_at, machine_wrote, m);
        set_elided(m, instr, AT_TEMP, AT_NOWHERE);
    }
    m->ran[next] = 1;
    m->n_ran++;
    return true;
}

static inline void catch_up(machine *m) {
    m->shared = NULL; // the first goes on alone
    while (step_machine(m)) {
    }
    for (uint32_t k = 0; k < m->cursor; k++)
        if (!op_ran(m, k))
            run_one(m, k);
}

static inline void machine_start(machine *m_, const tr_plan *plan) {
    const tr_path *p = plan->path;
    machine m = {.plan = plan};
    m.seen = *p;
    if (plan->looks)
        m.seen.operands = plan->looks;
    m.slots = calloc(p->n_values + 1, sizeof *m.slots);
    m.temps = calloc(p->n_values + 1, sizeof *m.temps);
    m.externals = calloc(p->n_externals + 1, sizeof *m.externals);
    m.where = calloc(p->n_values + 1, 1);
    m.op_done = calloc(p->n_ops + 1, 1);
    m.broken = calloc(plan->n_instrs + 1, 1);
    m.ran = calloc(plan->n_instrs + 1, 1);
    for (uint32_t v = 0; v < p->n_values; v++)
        m.where[v] = plan->slot[v] == TR_SLOT_ELIDED ? AT_NOWHERE : AT_SLOT;
    for (uint32_t e = 0; e < p->n_externals; e++)
        m.externals[e] = (content){1000 + e, 0};
    *m_ = m;
    m_->p = &m_->seen;
}

static inline void machine_stop(machine *m) {
    free(m->slots);
    free(m->temps);
    free(m->externals);
    free(m->where);
    free(m->op_done);
    free(m->broken);
    free(m->ran);
}

/* Everything that the program could still see after `at` ops is as program order leaves it. */
static inline bool agrees(machine *m, const oracle *o, uint32_t at, bool ended, const char *when) {
    const tr_path *p = m->p;
    for (uint32_t e = 0; e < p->n_externals; e++)
        if (m->externals[e].value != o->externals[e].value || m->externals[e].look != o->externals[e].look) {
            cr_log_error("%s, after %u ops: external %u differs", when, at, e);
            return false;
        }
    for (uint32_t k = 0; k < at; k++) {
        const tr_path_op *op = &p->ops[k];
        for (uint32_t i = op->n_in; i < op->n_in + (uint32_t) op->n_out && !op->in_place; i++) {
            tr_ref v = p->operands[op->operand + i].ref;
            if (ended ? p->death[v] != TR_DEATH_NEVER : p->death[v] < at)
                continue;
            content settled = *machine_at(m, v), *c = &settled; // what lies otherwise is copied to the program's order
            uint32_t home = m->plan->relaid ? m->plan->relaid[v] : 0;
            if (home && c->look == look_of(m->plan->looks[home - 1].meta))
                c->look = look_of(m->plan->path->operands[home - 1].meta);
            if (c->value != o->values[v].value || c->look != o->values[v].look) {
                cr_log_error("%s, after %u ops: value %u of op %u (%s) differs", when, at, v, k, tr_op_info_of(op->op)->name);
                return false;
            }
        }
    }
    return true;
}

/* Runs a plan with an exit at every cursor position, and to the end; the executor fast, slow or erratic, with demands in
 * between. A plan that says what must have run before each instruction is run in any such order. */
static inline bool simulate(const tr_plan *plan, dice *d, uint32_t stride) {
    const tr_path *p = plan->path;
    oracle o = {.p = p};
    o.values = calloc(p->n_values + 1, sizeof *o.values);
    o.externals = calloc(p->n_externals + 1, sizeof *o.externals);
    for (uint32_t e = 0; e < p->n_externals; e++)
        o.externals[e] = (content){1000 + e, 0};
    bool good = true;
    for (uint32_t exit = 0; exit <= p->n_ops && good; exit++) {
        if (exit > 0)
            sim_op(p, exit - 1, oracle_at, oracle_wrote, &o);
        if (exit % stride != 0 && exit != p->n_ops)
            continue;
        for (uint32_t speed = 0; speed < 4 && good; speed++) {
            machine m;
            machine_start(&m, plan);
            m.shared = plan->before_at ? d : NULL;
            for (m.cursor = 0; m.cursor < exit; m.cursor++) {
                for (uint32_t n = speed == 0 ? plan->n_instrs : speed == 1 ? 0 : roll(d, 4); n > 0 && step_machine(&m); n--) {
                }
                if (speed == 3 && roll(d, 12) == 0)
                    catch_up(&m);
            }
            catch_up(&m);
            good &= agrees(&m, &o, exit, false, "left");
            machine_stop(&m);
        }
    }
    for (uint32_t speed = 0; speed < 6 && good; speed++) {
        machine m;
        machine_start(&m, plan);
        m.shared = plan->before_at ? d : NULL;
        for (m.cursor = 0; m.cursor < p->n_ops; m.cursor++) {
            for (uint32_t n = speed == 0 ? plan->n_instrs : speed == 1 ? 0 : roll(d, 4); n > 0 && step_machine(&m); n--) {
            }
            if (speed >= 3 && roll(d, 12) == 0)
                catch_up(&m);
        }
        m.ended = true;
        while (step_machine(&m)) {
        }
        good &= m.n_ran == plan->n_instrs && agrees(&m, &o, p->n_ops, true, "ended");
        machine_stop(&m);
    }
    free(o.values);
    free(o.externals);
    return good;
}

#endif
