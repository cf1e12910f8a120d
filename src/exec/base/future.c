/* Futures. The state goes PENDING -> (SLEPT_ON ->) DONE. Whoever completes exchanges it for DONE and wakes if the old
 * value says that somebody may sleep; a sleeper first changes PENDING to SLEPT_ON, and the kernel puts it to sleep only if
 * the word still says so. Both are read-modify-writes of one word, so they are totally ordered and no wake-up is lost. */
#include "terra/future.h"

#include <stdio.h>
#include <string.h>

#include "futex.h"
#include "terra/alloc.h"

enum { LOOKS_PER_READING = 16 };

void tr_future_init(tr_future *future) {
    future->status = TR_OK;
    atomic_store_explicit(&future->refs, 0, memory_order_relaxed);
    atomic_store_explicit(&future->state, TR_FUTURE_PENDING, memory_order_relaxed);
}

tr_status tr_future_create(tr_future **out) {
    tr_future *future = tr_aligned_alloc(_Alignof(tr_future), sizeof *future);
    if (future == NULL)
        return TR_FAIL(TR_E_NOMEM, "no memory for a future");
    tr_future_init(future);
    atomic_store_explicit(&future->refs, 1, memory_order_relaxed);
    *out = future;
    return TR_OK;
}

tr_future *tr_future_retain(tr_future *future) {
    int32_t before = atomic_fetch_add_explicit(&future->refs, 1, memory_order_relaxed);
    tr_assert(before > 0);
    (void) before;
    return future;
}

void tr_future_release(tr_future *future) {
    if (future == NULL)
        return;
    // Release our uses, acquire everybody's before freeing.
    int32_t before = atomic_fetch_sub_explicit(&future->refs, 1, memory_order_acq_rel);
    tr_assert(before > 0);
    if (before == 1)
        tr_free(future);
}

static void finish(tr_future *future) {
    // Release: pairs with the acquire in tr_future_is_done. From here on an embedded future may be gone.
    uint32_t before = atomic_exchange_explicit(&future->state, TR_FUTURE_DONE, memory_order_acq_rel);
    tr_assert(before != TR_FUTURE_DONE);
    if (before == TR_FUTURE_SLEPT_ON)
        tr__futex_wake_all(&future->state);
}

void tr_future_complete(tr_future *future, const tr_payload *payload) {
    future->status = TR_OK;
    if (payload != NULL)
        future->payload = *payload;
    else
        memset(&future->payload, 0, sizeof future->payload);
    finish(future);
}

void tr_future_fail(tr_future *future, tr_status status, const char *text) {
    tr_assert(status != TR_OK);
    future->status = status;
    snprintf(future->message, sizeof future->message, "%s", text);
    finish(future);
}

static bool spin_until_done(const tr_future *future, int64_t end_ns) {
    int64_t now, aside_ns = 0;
    do {
        for (int i = 0; i < LOOKS_PER_READING; i++) {
            if (tr_future_is_done(future))
                return true;
            tr_pause();
        }
        now = tr_now_ns();
        if (tr__step_aside(&aside_ns, now) && !tr_future_is_done(future))
            tr__was_stranger();
    } while (now < end_ns);
    return false;
}

static tr_status sleep_until_done(tr_future *future, int64_t deadline_ns) {
    for (;;) {
        uint32_t state = TR_FUTURE_PENDING;
        // Acquire: it may say DONE, and then we read the result.
        atomic_compare_exchange_strong_explicit(&future->state, &state, TR_FUTURE_SLEPT_ON, memory_order_acquire,
                                                memory_order_acquire);
        if (state == TR_FUTURE_DONE)
            return TR_OK;
        tr_status status = tr__futex_wait(&future->state, TR_FUTURE_SLEPT_ON, deadline_ns);
        if (status != TR_OK)
            return tr_future_is_done(future) ? TR_OK : status;
    }
}

static tr_status outcome(const tr_future *future) {
    return future->status == TR_OK ? TR_OK : TR_FAIL(future->status, "%s", future->message);
}

tr_status tr_future_wait(tr_future *future, int64_t spin_ns, int64_t timeout_ns) {
    if (tr_future_is_done(future))
        return outcome(future);
    int64_t now = tr_now_ns();
    int64_t deadline = tr__deadline(now, timeout_ns);
    int64_t spin_end = tr__deadline(now, spin_ns);
    if (spin_ns > 0 && spin_until_done(future, spin_end < deadline ? spin_end : deadline))
        return outcome(future);
    TR_TRY(sleep_until_done(future, deadline));
    return outcome(future);
}
