/* plain.c - matrix products and convolutions without a library: for float64 and integers, and for whatever oneDNN refuses.
 * A blocked product over row-major panels; convolutions unfold into it. */
#include "exec/dnn/plain.h"

#define PRODUCT(T)                                                                               \
    static void product_##T(const tr__product *p, int64_t row, int64_t end) {                    \
        enum { KB = 256, NB = 512 };                                                             \
        for (int64_t j0 = 0; j0 < p->n; j0 += NB)                                                \
            for (int64_t k0 = 0; k0 < p->k; k0 += KB)                                            \
                for (int64_t i = row; i < end; i++) {                                            \
                    T *y = (T *) p->y + i * p->n;                                                \
                    int64_t j1 = tr__min(j0 + NB, p->n), k1 = tr__min(k0 + KB, p->k);            \
                    for (int64_t k = k0; k < k1; k++) {                                          \
                        T a = ((const T *) p->a)[i * p->a_row + k * p->a_col];                   \
                        const T *b = (const T *) p->b + k * p->n;                                \
                        _Pragma("GCC ivdep") for (int64_t j = j0; j < j1; j++) y[j] += a * b[j]; \
                    }                                                                            \
                }                                                                                \
    }
PRODUCT(float)
PRODUCT(double)
PRODUCT(int64_t)

static void run_rows(void *env, int64_t begin, int64_t end, int thread) {
    const tr__product *p = env;
    if (p->dtype == TR_F32)
        product_float(p, begin, end);
    else if (p->dtype == TR_F64)
        product_double(p, begin, end);
    else
        product_int64_t(p, begin, end);
}

void tr__product_add(tr_kernel_ctx *ctx, const tr__product *p) {
    tr__parallel(ctx, p->m, tr__max(1, TR__GRAIN / tr__max(1, p->n * p->k)), run_rows, (void *) p);
}

/* ------------------------------------------------------------------------------------------ matrix products */

static bool is_number_zero(const tr_arg *a) {
    return tr_arg_double(a) == 0;
}

/* y = beta * input + alpha * y, the input broadcast; beta 0 ignores the input, NaN and all. */
static tr_status add_input(const tr_kernel_call *c, void *y, tr_dtype wide) {
    const tr_arg *out = &c->out[0], *beta = &c->in[3], *alpha = &c->in[4];
    tr_meta m, number;
    tr__meta_make(&m, wide, out->meta->ndim, out->meta->shape, NULL);
    tr__meta_make(&number, TR_F64, 0, NULL, NULL);
    tr_arg args[4] = {c->in[0], *beta, *alpha, {y, &m, {0}}};
    tr_ew_program p = {.n_steps = 1, .n_args = 4};
    tr_ew_step mul = {.op = TR_OP_mul, .cdtype = (uint8_t) wide, .dtype = (uint8_t) wide, .store = -1};
    p.steps[0] = mul;
    memcpy(p.steps[0].in, (int16_t[]){3, 2, TR_EW_ABSENT, TR_EW_ABSENT, TR_EW_ABSENT}, sizeof mul.in);
    if (is_number_zero(beta)) {
        p.steps[0].store = 3;
        args[0] = args[3];
    } else {
        p.n_steps = 3;
        p.steps[1] = mul;
        memcpy(p.steps[1].in, (int16_t[]){0, 1, TR_EW_ABSENT, TR_EW_ABSENT, TR_EW_ABSENT}, sizeof mul.in);
        p.steps[2] = mul;
        p.steps[2].op = TR_OP_add;
        p.steps[2].store = 3;
        memcpy(p.steps[2].in, (int16_t[]){~0, ~1, TR_EW_ABSENT, TR_EW_ABSENT, TR_EW_ABSENT}, sizeof mul.in);
    }
    return tr_ew_run(&p, &m, args, c->ctx);
}

tr_status tr__plain_matmul(const tr_kernel_call *c) {
    bool adds = c->op == TR_OP_addmm || c->op == TR_OP_baddbmm;
    const tr_arg *a = &c->in[adds ? 1 : 0], *b = &c->in[adds ? 2 : 1], *out = &c->out[0];
    tr_dtype wide = tr__wide(out->meta->dtype);
    int nd = out->meta->ndim;
    tr__product p = {.m = out->meta->shape[nd - 2], .n = out->meta->shape[nd - 1], .k = a->meta->shape[nd - 1], .dtype = wide};
    size_t size = tr_dtype_size(wide);
    int64_t batch = nd == 3 ? out->meta->shape[0] : 1;
    const void *x, *z;
    void *y = tr__scratch(c, (size_t) out->meta->numel * size);
    if (!y)
        return TR_E_NOMEM;
    TR_TRY(tr__dense_in(c, a, wide, &x));
    TR_TRY(tr__dense_in(c, b, wide, &z));
    memset(y, 0, (size_t) out->meta->numel * size);
    p.a_row = p.k;
    p.a_col = 1;
    for (int64_t i = 0; i < batch; i++) {
        p.a = (const char *) x + (size_t) (i * p.m * p.k) * size;
        p.b = (const char *) z + (size_t) (i * p.k * p.n) * size;
        p.y = (char *) y + (size_t) (i * p.m * p.n) * size;
        tr__product_add(c->ctx, &p);
    }
    if (adds)
        TR_TRY(add_input(c, y, wide));
    return tr__dense_out_end(c, out, wide, y);
}

/* ------------------------------------------------------------------------------------------ convolutions */

/* x [C, H, W] <-> columns [C * KH * KW, OH * OW]. `back` adds columns to x. */
typedef struct unfold {
    int64_t c, h, w, kh, kw, oh, ow, sh, sw, ph, pw, dh, dw;
} unfold;

#define UNFOLD(T)                                                                                     \
    static void unfold_##T(const unfold *u, T *x, T *columns, bool back) {                            \
        for (int64_t r = 0; r < u->c * u->kh * u->kw; r++) {                                          \
            int64_t kx = r % u->kw, ky = r / u->kw % u->kh, c = r / u->kw / u->kh;                    \
            for (int64_t oy = 0; oy < u->oh; oy++)                                                    \
                for (int64_t ox = 0; ox < u->ow; ox++) {                                              \
                    int64_t y = oy * u->sh - u->ph + ky * u->dh, z = ox * u->sw - u->pw + kx * u->dw; \
                    bool in = y >= 0 && y < u->h && z >= 0 && z < u->w;                               \
                    T *column = columns + (r * u->oh + oy) * u->ow + ox;                              \
                    T *place = x + (c * u->h + y) * u->w + z;                                         \
                    if (!back)                                                                        \
                        *column = in ? *place : 0;                                                    \
                    else if (in)                                                                      \
                        *place += *column;                                                            \
                }                                                                                     \
        }                                                                                             \
    }
UNFOLD(float)
UNFOLD(double)

static void run_unfold(const unfold *u, void *x, void *columns, bool back, tr_dtype wide) {
    if (wide == TR_F32)
        unfold_float(u, x, columns, back);
    else
        unfold_double(u, x, columns, back);
}

typedef struct conv {
    unfold u;              /* channels of one group */
    int64_t n, groups, co; /* co: output channels of one group */
    tr_dtype wide;
    size_t size;
    int64_t rows, places; /* of columns */
    void *columns;
} conv;

static tr_status open_conv(const tr_kernel_call *c, conv *v, const tr_meta *x, const tr_meta *w, const tr_meta *y) {
    const int64_t *a = c->attrs;
    v->groups = a[6];
    v->n = x->shape[0];
    v->co = y->shape[1] / v->groups;
    v->u = (unfold){x->shape[1] / v->groups,
                    x->shape[2],
                    x->shape[3],
                    w->shape[2],
                    w->shape[3],
                    y->shape[2],
                    y->shape[3],
                    a[0],
                    a[1],
                    a[2],
                    a[3],
                    a[4],
                    a[5]};
    v->rows = v->u.c * v->u.kh * v->u.kw;
    v->places = v->u.oh * v->u.ow;
    v->wide = tr__wide(x->dtype);
    v->size = tr_dtype_size(v->wide);
    v->columns = tr__scratch(c, (size_t) (v->rows * v->places) * v->size);
    return v->columns ? TR_OK : TR_E_NOMEM;
}

static char *at(const conv *v, const void *p, int64_t elements) {
    return (char *) p + (size_t) elements * v->size;
}

static void add_bias(const conv *v, void *y, const void *bias) {
    for (int64_t k = 0; k < v->n * v->groups * v->co; k++)
        for (int64_t i = 0; i < v->places; i++) {
            if (v->wide == TR_F32)
                ((float *) y)[k * v->places + i] = ((const float *) bias)[k % (v->groups * v->co)];
            else
                ((double *) y)[k * v->places + i] = ((const double *) bias)[k % (v->groups * v->co)];
        }
}

tr_status tr__plain_conv(const tr_kernel_call *c) {
    const tr_arg *out = &c->out[0];
    conv v;
    const void *x, *w, *b;
    void *y;
    TR_TRY(open_conv(c, &v, c->in[0].meta, c->in[1].meta, out->meta));
    TR_TRY(tr__dense_in(c, &c->in[0], v.wide, &x));
    TR_TRY(tr__dense_in(c, &c->in[1], v.wide, &w));
    TR_TRY(tr__dense_out(c, out, v.wide, &y));
    memset(y, 0, (size_t) out->meta->numel * v.size);
    if (!tr__absent(&c->in[2])) {
        TR_TRY(tr__dense_in(c, &c->in[2], v.wide, &b));
        add_bias(&v, y, b);
    }
    for (int64_t k = 0; k < v.n * v.groups; k++) {
        run_unfold(&v.u, at(&v, x, k * v.u.c * v.u.h * v.u.w), v.columns, false, v.wide);
        tr__product p = {.m = v.co,
                         .n = v.places,
                         .k = v.rows,
                         .a_row = v.rows,
                         .a_col = 1,
                         .dtype = v.wide,
                         .a = at(&v, w, k % v.groups * v.co * v.rows),
                         .b = v.columns,
                         .y = at(&v, y, k * v.co * v.places)};
        tr__product_add(c->ctx, &p);
    }
    return tr__dense_out_end(c, out, v.wide, y);
}

tr_status tr__plain_conv_data(const tr_kernel_call *c) {
    const tr_arg *out = &c->out[0];
    conv v;
    const void *g, *w;
    void *x;
    TR_TRY(open_conv(c, &v, out->meta, c->in[1].meta, c->in[0].meta));
    TR_TRY(tr__dense_in(c, &c->in[0], v.wide, &g));
    TR_TRY(tr__dense_in(c, &c->in[1], v.wide, &w));
    TR_TRY(tr__dense_out(c, out, v.wide, &x));
    memset(x, 0, (size_t) out->meta->numel * v.size);
    for (int64_t k = 0; k < v.n * v.groups; k++) {
        memset(v.columns, 0, (size_t) (v.rows * v.places) * v.size);
        tr__product p = {.m = v.rows,
                         .n = v.places,
                         .k = v.co,
                         .a_row = 1,
                         .a_col = v.rows,
                         .dtype = v.wide,
                         .a = at(&v, w, k % v.groups * v.co * v.rows),
                         .b = at(&v, g, k * v.co * v.places),
                         .y = v.columns};
        tr__product_add(c->ctx, &p);
        run_unfold(&v.u, at(&v, x, k * v.u.c * v.u.h * v.u.w), v.columns, true, v.wide);
    }
    return tr__dense_out_end(c, out, v.wide, x);
}

/* columns [rows, places] -> [places, rows] */
static void transpose(const conv *v, const void *from, void *to) {
    for (int64_t r = 0; r < v->rows; r++)
        for (int64_t i = 0; i < v->places; i++)
            memcpy((char *) to + (size_t) (i * v->rows + r) * v->size,
                   (const char *) from + (size_t) (r * v->places + i) * v->size, v->size);
}

tr_status tr__plain_conv_weights(const tr_kernel_call *c) {
    const tr_arg *out = &c->out[0];
    conv v;
    const void *g, *x;
    void *w;
    TR_TRY(open_conv(c, &v, c->in[1].meta, out->meta, c->in[0].meta));
    TR_TRY(tr__dense_in(c, &c->in[0], v.wide, &g));
    TR_TRY(tr__dense_in(c, &c->in[1], v.wide, &x));
    TR_TRY(tr__dense_out(c, out, v.wide, &w));
    memset(w, 0, (size_t) out->meta->numel * v.size);
    void *turned = tr__scratch(c, (size_t) (v.rows * v.places) * v.size);
    if (!turned)
        return TR_E_NOMEM;
    for (int64_t k = 0; k < v.n * v.groups; k++) {
        run_unfold(&v.u, at(&v, x, k * v.u.c * v.u.h * v.u.w), v.columns, false, v.wide);
        transpose(&v, v.columns, turned);
        tr__product p = {.m = v.co,
                         .n = v.rows,
                         .k = v.places,
                         .a_row = v.places,
                         .a_col = 1,
                         .dtype = v.wide,
                         .a = at(&v, g, k * v.co * v.places),
                         .b = turned,
                         .y = at(&v, w, k % v.groups * v.co * v.rows)};
        tr__product_add(c->ctx, &p);
    }
    return tr__dense_out_end(c, out, v.wide, w);
}
