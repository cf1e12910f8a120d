/* An empty parallel region of an executor's team, after idle gaps of several lengths: shows how long libgomp's members spin
 * before they sleep (GOMP_SPINCOUNT, OMP_WAIT_POLICY), and what waking them costs. */
#include <omp.h>
#include <pthread.h>

#include "bench.h"
#include "terra/pool.h"
#include "terra/topology.h"

enum { ROUNDS = 300 };

static int64_t region_after(int64_t gap_ns) {
    static int64_t times[ROUNDS];
    for (int i = 0; i < ROUNDS; i++) {
        for (int64_t until = tr_now_ns() + gap_ns; tr_now_ns() < until;)
            tr_pause();
        int64_t begin = tr_now_ns();
#pragma omp parallel
        __asm__ volatile("" ::: "memory");
        times[i] = tr_now_ns() - begin;
    }
    return bench_median(times, ROUNDS);
}

static void *leader(void *arg) {
    tr_pool pool;
    tr_check(tr_pool_start(arg, &pool) == TR_OK);
    printf("team of %d%s%s %s\n", pool.thread_count, pool.bound ? ", bound" : "", pool.pinned ? ", pinned" : "", pool.note);
    static const int64_t gaps_us[] = {0, 10, 50, 100, 200, 400, 1000, 3000, 10000};
    for (size_t i = 0; i < sizeof gaps_us / sizeof *gaps_us; i++)
        printf("empty region after %5lld us: %6.2f us\n", (long long) gaps_us[i],
               (double) region_after(gaps_us[i] * 1000) / 1e3);
    tr_pool_stop(&pool);
    return NULL;
}

int main(void) {
    tr_topology *topology;
    tr_topology_plan *plan;
    tr_check(tr_topology_load(&topology) == TR_OK);
    tr_check(tr_topology_make_plan(topology, 1, 0, TR_PIN_ALWAYS, &plan) == TR_OK);
    pthread_t thread; // as in the runtime: a thread that isn't the program's first
    tr_check(pthread_create(&thread, NULL, leader, (void *) &plan->executors[0]) == 0);
    pthread_join(thread, NULL);
    tr_topology_plan_destroy(plan);
    tr_topology_destroy(topology);
    return 0;
}
