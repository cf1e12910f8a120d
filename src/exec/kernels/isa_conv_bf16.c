/* isa_conv_bf16.c - convolutions of bfloat16 images that lie channels last, and their derivatives, by AVX512-BF16: products of small
 * matrices as in isa_conv.c, over words of two bfloat16.
 *
 * Forward and by the image, a word has two channels of a pixel: images are read where they lie, rows by pointer, and weights are
 * packed into panels by whoever needs them next, as much as stays in a near cache. Sums stay in float32 until the last channel.
 * The derivative by the weights sums over pixels, and a word has the same pixel of two images, or of an image's upper and lower half:
 * whatever the size, stride and border, both have the same taps. A unit of work is some channels of the image by some of the
 * gradient's, whose sums over all pixels stay in a near cache, and are rounded once.
 *
 * Every sum is made in an order that depends on the sizes alone, not on the number of threads. */
#include "exec/kernels/kernels.h"

#if TR_ISA_LEVEL >= 4
#include "exec/kernels/isa_pairs.h"

enum {
    SPAN = 512,   /* pixels, at most, of a unit of work: they share packed weights */
    CHUNK = 2048, /* words by taps of a panel that stay in a near cache */
    SUM = 128,    /* pairs of pixels, at least, that the weights' derivative sums up in registers */
    SUMS = 98304, /* its sums, at most, that stay in a near cache */
    SIDE = 256,   /* its channels, at most, on either side */
};

/* ------------------------------------------------------------------------------------------ forward, and by the image */

/* Row r of a tile: the products of a[t * a_step + r][from .. from + k] with b [n, k, P, NR], summed over taps t < n; on top of
 * sums [R, P, NR], or first of the bias; to the sums, or at last to to[r][column ..]. */
typedef struct taps {
    int64_t n, a_step, from, k, column;
    const void *const *a;
    const word *b;
    const float *bias; /* or NULL */
    float *sums;
    void *const *to;
    const word *ahead; /* what is read next, ahead_step words with each of k */
    int64_t ahead_step;
    bool first, last;
} taps;

ALWAYS PAIRS void taps_times_panels(int R, int P, const taps *t) {
    tile acc = {{{0}}};
    const void *const *a = t->a;
    const word *panel = t->b;
    if (!t->first)
        EACH_ROW tile_load(P, acc[r], t->sums + r * P * NR, NR);
    else if (t->bias)
        EACH_ROW tile_load(P, acc[r], t->bias + t->column, NR);
    for (int64_t tap = 0; tap < t->n; tap++, a += t->a_step) {
        const word *row[MR];
        EACH_ROW row[r] = (const word *) a[r] + t->from;
        for (int64_t i = 0; i < t->k; i++, panel += P * NR) {
            vF columns[WIDE];
            __builtin_prefetch(t->ahead + i * t->ahead_step);
            tile_load(P, columns, (const float *) (const void *) panel, NR);
            EACH_ROW tile_add_pairs(P, acc[r], row[r][i], columns);
        }
    }
    if (!t->last)
        EACH_ROW tile_store(P, acc[r], t->sums + r * P * NR, NR, false);
    else
        EACH_ROW {
            _Pragma("GCC unroll 4") for (int j = 0; j < P; j++) narrow_pairs_to((uint16_t *) t->to[r] + t->column + j * NR, acc[r][j]);
        }
}
#define TAPS(R, P)                                    \
    static PAIRS void taps_##R##_##P(const taps *t) { \
        taps_times_panels(R, P, t);                   \
    }
TILES(TAPS)
static void (*const taps_of[WIDE + 1][MR + 1])(const taps *) = TABLE_OF(taps);

typedef struct gather {
    grid of;
    const float *bias;
    matrices weights;
    int64_t spans, wides; /* of pixels; tiles' widths: a unit is a span by a width */
    int64_t chunk;        /* words */
    tr__rooms rooms;
} gather;

/* Some panels of a span of pixels. */
static void gather_unit(const gather *g, int64_t unit, char *own) {
    int64_t wide = unit % g->wides, span = unit / g->wides, panels = g->of.columns / NR, pixels = pixels_in(&g->of);
    int64_t first = share(span, pixels, g->spans), count = share(span + 1, pixels, g->spans) - first;
    int64_t begin = share(wide, panels, g->wides), n = share(wide + 1, panels, g->wides) - begin;
    float *sums = (float *) (void *) own;
    word *b = (word *) (sums + count * n * NR), *strip = b + g->weights.n * g->chunk * n * NR;
    const void **rows = (const void **) (void *) (strip + strip_words(&g->weights));
    void **to = (void **) (rows + g->weights.n * count);
    find_rows(&g->of, first, count, count, rows, to);
    taps k = {.n = g->weights.n, .a_step = count, .b = b, .column = begin * NR, .bias = g->bias};
    int64_t words = g->of.channels / 2, tiles = upward(count, MR);
    for (k.from = 0; k.from < words; k.from += k.k) {
        k.k = tr__min(g->chunk, words - k.from);
        k.first = k.from == 0;
        k.last = k.from + k.k == words;
        pack_panels(&g->weights, 2 * k.from, k.k, begin * NR, (int) n, b, strip);
        for (int64_t t = 0; t < tiles; t++) {
            int64_t m = share(t, count, tiles);
            k.a = rows + m;
            k.to = to + m;
            k.sums = sums + m * n * NR;
            k.ahead = (const word *) rows[tr__min(count - 1, m + MR)] + k.from;
            k.ahead_step = k.n == 1 ? MR : 0;
            taps_of[n][share(t + 1, count, tiles) - m](&k);
        }
    }
}

static void gather_units(void *env, int64_t begin, int64_t end, int thread) {
    const gather *g = env;
    for (int64_t u = begin; u < end; u++)
        gather_unit(g, u, tr__room_of(&g->rooms, thread));
}

static tr_status run_gather(const tr_kernel_call *c, const filtered *f) {
    gather own = {.of = f->of, .bias = f->bias, .weights = f->weights}, *g = &own;
    int64_t pixels = pixels_in(&g->of);
    g->wides = upward(g->of.columns / NR, WIDE);
    // Units enough for all threads, but as long as it takes to be worth packing weights.
    int64_t wanted = upward(2 * c->ctx->threads, g->wides);
    g->spans = tr__max(upward(pixels, SPAN), tr__min(wanted, pixels / (SPAN / 4)));
    g->spans = tr__max(1, g->spans);
    // A chunk is a multiple of a vector, and all are alike.
    int64_t words = g->of.channels / 2, chunks = upward(words * g->weights.n, CHUNK);
    g->chunk = tr__max(1, upward(words, tr__max(1, chunks) * (NR / 2))) * (NR / 2);
    int64_t count = upward(pixels, g->spans);
    size_t bytes = (size_t) (count + g->weights.n * g->chunk) * WIDE * NR * sizeof(word) + strip_words(&g->weights) * sizeof(word) +
                   (size_t) ((g->weights.n + 1) * count) * sizeof(void *);
    int64_t units = g->spans * g->wides, work = count * g->weights.n * g->of.channels * WIDE / 2;
    int64_t grain = tr__max(1, 4 * TR__GRAIN / tr__max(1, work));
    return tr__parallel_rooms(c, units, grain, bytes, &g->rooms, gather_units, g);
}

/* ------------------------------------------------------------------------------------------ by the weights */

/* Blocks of output rows of pairs of images, or of an image's halves if there is an odd number of them: [pairs, height]. Of src, a
 * block has what its taps read, borders included, packed [., width] for each pair: of a dimension with a single tap only every
 * `skip`th pixel; from an output pixel to the next it is `hop`. */
typedef struct sum {
    const tr__conv_bf16 *v;
    bool halves;
    int64_t taps, pairs, height, rows, skip[2], hop[2], width;
    int64_t pixels;        /* of src, in a block, at most */
    int64_t parts, groups; /* that 16s of channels and panels are cut into */
    const uint16_t *zeros;
    int64_t *at; /* [taps] the weights' */
    tr__rooms rooms;
} sum;

/* Row r of a tile: the sum over pairs of pixels p of a[index[p] + r] times b[p] [P, NR], to (or added to) c [., P, NR]. */
typedef struct pixels {
    int64_t n;
    const word *a, *b;
    const int32_t *index;
    float *c;
    bool add;
} pixels;

ALWAYS PAIRS void pixels_times_panels(int R, int P, const pixels *t) {
    tile acc = {{{0}}};
    const word *a = t->a, *b = t->b;
    const int32_t *index = t->index;
    for (int64_t p = 0; p < t->n; p++, b += P * NR) {
        const word *x = a + index[p];
        vF columns[WIDE];
        tile_load(P, columns, (const float *) (const void *) b, NR);
        EACH_ROW tile_add_pairs(P, acc[r], x[r], columns);
    }
    EACH_ROW tile_store(P, acc[r], t->c + r * P * NR, NR, t->add);
}
#define PIXELS(R, P)                                      \
    static PAIRS void pixels_##R##_##P(const pixels *t) { \
        pixels_times_panels(R, P, t);                     \
    }
TILES(PIXELS)
static void (*const pixels_of[WIDE + 1][MR + 1])(const pixels *) = TABLE_OF(pixels);

/* A unit's room. Pixels of x lie x_step words apart. */
typedef struct unit {
    int64_t channel, channels, panel, panels, x_step;
    float *sums; /* by tiles' widths: [taps, channels, panels, NR] */
    word *x, *g; /* g by tiles' widths: [n, panels, NR] */
    int32_t *index; /* [n]: the first tap's pixel, in words */
    int64_t n;
} unit;

/* Where half `which` of a pair is: its image, and its first row among the image's output rows. */
static int64_t image_of(const sum *s, int64_t pair, int which) {
    return s->halves ? pair : 2 * pair + which;
}
static int64_t first_row(const sum *s, int which) {
    return s->halves ? which * s->height : 0;
}

/* A row of src, or NULL beyond a border. */
static const uint16_t *row_of_src(const sum *s, int64_t image, int64_t y) {
    const tr__conv *v = &s->v->of;
    return y >= 0 && y < v->size[0] ? s->v->src + (image * v->size[0] + y) * v->size[1] * v->ci : NULL;
}
/* A row of dst, or NULL: an upper half may have a row more than the lower one. */
static const uint16_t *row_of_dst(const sum *s, int64_t image, int64_t y) {
    const tr__conv *v = &s->v->of;
    return y < v->out[0] ? s->v->dst + (image * v->out[0] + y) * v->out[1] * v->co : NULL;
}

/* Both rows from the left border on. */
static void pack_line(const sum *s, const unit *u, const uint16_t *low, const uint16_t *high, word *to) {
    const tr__conv *v = &s->v->of;
    int64_t x = -v->padding[1];
    for (int64_t i = 0; i < s->width; i++, x += s->skip[1], to += u->x_step) {
        bool inside = x >= 0 && x < v->size[1];
        const uint16_t *a = low && inside ? low + x * v->ci + u->channel : s->zeros;
        const uint16_t *b = high && inside ? high + x * v->ci + u->channel : s->zeros;
        interleave(to, a, b, u->channels);
    }
}

/* What the block's rows first .. last read of src. */
static void pack_image(const sum *s, unit *u, int64_t first, int64_t last) {
    const tr__conv *v = &s->v->of;
    int64_t ow = v->out[1];
    int32_t *index = u->index;
    word *to = u->x;
    for (int64_t row = first, end; row < last; row = end) {
        int64_t pair = row / s->height, begin = row % s->height;
        end = tr__min(last, (pair + 1) * s->height);
        for (int64_t r = 0; r < end - row; r++)
            for (int64_t x = 0; x < ow; x++)
                *index++ = (int32_t) (to - u->x + (r * s->hop[0] * s->width + x * s->hop[1]) * u->x_step);
        int64_t height = (end - row - 1) * s->hop[0] + (v->kernel[0] - 1) * v->dilation[0] + 1;
        for (int64_t i = 0; i < height; i++, to += s->width * u->x_step) {
            const uint16_t *line[2];
            for (int w = 0; w < 2; w++) {
                int64_t y = (first_row(s, w) + begin) * v->stride[0] - v->padding[0] + i * s->skip[0];
                line[w] = row_of_src(s, image_of(s, pair, w), y);
            }
            pack_line(s, u, line[0], line[1], to);
        }
    }
}

static void pack_gradient(const sum *s, unit *u, int64_t first, int64_t last) {
    const tr__conv *v = &s->v->of;
    int64_t ow = v->out[1];
    u->n = (last - first) * ow;
    for (int64_t panel = 0, wide; panel < u->panels; panel += wide) {
        wide = tr__min(WIDE, u->panels - panel);
        word *to = u->g + panel * NR * u->n;
        for (int64_t row = first; row < last; row++) {
            int64_t pair = row / s->height, y = row % s->height, at = (u->panel + panel) * NR;
            const uint16_t *low = row_of_dst(s, image_of(s, pair, 0), y);
            const uint16_t *high = row_of_dst(s, image_of(s, pair, 1), first_row(s, 1) + y);
            for (int64_t x = 0; x < ow; x++, at += v->co, to += wide * NR)
                interleave(to, low + at, high ? high + at : s->zeros, wide * NR);
        }
    }
}

/* Brings a pair of output pixels of row `row`, and what lies there in src, into a near cache: the unit's channels. Inlined by force:
 * gcc deletes calls of a function that does nothing else. */
ALWAYS void fetch_pixels(const sum *s, const unit *u, int64_t row, int64_t x) {
    const tr__conv *v = &s->v->of;
    for (int w = 0; w < 2; w++) {
        int64_t image = image_of(s, row / s->height, w), y = first_row(s, w) + row % s->height;
        const uint16_t *to = row_of_dst(s, image, y);
        if (to)
            fetch(to + x * v->co + u->panel * NR, u->panels * NR);
        for (int64_t i = 0; i < s->hop[0]; i++) {
            const uint16_t *from = row_of_src(s, image, y * v->stride[0] + i);
            for (int64_t j = x * v->stride[1]; from && j < tr__min(v->size[1], x * v->stride[1] + s->hop[1]); j++)
                fetch(from + j * v->ci + u->channel, u->channels);
        }
    }
}

/* `next`, `end`: rows that are needed soon, a few pixels of which are fetched with each tile. */
static void sum_block(const sum *s, const unit *u, bool add, int64_t next, int64_t end) {
    const tr__conv *v = &s->v->of;
    int64_t tiles = upward(u->channels, MR), ow = v->out[1], fetched = 0, soon = (end - next) * ow;
    int64_t at_once = upward(soon, tiles * upward(u->panels, WIDE) * s->taps);
    pixels p = {.n = u->n, .index = u->index, .add = add};
    for (int64_t panel = 0, wide; panel < u->panels; panel += wide) {
        wide = tr__min(WIDE, u->panels - panel);
        p.b = u->g + panel * NR * u->n;
        for (int64_t t = 0; t < tiles; t++) {
            int64_t low = share(t, u->channels, tiles), rows = share(t + 1, u->channels, tiles) - low;
            for (int64_t tap = 0; tap < s->taps; tap++) {
                int64_t y = tap / v->kernel[1] * v->dilation[0], x = tap % v->kernel[1] * v->dilation[1];
                p.a = u->x + (y * s->width + x) * u->x_step + low;
                p.c = u->sums + (panel * s->taps * u->channels + (tap * u->channels + low) * wide) * NR;
                for (int64_t stop = tr__min(soon, fetched + at_once); fetched < stop; fetched++)
                    fetch_pixels(s, u, next + fetched / ow, fetched % ow);
                pixels_of[wide][rows](&p);
            }
        }
    }
}

static void write_weights(const sum *s, const unit *u) {
    const int64_t *strides = s->v->strides;
    unpack k = {.channel_step = strides[1], .column_step = strides[0], .channels = u->channels, .taps = s->taps, .at = s->at,
                .together = taps_together(s->v)};
    for (int64_t panel = 0; panel < u->panels; panel++) {
        int64_t first = panel / WIDE * WIDE, wide = tr__min(WIDE, u->panels - first);
        k.to = s->v->weights + (u->panel + panel) * NR * strides[0] + u->channel * strides[1];
        k.from = u->sums + (first * s->taps * u->channels + (panel - first)) * NR;
        k.from_step = wide * NR;
        unpack_panel(&k);
    }
}

static void sum_units(void *env, int64_t begin, int64_t end, int thread) {
    const sum *s = env;
    const tr__conv *v = &s->v->of;
    int64_t of_channels = v->ci / NR, of_panels = v->co / NR, all = s->pairs * s->height;
    for (int64_t i = begin; i < end; i++) {
        int64_t part = i / s->groups, group = i % s->groups;
        unit u = {.channel = share(part, of_channels, s->parts) * NR, .panel = share(group, of_panels, s->groups)};
        u.channels = share(part + 1, of_channels, s->parts) * NR - u.channel;
        u.panels = share(group + 1, of_panels, s->groups) - u.panel;
        u.x_step = (u.channels / NR | 1) * NR; // an odd number of cache lines: pixels lie in different sets
        u.sums = tr__room_of(&s->rooms, thread);
        u.x = (word *) (u.sums + s->taps * u.channels * u.panels * NR);
        u.g = u.x + s->pixels * u.x_step;
        u.index = (int32_t *) (u.g + s->rows * v->out[1] * u.panels * NR);
        for (int64_t first = 0; first < all; first += s->rows) {
            int64_t last = tr__min(all, first + s->rows);
            pack_image(s, &u, first, last);
            pack_gradient(s, &u, first, last);
            sum_block(s, &u, first > 0, last, tr__min(all, last + s->rows));
        }
        write_weights(s, &u);
    }
}

/* Units as square as can be, since each packs both its sides; as many as the threads need, as small as a near cache wants. */
static void cut(sum *s, int threads) {
    int64_t channels = s->v->of.ci / NR, panels = s->v->of.co / NR;
    s->parts = s->groups = 1;
    for (;;) {
        int64_t a = upward(channels, s->parts), b = upward(panels, s->groups);
        bool small = a * b * NR * NR * s->taps <= SUMS && a * NR <= SIDE && b * NR <= SIDE;
        if (small && (s->parts * s->groups >= 2 * threads || (a <= 2 && b <= WIDE)))
            return;
        if (a > 2 && (a >= b || b <= WIDE))
            s->parts = tr__min(channels, 2 * s->parts);
        else if (b > WIDE)
            s->groups = tr__min(panels, 2 * s->groups);
        else
            return;
    }
}

static tr_status by_weights(const tr_kernel_call *c, const tr__conv_bf16 *conv) {
    const tr__conv *v = &conv->of;
    sum s = {.v = conv, .taps = v->kernel[0] * v->kernel[1], .halves = v->n % 2 != 0};
    s.pairs = s.halves ? v->n : v->n / 2;
    s.height = s.halves ? (v->out[0] + 1) / 2 : v->out[0];
    for (int d = 0; d < 2; d++) {
        s.skip[d] = v->kernel[d] == 1 ? v->stride[d] : 1;
        s.hop[d] = v->stride[d] / s.skip[d];
    }
    s.rows = tr__min(s.pairs * s.height, upward(SUM, v->out[1]));
    s.width = (v->out[1] - 1) * s.hop[1] + (v->kernel[1] - 1) * v->dilation[1] + 1;
    int64_t images = (s.rows + s.height - 2) / s.height + 1;
    s.pixels = s.width * (s.rows * s.hop[0] + images * ((v->kernel[0] - 1) * v->dilation[0] + 1));
    cut(&s, c->ctx->threads);
    int64_t channels = upward(v->ci / NR, s.parts) * NR, panels = upward(v->co / NR, s.groups), n = s.rows * v->out[1];
    size_t words = (size_t) (s.taps * channels * panels * NR + s.pixels * (channels + NR) + n * panels * NR + n);
    int64_t units = s.parts * s.groups, work = s.pairs * s.height * v->out[1] * s.taps * channels * panels;
    int64_t grain = tr__max(1, 4 * TR__GRAIN / tr__max(1, work));
    size_t zeros = (size_t) tr__max(v->ci, v->co) * 2;
    char *room = tr__scratch(c, zeros + (size_t) s.taps * sizeof(int64_t));
    if (!room)
        return TR_E_NOMEM;
    s.zeros = memset(room, 0, zeros);
    s.at = (int64_t *) (void *) (room + zeros);
    for (int64_t t = 0; t < s.taps; t++)
        s.at[t] = tap_at(conv, t);
    return tr__parallel_rooms(c, units, grain, words * sizeof(word), &s.rooms, sum_units, &s);
}

tr_status TR__SUFFIXED(tr__convolve_bf16)(const tr_kernel_call *c, tr_op op, const tr__conv_bf16 *v) {
    if (op == TR_OP_conv2d_backward_weights)
        return by_weights(c, v);
    return op == TR_OP_conv2d ? forward(c, v, run_gather) : by_image(c, v, run_gather);
}
#endif
