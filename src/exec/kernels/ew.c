/* ew.c - the tile engine of elementwise programs.
 *
 * A program is compiled, once per run, into a list of small instructions over registers: load, cast between classes, fill,
 * step, round, store. The iteration space is coalesced and cut into tiles; a thread runs all instructions on a tile while
 * it lies in the L1 cache. An operand that already looks like its register (same class, contiguous along the tile) is
 * read in place; so is a result written.
 *
 * Two ways to cut: long rows are cut along the innermost dimension, and values broadcast along it stay single values;
 * short rows are gathered, several to a tile. */
#include "exec/kernels/ew.h"

static void broadcast_strides(const tr_meta *space, const tr_meta *m, int64_t *strides) {
    int lead = space->ndim - m->ndim;
    for (int d = 0; d < space->ndim; d++)
        strides[d] = d < lead || m->shape[d - lead] == 1 ? 0 : m->strides[d - lead];
}

/* ------------------------------------------------------------------------------------------ running */

/* Where a tile lies: rows [row, row + rows) and, of a long row, elements [from, from + n). */
typedef struct tile {
    int64_t row, rows, from, n;
} tile;

static int64_t row_offset(const run *r, const argument *g, int64_t row) {
    int64_t at = 0;
    for (int d = r->ndim - 2; d >= 0; d--) {
        at += row % r->shape[d] * g->strides[d];
        row /= r->shape[d];
    }
    return at;
}

/* Calls body(piece of memory, its stride, offset in the register, elements) for each row of the tile. */
static void load_rows(const run *r, const argument *g, const tile *t, char *reg, size_t reg_size, tr__ew_load load) {
    int64_t inner = r->shape[r->ndim - 1], stride = g->strides[r->ndim - 1];
    size_t size = tr_dtype_size(g->dtype);
    int64_t index[TR_MAX_DIMS], row = t->row;
    int64_t at = row_offset(r, g, row);
    for (int d = r->ndim - 2; d >= 0; d--) {
        index[d] = row % r->shape[d];
        row /= r->shape[d];
    }
    for (int64_t k = 0; k < t->rows; k++) {
        load(reg + (size_t) (k * inner) * reg_size, g->data + at * (int64_t) size, stride, inner);
        for (int d = r->ndim - 2; d >= 0; d--) {
            at += g->strides[d];
            if (++index[d] < r->shape[d])
                break;
            at -= index[d] * g->strides[d];
            index[d] = 0;
        }
    }
}

static void store_rows(const run *r, const argument *g, const tile *t, const char *reg, size_t reg_size, tr__ew_store store) {
    int64_t inner = r->shape[r->ndim - 1], stride = g->strides[r->ndim - 1];
    size_t size = tr_dtype_size(g->dtype);
    for (int64_t k = 0; k < t->rows; k++)
        store(g->data + row_offset(r, g, t->row + k) * (int64_t) size, stride, reg + (size_t) (k * inner) * reg_size, inner);
}

/* Where a value is during this tile. */
typedef struct place {
    const void *at;
    bool one;
} place;

/* What the next tile loads comes while this one is computed. */
static void send_for(const char *from, int64_t bytes) {
    for (int64_t k = 0; k < bytes; k += 64)
        __builtin_prefetch(from + k);
}

static place load_tile(const run *r, const instruction *i, const tile *t, char *reg) {
    const argument *g = &r->args[i->arg];
    size_t size = tr_dtype_size(g->dtype);
    int64_t inner = r->shape[r->ndim - 1];
    tr__ew_load load = tr__isa_now->load[g->dtype][i->cls];
    if (g->linear) {
        const char *from = g->data + (t->row * inner + t->from) * (int64_t) size;
        if (same_bits(g->dtype, i->cls))
            return (place){from, false};
        load(reg, from, 1, t->n);
        send_for(from + t->n * (int64_t) size, t->n * (int64_t) size);
        return (place){reg, false};
    }
    if (r->rows_per_tile) {
        load_rows(r, g, t, reg, tr__class_size(i->cls), load);
        return (place){reg, false};
    }
    int64_t stride = g->strides[r->ndim - 1];
    const char *from = g->data + (row_offset(r, g, t->row) + t->from * stride) * (int64_t) size;
    if (stride == 1 && same_bits(g->dtype, i->cls))
        return (place){from, false};
    if (stride == 0) {
        load(reg, from, 1, 1);
        return (place){reg, true};
    }
    load(reg, from, stride, t->n);
    return (place){reg, false};
}

static void store_tile(const run *r, const instruction *i, const tile *t, const void *reg) {
    const argument *g = &r->args[i->arg];
    size_t size = tr_dtype_size(g->dtype);
    int64_t inner = r->shape[r->ndim - 1], stride = g->strides[r->ndim - 1];
    tr__ew_store store = tr__isa_now->store[g->dtype][i->cls];
    if (g->linear)
        store(g->data + (t->row * inner + t->from) * (int64_t) size, 1, reg, t->n);
    else if (r->rows_per_tile)
        store_rows(r, g, t, reg, tr__class_size(i->cls), store);
    else
        store(g->data + (row_offset(r, g, t->row) + t->from * stride) * (int64_t) size, stride, reg, t->n);
}

static void fill_register(void *reg, const void *from, tr__class cls, int64_t n) {
    static const uint8_t dtype_of[] = {[TR__F] = TR_F32, [TR__D] = TR_F64, [TR__L] = TR_I64, [TR__B] = TR_BOOL};
    tr__isa_now->load[dtype_of[cls]][cls](reg, from, 0, n);
}

/* A single value where the step wants a register of them: spread it in the operand's own slot. */
static const void *as_register(place *p, const value *v, char *slot, int64_t n) {
    if (p->one && n > 1) {
        double keep;
        memcpy(&keep, p->at, tr__class_size((tr__class) v->cls));
        fill_register(slot, &keep, (tr__class) v->cls, n);
        *p = (place){slot, false};
    }
    return p->at;
}

static void run_step(const run *r, const instruction *i, place *places, char *slots, void *out, const tile *t) {
    tr__ew_tile step = {.out = out, .n = t->n, .attr = i->attr, .bf16 = i->dtype == TR_BF16};
    for (int k = 0; k < 5; k++) {
        int v = i->in[k];
        if (v < 0)
            continue;
        if (!(i->entry.scalar_ok >> k & 1))
            as_register(&places[v], &r->values[v], slots + (size_t) r->values[v].slot * (size_t) r->tile * r->slot_bytes, t->n);
        step.in[k] = places[v].at;
        step.scalar |= (uint32_t) places[v].one << k;
    }
    i->entry.fn(&step);
}

static void run_tile(const run *r, const tile *t, place *places, char *slots) {
    int64_t inner = r->shape[r->ndim - 1];
    for (const instruction *i = r->code, *end = i + r->n_instructions; i < end; i++) {
        char *reg = NULL;
        if (i->out >= 0 && r->values[i->out].slot >= 0)
            reg = slots + (size_t) r->values[i->out].slot * (size_t) r->tile * r->slot_bytes;
        if (i->direct >= 0)
            reg = r->args[i->direct].data + (t->row * inner + t->from) * (int64_t) tr_dtype_size(r->args[i->direct].dtype);
        switch (i->kind) {
            case K_LOAD:
                places[i->out] = load_tile(r, i, t, reg);
                break;
            case K_FILL:
                fill_register(reg, places[i->in[0]].at, (tr__class) r->values[i->in[0]].cls, t->n);
                places[i->out] = (place){reg, false};
                break;
            case K_STEP:
                run_step(r, i, places, slots, reg, t);
                places[i->out] = (place){reg, false};
                break;
            case K_ROUND: {
                place from = places[i->in[0]];
                bool one = from.one && i->direct < 0;
                if (from.one && !one)
                    as_register(&from, &r->values[i->in[0]],
                                slots + (size_t) r->values[i->in[0]].slot * (size_t) r->tile * r->slot_bytes, t->n);
                tr__isa_now->round[i->cls][i->dtype](reg, from.at, one ? 1 : t->n);
                places[i->out] = (place){reg, one};
                break;
            }
            case K_STORE: {
                int v = i->in[0];
                const void *from = as_register(
                    &places[v], &r->values[v],
                    slots + (size_t) (r->values[v].slot < 0 ? 0 : r->values[v].slot) * (size_t) r->tile * r->slot_bytes, t->n);
                store_tile(r, i, t, from);
                break;
            }
        }
    }
}

static void run_tiles(void *env, int64_t begin, int64_t end, int thread) {
    const run *r = env;
    char slots[ROOM + TILE_MIN * 8 * 64] __attribute__((aligned(64)));
    place places[MAX_VALUES];
    int64_t inner = r->shape[r->ndim - 1];
    for (int v = 0; v < r->n_values; v++)
        places[v] = (place){&r->values[v].number, r->values[v].constant};
    for (int64_t k = begin; k < end; k++) {
        tile t;
        if (r->rows_per_tile) {
            t.row = k * r->rows_per_tile;
            t.rows = tr__min(r->rows_per_tile, r->rows - t.row);
            t.from = 0;
            t.n = t.rows * inner;
        } else {
            t.row = k / r->tiles_per_row;
            t.rows = 1;
            t.from = k % r->tiles_per_row * r->tile;
            t.n = tr__min(r->tile, inner - t.from);
        }
        run_tile(r, &t, places, slots);
    }
}

tr_status tr_ew_run(const tr_ew_program *program, const tr_meta *space, const tr_arg *args, tr_kernel_ctx *ctx) {
    if (space->numel == 0)
        return TR_OK;
    run r;
    r.ndim = space->ndim;
    r.n_args = program->n_args;
    r.n_values = r.n_instructions = 0;
    memcpy(r.shape, space->shape, sizeof r.shape);
    int first = 0;
    for (int k = 0; k < r.n_args; k++) {
        argument *g = &r.args[k];
        g->data = args[k].data;
        g->dtype = args[k].meta ? args[k].meta->dtype : TR_F32;
        memset(g->strides, 0, sizeof g->strides);
        if (args[k].data)
            broadcast_strides(space, args[k].meta, g->strides);
    }
    for (int k = program->n_steps - 1; k >= 0; k--)
        if (program->steps[k].store >= 0)
            first = program->steps[k].store;
    tr__ew_coalesce(&r, first);
    if (tr__ew_run_turn(program, &r, ctx, space->numel))
        return TR_OK;
    tr__ew_straighten(program, &r, ctx, space->numel);
    tr__ew_compile(&r, program, args);
    int64_t tiles = r.rows_per_tile ? (r.rows + r.rows_per_tile - 1) / r.rows_per_tile : r.rows * r.tiles_per_row;
    int64_t per_tile = tr__max(1, space->numel / tiles);
    tr__parallel_pieces(ctx, tiles, tr__max(1, TR__GRAIN / per_tile), run_tiles, &r);
    return TR_OK;
}

/* ------------------------------------------------------------------------------------------ single ops */

/* Is any element of `a`, seen as an integer, zero? Numbers too. */
static tr_status check_divisor(const tr_kernel_call *c, const tr_arg *a) {
    bool zero = false;
    if (!a->data && a->meta->numel > 0 && a->meta->ndim == 0) {
        zero = tr_arg_int(a) == 0;
    } else if (a->meta->numel > 0) {
        const void *p;
        TR_TRY(tr__dense_in(c, a, TR_I64, &p));
        const int64_t *x = p;
        for (int64_t i = 0; i < a->meta->numel; i++)
            zero |= x[i] == 0;
    }
    return zero ? TR_FAIL(TR_E_RUNTIME, "ZeroDivisionError") : TR_OK;
}

static tr_status check_exponent(const tr_arg *a) {
    if (!a->data && a->meta->dtype != TR_F64 && a->at.i < 0)
        return TR_FAIL(TR_E_RUNTIME, "Integers to negative integer powers are not allowed.");
    return TR_OK;
}

tr_status tr__kernel_elementwise(const tr_kernel_call *c) {
    const tr_arg *out = c->n_out ? &c->out[0] : &c->in[0];
    tr_ew_program p;
    p.n_steps = 1;
    p.n_args = (uint16_t) (c->n_in + 1);
    tr_ew_step *s = &p.steps[0];
    *s = (tr_ew_step){
        .op = (uint16_t) c->op, .cdtype = (uint8_t) c->cdtype, .dtype = out->meta->dtype, .store = (int16_t) c->n_in};
    s->attr = tr_op_info_of(c->op)->n_attrs ? c->attrs[0] : 0;
    bool integer = c->cdtype < TR_BF16 && !tr_dtype_is_float(out->meta->dtype);
    if (integer && (c->op == TR_OP_div || c->op == TR_OP_remainder || c->op == TR_OP_fmod) && out->meta->numel)
        TR_TRY(check_divisor(c, &c->in[1]));
    if (integer && c->op == TR_OP_pow)
        TR_TRY(check_exponent(&c->in[1]));
    tr_arg args[6];
    for (int k = 0; k < 5; k++) {
        s->in[k] = k < c->n_in && c->in[k].meta ? (int16_t) k : (int16_t) TR_EW_ABSENT;
        if (k < c->n_in)
            args[k] = c->in[k];
    }
    if (tr__ew_first_operand((int) c->op))
        args[0] = *out; // written, not read
    args[c->n_in] = *out;
    return tr_ew_run(&p, out->meta, args, c->ctx);
}
