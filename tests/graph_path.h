/* graph_path.h - building paths by hand and at random, for the tests of the graph room. */
#ifndef TERRA_TESTS_GRAPH_PATH_H
#define TERRA_TESTS_GRAPH_PATH_H

#include <criterion/criterion.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "terra/alloc.h"
#include "terra/graph.h"

enum { MAX_OPS = 8192, MAX_OPERANDS = MAX_OPS * 10 };

typedef struct builder {
    tr_path path;
} builder;

static inline void builder_init(builder *b) {
    cr_assert_eq(tr_op_init(), TR_OK);
    cr_assert_eq(tr_kernel_init(NULL), TR_OK);
    b->path = (tr_path){
        .ops = tr_calloc(MAX_OPS, sizeof(tr_path_op)),
        .operands = tr_calloc(MAX_OPERANDS, sizeof(tr_path_operand)),
        .attrs = tr_calloc(MAX_OPS * TR_MAX_ATTRS, 8),
        .args = tr_calloc(MAX_OPERANDS, 8),
        .death = tr_calloc(MAX_OPS * 3, sizeof(uint32_t)),
        .deaths = tr_calloc(MAX_OPS * 3, sizeof(uint32_t)),
        .value_bytes = tr_calloc(MAX_OPS * 3, sizeof(size_t)),
        .fetched = tr_calloc(MAX_OPS * 3, 1),
    };
}

static inline tr_path *builder_path(builder *b) {
    tr_path *p = tr_malloc(sizeof *p);
    *p = b->path;
    return p;
}

static inline tr_plan *builder_compile(builder *b) {
    tr_plan *plan = NULL;
    tr_path *path = builder_path(b);
    tr_status status = tr_graph_compile(path, &plan);
    cr_assert_eq(status, TR_OK, "%s", tr_status_detail());
    status = tr_plan_verify(plan);
    if (status != TR_OK) {
        char *text = tr_plan_text(plan, NULL);
        cr_log_error("%s", text);
        tr_free(text);
    }
    cr_assert_eq(status, TR_OK, "%s", tr_status_detail());
    return plan;
}

static inline const tr_meta *shape(tr_dtype dtype, int ndim, ...) {
    int64_t sizes[TR_MAX_DIMS];
    va_list args;
    va_start(args, ndim);
    for (int d = 0; d < ndim; d++)
        sizes[d] = va_arg(args, int);
    va_end(args);
    return tr_meta_get(dtype, ndim, sizes, NULL);
}

static inline tr_path_operand on(tr_ref ref, const tr_meta *meta) {
    return (tr_path_operand){ref, meta};
}
static inline tr_path_operand number(void) {
    return (tr_path_operand){TR_REF_NONE, shape(TR_F64, 0)};
}
static inline tr_path_operand absent(void) {
    return (tr_path_operand){TR_REF_NONE, NULL};
}
static inline tr_ref external(builder *b) {
    return TR_REF_EXTERNAL | b->path.n_externals++;
}

/* Appends an op; `results` NULL metas end early. In place: results[0] is inputs[0]. Returns the op. */
static inline uint32_t add_op(builder *b, tr_op op, tr_dtype cdtype, int n_in, const tr_path_operand *in, int n_out,
                              const tr_meta *const *out, bool in_place) {
    tr_path *p = &b->path;
    const tr_op_info *info = tr_op_info_of(op);
    cr_assert(p->n_ops < MAX_OPS && p->n_operands + 64 < MAX_OPERANDS);
    tr_path_op *o = &p->ops[p->n_ops];
    *o = (tr_path_op){
        .op = (uint16_t) op,
        .n_in = (uint16_t) n_in,
        .n_out = (uint8_t) n_out,
        .n_attrs = info->n_attrs,
        .cdtype = (uint8_t) cdtype,
        .in_place = in_place,
        .operand = p->n_operands,
        .attr = p->n_attrs,
    };
    p->n_attrs += o->n_attrs;
    for (int i = 0; i < n_in; i++)
        p->operands[p->n_operands++] = in[i];
    for (int i = 0; i < n_out; i++) {
        if (in_place) {
            p->args[p->n_operands] = p->args[o->operand];
            p->operands[p->n_operands++] = in[0];
            continue;
        }
        tr_ref v = p->n_values++;
        p->value_bytes[v] = (size_t) out[i]->numel * tr_dtype_size((tr_dtype) out[i]->dtype);
        p->death[v] = TR_DEATH_NEVER;
        p->operands[p->n_operands++] = on(v, out[i]);
    }
    return p->n_ops++;
}

static inline tr_ref unary(builder *b, tr_op op, tr_ref x, const tr_meta *m) {
    add_op(b, op, (tr_dtype) m->dtype, 1, (tr_path_operand[]){on(x, m)}, 1, &m, false);
    return b->path.n_values - 1;
}
static inline tr_ref binary(builder *b, tr_op op, tr_path_operand x, tr_path_operand y, const tr_meta *m) {
    bool alpha = op == TR_OP_add || op == TR_OP_sub;
    add_op(b, op, (tr_dtype) m->dtype, alpha ? 3 : 2, (tr_path_operand[]){x, y, number()}, 1, &m, false);
    return b->path.n_values - 1;
}
static inline void unary_(builder *b, tr_op op, tr_ref x, const tr_meta *m) {
    add_op(b, op, (tr_dtype) m->dtype, 1, (tr_path_operand[]){on(x, m)}, 1, &m, true);
}
static inline void kill(builder *b, tr_ref v) {
    b->path.death[v] = b->path.n_ops;
}
static inline tr_ref product(builder *b, tr_path_operand x, tr_path_operand y, const tr_meta *m) {
    add_op(b, TR_OP_mm, (tr_dtype) m->dtype, 2, (tr_path_operand[]){x, y}, 1, &m, false);
    return b->path.n_values - 1;
}

/* ------------------------------------------------------------------------------------------ at random */

typedef struct dice {
    uint64_t state;
} dice;
static inline uint32_t roll(dice *d, uint32_t n) {
    d->state = d->state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t) (d->state >> 33) % n;
}

enum { SIDE = 8, MAX_HANDLES = 64 };

/* A live storage, as its program sees it: what was made, square or smaller. */
typedef struct handle {
    tr_ref ref;
    tr_dtype dtype;
    bool square;
    bool long_lived, read;
} handle;

typedef struct author {
    builder *b;
    dice d;
    handle live[MAX_HANDLES];
    uint32_t n_live;
    tr_ref generator, weights;
    tr_ref parameter, cast; /* of a training step under autocast that has begun; cast NONE: there is none */
} author;

/* Squares may also be images: [2, 4, 2, 4], with convolutions for products. */
static bool images;

static inline const tr_meta *square_of(tr_dtype t) {
    return images ? shape(t, 4, 2, 4, 2, 4) : shape(t, 2, SIDE, SIDE);
}
static inline const tr_meta *transposed(tr_dtype t) {
    return images ? tr_meta_get(t, 4, (int64_t[]){2, 4, 2, 4}, (int64_t[]){32, 1, 16, 4})
                  : tr_meta_get(t, 2, (int64_t[]){SIDE, SIDE}, (int64_t[]){1, SIDE});
}
static inline const tr_meta *half_of(tr_dtype t) {
    return images ? shape(t, 4, 1, 4, 2, 4) : shape(t, 2, SIDE / 2, SIDE);
}
static inline const tr_meta *row_of(tr_dtype t) {
    return shape(t, 1, images ? 4 : SIDE);
}

static inline void adopt(author *a, tr_ref ref, tr_dtype dtype, bool square) {
    if (a->n_live == MAX_HANDLES) {
        handle *h = &a->live[roll(&a->d, MAX_HANDLES)];
        if (tr_ref_is_value(h->ref))
            kill(a->b, h->ref);
        *h = a->live[--a->n_live];
    }
    a->live[a->n_live++] = (handle){ref, dtype, square, roll(&a->d, 6) == 0, false};
}

static inline handle *pick(author *a, bool square, bool any_dtype) {
    for (int tries = 0; tries < 100; tries++) {
        uint32_t n = a->n_live < 12 || roll(&a->d, 3) == 0 ? a->n_live : 12; // mostly what is young
        handle *h = &a->live[a->n_live - 1 - roll(&a->d, n)];
        if (h->read && tries < 3)
            continue; // mostly what nobody has read yet
        if (h->square == square && (any_dtype || h->dtype == TR_F32))
            return h;
    }
    return NULL;
}

/* How an operand looks: whole, transposed, or half of it (for halves, at a run-time offset). */
static inline tr_path_operand look(author *a, handle *h, int64_t *offset, bool half) {
    *offset = 0;
    h->read = true;
    if (!h->square)
        return on(h->ref, row_of(h->dtype));
    if (half) {
        *offset = roll(&a->d, 2) ? SIDE * SIDE / 2 : 0;
        return on(h->ref, half_of(h->dtype));
    }
    return on(h->ref, roll(&a->d, images ? 25 : 5) ? square_of(h->dtype) : transposed(h->dtype));
}

/* A number operand's bits: 0.25, 0.5 or 0.75. */
static inline int64_t quarters(dice *d) {
    tr_number n = {.d = 0.25 + 0.25 * roll(d, 3)};
    return n.i;
}

/* One of: a parameter's cast to bfloat16; something that reads it; its gradient, cast back, and the update. */
static inline void autocast_op(author *a) {
    builder *b = a->b;
    const tr_meta *wide = square_of(TR_F32), *narrow = square_of(TR_BF16);
    if (a->cast == TR_REF_NONE) {
        a->parameter = external(b);
        add_op(b, TR_OP__cast, TR_BF16, 1, (tr_path_operand[]){on(a->parameter, wide)}, 1, &narrow, false);
        a->cast = b->path.n_values - 1;
        return;
    }
    tr_path_operand cast = on(a->cast, roll(&a->d, 5) ? narrow : transposed(TR_BF16));
    tr_ref made = product(b, cast, on(a->cast, narrow), narrow);
    add_op(b, TR_OP__cast, TR_F32, 1, (tr_path_operand[]){on(made, narrow)}, 1, &wide, false);
    tr_ref grad = b->path.n_values - 1;
    if (roll(&a->d, 6))
        kill(b, made);
    if (roll(&a->d, 3) == 0) {
        adopt(a, grad, TR_F32, true);
        return;
    }
    if (roll(&a->d, 5) == 0)
        unary_(b, TR_OP_neg, grad, wide);
    if (roll(&a->d, 6))
        kill(b, a->cast);
    if (roll(&a->d, 8) == 0)
        unary(b, TR_OP_exp, a->parameter, wide);
    tr_path_operand update[] = {on(a->parameter, wide), on(grad, wide), on(external(b), wide), on(external(b), wide), absent(),
                                number(), number(), number(), number(), number(), number()};
    for (uint32_t j = 5; j < 11; j++) {
        tr_number n = {.d = 0.25};
        b->path.args[b->path.n_operands + j] = n.i;
    }
    add_op(b, TR_OP__adam_, TR_F32, 11, update, 0, NULL, false);
    if (roll(&a->d, 3))
        kill(b, grad);
    if (roll(&a->d, 8) == 0)
        unary(b, TR_OP_exp, grad, wide);
    a->cast = TR_REF_NONE;
}

static inline void random_op(author *a) {
    builder *b = a->b;
    dice *d = &a->d;
    static const tr_op ones[] = {TR_OP_neg, TR_OP_exp, TR_OP_relu, TR_OP_tanh, TR_OP_clone, TR_OP__contiguous};
    static const tr_op twos[] = {TR_OP_add, TR_OP_sub, TR_OP_mul, TR_OP_maximum};
    uint32_t kind = roll(d, images ? 100 : 110);
    if (kind >= 100) {
        autocast_op(a);
        return;
    }
    bool half = roll(d, 6) == 0;
    handle *x = pick(a, true, kind >= 90 && kind < 93), *y = pick(a, !half && roll(d, 4) == 0 ? false : true, false);
    if (!x || !y)
        kind = 95;
    tr_path_operand in[8] = {0};
    int64_t off[8] = {0};
    tr_dtype t = TR_F32;
    const tr_meta *m = half ? half_of(t) : square_of(t);
    uint32_t op = b->path.n_ops, n_values = b->path.n_values;
    if (kind < 25) {
        in[0] = look(a, x, &off[0], half);
        add_op(b, ones[roll(d, 6)], t, 1, in, 1, &m, false);
    } else if (kind < 50) {
        in[0] = look(a, x, &off[0], half);
        in[1] = roll(d, 8) == 0 ? number() : look(a, y, &off[1], half);
        in[2] = number();
        tr_op which = twos[roll(d, 4)];
        add_op(b, which, t, which == TR_OP_add || which == TR_OP_sub ? 3 : 2, in, 1, &m, false);
    } else if (kind < 58) {
        in[0] = look(a, x, &off[0], half);
        b->path.args[b->path.n_operands] = off[0];
        add_op(b, ones[roll(d, 4)], t, 1, in, 1, NULL, true);
    } else if (kind < 66) {
        in[0] = look(a, x, &off[0], half);
        in[1] = look(a, y, &off[1], half);
        b->path.args[b->path.n_operands] = off[0];
        add_op(b, twos[2 + roll(d, 2)], t, 2, in, 1, NULL, true);
    } else if (kind < 70) {
        in[0] = look(a, x, &off[0], half);
        in[1] = look(a, y, &off[1], half);
        add_op(b, TR_OP_copy_, t, 2, in, 0, NULL, false);
    } else if (kind < 72) {
        in[0] = look(a, x, &off[0], half);
        in[1] = number();
        add_op(b, TR_OP_fill_, t, 2, in, 0, NULL, false);
    } else if (kind < 75) {
        in[0] = look(a, x, &off[0], half);
        in[1] = look(a, y, &off[1], half);
        const tr_meta *mask = tr_meta_with_dtype(m, TR_BOOL);
        add_op(b, TR_OP_gt, t, 2, in, 1, &mask, false);
    } else if (kind < 80) {
        in[0] = look(a, x, &off[0], false);
        const tr_meta *row = row_of(t);
        add_op(b, TR_OP_sum, t, 1, in, 1, &row, false);
    } else if (kind < 86) {
        in[0] = look(a, x, &off[0], false);
        in[1] = images ? on(a->weights, shape(t, 4, 4, 4, 1, 1)) : on(x->ref, square_of(t));
        in[2] = absent();
        if (images && roll(d, 2))
            add_op(b, TR_OP_conv2d, t, 3, in, 1, (const tr_meta *[]){square_of(t)}, false);
        else if (images)
            add_op(b, TR_OP_conv2d_backward_data, t, 2, in, 1, (const tr_meta *[]){square_of(t)}, false);
        else
            add_op(b, TR_OP_mm, t, 2, in, 1, (const tr_meta *[]){square_of(t)}, false);
    } else if (kind < 88 && images) {
        in[0] = look(a, x, &off[0], false);
        in[1] = in[2] = in[3] = in[4] = absent();
        in[5] = in[6] = number();
        const tr_meta *channel = shape(t, 1, 4);
        add_op(b, TR_OP_batch_norm, t, 7, in, 3, (const tr_meta *[]){square_of(t), channel, channel}, false);
        b->path.attrs[b->path.ops[op].attr] = 1;
    } else if (kind < 88) {
        in[0] = look(a, x, &off[0], half);
        in[1] = in[2] = number();
        in[3] = on(a->generator, shape(TR_U8, 1, 2520));
        add_op(b, TR_OP_uniform_, t, 4, in, 1, NULL, true);
    } else if (kind < 90) {
        in[0] = look(a, x, &off[0], false);
        in[1] = number();
        in[2] = on(a->generator, shape(TR_U8, 1, 2520));
        add_op(b, TR_OP__dropout, t, 3, in, 2, (const tr_meta *[]){square_of(t), square_of(TR_BOOL)}, false);
    } else if (kind < 93) {
        in[0] = look(a, x, &off[0], half);
        t = roll(d, 2) ? TR_BF16 : TR_F32;
        m = tr_meta_with_dtype(m, t);
        add_op(b, TR_OP__cast, t, 1, in, 1, &m, false);
    } else if (kind < 96) {
        in[0] = number();
        m = square_of(t);
        add_op(b, TR_OP__full, t, 1, in, 1, &m, false);
    } else {
        // An optimizer's loop over some externals.
        tr_ref weights[3], state[3][2];
        uint32_t n = 1 + roll(d, 3);
        for (uint32_t i = 0; i < n; i++) {
            weights[i] = external(b);
            state[i][0] = external(b);
            state[i][1] = external(b);
        }
        for (uint32_t i = 0; i < n; i++) {
            const tr_meta *s = square_of(t);
            tr_path_operand update[] = {on(weights[i], s), on(x->ref, s), on(state[i][0], s), on(state[i][1], s), absent(),
                                        number(),          number(),      number(),           number(),           number(),
                                        number()};
            for (uint32_t j = 5; j < 11; j++)
                b->path.args[b->path.n_operands + j] = quarters(d);
            add_op(b, TR_OP__adam_, t, 11, update, 0, NULL, false);
        }
        return;
    }
    for (int i = 0; i < b->path.ops[op].n_in; i++) {
        bool is_number = in[i].meta && in[i].ref == TR_REF_NONE;
        b->path.args[b->path.ops[op].operand + (uint32_t) i] = is_number ? quarters(d) : off[i];
    }
    uint32_t which = b->path.ops[op].op;
    if (which == TR_OP_conv2d || which == TR_OP_conv2d_backward_data) {
        static const int64_t plain[] = {1, 1, 0, 0, 1, 1, 1, 2, 4};
        memcpy(b->path.attrs + b->path.ops[op].attr, plain, b->path.ops[op].n_attrs * sizeof *plain);
    }
    if (which == TR_OP_sum) { // over all dimensions but the last, no dtype
        b->path.attrs[b->path.ops[op].attr] = images ? 7 : 1;
        b->path.attrs[b->path.ops[op].attr + 2] = -1;
    }
    if (b->path.ops[op].in_place)
        b->path.args[b->path.ops[op].operand + b->path.ops[op].n_in] = off[0];
    for (tr_ref v = n_values; v < b->path.n_values; v++) {
        const tr_meta *made = b->path.operands[b->path.ops[op].operand + b->path.ops[op].n_in + v - n_values].meta;
        b->path.fetched[v] = roll(d, 40) == 0;
        if (made == square_of((tr_dtype) made->dtype) && roll(d, 10))
            adopt(a, v, (tr_dtype) made->dtype, true);
        else if (made == row_of(TR_F32))
            adopt(a, v, (tr_dtype) made->dtype, false);
        else
            kill(b, v);
    }
}

static inline void random_deaths(author *a, uint32_t keep) {
    while (a->n_live > keep && roll(&a->d, 4)) {
        uint32_t i = roll(&a->d, a->n_live);
        handle *h = &a->live[i];
        if (!tr_ref_is_value(h->ref) || (h->long_lived && roll(&a->d, 8)) || (!h->read && roll(&a->d, 6)))
            continue;
        kill(a->b, h->ref);
        memmove(h, h + 1, (a->n_live - i - 1) * sizeof *h);
        a->n_live--;
    }
}

static inline void random_path(builder *b, uint64_t seed, uint32_t n_ops) {
    builder_init(b);
    author a = {.b = b, .d = {seed * 2654435761u + 88172645463325252u}};
    a.generator = external(b);
    a.cast = TR_REF_NONE;
    for (int i = 0; i < 4; i++)
        adopt(&a, external(b), TR_F32, true);
    adopt(&a, external(b), TR_F32, false);
    a.weights = external(b);
    uint32_t keep = 6 + roll(&a.d, 12);
    while (b->path.n_ops < n_ops) {
        random_op(&a);
        random_deaths(&a, keep);
    }
    for (uint32_t i = 0; i < a.n_live; i++)
        if (tr_ref_is_value(a.live[i].ref) && roll(&a.d, 2))
            kill(b, a.live[i].ref);
}

#endif
