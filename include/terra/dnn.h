/* dnn.h - oneDNN's convolutions, matrix products and reorders, as objects that a plan can hold.
 *
 *   layout  how a tensor lies in memory: plain strides, or one of the library's blocked formats. Opaque, immutable.
 *   op      a primitive, compiled for shapes, layouts, post-ops and a number of threads, with its memory objects. Its ports
 *           are named for the forward operation: a backward-data convolution reads DST and WEIGHTS and writes SRC, a
 *           backward-weights one reads SRC and DST and writes WEIGHTS (and BIAS).
 *
 * A spec that leaves a layout NULL lets the library choose; tr_dnn_op_layout then tells what it chose, and tr_dnn_reorder
 * gets tensors there. A blocked layout may be bigger than its tensor: tr_dnn_layout_bytes; its padding must be zero, which
 * reorders and the library's own results see to.
 *
 * An op may be created by any thread (the compile thread sets its OpenMP team size first, see `threads`), and is run by one
 * thread at a time: an executor's. Everything returns a status; nothing throws; what the library refuses is TR_E_NOTIMPL.
 * An op that would run a reference implementation, or emulate bfloat16, is refused too, unless `slow` is set: references are a
 * thousand times slower. */
#ifndef TERRA_DNN_H
#define TERRA_DNN_H

#include "terra/op.h"

typedef struct tr_dnn_layout tr_dnn_layout;
typedef struct tr_dnn_op tr_dnn_op;

/* ---- layouts ---- new ones are the caller's */

/* Of a strided tensor. Strides of dimensions longer than 1 must be positive and not overlap (TR_E_NOTIMPL). */
TR_API tr_status tr_dnn_layout_create(const tr_meta *meta, tr_dnn_layout **out);
/* Of a convolution's weights [CO, CI / groups, KH, KW], which the library wants as five dimensions when groups > 1. */
TR_API tr_status tr_dnn_layout_create_weights(const tr_meta *meta, int64_t groups, tr_dnn_layout **out);
TR_API tr_status tr_dnn_layout_clone(const tr_dnn_layout *layout, tr_dnn_layout **out);
TR_API void tr_dnn_layout_destroy(tr_dnn_layout *layout);
TR_API bool tr_dnn_layout_equal(const tr_dnn_layout *a, const tr_dnn_layout *b);
TR_API size_t tr_dnn_layout_bytes(const tr_dnn_layout *layout);
/* Is it plain strides (then our own kernels can work on it)? */
TR_API bool tr_dnn_layout_is_plain(const tr_dnn_layout *layout);
/* A blocked layout as our kernels see it: the elements lie densely in [outer dims..., inner blocks], which is a shape and
 * strides of up to 2 * TR_MAX_DIMS dimensions. Elementwise work over equal layouts needs no more than the bytes. */
TR_API const char *tr_dnn_layout_print(const tr_dnn_layout *layout, char *text, size_t size); /* "f32 16x64:aBcd16b" */

/* ---- ops ---- */

typedef enum tr_dnn_port {
    TR_DNN_SRC,
    TR_DNN_WEIGHTS,
    TR_DNN_BIAS,
    TR_DNN_DST,
    TR_DNN_OTHER0, /* second operands of binary post-ops, in their order */
    TR_DNN_OTHER1,
    TR_DNN_OTHER2,
    TR_DNN_OTHER3,
    TR_DNN_PORTS,
} tr_dnn_port;

/* What happens to the result before it is stored, in order. */
typedef enum tr_dnn_post_kind {
    TR_DNN_POST_SUM,    /* + a * what DST held */
    TR_DNN_POST_LINEAR, /* a * x + b */
    TR_DNN_POST_RELU,
    TR_DNN_POST_GELU, /* erf */
    TR_DNN_POST_GELU_TANH,
    TR_DNN_POST_ADD, /* + the tensor at the next OTHER port, broadcast over dimensions of 1 */
    TR_DNN_POST_MUL,
} tr_dnn_post_kind;

typedef struct tr_dnn_post {
    tr_dnn_post_kind kind;
    float a, b;
    const tr_dnn_layout *other; /* ADD, MUL; borrowed while creating */
} tr_dnn_post;
enum { TR_DNN_MAX_POSTS = 4 };

typedef enum tr_dnn_direction {
    TR_DNN_FORWARD,
    TR_DNN_BACKWARD_DATA,
    TR_DNN_BACKWARD_WEIGHTS,
} tr_dnn_direction;

/* Does the processor multiply bfloat16 at a higher rate than float32? */
TR_API bool tr_dnn_has_fast_bf16(void);

/* Layouts NULL: the library's choice. Borrowed while creating. dtype is that of src, weights and dst (F32 or BF16). */
typedef struct tr_dnn_conv_spec {
    tr_dnn_direction direction;
    tr_dtype dtype;
    int64_t n, ci, h, w, co, kh, kw, oh, ow;
    int64_t stride[2], padding[2], dilation[2], groups;
    bool bias;
    bool slow;
    int n_posts;
    int threads;
    tr_dnn_post posts[TR_DNN_MAX_POSTS];
    const tr_dnn_layout *src, *weights, *dst;
} tr_dnn_conv_spec;

/* dst [batch, m, n] = src [batch, m, k] * weights [batch, k, n]; batch 0: two dimensions. Batches of 1 are broadcast. dtype is
 * that of src and weights, and of dst unless its layout says another. */
typedef struct tr_dnn_matmul_spec {
    tr_dtype dtype;
    int64_t batch, src_batch, weights_batch, m, n, k;
    bool bias; /* [n], F32 or as dtype */
    bool bias_f32;
    bool slow;
    int n_posts;
    int threads;
    tr_dnn_post posts[TR_DNN_MAX_POSTS];
    const tr_dnn_layout *src, *weights, *dst;
} tr_dnn_matmul_spec;

TR_API tr_status tr_dnn_conv_create(const tr_dnn_conv_spec *spec, tr_dnn_op **out);
TR_API tr_status tr_dnn_matmul_create(const tr_dnn_matmul_spec *spec, tr_dnn_op **out);
/* SRC to DST, in another layout or another float dtype. */
TR_API tr_status tr_dnn_reorder_create(const tr_dnn_layout *from, const tr_dnn_layout *to, int threads, tr_dnn_op **out);
TR_API void tr_dnn_op_destroy(tr_dnn_op *op);

/* The layout of a port; NULL: no such port. Borrowed. */
TR_API const tr_dnn_layout *tr_dnn_op_layout(const tr_dnn_op *op, tr_dnn_port port);
TR_API size_t tr_dnn_op_scratch(const tr_dnn_op *op);   /* bytes */
TR_API const char *tr_dnn_op_impl(const tr_dnn_op *op); /* "brg:avx512_core" */

/* Runs on the calling thread and its team. data[port] for the op's ports; scratch of tr_dnn_op_scratch bytes, 64-aligned. */
TR_API tr_status tr_dnn_op_run(tr_dnn_op *op, void *const data[TR_DNN_PORTS], void *scratch);

/* ---- homes ----
 *
 * A tensor that plans read in one blocked layout, iteration after iteration (a convolution's weights; with them their
 * gradients and their optimizer's state), is kept in it: its home. Padding is refused, so that a home is a permutation of the
 * elements, and elementwise work over tensors of one home need not know of it. Interned (compared by address), immutable,
 * never freed.
 *
 * Another home is bfloat16 in the program's order, for a float32 tensor that a cast has made of bfloat16: nothing is lost, and half
 * of the memory is touched. A product's gradient is kept so for the optimizer.
 *
 * The third is the program's order with a bfloat16 copy beside it (tr_storage): parameters that an iteration casts and updates. */

/* What the library chooses for the weights of a forward convolution between images that look so. TR_E_NOTIMPL: it takes them
 * as they are, or would pad them. Any thread. `team`: the executor's threads. */
TR_API tr_status tr_home_of_weights(const int64_t *attrs, const tr_meta *src, const tr_meta *weights, const tr_meta *dst,
                                    bool bias, int team, const tr_home **out);
/* bfloat16, of a contiguous float32 tensor. Any thread. */
TR_API tr_status tr_home_of_bf16(const tr_meta *meta, const tr_home **out);
TR_API bool tr_home_is_bf16(const tr_home *home); /* NULL: no */
/* With a bfloat16 copy beside it. Any thread. */
TR_API tr_status tr_home_with_copy(const tr_meta *meta, const tr_home **out);
TR_API bool tr_home_has_copy(const tr_home *home); /* NULL: no */
/* Compiles a convolution or a derivative as its kernel will when it comes with weights at `home`, so that the library has it
 * at hand; TR_E_NOTIMPL: it can't. Looks of src, weights, dst. Any thread. */
TR_API tr_status tr_dnn_conv_warm(tr_op op, const int64_t *attrs, const tr_meta *const looks[3], bool bias,
                                  const tr_home *home, int team);
/* Rearranges a whole tensor in place, from the program's order into its home's and back, through `spare` (tr_home_bytes of
 * them, 64-aligned). One thread at a time: the executor's. On failure the tensor is as it was. */
TR_API tr_status tr_home_enter(const tr_home *home, void *data, void *spare);
TR_API tr_status tr_home_leave(const tr_home *home, void *data, void *spare);
TR_API size_t tr_home_bytes(const tr_home *home);
TR_API const tr_dnn_layout *tr_home_layout(const tr_home *home); /* borrowed; NULL: none of the library's */
TR_API const tr_meta *tr_home_meta(const tr_home *home);         /* of the tensor, as the program sees it */
TR_API const char *tr_home_print(const tr_home *home);           /* "f32 64x32x3x3:Acdb64a" */

/* ---- partitions ---- several ops as one, compiled through oneDNN's Graph API
 *
 * What the library fuses into a single partition: a convolution or matrix product with bias, then relu, gelu or an addition;
 * batch norm in training, then relu. Values are named by the caller's numbers; tensors lie with the strides of their metas.
 * Anything that doesn't end as one partition is TR_E_NOTIMPL. Created and run like ops. */
typedef struct tr_dnn_partition tr_dnn_partition;

enum { TR_DNN_MAX_VALUES = 40 };

/* An operand of a node: a value, >= 0, or a number (meta of 0 dimensions), or absent (meta NULL). */
typedef struct tr_dnn_operand {
    int32_t value;
    const tr_meta *meta;
    tr_number at;
} tr_dnn_operand;

/* An op, with operands as its schema has them: conv2d, mm, addmm (beta = alpha = 1, one row added), relu, gelu, tanh,
 * sigmoid, add (of equal shapes), batch_norm (training). */
typedef struct tr_dnn_node {
    tr_op op;
    int n_in, n_out;
    const int64_t *attrs;
    tr_dnn_operand in[TR_MAX_FIXED], out[TR_MAX_OUTPUTS];
} tr_dnn_node;

/* `kept`: values that must be stored; of the others only the last node's are. */
TR_API tr_status tr_dnn_partition_create(const tr_dnn_node *nodes, int n, const int32_t *kept, int n_kept, int threads,
                                         tr_dnn_partition **out);
/* The team for work of so many floating-point operations: one thread where waking others would cost more. */
TR_API int tr_dnn_threads(int team, double flops);
TR_API void tr_dnn_partition_destroy(tr_dnn_partition *partition);
/* The values that it reads or writes, in the order of `data`. Borrowed. */
TR_API int tr_dnn_partition_values(const tr_dnn_partition *partition, const int32_t **values);
TR_API tr_status tr_dnn_partition_run(tr_dnn_partition *partition, void *const *data);

#endif
