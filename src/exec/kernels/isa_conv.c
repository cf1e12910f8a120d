/* isa_conv.c - convolutions of float32 images that lie channels last, and their derivatives, as products of small matrices.
 *
 * Weights come in panels: [CO / 64, KH, KW, CI, 64], the library's Acdb64a, or of 16. Forward is, for a block of output pixels, the
 * sum over taps and channels of (pixels by channels) times (channels by a panel), and needs no copy of the image: the rows of a
 * product are pointers to pixels, those beyond the border point to zeros. The derivative by the image is the same over the
 * output's gradient with panels of the transposed weights; where the stride is s, pixels of equal remainder mod s have the
 * same taps, and make s * s products. The derivative by the weights sums over pixels: a block's pixels are packed by six
 * channels, the gradient's by panels, and each tap takes its pixels by index.
 *
 * Of few channels in src, the derivative by the weights takes the pixels that a row of a filter reads as one pixel of many: src is
 * copied with its border, channels last, and they lie side by side.
 *
 * Every sum is made in an order that depends on the sizes alone, not on the number of threads.
 *
 * oneDNN's kernels take twice as long with AVX2, and with AVX-512 a sixth longer (docs/performance.md). The tile in registers
 * is 6 rows by 16 columns there, by 64 here. */
#include "exec/kernels/kernels.h"

#if TR_ISA_LEVEL >= 3
#include "exec/kernels/isa_conv_grid.h"
#include "exec/kernels/isa_conv_panels.h"

enum {
#if TR_ISA_LEVEL >= 4
    BLOCK = 192,  /* pixels, at most, whose part of the image stays in the cache; a multiple of MR */
    CHUNK = 1024, /* channels by taps of a panel that stay in a near cache */
    SUM = 128,    /* pixels, at least, that the weights' derivative sums up in registers */
#else
    BLOCK = 96,
    CHUNK = 256,
    SUM = 256,
#endif
    SHARES = 4,   /* of the pixels, by tiles of panels, that the weights' derivative is summed up in */
    SHARE = 1024, /* pixels of one, at least */
    FETCH = 16,   /* pixels, or channels, with which some lines of what is next are fetched */
    PAIR = 2,     /* of these, without a branch */
    FEW = 2,      /* blocks, at most, for each of which weights are transposed */
    FETCHED = 3,  /* blocks, at most, so that weights come from memory as often as from a cache */
    SETS = 1024,  /* floats apart, lines compete for the same places of a near cache */
    SHORT = 256,  /* channels by taps, at most, after which results' places would be waited for */
    PART = 16,    /* tiles, at least, for which images are not packed as a whole */
    UNITS = 32,   /* of work, at least, if there are panels enough */
};

/* From a row's vector to the next, panels being so far apart. */
#define STEP(panels) (WIDE == 1 ? VN_F : (panels))

/* From a panel to the next. A tile's panels follow one another in memory where the width is a tile's; else they lie apart, most often by
 * a power of two, for which a near cache has few places. */
static int64_t apart(const shape *s) {
    return s->width == NR ? s->taps * s->channels * NR : NR;
}

/* Rows of memory that are read soon, brought nearer a few lines at a time: many at once would keep others waiting. */
typedef struct stream {
    const float *at;
    int64_t rows, floats, step, place; /* left; of a row; to the next; in it */
} stream;
enum { LINE = 16 };

ALWAYS void fetch(stream *s, int64_t lines) {
    for (; s->rows > 0 && lines > 0; lines--) {
        __builtin_prefetch(s->at + s->place, 0, 2);
        s->place += LINE;
        if (s->place >= s->floats) {
            s->place = 0;
            s->at += s->step;
            s->rows--;
        }
    }
}

static int64_t lines_of(const stream *s) {
    return s->rows * ((s->floats + LINE - 1) / LINE);
}

/* Row r of a tile: the products of a[t * BLOCK + r][from .. from + k] with b[t] and the panels behind it, which lie b_step apart if
 * they are not as wide as the tile, summed over taps t, to (or added to) c[r][column ..]. k is a multiple of FETCH. What is needed
 * soon is fetched: the same of the next MR rows, a line with every PAIR channels, as more would keep products waiting; some lines of
 * weights with every FETCH; and at first the places of results, if they are written soon. */
typedef struct taps {
    int n;
    int64_t from, k, column, b_step;
    const void *const *a;
    const float *const *b;
    void *const *c;
    bool add, more; /* there are next rows */
    stream *weights;
    int64_t lines;
} taps;

/* From a channel to the next, and from a row's vector to the next. */
ALWAYS void taps_times_panels(int R, int P, int64_t step, int64_t b_step, const taps *t) {
    tile acc = {{{0}}};
    const void *const *a = t->a;
    if (t->n * t->k <= SHORT && !t->add)
        EACH_ROW
            for (int j = 0; j < P * NR; j += LINE)
                __builtin_prefetch((float *) t->c[r] + t->column + j, 1);
    for (int tap = 0; tap < t->n; tap++, a += BLOCK) {
        const float *row[MR], *panel = t->b[tap], *ahead[FETCH / PAIR];
        EACH_ROW row[r] = (const float *) a[r] + t->from;
        for (int j = 0; j < FETCH / PAIR; j++)
            ahead[j] = (const float *) a[(t->more ? MR : 0) + j % R] + t->from;
        for (int64_t i = 0; i < t->k;) {
            const float *const *line = ahead;
            if (t->lines)
                fetch(t->weights, t->lines);
            for (int64_t end = i + FETCH; i < end; i += PAIR) {
                __builtin_prefetch(*line++ + i);
                _Pragma("GCC unroll 2") for (int64_t j = i; j < i + PAIR; j++, panel += step) {
                    vF columns[WIDE * VECTORS];
                    tile_load(P * VECTORS, columns, panel, b_step);
                    EACH_ROW tile_add(P * VECTORS, acc[r], row[r][j], columns);
                }
            }
        }
    }
    EACH_ROW tile_store(P * VECTORS, acc[r], (float *) t->c[r] + t->column, STEP(NR), t->add);
}
#define TAPS(R, P)                                         \
    static void taps_##R##_##P(const taps *t) {            \
        taps_times_panels(R, P, NR, STEP(t->b_step), t);   \
    }
TILES(TAPS)
static void (*const taps_of[WIDE + 1][MR + 1])(const taps *) = TABLE_OF(taps);

#if TR_ISA_LEVEL >= 4
#define WIDE_TAPS(R, P)                                    \
    static void wide_taps_##R##_##P(const taps *t) {       \
        taps_times_panels(R, P, P * NR, NR, t);            \
    }
ROWS_OF(WIDE_TAPS, 4)
static void (*const wide_taps_of[MR + 1])(const taps *) = ROW_OF(wide_taps, 4);
#else
#define wide_taps_of taps_of[WIDE]
#endif

/* ------------------------------------------------------------------------------------------ forward, and by the image */

typedef struct gather {
    grid of;
    const float *panels, *bias;
    shape lies;           /* panels */
    const float *weights; /* by the image: transposed for each block, if there are few; or NULL */
    shape from;           /* weights */
    int64_t block;  /* pixels at a time */
    int64_t groups; /* of panels, a unit of work each, for a block of pixels */
    int64_t units, width; /* width: threads that take them one after the other */
    void *scratch;
    size_t per_thread;
} gather;

/* Tiles' widths in so many panels. */
static int64_t wide_of(int64_t panels) {
    return upward(panels, WIDE);
}

static int64_t panels_of(const gather *g) {
    return g->of.columns / NR;
}

static void set_bias(const gather *g, int64_t count, void *const *to, int64_t column, int64_t columns) {
    for (int64_t m = 0; m < count; m++)
        memcpy((float *) to[m] + column, g->bias + column, (size_t) columns * sizeof(float));
}

/* By the image: where a tap's weights lie that output channel `channel` and the next ones make of panel `panel` of the image. */
static const float *weights_at(const gather *g, int64_t panel, int64_t tap, int64_t channel) {
    return g->weights + place_of(&g->from, channel / NR, tap, panel * NR);
}

/* Of a panel, channels from .. from + k of a tap, transposed: rows of `to`, `step` apart. */
static void transpose_panel(const gather *g, int64_t panel, int64_t tap, int64_t from, int64_t k, float *to, int64_t step) {
    for (int64_t i = 0; i < k; i += NR)
        transpose_square(to + i * step, step, weights_at(g, panel, tap, from + i), g->from.width);
}

/* Of a unit's work, the part of some panels, taps, and channels. */
typedef struct piece {
    int64_t panel, panels, tap, taps, from, k;
} piece;

/* How a unit's work is cut, its panels, and where it is. */
typedef struct cut {
    int64_t begin, end, at_once, pieces;
    int64_t panel, tap, piece;
} cut;

static cut cut_of(const gather *g, int64_t group) {
    int64_t wide = wide_of(panels_of(g));
    return (cut){.begin = group * wide / g->groups * WIDE,
                 .panel = group * wide / g->groups * WIDE,
                 .end = tr__min(panels_of(g), (group + 1) * wide / g->groups * WIDE),
                 .at_once = g->weights ? 1 : tr__max(1, CHUNK / g->of.channels),
                 .pieces = (g->of.channels + CHUNK - 1) / CHUNK};
}

static piece piece_of(const gather *g, const cut *c) {
    int64_t n = g->of.channels / NR, from = c->piece * n / c->pieces * NR;
    return (piece){c->panel, tr__min(WIDE, c->end - c->panel), c->tap, tr__min(c->at_once, g->of.n_taps - c->tap), from,
                   (c->piece + 1) * n / c->pieces * NR - from};
}

/* On to the next piece: panels first, so that the image's part stays in the cache. False behind the last. */
static bool go_on(const gather *g, cut *c) {
    c->panel += WIDE;
    if (c->panel < c->end)
        return true;
    c->panel = c->begin;
    if (++c->piece == c->pieces) {
        c->piece = 0;
        c->tap += c->at_once;
    }
    return c->tap < g->of.n_taps;
}

/* A panel's channels of a tap, and the panels that follow. */
static const float *panel_at(const gather *g, int64_t panel, int64_t tap, int64_t from) {
    return g->panels + place_of(&g->lies, panel, tap, from);
}

static stream weights_of(const gather *g, const piece *p) {
    int64_t tap = g->of.tap[p->tap], width = g->lies.width, from = g->from.width;
    if (!g->weights) // taps that follow one another
        return (stream){.at = panel_at(g, p->panel, tap, p->from),
                        .rows = upward(p->panels * NR, width),
                        .floats = ((p->taps - 1) * g->of.channels + p->k) * width,
                        .step = g->lies.taps * g->of.channels * width};
    return (stream){.at = weights_at(g, p->panel, tap, p->from / from * from),
                    .rows = upward(p->k, from),
                    .floats = p->panels * NR * from,
                    .step = g->from.taps * g->of.columns * from};
}

/* The products of all of a block's pixels with a piece of the weights; `next` is fetched. */
static void gather_piece(const gather *g, const piece *p, int64_t count, const void *const *rows, void *const *to, float *turned,
                         bool add, stream next) {
    const float *b[CHUNK / NR]; // channels are a multiple of it
    void (*const *of)(const taps *) = g->lies.width == NR ? taps_of[p->panels] : wide_taps_of;
    int64_t times = (count + MR - 1) / MR * p->taps * ((p->k + FETCH - 1) / FETCH);
    taps k = {.n = (int) p->taps, .from = p->from, .k = p->k, .column = p->panel * NR, .b = b, .add = add, .weights = &next,
              .lines = (lines_of(&next) + times - 1) / times};
    if (g->weights) {
        k.b_step = g->lies.width == NR ? p->k * NR : NR;
        b[0] = turned;
        for (int64_t q = 0; q < p->panels; q++)
            transpose_panel(g, p->panel + q, g->of.tap[p->tap], p->from, p->k, turned + q * k.b_step, g->lies.width);
    } else {
        k.b_step = apart(&g->lies);
        for (int i = 0; i < k.n; i++)
            b[i] = panel_at(g, p->panel, g->of.tap[p->tap + i], p->from);
    }
    for (int64_t m = 0; m < count; m += MR) {
        k.a = rows + p->tap * BLOCK + m;
        k.c = to + m;
        k.more = m + 2 * MR <= count;
        of[tr__min(MR, count - m)](&k);
    }
}

/* What a thread has of its own. */
typedef struct room {
    const void **rows; /* [n_taps, BLOCK] */
    void **to;         /* [BLOCK] */
    float *turned;     /* [WIDE, CHUNK, NR], or [CHUNK, WIDE, NR] */
} room;

/* Some panels of a block of pixels. */
static void gather_unit(const gather *g, int64_t unit, const room *own) {
    int64_t first = unit / g->groups * g->block, count = tr__min(g->block, pixels_in(&g->of) - first);
    cut c = cut_of(g, unit % g->groups);
    find_rows(&g->of, first, count, BLOCK, own->rows, own->to);
    if (g->bias)
        set_bias(g, count, own->to, c.begin * NR, (c.end - c.begin) * NR);
    for (bool more = true; more;) {
        piece p = piece_of(g, &c);
        bool add = g->bias || c.tap || c.piece;
        more = go_on(g, &c);
        stream next = {0};
        if ((g->weights || g->units <= FETCHED * g->groups) && (more || unit + g->width < g->units)) {
            cut other = more ? c : cut_of(g, (unit + g->width) % g->groups);
            piece q = piece_of(g, &other);
            next = weights_of(g, &q);
        }
        gather_piece(g, &p, count, own->rows, own->to, own->turned, add, next);
    }
}

static void gather_units(void *env, int64_t begin, int64_t end, int thread) {
    const gather *g = env;
    room own = {.turned = (float *) (void *) ((char *) g->scratch + (size_t) thread * g->per_thread)};
    own.rows = (const void **) (void *) (own.turned + (g->weights ? WIDE * CHUNK * NR : 0));
    own.to = (void **) (own.rows + g->of.n_taps * BLOCK);
    for (int64_t u = begin; u < end; u++)
        gather_unit(g, u, &own);
}

static tr_status run_gather(const tr_kernel_call *c, gather *g) {
    int64_t pixels = pixels_in(&g->of), blocks = upward(pixels, BLOCK);
    g->block = upward(upward(pixels, blocks), MR) * MR; // all alike, but for the last
    blocks = upward(pixels, g->block);
    int64_t wanted = tr__max(UNITS, 4 * c->ctx->threads);
    g->groups = tr__min(wide_of(panels_of(g)), tr__max(1, wanted / tr__max(1, blocks)));
    int64_t work = tr__min(g->block, pixels) * g->of.n_taps * g->of.channels * g->of.columns / g->groups / NR;
    int64_t grain = tr__max(1, 4 * TR__GRAIN / tr__max(1, work));
    g->units = blocks * g->groups;
    g->width = tr__parallel_width(c->ctx, g->units, grain);
    g->per_thread = (size_t) (g->of.n_taps + 1) * BLOCK * sizeof(void *) + (g->weights ? WIDE * CHUNK * NR * sizeof(float) : 0) + 64;
    g->scratch = tr__scratch(c, (size_t) g->width * g->per_thread);
    if (!g->scratch)
        return TR_E_NOMEM;
    tr__parallel_units(c->ctx, g->units, grain, gather_units, g);
    return TR_OK;
}

static tr_status forward(const tr_kernel_call *c, const tr__conv *v) {
    gather g = {.of = {.from = v->src, .to = v->dst, .images = v->n, .channels = v->ci, .columns = v->co},
                .panels = v->weights, .bias = v->bias, .lies = shape_of(v)};
    TR_TRY(take_grid(c, v, sizeof(float), &g.of));
    lay_forward(&g.of, v);
    return run_gather(c, &g);
}

/* All panels of the transposed weights. */
static void transpose_all(void *env, int64_t begin, int64_t end, int thread) {
    const gather *g = env;
    for (int64_t u = begin; u < end; u++) {
        int64_t panel = u / g->lies.taps, tap = u % g->lies.taps;
        transpose_panel(g, panel, tap, 0, g->of.channels, (float *) panel_at(g, panel, tap, 0), g->lies.width);
    }
}

static tr_status transpose_weights(const tr_kernel_call *c, gather *g) {
    float *to = tr__scratch(c, (size_t) (g->lies.taps * g->of.columns * g->of.channels) * sizeof(float));
    if (!to)
        return TR_E_NOMEM;
    g->panels = to;
    tr__parallel(c->ctx, panels_of(g) * g->lies.taps, tr__max(1, TR__GRAIN / (g->of.channels * NR)), transpose_all, g);
    g->weights = NULL;
    return TR_OK;
}

static tr_status by_image(const tr_kernel_call *c, const tr__conv *v) {
    gather g = {.of = {.from = v->dst, .to = (float *) v->src, .images = v->n, .channels = v->co, .columns = v->ci},
                .weights = v->weights, .from = shape_of(v)};
    g.lies = (shape){tr__conv_panel(v->ci), g.from.taps, v->co};
    int64_t blocks = upward(v->n * v->size[0] * v->size[1] / (v->stride[0] * v->stride[1]), BLOCK);
    if (blocks > FEW || v->co < CHUNK / 4)
        TR_TRY(transpose_weights(c, &g));
    TR_TRY(take_grid(c, v, sizeof(float), &g.of));
    int64_t at[2];
    for (at[0] = 0; at[0] < v->stride[0]; at[0]++)
        for (at[1] = 0; at[1] < v->stride[1]; at[1]++) {
            lay_remainder(&g.of, v, at);
            if (g.of.n_taps == 0)
                clear_pixels(c, &g.of);
            else if (pixels_in(&g.of))
                TR_TRY(run_gather(c, &g));
        }
    return TR_OK;
}

/* ------------------------------------------------------------------------------------------ by the weights */

/* Index 0: height, 1: width. Of src, pixels `skip` apart are packed, with the border's zeros, so that all taps find theirs by one
 * index: outputs are `step` packed pixels apart. */
typedef struct sum {
    const tr__conv *v;
    partials to;     /* shares of the output rows */
    shape lies;      /* the weights */
    int64_t parts;   /* that the tiles are cut into */
    int64_t taps, tiles, panels, rows; /* tiles of MR input channels; output rows [n, out[0]] of a block */
    int64_t skip[2], step[2], span[2]; /* span: packed pixels from the first to the last that an output reads */
    int64_t width;     /* of a packed row */
    int64_t pixels;    /* packed for a block, at most */
    int64_t tile_step; /* from a tile of a block's pixels to the next, in floats */
    int64_t to_row, to_column; /* in it, from a tap's pixel to those of the next ones, in floats */
    int64_t pixel;     /* src is read where it lies, pixels so many floats apart; or 0 */
    bool direct;       /* the gradient is one tile wide: it is read where it lies */
    char *scratch;
    size_t per_thread;
} sum;

/* Row r of a tile: the sum over pixels p of a[index[p] + r] times b[p] [P * NR], to (or added to) c, whose rows lie `step` apart,
 * and panels c_step. */
typedef struct pixels {
    int64_t n, step, c_step;
    stream *gradient, *image; /* of the next block, */
    int64_t g_lines, x_lines; /* of which so many are fetched with every so many pixels */
    const float *a, *b;
    const int32_t *index;
    float *c;
    bool add;
} pixels;

ALWAYS void pixels_times_panels(int R, int P, const pixels *t) {
    tile acc = {{{0}}};
    const float *a = t->a, *b = t->b;
    const int32_t *index = t->index;
    for (int64_t p = 0; p < t->n;) {
        fetch(t->gradient, t->g_lines);
        fetch(t->image, t->x_lines);
        for (int64_t end = tr__min(t->n, p + FETCH); p < end; p++, b += P * NR) {
            const float *x = a + index[p];
            vF columns[WIDE * VECTORS];
            tile_load(P * VECTORS, columns, b, VN_F);
            EACH_ROW tile_add(P * VECTORS, acc[r], x[r], columns);
        }
    }
    EACH_ROW tile_store(P * VECTORS, acc[r], t->c + r * t->step, STEP(t->c_step), t->add);
}
#define PIXELS(R, P)                                \
    static void pixels_##R##_##P(const pixels *t) { \
        pixels_times_panels(R, P, t);               \
    }
TILES(PIXELS)
static void (*const pixels_of[WIDE + 1][MR + 1])(const pixels *) = TABLE_OF(pixels);

/* Pixels `step` floats apart, the channels of tiles low .. high, to [tiles, n, MR], tiles tile_step apart. What is written beyond
 * a pixel's channels, the next pixel overwrites. */
static void pack_pixels(const sum *s, const float *from, int64_t step, int64_t n, int64_t low, int64_t high, float *to) {
    enum { AT_ONCE = 8 };
    int64_t ci = s->v->ci, whole = tr__min(high, (ci - AT_ONCE) / MR + 1);
    for (int64_t p = 0; p < n; p++, from += step, to += MR) {
        float *o = to;
        int64_t t = low;
        for (; t < whole; t++, o += s->tile_step)
            memcpy(o, from + t * MR, AT_ONCE * sizeof *o);
        for (; t < high; t++, o += s->tile_step)
            for (int64_t c = 0; c < tr__min(MR, ci - t * MR); c += 2) // channels are even in number
                memcpy(o + c, from + t * MR + c, 2 * sizeof *o);
    }
}

static void pack_zeros(const sum *s, int64_t n, int64_t low, int64_t high, float *to) {
    for (int64_t t = low; n > 0 && t < high; t++, to += s->tile_step)
        memset(to, 0, (size_t) (n * MR) * sizeof *to);
}

/* A packed row of an image: row y of src, or zeros beyond the border. */
static void pack_row(const sum *s, int64_t image, int64_t y, int64_t low, int64_t high, float *to) {
    const tr__conv *v = s->v;
    int64_t skip = s->skip[1], border = v->padding[1];
    int64_t left = tr__min(s->width, (border + skip - 1) / skip);
    int64_t right = tr__min(s->width, (v->size[1] + border + skip - 1) / skip);
    if (y < 0 || y >= v->size[0])
        left = right = s->width;
    const float *from = v->src + ((image * v->size[0] + y) * v->size[1] + left * skip - border) * v->ci;
    pack_zeros(s, left, low, high, to);
    if (right > left)
        pack_pixels(s, from, skip * v->ci, right - left, low, high, to + left * MR);
    pack_zeros(s, s->width - right, low, high, to + right * MR);
}

/* What output rows first .. last read; index: where each of their pixels reads with its first tap. */
static void pack_images(const sum *s, int64_t first, int64_t last, int64_t low, int64_t high, float *to, int32_t *index) {
    const tr__conv *v = s->v;
    for (int64_t row = first, at = 0; row < last;) {
        int64_t image = row / v->out[0], y = row % v->out[0], n = tr__min(last - row, v->out[0] - y);
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < v->out[1]; j++)
                *index++ = (int32_t) ((at + i * s->step[0] * s->width + j * s->step[1]) * MR);
        for (int64_t i = 0; i < (n - 1) * s->step[0] + s->span[0]; i++, at += s->width)
            pack_row(s, image, y * v->stride[0] - v->padding[0] + i * s->skip[0], low, high, to + at * MR);
        row += n;
    }
}

/* The same of src where it lies, behind what is returned. */
static const float *find_images(const sum *s, int64_t first, int64_t last, int32_t *index) {
    const tr__conv *v = s->v;
    int64_t image = first / v->out[0];
    for (int64_t row = first; row < last; row++)
        for (int64_t x = 0; x < v->out[1]; x++) {
            int64_t y = (row / v->out[0] - image) * v->size[0] + row % v->out[0] * v->stride[0];
            *index++ = (int32_t) ((y * v->size[1] + x * v->stride[1]) * s->pixel);
        }
    return v->src + image * v->size[0] * v->size[1] * s->pixel;
}

/* Panels begin .. end of a block's n pixels, to [panels / WIDE, n, WIDE, NR], the last ones fewer than WIDE. */
static void pack_gradient(const float *from, int64_t co, int64_t n, int64_t begin, int64_t end, float *to) {
    for (int64_t p = 0; p < n; p++, from += co)
        for (int64_t panel = begin, wide; panel < end; panel += wide) {
            wide = tr__min(WIDE, end - panel);
            float *o = to + ((panel - begin) * n + p * wide) * NR;
            for (int64_t i = 0; i < wide; i++)
                memcpy(o + i * NR, from + (panel + i) * NR, NR * sizeof *o);
        }
}

/* The pixels of src that output rows first .. last read, but for a border. */
static stream images_of(const sum *s, int64_t first, int64_t last, int64_t low, int64_t high) {
    const tr__conv *v = s->v;
    int64_t from = first / v->out[0] * v->size[0] + tr__min(first % v->out[0] * v->stride[0], v->size[0]);
    int64_t to = last / v->out[0] * v->size[0] + tr__min(last % v->out[0] * v->stride[0], v->size[0]);
    return (stream){.at = v->src + from * v->size[1] * v->ci + low * MR,
                    .rows = (to - from) * v->size[1],
                    .floats = tr__min(high * MR, v->ci) - low * MR,
                    .step = v->ci};
}

static stream gradients_of(const sum *s, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const tr__conv *v = s->v;
    return (stream){.at = v->dst + first * v->out[1] * v->co + begin * NR,
                    .rows = (last - first) * v->out[1],
                    .floats = (end - begin) * NR,
                    .step = v->co};
}

/* A block's products, fetching what comes next. */
static void sum_block(const sum *s, int64_t low, int64_t high, int64_t begin, int64_t end, const float *x, const float *g,
                      float *to, pixels p, stream gradient, stream image) {
    const tr__conv *v = s->v;
    int64_t times = wide_of(end - begin) * (high - low) * s->taps * ((p.n + FETCH - 1) / FETCH);
    p.gradient = &gradient;
    p.image = &image;
    p.g_lines = (lines_of(&gradient) + times - 1) / times;
    p.x_lines = (lines_of(&image) + times - 1) / times;
    for (int64_t panel = begin, wide; panel < end; panel += wide) {
        wide = tr__min(WIDE, end - panel);
        p.b = g + (panel - begin) * p.n * NR;
        for (int64_t t = low; t < high; t++)
            for (int64_t tap = 0; tap < s->taps; tap++) {
                p.a = x + (t - low) * s->tile_step + tap / v->kernel[1] * s->to_row + tap % v->kernel[1] * s->to_column;
                p.c = to + place_of(&s->lies, panel, tap, t * MR);
                pixels_of[wide][tr__min(MR, v->ci - t * MR)](&p);
            }
    }
}

/* Panels begin .. end of part `part` of the tiles, summed over a share of the rows. */
static void sum_part(const sum *s, int64_t share, int64_t part, int64_t begin, int64_t end, char *own) {
    const tr__conv *v = s->v;
    int64_t low = part * s->tiles / s->parts, high = (part + 1) * s->tiles / s->parts, all = v->n * v->out[0];
    int64_t start = share * all / s->to.n, stop = (share + 1) * all / s->to.n;
    float *g = (float *) (void *) own, *x = g + (s->direct ? 0 : s->panels * s->rows * v->out[1] * NR);
    int32_t *index = (int32_t *) (void *) (x + (s->tiles / s->parts + 1) * s->tile_step);
    float *to = partial_of(&s->to, share);
    for (int64_t first = start; first < stop; first += s->rows) {
        int64_t last = tr__min(stop, first + s->rows), next = tr__min(stop, last + s->rows), n = (last - first) * v->out[1];
        const float *gradient = v->dst + first * v->out[1] * v->co;
        const float *images = x;
        stream soon = {0};
        if (s->pixel)
            images = find_images(s, first, last, index) + low * MR;
        else
            pack_images(s, first, last, low, high, x, index);
        if (s->pixel == 0 || s->pixel == v->ci)
            soon = images_of(s, last, next, low, high);
        if (!s->direct)
            pack_gradient(gradient, v->co, n, begin, end, g);
        sum_block(s, low, high, begin, end, images, s->direct ? gradient : g, to,
                  (pixels){.n = n, .step = s->lies.width, .c_step = apart(&s->lies), .index = index, .add = first > start},
                  gradients_of(s, last, next, begin, end), soon);
    }
}

static void sum_units(void *env, int64_t begin, int64_t end, int thread) {
    const sum *s = env;
    int64_t wide = wide_of(s->panels);
    while (begin < end) {
        int64_t part = begin / wide, stop = tr__min(end, (part + 1) * wide);
        sum_part(s, part / s->parts, part % s->parts, (begin - part * wide) * WIDE, tr__min(s->panels, (stop - part * wide) * WIDE),
                 s->scratch + (size_t) thread * s->per_thread);
        begin = stop;
    }
}

/* How pixels are packed. */
static void lay_out(sum *s) {
    const tr__conv *v = s->v;
    int64_t all = v->n * v->out[0];
    s->rows = tr__min(all, (SUM + v->out[1] - 1) / v->out[1]);
    for (int d = 0; d < 2; d++) {
        s->skip[d] = v->kernel[d] == 1 ? v->stride[d] : 1; // nobody reads what lies between
        s->step[d] = v->stride[d] / s->skip[d];
        s->span[d] = (v->kernel[d] - 1) * v->dilation[d] + 1;
    }
    s->width = (v->out[1] - 1) * s->step[1] + s->span[1];
    int64_t images = tr__min(v->n, (s->rows + v->out[0] - 1) / v->out[0] + 1);
    s->pixels = s->width * (s->rows * s->step[0] + images * s->span[0]);
    s->tile_step = ((s->pixels * MR + 2 + 15) / 16 | 1) * 16; // an odd number of cache lines: tiles lie in different sets
    s->to_row = v->dilation[0] * s->width * MR;
    s->to_column = v->dilation[1] * MR;
    if (s->pixel) {
        s->tile_step = MR;
        s->to_row = v->dilation[0] * v->size[1] * s->pixel;
    }
}

/* In how many parts tiles are summed up: not that each thread packs all of the image, where it needn't. */
static int64_t parts_of(const sum *s, int64_t threads) {
    int64_t wide = wide_of(s->panels);
    if (!s->pixel && s->to.n % threads && s->tiles >= PART * threads && 2 * s->v->ci >= s->v->co)
        return threads;
    return tr__min(s->tiles, upward(threads, wide * s->to.n));
}

/* pixel: 0 or, of images that are read where they lie, floats from a pixel to the next. */
static tr_status by_weights(const tr_kernel_call *c, const tr__conv *v, int64_t pixel) {
    sum s = {.v = v, .pixel = pixel, .lies = shape_of(v), .taps = v->kernel[0] * v->kernel[1],
             .tiles = (v->ci + MR - 1) / MR, .panels = v->co / NR, .direct = v->co / NR <= WIDE};
    int64_t all = v->n * v->out[0], wide = wide_of(s.panels);
    lay_out(&s);
    TR_TRY(take_partials(c, v, tr__min(SHARES / wide, all * v->out[1] / SHARE), &s.to));
    s.parts = parts_of(&s, c->ctx->threads);
    size_t floats = (size_t) ((s.tiles / s.parts + 1) * s.tile_step + (s.direct ? 0 : s.panels * s.rows * v->out[1] * NR));
    s.per_thread = (floats * sizeof(float) + (size_t) (s.rows * v->out[1]) * sizeof(int32_t) + 127) / 64 * 64;
    int64_t units = s.to.n * s.parts * wide, work = all / s.to.n * v->out[1] * s.taps * s.tiles / s.parts * WIDE;
    int64_t grain = tr__max(1, 4 * TR__GRAIN / tr__max(1, work));
    s.scratch = tr__scratch(c, (size_t) tr__parallel_width(c->ctx, units, grain) * s.per_thread);
    if (!s.scratch)
        return TR_E_NOMEM;
    tr__parallel(c->ctx, units, grain, sum_units, &s);
    add_partials(c, &s.to);
    return TR_OK;
}

/* src of few channels with its border's zeros, channels last: as the convolution `many` of an image without a border, whose
 * pixels have the channels that a row of a filter reads, and overlap; `pixel` floats from one to the next. */
typedef struct bordered {
    const tr__conv *v;
    tr__conv many;
    float *to;
    int64_t pixel;
} bordered;

static void border_rows(void *env, int64_t begin, int64_t end, int thread) {
    const bordered *b = env;
    const tr__conv *v = b->v;
    const int64_t *size = b->many.size, *s = v->src_strides;
    for (int64_t row = begin; row < end; row++) {
        int64_t y = row % size[0] - v->padding[0], first = v->padding[1], n = tr__min(v->size[1], size[1] - first);
        float *to = b->to + row * size[1] * v->ci;
        memset(to, 0, (size_t) (size[1] * v->ci) * sizeof *to);
        for (int64_t c = 0; y >= 0 && y < v->size[0] && c < v->ci; c++) {
            const float *from = v->src + row / size[0] * s[0] + c * s[1] + y * s[2];
            for (int64_t x = 0; x < n; x++)
                to[(first + x) * v->ci + c] = from[x * s[3]];
        }
    }
}

static tr_status border(const tr_kernel_call *c, const tr__conv *v, bordered *b) {
    *b = (bordered){.v = v, .many = *v, .pixel = v->ci};
    b->many.ci = v->kernel[1] * v->ci;
    b->many.kernel[1] = 1;
    for (int d = 0; d < 2; d++) {
        b->many.size[d] = (v->out[d] - 1) * v->stride[d] + (v->kernel[d] - 1) * v->dilation[d] + 1;
        b->many.padding[d] = 0;
    }
    int64_t row = b->many.size[1] * v->ci, rows = v->n * b->many.size[0];
    b->many.src = b->to = tr__scratch(c, (size_t) (rows * row) * sizeof(float));
    if (!b->to)
        return TR_E_NOMEM;
    tr__parallel(c->ctx, rows, tr__max(1, TR__GRAIN / row), border_rows, b);
    return TR_OK;
}

/* Of few channels. */
static tr_status by_narrow_weights(const tr_kernel_call *c, const tr__conv *v) {
    bordered b;
    TR_TRY(border(c, v, &b));
    return by_weights(c, &b.many, b.pixel);
}

/* By the weights: is every pixel read by one tap, none beyond a border, and do they lie in different places of a near cache? */
static bool is_read_once(const tr__conv *v) {
    return v->kernel[0] * v->kernel[1] == 1 && v->padding[0] + v->padding[1] == 0 && v->stride[1] * v->ci < SETS;
}

tr_status TR__SUFFIXED(tr__convolve)(const tr_kernel_call *c, tr_op op, const tr__conv *v) {
    bool done;
    TR_TRY(TR__SUFFIXED(tr__convolve_squares)(c, op, v, &done));
    return done                               ? TR_OK
           : op == TR_OP_conv2d               ? forward(c, v)
           : op == TR_OP_conv2d_backward_data ? by_image(c, v)
           : v->ci % NR == 0                  ? by_weights(c, v, is_read_once(v) ? v->ci : 0)
                                              : by_narrow_weights(c, v);
}
#endif
