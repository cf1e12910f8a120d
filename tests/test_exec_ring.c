#include "terra/ring.h"

#include <criterion/criterion.h>
#include <stdint.h>
#include <string.h>

#include "terra/alloc.h"

static tr_ring *new_ring(size_t capacity) {
    tr_ring *ring = NULL;
    cr_assert_eq(tr_ring_create(capacity, &ring), TR_OK);
    return ring;
}

static bool put(tr_ring *ring, unsigned char value, size_t bytes) {
    unsigned char *record = tr_ring_reserve(ring, bytes);
    if (record == NULL)
        return false;
    cr_assert_eq((uintptr_t) record % 16, 0);
    memset(record, value, bytes);
    tr_ring_commit(ring);
    return true;
}

static void take(tr_ring *ring, unsigned char value, size_t bytes) {
    size_t found = 999;
    unsigned char *record = tr_ring_peek(ring, &found);
    cr_assert_not_null(record);
    cr_assert_eq(found, bytes);
    for (size_t i = 0; i < bytes; i++)
        cr_assert_eq(record[i], value);
    tr_ring_release(ring);
}

Test(ring, capacities_that_cannot_be) {
    tr_ring *ring = NULL;
    static const size_t wrong[] = {0, 32, 65, 100, 96};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        cr_assert_eq(tr_ring_create(wrong[i], &ring), TR_E_VALUE);
    for (int n = 1; n <= 2; n++) {
        tr_fail_alloc_set(n);
        cr_assert_eq(tr_ring_create(64, &ring), TR_E_NOMEM);
    }
    cr_assert_null(ring);
    tr_ring_destroy(NULL);
}

Test(ring, empty_and_full) {
    tr_ring *ring = new_ring(64);
    size_t bytes;
    cr_assert_null(tr_ring_peek(ring, &bytes));
    cr_assert(tr_ring_is_empty(ring));
    cr_assert_eq(tr_ring_max_record(ring), 16);
    cr_assert(put(ring, 1, 16));
    cr_assert(put(ring, 2, 16));
    cr_assert_not(put(ring, 3, 0));
    cr_assert_not(tr_ring_can_reserve(ring, 0));
    cr_assert_eq(tr_ring_used(ring), 64);
    take(ring, 1, 16);
    cr_assert(tr_ring_can_reserve(ring, 16));
    cr_assert(put(ring, 3, 16));
    take(ring, 2, 16);
    take(ring, 3, 16);
    cr_assert(tr_ring_is_empty(ring));
    tr_ring_destroy(ring);
}

Test(ring, nothing_is_seen_before_commit_and_all_after) {
    tr_ring *ring = new_ring(256);
    size_t bytes;
    memset(tr_ring_reserve(ring, 5), 1, 5);
    memset(tr_ring_reserve(ring, 6), 2, 6);
    cr_assert_null(tr_ring_peek(ring, &bytes));
    tr_ring_commit(ring);
    take(ring, 1, 5);
    take(ring, 2, 6);
    cr_assert_null(tr_ring_peek(ring, &bytes));
    tr_ring_destroy(ring);
}

Test(ring, peek_is_stable_until_release) {
    tr_ring *ring = new_ring(128);
    put(ring, 1, 8);
    put(ring, 2, 8);
    size_t bytes;
    void *first = tr_ring_peek(ring, &bytes);
    cr_assert_eq(tr_ring_peek(ring, &bytes), first);
    tr_ring_release(ring);
    cr_assert_neq(tr_ring_peek(ring, &bytes), first);
    tr_ring_destroy(ring);
}

// Every capacity, sizes in a pattern that meets each offset: against a plain queue.
Test(ring, sizes_and_wraps_against_a_model) {
    for (size_t capacity = 64; capacity <= 1024; capacity *= 2) {
        tr_ring *ring = new_ring(capacity);
        enum { MODEL = 64 };
        size_t sizes[MODEL];
        uint64_t put_count = 0, taken = 0;
        uint32_t random = 12345;
        for (int step = 0; step < 20000; step++) {
            random = random * 1664525u + 1013904223u;
            size_t bytes = (random >> 8) % (tr_ring_max_record(ring) + 1);
            if ((random >> 30) % 2 == 0 && put_count - taken < MODEL) {
                bool fits = tr_ring_can_reserve(ring, bytes);
                cr_assert_eq(put(ring, (unsigned char) put_count, bytes), fits);
                if (fits)
                    sizes[put_count++ % MODEL] = bytes;
                else
                    cr_assert_neq(put_count, taken, "an empty ring takes every record");
            } else if (taken < put_count) {
                take(ring, (unsigned char) taken, sizes[taken % MODEL]);
                taken++;
            } else {
                cr_assert(tr_ring_is_empty(ring));
            }
        }
        tr_ring_destroy(ring);
    }
}
