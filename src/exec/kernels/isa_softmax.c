/* isa_softmax.c - softmax, log-softmax, their derivatives, and the negative log-likelihood.
 *
 * Rows along the reduced dimension: maximum, then exponentials and their sum, then one scaling. Where the dimension isn't
 * innermost a line is gathered into a row, worked on, and put back. */
#include "exec/kernels/kernels.h"
#include "exec/kernels/ew_math.h"

typedef struct job {
    tr__axis a;
    const void *x, *g; /* input or output; gradient */
    void *y;
    char *lines; /* 3 rows per thread, where lines are gathered */
} job;

/* max, sum of f(x) in vectors over a row. `V` is the vector of T. */
#define ROWS(T, V, VN, exp_, log_, INF)                                                 \
    static T max_##T(const T *x, int64_t n) {                                           \
        V a = (V){0} - INF, b = a, w, u;                                                \
        T m = -INF;                                                                     \
        int64_t i = 0;                                                                  \
        for (; i + 2 * VN <= n; i += 2 * VN) {                                          \
            memcpy(&w, x + i, sizeof w);                                                \
            memcpy(&u, x + i + VN, sizeof u);                                           \
            a = V##_select((w > a) | (w != w), w, a);                                   \
            b = V##_select((u > b) | (u != u), u, b);                                   \
        }                                                                               \
        a = V##_select((b > a) | (b != b), b, a);                                       \
        for (int k = 0; k < VN; k++)                                                    \
            m = a[k] > m || a[k] != a[k] ? a[k] : m;                                    \
        for (; i < n; i++)                                                              \
            m = x[i] > m || x[i] != x[i] ? x[i] : m;                                    \
        return m;                                                                       \
    }                                                                                   \
    static T vector_sum_##T(V s) {                                                      \
        for (int half = VN / 2; half > 0; half /= 2)                                    \
            for (int k = 0; k < half; k++)                                              \
                s[k] += s[k + half];                                                    \
        return s[0];                                                                    \
    }                                                                                   \
    /* y = exp(x - m), if y is wanted; returns the sum */                               \
    static T exp_sum_##T(T *y, const T *x, T m, int64_t n) {                            \
        V s = {0}, w;                                                                   \
        int64_t i = 0;                                                                  \
        for (; i + VN <= n; i += VN) {                                                  \
            memcpy(&w, x + i, sizeof w);                                                \
            w = V##_exp(w - m);                                                         \
            s += w;                                                                     \
            if (y)                                                                      \
                memcpy(y + i, &w, sizeof w);                                            \
        }                                                                               \
        T total = vector_sum_##T(s);                                                    \
        if (i < n) {                                                                    \
            w = (V){0};                                                                 \
            memcpy(&w, x + i, (size_t) (n - i) * sizeof *x);                            \
            w = V##_exp(w - m);                                                         \
            for (int64_t k = 0; k < n - i; k++)                                         \
                total += w[k];                                                          \
            if (y)                                                                      \
                memcpy(y + i, &w, (size_t) (n - i) * sizeof *x);                        \
        }                                                                               \
        return total;                                                                   \
    }                                                                                   \
    static T sum_##T(const T *x, const T *z, int64_t n) {                               \
        V s = {0}, w, u;                                                                \
        int64_t i = 0;                                                                  \
        for (; i + VN <= n; i += VN) {                                                  \
            memcpy(&w, x + i, sizeof w);                                                \
            if (z) {                                                                    \
                memcpy(&u, z + i, sizeof u);                                            \
                w *= u;                                                                 \
            }                                                                           \
            s += w;                                                                     \
        }                                                                               \
        T total = vector_sum_##T(s);                                                    \
        for (; i < n; i++)                                                              \
            total += z ? x[i] * z[i] : x[i];                                            \
        return total;                                                                   \
    }                                                                                   \
    static void softmax_row_##T(T *y, const T *x, const T *g, int64_t n) {              \
        T total = exp_sum_##T(y, x, max_##T(x, n), n);                                  \
        T scale = 1 / total;                                                            \
        for (int64_t i = 0; i < n; i++)                                                 \
            y[i] *= scale;                                                              \
    }                                                                                   \
    static void log_softmax_row_##T(T *y, const T *x, const T *g, int64_t n) {          \
        T m = max_##T(x, n), l = log_(exp_sum_##T(NULL, x, m, n));                      \
        for (int64_t i = 0; i < n; i++)                                                 \
            y[i] = x[i] - m - l;                                                        \
    }                                                                                   \
    /* x is the forward result */                                                       \
    static void softmax_backward_row_##T(T *y, const T *x, const T *g, int64_t n) {     \
        T dot = sum_##T(g, x, n);                                                       \
        for (int64_t i = 0; i < n; i++)                                                 \
            y[i] = (g[i] - dot) * x[i];                                                 \
    }                                                                                   \
    static void log_softmax_backward_row_##T(T *y, const T *x, const T *g, int64_t n) { \
        T total = sum_##T(g, NULL, n);                                                  \
        V w, u;                                                                         \
        int64_t i = 0;                                                                  \
        for (; i + VN <= n; i += VN) {                                                  \
            memcpy(&w, x + i, sizeof w);                                                \
            memcpy(&u, g + i, sizeof u);                                                \
            u -= V##_exp(w) * total;                                                    \
            memcpy(y + i, &u, sizeof u);                                                \
        }                                                                               \
        for (; i < n; i++)                                                              \
            y[i] = g[i] - exp_(x[i]) * total;                                           \
    }
ROWS(float, vF, VN_F, expf, logf, __builtin_inff())
ROWS(double, vD, VN_D, exp, log, __builtin_inf())

#define RUN(id, T)                                                                                           \
    static void id##_run_##T(void *env, int64_t begin, int64_t end, int thread) {                            \
        const job *j = env;                                                                                  \
        int64_t n = j->a.size, inner = j->a.inner;                                                           \
        const T *x = j->x, *g = j->g;                                                                        \
        T *y = j->y;                                                                                         \
        if (inner == 1) {                                                                                    \
            for (int64_t k = begin; k < end; k++)                                                            \
                id##_row_##T(y + k * n, x + k * n, g ? g + k * n : NULL, n);                                 \
            return;                                                                                          \
        }                                                                                                    \
        T *lx = (T *) (j->lines + (size_t) thread * 3 * (size_t) n * sizeof(T)), *lg = lx + n, *ly = lg + n; \
        for (int64_t k = begin; k < end; k++) {                                                              \
            int64_t at = k / inner * n * inner + k % inner;                                                  \
            for (int64_t i = 0; i < n; i++) {                                                                \
                lx[i] = x[at + i * inner];                                                                   \
                lg[i] = g ? g[at + i * inner] : 0;                                                           \
            }                                                                                                \
            id##_row_##T(ly, lx, lg, n);                                                                     \
            for (int64_t i = 0; i < n; i++)                                                                  \
                y[at + i * inner] = ly[i];                                                                   \
        }                                                                                                    \
    }
#define RUNS(id) RUN(id, float) RUN(id, double)
RUNS(softmax)
RUNS(log_softmax)
RUNS(softmax_backward)
RUNS(log_softmax_backward)

static tr_status run(const tr_kernel_call *c, const tr_arg *x, const tr_arg *g, tr__range_fn f, tr__range_fn d) {
    const tr_arg *out = &c->out[0];
    job j = {.a = tr__axis_of(out->meta, c->attrs[0])};
    tr_dtype wide = x->meta->dtype == TR_F64 || out->meta->dtype == TR_F64 ? TR_F64 : TR_F32;
    if (out->meta->numel == 0)
        return TR_OK;
    TR_TRY(tr__dense_in(c, x, wide, &j.x));
    if (g)
        TR_TRY(tr__dense_in(c, g, wide, &j.g));
    TR_TRY(tr__dense_out(c, out, wide, &j.y));
    if (j.a.inner > 1) {
        j.lines = tr__scratch(c, (size_t) c->ctx->threads * 3 * (size_t) j.a.size * tr_dtype_size(wide));
        if (!j.lines)
            return TR_E_NOMEM;
    }
    tr__parallel(c->ctx, j.a.outer * j.a.inner, tr__max(1, TR__GRAIN / 4 / j.a.size), wide == TR_F32 ? f : d, &j);
    return tr__dense_out_end(c, out, wide, j.y);
}

TR__ISA_KERNEL(_softmax) {
    return run(c, &c->in[0], NULL, softmax_run_float, softmax_run_double);
}
TR__ISA_KERNEL(_log_softmax) {
    return run(c, &c->in[0], NULL, log_softmax_run_float, log_softmax_run_double);
}
TR__ISA_KERNEL(_softmax_backward) {
    return run(c, &c->in[1], &c->in[0], softmax_backward_run_float, softmax_backward_run_double);
}
TR__ISA_KERNEL(_log_softmax_backward) {
    return run(c, &c->in[1], &c->in[0], log_softmax_backward_run_float, log_softmax_backward_run_double);
}

/* ------------------------------------------------------------------------------------------ nll_loss */

enum { REDUCE_NONE, REDUCE_MEAN, REDUCE_SUM };

static tr_status check_targets(const int64_t *target, int64_t n, int64_t classes, int64_t ignore) {
    for (int64_t i = 0; i < n; i++)
        if (target[i] != ignore && (target[i] < 0 || target[i] >= classes))
            return TR_FAIL(TR_E_INDEX, "Target %lld is out of bounds.", (long long) target[i]);
    return TR_OK;
}

typedef struct nll {
    int64_t n, classes, ignore, reduction;
    const double *weight; /* [classes] or NULL */
    const int64_t *target;
} nll;

static tr_status open_nll(const tr_kernel_call *c, nll *j, const tr_arg *input, const tr_arg *target, const tr_arg *weight,
                          const tr_arg *ignore) {
    const void *p;
    j->n = input->meta->ndim == 2 ? input->meta->shape[0] : 1;
    j->classes = input->meta->shape[input->meta->ndim - 1];
    j->ignore = tr_arg_int(ignore);
    j->reduction = c->attrs[0];
    j->weight = NULL;
    TR_TRY(tr__dense_in(c, target, TR_I64, &p));
    j->target = p;
    if (!tr__absent(weight)) {
        TR_TRY(tr__dense_in(c, weight, TR_F64, &p));
        j->weight = p;
    }
    return check_targets(j->target, j->n, j->classes, j->ignore);
}

static double nll_weight(const nll *j, int64_t i) {
    return j->target[i] == j->ignore ? 0 : j->weight ? j->weight[j->target[i]] : 1;
}

static double element(const tr_arg *a, int64_t at) {
    switch (a->meta->dtype) {
        case TR_F32:
            return ((const float *) a->data)[at];
        case TR_F64:
            return ((const double *) a->data)[at];
        case TR_BF16:
            return tr__bf16_to_f32(((const uint16_t *) a->data)[at]);
        default:
            return 0;
    }
}

TR__ISA_KERNEL(nll_loss) {
    const tr_arg *x = &c->in[0];
    nll j;
    TR_TRY(open_nll(c, &j, x, &c->in[1], &c->in[2], &c->in[3]));
    int64_t row = x->meta->ndim == 2 ? x->meta->strides[0] : 0, col = x->meta->strides[x->meta->ndim - 1];
    double *losses = NULL, total = 0, weights = 0;
    if (j.reduction == REDUCE_NONE) {
        losses = tr__scratch(c, (size_t) j.n * sizeof *losses);
        if (!losses)
            return TR_E_NOMEM;
    }
    for (int64_t i = 0; i < j.n; i++) {
        double w = nll_weight(&j, i);
        double loss = j.target[i] == j.ignore ? 0 : -w * element(x, i * row + j.target[i] * col);
        if (losses)
            losses[i] = loss;
        total += loss;
        weights += w;
    }
    if (losses) {
        tr_meta m;
        tr__meta_make(&m, TR_F64, c->out[0].meta->ndim, c->out[0].meta->shape, NULL);
        tr_arg src = {losses, &m, {0}};
        TR_TRY(tr__copy(c->ctx, &c->out[0], &src));
        weights = x->meta->ndim == 2 ? 0 : weights; // as PyTorch has it
    } else {
        tr_number v = {.d = j.reduction == REDUCE_MEAN ? total / weights : total};
        TR_TRY(tr__fill(c->ctx, &c->out[0], TR_F64, v));
    }
    return tr__fill(c->ctx, &c->out[1], TR_F64, (tr_number){.d = weights});
}

TR__ISA_KERNEL(nll_loss_backward) {
    const tr_arg *grad = &c->in[0], *out = &c->out[0];
    tr_dtype wide = tr__wide(out->meta->dtype);
    nll j;
    const void *g, *t;
    void *y;
    TR_TRY(open_nll(c, &j, &c->in[1], &c->in[2], &c->in[3], &c->in[5]));
    TR_TRY(tr__dense_in(c, grad, TR_F64, &g));
    TR_TRY(tr__dense_in(c, &c->in[4], TR_F64, &t));
    TR_TRY(tr__dense_out(c, out, wide, &y));
    double divisor = j.reduction == REDUCE_MEAN ? *(const double *) t : 1;
    memset(y, 0, (size_t) out->meta->numel * tr_dtype_size(wide));
    for (int64_t i = 0; i < j.n; i++) {
        if (j.target[i] == j.ignore)
            continue;
        double d = -nll_weight(&j, i) * ((const double *) g)[j.reduction == REDUCE_NONE ? i : 0] / divisor;
        int64_t at = i * j.classes + j.target[i];
        if (wide == TR_F32)
            ((float *) y)[at] = (float) d;
        else
            ((double *) y)[at] = d;
    }
    return tr__dense_out_end(c, out, wide, y);
}
