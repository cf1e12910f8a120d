/* fma_peak.c - what the cores can do at most: independent chains of fused multiply-adds in registers, GFLOP/s of float32. Built
 * and run by compare.py for the machine at hand: cc -O3 -march=native -fopenmp. */
#include <omp.h>
#include <stdio.h>
#include <time.h>

#ifdef __AVX512F__
enum { WIDTH = 16 };
#else
enum { WIDTH = 8 };
#endif
enum { CHAINS = 12, TURNS = 1 << 22 };
typedef float lanes __attribute__((vector_size(4 * WIDTH)));

/* This thread's own time, so that neighbours count less. */
static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double) t.tv_sec + 1e-9 * (double) t.tv_nsec;
}

/* Some lanes of the sum, so that nothing is dropped. */
static float work(float seed) {
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

int main(void) {
    double best = 0;
    float sink = 0;
    for (int round = 0; round < 8; round++) {
        double rate = 0;
#pragma omp parallel reduction(+ : sink, rate)
        {
            double start = now();
            sink += work(1e-7f * (float) (omp_get_thread_num() + 1));
            rate += 2.0 * WIDTH * CHAINS * TURNS / (now() - start) / 1e9;
        }
        best = rate > best ? rate : best;
    }
    printf("%.1f\n", best);
    return sink == 12345.0f;
}
