/* copy_bandwidth.c - what memory gives: arrays far larger than caches are copied, GB/s read and written together. Built and run by
 * the scripts here for the machine at hand: cc -O3 -march=native -fopenmp. */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

enum { ROUNDS = 8 };
static const size_t BYTES = (size_t) 256 << 20;

int main(void) {
    size_t n = BYTES / sizeof(double);
    double *from = aligned_alloc(64, BYTES), *to = aligned_alloc(64, BYTES);
    if (!from || !to)
        return 1;
#pragma omp parallel for simd schedule(static)
    for (size_t i = 0; i < n; i++) { // each page near the thread that will use it
        from[i] = (double) i;
        to[i] = 0;
    }
    double best = 0;
    for (int round = 0; round < ROUNDS; round++) {
        double start = omp_get_wtime();
#pragma omp parallel for simd schedule(static)
        for (size_t i = 0; i < n; i++)
            to[i] = from[i] + round; // not a memcpy, which may write past the caches
        double rate = 2.0 * (double) BYTES / (omp_get_wtime() - start) / 1e9;
        best = rate > best ? rate : best;
    }
    printf("%.2f\n", best);
    return to[n / 2] < 0;
}
