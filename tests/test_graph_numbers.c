/* Plans run by the real kernels give the very bits that the ops give one after the other. */
#include "graph_path.h"

#include "terra/dnn.h"
#include "terra/kernel.h"

#include <math.h>

typedef struct store {
    const tr_path *p;
    const tr_plan *plan; /* NULL: op by op */
    char **value, **external, **copy; /* copy: per external, beside it */
    tr_arg args[64 * 16];
} store;

static char arena[1 << 20];

static void *scratch(tr_kernel_ctx *ctx, size_t bytes) {
    size_t at = (ctx->scratch_used + 63) & ~(size_t) 63;
    cr_assert(at + bytes <= sizeof arena);
    ctx->scratch_used = at + bytes;
    return arena + at;
}

static tr_kernel_ctx fresh_context(void) {
    return (tr_kernel_ctx){.threads = 1, .scratch = scratch, .scratch_base = arena, .scratch_size = sizeof arena};
}

enum { ROOM = 4096 };

static tr_arg resolved(const store *s, uint32_t operand) {
    const tr_path_operand *o = &s->p->operands[operand];
    tr_arg a = {.meta = o->meta, .at.i = s->p->args[operand]};
    if (o->ref == TR_REF_NONE)
        return a;
    char *base = tr_ref_is_value(o->ref) ? s->value[o->ref] : s->external[tr_ref_slot(o->ref)];
    cr_assert_not_null(base);
    a.data = base + a.at.i * (int64_t) tr_dtype_size((tr_dtype) o->meta->dtype);
    const tr_plan *plan = s->plan;
    uint32_t r = tr_ref_is_value(o->ref) ? o->ref : s->p->n_values + tr_ref_slot(o->ref);
    const tr_home *home = plan && plan->homes ? plan->homes[r] : NULL;
    if (tr_home_has_copy(home))
        a.copy = s->copy[tr_ref_slot(o->ref)];
    else
        a.home = home;
    return a;
}

static tr_kernel_call call_of(store *s, uint32_t k, tr_arg *args, tr_kernel_ctx *ctx) {
    const tr_path_op *op = &s->p->ops[k];
    for (uint32_t i = 0; i < op->n_in + (uint32_t) op->n_out; i++)
        args[i] = resolved(s, op->operand + i);
    return (tr_kernel_call){.op = op->op,
                            .cdtype = op->cdtype,
                            .n_in = op->n_in,
                            .n_out = op->n_out,
                            .attrs = s->p->attrs + op->attr,
                            .in = args,
                            .out = args + op->n_in,
                            .ctx = ctx};
}

static void run_single(store *s, uint32_t k) {
    tr_kernel_ctx ctx = fresh_context();
    tr_kernel_call c = call_of(s, k, s->args, &ctx);
    cr_assert_eq(tr_kernel_of(c.op)(&c), TR_OK, "op %u: %s", k, tr_status_detail());
}

static void run_instr(store *s, const tr_plan *plan, const tr_instr *instr) {
    tr_kernel_ctx ctx = fresh_context();
    const uint32_t *ops = plan->covered + instr->first;
    if (instr->kind == TR_INSTR_EW) {
        for (int i = 0; i < instr->program->n_args; i++)
            s->args[i] = resolved(s, instr->args[i]);
        cr_assert_eq(tr_ew_run(instr->program, instr->space, s->args, &ctx), TR_OK, "%s", tr_status_detail());
    } else if (instr->kind == TR_INSTR_MULTI) {
        tr_kernel_call calls[64];
        for (uint32_t i = 0; i < instr->n_ops; i++)
            calls[i] = call_of(s, ops[i], s->args + i * 16, &ctx);
        cr_assert_eq(tr_kernel_multi(calls[0].op, calls, (int) instr->n_ops), TR_OK, "%s", tr_status_detail());
    } else if (instr->kind == TR_INSTR_ROWS) {
        tr_arg args[24 * 16];
        int n = 0;
        for (uint32_t k = 0; k < instr->rows->n_stages; k++)
            for (uint32_t i = 0; i < instr->rows->stages[k].n_args; i++) {
                uint32_t operand = instr->rows->stages[k].args[i].operand;
                bool passed_on = instr->rows->stages[k].args[i].scratch >= 0;
                args[n++] = passed_on ? (tr_arg){.at = {.i = s->p->args[operand]}} : resolved(s, operand);
            }
        ctx.threads = 2;
        tr_rows_run run = {instr->rows, s->p, args, &ctx};
        cr_assert_eq(tr_rows_run_all(&run), TR_OK, "%s", tr_status_detail());
    } else if (instr->kind == TR_INSTR_NORM) {
        // Op by op, what lies between in memory of the test's: the fused forms have tests of their own.
        for (uint32_t i = 0; i < instr->n_ops; i++) {
            const tr_path_op *op = &s->p->ops[ops[i]];
            tr_ref v = s->p->operands[op->operand + op->n_in].ref;
            if (!op->in_place && !s->value[v])
                s->value[v] = aligned_alloc(64, ROOM); // the process ends with the test
            run_single(s, ops[i]);
        }
    } else if (instr->kind == TR_INSTR_DNN) {
        void *data[TR_DNN_MAX_VALUES];
        for (uint32_t i = 0; i < instr->n_args; i++)
            data[i] = resolved(s, instr->args[i]).data;
        cr_assert_eq(tr_dnn_partition_run(instr->dnn, data), TR_OK, "%s", tr_status_detail());
    } else if (instr->kind == TR_INSTR_OP) {
        run_single(s, ops[0]);
    } else if (instr->kind == TR_INSTR_COPY) {
        const tr_path_op *op = &s->p->ops[ops[0]];
        tr_ref v = s->p->operands[op->operand + op->n_in].ref;
        s->value[v] = s->copy[tr_ref_slot(s->p->operands[op->operand].ref)];
        run_single(s, ops[0]); // the last update was another iteration's
    } else if (instr->kind == TR_INSTR_NARROW) {
        const tr_path_op *op = &s->p->ops[ops[0]], *cast = &s->p->ops[ops[1]];
        s->value[s->p->operands[op->operand + op->n_in].ref] = s->value[s->p->operands[cast->operand + cast->n_in].ref];
        run_single(s, ops[0]);
    }
}


static store make_store(const tr_path *p) {
    store s = {
        .p = p, .value = calloc(p->n_values + 1, sizeof(char *)), .external = calloc(p->n_externals + 1, sizeof(char *)),
        .copy = calloc(p->n_externals + 1, sizeof(char *))};
    dice d = {12345};
    for (uint32_t e = 0; e < p->n_externals; e++) {
        s.copy[e] = aligned_alloc(64, ROOM);
        s.external[e] = aligned_alloc(64, ROOM);
        memset(s.external[e], 0, ROOM);
        if (e == 0)
            tr_generator_seed((tr_generator *) (void *) s.external[e], 42);
        else
            for (int i = 0; i < SIDE * SIDE; i++)
                ((float *) (void *) s.external[e])[i] = (float) roll(&d, 2000) / 1000.0f - 0.5f;
    }
    return s;
}

/* A storage's bytes in the program's order. */
static const char *base_of(const store *s, const tr_plan *plan, tr_ref r, char *copy) {
    if (!tr_ref_is_value(r))
        return s->external[tr_ref_slot(r)];
    uint32_t home = plan->relaid ? plan->relaid[r] : 0;
    if (s->plan && plan->homes && tr_home_is_bf16(plan->homes[r])) {
        memcpy(copy, s->value[r], plan->path->value_bytes[r] / 2);
        cr_assert_eq(tr_home_leave(plan->homes[r], copy, (char[ROOM]){0}), TR_OK);
        return copy;
    }
    if (!home || s->p == plan->path)
        return s->value[r];
    tr_kernel_ctx ctx = fresh_context();
    tr_arg from = {.data = s->value[r], .meta = plan->looks[home - 1].meta};
    tr_arg to = {.data = copy, .meta = plan->path->operands[home - 1].meta};
    tr_kernel_call c = {
        .op = TR_OP__contiguous, .cdtype = to.meta->dtype, .n_in = 1, .n_out = 1, .in = &from, .out = &to, .ctx = &ctx};
    cr_assert_eq(tr_kernel_of(c.op)(&c), TR_OK);
    return copy;
}

static bool close(const float *a, const float *b, size_t bytes) {
    for (size_t i = 0; i < bytes / sizeof *a; i++)
        if (a[i] != b[i] && !(fabsf(a[i] - b[i]) <= 1e-5f * (1 + fabsf(a[i]))) && !(isnan(a[i]) && isnan(b[i])))
            return false;
    return true;
}

/* What lies beside an external that has a copy, or nothing. */
static bool copy_is_right(const store *s, tr_ref r) {
    const tr_home *home = tr_ref_is_external(r) && s->plan->homes ? s->plan->homes[s->p->n_values + tr_ref_slot(r)] : NULL;
    if (!tr_home_has_copy(home))
        return true;
    const float *x = (const float *) (const void *) s->external[tr_ref_slot(r)];
    const uint16_t *copy = (const uint16_t *) (const void *) s->copy[tr_ref_slot(r)];
    for (int64_t i = 0; i < tr_home_meta(home)->numel; i++) {
        uint32_t bits, rounded;
        memcpy(&bits, &x[i], sizeof bits);
        rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        if (copy[i] != rounded && !isnan(x[i]))
            return false;
    }
    return true;
}

/* What the instruction wrote. */
static void same_numbers(const store *eager, const store *planned, const tr_plan *plan, uint32_t i, uint64_t seed) {
    const tr_path *p = plan->path;
    const tr_instr *instr = &plan->instrs[i];
    for (uint32_t c = instr->first; c < instr->first + instr->n_ops; c++) {
        const tr_path_op *op = &p->ops[plan->covered[c]];
        for (uint32_t j = 0; j < op->n_in + (uint32_t) op->n_out; j++) {
            tr_ref r = p->operands[op->operand + j].ref;
            bool written = j >= op->n_in || (j < TR_MAX_FIXED && tr_op_info_of(op->op)->written >> j & 1);
            if (r == TR_REF_NONE || !written || (tr_ref_is_value(r) && plan->slot[r] == TR_SLOT_ELIDED))
                continue;
            size_t bytes = tr_ref_is_value(r) ? p->value_bytes[r] : ROOM;
            char copy[ROOM];
            const char *want = base_of(eager, plan, r, copy), *got = base_of(planned, plan, r, copy);
            if (memcmp(want, got, bytes) == 0 && copy_is_right(planned, r))
                continue;
            if ((instr->kind == TR_INSTR_DNN || instr->kind == TR_INSTR_ROWS || (images && op->op == TR_OP_batch_norm)) &&
                close((const float *) (const void *) want, (const float *) (const void *) got, bytes)) {
                memcpy((char *) want, got, bytes); // another order of sums; from here on the same
                continue;
            }
            char *text = tr_plan_text(plan, NULL);
            cr_log_error("%s", text);
            tr_free(text);
            cr_assert_fail("seed %llu: instruction %u, op %u: %s %u differs", (unsigned long long) seed, i, plan->covered[c],
                           tr_ref_is_value(r) ? "value" : "external", tr_ref_slot(r));
        }
    }
}

static void compare(uint64_t seed, uint32_t n_ops) {
    builder b;
    random_path(&b, seed, n_ops);
    tr_plan *plan = builder_compile(&b);
    const tr_path *p = plan->path;
    tr_path seen = *p;
    if (plan->looks)
        seen.operands = plan->looks;
    store eager = make_store(p), planned = make_store(&seen);
    planned.plan = plan;
    char *slab = aligned_alloc(64, plan->slab_bytes + 64), *carry = aligned_alloc(64, plan->carry_bytes + 64);
    memset(slab, 0x55, plan->slab_bytes);
    for (uint32_t v = 0; v < p->n_values; v++) {
        eager.value[v] = aligned_alloc(64, ROOM);
        planned.value[v] = plan->slot[v] < 0 ? NULL : (plan->carry[v] ? carry : slab) + plan->slot[v];
    }
    for (uint32_t i = 0; i < plan->n_instrs; i++) {
        const tr_instr *instr = &plan->instrs[i];
        for (uint32_t c = 0; c < instr->n_ops; c++)
            run_single(&eager, plan->covered[instr->first + c]);
        run_instr(&planned, plan, instr);
        same_numbers(&eager, &planned, plan, i, seed);
    }
    for (uint32_t v = 0; v < p->n_values; v++)
        free(eager.value[v]);
    for (uint32_t e = 0; e < p->n_externals; e++) {
        free(eager.external[e]);
        free(planned.external[e]);
        free(eager.copy[e]);
        free(planned.copy[e]);
    }
    free(eager.copy);
    free(planned.copy);
    free(eager.value);
    free(eager.external);
    free(planned.value);
    free(planned.external);
    free(slab);
    free(carry);
    tr_plan_destroy(plan);
}

Test(numbers, plans_give_the_bits_of_single_ops, .timeout = 120) {
    cr_assert_eq(tr_kernel_init(NULL), TR_OK);
    for (uint64_t seed = 1; seed < 400; seed++)
        compare(seed, seed % 3 ? 15 : 60);
    for (uint64_t seed = 1000; seed < 1010; seed++)
        compare(seed, 500);
}

Test(numbers, of_images, .timeout = 120) {
    cr_assert_eq(tr_kernel_init(NULL), TR_OK);
    images = true;
    for (uint64_t seed = 1; seed < 400; seed++)
        compare(seed, seed % 3 ? 15 : 60);
}
