/* util.c - the parallel loop and dense copies of operands, for every kernel. */
#include "exec/kernels/kernels.h"

#include <omp.h>
#include <stdatomic.h>

int tr__parallel_width(const tr_kernel_ctx *ctx, int64_t n, int64_t grain) {
    return ctx->threads > 1 && n >= 2 * grain ? ctx->threads : 1;
}

/* The team that the work takes; 0: the calling thread has done it. The team has its full size or is not woken: a team that changes
 * size is destroyed and made again. */
static int team_for(tr_kernel_ctx *ctx, int64_t n, int64_t grain, tr__range_fn fn, void *env) {
    int threads = tr__parallel_width(ctx, n, grain);
    if (threads > 1)
        return threads;
    if (n > 0)
        fn(env, 0, n, 0);
    return 0;
}

void tr__parallel(tr_kernel_ctx *ctx, int64_t n, int64_t grain, tr__range_fn fn, void *env) {
    int threads = team_for(ctx, n, grain, fn, env);
    if (!threads)
        return;
#pragma omp parallel num_threads(threads)
    {
        int64_t k = omp_get_thread_num(), of = omp_get_num_threads();
        int64_t begin = n * k / of, end = n * (k + 1) / of;
        if (begin < end)
            fn(env, begin, end, (int) k);
    }
}

void tr__parallel_units(tr_kernel_ctx *ctx, int64_t n, int64_t grain, tr__range_fn fn, void *env) {
    int threads = team_for(ctx, n, grain, fn, env);
    if (!threads)
        return;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t u = 0; u < n; u++)
        fn(env, u, u + 1, omp_get_thread_num());
}

/* What is left of a thread's part, on a cache line of its own. */
typedef struct part {
    _Alignas(64) _Atomic int64_t next;
    int64_t end;
} part;
enum { MOST_PARTS = 64, PIECES = 8 /* of a part */ };

void tr__parallel_pieces(tr_kernel_ctx *ctx, int64_t n, int64_t grain, tr__range_fn fn, void *env) {
    part parts[MOST_PARTS];
    if (ctx->threads > MOST_PARTS) {
        tr__parallel(ctx, n, grain, fn, env);
        return;
    }
    int threads = team_for(ctx, n, grain, fn, env);
    if (!threads)
        return;
    int64_t piece = tr__max(1, tr__max(grain / 4, n / (threads * PIECES)));
    for (int k = 0; k < threads; k++) {
        atomic_init(&parts[k].next, n * k / threads);
        parts[k].end = n * (k + 1) / threads;
    }
#pragma omp parallel num_threads(threads)
    {
        int own = omp_get_thread_num();
        for (int k = 0; k < threads; k++) {
            part *p = &parts[(own + k) % threads];
            // relaxed: it gives each piece to one thread; the region's begin and end order what is read and written
            for (int64_t at; (at = atomic_fetch_add_explicit(&p->next, piece, memory_order_relaxed)) < p->end;)
                fn(env, at, tr__min(at + piece, p->end), own);
        }
    }
}

void *tr__scratch(const tr_kernel_call *c, size_t bytes) {
    void *p = c->ctx->scratch(c->ctx, bytes ? bytes : 64);
    if (!p)
        TR_FAIL(TR_E_NOMEM, "no memory for %zu bytes of scratch", bytes);
    return p;
}

tr_status tr__parallel_rooms(const tr_kernel_call *c, int64_t n, int64_t grain, size_t bytes, tr__rooms *rooms, tr__range_fn fn,
                             void *env) {
    rooms->each = (bytes + 127) / 64 * 64;
    rooms->first = tr__scratch(c, (size_t) tr__parallel_width(c->ctx, n, grain) * rooms->each);
    if (!rooms->first)
        return TR_E_NOMEM;
    tr__parallel_units(c->ctx, n, grain, fn, env);
    return TR_OK;
}

void tr__meta_make(tr_meta *m, tr_dtype dtype, int ndim, const int64_t *shape, const int64_t *strides) {
    *m = (tr_meta){.dtype = (uint8_t) dtype, .ndim = (uint8_t) ndim, .numel = 1, .extent = 1};
    int64_t step = 1;
    bool contiguous = true;
    for (int d = ndim - 1; d >= 0; d--) {
        m->shape[d] = shape[d];
        m->strides[d] = strides ? strides[d] : step;
        contiguous &= shape[d] == 1 || m->strides[d] == step;
        step *= shape[d] > 1 ? shape[d] : 1;
        m->numel *= shape[d];
        m->extent += (shape[d] - 1) * m->strides[d];
    }
    m->contiguous = m->dense = contiguous || m->numel == 0;
    if (m->numel == 0)
        m->extent = 0;
}

bool tr__has_channels_last(const tr_meta *m) {
    int64_t step = m->shape[1];
    bool fits = m->shape[1] == 1 || m->strides[1] == 1;
    for (int d = m->ndim - 1; d >= 0; d--)
        if (d != 1) {
            fits &= m->shape[d] == 1 || m->strides[d] == step;
            step *= m->shape[d];
        }
    return fits;
}

tr_status tr__copy(tr_kernel_ctx *ctx, const tr_arg *dst, const tr_arg *src) {
    tr_ew_program p;
    p.n_steps = 1;
    p.n_args = 2;
    p.steps[0] = (tr_ew_step){.op = TR_OP__cast,
                              .cdtype = dst->meta->dtype,
                              .dtype = dst->meta->dtype,
                              .in = {0, TR_EW_ABSENT, TR_EW_ABSENT, TR_EW_ABSENT, TR_EW_ABSENT},
                              .store = 1};
    tr_arg args[2] = {*src, *dst};
    return tr_ew_run(&p, dst->meta, args, ctx);
}

tr_status tr__copy_as_bf16(tr_kernel_ctx *ctx, void *to, const tr_arg *src) {
    tr_meta m = *src->meta;
    m.dtype = TR_BF16;
    tr_arg dst = {.data = to, .meta = &m};
    return tr__copy(ctx, &dst, src);
}

tr_status tr__fill(tr_kernel_ctx *ctx, const tr_arg *dst, tr_dtype kind, tr_number value) {
    tr_meta m;
    tr__meta_make(&m, kind == TR_F64 ? TR_F64 : TR_I64, 0, NULL, NULL);
    tr_arg src = {NULL, &m, value};
    return tr__copy(ctx, dst, &src);
}

static bool is_dense_as(const tr_arg *a, tr_dtype dtype) {
    return a->meta->dtype == dtype && a->meta->contiguous;
}

tr_status tr__dense_in(const tr_kernel_call *c, const tr_arg *a, tr_dtype dtype, const void **data) {
    if (a->data && is_dense_as(a, dtype)) {
        *data = a->data;
        return TR_OK;
    }
    void *p;
    TR_TRY(tr__dense_inout(c, a, dtype, &p));
    *data = p;
    return TR_OK;
}

tr_status tr__dense_out(const tr_kernel_call *c, const tr_arg *a, tr_dtype dtype, void **data) {
    if (is_dense_as(a, dtype)) {
        *data = a->data;
        return TR_OK;
    }
    *data = tr__scratch(c, (size_t) a->meta->numel * tr_dtype_size(dtype));
    return *data ? TR_OK : TR_E_NOMEM;
}

tr_status tr__dense_inout(const tr_kernel_call *c, const tr_arg *a, tr_dtype dtype, void **data) {
    TR_TRY(tr__dense_out(c, a, dtype, data));
    if (*data == a->data)
        return TR_OK;
    tr_meta m;
    tr__meta_make(&m, dtype, a->meta->ndim, a->meta->shape, NULL);
    tr_arg dst = {*data, &m, {0}};
    return tr__copy(c->ctx, &dst, a);
}

tr_status tr__dense_out_end(const tr_kernel_call *c, const tr_arg *a, tr_dtype dtype, void *data) {
    if (data == a->data)
        return TR_OK;
    tr_meta m;
    tr__meta_make(&m, dtype, a->meta->ndim, a->meta->shape, NULL);
    tr_arg src = {data, &m, {0}};
    return tr__copy(c->ctx, a, &src);
}

static tr_status widen(const tr_kernel_call *c, const tr_arg *a, tr_arg *wide, tr_meta *m) {
    *wide = *a;
    if (!a->data || !tr__is_bf16(a))
        return TR_OK;
    if (a->meta->dense) {
        *m = *a->meta;
        m->dtype = TR_F32;
    } else
        tr__meta_make(m, TR_F32, a->meta->ndim, a->meta->shape, NULL);
    *wide = (tr_arg){.data = tr__scratch(c, (size_t) m->numel * sizeof(float)), .meta = m};
    return wide->data ? TR_OK : TR_E_NOMEM;
}

tr_status tr__widened(const tr_kernel_call *c, tr_kernel kernel) {
    tr_arg in[TR_MAX_FIXED], out[TR_MAX_OUTPUTS];
    tr_meta in_meta[TR_MAX_FIXED], out_meta[TR_MAX_OUTPUTS];
    for (int i = 0; i < c->n_in; i++) {
        tr_arg *x = &in[i];
        TR_TRY(widen(c, &c->in[i], x, &in_meta[i]));
        if (x->data && x->data != c->in[i].data)
            TR_TRY(tr__copy(c->ctx, x, &c->in[i]));
    }
    for (int i = 0; i < c->n_out; i++)
        TR_TRY(widen(c, &c->out[i], &out[i], &out_meta[i]));
    tr_kernel_call wide = *c;
    wide.cdtype = TR_F32;
    wide.in = in;
    wide.out = out;
    TR_TRY(kernel(&wide));
    for (int i = 0; i < c->n_out; i++)
        if (out[i].data != c->out[i].data)
            TR_TRY(tr__copy(c->ctx, &c->out[i], &out[i]));
    return TR_OK;
}

tr__axis tr__axis_of(const tr_meta *m, int64_t dim) {
    tr__axis a = {1, 1, 1};
    if (m->ndim == 0)
        return a;
    for (int d = 0; d < m->ndim; d++)
        *(d < dim ? &a.outer : d == dim ? &a.size : &a.inner) *= m->shape[d];
    return a;
}
