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

static tr_status missing(const tr_op_info *info, int operand) {
    for (int i = 0; i < info->n_params; i++) {
        const tr_param *p = &info->params[i];
        if (p->at == operand && !p->slots && p->kind != TR_ARG_TENSORS)
            return TR_FAIL(TR_E_TYPE, "%s(): argument '%s' must be Tensor, not None", info->name, p->name);
    }
    return TR_FAIL(TR_E_INTERNAL, "%s: operand %d is missing", info->name, operand);
}

static bool has_bit(unsigned bits, int i) {
    return i < 16 && (bits >> i & 1);
}

/* Fills in operands and checks that none is missing. Where one's storage is not the tensor's own (*copied), it is a snapshot, to be
 * released. */
static tr_status operands(const tr_op_info *info, const tr_input *in, int n_in, unsigned written, tr_operand *o, bool *copied) {
    for (int i = 0; i < n_in; i++) {
        tr_tensor *t = in[i].tensor;
        if (!t) {
            o[i] = (tr_operand){NULL, in[i].meta, in[i].number};
            if (TR_UNLIKELY(has_bit(info->needs_tensor, i) || (!in[i].meta && has_bit(info->needs_value, i))))
                return missing(info, i);
            continue;
        }
        o[i] = (tr_operand){t->storage, t->meta, {.i = t->offset}};
        if (TR_UNLIKELY(is_external(t->storage)) && !has_bit(written, i)) {
            if (!*copied)
                memset(o + i + 1, 0, (size_t) (n_in - i - 1) * sizeof *o);
            *copied = true;
            TR_TRY(snapshot(t, &o[i]));
        }
    }
    return TR_OK;
}

static void release_snapshots(const tr_input *in, int n_in, tr_operand *o) {
    for (int i = 0; i < n_in; i++)
        if (in[i].tensor && o[i].storage && o[i].storage != in[i].tensor->storage)
            tr__storage_release(o[i].storage);
}

static tr_status check_arity(const tr_op_info *info, int n_in) {
    if (TR_UNLIKELY(n_in < info->n_operands || (n_in > info->n_operands && !info->variadic)))
        return TR_FAIL(TR_E_TYPE, "%s: %d operands expected, got %d", info->name, info->n_operands, n_in);
    return TR_OK;
}

/* What a view's rule found, for the same view of a tensor that looks the same: a program's views are few, and come again in every
 * step. Direct-mapped. */
enum { VIEWS = 512, VIEW_ATTRS = 1 + TR_MAX_DIMS };
typedef struct view_entry {
    const tr_meta *in, *out;
    int64_t offset;
    uint16_t op;
    int64_t given[VIEW_ATTRS], attrs[VIEW_ATTRS]; /* as called; as the rule left them */
} view_entry;
static view_entry views[VIEWS];

static view_entry *view_slot(tr_op op, const tr_meta *in, const int64_t *attrs, int n) {
    uint64_t h = ((uint64_t) (uintptr_t) in >> 4) + (uint64_t) op * 0x9e3779b97f4a7c15u;
    for (int i = 0; i < n; i++)
        h = h * 31 + (uint64_t) attrs[i];
    h *= 0xff51afd7ed558ccdu;
    return &views[h >> 55];
}
_Static_assert(VIEWS == 1 << (64 - 55), "the slot is the hash's upper bits");

static bool same_words(const int64_t *a, const int64_t *b, int n) {
    for (int i = 0; i < n; i++)
        if (a[i] != b[i])
            return false;
    return true;
}

/* The entry that says what the rule finds; `own`, where it is not kept. */
static tr_status infer_view(const tr_op_info *info, tr_op op, const tr_tensor *t, const int64_t *attrs, int64_t *own_attrs,
                            view_entry *own, const view_entry **out, const int64_t **normal) {
    int n = info->n_attrs;
    bool small = n <= VIEW_ATTRS;
    view_entry *e = small ? view_slot(op, t->meta, attrs, n) : own;
    if (small && e->in == t->meta && e->op == op && same_words(e->given, attrs, n)) {
        *out = e;
        *normal = e->attrs;
        return TR_OK;
    }
    tr_copy_words(own_attrs, attrs, (size_t) n);
    tr_operand o = {t->storage, t->meta, {.i = t->offset}};
    tr_infer c = {.op = op, .n_in = 1, .in = &o, .attrs = own_attrs};
    TR_TRY(tr__infer(&c));
    e->in = t->meta;
    e->out = c.out[0];
    e->offset = c.offset;
    e->op = (uint16_t) op;
    if (small) {
        tr_copy_words(e->given, attrs, (size_t) n);
        tr_copy_words(e->attrs, own_attrs, (size_t) n);
    }
    *out = e;
    *normal = own_attrs;
    return TR_OK;
}

static tr_status apply_view(tr_op op, const tr_op_info *info, const tr_input *in, const int64_t *attrs, tr_tensor **out) {
    tr_tensor *t = in[0].tensor;
    if (TR_UNLIKELY(!t))
        return missing(info, 0);
    int64_t own_attrs[TR_MAX_ATTRS];
    view_entry own;
    const view_entry *found;
    const int64_t *normal;
    TR_TRY(infer_view(info, op, t, attrs, own_attrs, &own, &found, &normal));
    const tr_meta *meta = found->out;
    int64_t offset = t->offset + found->offset, end = offset + meta->extent;
    if (op == TR_OP_as_strided &&
        (offset < 0 || end * (int64_t) tr_dtype_size((tr_dtype) t->meta->dtype) > (int64_t) t->storage->bytes))
        return TR_FAIL(TR_E_RUNTIME, "setStorage: sizes, strides and storage offset %lld reach beyond the storage of %zu bytes",
                       (long long) offset, t->storage->bytes);
    tr_tensor *view = tr__tensor_over(t->storage, meta, offset);
    if (!view)
        return TR_E_NOMEM;
    view->own_version = t->own_version;
    tr_status status = TR_OK;
    if (op != TR_OP_detach && !tr__tape_is_final()) {
        tr_tensor *base = t->base ? t->base : t;
        view->base = base;
        tr_tensor_retain(base);
        if (tr__tape_wanted(op, in, 1))
            status = tr__tape_record(op, in, 1, normal, &view, 1, NULL);
        view->view_version = t->storage->version;
    }
    if (status != TR_OK) {
        tr_tensor_release(view);
        return status;
    }
    tr__note_view();
    *out = view;
    return TR_OK;
}

/* in, with the default generator where one is wanted and none given; `own` has room for it. */
static const tr_input *with_generators(const tr_op_info *info, const tr_input *in, int n_in, tr_input *own) {
    memcpy(own, in, (size_t) n_in * sizeof *in);
    for (unsigned left = info->generators; left; left &= left - 1) {
        int i = __builtin_ctz(left);
        if (!own[i].tensor)
            own[i] = tr_in(tr_default_generator());
    }
    return own;
}

/* What the call wrote has a new version. */
static void bump_written(unsigned written, const tr_input *in) {
    for (unsigned left = written; left; left &= left - 1) {
        tr_tensor *t = in[__builtin_ctz(left)].tensor;
        if (t && !t->own_version)
            t->storage->version++;
    }
}

/* Writes to memory that the outside sees are done when the call returns. */
static tr_status settle_shared(unsigned written, const tr_input *in) {
    bool seen = false;
    for (unsigned left = written; left; left &= left - 1) {
        tr_tensor *t = in[__builtin_ctz(left)].tensor;
        seen |= t && is_external(t->storage);
    }
    return TR_UNLIKELY(seen) ? tr_synchronize() : TR_OK;
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
    if (status == TR_OK && wanted)
        status = tr__tape_record(op, in, n_in, call->attrs, made, n_out, written);
    if (status != TR_OK) {
        for (int i = 0; i < n_out; i++)
            tr_tensor_release(made[i]);
        return status;
    }
    tr_copy_words(out, made, (size_t) n_out);
    return TR_OK;
}

static tr_status apply_compute(tr_op op, const tr_op_info *info, const tr_input *in, int n_in, tr_operand *o, const int64_t *attrs,
                               const tr_meta *given, bool in_place, tr_tensor **out) {
    bool copied = false;
    unsigned written = info->written | (unsigned) in_place;
    tr_input own[TR_MAX_FIXED];
    if (info->generators && !info->variadic)
        in = with_generators(info, in, n_in, own);
    tr_status status = operands(info, in, n_in, written, o, &copied);
    if (status == TR_OK) {
        bool wanted = tr__tape_wanted(op, in, n_in);
        if (written & 1)
            status = tr__tape_check_inplace(in[0].tensor, wanted);
        tr_issue call; // what it gives is not cleared
        call.op = op;
        call.in = o;
        call.n_in = n_in;
        call.attrs = attrs;
        call.given = given;
        call.in_place = in_place;
        call.cdtype = (uint8_t) (tr__multiplies(op, info) ? tr__product_dtype(op, o) : TR_DTYPE_COUNT);
        call.written = written;
        if (status == TR_OK)
            status = tr__issue(&call);
        if (status == TR_OK) {
            bump_written(written, in);
            status = finish(op, info, in, n_in, &call, wanted, out);
        }
    }
    if (TR_UNLIKELY(copied))
        release_snapshots(in, n_in, o);
    if (status == TR_OK && written)
        status = settle_shared(written, in);
    return status;
}

/* The operands of most calls fit on the stack. */
static tr_status apply_few(tr_op op, const tr_op_info *info, const tr_input *in, int n_in, const int64_t *attrs,
                           const tr_meta *given, bool in_place, tr_tensor **out) {
    tr_operand few[FEW];
    return apply_compute(op, info, in, n_in, few, attrs, given, in_place, out);
}

static tr_status apply_many(tr_op op, const tr_op_info *info, const tr_input *in, int n_in, const int64_t *attrs,
                            const tr_meta *given, bool in_place, tr_tensor **out) {
    tr_operand *many = tr_malloc((size_t) n_in * sizeof *many);
    if (!many)
        return TR_FAIL(TR_E_NOMEM, "no memory for the operands of %s", info->name);
    tr_status status = apply_compute(op, info, in, n_in, many, attrs, given, in_place, out);
    tr_free(many);
    return status;
}

/* A call in an autocast region, of an op that has a policy. */
static tr_status apply_autocast(tr_op op, const tr_op_info *info, const tr_input *in, int n_in, const int64_t *attrs,
                                tr_tensor **out) {
    tr_input own[TR_MAX_FIXED];
    tr_tensor *cast[TR_MAX_FIXED] = {NULL};
    tr_status status = TR_OK;
    for (int i = 0; i < n_in; i++) {
        own[i] = in[i];
        if (in[i].tensor && status == TR_OK)
            status = tr_autocast_operand(info->autocast, in[i].tensor, &cast[i]);
        if (cast[i])
            own[i] = tr_in(cast[i]);
    }
    if (status == TR_OK)
        status = apply_few(op, info, own, n_in, attrs, NULL, false, out);
    for (int i = 0; i < n_in; i++)
        tr_tensor_release(cast[i]);
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
    tr__need_of(NULL); // shows the executor where we are
    tr_exec_wait_until_idle();
}

tr_status tr_apply(tr_op op, const tr_input *in, int n_in, const int64_t *attrs, const tr_meta *given, bool in_place,
                   tr_tensor **out) {
    const tr_op_info *info = tr_op_info_of(op);
    bool timed = tr__clock_enter_op();
    tr_status status = check_arity(info, n_in);
    if (TR_LIKELY(status == TR_OK))
        status = info->op_class == TR_CLASS_VIEW ? apply_view(op, info, in, attrs, out)
                 : TR_UNLIKELY(info->autocast && tr__autocast.enabled && !in_place)
                     ? apply_autocast(op, info, in, n_in, attrs, out)
                 : n_in <= FEW                   ? apply_few(op, info, in, n_in, attrs, given, in_place, out)
                                                 : apply_many(op, info, in, n_in, attrs, given, in_place, out);
    tr__clock_leave(timed);
    if (TR_UNLIKELY(op_hook != NULL) && status == TR_OK)
        status = call_hook(op, out);
    return status;
}
