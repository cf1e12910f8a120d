/* runner.h - an executor thread's own state. runner.c is the first one's loop and Python's side of the ring; activation.c runs
 * plans; crew.c shares their instructions with other executors; call.c runs one op.
 *
 * Owned by the executor thread, but for the fields that say otherwise. */
#ifndef TR_EXEC_RUNNER_H
#define TR_EXEC_RUNNER_H

#include "exec/schedule.h"
#include "exec/store.h"
#include "terra/dnn.h"
#include "terra/event.h"
#include "terra/future.h"
#include "terra/pool.h"
#include "terra/ring.h"
#include "terra/timeline.h"
#include "terra/topology.h"

#include <pthread.h>

typedef enum tr_msg_kind {
    TR_MSG_CALL,
    TR_MSG_FREE,
    TR_MSG_FETCH,
    TR_MSG_BEGIN,
    TR_MSG_END,
    TR_MSG_EXIT,
    TR_MSG_DROP_PLAN,
    TR_MSG_STOP,
} tr_msg_kind;

typedef struct tr_msg {
    uint32_t kind;
    uint32_t need; /* ops of the open activation that must have run before this is obeyed */
    void *object;  /* storage, fetch, activation, plan */
    tr_call call[];
} tr_msg;

struct tr_fetch {
    tr_future *future;
    tr_operand operand;      /* storage NULL: wait only */
    const tr_meta *packed;   /* row-major, of the operand's shape */
    uint32_t need;
    size_t bytes;
    bool exposes;            /* the address goes out, for good */
    tr_fetch *next;          /* waiting in an activation */
    unsigned char small[16]; /* the answer, or: */
    unsigned char *buffer;
};

typedef struct tr_scratch_block {
    void *base;
    size_t mapped; /* its bytes, where it is mapped by itself; 0: from the arena */
} tr_scratch_block;

typedef struct tr_runner {
    int index;                  /* among the executors. 0: the first, who obeys the ring and does all that isn't said to be others' */
    tr_ring *ring;
    tr_event wake;              /* Python → executor: a command, or the cursor moved; executors to each other. Not the first's: a task */
    tr_event room;              /* executor → Python: the ring has room; an activation finished */
    pthread_t thread;
    bool running;               /* Python's */
    tr_arena *arena;
    const tr_placement *placement;
    tr_pool pool;               /* its team */
    tr_kernel_ctx ctx;
    tr_scratch_block scratch;   /* ctx.scratch_base */
    tr_scratch_block scratch_more[16]; /* blocks beyond it, until the kernel returns */
    int n_scratch_more;

    /* The first failure that Python was not told of. Until it is told, nothing is computed. */
    tr_status error;
    char error_text[TR_FUTURE_MESSAGE_MAX];

    tr_activation *current;     /* open: BEGIN seen, not yet END or EXIT */
    bool failed;                /* something in the current activation failed: the rest is skipped */
    uint32_t starved_at;        /* cursor at which the last starvation was relieved */
    int64_t last_wait;          /* how long the executor last had nothing to do, in ns */
    tr_slab *slabs, *carries;   /* of all plans, which run one at a time; refs 0: free */
    tr_fetch *fetches;          /* waiting for ops of the current activation */
    tr_storage **frees;         /* deferred until the current activation closes */
    uint32_t n_frees, frees_size;
    tr_arg *args;               /* of the call being run */
    uint32_t args_size;

    /* Several executors (crew.c). */
    _Alignas(64) _Atomic(tr_activation *) task; /* what it runs its share of; the first sets it, the other clears it */
    _Atomic uint32_t done;      /* how many instructions of its share have run */
    _Atomic bool gave_up;       /* it can't go on: what comes next needs the first executor */
    _Atomic bool leaving;       /* it shall end */
    uint32_t failed_at;         /* NO_INSTR; or the instruction that failed, while it shared an activation, and how: */
    tr_status stumbled;
    char stumbled_text[TR_FUTURE_MESSAGE_MAX];

    _Atomic bool held;          /* tests: Python stops the executor */
    _Atomic bool idle;          /* tests: nothing is ready */

    _Atomic int64_t instructions, ops_covered, ops_single, bytes_elided, n_fetches, demands, starvations; /* counters */
} tr_runner;

/* Counters are written by the executor alone and read anywhere: relaxed. */
#define TR_COUNT(counter, n) \
    atomic_store_explicit(&(counter), atomic_load_explicit(&(counter), memory_order_relaxed) + (n), memory_order_relaxed)

static inline tr_track tr__track_of(const tr_runner *r) {
    return r->index ? (tr_track) (TR_TRACK_MORE + r->index) : TR_TRACK_EXECUTOR;
}

/* call.c: runs one op over resolved operands; the failure names the op and where it was called. */
tr_status tr__run_kernel(tr_runner *r, const tr_kernel_call *call, uint32_t site);
/* Keeps the first error. */
void tr__runner_fail(tr_runner *r, tr_status status);
tr_status tr__runner_args(tr_runner *r, uint32_t n);
/* After a kernel that was not run by tr__run_kernel. */
void *tr__runner_more_scratch(tr_runner *r, size_t bytes);
void tr__runner_reset_scratch(tr_runner *r);
/* Address of a storage's first byte; allocates it when it has none. NULL: poisoned, or no memory (status in *status). */
void *tr__storage_address(tr_runner *r, tr_storage *s, tr_status *status);
/* The same, the bytes in the order of `home` (NULL: the program's). */
void *tr__storage_address_at(tr_runner *r, tr_storage *s, const tr_home *home, tr_status *status);
/* Rearranges a tensor's bytes in place. NULL: the program's order; one of the two is. */
tr_status tr__move(tr_runner *r, void *data, const tr_home *from, const tr_home *to);
void tr__run_call(tr_runner *r, const tr_call *call);
void tr__answer_fetch(tr_runner *r, tr_fetch *f);

/* crew.c: several executors on one plan. The first gives out an activation; each runs its share of the schedule. Whatever else is
 * asked of the first (a single op, an exit, a value that must be moved, an error) it does alone, for the rest of that activation:
 * while others are at work nobody changes a storage or a value's place. */
enum { NO_INSTR = UINT32_MAX };
extern tr_runner *tr__crew[TR_MAX_EXECUTORS];
extern _Atomic int tr__crew_size; /* changes while no executor runs; the compile thread looks, too: any order will do */
/* Python's, while no executor runs: runners for all of the plan's placements, of which `first` is one. */
tr_status tr__crew_place(tr_runner *first, const tr_topology_plan *placement);
/* The rest is the first's. Threads; those that can't be started are done without. */
void tr__crew_start(void);
void tr__crew_stop(void);
static inline bool tr__crew_shares(const tr_runner *r) {
    // Relaxed: only the first executor writes it.
    return r->current && r->current->schedule && !atomic_load_explicit(&r->current->alone, memory_order_relaxed);
}
/* Whether a plan's instructions are shared, and how: first by what they may take, then by what they took; in some of the next runs
 * they are, in some not, and what was faster stays. */
typedef struct tr_sharing {
    tr_schedule *schedule; /* owned; NULL: not shared */
    int executors;         /* it is for so many */
    uint32_t opened;       /* runs so far, up to the decision */
    int64_t began, least[2]; /* ns: of the present run; the shortest run not shared, shared */
} tr_sharing;
/* While nobody runs anything: the schedule of the run that begins; NULL: the first runs all. */
const tr_schedule *tr__sharing_open(tr_sharing *s, const tr_plan *plan);
void tr__sharing_close(tr_sharing *s, const tr_activation *a);
/* Gives out the open activation, which has a schedule. */
void tr__crew_begin(tr_runner *r);
bool tr__crew_step(tr_runner *r);
/* Can the first run something of its share, or must it go on alone? */
bool tr__crew_may_step(const tr_runner *r);
/* Has another one something to do that waits neither for Python nor for the first? */
bool tr__crew_is_at_work(const tr_runner *r);
/* Waits while others are at work and the first has nothing to do; `other`: what else would be to do. False: they are not, and it still
 * has not; all has run, then, or waits for Python. */
bool tr__crew_wait(tr_runner *r, bool (*other)(const tr_runner *r));
bool tr__crew_has_run(const tr_activation *a, uint32_t instr);
/* From here on the first runs the activation alone. Nothing if it does already. */
void tr__crew_disband(tr_runner *r);

/* activation.c */
/* Can an instruction run as planned, and not op by op? */
bool tr__activation_as_planned(const tr_runner *r, uint32_t instr);
/* Runs it, timed and counted. */
tr_status tr__activation_run(tr_runner *r, uint32_t instr);
/* END has come: every op is validated. */
static inline bool tr__activation_has_ended(const tr_activation *a) {
    // Acquire: pairs with the release where END is obeyed.
    return atomic_load_explicit(&a->ended, memory_order_acquire);
}
/* Has Python validated all that an instruction waits for? */
static inline bool tr__activation_is_ready(const tr_activation *a, uint32_t instr) {
    // Acquire: pairs with the release in tr_exec_advance.
    return a->plan->instrs[instr].ready <= atomic_load_explicit(&a->cursor, memory_order_acquire) || tr__activation_has_ended(a);
}
void tr__activation_open(tr_runner *r, tr_activation *a);
/* Runs one ready instruction; false when none is. */
bool tr__activation_step(tr_runner *r);
/* Runs every validated op below `upto`, one at a time where its instruction isn't ready. */
void tr__activation_catch_up(tr_runner *r, uint32_t upto);
/* Where a value of the open activation lies, in the order in which the program sees it. NULL: nowhere, or no memory. */
void *tr__activation_address(tr_runner *r, tr_ref v, tr_status *status);
bool tr__activation_has_run(const tr_runner *r, uint32_t upto);
void tr__activation_close(tr_runner *r);
/* One plan less: what the pools hold may be too much for the others. */
void tr__plan_dropped(tr_runner *r);
/* Python's side: an activation from the plan's pool (NULL: no memory); all of them freed. */
tr_activation *tr__activation_take(tr_plan *plan);
void tr__activations_free(tr_plan *plan);

extern const char *(*tr__site_text)(uint32_t site);

#endif
