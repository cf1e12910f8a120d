/* bench_matmul - products of matrices as linear layers take them: forward (nt), by their input (nn), by their weights (tn); of
 * float32, of bfloat16, or of float32 computed in bfloat16 (as set_float32_matmul_precision("medium") has it). Operands and
 * results in rotation over more memory than a cache has, as in a training step. The best and the median rate of some rounds.
 *
 *   bench_matmul [threads] [rounds] [float32 | bfloat16 | medium] [another instruction set, measured in turn with TERRA_ISA's] */
#include "bench.h"

#include "exec/kernels/kernels.h"
#include "terra/op.h"

#include <omp.h>
#include <stdbool.h>

enum { SETS = 3, MOST = 200 };

static tr_dtype dtype = TR_F32, computed = TR_F32;
static tr_kernel_ctx ctx = {.scratch = bench_scratch, .scratch_size = BENCH_SCRATCH, .planned = true};

typedef struct shape {
    const char *kind; /* of either factor: n row-major, t its transpose is */
    int64_t m, n, k;
} shape;

static const shape shapes[] = {
    {"nt", 1024, 768, 768},   {"nt", 1024, 3072, 768},  {"nt", 1024, 768, 3072},  {"nn", 1024, 768, 768}, {"nn", 1024, 768, 3072},
    {"nn", 1024, 3072, 768},  {"tn", 768, 768, 1024},   {"tn", 3072, 768, 1024},  {"tn", 768, 3072, 1024}, {"nt", 1024, 2048, 512},
    {"nt", 1024, 512, 2048},  {"nn", 1024, 512, 2048},  {"nn", 1024, 2048, 512},  {"tn", 2048, 512, 1024}, {"tn", 512, 2048, 1024},
    {"nt", 1024, 16384, 512}, {"nn", 1024, 512, 16384}, {"tn", 16384, 512, 1024}, {"nn", 2048, 2048, 2048}, {"nn", 256, 768, 3072},
    {"nn", 128, 3072, 768},   {"nn", 64, 1024, 1024},   {"tn", 128, 256, 2048},   {"nn", 64, 64, 64},
};

static tr_arg filled(int64_t rows, int64_t columns, bool transposed) {
    float *p = bench_memory((size_t) (rows * columns) * sizeof *p);
    for (int64_t i = 0; i < rows * columns; i++) {
        float x = (float) (i * 2654435761u % 1000) * 0.002f - 1;
        if (dtype == TR_F32)
            p[i] = x;
        else
            ((uint16_t *) p)[i] = tr__f32_to_bf16(x);
    }
    return (tr_arg){.data = p, .meta = tr_meta_get(dtype, 2, (int64_t[]){rows, columns},
                                                   (int64_t[]){transposed ? 1 : columns, transposed ? rows : 1})};
}

static int64_t run(const tr_arg in[2], tr_arg *out) {
    tr_kernel_call call = {.op = TR_OP_mm, .cdtype = computed, .n_in = 2, .in = in, .n_out = 1, .out = out, .ctx = &ctx};
    ctx.scratch_used = 0;
    double start = bench_now();
    if (tr_kernel_of(TR_OP_mm)(&call) != TR_OK) {
        fprintf(stderr, "%s\n", tr_status_detail());
        exit(1);
    }
    return (int64_t) ((bench_now() - start) * 1e9);
}

static void choose(const char *isa) {
    if (tr_kernel_init(isa) != TR_OK)
        exit(1);
}

static void measure(const shape *s, int rounds, const char *other) {
    static int64_t ns[2][MOST];
    tr_arg in[SETS][2], out[SETS];
    for (int i = 0; i < SETS; i++) {
        in[i][0] = filled(s->m, s->k, s->kind[0] == 't');
        in[i][1] = filled(s->k, s->n, s->kind[1] == 't');
        out[i] = filled(s->m, s->n, false);
    }
    for (int r = 0; r < SETS + rounds; r++) // the first ones compile
        for (int k = 0; k < (other ? 2 : 1); k++) {
            if (other)
                choose(k ? other : getenv("TERRA_ISA"));
            int64_t t = run(in[r % SETS], &out[(r + k) % SETS]);
            if (r >= SETS)
                ns[k][r - SETS] = t;
        }
    double flops = 2.0 * (double) s->m * (double) s->n * (double) s->k;
    printf("%s %6lld %6lld %6lld:", s->kind, (long long) s->m, (long long) s->n, (long long) s->k);
    for (int k = 0; k < (other ? 2 : 1); k++) {
        double median = (double) bench_median(ns[k], rounds);
        printf("%s best %6.1f, median %6.1f GFLOP/s", k ? ";" : "", flops / (double) ns[k][0], flops / median);
    }
    putchar('\n');
    for (int i = 0; i < SETS; i++) {
        tr_free(in[i][0].data);
        tr_free(in[i][1].data);
        tr_free(out[i].data);
    }
}

int main(int argc, char **argv) {
    ctx.threads = argc > 1 && atoi(argv[1]) > 0 ? atoi(argv[1]) : omp_get_max_threads();
    int rounds = argc > 2 ? atoi(argv[2]) : 20;
    rounds = rounds < 1 ? 1 : rounds > MOST ? MOST : rounds;
    if (argc > 3 && strcmp(argv[3], "float32") != 0)
        computed = TR_BF16;
    if (argc > 3 && strcmp(argv[3], "bfloat16") == 0)
        dtype = TR_BF16;
    omp_set_num_threads(ctx.threads);
    ctx.scratch_base = bench_memory(BENCH_SCRATCH);
    if (tr_op_init() != TR_OK)
        return 1;
    choose(getenv("TERRA_ISA"));
    printf("%s, %s, %d threads: kind, rows, columns, depth\n", argc > 3 ? argv[3] : "float32", tr_kernel_isa(), ctx.threads);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        measure(&shapes[i], rounds, argc > 4 ? argv[4] : NULL);
    return 0;
}
