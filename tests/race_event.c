/* Under ThreadSanitizer: an eventcount and futures between two threads, each handing over to the other; waits that spin,
 * that sleep at once, and that time out. A lost wake-up hangs, which the watchdog reports. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "terra/event.h"
#include "terra/future.h"

enum { ROUNDS = 20000 };

typedef struct channel {
    tr_event event;
    _Atomic uint64_t turn;
    uint64_t data; // not atomic: guarded by `turn`
} channel;

typedef struct awaited {
    const channel *channel;
    uint64_t turn;
} awaited;

static channel ping, pong;

static bool turn_has_come(const void *arg) {
    const awaited *wanted = arg;
    return atomic_load_explicit(&wanted->channel->turn, memory_order_acquire) >= wanted->turn;
}

// 0: sleeps at once; a few hundred ns: often gives up spinning just when the other side notifies.
static int64_t spin_of(uint64_t round) {
    static const int64_t spins[] = {0, 200, 1000, 5000};
    return spins[round % 4];
}

static void await(channel *channel, uint64_t turn) {
    awaited wanted = {channel, turn};
    tr_status status;
    do {
        status = tr_event_wait(&channel->event, turn_has_come, &wanted, spin_of(turn), turn % 7 == 0 ? 1000 : TR_FOREVER);
    } while (status != TR_OK);
}

static void hand_over(channel *channel, uint64_t turn) {
    atomic_store_explicit(&channel->turn, turn, memory_order_release);
    tr_event_notify(&channel->event);
}

static void *answers(void *arg) {
    (void) arg;
    for (uint64_t turn = 1; turn <= ROUNDS; turn++) {
        await(&ping, turn);
        tr_check(ping.data == turn * 3);
        pong.data = turn * 5;
        hand_over(&pong, turn);
    }
    return NULL;
}

static void ping_pong(void) {
    pthread_t thread;
    tr_check(pthread_create(&thread, NULL, answers, NULL) == 0);
    for (uint64_t turn = 1; turn <= ROUNDS; turn++) {
        ping.data = turn * 3;
        hand_over(&ping, turn);
        await(&pong, turn);
        tr_check(pong.data == turn * 5);
    }
    pthread_join(thread, NULL);
}

// A future on the stack of the waiter is gone as soon as the wait returns.
static tr_future *_Atomic mailbox;

static void *completes(void *arg) {
    (void) arg;
    for (int i = 0; i < ROUNDS; i++) {
        tr_future *future;
        while ((future = atomic_exchange_explicit(&mailbox, NULL, memory_order_acq_rel)) == NULL)
            tr_pause();
        if (i % 3 == 0)
            tr_future_fail(future, TR_E_VALUE, "every third");
        else
            tr_future_complete(future, &(tr_payload){.i64 = i});
    }
    return NULL;
}

static void stack_futures(void) {
    pthread_t thread;
    tr_check(pthread_create(&thread, NULL, completes, NULL) == 0);
    for (int i = 0; i < ROUNDS; i++) {
        tr_future future;
        tr_future_init(&future);
        atomic_store_explicit(&mailbox, &future, memory_order_release);
        tr_status status = tr_future_wait(&future, spin_of((uint64_t) i), TR_FOREVER);
        tr_check(status == (i % 3 == 0 ? TR_E_VALUE : TR_OK));
        tr_check(status != TR_OK || future.payload.i64 == i);
    }
    pthread_join(thread, NULL);
}

int main(void) {
    alarm(120); // a lost wake-up
    ping_pong();
    stack_futures();
    printf("%d rounds each\n", ROUNDS);
    return 0;
}
