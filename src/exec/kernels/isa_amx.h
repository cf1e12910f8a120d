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
#include <immintrin.h>

#define AMX __attribute__((target("amx-tile,amx-bf16,avx512bf16")))

enum { TILE_ROWS = 16, TILE_BYTES = 64, TILE_PAIRS = 16, TILE_K = 32 };

/* All eight tiles whole. */
static inline AMX void tiles_begin(void) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.bytes[i] = TILE_BYTES;
        config.rows[i] = TILE_ROWS;
    }
    _tile_loadconfig(&config);
}
static inline AMX void tiles_end(void) {
    _tile_release();
}
#endif

#endif
