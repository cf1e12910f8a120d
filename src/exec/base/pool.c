/* Starting, binding and pinning libgomp's team of the calling thread. */
#include "terra/pool.h"

#include <errno.h>
#include <omp.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

enum { MOST_CPUS = 8192 };

// The generation of the pool that this thread has been pinned for; 0: none. A member created anew starts at 0.
static _Thread_local int pinned_for;

static _Atomic int generations;

// Binds the calling thread. Returns 0 or errno.
static int bind_to(const int *cpus, int count) {
    cpu_set_t *mask = CPU_ALLOC(MOST_CPUS);
    if (mask == NULL)
        return ENOMEM;
    size_t bytes = CPU_ALLOC_SIZE(MOST_CPUS);
    CPU_ZERO_S(bytes, mask);
    for (int i = 0; i < count; i++)
        CPU_SET_S((size_t) cpus[i], bytes, mask);
    int error = sched_setaffinity(0, bytes, mask) == 0 ? 0 : errno;
    CPU_FREE(mask);
    return error;
}

// Members only: the leader keeps the node's mask, which those created later inherit.
static int pin_member(const tr_pool *pool, int member) {
    return member == 0 || !pool->pinned ? 0 : bind_to(&pool->placement->cpus[member], 1);
}

static void bind_leader(tr_pool *pool) {
    if (omp_get_proc_bind() != omp_proc_bind_false) {
        snprintf(pool->note, sizeof pool->note, "threads are left to OMP_PROC_BIND");
        return;
    }
    int error = bind_to(pool->placement->node_cpus, pool->placement->node_cpu_count);
    if (error != 0)
        snprintf(pool->note, sizeof pool->note, "binding to node %d is refused: %s", pool->placement->node, strerror(error));
    pool->bound = error == 0;
    pool->pinned = pool->bound && pool->placement->pin;
}

// Runs the first region. Returns the first member's errno, 0 if all are in place.
static int start_team(tr_pool *pool, int threads) {
    int size = 1, first_error = 0;
#pragma omp parallel num_threads(threads) reduction(max : size) reduction(max : first_error)
    {
        size = omp_get_num_threads();
        pinned_for = pool->generation;
        first_error = pin_member(pool, omp_get_thread_num());
    }
    pool->thread_count = size;
    return first_error;
}

tr_status tr_pool_start(const tr_placement *placement, tr_pool *out) {
    *out = (tr_pool){.thread_count = 1, .placement = placement, .generation = ++generations};
    int threads = placement != NULL ? placement->thread_count : 1;
    omp_set_dynamic(0);
    omp_set_max_active_levels(1);
    omp_set_num_threads(threads);
    if (placement == NULL)
        return TR_OK;
    bind_leader(out);
    int error = start_team(out, threads);
    if (error != 0) {
        out->pinned = false;
        snprintf(out->note, sizeof out->note, "pinning is refused: %s", strerror(error));
    }
    if (out->thread_count < threads) {
        snprintf(out->note, sizeof out->note, "%d threads instead of %d: OMP_THREAD_LIMIT", out->thread_count, threads);
        omp_set_num_threads(out->thread_count);
    }
    return TR_OK;
}

void tr_pool_stop(tr_pool *pool) {
    *pool = (tr_pool){0};
}

int tr_pool_refresh(tr_pool *pool) {
    int newcomers = 0;
#pragma omp parallel num_threads(pool->thread_count) reduction(+ : newcomers)
    {
        if (pinned_for != pool->generation) {
            pinned_for = pool->generation;
            pin_member(pool, omp_get_thread_num());
            newcomers = 1;
        }
    }
    pool->recreated += newcomers;
    return newcomers;
}

int64_t tr_pool_minor_faults(const tr_pool *pool) {
    int64_t faults = 0;
#pragma omp parallel num_threads(pool->thread_count) reduction(+ : faults)
    {
        struct rusage usage;
        if (getrusage(RUSAGE_THREAD, &usage) == 0)
            faults = usage.ru_minflt;
    }
    return faults;
}

void tr_pool_pose_as(int threads) {
    omp_set_dynamic(0);
    omp_set_num_threads(threads);
}
