/* Attention against a plain loop in double, over sizes with remainders everywhere, more keys than a block, causal, masked and
 * with dropout; the same bits with any number of threads. */
#include "kernel_call.h"

TestSuite(attention, .init = kc_init);

typedef struct sizes {
    int64_t b, h, l, s, d, e;
    bool causal, mask, keep;
} sizes;

static float *noise(int64_t n, uint32_t seed) {
    float *x = malloc((size_t) n * sizeof *x);
    kc_noise(x, n, seed);
    return x;
}

/* Rows of heads lie [L, H, columns]. */
static tr_arg heads(float *data, const sizes *z, int64_t rows, int64_t columns) {
    return kc_strided(TR_F32, data, 4, (int64_t[]){z->b, z->h, rows, columns},
                      (int64_t[]){rows * z->h * columns, columns, z->h * columns, 1});
}
static double element(const float *x, const sizes *z, int64_t rows, int64_t columns, int64_t b, int64_t h, int64_t r, int64_t c) {
    return x[((b * rows + r) * z->h + h) * columns + c];
}

/* A row's probabilities, and what dropout makes of them. */
static void probabilities(const sizes *z, const float *q, const float *k, const float *mask, const uint8_t *keep, int64_t b,
                          int64_t h, int64_t i, double *p, double *dropped) {
    double most = -INFINITY, sum = 0;
    for (int64_t j = 0; j < z->s; j++) {
        double x = 0;
        for (int64_t c = 0; c < z->d; c++)
            x += element(q, z, z->l, z->d, b, h, i, c) * element(k, z, z->s, z->d, b, h, j, c);
        p[j] = z->causal && j > i ? -INFINITY : x * 0.25 + (z->mask ? (double) mask[i * z->s + j] : 0);
        most = fmax(most, p[j]);
    }
    for (int64_t j = 0; j < z->s; j++)
        sum += p[j] = exp(p[j] - most);
    for (int64_t j = 0; j < z->s; j++) {
        p[j] /= sum;
        dropped[j] = !z->keep ? p[j] : keep[((b * z->h + h) * z->l + i) * z->s + j] ? p[j] / 0.75 : 0;
    }
}

static void check(sizes z) {
    int64_t nq = z.b * z.h * z.l * z.d, nk = z.b * z.h * z.s * z.d, nv = z.b * z.h * z.s * z.e, ny = z.b * z.h * z.l * z.e,
            nl = z.b * z.h * z.l;
    float *q = noise(nq, 1), *k = noise(nk, 2), *v = noise(nv, 3), *g = noise(ny, 4), *mask = noise(z.l * z.s, 5);
    float *y[2], *lse[2], *dq[2], *dk[2], *dv[2];
    uint8_t *keep = malloc((size_t) (nl * z.s));
    for (int64_t i = 0; i < nl * z.s; i++)
        keep[i] = i * 7919 % 4 != 0;
    for (int t = 0; t < 2; t++) {
        y[t] = noise(ny, 9), lse[t] = noise(nl, 9), dq[t] = noise(nq, 9), dk[t] = noise(nk, 9), dv[t] = noise(nv, 9);
        tr_arg aq = heads(q, &z, z.l, z.d), ak = heads(k, &z, z.s, z.d), av = heads(v, &z, z.s, z.e),
               ay = heads(y[t], &z, z.l, z.e), ag = heads(g, &z, z.l, z.e), al = kc_tensor(TR_F32, lse[t], z.b, z.h, z.l);
        tr_arg am = z.mask ? kc_tensor(TR_F32, mask, z.l, z.s) : kc_none();
        tr_arg ap = z.keep ? kc_tensor(TR_BOOL, keep, z.b, z.h, z.l, z.s) : kc_none();
        kc_ctx.threads = 1 + 2 * t;
        cr_assert_eq(kc_call(_sdpa, TR_F32, (z.causal), (ay, al), aq, ak, av, am, ap, kc_number(0.25), kc_number(0.25)), TR_OK);
        cr_assert_eq(kc_call(_sdpa_backward, TR_F32, (z.causal),
                             (heads(dq[t], &z, z.l, z.d), heads(dk[t], &z, z.s, z.d), heads(dv[t], &z, z.s, z.e)), ag, aq, ak, av,
                             am, ap, ay, al, kc_number(0.25), kc_number(0.25)),
                     TR_OK);
    }
    cr_assert_arr_eq(y[0], y[1], (size_t) ny * sizeof(float));
    cr_assert_arr_eq(dq[0], dq[1], (size_t) nq * sizeof(float));
    cr_assert_arr_eq(dk[0], dk[1], (size_t) nk * sizeof(float));
    cr_assert_arr_eq(dv[0], dv[1], (size_t) nv * sizeof(float));

    double *p = malloc((size_t) z.s * 8), *dropped = malloc((size_t) z.s * 8), *ds = malloc((size_t) z.s * 8);
    double *wk = calloc((size_t) nk, 8), *wv = calloc((size_t) nv, 8);
    for (int64_t b = 0; b < z.b; b++)
        for (int64_t h = 0; h < z.h; h++)
            for (int64_t i = 0; i < z.l; i++) {
                double delta = 0;
                probabilities(&z, q, k, mask, keep, b, h, i, p, dropped);
                for (int64_t c = 0; c < z.e; c++) {
                    double want = 0;
                    for (int64_t j = 0; j < z.s; j++)
                        want += dropped[j] * element(v, &z, z.s, z.e, b, h, j, c);
                    cr_assert_float_eq(element(y[0], &z, z.l, z.e, b, h, i, c), want, 2e-5);
                    delta += want * element(g, &z, z.l, z.e, b, h, i, c);
                }
                for (int64_t j = 0; j < z.s; j++) {
                    double dp = 0;
                    for (int64_t c = 0; c < z.e; c++) {
                        double gi = element(g, &z, z.l, z.e, b, h, i, c);
                        dp += gi * element(v, &z, z.s, z.e, b, h, j, c);
                        wv[((b * z.s + j) * z.h + h) * z.e + c] += dropped[j] * gi;
                    }
                    ds[j] = (dropped[j] * dp - p[j] * delta) * 0.25;
                    for (int64_t c = 0; c < z.d; c++)
                        wk[((b * z.s + j) * z.h + h) * z.d + c] += ds[j] * element(q, &z, z.l, z.d, b, h, i, c);
                }
                for (int64_t c = 0; c < z.d; c++) {
                    double want = 0;
                    for (int64_t j = 0; j < z.s; j++)
                        want += ds[j] * element(k, &z, z.s, z.d, b, h, j, c);
                    cr_assert_float_eq(element(dq[0], &z, z.l, z.d, b, h, i, c), want, 5e-5);
                }
            }
    for (int64_t i = 0; i < nk; i++)
        cr_assert_float_eq(dk[0][i], wk[i], 2e-4);
    for (int64_t i = 0; i < nv; i++)
        cr_assert_float_eq(dv[0][i], wv[i], 2e-4);
    free(q), free(k), free(v), free(g), free(mask), free(keep), free(p), free(dropped), free(ds), free(wk), free(wv);
    for (int t = 0; t < 2; t++)
        free(y[t]), free(lse[t]), free(dq[t]), free(dk[t]), free(dv[t]);
}

Test(attention, one_of_each) { check((sizes){.b = 1, .h = 1, .l = 1, .s = 1, .d = 1, .e = 1}); }
Test(attention, many_heads) { check((sizes){.b = 2, .h = 35, .l = 20, .s = 33, .d = 16, .e = 24}); }
Test(attention, remainders) { check((sizes){.b = 1, .h = 3, .l = 101, .s = 77, .d = 19, .e = 35, .mask = true}); }
Test(attention, more_keys_than_a_block) { check((sizes){.b = 1, .h = 2, .l = 53, .s = 1100, .d = 8, .e = 8, .mask = true}); }
Test(attention, causal) { check((sizes){.b = 2, .h = 2, .l = 131, .s = 131, .d = 32, .e = 32, .causal = true}); }
Test(attention, causal_over_blocks) { check((sizes){.b = 1, .h = 2, .l = 600, .s = 570, .d = 4, .e = 4, .causal = true}); }
Test(attention, dropout) { check((sizes){.b = 2, .h = 3, .l = 50, .s = 41, .d = 16, .e = 16, .keep = true}); }

/* Plans run a batch in pieces: a head's result knows nothing of the others. */
Test(attention, a_batch_in_pieces) {
    enum { B = 3, H = 2, L = 400, D = 16, ALL = B * H * L * D };
    float *in[4], *out[2][4], *lse[2];
    for (int i = 0; i < 4; i++)
        in[i] = noise(ALL, (uint32_t) i);
    for (int t = 0; t < 2; t++) {
        lse[t] = noise(B * H * L, 9);
        for (int i = 0; i < 4; i++)
            out[t][i] = noise(ALL, 9);
        sizes z = {.b = t ? 1 : B, .h = H};
        for (int64_t b = 0; b < B; b += z.b) {
            int64_t at = b * H * L * D;
            tr_arg q = heads(in[0] + at, &z, L, D), k = heads(in[1] + at, &z, L, D), v = heads(in[2] + at, &z, L, D),
                   g = heads(in[3] + at, &z, L, D), y = heads(out[t][3] + at, &z, L, D),
                   sums = kc_tensor(TR_F32, lse[t] + b * H * L, z.b, H, L);
            kc_call(_sdpa, TR_F32, (1), (y, sums), q, k, v, kc_none(), kc_none(), kc_number(0.25), kc_number(0));
            kc_call(_sdpa_backward, TR_F32, (1),
                    (heads(out[t][0] + at, &z, L, D), heads(out[t][1] + at, &z, L, D), heads(out[t][2] + at, &z, L, D)), g, q, k, v,
                    kc_none(), kc_none(), y, sums, kc_number(0.25), kc_number(0));
        }
    }
    for (int i = 0; i < 4; i++) {
        cr_assert_arr_eq(out[0][i], out[1][i], ALL * sizeof(float));
        free(in[i]), free(out[0][i]), free(out[1][i]);
    }
    free(lse[0]), free(lse[1]);
}

static uint16_t rounded(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return (uint16_t) ((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}
static float widened(uint16_t h) {
    uint32_t u = (uint32_t) h << 16;
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* Does the kernel round what products of these are computed from? */
static bool has_pairs(const sizes *z) {
#ifdef __x86_64__
    bool v4 = strcmp(tr_kernel_isa(), "v4") == 0 || strcmp(tr_kernel_isa(), "amx") == 0;
    return v4 && __builtin_cpu_supports("avx512bf16") && z->d % 2 == 0 && z->e % 2 == 0;
#else
    return false;
#endif
}

typedef struct half_case {
    sizes z;
    int64_t n[4], nl;
    tr_arg wide[8], half[8], mask, keep; /* q, k, v, g; dq, dk, dv, y */
} half_case;

static void half_case_init(half_case *t, sizes z) {
    int64_t rows[] = {z.l, z.s, z.s, z.l}, columns[] = {z.d, z.d, z.e, z.e};
    *t = (half_case){.z = z, .nl = z.b * z.h * z.l, .mask = kc_none(), .keep = kc_none()};
    for (int i = 0; i < 8; i++) {
        t->n[i % 4] = z.b * z.h * rows[i % 4] * columns[i % 4];
        float *x = noise(t->n[i % 4], (uint32_t) i);
        uint16_t *h = malloc((size_t) t->n[i % 4] * sizeof *h);
        for (int64_t k = 0; k < t->n[i % 4]; k++)
            x[k] = widened(h[k] = rounded(x[k]));
        t->half[i] = t->wide[i] = heads(x, &z, rows[i % 4], columns[i % 4]);
        t->half[i].data = h;
        t->half[i].meta = tr_meta_with_dtype(t->wide[i].meta, TR_BF16);
    }
    if (z.mask)
        t->mask = kc_tensor(TR_F32, noise(z.l * z.s, 5), z.l, z.s);
    if (z.keep) {
        uint8_t *keep = malloc((size_t) (t->nl * z.s));
        for (int64_t i = 0; i < t->nl * z.s; i++)
            keep[i] = i * 7919 % 4 != 0;
        t->keep = kc_tensor(TR_BOOL, keep, z.b, z.h, z.l, z.s);
    }
}
static void half_case_fini(half_case *t) {
    for (int i = 0; i < 8; i++)
        free(t->wide[i].data), free(t->half[i].data);
    free(t->mask.data), free(t->keep.data);
}

static void forward(half_case *t, const tr_arg *x, tr_dtype dtype, float *lse) {
    tr_arg sums = kc_tensor(TR_F32, lse, t->z.b, t->z.h, t->z.l);
    tr_status s = kc_call(_sdpa, dtype, (t->z.causal), (x[7], sums), x[0], x[1], x[2], t->mask, t->keep, kc_number(0.25), kc_number(0.25));
    cr_assert_eq(s, TR_OK);
}
static void backward(half_case *t, const tr_arg *x, tr_dtype dtype, float *lse) {
    tr_arg sums = kc_tensor(TR_F32, lse, t->z.b, t->z.h, t->z.l);
    tr_status s = kc_call(_sdpa_backward, dtype, (t->z.causal), (x[4], x[5], x[6]), x[3], x[0], x[1], x[2], t->mask, t->keep, x[7], sums,
                          kc_number(0.25), kc_number(0.25));
    cr_assert_eq(s, TR_OK);
}

/* Result i is the float32 one, rounded once; or, of rounded factors, nearly so. */
static void expect_near(const half_case *t, int i) {
    const float *x = t->wide[i].data;
    const uint16_t *h = t->half[i].data;
    float most = 0, share = has_pairs(&t->z) ? 0.01f : 0;
    for (int64_t k = 0; k < t->n[i % 4]; k++)
        most = fmaxf(most, fabsf(x[k]));
    for (int64_t k = 0; k < t->n[i % 4]; k++)
        if (share > 0)
            cr_assert_float_eq(widened(h[k]), x[k], share * most, "%d: %g, not %g of at most %g", i, widened(h[k]), x[k], most);
        else
            cr_assert_eq(h[k], rounded(x[k]));
}

/* bfloat16 is float32 of the same numbers, and the same bits with any number of threads. */
static void check_bfloat16(sizes z) {
    half_case t;
    half_case_init(&t, z);
    float *lse = noise(t.nl, 9), *lse_half = noise(t.nl, 9);
    forward(&t, t.wide, TR_F32, lse);
    forward(&t, t.half, TR_BF16, lse_half);
    expect_near(&t, 7);
    for (int64_t k = 0; k < t.nl; k++)
        cr_assert_float_eq(lse[k], lse_half[k], 1e-5);
    for (int64_t k = 0; k < t.n[3]; k++)
        ((float *) t.wide[7].data)[k] = widened(((uint16_t *) t.half[7].data)[k]);
    backward(&t, t.wide, TR_F32, lse);
    backward(&t, t.half, TR_BF16, lse_half);
    uint16_t *before[8];
    for (int i = 4; i < 8; i++) {
        size_t bytes = (size_t) t.n[i % 4] * sizeof **before;
        before[i] = memcpy(malloc(bytes), t.half[i].data, bytes);
        if (i < 7)
            expect_near(&t, i);
    }
    kc_ctx.threads = 3;
    forward(&t, t.half, TR_BF16, lse_half);
    backward(&t, t.half, TR_BF16, lse_half);
    kc_ctx.threads = 1;
    for (int i = 4; i < 8; i++) {
        cr_assert_arr_eq(before[i], t.half[i].data, (size_t) t.n[i % 4] * sizeof **before);
        free(before[i]);
    }
    free(lse), free(lse_half);
    half_case_fini(&t);
}
Test(attention, bfloat16) {
    check_bfloat16((sizes){.b = 2, .h = 3, .l = 70, .s = 77, .d = 19, .e = 35});
    check_bfloat16((sizes){.b = 1, .h = 1, .l = 1, .s = 1, .d = 2, .e = 2});
    check_bfloat16((sizes){.b = 2, .h = 3, .l = 71, .s = 77, .d = 18, .e = 34, .mask = true});
    check_bfloat16((sizes){.b = 2, .h = 3, .l = 50, .s = 41, .d = 16, .e = 16, .keep = true});
}
Test(attention, bfloat16_causal) {
    check_bfloat16((sizes){.b = 1, .h = 2, .l = 130, .s = 130, .d = 64, .e = 64, .causal = true});
    check_bfloat16((sizes){.b = 2, .h = 2, .l = 131, .s = 131, .d = 32, .e = 32, .causal = true, .keep = true});
    check_bfloat16((sizes){.b = 1, .h = 2, .l = 601, .s = 1101, .d = 4, .e = 4, .causal = true});
    check_bfloat16((sizes){.b = 1, .h = 2, .l = 1103, .s = 1101, .d = 8, .e = 6, .causal = true});
}

/* Sizes that tiles of AMX take; and the same by pairs, where the processor has tiles. */
static void check_panels(void) {
    check_bfloat16((sizes){.b = 2, .h = 3, .l = 96, .s = 128, .d = 64, .e = 64});
    check_bfloat16((sizes){.b = 2, .h = 2, .l = 160, .s = 96, .d = 32, .e = 96, .mask = true});
    check_bfloat16((sizes){.b = 1, .h = 3, .l = 128, .s = 128, .d = 64, .e = 64, .keep = true});
    check_bfloat16((sizes){.b = 2, .h = 2, .l = 224, .s = 224, .d = 64, .e = 64, .causal = true, .keep = true});
    check_bfloat16((sizes){.b = 1, .h = 2, .l = 1088, .s = 1056, .d = 32, .e = 32, .causal = true});
    check_bfloat16((sizes){.b = 1, .h = 1, .l = 672, .s = 1120, .d = 96, .e = 32, .causal = true});
}
Test(attention, bfloat16_panels) {
    check_panels();
}
Test(attention, bfloat16_panels_by_pairs) {
    if (tr_kernel_init("v4") == TR_OK)
        check_panels();
}

Test(attention, a_row_without_keys_is_zero) {
    float q[] = {1, 2}, k[] = {1, 2, 3, 4}, y[2], lse[1], d[3][4], g[] = {1, 1};
    uint8_t mask[] = {0, 0};
    tr_arg aq = kc_tensor(TR_F32, q, 1, 1, 1, 2), ak = kc_tensor(TR_F32, k, 1, 1, 2, 2), ay = kc_tensor(TR_F32, y, 1, 1, 1, 2),
           al = kc_tensor(TR_F32, lse, 1, 1, 1), am = kc_tensor(TR_BOOL, mask, 1, 2), ag = kc_tensor(TR_F32, g, 1, 1, 1, 2);
    float zero[4] = {0};
    kc_call(_sdpa, TR_F32, (0), (ay, al), aq, ak, ak, am, kc_none(), kc_number(1), kc_number(0));
    cr_assert_arr_eq(y, zero, sizeof y);
    kc_call(_sdpa_backward, TR_F32, (0),
            (kc_tensor(TR_F32, d[0], 1, 1, 1, 2), kc_tensor(TR_F32, d[1], 1, 1, 2, 2), kc_tensor(TR_F32, d[2], 1, 1, 2, 2)), ag, aq,
            ak, ak, am, kc_none(), ay, al, kc_number(1), kc_number(0));
    for (int i = 0; i < 3; i++)
        cr_assert_arr_eq(d[i], zero, i ? sizeof zero : sizeof y);
}
