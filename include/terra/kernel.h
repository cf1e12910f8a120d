/* kernel.h - what a kernel sees.
 *
 * A kernel runs on an executor thread, as leader of its OpenMP team, over resolved operands. It allocates nothing but
 * scratch, keeps nothing, takes no lock and never touches Python. Inputs may have any strides (also 0 and overlapping),
 * outputs any that do not overlap; in-place calls have out[0] == in[0]. Fresh outputs are uninitialised. Empty tensors come,
 * with data that may be NULL. A failure that only values can tell (an index out of range) is a status with detail; outputs
 * then are undefined, written operands unchanged. */
#ifndef TERRA_KERNEL_H
#define TERRA_KERNEL_H

#include "terra/op.h"

/* data: the first element, offset applied. NULL with meta: a number (at). meta NULL: absent. home: the elements lie in that
 * order instead of the meta's; comes only to convolutions' weights and their gradients, and, the same for all operands of
 * more than one element, to elementwise ops and optimizers, which need not care. To an optimizer the gradient alone may come as
 * bfloat16 (tr_home_is_bf16). copy: where a bfloat16 copy of all of the (contiguous float32) tensor is kept, which an optimizer
 * writes with its parameter; else NULL. */
typedef struct tr_arg {
    void *data;
    const tr_meta *meta;
    tr_number at;
    const tr_home *home;
    void *copy;
} tr_arg;

typedef struct tr_kernel_ctx tr_kernel_ctx;

typedef struct tr_kernel_call {
    tr_op op;
    tr_dtype cdtype;
    int n_in, n_out;
    const int64_t *attrs;
    const tr_arg *in;
    tr_arg *out;
    tr_kernel_ctx *ctx;
} tr_kernel_call;

typedef tr_status (*tr_kernel)(const tr_kernel_call *call);

struct tr_kernel_ctx {
    int threads;                                            /* of the team; kernels choose 1 for tiny work */
    bool planned;        /* by a plan: the same shapes will come again */
    void *(*scratch)(tr_kernel_ctx *ctx, size_t bytes);     /* 64-byte aligned, until the kernel returns; NULL: no memory */
    void *scratch_base;                                     /* the provider's */
    size_t scratch_used, scratch_size;
};

static inline double tr_arg_double(const tr_arg *a) { return a->meta->dtype == TR_F64 ? a->at.d : (double) a->at.i; }
static inline int64_t tr_arg_int(const tr_arg *a) { return a->meta->dtype == TR_F64 ? (int64_t) a->at.d : a->at.i; }

/* Chooses the instruction set and builds the table; once, before tr_kernel_of. `isa` NULL: the best that the machine has,
 * else "v2", "v3", "v4". */
TR_API tr_status tr_kernel_init(const char *isa);
TR_API const char *tr_kernel_isa(void);

/* Do products [m, k] x [k, n] of this dtype run on AMX's tiles, faster than the library's? Any thread. */
TR_API bool tr_product_by_tiles(tr_dtype dtype, int64_t m, int64_t n, int64_t k);

/* The kernel of an op; every op that is not a view has one. */
TR_API tr_kernel tr_kernel_of(tr_op op);
/* n calls of one op, in order. Optimizers' updates run in one parallel region, balanced by elements; nothing may alias
 * between them. */
TR_API tr_status tr_kernel_multi(tr_op op, const tr_kernel_call *calls, int n);

/* The halves of a _dropout: all words are drawn into the mask; then, for the whole or any slice of input, mask and result, the
 * product. */
TR_API tr_status tr_dropout_draw(const tr_kernel_call *call);
TR_API tr_status tr_dropout_apply(const tr_kernel_call *call);

/* ---- normalisation with what stands next to it, in one pass ----
 * Results are bit for bit those of the ops one after another (batch_norm, then add, then relu; and backwards), which is what op
 * by op execution gives. Absent operands have meta NULL. The caller owns all operands; nothing is kept. Called by an executor's
 * thread, like a kernel; uses the context's team and scratch. Images may lie in any way; without a copy only where all of them
 * are row-major or all have channels last, and are of one dtype. The value that is left out (what batch_norm alone would give) is
 * not written anywhere; bfloat16 is rounded where each op would round. layer_norm of a sum in bfloat16 is TR_E_NOTIMPL. Results
 * may lie where an operand of the same meta lies, if that is said. */
enum { TR_NORM_RELU = 1, TR_NORM_ADD = 2 };

/* y = relu(batch_norm(x) + other); flags tell which of relu and the addition there are. */
typedef struct tr_norm_forward {
    unsigned flags;
    bool training;
    double momentum, eps;
    tr_arg x;                         /* [N, C, ...] */
    tr_arg weight, bias;              /* [C], may be absent */
    tr_arg running_mean, running_var; /* [C], read or updated, as batch_norm has them; may be absent in training */
    tr_arg other;                     /* x's shape and dtype; TR_NORM_ADD only */
    tr_arg y;                         /* result; may be x or other */
    tr_arg mean, inv;                 /* results [C], float32 (float64 for float64) */
} tr_norm_forward;

/* Of y = relu(batch_norm(x) + other): dx, dweight, dbias and d other, which is grad (+ residual) where y > 0. */
typedef struct tr_norm_backward {
    unsigned flags;
    bool training;
    tr_arg grad;           /* of y */
    tr_arg residual;       /* of y as well, by another way: added to grad first. May be absent; else there are y and dother */
    tr_arg y;              /* forward's result; TR_NORM_RELU only */
    tr_arg x, weight;      /* as forward had them */
    tr_arg mean, inv;      /* forward's results */
    tr_arg dx;             /* result; may be grad or x, not y */
    tr_arg dweight, dbias; /* results [C]; may be absent */
    tr_arg dother;         /* result, x's shape: the masked gradient; absent: not wanted; may be grad or residual (dx then
                            * isn't) */
} tr_norm_backward;

/* sum = x + other; y = layer_norm(sum). other absent: y = layer_norm(x), and sum is absent too. */
typedef struct tr_layer_norm_forward {
    int normalized_ndim;
    double eps;
    tr_arg x, other;     /* one shape and dtype */
    tr_arg weight, bias; /* may be absent */
    tr_arg sum, y;       /* results; sum may be x or other */
    tr_arg mean, inv;    /* results, as layer_norm has them */
} tr_layer_norm_forward;

TR_API tr_status tr_norm_forward_fused(const tr_norm_forward *f, tr_kernel_ctx *ctx);
TR_API tr_status tr_norm_backward_fused(const tr_norm_backward *f, tr_kernel_ctx *ctx);
TR_API tr_status tr_layer_norm_fused(const tr_layer_norm_forward *f, tr_kernel_ctx *ctx);

/* ---- generator state: the bytes of a Generator's storage (uint8, sizeof(tr_generator)) ---- */
typedef struct tr_generator {
    uint32_t mt[624];
    uint32_t at;            /* next word */
    uint32_t has_normal;    /* a float64 Box-Muller's second value is cached */
    double normal;
    uint64_t seed;
} tr_generator;
TR_API void tr_generator_seed(tr_generator *g, uint64_t seed);
TR_API uint32_t tr_generator_word(tr_generator *g);

/* ---- fused elementwise programs ----
 * Several elementwise ops over one iteration space, tile by tile, in registers of the L1 cache. The kernels of single
 * elementwise ops are programs of one step. A step's operand: >= 0 an argument of the program, < 0 the result of step ~i;
 * TR_EW_ABSENT none. Its result takes `dtype` (rounded to it, as if stored), and is stored to argument `store`, if >= 0. */
enum { TR_EW_MAX_STEPS = 48, TR_EW_MAX_ARGS = 32, TR_EW_ABSENT = INT16_MAX };
typedef struct tr_ew_step {
    uint16_t op;        /* an op of class EW that is fusible */
    uint8_t cdtype;
    uint8_t dtype;
    int16_t in[5];
    int16_t store;
    int64_t attr;       /* the first attribute slot */
} tr_ew_step;
typedef struct tr_ew_program {
    uint16_t n_steps, n_args;
    tr_ew_step steps[TR_EW_MAX_STEPS];
} tr_ew_program;

/* Can this op be a step with these dtypes? */
TR_API bool tr_ew_fusible(tr_op op, tr_dtype cdtype, tr_dtype out);
/* Runs a program over the shape of `space`. args[i] is broadcastable to it (metas as of the call; numbers allowed).
 * A number argument has data NULL. An argument that is stored and loaded (in place) must be the same elements. */
TR_API tr_status tr_ew_run(const tr_ew_program *program, const tr_meta *space, const tr_arg *args, tr_kernel_ctx *ctx);

#endif
