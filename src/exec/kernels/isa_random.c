/* isa_random.c - draws from a generator, word for word as PyTorch's CPU build draws them.
 *
 * A generator is MT19937. Words are drawn in blocks, in order, by one thread; what becomes of them may run in parallel.
 * Elements are met in the order of their strides, as PyTorch's TensorIterator meets them: memory order for a dense
 * tensor. (Older builds of PyTorch drew scalar Bernoulli values from MKL's MCG31 on Intel processors; the wheels of 2.13
 * contain no part of MKL's generators, so every processor has this stream.) */
#include "exec/kernels/kernels.h"
#include "exec/kernels/ew_math.h"

/* ------------------------------------------------------------------------------------------ words */

enum { MT_N = 624, MT_M = 397 };

static inline uint32_t mt_mix(uint32_t upper, uint32_t lower, uint32_t far) {
    uint32_t y = (upper & 0x80000000u) | (lower & 0x7fffffffu);
    return far ^ (y >> 1) ^ ((0u - (y & 1)) & 0x9908b0dfu);
}

/* The next block of state. Each piece reads only words that are not written within a vector of it. */
static void mt_twist(uint32_t *s) {
    _Pragma("GCC ivdep") for (int i = 0; i < MT_N - MT_M; i++) s[i] = mt_mix(s[i], s[i + 1], s[i + MT_M]);
    _Pragma("GCC ivdep") for (int i = MT_N - MT_M; i < 2 * (MT_N - MT_M); i++) s[i] =
        mt_mix(s[i], s[i + 1], s[i + MT_M - MT_N]);
    _Pragma("GCC ivdep") for (int i = 2 * (MT_N - MT_M); i < MT_N - 1; i++) s[i] = mt_mix(s[i], s[i + 1], s[i + MT_M - MT_N]);
    s[MT_N - 1] = mt_mix(s[MT_N - 1], s[0], s[MT_M - 1]);
}

static inline uint32_t mt_temper(uint32_t y) {
    y ^= y >> 11;
    y ^= y << 7 & 0x9d2c5680u;
    y ^= y << 15 & 0xefc60000u;
    return y ^ y >> 18;
}

static void draw_words(tr_generator *g, uint32_t *out, int64_t n) {
    while (n > 0) {
        if (g->at >= MT_N) {
            mt_twist(g->mt);
            g->at = 0;
        }
        int64_t k = tr__min(n, MT_N - g->at);
        const uint32_t *s = g->mt + g->at;
        _Pragma("GCC ivdep") for (int64_t i = 0; i < k; i++) out[i] = mt_temper(s[i]);
        g->at += (uint32_t) k;
        out += k;
        n -= k;
    }
}

static uint32_t draw_word(tr_generator *g) {
    uint32_t w;
    draw_words(g, &w, 1);
    return w;
}
static uint64_t draw_word64(tr_generator *g) {
    uint64_t high = draw_word(g);
    return high << 32 | draw_word(g);
}

static inline float to_float(uint32_t w) {
    return (float) (int32_t) (w & 0xffffff) * 0x1p-24f;
}
/* Two words, the first the high half. */
static inline double to_double(const uint32_t *w) {
    uint64_t d = ((uint64_t) w[0] << 32 | w[1]) & ((1ull << 53) - 1);
    return (double) (int64_t) d * 0x1p-53;
}
static double draw_double(tr_generator *g) {
    uint32_t w[2];
    draw_words(g, w, 2);
    return to_double(w);
}

/* ------------------------------------------------------------------------------------------ operands */

static tr_generator *generator_of(const tr_kernel_call *c, int at) {
    return at < c->n_in ? c->in[at].data : NULL;
}

static tr_status need_generator(const tr_generator *g) {
    return g ? TR_OK : TR_FAIL(TR_E_INTERNAL, "a random op came without its generator");
}

/* `a` with its dimensions in the order of their strides: what row-major order of the view meets is PyTorch's order. */
static tr_arg in_stride_order(const tr_arg *a, tr_meta *m) {
    *m = *a->meta;
    for (int i = 1; i < m->ndim; i++)
        for (int k = i; k > 0 && m->strides[k - 1] < m->strides[k]; k--) {
            int64_t t = m->strides[k];
            m->strides[k] = m->strides[k - 1];
            m->strides[k - 1] = t;
            t = m->shape[k];
            m->shape[k] = m->shape[k - 1];
            m->shape[k - 1] = t;
        }
    tr_meta sorted;
    tr__meta_make(&sorted, (tr_dtype) m->dtype, m->ndim, m->shape, m->strides);
    *m = sorted;
    return (tr_arg){a->data, m, {0}};
}

/* Words for n elements, `per` each, in pieces: fn(env, first element, elements, words). */
enum { PIECE = 1 << 14 }; /* words stay in the L2 cache; less than is worth a second thread */
typedef struct draw {
    const uint32_t *words;
    int64_t first;
    void *y;
    double a, b;
    int per;
    tr__range_fn fn;
} draw;

static tr_status draw_each(const tr_kernel_call *c, tr_generator *g, draw *d, int64_t n) {
    uint32_t *words = tr__scratch(c, (size_t) tr__min(n, PIECE) * (size_t) d->per * 4);
    if (!words)
        return TR_E_NOMEM;
    d->words = words;
    for (int64_t at = 0; at < n; at += PIECE) {
        int64_t k = tr__min(PIECE, n - at);
        draw_words(g, words, k * d->per);
        d->first = at;
        tr__parallel(c->ctx, k, TR__GRAIN, d->fn, d);
    }
    return TR_OK;
}

/* Fills in[0] in stride order through `d`, whose function writes `wide` elements. */
static tr_status fill_in_order(const tr_kernel_call *c, tr_generator *g, draw *d, tr_dtype wide) {
    const tr_arg *in = &c->in[0];
    tr_meta m;
    tr_arg view = in_stride_order(in, &m);
    TR_TRY(need_generator(g));
    if (m.numel == 0)
        return TR_OK;
    TR_TRY(tr__dense_out(c, &view, wide, &d->y));
    TR_TRY(draw_each(c, g, d, m.numel));
    return tr__dense_out_end(c, &view, wide, d->y);
}

/* ------------------------------------------------------------------------------------------ uniform */

#if TR_ISA_LEVEL >= 3
#define SCALE_F(x, size, from) __builtin_fmaf(x, size, from)
#define SCALE_D(x, size, from) __builtin_fma(x, size, from)
#else
#define SCALE_F(x, size, from) ((x) * (size) + (from))
#define SCALE_D(x, size, from) ((x) * (size) + (from))
#endif

/* Rounding may reach the end, which is left out: PyTorch puts the beginning in its place. */
static void uniform_float(void *env, int64_t begin, int64_t end, int thread) {
    const draw *d = env;
    float *y = (float *) d->y + d->first;
    const float from = (float) d->a, to = (float) d->b, size = to - from;
    _Pragma("GCC ivdep") for (int64_t i = begin; i < end; i++) {
        float v = SCALE_F(to_float(d->words[i]), size, from);
        y[i] = v == to ? from : v;
    }
}
static void uniform_double(void *env, int64_t begin, int64_t end, int thread) {
    const draw *d = env;
    double *y = (double *) d->y + d->first;
    _Pragma("GCC ivdep") for (int64_t i = begin; i < end; i++) {
        double v = SCALE_D(to_double(d->words + 2 * i), d->b - d->a, d->a);
        y[i] = v == d->b ? d->a : v;
    }
}
static void uniform_bf16(void *env, int64_t begin, int64_t end, int thread) {
    const draw *d = env;
    float *y = (float *) d->y + d->first;
    const float from = (float) d->a, to = (float) d->b, size = to - from;
    const uint16_t last = tr__f32_to_bf16(to);
    _Pragma("GCC ivdep") for (int64_t i = begin; i < end; i++) {
        float v = SCALE_F(to_float(d->words[i]), size, from);
        y[i] = tr__f32_to_bf16(v) == last ? from : v;
    }
}

TR__ISA_KERNEL(uniform_) {
    tr_dtype t = (tr_dtype) c->in[0].meta->dtype;
    draw d = {.a = tr_arg_double(&c->in[1]),
              .b = tr_arg_double(&c->in[2]),
              .per = t == TR_F64 ? 2 : 1,
              .fn = t == TR_F64    ? uniform_double
                    : t == TR_BF16 ? uniform_bf16
                                   : uniform_float};
    return fill_in_order(c, generator_of(c, 3), &d, t == TR_F64 ? TR_F64 : TR_F32);
}

/* ------------------------------------------------------------------------------------------ normal */

/* Box-Muller in pairs of doubles; the second value waits in the generator. */
static double draw_normal(tr_generator *g) {
    if (g->has_normal) {
        g->has_normal = 0;
        return g->normal;
    }
    double u1 = draw_double(g), u2 = draw_double(g);
    double r = sqrt(-2 * log1p(-u2)), theta = 2 * 3.14159265358979323846 * u1;
    g->normal = r * sin(theta);
    g->has_normal = 1;
    return r * cos(theta);
}

/* Blocks of 16 uniforms in y, 8 radii and 8 angles each, become normal in place. Up to TURN blocks at a time are sorted into
 * vectors. */
enum { TURN = 16 };
#define NORMAL(T, V, VN, PI, sqrt_)                                                                       \
    static void normal_turn_##T(T *y, int64_t n, T mean, T std) {                                         \
        T u[TURN * 8] __attribute__((aligned(64))) = {0}, t[TURN * 8] __attribute__((aligned(64))) = {0}; \
        for (int64_t k = 0; k < n; k++) {                                                                 \
            memcpy(u + 8 * k, y + 16 * k, 8 * sizeof *y);                                                 \
            memcpy(t + 8 * k, y + 16 * k + 8, 8 * sizeof *y);                                             \
        }                                                                                                 \
        for (int64_t i = 0; i < 8 * n; i += VN) {                                                         \
            V a, b;                                                                                       \
            memcpy(&a, u + i, sizeof a);                                                                  \
            memcpy(&b, t + i, sizeof b);                                                                  \
            a = -2 * V##_log(1 - a);                                                                      \
            b = 2 * (T) PI * b;                                                                           \
            for (int k = 0; k < VN; k++)                                                                  \
                a[k] = sqrt_(a[k]);                                                                       \
            V c = V##_cos(b), s = V##_sin(b);                                                             \
            c = a * c * std + mean;                                                                       \
            s = a * s * std + mean;                                                                       \
            memcpy(u + i, &c, sizeof c);                                                                  \
            memcpy(t + i, &s, sizeof s);                                                                  \
        }                                                                                                 \
        for (int64_t k = 0; k < n; k++) {                                                                 \
            memcpy(y + 16 * k, u + 8 * k, 8 * sizeof *y);                                                 \
            memcpy(y + 16 * k + 8, t + 8 * k, 8 * sizeof *y);                                             \
        }                                                                                                 \
    }                                                                                                     \
    static void normal_blocks_##T(void *env, int64_t begin, int64_t end, int thread) {                    \
        const draw *d = env;                                                                              \
        for (int64_t i = begin; i < end; i += TURN)                                                       \
            normal_turn_##T((T *) d->y + 16 * i, tr__min(TURN, end - i), (T) d->a, (T) d->b);             \
    }
NORMAL(float, vF, VN_F, 3.14159265358979323846, __builtin_sqrtf)
NORMAL(double, vD, VN_D, 3.14159265358979323846, __builtin_sqrt)

static tr_status fill_normal(const tr_kernel_call *c, tr_generator *g, double mean, double std) {
    tr_dtype t = (tr_dtype) c->in[0].meta->dtype, wide = t == TR_F64 ? TR_F64 : TR_F32;
    int64_t n = c->in[0].meta->numel;
    draw u = {.a = 0, .b = 1, .per = t == TR_F64 ? 2 : 1, .fn = t == TR_F64 ? uniform_double : uniform_float};
    TR_TRY(tr__dense_out(c, &c->in[0], wide, &u.y));
    TR_TRY(draw_each(c, g, &u, t == TR_BF16 ? n / 16 * 16 : n)); // bfloat16 draws whole blocks only
    draw d = {.a = mean, .b = std, .y = u.y};
    tr__parallel(c->ctx, n / 16, TR__GRAIN / 64, wide == TR_F64 ? normal_blocks_double : normal_blocks_float, &d);
    if (n % 16) { // the tail draws the last 16 again
        draw tail = u;
        tail.y = (char *) u.y + (size_t) (n - 16) * tr_dtype_size(wide);
        TR_TRY(draw_each(c, g, &tail, 16));
        if (wide == TR_F64)
            normal_turn_double(tail.y, 1, mean, std);
        else
            normal_turn_float(tail.y, 1, (float) mean, (float) std);
    }
    return tr__dense_out_end(c, &c->in[0], wide, u.y);
}

TR__ISA_KERNEL(normal_) {
    tr_generator *g = generator_of(c, 3);
    double mean = tr_arg_double(&c->in[1]), std = tr_arg_double(&c->in[2]);
    tr_meta m;
    tr_arg view = in_stride_order(&c->in[0], &m);
    void *p;
    TR_TRY(need_generator(g));
    if (m.numel >= 16 && c->in[0].meta->contiguous)
        return fill_normal(c, g, mean, std);
    TR_TRY(tr__dense_out(c, &view, TR_F64, &p));
    for (int64_t i = 0; i < m.numel; i++)
        ((double *) p)[i] = draw_normal(g) * std + mean;
    return tr__dense_out_end(c, &view, TR_F64, p);
}

/* ------------------------------------------------------------------------------------------ others of one number */

static void exponential(void *env, int64_t begin, int64_t end, int thread) {
    const draw *d = env;
    double *y = (double *) d->y + d->first;
    for (int64_t i = begin; i < end; i++)
        y[i] = -1 / d->a * log1p(-to_double(d->words + 2 * i));
}
TR__ISA_KERNEL(exponential_) {
    draw d = {.a = tr_arg_double(&c->in[1]), .per = 2, .fn = exponential};
    return fill_in_order(c, generator_of(c, 2), &d, TR_F64);
}

/* A double below p, compared as integers: D < p is the same as its 53 bits < ceil(p * 2^53). */
static uint64_t threshold(double p) {
    return p >= 1 ? 1ull << 53 : p <= 0 ? 0 : (uint64_t) __builtin_ceil(p * 0x1p53);
}
/* The first word's 21 bits decide unless they are the limit's own, once in two million: of pairs that begin at even places, only
 * first words are tempered. False where bits did not decide. */
enum { HIGH = (1 << 21) - 1, BELOW_BLOCK = 2048 };
static bool below_by_high(tr_generator *g, uint8_t *y, int64_t n, int32_t high) {
    int32_t held[BELOW_BLOCK], tie = 0;
    for (int64_t done = 0; done < n;) {
        if (g->at >= MT_N) {
            mt_twist(g->mt);
            g->at = 0;
        }
        int64_t k = tr__min(n - done, (MT_N - g->at) / 2);
        const uint32_t *s = g->mt + g->at;
        int32_t *to = held + done;
        _Pragma("GCC ivdep") for (int64_t i = 0; i < k; i++) to[i] = (int32_t) (mt_temper(s[2 * i]) & HIGH);
        g->at += (uint32_t) (2 * k);
        done += k;
    }
    _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) {
        y[i] = held[i] < high;
        tie |= held[i] == high;
    }
    return !tie;
}
static void below(tr_generator *g, uint8_t *y, int64_t n, double p) {
    const uint64_t limit = threshold(p);
    uint32_t words[2 * BELOW_BLOCK];
    for (int64_t at = 0; at < n; at += BELOW_BLOCK, y += BELOW_BLOCK) {
        int64_t k = tr__min(BELOW_BLOCK, n - at);
        tr_generator before = *g;
        if (g->at % 2 == 0 && below_by_high(g, y, k, (int32_t) (limit >> 32)))
            continue;
        *g = before;
        draw_words(g, words, 2 * k);
        for (int64_t i = 0; i < k; i++)
            y[i] = (((uint64_t) words[2 * i] << 32 | words[2 * i + 1]) & ((1ull << 53) - 1)) < limit;
    }
}

/* Fills a in stride order. */
static tr_status fill_below(const tr_kernel_call *c, tr_generator *g, const tr_arg *a, double p) {
    tr_meta m;
    tr_arg view = in_stride_order(a, &m);
    void *y;
    TR_TRY(need_generator(g));
    if (m.numel == 0)
        return TR_OK;
    TR_TRY(tr__dense_out(c, &view, TR_BOOL, &y));
    below(g, y, m.numel, p);
    return tr__dense_out_end(c, &view, TR_BOOL, y);
}
TR__ISA_KERNEL(_bernoulli_) {
    return fill_below(c, generator_of(c, 2), &c->in[0], tr_arg_double(&c->in[1]));
}

TR__ISA_KERNEL(_random_) {
    tr_generator *g = generator_of(c, 3);
    uint64_t from = (uint64_t) tr_arg_int(&c->in[1]), size = (uint64_t) tr_arg_int(&c->in[2]) - from;
    tr_meta m;
    tr_arg view = in_stride_order(&c->in[0], &m);
    void *p;
    TR_TRY(need_generator(g));
    if (size == 0)
        return TR_FAIL(TR_E_RUNTIME, "random_ expects 'from' to be less than 'to'");
    TR_TRY(tr__dense_out(c, &view, TR_I64, &p));
    for (int64_t i = 0; i < m.numel; i++)
        ((uint64_t *) p)[i] = (size >= 1ull << 28 ? draw_word64(g) : draw_word(g)) % size + from;
    return tr__dense_out_end(c, &view, TR_I64, p);
}

/* A probability for each element: one word each, or two in float64. */
TR__ISA_KERNEL(bernoulli) {
    const tr_arg *out = &c->out[0];
    tr_generator *g = generator_of(c, 1);
    bool f64 = c->in[0].meta->dtype == TR_F64;
    tr_meta m, k = *c->in[0].meta;
    tr_arg view = in_stride_order(out, &m);
    const void *p;
    void *y;
    TR_TRY(need_generator(g));
    // The input is read in the order of the output's strides: give it the output's permutation first.
    tr_meta same = *out->meta;
    same.dtype = k.dtype;
    tr_arg copy = {tr__scratch(c, (size_t) out->meta->extent * 8 + 8), &same, {0}};
    if (!copy.data)
        return TR_E_NOMEM;
    TR_TRY(tr__copy(c->ctx, &copy, &c->in[0]));
    tr_arg ordered = in_stride_order(&copy, &k);
    TR_TRY(tr__dense_in(c, &ordered, f64 ? TR_F64 : TR_F32, &p));
    TR_TRY(tr__dense_out(c, &view, TR_BOOL, &y));
    for (int64_t i = 0; i < m.numel; i++) {
        double q = f64 ? ((const double *) p)[i] : ((const float *) p)[i];
        if (!(q >= 0 && q <= 1))
            return TR_FAIL(TR_E_RUNTIME, "Expected p_in >= 0 && p_in <= 1 to be true, but got false.");
        ((uint8_t *) y)[i] = f64 ? draw_double(g) < q : to_float(draw_word(g)) < q;
    }
    return tr__dense_out_end(c, &view, TR_BOOL, y);
}

TR__ISA_KERNEL(_randperm) {
    tr_generator *g = generator_of(c, 1);
    int64_t n = c->in[0].meta->numel;
    void *p;
    TR_TRY(need_generator(g));
    TR_TRY(tr__dense_out(c, &c->in[0], TR_I64, &p));
    int64_t *y = p;
    for (int64_t i = 0; i < n; i++)
        y[i] = i;
    for (int64_t i = 0; i < n - 1; i++) {
        int64_t k = i + draw_word(g) % (n - i), t = y[i];
        y[i] = y[k];
        y[k] = t;
    }
    return tr__dense_out_end(c, &c->in[0], TR_I64, p);
}

/* ------------------------------------------------------------------------------------------ multinomial */

static int64_t search(const double *cumulated, int64_t n, double u) {
    int64_t low = 0, high = n;
    while (low < high) {
        int64_t mid = low + (high - low) / 2;
        if (cumulated[mid] < u)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

/* With replacement: inverse of the cumulated distribution, kept as float for float input. */
static void sample_row(tr_generator *g, const double *p, double *cumulated, int64_t n, int64_t k, int64_t *y, bool f64) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        sum = f64 ? sum + p[i] : (float) sum + (float) p[i];
        cumulated[i] = sum;
    }
    for (int64_t i = 0; i < n; i++)
        cumulated[i] = f64 ? cumulated[i] / sum : (float) cumulated[i] / (float) sum;
    if (n > 0)
        cumulated[n - 1] = 1;
    for (int64_t i = 0; i < k; i++)
        y[i] = search(cumulated, n, draw_double(g));
}

/* Without: the k greatest of p / Exp(1), drawn for all elements first. */
static void sample_row_once(const double *q, bool *taken, int64_t n, int64_t k, int64_t *y) {
    memset(taken, 0, (size_t) n);
    for (int64_t i = 0; i < k; i++) {
        int64_t best = -1;
        for (int64_t j = 0; j < n; j++)
            if (!taken[j] && (best < 0 || q[j] > q[best]))
                best = j;
        taken[best] = true;
        y[i] = best;
    }
}

TR__ISA_KERNEL(multinomial) {
    const tr_arg *in = &c->in[0], *out = &c->out[0];
    tr_generator *g = generator_of(c, 1);
    int64_t n = in->meta->shape[in->meta->ndim - 1], rows = n ? in->meta->numel / n : 0, k = c->attrs[0];
    bool f64 = in->meta->dtype == TR_F64;
    const void *p;
    void *y;
    TR_TRY(need_generator(g));
    TR_TRY(tr__dense_in(c, in, TR_F64, &p));
    TR_TRY(tr__dense_out(c, out, TR_I64, &y));
    double *work = tr__scratch(c, (size_t) (in->meta->numel + n) * sizeof *work);
    bool *taken = tr__scratch(c, (size_t) n + 1);
    if (!work || !taken)
        return TR_E_NOMEM;
    const double *x = p;
    for (int64_t r = 0; r < rows; r++) {
        double sum = 0;
        for (int64_t i = 0; i < n; i++) {
            double v = x[r * n + i];
            if (!(v >= 0) || isinf(v))
                return TR_FAIL(TR_E_RUNTIME, "probability tensor contains either `inf`, `nan` or element < 0");
            sum += v;
        }
        if (sum == 0)
            return TR_FAIL(TR_E_RUNTIME, "invalid multinomial distribution (sum of probabilities <= 0)");
    }
    bool replace = c->attrs[1] && k != 1;
    if (!replace)
        for (int64_t i = 0; i < in->meta->numel; i++) {
            double e = -1.0 * log1p(-draw_double(g));
            work[i] = f64 ? x[i] / e : (double) ((float) x[i] / (float) e);
        }
    for (int64_t r = 0; r < rows; r++) {
        if (replace)
            sample_row(g, x + r * n, work, n, k, (int64_t *) y + r * k, f64);
        else
            sample_row_once(work + r * n, taken, n, k, (int64_t *) y + r * k);
    }
    return tr__dense_out_end(c, out, TR_I64, y);
}

/* ------------------------------------------------------------------------------------------ dropout */

tr_status TR__SUFFIXED(tr__dropout_draw)(const tr_kernel_call *c) {
    const tr_arg *mask = &c->out[1];
    tr_generator *g = generator_of(c, 2);
    double keep = 1 - tr_arg_double(&c->in[1]);
    TR_TRY(need_generator(g));
    if (keep >= 1 || keep <= 0) // PyTorch draws nothing then
        return tr__fill(c->ctx, mask, TR_I64, (tr_number){.i = keep > 0});
    return fill_below(c, g, mask, keep);
}

tr_status TR__SUFFIXED(tr__dropout_apply)(const tr_kernel_call *c) {
    const tr_arg *in = &c->in[0], *mask = &c->out[1];
    double keep = 1 - tr_arg_double(&c->in[1]);
    tr_meta k;
    tr__meta_make(&k, TR_F64, 0, NULL, NULL);
    double scale = keep <= 0 ? 0 : in->meta->dtype == TR_F64 ? 1 / keep : 1.0f / (float) keep;
    tr_ew_program p = {.n_steps = 1, .n_args = 4};
    p.steps[0] = (tr_ew_step){.op = TR_OP_masked_scale,
                              .cdtype = in->meta->dtype,
                              .dtype = c->out[0].meta->dtype,
                              .in = {0, 1, 2, TR_EW_ABSENT, TR_EW_ABSENT},
                              .store = 3};
    tr_arg args[4] = {*in, *mask, {NULL, &k, {.d = scale}}, c->out[0]};
    return tr_ew_run(&p, c->out[0].meta, args, c->ctx);
}

TR__ISA_KERNEL(_dropout) {
    TR_TRY(TR__SUFFIXED(tr__dropout_draw)(c));
    return TR__SUFFIXED(tr__dropout_apply)(c);
}
