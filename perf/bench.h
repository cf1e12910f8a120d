/* bench.h - what the benchmarks share: medians and pinning. */
#ifndef TERRA_PERF_BENCH_H
#define TERRA_PERF_BENCH_H

#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "terra/event.h"
#include "terra/status.h"

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
