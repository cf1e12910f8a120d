/* bench_kernels - each important kernel beside its roofline: bytes moved against what a plain copy of the same size moves,
 * floating-point operations against the peak of fused multiply-adds, both measured here. Fraction 1.00 is the roof.
 *
 *   bench_kernels [threads] [name...]     only rows whose name contains one of the words */
#include "bench.h"

#include "terra/alloc.h"
#include "terra/kernel.h"

#include <omp.h>
#include <string.h>

/* ---- operands ---- */

static tr_kernel_ctx ctx = {.scratch = bench_scratch, .scratch_size = BENCH_SCRATCH};

static tr_arg make(tr_dtype dtype, int ndim, const int64_t *shape, const int64_t *strides) {
    tr_arg a = {NULL, tr_meta_get(dtype, ndim, shape, strides), {0}};
    size_t bytes = (size_t) a.meta->extent * tr_dtype_size(dtype) + 64;
    a.data = tr_aligned_alloc(64, (bytes + 63) / 64 * 64);
    memset(a.data, 0, bytes);
    if (dtype == TR_F32)
        for (int64_t i = 0; i < a.meta->extent; i++)
            ((float *) a.data)[i] = (float) (i * 2654435761u % 1000) * 0.004f - 2;
    return a;
}
#define DIMS(...)                                               \
    (int) (sizeof((int64_t[]){__VA_ARGS__}) / 8), (int64_t[]) { \
        __VA_ARGS__                                             \
    }
#define TENSOR(dtype, ...) make((dtype), DIMS(__VA_ARGS__), NULL)
#define F(...)             TENSOR(TR_F32, __VA_ARGS__)
static tr_arg transposed(tr_arg a) {
    a.meta = tr_meta_get((tr_dtype) a.meta->dtype, 2, (int64_t[]){a.meta->shape[1], a.meta->shape[0]},
                         (int64_t[]){1, a.meta->shape[1]});
    return a;
}
static tr_arg number(double v) {
    return (tr_arg){NULL, tr_meta_get(TR_F64, 0, (int64_t[]){0}, NULL), {.d = v}};
}

/* ---- measuring ---- */

static double copy_rate, fma_rate;
static int n_words;
static char **words;

static bool wanted(const char *name) {
    for (int i = 0; i < n_words; i++)
        if (strstr(name, words[i]))
            return true;
    return n_words == 0;
}

/* The best of a quarter of a second: other processes only ever add. */
static double best(void (*fn)(void *), void *env) {
    double least = 1e9, end = bench_now() + 0.25;
    fn(env);
    for (int i = 0; i < 3 || bench_now() < end; i++) {
        double start = bench_now();
        fn(env);
        double t = bench_now() - start;
        least = t < least ? t : least;
    }
    return least;
}

static void run_call(void *env) {
    ctx.scratch_used = 0;
    const tr_kernel_call *c = env;
    if (tr_kernel_of(c->op)(c) != TR_OK) {
        fprintf(stderr, "%s: %s\n", tr_op_info_of(c->op)->name, tr_status_detail());
        exit(1);
    }
}

static void run_norm(void *env) {
    ctx.scratch_used = 0;
    tr_norm_forward_fused(env, &ctx);
}
static void run_norm_backward(void *env) {
    ctx.scratch_used = 0;
    tr_norm_backward_fused(env, &ctx);
}

static void report(const char *name, double t, double bytes, double flops) {
    printf("%-28s %10.2f us", name, t * 1e6);
    if (bytes > 0)
        printf("  %7.1f GB/s  %5.2f of a copy", bytes / t / 1e9, bytes / t / copy_rate);
    if (flops > 0)
        printf("  %7.1f GFLOP/s  %5.2f of peak", flops / t / 1e9, flops / t / fma_rate);
    putchar('\n');
}

#define COUNT(type, ...) (int) (sizeof((type[]){__VA_ARGS__}) / sizeof(type))
#define UNWRAP(...)      __VA_ARGS__
/* bench(name, op, bytes, flops, (attributes), (results), operands...) */
#define bench(text, id, bytes, flops, attributes, results, ...)  \
    do {                                                         \
        if (!wanted(text))                                       \
            break;                                               \
        tr_arg in_[] = {__VA_ARGS__}, out_[] = {UNWRAP results}; \
        int64_t attrs_[] = {UNWRAP attributes, 0};               \
        tr_kernel_call call_ = {TR_OP_##id,                      \
                                (tr_dtype) out_[0].meta->dtype,  \
                                COUNT(tr_arg, __VA_ARGS__),      \
                                COUNT(tr_arg, UNWRAP results),   \
                                attrs_,                          \
                                in_,                             \
                                out_,                            \
                                &ctx};                           \
        report(text, best(run_call, &call_), (bytes), (flops));  \
    } while (0)

static float *copy_from, *copy_to;
enum { COPY = 16 << 20 };
static void copy(void *env) {
#pragma omp parallel num_threads(ctx.threads)
    {
        size_t n = COPY / (size_t) omp_get_num_threads(), k = (size_t) omp_get_thread_num();
        memcpy(copy_to + k * n / 4, copy_from + k * n / 4, n);
    }
}

static void measure_copy(void) {
    copy_from = tr_aligned_alloc(64, COPY);
    copy_to = tr_aligned_alloc(64, COPY);
    memset(copy_from, 1, COPY);
    copy_rate = 2.0 * COPY / best(copy, NULL);
}

/* Peak: the library's own product of large square matrices comes within a few per cent of it on every machine tried, and
 * needs no code per instruction set here. */
static void measure_fma(void) {
    enum { N = 1536 };
    tr_arg in[] = {F(N, N), F(N, N)}, out[] = {F(N, N)};
    tr_kernel_call c = {TR_OP_mm, TR_F32, 2, 1, NULL, in, out, &ctx};
    fma_rate = 2.0 * N * N * N / best(run_call, &c);
}

/* ---- rows ---- */

enum { N = 1 << 22, SIDE = 2048 };

static void elementwise(void) {
    tr_arg x = F(N), y = F(N), o = F(N), m = TENSOR(TR_BOOL, N), h = TENSOR(TR_BF16, N), none = {0};
    tr_arg square = F(SIDE, SIDE), row = F(SIDE), out2 = F(SIDE, SIDE);
    bench("add", add, 12.0 * N, 0, (0), (o), x, y, number(1));
    bench("add, a row broadcast", add, 8.0 * N, 0, (0), (out2), square, row, number(1));
    bench("add, bfloat16", add, 6.0 * N, 0, (0), (h), h, h, number(1));
    bench("add, transposed operand", add, 12.0 * N, 0, (0), (out2), transposed(square), out2, number(1));
    bench("contiguous of transposed", _contiguous, 8.0 * N, 0, (0), (out2), transposed(square));
    bench("relu", relu, 8.0 * N, 0, (0), (o), x);
    bench("clamp", clamp, 8.0 * N, 0, (0), (o), x, number(0), none);
    bench("greater", gt, 5.0 * N, 0, (0), (m), x, number(0));
    bench("where", where, 13.0 * N, 0, (0), (o), m, x, y);
    bench("cast to bfloat16", _cast, 6.0 * N, 0, (TR_BF16), (h), x);
    bench("cast from bfloat16", _cast, 6.0 * N, 0, (TR_F32), (x), h);
    tr_arg ho = TENSOR(TR_BF16, N);
    bench("gelu, bfloat16", gelu, 4.0 * N, 0, (0), (ho), h);
    bench("gelu_backward, bfloat16", gelu_backward, 6.0 * N, 0, (0), (ho), h, h);
    bench("exp", exp, 8.0 * N, 0, (0), (o), x);
    bench("tanh", tanh, 8.0 * N, 0, (0), (o), x);
    bench("gelu", gelu, 8.0 * N, 0, (0), (o), x);
    bench("gelu_backward", gelu_backward, 12.0 * N, 0, (0), (o), x, y);
    bench("gelu, by tanh", gelu, 8.0 * N, 0, (1), (o), x);
    bench("gelu_backward, by tanh", gelu_backward, 12.0 * N, 0, (1), (o), x, y);
    bench("gelu, by tanh, bfloat16", gelu, 4.0 * N, 0, (1), (ho), h);
    bench("gelu_backward, by tanh, bfloat16", gelu_backward, 6.0 * N, 0, (1), (ho), h, h);
}

/* What a call costs where there is next to nothing to do. */
static void small(void) {
    tr_arg x = F(16, 64), y = F(16, 64), o = F(16, 64), row = F(64), s = make(TR_F32, 0, (int64_t[]){0}, NULL), none = {0};
    bench("small add", add, 0, 0, (0), (o), x, y, number(1));
    bench("small add, a row broadcast", add, 0, 0, (0), (o), x, row, number(1));
    bench("small relu", relu, 0, 0, (0), (o), x);
    bench("small sum of columns", sum, 0, 0, (1, 0, -1), (row), x);
    bench("small sum", sum, 0, 0, (3, 0, -1), (s), x);
    bench("small log_softmax", _log_softmax, 0, 0, (1), (o), x);
    bench("small layer_norm", layer_norm, 0, 0, (1), (o, F(16), F(16)), x, row, row, number(1e-5));
    bench("small mm", mm, 0, 2.0 * 16 * 64 * 64, (0), (o), x, F(64, 64));
    bench("small AdamW", _adam_, 0, 0, (1, 0), (o), o, x, y, F(16, 64), none, number(1e-3), number(0.9), number(0.999),
          number(1e-8), number(0.01), number(3));
}

static void reductions(void) {
    tr_arg x = F(SIDE, SIDE), y = F(SIDE, SIDE), r = F(SIDE), s = make(TR_F32, 0, (int64_t[]){0}, NULL),
           i = TENSOR(TR_I64, SIDE);
    bench("sum", sum, 4.0 * N, 0, (3, 0, -1), (s), x);
    bench("sum of rows", sum, 4.0 * N, 0, (2, 0, -1), (r), x);
    bench("sum of columns", sum, 4.0 * N, 0, (1, 0, -1), (r), x);
    tr_arg h = TENSOR(TR_BF16, SIDE, SIDE), rh = TENSOR(TR_BF16, SIDE);
    bench("sum of rows, bfloat16", sum, 2.0 * N, 0, (2, 0, -1), (rh), h);
    bench("sum of columns, bfloat16", sum, 2.0 * N, 0, (1, 0, -1), (rh), h);
    bench("amax of rows", amax, 4.0 * N, 0, (2, 0), (r), x);
    bench("argmax of rows", argmax, 4.0 * N, 0, (1, 0), (i), x);
    bench("softmax of rows", _softmax, 8.0 * N, 0, (1), (y), x);
    bench("log_softmax backward", _log_softmax_backward, 12.0 * N, 0, (1), (y), x, x);
}

static void layers(void) {
    tr_arg x = F(8, 64, 56, 56), y = F(8, 64, 56, 56), w = F(64), m = F(64), v = F(64), d = F(8, 64, 56, 56), none = {0};
    double bytes = 4.0 * (double) x.meta->numel;
    for (int k = 0; k < 64; k++)
        ((float *) v.data)[k] = 1;
    bench("batch_norm", batch_norm, 2 * bytes, 0, (1), (y, m, v), x, w, w, none, none, number(0.1), number(1e-5));
    bench("batch_norm backward", batch_norm_backward, 3 * bytes, 0, (1), (d, m, w), x, y, w, m, v);
    int64_t strides[] = {64 * 56 * 56, 1, 64 * 56, 64};
    tr_arg xl = make(TR_F32, 4, x.meta->shape, strides), yl = make(TR_F32, 4, x.meta->shape, strides),
           dl = make(TR_F32, 4, x.meta->shape, strides), ol = make(TR_F32, 4, x.meta->shape, strides);
    bench("batch_norm, channels last", batch_norm, 2 * bytes, 0, (1), (yl, m, v), xl, w, w, none, none, number(0.1),
          number(1e-5));
    bench("batch_norm backward, last", batch_norm_backward, 3 * bytes, 0, (1), (dl, m, w), xl, yl, w, m, v);
    bench("sum over images, last", sum, bytes, 0, (13, 0, -1), (m), xl);
    for (int half = 0; half < 2; half++) {
        if (half) {
            xl = make(TR_BF16, 4, x.meta->shape, strides), yl = make(TR_BF16, 4, x.meta->shape, strides);
            dl = make(TR_BF16, 4, x.meta->shape, strides), ol = make(TR_BF16, 4, x.meta->shape, strides);
            bench("batch_norm, last, bfloat16", batch_norm, bytes, 0, (1), (yl, m, v), xl, w, w, none, none, number(0.1), number(1e-5));
            bench("batch_norm backward, bfloat16", batch_norm_backward, 1.5 * bytes, 0, (1), (dl, m, w), xl, yl, w, m, v);
        }
        tr_norm_forward f = {.flags = 3, .training = true, .eps = 1e-5, .x = xl, .other = ol, .y = yl, .mean = m, .inv = v};
        if (wanted("batch_norm + add + relu"))
            report(half ? "batch_norm + ..., bfloat16" : "batch_norm + add + relu, last", best(run_norm, &f), bytes * 3 / (1 + half), 0);
        tr_norm_backward b = {.flags = 3, .training = true, .grad = ol, .y = yl, .x = xl, .mean = m, .inv = v, .dx = dl,
                              .dother = ol};
        if (wanted("batch_norm + add + relu"))
            report("  backward", best(run_norm_backward, &b), bytes * 5 / (1 + half), 0);
    }
    tr_arg l = F(1024, 768), lw = F(768), lm = F(1024), li = F(1024), lo = F(1024, 768);
    bench("layer_norm", layer_norm, 8.0 * 1024 * 768, 0, (1), (lo, lm, li), l, lw, lw, number(1e-5));
    bench("layer_norm backward", layer_norm_backward, 12.0 * 1024 * 768, 0, (1), (lo, lw, lw), l, l, lw, lm, li);
    tr_arg table = F(16384, 512), index = TENSOR(TR_I64, 1024), rows = F(1024, 512);
    for (int k = 0; k < 1024; k++)
        ((int64_t *) index.data)[k] = k * 7919 % 16384;
    bench("embedding", embedding, 8.0 * 1024 * 512, 0, (-1), (rows), table, index);
    bench("embedding backward", embedding_backward, 4.0 * 16384 * 512, 0, (16384, -1), (table), rows, index);
}

/* [n, c, h, w], row-major or with channels last. */
static tr_arg images(tr_dtype dtype, bool last, int64_t n, int64_t c, int64_t h, int64_t w) {
    return make(dtype, 4, (int64_t[]){n, c, h, w}, last ? (int64_t[]){h * w * c, 1, w * c, c} : NULL);
}

static void pools(void) {
    static const char *const how[2][2] = {{"", ", last"}, {", bfloat16", ", last, bfloat16"}};
    for (int form = 0; form < 4; form++) {
        bool last = form & 1;
        tr_dtype t = form & 2 ? TR_BF16 : TR_F32;
        tr_arg x = images(t, last, 8, 64, 64, 64), y = images(t, last, 8, 64, 32, 32), at = images(TR_I64, last, 8, 64, 32, 32),
               one = images(t, last, 8, 64, 1, 1);
        double in = (double) x.meta->numel * (double) tr_dtype_size(t), bytes = in * 5 / 4, with_indices = bytes + in * 2 / (form & 2 ? 1 : 2);
        char name[64];
#define POOL(text, id, bytes, ...)                               \
    snprintf(name, sizeof name, text "%s", how[form / 2][last]); \
    bench(name, id, bytes, 0, __VA_ARGS__)
        POOL("max_pool 3x3 / 2", max_pool2d, with_indices, (3, 3, 2, 2, 1, 1, 1, 1, 0), (y, at), x);
        POOL("  max_pool back", max_pool2d_backward, with_indices, (0), (x), y, x, at);
        POOL("avg_pool 2x2", avg_pool2d, bytes, (2, 2, 2, 2, 0, 0, 0, 1, 0), (y), x);
        POOL("  avg_pool back", avg_pool2d_backward, bytes, (2, 2, 2, 2, 0, 0, 0, 1, 0), (x), y, x);
        POOL("avg_pool 3x3 / 2", avg_pool2d, bytes, (3, 3, 2, 2, 1, 1, 0, 1, 0), (y), x);
        POOL("  avg_pool 3x3 back", avg_pool2d_backward, bytes, (3, 3, 2, 2, 1, 1, 0, 1, 0), (x), y, x);
        POOL("adaptive_pool to 1", adaptive_avg_pool2d, in, (1, 1), (one), x);
        POOL("  adaptive_pool back", adaptive_avg_pool2d_backward, in, (0), (x), one, x);
    }
}

static void updates(void) {
    tr_arg p = F(N), g = F(N), m = F(N), v = F(N), none = {0};
    memset(v.data, 0, 4 * N);
    bench("AdamW", _adam_, 28.0 * N, 0, (1, 0), (p), p, g, m, v, none, number(1e-3), number(0.9), number(0.999), number(1e-8),
          number(0.01), number(3));
    bench("SGD with momentum", _sgd_, 20.0 * N, 0, (0, 0, 0), (p), p, g, m, number(1e-3), number(0.9), number(0), number(0));
    tr_generator state;
    tr_generator_seed(&state, 1);
    tr_arg gen = {&state, tr_meta_get(TR_U8, 1, (int64_t[]){sizeof state}, NULL), {0}}, o = F(10000000), x = F(10000000),
           mask = TENSOR(TR_BOOL, 10000000);
    bench("dropout, 20 M words", _dropout, 9e7, 0, (0), (o, mask), x, number(0.1), gen);
    bench("uniform", uniform_, 4.0 * N, 0, (0), (p), p, number(0), number(1), gen);
    bench("normal", normal_, 4.0 * N, 0, (0), (p), p, number(0), number(1), gen);
}

/* BERT's: 1024 tokens, 768 wide, 30,522 words. */
static void bert(void) {
    enum { TOKENS = 1024, WIDE = 768, INNER = 3072, WORDS = 30522 };
    tr_arg x = F(TOKENS, INNER), y = F(TOKENS, INNER), d = F(TOKENS, INNER), none = {0};
    bench("bert gelu", gelu, 8.0 * TOKENS * INNER, 0, (0), (y), x);
    bench("bert gelu_backward", gelu_backward, 12.0 * TOKENS * INNER, 0, (0), (d), y, x);
    tr_generator state;
    tr_generator_seed(&state, 1);
    tr_arg gen = {&state, tr_meta_get(TR_U8, 1, (int64_t[]){sizeof state}, NULL), {0}}, h = F(TOKENS, WIDE), o = F(TOKENS, WIDE),
           mask = TENSOR(TR_BOOL, TOKENS, WIDE);
    bench("bert dropout", _dropout, 9.0 * TOKENS * WIDE, 0, (0), (o, mask), h, number(0.1), gen);
    tr_arg logits = F(TOKENS, WORDS), dl = F(TOKENS, WORDS), target = TENSOR(TR_I64, TOKENS), loss = make(TR_F32, 0, (int64_t[]){0}, NULL),
           total = make(TR_F32, 0, (int64_t[]){0}, NULL), sums = F(TOKENS);
    for (int k = 0; k < TOKENS; k++)
        ((int64_t *) target.data)[k] = k * 7919 % WORDS;
    bench("bert cross_entropy", _cross_entropy, 4.0 * TOKENS * WORDS, 0, (1), (loss, total, sums), logits, target, none,
          number(-100));
    bench("bert cross_entropy backward", _cross_entropy_backward, 8.0 * TOKENS * WORDS, 0, (1), (dl), loss, logits, target, none,
          total, sums, number(-100));
    tr_arg half = TENSOR(TR_BF16, TOKENS, WORDS), dh = TENSOR(TR_BF16, TOKENS, WORDS);
    bench("bert logits from bfloat16", _cast, 6.0 * TOKENS * WORDS, 0, (TR_F32), (logits), half);
    bench("bert logits to bfloat16", _cast, 6.0 * TOKENS * WORDS, 0, (TR_BF16), (half), logits);
    bench("bert cross_entropy, bfloat16", _cross_entropy, 2.0 * TOKENS * WORDS, 0, (1), (loss, total, sums), half, target, none,
          number(-100));
    bench("bert cross_entropy backward, bfloat16", _cross_entropy_backward, 4.0 * TOKENS * WORDS, 0, (1), (dh), loss, half, target,
          none, total, sums, number(-100));
    tr_arg table = F(WORDS, WIDE);
    bench("bert embedding backward", embedding_backward, 4.0 * WORDS * WIDE, 0, (WORDS, -1), (table), h, target);
}

static void products(void) {
    static const int sizes[][3] = {{1024, 768, 3072}, {1024, 512, 16384}, {128, 128, 128}, {16, 64, 64}};
    for (int i = 0; i < 4; i++) {
        int64_t m = sizes[i][0], k = sizes[i][1], n = sizes[i][2];
        char name[64];
        tr_arg a = F(m, k), b = F(n, k), y = F(m, n), bias = F(n);
        snprintf(name, sizeof name, "linear %dx%dx%d", sizes[i][0], sizes[i][1], sizes[i][2]);
        bench(name, addmm, 0, 2.0 * (double) (m * n * k), (0), (y), bias, a, transposed(b), number(1), number(1));
    }
    bench("bmm 96x128x64x128", bmm, 0, 2.0 * 96 * 128 * 64 * 128, (0), (F(96, 128, 128)), F(96, 128, 64), F(96, 64, 128));
    tr_arg d = make(TR_F64, 2, (int64_t[]){256, 256}, NULL);
    bench("mm, float64", mm, 0, 2.0 * 256 * 256 * 256, (0), (make(TR_F64, 2, (int64_t[]){256, 256}, NULL)), d, d);
}

/* As projections leave them: [B, L, H, D], seen as [B, H, L, D]; `step`: from a row of the product to the next. */
static tr_arg heads(tr_dtype dtype, int64_t b, int64_t h, int64_t l, int64_t d, int64_t step) {
    return make(dtype, 4, (int64_t[]){b, h, l, d}, (int64_t[]){l * step, d, step, 1});
}
static void attention(void) {
    static const int sizes[][7] = {{8, 12, 128, 64, 0, 1, 0},
                                   {8, 12, 128, 64, 0, 1, 1},
                                   {4, 8, 256, 64, 1, 1, 0},
                                   {4, 8, 256, 64, 1, 3, 0},
                                   {1, 8, 2048, 64, 1, 1, 0}};
    for (int i = 0; i < 2 * (int) (sizeof sizes / sizeof *sizes); i++) {
        const int *z = sizes[i / 2];
        int64_t b = z[0], h = z[1], l = z[2], d = z[3], causal = z[4], row = h * d;
        tr_dtype dtype = i % 2 ? TR_BF16 : TR_F32;
        char name[96];
        snprintf(name, sizeof name, "attention %dx%dx%dx%d%s%s%s%s", z[0], z[1], z[2], z[3], causal ? " causal" : "",
                 z[5] > 1 ? " of one product" : "", z[6] ? " dropout" : "", i % 2 ? ", bfloat16" : "");
        if (!wanted(name))
            continue;
        tr_arg q = heads(dtype, b, h, l, d, row * z[5]), k = heads(dtype, b, h, l, d, row * z[5]),
               v = heads(dtype, b, h, l, d, row * z[5]), y = heads(dtype, b, h, l, d, row), g = heads(dtype, b, h, l, d, row),
               dq = heads(dtype, b, h, l, d, row), dk = heads(dtype, b, h, l, d, row), dv = heads(dtype, b, h, l, d, row),
               sums = F(b, h, l), none = {0};
        tr_arg keep = z[6] ? TENSOR(TR_BOOL, b, h, l, l) : none;
        for (int64_t n = 0; z[6] && n < keep.meta->numel; n++)
            ((uint8_t *) keep.data)[n] = n * 7919 % 10 != 0;
        double flops = 4.0 * (double) (b * h * l * l * d) / (causal ? 2 : 1), p = z[6] ? 0.1 : 0;
        bench(name, _sdpa, 0, flops, (causal), (y, sums), q, k, v, none, keep, number(0.125), number(p));
        strcat(name, ", backward");
        bench(name, _sdpa_backward, 0, 2.5 * flops, (causal), (dq, dk, dv), g, q, k, v, none, keep, y, sums, number(0.125),
              number(p));
    }
}

static void convolutions(void) {
    static const int shapes[][6] = {
        {64, 32, 64, 3, 1, 1}, {256, 16, 64, 1, 1, 0}, {3, 128, 64, 7, 2, 3}, {512, 4, 512, 3, 1, 1}};
    for (int i = 0; i < 4; i++) {
        int64_t ci = shapes[i][0], h = shapes[i][1], co = shapes[i][2], k = shapes[i][3], s = shapes[i][4], p = shapes[i][5];
        int64_t o = (h + 2 * p - k) / s + 1;
        tr_arg x = F(8, ci, h, h), w = F(co, ci, k, k), y = F(8, co, o, o), none = {0};
        double flops = 2.0 * (double) (y.meta->numel * ci * k * k);
        char name[64];
        snprintf(name, sizeof name, "conv %d-%d %dx%d, forward", shapes[i][0], shapes[i][2], shapes[i][3], shapes[i][3]);
        bench(name, conv2d, 0, flops, (s, s, p, p, 1, 1, 1), (y), x, w, none);
        bench("  by data", conv2d_backward_data, 0, flops, (s, s, p, p, 1, 1, 1, h, h), (x), y, w);
        bench("  by weights", conv2d_backward_weights, 0, flops, (s, s, p, p, 1, 1, 1, k, k), (w), y, x);
    }
}

int main(int argc, char **argv) {
    ctx.threads = argc > 1 && atoi(argv[1]) > 0 ? atoi(argv[1]) : omp_get_max_threads();
    words = argv + 2;
    n_words = argc > 2 ? argc - 2 : 0;
    omp_set_num_threads(ctx.threads);
    ctx.scratch_base = tr_aligned_alloc(64, BENCH_SCRATCH);
    if (!ctx.scratch_base || tr_op_init() != TR_OK || tr_kernel_init(getenv("TERRA_ISA")) != TR_OK)
        return 1;
    measure_copy();
    measure_fma();
    printf("%s, %d threads; a copy of 16 MB: %.1f GB/s; product of 1536x1536: %.1f GFLOP/s\n", tr_kernel_isa(), ctx.threads,
           copy_rate / 1e9, fma_rate / 1e9);
    elementwise();
    small();
    reductions();
    layers();
    pools();
    updates();
    bert();
    products();
    attention();
    convolutions();
    return 0;
}
