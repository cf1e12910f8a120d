/* The eventcount. Why no wake-up is lost:
 *
 *     notifier                            waiter
 *     N1  condition := true               W1  waiters += 1
 *     N2  fence(seq_cst)                  W2  e := epoch           (acquire)
 *     N3  if waiters == 0: done           W3  fence(seq_cst)
 *     N4  epoch += 1           (release)  W4  if condition: done
 *     N5  futex wake                      W5  sleep while epoch == e; again from W2
 *
 * The two fences are ordered one way or the other. If N2 comes first, W4 sees N1: the waiter doesn't sleep. If W3 comes
 * first, N3 sees W1: the notifier goes on to N4. Then either W2 read the epoch after N4, and by acquire/release W4 sees N1;
 * or it read the old value, and W5 either finds the epoch changed or is asleep when N5 wakes it: the kernel compares and
 * enqueues under one lock. */
#include "terra/event.h"

#include "futex.h"

#include <sched.h>

// Reading the clock costs more than a look at the condition: so many looks between two readings.
enum { LOOKS_PER_READING = 16 };

int64_t tr_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t) now.tv_sec * TR_NS_PER_S + now.tv_nsec;
}

void tr__event_wake(tr_event *event) {
    // Release: pairs with the acquire load of the epoch in sleep_until.
    atomic_fetch_add_explicit(&event->epoch, 1, memory_order_release);
    tr__futex_wake_all(&event->epoch);
}

/* Between two steps aside; how long a stranger has the core at least; how long none is taken then. */
enum { ASIDE_NS = 1500, STRANGER_NS = 500 * 1000, SHY_NS = 20 * 1000 * 1000 };

static _Atomic int64_t shy_until; // relaxed: it guards nothing

bool tr__step_aside(int64_t *next_ns, int64_t now_ns) {
    if (now_ns < *next_ns)
        return false;
    bool first = *next_ns == 0;
    *next_ns = now_ns + ASIDE_NS;
    if (first || now_ns < atomic_load_explicit(&shy_until, memory_order_relaxed))
        return false;
    sched_yield();
    return tr_now_ns() - now_ns > STRANGER_NS;
}

void tr__was_stranger(void) {
    atomic_store_explicit(&shy_until, tr_now_ns() + SHY_NS, memory_order_relaxed);
}

static bool spin_until(tr_event_condition condition, const void *arg, int64_t end_ns) {
    int64_t now, aside_ns = 0;
    do {
        for (int i = 0; i < LOOKS_PER_READING; i++) {
            if (condition(arg))
                return true;
            tr_pause();
        }
        now = tr_now_ns();
        if (tr__step_aside(&aside_ns, now) && !condition(arg))
            tr__was_stranger();
    } while (now < end_ns);
    return false;
}

static tr_status sleep_until(tr_event *event, tr_event_condition condition, const void *arg, int64_t deadline_ns) {
    for (;;) {
        uint32_t epoch = atomic_load_explicit(&event->epoch, memory_order_acquire); // pairs with tr__event_wake
        atomic_thread_fence(memory_order_seq_cst);                                  // pairs with tr_event_notify
        if (condition(arg))
            return TR_OK;
        tr_status status = tr__futex_wait(&event->epoch, epoch, deadline_ns);
        if (status != TR_OK)
            return condition(arg) ? TR_OK : status;
    }
}

tr_status tr_event_wait(tr_event *event, tr_event_condition condition, const void *arg, int64_t spin_ns, int64_t timeout_ns) {
    if (condition(arg))
        return TR_OK;
    int64_t now = tr_now_ns();
    int64_t deadline = tr__deadline(now, timeout_ns);
    int64_t spin_end = tr__deadline(now, spin_ns);
    if (spin_ns > 0 && spin_until(condition, arg, spin_end < deadline ? spin_end : deadline))
        return TR_OK;
    atomic_fetch_add_explicit(&event->waiters, 1, memory_order_relaxed); // ordered by the fence in sleep_until
    tr_status status = sleep_until(event, condition, arg, deadline);
    atomic_fetch_sub_explicit(&event->waiters, 1, memory_order_relaxed); // a stale count only costs a wake-up
    return status;
}
