/* isa_batch_norm.c - batch normalisation, forward and backward, with the addition and the relu that often follow.
 *
 * Images lie as planes, [N, C, S], or as rows, [N * S, C] (channels last, and [N, C] itself). Sums are taken in double, of
 * deviations from a channel's first element, and meet the same formulas whatever the layout: both layouts give the same
 * numbers, as does any number of threads. bfloat16 is computed in float, and rounded where one op after the other would; its sums
 * are of the elements themselves, whose 8 digits leave double enough for what the mean takes away.
 * Planes: a channel is one thread's, both of its passes out of the cache. Rows: cut into chunks by size alone, whose sums are
 * added up in order. */
#include "exec/kernels/kernels.h"
#include "exec/kernels/ew_math.h"
#include "exec/kernels/isa_bf16.h"
#include "exec/kernels/isa_norm.h"

enum {
    PIECE = 512,      /* columns whose sums stay in the L1 cache */
    MAX_CHUNKS = 128, /* of rows */
    TOGETHER = 8,     /* rows that are summed up at once */
};

typedef struct job {
    int64_t n, c, s;
    bool rows, training, backward;
    bool pairs;            /* the processor rounds to bfloat16 */
    unsigned flags;
    const void *x, *other;
    const void *g, *more;  /* backward: the gradient, and what is added to it or NULL; */
    const void *out;       /* where relu's result is positive */
    void *y, *dg;          /* result; the masked gradient or NULL */
    const double *w, *b;   /* [C], or NULL: 1, 0 */
    double *mean, *inv, *var, *dw, *db; /* [C] */
    double eps;
    /* rows */
    int64_t chunk;
    double *m, *sums;      /* [C]: what x is seen from; [chunks, 2, C] */
    void *coef;            /* [4, C] of T */
} job;

/* ------------------------------------------------------------------------------------------ runs of elements */

/* How far ahead of their use elements are fetched: at least the rows that are taken together. */
static inline int64_t ahead_of(int64_t step) {
    return tr__max(TOGETHER, 2048 / step) * step;
}

/* An element type: E its name, S in memory, T in registers. What is stored was rounded to it before: STORED loses nothing. */
#define VALUE_OF_float(x)  (x)
#define VALUE_OF_double(x) (x)
#define VALUE_OF_bf16(x)   tr__bf16_to_f32(x)
#define ROUND_float(x)     (x)
#define ROUND_double(x)    (x)
#define ROUND_bf16(x)      tr__bf16_to_f32(tr__f32_to_bf16(x))
#define STORED_float(x)    (x)
#define STORED_double(x)   (x)
#define STORED_bf16(x)     upper_half(x)

/* x as sums see it, from m; and the sum of products with it, as if it had been seen from there. */
#define SEEN_float(x, m)                ((x) - (m))
#define SEEN_double(x, m)               ((x) - (m))
#define SEEN_bf16(x, m)                 ((void) (m), (x))
#define PRODUCT_float(product, sum, m)  (product)
#define PRODUCT_double(product, sum, m) (product)
#define PRODUCT_bf16(product, sum, m)   ((product) - (m) * (sum))
#define FIRST_float(x)                  (x)
#define FIRST_double(x)                 (x)
#define FIRST_bf16(x)                   0

/* Vectors of double that a cache line's elements fill, as far as registers go. */
enum { LINE_double = 1, LINE_float = 2, LINE_bf16 = TR_ISA_LEVEL >= 4 ? 4 : 2 };
#define EACH_OF_LINE _Pragma("GCC unroll 4") for (int l = 0; l < LINE; l++)

static inline uint16_t upper_half(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return (uint16_t) (u >> 16);
}

#define RUNS(E, S)                                                                                                          \
    /* g (+ more) where mask is positive; mask NULL: all of g */                                                            \
    static void mask_##E(S *to, const S *g, const S *more, const S *mask, int64_t n) {                                      \
        if (!mask) {                                                                                                        \
            if (to != g)                                                                                                    \
                memcpy(to, g, (size_t) n * sizeof *g);                                                                      \
            return;                                                                                                         \
        }                                                                                                                   \
        if (more)                                                                                                           \
            _Pragma("GCC ivdep") for (int64_t k = 0; k < n; k++) to[k] =                                                    \
                VALUE_OF_##E(mask[k]) <= 0 ? 0 : STORED_##E(ROUND_##E(VALUE_OF_##E(g[k]) + VALUE_OF_##E(more[k])));         \
        else                                                                                                                \
            _Pragma("GCC ivdep") for (int64_t k = 0; k < n; k++) to[k] = VALUE_OF_##E(mask[k]) <= 0 ? 0 : g[k];             \
    }                                                                                                                       \
    /* sum and sum of squares of x - m */                                                                                   \
    static void moments_##E(const S *x, int64_t n, double m, double sums[2]) {                                              \
        vD s0 = {0}, q0 = s0, s1 = s0, q1 = s0, d;                                                                          \
        int64_t i = 0;                                                                                                      \
        for (; i + 2 * VN_D <= n; i += 2 * VN_D) {                                                                          \
            d = SEEN_##E(wide_##E(x + i), m), s0 += d, q0 = wide_fma(d, d, q0);                                             \
            d = SEEN_##E(wide_##E(x + i + VN_D), m), s1 += d, q1 = wide_fma(d, d, q1);                                      \
        }                                                                                                                   \
        for (; i < n; i++) {                                                                                                \
            double e = SEEN_##E(VALUE_OF_##E(x[i]), m);                                                                     \
            sums[0] += e;                                                                                                   \
            sums[1] = double_fma(e, e, sums[1]);                                                                            \
        }                                                                                                                   \
        sums[0] += lanes(s0 + s1);                                                                                          \
        sums[1] += lanes(q0 + q1);                                                                                          \
    }                                                                                                                       \
    /* sum of g and of g * (x - m) */                                                                                       \
    static void products_##E(const S *g, const S *mask, const S *x, int64_t n, double m, double sums[2]) {                  \
        vD s0 = {0}, q0 = s0, s1 = s0, q1 = s0, v;                                                                          \
        int64_t i = 0;                                                                                                      \
        if (mask) {                                                                                                         \
            for (; i + 2 * VN_D <= n; i += 2 * VN_D) {                                                                      \
                v = masked_##E(g + i, mask + i), s0 += v, q0 = wide_fma(v, SEEN_##E(wide_##E(x + i), m), q0);               \
                v = masked_##E(g + i + VN_D, mask + i + VN_D), s1 += v;                                                     \
                q1 = wide_fma(v, SEEN_##E(wide_##E(x + i + VN_D), m), q1);                                                  \
            }                                                                                                               \
        } else {                                                                                                            \
            for (; i + 2 * VN_D <= n; i += 2 * VN_D) {                                                                      \
                v = wide_##E(g + i), s0 += v, q0 = wide_fma(v, SEEN_##E(wide_##E(x + i), m), q0);                           \
                v = wide_##E(g + i + VN_D), s1 += v, q1 = wide_fma(v, SEEN_##E(wide_##E(x + i + VN_D), m), q1);             \
            }                                                                                                               \
        }                                                                                                                   \
        for (; i < n; i++) {                                                                                                \
            double e = mask && VALUE_OF_##E(mask[i]) <= 0 ? 0 : VALUE_OF_##E(g[i]);                                         \
            sums[0] += e;                                                                                                   \
            sums[1] = double_fma(e, SEEN_##E(VALUE_OF_##E(x[i]), m), sums[1]);                                              \
        }                                                                                                                   \
        sums[0] += lanes(s0 + s1);                                                                                          \
        sums[1] += lanes(q0 + q1);                                                                                          \
    }                                                                                                                       \
    /* The same per column, over `rows` (at most TOGETHER) rows that are `step` apart. Visits come as short runs of several \
     * rows, from which the processor doesn't see what is next: it is told, once for each run of LINE vectors. */           \
    static void column_moments_##E(const S *x, int64_t step, int64_t rows, int64_t n, const double *m, double *s,           \
                                   double *q) {                                                                             \
        enum { LINE = LINE_##E, N = LINE * VN_D };                                                                          \
        int64_t i = 0, ahead = ahead_of(step);                                                                              \
        for (; rows == TOGETHER && i + N <= n; i += N) {                                                                    \
            vD c[LINE], a[LINE], b[LINE];                                                                                   \
            EACH_OF_LINE c[l] = wide_double(m + i + l * VN_D), a[l] = wide_double(s + i + l * VN_D),                        \
                         b[l] = wide_double(q + i + l * VN_D);                                                              \
            _Pragma("GCC unroll 8") for (int64_t at = i, r = 0; r < TOGETHER; r++, at += step) {                            \
                __builtin_prefetch(x + at + ahead);                                                                         \
                EACH_OF_LINE {                                                                                              \
                    vD d = SEEN_##E(wide_##E(x + at + l * VN_D), c[l]);                                                     \
                    a[l] += d, b[l] = wide_fma(d, d, b[l]);                                                                 \
                }                                                                                                           \
            }                                                                                                               \
            EACH_OF_LINE {                                                                                                  \
                memcpy(s + i + l * VN_D, &a[l], sizeof a[l]);                                                               \
                memcpy(q + i + l * VN_D, &b[l], sizeof b[l]);                                                               \
            }                                                                                                               \
        }                                                                                                                   \
        for (int64_t r = 0; r < rows; r++)                                                                                  \
            for (int64_t k = i; k < n; k++) {                                                                               \
                double d = SEEN_##E(VALUE_OF_##E(x[r * step + k]), m[k]);                                                   \
                s[k] += d;                                                                                                  \
                q[k] = double_fma(d, d, q[k]);                                                                              \
            }                                                                                                               \
    }                                                                                                                       \
    ALWAYS void column_products_##E(const S *g, const S *mask, const S *x, int64_t step, int64_t rows, int64_t n,           \
                                    const double *m, double *s, double *q) {                                                \
        enum { LINE = LINE_##E, N = LINE * VN_D };                                                                          \
        int64_t i = 0, ahead = ahead_of(step);                                                                              \
        for (; rows == TOGETHER && i + N <= n; i += N) {                                                                    \
            vD c[LINE], a[LINE], b[LINE];                                                                                   \
            EACH_OF_LINE c[l] = wide_double(m + i + l * VN_D), a[l] = wide_double(s + i + l * VN_D),                        \
                         b[l] = wide_double(q + i + l * VN_D);                                                              \
            _Pragma("GCC unroll 8") for (int64_t at = i, r = 0; r < TOGETHER; r++, at += step) {                            \
                __builtin_prefetch(g + at + ahead);                                                                         \
                __builtin_prefetch(x + at + ahead);                                                                         \
                if (mask)                                                                                                   \
                    __builtin_prefetch(mask + at + ahead);                                                                  \
                EACH_OF_LINE {                                                                                              \
                    int64_t k = at + l * VN_D;                                                                              \
                    vD v = mask ? masked_##E(g + k, mask + k) : wide_##E(g + k);                                            \
                    a[l] += v, b[l] = wide_fma(v, SEEN_##E(wide_##E(x + k), c[l]), b[l]);                                   \
                }                                                                                                           \
            }                                                                                                               \
            EACH_OF_LINE {                                                                                                  \
                memcpy(s + i + l * VN_D, &a[l], sizeof a[l]);                                                               \
                memcpy(q + i + l * VN_D, &b[l], sizeof b[l]);                                                               \
            }                                                                                                               \
        }                                                                                                                   \
        for (int64_t r = 0; r < rows; r++)                                                                                  \
            for (int64_t k = i; k < n; k++) {                                                                               \
                int64_t at = r * step + k;                                                                                  \
                double v = mask && VALUE_OF_##E(mask[at]) <= 0 ? 0 : VALUE_OF_##E(g[at]);                                   \
                s[k] += v;                                                                                                  \
                q[k] = double_fma(v, SEEN_##E(VALUE_OF_##E(x[at]), m[k]), q[k]);                                            \
            }                                                                                                               \
    }
RUNS(float, float)
RUNS(double, double)
RUNS(bf16, uint16_t)

/* The elementwise halves. AT(v) is v of the channel: the value for planes, v[k] for rows. */
#define APPLY(E, S, T, form, P, AT)                                                                                           \
    ALWAYS void affine_##form##_##E(S *y, const S *x, const S *o, int64_t n, const T P a, const T P b, bool add, bool relu) { \
        _Pragma("GCC ivdep") for (int64_t k = 0; k < n; k++) {                                                                \
            T v = ROUND_##E(VALUE_OF_##E(x[k]) * AT(a) + AT(b));                                                              \
            if (add)                                                                                                          \
                v = ROUND_##E(v + VALUE_OF_##E(o[k]));                                                                        \
            if (relu)                                                                                                         \
                v = v < 0 ? 0 : v;                                                                                            \
            y[k] = STORED_##E(v);                                                                                             \
        }                                                                                                                     \
    }                                                                                                                         \
    static void forward_##form##_##E(unsigned flags, S *y, const S *x, const S *o, int64_t n, const T P a, const T P b) {     \
        switch (flags & (TR_NORM_ADD | TR_NORM_RELU)) {                                                                       \
            case 0:                                                                                                           \
                affine_##form##_##E(y, x, o, n, a, b, false, false);                                                          \
                break;                                                                                                        \
            case TR_NORM_RELU:                                                                                                \
                affine_##form##_##E(y, x, o, n, a, b, false, true);                                                           \
                break;                                                                                                        \
            case TR_NORM_ADD:                                                                                                 \
                affine_##form##_##E(y, x, o, n, a, b, true, false);                                                           \
                break;                                                                                                        \
            default:                                                                                                          \
                affine_##form##_##E(y, x, o, n, a, b, true, true);                                                            \
        }                                                                                                                     \
    }                                                                                                                         \
    ALWAYS void gradient_##form##_##E(S *y, const S *g, const S *mask, const S *x, int64_t n, const T P m, const T P mean,    \
                                      const T P k2, const T P scale, bool masked) {                                           \
        _Pragma("GCC ivdep") for (int64_t k = 0; k < n; k++) {                                                                \
            T v = VALUE_OF_##E(g[k]);                                                                                         \
            if (masked)                                                                                                       \
                v = VALUE_OF_##E(mask[k]) <= 0 ? 0 : v;                                                                       \
            y[k] = STORED_##E(ROUND_##E((v - AT(mean) - (VALUE_OF_##E(x[k]) - AT(m)) * AT(k2)) * AT(scale)));                 \
        }                                                                                                                     \
    }                                                                                                                         \
    static void backward_##form##_##E(bool training, S *y, const S *g, const S *mask, const S *x, int64_t n, const T P m,     \
                                      const T P mean, const T P k2, const T P scale) {                                        \
        if (!training) {                                                                                                      \
            _Pragma("GCC ivdep") for (int64_t k = 0; k < n; k++) y[k] = STORED_##E(                                           \
                ROUND_##E((mask && VALUE_OF_##E(mask[k]) <= 0 ? 0 : VALUE_OF_##E(g[k])) * AT(scale)));                        \
        } else if (mask) {                                                                                                    \
            gradient_##form##_##E(y, g, mask, x, n, m, mean, k2, scale, true);                                                \
        } else {                                                                                                              \
            gradient_##form##_##E(y, g, mask, x, n, m, mean, k2, scale, false);                                               \
        }                                                                                                                     \
    }
#define VALUE(v) (v)
#define ENTRY(v) ((v)[k])
#define NOTHING
APPLY(float, float, float, plane, NOTHING, VALUE)
APPLY(double, double, double, plane, NOTHING, VALUE)
APPLY(bf16, uint16_t, float, plane, NOTHING, VALUE)
APPLY(float, float, float, row, *, ENTRY)
APPLY(double, double, double, row, *, ENTRY)
APPLY(bf16, uint16_t, float, row, *, ENTRY)

/* ------------------------------------------------------------------------------------------ rows, rounded by the processor
 *
 * bfloat16 by AVX512-BF16's conversion, which takes denormals for zero and keeps NaNs' bits. The loops give back how many elements
 * they have done: they stop where such a number comes, and before the last that don't fill a vector. */
#if TR_ISA_LEVEL >= 4
enum { ODD = 0xa1 /* of _mm512_fpclass_ps_mask: denormals, NaNs of both kinds */ };
#define EACH_HALF _Pragma("GCC unroll 2") for (int h = 0; h < 2; h++)

/* As affine_row_bf16. */
ALWAYS PAIRS int64_t fast_affine(uint16_t *y, const uint16_t *x, const uint16_t *o, int64_t n, const float *a, const float *b,
                                 bool add, bool relu) {
    int64_t k = 0;
    for (; k + 2 * VN_F <= n; k += 2 * VN_F) {
        vF v[2];
        __mmask16 odd = 0;
        EACH_HALF {
            int64_t at = k + h * VN_F;
            v[h] = load_bf16(x + at) * load_float(a + at) + load_float(b + at);
            odd |= _mm512_fpclass_ps_mask((__m512) v[h], ODD);
        }
        if (add) {
            __m512i both = (__m512i) narrow_pairs(v[0], v[1]);
            v[0] = (vF) _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(both)), 16);
            v[1] = (vF) _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(both, 1)), 16);
            EACH_HALF {
                v[h] += load_bf16(o + k + h * VN_F);
                odd |= _mm512_fpclass_ps_mask((__m512) v[h], ODD);
            }
        }
        if (odd)
            break;
        if (relu) // of two zeros the second; so does v < 0 ? 0 : v
            EACH_HALF v[h] = (vF) _mm512_max_ps(_mm512_setzero_ps(), (__m512) v[h]);
        vF both = narrow_pairs(v[0], v[1]);
        memcpy(y + k, &both, sizeof both);
    }
    return k;
}

/* As gradient_row_bf16. */
ALWAYS PAIRS int64_t fast_gradient(uint16_t *y, const uint16_t *g, const uint16_t *mask, const uint16_t *x, int64_t n,
                                   const float *m, const float *mean, const float *k2, const float *scale, bool masked) {
    int64_t k = 0;
    for (; k + 2 * VN_F <= n; k += 2 * VN_F) {
        vF v[2];
        __mmask16 odd = 0;
        EACH_HALF {
            int64_t at = k + h * VN_F;
            v[h] = load_bf16(g + at);
            if (masked)
                v[h] = vF_select(load_bf16(mask + at) <= 0, (vF){0}, v[h]);
            v[h] = (v[h] - load_float(mean + at) - (load_bf16(x + at) - load_float(m + at)) * load_float(k2 + at)) *
                   load_float(scale + at);
            odd |= _mm512_fpclass_ps_mask((__m512) v[h], ODD);
        }
        if (odd)
            break;
        vF both = narrow_pairs(v[0], v[1]);
        memcpy(y + k, &both, sizeof both);
    }
    return k;
}

/* As mask_bf16 of a sum. */
static PAIRS int64_t fast_sum_pairs(uint16_t *to, const uint16_t *g, const uint16_t *more, const uint16_t *mask, int64_t n) {
    int64_t k = 0;
    for (; k + 2 * VN_F <= n; k += 2 * VN_F) {
        vF v[2];
        __mmask16 odd = 0;
        EACH_HALF {
            int64_t at = k + h * VN_F;
            v[h] = vF_select(load_bf16(mask + at) <= 0, (vF){0}, load_bf16(g + at) + load_bf16(more + at));
            odd |= _mm512_fpclass_ps_mask((__m512) v[h], ODD);
        }
        if (odd)
            break;
        vF both = narrow_pairs(v[0], v[1]);
        memcpy(to + k, &both, sizeof both);
    }
    return k;
}

#define fast_sum_bf16(pairs, ...) (pairs ? fast_sum_pairs(__VA_ARGS__) : 0)
#else
#define fast_sum_bf16(...) 0
#endif
#define fast_sum_float(...)  0
#define fast_sum_double(...) 0

/* ------------------------------------------------------------------------------------------ a channel's numbers */

static double count_of(const job *j) {
    return (double) (j->n * j->s);
}

/* From the sums of deviations from `from`. */
static void set_statistics(const job *j, int64_t c, double from, double sum, double squares) {
    double off = sum / count_of(j), var = squares / count_of(j) - off * off;
    j->mean[c] = from + off;
    j->var[c] = var < 0 ? 0 : var;
    j->inv[c] = 1 / sqrt(j->var[c] + j->eps);
}

/* y = x * a + b */
static void affine_of(const job *j, int64_t c, double *a, double *b) {
    *a = j->inv[c] * (j->w ? j->w[c] : 1);
    *b = (j->b ? j->b[c] : 0) - j->mean[c] * *a;
}

/* dx = (g - mean - (x - m) * k2) * scale, of the sums of g and g * (x - m) */
static void gradient_of(const job *j, int64_t c, double sum, double product, double *mean, double *k2, double *scale) {
    double inv = j->inv[c];
    j->db[c] = sum;
    j->dw[c] = product * inv;
    *mean = sum / count_of(j);
    *k2 = product * inv * inv / count_of(j);
    *scale = inv * (j->w ? j->w[c] : 1);
}

/* ------------------------------------------------------------------------------------------ planes */

#define PLANES(E, S, T)                                                                                                      \
    static void forward_planes_##E(void *env, int64_t begin, int64_t end, int thread) {                                      \
        const job *j = env;                                                                                                  \
        for (int64_t c = begin; c < end; c++) {                                                                              \
            const S *x = (const S *) j->x + c * j->s, *o = (const S *) j->other + (j->other ? c * j->s : 0);                 \
            S *y = (S *) j->y + c * j->s;                                                                                    \
            int64_t step = j->c * j->s;                                                                                      \
            double sums[2] = {0}, a, b, first = FIRST_##E(VALUE_OF_##E(x[0]));                                               \
            for (int64_t i = 0; j->training && i < j->n; i++)                                                                \
                moments_##E(x + i * step, j->s, first, sums);                                                                \
            if (j->training)                                                                                                 \
                set_statistics(j, c, first, sums[0], sums[1]);                                                               \
            affine_of(j, c, &a, &b);                                                                                         \
            for (int64_t i = 0; i < j->n; i++)                                                                               \
                forward_plane_##E(j->flags, y + i * step, x + i * step, j->other ? o + i * step : NULL, j->s, (T) a, (T) b); \
        }                                                                                                                    \
    }                                                                                                                        \
    static void backward_planes_##E(void *env, int64_t begin, int64_t end, int thread) {                                     \
        const job *j = env;                                                                                                  \
        int64_t step = j->c * j->s;                                                                                          \
        for (int64_t c = begin; c < end; c++) {                                                                              \
            double sums[2] = {0}, mean, k2, scale, m = j->mean[c];                                                           \
            for (int64_t i = 0; i < j->n; i++) {                                                                             \
                int64_t at = i * step + c * j->s;                                                                            \
                const S *g = (const S *) j->g + at, *mask = j->out ? (const S *) j->out + at : NULL;                         \
                if (j->dg) {                                                                                                 \
                    mask_##E((S *) j->dg + at, g, j->more ? (const S *) j->more + at : NULL, mask, j->s);                    \
                    g = (const S *) j->dg + at;                                                                              \
                    mask = NULL;                                                                                             \
                }                                                                                                            \
                products_##E(g, mask, (const S *) j->x + at, j->s, m, sums);                                                 \
            }                                                                                                                \
            gradient_of(j, c, sums[0], PRODUCT_##E(sums[1], sums[0], m), &mean, &k2, &scale);                                \
            for (int64_t i = 0; i < j->n; i++) {                                                                             \
                int64_t at = i * step + c * j->s;                                                                            \
                backward_plane_##E(j->training, (S *) j->y + at, (const S *) (j->dg ? j->dg : j->g) + at,                    \
                                   j->out && !j->dg ? (const S *) j->out + at : NULL, (const S *) j->x + at,                 \
                                   j->s, (T) m, (T) mean, (T) k2, (T) scale);                                                \
            }                                                                                                                \
        }                                                                                                                    \
    }
PLANES(float, float, float)
PLANES(double, double, double)
PLANES(bf16, uint16_t, float)

/* ------------------------------------------------------------------------------------------ rows */

#define ROWS(E, S, T)                                                                                                    \
    /* n elements of dg, from `at` on */                                                                                 \
    static void take_masked_##E(const job *j, int64_t at, int64_t n) {                                                   \
        S *to = (S *) j->dg + at;                                                                                        \
        const S *g = (const S *) j->g + at, *more = j->more ? (const S *) j->more + at : NULL;                           \
        const S *mask = j->out ? (const S *) j->out + at : NULL;                                                         \
        int64_t k = more ? fast_sum_##E(j->pairs, to, g, more, mask, n) : 0;                                             \
        mask_##E(to + k, g + k, more ? more + k : NULL, mask ? mask + k : NULL, n - k);                                  \
    }                                                                                                                    \
    static void row_sums_##E(void *env, int64_t begin, int64_t end, int thread) {                                        \
        const job *j = env;                                                                                              \
        int64_t all = j->n * j->s, step = j->c;                                                                          \
        for (int64_t chunk = begin; chunk < end; chunk++) {                                                              \
            double *s = j->sums + 2 * j->c * chunk, *q = s + j->c;                                                       \
            int64_t last = tr__min(all, (chunk + 1) * j->chunk);                                                         \
            memset(s, 0, (size_t) (2 * j->c) * sizeof *s);                                                               \
            for (int64_t col = 0; col < j->c; col += PIECE)                                                              \
                for (int64_t r = chunk * j->chunk; r < last; r += TOGETHER) {                                            \
                    int64_t at = r * step + col, rows = tr__min(TOGETHER, last - r), n = tr__min(PIECE, j->c - col);     \
                    const S *x = (const S *) j->x + at, *g = (const S *) j->g + (j->g ? at : 0);                         \
                    const S *mask = j->out ? (const S *) j->out + at : NULL;                                             \
                    if (j->dg) {                                                                                         \
                        S *dg = (S *) j->dg + at;                                                                        \
                        for (int64_t k = 0; k < rows; k++)                                                               \
                            take_masked_##E(j, at + k * step, n);                                                        \
                        g = dg;                                                                                          \
                        mask = NULL;                                                                                     \
                    }                                                                                                    \
                    if (!j->g)                                                                                           \
                        column_moments_##E(x, step, rows, n, j->m + col, s + col, q + col);                              \
                    else if (mask)                                                                                       \
                        column_products_##E(g, mask, x, step, rows, n, j->m + col, s + col, q + col);                    \
                    else                                                                                                 \
                        column_products_##E(g, NULL, x, step, rows, n, j->m + col, s + col, q + col);                    \
                }                                                                                                        \
        }                                                                                                                \
    }                                                                                                                    \
    /* row i from element k on */                                                                                        \
    static void forward_from_##E(const job *j, int64_t i, int64_t k) {                                                   \
        const T *a = j->coef, *b = a + j->c;                                                                             \
        int64_t at = i * j->c + k;                                                                                       \
        const S *o = j->other ? (const S *) j->other + at : NULL;                                                        \
        forward_row_##E(j->flags, (S *) j->y + at, (const S *) j->x + at, o, j->c - k, a + k, b + k);                    \
    }                                                                                                                    \
    static void backward_from_##E(const job *j, int64_t i, int64_t k) {                                                  \
        const T *m = j->coef, *mean = m + j->c, *k2 = mean + j->c, *scale = k2 + j->c;                                   \
        int64_t at = i * j->c + k;                                                                                       \
        const S *g = (const S *) (j->dg ? j->dg : j->g) + at, *mask = j->out && !j->dg ? (const S *) j->out + at : NULL; \
        backward_row_##E(j->training, (S *) j->y + at, g, mask, (const S *) j->x + at, j->c - k, m + k, mean + k,        \
                         k2 + k, scale + k);                                                                             \
    }                                                                                                                    \
    static void row_forward_##E(void *env, int64_t begin, int64_t end, int thread) {                                     \
        for (int64_t i = begin; i < end; i++)                                                                            \
            forward_from_##E(env, i, 0);                                                                                 \
    }                                                                                                                    \
    static void row_backward_##E(void *env, int64_t begin, int64_t end, int thread) {                                    \
        for (int64_t i = begin; i < end; i++)                                                                            \
            backward_from_##E(env, i, 0);                                                                                \
    }                                                                                                                    \
    static void set_forward_##E(const job *j) {                                                                          \
        T *a = j->coef, *b = a + j->c;                                                                                   \
        for (int64_t c = 0; c < j->c; c++) {                                                                             \
            double p, q;                                                                                                 \
            if (j->training)                                                                                             \
                set_statistics(j, c, j->m[c], j->sums[c], j->sums[j->c + c]);                                            \
            affine_of(j, c, &p, &q);                                                                                     \
            a[c] = (T) p;                                                                                                \
            b[c] = (T) q;                                                                                                \
        }                                                                                                                \
    }                                                                                                                    \
    static void set_backward_##E(const job *j) {                                                                         \
        T *m = j->coef, *mean = m + j->c, *k2 = mean + j->c, *scale = k2 + j->c;                                         \
        for (int64_t c = 0; c < j->c; c++) {                                                                             \
            double p, q, r, sum = j->sums[c];                                                                            \
            gradient_of(j, c, sum, PRODUCT_##E(j->sums[j->c + c], sum, j->mean[c]), &p, &q, &r);                         \
            m[c] = (T) j->mean[c];                                                                                       \
            mean[c] = (T) p;                                                                                             \
            k2[c] = (T) q;                                                                                               \
            scale[c] = (T) r;                                                                                            \
        }                                                                                                                \
    }                                                                                                                    \
    static void first_row_##E(const job *j) {                                                                            \
        for (int64_t c = 0; c < j->c; c++)                                                                               \
            j->m[c] = FIRST_##E(VALUE_OF_##E(((const S *) j->x)[c]));                                                    \
    }
ROWS(float, float, float)
ROWS(double, double, double)
ROWS(bf16, uint16_t, float)

#if TR_ISA_LEVEL >= 4
ALWAYS PAIRS void fast_affine_rows(const job *j, int64_t begin, int64_t end, bool add, bool relu) {
    const float *a = j->coef, *b = a + j->c;
    for (int64_t i = begin, at = i * j->c; i < end; i++, at += j->c) {
        const uint16_t *o = add ? (const uint16_t *) j->other + at : NULL;
        int64_t k = fast_affine((uint16_t *) j->y + at, (const uint16_t *) j->x + at, o, j->c, a, b, add, relu);
        if (k < j->c)
            forward_from_bf16(j, i, k);
    }
}
static PAIRS void row_forward_pairs(void *env, int64_t begin, int64_t end, int thread) {
    const job *j = env;
    switch (j->flags & (TR_NORM_ADD | TR_NORM_RELU)) {
        case 0:
            fast_affine_rows(j, begin, end, false, false);
            break;
        case TR_NORM_RELU:
            fast_affine_rows(j, begin, end, false, true);
            break;
        case TR_NORM_ADD:
            fast_affine_rows(j, begin, end, true, false);
            break;
        default:
            fast_affine_rows(j, begin, end, true, true);
    }
}

ALWAYS PAIRS void fast_gradient_rows(const job *j, int64_t begin, int64_t end, bool masked) {
    const float *m = j->coef, *mean = m + j->c, *k2 = mean + j->c, *scale = k2 + j->c;
    const uint16_t *g = j->dg ? j->dg : j->g;
    for (int64_t i = begin, at = i * j->c; i < end; i++, at += j->c) {
        const uint16_t *mask = masked ? (const uint16_t *) j->out + at : NULL;
        int64_t k = fast_gradient((uint16_t *) j->y + at, g + at, mask, (const uint16_t *) j->x + at, j->c, m, mean, k2, scale, masked);
        if (k < j->c)
            backward_from_bf16(j, i, k);
    }
}
static PAIRS void row_backward_pairs(void *env, int64_t begin, int64_t end, int thread) {
    const job *j = env;
    if (j->out && !j->dg)
        fast_gradient_rows(j, begin, end, true);
    else
        fast_gradient_rows(j, begin, end, false);
}
#else
#define row_forward_pairs  row_forward_bf16
#define row_backward_pairs row_backward_bf16
#endif

/* What there is for an element type. */
typedef struct form {
    size_t coef_bytes;
    tr__range_fn planes[2], row_sums, row_apply[2]; /* forward, backward */
    void (*first_row)(const job *j);
    void (*set[2])(const job *j);
} form;
#define FORM(E, T)                                                                                               \
    {                                                                                                            \
        sizeof(T), {forward_planes_##E, backward_planes_##E}, row_sums_##E, {row_forward_##E, row_backward_##E}, \
            first_row_##E, {                                                                                     \
            set_forward_##E, set_backward_##E                                                                    \
        }                                                                                                        \
    }
static const form forms[TR_DTYPE_COUNT] = {
    [TR_BF16] = FORM(bf16, float),
    [TR_F32] = FORM(float, float),
    [TR_F64] = FORM(double, double),
};

static tr_status over_rows(const tr_kernel_call *c, job *j, const form *f) {
    int64_t rows = j->n * j->s, n = j->c;
    bool sums = j->training || j->backward;
    j->chunk = tr__max(tr__max(16, TR__GRAIN / 2 / n), (rows + MAX_CHUNKS - 1) / MAX_CHUNKS);
    j->chunk = (j->chunk + TOGETHER - 1) / TOGETHER * TOGETHER;
    int64_t chunks = (rows + j->chunk - 1) / j->chunk;
    j->pairs = f == &forms[TR_BF16] && has_pairs();
    j->coef = tr__scratch(c, (size_t) (4 * n) * f->coef_bytes);
    j->sums = tr__scratch(c, (size_t) (2 * n * chunks) * sizeof(double));
    if (!j->coef || !j->sums)
        return TR_E_NOMEM;
    if (j->backward) {
        j->m = j->mean;
    } else {
        j->m = tr__scratch(c, (size_t) n * sizeof(double));
        if (!j->m)
            return TR_E_NOMEM;
        f->first_row(j);
    }
    if (sums)
        tr__parallel_pieces(c->ctx, chunks, 1, f->row_sums, j);
    for (int64_t i = 1; sums && i < chunks; i++)
        for (int64_t k = 0; k < 2 * n; k++)
            j->sums[k] += j->sums[2 * n * i + k];
    f->set[j->backward](j);
    static const tr__range_fn by_pairs[] = {row_forward_pairs, row_backward_pairs};
    bool pairs = j->pairs && (!j->backward || j->training);
    tr__parallel_pieces(c->ctx, rows, tr__max(1, TR__GRAIN / n), (pairs ? by_pairs : f->row_apply)[j->backward], j);
    return TR_OK;
}

/* Without elements: the means of nothing. */
static void over_nothing(const job *j) {
    for (int64_t c = 0; c < j->c; c++) {
        double a, b, d;
        if (j->backward)
            gradient_of(j, c, 0, 0, &a, &b, &d);
        else if (j->training)
            set_statistics(j, c, 0, 0, 0);
    }
}

static tr_status over_images(const tr_kernel_call *c, job *j, tr_dtype dtype) {
    int64_t work = j->n * j->s;
    if (work == 0 || j->c == 0) {
        over_nothing(j);
        return TR_OK;
    }
    if (j->rows)
        return over_rows(c, j, &forms[dtype]);
    tr__parallel(c->ctx, j->c, tr__max(1, TR__GRAIN / work), forms[dtype].planes[j->backward], j);
    return TR_OK;
}

/* ------------------------------------------------------------------------------------------ operands */

static void shape_of(job *j, const tr_meta *m) {
    j->n = m->shape[0];
    j->c = m->shape[1];
    j->s = 1;
    for (int d = 2; d < m->ndim; d++)
        j->s *= m->shape[d];
}

/* Is it [rows, C] in memory? */
static bool lies_as_rows(const tr_arg *a, tr_dtype dtype) {
    const tr_meta *m = a->meta;
    return m->dtype == dtype && m->numel != 0 && m->shape[1] != 1 && tr__has_channels_last(m);
}

/* bfloat16 where all images are, float32 for a mixture. */
static tr_dtype image_type(const tr_arg *const *images, int n) {
    bool half = true, wide = false;
    for (int i = 0; i < n; i++) {
        half &= tr__absent(images[i]) || tr__is_bf16(images[i]);
        wide |= !tr__absent(images[i]) && images[i]->meta->dtype == TR_F64;
    }
    return wide ? TR_F64 : half ? TR_BF16 : TR_F32;
}

static bool all_lie_as_rows(const tr_arg *const *images, int n, tr_dtype dtype) {
    for (int i = 0; i < n; i++)
        if (!tr__absent(images[i]) && !lies_as_rows(images[i], dtype))
            return false;
    return true;
}

static tr_status running(const tr_kernel_call *c, const tr_arg *a, double momentum, const double *now, double factor) {
    const double *old;
    double *new;
    if (tr__absent(a))
        return TR_OK;
    int64_t n = a->meta->numel;
    TR_TRY(tr__read_doubles(c, a, &old));
    TR_TRY(tr__doubles(c, n, &new));
    for (int64_t k = 0; k < n; k++)
        new[k] = momentum *(now[k] * factor) + (1 - momentum) * old[k];
    return tr__write_doubles(c, a, new);
}

/* Statistics that are given, not taken. */
static tr_status given(const tr_kernel_call *c, const job *j, const tr_arg *running_mean, const tr_arg *running_var) {
    const double *mean, *var;
    TR_TRY(tr__read_doubles(c, running_mean, &mean));
    TR_TRY(tr__read_doubles(c, running_var, &var));
    for (int64_t k = 0; k < j->c; k++) {
        j->mean[k] = mean[k];
        j->inv[k] = 1 / sqrt(var[k] + j->eps);
    }
    return TR_OK;
}

static tr_status forward(const tr_kernel_call *c, const tr_norm_forward *f) {
    const tr_arg *const images[] = {&f->x, &f->y, &f->other};
    int n_images = f->flags & TR_NORM_ADD ? 3 : 2;
    tr_dtype dtype = image_type(images, n_images);
    job j = {.training = f->training, .eps = f->eps, .flags = f->flags};
    shape_of(&j, f->x.meta);
    j.rows = all_lie_as_rows(images, n_images, dtype);
    j.x = f->x.data;
    j.y = f->y.data;
    j.other = n_images == 3 ? f->other.data : NULL;
    if (!j.rows) {
        TR_TRY(tr__dense_in(c, &f->x, dtype, &j.x));
        TR_TRY(tr__dense_out(c, &f->y, dtype, &j.y));
        if (n_images == 3)
            TR_TRY(tr__dense_in(c, &f->other, dtype, &j.other));
    }
    TR_TRY(tr__read_doubles(c, &f->weight, &j.w));
    TR_TRY(tr__read_doubles(c, &f->bias, &j.b));
    TR_TRY(tr__doubles(c, j.c, &j.mean));
    TR_TRY(tr__doubles(c, j.c, &j.inv));
    TR_TRY(tr__doubles(c, j.c, &j.var));
    if (!j.training)
        TR_TRY(given(c, &j, &f->running_mean, &f->running_var));
    TR_TRY(over_images(c, &j, dtype));
    if (j.training && f->x.meta->numel) {
        double count = count_of(&j);
        TR_TRY(running(c, &f->running_mean, f->momentum, j.mean, 1));
        TR_TRY(running(c, &f->running_var, f->momentum, j.var, count / (count - 1)));
    }
    TR_TRY(tr__write_doubles(c, &f->mean, j.mean));
    TR_TRY(tr__write_doubles(c, &f->inv, j.inv));
    return j.rows ? TR_OK : tr__dense_out_end(c, &f->y, dtype, j.y);
}

static tr_status backward(const tr_kernel_call *c, const tr_norm_backward *f) {
    bool relu = f->flags & TR_NORM_RELU, passes = !tr__absent(&f->dother), sums = !tr__absent(&f->residual);
    const tr_arg *const images[] = {&f->grad, &f->x, &f->dx, &f->dother, &f->residual, &f->y};
    int n_images = relu ? 6 : 5;
    tr_dtype dtype = image_type(images, n_images);
    job j = {.training = f->training, .backward = true, .flags = f->flags};
    const double *mean, *inv;
    shape_of(&j, f->x.meta);
    j.rows = all_lie_as_rows(images, n_images, dtype);
    j.g = f->grad.data;
    j.more = sums ? f->residual.data : NULL;
    j.x = f->x.data;
    j.y = f->dx.data;
    j.out = relu ? f->y.data : NULL;
    j.dg = passes ? f->dother.data : NULL;
    if (!j.rows) {
        TR_TRY(tr__dense_in(c, &f->grad, dtype, &j.g));
        if (sums)
            TR_TRY(tr__dense_in(c, &f->residual, dtype, &j.more));
        TR_TRY(tr__dense_in(c, &f->x, dtype, &j.x));
        TR_TRY(tr__dense_out(c, &f->dx, dtype, &j.y));
        if (relu)
            TR_TRY(tr__dense_in(c, &f->y, dtype, &j.out));
        if (passes)
            TR_TRY(tr__dense_out(c, &f->dother, dtype, &j.dg));
    }
    TR_TRY(tr__read_doubles(c, &f->weight, &j.w));
    TR_TRY(tr__read_doubles(c, &f->mean, &mean));
    TR_TRY(tr__read_doubles(c, &f->inv, &inv));
    j.mean = (double *) mean;
    j.inv = (double *) inv;
    TR_TRY(tr__doubles(c, j.c, &j.dw));
    TR_TRY(tr__doubles(c, j.c, &j.db));
    TR_TRY(over_images(c, &j, dtype));
    TR_TRY(tr__write_doubles(c, &f->dweight, j.dw));
    TR_TRY(tr__write_doubles(c, &f->dbias, j.db));
    if (!j.rows && passes)
        TR_TRY(tr__dense_out_end(c, &f->dother, dtype, j.dg));
    return j.rows ? TR_OK : tr__dense_out_end(c, &f->dx, dtype, j.y);
}

/* ------------------------------------------------------------------------------------------ public */

TR__ISA_KERNEL(batch_norm) {
    const tr_arg *in = c->in;
    tr_norm_forward f = {.training = c->attrs[0],
                         .momentum = tr_arg_double(&in[5]),
                         .eps = tr_arg_double(&in[6]),
                         .x = in[0],
                         .weight = in[1],
                         .bias = in[2],
                         .running_mean = in[3],
                         .running_var = in[4],
                         .y = c->out[0],
                         .mean = c->out[1],
                         .inv = c->out[2]};
    return forward(c, &f);
}

TR__ISA_KERNEL(batch_norm_backward) {
    const tr_arg *in = c->in;
    tr_norm_backward f = {.training = c->attrs[0],
                          .grad = in[0],
                          .x = in[1],
                          .weight = in[2],
                          .mean = in[3],
                          .inv = in[4],
                          .dx = c->out[0],
                          .dweight = c->out[1],
                          .dbias = c->out[2]};
    return backward(c, &f);
}

tr_status TR__SUFFIXED(tr__norm_forward)(const tr_norm_forward *f, tr_kernel_ctx *ctx) {
    return forward(&(tr_kernel_call){.op = TR_OP_batch_norm, .ctx = ctx}, f);
}

tr_status TR__SUFFIXED(tr__norm_backward)(const tr_norm_backward *f, tr_kernel_ctx *ctx) {
    return backward(&(tr_kernel_call){.op = TR_OP_batch_norm_backward, .ctx = ctx}, f);
}
