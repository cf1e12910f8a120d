#include "terra/topology.h"

#include <criterion/criterion.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "terra/alloc.h"

static tr_topology *synthetic(const char *description, int quota, bool exclusive) {
    tr_topology *topology = NULL;
    cr_assert_eq(tr_topology_load_synthetic(description, quota, exclusive, &topology), TR_OK, "%s", tr_status_detail());
    return topology;
}

static tr_topology_plan *plan_of(const tr_topology *topology, int executors, int threads, tr_pin pin) {
    tr_topology_plan *plan = NULL;
    cr_assert_eq(tr_topology_make_plan(topology, executors, threads, pin, &plan), TR_OK, "%s", tr_status_detail());
    return plan;
}

// What every plan must keep: sizes, and no CPU given to two threads.
static void check_plan(const tr_topology *topology, const tr_topology_plan *plan) {
    char used[4096] = {0};
    int total = 0;
    cr_assert_geq(plan->executor_count, 1);
    for (int e = 0; e < plan->executor_count; e++) {
        const tr_placement *p = &plan->executors[e];
        cr_assert_geq(p->thread_count, 1);
        cr_assert_leq(p->thread_count, p->node_cpu_count);
        cr_assert_leq(p->node + p->node_count, tr_topology_nodes(topology));
        for (int i = 0; i < p->thread_count; i++) {
            cr_assert_not(used[p->cpus[i]]);
            used[p->cpus[i]] = 1;
            bool in_node = false;
            for (int k = 0; k < p->node_cpu_count; k++)
                in_node |= p->node_cpus[k] == p->cpus[i];
            cr_assert(in_node);
        }
        total += p->thread_count;
    }
    cr_assert_leq(total, tr_topology_cpus(topology));
    if (tr_topology_quota(topology) > 0)
        cr_assert_leq(total, tr_topology_quota(topology));
}

Test(topology, this_machine) {
    tr_topology *topology = NULL;
    cr_assert_eq(tr_topology_load(&topology), TR_OK, "%s", tr_status_detail());
    cpu_set_t mask;
    cr_assert_eq(sched_getaffinity(0, sizeof mask, &mask), 0);
    cr_assert_eq(tr_topology_cpus(topology), CPU_COUNT(&mask));
    tr_topology_plan *plan = plan_of(topology, 0, 0, TR_PIN_AUTO);
    check_plan(topology, plan);
    for (int i = 0; i < plan->executors[0].thread_count; i++)
        cr_assert(CPU_ISSET(plan->executors[0].cpus[i], &mask));
    tr_topology_plan_destroy(plan);
    tr_topology_destroy(topology);
}

Test(topology, a_narrowed_mask_is_kept_and_counts_as_ours) {
    cpu_set_t mask, one;
    sched_getaffinity(0, sizeof mask, &mask);
    if (CPU_COUNT(&mask) < 2)
        return;
    int cpu = 0;
    while (!CPU_ISSET(cpu, &mask))
        cpu++;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    cr_assert_eq(sched_setaffinity(0, sizeof one, &one), 0);
    tr_topology *topology = NULL;
    cr_assert_eq(tr_topology_load(&topology), TR_OK);
    cr_assert_eq(tr_topology_cpus(topology), 1);
    cr_assert_eq(tr_topology_exclusive(topology), tr_topology_quota(topology) == 0);
    tr_topology_plan *plan = plan_of(topology, 0, 0, TR_PIN_AUTO);
    cr_assert_eq(plan->executors[0].cpus[0], cpu);
    tr_topology_plan_destroy(plan);
    tr_topology_destroy(topology);
}

Test(topology, eight_nodes) {
    tr_topology *topology = synthetic("numa:8 core:16 pu:2", 0, false);
    cr_assert_eq(tr_topology_nodes(topology), 8);
    cr_assert_eq(tr_topology_cores(topology), 128);
    cr_assert_eq(tr_topology_cpus(topology), 256);
    tr_topology_plan *plan = plan_of(topology, 0, 0, TR_PIN_AUTO);
    check_plan(topology, plan);
    cr_assert_eq(plan->executor_count, 8);
    for (int e = 0; e < 8; e++) {
        cr_assert_eq(plan->executors[e].node, e);
        cr_assert_eq(plan->executors[e].os_node, e);
        cr_assert_eq(plan->executors[e].thread_count, 16);
        cr_assert_eq(plan->executors[e].node_cpu_count, 32);
        cr_assert(plan->executors[e].bind_memory);
        cr_assert_not(plan->executors[e].pin);
        for (int i = 0; i < 16; i++) // the first hardware thread of each core
            cr_assert_eq(plan->executors[e].cpus[i], e * 32 + i * 2);
    }
    cr_assert_str_eq(plan->note, "");
    tr_topology_plan_destroy(plan);
    tr_topology_destroy(topology);
}

Test(topology, second_hardware_threads_come_last) {
    tr_topology *topology = synthetic("numa:1 core:4 pu:2", 0, true);
    tr_topology_plan *plan = plan_of(topology, 1, 6, TR_PIN_AUTO);
    check_plan(topology, plan);
    static const int expected[] = {0, 2, 4, 6, 1, 3};
    cr_assert_arr_eq(plan->executors[0].cpus, expected, sizeof expected);
    cr_assert(plan->executors[0].pin);
    cr_assert_not(plan->executors[0].bind_memory);
    tr_topology_plan_destroy(plan);
    tr_topology_destroy(topology);
}

Test(topology, several_executors_share_a_node) {
    tr_topology *topology = synthetic("numa:2 core:8 pu:1", 0, false);
    tr_topology_plan *plan = plan_of(topology, 4, 0, TR_PIN_ALWAYS);
    check_plan(topology, plan);
    cr_assert_eq(plan->executor_count, 4);
    for (int e = 0; e < 4; e++) {
        cr_assert_eq(plan->executors[e].node, e % 2);
        cr_assert_eq(plan->executors[e].thread_count, 4);
        cr_assert(plan->executors[e].pin);
    }
    tr_topology_plan_destroy(plan);
    tr_topology_destroy(topology);
}

Test(topology, fewer_executors_than_nodes_cover_several) {
    tr_topology *topology = synthetic("numa:4 core:8 pu:1", 0, false);
    tr_topology_plan *plan = plan_of(topology, 1, 0, TR_PIN_NEVER);
    check_plan(topology, plan);
    cr_assert_eq(plan->executors[0].node_count, 4);
    cr_assert_eq(plan->executors[0].thread_count, 32);
    cr_assert_not(plan->executors[0].bind_memory);
    tr_topology_plan_destroy(plan);
    tr_topology_destroy(topology);
}

Test(topology, a_quota_cuts_threads_and_says_so) {
    tr_topology *topology = synthetic("numa:2 core:8 pu:1", 5, true);
    tr_topology_plan *plan = plan_of(topology, 0, 0, TR_PIN_AUTO);
    check_plan(topology, plan);
    cr_assert_eq(plan->executors[0].thread_count, 3);
    cr_assert_eq(plan->executors[1].thread_count, 2);
    cr_assert_not_null(strstr(plan->note, "quota"));
    tr_topology_plan_destroy(plan);
    plan = plan_of(topology, 9, 0, TR_PIN_AUTO);
    check_plan(topology, plan);
    cr_assert_eq(plan->executor_count, 5);
    tr_topology_plan_destroy(plan);
    tr_topology_destroy(topology);
}

Test(topology, impossible_wishes_are_cut) {
    tr_topology *topology = synthetic("numa:2 core:2 pu:2", 0, false);
    for (int executors = 0; executors < 12; executors++) {
        for (int threads = 0; threads < 12; threads++) {
            tr_topology_plan *plan = plan_of(topology, executors, threads, TR_PIN_AUTO);
            check_plan(topology, plan);
            if (executors > 4 || threads > 8)
                cr_assert_neq(plan->note[0], '\0');
            tr_topology_plan_destroy(plan);
        }
    }
    tr_topology_plan *plan = NULL;
    cr_assert_eq(tr_topology_make_plan(topology, -1, 0, TR_PIN_AUTO, &plan), TR_E_VALUE);
    tr_topology_destroy(topology);
}

Test(topology, nonsense_and_no_memory) {
    tr_topology *topology = NULL;
    cr_assert_eq(tr_topology_load_synthetic("eight nodes", 0, false, &topology), TR_E_VALUE);
    int64_t before = tr_alloc_live();
    for (int n = 1;; n++) {
        tr_fail_alloc_set(n);
        tr_status status = tr_topology_load_synthetic("numa:2 core:2 pu:2", 0, false, &topology);
        if (status == TR_OK)
            break;
        cr_assert_eq(status, TR_E_NOMEM);
        cr_assert_eq(tr_alloc_live(), before);
    }
    tr_fail_alloc_set(0);
    tr_topology_destroy(topology);
}

static void write_file(const char *dir, const char *name, const char *text) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *stream = fopen(path, "w");
    cr_assert_not_null(stream);
    fputs(text, stream);
    fclose(stream);
}

static void make_dir(const char *root, const char *name) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", root, name);
    mkdir(path, 0700);
}

Test(topology, cgroup_quota) {
    char root[] = "/tmp/terra-cgroup-XXXXXX", inner[256], legacy[256];
    cr_assert_not_null(mkdtemp(root));
    make_dir(root, "pod");
    make_dir(root, "pod/job");
    make_dir(root, "cpu,cpuacct");
    snprintf(inner, sizeof inner, "%s/pod/job", root);
    snprintf(legacy, sizeof legacy, "%s/cpu,cpuacct", root);
    cr_assert_eq(tr__cgroup_quota("0::/pod/job\n", root), 0);
    write_file(inner, "cpu.max", "max 100000\n");
    cr_assert_eq(tr__cgroup_quota("0::/pod/job\n", root), 0);
    write_file(inner, "cpu.max", "250000 100000\n");
    cr_assert_eq(tr__cgroup_quota("0::/pod/job\n", root), 3);
    snprintf(inner, sizeof inner, "%s/pod", root);
    write_file(inner, "cpu.max", "100000 100000\n"); // the least of the ancestors
    cr_assert_eq(tr__cgroup_quota("0::/pod/job\n", root), 1);
    cr_assert_eq(tr__cgroup_quota("0::/elsewhere/unmounted\n", root), 0);
    write_file(legacy, "cpu.cfs_quota_us", "-1\n");
    write_file(legacy, "cpu.cfs_period_us", "100000\n");
    cr_assert_eq(tr__cgroup_quota("4:cpu,cpuacct:/gone\n1:name=systemd:/\n", root), 0);
    write_file(legacy, "cpu.cfs_quota_us", "150000\n");
    cr_assert_eq(tr__cgroup_quota("9:cpuset:/\n4:cpu,cpuacct:/gone\n", root), 2);
    cr_assert_eq(tr__cgroup_quota("garbage\n\n::\n", root), 0);
}
