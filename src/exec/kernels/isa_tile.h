/* isa_tile.h - a row of a tile of a product of small matrices: two vectors in registers, to which multiples of a row of the right
 * matrix are added. What attention's and convolutions' inner loops are made of. Included by isa_*.c only. */
#ifndef TERRA_EXEC_ISA_TILE_H
#define TERRA_EXEC_ISA_TILE_H

#include "exec/kernels/ew_math.h"

#include <string.h>

#define ALWAYS static inline __attribute__((always_inline))

ALWAYS void tile_load(vF row[2], const float *from) {
    memcpy(&row[0], from, sizeof row[0]);
    memcpy(&row[1], from + VN_F, sizeof row[1]);
}

ALWAYS void tile_add(vF row[2], float scalar, const vF b[2]) {
    vF x = scalar - (vF){0}; // a broadcast: adding 0 would be an addition
    row[0] = vF_fma(x, b[0], row[0]);
    row[1] = vF_fma(x, b[1], row[1]);
}

ALWAYS void tile_store(vF row[2], float *to, bool add) {
    if (add) {
        vF held[2];
        tile_load(held, to);
        row[0] += held[0];
        row[1] += held[1];
    }
    memcpy(to, &row[0], sizeof row[0]);
    memcpy(to + VN_F, &row[1], sizeof row[1]);
}

#endif
