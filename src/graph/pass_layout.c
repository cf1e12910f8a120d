/* pass_layout.c - images in the order that convolutions like.
 *
 * The program sees [N, C, H, W] row-major. A convolution of the library wants the channels innermost, and would bring every
 * operand there and every result back. Values that live inside the iteration are kept with channels last instead, and since
 * that is a matter of strides, every kernel still reads and writes them correctly; who reads them otherwise (a fetch
 * that nobody foresaw, a survivor of a side exit) gets a copy in the program's order from the executor.
 *
 * Elementwise ops, pooling and normalisation work in whatever order all their operands share, so the choice is made for whole
 * components of values that hang together through them: bytes that convolutions need not reorder against bytes that others
 * must. */
#include "graph/pass.h"

#include "terra/alloc.h"
#include "terra/options.h"

#include <string.h>

#ifdef TR_DEBUG
enum { CHANNELS = 2 };
#else
enum { CHANNELS = 16 }; /* fewer: vectors of the library's kernels stay empty */
#endif

typedef struct chooser {
    const tr__graph *g;
    const tr_path *p;
    const tr_meta **look; /* per value: as born, where it may lie otherwise; NULL */
    uint32_t *parent;     /* components */
    int64_t *gain;        /* of a component's root, in bytes */
} chooser;

static uint32_t root_of(chooser *c, uint32_t v) {
    while (c->parent[v] != v)
        v = c->parent[v] = c->parent[c->parent[v]];
    return v;
}

static void unite(chooser *c, uint32_t a, uint32_t b) {
    a = root_of(c, a);
    b = root_of(c, b);
    if (a == b)
        return;
    c->parent[b] = a;
    c->gain[a] += c->gain[b];
}

static const tr_meta *born_look(const chooser *c, uint32_t v) {
    const tr_path_op *op = &c->p->ops[c->g->birth[v]];
    for (uint32_t i = op->n_in; i < tr__operand_count(op); i++)
        if (tr__operands(c->p, op)[i].ref == v)
            return tr__operands(c->p, op)[i].meta;
    return NULL;
}

/* An image that lives inside the iteration and that all see alike. */
static const tr_meta *movable(const chooser *c, uint32_t v) {
    const tr_path *p = c->p;
    if (c->g->birth[v] == TR__NIL || p->death[v] == TR_DEATH_NEVER || p->fetched[v] || (c->g->copy_of && c->g->copy_of[v]))
        return NULL;
    const tr_meta *m = born_look(c, v);
    bool fits = m->dtype == TR_F32 || m->dtype == TR_BF16 || m->dtype == TR_I64; // integers: what a maximum's pool keeps
    if (m->ndim != 4 || !m->contiguous || !fits || m->shape[1] < CHANNELS || m->shape[1] % CHANNELS ||
        m->shape[2] * m->shape[3] < 2 || m->numel == 0 || !tr__is_whole(p, v, m))
        return NULL;
    for (uint32_t t = c->g->touch.at[v]; t < c->g->touch.at[v + 1]; t++) {
        const tr_path_op *op = &p->ops[c->g->touch.item[t]];
        for (uint32_t i = 0; i < tr__operand_count(op); i++)
            if (tr__operands(p, op)[i].ref == v && tr__operands(p, op)[i].meta != m)
                return NULL;
    }
    return m;
}

/* Does operand i of a convolution lie as the library likes it? Weights, biases and their gradients don't count. */
static bool is_image_of_convolution(const tr_path_op *op, uint32_t i) {
    switch (op->op) {
        case TR_OP_conv2d:
        case TR_OP_conv2d_backward_data:
            return i == 0 || i == op->n_in;
        case TR_OP_conv2d_backward_weights:
            return i < 2;
        default:
            return false;
    }
}

static bool is_agnostic(const tr_path_op *op) {
    tr_op_class class = tr_op_info_of((tr_op) op->op)->op_class;
    return op->op == TR_OP_batch_norm || op->op == TR_OP_batch_norm_backward || op->op == TR_OP__full || class == TR_CLASS_EW ||
           class == TR_CLASS_POOL;
}

/* All images of an op that works in any order must share it; one that can't move counts against the rest. */
static void weigh_agnostic(chooser *c, const tr_path_op *op) {
    uint32_t first = TR__NIL;
    int64_t stuck = 0;
    for (uint32_t i = 0; i < tr__operand_count(op); i++) {
        const tr_path_operand *o = &tr__operands(c->p, op)[i];
        if (o->ref == TR_REF_NONE || o->meta->ndim != 4 || o->meta->shape[2] * o->meta->shape[3] < 2 ||
            o->meta->extent < o->meta->numel) // no image, or broadcast
            continue;
        int64_t bytes = o->meta->numel * (int64_t) tr_dtype_size((tr_dtype) o->meta->dtype);
        if (!tr_ref_is_value(o->ref) || !c->look[o->ref])
            stuck += bytes;
        else if (first == TR__NIL)
            first = o->ref;
        else
            unite(c, first, o->ref);
    }
    if (first != TR__NIL)
        c->gain[root_of(c, first)] -= stuck;
}

static void weigh(chooser *c, const tr_path_op *op) {
    if (is_agnostic(op)) {
        weigh_agnostic(c, op);
        return;
    }
    for (uint32_t i = 0; i < tr__operand_count(op); i++) {
        tr_ref v = tr__operands(c->p, op)[i].ref;
        if (tr_ref_is_value(v) && c->look[v])
            c->gain[root_of(c, v)] += (is_image_of_convolution(op, i) ? 1 : -1) * (int64_t) c->p->value_bytes[v];
    }
}

/* The look with channels last: one object per look that it replaces. */
static const tr_meta *channels_last(tr__relaid *r, const tr_meta *m) {
    for (uint32_t i = 0; i < r->n_metas; i++)
        if (r->from[i] == m)
            return &r->metas[i];
    tr_meta *n = &r->metas[r->n_metas];
    r->from[r->n_metas++] = m;
    *n = *m;
    n->next = NULL;
    n->contiguous = false;
    n->hash = ~m->hash;
    n->strides[1] = 1;
    n->strides[3] = m->shape[1];
    n->strides[2] = m->shape[1] * m->shape[3];
    n->strides[0] = m->shape[1] * m->shape[3] * m->shape[2];
    return n;
}

static uint32_t count_looks(const chooser *c, const bool *moves) {
    uint32_t n = 0;
    for (uint32_t v = 0; v < c->p->n_values; v++)
        n += moves[v];
    return n;
}

/* The path's operands, seen as they lie. */
static tr_status relay(tr__graph *g, const chooser *c, const bool *moves) {
    const tr_path *p = c->p;
    tr__relaid *r = &g->relaid;
    uint32_t n = count_looks(c, moves);
    if (n == 0)
        return TR_OK;
    r->looks = tr_malloc(p->n_operands * sizeof *r->looks);
    r->value = tr_calloc(p->n_values, sizeof *r->value);
    r->metas = tr_calloc(n, sizeof *r->metas);
    r->from = tr__pool_take(&g->pool, n, sizeof *r->from);
    if (!r->looks || !r->value || !r->metas || !r->from)
        return TR_FAIL(TR_E_NOMEM, "no memory for the looks of %u values", n);
    memcpy(r->looks, p->operands, p->n_operands * sizeof *r->looks);
    for (uint32_t k = 0; k < p->n_ops; k++)
        for (uint32_t i = 0; i < tr__operand_count(&p->ops[k]); i++) {
            tr_path_operand *o = &r->looks[p->ops[k].operand + i];
            if (!tr_ref_is_value(o->ref) || !moves[o->ref])
                continue;
            o->meta = channels_last(r, o->meta);
            if (tr__operand_born(&p->ops[k], i))
                r->value[o->ref] = p->ops[k].operand + i + 1;
        }
    g->shadow = *p;
    g->shadow.operands = r->looks;
    g->path = &g->shadow;
    return TR_OK;
}

tr_status tr__pass_layout(tr__graph *g) {
    const tr_path *p = g->path;
    if (!tr_options_get()->layouts)
        return TR_OK;
    chooser c = {.g = g, .p = p};
    c.look = tr__pool_take(&g->pool, p->n_values, sizeof *c.look);
    c.parent = tr__pool_take(&g->pool, p->n_values, sizeof *c.parent);
    c.gain = tr__pool_take(&g->pool, p->n_values, sizeof *c.gain);
    bool *moves = tr__pool_take(&g->pool, p->n_values, sizeof *moves);
    if (g->pool.failed)
        return TR_FAIL(TR_E_NOMEM, "no memory to lay out %u values", p->n_values);
    bool any = false;
    for (uint32_t v = 0; v < p->n_values; v++) {
        c.parent[v] = v;
        c.look[v] = movable(&c, v);
        any |= c.look[v] != NULL;
    }
    if (!any)
        return TR_OK;
    for (uint32_t k = 0; k < p->n_ops; k++)
        weigh(&c, &p->ops[k]);
    for (uint32_t v = 0; v < p->n_values; v++)
        moves[v] = c.look[v] && c.gain[root_of(&c, v)] > 0;
    return relay(g, &c, moves);
}
