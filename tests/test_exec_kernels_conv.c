/* Convolutions of images that lie channels last (isa_conv.c where it is used, else the library), of random geometry, in all
 * three directions: against the plain kernels in double, and with weights at home, in other strides, on other teams. */
#include "kernel_call.h"

#include "terra/dnn.h"

#include <stdio.h>

enum { CASES = 100, ROOM = 1 << 17 };

typedef struct geometry {
    int64_t n, ci, co, size[2], out[2], attrs[7], kernel[2];
} geometry;

static float src[ROOM], weights[ROOM], bias[512], dst[ROOM], got[ROOM], again[ROOM], spare[ROOM];
static double src64[ROOM], weights64[ROOM], bias64[512], dst64[ROOM], want[ROOM];

/* The instruction sets that have convolutions of their own; a machine without one falls back to what it has. */
static void init(const char *isa) {
    cr_assert_eq(tr_op_init(), TR_OK);
    if (tr_kernel_init(isa) != TR_OK)
        cr_assert_eq(tr_kernel_init(NULL), TR_OK);
}
static void init_v3(void) {
    init("v3");
}
static void init_v4(void) {
    init("v4");
}
static void init_amx(void) {
    init("amx");
}
TestSuite(conv_v3, .init = init_v3);
TestSuite(conv_v4, .init = init_v4);
TestSuite(conv_amx, .init = init_amx);

static unsigned seed;
static int64_t pick(int64_t low, int64_t high) {
    seed = seed * 1664525u + 1013904223u;
    return low + (int64_t) (seed >> 8) % (high - low + 1);
}

/* Elements of src, weights and dst */
static void count(const geometry *g, int64_t n[3]) {
    n[0] = g->n * g->ci * g->size[0] * g->size[1];
    n[1] = g->co * (g->ci / g->attrs[6]) * g->kernel[0] * g->kernel[1];
    n[2] = g->n * g->co * g->out[0] * g->out[1];
}

static bool has_room(const geometry *g) {
    int64_t n[3];
    count(g, n);
    return n[2] > 0 && n[0] <= ROOM && n[1] <= ROOM && n[2] <= ROOM;
}

/* Filters, strides and borders at random for g's channels; false where the image is smaller than a filter, or there is no room. */
static bool shape(geometry *g) {
    for (int d = 0; d < 2; d++) {
        g->kernel[d] = pick(0, 2) ? pick(1, 4) : 1;
        g->attrs[d] = pick(1, 3);
        g->attrs[2 + d] = pick(0, g->kernel[d]);
        g->attrs[4 + d] = pick(0, 3) ? 1 : 2;
        if (d == 1 && g->ci < 16) { // so that a filter's row is worth being taken as one pixel
            g->kernel[d] = pick(3, 7);
            g->attrs[4 + d] = 1;
        }
        g->size[d] = pick(1, 12);
        int64_t span = g->size[d] + 2 * g->attrs[2 + d] - (g->kernel[d] - 1) * g->attrs[4 + d] - 1;
        g->out[d] = span < 0 ? 0 : span / g->attrs[d] + 1;
    }
    return has_room(g);
}

static geometry make(void) {
    static const int64_t channels[] = {16, 32, 48, 64, 80, 128, 256, 272, 3, 5};
    geometry g = {.n = pick(1, 4)};
    do {
        g.ci = channels[pick(0, 9)];
        g.co = channels[pick(0, 7)];
        g.attrs[6] = 1;
    } while (!shape(&g));
    return g;
}

/* Channels of any number, in groups, some of which have only one. */
static geometry make_odd(void) {
    static const int64_t groups[] = {1, 1, 2, 3, 8, 17};
    geometry g = {.n = pick(1, 4)};
    do {
        g.attrs[6] = groups[pick(0, 5)];
        g.ci = g.attrs[6] * (pick(0, 1) ? 1 : pick(1, 24));
        g.co = g.attrs[6] * (pick(0, 1) ? 1 : pick(1, 24));
    } while (!shape(&g));
    return g;
}

static void noise(float *to, double *to64, int64_t n, unsigned s) {
    for (int64_t i = 0; i < n; i++) {
        s = s * 1664525u + 1013904223u;
        to[i] = (float) (s >> 8) / (1 << 23) - 1;
        to64[i] = to[i];
    }
}

static tr_arg images(tr_dtype dtype, void *data, int64_t n, int64_t c, const int64_t *size) {
    return kc_strided(dtype, data, 4, (int64_t[]){n, c, size[0], size[1]}, (int64_t[]){size[0] * size[1] * c, 1, size[1] * c, c});
}

static tr_arg filters(tr_dtype dtype, void *data, const geometry *g, bool turned) {
    int64_t k0 = g->kernel[0], k1 = g->kernel[1];
    return kc_strided(dtype, data, 4, (int64_t[]){g->co, g->ci, k0, k1},
                      turned ? (int64_t[]){1, k0 * k1 * g->co, k1 * g->co, g->co} : (int64_t[]){g->ci * k0 * k1, k0 * k1, k1, 1});
}

/* Runs direction `op`; which of src, weights, dst it writes is 0, 1 or 2. */
static void run(tr_op op, tr_dtype dtype, const geometry *g, tr_arg x, tr_arg w, tr_arg y, tr_arg b) {
    tr_status s;
    if (op == TR_OP_conv2d)
        s = kc_run(op, dtype, g->attrs, 3, (tr_arg[]){x, w, b}, 1, &y);
    else if (op == TR_OP_conv2d_backward_data)
        s = kc_run(op, dtype, g->attrs, 2, (tr_arg[]){y, w}, 1, &x);
    else
        s = kc_run(op, dtype, g->attrs, 2, (tr_arg[]){y, x}, 1, &w);
    cr_assert_eq(s, TR_OK, "%s", tr_status_detail());
}

enum { WHAT = 200 };
static void describe(char what[WHAT], const geometry *g, tr_op op) {
    snprintf(what, WHAT, "%s of %lldx%lldx%lldx%lld, %lld filters of %lldx%lld, stride %lld %lld, padding %lld %lld, dilation "
             "%lld %lld, %lld groups", tr_op_info_of(op)->name, (long long) g->n, (long long) g->ci, (long long) g->size[0],
             (long long) g->size[1], (long long) g->co, (long long) g->kernel[0], (long long) g->kernel[1], (long long) g->attrs[0],
             (long long) g->attrs[1], (long long) g->attrs[2], (long long) g->attrs[3], (long long) g->attrs[4],
             (long long) g->attrs[5], (long long) g->attrs[6]);
}

/* Which of them an op writes. */
static int written_by(tr_op op) {
    return op == TR_OP_conv2d ? 2 : op == TR_OP_conv2d_backward_data ? 0 : 1;
}

static void check(const geometry *g, tr_op op, bool biased) {
    int out = written_by(op);
    int64_t n[3];
    count(g, n);
    float *data[] = {src, weights, dst};
    double *data64[] = {src64, weights64, dst64};
    noise(src, src64, n[0], 1);
    noise(weights, weights64, n[1], 2);
    noise(dst, dst64, n[2], 3);
    noise(bias, bias64, g->co, 4);
    data[out] = got;
    data64[out] = want;
    memset(got, 0xff, sizeof got); // NaN: whatever isn't written shows
    tr_arg b = biased ? kc_tensor(TR_F32, bias, g->co) : kc_none(), b64 = biased ? kc_tensor(TR_F64, bias64, g->co) : kc_none();
    run(op, TR_F64, g, images(TR_F64, data64[0], g->n, g->ci, g->size), filters(TR_F64, data64[1], g, false),
        images(TR_F64, data64[2], g->n, g->co, g->out), b64);
    tr_arg x = images(TR_F32, data[0], g->n, g->ci, g->size), y = images(TR_F32, data[2], g->n, g->co, g->out);
    tr_arg w = filters(TR_F32, data[1], g, false);
    run(op, TR_F32, g, x, w, y, b);
    char what[WHAT];
    describe(what, g, op);
    for (int64_t i = 0; i < n[out]; i++)
        cr_assert(fabs((double) got[i] - want[i]) <= 1e-4 * (1 + fabs(want[i])), "%s: element %lld is %.9g, not %.9g", what,
                  (long long) i, (double) got[i], want[i]);

    // Another team: the same bits.
    tr_arg other[] = {x, w, y};
    other[out].data = again;
    kc_ctx.threads = 1;
    run(op, TR_F32, g, other[0], other[1], other[2], b);
    kc_ctx.threads = 3;
    cr_assert_eq(memcmp(got, again, (size_t) n[out] * sizeof *got), 0, "%s on one thread", what);
    run(op, TR_F32, g, other[0], other[1], other[2], b);
    kc_ctx.threads = 2;
    cr_assert_eq(memcmp(got, again, (size_t) n[out] * sizeof *got), 0, "%s on three threads", what);

    // Weights at home.
    const tr_home *home;
    if (tr_home_of_weights(g->attrs, x.meta, w.meta, y.meta, biased, 2, &home) == TR_OK) {
        other[1].home = home;
        if (out != 1)
            cr_assert_eq(tr_home_enter(home, weights, spare), TR_OK);
        run(op, TR_F32, g, other[0], other[1], other[2], b);
        cr_assert_eq(tr_home_leave(home, other[1].data, spare), TR_OK);
        cr_assert_eq(memcmp(got, again, (size_t) n[out] * sizeof *got), 0, "%s with weights at home", what);
    }
}

static void all_directions_of_random_geometry(void) {
    for (int i = 0; i < CASES; i++) {
        seed = (unsigned) i * 2654435761u + 17;
        geometry g = make();
        check(&g, TR_OP_conv2d, i % 2);
        check(&g, TR_OP_conv2d_backward_data, false);
        check(&g, TR_OP_conv2d_backward_weights, false);
    }
}
Test(conv_v3, all_directions_of_random_geometry, .timeout = 300) {
    all_directions_of_random_geometry();
}
Test(conv_v4, all_directions_of_random_geometry, .timeout = 300) {
    all_directions_of_random_geometry();
}

/* Filters of 3x3 pixels, stride 1: what isa_conv_winograd.c takes, if there are channels and squares enough. */
static geometry make_squares(void) {
    static const int64_t channels[] = {16, 32, 48, 64, 80, 128, 144};
    geometry g;
    do {
        g = (geometry){.n = pick(1, 5), .ci = channels[pick(0, 6)], .co = channels[pick(0, 6)], .attrs = {1, 1, 0, 0, 1, 1, 1},
                       .kernel = {3, 3}};
        for (int d = 0; d < 2; d++) {
            g.attrs[2 + d] = pick(0, 3);
            g.size[d] = pick(2, 19);
            g.out[d] = g.size[d] + 2 * g.attrs[2 + d] - 2;
        }
    } while (!has_room(&g));
    return g;
}

static void all_directions_of_squares(void) {
    for (int i = 0; i < CASES / 2; i++) {
        seed = (unsigned) i * 2654435761u + 29;
        geometry g = make_squares();
        check(&g, TR_OP_conv2d, i % 2);
        check(&g, TR_OP_conv2d_backward_data, false);
        check(&g, TR_OP_conv2d_backward_weights, false);
    }
}
Test(conv_v3, all_directions_of_squares, .timeout = 300) {
    all_directions_of_squares();
}
Test(conv_v4, all_directions_of_squares, .timeout = 300) {
    all_directions_of_squares();
}

/* Numbers whose differences would be NaN, or too large, show where they do in the sums themselves, as what they are there. */
static void strange_numbers_in_squares(void) {
    static const float strange[] = {INFINITY, -INFINITY, NAN, 3e38f};
    geometry g = {2, 32, 48, {9, 10}, {9, 10}, {1, 1, 1, 1, 1, 1, 1}, {3, 3}};
    int64_t n[3];
    count(&g, n);
    for (int i = 0; i < 24; i++) {
        tr_op op = (const tr_op[]){TR_OP_conv2d, TR_OP_conv2d_backward_data, TR_OP_conv2d_backward_weights}[i % 3];
        float *data[] = {src, weights, dst};
        double *data64[] = {src64, weights64, dst64};
        int out = written_by(op), in = (out + 1 + i / 3 % 2) % 3;
        if (in == 1 && !isfinite(strange[i / 6])) // a border's zeros times that are NaN in isa_conv.c
            continue;
        for (int k = 0; k < 3; k++)
            noise(data[k], data64[k], n[k], (unsigned) k + 1);
        int64_t at = (int64_t) i * 7919 % n[in];
        data[in][at] = strange[i / 6];
        data64[in][at] = (double) strange[i / 6];
        data[out] = got;
        data64[out] = want;
        run(op, TR_F64, &g, images(TR_F64, data64[0], g.n, g.ci, g.size), filters(TR_F64, data64[1], &g, false),
            images(TR_F64, data64[2], g.n, g.co, g.out), kc_none());
        run(op, TR_F32, &g, images(TR_F32, data[0], g.n, g.ci, g.size), filters(TR_F32, data[1], &g, false),
            images(TR_F32, data[2], g.n, g.co, g.out), kc_none());
        for (int64_t k = 0; k < n[out]; k++) {
            double w = (double) (float) want[k], x = (double) got[k];
            cr_assert(isnan(w) ? isnan(x) : isinf(w) ? x == w : fabs(x - want[k]) <= 1e-4 * (1 + fabs(want[k])),
                      "%s, %g at element %lld of operand %d: element %lld is %g, not %g", tr_op_info_of(op)->name,
                      (double) strange[i / 6], (long long) at, in, (long long) k, x, w);
        }
    }
}
Test(conv_v3, strange_numbers_in_squares) {
    strange_numbers_in_squares();
}
Test(conv_v4, strange_numbers_in_squares) {
    strange_numbers_in_squares();
}

static void weights_in_other_strides(void) {
    geometry g = {2, 32, 48, {7, 6}, {7, 6}, {1, 1, 1, 1, 1, 1, 1}, {3, 3}};
    noise(src, src64, g.n * g.ci * 42, 1);
    noise(weights, weights64, g.ci * g.co * 9, 2);
    tr_arg x = images(TR_F32, src, g.n, g.ci, g.size), w = filters(TR_F32, weights, &g, true);
    run(TR_OP_conv2d, TR_F32, &g, x, w, images(TR_F32, got, g.n, g.co, g.out), kc_none());
    run(TR_OP_conv2d, TR_F64, &g, images(TR_F64, src64, g.n, g.ci, g.size), filters(TR_F64, weights64, &g, true),
        images(TR_F64, want, g.n, g.co, g.out), kc_none());
    for (int64_t i = 0; i < g.n * g.co * 42; i++)
        cr_assert_float_eq(got[i], want[i], 1e-4);
}
Test(conv_v3, weights_in_other_strides) {
    weights_in_other_strides();
}
Test(conv_v4, weights_in_other_strides) {
    weights_in_other_strides();
}

/* Noise that bfloat16 holds, for the op and for the reference. */
static void noise_of_halves(float *to, double *to64, int64_t n, unsigned s) {
    noise(to, to64, n, s);
    kc_halve(to, n);
    kc_unhalve(to, n);
    for (int64_t i = 0; i < n; i++)
        to64[i] = to[i];
    kc_halve(to, n);
}

/* Filters that lie otherwise than the reference's: channels innermost (1), columns innermost (2), or nothing that is. */
static tr_arg laid_filters(void *data, const geometry *g, int order) {
    int64_t k0 = g->kernel[0], k1 = g->kernel[1], ci = g->ci / g->attrs[6], co = g->co;
    const int64_t strides[][4] = {{ci * k0 * k1, k0 * k1, k1, 1}, {ci * k0 * k1, 1, k1 * ci, ci}, {1, k0 * k1 * co, k1 * co, co},
                                  {k0 * k1 * ci, k0 * k1, 1, k0}};
    return kc_strided(TR_BF16, data, 4, (int64_t[]){co, ci, k0, k1}, strides[order]);
}

static void check_halves(const geometry *g, tr_op op, bool biased, int order) {
    int out = written_by(op);
    int64_t n[3];
    count(g, n);
    float *data[] = {src, weights, dst};
    double *data64[] = {src64, weights64, dst64};
    for (int i = 0; i < 3; i++)
        noise_of_halves(data[i], data64[i], n[i], (unsigned) i + 1);
    noise_of_halves(bias, bias64, g->co, 4);
    data[out] = got;
    data64[out] = want;
    memset(got, 0xff, sizeof got);
    tr_arg w = laid_filters(data[1], g, order), w64;
    w64 = kc_strided(TR_F64, data64[1], 4, w.meta->shape, w.meta->strides);
    tr_arg x = images(TR_BF16, data[0], g->n, g->ci, g->size), y = images(TR_BF16, data[2], g->n, g->co, g->out);
    run(op, TR_F64, g, images(TR_F64, data64[0], g->n, g->ci, g->size), w64, images(TR_F64, data64[2], g->n, g->co, g->out),
        biased ? kc_tensor(TR_F64, bias64, g->co) : kc_none());
    tr_arg b = biased ? kc_tensor(TR_BF16, bias, g->co) : kc_none(), other[] = {x, w, y};
    char what[WHAT];
    describe(what, g, op);
    run(op, TR_BF16, g, x, w, y, b);
    other[out].data = again;
    for (int team = 1; team <= 3; team += 2) {
        kc_ctx.threads = team;
        run(op, TR_BF16, g, other[0], other[1], other[2], b);
        kc_ctx.threads = 2;
        cr_assert_eq(memcmp(got, again, (size_t) n[out] * 2), 0, "%s, on %d threads", what, team);
    }
    kc_unhalve(got, n[out]);
    for (int64_t i = 0; i < n[out]; i++)
        cr_assert(fabs((double) got[i] - want[i]) <= 1e-4 + fabs(want[i]) / 256, "%s, order %d: element %lld is %.9g, not %.9g",
                  what, order, (long long) i, (double) got[i], want[i]);
}

static void check_all_halves(const geometry *g, int i) {
    check_halves(g, TR_OP_conv2d, i % 2, i % 4);
    check_halves(g, TR_OP_conv2d_backward_data, false, i % 4);
    check_halves(g, TR_OP_conv2d_backward_weights, false, i % 4);
}

static void bfloat16_in_all_directions(void) {
    for (int i = 0; i < CASES; i++) {
        seed = (unsigned) i * 2654435761u + 29;
        geometry g = make();
        check_all_halves(&g, i);
    }
}
Test(conv_v4, bfloat16_in_all_directions, .timeout = 300) {
    bfloat16_in_all_directions();
}
Test(conv_amx, bfloat16_in_all_directions, .timeout = 300) {
    bfloat16_in_all_directions();
}

/* Channels that make no panels, and groups, are the library's. */
static void bfloat16_of_other_channels(void) {
    for (int i = 0; i < CASES; i++) {
        seed = (unsigned) i * 2654435761u + 41;
        geometry g = make_odd();
        check_all_halves(&g, i);
    }
}
Test(conv_v4, bfloat16_of_other_channels, .timeout = 300) {
    bfloat16_of_other_channels();
}
Test(conv_amx, bfloat16_of_other_channels, .timeout = 300) {
    bfloat16_of_other_channels();
}

/* Rows of fewer pixels than the stride: the library's derivative by the weights takes what its scratch held before. */
static void bfloat16_of_rows_shorter_than_the_stride(void) {
    for (int64_t w = 1; w <= 3; w++)
        for (int64_t n = 1; n <= 2; n++)
            for (int64_t stride = 2; stride <= 4; stride++) {
                geometry g = {n, 24, 40, {5, w}, {5, (w + 4 - 3) / stride + 1}, {1, stride, 1, 2, 1, 1, 1}, {3, 3}};
                check_halves(&g, TR_OP_conv2d, true, 0);
                check_halves(&g, TR_OP_conv2d_backward_data, false, 0);
                check_halves(&g, TR_OP_conv2d_backward_weights, false, 0);
            }
}
Test(conv_v4, bfloat16_of_rows_shorter_than_the_stride) {
    bfloat16_of_rows_shorter_than_the_stride();
}
Test(conv_amx, bfloat16_of_rows_shorter_than_the_stride) {
    bfloat16_of_rows_shorter_than_the_stride();
}

/* Channels by taps too deep for one piece of the sums, and more pixels than a piece of work has. */
static void bfloat16_in_pieces(void) {
    static const geometry large[] = {
        {2, 256, 48, {5, 6}, {5, 6}, {1, 1, 1, 1, 1, 1, 1}, {3, 3}},
        {2, 48, 256, {5, 6}, {5, 6}, {1, 1, 1, 1, 1, 1, 1}, {3, 3}},
        {2, 64, 64, {22, 21}, {22, 21}, {1, 1, 1, 1, 1, 1, 1}, {3, 3}},
        {2, 64, 64, {29, 31}, {15, 16}, {2, 2, 1, 1, 1, 1, 1}, {3, 3}},
    };
    for (int i = 0; i < 4; i++)
        check_all_halves(&large[i], i);
}
Test(conv_v4, bfloat16_in_pieces) {
    bfloat16_in_pieces();
}
Test(conv_amx, bfloat16_in_pieces) {
    bfloat16_in_pieces();
}

/* By the weights, what fills up the last pixels of a sum is zero, not a pixel that may be infinite: 0 * inf. */
static void bfloat16_of_an_infinite_pixel(void) {
    geometry g = {1, 32, 32, {5, 5}, {3, 3}, {2, 2, 0, 0, 1, 1, 1}, {1, 1}};
    int64_t n[3];
    count(&g, n);
    for (int64_t i = 0; i < n[0]; i++)
        src[i] = i ? 1 : INFINITY;
    for (int64_t i = 0; i < n[2]; i++)
        dst[i] = 1;
    kc_halve(src, n[0]);
    kc_halve(dst, n[2]);
    run(TR_OP_conv2d_backward_weights, TR_BF16, &g, images(TR_BF16, src, g.n, g.ci, g.size), filters(TR_BF16, got, &g, false),
        images(TR_BF16, dst, g.n, g.co, g.out), kc_none());
    kc_unhalve(got, n[1]);
    for (int64_t i = 0; i < n[1]; i++)
        cr_assert_eq(got[i], i % g.ci ? 9 : INFINITY);
}
Test(conv_v4, bfloat16_of_an_infinite_pixel) {
    bfloat16_of_an_infinite_pixel();
}
Test(conv_amx, bfloat16_of_an_infinite_pixel) {
    bfloat16_of_an_infinite_pixel();
}

/* Elements of an image of bfloat16, wherever they lie. */
static uint16_t half_at(const tr_arg *a, int64_t i) {
    const tr_meta *m = a->meta;
    int64_t at = 0;
    for (int d = 3; d >= 0; i /= m->shape[d--])
        at += i % m->shape[d] * m->strides[d];
    return ((const uint16_t *) a->data)[at];
}

/* Bit k of `last`: images 0 (src) and 1 (dst) have channels last. */
static void check_layouts(const geometry *g, tr_op op) {
    static float turned[2][ROOM], plain[2][ROOM];
    tr_arg first = {0};
    for (int last = 0; last < 4; last++) {
        const int64_t *size[] = {g->size, g->out}, c[] = {g->ci, g->co};
        tr_arg image[2], w = filters(TR_BF16, weights, g, false);
        noise(weights, weights64, w.meta->numel, 2);
        kc_halve(weights, w.meta->numel);
        for (int k = 0; k < 2; k++) {
            int64_t s = size[k][0] * size[k][1];
            noise(plain[k], src64, g->n * c[k] * s, (unsigned) k + 3);
            kc_turn_images(turned[k], plain[k], g->n, c[k], s);
            float *data = last >> k & 1 ? turned[k] : plain[k];
            kc_halve(data, g->n * c[k] * s);
            image[k] = kc_images_of(TR_BF16, data, last >> k & 1, g->n, c[k], size[k][0], size[k][1]);
        }
        tr_arg *out = op == TR_OP_conv2d ? &image[1] : op == TR_OP_conv2d_backward_data ? &image[0] : &w;
        out->data = last ? again : got;
        run(op, TR_BF16, g, image[0], w, image[1], kc_none());
        if (last == 0)
            first = *out;
        for (int64_t i = 0; i < first.meta->numel; i++)
            cr_assert_eq(half_at(out, i), half_at(&first, i), "%s, layouts %d: element %lld", tr_op_info_of(op)->name, last,
                         (long long) i);
    }
}

static void bfloat16_is_the_same_in_any_layout(void) {
    for (int i = 0; i < CASES / 4; i++) {
        seed = (unsigned) i * 2654435761u + 5;
        geometry g = make();
        check_layouts(&g, TR_OP_conv2d);
        check_layouts(&g, TR_OP_conv2d_backward_data);
        check_layouts(&g, TR_OP_conv2d_backward_weights);
    }
}
Test(conv_v4, bfloat16_is_the_same_in_any_layout, .timeout = 300) {
    bfloat16_is_the_same_in_any_layout();
}
Test(conv_amx, bfloat16_is_the_same_in_any_layout, .timeout = 300) {
    bfloat16_is_the_same_in_any_layout();
}

/* Channels innermost, but rows with something between them, and behind them: not what kernels for channels-last images take. */
Test(conv_v4, crops_of_images_with_channels_last) {
    enum { N = 2, C = 32, H = 5, W = 6, WIDE = 9, TALL = 7, OF_CROP = N * C * H * W };
    static float wide[N * TALL * WIDE * C], crop[OF_CROP], weight[C], y[2][OF_CROP], mean[C], inv[C];
    static int64_t at[OF_CROP];
    noise(wide, src64, N * TALL * WIDE * C, 1);
    noise(weights, weights64, C * C, 2);
    for (int i = 0; i < C; i++)
        weight[i] = 1;
    for (int n = 0; n < N; n++)
        for (int h = 0; h < H; h++)
            memcpy(crop + (n * H + h) * W * C, wide + (n * TALL + h) * WIDE * C, W * C * sizeof *crop);
    tr_arg x[] = {kc_strided(TR_F32, wide, 4, (int64_t[]){N, C, H, W}, (int64_t[]){TALL * WIDE * C, 1, WIDE * C, C}),
                  images(TR_F32, crop, N, C, (int64_t[]){H, W})};
    geometry g = {N, C, C, {H, W}, {H, W}, {1, 1, 0, 0, 1, 1, 1}, {1, 1}};
    for (int form = 0; form < 2; form++)
        run(TR_OP_conv2d, TR_F32, &g, x[form], filters(TR_F32, weights, &g, false), images(TR_F32, y[form], N, C, g.out), kc_none());
    for (int i = 0; i < OF_CROP; i++)
        cr_assert_float_eq(y[0][i], y[1][i], 1e-5, "convolution, element %d", i);
    for (int form = 0; form < 2; form++)
        kc_call(batch_norm, TR_F32, (1), (images(TR_F32, y[form], N, C, g.out), kc_tensor(TR_F32, mean, C), kc_tensor(TR_F32, inv, C)),
                x[form], kc_tensor(TR_F32, weight, C), kc_none(), kc_none(), kc_none(), kc_number(0.1), kc_number(1e-5));
    cr_assert_eq(memcmp(y[0], y[1], sizeof y[0]), 0, "batch norm");
    tr_arg index = kc_strided(TR_I64, at, 4, (int64_t[]){N, C, 2, 3}, (int64_t[]){6 * C, 1, 3 * C, C});
    for (int form = 0; form < 2; form++)
        kc_call(max_pool2d, TR_F32, (2, 2, 2, 2, 0, 0, 1, 1, 0), (images(TR_F32, y[form], N, C, (int64_t[]){2, 3}), index), x[form]);
    cr_assert_eq(memcmp(y[0], y[1], N * C * 6 * sizeof(float)), 0, "pool");
}
