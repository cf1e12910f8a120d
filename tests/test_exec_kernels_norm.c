/* Normalisation: values that can be checked by eye; the same numbers in any layout and with any number of threads; and what is
 * fused with it against the ops one after another, bit for bit. */
#include "kernel_call.h"

TestSuite(norm, .init = kc_init);

Test(norm, batch_norm_updates_running_statistics) {
    float x[] = {1, 3, 5, 7}, y[4], mean[1], inv[1], rm[] = {0}, rv[] = {1},
          want[] = {-1.3416408f, -0.4472136f, 0.4472136f, 1.3416408f};
    tr_arg in[] = {kc_tensor(TR_F32, x, 2, 1, 2), kc_none(),      kc_none(),   kc_tensor(TR_F32, rm, 1),
                   kc_tensor(TR_F32, rv, 1),      kc_number(0.1), kc_number(0)};
    tr_arg out[] = {kc_tensor(TR_F32, y, 2, 1, 2), kc_tensor(TR_F32, mean, 1), kc_tensor(TR_F32, inv, 1)};
    cr_assert_eq(kc_run(TR_OP_batch_norm, TR_F32, (int64_t[]){1}, 7, in, 3, out), TR_OK);
    kc_expect(y, want, 4, 1e-6, "batch_norm");
    cr_assert_float_eq(rm[0], 0.4, 1e-6);
    cr_assert_float_eq(rv[0], 0.9 + 0.1 * 20 / 3, 1e-6); // unbiased
}

Test(norm, batch_norm_of_columns_and_planes_agree) {
    enum { N = 70, C = 67 };
    static float x[N * C], g[N * C], y[2][N * C], mean[2][C], inv[2][C], dx[2][N * C], dw[2][C], db[2][C];
    kc_noise(x, N * C, 1);
    kc_noise(g, N * C, 2);
    for (int form = 0; form < 2; form++) {
        static float turned[N * C], turned_g[N * C];
        // [N, C] against [1, C, N], transposed
        for (int i = 0; i < N * C; i++) {
            turned[i % C * N + i / C] = x[i];
            turned_g[i % C * N + i / C] = g[i];
        }
        tr_arg in = form ? kc_tensor(TR_F32, turned, 1, C, N) : kc_tensor(TR_F32, x, N, C);
        tr_arg grad = form ? kc_tensor(TR_F32, turned_g, 1, C, N) : kc_tensor(TR_F32, g, N, C);
        tr_arg stats[] = {kc_tensor(TR_F32, mean[form], C), kc_tensor(TR_F32, inv[form], C)};
        tr_arg out = {y[form], in.meta, {0}}, d = {dx[form], in.meta, {0}};
        kc_call(batch_norm, TR_F32, (1), (out, stats[0], stats[1]), in, kc_none(), kc_none(), kc_none(), kc_none(),
                kc_number(0.1), kc_number(1e-5));
        kc_call(batch_norm_backward, TR_F32, (1), (d, kc_tensor(TR_F32, dw[form], C), kc_tensor(TR_F32, db[form], C)), grad, in,
                kc_none(), stats[0], stats[1]);
    }
    kc_expect(mean[0], mean[1], C, 0, "mean");
    kc_expect(inv[0], inv[1], C, 0, "inverse deviation");
    kc_expect(dw[0], dw[1], C, 0, "d weight");
    kc_expect(db[0], db[1], C, 0, "d bias");
    for (int i = 0; i < N * C; i++) {
        cr_assert_eq(y[0][i], y[1][i % C * N + i / C]);
        cr_assert_eq(dx[0][i], dx[1][i % C * N + i / C]);
    }
}

Test(norm, layer_norm_of_a_row) {
    float x[] = {1, 2, 3, 4}, w[] = {1, 1, 2, 2}, b[] = {0, 1, 0, 1}, y[4], m, s,
          want[] = {-1.3416408f, 0.5527864f, 0.8944272f, 3.6832816f};
    kc_call(layer_norm, TR_F32, (1), (kc_tensor(TR_F32, y, 1, 4), kc_tensor(TR_F32, &m, 1, 1), kc_tensor(TR_F32, &s, 1, 1)),
            kc_tensor(TR_F32, x, 1, 4), kc_tensor(TR_F32, w, 4), kc_tensor(TR_F32, b, 4), kc_number(0));
    kc_expect(y, want, 4, 1e-6, "layer_norm");
    cr_assert_eq(m, 2.5f);
}

/* ---- layouts, threads, and what is fused ---- */

enum { N = 3, H = 19, W = 13, C_MAX = 130, ALL = N * C_MAX * H * W };

/* Everything that a step of training makes of images: y, statistics, gradients. */
typedef struct step {
    float y[ALL], dx[ALL], dother[ALL], mean[C_MAX], inv[C_MAX], rm[C_MAX], rv[C_MAX], dw[C_MAX], db[C_MAX];
} step;
typedef struct problem {
    int64_t c;
    unsigned flags;
    bool last, training;
    tr_dtype dtype; /* of images */
    float *x, *other, *grad, *residual, *w, *b; /* residual: or NULL */
} problem;

static tr_arg image(const problem *p, float *data) { return kc_images_of(p->dtype, data, p->last, N, p->c, H, W); }
static tr_arg vector(const problem *p, float *data) { return kc_tensor(TR_F32, data, p->c); }
static int64_t elements(const problem *p) { return N * p->c * H * W; }
static size_t image_bytes(const problem *p) { return (size_t) elements(p) * tr_dtype_size(p->dtype); }

static void start(const problem *p, step *s) {
    memset(s, 0x55, sizeof *s);
    for (int64_t k = 0; k < p->c; k++) {
        s->rm[k] = 0.25f;
        s->rv[k] = 2;
    }
}

static void one_by_one(const problem *p, step *s) {
    static float g[ALL];
    tr_arg y = image(p, s->y), other = image(p, p->other), grad = image(p, p->grad), x = image(p, p->x);
    tr_arg mean = vector(p, s->mean), inv = vector(p, s->inv), w = vector(p, p->w);
    start(p, s);
    kc_call(batch_norm, p->dtype, (p->training), (y, mean, inv), x, w, vector(p, p->b), vector(p, s->rm), vector(p, s->rv),
            kc_number(0.1), kc_number(1e-5));
    if (p->flags & TR_NORM_ADD)
        kc_call(add, p->dtype, (0), (y), y, other, kc_integer(1));
    if (p->flags & TR_NORM_RELU) {
        kc_call(relu, p->dtype, (0), (y), y);
        if (p->residual) {
            kc_call(add, p->dtype, (0), (image(p, g)), grad, image(p, p->residual), kc_integer(1));
            grad = image(p, g);
        }
        kc_call(threshold_backward, p->dtype, (0), (image(p, g)), grad, y, kc_integer(0));
        grad = image(p, g);
    }
    kc_call(batch_norm_backward, p->dtype, (p->training), (image(p, s->dx), vector(p, s->dw), vector(p, s->db)), grad, x, w, mean,
            inv);
    memcpy(s->dother, grad.data, image_bytes(p));
}

static void fused(const problem *p, step *s, bool passes) {
    start(p, s);
    tr_norm_forward f = {.flags = p->flags,
                         .training = p->training,
                         .momentum = 0.1,
                         .eps = 1e-5,
                         .x = image(p, p->x),
                         .weight = vector(p, p->w),
                         .bias = vector(p, p->b),
                         .running_mean = vector(p, s->rm),
                         .running_var = vector(p, s->rv),
                         .y = image(p, s->y),
                         .mean = vector(p, s->mean),
                         .inv = vector(p, s->inv)};
    if (p->flags & TR_NORM_ADD)
        f.other = image(p, p->other);
    cr_assert_eq(tr_norm_forward_fused(&f, &kc_ctx), TR_OK);
    kc_release();
    tr_norm_backward b = {.flags = p->flags,
                          .training = p->training,
                          .grad = image(p, p->grad),
                          .y = f.y,
                          .x = f.x,
                          .weight = f.weight,
                          .mean = f.mean,
                          .inv = f.inv,
                          .dx = image(p, s->dx),
                          .dweight = vector(p, s->dw),
                          .dbias = vector(p, s->db)};
    if (passes)
        b.dother = image(p, s->dother);
    if (p->residual)
        b.residual = image(p, p->residual);
    cr_assert_eq(tr_norm_backward_fused(&b, &kc_ctx), TR_OK);
    kc_release();
}

static void expect_same(const problem *p, const step *a, const step *b, bool passes) {
    size_t image = image_bytes(p), row = (size_t) p->c * sizeof(float);
    cr_assert_arr_eq(a->mean, b->mean, row);
    cr_assert_arr_eq(a->inv, b->inv, row);
    cr_assert_arr_eq(a->rm, b->rm, row);
    cr_assert_arr_eq(a->rv, b->rv, row);
    cr_assert_arr_eq(a->y, b->y, image);
    cr_assert_arr_eq(a->dw, b->dw, row);
    cr_assert_arr_eq(a->db, b->db, row);
    cr_assert_arr_eq(a->dx, b->dx, image);
    if (passes)
        cr_assert_arr_eq(a->dother, b->dother, image);
}

static float data[2][3][ALL], affine[2][C_MAX];
static step results[3];

static void make(problem *p, int64_t c, bool last, tr_dtype dtype) {
    p->c = c;
    p->last = last;
    p->dtype = dtype;
    for (int k = 0; k < 3; k++) {
        kc_noise(data[0][k], N * c * H * W, (uint32_t) (k + 1));
        if (k == 0) // a mean, and channels of different sizes
            for (int64_t i = 0; i < N * c * H * W; i++)
                data[0][0][i] = (data[0][0][i] + 7) * (float) (1 + i / (H * W) % c);
        kc_turn_images(data[1][k], data[0][k], N, c, H * W);
        for (int form = 0; form < 2 && dtype == TR_BF16; form++)
            kc_halve(data[form][k], elements(p));
    }
    kc_noise(affine[0], c, 7);
    kc_noise(affine[1], c, 8);
    p->x = data[last][0];
    p->other = data[last][1];
    p->grad = data[last][2];
    p->w = affine[0];
    p->b = affine[1];
}

Test(norm, fused_is_bitwise_the_ops_one_after_another) {
    static const int64_t channels[] = {1, 2, 5, 64, C_MAX};
    for (int k = 0; k < 5; k++)
        for (unsigned flags = 0; flags < 4; flags++)
            for (int form = 0; form < 32; form++) {
                problem p = {.flags = flags, .training = form & 2};
                make(&p, channels[k], form & 1, form & 8 ? TR_BF16 : TR_F32);
                bool passes = form & 4;
                if (form & 16 && passes && flags & TR_NORM_RELU)
                    p.residual = p.other;
                one_by_one(&p, &results[0]);
                fused(&p, &results[1], passes);
                expect_same(&p, &results[0], &results[1], passes);
            }
}

Test(norm, layouts_and_threads_change_no_bit) {
    static const int64_t channels[] = {1, 5, 64, C_MAX};
    for (int k = 0; k < 8; k++)
        for (int form = 0; form < 6; form++) {
            problem p = {.flags = 3, .training = true};
            step *s = &results[form > 0];
            make(&p, channels[k / 2], form & 1, k & 1 ? TR_BF16 : TR_F32);
            p.residual = p.other;
            kc_ctx.threads = 1 + form / 2;
            fused(&p, s, true);
            if (form & 1) { // back to planes, to be compared
                static float planes[ALL];
                float *turned[] = {s->y, s->dx, s->dother};
                for (int t = 0; t < 3; t++) {
                    if (p.dtype == TR_BF16)
                        kc_unhalve(turned[t], elements(&p));
                    kc_turn_images(planes, turned[t], N, H * W, p.c);
                    if (p.dtype == TR_BF16)
                        kc_halve(planes, elements(&p));
                    memcpy(turned[t], planes, image_bytes(&p));
                }
            }
            expect_same(&p, &results[0], s, true);
        }
}

/* Results that are denormal, infinite or no numbers, here and there, by statistics that are given: rows, which the processor may round,
 * against planes, which are rounded by hand. */
Test(norm, odd_numbers_of_bfloat16_are_the_same_in_rows) {
    enum { C = 96 };
    static float planes[ALL];
    for (unsigned flags = 0; flags < 4; flags++)
        for (int odd = 0; odd < 5; odd++) {
            for (int last = 0; last < 2; last++) {
                problem p = {.flags = flags};
                make(&p, C, last, TR_BF16);
                for (int64_t i = 0; i < elements(&p); i += 1 + i % 7) { // some of what is added is zero, so that small sums stay so
                    int64_t pixel = i / C, channel = i % C, image = pixel / (H * W) * C * H * W;
                    int64_t at = last ? i : image + channel * H * W + pixel % (H * W);
                    ((uint16_t *) (void *) p.other)[at] = 0;
                    if (odd == 4) // and so that some sums of gradients are denormal
                        ((uint16_t *) (void *) p.grad)[at] = (uint16_t) (i % 2 * 0x8000 + 1 + i % 90);
                }
                if (flags & TR_NORM_RELU)
                    p.residual = p.other;
                for (int64_t k = odd; k < C; k += 31) {
                    affine[0][k] = (float[]){1e-39f, -3e-41f, 3e38f, -NAN, 1e-37f}[odd];
                    affine[1][k] = (float[]){0, 2e-40f, 1, 0, -1e-38f}[odd];
                }
                one_by_one(&p, &results[0]);
                fused(&p, &results[1], true);
                cr_assert_arr_eq(results[0].y, results[1].y, image_bytes(&p), "flags %u, odd %d, last %d", flags, odd, last);
                cr_assert_arr_eq(results[0].dx, results[1].dx, image_bytes(&p), "flags %u, odd %d, last %d", flags, odd, last);
                cr_assert_arr_eq(results[0].dother, results[1].dother, image_bytes(&p), "flags %u, odd %d, last %d", flags, odd, last);
                if (!last)
                    memcpy(&results[2], &results[1], sizeof results[2]);
            }
            float *turned[] = {results[1].y, results[1].dx}, *want[] = {results[2].y, results[2].dx};
            for (int t = 0; t < 2; t++) {
                kc_unhalve(turned[t], N * C * H * W);
                kc_turn_images(planes, turned[t], N, H * W, C);
                kc_halve(planes, N * C * H * W);
                cr_assert_arr_eq(planes, want[t], (size_t) (N * C * H * W) * 2, "flags %u, odd %d, %s", flags, odd, t ? "dx" : "y");
            }
        }
}

Test(norm, gradients_may_lie_where_the_gradient_does) {
    for (int form = 0; form < 8; form++) {
        problem p = {.flags = 3, .training = true};
        make(&p, 20, form & 1, form & 4 ? TR_BF16 : TR_F32);
        bool passes = form & 2;
        fused(&p, &results[0], passes);
        memcpy(&results[1], &results[0], sizeof results[0]);
        memcpy(passes ? results[1].dother : results[1].dx, p.grad, image_bytes(&p));
        tr_norm_backward b = {.flags = 3,
                              .training = true,
                              .grad = image(&p, passes ? results[1].dother : results[1].dx),
                              .y = image(&p, results[1].y),
                              .x = image(&p, p.x),
                              .weight = vector(&p, p.w),
                              .mean = vector(&p, results[1].mean),
                              .inv = vector(&p, results[1].inv),
                              .dx = image(&p, results[1].dx),
                              .dweight = vector(&p, results[1].dw),
                              .dbias = vector(&p, results[1].db)};
        if (passes)
            b.dother = b.grad;
        cr_assert_eq(tr_norm_backward_fused(&b, &kc_ctx), TR_OK);
        kc_release();
        expect_same(&p, &results[0], &results[1], passes);
    }
}

Test(norm, layer_norm_of_a_sum) {
    enum { ROWS = 70, COLUMNS = 771 };
    static float x[ROWS * COLUMNS], o[ROWS * COLUMNS], s[2][ROWS * COLUMNS], y[2][ROWS * COLUMNS], m[2][ROWS], i[2][ROWS],
        w[COLUMNS], b[COLUMNS], dx[2][ROWS * COLUMNS], dw[2][COLUMNS], db[2][COLUMNS];
    kc_noise(x, ROWS * COLUMNS, 1);
    kc_noise(o, ROWS * COLUMNS, 2);
    kc_noise(w, COLUMNS, 3);
    kc_noise(b, COLUMNS, 4);
    tr_arg ax = kc_tensor(TR_F32, x, ROWS, COLUMNS), ao = kc_tensor(TR_F32, o, ROWS, COLUMNS),
           aw = kc_tensor(TR_F32, w, COLUMNS), ab = kc_tensor(TR_F32, b, COLUMNS);
    for (int k = 0; k < 2; k++) {
        tr_arg as = kc_tensor(TR_F32, s[k], ROWS, COLUMNS), ay = kc_tensor(TR_F32, y[k], ROWS, COLUMNS),
               am = kc_tensor(TR_F32, m[k], ROWS, 1), ai = kc_tensor(TR_F32, i[k], ROWS, 1);
        kc_ctx.threads = 1 + k;
        if (k == 0) {
            kc_call(add, TR_F32, (0), (as), ax, ao, kc_integer(1));
            kc_call(layer_norm, TR_F32, (1), (ay, am, ai), as, aw, ab, kc_number(1e-5));
        } else {
            tr_layer_norm_forward f = {.normalized_ndim = 1,
                                       .eps = 1e-5,
                                       .x = ax,
                                       .other = ao,
                                       .weight = aw,
                                       .bias = ab,
                                       .sum = as,
                                       .y = ay,
                                       .mean = am,
                                       .inv = ai};
            cr_assert_eq(tr_layer_norm_fused(&f, &kc_ctx), TR_OK);
            kc_release();
        }
        kc_call(layer_norm_backward, TR_F32, (1),
                (kc_tensor(TR_F32, dx[k], ROWS, COLUMNS), kc_tensor(TR_F32, dw[k], COLUMNS), kc_tensor(TR_F32, db[k], COLUMNS)),
                ao, as, aw, am, ai);
    }
    cr_assert_arr_eq(s[0], s[1], sizeof s[0]);
    cr_assert_arr_eq(y[0], y[1], sizeof y[0]);
    cr_assert_arr_eq(m[0], m[1], sizeof m[0]);
    cr_assert_arr_eq(i[0], i[1], sizeof i[0]);
    cr_assert_arr_eq(dx[0], dx[1], sizeof dx[0]);
    cr_assert_arr_eq(dw[0], dw[1], sizeof dw[0]);
    cr_assert_arr_eq(db[0], db[1], sizeof db[0]);
}
