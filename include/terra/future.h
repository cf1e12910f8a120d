/* future.h - one result that one thread produces and others wait for.
 *
 * It carries up to 16 bytes, or a status with the text that explains it: this is how an error of the executor reaches
 * Python. It is completed exactly once. Either embedded in something of the caller's (tr_future_init; on the stack of a
 * waiter is fine: completing touches nothing after the state is set), or on the heap and counted (tr_future_create).
 *
 * The state word is the futex: a waiter that is about to sleep marks it, so completing makes a system call only then. */
#ifndef TERRA_FUTURE_H
#define TERRA_FUTURE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "terra/event.h"
#include "terra/status.h"

enum { TR_FUTURE_MESSAGE_MAX = 256 };

typedef union tr_payload {
    double f64;
    int64_t i64;
    void *ptr;
    unsigned char bytes[16];
} tr_payload;

typedef struct tr_future {
    _Atomic uint32_t state;              /* tr_future_state */
    _Atomic int32_t refs;                /* 0: embedded, not counted */
    tr_status status;                    /* this and what follows: written before the state, read after it */
    char message[TR_FUTURE_MESSAGE_MAX]; /* valid if status != TR_OK */
    _Alignas(16) tr_payload payload;     /* valid if status == TR_OK */
} tr_future;

typedef enum tr_future_state {
    TR_FUTURE_PENDING,
    TR_FUTURE_SLEPT_ON, /* pending, and somebody may be asleep */
    TR_FUTURE_DONE,
} tr_future_state;

/* Embedded. Nothing needs to be undone; it may be initialised again once it is done and all waiters have returned. */
TR_API void tr_future_init(tr_future *future);

/* On the heap, with one reference, which is the caller's. TR_E_NOMEM. */
TR_API tr_status tr_future_create(tr_future **out);
TR_API tr_future *tr_future_retain(tr_future *future);
TR_API void tr_future_release(tr_future *future); /* takes the reference; NULL is fine */

/* The producer, once. `payload` (borrowed) may be NULL: zeros. Never block. An embedded future may be gone when they
 * return. */
TR_API void tr_future_complete(tr_future *future, const tr_payload *payload);
TR_API void tr_future_fail(tr_future *future, tr_status status, const char *text);

/* Whether it is complete; after true, status, message and payload may be read. Any thread. */
static inline bool tr_future_is_done(const tr_future *future) {
    // Acquire: pairs with the exchange in future.c.
    return atomic_load_explicit(&future->state, memory_order_acquire) == TR_FUTURE_DONE;
}

/* Waits until it is complete: spins for spin_ns, then sleeps. Returns TR_OK, or the status it failed with, the text set
 * for this thread. TR_E_TIMEOUT and TR_E_INTERRUPT (no text) as tr_event_wait; tr_future_is_done tells them from a
 * failure of that status. Any thread; blocks; the caller drops the GIL. */
TR_API tr_status tr_future_wait(tr_future *future, int64_t spin_ns, int64_t timeout_ns);

#endif
