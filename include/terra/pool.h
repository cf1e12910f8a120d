/* pool.h - the OpenMP team that an executor thread leads.
 *
 * Kernels (and oneDNN) just say `#pragma omp parallel` in the leader thread; tr_pool_start, called once in that thread,
 * gives it a team of the placement's size on the placement's CPUs. Other threads, the Python thread first of all, must
 * never enter a parallel region: each would get a team of its own.
 *
 * What libgomp is like (measured), and what follows:
 *  - Members inherit the leader's affinity mask when they are created. So the leader is bound to the whole node, the team is
 *    started, and each member pins itself from inside. The leader stays on the node set: were it pinned to one core, every
 *    member created later would be too.
 *  - A region with fewer threads than the team (but more than one) ends the surplus members; the next full region creates
 *    new ones, unpinned, with cold caches: use the full size or one thread. tr_pool_refresh pins and counts such newcomers.
 *  - An empty region costs about 1 us while the members spin, 30 to 50 us once they sleep (perf/bench_pool). How long they
 *    spin is read from GOMP_SPINCOUNT or OMP_WAIT_POLICY when libgomp is loaded, so it is up to the program to set it before.
 *    On Zen: 1,000 is some 30 us, 100,000 about 2 ms, the default about 5 ms. A spinning member takes a core from Python.
 *
 * Leader thread only, unless said otherwise. */
#ifndef TERRA_POOL_H
#define TERRA_POOL_H

#include <stdint.h>

#include "terra/status.h"
#include "terra/topology.h"

typedef struct tr_pool {
    int thread_count; /* of the team as it is, the leader included */
    bool bound;       /* threads are bound to the node's CPUs */
    bool pinned;      /* members are pinned to a CPU each */
    int generation;   /* tells pools apart, for members that outlive one */
    const tr_placement *placement;
    int64_t recreated; /* members that libgomp had to create again since the start */
    char note[192];    /* what was refused, and why; "" if nothing */
} tr_pool;

/* Starts the team at full size, binds and pins it. `placement` is borrowed until tr_pool_stop; NULL means one thread, where
 * it is. Binding that is refused (a container's seccomp, a CPU gone offline) leaves the threads unbound and a note. A team
 * that libgomp cuts down (OMP_THREAD_LIMIT) is noted too. Blocks for some 100 us. */
TR_API tr_status tr_pool_start(const tr_placement *placement, tr_pool *out);

/* Lets the team go: members exit when the leader thread does. */
TR_API void tr_pool_stop(tr_pool *pool);

/* Pins members that libgomp has created since; returns how many. One parallel region. */
TR_API int tr_pool_refresh(tr_pool *pool);

/* Page faults without I/O so far, of all members together. One parallel region. */
TR_API int64_t tr_pool_minor_faults(const tr_pool *pool);

/* For a thread that leads no team but compiles for one (oneDNN keys primitives by the size of the team): makes
 * omp_get_max_threads() say `threads` in the calling thread. Starts nothing. */
TR_API void tr_pool_pose_as(int threads);

#endif
