/* isa_reduce.c - reductions over any set of dimensions.
 *
 * The input is seen as kept and reduced dimensions, neighbours of one kind merged. Two inner loops do all the work: a fold
 * along a contiguous row (innermost dimension reduced) and a fold of rows into a row of accumulators (innermost kept).
 * Sums of float are kept in double throughout: their float32 results depend neither on the memory layout nor on the number
 * of threads, by which no work is cut anyway. */
#include "exec/kernels/kernels.h"
#include "exec/kernels/ew_math.h"
#include "exec/kernels/isa_bf16.h"
#include "exec/kernels/isa_extreme.h"
#include "exec/kernels/isa_wide.h"

#include <float.h>

typedef struct plan {
    int n_kept, n_reduced; /* outer dimensions of each kind; the innermost is apart */
    int64_t kept_shape[TR_MAX_DIMS], kept_strides[TR_MAX_DIMS];
    int64_t reduced_shape[TR_MAX_DIMS], reduced_strides[TR_MAX_DIMS];
    int64_t kept, reduced; /* their products */
    int64_t inner;         /* size of the innermost dimension */
    bool inner_reduced;
    int64_t count; /* elements per result */
    int64_t results;
} plan;

static bool is_reduced(int64_t mask, int d) {
    return mask >> d & 1;
}

/* Of a row-major input. */
static plan make_plan(const tr_meta *m, int64_t mask) {
    plan p = {.kept = 1, .reduced = 1, .inner = 1, .count = 1, .results = 1, .inner_reduced = true};
    int64_t step = 1;
    int last = -1; // kind of the dimension merged last; -1: none yet
    bool in_inner = true;
    for (int d = m->ndim - 1; d >= 0; d--) {
        int64_t n = m->shape[d];
        int kind = is_reduced(mask, d);
        *(kind ? &p.count : &p.results) *= n;
        if (n != 1) {
            if (last >= 0 && kind != last)
                in_inner = false;
            if (last < 0)
                p.inner_reduced = kind;
            if (in_inner) {
                p.inner *= n;
            } else {
                int *count = kind ? &p.n_reduced : &p.n_kept;
                int64_t *shape = kind ? p.reduced_shape : p.kept_shape, *strides = kind ? p.reduced_strides : p.kept_strides;
                if (kind == last && *count > 0) {
                    shape[*count - 1] *= n;
                } else {
                    shape[*count] = n;
                    strides[(*count)++] = step;
                }
                *(kind ? &p.reduced : &p.kept) *= n;
            }
            last = kind;
        }
        step *= n;
    }
    return p;
}

/* Dimensions are listed innermost first. */
static int64_t offset_of(int n, const int64_t *shape, const int64_t *strides, int64_t index) {
    int64_t at = 0;
    for (int d = 0; d < n; d++) {
        at += index % shape[d] * strides[d];
        index /= shape[d];
    }
    return at;
}
static int64_t kept_offset(const plan *p, int64_t k) {
    return offset_of(p->n_kept, p->kept_shape, p->kept_strides, k);
}
static inline int64_t reduced_offset(const plan *p, int64_t r) {
    if (p->n_reduced == 1)
        return r * p->reduced_strides[0];
    return offset_of(p->n_reduced, p->reduced_shape, p->reduced_strides, r);
}

/* ------------------------------------------------------------------------------------------ folds */

typedef enum fold {
    FOLD_SUM,
    FOLD_DEVIATION, /* (x - centre)^2 */
    FOLD_ABS,
    FOLD_SQUARE,
    FOLD_NONZERO,
    FOLD_POWER, /* |x|^p */
    FOLD_PROD,
    FOLD_MAX,
    FOLD_MIN,
    FOLD_MAX_ABS,
    FOLD_MIN_ABS,
    FOLD_EXP, /* exp(x - centre) */
} fold;

enum { BLOCK = 2048, COLUMNS = 1024, ROWS = 32, CHUNK = 64 * 1024 };

#define MUL(a, v) ((a) * (v))
/* Integers wrap. */
#define ADD_WRAP(a, v) ((int64_t) ((uint64_t) (a) + (uint64_t) (v)))
#define MUL_WRAP(a, v) ((int64_t) ((uint64_t) (a) * (uint64_t) (v)))
/* NaN is kept whichever side it is on. */
#define GREATER(a, v) ((v) > (a) || (v) != (v) ? (v) : (a))
#define LESS(a, v)    ((v) < (a) || (v) != (v) ? (v) : (a))

typedef uint16_t bf16;

static inline double one_float(float x) {
    return x;
}
static inline double one_double(double x) {
    return x;
}
static inline double one_bf16(bf16 x) {
    return tr__bf16_to_f32(x);
}

/* A row of sums, in double: `w` is some of x, widened, `m` the centre. */
#define ROW_SUM(id, T, expr)                                                           \
    static double row_##id##_##T(const T *x, int64_t n, double centre, double power) { \
        const vD m = (vD){0} + centre;                                                 \
        vD s0 = {0}, s1 = s0, s2 = s0, s3 = s0, w;                                     \
        int64_t i = 0;                                                                 \
        double total = 0;                                                              \
        (void) m;                                                                      \
        for (; i + 4 * VN_D <= n; i += 4 * VN_D) {                                     \
            w = wide_##T(x + i), s0 += (expr);                                         \
            w = wide_##T(x + i + VN_D), s1 += (expr);                                  \
            w = wide_##T(x + i + 2 * VN_D), s2 += (expr);                              \
            w = wide_##T(x + i + 3 * VN_D), s3 += (expr);                              \
        }                                                                              \
        for (; i + VN_D <= n; i += VN_D)                                               \
            w = wide_##T(x + i), s0 += (expr);                                         \
        if (i < n) {                                                                   \
            T rest[VN_D] = {0};                                                        \
            memcpy(rest, x + i, (size_t) (n - i) * sizeof *x);                         \
            w = wide_##T(rest);                                                        \
            w = (expr);                                                                \
            for (int k = 0; k < n - i; k++)                                            \
                total += w[k];                                                         \
        }                                                                              \
        return total + lanes((s0 + s1) + (s2 + s3));                                   \
    }
/* As above, of functions that are dear: computed as T, then widened. */
#define ROW_SUM_OF(id, T, V, VN, expr)                                                 \
    static double row_##id##_##T(const T *x, int64_t n, double centre, double power) { \
        const T m = (T) centre;                                                        \
        vD s0 = {0};                                                                   \
        V w;                                                                           \
        int64_t i = 0;                                                                 \
        double total = 0;                                                              \
        (void) m;                                                                      \
        for (; i + VN <= n; i += VN) {                                                 \
            memcpy(&w, x + i, sizeof w);                                               \
            s0 += wide_##V(expr);                                                      \
        }                                                                              \
        if (i < n) {                                                                   \
            w = (V){0};                                                                \
            memcpy(&w, x + i, (size_t) (n - i) * sizeof *x);                           \
            w = (expr);                                                                \
            for (int k = 0; k < n - i; k++)                                            \
                total += w[k];                                                         \
        }                                                                              \
        return total + lanes(s0);                                                      \
    }
/* Rows of n columns summed into acc, four rows at a time. `one` is expr of one double. */
#define COLUMN_SUM(id, T, expr, one)                                                                                   \
    static void column_##id##_##T(double *acc, const plan *p, const T *x, int64_t at, int64_t n, const double *centre, \
                                  double power) {                                                                      \
        memset(acc, 0, (size_t) n * sizeof *acc);                                                                      \
        for (int64_t r = 0; r < p->reduced; r += 4) {                                                                  \
            int64_t rows = tr__min(4, p->reduced - r), j = 0;                                                          \
            const T *y[4];                                                                                             \
            for (int64_t k = 0; k < rows; k++)                                                                         \
                y[k] = x + at + reduced_offset(p, r + k);                                                              \
            for (; rows == 4 && j + VN_D <= n; j += VN_D) {                                                            \
                vD a = wide_double(acc + j), m = centre ? wide_double(centre + j) : (vD){0}, w;                        \
                (void) m;                                                                                              \
                w = wide_##T(y[0] + j), a += (expr);                                                                   \
                w = wide_##T(y[1] + j), a += (expr);                                                                   \
                w = wide_##T(y[2] + j), a += (expr);                                                                   \
                w = wide_##T(y[3] + j), a += (expr);                                                                   \
                memcpy(acc + j, &a, sizeof a);                                                                         \
            }                                                                                                          \
            for (int64_t k = 0; k < rows; k++)                                                                         \
                for (int64_t i = j; i < n; i++) {                                                                      \
                    double w = one_##T(y[k][i]), m = centre ? centre[i] : 0;                                              \
                    (void) m;                                                                                          \
                    acc[i] += (one);                                                                                   \
                }                                                                                                      \
        }                                                                                                              \
    }
/* As above, computed as T. */
#define COLUMN_SUM_OF(id, T, one)                                                                                      \
    static void column_##id##_##T(double *acc, const plan *p, const T *x, int64_t at, int64_t n, const double *centre, \
                                  double power) {                                                                      \
        memset(acc, 0, (size_t) n * sizeof *acc);                                                                      \
        for (int64_t k = 0; k < p->reduced; k++) {                                                                     \
            const T *y = x + at + reduced_offset(p, k);                                                                \
            for (int64_t j = 0; j < n; j++) {                                                                          \
                T w = y[j], m = centre ? (T) centre[j] : 0;                                                            \
                (void) m;                                                                                              \
                acc[j] += (double) (one);                                                                              \
            }                                                                                                          \
        }                                                                                                              \
    }
/* Folds whose order is free: in 16 lanes. */
#define ROW_FOLD(id, T, A, start, COMBINE, value)                                 \
    static A row_##id##_##T(const T *x, int64_t n, double centre, double power) { \
        A lane[16];                                                               \
        int64_t i = 0;                                                            \
        for (int k = 0; k < 16; k++)                                              \
            lane[k] = (start);                                                    \
        for (; i + 16 <= n; i += 16)                                              \
            for (int k = 0; k < 16; k++) {                                        \
                T w = x[i + k];                                                   \
                A v = (A) (value);                                                \
                lane[k] = COMBINE(lane[k], v);                                    \
            }                                                                     \
        for (; i < n; i++) {                                                      \
            T w = x[i];                                                           \
            A v = (A) (value);                                                    \
            lane[0] = COMBINE(lane[0], v);                                        \
        }                                                                         \
        for (int k = 1; k < 16; k++) {                                            \
            A v = lane[k];                                                        \
            lane[0] = COMBINE(lane[0], v);                                        \
        }                                                                         \
        return lane[0];                                                           \
    }
#define COLUMN_FOLD(id, T, A, start, COMBINE, value)                                                              \
    static void column_##id##_##T(A *acc, const plan *p, const T *x, int64_t at, int64_t n, const double *centre, \
                                  double power) {                                                                 \
        T part[COLUMNS];                                                                                          \
        for (int64_t j = 0; j < n; j++)                                                                           \
            part[j] = (T) (start);                                                                                \
        for (int64_t k = 0; k < p->reduced; k++) {                                                                \
            const T *y = x + at + reduced_offset(p, k);                                                           \
            for (int64_t j = 0; j < n; j++) {                                                                     \
                T w = y[j], v = (T) (value), a = part[j];                                                         \
                part[j] = (T) COMBINE(a, v);                                                                      \
            }                                                                                                     \
        }                                                                                                         \
        for (int64_t j = 0; j < n; j++)                                                                           \
            acc[j] = (A) part[j];                                                                                 \
    }

static inline vF abs_power_vF(vF x, double p) {
    return vF_pow(vF_abs(x), (vF){0} + (float) p);
}
static inline vD abs_power_vD(vD x, double p) {
    return vD_pow(vD_abs(x), (vD){0} + p);
}
static inline vD ones(vDi m) {
    return (vD) (m & (vDi) ((vD){0} + 1.0));
}

#define COLUMN_SUMS(T)                                             \
    COLUMN_SUM(sum, T, w, w)                                       \
    COLUMN_SUM(deviation, T, (w - m) * (w - m), (w - m) * (w - m)) \
    COLUMN_SUM(abs, T, vD_abs(w), __builtin_fabs(w))               \
    COLUMN_SUM(square, T, w *w, w *w)                              \
    COLUMN_SUM(nonzero, T, ones(w != 0), w != 0)
#define SUMS(T, V, VN, fabs_, pow_, exp_)                                      \
    ROW_SUM(sum, T, w)                                                         \
    ROW_SUM(deviation, T, (w - m) * (w - m))                                   \
    ROW_SUM(abs, T, vD_abs(w))                                                 \
    ROW_SUM(square, T, w *w)                                                   \
    ROW_SUM(nonzero, T, ones(w != 0))                                          \
    ROW_SUM_OF(power, T, V, VN, abs_power_##V(w, power))                       \
    ROW_SUM_OF(exp, T, V, VN, V##_exp(w - m))                                  \
    COLUMN_SUMS(T)                                                             \
    COLUMN_SUM_OF(power, T, pow_(fabs_(w), (T) power))                         \
    COLUMN_SUM_OF(exp, T, exp_(w - m))
SUMS(float, vF, VN_F, __builtin_fabsf, powf, expf)
SUMS(double, vD, VN_D, __builtin_fabs, pow, exp)
COLUMN_SUMS(bf16)

#define FLOAT_FOLDS(T, V, VN, fabs_)                                \
    ROW_FOLD(prod, T, double, 1, MUL, w)                            \
    ROW_EXTREME(max, T, V, VN, -__builtin_inf(), ABOVE, ITSELF)     \
    ROW_EXTREME(min, T, V, VN, __builtin_inf(), BELOW, ITSELF)      \
    ROW_EXTREME(max_abs, T, V, VN, 0, ABOVE, V##_abs)               \
    ROW_EXTREME(min_abs, T, V, VN, __builtin_inf(), BELOW, V##_abs) \
    COLUMN_FOLD(prod, T, double, 1, MUL, w)                         \
    COLUMN_FOLD(max, T, double, -__builtin_inf(), GREATER, w)       \
    COLUMN_FOLD(min, T, double, __builtin_inf(), LESS, w)           \
    COLUMN_FOLD(max_abs, T, double, 0, GREATER, fabs_(w))           \
    COLUMN_FOLD(min_abs, T, double, __builtin_inf(), LESS, fabs_(w))
#define WHOLE(T, lowest, highest)                    \
    ROW_FOLD(prod, T, int64_t, 1, MUL_WRAP, w)       \
    ROW_FOLD(max, T, int64_t, lowest, GREATER, w)    \
    ROW_FOLD(min, T, int64_t, highest, LESS, w)      \
    COLUMN_FOLD(prod, T, int64_t, 1, MUL_WRAP, w)    \
    COLUMN_FOLD(max, T, int64_t, lowest, GREATER, w) \
    COLUMN_FOLD(min, T, int64_t, highest, LESS, w)
FLOAT_FOLDS(float, vF, VN_F, __builtin_fabsf)
FLOAT_FOLDS(double, vD, VN_D, __builtin_fabs)
WHOLE(int64_t, INT64_MIN, INT64_MAX)
WHOLE(uint8_t, 0, 255)
ROW_FOLD(sum, int64_t, int64_t, 0, ADD_WRAP, w)
COLUMN_FOLD(sum, int64_t, int64_t, 0, ADD_WRAP, w)

/* Rows and columns of each element type; accumulators are double for floats, int64 for the rest. */
#define REAL_FOLDS(T)                                                                                                    \
    typedef double (*row_fn_##T)(const T *, int64_t, double, double);                                                    \
    typedef void (*column_fn_##T)(double *, const plan *, const T *, int64_t, int64_t, const double *, double);          \
    static const row_fn_##T rows_##T[] = {row_sum_##T,     row_deviation_##T, row_abs_##T,     row_square_##T,           \
                                          row_nonzero_##T, row_power_##T,     row_prod_##T,    row_max_##T,              \
                                          row_min_##T,     row_max_abs_##T,   row_min_abs_##T, row_exp_##T};             \
    static const column_fn_##T columns_##T[] = {                                                                         \
        column_sum_##T,  column_deviation_##T, column_abs_##T, column_square_##T,  column_nonzero_##T, column_power_##T, \
        column_prod_##T, column_max_##T,       column_min_##T, column_max_abs_##T, column_min_abs_##T, column_exp_##T};
REAL_FOLDS(float)
REAL_FOLDS(double)
/* Sums of bfloat16 that add rows as they lie; the others are of float32 copies. */
static void (*const columns_bf16[])(double *, const plan *, const bf16 *, int64_t, int64_t, const double *, double) = {
    [FOLD_SUM] = column_sum_bf16,         [FOLD_DEVIATION] = column_deviation_bf16, [FOLD_ABS] = column_abs_bf16,
    [FOLD_SQUARE] = column_square_bf16,   [FOLD_NONZERO] = column_nonzero_bf16,     [FOLD_EXP] = NULL,
};
#define WHOLE_FOLDS(T, sum_row, sum_column)                                                                      \
    typedef int64_t (*row_fn_##T)(const T *, int64_t, double, double);                                           \
    typedef void (*column_fn_##T)(int64_t *, const plan *, const T *, int64_t, int64_t, const double *, double); \
    static const row_fn_##T rows_##T[] = {                                                                       \
        [FOLD_SUM] = sum_row, [FOLD_PROD] = row_prod_##T, [FOLD_MAX] = row_max_##T, [FOLD_MIN] = row_min_##T};   \
    static const column_fn_##T columns_##T[] = {                                                                 \
        [FOLD_SUM] = sum_column, [FOLD_PROD] = column_prod_##T, [FOLD_MAX] = column_max_##T, [FOLD_MIN] = column_min_##T};
WHOLE_FOLDS(int64_t, row_sum_int64_t, column_sum_int64_t)
WHOLE_FOLDS(uint8_t, NULL, NULL)

/* ------------------------------------------------------------------------------------------ the driver */

typedef union number {
    double d;
    int64_t l;
} number;

typedef struct job {
    plan p;
    fold f;
    tr_dtype dtype; /* F32, F64, I64 or BOOL */
    const void *x;
    const double *centre; /* per result, or NULL */
    double power;
    number *out;           /* [results] */
    int64_t chunks, chunk; /* a row that is cut: pieces and their size */
    int64_t columns;       /* of a block */
    number *partial;
} job;

static number combine(const job *j, number a, number b) {
    bool real = j->dtype >= TR_BF16;
    switch (j->f) {
        case FOLD_PROD:
            return real ? (number){.d = a.d * b.d} : (number){.l = (int64_t) ((uint64_t) a.l * (uint64_t) b.l)};
        case FOLD_MAX:
        case FOLD_MAX_ABS:
            return real ? (number){.d = GREATER(a.d, b.d)} : (number){.l = GREATER(a.l, b.l)};
        case FOLD_MIN:
        case FOLD_MIN_ABS:
            return real ? (number){.d = LESS(a.d, b.d)} : (number){.l = LESS(a.l, b.l)};
        default:
            return real ? (number){.d = a.d + b.d} : (number){.l = (int64_t) ((uint64_t) a.l + (uint64_t) b.l)};
    }
}

/* bfloat16 is widened piece by piece, never as a whole. */
static number fold_row_bf16(const job *j, int64_t at, int64_t n, double centre) {
    float x[BLOCK];
    const uint16_t *h = (const uint16_t *) j->x + at;
    number total = {0};
    for (int64_t i = 0; i == 0 || i < n; i += BLOCK) {
        int64_t m = tr__min(BLOCK, n - i);
        bf16_widen(x, h + i, m);
        number piece = {.d = rows_float[j->f](x, m, centre, j->power)};
        total = i ? combine(j, total, piece) : piece;
    }
    return total;
}

/* Rows of n columns, a few at a time. */
static void fold_columns_bf16(const job *j, number *out, int64_t at, int64_t n, const double *centre) {
    enum { FEW = 8 };
    float x[FEW * COLUMNS];
    number part[COLUMNS];
    plan p = {.n_reduced = 1, .reduced_strides = {n}};
    if (columns_bf16[j->f]) {
        columns_bf16[j->f](&out->d, &j->p, j->x, at, n, centre, j->power);
        return;
    }
    for (int64_t r = 0; r < j->p.reduced; r += FEW) {
        p.reduced = p.reduced_shape[0] = tr__min(FEW, j->p.reduced - r);
        for (int64_t k = 0; k < p.reduced; k++)
            bf16_widen(x + k * n, (const bf16 *) j->x + at + reduced_offset(&j->p, r + k), n);
        columns_float[j->f](&part->d, &p, x, 0, n, centre, j->power);
        for (int64_t c = 0; c < n; c++)
            out[c] = r ? combine(j, out[c], part[c]) : part[c];
    }
}

static number fold_row(const job *j, int64_t at, int64_t n, double centre) {
    switch (j->dtype) {
        case TR_BF16:
            return fold_row_bf16(j, at, n, centre);
        case TR_F32:
            return (number){.d = rows_float[j->f]((const float *) j->x + at, n, centre, j->power)};
        case TR_F64:
            return (number){.d = rows_double[j->f]((const double *) j->x + at, n, centre, j->power)};
        case TR_BOOL:
            return (number){.l = rows_uint8_t[j->f]((const uint8_t *) j->x + at, n, centre, j->power)};
        default:
            return (number){.l = rows_int64_t[j->f]((const int64_t *) j->x + at, n, centre, j->power)};
    }
}

static void fold_columns(const job *j, int64_t result, int64_t at, int64_t n) {
    number *out = j->out + result;
    const double *centre = j->centre ? j->centre + result : NULL;
    switch (j->dtype) {
        case TR_BF16:
            fold_columns_bf16(j, out, at, n, centre);
            break;
        case TR_F32:
            columns_float[j->f](&out->d, &j->p, j->x, at, n, centre, j->power);
            break;
        case TR_F64:
            columns_double[j->f](&out->d, &j->p, j->x, at, n, centre, j->power);
            break;
        case TR_BOOL:
            columns_uint8_t[j->f](&out->l, &j->p, j->x, at, n, centre, j->power);
            break;
        default:
            columns_int64_t[j->f](&out->l, &j->p, j->x, at, n, centre, j->power);
    }
}

/* Whole results, the innermost dimension reduced. */
static void run_rows(void *env, int64_t begin, int64_t end, int thread) {
    const job *j = env;
    for (int64_t k = begin; k < end; k++) {
        int64_t at = kept_offset(&j->p, k);
        double centre = j->centre ? j->centre[k] : 0;
        number total = fold_row(j, at + reduced_offset(&j->p, 0), j->p.inner, centre);
        for (int64_t r = 1; r < j->p.reduced; r++)
            total = combine(j, total, fold_row(j, at + reduced_offset(&j->p, r), j->p.inner, centre));
        j->out[k] = total;
    }
}

/* Pieces of results: few results, many elements each. A piece is some rows, or a part of one. */
static void run_pieces(void *env, int64_t begin, int64_t end, int thread) {
    const job *j = env;
    for (int64_t i = begin; i < end; i++) {
        int64_t k = i / j->chunks, c = i % j->chunks;
        int64_t at = kept_offset(&j->p, k);
        double centre = j->centre ? j->centre[k] : 0;
        number total = {0};
        bool any = false;
        int64_t from = c * j->chunk, to = tr__min(from + j->chunk, j->p.reduced * j->p.inner);
        while (from < to) {
            int64_t r = from / j->p.inner, col = from % j->p.inner;
            int64_t n = tr__min(j->p.inner - col, to - from);
            number piece = fold_row(j, at + reduced_offset(&j->p, r) + col, n, centre);
            total = any ? combine(j, total, piece) : piece;
            any = true;
            from += n;
        }
        j->partial[i] = total;
    }
}

/* Pieces of rows of results: blocks of columns. */
static void run_columns(void *env, int64_t begin, int64_t end, int thread) {
    const job *j = env;
    int64_t blocks = (j->p.inner + j->columns - 1) / j->columns;
    for (int64_t i = begin; i < end; i++) {
        int64_t k = i / blocks, col = i % blocks * j->columns;
        fold_columns(j, k * j->p.inner + col, kept_offset(&j->p, k) + col, tr__min(j->columns, j->p.inner - col));
    }
}

/* Rows of results over a part of the reduced rows: few columns, many rows. Partial [chunks, results]. */
static void run_column_pieces(void *env, int64_t begin, int64_t end, int thread) {
    job part = *(const job *) env;
    int64_t inner = part.p.inner, rows = part.p.reduced;
    for (int64_t i = begin; i < end; i++) {
        int64_t from = i * part.chunk, n = tr__min(part.chunk, rows - from);
        // One outer reduced dimension: a part of it is a plan of its own.
        part.p.reduced = part.p.reduced_shape[0] = n;
        part.out = part.partial + i * inner;
        for (int64_t col = 0; col < inner; col += COLUMNS) {
            int64_t m = tr__min(COLUMNS, inner - col);
            number *out = part.out + col;
            const double *centre = part.centre ? part.centre + col : NULL;
            int64_t at = from * part.p.reduced_strides[0] + col;
            job piece = part;
            piece.out = out;
            piece.centre = centre;
            fold_columns(&piece, 0, at, m);
        }
    }
}

static tr_status reduce_rows(const tr_kernel_call *c, job *j) {
    int64_t size = j->p.reduced * j->p.inner;
    if (size < 2 * CHUNK || j->p.kept > 16) {
        tr__parallel(c->ctx, j->p.kept, tr__max(1, TR__GRAIN / tr__max(1, size)), run_rows, j);
        return TR_OK;
    }
    j->chunk = CHUNK;
    j->chunks = (size + CHUNK - 1) / CHUNK;
    j->partial = tr__scratch(c, (size_t) (j->p.kept * j->chunks) * sizeof(number));
    if (!j->partial)
        return TR_E_NOMEM;
    tr__parallel(c->ctx, j->p.kept * j->chunks, 1, run_pieces, j);
    for (int64_t k = 0; k < j->p.kept; k++) {
        j->out[k] = j->partial[k * j->chunks];
        for (int64_t i = 1; i < j->chunks; i++)
            j->out[k] = combine(j, j->out[k], j->partial[k * j->chunks + i]);
    }
    return TR_OK;
}

static tr_status reduce_columns(const tr_kernel_call *c, job *j) {
    // Blocks of columns change no result: enough of them for every thread.
    j->columns = tr__max(128, tr__min(COLUMNS, j->p.inner * j->p.kept / (2 * c->ctx->threads) / 64 * 64));
    int64_t blocks = (j->p.inner + j->columns - 1) / j->columns * j->p.kept;
    int64_t work = j->p.reduced * j->p.inner;
    bool one_dim = j->p.kept == 1 && j->p.n_reduced == 1;
    if (!one_dim || j->p.inner >= 1024 || work < 2 * CHUNK) {
        tr__parallel(c->ctx, blocks, tr__max(1, TR__GRAIN / tr__max(1, j->p.reduced * tr__min(j->columns, j->p.inner))),
                     run_columns, j);
        return TR_OK;
    }
    j->chunk = tr__max(ROWS, CHUNK / j->p.inner / ROWS * ROWS);
    j->chunks = (j->p.reduced + j->chunk - 1) / j->chunk;
    j->partial = tr__scratch(c, (size_t) (j->p.inner * j->chunks) * sizeof(number));
    if (!j->partial)
        return TR_E_NOMEM;
    tr__parallel(c->ctx, j->chunks, 1, run_column_pieces, j);
    for (int64_t k = 0; k < j->p.inner; k++) {
        j->out[k] = j->partial[k];
        for (int64_t i = 1; i < j->chunks; i++)
            j->out[k] = combine(j, j->out[k], j->partial[i * j->p.inner + k]);
    }
    return TR_OK;
}

static void fill_empty(job *j) {
    job one = *j;
    one.x = NULL;
    for (int64_t k = 0; k < j->p.results; k++)
        j->out[k] = fold_row(&one, 0, 0, 0);
}

static tr_status reduce(const tr_kernel_call *c, job *j) {
    if (j->p.results == 0)
        return TR_OK;
    if (j->p.count == 0) {
        fill_empty(j);
        return TR_OK;
    }
    return j->p.inner_reduced ? reduce_rows(c, j) : reduce_columns(c, j);
}

/* The dimensions of `m` in the order in which they lie in memory, as a row-major meta, where m is dense and the kept ones
 * stay in order: their results do, too. `mask` moves along. */
static bool memory_order(const tr_meta *m, int64_t *mask, tr_meta *out) {
    int order[TR_MAX_DIMS], last = -1;
    int64_t shape[TR_MAX_DIMS], moved = 0, step = 1;
    for (int d = 0; d < m->ndim; d++) {
        int k = d;
        for (; k > 0 && m->strides[order[k - 1]] < m->strides[d]; k--)
            order[k] = order[k - 1];
        order[k] = d;
    }
    for (int k = m->ndim - 1; k >= 0; k--) {
        int d = order[k];
        if (m->shape[d] != 1 && m->strides[d] != step)
            return false;
        step *= m->shape[d];
    }
    for (int k = 0; k < m->ndim; k++) {
        int d = order[k];
        shape[k] = m->shape[d];
        if (is_reduced(*mask, d)) {
            moved |= (int64_t) 1 << k;
        } else if (m->shape[d] != 1) {
            if (d < last)
                return false;
            last = d;
        }
    }
    tr__meta_make(out, (tr_dtype) m->dtype, m->ndim, shape, NULL);
    *mask = moved;
    return true;
}

/* Reads the input as `dtype` and reduces it into scratch. */
static tr_status start(const tr_kernel_call *c, job *j, int64_t mask, tr_dtype dtype) {
    const tr_meta *m = c->in[0].meta;
    tr_meta packed;
    if (dtype == TR_F32 && m->dtype == TR_BF16)
        dtype = TR_BF16;
    *j = (job){.dtype = dtype};
    if (!m->contiguous && m->dtype == dtype && c->in[0].data && memory_order(m, &mask, &packed)) {
        j->p = make_plan(&packed, mask);
        j->x = c->in[0].data;
    } else {
        j->p = make_plan(m, mask);
        TR_TRY(tr__dense_in(c, &c->in[0], dtype, &j->x));
    }
    j->out = tr__scratch(c, (size_t) j->p.results * sizeof(number));
    return j->out ? TR_OK : TR_E_NOMEM;
}

/* Results, in the class of the job, to an output of any dtype. Both have the same row-major order. */
static tr_status finish(const tr_kernel_call *c, const job *j, const tr_arg *out) {
    tr_meta from;
    tr_arg src = {j->out, &from, {0}};
    tr__meta_make(&from, j->dtype >= TR_BF16 ? TR_F64 : TR_I64, out->meta->ndim, out->meta->shape, NULL);
    return tr__copy(c->ctx, out, &src);
}

static tr_dtype sum_class(const tr_kernel_call *c) {
    tr_dtype in = c->in[0].meta->dtype, out = c->out[0].meta->dtype;
    return tr__wide(in > out ? in : out);
}

static tr_status simple(const tr_kernel_call *c, fold f, tr_dtype dtype) {
    job j;
    TR_TRY(start(c, &j, c->attrs[0], dtype));
    j.f = f;
    TR_TRY(reduce(c, &j));
    return finish(c, &j, &c->out[0]);
}

TR__ISA_KERNEL(sum) {
    return simple(c, FOLD_SUM, sum_class(c));
}

TR__ISA_KERNEL(prod) {
    return simple(c, FOLD_PROD, sum_class(c));
}

TR__ISA_KERNEL(mean) {
    job j;
    TR_TRY(start(c, &j, c->attrs[0], sum_class(c)));
    TR_TRY(reduce(c, &j));
    for (int64_t k = 0; k < j.p.results; k++)
        j.out[k].d /= (double) j.p.count;
    return finish(c, &j, &c->out[0]);
}

TR__ISA_KERNEL(amax) {
    return simple(c, FOLD_MAX, tr__wide(c->in[0].meta->dtype));
}

TR__ISA_KERNEL(amin) {
    return simple(c, FOLD_MIN, tr__wide(c->in[0].meta->dtype));
}

TR__ISA_KERNEL(any) {
    return simple(c, FOLD_MAX, TR_BOOL);
}

TR__ISA_KERNEL(all) {
    return simple(c, FOLD_MIN, TR_BOOL);
}

TR__ISA_KERNEL(var) {
    job j;
    TR_TRY(start(c, &j, c->attrs[0], tr__wide(c->in[0].meta->dtype)));
    TR_TRY(reduce(c, &j));
    double *centre = tr__scratch(c, (size_t) j.p.results * sizeof *centre);
    if (!centre)
        return TR_E_NOMEM;
    for (int64_t k = 0; k < j.p.results; k++)
        centre[k] = j.out[k].d / (double) j.p.count;
    j.centre = centre;
    j.f = FOLD_DEVIATION;
    TR_TRY(reduce(c, &j));
    double divisor = (double) j.p.count - tr_arg_double(&c->in[1]);
    for (int64_t k = 0; k < j.p.results; k++)
        j.out[k].d /= divisor > 0 ? divisor : 0;
    return finish(c, &j, &c->out[0]);
}

TR__ISA_KERNEL(vector_norm) {
    double p = tr_arg_double(&c->in[1]);
    job j;
    TR_TRY(start(c, &j, c->attrs[0], tr__wide(c->in[0].meta->dtype)));
    j.f = p == 2           ? FOLD_SQUARE
          : p == 1         ? FOLD_ABS
          : p == 0         ? FOLD_NONZERO
          : p == INFINITY  ? FOLD_MAX_ABS
          : p == -INFINITY ? FOLD_MIN_ABS
                           : FOLD_POWER;
    j.power = p;
    // Squares of float overflow where their root would not: as in PyTorch, they are summed as float anyway.
    TR_TRY(reduce(c, &j));
    for (int64_t k = 0; k < j.p.results; k++) {
        if (j.f == FOLD_SQUARE)
            j.out[k].d = sqrt(j.out[k].d);
        else if (j.f == FOLD_POWER)
            j.out[k].d = pow(j.out[k].d, 1 / p);
    }
    return finish(c, &j, &c->out[0]);
}

TR__ISA_KERNEL(logsumexp) {
    job j;
    TR_TRY(start(c, &j, c->attrs[0], tr__wide(c->in[0].meta->dtype)));
    j.f = FOLD_MAX;
    TR_TRY(reduce(c, &j));
    double *centre = tr__scratch(c, (size_t) j.p.results * sizeof *centre);
    if (!centre)
        return TR_E_NOMEM;
    for (int64_t k = 0; k < j.p.results; k++)
        centre[k] = isinf(j.out[k].d) ? 0 : j.out[k].d;
    j.centre = centre;
    j.f = FOLD_EXP;
    TR_TRY(reduce(c, &j));
    for (int64_t k = 0; k < j.p.results; k++)
        j.out[k].d = log(j.out[k].d) + centre[k];
    return finish(c, &j, &c->out[0]);
}
