/* isa_pool.c - pooling over the last two dimensions, forward and backward; one plane after the other, planes in parallel. Images
 * with channels last have kernels of their own (isa_pool_last.c).
 *
 * A row of outputs is made at a time: each position of the window is a loop over the row, which vectorises. So that these loops run
 * over consecutive elements and whole vectors, an input row is padded first and split by its columns' place in a stride: of output
 * o, position k of the window lies at [k % stride][o + k / stride], `run` elements per place, `lanes` outputs. */
#include "exec/kernels/ew_math.h"
#include "exec/kernels/isa_pool.h"
#include "exec/kernels/isa_wide.h"

#include <math.h>

static int64_t whole_vectors(int64_t n) {
    return n < VN_D ? n : (n + VN_F - 1) / VN_F * VN_F;
}

static int64_t reach_of(const tr__pool_axis *a) {
    return (a->kernel - 1) * a->dilation;
}

/* Which input columns are in a padded row. */
static int64_t columns_of(const tr__pool *j) {
    return tr__min(j->across.size, j->run * j->across.stride - j->across.padding);
}

#define SPLIT(T)                                                                                                             \
    /* `padded` has room for run * stride elements, its edges are set; `split` for as many. */                               \
    static const T *split_##T(const tr__pool *j, const T *row, T *padded, T *split) {                                        \
        int64_t s = j->across.stride;                                                                                        \
        memcpy(padded + j->across.padding, row, (size_t) columns_of(j) * sizeof *row);                                       \
        if (s == 1)                                                                                                          \
            return padded;                                                                                                   \
        if (s == 2)                                                                                                          \
            for (int64_t i = 0; i < j->run; i++) {                                                                           \
                split[i] = padded[2 * i];                                                                                    \
                split[j->run + i] = padded[2 * i + 1];                                                                       \
            }                                                                                                                \
        else                                                                                                                 \
            for (int64_t k = 0; k < s; k++)                                                                                  \
                for (int64_t i = 0; i < j->run; i++)                                                                         \
                    split[k * j->run + i] = padded[i * s + k];                                                               \
        return split;                                                                                                        \
    }                                                                                                                        \
    static inline T *position_##T(const tr__pool *j, const T *split, int64_t kx) {                                           \
        int64_t k = kx * j->across.dilation, s = j->across.stride;                                                           \
        return (T *) split + k % s * j->run + k / s;                                                                         \
    }                                                                                                                        \
    static void fill_##T(T *to, int64_t n, T value) {                                                                        \
        for (int64_t i = 0; i < n; i++)                                                                                      \
            to[i] = value;                                                                                                   \
    }

/* The first greatest in row-major order of the window wins, and NaN wins over all; padding never does. T is the element, I an
 * integer of its size. */
#define MAX_POOL(T, I, LOWEST)                                                                                               \
    static void max_row_##T(const tr__pool *j, const T *x, T *y, int64_t *where, int64_t oy, T *padded) {                    \
        const tr__pool_axis *down = &j->down, *across = &j->across;                                                          \
        int64_t room = j->run * across->stride, step = across->stride, lanes = j->lanes;                                     \
        T *split = padded + room, *best = split + room;                                                                      \
        I *at = (I *) (best + lanes);                                                                                        \
        int64_t y0 = oy * down->stride - down->padding, d = across->dilation;                                                \
        int64_t first_y = y0 < 0 ? y0 + (-y0 + down->dilation - 1) / down->dilation * down->dilation : y0;                   \
        for (int64_t o = 0; o < lanes; o++) {                                                                                \
            int64_t x0 = o * step - across->padding;                                                                         \
            best[o] = LOWEST;                                                                                                \
            at[o] = (I) (first_y * across->size + (x0 < 0 ? x0 + (-x0 + d - 1) / d * d : x0));                               \
        }                                                                                                                    \
        for (int64_t ky = 0; ky < down->kernel; ky++) {                                                                      \
            int64_t iy = y0 + ky * down->dilation;                                                                           \
            if (iy < 0 || iy >= down->size)                                                                                  \
                continue;                                                                                                    \
            const T *row = split_##T(j, x + iy * across->size, padded, split);                                               \
            for (int64_t kx = 0; kx < across->kernel; kx++) {                                                                \
                const T *from = position_##T(j, row, kx);                                                                    \
                I first = (I) (iy * across->size - across->padding + kx * d);                                                \
                _Pragma("GCC ivdep") for (int64_t o = 0; o < lanes; o++) {                                                   \
                    T v = from[o];                                                                                           \
                    bool take = v > best[o] || v != v;                                                                       \
                    best[o] = take ? v : best[o];                                                                            \
                    at[o] = take ? first + (I) o * (I) step : at[o];                                                         \
                }                                                                                                            \
            }                                                                                                                \
        }                                                                                                                    \
        memcpy(y, best, (size_t) across->out * sizeof *y);                                                                   \
        for (int64_t o = 0; o < across->out; o++)                                                                            \
            where[o] = at[o];                                                                                                \
    }                                                                                                                        \
    static void max_pool_##T(void *env, int64_t begin, int64_t end, int thread) {                                            \
        const tr__pool *j = env;                                                                                             \
        T *padded = (T *) (j->own + thread * j->own_bytes);                                                                  \
        fill_##T(padded, j->run *j->across.stride, LOWEST);                                                                  \
        for (int64_t p = begin; p < end; p++)                                                                                \
            for (int64_t oy = 0; oy < j->down.out; oy++) {                                                                   \
                int64_t row = (p * j->down.out + oy) * j->across.out;                                                        \
                max_row_##T(j, (const T *) j->x + p * j->down.size * j->across.size, (T *) j->y + row, j->at + row, oy,      \
                            padded);                                                                                         \
            }                                                                                                                \
    }                                                                                                                        \
    static void max_back_##T(void *env, int64_t begin, int64_t end, int thread) {                                            \
        const tr__pool *j = env;                                                                                             \
        int64_t inputs = j->down.size * j->across.size, outputs = j->down.out * j->across.out;                               \
        for (int64_t p = begin; p < end; p++) {                                                                              \
            const T *g = (const T *) j->x + p * outputs;                                                                     \
            const int64_t *from = j->from + p * outputs;                                                                     \
            T *y = (T *) j->y + p * inputs;                                                                                  \
            memset(y, 0, (size_t) inputs * sizeof *y);                                                                       \
            for (int64_t i = 0; i < outputs; i++)                                                                            \
                if (from[i] >= 0 && from[i] < inputs)                                                                        \
                    y[from[i]] += g[i];                                                                                      \
        }                                                                                                                    \
    }
SPLIT(float)
SPLIT(double)
SPLIT(int64_t)
MAX_POOL(float, int32_t, -INFINITY)
MAX_POOL(double, int64_t, -INFINITY)
MAX_POOL(int64_t, int64_t, INT64_MIN)

/* Small windows: row by row as for the maximum; padding adds 0. Others: window by window, summed in double. */
#define AVG_POOL(T)                                                                                                     \
    static void avg_row_##T(const tr__pool *j, const T *x, T *y, int64_t oy, T *padded) {                               \
        const tr__pool_axis *down = &j->down, *across = &j->across;                                                     \
        int64_t room = j->run * across->stride, y0 = oy * down->stride - down->padding;                                 \
        int64_t height = tr__extent_of(j, down, oy).counted;                                                            \
        T *split = padded + room, *sum = split + room;                                                                  \
        memset(sum, 0, (size_t) j->lanes * sizeof *sum);                                                                \
        for (int64_t iy = tr__max(0, y0); iy < tr__min(y0 + down->kernel, down->size); iy++) {                          \
            const T *row = split_##T(j, x + iy * across->size, padded, split);                                          \
            for (int64_t kx = 0; kx < across->kernel; kx++) {                                                           \
                const T *from = position_##T(j, row, kx);                                                               \
                _Pragma("GCC ivdep") for (int64_t o = 0; o < j->lanes; o++) sum[o] += from[o];                          \
            }                                                                                                           \
        }                                                                                                               \
        for (int64_t o = 0; o < across->out; o++)                                                                       \
            y[o] = sum[o] / (T) tr__divisor_of(j, height, j->width[o]);                                                 \
    }                                                                                                                   \
    static double run_sum_##T(const T *x, int64_t n) {                                                                  \
        vD s[4] = {{0}};                                                                                                \
        double sum = 0;                                                                                                 \
        int64_t i = 0;                                                                                                  \
        for (; i + 4 * VN_D <= n; i += 4 * VN_D)                                                                        \
            for (int k = 0; k < 4; k++)                                                                                 \
                s[k] += wide_##T(x + i + k * VN_D);                                                                     \
        for (; i < n; i++)                                                                                              \
            sum += x[i];                                                                                                \
        return i < 4 * VN_D ? sum : sum + lanes(s[0] + s[1] + (s[2] + s[3]));                                           \
    }                                                                                                                   \
    static void avg_windows_##T(const tr__pool *j, const T *x, T *y, int64_t oy) {                                      \
        int64_t w = j->across.size;                                                                                     \
        tr__extent v = tr__extent_of(j, &j->down, oy);                                                                  \
        for (int64_t o = 0; o < j->across.out; o++) {                                                                   \
            tr__extent u = tr__extent_of(j, &j->across, o);                                                             \
            double sum = 0;                                                                                             \
            if (u.from == 0 && u.to == w)                                                                               \
                sum = run_sum_##T(x + v.from * w, (v.to - v.from) * w);                                                 \
            else                                                                                                        \
                for (int64_t iy = v.from; iy < v.to; iy++)                                                              \
                    sum += run_sum_##T(x + iy * w + u.from, u.to - u.from);                                             \
            y[o] = (T) (sum / (double) tr__divisor_of(j, v.counted, u.counted));                                        \
        }                                                                                                               \
    }                                                                                                                   \
    static void avg_pool_##T(void *env, int64_t begin, int64_t end, int thread) {                                       \
        const tr__pool *j = env;                                                                                        \
        T *padded = (T *) (j->own + thread * j->own_bytes);                                                             \
        if (!tr__sums_wide(j))                                                                                          \
            fill_##T(padded, j->run *j->across.stride, 0);                                                              \
        for (int64_t p = begin; p < end; p++)                                                                           \
            for (int64_t oy = 0; oy < j->down.out; oy++) {                                                              \
                const T *x = (const T *) j->x + p * j->down.size * j->across.size;                                      \
                T *y = (T *) j->y + (p * j->down.out + oy) * j->across.out;                                             \
                if (tr__sums_wide(j))                                                                                   \
                    avg_windows_##T(j, x, y, oy);                                                                       \
                else                                                                                                    \
                    avg_row_##T(j, x, y, oy, padded);                                                                   \
            }                                                                                                           \
    }                                                                                                                   \
    static void join_##T(const tr__pool *j, T *row, T *padded, const T *split) {                                        \
        int64_t s = j->across.stride;                                                                                   \
        if (s == 2)                                                                                                     \
            for (int64_t i = 0; i < j->run; i++) {                                                                      \
                padded[2 * i] = split[i];                                                                               \
                padded[2 * i + 1] = split[j->run + i];                                                                  \
            }                                                                                                           \
        else if (s > 2)                                                                                                 \
            for (int64_t k = 0; k < s; k++)                                                                             \
                for (int64_t i = 0; i < j->run; i++)                                                                    \
                    padded[i * s + k] = split[k * j->run + i];                                                          \
        memcpy(row, padded + j->across.padding, (size_t) columns_of(j) * sizeof *row);                                  \
        memset(row + columns_of(j), 0, (size_t) (j->across.size - columns_of(j)) * sizeof *row);                        \
    }                                                                                                                   \
    /* A row of inputs from all rows of outputs that saw it. Each element adds up the earliest output first. */         \
    static void avg_back_row_##T(const tr__pool *j, const T *d, T *y, int64_t iy, T *padded) {                          \
        const tr__pool_axis *down = &j->down, *across = &j->across;                                                     \
        int64_t room = j->run * across->stride;                                                                         \
        T *split = across->stride == 1 ? padded : padded + room;                                                        \
        memset(split, 0, (size_t) room * sizeof *split);                                                                \
        int64_t first = tr__max(0, (iy + down->padding - down->kernel) / down->stride);                                 \
        for (int64_t oy = first; oy < down->out && oy * down->stride - down->padding <= iy; oy++) {                     \
            if (oy * down->stride - down->padding + down->kernel <= iy)                                                 \
                continue;                                                                                               \
            for (int64_t kx = across->kernel - 1; kx >= 0; kx--) {                                                      \
                T *to = position_##T(j, split, kx);                                                                     \
                _Pragma("GCC ivdep") for (int64_t o = 0; o < j->lanes; o++) to[o] += d[oy * j->lanes + o];              \
            }                                                                                                           \
        }                                                                                                               \
        join_##T(j, y, padded, split);                                                                                  \
    }                                                                                                                   \
    static void avg_back_rows_##T(const tr__pool *j, const T *g, T *y, T *padded) {                                     \
        T *d = padded + 2 * j->run * j->across.stride; /* [down.out, lanes]: what a window's elements get */            \
        for (int64_t oy = 0; oy < j->down.out; oy++) {                                                                  \
            int64_t height = tr__extent_of(j, &j->down, oy).counted;                                                    \
            for (int64_t o = 0; o < j->lanes; o++)                                                                      \
                d[oy * j->lanes + o] = 0;                                                                               \
            for (int64_t o = 0; o < j->across.out; o++)                                                                 \
                d[oy * j->lanes + o] = g[oy * j->across.out + o] / (T) tr__divisor_of(j, height, j->width[o]);          \
        }                                                                                                               \
        for (int64_t iy = 0; iy < j->down.size; iy++)                                                                   \
            avg_back_row_##T(j, d, y + iy * j->across.size, iy, padded);                                                \
    }                                                                                                                   \
    static void avg_back_windows_##T(const tr__pool *j, const T *g, T *y) {                                             \
        int64_t w = j->across.size;                                                                                     \
        memset(y, 0, (size_t) (j->down.size * w) * sizeof *y);                                                          \
        for (int64_t oy = 0; oy < j->down.out; oy++)                                                                    \
            for (int64_t o = 0; o < j->across.out; o++) {                                                               \
                tr__extent v = tr__extent_of(j, &j->down, oy), u = tr__extent_of(j, &j->across, o);                     \
                T d = g[oy * j->across.out + o] / (T) tr__divisor_of(j, v.counted, u.counted);                          \
                for (int64_t iy = v.from; iy < v.to; iy++)                                                              \
                    for (int64_t ix = u.from; ix < u.to; ix++)                                                          \
                        y[iy * w + ix] += d;                                                                            \
            }                                                                                                           \
    }                                                                                                                   \
    static void avg_back_##T(void *env, int64_t begin, int64_t end, int thread) {                                       \
        const tr__pool *j = env;                                                                                        \
        for (int64_t p = begin; p < end; p++) {                                                                         \
            const T *g = (const T *) j->x + p * j->down.out * j->across.out;                                            \
            T *y = (T *) j->y + p * j->down.size * j->across.size;                                                      \
            if (tr__sums_wide(j))                                                                                       \
                avg_back_windows_##T(j, g, y);                                                                          \
            else                                                                                                        \
                avg_back_rows_##T(j, g, y, (T *) (j->own + thread * j->own_bytes));                                     \
        }                                                                                                               \
    }
AVG_POOL(float)
AVG_POOL(double)

/* ------------------------------------------------------------------------------------------ operands */

/* From the attributes of max_pool2d, whose first six are those of avg_pool2d. */
static tr__pool windows_of(const int64_t *a) {
    return (tr__pool){.down = {.kernel = a[0], .stride = a[2] ? a[2] : a[0], .padding = a[4], .dilation = 1},
                      .across = {.kernel = a[1], .stride = a[3] ? a[3] : a[1], .padding = a[5], .dilation = 1}};
}

static tr__pool averages_of(const int64_t *a) {
    tr__pool j = windows_of(a);
    j.include_pad = a[7];
    j.divisor = a[8];
    return j;
}

static void shapes_of(tr__pool *j, const tr_meta *in, const tr_meta *out) {
    int d = in->ndim - 2;
    j->down.size = in->shape[d];
    j->across.size = in->shape[d + 1];
    j->down.out = out->shape[d];
    j->across.out = out->shape[d + 1];
    j->n = j->c = 1;
    for (int k = 0; k < d; k++)
        *(k < d - 1 ? &j->n : &j->c) *= in->shape[k];
}

/* Scratch for rows of planes, as elements of 8 bytes at most. */
static tr_status make_rows(const tr_kernel_call *c, tr__pool *j, int64_t rows) {
    const tr__pool_axis *a = &j->across;
    j->lanes = whole_vectors(a->out);
    j->run = whole_vectors(j->lanes + reach_of(a) / a->stride);
    j->own_bytes = (2 * j->run * a->stride + rows * j->lanes) * 8;
    j->own = tr__scratch(c, (size_t) (c->ctx->threads * j->own_bytes));
    j->width = tr__scratch(c, (size_t) a->out * sizeof *j->width);
    if (!j->own || !j->width)
        return TR_E_NOMEM;
    for (int64_t o = 0; o < a->out; o++)
        j->width[o] = tr__extent_of(j, a, o).counted;
    return TR_OK;
}

/* Do its channels lie innermost? Where that says nothing (one channel) it is row-major. */
static bool lies_last(const tr_meta *m, tr_dtype dtype) {
    return m->dtype == dtype && m->ndim == 4 && m->shape[1] != 1 && tr__has_channels_last(m);
}

/* x is c's first operand, y its first result; index the maximum's indices or NULL. */
static bool all_lie_last(const tr_kernel_call *c, const tr_arg *index) {
    tr_dtype dtype = (tr_dtype) c->in[0].meta->dtype;
    return (dtype == TR_F32 || dtype == TR_BF16) && lies_last(c->in[0].meta, dtype) && lies_last(c->out[0].meta, dtype) &&
           (!index || lies_last(index->meta, TR_I64));
}

static tr_status run_last(const tr_kernel_call *c, tr__pool_kind kind, tr__pool *j) {
    j->x = c->in[0].data;
    j->y = c->out[0].data;
    return TR__SUFFIXED(tr__pool_last)(c, kind, j, tr__is_bf16(&c->in[0]));
}

static tr_status run_planes(const tr_kernel_call *c, tr__pool *j, tr_dtype wide, tr__range_fn fn) {
    TR_TRY(tr__dense_in(c, &c->in[0], wide, &j->x));
    TR_TRY(tr__dense_out(c, &c->out[0], wide, &j->y));
    tr__parallel(c->ctx, j->n * j->c, tr__max(1, TR__GRAIN / 4 / tr__max(1, j->down.size * j->across.size)), fn, j);
    return tr__dense_out_end(c, &c->out[0], wide, j->y);
}

/* ------------------------------------------------------------------------------------------ public */

TR__ISA_KERNEL(max_pool2d) {
    tr__pool j = windows_of(c->attrs);
    tr_dtype wide = tr__wide(c->in[0].meta->dtype);
    const tr_arg *index = &c->out[1];
    void *at;
    j.down.dilation = c->attrs[6];
    j.across.dilation = c->attrs[7];
    shapes_of(&j, c->in[0].meta, c->out[0].meta);
    if (c->out[0].meta->numel == 0)
        return TR_OK;
    if (all_lie_last(c, index)) {
        j.at = index->data;
        return run_last(c, TR__POOL_MAX, &j);
    }
    TR_TRY(make_rows(c, &j, 2));
    TR_TRY(tr__dense_out(c, index, TR_I64, &at));
    j.at = at;
    TR_TRY(run_planes(c, &j, wide, wide == TR_F32 ? max_pool_float : wide == TR_F64 ? max_pool_double : max_pool_int64_t));
    return tr__dense_out_end(c, index, TR_I64, at);
}

TR__ISA_KERNEL(max_pool2d_backward) {
    tr_dtype wide = tr__wide(c->out[0].meta->dtype);
    const tr_arg *index = &c->in[2];
    const void *from;
    tr__pool j = {0};
    shapes_of(&j, c->out[0].meta, c->in[0].meta);
    if (c->out[0].meta->numel == 0)
        return TR_OK;
    if (all_lie_last(c, index)) {
        j.from = index->data;
        return run_last(c, TR__POOL_MAX_BACK, &j);
    }
    TR_TRY(tr__dense_in(c, index, TR_I64, &from));
    j.from = from;
    return run_planes(c, &j, wide, wide == TR_F32 ? max_back_float : wide == TR_F64 ? max_back_double : max_back_int64_t);
}

static tr_status average(const tr_kernel_call *c, tr__pool j, bool back) {
    static const tr__range_fn fn[2][2] = {{avg_pool_float, avg_pool_double}, {avg_back_float, avg_back_double}};
    tr_dtype wide = c->out[0].meta->dtype == TR_F64 ? TR_F64 : TR_F32;
    const tr_meta *in = c->in[0].meta, *out = c->out[0].meta;
    shapes_of(&j, back ? out : in, back ? in : out);
    if (out->numel == 0)
        return TR_OK;
    if (all_lie_last(c, NULL))
        return run_last(c, back ? TR__POOL_AVG_BACK : TR__POOL_AVG, &j);
    if (!tr__sums_wide(&j))
        TR_TRY(make_rows(c, &j, back ? j.down.out : 1));
    return run_planes(c, &j, wide, fn[back][wide == TR_F64]);
}

TR__ISA_KERNEL(avg_pool2d) {
    return average(c, averages_of(c->attrs), false);
}
TR__ISA_KERNEL(avg_pool2d_backward) {
    return average(c, averages_of(c->attrs), true);
}
TR__ISA_KERNEL(adaptive_avg_pool2d) {
    return average(c, (tr__pool){.adaptive = true}, false);
}
TR__ISA_KERNEL(adaptive_avg_pool2d_backward) {
    return average(c, (tr__pool){.adaptive = true}, true);
}
