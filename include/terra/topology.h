/* topology.h - the machine as this process may use it, and where executors go on it.
 *
 * tr_topology_load() looks at the hardware through hwloc, restricted to what the affinity mask and the cgroup's cpuset
 * leave us, and reads the CPU quota (cpu.max, or cfs_quota_us). tr_topology_plan() places executors on it: it is a pure
 * function, so a synthetic topology tests an eight-node server on a laptop. Nothing here binds anything: pool.h does. */
#ifndef TERRA_TOPOLOGY_H
#define TERRA_TOPOLOGY_H

#include "terra/status.h"

typedef struct tr_topology tr_topology;

/* Reads the machine as the calling thread may use it; call it at start, before that thread is bound. What hwloc can't
 * tell degrades to one node with the CPUs of the affinity mask, and tr_topology_note says so. TR_E_NOMEM, TR_E_RUNTIME. */
TR_API tr_status tr_topology_load(tr_topology **out);

/* A machine that doesn't exist, in hwloc's notation ("numa:8 core:16 pu:2"). `quota` is the ceiling on threads, 0 for
 * none; `exclusive` what tr_topology_exclusive shall say. TR_E_VALUE: not such a description. */
TR_API tr_status tr_topology_load_synthetic(const char *description, int quota, bool exclusive, tr_topology **out);

TR_API void tr_topology_destroy(tr_topology *topology); /* takes it; NULL is fine */

/* What is usable: NUMA nodes, cores, hardware threads ("CPUs"). At least 1 each. */
TR_API int tr_topology_nodes(const tr_topology *topology);
TR_API int tr_topology_cores(const tr_topology *topology);
TR_API int tr_topology_cpus(const tr_topology *topology);

/* Most threads that the CPU quota lets run at once, rounded up; 0: no quota. */
TR_API int tr_topology_quota(const tr_topology *topology);

/* Whether our CPUs look like ours alone: a proper subset of the machine's was handed to us, and no quota cuts into it. */
TR_API bool tr_topology_exclusive(const tr_topology *topology);

/* Why something is less than it could be; "" if it isn't. Borrowed from the topology. */
TR_API const char *tr_topology_note(const tr_topology *topology);

/* Where one executor runs. */
typedef struct tr_placement {
    int node;             /* index of its (first) NUMA node among the usable ones, 0 .. */
    int node_count;       /* how many nodes it covers, from there: 1 unless fewer executors than nodes were asked for */
    int os_node;          /* the system's number for it, for mbind; -1 if unknown */
    bool bind_memory;     /* it covers one node of several: bind its memory to os_node */
    bool pin;             /* pin thread i to cpus[i]; else all threads to node_cpus */
    int thread_count;     /* the team's size, the leader included; at least 1 */
    const int *cpus;      /* [thread_count] system numbers, all different */
    int node_cpu_count;   /* the usable CPUs of its nodes */
    const int *node_cpus; /* [node_cpu_count] */
} tr_placement;

typedef struct tr_topology_plan {
    int executor_count;
    const tr_placement *executors; /* [executor_count] */
    char note[256];                /* what was asked for and refused, and why; "" if nothing */
} tr_topology_plan;

typedef enum tr_pin { TR_PIN_AUTO = -1, TR_PIN_NEVER = 0, TR_PIN_ALWAYS = 1 } tr_pin;

/* Places `executors` teams (0: one per node) of `threads` threads each (0: one per core of its share). Executors go round
 * the nodes; several on one node share its cores out; fewer than nodes cover several each. One thread per core first, the
 * second hardware threads of cores only when more are asked for. What can't be is cut down and noted: more executors than
 * cores, more threads than CPUs, more of either than the quota. The plan is the caller's, to be freed with tr_topology_plan_destroy. TR_E_VALUE: negative
 * counts; TR_E_NOMEM. */
TR_API tr_status tr_topology_make_plan(const tr_topology *topology, int executors, int threads, tr_pin pin,
                                       tr_topology_plan **out);
TR_API void tr_topology_plan_destroy(tr_topology_plan *plan); /* takes it; NULL is fine */

/* The quota of a cgroup, as threads, rounded up; 0: none. `proc_cgroup` is the text of /proc/self/cgroup, `mount` where
 * the hierarchy is mounted (/sys/fs/cgroup). The least of all ancestors counts. For tests; tr_topology_load calls it. */
TR_API int tr__cgroup_quota(const char *proc_cgroup, const char *mount);

#endif
