/* isa_conv.c - convolutions of float32 images that lie channels last, and their derivatives, as products of small matrices.
 *
 * Weights come in panels: [CO / 16, KH, KW, CI, 16], the library's Acdb16a. Forward is, for a block of output pixels, the sum
 * over taps and channels of (pixels by channels) times (channels by a panel), and needs no copy of the image: the rows of a
 * product are pointers to pixels, those beyond the border point to zeros. The derivative by the image is the same over the
 * output's gradient with panels of the transposed weights; where the stride is s, pixels of equal remainder mod s have the
 * same taps, and make s * s products. The derivative by the weights sums over pixels: a block's pixels are packed by six
 * channels, the gradient's by panels, and each tap takes its pixels by index.
 *
 * Every sum is made in an order that depends on the sizes alone, not on the number of threads.
 *
 * oneDNN's kernels take twice as long with AVX2, and with AVX-512 a sixth longer (docs/performance.md). The tile in registers
 * is 6 rows by 16 columns there, by 64 here. */
#include "exec/kernels/kernels.h"

#if TR_ISA_LEVEL >= 3
#include "exec/kernels/isa_tile.h"

enum {
    NR = TR__CONV_PANEL,
    MR = 6,
    VECTORS = NR / VN_F, /* of a panel */
#if TR_ISA_LEVEL >= 4
    WIDE = 4,     /* panels that a tile in registers takes at most */
    BLOCK = 192,  /* pixels, at most, whose part of the image stays in the cache; a multiple of MR */
    CHUNK = 1024, /* channels by taps of a panel that stay in a near cache */
    SUM = 128,    /* pixels, at least, that the weights' derivative sums up in registers */
#else
    WIDE = 1,
    BLOCK = 96,
    CHUNK = 256,
    SUM = 256,
#endif
    UNITS = 32, /* of work, at least, if there are panels enough */
};

_Static_assert(WIDE == 1 || VECTORS == 1, "a tile is one panel of several vectors or several of one");

/* A tile: MR rows of WIDE panels. Loops over it are unrolled; R and P are constants wherever it is used. */
typedef vF tile[MR][WIDE * VECTORS];
#define EACH_ROW _Pragma("GCC unroll 6") for (int r = 0; r < R; r++)
/* From a row's vector to the next, panels being so far apart. */
#define STEP(panels) (WIDE == 1 ? VN_F : (panels))

/* The functions of a tile of R rows and P panels: name_of[P][R]. */
#define ROWS_OF(TILE, P) TILE(1, P) TILE(2, P) TILE(3, P) TILE(4, P) TILE(5, P) TILE(6, P)
#define ROW_OF(name, P)  {NULL, name##_1_##P, name##_2_##P, name##_3_##P, name##_4_##P, name##_5_##P, name##_6_##P}
#if TR_ISA_LEVEL >= 4
#define TILES(TILE)    ROWS_OF(TILE, 1) ROWS_OF(TILE, 2) ROWS_OF(TILE, 3) ROWS_OF(TILE, 4)
#define TABLE_OF(name) {{NULL}, ROW_OF(name, 1), ROW_OF(name, 2), ROW_OF(name, 3), ROW_OF(name, 4)}
#else
#define TILES(TILE)    ROWS_OF(TILE, 1)
#define TABLE_OF(name) {{NULL}, ROW_OF(name, 1)}
#endif

/* Row r of a tile: the products of a[t * BLOCK + r][from .. from + k] with b[t] [k, NR] and the panels behind it, summed over
 * taps t, to (or added to) c[r][column ..]. Panels of b lie b_step apart. */
typedef struct taps {
    int n;
    int64_t from, k, column, b_step;
    const float *const *a, *const *b;
    float *const *c;
    bool add;
} taps;

ALWAYS void taps_times_panels(int R, int P, const taps *t) {
    tile acc = {{{0}}};
    const float *const *a = t->a;
    int64_t step = STEP(t->b_step);
    for (int tap = 0; tap < t->n; tap++, a += BLOCK) {
        const float *row[MR], *panel = t->b[tap] + t->from * NR;
        EACH_ROW row[r] = a[r] + t->from;
        for (int64_t i = 0; i < t->k; i++, panel += NR) {
            vF columns[WIDE * VECTORS];
            tile_load(P * VECTORS, columns, panel, step);
            EACH_ROW tile_add(P * VECTORS, acc[r], row[r][i], columns);
        }
    }
    EACH_ROW tile_store(P * VECTORS, acc[r], t->c[r] + t->column, STEP(NR), t->add);
}
#define TAPS(R, P)                               \
    static void taps_##R##_##P(const taps *t) {  \
        taps_times_panels(R, P, t);              \
    }
TILES(TAPS)
static void (*const taps_of[WIDE + 1][MR + 1])(const taps *) = TABLE_OF(taps);

/* ------------------------------------------------------------------------------------------ forward, and by the image */

/* A grid of pixels [n, gh, gw], each the sum over taps. Grid pixel (i, j) is pixel (i * to_step + to_from, ...) of `to`, and
 * reads pixel (i * step + off of the tap, ...) of `from`. Index 0: height, 1: width. */
typedef struct gather {
    const tr__conv *v;
    const float *from, *panels, *bias;
    float *to;
    int64_t grid[2], step[2], from_size[2], to_size[2], to_step[2], to_from[2];
    int64_t channels, columns; /* of from, to */
    int n_taps, all_taps;
    int64_t *off[2]; /* [n_taps] */
    int *tap;        /* [n_taps] which of the weights' */
    const float *zeros; /* [channels] */
    int64_t block;  /* pixels at a time */
    int64_t groups; /* of panels, a unit of work each, for a block of pixels */
    void *scratch;
    size_t per_thread;
} gather;

/* Tiles' widths in so many panels. */
static int64_t wide_of(int64_t panels) {
    return (panels + WIDE - 1) / WIDE;
}

static int64_t panels_of(const gather *g) {
    return g->columns / NR;
}

/* rows [n_taps, BLOCK], to [BLOCK]: where the block's pixels begin. */
static void find_rows(const gather *g, int64_t first, int64_t count, const float **rows, float **to) {
    int64_t j = first % g->grid[1], i = first / g->grid[1] % g->grid[0], n = first / g->grid[1] / g->grid[0];
    for (int64_t m = 0; m < count; m++) {
        const float *image = g->from + n * g->from_size[0] * g->from_size[1] * g->channels;
        for (int t = 0; t < g->n_taps; t++) {
            int64_t y = i * g->step[0] + g->off[0][t], x = j * g->step[1] + g->off[1][t];
            bool inside = y >= 0 && y < g->from_size[0] && x >= 0 && x < g->from_size[1];
            rows[t * BLOCK + m] = inside ? image + (y * g->from_size[1] + x) * g->channels : g->zeros;
        }
        to[m] = g->to + ((n * g->to_size[0] + i * g->to_step[0] + g->to_from[0]) * g->to_size[1] + j * g->to_step[1] +
                         g->to_from[1]) * g->columns;
        if (++j == g->grid[1]) {
            j = 0;
            if (++i == g->grid[0]) {
                i = 0;
                n++;
            }
        }
    }
}

static void prepare_rows(const gather *g, int64_t count, float *const *to, int64_t column, int64_t columns) {
    for (int64_t m = 0; m < count; m++)
        if (g->bias)
            memcpy(to[m] + column, g->bias + column, (size_t) columns * sizeof(float));
        else
            memset(to[m] + column, 0, (size_t) columns * sizeof(float));
}

/* Some panels of a block of pixels. */
static void gather_unit(const gather *g, int64_t block, int64_t group, const float **rows, float **to) {
    int64_t first = block * g->block, pixels = g->v->n * g->grid[0] * g->grid[1], count = tr__min(g->block, pixels - first);
    int64_t wide = wide_of(panels_of(g));
    int64_t begin = group * wide / g->groups * WIDE, end = tr__min(panels_of(g), (group + 1) * wide / g->groups * WIDE);
    find_rows(g, first, count, rows, to);
    bool add = g->bias || g->n_taps == 0;
    if (add)
        prepare_rows(g, count, to, begin * NR, (end - begin) * NR);
    int64_t pieces = (g->channels + CHUNK - 1) / CHUNK;
    int at_once = (int) tr__max(1, CHUNK / g->channels);
    const float *b[CHUNK / TR__CONV_PANEL]; // channels are a multiple of it
    taps k = {.b = b, .b_step = g->all_taps * g->channels * NR};
    for (int t = 0; t < g->n_taps; t += at_once)
        for (int64_t p = 0; p < pieces; p++) {
            k.n = (int) tr__min(at_once, g->n_taps - t);
            k.from = p * g->channels / pieces;
            k.k = (p + 1) * g->channels / pieces - k.from;
            k.add = add;
            for (int64_t panel = begin, wide; panel < end; panel += wide) {
                wide = tr__min(WIDE, end - panel);
                k.column = panel * NR;
                for (int i = 0; i < k.n; i++)
                    b[i] = g->panels + (panel * g->all_taps + g->tap[t + i]) * g->channels * NR;
                for (int64_t m = 0; m < count; m += MR) {
                    k.a = rows + t * BLOCK + m;
                    k.c = to + m;
                    taps_of[wide][tr__min(MR, count - m)](&k);
                }
            }
            add = true;
        }
}

static void gather_units(void *env, int64_t begin, int64_t end, int thread) {
    const gather *g = env;
    char *own = (char *) g->scratch + (size_t) thread * g->per_thread;
    const float **rows = (const float **) (void *) own;
    float **to = (float **) (void *) (rows + g->n_taps * BLOCK);
    for (int64_t u = begin; u < end; u++)
        gather_unit(g, u / g->groups, u % g->groups, rows, to);
}

static tr_status run_gather(const tr_kernel_call *c, gather *g) {
    int64_t pixels = g->v->n * g->grid[0] * g->grid[1], blocks = (pixels + BLOCK - 1) / BLOCK;
    g->block = ((pixels + blocks - 1) / blocks + MR - 1) / MR * MR; // all alike, but for the last
    blocks = (pixels + g->block - 1) / g->block;
    int64_t wanted = tr__max(UNITS, 4 * c->ctx->threads);
    g->groups = tr__min(wide_of(panels_of(g)), tr__max(1, wanted / tr__max(1, blocks)));
    int64_t work = tr__min(g->block, pixels) * g->n_taps * g->channels * g->columns / g->groups / NR;
    int64_t units = blocks * g->groups, grain = tr__max(1, 4 * TR__GRAIN / tr__max(1, work));
    g->per_thread = (size_t) (g->n_taps + 1) * BLOCK * sizeof(void *) + 64;
    g->scratch = tr__scratch(c, (size_t) tr__parallel_width(c->ctx, units, grain) * g->per_thread);
    if (!g->scratch)
        return TR_E_NOMEM;
    tr__parallel_units(c->ctx, units, grain, gather_units, g);
    return TR_OK;
}

/* Zeros as many as a pixel has channels, and room for the taps' offsets. */
static tr_status take_room(const tr_kernel_call *c, gather *g, int taps) {
    size_t zeros = (size_t) g->channels * sizeof(float);
    char *room = tr__scratch(c, zeros + (size_t) taps * (2 * sizeof(int64_t) + sizeof(int)));
    if (!room)
        return TR_E_NOMEM;
    memset(room, 0, zeros);
    g->zeros = (const float *) (void *) room;
    g->off[0] = (int64_t *) (void *) (room + zeros);
    g->off[1] = g->off[0] + taps;
    g->tap = (int *) (void *) (g->off[1] + taps);
    return TR_OK;
}

static tr_status forward(const tr_kernel_call *c, const tr__conv *v) {
    gather g = {.v = v, .from = v->src, .panels = v->weights, .bias = v->bias, .to = v->dst, .channels = v->ci, .columns = v->co,
                .all_taps = (int) (v->kernel[0] * v->kernel[1])};
    TR_TRY(take_room(c, &g, g.all_taps));
    for (int d = 0; d < 2; d++) {
        g.grid[d] = g.to_size[d] = v->out[d];
        g.from_size[d] = v->size[d];
        g.step[d] = v->stride[d];
        g.to_step[d] = 1;
    }
    for (int64_t y = 0; y < v->kernel[0]; y++)
        for (int64_t x = 0; x < v->kernel[1]; x++, g.n_taps++) {
            g.tap[g.n_taps] = g.n_taps;
            g.off[0][g.n_taps] = y * v->dilation[0] - v->padding[0];
            g.off[1][g.n_taps] = x * v->dilation[1] - v->padding[1];
        }
    return run_gather(c, &g);
}

/* Panels of the transposed weights: [CI / NR, taps, CO, NR]. */
typedef struct transpose {
    const float *from;
    float *to;
    int64_t ci, co, taps;
} transpose;

/* A block of VN_F rows and columns; rows lie NR apart. */
static void transpose_block(float *to, const float *from) {
    vF x[VN_F];
    for (int r = 0; r < VN_F; r++)
        memcpy(&x[r], from + r * NR, sizeof x[r]);
    turn(x);
    for (int r = 0; r < VN_F; r++)
        memcpy(to + r * NR, &x[r], sizeof x[r]);
}

static void transpose_panels(void *env, int64_t begin, int64_t end, int thread) {
    const transpose *t = env;
    for (int64_t u = begin; u < end; u++) {
        int64_t panel = u / t->taps, tap = u % t->taps;
        for (int64_t o = 0; o < t->co; o += NR) {
            const float *from = t->from + ((o / NR * t->taps + tap) * t->ci + panel * NR) * NR;
            float *to = t->to + ((panel * t->taps + tap) * t->co + o) * NR;
            for (int i = 0; i < NR; i += VN_F)
                for (int k = 0; k < NR; k += VN_F)
                    transpose_block(to + i * NR + k, from + k * NR + i);
        }
    }
}

static tr_status by_image(const tr_kernel_call *c, const tr__conv *v) {
    int taps = (int) (v->kernel[0] * v->kernel[1]);
    transpose t = {.from = v->weights, .ci = v->ci, .co = v->co, .taps = taps};
    t.to = tr__scratch(c, (size_t) (taps * v->ci * v->co) * sizeof(float));
    if (!t.to)
        return TR_E_NOMEM;
    tr__parallel(c->ctx, v->ci / NR * taps, tr__max(1, TR__GRAIN / (v->co * NR)), transpose_panels, &t);
    gather g = {.v = v, .from = v->dst, .panels = t.to, .to = (float *) v->src, .channels = v->co, .columns = v->ci, .all_taps = taps};
    TR_TRY(take_room(c, &g, taps));
    int64_t at[2];
    for (at[0] = 0; at[0] < v->stride[0]; at[0]++)
        for (at[1] = 0; at[1] < v->stride[1]; at[1]++) {
            for (int d = 0; d < 2; d++) {
                g.grid[d] = at[d] < v->size[d] ? (v->size[d] - at[d] + v->stride[d] - 1) / v->stride[d] : 0;
                g.from_size[d] = v->out[d];
                g.to_size[d] = v->size[d];
                g.step[d] = 1;
                g.to_step[d] = v->stride[d];
                g.to_from[d] = at[d];
            }
            if (!g.grid[0] || !g.grid[1])
                continue;
            g.n_taps = 0;
            for (int64_t y = 0; y < v->kernel[0]; y++)
                for (int64_t x = 0; x < v->kernel[1]; x++) {
                    int64_t oy = at[0] + v->padding[0] - y * v->dilation[0], ox = at[1] + v->padding[1] - x * v->dilation[1];
                    if (oy % v->stride[0] || ox % v->stride[1])
                        continue;
                    g.tap[g.n_taps] = (int) (y * v->kernel[1] + x);
                    g.off[0][g.n_taps] = oy / v->stride[0];
                    g.off[1][g.n_taps++] = ox / v->stride[1];
                }
            TR_TRY(run_gather(c, &g));
        }
    return TR_OK;
}

/* ------------------------------------------------------------------------------------------ by the weights */

typedef struct sum {
    const tr__conv *v;
    float *weights; /* panels */
    int64_t taps, tiles, panels, rows; /* tiles of MR input channels; output rows [n, out[0]] of a block */
    int64_t parts;                     /* that the tiles are cut into */
    bool direct;                       /* no tap reads beyond the border: src is read where it lies */
    int64_t pixels;                    /* a block's, of src, that are copied */
    int64_t tile_step;                 /* from a tile of a block's pixels to the next, in floats */
    char *scratch;
    size_t per_thread;
} sum;

/* Row r of a tile: the sum over pixels p of a[index[p] + r] times b[p] [NR] and the panels behind it, to (or added to) c [., NR].
 * Panels of b lie b_step apart, of c c_step. */
typedef struct pixels {
    int64_t n, b_step, c_step;
    const float *a, *b;
    const int32_t *index;
    float *c;
    bool add;
} pixels;

ALWAYS void pixels_times_panels(int R, int P, const pixels *t) {
    tile acc = {{{0}}};
    const float *a = t->a, *b = t->b;
    const int32_t *index = t->index;
    int64_t step = STEP(t->b_step);
    for (int64_t p = 0; p < t->n; p++, b += NR) {
        const float *x = a + index[p];
        vF columns[WIDE * VECTORS];
        tile_load(P * VECTORS, columns, b, step);
        EACH_ROW tile_add(P * VECTORS, acc[r], x[r], columns);
    }
    EACH_ROW tile_store(P * VECTORS, acc[r], t->c + r * NR, STEP(t->c_step), t->add);
}
#define PIXELS(R, P)                                \
    static void pixels_##R##_##P(const pixels *t) { \
        pixels_times_panels(R, P, t);               \
    }
TILES(PIXELS)
static void (*const pixels_of[WIDE + 1][MR + 1])(const pixels *) = TABLE_OF(pixels);

/* A block of output rows: which pixels of src each tap reads, by their number in the block's copy; if direct, by their place
 * behind `base`. */
typedef struct block {
    int64_t n;      /* output pixels */
    int64_t pixels; /* copied */
    int32_t *index; /* [taps, n], times MR; if direct, in floats */
    const float **from; /* [pixels] */
    const float *base;
} block;

/* The pixels that a single tap reads. */
static void find_places(const sum *s, int64_t first, int64_t last, block *k) {
    const tr__conv *v = s->v;
    int64_t h = v->size[0], w = v->size[1], oh = v->out[0], ow = v->out[1], from = first / oh;
    int32_t *index = k->index;
    k->n = (last - first) * ow;
    k->base = v->src + from * h * w * v->ci;
    for (int64_t row = first; row < last; row++)
        for (int64_t x = 0; x < ow; x++)
            *index++ = (int32_t) ((((row / oh - from) * h + row % oh * v->stride[0]) * w + x * v->stride[1]) * v->ci);
}

/* The pixels of src between the first and the last row that an image's output rows read. */
static void find_pixels(const sum *s, int64_t first, int64_t last, block *k) {
    const tr__conv *v = s->v;
    int64_t h = v->size[0], w = v->size[1], oh = v->out[0], ow = v->out[1], at = 0;
    k->n = (last - first) * ow;
    k->pixels = 1; // the first is zero
    for (int64_t row = first; row < last;) {
        int64_t image = row / oh, end = tr__min(last, (image + 1) * oh);
        const float *from = v->src + image * h * w * v->ci;
        int64_t low = tr__max(0, row % oh * v->stride[0] - v->padding[0]);
        int64_t high = tr__min(h, (end - 1 - image * oh) * v->stride[0] - v->padding[0] + (v->kernel[0] - 1) * v->dilation[0] + 1);
        int64_t base = k->pixels, begin = row % oh, stop = end - image * oh;
        for (int64_t p = low * w; p < high * w; p++)
            k->from[k->pixels++] = from + p * v->ci;
        for (int64_t t = 0; t < s->taps; t++) {
            int32_t *index = k->index + t * k->n + at;
            int64_t dy = t / v->kernel[1] * v->dilation[0] - v->padding[0], dx = t % v->kernel[1] * v->dilation[1] - v->padding[1];
            for (int64_t y = begin; y < stop; y++)
                for (int64_t x = 0; x < ow; x++) {
                    int64_t iy = y * v->stride[0] + dy, ix = x * v->stride[1] + dx;
                    bool inside = iy >= 0 && iy < h && ix >= 0 && ix < w;
                    *index++ = (int32_t) (inside ? base + (iy - low) * w + ix : 0) * MR;
                }
        }
        at += (end - row) * ow;
        row = end;
    }
}

/* to [tiles, pixels, MR], with steps of tile_step, of the channels of tiles begin .. end. */
static void pack_pixels(const sum *s, const block *k, int64_t begin, int64_t end, float *to) {
    for (int64_t p = 0; p < k->pixels; p++)
        for (int64_t t = begin; t < end; t++) {
            float *o = to + (t - begin) * s->tile_step + p * MR;
            int64_t n = tr__min(MR, s->v->ci - t * MR);
            if (p && n == MR) {
                memcpy(o, k->from[p] + t * MR, MR * sizeof *o);
                continue;
            }
            memset(o, 0, MR * sizeof *o);
            if (p)
                memcpy(o, k->from[p] + t * MR, (size_t) n * sizeof *o);
        }
}

/* to [panels, n, NR]. */
static void pack_gradient(const sum *s, const block *k, int64_t first, int64_t begin, int64_t end, float *to) {
    const float *from = s->v->dst + first * s->v->out[1] * s->v->co;
    for (int64_t p = 0; p < k->n; p++, from += s->v->co)
        for (int64_t panel = begin; panel < end; panel++)
            memcpy(to + ((panel - begin) * k->n + p) * NR, from + panel * NR, NR * sizeof *to);
}

/* Memory that is read soon, brought nearer a few lines at a time. */
typedef struct stream {
    const char *at, *end;
} stream;
enum { LINE = 64 };

static void fetch(stream *s, int64_t bytes) {
    const char *end = s->at + tr__min(bytes, s->end - s->at);
    for (; s->at < end; s->at += LINE)
        __builtin_prefetch(s->at, 0, 2);
}

static stream rows_ahead(const float *from, int64_t first, int64_t last, int64_t floats) {
    return (stream){(const char *) (from + first * floats), (const char *) (from + last * floats)};
}

/* Panels begin .. end of part `part` of the tiles. */
static void sum_part(const sum *s, int64_t part, int64_t begin, int64_t end, char *own) {
    const tr__conv *v = s->v;
    int64_t low = part * s->tiles / s->parts, high = (part + 1) * s->tiles / s->parts, all = v->n * v->out[0];
    block k = {.from = (const float **) (void *) own};
    float *x = (float *) (void *) (k.from + s->pixels);
    float *g = x + (s->tiles / s->parts + 1) * s->tile_step;
    k.index = (int32_t *) (void *) (g + s->panels * s->rows * v->out[1] * NR);
    for (int64_t first = 0; first < all; first += s->rows) {
        int64_t last = tr__min(all, first + s->rows);
        if (s->direct) {
            find_places(s, first, last, &k);
        } else {
            find_pixels(s, first, last, &k);
            pack_pixels(s, &k, low, high, x);
        }
        pack_gradient(s, &k, first, begin, end, g);
        // The next block, a bit with each tile.
        int64_t next = tr__min(all, last + s->rows), tiles = wide_of(end - begin) * (high - low) * s->taps;
        stream gradient = rows_ahead(v->dst, last, next, v->out[1] * v->co);
        stream image = rows_ahead(v->src, last, s->direct && v->stride[0] == 1 ? next : last, v->out[1] * v->ci);
        int64_t g_bytes = (gradient.end - gradient.at) / tiles + LINE, x_bytes = (image.end - image.at) / tiles + LINE;
        pixels p = {.n = k.n, .b_step = k.n * NR, .c_step = s->taps * v->ci * NR, .add = first > 0};
        for (int64_t panel = begin, wide; panel < end; panel += wide) {
            wide = tr__min(WIDE, end - panel);
            p.b = g + (panel - begin) * p.b_step;
            for (int64_t t = low; t < high; t++)
                for (int64_t tap = 0; tap < s->taps; tap++) {
                    p.a = s->direct ? k.base + t * MR : x + (t - low) * s->tile_step;
                    p.index = k.index + tap * k.n;
                    p.c = s->weights + ((panel * s->taps + tap) * v->ci + t * MR) * NR;
                    fetch(&gradient, g_bytes);
                    fetch(&image, x_bytes);
                    pixels_of[wide][tr__min(MR, v->ci - t * MR)](&p);
                }
        }
    }
}

static void sum_units(void *env, int64_t begin, int64_t end, int thread) {
    const sum *s = env;
    int64_t wide = wide_of(s->panels);
    while (begin < end) {
        int64_t part = begin / wide, stop = tr__min(end, (part + 1) * wide);
        sum_part(s, part, (begin - part * wide) * WIDE, tr__min(s->panels, (stop - part * wide) * WIDE),
                 s->scratch + (size_t) thread * s->per_thread);
        begin = stop;
    }
}

static tr_status by_weights(const tr_kernel_call *c, const tr__conv *v) {
    sum s = {.v = v, .weights = (float *) v->weights, .taps = v->kernel[0] * v->kernel[1], .tiles = (v->ci + MR - 1) / MR,
             .panels = v->co / NR};
    int64_t all = v->n * v->out[0], images;
    s.rows = tr__min(all, (SUM + v->out[1] - 1) / v->out[1]);
    images = (s.rows + v->out[0] - 1) / v->out[0] + 1;
    s.direct = s.taps == 1 && v->padding[0] == 0 && v->padding[1] == 0;
    // Of src: each image's rows, and what taps overlap at both ends.
    if (!s.direct)
        s.pixels = 1 + v->size[1] * tr__min(images * v->size[0], s.rows * v->stride[0] + images * v->kernel[0] * v->dilation[0]);
    s.tile_step = ((s.pixels * MR + 15) / 16 | 1) * 16; // an odd number of cache lines: tiles lie in different sets
    // Each thread packs as little as possible.
    int64_t wide = wide_of(s.panels), few = s.panels < 8 || v->ci > v->co ? 2 : 1;
    s.parts = tr__min(s.tiles, tr__max(few, (c->ctx->threads + wide - 1) / wide));
    size_t floats = (size_t) ((s.tiles / s.parts + 1) * s.tile_step + s.panels * s.rows * v->out[1] * NR);
    s.per_thread = (floats * sizeof(float) + (size_t) s.pixels * sizeof(float *) +
                    (size_t) (s.taps * s.rows * v->out[1]) * sizeof(int32_t) + 127) / 64 * 64;
    int64_t units = s.parts * wide, work = all * v->out[1] * s.taps * s.tiles / s.parts * WIDE;
    int64_t grain = tr__max(1, 4 * TR__GRAIN / tr__max(1, work));
    s.scratch = tr__scratch(c, (size_t) tr__parallel_width(c->ctx, units, grain) * s.per_thread);
    if (!s.scratch)
        return TR_E_NOMEM;
    tr__parallel(c->ctx, units, grain, sum_units, &s);
    return TR_OK;
}

tr_status TR__SUFFIXED(tr__convolve)(const tr_kernel_call *c, tr_op op, const tr__conv *v) {
    return op == TR_OP_conv2d ? forward(c, v) : op == TR_OP_conv2d_backward_data ? by_image(c, v) : by_weights(c, v);
}
#endif
