#include "terra/pool.h"

#include <criterion/criterion.h>
#include <omp.h>
#include <sched.h>
#include <stdlib.h>

#include "terra/topology.h"

typedef struct team {
    tr_topology *topology;
    tr_topology_plan *plan;
    tr_pool pool;
} team;

static team start(int threads, tr_pin pin) {
    team t = {0};
    cr_assert_eq(tr_topology_load(&t.topology), TR_OK);
    cr_assert_eq(tr_topology_make_plan(t.topology, 1, threads, pin, &t.plan), TR_OK);
    cr_assert_eq(tr_pool_start(&t.plan->executors[0], &t.pool), TR_OK);
    return t;
}

static void stop(team *t) {
    tr_pool_stop(&t->pool);
    tr_topology_plan_destroy(t->plan);
    tr_topology_destroy(t->topology);
}

Test(pool, has_the_size_of_its_placement) {
    team t = start(0, TR_PIN_NEVER);
    cr_assert_eq(t.pool.thread_count, t.plan->executors[0].thread_count);
    cr_assert_eq(omp_get_max_threads(), t.pool.thread_count);
    cr_assert_not(t.pool.pinned);
    int members = 0;
#pragma omp parallel reduction(+ : members)
    members = 1;
    cr_assert_eq(members, t.pool.thread_count);
    cr_assert_eq(tr_pool_refresh(&t.pool), 0);
    stop(&t);
}

Test(pool, pins_members_and_leaves_the_leader_on_the_node) {
    team t = start(0, TR_PIN_ALWAYS);
    cr_assert(t.pool.pinned, "%s", t.pool.note);
    int counts[256] = {0}, cpus[256] = {0};
#pragma omp parallel
    {
        cpu_set_t mask;
        sched_getaffinity(0, sizeof mask, &mask);
        counts[omp_get_thread_num()] = CPU_COUNT(&mask);
        cpus[omp_get_thread_num()] = sched_getcpu();
    }
    cr_assert_eq(counts[0], t.plan->executors[0].node_cpu_count);
    for (int i = 1; i < t.pool.thread_count; i++) {
        cr_assert_eq(counts[i], 1);
        cr_assert_eq(cpus[i], t.plan->executors[0].cpus[i]);
    }
    stop(&t);
}

Test(pool, newcomers_are_pinned) {
    team t = start(0, TR_PIN_ALWAYS);
    if (t.pool.thread_count > 2) { // a smaller region ends the surplus members
#pragma omp parallel num_threads(2)
        (void) omp_get_thread_num();
        cr_assert_eq(tr_pool_refresh(&t.pool), t.pool.thread_count - 2);
        cr_assert_eq(t.pool.recreated, t.pool.thread_count - 2);
    }
#pragma omp parallel num_threads(1)
    (void) omp_get_thread_num();
    cr_assert_eq(tr_pool_refresh(&t.pool), 0, "one thread leaves the team alone");
    stop(&t);
}

Test(pool, refused_binding_degrades_with_a_note) {
    static const int nowhere[] = {8000, 8001};
    tr_placement placement = {.thread_count = 2, .pin = true, .cpus = nowhere, .node_cpu_count = 2, .node_cpus = nowhere};
    tr_pool pool;
    cr_assert_eq(tr_pool_start(&placement, &pool), TR_OK);
    cr_assert_not(pool.bound);
    cr_assert_not(pool.pinned);
    cr_assert_neq(pool.note[0], '\0');
    cr_assert_eq(pool.thread_count, 2);
    tr_pool_stop(&pool);
}

Test(pool, without_a_placement_it_is_one_thread) {
    tr_pool pool;
    cr_assert_eq(tr_pool_start(NULL, &pool), TR_OK);
    cr_assert_eq(pool.thread_count, 1);
    cr_assert_eq(omp_get_max_threads(), 1);
    cr_assert_geq(tr_pool_minor_faults(&pool), 1);
    tr_pool_stop(&pool);
}

Test(pool, posing_starts_nothing) {
    tr_pool_pose_as(7);
    cr_assert_eq(omp_get_max_threads(), 7);
}
