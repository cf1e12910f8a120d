/* Reductions, softmax, norms, pooling, indexing, optimizers, matrix products and convolutions: values that can be checked by
 * eye, and forms that must agree. */
#include "kernel_call.h"

#include "terra/dnn.h"

TestSuite(kernels, .init = kc_init);

Test(kernels, every_op_has_one) {
    for (int op = 0; op < TR_OP_COUNT; op++)
        if (tr_op_info_of((tr_op) op)->op_class != TR_CLASS_VIEW)
            cr_assert_not_null(tr_kernel_of((tr_op) op), "%s", tr_op_info_of((tr_op) op)->name);
}

/* ---- reductions ---- */

Test(kernels, sums_over_any_dimensions) {
    float x[24], out[24];
    for (int i = 0; i < 24; i++)
        x[i] = (float) i;
    for (int mask = 1; mask < 8; mask++) {
        int64_t shape[3] = {2, 3, 4}, kept[3];
        float want[24] = {0};
        int n = 0, results = 1;
        for (int d = 0; d < 3; d++)
            if (!(mask >> d & 1)) {
                kept[n++] = shape[d];
                results *= (int) shape[d];
            }
        for (int i = 0; i < 24; i++) {
            int at = 0, index[] = {i / 12, i / 4 % 3, i % 4};
            for (int d = 0; d < 3; d++)
                if (!(mask >> d & 1))
                    at = at * (int) shape[d] + index[d];
            want[at] += x[i];
        }
        cr_assert_eq(
            kc_call(sum, TR_F32, (mask, 0, -1), (kc_strided(TR_F32, out, n, kept, NULL)), kc_tensor(TR_F32, x, 2, 3, 4)),
            TR_OK);
        kc_expect(out, want, results, 0, "sum");
    }
}

Test(kernels, sum_is_precise_and_independent_of_threads) {
    enum { N = 1 << 20 };
    float *x = malloc(N * sizeof *x), one, two;
    for (int i = 0; i < N; i++)
        x[i] = 0.1f;
    kc_ctx.threads = 1;
    kc_call(sum, TR_F32, (1, 0, -1), (kc_scalar(TR_F32, &one)), kc_tensor(TR_F32, x, N));
    kc_ctx.threads = 2;
    kc_call(sum, TR_F32, (1, 0, -1), (kc_scalar(TR_F32, &two)), kc_tensor(TR_F32, x, N));
    cr_assert_eq(one, two);
    cr_assert_eq(one, (float) (N * (double) 0.1f));
    free(x);
}

Test(kernels, sums_do_not_depend_on_layout_nor_threads) {
    enum { N = 5, C = 67, H = 31, W = 29, ALL = N * C * H * W };
    static float x[2][ALL];
    float sum[C], mean[C], var[C], same[C];
    kc_noise(x[0], ALL, 3);
    kc_turn_images(x[1], x[0], N, C, H * W);
    for (int last = 0; last < 2; last++)
        for (kc_ctx.threads = 1; kc_ctx.threads <= 3; kc_ctx.threads++) {
            tr_arg in = kc_images(x[last], last, N, C, H, W);
            bool first = !last && kc_ctx.threads == 1;
            kc_call(sum, TR_F32, (13, 0, -1), (kc_tensor(TR_F32, first ? sum : same, C)), in);
            cr_assert(first || memcmp(sum, same, sizeof sum) == 0);
            kc_call(mean, TR_F32, (13, 0, -1), (kc_tensor(TR_F32, first ? mean : same, C)), in);
            cr_assert(first || memcmp(mean, same, sizeof mean) == 0);
            kc_call(var, TR_F32, (13, 0), (kc_tensor(TR_F32, first ? var : same, C)), in, kc_integer(1));
            cr_assert(first || memcmp(var, same, sizeof var) == 0);
        }
}

static void to_bf16(uint16_t *half, float *x, int64_t n) {
    for (int64_t k = 0; k < n; k++) {
        uint32_t u;
        memcpy(&u, x + k, sizeof u);
        u = (u + 0x7fffu + (u >> 16 & 1)) & 0xffff0000u;
        half[k] = (uint16_t) (u >> 16);
        memcpy(x + k, &u, sizeof u);
    }
}

/* bfloat16 has the sums of the floats that it is. */
Test(kernels, sums_of_bfloat16) {
    enum { ROWS = 37, COLUMNS = 1067 };
    static float x[ROWS * COLUMNS], want[COLUMNS], have[COLUMNS];
    static uint16_t half[ROWS * COLUMNS];
    kc_noise(x, ROWS * COLUMNS, 4);
    to_bf16(half, x, ROWS * COLUMNS);
    for (int mask = 1; mask <= 2; mask++) {
        int64_t n = mask == 1 ? COLUMNS : ROWS;
        kc_call(sum, TR_F32, (mask, 0, -1), (kc_tensor(TR_F32, want, n)), kc_tensor(TR_F32, x, ROWS, COLUMNS));
        kc_call(sum, TR_F32, (mask, 0, -1), (kc_tensor(TR_F32, have, n)), kc_tensor(TR_BF16, half, ROWS, COLUMNS));
        cr_assert_arr_eq(want, have, (size_t) n * sizeof *want);
        kc_call(var, TR_F32, (mask, 0), (kc_tensor(TR_F32, want, n)), kc_tensor(TR_F32, x, ROWS, COLUMNS), kc_integer(1));
        kc_call(var, TR_F32, (mask, 0), (kc_tensor(TR_F32, have, n)), kc_tensor(TR_BF16, half, ROWS, COLUMNS), kc_integer(1));
        kc_expect(have, want, n, 1e-6, "var");
    }
}

/* ... and their cross-entropy; its gradient is theirs, rounded. */
Test(kernels, cross_entropy_of_bfloat16) {
    enum { N = 5, CLASSES = 2111 };
    static float x[N * CLASSES], d[N * CLASSES], loss[2], total[2], sums[2][N];
    static uint16_t half[N * CLASSES], want[N * CLASSES], have[N * CLASSES];
    int64_t target[N] = {0, 1023, -100, 1024, 2110};
    float one = 1;
    kc_noise(x, N * CLASSES, 5);
    to_bf16(half, x, N * CLASSES);
    for (int b = 0; b < 2; b++) {
        tr_arg in = b ? kc_tensor(TR_BF16, half, N, CLASSES) : kc_tensor(TR_F32, x, N, CLASSES),
               out = b ? kc_tensor(TR_BF16, have, N, CLASSES) : kc_tensor(TR_F32, d, N, CLASSES),
               t = kc_tensor(TR_I64, target, N), w = kc_scalar(TR_F32, &total[b]), s = kc_tensor(TR_F32, sums[b], N);
        kc_call(_cross_entropy, TR_F32, (1), (kc_scalar(TR_F32, &loss[b]), w, s), in, t, kc_none(), kc_integer(-100));
        kc_call(_cross_entropy_backward, TR_F32, (1), (out), kc_scalar(TR_F32, &one), in, t, kc_none(), w, s, kc_integer(-100));
    }
    cr_assert_eq(loss[0], loss[1]);
    cr_assert_arr_eq(sums[0], sums[1], sizeof sums[0]);
    to_bf16(want, d, N * CLASSES);
    cr_assert_arr_eq(want, have, sizeof want);
}

Test(kernels, extremes_and_nan) {
    float nan = NAN, x[] = {1, 5, 3, 2, nan, 9}, out[2];
    int64_t at[2];
    float want[] = {5, NAN};
    kc_call(amax, TR_F32, (2, 0), (kc_tensor(TR_F32, out, 2)), kc_tensor(TR_F32, x, 2, 3));
    kc_expect(out, want, 2, 0, "amax");
    kc_call(max_dim, TR_F32, (1, 0), (kc_tensor(TR_F32, out, 2), kc_tensor(TR_I64, at, 2)), kc_tensor(TR_F32, x, 2, 3));
    cr_assert_eq(at[0], 1);
    cr_assert_eq(at[1], 1); // NaN wins
    float ties[] = {4, 7, 7};
    kc_call(argmax, TR_F32, (TR_NONE, 0), (kc_scalar(TR_I64, at)), kc_tensor(TR_F32, ties, 3));
    cr_assert_eq(at[0], 1); // the first
}

Test(kernels, means_and_variances) {
    float x[] = {1000001, 1000002, 1000003, 1000004}, out;
    kc_call(var, TR_F32, (1, 0), (kc_scalar(TR_F32, &out)), kc_tensor(TR_F32, x, 4), kc_integer(1));
    cr_assert_float_eq(out, 5.0 / 3, 1e-6); // no digits lost to the mean
    kc_call(mean, TR_F32, (1, 0, -1), (kc_scalar(TR_F32, &out)), kc_tensor(TR_F32, NULL, 0));
    cr_assert(isnan(out));
}

Test(kernels, softmax_of_large_values) {
    float x[] = {1000, 1000, -1000, 0, 0, 0}, out[6], want[] = {0.5f, 0.5f, 0, 1 / 3.0f, 1 / 3.0f, 1 / 3.0f};
    kc_call(_softmax, TR_F32, (1), (kc_tensor(TR_F32, out, 2, 3)), kc_tensor(TR_F32, x, 2, 3));
    kc_expect(out, want, 6, 1e-6, "softmax");
}

Test(kernels, nll_checks_targets) {
    float x[] = {-1, -2, -3, -4}, w[] = {1, 3}, loss, weight;
    int64_t target[] = {1, 0}, bad[] = {0, 2};
    tr_arg out[] = {kc_scalar(TR_F32, &loss), kc_scalar(TR_F32, &weight)};
    tr_arg in[] = {kc_tensor(TR_F32, x, 2, 2), kc_tensor(TR_I64, target, 2), kc_tensor(TR_F32, w, 2), kc_integer(-100)};
    cr_assert_eq(kc_run(TR_OP_nll_loss, TR_F32, (int64_t[]){1}, 4, in, 2, out), TR_OK);
    cr_assert_float_eq(loss, (2 * 3 + 3) / 4.0, 1e-6);
    cr_assert_eq(weight, 4);
    in[1] = kc_tensor(TR_I64, bad, 2);
    cr_assert_eq(kc_run(TR_OP_nll_loss, TR_F32, (int64_t[]){1}, 4, in, 2, out), TR_E_INDEX);
    cr_assert_str_eq(tr_status_detail(), "Target 2 is out of bounds.");
}

/* ---- pooling ---- */

Test(kernels, max_pool_indices_padding_and_nan) {
    float x[] = {1, 2, 3, 4, 5, 6, 7, 8, NAN}, y[4], want[] = {1, 3, 7, NAN}, d[9], grad[] = {1, 2, 3, 4};
    int64_t at[4], where[] = {0, 2, 6, 8};
    tr_arg in = kc_tensor(TR_F32, x, 1, 3, 3), out = kc_tensor(TR_F32, y, 1, 2, 2), index = kc_tensor(TR_I64, at, 1, 2, 2);
    kc_call(max_pool2d, TR_F32, (2, 2, 2, 2, 1, 1, 1, 1, 0), (out, index), in);
    kc_expect(y, want, 4, 0, "max_pool2d");
    cr_assert_arr_eq(at, where, sizeof at);
    float back[] = {1, 0, 2, 0, 0, 0, 3, 0, 4};
    kc_call(max_pool2d_backward, TR_F32, (0), (kc_tensor(TR_F32, d, 1, 3, 3)), kc_tensor(TR_F32, grad, 1, 2, 2), in, index);
    kc_expect(d, back, 9, 0, "max_pool2d_backward");
}

Test(kernels, avg_pool_counts_padding_or_not) {
    float x[] = {4, 8, 12, 16}, y[1];
    kc_call(avg_pool2d, TR_F32, (3, 3, 3, 3, 1, 1, 0, 1, 0), (kc_tensor(TR_F32, y, 1, 1, 1)), kc_tensor(TR_F32, x, 1, 2, 2));
    cr_assert_float_eq(y[0], 40 / 9.0, 1e-6);
    kc_call(avg_pool2d, TR_F32, (3, 3, 3, 3, 1, 1, 0, 0, 0), (kc_tensor(TR_F32, y, 1, 1, 1)), kc_tensor(TR_F32, x, 1, 2, 2));
    cr_assert_float_eq(y[0], 10, 1e-6);
}

/* ---- indexing ---- */

Test(kernels, index_wraps_and_checks) {
    float x[] = {1, 2, 3, 4, 5, 6}, out[4], want[] = {5, 6, 1, 2};
    int64_t i[] = {-1, 0}, bad[] = {0, 3};
    kc_call(index, TR_F32, (1), (kc_tensor(TR_F32, out, 2, 2)), kc_tensor(TR_F32, x, 3, 2), kc_tensor(TR_I64, i, 2));
    kc_expect(out, want, 4, 0, "index");
    cr_assert_eq(
        kc_call(index, TR_F32, (1), (kc_tensor(TR_F32, out, 2, 2)), kc_tensor(TR_F32, x, 3, 2), kc_tensor(TR_I64, bad, 2)),
        TR_E_INDEX);
    cr_assert_str_eq(tr_status_detail(), "index 3 is out of bounds for dimension 0 with size 3");
}

Test(kernels, index_put_accumulates_in_order) {
    float x[] = {0, 0, 0}, v[] = {1, 2, 4}, sum[] = {5, 2, 0}, last[] = {4, 2, 0};
    int64_t i[] = {0, 1, 0};
    tr_arg in[] = {kc_tensor(TR_F32, x, 3), kc_tensor(TR_F32, v, 3), kc_tensor(TR_I64, i, 3)};
    kc_run(TR_OP_index_put_, TR_F32, (int64_t[]){1, 1}, 3, in, 0, NULL);
    kc_expect(x, sum, 3, 0, "accumulate");
    memset(x, 0, sizeof x);
    kc_run(TR_OP_index_put_, TR_F32, (int64_t[]){1, 0}, 3, in, 0, NULL);
    kc_expect(x, last, 3, 0, "the last stays");
}

Test(kernels, failing_index_put_changes_nothing) {
    float x[] = {1, 2, 3}, same[] = {1, 2, 3};
    int64_t i[] = {0, 7};
    tr_arg in[] = {kc_tensor(TR_F32, x, 3), kc_integer(9), kc_tensor(TR_I64, i, 2)};
    cr_assert_eq(kc_run(TR_OP_index_put_, TR_F32, (int64_t[]){1, 0}, 3, in, 0, NULL), TR_E_INDEX);
    kc_expect(x, same, 3, 0, "unchanged");
}

Test(kernels, embedding_and_back) {
    float w[] = {1, 2, 3, 4, 5, 6}, y[6], want[] = {5, 6, 1, 2, 5, 6}, d[6], back[] = {1, 1, 0, 0, 2, 2},
          ones[] = {1, 1, 1, 1, 1, 1};
    int64_t i[] = {2, 0, 2}, bad[] = {3};
    kc_call(embedding, TR_F32, (-1), (kc_tensor(TR_F32, y, 3, 2)), kc_tensor(TR_F32, w, 3, 2), kc_tensor(TR_I64, i, 3));
    kc_expect(y, want, 6, 0, "embedding");
    kc_call(embedding_backward, TR_F32, (3, -1), (kc_tensor(TR_F32, d, 3, 2)), kc_tensor(TR_F32, ones, 3, 2),
            kc_tensor(TR_I64, i, 3));
    kc_expect(d, back, 6, 0, "embedding_backward");
    cr_assert_eq(
        kc_call(embedding, TR_F32, (-1), (kc_tensor(TR_F32, y, 1, 2)), kc_tensor(TR_F32, w, 3, 2), kc_tensor(TR_I64, bad, 1)),
        TR_E_INDEX);
    cr_assert_str_eq(tr_status_detail(), "index out of range in self");
}

Test(kernels, cat_pad_flip_roll) {
    float x[] = {1, 2, 3, 4}, z[] = {9, 8}, out[12], both[] = {1, 2, 9, 3, 4, 8}, padded[] = {0, 1, 0, 3},
          flipped[] = {2, 1, 4, 3}, rolled[] = {3, 4, 1, 2};
    tr_arg in = kc_tensor(TR_F32, x, 2, 2), out4 = kc_tensor(TR_F32, out, 2, 2);
    kc_call(cat, TR_F32, (1), (kc_tensor(TR_F32, out, 2, 3)), in, kc_tensor(TR_F32, z, 2, 1));
    kc_expect(out, both, 6, 0, "cat");
    kc_call(constant_pad_nd, TR_F32, (1, 1, 0, 0, 0, 0, 0, 0, 0, 1, -1), (out4), in, kc_integer(0)); // crops at the end
    kc_expect(out, padded, 4, 0, "pad");
    kc_call(flip, TR_F32, (2), (out4), in);
    kc_expect(out, flipped, 4, 0, "flip");
    kc_call(roll, TR_F32, (-1, 0), (out4), in);
    kc_expect(out, rolled, 4, 0, "roll");
}

Test(kernels, sort_is_stable_and_topk_agrees) {
    enum { N = 200 };
    float x[N], v[N], t[20];
    int64_t at[N], top[20];
    for (int i = 0; i < N; i++)
        x[i] = (float) (i * 37 % 50);
    kc_call(sort, TR_F32, (0, 1, 1), (kc_tensor(TR_F32, v, N), kc_tensor(TR_I64, at, N)), kc_tensor(TR_F32, x, N));
    for (int i = 1; i < N; i++) {
        cr_assert_geq(v[i - 1], v[i]);
        if (v[i - 1] == v[i])
            cr_assert_lt(at[i - 1], at[i]);
        cr_assert_eq(x[at[i]], v[i]);
    }
    kc_call(topk, TR_F32, (20, 0, 1, 1), (kc_tensor(TR_F32, t, 20), kc_tensor(TR_I64, top, 20)), kc_tensor(TR_F32, x, N));
    cr_assert_arr_eq(t, v, sizeof t);
    cr_assert_arr_eq(top, at, sizeof top);
}

Test(kernels, overlapping_view_accumulates) {
    float g[] = {1, 1, 1, 1}, out[4], want[] = {0, 1, 2, 1}; // windows of 2 by 1 from element 1
    kc_call(as_strided_scatter, TR_F32, (1, 4, 0, 0, 0, 0, 0, 0, 0, 2, 1, 1), (kc_tensor(TR_F32, out, 4)),
            kc_tensor(TR_F32, g, 2, 2), kc_integer(1));
    kc_expect(out, want, 4, 0, "as_strided_scatter");
}

/* ---- random ---- the first words of MT19937 for seed 5489 are in its authors' test: 3499211612, 581869302, 3890346734 */

Test(kernels, generator_words) {
    tr_generator g;
    tr_generator_seed(&g, 5489);
    cr_assert_eq(tr_generator_word(&g), 3499211612u);
    cr_assert_eq(tr_generator_word(&g), 581869302u);
    cr_assert_eq(tr_generator_word(&g), 3890346734u);
}

Test(kernels, bulk_draws_are_the_same_words) {
    enum { N = 2000 };
    static float y[N];
    tr_generator g, h;
    tr_generator_seed(&g, 7);
    tr_generator_seed(&h, 7);
    kc_call(uniform_, TR_F32, (0), (kc_tensor(TR_F32, y, N)), kc_tensor(TR_F32, y, N), kc_integer(0), kc_integer(1),
            kc_tensor(TR_U8, &g, sizeof g));
    for (int i = 0; i < N; i++)
        cr_assert_eq(y[i], (float) (tr_generator_word(&h) & 0xffffff) * 0x1p-24f);
    cr_assert_eq(tr_generator_word(&g), tr_generator_word(&h));
}

Test(kernels, dropout_scales_what_it_keeps) {
    enum { N = 10000 };
    static float x[N], y[N];
    static uint8_t mask[N];
    tr_generator g;
    int kept = 0;
    tr_generator_seed(&g, 1);
    for (int i = 0; i < N; i++)
        x[i] = 1;
    kc_call(_dropout, TR_F32, (0), (kc_tensor(TR_F32, y, N), kc_tensor(TR_BOOL, mask, N)), kc_tensor(TR_F32, x, N),
            kc_number(0.25), kc_tensor(TR_U8, &g, sizeof g));
    for (int i = 0; i < N; i++) {
        kept += mask[i];
        cr_assert_eq(y[i], mask[i] ? 1 / 0.75f : 0);
    }
    cr_assert(kept > 7300 && kept < 7700);
}

/* ---- optimizers ---- */

Test(kernels, many_updates_equal_single_ones) {
    enum { N = 5, SIZE = 3001 };
    static float p[2][N][SIZE], g[N][SIZE], m[2][N][SIZE], v[2][N][SIZE];
    tr_arg in[N][11];
    tr_kernel_call calls[N];
    static const int64_t attrs[] = {1, 0};
    for (int k = 0; k < N; k++) {
        kc_noise(p[0][k], SIZE, (uint32_t) k);
        memcpy(p[1][k], p[0][k], sizeof p[0][k]);
        kc_noise(g[k], SIZE, (uint32_t) k + 10);
        for (int form = 0; form < 2; form++) {
            int n = SIZE - 700 * k;
            tr_arg a[] = {kc_tensor(TR_F32, p[form][k], n),
                          kc_tensor(TR_F32, g[k], n),
                          kc_tensor(TR_F32, m[form][k], n),
                          kc_tensor(TR_F32, v[form][k], n),
                          kc_none(),
                          kc_number(0.01),
                          kc_number(0.9),
                          kc_number(0.999),
                          kc_number(1e-8),
                          kc_number(0.1),
                          kc_number(1)};
            if (form == 0)
                cr_assert_eq(kc_run(TR_OP__adam_, TR_F32, attrs, 11, a, 0, NULL), TR_OK);
            else
                memcpy(in[k], a, sizeof a);
        }
        calls[k] =
            (tr_kernel_call){.op = TR_OP__adam_, .cdtype = TR_F32, .n_in = 11, .attrs = attrs, .in = in[k], .ctx = &kc_ctx};
    }
    cr_assert_eq(tr_kernel_multi(TR_OP__adam_, calls, N), TR_OK);
    kc_release();
    for (int k = 0; k < N; k++)
        kc_expect(p[1][k], p[0][k], SIZE, 0, "update");
    // The first step of AdamW moves each weight by lr against its gradient, after the decay.
    float first;
    kc_noise(&first, 1, 0);
    cr_assert_float_eq(p[0][0][0], first * (1 - 0.001f) - (g[0][0] > 0 ? 0.01f : -0.01f), 1e-6);
}

/* A gradient that lies as bfloat16 is the float32 one that it stands for, and the copy beside a parameter its cast: of all
 * optimizers, also where a state lies otherwise than the parameter, so that there is no flat pass. */
Test(kernels, updates_with_gradients_and_copies_of_bfloat16) {
    enum { ROWS = 33, COLUMNS = 37, SIZE = ROWS * COLUMNS };
    static const struct {
        tr_op op;
        int states, numbers;
        int64_t attrs[3];
    } of[] = {{TR_OP__sgd_, 1, 4, {1, 0, 0}}, {TR_OP__adam_, 3, 6, {1, 0}}, {TR_OP__rmsprop_, 3, 5, {0}}};
    static float p[2][SIZE], g[SIZE], state[2][3][SIZE];
    static uint16_t narrow[SIZE], copy[SIZE], cast[SIZE];
    for (int form = 0; form < 6; form++) {
        int which = form / 2, n_in = 2 + of[which].states + of[which].numbers;
        int64_t turned[] = {1, ROWS};
        kc_noise(g, SIZE, 3);
        kc_halve(g, SIZE);
        memcpy(narrow, g, sizeof narrow);
        kc_unhalve(g, SIZE);
        for (int side = 0; side < 2; side++) {
            kc_noise(p[side], SIZE, 1);
            for (int k = 0; k < 3; k++)
                for (int i = 0; i < SIZE; i++)
                    state[side][k][i] = 2 + k + (float) (i % 7); // positive, and none a mean that its square would exceed
            tr_arg a[11] = {kc_tensor(TR_F32, p[side], ROWS, COLUMNS), kc_tensor(TR_F32, g, ROWS, COLUMNS)};
            for (int k = 0; k < of[which].states; k++)
                a[2 + k] = kc_strided(TR_F32, state[side][k], 2, (int64_t[]){ROWS, COLUMNS}, form & 1 ? turned : NULL);
            if (which == 2)
                a[4] = kc_none();
            for (int k = 2 + of[which].states; k < n_in; k++)
                a[k] = kc_number(0.125 * (k % 5 + 1));
            if (side) {
                cr_assert_eq(tr_home_of_bf16(a[1].meta, &a[1].home), TR_OK);
                a[1].data = narrow;
                a[0].copy = memset(copy, 0x55, sizeof copy);
            }
            cr_assert_eq(kc_run(of[which].op, TR_F32, of[which].attrs, n_in, a, 0, NULL), TR_OK);
        }
        kc_expect(p[1], p[0], SIZE, 0, "parameter");
        for (int k = 0; k < of[which].states; k++)
            kc_expect(state[1][k], state[0][k], SIZE, 0, "state");
        kc_call(_cast, TR_BF16, (TR_BF16), (kc_tensor(TR_BF16, cast, SIZE)), kc_tensor(TR_F32, p[1], SIZE));
        cr_assert_arr_eq(copy, cast, sizeof cast, "form %d", form);
    }
}

/* ---- matrix products, convolutions ---- */

enum { ROOM = 640 * 80 };
static float lhs[ROOM], rhs[ROOM], got[ROOM], want[ROOM];

static void naive(const float *a, const float *b, float *y, int m, int n, int k) {
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            double s = 0;
            for (int l = 0; l < k; l++)
                s += (double) a[i * k + l] * b[l * n + j];
            y[i * n + j] = (float) s;
        }
}

static void mm_in_every_layout(int m, int n, int k) {
    static float at[ROOM], bt[ROOM];
    kc_noise(lhs, m * k, 1);
    kc_noise(rhs, k * n, 2);
    for (int i = 0; i < m * k; i++)
        at[i % k * m + i / k] = lhs[i];
    for (int i = 0; i < k * n; i++)
        bt[i % n * k + i / n] = rhs[i];
    naive(lhs, rhs, want, m, n, k);
    int64_t sa[] = {m, k}, sb[] = {k, n};
    tr_arg a[] = {kc_tensor(TR_F32, lhs, m, k), kc_strided(TR_F32, at, 2, sa, (int64_t[]){1, m})};
    tr_arg b[] = {kc_tensor(TR_F32, rhs, k, n), kc_strided(TR_F32, bt, 2, sb, (int64_t[]){1, k})};
    for (int form = 0; form < 4; form++)
        for (int time = 0; time < 3; time++) { // the first goes through the generic product, later ones through a primitive
            memset(got, 0, sizeof got);
            cr_assert_eq(kc_call(mm, TR_F32, (0), (kc_tensor(TR_F32, got, m, n)), a[form & 1], b[form >> 1]), TR_OK);
            kc_expect(got, want, m * n, 1e-5, "mm");
        }
}

Test(kernels, mm_in_every_layout) {
    mm_in_every_layout(17, 23, 31);
}

/* The library is given the right matrix in its own blocks. */
Test(kernels, mm_of_many_rows) {
    mm_in_every_layout(600, 70, 45);
    mm_in_every_layout(512, 1, 64);
}

Test(kernels, addmm_without_beta_ignores_nan) {
    float a[] = {1, 2}, b[] = {3, 4}, nan[] = {NAN}, bias[] = {5}, y[1];
    tr_arg in[] = {kc_tensor(TR_F32, nan, 1), kc_tensor(TR_F32, a, 1, 2), kc_tensor(TR_F32, b, 2, 1), kc_integer(0),
                   kc_number(2)};
    tr_arg out = kc_tensor(TR_F32, y, 1, 1);
    for (int time = 0; time < 2; time++) {
        kc_run(TR_OP_addmm, TR_F32, NULL, 5, in, 1, &out);
        cr_assert_eq(y[0], 22);
    }
    in[0] = kc_tensor(TR_F32, bias, 1);
    in[3] = in[4] = kc_integer(1);
    for (int time = 0; time < 2; time++) {
        kc_run(TR_OP_addmm, TR_F32, NULL, 5, in, 1, &out);
        cr_assert_eq(y[0], 16);
    }
}

Test(kernels, integer_and_double_products) {
    int64_t a[] = {1, 2, 3, 4}, b[] = {5, 6, 7, 8}, y[4], want[] = {19, 22, 43, 50};
    kc_call(mm, TR_I64, (0), (kc_tensor(TR_I64, y, 2, 2)), kc_tensor(TR_I64, a, 2, 2), kc_tensor(TR_I64, b, 2, 2));
    cr_assert_arr_eq(y, want, sizeof y);
}

/* A 3x3 convolution of ones with ones counts the places that lie inside. Its derivatives do, too. */
Test(kernels, convolution_counts) {
    enum { C = 16 };
    static float x[C * 16], w[C * C * 9], y[C * 16], d[C * 16], dw[C * C * 9];
    for (int i = 0; i < C * 16; i++)
        x[i] = 1;
    for (int i = 0; i < C * C * 9; i++)
        w[i] = 1;
    tr_arg tx = kc_tensor(TR_F32, x, 1, C, 4, 4), tw = kc_tensor(TR_F32, w, C, C, 3, 3), ty = kc_tensor(TR_F32, y, 1, C, 4, 4);
    static const float inside[] = {2, 3, 3, 2};
    cr_assert_eq(kc_call(conv2d, TR_F32, (1, 1, 1, 1, 1, 1, 1), (ty), tx, tw, kc_none()), TR_OK);
    cr_assert_eq(kc_call(conv2d_backward_data, TR_F32, (1, 1, 1, 1, 1, 1, 1, 4, 4), (kc_tensor(TR_F32, d, 1, C, 4, 4)), tx, tw),
                 TR_OK);
    cr_assert_eq(
        kc_call(conv2d_backward_weights, TR_F32, (1, 1, 1, 1, 1, 1, 1, 3, 3), (kc_tensor(TR_F32, dw, C, C, 3, 3)), tx, tx),
        TR_OK);
    for (int i = 0; i < C * 16; i++) {
        cr_assert_eq(y[i], C * inside[i / 4 % 4] * inside[i % 4]);
        cr_assert_eq(d[i], C * inside[i / 4 % 4] * inside[i % 4]);
    }
    static const float rows[] = {3, 4, 3};
    for (int i = 0; i < C * C * 9; i++)
        cr_assert_eq(dw[i], rows[i / 3 % 3] * rows[i % 3]);
}
