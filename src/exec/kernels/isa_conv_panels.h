/* isa_conv_panels.h - how convolutions of float32 find their weights, and sum up their derivative in shares. Included by isa_conv.c and
 * isa_conv_winograd.c only. */
#ifndef TERRA_EXEC_ISA_CONV_PANELS_H
#define TERRA_EXEC_ISA_CONV_PANELS_H

#include "exec/kernels/isa_conv.h"

/* How weights of float32 lie: [columns / width, taps, channels, width]. */
typedef struct shape {
    int64_t width, taps, channels;
} shape;

static inline int64_t place_of(const shape *s, int64_t panel, int64_t tap, int64_t channel) {
    return ((panel * NR / s->width * s->taps + tap) * s->channels + channel) * s->width + panel * NR % s->width;
}

static inline shape shape_of(const tr__conv *v) {
    return (shape){tr__conv_panel(v->co), v->kernel[0] * v->kernel[1], v->ci};
}

/* A square of NR rows and as many columns. */
static inline void transpose_square(float *to, int64_t to_step, const float *from, int64_t step) {
    vF x[VN_F];
    for (int i = 0; i < NR; i += VN_F)
        for (int k = 0; k < NR; k += VN_F) {
            for (int r = 0; r < VN_F; r++)
                memcpy(&x[r], from + (k + r) * step + i, sizeof x[r]);
            turn(x);
            for (int r = 0; r < VN_F; r++)
                memcpy(to + (i + r) * to_step + k, &x[r], sizeof x[r]);
        }
}

/* The weights' derivative, whose pixels are summed up in n shares, each by itself. */
typedef struct partials {
    int64_t n, size;
    float *weights, *others; /* [size]; [n - 1, size] */
} partials;

/* n depends on sizes alone; less than 1 counts as 1. */
static inline tr_status take_partials(const tr_kernel_call *c, const tr__conv *v, int64_t n, partials *p) {
    *p = (partials){.n = tr__max(1, n), .size = v->co * v->ci * v->kernel[0] * v->kernel[1], .weights = (float *) v->weights};
    p->others = tr__scratch(c, (size_t) ((p->n - 1) * p->size) * sizeof(float));
    return p->others ? TR_OK : TR_E_NOMEM;
}

static inline float *partial_of(const partials *p, int64_t i) {
    return i ? p->others + (i - 1) * p->size : p->weights;
}

static inline void add_range(void *env, int64_t begin, int64_t end, int thread) {
    const partials *p = env;
    for (int64_t i = begin; i < end; i++) {
        float x = p->weights[i];
        for (int64_t k = 1; k < p->n; k++)
            x += partial_of(p, k)[i];
        p->weights[i] = x;
    }
}

static inline void add_partials(const tr_kernel_call *c, partials *p) {
    if (p->n > 1)
        tr__parallel(c->ctx, p->size, TR__GRAIN, add_range, p);
}

#endif
