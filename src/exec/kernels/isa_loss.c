/* isa_loss.c - the negative log-likelihood, by itself and of log-softmax (cross-entropy).
 *
 * Cross-entropy reads a row of logits once, block by block, with a running maximum, and keeps the logarithm of the sum of its
 * exponentials, while the next block is on its way; backward writes the gradient in one pass from that. Rows' losses are added
 * up in order, in double: the number of threads changes nothing. Logits of bfloat16 are met as floats, block by block, and their
 * gradient is rounded once. */
#include "exec/kernels/kernels.h"
#include "exec/kernels/ew_math.h"
#include "exec/kernels/isa_bf16.h"
#include "exec/kernels/isa_wide.h"

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

/* ------------------------------------------------------------------------------------------ cross-entropy */

enum { BLOCK = 1024 };

typedef struct entropy {
    nll n;
    const void *x;
    void *y, *sums;       /* gradient; log of each row's sum */
    double *losses;       /* [N] */
    const double *factor; /* [N]: what the row's gradient is multiplied by */
    bool bf16;            /* x and y */
} entropy;

/* Some logits: where they lie, or widened into `room`. */
static const float *logits_float(const entropy *e, int64_t at, int64_t n, float *room) {
    if (!e->bf16)
        return (const float *) e->x + at;
    bf16_widen(room, (const uint16_t *) e->x + at, n);
    return room;
}
static const double *logits_double(const entropy *e, int64_t at, int64_t n, double *room) {
    return (const double *) e->x + at;
}
/* Where their gradient is computed, and how it gets to where it belongs. */
static float *gradient_float(const entropy *e, int64_t at, float *room) {
    return e->bf16 ? room : (float *) e->y + at;
}
static double *gradient_double(const entropy *e, int64_t at, double *room) {
    return (double *) e->y + at;
}
static void keep_float(const entropy *e, int64_t at, int64_t n, const float *y) {
    if (e->bf16)
        bf16_narrow((uint16_t *) e->y + at, y, n);
}
static void keep_double(const entropy *e, int64_t at, int64_t n, const double *y) {}

#define ENTROPY(T, V, VN, exp_, log_)                                                                                  \
    static T block_max_##T(const T *x, int64_t n, T m) {                                                               \
        V a = (V){0} - (T) __builtin_inff(), b = a, u, w;                                                              \
        int64_t i = 0;                                                                                                 \
        for (; i + 2 * VN <= n; i += 2 * VN) {                                                                         \
            memcpy(&u, x + i, sizeof u);                                                                               \
            memcpy(&w, x + i + VN, sizeof w);                                                                          \
            a = V##_max(u, a);                                                                                         \
            b = V##_max(w, b);                                                                                         \
        }                                                                                                              \
        a = V##_max(a, b);                                                                                             \
        for (int k = 0; k < VN; k++)                                                                                   \
            m = a[k] > m ? a[k] : m;                                                                                   \
        for (; i < n; i++)                                                                                             \
            m = x[i] > m ? x[i] : m;                                                                                   \
        return m;                                                                                                      \
    }                                                                                                                  \
    static double block_sum_##T(const T *x, int64_t n, T m, const char *next, int64_t size) {                          \
        V s = {0}, t = s, u, w;                                                                                        \
        int64_t i = 0;                                                                                                 \
        double total = 0;                                                                                              \
        for (; i + 2 * VN <= n; i += 2 * VN) {                                                                         \
            memcpy(&u, x + i, sizeof u);                                                                               \
            memcpy(&w, x + i + VN, sizeof w);                                                                          \
            __builtin_prefetch(next + i * size);                                                                       \
            __builtin_prefetch(next + (i + VN) * size);                                                                \
            s += V##_exp_down(u - m);                                                                                  \
            t += V##_exp_down(w - m);                                                                                  \
        }                                                                                                              \
        for (; i < n; i += VN) {                                                                                       \
            int64_t k = tr__min(VN, n - i);                                                                            \
            u = (V){0};                                                                                                \
            memcpy(&u, x + i, (size_t) k * sizeof *x);                                                                 \
            u = V##_exp_down(u - m);                                                                                   \
            while (k-- > 0)                                                                                            \
                total += u[k];                                                                                         \
        }                                                                                                              \
        return total + lanes(wide_##V(s + t));                                                                         \
    }                                                                                                                  \
    static void entropy_rows_##T(void *env, int64_t begin, int64_t end, int thread) {                                  \
        const entropy *e = env;                                                                                        \
        int64_t n = e->n.classes, size = e->bf16 ? 2 : sizeof(T);                                                      \
        T room[BLOCK];                                                                                                 \
        for (int64_t r = begin; r < end; r++) {                                                                        \
            T m = -(T) __builtin_inff();                                                                               \
            double sum = 0;                                                                                            \
            for (int64_t i = 0; i < n; i += BLOCK) {                                                                   \
                int64_t k = tr__min(BLOCK, n - i);                                                                     \
                const T *x = logits_##T(e, r * n + i, k, room);                                                        \
                T most = block_max_##T(x, k, m);                                                                       \
                if (most != m) {                                                                                       \
                    sum = i ? sum * (double) exp_(m - most) : 0;                                                       \
                    m = most;                                                                                          \
                }                                                                                                      \
                if (m != -(T) __builtin_inff())                                                                        \
                    sum += block_sum_##T(x, k, m, (const char *) e->x + (r * n + i + BLOCK) * size, size);             \
                else                                                                                                   \
                    for (int64_t c = 0; c < k; c++)                                                                    \
                        sum += x[c] != x[c] ? (double) x[c] : 0;                                                       \
            }                                                                                                          \
            T l = (T) log_(sum);                                                                                       \
            int64_t t = e->n.target[r];                                                                                \
            ((T *) e->sums)[r] = m + l;                                                                                \
            bool ignored = t == e->n.ignore;                                                                           \
            e->losses[r] = ignored ? 0 : -nll_weight(&e->n, r) * (double) (*logits_##T(e, r * n + t, 1, room) - m - l);\
        }                                                                                                              \
    }                                                                                                                  \
    static void block_gradient_##T(const T *x, T *y, int64_t n, T l, T f) {                                            \
        int64_t i = 0;                                                                                                 \
        V u, w;                                                                                                        \
        for (; i + 2 * VN <= n; i += 2 * VN) {                                                                         \
            memcpy(&u, x + i, sizeof u);                                                                               \
            memcpy(&w, x + i + VN, sizeof w);                                                                          \
            u = V##_exp_down(u - l) * f;                                                                               \
            w = V##_exp_down(w - l) * f;                                                                               \
            memcpy(y + i, &u, sizeof u);                                                                               \
            memcpy(y + i + VN, &w, sizeof w);                                                                          \
        }                                                                                                              \
        for (; i < n; i += VN) {                                                                                       \
            size_t rest = (size_t) tr__min(VN, n - i) * sizeof *x;                                                     \
            u = (V){0};                                                                                                \
            memcpy(&u, x + i, rest);                                                                                   \
            u = V##_exp_down(u - l) * f;                                                                               \
            memcpy(y + i, &u, rest);                                                                                   \
        }                                                                                                              \
    }                                                                                                                  \
    static void entropy_gradient_##T(void *env, int64_t begin, int64_t end, int thread) {                              \
        const entropy *e = env;                                                                                        \
        int64_t n = e->n.classes;                                                                                      \
        T room[BLOCK], made[BLOCK];                                                                                    \
        for (int64_t r = begin; r < end; r++) {                                                                        \
            T f = (T) e->factor[r], l = ((const T *) e->sums)[r];                                                      \
            int64_t t = e->n.target[r];                                                                                \
            for (int64_t i = 0; i < n; i += BLOCK) {                                                                   \
                int64_t k = tr__min(BLOCK, n - i), at = r * n + i;                                                     \
                T *y = gradient_##T(e, at, made);                                                                      \
                if (t == e->n.ignore) {                                                                                \
                    memset(y, 0, (size_t) k * sizeof *y);                                                              \
                } else {                                                                                               \
                    block_gradient_##T(logits_##T(e, at, k, room), y, k, l, f);                                        \
                    if (t >= i && t < i + k)                                                                           \
                        y[t - i] -= f;                                                                                 \
                }                                                                                                      \
                keep_##T(e, at, k, y);                                                                                 \
            }                                                                                                          \
        }                                                                                                              \
    }
ENTROPY(float, vF, VN_F, expf, log)
ENTROPY(double, vD, VN_D, exp, log)

static int64_t rows_grain(const nll *n) {
    return tr__max(1, TR__GRAIN / 4 / tr__max(1, n->classes));
}

TR__ISA_KERNEL(_cross_entropy) {
    const tr_arg *x = &c->in[0];
    tr_dtype wide = x->meta->dtype == TR_F64 ? TR_F64 : TR_F32;
    entropy e = {.bf16 = tr__is_bf16(x)};
    TR_TRY(open_nll(c, &e.n, x, &c->in[1], &c->in[2], &c->in[3]));
    TR_TRY(tr__dense_in(c, x, (tr_dtype) x->meta->dtype, &e.x));
    TR_TRY(tr__dense_out(c, &c->out[2], wide, &e.sums));
    e.losses = tr__scratch(c, (size_t) e.n.n * sizeof *e.losses);
    if (!e.losses)
        return TR_E_NOMEM;
    tr__parallel_pieces(c->ctx, e.n.n, rows_grain(&e.n), wide == TR_F64 ? entropy_rows_double : entropy_rows_float, &e);
    TR_TRY(tr__dense_out_end(c, &c->out[2], wide, e.sums));
    if (e.n.reduction == REDUCE_NONE) {
        tr_meta m;
        tr__meta_make(&m, TR_F64, c->out[0].meta->ndim, c->out[0].meta->shape, NULL);
        tr_arg src = {e.losses, &m, {0}};
        TR_TRY(tr__copy(c->ctx, &c->out[0], &src));
        return tr__fill(c->ctx, &c->out[1], TR_F64, (tr_number){.d = 0});
    }
    double total = 0, weights = 0;
    for (int64_t i = 0; i < e.n.n; i++) {
        total += e.losses[i];
        weights += nll_weight(&e.n, i);
    }
    tr_number v = {.d = e.n.reduction == REDUCE_MEAN ? total / weights : total};
    TR_TRY(tr__fill(c->ctx, &c->out[0], TR_F64, v));
    return tr__fill(c->ctx, &c->out[1], TR_F64, (tr_number){.d = weights});
}

TR__ISA_KERNEL(_cross_entropy_backward) {
    const tr_arg *x = &c->in[1], *out = &c->out[0];
    tr_dtype wide = x->meta->dtype == TR_F64 ? TR_F64 : TR_F32;
    const void *g, *t, *sums;
    entropy e = {.bf16 = tr__is_bf16(x)};
    TR_TRY(open_nll(c, &e.n, x, &c->in[2], &c->in[3], &c->in[6]));
    TR_TRY(tr__dense_in(c, &c->in[0], TR_F64, &g));
    TR_TRY(tr__dense_in(c, x, (tr_dtype) x->meta->dtype, &e.x));
    TR_TRY(tr__dense_in(c, &c->in[4], TR_F64, &t));
    TR_TRY(tr__dense_in(c, &c->in[5], wide, &sums));
    TR_TRY(tr__dense_out(c, out, (tr_dtype) out->meta->dtype, &e.y));
    e.sums = (void *) sums;
    double *factor = tr__scratch(c, (size_t) e.n.n * sizeof *factor);
    if (!factor)
        return TR_E_NOMEM;
    double divisor = e.n.reduction == REDUCE_MEAN ? *(const double *) t : 1;
    for (int64_t i = 0; i < e.n.n; i++)
        factor[i] = nll_weight(&e.n, i) * ((const double *) g)[e.n.reduction == REDUCE_NONE ? i : 0] / divisor;
    e.factor = factor;
    tr__parallel_pieces(c->ctx, e.n.n, rows_grain(&e.n), wide == TR_F64 ? entropy_gradient_double : entropy_gradient_float, &e);
    return tr__dense_out_end(c, out, (tr_dtype) out->meta->dtype, e.y);
}
