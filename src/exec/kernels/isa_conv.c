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
 * For AVX2, where oneDNN's kernels reach about 60 % of what these do (docs/performance.md); with AVX-512 the library is the
 * faster one. */
#include "exec/kernels/kernels.h"

#if TR_ISA_LEVEL == 3
#include "exec/kernels/isa_tile.h"

enum {
    NR = TR__CONV_PANEL,
    MR = 6,
    BLOCK = 96, /* pixels, at most, whose part of the image stays in the cache; a multiple of MR */
    CHUNK = 256, /* channels by taps of a panel that stay in the first-level cache */
    UNITS = 32,  /* of work, at least, if there are panels enough */
    SUM = 256,   /* pixels, at least, that the weights' derivative sums up in registers */
};
_Static_assert(NR == 2 * VN_F, "a panel is two vectors wide");

/* c[r] [NR] (+)= the sum over taps t of a[t * BLOCK + r][from .. from + k] b[t] [k, NR]. */
ALWAYS void taps_times_panel(int R, int taps, int64_t from, int64_t k, const float *const *a, const float *const *b,
                             float *const *c, int64_t column, bool add) {
    vF acc[MR][2];
    _Pragma("GCC unroll 6") for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = (vF){0};
    for (int t = 0; t < taps; t++, a += BLOCK) {
        const float *row[MR], *panel = b[t] + from * NR;
        _Pragma("GCC unroll 6") for (int r = 0; r < R; r++) row[r] = a[r] + from;
        for (int64_t i = 0; i < k; i++, panel += NR) {
            vF columns[2];
            tile_load(columns, panel);
            _Pragma("GCC unroll 6") for (int r = 0; r < R; r++) tile_add(acc[r], row[r][i], columns);
        }
    }
    _Pragma("GCC unroll 6") for (int r = 0; r < R; r++) tile_store(acc[r], c[r] + column, add);
}
#define TAPS(R)                                                                                                                  \
    static void taps_##R(int taps, int64_t from, int64_t k, const float *const *a, const float *const *b, float *const *c,       \
                         int64_t column, bool add) {                                                                             \
        taps_times_panel(R, taps, from, k, a, b, c, column, add);                                                                \
    }
TAPS(1)
TAPS(2)
TAPS(3)
TAPS(4)
TAPS(5)
TAPS(6)
static void (*const taps_of[MR + 1])(int, int64_t, int64_t, const float *const *, const float *const *, float *const *, int64_t,
                                     bool) = {NULL, taps_1, taps_2, taps_3, taps_4, taps_5, taps_6};

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
    int64_t begin = group * panels_of(g) / g->groups, end = (group + 1) * panels_of(g) / g->groups;
    find_rows(g, first, count, rows, to);
    bool add = g->bias || g->n_taps == 0;
    if (add)
        prepare_rows(g, count, to, begin * NR, (end - begin) * NR);
    int64_t pieces = (g->channels + CHUNK - 1) / CHUNK;
    int taps = (int) tr__max(1, CHUNK / g->channels);
    const float *b[CHUNK / TR__CONV_PANEL]; // channels are a multiple of it
    for (int t = 0; t < g->n_taps; t += taps)
        for (int64_t p = 0; p < pieces; p++) {
            int n = (int) tr__min(taps, g->n_taps - t);
            int64_t from = p * g->channels / pieces, k = (p + 1) * g->channels / pieces - from;
            for (int64_t panel = begin; panel < end; panel++) {
                for (int i = 0; i < n; i++)
                    b[i] = g->panels + (panel * g->all_taps + g->tap[t + i]) * g->channels * NR;
                int64_t m = 0;
                for (; m + MR <= count; m += MR)
                    taps_6(n, from, k, rows + t * BLOCK + m, b, to + m, panel * NR, add);
                if (m < count)
                    taps_of[count - m](n, from, k, rows + t * BLOCK + m, b, to + m, panel * NR, add);
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
    g->groups = tr__min(panels_of(g), tr__max(1, UNITS / tr__max(1, blocks)));
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

static void transpose_panels(void *env, int64_t begin, int64_t end, int thread) {
    const transpose *t = env;
    for (int64_t u = begin; u < end; u++) {
        int64_t panel = u / t->taps, tap = u % t->taps;
        for (int64_t o = 0; o < t->co; o += NR) {
            const float *from = t->from + ((o / NR * t->taps + tap) * t->ci + panel * NR) * NR;
            float *to = t->to + ((panel * t->taps + tap) * t->co + o) * NR;
            for (int i = 0; i < NR; i++)
                for (int k = 0; k < NR; k++)
                    to[i * NR + k] = from[k * NR + i];
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
    int64_t pixels;                    /* a block's, of src */
    int64_t tile_step;                 /* from a tile of a block's pixels to the next, in floats */
    char *scratch;
    size_t per_thread;
} sum;

/* c [MR, NR] (+)= the sum over pixels p of a[index[p]] [MR] b[p] [NR]. */
static void pixels_times_panel(int64_t n, const float *a, const int32_t *index, const float *b, float *c, bool add) {
    vF acc[MR][2];
    _Pragma("GCC unroll 6") for (int r = 0; r < MR; r++) acc[r][0] = acc[r][1] = (vF){0};
    for (int64_t p = 0; p < n; p++, b += NR) {
        const float *x = a + index[p];
        vF columns[2];
        tile_load(columns, b);
        _Pragma("GCC unroll 6") for (int r = 0; r < MR; r++) tile_add(acc[r], x[r], columns);
    }
    _Pragma("GCC unroll 6") for (int r = 0; r < MR; r++) tile_store(acc[r], c + r * NR, add);
}

/* A block of output rows: which pixels of src each tap reads, by their number in the block's copy. */
typedef struct block {
    int64_t n;      /* output pixels */
    int64_t pixels; /* copied */
    int32_t *index; /* [taps, n], times MR */
    const float **from; /* [pixels] */
} block;

/* The pixels of src between the first and the last row that an image's output rows read; a single tap's pixels only. */
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
        if (s->taps > 1)
            for (int64_t p = low * w; p < high * w; p++)
                k->from[k->pixels++] = from + p * v->ci;
        for (int64_t t = 0; t < s->taps; t++) {
            int32_t *index = k->index + t * k->n + at;
            int64_t dy = t / v->kernel[1] * v->dilation[0] - v->padding[0], dx = t % v->kernel[1] * v->dilation[1] - v->padding[1];
            for (int64_t y = begin; y < stop; y++)
                for (int64_t x = 0; x < ow; x++) {
                    int64_t iy = y * v->stride[0] + dy, ix = x * v->stride[1] + dx, number = 0;
                    if (iy >= 0 && iy < h && ix >= 0 && ix < w) {
                        if (s->taps == 1)
                            k->from[k->pixels++] = from + (iy * w + ix) * v->ci;
                        number = s->taps == 1 ? k->pixels - 1 : base + (iy - low) * w + ix;
                    }
                    *index++ = (int32_t) number * MR;
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

/* Panels begin .. end of part `part` of the tiles. */
static void sum_part(const sum *s, int64_t part, int64_t begin, int64_t end, char *own) {
    const tr__conv *v = s->v;
    int64_t low = part * s->tiles / s->parts, high = (part + 1) * s->tiles / s->parts, all = v->n * v->out[0];
    block k = {.from = (const float **) (void *) own};
    float *x = (float *) (void *) (k.from + s->pixels);
    float *g = x + (s->tiles / s->parts + 1) * s->tile_step;
    k.index = (int32_t *) (void *) (g + s->panels * s->rows * v->out[1] * NR);
    for (int64_t first = 0; first < all; first += s->rows) {
        find_pixels(s, first, tr__min(all, first + s->rows), &k);
        pack_pixels(s, &k, low, high, x);
        pack_gradient(s, &k, first, begin, end, g);
        for (int64_t panel = begin; panel < end; panel++)
            for (int64_t t = low; t < high; t++)
                for (int64_t tap = 0; tap < s->taps; tap++) {
                    float *to = s->weights + ((panel * s->taps + tap) * v->ci + t * MR) * NR, rest[MR * NR];
                    const float *a = x + (t - low) * s->tile_step, *b = g + (panel - begin) * k.n * NR;
                    int64_t n = tr__min(MR, v->ci - t * MR);
                    if (n == MR) {
                        pixels_times_panel(k.n, a, k.index + tap * k.n, b, to, first > 0);
                        continue;
                    }
                    pixels_times_panel(k.n, a, k.index + tap * k.n, b, rest, false);
                    for (int64_t i = 0; i < n * NR; i++)
                        to[i] = first > 0 ? to[i] + rest[i] : rest[i];
                }
    }
}

static void sum_units(void *env, int64_t begin, int64_t end, int thread) {
    const sum *s = env;
    while (begin < end) {
        int64_t part = begin / s->panels, stop = tr__min(end, (part + 1) * s->panels);
        sum_part(s, part, begin - part * s->panels, stop - part * s->panels, s->scratch + (size_t) thread * s->per_thread);
        begin = stop;
    }
}

static tr_status by_weights(const tr_kernel_call *c, const tr__conv *v) {
    sum s = {.v = v, .weights = (float *) v->weights, .taps = v->kernel[0] * v->kernel[1], .tiles = (v->ci + MR - 1) / MR,
             .panels = v->co / NR};
    int64_t all = v->n * v->out[0], images;
    s.rows = tr__min(all, (SUM + v->out[1] - 1) / v->out[1]);
    images = (s.rows + v->out[0] - 1) / v->out[0] + 1;
    // Of src: each image's rows, and what taps overlap at both ends.
    s.pixels = s.taps == 1 ? s.rows * v->out[1] + 1
                           : 1 + v->size[1] * tr__min(images * v->size[0], s.rows * v->stride[0] + images * v->kernel[0] * v->dilation[0]);
    s.tile_step = ((s.pixels * MR + 15) / 16 | 1) * 16; // an odd number of cache lines: tiles lie in different sets
    s.parts = tr__min(s.tiles, s.panels < 8 || v->ci > v->co ? 2 : 1); // each thread packs as little as possible
    size_t floats = (size_t) ((s.tiles / s.parts + 1) * s.tile_step + s.panels * s.rows * v->out[1] * NR);
    s.per_thread = (floats * sizeof(float) + (size_t) s.pixels * sizeof(float *) +
                    (size_t) (s.taps * s.rows * v->out[1]) * sizeof(int32_t) + 127) / 64 * 64;
    int64_t units = s.parts * s.panels, grain = tr__max(1, 4 * TR__GRAIN / tr__max(1, all * v->out[1] * s.taps * s.tiles / s.parts));
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
