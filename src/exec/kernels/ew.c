/* ew.c - the tile engine of elementwise programs.
 *
 * A program is compiled, once per run, into a list of small instructions over registers: load, cast between classes, fill,
 * step, round, store. The iteration space is coalesced and cut into tiles; a thread runs all instructions on a tile while
 * it lies in the L1 cache. An operand that already looks like its register (same class, contiguous along the tile) is
 * read in place; so is a result written.
 *
 * Two ways to cut: long rows are cut along the innermost dimension, and values broadcast along it stay single values;
 * short rows are gathered, several to a tile. */
#include "exec/kernels/kernels.h"

#include <stdlib.h>

enum {
    MAX_VALUES = TR_EW_MAX_STEPS * 12 + TR_EW_MAX_ARGS * 2, /* five operands cast and filled, result, rounding */
    MAX_INSTRUCTIONS = MAX_VALUES + TR_EW_MAX_STEPS,
    ROOM = 48 * 1024,     /* of a thread's registers */
    TILE_MAX = 2048,
    TILE_MIN = 64,
    TILE_FREE = 16 * 1024, /* where no register is needed */
    LONG_ROW = 512,
};

typedef enum kind { K_LOAD, K_FILL, K_STEP, K_ROUND, K_STORE } kind;

/* A value: what a register, a direct pointer or a constant holds during a tile. */
typedef struct value {
    int16_t slot;       /* -1: none (constant or direct) */
    int16_t arg;        /* loaded from; -1 */
    int16_t last;       /* instruction that uses it last */
    uint8_t cls;
    bool constant;      /* one value for the whole run */
    double number;      /* its bits, of the class */
} value;

typedef struct instruction {
    uint8_t kind;
    uint8_t cls;        /* K_STEP: class of the table's row; K_STORE: of the value */
    uint8_t dtype;      /* K_ROUND: to; K_LOAD, K_STORE: in memory; K_STEP: cdtype */
    int16_t arg;        /* K_LOAD, K_STORE */
    int16_t out;        /* value */
    int16_t in[5];      /* values; -1 absent */
    int16_t direct;     /* K_STEP, K_ROUND: the argument whose memory may be the result's register; -1 */
    int64_t attr;
    tr__ew_entry entry;
} instruction;

typedef struct argument {
    char *data;
    int64_t strides[TR_MAX_DIMS]; /* elements, of the coalesced space */
    uint8_t dtype;
    bool linear;                  /* element i of the space lies at data + i */
    bool constant;                /* strides all 0, or a number */
} argument;

typedef struct run {
    int ndim;
    int64_t shape[TR_MAX_DIMS];   /* coalesced; innermost last */
    int64_t rows;                 /* product of all but the innermost */
    int64_t tile;                 /* elements */
    int64_t tiles_per_row;        /* long rows */
    int64_t rows_per_tile;        /* short rows; 0: long */
    int n_args, n_values, n_instructions, n_slots;
    size_t slot_bytes;
    argument args[TR_EW_MAX_ARGS];
    value values[MAX_VALUES];
    instruction code[MAX_INSTRUCTIONS];
} run;

/* ------------------------------------------------------------------------------------------ the space */

static void broadcast_strides(const tr_meta *space, const tr_meta *m, int64_t *strides) {
    int lead = space->ndim - m->ndim;
    for (int d = 0; d < space->ndim; d++)
        strides[d] = d < lead || m->shape[d - lead] == 1 ? 0 : m->strides[d - lead];
}

/* Does dimension a belong outside b? Decided by the first argument, stored ones first, whose strides tell. */
static bool is_outer(const run *r, int first, int a, int b) {
    for (int k = 0; k < r->n_args; k++) {
        const argument *g = &r->args[(first + k) % r->n_args];
        int64_t sa = llabs(g->strides[a]), sb = llabs(g->strides[b]);
        if (sa == 0 || sb == 0 || sa == sb)
            continue;
        return sa > sb;
    }
    return true;
}

static void swap_dims(run *r, int a, int b) {
    int64_t t = r->shape[a];
    r->shape[a] = r->shape[b];
    r->shape[b] = t;
    for (int k = 0; k < r->n_args; k++) {
        t = r->args[k].strides[a];
        r->args[k].strides[a] = r->args[k].strides[b];
        r->args[k].strides[b] = t;
    }
}

static void drop_dim(run *r, int d) {
    r->ndim--;
    for (int e = d; e < r->ndim; e++) {
        r->shape[e] = r->shape[e + 1];
        for (int k = 0; k < r->n_args; k++)
            r->args[k].strides[e] = r->args[k].strides[e + 1];
    }
}

static bool can_merge(const run *r, int d) {
    for (int k = 0; k < r->n_args; k++)
        if (r->args[k].strides[d] != r->args[k].strides[d + 1] * r->shape[d + 1])
            return false;
    return true;
}

/* Drops dimensions of 1, sorts by stride, merges neighbours. `first`: the argument that decides the order. */
static void coalesce(run *r, int first) {
    for (int d = r->ndim - 1; d >= 0; d--)
        if (r->shape[d] == 1)
            drop_dim(r, d);
    for (int i = 1; i < r->ndim; i++)
        for (int k = i; k > 0 && !is_outer(r, first, k - 1, k); k--)
            swap_dims(r, k - 1, k);
    for (int d = r->ndim - 2; d >= 0; d--)
        if (can_merge(r, d)) {
            int64_t n = r->shape[d] * r->shape[d + 1];
            for (int k = 0; k < r->n_args; k++)
                r->args[k].strides[d] = r->args[k].strides[d + 1];
            drop_dim(r, d + 1);
            r->shape[d] = n;
        }
    if (r->ndim == 0) {
        r->ndim = 1;
        r->shape[0] = 1;
        for (int k = 0; k < r->n_args; k++)
            r->args[k].strides[0] = 0;
    }
    r->rows = 1;
    for (int d = 0; d < r->ndim - 1; d++)
        r->rows *= r->shape[d];
    for (int k = 0; k < r->n_args; k++) {
        argument *g = &r->args[k];
        int64_t step = 1;
        g->linear = g->constant = true;
        for (int d = r->ndim - 1; d >= 0; d--) {
            g->linear &= g->strides[d] == step || r->shape[d] == 1;
            g->constant &= g->strides[d] == 0;
            step *= r->shape[d];
        }
    }
}

/* ------------------------------------------------------------------------------------------ compiling */

static double number_bits(const tr_arg *a, tr__class cls) {
    bool real = a->meta->dtype == TR_F64;
    union { float f; double d; int64_t l; uint8_t b; } u = {.l = 0};
    switch (cls) {
        case TR__F: u.f = real ? (float) a->at.d : (float) a->at.i; break;
        case TR__D: u.d = real ? a->at.d : (double) a->at.i; break;
        case TR__L: u.l = real ? (int64_t) a->at.d : a->at.i; break;
        default: u.b = real ? a->at.d != 0 : a->at.i != 0;
    }
    return u.d;
}

static int add_value(run *r, tr__class cls) {
    value *v = &r->values[r->n_values];
    *v = (value) {.slot = -1, .arg = -1, .last = -1, .cls = (uint8_t) cls};
    return r->n_values++;
}

static instruction *add_instruction(run *r, kind k) {
    instruction *i = &r->code[r->n_instructions++];
    *i = (instruction) {.kind = (uint8_t) k, .arg = -1, .out = -1, .in = {-1, -1, -1, -1, -1}, .direct = -1};
    return i;
}

static int find_load(const run *r, int arg, tr__class cls) {
    for (int v = 0; v < r->n_values; v++)
        if (r->values[v].arg == arg && r->values[v].cls == cls)
            return v;
    return -1;
}

/* The value of an argument in a class: loaded once. */
static int load_value(run *r, const tr_arg *args, int arg, tr__class cls) {
    int v = find_load(r, arg, cls);
    if (v >= 0)
        return v;
    v = add_value(r, cls);
    value *x = &r->values[v];
    x->arg = (int16_t) arg;
    argument *g = &r->args[arg];
    if (!args[arg].data) {
        x->constant = true;
        x->number = number_bits(&args[arg], cls);
    } else if (g->constant) {
        x->constant = true;
        tr__isa_now->load[g->dtype][cls](&x->number, g->data, 1, 1);
    } else {
        instruction *i = add_instruction(r, K_LOAD);
        i->arg = (int16_t) arg;
        i->dtype = g->dtype;
        i->cls = (uint8_t) cls;
        i->out = (int16_t) v;
    }
    return v;
}

/* A value rounded to a dtype; a constant at once. */
static int round_value(run *r, int v, tr_dtype dtype) {
    int out = add_value(r, tr__class_of(dtype));
    value *from = &r->values[v];
    if (from->constant) {
        r->values[out].constant = true;
        tr__isa_now->round[from->cls][dtype](&r->values[out].number, &from->number, 1);
        return out;
    }
    instruction *i = add_instruction(r, K_ROUND);
    i->cls = from->cls;
    i->dtype = (uint8_t) dtype;
    i->in[0] = (int16_t) v;
    i->out = (int16_t) out;
    return out;
}

/* A value in another class. */
static int cast_value(run *r, int v, tr__class cls) {
    static const uint8_t dtype_of[] = {[TR__F] = TR_F32, [TR__D] = TR_F64, [TR__L] = TR_I64, [TR__B] = TR_BOOL};
    return r->values[v].cls == cls ? v : round_value(r, v, (tr_dtype) dtype_of[cls]);
}

/* A single value spread over a register. */
static int fill_value(run *r, int v) {
    int out = add_value(r, r->values[v].cls);
    instruction *i = add_instruction(r, K_FILL);
    i->in[0] = (int16_t) v;
    i->out = (int16_t) out;
    return out;
}

static bool is_identity(int op) {
    return op == TR_OP_clone || op == TR_OP__contiguous || op == TR_OP__cast || op == TR_OP_copy_ || op == TR_OP_fill_;
}

/* The class a step computes in: that of its cdtype, or of its result where the op has no integer form (exp of an int). */
static tr__class step_class(tr_op op, tr_dtype cdtype, tr_dtype out, int64_t attr) {
    tr__class c = tr__class_of(cdtype);
    if (c == TR__B && !tr__isa_now->ew[op][c].fn)
        c = TR__L;
    bool true_div = op == TR_OP_div && attr == 0;
    if (c >= TR__L && (true_div || !tr__isa_now->ew[op][c].fn))
        c = out == TR_F64 ? TR__D : TR__F;
    return c;
}

static int first_operand(int op) {
    return op == TR_OP_copy_ || op == TR_OP_fill_ ? 1 : 0;
}

static int operand_value(run *r, const tr_arg *args, const int16_t *results, int operand, tr__class cls) {
    return operand >= 0 ? load_value(r, args, operand, cls) : cast_value(r, results[~operand], cls);
}

/* The class in which an identity reads its operand: whatever it has. */
static tr__class source_class(const run *r, const tr_arg *args, const int16_t *results, int operand) {
    if (operand < 0)
        return (tr__class) r->values[results[~operand]].cls;
    return tr__class_of(args[operand].meta->dtype);
}

/* Does a register of this class, fresh from a step, need rounding to hold `dtype`? */
static bool needs_round(tr__class c, tr_dtype dtype) {
    return c != tr__class_of(dtype) || dtype == TR_BF16 || dtype == TR_U8 || dtype == TR_I32;
}

static int compile_identity(run *r, const tr_arg *args, const int16_t *results, const tr_ew_step *s) {
    int operand = s->in[first_operand(s->op)];
    tr__class c = source_class(r, args, results, operand);
    int v = operand_value(r, args, results, operand, c);
    tr_dtype from = operand >= 0 ? (tr_dtype) args[operand].meta->dtype : TR_DTYPE_COUNT;
    bool exact = from == s->dtype && args[operand].data;
    return exact || !needs_round(c, s->dtype) ? v : round_value(r, v, s->dtype);
}

/* PyTorch casts a number to bfloat16 like any operand, except where a kernel takes it in float on purpose. */
static bool keeps_float(int op, int k) {
    switch (op) {
        case TR_OP_mul:
        case TR_OP_div: return k == 1;
        case TR_OP_leaky_relu:
        case TR_OP_elu:
        case TR_OP_softplus:
        case TR_OP_hardtanh:
        case TR_OP_lerp:
        case TR_OP_addcmul:
        case TR_OP_addcdiv: return true;
        default: return false;
    }
}

static bool one_value(const run *r, int v) {
    return r->values[v].constant;
}

static int compile_step(run *r, const tr_arg *args, const int16_t *results, const tr_ew_step *s) {
    if (is_identity(s->op))
        return compile_identity(r, args, results, s);
    tr__class c = step_class(s->op, s->cdtype, s->dtype, s->attr);
    tr__ew_entry e = tr__isa_now->ew[s->op][c];
    int in[5];
    for (int k = 0; k < 5; k++) {
        in[k] = -1;
        if (s->in[k] == TR_EW_ABSENT)
            continue;
        in[k] = operand_value(r, args, results, s->in[k], e.mask >> k & 1 ? TR__B : c);
        if (s->cdtype == TR_BF16 && c == TR__F && one_value(r, in[k]) && r->values[in[k]].cls == TR__F && !keeps_float(s->op, k))
            in[k] = round_value(r, in[k], TR_BF16);
        if (one_value(r, in[k]) && !(e.scalar_ok >> k & 1))
            in[k] = fill_value(r, in[k]);
    }
    instruction *i = add_instruction(r, K_STEP);
    for (int k = 0; k < 5; k++)
        i->in[k] = (int16_t) in[k];
    i->entry = e;
    i->cls = (uint8_t) c;
    i->dtype = s->cdtype;
    i->attr = s->attr;
    if (s->op == TR_OP_pow) // PyTorch's short cuts are for one number, not for a tensor that happens to be constant
        i->attr = s->in[1] >= 0 && s->in[1] != TR_EW_ABSENT && !args[s->in[1]].data;
    tr__class out = e.bool_out ? TR__B : c;
    int v = i->out = (int16_t) add_value(r, out);
    return needs_round(out, s->dtype) ? round_value(r, v, s->dtype) : v;
}

static void compile(run *r, const tr_ew_program *p, const tr_arg *args) {
    int16_t results[TR_EW_MAX_STEPS];
    for (int k = 0; k < p->n_steps; k++)
        results[k] = (int16_t) compile_step(r, args, results, &p->steps[k]);
    // Stores come last: a step may still load what an earlier one overwrites.
    for (int k = 0; k < p->n_steps; k++) {
        int to = p->steps[k].store;
        if (to < 0)
            continue;
        int v = results[k];
        if (one_value(r, v))
            v = fill_value(r, v);
        instruction *i = add_instruction(r, K_STORE);
        i->arg = (int16_t) to;
        i->in[0] = (int16_t) v;
        i->cls = r->values[v].cls;
        i->dtype = r->args[to].dtype;
    }
}

/* Is this memory's element its register's? */
static bool same_bits(tr_dtype d, tr__class cls) {
    return tr__class_of(d) == cls && tr_dtype_size(d) == tr__class_size(cls);
}

static int count_uses(const run *r, int v) {
    int n = 0;
    for (int i = 0; i < r->n_instructions; i++)
        for (int k = 0; k < 5; k++)
            n += r->code[i].in[k] == v;
    return n;
}

/* Storing rounds by itself: a value that is rounded only to be stored as that dtype goes to memory at once. */
static void drop_roundings(run *r) {
    int n = 0;
    for (int i = 0; i < r->n_instructions; i++) {
        instruction *round = &r->code[i];
        instruction *store = NULL;
        if (round->kind == K_ROUND && count_uses(r, round->out) == 1)
            for (int k = i + 1; k < r->n_instructions; k++)
                if (r->code[k].kind == K_STORE && r->code[k].in[0] == round->out && r->code[k].dtype == round->dtype)
                    store = &r->code[k];
        if (store && !same_bits((tr_dtype) round->dtype, tr__class_of((tr_dtype) round->dtype))) {
            store->in[0] = round->in[0];
            store->cls = round->cls;
            continue;
        }
        r->code[n++] = *round;
    }
    r->n_instructions = n;
}

static bool loaded_after(const run *r, int arg, int at) {
    for (int i = at; i < r->n_instructions; i++)
        for (int k = 0; k < 5; k++) {
            int v = r->code[i].in[k];
            if (v >= 0 && r->values[v].arg >= 0 && r->args[r->values[v].arg].data == r->args[arg].data)
                return true;
        }
    return false;
}

/* A result stored once may be computed right in memory, if nothing that is still to be read lies there. */
static void find_direct_stores(run *r) {
    for (int i = 0; i < r->n_instructions; i++) {
        instruction *store = &r->code[i];
        if (store->kind != K_STORE || !r->args[store->arg].linear || !same_bits(store->dtype, store->cls))
            continue;
        for (int k = 0; k < i; k++) {
            instruction *from = &r->code[k];
            if (from->out == store->in[0] && from->kind != K_LOAD && from->direct < 0 && !loaded_after(r, store->arg, k + 1)) {
                from->direct = store->arg;
                store->kind = K_FILL;
                store->in[0] = -1;
                break;
            }
        }
    }
    int n = 0;
    for (int i = 0; i < r->n_instructions; i++)
        if (!(r->code[i].kind == K_FILL && r->code[i].in[0] < 0))
            r->code[n++] = r->code[i];
    r->n_instructions = n;
}

/* Does the value live in an argument's memory, whatever the tile? Then it needs no register. */
static bool lives_in_memory(const run *r, const instruction *i) {
    if (i->kind == K_LOAD)
        return r->args[i->arg].linear && same_bits((tr_dtype) i->dtype, (tr__class) i->cls);
    return i->direct >= 0;
}

/* Registers by linear scan over the instructions. */
static void allocate_slots(run *r) {
    bool used[MAX_VALUES] = {false};
    size_t bytes = 1;
    for (int i = 0; i < r->n_instructions; i++)
        for (int k = 0; k < 5; k++)
            if (r->code[i].in[k] >= 0)
                r->values[r->code[i].in[k]].last = (int16_t) i;
    r->n_slots = 0;
    for (int i = 0; i < r->n_instructions; i++) {
        instruction *c = &r->code[i];
        if (c->out >= 0 && !lives_in_memory(r, c)) {
            int s = 0;
            while (used[s])
                s++;
            used[s] = true;
            value *v = &r->values[c->out];
            v->slot = (int16_t) s;
            if (s >= r->n_slots)
                r->n_slots = s + 1;
            if (tr__class_size(v->cls) > bytes)
                bytes = tr__class_size(v->cls);
            if (v->last < i)
                used[s] = false;
        }
        for (int k = 0; k < 5; k++) {
            int v = c->in[k];
            if (v >= 0 && r->values[v].last == i && r->values[v].slot >= 0)
                used[r->values[v].slot] = false;
        }
    }
    r->slot_bytes = bytes;
}

static void cut(run *r) {
    int64_t inner = r->shape[r->ndim - 1];
    int slots = r->n_slots ? r->n_slots : 1;
    int64_t tile = (int64_t) (ROOM / ((size_t) slots * r->slot_bytes)) / 64 * 64;
    tile = r->n_slots ? tr__max(TILE_MIN, tr__min(tile, TILE_MAX)) : TILE_FREE;
    if (inner >= LONG_ROW || r->ndim == 1 || inner > tile) {
        r->rows_per_tile = 0;
        r->tile = tile;
        r->tiles_per_row = (inner + tile - 1) / tile;
    } else {
        r->rows_per_tile = tile / inner;
        r->tile = r->rows_per_tile * inner;
        r->tiles_per_row = 0;
    }
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

static void store_rows(const run *r, const argument *g, const tile *t, const char *reg, size_t reg_size,
                       tr__ew_store store) {
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

static place load_tile(const run *r, const instruction *i, const tile *t, char *reg) {
    const argument *g = &r->args[i->arg];
    size_t size = tr_dtype_size(g->dtype);
    int64_t inner = r->shape[r->ndim - 1];
    tr__ew_load load = tr__isa_now->load[g->dtype][i->cls];
    if (g->linear) {
        const char *from = g->data + (t->row * inner + t->from) * (int64_t) size;
        if (same_bits(g->dtype, i->cls))
            return (place) {from, false};
        load(reg, from, 1, t->n);
        return (place) {reg, false};
    }
    if (r->rows_per_tile) {
        load_rows(r, g, t, reg, tr__class_size(i->cls), load);
        return (place) {reg, false};
    }
    int64_t stride = g->strides[r->ndim - 1];
    const char *from = g->data + (row_offset(r, g, t->row) + t->from * stride) * (int64_t) size;
    if (stride == 1 && same_bits(g->dtype, i->cls))
        return (place) {from, false};
    if (stride == 0) {
        load(reg, from, 1, 1);
        return (place) {reg, true};
    }
    load(reg, from, stride, t->n);
    return (place) {reg, false};
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
        *p = (place) {slot, false};
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
            as_register(&places[v], &r->values[v], slots + (size_t) r->values[v].slot * (size_t) r->tile * r->slot_bytes,
                        t->n);
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
            reg = r->args[i->direct].data +
                  (t->row * inner + t->from) * (int64_t) tr_dtype_size(r->args[i->direct].dtype);
        switch (i->kind) {
            case K_LOAD:
                places[i->out] = load_tile(r, i, t, reg);
                break;
            case K_FILL:
                fill_register(reg, places[i->in[0]].at, (tr__class) r->values[i->in[0]].cls, t->n);
                places[i->out] = (place) {reg, false};
                break;
            case K_STEP:
                run_step(r, i, places, slots, reg, t);
                places[i->out] = (place) {reg, false};
                break;
            case K_ROUND: {
                place from = places[i->in[0]];
                bool one = from.one && i->direct < 0;
                if (from.one && !one)
                    as_register(&from, &r->values[i->in[0]],
                                slots + (size_t) r->values[i->in[0]].slot * (size_t) r->tile * r->slot_bytes, t->n);
                tr__isa_now->round[i->cls][i->dtype](reg, from.at, one ? 1 : t->n);
                places[i->out] = (place) {reg, one};
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
        places[v] = (place) {&r->values[v].number, r->values[v].constant};
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

/* ------------------------------------------------------------------------------------------ transposing copies */

/* A copy between two orders, neither conversion nor arithmetic: squares of EDGE x EDGE keep both sides in the cache. */
enum { EDGE = 32 };

typedef struct turn {
    const run *r;
    const argument *from, *to;
    int other;              /* the dimension along which `from` is contiguous */
    int64_t blocks, across; /* blocks per plane; of them, along the innermost dimension */
    size_t size;
} turn;

#define TURN_BLOCK(T)                                                                        \
    /* through a buffer, so that each line of either side is touched once: steps that are powers of two share few cache sets */ \
    static void turn_block_##T(T *to, int64_t to_step, const T *from, int64_t from_step, int64_t rows, int64_t columns) { \
        T block[EDGE][EDGE + 1];                                                             \
        for (int64_t k = 0; k < columns; k++)                                                \
            for (int64_t i = 0; i < rows; i++)                                               \
                block[i][k] = from[i + k * from_step];                                       \
        for (int64_t i = 0; i < rows; i++)                                                   \
            memcpy(to + i * to_step, block[i], (size_t) columns * sizeof *to);               \
    }
TURN_BLOCK(uint8_t)
TURN_BLOCK(uint16_t)
TURN_BLOCK(uint32_t)
TURN_BLOCK(uint64_t)

static void turn_blocks(void *env, int64_t begin, int64_t end, int thread) {
    const turn *t = env;
    const run *r = t->r;
    int inner = r->ndim - 1;
    for (int64_t b = begin; b < end; b++) {
        int64_t plane = b / t->blocks, at = b % t->blocks, f = 0, o = 0;
        for (int d = inner - 1; d >= 0; d--) {
            if (d == t->other)
                continue;
            f += plane % r->shape[d] * t->from->strides[d];
            o += plane % r->shape[d] * t->to->strides[d];
            plane /= r->shape[d];
        }
        int64_t row = at / t->across * EDGE, col = at % t->across * EDGE;
        int64_t rows = tr__min(EDGE, r->shape[t->other] - row), columns = tr__min(EDGE, r->shape[inner] - col);
        int64_t to_step = t->to->strides[t->other], from_step = t->from->strides[inner];
        char *to = t->to->data + (o + row * to_step + col) * (int64_t) t->size;
        const char *from = t->from->data + (f + row + col * from_step) * (int64_t) t->size;
        switch (t->size) {
            case 1: turn_block_uint8_t((uint8_t *) to, to_step, (const uint8_t *) from, from_step, rows, columns); break;
            case 2: turn_block_uint16_t((uint16_t *) to, to_step, (const uint16_t *) from, from_step, rows, columns); break;
            case 4: turn_block_uint32_t((uint32_t *) to, to_step, (const uint32_t *) from, from_step, rows, columns); break;
            default: turn_block_uint64_t((uint64_t *) to, to_step, (const uint64_t *) from, from_step, rows, columns);
        }
    }
}

/* Copies `from` into `to`, both of one dtype, when their orders differ in the way that squares help with. */
static bool turn_over(const run *r, const argument *from, const argument *to, tr_kernel_ctx *ctx, int64_t numel) {
    int inner = r->ndim - 1;
    turn t = {.r = r, .from = from, .to = to, .other = -1};
    if (r->ndim < 2 || from->dtype != to->dtype || to->strides[inner] != 1 || from->strides[inner] <= 1)
        return false;
    for (int d = 0; d < inner; d++)
        if (from->strides[d] == 1)
            t.other = d;
    if (t.other < 0 || r->shape[t.other] < 8 || r->shape[inner] < 8)
        return false;
    t.size = tr_dtype_size((tr_dtype) from->dtype);
    t.across = (r->shape[inner] + EDGE - 1) / EDGE;
    t.blocks = t.across * ((r->shape[t.other] + EDGE - 1) / EDGE);
    tr__parallel(ctx, t.blocks * (numel / (r->shape[inner] * r->shape[t.other])), TR__GRAIN / (EDGE * EDGE), turn_blocks, &t);
    return true;
}

/* Does the program only copy, from one order of dimensions into another? Then it is done here. */
static bool run_turn(const tr_ew_program *p, const run *r, tr_kernel_ctx *ctx, int64_t numel) {
    const tr_ew_step *s = &p->steps[0];
    if (p->n_steps != 1 || !is_identity(s->op) || s->in[first_operand(s->op)] < 0)
        return false;
    const argument *from = &r->args[s->in[first_operand(s->op)]];
    return from->data && turn_over(r, from, &r->args[s->store], ctx, numel);
}

/* Big operands that lie across the tiles are turned over into scratch first: a column read element by element touches a
 * cache line for each. Nothing happens when there is no scratch. */
enum { TURN_MIN = 64 * 1024 };
static void straighten(const tr_ew_program *p, run *r, tr_kernel_ctx *ctx, int64_t numel) {
    int inner = r->ndim - 1;
    for (int k = 0; k < r->n_args; k++) {
        argument *g = &r->args[k], straight = *g;
        bool stored = false;
        for (int s = 0; s < p->n_steps; s++)
            stored |= p->steps[s].store == k;
        if (stored || !g->data || numel < TURN_MIN || r->ndim < 2 || g->strides[inner] < 16)
            continue;
        int64_t step = 1;
        for (int d = inner; d >= 0; d--) {
            if (g->strides[d] == 0 && r->shape[d] > 1)
                step = 0; // broadcast: its copy would be bigger than itself
            straight.strides[d] = step;
            step *= r->shape[d];
        }
        if (step == 0 || !(straight.data = ctx->scratch(ctx, (size_t) numel * tr_dtype_size((tr_dtype) g->dtype))))
            continue;
        straight.linear = true;
        if (turn_over(r, g, &straight, ctx, numel))
            *g = straight;
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
    coalesce(&r, first);
    if (run_turn(program, &r, ctx, space->numel))
        return TR_OK;
    straighten(program, &r, ctx, space->numel);
    compile(&r, program, args);
    drop_roundings(&r);
    find_direct_stores(&r);
    allocate_slots(&r);
    cut(&r);
    int64_t tiles = r.rows_per_tile ? (r.rows + r.rows_per_tile - 1) / r.rows_per_tile : r.rows * r.tiles_per_row;
    int64_t per_tile = tr__max(1, space->numel / tiles);
    tr__parallel(ctx, tiles, tr__max(1, TR__GRAIN / per_tile), run_tiles, &r);
    return TR_OK;
}

/* ------------------------------------------------------------------------------------------ single ops */

bool tr_ew_fusible(tr_op op, tr_dtype cdtype, tr_dtype out) {
    const tr_op_info *info = tr_op_info_of(op);
    if (info->op_class != TR_CLASS_EW)
        return false;
    // Integer division fails on a zero that only the values tell; the single kernel looks first.
    bool divides = op == TR_OP_div || op == TR_OP_remainder || op == TR_OP_fmod;
    // So does an integer's negative power.
    if ((divides || op == TR_OP_pow) && cdtype < TR_BF16 && !tr_dtype_is_float(out))
        return false;
    return is_identity(op) || tr__isa_now->ew[op][step_class(op, cdtype, out, 0)].fn != NULL;
}

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
    *s = (tr_ew_step) {.op = (uint16_t) c->op, .cdtype = (uint8_t) c->cdtype, .dtype = out->meta->dtype,
                       .store = (int16_t) c->n_in};
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
    if (first_operand((int) c->op))
        args[0] = *out; // written, not read
    args[c->n_in] = *out;
    return tr_ew_run(&p, out->meta, args, c->ctx);
}
