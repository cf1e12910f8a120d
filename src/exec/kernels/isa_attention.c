/* isa_attention.c - scaled dot-product attention, by head: softmax(q k^T * scale + mask) v. In float32. Of bfloat16, where the
 * processor multiplies pairs of it, factors are pairs: probabilities are rounded to it as PyTorch rounds them, sums and all else
 * stay float32. Elsewhere it is widened where operands are packed. Results are rounded once.
 *
 * Probabilities are multiplied by the values tile by tile, and the softmax is rescaled from block to block. Kept for backward is
 * only the logarithm of each row's sum. */
#include "exec/kernels/isa_attention.h"

typedef struct forward_space {
    float *kt, *v;        /* packed: [d, s] and [s, e] */
    float *q, *tile, *o;  /* [TILE_MOST, d], [TILE_MOST, ROW], [TILE_MOST, e] */
    float most[TILE_MOST], sum[TILE_MOST], shrinks[TILE_MOST];
} forward_space;

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

/* Two vectors of x = exp(x * scale - m), of which n elements count, and of these what dropout leaves, if there is any; sums of
 * all. */
ALWAYS void exponentials_of(const job *j, float *x, float scale, float m, int64_t n, const uint8_t *keep, vF sum[2]) {
    vF e[2];
    exponentials2(e, x, scale, m, n);
    for (int i = 0; i < 2; i++) {
        sum[i] += e[i];
        if (keep)
            e[i] *= kept_factors(keep + i * VN_F, j->kept, n - i * VN_F);
        memcpy(x + i * VN_F, &e[i], sizeof e[i]);
    }
}

/* A row of them, 0 behind n; returns the sum. */
ALWAYS float exponentials(const job *j, const span *s, float *x, float scale, float m, int64_t n, const uint8_t *keep) {
    vF sum[2] = {{0}};
    int64_t k = 0;
    for (; k + NR <= n; k += NR)
        exponentials_of(j, x + k, scale, m, NR, keep ? keep + k : NULL, sum);
    if (k < n)
        exponentials_of(j, x + k, scale, m, n - k, keep ? keep + k : NULL, sum);
    clear_rest(j, s, x, n);
    return total_of(sum[0] + sum[1]);
}

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
    int64_t n = seen_by(u, s, r + 1);
    m = m == -__builtin_inff() ? 0 : m; // a row without any key yet: its exponentials are those of -inf
    float total = u->j->keep ? exponentials(u->j, s, x, scale, m, n, keep_row(u, s->row + r, s->key))
                             : exponentials(u->j, s, x, scale, m, n, NULL);
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
    float scale[TILE_MOST];
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

static size_t forward_floats(const job *j) {
    int64_t d = padded(j->d), e = padded(j->e);
    return (size_t) (padded(j->s) * j->d + e * j->s + TILE_MOST * (ROW + d + e) + BLOCK + 6 * 16);
}

/* Before tile t of unit i, the units' end being `end`: where its results go, the next tile's queries, and a share of the keys and
 * values of the head that comes next. */
static void wish_ahead(const unit *u, int64_t i, int64_t end, int64_t t) {
    const job *j = u->j;
    int64_t next = t + j->groups, head = i / j->groups, then = i + 1 < end ? (i + 1) / j->groups : head;
    wish(u->wishes, &j->out, u->b, u->h, t * j->tile, tr__min(j->tile, j->l - t * j->tile), j->e);
    if (next >= j->tiles) {
        next = (i + 1) % j->groups;
        head = then;
    }
    wish(u->wishes, &j->q, head / j->heads, head % j->heads, next * j->tile, tr__min(j->tile, j->l - next * j->tile), j->d);
    if (then != i / j->groups) {
        int64_t share = t / j->groups, shares = j->tiles / j->groups, from = share * j->s / shares;
        int64_t rows = (share + 1) * j->s / shares - from;
        wish(u->wishes, &j->k, then / j->heads, then % j->heads, from, rows, j->d);
        wish(u->wishes, &j->v, then / j->heads, then % j->heads, from, rows, j->e);
    }
}

static void forward_units(void *env, int64_t begin, int64_t end, int thread) {
    const job *j = env;
    float *p = j->scratch + (size_t) thread * j->per_thread;
    forward_space w = {.kt = take(&p, padded(j->s) * j->d),
                       .v = take(&p, padded(j->e) * j->s),
                       .q = take(&p, TILE_MOST * padded(j->d)),
                       .tile = take(&p, TILE_MOST * ROW),
                       .o = take(&p, TILE_MOST * padded(j->e))};
    int64_t packed = -1;
    wishes wishes = {.n = 0};
    open_tiles(j);
    for (int64_t i = begin; i < end; i++) {
        int64_t head = i / j->groups, group = i % j->groups;
        unit u = {j, head / j->heads, head % j->heads, padded(j->d), padded(j->e), p, &wishes};
        if (head != packed) {
            pack_columns(j, w.kt, &j->k, u.b, u.h, j->d);
            pack_rows(j, w.v, &j->v, u.b, u.h, j->e);
            packed = head;
        }
        for (int64_t t = group; t < j->tiles; t += j->groups) {
            wish_ahead(&u, i, end, t);
            forward_tile(&u, &w, t * j->tile, tr__min(j->tile, j->l - t * j->tile));
        }
    }
    close_tiles(j);
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
    choose_words(&j, j.q.bf16);
    int64_t heads = j.batch * j.heads;
    j.groups = tr__min(j.tiles, tr__max(1, UNITS / heads));
    TR_TRY(run(c, &j, heads * j.groups, j.l / j.groups * j.s * (j.d + j.e), forward_floats(&j), forward_units));
    return close_out(c, &out[0], &j.out);
}
