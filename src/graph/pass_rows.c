/* pass_rows.c - chains of ops that work on each slice of their leading dimension by itself, run slice by slice.
 *
 * A product, the activation behind it and the next product make row r of their results from row r of their inputs: run a
 * few rows at a time through all of them, what lies between stays in the core's cache, and what nobody else sees is never
 * written to memory. A group of such ops consists of stages (an op, or an elementwise program) in an order of their
 * dependencies. Its `units` are how many equal slices all of its tensors can be cut into: the greatest common divisor of their
 * leading dimensions. An operand is sliced, or taken whole by every slice (weights, what is broadcast).
 *
 * What one stage writes another may read only slice by slice: the same unit must be the same bytes to both. Each storage that
 * the group writes is a value whose looks have the leading dimension outermost, and start within the first unit. */
#include "graph/pass.h"

#include "terra/alloc.h"
#include "terra/exec.h"
#include "terra/options.h"

#include <string.h>

enum { MAX_STAGES = 24, MAX_OPS = 64 };

static bool is_elementwise(const tr_path *p, uint32_t k) {
    return tr_op_info_of((tr_op) p->ops[k].op)->op_class == TR_CLASS_EW || p->ops[k].op == TR_OP__full;
}

/* Does row r of the gradient lie within row r of the base? Its offset is a guard. */
static bool is_scattered_in_rows(const tr_path *p, uint32_t k) {
    const tr_path_op *op = &p->ops[k];
    const tr_path_operand *o = tr__operands(p, op);
    const tr_meta *grad = o[0].meta, *base = o[op->n_in].meta;
    const int64_t *strides = p->attrs + op->attr + 2 + TR_MAX_DIMS;
    int64_t offset = p->args[op->operand + 1], last = offset;
    if (o[1].meta->dtype != TR_I64 || grad->ndim == 0 || base->ndim == 0 || grad->numel == 0 || !base->contiguous ||
        grad->shape[0] != base->shape[0] || strides[0] != base->strides[0])
        return false;
    for (int d = 1; d < grad->ndim; d++) {
        if (strides[d] < 0)
            return false;
        last += (grad->shape[d] - 1) * strides[d];
    }
    return offset >= 0 && last < strides[0];
}

tr__row_kind tr__row_kind_of(const tr_path *p, uint32_t k, uint32_t i) {
    const tr_path_op *op = &p->ops[k];
    const tr_path_operand *o = tr__operands(p, op);
    const int64_t *attrs = p->attrs + op->attr;
    bool sliced;
    if (o[i].ref == TR_REF_NONE)
        return TR__ROW_WHOLE;
    switch (op->op) {
        case TR_OP_mm:
            sliced = i != 1;
            break;
        case TR_OP_addmm:
            sliced = i != 2 && (i != 0 || o[0].meta->ndim == 2);
            break;
        case TR_OP__dropout:
            if (i == 2)
                return TR__ROW_DRAWN;
            sliced = true;
            break;
        case TR_OP__sdpa:
        case TR_OP__sdpa_backward: // masks may be broadcast
            sliced = o[i].meta->ndim >= 3 && o[i].meta->shape[0] == o[0].meta->shape[0];
            break;
        case TR_OP_embedding:
            sliced = i != 0;
            break;
        case TR_OP_nll_loss_backward:
        case TR_OP__cross_entropy_backward:
            if (o[1].meta->ndim != 2)
                return TR__ROW_NOT;
            sliced = i == 1 || i == 2 || i >= op->n_in || (i == 0 && o[0].meta->ndim) || (op->op == TR_OP__cross_entropy_backward && i == 5);
            break;
        case TR_OP_as_strided_scatter:
            sliced = i != 1;
            if (!is_scattered_in_rows(p, k))
                return TR__ROW_NOT;
            break;
        case TR_OP_cat:
            if (attrs[0] == 0)
                return TR__ROW_NOT;
            sliced = true;
            break;
        case TR_OP_bmm:
        case TR_OP_max_pool2d:
        case TR_OP_max_pool2d_backward:
        case TR_OP_avg_pool2d:
        case TR_OP_avg_pool2d_backward:
        case TR_OP_adaptive_avg_pool2d:
        case TR_OP_adaptive_avg_pool2d_backward:
            sliced = true;
            break;
        case TR_OP__softmax:
        case TR_OP__softmax_backward:
        case TR_OP__log_softmax:
        case TR_OP__log_softmax_backward: // the dimension comes wrapped
            if (o[0].meta->ndim < 2 || attrs[0] == 0 || attrs[0] == -o[0].meta->ndim)
                return TR__ROW_NOT;
            sliced = true;
            break;
        case TR_OP_layer_norm:
            if (attrs[0] >= o[0].meta->ndim)
                return TR__ROW_NOT;
            sliced = i == 0 || i >= op->n_in;
            break;
        default: {
            if (!is_elementwise(p, k))
                return TR__ROW_NOT;
            const tr_meta *space = o[op->n_out ? op->n_in : 0].meta;
            sliced = o[i].meta->ndim == space->ndim && o[i].meta->shape[0] == space->shape[0];
        }
    }
    if (!sliced)
        return tr__operand_written(op, i) ? TR__ROW_NOT : TR__ROW_WHOLE;
    return o[i].meta->ndim && o[i].meta->shape[0] > 1 && o[i].meta->numel ? TR__ROW_SLICED : TR__ROW_NOT;
}

static int64_t gcd(int64_t a, int64_t b) {
    while (b) {
        int64_t r = a % b;
        a = b;
        b = r;
    }
    return a;
}

/* How many units an op can be cut into; 0: none. */
static int64_t units_of_op(const tr_path *p, uint32_t k) {
    const tr_path_op *op = &p->ops[k];
    int64_t units = 0;
    if (tr__operand_count(op) > TR__ROW_OPERANDS)
        return 0;
    for (uint32_t i = 0; i < tr__operand_count(op); i++) {
        tr__row_kind kind = tr__row_kind_of(p, k, i);
        if (kind == TR__ROW_NOT)
            return 0;
        if (kind == TR__ROW_SLICED)
            units = gcd(units, tr__operands(p, op)[i].meta->shape[0]);
    }
    return units;
}

static int64_t units_of(tr__graph *g, uint32_t group) {
    const tr__group *x = &g->groups[group];
    if (x->kind == TR_INSTR_ROWS)
        return x->units;
    if (x->kind != TR_INSTR_OP && x->kind != TR_INSTR_EW)
        return 0;
    if (is_elementwise(g->path, x->head) && !tr__is_program(g, group))
        return 0;
    int64_t units = 0;
    for (uint32_t k = x->head; k != TR__NIL; k = g->next[k]) {
        int64_t u = units_of_op(g->path, k);
        if (u == 0)
            return 0;
        units = gcd(units, u);
    }
    return units;
}

bool tr__row_is_apart(const tr_path *p, tr_ref r, const tr_meta *m, int64_t offset, int64_t units) {
    if (units == 1)
        return tr__is_whole(p, r, m);
    if (!tr_ref_is_value(r) || m->ndim == 0 || m->shape[0] % units)
        return false;
    int64_t size = (int64_t) tr_dtype_size((tr_dtype) m->dtype), rows = m->shape[0] / units;
    int64_t step = m->strides[0] * rows, unit = (m->extent - 1) - (m->shape[0] - rows) * m->strides[0] + 1;
    return m->strides[0] > 0 && step * units * size == (int64_t) p->value_bytes[r] && offset >= 0 && offset + unit <= step;
}

/* Is each storage that one of the ops writes touched only unit by unit? */
static bool is_apart(tr__graph *g, uint32_t a, uint32_t b, int64_t units) {
    const tr_path *p = g->path;
    uint32_t both[] = {a, b};
    for (int s = 0; s < 2; s++)
        for (uint32_t k = g->groups[both[s]].head; k != TR__NIL; k = g->next[k])
            for (uint32_t i = 0; i < tr__operand_count(&p->ops[k]); i++) {
                const tr_path_operand *o = &tr__operands(p, &p->ops[k])[i];
                if (o->ref == TR_REF_NONE || tr__row_kind_of(p, k, i) == TR__ROW_DRAWN)
                    continue;
                if (tr__operand_written(&p->ops[k], i))
                    g->ref_stamp[tr__ref_index(p, o->ref)] = g->stamp + 1;
            }
    g->stamp++;
    for (int s = 0; s < 2; s++)
        for (uint32_t k = g->groups[both[s]].head; k != TR__NIL; k = g->next[k])
            for (uint32_t i = 0; i < tr__operand_count(&p->ops[k]); i++) {
                const tr_path_operand *o = &tr__operands(p, &p->ops[k])[i];
                if (o->ref == TR_REF_NONE || g->ref_stamp[tr__ref_index(p, o->ref)] != g->stamp)
                    continue;
                if (tr__row_kind_of(p, k, i) != TR__ROW_SLICED ||
                    !tr__row_is_apart(p, o->ref, o->meta, p->args[p->ops[k].operand + i], units))
                    return false;
            }
    return true;
}

static int64_t work_of(const tr__graph *g, uint32_t group) {
    const tr_path *p = g->path;
    int64_t work = 0;
    for (uint32_t k = g->groups[group].head; k != TR__NIL; k = g->next[k]) {
        const tr_path_op *op = &p->ops[k];
        const tr_path_operand *o = tr__operands(p, op);
        int64_t each = 1;
        if (tr_op_info_of((tr_op) op->op)->op_class == TR_CLASS_MM)
            each = o[op->op == TR_OP_addmm ? 1 : 0].meta->shape[o[op->op == TR_OP_addmm ? 1 : 0].meta->ndim - 1] / 16 + 1;
        work += each * o[op->n_out ? op->n_in : 0].meta->numel;
    }
    return work;
}

#ifdef TR_DEBUG
enum { LITTLE = 256, LINES = 2, WEIGHTS = 64 << 10 };
#else
/* Elements that one thread does alone; rows that keep a product busy; elements of weights that stay in a core's cache: the
 * library packs them anew for each slice, which costs more than the traffic that a chain spares once they are larger. */
enum { LITTLE = 96 << 10, LINES = 16, WEIGHTS = 64 << 10 };
#endif

static bool is_work_for_all(const tr__graph *g, uint32_t a, uint32_t b) {
    return work_of(g, a) + work_of(g, b) >= LITTLE;
}

#define NO_PRODUCT ((int64_t) 1 << 40)

static bool has_large_weights(const tr__graph *g, uint32_t group) {
    const tr_path *p = g->path;
    for (uint32_t k = g->groups[group].head; k != TR__NIL; k = g->next[k])
        if ((p->ops[k].op == TR_OP_mm || p->ops[k].op == TR_OP_addmm) &&
            tr__operands(p, &p->ops[k])[p->ops[k].op == TR_OP_mm ? 1 : 2].meta->numel > WEIGHTS)
            return true;
    return false;
}

/* Rows of a product in each unit: too few and its weights are read again for nothing. */
static int64_t least_rows(const tr__graph *g, uint32_t group, int64_t units) {
    const tr_path *p = g->path;
    int64_t least = NO_PRODUCT;
    for (uint32_t k = g->groups[group].head; k != TR__NIL; k = g->next[k])
        if (p->ops[k].op == TR_OP_mm || p->ops[k].op == TR_OP_addmm) {
            int64_t rows = tr__operands(p, &p->ops[k])[p->ops[k].n_in].meta->shape[0] / units;
            least = rows < least ? rows : least;
        }
    return least;
}

static size_t bytes_between(const tr__graph *g, uint32_t a, uint32_t b) {
    const tr_path *p = g->path;
    size_t bytes = 0;
    for (uint32_t k = g->groups[a].head; k != TR__NIL; k = g->next[k])
        for (uint32_t i = p->ops[k].n_in; !p->ops[k].in_place && i < tr__operand_count(&p->ops[k]); i++) {
            tr_ref v = tr__operands(p, &p->ops[k])[i].ref;
            for (uint32_t t = g->touch.at[v]; t < g->touch.at[v + 1]; t++)
                if (g->group[g->touch.item[t]] == b) {
                    bytes += p->value_bytes[v];
                    break;
                }
        }
    return bytes;
}

static bool take_stages(tr__graph *g, uint32_t into, uint32_t lo, uint32_t hi, const tr__group *before) {
    tr__group *x = &g->groups[into];
    uint32_t *stages = tr__pool_take(&g->pool, MAX_STAGES, sizeof *stages), n = 0;
    if (!stages)
        return false;
    for (int s = 0; s < 2; s++) {
        const tr__group *from = &before[s];
        uint32_t group = s == 0 ? lo : hi;
        if (from->kind == TR_INSTR_ROWS)
            for (uint32_t i = 0; i < from->n_stages; i++)
                stages[n++] = from->stages[i];
        else
            stages[n++] = group;
    }
    x->stages = stages;
    x->n_stages = n;
    return true;
}

static uint32_t stages_in(const tr__group *x) {
    return x->kind == TR_INSTR_ROWS ? x->n_stages : 1;
}

/* A group that becomes a stage marks its ops. */
static void mark_stage(tr__graph *g, uint32_t group) {
    if (g->groups[group].kind != TR_INSTR_ROWS)
        for (uint32_t k = g->groups[group].head; k != TR__NIL; k = g->next[k])
            g->stage[k] = group;
}

/* Random words are drawn before the slices: an op that may fail on a value would come after them, whatever its place. */
static bool has(const tr__graph *g, uint32_t group, bool drawing) {
    const tr_path *p = g->path;
    for (uint32_t k = g->groups[group].head; k != TR__NIL; k = g->next[k])
        if (drawing ? p->ops[k].op == TR_OP__dropout : p->ops[k].op != TR_OP__dropout && tr__may_fail(&p->ops[k]))
            return true;
    return false;
}

/* ---- small things ----
 * Ops so small that dispatching them costs more than computing them are one instruction whatever they are: a group of one
 * unit, whose stages run one after the other. Only an op that may fail must not come behind a write to what lives outside. */

#ifdef TR_DEBUG
enum { SMALL = 64 };
#else
enum { SMALL = 4 << 10 }; /* elements read and written, multiplications of a product by 16 */
#endif

static bool writes_outside(const tr__graph *g, uint32_t group) {
    const tr_path *p = g->path;
    for (uint32_t k = g->groups[group].head; k != TR__NIL; k = g->next[k])
        for (uint32_t i = 0; i < tr__operand_count(&p->ops[k]); i++)
            if (tr_ref_is_external(tr__operands(p, &p->ops[k])[i].ref) && tr__operand_written(&p->ops[k], i))
                return true;
    return false;
}

static bool is_small(const tr__graph *g, uint32_t group) {
    const tr_path *p = g->path;
    const tr__group *x = &g->groups[group];
    if (x->kind != TR_INSTR_OP && x->kind != TR_INSTR_EW && x->kind != TR_INSTR_ROWS)
        return false;
    for (uint32_t k = x->head; k != TR__NIL; k = g->next[k]) {
        const tr_path_op *op = &p->ops[k];
        tr_op_class class = tr_op_info_of((tr_op) op->op)->op_class;
        if (class == TR_CLASS_OPTIM || class == TR_CLASS_CONV || (class == TR_CLASS_NEW && op->op != TR_OP__full) || tr__operand_count(op) > TR__ROW_OPERANDS)
            return false;
        for (uint32_t i = 0; i < op->n_in; i++)
            if (tr__operands(p, op)[i].ref != TR_REF_NONE && tr__operands(p, op)[i].meta->numel > SMALL)
                return false;
    }
    return work_of(g, group) <= SMALL;
}

static bool may_stand_together(const tr__graph *g, uint32_t a, uint32_t b) {
    bool fails = has(g, a, false) || has(g, b, false), outside = writes_outside(g, a) || writes_outside(g, b);
    return !(fails && (outside || has(g, a, true) || has(g, b, true)));
}

static void make_rows(tr__graph *g, uint32_t a, uint32_t b, int64_t units) {
    tr__group before[] = {g->groups[a], g->groups[b]};
    mark_stage(g, a);
    mark_stage(g, b);
    if (!tr__merge(g, a, b))
        return;
    uint32_t both = g->group[before[0].head];
    if (!take_stages(g, both, a, b, before))
        return;
    g->groups[both].kind = TR_INSTR_ROWS;
    g->groups[both].units = units;
    g->groups[both].patience = 0;
}

enum { NEIGHBOURS = 24 }; /* ops of Python's between small things that one instruction does */

/* The one that ranks lower first: its stages come first. */
static void in_order(const tr__graph *g, uint32_t *a, uint32_t *b) {
    if (g->groups[*a].rank > g->groups[*b].rank) {
        uint32_t c = *a;
        *a = *b;
        *b = c;
    }
}

static void join_small(tr__graph *g, uint32_t a, uint32_t b) {
    in_order(g, &a, &b);
    const tr__group *x = &g->groups[a], *y = &g->groups[b];
    uint32_t tail = x->tail > y->tail ? x->tail : y->tail, head = x->head < y->head ? x->head : y->head;
    uint32_t deadline = x->deadline < y->deadline ? x->deadline : y->deadline;
    if (x->n_ops + y->n_ops > MAX_OPS || stages_in(x) + stages_in(y) > MAX_STAGES || !is_small(g, a) || !is_small(g, b) || tail - head > NEIGHBOURS || tail >= deadline || !may_stand_together(g, a, b))
        return;
    make_rows(g, a, b, 1);
}

static void try_join(tr__graph *g, uint32_t a, uint32_t b) {
    if (a == b)
        return;
    in_order(g, &a, &b);
    const tr__group *x = &g->groups[a], *y = &g->groups[b];
    if (x->n_ops + y->n_ops > MAX_OPS || stages_in(x) + stages_in(y) > MAX_STAGES)
        return;
    int64_t units = gcd(units_of(g, a), units_of(g, b));
    size_t bytes = units_of(g, a) && units_of(g, b) && units > 1 ? bytes_between(g, a, b) : 0;
    if (bytes == 0) {
        join_small(g, a, b);
        return;
    }
    int64_t team = tr_exec_team();
    if (is_work_for_all(g, a, b) &&
        (units < team || has_large_weights(g, a) || has_large_weights(g, b) || least_rows(g, a, units) * (units / team) < LINES || least_rows(g, b, units) * (units / team) < LINES))
        return;
    uint32_t tail = x->tail > y->tail ? x->tail : y->tail, head = x->head < y->head ? x->head : y->head;
    uint32_t deadline = x->deadline < y->deadline ? x->deadline : y->deadline;
    if (tail - head > tr__patience(bytes) || tail >= deadline || !is_apart(g, a, b, units) ||
        !may_stand_together(g, a, b))
        return;
    make_rows(g, a, b, units);
}

/* What only the group's ops see, dead by the time that it should run, lies in the thread's own memory, or nowhere. */
static void elide(tr__graph *g, uint32_t group) {
    const tr_path *p = g->path;
    const tr__group *x = &g->groups[group];
    for (uint32_t k = x->head; k != TR__NIL; k = g->next[k])
        for (uint32_t i = p->ops[k].n_in; !p->ops[k].in_place && i < tr__operand_count(&p->ops[k]); i++) {
            tr_ref v = tr__operands(p, &p->ops[k])[i].ref;
            uint32_t ready = p->death[v] + 1;
            bool drawn = p->ops[k].op == TR_OP__dropout && i == p->ops[k].n_in + 1u; // before the slices
            if (drawn || g->elided[v] || p->fetched[v] || p->death[v] == TR_DEATH_NEVER || ready > x->deadline ||
                ready > x->tail + 1 + tr__patience(p->value_bytes[v]))
                continue;
            bool own = true;
            for (uint32_t t = g->touch.at[v]; t < g->touch.at[v + 1] && own; t++)
                own = g->group[g->touch.item[t]] == group;
            // A unit of it must be the same bytes to all.
            g->elided[v] = g->spared[v] = own && tr__row_is_apart(p, v, tr__operands(p, &p->ops[k])[i].meta, 0, x->units);
        }
}

tr_status tr__pass_rows(tr__graph *g) {
    const tr_path *p = g->path;
    if (!tr_options_get()->rows)
        return TR_OK;
    g->stage = tr__pool_take(&g->pool, p->n_ops, sizeof *g->stage);
    if (g->pool.failed)
        return TR_FAIL(TR_E_NOMEM, "no memory to chain %u ops", p->n_ops);
    memset(g->ref_stamp, 0, g->n_refs * sizeof *g->ref_stamp);
    g->stamp++;
    uint32_t small = TR__NIL; // the last small thing
    for (uint32_t k = 0; k < p->n_ops; k++) {
        for (uint32_t e = g->pred.at[k]; e < g->pred.at[k + 1]; e++)
            try_join(g, g->group[g->pred.item[e]], g->group[k]);
        if (!is_small(g, g->group[k]))
            continue;
        if (small != TR__NIL && g->group[small] != g->group[k])
            join_small(g, g->group[small], g->group[k]);
        small = k;
    }
    for (uint32_t r = 0; r < p->n_ops; r++)
        if (g->order[r] != TR__NIL && g->groups[g->order[r]].kind == TR_INSTR_ROWS)
            elide(g, g->order[r]);
    return g->pool.failed ? TR_FAIL(TR_E_NOMEM, "no memory to chain %u ops", p->n_ops) : TR_OK;
}

/* ------------------------------------------------------------------------------------------ lowering */

#ifdef TR_DEBUG
enum { NEAR = 512 };
#else
enum { NEAR = 384 << 10 }; /* bytes of a core's cache that a slice may fill */
#endif

typedef struct builder {
    tr__graph *g;
    tr_rows *rows;
    int64_t units;
} builder;

static const tr_meta *slice_of(builder *b, const tr_meta *m) {
    tr_rows *r = b->rows;
    for (uint32_t i = 0; i < r->n_metas; i++)
        if (r->from[i] == m)
            return &r->metas[i];
    tr_meta *n = &r->metas[r->n_metas];
    r->from[r->n_metas++] = m;
    *n = *m;
    n->next = NULL;
    n->hash = ~m->hash;
    n->shape[0] = m->shape[0] / b->units * r->chunk;
    n->numel = m->numel / b->units * r->chunk;
    n->extent = m->extent - (m->shape[0] - n->shape[0]) * m->strides[0];
    n->dense = m->dense && n->extent == n->numel;
    return n;
}

/* Bytes that one unit of the group touches. */
static int64_t bytes_of_unit(const builder *b, uint32_t group) {
    const tr_path *p = b->g->path;
    int64_t bytes = 0;
    for (uint32_t k = b->g->groups[group].head; k != TR__NIL; k = b->g->next[k])
        for (uint32_t i = p->ops[k].n_in; i < tr__operand_count(&p->ops[k]); i++) {
            const tr_meta *m = tr__operands(p, &p->ops[k])[i].meta;
            bytes += m->numel / b->units * (int64_t) tr_dtype_size((tr_dtype) m->dtype);
        }
    return bytes;
}

/* Units per slice: enough rows for products, few enough bytes for the cache, an equal share for each thread. */
static int64_t choose_chunk(const builder *b, uint32_t group) {
    int64_t units = b->units, team = tr_exec_team(), unit = bytes_of_unit(b, group), rows = least_rows(b->g, group, units);
    if (work_of(b->g, group) < LITTLE)
        return units;
    int64_t best = 1;
    for (int64_t c = 1; c <= units / team; c++) {
        if (units % c)
            continue;
        bool fits = c * unit <= NEAR, busy = rows == NO_PRODUCT || best * rows >= 2 * LINES;
        if (!fits && busy)
            break;
        if ((units / c) % team == 0 || (units / c) >= 4 * team)
            best = c;
    }
    return best;
}

static int64_t scratch_of(builder *b, tr_ref v) {
    int64_t *at = &b->g->spare_at[v];
    if (*at < 0) {
        *at = (int64_t) b->rows->scratch;
        b->rows->scratch += (b->g->path->value_bytes[v] / (size_t) b->units * (size_t) b->rows->chunk + 63) & ~(size_t) 63;
    }
    return *at;
}

static void fill_arg(builder *b, uint32_t operand, uint32_t k, tr_row_arg *a) {
    const tr_path *p = b->g->path;
    const tr_path_op *op = &p->ops[k];
    const tr_path_operand *o = &p->operands[operand];
    *a = (tr_row_arg){.operand = operand, .meta = o->meta, .scratch = -1};
    if (o->ref != TR_REF_NONE && tr_ref_is_value(o->ref) && b->g->spared[o->ref])
        a->scratch = scratch_of(b, o->ref);
    if (b->rows->n_chunks == 1 || o->ref == TR_REF_NONE || tr__row_kind_of(p, k, operand - op->operand) != TR__ROW_SLICED)
        return;
    a->meta = slice_of(b, o->meta);
    a->step = o->meta->strides[0] * (o->meta->shape[0] / b->units) * b->rows->chunk * (int64_t) tr_dtype_size((tr_dtype) o->meta->dtype);
}

/* The op that an argument of a program belongs to. */
static uint32_t owner_of(const tr__graph *g, const tr_row_stage *s, uint32_t operand) {
    for (uint32_t i = 0; i < s->n_ops; i++) {
        const tr_path_op *op = &g->path->ops[s->ops[i]];
        if (operand >= op->operand && operand < op->operand + tr__operand_count(op))
            return s->ops[i];
    }
    return TR__NIL;
}

static tr_status build_stage(builder *b, uint32_t group, uint32_t stage, tr_row_stage *s) {
    tr__graph *g = b->g;
    const tr_path *p = g->path;
    for (uint32_t k = g->groups[group].head; k != TR__NIL; k = g->next[k])
        s->n_ops += g->stage[k] == stage;
    s->ops = tr_malloc(s->n_ops * sizeof *s->ops);
    s->args = tr_malloc(TR_EW_MAX_ARGS * sizeof *s->args);
    if (!s->ops || !s->args)
        return TR_FAIL(TR_E_NOMEM, "no memory for a plan's rows");
    uint32_t n = 0;
    for (uint32_t k = g->groups[group].head; k != TR__NIL; k = g->next[k])
        if (g->stage[k] == stage)
            s->ops[n++] = k;
    const tr_path_op *op = &p->ops[s->ops[0]];
    b->rows->draws |= op->op == TR_OP__dropout;
    if (!is_elementwise(p, s->ops[0]) || (s->n_ops == 1 && !tr__elementwise_fits(g, s->ops[0]))) {
        s->n_args = tr__operand_count(op);
        for (uint32_t i = 0; i < s->n_args; i++)
            fill_arg(b, op->operand + i, s->ops[0], &s->args[i]);
        return TR_OK;
    }
    tr_instr like = {0};
    tr_status status = tr__elementwise_lower_ops(g, s->ops, s->n_ops, &like);
    s->program = like.program;
    if (status == TR_OK) {
        s->n_args = s->program->n_args;
        s->space = b->rows->n_chunks == 1 ? like.space : slice_of(b, like.space);
        for (uint32_t i = 0; i < s->n_args; i++)
            fill_arg(b, like.args[i], owner_of(g, s, like.args[i]), &s->args[i]);
    }
    tr_free(like.args);
    return status;
}

/* Offsets that is_apart relied on: partial looks of what the group writes. */
static tr_status add_guards(builder *b, uint32_t group, tr_instr *instr) {
    const tr_path *p = b->g->path;
    uint32_t n = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t k = b->g->groups[group].head; k != TR__NIL; k = b->g->next[k])
            for (uint32_t i = 0; i < tr__operand_count(&p->ops[k]); i++) {
                const tr_path_operand *o = &tr__operands(p, &p->ops[k])[i];
                bool part = tr_ref_is_value(o->ref) && !tr__is_whole(p, o->ref, o->meta) && b->g->group[b->g->birth[o->ref]] == group;
                bool scattered = p->ops[k].op == TR_OP_as_strided_scatter && i == 1;
                if (!part && !scattered)
                    continue;
                if (pass)
                    instr->args[instr->n_guards++] = p->ops[k].operand + i;
                else
                    n++;
            }
        if (!pass && !(instr->args = tr_malloc((n + 1) * sizeof *instr->args)))
            return TR_FAIL(TR_E_NOMEM, "no memory for a plan's rows");
    }
    return TR_OK;
}

tr_status tr__rows_lower(tr__graph *g, uint32_t group, tr_instr *instr) {
    const tr__group *x = &g->groups[group];
    uint32_t n_operands = 0;
    for (uint32_t k = x->head; k != TR__NIL; k = g->next[k])
        n_operands += tr__operand_count(&g->path->ops[k]);
    tr_rows *r = instr->rows = tr_calloc(1, sizeof *r);
    if (!r)
        return TR_FAIL(TR_E_NOMEM, "no memory for a plan's rows");
    builder b = {g, r, x->units};
    r->stages = tr_calloc(x->n_stages, sizeof *r->stages);
    r->metas = tr_calloc(n_operands, sizeof *r->metas);
    r->from = tr_calloc(n_operands, sizeof *r->from);
    g->spare_at = tr__pool_take(&g->pool, g->path->n_values, sizeof *g->spare_at);
    if (!r->stages || !r->metas || !r->from || !g->spare_at)
        return TR_FAIL(TR_E_NOMEM, "no memory for a plan's rows");
    memset(g->spare_at, 0xff, g->path->n_values * sizeof *g->spare_at);
    r->chunk = choose_chunk(&b, group);
    r->n_chunks = x->units / r->chunk;
    r->n_stages = x->n_stages;
    for (uint32_t s = 0; s < x->n_stages; s++)
        TR_TRY(build_stage(&b, group, x->stages[s], &r->stages[s]));
    return add_guards(&b, group, instr);
}

void tr__rows_free(tr_rows *r) {
    if (!r)
        return;
    for (uint32_t s = 0; r->stages && s < r->n_stages; s++) {
        tr_free(r->stages[s].ops);
        tr_free(r->stages[s].args);
        tr_free(r->stages[s].program);
    }
    tr_free(r->stages);
    tr_free(r->metas);
    tr_free(r->from);
    tr_free(r);
}
