#include "terra/future.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "terra/alloc.h"

Test(future, completed_before_the_wait) {
    tr_future future;
    tr_future_init(&future);
    cr_assert_not(tr_future_is_done(&future));
    tr_future_complete(&future, &(tr_payload){.f64 = 2.5});
    cr_assert_eq(tr_future_wait(&future, 0, 0), TR_OK);
    cr_assert_eq(future.payload.f64, 2.5);
    cr_assert_eq((uintptr_t) &future.payload % 16, 0);
}

Test(future, failure_carries_status_and_text) {
    tr_future *future;
    cr_assert_eq(tr_future_create(&future), TR_OK);
    tr_future_fail(future, TR_E_INDEX, "embedding: index 7 is out of range");
    cr_assert_eq(tr_future_wait(future, 0, TR_FOREVER), TR_E_INDEX);
    cr_assert_str_eq(tr_status_detail(), "embedding: index 7 is out of range");
    tr_future_release(future);
}

Test(future, long_text_is_cut) {
    char text[1000];
    memset(text, 'a', sizeof text);
    text[sizeof text - 1] = '\0';
    tr_future future;
    tr_future_init(&future);
    tr_future_fail(&future, TR_E_VALUE, text);
    cr_assert_eq(strlen(future.message), TR_FUTURE_MESSAGE_MAX - 1);
}

Test(future, timeout_leaves_it_usable) {
    tr_future future;
    tr_future_init(&future);
    cr_assert_eq(tr_future_wait(&future, 1000, 1000000), TR_E_TIMEOUT);
    cr_assert_not(tr_future_is_done(&future));
    tr_future_complete(&future, NULL);
    cr_assert_eq(tr_future_wait(&future, 0, 0), TR_OK);
    cr_assert_eq(future.payload.i64, 0);
}

static void *completes_later(void *arg) {
    usleep(20000);
    tr_future_complete(arg, &(tr_payload){.i64 = 42});
    return NULL;
}

Test(future, wakes_a_sleeper, .timeout = 10) {
    tr_future future;
    tr_future_init(&future);
    pthread_t thread;
    pthread_create(&thread, NULL, completes_later, &future);
    cr_assert_eq(tr_future_wait(&future, 0, TR_FOREVER), TR_OK);
    cr_assert_eq(future.payload.i64, 42);
    pthread_join(thread, NULL);
}

Test(future, references) {
    int64_t before = tr_alloc_live();
    tr_future *future;
    cr_assert_eq(tr_future_create(&future), TR_OK);
    cr_assert_eq(tr_future_retain(future), future);
    tr_future_release(future);
    tr_future_complete(future, NULL);
    tr_future_release(future);
    tr_future_release(NULL);
    cr_assert_eq(tr_alloc_live(), before);
}

Test(future, out_of_memory) {
    tr_future *future = NULL;
    tr_fail_alloc_set(1);
    cr_assert_eq(tr_future_create(&future), TR_E_NOMEM);
    cr_assert_null(future);
}
