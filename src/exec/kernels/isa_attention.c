/* isa_attention.c - scaled dot-product attention, by head: softmax(q k^T * scale + mask) v. In float32. Of bfloat16, where the
 * processor multiplies pairs of it, factors are pairs: probabilities and the derivatives of scores are rounded to it as PyTorch
 * rounds them, sums and all else stay float32. Elsewhere it is widened where operands are packed. Results are rounded once.
 *
 * A head's keys and values are packed once into panels of NR columns. Its queries come in tiles of TILE rows, against blocks of
 * at most BLOCK keys: scores stay in a tile in the cache, are turned into probabilities there, and are multiplied by the values
 * (the softmax is rescaled from block to block). Kept for backward is only the logarithm of each row's sum; backward computes
 * the scores again. Of a causal tile each MR rows look at the keys up to their last one. Work is cut by sizes alone, and sums by
 * those of one head of a batch: results depend neither on the number of threads nor on how a batch is cut.
 *
 * Memory is counted in words of 32 bits: a float, or two bfloat16 that are neighbours along the dimension that a product sums.
 *
 *   l queries, s keys, d columns of queries and keys, e columns of values */
#include "exec/kernels/kernels.h"
#include "exec/kernels/isa_bf16.h"
#include "exec/kernels/isa_tile.h"

#if TR_ISA_LEVEL >= 4
enum { MR = 12 };
#else
enum { MR = 6 };
#endif
enum {
    NR = 2 * VN_F,
    TILE = 48, /* a multiple of MR */
    BLOCK = 512,
    ROW = BLOCK + 16, /* of a tile: a power of two would have its rows share a few sets of the cache */
    UNITS = 64, /* of work, at least, if there are tiles enough */
};

static int64_t padded(int64_t n) {
    return (n + NR - 1) / NR * NR;
}

/* ------------------------------------------------------------------------------------------ products of small matrices */

/* c [R, NR] (+)= a [R, k] b [k, NR]; steps of a by row and by k, of b by k, of c by row. k counts words. */
ALWAYS void micro(int R, int64_t k, const float *a, int64_t a_row, int64_t a_k, const float *b, int64_t b_k, float *c,
                  int64_t c_row, bool add) {
    vF acc[MR][2];
    _Pragma("GCC unroll 12") for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = (vF){0};
    for (int64_t i = 0; i < k; i++) {
        vF columns[2];
        tile_load(2, columns, b + i * b_k, VN_F);
        _Pragma("GCC unroll 12") for (int r = 0; r < R; r++) tile_add(2, acc[r], a[r * a_row + i * a_k], columns);
    }
    _Pragma("GCC unroll 12") for (int r = 0; r < R; r++) tile_store(2, acc[r], c + r * c_row, VN_F, add);
}

typedef void micro_fn(int64_t k, const float *a, int64_t a_row, int64_t a_k, const float *b, int64_t b_k, float *c, int64_t c_row,
                      bool add);
#define MICRO(R)                                                                                                          \
    static void micro_##R(int64_t k, const float *a, int64_t a_row, int64_t a_k, const float *b, int64_t b_k, float *c, \
                          int64_t c_row, bool add) {                                                                      \
        micro(R, k, a, a_row, a_k, b, b_k, c, c_row, add);                                                                \
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
ALWAYS PAIRS void micro_pairs(int R, int64_t k, const float *a, int64_t a_row, int64_t a_k, const float *b, int64_t b_k, float *c,
                              int64_t c_row, bool add) {
    vF acc[MR][2];
    _Pragma("GCC unroll 12") for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = (vF){0};
    for (int64_t i = 0; i < k; i++) {
        vF columns[2];
        tile_load(2, columns, b + i * b_k, VN_F);
        _Pragma("GCC unroll 12") for (int r = 0; r < R; r++) {
            int32_t pair;
            memcpy(&pair, a + r * a_row + i * a_k, sizeof pair);
            vF x = (vF) (pair + (vFi){0});
            for (int n = 0; n < 2; n++)
                acc[r][n] = dot_pairs(acc[r][n], x, columns[n]);
        }
    }
    _Pragma("GCC unroll 12") for (int r = 0; r < R; r++) tile_store(2, acc[r], c + r * c_row, VN_F, add);
}
#define MICRO_PAIRS(R)                                                                                                         \
    static PAIRS void pairs_##R(int64_t k, const float *a, int64_t a_row, int64_t a_k, const float *b, int64_t b_k, float *c, \
                                int64_t c_row, bool add) {                                                                     \
        micro_pairs(R, k, a, a_row, a_k, b, b_k, c, c_row, add);                                                               \
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

/* Rows are far apart: the processor does not see which come next. */
enum { AHEAD = 8 };
ALWAYS void send_for(const matrix *m, int64_t r, int64_t n, int write) {
    const char *row = at(m, r, 0);
    for (int64_t c = 0; c < n * m->element; c += 64)
        if (write)
            __builtin_prefetch(row + c, 1);
        else
            __builtin_prefetch(row + c, 0);
}

static void put_rows(const matrix *m, const float *from, int64_t step, int64_t rows, int64_t n) {
    for (int64_t r = 0; r < rows; r++) {
        send_for(m, r + AHEAD, n, 1);
        put(m, r, from + r * step, n);
    }
}

/* Rows [rows, step] of columns [0, n), padded with zeros; the next tile's are sent for. */
static void get_rows(float *to, int64_t step, const matrix *m, int64_t row, int64_t rows, int64_t n) {
    for (int64_t r = 0; r < rows; r++, to += step) {
        send_for(m, row + r + TILE, n, 0);
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
    micro_fn *const *micro;
} job;

/* Where a unit is, and what it works on. */
typedef struct unit {
    const job *j;
    int64_t b, h, d_pad, e_pad;
    float *bias; /* [BLOCK] */
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

/* x [rows, n] = a [rows, k] b, as far as it is seen; rows of a are padded, b in panels [k, NR]. */
static void compare(const unit *u, const span *s, const float *a, int64_t k, const float *b, float *x) {
    int64_t step = words(u->j, padded(k));
    k = words(u->j, k);
    for (int64_t col = 0; col < s->n; col += NR, b += k * NR)
        for (int64_t r = 0; r < s->rows; r += MR) {
            int64_t m = tr__min(MR, s->rows - r);
            if (col < seen_by(u, s, r + m))
                u->j->micro[m](k, a + r * step, step, 1, b, NR, x + r * ROW + col, ROW, false);
        }
}

/* c [rows, columns] (+)= x [rows, n] b; b in panels [keys, NR]. */
static void gather(const unit *u, const span *s, const float *x, const float *b, float *c, int64_t columns) {
    b += words(u->j, s->key) * NR;
    for (int64_t col = 0; col < columns; col += NR, b += words(u->j, u->j->s) * NR)
        for (int64_t r = 0; r < s->rows; r += MR) {
            int64_t m = tr__min(MR, s->rows - r), k = words(u->j, seen_by(u, s, r + m));
            u->j->micro[m](k, x + r * ROW, ROW, 1, b, NR, c + r * columns + col, columns, s->key > 0);
        }
}

/* c [keys, columns] += x^T [n, rows] b [rows, columns]; rows of x, or pairs of them, are `step` apart. */
static void spread(const unit *u, const span *s, const float *x, int64_t step, const float *b, float *c, int64_t columns) {
    c += s->key * columns;
    int64_t rows = words(u->j, s->rows);
    for (int64_t k = 0; k < s->n; k += MR) {
        int64_t m = tr__min(MR, s->n - k), first = u->j->causal ? tr__max(0, s->key + k - s->row) : 0;
        first = u->j->pairs ? first / 2 : first;
        for (int64_t col = 0; col < columns && first < rows; col += NR)
            u->j->micro[m](rows - first, x + first * step + k, 1, step, b + first * columns + col, columns, c + k * columns + col,
                           columns, true);
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

static float greatest(vF m) {
#if TR_ISA_LEVEL >= 4
    return _mm512_reduce_max_ps(m);
#else
    float most = m[0];
    for (int k = 1; k < VN_F; k++)
        most = m[k] > most ? m[k] : most;
    return most;
#endif
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

/* NaN is not looked for: it makes the row's sum NaN. */
static float row_max(const float *x, int64_t n) {
    const vF least = VF_CONST(-__builtin_inff());
    vF m = least, v;
    int64_t k = 0;
    for (; k + VN_F <= n; k += VN_F) {
        memcpy(&v, x + k, sizeof v);
        m = vF_max(v, m);
    }
    if (k < n) {
        memcpy(&v, x + k, sizeof v);
        m = vF_max(lanes_below(n - k, v, least), m);
    }
    return greatest(m);
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

/* What other rows of the micro kernel see of this one, behind its own keys: nothing. */
static void clear_rest(const span *s, float *x, int64_t n) {
    int64_t from = padded(n), to = tr__min(padded(s->n), n + MR);
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
    vF f;
    for (int i = 0; i < VN_F; i++)
        f[i] = keep[i] ? kept : 0;
    return f;
#endif
}

/* x = exp(x * scale - m), 0 behind n, and of these what dropout leaves, if there is any; returns the sum of all. */
static float exponentials(const job *j, const span *s, float *x, float scale, float m, int64_t n, const uint8_t *keep) {
    vF sum[2] = {{0}}, e[2];
    for (int64_t k = 0; k < n; k += NR) {
        exponentials2(e, x + k, scale, m, n - k);
        sum[0] += e[0];
        sum[1] += e[1];
        for (int i = 0; keep && i < 2; i++)
            e[i] *= kept_factors(keep + k + i * VN_F, j->kept, n - k - i * VN_F);
        memcpy(x + k, e, sizeof e);
    }
    clear_rest(s, x, n);
    return total_of(sum[0] + sum[1]);
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

/* Pairs of this row and the next, rounded; `to` may be x. */
static PAIRS void round_rows(float *to, const float *x, int64_t n) {
    for (int64_t k = 0; k < n; k += VN_F)
        store_float(to + k, zip_pairs(load_float(x + k), load_float(x + ROW + k)));
}
#else
static void round_row(float *x, int64_t n) {
}
static void round_rows(float *to, const float *x, int64_t n) {
}
#endif

/* Keys up to which others of the micro kernel look at row r. */
static int64_t looked_at(const unit *u, const span *s, int64_t r) {
    return padded(tr__min(s->n, seen_by(u, s, r + 1) + MR));
}

/* ------------------------------------------------------------------------------------------ forward */

typedef struct forward_space {
    float *kt, *v;        /* packed: [d, s] and [s, e] */
    float *q, *tile, *o;  /* [TILE, d], [TILE, ROW], [TILE, e] */
    float most[TILE], sum[TILE], shrinks[TILE];
} forward_space;

/* The greatest score of row r up to here, and how what it had before shrinks. Returns what its scores are to be multiplied by. */
static float raise_row(const unit *u, forward_space *w, const span *s, int64_t r) {
    float *x = w->tile + r * ROW;
    int64_t n = seen_by(u, s, r + 1);
    float scale = scale_row(u, x, s->row + r, s->key, n), before = s->key ? w->most[r] : -__builtin_inff();
    float m = row_max(x, n);
    m = m == -__builtin_inff() ? m : m * scale;
    w->most[r] = before > m || before != before ? before : m;
    w->shrinks[r] = before == w->most[r] ? 1 : expf(before - w->most[r]);
    return scale;
}

/* Row r's scores become probabilities, as far as its greatest score is known. */
static void soften_row(const unit *u, forward_space *w, const span *s, int64_t r, float scale) {
    float *x = w->tile + r * ROW, m = w->most[r], factor = w->shrinks[r];
    const uint8_t *keep = u->j->keep ? keep_row(u, s->row + r, s->key) : NULL;
    // A row without any key yet: its exponentials are those of -inf.
    float total = exponentials(u->j, s, x, scale, m == -__builtin_inff() ? 0 : m, seen_by(u, s, r + 1), keep);
    if (s->key) {
        float *o = w->o + r * u->e_pad;
        for (int64_t c = 0; c < u->e_pad; c++)
            o[c] *= factor;
        total += w->sum[r] * factor;
    }
    w->sum[r] = total;
    if (u->j->pairs)
        round_row(x, looked_at(u, s, r));
}

/* Of all rows one thing after the other: each ends in a sum or a maximum that the next would wait for. */
static void soften(const unit *u, forward_space *w, const span *s) {
    float scale[TILE];
    for (int64_t r = 0; r < s->rows; r++)
        scale[r] = raise_row(u, w, s, r);
    for (int64_t r = 0; r < s->rows; r++)
        soften_row(u, w, s, r, scale[r]);
}

static void finish_row(const unit *u, const forward_space *w, const matrix *out, int64_t row, int64_t r) {
    const job *j = u->j;
    // Nothing was let through: zeros, and probabilities of 0 in backward.
    bool none = w->most[r] == -__builtin_inff();
    float factor = none ? 0 : 1 / w->sum[r], *o = w->o + r * u->e_pad;
    j->lse[(u->b * j->heads + u->h) * j->l + row + r] = none ? __builtin_inff() : w->most[r] + logf(w->sum[r]);
    for (int64_t c = 0; c < u->e_pad; c++)
        o[c] *= factor;
    put(out, row + r, o, j->e);
}

static void forward_tile(const unit *u, forward_space *w, int64_t row, int64_t rows) {
    const job *j = u->j;
    matrix q = columns_of(j, &j->q, u->b, u->h), out = head_of(&j->out, u->b, u->h);
    int64_t seen = j->causal ? tr__min(j->s, row + rows) : j->s;
    get_rows(w->q, words(j, u->d_pad), &q, row, rows, words(j, j->d));
    for (int64_t key = 0; key < seen; key += BLOCK) {
        span s = {row, rows, key, tr__min(BLOCK, seen - key)};
        compare(u, &s, w->q, j->d, w->kt + key * words(j, j->d), w->tile);
        soften(u, w, &s);
        gather(u, &s, w->tile, w->v, w->o, u->e_pad);
    }
    for (int64_t r = 0; r < rows; r++)
        finish_row(u, w, &out, row, r);
}

static float *take(float **p, int64_t n) {
    float *mine = *p;
    *p += (n + 15) / 16 * 16;
    return mine;
}

static size_t forward_floats(const job *j) {
    return (size_t) ((padded(j->s) * j->d + padded(j->e) * j->s) + TILE * (ROW + padded(j->d) + padded(j->e)) + BLOCK + 6 * 16);
}

static void forward_units(void *env, int64_t begin, int64_t end, int thread) {
    const job *j = env;
    float *p = j->scratch + (size_t) thread * j->per_thread;
    forward_space w = {.kt = take(&p, padded(j->s) * j->d),
                       .v = take(&p, padded(j->e) * j->s),
                       .q = take(&p, TILE * padded(j->d)),
                       .tile = take(&p, TILE * ROW),
                       .o = take(&p, TILE * padded(j->e))};
    int64_t packed = -1;
    for (int64_t i = begin; i < end; i++) {
        int64_t head = i / j->groups, group = i % j->groups;
        unit u = {j, head / j->heads, head % j->heads, padded(j->d), padded(j->e), p};
        if (head != packed) {
            pack_columns(j, w.kt, &j->k, u.b, u.h, j->d);
            pack_rows(j, w.v, &j->v, u.b, u.h, j->e);
            packed = head;
        }
        for (int64_t t = group; t < j->tiles; t += j->groups)
            forward_tile(&u, &w, t * TILE, tr__min(TILE, j->l - t * TILE));
    }
}

/* ------------------------------------------------------------------------------------------ backward */

typedef struct backward_space {
    float *kt, *k, *vt;      /* packed: [d, s], [s, d], [e, s] */
    float *p, *ds;           /* [TILE, ROW] */
    float *q, *g, *out;      /* a tile's queries and gradients, [TILE, d] and [TILE, e]; a row of results, and one of gradients */
    float *dq, *part;        /* [TILE, d]; dk [s, d] and behind it dv [s, e], of a group */
    float *sum, *more;       /* as part: of a head, and of its second group and so on */
} backward_space;

static float dot(const float *a, const float *b, int64_t n) {
    vF s = {0}, x, y;
    int64_t k = 0;
    for (; k + VN_F <= n; k += VN_F) {
        memcpy(&x, a + k, sizeof x);
        memcpy(&y, b + k, sizeof y);
        s += x * y;
    }
    float total = total_of(s);
    for (; k < n; k++)
        total += a[k] * b[k];
    return total;
}

/* p = exp(p * scale - lse), ds = p * (ds - delta) * by; with dropout, of what it left of ds, and p is what it leaves. */
ALWAYS void differentiate(const job *j, const span *s, float *p, float *ds, float scale, float lse, float delta, int64_t n,
                          const uint8_t *keep) {
    vF e[2], d[2];
    for (int64_t k = 0; k < n; k += NR) {
        exponentials2(e, p + k, scale, lse, n - k);
        memcpy(d, ds + k, sizeof d);
        for (int i = 0; i < 2; i++) {
            int64_t left = n - k - i * VN_F;
            vF f = keep ? kept_factors(keep + k + i * VN_F, j->kept, left) : VF_CONST(1.0f);
            d[i] = e[i] * (d[i] * f - delta) * j->scale;
            e[i] *= f;
            if (left < VN_F)
                d[i] = lanes_below(left, d[i], (vF){0}); // of keys that are not seen: 0 * inf
        }
        memcpy(p + k, e, sizeof e);
        memcpy(ds + k, d, sizeof d);
    }
    clear_rest(s, p, n);
    clear_rest(s, ds, n);
}

static void differentiate_row(const unit *u, const backward_space *w, const span *s, int64_t r, float lse, float delta) {
    const job *j = u->j;
    float *p = w->p + r * ROW, *ds = w->ds + r * ROW;
    int64_t n = seen_by(u, s, r + 1);
    float scale = scale_row(u, p, s->row + r, s->key, n);
    if (j->keep)
        differentiate(j, s, p, ds, scale, lse, delta, n, keep_row(u, s->row + r, s->key));
    else
        differentiate(j, s, p, ds, scale, lse, delta, n, NULL);
}

/* Rows r and r + 1, of which the latter may be missing, to pairs: of keys, where ds was, and of both rows, where p was: p's and
 * behind them ds'. */
static void round_derivatives(const unit *u, const backward_space *w, const span *s, int64_t r) {
    float *p = w->p + r * ROW, *ds = w->ds + r * ROW;
    int64_t n = looked_at(u, s, tr__min(r + 1, s->rows - 1));
    if (r + 1 == s->rows) {
        memset(p + ROW, 0, (size_t) n * sizeof *p);
        memset(ds + ROW, 0, (size_t) n * sizeof *ds);
    }
    round_rows(p, p, n);
    round_rows(p + ROW, ds, n);
    round_row(ds, n);
    round_row(ds + ROW, n);
}

/* A tile's rows of queries or gradients; as pairs, those of columns in its first half, and behind it those of rows. Returns what
 * `spread` wants. */
static const float *get_tile(const unit *u, float *to, const matrix4 *m, int64_t row, int64_t rows, int64_t n) {
    const job *j = u->j;
    matrix x = columns_of(j, m, u->b, u->h);
    int64_t step = padded(n);
    get_rows(to, words(j, step), &x, row, rows, words(j, n));
    if (!j->pairs)
        return to;
    float *pairs = to + TILE * step / 2;
    const uint16_t *from = (const uint16_t *) to;
    for (int64_t r = 0; r < rows; r += 2)
        pair_up(pairs + r / 2 * step, from + r * step, r + 1 < rows ? from + (r + 1) * step : NULL, step);
    return pairs;
}

/* The sums of gradients times results, by row. */
static void sum_products(const unit *u, float *delta, const backward_space *w, int64_t row, int64_t rows) {
    const job *j = u->j;
    matrix g = head_of(&j->g, u->b, u->h), out = head_of(&j->out, u->b, u->h);
    for (int64_t r = 0; r < rows; r++) {
        get(w->out, &out, row + r, 0, j->e);
        get(w->out + u->e_pad, &g, row + r, 0, j->e);
        delta[r] = dot(w->out + u->e_pad, w->out, j->e);
    }
}

static void backward_tile(const unit *u, const backward_space *w, int64_t row, int64_t rows) {
    const job *j = u->j;
    matrix dq = head_of(&j->dq, u->b, u->h);
    const float *lse = j->lse + (u->b * j->heads + u->h) * j->l + row;
    int64_t seen = j->causal ? tr__min(j->s, row + rows) : j->s;
    const float *q = get_tile(u, w->q, &j->q, row, rows, j->d), *g = get_tile(u, w->g, &j->g, row, rows, j->e);
    float delta[TILE], *ds = j->pairs ? w->p + ROW : w->ds;
    sum_products(u, delta, w, row, rows);
    for (int64_t key = 0; key < seen; key += BLOCK) {
        span s = {row, rows, key, tr__min(BLOCK, seen - key)};
        compare(u, &s, w->q, j->d, w->kt + key * words(j, j->d), w->p);
        compare(u, &s, w->g, j->e, w->vt + key * words(j, j->e), w->ds);
        for (int64_t r = 0; r < rows; r++)
            differentiate_row(u, w, &s, r, lse[r], delta[r]);
        for (int64_t r = 0; j->pairs && r < rows; r += 2)
            round_derivatives(u, w, &s, r);
        gather(u, &s, w->ds, w->k, w->dq, u->d_pad);
        spread(u, &s, ds, j->pairs ? 2 * ROW : ROW, q, w->part, u->d_pad);
        spread(u, &s, w->p, j->pairs ? 2 * ROW : ROW, g, w->part + j->s * u->d_pad, u->e_pad);
    }
    dq.data += row * dq.row;
    put_rows(&dq, w->dq, u->d_pad, rows, j->d);
}

/* The floats of a head's dk and dv. */
static int64_t part_floats(const job *j) {
    return j->s * (padded(j->d) + padded(j->e));
}

static size_t backward_floats(const job *j) {
    int64_t s_pad = padded(j->s), d = padded(j->d), e = padded(j->e);
    return (size_t) (s_pad * (2 * d + e) + TILE * (2 * ROW + 2 * d + e) + 2 * e + (j->groups > 1 ? 2 : 1) * part_floats(j) + BLOCK +
                     16 * 16);
}

static void run_group(const unit *u, backward_space *w, int64_t group, float *part) {
    const job *j = u->j;
    w->part = part;
    memset(part, 0, (size_t) part_floats(j) * sizeof *part);
    for (int64_t t = group; t < j->tiles; t += j->groups)
        backward_tile(u, w, t * TILE, tr__min(TILE, j->l - t * TILE));
}

static void add_part(const job *j, float *sum, const float *part) {
    int64_t n = part_floats(j);
    _Pragma("GCC ivdep") for (int64_t k = 0; k < n; k++) sum[k] += part[k];
}

static void put_sum(const job *j, int64_t head, const float *sum) {
    matrix dk = head_of(&j->dk, head / j->heads, head % j->heads), dv = head_of(&j->dv, head / j->heads, head % j->heads);
    put_rows(&dk, sum, padded(j->d), j->s, j->d);
    put_rows(&dv, sum + j->s * padded(j->d), padded(j->e), j->s, j->e);
}

static void backward_units(void *env, int64_t begin, int64_t end, int thread) {
    const job *j = env;
    int64_t d = padded(j->d), e = padded(j->e), s_pad = padded(j->s);
    float *p = j->scratch + (size_t) thread * j->per_thread;
    backward_space w = {.kt = take(&p, s_pad * j->d),
                        .k = take(&p, d * j->s),
                        .vt = take(&p, s_pad * j->e),
                        .p = take(&p, TILE * ROW),
                        .ds = take(&p, TILE * ROW),
                        .q = take(&p, TILE * d),
                        .g = take(&p, TILE * e),
                        .out = take(&p, 2 * e),
                        .dq = take(&p, TILE * d),
                        .sum = take(&p, part_floats(j)),
                        .more = j->groups > 1 ? take(&p, part_floats(j)) : NULL};
    int64_t packed = -1;
    for (int64_t i = begin; i < end; i++) {
        int64_t head = j->parts ? i / j->groups : i;
        unit u = {j, head / j->heads, head % j->heads, d, e, p};
        if (head != packed) {
            pack_columns(j, w.kt, &j->k, u.b, u.h, j->d);
            pack_rows(j, w.k, &j->k, u.b, u.h, j->d);
            pack_columns(j, w.vt, &j->v, u.b, u.h, j->e);
            packed = head;
        }
        if (j->parts) {
            run_group(&u, &w, i % j->groups, j->parts + i * part_floats(j));
            continue;
        }
        run_group(&u, &w, 0, w.sum);
        for (int64_t group = 1; group < j->groups; group++) {
            run_group(&u, &w, group, w.more);
            add_part(j, w.sum, w.more);
        }
        put_sum(j, head, w.sum);
    }
}

/* A head's dk and dv out of its groups', in their order. */
static void add_parts(void *env, int64_t begin, int64_t end, int thread) {
    const job *j = env;
    for (int64_t head = begin; head < end; head++) {
        float *sum = j->parts + head * j->groups * part_floats(j);
        for (int64_t i = 1; i < j->groups; i++)
            add_part(j, sum, sum + i * part_floats(j));
        put_sum(j, head, sum);
    }
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

/* Are all factors bfloat16, and their columns pairs? */
static void choose_words(job *j, bool bf16) {
    j->pairs = has_pairs() && bf16 && j->d % 2 == 0 && j->e % 2 == 0;
    j->micro = j->pairs ? pairs_of : micro_of;
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
    j->tiles = (j->l + TILE - 1) / TILE;
    TR_TRY(open_in(c, q, &j->q));
    TR_TRY(open_in(c, k, &j->k));
    TR_TRY(open_in(c, v, &j->v));
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
    tr__parallel(c->ctx, units, grain, fn, j);
    return TR_OK;
}

TR__ISA_KERNEL(_sdpa) {
    const tr_arg *in = c->in, *out = c->out;
    job j;
    if (out[0].meta->numel == 0)
        return TR_OK;
    TR_TRY(open_job(c, &j, &in[0], &in[1], &in[2], &in[3], &in[4], &in[5], &in[6]));
    if (j.s == 0 || j.d == 0)
        return TR_FAIL(TR_E_INTERNAL, "_sdpa: without keys or columns");
    TR_TRY(open_out(c, &out[0], &j.out));
    j.lse = out[1].data;
    choose_words(&j, tr__is_bf16(&in[0]));
    int64_t heads = j.batch * j.heads;
    j.groups = tr__min(j.tiles, tr__max(1, UNITS / heads));
    TR_TRY(run(c, &j, heads * j.groups, j.l / j.groups * j.s * (j.d + j.e), forward_floats(&j), forward_units));
    return close_out(c, &out[0], &j.out);
}

TR__ISA_KERNEL(_sdpa_backward) {
    const tr_arg *in = c->in, *out = c->out;
    const void *lse;
    job j;
    TR_TRY(open_job(c, &j, &in[1], &in[2], &in[3], &in[4], &in[5], &in[8], &in[9]));
    if (in[0].meta->numel == 0 || j.s == 0) {
        for (int i = 0; i < 3; i++)
            TR_TRY(tr__fill(c->ctx, &out[i], TR_I64, (tr_number){.i = 0}));
        return TR_OK;
    }
    TR_TRY(open_in(c, &in[0], &j.g));
    TR_TRY(open_in(c, &in[6], &j.out));
    choose_words(&j, tr__is_bf16(&in[0]) && tr__is_bf16(&in[1]));
    TR_TRY(tr__dense_in(c, &in[7], TR_F32, &lse));
    j.lse = (float *) lse;
    TR_TRY(open_out(c, &out[0], &j.dq));
    TR_TRY(open_out(c, &out[1], &j.dk));
    TR_TRY(open_out(c, &out[2], &j.dv));
    // Few heads of many queries: in groups, each a few tiles at least, because keys are packed for each. A batch may come in
    // pieces, of which the sums must not know; it decides only whether groups are units of work.
    int64_t heads = j.batch * j.heads, groups = tr__min(j.tiles / 4, UNITS / 2 / j.heads), units = heads;
    j.groups = tr__max(1, groups);
    if (j.groups > 1 && heads < UNITS / 2) {
        units *= j.groups;
        j.parts = tr__scratch(c, (size_t) (units * part_floats(&j)) * sizeof(float));
        if (!j.parts)
            return TR_E_NOMEM;
    }
    int64_t work = j.l * j.s * (j.d + j.e) * heads / units;
    TR_TRY(run(c, &j, units, work, backward_floats(&j), backward_units));
    if (j.parts)
        tr__parallel(c->ctx, heads, 1, add_parts, &j);
    TR_TRY(close_out(c, &out[0], &j.dq));
    TR_TRY(close_out(c, &out[1], &j.dk));
    return close_out(c, &out[2], &j.dv);
}
