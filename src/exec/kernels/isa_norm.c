/* isa_norm.c - batch and layer normalisation, forward and backward.
 *
 * Statistics take two passes (the mean, then squared deviations from it), sums in vector lanes and double, so that a large
 * mean costs no digits. Batch norm sees [N, C, S], layer norm [rows, n]. */
#include "exec/kernels/kernels.h"
#include "exec/kernels/ew_math.h"

typedef struct job {
    int64_t n, c, s; /* [N, C, S]; layer norm: n rows of s */
    const void *x, *g;
    void *y;
    const double *w, *b; /* per channel or per column; NULL: 1, 0 */
    double *mean, *inv;  /* per channel or row */
    double *var;
    double *dw, *db;
    double eps;
    bool training;
} job;

#define SUMS(T, V, VN)                                                                      \
    static double lanes_##T(V s) {                                                          \
        double t = 0;                                                                       \
        for (int k = 0; k < VN; k++)                                                        \
            t += s[k];                                                                      \
        return t;                                                                           \
    }                                                                                       \
    /* sum of x, or of (x - m)^2 */                                                         \
    static double sum_##T(const T *x, int64_t n, bool squares, T m) {                       \
        double total = 0;                                                                   \
        while (n > 0) {                                                                     \
            int64_t b = n < 1024 ? n : 1024, i = 0;                                         \
            V s0 = {0}, s1 = {0}, v0, v1;                                                   \
            if (squares) {                                                                  \
                for (; i + 2 * VN <= b; i += 2 * VN) {                                      \
                    memcpy(&v0, x + i, sizeof v0);                                          \
                    memcpy(&v1, x + i + VN, sizeof v1);                                     \
                    s0 += (v0 - m) * (v0 - m);                                              \
                    s1 += (v1 - m) * (v1 - m);                                              \
                }                                                                           \
                for (; i < b; i++)                                                          \
                    total += (x[i] - m) * (x[i] - m);                                       \
            } else {                                                                        \
                for (; i + 2 * VN <= b; i += 2 * VN) {                                      \
                    memcpy(&v0, x + i, sizeof v0);                                          \
                    memcpy(&v1, x + i + VN, sizeof v1);                                     \
                    s0 += v0;                                                               \
                    s1 += v1;                                                               \
                }                                                                           \
                for (; i < b; i++)                                                          \
                    total += x[i];                                                          \
            }                                                                               \
            total += lanes_##T(s0 + s1);                                                    \
            x += b;                                                                         \
            n -= b;                                                                         \
        }                                                                                   \
        return total;                                                                       \
    }                                                                                       \
    /* sums of g * w and of g * w * (x - m); w NULL: 1 */                                   \
    static void dot_##T(const T *g, const T *x, int64_t n, T m, double *sum, double *dot) { \
        while (n > 0) {                                                                     \
            int64_t b = n < 1024 ? n : 1024, i = 0;                                         \
            V s0 = {0}, d0 = {0}, vg, vx;                                                   \
            for (; i + VN <= b; i += VN) {                                                  \
                memcpy(&vg, g + i, sizeof vg);                                              \
                memcpy(&vx, x + i, sizeof vx);                                              \
                s0 += vg;                                                                   \
                d0 += vg * (vx - m);                                                        \
            }                                                                               \
            for (; i < b; i++) {                                                            \
                *sum += g[i];                                                               \
                *dot += g[i] * (x[i] - m);                                                  \
            }                                                                               \
            *sum += lanes_##T(s0);                                                          \
            *dot += lanes_##T(d0);                                                          \
            x += b;                                                                         \
            g += b;                                                                         \
            n -= b;                                                                         \
        }                                                                                   \
    }
SUMS(float, vF, VN_F)
SUMS(double, vD, VN_D)

/* ------------------------------------------------------------------------------------------ batch norm */

#define BATCH_NORM(T)                                                                                                     \
    static void bn_stats_##T(const job *j, int64_t c) {                                                                   \
        const T *x = (const T *) j->x + c * j->s;                                                                         \
        double sum = 0, squares = 0, count = (double) (j->n * j->s);                                                      \
        for (int64_t i = 0; i < j->n; i++)                                                                                \
            sum += sum_##T(x + i * j->c * j->s, j->s, false, 0);                                                          \
        double mean = sum / count;                                                                                        \
        for (int64_t i = 0; i < j->n; i++)                                                                                \
            squares += sum_##T(x + i * j->c * j->s, j->s, true, (T) mean);                                                \
        /* the mean was rounded to T in the second pass; put the rest back */                                             \
        double rest = mean - (double) (T) mean;                                                                           \
        j->mean[c] = mean;                                                                                                \
        j->var[c] = squares / count - rest * rest;                                                                        \
        j->inv[c] = 1 / sqrt(j->var[c] + j->eps);                                                                         \
    }                                                                                                                     \
    static void bn_forward_##T(void *env, int64_t begin, int64_t end, int thread) {                                       \
        const job *j = env;                                                                                               \
        for (int64_t c = begin; c < end; c++) {                                                                           \
            if (j->training)                                                                                              \
                bn_stats_##T(j, c);                                                                                       \
            double scale = j->inv[c] * (j->w ? j->w[c] : 1);                                                              \
            T a = (T) scale, b = (T) ((j->b ? j->b[c] : 0) - j->mean[c] * scale);                                         \
            for (int64_t i = 0; i < j->n; i++) {                                                                          \
                const T *x = (const T *) j->x + (i * j->c + c) * j->s;                                                    \
                T *y = (T *) j->y + (i * j->c + c) * j->s;                                                                \
                _Pragma("GCC ivdep") for (int64_t k = 0; k < j->s; k++) y[k] = x[k] * a + b;                              \
            }                                                                                                             \
        }                                                                                                                 \
    }                                                                                                                     \
    static void bn_backward_##T(void *env, int64_t begin, int64_t end, int thread) {                                      \
        const job *j = env;                                                                                               \
        double count = (double) (j->n * j->s);                                                                            \
        for (int64_t c = begin; c < end; c++) {                                                                           \
            double sum = 0, dot = 0, inv = j->inv[c], w = j->w ? j->w[c] : 1;                                             \
            T m = (T) j->mean[c];                                                                                         \
            for (int64_t i = 0; i < j->n; i++) {                                                                          \
                int64_t at = (i * j->c + c) * j->s;                                                                       \
                dot_##T((const T *) j->g + at, (const T *) j->x + at, j->s, m, &sum, &dot);                               \
            }                                                                                                             \
            dot -= sum * (j->mean[c] - (double) m);                                                                       \
            j->db[c] = sum;                                                                                               \
            j->dw[c] = dot * inv;                                                                                         \
            T gm = (T) (sum / count), k2 = (T) (dot * inv * inv / count), scale = (T) (inv * w);                          \
            for (int64_t i = 0; i < j->n; i++) {                                                                          \
                int64_t at = (i * j->c + c) * j->s;                                                                       \
                const T *x = (const T *) j->x + at, *g = (const T *) j->g + at;                                           \
                T *y = (T *) j->y + at;                                                                                   \
                if (j->training) {                                                                                        \
                    _Pragma("GCC ivdep") for (int64_t k = 0; k < j->s; k++) y[k] = (g[k] - gm - (x[k] - m) * k2) * scale; \
                } else {                                                                                                  \
                    _Pragma("GCC ivdep") for (int64_t k = 0; k < j->s; k++) y[k] = g[k] * scale;                          \
                }                                                                                                         \
            }                                                                                                             \
        }                                                                                                                 \
    }
BATCH_NORM(float)
BATCH_NORM(double)

/* [N, C]: channels are columns, taken in blocks so that rows are read along. */
enum { LANES = 64 };
#define BATCH_NORM_COLUMNS(T)                                                                                                  \
    /* sums over all rows of a block: of x, or of (x - m)^2 */                                                                 \
    static void column_sums_##T(const job *j, int64_t col, int64_t n, const T *m, double *out) {                               \
        for (int64_t k = 0; k < n; k++)                                                                                        \
            out[k] = 0;                                                                                                        \
        for (int64_t r0 = 0; r0 < j->n; r0 += 64) {                                                                            \
            T part[LANES] = {0};                                                                                               \
            for (int64_t r = r0; r < r0 + 64 && r < j->n; r++) {                                                               \
                const T *x = (const T *) j->x + r * j->c + col;                                                                \
                for (int64_t k = 0; k < n; k++)                                                                                \
                    part[k] += m ? (x[k] - m[k]) * (x[k] - m[k]) : x[k];                                                       \
            }                                                                                                                  \
            for (int64_t k = 0; k < n; k++)                                                                                    \
                out[k] += part[k];                                                                                             \
        }                                                                                                                      \
    }                                                                                                                          \
    static void bn_columns_##T(void *env, int64_t begin, int64_t end, int thread) {                                            \
        const job *j = env;                                                                                                    \
        for (int64_t block = begin; block < end; block++) {                                                                    \
            int64_t col = block * LANES, n = tr__min(LANES, j->c - col);                                                       \
            T m[LANES], a[LANES], b[LANES];                                                                                    \
            if (j->training) {                                                                                                 \
                column_sums_##T(j, col, n, NULL, j->mean + col);                                                               \
                for (int64_t k = 0; k < n; k++)                                                                                \
                    m[k] = (T) (j->mean[col + k] /= (double) j->n);                                                            \
                column_sums_##T(j, col, n, m, j->var + col);                                                                   \
                for (int64_t k = 0; k < n; k++) {                                                                              \
                    double rest = j->mean[col + k] - (double) m[k];                                                            \
                    j->var[col + k] = j->var[col + k] / (double) j->n - rest * rest;                                           \
                    j->inv[col + k] = 1 / sqrt(j->var[col + k] + j->eps);                                                      \
                }                                                                                                              \
            }                                                                                                                  \
            for (int64_t k = 0; k < n; k++) {                                                                                  \
                double scale = j->inv[col + k] * (j->w ? j->w[col + k] : 1);                                                   \
                a[k] = (T) scale;                                                                                              \
                b[k] = (T) ((j->b ? j->b[col + k] : 0) - j->mean[col + k] * scale);                                            \
            }                                                                                                                  \
            for (int64_t r = 0; r < j->n; r++) {                                                                               \
                const T *x = (const T *) j->x + r * j->c + col;                                                                \
                T *y = (T *) j->y + r * j->c + col;                                                                            \
                _Pragma("GCC ivdep") for (int64_t k = 0; k < n; k++) y[k] = x[k] * a[k] + b[k];                                \
            }                                                                                                                  \
        }                                                                                                                      \
    }                                                                                                                          \
    static void bn_backward_columns_##T(void *env, int64_t begin, int64_t end, int thread) {                                   \
        const job *j = env;                                                                                                    \
        for (int64_t block = begin; block < end; block++) {                                                                    \
            int64_t col = block * LANES, n = tr__min(LANES, j->c - col);                                                       \
            T m[LANES], gm[LANES], k2[LANES], scale[LANES];                                                                    \
            for (int64_t k = 0; k < n; k++)                                                                                    \
                m[k] = (T) j->mean[col + k];                                                                                   \
            for (int64_t r0 = 0; r0 < j->n; r0 += 64) {                                                                        \
                T sum[LANES] = {0}, dot[LANES] = {0};                                                                          \
                for (int64_t r = r0; r < r0 + 64 && r < j->n; r++) {                                                           \
                    const T *x = (const T *) j->x + r * j->c + col, *g = (const T *) j->g + r * j->c + col;                    \
                    for (int64_t k = 0; k < n; k++) {                                                                          \
                        sum[k] += g[k];                                                                                        \
                        dot[k] += g[k] * (x[k] - m[k]);                                                                        \
                    }                                                                                                          \
                }                                                                                                              \
                for (int64_t k = 0; k < n; k++) {                                                                              \
                    j->db[col + k] += sum[k];                                                                                  \
                    j->dw[col + k] += dot[k];                                                                                  \
                }                                                                                                              \
            }                                                                                                                  \
            for (int64_t k = 0; k < n; k++) {                                                                                  \
                double inv = j->inv[col + k], sum = j->db[col + k];                                                            \
                double dot = j->dw[col + k] - sum * (j->mean[col + k] - (double) m[k]);                                        \
                j->dw[col + k] = dot * inv;                                                                                    \
                gm[k] = j->training ? (T) (sum / (double) j->n) : 0;                                                           \
                k2[k] = j->training ? (T) (dot * inv * inv / (double) j->n) : 0;                                               \
                scale[k] = (T) (inv * (j->w ? j->w[col + k] : 1));                                                             \
            }                                                                                                                  \
            for (int64_t r = 0; r < j->n; r++) {                                                                               \
                const T *x = (const T *) j->x + r * j->c + col, *g = (const T *) j->g + r * j->c + col;                        \
                T *y = (T *) j->y + r * j->c + col;                                                                            \
                _Pragma("GCC ivdep") for (int64_t k = 0; k < n; k++) y[k] = (g[k] - gm[k] - (x[k] - m[k]) * k2[k]) * scale[k]; \
            }                                                                                                                  \
        }                                                                                                                      \
    }
BATCH_NORM_COLUMNS(float)
BATCH_NORM_COLUMNS(double)

/* Runs one of a kernel's forms: channels as planes or as columns, float or double. */
static void over_channels(const tr_kernel_call *c, job *j, tr_dtype wide, const tr__range_fn fns[4]) {
    bool columns = j->s == 1;
    int64_t work = tr__max(1, j->n * j->s * (columns ? LANES : 1));
    tr__parallel(c->ctx, columns ? (j->c + LANES - 1) / LANES : j->c, tr__max(1, TR__GRAIN / work),
                 fns[columns * 2 + (wide == TR_F64)], j);
}

static tr_dtype wide_float(tr_dtype d) {
    return d == TR_F64 ? TR_F64 : TR_F32;
}

static tr_status read_doubles(const tr_kernel_call *c, const tr_arg *a, const double **out) {
    const void *p;
    *out = NULL;
    if (tr__absent(a))
        return TR_OK;
    TR_TRY(tr__dense_in(c, a, TR_F64, &p));
    *out = p;
    return TR_OK;
}

static tr_status write_doubles(const tr_kernel_call *c, const tr_arg *a, const double *x) {
    tr_meta m;
    tr__meta_make(&m, TR_F64, a->meta->ndim, a->meta->shape, NULL);
    tr_arg src = {(void *) x, &m, {0}};
    return tr__copy(c->ctx, a, &src);
}

static tr_status doubles(const tr_kernel_call *c, int64_t n, double **out) {
    *out = tr__scratch(c, (size_t) n * sizeof **out);
    if (!*out)
        return TR_E_NOMEM;
    memset(*out, 0, (size_t) n * sizeof **out);
    return TR_OK;
}

static void channels_of(job *j, const tr_meta *m) {
    j->n = m->shape[0];
    j->c = m->shape[1];
    j->s = 1;
    for (int d = 2; d < m->ndim; d++)
        j->s *= m->shape[d];
}

/* Is it [rows, C] in memory? */
static bool is_channels_last(const tr_arg *a, tr_dtype wide) {
    const tr_meta *m = a->meta;
    if (m->dtype != wide || m->ndim < 3 || m->numel == 0 || m->shape[1] == 1)
        return false;
    int64_t step = m->shape[1];
    bool fits = m->strides[1] == 1;
    for (int d = m->ndim - 1; d >= 0; d--)
        if (d != 1) {
            fits &= m->shape[d] == 1 || m->strides[d] == step;
            step *= m->shape[d];
        }
    return fits;
}

/* Images with channels last are columns: their rows and pixels are rows. */
static void as_columns(job *j) {
    j->n *= j->s;
    j->s = 1;
}

/* [rows, C] of many rows, float: each thread streams through rows of its own. One pass for both sums, of deviations from the
 * mean of a sample, so that neither a large mean nor an odd pixel costs digits. */
enum { PIECE = 512, STRIP = 32, SAMPLE = 64 };
typedef struct rows_job {
    const job *j;
    double *sums;       /* [threads, 2, C] */
    float *m;           /* [C]: what x is seen from */
    float *a, *b, *k;   /* [C] each: y = x * a + b; backward: (g - b - (x - m) * k) * a */
} rows_job;

static void bn_rows_sums(void *env, int64_t begin, int64_t end, int thread) {
    const rows_job *r = env;
    const job *j = r->j;
    double *out = r->sums + 2 * j->c * thread;
    for (int64_t col = 0; col < j->c; col += PIECE) {
        int64_t n = tr__min(PIECE, j->c - col);
        const float *m = r->m + col;
        for (int64_t r0 = begin; r0 < end; r0 += STRIP) {
            float s[PIECE] = {0}, q[PIECE] = {0};
            for (int64_t i = r0; i < tr__min(end, r0 + STRIP); i++) {
                const float *x = (const float *) j->x + i * j->c + col, *g = j->g ? (const float *) j->g + i * j->c + col : NULL;
                if (g) {
                    _Pragma("GCC ivdep") for (int64_t k = 0; k < n; k++) {
                        s[k] += g[k];
                        q[k] += g[k] * (x[k] - m[k]);
                    }
                } else {
                    _Pragma("GCC ivdep") for (int64_t k = 0; k < n; k++) {
                        s[k] += x[k] - m[k];
                        q[k] += (x[k] - m[k]) * (x[k] - m[k]);
                    }
                }
            }
            for (int64_t k = 0; k < n; k++) {
                out[col + k] += s[k];
                out[j->c + col + k] += q[k];
            }
        }
    }
}

static void bn_rows_apply(void *env, int64_t begin, int64_t end, int thread) {
    const rows_job *r = env;
    const job *j = r->j;
    const float *a = r->a, *b = r->b, *m = r->m, *p = r->k;
    for (int64_t i = begin; i < end; i++) {
        const float *x = (const float *) j->x + i * j->c, *g = j->g ? (const float *) j->g + i * j->c : NULL;
        float *y = (float *) j->y + i * j->c;
        if (g) {
            _Pragma("GCC ivdep") for (int64_t k = 0; k < j->c; k++)
                y[k] = (g[k] - b[k] - (x[k] - m[k]) * p[k]) * a[k];
        } else {
            _Pragma("GCC ivdep") for (int64_t k = 0; k < j->c; k++)
                y[k] = x[k] * a[k] + b[k];
        }
    }
}

static tr_status rows_start(const tr_kernel_call *c, rows_job *r, int64_t grain) {
    int64_t n = r->j->c, width = tr__parallel_width(c->ctx, r->j->n, grain);
    TR_TRY(doubles(c, 2 * n * width, &r->sums));
    r->m = tr__scratch(c, (size_t) n * 4 * sizeof(float));
    if (!r->m)
        return TR_E_NOMEM;
    r->a = r->m + n;
    r->b = r->a + n;
    r->k = r->b + n;
    return TR_OK;
}

/* Both sums of a channel, over the threads. */
static void rows_sum(const tr_kernel_call *c, const rows_job *r, int64_t grain, int64_t k, double *s, double *q) {
    *s = *q = 0;
    for (int t = 0; t < tr__parallel_width(c->ctx, r->j->n, grain); t++) {
        *s += r->sums[2 * r->j->c * t + k];
        *q += r->sums[2 * r->j->c * t + r->j->c + k];
    }
}

static void sample_mean(const job *j, float *m) {
    int64_t n = tr__min(SAMPLE, j->n), step = j->n / n;
    for (int64_t k = 0; k < j->c; k++)
        m[k] = 0;
    for (int64_t i = 0; i < n; i++) {
        const float *x = (const float *) j->x + i * step * j->c;
        for (int64_t k = 0; k < j->c; k++)
            m[k] += x[k] / (float) n;
    }
}

static tr_status bn_rows_forward(const tr_kernel_call *c, job *j) {
    int64_t grain = tr__max(1, TR__GRAIN / j->c);
    rows_job r = {.j = j};
    TR_TRY(rows_start(c, &r, grain));
    if (j->training) {
        sample_mean(j, r.m);
        tr__parallel(c->ctx, j->n, grain, bn_rows_sums, &r);
    }
    for (int64_t k = 0; k < j->c; k++) {
        if (j->training) {
            double s, q;
            rows_sum(c, &r, grain, k, &s, &q);
            double mean = s / (double) j->n, var = q / (double) j->n - mean * mean;
            j->mean[k] = mean + (double) r.m[k];
            j->var[k] = var < 0 ? 0 : var;
            j->inv[k] = 1 / sqrt(j->var[k] + j->eps);
        }
        double scale = j->inv[k] * (j->w ? j->w[k] : 1);
        r.a[k] = (float) scale;
        r.b[k] = (float) ((j->b ? j->b[k] : 0) - j->mean[k] * scale);
    }
    tr__parallel(c->ctx, j->n, grain, bn_rows_apply, &r);
    return TR_OK;
}

static tr_status bn_rows_backward(const tr_kernel_call *c, job *j) {
    int64_t grain = tr__max(1, TR__GRAIN / j->c);
    rows_job r = {.j = j};
    TR_TRY(rows_start(c, &r, grain));
    for (int64_t k = 0; k < j->c; k++)
        r.m[k] = (float) j->mean[k];
    tr__parallel(c->ctx, j->n, grain, bn_rows_sums, &r);
    for (int64_t k = 0; k < j->c; k++) {
        double s, q, inv = j->inv[k];
        rows_sum(c, &r, grain, k, &s, &q);
        q -= s * (j->mean[k] - (double) r.m[k]);
        j->db[k] = s;
        j->dw[k] = q * inv;
        r.a[k] = (float) (inv * (j->w ? j->w[k] : 1));
        r.b[k] = j->training ? (float) (s / (double) j->n) : 0;
        r.k[k] = j->training ? (float) (q * inv * inv / (double) j->n) : 0;
    }
    tr__parallel(c->ctx, j->n, grain, bn_rows_apply, &r);
    return TR_OK;
}

static tr_status update_running(const tr_kernel_call *c, const job *j) {
    double momentum = tr_arg_double(&c->in[5]), count = (double) (j->n * j->s);
    const double *old;
    double *new;
    if (!tr__absent(&c->in[3])) {
        TR_TRY(read_doubles(c, &c->in[3], &old));
        TR_TRY(doubles(c, j->c, &new));
        for (int64_t k = 0; k < j->c; k++)
            new[k] = momentum * j->mean[k] + (1 - momentum) * old[k];
        TR_TRY(write_doubles(c, &c->in[3], new));
    }
    if (!tr__absent(&c->in[4])) {
        TR_TRY(read_doubles(c, &c->in[4], &old));
        TR_TRY(doubles(c, j->c, &new));
        for (int64_t k = 0; k < j->c; k++)
            new[k] = momentum *(j->var[k] * count / (count - 1)) + (1 - momentum) * old[k];
        TR_TRY(write_doubles(c, &c->in[4], new));
    }
    return TR_OK;
}

TR__ISA_KERNEL(batch_norm) {
    const tr_arg *in = &c->in[0];
    tr_dtype wide = wide_float(in->meta->dtype);
    job j = {.training = c->attrs[0], .eps = tr_arg_double(&c->in[6])};
    channels_of(&j, in->meta);
    bool last = is_channels_last(in, wide) && is_channels_last(&c->out[0], wide);
    j.x = in->data;
    j.y = c->out[0].data;
    if (last) {
        as_columns(&j);
    } else {
        TR_TRY(tr__dense_in(c, in, wide, &j.x));
        TR_TRY(tr__dense_out(c, &c->out[0], wide, &j.y));
    }
    TR_TRY(read_doubles(c, &c->in[1], &j.w));
    TR_TRY(read_doubles(c, &c->in[2], &j.b));
    TR_TRY(doubles(c, j.c, &j.mean));
    TR_TRY(doubles(c, j.c, &j.inv));
    TR_TRY(doubles(c, j.c, &j.var));
    if (!j.training) {
        const double *mean, *var;
        TR_TRY(read_doubles(c, &c->in[3], &mean));
        TR_TRY(read_doubles(c, &c->in[4], &var));
        for (int64_t k = 0; k < j.c; k++) {
            j.mean[k] = mean[k];
            j.inv[k] = 1 / sqrt(var[k] + j.eps);
        }
    }
    const tr__range_fn fns[] = {bn_forward_float, bn_forward_double, bn_columns_float, bn_columns_double};
    if (last && wide == TR_F32)
        TR_TRY(bn_rows_forward(c, &j));
    else
        over_channels(c, &j, wide, fns);
    if (j.training && in->meta->numel)
        TR_TRY(update_running(c, &j));
    TR_TRY(write_doubles(c, &c->out[1], j.mean));
    TR_TRY(write_doubles(c, &c->out[2], j.inv));
    return last ? TR_OK : tr__dense_out_end(c, &c->out[0], wide, j.y);
}

TR__ISA_KERNEL(batch_norm_backward) {
    const tr_arg *in = &c->in[1];
    tr_dtype wide = wide_float(in->meta->dtype);
    const double *mean, *inv;
    job j = {.training = c->attrs[0]};
    channels_of(&j, in->meta);
    bool last = is_channels_last(&c->in[0], wide) && is_channels_last(in, wide) && is_channels_last(&c->out[0], wide);
    j.g = c->in[0].data;
    j.x = in->data;
    j.y = c->out[0].data;
    if (last) {
        as_columns(&j);
    } else {
        TR_TRY(tr__dense_in(c, &c->in[0], wide, &j.g));
        TR_TRY(tr__dense_in(c, in, wide, &j.x));
        TR_TRY(tr__dense_out(c, &c->out[0], wide, &j.y));
    }
    TR_TRY(read_doubles(c, &c->in[2], &j.w));
    TR_TRY(read_doubles(c, &c->in[3], &mean));
    TR_TRY(read_doubles(c, &c->in[4], &inv));
    j.mean = (double *) mean;
    j.inv = (double *) inv;
    TR_TRY(doubles(c, j.c, &j.dw));
    TR_TRY(doubles(c, j.c, &j.db));
    const tr__range_fn fns[] = {bn_backward_float, bn_backward_double, bn_backward_columns_float, bn_backward_columns_double};
    if (last && wide == TR_F32)
        TR_TRY(bn_rows_backward(c, &j));
    else
        over_channels(c, &j, wide, fns);
    TR_TRY(write_doubles(c, &c->out[1], j.dw));
    TR_TRY(write_doubles(c, &c->out[2], j.db));
    return last ? TR_OK : tr__dense_out_end(c, &c->out[0], wide, j.y);
}

/* ------------------------------------------------------------------------------------------ layer norm */

/* w and b as T, so that the inner loops need no conversion: [s] each, in j->w / j->b's place. */
typedef struct ln_job {
    job j;
    const void *w, *b;
} ln_job;

#define LAYER_NORM(T, V, VN)                                                                                                   \
    static void ln_forward_##T(void *env, int64_t begin, int64_t end, int thread) {                                            \
        const ln_job *l = env;                                                                                                 \
        const job *j = &l->j;                                                                                                  \
        const T *w = l->w, *b = l->b;                                                                                          \
        for (int64_t r = begin; r < end; r++) {                                                                                \
            const T *x = (const T *) j->x + r * j->s;                                                                          \
            T *y = (T *) j->y + r * j->s;                                                                                      \
            double mean = sum_##T(x, j->s, false, 0) / (double) j->s;                                                          \
            double rest = mean - (double) (T) mean;                                                                            \
            double var = sum_##T(x, j->s, true, (T) mean) / (double) j->s - rest * rest;                                       \
            double inv = 1 / sqrt(var + j->eps);                                                                               \
            j->mean[r] = mean;                                                                                                 \
            j->inv[r] = inv;                                                                                                   \
            T m = (T) mean, i = (T) inv;                                                                                       \
            if (w && b) {                                                                                                      \
                _Pragma("GCC ivdep") for (int64_t k = 0; k < j->s; k++) y[k] = (x[k] - m) * i * w[k] + b[k];                   \
            } else {                                                                                                           \
                for (int64_t k = 0; k < j->s; k++)                                                                             \
                    y[k] = (x[k] - m) * i * (w ? w[k] : 1) + (b ? b[k] : 0);                                                   \
            }                                                                                                                  \
        }                                                                                                                      \
    }                                                                                                                          \
    static void ln_backward_##T(void *env, int64_t begin, int64_t end, int thread) {                                           \
        const ln_job *l = env;                                                                                                 \
        const job *j = &l->j;                                                                                                  \
        const T *w = l->w;                                                                                                     \
        for (int64_t r = begin; r < end; r++) {                                                                                \
            const T *x = (const T *) j->x + r * j->s, *g = (const T *) j->g + r * j->s;                                        \
            T *y = (T *) j->y + r * j->s;                                                                                      \
            T m = (T) j->mean[r], inv = (T) j->inv[r];                                                                         \
            V s0 = {0}, d0 = {0}, vg, vx, vw;                                                                                  \
            double sum = 0, dot = 0;                                                                                           \
            int64_t k = 0;                                                                                                     \
            for (; k + VN <= j->s; k += VN) {                                                                                  \
                memcpy(&vg, g + k, sizeof vg);                                                                                 \
                memcpy(&vx, x + k, sizeof vx);                                                                                 \
                if (w) {                                                                                                       \
                    memcpy(&vw, w + k, sizeof vw);                                                                             \
                    vg *= vw;                                                                                                  \
                }                                                                                                              \
                s0 += vg;                                                                                                      \
                d0 += vg * ((vx - m) * inv);                                                                                   \
            }                                                                                                                  \
            for (; k < j->s; k++) {                                                                                            \
                T gw = g[k] * (w ? w[k] : 1);                                                                                  \
                sum += gw;                                                                                                     \
                dot += gw * ((x[k] - m) * inv);                                                                                \
            }                                                                                                                  \
            sum += lanes_##T(s0);                                                                                              \
            dot += lanes_##T(d0);                                                                                              \
            T a = (T) (sum / (double) j->s), b = (T) (dot / (double) j->s);                                                    \
            if (w) {                                                                                                           \
                _Pragma("GCC ivdep") for (int64_t i = 0; i < j->s; i++) y[i] = inv * (g[i] * w[i] - a - (x[i] - m) * inv * b); \
            } else {                                                                                                           \
                _Pragma("GCC ivdep") for (int64_t i = 0; i < j->s; i++) y[i] = inv * (g[i] - a - (x[i] - m) * inv * b);        \
            }                                                                                                                  \
        }                                                                                                                      \
    }                                                                                                                          \
    /* d weight and d bias: blocks of columns, all rows */                                                                     \
    static void ln_weights_##T(void *env, int64_t begin, int64_t end, int thread) {                                            \
        const job *j = &((const ln_job *) env)->j;                                                                             \
        for (int64_t block = begin; block < end; block++) {                                                                    \
            int64_t col = block * 64, n = tr__min(64, j->s - col);                                                             \
            for (int64_t r0 = 0; r0 < j->n; r0 += 64) {                                                                        \
                T dw[64] = {0}, db[64] = {0};                                                                                  \
                for (int64_t r = r0; r < r0 + 64 && r < j->n; r++) {                                                           \
                    const T *x = (const T *) j->x + r * j->s + col, *g = (const T *) j->g + r * j->s + col;                    \
                    T m = (T) j->mean[r], inv = (T) j->inv[r];                                                                 \
                    for (int64_t k = 0; k < n; k++) {                                                                          \
                        dw[k] += g[k] * ((x[k] - m) * inv);                                                                    \
                        db[k] += g[k];                                                                                         \
                    }                                                                                                          \
                }                                                                                                              \
                for (int64_t k = 0; k < n; k++) {                                                                              \
                    j->dw[col + k] += dw[k];                                                                                   \
                    j->db[col + k] += db[k];                                                                                   \
                }                                                                                                              \
            }                                                                                                                  \
        }                                                                                                                      \
    }
LAYER_NORM(float, vF, VN_F)
LAYER_NORM(double, vD, VN_D)

static void rows_of(job *j, const tr_meta *m, int64_t normalized) {
    j->n = j->s = 1;
    for (int d = 0; d < m->ndim; d++)
        *(d < m->ndim - normalized ? &j->n : &j->s) *= m->shape[d];
}

TR__ISA_KERNEL(layer_norm) {
    const tr_arg *in = &c->in[0];
    tr_dtype wide = wide_float(in->meta->dtype);
    ln_job l = {.j = {.eps = tr_arg_double(&c->in[3])}};
    job *j = &l.j;
    rows_of(j, in->meta, c->attrs[0]);
    TR_TRY(tr__dense_in(c, in, wide, &j->x));
    TR_TRY(tr__dense_out(c, &c->out[0], wide, &j->y));
    if (!tr__absent(&c->in[1]))
        TR_TRY(tr__dense_in(c, &c->in[1], wide, &l.w));
    if (!tr__absent(&c->in[2]))
        TR_TRY(tr__dense_in(c, &c->in[2], wide, &l.b));
    TR_TRY(doubles(c, j->n, &j->mean));
    TR_TRY(doubles(c, j->n, &j->inv));
    tr__parallel(c->ctx, j->n, tr__max(1, TR__GRAIN / tr__max(1, j->s)), wide == TR_F32 ? ln_forward_float : ln_forward_double,
                 &l);
    TR_TRY(write_doubles(c, &c->out[1], j->mean));
    TR_TRY(write_doubles(c, &c->out[2], j->inv));
    return tr__dense_out_end(c, &c->out[0], wide, j->y);
}

TR__ISA_KERNEL(layer_norm_backward) {
    const tr_arg *in = &c->in[1];
    tr_dtype wide = wide_float(in->meta->dtype);
    const double *mean, *inv;
    ln_job l = {0};
    job *j = &l.j;
    rows_of(j, in->meta, c->attrs[0]);
    TR_TRY(tr__dense_in(c, &c->in[0], wide, &j->g));
    TR_TRY(tr__dense_in(c, in, wide, &j->x));
    TR_TRY(tr__dense_out(c, &c->out[0], wide, &j->y));
    if (!tr__absent(&c->in[2]))
        TR_TRY(tr__dense_in(c, &c->in[2], wide, &l.w));
    TR_TRY(read_doubles(c, &c->in[3], &mean));
    TR_TRY(read_doubles(c, &c->in[4], &inv));
    j->mean = (double *) mean;
    j->inv = (double *) inv;
    TR_TRY(doubles(c, j->s, &j->dw));
    TR_TRY(doubles(c, j->s, &j->db));
    tr__parallel(c->ctx, j->n, tr__max(1, TR__GRAIN / tr__max(1, j->s)),
                 wide == TR_F32 ? ln_backward_float : ln_backward_double, &l);
    tr__parallel(c->ctx, (j->s + 63) / 64, tr__max(1, TR__GRAIN / 64 / tr__max(1, j->n)),
                 wide == TR_F32 ? ln_weights_float : ln_weights_double, &l);
    TR_TRY(write_doubles(c, &c->out[1], j->dw));
    TR_TRY(write_doubles(c, &c->out[2], j->db));
    return tr__dense_out_end(c, &c->out[0], wide, j->y);
}
