/* conv.c - conv2d and its two derivatives.
 *
 * In float32 and bfloat16 through oneDNN, in the layouts that the library likes best; tensors that lie otherwise are
 * reordered in and out, through scratch. (A plan keeps them there: see terra/dnn.h.) bfloat16 images always have their channels
 * last; where the library has no bfloat16, float32 copies are convolved. What it refuses otherwise, and float64, is plain.c's. Our
 * own kernels, which are faster, take images that lie channels last and have multiples of 16: float32 from AVX2 on
 * (kernels/isa_conv.c), bfloat16 with AVX512-BF16 (kernels/isa_conv_bf16.c) or AMX (kernels/isa_conv_amx.c). */
#include "exec/dnn/cache.h"
#include "exec/dnn/dnn.h"
#include "exec/dnn/plain.h"

/* Ports that a convolution has, in the order of an entry's reorders; and which of them is written. */
static const tr_dnn_port ports[] = {TR_DNN_SRC, TR_DNN_WEIGHTS, TR_DNN_DST};
static const int written[] = {[TR_DNN_FORWARD] = 2, [TR_DNN_BACKWARD_DATA] = 0, [TR_DNN_BACKWARD_WEIGHTS] = 1};

typedef struct conv {
    tr_dnn_direction direction;
    const tr_arg *t[3]; /* src, weights, dst */
    const tr_arg *bias;
    tr_dtype dtype;
} conv;

static int threads_of(const tr_kernel_call *c, const conv *v) {
    const int64_t *w = v->t[1]->meta->shape;
    return tr_dnn_threads(c->ctx->threads, 2.0 * (double) v->t[2]->meta->numel * (double) (w[1] * w[2] * w[3]));
}

static tr__dnn_key key_of(const tr_kernel_call *c, const conv *v) {
    tr__dnn_key k;
    memset(&k, 0, sizeof k);
    k.op = (uint16_t) c->op;
    k.dtype = (uint8_t) v->dtype;
    k.flags = v->bias != NULL;
    k.threads = threads_of(c, v);
    int n = 0;
    for (int i = 0; i < 7; i++)
        k.v[n++] = c->attrs[i];
    for (int i = 0; i < 3; i++) {
        const tr_meta *m = v->t[i]->meta;
        for (int d = i == 2 ? 2 : 0; d < 4; d++) // of dst the first two are known
            k.v[n++] = m->shape[d];
        for (int d = 0; d < 4; d++)
            k.v[n++] = m->strides[d];
    }
    k.v[n] = (int64_t) (uintptr_t) v->t[1]->home;
    return k;
}

static tr_dnn_conv_spec spec_of(const tr_kernel_call *c, const conv *v) {
    const int64_t *a = c->attrs, *x = v->t[0]->meta->shape, *w = v->t[1]->meta->shape, *y = v->t[2]->meta->shape;
    return (tr_dnn_conv_spec){.direction = v->direction,
                              .dtype = v->dtype,
                              .n = x[0],
                              .ci = x[1],
                              .h = x[2],
                              .w = x[3],
                              .co = y[1],
                              .kh = w[2],
                              .kw = w[3],
                              .oh = y[2],
                              .ow = y[3],
                              .stride = {a[0], a[1]},
                              .padding = {a[2], a[3]},
                              .dilation = {a[4], a[5]},
                              .groups = a[6],
                              .bias = v->bias != NULL,
                              .threads = threads_of(c, v)};
}

/* A reorder between a tensor's layout and the op's, if they differ. */
static tr_status connect(const tr_kernel_call *c, const conv *v, tr__dnn_entry *e, int i) {
    tr_dnn_layout *own;
    const tr_dnn_layout *theirs = tr_dnn_op_layout(e->op, ports[i]);
    if (v->t[i]->home)
        TR_TRY(tr_dnn_layout_clone(tr_home_layout(v->t[i]->home), &own));
    else if (i == 1)
        TR_TRY(tr_dnn_layout_create_weights(v->t[i]->meta, c->attrs[6], &own));
    else
        TR_TRY(tr_dnn_layout_create(v->t[i]->meta, &own));
    tr_status s = TR_OK;
    if (!tr_dnn_layout_equal(own, theirs)) {
        bool out = written[v->direction] == i;
        s = tr_dnn_reorder_create(out ? theirs : own, out ? own : theirs, threads_of(c, v), &e->reorders[i]);
    }
    tr_dnn_layout_destroy(own);
    return s;
}

static bool is_channels_last(const tr_meta *m) {
    return m->dense && m->strides[1] == 1 && m->shape[1] > 1 && m->shape[2] * m->shape[3] > 1;
}

/* Images that lie channels last already are taken as they are, where the library has a fast way: no reorders. */
static tr_status create_as_they_lie(const conv *v, tr_dnn_conv_spec spec, tr_dnn_op **out) {
    tr_dnn_layout *src = NULL, *dst = NULL;
    tr_status s = TR_OK;
    if (is_channels_last(v->t[0]->meta))
        s = tr_dnn_layout_create(v->t[0]->meta, &src);
    if (s == TR_OK && is_channels_last(v->t[2]->meta))
        s = tr_dnn_layout_create(v->t[2]->meta, &dst);
    spec.src = src;
    spec.dst = dst;
    if (s == TR_OK)
        s = src || dst ? tr_dnn_conv_create(&spec, out) : TR_E_NOTIMPL;
    tr_dnn_layout_destroy(src);
    tr_dnn_layout_destroy(dst);
    return s;
}

static tr_status compile(const tr_kernel_call *c, const conv *v, tr__dnn_entry *e) {
    tr_dnn_conv_spec spec = spec_of(c, v);
    // Backward-data likes its weights otherwise than forward does: there the home is reordered.
    if (v->t[1]->home && v->direction != TR_DNN_BACKWARD_DATA)
        spec.weights = tr_home_layout(v->t[1]->home);
    if (create_as_they_lie(v, spec, &e->op) != TR_OK && tr_dnn_conv_create(&spec, &e->op) != TR_OK) {
        spec.weights = NULL;
        TR_TRY(tr_dnn_conv_create(&spec, &e->op));
    }
    for (int i = 0; i < 3; i++)
        TR_TRY(connect(c, v, e, i));
    return TR_OK;
}

static tr_status run_reorder(const tr_kernel_call *c, tr_dnn_op *op, void *from, void *to) {
    void *data[TR_DNN_PORTS] = {[TR_DNN_SRC] = from, [TR_DNN_DST] = to};
    return tr__dnn_run(c, op, data);
}

static tr_status run(const tr_kernel_call *c, const conv *v, tr__dnn_entry *e) {
    void *data[TR_DNN_PORTS] = {NULL};
    int out = written[v->direction];
    for (int i = 0; i < 3; i++) {
        data[ports[i]] = v->t[i]->data;
        if (!e->reorders[i])
            continue;
        data[ports[i]] = tr__scratch(c, tr_dnn_layout_bytes(tr_dnn_op_layout(e->op, ports[i])));
        if (!data[ports[i]])
            return TR_E_NOMEM;
        if (i != out)
            TR_TRY(run_reorder(c, e->reorders[i], v->t[i]->data, data[ports[i]]));
    }
    if (v->bias) {
        const void *b;
        TR_TRY(tr__dense_in(c, v->bias, v->dtype, &b));
        data[TR_DNN_BIAS] = (void *) b;
    }
    TR_TRY(tr__dnn_run(c, e->op, data));
    return e->reorders[out] ? run_reorder(c, e->reorders[out], data[ports[out]], v->t[out]->data) : TR_OK;
}

/* An operand of the convolution's dtype with strides that the library can describe. */
static tr_status settle(const tr_kernel_call *c, conv *v, int i, tr_arg *arg, tr_meta *m) {
    const tr_arg *x = v->t[i];
    tr_dnn_layout *l;
    if (x->meta->dtype == v->dtype && tr_dnn_layout_create(x->meta, &l) == TR_OK) {
        tr_dnn_layout_destroy(l);
        return TR_OK;
    }
    const void *p;
    TR_TRY(tr__dense_in(c, x, v->dtype, &p));
    tr__meta_make(m, v->dtype, 4, x->meta->shape, NULL);
    *arg = (tr_arg){.data = (void *) p, .meta = m};
    v->t[i] = arg;
    return TR_OK;
}

/* ------------------------------------------------------------------------------------------ our own */

/* By the weights: does a filter's row read few enough channels to be taken as one pixel, and enough of them? */
static bool is_narrow(const conv *v, const int64_t *attrs) {
    enum { LEAST = 9, MOST = 256 };
    int64_t row = v->t[1]->meta->shape[1] * v->t[1]->meta->shape[3];
    return v->direction == TR_DNN_BACKWARD_WEIGHTS && v->t[1]->meta->shape[1] < TR__CONV_PANEL && row >= LEAST && row <= MOST &&
           attrs[5] == 1;
}

/* Can kernels of our own take these images? `narrow`: of src any number of channels, however it lies. */
static bool has_panels(const conv *v, tr_dtype dtype, const int64_t *attrs, bool narrow) {
    for (int i = 0; i < 3; i++) {
        const tr_meta *m = v->t[i]->meta;
        bool free = i == 1 || (i == 0 && narrow);
        if (m->dtype != dtype || (!free && (!tr__has_channels_last(m) || m->shape[1] % TR__CONV_PANEL)))
            return false;
    }
    return attrs[6] == 1;
}

static bool is_ours(const conv *v, const int64_t *attrs) {
    const tr_home *home = v->t[1]->home;
    bool narrow = is_narrow(v, attrs); // few weights are brought home if they live elsewhere
    return tr__isa_now->convolve && has_panels(v, TR_F32, attrs, narrow) && (narrow || !home || tr__home_is_panels(home));
}

static bool is_ours_bf16(const conv *v, const int64_t *attrs) {
    return tr__isa_now->convolve_bf16 && tr__has_avx512_bf16() && has_panels(v, TR_BF16, attrs, false);
}

/* Weights from strides into panels, and back. */
typedef struct repack {
    float *plain, *panels;
    const tr_meta *meta;
    int64_t width; /* of a panel */
    bool back;
} repack;

static void repack_panels(void *env, int64_t begin, int64_t end, int thread) {
    const repack *r = env;
    const int64_t *n = r->meta->shape, *s = r->meta->strides;
    float *panel = r->panels + begin * n[2] * n[3] * n[1] * r->width;
    for (int64_t u = begin; u < end; u++)
        for (int64_t tap = 0; tap < n[2] * n[3]; tap++)
            for (int64_t i = 0; i < n[1]; i++, panel += r->width) {
                float *plain = r->plain + u * r->width * s[0] + i * s[1] + tap / n[3] * s[2] + tap % n[3] * s[3];
                for (int64_t o = 0; o < r->width; o++)
                    if (r->back)
                        plain[o * s[0]] = panel[o];
                    else
                        panel[o] = plain[o * s[0]];
            }
}

static tr__conv sizes_of(const tr_kernel_call *c, const conv *v) {
    const int64_t *a = c->attrs, *x = v->t[0]->meta->shape, *w = v->t[1]->meta->shape, *y = v->t[2]->meta->shape;
    tr__conv k = {.n = x[0], .ci = x[1], .co = y[1], .size = {x[2], x[3]}, .out = {y[2], y[3]}, .kernel = {w[2], w[3]},
                  .stride = {a[0], a[1]}, .padding = {a[2], a[3]}, .dilation = {a[4], a[5]}};
    memcpy(k.src_strides, v->t[0]->meta->strides, sizeof k.src_strides);
    return k;
}

static tr_status convolve_ourselves(const tr_kernel_call *c, const conv *v) {
    const int64_t *x = v->t[0]->meta->shape, *w = v->t[1]->meta->shape, *y = v->t[2]->meta->shape;
    const tr_arg *weights = v->t[1];
    repack r = {.plain = weights->data, .panels = weights->data, .meta = weights->meta, .width = tr__conv_panel(y[1]),
                .back = v->direction == TR_DNN_BACKWARD_WEIGHTS};
    int64_t panels = y[1] / r.width, grain = tr__max(1, TR__GRAIN / tr__max(1, x[1] * w[2] * w[3] * r.width));
    const void *bias = NULL;
    bool in_panels = weights->home && tr__home_is_panels(weights->home);
    if (v->bias)
        TR_TRY(tr__dense_in(c, v->bias, TR_F32, &bias));
    if (!in_panels && !(r.panels = tr__scratch(c, (size_t) weights->meta->numel * sizeof(float))))
        return TR_E_NOMEM;
    if (!in_panels && !r.back)
        tr__parallel(c->ctx, panels, grain, repack_panels, &r);
    tr__conv k = sizes_of(c, v);
    k.src = v->t[0]->data;
    k.weights = r.panels;
    k.bias = bias;
    k.dst = v->t[2]->data;
    TR_TRY(tr__isa_now->convolve(c, c->op, &k));
    if (in_panels || !r.back)
        return TR_OK;
    tr__parallel(c->ctx, panels, grain, repack_panels, &r);
    if (!weights->home)
        return TR_OK;
    void *spare = tr__scratch(c, tr_home_bytes(weights->home));
    return spare ? tr_home_enter(weights->home, weights->data, spare) : TR_E_NOMEM;
}

static tr_status convolve_ourselves_bf16(const tr_kernel_call *c, const conv *v) {
    tr__conv_bf16 k = {.of = sizes_of(c, v), .src = v->t[0]->data, .weights = v->t[1]->data, .dst = v->t[2]->data};
    const void *bias = NULL;
    if (v->bias)
        TR_TRY(tr__dense_in(c, v->bias, TR_F32, &bias));
    k.of.bias = bias;
    memcpy(k.strides, v->t[1]->meta->strides, sizeof k.strides);
    return (tr__has_amx() ? tr__isa_now->convolve_tiles : tr__isa_now->convolve_bf16)(c, c->op, &k);
}

/* An image that would be another one with channels last. */
static bool can_turn(const tr_meta *m) {
    return !is_channels_last(m) && m->shape[1] > 1 && m->shape[2] * m->shape[3] > 1;
}

/* The convolution of images with channels last, copies where they lie otherwise. */
static tr_status convolve_turned(const tr_kernel_call *c, const conv *v, tr_kernel self) {
    tr_arg in[3], out = c->out[0];
    tr_meta metas[3];
    memcpy(in, c->in, (size_t) c->n_in * sizeof *in);
    for (int i = 0; i < 3; i += 2) {
        const tr_arg *image = v->t[i];
        const int64_t *n = image->meta->shape, strides[] = {n[1] * n[2] * n[3], 1, n[1] * n[3], n[1]};
        if (!can_turn(image->meta))
            continue;
        tr__meta_make(&metas[i], v->dtype, 4, n, strides);
        metas[i].dense = true;
        tr_arg turned = {.data = tr__scratch(c, (size_t) metas[i].numel * tr_dtype_size(v->dtype)), .meta = &metas[i]};
        if (!turned.data)
            return TR_E_NOMEM;
        if (image != c->out)
            TR_TRY(tr__copy(c->ctx, &turned, image));
        *(image == c->out ? &out : &in[image - c->in]) = turned;
    }
    tr_kernel_call turned = *c;
    turned.in = in;
    turned.out = &out;
    TR_TRY(self(&turned));
    return out.data == c->out[0].data ? TR_OK : tr__copy(c->ctx, &c->out[0], &out);
}

static tr_status convolve(const tr_kernel_call *c, conv v, tr_kernel self, tr_kernel plain) {
    v.dtype = (tr_dtype) c->out[0].meta->dtype;
    int out = written[v.direction];
    bool empty = false;
    for (int i = 0; i < 3; i++)
        empty |= v.t[i]->meta->numel == 0;
    if (empty || (v.dtype != TR_F32 && v.dtype != TR_BF16) || !v.t[out]->meta->dense)
        return plain(c);
    // Plans keep images with channels last, and sums that are rounded to bfloat16 show the order of their terms.
    if (v.dtype == TR_BF16 && (can_turn(v.t[0]->meta) || can_turn(v.t[2]->meta)))
        return convolve_turned(c, &v, self);
    tr_arg args[3];
    tr_meta metas[3];
    for (int i = 0; i < 3; i++)
        if (i != out)
            TR_TRY(settle(c, &v, i, &args[i], &metas[i]));
    if (is_ours(&v, c->attrs))
        return convolve_ourselves(c, &v);
    if (is_ours_bf16(&v, c->attrs))
        return convolve_ourselves_bf16(c, &v);
    tr__dnn_key key = key_of(c, &v);
    tr__dnn_entry *e = tr__dnn_find(&key);
    if (!e)
        return TR_FAIL(TR_E_NOMEM, "no memory for compiled operations");
    if (!e->op && !e->refused) {
        tr_status s = compile(c, &v, e);
        if (s == TR_E_NOMEM)
            return s;
        e->refused = s != TR_OK;
    }
    if (!e->refused)
        return run(c, &v, e);
    return v.dtype == TR_BF16 ? tr__widened(c, self) : plain(c);
}

/* Compiles a convolution of these looks, as its kernel does; `ours`: there is nothing to compile. */
static tr_status compile_looks(tr_op op, const int64_t *attrs, const tr_meta *const looks[3], bool bias, const tr_home *home,
                               int team, tr__dnn_entry *e, int *threads, bool *ours) {
    static const tr_dnn_direction direction[] = {
        [TR_OP_conv2d] = TR_DNN_FORWARD,
        [TR_OP_conv2d_backward_data] = TR_DNN_BACKWARD_DATA,
        [TR_OP_conv2d_backward_weights] = TR_DNN_BACKWARD_WEIGHTS,
    };
    tr_kernel_ctx ctx = {.threads = team};
    tr_kernel_call c = {.op = op, .attrs = attrs, .ctx = &ctx};
    tr_arg args[3], none = {0};
    for (int i = 0; i < 3; i++)
        args[i] = (tr_arg){.meta = looks[i], .home = i == 1 ? home : NULL};
    conv v = {direction[op], {&args[0], &args[1], &args[2]}, bias ? &none : NULL, (tr_dtype) looks[2]->dtype};
    *threads = threads_of(&c, &v);
    for (int i = 0; i < 3; i++)
        if (looks[i]->dtype != TR_F32 || !looks[i]->dense || looks[i]->numel == 0)
            return TR_FAIL(TR_E_NOTIMPL, "not for the library");
    *ours = is_ours(&v, attrs);
    return *ours ? TR_OK : compile(&c, &v, e);
}

tr_status tr_home_of_weights(const int64_t *attrs, const tr_meta *src, const tr_meta *weights, const tr_meta *dst, bool bias,
                             int team, const tr_home **out) {
    tr__dnn_entry e = {0};
    int threads;
    bool ours;
    tr_dnn_layout *panels = NULL;
    tr_status s = compile_looks(TR_OP_conv2d, attrs, (const tr_meta *[]){src, weights, dst}, bias, NULL, team, &e, &threads, &ours);
    if (s == TR_OK && ours)
        s = tr__dnn_layout_panels(weights, &panels);
    if (s == TR_OK)
        s = tr__home_intern(weights, attrs[6], ours ? panels : tr_dnn_op_layout(e.op, TR_DNN_WEIGHTS), threads, out);
    tr_dnn_layout_destroy(panels);
    tr__dnn_entry_clear(&e);
    return s;
}

tr_status tr_dnn_conv_warm(tr_op op, const int64_t *attrs, const tr_meta *const looks[3], bool bias, const tr_home *home,
                           int team) {
    tr__dnn_entry e = {0};
    int threads;
    bool ours;
    tr_status s = compile_looks(op, attrs, looks, bias, home, team, &e, &threads, &ours);
    tr__dnn_entry_clear(&e);
    return s;
}

TR__KERNEL(conv2d) {
    conv v = {TR_DNN_FORWARD, {&c->in[0], &c->in[1], &c->out[0]}, tr__absent(&c->in[2]) ? NULL : &c->in[2], TR_F32};
    return convolve(c, v, tr__kernel_conv2d, tr__plain_conv);
}
TR__KERNEL(conv2d_backward_data) {
    conv v = {TR_DNN_BACKWARD_DATA, {&c->out[0], &c->in[1], &c->in[0]}, NULL, TR_F32};
    return convolve(c, v, tr__kernel_conv2d_backward_data, tr__plain_conv_data);
}
TR__KERNEL(conv2d_backward_weights) {
    conv v = {TR_DNN_BACKWARD_WEIGHTS, {&c->in[1], &c->out[0], &c->in[0]}, NULL, TR_F32};
    return convolve(c, v, tr__kernel_conv2d_backward_weights, tr__plain_conv_weights);
}
