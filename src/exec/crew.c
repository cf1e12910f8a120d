/* crew.c - several executors on one plan.
 *
 * The first opens an activation and sets everybody's `task`; each runs its share of the schedule in the plan's order, an
 * instruction when the cursor has reached its ready point and what it awaits has run; each counts what it has run in `done`, which
 * others read. One that has run all of its share lets go of the task. Who has a task sleeps on the first's `wake`, who has none on an
 * event of its own: a sleeper costs each of Python's notifications a system call.
 *
 * Data passes from one to another by `done` (release, acquire), and from and to the first by `task` as well. While a task is
 * out nobody changes a storage, a value's place or the activation's marks: what needs that makes the first disband the crew, and it
 * goes on alone, instruction by instruction in the plan's order, without those that have run. */
#include "exec/runner.h"

#include "terra/alloc.h"
#include "terra/options.h"

#include <stdio.h>
#include <string.h>

/* What another executor waits for comes soon; it must not sleep longer than this, since Python wakes it without a fence. */
enum { SPIN_NS = 200 * 1000, NAP_NS = 1000 * 1000 };

tr_runner *tr__crew[TR_MAX_EXECUTORS];
_Atomic int tr__crew_size = 1;

static uint32_t done_of(int e) {
    // Acquire: pairs with the release in note_done; what it ran has been written.
    return atomic_load_explicit(&tr__crew[e]->done, memory_order_acquire);
}

static void note_done(tr_runner *r) {
    uint32_t done = atomic_load_explicit(&r->done, memory_order_relaxed); // nobody else writes it
    // Release: pairs with the acquire in done_of.
    atomic_store_explicit(&r->done, done + 1, memory_order_release);
    tr_event_notify(&tr__crew[0]->wake);
}

static uint32_t share(const tr_schedule *s, int e) {
    return s->first[e + 1] - s->first[e];
}

/* Is instruction i, the next of executor e, to be run now? */
static bool is_turn(const tr_activation *a, uint32_t i) {
    if (!tr__activation_is_ready(a, i))
        return false;
    const uint32_t *await = tr__schedule_await(a->schedule, i);
    for (int e = 0; e < tr__crew_size; e++)
        if (await[e] && done_of(e) < await[e])
            return false;
    return true;
}

bool tr__crew_has_run(const tr_activation *a, uint32_t instr) {
    const tr_schedule *s = a->schedule;
    return s->place[instr] < done_of(s->executor[instr]);
}

static void note_failure(tr_runner *r, uint32_t instr, tr_status status) {
    r->failed_at = instr;
    r->stumbled = status;
    snprintf(r->stumbled_text, sizeof r->stumbled_text, "%s", tr_status_detail());
}

/* ------------------------------------------------------------------------------------------------ the others */

typedef struct turn {
    const tr_activation *a;
    uint32_t instr;
} turn;

static bool is_called(const void *arg) {
    const turn *t = arg;
    // Acquire: pairs with the release in tr__crew_disband.
    return atomic_load_explicit(&t->a->alone, memory_order_acquire) || is_turn(t->a, t->instr);
}

/* Are the storages from outside as the instruction wants them? Else the first sees to them. */
static bool externals_are_there(const tr_runner *r, uint32_t i) {
    const tr_activation *a = r->current;
    const tr_path *path = a->plan->path;
    const tr_instr *instr = &a->plan->instrs[i];
    for (uint32_t c = instr->first; c < instr->first + instr->n_ops; c++) {
        const tr_path_op *op = &path->ops[a->plan->covered[c]];
        for (uint32_t o = op->operand; o < op->operand + op->n_in + op->n_out; o++) {
            tr_ref ref = path->operands[o].ref;
            if (ref == TR_REF_NONE || tr_ref_is_value(ref))
                continue;
            const tr_storage *s = a->external[tr_ref_slot(ref)];
            const tr_home *home = a->plan->homes ? a->plan->homes[path->n_values + tr_ref_slot(ref)] : NULL;
            if (s->poison != TR_OK || (!s->data && s->bytes) || s->home != home)
                return false;
        }
    }
    return true;
}

static void give_up(tr_runner *r) {
    // Release: pairs with the acquire in somebody_gave_up; with what note_failure wrote.
    atomic_store_explicit(&r->gave_up, true, memory_order_release);
}

static void run_share(tr_runner *r) {
    const tr_activation *a = r->current;
    const tr_schedule *s = a->schedule;
    for (uint32_t at = s->first[r->index]; at < s->first[r->index + 1]; at++) {
        turn t = {a, s->list[at]};
        while (!is_called(&t))
            tr_event_wait(&tr__crew[0]->wake, is_called, &t, SPIN_NS, NAP_NS);
        if (atomic_load_explicit(&a->alone, memory_order_acquire)) // as in is_called
            return;
        if (!tr__activation_as_planned(r, t.instr) || !externals_are_there(r, t.instr)) {
            give_up(r);
            return;
        }
        tr_status status = tr__activation_run(r, t.instr);
        if (TR_UNLIKELY(status != TR_OK)) {
            note_failure(r, t.instr, status);
            give_up(r);
            return;
        }
        note_done(r);
    }
}

static bool is_wanted(const void *arg) {
    const tr_runner *r = arg;
    // Acquire: pairs with the release in tr__crew_begin; and in tr__crew_stop.
    return atomic_load_explicit(&r->task, memory_order_acquire) || atomic_load_explicit(&r->leaving, memory_order_acquire);
}

static void *member_main(void *arg) {
    tr_runner *r = arg;
    tr_pool_start(r->placement, &r->pool);
    r->ctx.threads = r->pool.thread_count;
    for (;;) {
        while (!is_wanted(r))
            tr_event_wait(&r->wake, is_wanted, r, tr_options_get()->spin_us * 1000, TR_FOREVER);
        r->current = atomic_load_explicit(&r->task, memory_order_acquire); // as in is_wanted
        if (!r->current)
            break;
        run_share(r);
        r->current = NULL;
        // Release: pairs with the acquires that look for NULL: it doesn't touch the activation any more.
        atomic_store_explicit(&r->task, NULL, memory_order_release);
        tr_event_notify(&tr__crew[0]->wake);
    }
    tr_pool_stop(&r->pool);
    return NULL;
}

/* ------------------------------------------------------------------------------------------------ the first */

static tr_status make_runner(int e, const tr_placement *p, const tr_runner *first) {
    tr_runner *r = tr_aligned_alloc(_Alignof(tr_runner), sizeof *r);
    if (!r)
        return TR_FAIL(TR_E_NOMEM, "no memory for executor %d", e);
    memset(r, 0, sizeof *r);
    r->index = e;
    r->failed_at = NO_INSTR;
    r->ctx.scratch = first->ctx.scratch;
    tr_status status = tr_arena_create(p->bind_memory ? p->os_node : -1, &r->arena);
    if (status != TR_OK) {
        tr_free(r);
        return status;
    }
    tr__crew[e] = r;
    return TR_OK;
}

tr_status tr__crew_place(tr_runner *first, const tr_topology_plan *placement) {
    int n = placement->executor_count < TR_MAX_EXECUTORS ? placement->executor_count : TR_MAX_EXECUTORS;
    tr__crew[0] = first;
    for (int e = 1; e < n; e++)
        if (!tr__crew[e])
            TR_TRY(make_runner(e, &placement->executors[e], first));
    for (int e = 0; e < n; e++)
        tr__crew[e]->placement = &placement->executors[e];
    tr__crew_size = n;
    return TR_OK;
}

void tr__crew_start(void) {
    for (int e = 1; e < tr__crew_size; e++)
        if (pthread_create(&tr__crew[e]->thread, NULL, member_main, tr__crew[e]) == 0)
            tr__crew[e]->running = true;
}

void tr__crew_stop(void) {
    for (int e = 1; e < tr__crew_size; e++)
        // Release: pairs with the acquire in is_wanted.
        atomic_store_explicit(&tr__crew[e]->leaving, true, memory_order_release);
    for (int e = 1; e < tr__crew_size; e++)
        tr_event_notify(&tr__crew[e]->wake);
    for (int e = 1; e < tr__crew_size; e++) {
        if (tr__crew[e]->running)
            pthread_join(tr__crew[e]->thread, NULL);
        tr__crew[e]->running = false;
        atomic_store_explicit(&tr__crew[e]->leaving, false, memory_order_relaxed);
    }
}

/* Runs by their number: before MEASURED, durations are guesses; up to DECIDED, every other is shared. */
enum { MEASURED = 4, DECIDED = 24 };
static void schedule(tr_sharing *s, const tr_plan *plan) {
    int node[TR_MAX_EXECUTORS], n = tr__crew_size;
    tr_schedule *made = NULL;
    for (int e = 0; e < n; e++)
        node[e] = tr__crew[e]->placement ? tr__crew[e]->placement->node : 0;
    if (tr__schedule_create(plan, (uint32_t) n, node, TR_OPTIONS_DEBUG, &made) != TR_OK)
        tr_status_clear(); // one executor does as well
    tr__schedule_destroy(s->schedule);
    s->schedule = made;
    s->executors = n;
}

const tr_schedule *tr__sharing_open(tr_sharing *s, const tr_plan *plan) {
    if (tr__crew_size == 1 || !plan->before_at)
        return NULL;
    if (s->executors != tr__crew_size)
        s->opened = 0;
    if (s->opened == 0 || s->opened == MEASURED) {
        schedule(s, plan);
        s->least[0] = s->least[1] = INT64_MAX;
    } else if (s->opened == DECIDED && !TR_OPTIONS_DEBUG && !tr__is_worth_sharing((double) s->least[1], (double) s->least[0])) {
        tr__schedule_destroy(s->schedule);
        s->schedule = NULL;
    }
    bool trial = !TR_OPTIONS_DEBUG && s->opened >= MEASURED && s->opened < DECIDED;
    const tr_schedule *now = trial && s->opened % 2 ? NULL : s->schedule;
    s->began = trial && s->schedule ? tr_now_ns() : 0;
    s->opened += s->opened <= DECIDED;
    return now;
}

void tr__sharing_close(tr_sharing *s, const tr_activation *a) {
    // Relaxed: the first executor writes it.
    if (!s->began || atomic_load_explicit(&a->alone, memory_order_relaxed))
        return;
    int64_t ns = tr_now_ns() - s->began, *least = &s->least[a->schedule != NULL];
    if (ns < *least)
        *least = ns;
}

void tr__crew_begin(tr_runner *r) {
    for (int e = 0; e < tr__crew_size; e++) {
        atomic_store_explicit(&tr__crew[e]->done, 0, memory_order_relaxed);
        atomic_store_explicit(&tr__crew[e]->gave_up, false, memory_order_relaxed);
        tr__crew[e]->failed_at = NO_INSTR;
    }
    for (int e = 1; e < tr__crew_size; e++) {
        if (!share(r->current->schedule, e))
            continue;
        if (!tr__crew[e]->running) {
            give_up(tr__crew[e]); // its thread could not be started
            continue;
        }
        // Release: pairs with the acquire in is_wanted; with the activation, and everybody's `done` above.
        atomic_store_explicit(&tr__crew[e]->task, r->current, memory_order_release);
        tr_event_notify(&tr__crew[e]->wake);
    }
}

static bool somebody_gave_up(void) {
    for (int e = 1; e < tr__crew_size; e++)
        if (atomic_load_explicit(&tr__crew[e]->gave_up, memory_order_acquire)) // pairs with give_up
            return true;
    return false;
}

/* The first's next instruction; NO_INSTR: none. */
static uint32_t next_of_first(const tr_runner *r) {
    const tr_schedule *s = r->current->schedule;
    uint32_t done = atomic_load_explicit(&r->done, memory_order_relaxed); // its own
    return done < share(s, 0) ? s->list[done] : NO_INSTR;
}

bool tr__crew_may_step(const tr_runner *r) {
    uint32_t next = next_of_first(r);
    return (next != NO_INSTR && is_turn(r->current, next)) || somebody_gave_up();
}

bool tr__crew_step(tr_runner *r) {
    uint32_t i = next_of_first(r);
    bool turn = i != NO_INSTR && is_turn(r->current, i);
    if (somebody_gave_up() || (turn && !tr__activation_as_planned(r, i))) {
        tr__crew_disband(r);
        return tr__activation_step(r);
    }
    if (!turn)
        return false;
    tr_status status = tr__activation_run(r, i);
    if (TR_UNLIKELY(status != TR_OK)) {
        note_failure(r, i, status);
        tr__crew_disband(r);
    } else if (tr__crew_shares(r)) {
        note_done(r);
    } else {
        r->current->ran[i] = 1; // it has disbanded the crew on its way
    }
    return true;
}

bool tr__crew_is_at_work(const tr_runner *r) {
    const tr_activation *a = r->current;
    for (int e = 1; e < tr__crew_size; e++) {
        if (!atomic_load_explicit(&tr__crew[e]->task, memory_order_acquire)) // pairs with member_main
            continue;
        uint32_t done = done_of(e);
        if (done == share(a->schedule, e) || tr__activation_is_ready(a, a->schedule->list[a->schedule->first[e] + done]))
            return true;
    }
    return false;
}

typedef struct rest {
    const tr_runner *r;
    uint32_t done[TR_MAX_EXECUTORS];
    bool (*other)(const tr_runner *r);
} rest;

/* Something has happened since, or the first has something to do. */
static bool is_over(const void *arg) {
    const rest *w = arg;
    for (int e = 1; e < tr__crew_size; e++)
        if (done_of(e) != w->done[e])
            return true;
    return tr__crew_may_step(w->r) || w->other(w->r) || !tr__crew_is_at_work(w->r);
}

bool tr__crew_wait(tr_runner *r, bool (*other)(const tr_runner *r)) {
    if (!tr__crew_shares(r))
        return false;
    rest w = {.r = r, .other = other};
    for (int e = 1; e < tr__crew_size; e++)
        w.done[e] = done_of(e);
    if (!tr__crew_is_at_work(r))
        return tr__crew_may_step(r); // what the last one at work has made possible
    tr_event_wait(&r->wake, is_over, &w, SPIN_NS, NAP_NS);
    return true;
}

static bool has_let_go(const void *arg) {
    // Acquire: pairs with the release in member_main.
    return !atomic_load_explicit(&((tr_runner *) (uintptr_t) arg)->task, memory_order_acquire);
}

void tr__crew_disband(tr_runner *r) {
    if (TR_LIKELY(!tr__crew_shares(r)))
        return;
    tr_check(r->index == 0);
    tr_activation *a = r->current;
    // Release: pairs with the acquire in is_called.
    atomic_store_explicit(&a->alone, true, memory_order_release);
    tr_event_notify(&r->wake);
    for (int e = 1; e < tr__crew_size; e++)
        while (!has_let_go(tr__crew[e]))
            tr_event_wait(&r->wake, has_let_go, tr__crew[e], SPIN_NS, NAP_NS);
    for (uint32_t i = 0; i < a->plan->n_instrs; i++)
        a->ran[i] = tr__crew_has_run(a, i);
    a->next_instr = 0;
}
