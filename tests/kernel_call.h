/* kernel_call.h - calling kernels from tests: operands out of C arrays, scratch out of malloc. */
#ifndef TERRA_TESTS_KERNEL_CALL_H
#define TERRA_TESTS_KERNEL_CALL_H

#include "terra/kernel.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { KC_BLOCKS = 64 };
static struct {
    void *blocks[KC_BLOCKS];
    int n;
} kc_scratch;

static void *kc_take(tr_kernel_ctx *ctx, size_t bytes) {
    cr_assert_lt(kc_scratch.n, KC_BLOCKS);
    void *block = aligned_alloc(64, (bytes + 127) / 64 * 64);
    memset(block, 0xff, (bytes + 127) / 64 * 64); // NaN: what is read before it is written shows
    return kc_scratch.blocks[kc_scratch.n++] = block;
}

static tr_kernel_ctx kc_ctx = {.threads = 2, .scratch = kc_take};

static inline void kc_release(void) {
    while (kc_scratch.n)
        free(kc_scratch.blocks[--kc_scratch.n]);
}

static inline void kc_init(void) {
    cr_assert_eq(tr_op_init(), TR_OK);
    cr_assert_eq(tr_kernel_init(getenv("TERRA_ISA")), TR_OK);
}

static inline tr_arg kc_strided(tr_dtype dtype, void *data, int ndim, const int64_t *shape, const int64_t *strides) {
    return (tr_arg){data, tr_meta_get(dtype, ndim, shape, strides), {0}};
}

/* kc_tensor(TR_F32, data, 2, 3): row-major. */
#define kc_tensor(dtype, data, ...) \
    kc_strided((dtype), (data), (int) (sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (int64_t[]){__VA_ARGS__}, NULL)
static const int64_t kc_no_shape[1];
#define kc_scalar(dtype, data) kc_strided((dtype), (data), 0, kc_no_shape, NULL)

static inline tr_arg kc_number(double v) {
    return (tr_arg){NULL, tr_meta_get(TR_F64, 0, kc_no_shape, NULL), {.d = v}};
}
static inline tr_arg kc_integer(int64_t v) {
    return (tr_arg){NULL, tr_meta_get(TR_I64, 0, kc_no_shape, NULL), {.i = v}};
}
static inline tr_arg kc_none(void) {
    return (tr_arg){0};
}

static inline tr_status kc_run(tr_op op, tr_dtype cdtype, const int64_t *attrs, int n_in, const tr_arg *in, int n_out,
                               tr_arg *out) {
    tr_kernel_call c = {
        .op = op, .cdtype = cdtype, .n_in = n_in, .n_out = n_out, .attrs = attrs, .in = in, .out = out, .ctx = &kc_ctx};
    cr_assert_not_null(tr_kernel_of(op));
    tr_status s = tr_kernel_of(op)(&c);
    kc_release();
    return s;
}

#define KC_LIST(...)        (int64_t[]){0, __VA_ARGS__} + 1
#define KC_COUNT(type, ...) (int) (sizeof((type[]){__VA_ARGS__}) / sizeof(type))
/* kc_call(op, cdtype, (attrs), (results), operands...) */
#define KC_UNWRAP(...) __VA_ARGS__
#define kc_call(id, cdtype, attrs, outs, ...)                                                                             \
    kc_run(TR_OP_##id, (cdtype), (int64_t[]){KC_UNWRAP attrs, 0}, KC_COUNT(tr_arg, __VA_ARGS__), (tr_arg[]){__VA_ARGS__}, \
           KC_COUNT(tr_arg, KC_UNWRAP outs), (tr_arg[]){KC_UNWRAP outs})

static inline void kc_expect(const float *got, const float *want, int64_t n, double tolerance, const char *what) {
    for (int64_t i = 0; i < n; i++) {
        bool both_nan = isnan(got[i]) && isnan(want[i]);
        bool near = got[i] == want[i] || fabs((double) got[i] - (double) want[i]) <= tolerance * (1 + fabs((double) want[i]));
        cr_assert(both_nan || near, "%s: element %lld is %.9g, not %.9g", what, (long long) i, (double) got[i],
                  (double) want[i]);
    }
}

/* Numbers that look random and are the same everywhere, in -2 .. 2. */
static inline void kc_noise(float *x, int64_t n, uint32_t seed) {
    uint32_t s = seed * 2654435761u + 1;
    for (int64_t i = 0; i < n; i++) {
        s = s * 1664525u + 1013904223u;
        x[i] = (float) (int32_t) s * 0x1p-30f;
    }
}

/* The same images in both layouts: [N, C, H, W] and with channels last. */
static inline void kc_turn_images(float *to, const float *from, int64_t n, int64_t c, int64_t s) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < c; k++)
            for (int64_t p = 0; p < s; p++)
                to[(i * s + p) * c + k] = from[(i * c + k) * s + p];
}
static inline tr_arg kc_images_of(tr_dtype dtype, void *data, bool last, int64_t n, int64_t c, int64_t h, int64_t w) {
    return kc_strided(dtype, data, 4, (int64_t[]){n, c, h, w}, last ? (int64_t[]){h * w * c, 1, w * c, c} : NULL);
}
static inline tr_arg kc_images(float *data, bool last, int64_t n, int64_t c, int64_t h, int64_t w) {
    return kc_images_of(TR_F32, data, last, n, c, h, w);
}
/* n floats as bfloat16, truncated, in the same memory; and back. */
static inline void kc_halve(void *data, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        memcpy((char *) data + 2 * i, (char *) data + 4 * i + 2, 2);
}
static inline void kc_unhalve(void *data, int64_t n) {
    for (int64_t i = n - 1; i >= 0; i--) {
        memmove((char *) data + 4 * i + 2, (char *) data + 2 * i, 2);
        memset((char *) data + 4 * i, 0, 2);
    }
}

#endif
