/* isa_tile.h - a row of a tile of a product of small matrices: some vectors in registers, to which multiples of a row of the right
 * matrix are added; and a square of vectors turned over. What attention's and convolutions' inner loops are made of. Included by
 * isa_*.c only. */
#ifndef TERRA_EXEC_ISA_TILE_H
#define TERRA_EXEC_ISA_TILE_H

#include "exec/kernels/ew_math.h"

#include <stdbool.h>
#include <string.h>

/* n / by, rounded up. */
static inline int64_t upward(int64_t n, int64_t by) {
    return (n + by - 1) / by;
}

/* n vectors, a constant wherever these are used, `step` floats apart in memory. */
#define EACH_COLUMN _Pragma("GCC unroll 4") for (int j = 0; j < n; j++)

ALWAYS void tile_load(int n, vF *row, const float *from, int64_t step) {
    EACH_COLUMN memcpy(&row[j], from + j * step, sizeof *row);
}

ALWAYS void tile_add(int n, vF *row, float scalar, const vF *b) {
    vF x = scalar - (vF){0}; // a broadcast: adding 0 would be an addition
    EACH_COLUMN row[j] = vF_fma(x, b[j], row[j]);
}

ALWAYS void tile_store(int n, const vF *row, float *to, int64_t step, bool add) {
    EACH_COLUMN {
        vF x = row[j], held;
        if (add) {
            memcpy(&held, to + j * step, sizeof held);
            x += held;
        }
        memcpy(to + j * step, &x, sizeof x);
    }
}

#if VW == 64
#define LOW(a, b)  __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define HIGH(a, b) __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#elif VW == 32
#define LOW(a, b)  __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define HIGH(a, b) __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#else
#define LOW(a, b)  __builtin_shufflevector(a, b, 0, 4, 1, 5)
#define HIGH(a, b) __builtin_shufflevector(a, b, 2, 6, 3, 7)
#endif
/* x^T of a square: interleaving the upper half of the rows with the lower one moves an element's row and column, taken as one
 * number, round by a bit. */
ALWAYS void turn(vF x[VN_F]) {
    _Pragma("GCC unroll 4") for (int width = 1; width < VN_F; width *= 2) {
        vF y[VN_F];
        _Pragma("GCC unroll 8") for (int i = 0; i < VN_F / 2; i++) {
            y[2 * i] = LOW(x[i], x[i + VN_F / 2]);
            y[2 * i + 1] = HIGH(x[i], x[i + VN_F / 2]);
        }
        _Pragma("GCC unroll 16") for (int i = 0; i < VN_F; i++) x[i] = y[i];
    }
}

#endif
