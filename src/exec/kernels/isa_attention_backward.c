/* isa_attention_backward.c - the derivative of scaled dot-product attention: scores and probabilities are computed again, tile by
 * tile, from the logarithm of each row's sum. Of bfloat16 by products of pairs, the derivatives of scores are rounded to it, as
 * PyTorch rounds them. */
#include "exec/kernels/isa_attention.h"

typedef struct backward_space {
    float *kt, *k, *vt;      /* packed: [d, s], [s, d], [e, s] */
    float *p, *ds;           /* [TILE_MOST, ROW] */
    float *q, *g;            /* a tile's queries and gradients, [TILE_MOST, d] and [TILE_MOST, e] */
    float *out;              /* a row of results, and one of gradients */
    float *dq, *part;        /* [TILE_MOST, d]; dk [s, d] and behind it dv [s, e], of a group */
    float *sum, *more;       /* as part: of a head, and of its second group and so on */
    int64_t next;            /* head; -1: none */
} backward_space;

/* Into the first-level cache, from the second, where lines that were wished for lie. */
enum { SOON = 8 };
static void send_for(const matrix *m, int64_t r, int64_t n) {
    const char *row = at(m, r, 0);
    for (int64_t c = 0; c < n * m->element; c += 64)
        __builtin_prefetch(row + c, 1);
}

static void put_rows(const matrix *m, const float *from, int64_t step, int64_t rows, int64_t n) {
    for (int64_t r = 0; r < rows; r++) {
        send_for(m, r + SOON, n);
        put(m, r, from + r * step, n);
    }
}

#if TR_ISA_LEVEL >= 4
/* The product below by tiles: x is turned over, 32 keys at a time. */
static AMX void spread_panels(const unit *u, const span *s, const float *x, int64_t step, const float *b, float *c,
                              int64_t columns) {
    _Alignas(64) float turned[TILE_MOST / 2 * NR];
    for (int64_t k = 0; k < s->n; k += SIDE) {
        int64_t first = u->j->causal ? tr__max(0, s->key + k - s->row) : 0, steps = (s->rows - first) / TILE_K;
        for (int64_t t = 0; t < 2 * steps; t++) {
            vF square[VN_F];
            const float *from = x + (first / 2 + t / 2 * TILE_ROWS) * step + k + t % 2 * TILE_ROWS;
            _Pragma("GCC unroll 16") for (int r = 0; r < VN_F; r++) square[r] = load_float(from + r * step);
            turn(square);
            memcpy(turned + t * TILE_ROWS * VN_F, square, sizeof square);
        }
        for (int64_t col = 0; col < columns && steps > 0; col += NR) {
            left_panel l = {(const char *) turned, TILE_BYTES, STEP_BYTES};
            right_panel w = {(const char *) (b + first / 2 * columns + col), columns * (int64_t) sizeof *b, TILE_BYTES,
                             TILE_ROWS * columns * (int64_t) sizeof *b};
            multiply_panels(l, w, steps, c + k * columns + col, columns * (int64_t) sizeof *c, true, next_wanted(u->wishes, steps));
        }
    }
}
#else
static void spread_panels(const unit *u, const span *s, const float *x, int64_t step, const float *b, float *c, int64_t columns) {
}
#endif

/* c [keys, columns] += x^T [n, rows] b [rows, columns]; rows of x, or pairs of them, are `step` apart. */
static void spread(const unit *u, const span *s, const float *x, int64_t step, const float *b, float *c, int64_t columns) {
    c += s->key * columns;
    if (u->j->panels) {
        spread_panels(u, s, x, step, b, c, columns);
        return;
    }
    int64_t rows = words(u->j, s->rows);
    for (int64_t k = 0; k < s->n; k += MR) {
        int64_t m = tr__min(MR, s->n - k), first = u->j->causal ? tr__max(0, s->key + k - s->row) : 0;
        first = u->j->pairs ? first / 2 : first;
        for (int64_t col = 0; col < columns && first < rows; col += NR)
            u->j->micro[m](rows - first, x + first * step + k, 1, step, b + first * columns + col, columns, c + k * columns + col,
                           columns, true, next_lines(u->wishes, rows - first));
    }
}

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

/* Two vectors of p = exp(p * scale - lse), ds = p * (ds - delta) * by, of which n elements count; with dropout, of what it left of
 * ds, and p is what it leaves. */
ALWAYS void differentiate_two(const job *j, float *p, float *ds, float scale, float lse, float delta, int64_t n,
                              const uint8_t *keep) {
    vF e[2], d;
    exponentials2(e, p, scale, lse, n);
    for (int i = 0; i < 2; i++) {
        int64_t left = n - i * VN_F;
        vF f = keep ? kept_factors(keep + i * VN_F, j->kept, left) : VF_CONST(1.0f);
        memcpy(&d, ds + i * VN_F, sizeof d);
        d = e[i] * (d * f - delta) * j->scale;
        e[i] *= f;
        if (left < VN_F)
            d = lanes_below(left, d, (vF){0}); // of keys that are not seen: 0 * inf
        memcpy(p + i * VN_F, &e[i], sizeof e[i]);
        memcpy(ds + i * VN_F, &d, sizeof d);
    }
}

ALWAYS void differentiate(const job *j, const span *s, float *p, float *ds, float scale, float lse, float delta, int64_t n,
                          const uint8_t *keep) {
    int64_t k = 0;
    for (; k + NR <= n; k += NR)
        differentiate_two(j, p + k, ds + k, scale, lse, delta, NR, keep ? keep + k : NULL);
    if (k < n)
        differentiate_two(j, p + k, ds + k, scale, lse, delta, n - k, keep ? keep + k : NULL);
    clear_rest(j, s, p, n);
    clear_rest(j, s, ds, n);
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

#if TR_ISA_LEVEL >= 4
/* Pairs of this row and the next, rounded; `to` may be x. */
static PAIRS void round_rows(float *to, const float *x, int64_t n) {
    for (int64_t k = 0; k < n; k += VN_F)
        store_float(to + k, zip_pairs(load_float(x + k), load_float(x + ROW + k)));
}
#else
static void round_rows(float *to, const float *x, int64_t n) {
}
#endif

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
    float *pairs = to + TILE_MOST * step / 2;
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
    float delta[TILE_MOST], *ds = j->pairs ? w->p + ROW : w->ds;
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
    int64_t parts = (j->groups > 1 ? 2 : 1) * part_floats(j);
    return (size_t) (s_pad * (2 * d + e) + TILE_MOST * (2 * ROW + 2 * d + e) + 2 * e + parts + BLOCK + 16 * 16);
}

/* The rows of a tile that it reads. */
static void wish_tile(const unit *u, int64_t head, int64_t t) {
    const job *j = u->j;
    int64_t row = t * j->tile, rows = tr__min(j->tile, j->l - row), b = head / j->heads, h = head % j->heads;
    wish(u->wishes, &j->q, b, h, row, rows, j->d);
    wish(u->wishes, &j->g, b, h, row, rows, j->e);
    wish(u->wishes, &j->out, b, h, row, rows, j->e);
}

/* Before tile t: where its results go, what the next one reads, and a share of what the head's end writes and the next head
 * reads. */
static void wish_ahead(const unit *u, const backward_space *w, int64_t t) {
    const job *j = u->j;
    int64_t head = u->b * j->heads + u->h, from = t * j->s / j->tiles, rows = (t + 1) * j->s / j->tiles - from;
    wish(u->wishes, &j->dq, u->b, u->h, t * j->tile, tr__min(j->tile, j->l - t * j->tile), j->d);
    if (t + j->groups < j->tiles)
        wish_tile(u, head, t + j->groups);
    else if (w->next >= 0)
        wish_tile(u, w->next, 0);
    if (!j->parts) {
        wish(u->wishes, &j->dk, u->b, u->h, from, rows, j->d);
        wish(u->wishes, &j->dv, u->b, u->h, from, rows, j->e);
    }
    if (w->next >= 0 && w->next != head) {
        wish(u->wishes, &j->k, w->next / j->heads, w->next % j->heads, from, rows, j->d);
        wish(u->wishes, &j->v, w->next / j->heads, w->next % j->heads, from, rows, j->e);
    }
}

static void run_group(const unit *u, backward_space *w, int64_t group, float *part) {
    const job *j = u->j;
    w->part = part;
    memset(part, 0, (size_t) part_floats(j) * sizeof *part);
    for (int64_t t = group; t < j->tiles; t += j->groups) {
        wish_ahead(u, w, t);
        backward_tile(u, w, t * j->tile, tr__min(j->tile, j->l - t * j->tile));
    }
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
                        .p = take(&p, TILE_MOST * ROW),
                        .ds = take(&p, TILE_MOST * ROW),
                        .q = take(&p, TILE_MOST * d),
                        .g = take(&p, TILE_MOST * e),
                        .out = take(&p, 2 * e),
                        .dq = take(&p, TILE_MOST * d),
                        .sum = take(&p, part_floats(j)),
                        .more = j->groups > 1 ? take(&p, part_floats(j)) : NULL};
    int64_t packed = -1;
    wishes wishes = {.n = 0};
    open_tiles(j);
    for (int64_t i = begin; i < end; i++) {
        int64_t head = j->parts ? i / j->groups : i;
        unit u = {j, head / j->heads, head % j->heads, d, e, p, &wishes};
        w.next = i + 1 == end ? -1 : j->parts ? (i + 1) / j->groups : i + 1;
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
    close_tiles(j);
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
    TR_TRY(open_factor(c, &in[0], &j.g));
    TR_TRY(open_in(c, &in[6], &j.out));
    choose_words(&j, j.g.bf16 && j.q.bf16);
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
