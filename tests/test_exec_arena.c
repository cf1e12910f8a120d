#include "terra/arena.h"

#include <criterion/criterion.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "terra/alloc.h"

static tr_arena *new_arena(void) {
    tr_arena *arena = NULL;
    cr_assert_eq(tr_arena_create(-1, &arena), TR_OK);
    return arena;
}

static tr_arena_stats stats_of(const tr_arena *arena) {
    tr_arena_stats stats;
    tr_arena_stats_get(arena, &stats);
    return stats;
}

static int64_t minor_faults(void) {
    struct rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_minflt;
}

Test(arena, blocks_are_aligned_and_apart) {
    tr_arena *arena = new_arena();
    enum { COUNT = 400 };
    unsigned char *blocks[COUNT];
    size_t sizes[COUNT];
    for (size_t i = 0; i < COUNT; i++) {
        sizes[i] = i * i * 17 % 100000;
        blocks[i] = tr_arena_alloc(arena, sizes[i]);
        cr_assert_not_null(blocks[i]);
        cr_assert_eq((uintptr_t) blocks[i] % TR_ARENA_ALIGNMENT, 0);
        memset(blocks[i], (int) (i & 255), sizes[i]);
    }
    for (size_t i = 0; i < COUNT; i++) {
        for (size_t k = 0; k < sizes[i]; k++)
            cr_assert_eq(blocks[i][k], i & 255);
        tr_arena_free(arena, blocks[i]);
    }
    cr_assert_eq(stats_of(arena).live_bytes, 0);
    cr_assert_eq(stats_of(arena).live_blocks, 0);
    tr_arena_destroy(arena);
}

Test(arena, statistics) {
    tr_arena *arena = new_arena();
    void *a = tr_arena_alloc(arena, 1000000), *b = tr_arena_alloc(arena, 1000000);
    tr_arena_free(arena, a);
    tr_arena_stats stats = stats_of(arena);
    cr_assert_eq(stats.live_bytes, (int64_t) tr_arena_block_size(1000000));
    cr_assert_eq(stats.peak_bytes, 2 * stats.live_bytes);
    cr_assert_eq(stats.live_blocks, 1);
    cr_assert_eq(stats.allocations, 2);
    cr_assert_geq(stats.touched_bytes, stats.peak_bytes);
    tr_arena_reset_peak(arena);
    cr_assert_eq(stats_of(arena).peak_bytes, stats.live_bytes);
    tr_arena_free(arena, b);
    tr_arena_free(arena, NULL);
    tr_arena_destroy(arena);
    tr_arena_destroy(NULL);
}

// A step's allocations, big and small, freed in a different order each time: once all orders have come, no page is faulted in and nothing
// is mapped. (Until then jemalloc's own index may meet places for the first time, according to the arena's address.)
Test(arena, steady_state_neither_faults_nor_maps) {
    tr_arena *arena = new_arena();
    enum { COUNT = 60, STEPS = 3 * COUNT };
    void *blocks[COUNT];
    int64_t mapped = 0, faults = 0;
    for (int step = 0; step < STEPS; step++) {
        if (step == COUNT) {
            mapped = stats_of(arena).touched_bytes;
            faults = minor_faults();
        }
        for (int i = 0; i < COUNT; i++) {
            size_t bytes = (size_t) 1 << (6 + i % 17);
            blocks[i] = tr_arena_alloc(arena, bytes);
            memset(blocks[i], 1, bytes);
        }
        for (int i = 0; i < COUNT; i++)
            tr_arena_free(arena, blocks[(i * 7 + step) % COUNT]);
    }
    cr_assert_eq(stats_of(arena).touched_bytes, mapped);
    int64_t more = minor_faults() - faults;
#ifndef __SANITIZE_ADDRESS__ // its shadow memory faults
    cr_assert_leq(more, 0, "%lld faults", (long long) more);
#endif
    (void) more;
    tr_arena_destroy(arena);
}

Test(arena, reserved_memory_does_not_fault) {
    tr_arena *arena = new_arena();
    cr_assert_eq(tr_arena_reserve(arena, 32 << 20), TR_OK);
    int64_t faults = minor_faults();
    void *block = tr_arena_alloc(arena, 32 << 20);
    memset(block, 1, 32 << 20);
#ifndef __SANITIZE_ADDRESS__
    cr_assert_leq(minor_faults() - faults, 0);
#endif
    (void) faults;
    tr_arena_free(arena, block);
    tr_arena_destroy(arena);
}

Test(arena, mapped_blocks_take_what_they_need_and_trimming_returns_the_rest) {
    enum { BYTES = (65 << 20) + 100, PAGE = 4096 };
    tr_arena *arena = new_arena();
    void *kept = tr_arena_alloc(arena, 1 << 20), *gone = tr_arena_alloc(arena, 50 << 20);
    memset(kept, 7, 1 << 20);
    tr_arena_free(arena, gone);
    tr_arena_stats before = stats_of(arena);
    cr_assert_geq(before.touched_bytes, 51 << 20);
    tr_arena_trim(arena);
    cr_assert_leq(stats_of(arena).touched_bytes, before.touched_bytes - (50 << 20));
    before = stats_of(arena);
    void *slab = tr_arena_map(arena, BYTES);
    memset(slab, 1, BYTES);
    tr_arena_stats after = stats_of(arena);
    cr_assert_eq(after.touched_bytes - before.touched_bytes, (BYTES + PAGE - 1) / PAGE * PAGE);
    cr_assert_eq(after.live_bytes - before.live_bytes, after.touched_bytes - before.touched_bytes);
    tr_arena_unmap(arena, slab, BYTES);
    cr_assert_eq(stats_of(arena).touched_bytes, before.touched_bytes);
    cr_assert_eq(stats_of(arena).live_bytes, before.live_bytes);
    cr_assert_eq(((char *) kept)[(1 << 20) - 1], 7);
    cr_assert_not_null(tr_arena_alloc(arena, 50 << 20));
    tr_arena_destroy(arena);
}

Test(arena, destroying_takes_living_blocks_and_returns_the_memory) {
    for (int i = 0; i < 20; i++) {
        tr_arena *arena = new_arena();
        memset(tr_arena_alloc(arena, 64 << 20), 1, 64 << 20);
        cr_assert_not_null(tr_arena_alloc(arena, 3));
        tr_arena_destroy(arena);
    }
    long pages = 0;
    FILE *stream = fopen("/proc/self/statm", "r");
    cr_assert_eq(fscanf(stream, "%*d %ld", &pages), 1);
    fclose(stream);
#ifndef __SANITIZE_ADDRESS__
    cr_assert_lt(pages * 4096L, 400L << 20);
#endif
}

Test(arena, failure_is_null) {
    tr_arena *arena = new_arena();
    volatile size_t absurd = SIZE_MAX; // volatile: the compiler would warn
    cr_assert_null(tr_arena_alloc(arena, absurd));
    absurd = (size_t) 1 << 45; // 32 TB: more than the machine has, not killed when touched
    cr_assert_null(tr_arena_alloc(arena, absurd));
    tr_fail_alloc_set(2);
    void *first = tr_arena_alloc(arena, 8);
    cr_assert_not_null(first);
    cr_assert_null(tr_arena_alloc(arena, 8));
    cr_assert_not_null(tr_arena_alloc(arena, 0));
    cr_assert_eq(stats_of(arena).live_blocks, 2);
    tr_arena_destroy(arena);
    tr_fail_alloc_set(1);
    cr_assert_eq(tr_arena_create(-1, &arena), TR_E_NOMEM);
}

Test(arena, binding_to_the_only_node_does_no_harm) {
    tr_arena *arena = NULL;
    cr_assert_eq(tr_arena_create(0, &arena), TR_OK);
    void *block = tr_arena_alloc(arena, 1 << 20);
    memset(block, 1, 1 << 20);
    tr_arena_free(arena, block);
    tr_arena_destroy(arena);
}
