/* isa_conv_grid.h - the pixels that convolutions go through forward and by the image, each of which sums over taps. Included by
 * isa_conv*.c only. */
#ifndef TERRA_EXEC_ISA_CONV_GRID_H
#define TERRA_EXEC_ISA_CONV_GRID_H

#include "exec/kernels/isa_conv.h"

/* Pixels [images, size], each the sum over taps. Pixel (i, j) is (i * to_step + to_from, ...) of `to`, and reads (i * step + off of
 * the tap, ...) of `from`. Index 0: height, 1: width. */
typedef struct grid {
    const void *from;
    void *to;
    int64_t images, size[2], step[2], from_size[2], to_size[2], to_step[2], to_from[2];
    int64_t channels, columns; /* of from, to */
    int64_t n_taps;
    int64_t *off[2], *tap; /* [n_taps]; tap: which of the filter's it is, row-major */
    int64_t element;       /* bytes of one */
    const void *zeros;     /* [channels], what lies beyond the border */
} grid;

/* Zeros as many as a pixel has channels, and room for all taps. element: bytes of one. */
static tr_status take_grid(const tr_kernel_call *c, const tr__conv *v, size_t element, grid *g) {
    int64_t taps = v->kernel[0] * v->kernel[1];
    size_t zeros = ((size_t) g->channels * element + 7) / 8 * 8;
    g->element = (int64_t) element;
    char *room = tr__scratch(c, zeros + (size_t) taps * 3 * sizeof(int64_t));
    if (!room)
        return TR_E_NOMEM;
    g->zeros = memset(room, 0, zeros);
    g->tap = (int64_t *) (void *) (room + zeros);
    g->off[0] = g->tap + taps;
    g->off[1] = g->off[0] + taps;
    return TR_OK;
}

static void add_tap(grid *g, const tr__conv *v, int64_t y, int64_t x, int64_t from_y, int64_t from_x) {
    g->tap[g->n_taps] = y * v->kernel[1] + x;
    g->off[0][g->n_taps] = from_y;
    g->off[1][g->n_taps++] = from_x;
}

/* Forward: all pixels of dst, all taps. */
static void lay_forward(grid *g, const tr__conv *v) {
    for (int d = 0; d < 2; d++) {
        g->size[d] = g->to_size[d] = v->out[d];
        g->from_size[d] = v->size[d];
        g->step[d] = v->stride[d];
        g->to_step[d] = 1;
    }
    for (int64_t y = 0; y < v->kernel[0]; y++)
        for (int64_t x = 0; x < v->kernel[1]; x++)
            add_tap(g, v, y, x, y * v->dilation[0] - v->padding[0], x * v->dilation[1] - v->padding[1]);
}

/* By the image: the pixels of src whose remainder mod the stride is `at`: they have the same taps. There may be none. */
static void lay_remainder(grid *g, const tr__conv *v, const int64_t at[2]) {
    for (int d = 0; d < 2; d++) {
        g->size[d] = at[d] < v->size[d] ? upward(v->size[d] - at[d], v->stride[d]) : 0;
        g->from_size[d] = v->out[d];
        g->to_size[d] = v->size[d];
        g->step[d] = 1;
        g->to_step[d] = v->stride[d];
        g->to_from[d] = at[d];
    }
    g->n_taps = 0;
    for (int64_t y = 0; y < v->kernel[0]; y++)
        for (int64_t x = 0; x < v->kernel[1]; x++) {
            int64_t oy = at[0] + v->padding[0] - y * v->dilation[0], ox = at[1] + v->padding[1] - x * v->dilation[1];
            if (oy % v->stride[0] == 0 && ox % v->stride[1] == 0)
                add_tap(g, v, y, x, oy / v->stride[0], ox / v->stride[1]);
        }
}

static inline int64_t pixels_in(const grid *g) {
    return g->images * g->size[0] * g->size[1];
}

/* rows[i] = at + i * apart, or `zeros` where x + i * step is not in 0 .. width - 1. Bytes; `at` need not be in the image. */
static void find_line(const void **rows, int64_t n, uintptr_t at, int64_t apart, int64_t x, int64_t step, int64_t width,
                      const void *zeros) {
    uintptr_t outside = (uintptr_t) zeros;
    for (int64_t i = 0; i < n; i++)
        rows[i] = (const void *) ((uint64_t) (x + i * step) < (uint64_t) width ? at + (uintptr_t) (i * apart) : outside);
}

/* rows [n_taps, rows_step], to [count]: where the pixels first .. first + count begin. */
static void find_rows(const grid *g, int64_t first, int64_t count, int64_t rows_step, const void **rows, void **to) {
    int64_t h = g->from_size[0], w = g->from_size[1], pixel = g->channels * g->element;
    for (int64_t m = 0, stop; m < count; m = stop) {
        int64_t at = first + m, j = at % g->size[1], i = at / g->size[1] % g->size[0], n = at / g->size[1] / g->size[0];
        stop = tr__min(count, m + g->size[1] - j);
        for (int64_t t = 0; t < g->n_taps; t++) {
            int64_t y = i * g->step[0] + g->off[0][t], x = j * g->step[1] + g->off[1][t];
            uintptr_t begin = (uintptr_t) g->from + (uintptr_t) (((n * h + y) * w + x) * pixel);
            find_line(rows + t * rows_step + m, stop - m, begin, g->step[1] * pixel, x, g->step[1], y >= 0 && y < h ? w : 0,
                      g->zeros);
        }
        int64_t row = (n * g->to_size[0] + i * g->to_step[0] + g->to_from[0]) * g->to_size[1] + g->to_from[1];
        for (int64_t k = m; k < stop; k++, j++)
            to[k] = (char *) g->to + (row + j * g->to_step[1]) * g->columns * g->element;
    }
}

/* By the image: rows of pixels that no output reads. */
static void clear_rows(void *env, int64_t begin, int64_t end, int thread) {
    const grid *g = env;
    int64_t pixel = g->columns * g->element;
    for (int64_t u = begin; u < end; u++) {
        int64_t row = u / g->size[0] * g->to_size[0] + u % g->size[0] * g->to_step[0] + g->to_from[0];
        char *to = (char *) g->to + (row * g->to_size[1] + g->to_from[1]) * pixel;
        for (int64_t j = 0; j < g->size[1]; j++)
            memset(to + j * g->to_step[1] * pixel, 0, (size_t) pixel);
    }
}

static void clear_pixels(const tr_kernel_call *c, grid *g) {
    tr__parallel(c->ctx, g->images * g->size[0], upward(TR__GRAIN, g->size[1] * g->columns + 1), clear_rows, g);
}

#endif
