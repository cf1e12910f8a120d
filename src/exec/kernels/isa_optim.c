/* isa_optim.c - the optimizers' updates, one pass over each parameter, in the order of PyTorch's single-tensor forms. */
#include "exec/kernels/kernels.h"

#include "terra/dnn.h"

#include <math.h>

/* One parameter's update: flat arrays of float or double. State is written in place. */
typedef struct update {
    void *p, *g;    /* parameter; gradient (read), */
    bool g_bf16;    /* perhaps as bfloat16; the others are float then */
    uint16_t *copy; /* of the parameter, float, as bfloat16 (written); or NULL */
    void *s[3];     /* state; NULL: absent */
    double a[9];    /* numbers: of the op's formula, see each */
    int64_t n;
    int flags;
    tr_dtype dtype;
} update;

#if TR_ISA_LEVEL >= 3
#define FMA_float(a, b, c)  __builtin_fmaf(a, b, c)
#define FMA_double(a, b, c) __builtin_fma(a, b, c)
#else
#define FMA_float(a, b, c)  ((a) * (b) + (c))
#define FMA_double(a, b, c) ((a) * (b) + (c))
#endif

enum { MAXIMIZE = 1, NESTEROV = 2, FIRST = 4, DECOUPLED = 8 };

#define LERP(T, a, b, w) ((w) < (T) 0.5 ? FMA_##T(w, (b) - (a), a) : FMA_##T((w) -1, (b) - (a), b))

/* Each body is compiled for every combination of its constant flags, so that the loop has no branch left and vectorises. */
#define INLINE static inline __attribute__((always_inline))
static double sqrt_double(double x) {
    return __builtin_sqrt(x);
}

/* How the gradient comes and what is written: float alone has other forms than 0. */
enum { G_BF16 = 1, COPIES = 2 };
#define GRADIENT_float(i)  (form & G_BF16 ? tr__bf16_to_f32(((const uint16_t *) u->g)[i]) : ((const float *) u->g)[i])
#define GRADIENT_double(i) (((const double *) u->g)[i])
#define COPY_float(i, x) \
    if (form & COPIES)   \
        copy[i] = tr__f32_to_bf16(x);
#define COPY_double(i, x) (void) copy;

/* a: lr, momentum, dampening, weight_decay */
#define SGD(T)                                                                                                    \
    INLINE void sgd_body_##T(const update *u, int64_t begin, int64_t end, int form, bool buffer, bool first,      \
                             bool nesterov, bool decays) {                                                        \
        T *p = u->p, *m = u->s[0];                                                                                \
        uint16_t *copy = u->copy;                                                                                 \
        const T sign = u->flags & MAXIMIZE ? -1 : 1;                                                              \
        const T lr = (T) -u->a[0], momentum = (T) u->a[1], undamped = (T) (1 - u->a[2]), decay = (T) u->a[3];     \
        _Pragma("GCC ivdep") for (int64_t i = begin; i < end; i++) {                                              \
            T d = GRADIENT_##T(i) * sign, x = p[i];                                                               \
            if (decays)                                                                                           \
                d = FMA_##T(x, decay, d);                                                                         \
            if (buffer) {                                                                                         \
                T b = first ? d : FMA_##T(d, undamped, m[i] * momentum);                                          \
                m[i] = b;                                                                                         \
                d = nesterov ? FMA_##T(b, momentum, d) : b;                                                       \
            }                                                                                                     \
            p[i] = x = FMA_##T(d, lr, x);                                                                         \
            COPY_##T(i, x)                                                                                        \
        }                                                                                                         \
    }                                                                                                             \
    INLINE void sgd_decay_##T(const update *u, int64_t begin, int64_t end, int form, bool decays) {               \
        const bool nesterov = u->flags & NESTEROV, first = u->flags & FIRST;                                      \
        if (!u->s[0])                                                                                             \
            sgd_body_##T(u, begin, end, form, false, false, false, decays);                                       \
        else if (nesterov)                                                                                        \
            first ? sgd_body_##T(u, begin, end, form, true, true, true, decays)                                   \
                  : sgd_body_##T(u, begin, end, form, true, false, true, decays);                                 \
        else                                                                                                      \
            first ? sgd_body_##T(u, begin, end, form, true, true, false, decays)                                  \
                  : sgd_body_##T(u, begin, end, form, true, false, false, decays);                                \
    }                                                                                                             \
    INLINE void sgd_##T(const update *u, int64_t begin, int64_t end, int form) {                                  \
        if (u->a[3] != 0)                                                                                         \
            sgd_decay_##T(u, begin, end, form, true);                                                             \
        else                                                                                                      \
            sgd_decay_##T(u, begin, end, form, false);                                                            \
    }

/* a: lr, beta1, beta2, eps, weight_decay, step; of these, 1 - beta1^step, 1 - beta2^step */
enum { NO_DECAY, COUPLED_DECAY, DECOUPLED_DECAY };
#define ADAM(T, sqrt)                                                                                            \
    INLINE void adam_body_##T(const update *u, int64_t begin, int64_t end, int form, bool amsgrad, int decays) { \
        T *p = u->p, *m = u->s[0], *v = u->s[1], *vm = u->s[2];                                                  \
        uint16_t *copy = u->copy;                                                                                \
        const T sign = u->flags & MAXIMIZE ? -1 : 1;                                                             \
        const double bias1 = u->a[6], bias2 = u->a[7];                                                           \
        const T w1 = (T) (1 - u->a[1]), b2 = (T) u->a[2], w2 = (T) (1 - u->a[2]), eps = (T) u->a[3];             \
        const T decay = (T) u->a[4], keep = (T) (1 - u->a[0] * u->a[4]);                                         \
        const T root = (T) sqrt_double(bias2), size = (T) (-u->a[0] / bias1);                                    \
        _Pragma("GCC ivdep") for (int64_t i = begin; i < end; i++) {                                             \
            T d = GRADIENT_##T(i) * sign, x = p[i], mi = m[i];                                                   \
            if (decays == DECOUPLED_DECAY)                                                                       \
                x *= keep;                                                                                       \
            else if (decays == COUPLED_DECAY)                                                                    \
                d = FMA_##T(x, decay, d);                                                                        \
            mi = LERP(T, mi, d, w1);                                                                             \
            T vi = FMA_##T(w2 * d, d, v[i] * b2);                                                                \
            m[i] = mi;                                                                                           \
            v[i] = vi;                                                                                           \
            if (amsgrad)                                                                                         \
                vi = vm[i] = vm[i] > vi ? vm[i] : vi;                                                            \
            p[i] = x = x + size * mi / (sqrt(vi) / root + eps);                                                  \
            COPY_##T(i, x)                                                                                       \
        }                                                                                                        \
    }                                                                                                            \
    INLINE void adam_decay_##T(const update *u, int64_t begin, int64_t end, int form, int decays) {              \
        if (u->s[2])                                                                                             \
            adam_body_##T(u, begin, end, form, true, decays);                                                    \
        else                                                                                                     \
            adam_body_##T(u, begin, end, form, false, decays);                                                   \
    }                                                                                                            \
    INLINE void adam_##T(const update *u, int64_t begin, int64_t end, int form) {                                \
        if (u->a[4] == 0)                                                                                        \
            adam_decay_##T(u, begin, end, form, NO_DECAY);                                                       \
        else if (u->flags & DECOUPLED)                                                                           \
            adam_decay_##T(u, begin, end, form, DECOUPLED_DECAY);                                                \
        else                                                                                                     \
            adam_decay_##T(u, begin, end, form, COUPLED_DECAY);                                                  \
    }

/* a: lr, alpha, eps, weight_decay, momentum. s: square_avg, momentum_buffer, grad_avg */
#define RMSPROP(T, sqrt)                                                                                               \
    INLINE void rmsprop_body_##T(const update *u, int64_t begin, int64_t end, int form, bool buffer, bool centered,    \
                                 bool decays) {                                                                        \
        T *p = u->p, *v = u->s[0], *b = u->s[1], *a = u->s[2];                                                         \
        uint16_t *copy = u->copy;                                                                                      \
        const T sign = u->flags & MAXIMIZE ? -1 : 1;                                                                   \
        const T lr = (T) u->a[0], alpha = (T) u->a[1], rest = (T) (1 - u->a[1]), eps = (T) u->a[2];                    \
        const T decay = (T) u->a[3], momentum = (T) u->a[4];                                                           \
        _Pragma("GCC ivdep") for (int64_t i = begin; i < end; i++) {                                                   \
            T d = GRADIENT_##T(i) * sign, x = p[i];                                                                    \
            if (decays)                                                                                                \
                d = FMA_##T(x, decay, d);                                                                              \
            T vi = FMA_##T(rest * d, d, v[i] * alpha), mean = vi;                                                      \
            v[i] = vi;                                                                                                 \
            if (centered) {                                                                                            \
                T ai = a[i];                                                                                           \
                ai = LERP(T, ai, d, rest);                                                                             \
                a[i] = ai;                                                                                             \
                mean = FMA_##T(-ai, ai, vi);                                                                           \
            }                                                                                                          \
            T average = sqrt(mean) + eps;                                                                              \
            if (buffer) {                                                                                              \
                T bi = b[i] * momentum + d / average;                                                                  \
                b[i] = bi;                                                                                             \
                x = FMA_##T(bi, -lr, x);                                                                               \
            } else {                                                                                                   \
                x = x + -lr * d / average;                                                                             \
            }                                                                                                          \
            p[i] = x;                                                                                                  \
            COPY_##T(i, x)                                                                                             \
        }                                                                                                              \
    }                                                                                                                  \
    INLINE void rmsprop_decay_##T(const update *u, int64_t begin, int64_t end, int form, bool decays) {                \
        switch ((u->a[4] > 0) * 2 + (u->s[2] != NULL)) {                                                               \
            case 0:                                                                                                    \
                rmsprop_body_##T(u, begin, end, form, false, false, decays);                                           \
                break;                                                                                                 \
            case 1:                                                                                                    \
                rmsprop_body_##T(u, begin, end, form, false, true, decays);                                            \
                break;                                                                                                 \
            case 2:                                                                                                    \
                rmsprop_body_##T(u, begin, end, form, true, false, decays);                                            \
                break;                                                                                                 \
            default:                                                                                                   \
                rmsprop_body_##T(u, begin, end, form, true, true, decays);                                             \
        }                                                                                                              \
    }                                                                                                                  \
    INLINE void rmsprop_##T(const update *u, int64_t begin, int64_t end, int form) {                                   \
        if (u->a[3] != 0)                                                                                              \
            rmsprop_decay_##T(u, begin, end, form, true);                                                              \
        else                                                                                                           \
            rmsprop_decay_##T(u, begin, end, form, false);                                                             \
    }
SGD(float)
SGD(double)
ADAM(float, __builtin_sqrtf)
ADAM(double, __builtin_sqrt)
RMSPROP(float, __builtin_sqrtf)
RMSPROP(double, __builtin_sqrt)

/* The form becomes a constant, so that the loops have no branch left. */
#define RUNS(of)                                                        \
    static void run_##of(const update *u, int64_t begin, int64_t end) { \
        switch ((u->g_bf16 ? G_BF16 : 0) | (u->copy ? COPIES : 0)) {    \
            case G_BF16:                                                \
                of##_float(u, begin, end, G_BF16);                      \
                break;                                                  \
            case COPIES:                                                \
                of##_float(u, begin, end, COPIES);                      \
                break;                                                  \
            case G_BF16 | COPIES:                                       \
                of##_float(u, begin, end, G_BF16 | COPIES);             \
                break;                                                  \
            default:                                                    \
                if (u->dtype == TR_F32)                                 \
                    of##_float(u, begin, end, 0);                       \
                else                                                    \
                    of##_double(u, begin, end, 0);                      \
        }                                                               \
    }
RUNS(sgd)
RUNS(adam)
RUNS(rmsprop)

static void run(tr_op op, const update *u, int64_t begin, int64_t end) {
    switch (op) {
        case TR_OP__sgd_:
            run_sgd(u, begin, end);
            break;
        case TR_OP__adam_:
            run_adam(u, begin, end);
            break;
        default:
            run_rmsprop(u, begin, end);
    }
}

/* Do all tensors lie in one order without gaps, so that a flat pass meets the same elements? */
static bool same_layout(const tr_arg *a, const tr_arg *b) {
    if (a->meta == b->meta)
        return true;
    if (a->meta->dtype != b->meta->dtype)
        return false;
    if (a->meta->contiguous && b->meta->contiguous)
        return true;
    for (int d = 0; d < a->meta->ndim; d++)
        if (a->meta->shape[d] > 1 && a->meta->strides[d] != b->meta->strides[d])
            return false;
    return a->meta->ndim == b->meta->ndim;
}

/* Tensors in the order param, grad, states; other layouts and dtypes go through dense copies. */
static tr_status open_update(const tr_kernel_call *c, int n_state, update *u, void **dense) {
    const tr_arg *p = &c->in[0], *g = &c->in[1];
    tr_meta narrow;
    tr_arg narrowed = {.data = g->data, .meta = &narrow};
    u->n = p->meta->numel;
    u->dtype = tr__wide(p->meta->dtype);
    bool flat = p->meta->dense && p->meta->dtype == u->dtype;
    for (int k = 1; k < 2 + n_state; k++)
        flat = flat && (tr__absent(&c->in[k]) || same_layout(p, &c->in[k]));
    u->g_bf16 = flat && tr_home_is_bf16(g->home);
    if (tr_home_is_bf16(g->home)) {
        tr__meta_make(&narrow, TR_BF16, g->meta->ndim, g->meta->shape, NULL);
        g = &narrowed;
    }
    for (int k = 0; k < 2 + n_state; k++) {
        const tr_arg *x = k == 1 ? g : &c->in[k];
        dense[k] = NULL;
        if (tr__absent(x))
            continue;
        if (flat)
            dense[k] = x->data;
        else
            TR_TRY(tr__dense_inout(c, x, u->dtype, &dense[k]));
    }
    u->copy = flat ? p->copy : NULL;
    u->p = dense[0];
    u->g = dense[1];
    for (int k = 0; k < 3; k++)
        u->s[k] = k < n_state ? dense[2 + k] : NULL;
    return TR_OK;
}

static int states_of(tr_op op) {
    return op == TR_OP__sgd_ ? 1 : 3;
}

static void read_numbers(const tr_kernel_call *c, update *u) {
    int first = 2 + states_of(c->op);
    for (int k = first; k < c->n_in && k - first < 9; k++)
        u->a[k - first] = tr_arg_double(&c->in[k]);
    switch (c->op) {
        case TR_OP__sgd_:
            u->flags = (c->attrs[0] ? NESTEROV : 0) | (c->attrs[1] ? MAXIMIZE : 0) | (c->attrs[2] ? FIRST : 0);
            break;
        case TR_OP__adam_:
            u->a[6] = 1 - pow(u->a[1], u->a[5]);
            u->a[7] = 1 - pow(u->a[2], u->a[5]);
            u->flags = (c->attrs[0] ? DECOUPLED : 0) | (c->attrs[1] ? MAXIMIZE : 0);
            break;
        default:
            u->flags = c->attrs[0] ? MAXIMIZE : 0;
    }
}

/* copied: the update has written the parameter's copy, if there is one. */
static tr_status close_update(const tr_kernel_call *c, void **dense, bool copied) {
    for (int k = 0; k < 2 + states_of(c->op); k++)
        if (k != 1 && dense[k] && dense[k] != c->in[k].data)
            TR_TRY(tr__dense_out_end(c, &c->in[k], tr__wide(c->in[0].meta->dtype), dense[k]));
    bool lacks = c->in[0].copy && !copied;
    return lacks ? tr__copy_as_bf16(c->ctx, c->in[0].copy, &c->in[0]) : TR_OK;
}

/* Many updates in one parallel region, cut by elements. `ends[k]`: elements up to and including update k. */
typedef struct many {
    const update *updates;
    const int64_t *ends;
    tr_op op;
    int n;
} many;

static void run_many(void *env, int64_t begin, int64_t end, int thread) {
    const many *m = env;
    int64_t from = 0;
    begin *= 16;
    end *= 16;
    for (int k = 0; k < m->n; from = m->ends[k++]) {
        int64_t lo = tr__max(begin, from), hi = tr__min(end, m->ends[k]);
        if (lo < hi)
            run(m->op, &m->updates[k], lo - from, tr__min(hi - from, m->updates[k].n));
    }
}

static tr_status update_all(tr_op op, const tr_kernel_call *calls, int n) {
    update *u = tr__scratch(calls, (size_t) n * (sizeof *u + sizeof(int64_t) + 5 * sizeof(void *)));
    if (!u)
        return TR_E_NOMEM;
    int64_t *ends = (int64_t *) (u + n);
    void **dense = (void **) (ends + n);
    int64_t total = 0;
    for (int k = 0; k < n; k++) {
        TR_TRY(open_update(&calls[k], states_of(op), &u[k], dense + 5 * k));
        read_numbers(&calls[k], &u[k]);
        total += (u[k].n + 15) / 16 * 16; // cuts fall on cache lines
        ends[k] = total;
    }
    many m = {u, ends, op, n};
    tr__parallel_pieces(calls->ctx, total / 16, TR__GRAIN / 32, run_many, &m);
    for (int k = 0; k < n; k++)
        TR_TRY(close_update(&calls[k], dense + 5 * k, u[k].copy != NULL));
    return TR_OK;
}

tr_status TR__SUFFIXED(tr__update_all)(tr_op op, const tr_kernel_call *calls, int n) {
    return update_all(op, calls, n);
}
TR__ISA_KERNEL(_sgd_) {
    return update_all(c->op, c, 1);
}
TR__ISA_KERNEL(_adam_) {
    return update_all(c->op, c, 1);
}
TR__ISA_KERNEL(_rmsprop_) {
    return update_all(c->op, c, 1);
}
