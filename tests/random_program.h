/* random_program.h - random training programs over the tracer's C interface, for comparing Terra's modes with each other.
 *
 * A program is decided by its seed: per step a path (one of a few), ops, views, in-place writes, fetches, draws from the
 * generator, temporaries kept for some steps, then backward and an optimizer. What it computes - every fetched value, every
 * parameter at the end - goes into a digest, bit for bit. */
#ifndef TR_TESTS_RANDOM_PROGRAM_H
#define TR_TESTS_RANDOM_PROGRAM_H

#include "terra/tracer.h"

#include <stdio.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { RP_N = 8, RP_PARAMS = 3, RP_POOL = 24, RP_KEPT = 6 };

typedef struct rp {
    uint64_t seed;      /* the program */
    uint64_t random;    /* the state of what decides its course */
    uint64_t digest;
    tr_tensor *param[RP_PARAMS], *momentum[RP_PARAMS];
    tr_tensor *pool[RP_POOL];
    int n_pool;
    tr_tensor *kept[RP_KEPT];
    tr_tensor *generator;
    int fetches;
} rp;

/* Where the program is: the line of an op in its path. The host's `site`. */
static uint32_t rp_line;
static inline uint32_t rp_site(void) { return rp_line; }

static inline uint32_t rp_next(uint64_t *s) {
    *s = *s * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t) (*s >> 33);
}

static inline void rp_check(tr_status status, int line) {
    if (status != TR_OK) {
        fprintf(stderr, "random program, line %d: %s: %s\n", line, tr_status_name(status), tr_status_detail());
        abort();
    }
}
#define RP_OK(call) rp_check((call), __LINE__)

/* All that a run has read, for comparing two. */
enum { RP_SEEN = 1 << 20 };
typedef struct rp_log {
    size_t n;
    float seen[RP_SEEN];
} rp_log;
static rp_log *rp_logging;

static inline void rp_digest(rp *p, const void *data, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        p->digest = (p->digest ^ ((const unsigned char *) data)[i]) * 1099511628211u;
}

static inline tr_tensor *rp_filled(uint64_t *random) {
    float data[RP_N * RP_N];
    tr_tensor *t = NULL;
    for (int i = 0; i < RP_N * RP_N; i++)
        data[i] = (float) ((int) (rp_next(random) % 2001) - 1000) / 2500.0f;
    RP_OK(tr_tensor_from_host(tr_meta_get(TR_F32, 2, (int64_t[]){RP_N, RP_N}, NULL), data, &t));
    return t;
}

static inline void rp_push(rp *p, tr_tensor *t) {
    if (p->n_pool == RP_POOL) {
        tr_tensor_release(p->pool[p->n_pool / 2]);
        memmove(p->pool + p->n_pool / 2, p->pool + p->n_pool / 2 + 1, (size_t) (p->n_pool - p->n_pool / 2 - 1) * sizeof *p->pool);
        p->n_pool--;
    }
    p->pool[p->n_pool++] = t;
}

static inline tr_tensor *rp_call(tr_op op, const tr_input *in, int n, const int64_t *attrs, bool in_place) {
    tr_tensor *out[TR_MAX_OUTPUTS] = {0};
    RP_OK(tr_apply(op, in, n, attrs, NULL, in_place, out));
    tr_tensor_release(out[1]);
    tr_tensor_release(out[2]);
    return out[0];
}

static inline void rp_fetch(rp *p, tr_tensor *t) {
    float data[RP_N * RP_N];
    RP_OK(tr_tensor_read(t, data));
    rp_digest(p, data, (size_t) t->meta->numel * sizeof *data);
    for (int64_t i = 0; rp_logging && i < t->meta->numel && rp_logging->n < RP_SEEN; i++)
        rp_logging->seen[rp_logging->n++] = data[i];
    p->fetches++;
}

static inline void rp_op(rp *p, uint64_t *r) {
    tr_tensor *a = p->pool[rp_next(r) % (uint32_t) p->n_pool], *b = p->pool[rp_next(r) % (uint32_t) p->n_pool], *t = NULL;
    switch (rp_next(r) % 13) {
    case 0:
        t = rp_call(TR_OP_add, (tr_input[]){tr_in(a), tr_in(b), tr_in_int(1)}, 3, NULL, false);
        break;
    case 1:
        t = rp_call(TR_OP_mul, (tr_input[]){tr_in(a), tr_in_double(0.5)}, 2, NULL, false);
        break;
    case 2:
        t = rp_call(TR_OP_tanh, (tr_input[]){tr_in(a)}, 1, NULL, false);
        break;
    case 3:
        t = rp_call(TR_OP_relu, (tr_input[]){tr_in(a)}, 1, NULL, false);
        break;
    case 4:
    case 5:
        t = rp_call(TR_OP_mm, (tr_input[]){tr_in(a), tr_in(b)}, 2, NULL, false);
        break;
    case 6:
        t = rp_call(TR_OP_transpose, (tr_input[]){tr_in(a)}, 1, (int64_t[]){0, 1}, false);
        break;
    case 7: { // an in-place write through a view of a fresh tensor
        t = rp_call(TR_OP_clone, (tr_input[]){tr_in(a)}, 1, NULL, false);
        int64_t at = rp_next(r) % (RP_N - 2);
        tr_tensor *rows = rp_call(TR_OP_slice, (tr_input[]){tr_in(t)}, 1, (int64_t[]){rp_next(r) % 2, at, at + 2, 1}, false);
        tr_tensor *same = rp_call(TR_OP_mul, (tr_input[]){tr_in(rows), tr_in_double(-0.25)}, 2, NULL, true);
        tr_tensor_release(same);
        tr_tensor_release(rows);
        break;
    }
    case 8: { // in place on a fresh tensor
        t = rp_call(TR_OP_sub, (tr_input[]){tr_in(a), tr_in(b), tr_in_int(1)}, 3, NULL, false);
        tr_tensor_release(rp_call(TR_OP_sigmoid, (tr_input[]){tr_in(t)}, 1, NULL, true));
        break;
    }
    case 9:
        t = rp_call(TR_OP__dropout, (tr_input[]){tr_in(a), tr_in_double(0.3), {.tensor = p->generator}}, 3, NULL, false);
        break;
    case 10: {
        tr_tensor *m = rp_call(TR_OP_gt, (tr_input[]){tr_in(a), tr_in(b)}, 2, NULL, false);
        t = rp_call(TR_OP_masked_fill, (tr_input[]){tr_in(a), tr_in(m), tr_in_double(0.1)}, 3, NULL, false);
        tr_tensor_release(m);
        break;
    }
    case 11: {
        tr_tensor *s = rp_call(TR_OP_mean, (tr_input[]){tr_in(a)}, 1, (int64_t[]){1 + rp_next(r) % 2, 1, -1}, false);
        t = rp_call(TR_OP_sub, (tr_input[]){tr_in(b), tr_in(s), tr_in_int(1)}, 3, NULL, false);
        tr_tensor_release(s);
        break;
    }
    default:
        t = rp_call(TR_OP__softmax, (tr_input[]){tr_in(a)}, 1, (int64_t[]){1}, false);
    }
    rp_push(p, t);
}

static inline void rp_update(rp *p, int step) {
    bool was = tr_set_grad_enabled(false);
    for (int i = 0; i < RP_PARAMS; i++) {
        if (!p->param[i]->grad)
            continue;
        double lr = 0.05 / (1 + 0.01 * step);
        tr_input in[] = {tr_in(p->param[i]), tr_in(p->param[i]->grad), tr_in(p->momentum[i]), tr_in_double(lr), tr_in_double(0.9),
                         tr_in_double(0), tr_in_double(0.01)};
        tr_tensor_release(rp_call(TR_OP__sgd_, in, 7, (int64_t[]){0, 0, 0}, false));
    }
    tr_set_grad_enabled(was);
}

static inline void rp_step(rp *p, int step) {
    // The path: mostly the same, sometimes another, rarely one never seen.
    uint64_t course = p->seed * 77 + 1;
    uint32_t dice = rp_next(&p->random) % 100;
    if (dice < 12)
        course += 1000;
    else if (dice < 15)
        course += 5000 + (uint64_t) step;
    int n_ops = 12 + (int) (rp_next(&course) % 12);
    bool break_early = rp_next(&p->random) % 40 == 0, keep_one = rp_next(&p->random) % 25 == 0,
         extra_fetch = rp_next(&p->random) % 20 == 0;
    int stop = (int) (rp_next(&p->random) % (uint32_t) n_ops);
    for (int i = 0; i < RP_PARAMS; i++)
        RP_OK(tr_tensor_set_grad(p->param[i], NULL));
    uint64_t feed = p->seed + (uint64_t) step * 13;
    rp_push(p, rp_filled(&feed));
    for (int i = 0; i < RP_PARAMS; i++) {
        tr_tensor_retain(p->param[i]);
        rp_push(p, p->param[i]);
    }
    for (int i = 0; i < n_ops && !(break_early && i == stop); i++) {
        rp_line = 100 + (uint32_t) i;
        rp_op(p, &course);
        if (rp_next(&course) % 12 == 0 || (extra_fetch && i == stop))
            rp_fetch(p, p->pool[p->n_pool - 1]);
        if (keep_one && i == stop) {
            int at = (int) (rp_next(&p->random) % RP_KEPT);
            tr_tensor_release(p->kept[at]);
            p->kept[at] = p->pool[p->n_pool - 1];
            tr_tensor_retain(p->kept[at]);
        }
    }
    rp_line = 1;
    tr_tensor *loss = NULL, *last = p->pool[p->n_pool - 1];
    for (int i = p->n_pool - 1; i >= 0 && !last->requires_grad; i--)
        last = p->pool[i];
    tr_tensor *wide = rp_call(TR_OP_mul, (tr_input[]){tr_in(last), tr_in(last)}, 2, NULL, false);
    loss = rp_call(TR_OP_mean, (tr_input[]){tr_in(wide)}, 1, (int64_t[]){3, 0, -1}, false);
    tr_tensor_release(wide);
    for (; p->n_pool > 0; p->n_pool--)
        tr_tensor_release(p->pool[p->n_pool - 1]);
    RP_OK(tr_backward(&(tr_backward_args){.roots = &loss, .n_roots = 1}));
    if (rp_next(&p->random) % 3 == 0)
        rp_fetch(p, loss);
    if (rp_next(&p->random) % 30 == 0)
        for (int i = 0; i < RP_KEPT; i++)
            if (p->kept[i])
                rp_fetch(p, p->kept[i]);
    tr_tensor_release(loss);
    rp_line = 2;
    rp_update(p, step);
    rp_line = 0;
    RP_OK(tr_mark(TR_MARK_OPTIMIZER, 1));
}

/* Runs the program and returns its digest. */
static inline uint64_t rp_run(uint64_t seed, int steps, bool sync) {
    rp p = {.seed = seed, .random = seed * 31 + 7, .digest = 1469598103934665603u};
    uint64_t random = seed;
    tr_set_sync(sync);
    RP_OK(tr_generator_create(seed, &p.generator));
    for (int i = 0; i < RP_PARAMS; i++) {
        p.param[i] = rp_filled(&random);
        p.momentum[i] = rp_call(TR_OP_mul, (tr_input[]){tr_in(p.param[i]), tr_in_int(0)}, 2, NULL, false);
        RP_OK(tr_tensor_set_requires_grad(p.param[i], true));
    }
    for (int step = 0; step < steps; step++)
        rp_step(&p, step);
    for (int i = 0; i < RP_PARAMS; i++) {
        rp_fetch(&p, p.param[i]);
        RP_OK(tr_tensor_set_grad(p.param[i], NULL));
        tr_tensor_release(p.param[i]);
        tr_tensor_release(p.momentum[i]);
    }
    for (int i = 0; i < RP_KEPT; i++)
        tr_tensor_release(p.kept[i]);
    tr_tensor_release(p.generator);
    RP_OK(tr_mark(TR_MARK_EXPLICIT, 0));
    RP_OK(tr_synchronize());
    return p.digest;
}

/* Co-execution against sync mode: bit for bit, or where plans cut products into slices of rows, nearly. */
static inline bool rp_same(uint64_t seed, int steps, bool exact) {
    static rp_log logs[2];
    rp_run(seed, steps, true); // shapes seen for the first time use other kernels: not compared
    uint64_t digest[2];
    for (int k = 0; k < 2; k++) {
        rp_logging = &logs[k];
        logs[k].n = 0;
        digest[k] = rp_run(seed, steps, k == 0);
    }
    rp_logging = NULL;
    if (exact || digest[0] == digest[1])
        return digest[0] == digest[1];
    bool same = logs[0].n == logs[1].n;
    float most = 1;
    for (size_t i = 0; same && i < logs[0].n; i++) {
        float a = logs[0].seen[i], b = logs[1].seen[i];
        most = fabsf(a) < 1e6f && fabsf(a) > most ? fabsf(a) : most;
        same = a == b || fabsf(a - b) <= 1e-3f * most || (a != a && b != b);
    }
    return same;
}

#endif
