/* bench.h - what the benchmarks share: the time, medians, pinning, memory, scratch for kernels. */
#ifndef TERRA_PERF_BENCH_H
#define TERRA_PERF_BENCH_H

#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include "terra/alloc.h"
#include "terra/event.h"
#include "terra/kernel.h"
#include "terra/status.h"

/* Seconds. */
static inline double bench_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double) t.tv_sec + 1e-9 * (double) t.tv_nsec;
}

/* In huge pages, as tensors lie; freed by tr_free. */
static inline void *bench_memory(size_t bytes) {
    enum { HUGE_PAGE = 2 << 20 };
    bytes = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    void *p = tr_aligned_alloc(HUGE_PAGE, bytes);
    if (!p)
        exit(1);
    madvise(p, bytes, MADV_HUGEPAGE);
    return p;
}

/* A kernel context's scratch: one block, which the caller of a kernel allocates, and empties between calls. */
enum { BENCH_SCRATCH = 256 << 20 };
static inline void *bench_scratch(tr_kernel_ctx *ctx, size_t bytes) {
    size_t at = ctx->scratch_used;
    ctx->scratch_used += (bytes + 63) / 64 * 64;
    return ctx->scratch_used <= ctx->scratch_size ? (char *) ctx->scratch_base + at : NULL;
}

static inline int bench__compare(const void *a, const void *b) {
    int64_t x = *(const int64_t *) a, y = *(const int64_t *) b;
    return (x > y) - (x < y);
}

/* Sorts; then values[count / 2] is the median. */
static inline int64_t bench_median(int64_t *values, int count) {
    qsort(values, (size_t) count, sizeof *values, bench__compare);
    return values[count / 2];
}

/* Pins the calling thread to the nth CPU that the process may use (again from the first beyond the last). */
static inline void bench_pin(int nth) {
    static cpu_set_t usable; // read once, before anything is pinned
    if (CPU_COUNT(&usable) == 0)
        sched_getaffinity(0, sizeof usable, &usable);
    nth %= CPU_COUNT(&usable);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET(cpu, &usable) && nth-- == 0) {
            cpu_set_t one;
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            sched_setaffinity(0, sizeof one, &one);
            return;
        }
    }
}

#endif
