/* tape.c - nodes, edges, saved values, hooks, in-place rebasing. The reverse pass is in backward.c. */
#include "tracer/tape.h"

#include "tracer/dispatch.h"

#include "terra/alloc.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

static bool grad_mode = true;
static uint64_t next_sequence = 1, next_hook = 1;

bool tr_grad_enabled(void) {
    return grad_mode;
}

bool tr_set_grad_enabled(bool on) {
    bool was = grad_mode;
    grad_mode = on;
    return was;
}

/* ------------------------------------------------------------------------------------------------ nodes */

/* Blocks of dead nodes, by size: a step makes and frees hundreds. */
enum { CLASS_BYTES = 64, CLASSES = 24, NO_CLASS = CLASSES };
static tr_node *unused[CLASSES]; /* linked by `extra` */

static tr_node *block_take(size_t bytes) {
    size_t c = (bytes + CLASS_BYTES - 1) / CLASS_BYTES;
    tr_node *node = c < CLASSES ? unused[c] : NULL;
    if (node && !tr_fail_alloc())
        unused[c] = (tr_node *) (void *) node->extra;
    else if (!(node = tr_malloc(c < CLASSES ? c * CLASS_BYTES : bytes)))
        return NULL;
    node->size_class = (uint16_t) (c < CLASSES ? c : NO_CLASS);
    return node;
}

static void block_give(tr_node *node) {
    if (node->size_class == NO_CLASS) {
        tr_free(node);
        return;
    }
    node->extra = (tr_node_extra *) (void *) unused[node->size_class];
    unused[node->size_class] = node;
}

/* An op's edges and metas, `saved` and `attrs` are the caller's to fill in; another node's edges and metas are zero. */
static tr_node *node_create(tr_node_kind kind, int n_in, int n_saved, int n_attrs) {
    size_t n = (size_t) n_in, operands = n * (sizeof(tr_edge) + sizeof(tr_meta *));
    bool has_extra = kind == TR_NODE_CUSTOM || kind == TR_NODE_COPY_SLICES;
    tr_node *node = block_take(sizeof(tr_node) + operands + (size_t) n_saved * sizeof(tr_saved) + (size_t) n_attrs * 8 +
                               (has_extra ? sizeof(tr_node_extra) : 0) + 4 * 16);
    if (!node) {
        TR_FAIL(TR_E_NOMEM, "no memory for the autograd tape");
        return NULL;
    }
    uint16_t size_class = node->size_class;
    tr_clear_words(node, TR_WORDS(tr_node));
    node->refs = 1;
    node->kind = (uint8_t) kind;
    node->n_in = (uint16_t) n_in;
    node->n_out = 1;
    node->n_attrs = (uint8_t) n_attrs;
    node->size_class = size_class;
    node->sequence = next_sequence++;
    char *at = (char *) node;
    tr_carve(&at, sizeof *node);
    char *parts = tr_carve(&at, operands);
    if (kind != TR_NODE_OP)
        tr_clear_words(parts, operands / 8);
    node->edges = (tr_edge *) (void *) parts;
    node->in_meta = (const tr_meta **) (void *) (node->edges + n);
    node->saved = tr_carve(&at, (size_t) n_saved * sizeof(tr_saved));
    node->attrs = tr_carve(&at, (size_t) n_attrs * 8);
    if (has_extra) {
        node->extra = tr_carve(&at, sizeof *node->extra);
        *node->extra = (tr_node_extra){0};
    }
    return node;
}

static void saved_clear(tr_saved *s) {
    if (s->storage)
        tr__storage_release(s->storage);
    if (s->leaf)
        tr_tensor_release(s->leaf);
    *s = (tr_saved){0};
}

static void hooks_free(tr_hook *h) {
    while (h) {
        tr_hook *next = h->next;
        if (h->drop)
            h->drop(h->arg);
        tr_free(h);
        h = next;
    }
}

void tr__node_clear_saved(tr_node *node) {
    int n = tr__count_bits(node->saved_in) + tr__count_bits(node->saved_out);
    for (int i = 0; i < n; i++)
        saved_clear(&node->saved[i]);
    if (node->extra && node->extra->inner)
        tr__node_clear_saved(node->extra->inner);
    if (node->kind == TR_NODE_OP)
        node->released = true;
}

void tr_node_retain(tr_node *n) {
    n->refs++;
}

/* A long chain of nodes is let go of in a loop, not by recursion: a deep tape must not overflow the stack. */
static tr_node *dying;
static bool reaping;

static void node_free(tr_node *node) {
    if (!node->released)
        tr__node_clear_saved(node);
    for (int i = 0; i < node->n_in; i++)
        if (node->edges[i].node)
            tr_node_release(node->edges[i].node);
    hooks_free(node->hooks);
    tr_node_extra *x = node->extra;
    if (x) {
        if (x->custom.drop)
            x->custom.drop(x->custom.arg);
        if (x->inner)
            tr_node_release(x->inner);
    }
    block_give(node);
}

void tr_node_release(tr_node *node) {
    if (!node || --node->refs > 0)
        return;
    // `sequence` is of no more use: the list of the dying goes through it.
    node->sequence = (uint64_t) (uintptr_t) dying;
    dying = node;
    if (reaping)
        return;
    reaping = true;
    while (dying) {
        tr_node *n = dying;
        dying = (tr_node *) (uintptr_t) n->sequence;
        node_free(n);
    }
    reaping = false;
}

const char *tr_node_name(const tr_node *node) {
    static char text[64];
    if (node->kind == TR_NODE_ACCUMULATE)
        return "AccumulateGrad";
    if (node->kind == TR_NODE_CUSTOM)
        return node->extra->custom.name;
    if (node->kind == TR_NODE_COPY_SLICES)
        return "CopySlices";
    const char *name = tr_op_info_of(node->op)->name;
    size_t at = 0;
    bool upper = true;
    for (; *name && at < sizeof text - 12; name++) {
        if (*name == '_') {
            upper = true;
            continue;
        }
        text[at++] = upper ? (char) toupper((unsigned char) *name) : *name;
        upper = false;
    }
    snprintf(text + at, sizeof text - at, "Backward0");
    return text;
}

int tr_node_n_next(const tr_node *n) {
    return n->n_in;
}

tr_node *tr_node_next(const tr_node *n, int i, int *output_nr) {
    *output_nr = (int) n->edges[i].nr;
    return n->edges[i].node;
}

tr_tensor *tr_node_variable(const tr_node *n) {
    return n->kind == TR_NODE_ACCUMULATE ? n->leaf : NULL;
}

void *tr_node_custom_arg(const tr_node *n) {
    return n->kind == TR_NODE_CUSTOM ? n->extra->custom.arg : NULL;
}

/* ------------------------------------------------------------------------------------------------ edges */

/* A leaf keeps its accumulator from its first use on. */
static tr_status accumulator_of(tr_tensor *leaf, tr_node **out) {
    tr_node *node = leaf->accumulator;
    if (!node) {
        node = node_create(TR_NODE_ACCUMULATE, 0, 0, 0);
        if (!node)
            return TR_E_NOMEM;
        node->leaf = leaf;
        leaf->accumulator = node;
    }
    tr_node_retain(node);
    *out = node;
    return TR_OK;
}

/* Like tr__tape_edge, the node a new reference. */
static tr_status edge_new(tr_tensor *t, tr_edge *edge);

/* A view whose base was written since: its grad_fn is made anew, from the base's present one. */
static tr_status regenerate_view(tr_tensor *t) {
    if (!t->base || !t->base->requires_grad || t->view_version == t->storage->version)
        return TR_OK;
    tr_node *node = node_create(TR_NODE_OP, 1, 0, 3 + 2 * TR_MAX_DIMS);
    if (!node)
        return TR_E_NOMEM;
    node->edges[0].node = NULL;
    tr_status status = edge_new(t->base, &node->edges[0]);
    if (status != TR_OK) {
        tr_node_release(node);
        return status;
    }
    node->op = TR_OP_as_strided;
    node->in_meta[0] = t->base->meta;
    int64_t *a = node->attrs;
    a[0] = a[1 + TR_MAX_DIMS] = t->meta->ndim;
    memcpy(a + 1, t->meta->shape, sizeof t->meta->shape);
    memcpy(a + 2 + TR_MAX_DIMS, t->meta->strides, sizeof t->meta->strides);
    a[2 + 2 * TR_MAX_DIMS] = t->offset - t->base->offset;
    tr_node_release(t->grad_fn);
    t->grad_fn = node;
    t->output_nr = 0;
    t->requires_grad = true;
    t->view_version = t->storage->version;
    return TR_OK;
}

static tr_status edge_new(tr_tensor *t, tr_edge *edge) {
    TR_TRY(regenerate_view(t));
    *edge = (tr_edge){0};
    if (t->grad_fn) {
        tr_node_retain(t->grad_fn);
        *edge = (tr_edge){.node = t->grad_fn, .nr = t->output_nr};
    } else if (t->requires_grad)
        return accumulator_of(t, &edge->node);
    return TR_OK;
}

tr_status tr__tape_edge(tr_tensor *t, tr_edge *edge) {
    return edge_new(t, edge);
}

/* ------------------------------------------------------------------------------------------------ recording */

static bool needs_grad(tr_tensor *t) {
    if (!t)
        return false;
    if (t->base && t->base->requires_grad && t->view_version != t->storage->version && regenerate_view(t) != TR_OK)
        return false;
    return t->requires_grad;
}

bool tr__tape_wanted(tr_op op, const tr_input *in, int n_in) {
    if (!grad_mode || !tr__vjp_rules[op])
        return false;
    for (int i = 0; i < n_in; i++)
        if (needs_grad(in[i].tensor))
            return true;
    return false;
}

tr_status tr__tape_check_inplace(const tr_tensor *t, bool wanted) {
    if (!grad_mode || !(wanted || t->requires_grad))
        return TR_OK;
    if (t->requires_grad && !t->grad_fn)
        return TR_FAIL(TR_E_RUNTIME, "a leaf Variable that requires grad is being used in an in-place operation.");
    if (t->base && t->base->requires_grad && !t->base->grad_fn)
        return TR_FAIL(TR_E_RUNTIME, "a view of a leaf Variable that requires grad is being used in an in-place operation.");
    return TR_OK;
}

static void save(tr_saved *s, tr_tensor *t) {
    s->storage = t->storage;
    s->storage->refs++;
    s->meta = t->meta;
    s->offset = t->offset;
    s->version = t->storage->version;
    s->leaf = t->requires_grad && !t->grad_fn ? t : NULL;
    if (s->leaf)
        tr_tensor_retain(t);
}

static bool is_saved(const tr_vjp_rule *rule, const tr_node *node, int i) {
    if (!(rule->save_in >> i & 1))
        return false;
    if (!rule->cross)
        return true;
    for (int j = 0; j < node->n_in; j++)
        if (j != i && node->edges[j].node)
            return true;
    return false;
}

static tr_status make_node(tr_op op, const tr_input *in, int n_in, const int64_t *attrs, tr_tensor *const *out, int n_out,
                           tr_tensor *written, tr_node **result) {
    const tr_vjp_rule *rule = tr__vjp_rules[op];
    const tr_op_info *info = tr_op_info_of(op);
    int room = rule->variadic ? 0 : tr__count_bits(rule->save_in);
    tr_node *node = node_create(TR_NODE_OP, n_in, room + tr__count_bits(rule->save_out), info->n_attrs);
    if (!node)
        return TR_E_NOMEM;
    node->op = (uint16_t) op;
    node->site = tr__last_site();
    tr_copy_words(node->attrs, attrs, info->n_attrs);
    for (int i = 0; i < n_in; i++) {
        tr_tensor *t = in[i].tensor;
        node->in_meta[i] = t ? t->meta : in[i].meta;
        if (!t || !tr_dtype_is_float((tr_dtype) t->meta->dtype)) {
            node->edges[i] = (tr_edge){.number = in[i].number};
            continue;
        }
        tr_status status = edge_new(t, &node->edges[i]);
        if (status != TR_OK) {
            node->n_in = (uint16_t) i;
            tr_node_release(node);
            return status;
        }
    }
    int n = 0;
    for (int i = 0; i < n_in && room; i++)
        if (in[i].tensor && i < TR_MAX_FIXED && is_saved(rule, node, i)) {
            save(&node->saved[n], in[i].tensor);
            node->saved_in |= (uint16_t) (1u << i);
            // The op itself wrote what it saves: only an output's contents make sense then.
            if (in[i].tensor == written)
                node->saved[n].version = UINT32_MAX;
            n++;
        }
    node->n_out = (uint8_t) n_out;
    for (int i = 0; i < n_out; i++) {
        if (rule->save_out >> i & 1) {
            save(&node->saved[n], out[i]);
            node->saved_out |= (uint16_t) (1u << i);
            if (node->saved[n].leaf) {
                tr_tensor_release(node->saved[n].leaf);
                node->saved[n].leaf = NULL;
            }
            n++;
        }
    }
    *result = node;
    return TR_OK;
}

static void set_history(tr_tensor *t, tr_node *node, int nr) {
    tr_node_release(t->grad_fn);
    tr_node_retain(node);
    t->grad_fn = node;
    t->output_nr = (uint16_t) nr;
    t->requires_grad = true;
    t->view_version = t->storage->version;
}

/* An in-place op on a view: the base's history becomes CopySlices, through which the view's goes. Takes `inner`. */
static tr_status rebase_view(tr_tensor *view, tr_node *inner) {
    tr_tensor *base = view->base;
    tr_node *node = node_create(TR_NODE_COPY_SLICES, inner->n_in > 0 ? inner->n_in : 1, 0, 0);
    if (!node) {
        tr_node_release(inner);
        return TR_E_NOMEM;
    }
    node->extra->inner = inner;
    tr_status status = edge_new(base, &node->edges[0]);
    if (status != TR_OK) {
        tr_node_release(node);
        return status;
    }
    node->in_meta[0] = base->meta;
    for (int i = 1; i < inner->n_in; i++) {
        node->edges[i] = inner->edges[i]; // moved; inner only remembers that it is wanted
        node->in_meta[i] = inner->in_meta[i];
        if (inner->edges[i].node)
            tr_node_retain(inner->edges[i].node);
    }
    node->extra->base_meta = base->meta;
    node->extra->base_offset = base->offset;
    node->extra->view_meta = view->meta;
    node->extra->view_offset = view->offset;
    set_history(base, node, 0);
    tr_node_release(node);
    // The view's own grad_fn is made anew when it is next asked for.
    view->view_version = view->storage->version - 1;
    view->requires_grad = true;
    return regenerate_view(view);
}

tr_status tr__tape_record(tr_op op, const tr_input *in, int n_in, const int64_t *attrs, tr_tensor *const *out, int n_out,
                          tr_tensor *written) {
    tr_node *node;
    TR_TRY(make_node(op, in, n_in, attrs, out, n_out, written, &node));
    if (written && written->base)
        return rebase_view(written, node);
    for (int i = 0; i < n_out; i++)
        if (tr_dtype_is_float((tr_dtype) out[i]->meta->dtype))
            set_history(out[i], node, i);
    tr_node_release(node);
    return TR_OK;
}

/* ------------------------------------------------------------------------------------------------ saved values */

static tr_tensor *unpack(tr_vjp *v, tr_saved *s, int i, bool output) {
    if (v->status != TR_OK || !s->storage) {
        if (v->status == TR_OK && v->node->released)
            v->status = TR_FAIL(TR_E_RUNTIME, "Trying to backward through the graph a second time (or directly access saved "
                                              "tensors after they have already been freed). Saved intermediate values of the "
                                              "graph are freed when you call .backward() or autograd.grad(). Specify "
                                              "retain_graph=True if you need to backward through the graph a second time or if "
                                              "you need to access saved tensors after calling backward.");
        return NULL;
    }
    if (s->version != s->storage->version) {
        char shape[128];
        v->status = TR_FAIL(TR_E_RUNTIME, "one of the variables needed for gradient computation has been modified by an inplace "
                                          "operation: [torch.%sTensor %s], which is %s %d of %s, is at version %u; expected version "
                                          "%u instead. (the forward call was at %s)", tr_dtype_legacy((tr_dtype) s->meta->dtype),
                            tr_shape_print(s->meta, shape, sizeof shape), output ? "output" : "input", i, tr_node_name(v->node),
                            s->storage->version, s->version, tr_site_text(v->node->site));
        return NULL;
    }
    if (s->leaf) {
        tr_tensor_retain(s->leaf);
        return tr__vjp_own(v, s->leaf);
    }
    tr_tensor *t = tr__tensor_over(s->storage, s->meta, s->offset);
    if (!t) {
        v->status = TR_E_NOMEM;
        return NULL;
    }
    // For double backward the tensor is connected again as it was when it was saved.
    tr_edge edge = output ? (tr_edge){.node = v->node, .nr = (uint32_t) i} : v->node->edges[i];
    if (v->create_graph && edge.node && edge.node->kind != TR_NODE_ACCUMULATE) {
        tr_node_retain(edge.node);
        t->grad_fn = edge.node;
        t->output_nr = (uint16_t) edge.nr;
        t->requires_grad = true;
    }
    return tr__vjp_own(v, t);
}

tr_tensor *tr__vjp_own(tr_vjp *v, tr_tensor *t) {
    if (!t)
        return NULL;
    if (v->n_pool == TR_VJP_POOL) {
        tr_tensor_release(t);
        v->status = TR_FAIL(TR_E_INTERNAL, "vjp of %s makes too many tensors", tr_node_name(v->node));
        return NULL;
    }
    return v->pool[v->n_pool++] = t;
}

tr_tensor *tr__vjp_in(tr_vjp *v, int i) {
    return i < v->node->n_in && tr__node_saves(v->node, i) ? unpack(v, tr__node_saved_in(v->node, i), i, false) : NULL;
}

tr_tensor *tr__vjp_out(tr_vjp *v, int i) {
    return unpack(v, tr__node_saved_out(v->node, i), i, true);
}

/* ------------------------------------------------------------------------------------------------ leaves and hooks */

tr_status tr_tensor_set_requires_grad(tr_tensor *t, bool on) {
    if (t->requires_grad == on)
        return TR_OK;
    if (t->grad_fn)
        return TR_FAIL(TR_E_RUNTIME, "you can only change requires_grad flags of leaf variables.%s",
                       on ? "" : " If you want to use a computed variable in a subgraph that doesn't require differentiation use "
                                 "var_no_grad = var.detach().");
    if (on && !tr_dtype_is_float((tr_dtype) t->meta->dtype))
        return TR_FAIL(TR_E_RUNTIME, "only Tensors of floating point and complex dtype can require gradients");
    t->requires_grad = on;
    return TR_OK;
}

tr_status tr_tensor_set_grad(tr_tensor *t, tr_tensor *g) {
    if (g == t)
        return TR_FAIL(TR_E_RUNTIME, "can't assign Variable as its own grad");
    if (g && !tr_meta_same_shape(t->meta, g->meta)) {
        char a[128], b[128];
        return TR_FAIL(TR_E_RUNTIME, "assigned grad has data of a different size: expected %s, got %s",
                       tr_shape_print(t->meta, a, sizeof a), tr_shape_print(g->meta, b, sizeof b));
    }
    if (g && g->meta->dtype != t->meta->dtype)
        return TR_FAIL(TR_E_RUNTIME, "assigned grad has data of a different type");
    if (g)
        tr_tensor_retain(g);
    tr_tensor *old = t->grad;
    t->grad = g;
    tr_tensor_release(old);
    return TR_OK;
}

static tr_status add_hook(tr_hook **list, tr_hook hook, uint64_t *id) {
    tr_hook *h = tr_malloc(sizeof *h);
    if (!h)
        return TR_FAIL(TR_E_NOMEM, "no memory for a hook");
    *h = hook;
    h->id = next_hook++;
    if (id)
        *id = h->id;
    while (*list)
        list = &(*list)->next;
    *list = h;
    return TR_OK;
}

static tr_hook **hooks_of(tr_tensor *t) {
    return t->grad_fn ? &t->grad_fn->hooks : &t->hooks;
}

tr_status tr_tensor_add_hook(tr_tensor *t, tr_hook_fn call, void *arg, void (*drop)(void *arg), uint64_t *id) {
    if (!t->requires_grad)
        return TR_FAIL(TR_E_RUNTIME, "cannot register a hook on a tensor that doesn't require gradient");
    return add_hook(hooks_of(t), (tr_hook){.nr = t->output_nr, .call = call, .arg = arg, .drop = drop}, id);
}

tr_status tr_tensor_add_post_accumulate_hook(tr_tensor *t, tr_hook_fn call, void *arg, void (*drop)(void *arg), uint64_t *id) {
    if (!t->requires_grad || t->grad_fn)
        return TR_FAIL(TR_E_RUNTIME, "post accumulate grad hooks cannot be registered on non-leaf tensors");
    return add_hook(&t->hooks, (tr_hook){.after = true, .call = call, .arg = arg, .drop = drop}, id);
}

static bool remove_hook(tr_hook **list, uint64_t id) {
    for (; *list; list = &(*list)->next)
        if ((*list)->id == id) {
            tr_hook *h = *list;
            *list = h->next;
            h->next = NULL;
            hooks_free(h);
            return true;
        }
    return false;
}

void tr_tensor_remove_hook(tr_tensor *t, uint64_t id) {
    if (!remove_hook(&t->hooks, id) && t->grad_fn)
        remove_hook(&t->grad_fn->hooks, id);
}

tr_status tr_tensor_retain_grad(tr_tensor *t) {
    if (!t->requires_grad)
        return TR_FAIL(TR_E_RUNTIME, "can't retain_grad on Tensor that has requires_grad=False");
    if (!t->grad_fn || t->retains_grad)
        return TR_OK;
    t->retains_grad = true;
    return add_hook(&t->grad_fn->hooks, (tr_hook){.nr = t->output_nr, .retain = t}, NULL);
}

void tr__tape_tensor_dies(tr_tensor *t) {
    if (t->retains_grad && t->grad_fn)
        for (tr_hook *h = t->grad_fn->hooks; h; h = h->next)
            if (h->retain == t)
                h->retain = NULL;
    if (t->accumulator) {
        t->accumulator->leaf = NULL;
        tr_node_release(t->accumulator);
    }
    hooks_free(t->hooks);
    tr_node *node = t->grad_fn;
    t->grad_fn = NULL;
    tr_node_release(node);
}

/* ------------------------------------------------------------------------------------------------ custom nodes */

tr_status tr_custom_connect(const tr_custom_node *custom, tr_tensor *const *inputs, int n_in, tr_tensor *const *outputs,
                            const bool *differentiable, int n_out, tr_node **node_out) {
    tr_node *node = node_create(TR_NODE_CUSTOM, n_in, 0, 0);
    if (!node)
        return TR_E_NOMEM;
    node->n_out = (uint8_t) n_out;
    tr_status status = TR_OK;
    for (int i = 0; i < n_in && status == TR_OK; i++) {
        node->in_meta[i] = inputs[i] ? inputs[i]->meta : NULL;
        if (inputs[i])
            status = edge_new(inputs[i], &node->edges[i]);
    }
    if (status != TR_OK) {
        tr_node_release(node);
        return status;
    }
    node->extra->custom = *custom;
    for (int i = 0; i < n_out; i++)
        if (outputs[i] && differentiable[i] && tr_dtype_is_float((tr_dtype) outputs[i]->meta->dtype))
            set_history(outputs[i], node, i);
    if (node_out)
        *node_out = node;
    tr_node_release(node); // the outputs hold it; gone when none does
    return TR_OK;
}
