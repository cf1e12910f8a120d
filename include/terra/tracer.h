/* tracer.h - dispatch: the one way into Terra for every op, in every mode.
 *
 * The Python room makes tensors and calls tr_apply(). Dispatch checks the operands, applies the shape rule, hands back
 * tensors whose values are still to come, records the op on the autograd tape, and passes it on: to the trace and the ring
 * (tier 0), or to the skeleton, which only compares it with the next node of the predicted path (co-execution). Derivatives
 * are ops, called through the same door.
 *
 * Everything here is called with the GIL held, by any Python thread, unless said otherwise. Functions return a tr_status
 * and leave outputs untouched on failure. What blocks says so; blocking releases the GIL through tr_host. */
#ifndef TERRA_TRACER_H
#define TERRA_TRACER_H

#include "terra/op.h"

/* ------------------------------------------------------------------------------------------------ the host's services */

/* What the tracer needs of Python. All are called with the GIL held. */
typedef struct tr_host {
    void *(*release)(void);                 /* gives the GIL up around a wait */
    void (*acquire)(void *token);
    tr_status (*check_signals)(void);       /* TR_E_PYTHON when a handler raised (Ctrl-C); TR_OK else */
    uint32_t (*site)(void);                 /* the innermost user frame as an id (tr_site_intern); 0 unknown */
} tr_host;

/* Starts everything (op table, kernels, executor lazily at the first op). Once. */
TR_API tr_status tr_tracer_init(const tr_host *host);
/* Waits for all work, joins threads. At interpreter exit. Returns the first unraised error, if any. Blocks. */
TR_API tr_status tr_tracer_shutdown(void);

/* A call location: file (copied), line, function. Interned; ids are small and never freed. */
TR_API uint32_t tr_site_intern(const char *file, int line, const char *function);
TR_API const char *tr_site_text(uint32_t site); /* "train.py:31" or "?"; static storage */

/* ------------------------------------------------------------------------------------------------ tensors */

typedef struct tr_tensor tr_tensor;
typedef struct tr_node tr_node;   /* a node of the tape */
typedef struct tr_hook tr_hook;   /* a list of hooks */

struct tr_tensor {
    int64_t refs;             /* under the GIL */
    tr_storage *storage;      /* retained */
    const tr_meta *meta;
    int64_t offset;           /* elements */
    bool requires_grad;       /* a leaf's own flag, or: grad_fn != NULL */
    bool retains_grad;
    bool no_grad_view;        /* a view made under no_grad: in-place errors differ */
    bool is_parameter;        /* the Python room's */
    bool own_version;         /* made by .data: writes through it, or views of it, leave the version alone */
    uint16_t output_nr;       /* of grad_fn */
    uint32_t view_version;    /* storage version when grad_fn of a view was made */
    tr_node *grad_fn;         /* retained; NULL for leaves */
    tr_node *accumulator;     /* a leaf's AccumulateGrad; its own, from the first use in a graph on */
    tr_tensor *grad;          /* retained; NULL: None */
    tr_tensor *base;          /* retained: what this is a differentiable view of */
    tr_tensor *lower;         /* retained: autocast's cast of this leaf, until its region ends */
    tr_hook *hooks;           /* on this tensor's gradient, run in order of registration */
    void *py;                 /* its Python object, borrowed; the Python room sets and clears it */
};

TR_API void tr_tensor_retain(tr_tensor *t);
TR_API void tr_tensor_release(tr_tensor *t); /* takes; NULL allowed */
static inline bool tr_tensor_is_leaf(const tr_tensor *t) { return t->grad_fn == NULL; }

/* A new, uninitialised tensor, row-major. New reference. */
TR_API tr_status tr_tensor_empty(const tr_meta *meta, tr_tensor **out);
/* A feed: copies meta->numel row-major elements from `data` (meta row-major). New reference. */
TR_API tr_status tr_tensor_from_host(const tr_meta *meta, const void *data, tr_tensor **out);
/* Shares the owner's memory (from_numpy, DLPack): `data` is the first element; `bytes` after it belong to the storage. An op
 * that reads the tensor copies at the call, one that writes it completes before it returns. `release(owner)` is called with
 * the GIL held when the last reference is gone. */
TR_API tr_status tr_tensor_from_shared(const tr_meta *meta, void *data, size_t bytes, void *owner,
                                       void (*release)(void *owner), tr_tensor **out);
/* Another tensor over the same storage, outside autograd: `.data`, detach without a node, set_(). New reference. */
TR_API tr_status tr_tensor_alias(tr_tensor *t, const tr_meta *meta, int64_t offset, tr_tensor **out);
/* `.data = other`: t takes other's storage, meta and offset; keeps its autograd state. */
TR_API tr_status tr_tensor_set_data(tr_tensor *t, tr_tensor *other);
/* The storage's version counter (Tensor._version), and adding one to it for writes from outside. */
TR_API uint32_t tr_tensor_version(const tr_tensor *t);
TR_API void tr_tensor_bump_version(tr_tensor *t);
TR_API bool tr_tensor_same_storage(const tr_tensor *a, const tr_tensor *b);
TR_API size_t tr_tensor_storage_bytes(const tr_tensor *t);

/* A fetch: waits for t and copies its elements, row-major, to `data`. Blocks. Raises what the executor met. */
TR_API tr_status tr_tensor_read(tr_tensor *t, void *data);
/* A fetch of one element (numel must be 1): as double where t is of a floating dtype, else int64. Blocks. */
TR_API tr_status tr_tensor_item(tr_tensor *t, tr_number *out);
/* Waits for t and gives the address of its first element, and from now on treats its storage as shared with the outside
 * (numpy(), DLPack export) until tr_tensor_unexport(). Blocks. */
TR_API tr_status tr_tensor_export(tr_tensor *t, void **data);
TR_API void tr_storage_retain(tr_storage *s);
TR_API void tr_storage_unexport(tr_storage *s); /* takes the reference and the export that a capsule or array held */
/* Waits until every call so far has run; raises what was met. Blocks. */
TR_API tr_status tr_synchronize(void);

/* ------------------------------------------------------------------------------------------------ calls */

/* tensor != NULL: a tensor (borrowed). Else meta != NULL: a number (0-dim meta from tr_number_meta). Else absent. */
typedef struct tr_input {
    tr_tensor *tensor;
    const tr_meta *meta;
    tr_number number;
} tr_input;

static inline tr_input tr_in(tr_tensor *t) { return (tr_input){.tensor = t}; }
TR_API tr_input tr_in_double(double v);
TR_API tr_input tr_in_int(int64_t v);
TR_API tr_input tr_in_bool(bool v);

/* Calls an op: in[n_in] in the schema's operand order (tensor lists at the end), attrs the slots of the schema (NULL if
 * none). `given`: the result's meta for class NEW, else NULL. in_place: operand 0 takes the result (ops exposed with I);
 * out[0] then is operand 0 itself, retained. out receives n_outputs new references (for ops that write an operand and have
 * no results, and for in-place calls: out[0] = the first written operand, retained). `out` entries may be NULL pointers on
 * entry. Views: class VIEW ops give tensors that share storage. */
TR_API tr_status tr_apply(tr_op op, const tr_input *in, int n_in, const int64_t *attrs, const tr_meta *given, bool in_place,
                          tr_tensor **out);

/* Wraps a dimension: d in [-n, n) or IndexError as PyTorch words it (n 0 counts as 1). */
TR_API tr_status tr_wrap_dim(int64_t d, int n, int64_t *out);
/* PyTorch's result type of operands (tensors, 0-dim tensors, numbers: torch.result_type). */
TR_API tr_dtype tr_result_type(const tr_input *in, int n);

/* Composites that are hot (tracer/composite.c): each calls ops above. New references. */
TR_API tr_status tr_reshape(tr_tensor *t, int ndim, const int64_t *shape, tr_tensor **out); /* one -1 allowed; view or copy */
TR_API tr_status tr_view(tr_tensor *t, int ndim, const int64_t *shape, tr_tensor **out);    /* one -1 allowed */
TR_API tr_status tr_expand(tr_tensor *t, int ndim, const int64_t *shape, tr_tensor **out);  /* -1: keep */
TR_API tr_status tr_permute(tr_tensor *t, const int64_t *dims, tr_tensor **out);
TR_API tr_status tr_contiguous(tr_tensor *t, tr_tensor **out);      /* t itself when it is */
TR_API tr_status tr_to_dtype(tr_tensor *t, tr_dtype dtype, tr_tensor **out); /* t itself when it has it */
TR_API tr_status tr_matmul(tr_tensor *a, tr_tensor *b, tr_tensor **out);
TR_API tr_status tr_linear(tr_tensor *x, tr_tensor *w, tr_tensor *b, tr_tensor **out); /* b NULL: none */
/* Advanced indexing: index[i] NULL for a full slice of dimension i, else int64 or bool/uint8 (mask; fetches its count,
 * blocks). n <= t's ndim. */
TR_API tr_status tr_index_get(tr_tensor *t, tr_tensor *const *index, int n, tr_tensor **out);
TR_API tr_status tr_index_put(tr_tensor *t, tr_tensor *const *index, int n, tr_input value, bool accumulate);
TR_API tr_status tr_nonzero(tr_tensor *t, tr_tensor **out); /* int64 [n, ndim]; blocks */

/* ------------------------------------------------------------------------------------------------ autocast */

/* A thread's state, which it reads and sets. Casts are ops like any other, recorded and differentiated. */
typedef struct tr_autocast {
    bool enabled;
    bool cache;     /* a leaf is cast once in a region, and the cast reused */
    tr_dtype lower;
    int nesting;    /* of regions, enabled or not */
} tr_autocast;
TR_API tr_autocast *tr_autocast_state(void);
/* What an op of this policy is given of t: a cast, or t itself. New reference. */
TR_API tr_status tr_autocast_operand(tr_autocast_policy policy, tr_tensor *t, tr_tensor **out);
/* Forgets the casts that are kept: at the end of the outermost region. */
TR_API void tr_autocast_clear(void);

/* Lets large products of float32, from the next call on, be computed from bfloat16 copies of their factors where the processor
 * has instructions for it (set_float32_matmul_precision("medium")). The process's. */
TR_API void tr_set_products_lower(bool on);

/* ------------------------------------------------------------------------------------------------ autograd */

TR_API bool tr_grad_enabled(void);
TR_API bool tr_set_grad_enabled(bool on); /* returns the former */

/* Sets a leaf's flag; TR_E_RUNTIME for a non-leaf or a dtype without gradients, in PyTorch's words. */
TR_API tr_status tr_tensor_set_requires_grad(tr_tensor *t, bool on);
TR_API tr_status tr_tensor_retain_grad(tr_tensor *t);
/* Takes nothing; g NULL clears. Checks shape and dtype. */
TR_API tr_status tr_tensor_set_grad(tr_tensor *t, tr_tensor *g);

/* A gradient hook. `call(arg, grad, &replacement)`: grad borrowed; replacement (new reference) or NULL to keep. TR_E_PYTHON
 * passes a Python exception through. drop(arg) when removed. Returns an id for tr_tensor_remove_hook. */
typedef tr_status (*tr_hook_fn)(void *arg, tr_tensor *grad, tr_tensor **replacement);
TR_API tr_status tr_tensor_add_hook(tr_tensor *t, tr_hook_fn call, void *arg, void (*drop)(void *arg), uint64_t *id);
TR_API tr_status tr_tensor_add_post_accumulate_hook(tr_tensor *t, tr_hook_fn call, void *arg, void (*drop)(void *arg),
                                                    uint64_t *id);
TR_API void tr_tensor_remove_hook(tr_tensor *t, uint64_t id);

/* Reverse pass from roots. grads[i] NULL: ones for a scalar root, else an error. inputs NULL: accumulates into the leaves'
 * .grad; else out_grads[i] receives d roots / d inputs[i] (new reference; NULL where unused: the caller decides whether that is
 * an error) and nothing is accumulated. */
typedef struct tr_backward_args {
    tr_tensor *const *roots;
    tr_tensor *const *grads;
    int n_roots;
    tr_tensor *const *inputs;
    tr_tensor **out_grads;
    int n_inputs;
    bool accumulate;    /* inputs given, but accumulate into their .grad: backward(inputs=...) */
    bool retain_graph;
    bool create_graph;
} tr_backward_args;
TR_API tr_status tr_backward(const tr_backward_args *args);

/* A node of the host's own: autograd.Function. `backward(arg, n_out, grads, n_in, result)`: grads[i] borrowed, NULL for zero
 * (materialise with tr_zeros_like_output if wanted); result[i]: new reference or NULL. drop(arg) when the node dies. */
typedef struct tr_custom_node {
    const char *name;
    void *arg;
    tr_status (*backward)(void *arg, int n_out, tr_tensor *const *grads, int n_in, tr_tensor **result);
    void (*drop)(void *arg);
} tr_custom_node;
/* Connects outputs (made under no_grad) to inputs. Outputs that require no gradient are left alone when differentiable[i] is
 * false. An output that is also an input (mark_dirty) is rebased. node_out: borrowed, may be NULL. */
TR_API tr_status tr_custom_connect(const tr_custom_node *node, tr_tensor *const *inputs, int n_in, tr_tensor *const *outputs,
                                   const bool *differentiable, int n_out, tr_node **node_out);

/* For grad_fn's Python face. Nodes are counted like tensors. */
TR_API const char *tr_node_name(const tr_node *n); /* "MulBackward0" */
TR_API void tr_node_retain(tr_node *n);
TR_API void tr_node_release(tr_node *n);
TR_API int tr_node_n_next(const tr_node *n);
TR_API tr_node *tr_node_next(const tr_node *n, int i, int *output_nr); /* borrowed; NULL where none */
TR_API tr_tensor *tr_node_variable(const tr_node *n);                  /* AccumulateGrad: its leaf, borrowed; else NULL */
/* What a custom node holds (for the garbage collector); NULL for others. */
TR_API void *tr_node_custom_arg(const tr_node *n);

/* ------------------------------------------------------------------------------------------------ generators */

/* A generator is a tensor of bytes (uint8, sizeof(tr_generator) of kernel.h), passed where a schema says Generator?.
 * NULL there means the default one. */
TR_API tr_tensor *tr_default_generator(void); /* borrowed */
TR_API tr_status tr_generator_create(uint64_t seed, tr_tensor **out);
TR_API tr_status tr_generator_set_seed(tr_tensor *generator, uint64_t seed); /* in order with the draws */
TR_API tr_status tr_generator_draw64(tr_tensor *generator, uint64_t *out);   /* two words on the host, high first; blocks */

/* ------------------------------------------------------------------------------------------------ iterations */

/* An iteration ends here. `kind` orders automatic marks; `site` tells mark locations apart. Never changes results. */
typedef enum tr_mark_kind { TR_MARK_EXPLICIT, TR_MARK_OPTIMIZER, TR_MARK_DATALOADER, TR_MARK_BACKWARD } tr_mark_kind;
TR_API tr_status tr_mark(tr_mark_kind kind, uint32_t site);
/* Before and after os.fork(): drained, then in the child forgotten and started anew lazily. */
TR_API void tr_fork_prepare(void);
TR_API void tr_fork_parent(void);
TR_API void tr_fork_child(void);

/* ------------------------------------------------------------------------------------------------ for tests */

/* Called after every op that is not a view, with its first result (borrowed), not for ops that it calls itself; its failure
 * is the op's. NULL: none. */
TR_API void tr_set_op_hook(tr_status (*hook)(void *arg, tr_tensor *result), void *arg);
/* Stops the executor before its next command or instruction, until released, or until somebody waits for it. */
TR_API void tr_hold_executor(bool on);
/* Waits until the executor has run all that is ready. Blocks. */
TR_API void tr_wait_until_idle(void);

/* ------------------------------------------------------------------------------------------------ to see it */

typedef struct tr_stats {
    int64_t iterations_traced, iterations_coexecuted;
    int64_t ops, ops_from_plans;       /* ops that compute */
    int64_t views;                     /* ops that only make a view: nothing runs for them */
    int64_t instructions;              /* run from plans */
    int64_t instructions_shared;       /* of them, by others than the first executor */
    int64_t ops_covered;               /* by those instructions */
    int64_t bytes_elided;
    int64_t side_exits, shape_misses, fetches, demands, starvations;
    int64_t plans, compile_ns;
    int64_t skeleton_ops, skeleton_ns; /* time in dispatch while co-executing, sampled; ops of both kinds */
    int64_t bytes_live, bytes_peak;    /* of tensor memory, in use; the most ever */
    int64_t bytes_touched;             /* of the pages held for it, those that were ever used */
    int64_t allocations;               /* of tensor memory, by the executor */
    int64_t executors, threads;
} tr_stats;
TR_API void tr_stats_get(tr_stats *out);
TR_API void tr_stats_reset(void);
/* Text (explain), Graphviz of the last plans, both in tr_malloc memory, the caller's; NULL: no memory. */
TR_API char *tr_explain(void);
TR_API char *tr_graphviz(void);
TR_API char *tr_info(void);
/* See tr_exec_place. */
TR_API tr_status tr_set_executors(int n, int threads);
TR_API void tr_set_coexecution(bool on); /* off: tier 0 only */
TR_API void tr_set_sync(bool on);        /* TERRA_SYNC */

#endif
