/* pass_elementwise.c - chains of elementwise ops in one instruction.
 *
 * Ops over one iteration space join the groups of those that they hang on (vertical), and of those that read the same
 * large input (horizontal), if the result is still a program: within the engine's limits, its storages in one static
 * single assignment (an in-place op makes a new version of its storage; the last one is stored), and memory that it
 * writes touched through one look only. Looks with run-time offsets may overlap in ways that nobody knows here: only a look
 * that covers all of its value, whose offset is then 0, may be shared by two ops when one of them writes.
 *
 * What a program makes and only its own ops see needs no memory, if it is dead by the time the instruction should run. A
 * value that lives longer, saved for backward say, is stored rather than waited for. */
#include "graph/pass.h"

#include "terra/alloc.h"

#include <string.h>

/* What a draft knows of a storage. */
typedef struct storage {
    uint32_t stamp;
    uint32_t user;    /* the first op that touched it */
    uint32_t target;  /* operand that wrote it last */
    uint16_t version; /* 1 + step that holds it; 0: memory does */
    uint16_t arg;     /* 1 + argument that loads all of it */
    bool shared;      /* by several ops */
    bool written, partial, mixed;
    const tr_meta *look;
} storage;

typedef struct tr__ew_scratch {
    storage *storages; /* per ref */
    uint32_t stamp;
    uint32_t *reader; /* per ref: 1 + the last elementwise op that read it */
    /* the draft */
    uint32_t n_ops, ops[TR_EW_MAX_STEPS];
    uint32_t args[TR_EW_MAX_ARGS];
    tr_ew_program program;
} draft;

static const tr_path_operand *target_of(const tr_path *p, const tr_path_op *op) {
    return &tr__operands(p, op)[op->n_out ? op->n_in : 0];
}

bool tr__same_look(const tr_meta *a, const tr_meta *b) {
    if (a == b)
        return true;
    if (a->dtype != b->dtype || !tr_meta_same_shape(a, b))
        return false;
    for (int d = 0; d < a->ndim; d++)
        if (a->shape[d] > 1 && a->strides[d] != b->strides[d])
            return false;
    return true;
}

bool tr__is_whole(const tr_path *p, tr_ref r, const tr_meta *m) {
    return tr_ref_is_value(r) && m->dense && (size_t) m->numel * tr_dtype_size((tr_dtype) m->dtype) == p->value_bytes[r];
}

static bool can_step(const tr_path *p, const tr_path_op *op) {
    const tr_op_info *info = tr_op_info_of((tr_op) op->op);
    if (op->op == TR_OP__full)
        return op->n_in == 1 && op->n_out == 1;
    if (info->op_class != TR_CLASS_EW || op->n_in > 5 || op->n_out > 1)
        return false;
    return tr_ew_fusible((tr_op) op->op, (tr_dtype) op->cdtype, (tr_dtype) target_of(p, op)->meta->dtype);
}

/* ------------------------------------------------------------------------------------------ drafts */

static storage *storage_of(tr__graph *g, tr_ref r) {
    storage *s = &g->ew->storages[tr__ref_index(g->path, r)];
    if (s->stamp != g->ew->stamp)
        *s = (storage){.stamp = g->ew->stamp};
    return s;
}

/* Takes note of a use of memory; false: it may overlap another one, and one of them writes. */
static bool use_memory(tr__graph *g, storage *s, uint32_t k, const tr_path_operand *o, bool writes) {
    bool first = s->look == NULL, partial = s->partial || !tr__is_whole(g->path, o->ref, o->meta);
    if (first) {
        s->look = o->meta;
        s->user = k;
    }
    s->mixed |= !tr__same_look(s->look, o->meta);
    s->shared |= s->user != k;
    s->partial = partial;
    s->written |= writes;
    return !s->written || (!s->mixed && !(s->partial && s->shared));
}

static int new_argument(draft *d, uint32_t operand) {
    if (d->program.n_args == TR_EW_MAX_ARGS)
        return -1;
    d->args[d->program.n_args] = operand;
    return d->program.n_args++;
}

/* Operand i of op k as a step's input; false: it cannot be one. */
static bool draft_operand(tr__graph *g, uint32_t k, uint32_t i, int16_t *in) {
    const tr_path_op *op = &g->path->ops[k];
    const tr_path_operand *o = &tr__operands(g->path, op)[i];
    *in = TR_EW_ABSENT;
    if (!o->meta || !tr__operand_read(op, i))
        return true;
    int arg;
    if (o->ref == TR_REF_NONE) {
        arg = new_argument(g->ew, op->operand + i);
    } else {
        storage *s = storage_of(g, o->ref);
        if (s->version) {
            *in = (int16_t) ~(s->version - 1);
            return tr__same_look(s->look, o->meta);
        }
        bool whole = tr__is_whole(g->path, o->ref, o->meta);
        if (!use_memory(g, s, k, o, false))
            return false;
        if (i > 0 && !whole && o->ref == target_of(g->path, op)->ref)
            return false;
        bool again = whole && s->arg && g->path->operands[g->ew->args[s->arg - 1]].meta == o->meta;
        arg = again ? s->arg - 1 : new_argument(g->ew, op->operand + i);
        if (arg >= 0 && (whole || (i == 0 && op->in_place)))
            s->arg = (uint16_t) (arg + 1);
    }
    *in = (int16_t) arg;
    return arg >= 0;
}

static bool draft_step(tr__graph *g, uint32_t k) {
    const tr_path *p = g->path;
    const tr_path_op *op = &p->ops[k];
    const tr_path_operand *target = target_of(p, op);
    tr_ew_program *program = &g->ew->program;
    tr_ew_step *step = &program->steps[program->n_steps];
    bool full = op->op == TR_OP__full;
    *step = (tr_ew_step){
        .op = full ? TR_OP_fill_ : op->op,
        .cdtype = op->cdtype,
        .dtype = target->meta->dtype,
        .in = {TR_EW_ABSENT, TR_EW_ABSENT, TR_EW_ABSENT, TR_EW_ABSENT, TR_EW_ABSENT},
        .store = -1,
        .attr = op->n_attrs ? p->attrs[op->attr] : 0,
    };
    for (uint32_t i = 0; i < op->n_in; i++)
        if (!draft_operand(g, k, i, &step->in[full ? 1 : i]))
            return false;
    storage *s = storage_of(g, target->ref);
    if (s->version ? !tr__same_look(s->look, target->meta) : !use_memory(g, s, k, target, true))
        return false;
    bool fresh = op->n_out && !op->in_place;
    if (fresh && !tr__is_whole(p, target->ref, target->meta))
        return false;
    s->written = true;
    // A version of part of a storage is not the storage: who reads on needs memory, which use_memory refuses.
    if (!s->partial)
        s->version = (uint16_t) (program->n_steps + 1);
    s->target = (uint32_t) (target - p->operands);
    program->n_steps++;
    return true;
}

int tr__passed_on(const tr_ew_program *e, int s) {
    for (;;) {
        const tr_ew_step *step = &e->steps[s];
        if (step->op != TR_OP_clone && step->op != TR_OP__contiguous && step->op != TR_OP__cast && step->op != TR_OP_copy_)
            return -1;
        int in = step->in[step->op == TR_OP_copy_ ? 1 : 0];
        if (in >= 0)
            return in;
        s = ~in;
    }
}

/* The engine reads elements that are only passed on when it stores them: no other store may have overwritten them. */
static bool stores_are_apart(const tr__graph *g) {
    const draft *d = g->ew;
    const tr_path_operand *operands = g->path->operands;
    for (int s = 0; s < d->program.n_steps; s++) {
        int from = d->program.steps[s].store >= 0 ? tr__passed_on(&d->program, s) : -1;
        for (int t = 0; from >= 0 && t < d->program.n_steps; t++)
            if (d->program.steps[t].store >= 0 && t != s &&
                operands[d->args[d->program.steps[t].store]].ref == operands[d->args[from]].ref)
                return false;
    }
    return true;
}

/* Each storage's last version goes to memory, unless it is elided. */
static bool draft_stores(tr__graph *g, bool (*elides)(const tr__graph *g, tr_ref v, const void *env), const void *env) {
    const tr_path *p = g->path;
    draft *d = g->ew;
    for (uint32_t i = 0; i < d->n_ops; i++) {
        const tr_path_operand *target = target_of(p, &p->ops[d->ops[i]]);
        storage *s = storage_of(g, target->ref);
        if (s->target != (uint32_t) (target - p->operands))
            continue;
        if (tr_ref_is_value(target->ref) && elides(g, target->ref, env))
            continue;
        bool loaded = s->arg && p->operands[d->args[s->arg - 1]].meta == target->meta;
        int arg = loaded ? s->arg - 1 : new_argument(d, s->target);
        if (arg < 0)
            return false;
        d->program.steps[i].store = (int16_t) arg;
    }
    return stores_are_apart(g);
}

/* The program of the ops in draft->ops. */
static bool make_draft(tr__graph *g, bool (*elides)(const tr__graph *g, tr_ref v, const void *env), const void *env) {
    draft *d = g->ew;
    d->stamp++;
    d->program.n_steps = d->program.n_args = 0;
    for (uint32_t i = 0; i < d->n_ops; i++)
        if (!draft_step(g, d->ops[i]))
            return false;
    return draft_stores(g, elides, env);
}

/* ------------------------------------------------------------------------------------------ joining */

typedef struct pair {
    uint32_t a, b; /* groups */
    uint32_t tail; /* their last op */
    uint32_t deadline;
} pair;

static bool in_pair(const tr__graph *g, const pair *x, uint32_t op) {
    return g->group[op] == x->a || g->group[op] == x->b;
}

static bool pair_elides(const tr__graph *g, tr_ref v, const void *env) {
    const pair *x = env;
    const tr_path *p = g->path;
    if (p->fetched[v] || p->death[v] == TR_DEATH_NEVER || g->birth[v] == TR__NIL)
        return false;
    uint32_t ready = p->death[v] + 1;
    if (ready > x->deadline || ready > x->tail + 1 + tr__patience(p->value_bytes[v]))
        return false;
    for (uint32_t t = g->touch.at[v]; t < g->touch.at[v + 1]; t++)
        if (!in_pair(g, x, g->touch.item[t]))
            return false;
    return true;
}

static bool is_candidate(const tr__graph *g, uint32_t group) {
    const tr__group *x = &g->groups[group];
    return x->kind == TR_INSTR_EW || (x->kind == TR_INSTR_OP && can_step(g->path, &g->path->ops[x->head]));
}

static const tr_meta *space_of(const tr__graph *g, uint32_t group) {
    return target_of(g->path, &g->path->ops[g->groups[group].head])->meta;
}

/* Members of both, in program order. */
static void gather(tr__graph *g, uint32_t a, uint32_t b) {
    uint32_t x = g->groups[a].head, y = b == TR__NIL ? TR__NIL : g->groups[b].head;
    g->ew->n_ops = 0;
    while (x != TR__NIL || y != TR__NIL) {
        uint32_t *least = y == TR__NIL || (x != TR__NIL && x < y) ? &x : &y;
        g->ew->ops[g->ew->n_ops++] = *least;
        *least = g->next[*least];
    }
}

static bool elides_nothing(const tr__graph *g, tr_ref v, const void *env) {
    return false;
}

/* A single op need not be one: its own operands may overlap. */
bool tr__is_program(tr__graph *g, uint32_t group) {
    if (!is_candidate(g, group))
        return false;
    gather(g, group, TR__NIL);
    return make_draft(g, elides_nothing, NULL);
}

static void try_join(tr__graph *g, uint32_t a, uint32_t b) {
    const tr__group *x = &g->groups[a], *y = &g->groups[b];
    if (a == b || x->n_ops + y->n_ops > TR_EW_MAX_STEPS || !is_candidate(g, a) || !is_candidate(g, b))
        return;
    const tr_meta *space = space_of(g, a);
    if (!tr_meta_same_shape(space, space_of(g, b)))
        return;
    pair both = {.a = a, .b = b};
    both.tail = x->tail > y->tail ? x->tail : y->tail;
    both.deadline = x->deadline < y->deadline ? x->deadline : y->deadline;
    uint32_t head = x->head < y->head ? x->head : y->head;
    if (both.tail - head > tr__patience((size_t) space->numel * 4) || both.tail >= both.deadline)
        return;
    gather(g, a, b);
    if (!make_draft(g, pair_elides, &both) || !tr__merge(g, a, b))
        return;
    g->groups[g->group[both.tail]].kind = TR_INSTR_EW;
}

static void join_producers(tr__graph *g, uint32_t k) {
    for (uint32_t e = g->pred.at[k]; e < g->pred.at[k + 1]; e++)
        try_join(g, g->group[g->pred.item[e]], g->group[k]);
}

/* Others that load the same elements. */
static void join_readers(tr__graph *g, uint32_t k) {
    const tr_path *p = g->path;
    const tr_path_op *op = &p->ops[k];
    int64_t numel = target_of(p, op)->meta->numel;
    for (uint32_t i = 0; i < op->n_in; i++) {
        const tr_path_operand *o = &tr__operands(p, op)[i];
        if (o->ref == TR_REF_NONE || o->meta->numel != numel || !tr__operand_read(op, i))
            continue;
        uint32_t *reader = &g->ew->reader[tr__ref_index(p, o->ref)];
        if (*reader && *reader - 1 != k && tr__is_whole(p, o->ref, o->meta))
            try_join(g, g->group[*reader - 1], g->group[k]);
        *reader = k + 1;
    }
}

static void decide_elided(tr__graph *g, uint32_t group) {
    const tr_path *p = g->path;
    const tr__group *x = &g->groups[group];
    pair one = {.a = group, .b = group, .tail = x->tail, .deadline = x->deadline};
    for (uint32_t k = x->head; k != TR__NIL; k = g->next[k]) {
        const tr_path_operand *target = target_of(p, &p->ops[k]);
        if (p->ops[k].n_out && !p->ops[k].in_place)
            g->elided[target->ref] = pair_elides(g, target->ref, &one);
    }
}

#ifdef TR_DEBUG
enum { WORTH_TAKING = 64 };
#else
enum { WORTH_TAKING = 64 << 10 }; /* bytes: what lies in the nearest cache costs nothing to write */
#endif

/* Results may take the memory of operands that nobody needs any more, which spares the traffic of fetching lines only to
 * overwrite them (memplan.c does it where the order allows). Worth a short wait for the operand's death. */
static void await_deaths(tr__graph *g, uint32_t group) {
    const tr_path *p = g->path;
    tr__group *x = &g->groups[group];
    for (uint32_t k = x->head; k != TR__NIL; k = g->next[k]) {
        const tr_path_op *op = &p->ops[k];
        size_t bytes = (size_t) target_of(p, op)->meta->numel * tr_dtype_size((tr_dtype) target_of(p, op)->meta->dtype);
        for (uint32_t i = 0; i < op->n_in; i++) {
            tr_ref v = tr__operands(p, op)[i].ref;
            if (!tr_ref_is_value(v) || g->elided[v] || p->value_bytes[v] != bytes || bytes < WORTH_TAKING ||
                p->death[v] == TR_DEATH_NEVER || g->group[g->birth[v]] == group ||
                g->group[g->touch.item[g->touch.at[v + 1] - 1]] != group)
                continue;
            uint32_t ready = p->death[v] + 1;
            if (ready > x->patience && ready <= x->deadline && ready <= x->tail + 1 + tr__patience(bytes) / 4)
                x->patience = ready;
            x->kind = TR_INSTR_EW;
        }
    }
}

tr_status tr__pass_elementwise(tr__graph *g) {
    const tr_path *p = g->path;
    g->ew = tr__pool_take(&g->pool, 1, sizeof *g->ew);
    if (g->ew) {
        g->ew->storages = tr__pool_take(&g->pool, g->n_refs, sizeof *g->ew->storages);
        g->ew->reader = tr__pool_take(&g->pool, g->n_refs, sizeof *g->ew->reader);
    }
    if (g->pool.failed)
        return TR_FAIL(TR_E_NOMEM, "no memory to fuse %u ops", p->n_ops);
    for (uint32_t k = 0; k < p->n_ops; k++)
        if (is_candidate(g, g->group[k])) {
            join_producers(g, k);
            join_readers(g, k);
        }
    for (uint32_t r = 0; r < p->n_ops; r++)
        if (g->order[r] != TR__NIL && g->groups[g->order[r]].kind == TR_INSTR_EW)
            decide_elided(g, g->order[r]);
    for (uint32_t r = 0; r < p->n_ops; r++)
        if (g->order[r] != TR__NIL && tr__is_program(g, g->order[r]))
            await_deaths(g, g->order[r]);
    return TR_OK;
}

/* ------------------------------------------------------------------------------------------ lowering */

static bool was_elided(const tr__graph *g, tr_ref v, const void *env) {
    return g->elided[v] && !g->spared[v];
}

static tr_status lower_draft(tr__graph *g, tr_instr *instr) {
    draft *d = g->ew;
    if (!make_draft(g, was_elided, NULL))
        return TR_FAIL(TR_E_INTERNAL, "elementwise: the group of op %u is no program", d->ops[0]);
    size_t bytes = offsetof(tr_ew_program, steps) + d->program.n_steps * sizeof(tr_ew_step);
    instr->program = tr_malloc(bytes);
    instr->args = tr_malloc(d->program.n_args * sizeof *instr->args);
    if (!instr->program || !instr->args)
        return TR_FAIL(TR_E_NOMEM, "no memory for a program of %u steps", d->program.n_steps);
    memcpy(instr->program, &d->program, bytes);
    memcpy(instr->args, d->args, d->program.n_args * sizeof *instr->args);
    instr->space = target_of(g->path, &g->path->ops[d->ops[0]])->meta;
    return TR_OK;
}

tr_status tr__elementwise_lower(tr__graph *g, uint32_t group, tr_instr *instr) {
    gather(g, group, TR__NIL);
    return lower_draft(g, instr);
}

bool tr__elementwise_fits(tr__graph *g, uint32_t op) {
    g->ew->n_ops = 1;
    g->ew->ops[0] = op;
    return can_step(g->path, &g->path->ops[op]) && make_draft(g, was_elided, NULL);
}

tr_status tr__elementwise_lower_ops(tr__graph *g, const uint32_t *ops, uint32_t n, tr_instr *instr) {
    g->ew->n_ops = n;
    memcpy(g->ew->ops, ops, n * sizeof *ops);
    return lower_draft(g, instr);
}
