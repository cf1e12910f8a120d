#include "terra/event.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

typedef struct shared {
    tr_event event;
    _Atomic int flag;
} shared;

static bool flag_is_set(const void *arg) {
    return atomic_load_explicit(&((const shared *) arg)->flag, memory_order_acquire) != 0;
}

static void *sets_flag_later(void *arg) {
    shared *s = arg;
    usleep(20000);
    atomic_store_explicit(&s->flag, 1, memory_order_release);
    tr_event_notify(&s->event);
    return NULL;
}

Test(event, a_condition_that_holds_returns_at_once) {
    shared s = {.flag = 1};
    cr_assert_eq(tr_event_wait(&s.event, flag_is_set, &s, 0, 0), TR_OK);
}

Test(event, timeout) {
    shared s = {0};
    int64_t start = tr_now_ns();
    cr_assert_eq(tr_event_wait(&s.event, flag_is_set, &s, 1000, 5000000), TR_E_TIMEOUT);
    cr_assert_geq(tr_now_ns() - start, 5000000);
    cr_assert_eq(s.event.waiters, 0);
}

Test(event, spinning_counts_against_the_timeout) {
    shared s = {0};
    int64_t start = tr_now_ns();
    cr_assert_eq(tr_event_wait(&s.event, flag_is_set, &s, TR_FOREVER, 2000000), TR_E_TIMEOUT);
    cr_assert_lt(tr_now_ns() - start, 1000000000);
}

Test(event, wakes_a_sleeper, .timeout = 10) {
    shared s = {0};
    pthread_t thread;
    pthread_create(&thread, NULL, sets_flag_later, &s);
    cr_assert_eq(tr_event_wait(&s.event, flag_is_set, &s, 0, TR_FOREVER), TR_OK);
    pthread_join(thread, NULL);
    cr_assert_eq(s.event.waiters, 0);
}

static void on_signal(int number) {
    (void) number;
}

static void *interrupts(void *arg) {
    usleep(20000);
    pthread_kill(*(pthread_t *) arg, SIGUSR1);
    return NULL;
}

Test(event, a_signal_interrupts, .timeout = 10) {
    sigaction(SIGUSR1, &(struct sigaction){.sa_handler = on_signal, .sa_flags = SA_RESTART}, NULL);
    shared s = {0};
    pthread_t self = pthread_self(), thread;
    pthread_create(&thread, NULL, interrupts, &self);
    tr_status status = tr_event_wait(&s.event, flag_is_set, &s, 0, 2000000000);
    pthread_join(thread, NULL);
    // A handler with SA_RESTART lets FUTEX_WAIT_BITSET go on with a deadline; without one it may be restarted too.
    cr_assert(status == TR_E_INTERRUPT || status == TR_E_TIMEOUT);
}

Test(event, a_signal_without_restart_interrupts, .timeout = 10) {
    sigaction(SIGUSR1, &(struct sigaction){.sa_handler = on_signal}, NULL);
    shared s = {0};
    pthread_t self = pthread_self(), thread;
    pthread_create(&thread, NULL, interrupts, &self);
    cr_assert_eq(tr_event_wait(&s.event, flag_is_set, &s, 0, 5000000000), TR_E_INTERRUPT);
    pthread_join(thread, NULL);
}
