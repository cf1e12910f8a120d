/* kernels.h - what the kernels share among themselves: the parallel loop, dense copies of operands, and the names of the
 * kernels, which come from the op table.
 *
 * Most kernels are written for row-major operands of one element type. tr__dense_in hands such a view of any operand: the
 * operand itself where it already is one, else a copy in scratch. Hot layouts get their own path inside a kernel. */
#ifndef TERRA_EXEC_KERNELS_H
#define TERRA_EXEC_KERNELS_H

#include "terra/kernel.h"

#include <string.h>

/* ---- the kernels, by name: a row of the op table without one is a link error ----
 * Kernels of most classes lie in isa_*.c, compiled once per instruction set: tr__kernel_sum_v4. Matrix products,
 * convolutions and new tensors have one form. */
#define TR__CAT_(a, b)     a##_##b
#define TR__CAT(a, b)      TR__CAT_(a, b)
#define TR__SUFFIXED(name) TR__CAT(name, TR_ISA)
#define TR__KERNEL(id)     tr_status tr__kernel_##id(const tr_kernel_call *c)
#ifdef TR_ISA
#define TR__ISA_KERNEL(id)  tr_status TR__SUFFIXED(tr__kernel_##id)(const tr_kernel_call *c)
#define TR__DECLARE_ISA(id) TR__ISA_KERNEL(id);
#else
#define TR__DECLARE_ISA(id)
#endif
#define TR__DECLARE_EW(id)
#define TR__DECLARE_VIEW(id)
#define TR__DECLARE_MM(id)                          TR__KERNEL(id);
#define TR__DECLARE_CONV(id)                        TR__KERNEL(id);
#define TR__DECLARE_NEW(id)                         TR__KERNEL(id);
#define TR__DECLARE_RED(id)                         TR__DECLARE_ISA(id)
#define TR__DECLARE_POOL(id)                        TR__DECLARE_ISA(id)
#define TR__DECLARE_NORM(id)                        TR__DECLARE_ISA(id)
#define TR__DECLARE_SOFT(id)                        TR__DECLARE_ISA(id)
#define TR__DECLARE_IDX(id)                         TR__DECLARE_ISA(id)
#define TR__DECLARE_RAND(id)                        TR__DECLARE_ISA(id)
#define TR__DECLARE_OPTIM(id)                       TR__DECLARE_ISA(id)
#define TR__DECLARE_LOSS(id)                        TR__DECLARE_ISA(id)
#define TR_OP(id, expose, class, rule, vjp, schema) TR__DECLARE_##class(id)
#include "terra/ops.def"
#undef TR_OP
tr_status tr__kernel_elementwise(const tr_kernel_call *c);
#ifdef TR_ISA
tr_status TR__SUFFIXED(tr__update_all)(tr_op op, const tr_kernel_call *calls, int n);
tr_status TR__SUFFIXED(tr__dropout_draw)(const tr_kernel_call *c);
tr_status TR__SUFFIXED(tr__dropout_apply)(const tr_kernel_call *c);
tr_status TR__SUFFIXED(tr__norm_forward)(const tr_norm_forward *f, tr_kernel_ctx *ctx);
tr_status TR__SUFFIXED(tr__norm_backward)(const tr_norm_backward *f, tr_kernel_ctx *ctx);
tr_status TR__SUFFIXED(tr__layer_norm_forward)(const tr_layer_norm_forward *f, tr_kernel_ctx *ctx);
#endif

/* ---- threads ---- */

/* fn(env, begin, end, thread) over disjoint ranges that cover 0 .. n-1, in one parallel region of the whole team; serially
 * when n < 2 * grain. Ranges are ordered by thread and depend on n and the team's size only. */
typedef void (*tr__range_fn)(void *env, int64_t begin, int64_t end, int thread);
void tr__parallel(tr_kernel_ctx *ctx, int64_t n, int64_t grain, tr__range_fn fn, void *env);
/* The same over single units of much work, each to the thread that comes first: cores are not always equally fast. Results may
 * not depend on who does what. */
void tr__parallel_units(tr_kernel_ctx *ctx, int64_t n, int64_t grain, tr__range_fn fn, void *env);
/* The same as tr__parallel, but that each thread takes its part in pieces, and then what others have left: for short work on much
 * memory, where one thread is often a little late. fn is called several times in a thread; results may not depend on who does what. */
void tr__parallel_pieces(tr_kernel_ctx *ctx, int64_t n, int64_t grain, tr__range_fn fn, void *env);
/* How many threads each takes. */
int tr__parallel_width(const tr_kernel_ctx *ctx, int64_t n, int64_t grain);

/* Scratch for each thread by itself, lines of the cache apart. */
typedef struct tr__rooms {
    char *first;
    size_t each; /* bytes */
} tr__rooms;
static inline void *tr__room_of(const tr__rooms *r, int thread) {
    return r->first + (size_t) thread * r->each;
}
/* tr__parallel_units, for which every thread that takes part has `bytes` of scratch: *rooms, which env may hold, is filled first. */
tr_status tr__parallel_rooms(const tr_kernel_call *c, int64_t n, int64_t grain, size_t bytes, tr__rooms *rooms, tr__range_fn fn,
                             void *env);

enum { TR__GRAIN = 48 * 1024 }; /* elements of simple work worth a thread */

/* ---- memory ---- */

/* Scratch until the kernel returns; NULL with detail when there is no memory. */
void *tr__scratch(const tr_kernel_call *c, size_t bytes);

/* A meta on the stack: kernels may not intern. `strides` NULL: row-major. */
void tr__meta_make(tr_meta *m, tr_dtype dtype, int ndim, const int64_t *shape, const int64_t *strides);

/* Does [N, C, ...] lie pixel after pixel, each with its channels, densely? One pixel or one channel lies so in either order. */
bool tr__has_channels_last(const tr_meta *m);

/* dst = src, broadcast and cast. */
tr_status tr__copy(tr_kernel_ctx *ctx, const tr_arg *dst, const tr_arg *src);
/* All of a contiguous float tensor, rounded to bfloat16. */
tr_status tr__copy_as_bf16(tr_kernel_ctx *ctx, void *to, const tr_arg *src);
tr_status tr__fill(tr_kernel_ctx *ctx, const tr_arg *dst, tr_dtype kind, tr_number value);

/* A row-major view of `a` as `dtype`: its own memory if it is that already. */
tr_status tr__dense_in(const tr_kernel_call *c, const tr_arg *a, tr_dtype dtype, const void **data);
/* Row-major memory to write a's value to, as `dtype`; tr__dense_out_end brings it to `a`. The _inout form starts with
 * a's present value. */
tr_status tr__dense_out(const tr_kernel_call *c, const tr_arg *a, tr_dtype dtype, void **data);
tr_status tr__dense_inout(const tr_kernel_call *c, const tr_arg *a, tr_dtype dtype, void **data);
tr_status tr__dense_out_end(const tr_kernel_call *c, const tr_arg *a, tr_dtype dtype, void *data);

/* Runs a kernel on float32 copies of the call's bfloat16 operands, which lie as those do; results are rounded once. Not for ops
 * that write operands. */
tr_status tr__widened(const tr_kernel_call *c, tr_kernel kernel);
static inline bool tr__is_bf16(const tr_arg *a) {
    return a->meta->dtype == TR_BF16;
}

/* What an op computes in, among float, double and int64: the memory type of the class. */
static inline tr_dtype tr__wide(tr_dtype d) {
    return d == TR_BF16 ? TR_F32 : d < TR_BF16 ? TR_I64 : d;
}
static inline bool tr__absent(const tr_arg *a) {
    return !a->meta;
}
static inline int64_t tr__min(int64_t a, int64_t b) {
    return a < b ? a : b;
}
static inline int64_t tr__max(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* A tensor seen as [outer, size, inner] around a dimension; [1, 1, 1] when 0-dimensional. */
typedef struct tr__axis {
    int64_t outer, size, inner;
} tr__axis;
tr__axis tr__axis_of(const tr_meta *m, int64_t dim);

/* ---- convolutions of our own (isa_conv.c) ---- */

enum { TR__CONV_PANEL = 16 }; /* of weights, at least */

/* A float32 convolution or a derivative: src [n, size, ci] and dst [n, out, co] lie channels last, densely; weights in panels [co
 * / panel, kernel, ci, panel], panel being tr__conv_panel(co). ci and co are multiples of TR__CONV_PANEL. The weights' derivative
 * also takes fewer channels in; src lies anyhow then, by its strides [n, ci, size], and dilation[1] is 1. Index 0: height, 1:
 * width. The derivatives write src or weights. */
typedef struct tr__conv {
    int64_t n, ci, co, size[2], out[2], kernel[2], stride[2], padding[2], dilation[2];
    int64_t src_strides[4];
    const float *src, *weights, *bias; /* bias [co], or NULL */
    float *dst;
} tr__conv;

/* The same of bfloat16 images, by AVX512-BF16 (isa_conv_bf16.c): `of` has the sizes and the bias; weights [co, ci, kernel] lie at
 * these strides. */
typedef struct tr__conv_bf16 {
    tr__conv of;
    uint16_t *src, *weights, *dst;
    int64_t strides[4];
} tr__conv_bf16;

/* Does this processor multiply pairs of bfloat16? Kernels that do are compiled from v4 on (isa_bf16.h). Any thread. */
bool tr__has_avx512_bf16(void);
/* May kernels multiply AMX's tiles of bfloat16 (isa_amx.h)? Not under TERRA_ISA=v4. Any thread. */
bool tr__has_amx(void);

#ifdef TR_ISA
tr_status TR__SUFFIXED(tr__convolve)(const tr_kernel_call *c, tr_op op, const tr__conv *v);
/* The same with fewer products, where they can be spared (isa_conv_winograd.c); *done: they could, and all results are finite. */
tr_status TR__SUFFIXED(tr__convolve_squares)(const tr_kernel_call *c, tr_op op, const tr__conv *v, bool *done);
tr_status TR__SUFFIXED(tr__convolve_bf16)(const tr_kernel_call *c, tr_op op, const tr__conv_bf16 *v);
tr_status TR__SUFFIXED(tr__convolve_tiles)(const tr_kernel_call *c, tr_op op, const tr__conv_bf16 *v); /* isa_conv_amx.c */
#endif

/* ---- panels of columns (isa_columns.c) ---- */

/* A matrix [k, n] of float32, `step` elements from a row to the next, and where it is wanted: [n / width, rows, width], zeros
 * beyond its k rows and n columns. With `pairs` it is of bfloat16, and wanted as [n / width, rows / 2, width, 2]. */
typedef struct tr__columns {
    const void *from;
    void *to;
    int64_t k, n, step, width, rows;
    bool pairs;
} tr__columns;

#ifdef TR_ISA
void TR__SUFFIXED(tr__pack_columns)(tr_kernel_ctx *ctx, const tr__columns *m);
#endif

/* ---- products by tiles (isa_product.c) ---- */

/* y [m, n], row-major, = alpha * a [m, k] b [k, n] + bias [n] + beta * y, computed from bfloat16 factors with sums in float32.
 * Factors lie at these steps, in elements, one of either's two being 1; a_wide, b_wide: in float32, to be rounded, or with `split`,
 * both, to be taken as they are. y, and the bias, which may be NULL, are of float32 if `wide` and `bias_wide`, else of bfloat16. */
typedef struct tr__tile_product {
    int64_t m, n, k, a_row, a_column, b_row, b_column;
    const void *a, *b, *bias;
    void *y;
    float alpha, beta;
    bool a_wide, b_wide, split, wide, bias_wide;
} tr__tile_product;

#ifdef TR_ISA
/* *exact false: `split` met numbers that it can't take. y holds anything then. */
tr_status TR__SUFFIXED(tr__multiply)(const tr_kernel_call *c, const tr__tile_product *p, bool *exact);
#endif

/* ---- elementwise step functions, one table per instruction set (isa_ew.c) ---- */
typedef enum tr__class { TR__F, TR__D, TR__L, TR__B, TR__CLASSES } tr__class;

/* One step over one tile. Bit k of `scalar`: in[k] is one value. */
typedef struct tr__ew_tile {
    void *out;
    const void *in[5];
    int64_t n;
    int64_t attr;
    uint32_t scalar;
    bool bf16; /* the step computes for bfloat16 */
} tr__ew_tile;
typedef void (*tr__ew_fn)(const tr__ew_tile *t);
typedef struct tr__ew_entry {
    tr__ew_fn fn;
    uint8_t scalar_ok; /* operands that may be one value */
    uint8_t mask;      /* operands taken as booleans */
    uint8_t bool_out;
} tr__ew_entry;

/* Loads n elements at a stride, stores them, rounds a register to a dtype. */
typedef void (*tr__ew_load)(void *dst, const void *src, int64_t stride, int64_t n);
typedef void (*tr__ew_store)(void *dst, int64_t stride, const void *src, int64_t n);
typedef void (*tr__ew_round)(void *dst, const void *src, int64_t n);

typedef struct tr__isa {
    const char *name;
    tr__ew_entry ew[TR_OP_COUNT][TR__CLASSES];
    tr__ew_load load[TR_DTYPE_COUNT][TR__CLASSES];
    tr__ew_store store[TR_DTYPE_COUNT][TR__CLASSES];
    tr__ew_round round[TR__CLASSES][TR_DTYPE_COUNT]; /* result has the dtype's own class */
    tr_kernel kernel[TR_OP_COUNT];
    tr_status (*update_all)(tr_op op, const tr_kernel_call *calls, int n); /* optimizers */
    tr_status (*dropout_draw)(const tr_kernel_call *c), (*dropout_apply)(const tr_kernel_call *c);
    tr_status (*norm_forward)(const tr_norm_forward *f, tr_kernel_ctx *ctx);
    tr_status (*norm_backward)(const tr_norm_backward *f, tr_kernel_ctx *ctx);
    tr_status (*layer_norm_forward)(const tr_layer_norm_forward *f, tr_kernel_ctx *ctx);
    void (*pack_columns)(tr_kernel_ctx *ctx, const tr__columns *m);
    tr_status (*convolve)(const tr_kernel_call *c, tr_op op, const tr__conv *v); /* NULL: the library's */
    int64_t conv_panel;                                                          /* of its weights, at best */
    /* NULL, or not for this processor: the library's as well. By tiles if there are any. */
    tr_status (*convolve_bf16)(const tr_kernel_call *c, tr_op op, const tr__conv_bf16 *v);
    tr_status (*convolve_tiles)(const tr_kernel_call *c, tr_op op, const tr__conv_bf16 *v);
    tr_status (*multiply)(const tr_kernel_call *c, const tr__tile_product *p, bool *exact);
} tr__isa;
extern const tr__isa *tr__isa_now;

/* Channels out of a panel of weights, of `co` in all. */
static inline int64_t tr__conv_panel(int64_t co) {
    return co % tr__isa_now->conv_panel ? TR__CONV_PANEL : tr__isa_now->conv_panel;
}

static inline tr__class tr__class_of(tr_dtype d) {
    return d == TR_BOOL ? TR__B : d == TR_F64 ? TR__D : d >= TR_BF16 ? TR__F : TR__L;
}
static inline size_t tr__class_size(tr__class c) {
    return c == TR__F ? 4 : c == TR__B ? 1 : 8;
}

/* ---- bf16 ---- */
static inline float tr__bf16_to_f32(uint16_t h) {
    uint32_t u = (uint32_t) h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static inline uint16_t tr__f32_to_bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    uint32_t rounded = (u + 0x7fffu + (u >> 16 & 1)) >> 16;
    return (uint16_t) (f != f ? 0x7fc0u : rounded);
}

#endif
