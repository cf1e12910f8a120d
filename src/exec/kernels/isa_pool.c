/* isa_pool.c - pooling over the last two dimensions, forward and backward; one plane after the other, planes in parallel. */
#include "exec/kernels/kernels.h"

#include <math.h>

typedef struct job {
    int64_t planes, h, w, oh, ow;
    int64_t kh, kw, sh, sw, ph, pw, dh, dw;
    int64_t divisor;
    bool include_pad, adaptive;
    const void *x;
    const int64_t *from; /* indices, read */
    void *y;
    int64_t *at; /* indices, written */
    void *rows;  /* a row of indices per thread */
} job;

static void planes_of(job *j, const tr_meta *in, const tr_meta *out) {
    j->h = in->shape[in->ndim - 2];
    j->w = in->shape[in->ndim - 1];
    j->oh = out->shape[out->ndim - 2];
    j->ow = out->shape[out->ndim - 1];
    j->planes = 1;
    for (int d = 0; d < in->ndim - 2; d++)
        j->planes *= in->shape[d];
}

/* Which outputs of a row have input column ox * s - p + k * d inside 0 .. w-1? */
static void valid_range(int64_t k, int64_t s, int64_t p, int64_t d, int64_t w, int64_t ow, int64_t *from, int64_t *to) {
    int64_t shift = p - k * d; // column = ox * s - shift
    *from = shift > 0 ? (shift + s - 1) / s : 0;
    *to = w + shift > 0 ? tr__min(ow, (w + shift - 1) / s + 1) : 0;
}

/* One row of outputs at a time: each position of the window is a loop over the row, which vectorises. The first greatest in
 * row-major order of the window wins, and NaN wins over all. T is the element, I an integer of its size. */
#define MAX_POOL(T, I, LOWEST)                                                                                               \
    static inline __attribute__((always_inline)) void max_step_##T(T *y, I *at, const T *x, int64_t s, int64_t n, I first) { \
        _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) {                                                               \
            T v = x[i * s];                                                                                                  \
            bool take = v > y[i] || v != v;                                                                                  \
            y[i] = take ? v : y[i];                                                                                          \
            at[i] = take ? first + (I) (i * s) : at[i];                                                                      \
        }                                                                                                                    \
    }                                                                                                                        \
    static void max_row_##T(const job *j, const T *x, T *y, int64_t *where, int64_t oy, I *at) {                             \
        int64_t y0 = oy * j->sh - j->ph;                                                                                     \
        int64_t first_y = y0 < 0 ? y0 + (-y0 + j->dh - 1) / j->dh * j->dh : y0;                                              \
        for (int64_t ox = 0; ox < j->ow; ox++) {                                                                             \
            int64_t x0 = ox * j->sw - j->pw;                                                                                 \
            y[ox] = LOWEST;                                                                                                  \
            at[ox] = (I) (first_y * j->w + (x0 < 0 ? x0 + (-x0 + j->dw - 1) / j->dw * j->dw : x0));                          \
        }                                                                                                                    \
        for (int64_t ky = 0; ky < j->kh; ky++) {                                                                             \
            int64_t iy = y0 + ky * j->dh;                                                                                    \
            if (iy < 0 || iy >= j->h)                                                                                        \
                continue;                                                                                                    \
            for (int64_t kx = 0; kx < j->kw; kx++) {                                                                         \
                int64_t from, to;                                                                                            \
                valid_range(kx, j->sw, j->pw, j->dw, j->w, j->ow, &from, &to);                                               \
                int64_t column = from * j->sw - j->pw + kx * j->dw, first = iy * j->w + column;                              \
                if (from >= to)                                                                                              \
                    continue;                                                                                                \
                if (j->sw == 1)                                                                                              \
                    max_step_##T(y + from, at + from, x + first, 1, to - from, (I) first);                                   \
                else if (j->sw == 2)                                                                                         \
                    max_step_##T(y + from, at + from, x + first, 2, to - from, (I) first);                                   \
                else                                                                                                         \
                    max_step_##T(y + from, at + from, x + first, j->sw, to - from, (I) first);                               \
            }                                                                                                                \
        }                                                                                                                    \
        for (int64_t ox = 0; ox < j->ow; ox++)                                                                               \
            where[ox] = at[ox];                                                                                              \
    }                                                                                                                        \
    static void max_pool_##T(void *env, int64_t begin, int64_t end, int thread) {                                            \
        const job *j = env;                                                                                                  \
        for (int64_t p = begin; p < end; p++)                                                                                \
            for (int64_t oy = 0; oy < j->oh; oy++) {                                                                         \
                int64_t row = (p * j->oh + oy) * j->ow;                                                                      \
                max_row_##T(j, (const T *) j->x + p * j->h * j->w, (T *) j->y + row, j->at + row, oy,                        \
                            (I *) j->rows + thread * j->ow);                                                                 \
            }                                                                                                                \
    }                                                                                                                        \
    /* x is the gradient, [planes, oh, ow]; y, [planes, h, w] */                                                             \
    static void max_pool_backward_##T(void *env, int64_t begin, int64_t end, int thread) {                                   \
        const job *j = env;                                                                                                  \
        for (int64_t p = begin; p < end; p++) {                                                                              \
            const T *g = (const T *) j->x + p * j->oh * j->ow;                                                               \
            const int64_t *from = j->from + p * j->oh * j->ow;                                                               \
            T *y = (T *) j->y + p * j->h * j->w;                                                                             \
            memset(y, 0, (size_t) (j->h * j->w) * sizeof *y);                                                                \
            for (int64_t i = 0; i < j->oh * j->ow; i++)                                                                      \
                if (from[i] >= 0 && from[i] < j->h * j->w)                                                                   \
                    y[from[i]] += g[i];                                                                                      \
        }                                                                                                                    \
    }
MAX_POOL(float, int32_t, -INFINITY)
MAX_POOL(double, int64_t, -INFINITY)
MAX_POOL(int64_t, int64_t, INT64_MIN)

/* The window of an output element, cut to the input, and what its sum is divided by. */
typedef struct window {
    int64_t y0, y1, x0, x1;
    double divisor;
} window;

static window window_of(const job *j, int64_t oy, int64_t ox) {
    window w;
    if (j->adaptive) {
        w.y0 = oy * j->h / j->oh;
        w.y1 = ((oy + 1) * j->h + j->oh - 1) / j->oh;
        w.x0 = ox * j->w / j->ow;
        w.x1 = ((ox + 1) * j->w + j->ow - 1) / j->ow;
        w.divisor = (double) ((w.y1 - w.y0) * (w.x1 - w.x0));
        return w;
    }
    w.y0 = oy * j->sh - j->ph;
    w.x0 = ox * j->sw - j->pw;
    w.y1 = tr__min(w.y0 + j->kh, j->h + j->ph);
    w.x1 = tr__min(w.x0 + j->kw, j->w + j->pw);
    int64_t padded = (w.y1 - w.y0) * (w.x1 - w.x0);
    w.y0 = tr__max(w.y0, 0);
    w.x0 = tr__max(w.x0, 0);
    w.y1 = tr__min(w.y1, j->h);
    w.x1 = tr__min(w.x1, j->w);
    int64_t inside = (w.y1 - w.y0) * (w.x1 - w.x0);
    w.divisor = (double) (j->divisor ? j->divisor : j->include_pad ? padded : inside);
    return w;
}

#define AVG_POOL(T)                                                                                          \
    /* long rows in lanes, short ones in order */                                                            \
    static T row_sum_##T(const T *x, int64_t n) {                                                            \
        T lane[16] = {0}, sum = 0;                                                                           \
        int64_t i = 0;                                                                                       \
        for (; i + 16 <= n; i += 16)                                                                         \
            for (int k = 0; k < 16; k++)                                                                     \
                lane[k] += x[i + k];                                                                         \
        if (i)                                                                                               \
            for (int k = 0; k < 16; k++)                                                                     \
                sum += lane[k];                                                                              \
        for (; i < n; i++)                                                                                   \
            sum += x[i];                                                                                     \
        return sum;                                                                                          \
    }                                                                                                        \
    static void avg_windows_##T(const job *j, const T *x, T *y, int64_t oy) {                                \
        for (int64_t ox = 0; ox < j->ow; ox++) {                                                             \
            window w = window_of(j, oy, ox);                                                                 \
            T sum = 0;                                                                                       \
            bool whole = w.x0 == 0 && w.x1 == j->w && w.y0 < w.y1;                                           \
            if (whole)                                                                                       \
                sum = row_sum_##T(x + w.y0 * j->w, (w.y1 - w.y0) * j->w);                                    \
            else                                                                                             \
                for (int64_t iy = w.y0; iy < w.y1; iy++)                                                     \
                    sum += row_sum_##T(x + iy * j->w + w.x0, w.x1 - w.x0);                                   \
            bool empty = w.y0 >= w.y1 || w.x0 >= w.x1;                                                       \
            y[ox] = empty ? 0 : sum / (T) w.divisor;                                                         \
        }                                                                                                    \
    }                                                                                                        \
    static inline __attribute__((always_inline)) void add_step_##T(T *y, const T *x, int64_t s, int64_t n) { \
        _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) y[i] += x[i * s];                               \
    }                                                                                                        \
    /* a row of outputs, position after position of the window, as for the maximum */                        \
    static void avg_row_##T(const job *j, const T *x, T *y, int64_t oy) {                                    \
        int64_t y0 = oy * j->sh - j->ph;                                                                     \
        memset(y, 0, (size_t) j->ow * sizeof *y);                                                            \
        for (int64_t ky = 0; ky < j->kh; ky++)                                                               \
            for (int64_t kx = 0; kx < j->kw; kx++) {                                                         \
                int64_t from, to, iy = y0 + ky;                                                              \
                valid_range(kx, j->sw, j->pw, 1, j->w, j->ow, &from, &to);                                   \
                const T *start = x + iy * j->w + from * j->sw - j->pw + kx;                                  \
                if (iy < 0 || iy >= j->h || from >= to)                                                      \
                    continue;                                                                                \
                if (j->sw == 1)                                                                              \
                    add_step_##T(y + from, start, 1, to - from);                                             \
                else if (j->sw == 2)                                                                         \
                    add_step_##T(y + from, start, 2, to - from);                                             \
                else                                                                                         \
                    add_step_##T(y + from, start, j->sw, to - from);                                         \
            }                                                                                                \
        for (int64_t ox = 0; ox < j->ow; ox++) {                                                             \
            window w = window_of(j, oy, ox);                                                                 \
            y[ox] = w.y0 >= w.y1 || w.x0 >= w.x1 ? 0 : y[ox] / (T) w.divisor;                                \
        }                                                                                                    \
    }                                                                                                        \
    static void avg_pool_##T(void *env, int64_t begin, int64_t end, int thread) {                            \
        const job *j = env;                                                                                  \
        bool small = !j->adaptive && j->kh * j->kw <= 64;                                                    \
        for (int64_t p = begin; p < end; p++)                                                                \
            for (int64_t oy = 0; oy < j->oh; oy++)                                                           \
                (small ? avg_row_##T : avg_windows_##T)(j, (const T *) j->x + p * j->h * j->w,               \
                                                        (T *) j->y + (p * j->oh + oy) * j->ow, oy);          \
    }                                                                                                        \
    static void avg_pool_backward_##T(void *env, int64_t begin, int64_t end, int thread) {                   \
        const job *j = env;                                                                                  \
        for (int64_t p = begin; p < end; p++) {                                                              \
            const T *g = (const T *) j->x + p * j->oh * j->ow;                                               \
            T *y = (T *) j->y + p * j->h * j->w;                                                             \
            memset(y, 0, (size_t) (j->h * j->w) * sizeof *y);                                                \
            for (int64_t oy = 0; oy < j->oh; oy++)                                                           \
                for (int64_t ox = 0; ox < j->ow; ox++) {                                                     \
                    window w = window_of(j, oy, ox);                                                         \
                    T d = g[oy * j->ow + ox] / (T) w.divisor;                                                \
                    for (int64_t iy = w.y0; iy < w.y1; iy++)                                                 \
                        for (int64_t ix = w.x0; ix < w.x1; ix++)                                             \
                            y[iy * j->w + ix] += d;                                                          \
                }                                                                                            \
        }                                                                                                    \
    }
AVG_POOL(float)
AVG_POOL(double)

static int64_t plane_grain(const job *j) {
    return tr__max(1, TR__GRAIN / 4 / tr__max(1, j->h * j->w));
}

TR__ISA_KERNEL(max_pool2d) {
    const int64_t *a = c->attrs;
    job j = {.kh = a[0],
             .kw = a[1],
             .sh = a[2] ? a[2] : a[0],
             .sw = a[3] ? a[3] : a[1],
             .ph = a[4],
             .pw = a[5],
             .dh = a[6],
             .dw = a[7]};
    tr_dtype wide = tr__wide(c->in[0].meta->dtype);
    void *at;
    planes_of(&j, c->in[0].meta, c->out[0].meta);
    if (c->out[0].meta->numel == 0)
        return TR_OK;
    TR_TRY(tr__dense_in(c, &c->in[0], wide, &j.x));
    TR_TRY(tr__dense_out(c, &c->out[0], wide, &j.y));
    TR_TRY(tr__dense_out(c, &c->out[1], TR_I64, &at));
    j.at = at;
    j.rows = tr__scratch(c, (size_t) (c->ctx->threads * j.ow) * sizeof(int64_t));
    if (!j.rows)
        return TR_E_NOMEM;
    tr__parallel(c->ctx, j.planes, plane_grain(&j),
                 wide == TR_F32   ? max_pool_float
                 : wide == TR_F64 ? max_pool_double
                                  : max_pool_int64_t,
                 &j);
    TR_TRY(tr__dense_out_end(c, &c->out[0], wide, j.y));
    return tr__dense_out_end(c, &c->out[1], TR_I64, at);
}

TR__ISA_KERNEL(max_pool2d_backward) {
    tr_dtype wide = tr__wide(c->out[0].meta->dtype);
    const void *from;
    job j = {0};
    planes_of(&j, c->out[0].meta, c->in[0].meta);
    if (c->out[0].meta->numel == 0)
        return TR_OK;
    TR_TRY(tr__dense_in(c, &c->in[0], wide, &j.x));
    TR_TRY(tr__dense_in(c, &c->in[2], TR_I64, &from));
    TR_TRY(tr__dense_out(c, &c->out[0], wide, &j.y));
    j.from = from;
    tr__parallel(c->ctx, j.planes, plane_grain(&j),
                 wide == TR_F32   ? max_pool_backward_float
                 : wide == TR_F64 ? max_pool_backward_double
                                  : max_pool_backward_int64_t,
                 &j);
    return tr__dense_out_end(c, &c->out[0], wide, j.y);
}

/* x is read, y written, both of any layout; planes and windows are set. */
static tr_status run_avg(const tr_kernel_call *c, job *j, tr__range_fn f, tr__range_fn d) {
    const tr_arg *out = &c->out[0];
    tr_dtype wide = out->meta->dtype == TR_F64 ? TR_F64 : TR_F32;
    if (out->meta->numel == 0)
        return TR_OK;
    TR_TRY(tr__dense_in(c, &c->in[0], wide, &j->x));
    TR_TRY(tr__dense_out(c, out, wide, &j->y));
    tr__parallel(c->ctx, j->planes, plane_grain(j), wide == TR_F32 ? f : d, j);
    return tr__dense_out_end(c, out, wide, j->y);
}

static job avg_job(const int64_t *a) {
    return (job){.kh = a[0],
                 .kw = a[1],
                 .sh = a[2] ? a[2] : a[0],
                 .sw = a[3] ? a[3] : a[1],
                 .ph = a[4],
                 .pw = a[5],
                 .include_pad = a[7],
                 .divisor = a[8]};
}

TR__ISA_KERNEL(avg_pool2d) {
    job j = avg_job(c->attrs);
    planes_of(&j, c->in[0].meta, c->out[0].meta);
    return run_avg(c, &j, avg_pool_float, avg_pool_double);
}
TR__ISA_KERNEL(avg_pool2d_backward) {
    job j = avg_job(c->attrs);
    planes_of(&j, c->out[0].meta, c->in[0].meta);
    return run_avg(c, &j, avg_pool_backward_float, avg_pool_backward_double);
}
TR__ISA_KERNEL(adaptive_avg_pool2d) {
    job j = {.adaptive = true};
    planes_of(&j, c->in[0].meta, c->out[0].meta);
    return run_avg(c, &j, avg_pool_float, avg_pool_double);
}
TR__ISA_KERNEL(adaptive_avg_pool2d_backward) {
    job j = {.adaptive = true};
    planes_of(&j, c->out[0].meta, c->in[0].meta);
    return run_avg(c, &j, avg_pool_backward_float, avg_pool_backward_double);
}
