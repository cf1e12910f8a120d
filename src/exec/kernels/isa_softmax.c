/* isa_softmax.c - softmax, log-softmax and their derivatives.
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

/* max, sum of f(x) in vectors over a row. `V` is the vector of T. The maximum needs no regard for NaN: it comes back in the sum. */
#define ROWS(T, V, VN, exp_, log_, INF)                                                 \
    static T max_##T(const T *x, int64_t n) {                                           \
        V a = (V){0} - INF, b = a, w, u;                                                \
        T m = -INF;                                                                     \
        int64_t i = 0;                                                                  \
        for (; i + 2 * VN <= n; i += 2 * VN) {                                          \
            memcpy(&w, x + i, sizeof w);                                                \
            memcpy(&u, x + i + VN, sizeof u);                                           \
            a = V##_max(w, a);                                                          \
            b = V##_max(u, b);                                                          \
        }                                                                               \
        a = V##_max(b, a);                                                              \
        for (int k = 0; k < VN; k++)                                                    \
            m = a[k] > m ? a[k] : m;                                                    \
        for (; i < n; i++)                                                              \
            m = x[i] > m ? x[i] : m;                                                    \
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
            w = V##_exp_down(w - m);                                                       \
            s += w;                                                                     \
            if (y)                                                                      \
                memcpy(y + i, &w, sizeof w);                                            \
        }                                                                               \
        T total = vector_sum_##T(s);                                                    \
        if (i < n) {                                                                    \
            w = (V){0};                                                                 \
            memcpy(&w, x + i, (size_t) (n - i) * sizeof *x);                            \
            w = V##_exp_down(w - m);                                                       \
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
            u -= V##_exp_down(w) * total;                                                   \
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
    tr__parallel_pieces(c->ctx, j.a.outer * j.a.inner, tr__max(1, TR__GRAIN / 4 / j.a.size), wide == TR_F32 ? f : d, &j);
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
