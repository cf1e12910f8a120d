/* isa_product.c - products of matrices by AMX's tiles: of bfloat16 factors, of float32 ones that are rounded on their way, and of
 * float32 ones that are not.
 *
 * The result is dealt out in units of some columns and some rows. Whoever gets one packs the right factor's columns, as many and
 * as deep as a third of a second-level cache holds, and goes through the left factor's panels of 32 rows, which stream past: read
 * where they lie, if they are rows of bfloat16, else packed first. Only if a sum is deeper than that, it lies in float32 in
 * between. Two by two tiles are summed up at a time: each that is loaded is used twice, the most that eight tiles allow.
 *
 * A float32 is the sum of three bfloat16, of eight bits each, and its product with another one that of nine products, three of
 * which are less than 2^-24 of it. The other six are summed up (multiply_split). Sums come out as near to the exact ones as with
 * float32 multiply-adds (docs/performance.md): tiles add terms by 32 before they add these to a sum. (Henry, Tang, Heinecke:
 * Leveraging the bfloat16 artificial intelligence datatype for higher-precision computations, ARITH 2019.) Where an element has no
 * such pieces, being infinite, undefined, 2^127 and more, or less than 2^-102, or where a sum is so small that its least terms may
 * have vanished, the caller is told so, for another kernel to take over.
 *
 * Every sum is made in the order of its terms, by 32, whatever the number of threads and rows. */
#include "exec/kernels/kernels.h"

#include <stdatomic.h>

#if TR_ISA_LEVEL >= 4
#include "exec/kernels/isa_amx.h"

enum {
    DEPTH = 1536,                  /* terms, at most, of what is packed of the right factor, */
    SPLIT_DEPTH = 512,             /* (where elements are in three pieces), */
    NEAR = 384 << 10,              /* and its elements: a third of a second-level cache */
    SHARES = 2,                    /* units of work for each thread: cores are not always equally fast */
};

typedef struct multiplication {
    const tr__tile_product *of;
    factor a, b;
    int64_t steps, depth; /* of 32 terms: all, and of a piece, at most */
    int64_t panels;       /* of the left factor */
    int64_t width, parts; /* panels of columns of a unit, at most; a unit is some of these by a part of the left factor's */
    bool lies_well;       /* can tiles of the left factor be read where they lie? */
    int64_t step;         /* what 32 terms of a panel take, in bfloat16 */
    int64_t lefts;        /* panels of the left factor that are packed at a time */
    tr__rooms rooms;
    _Atomic bool inexact; /* were there elements that have no pieces, or sums that have lost some? */
} multiplication;

/* 16 numbers of the result's dtype, or of the bias's. */
ALWAYS vF get_results(const void *from, int64_t at, __mmask16 mask, bool wide) {
    if (wide)
        return (vF) _mm512_maskz_loadu_ps(mask, (const float *) from + at);
    __m512i x = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, (const uint16_t *) from + at));
    return (vF) _mm512_slli_epi32(x, 16);
}

/* y = alpha * sums + bias + beta * y, of the panel at row and column. */
static AMX void finish(const tr__tile_product *p, const float *sums, int64_t row, int64_t column) {
    int64_t rows = tr__min(SIDE, p->m - row), columns = tr__min(SIDE, p->n - column);
    __mmask32 mask = columns == SIDE ? 0xffffffff : (1u << columns) - 1;
    __mmask16 half[] = {(__mmask16) mask, (__mmask16) (mask >> 16)};
    vF bias[2] = {{0}}, alpha = (vF){0} + p->alpha, beta = (vF){0} + p->beta;
    for (int h = 0; h < 2 && p->bias; h++)
        bias[h] = get_results(p->bias, column + h * VN_F, half[h], p->bias_wide);
    for (int64_t r = 0; r < rows; r++, sums += SIDE) {
        int64_t at = (row + r) * p->n + column;
        vF x[2];
        for (int h = 0; h < 2; h++) {
            memcpy(&x[h], sums + h * VN_F, sizeof x[h]);
            x[h] = x[h] * alpha + bias[h];
            if (p->beta != 0)
                x[h] += beta * get_results(p->y, at + h * VN_F, half[h], p->wide);
        }
        if (!p->wide) {
            _mm512_mask_storeu_epi16((uint16_t *) p->y + at, mask, (__m512i) narrow_pairs(x[0], x[1]));
            continue;
        }
        _mm512_mask_storeu_ps((float *) p->y + at, half[0], (__m512) x[0]);
        _mm512_mask_storeu_ps((float *) p->y + at + VN_F, half[1], (__m512) x[1]);
    }
}

/* A part of the result, and how far it is. Room of a thread's own. */
typedef struct unit {
    int64_t column, wide; /* in panels */
    int64_t first, last;  /* panels of the left factor */
    int64_t step, steps;  /* of this piece */
    uint16_t *right, *left; /* the right factor's panels; some of the left factor */
    float *sums;
    bool inexact;
} unit;

/* Panel i of the left factor, of this piece: as it lies if tiles can be read there, else packed. */
static AMX left_panel left_of(const multiplication *m, const unit *u, int64_t i) {
    const factor *a = &m->a;
    if (m->lies_well && (i + 1) * SIDE <= a->lines)
        return (left_panel){a->from + (i * SIDE * a->line + u->step * TILE_K) * 2, a->line * 2, TILE_BYTES};
    pack_factor(a, false, i * SIDE, 1, u->step * TILE_K, u->steps, u->left);
    return (left_panel){(const char *) u->left, TILE_BYTES, STEP_BYTES};
}

static wanted result_of(const multiplication *m, const unit *u, int64_t i, int64_t j) {
    const tr__tile_product *p = m->of;
    int64_t element = p->wide ? sizeof(float) : sizeof(uint16_t), row = p->n * element;
    const char *result = (const char *) p->y + i * SIDE * row + (u->column + j) * SIDE * element;
    return p->wide ? (wanted){result, row, TILE_BYTES} : (wanted){result, 2 * row, row};
}

/* Is one of a panel's sums so small that products of its terms' pieces may be missing? */
static bool has_tiny(const float *sums) {
    vFu least = (vFu){0} - 1;
    for (int i = 0; i < SIDE * SIDE; i += VN_F)
        least = (vFu) _mm512_min_epu32((__m512i) least, (__m512i) (((vFu) load_float(sums + i) & 0x7fffffffu) - 1));
    return _mm512_cmplt_epu32_mask((__m512i) least, _mm512_set1_epi32((127 - 100) << 23)) != 0;
}

/* A piece's sums begin at zero, and are added to those before: the fewer terms a sum has seen, the less rounding costs. */
static AMX void multiply_split_piece(const char *left, const char *right, const unit *u, float *sums, wanted w) {
    float own[SIDE * SIDE] __attribute__((aligned(64)));
    multiply_split(left, right, u->steps, u->step > 0 ? own : sums, w);
    for (int i = 0; u->step > 0 && i < SIDE * SIDE; i += VN_F)
        store_float(sums + i, load_float(sums + i) + load_float(own + i));
}

/* sums (+)= panel i of the left factor, l, by panels of the right one, of this piece. */
static AMX void multiply_left(const multiplication *m, unit *u, int64_t i, left_panel l) {
    for (int64_t j = 0; j < u->wide; j++) {
        float *sums = u->sums + (m->steps > m->depth ? (i - u->first) * u->wide + j : 0) * SIDE * SIDE;
        const char *right = (const char *) (u->right + j * u->steps * m->step);
        right_panel r = {right, TILE_BYTES, STEP_BYTES / 2, STEP_BYTES};
        wanted w = result_of(m, u, i, j);
        if (m->of->split)
            multiply_split_piece(l.from, right, u, sums, w);
        else
            multiply_panels(l, r, u->steps, sums, ROW_BYTES, u->step > 0, w);
        if (u->step + u->steps < m->steps)
            continue;
        u->inexact |= m->of->split && has_tiny(sums);
        finish(m->of, sums, i * SIDE, (u->column + j) * SIDE);
    }
}

static AMX void multiply_piece(const multiplication *m, unit *u) {
    if (!m->of->split) {
        pack_factor(&m->b, true, u->column * SIDE, u->wide, u->step * TILE_K, u->steps, u->right);
        for (int64_t i = u->first; i < u->last; i++)
            multiply_left(m, u, i, left_of(m, u, i));
        return;
    }
    u->inexact |= !pack_split(&m->b, true, u->column * SIDE, u->wide, u->step * TILE_K, u->steps, u->right);
    for (int64_t i = u->first; i < u->last; i++) {
        int64_t k = (i - u->first) % m->lefts;
        if (k == 0)
            u->inexact |= !pack_split(&m->a, false, i * SIDE, tr__min(m->lefts, u->last - i), u->step * TILE_K, u->steps, u->left);
        multiply_left(m, u, i, (left_panel){(const char *) (u->left + k * u->steps * m->step), 0, 0});
    }
}

static AMX void multiply_units(void *env, int64_t begin, int64_t end, int thread) {
    multiplication *m = env;
    int64_t all = upward(m->of->n, SIDE), groups = upward(all, m->width);
    tiles_begin();
    for (int64_t k = begin; k < end; k++) {
        int64_t part = k / groups;
        unit u = {.column = k % groups * m->width, .first = part * m->panels / m->parts, .last = (part + 1) * m->panels / m->parts};
        u.wide = tr__min(m->width, all - u.column);
        u.right = tr__room_of(&m->rooms, thread);
        u.left = u.right + m->width * m->depth * m->step;
        u.sums = (float *) (void *) (u.left + m->lefts * m->depth * m->step);
        for (; u.step < m->steps; u.step += u.steps) {
            u.steps = tr__min(m->depth, m->steps - u.step);
            multiply_piece(m, &u);
        }
        if (u.inexact) // read when the threads have joined: orders nothing
            atomic_store_explicit(&m->inexact, true, memory_order_relaxed);
    }
    tiles_end();
}

/* Cuts the result into units, by columns and by rows: each cut by columns reads, or packs, all of the left factor once more, by
 * rows all of the right one. */
static void deal(multiplication *m, int64_t columns, int64_t threads) {
    int64_t most = tr__max(1, tr__min(columns, NEAR / (m->depth * m->step))), wanted = SHARES * threads, least = INT64_MAX;
    double left = m->lies_well ? 1 : m->a.term == 1 ? 2 : 3, right = m->b.term == 1 ? 3 : 2;
    for (int64_t groups = upward(columns, most); groups <= tr__max(wanted, upward(columns, most)); groups++) {
        int64_t width = upward(columns, groups), parts = tr__min(m->panels, upward(wanted, upward(columns, width)));
        double cost = left * (double) (upward(columns, width) * m->panels) + right * (double) (parts * columns);
        if (cost < least) {
            least = (int64_t) cost;
            m->width = width;
            m->parts = parts;
        }
    }
}

tr_status TR__SUFFIXED(tr__multiply)(const tr_kernel_call *c, const tr__tile_product *p, bool *exact) {
    int64_t pieces = p->split ? MOST_PIECES : 1, depth = p->split ? SPLIT_DEPTH : DEPTH;
    multiplication m = {.of = p,
                        .a = {p->a, p->m, p->k, p->a_row, p->a_column, p->a_wide},
                        .b = {p->b, p->n, p->k, p->b_column, p->b_row, p->b_wide},
                        .steps = upward(p->k, TILE_K), .panels = upward(p->m, SIDE), .step = pieces * STEP};
    m.lies_well = m.a.term == 1 && !m.a.wide && p->k % TILE_K == 0;
    m.depth = upward(m.steps, upward(m.steps, depth / TILE_K));
    m.lefts = p->split && m.a.term != 1 ? 4 : 1; // rows in memory are short otherwise, and far apart
    deal(&m, upward(p->n, SIDE), c->ctx->threads);
    int64_t units = upward(upward(p->n, SIDE), m.width) * m.parts;
    int64_t kept = m.steps > m.depth ? upward(m.panels, m.parts) * m.width : 1; // sums
    size_t packed = (size_t) ((m.width + m.lefts) * m.depth * m.step) * sizeof(uint16_t);
    size_t bytes = packed + (size_t) (kept * SIDE * SIDE) * sizeof(float);
    TR_TRY(tr__parallel_rooms(c, units, 1, bytes, &m.rooms, multiply_units, &m));
    *exact = !atomic_load_explicit(&m.inexact, memory_order_relaxed);
    return TR_OK;
}
#endif
