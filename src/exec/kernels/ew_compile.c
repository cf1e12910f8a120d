/* ew_compile.c - from a program to instructions: the space, values and their classes, stores that go straight to memory,
 * registers, and the size of a tile. */
#include "exec/kernels/ew.h"

#include <stdlib.h>

/* ------------------------------------------------------------------------------------------ the space */

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
void tr__ew_coalesce(run *r, int first) {
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
    union {
        float f;
        double d;
        int64_t l;
        uint8_t b;
    } u = {.l = 0};
    switch (cls) {
        case TR__F:
            u.f = real ? (float) a->at.d : (float) a->at.i;
            break;
        case TR__D:
            u.d = real ? a->at.d : (double) a->at.i;
            break;
        case TR__L:
            u.l = real ? (int64_t) a->at.d : a->at.i;
            break;
        default:
            u.b = real ? a->at.d != 0 : a->at.i != 0;
    }
    return u.d;
}

static int add_value(run *r, tr__class cls) {
    value *v = &r->values[r->n_values];
    *v = (value){.slot = -1, .arg = -1, .last = -1, .cls = (uint8_t) cls};
    return r->n_values++;
}

static instruction *add_instruction(run *r, kind k) {
    instruction *i = &r->code[r->n_instructions++];
    *i = (instruction){.kind = (uint8_t) k, .arg = -1, .out = -1, .in = {-1, -1, -1, -1, -1}, .direct = -1};
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

bool tr__ew_is_identity(int op) {
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

int tr__ew_first_operand(int op) {
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
    int operand = s->in[tr__ew_first_operand(s->op)];
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
        case TR_OP_div:
            return k == 1;
        case TR_OP_leaky_relu:
        case TR_OP_elu:
        case TR_OP_softplus:
        case TR_OP_hardtanh:
        case TR_OP_lerp:
        case TR_OP_addcmul:
        case TR_OP_addcdiv:
            return true;
        default:
            return false;
    }
}

static bool one_value(const run *r, int v) {
    return r->values[v].constant;
}

static int compile_step(run *r, const tr_arg *args, const int16_t *results, const tr_ew_step *s) {
    if (tr__ew_is_identity(s->op))
        return compile_identity(r, args, results, s);
    tr__class c = step_class(s->op, s->cdtype, s->dtype, s->attr);
    tr__ew_entry e = tr__isa_now->ew[s->op][c];
    int in[5];
    for (int k = 0; k < 5; k++) {
        in[k] = -1;
        if (s->in[k] == TR_EW_ABSENT)
            continue;
        in[k] = operand_value(r, args, results, s->in[k], e.mask >> k & 1 ? TR__B : c);
        if (s->cdtype == TR_BF16 && c == TR__F && one_value(r, in[k]) && r->values[in[k]].cls == TR__F &&
            !keeps_float(s->op, k))
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

static void emit(run *r, const tr_ew_program *p, const tr_arg *args) {
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

void tr__ew_compile(run *r, const tr_ew_program *p, const tr_arg *args) {
    emit(r, p, args);
    drop_roundings(r);
    find_direct_stores(r);
    allocate_slots(r);
    cut(r);
}

bool tr_ew_fusible(tr_op op, tr_dtype cdtype, tr_dtype out) {
    const tr_op_info *info = tr_op_info_of(op);
    if (info->op_class != TR_CLASS_EW)
        return false;
    // Integer division fails on a zero that only the values tell; the single kernel looks first.
    bool divides = op == TR_OP_div || op == TR_OP_remainder || op == TR_OP_fmod;
    // So does an integer's negative power.
    if ((divides || op == TR_OP_pow) && cdtype < TR_BF16 && !tr_dtype_is_float(out))
        return false;
    return tr__ew_is_identity(op) || tr__isa_now->ew[op][step_class(op, cdtype, out, 0)].fn != NULL;
}
