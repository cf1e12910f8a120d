/* test_tracer_images.c - images that a plan keeps channels last look row-major to whoever reads them: fetched where nobody
 * foresaw it, kept beyond the mark, or left behind by an exit in mid-iteration. */
#include "terra/tracer.h"

#include "terra/alloc.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define OK(expr)                                                   \
    do {                                                           \
        tr_status ok_status_ = (expr);                             \
        cr_assert_eq(ok_status_, TR_OK, "%s", tr_status_detail()); \
    } while (0)

enum { N = 2, C = 16, H = 6, W = 5, IMAGE = N * C * H * W, STEPS = 16 };

typedef struct net {
    tr_tensor *x, *w[2], *gamma, *beta;
    uint32_t random;
} net;

static tr_tensor *filled(net *n, int ndim, const int64_t *shape, float scale) {
    const tr_meta *m = tr_meta_get(TR_F32, ndim, shape, NULL);
    float *data = malloc((size_t) m->numel * sizeof *data);
    for (int64_t i = 0; i < m->numel; i++) {
        n->random = n->random * 1664525u + 1013904223u;
        data[i] = ((float) (n->random >> 8) / (1 << 23) - 1) * scale;
    }
    tr_tensor *t = NULL;
    OK(tr_tensor_from_host(m, data, &t));
    free(data);
    return t;
}

static tr_tensor *apply(tr_op op, const tr_input *in, int n, const int64_t *attrs, bool in_place) {
    tr_tensor *out[TR_MAX_OUTPUTS] = {NULL};
    OK(tr_apply(op, in, n, attrs, NULL, in_place, out));
    for (int i = 1; i < TR_MAX_OUTPUTS; i++)
        tr_tensor_release(out[i]);
    return out[0];
}

static net make_net(void) {
    net n = {.random = 7};
    n.x = filled(&n, 4, (int64_t[]){N, C, H, W}, 1);
    for (int i = 0; i < 2; i++) {
        n.w[i] = filled(&n, 4, (int64_t[]){C, C, 3, 3}, 0.1f);
        OK(tr_tensor_set_requires_grad(n.w[i], true));
    }
    n.gamma = filled(&n, 1, (int64_t[]){C}, 1);
    n.beta = filled(&n, 1, (int64_t[]){C}, 1);
    OK(tr_tensor_set_requires_grad(n.gamma, true));
    return n;
}

static void free_net(net *n) {
    tr_tensor_release(n->x);
    tr_tensor_release(n->w[0]);
    tr_tensor_release(n->w[1]);
    tr_tensor_release(n->gamma);
    tr_tensor_release(n->beta);
}

static tr_tensor *block(net *n, tr_tensor *x, tr_tensor *w) {
    tr_tensor *y = apply(TR_OP_conv2d, (tr_input[]){tr_in(x), tr_in(w), {0}}, 3, (int64_t[]){1, 1, 1, 1, 1, 1, 1}, false);
    tr_tensor *z =
        apply(TR_OP_batch_norm,
              (tr_input[]){tr_in(y), tr_in(n->gamma), tr_in(n->beta), {0}, {0}, tr_in_double(0.1), tr_in_double(1e-5)}, 7,
              (int64_t[]){1}, false);
    tr_tensor_release(y);
    tr_tensor *r = apply(TR_OP_relu, (tr_input[]){tr_in(z)}, 1, NULL, true);
    tr_tensor_release(z);
    return r;
}

typedef struct record {
    float *at;
    size_t n;
} record;

static void note(record *r, tr_tensor *t) {
    OK(tr_tensor_read(t, r->at + r->n));
    r->n += (size_t) t->meta->numel;
}

static void train_step(net *n, int step, record *r) {
    tr_tensor *h = block(n, n->x, n->w[0]);
    if (step == 9)
        note(r, h); // in the middle, and for the first time
    if (step == 10) {
        tr_mark(TR_MARK_EXPLICIT, 1); // in the middle of the path
        note(r, h);
        tr_tensor_release(h);
        return;
    }
    tr_tensor *y = block(n, h, n->w[1]);
    tr_tensor *sum = apply(TR_OP_add, (tr_input[]){tr_in(y), tr_in(h), tr_in_int(1)}, 3, NULL, false);
    tr_tensor *loss = apply(TR_OP_mean, (tr_input[]){tr_in(sum)}, 1, (int64_t[]){15, 0, -1}, false);
    OK(tr_backward(&(tr_backward_args){.roots = &loss, .n_roots = 1}));
    bool was = tr_set_grad_enabled(false);
    for (int i = 0; i < 2; i++) {
        tr_tensor_release(
            apply(TR_OP_add, (tr_input[]){tr_in(n->w[i]), tr_in(n->w[i]->grad), tr_in_double(-0.5)}, 3, NULL, true));
        OK(tr_tensor_set_grad(n->w[i], NULL));
    }
    OK(tr_tensor_set_grad(n->gamma, NULL));
    tr_set_grad_enabled(was);
    tr_tensor_release(sum);
    tr_tensor_release(h);
    if (step != 12)
        tr_tensor_release(y);
    tr_mark(TR_MARK_EXPLICIT, 1);
    note(r, loss);
    if (step == 12) { // kept beyond the mark, where it died before
        note(r, y);
        tr_tensor_release(y);
    }
    tr_tensor_release(loss);
}

static size_t train(float *into, bool coexec) {
    tr_set_coexecution(coexec);
    net n = make_net();
    record r = {.at = into};
    for (int step = 0; step < STEPS; step++) {
        train_step(&n, step, &r);
        if (coexec && step < 6)
            usleep(30000);         // until plans are compiled
        if (coexec && step == 8) { // before anybody looks
            char *text = tr_explain();
            cr_expect_not_null(strstr(text, "channels last"), "%s", text);
            tr_free(text);
        }
    }
    note(&r, n.w[0]);
    free_net(&n);
    return r.n;
}

Test(images, look_row_major_to_everybody) {
    OK(tr_tracer_init(&(tr_host){0}));
    static float want[STEPS + 4 * IMAGE + C * C * 9], have[STEPS + 4 * IMAGE + C * C * 9];
    size_t n = train(have, true); // first: nothing may be known of what steps 9 to 12 do
    tr_stats s;
    tr_stats_get(&s);
    cr_expect_gt(s.iterations_coexecuted, 3);
    cr_assert_eq(train(want, false), n);
    for (size_t i = 0; i < n; i++)
        cr_assert(fabsf(want[i] - have[i]) <= 2e-4f * (1 + fabsf(want[i])), "number %zu of %zu: %g, not %g", i, n,
                  (double) have[i], (double) want[i]);
    OK(tr_tracer_shutdown());
}
