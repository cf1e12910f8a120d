/* activation.c - one run of a plan, on the executor thread.
 *
 * Instructions run in order, each when the validated cursor has reached its ready point. When Python waits for something
 * that lies in an instruction which isn't ready (the demand rule), or leaves the path (EXIT), the validated ops that have not
 * run are run one at a time, in program order, their results in blocks of their own: a slot of the slab belongs to its value
 * only from its instruction's turn on. An instruction some of whose ops were run so is broken: the rest of it runs op by op,
 * in its turn. */
#include "exec/runner.h"

#include "terra/alloc.h"
#include "terra/dnn.h"

#include <string.h>

struct tr_plan_state {
    tr_activation *unused; /* Python's */
    tr_sharing sharing;    /* the first executor's */
};

static uint32_t cursor(const tr_runner *r) {
    // Acquire: pairs with the release in tr_exec_advance.
    return atomic_load_explicit(&r->current->cursor, memory_order_acquire);
}

/* Lets go of a pool's slabs; those in use go when they come free. */
static void drop_slabs(tr_runner *r, tr_slab **pool, bool all) {
    for (tr_slab **at = pool, *s; (s = *at);) {
        if (s->refs > 0 && !all) {
            at = &s->next;
            continue;
        }
        *at = s->next;
        s->pooled = false;
        s->refs++;
        tr__slab_release(r->arena, s);
    }
}

/* The smallest free one of at least `bytes` and at most `most`. */
static tr_slab *take_free(tr_slab *pool, size_t bytes, size_t most) {
    tr_slab *best = NULL;
    for (tr_slab *s = pool; s; s = s->next)
        if (s->refs == 0 && s->bytes >= bytes && s->bytes <= most && (!best || s->bytes < best->bytes))
            best = s;
    if (best)
        best->refs = 1;
    return best;
}

static tr_slab *add_slab(tr_runner *r, tr_slab **pool, size_t bytes) {
    tr_slab *s = tr__slab_create(r->arena, bytes);
    if (!s)
        return NULL;
    s->pooled = true;
    s->next = *pool;
    *pool = s;
    return s;
}

static tr_slab *take_slab(tr_runner *r, size_t bytes) {
    tr_slab *s = take_free(r->slabs, bytes, SIZE_MAX);
    if (s)
        return s;
    drop_slabs(r, &r->slabs, false); // all too small: the new one does for their plans, too
    return add_slab(r, &r->slabs, bytes);
}

static tr_slab *take_carry(tr_runner *r, size_t bytes) {
    tr_slab *s = take_free(r->carries, bytes, 2 * bytes); // not the gradients' for a loss
    return s ? s : add_slab(r, &r->carries, bytes);
}

void tr__activation_open(tr_runner *r, tr_activation *a) {
    tr_plan *plan = a->plan;
    const tr_path *path = plan->path;
    r->current = a;
    r->failed = r->error != TR_OK;
    a->next_instr = 0;
    a->n_temps = 0;
    memset(a->op_done, 0, path->n_ops);
    memset(a->broken, 0, plan->n_instrs);
    memset(a->settled, 0, path->n_values);
    a->schedule = NULL;
    atomic_store_explicit(&a->ended, false, memory_order_relaxed); // published by tr__crew_begin
    atomic_store_explicit(&a->alone, false, memory_order_relaxed);
    a->slab = take_slab(r, plan->slab_bytes);
    a->carry = take_carry(r, plan->carry_bytes);
    if (!a->slab || !a->carry) {
        TR_FAIL(TR_E_NOMEM, "no memory for a plan's %zu bytes", plan->slab_bytes + plan->carry_bytes);
        tr__runner_fail(r, TR_E_NOMEM);
        memset(a->address, 0, path->n_values * sizeof *a->address);
        return;
    }
    for (uint32_t v = 0; v < path->n_values; v++) {
        if (plan->slot[v] < 0)
            a->address[v] = NULL;
        else
            a->address[v] = (char *) (plan->carry[v] ? a->carry : a->slab)->base + plan->slot[v];
    }
    if (!r->failed && (a->schedule = tr__sharing_open(&plan->state->sharing, plan)))
        tr__crew_begin(r);
}

static bool lies_otherwise(const tr_activation *a, tr_ref v) {
    return a->plan->looks && a->plan->relaid[v] && !a->settled[v];
}

/* An operand as it lies: as the program sees it, but for values that the plan keeps in another order. */
static const tr_path_operand *seen(const tr_activation *a, uint32_t operand) {
    const tr_path_operand *o = &a->plan->path->operands[operand];
    return tr_ref_is_value(o->ref) && lies_otherwise(a, o->ref) ? &a->plan->looks[operand] : o;
}

static const tr_home *home_of(const tr_plan *plan, tr_ref r) {
    if (!plan->homes)
        return NULL;
    return plan->homes[tr_ref_is_value(r) ? r : plan->path->n_values + tr_ref_slot(r)];
}

/* Brings a value that has a home there, or back into the program's order. */
static tr_status move_value(tr_runner *r, tr_ref v, bool at_home) {
    tr_activation *a = r->current;
    const tr_home *home = home_of(a->plan, v);
    if (!home || !a->address[v] || a->settled[v] == !at_home)
        return TR_OK;
    tr__crew_disband(r);
    TR_TRY(tr__move(r, a->address[v], at_home ? NULL : home, at_home ? home : NULL));
    a->settled[v] = !at_home;
    return TR_OK;
}

void *tr__activation_address(tr_runner *r, tr_ref v, tr_status *status) {
    tr_activation *a = r->current;
    if (TR_UNLIKELY((*status = move_value(r, v, false)) != TR_OK))
        return NULL;
    if (!lies_otherwise(a, v) || !a->address[v])
        return a->address[v];
    // Somebody outside the plan looks: a copy in the program's order, which is the value from now on.
    tr__crew_disband(r);
    uint32_t home = a->plan->relaid[v] - 1;
    void *block = tr_arena_alloc(r->arena, a->plan->path->value_bytes[v]);
    if (!block) {
        *status = TR_FAIL(TR_E_NOMEM, "no memory for a tensor of %zu bytes", a->plan->path->value_bytes[v]);
        return NULL;
    }
    a->temps[a->n_temps++] = block;
    tr_arg from = {.data = a->address[v], .meta = a->plan->looks[home].meta};
    tr_arg to = {.data = block, .meta = a->plan->path->operands[home].meta};
    tr_kernel_call copy = {.op = TR_OP__contiguous, .cdtype = to.meta->dtype, .n_in = 1, .n_out = 1, .in = &from, .out = &to,
                           .ctx = &r->ctx};
    *status = tr__run_kernel(r, &copy, 0);
    if (*status != TR_OK)
        return NULL;
    a->address[v] = block;
    a->settled[v] = 1;
    return block;
}

/* Memory of an operand: `planned`, as the plan's instructions want it; else in the program's order. */
static tr_status resolve(tr_runner *r, uint32_t operand, bool planned, tr_arg *arg) {
    tr_activation *a = r->current;
    const tr_path_operand *o = seen(a, operand);
    *arg = (tr_arg){.meta = o->meta, .at = {.i = a->args[operand]}};
    if (o->ref == TR_REF_NONE)
        return TR_OK;
    tr_status status = TR_OK;
    char *base;
    arg->home = planned ? home_of(a->plan, o->ref) : NULL;
    if (tr_ref_is_value(o->ref)) {
        TR_TRY(move_value(r, o->ref, planned));
        base = a->address[o->ref];
    } else {
        tr_storage *s = a->external[tr_ref_slot(o->ref)];
        base = tr__storage_address_at(r, s, arg->home, &status);
        if (tr_home_has_copy(arg->home)) {
            arg->copy = s->copy;
            arg->home = NULL;
        }
    }
    if (TR_UNLIKELY(!base))
        return status != TR_OK ? status : TR_FAIL(TR_E_INTERNAL, "a value of a plan has no place");
    arg->data = base + arg->at.i * (int64_t) tr_dtype_size(o->meta->dtype);
    return TR_OK;
}

static tr_kernel_call call_of(tr_runner *r, const tr_path_op *op, tr_arg *args) {
    return (tr_kernel_call){
        .op = op->op,
        .cdtype = op->cdtype,
        .n_in = op->n_in,
        .n_out = op->n_out,
        .attrs = r->current->plan->path->attrs + op->attr,
        .in = args,
        .out = args + op->n_in,
        .ctx = &r->ctx,
    };
}

static tr_status resolve_op(tr_runner *r, const tr_path_op *op, bool planned, tr_arg *args, tr_kernel_call *k) {
    uint32_t n = op->n_in + op->n_out;
    for (uint32_t i = 0; i < n; i++)
        TR_TRY(resolve(r, op->operand + i, planned, &args[i]));
    *k = call_of(r, op, args);
    return TR_OK;
}

static tr_status run_op(tr_runner *r, const tr_path_op *op, bool planned) {
    tr_kernel_call k;
    TR_TRY(tr__runner_args(r, op->n_in + op->n_out));
    TR_TRY(resolve_op(r, op, planned, r->args, &k));
    return tr__run_kernel(r, &k, op->site);
}

static tr_status run_elementwise(tr_runner *r, const tr_instr *instr) {
    TR_TRY(tr__runner_args(r, instr->program->n_args));
    for (int i = 0; i < instr->program->n_args; i++)
        TR_TRY(resolve(r, instr->args[i], true, &r->args[i]));
    return tr_ew_run(instr->program, instr->space, r->args, &r->ctx);
}

/* Are the numbers that the partition has baked in still the same? */
static bool guards_hold(const tr_runner *r, const tr_instr *instr) {
    const tr_activation *a = r->current;
    for (uint32_t i = instr->n_args; i < instr->n_args + instr->n_guards; i++)
        if (a->args[instr->args[i]] != a->plan->path->args[instr->args[i]])
            return false;
    return true;
}

/* Can all externals be where the plan wants them? Not memory that others see, nor part of a larger storage. */
static bool homes_hold(const tr_runner *r, const tr_instr *instr) {
    const tr_activation *a = r->current;
    const tr_path *path = a->plan->path;
    for (uint32_t c = instr->first; c < instr->first + instr->n_ops; c++) {
        const tr_path_op *op = &path->ops[a->plan->covered[c]];
        for (uint32_t i = op->operand; i < op->operand + op->n_in + op->n_out; i++) {
            tr_ref ref = path->operands[i].ref;
            const tr_home *home = tr_ref_is_external(ref) ? home_of(a->plan, ref) : NULL;
            const tr_storage *s = home ? a->external[tr_ref_slot(ref)] : NULL;
            if (s && (s->shared || s->pinned || s->bytes != tr_home_bytes(home)))
                return false;
        }
    }
    return true;
}

static tr_status run_partition(tr_runner *r, const tr_instr *instr) {
    void *data[TR_DNN_MAX_VALUES];
    for (uint32_t i = 0; i < instr->n_args; i++) {
        tr_arg arg;
        TR_TRY(resolve(r, instr->args[i], true, &arg));
        data[i] = arg.data;
    }
    return tr_dnn_partition_run(instr->dnn, data);
}

static tr_status run_rows(tr_runner *r, const tr_instr *instr) {
    const tr_rows *rows = instr->rows;
    uint32_t n = 0;
    for (uint32_t s = 0; s < rows->n_stages; s++)
        n += rows->stages[s].n_args;
    TR_TRY(tr__runner_args(r, n));
    tr_arg *arg = r->args;
    for (uint32_t s = 0; s < rows->n_stages; s++)
        for (uint32_t i = 0; i < rows->stages[s].n_args; i++, arg++) {
            const tr_row_arg *a = &rows->stages[s].args[i];
            if (a->scratch >= 0)
                *arg = (tr_arg){.at = {.i = r->current->args[a->operand]}};
            else
                TR_TRY(resolve(r, a->operand, true, arg));
        }
    tr_rows_run run = {rows, r->current->plan->path, r->args, &r->ctx};
    tr_status status = tr_rows_run_all(&run);
    tr__runner_reset_scratch(r);
    return status;
}

static tr_status resolve_unless_elided(tr_runner *r, uint32_t operand, tr_arg *arg) {
    const tr_plan *plan = r->current->plan;
    tr_ref v = plan->path->operands[operand].ref;
    if (tr_ref_is_value(v) && plan->slot[v] == TR_SLOT_ELIDED) {
        *arg = (tr_arg){0};
        return TR_OK;
    }
    return resolve(r, operand, true, arg);
}

/* batch_norm, and behind it an addition, a relu, or both. */
static tr_status run_norm_forward(tr_runner *r, const tr_path_op *const *op, uint32_t n_ops) {
    const tr_path *path = r->current->plan->path;
    const tr_path_op *norm = op[0], *last = op[n_ops - 1];
    uint32_t at = norm->operand;
    tr_arg momentum, eps;
    tr_norm_forward f = {.training = path->attrs[norm->attr] != 0};
    tr_arg *const in[] = {&f.x, &f.weight, &f.bias, &f.running_mean, &f.running_var, &momentum, &eps};
    for (uint32_t i = 0; i < 7; i++)
        TR_TRY(resolve(r, at + i, true, in[i]));
    TR_TRY(resolve(r, at + norm->n_in + 1, true, &f.mean));
    TR_TRY(resolve(r, at + norm->n_in + 2, true, &f.inv));
    TR_TRY(resolve(r, last->operand + last->n_in, true, &f.y));
    f.momentum = tr_arg_double(&momentum);
    f.eps = tr_arg_double(&eps);
    for (uint32_t i = 1; i < n_ops; i++) {
        f.flags |= op[i]->op == TR_OP_add ? TR_NORM_ADD : TR_NORM_RELU;
        if (op[i]->op == TR_OP_add) {
            bool first = path->operands[op[i]->operand].ref == path->operands[at + norm->n_in].ref;
            TR_TRY(resolve(r, op[i]->operand + (first ? 1 : 0), true, &f.other));
        }
    }
    return tr_norm_forward_fused(&f, &r->ctx);
}

/* threshold_backward, perhaps of a sum, then batch_norm_backward. */
static tr_status run_norm_backward(tr_runner *r, const tr_path_op *const *op, uint32_t n_ops) {
    const tr_path *path = r->current->plan->path;
    const tr_path_op *sum = n_ops == 3 ? op[0] : NULL, *mask = op[n_ops - 2], *norm = op[n_ops - 1];
    tr_norm_backward f = {.flags = TR_NORM_RELU, .training = path->attrs[norm->attr] != 0};
    uint32_t at = norm->operand;
    TR_TRY(resolve(r, (sum ? sum : mask)->operand, true, &f.grad));
    if (sum)
        TR_TRY(resolve(r, sum->operand + 1, true, &f.residual));
    TR_TRY(resolve(r, mask->operand + 1, true, &f.y));
    TR_TRY(resolve_unless_elided(r, mask->operand + mask->n_in, &f.dother));
    TR_TRY(resolve(r, at + 1, true, &f.x));
    TR_TRY(resolve(r, at + 2, true, &f.weight));
    TR_TRY(resolve(r, at + 3, true, &f.mean));
    TR_TRY(resolve(r, at + 4, true, &f.inv));
    TR_TRY(resolve(r, at + norm->n_in, true, &f.dx));
    TR_TRY(resolve_unless_elided(r, at + norm->n_in + 1, &f.dweight));
    TR_TRY(resolve_unless_elided(r, at + norm->n_in + 2, &f.dbias));
    return tr_norm_backward_fused(&f, &r->ctx);
}

static tr_status run_norm(tr_runner *r, const tr_instr *instr) {
    const tr_plan *plan = r->current->plan;
    const tr_path_op *op[3];
    for (uint32_t i = 0; i < instr->n_ops; i++)
        op[i] = &plan->path->ops[plan->covered[instr->first + i]];
    tr_status status = (op[0]->op == TR_OP_batch_norm ? run_norm_forward : run_norm_backward)(r, op, instr->n_ops);
    tr__runner_reset_scratch(r);
    return status;
}

/* The cast's result is what its operand has beside it; that is made first, should somebody have looked at the operand since. */
static tr_status run_copy(tr_runner *r, const tr_instr *instr) {
    const tr_plan *plan = r->current->plan;
    const tr_path_op *cast = &plan->path->ops[plan->covered[instr->first]];
    tr_arg from;
    TR_TRY(resolve(r, cast->operand, true, &from));
    r->current->address[plan->path->operands[cast->operand + cast->n_in].ref] = from.copy;
    return TR_OK;
}

/* The op writes where the cast's result is at home. */
static tr_status run_narrow(tr_runner *r, const tr_instr *instr) {
    const tr_plan *plan = r->current->plan;
    const tr_path_op *op = &plan->path->ops[plan->covered[instr->first]], *cast = &plan->path->ops[plan->covered[instr->first + 1]];
    tr_arg result;
    TR_TRY(tr__runner_args(r, op->n_in + op->n_out));
    for (uint32_t i = 0; i < op->n_in; i++)
        TR_TRY(resolve(r, op->operand + i, true, &r->args[i]));
    TR_TRY(resolve(r, cast->operand + cast->n_in, true, &result));
    r->args[op->n_in] = (tr_arg){.data = result.data, .meta = seen(r->current, op->operand + op->n_in)->meta};
    tr_kernel_call k = call_of(r, op, r->args);
    return tr__run_kernel(r, &k, op->site);
}

static tr_status run_multi(tr_runner *r, const tr_instr *instr) {
    const tr_plan *plan = r->current->plan;
    const tr_path *path = plan->path;
    const uint32_t *op = plan->covered + instr->first;
    uint32_t per = path->ops[op[0]].n_in;
    TR_TRY(tr__runner_args(r, per * instr->n_ops));
    tr_kernel_call calls[64];
    for (uint32_t done = 0; done < instr->n_ops;) {
        uint32_t n = instr->n_ops - done < 64 ? instr->n_ops - done : 64;
        for (uint32_t i = 0; i < n; i++)
            TR_TRY(resolve_op(r, &path->ops[op[done + i]], true, r->args + i * per, &calls[i]));
        TR_TRY(tr_kernel_multi(calls[0].op, calls, (int) n));
        tr__runner_reset_scratch(r);
        done += n;
    }
    return TR_OK;
}

/* One op by itself, its results in blocks of their own. */
static void run_single(tr_runner *r, uint32_t index) {
    tr_activation *a = r->current;
    const tr_plan *plan = a->plan;
    const tr_path_op *op = &plan->path->ops[index];
    a->op_done[index] = 1;
    a->broken[plan->instr_of[index]] = 1;
    tr_status status = TR_OK;
    for (int i = 0; i < op->n_out && !op->in_place && status == TR_OK; i++) {
        tr_ref v = plan->path->operands[op->operand + op->n_in + (uint32_t) i].ref;
        void *block = r->failed ? NULL : tr_arena_alloc(r->arena, plan->path->value_bytes[v]);
        a->address[v] = block;
        a->settled[v] = home_of(plan, v) != NULL; // in the program's order
        if (block)
            a->temps[a->n_temps++] = block;
        else if (!r->failed)
            status = TR_FAIL(TR_E_NOMEM, "no memory for a tensor of %zu bytes", plan->path->value_bytes[v]);
    }
    if (r->failed)
        return;
    int64_t start = TR_UNLIKELY(tr_timeline_on) ? tr_now_ns() : 0;
    if (status == TR_OK)
        status = run_op(r, op, false);
    if (TR_UNLIKELY(tr_timeline_on))
        tr_timeline_add(tr__track_of(r), tr_op_info_of((tr_op) op->op)->name, NULL, 1, 0, 0, start, tr_now_ns());
    TR_COUNT(r->ops_single, 1);
    if (status != TR_OK) {
        for (int i = 0; i < op->n_out && !op->in_place; i++)
            a->address[plan->path->operands[op->operand + op->n_in + (uint32_t) i].ref] = NULL;
        tr__runner_fail(r, status);
    }
}

static void run_broken(tr_runner *r, const tr_instr *instr) {
    const uint32_t *op = r->current->plan->covered + instr->first;
    for (uint32_t i = 0; i < instr->n_ops; i++)
        if (!r->current->op_done[op[i]])
            run_single(r, op[i]);
}

/* Values of an instruction that failed or was skipped have no contents. */
static void forget_results(tr_runner *r, const tr_instr *instr) {
    const tr_plan *plan = r->current->plan;
    for (uint32_t i = 0; i < instr->n_ops; i++) {
        const tr_path_op *op = &plan->path->ops[plan->covered[instr->first + i]];
        for (int j = 0; j < op->n_out && !op->in_place; j++)
            r->current->address[plan->path->operands[op->operand + op->n_in + (uint32_t) j].ref] = NULL;
    }
}

static tr_status run_instr(tr_runner *r, const tr_instr *instr) {
    switch (instr->kind) {
    case TR_INSTR_EW:
        return run_elementwise(r, instr);
    case TR_INSTR_MULTI:
        return run_multi(r, instr);
    case TR_INSTR_DNN:
        return run_partition(r, instr);
    case TR_INSTR_NORM:
        return run_norm(r, instr);
    case TR_INSTR_COPY:
        return run_copy(r, instr);
    case TR_INSTR_NARROW:
        return run_narrow(r, instr);
    case TR_INSTR_ROWS:
        return run_rows(r, instr);
    case TR_INSTR_SKIP:
        return TR_OK;
    default:
        return run_op(r, &r->current->plan->path->ops[r->current->plan->covered[instr->first]], true);
    }
}

/* An instruction's time goes to the timeline and, at its least, into the plan. */
static void note_time(tr_runner *r, const tr_instr *instr, int64_t start) {
    const tr_plan *plan = r->current->plan;
    const tr_path *path = plan->path;
    const uint32_t *ops = plan->covered + instr->first;
    int64_t end = tr_now_ns();
    uint32_t i = (uint32_t) (instr - plan->instrs);
    if (plan->ns) {
        // Relaxed: a number to look at; this thread alone writes it.
        int64_t least = atomic_load_explicit(&plan->ns[i], memory_order_relaxed);
        if (least == 0 || end - start < least)
            atomic_store_explicit(&plan->ns[i], end - start, memory_order_relaxed);
    }
    if (tr_timeline_on)
        tr_timeline_add(tr__track_of(r), tr_op_info_of((tr_op) path->ops[ops[0]].op)->name,
                        tr_op_info_of((tr_op) path->ops[ops[instr->n_ops - 1]].op)->name, instr->n_ops, plan->id, i, start, end);
}

bool tr__activation_as_planned(const tr_runner *r, uint32_t i) {
    const tr_instr *instr = &r->current->plan->instrs[i];
    return !r->current->broken[i] && (!instr->n_guards || guards_hold(r, instr)) && (!instr->has_homes || homes_hold(r, instr));
}

tr_status tr__activation_run(tr_runner *r, uint32_t i) {
    const tr_plan *plan = r->current->plan;
    const tr_instr *instr = &plan->instrs[i];
    bool timed = TR_UNLIKELY(tr_timeline_on || plan->ns);
    int64_t start = timed ? tr_now_ns() : 0;
    r->ctx.planned = true;
    tr_status status = run_instr(r, instr);
    r->ctx.planned = false;
    if (timed)
        note_time(r, instr, start);
    TR_COUNT(r->instructions, 1);
    TR_COUNT(r->ops_covered, instr->n_ops);
    TR_COUNT(r->bytes_elided, instr->bytes_elided);
    if (TR_UNLIKELY(status != TR_OK))
        forget_results(r, instr);
    return status;
}

static void run_or_skip(tr_runner *r, uint32_t i) {
    const tr_instr *instr = &r->current->plan->instrs[i];
    if (TR_UNLIKELY(r->failed)) {
        forget_results(r, instr);
    } else if (TR_UNLIKELY(!tr__activation_as_planned(r, i))) {
        run_broken(r, instr);
    } else {
        tr_status status = tr__activation_run(r, i);
        if (TR_UNLIKELY(status != TR_OK))
            tr__runner_fail(r, status);
    }
}

/* Alone after others: their failure counts once all ahead of it has run. */
static bool adopt_failure(tr_runner *r, uint32_t i) {
    for (int e = 0; e < tr__crew_size; e++) {
        tr_runner *other = tr__crew[e];
        if (other->failed_at != i)
            continue;
        other->failed_at = NO_INSTR;
        if (!r->failed) {
            TR_FAIL(other->stumbled, "%s", other->stumbled_text);
            tr__runner_fail(r, other->stumbled);
        }
        forget_results(r, &r->current->plan->instrs[i]);
        return true;
    }
    return false;
}

bool tr__activation_step(tr_runner *r) {
    tr_activation *a = r->current;
    const tr_plan *plan = a->plan;
    if (TR_UNLIKELY(tr__crew_shares(r)))
        return tr__crew_step(r);
    while (TR_UNLIKELY(a->schedule != NULL) && a->next_instr < plan->n_instrs && a->ran[a->next_instr])
        a->next_instr++;
    if (a->next_instr == plan->n_instrs || !tr__activation_is_ready(a, a->next_instr))
        return false;
    if (!TR_UNLIKELY(a->schedule != NULL) || !adopt_failure(r, a->next_instr))
        run_or_skip(r, a->next_instr);
    a->next_instr++;
    return true;
}

static bool instr_has_run(const tr_activation *a, uint32_t i) {
    if (i < a->next_instr)
        return true;
    // Relaxed: only the first executor, which asks, writes it.
    return a->schedule && (atomic_load_explicit(&a->alone, memory_order_relaxed) ? a->ran[i] : tr__crew_has_run(a, i));
}

static bool op_has_run(const tr_activation *a, uint32_t op) {
    return instr_has_run(a, a->plan->instr_of[op]) || a->op_done[op];
}

void tr__activation_catch_up(tr_runner *r, uint32_t upto) {
    tr__crew_disband(r);
    while (tr__activation_step(r));
    if (upto > cursor(r))
        upto = cursor(r);
    for (uint32_t op = 0; op < upto; op++)
        if (!op_has_run(r->current, op))
            run_single(r, op);
}

bool tr__activation_has_run(const tr_runner *r, uint32_t upto) {
    return upto == 0 || op_has_run(r->current, upto - 1);
}

/* A value that is the copy beside an external takes it away. */
static void take_copy(tr_activation *a, tr_ref v, const void *at) {
    tr_storage *s = a->plan->copy_of && a->plan->copy_of[v] ? a->external[a->plan->copy_of[v] - 1] : NULL;
    if (s && s->copy == at) {
        s->copy = NULL;
        s->home = NULL;
    }
}

/* Binds what is still alive to its memory: a storage outlives the activation. */
static void bind_survivors(tr_runner *r) {
    tr_activation *a = r->current;
    const tr_plan *plan = a->plan;
    for (uint32_t v = 0; v < plan->path->n_values; v++) {
        tr_storage *s = a->storage_of[v];
        if (!s)
            continue;
        tr_status status = TR_OK;
        const tr_home *home = home_of(plan, v);
        void *at = home ? a->address[v] : tr__activation_address(r, v, &status);
        a->storage_of[v] = NULL;
        s->bound = false;
        s->data = at;
        s->home = a->settled[v] ? NULL : home;
        if (!at) {
            s->poison = r->error != TR_OK ? r->error : TR_E_SKIPPED;
            continue;
        }
        take_copy(a, v, at);
        tr_slab *slab = plan->carry[v] ? a->carry : a->slab;
        if (plan->slot[v] >= 0 && at == (char *) slab->base + plan->slot[v]) {
            s->slab = slab;
            slab->refs++;
            continue;
        }
        for (uint32_t t = 0; t < a->n_temps; t++)
            if (a->temps[t] == at)
                a->temps[t] = NULL; // its own block: goes with the storage
    }
}

void tr__activation_close(tr_runner *r) {
    tr_activation *a = r->current;
    tr__sharing_close(&a->plan->state->sharing, a);
    bind_survivors(r);
    for (uint32_t t = 0; t < a->n_temps; t++)
        tr_arena_free(r->arena, a->temps[t]);
    if (a->slab)
        tr__slab_release(r->arena, a->slab);
    if (a->carry)
        tr__slab_release(r->arena, a->carry);
    r->current = NULL;
    for (uint32_t i = 0; i < r->n_frees; i++)
        tr__store_free(r->arena, r->frees[i]);
    r->n_frees = 0;
    // Release: pairs with the acquire in tr_exec_begin, which reuses the activation.
    atomic_store_explicit(&a->finished, true, memory_order_release);
}

void tr__plan_dropped(tr_runner *r) {
    drop_slabs(r, &r->slabs, true);
    drop_slabs(r, &r->carries, true);
}

/* ------------------------------------------------------------------------------------------------ Python's side */

static size_t activation_bytes(const tr_plan *plan) {
    const tr_path *p = plan->path;
    return sizeof(tr_activation) + 10 * 16 + p->n_operands * 8 + p->n_values * (4 * 8 + 1) + p->n_externals * 8 + p->n_ops +
           2 * plan->n_instrs;
}

static tr_activation *make_activation(tr_plan *plan) {
    const tr_path *p = plan->path;
    size_t bytes = activation_bytes(plan);
    char *at = tr_aligned_alloc(_Alignof(tr_activation), bytes);
    if (!at)
        return NULL;
    memset(at, 0, bytes);
    tr_activation *a = tr_carve(&at, sizeof *a);
    a->plan = plan;
    a->args = tr_carve(&at, p->n_operands * 8);
    a->storage_of = tr_carve(&at, p->n_values * 8);
    a->address = tr_carve(&at, p->n_values * 8);
    a->temps = tr_carve(&at, p->n_values * 2 * 8);
    a->external = tr_carve(&at, p->n_externals * 8);
    a->op_done = tr_carve(&at, p->n_ops);
    a->broken = tr_carve(&at, plan->n_instrs);
    a->ran = tr_carve(&at, plan->n_instrs);
    a->settled = tr_carve(&at, p->n_values);
    atomic_init(&a->finished, true);
    return a;
}

tr_activation *tr__activation_take(tr_plan *plan) {
    if (!plan->state && !(plan->state = tr_calloc(1, sizeof *plan->state)))
        return NULL;
    for (tr_activation *a = plan->state->unused; a; a = a->next)
        // Acquire: pairs with the release in tr__activation_close.
        if (atomic_load_explicit(&a->finished, memory_order_acquire))
            return a;
    tr_activation *a = make_activation(plan);
    if (a) {
        a->next = plan->state->unused;
        plan->state->unused = a;
    }
    return a;
}

void tr__activations_free(tr_plan *plan) {
    if (!plan->state)
        return;
    for (tr_activation *a = plan->state->unused; a;) {
        tr_activation *next = a->next;
        tr_free(a);
        a = next;
    }
    tr__schedule_destroy(plan->state->sharing.schedule);
    tr_free(plan->state);
    plan->state = NULL;
}
