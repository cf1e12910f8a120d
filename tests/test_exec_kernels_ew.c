/* The tile engine: every elementwise operator in each instruction set, layouts, dtypes, fused programs. */
#include "kernel_call.h"

#define NAN_ (0.0f / 0.0f)

TestSuite(ew, .init = kc_init);

static float a[6000], b[6000], y[6000], z[6000];

Test(ew, adds_with_alpha) {
    float x[] = {1, 2, 3}, w[] = {10, 20, 30}, out[3], want[] = {6, 12, 18};
    cr_assert_eq(kc_call(add, TR_F32, (0), (kc_tensor(TR_F32, out, 3)), kc_tensor(TR_F32, x, 3), kc_tensor(TR_F32, w, 3),
                         kc_number(0.5)),
                 TR_OK);
    kc_expect(out, want, 3, 0, "add");
}

Test(ew, broadcasts) {
    float row[] = {1, 2, 3}, column[] = {10, 20}, out[6], want[] = {11, 12, 13, 21, 22, 23};
    cr_assert_eq(kc_call(add, TR_F32, (0), (kc_tensor(TR_F32, out, 2, 3)), kc_tensor(TR_F32, column, 2, 1),
                         kc_tensor(TR_F32, row, 3), kc_integer(1)),
                 TR_OK);
    kc_expect(out, want, 6, 0, "broadcast");
}

Test(ew, keeps_nan) {
    float x[] = {NAN_, 1, -1, NAN_}, w[] = {0, NAN_, -2, NAN_}, out[4], want[] = {NAN_, NAN_, -1, NAN_},
          relu[] = {NAN_, 1, 0, NAN_};
    kc_call(maximum, TR_F32, (0), (kc_tensor(TR_F32, out, 4)), kc_tensor(TR_F32, x, 4), kc_tensor(TR_F32, w, 4));
    kc_expect(out, want, 4, 0, "maximum");
    kc_call(relu, TR_F32, (0), (kc_tensor(TR_F32, out, 4)), kc_tensor(TR_F32, x, 4));
    kc_expect(out, relu, 4, 0, "relu");
    kc_call(clamp, TR_F32, (0), (kc_tensor(TR_F32, out, 4)), kc_tensor(TR_F32, x, 4), kc_integer(0), kc_none());
    kc_expect(out, relu, 4, 0, "clamp");
}

Test(ew, rounds_half_to_even) {
    float x[] = {0.5f, 1.5f, 2.5f, -0.5f, -1.5f}, out[5], want[] = {0, 2, 2, -0.0f, -2};
    kc_call(round, TR_F32, (0), (kc_tensor(TR_F32, out, 5)), kc_tensor(TR_F32, x, 5));
    kc_expect(out, want, 5, 0, "round");
}

Test(ew, divides_integers) {
    int64_t x[] = {7, -7, 7, -7}, w[] = {2, 2, -2, -2}, out[4];
    int64_t trunc[] = {3, -3, -3, 3}, floor[] = {3, -4, -4, 3}, remainder[] = {1, 1, -1, -1}, fmod[] = {1, -1, 1, -1};
    tr_arg in[] = {kc_tensor(TR_I64, x, 4), kc_tensor(TR_I64, w, 4)}, o = kc_tensor(TR_I64, out, 4);
    kc_run(TR_OP_div, TR_I64, (int64_t[]){1}, 2, in, 1, &o);
    cr_assert_arr_eq(out, trunc, sizeof out);
    kc_run(TR_OP_div, TR_I64, (int64_t[]){2}, 2, in, 1, &o);
    cr_assert_arr_eq(out, floor, sizeof out);
    kc_run(TR_OP_remainder, TR_I64, NULL, 2, in, 1, &o);
    cr_assert_arr_eq(out, remainder, sizeof out);
    kc_run(TR_OP_fmod, TR_I64, NULL, 2, in, 1, &o);
    cr_assert_arr_eq(out, fmod, sizeof out);
}

Test(ew, divides_integers_truly) {
    int64_t x[] = {7, 1};
    float out[2], want[] = {3.5f, 0.5f};
    kc_call(div, TR_I64, (0), (kc_tensor(TR_F32, out, 2)), kc_tensor(TR_I64, x, 2), kc_integer(2));
    kc_expect(out, want, 2, 0, "true division");
}

Test(ew, zero_divisor_is_an_error_and_changes_nothing) {
    int64_t x[] = {7, -7}, w[] = {1, 0};
    tr_arg o = kc_tensor(TR_I64, x, 2);
    cr_assert_eq(kc_call(remainder, TR_I64, (0), (o), o, kc_tensor(TR_I64, w, 2)), TR_E_RUNTIME);
    cr_assert_str_eq(tr_status_detail(), "ZeroDivisionError");
    cr_assert_eq(x[0], 7);
    cr_assert_eq(kc_call(div, TR_I64, (1), (o), o, kc_integer(0)), TR_E_RUNTIME);
}

Test(ew, integers_wrap) {
    uint8_t x[] = {250, 3}, out[2];
    int32_t i[] = {INT32_MAX}, j[1];
    kc_call(add, TR_U8, (0), (kc_tensor(TR_U8, out, 2)), kc_tensor(TR_U8, x, 2), kc_integer(10), kc_integer(1));
    cr_assert_eq(out[0], 4);
    kc_call(neg, TR_U8, (0), (kc_tensor(TR_U8, out, 2)), kc_tensor(TR_U8, x, 2));
    cr_assert_eq(out[1], 253);
    kc_call(add, TR_I32, (0), (kc_tensor(TR_I32, j, 1)), kc_tensor(TR_I32, i, 1), kc_integer(1), kc_integer(1));
    cr_assert_eq(j[0], INT32_MIN);
}

Test(ew, integer_powers) {
    int64_t x[] = {2, -3, 1, -1}, e[] = {10, 3, -5, -3}, out[4], want[] = {1024, -27, 1, -1};
    kc_call(pow, TR_I64, (0), (kc_tensor(TR_I64, out, 4)), kc_tensor(TR_I64, x, 4), kc_tensor(TR_I64, e, 4));
    cr_assert_arr_eq(out, want, sizeof out);
    cr_assert_eq(kc_call(pow, TR_I64, (0), (kc_tensor(TR_I64, out, 4)), kc_tensor(TR_I64, x, 4), kc_integer(-1)), TR_E_RUNTIME);
}

Test(ew, bool_arithmetic) {
    uint8_t x[] = {1, 1, 0}, w[] = {1, 0, 0}, out[3], either[] = {1, 1, 0}, both[] = {1, 0, 0};
    kc_call(add, TR_BOOL, (0), (kc_tensor(TR_BOOL, out, 3)), kc_tensor(TR_BOOL, x, 3), kc_tensor(TR_BOOL, w, 3), kc_integer(1));
    cr_assert_arr_eq(out, either, 3);
    kc_call(mul, TR_BOOL, (0), (kc_tensor(TR_BOOL, out, 3)), kc_tensor(TR_BOOL, x, 3), kc_tensor(TR_BOOL, w, 3));
    cr_assert_arr_eq(out, both, 3);
}

Test(ew, casts) {
    float x[] = {-1.5f, 0, 2.9f, NAN_};
    int32_t i[4], want[] = {-1, 0, 2};
    uint8_t t[4], truth[] = {1, 0, 1, 1};
    uint16_t h[4];
    kc_call(_cast, TR_I32, (TR_I32), (kc_tensor(TR_I32, i, 4)), kc_tensor(TR_F32, x, 4));
    cr_assert_arr_eq(i, want, sizeof want);
    kc_call(_cast, TR_BOOL, (TR_BOOL), (kc_tensor(TR_BOOL, t, 4)), kc_tensor(TR_F32, x, 4));
    cr_assert_arr_eq(t, truth, 4);
    kc_call(_cast, TR_BF16, (TR_BF16), (kc_tensor(TR_BF16, h, 4)), kc_tensor(TR_F32, x, 4));
    cr_assert_eq(h[0], 0xbfc0);
    cr_assert_eq(h[3], 0x7fc0);
}

Test(ew, fills_and_copies_into_views) {
    float x[6] = {0}, src[] = {1, 2}, want[] = {0, 1, 0, 0, 2, 0}, filled[] = {0, 7, 0, 0, 7, 0};
    tr_arg column = kc_strided(TR_F32, x + 1, 1, (int64_t[]){2}, (int64_t[]){3});
    kc_call(copy_, TR_F32, (0), (column), column, kc_tensor(TR_F32, src, 2));
    kc_expect(x, want, 6, 0, "copy_");
    kc_call(fill_, TR_F32, (0), (column), column, kc_integer(7));
    kc_expect(x, filled, 6, 0, "fill_");
}

Test(ew, empty_and_scalar) {
    float x = 4, out;
    cr_assert_eq(kc_call(sqrt, TR_F32, (0), (kc_scalar(TR_F32, &out)), kc_scalar(TR_F32, &x)), TR_OK);
    cr_assert_eq(out, 2);
    cr_assert_eq(kc_call(sqrt, TR_F32, (0), (kc_tensor(TR_F32, NULL, 0, 3)), kc_tensor(TR_F32, NULL, 0, 3)), TR_OK);
}

/* ---- every operator, against itself in another form ---- */

static bool is_float_unary(tr_op op) {
    const tr_op_info *info = tr_op_info_of(op);
    return info->op_class == TR_CLASS_EW && info->n_operands == 1 && op != TR_OP_bitwise_not && op != TR_OP__cast;
}
static bool is_float_binary(tr_op op) {
    return (op >= TR_OP_add && op <= TR_OP_ge) || op == TR_OP_gelu_backward;
}
static bool gives_bool(tr_op op) {
    return (op >= TR_OP_eq && op <= TR_OP_logical_xor) || op == TR_OP_isnan || op == TR_OP_isinf || op == TR_OP_isfinite ||
           op == TR_OP_logical_not;
}

static void run_op(tr_op op, tr_arg x, tr_arg w, tr_arg out) {
    tr_arg in[] = {x, w, kc_number(1.5)};
    int n = is_float_unary(op) ? 1 : op == TR_OP_add || op == TR_OP_sub ? 3 : 2;
    cr_assert_eq(kc_run(op, TR_F32, (int64_t[]){0, 0, 0}, n, in, 1, &out), TR_OK, "%s", tr_op_info_of(op)->name);
}

/* Results of each instruction set agree; the vectors' tails too (5999 is no multiple of anything). */
Test(ew, instruction_sets_agree) {
    static const char *const isas[] = {"v3", "v4"};
    enum { N = 5999 };
    kc_noise(a, N, 1);
    kc_noise(b, N, 2);
    for (int op = 0; op < TR_OP_COUNT; op++) {
        if ((!is_float_unary((tr_op) op) && !is_float_binary((tr_op) op)) || gives_bool((tr_op) op))
            continue;
        cr_assert_eq(tr_kernel_init("v2"), TR_OK);
        run_op((tr_op) op, kc_tensor(TR_F32, a, N), kc_tensor(TR_F32, b, N), kc_tensor(TR_F32, y, N));
        for (int i = 0; i < 2; i++) {
            if (tr_kernel_init(isas[i]) != TR_OK)
                continue;
            run_op((tr_op) op, kc_tensor(TR_F32, a, N), kc_tensor(TR_F32, b, N), kc_tensor(TR_F32, z, N));
            kc_expect(z, y, N, 1e-6, tr_op_info_of((tr_op) op)->name);
        }
    }
}

/* A permuted, a sliced and a broadcast operand give what their dense copies give. */
Test(ew, layouts_agree) {
    enum { R = 37, C = 53 };
    static const int64_t shape[] = {R, C};
    static float dense[R * C], wide[R * C * 2];
    kc_noise(b, R * C, 3);
    kc_noise(wide, R * C * 2, 4);
    tr_arg strided = kc_strided(TR_F32, wide, 2, shape, (int64_t[]){2, 2 * R}), copy = kc_tensor(TR_F32, dense, R, C);
    kc_call(_contiguous, TR_F32, (0), (copy), strided);
    for (int i = 0; i < R * C; i++)
        cr_assert_eq(dense[i], wide[i / C * 2 + i % C * 2 * R]);
    for (int op = 0; op < TR_OP_COUNT; op++) {
        if ((!is_float_unary((tr_op) op) && !is_float_binary((tr_op) op)) || gives_bool((tr_op) op))
            continue;
        tr_arg row = kc_strided(TR_F32, b, 2, shape, (int64_t[]){0, 1});
        run_op((tr_op) op, copy, row, kc_tensor(TR_F32, y, R, C));
        run_op((tr_op) op, strided, kc_tensor(TR_F32, b, C), kc_strided(TR_F32, z, 2, shape, (int64_t[]){1, R}));
        for (int i = 0; i < R * C; i++) {
            float got = z[i / C + i % C * R], want = y[i];
            cr_assert(got == want || (isnan(got) && isnan(want)), "%s", tr_op_info_of((tr_op) op)->name);
        }
    }
}

/* relu(x * 2 + bias) > 1, masked: one program equals its ops one by one. Both results are stored. */
Test(ew, fused_program) {
    enum { N = 3000 };
    static uint8_t mask[N];
    static float bias[30];
    kc_noise(a, N, 5);
    kc_noise(bias, 30, 6);
    tr_arg args[] = {kc_tensor(TR_F32, a, 100, 30),     kc_integer(2),
                     kc_tensor(TR_F32, bias, 30),       kc_tensor(TR_F32, y, 100, 30),
                     kc_tensor(TR_BOOL, mask, 100, 30), kc_number(1.0)};
    int16_t none = TR_EW_ABSENT;
    tr_ew_program p = {.n_steps = 4,
                       .n_args = 6,
                       .steps = {{TR_OP_mul, TR_F32, TR_F32, {0, 1, none, none, none}, -1, 0},
                                 {TR_OP_add, TR_F32, TR_F32, {~0, 2, none, none, none}, -1, 0},
                                 {TR_OP_relu, TR_F32, TR_F32, {~1, none, none, none, none}, 3, 0},
                                 {TR_OP_gt, TR_F32, TR_BOOL, {~2, 5, none, none, none}, 4, 0}}};
    cr_assert_eq(tr_ew_run(&p, args[0].meta, args, &kc_ctx), TR_OK);
    for (int i = 0; i < N; i++) {
        float want = a[i] * 2 + bias[i % 30];
        want = want > 0 ? want : 0;
        cr_assert_eq(y[i], want);
        cr_assert_eq(mask[i], want > 1);
    }
}

/* In place, with the old value read again by a later step: loads come before stores. */
Test(ew, program_in_place) {
    enum { N = 5000 };
    kc_noise(a, N, 7);
    memcpy(b, a, sizeof a);
    int16_t none = TR_EW_ABSENT;
    tr_arg args[] = {kc_tensor(TR_F32, a, N), kc_integer(3), kc_tensor(TR_F32, y, N)};
    tr_ew_program p = {.n_steps = 2,
                       .n_args = 3,
                       .steps = {{TR_OP_mul, TR_F32, TR_F32, {0, 1, none, none, none}, 0, 0},
                                 {TR_OP_sub, TR_F32, TR_F32, {~0, 0, none, none, none}, 2, 0}}};
    cr_assert_eq(tr_ew_run(&p, args[0].meta, args, &kc_ctx), TR_OK);
    for (int i = 0; i < N; i++) {
        cr_assert_eq(a[i], b[i] * 3);
        cr_assert_eq(y[i], b[i] * 3 - b[i]);
    }
}

/* A step's result is rounded to its dtype before the next step sees it. */
Test(ew, program_rounds_between_steps) {
    float x = 1.00390625f /* 1 + 2^-8 */, out;
    int16_t none = TR_EW_ABSENT;
    tr_arg args[] = {kc_scalar(TR_F32, &x), kc_scalar(TR_F32, &out), kc_integer(1)};
    tr_ew_program p = {.n_steps = 2,
                       .n_args = 3,
                       .steps = {{TR_OP__cast, TR_BF16, TR_BF16, {0, none, none, none, none}, -1, TR_BF16},
                                 {TR_OP_sub, TR_F32, TR_F32, {~0, 2, none, none, none}, 1, 0}}};
    cr_assert_eq(tr_ew_run(&p, args[0].meta, args, &kc_ctx), TR_OK);
    cr_assert_eq(out, 0); // a tie, to even
}
