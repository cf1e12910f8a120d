/* isa_amx.h - AMX: products of tiles of bfloat16 pairs, summed up in float32, and of panels of two tiles by two, into which
 * factors are packed. Functions that use tiles are AMX, and called if tr__has_amx().
 *
 * A tile has 16 rows of 64 bytes. Tiles 0 to 3 are sums, 16 by 16 floats; 4 and 5 left factors, 16 rows of 32 bfloat16 that are
 * summed over; 6 and 7 right factors, 16 pairs of these by 16 columns. Denormals count as zero, and are rounded to it, as with
 * AVX512-BF16. A thread's tiles are configured when its part of a loop begins, and released at its end: the library brings its own
 * configuration, and a switch of threads then has no tiles to save. Included by isa_*.c only. */
#ifndef TERRA_EXEC_ISA_AMX_H
#define TERRA_EXEC_ISA_AMX_H

#include "exec/kernels/isa_bf16.h"

#if TR_ISA_LEVEL >= 4
#define AMX PAIRS

enum {
    TILE_ROWS = 16,
    TILE_BYTES = 64, /* of a row */
    TILE_K = 32,     /* terms */
    TILE_SIZE = TILE_ROWS * TILE_K, /* elements */
    SIDE = 2 * TILE_ROWS,      /* rows, or columns, of a panel: two tiles */
    STEP = SIDE * TILE_K,      /* elements of a panel that 32 terms take */
    STEP_BYTES = 2 * STEP,
    ROW_BYTES = SIDE * sizeof(float), /* of sums that lie by themselves */
    AHEAD = 2, /* steps that the right factor's tiles are fetched before they are multiplied */
};

/* Instructions by hand: those of gcc 12's immintrin.h don't tell the compiler that they read memory, and it drops or delays what
 * is stored there before. t, sum, left, right: numbers of tiles; step: bytes from one row to the next. */
#define AMX_TILE(t)               "%%tmm" #t
#define AMX_LOAD(t, from, step) \
    __asm__ volatile("tileloadd (%0,%1,1), " AMX_TILE(t)::"r"(from), "r"((int64_t) (step)) : "memory")
#define AMX_STORE(t, to, step) \
    __asm__ volatile("tilestored " AMX_TILE(t) ", (%0,%1,1)" ::"r"(to), "r"((int64_t) (step)) : "memory")
#define AMX_ZERO(t)               __asm__ volatile("tilezero " AMX_TILE(t)::)
#define AMX_DOT(sum, left, right) __asm__ volatile("tdpbf16ps " AMX_TILE(right) ", " AMX_TILE(left) ", " AMX_TILE(sum)::)

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

/* ------------------------------------------------------------------------------------------ packing */

/* A factor as lines of what is summed over, `line` apart, or as terms, `term` apart, of lines that lie side by side. Elements. */
typedef struct factor {
    const char *from;
    int64_t lines, terms, line, term;
    bool wide; /* of float32 */
} factor;

/* 32 elements as bfloat16, those from n on 0. */
ALWAYS PAIRS vF take_line(const factor *f, int64_t at, int64_t n) {
    __mmask32 mask = n >= TILE_K ? 0xffffffff : (1u << n) - 1;
    if (f->wide) {
        const float *x = (const float *) (const void *) f->from + at;
        __m512 low = _mm512_maskz_loadu_ps((__mmask16) mask, x), high = _mm512_maskz_loadu_ps((__mmask16) (mask >> 16), x + VN_F);
        return narrow_pairs((vF) low, (vF) high);
    }
    return (vF) _mm512_maskz_loadu_epi16(mask, (const uint16_t *) (const void *) f->from + at);
}

/* Pairs of 16 elements at `low` and at `high`, those from n on 0; no `high` at all if there is none. */
ALWAYS PAIRS vF take_pairs(const factor *f, int64_t low, int64_t high, int64_t n, bool both) {
    __mmask16 mask = n >= 16 ? 0xffff : (__mmask16) ((1u << n) - 1), second = both ? mask : 0;
    if (f->wide) {
        const float *x = (const float *) (const void *) f->from;
        return zip_pairs((vF) _mm512_maskz_loadu_ps(mask, x + low), (vF) _mm512_maskz_loadu_ps(second, x + high));
    }
    const uint16_t *x = (const uint16_t *) (const void *) f->from;
    __m512i a = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, x + low));
    __m512i b = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(second, x + high));
    return (vF) _mm512_or_si512(a, _mm512_slli_epi32(b, 16));
}

/* A tile of 16 lines and 32 terms: rows are lines of a left factor, pairs of terms of a right one. Terms lie side by side: */
ALWAYS PAIRS void pack_lines(const factor *f, int64_t line, int64_t term, bool right, uint16_t *to) {
    vF x[TILE_ROWS];
    int64_t lines = f->lines - line, terms = f->terms - term, at = line * f->line + term;
    _Pragma("GCC unroll 16") for (int r = 0; r < TILE_ROWS; r++, at += f->line) {
        x[r] = (vF){0};
        if (r < lines)
            x[r] = take_line(f, at, terms);
    }
    if (right)
        turn(x);
    memcpy(to, x, sizeof x);
}

/* Lines do: */
ALWAYS PAIRS void pack_terms(const factor *f, int64_t line, int64_t term, bool right, uint16_t *to) {
    vF x[TILE_ROWS];
    int64_t lines = f->lines - line, terms = f->terms - term, at = line + term * f->term;
    int64_t element = f->wide ? sizeof(float) : sizeof(uint16_t);
    _Pragma("GCC unroll 16") for (int r = 0; r < TILE_ROWS; r++, at += 2 * f->term) {
        x[r] = (vF){0};
        if (2 * r < terms)
            x[r] = take_pairs(f, at, at + f->term, lines, 2 * r + 1 < terms);
        __builtin_prefetch(f->from + (at + TILE_K * f->term) * element, 0, 2);
        __builtin_prefetch(f->from + (at + (TILE_K + 1) * f->term) * element, 0, 2);
    }
    if (!right)
        turn(x);
    memcpy(to, x, sizeof x);
}

/* 32 terms of the panel at `line`, from `term` on. */
ALWAYS PAIRS void pack_step(const factor *f, bool by_lines, bool right, int64_t line, int64_t term, uint16_t *to) {
    for (int half = 0; half < 2; half++, line += TILE_ROWS, to += TILE_SIZE)
        if (line >= f->lines)
            memset(to, 0, TILE_SIZE * sizeof *to);
        else if (by_lines)
            pack_lines(f, line, term, right, to);
        else
            pack_terms(f, line, term, right, to);
}

/* `panels` of so many steps, from line and term on. Each step of lines that lie side by side goes through all panels: rows in
 * memory are read as far as they are wanted. */
static inline PAIRS void pack_factor(const factor *f, bool right, int64_t line, int64_t panels, int64_t term, int64_t steps,
                                     uint16_t *to) {
    if (f->term == 1) {
        for (int64_t p = 0; p < panels; p++)
            for (int64_t s = 0; s < steps; s++, to += STEP)
                pack_step(f, true, right, line + p * SIDE, term + s * TILE_K, to);
        return;
    }
    for (int64_t s = 0; s < steps; s++, to += STEP)
        for (int64_t p = 0; p < panels; p++)
            pack_step(f, false, right, line + p * SIDE, term + s * TILE_K, to + p * steps * STEP);
}
/* ------------------------------------------------------------------------------------------ products of panels */

/* Where the result goes, which its cache lines are wanted for soon: two of them with each step. Bytes. */
typedef struct wanted {
    const char *result;
    int64_t step, line;
} wanted;

ALWAYS void fetch_step(wanted *w) {
    __builtin_prefetch(w->result, 1, 2);
    __builtin_prefetch(w->result + w->line, 1, 2);
    w->result += w->step;
}

/* To the first-level cache. */
ALWAYS void fetch_tile(const char *tile) {
    _Pragma("GCC unroll 16") for (int r = 0; r < TILE_ROWS; r++) __builtin_prefetch(tile + r * TILE_BYTES);
}

/* A panel of the left factor: rows `row` bytes apart, each step's terms `step` behind the last one's. */
typedef struct left_panel {
    const char *from;
    int64_t row, step;
} left_panel;

/* A panel of the right factor: rows of tiles `row` bytes apart, a step's second tile `second` behind its first, a step `step`
 * behind the last one. */
typedef struct right_panel {
    const char *from;
    int64_t row, second, step;
} right_panel;

/* sums [32, 32], `row` bytes from row to row, = (or +=) a b, of panels of so many steps. */
static AMX void multiply_panels(left_panel a, right_panel b, int64_t steps, float *sums, int64_t row, bool add, wanted w) {
    char *low = (char *) sums, *high = low + TILE_ROWS * row;
    if (add) {
        AMX_LOAD(0, low, row);
        AMX_LOAD(1, low + TILE_BYTES, row);
        AMX_LOAD(2, high, row);
        AMX_LOAD(3, high + TILE_BYTES, row);
    } else {
        AMX_ZERO(0);
        AMX_ZERO(1);
        AMX_ZERO(2);
        AMX_ZERO(3);
    }
    const char *second = a.from + TILE_ROWS * a.row;
    for (int64_t s = 0; s < steps; s++, a.from += a.step, second += a.step, b.from += b.step) {
        AMX_LOAD(4, a.from, a.row);
        AMX_LOAD(6, b.from, b.row);
        AMX_LOAD(7, b.from + b.second, b.row);
        AMX_LOAD(5, second, a.row);
        fetch_step(&w);
        fetch_tile(b.from + AHEAD * b.step);
        AMX_DOT(0, 4, 6);
        AMX_DOT(1, 4, 7);
        fetch_tile(b.from + AHEAD * b.step + STEP_BYTES / 2);
        AMX_DOT(2, 5, 6);
        AMX_DOT(3, 5, 7);
    }
    AMX_STORE(0, low, row);
    AMX_STORE(1, low + TILE_BYTES, row);
    AMX_STORE(2, high, row);
    AMX_STORE(3, high + TILE_BYTES, row);
}
#endif

#endif
