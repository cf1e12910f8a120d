/* isa_attention.c - scaled dot-product attention of float32, by head: softmax(q k^T * scale + mask) v.
 *
 * A head's keys and values are packed once into panels of NR columns. Its queries come in tiles of TILE rows, against blocks of
 * at most BLOCK keys: scores stay in a tile in the cache, are turned into probabilities there, and are multiplied by the values
 * (the softmax is rescaled from block to block). Kept for backward is only the logarithm of each row's sum; backward computes
 * the scores again. Keys behind a causal tile's last query are not looked at. Work is cut by sizes alone: results do not depend
 * on the number of threads.
 *
 *   l queries, s keys, d columns of queries and keys, e columns of values */
#include "exec/kernels/kernels.h"
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
    UNITS = 64, /* of work, at least, if there are tiles enough */
};

static int64_t padded(int64_t n) {
    return (n + NR - 1) / NR * NR;
}

/* ------------------------------------------------------------------------------------------ products of small matrices */

/* c [R, NR] (+)= a [R, k] b [k, NR]; steps of a by row and by k, of c by row. */
ALWAYS void micro(int R, int64_t k, const float *a, int64_t a_row, int64_t a_k, const float *b, float *c, int64_t c_row, bool add) {
    vF acc[MR][2];
    _Pragma("GCC unroll 12") for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = (vF){0};
    for (int64_t i = 0; i < k; i++) {
        vF columns[2];
        tile_load(columns, b + i * NR);
        _Pragma("GCC unroll 12") for (int r = 0; r < R; r++) tile_add(acc[r], a[r * a_row + i * a_k], columns);
    }
    _Pragma("GCC unroll 12") for (int r = 0; r < R; r++) tile_store(acc[r], c + r * c_row, add);
}

#define MICRO(R)                                                                                                             \
    static void micro_##R(int64_t k, const float *a, int64_t a_row, int64_t a_k, const float *b, float *c, int64_t c_row, bool add) { \
        micro(R, k, a, a_row, a_k, b, c, c_row, add);                                                                        \
    }
MICRO(1)
MICRO(2)
MICRO(3)
MICRO(4)
MICRO(5)
MICRO(6)
#if TR_ISA_LEVEL >= 4
MICRO(8)
MICRO(12)
#endif

/* c [m, n] (+)= a [m, k] b [k, n]; b in panels of [b_k, NR], n a multiple of NR. */
static void multiply(int64_t m, int64_t n, int64_t k, const float *a, int64_t a_row, int64_t a_k, const float *b, int64_t b_k,
                     float *c, int64_t c_row, bool add) {
    for (int64_t col = 0; col < n; col += NR, b += b_k * NR) {
        int64_t r = 0;
#if TR_ISA_LEVEL >= 4
        for (; r + 12 <= m; r += 12)
            micro_12(k, a + r * a_row, a_row, a_k, b, c + r * c_row + col, c_row, add);
        for (; r + 8 <= m; r += 8)
            micro_8(k, a + r * a_row, a_row, a_k, b, c + r * c_row + col, c_row, add);
#endif
        for (; r + 6 <= m; r += 6)
            micro_6(k, a + r * a_row, a_row, a_k, b, c + r * c_row + col, c_row, add);
        const float *rest = a + r * a_row;
        float *to = c + r * c_row + col;
        switch (m - r) {
            case 5:
                micro_5(k, rest, a_row, a_k, b, to, c_row, add);
                break;
            case 4:
                micro_4(k, rest, a_row, a_k, b, to, c_row, add);
                break;
            case 3:
                micro_3(k, rest, a_row, a_k, b, to, c_row, add);
                break;
            case 2:
                micro_2(k, rest, a_row, a_k, b, to, c_row, add);
                break;
            case 1:
                micro_1(k, rest, a_row, a_k, b, to, c_row, add);
                break;
            default:
                break;
        }
    }
}

/* Panels [k, NR] of x [k, n], rows `step` apart, padded with zeros. */
static void pack(float *to, const float *x, int64_t step, int64_t k, int64_t n) {
    for (int64_t col = 0; col < n; col += NR) {
        int64_t w = tr__min(NR, n - col);
        for (int64_t i = 0; i < k; i++, to += NR) {
            if (w == NR) {
                memcpy(to, x + i * step + col, NR * sizeof *to);
            } else {
                memset(to, 0, NR * sizeof *to);
                memcpy(to, x + i * step + col, (size_t) w * sizeof *to);
            }
        }
    }
}
/* Panels [k, NR] of x^T, x being [n, k]. */
static void pack_transposed(float *to, const float *x, int64_t step, int64_t k, int64_t n) {
    for (int64_t col = 0; col < n; col += NR, to += k * NR) {
        int64_t w = tr__min(NR, n - col);
        const float *from = x + col * step;
        if (w < NR)
            memset(to, 0, (size_t) (k * NR) * sizeof *to);
        for (int64_t i0 = 0; i0 < k; i0 += 16) // a line of each row at a time
            for (int64_t j = 0; j < w; j++) {
                int64_t end = tr__min(k, i0 + 16);
                _Pragma("GCC ivdep") for (int64_t i = i0; i < end; i++) to[i * NR + j] = from[j * step + i];
            }
    }
}

/* ------------------------------------------------------------------------------------------ a call */

/* A [B, H, rows, columns] operand; columns are adjacent. */
typedef struct matrix4 {
    float *data;
    int64_t b, h, row;
} matrix4;

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
    float *parts;          /* backward in several groups: [heads, groups, s, d + e padded], their dk and dv */
} job;

static float *at(const matrix4 *m, int64_t b, int64_t h) {
    return m->data + b * m->b + h * m->h;
}

/* Where a unit is, and what it works on. */
typedef struct unit {
    const job *j;
    int64_t b, h, d_pad, e_pad;
    float *bias; /* [BLOCK] */
} unit;

static int64_t keys_seen(const job *j, int64_t row, int64_t rows) {
    return j->causal ? tr__min(j->s, row + rows) : j->s;
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

/* Scores of a row as they go into the softmax: scaled, masked, -inf from `n` (of those seen here, causal) to n_pad. */
static void scale_row(const unit *u, float *x, int64_t row, int64_t key, int64_t n, int64_t n_pad) {
    const job *j = u->j;
    int64_t seen = j->causal ? tr__max(0, tr__min(n, row + 1 - key)) : n;
    float scale = j->scale;
    if (j->mask) {
        const float *bias = mask_row(u, row, key, seen);
        _Pragma("GCC ivdep") for (int64_t k = 0; k < seen; k++) x[k] = x[k] * scale + bias[k];
    } else if (scale != 1) {
        _Pragma("GCC ivdep") for (int64_t k = 0; k < seen; k++) x[k] *= scale;
    }
    for (int64_t k = seen; k < n_pad; k++)
        x[k] = -__builtin_inff();
}

/* NaN is not looked for: it makes the row's sum NaN. */
static float row_max(const float *x, int64_t n) {
    vF m = (vF){0} - __builtin_inff(), v;
    for (int64_t k = 0; k < n; k += VN_F) {
        memcpy(&v, x + k, sizeof v);
        m = vF_max(v, m);
    }
    float most = m[0];
    for (int k = 1; k < VN_F; k++)
        most = m[k] > most ? m[k] : most;
    return most;
}

/* x = exp(x - m); returns the sum */
static float exponentials(float *x, float m, int64_t n) {
    vF s = {0}, t = s, v, w;
    for (int64_t k = 0; k < n; k += NR) {
        memcpy(&v, x + k, sizeof v);
        memcpy(&w, x + k + VN_F, sizeof w);
        v = vF_exp_down(v - m);
        w = vF_exp_down(w - m);
        s += v;
        t += w;
        memcpy(x + k, &v, sizeof v);
        memcpy(x + k + VN_F, &w, sizeof w);
    }
    float total = 0;
    s += t;
    for (int k = 0; k < VN_F; k++)
        total += s[k];
    return total;
}

static const uint8_t *keep_row(const unit *u, int64_t row, int64_t key) {
    const job *j = u->j;
    return j->keep + ((u->b * j->heads + u->h) * j->l + row) * j->s + key;
}

static void drop(float *x, const uint8_t *keep, float kept, int64_t n) {
    _Pragma("GCC ivdep") for (int64_t k = 0; k < n; k++) x[k] = keep[k] ? x[k] * kept : 0;
}

/* ------------------------------------------------------------------------------------------ forward */

typedef struct forward_space {
    float *kt, *v;    /* packed: [d, s] and [s, e] */
    float *tile, *o;  /* [TILE, BLOCK], [TILE, e] */
} forward_space;

static void forward_tile(const unit *u, const forward_space *w, int64_t row, int64_t rows) {
    const job *j = u->j;
    const float *q = at(&j->q, u->b, u->h) + row * j->q.row;
    float most[TILE], sum[TILE];
    int64_t seen = keys_seen(j, row, rows);
    for (int64_t key = 0; key < seen; key += BLOCK) {
        int64_t n = tr__min(BLOCK, seen - key), n_pad = padded(n);
        multiply(rows, n_pad, j->d, q, j->q.row, 1, w->kt + key * j->d, j->d, w->tile, BLOCK, false);
        for (int64_t r = 0; r < rows; r++) {
            float *x = w->tile + r * BLOCK;
            scale_row(u, x, row + r, key, n, n_pad);
            float m = row_max(x, n_pad), before = key ? most[r] : -__builtin_inff();
            m = before > m || before != before ? before : m;
            // A row without any key yet: its exponentials are those of -inf.
            float total = exponentials(x, m == -__builtin_inff() ? 0 : m, n_pad);
            if (key) {
                float factor = before == m ? 1 : expf(before - m);
                float *o = w->o + r * u->e_pad;
                for (int64_t c = 0; c < u->e_pad; c++)
                    o[c] *= factor;
                total += sum[r] * factor;
            }
            most[r] = m;
            sum[r] = total;
            if (j->keep)
                drop(x, keep_row(u, row + r, key), j->kept, n);
        }
        for (int64_t c = 0; c < u->e_pad; c += NR)
            multiply(rows, NR, n, w->tile, BLOCK, 1, w->v + c * j->s + key * NR, j->s, w->o + c, u->e_pad, key > 0);
    }
    float *lse = j->lse + (u->b * j->heads + u->h) * j->l + row;
    for (int64_t r = 0; r < rows; r++) {
        float *y = at(&j->out, u->b, u->h) + (row + r) * j->out.row;
        const float *o = w->o + r * u->e_pad;
        // Nothing was let through: zeros, and probabilities of 0 in backward.
        bool none = most[r] == -__builtin_inff();
        float factor = none ? 0 : 1 / sum[r];
        lse[r] = none ? __builtin_inff() : most[r] + logf(sum[r]);
        for (int64_t c = 0; c < j->e; c++)
            y[c] = o[c] * factor;
    }
}

static float *take(float **p, int64_t n) {
    float *mine = *p;
    *p += (n + 15) / 16 * 16;
    return mine;
}

static size_t forward_floats(const job *j) {
    return (size_t) ((padded(j->s) * j->d + padded(j->e) * j->s) + TILE * (BLOCK + padded(j->e)) + BLOCK + 5 * 16);
}

static void forward_units(void *env, int64_t begin, int64_t end, int thread) {
    const job *j = env;
    float *p = j->scratch + (size_t) thread * j->per_thread;
    forward_space w = {.kt = take(&p, padded(j->s) * j->d),
                       .v = take(&p, padded(j->e) * j->s),
                       .tile = take(&p, TILE * BLOCK),
                       .o = take(&p, TILE * padded(j->e))};
    int64_t packed = -1;
    for (int64_t i = begin; i < end; i++) {
        int64_t head = i / j->groups, group = i % j->groups;
        unit u = {j, head / j->heads, head % j->heads, padded(j->d), padded(j->e), p};
        if (head != packed) {
            pack_transposed(w.kt, at(&j->k, u.b, u.h), j->k.row, j->d, j->s);
            pack(w.v, at(&j->v, u.b, u.h), j->v.row, j->s, j->e);
            packed = head;
        }
        for (int64_t t = group; t < j->tiles; t += j->groups)
            forward_tile(&u, &w, t * TILE, tr__min(TILE, j->l - t * TILE));
    }
}

/* ------------------------------------------------------------------------------------------ backward */

typedef struct backward_space {
    float *kt, *k, *vt;  /* packed: [d, s], [s, d], [e, s] */
    float *p, *ds;       /* [TILE, BLOCK] */
    float *q, *g;        /* a tile's queries and gradients, packed: [TILE, d], [TILE, e] */
    float *dq, *dk, *dv; /* [TILE, d], [s, d], [s, e] */
} backward_space;

static float dot(const float *a, const float *b, int64_t n) {
    vF s = {0}, x, y;
    int64_t k = 0;
    for (; k + VN_F <= n; k += VN_F) {
        memcpy(&x, a + k, sizeof x);
        memcpy(&y, b + k, sizeof y);
        s += x * y;
    }
    float total = 0;
    for (int i = 0; i < VN_F; i++)
        total += s[i];
    for (; k < n; k++)
        total += a[k] * b[k];
    return total;
}

static void backward_tile(const unit *u, const backward_space *w, int64_t row, int64_t rows) {
    const job *j = u->j;
    const float *q = at(&j->q, u->b, u->h) + row * j->q.row, *g = at(&j->g, u->b, u->h) + row * j->g.row;
    const float *out = at(&j->out, u->b, u->h) + row * j->out.row;
    const float *lse = j->lse + (u->b * j->heads + u->h) * j->l + row;
    int64_t seen = keys_seen(j, row, rows);
    float delta[TILE];
    for (int64_t r = 0; r < rows; r++)
        delta[r] = dot(g + r * j->g.row, out + r * j->out.row, j->e);
    pack(w->q, q, j->q.row, rows, j->d);
    pack(w->g, g, j->g.row, rows, j->e);
    for (int64_t key = 0; key < seen; key += BLOCK) {
        int64_t n = tr__min(BLOCK, seen - key), n_pad = padded(n);
        multiply(rows, n_pad, j->d, q, j->q.row, 1, w->kt + key * j->d, j->d, w->p, BLOCK, false);
        multiply(rows, n_pad, j->e, g, j->g.row, 1, w->vt + key * j->e, j->e, w->ds, BLOCK, false);
        for (int64_t r = 0; r < rows; r++) {
            float *p = w->p + r * BLOCK, *ds = w->ds + r * BLOCK, de = delta[r], scale = j->scale;
            scale_row(u, p, row + r, key, n, n_pad);
            exponentials(p, lse[r], n_pad);
            if (j->keep) {
                const uint8_t *keep = keep_row(u, row + r, key);
                float kept = j->kept;
                _Pragma("GCC ivdep") for (int64_t k = 0; k < n; k++) {
                    float d = keep[k] ? ds[k] * kept : 0;
                    ds[k] = p[k] * (d - de) * scale;
                    p[k] = keep[k] ? p[k] * kept : 0;
                }
            } else {
                _Pragma("GCC ivdep") for (int64_t k = 0; k < n; k++) ds[k] = p[k] * (ds[k] - de) * scale;
            }
        }
        // dq += ds k; dk += ds^T q; dv += p^T g
        for (int64_t c = 0; c < u->d_pad; c += NR)
            multiply(rows, NR, n, w->ds, BLOCK, 1, w->k + c * j->s + key * NR, j->s, w->dq + c, u->d_pad, key > 0);
        multiply(n, u->d_pad, rows, w->ds, 1, BLOCK, w->q, rows, w->dk + key * u->d_pad, u->d_pad, true);
        multiply(n, u->e_pad, rows, w->p, 1, BLOCK, w->g, rows, w->dv + key * u->e_pad, u->e_pad, true);
    }
    float *dq = at(&j->dq, u->b, u->h) + row * j->dq.row;
    for (int64_t r = 0; r < rows; r++)
        memcpy(dq + r * j->dq.row, w->dq + r * u->d_pad, (size_t) j->d * sizeof *dq);
}

static size_t backward_floats(const job *j) {
    int64_t s_pad = padded(j->s), d = padded(j->d), e = padded(j->e);
    return (size_t) (s_pad * (2 * d + 2 * e + d + e) + TILE * (2 * BLOCK + 2 * d + e) + BLOCK + 16 * 16);
}

static void store_rows(float *to, int64_t step, const float *x, int64_t x_step, int64_t rows, int64_t n) {
    for (int64_t r = 0; r < rows; r++)
        memcpy(to + r * step, x + r * x_step, (size_t) n * sizeof *to);
}

static void backward_units(void *env, int64_t begin, int64_t end, int thread) {
    const job *j = env;
    int64_t d = padded(j->d), e = padded(j->e), s_pad = padded(j->s);
    float *p = j->scratch + (size_t) thread * j->per_thread;
    backward_space w = {.kt = take(&p, s_pad * j->d),
                        .k = take(&p, d * j->s),
                        .vt = take(&p, s_pad * j->e),
                        .p = take(&p, TILE * BLOCK),
                        .ds = take(&p, TILE * BLOCK),
                        .q = take(&p, TILE * d),
                        .g = take(&p, TILE * e),
                        .dq = take(&p, TILE * d),
                        .dk = take(&p, j->s * d),
                        .dv = take(&p, j->s * e)};
    int64_t packed = -1;
    for (int64_t i = begin; i < end; i++) {
        int64_t head = i / j->groups;
        unit u = {j, head / j->heads, head % j->heads, d, e, p};
        if (head != packed) {
            pack_transposed(w.kt, at(&j->k, u.b, u.h), j->k.row, j->d, j->s);
            pack(w.k, at(&j->k, u.b, u.h), j->k.row, j->s, j->d);
            pack_transposed(w.vt, at(&j->v, u.b, u.h), j->v.row, j->e, j->s);
            packed = head;
        }
        if (j->parts) {
            w.dk = j->parts + i * j->s * (d + e);
            w.dv = w.dk + j->s * d;
        }
        memset(w.dk, 0, (size_t) (j->s * d) * sizeof *w.dk);
        memset(w.dv, 0, (size_t) (j->s * e) * sizeof *w.dv);
        for (int64_t t = i % j->groups; t < j->tiles; t += j->groups)
            backward_tile(&u, &w, t * TILE, tr__min(TILE, j->l - t * TILE));
        if (!j->parts) {
            store_rows(at(&j->dk, u.b, u.h), j->dk.row, w.dk, d, j->s, j->d);
            store_rows(at(&j->dv, u.b, u.h), j->dv.row, w.dv, e, j->s, j->e);
        }
    }
}

/* A head's dk and dv out of its groups', in their order. */
static void add_parts(void *env, int64_t begin, int64_t end, int thread) {
    const job *j = env;
    int64_t d = padded(j->d), e = padded(j->e), n = j->s * (d + e);
    for (int64_t head = begin; head < end; head++) {
        float *sum = j->parts + head * j->groups * n;
        for (int64_t i = 1; i < j->groups; i++) {
            const float *part = sum + i * n;
            _Pragma("GCC ivdep") for (int64_t k = 0; k < n; k++) sum[k] += part[k];
        }
        store_rows(at(&j->dk, head / j->heads, head % j->heads), j->dk.row, sum, d, j->s, j->d);
        store_rows(at(&j->dv, head / j->heads, head % j->heads), j->dv.row, sum + j->s * d, e, j->s, j->e);
    }
}

/* ------------------------------------------------------------------------------------------ operands */

static matrix4 as_matrix4(void *data, const tr_meta *m) {
    return (matrix4){data, m->strides[0], m->strides[1], m->strides[2]};
}

static bool rows_adjacent(const tr_meta *m) {
    return m->dtype == TR_F32 && (m->strides[3] == 1 || m->shape[3] == 1);
}

/* Where it lies if its columns are adjacent, else as a copy. */
static tr_status open_in(const tr_kernel_call *c, const tr_arg *a, matrix4 *m) {
    const void *p;
    if (rows_adjacent(a->meta)) {
        *m = as_matrix4(a->data, a->meta);
        return TR_OK;
    }
    TR_TRY(tr__dense_in(c, a, TR_F32, &p));
    tr_meta packed;
    tr__meta_make(&packed, TR_F32, 4, a->meta->shape, NULL);
    *m = as_matrix4((void *) p, &packed);
    return TR_OK;
}
static tr_status open_out(const tr_kernel_call *c, const tr_arg *a, matrix4 *m) {
    void *p;
    if (rows_adjacent(a->meta)) {
        *m = as_matrix4(a->data, a->meta);
        return TR_OK;
    }
    TR_TRY(tr__dense_out(c, a, TR_F32, &p));
    tr_meta packed;
    tr__meta_make(&packed, TR_F32, 4, a->meta->shape, NULL);
    *m = as_matrix4(p, &packed);
    return TR_OK;
}
static tr_status close_out(const tr_kernel_call *c, const tr_arg *a, const matrix4 *m) {
    return rows_adjacent(a->meta) ? TR_OK : tr__dense_out_end(c, a, TR_F32, m->data);
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

static tr_status attend(const tr_kernel_call *c) {
    const tr_arg *in = c->in, *out = c->out;
    job j;
    if (out[0].meta->numel == 0)
        return TR_OK;
    TR_TRY(open_job(c, &j, &in[0], &in[1], &in[2], &in[3], &in[4], &in[5], &in[6]));
    if (j.s == 0 || j.d == 0)
        return TR_FAIL(TR_E_INTERNAL, "_sdpa: without keys or columns");
    TR_TRY(open_out(c, &out[0], &j.out));
    j.lse = out[1].data;
    int64_t heads = j.batch * j.heads;
    j.groups = tr__min(j.tiles, tr__max(1, UNITS / heads));
    TR_TRY(run(c, &j, heads * j.groups, j.l / j.groups * j.s * (j.d + j.e), forward_floats(&j), forward_units));
    return close_out(c, &out[0], &j.out);
}

static tr_status attend_backward(const tr_kernel_call *c) {
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
    TR_TRY(tr__dense_in(c, &in[7], TR_F32, &lse));
    j.lse = (float *) lse;
    TR_TRY(open_out(c, &out[0], &j.dq));
    TR_TRY(open_out(c, &out[1], &j.dk));
    TR_TRY(open_out(c, &out[2], &j.dv));
    // Few heads of many queries: in groups, each a few tiles at least, because keys are packed for each.
    int64_t heads = j.batch * j.heads, groups = tr__min(j.tiles / 4, UNITS / 2 / heads);
    j.groups = tr__max(1, groups);
    if (j.groups > 1) {
        j.parts = tr__scratch(c, (size_t) (heads * j.groups * j.s * (padded(j.d) + padded(j.e))) * sizeof(float));
        if (!j.parts)
            return TR_E_NOMEM;
    }
    int64_t work = j.l * j.s * (j.d + j.e);
    TR_TRY(run(c, &j, heads * j.groups, work / j.groups, backward_floats(&j), backward_units));
    if (j.parts)
        tr__parallel(c->ctx, heads, 1, add_parts, &j);
    TR_TRY(close_out(c, &out[0], &j.dq));
    TR_TRY(close_out(c, &out[1], &j.dk));
    return close_out(c, &out[2], &j.dv);
}

TR__ISA_KERNEL(_sdpa) {
    return tr__is_bf16(&c->in[0]) ? tr__widened(c, attend) : attend(c);
}

TR__ISA_KERNEL(_sdpa_backward) {
    return tr__is_bf16(&c->in[0]) ? tr__widened(c, attend_backward) : attend_backward(c);
}
