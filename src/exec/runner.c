/* runner.c - the executor thread's loop, and Python's side of the ring.
 *
 * Threads: Python's side runs under the GIL, by whichever thread holds it; the ring's single producer is "the GIL holder".
 * The executor takes no lock and never the GIL. It sleeps on `wake` only; Python sleeps on futures and on `room`. */
#include "exec/runner.h"

#include "terra/alloc.h"
#include "terra/options.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>

enum { WAIT_SLICE_NS = 100 * 1000 * 1000, MAX_OPEN_ACTIVATIONS = 3 };

static tr_runner runner;
static tr_topology *topology;
static tr_topology_plan *placement;
static tr_wait_host wait_host;

/* ------------------------------------------------------------------------------------------------ the executor */

static bool has_work(const void *arg) {
    const tr_runner *r = arg;
    if (!tr_ring_is_empty(r->ring))
        return true;
    if (!r->current)
        return false;
    if (tr__crew_shares(r))
        return tr__crew_may_step(r) || tr__crew_is_at_work(r);
    return r->current->next_instr < r->current->plan->n_instrs && tr__activation_is_ready(r->current, r->current->next_instr);
}

static void defer_free(tr_runner *r, tr_storage *s) {
    if (r->n_frees == r->frees_size) {
        uint32_t size = r->frees_size ? 2 * r->frees_size : 1024;
        tr_storage **more = tr_realloc(r->frees, size * sizeof *more);
        if (!more)
            return; // kept for ever rather than freed too early
        r->frees = more;
        r->frees_size = size;
    }
    r->frees[r->n_frees++] = s;
}

static void take_fetch(tr_runner *r, tr_fetch *f) {
    if (r->current && !tr__activation_has_run(r, f->need) && r->error == TR_OK) {
        f->next = r->fetches;
        r->fetches = f;
    } else {
        if (r->error != TR_OK && r->current)
            r->failed = true;
        tr__answer_fetch(r, f);
    }
}

/* Answers what the last instruction made answerable; with `demand`, Python waits and nothing is ready: the rest is run op by
 * op. */
static void serve_fetches(tr_runner *r, bool demand) {
    tr_fetch **at = &r->fetches;
    while (*at) {
        tr_fetch *f = *at;
        if (demand && r->error == TR_OK && !tr__activation_has_run(r, f->need)) {
            TR_COUNT(r->demands, 1);
            tr__activation_catch_up(r, f->need);
        }
        if (r->error != TR_OK || tr__activation_has_run(r, f->need)) {
            *at = f->next;
            tr__answer_fetch(r, f);
        } else
            at = &f->next;
    }
}

static void close_activation(tr_runner *r) {
    serve_fetches(r, true);
    tr__activation_close(r);
    tr_event_notify(&r->room);
}

/* What need not wait until an ended activation has closed: a value that an op of it has written, such as the loss behind the mark,
 * is copied as soon as that op has run; what is freed waits for the end in any case. */
static bool is_obeyed_now(const tr_runner *r, const tr_msg *m) {
    if (!r->current || !tr__activation_has_ended(r->current) || m->kind == TR_MSG_FREE)
        return true;
    const tr_fetch *f = m->object;
    return m->kind == TR_MSG_FETCH && f->need && f->operand.storage && !f->exposes;
}

/* Returns false for STOP. */
static bool obey(tr_runner *r, tr_msg *m) {
    switch ((tr_msg_kind) m->kind) {
    case TR_MSG_CALL:
        if (r->current)
            tr__activation_catch_up(r, m->need);
        tr__run_call(r, m->call);
        break;
    case TR_MSG_FREE:
        for (tr_storage *s = m->object, *next; s; s = next) {
            next = s->next;
            if (r->current)
                defer_free(r, s);
            else
                tr__store_free(r->arena, s);
        }
        break;
    case TR_MSG_FETCH:
        take_fetch(r, m->object);
        break;
    case TR_MSG_BEGIN:
        r->starved_at = UINT32_MAX;
        tr__activation_open(r, m->object);
        break;
    case TR_MSG_END:
        // Release: pairs with the acquires of the executors that share it. It is closed once the rest has run.
        atomic_store_explicit(&r->current->ended, true, memory_order_release);
        if (tr__crew_shares(r))
            tr_event_notify(&r->wake);
        break;
    case TR_MSG_EXIT:
        tr__activation_catch_up(r, UINT32_MAX);
        close_activation(r);
        break;
    case TR_MSG_DROP_PLAN:
        tr__plan_dropped(r);
        // Release: pairs with the acquire in tr_exec_drop_plan.
        atomic_store_explicit(&((tr_plan *) m->object)->dropped, true, memory_order_release);
        break;
    case TR_MSG_STOP:
        tr__crew_disband(r); // an activation may be open: it goes on once the thread has started again
        return false;
    }
    return true;
}

/* How long to spin before sleeping: waking a sleeper costs Python a system call, and more in a virtual machine. Where the last wait
 * was short, the next will be, and where the team leaves Python a core of its own the spinning takes nothing from it. */
enum { PATIENCE_NS = 2000000 };

static int64_t patience(const tr_runner *r) {
    int64_t least = tr_options_get()->spin_us * 1000;
    bool alone = r->placement && r->placement->node_cpu_count > r->placement->thread_count;
    return alone && r->last_wait < PATIENCE_NS && least && least < PATIENCE_NS ? PATIENCE_NS : least;
}

/* Python wakes us for commands and where its cursor makes an instruction ready, not for every op: what starves is looked for. */
static void idle(tr_runner *r) {
    const tr_options *options = tr_options_get();
    bool starved = r->current && !r->failed;
    bool relieved = starved && r->starved_at == atomic_load_explicit(&r->current->cursor, memory_order_acquire);
    int64_t timeout = starved ? options->starve_us * (relieved ? 8000 : 1000) : TR_FOREVER;
    int64_t spin = relieved ? 0 : patience(r), began = tr_now_ns();
    tr_status status = tr_event_wait(&r->wake, has_work, r, spin, timeout);
    r->last_wait = tr_now_ns() - began;
    if (status == TR_OK || !starved)
        return;
    // Python is busy elsewhere, and validated ops wait for an instruction that waits for more: they need not.
    uint32_t cursor = atomic_load_explicit(&r->current->cursor, memory_order_acquire);
    if (r->starved_at == cursor || (tr__crew_shares(r) && tr__crew_is_at_work(r)))
        return;
    r->starved_at = cursor;
    if (!tr__activation_has_run(r, cursor)) {
        TR_COUNT(r->starvations, 1);
        tr__activation_catch_up(r, cursor);
    }
}

/* While others are at work: a command to be obeyed, or a fetch that can be answered? */
static bool has_orders(const tr_runner *r) {
    size_t bytes;
    const tr_msg *m = tr_ring_peek(r->ring, &bytes);
    if (m && is_obeyed_now(r, m))
        return true;
    for (const tr_fetch *f = r->fetches; f; f = f->next)
        if (tr__activation_has_run(r, f->need))
            return true;
    return false;
}

static void *executor_main(void *arg) {
    tr_runner *r = arg;
    tr__crew_start();
    tr_pool_start(r->placement, &r->pool);
    r->ctx.threads = r->pool.thread_count;
    for (;;) {
        while (TR_UNLIKELY(atomic_load_explicit(&r->held, memory_order_acquire)))
            sched_yield();
        size_t bytes;
        tr_msg *m = tr_ring_peek(r->ring, &bytes);
        if (m && is_obeyed_now(r, m)) {
            bool go_on = obey(r, m);
            tr_ring_release(r->ring);
            tr_event_notify(&r->room);
            if (!go_on)
                break;
        } else if (r->current && tr__activation_step(r)) {
            serve_fetches(r, false);
        } else if (r->current && tr__crew_wait(r, has_orders)) {
            serve_fetches(r, false);
        } else if (r->current && tr__activation_has_ended(r->current)) {
            close_activation(r);
        } else {
            serve_fetches(r, true);
            // Release: pairs with tr_exec_wait_until_idle.
            atomic_store_explicit(&r->idle, true, memory_order_release);
            idle(r);
            atomic_store_explicit(&r->idle, false, memory_order_relaxed);
        }
    }
    tr__crew_stop();
    tr_pool_stop(&r->pool);
    return NULL;
}

static void *scratch(tr_kernel_ctx *ctx, size_t bytes) {
    tr_runner *r = (tr_runner *) ((char *) ctx - offsetof(tr_runner, ctx));
    bytes = (bytes + 63) & ~(size_t) 63;
    size_t at = ctx->scratch_used;
    ctx->scratch_used += bytes;
    if (at + bytes <= ctx->scratch_size)
        return (char *) ctx->scratch_base + at;
    return tr__runner_more_scratch(r, bytes);
}

/* ------------------------------------------------------------------------------------------------ Python's side */

tr_status tr_exec_init(void) {
    TR_TRY(tr_options_load());
    const tr_options *options = tr_options_get();
    if (options->executors < 0 || options->executors > TR_MAX_EXECUTORS)
        return TR_FAIL(TR_E_VALUE, "TERRA_EXECUTORS=%lld: from 1 to %d, or 0 for one per NUMA node", (long long) options->executors,
                       TR_MAX_EXECUTORS);
    if (options->fail_alloc)
        tr_fail_alloc_set(options->fail_alloc);
    if (options->timeline)
        tr_timeline_start();
    TR_TRY(tr_op_init());
    TR_TRY(tr_kernel_init(options->isa));
    TR_TRY(tr_topology_load(&topology));
    TR_TRY(tr_topology_make_plan(topology, (int) options->executors, (int) options->threads,
                                 (tr_pin) options->pin, &placement));
    TR_TRY(tr__store_init());
    TR_TRY(tr_ring_create((size_t) options->ring_bytes, &runner.ring));
    runner.ctx.scratch = scratch;
    TR_TRY(tr__crew_place(&runner, placement));
    return tr_arena_create(runner.placement->bind_memory ? runner.placement->os_node : -1, &runner.arena);
}

static tr_status start(void) {
    if (TR_LIKELY(runner.running))
        return TR_OK;
    if (pthread_create(&runner.thread, NULL, executor_main, &runner) != 0)
        return TR_FAIL(TR_E_RUNTIME, "can't start the executor thread");
    runner.running = true;
    return TR_OK;
}

void tr_exec_set_wait_host(const tr_wait_host *host) {
    wait_host = *host;
}

/* > 0: waits that nobody could report an interrupt from (a tensor dies, an iteration opens or closes). A signal stays pending
 * until the interpreter looks for it. */
static int quiet;

static tr_exec_waits waits; /* the GIL's */

void tr_exec_waits_get(tr_exec_waits *out) {
    *out = waits;
}

/* Waits without the GIL, in slices. `wait` returns TR_OK when there is nothing left to wait for; it spins for spin_ns first, but in
 * the first slice only: whoever has waited for one takes an executor's core for it. (A signal ends a slice early.) Nobody waits for an
 * executor that is held: a test's hold ends here. */
typedef tr_status wait_fn(void *arg, int64_t spin_ns);
static tr_status wait_slices(wait_fn *wait, void *arg, bool (*done)(void *arg), int64_t *waited_ns) {
    int64_t spin_ns = tr_options_get()->spin_us * 1000;
    if (TR_UNLIKELY(atomic_load_explicit(&runner.held, memory_order_relaxed))) // this side writes it
        tr_exec_hold(false);
    for (;;) {
        int64_t start = tr_now_ns();
        void *token = wait_host.release ? wait_host.release() : NULL;
        tr_status status = wait(arg, spin_ns);
        if (wait_host.acquire)
            wait_host.acquire(token);
        *waited_ns += tr_now_ns() - start;
        if (done(arg))
            return status == TR_E_TIMEOUT ? wait(arg, 0) : status; // it came just behind the slice
        spin_ns = 0;
        if (wait_host.check && !quiet)
            TR_TRY(wait_host.check());
    }
}

typedef struct room_wait {
    size_t bytes;
} room_wait;
static bool has_room(const void *arg) {
    return tr_ring_can_reserve(runner.ring, ((const room_wait *) arg)->bytes);
}
static bool room_done(void *arg) {
    return has_room(arg);
}
static tr_status room_slice(void *arg, int64_t spin_ns) {
    return tr_event_wait(&runner.room, has_room, arg, spin_ns, WAIT_SLICE_NS);
}

static void publish(void) {
    tr_ring_commit(runner.ring);
    tr_event_notify(&runner.wake);
}

static tr_msg *reserve(size_t bytes, tr_status *status) {
    bytes += sizeof(tr_msg);
    if ((*status = start()) != TR_OK)
        return NULL;
    if (bytes > tr_ring_max_record(runner.ring)) {
        *status = TR_FAIL(TR_E_RUNTIME, "a call of %zu bytes does not fit the command ring (TERRA_RING_BYTES)", bytes);
        return NULL;
    }
    for (;;) {
        // The wait below drops the GIL: another thread may have taken the room.
        tr_msg *m = tr_ring_reserve(runner.ring, bytes);
        if (m) {
            m->need = 0;
            return m;
        }
        room_wait w = {bytes};
        if ((*status = wait_slices(room_slice, &w, room_done, &waits.room_ns)) != TR_OK)
            return NULL;
    }
}

static tr_status send(tr_msg_kind kind, void *object, uint32_t need) {
    tr_status status;
    tr_msg *m = reserve(0, &status);
    if (!m)
        return status;
    m->kind = kind;
    m->need = need;
    m->object = object;
    publish();
    return TR_OK;
}

tr_call *tr_exec_call_reserve(int n_attrs, int n_in, int n_out, uint32_t need, tr_status *status) {
    tr_msg *m = reserve(tr_call_size(n_attrs, n_in, n_out), status);
    if (!m)
        return NULL;
    m->kind = TR_MSG_CALL;
    m->need = need;
    return m->call;
}

void tr_exec_call_commit(void) {
    publish();
}

void tr_exec_notify(void) {
    // Every command notifies with the fence, and nobody waits for an answer without a command; until then the executor sleeps for
    // a limited time only while an activation is open (idle).
    tr_event_notify_soon(&runner.wake);
}

/* Dead storages that the executor has not been told of. Also those that it could not be told of: each next try takes them along. */
static struct {
    tr_storage *list;
    uint32_t n;
    bool wait; /* an activation is open, which frees have to wait for in any case */
} dead;
enum { DEAD_MAX = 512 };

static void flush_dead(void) {
    if (!dead.list)
        return;
    // The list is taken first: waiting for room drops the GIL, and others may add to it.
    tr_storage *list = dead.list, *last = list;
    dead.list = NULL;
    dead.n = 0;
    quiet++;
    tr_status status = send(TR_MSG_FREE, list, 0);
    quiet--;
    if (status == TR_OK)
        return;
    tr_status_clear();
    while (last->next)
        last = last->next;
    last->next = dead.list;
    dead.list = list;
}

void tr_exec_free(tr_storage *s) {
    s->next = dead.list;
    dead.list = s;
    if (++dead.n >= DEAD_MAX || !dead.wait)
        flush_dead();
}

static void fetch_free(tr_fetch *f) {
    tr_free(f->buffer);
    tr_free(f);
}

static tr_fetch *fetch_create(const tr_operand *t, uint32_t need, size_t bytes, tr_status *status) {
    tr_fetch *f = tr_calloc(1, sizeof *f);
    if (!f || tr_future_create(&f->future) != TR_OK) {
        tr_free(f);
        *status = TR_FAIL(TR_E_NOMEM, "no memory for a fetch");
        return NULL;
    }
    f->need = need;
    f->bytes = bytes;
    if (t) {
        f->operand = *t;
        f->packed = tr_meta_as_contiguous(t->meta, t->meta->dtype);
    }
    if (bytes > sizeof f->small && !(f->buffer = tr_malloc(bytes))) {
        tr_future_release(f->future);
        tr_free(f);
        *status = TR_FAIL(TR_E_NOMEM, "no memory to read a tensor of %zu bytes", bytes);
        return NULL;
    }
    return f;
}

static bool future_done(void *arg) {
    return tr_future_is_done(arg);
}
static tr_status future_slice(void *arg, int64_t spin_ns) {
    return tr_future_wait(arg, spin_ns, WAIT_SLICE_NS);
}

tr_status tr_exec_fetch(const tr_operand *t, uint32_t need, void *dst, size_t bytes, void **data) {
    tr_status status;
    tr_fetch *f = fetch_create(t, need, dst ? bytes : 0, &status);
    if (!f)
        return status;
    f->exposes = data && t && t->storage;
    flush_dead();
    tr_future *future = tr_future_retain(f->future); // the executor's reference stays in f
    status = send(TR_MSG_FETCH, f, need);
    if (status != TR_OK) {
        tr_future_release(future);
        tr_future_release(future);
        fetch_free(f);
        return status;
    }
    if (t && t->storage)
        t->storage->sent = true;
    int64_t start = TR_UNLIKELY(tr_timeline_on) ? tr_now_ns() : 0;
    status = wait_slices(future_slice, future, future_done, &waits.answer_ns);
    if (TR_UNLIKELY(tr_timeline_on))
        tr_timeline_add(TR_TRACK_PYTHON, "waits for a value", NULL, 1, 0, 0, start, tr_now_ns());
    if (!tr_future_is_done(future)) {
        // Interrupted. The executor still writes into f: it is left to it, and lost.
        tr_future_release(future);
        return status;
    }
    if (status == TR_OK) {
        if (dst && bytes)
            memcpy(dst, f->buffer ? f->buffer : f->small, bytes);
        if (data)
            *data = future->payload.ptr;
    }
    fetch_free(f);
    tr_future_release(future);
    return status;
}

tr_status tr_exec_synchronize(uint32_t need) {
    if (!runner.running)
        return TR_OK;
    return tr_exec_fetch(NULL, need, NULL, 0, NULL);
}

/* ---- activations ---- */

static tr_activation *open_now[MAX_OPEN_ACTIVATIONS];

static bool finished(const void *arg) {
    // Acquire: pairs with the release in tr__activation_close.
    return atomic_load_explicit(&((tr_activation *) (uintptr_t) arg)->finished, memory_order_acquire);
}
static bool finished_done(void *arg) {
    return finished(arg);
}
static tr_status finished_slice(void *arg, int64_t spin_ns) {
    return tr_event_wait(&runner.room, finished, arg, spin_ns, WAIT_SLICE_NS);
}

static tr_activation *begin(tr_plan *plan) {
    // Run-ahead is bounded: at most MAX_OPEN_ACTIVATIONS that have not finished.
    tr_activation *oldest = open_now[0];
    if (oldest && !finished(oldest) && wait_slices(finished_slice, oldest, finished_done, &waits.activation_ns) != TR_OK)
        return NULL;
    tr_activation *a = tr__activation_take(plan);
    if (!a) {
        TR_FAIL(TR_E_NOMEM, "no memory for an activation");
        return NULL;
    }
    for (int i = 0; i < MAX_OPEN_ACTIVATIONS; i++)
        if (open_now[i] == a)
            open_now[i] = NULL; // its last run, which has finished: nobody waits for this one instead
    atomic_store_explicit(&a->cursor, 0, memory_order_relaxed);   // published by the ring
    atomic_store_explicit(&a->finished, false, memory_order_relaxed);
    if (send(TR_MSG_BEGIN, a, 0) != TR_OK) {
        atomic_store_explicit(&a->finished, true, memory_order_relaxed);
        return NULL;
    }
    memmove(open_now, open_now + 1, sizeof open_now - sizeof *open_now);
    open_now[MAX_OPEN_ACTIVATIONS - 1] = a;
    return a;
}

/* When the open activation began, for the timeline. */
static int64_t began;

static void note_end(const tr_activation *a, const char *how) {
    if (TR_UNLIKELY(tr_timeline_on))
        tr_timeline_add(TR_TRACK_PYTHON, how, NULL, atomic_load_explicit(&a->cursor, memory_order_relaxed), a->plan->id, 0, began,
                        tr_now_ns());
}

tr_activation *tr_exec_begin(tr_plan *plan) {
    began = TR_UNLIKELY(tr_timeline_on) ? tr_now_ns() : 0;
    quiet++;
    tr_activation *a = begin(plan);
    quiet--;
    dead.wait = a != NULL;
    return a;
}

tr_status tr_exec_end(tr_activation *a) {
    quiet++;
    tr_status status = send(TR_MSG_END, a, 0);
    note_end(a, "follows a path");
    quiet--;
    dead.wait = false;
    flush_dead();
    return status;
}

tr_status tr_exec_exit(tr_activation *a) {
    quiet++;
    tr_status status = send(TR_MSG_EXIT, a, 0);
    note_end(a, "follows a path, leaves it");
    quiet--;
    dead.wait = false;
    flush_dead();
    return status;
}

bool tr_exec_drop_plan(tr_plan *plan) {
    if (!plan->state)
        return true;
    if (!plan->dropping) {
        quiet++;
        plan->dropping = send(TR_MSG_DROP_PLAN, plan, 0) == TR_OK;
        quiet--;
    }
    // Acquire: pairs with the release in obey; the executor has seen the last of its activations end.
    if (!atomic_load_explicit(&plan->dropped, memory_order_acquire))
        return false;
    for (int i = 0; i < MAX_OPEN_ACTIVATIONS; i++)
        if (open_now[i] && open_now[i]->plan == plan)
            open_now[i] = NULL;
    tr__activations_free(plan);
    return true;
}

/* ---- stopping and forking ---- */

static void stop(void) {
    if (!runner.running)
        return;
    flush_dead();
    if (send(TR_MSG_STOP, NULL, 0) != TR_OK)
        return;
    void *token = wait_host.release ? wait_host.release() : NULL;
    pthread_join(runner.thread, NULL);
    if (wait_host.acquire)
        wait_host.acquire(token);
    runner.running = false;
}

tr_status tr_exec_shutdown(void) {
    stop();
    tr__store_collect();
    if (tr_timeline_on && tr_timeline_write(tr_options_get()->timeline) != TR_OK)
        fprintf(stderr, "terra: %s\n", tr_status_detail());
    return runner.error ? TR_FAIL(runner.error, "%s", runner.error_text) : TR_OK;
}

tr_status tr_exec_place(int executors, int threads) {
    if (executors < 0 || executors > TR_MAX_EXECUTORS || threads < 0)
        return TR_FAIL(TR_E_VALUE, "%d executors of %d threads: from 1 to %d executors (0: one per NUMA node), of 1 thread or more "
                                   "(0: their share of the cores)", executors, threads, TR_MAX_EXECUTORS);
    tr_topology_plan *more, *old = placement;
    TR_TRY(tr_topology_make_plan(topology, executors, threads, (tr_pin) tr_options_get()->pin, &more));
    stop();
    tr_status status = tr__crew_place(&runner, more);
    placement = status == TR_OK ? more : old;
    tr_topology_plan_destroy(status == TR_OK ? old : more);
    return status;
}

/* The thread ends before a fork and starts again with the next command, on either side: its state is all in `runner`. */
void tr_exec_fork_prepare(void) {
    stop();
}
void tr_exec_fork_parent(void) {}
void tr_exec_fork_child(void) {
    for (int e = 0; e < tr__crew_size; e++)
        tr__crew[e]->placement = NULL; // not pinned beside the parent's team
}

/* ---- for tests ---- */

void tr_exec_hold(bool on) {
    // Release: pairs with the acquire in executor_main.
    atomic_store_explicit(&runner.held, on, memory_order_release);
}

void tr_exec_wait_until_idle(void) {
    void *token = wait_host.release ? wait_host.release() : NULL;
    int calm = 0; // idle is also seen for a moment before the executor notices a command
    while (runner.running && calm < 3) {
        bool idle = tr_ring_used(runner.ring) == 0 && atomic_load_explicit(&runner.idle, memory_order_acquire) && !has_work(&runner);
        calm = idle ? calm + 1 : 0;
        sched_yield();
    }
    if (wait_host.acquire)
        wait_host.acquire(token);
}

/* ---- to see it ---- */

void tr_exec_stats_get(tr_exec_stats *out) {
    *out = (tr_exec_stats){.executors = tr__crew_size, .threads = tr_exec_team()};
    for (int e = 0; e < tr__crew_size; e++) {
        tr_runner *r = tr__crew[e] ? tr__crew[e] : &runner;
        tr_arena_stats a = {0};
        if (r->arena)
            tr_arena_stats_get(r->arena, &a);
#define ADD(field, counter) out->field += atomic_load_explicit(&r->counter, memory_order_relaxed)
        ADD(instructions, instructions);
        if (e > 0)
            ADD(instructions_shared, instructions);
        ADD(ops_covered, ops_covered);
        ADD(ops_single, ops_single);
        ADD(bytes_elided, bytes_elided);
        ADD(fetches, n_fetches);
        ADD(demands, demands);
        ADD(starvations, starvations);
#undef ADD
        out->bytes_live += a.live_bytes;
        out->bytes_peak += a.peak_bytes;
        out->bytes_touched += a.touched_bytes;
        out->allocations += a.allocations;
    }
}

int tr_exec_executors(void) {
    return tr__crew_size;
}

int tr_exec_team(void) {
    return runner.placement && runner.placement->thread_count > 0 ? runner.placement->thread_count : 1;
}

static size_t put_placement(char *text, size_t at, size_t room, int e, const tr_placement *p) {
    at += (size_t) snprintf(text + at, room - at, "%sexecutor %d: %d thread%s on cpus", e ? "\n" : "", e, p->thread_count,
                            p->thread_count == 1 ? "" : "s");
    for (int i = 0; i < p->thread_count && at < room; i++)
        at += (size_t) snprintf(text + at, room - at, " %d", p->cpus[i]);
    if (at < room)
        at += (size_t) snprintf(text + at, room - at, "%s", p->pin ? " (pinned)" : "");
    return at;
}

const char *tr_exec_placement(void) {
    static char text[4096];
    if (!runner.placement)
        return "unpinned";
    size_t at = 0;
    for (int e = 0; e < tr__crew_size && at < sizeof text; e++)
        at = put_placement(text, at, sizeof text, e, tr__crew[e]->placement);
    return text;
}
