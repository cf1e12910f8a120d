/* pass_home.c - parameters stay in the library's layout.
 *
 * A convolution of the library likes its weights blocked, and would reorder them every time. If all that an iteration does
 * with them is convolve and update, they are kept so, from iteration to iteration (terra/dnn.h: homes). What is updated with
 * them must lie alike: their gradients and the optimizer's state join them. A component of storages that hang together through
 * elementwise ops and optimizers has one home or none; an op that must know where its elements lie, a fetch, another look
 * rules it out. Who looks from outside the plan gets the program's order from the executor. */
#include "graph/pass.h"

#include "terra/alloc.h"
#include "terra/exec.h"
#include "terra/options.h"

#include <string.h>

typedef struct component {
    tr__graph *g;
    const tr_meta *meta; /* all members look so */
    uint32_t *member;    /* refs, in the order of discovery */
    uint32_t n;
    uint32_t *in; /* per ref: 1 + the component that it is in */
    uint32_t id;
} component;

static bool join(component *c, const tr_path_operand *o) {
    const tr_path *p = c->g->path;
    if (o->ref == TR_REF_NONE)
        return true;
    if (o->meta != c->meta)
        return o->meta->numel == 1 && o->meta->ndim == 0; // the same for all elements
    uint32_t r = tr__ref_index(p, o->ref);
    if (c->in[r] == c->id)
        return true;
    if (c->in[r] || tr_home_has_copy(c->g->homes[r]) ||
        (tr_ref_is_value(o->ref) && (p->fetched[o->ref] || !tr__is_whole(p, o->ref, o->meta))))
        return false;
    c->in[r] = c->id;
    c->member[c->n++] = r;
    return true;
}

static bool is_member(const component *c, const tr_path_operand *o) {
    return o->ref != TR_REF_NONE && c->in[tr__ref_index(c->g->path, o->ref)] == c->id;
}

/* May this op touch members? Takes in what must lie alike. */
static bool admit(component *c, uint32_t k) {
    const tr_path_op *op = &c->g->path->ops[k];
    const tr_path_operand *o = tr__operands(c->g->path, op);
    int weights = -1;
    switch (op->op) {
        case TR_OP_conv2d:
        case TR_OP_conv2d_backward_data:
            weights = 1;
            break;
        case TR_OP_conv2d_backward_weights:
            weights = op->n_in;
            break;
        default:
            break;
    }
    if (weights >= 0) {
        for (uint32_t i = 0; i < tr__operand_count(op); i++)
            if (is_member(c, &o[i]) && (int) i != weights)
                return false;
        return o[weights].meta == c->meta;
    }
    tr_op_class class = tr_op_info_of((tr_op) op->op)->op_class;
    if (class != TR_CLASS_OPTIM && class != TR_CLASS_EW)
        return false;
    for (uint32_t i = 0; i < tr__operand_count(op); i++)
        if (!join(c, &o[i]))
            return false;
    return true;
}

static bool grow(component *c) {
    const tr__lists *touch = &c->g->touch;
    for (uint32_t m = 0; m < c->n; m++)
        for (uint32_t t = touch->at[c->member[m]]; t < touch->at[c->member[m] + 1]; t++)
            if (!admit(c, touch->item[t]))
                return false;
    return true;
}

static void look_at(const tr_path *p, uint32_t k, const tr_meta *looks[3], bool *bias) {
    const tr_path_op *op = &p->ops[k];
    const tr_path_operand *o = tr__operands(p, op);
    uint32_t out = op->n_in;
    *bias = op->op == TR_OP_conv2d && o[2].meta;
    looks[0] = o[op->op == TR_OP_conv2d ? 0 : op->op == TR_OP_conv2d_backward_data ? out : 1].meta;
    looks[1] = o[op->op == TR_OP_conv2d_backward_weights ? out : 1].meta;
    looks[2] = o[op->op == TR_OP_conv2d ? out : 0].meta;
}

static bool is_convolution(const tr_path_op *op) {
    return op->op == TR_OP_conv2d || op->op == TR_OP_conv2d_backward_data || op->op == TR_OP_conv2d_backward_weights;
}

/* Can the library do all of the component's convolutions so? Also has them compiled here instead of by the executor. */
static bool warm(const component *c, const tr_home *home) {
    const tr_path *p = c->g->path;
    for (uint32_t m = 0; m < c->n; m++)
        for (uint32_t t = c->g->touch.at[c->member[m]]; t < c->g->touch.at[c->member[m] + 1]; t++) {
            uint32_t k = c->g->touch.item[t];
            const tr_meta *looks[3];
            bool bias;
            if (!is_convolution(&p->ops[k]))
                continue;
            look_at(p, k, looks, &bias);
            if (tr_dnn_conv_warm((tr_op) p->ops[k].op, p->attrs + p->ops[k].attr, looks, bias, home, tr_exec_team()) != TR_OK)
                return false;
        }
    return true;
}

/* A home for the weights of convolution k, and for what goes with them. */
static void settle(tr__graph *g, component *c, uint32_t k) {
    const tr_path *p = g->path;
    const tr_path_operand *weights = &tr__operands(p, &p->ops[k])[1];
    const tr_meta *looks[3];
    const tr_home *home;
    bool bias;
    look_at(p, k, looks, &bias);
    c->meta = weights->meta;
    c->n = 0;
    c->id++;
    bool good = weights->meta->contiguous && weights->meta->dtype == TR_F32 && join(c, weights) && grow(c) &&
                tr_home_of_weights(p->attrs + p->ops[k].attr, looks[0], looks[1], looks[2], bias, tr_exec_team(), &home) == TR_OK &&
                warm(c, home);
    for (uint32_t m = 0; m < c->n; m++)
        if (good)
            g->homes[c->member[m]] = home;
        else
            c->in[c->member[m]] = 0;
    if (!good && tr_ref_is_external(weights->ref)) // not again for its other convolutions
        c->in[tr__ref_index(p, weights->ref)] = TR__NIL;
}

tr_status tr__open_homes(tr__graph *g) {
    if (!g->homes && !(g->homes = tr_calloc(g->n_refs, sizeof *g->homes)))
        return TR_FAIL(TR_E_NOMEM, "no memory to find homes for %u storages", g->n_refs);
    return TR_OK;
}

tr_status tr__pass_home(tr__graph *g) {
    const tr_path *p = g->path;
    if (!tr_options_get()->layouts)
        return TR_OK;
    component c = {.g = g};
    for (uint32_t k = 0; k < p->n_ops; k++) {
        const tr_path_op *op = &p->ops[k];
        if (op->op != TR_OP_conv2d || !tr_ref_is_external(tr__operands(p, op)[1].ref))
            continue;
        if (!c.in) {
            c.in = tr__pool_take(&g->pool, g->n_refs, sizeof *c.in);
            c.member = tr__pool_take(&g->pool, g->n_refs, sizeof *c.member);
            if (g->pool.failed)
                return TR_FAIL(TR_E_NOMEM, "no memory to find homes for %u storages", g->n_refs);
            TR_TRY(tr__open_homes(g));
        }
        if (!c.in[tr__ref_index(p, tr__operands(p, op)[1].ref)])
            settle(g, &c, k);
    }
    return TR_OK;
}
