/* isa_amx.h - AMX: products of tiles of bfloat16 pairs, summed up in float32. Functions that use tiles are AMX, and called if has_amx().
 *
 * A tile has 16 rows of 64 bytes. Tiles 0 to 3 are sums, 16 by 16 floats; 4 and 5 left factors, 16 rows of 32 bfloat16 that are summed
 * over; 6 and 7 right factors, 16 pairs of these by 16 columns. Denormals count as zero, and are rounded to it, as with AVX512-BF16.
 * A thread's tiles are configured when its part of a loop begins, and released at its end: the library brings its own configuration,
 * and a switch of threads then has no tiles to save. Included by isa_*.c only. */
#ifndef TERRA_EXEC_ISA_AMX_H
#define TERRA_EXEC_ISA_AMX_H

#include "exec/kernels/kernels.h"

static inline bool has_amx(void) {
    return TR_ISA_LEVEL >= 4 && tr__has_amx();
}

#if TR_ISA_LEVEL >= 4
#define AMX __attribute__((target("avx512bf16")))

enum { TILE_ROWS = 16, TILE_BYTES = 64, TILE_PAIRS = 16, TILE_K = 32 };

/* Instructions by hand: those of gcc 12's immintrin.h don't tell the compiler that they read memory, and it drops or delays what is stored
 * there before. t, sum, left, right: numbers of tiles; step: bytes from one row to the next. */
#define AMX_TILE(t)                "%%tmm" #t
#define AMX_LOAD(t, from, step)    __asm__ volatile("tileloadd (%0,%1,1), " AMX_TILE(t)::"r"(from), "r"((int64_t) (step)) : "memory")
#define AMX_STORE(t, to, step)     __asm__ volatile("tilestored " AMX_TILE(t) ", (%0,%1,1)" ::"r"(to), "r"((int64_t) (step)) : "memory")
#define AMX_ZERO(t)                __asm__ volatile("tilezero " AMX_TILE(t)::)
#define AMX_DOT(sum, left, right)  __asm__ volatile("tdpbf16ps " AMX_TILE(right) ", " AMX_TILE(left) ", " AMX_TILE(sum)::)

/* All eight tiles whole. */
static inline void tiles_begin(void) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.bytes[i] = TILE_BYTES;
        config.rows[i] = TILE_ROWS;
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
}
static inline void tiles_end(void) {
    __asm__ volatile("tilerelease" ::);
}
#endif

#endif
