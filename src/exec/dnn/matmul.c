/* matmul.c - mm, bmm, addmm, baddbmm.
 *
 * In float32 and bfloat16 through oneDNN: a shape seen for the first time through its shape-generic dnnl_sgemm, which
 * compiles nothing; one that returns, through a primitive of its own. Operands are taken with their strides where the
 * library can (one of the last two steps is 1), else packed. Where the library has no bfloat16, the product is one of float32
 * copies. A product of float32 that computes in bfloat16 (tracer/precision.c) is one of copies that lie as its factors do: what
 * they take is some hundredths of what the product does, kept copies would spare a third of it. With AMX large products of either
 * are our own (kernels/isa_product.c); of float32 the library takes over where numbers are infinite, huge or tiny. With AVX512-BF16
 * alone, those of bfloat16 whose left factor lies in rows are convolutions (kernels/isa_conv_bf16.c). Everything else is
 * plain.c's. */
#include "exec/dnn/cache.h"
#include "exec/dnn/dnn.h"
#include "exec/dnn/plain.h"

#include <oneapi/dnnl/dnnl.h>

/* An operand as the library takes it: [batch, rows, columns]. */
typedef struct matrix {
    const char *data;
    int64_t batch, rows, columns;
    int64_t batch_step, row_step, column_step;
} matrix;

typedef struct product {
    matrix a, b;
    char *y;
    int64_t batch, m, n, k;
    tr_dtype dtype, to; /* of the factors; of the result and the bias */
    const void *bias;   /* [n]; NULL */
    float alpha, beta;  /* beta: of what y holds already */
} product;

static matrix view(const tr_arg *x) {
    const tr_meta *m = x->meta;
    int r = m->ndim - 2;
    matrix v = {x->data,       r ? m->shape[0] : 1, m->shape[r], m->shape[r + 1], r ? m->strides[0] : 0,
                m->strides[r], m->strides[r + 1]};
    // Steps of dimensions of 1 mean nothing: give them what a dense tensor would have.
    if (v.rows == 1)
        v.row_step = v.column_step == 1 || v.columns == 1 ? v.columns : 1;
    if (v.columns == 1)
        v.column_step = v.row_step == 1 && v.rows > 1 ? v.rows : 1;
    if (v.batch > 1 && v.batch_step == 0)
        v.batch = 1; // broadcast by the library
    if (v.batch == 1)
        v.batch_step = v.rows * v.columns * tr__max(1, tr__max(v.row_step, v.column_step));
    return v;
}

static bool is_taken(const matrix *v) {
    bool rows = v->column_step == 1 && v->row_step >= v->columns, columns = v->row_step == 1 && v->column_step >= v->rows;
    int64_t last = (v->rows - 1) * v->row_step + (v->columns - 1) * v->column_step + 1;
    return (rows || columns) && (v->batch == 1 || v->batch_step >= last || v->batch_step > 0);
}

/* A dense copy in another dtype, rows or columns outermost as in v. */
static tr_status copy_as(const tr_kernel_call *c, const tr_arg *x, tr_dtype dtype, matrix *v) {
    bool rows = v->column_step == 1;
    int64_t shape[] = {v->batch, rows ? v->rows : v->columns, rows ? v->columns : v->rows};
    int64_t strides[] = {v->batch_step, rows ? v->row_step : v->column_step, 1}, *step = rows ? &v->row_step : &v->column_step;
    tr_meta from, to;
    tr__meta_make(&from, (tr_dtype) x->meta->dtype, 3, shape, strides);
    tr__meta_make(&to, dtype, 3, shape, NULL);
    void *copy = tr__scratch(c, (size_t) to.numel * tr_dtype_size(dtype));
    if (!copy)
        return TR_E_NOMEM;
    v->data = copy;
    v->batch_step = shape[1] * shape[2];
    *step = shape[2];
    return tr__copy(c->ctx, &(tr_arg){.data = copy, .meta = &to}, &(tr_arg){.data = x->data, .meta = &from});
}

static tr_status take(const tr_kernel_call *c, const tr_arg *x, tr_dtype dtype, matrix *out) {
    *out = view(x);
    if (is_taken(out))
        return x->meta->dtype == dtype ? TR_OK : copy_as(c, x, dtype, out);
    const void *p;
    TR_TRY(tr__dense_in(c, x, dtype, &p));
    int64_t batch = x->meta->ndim == 3 ? x->meta->shape[0] : 1;
    *out = (matrix){p, batch, out->rows, out->columns, out->rows * out->columns, out->columns, 1};
    return TR_OK;
}

/* ------------------------------------------------------------------------------------------ dnnl_sgemm */

static void sgemm_range(void *env, int64_t begin, int64_t end, int thread) {
    const product *p = env;
    bool ta = p->a.column_step != 1, tb = p->b.column_step != 1;
    for (int64_t i = begin; i < end; i++) {
        const float *a = (const float *) p->a.data + (p->a.batch == 1 ? 0 : i * p->a.batch_step);
        const float *b = (const float *) p->b.data + (p->b.batch == 1 ? 0 : i * p->b.batch_step);
        dnnl_sgemm(ta ? 'T' : 'N', tb ? 'T' : 'N', p->m, p->n, p->k, p->alpha, a, ta ? p->a.column_step : p->a.row_step, b,
                   tb ? p->b.column_step : p->b.row_step, p->beta, (float *) p->y + i * p->m * p->n, p->n);
    }
}

/* Many small products: one to a thread; else the library's threads share each. */
static void run_sgemm(const tr_kernel_call *c, const product *p) {
    int64_t work = p->m * p->n * p->k;
    if (p->batch >= 2 * c->ctx->threads && p->m * p->n < 512 * 512)
        tr__parallel(c->ctx, p->batch, tr__max(1, 8 * TR__GRAIN / tr__max(1, work)), sgemm_range, (void *) p);
    else
        sgemm_range((void *) p, 0, p->batch, 0);
}

static void add_bias_range(void *env, int64_t begin, int64_t end, int thread) {
    const product *p = env;
    const float *b = p->bias;
    for (int64_t i = begin; i < end; i++)
        memcpy((float *) p->y + i * p->n, b, (size_t) p->n * sizeof *b);
}

/* ------------------------------------------------------------------------------------------ primitives */

static tr_status layout_of(const matrix *v, bool batched, tr_dtype dtype, tr_dnn_layout **out) {
    int64_t shape[] = {v->batch, v->rows, v->columns}, strides[] = {v->batch_step, v->row_step, v->column_step};
    tr_meta m;
    int skip = batched ? 0 : 1;
    tr__meta_make(&m, dtype, 3 - skip, shape + skip, strides + skip);
    return tr_dnn_layout_create(&m, out);
}

/* The library packs b for itself, each thread what it needs at the time. With rows enough to multiply, it is cheaper to bring all
 * of b into the library's blocks beforehand (docs/performance.md), by ourselves where these are panels of columns; where b would
 * be transposed, it is not. */
enum { MANY_ROWS = 512, SOME_ROWS = 64, LARGE = 1 << 20 };
static bool is_reordered(const product *p) {
    return p->batch == 1 && p->n > 1 && p->k > 1 && p->b.column_step == 1 &&
           (p->m >= MANY_ROWS || (p->m >= SOME_ROWS && p->n * p->k >= LARGE));
}

static tr_status compile(const product *p, int threads, tr__dnn_entry *e) {
    bool batched = p->batch > 1;
    matrix y = {p->y, p->batch, p->m, p->n, p->m * p->n, p->n, 1};
    tr_dnn_matmul_spec s = {.dtype = p->dtype,
                            .batch = batched ? p->batch : 0,
                            .src_batch = p->a.batch,
                            .weights_batch = p->b.batch,
                            .m = p->m,
                            .n = p->n,
                            .k = p->k,
                            .bias = p->bias,
                            .bias_f32 = p->to == TR_F32,
                            .threads = threads};
    if (p->alpha != 1)
        s.posts[s.n_posts++] = (tr_dnn_post){.kind = TR_DNN_POST_LINEAR, .a = p->alpha};
    if (p->beta != 0)
        s.posts[s.n_posts++] = (tr_dnn_post){.kind = TR_DNN_POST_SUM, .a = p->beta};
    tr_dnn_layout *l[3] = {NULL};
    tr_status status = layout_of(&p->a, batched, p->dtype, &l[0]);
    if (status == TR_OK)
        status = layout_of(&p->b, batched, p->dtype, &l[1]);
    if (status == TR_OK)
        status = layout_of(&y, batched, p->to, &l[2]);
    s.src = l[0];
    s.weights = is_reordered(p) ? NULL : l[1];
    s.dst = l[2];
    if (status == TR_OK)
        status = tr_dnn_matmul_create(&s, &e->op);
    tr__columns columns;
    if (status == TR_OK && !tr_dnn_layout_equal(l[1], tr_dnn_op_layout(e->op, TR_DNN_WEIGHTS)) &&
        !tr__dnn_layout_columns(tr_dnn_op_layout(e->op, TR_DNN_WEIGHTS), &columns))
        status = tr_dnn_reorder_create(l[1], tr_dnn_op_layout(e->op, TR_DNN_WEIGHTS), threads, &e->reorders[0]);
    if (status != TR_OK) { // no product without its reorder
        tr_dnn_op_destroy(e->op);
        e->op = NULL;
    }
    for (int i = 0; i < 3; i++)
        tr_dnn_layout_destroy(l[i]);
    return status;
}

static tr__dnn_key key_of(const product *p, int threads) {
    tr__dnn_key k;
    memset(&k, 0, sizeof k);
    k.op = TR_OP_mm;
    k.dtype = (uint8_t) p->dtype;
    k.flags = (uint8_t) ((p->bias != NULL) | (p->to != p->dtype) << 1);
    k.threads = threads;
    k.a = p->alpha;
    k.b = p->beta;
    int64_t v[] = {p->batch,      p->m,
                   p->n,          p->k,
                   p->a.batch,    p->a.batch_step,
                   p->a.row_step, p->a.column_step,
                   p->b.batch,    p->b.batch_step,
                   p->b.row_step, p->b.column_step};
    memcpy(k.v, v, sizeof v);
    return k;
}

/* b as the product takes it. */
static tr_status reorder(const tr_kernel_call *c, const product *p, const tr__dnn_entry *e, void **b) {
    const tr_dnn_layout *layout = tr_dnn_op_layout(e->op, TR_DNN_WEIGHTS);
    tr__columns columns = {.from = p->b.data, .k = p->k, .step = p->b.row_step};
    bool ours = tr__dnn_layout_columns(layout, &columns);
    if (!ours && !e->reorders[0])
        return TR_OK;
    void *blocks = columns.to = *b = tr__scratch(c, tr_dnn_layout_bytes(layout));
    if (!blocks)
        return TR_E_NOMEM;
    if (!ours)
        return tr__dnn_run(c, e->reorders[0], (void *[TR_DNN_PORTS]){[TR_DNN_SRC] = (void *) p->b.data, [TR_DNN_DST] = blocks});
    tr__isa_now->pack_columns(c->ctx, &columns);
    return TR_OK;
}

static tr_status run_primitive(const tr_kernel_call *c, const product *p, const tr__dnn_entry *e) {
    void *data[TR_DNN_PORTS] = {[TR_DNN_SRC] = (void *) p->a.data,
                                [TR_DNN_WEIGHTS] = (void *) p->b.data,
                                [TR_DNN_BIAS] = (void *) p->bias,
                                [TR_DNN_DST] = p->y};
    if (is_reordered(p))
        TR_TRY(reorder(c, p, e, &data[TR_DNN_WEIGHTS]));
    return tr__dnn_run(c, e->op, data);
}

static tr_status run(const tr_kernel_call *c, product *p, bool *done) {
    int threads = tr_dnn_threads(c->ctx->threads, 2.0 * (double) p->batch * (double) p->m * (double) p->n * (double) p->k);
    tr__dnn_key key = key_of(p, threads);
    tr__dnn_entry *e = tr__dnn_find(&key);
    *done = true;
    if (!e)
        return TR_FAIL(TR_E_NOMEM, "no memory for compiled operations");
    bool wait = p->dtype == TR_F32 && e->seen == 1 && !c->ctx->planned;
    if (!e->op && !e->refused && !wait) {
        tr_status s = compile(p, threads, e);
        if (s == TR_E_NOMEM)
            return s;
        e->refused = s != TR_OK;
    }
    if (e->op)
        return run_primitive(c, p, e);
    if (p->dtype != TR_F32) {
        *done = false;
        return TR_OK;
    }
    if (p->bias) {
        tr__parallel(c->ctx, p->batch * p->m, tr__max(1, TR__GRAIN / p->n), add_bias_range, p);
        p->beta = 1;
    }
    tr__dnn_set_threads(threads);
    run_sgemm(c, p);
    return TR_OK;
}

/* ------------------------------------------------------------------------------------------ kernels */

/* Is the added operand one row for all, so that it can be a bias? */
static bool is_row(const tr_arg *x, int64_t n, tr_dtype dtype) {
    const tr_meta *m = x->meta;
    if (m->dtype != dtype || m->ndim == 0 || m->numel != n || m->shape[m->ndim - 1] != n)
        return false;
    return n == 1 || m->strides[m->ndim - 1] == 1;
}

static tr_status prepare_sum(const tr_kernel_call *c, product *p, const tr_arg *y) {
    const tr_arg *input = &c->in[0];
    p->beta = (float) tr_arg_double(&c->in[3]);
    p->alpha = (float) tr_arg_double(&c->in[4]);
    if (p->beta == 1 && p->alpha == 1 && is_row(input, p->n, p->to)) {
        p->bias = input->data;
        p->beta = 0;
    } else if (p->beta != 0) {
        return tr__copy(c->ctx, y, input);
    }
    return TR_OK;
}

/* ------------------------------------------------------------------------------------------ our own */

/* Plans cut a product into slices only where the right factor has no more elements than that (pass_rows.c). Such a product goes the
 * library's way, as its slices do. */
enum { SLICED = 64 << 10 };

/* Of float32 more is packed, which more rows and columns must pay for. */
bool tr_product_by_tiles(tr_dtype dtype, int64_t m, int64_t n, int64_t k) {
    enum { THICK = 16, SPLIT_THICK = 192 };
    int64_t thick = dtype == TR_BF16 ? THICK : SPLIT_THICK;
    bool tiles = tr__isa_now->multiply && tr__has_amx() && (dtype == TR_BF16 || dtype == TR_F32);
    return tiles && n * k > SLICED && m >= thick && n >= thick;
}

static tr_status multiply(const tr_kernel_call *c, const product *p, const tr_arg *a, const tr_arg *b, bool *exact) {
    tr__tile_product q = {.m = p->m,
                          .n = p->n,
                          .k = p->k,
                          .a = p->a.data,
                          .a_row = p->a.row_step,
                          .a_column = p->a.column_step,
                          .a_wide = a->meta->dtype == TR_F32,
                          .b = p->b.data,
                          .b_row = p->b.row_step,
                          .b_column = p->b.column_step,
                          .b_wide = b->meta->dtype == TR_F32,
                          .bias = p->bias,
                          .y = p->y,
                          .alpha = p->alpha,
                          .beta = p->beta,
                          .wide = p->to == TR_F32,
                          .bias_wide = p->to == TR_F32,
                          .split = p->dtype == TR_F32};
    return tr__isa_now->multiply(c, &q, exact);
}

/* Is it faster as a convolution of bfloat16 (docs/performance.md)? Of few rows it isn't, nor by the side of AMX. */
static bool is_convolution(const product *p) {
    bool taken = p->dtype == TR_BF16 && p->to == TR_BF16 && tr__isa_now->convolve_bf16 && tr__has_avx512_bf16() && !tr__has_amx();
    bool large = p->m >= MANY_ROWS && p->n * p->k > SLICED;
    bool lies_well = p->batch == 1 && p->a.column_step == 1 && p->a.row_step == p->k && p->k % 2 == 0 && p->n % TR__CONV_PANEL == 0;
    return taken && large && lies_well && p->alpha == 1 && p->beta == 0;
}

/* Of a row of m pixels with k channels by n filters of one pixel. */
static tr_status convolve(const tr_kernel_call *c, const product *p) {
    const void *bias = NULL;
    if (p->bias) // the operand that is added
        TR_TRY(tr__dense_in(c, &c->in[0], TR_F32, &bias));
    tr__conv sizes = {.n = 1, .ci = p->k, .co = p->n, .size = {1, p->m}, .out = {1, p->m}, .kernel = {1, 1}, .stride = {1, 1},
                      .dilation = {1, 1}, .bias = bias};
    tr__conv_bf16 v = {.of = sizes, .src = (void *) p->a.data, .weights = (void *) p->b.data, .dst = (void *) p->y,
                       .strides = {p->b.column_step, p->b.row_step, 1, 1}};
    return tr__isa_now->convolve_bf16(c, TR_OP_conv2d, &v);
}

static tr_status matmul(const tr_kernel_call *c) {
    bool adds = c->op == TR_OP_addmm || c->op == TR_OP_baddbmm;
    const tr_arg *a = &c->in[adds ? 1 : 0], *b = &c->in[adds ? 2 : 1], *out = &c->out[0];
    tr_dtype to = (tr_dtype) out->meta->dtype, dtype = c->cdtype == TR_BF16 ? TR_BF16 : to;
    int nd = out->meta->ndim;
    product p = {.batch = nd == 3 ? out->meta->shape[0] : 1,
                 .m = out->meta->shape[nd - 2],
                 .n = out->meta->shape[nd - 1],
                 .k = a->meta->shape[nd - 1],
                 .dtype = dtype,
                 .to = to,
                 .alpha = 1};
    bool library = (dtype == TR_F32 || dtype == TR_BF16) && out->meta->numel > 0 && p.k > 0;
    if (!library)
        return tr__plain_matmul(c);
    void *y;
    bool ours = nd == 2 && tr_product_by_tiles(dtype, p.m, p.n, p.k), done = false;
    if (adds && dtype == TR_F32 && c->in[0].data == out->data) // a sum in its place, which the library could not take over
        ours = false;
    TR_TRY(take(c, a, ours ? (tr_dtype) a->meta->dtype : dtype, &p.a)); // ours takes either dtype
    TR_TRY(take(c, b, ours ? (tr_dtype) b->meta->dtype : dtype, &p.b));
    TR_TRY(tr__dense_out(c, out, to, &y));
    p.y = y;
    tr_meta m;
    tr__meta_make(&m, to, nd, out->meta->shape, NULL);
    tr_arg dense = {.data = y, .meta = &m};
    if (adds)
        TR_TRY(prepare_sum(c, &p, &dense));
    if (ours)
        TR_TRY(multiply(c, &p, a, b, &done));
    if (ours && !done && adds) // y has been written
        TR_TRY(prepare_sum(c, &p, &dense));
    if (!done && is_convolution(&p)) {
        TR_TRY(convolve(c, &p));
        done = true;
    }
    if (!done)
        TR_TRY(run(c, &p, &done));
    if (!done)
        return tr__widened(c, matmul);
    return tr__dense_out_end(c, out, to, y);
}

TR__KERNEL(mm) {
    return matmul(c);
}
TR__KERNEL(bmm) {
    return matmul(c);
}
TR__KERNEL(addmm) {
    return matmul(c);
}
TR__KERNEL(baddbmm) {
    return matmul(c);
}
