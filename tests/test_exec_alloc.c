#include "terra/alloc.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <stdint.h>

Test(alloc, zero_bytes_can_be_freed) {
    void *a = tr_malloc(0), *b = tr_calloc(0, 8);
    cr_assert_not_null(a);
    cr_assert_not_null(b);
    tr_free(a);
    tr_free(b);
    tr_free(NULL);
}

Test(alloc, alignment) {
    for (size_t alignment = sizeof(void *); alignment <= 4096; alignment *= 2) {
        void *block = tr_aligned_alloc(alignment, 3);
        cr_assert_eq((uintptr_t) block % alignment, 0);
        tr_free(block);
    }
}

Test(alloc, the_nth_fails_once) {
    for (int n = 1; n <= 5; n++) {
        tr_fail_alloc_set(n);
        for (int i = 1; i <= 8; i++) {
            void *block = i % 2 ? tr_malloc(8) : tr_calloc(2, 8);
            cr_assert_eq(block == NULL, i == n, "n %d, allocation %d", n, i);
            tr_free(block);
        }
        cr_assert_eq(tr_fail_alloc_left(), 0);
    }
}

Test(alloc, an_unreached_fault_is_seen) {
    tr_fail_alloc_set(10);
    tr_free(tr_malloc(1));
    cr_assert_eq(tr_fail_alloc_left(), 9);
    tr_fail_alloc_set(0);
    cr_assert_not_null(tr_malloc(1));
}

Test(alloc, failed_realloc_keeps_the_block) {
    int *block = tr_malloc(4 * sizeof *block);
    block[3] = 7;
    tr_fail_alloc_set(1);
    cr_assert_null(tr_realloc(block, 1 << 20));
    cr_assert_eq(block[3], 7);
    block = tr_realloc(block, 1 << 20);
    cr_assert_eq(block[3], 7);
    tr_free(block);
}

static _Atomic int failures;

static void *allocates(void *arg) {
    (void) arg;
    for (int i = 0; i < 10000; i++) {
        void *block = tr_malloc(8);
        if (block == NULL)
            failures++;
        tr_free(block);
    }
    return NULL;
}

Test(alloc, one_failure_among_threads) {
    tr_fail_alloc_set(10000);
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, allocates, NULL);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    cr_assert_eq(failures, 1);
}

Test(alloc, live_blocks_are_counted_in_debug_builds) {
    int64_t before = tr_alloc_live();
    void *block = tr_malloc(1);
#ifdef TR_DEBUG
    cr_assert_eq(tr_alloc_live(), before + 1);
#else
    cr_assert_eq(before, -1);
#endif
    tr_free(block);
    cr_assert_eq(tr_alloc_live(), before);
}
