/* isa_conv_amx.c - convolutions of bfloat16 images that lie channels last, and their derivatives, by AMX's tiles. A filter of one
 * pixel, step 1, is a product of matrices as they lie (isa_product.c). Otherwise:
 *
 * Forward and by the image, a unit of work is some pixels by some columns. It packs these columns of the weights, as many channels
 * at a time as stay in a near cache, and for each 32 pixels gathers what their taps read: tiles are read for all columns then. The
 * derivative by the weights sums over pixels. A unit is some channels of the gradient by some of the image: of each block of
 * pixels it packs the gradient once, and for each tap the pixels that it meets.
 *
 * Every sum is made in an order that depends on the sizes alone, not on the number of threads. */
#include "exec/kernels/kernels.h"

#if TR_ISA_LEVEL >= 4
#include "exec/kernels/isa_amx.h"
#include "exec/kernels/isa_pairs.h"

enum {
    TERMS = 1536,       /* by taps, at most, of weights that are packed at a time, */
    NEAR = 384 << 10,   /* and their elements: a third of a second-level cache */
    SPAN = 512,         /* pixels of a unit, at most */
    BLOCK = 512,        /* pixels that the weights' derivative packs at a time */
    SUMS = 96 << 10,    /* its sums, at most, that stay in a near cache */
    SHARES = 2,         /* units of work for each thread: cores are not always equally fast */
    BLOCK_SUMS = SIDE * SIDE,
};

/* ------------------------------------------------------------------------------------------ one pixel */

static bool is_product(const tr__conv *v) {
    for (int d = 0; d < 2; d++)
        if (v->kernel[d] != 1 || v->stride[d] != 1 || v->padding[d] != 0)
            return false;
    return true;
}

static tr_status multiply(const tr_kernel_call *c, tr_op op, const tr__conv_bf16 *conv) {
    const tr__conv *v = &conv->of;
    int64_t pixels = v->n * v->size[0] * v->size[1], co = conv->strides[0], ci = conv->strides[1];
    tr__tile_product p = {.m = pixels, .alpha = 1, .a_column = 1, .b = conv->weights};
    if (op == TR_OP_conv2d) {
        p.a = conv->src, p.a_row = p.k = v->ci;
        p.b_row = ci, p.b_column = co;
        p.y = conv->dst, p.n = v->co;
        p.bias = v->bias, p.bias_wide = true;
    } else if (op == TR_OP_conv2d_backward_data) {
        p.a = conv->dst, p.a_row = p.k = v->co;
        p.b_row = co, p.b_column = ci;
        p.y = conv->src, p.n = v->ci;
    } else {
        p.a = conv->dst, p.a_row = 1, p.a_column = p.m = v->co;
        p.b = conv->src, p.b_row = p.n = v->ci, p.b_column = 1;
        p.y = conv->weights, p.k = pixels;
    }
    bool exact;
    return TR__SUFFIXED(tr__multiply)(c, &p, &exact);
}

/* ------------------------------------------------------------------------------------------ forward, and by the image */

typedef struct gather {
    grid of;
    const float *bias;
    matrices weights;
    int64_t spans, width; /* of pixels; pairs of panels of a unit, at most */
    int64_t chunk;        /* words of channels, a multiple of 16 */
    tr__rooms rooms;
} gather;

/* A unit's place and its room. */
typedef struct piece {
    int64_t first, count;   /* pixels */
    int64_t pair, wide;     /* of panels */
    int64_t from, words;    /* of channels */
    const void **rows, **to; /* [taps, count], [count] */
    word *weights, *strip;
    char *left;
    float *sums; /* [count / 32, wide, 32, 32], or of one panel if there is but one piece */
} piece;

/* What 32 pixels' taps read of the piece's channels, in tiles: [taps, words / 16, 32, 64 bytes]; zeros beyond the last pixel. */
static void gather_panel(const gather *g, const piece *p, int64_t pixel) {
    int64_t n = tr__min(SIDE, p->count - pixel), steps = p->words / TILE_ROWS;
    char *to = p->left;
    for (int64_t t = 0; t < g->of.n_taps; t++, to += steps * STEP_BYTES)
        for (int64_t r = 0; r < SIDE; r++) {
            const char *row = r < n ? (const char *) p->rows[t * p->count + pixel + r] + p->from * (int64_t) sizeof(word) : NULL;
            for (int64_t s = 0; s < steps; s++) {
                __m512i x = row ? _mm512_loadu_si512(row + s * TILE_BYTES) : _mm512_setzero_si512();
                _mm512_storeu_si512(to + s * STEP_BYTES + r * TILE_BYTES, x);
            }
        }
}

/* Sums [32, 32], with the bias, rounded to pixels' columns. */
static AMX void put_panel(const gather *g, const piece *p, int64_t pixel, int64_t column, const float *sums) {
    int64_t n = tr__min(SIDE, p->count - pixel), columns = tr__min(SIDE, g->of.columns - column);
    __mmask32 mask = columns == SIDE ? 0xffffffff : 0xffff;
    vF bias[2] = {{0}};
    if (g->bias)
        for (int64_t h = 0; h < columns / VN_F; h++)
            memcpy(&bias[h], g->bias + column + h * VN_F, sizeof bias[h]);
    for (int64_t r = 0; r < n; r++, sums += SIDE) {
        vF low = load_float(sums) + bias[0], high = load_float(sums + VN_F) + bias[1];
        _mm512_mask_storeu_epi16((uint16_t *) p->to[pixel + r] + column, mask, (__m512i) narrow_pairs(low, high));
    }
}

static AMX void gather_piece(const gather *g, const piece *p) {
    int64_t panels = g->of.columns / NR, steps = g->of.n_taps * p->words / TILE_ROWS, words = g->of.channels / 2;
    bool whole = p->words == words, last = p->from + p->words == words;
    for (int64_t j = 0; j < p->wide; j++) {
        int64_t panel = 2 * (p->pair + j);
        word *to = p->weights + j * steps * STEP / 2;
        pack_panels(&g->weights, 2 * p->from, p->words, panel * NR, (int) tr__min(2, panels - panel), to, p->strip);
    }
    for (int64_t m = 0; m < p->count; m += SIDE) {
        gather_panel(g, p, m);
        for (int64_t j = 0; j < p->wide; j++) {
            int64_t column = (p->pair + j) * SIDE;
            bool both = column + NR < g->of.columns; // a panel by itself counts twice
            right_panel b = {(const char *) (p->weights + j * steps * STEP / 2), TILE_BYTES, 0, STEP_BYTES / 2};
            if (both)
                b.row *= 2, b.second = TILE_BYTES, b.step *= 2;
            float *sums = p->sums + (whole ? 0 : (m / SIDE * p->wide + j) * BLOCK_SUMS);
            wanted w = {(const char *) p->to[m] + column * (int64_t) sizeof(uint16_t), 0, 0};
            multiply_panels((left_panel){p->left, TILE_BYTES, STEP_BYTES}, b, steps, sums, ROW_BYTES, p->from > 0, w);
            if (last)
                put_panel(g, p, m, column, sums);
        }
    }
}

static AMX void gather_units(void *env, int64_t begin, int64_t end, int thread) {
    const gather *g = env;
    int64_t pixels = pixels_in(&g->of), pairs = upward(g->of.columns, SIDE), groups = upward(pairs, g->width);
    int64_t words = g->of.channels / 2, most = upward(pixels, g->spans), terms = g->of.n_taps * g->chunk;
    tiles_begin();
    for (int64_t u = begin; u < end; u++) {
        int64_t span = u / groups;
        piece p = {.first = share(span, pixels, g->spans), .pair = u % groups * g->width};
        p.count = share(span + 1, pixels, g->spans) - p.first;
        p.wide = tr__min(g->width, pairs - p.pair);
        p.left = tr__room_of(&g->rooms, thread);
        p.weights = (word *) (void *) (p.left + SIDE * terms * (int64_t) sizeof(word));
        p.sums = (float *) (void *) (p.weights + g->width * SIDE * terms);
        p.strip = (word *) (p.sums + (g->chunk == words ? 1 : upward(most, SIDE) * g->width) * BLOCK_SUMS);
        p.rows = (const void **) (void *) (p.strip + strip_words(&g->weights));
        p.to = p.rows + g->of.n_taps * most;
        find_rows(&g->of, p.first, p.count, p.count, p.rows, (void **) p.to);
        for (; p.from < words; p.from += p.words) {
            p.words = tr__min(g->chunk, words - p.from);
            gather_piece(g, &p);
        }
    }
    tiles_end();
}

/* Cuts the result into units: each cut of the columns gathers all pixels once more, of the pixels packs all of the weights. */
static void deal(gather *g, int64_t threads) {
    int64_t pairs = upward(g->of.columns, SIDE), pixels = pixels_in(&g->of), wanted = SHARES * threads, least = INT64_MAX;
    int64_t each = tr__max(1, g->of.n_taps * g->chunk * 2 * SIDE), most = tr__max(1, NEAR / each), groups = upward(pairs, most);
    for (int64_t n = groups; n <= tr__max(groups, tr__min(pairs, wanted)); n++) {
        int64_t width = upward(pairs, n), real = upward(pairs, width);
        int64_t spans = tr__max(upward(pixels, SPAN), tr__min(upward(wanted, real), upward(pixels, SIDE)));
        int64_t cost = real * pixels + 3 * spans * pairs * SIDE;
        if (cost < least) {
            least = cost;
            g->width = width;
            g->spans = spans;
        }
    }
}

static tr_status run_gather(const tr_kernel_call *c, const filtered *f) {
    gather own = {.of = f->of, .bias = f->bias, .weights = f->weights}, *g = &own;
    int64_t steps = g->of.channels / TILE_K, chunks = upward(steps * TILE_K * g->of.n_taps, TERMS);
    g->chunk = upward(steps, tr__min(steps, tr__max(1, chunks))) * TILE_ROWS;
    deal(g, c->ctx->threads);
    int64_t count = upward(pixels_in(&g->of), g->spans), terms = g->of.n_taps * g->chunk;
    int64_t units = g->spans * upward(upward(g->of.columns, SIDE), g->width);
    int64_t kept = g->chunk == g->of.channels / 2 ? 1 : upward(count, SIDE) * g->width; // sums
    size_t bytes = ((size_t) ((1 + g->width) * SIDE * terms + kept * BLOCK_SUMS) + strip_words(&g->weights)) * sizeof(word) +
                   (size_t) ((g->of.n_taps + 1) * count) * sizeof(void *);
    int64_t grain = tr__max(1, TR__GRAIN / tr__max(1, count * terms * g->width));
    return tr__parallel_rooms(c, units, grain, bytes, &g->rooms, gather_units, g);
}

/* ------------------------------------------------------------------------------------------ by the weights */

typedef struct sum {
    const tr__conv_bf16 *v;
    grid of;        /* forward's; taps by where they begin in the weights */
    int64_t co, ci; /* panels of a unit, at most, of either side */
    tr__rooms rooms;
} sum;

/* A unit's place, in panels, and its room. */
typedef struct corner {
    int64_t co, co_panels, ci, ci_panels;
    const void **rows, **to; /* [taps, BLOCK], [BLOCK] */
    uint16_t *left, *right;  /* [co_panels, BLOCK / 32 steps], [steps] */
    float *sums;             /* [taps, ci_panels, co_panels, 32, 32] */
} corner;

/* Pairs of pixels by 32 channels, in tiles; `half`: by 16. */
ALWAYS void pack_pixels(const void **rows, int64_t channel, bool half, int64_t steps, uint16_t *to) {
    for (int64_t s = 0; s < steps; s++, rows += TILE_K, to += STEP)
        for (int r = 0; r < TILE_ROWS; r++) {
            const uint16_t *low = (const uint16_t *) rows[2 * r] + channel, *high = (const uint16_t *) rows[2 * r + 1] + channel;
            interleave((word *) (void *) (to + r * TILE_K), low, high, NR);
            if (!half)
                interleave((word *) (void *) (to + TILE_SIZE + r * TILE_K), low + NR, high + NR, NR);
        }
}

static AMX void sum_block(const sum *s, const corner *k, int64_t first, int64_t n) {
    const tr__conv *v = &s->v->of;
    int64_t steps = upward(n, TILE_K), taps = s->of.n_taps;
    factor gradient = {.from = (const char *) (s->v->dst + first * v->co), .lines = v->co, .terms = n, .line = 1, .term = v->co};
    pack_factor(&gradient, false, k->co * SIDE, k->co_panels, 0, steps, k->left);
    find_rows(&s->of, first, n, BLOCK, k->rows, (void **) k->to);
    for (int64_t t = 0; t < taps; t++)
        for (int64_t p = n; p < steps * TILE_K; p++)
            k->rows[t * BLOCK + p] = s->of.zeros;
    float *sums = k->sums;
    for (int64_t t = 0; t < taps; t++)
        for (int64_t i = 0; i < k->ci_panels; i++) {
            int64_t channel = (k->ci + i) * SIDE;
            bool half = channel + NR >= v->ci;
            pack_pixels(k->rows + t * BLOCK, channel, half, steps, k->right);
            right_panel b = {(const char *) k->right, TILE_BYTES, half ? 0 : STEP_BYTES / 2, STEP_BYTES};
            for (int64_t o = 0; o < k->co_panels; o++, sums += BLOCK_SUMS) {
                left_panel l = {(const char *) (k->left + o * steps * STEP), TILE_BYTES, STEP_BYTES};
                multiply_panels(l, b, steps, sums, ROW_BYTES, first > 0, (wanted){(const char *) sums, 0, 0});
            }
        }
}

/* 16 of the image's channels and all taps, which lie `step` floats apart, of one of the gradient's, rounded to the weights at `to`. */
static AMX void put_taps(const sum *s, const float *from, int64_t step, uint16_t *to) {
    int64_t taps = s->of.n_taps, ci = s->v->strides[1];
    if (ci == 1) {
        for (int64_t t = 0; t < taps; t++)
            narrow_pairs_to(to + s->of.tap[t], load_float(from + t * step));
        return;
    }
    bool together = taps_together(s->v) == taps;
    for (int64_t first = 0; first < taps; first += VN_F) {
        int64_t n = tr__min(VN_F, taps - first);
        vF x[VN_F];
        _Pragma("GCC unroll 16") for (int t = 0; t < VN_F; t++) x[t] = t < n ? load_float(from + (first + t) * step) : (vF){0};
        turn(x);
        _Pragma("GCC unroll 16") for (int i = 0; i < VN_F; i++) {
            uint16_t row[VN_F];
            narrow_pairs_to(row, x[i]);
            if (together)
                memcpy(to + i * ci + first, row, (size_t) n * sizeof *row);
            else
                for (int64_t t = 0; t < n; t++)
                    to[i * ci + s->of.tap[first + t]] = row[t];
        }
    }
}

static AMX void put_weights(const sum *s, const corner *k) {
    const tr__conv *v = &s->v->of;
    for (int64_t i = 0; i < k->ci_panels; i++)
        for (int64_t o = 0; o < k->co_panels; o++)
            for (int64_t r = 0; r < tr__min(SIDE, v->co - (k->co + o) * SIDE); r++)
                for (int64_t h = 0; h < SIDE; h += NR) {
                    int64_t channel = (k->ci + i) * SIDE + h;
                    const float *sums = k->sums + ((i * k->co_panels + o) * SIDE + r) * SIDE + h;
                    if (channel < v->ci)
                        put_taps(s, sums, k->ci_panels * k->co_panels * BLOCK_SUMS,
                                 s->v->weights + ((k->co + o) * SIDE + r) * s->v->strides[0] + channel * s->v->strides[1]);
                }
}

static AMX void sum_units(void *env, int64_t begin, int64_t end, int thread) {
    const sum *s = env;
    int64_t co = upward(s->v->of.co, SIDE), ci = upward(s->v->of.ci, SIDE), groups = upward(ci, s->ci), pixels = pixels_in(&s->of);
    tiles_begin();
    for (int64_t u = begin; u < end; u++) {
        corner k = {.co = u / groups * s->co, .ci = u % groups * s->ci};
        k.co_panels = tr__min(s->co, co - k.co);
        k.ci_panels = tr__min(s->ci, ci - k.ci);
        k.left = tr__room_of(&s->rooms, thread);
        k.right = k.left + s->co * (BLOCK / TILE_K) * STEP;
        k.sums = (float *) (void *) (k.right + (BLOCK / TILE_K) * STEP);
        k.rows = (const void **) (void *) (k.sums + s->of.n_taps * s->co * s->ci * BLOCK_SUMS);
        k.to = k.rows + s->of.n_taps * BLOCK;
        for (int64_t p = 0; p < pixels; p += BLOCK)
            sum_block(s, &k, p, tr__min(BLOCK, pixels - p));
        put_weights(s, &k);
    }
    tiles_end();
}

/* Cuts the weights into units: each cut of the gradient's channels packs the image once more, for each tap, of the image's the
 * gradient. */
static void cut(sum *s, int64_t threads) {
    int64_t co = upward(s->v->of.co, SIDE), ci = upward(s->v->of.ci, SIDE), most = tr__max(1, SUMS / (s->of.n_taps * BLOCK_SUMS));
    int64_t least = INT64_MAX, wanted = tr__min(SHARES * threads, co * ci);
    for (int64_t a = 1; a <= tr__min(co, most); a++)
        for (int64_t b = 1; a * b <= most && b <= ci; b++) {
            int64_t units = upward(co, a) * upward(ci, b), cost = upward(co, a) * ci * s->of.n_taps + 3 * upward(ci, b) * co;
            if (units >= wanted && cost < least) {
                least = cost;
                s->co = a;
                s->ci = b;
            }
        }
}

static tr_status by_weights(const tr_kernel_call *c, const tr__conv_bf16 *conv) {
    const tr__conv *v = &conv->of;
    sum s = {.v = conv, .of = {.from = conv->src, .to = conv->dst, .images = v->n, .channels = v->ci, .columns = v->co}};
    s.co = s.ci = 1;
    TR_TRY(take_grid(c, v, sizeof(uint16_t), &s.of));
    lay_forward(&s.of, v);
    for (int64_t t = 0; t < s.of.n_taps; t++)
        s.of.tap[t] = tap_at(conv, t);
    cut(&s, c->ctx->threads);
    int64_t steps = BLOCK / TILE_K, units = upward(upward(v->co, SIDE), s.co) * upward(upward(v->ci, SIDE), s.ci);
    size_t bytes = (size_t) ((s.co + 1) * steps * STEP_BYTES) + (size_t) (s.of.n_taps * s.co * s.ci * BLOCK_SUMS) * sizeof(float) +
                   (size_t) ((s.of.n_taps + 1) * BLOCK) * sizeof(void *);
    int64_t grain = tr__max(1, TR__GRAIN / tr__max(1, pixels_in(&s.of) * s.of.n_taps * s.co * s.ci * SIDE));
    return tr__parallel_rooms(c, units, grain, bytes, &s.rooms, sum_units, &s);
}

tr_status TR__SUFFIXED(tr__convolve_tiles)(const tr_kernel_call *c, tr_op op, const tr__conv_bf16 *v) {
    bool weights = op == TR_OP_conv2d_backward_weights, image = op == TR_OP_conv2d_backward_data;
    bool rows = v->strides[1] == 1 && v->strides[0] == v->of.ci, columns = v->strides[0] == 1 && v->strides[1] == v->of.co;
    if (is_product(&v->of) && (rows || (columns && !weights)))
        return multiply(c, op, v);
    if (weights)
        return by_weights(c, v);
    if ((image ? v->of.co : v->of.ci) % TILE_K)
        return TR__SUFFIXED(tr__convolve_bf16)(c, op, v);
    return image ? by_image(c, v, run_gather) : forward(c, v, run_gather);
}
#endif
