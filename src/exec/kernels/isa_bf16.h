/* isa_bf16.h - bfloat16 as vectors of float, or met as doubles: loads are exact, stores round to nearest even to the bit of
 * tr__f32_to_bf16. Not by the processor's own conversion where it has one: that takes denormals for zero. Vectors of either kind
 * by the same names, and parts of them. Included by isa_*.c only. */
#ifndef TERRA_EXEC_ISA_BF16_H
#define TERRA_EXEC_ISA_BF16_H

#include "exec/kernels/isa_tile.h"
#include "exec/kernels/isa_wide.h"
#include "exec/kernels/kernels.h"

/* As many bfloat16 as a vector has floats. */
typedef uint16_t vB __attribute__((vector_size(VW / 2)));

/* __builtin_convertvector comes out in pieces from some compilers. */
static inline vF load_bf16(const uint16_t *from) {
    vB h;
    memcpy(&h, from, sizeof h);
#if TR_ISA_LEVEL >= 4
    return (vF) _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i) h), 16);
#elif TR_ISA_LEVEL == 3
    return (vF) _mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i) h), 16);
#else
    return (vF) (__builtin_convertvector(h, vFu) << 16);
#endif
}

/* The nearest bfloat16's bits, in the lower half of each lane. */
static inline vFu bf16_bits(vF x) {
    vFu u = (vFu) x;
    u = (u + (0x7fffu + (u >> 16 & 1))) >> 16;
#if TR_ISA_LEVEL >= 4
    return (vFu) _mm512_mask_mov_epi32((__m512i) u, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
#else
    return (vFu) vF_select(x != x, (vF) ((vFu){0} + 0x7fc0u), (vF) u);
#endif
}

static inline void store_bf16(uint16_t *to, vF x) {
    vFu u = bf16_bits(x);
#if TR_ISA_LEVEL >= 4
    vB h = (vB) _mm512_cvtepi32_epi16((__m512i) u);
#elif TR_ISA_LEVEL == 3
    __m256i both = _mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i) u, (__m256i) u), 0x08);
    vB h = (vB) _mm256_castsi256_si128(both);
#else
    vB h = __builtin_convertvector(u, vB);
#endif
    memcpy(to, &h, sizeof h);
}

static inline vF load_float(const float *from) {
    vF x;
    memcpy(&x, from, sizeof x);
    return x;
}
static inline void store_float(float *to, vF x) {
    memcpy(to, &x, sizeof x);
}

/* The first n elements only; 0 beyond. */
#define PARTS(E, T)                                               \
    static inline vF load_##E##_part(const T *from, int64_t n) {  \
        T held[VN_F] = {0};                                       \
        memcpy(held, from, (size_t) n * sizeof *from);            \
        return load_##E(held);                                    \
    }                                                             \
    static inline void store_##E##_part(T *to, vF x, int64_t n) { \
        T held[VN_F];                                             \
        store_##E(held, x);                                       \
        memcpy(to, held, (size_t) n * sizeof *to);                \
    }
PARTS(float, float)
PARTS(bf16, uint16_t)

/* n elements of either kind. */
static inline void bf16_widen(float *to, const uint16_t *from, int64_t n) {
    int64_t i = 0;
    for (; i + VN_F <= n; i += VN_F)
        store_float(to + i, load_bf16(from + i));
    for (; i < n; i++)
        to[i] = tr__bf16_to_f32(from[i]);
}
static inline void bf16_narrow(uint16_t *to, const float *from, int64_t n) {
    int64_t i = 0;
    for (; i + VN_F <= n; i += VN_F)
        store_bf16(to + i, load_float(from + i));
    for (; i < n; i++)
        to[i] = tr__f32_to_bf16(from[i]);
}

/* Products of pairs of bfloat16, where the processor has them: functions that use them are PAIRS, and called if has_pairs(). What
 * they take and give are vectors of pairs, carried as floats. Denormals count as zero, and are rounded to it. */
static inline bool has_pairs(void) {
    return TR_ISA_LEVEL >= 4 && tr__has_avx512_bf16();
}
#if TR_ISA_LEVEL >= 4
#define PAIRS __attribute__((target("avx512bf16")))
/* The elements of low and behind them those of high, rounded. */
ALWAYS PAIRS vF narrow_pairs(vF low, vF high) {
    return (vF) _mm512_cvtne2ps_pbh((__m512) high, (__m512) low);
}
/* x alone, to memory. */
ALWAYS PAIRS void narrow_pairs_to(uint16_t *to, vF x) {
    __m256bh h = _mm512_cvtneps_pbh((__m512) x);
    memcpy(to, &h, sizeof h);
}
/* Pairs of an element of low and that of high, rounded. */
ALWAYS PAIRS vF zip_pairs(vF low, vF high) {
    static const uint16_t order[] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return (vF) _mm512_permutexvar_epi16(_mm512_loadu_si512(order), (__m512i) narrow_pairs(low, high));
}
/* sum + a.low * b.low + a.high * b.high */
ALWAYS PAIRS vF dot_pairs(vF sum, vF a, vF b) {
    return (vF) _mm512_dpbf16_ps((__m512) sum, (__m512bh) a, (__m512bh) b);
}
/* tile_add of a pair. */
ALWAYS PAIRS void tile_add_pairs(int n, vF *row, uint32_t pair, const vF *b) {
    vF x = (vF) (pair + (vFu){0});
    EACH_COLUMN row[j] = dot_pairs(row[j], x, b[j]);
}
#endif

/* As many as a vector has doubles: as floats, as doubles, and as doubles where `of` is greater than 0 or NaN, else 0. */
static inline vH floats_of_bf16(const uint16_t *from) {
#if TR_ISA_LEVEL >= 4
    return (vH) _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *) from)), 16);
#elif TR_ISA_LEVEL == 3
    return (vH) _mm_slli_epi32(_mm_cvtepu16_epi32(_mm_loadl_epi64((const __m128i *) from)), 16);
#else
    float f[VN_D];
    vH h;
    for (int i = 0; i < VN_D; i++)
        f[i] = tr__bf16_to_f32(from[i]);
    memcpy(&h, f, sizeof h);
    return h;
#endif
}
static inline vD wide_bf16(const uint16_t *from) {
    return widen(floats_of_bf16(from));
}
static inline vD masked_bf16(const uint16_t *x, const uint16_t *of) {
    return widen(masked_floats(floats_of_bf16(x), floats_of_bf16(of)));
}

#endif
