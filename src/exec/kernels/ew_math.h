/* ew_math.h - vectors of the instruction set that a file is compiled for, and SLEEF's functions on them (1.0 ulp variants).
 * Included by isa_*.c only. */
#ifndef TERRA_EXEC_EW_MATH_H
#define TERRA_EXEC_EW_MATH_H

#include <math.h>
#include <stdint.h>

#if TR_ISA_LEVEL >= 4
#define ISA_NAME       "v4"
#define VW             64
#define SLEEF_F(fn, x) Sleef_##fn##f16_##x##avx512f
#define SLEEF_D(fn, x) Sleef_##fn##d8_##x##avx512f
#elif TR_ISA_LEVEL == 3
#define ISA_NAME       "v3"
#define VW             32
#define SLEEF_F(fn, x) Sleef_##fn##f8_##x##avx2
#define SLEEF_D(fn, x) Sleef_##fn##d4_##x##avx2
#elif TR_ISA_LEVEL == 2
#define ISA_NAME       "v2"
#define VW             16
#define SLEEF_F(fn, x) Sleef_##fn##f4_##x##sse4
#define SLEEF_D(fn, x) Sleef_##fn##d2_##x##sse4
#else
#define ISA_NAME "generic"
#define VW       16
#endif

#define ALWAYS static inline __attribute__((always_inline))
enum { VN_F = VW / 4, VN_D = VW / 8 };
typedef float vF __attribute__((vector_size(VW)));
typedef double vD __attribute__((vector_size(VW)));
typedef int32_t vFi __attribute__((vector_size(VW)));
typedef uint32_t vFu __attribute__((vector_size(VW)));
typedef int64_t vDi __attribute__((vector_size(VW)));

#if TR_ISA_LEVEL >= 2
#include <immintrin.h>
#include <sleef.h>
#define VFN1(id, x)                  \
    static inline vF vF_##id(vF a) { \
        return SLEEF_F(id, x)(a);    \
    }                                \
    static inline vD vD_##id(vD a) { \
        return SLEEF_D(id, x)(a);    \
    }
#define VFN2(id, x)                        \
    static inline vF vF_##id(vF a, vF b) { \
        return SLEEF_F(id, x)(a, b);       \
    }                                      \
    static inline vD vD_##id(vD a, vD b) { \
        return SLEEF_D(id, x)(a, b);       \
    }
#else
#define VFN1(id, x)                    \
    static inline vF vF_##id(vF a) {   \
        for (int i = 0; i < VN_F; i++) \
            a[i] = id##f(a[i]);        \
        return a;                      \
    }                                  \
    static inline vD vD_##id(vD a) {   \
        for (int i = 0; i < VN_D; i++) \
            a[i] = id(a[i]);           \
        return a;                      \
    }
#define VFN2(id, x)                        \
    static inline vF vF_##id(vF a, vF b) { \
        for (int i = 0; i < VN_F; i++)     \
            a[i] = id##f(a[i], b[i]);      \
        return a;                          \
    }                                      \
    static inline vD vD_##id(vD a, vD b) { \
        for (int i = 0; i < VN_D; i++)     \
            a[i] = id(a[i], b[i]);         \
        return a;                          \
    }
#endif

VFN1(exp, u10)
VFN1(expm1, u10)
VFN1(log, u10)
VFN1(log2, u10)
VFN1(log10, u10)
VFN1(log1p, u10)
VFN1(sin, u10)
VFN1(cos, u10)
VFN1(tan, u10)
VFN1(asin, u10)
VFN1(acos, u10)
VFN1(atan, u10)
VFN1(sinh, u10)
VFN1(cosh, u10)
VFN1(tanh, u10)
VFN1(erf, u10)
VFN2(pow, u10)
VFN2(atan2, u10)

/* m ? a : b, m being the result of a comparison; |x|; min(x, 0) that keeps NaN. */
static inline vF vF_select(vFi m, vF a, vF b) {
    return (vF) ((m & (vFi) a) | (~m & (vFi) b));
}
static inline vD vD_select(vDi m, vD a, vD b) {
    return (vD) ((m & (vDi) a) | (~m & (vDi) b));
}
static inline vF vF_abs(vF x) {
    return (vF) ((vFi) x & 0x7fffffff);
}
static inline vD vD_abs(vD x) {
    return (vD) ((vDi) x & INT64_MAX);
}
static inline vF vF_min0(vF x) {
    return vF_select(x > 0, (vF){0}, x);
}
static inline vD vD_min0(vD x) {
    return vD_select(x > 0, (vD){0}, x);
}

/* SLEEF's log1p, sinh and cosh give infinity somewhat before the result overflows. */
#define WIDER(v, big, edge)                                                          \
    static inline v v##_log1p_any(v x) {                                             \
        return v##_select(x > big, v##_log(x), v##_log1p(x));                        \
    }                                                                                \
    static inline v v##_cosh_any(v x) {                                              \
        v e = v##_exp(v##_abs(x) / 2);                                               \
        return v##_select(v##_abs(x) > edge, e / 2 * e, v##_cosh(x));                \
    }                                                                                \
    static inline v v##_sinh_any(v x) {                                              \
        v e = v##_exp(v##_abs(x) / 2);                                               \
        e = e / 2 * e;                                                               \
        return v##_select(v##_abs(x) > edge, v##_select(x < 0, -e, e), v##_sinh(x)); \
    }
WIDER(vF, 1e37f, 88)
WIDER(vD, 1e306, 709)

/* a * b + c, fused where the machine can; the square root. */
#if TR_ISA_LEVEL >= 4
static inline vF vF_fma(vF a, vF b, vF c) {
    return _mm512_fmadd_ps(a, b, c);
}
static inline vF vF_sqrt(vF a) {
    return _mm512_sqrt_ps(a);
}
#elif TR_ISA_LEVEL == 3
static inline vF vF_fma(vF a, vF b, vF c) {
    return _mm256_fmadd_ps(a, b, c);
}
static inline vF vF_sqrt(vF a) {
    return _mm256_sqrt_ps(a);
}
#else
static inline vF vF_fma(vF a, vF b, vF c) {
    return a * b + c;
}
static inline vF vF_sqrt(vF a) {
    for (int i = 0; i < VN_F; i++)
        a[i] = __builtin_sqrtf(a[i]);
    return a;
}
#endif

#define VF_CONST(x) ((vF){0} + (x))

/* The greater one, the lesser one; `b` where either is NaN. */
#if TR_ISA_LEVEL >= 4
static inline vF vF_max(vF a, vF b) {
    return _mm512_max_ps(a, b);
}
static inline vF vF_min(vF a, vF b) {
    return _mm512_min_ps(a, b);
}
#elif TR_ISA_LEVEL == 3
static inline vF vF_max(vF a, vF b) {
    return _mm256_max_ps(a, b);
}
static inline vF vF_min(vF a, vF b) {
    return _mm256_min_ps(a, b);
}
#else
static inline vF vF_max(vF a, vF b) {
    return vF_select(a > b, a, b);
}
static inline vF vF_min(vF a, vF b) {
    return vF_select(a < b, a, b);
}
#endif
static inline vD vD_max(vD a, vD b) {
    return vD_select(a > b, a, b);
}

/* a where x is negative, else b. */
static inline vF vF_by_sign(vF x, vF a, vF b) {
#if TR_ISA_LEVEL >= 4
    return _mm512_mask_mov_ps(b, _mm512_movepi32_mask((__m512i) x), a);
#elif TR_ISA_LEVEL == 3
    return _mm256_blendv_ps(b, a, x);
#else
    return vF_select((vFi) x >> 31, a, b);
#endif
}
static inline vD vD_by_sign(vD x, vD a, vD b) {
    return vD_select(x < 0, a, b);
}

/* erf: an odd polynomial up to 1; beyond, 1 - exp of a polynomial that fits log(erfc). Both fitted for float, errors below
 * 1.2e-9 and 2.1e-11, several times faster than SLEEF's. */
static inline vF vF_erf_fast(vF x) {
    vF a = vF_abs(x), t = x * x;
    vF p = VF_CONST(7.889121680e-05f);
    p = vF_fma(p, t, VF_CONST(-8.020841923e-04f));
    p = vF_fma(p, t, VF_CONST(5.189535411e-03f));
    p = vF_fma(p, t, VF_CONST(-2.685444463e-02f));
    p = vF_fma(p, t, VF_CONST(1.128360018e-01f));
    p = vF_fma(p, t, VF_CONST(-3.761262714e-01f));
    p = vF_fma(p, t, VF_CONST(1.128379166e+00f));
    a = vF_select(a > 4, VF_CONST(4.0f), a);
    vF q = VF_CONST(-2.168679772e-05f);
    q = vF_fma(q, a, VF_CONST(4.413357336e-04f));
    q = vF_fma(q, a, VF_CONST(-4.204558546e-03f));
    q = vF_fma(q, a, VF_CONST(2.520824737e-02f));
    q = vF_fma(q, a, VF_CONST(-1.084185618e-01f));
    q = vF_fma(q, a, VF_CONST(-6.332199082e-01f));
    q = vF_fma(q, a, VF_CONST(-1.129578416e+00f));
    q = vF_fma(q, a, VF_CONST(1.880384365e-04f));
    q = 1 - vF_exp(q);
    return vF_select(a > 1, vF_select(x < 0, -q, q), x * p);
}
static inline vD vD_erf_fast(vD x) {
    return vD_erf(x);
}

/* For gelu, where the result is added to 1: a rational approximation without an exponential, 2.2e-7 off at most. */
static inline vF vF_erf_near(vF x) {
    x = vF_min(VF_CONST(3.95f), vF_max(VF_CONST(-3.95f), x));
    vF t = x * x;
    vF p = VF_CONST(-1.296719826e-08f);
    p = vF_fma(p, t, VF_CONST(4.640459650e-06f));
    p = vF_fma(p, t, VF_CONST(3.779379518e-04f));
    p = vF_fma(p, t, VF_CONST(3.843379734e-03f));
    p = vF_fma(p, t, VF_CONST(5.427481088e-02f));
    p = vF_fma(p, t, VF_CONST(1.851692077e-01f));
    p = vF_fma(p, t, VF_CONST(1.128379169e+00f));
    vF q = VF_CONST(6.269274678e-05f);
    q = vF_fma(q, t, VF_CONST(1.304065946e-03f));
    q = vF_fma(q, t, VF_CONST(1.544374025e-02f));
    q = vF_fma(q, t, VF_CONST(1.139110835e-01f));
    q = vF_fma(q, t, VF_CONST(4.974353468e-01f));
    q = vF_fma(q, t, VF_CONST(1.0f));
    return x * p / q;
}
static inline vD vD_erf_near(vD x) {
    return vD_erf(x);
}
/* exp(x) for x <= 0, as softmax needs it, inline: 2^n by the exponent's bits times a polynomial on -ln 2 / 2 .. ln 2 / 2; relative
 * error below 1.2e-7. Below -86.6 it is 0; NaN stays. */
static inline vF vF_exp_down(vF x) {
    const vF magic = VF_CONST(0x1.8p23f);
    vF t = vF_fma(x, VF_CONST(1.44269504f), magic), n = t - magic;
    vF r = vF_fma(n, VF_CONST(-0x1.62e4p-1f), x);
    r = vF_fma(n, VF_CONST(-1.42860677e-06f), r);
    // Coefficients by twos: loops wait for the chain, not for the arithmetic.
    vF r2 = r * r, p = vF_fma(VF_CONST(1.98412698e-4f), r, VF_CONST(1.38888889e-3f));
    p = vF_fma(p, r2, vF_fma(VF_CONST(8.33333333e-3f), r, VF_CONST(4.16666667e-2f)));
    p = vF_fma(p, r2, vF_fma(VF_CONST(1.66666667e-1f), r, VF_CONST(0.5f)));
    p = vF_fma(p, r2, r) + 1;
#if TR_ISA_LEVEL >= 4
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, VF_CONST(-86.6f), _CMP_NLT_UQ), p, n);
#else
    p *= (vF) (((vFu) t << 23) + (127u << 23)); // a product, so that NaN stays NaN
    return vF_select(x < -86.6f, (vF){0}, p);
#endif
}
static inline vD vD_exp_down(vD x) {
    return vD_exp(x);
}

/* tanh: a polynomial up to 0.63; beyond, by the exponential, which stays inline. */
static inline vF vF_tanh_fast(vF x) {
    vF a = vF_abs(x), t = x * x;
    vF p = VF_CONST(-6.062239899e-03f);
    p = vF_fma(p, t, VF_CONST(2.097502099e-02f));
    p = vF_fma(p, t, VF_CONST(-5.384669748e-02f));
    p = vF_fma(p, t, VF_CONST(1.333274646e-01f));
    p = vF_fma(p, t, VF_CONST(-3.333332878e-01f));
    p = vF_fma(p * t, x, x);
    vF e = vF_exp_down(-2 * a), q = (1 - e) / (1 + e);
    return vF_select(a > 0.63f, vF_select(x < 0, -q, q), p);
}
static inline vD vD_tanh_fast(vD x) {
    return vD_tanh(x);
}

/* exp(x) for x <= 0, and 0 below -40: of gelu that is rounding, and what is next to nothing would go on as a tiny number (which
 * products by tiles can't take: isa_product.c). */
static inline vF vF_exp_near(vF x) {
    return vF_select(x < -40, (vF){0}, vF_exp_down(x));
}
static inline vD vD_exp_near(vD x) {
    return vD_exp_down(x);
}

/* The logistic function of x and of -x, either exact where it is small: for gelu, whose 1 + tanh(x) is twice that of 2 x. */
#define LOGISTIC(v)                                                 \
    static inline void v##_logistic(v x, v *of, v *of_minus) {      \
        v e = v##_exp_near(-v##_abs(x)), y = 1 / (1 + e);           \
        *of = v##_by_sign(x, e * y, y);                             \
        *of_minus = v##_by_sign(x, y, e * y);                       \
    }
LOGISTIC(vF)
LOGISTIC(vD)

#endif
