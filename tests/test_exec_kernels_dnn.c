/* What a plan holds of oneDNN: layouts, ops with post-ops, partitions; each against the kernels of single ops. */
#include "kernel_call.h"

#include "exec/dnn/dnn.h"

#include "terra/alloc.h"
#include "terra/dnn.h"

TestSuite(dnn, .init = kc_init);

enum { N = 2, CI = 16, CO = 32, H = 8 };
static float x[N * CI * H * H], w[CO * CI * 9], b[CO], y[N * CO * H * H], want[N * CO * H * H], res[N * CO * H * H];

static void fill(void) {
    kc_noise(x, N * CI * H * H, 1);
    kc_noise(w, CO * CI * 9, 2);
    kc_noise(b, CO, 3);
    kc_noise(res, N * CO * H * H, 4);
}

static tr_dnn_op *reorder(const tr_dnn_layout *from, const tr_dnn_layout *to) {
    tr_dnn_op *op;
    cr_assert_eq(tr_dnn_reorder_create(from, to, 2, &op), TR_OK);
    return op;
}

/* Takes a tensor into a layout of the library, and back. */
static void *blocked(const tr_meta *m, const tr_dnn_layout *to, float *data, bool weights, int64_t groups) {
    tr_dnn_layout *plain;
    void *out = tr_aligned_alloc(64, tr_dnn_layout_bytes(to) + 64);
    cr_assert_eq(weights ? tr_dnn_layout_create_weights(m, groups, &plain) : tr_dnn_layout_create(m, &plain), TR_OK);
    tr_dnn_op *op = reorder(plain, to);
    cr_assert_eq(tr_dnn_op_run(op, (void *[TR_DNN_PORTS]){[TR_DNN_SRC] = data, [TR_DNN_DST] = out}, NULL), TR_OK);
    tr_dnn_op_destroy(op);
    tr_dnn_layout_destroy(plain);
    return out;
}

Test(dnn, convolution_in_the_librarys_layouts_with_post_ops) {
    fill();
    tr_arg tx = kc_tensor(TR_F32, x, N, CI, H, H), tw = kc_tensor(TR_F32, w, CO, CI, 3, 3),
           ty = kc_tensor(TR_F32, want, N, CO, H, H);
    kc_call(conv2d, TR_F32, (1, 1, 1, 1, 1, 1, 1), (ty), tx, tw, kc_tensor(TR_F32, b, CO));
    for (int i = 0; i < N * CO * H * H; i++)
        want[i] = want[i] + res[i] > 0 ? want[i] + res[i] : 0;
    tr_dnn_op *op, *back;
    tr_dnn_conv_spec spec = {.dtype = TR_F32,
                             .n = N,
                             .ci = CI,
                             .h = H,
                             .w = H,
                             .co = CO,
                             .kh = 3,
                             .kw = 3,
                             .oh = H,
                             .ow = H,
                             .stride = {1, 1},
                             .padding = {1, 1},
                             .dilation = {1, 1},
                             .groups = 1,
                             .bias = true,
                             .n_posts = 2,
                             .threads = 2,
                             .posts = {{.kind = TR_DNN_POST_SUM, .a = 1}, {.kind = TR_DNN_POST_RELU}}};
    cr_assert_eq(tr_dnn_conv_create(&spec, &op), TR_OK, "%s", tr_status_detail());
    void *px = blocked(tx.meta, tr_dnn_op_layout(op, TR_DNN_SRC), x, false, 1);
    void *pw = blocked(tw.meta, tr_dnn_op_layout(op, TR_DNN_WEIGHTS), w, true, 1);
    void *py = blocked(ty.meta, tr_dnn_op_layout(op, TR_DNN_DST), res, false, 1);
    void *scratch = tr_aligned_alloc(64, tr_dnn_op_scratch(op) + 64);
    void *data[TR_DNN_PORTS] = {px, pw, b, py};
    cr_assert_eq(tr_dnn_op_run(op, data, scratch), TR_OK);
    tr_dnn_layout *plain;
    cr_assert_eq(tr_dnn_layout_create(ty.meta, &plain), TR_OK);
    cr_assert(tr_dnn_layout_is_plain(plain));
    back = reorder(tr_dnn_op_layout(op, TR_DNN_DST), plain);
    cr_assert_eq(tr_dnn_op_run(back, (void *[TR_DNN_PORTS]){[TR_DNN_SRC] = py, [TR_DNN_DST] = y}, NULL), TR_OK);
    kc_expect(y, want, N * CO * H * H, 1e-5, "convolution, sum, relu");
    tr_dnn_op_destroy(back);
    tr_dnn_op_destroy(op);
    tr_dnn_layout_destroy(plain);
    tr_free(px);
    tr_free(pw);
    tr_free(py);
    tr_free(scratch);
}

Test(dnn, layouts_print) {
    char text[64];
    tr_dnn_layout *l;
    cr_assert_eq(tr_dnn_layout_create(tr_meta_get(TR_F32, 2, (int64_t[]){3, 5}, (int64_t[]){1, 3}), &l), TR_OK);
    cr_assert_str_eq(tr_dnn_layout_print(l, text, sizeof text), "f32 3x5:ba");
    cr_assert_eq(tr_dnn_layout_bytes(l), 60);
    tr_dnn_layout_destroy(l);
    cr_assert_eq(tr_dnn_layout_create(tr_meta_get(TR_F32, 2, (int64_t[]){3, 5}, (int64_t[]){0, 1}), &l), TR_E_NOTIMPL);
    cr_assert_eq(tr_dnn_layout_create(tr_meta_get(TR_F64, 1, (int64_t[]){3}, NULL), &l), TR_E_NOTIMPL);
}

/* Our own way into panels of columns leaves the library's bytes. */
static void check_columns(dnnl_format_tag_t tag, dnnl_data_type_t type, int64_t k, int64_t n, int64_t step) {
    static char from[200 * 700 * 4];
    dnnl_memory_desc_t md;
    tr_dnn_layout *plain, *panels;
    tr__columns columns = {.from = from, .k = k, .step = step};
    tr_meta m;
    tr__meta_make(&m, type == dnnl_f32 ? TR_F32 : TR_BF16, 2, (int64_t[]){k, n}, (int64_t[]){step, 1});
    cr_assert_eq(dnnl_memory_desc_create_with_tag(&md, 2, (dnnl_dims_t){k, n}, type, tag), dnnl_success);
    cr_assert_eq(tr__dnn_layout_of(md, &panels), TR_OK);
    cr_assert_eq(tr_dnn_layout_create(&m, &plain), TR_OK);
    cr_assert(tr__dnn_layout_columns(panels, &columns));
    cr_assert_not(tr__dnn_layout_columns(plain, &columns));
    size_t bytes = tr_dnn_layout_bytes(panels);
    void *want_bytes = blocked(&m, panels, (float *) (void *) from, false, 1);
    columns.to = tr_aligned_alloc(64, bytes);
    memset(columns.to, 0xaa, bytes);
    for (int64_t i = 0; i < k * step; i++)
        type == dnnl_f32 ? (void) memcpy(from + 4 * i, &(float){(float) i}, 4)
                         : (void) memcpy(from + 2 * i, &(uint16_t){(uint16_t) (0x3f80 + i % 5000)}, 2);
    tr_dnn_op *op = reorder(plain, panels);
    cr_assert_eq(tr_dnn_op_run(op, (void *[TR_DNN_PORTS]){[TR_DNN_SRC] = from, [TR_DNN_DST] = want_bytes}, NULL), TR_OK);
    tr__isa_now->pack_columns(&kc_ctx, &columns);
    char text[64];
    cr_expect_eq(memcmp(columns.to, want_bytes, bytes), 0, "%s, rows %lld apart", tr_dnn_layout_print(panels, text, sizeof text),
                 (long long) step);
    tr_dnn_op_destroy(op);
    tr_dnn_layout_destroy(plain);
    tr_dnn_layout_destroy(panels);
    tr_free(columns.to);
    tr_free(want_bytes);
}

Test(dnn, panels_of_columns_as_the_librarys_reorder_makes_them) {
    static const int64_t sizes[][3] = {{16, 64, 64},  {1, 1, 1},       {33, 65, 70}, {64, 640, 640},
                                       {127, 48, 50}, {200, 700, 700}, {31, 17, 300}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int64_t k = sizes[i][0], n = sizes[i][1], step = sizes[i][2];
        check_columns(dnnl_BA16a64b, dnnl_f32, k, n, step);
        check_columns(dnnl_BA16a48b, dnnl_f32, k, n, step);
        check_columns(dnnl_BA16a32b, dnnl_f32, k, n, step);
        check_columns(dnnl_BA16a64b2a, dnnl_bf16, k, n, step);
        check_columns(dnnl_BA16a32b2a, dnnl_bf16, k, n, step);
    }
}

Test(dnn, matmul_with_bias_and_gelu) {
    enum { M = 5, K = 16, O = 32 };
    kc_noise(x, M * K, 1);
    kc_noise(w, O * K, 2);
    kc_noise(b, O, 3);
    tr_arg a = kc_tensor(TR_F32, x, M, K), t = kc_strided(TR_F32, w, 2, (int64_t[]){K, O}, (int64_t[]){1, K});
    kc_call(addmm, TR_F32, (0), (kc_tensor(TR_F32, want, M, O)), kc_tensor(TR_F32, b, O), a, t, kc_integer(1), kc_integer(1));
    kc_call(gelu, TR_F32, (0), (kc_tensor(TR_F32, want, M, O)), kc_tensor(TR_F32, want, M, O));
    tr_dnn_layout *la, *lt, *ly;
    tr_dnn_op *op;
    tr_dnn_layout_create(a.meta, &la);
    tr_dnn_layout_create(t.meta, &lt);
    tr_dnn_layout_create(tr_meta_get(TR_F32, 2, (int64_t[]){M, O}, NULL), &ly);
    tr_dnn_matmul_spec spec = {.dtype = TR_F32,
                               .src_batch = 1,
                               .weights_batch = 1,
                               .m = M,
                               .n = O,
                               .k = K,
                               .bias = true,
                               .bias_f32 = true,
                               .threads = 1,
                               .n_posts = 1,
                               .posts = {{.kind = TR_DNN_POST_GELU}},
                               .src = la,
                               .weights = lt,
                               .dst = ly};
    cr_assert_eq(tr_dnn_matmul_create(&spec, &op), TR_OK, "%s", tr_status_detail());
    void *scratch = tr_aligned_alloc(64, tr_dnn_op_scratch(op) + 64);
    cr_assert_eq(tr_dnn_op_run(op, (void *[TR_DNN_PORTS]){x, w, b, y}, scratch), TR_OK);
    kc_expect(y, want, M * O, 1e-5, "linear, gelu");
    tr_dnn_op_destroy(op);
    tr_dnn_layout_destroy(la);
    tr_dnn_layout_destroy(lt);
    tr_dnn_layout_destroy(ly);
    tr_free(scratch);
}

/* ---- bfloat16 ---- */

static uint16_t hx[N * CI * H * H], hw[CO * CI * 9], hb[CO], hy[N * CO * H * H];

static void narrow(float *from, uint16_t *to, int n) {
    kc_call(_cast, TR_BF16, (TR_BF16), (kc_tensor(TR_BF16, to, n)), kc_tensor(TR_F32, from, n));
    kc_call(_cast, TR_F32, (TR_F32), (kc_tensor(TR_F32, from, n)), kc_tensor(TR_BF16, to, n)); // what is left of it
}

static void expect_bf16(int n, const char *what) {
    kc_call(_cast, TR_F32, (TR_F32), (kc_tensor(TR_F32, y, n)), kc_tensor(TR_BF16, hy, n));
    kc_expect(y, want, n, 8e-3, what); // one rounding
}

Test(dnn, bfloat16_is_as_float32_rounded_once) {
    enum { M = 5, K = 16, O = 32 };
    fill();
    narrow(x, hx, N * CI * H * H);
    narrow(w, hw, CO * CI * 9);
    narrow(b, hb, CO);
    for (int time = 0; time < 3; time++) {
        kc_call(conv2d, TR_F32, (1, 1, 1, 1, 1, 1, 1), (kc_tensor(TR_F32, want, N, CO, H, H)), kc_tensor(TR_F32, x, N, CI, H, H),
                kc_tensor(TR_F32, w, CO, CI, 3, 3), kc_tensor(TR_F32, b, CO));
        kc_call(conv2d, TR_BF16, (1, 1, 1, 1, 1, 1, 1), (kc_tensor(TR_BF16, hy, N, CO, H, H)),
                kc_tensor(TR_BF16, hx, N, CI, H, H), kc_tensor(TR_BF16, hw, CO, CI, 3, 3), kc_tensor(TR_BF16, hb, CO));
        expect_bf16(N * CO * H * H, "convolution");
        static const int64_t turned[] = {1, K};
        kc_call(addmm, TR_F32, (0), (kc_tensor(TR_F32, want, M, O)), kc_tensor(TR_F32, b, O), kc_tensor(TR_F32, x, M, K),
                kc_strided(TR_F32, w, 2, (int64_t[]){K, O}, turned), kc_integer(1), kc_integer(1));
        kc_call(addmm, TR_BF16, (0), (kc_tensor(TR_BF16, hy, M, O)), kc_tensor(TR_BF16, hb, O), kc_tensor(TR_BF16, hx, M, K),
                kc_strided(TR_BF16, hw, 2, (int64_t[]){K, O}, turned), kc_integer(1), kc_integer(1));
        expect_bf16(M * O, "product");
    }
}

/* Told to compute in bfloat16, a product of float32 rounds its factors, however they lie; sums, what is added and the result stay
 * float32. Where the processor can't, nothing is rounded. */
Test(dnn, float32_product_of_rounded_factors) {
    enum { B = 2, M = 5, K = 16, O = 32 };
    static const int64_t turned[] = {O * K, 1, K}, shape[] = {B, K, O};
    static float rounded[B * M * K], rounded_w[B * O * K];
    kc_noise(x, B * M * K, 1);
    kc_noise(w, B * O * K, 2);
    kc_noise(b, O, 3);
    memcpy(rounded, x, sizeof rounded);
    memcpy(rounded_w, w, sizeof rounded_w);
    if (tr_dnn_has_fast_bf16()) {
        narrow(rounded, hx, B * M * K);
        narrow(rounded_w, hw, B * O * K);
    }
    for (int time = 0; time < 3; time++) {
        kc_call(baddbmm, TR_F32, (0), (kc_tensor(TR_F32, want, B, M, O)), kc_tensor(TR_F32, b, O),
                kc_tensor(TR_F32, rounded, B, M, K), kc_strided(TR_F32, rounded_w, 3, shape, turned), kc_number(0.5), kc_integer(2));
        kc_call(baddbmm, TR_BF16, (0), (kc_tensor(TR_F32, y, B, M, O)), kc_tensor(TR_F32, b, O), kc_tensor(TR_F32, x, B, M, K),
                kc_strided(TR_F32, w, 3, shape, turned), kc_number(0.5), kc_integer(2));
        kc_expect(y, want, B * M * O, 1e-5, "scaled product");
        kc_call(addmm, TR_F32, (0), (kc_tensor(TR_F32, want, M, O)), kc_tensor(TR_F32, b, O), kc_tensor(TR_F32, rounded, M, K),
                kc_tensor(TR_F32, rounded_w, K, O), kc_integer(1), kc_integer(1));
        kc_call(addmm, TR_BF16, (0), (kc_tensor(TR_F32, y, M, O)), kc_tensor(TR_F32, b, O), kc_tensor(TR_F32, x, M, K),
                kc_tensor(TR_F32, w, K, O), kc_integer(1), kc_integer(1));
        kc_expect(y, want, M * O, 1e-5, "product and row");
    }
}

/* Rows enough for the right matrix to be brought into panels, which its rows need not fill. */
Test(dnn, products_of_many_rows) {
    enum { M = 515, K = 37, O = 70, STEP = 75 };
    static float a[M * K], c[K * STEP], row[O], out[M * O], sum[M * O];
    static uint16_t ha[M * K], hc[K * STEP];
    static const int64_t shape[] = {K, O}, strides[] = {STEP, 1};
    kc_noise(a, M * K, 1);
    kc_noise(c, K * STEP, 2);
    kc_noise(row, O, 3);
    narrow(a, ha, M * K);
    narrow(c, hc, K * STEP);
    for (int i = 0; i < M; i++)
        for (int j = 0; j < O; j++) {
            double total = row[j];
            for (int k = 0; k < K; k++)
                total += (double) a[i * K + k] * (double) c[k * STEP + j];
            sum[i * O + j] = (float) total;
        }
    for (int time = 0; time < 3; time++) {
        kc_call(addmm, TR_F32, (0), (kc_tensor(TR_F32, out, M, O)), kc_tensor(TR_F32, row, O), kc_tensor(TR_F32, a, M, K),
                kc_strided(TR_F32, c, 2, shape, strides), kc_integer(1), kc_integer(1));
        kc_expect(out, sum, M * O, 1e-4, "float32");
        kc_call(addmm, TR_BF16, (0), (kc_tensor(TR_F32, out, M, O)), kc_tensor(TR_F32, row, O), kc_tensor(TR_BF16, ha, M, K),
                kc_strided(TR_BF16, hc, 2, shape, strides), kc_integer(1), kc_integer(1));
        kc_expect(out, sum, M * O, 1e-4, "bfloat16");
    }
}

Test(dnn, bfloat16_runs_in_no_reference_implementation) {
    tr_dnn_layout *l[3];
    tr_dnn_op *op = NULL;
    for (int i = 0; i < 3; i++)
        cr_assert_eq(tr_dnn_layout_create(tr_meta_get(TR_BF16, 2, (int64_t[]){64, 64}, NULL), &l[i]), TR_OK);
    tr_dnn_matmul_spec product = {.dtype = TR_BF16, .src_batch = 1, .weights_batch = 1, .m = 64, .n = 64, .k = 64, .threads = 1,
                                  .src = l[0], .weights = l[1], .dst = l[2]};
    tr_dnn_conv_spec conv = {.dtype = TR_BF16, .n = 1, .ci = 32, .co = 32, .h = H, .w = H, .kh = 3, .kw = 3, .oh = H, .ow = H,
                             .stride = {1, 1}, .padding = {1, 1}, .dilation = {1, 1}, .groups = 1, .threads = 1};
    for (int k = 0; k < 4; k++) {
        conv.direction = (tr_dnn_direction) k;
        tr_status s = k == 3 ? tr_dnn_matmul_create(&product, &op) : tr_dnn_conv_create(&conv, &op);
        cr_assert(s == TR_E_NOTIMPL || (s == TR_OK && strncmp(tr_dnn_op_impl(op), "ref", 3) != 0));
        tr_dnn_op_destroy(op);
        op = NULL;
    }
    for (int i = 0; i < 3; i++)
        tr_dnn_layout_destroy(l[i]);
}

/* ---- partitions ---- */

static tr_dnn_operand operand(int32_t value, const tr_arg *a) {
    return (tr_dnn_operand){value, a->meta, a->at};
}

static void run_partition(tr_dnn_partition *p, void *const *by_value) {
    const int32_t *values;
    void *data[40];
    int n = tr_dnn_partition_values(p, &values);
    for (int i = 0; i < n; i++)
        data[i] = by_value[values[i]];
    for (int time = 0; time < 2; time++)
        cr_assert_eq(tr_dnn_partition_run(p, data), TR_OK, "%s", tr_status_detail());
}

Test(dnn, partition_of_convolution_bias_relu) {
    fill();
    tr_arg tx = kc_tensor(TR_F32, x, N, CI, H, H), tw = kc_tensor(TR_F32, w, CO, CI, 3, 3), tb = kc_tensor(TR_F32, b, CO),
           ty = kc_tensor(TR_F32, want, N, CO, H, H);
    kc_call(conv2d, TR_F32, (1, 1, 1, 1, 1, 1, 1), (ty), tx, tw, tb);
    kc_call(relu, TR_F32, (0), (ty), ty);
    static const int64_t attrs[] = {1, 1, 1, 1, 1, 1, 1};
    tr_dnn_node nodes[] = {{.op = TR_OP_conv2d,
                            .n_in = 3,
                            .n_out = 1,
                            .attrs = attrs,
                            .in = {operand(0, &tx), operand(1, &tw), operand(2, &tb)},
                            .out = {operand(3, &ty)}},
                           {.op = TR_OP_relu, .n_in = 1, .n_out = 1, .in = {operand(3, &ty)}, .out = {operand(4, &ty)}}};
    tr_dnn_partition *p;
    cr_assert_eq(tr_dnn_partition_create(nodes, 2, (int32_t[]){4}, 1, 2, &p), TR_OK, "%s", tr_status_detail());
    run_partition(p, (void *[]){x, w, b, NULL, y});
    kc_expect(y, want, N * CO * H * H, 1e-5, "convolution, bias, relu");
    tr_dnn_partition_destroy(p);
    // What is fused away can't be kept.
    cr_assert_eq(tr_dnn_partition_create(nodes, 2, (int32_t[]){3, 4}, 2, 2, &p), TR_E_NOTIMPL);
}

Test(dnn, partition_of_batch_norm_and_relu) {
    enum { C = CO, TOTAL = N * CO * H * H };
    fill();
    float mean[2][C], inv[2][C], rm[2][C], rv[2][C];
    for (int c = 0; c < C; c++) {
        rm[0][c] = rm[1][c] = (float) c;
        rv[0][c] = rv[1][c] = 1 + (float) c;
    }
    tr_arg tx = kc_tensor(TR_F32, res, N, C, H, H), tb = kc_tensor(TR_F32, b, C), ty = kc_tensor(TR_F32, want, N, C, H, H);
    tr_arg numbers[] = {kc_number(0.1), kc_number(1e-5)};
    kc_call(batch_norm, TR_F32, (1), (ty, kc_tensor(TR_F32, mean[0], C), kc_tensor(TR_F32, inv[0], C)), tx, tb, tb,
            kc_tensor(TR_F32, rm[0], C), kc_tensor(TR_F32, rv[0], C), numbers[0], numbers[1]);
    kc_call(relu, TR_F32, (0), (ty), ty);
    static const int64_t attrs[] = {1};
    tr_dnn_node nodes[] = {{.op = TR_OP_batch_norm,
                            .n_in = 7,
                            .n_out = 3,
                            .attrs = attrs,
                            .in = {operand(0, &tx), operand(1, &tb), operand(1, &tb), operand(2, &tb), operand(3, &tb),
                                   operand(-1, &numbers[0]), operand(-1, &numbers[1])},
                            .out = {operand(4, &ty), operand(5, &tb), operand(6, &tb)}},
                           {.op = TR_OP_relu, .n_in = 1, .n_out = 1, .in = {operand(4, &ty)}, .out = {operand(7, &ty)}}};
    tr_dnn_partition *p;
    cr_assert_eq(tr_dnn_partition_create(nodes, 2, (int32_t[]){5, 6, 7}, 3, 2, &p), TR_OK, "%s", tr_status_detail());
    const int32_t *values;
    void *by_value[] = {res, b, rm[1], rv[1], NULL, mean[1], inv[1], y}, *data[40];
    int n = tr_dnn_partition_values(p, &values);
    for (int i = 0; i < n; i++)
        data[i] = by_value[values[i]];
    cr_assert_eq(tr_dnn_partition_run(p, data), TR_OK, "%s", tr_status_detail());
    kc_expect(y, want, TOTAL, 1e-5, "batch norm, relu");
    kc_expect(mean[1], mean[0], C, 1e-6, "mean");
    kc_expect(inv[1], inv[0], C, 1e-5, "inverse deviation");
    kc_expect(rm[1], rm[0], C, 1e-6, "running mean");
    kc_expect(rv[1], rv[0], C, 1e-5, "running variance");
    tr_dnn_partition_destroy(p);
}

Test(dnn, partition_refuses_what_it_cannot) {
    tr_arg a = kc_tensor(TR_F32, x, 4, 4);
    tr_dnn_node sine = {.op = TR_OP_sin, .n_in = 1, .n_out = 1, .in = {operand(0, &a)}, .out = {operand(1, &a)}};
    tr_dnn_partition *p;
    cr_assert_eq(tr_dnn_partition_create(&sine, 1, NULL, 0, 1, &p), TR_E_NOTIMPL);
}
