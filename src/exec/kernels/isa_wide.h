/* isa_wide.h - float data met as doubles. Sums of floats are kept in double from the first element on: 24 bits go into 53
 * nearly without rounding, so that a sum's float32 result doesn't depend on the order of its terms (the layout of an image,
 * the number of threads, the width of vectors), and the conversion costs less than the memory. Included by isa_*.c only. */
#ifndef TERRA_EXEC_ISA_WIDE_H
#define TERRA_EXEC_ISA_WIDE_H

#include "exec/kernels/ew_math.h"

#include <string.h>

/* As many floats as a vector has doubles. */
typedef float vH __attribute__((vector_size(VW / 2)));
typedef int32_t vHi __attribute__((vector_size(VW / 2)));

/* __builtin_convertvector comes out in halves from some compilers. */
static inline vD widen(vH h) {
#if TR_ISA_LEVEL >= 4
    return (vD) _mm512_cvtps_pd((__m256) h);
#elif TR_ISA_LEVEL == 3
    return (vD) _mm256_cvtps_pd((__m128) h);
#else
    return __builtin_convertvector(h, vD);
#endif
}
/* a * b + c, rounded once where the processor can; of vectors and of what is left of them, the same numbers. */
static inline vD wide_fma(vD a, vD b, vD c) {
#if TR_ISA_LEVEL >= 4
    return (vD) _mm512_fmadd_pd((__m512d) a, (__m512d) b, (__m512d) c);
#elif TR_ISA_LEVEL == 3
    return (vD) _mm256_fmadd_pd((__m256d) a, (__m256d) b, (__m256d) c);
#else
    return a * b + c;
#endif
}
static inline double double_fma(double a, double b, double c) {
    return TR_ISA_LEVEL >= 3 ? __builtin_fma(a, b, c) : a * b + c;
}
static inline vD wide_float(const float *p) {
    vH h;
    memcpy(&h, p, sizeof h);
    return widen(h);
}
static inline vD wide_double(const double *p) {
    vD v;
    memcpy(&v, p, sizeof v);
    return v;
}
/* The sum of both halves of a float vector's elements, per double lane. */
static inline vD wide_vF(vF v) {
    vH half[2];
    memcpy(half, &v, sizeof v);
    return widen(half[0]) + widen(half[1]);
}
static inline vD wide_vD(vD v) {
    return v;
}

/* to[k] += v[k] */
static inline void add_wide_vD(double *to, vD v) {
    v += wide_double(to);
    memcpy(to, &v, sizeof v);
}
static inline void add_wide_vF(double *to, vF v) {
    vH half[2];
    memcpy(half, &v, sizeof v);
    add_wide_vD(to, widen(half[0]));
    add_wide_vD(to + VN_D, widen(half[1]));
}

/* x where `of` is greater than 0 or NaN, else 0: threshold_backward at 0. */
static inline vH masked_floats(vH x, vH of) {
    return (vH) ((vHi) x & ~(of <= 0));
}
static inline vD masked_float(const float *x, const float *of) {
    vH h, o;
    memcpy(&h, x, sizeof h);
    memcpy(&o, of, sizeof o);
    return widen(masked_floats(h, o));
}
static inline vD masked_double(const double *x, const double *of) {
    vD h = wide_double(x), o = wide_double(of);
    return (vD) ((vDi) h & ~(o <= 0));
}

static inline double lanes(vD s) {
    double t = 0;
    for (int k = 0; k < VN_D; k++)
        t += s[k];
    return t;
}

#endif
