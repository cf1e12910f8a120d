/* isa_pool_last.c - pooling of images whose channels lie innermost, [N, H, W, C]: a vector of channels at a time, whatever the
 * window. Numbers are those of isa_pool.c, which meets a window's elements, and a pixel's windows, in the same order. bfloat16 is
 * computed in float and rounded once. */
#include "exec/kernels/isa_bf16.h"
#include "exec/kernels/isa_pool.h"

enum { BLOCK = 32 }; /* channels that a derivative does together: an image's part of them stays in the L2 cache */

/* Positions of a window that begins at `start` which lie inside. */
typedef struct inside {
    int64_t from, to;
} inside;

static inside inside_of(const tr__pool_axis *a, int64_t start) {
    int64_t d = a->dilation, from = start < 0 ? (d - 1 - start) / d : 0;
    return (inside){from, tr__min(a->kernel, (a->size - start + d - 1) / d)};
}

/* The floats of a window's vectors from lanes of doubles. */
static inline vF narrowed(vD low, vD high) {
    float f[VN_F];
    vF v;
    for (int k = 0; k < VN_D; k++) {
        f[k] = (float) low[k];
        f[VN_D + k] = (float) high[k];
    }
    memcpy(&v, f, sizeof v);
    return v;
}

#define FETCH(E, p)    (n == VN_F ? load_##E(p) : load_##E##_part(p, n))
#define PUT(E, p, v)   (n == VN_F ? store_##E(p, v) : store_##E##_part(p, v, n))
/* step(...) for each vector of channels from `c`; `n` of the last one are there. */
#define EACH_VECTOR(step, ...)                       \
    int64_t c = 0;                                   \
    for (; c + VN_F <= j->c; c += VN_F)              \
        step(__VA_ARGS__, VN_F);                     \
    if (c < j->c)                                    \
        step(__VA_ARGS__, j->c - c)

#define LAST(E, T)                                                                                                            \
    /* The first greatest in row-major order of the window wins, and NaN wins over all. */                                    \
    ALWAYS void max_cell_##E(const tr__pool *j, const T *x, int64_t y0, int64_t x0, inside v, inside u, T *y, int64_t *at,    \
                             int64_t n) {                                                                                     \
        const tr__pool_axis *down = &j->down, *across = &j->across;                                                           \
        vF best = (vF){0} - INFINITY;                                                                                         \
        vFi where = (vFi){0} + (int32_t) ((y0 + v.from * down->dilation) * across->size + x0 + u.from * across->dilation);    \
        for (int64_t ky = v.from; ky < v.to; ky++)                                                                            \
            for (int64_t kx = u.from; kx < u.to; kx++) {                                                                      \
                int64_t pixel = (y0 + ky * down->dilation) * across->size + x0 + kx * across->dilation;                       \
                vF f = FETCH(E, x + pixel * j->c);                                                                            \
                vFi take = (f > best) | (f != f);                                                                             \
                best = vF_select(take, f, best);                                                                              \
                where = (take & (int32_t) pixel) | (~take & where);                                                           \
            }                                                                                                                 \
        int32_t index[VN_F];                                                                                                  \
        memcpy(index, &where, sizeof where);                                                                                  \
        for (int64_t k = 0; k < n; k++)                                                                                       \
            at[k] = index[k];                                                                                                 \
        PUT(E, y, best);                                                                                                      \
    }                                                                                                                         \
    /* units: rows of outputs */                                                                                              \
    static void max_##E(void *env, int64_t begin, int64_t end, int thread) {                                                  \
        const tr__pool *j = env;                                                                                              \
        for (int64_t r = begin; r < end; r++) {                                                                               \
            const T *x = (const T *) j->x + r / j->down.out * j->down.size * j->across.size * j->c;                           \
            int64_t y0 = r % j->down.out * j->down.stride - j->down.padding;                                                  \
            inside v = inside_of(&j->down, y0);                                                                               \
            for (int64_t o = 0; o < j->across.out; o++) {                                                                     \
                int64_t x0 = o * j->across.stride - j->across.padding, to = (r * j->across.out + o) * j->c;                   \
                inside u = inside_of(&j->across, x0);                                                                         \
                T *y = (T *) j->y + to;                                                                                       \
                EACH_VECTOR(max_cell_##E, j, x + c, y0, x0, v, u, y + c, j->at + to + c);                                     \
            }                                                                                                                 \
        }                                                                                                                     \
    }                                                                                                                         \
    ALWAYS void avg_cell_##E(const tr__pool *j, const T *x, tr__extent v, tr__extent u, T *y, int64_t n) {                    \
        vF sum = {0};                                                                                                         \
        for (int64_t iy = v.from; iy < v.to; iy++)                                                                            \
            for (int64_t ix = u.from; ix < u.to; ix++)                                                                        \
                sum += FETCH(E, x + (iy * j->across.size + ix) * j->c);                                                       \
        PUT(E, y, sum / (float) tr__divisor_of(j, v.counted, u.counted));                                                     \
    }                                                                                                                         \
    ALWAYS void avg_wide_cell_##E(const tr__pool *j, const T *x, tr__extent v, tr__extent u, T *y, int64_t n) {               \
        vD low = {0}, high = {0};                                                                                             \
        for (int64_t iy = v.from; iy < v.to; iy++)                                                                            \
            for (int64_t ix = u.from; ix < u.to; ix++) {                                                                      \
                vF f = FETCH(E, x + (iy * j->across.size + ix) * j->c);                                                       \
                vH half[2];                                                                                                   \
                memcpy(half, &f, sizeof f);                                                                                   \
                low += widen(half[0]);                                                                                        \
                high += widen(half[1]);                                                                                       \
            }                                                                                                                 \
        double d = (double) tr__divisor_of(j, v.counted, u.counted);                                                          \
        PUT(E, y, narrowed(low / d, high / d));                                                                               \
    }                                                                                                                         \
    static void avg_##E(void *env, int64_t begin, int64_t end, int thread) {                                                  \
        const tr__pool *j = env;                                                                                              \
        bool wide = tr__sums_wide(j);                                                                                         \
        for (int64_t r = begin; r < end; r++) {                                                                               \
            const T *x = (const T *) j->x + r / j->down.out * j->down.size * j->across.size * j->c;                           \
            tr__extent v = tr__extent_of(j, &j->down, r % j->down.out);                                                       \
            for (int64_t o = 0; o < j->across.out; o++) {                                                                     \
                tr__extent u = tr__extent_of(j, &j->across, o);                                                               \
                T *y = (T *) j->y + (r * j->across.out + o) * j->c;                                                           \
                if (wide) {                                                                                                   \
                    EACH_VECTOR(avg_wide_cell_##E, j, x + c, v, u, y + c);                                                    \
                } else {                                                                                                      \
                    EACH_VECTOR(avg_cell_##E, j, x + c, v, u, y + c);                                                         \
                }                                                                                                             \
            }                                                                                                                 \
        }                                                                                                                     \
    }                                                                                                                         \
    /* The derivatives add up in float, `step` apart per pixel. g, from: the image's first output, block's first channel. */  \
    static void max_back_image_##E(const tr__pool *j, float *sum, int64_t step, const T *g, const int64_t *from, int64_t n) { \
        int64_t pixels = j->down.size * j->across.size;                                                                       \
        for (int64_t o = 0; o < j->down.out * j->across.out; o++)                                                             \
            for (int64_t k = 0; k < n; k++) {                                                                                 \
                int64_t at = from[o * j->c + k];                                                                              \
                if (at >= 0 && at < pixels)                                                                                   \
                    sum[at * step + k] += FLOAT_OF_##E(g[o * j->c + k]);                                                      \
            }                                                                                                                 \
    }                                                                                                                         \
    ALWAYS void avg_back_cell_##E(const tr__pool *j, float *sum, int64_t step, const T *g, tr__extent v, tr__extent u,        \
                                  int64_t n) {                                                                                \
        vF d = FETCH(E, g) / (float) tr__divisor_of(j, v.counted, u.counted);                                                 \
        for (int64_t iy = v.from; iy < v.to; iy++)                                                                            \
            for (int64_t ix = u.from; ix < u.to; ix++) {                                                                      \
                float *to = sum + (iy * j->across.size + ix) * step;                                                          \
                PUT(float, to, FETCH(float, to) + d);                                                                         \
            }                                                                                                                 \
    }                                                                                                                         \
    static void avg_back_image_##E(const tr__pool *j, float *sum, int64_t step, const T *g, int64_t channels) {               \
        for (int64_t p = 0; p < j->down.out; p++) {                                                                           \
            tr__extent v = tr__extent_of(j, &j->down, p);                                                                     \
            for (int64_t o = 0; o < j->across.out; o++) {                                                                     \
                tr__extent u = tr__extent_of(j, &j->across, o);                                                               \
                const T *from = g + (p * j->across.out + o) * j->c;                                                           \
                int64_t c = 0;                                                                                                \
                for (; c + VN_F <= channels; c += VN_F)                                                                       \
                    avg_back_cell_##E(j, sum + c, step, from + c, v, u, VN_F);                                                \
                if (c < channels)                                                                                             \
                    avg_back_cell_##E(j, sum + c, step, from + c, v, u, channels - c);                                        \
            }                                                                                                                 \
        }                                                                                                                     \
    }                                                                                                                         \
    /* units: an image's blocks of channels */                                                                                \
    static void back_##E(void *env, int64_t begin, int64_t end, int thread) {                                                 \
        const tr__pool *j = env;                                                                                              \
        int64_t blocks = (j->c + BLOCK - 1) / BLOCK, pixels = j->down.size * j->across.size;                                  \
        for (int64_t unit = begin; unit < end; unit++) {                                                                      \
            int64_t image = unit / blocks, c = unit % blocks * BLOCK, n = tr__min(BLOCK, j->c - c), step;                     \
            int64_t first = image * j->down.out * j->across.out * j->c + c;                                                   \
            T *y = (T *) j->y + image * pixels * j->c + c;                                                                    \
            float *sum = SUMS_OF_##E(y, j->own + thread * j->own_bytes, &step);                                               \
            for (int64_t p = 0; p < pixels; p++)                                                                              \
                memset(sum + p * step, 0, (size_t) n * sizeof *sum);                                                          \
            if (j->from)                                                                                                      \
                max_back_image_##E(j, sum, step, (const T *) j->x + first, j->from + first, n);                               \
            else                                                                                                              \
                avg_back_image_##E(j, sum, step, (const T *) j->x + first, n);                                                \
            for (int64_t p = 0; (void *) sum != (void *) y && p < pixels; p++)                                                \
                STORE_##E(y + p * j->c, sum + p * step, n);                                                                   \
        }                                                                                                                     \
    }
#define FLOAT_OF_float(x)            (x)
#define FLOAT_OF_bf16(x)             tr__bf16_to_f32(x)
#define STORE_float(to, sums, n)     memcpy(to, sums, (size_t) (n) * sizeof(float))
#define STORE_bf16(to, sums, n)      bf16_narrow(to, sums, n)
#define SUMS_OF_float(y, own, step)  (*(step) = j->c, (y))
#define SUMS_OF_bf16(y, own, step)   (*(step) = BLOCK, (void *) (own))
LAST(float, float)
LAST(bf16, uint16_t)

tr_status TR__SUFFIXED(tr__pool_last)(const tr_kernel_call *c, tr__pool_kind kind, tr__pool *j, bool bf16) {
    static const tr__range_fn fn[TR__POOL_KINDS][2] = {[TR__POOL_MAX] = {max_float, max_bf16},
                                                       [TR__POOL_MAX_BACK] = {back_float, back_bf16},
                                                       [TR__POOL_AVG] = {avg_float, avg_bf16},
                                                       [TR__POOL_AVG_BACK] = {back_float, back_bf16}};
    bool back = kind == TR__POOL_MAX_BACK || kind == TR__POOL_AVG_BACK;
    int64_t pixels = j->down.size * j->across.size, blocks = (j->c + BLOCK - 1) / BLOCK;
    int64_t units = j->n * (back ? blocks : j->down.out), work = pixels * j->c / (back ? blocks : j->down.out);
    if (back && bf16) {
        j->own_bytes = pixels * BLOCK * (int64_t) sizeof(float);
        if (!(j->own = tr__scratch(c, (size_t) (j->own_bytes * c->ctx->threads))))
            return TR_E_NOMEM;
    }
    tr__parallel_pieces(c->ctx, units, tr__max(1, TR__GRAIN / 4 / tr__max(1, work)), fn[kind][bf16], j);
    return TR_OK;
}
