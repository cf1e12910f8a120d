/* isa_optim.c - the optimizers' updates, one pass over each parameter, in the order of PyTorch's single-tensor forms. */
#include "exec/kernels/isa_bf16.h"
#include "exec/kernels/kernels.h"

#include "terra/dnn.h"

#include <math.h>

/* One parameter's update: flat arrays of float or double. State is written in place. */
typedef struct update {
    void *p, *g; /* parameter; gradient (read), */
    bool g_bf16; /* perhaps as bfloat16; the others are float then */
    void *s[3];  /* state; NULL: absent */
    double a[9]; /* numbers: of the op's formula, see each */
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

/* a: lr, momentum, dampening, weight_decay */
#define SGD(T)                                                                                                    \
    INLINE void sgd_body_##T(const update *u, int64_t begin, int64_t end, bool buffer, bool first, bool nesterov, \
                             bool decays) {                                                                       \
        T *p = u->p, *m = u->s[0];                                                                                \
        const T *g = u->g, sign = u->flags & MAXIMIZE ? -1 : 1;                                                   \
        const T lr = (T) -u->a[0], momentum = (T) u->a[1], undamped = (T) (1 - u->a[2]), decay = (T) u->a[3];     \
        _Pragma("GCC ivdep") for (int64_t i = begin; i < end; i++) {                                              \
            T d = g[i] * sign;                                                                                    \
            if (decays)                                                                                           \
                d = FMA_##T(p[i], decay, d);                                                                      \
            if (buffer) {                                                                                         \
                T b = first ? d : FMA_##T(d, undamped, m[i] * momentum);                                          \
                m[i] = b;                                                                                         \
                d = nesterov ? FMA_##T(b, momentum, d) : b;                                                       \
            }                                                                                                     \
            p[i] = FMA_##T(d, lr, p[i]);                                                                          \
        }                                                                                                         \
    }                                                                                                             \
    INLINE void sgd_decay_##T(const update *u, int64_t begin, int64_t end, bool decays) {                         \
        const bool nesterov = u->flags & NESTEROV, first = u->flags & FIRST;                                      \
        if (!u->s[0])                                                                                             \
            sgd_body_##T(u, begin, end, false, false, false, decays);                                             \
        else if (nesterov)                                                                                        \
            first ? sgd_body_##T(u, begin, end, true, true, true, decays)                                         \
                  : sgd_body_##T(u, begin, end, true, false, true, decays);                                       \
        else                                                                                                      \
            first ? sgd_body_##T(u, begin, end, true, true, false, decays)                                        \
                  : sgd_body_##T(u, begin, end, true, false, false, decays);                                      \
    }                                                                                                             \
    static void sgd_##T(const update *u, int64_t begin, int64_t end) {                                            \
        if (u->a[3] != 0)                                                                                         \
            sgd_decay_##T(u, begin, end, true);                                                                   \
        else                                                                                                      \
            sgd_decay_##T(u, begin, end, false);                                                                  \
    }

/* a: lr, beta1, beta2, eps, weight_decay, step; of these, 1 - beta1^step, 1 - beta2^step */
enum { NO_DECAY, COUPLED_DECAY, DECOUPLED_DECAY };
#define ADAM(T, sqrt)                                                                                  \
    INLINE void adam_body_##T(const update *u, int64_t begin, int64_t end, bool amsgrad, int decays) { \
        T *p = u->p, *m = u->s[0], *v = u->s[1], *vm = u->s[2];                                        \
        const T *g = u->g, sign = u->flags & MAXIMIZE ? -1 : 1;                                        \
        const double bias1 = u->a[6], bias2 = u->a[7];                                                 \
        const T w1 = (T) (1 - u->a[1]), b2 = (T) u->a[2], w2 = (T) (1 - u->a[2]), eps = (T) u->a[3];   \
        const T decay = (T) u->a[4], keep = (T) (1 - u->a[0] * u->a[4]);                               \
        const T root = (T) sqrt_double(bias2), size = (T) (-u->a[0] / bias1);                          \
        _Pragma("GCC ivdep") for (int64_t i = begin; i < end; i++) {                                   \
            T d = g[i] * sign, x = p[i], mi = m[i];                                                    \
            if (decays == DECOUPLED_DECAY)                                                             \
                x *= keep;                                                                             \
            else if (decays == COUPLED_DECAY)                                                          \
                d = FMA_##T(x, decay, d);                                                              \
            mi = LERP(T, mi, d, w1);                                                                   \
            T vi = FMA_##T(w2 * d, d, v[i] * b2);                                                      \
            m[i] = mi;                                                                                 \
            v[i] = vi;                                                                                 \
            if (amsgrad)                                                                               \
                vi = vm[i] = vm[i] > vi ? vm[i] : vi;                                                  \
            p[i] = x + size * mi / (sqrt(vi) / root + eps);                                            \
        }                                                                                              \
    }                                                                                                  \
    static void adam_##T(const update *u, int64_t begin, int64_t end) {                                \
        int decays = u->a[4] == 0 ? NO_DECAY : u->flags & DECOUPLED ? DECOUPLED_DECAY : COUPLED_DECAY; \
        switch (decays * 2 + (u->s[2] != NULL)) {                                                      \
            case 0:                                                                                    \
                adam_body_##T(u, begin, end, false, NO_DECAY);                                         \
                break;                                                                                 \
            case 1:                                                                                    \
                adam_body_##T(u, begin, end, true, NO_DECAY);                                          \
                break;                                                                                 \
            case 2:                                                                                    \
                adam_body_##T(u, begin, end, false, COUPLED_DECAY);                                    \
                break;                                                                                 \
            case 3:                                                                                    \
                adam_body_##T(u, begin, end, true, COUPLED_DECAY);                                     \
                break;                                                                                 \
            case 4:                                                                                    \
                adam_body_##T(u, begin, end, false, DECOUPLED_DECAY);                                  \
                break;                                                                                 \
            default:                                                                                   \
                adam_body_##T(u, begin, end, true, DECOUPLED_DECAY);                                   \
        }                                                                                              \
    }

/* a: lr, alpha, eps, weight_decay, momentum. s: square_avg, momentum_buffer, grad_avg */
#define RMSPROP(T, sqrt)                                                                                                 \
    INLINE void rmsprop_body_##T(const update *u, int64_t begin, int64_t end, bool buffer, bool centered, bool decays) { \
        T *p = u->p, *v = u->s[0], *b = u->s[1], *a = u->s[2];                                                           \
        const T *g = u->g, sign = u->flags & MAXIMIZE ? -1 : 1;                                                          \
        const T lr = (T) u->a[0], alpha = (T) u->a[1], rest = (T) (1 - u->a[1]), eps = (T) u->a[2];                      \
        const T decay = (T) u->a[3], momentum = (T) u->a[4];                                                             \
        _Pragma("GCC ivdep") for (int64_t i = begin; i < end; i++) {                                                     \
            T d = g[i] * sign;                                                                                           \
            if (decays)                                                                                                  \
                d = FMA_##T(p[i], decay, d);                                                                             \
            T vi = FMA_##T(rest * d, d, v[i] * alpha), mean = vi;                                                        \
            v[i] = vi;                                                                                                   \
            if (centered) {                                                                                              \
                T ai = a[i];                                                                                             \
                ai = LERP(T, ai, d, rest);                                                                               \
                a[i] = ai;                                                                                               \
                mean = FMA_##T(-ai, ai, vi);                                                                             \
            }                                                                                                            \
            T average = sqrt(mean) + eps;                                                                                \
            if (buffer) {                                                                                                \
                T bi = b[i] * momentum + d / average;                                                                    \
                b[i] = bi;                                                                                               \
                p[i] = FMA_##T(bi, -lr, p[i]);                                                                           \
            } else {                                                                                                     \
                p[i] = p[i] + -lr * d / average;                                                                         \
            }                                                                                                            \
        }                                                                                                                \
    }                                                                                                                    \
    static void rmsprop_##T(const update *u, int64_t begin, int64_t end) {                                               \
        switch ((u->a[4] > 0) * 4 + (u->s[2] != NULL) * 2 + (u->a[3] != 0)) {                                            \
            case 0:                                                                                                      \
                rmsprop_body_##T(u, begin, end, false, false, false);                                                    \
                break;                                                                                                   \
            case 1:                                                                                                      \
                rmsprop_body_##T(u, begin, end, false, false, true);                                                     \
                break;                                                                                                   \
            case 2:                                                                                                      \
                rmsprop_body_##T(u, begin, end, false, true, false);                                                     \
                break;                                                                                                   \
            case 3:                                                                                                      \
                rmsprop_body_##T(u, begin, end, false, true, true);                                                      \
                break;                                                                                                   \
            case 4:                                                                                                      \
                rmsprop_body_##T(u, begin, end, true, false, false);                                                     \
                break;                                                                                                   \
            case 5:                                                                                                      \
                rmsprop_body_##T(u, begin, end, true, false, true);                                                      \
                break;                                                                                                   \
            case 6:                                                                                                      \
                rmsprop_body_##T(u, begin, end, true, true, false);                                                      \
                break;                                                                                                   \
            default:                                                                                                     \
                rmsprop_body_##T(u, begin, end, true, true, true);                                                       \
        }                                                                                                                \
    }
SGD(float)
SGD(double)
ADAM(float, __builtin_sqrtf)
ADAM(double, __builtin_sqrt)
RMSPROP(float, __builtin_sqrtf)
RMSPROP(double, __builtin_sqrt)

static void run_flat(tr_op op, const update *u, int64_t begin, int64_t end) {
    bool f32 = u->dtype == TR_F32;
    switch (op) {
        case TR_OP__sgd_:
            (f32 ? sgd_float : sgd_double)(u, begin, end);
            break;
        case TR_OP__adam_:
            (f32 ? adam_float : adam_double)(u, begin, end);
            break;
        default:
            (f32 ? rmsprop_float : rmsprop_double)(u, begin, end);
    }
}

/* The gradient is widened a piece at a time, which stays in the L1 cache. */
static void run_wide(tr_op op, const update *u, int64_t begin, int64_t end) {
    enum { PIECE = 2048 };
    float g[PIECE];
    for (int64_t n; begin < end; begin += n) {
        update part = *u;
        n = tr__min(PIECE, end - begin);
        bf16_widen(g, (const uint16_t *) u->g + begin, n);
        part.p = (float *) u->p + begin;
        part.g = g;
        for (int k = 0; k < 3; k++)
            if (u->s[k])
                part.s[k] = (float *) u->s[k] + begin;
        run_flat(op, &part, 0, n);
    }
}

static void run(tr_op op, const update *u, int64_t begin, int64_t end) {
    (u->g_bf16 ? run_wide : run_flat)(op, u, begin, end);
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

static tr_status close_update(const tr_kernel_call *c, void **dense) {
    for (int k = 0; k < 2 + states_of(c->op); k++)
        if (k != 1 && dense[k] && dense[k] != c->in[k].data)
            TR_TRY(tr__dense_out_end(c, &c->in[k], tr__wide(c->in[0].meta->dtype), dense[k]));
    return TR_OK;
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
    tr__parallel(calls->ctx, total / 16, TR__GRAIN / 32, run_many, &m);
    for (int k = 0; k < n; k++)
        TR_TRY(close_update(&calls[k], dense + 5 * k));
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
