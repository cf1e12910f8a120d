/* tape.h - the autograd tape.
 *
 * A node stands for one differentiable call. It keeps an edge per input (the node that made it, or a leaf's accumulator) and
 * what its derivative needs: inputs and outputs saved as storage, meta and version, so that saving makes no reference cycle.
 * Its vjp is written in terms of ops (vjp_*.c), called through tr_apply: backward is traced, fused and differentiated like
 * forward. Everything runs under the GIL. */
#ifndef TR_TRACER_TAPE_H
#define TR_TRACER_TAPE_H

#include "terra/exec.h"
#include "terra/tracer.h"

typedef struct tr_vjp tr_vjp;

/* A derivative: what it saves, and the function. Bits of save_in are operands; with `cross`, an operand is saved only if
 * another one needs a gradient (products). */
typedef struct tr_vjp_rule {
    void (*run)(tr_vjp *v);
    uint16_t save_in, save_out;
    bool cross;
    bool variadic; /* saves nothing but metas, any number of operands */
} tr_vjp_rule;

extern const tr_vjp_rule *const tr__vjp_rules[TR_OP_COUNT];

typedef enum tr_node_kind { TR_NODE_OP, TR_NODE_ACCUMULATE, TR_NODE_CUSTOM, TR_NODE_COPY_SLICES } tr_node_kind;

/* Where the gradient of an operand goes; a number that is an operand lies in the place of the output's index. */
typedef struct tr_edge {
    tr_node *node; /* retained; NULL: no gradient wanted */
    union {
        uint32_t nr; /* which of the node's outputs */
        tr_number number;
    };
} tr_edge;

typedef struct tr_saved {
    tr_storage *storage; /* retained; NULL: not saved */
    const tr_meta *meta;
    int64_t offset;
    uint32_t version;
    tr_tensor *leaf;     /* retained: a leaf that needs a gradient, for double backward */
} tr_saved;

struct tr_hook {
    tr_hook *next;
    uint64_t id;
    uint32_t nr;          /* output of the node that it belongs to */
    bool after;           /* after accumulation into .grad */
    tr_hook_fn call;
    void *arg;
    void (*drop)(void *arg);
    tr_tensor *retain;    /* borrowed: retain_grad() of this tensor; cleared when it dies */
};

/* What nodes other than ops' have. */
typedef struct tr_node_extra {
    tr_custom_node custom;
    /* COPY_SLICES: the base's look, the view's, and the op done to the view */
    const tr_meta *base_meta, *view_meta;
    int64_t base_offset, view_offset;
    tr_node *inner;           /* retained */
} tr_node_extra;

/* In one block with its arrays, from a free list of its size. */
struct tr_node {
    int64_t refs;
    uint8_t kind;
    uint8_t n_out;
    uint8_t n_attrs;
    bool released;            /* saved values were freed by a backward without retain_graph */
    uint16_t op, n_in;
    uint32_t site;
    uint16_t saved_in, saved_out; /* bit i: operand i, output i is in `saved` */
    uint16_t size_class;
    uint32_t run, entry;      /* the reverse pass that it takes part in, and as what */
    uint64_t sequence;
    tr_edge *edges;           /* [n_in] */
    const tr_meta **in_meta;  /* [n_in] */
    tr_saved *saved;          /* inputs, then outputs: only those whose bits are set */
    int64_t *attrs;
    tr_hook *hooks;
    tr_tensor *leaf;          /* ACCUMULATE: borrowed; the leaf holds the node, and clears this when it dies */
    tr_node_extra *extra;     /* CUSTOM, COPY_SLICES */
};

/* How many of a few bits are set: a processor that every x86-64 program may expect has no instruction for it. */
static inline int tr__count_bits(unsigned bits) {
    int n = 0;
    for (; bits; bits &= bits - 1)
        n++;
    return n;
}
static inline bool tr__node_saves(const tr_node *n, int i) { return i <= TR_MAX_FIXED && (n->saved_in >> i & 1); }
static inline tr_saved *tr__node_saved_in(const tr_node *n, int i) {
    return &n->saved[tr__count_bits(n->saved_in & ((1u << i) - 1))];
}
static inline tr_saved *tr__node_saved_out(const tr_node *n, int i) {
    return &n->saved[tr__count_bits(n->saved_in) + tr__count_bits(n->saved_out & ((1u << i) - 1))];
}

/* What a vjp works with. Tensors that its calls make live until it returns. */
enum { TR_VJP_POOL = 64 };
struct tr_vjp {
    tr_node *node;
    tr_tensor *const *grad;   /* per output; NULL: zero */
    tr_tensor **results;      /* [n_in], NULL at first */
    tr_status status;
    bool create_graph;
    int n_pool;
    tr_tensor *pool[TR_VJP_POOL];
};

/* Whether input i wants a gradient. */
static inline bool tr__needs(const tr_vjp *v, int i) {
    return i < v->node->n_in && v->node->edges[i].node != NULL;
}
tr_tensor *tr__vjp_in(tr_vjp *v, int i);   /* saved input, borrowed; NULL when absent (or after a failure) */
tr_tensor *tr__vjp_out(tr_vjp *v, int i);
tr_tensor *tr__vjp_own(tr_vjp *v, tr_tensor *t);

/* ---- used by dispatch ---- */

/* May this call be recorded: grad mode on and an input that requires a gradient? */
bool tr__tape_wanted(tr_op op, const tr_input *in, int n_in);
/* PyTorch's checks before an in-place op. */
tr_status tr__tape_check_inplace(const tr_tensor *t, bool wanted);
/* Records a call that has been issued. `written`: the tensor that it wrote in place, else NULL. */
tr_status tr__tape_record(tr_op op, const tr_input *in, int n_in, const int64_t *attrs, tr_tensor *const *out, int n_out,
                          tr_tensor *written);
/* The edge that a gradient of t goes along; regenerates a view's. node NULL: none, else a new
 * reference. */
tr_status tr__tape_edge(tr_tensor *t, tr_edge *edge);
void tr__tape_tensor_dies(tr_tensor *t);
/* The engine is running vjps that nobody differentiates: their views need not know their base. */
bool tr__tape_is_final(void);

#endif
