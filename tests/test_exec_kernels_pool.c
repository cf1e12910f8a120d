/* Pooling: against sums and comparisons written down plainly; and the same bits whatever the images' layout, their number of
 * channels and the number of threads. */
#include "kernel_call.h"

TestSuite(pool_kernels, .init = kc_init);

enum { N = 2, H = 13, W = 18, C_MAX = 67, OUT = 24 * 24, ALL = N * C_MAX * H * W, RESULTS = N * C_MAX * OUT };

typedef struct window {
    int64_t kh, kw, sh, sw, ph, pw, dh, dw;
} window;
static const window windows[] = {{3, 3, 2, 2, 1, 1, 1, 1}, {2, 2, 2, 2, 0, 0, 1, 1}, {3, 2, 1, 1, 1, 0, 1, 1},
                                 {3, 3, 1, 3, 1, 1, 1, 1}, {5, 4, 4, 2, 2, 2, 1, 1}, {3, 3, 2, 2, 1, 1, 2, 3},
                                 {9, 9, 2, 1, 4, 3, 1, 1}};
enum { WINDOWS = sizeof windows / sizeof *windows };

static int64_t out_size(int64_t size, int64_t k, int64_t s, int64_t p, int64_t d) {
    return (size + 2 * p - d * (k - 1) - 1) / s + 1;
}

static const int64_t channels[] = {1, 5, 16, 33, C_MAX};
enum { CHANNELS = sizeof channels / sizeof *channels };

static float source[ALL], gradient[RESULTS];

/* Whole numbers, so that equal ones meet, and here and there a NaN. */
static void make_source(bool nans) {
    kc_noise(source, ALL, 1);
    kc_noise(gradient, RESULTS, 2);
    for (int i = 0; i < ALL; i++)
        source[i] = nans && i % 97 == 0 ? NAN : floorf(source[i] * 8);
}

/* Images of any element and layout, from floats in row-major order. */
typedef struct images {
    tr_dtype dtype;
    bool last;
    int64_t n, c, h, w;
    char data[RESULTS * 8];
} images;

static int64_t place(const images *m, int64_t i) {
    int64_t s = m->h * m->w, p = i % s, k = i / s % m->c, image = i / s / m->c;
    return m->last ? (image * s + p) * m->c + k : i;
}
static void put(images *m, tr_dtype dtype, bool last, int64_t c, int64_t h, int64_t w, const float *from) {
    m->dtype = dtype;
    m->last = last;
    m->n = N, m->c = c, m->h = h, m->w = w;
    memset(m->data, 0x55, sizeof m->data);
    for (int64_t i = 0; from && i < N * c * h * w; i++) {
        uint32_t bits;
        memcpy(&bits, &from[i], 4);
        if (dtype == TR_F32)
            ((float *) m->data)[place(m, i)] = from[i];
        else
            ((uint16_t *) m->data)[place(m, i)] = (uint16_t) (bits >> 16);
    }
}
static tr_arg arg_of(images *m) {
    int64_t strides[] = {m->h * m->w * m->c, 1, m->w * m->c, m->c};
    return kc_strided(m->dtype, m->data, 4, (int64_t[]){m->n, m->c, m->h, m->w}, m->last ? strides : NULL);
}
static float value(const images *m, int64_t i) {
    float f = 0;
    if (m->dtype == TR_F32)
        return ((const float *) m->data)[place(m, i)];
    uint32_t bits = (uint32_t) ((const uint16_t *) m->data)[place(m, i)] << 16;
    memcpy(&f, &bits, 4);
    return f;
}
static int64_t index_at(const images *m, int64_t i) { return ((const int64_t *) m->data)[place(m, i)]; }

static void expect_same_images(const images *a, const images *b, const char *what) {
    for (int64_t i = 0; i < a->n * a->c * a->h * a->w; i++) {
        if (a->dtype == TR_I64) {
            cr_assert_eq(index_at(a, i), index_at(b, i), "%s: element %lld", what, (long long) i);
            continue;
        }
        float x = value(a, i), y = value(b, i);
        cr_assert(x == y || (isnan(x) && isnan(y)), "%s: element %lld is %g, not %g", what, (long long) i, (double) x, (double) y);
    }
}

/* x, y, index, gradient, derivative; [1] is compared with [0] */
static images x[2], y[2], at[2], g[2], dx[2];

static void pool_max(int k, tr_dtype dtype, bool last, int64_t c, const window *w) {
    int64_t oh = out_size(H, w->kh, w->sh, w->ph, w->dh), ow = out_size(W, w->kw, w->sw, w->pw, w->dw);
    put(&x[k], dtype, last, c, H, W, source);
    put(&y[k], dtype, last, c, oh, ow, NULL);
    put(&at[k], TR_I64, last, c, oh, ow, NULL);
    put(&g[k], dtype, last, c, oh, ow, gradient);
    put(&dx[k], dtype, last, c, H, W, NULL);
    cr_assert_eq(kc_call(max_pool2d, dtype, (w->kh, w->kw, w->sh, w->sw, w->ph, w->pw, w->dh, w->dw, 0),
                         (arg_of(&y[k]), arg_of(&at[k])), arg_of(&x[k])), TR_OK);
    cr_assert_eq(kc_call(max_pool2d_backward, dtype, (0), (arg_of(&dx[k])), arg_of(&g[k]), arg_of(&x[k]), arg_of(&at[k])), TR_OK);
}

/* count: 0 within the image, 1 with padding, else the divisor */
static void pool_avg(int k, tr_dtype dtype, bool last, int64_t c, const window *w, int64_t count) {
    int64_t oh = out_size(H, w->kh, w->sh, w->ph, 1), ow = out_size(W, w->kw, w->sw, w->pw, 1);
    put(&x[k], dtype, last, c, H, W, source);
    put(&y[k], dtype, last, c, oh, ow, NULL);
    put(&g[k], dtype, last, c, oh, ow, gradient);
    put(&dx[k], dtype, last, c, H, W, NULL);
    cr_assert_eq(kc_call(avg_pool2d, dtype, (w->kh, w->kw, w->sh, w->sw, w->ph, w->pw, 0, count == 1, count > 1 ? count : 0),
                         (arg_of(&y[k])), arg_of(&x[k])), TR_OK);
    cr_assert_eq(kc_call(avg_pool2d_backward, dtype, (w->kh, w->kw, w->sh, w->sw, w->ph, w->pw, 0, count == 1, count > 1 ? count : 0),
                         (arg_of(&dx[k])), arg_of(&g[k]), arg_of(&x[k])), TR_OK);
}

static void pool_adaptive(int k, tr_dtype dtype, bool last, int64_t c, int64_t oh, int64_t ow) {
    put(&x[k], dtype, last, c, H, W, source);
    put(&y[k], dtype, last, c, oh, ow, NULL);
    put(&g[k], dtype, last, c, oh, ow, gradient);
    put(&dx[k], dtype, last, c, H, W, NULL);
    cr_assert_eq(kc_call(adaptive_avg_pool2d, dtype, (oh, ow), (arg_of(&y[k])), arg_of(&x[k])), TR_OK);
    cr_assert_eq(kc_call(adaptive_avg_pool2d_backward, dtype, (0), (arg_of(&dx[k])), arg_of(&g[k]), arg_of(&x[k])), TR_OK);
}

/* ---- against plain loops ---- */

static void expect_maximum(const window *w, int64_t plane, int64_t oy, int64_t ox) {
    float best = -INFINITY;
    int64_t where = -1;
    for (int64_t ky = 0; ky < w->kh; ky++)
        for (int64_t kx = 0; kx < w->kw; kx++) {
            int64_t iy = oy * w->sh - w->ph + ky * w->dh, ix = ox * w->sw - w->pw + kx * w->dw;
            if (iy < 0 || iy >= H || ix < 0 || ix >= W)
                continue;
            float v = value(&x[0], (plane * H + iy) * W + ix);
            if (where < 0 || v > best || isnan(v)) {
                best = v;
                where = iy * W + ix;
            }
        }
    int64_t i = (plane * y[0].h + oy) * y[0].w + ox;
    float have = value(&y[0], i);
    cr_assert(have == best || (isnan(have) && isnan(best)), "maximum %g, not %g", (double) have, (double) best);
    cr_assert_eq(index_at(&at[0], i), where);
}

Test(pool_kernels, maximum_and_its_place) {
    make_source(true);
    for (int k = 0; k < WINDOWS; k++)
        for (int last = 0; last < 2; last++) {
            pool_max(0, TR_F32, last, 5, &windows[k]);
            for (int64_t i = 0; i < N * 5 * y[0].h * y[0].w; i++)
                expect_maximum(&windows[k], i / y[0].w / y[0].h, i / y[0].w % y[0].h, i % y[0].w);
        }
}

static void expect_average(const window *w, int64_t count, int64_t plane, int64_t oy, int64_t ox) {
    double sum = 0;
    int64_t inside = 0, padded = 0;
    for (int64_t iy = oy * w->sh - w->ph; iy < oy * w->sh - w->ph + w->kh; iy++)
        for (int64_t ix = ox * w->sw - w->pw; ix < ox * w->sw - w->pw + w->kw; ix++) {
            padded += iy < H + w->ph && ix < W + w->pw;
            if (iy < 0 || iy >= H || ix < 0 || ix >= W)
                continue;
            inside++;
            sum += (double) value(&x[0], (plane * H + iy) * W + ix);
        }
    double want = sum / (double) (count > 1 ? count : count ? padded : inside);
    cr_assert_float_eq(value(&y[0], (plane * y[0].h + oy) * y[0].w + ox), want, 1e-5);
}

Test(pool_kernels, averages) {
    make_source(false);
    for (int k = 0; k < WINDOWS; k++)
        for (int64_t count = 0; count < 3; count++)
            for (int last = 0; last < 2; last++) {
                pool_avg(0, TR_F32, last, 5, &windows[k], count * 2 - (count > 0));
                for (int64_t i = 0; i < N * 5 * y[0].h * y[0].w; i++)
                    expect_average(&windows[k], count * 2 - (count > 0), i / y[0].w / y[0].h, i / y[0].w % y[0].h, i % y[0].w);
            }
}

/* What the derivative gives back is what it got, where no window counts more than it has. */
Test(pool_kernels, derivatives_of_averages_keep_the_sum) {
    make_source(false);
    for (int k = 0; k < WINDOWS; k++)
        for (int last = 0; last < 2; last++) {
            pool_avg(0, TR_F32, last, 5, &windows[k], 0);
            for (int64_t plane = 0; plane < N * 5; plane++) {
                double in = 0, out = 0;
                for (int64_t i = 0; i < y[0].h * y[0].w; i++)
                    in += (double) value(&g[0], plane * y[0].h * y[0].w + i);
                for (int64_t i = 0; i < H * W; i++)
                    out += (double) value(&dx[0], plane * H * W + i);
                cr_assert_float_eq(in, out, 1e-4);
            }
        }
}

/* ---- layouts, threads ---- */

static void expect_same_pools(bool indices) {
    expect_same_images(&y[1], &y[0], "result");
    expect_same_images(&dx[1], &dx[0], "derivative");
    if (indices)
        expect_same_images(&at[1], &at[0], "index");
}

Test(pool_kernels, layouts_and_threads_change_no_bit) {
    for (int form = 0; form < 4; form++)
        for (int k = 0; k < CHANNELS * WINDOWS; k++) {
            tr_dtype dtype = form & 1 ? TR_BF16 : TR_F32;
            int64_t c = channels[k / WINDOWS];
            const window *w = &windows[k % WINDOWS];
            make_source(true);
            kc_ctx.threads = 1;
            pool_max(0, dtype, false, c, w);
            kc_ctx.threads = form & 2 ? 3 : 1;
            pool_max(1, dtype, true, c, w);
            expect_same_pools(true);
            make_source(false);
            pool_avg(0, dtype, false, c, w, 1);
            pool_avg(1, dtype, true, c, w, 1);
            expect_same_pools(false);
            pool_adaptive(0, dtype, false, c, 1 + k % 4, 1 + k % 3);
            pool_adaptive(1, dtype, true, c, 1 + k % 4, 1 + k % 3);
            expect_same_pools(false);
        }
}
