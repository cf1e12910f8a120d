/* The usable machine as a list of cores sorted by NUMA node, and placing executors on that list. hwloc is asked once and
 * then forgotten: the plan needs only this list. */
#include "terra/topology.h"

#include <hwloc.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "terra/alloc.h"

enum { MAX_PU = 8 }; // hardware threads of one core; POWER has 8

typedef struct core {
    int node; // index among the usable nodes
    int pu_count;
    int pu[MAX_PU]; // the system's numbers
} core;

struct tr_topology {
    int node_count, core_count, cpu_count;
    int quota;
    bool exclusive;
    int *os_nodes; // [node_count]
    int *first;    // [node_count + 1]: node n has cores[first[n] .. first[n + 1])
    core *cores;   // [core_count]
    char note[256];
};

static void add_note(char *note, size_t size, const char *fmt, ...) TR_PRINTF(3, 4);

static void add_note(char *note, size_t size, const char *fmt, ...) {
    size_t used = strlen(note);
    if (used > 0 && used + 2 < size) {
        memcpy(note + used, "; ", 3);
        used += 2;
    }
    va_list args;
    va_start(args, fmt);
    vsnprintf(note + used, size - used, fmt, args);
    va_end(args);
}

// ---- from hwloc to the list of cores

// The next node, after `node`, with CPUs of its own (memory without CPUs, or a second kind of memory, is no place to run).
static hwloc_obj_t next_node(hwloc_topology_t hw, hwloc_obj_t node, hwloc_const_bitmap_t taken) {
    while ((node = hwloc_get_next_obj_by_type(hw, HWLOC_OBJ_NUMANODE, node)) != NULL) {
        if (!hwloc_bitmap_iszero(node->cpuset) && !hwloc_bitmap_intersects(node->cpuset, taken))
            return node;
    }
    return NULL;
}

static void add_core(tr_topology *topology, int node, hwloc_const_bitmap_t cpuset) {
    core *new = &topology->cores[topology->core_count++];
    *new = (core){.node = node};
    int cpu;
    hwloc_bitmap_foreach_begin(cpu, cpuset) {
        if (new->pu_count < MAX_PU) {
            new->pu[new->pu_count++] = cpu;
            topology->cpu_count++;
        }
    }
    hwloc_bitmap_foreach_end();
}

static void add_node(tr_topology *topology, hwloc_topology_t hw, hwloc_const_bitmap_t cpuset, int os_node) {
    // Some virtual machines show no cores.
    hwloc_obj_type_t type =
        hwloc_get_nbobjs_inside_cpuset_by_type(hw, cpuset, HWLOC_OBJ_CORE) > 0 ? HWLOC_OBJ_CORE : HWLOC_OBJ_PU;
    int node = topology->node_count++;
    topology->os_nodes[node] = os_node;
    topology->first[node] = topology->core_count;
    hwloc_obj_t object = NULL;
    while ((object = hwloc_get_next_obj_inside_cpuset_by_type(hw, cpuset, type, object)) != NULL)
        add_core(topology, node, object->cpuset);
    topology->first[node + 1] = topology->core_count;
}

static tr_status read_cores(tr_topology *topology, hwloc_topology_t hw) {
    int cpus = hwloc_get_nbobjs_by_type(hw, HWLOC_OBJ_PU);
    int nodes = hwloc_get_nbobjs_by_type(hw, HWLOC_OBJ_NUMANODE);
    if (cpus < 1 || nodes < 1)
        return TR_FAIL(TR_E_RUNTIME, "hwloc sees no CPU that this process may use");
    topology->cores = tr_calloc((size_t) cpus, sizeof *topology->cores);
    topology->os_nodes = tr_calloc((size_t) nodes, sizeof *topology->os_nodes);
    topology->first = tr_calloc((size_t) nodes + 1, sizeof *topology->first);
    hwloc_bitmap_t taken = hwloc_bitmap_alloc();
    if (topology->cores == NULL || topology->os_nodes == NULL || topology->first == NULL || taken == NULL) {
        hwloc_bitmap_free(taken);
        return TR_FAIL(TR_E_NOMEM, "no memory for the topology");
    }
    hwloc_obj_t node = NULL;
    while ((node = next_node(hw, node, taken)) != NULL) {
        add_node(topology, hw, node->cpuset, (int) node->os_index);
        hwloc_bitmap_or(taken, taken, node->cpuset);
    }
    hwloc_bitmap_free(taken);
    if (topology->core_count == 0)
        return TR_FAIL(TR_E_RUNTIME, "hwloc sees no core that this process may use");
    return TR_OK;
}

// Components that would look for devices, or move the calling thread from core to core to ask each.
static void ask_the_system_only(hwloc_topology_t hw) {
    static const char *const others[] = {"x86", "pci", "cuda", "nvml", "rsmi", "opencl", "gl", "levelzero"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        hwloc_topology_set_components(hw, HWLOC_TOPOLOGY_COMPONENTS_FLAG_BLACKLIST, others[i]);
}

// Leaves the CPUs of the calling thread's affinity mask. Returns whether that took any away.
static bool restrict_to_affinity(hwloc_topology_t hw, tr_topology *topology) {
    hwloc_bitmap_t mask = hwloc_bitmap_alloc();
    bool smaller = false;
    if (mask == NULL || hwloc_get_cpubind(hw, mask, HWLOC_CPUBIND_THREAD) != 0) {
        add_note(topology->note, sizeof topology->note, "the affinity mask can't be read");
    } else if (!hwloc_bitmap_isincluded(hwloc_topology_get_topology_cpuset(hw), mask)) {
        smaller = true;
        if (hwloc_topology_restrict(hw, mask, HWLOC_RESTRICT_FLAG_REMOVE_CPULESS) != 0)
            add_note(topology->note, sizeof topology->note, "hwloc can't restrict itself to the affinity mask");
    }
    hwloc_bitmap_free(mask);
    return smaller;
}

static int read_quota(void) {
    char text[8192];
    FILE *stream = fopen("/proc/self/cgroup", "re");
    if (stream == NULL)
        return 0;
    size_t length = fread(text, 1, sizeof text - 1, stream);
    fclose(stream);
    text[length] = '\0';
    return tr__cgroup_quota(text, "/sys/fs/cgroup");
}

static tr_status read_machine(tr_topology *topology, hwloc_topology_t hw) {
    ask_the_system_only(hw);
    if (hwloc_topology_load(hw) != 0)
        return TR_FAIL(TR_E_RUNTIME, "hwloc can't read the topology");
    // A cpuset that is smaller than the machine has left its mark already: hwloc drops what is not allowed.
    bool smaller = !hwloc_bitmap_isequal(hwloc_topology_get_complete_cpuset(hw), hwloc_topology_get_allowed_cpuset(hw));
    smaller |= restrict_to_affinity(hw, topology);
    TR_TRY(read_cores(topology, hw));
    topology->quota = read_quota();
    if (topology->quota >= topology->cpu_count)
        topology->quota = 0;
    topology->exclusive = smaller && topology->quota == 0;
    return TR_OK;
}

static tr_status read_synthetic(tr_topology *topology, hwloc_topology_t hw, const char *description) {
    if (hwloc_topology_set_synthetic(hw, description) != 0 || hwloc_topology_load(hw) != 0)
        return TR_FAIL(TR_E_VALUE, "not a synthetic topology: %s", description);
    return read_cores(topology, hw);
}

static tr_status load(const char *description, tr_topology **out) {
    tr_topology *topology = tr_calloc(1, sizeof *topology);
    hwloc_topology_t hw;
    if (topology == NULL || hwloc_topology_init(&hw) != 0) {
        tr_free(topology);
        return TR_FAIL(TR_E_NOMEM, "no memory for the topology");
    }
    tr_status status = description != NULL ? read_synthetic(topology, hw, description) : read_machine(topology, hw);
    hwloc_topology_destroy(hw);
    if (status != TR_OK) {
        tr_topology_destroy(topology);
        return status;
    }
    *out = topology;
    return TR_OK;
}

// ---- placing executors

typedef struct request {
    int executors;
    int threads; // 0: one per core
    bool pin;
} request;

// The share of one executor: cores[low .. high) of nodes[node .. node + node_count).
typedef struct share {
    int node, node_count, low, high;
} share;

static int cores_of(const tr_topology *topology, int node) {
    return topology->first[node + 1] - topology->first[node];
}

static int cpus_between(const tr_topology *topology, int low, int high) {
    int count = 0;
    for (int i = low; i < high; i++)
        count += topology->cores[i].pu_count;
    return count;
}

static int executors_on(const tr_topology *topology, int executors, int node) {
    int nodes = topology->node_count;
    return executors / nodes + (node < executors % nodes);
}

static bool each_has_a_core(const tr_topology *topology, int executors) {
    for (int node = 0; node < topology->node_count; node++) {
        if (executors_on(topology, executors, node) > cores_of(topology, node))
            return false;
    }
    return true;
}

static share share_of(const tr_topology *topology, int executors, int index) {
    int nodes = topology->node_count;
    if (executors < nodes) {
        int low = index * nodes / executors, high = (index + 1) * nodes / executors;
        return (share){low, high - low, topology->first[low], topology->first[high]};
    }
    int node = index % nodes, nth = index / nodes;
    int sharers = executors_on(topology, executors, node), cores = cores_of(topology, node);
    int first = topology->first[node];
    return (share){node, 1, first + nth * cores / sharers, first + (nth + 1) * cores / sharers};
}

// Up to `most` CPUs of cores[low .. high): the first of each core, then the second of each, and so on.
static int list_cpus(const tr_topology *topology, int low, int high, int most, int *out) {
    int count = 0;
    for (int nth = 0; nth < MAX_PU; nth++) {
        for (int i = low; i < high && count < most; i++) {
            if (nth < topology->cores[i].pu_count)
                out[count++] = topology->cores[i].pu[nth];
        }
    }
    return count;
}

#define NOTE(plan, ...) add_note((plan)->note, sizeof(plan)->note, __VA_ARGS__)

static int settle_executors(const tr_topology *topology, int asked, tr_topology_plan *plan) {
    int executors = asked > 0 ? asked : topology->node_count;
    while (executors > topology->node_count && !each_has_a_core(topology, executors))
        executors--;
    if (executors < asked)
        NOTE(plan, "%d executors instead of %d: there are %d cores", executors, asked, topology->core_count);
    if (topology->quota > 0 && executors > topology->quota) {
        NOTE(plan, "%d executors instead of %d: the CPU quota", topology->quota, executors);
        executors = topology->quota;
    }
    return executors;
}

// The size of one team: what was asked for or a thread per core, within its CPUs and its part of the quota.
static int settle_threads(const tr_topology *topology, const request *wanted, int index, share own, tr_topology_plan *plan) {
    int threads = wanted->threads > 0 ? wanted->threads : own.high - own.low;
    int cpus = cpus_between(topology, own.low, own.high);
    if (threads > cpus) {
        NOTE(plan, "executor %d: %d threads instead of %d: it has %d CPUs", index, cpus, threads, cpus);
        threads = cpus;
    }
    int part = topology->quota / wanted->executors + (index < topology->quota % wanted->executors);
    if (topology->quota > 0 && threads > part) {
        NOTE(plan, "executor %d: %d threads instead of %d: the CPU quota", index, part, threads);
        threads = part;
    }
    return threads;
}

// Fills in one placement, its lists from `pool` on; returns what is left of the pool.
static int *place(const tr_topology *topology, const request *wanted, int index, tr_topology_plan *plan, tr_placement *out,
                  int *pool) {
    share own = share_of(topology, wanted->executors, index);
    int low = topology->first[own.node], high = topology->first[own.node + own.node_count];
    int threads = settle_threads(topology, wanted, index, own, plan);
    int *cpus = pool, *node_cpus = pool + threads;
    list_cpus(topology, own.low, own.high, threads, cpus);
    int node_cpu_count = list_cpus(topology, low, high, INT_MAX, node_cpus);
    *out = (tr_placement){
        .node = own.node,
        .node_count = own.node_count,
        .os_node = topology->os_nodes[own.node],
        .bind_memory = topology->node_count > 1 && own.node_count == 1,
        .pin = wanted->pin,
        .thread_count = threads,
        .cpus = cpus,
        .node_cpu_count = node_cpu_count,
        .node_cpus = node_cpus,
    };
    return node_cpus + node_cpu_count;
}

// ---- public

tr_status tr_topology_load(tr_topology **out) {
    return load(NULL, out);
}

tr_status tr_topology_load_synthetic(const char *description, int quota, bool exclusive, tr_topology **out) {
    TR_TRY(load(description, out));
    (*out)->quota = quota;
    (*out)->exclusive = exclusive;
    return TR_OK;
}

void tr_topology_destroy(tr_topology *topology) {
    if (topology == NULL)
        return;
    tr_free(topology->os_nodes);
    tr_free(topology->first);
    tr_free(topology->cores);
    tr_free(topology);
}

int tr_topology_nodes(const tr_topology *topology) {
    return topology->node_count;
}

int tr_topology_cores(const tr_topology *topology) {
    return topology->core_count;
}

int tr_topology_cpus(const tr_topology *topology) {
    return topology->cpu_count;
}

int tr_topology_quota(const tr_topology *topology) {
    return topology->quota;
}

bool tr_topology_exclusive(const tr_topology *topology) {
    return topology->exclusive;
}

const char *tr_topology_note(const tr_topology *topology) {
    return topology->note;
}

tr_status tr_topology_make_plan(const tr_topology *topology, int executors, int threads, tr_pin pin, tr_topology_plan **out) {
    if (executors < 0 || threads < 0)
        return TR_FAIL(TR_E_VALUE, "%d executors of %d threads: not possible", executors, threads);
    tr_topology_plan settled = {0};
    request wanted = {.executors = settle_executors(topology, executors, &settled),
                      .threads = threads,
                      .pin = pin == TR_PIN_ALWAYS || (pin == TR_PIN_AUTO && topology->exclusive)};

    // One block: the plan, its placements, then for each at most two lists of all CPUs.
    size_t count = (size_t) wanted.executors;
    size_t bytes = sizeof settled + count * sizeof(tr_placement);
    tr_topology_plan *plan = tr_malloc(bytes + count * 2 * (size_t) topology->cpu_count * sizeof(int));
    if (plan == NULL)
        return TR_FAIL(TR_E_NOMEM, "no memory for a placement");
    tr_placement *placements = (tr_placement *) (plan + 1);
    int *pool = (int *) (placements + count);
    *plan = settled;
    plan->executor_count = wanted.executors;
    plan->executors = placements;
    for (int i = 0; i < wanted.executors; i++)
        pool = place(topology, &wanted, i, plan, &placements[i], pool);
    *out = plan;
    return TR_OK;
}

void tr_topology_plan_destroy(tr_topology_plan *plan) {
    tr_free(plan);
}
