/* fma_peak.c - what the cores can do at most: independent chains of multiply-adds in registers, GFLOP/s. "fp32": fused
 * multiply-adds of float32. "bf16": dot products of bfloat16 with sums in float32, by AMX's tiles or by AVX512-BF16; nothing is
 * printed where there is neither. Built and run by harness.py for the machine at hand: cc -O3 -march=native -fopenmp. */
#define _GNU_SOURCE
#include <omp.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
enum { WIDTH = 16 };
#else
enum { WIDTH = 8 };
#endif
enum { CHAINS = 12, TURNS = 1 << 22, ROUNDS = 8 };
typedef float lanes __attribute__((vector_size(4 * WIDTH)));

/* This thread's own time, so that neighbours count less. */
static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double) t.tv_sec + 1e-9 * (double) t.tv_nsec;
}

/* Some computing, and how many operations it is; gives some lanes of the sum, so that nothing is dropped. */
typedef struct kind {
    float (*work)(float seed);
    double flop;
} kind;

static float fused(float seed) {
    lanes a[CHAINS], x = {0}, y = {0};
    for (int i = 0; i < WIDTH; i++) {
        x[i] = 1.0f - seed;
        y[i] = seed;
    }
    for (int c = 0; c < CHAINS; c++)
        a[c] = x + (float) c;
    for (int t = 0; t < TURNS; t++)
        for (int c = 0; c < CHAINS; c++)
            a[c] = a[c] * x + y;
    lanes sum = a[0];
    for (int c = 1; c < CHAINS; c++)
        sum += a[c];
    return sum[0] + sum[WIDTH - 1];
}

#if defined __AMX_BF16__ && defined __linux__
#include <sys/syscall.h>
#include <unistd.h>

/* Four tiles of sums, each a product of one of two by one of two: 16 rows of 16 sums, of 32 products each. */
enum { TILE_TURNS = TURNS / 4, ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };
#define TILE_FLOP (4.0 * 2 * 16 * 16 * 32 * TILE_TURNS)

static float tiles(float seed) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    _Alignas(64) uint16_t factors[16 * 32] = {0};
    _Alignas(64) float sums[16 * 16] = {0};
    memcpy(factors, &seed, sizeof seed);
    for (int i = 0; i < 8; i++) {
        config.bytes[i] = 64;
        config.rows[i] = 16;
    }
    _tile_loadconfig(&config);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, factors, 64);
    _tile_loadd(5, factors, 64);
    _tile_loadd(6, factors, 64);
    _tile_loadd(7, factors, 64);
    for (int t = 0; t < TILE_TURNS; t++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, 64);
    _tile_release();
    return sums[0];
}
#endif

#ifdef __AVX512BF16__
static float dotted(float seed) {
    __m512 a[CHAINS];
    __m512bh x = _mm512_cvtne2ps_pbh(_mm512_set1_ps(seed), _mm512_set1_ps(seed));
    for (int c = 0; c < CHAINS; c++)
        a[c] = _mm512_set1_ps((float) c);
    for (int t = 0; t < TURNS; t++)
        for (int c = 0; c < CHAINS; c++)
            a[c] = _mm512_dpbf16_ps(a[c], x, x);
    for (int c = 1; c < CHAINS; c++)
        a[0] = _mm512_add_ps(a[0], a[c]);
    return _mm512_reduce_add_ps(a[0]);
}
#endif

/* The fastest that there is; work NULL: none. */
static kind bfloat16(void) {
#if defined __AMX_BF16__ && defined __linux__
    if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0)
        return (kind){tiles, TILE_FLOP};
#endif
#ifdef __AVX512BF16__
    return (kind){dotted, 4.0 * 16 * CHAINS * TURNS};
#endif
    return (kind){NULL, 0};
}

int main(int argc, char **argv) {
    kind k = argc > 1 && strcmp(argv[1], "bf16") == 0 ? bfloat16() : (kind){fused, 2.0 * WIDTH * CHAINS * TURNS};
    double best = 0;
    float sink = 0;
    for (int round = 0; k.work && round < ROUNDS; round++) {
        double rate = 0;
#pragma omp parallel reduction(+ : sink, rate)
        {
            double start = now();
            sink += k.work(1e-7f * (float) (omp_get_thread_num() + 1));
            rate += k.flop / (now() - start) / 1e9;
        }
        best = rate > best ? rate : best;
    }
    if (k.work)
        printf("%.1f\n", best);
    return sink == 12345.0f;
}
