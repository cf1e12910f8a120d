/* isa_scan.c - what runs along one dimension: places of extremes, running sums and products. */
#include "exec/kernels/kernels.h"
#include "exec/kernels/ew_math.h"
#include "exec/kernels/isa_extreme.h"

/* [outer, size, inner] read as one of the wide types. */
typedef struct line_job {
    tr__axis a;
    const void *x;
    void *value;
    int64_t *index;
    tr_dtype dtype;
    bool less;
} line_job;

#define EXTREME(T)                                                      \
    static void extreme_##T(const line_job *j, int64_t o, int64_t i) {  \
        const T *x = (const T *) j->x + o * j->a.size * j->a.inner + i; \
        T best = x[0];                                                  \
        int64_t at = 0;                                                 \
        for (int64_t k = 1; k < j->a.size && best == best; k++) {       \
            T v = x[k * j->a.inner];                                    \
            if (v != v || (j->less ? v < best : v > best)) {            \
                best = v;                                               \
                at = k;                                                 \
            }                                                           \
        }                                                               \
        if (j->value)                                                   \
            ((T *) j->value)[o * j->a.inner + i] = best;                \
        j->index[o * j->a.inner + i] = at;                              \
    }
EXTREME(float)
EXTREME(double)
EXTREME(int64_t)

ROW_EXTREME(max, float, vF, VN_F, -__builtin_inf(), ABOVE, ITSELF)
ROW_EXTREME(min, float, vF, VN_F, __builtin_inf(), BELOW, ITSELF)
ROW_EXTREME(max, double, vD, VN_D, -__builtin_inf(), ABOVE, ITSELF)
ROW_EXTREME(min, double, vD, VN_D, __builtin_inf(), BELOW, ITSELF)

/* A contiguous line: its extreme in vectors, then the first place that holds it, or a NaN. */
#define EXTREME_ROW(T)                                                          \
    static void extreme_row_##T(const line_job *j, int64_t o) {                 \
        const T *x = (const T *) j->x + o * j->a.size;                          \
        T best = (T) (j->less ? row_min_##T : row_max_##T)(x, j->a.size, 0, 0); \
        int64_t at = 0;                                                         \
        while (at < j->a.size - 1 && x[at] != best && x[at] == x[at])           \
            at++;                                                               \
        if (j->value)                                                           \
            ((T *) j->value)[o] = best;                                         \
        j->index[o] = at;                                                       \
    }
EXTREME_ROW(float)
EXTREME_ROW(double)

/* Columns, a block at a time, so that rows are read along. */
enum { LINES = 64 };
#define EXTREME_COLUMNS(T)                                                                \
    static void extreme_columns_##T(const line_job *j, int64_t o, int64_t i, int64_t n) { \
        const T *x = (const T *) j->x + o * j->a.size * j->a.inner + i;                   \
        T best[LINES];                                                                    \
        int32_t at[LINES] = {0};                                                          \
        for (int64_t c = 0; c < n; c++)                                                   \
            best[c] = x[c];                                                               \
        for (int64_t k = 1; k < j->a.size; k++)                                           \
            for (int64_t c = 0; c < n; c++) {                                             \
                T v = x[k * j->a.inner + c], b = best[c];                                 \
                bool take = ((j->less ? v < b : v > b) | (v != v)) & (b == b);            \
                best[c] = take ? v : b;                                                   \
                at[c] = take ? (int32_t) k : at[c];                                       \
            }                                                                             \
        for (int64_t c = 0; c < n; c++) {                                                 \
            if (j->value)                                                                 \
                ((T *) j->value)[o * j->a.inner + i + c] = best[c];                       \
            j->index[o * j->a.inner + i + c] = at[c];                                     \
        }                                                                                 \
    }
EXTREME_COLUMNS(float)
EXTREME_COLUMNS(double)
EXTREME_COLUMNS(int64_t)

static void run_extreme_rows(void *env, int64_t begin, int64_t end, int thread) {
    const line_job *j = env;
    for (int64_t o = begin; o < end; o++) {
        if (j->dtype == TR_F32)
            extreme_row_float(j, o);
        else
            extreme_row_double(j, o);
    }
}

static void run_extreme_columns(void *env, int64_t begin, int64_t end, int thread) {
    const line_job *j = env;
    int64_t blocks = (j->a.inner + LINES - 1) / LINES;
    for (int64_t k = begin; k < end; k++) {
        int64_t o = k / blocks, i = k % blocks * LINES, n = tr__min(LINES, j->a.inner - i);
        if (j->dtype == TR_F32)
            extreme_columns_float(j, o, i, n);
        else if (j->dtype == TR_F64)
            extreme_columns_double(j, o, i, n);
        else
            extreme_columns_int64_t(j, o, i, n);
    }
}

static void run_extremes(void *env, int64_t begin, int64_t end, int thread) {
    const line_job *j = env;
    for (int64_t k = begin; k < end; k++) {
        int64_t o = k / j->a.inner, i = k % j->a.inner;
        if (j->dtype == TR_F32)
            extreme_float(j, o, i);
        else if (j->dtype == TR_F64)
            extreme_double(j, o, i);
        else
            extreme_int64_t(j, o, i);
    }
}

static tr_status find_extremes(const tr_kernel_call *c, const tr_arg *value, const tr_arg *index, int64_t dim, bool less) {
    const tr_meta *m = c->in[0].meta;
    line_job j = {.dtype = tr__wide(m->dtype), .less = less};
    j.a = dim == TR_NONE ? (tr__axis){1, m->numel, 1} : tr__axis_of(m, dim);
    if (index->meta->numel == 0)
        return TR_OK;
    if (j.a.size == 0)
        return TR_FAIL(TR_E_INDEX, "%s: Expected reduction dim to have non-zero size.", tr_op_info_of(c->op)->name);
    void *out;
    TR_TRY(tr__dense_in(c, &c->in[0], j.dtype, &j.x));
    if (value)
        TR_TRY(tr__dense_out(c, value, j.dtype, &j.value));
    TR_TRY(tr__dense_out(c, index, TR_I64, &out));
    j.index = out;
    if (j.a.inner == 1 && j.dtype != TR_I64)
        tr__parallel(c->ctx, j.a.outer, tr__max(1, TR__GRAIN / j.a.size), run_extreme_rows, &j);
    else if (j.a.inner >= 8 && j.a.size < INT32_MAX)
        tr__parallel(c->ctx, j.a.outer * ((j.a.inner + LINES - 1) / LINES), tr__max(1, TR__GRAIN / LINES / j.a.size),
                     run_extreme_columns, &j);
    else
        tr__parallel(c->ctx, j.a.outer * j.a.inner, tr__max(1, TR__GRAIN / j.a.size), run_extremes, &j);
    if (value)
        TR_TRY(tr__dense_out_end(c, value, j.dtype, j.value));
    return tr__dense_out_end(c, index, TR_I64, out);
}

TR__ISA_KERNEL(argmax) {
    return find_extremes(c, NULL, &c->out[0], c->attrs[0], false);
}
TR__ISA_KERNEL(argmin) {
    return find_extremes(c, NULL, &c->out[0], c->attrs[0], true);
}
TR__ISA_KERNEL(max_dim) {
    return find_extremes(c, &c->out[0], &c->out[1], c->attrs[0], false);
}
TR__ISA_KERNEL(min_dim) {
    return find_extremes(c, &c->out[0], &c->out[1], c->attrs[0], true);
}

/* Running sums and products: in double for float, as PyTorch does. */
#define CUMULATE(T, A, op, start, id)                                              \
    static void id##_##T(void *env, int64_t begin, int64_t end, int thread) {      \
        const line_job *j = env;                                                   \
        for (int64_t k = begin; k < end; k++) {                                    \
            int64_t at = k / j->a.inner * j->a.size * j->a.inner + k % j->a.inner; \
            const T *x = (const T *) j->x + at;                                    \
            T *y = (T *) j->value + at;                                            \
            A acc = start;                                                         \
            for (int64_t i = 0; i < j->a.size; i++) {                              \
                acc = acc op(A) x[i * j->a.inner];                                 \
                y[i * j->a.inner] = (T) acc;                                       \
            }                                                                      \
        }                                                                          \
    }
CUMULATE(float, double, +, 0, cumsum)
CUMULATE(double, double, +, 0, cumsum)
CUMULATE(int64_t, uint64_t, +, 0, cumsum)
CUMULATE(float, double, *, 1, cumprod)
CUMULATE(double, double, *, 1, cumprod)
CUMULATE(int64_t, uint64_t, *, 1, cumprod)

static tr_status cumulate(const tr_kernel_call *c, tr__range_fn f, tr__range_fn d, tr__range_fn l) {
    const tr_arg *in = &c->in[0], *out = &c->out[0];
    line_job j = {.a = tr__axis_of(in->meta, c->attrs[0]), .dtype = tr__wide(out->meta->dtype)};
    if (in->meta->numel == 0)
        return TR_OK;
    TR_TRY(tr__dense_in(c, in, j.dtype, &j.x));
    TR_TRY(tr__dense_out(c, out, j.dtype, &j.value));
    tr__range_fn fn = j.dtype == TR_F32 ? f : j.dtype == TR_F64 ? d : l;
    tr__parallel(c->ctx, j.a.outer * j.a.inner, tr__max(1, TR__GRAIN / j.a.size), fn, &j);
    return tr__dense_out_end(c, out, j.dtype, j.value);
}
TR__ISA_KERNEL(cumsum) {
    return cumulate(c, cumsum_float, cumsum_double, cumsum_int64_t);
}
TR__ISA_KERNEL(cumprod) {
    return cumulate(c, cumprod_float, cumprod_double, cumprod_int64_t);
}
