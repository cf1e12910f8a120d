/* rows.c - runs the stages of a rows instruction slice by slice, each slice on one thread of the team.
 *
 * Slices are independent: which thread takes which changes nothing. A thread has memory of its own for what stages pass on and
 * for the kernels' scratch, kept from run to run; kernels run as on a team of one. */
#include "exec/runner.h"

#include "terra/alloc.h"

#include <omp.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

enum { MORE = 16 };

typedef struct worker {
    tr_kernel_ctx ctx;
    char *block; /* what stages pass on */
    size_t size;
    void *more[MORE]; /* scratch beyond ctx.scratch_base, until the kernel returns */
    int n_more;
} worker;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t key;
static _Thread_local worker *own;

static void *scratch(tr_kernel_ctx *ctx, size_t bytes) {
    worker *w = (worker *) ((char *) ctx - offsetof(worker, ctx));
    bytes = (bytes + 63) & ~(size_t) 63;
    size_t at = ctx->scratch_used;
    ctx->scratch_used += bytes;
    if (at + bytes <= ctx->scratch_size)
        return (char *) ctx->scratch_base + at;
    void *block = w->n_more < MORE ? tr_aligned_alloc(64, bytes) : NULL;
    if (block)
        w->more[w->n_more++] = block;
    return block;
}

/* Next time one block will do. */
static void reset(worker *w) {
    if (w->n_more) {
        while (w->n_more)
            tr_free(w->more[--w->n_more]);
        tr_free(w->ctx.scratch_base);
        w->ctx.scratch_base = tr_aligned_alloc(64, w->ctx.scratch_used);
        w->ctx.scratch_size = w->ctx.scratch_base ? w->ctx.scratch_used : 0;
    }
    w->ctx.scratch_used = 0;
}

static void destroy(void *p) {
    worker *w = p;
    reset(w);
    tr_free(w->ctx.scratch_base);
    tr_free(w->block);
    tr_free(w);
}

static void make_key(void) {
    pthread_key_create(&key, destroy);
}

/* This thread's, with room for `bytes`; NULL: no memory. */
static worker *worker_of(size_t bytes) {
    if (TR_UNLIKELY(!own)) {
        pthread_once(&once, make_key);
        if (!(own = tr_calloc(1, sizeof *own)))
            return NULL;
        own->ctx = (tr_kernel_ctx){.threads = 1, .planned = true, .scratch = scratch};
        pthread_setspecific(key, own);
    }
    if (own->size < bytes) {
        tr_free(own->block);
        own->block = tr_aligned_alloc(64, bytes);
        own->size = own->block ? bytes : 0;
        if (!own->block)
            return NULL;
    }
    return own;
}

/* A stage's operands as slice c sees them. `whole`: as the plan has them. */
static void slice(const tr_row_stage *s, const tr_arg *whole, int64_t c, char *block, tr_arg *out) {
    for (uint32_t i = 0; i < s->n_args; i++) {
        const tr_row_arg *a = &s->args[i];
        out[i] = whole[i];
        out[i].meta = a->meta;
        if (a->scratch >= 0)
            out[i].data = block + a->scratch + whole[i].at.i * (int64_t) tr_dtype_size((tr_dtype) a->meta->dtype);
        else if (a->step)
            out[i].data = (char *) whole[i].data + a->step * c;
    }
}

static tr_status run_stage(const tr_rows_run *run, const tr_row_stage *s, tr_arg *args, worker *w) {
    tr_status status;
    if (s->program) {
        status = tr_ew_run(s->program, s->space, args, &w->ctx);
    } else {
        const tr_path_op *op = &run->path->ops[s->ops[0]];
        tr_kernel_call call = {
            .op = op->op,
            .cdtype = op->cdtype,
            .n_in = op->n_in,
            .n_out = op->n_out,
            .attrs = run->path->attrs + op->attr,
            .in = args,
            .out = args + op->n_in,
            .ctx = &w->ctx,
        };
        status = op->op == TR_OP__dropout ? tr_dropout_apply(&call) : tr_kernel_of(op->op)(&call);
        if (TR_UNLIKELY(status != TR_OK)) {
            char text[TR_STATUS_DETAIL_MAX];
            snprintf(text, sizeof text, "%s", tr_status_detail());
            TR_FAIL(status, "%s [%s, called at %s]", text, tr_op_info_of((tr_op) op->op)->name, tr__site_text(op->site));
        }
    }
    if (w->ctx.scratch_used)
        reset(w);
    return status;
}

static tr_status run_slice(const tr_rows_run *run, int64_t c) {
    worker *w = worker_of(run->rows->scratch);
    if (!w)
        return TR_FAIL(TR_E_NOMEM, "no memory for %zu bytes of rows", run->rows->scratch);
    const tr_arg *whole = run->args;
    for (uint32_t s = 0; s < run->rows->n_stages; s++) {
        const tr_row_stage *stage = &run->rows->stages[s];
        tr_arg args[TR_EW_MAX_ARGS];
        slice(stage, whole, c, w->block, args);
        TR_TRY(run_stage(run, stage, args, w));
        whole += stage->n_args;
    }
    return TR_OK;
}

/* Random words come in program order, and one after the other: before any slice. */
static tr_status draw_all(const tr_rows_run *run) {
    const tr_arg *whole = run->args;
    for (uint32_t s = 0; s < run->rows->n_stages; s++) {
        const tr_row_stage *stage = &run->rows->stages[s];
        const tr_path_op *op = &run->path->ops[stage->ops[0]];
        if (op->op == TR_OP__dropout) {
            tr_arg args[TR_EW_MAX_ARGS];
            memcpy(args, whole, stage->n_args * sizeof *args);
            tr_kernel_call call = {.op = op->op, .cdtype = op->cdtype, .n_in = op->n_in, .n_out = op->n_out, .in = args,
                                   .out = args + op->n_in, .ctx = run->ctx};
            TR_TRY(tr_dropout_draw(&call));
        }
        whole += stage->n_args;
    }
    return TR_OK;
}

tr_status tr_rows_run_all(const tr_rows_run *run) {
    int64_t n = run->rows->n_chunks;
    int threads = run->ctx->threads;
    if (run->rows->draws)
        TR_TRY(draw_all(run));
    if (n == 1 || threads == 1) {
        for (int64_t c = 0; c < n; c++)
            TR_TRY(run_slice(run, c));
        return TR_OK;
    }
    tr_status first = TR_OK;
    char text[TR_STATUS_DETAIL_MAX] = "";
    _Atomic int64_t next = 0;
#pragma omp parallel num_threads(threads)
    {
        tr_status status = TR_OK;
        // Relaxed: it only deals out numbers; the region's end orders the data.
        for (int64_t c; status == TR_OK && (c = atomic_fetch_add_explicit(&next, 1, memory_order_relaxed)) < n;)
            status = run_slice(run, c);
        if (TR_UNLIKELY(status != TR_OK)) {
#pragma omp critical(tr_rows)
            if (first == TR_OK) {
                first = status;
                snprintf(text, sizeof text, "%s", tr_status_detail());
            }
        }
    }
    return first == TR_OK ? TR_OK : TR_FAIL(first, "%s", text);
}
