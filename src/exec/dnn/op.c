/* op.c - primitives: convolutions, matrix products, reorders. */
#include "exec/dnn/dnn.h"

#include "terra/alloc.h"

#include <string.h>

enum { MAX_ARGS = TR_DNN_PORTS + 1 };

struct tr_dnn_op {
    dnnl_primitive_t primitive;
    int n_args, threads;
    dnnl_exec_arg_t args[MAX_ARGS];
    uint8_t port[MAX_ARGS];              /* TR_DNN_PORTS: scratch */
    tr_dnn_layout layouts[TR_DNN_PORTS]; /* md NULL: no such port */
    size_t scratch;
    char impl[64];
};

void tr_dnn_op_destroy(tr_dnn_op *op) {
    if (!op)
        return;
    for (int i = 0; i < op->n_args; i++)
        dnnl_memory_destroy(op->args[i].memory);
    for (int p = 0; p < TR_DNN_PORTS; p++)
        if (op->layouts[p].md)
            dnnl_memory_desc_destroy(op->layouts[p].md);
    if (op->primitive)
        dnnl_primitive_destroy(op->primitive);
    tr_free(op);
}

const tr_dnn_layout *tr_dnn_op_layout(const tr_dnn_op *op, tr_dnn_port port) {
    return op->layouts[port].md ? &op->layouts[port] : NULL;
}

size_t tr_dnn_op_scratch(const tr_dnn_op *op) {
    return op->scratch;
}

const char *tr_dnn_op_impl(const tr_dnn_op *op) {
    return op->impl;
}

tr_status tr_dnn_op_run(tr_dnn_op *op, void *const data[TR_DNN_PORTS], void *scratch) {
    dnnl_stream_t stream;
    TR_TRY(tr__dnn_stream(&stream));
    tr__dnn_set_threads(op->threads);
    for (int i = 0; i < op->n_args; i++) {
        void *p = op->port[i] == TR_DNN_PORTS ? scratch : data[op->port[i]];
        TR__DNN("data", dnnl_memory_set_data_handle(op->args[i].memory, p));
    }
    TR__DNN(op->impl, dnnl_primitive_execute(op->primitive, stream, op->n_args, op->args));
    return TR_OK;
}

/* ------------------------------------------------------------------------------------------ building */

static tr_status add_arg(tr_dnn_op *op, int arg, int port, const_dnnl_memory_desc_t md) {
    dnnl_engine_t engine;
    TR_TRY(tr__dnn_engine(&engine));
    dnnl_memory_t memory;
    TR__DNN("memory", dnnl_memory_create(&memory, md, engine, DNNL_MEMORY_NONE));
    op->port[op->n_args] = (uint8_t) port;
    op->args[op->n_args++] = (dnnl_exec_arg_t){arg, memory};
    if (port < TR_DNN_PORTS)
        TR__DNN("layout", dnnl_memory_desc_clone(&op->layouts[port].md, md));
    return TR_OK;
}

static tr_status add_queried(tr_dnn_op *op, const_dnnl_primitive_desc_t pd, int arg, int port) {
    return add_arg(op, arg, port, dnnl_primitive_desc_query_md(pd, dnnl_query_exec_arg_md, arg));
}

/* A layout of the library's choosing where none is given. */
static tr_status desc(const tr_dnn_layout *given, int n, const dnnl_dims_t dims, dnnl_data_type_t type,
                      dnnl_memory_desc_t *out) {
    if (given)
        TR__DNN("layout", dnnl_memory_desc_clone(out, given->md));
    else
        TR__DNN("layout", dnnl_memory_desc_create_with_tag(out, n, dims, type, dnnl_format_tag_any));
    return TR_OK;
}

static dnnl_status_t append_post(dnnl_post_ops_t ops, const tr_dnn_post *p) {
    switch (p->kind) {
        case TR_DNN_POST_SUM:
            return dnnl_post_ops_append_sum(ops, p->a, 0, dnnl_data_type_undef);
        case TR_DNN_POST_LINEAR:
            return dnnl_post_ops_append_eltwise(ops, dnnl_eltwise_linear, p->a, p->b);
        case TR_DNN_POST_RELU:
            return dnnl_post_ops_append_eltwise(ops, dnnl_eltwise_relu, 0, 0);
        case TR_DNN_POST_GELU:
            return dnnl_post_ops_append_eltwise(ops, dnnl_eltwise_gelu_erf, 0, 0);
        case TR_DNN_POST_GELU_TANH:
            return dnnl_post_ops_append_eltwise(ops, dnnl_eltwise_gelu_tanh, 0, 0);
        case TR_DNN_POST_ADD:
            return dnnl_post_ops_append_binary(ops, dnnl_binary_add, p->other->md);
        case TR_DNN_POST_MUL:
            return dnnl_post_ops_append_binary(ops, dnnl_binary_mul, p->other->md);
    }
    return dnnl_invalid_arguments;
}

static tr_status make_attr(int n, const tr_dnn_post *posts, dnnl_primitive_attr_t *out) {
    dnnl_primitive_attr_t attr;
    dnnl_post_ops_t ops;
    TR__DNN("attributes", dnnl_primitive_attr_create(&attr));
    dnnl_status_t s = dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
    if (s == dnnl_success && n > 0 && (s = dnnl_post_ops_create(&ops)) == dnnl_success) {
        for (int i = 0; i < n && s == dnnl_success; i++)
            s = append_post(ops, &posts[i]);
        if (s == dnnl_success)
            s = dnnl_primitive_attr_set_post_ops(attr, ops);
        dnnl_post_ops_destroy(ops);
    }
    if (s != dnnl_success) {
        dnnl_primitive_attr_destroy(attr);
        return tr__dnn_fail(s, "post-ops");
    }
    *out = attr;
    return TR_OK;
}

static tr_status add_posts(tr_dnn_op *op, int n, const tr_dnn_post *posts) {
    int other = TR_DNN_OTHER0;
    for (int i = 0; i < n; i++)
        if (posts[i].kind == TR_DNN_POST_ADD || posts[i].kind == TR_DNN_POST_MUL)
            TR_TRY(add_arg(op, DNNL_ARG_ATTR_MULTIPLE_POST_OP(i) | DNNL_ARG_SRC_1, other++, posts[i].other->md));
    return TR_OK;
}

static tr_status finish_into(tr_dnn_op *op, dnnl_primitive_desc_t pd, bool slow) {
    const char *impl = "";
    dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, &impl);
    strncpy(op->impl, impl, sizeof op->impl - 1);
    if (!slow && strncmp(impl, "ref", 3) == 0)
        return TR_FAIL(TR_E_NOTIMPL, "oneDNN has only a reference implementation (%s)", impl);
    const_dnnl_memory_desc_t pad = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    op->scratch = dnnl_memory_desc_get_size(pad);
    if (op->scratch)
        TR_TRY(add_arg(op, DNNL_ARG_SCRATCHPAD, TR_DNN_PORTS, pad));
    TR__DNN("primitive", dnnl_primitive_create(&op->primitive, pd));
    return TR_OK;
}

typedef struct port_arg {
    int arg, port;
} port_arg;

/* An op of a primitive descriptor, which it takes. `ports`: n of them. */
static tr_status finish(dnnl_primitive_desc_t pd, int n, const port_arg *ports, int n_posts, const tr_dnn_post *posts,
                        bool slow, int threads, tr_dnn_op **out) {
    tr_dnn_op *op = tr_calloc(1, sizeof *op);
    tr_status s = op ? TR_OK : TR_FAIL(TR_E_NOMEM, "no memory for an operation");
    for (int i = 0; i < n && s == TR_OK; i++)
        s = add_queried(op, pd, ports[i].arg, ports[i].port);
    if (s == TR_OK)
        s = add_posts(op, n_posts, posts);
    if (s == TR_OK)
        s = finish_into(op, pd, slow);
    dnnl_primitive_desc_destroy(pd);
    if (s != TR_OK) {
        tr_dnn_op_destroy(op);
        return s;
    }
    op->threads = threads;
    *out = op;
    return TR_OK;
}

bool tr_dnn_has_fast_bf16(void) {
#ifdef __x86_64__
    return (dnnl_get_effective_cpu_isa() & dnnl_cpu_isa_avx512_core_bf16) == dnnl_cpu_isa_avx512_core_bf16;
#else
    return false;
#endif
}

/* Without instructions for bfloat16 the library emulates them, or has only a reference. AVX2 may have conversions alone. */
static tr_status is_native(tr_dtype dtype, bool slow) {
#ifdef __x86_64__
    bool bf16 = dnnl_get_effective_cpu_isa() == dnnl_cpu_isa_avx2_vnni_2 || tr_dnn_has_fast_bf16();
    if (dtype == TR_BF16 && !slow && !bf16)
        return TR_FAIL(TR_E_NOTIMPL, "this processor has no instructions for bfloat16");
#endif
    return TR_OK;
}

/* ------------------------------------------------------------------------------------------ convolution */

typedef struct conv_descs {
    dnnl_memory_desc_t src, weights, bias, dst;
    dnnl_primitive_attr_t attr;
    dnnl_dims_t strides, dilates, left, right;
} conv_descs;

static void free_conv(conv_descs *d) {
    dnnl_memory_desc_t all[] = {d->src, d->weights, d->bias, d->dst};
    for (int i = 0; i < 4; i++)
        if (all[i])
            dnnl_memory_desc_destroy(all[i]);
    if (d->attr)
        dnnl_primitive_attr_destroy(d->attr);
}

static tr_status describe_conv(const tr_dnn_conv_spec *s, conv_descs *d) {
    dnnl_data_type_t type = tr__dnn_type(s->dtype);
    int64_t in[] = {s->h, s->w}, out[] = {s->oh, s->ow}, k[] = {s->kh, s->kw};
    dnnl_dims_t src = {s->n, s->ci, s->h, s->w}, dst = {s->n, s->co, s->oh, s->ow}, bias = {s->co};
    dnnl_dims_t plain = {s->co, s->ci, s->kh, s->kw};
    dnnl_dims_t grouped = {s->groups, s->co / s->groups, s->ci / s->groups, s->kh, s->kw};
    for (int i = 0; i < 2; i++) {
        d->strides[i] = s->stride[i];
        d->dilates[i] = s->dilation[i] - 1;
        d->left[i] = s->padding[i];
        d->right[i] = (out[i] - 1) * s->stride[i] + (k[i] - 1) * s->dilation[i] + 1 - in[i] - s->padding[i];
    }
    TR_TRY(desc(s->src, 4, src, type, &d->src));
    TR_TRY(desc(s->weights, s->groups > 1 ? 5 : 4, s->groups > 1 ? grouped : plain, type, &d->weights));
    TR_TRY(desc(s->dst, 4, dst, type, &d->dst));
    if (s->bias)
        TR__DNN("layout", dnnl_memory_desc_create_with_tag(&d->bias, 1, bias, type, dnnl_a));
    return make_attr(s->n_posts, s->posts, &d->attr);
}

static tr_status create_conv(const tr_dnn_conv_spec *s, conv_descs *d, tr_dnn_op **out) {
    dnnl_engine_t engine;
    dnnl_primitive_desc_t pd, hint;
    TR_TRY(tr__dnn_engine(&engine));
    TR_TRY(describe_conv(s, d));
    if (s->direction == TR_DNN_FORWARD) {
        TR__DNN("convolution", dnnl_convolution_forward_primitive_desc_create(
                                   &pd, engine, dnnl_forward_training, dnnl_convolution_direct, d->src, d->weights, d->bias,
                                   d->dst, d->strides, d->dilates, d->left, d->right, d->attr));
        port_arg ports[] = {{DNNL_ARG_SRC, TR_DNN_SRC},
                            {DNNL_ARG_WEIGHTS, TR_DNN_WEIGHTS},
                            {DNNL_ARG_DST, TR_DNN_DST},
                            {DNNL_ARG_BIAS, TR_DNN_BIAS}};
        return finish(pd, s->bias ? 4 : 3, ports, s->n_posts, s->posts, s->slow, s->threads, out);
    }
    TR__DNN("convolution", dnnl_convolution_forward_primitive_desc_create(
                               &hint, engine, dnnl_forward_training, dnnl_convolution_direct, d->src, d->weights, d->bias,
                               d->dst, d->strides, d->dilates, d->left, d->right, NULL));
    dnnl_status_t status;
    if (s->direction == TR_DNN_BACKWARD_DATA)
        status = dnnl_convolution_backward_data_primitive_desc_create(&pd, engine, dnnl_convolution_direct, d->src, d->weights,
                                                                      d->dst, d->strides, d->dilates, d->left, d->right, hint,
                                                                      d->attr);
    else
        status = dnnl_convolution_backward_weights_primitive_desc_create(&pd, engine, dnnl_convolution_direct, d->src,
                                                                         d->weights, d->bias, d->dst, d->strides, d->dilates,
                                                                         d->left, d->right, hint, d->attr);
    dnnl_primitive_desc_destroy(hint);
    TR__DNN("convolution", status);
    port_arg data[] = {{DNNL_ARG_DIFF_SRC, TR_DNN_SRC}, {DNNL_ARG_WEIGHTS, TR_DNN_WEIGHTS}, {DNNL_ARG_DIFF_DST, TR_DNN_DST}};
    port_arg weights[] = {{DNNL_ARG_SRC, TR_DNN_SRC},
                          {DNNL_ARG_DIFF_WEIGHTS, TR_DNN_WEIGHTS},
                          {DNNL_ARG_DIFF_DST, TR_DNN_DST},
                          {DNNL_ARG_DIFF_BIAS, TR_DNN_BIAS}};
    bool is_data = s->direction == TR_DNN_BACKWARD_DATA;
    return finish(pd, !is_data && s->bias ? 4 : 3, is_data ? data : weights, 0, NULL, s->slow, s->threads, out);
}

/* For the derivative by bfloat16 weights, oneDNN 3.2 (jit_bf16) copies src turned over, a row's pixels by their remainder mod the
 * stride, and doesn't clear its scratch first. Of a row with fewer pixels than that, some remainders have none: their place isn't
 * written, and where a filter reaches over the border it is read. The sums are whatever scratch held before. */
static tr_status is_right(const tr_dnn_conv_spec *s) {
    bool by_weights = s->dtype == TR_BF16 && s->direction == TR_DNN_BACKWARD_WEIGHTS;
    if (by_weights && s->w < s->stride[1] && s->padding[1] > 0)
        return TR_FAIL(TR_E_NOTIMPL, "oneDNN reads what it hasn't written: rows of %lld by steps of %lld", (long long) s->w,
                       (long long) s->stride[1]);
    return TR_OK;
}

tr_status tr_dnn_conv_create(const tr_dnn_conv_spec *spec, tr_dnn_op **out) {
    conv_descs d = {0};
    TR_TRY(is_native(spec->dtype, spec->slow));
    TR_TRY(is_right(spec));
    tr__dnn_set_threads(spec->threads);
    tr_status s = create_conv(spec, &d, out);
    free_conv(&d);
    return s;
}

/* ------------------------------------------------------------------------------------------ matrix product */

static tr_status create_matmul(const tr_dnn_matmul_spec *s, conv_descs *d, tr_dnn_op **out) {
    dnnl_engine_t engine;
    dnnl_primitive_desc_t pd;
    dnnl_data_type_t type = tr__dnn_type(s->dtype);
    int n = s->batch ? 3 : 2, at = n - 2;
    dnnl_dims_t src = {s->src_batch}, weights = {s->weights_batch}, dst = {s->batch}, bias = {1};
    src[at] = dst[at] = s->m;
    src[at + 1] = weights[at] = s->k;
    weights[at + 1] = dst[at + 1] = bias[at + 1] = s->n;
    bias[at] = 1;
    TR_TRY(tr__dnn_engine(&engine));
    TR_TRY(desc(s->src, n, src, type, &d->src));
    TR_TRY(desc(s->weights, n, weights, type, &d->weights));
    TR_TRY(desc(s->dst, n, dst, type, &d->dst));
    if (s->bias)
        TR__DNN("layout", dnnl_memory_desc_create_with_tag(&d->bias, n, bias, s->bias_f32 ? dnnl_f32 : type,
                                                           n == 3 ? dnnl_abc : dnnl_ab));
    TR_TRY(make_attr(s->n_posts, s->posts, &d->attr));
    TR__DNN("matmul", dnnl_matmul_primitive_desc_create(&pd, engine, d->src, d->weights, d->bias, d->dst, d->attr));
    port_arg ports[] = {{DNNL_ARG_SRC, TR_DNN_SRC},
                        {DNNL_ARG_WEIGHTS, TR_DNN_WEIGHTS},
                        {DNNL_ARG_DST, TR_DNN_DST},
                        {DNNL_ARG_BIAS, TR_DNN_BIAS}};
    return finish(pd, s->bias ? 4 : 3, ports, s->n_posts, s->posts, s->slow, s->threads, out);
}

tr_status tr_dnn_matmul_create(const tr_dnn_matmul_spec *spec, tr_dnn_op **out) {
    conv_descs d = {0};
    TR_TRY(is_native(spec->dtype, spec->slow));
    tr__dnn_set_threads(spec->threads);
    tr_status s = create_matmul(spec, &d, out);
    free_conv(&d);
    return s;
}

tr_status tr_dnn_reorder_create(const tr_dnn_layout *from, const tr_dnn_layout *to, int threads, tr_dnn_op **out) {
    dnnl_engine_t engine;
    dnnl_primitive_attr_t attr;
    dnnl_primitive_desc_t pd;
    tr__dnn_set_threads(threads);
    TR_TRY(tr__dnn_engine(&engine));
    TR_TRY(make_attr(0, NULL, &attr));
    dnnl_status_t s = dnnl_reorder_primitive_desc_create(&pd, from->md, engine, to->md, engine, attr);
    dnnl_primitive_attr_destroy(attr);
    TR__DNN("reorder", s);
    port_arg ports[] = {{DNNL_ARG_FROM, TR_DNN_SRC}, {DNNL_ARG_TO, TR_DNN_DST}};
    return finish(pd, 2, ports, 0, NULL, true, threads, out);
}
