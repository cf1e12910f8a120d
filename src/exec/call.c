/* call.c - running one op: operands to addresses, the kernel, and what a failure leaves behind. */
#include "exec/kernels/kernels.h"
#include "exec/runner.h"

#include "terra/alloc.h"

#include <stdio.h>
#include <string.h>

static const char *no_site(uint32_t site) {
    return "?";
}
const char *(*tr__site_text)(uint32_t site) = no_site;

void tr_exec_set_site_text(const char *(*text)(uint32_t site)) {
    tr__site_text = text;
}

void tr__runner_fail(tr_runner *r, tr_status status) {
    if (r->error == TR_OK) {
        r->error = status;
        snprintf(r->error_text, sizeof r->error_text, "%s", tr_status_detail());
    }
    r->failed = true;
}

tr_status tr__runner_args(tr_runner *r, uint32_t n) {
    if (n <= r->args_size)
        return TR_OK;
    tr_arg *more = tr_realloc(r->args, (n + 16) * sizeof *more);
    if (!more)
        return TR_FAIL(TR_E_NOMEM, "no memory for the operands of a call");
    r->args = more;
    r->args_size = n + 16;
    return TR_OK;
}

enum { LARGE = 2 << 20 };

/* What a plan needs more than its ops did one by one is mapped by itself where it is large: the arena's free pages have been given
 * back by then, and a block that is soon replaced by a larger one would leave a hole there that nobody fills. */
static tr_scratch_block take_block(tr_runner *r, size_t bytes) {
    bool maps = r->current && bytes >= LARGE;
    tr_scratch_block b = {maps ? tr_arena_map(r->arena, bytes) : tr_arena_alloc(r->arena, bytes), 0};
    if (b.base && maps)
        b.mapped = bytes;
    return b;
}

static void give_block(tr_runner *r, tr_scratch_block b) {
    if (b.mapped)
        tr_arena_unmap(r->arena, b.base, b.mapped);
    else
        tr_arena_free(r->arena, b.base);
}

void *tr__runner_more_scratch(tr_runner *r, size_t bytes) {
    if (r->n_scratch_more == (int) (sizeof r->scratch_more / sizeof *r->scratch_more))
        return NULL;
    tr_scratch_block b = take_block(r, bytes);
    if (b.base)
        r->scratch_more[r->n_scratch_more++] = b;
    return b.base;
}

void tr__runner_reset_scratch(tr_runner *r) {
    tr_kernel_ctx *ctx = &r->ctx;
    if (r->n_scratch_more) {
        // Next time one block will do.
        for (int i = 0; i < r->n_scratch_more; i++)
            give_block(r, r->scratch_more[i]);
        r->n_scratch_more = 0;
        give_block(r, r->scratch);
        r->scratch = take_block(r, ctx->scratch_used);
        ctx->scratch_base = r->scratch.base;
        ctx->scratch_size = ctx->scratch_base ? ctx->scratch_used : 0;
    }
    ctx->scratch_used = 0;
}

tr_status tr__run_kernel(tr_runner *r, const tr_kernel_call *call, uint32_t site) {
    tr_status status = tr_kernel_of(call->op)(call);
    if (r->ctx.scratch_used)
        tr__runner_reset_scratch(r);
    if (TR_UNLIKELY(status != TR_OK)) {
        char text[TR_STATUS_DETAIL_MAX];
        snprintf(text, sizeof text, "%s", tr_status_detail());
        TR_FAIL(status, "%s [%s, called at %s]", text, tr_op_info_of(call->op)->name, tr__site_text(site));
    }
    return status;
}

tr_status tr__move(tr_runner *r, void *data, const tr_home *from, const tr_home *to) {
    const tr_home *either = from ? from : to;
    void *spare = tr_arena_alloc(r->arena, tr_home_bytes(either));
    if (!spare)
        return TR_FAIL(TR_E_NOMEM, "no memory to rearrange a tensor of %zu bytes", tr_home_bytes(either));
    tr_status status = from ? tr_home_leave(from, data, spare) : TR_OK;
    if (status == TR_OK && to)
        status = tr_home_enter(to, data, spare);
    tr_arena_free(r->arena, spare);
    return status;
}

/* The bfloat16 copy beside a storage in the program's order. */
static tr_status make_copy(tr_runner *r, tr_storage *s, const tr_home *home) {
    tr_arg from = {.data = s->data, .meta = tr_home_meta(home)};
    if (!s->copy && !(s->copy = tr_arena_alloc(r->arena, (size_t) from.meta->numel * sizeof(uint16_t))))
        return TR_FAIL(TR_E_NOMEM, "no memory for a copy of %lld numbers", (long long) from.meta->numel);
    return tr__copy_as_bf16(&r->ctx, s->copy, &from);
}

static tr_status bring(tr_runner *r, tr_storage *s, const tr_home *home) {
    const tr_home *from = tr_home_has_copy(s->home) ? NULL : s->home, *to = tr_home_has_copy(home) ? NULL : home;
    if (from != to)
        TR_TRY(tr__move(r, s->data, from, to));
    s->home = to;
    if (to != home)
        TR_TRY(make_copy(r, s, home));
    s->home = home;
    return TR_OK;
}

void *tr__storage_address(tr_runner *r, tr_storage *s, tr_status *status) {
    return tr__storage_address_at(r, s, NULL, status);
}

static void *address_of(tr_runner *r, tr_storage *s, tr_status *status) {
    static char nothing[64];
    if (TR_UNLIKELY(s->poison != TR_OK)) {
        *status = TR_FAIL(TR_E_SKIPPED, "this tensor was never computed: an earlier operation failed");
        return NULL;
    }
    if (s->data)
        return s->data;
    if (s->bound && r->current)
        return tr__activation_address(r, s->value, status);
    if (s->bytes == 0)
        return nothing;
    tr__crew_disband(r);
    s->data = tr_arena_alloc(r->arena, s->bytes);
    if (!s->data)
        *status = TR_FAIL(TR_E_NOMEM, "no memory for a tensor of %zu bytes", s->bytes);
    return s->data;
}

void *tr__storage_address_at(tr_runner *r, tr_storage *s, const tr_home *home, tr_status *status) {
    void *data = address_of(r, s, status);
    if (TR_LIKELY(s->home == home) || !data)
        return data;
    tr__crew_disband(r);
    *status = bring(r, s, home);
    return *status == TR_OK ? data : NULL;
}

static tr_status resolve(tr_runner *r, const tr_operand *o, tr_arg *arg) {
    *arg = (tr_arg){.meta = o->meta, .at = o->at};
    if (!o->storage)
        return TR_OK;
    tr_status status = TR_OK;
    char *base = tr__storage_address(r, o->storage, &status);
    if (!base)
        return status;
    arg->data = base + o->at.i * (int64_t) tr_dtype_size(o->meta->dtype);
    return TR_OK;
}

static tr_status run_call(tr_runner *r, const tr_call *c) {
    uint32_t n = c->n_in + c->n_out;
    TR_TRY(tr__runner_args(r, n));
    const tr_operand *operand = tr_call_in(c);
    for (uint32_t i = 0; i < n; i++)
        TR_TRY(resolve(r, &operand[i], &r->args[i]));
    tr_kernel_call k = {
        .op = c->op,
        .cdtype = c->cdtype,
        .n_in = c->n_in,
        .n_out = c->n_out,
        .attrs = tr_call_attrs(c),
        .in = r->args,
        .out = r->args + c->n_in,
        .ctx = &r->ctx,
    };
    return tr__run_kernel(r, &k, c->site);
}

/* What the call would have made is poisoned; what it would have changed keeps its contents. */
static void poison_results(const tr_call *c, tr_status status) {
    if (c->in_place)
        return;
    const tr_operand *out = tr_call_out(c);
    for (int i = 0; i < c->n_out; i++)
        out[i].storage->poison = status;
}

void tr__run_call(tr_runner *r, const tr_call *c) {
    if (TR_UNLIKELY(r->error != TR_OK)) {
        poison_results(c, r->error);
        return;
    }
    int64_t start = TR_UNLIKELY(tr_timeline_on) ? tr_now_ns() : 0;
    tr_status status = run_call(r, c);
    if (TR_UNLIKELY(tr_timeline_on))
        tr_timeline_add(tr__track_of(r), tr_op_info_of((tr_op) c->op)->name, NULL, 1, 0, 0, start, tr_now_ns());
    TR_COUNT(r->ops_single, 1);
    if (TR_UNLIKELY(status != TR_OK)) {
        poison_results(c, status);
        tr__runner_fail(r, status);
    }
}

static tr_status copy_out(tr_runner *r, tr_fetch *f) {
    if (!f->operand.storage)
        return TR_OK;
    tr_arg in, out;
    TR_TRY(resolve(r, &f->operand, &in));
    if (f->bytes == 0)
        return TR_OK;
    out = (tr_arg){.data = f->buffer ? f->buffer : f->small, .meta = f->packed};
    if (in.meta == out.meta || in.meta->contiguous) {
        memcpy(out.data, in.data, f->bytes);
        return TR_OK;
    }
    tr_kernel_call k = {.op = TR_OP__contiguous, .cdtype = in.meta->dtype, .n_in = 1, .n_out = 1, .in = &in, .out = &out,
                        .ctx = &r->ctx};
    return tr__run_kernel(r, &k, 0);
}

void tr__answer_fetch(tr_runner *r, tr_fetch *f) {
    TR_COUNT(r->n_fetches, 1);
    tr_status status = r->error;
    if (status != TR_OK) {
        // Told now; what follows is computed again, but not what was called before.
        TR_FAIL(status, "%s", r->error_text);
        r->error = TR_OK;
    } else
        status = copy_out(r, f);
    tr_future *future = f->future;
    if (status != TR_OK) {
        tr_future_fail(future, status, tr_status_detail());
    } else {
        tr_payload payload = {0};
        tr_arg a = {0};
        if (f->exposes)
            tr__crew_disband(r);
        if (f->exposes && resolve(r, &f->operand, &a) == TR_OK) {
            payload.ptr = a.data;
            f->operand.storage->pinned = true;
        }
        tr_future_complete(future, &payload);
    }
    tr_future_release(future);
}
