/* isa_attention.h - what attention (isa_attention.c) and its derivative (isa_attention_backward.c) have in common: operands in
 * memory and in panels, products of small matrices over them, masks and dropout, and how a call is opened. Included by those only.
 *
 * A head's keys and values are packed once into panels of NR columns. Its queries come in tiles of TILE rows, against blocks of at
 * most BLOCK keys: scores stay in a tile in the cache, and are turned into probabilities there. Of a causal tile each MR rows look
 * at the keys up to their last one. Work is cut by sizes alone, and sums by those of one head of a batch: results depend neither
 * on the number of threads nor on how a batch is cut.
 *
 * Memory is counted in words of 32 bits: a float, or two bfloat16 that are neighbours along the dimension that a product sums.
 *
 *   l queries, s keys, d columns of queries and keys, e columns of values */
#ifndef TERRA_EXEC_ISA_ATTENTION_H
#define TERRA_EXEC_ISA_ATTENTION_H

#include "exec/kernels/isa_amx.h"
#include "exec/kernels/isa_bf16.h"
#include "exec/kernels/isa_tile.h"
#include "exec/kernels/kernels.h"

#if TR_ISA_LEVEL >= 4
enum { MR = 12 };
#else
enum { MR = 6 };
#endif
enum {
    NR = 2 * VN_F,
    TILE = 48,       /* rows of a tile, a multiple of MR; */
    TILE_MOST = 64,  /* of AMX's */
    BLOCK = 512,
    ROW = BLOCK + 16, /* of a tile: a power of two would have its rows share a few sets of the cache */
    UNITS = 64, /* of work, at least, if there are tiles enough */
};

static int64_t padded(int64_t n) {
    return (n + NR - 1) / NR * NR;
}

/* ------------------------------------------------------------------------------------------ products of small matrices */

/* Lines `step` bytes apart that are wanted soon, in the second-level cache. */
typedef struct ahead {
    const char *from;
    int64_t step;
} ahead;

/* A tile's rows of the left matrix, by threes: so many addresses stay in registers. */
typedef struct left {
    const float *three[MR / 3];
    int64_t row;
} left;

ALWAYS left left_of(int R, const float *a, int64_t row) {
    left l = {.row = row};
    _Pragma("GCC unroll 4") for (int i = 0; 3 * i < R; i++) l.three[i] = a + 3 * i * row;
    return l;
}
/* To the next k. The compiler, left to itself, keeps an address per row, and some of them in vector registers. */
ALWAYS void left_step(int R, left *l, int64_t step) {
    _Pragma("GCC unroll 4") for (int i = 0; 3 * i < R; i++) {
        l->three[i] += step;
        __asm__("" : "+r"(l->three[i]));
    }
}

ALWAYS void micro_step(int R, vF acc[MR][2], const left *l, const float *b) {
    vF columns[2];
    tile_load(2, columns, b, VN_F);
    _Pragma("GCC unroll 12") for (int r = 0; r < R; r++) tile_add(2, acc[r], l->three[r / 3][r % 3 * l->row], columns);
}

/* The function of a tile's product, by what adds one step of it:
 * c [R, NR] (+)= a [R, k] b [k, NR]; steps of a by row and by k, of b by k, of c by row. k counts words. With each two of them a
 * line of `next` is sent for. */
#define PRODUCT(name, add_step, target)                                                                                         \
    ALWAYS target void name(int R, int64_t k, const float *a, int64_t a_row, int64_t a_k, const float *b, int64_t b_k,          \
                            float *c, int64_t c_row, bool add, ahead next) {                                                    \
        vF acc[MR][2];                                                                                                          \
        left l = left_of(R, a, a_row);                                                                                          \
        _Pragma("GCC unroll 12") for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = (vF){0};                                   \
        for (; k >= 2; k -= 2) {                                                                                                \
            add_step(R, acc, &l, b);                                                                                            \
            left_step(R, &l, a_k);                                                                                              \
            __builtin_prefetch(next.from, 0, 2);                                                                                \
            next.from += next.step;                                                                                             \
            add_step(R, acc, &l, b + b_k);                                                                                      \
            left_step(R, &l, a_k);                                                                                              \
            b += 2 * b_k;                                                                                                       \
        }                                                                                                                       \
        if (k)                                                                                                                  \
            add_step(R, acc, &l, b);                                                                                            \
        _Pragma("GCC unroll 12") for (int r = 0; r < R; r++) tile_store(2, acc[r], c + r * c_row, VN_F, add);                   \
    }
PRODUCT(micro, micro_step, )

typedef void micro_fn(int64_t k, const float *a, int64_t a_row, int64_t a_k, const float *b, int64_t b_k, float *c, int64_t c_row,
                      bool add, ahead next);
#define MICRO(R)                                                                                                          \
    static void micro_##R(int64_t k, const float *a, int64_t a_row, int64_t a_k, const float *b, int64_t b_k, float *c, \
                          int64_t c_row, bool add, ahead next) {                                                          \
        micro(R, k, a, a_row, a_k, b, b_k, c, c_row, add, next);                                                          \
    }
#if TR_ISA_LEVEL >= 4
#define EACH_R(f) f(1) f(2) f(3) f(4) f(5) f(6) f(7) f(8) f(9) f(10) f(11) f(12)
#else
#define EACH_R(f) f(1) f(2) f(3) f(4) f(5) f(6)
#endif
#define NAMED(R) micro_##R,
EACH_R(MICRO)
static micro_fn *const micro_of[MR + 1] = {NULL, EACH_R(NAMED)};

#if TR_ISA_LEVEL >= 4
/* The same of pairs of bfloat16. */
ALWAYS PAIRS void pairs_step(int R, vF acc[MR][2], const left *l, const float *b) {
    vF columns[2];
    tile_load(2, columns, b, VN_F);
    _Pragma("GCC unroll 12") for (int r = 0; r < R; r++) {
        uint32_t pair;
        memcpy(&pair, l->three[r / 3] + r % 3 * l->row, sizeof pair);
        tile_add_pairs(2, acc[r], pair, columns);
    }
}
PRODUCT(micro_pairs, pairs_step, PAIRS)
#define MICRO_PAIRS(R)                                                                                                         \
    static PAIRS void pairs_##R(int64_t k, const float *a, int64_t a_row, int64_t a_k, const float *b, int64_t b_k, float *c, \
                                int64_t c_row, bool add, ahead next) {                                                         \
        micro_pairs(R, k, a, a_row, a_k, b, b_k, c, c_row, add, next);                                                         \
    }
#define NAMED_PAIRS(R) pairs_##R,
EACH_R(MICRO_PAIRS)
static micro_fn *const pairs_of[MR + 1] = {NULL, EACH_R(NAMED_PAIRS)};
#else
#define pairs_of micro_of
#endif

/* ------------------------------------------------------------------------------------------ operands in memory */

/* A [B, H, rows, columns] operand of float or bfloat16; columns are adjacent. */
typedef struct matrix4 {
    char *data;
    int64_t b, h, row;
    bool bf16;
} matrix4;

/* A head of it, in elements; or in words that are pairs of columns. */
typedef struct matrix {
    char *data;
    int64_t row; /* bytes */
    int element; /* bytes */
    bool bf16;
} matrix;

static matrix head_of(const matrix4 *m, int64_t b, int64_t h) {
    int element = m->bf16 ? 2 : 4;
    return (matrix){m->data + (b * m->b + h * m->h) * element, m->row * element, element, m->bf16};
}

ALWAYS void *at(const matrix *m, int64_t r, int64_t c) {
    return m->data + r * m->row + c * m->element;
}

/* n elements of row r, from column c on. */
ALWAYS void get(float *to, const matrix *m, int64_t r, int64_t c, int64_t n) {
    if (m->bf16)
        bf16_widen(to, at(m, r, c), n);
    else
        memcpy(to, at(m, r, c), (size_t) n * sizeof *to);
}

static void put(const matrix *m, int64_t r, const float *from, int64_t n) {
    if (m->bf16)
        bf16_narrow(at(m, r, 0), from, n);
    else
        memcpy(at(m, r, 0), from, (size_t) n * sizeof *from);
}

/* Rows [rows, step] of columns [0, n), padded with zeros. */
static void get_rows(float *to, int64_t step, const matrix *m, int64_t row, int64_t rows, int64_t n) {
    for (int64_t r = 0; r < rows; r++, to += step) {
        get(to, m, row + r, 0, n);
        memset(to + n, 0, (size_t) (step - n) * sizeof *to);
    }
}

/* Panels [k, NR] of [k, n], padded with zeros. */
static void pack(float *to, const matrix *m, int64_t k, int64_t n) {
    for (int64_t col = 0; col < n; col += NR) {
        int64_t w = tr__min(NR, n - col);
        for (int64_t i = 0; i < k; i++, to += NR) {
            if (w == NR) {
                get(to, m, i, col, NR);
            } else {
                memset(to, 0, NR * sizeof *to);
                get(to, m, i, col, w);
            }
        }
    }
}

ALWAYS vF get_vector(const matrix *m, int64_t r, int64_t c) {
    vF x;
    if (m->bf16)
        return load_bf16(at(m, r, c));
    memcpy(&x, at(m, r, c), sizeof x);
    return x;
}

/* A square at row r and column c, of which there are `rows` and `columns`: to rows NR apart. Rows may be far apart: the next
 * square's are sent for. */
static void pack_turned(float *to, const matrix *m, int64_t r, int64_t rows, int64_t c, int64_t columns) {
    vF x[VN_F];
    if (rows >= VN_F && columns >= VN_F) {
        for (int k = 0; k < VN_F; k++)
            __builtin_prefetch(at(m, r + VN_F + k, c));
        _Pragma("GCC unroll 16") for (int k = 0; k < VN_F; k++) x[k] = get_vector(m, r + k, c);
        turn(x);
        _Pragma("GCC unroll 16") for (int k = 0; k < VN_F; k++) memcpy(to + k * NR, &x[k], sizeof x[k]);
        return;
    }
    columns = tr__min(columns, VN_F);
    memset(x, 0, sizeof x);
    for (int64_t k = 0; k < tr__min(rows, VN_F); k++)
        get((float *) &x[k], m, r + k, c, columns);
    turn(x);
    for (int64_t k = 0; k < columns; k++)
        memcpy(to + k * NR, &x[k], sizeof x[k]);
}

/* Panels [k, NR] of the transpose of [n, k]. */
static void pack_transposed(float *to, const matrix *m, int64_t k, int64_t n) {
    for (int64_t row = 0; row < n; row += NR, to += k * NR)
        for (int64_t half = 0; half < NR; half += VN_F)
            for (int64_t c = 0; c < k; c += VN_F)
                pack_turned(to + c * NR + half, m, row + half, n - row - half, c, k - c);
}

/* Pairs of two rows of bfloat16, the second of which may be missing: n words. */
static void pair_up(float *to, const uint16_t *low, const uint16_t *high, int64_t n) {
    for (int64_t k = 0; k < n; k += VN_F) {
        bool all = n - k >= VN_F;
        vF l = all ? load_bf16(low + k) : load_bf16_part(low + k, n - k), h = {0};
        if (high)
            h = all ? load_bf16(high + k) : load_bf16_part(high + k, n - k);
        vF x = (vF) ((vFu) l >> 16 | (vFu) h);
        memcpy(to + k, &x, sizeof x);
    }
}

/* Panels [k / 2, NR] of pairs of rows of [k, n], padded with zeros. */
static void pack_pairs(float *to, const matrix *m, int64_t k, int64_t n) {
    for (int64_t col = 0; col < n; col += NR)
        for (int64_t i = 0; i < k; i += 2, to += NR) {
            int64_t w = tr__min(NR, n - col);
            if (w < NR)
                memset(to, 0, NR * sizeof *to);
            pair_up(to, at(m, i, col), i + 1 < k ? at(m, i + 1, col) : NULL, w);
        }
}

/* ------------------------------------------------------------------------------------------ a call */

typedef struct job {
    int64_t batch, heads, l, s, d, e;
    int64_t tiles, groups; /* of queries: tiles, and the groups that they are dealt in */
    matrix4 q, k, v, out, g, dq, dk, dv;
    float *lse;            /* [B, H, L] */
    const void *mask;      /* float or bool, or NULL */
    bool mask_bool, causal;
    int64_t mask_strides[4];
    const uint8_t *keep;   /* [B, H, L, S] or NULL */
    float scale, kept;     /* kept: 1 / (1 - p) */
    float *scratch;
    size_t per_thread;     /* floats */
    float *parts;          /* backward, groups on several threads: [heads, groups, s, d + e padded], their dk and dv */
    bool pairs;            /* words are pairs */
    bool panels;           /* and products by AMX: all sizes are multiples of 32 */
    int64_t tile, together; /* rows of a tile, and of a product: what one of these sees, all do */
    micro_fn *const *micro;
} job;

/* What products send for while they compute: columns of lines, because rows of a matrix are far apart and the processor does not
 * see which come next. A wish that finds no room is dropped. */
enum { WISHES = 64 };
typedef struct wishes {
    ahead lines[WISHES];
    int64_t rows[WISHES];
    int n, first;
} wishes;

static void wish(wishes *w, const matrix4 *m, int64_t b, int64_t h, int64_t row, int64_t rows, int64_t columns) {
    matrix x = head_of(m, b, h);
    for (int64_t c = 0; rows > 0 && c < columns * x.element && w->n < WISHES; c += 64, w->n++) {
        w->lines[w->n] = (ahead){(char *) at(&x, row, 0) + c, x.row};
        w->rows[w->n] = rows;
    }
}

/* Those of a product of k, which may be more than were wished for; once there are none, a line that is there. */
static ahead next_lines(wishes *w, int64_t k) {
    if (w->first == w->n) {
        w->first = w->n = 0;
        return (ahead){(const char *) w, 0};
    }
    ahead *a = &w->lines[w->first], lines = *a;
    int64_t n = k / 2;
    a->from += n * a->step;
    w->rows[w->first] -= n;
    w->first += w->rows[w->first] <= 0;
    return lines;
}

#if TR_ISA_LEVEL >= 4
/* The same for so many steps of tiles. */
ALWAYS wanted next_wanted(wishes *w, int64_t steps) {
    ahead lines = next_lines(w, 4 * steps);
    return (wanted){lines.from, 2 * lines.step, lines.step};
}
#endif

/* Where a unit is, and what it works on. */
typedef struct unit {
    const job *j;
    int64_t b, h, d_pad, e_pad;
    float *bias; /* [BLOCK] */
    wishes *wishes;
} unit;

/* A tile's rows against a block of keys. */
typedef struct span {
    int64_t row, rows, key, n;
} span;

/* Words of n elements along a summed dimension. */
ALWAYS int64_t words(const job *j, int64_t n) {
    return j->pairs ? (n + 1) / 2 : n;
}

/* The columns of an operand as words. */
static matrix columns_of(const job *j, const matrix4 *m, int64_t b, int64_t h) {
    matrix x = head_of(m, b, h);
    return j->pairs ? (matrix){x.data, x.row, sizeof(float), false} : x;
}

/* [keys, n] in panels, as `gather` wants it. */
static void pack_rows(const job *j, float *to, const matrix4 *m, int64_t b, int64_t h, int64_t n) {
    matrix x = head_of(m, b, h);
    (j->pairs ? pack_pairs : pack)(to, &x, j->s, n);
}
/* The transpose of it, as `compare` wants it. */
static void pack_columns(const job *j, float *to, const matrix4 *m, int64_t b, int64_t h, int64_t n) {
    matrix x = columns_of(j, m, b, h);
    pack_transposed(to, &x, words(j, n), j->s);
}

/* How many of the block's keys the tile's rows below r see. */
static int64_t seen_by(const unit *u, const span *s, int64_t r) {
    return u->j->causal ? tr__max(0, tr__min(s->n, s->row + r - s->key)) : s->n;
}

#if TR_ISA_LEVEL >= 4
/* The two products below by tiles of bfloat16 pairs. */
static AMX void compare_panels(const unit *u, const span *s, const float *a, int64_t k, const float *b, float *x) {
    int64_t step = words(u->j, padded(k)), steps = words(u->j, k) / TILE_ROWS;
    for (int64_t col = 0; col < s->n; col += NR, b += steps * TILE_ROWS * NR)
        for (int64_t r = 0; r < s->rows; r += SIDE)
            if (col < seen_by(u, s, r + SIDE)) {
                left_panel l = {(const char *) (a + r * step), step * (int64_t) sizeof *a, TILE_BYTES};
                right_panel w = {(const char *) b, 2 * TILE_BYTES, TILE_BYTES, STEP_BYTES};
                multiply_panels(l, w, steps, x + r * ROW + col, ROW * sizeof *x, false, next_wanted(u->wishes, steps));
            }
}

static AMX void gather_panels(const unit *u, const span *s, const float *x, const float *b, float *c, int64_t columns) {
    b += words(u->j, s->key) * NR;
    for (int64_t col = 0; col < columns; col += NR, b += words(u->j, u->j->s) * NR)
        for (int64_t r = 0; r < s->rows; r += SIDE) {
            int64_t steps = words(u->j, seen_by(u, s, r + SIDE)) / TILE_ROWS;
            left_panel l = {(const char *) (x + r * ROW), ROW * sizeof *x, TILE_BYTES};
            right_panel w = {(const char *) b, 2 * TILE_BYTES, TILE_BYTES, STEP_BYTES};
            multiply_panels(l, w, steps, c + r * columns + col, columns * (int64_t) sizeof *c, s->key > 0,
                            next_wanted(u->wishes, steps));
        }
}
#else
static void compare_panels(const unit *u, const span *s, const float *a, int64_t k, const float *b, float *x) {
}
static void gather_panels(const unit *u, const span *s, const float *x, const float *b, float *c, int64_t columns) {
}
#endif

/* x [rows, n] = a [rows, k] b, as far as it is seen; rows of a are padded, b in panels [k, NR]. */
static void compare(const unit *u, const span *s, const float *a, int64_t k, const float *b, float *x) {
    if (u->j->panels) {
        compare_panels(u, s, a, k, b, x);
        return;
    }
    int64_t step = words(u->j, padded(k));
    k = words(u->j, k);
    for (int64_t col = 0; col < s->n; col += NR, b += k * NR)
        for (int64_t r = 0; r < s->rows; r += MR) {
            int64_t m = tr__min(MR, s->rows - r);
            if (col < seen_by(u, s, r + m))
                u->j->micro[m](k, a + r * step, step, 1, b, NR, x + r * ROW + col, ROW, false, next_lines(u->wishes, k));
        }
}

/* c [rows, columns] (+)= x [rows, n] b; b in panels [keys, NR]. */
static void gather(const unit *u, const span *s, const float *x, const float *b, float *c, int64_t columns) {
    if (u->j->panels) {
        gather_panels(u, s, x, b, c, columns);
        return;
    }
    b += words(u->j, s->key) * NR;
    for (int64_t col = 0; col < columns; col += NR, b += words(u->j, u->j->s) * NR)
        for (int64_t r = 0; r < s->rows; r += MR) {
            int64_t m = tr__min(MR, s->rows - r), k = words(u->j, seen_by(u, s, r + m));
            u->j->micro[m](k, x + r * ROW, ROW, 1, b, NR, c + r * columns + col, columns, s->key > 0, next_lines(u->wishes, k));
        }
}

/* The mask's row, as numbers to add; columns from `key` on. */
static const float *mask_row(const unit *u, int64_t row, int64_t key, int64_t n) {
    const job *j = u->j;
    const int64_t *st = j->mask_strides;
    int64_t from = u->b * st[0] + u->h * st[1] + row * st[2] + key * st[3];
    float *to = u->bias;
    if (j->mask_bool) {
        const uint8_t *m = (const uint8_t *) j->mask + from;
        for (int64_t k = 0; k < n; k++)
            to[k] = m[k * st[3]] ? 0 : -__builtin_inff();
    } else {
        const float *m = (const float *) j->mask + from;
        if (st[3] == 1)
            return m;
        for (int64_t k = 0; k < n; k++)
            to[k] = m[k * st[3]];
    }
    return to;
}

/* What is left to multiply a row's n scores by: the scale, unless they had to be masked or turned round here. */
static float scale_row(const unit *u, float *x, int64_t row, int64_t key, int64_t n) {
    const job *j = u->j;
    float scale = j->scale;
    if (j->mask) {
        const float *bias = mask_row(u, row, key, n);
        _Pragma("GCC ivdep") for (int64_t k = 0; k < n; k++) x[k] = x[k] * scale + bias[k];
        return 1;
    }
    if (scale > 0)
        return scale;
    _Pragma("GCC ivdep") for (int64_t k = 0; k < n; k++) x[k] *= scale;
    return 1;
}

/* Lanes below n of x, the others of y. */
static vF lanes_below(int64_t n, vF x, vF y) {
    static const int32_t count[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    vFi lane;
    memcpy(&lane, count, sizeof lane);
    return vF_select(lane < (int32_t) n, x, y);
}

static float total_of(vF s) {
#if TR_ISA_LEVEL >= 4
    return _mm512_reduce_add_ps(s);
#else
    float total = 0;
    for (int k = 0; k < VN_F; k++)
        total += s[k];
    return total;
#endif
}

/* exp(x * scale - m) of two vectors, of which the first n count. */
ALWAYS void exponentials2(vF e[2], const float *x, float scale, float m, int64_t n) {
    const vF least = VF_CONST(-__builtin_inff());
    for (int i = 0; i < 2; i++) {
        memcpy(&e[i], x + i * VN_F, sizeof e[i]);
        e[i] = vF_fma(e[i], VF_CONST(scale), VF_CONST(-m));
        if (n < NR)
            e[i] = lanes_below(n - i * VN_F, e[i], least);
        e[i] = vF_exp_down(e[i]);
    }
}

/* What other rows of a product see of this one, behind its own keys: nothing. */
static void clear_rest(const job *j, const span *s, float *x, int64_t n) {
    int64_t from = padded(n), to = tr__min(padded(s->n), n + j->together);
    if (from < to)
        memset(x + from, 0, (size_t) (to - from) * sizeof *x);
}

static const uint8_t *keep_row(const unit *u, int64_t row, int64_t key) {
    const job *j = u->j;
    return j->keep + ((u->b * j->heads + u->h) * j->l + row) * j->s + key;
}

/* What dropout multiplies a vector's first n elements by. */
ALWAYS vF kept_factors(const uint8_t *keep, float kept, int64_t n) {
    uint8_t held[VN_F] = {0};
    if (n < VN_F)
        keep = memcpy(held, keep, (size_t) tr__max(0, n));
#if TR_ISA_LEVEL >= 4
    __m128i bytes = _mm_loadu_si128((const __m128i *) keep);
    return _mm512_maskz_mov_ps(_mm_test_epi8_mask(bytes, bytes), VF_CONST(kept));
#else
    vF f = {0};
    for (int i = 0; i < VN_F; i++)
        f[i] = keep[i] ? kept : 0;
    return f;
#endif
}

/* ------------------------------------------------------------------------------------------ rounding what was computed */

#if TR_ISA_LEVEL >= 4
ALWAYS PAIRS vF load_rounded(const float *x) {
    return narrow_pairs(load_float(x), load_float(x + VN_F));
}

/* A row's n floats, each rounded: in place, in its first half. */
static PAIRS void round_row(float *x, int64_t n) {
    for (int64_t k = 0; k < n; k += NR)
        store_float(x + k / 2, load_rounded(x + k));
}

#else
static void round_row(float *x, int64_t n) {
}
#endif

/* Keys up to which others of a product look at row r. */
static int64_t looked_at(const unit *u, const span *s, int64_t r) {
    return padded(tr__min(s->n, seen_by(u, s, r + 1) + u->j->together));
}

/* ------------------------------------------------------------------------------------------ operands */

static bool rows_adjacent(const tr_meta *m) {
    return m->strides[3] == 1 || m->shape[3] == 1;
}

static matrix4 as_matrix4(void *data, const tr_meta *m) {
    return (matrix4){data, m->strides[0], m->strides[1], m->strides[2], m->dtype == TR_BF16};
}
static matrix4 as_packed(void *data, const tr_meta *m) {
    tr_meta packed;
    tr__meta_make(&packed, (tr_dtype) m->dtype, 4, m->shape, NULL);
    return as_matrix4(data, &packed);
}

/* Where it lies if its columns are adjacent, else as a copy. */
static tr_status open_in(const tr_kernel_call *c, const tr_arg *a, matrix4 *m) {
    const void *p;
    if (rows_adjacent(a->meta)) {
        *m = as_matrix4(a->data, a->meta);
        return TR_OK;
    }
    TR_TRY(tr__dense_in(c, a, (tr_dtype) a->meta->dtype, &p));
    *m = as_packed((void *) p, a->meta);
    return TR_OK;
}
/* A factor; float32 that is to be multiplied in bfloat16 (tracer/precision.c) as a rounded copy. */
static tr_status open_factor(const tr_kernel_call *c, const tr_arg *a, matrix4 *m) {
    const void *p;
    if (c->cdtype != TR_BF16 || tr__is_bf16(a))
        return open_in(c, a, m);
    TR_TRY(tr__dense_in(c, a, TR_BF16, &p));
    tr_meta rounded;
    tr__meta_make(&rounded, TR_BF16, 4, a->meta->shape, NULL);
    *m = as_matrix4((void *) p, &rounded);
    return TR_OK;
}
static tr_status open_out(const tr_kernel_call *c, const tr_arg *a, matrix4 *m) {
    void *p;
    if (rows_adjacent(a->meta)) {
        *m = as_matrix4(a->data, a->meta);
        return TR_OK;
    }
    TR_TRY(tr__dense_out(c, a, (tr_dtype) a->meta->dtype, &p));
    *m = as_packed(p, a->meta);
    return TR_OK;
}
static tr_status close_out(const tr_kernel_call *c, const tr_arg *a, const matrix4 *m) {
    return rows_adjacent(a->meta) ? TR_OK : tr__dense_out_end(c, a, (tr_dtype) a->meta->dtype, m->data);
}

/* Are all factors bfloat16, and their columns pairs? And how long are tiles? */
static void choose_words(job *j, bool bf16) {
    j->pairs = has_pairs() && bf16 && j->d % 2 == 0 && j->e % 2 == 0;
    j->micro = j->pairs ? pairs_of : micro_of;
    j->panels = j->pairs && tr__has_amx() && (j->l | j->s | j->d | j->e) % 32 == 0;
    j->tile = j->panels ? TILE_MOST : TILE;
    j->together = j->panels ? NR : MR;
    j->tiles = (j->l + j->tile - 1) / j->tile;
}

/* A thread's share of a call begins, and ends. */
static void open_tiles(const job *j) {
#if TR_ISA_LEVEL >= 4
    if (j->panels)
        tiles_begin();
#endif
}
static void close_tiles(const job *j) {
#if TR_ISA_LEVEL >= 4
    if (j->panels)
        tiles_end();
#endif
}

static tr_status open_job(const tr_kernel_call *c, job *j, const tr_arg *q, const tr_arg *k, const tr_arg *v, const tr_arg *mask,
                          const tr_arg *keep, const tr_arg *scale, const tr_arg *p) {
    const int64_t *shape = q->meta->shape;
    *j = (job){.batch = shape[0],
               .heads = shape[1],
               .l = shape[2],
               .d = shape[3],
               .s = k->meta->shape[2],
               .e = v->meta->shape[3],
               .scale = (float) tr_arg_double(scale),
               .kept = 1 / (float) (1 - tr_arg_double(p)),
               .causal = c->attrs[0]};
    TR_TRY(open_factor(c, q, &j->q));
    TR_TRY(open_factor(c, k, &j->k));
    TR_TRY(open_factor(c, v, &j->v));
    if (!tr__absent(mask)) {
        const tr_meta *m = mask->meta;
        tr_meta packed;
        j->mask = mask->data;
        j->mask_bool = m->dtype == TR_BOOL;
        if (!j->mask_bool && m->dtype != TR_F32) {
            TR_TRY(tr__dense_in(c, mask, TR_F32, &j->mask));
            tr__meta_make(&packed, TR_F32, m->ndim, m->shape, NULL);
            m = &packed;
        }
        for (int d = 0; d < 4; d++) {
            int own = d - (4 - m->ndim);
            j->mask_strides[d] = own < 0 || m->shape[own] == 1 ? 0 : m->strides[own];
        }
    }
    if (!tr__absent(keep)) {
        const void *data;
        TR_TRY(tr__dense_in(c, keep, TR_BOOL, &data));
        j->keep = data;
    }
    return TR_OK;
}

static tr_status run(const tr_kernel_call *c, job *j, int64_t units, int64_t work, size_t floats, tr__range_fn fn) {
    int64_t grain = tr__max(1, 4 * TR__GRAIN / tr__max(1, work));
    j->per_thread = floats + 16;
    j->scratch = tr__scratch(c, (size_t) tr__parallel_width(c->ctx, units, grain) * j->per_thread * sizeof(float));
    if (!j->scratch)
        return TR_E_NOMEM;
    tr__parallel_pieces(c->ctx, units, grain, fn, j);
    return TR_OK;
}

static float *take(float **p, int64_t n) {
    float *mine = *p;
    *p += (n + 15) / 16 * 16;
    return mine;
}

#endif
