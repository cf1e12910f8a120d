/* event.h - sleeping until a condition holds that another thread makes true without a lock (an eventcount).
 *
 *     notifier:  make the condition true (atomic stores);  tr_event_notify(&event);
 *     waiter:    tr_event_wait(&event, condition, arg, spin_ns, timeout_ns);
 *
 * When nobody sleeps a notification costs one fence and one load. A waiter first spins, then sleeps in a futex; no
 * wake-up is lost, however the two interleave (argued in event.c, model-checked in tests/models). The condition is a
 * function that only loads atomics, with acquire where it guards data; it may be called any number of times. Any number
 * of notifiers and waiters. An event holds no resource: zero-initialised is ready, and nothing needs to be destroyed;
 * it must outlive every call. */
#ifndef TERRA_EVENT_H
#define TERRA_EVENT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "terra/status.h"

typedef struct tr_event {
    _Atomic uint32_t epoch;   /* the futex word: changes with each notification that somebody may sleep through */
    _Atomic uint32_t waiters; /* threads that may be asleep */
} tr_event;

#define TR_EVENT_INIT {0, 0}

typedef bool (*tr_event_condition)(const void *arg);

/* For timeout_ns. */
#define TR_FOREVER INT64_MAX

TR_API void tr__event_wake(tr_event *event);

/* After the condition has been made true. Any thread, never blocks. */
static inline void tr_event_notify(tr_event *event) {
    // Dekker: our condition before their count, see event.c.
    atomic_thread_fence(memory_order_seq_cst);
    if (TR_UNLIKELY(atomic_load_explicit(&event->waiters, memory_order_relaxed) != 0))
        tr__event_wake(event);
}

/* The same without the fence, which waits until all our stores have reached memory: one load. It may miss a waiter who is going to
 * sleep at this very moment; that one must wait with a timeout, and sees the condition at the next notification at the latest. */
static inline void tr_event_notify_soon(tr_event *event) {
    if (TR_UNLIKELY(atomic_load_explicit(&event->waiters, memory_order_relaxed) != 0))
        tr__event_wake(event);
}

/* Returns TR_OK once condition(arg) is true. Spins for spin_ns first (0: not at all), then sleeps, altogether no longer
 * than about timeout_ns: TR_E_TIMEOUT then, TR_E_INTERRUPT when a signal handler ran in this thread while it slept; both
 * without a text. Blocks; the caller drops the GIL. Any thread. */
TR_API tr_status tr_event_wait(tr_event *event, tr_event_condition condition, const void *arg, int64_t spin_ns,
                               int64_t timeout_ns);

/* Nanoseconds on the monotonic clock. */
TR_API int64_t tr_now_ns(void);

/* Tells the core that this is a spin loop. */
static inline void tr_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

#endif
