/* isa_conv.h - what convolutions of float32 and of bfloat16 images have in common: the tile in registers with a function for each of
 * its sizes. Included by isa_conv*.c only. */
#ifndef TERRA_EXEC_ISA_CONV_H
#define TERRA_EXEC_ISA_CONV_H

#include "exec/kernels/isa_tile.h"
#include "exec/kernels/kernels.h"

enum {
    NR = TR__CONV_PANEL,
    MR = 6,              /* rows of a tile */
    VECTORS = NR / VN_F, /* of a panel */
#if TR_ISA_LEVEL >= 4
    WIDE = 4, /* panels of a tile, at most */
#else
    WIDE = 1,
#endif
};
_Static_assert(WIDE == 1 || VECTORS == 1, "a tile is one panel of several vectors or several of one");

/* A tile: MR rows of WIDE panels. Loops over it are unrolled; R and P are constants wherever it is used. */
typedef vF tile[MR][WIDE * VECTORS];
#define EACH_ROW _Pragma("GCC unroll 6") for (int r = 0; r < R; r++)

/* The functions of a tile of R rows and P panels: name_of[P][R]. */
#define ROWS_OF(TILE, P) TILE(1, P) TILE(2, P) TILE(3, P) TILE(4, P) TILE(5, P) TILE(6, P)
#define ROW_OF(name, P)  {NULL, name##_1_##P, name##_2_##P, name##_3_##P, name##_4_##P, name##_5_##P, name##_6_##P}
#if TR_ISA_LEVEL >= 4
#define TILES(TILE)    ROWS_OF(TILE, 1) ROWS_OF(TILE, 2) ROWS_OF(TILE, 3) ROWS_OF(TILE, 4)
#define TABLE_OF(name) {{NULL}, ROW_OF(name, 1), ROW_OF(name, 2), ROW_OF(name, 3), ROW_OF(name, 4)}
#else
#define TILES(TILE)    ROWS_OF(TILE, 1)
#define TABLE_OF(name) {{NULL}, ROW_OF(name, 1)}
#endif

/* Where part i of n things begins: all are alike but for one. */
static inline int64_t share(int64_t i, int64_t n, int64_t parts) {
    return i * n / parts;
}

#endif
