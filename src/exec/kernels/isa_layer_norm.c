/* isa_layer_norm.c - layer normalisation, forward (after an addition, if wanted) and backward.
 *
 * The input is [rows, n]. Sums are taken in double, of deviations from a row's first element. Backward goes once over the
 * data, a few rows at a time: their sums, their gradient, and their part of the weight's and bias's gradients, kept per chunk
 * of rows; chunks are cut by size alone and added up in order. */
#include "exec/kernels/kernels.h"
#include "exec/kernels/ew_math.h"
#include "exec/kernels/isa_norm.h"
#include "exec/kernels/isa_wide.h"

enum {
    STRIP = 4,                /* rows at a time */
    BLOCK = 1024,             /* elements of a row's partial sums */
    MAX_CHUNKS = 128,
    MAX_SUMS = 4 << 20,       /* elements of all chunks' sums */
};

typedef struct job {
    int64_t rows, n;
    const void *x, *other, *g;
    void *y, *sum;      /* sum: x + other, or NULL */
    const void *w, *b;  /* [n] of the data's type, or NULL */
    double *mean, *inv; /* [rows] */
    double eps;
    int64_t chunk;
    double *sums;       /* backward: [chunks, 2, n] */
} job;

#define LAYER_NORM(T, V, VN)                                                                                                      \
    static void statistics_##T(const job *j, int64_t r, const T *x) {                                                      \
        double m = (double) x[0], s = 0, q = 0;                                                                            \
        vD s0 = {0}, q0 = s0, s1 = s0, q1 = s0, d;                                                                         \
        int64_t i = 0;                                                                                                     \
        for (; i + 2 * VN_D <= j->n; i += 2 * VN_D) {                                                                      \
            d = wide_##T(x + i) - m, s0 += d, q0 += d * d;                                                                 \
            d = wide_##T(x + i + VN_D) - m, s1 += d, q1 += d * d;                                                          \
        }                                                                                                                  \
        for (; i < j->n; i++) {                                                                                            \
            double e = x[i] - m;                                                                                           \
            s += e;                                                                                                        \
            q += e * e;                                                                                                    \
        }                                                                                                                  \
        double off = (s + lanes(s0 + s1)) / (double) j->n, var = (q + lanes(q0 + q1)) / (double) j->n - off * off;         \
        j->mean[r] = m + off;                                                                                              \
        j->inv[r] = 1 / sqrt((var < 0 ? 0 : var) + j->eps);                                                                \
    }                                                                                                                      \
    static void forward_##T(void *env, int64_t begin, int64_t end, int thread) {                                           \
        const job *j = env;                                                                                                \
        const T *w = j->w, *b = j->b;                                                                                      \
        for (int64_t r = begin; r < end; r++) {                                                                            \
            const T *x = (const T *) j->x + r * j->n;                                                                      \
            T *y = (T *) j->y + r * j->n;                                                                                  \
            if (j->sum) {                                                                                                  \
                const T *o = (const T *) j->other + r * j->n;                                                              \
                T *s = (T *) j->sum + r * j->n;                                                                            \
                _Pragma("GCC ivdep") for (int64_t k = 0; k < j->n; k++) s[k] = x[k] + o[k];                                \
                x = s;                                                                                                     \
            }                                                                                                              \
            statistics_##T(j, r, x);                                                                                       \
            T m = (T) j->mean[r], i = (T) j->inv[r];                                                                       \
            if (w && b) {                                                                                                  \
                _Pragma("GCC ivdep") for (int64_t k = 0; k < j->n; k++) y[k] = (x[k] - m) * i * w[k] + b[k];               \
            } else {                                                                                                       \
                for (int64_t k = 0; k < j->n; k++)                                                                         \
                    y[k] = (x[k] - m) * i * (w ? w[k] : 1) + (b ? b[k] : 0);                                               \
            }                                                                                                              \
        }                                                                                                                  \
    }                                                                                                                      \
    /* dx of a row */                                                                                                      \
    static void gradient_##T(const job *j, int64_t r) {                                                                    \
        const T *x = (const T *) j->x + r * j->n, *g = (const T *) j->g + r * j->n, *w = j->w;                             \
        T *y = (T *) j->y + r * j->n;                                                                                      \
        T m = (T) j->mean[r], inv = (T) j->inv[r];                                                                         \
        double s = 0, q = 0;                                                                                               \
        int64_t i = 0;                                                                                                     \
        while (i + VN <= j->n) { /* blocks as T, their sum in double: a row's order never changes */                       \
            V s0 = {0}, q0 = s0, v, u;                                                                                     \
            for (int64_t end = tr__min(j->n, i + BLOCK); i + VN <= end; i += VN) {                                         \
                memcpy(&v, g + i, sizeof v);                                                                               \
                if (w) {                                                                                                   \
                    memcpy(&u, w + i, sizeof u);                                                                           \
                    v *= u;                                                                                                \
                }                                                                                                          \
                memcpy(&u, x + i, sizeof u);                                                                               \
                s0 += v;                                                                                                   \
                q0 += v * ((u - m) * inv);                                                                                 \
            }                                                                                                              \
            s += lanes(wide_##V(s0));                                                                                      \
            q += lanes(wide_##V(q0));                                                                                      \
        }                                                                                                                  \
        for (; i < j->n; i++) {                                                                                            \
            T e = g[i] * (w ? w[i] : 1);                                                                                   \
            s += e;                                                                                                        \
            q += e * ((x[i] - m) * inv);                                                                                   \
        }                                                                                                                  \
        T a = (T) (s / (double) j->n), b = (T) (q / (double) j->n);                                                        \
        if (w) {                                                                                                           \
            _Pragma("GCC ivdep") for (int64_t k = 0; k < j->n; k++) y[k] = inv * (g[k] * w[k] - a - (x[k] - m) * inv * b); \
        } else {                                                                                                           \
            _Pragma("GCC ivdep") for (int64_t k = 0; k < j->n; k++) y[k] = inv * (g[k] - a - (x[k] - m) * inv * b);       \
        }                                                                                                                  \
    }                                                                                                                      \
    /* what some rows add to d weight and d bias: a strip's part as T, their sum in double */                              \
    static void weights_##T(const job *j, int64_t r, int64_t rows, double *dw, double *db) {                               \
        const T *x = (const T *) j->x + r * j->n, *g = (const T *) j->g + r * j->n;                                        \
        int64_t n = j->n, i = 0;                                                                                           \
        T m[STRIP], inv[STRIP];                                                                                            \
        for (int64_t k = 0; k < rows; k++) {                                                                               \
            m[k] = (T) j->mean[r + k];                                                                                     \
            inv[k] = (T) j->inv[r + k];                                                                                    \
        }                                                                                                                  \
        for (; rows == STRIP && i + VN <= n; i += VN) {                                                                    \
            V a = {0}, b = a, vg, vx;                                                                                      \
            for (int64_t k = 0; k < STRIP; k++) {                                                                          \
                memcpy(&vg, g + k * n + i, sizeof vg);                                                                     \
                memcpy(&vx, x + k * n + i, sizeof vx);                                                                     \
                b += vg;                                                                                                   \
                a += vg * ((vx - m[k]) * inv[k]);                                                                          \
            }                                                                                                              \
            add_wide_##V(dw + i, a);                                                                                       \
            add_wide_##V(db + i, b);                                                                                       \
        }                                                                                                                  \
        for (int64_t k = 0; k < rows; k++)                                                                                 \
            for (int64_t c = i; c < n; c++) {                                                                              \
                T v = g[k * n + c];                                                                                        \
                db[c] += v;                                                                                                \
                dw[c] += v * ((x[k * n + c] - m[k]) * inv[k]);                                                             \
            }                                                                                                              \
    }                                                                                                                      \
    static void backward_##T(void *env, int64_t begin, int64_t end, int thread) {                                          \
        const job *j = env;                                                                                                \
        for (int64_t chunk = begin; chunk < end; chunk++) {                                                                \
            double *dw = j->sums + 2 * j->n * chunk, *db = dw + j->n;                                                      \
            int64_t last = tr__min(j->rows, (chunk + 1) * j->chunk);                                                       \
            memset(dw, 0, (size_t) (2 * j->n) * sizeof *dw);                                                               \
            for (int64_t r = chunk * j->chunk; r < last; r += STRIP) {                                                     \
                int64_t rows = tr__min(STRIP, last - r);                                                                   \
                weights_##T(j, r, rows, dw, db); /* first: dx may lie where g does */                                      \
                for (int64_t k = r; k < r + rows; k++)                                                                     \
                    gradient_##T(j, k);                                                                                    \
            }                                                                                                              \
        }                                                                                                                  \
    }
LAYER_NORM(float, vF, VN_F)
LAYER_NORM(double, vD, VN_D)

static void rows_of(job *j, const tr_meta *m, int64_t normalized) {
    j->rows = j->n = 1;
    for (int d = 0; d < m->ndim; d++)
        *(d < m->ndim - normalized ? &j->rows : &j->n) *= m->shape[d];
}

static tr_status forward(const tr_kernel_call *c, const tr_layer_norm_forward *f) {
    tr_dtype wide = tr__wide_float((tr_dtype) f->x.meta->dtype);
    job j = {.eps = f->eps};
    rows_of(&j, f->x.meta, f->normalized_ndim);
    TR_TRY(tr__dense_in(c, &f->x, wide, &j.x));
    TR_TRY(tr__dense_out(c, &f->y, wide, &j.y));
    if (!tr__absent(&f->other)) {
        TR_TRY(tr__dense_in(c, &f->other, wide, &j.other));
        TR_TRY(tr__dense_out(c, &f->sum, wide, &j.sum));
    }
    if (!tr__absent(&f->weight))
        TR_TRY(tr__dense_in(c, &f->weight, wide, &j.w));
    if (!tr__absent(&f->bias))
        TR_TRY(tr__dense_in(c, &f->bias, wide, &j.b));
    TR_TRY(tr__doubles(c, j.rows, &j.mean));
    TR_TRY(tr__doubles(c, j.rows, &j.inv));
    if (j.n)
        tr__parallel(c->ctx, j.rows, tr__max(1, TR__GRAIN / j.n), wide == TR_F32 ? forward_float : forward_double, &j);
    else
        for (int64_t r = 0; r < j.rows; r++)
            j.mean[r] = j.inv[r] = (double) NAN;
    TR_TRY(tr__write_doubles(c, &f->mean, j.mean));
    TR_TRY(tr__write_doubles(c, &f->inv, j.inv));
    if (j.sum)
        TR_TRY(tr__dense_out_end(c, &f->sum, wide, j.sum));
    return tr__dense_out_end(c, &f->y, wide, j.y);
}

TR__ISA_KERNEL(layer_norm) {
    tr_layer_norm_forward f = {.x = c->in[0],
                               .weight = c->in[1],
                               .bias = c->in[2],
                               .eps = tr_arg_double(&c->in[3]),
                               .normalized_ndim = (int) c->attrs[0],
                               .y = c->out[0],
                               .mean = c->out[1],
                               .inv = c->out[2]};
    return forward(c, &f);
}

tr_status TR__SUFFIXED(tr__layer_norm_forward)(const tr_layer_norm_forward *f, tr_kernel_ctx *ctx) {
    return forward(&(tr_kernel_call){.op = TR_OP_layer_norm, .ctx = ctx}, f);
}

TR__ISA_KERNEL(layer_norm_backward) {
    const tr_arg *in = &c->in[1];
    tr_dtype wide = tr__wide_float((tr_dtype) in->meta->dtype);
    const double *mean, *inv;
    double *none = NULL;
    job j = {0};
    rows_of(&j, in->meta, c->attrs[0]);
    TR_TRY(tr__dense_in(c, &c->in[0], wide, &j.g));
    TR_TRY(tr__dense_in(c, in, wide, &j.x));
    TR_TRY(tr__dense_out(c, &c->out[0], wide, &j.y));
    if (!tr__absent(&c->in[2]))
        TR_TRY(tr__dense_in(c, &c->in[2], wide, &j.w));
    TR_TRY(tr__read_doubles(c, &c->in[3], &mean));
    TR_TRY(tr__read_doubles(c, &c->in[4], &inv));
    j.mean = (double *) mean;
    j.inv = (double *) inv;
    if (j.n == 0 || j.rows == 0) {
        TR_TRY(tr__doubles(c, j.n, &none));
        TR_TRY(tr__write_doubles(c, &c->out[1], none));
        return tr__write_doubles(c, &c->out[2], none);
    }
    int64_t most = tr__max(1, tr__min(MAX_CHUNKS, MAX_SUMS / j.n));
    j.chunk = tr__max(tr__max(STRIP, TR__GRAIN / j.n), (j.rows + most - 1) / most);
    j.chunk = (j.chunk + STRIP - 1) / STRIP * STRIP;
    int64_t chunks = (j.rows + j.chunk - 1) / j.chunk;
    j.sums = tr__scratch(c, (size_t) (2 * j.n * chunks) * sizeof(double));
    if (!j.sums)
        return TR_E_NOMEM;
    tr__parallel(c->ctx, chunks, 1, wide == TR_F32 ? backward_float : backward_double, &j);
    for (int64_t i = 1; i < chunks; i++)
        for (int64_t k = 0; k < 2 * j.n; k++)
            j.sums[k] += j.sums[2 * j.n * i + k];
    TR_TRY(tr__write_doubles(c, &c->out[1], j.sums));
    TR_TRY(tr__write_doubles(c, &c->out[2], j.sums + j.n));
    return tr__dense_out_end(c, &c->out[0], wide, j.y);
}
