/* isa_conv_winograd.c - convolutions of float32 with 3x3 filters of stride 1, and their derivatives, by Winograd's F(2x2, 3x3) (Lavin
 * and Gray, "Fast algorithms for convolutional neural networks", 2016): 16 products for 2x2 outputs, where the sums themselves take 36.
 *
 * Outputs are taken in squares of 2x2, each of which reads 4x4 pixels. Of a square of pixels d and a filter g
 *
 *     y = A' ((G g G') * (B' d B)) A    (' transposes, * multiplies element by element)
 *
 * so that at each of 16 points, products are summed over channels: a product of matrices, [squares, channels] by [channels, columns].
 * A and B consist of 0, 1 and -1, G of halves as well. The derivative by the image is the same over the output's gradient, with
 * filters turned over; that by the weights is the transposed map, G' (sum of (A dy A') * (B' d B)) G, whose products sum over
 * squares. A unit of work, some squares by some columns, transforms what it multiplies into a near cache, a few channels at a time.
 *
 * An output hangs on the same pixels as in the sum itself, and the error is that of a sum with a few more terms (docs/performance.md),
 * as long as a filter's weights, and a square's pixels, are of about one size. Where anything is infinite or NaN at last, all is done
 * again by isa_conv.c: differences of infinities would hide where they were, and those of huge numbers overflow.
 *
 * Every sum is made in an order that depends on the sizes alone, not on the number of threads. */
#include "exec/kernels/kernels.h"

#if TR_ISA_LEVEL >= 3
#include "exec/kernels/isa_conv_panels.h"

enum {
    SIDE = 4,          /* of what a square reads */
    OUT = 2,           /* of its outputs */
    KERNEL = 3,        /* of a filter */
    POINTS = SIDE * SIDE,
    TAPS = KERNEL * KERNEL,
    SQUARES = TR_ISA_LEVEL >= 4 ? 96 : 48, /* of a unit, at most, or that the weights' derivative transforms at a time */
    LEAST = 16,        /* of a unit, if there are threads enough */
    PANELS = 4,        /* of a unit, on either side */
    DEPTH = PANELS * NR, /* channels that are transformed at a time */
    SHARES = 8,        /* units of the weights' derivative, at least, if there are squares enough */
    SHARE = 128,       /* squares of one, at least */
};

/* ------------------------------------------------------------------------------------------ transforms */

/* Of four, three or two vectors, `step` apart, in one dimension. */
ALWAYS void spread_pixels(vF *x, int step) { /* B' x */
    vF a = x[0] - x[2 * step], b = x[step] + x[2 * step], c = x[2 * step] - x[step], d = x[step] - x[3 * step];
    x[0] = a, x[step] = b, x[2 * step] = c, x[3 * step] = d;
}
ALWAYS void spread_filter(vF *to, int to_step, const vF *x, int step) { /* G x */
    vF ends = (x[0] + x[2 * step]) * 0.5f, middle = x[step] * 0.5f;
    to[0] = x[0], to[to_step] = ends + middle, to[2 * to_step] = ends - middle, to[3 * to_step] = x[2 * step];
}
ALWAYS void spread_outputs(vF *to, int to_step, const vF *x, int step) { /* A x */
    to[0] = x[0], to[to_step] = x[0] + x[step], to[2 * to_step] = x[0] - x[step], to[3 * to_step] = -x[step];
}
ALWAYS void gather_outputs(vF *to, int to_step, const vF *x, int step) { /* A' x */
    vF a = x[step], b = x[2 * step];
    to[0] = x[0] + (a + b), to[to_step] = (a - b) - x[3 * step];
}
ALWAYS void gather_filter(vF *to, int to_step, const vF *x, int step) { /* G' x */
    vF a = x[step] * 0.5f, b = x[2 * step] * 0.5f;
    to[0] = x[0] + (a + b), to[to_step] = a - b, to[2 * to_step] = (a + b) + x[3 * step];
}

#define EACH(i, n) _Pragma("GCC unroll 4") for (int i = 0; i < (n); i++)
#define EACH_TAP   _Pragma("GCC unroll 9") for (int tap = 0; tap < TAPS; tap++)

static int64_t tap_step_of(const shape *weights) {
    return weights->channels * weights->width;
}

/* Of sums of x * 0: is every x finite? */
static bool is_zero(vF x) {
    for (int i = 0; i < VN_F; i++)
        if (x[i] != 0)
            return false;
    return true;
}

/* At each point a matrix [rows, columns], `point` floats apart: an odd number of cache lines, so that they lie in different sets. */
typedef struct points {
    float *at;
    int64_t columns, point;
} points;

static int64_t point_of(int64_t rows, int64_t columns) {
    return (rows * columns / NR | 1) * NR;
}

ALWAYS void store_points(float *to, int64_t point, const vF *x) {
    _Pragma("GCC unroll 16") for (int i = 0; i < POINTS; i++) memcpy(to + i * point, &x[i], sizeof *x);
}
ALWAYS void load_points(vF *x, const float *from, int64_t point) {
    _Pragma("GCC unroll 16") for (int i = 0; i < POINTS; i++) memcpy(&x[i], from + i * point, sizeof *x);
}

/* Images in squares [images, squares[0], squares[1]], of which the first begins at pixel `from`, and each OUT pixels further on. */
typedef struct frame {
    float *at;
    const float *zeros; /* of a pixel */
    int64_t size[2], channels, squares[2], from[2];
} frame;

static int64_t squares_in(const frame *f) {
    return f->squares[0] * f->squares[1];
}

/* Where the side * side pixels of a square are; beyond a border `outside`. */
static void find_pixels(const frame *f, int64_t square, int side, float *outside, float **pixels) {
    int64_t image = square / squares_in(f), i = square / f->squares[1] % f->squares[0], j = square % f->squares[1];
    int64_t top = f->from[0] + OUT * i, left = f->from[1] + OUT * j;
    for (int y = 0; y < side; y++)
        for (int x = 0; x < side; x++) {
            int64_t row = top + y, column = left + x;
            bool inside = row >= 0 && row < f->size[0] && column >= 0 && column < f->size[1];
            pixels[y * side + x] = inside ? f->at + ((image * f->size[0] + row) * f->size[1] + column) * f->channels : outside;
        }
}

/* Channels from .. from + k of squares first .. first + count, to rows of points. What the next square reads beyond this one is
 * fetched. */
static void spread_squares(const frame *f, int64_t first, int64_t count, int64_t from, int64_t k, const points *to) {
    float *pixels[POINTS], *next[POINTS];
    find_pixels(f, first, SIDE, (float *) f->zeros, next);
    for (int64_t s = 0; s < count; s++) {
        memcpy(pixels, next, sizeof pixels);
        find_pixels(f, tr__min(first + s + 1, first + count - 1), SIDE, (float *) f->zeros, next);
        float *row = to->at + s * to->columns;
        for (int64_t c = 0; c < k; c += VN_F, row += VN_F) {
            vF x[POINTS];
            EACH(i, SIDE) for (int j = OUT; j < SIDE; j++) __builtin_prefetch(next[i * SIDE + j] + from + c);
            _Pragma("GCC unroll 16") for (int i = 0; i < POINTS; i++) memcpy(&x[i], pixels[i] + from + c, sizeof *x);
            EACH(j, SIDE) spread_pixels(x + j, SIDE);
            EACH(j, SIDE) spread_pixels(x + j * SIDE, 1);
            store_points(row, to->point, x);
        }
    }
}

/* A filter's taps, vectors of columns, to its points. */
ALWAYS void spread_taps(const vF *x, float *to, int64_t point) {
    vF half[SIDE * KERNEL], all[POINTS];
    EACH(j, KERNEL) spread_filter(half + j, KERNEL, x + j, KERNEL);
    EACH(j, SIDE) spread_filter(all + j * SIDE, 1, half + j * KERNEL, 1);
    store_points(to, point, all);
}

/* Rows of a tile: a[r * a_row + i * a_step] times b[i] [P * NR], summed over i < k, to (or added to) c[r * c_row ..]. */
typedef struct product {
    int64_t k, a_row, a_step, c_row;
    const float *a, *b;
    float *c;
    bool add;
} product;

ALWAYS void rows_times_panels(int R, int P, const product *t) {
    tile acc = {{{0}}};
    const float *row[MR], *b = t->b;
    EACH_ROW row[r] = t->a + r * t->a_row;
    for (int64_t i = 0, at = 0; i < t->k; i++, at += t->a_step, b += P * NR) {
        vF columns[WIDE * VECTORS];
        tile_load(P * VECTORS, columns, b, VN_F);
        EACH_ROW tile_add(P * VECTORS, acc[r], row[r][at], columns);
    }
    EACH_ROW tile_store(P * VECTORS, acc[r], t->c + r * t->c_row, VN_F, t->add);
}
#define ROWS(R, P)                                 \
    static void rows_##R##_##P(const product *t) { \
        rows_times_panels(R, P, t);                \
    }
TILES(ROWS)
static void (*const rows_of[WIDE + 1][MR + 1])(const product *) = TABLE_OF(rows);

/* At all points: `rows` of c [., panels * NR] += those of a (p->a_row, p->a_step) times b, which lies by tiles' widths, [p->k, width]. */
static void multiply(const points *a, const points *b, const points *c, int64_t rows, int64_t panels, product p) {
    int64_t tiles = upward(rows, MR);
    p.c_row = c->columns;
    for (int64_t point = 0; point < POINTS; point++)
        for (int64_t panel = 0, wide; panel < panels; panel += wide) {
            wide = tr__min(WIDE, panels - panel);
            p.b = b->at + point * b->point + panel * NR * p.k;
            for (int64_t t = 0; t < tiles; t++) {
                int64_t m = share(t, rows, tiles);
                p.a = a->at + point * a->point + m * p.a_row;
                p.c = c->at + point * c->point + m * c->columns + panel * NR;
                rows_of[wide][share(t + 1, rows, tiles) - m](&p);
            }
        }
}

/* Where row k of panel `panel` begins in what `multiply` takes for b, of so many panels and rows; and from a row to the next. */
static int64_t place_in(int64_t panel, int64_t panels, int64_t rows, int64_t k, int64_t *step) {
    int64_t first = panel / WIDE * WIDE;
    *step = tr__min(WIDE, panels - first) * NR;
    return first * NR * rows + k * *step + (panel - first) * NR;
}

/* ------------------------------------------------------------------------------------------ forward, and by the image */

typedef struct gather {
    frame from, to;       /* to begins at 0 */
    const float *weights, *bias;
    shape lies;           /* weights */
    bool turned;          /* by the image: weights' channels are from's, their columns to's */
    int64_t squares, blocks, groups; /* all; a unit is a block of them by a group of panels */
    bool *odd;            /* [threads]: something that isn't finite was seen */
    tr__rooms rooms;
} gather;

/* Channels from .. from + k of panels begin .. begin + n. */
static void spread_weights(const gather *g, int64_t from, int64_t k, int64_t begin, int64_t n, const points *to) {
    int64_t tap_step = tap_step_of(&g->lies);
    for (int64_t c = 0; c < k; c++)
        for (int64_t panel = 0, step; panel < n; panel++) {
            const float *weights = g->weights + place_of(&g->lies, begin + panel, 0, from + c);
            float *row = to->at + place_in(panel, n, k, c, &step);
            for (int j = 0; j < NR; j += VN_F) {
                vF x[TAPS];
                EACH_TAP memcpy(&x[tap], weights + tap * tap_step + j, sizeof *x);
                spread_taps(x, row + j, to->point);
            }
        }
}

/* The same of filters turned over: 16 channels by 16 columns of each tap at a time, the next ones fetched. */
static void spread_turned(const gather *g, int64_t from, int64_t k, int64_t begin, int64_t n, const points *to) {
    int64_t tap_step = tap_step_of(&g->lies);
    float square[TAPS][NR * NR];
    for (int64_t panel = 0, step; panel < n; panel++)
        for (int64_t c = 0; c < k; c += NR) {
            const float *weights = g->weights + place_of(&g->lies, (from + c) / NR, 0, (begin + panel) * NR);
            for (int64_t tap = 0; tap < TAPS; tap++) {
                for (int r = 0; r < NR; r++)
                    __builtin_prefetch(weights + tap * tap_step + r * g->lies.width + NR);
                transpose_square(square[TAPS - 1 - tap], NR, weights + tap * tap_step, g->lies.width);
            }
            float *row = to->at + place_in(panel, n, k, c, &step);
            for (int64_t i = 0; i < NR; i++, row += step)
                for (int j = 0; j < NR; j += VN_F) {
                    vF x[TAPS];
                    EACH_TAP memcpy(&x[tap], square[tap] + i * NR + j, sizeof *x);
                    spread_taps(x, row + j, to->point);
                }
        }
}

/* Columns begin .. begin + n of a unit's squares. False: some aren't finite. */
static bool gather_squares(const gather *g, int64_t first, int64_t count, int64_t begin, int64_t n, const points *from) {
    float beyond[DEPTH], *pixels[OUT * OUT];
    vF odd = {0};
    for (int64_t s = 0; s < count; s++) {
        find_pixels(&g->to, first + s, OUT, beyond, pixels);
        for (int64_t c = 0; c < n; c += VN_F) {
            vF x[POINTS], half[OUT * SIDE], y[OUT * OUT], bias = {0};
            load_points(x, from->at + s * from->columns + c, from->point);
            if (g->bias)
                memcpy(&bias, g->bias + begin + c, sizeof bias);
            EACH(j, SIDE) gather_outputs(half + j, SIDE, x + j, SIDE);
            EACH(j, OUT) gather_outputs(y + j * OUT, 1, half + j * SIDE, 1);
            EACH(j, OUT * OUT) {
                y[j] += bias;
                odd += y[j] * 0;
                memcpy((pixels[j] == beyond ? beyond : pixels[j] + begin) + c, &y[j], sizeof *y);
            }
        }
    }
    return is_zero(odd);
}

/* Some panels of a block of squares. */
static bool gather_unit(const gather *g, int64_t unit, float *own) {
    int64_t block = unit / g->groups, group = unit % g->groups, panels = g->to.channels / NR;
    int64_t first = share(block, g->squares, g->blocks), count = share(block + 1, g->squares, g->blocks) - first;
    int64_t begin = share(group, panels, g->groups), n = share(group + 1, panels, g->groups) - begin;
    int64_t of_channels = g->from.channels / NR, chunks = upward(of_channels, PANELS);
    points sums = {own, n * NR, point_of(count, n * NR)};
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        int64_t from = share(chunk, of_channels, chunks) * NR, k = share(chunk + 1, of_channels, chunks) * NR - from;
        points a = {sums.at + POINTS * sums.point, k, point_of(count, k)};
        points b = {a.at + POINTS * a.point, n * NR, point_of(k, n * NR)};
        spread_squares(&g->from, first, count, from, k, &a);
        (g->turned ? spread_turned : spread_weights)(g, from, k, begin, n, &b);
        multiply(&a, &b, &sums, count, n, (product){.k = k, .a_row = k, .a_step = 1, .add = chunk > 0});
    }
    return gather_squares(g, first, count, begin * NR, n * NR, &sums);
}

static void gather_units(void *env, int64_t begin, int64_t end, int thread) {
    const gather *g = env;
    for (int64_t u = begin; u < end; u++)
        if (!gather_unit(g, u, (float *) (void *) tr__room_of(&g->rooms, thread)))
            g->odd[thread] = true;
}

/* What both ways to sum need: zeros of a pixel, and a mark for each thread. */
static tr_status take_marks(const tr_kernel_call *c, int64_t channels, const float **zeros, bool **odd) {
    size_t bytes = (size_t) channels * sizeof(float), threads = (size_t) c->ctx->threads;
    char *room = tr__scratch(c, bytes + threads * sizeof(bool));
    if (!room)
        return TR_E_NOMEM;
    memset(room, 0, bytes + threads * sizeof(bool));
    *zeros = (const float *) (void *) room;
    *odd = (bool *) (void *) (room + bytes);
    return TR_OK;
}

static bool all_finite(const tr_kernel_call *c, const bool *odd) {
    bool any = false;
    for (int t = 0; t < c->ctx->threads; t++)
        any |= odd[t];
    return !any;
}

static tr_status run_gather(const tr_kernel_call *c, gather *g, bool *finite) {
    TR_TRY(take_marks(c, g->from.channels, &g->from.zeros, &g->odd));
    g->groups = upward(g->to.channels / NR, PANELS);
    int64_t wanted = upward(4 * c->ctx->threads, g->groups);
    g->blocks = tr__max(upward(g->squares, SQUARES), tr__min(wanted, g->squares / LEAST));
    g->blocks = tr__max(1, g->blocks);
    int64_t count = upward(g->squares, g->blocks);
    size_t bytes = (size_t) (2 * point_of(count, DEPTH) + point_of(DEPTH, DEPTH)) * POINTS * sizeof(float);
    int64_t units = g->blocks * g->groups, grain = tr__max(1, 4 * TR__GRAIN / tr__max(1, count * POINTS * g->from.channels * PANELS));
    TR_TRY(tr__parallel_rooms(c, units, grain, bytes, &g->rooms, gather_units, g));
    *finite = all_finite(c, g->odd);
    return TR_OK;
}

static void lay_squares(frame *f, const int64_t *outputs, int64_t from_y, int64_t from_x) {
    for (int d = 0; d < 2; d++)
        f->squares[d] = upward(outputs[d], OUT);
    f->from[0] = from_y;
    f->from[1] = from_x;
}

static frame image_of(const tr__conv *v) {
    return (frame){.at = (float *) v->src, .size = {v->size[0], v->size[1]}, .channels = v->ci};
}
static frame output_of(const tr__conv *v) {
    return (frame){.at = v->dst, .size = {v->out[0], v->out[1]}, .channels = v->co};
}

static tr_status forward(const tr_kernel_call *c, const tr__conv *v, bool *finite) {
    gather g = {.from = image_of(v), .to = output_of(v), .weights = v->weights, .bias = v->bias, .lies = shape_of(v)};
    lay_squares(&g.from, v->out, -v->padding[0], -v->padding[1]);
    lay_squares(&g.to, v->out, 0, 0);
    g.squares = v->n * squares_in(&g.to);
    return run_gather(c, &g, finite);
}

static tr_status by_image(const tr_kernel_call *c, const tr__conv *v, bool *finite) {
    gather g = {.from = output_of(v), .to = image_of(v), .weights = v->weights, .lies = shape_of(v), .turned = true};
    lay_squares(&g.from, v->size, v->padding[0] - (KERNEL - 1), v->padding[1] - (KERNEL - 1));
    lay_squares(&g.to, v->size, 0, 0);
    g.squares = v->n * squares_in(&g.to);
    return run_gather(c, &g, finite);
}

/* ------------------------------------------------------------------------------------------ by the weights */

typedef struct sum {
    frame from, of;        /* the image; the output's gradient, which begins at 0 */
    partials to;           /* shares of the squares */
    shape lies;            /* the weights */
    int64_t squares, parts, groups; /* a unit is a share by a part of the channels by a group of panels */
    bool *odd;
    tr__rooms rooms;
} sum;

/* The gradient of squares first .. first + count, panels begin .. begin + n, as `multiply` takes it. */
static void spread_gradient(const frame *f, int64_t first, int64_t count, int64_t begin, int64_t n, const points *to) {
    float *pixels[OUT * OUT];
    for (int64_t s = 0; s < count; s++) {
        find_pixels(f, first + s, OUT, (float *) f->zeros, pixels);
        for (int64_t panel = 0, step; panel < n; panel++) {
            float *row = to->at + place_in(panel, n, count, s, &step);
            for (int j = 0; j < NR; j += VN_F) {
                vF x[OUT * OUT], half[SIDE * OUT], all[POINTS];
                EACH(i, OUT * OUT) memcpy(&x[i], pixels[i] + (begin + panel) * NR + j, sizeof *x);
                EACH(i, OUT) spread_outputs(half + i, OUT, x + i, OUT);
                EACH(i, SIDE) spread_outputs(all + i * SIDE, 1, half + i * OUT, 1);
                store_points(row + j, to->point, all);
            }
        }
    }
}

/* Weights of `rows` channels from `channel` on, panels begin .. begin + n. False: some aren't finite. */
static bool gather_weights(const sum *s, float *to, int64_t channel, int64_t rows, int64_t begin, int64_t n, const points *from) {
    vF odd = {0};
    int64_t tap_step = tap_step_of(&s->lies);
    for (int64_t panel = 0; panel < n; panel++) {
        float *weights = to + place_of(&s->lies, begin + panel, 0, channel);
        for (int64_t c = 0; c < rows; c++, weights += s->lies.width)
            for (int j = 0; j < NR; j += VN_F) {
                vF x[POINTS], half[KERNEL * SIDE], y[TAPS];
                load_points(x, from->at + c * from->columns + panel * NR + j, from->point);
                EACH(i, SIDE) gather_filter(half + i, SIDE, x + i, SIDE);
                EACH(i, KERNEL) gather_filter(y + i * KERNEL, 1, half + i * SIDE, 1);
                EACH_TAP {
                    odd += y[tap] * 0;
                    memcpy(weights + tap * tap_step + j, &y[tap], sizeof *y);
                }
            }
    }
    return is_zero(odd);
}

static bool sum_unit(const sum *s, int64_t unit, float *own) {
    int64_t group = unit % s->groups, part = unit / s->groups % s->parts, of = unit / s->groups / s->parts;
    int64_t start = share(of, s->squares, s->to.n), stop = share(of + 1, s->squares, s->to.n);
    int64_t channels = s->from.channels / NR, panels = s->of.channels / NR;
    int64_t channel = share(part, channels, s->parts) * NR, rows = share(part + 1, channels, s->parts) * NR - channel;
    int64_t begin = share(group, panels, s->groups), n = share(group + 1, panels, s->groups) - begin;
    points sums = {own, n * NR, point_of(rows, n * NR)};
    int64_t blocks = tr__max(1, upward(stop - start, SQUARES));
    for (int64_t block = 0; block < blocks; block++) {
        int64_t first = start + share(block, stop - start, blocks), count = start + share(block + 1, stop - start, blocks) - first;
        points a = {sums.at + POINTS * sums.point, rows, point_of(count, rows)};
        points b = {a.at + POINTS * a.point, n * NR, point_of(count, n * NR)};
        spread_squares(&s->from, first, count, channel, rows, &a);
        spread_gradient(&s->of, first, count, begin, n, &b);
        multiply(&a, &b, &sums, rows, n, (product){.k = count, .a_row = 1, .a_step = rows, .add = block > 0});
    }
    return gather_weights(s, partial_of(&s->to, of), channel, rows, begin, n, &sums);
}

static void sum_units(void *env, int64_t begin, int64_t end, int thread) {
    const sum *s = env;
    for (int64_t u = begin; u < end; u++)
        if (!sum_unit(s, u, (float *) (void *) tr__room_of(&s->rooms, thread)))
            s->odd[thread] = true;
}

static tr_status by_weights(const tr_kernel_call *c, const tr__conv *v, bool *finite) {
    sum s = {.from = image_of(v), .of = output_of(v), .lies = shape_of(v)};
    TR_TRY(take_marks(c, tr__max(v->ci, v->co), &s.from.zeros, &s.odd));
    s.of.zeros = s.from.zeros;
    lay_squares(&s.from, v->out, -v->padding[0], -v->padding[1]);
    lay_squares(&s.of, v->out, 0, 0);
    s.squares = v->n * squares_in(&s.of);
    s.parts = upward(v->ci / NR, PANELS);
    s.groups = upward(v->co / NR, PANELS);
    TR_TRY(take_partials(c, v, tr__min(upward(SHARES, s.parts * s.groups), s.squares / SHARE), &s.to));
    size_t bytes = (size_t) (2 * point_of(SQUARES, DEPTH) + point_of(DEPTH, DEPTH)) * POINTS * sizeof(float);
    int64_t units = s.to.n * s.parts * s.groups, work = s.squares / s.to.n * POINTS * DEPTH * PANELS;
    TR_TRY(tr__parallel_rooms(c, units, tr__max(1, 4 * TR__GRAIN / tr__max(1, work)), bytes, &s.rooms, sum_units, &s));
    add_partials(c, &s.to);
    *finite = all_finite(c, s.odd);
    return TR_OK;
}

/* Are there channels and squares enough, and most of the squares' outputs there? */
static bool is_worth_it(const tr__conv *v, const int64_t *outputs) {
    enum { CHANNELS = 32, OUTPUTS = 64 };
    int64_t all = outputs[0] * outputs[1], squares = upward(outputs[0], OUT) * upward(outputs[1], OUT);
    return v->ci >= CHANNELS && v->co >= CHANNELS && v->n * all >= OUTPUTS && 4 * all >= 3 * OUT * OUT * squares;
}

tr_status TR__SUFFIXED(tr__convolve_squares)(const tr_kernel_call *c, tr_op op, const tr__conv *v, bool *done) {
    bool fits = v->ci % NR == 0;
    for (int d = 0; d < 2; d++)
        fits &= v->kernel[d] == KERNEL && v->stride[d] == 1 && v->dilation[d] == 1;
    *done = false;
    if (!fits || !is_worth_it(v, op == TR_OP_conv2d_backward_data ? v->size : v->out))
        return TR_OK;
    return op == TR_OP_conv2d ? forward(c, v, done) : op == TR_OP_conv2d_backward_data ? by_image(c, v, done) : by_weights(c, v, done);
}
#endif
