/* backward.c - the reverse pass.
 *
 * A run is a table of nodes that the roots reach, with what each still waits for and the gradients that have come in. Nodes
 * run latest first (by sequence number), as PyTorch's do, so that sums of gradients are made in the same order. Runs may
 * nest (a custom node's backward may call backward): each has a table of its own.
 *
 * Gradients of slices of one tensor (split, chunk, unbind) are held until somebody asks for their sum: where they tile it, it
 * is their concatenation, written once, instead of zeros around each slice and additions of all that. */
#include "tracer/tape.h"

#include "tracer/clock.h"
#include "tracer/dispatch.h"

#include "terra/alloc.h"

#include <stdlib.h>
#include <string.h>

/* The gradient of a slice, held: of output `nr` of the entry's node, by that slice's own node (borrowed: the run has it). */
typedef struct piece {
    struct piece *next;
    tr_node *slice;
    tr_tensor *grad; /* retained */
    uint32_t nr;
    int64_t dim, start, size;
} piece;

/* Nodes know the run that they take part in and their entry in it. A run within another one may enter the same nodes: its
 * entries keep what the nodes knew before. */
typedef struct run_entry {
    tr_node *node;
    piece *pieces;        /* held, latest first */
    uint32_t waits;       /* edges into it from nodes that have not run */
    bool needed;          /* leads to one of the inputs asked for */
    bool queued;
    uint32_t outer_run, outer_entry;
    union {
        tr_tensor *few[TR_MAX_OUTPUTS];
        tr_tensor **many;
    } grad;               /* per output, retained */
} run_entry;

typedef struct run {
    const tr_backward_args *args;
    uint32_t id;
    run_entry *table;
    uint32_t size, count;
    tr_node **heap;           /* as long as the table */
    uint32_t heap_count;
    tr_edge *inputs;          /* [n_inputs] */
    tr_status status;
} run;

/* Table and heap of the last run, for the next. */
static struct {
    run_entry *table;
    tr_node **heap;
    uint32_t size;
} spare;

static tr_tensor **grads_of(run_entry *e) {
    return e->node->n_out <= TR_MAX_OUTPUTS ? e->grad.few : e->grad.many;
}

/* NULL: not in this run. */
static run_entry *find(run *r, const tr_node *node) {
    return node->run == r->id ? &r->table[node->entry] : NULL;
}

static tr_status grow(run *r) {
    uint32_t size = r->size ? r->size * 2 : 512;
    run_entry *table = tr_realloc(r->table, size * sizeof *table);
    if (table)
        r->table = table;
    tr_node **heap = table ? tr_realloc(r->heap, size * sizeof *heap) : NULL;
    if (!heap)
        return TR_FAIL(TR_E_NOMEM, "no memory for backward");
    r->heap = heap;
    r->size = size;
    return TR_OK;
}

static tr_status enter(run *r, tr_node *node, run_entry **out, bool *fresh) {
    *fresh = node->run != r->id;
    if (*fresh) {
        if (r->count == r->size)
            TR_TRY(grow(r));
        run_entry *e = &r->table[r->count];
        *e = (run_entry){.node = node, .needed = !r->args->inputs, .outer_run = node->run, .outer_entry = node->entry};
        if (node->n_out > TR_MAX_OUTPUTS && !(e->grad.many = tr_calloc(node->n_out, sizeof *e->grad.many)))
            return TR_FAIL(TR_E_NOMEM, "no memory for backward");
        node->run = r->id;
        node->entry = r->count++;
        tr_node_retain(node);
    }
    *out = &r->table[node->entry];
    return TR_OK;
}

/* ---- the order: a heap by sequence; accumulators first of all, as they wait for nobody ---- */

static bool before(const tr_node *a, const tr_node *b) {
    uint64_t sa = a->kind == TR_NODE_ACCUMULATE ? UINT64_MAX : a->sequence;
    uint64_t sb = b->kind == TR_NODE_ACCUMULATE ? UINT64_MAX : b->sequence;
    return sa > sb;
}

static void heap_push(run *r, tr_node *node) {
    uint32_t i = r->heap_count++;
    while (i && before(node, r->heap[(i - 1) / 2])) {
        r->heap[i] = r->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    r->heap[i] = node;
}

static tr_node *heap_pop(run *r) {
    tr_node *top = r->heap[0], *last = r->heap[--r->heap_count];
    uint32_t i = 0;
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= r->heap_count)
            break;
        if (child + 1 < r->heap_count && before(r->heap[child + 1], r->heap[child]))
            child++;
        if (!before(r->heap[child], last))
            break;
        r->heap[i] = r->heap[child];
        i = child;
    }
    r->heap[i] = last;
    return top;
}

/* ---- what the run covers ---- */

/* Enters everything the roots reach and counts who waits for whom. Depth first, without recursion: the heap's room serves
 * as the stack. */
static tr_status explore(run *r, tr_node *root) {
    run_entry *e;
    bool fresh;
    TR_TRY(enter(r, root, &e, &fresh));
    if (!fresh)
        return TR_OK;
    uint32_t top = 0;
    r->heap[top++] = root;
    while (top) {
        tr_node *node = r->heap[--top];
        for (int i = 0; i < node->n_in; i++) {
            tr_node *next = node->edges[i].node;
            if (!next)
                continue;
            TR_TRY(enter(r, next, &e, &fresh));
            e->waits++;
            if (fresh)
                r->heap[top++] = next;
        }
    }
    return TR_OK;
}

/* With inputs asked for, only nodes that lead to them run. Nodes were made before those that use them, so in the order of
 * sequence numbers a node's edges are settled first; a few sweeps settle regenerated views as well. */
static void mark_needed(run *r) {
    const tr_backward_args *a = r->args;
    for (int i = 0; i < a->n_inputs; i++) {
        run_entry *e = r->inputs[i].node ? find(r, r->inputs[i].node) : NULL;
        if (e)
            e->needed = true;
    }
    for (bool changed = true; changed;) {
        changed = false;
        for (uint32_t i = 0; i < r->count; i++) {
            run_entry *e = &r->table[i];
            if (e->needed)
                continue;
            for (int j = 0; j < e->node->n_in && !e->needed; j++)
                if (e->node->edges[j].node && find(r, e->node->edges[j].node)->needed)
                    changed = e->needed = true;
        }
    }
}

/* ---- gradients ---- */

static tr_status add_grad(tr_tensor **slot, tr_tensor *g /* takes */) {
    if (!*slot) {
        *slot = g;
        return TR_OK;
    }
    tr_tensor *sum = NULL;
    tr_status status = tr_apply(TR_OP_add, (tr_input[]){tr_in(*slot), tr_in(g), tr_in_int(1)}, 3, NULL, NULL, false, &sum);
    tr_tensor_release(g);
    if (status != TR_OK)
        return status;
    tr_tensor_release(*slot);
    *slot = sum;
    return TR_OK;
}

static int final_depth;

bool tr__tape_is_final(void) {
    return final_depth > 0;
}

/* Undoes broadcasting, and casts to the input's dtype: the one place. Takes g. */
static tr_status fit(tr_tensor *g, const tr_meta *want, tr_tensor **out) {
    tr_status status = TR_OK;
    if (!want || g->meta == want) {
        *out = g;
        return TR_OK;
    }
    if (!tr_meta_same_shape(g->meta, want)) {
        int lead = g->meta->ndim - want->ndim;
        int64_t mask = 0;
        for (int d = 0; d < g->meta->ndim; d++)
            if (d < lead || (want->shape[d - lead] == 1 && g->meta->shape[d] != 1))
                mask |= (int64_t) 1 << d;
        tr_tensor *sum = NULL, *shaped = NULL;
        status = tr_apply(TR_OP_sum, (tr_input[]){tr_in(g)}, 1, (int64_t[]){mask, 1, -1}, NULL, false, &sum);
        bool final = !tr_grad_enabled();
        final_depth += final;
        if (status == TR_OK)
            status = tr_view(sum, want->ndim, want->shape, &shaped);
        final_depth -= final;
        tr_tensor_release(sum);
        tr_tensor_release(g);
        g = shaped;
    }
    if (status == TR_OK && g->meta->dtype != want->dtype) {
        tr_tensor *cast = NULL;
        status = tr_to_dtype(g, (tr_dtype) want->dtype, &cast);
        tr_tensor_release(g);
        g = cast;
    }
    if (status == TR_OK)
        *out = g;
    return status;
}

static tr_status run_hooks(tr_hook *h, uint32_t nr, bool after, tr_tensor **g) {
    for (; h; h = h->next) {
        if (h->nr != nr || h->after != after)
            continue;
        if (h->retain) {
            tr_tensor *old = h->retain->grad;
            tr_tensor_retain(*g);
            h->retain->grad = *g;
            tr_tensor_release(old);
            continue;
        }
        if (!h->call)
            continue;
        tr_tensor *replacement = NULL;
        TR_TRY(h->call(h->arg, *g, &replacement));
        if (replacement) {
            tr_tensor_release(*g);
            *g = replacement;
        }
    }
    return TR_OK;
}

/* May the gradient itself become .grad: nobody else has it, and it looks as .grad should? */
static bool may_steal(const tr_tensor *g, const tr_tensor *leaf) {
    return g->refs == 1 && g->storage->refs == 1 && !g->storage->shared && g->meta == leaf->meta && g->meta->dense;
}

static tr_status copy_like(tr_tensor *g, const tr_meta *meta, tr_tensor **out) {
    tr_tensor *copy = NULL, *same = NULL;
    if (g->meta == meta)
        return tr_apply(TR_OP_clone, (tr_input[]){tr_in(g)}, 1, NULL, NULL, false, out);
    TR_TRY(tr_tensor_empty(meta, &copy));
    tr_status status = tr_apply(TR_OP_copy_, (tr_input[]){tr_in(copy), tr_in(g)}, 2, NULL, NULL, false, &same);
    tr_tensor_release(same);
    if (status != TR_OK) {
        tr_tensor_release(copy);
        return status;
    }
    *out = copy;
    return TR_OK;
}

static tr_status accumulate(run *r, tr_node *node, tr_tensor **slot) {
    tr_tensor *leaf = node->leaf;
    if (!leaf)
        return TR_OK;
    TR_TRY(run_hooks(leaf->hooks, 0, false, slot));
    tr_tensor *g = *slot;
    if (!leaf->grad) {
        if (r->args->create_graph || may_steal(g, leaf)) {
            leaf->grad = g;
            *slot = NULL;
        } else {
            const tr_meta *like = leaf->meta->dense ? leaf->meta : tr_meta_as_contiguous(leaf->meta, (tr_dtype) leaf->meta->dtype);
            TR_TRY(copy_like(g, like, &leaf->grad));
        }
    } else if (r->args->create_graph) {
        TR_TRY(add_grad(&leaf->grad, g));
        *slot = NULL;
    } else {
        tr_tensor *same = NULL;
        TR_TRY(tr_apply(TR_OP_add, (tr_input[]){tr_in(leaf->grad), tr_in(g), tr_in_int(1)}, 3, NULL, NULL, true, &same));
        tr_tensor_release(same);
    }
    for (tr_hook *h = leaf->hooks, *next; h; h = next) {
        next = h->next;
        if (h->after && h->call) {
            tr_tensor *ignored = NULL;
            TR_TRY(h->call(h->arg, leaf, &ignored));
            tr_tensor_release(ignored);
        }
    }
    return TR_OK;
}

/* ---- one node ---- */

static void vjp_finish(tr_vjp *v) {
    for (int i = 0; i < v->n_pool; i++)
        tr_tensor_release(v->pool[i]);
}

static tr_status run_op_node(tr_node *node, tr_tensor *const *grad, bool create_graph, tr_tensor **result) {
    tr_vjp v; // its pool is large, and filled in as far as it is used
    v.node = node;
    v.grad = grad;
    v.results = result;
    v.status = TR_OK;
    v.create_graph = create_graph;
    v.n_pool = 0;
    tr__forward_site = node->site; // until the next node: sums and accumulations belong to what led to them
    final_depth += !create_graph;
    tr__vjp_rules[node->op]->run(&v);
    final_depth -= !create_graph;
    vjp_finish(&v);
    return v.status;
}

/* ---- pieces ---- */

static bool is_slice(const tr_node *node) {
    return node->kind == TR_NODE_OP && (node->op == TR_OP_select || (node->op == TR_OP_slice && node->attrs[3] == 1));
}

/* Where it lies in its base; false: its gradient is not simply a piece of the base's. */
static bool place(const tr_node *slice, const tr_tensor *g, piece *p) {
    const tr_meta *base = slice->in_meta[0];
    bool drops = slice->op == TR_OP_select; // its dimension
    p->dim = slice->attrs[0];
    p->start = slice->attrs[1];
    p->size = drops ? 1 : g->meta->shape[p->dim];
    bool fits = g->meta->dtype == base->dtype && g->meta->ndim + drops == base->ndim;
    for (int d = 0; d < g->meta->ndim && fits; d++) {
        int own = d + (drops && d >= p->dim);
        fits = own == p->dim || g->meta->shape[d] == base->shape[own];
    }
    return fits;
}

/* All that an entry holds, first come first; NULL: no memory. */
static const piece **list_pieces(const run_entry *e, size_t *n) {
    *n = 0;
    for (const piece *p = e->pieces; p; p = p->next)
        ++*n;
    const piece **list = tr_calloc(*n, sizeof *list);
    size_t at = *n;
    for (const piece *p = e->pieces; list && p; p = p->next)
        list[--at] = p;
    return list;
}

static int by_start(const void *a, const void *b) {
    const piece *p = *(const piece *const *) a, *q = *(const piece *const *) b;
    return (p->start > q->start) - (p->start < q->start);
}

/* Sorts them by place, if they tile their base; else leaves them as they came. */
static tr_status tile(const piece **list, size_t n, bool *tiles) {
    const piece **sorted = tr_malloc(n * sizeof *sorted);
    if (!sorted)
        return TR_FAIL(TR_E_NOMEM, "no memory for backward");
    memcpy(sorted, list, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, by_start);
    int64_t at = 0;
    *tiles = true;
    for (size_t k = 0; k < n; at += sorted[k++]->size)
        *tiles &= sorted[k]->start == at && sorted[k]->size > 0;
    *tiles &= at == list[0]->slice->in_meta[0]->shape[list[0]->dim];
    if (*tiles)
        memcpy(list, sorted, n * sizeof *sorted);
    tr_free(sorted);
    return TR_OK;
}

/* The piece with its base's dimensions. */
static tr_status as_part(const piece *p, tr_tensor **out) {
    if (p->slice->op == TR_OP_select)
        return tr_apply(TR_OP_unsqueeze, (tr_input[]){tr_in(p->grad)}, 1, (int64_t[]){p->dim}, NULL, false, out);
    tr_tensor_retain(p->grad);
    *out = p->grad;
    return TR_OK;
}

static tr_status concatenate(const piece **list, size_t n, tr_tensor **out) {
    if (n == 1)
        return as_part(list[0], out);
    tr_input *in = tr_calloc(n, sizeof *in);
    tr_status status = in ? TR_OK : TR_FAIL(TR_E_NOMEM, "no memory for backward");
    for (size_t k = 0; k < n && status == TR_OK; k++) {
        tr_tensor *part = NULL;
        status = as_part(list[k], &part);
        in[k] = tr_in(part);
    }
    if (status == TR_OK)
        status = tr_apply(TR_OP_cat, in, (int) n, (int64_t[]){list[0]->dim}, NULL, false, out);
    for (size_t k = 0; in && k < n; k++)
        tr_tensor_release(in[k].tensor);
    tr_free(in);
    return status;
}

/* One after the other, as they came in. */
static tr_status scatter(const run *r, const piece **list, size_t n, tr_tensor **slot) {
    for (size_t k = 0; k < n; k++) {
        tr_tensor *result = NULL;
        TR_TRY(run_op_node(list[k]->slice, &list[k]->grad, r->args->create_graph, &result));
        if (result)
            TR_TRY(add_grad(slot, result));
    }
    return TR_OK;
}

static void drop_pieces(run_entry *e) {
    for (piece *p = e->pieces, *next; p; p = next) {
        next = p->next;
        tr_tensor_release(p->grad);
        tr_free(p);
    }
    e->pieces = NULL;
}

enum { LONGEST = 4096 }; /* operands of one op */

static tr_status add_pieces(run *r, run_entry *e, const piece **list, size_t n) {
    tr_tensor **slot = &grads_of(e)[e->pieces->nr], *whole = NULL;
    bool tiles = false;
    if (n <= LONGEST)
        TR_TRY(tile(list, n, &tiles));
    if (!tiles)
        return scatter(r, list, n, slot);
    TR_TRY(concatenate(list, n, &whole));
    return add_grad(slot, whole);
}

/* Adds what is held to the gradient that it belongs to. */
static tr_status settle(run *r, run_entry *e) {
    if (!e->pieces)
        return TR_OK;
    size_t n;
    uint32_t site = tr__forward_site;
    const piece **list = list_pieces(e, &n);
    tr__forward_site = e->pieces->slice->site;
    tr_status status = list ? add_pieces(r, e, list, n) : TR_FAIL(TR_E_NOMEM, "no memory for backward");
    tr__forward_site = site;
    tr_free(list);
    drop_pieces(e);
    return status;
}

/* Takes note of a slice's gradient; only pieces of one output along one dimension are held together. */
static tr_status hold(run *r, run_entry *e, uint32_t nr, const piece *like) {
    if (e->pieces && (e->pieces->nr != nr || e->pieces->dim != like->dim))
        TR_TRY(settle(r, e));
    piece *p = tr_malloc(sizeof *p);
    if (!p)
        return TR_FAIL(TR_E_NOMEM, "no memory for backward");
    *p = *like;
    p->nr = nr;
    p->next = e->pieces;
    e->pieces = p;
    tr_tensor_retain(p->grad);
    return TR_OK;
}

static tr_status strided(tr_tensor *t, const tr_meta *m, int64_t offset, tr_tensor **out) {
    int64_t a[3 + 2 * TR_MAX_DIMS] = {0};
    a[0] = a[1 + TR_MAX_DIMS] = m->ndim;
    memcpy(a + 1, m->shape, sizeof m->shape);
    memcpy(a + 2 + TR_MAX_DIMS, m->strides, sizeof m->strides);
    a[2 + 2 * TR_MAX_DIMS] = offset;
    return tr_apply(TR_OP_as_strided, (tr_input[]){tr_in(t)}, 1, a, NULL, false, out);
}

/* The gradient of the base, its part at the view replaced by what the op on the view passes on. */
static tr_status run_copy_slices(tr_node *node, tr_tensor *const *grad, bool create_graph, tr_tensor **result) {
    const tr_node_extra *x = node->extra;
    tr_tensor *base = NULL, *part = NULL, *part_copy = NULL, *same = NULL;
    tr_tensor *inner[TR_MAX_FIXED + 1] = {0};
    // Laid out as the base, so that the view's strides address it.
    tr_status status = x->base_meta->dense
                           ? copy_like(grad[0], tr_meta_with_dtype(x->base_meta, (tr_dtype) grad[0]->meta->dtype), &base)
                           : TR_FAIL(TR_E_NOTIMPL, "backward of an in-place write through a view of a tensor with gaps");
    if (status == TR_OK)
        status = strided(base, x->view_meta, x->view_offset - x->base_offset, &part);
    if (status == TR_OK)
        status = tr_apply(TR_OP_clone, (tr_input[]){tr_in(part)}, 1, NULL, NULL, false, &part_copy);
    if (status == TR_OK) {
        tr_tensor *g[1] = {part_copy};
        status = run_op_node(x->inner, g, create_graph, inner);
    }
    if (status == TR_OK) {
        if (inner[0])
            status = tr_apply(TR_OP_copy_, (tr_input[]){tr_in(part), tr_in(inner[0])}, 2, NULL, NULL, false, &same);
        else
            status = tr_apply(TR_OP_fill_, (tr_input[]){tr_in(part), tr_in_double(0)}, 2, NULL, NULL, false, &same);
    }
    tr_tensor_release(same);
    tr_tensor_release(part);
    tr_tensor_release(part_copy);
    tr_tensor_release(inner[0]);
    result[0] = base;
    for (int i = 1; i < node->n_in; i++)
        result[i] = inner[i];
    return status;
}

/* A gradient for output nr of the entry's node. Takes g. */
static tr_status give(run *r, run_entry *e, uint32_t nr, tr_tensor *g, const tr_meta *want) {
    tr_status status = settle(r, e); // sums are made in the order of what comes in
    if (status != TR_OK) {
        tr_tensor_release(g);
        return status;
    }
    TR_TRY(fit(g, want, &g));
    return add_grad(&grads_of(e)[nr], g);
}

/* `held`: instead of a result, the piece that the node's gradient is of its operand's. */
static tr_status pass_on(run *r, tr_node *node, tr_tensor **result, const piece *held) {
    for (int i = 0; i < node->n_in; i++) {
        tr_node *next = node->edges[i].node;
        if (!next) {
            tr_tensor_release(result[i]);
            continue;
        }
        run_entry *e = find(r, next);
        tr_tensor *g = result[i];
        if (held && i == 0 && r->status == TR_OK && e->needed)
            r->status = hold(r, e, node->edges[i].nr, held);
        else if (g && r->status == TR_OK && e->needed)
            r->status = give(r, e, node->edges[i].nr, g, node->in_meta[i]);
        else
            tr_tensor_release(g);
        if (--e->waits == 0 && !e->queued && e->needed) {
            e->queued = true;
            heap_push(r, next);
        }
    }
    return r->status;
}

static void capture(run *r, tr_node *node, uint32_t nr, tr_tensor *g) {
    for (int i = 0; i < r->args->n_inputs; i++)
        if (r->inputs[i].node == node && r->inputs[i].nr == nr) {
            if (g)
                tr_tensor_retain(g);
            tr_tensor_release(r->args->out_grads[i]);
            r->args->out_grads[i] = g;
        }
}

static tr_status run_node(run *r, run_entry *e) {
    TR_TRY(settle(r, e));
    tr_node *node = e->node;
    const tr_backward_args *a = r->args;
    tr_tensor **grad = grads_of(e);
    bool any = false, capturing = a->inputs && !a->accumulate;
    for (uint32_t k = 0; k < node->n_out; k++) {
        if (!grad[k])
            continue;
        any = true;
        if (node->kind != TR_NODE_ACCUMULATE)
            TR_TRY(run_hooks(node->hooks, k, false, &grad[k]));
        else if (capturing && node->leaf)
            TR_TRY(run_hooks(node->leaf->hooks, 0, false, &grad[k]));
        if (capturing)
            capture(r, node, k, grad[k]);
    }
    if (node->kind == TR_NODE_ACCUMULATE)
        return any && !capturing ? accumulate(r, node, &grad[0]) : TR_OK;
    tr_tensor *few[TR_MAX_FIXED + 1], **result = few;
    if (node->n_in <= TR_MAX_FIXED)
        tr_clear_words(few, node->n_in);
    else if (!(result = tr_calloc(node->n_in, sizeof *result)))
        return TR_FAIL(TR_E_NOMEM, "no memory for backward");
    tr_status status = TR_OK;
    piece held;
    bool holds = any && is_slice(node) && place(node, grad[0], &held);
    if (holds) {
        held.slice = node;
        held.grad = grad[0];
        grad[0] = NULL;
    } else if (any) {
        if (node->kind == TR_NODE_OP)
            status = run_op_node(node, grad, a->create_graph, result);
        else if (node->kind == TR_NODE_COPY_SLICES)
            status = run_copy_slices(node, grad, a->create_graph, result);
        else
            status = node->extra->custom.backward(node->extra->custom.arg, node->n_out, grad, node->n_in, result);
        if (!a->retain_graph)
            tr__node_clear_saved(node);
    }
    // Incoming gradients die before the results are passed on, as in the first run of this path: deaths stay in step.
    for (uint32_t k = 0; k < node->n_out; k++) {
        tr_tensor_release(grad[k]);
        grad[k] = NULL;
    }
    if (status != TR_OK)
        r->status = status;
    pass_on(r, node, result, holds ? &held : NULL);
    if (holds)
        tr_tensor_release(held.grad);
    if (result != few)
        tr_free(result);
    return r->status;
}

/* ---- roots ---- */

static tr_status seed(run *r, int i) {
    const tr_backward_args *a = r->args;
    tr_tensor *root = a->roots[i], *g = a->grads ? a->grads[i] : NULL;
    if (!root->requires_grad)
        return TR_FAIL(TR_E_RUNTIME, "element %d of tensors does not require grad and does not have a grad_fn", i);
    if (!g && root->meta->numel != 1)
        return TR_FAIL(TR_E_RUNTIME, "grad can be implicitly created only for scalar outputs");
    if (g && !tr_meta_same_shape(g->meta, root->meta)) {
        char x[128], y[128];
        return TR_FAIL(TR_E_RUNTIME, "Mismatch in shape: grad_output[%d] has a shape of torch.Size(%s) and output[%d] has a shape "
                                     "of torch.Size(%s).", i, tr_shape_print(g->meta, x, sizeof x), i,
                       tr_shape_print(root->meta, y, sizeof y));
    }
    if (g)
        tr_tensor_retain(g);
    else
        TR_TRY(tr_apply(TR_OP__full, (tr_input[]){tr_in_double(1)}, 1, NULL,
                        tr_meta_as_contiguous(root->meta, (tr_dtype) root->meta->dtype), false, &g));
    tr_edge edge;
    tr_status status = tr__tape_edge(root, &edge);
    if (status != TR_OK) {
        tr_tensor_release(g);
        return status;
    }
    status = add_grad(&grads_of(find(r, edge.node))[edge.nr], g);
    tr_node_release(edge.node);
    return status;
}

static tr_status prepare(run *r) {
    const tr_backward_args *a = r->args;
    for (int i = 0; i < a->n_roots; i++) {
        if (!a->roots[i]->requires_grad)
            return TR_FAIL(TR_E_RUNTIME, "element %d of tensors does not require grad and does not have a grad_fn", i);
        tr_edge edge;
        TR_TRY(tr__tape_edge(a->roots[i], &edge));
        tr_status status = explore(r, edge.node);
        tr_node_release(edge.node);
        TR_TRY(status);
    }
    if (a->inputs) {
        r->inputs = tr_calloc((size_t) a->n_inputs + 1, sizeof *r->inputs);
        if (!r->inputs)
            return TR_FAIL(TR_E_NOMEM, "no memory for backward");
        for (int i = 0; i < a->n_inputs; i++) {
            if (!a->inputs[i]->requires_grad)
                return TR_FAIL(TR_E_RUNTIME, "One of the differentiated Tensors does not require grad");
            TR_TRY(tr__tape_edge(a->inputs[i], &r->inputs[i]));
        }
        mark_needed(r);
    }
    for (int i = 0; i < a->n_roots; i++)
        TR_TRY(seed(r, i));
    r->heap_count = 0;
    for (uint32_t i = 0; i < r->count; i++)
        if (r->table[i].waits == 0 && r->table[i].needed) {
            r->table[i].queued = true;
            heap_push(r, r->table[i].node);
        }
    return TR_OK;
}

static void forget(run_entry *e) {
    tr_node *node = e->node;
    tr_tensor **grad = grads_of(e);
    drop_pieces(e);
    for (uint32_t k = 0; k < node->n_out; k++)
        tr_tensor_release(grad[k]);
    if (grad != e->grad.few)
        tr_free(grad);
    node->run = e->outer_run;
    node->entry = e->outer_entry;
    tr_node_release(node);
}

/* Runs nest: the spare memory goes to the one that comes first, and stays with the longest. */
static void take_spare(run *r) {
    r->table = spare.table;
    r->heap = spare.heap;
    r->size = spare.size;
    memset(&spare, 0, sizeof spare);
}

static void give_spare(run *r) {
    if (r->size < spare.size) {
        tr_free(r->table);
        tr_free(r->heap);
        return;
    }
    tr_free(spare.table);
    tr_free(spare.heap);
    spare.table = r->table;
    spare.heap = r->heap;
    spare.size = r->size;
}

static tr_status backward(const tr_backward_args *args) {
    static uint32_t last_run;
    run r = {.args = args, .id = ++last_run};
    take_spare(&r);
    bool was = tr_set_grad_enabled(args->create_graph);
    uint32_t outer = tr__forward_site;
    r.status = prepare(&r);
    while (r.status == TR_OK && r.heap_count)
        r.status = run_node(&r, find(&r, heap_pop(&r)));
    for (uint32_t i = 0; i < r.count; i++)
        forget(&r.table[i]);
    for (int i = 0; r.inputs && i < args->n_inputs; i++)
        tr_node_release(r.inputs[i].node);
    tr_free(r.inputs);
    give_spare(&r);
    tr__forward_site = outer;
    tr_set_grad_enabled(was);
    return r.status;
}

tr_status tr_backward(const tr_backward_args *args) {
    bool timed = tr__clock_enter();
    tr_status status = backward(args);
    tr__clock_leave(timed);
    return status;
}
