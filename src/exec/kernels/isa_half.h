/* isa_half.h - vectors of bfloat16 met as vectors of floats, and rounded back: to the nearest, ties to even, any NaN to one. In
 * integers throughout: the instructions for it take denormals as 0. Included by isa_*.c only. */
#ifndef TERRA_EXEC_ISA_HALF_H
#define TERRA_EXEC_ISA_HALF_H

#include "exec/kernels/ew_math.h"

#include <string.h>

/* As many bfloat16 as a vector has floats. */
typedef uint16_t vS __attribute__((vector_size(VW / 2)));

/* __builtin_convertvector comes out in pieces from some compilers. */
static inline vFu bits_of_halves(vS h) {
#if TR_ISA_LEVEL >= 4
    return (vFu) _mm512_cvtepu16_epi32((__m256i) h);
#elif TR_ISA_LEVEL == 3
    return (vFu) _mm256_cvtepu16_epi32((__m128i) h);
#else
    return __builtin_convertvector(h, vFu);
#endif
}
static inline vS halves_of_bits(vFu u) {
#if TR_ISA_LEVEL >= 4
    return (vS) _mm512_cvtepi32_epi16((__m512i) u);
#elif TR_ISA_LEVEL == 3
    __m256i packed = _mm256_packus_epi32((__m256i) u, (__m256i) u); // per 128 bits
    return (vS) _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
#else
    return __builtin_convertvector(u, vS);
#endif
}

static inline vF load_half(const uint16_t *p) {
    vS h;
    memcpy(&h, p, sizeof h);
    return (vF) (bits_of_halves(h) << 16);
}
static inline vFu rounded_bits(vF f) {
    vFu u = (vFu) f, rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
    return (vFu) vF_select(f != f, (vF) ((vFu){0} + 0x7fc0), (vF) rounded);
}
static inline void store_half(uint16_t *p, vF f) {
    vS h = halves_of_bits(rounded_bits(f));
    memcpy(p, &h, sizeof h);
}
/* f as bfloat16 has it. */
static inline vF rounded_half(vF f) {
    return (vF) (rounded_bits(f) << 16);
}

static inline vF load_float(const float *p) {
    vF f;
    memcpy(&f, p, sizeof f);
    return f;
}
static inline void store_float(float *p, vF f) {
    memcpy(p, &f, sizeof f);
}

/* The first n elements only; 0 beyond. */
#define PARTS(E, T)                                                           \
    static inline vF load_##E##_part(const T *p, int64_t n) {                 \
        T held[VN_F] = {0};                                                   \
        memcpy(held, p, (size_t) n * sizeof *p);                              \
        return load_##E(held);                                                \
    }                                                                         \
    static inline void store_##E##_part(T *p, vF f, int64_t n) {              \
        T held[VN_F];                                                         \
        store_##E(held, f);                                                   \
        memcpy(p, held, (size_t) n * sizeof *p);                              \
    }
PARTS(float, float)
PARTS(half, uint16_t)

#endif
