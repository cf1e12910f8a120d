/* isa_ew.c - the step functions of the elementwise engine: loads, stores and roundings between dtypes and the four register
 * classes (float, double, int64, bool), and every operator on them. Compiled once per instruction set.
 *
 * Loops are plain C and carry `ivdep`: an output may be exactly one of the inputs (in place), never shifted against it.
 * Functions that need a transcendental run on vectors of VW bytes through SLEEF (ew_math.h). Formulas follow PyTorch's CPU
 * kernels, fused multiply-adds included, so that simple arithmetic agrees to the bit. */
#include "exec/kernels/kernels.h"
#include "exec/kernels/ew_math.h"

/* ---------------------------------------------------------------------------------------------- conversions */

#define FROM_BOOL(x) ((x) != 0)
#define FROM_U8(x)   (x)
#define FROM_I32(x)  (x)
#define FROM_I64(x)  (x)
#define FROM_BF16(x) tr__bf16_to_f32(x)
#define FROM_F32(x)  (x)
#define FROM_F64(x)  (x)
#define TO_BOOL(x)   ((uint8_t) ((x) != 0))
#define TO_U8(x)     ((uint8_t) (int64_t) (x))
#define TO_I32(x)    ((int32_t) (x))
#define TO_I64(x)    ((int64_t) (x))
#define TO_BF16(x)   tr__f32_to_bf16((float) (x))
#define TO_F32(x)    ((float) (x))
#define TO_F64(x)    ((double) (x))

#define T_F      float
#define T_D      double
#define T_L      int64_t
#define T_B      uint8_t
#define TOC_F(x) ((float) (x))
#define TOC_D(x) ((double) (x))
#define TOC_L(x) ((int64_t) (x))
#define TOC_B(x) ((uint8_t) ((x) != 0))
#define M_BOOL   uint8_t
#define M_U8     uint8_t
#define M_I32    int32_t
#define M_I64    int64_t
#define M_BF16   uint16_t
#define M_F32    float
#define M_F64    double

#define LOADSTORE(d, c)                                                                              \
    static void load_##d##_##c(void *dst, const void *src, int64_t s, int64_t n) {                   \
        T_##c *o = dst;                                                                              \
        const M_##d *x = src;                                                                        \
        if (s == 1) {                                                                                \
            _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) o[i] = TOC_##c(FROM_##d(x[i]));     \
        } else {                                                                                     \
            _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) o[i] = TOC_##c(FROM_##d(x[i * s])); \
        }                                                                                            \
    }                                                                                                \
    static void store_##d##_##c(void *dst, int64_t s, const void *src, int64_t n) {                  \
        M_##d *o = dst;                                                                              \
        const T_##c *x = src;                                                                        \
        if (s == 1) {                                                                                \
            _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) o[i] = TO_##d(x[i]);                \
        } else {                                                                                     \
            for (int64_t i = 0; i < n; i++)                                                          \
                o[i * s] = TO_##d(x[i]);                                                             \
        }                                                                                            \
    }
/* A register of class c, rounded to dtype d, as a register of d's class k. */
#define ROUND(c, d, k)                                                                               \
    static void round_##c##_##d(void *dst, const void *src, int64_t n) {                             \
        T_##k *o = dst;                                                                              \
        const T_##c *x = src;                                                                        \
        _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) o[i] = TOC_##k(FROM_##d(TO_##d(x[i]))); \
    }
#define ALL_CLASSES(d, k) \
    LOADSTORE(d, F) LOADSTORE(d, D) LOADSTORE(d, L) LOADSTORE(d, B) ROUND(F, d, k) ROUND(D, d, k) ROUND(L, d, k) ROUND(B, d, k)
ALL_CLASSES(BOOL, B)
ALL_CLASSES(U8, L)
ALL_CLASSES(I32, L)
ALL_CLASSES(I64, L)
ALL_CLASSES(BF16, F)
ALL_CLASSES(F32, F)
ALL_CLASSES(F64, D)

/* ---------------------------------------------------------------------------------------------- loops */

/* One operand. `c` is the class in, `r` the class out. */
#define UNARY(id, c, r, expr)                                  \
    static void id##_##c(const tr__ew_tile *t) {               \
        T_##r *o = t->out;                                     \
        const T_##c *in = t->in[0];                            \
        int64_t n = t->n;                                      \
        _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) { \
            T_##c x = in[i];                                   \
            o[i] = (T_##r)(expr);                              \
        }                                                      \
    }

/* Two operands, either of which may be one value. */
#define BINARY(id, c, r, expr)                                     \
    static void id##_##c(const tr__ew_tile *t) {                   \
        T_##r *o = t->out;                                         \
        const T_##c *p = t->in[0], *q = t->in[1];                  \
        int64_t n = t->n;                                          \
        if (t->scalar & 2) {                                       \
            T_##c b = *q;                                          \
            if (t->scalar & 1) {                                   \
                T_##c a = *p;                                      \
                for (int64_t i = 0; i < n; i++)                    \
                    o[i] = (T_##r)(expr);                          \
                return;                                            \
            }                                                      \
            _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) { \
                T_##c a = p[i];                                    \
                o[i] = (T_##r)(expr);                              \
            }                                                      \
        } else if (t->scalar & 1) {                                \
            T_##c a = *p;                                          \
            _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) { \
                T_##c b = q[i];                                    \
                o[i] = (T_##r)(expr);                              \
            }                                                      \
        } else {                                                   \
            _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) { \
                T_##c a = p[i], b = q[i];                          \
                o[i] = (T_##r)(expr);                              \
            }                                                      \
        }                                                          \
    }

/* One vector operand and up to two numbers, s and v. */
#define UNARY_SCALARS(id, c, expr)                                \
    static void id##_##c(const tr__ew_tile *t) {                  \
        T_##c *o = t->out;                                        \
        const T_##c *in = t->in[0];                               \
        const T_##c s = t->in[1] ? *(const T_##c *) t->in[1] : 0; \
        const T_##c v = t->in[2] ? *(const T_##c *) t->in[2] : 0; \
        (void) v;                                                 \
        int64_t n = t->n;                                         \
        _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) {    \
            T_##c x = in[i];                                      \
            o[i] = (expr);                                        \
        }                                                         \
    }

/* Two vector operands and a number. */
#define BINARY_SCALAR(id, c, expr)                             \
    static void id##_##c(const tr__ew_tile *t) {               \
        T_##c *o = t->out;                                     \
        const T_##c *p = t->in[0], *q = t->in[1];              \
        const T_##c s = *(const T_##c *) t->in[2];             \
        int64_t n = t->n;                                      \
        _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) { \
            T_##c a = p[i], b = q[i];                          \
            o[i] = (expr);                                     \
        }                                                      \
    }

/* Three vector operands and a number. */
#define TERNARY_SCALAR(id, c, expr)                               \
    static void id##_##c(const tr__ew_tile *t) {                  \
        T_##c *o = t->out;                                        \
        const T_##c *p = t->in[0], *q = t->in[1], *r = t->in[2];  \
        const T_##c s = t->in[3] ? *(const T_##c *) t->in[3] : 0; \
        (void) s;                                                 \
        int64_t n = t->n;                                         \
        _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) {    \
            T_##c a = p[i], b = q[i], w = r[i];                   \
            o[i] = (expr);                                        \
        }                                                         \
    }

/* Vectors: x is a vector V of class c (F or D), the expression one too. */
#define VECTOR1(id, c, expr)                                  \
    static void id##_##c(const tr__ew_tile *t) {              \
        T_##c *o = t->out;                                    \
        const T_##c *in = t->in[0];                           \
        int64_t i = 0, n = t->n;                              \
        for (; i + VN_##c <= n; i += VN_##c) {                \
            v##c x, y;                                        \
            memcpy(&x, in + i, sizeof x);                     \
            y = (expr);                                       \
            memcpy(o + i, &y, sizeof y);                      \
        }                                                     \
        if (i < n) {                                          \
            v##c x = {0}, y;                                  \
            memcpy(&x, in + i, (size_t) (n - i) * sizeof *o); \
            y = (expr);                                       \
            memcpy(o + i, &y, (size_t) (n - i) * sizeof *o);  \
        }                                                     \
    }
#define VECTOR1_SCALARS(id, c, expr)                              \
    static void id##_##c(const tr__ew_tile *t) {                  \
        T_##c *o = t->out;                                        \
        const T_##c *in = t->in[0];                               \
        const T_##c s = t->in[1] ? *(const T_##c *) t->in[1] : 0; \
        const T_##c v = t->in[2] ? *(const T_##c *) t->in[2] : 0; \
        (void) v;                                                 \
        int64_t i = 0, n = t->n;                                  \
        for (; i + VN_##c <= n; i += VN_##c) {                    \
            v##c x, y;                                            \
            memcpy(&x, in + i, sizeof x);                         \
            y = (expr);                                           \
            memcpy(o + i, &y, sizeof y);                          \
        }                                                         \
        if (i < n) {                                              \
            v##c x = {0}, y;                                      \
            memcpy(&x, in + i, (size_t) (n - i) * sizeof *o);     \
            y = (expr);                                           \
            memcpy(o + i, &y, (size_t) (n - i) * sizeof *o);      \
        }                                                         \
    }
#define VECTOR2(id, c, expr)                                 \
    static void id##_##c(const tr__ew_tile *t) {             \
        T_##c *o = t->out;                                   \
        const T_##c *p = t->in[0], *q = t->in[1];            \
        int64_t i = 0, n = t->n;                             \
        for (; i + VN_##c <= n; i += VN_##c) {               \
            v##c a, b, y;                                    \
            memcpy(&a, p + i, sizeof a);                     \
            memcpy(&b, q + i, sizeof b);                     \
            y = (expr);                                      \
            memcpy(o + i, &y, sizeof y);                     \
        }                                                    \
        if (i < n) {                                         \
            v##c a = {0}, b = {0}, y;                        \
            memcpy(&a, p + i, (size_t) (n - i) * sizeof *o); \
            memcpy(&b, q + i, (size_t) (n - i) * sizeof *o); \
            y = (expr);                                      \
            memcpy(o + i, &y, (size_t) (n - i) * sizeof *o); \
        }                                                    \
    }

/* ---------------------------------------------------------------------------------------------- scalar helpers */

#if TR_ISA_LEVEL >= 3
#define FMA_F(a, b, c) __builtin_fmaf(a, b, c)
#define FMA_D(a, b, c) __builtin_fma(a, b, c)
#else
#define FMA_F(a, b, c) ((a) * (b) + (c))
#define FMA_D(a, b, c) ((a) * (b) + (c))
#endif
#define FMA_L(a, b, c) wrap_add(wrap_mul(a, b), c)

static inline int64_t wrap_add(int64_t a, int64_t b) {
    return (int64_t) ((uint64_t) a + (uint64_t) b);
}
static inline int64_t wrap_sub(int64_t a, int64_t b) {
    return (int64_t) ((uint64_t) a - (uint64_t) b);
}
static inline int64_t wrap_mul(int64_t a, int64_t b) {
    return (int64_t) ((uint64_t) a * (uint64_t) b);
}
static inline int64_t wrap_neg(int64_t a) {
    return (int64_t) (0 - (uint64_t) a);
}
/* Zero divisors are found before the step runs; -1 is apart because INT64_MIN / -1 traps. */
static inline int64_t div_trunc(int64_t a, int64_t b) {
    return b == 0 ? 0 : b == -1 ? wrap_neg(a) : a / b;
}
static inline int64_t int_fmod(int64_t a, int64_t b) {
    return b == 0 || b == -1 ? 0 : a % b;
}
static inline int64_t div_floor(int64_t a, int64_t b) {
    int64_t q = div_trunc(a, b);
    return int_fmod(a, b) != 0 && (a < 0) != (b < 0) ? q - 1 : q;
}
static inline int64_t int_remainder(int64_t a, int64_t b) {
    int64_t r = int_fmod(a, b);
    return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
static int64_t int_pow(int64_t a, int64_t b) {
    if (b < 0)
        return a == 1 ? 1 : a == -1 ? (b & 1 ? -1 : 1) : 0;
    int64_t y = 1;
    for (; b; b >>= 1, a = wrap_mul(a, a))
        if (b & 1)
            y = wrap_mul(y, a);
    return y;
}

#define FLOAT_HELPERS(c, fmod, floor, copysign)           \
    static inline T_##c rem_##c(T_##c a, T_##c b) {       \
        T_##c m = fmod(a, b);                             \
        return m != 0 && (b < 0) != (m < 0) ? m + b : m;  \
    }                                                     \
    static inline T_##c floor_div_##c(T_##c a, T_##c b) { \
        if (b == 0)                                       \
            return a / b;                                 \
        T_##c m = fmod(a, b);                             \
        T_##c q = (a - m) / b;                            \
        if (m != 0 && (b < 0) != (m < 0))                 \
            q -= 1;                                       \
        if (q == 0)                                       \
            return copysign(0, a / b);                    \
        T_##c f = floor(q);                               \
        return q - f > (T_##c) 0.5 ? f + 1 : f;           \
    }
FLOAT_HELPERS(F, fmodf, __builtin_floorf, __builtin_copysignf)
FLOAT_HELPERS(D, fmod, __builtin_floor, __builtin_copysign)

/* ---------------------------------------------------------------------------------------------- one operand */

UNARY(neg, F, F, -x)
UNARY(neg, D, D, -x)
UNARY(neg, L, L, wrap_neg(x))
UNARY(abs, F, F, __builtin_fabsf(x))
UNARY(abs, D, D, __builtin_fabs(x))
UNARY(abs, L, L, x < 0 ? wrap_neg(x) : x)
UNARY(sign, F, F, (float) (x > 0) - (float) (x < 0))
UNARY(sign, D, D, (double) (x > 0) - (double) (x < 0))
UNARY(sign, L, L, (x > 0) - (x < 0))
UNARY(square, F, F, x *x)
UNARY(square, D, D, x *x)
UNARY(square, L, L, wrap_mul(x, x))
UNARY(sqrt, F, F, __builtin_sqrtf(x))
UNARY(sqrt, D, D, __builtin_sqrt(x))
UNARY(rsqrt, F, F, 1.0f / __builtin_sqrtf(x))
UNARY(rsqrt, D, D, 1.0 / __builtin_sqrt(x))
UNARY(reciprocal, F, F, 1.0f / x)
UNARY(reciprocal, D, D, 1.0 / x)
UNARY(floor, F, F, __builtin_floorf(x))
UNARY(floor, D, D, __builtin_floor(x))
UNARY(ceil, F, F, __builtin_ceilf(x))
UNARY(ceil, D, D, __builtin_ceil(x))
UNARY(round, F, F, __builtin_rintf(x))
UNARY(round, D, D, __builtin_rint(x))
UNARY(trunc, F, F, __builtin_truncf(x))
UNARY(trunc, D, D, __builtin_trunc(x))
UNARY(same, F, F, x)
UNARY(same, D, D, x)
UNARY(same, L, L, x)
UNARY(same, B, B, x)
UNARY(relu, F, F, x < 0 ? 0 : x)
UNARY(relu, D, D, x < 0 ? 0 : x)
UNARY(relu, L, L, x < 0 ? 0 : x)
UNARY(isnan, F, B, x != x)
UNARY(isnan, D, B, x != x)
UNARY(isnan, L, B, x & 0)
UNARY(isinf, F, B, __builtin_fabsf(x) == __builtin_inff())
UNARY(isinf, D, B, __builtin_fabs(x) == __builtin_inf())
UNARY(isinf, L, B, x & 0)
UNARY(isfinite, F, B, __builtin_fabsf(x) < __builtin_inff())
UNARY(isfinite, D, B, __builtin_fabs(x) < __builtin_inf())
UNARY(isfinite, L, B, (x & 0) == 0)
UNARY(logical_not, F, B, x == 0)
UNARY(logical_not, D, B, x == 0)
UNARY(logical_not, L, B, x == 0)
UNARY(logical_not, B, B, x == 0)
UNARY(bitwise_not, L, L, ~x)
UNARY(bitwise_not, B, B, x == 0)
UNARY_SCALARS(leaky_relu, F, x > 0 ? x : x * s)
UNARY_SCALARS(leaky_relu, D, x > 0 ? x : x * s)
UNARY_SCALARS(hardtanh, F, x<s ? s : x> v ? v : x)
UNARY_SCALARS(hardtanh, D, x<s ? s : x> v ? v : x)
UNARY_SCALARS(hardtanh, L, x<s ? s : x> v ? v : x)

#define TRANSCENDENTAL(c, K)                                                                                                \
    VECTOR1(exp, c, v##c##_exp(x))                                                                                          \
    VECTOR1(expm1, c, v##c##_expm1(x))                                                                                      \
    VECTOR1(log, c, v##c##_log(x))                                                                                          \
    VECTOR1(log2, c, v##c##_log2(x))                                                                                        \
    VECTOR1(log10, c, v##c##_log10(x))                                                                                      \
    VECTOR1(log1p, c, v##c##_log1p_any(x))                                                                                  \
    VECTOR1(sin, c, v##c##_sin(x))                                                                                          \
    VECTOR1(cos, c, v##c##_cos(x))                                                                                          \
    VECTOR1(tan, c, v##c##_tan(x))                                                                                          \
    VECTOR1(asin, c, v##c##_asin(x))                                                                                        \
    VECTOR1(acos, c, v##c##_acos(x))                                                                                        \
    VECTOR1(atan, c, v##c##_atan(x))                                                                                        \
    VECTOR1(sinh, c, v##c##_sinh_any(x))                                                                                    \
    VECTOR1(cosh, c, v##c##_cosh_any(x))                                                                                    \
    VECTOR1(tanh, c, v##c##_tanh_fast(x))                                                                                   \
    VECTOR1(erf, c, v##c##_erf_fast(x))                                                                                     \
    VECTOR1(sigmoid, c, 1 / (1 + v##c##_exp(-x)))                                                                           \
    VECTOR1(silu, c, x / (1 + v##c##_exp(-x)))                                                                              \
    VECTOR1(logsigmoid, c, v##c##_min0(x) - v##c##_log1p(v##c##_exp(-v##c##_abs(x))))                                       \
    VECTOR1_SCALARS(softplus, c, v##c##_select(x *s > v, x, v##c##_log1p(v##c##_exp(x * s)) / s))                           \
    VECTOR1_SCALARS(elu, c, v##c##_select(x < 0, v##c##_expm1(x) * s, x))                                                   \
    VECTOR1(gelu_erf, c, x *K(0.5) * (1 + v##c##_erf_near(x * K(0.70710678118654752440))))                                  \
    /* x (1 + tanh(u)) / 2, u = sqrt(2 / pi) (x + 0.044715 x^3); the numbers are doubled */                                 \
    static inline v##c gelu_tanh_of_##c(v##c x, v##c *rest) {                                                               \
        v##c s, u = x * (K(1.59576912160573071176) + K(0.07135481627260025) * (x * x));                                      \
        v##c##_logistic(u, &s, rest);                                                                                       \
        return s;                                                                                                           \
    }                                                                                                                       \
    VECTOR1(gelu_tanh, c, x *gelu_tanh_of_##c(x, &(v##c){0}))                                                               \
    VECTOR2(atan2, c, v##c##_atan2(a, b))                                                                                   \
    VECTOR2(pow_any, c, v##c##_pow(a, b))                                                                                   \
    static inline v##c gelu_d_##c(v##c g, v##c x) {                                                                         \
        v##c cdf = K(0.5) * (1 + v##c##_erf_near(x * K(0.70710678118654752440)));                                           \
        v##c pdf = v##c##_exp_near(x * x * K(-0.5)) * K(0.39894228040143267794);                                                 \
        return g * (cdf + x * pdf);                                                                                         \
    }                                                                                                                       \
    static inline v##c gelu_tanh_d_##c(v##c g, v##c x) {                                                                    \
        v##c rest, s = gelu_tanh_of_##c(x, &rest), inner = K(1.59576912160573071176) + K(0.21406444881780075) * (x * x);     \
        return g * (s + s * ((x * rest) * inner));                                                                          \
    }                                                                                                                       \
    VECTOR2(gelu_backward_erf, c, gelu_d_##c(a, b))                                                                         \
    VECTOR2(gelu_backward_tanh, c, gelu_tanh_d_##c(a, b))                                                                   \
    static void gelu_##c(const tr__ew_tile *t) {                                                                            \
        (t->attr ? gelu_tanh_##c : gelu_erf_##c)(t);                                                                        \
    }                                                                                                                       \
    static void gelu_backward_##c(const tr__ew_tile *t) {                                                                   \
        (t->attr ? gelu_backward_tanh_##c : gelu_backward_erf_##c)(t);                                                      \
    }
#define K_F(x) (x##f)
#define K_D(x) (x)
TRANSCENDENTAL(F, K_F)
TRANSCENDENTAL(D, K_D)

/* ---------------------------------------------------------------------------------------------- several operands */

/* add and sub: `other` is multiplied by alpha, by a fused multiply-add as PyTorch's vector code does. */
#define ADD_SUB(c)                                                                                  \
    BINARY(add1, c, c, ADD_##c(a, b))                                                               \
    BINARY(sub1, c, c, SUB_##c(a, b))                                                               \
    static void add_alpha_##c(const tr__ew_tile *t, T_##c alpha) {                                  \
        T_##c *o = t->out;                                                                          \
        const T_##c *p = t->in[0], *q = t->in[1];                                                   \
        int64_t n = t->n, sp = !(t->scalar & 1), sq = !(t->scalar & 2);                             \
        if (sp && sq) {                                                                             \
            _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) o[i] = FMA_##c(q[i], alpha, p[i]); \
        } else {                                                                                    \
            for (int64_t i = 0; i < n; i++)                                                         \
                o[i] = FMA_##c(q[i * sq], alpha, p[i * sp]);                                        \
        }                                                                                           \
    }                                                                                               \
    static void add_##c(const tr__ew_tile *t) {                                                     \
        T_##c alpha = t->in[2] ? *(const T_##c *) t->in[2] : 1;                                     \
        if (alpha == 1)                                                                             \
            add1_##c(t);                                                                            \
        else                                                                                        \
            add_alpha_##c(t, alpha);                                                                \
    }                                                                                               \
    static void sub_##c(const tr__ew_tile *t) {                                                     \
        T_##c alpha = t->in[2] ? *(const T_##c *) t->in[2] : 1;                                     \
        if (alpha == 1)                                                                             \
            sub1_##c(t);                                                                            \
        else                                                                                        \
            add_alpha_##c(t, SUB_##c(0, alpha));                                                    \
    }
#define ADD_F(a, b) ((a) + (b))
#define ADD_D(a, b) ((a) + (b))
#define ADD_L(a, b) wrap_add(a, b)
#define SUB_F(a, b) ((a) - (b))
#define SUB_D(a, b) ((a) - (b))
#define SUB_L(a, b) wrap_sub(a, b)
ADD_SUB(F)
ADD_SUB(D)
ADD_SUB(L)
BINARY(mul, F, F, a *b)
BINARY(mul, D, D, a *b)
BINARY(mul, L, L, wrap_mul(a, b))
BINARY(div_true, F, F, a / b)
BINARY(div_true, D, D, a / b)
BINARY(div_trunc, F, F, __builtin_truncf(a / b))
BINARY(div_trunc, D, D, __builtin_trunc(a / b))
BINARY(div_trunc, L, L, div_trunc(a, b))
BINARY(div_floor, F, F, floor_div_F(a, b))
BINARY(div_floor, D, D, floor_div_D(a, b))
BINARY(div_floor, L, L, div_floor(a, b))
/* bfloat16: PyTorch rounds the quotient before it is truncated, and each step of the floor. */
static inline float as_bf16(float x) {
    return tr__bf16_to_f32(tr__f32_to_bf16(x));
}
static inline float floor_div_bf16(float a, float b) {
    if (b == 0)
        return a / b;
    float m = fmodf(a, b);
    float q = as_bf16(as_bf16(a - m) / b);
    if (m != 0 && (b < 0) != (m < 0))
        q = as_bf16(q - 1);
    if (q == 0)
        return __builtin_copysignf(0, a / b);
    float f = __builtin_floorf(q);
    return as_bf16(q - f) > 0.5f ? as_bf16(f + 1) : f;
}
BINARY(div_trunc_bf16, F, F, __builtin_truncf(as_bf16(a / b)))
BINARY(div_floor_bf16, F, F, floor_div_bf16(a, b))
#define DIV(c)                                                                           \
    static void div_##c(const tr__ew_tile *t) {                                          \
        (t->attr == 0 ? div_true_##c : t->attr == 1 ? div_trunc_##c : div_floor_##c)(t); \
    }
#define div_true_L div_trunc_L
DIV(D)
DIV(L)
static void div_F(const tr__ew_tile *t) {
    if (t->attr == 0)
        div_true_F(t);
    else if (t->bf16)
        (t->attr == 1 ? div_trunc_bf16_F : div_floor_bf16_F)(t);
    else
        (t->attr == 1 ? div_trunc_F : div_floor_F)(t);
}
BINARY(remainder, F, F, rem_F(a, b))
BINARY(remainder, D, D, rem_D(a, b))
BINARY(remainder, L, L, int_remainder(a, b))
BINARY(fmod, F, F, fmodf(a, b))
BINARY(fmod, D, D, fmod(a, b))
BINARY(fmod, L, L, int_fmod(a, b))
BINARY(pow, L, L, int_pow(a, b))
BINARY(maximum, F, F, a != a ? a : b != b ? b : a > b ? a : b)
BINARY(maximum, D, D, a != a ? a : b != b ? b : a > b ? a : b)
BINARY(maximum, L, L, a > b ? a : b)
BINARY(minimum, F, F, a != a ? a : b != b ? b : a < b ? a : b)
BINARY(minimum, D, D, a != a ? a : b != b ? b : a < b ? a : b)
BINARY(minimum, L, L, a < b ? a : b)
#define COMPARE(c)                                 \
    BINARY(eq, c, B, a == b)                       \
    BINARY(ne, c, B, a != b)                       \
    BINARY(lt, c, B, a < b)                        \
    BINARY(le, c, B, a <= b)                       \
    BINARY(gt, c, B, a > b)                        \
    BINARY(ge, c, B, a >= b)                       \
    BINARY(logical_and, c, B, (a != 0) & (b != 0)) \
    BINARY(logical_or, c, B, (a != 0) | (b != 0))  \
    BINARY(logical_xor, c, B, (a != 0) ^ (b != 0))
COMPARE(F)
COMPARE(D)
COMPARE(L)
COMPARE(B)
BINARY(bitwise_and, L, L, a &b)
BINARY(bitwise_and, B, B, a &b)
BINARY(bitwise_or, L, L, a | b)
BINARY(bitwise_or, B, B, a | b)
BINARY(bitwise_xor, L, L, a ^ b)
BINARY(bitwise_xor, B, B, a ^ b)

/* pow by one number has PyTorch's short cuts. */
#define POW(c, sqrt)                                                                        \
    static void pow_##c(const tr__ew_tile *t) {                                             \
        T_##c *o = t->out;                                                                  \
        const T_##c *p = t->in[0];                                                          \
        int64_t n = t->n;                                                                   \
        T_##c e = t->attr ? *(const T_##c *) t->in[1] : (T_##c) 7;                          \
        _Pragma("GCC diagnostic push") if (e == (T_##c) 0.5) {                              \
            _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) o[i] = sqrt(p[i]);         \
        }                                                                                   \
        else if (e == 2) {                                                                  \
            _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) o[i] = p[i] * p[i];        \
        }                                                                                   \
        else if (e == 3) {                                                                  \
            _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) o[i] = p[i] * p[i] * p[i]; \
        }                                                                                   \
        else if (e == -1) {                                                                 \
            _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) o[i] = 1 / p[i];           \
        }                                                                                   \
        else if (e == -2) {                                                                 \
            _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) o[i] = 1 / (p[i] * p[i]);  \
        }                                                                                   \
        else if (e == (T_##c) - 0.5) {                                                      \
            _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) o[i] = 1 / sqrt(p[i]);     \
        }                                                                                   \
        else if (e == 0) {                                                                  \
            for (int64_t i = 0; i < n; i++)                                                 \
                o[i] = 1;                                                                   \
        }                                                                                   \
        else if (e == 1) {                                                                  \
            _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) o[i] = p[i];               \
        }                                                                                   \
        else {                                                                              \
            pow_any_##c(t);                                                                 \
        }                                                                                   \
        _Pragma("GCC diagnostic pop")                                                       \
    }
POW(F, __builtin_sqrtf)
POW(D, __builtin_sqrt)

#define SELECT(c)                                                                           \
    static void where_##c(const tr__ew_tile *t) {                                           \
        T_##c *o = t->out;                                                                  \
        const uint8_t *m = t->in[0];                                                        \
        const T_##c *p = t->in[1], *q = t->in[2];                                           \
        int64_t n = t->n;                                                                   \
        if (t->scalar & 4) {                                                                \
            T_##c b = *q;                                                                   \
            _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) o[i] = m[i] ? p[i] : b;    \
        } else {                                                                            \
            _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) o[i] = m[i] ? p[i] : q[i]; \
        }                                                                                   \
    }                                                                                       \
    static void masked_fill_##c(const tr__ew_tile *t) {                                     \
        T_##c *o = t->out;                                                                  \
        const T_##c *p = t->in[0];                                                          \
        const uint8_t *m = t->in[1];                                                        \
        T_##c b = *(const T_##c *) t->in[2];                                                \
        int64_t n = t->n;                                                                   \
        _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) o[i] = m[i] ? b : p[i];        \
    }
SELECT(F)
SELECT(D)
SELECT(L)
SELECT(B)

/* clamp: a missing bound is NULL; NaN in the value or a bound wins, and the upper bound beats the lower. */
#define CLAMP(c)                                                                                                \
    static inline T_##c clamp_lo_##c(T_##c x, T_##c lo) {                                                       \
        return x != x ? x : lo != lo ? lo : x < lo ? lo : x;                                                    \
    }                                                                                                           \
    static inline T_##c clamp_hi_##c(T_##c x, T_##c hi) {                                                       \
        return x != x ? x : hi != hi ? hi : x > hi ? hi : x;                                                    \
    }                                                                                                           \
    static void clamp_##c(const tr__ew_tile *t) {                                                               \
        T_##c *o = t->out;                                                                                      \
        const T_##c *x = t->in[0], *lo = t->in[1], *hi = t->in[2];                                              \
        int64_t n = t->n;                                                                                       \
        bool one_lo = t->scalar & 2, one_hi = t->scalar & 4;                                                    \
        if (lo && hi && one_lo && one_hi) {                                                                     \
            T_##c l = *lo, h = *hi;                                                                             \
            _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) o[i] = clamp_hi_##c(clamp_lo_##c(x[i], l), h); \
            return;                                                                                             \
        }                                                                                                       \
        if (lo && !hi && one_lo) {                                                                              \
            T_##c l = *lo;                                                                                      \
            _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) o[i] = clamp_lo_##c(x[i], l);                  \
            return;                                                                                             \
        }                                                                                                       \
        if (hi && !lo && one_hi) {                                                                              \
            T_##c h = *hi;                                                                                      \
            _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) o[i] = clamp_hi_##c(x[i], h);                  \
            return;                                                                                             \
        }                                                                                                       \
        for (int64_t i = 0; i < n; i++) {                                                                       \
            T_##c y = x[i];                                                                                     \
            if (lo)                                                                                             \
                y = clamp_lo_##c(y, lo[one_lo ? 0 : i]);                                                        \
            if (hi)                                                                                             \
                y = clamp_hi_##c(y, hi[one_hi ? 0 : i]);                                                        \
            o[i] = y;                                                                                           \
        }                                                                                                       \
    }
CLAMP(F)
CLAMP(D)
CLAMP(L)

TERNARY_SCALAR(lerp, F, __builtin_fabsf(w) < 0.5f ? FMA_F(w, b - a, a) : FMA_F(w - 1, b - a, b))
TERNARY_SCALAR(lerp, D, __builtin_fabs(w) < 0.5 ? FMA_D(w, b - a, a) : FMA_D(w - 1, b - a, b))
TERNARY_SCALAR(addcmul, F, FMA_F(s *b, w, a))
TERNARY_SCALAR(addcmul, D, FMA_D(s *b, w, a))
TERNARY_SCALAR(addcmul, L, wrap_add(a, wrap_mul(wrap_mul(s, b), w)))
TERNARY_SCALAR(addcdiv, F, a + s * b / w)
TERNARY_SCALAR(addcdiv, D, a + s * b / w)
BINARY_SCALAR(threshold_backward, F, b <= s ? 0 : a)
BINARY_SCALAR(threshold_backward, D, b <= s ? 0 : a)
BINARY_SCALAR(threshold_backward, L, b <= s ? 0 : a)
#define MASKED_SCALE(c)                                                                        \
    static void masked_scale_##c(const tr__ew_tile *t) {                                       \
        T_##c *o = t->out;                                                                     \
        const T_##c *x = t->in[0];                                                             \
        const uint8_t *m = t->in[1];                                                           \
        T_##c s = *(const T_##c *) t->in[2];                                                   \
        int64_t n = t->n;                                                                      \
        _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) o[i] = x[i] * ((T_##c) m[i] * s); \
    }
MASKED_SCALE(F)
MASKED_SCALE(D)

/* ---------------------------------------------------------------------------------------------- the table */

#define E1(id, c)       [TR__##c] = {id##_##c, 0, 0, 0}
#define FD(id)          [TR_OP_##id] = {E1(id, F), E1(id, D)}
#define FDL(id)         [TR_OP_##id] = {E1(id, F), E1(id, D), E1(id, L)}
#define ES(id, c, s, b) [TR__##c] = {id##_##c, s, 0, b}
#define FD_S(id, s)     [TR_OP_##id] = {ES(id, F, s, 0), ES(id, D, s, 0)}
#define FDL_S(id, s)    [TR_OP_##id] = {ES(id, F, s, 0), ES(id, D, s, 0), ES(id, L, s, 0)}
#define TEST(id, s)     [TR_OP_##id] = {ES(id, F, s, 1), ES(id, D, s, 1), ES(id, L, s, 1)}
#define TEST_B(id, s)   [TR_OP_##id] = {ES(id, F, s, 1), ES(id, D, s, 1), ES(id, L, s, 1), ES(id, B, s, 1)}
#define LB(id, s)       [TR_OP_##id] = {ES(id, L, s, 0), ES(id, B, s, 0)}
#define SAME(id)        [TR_OP_##id] = {E1(same, F), E1(same, D), E1(same, L), E1(same, B)}
#define EM(id, c, s, m) [TR__##c] = {id##_##c, s, m, 0}

#define LOADS(d)  [TR_##d] = {load_##d##_F, load_##d##_D, load_##d##_L, load_##d##_B}
#define STORES(d) [TR_##d] = {store_##d##_F, store_##d##_D, store_##d##_L, store_##d##_B}
#define ROUNDS(c)                                                                     \
    [TR__##c] = {round_##c##_BOOL, round_##c##_U8,  round_##c##_I32, round_##c##_I64, \
                 round_##c##_BF16, round_##c##_F32, round_##c##_F64}

#define KERNEL_EW(id)    tr__kernel_elementwise
#define KERNEL_VIEW(id)  NULL
#define KERNEL_MM(id)    tr__kernel_##id
#define KERNEL_CONV(id)  tr__kernel_##id
#define KERNEL_NEW(id)   tr__kernel_##id
#define KERNEL_RED(id)   TR__SUFFIXED(tr__kernel_##id)
#define KERNEL_POOL(id)  TR__SUFFIXED(tr__kernel_##id)
#define KERNEL_NORM(id)  TR__SUFFIXED(tr__kernel_##id)
#define KERNEL_SOFT(id)  TR__SUFFIXED(tr__kernel_##id)
#define KERNEL_IDX(id)   TR__SUFFIXED(tr__kernel_##id)
#define KERNEL_RAND(id)  TR__SUFFIXED(tr__kernel_##id)
#define KERNEL_OPTIM(id) TR__SUFFIXED(tr__kernel_##id)
#define KERNEL_LOSS(id)  TR__SUFFIXED(tr__kernel_##id)

extern const tr__isa TR__SUFFIXED(tr__isa);
const tr__isa
    TR__SUFFIXED(tr__isa) =
        {
            .name = ISA_NAME,
            .ew =
                {
                    FDL(neg),
                    FDL(abs),
                    FDL(sign),
                    FDL(square),
                    FD(exp),
                    FD(expm1),
                    FD(log),
                    FD(log2),
                    FD(log10),
                    FD(log1p),
                    FD(sqrt),
                    FD(rsqrt),
                    FD(reciprocal),
                    FD(sin),
                    FD(cos),
                    FD(tan),
                    FD(asin),
                    FD(acos),
                    FD(atan),
                    FD(sinh),
                    FD(cosh),
                    FD(tanh),
                    FD(sigmoid),
                    FD(erf),
                    [TR_OP_floor] = {E1(floor, F), E1(floor, D), E1(same, L)},
                    [TR_OP_ceil] = {E1(ceil, F), E1(ceil, D), E1(same, L)},
                    [TR_OP_round] = {E1(round, F), E1(round, D), E1(same, L)},
                    [TR_OP_trunc] = {E1(trunc, F), E1(trunc, D), E1(same, L)},
                    FDL(relu),
                    FD(silu),
                    FD(gelu),
                    FD_S(softplus, 6),
                    FD_S(leaky_relu, 2),
                    FD_S(elu, 2),
                    FDL_S(hardtanh, 6),
                    FD(logsigmoid),
                    TEST(isnan, 0),
                    TEST(isinf, 0),
                    TEST(isfinite, 0),
                    TEST_B(logical_not, 0),
                    LB(bitwise_not, 0),
                    SAME(clone),
                    SAME(_contiguous),
                    SAME(_cast),
                    SAME(copy_),
                    SAME(fill_),
                    FDL_S(add, 7),
                    FDL_S(sub, 7),
                    FDL_S(mul, 3),
                    FDL_S(div, 3),
                    FDL_S(remainder, 3),
                    FDL_S(fmod, 3),
                    [TR_OP_pow] = {ES(pow, F, 0, 0), ES(pow, D, 0, 0), ES(pow, L, 3, 0)},
                    FD(atan2),
                    FDL_S(maximum, 3),
                    FDL_S(minimum, 3),
                    TEST_B(eq, 3),
                    TEST_B(ne, 3),
                    TEST_B(lt, 3),
                    TEST_B(le, 3),
                    TEST_B(gt, 3),
                    TEST_B(ge, 3),
                    TEST_B(logical_and, 3),
                    TEST_B(logical_or, 3),
                    TEST_B(logical_xor, 3),
                    LB(bitwise_and, 3),
                    LB(bitwise_or, 3),
                    LB(bitwise_xor, 3),
                    [TR_OP_where] = {EM(where, F, 4, 1), EM(where, D, 4, 1), EM(where, L, 4, 1), EM(where, B, 4, 1)},
                    [TR_OP_masked_fill] = {EM(masked_fill, F, 4, 2),
                                           EM(masked_fill, D, 4, 2), EM(masked_fill, L, 4, 2), EM(masked_fill, B, 4, 2)},
                    FDL_S(clamp, 6),
                    FD(lerp),
                    FDL_S(addcmul, 8),
                    FD_S(addcdiv, 8),
                    FDL_S(threshold_backward, 4),
                    FD(gelu_backward),
                    [TR_OP_masked_scale] = {EM(masked_scale, F, 4, 2), EM(masked_scale, D, 4, 2)},
                },
            .load = {LOADS(BOOL), LOADS(U8), LOADS(I32), LOADS(I64), LOADS(BF16), LOADS(F32), LOADS(F64)},
            .store = {STORES(BOOL), STORES(U8), STORES(I32), STORES(I64), STORES(BF16), STORES(F32), STORES(F64)},
            .round = {ROUNDS(F), ROUNDS(D), ROUNDS(L), ROUNDS(B)},
            .update_all = TR__SUFFIXED(tr__update_all),
            .dropout_draw = TR__SUFFIXED(tr__dropout_draw),
            .dropout_apply = TR__SUFFIXED(tr__dropout_apply),
            .norm_forward = TR__SUFFIXED(tr__norm_forward),
            .norm_backward = TR__SUFFIXED(tr__norm_backward),
            .layer_norm_forward = TR__SUFFIXED(tr__layer_norm_forward),
            .pack_columns = TR__SUFFIXED(tr__pack_columns),
#if TR_ISA_LEVEL >= 3
            .convolve = TR__SUFFIXED(tr__convolve),
#endif
            .conv_panel = TR_ISA_LEVEL >= 4 ? 64 : TR__CONV_PANEL,
#if TR_ISA_LEVEL >= 4
            .convolve_bf16 = TR__SUFFIXED(tr__convolve_bf16),
            .convolve_tiles = TR__SUFFIXED(tr__convolve_tiles),
            .multiply = TR__SUFFIXED(tr__multiply),
#endif
            .kernel =
                {
#define TR_OP(id, expose, class, rule, vjp, schema) [TR_OP_##id] = KERNEL_##class(id),
#include "terra/ops.def"
#undef TR_OP
                },
};
