/* types.h - the nouns that every room shares.
 *
 *   dtype    what an element is. The table is ordered so that promotion of two tensors of the same rank class is `max`.
 *   meta     what a tensor looks like: dtype, shape, strides. Immutable and interned: equal metas are the same pointer,
 *            so comparing two tensors' looks is one comparison, and a command carries one word for them. Strides and
 *            offsets count elements, as in PyTorch.
 *   storage  what tensors share: bytes, a version counter, and where the executor keeps them. See exec.h.
 *   operand  how a call names a tensor: storage, meta and offset; or a number; or nothing.
 */
#ifndef TERRA_TYPES_H
#define TERRA_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "terra/status.h"

/* X(ID, name in Python, bytes, C type, printf name of PyTorch's legacy class). In the order of promotion. */
#define TR_DTYPE_MAP(X)                             \
    X(BOOL, "bool", 1, uint8_t, "Bool")             \
    X(U8, "uint8", 1, uint8_t, "Byte")              \
    X(I32, "int32", 4, int32_t, "Int")              \
    X(I64, "int64", 8, int64_t, "Long")             \
    X(BF16, "bfloat16", 2, uint16_t, "BFloat16")    \
    X(F32, "float32", 4, float, "Float")            \
    X(F64, "float64", 8, double, "Double")

typedef enum tr_dtype {
#define X(id, name, bytes, ctype, legacy) TR_##id,
    TR_DTYPE_MAP(X)
#undef X
    TR_DTYPE_COUNT
} tr_dtype;

enum { TR_MAX_DIMS = 8 };

static inline size_t tr_dtype_size(tr_dtype dtype) {
    static const uint8_t size[] = {
#define X(id, name, bytes, ctype, legacy) bytes,
        TR_DTYPE_MAP(X)
#undef X
    };
    return size[dtype];
}
static inline bool tr_dtype_is_float(tr_dtype dtype) { return dtype >= TR_BF16; }
static inline bool tr_dtype_is_int(tr_dtype dtype) { return dtype >= TR_U8 && dtype <= TR_I64; }
TR_API const char *tr_dtype_name(tr_dtype dtype);   /* "float32" */
TR_API const char *tr_dtype_legacy(tr_dtype dtype); /* "Float" */

typedef struct tr_meta {
    uint8_t dtype;      /* tr_dtype */
    uint8_t ndim;       /* 0 .. TR_MAX_DIMS */
    bool contiguous;    /* row-major, as PyTorch's is_contiguous() */
    bool dense;         /* a permutation of a contiguous tensor: no gaps, no overlap */
    uint32_t hash;
    int64_t numel;
    int64_t extent;     /* elements from the first to one past the last that it touches; 0 when empty */
    int64_t shape[TR_MAX_DIMS];
    int64_t strides[TR_MAX_DIMS];
    struct tr_meta *next; /* in its bucket of the intern table */
} tr_meta;

/* The one meta with these contents. NULL when there is no memory (with detail). `strides` NULL means row-major. Called by
 * the Python thread (under the GIL) or before threads start; the result lives as long as the process and may be read by
 * any thread. Shapes must be non-negative. */
TR_API const tr_meta *tr_meta_get(tr_dtype dtype, int ndim, const int64_t *shape, const int64_t *strides);

/* Same shape and strides, another dtype / row-major strides. */
TR_API const tr_meta *tr_meta_with_dtype(const tr_meta *meta, tr_dtype dtype);
TR_API const tr_meta *tr_meta_as_contiguous(const tr_meta *meta, tr_dtype dtype);

static inline bool tr_meta_same_shape(const tr_meta *a, const tr_meta *b) {
    if (a->ndim != b->ndim)
        return false;
    for (int d = 0; d < a->ndim; d++)
        if (a->shape[d] != b->shape[d])
            return false;
    return true;
}

/* Writes "[2, 3]" into `text`; returns `text`. */
TR_API const char *tr_shape_print(const tr_meta *meta, char *text, size_t size);

typedef struct tr_storage tr_storage;
typedef struct tr_home tr_home; /* dnn.h: a layout that a storage is kept in between plans */

/* A number's bits: a double where the operand's meta is float64, else an int64 (also for bool). */
typedef union tr_number {
    int64_t i;
    double d;
} tr_number;

/* storage != NULL: a tensor; `at.i` is its offset in elements, a run-time argument.
 * storage == NULL, meta != NULL: a Python number; meta is the 0-dimensional meta of BOOL, I64 or F64; `at` is its value, a
 * run-time argument. meta == NULL: absent (None). */
typedef struct tr_operand {
    tr_storage *storage;
    const tr_meta *meta;
    tr_number at;
} tr_operand;

#endif
