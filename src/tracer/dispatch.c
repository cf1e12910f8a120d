/* dispatch.c - tr_apply: every op of every program comes through here. */
#include "tracer/clock.h"
#include "tracer/dispatch.h"
#include "tracer/tape.h"
#include "tracer/trace.h"

#include "terra/alloc.h"

#include <stdio.h>
#include <string.h>

enum { FEW = 24 };

static const tr_meta *number_meta[TR_DTYPE_COUNT];

static const tr_meta *meta_of_number(tr_dtype d) {
    if (!number_meta[d])
        number_meta[d] = tr_meta_get(d, 0, NULL, NULL);
    return number_meta[d];
}

tr_input tr_in_double(double v) {
    return (tr_input){.meta = meta_of_number(TR_F64), .number = {.d = v}};
}
tr_input tr_in_int(int64_t v) {
    return (tr_input){.meta = meta_of_number(TR_I64), .number = {.i = v}};
}
tr_input tr_in_bool(bool v) {
    return (tr_input){.meta = meta_of_number(TR_BOOL), .number = {.i = v}};
}

tr_status tr_wrap_dim(int64_t d, int n, int64_t *out) {
    int64_t range = n ? n : 1;
    if (d < -range || d >= range)
        return TR_FAIL(TR_E_INDEX, "Dimension out of range (expected to be in range of [%lld, %lld], but got %lld)",
                       (long long) -range, (long long) range - 1, (long long) d);
    *out = d < 0 ? d + range : d;
    return TR_OK;
}

tr_dtype tr_result_type(const tr_input *in, int n) {
    tr_operand o[FEW] = {0};
    for (int i = 0; i < n && i < FEW; i++)
        o[i] = in[i].tensor ? (tr_operand){in[i].tensor->storage, in[i].tensor->meta, {0}} : (tr_operand){NULL, in[i].meta, {0}};
    return tr__promote(o, n < FEW ? n : FEW);
}

/* A copy of what the tensor shows now: its memory is seen from outside, where it may change behind our back. */
static tr_status snapshot(tr_tensor *t, tr_operand *o) {
    void *to, *from = NULL;
    size_t size = tr_dtype_size((tr_dtype) t->meta->dtype);
    size_t bytes = (size_t) t->meta->extent * size;
    tr_operand whole = {t->storage, t->meta, {.i = t->offset}};
    if (t->storage->shared)
        from = (char *) t->storage->data + (size_t) t->offset * size;
    else
        TR_TRY(tr_exec_fetch(&whole, tr__need_of(t->storage), NULL, 0, &from));
    tr_storage *s = tr_storage_create_filled(bytes, &to);
    if (!s)
        return TR_E_NOMEM;
    if (bytes)
        memcpy(to, from, bytes);
    *o = (tr_operand){s, t->meta, {.i = 0}};
    return TR_OK;
}

static bool is_external(const tr_storage *s) {
    return s->shared || s->exports;
}

/* Fills in operands. Where one's storage is not the tensor's own, it is a snapshot, to be released. */
static tr_status operands(const tr_op_info *info, const tr_input *in, int n_in, bool in_place, tr_operand *o) {
    for (int i = 0; i < n_in; i++) {
        tr_tensor *t = in[i].tensor;
        if (!t) {
            o[i] = (tr_operand){NULL, in[i].meta, in[i].number};
            continue;
        }
        o[i] = (tr_operand){t->storage, t->meta, {.i = t->offset}};
        bool written = i < 16 && ((info->written | (unsigned) in_place) >> i & 1);
        if (TR_UNLIKELY(is_external(t->storage)) && !written)
            TR_TRY(snapshot(t, &o[i]));
    }
    return TR_OK;
}

static void release_snapshots(const tr_input *in, int n_in, tr_operand *o) {
    for (int i = 0; i < n_in; i++)
        if (in[i].tensor && o[i].storage && o[i].storage != in[i].tensor->storage)
            tr__storage_release(o[i].storage);
}

/* Python's arguments come checked by the schema; the C side's calls are checked here. */
static tr_status check_arity(const tr_op_info *info, int n_in) {
    if (n_in < info->n_operands || (n_in > info->n_operands && !info->variadic))
        return TR_FAIL(TR_E_TYPE, "%s: %d operands expected, got %d", info->name, info->n_operands, n_in);
    return TR_OK;
}

static tr_status check_required(const tr_op_info *info, const tr_input *in) {
    for (int i = 0; i < info->n_params; i++) {
        const tr_param *p = &info->params[i];
        if (p->slots || p->kind == TR_ARG_TENSORS || p->optional)
            continue;
        const tr_input *x = &in[p->at];
        if (p->kind == TR_ARG_TENSOR ? !x->tensor : !x->tensor && !x->meta)
            return TR_FAIL(TR_E_TYPE, "%s(): argument '%s' must be Tensor, not None", info->name, p->name);
    }
    return TR_OK;
}

static tr_status apply_view(tr_op op, const tr_input *in, const int64_t *attrs, tr_tensor **out) {
    const tr_op_info *info = tr_op_info_of(op);
    tr_tensor *t = in[0].tensor;
    int64_t a[TR_MAX_ATTRS];
    if (info->n_attrs)
        memcpy(a, attrs, (size_t) info->n_attrs * sizeof *a);
    tr_operand o = {t->storage, t->meta, {.i = t->offset}};
    tr_infer c = {.op = op, .n_in = 1, .in = &o, .attrs = a};
    TR_TRY(tr__infer(&c));
    int64_t offset = t->offset + c.offset;
    int64_t end = offset + c.out[0]->extent;
    if (op == TR_OP_as_strided &&
        (offset < 0 || end * (int64_t) tr_dtype_size((tr_dtype) t->meta->dtype) > (int64_t) t->storage->bytes))
        return TR_FAIL(TR_E_RUNTIME, "setStorage: sizes, strides and storage offset %lld reach beyond the storage of %zu bytes",
                       (long long) offset, t->storage->bytes);
    tr_tensor *view = tr__tensor_over(t->storage, c.out[0], offset);
    if (!view)
        return TR_E_NOMEM;
    view->own_version = t->own_version;
    tr_status status = TR_OK;
    if (op != TR_OP_detach && !tr__tape_is_final()) {
        tr_tensor *base = t->base ? t->base : t;
        view->base = base;
        tr_tensor_retain(base);
        if (tr__tape_wanted(op, in, 1))
            status = tr__tape_record(op, in, 1, a, &view, 1, NULL);
        view->view_version = t->storage->version;
    }
    if (status != TR_OK) {
        tr_tensor_release(view);
        return status;
    }
    *out = view;
    return TR_OK;
}

static tr_tensor *default_generator_of(const tr_op_info *info, int operand, const tr_input *in) {
    if (in[operand].tensor)
        return in[operand].tensor;
    for (int i = 0; i < info->n_params; i++)
        if (info->params[i].kind == TR_ARG_GENERATOR && info->params[i].at == operand)
            return tr_default_generator();
    return NULL;
}

static void bump_written(const tr_op_info *info, const tr_input *in, bool in_place) {
    if (in_place && !in[0].tensor->own_version)
        in[0].tensor->storage->version++;
    for (int i = 0; i < info->n_operands; i++)
        if ((info->written >> i & 1) && in[i].tensor && !in[i].tensor->own_version)
            in[i].tensor->storage->version++;
}

/* Writes to memory that the outside sees are done when the call returns. */
static tr_status settle_shared(const tr_op_info *info, const tr_input *in, bool in_place) {
    bool seen = in_place && is_external(in[0].tensor->storage);
    for (int i = 0; i < info->n_operands && !seen; i++)
        seen = (info->written >> i & 1) && in[i].tensor && is_external(in[i].tensor->storage);
    return seen ? tr_synchronize() : TR_OK;
}

static tr_status finish(tr_op op, const tr_op_info *info, const tr_input *in, int n_in, tr_issue *call, bool wanted,
                        tr_tensor **out) {
    tr_tensor *made[TR_MAX_OUTPUTS] = {0};
    tr_tensor *written = NULL;
    int n_out = info->n_outputs;
    tr_status status = TR_OK;
    if (call->in_place || n_out == 0) {
        written = in[0].tensor;
        tr_tensor_retain(written);
        made[0] = written;
        n_out = 1;
    } else
        for (int i = 0; i < n_out; i++) {
            made[i] = status == TR_OK ? tr__tensor_over(call->storage[i], call->meta[i], 0) : NULL;
            if (!made[i])
                status = TR_E_NOMEM;
            tr__storage_release(call->storage[i]);
        }
    bump_written(info, in, call->in_place);
    if (status == TR_OK && wanted)
        status = tr__tape_record(op, in, n_in, call->attrs, made, n_out, written);
    if (status != TR_OK) {
        for (int i = 0; i < n_out; i++)
            tr_tensor_release(made[i]);
        return status;
    }
    memcpy(out, made, (size_t) n_out * sizeof *out);
    return TR_OK;
}

static tr_status apply(tr_op op, const tr_input *in_given, int n_in, const int64_t *attrs, const tr_meta *given, bool in_place,
                   tr_tensor **out) {
    const tr_op_info *info = tr_op_info_of(op);
    tr_input few_in[FEW], *in = few_in;
    tr_operand few_o[FEW], *o = few_o;
    TR_TRY(check_arity(info, n_in));
    void *more = NULL;
    if (n_in > FEW) {
        more = tr_malloc((size_t) n_in * (sizeof *in + sizeof *o));
        if (!more)
            return TR_FAIL(TR_E_NOMEM, "no memory for the operands of %s", info->name);
        in = more;
        o = (tr_operand *) (in + n_in);
    }
    if (n_in)
        memcpy(in, in_given, (size_t) n_in * sizeof *in);
    tr_status status = check_required(info, in);
    if (status == TR_OK && info->op_class == TR_CLASS_VIEW)
        status = apply_view(op, in, attrs, out);
    else if (status == TR_OK) {
        for (int i = 0; i < info->n_operands; i++)
            if (info->written >> i & 1)
                in[i].tensor = default_generator_of(info, i, in);
        int64_t a[TR_MAX_ATTRS];
        if (info->n_attrs)
            memcpy(a, attrs, (size_t) info->n_attrs * sizeof *a);
        bool wanted = tr__tape_wanted(op, in, n_in);
        if (in_place || (info->written & 1))
            status = tr__tape_check_inplace(in[0].tensor, wanted);
        if (n_in)
            memset(o, 0, (size_t) n_in * sizeof *o);
        if (status == TR_OK)
            status = operands(info, in, n_in, in_place, o);
        tr_issue call = {.op = op, .in = o, .n_in = n_in, .attrs = a, .given = given, .in_place = in_place};
        if (status == TR_OK)
            status = tr__issue(&call);
        if (status == TR_OK)
            status = finish(op, info, in, n_in, &call, wanted, out);
        release_snapshots(in, n_in, o);
        if (status == TR_OK && TR_UNLIKELY(in_place || info->written))
            status = settle_shared(info, in, in_place);
    }
    tr_free(more);
    return status;
}

static tr_status (*op_hook)(void *arg, tr_tensor *result);
static void *op_hook_arg;

void tr_set_op_hook(tr_status (*hook)(void *arg, tr_tensor *result), void *arg) {
    op_hook = hook;
    op_hook_arg = arg;
}

static tr_status call_hook(tr_op op, tr_tensor **out) {
    tr_status (*hook)(void *, tr_tensor *) = op_hook;
    const tr_op_info *info = tr_op_info_of(op);
    if (info->op_class == TR_CLASS_VIEW)
        return TR_OK;
    op_hook = NULL;
    tr_status status = hook(op_hook_arg, out[0]);
    op_hook = op_hook ? op_hook : hook;
    for (int i = 0; status != TR_OK && i < (info->n_outputs ? info->n_outputs : 1); i++) {
        tr_tensor_release(out[i]);
        out[i] = NULL;
    }
    return status;
}

void tr_hold_executor(bool on) {
    tr_exec_hold(on);
}

void tr_wait_until_idle(void) {
    tr_exec_wait_until_idle();
}

tr_status tr_apply(tr_op op, const tr_input *in, int n_in, const int64_t *attrs, const tr_meta *given, bool in_place,
                   tr_tensor **out) {
    bool timed = tr__clock_enter_op();
    tr_status status = apply(op, in, n_in, attrs, given, in_place, out);
    tr__clock_leave(timed);
    if (TR_UNLIKELY(op_hook != NULL) && status == TR_OK)
        status = call_hook(op, out);
    return status;
}
