/* isa_amx.h - AMX: products of tiles of bfloat16 pairs, summed up in float32, and of panels of two tiles by two, into which
 * factors are packed, of float32 in three pieces as well. Functions that use tiles are AMX, and called if tr__has_amx().
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
    MOST_PIECES = 3, /* of a float32 */
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

/* Of the elements that were cut into pieces: the bits of the largest magnitude, and those of the least but zero, less 1. */
typedef struct magnitudes {
    vFu most, least;
} magnitudes;

static inline magnitudes magnitudes_of_none(void) {
    return (magnitudes){{0}, (vFu){0} - 1};
}

/* Is each element exactly the sum of its pieces, all of them finite and normal? A last piece may be 2^-24 of its element, a first
 * one rounded up to a power of two. */
static inline bool are_pieces_exact(const magnitudes *m) {
    const uint32_t most = (127 + 127) << 23, least = (127 - 102) << 23;
    for (int i = 0; i < VN_F; i++)
        if (m->most[i] >= most || m->least[i] < least - 1)
            return false;
    return true;
}

/* Takes the nearest number of eight bits off x, to *piece: what is left has fewer bits by these. */
ALWAYS vF take_piece(vF x, vF *piece) {
    *piece = (vF) (((vFu) x + 0x8000u) & 0xffff0000u);
    return x - *piece;
}

typedef vF place __attribute__((may_alias)); /* where a vector of pieces is wanted */

/* The elements of two vectors, rounded, or in three pieces: a vector for each piece, of pairs of an element of either (`zip`), or
 * of those of `low` and behind them those of `high`. */
ALWAYS PAIRS void take_pieces(vF low, vF high, bool zip, int pieces, place *to[], magnitudes *m) {
    if (pieces == 1) {
        *to[0] = zip ? zip_pairs(low, high) : narrow_pairs(low, high);
        return;
    }
    vFu a = (vFu) low & 0x7fffffffu, b = (vFu) high & 0x7fffffffu;
    m->most = (vFu) _mm512_max_epu32((__m512i) m->most, _mm512_max_epu32((__m512i) a, (__m512i) b));
    m->least = (vFu) _mm512_min_epu32((__m512i) m->least, _mm512_min_epu32((__m512i) (a - 1), (__m512i) (b - 1)));
    for (int i = 0; i < pieces; i++) {
        vF x = low, y = high;
        if (i + 1 < pieces) {
            low = take_piece(low, &x);
            high = take_piece(high, &y);
        }
        *to[i] = zip ? zip_pairs(x, y) : narrow_pairs(x, y);
    }
}

/* 32 elements as bfloat16, or in pieces, those from n on 0. */
ALWAYS PAIRS void take_line(const factor *f, int64_t at, int64_t n, int pieces, place *to[], magnitudes *m) {
    __mmask32 mask = n >= TILE_K ? 0xffffffff : (1u << n) - 1;
    if (f->wide) {
        const float *x = (const float *) (const void *) f->from + at;
        __m512 low = _mm512_maskz_loadu_ps((__mmask16) mask, x), high = _mm512_maskz_loadu_ps((__mmask16) (mask >> 16), x + VN_F);
        take_pieces((vF) low, (vF) high, false, pieces, to, m);
    } else {
        *to[0] = (vF) _mm512_maskz_loadu_epi16(mask, (const uint16_t *) (const void *) f->from + at);
    }
}

/* Pairs of 16 elements at `low` and at `high`, those from n on 0; no `high` at all if there is none. */
ALWAYS PAIRS void take_pairs(const factor *f, int64_t low, int64_t high, int64_t n, bool both, int pieces, place *to[],
                             magnitudes *m) {
    __mmask16 mask = n >= 16 ? 0xffff : (__mmask16) ((1u << n) - 1), second = both ? mask : 0;
    if (f->wide) {
        const float *x = (const float *) (const void *) f->from;
        __m512 first = _mm512_maskz_loadu_ps(mask, x + low), last = _mm512_maskz_loadu_ps(second, x + high);
        take_pieces((vF) first, (vF) last, true, pieces, to, m);
    } else {
        const uint16_t *x = (const uint16_t *) (const void *) f->from;
        __m512i a = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, x + low));
        __m512i b = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(second, x + high));
        *to[0] = (vF) _mm512_or_si512(a, _mm512_slli_epi32(b, 16));
    }
}

/* A tile of 16 lines and 32 terms, of each piece: rows are lines of a left factor, pairs of terms of a right one. Lines' terms lie
 * side by side, or terms' lines (`by_lines` false). */
ALWAYS PAIRS void pack_tile(const factor *f, bool by_lines, bool right, int64_t line, int64_t term, int pieces, uint16_t *to,
                            magnitudes *m) {
    vF x[MOST_PIECES][TILE_ROWS];
    bool turned = right == by_lines;
    int64_t lines = f->lines - line, terms = f->terms - term, element = f->wide ? sizeof(float) : sizeof(uint16_t);
    int64_t at = by_lines ? line * f->line + term : line + term * f->term, step = by_lines ? f->line : 2 * f->term;
    int64_t ahead = element * (by_lines ? SIDE * f->line : (pieces > 1 ? TILE_K / 2 : TILE_K) * f->term); // the next panel; terms
    _Pragma("GCC unroll 16") for (int r = 0; r < TILE_ROWS; r++, at += step) {
        place *piece[MOST_PIECES];
        for (int i = 0; i < pieces; i++)
            piece[i] = turned ? &x[i][r] : (place *) (void *) (to + i * STEP + r * TILE_K);
        if (by_lines ? r >= lines : 2 * r >= terms) {
            for (int i = 0; i < pieces; i++)
                *piece[i] = (vF){0};
            continue;
        }
        if (by_lines) {
            take_line(f, at, terms, pieces, piece, m);
            __builtin_prefetch(f->from + at * element + ahead, 0, 2);
            if (f->wide)
                __builtin_prefetch(f->from + at * element + ahead + 64, 0, 2);
            continue;
        }
        take_pairs(f, at, at + f->term, lines, 2 * r + 1 < terms, pieces, piece, m);
        __builtin_prefetch(f->from + at * element + ahead, 0, 2);
        __builtin_prefetch(f->from + (at + f->term) * element + ahead, 0, 2);
    }
    for (int i = 0; turned && i < pieces; i++, to += STEP) {
        turn(x[i]);
        memcpy(to, x[i], sizeof x[i]);
    }
}

/* 32 terms of the panel at `line`, from `term` on; a piece behind the other. */
ALWAYS PAIRS void pack_step(const factor *f, bool by_lines, bool right, int64_t line, int64_t term, int pieces, uint16_t *to,
                            magnitudes *m) {
    for (int half = 0; half < 2; half++, line += TILE_ROWS, to += TILE_SIZE)
        if (line < f->lines)
            pack_tile(f, by_lines, right, line, term, pieces, to, m);
        else
            for (int i = 0; i < pieces; i++)
                memset(to + i * STEP, 0, TILE_SIZE * sizeof *to);
}

/* `panels` of so many steps, from line and term on. Each step of lines that lie side by side goes through all panels: rows in
 * memory are read as far as they are wanted. More than one piece: of float32. */
ALWAYS PAIRS void pack_pieces(const factor *f, bool right, int64_t line, int64_t panels, int64_t term, int64_t steps, int pieces,
                              uint16_t *to, magnitudes *m) {
    if (f->term == 1) {
        for (int64_t p = 0; p < panels; p++)
            for (int64_t s = 0; s < steps; s++, to += pieces * STEP)
                pack_step(f, true, right, line + p * SIDE, term + s * TILE_K, pieces, to, m);
        return;
    }
    for (int64_t s = 0; s < steps; s++, to += pieces * STEP)
        for (int64_t p = 0; p < panels; p++)
            pack_step(f, false, right, line + p * SIDE, term + s * TILE_K, pieces, to + p * steps * pieces * STEP, m);
}
static inline PAIRS void pack_factor(const factor *f, bool right, int64_t line, int64_t panels, int64_t term, int64_t steps,
                                     uint16_t *to) {
    pack_pieces(f, right, line, panels, term, steps, 1, to, NULL);
}
/* In three pieces; false if one isn't exact. */
static inline PAIRS bool pack_split(const factor *f, bool right, int64_t line, int64_t panels, int64_t term, int64_t steps,
                                    uint16_t *to) {
    magnitudes m = magnitudes_of_none();
    pack_pieces(f, right, line, panels, term, steps, MOST_PIECES, to, &m);
    magnitudes all = m; // m's address stays here, so that m stays in registers
    return are_pieces_exact(&all);
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

ALWAYS void sums_clear(void) {
    AMX_ZERO(0);
    AMX_ZERO(1);
    AMX_ZERO(2);
    AMX_ZERO(3);
}

/* The sums of a panel, `row` bytes from row to row, to tiles, and back. */
ALWAYS void sums_begin(const float *sums, int64_t row) {
    const char *low = (const char *) sums, *high = low + TILE_ROWS * row;
    AMX_LOAD(0, low, row);
    AMX_LOAD(1, low + TILE_BYTES, row);
    AMX_LOAD(2, high, row);
    AMX_LOAD(3, high + TILE_BYTES, row);
}
ALWAYS void sums_end(float *sums, int64_t row) {
    char *low = (char *) sums, *high = low + TILE_ROWS * row;
    AMX_STORE(0, low, row);
    AMX_STORE(1, low + TILE_BYTES, row);
    AMX_STORE(2, high, row);
    AMX_STORE(3, high + TILE_BYTES, row);
}

/* sums [32, 32], `row` bytes from row to row, = (or +=) a b, of panels of so many steps. */
static inline AMX void multiply_panels(left_panel a, right_panel b, int64_t steps, float *sums, int64_t row, bool add, wanted w) {
    if (add)
        sums_begin(sums, row);
    else
        sums_clear();
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
    sums_end(sums, row);
}

#define LOAD_LEFT(piece)                                                        \
    do {                                                                        \
        AMX_LOAD(4, a + (piece) * STEP_BYTES, TILE_BYTES);                      \
        AMX_LOAD(5, a + (piece) * STEP_BYTES + STEP_BYTES / 2, TILE_BYTES);     \
    } while (0)
#define LOAD_RIGHT(piece)                                                       \
    do {                                                                        \
        AMX_LOAD(6, b + (piece) * STEP_BYTES, TILE_BYTES);                      \
        AMX_LOAD(7, b + (piece) * STEP_BYTES + STEP_BYTES / 2, TILE_BYTES);     \
    } while (0)
#define DOT_ALL()         \
    do {                  \
        AMX_DOT(0, 4, 6); \
        AMX_DOT(1, 4, 7); \
        AMX_DOT(2, 5, 6); \
        AMX_DOT(3, 5, 7); \
    } while (0)

/* sums [32, 32] = a b, of packed panels in three pieces: six of the nine products, in an order for which seven pairs of tiles are
 * loaded. */
static inline AMX void multiply_split(const char *a, const char *b, int64_t steps, float *sums, wanted w) {
    enum { HIGH, MIDDLE, LOW, SPLIT_BYTES = MOST_PIECES * STEP_BYTES };
    sums_clear();
    for (int64_t s = 0; s < steps; s++, a += SPLIT_BYTES, b += SPLIT_BYTES) {
        const char *next = b + SPLIT_BYTES;
        LOAD_RIGHT(HIGH);
        LOAD_LEFT(LOW);
        fetch_step(&w);
        DOT_ALL();
        LOAD_LEFT(HIGH);
        fetch_tile(next);
        fetch_tile(next + STEP_BYTES / 2);
        DOT_ALL();
        LOAD_LEFT(MIDDLE);
        fetch_tile(next + STEP_BYTES);
        fetch_tile(next + 3 * STEP_BYTES / 2);
        DOT_ALL();
        LOAD_RIGHT(MIDDLE);
        fetch_tile(next + 2 * STEP_BYTES);
        fetch_tile(next + 5 * STEP_BYTES / 2);
        DOT_ALL();
        LOAD_LEFT(HIGH);
        DOT_ALL();
        LOAD_RIGHT(LOW);
        DOT_ALL();
    }
    sums_end(sums, ROW_BYTES);
}
#endif

#endif
