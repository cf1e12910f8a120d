/* bench_conv - the convolutions of a ResNet-50 in all three directions, images channels last, in the order of a training step: all
 * images together don't fit in a cache, and each layer has its own. Weights are at home in float32, row-major in bfloat16. Per kind
 * of layer the least time of some rounds. TERRA_ISA=v2 has the library's kernels, =v3 as well in bfloat16.
 *
 *   bench_conv [threads] [batch] [rounds] [float32 | bfloat16] [another instruction set, measured in turn with TERRA_ISA's] */
#include "bench.h"

#include "terra/alloc.h"
#include "terra/dnn.h"
#include "terra/kernel.h"

#include <omp.h>
#include <string.h>

enum { SIZE = 128, LAYERS = 64, DIRECTIONS = 3 };

static tr_dtype dtype = TR_F32;
static tr_kernel_ctx ctx = {.scratch = bench_scratch, .scratch_size = BENCH_SCRATCH};

typedef struct layer {
    int64_t ci, co, size, out, kernel, stride;
    tr_arg x, w, y, to[DIRECTIONS]; /* to: results, of their own so that numbers don't grow from round to round */
    double least[2][DIRECTIONS], flops;
} layer;
static layer layers[LAYERS];
static int n_layers;

static tr_arg filled(const tr_meta *m) {
    tr_arg a = {.meta = m, .data = bench_memory((size_t) m->numel * sizeof(float) + 64)};
    for (int64_t i = 0; i < m->numel; i++) {
        float x = (float) (i * 2654435761u % 1000) * 0.002f - 1;
        if (dtype == TR_BF16)
            memcpy((char *) a.data + 2 * i, (char *) &x + 2, 2);
        else
            ((float *) a.data)[i] = x;
    }
    return a;
}

/* Of the same looks. */
static tr_arg another(const tr_arg *a) {
    tr_arg b = filled(a->meta);
    b.home = a->home;
    return b;
}

static tr_arg images(int64_t n, int64_t c, int64_t size) {
    return filled(tr_meta_get(dtype, 4, (int64_t[]){n, c, size, size}, (int64_t[]){size * size * c, 1, size * c, c}));
}

static void attributes(const layer *l, int direction, int64_t *a) {
    int64_t p = l->kernel / 2, s = l->stride, last = direction == 1 ? l->size : l->kernel;
    memcpy(a, (int64_t[]){s, s, p, p, 1, 1, 1, last, last}, 9 * sizeof *a);
}

/* A layer over images of `size`; its output's size. */
static int64_t add(int64_t batch, int64_t ci, int64_t co, int64_t size, int64_t kernel, int64_t stride) {
    layer *l = &layers[n_layers++];
    *l = (layer){.ci = ci, .co = co, .size = size, .out = (size + 2 * (kernel / 2) - kernel) / stride + 1, .kernel = kernel,
                 .stride = stride, .least = {{1e9, 1e9, 1e9}, {1e9, 1e9, 1e9}}};
    l->x = images(batch, ci, size);
    l->y = images(batch, co, l->out);
    l->w = filled(tr_meta_get(dtype, 4, (int64_t[]){co, ci, kernel, kernel}, NULL));
    l->flops = 2.0 * (double) (l->y.meta->numel * ci * kernel * kernel);
    int64_t a[9];
    attributes(l, 0, a);
    tr_home_of_weights(a, l->x.meta, l->w.meta, l->y.meta, false, ctx.threads, &l->w.home);
    for (int d = 0; d < DIRECTIONS; d++)
        l->to[d] = another((const tr_arg *[]){&l->y, &l->x, &l->w}[d]);
    return l->out;
}

static void add_resnet50(int64_t batch) {
    static const int depths[] = {3, 4, 6, 3};
    int64_t size = add(batch, 3, 64, SIZE, 7, 2) / 2, from = 64;
    for (int stage = 0; stage < 4; stage++)
        for (int block = 0; block < depths[stage]; block++) {
            int64_t planes = 64 << stage, stride = block == 0 && stage > 0 ? 2 : 1;
            add(batch, from, planes, size, 1, 1);
            int64_t out = add(batch, planes, planes, size, 3, stride);
            add(batch, planes, 4 * planes, out, 1, 1);
            if (block == 0)
                add(batch, from, 4 * planes, size, 1, stride);
            from = 4 * planes;
            size = out;
        }
}

static void run(layer *l, int direction, int isa) {
    static const tr_op ops[] = {TR_OP_conv2d, TR_OP_conv2d_backward_data, TR_OP_conv2d_backward_weights};
    int64_t a[9];
    attributes(l, direction, a);
    tr_arg none = {0}, in[][3] = {{l->x, l->w, none}, {l->y, l->w}, {l->y, l->x}};
    tr_kernel_call c = {.op = ops[direction], .attrs = a, .n_in = direction ? 2 : 3, .in = in[direction], .n_out = 1,
                        .out = &l->to[direction], .ctx = &ctx};
    ctx.scratch_used = 0;
    double start = bench_now();
    if (tr_kernel_of(c.op)(&c) != TR_OK) {
        fprintf(stderr, "%s\n", tr_status_detail());
        exit(1);
    }
    double t = bench_now() - start, *least = &l->least[isa][direction];
    *least = t < *least ? t : *least;
}

static bool alike(const layer *a, const layer *b) {
    return a->ci == b->ci && a->co == b->co && a->size == b->size && a->kernel == b->kernel && a->stride == b->stride;
}

static void print_layers(int isa) {
    double all[DIRECTIONS] = {0}, flops = 0;
    printf("%-34s %25s %25s %25s\n", "", "forward, us (GFLOP/s)", "by image", "by weights");
    for (int i = 0; i < n_layers; i++) {
        int times = 0;
        double sum[DIRECTIONS] = {0};
        for (int j = 0; j < n_layers; j++)
            if (alike(&layers[i], &layers[j])) {
                if (j < i)
                    goto next;
                times++;
                for (int d = 0; d < DIRECTIONS; d++)
                    sum[d] += layers[j].least[isa][d];
            }
        const layer *l = &layers[i];
        char name[64];
        snprintf(name, sizeof name, "%dx %lld-%lld %lldx%lld /%lld of %lldx%lld", times, (long long) l->ci, (long long) l->co,
                 (long long) l->kernel, (long long) l->kernel, (long long) l->stride, (long long) l->size, (long long) l->size);
        printf("%-34s", name);
        for (int d = 0; d < DIRECTIONS; d++) {
            printf("%16.0f (%6.1f)", sum[d] / times * 1e6, l->flops * times / sum[d] / 1e9);
            all[d] += sum[d];
        }
        flops += l->flops * times;
        putchar('\n');
    next:;
    }
    printf("%-34s", "all");
    for (int d = 0; d < DIRECTIONS; d++)
        printf("%16.0f (%6.1f)", all[d] * 1e6, flops / all[d] / 1e9);
    putchar('\n');
}

int main(int argc, char **argv) {
    ctx.threads = argc > 1 && atoi(argv[1]) > 0 ? atoi(argv[1]) : omp_get_max_threads();
    int batch = argc > 2 ? atoi(argv[2]) : 8, rounds = argc > 3 ? atoi(argv[3]) : 8;
    omp_set_num_threads(ctx.threads);
    ctx.scratch_base = bench_memory(BENCH_SCRATCH);
    if (argc > 4 && strcmp(argv[4], "bfloat16") == 0)
        dtype = TR_BF16;
    if (tr_op_init() != TR_OK || tr_kernel_init(getenv("TERRA_ISA")) != TR_OK)
        return 1;
    add_resnet50(batch);
    const char *isas[] = {getenv("TERRA_ISA"), argc > 5 ? argv[5] : NULL};
    int n_isas = argc > 5 ? 2 : 1;
    for (int r = 0; r < rounds * n_isas; r++) {
        int isa = r % n_isas;
        if (tr_kernel_init(isas[isa]) != TR_OK)
            return 1;
        for (int i = 0; i < n_layers; i++)
            run(&layers[i], 0, isa);
        for (int i = n_layers - 1; i >= 0; i--) {
            if (i > 0)
                run(&layers[i], 1, isa);
            run(&layers[i], 2, isa);
        }
    }
    for (int isa = 0; isa < n_isas; isa++) {
        layers[0].least[isa][1] = 0;
        if (tr_kernel_init(isas[isa]) != TR_OK)
            return 1;
        printf("%s, %s, %d threads, batch %d, %d rounds\n", dtype == TR_BF16 ? "bfloat16" : "float32", tr_kernel_isa(), ctx.threads,
               batch, rounds);
        print_layers(isa);
    }
    return 0;
}
