/* isa_columns.c - a matrix brought into panels of its columns, in which the library multiplies by it. The library's own reorder takes
 * two to five times as long: it goes down one panel after the other, a few lines of every row at a time (docs/performance.md). */
#include "exec/kernels/ew_math.h"
#include "exec/kernels/kernels.h"

enum {
    ROWS = 64,   /* of a unit of work; an even number */
    PANELS = 16, /* of it */
};

typedef struct packing {
    tr__columns of;
    int64_t groups; /* of PANELS panels */
} packing;

/* The n first columns of a group's row, to its row in each panel; zeros beyond. */
static void pack_row(const tr__columns *m, const float *from, int64_t n, int64_t panels, float *to) {
    int64_t width = m->width;
    for (int64_t p = 0; p < panels; p++, from += width, n -= width, to += m->rows * width) {
        int64_t there = tr__max(0, tr__min(n, width)), j = 0;
        for (; j + VN_F <= there; j += VN_F)
            memcpy(to + j, from + j, VW);
        for (; j < width; j++)
            to[j] = j < there ? from[j] : 0;
    }
}

/* The same of two rows of bfloat16, element by element in turn; there may be no second one. */
static void pack_pair(const tr__columns *m, const uint16_t *low, const uint16_t *high, int64_t n, int64_t panels, uint16_t *to) {
    int64_t width = m->width;
    for (int64_t p = 0; p < panels; p++, low += width, n -= width, to += m->rows * width) {
        int64_t there = tr__max(0, tr__min(n, width)), j = 0;
        for (; j < there; j++) {
            uint32_t pair = low[j] | (high ? (uint32_t) high[p * width + j] << 16 : 0);
            memcpy(to + 2 * j, &pair, sizeof pair);
        }
        memset(to + 2 * j, 0, (size_t) (width - j) * sizeof(uint32_t));
    }
}

static void pack_units(void *env, int64_t begin, int64_t end, int thread) {
    const packing *p = env;
    const tr__columns *m = &p->of;
    for (int64_t u = begin; u < end; u++) {
        int64_t row = u / p->groups * ROWS, stop = tr__min(m->rows, row + ROWS), first = u % p->groups * PANELS;
        int64_t column = first * m->width, n = m->n - column, panels = tr__min(PANELS, (n + m->width - 1) / m->width);
        for (; row < stop; row += m->pairs ? 2 : 1) {
            int64_t at = row * m->step + column, to = first * m->rows * m->width + row * m->width;
            if (!m->pairs)
                pack_row(m, (const float *) m->from + at, row < m->k ? n : 0, panels, (float *) m->to + to);
            else
                pack_pair(m, (const uint16_t *) m->from + at, row + 1 < m->k ? (const uint16_t *) m->from + at + m->step : NULL,
                          row < m->k ? n : 0, panels, (uint16_t *) m->to + to);
        }
    }
}

void TR__SUFFIXED(tr__pack_columns)(tr_kernel_ctx *ctx, const tr__columns *m) {
    packing p = {*m, ((m->n + m->width - 1) / m->width + PANELS - 1) / PANELS};
    int64_t units = (m->rows + ROWS - 1) / ROWS * p.groups;
    tr__parallel(ctx, units, tr__max(1, TR__GRAIN / (ROWS * PANELS * m->width)), pack_units, &p);
}
