/* exec.h - the executor: the only one who touches tensor memory.
 *
 * Python's side (the tracer) writes commands into a ring; one executor thread, leader of a pinned OpenMP team, reads them in
 * order. At tier 0 a command is a call. In co-execution a BEGIN hands over an activation (one run of a plan), after which
 * Python only moves the activation's cursor; END or EXIT closes it. Results come back through futures.
 *
 * Everything below is called by the thread that holds the GIL, unless said otherwise. */
#ifndef TERRA_EXEC_H
#define TERRA_EXEC_H

#include <stdatomic.h>

#include "terra/plan.h"

typedef struct tr_slab tr_slab;
typedef struct tr_activation tr_activation;

/* What tensors share. The first part is the GIL holder's, the second the executor's, on another cache line. */
struct tr_storage {
    int64_t refs;
    size_t bytes;
    uint32_t version;        /* +1 for each in-place write */
    uint32_t exports;        /* arrays and capsules outside that see our memory */
    bool shared;             /* the memory is somebody else's (from_numpy) */
    bool sent;               /* a command names it: only the executor may free it */
    bool host_filled;        /* born with contents: a feed */
    bool bound;              /* born in an activation: until `data` is set, it is that activation's value `value` */
    uint32_t value;
    uint32_t epoch;          /* the trace that knows it, and as what */
    tr_ref ref;
    uint32_t last_write;     /* 1 + index of the last op of that trace that wrote it */
    void *owner;             /* shared memory: whom to tell */
    void (*release)(void *owner);

    _Alignas(64) void *data; /* NULL until first written */
    const tr_home *home;     /* the order that the bytes are in; NULL: the program's */
    void *copy;              /* its elements as bfloat16, while it has a home that says so; owned. NULL until first needed */
    bool pinned;             /* its address is known outside: the program's order for ever */
    tr_slab *slab;           /* the block that `data` lies in; NULL: its own arena block */
    tr_status poison;        /* what failed before it could be computed */
    struct tr_storage *next; /* in a list of dead ones, whoever has it */
};

/* One run of a plan. Python writes storage_of, external and args below the cursor before it moves it (release); the
 * executor reads them below the cursor (acquire). */
struct tr_activation {
    tr_plan *plan;
    int64_t *args;                 /* parallel to path->operands */
    tr_storage **storage_of;       /* per value: its storage while it lives; read by the executor at END and EXIT */
    tr_storage **external;         /* per external slot */
    tr_activation *next;
    /* A cache line of its own: the executor looks at it all the time. */
    _Alignas(64) _Atomic uint32_t cursor; /* validated ops, as far as Python has published them */
    /* the executor's */
    _Alignas(64) void **address;   /* per value */
    uint8_t *op_done;              /* ops run one at a time, before or instead of their instruction */
    uint8_t *broken;               /* per instruction: some of its ops were */
    uint8_t *settled;              /* per value that the plan relaid: it lies as the program sees it by now */
    uint32_t next_instr;
    uint32_t n_temps;
    tr_slab *slab, *carry;
    void **temps;                  /* arena blocks of values that were run at tier 0 or settled, owned until END or EXIT */
    /* Several executors: who runs what (NULL: the first runs all), until the first goes on alone. */
    const struct tr_schedule *schedule;
    uint8_t *ran;                  /* then: per instruction, it had run */
    _Atomic bool ended;            /* END seen: every op is validated */
    _Atomic bool alone;
    _Atomic bool finished;         /* it is done with the activation */
};

/* A fetch in flight; counted, because an interrupted waiter leaves before the answer comes. */
typedef struct tr_fetch tr_fetch;

/* Reads the options, the topology, chooses kernels. Threads start with the first command. Once. */
TR_API tr_status tr_exec_init(void);
/* Places `executors` (0: one per NUMA node) of `threads` each (0: their share of the cores) anew; more than there can be are cut
 * down. Blocks until the old ones have run what they were sent. TR_E_VALUE, with all as it was. */
TR_API tr_status tr_exec_place(int executors, int threads);
/* Runs everything, joins. Blocks. Returns the error that nobody was told, if any, with detail. */
TR_API tr_status tr_exec_shutdown(void);

TR_API tr_storage *tr_storage_create(size_t bytes); /* refs 1; NULL: no memory */
/* A storage born with contents: the caller fills *data before it is used anywhere. */
TR_API tr_storage *tr_storage_create_filled(size_t bytes, void **data);
TR_API tr_storage *tr_storage_create_shared(void *data, size_t bytes, void *owner, void (*release)(void *));
/* The struct of a value that dies inside its activation, no command naming it: gone at once. */
TR_API void tr_storage_recycle(tr_storage *s);

/* How a wait ends early. Called between waits of some milliseconds, with the GIL; not TR_OK: the wait returns it. */
typedef struct tr_wait_host {
    void *(*release)(void);
    void (*acquire)(void *token);
    tr_status (*check)(void);
} tr_wait_host;
TR_API void tr_exec_set_wait_host(const tr_wait_host *host);

/* Commands. They block while the ring is full. `need`: how many ops of the current activation must have run before a command
 * sent in the middle of one (0: none). A fetch right behind an activation's END may name one of its ops, too: it is answered when that has
 * run, and with 0 when all have. */
TR_API tr_call *tr_exec_call_reserve(int n_attrs, int n_in, int n_out, uint32_t need, tr_status *status);
TR_API void tr_exec_call_commit(void);
/* Takes s, at once or with one of the next commands: while an activation is open, nothing is freed. Never fails. */
TR_API void tr_exec_free(tr_storage *s);
/* A raw copy of t's elements, row-major, in its own dtype, to `dst` (NULL: only waits). Blocks. *data: the address of the
 * first element, for exports. */
TR_API tr_status tr_exec_fetch(const tr_operand *t, uint32_t need, void *dst, size_t bytes, void **data);
TR_API tr_status tr_exec_synchronize(uint32_t need);

/* An activation of a plan, from its pool; blocks while too many run. NULL: failure, with detail. */
TR_API tr_activation *tr_exec_begin(tr_plan *plan);
static inline void tr_exec_advance(tr_activation *a, uint32_t cursor) {
    // Release: pairs with the acquire in the executor's cursor(): publishes args, external and storage_of of the ops below it.
    atomic_store_explicit(&a->cursor, cursor, memory_order_release);
}
/* The cursor has made an instruction ready. In case the executor goes to sleep at this very moment, it is seen with the next call,
 * command or, at the latest, TERRA_STARVE_US later. */
TR_API void tr_exec_notify(void);
TR_API tr_status tr_exec_end(tr_activation *a);
TR_API tr_status tr_exec_exit(tr_activation *a);
/* Lets go of a plan that nobody begins any more, without waiting for its activations. True: the executor is done with it, it
 * may be destroyed. False: not yet, call again later. */
TR_API bool tr_exec_drop_plan(tr_plan *plan);

TR_API void tr_exec_fork_prepare(void);
TR_API void tr_exec_fork_parent(void);
TR_API void tr_exec_fork_child(void);

/* For tests: see tracer.h. */
TR_API void tr_exec_hold(bool on);
TR_API void tr_exec_wait_until_idle(void);

typedef struct tr_exec_stats {
    int64_t instructions, instructions_shared, ops_covered, ops_single, bytes_elided, fetches, demands, starvations;
    int64_t bytes_live, bytes_peak, bytes_touched, allocations;
    int executors, threads;
} tr_exec_stats;
TR_API void tr_exec_stats_get(tr_exec_stats *out);
/* How many executors share a plan's instructions; 1 before tr_exec_init. Any thread. */
TR_API int tr_exec_executors(void);
/* Threads of an executor's team, for which plans are compiled; 1 before tr_exec_init. Any thread. */
TR_API int tr_exec_team(void);
/* What Python's side has waited for so far: room in the ring, the oldest activation, answers. */
typedef struct tr_exec_waits {
    int64_t room_ns, activation_ns, answer_ns;
} tr_exec_waits;
TR_API void tr_exec_waits_get(tr_exec_waits *out);
TR_API const char *tr_exec_placement(void); /* text for info(); static */

/* The executor prints where a call came from through this. */
TR_API void tr_exec_set_site_text(const char *(*text)(uint32_t site));

#endif
