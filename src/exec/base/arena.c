/* Arenas: jemalloc for the bookkeeping, extent hooks of our own for the pages.
 *
 * Pages are touched when they are mapped, on the node that they are for: which part of the mapped memory jemalloc hands out
 * may change from step to step for ever, and would fault now and then (measured: 0 faults per step instead of a few). So
 * that this wastes little, the series of growing mappings, by which jemalloc saves system calls, ends at GROW_LIMIT; and of
 * a larger mapping, made for one block and up to a fourth larger than that, the rest is touched when jemalloc commits it. */
#include "terra/arena.h"

#include <errno.h>
#include <jemalloc/jemalloc.h>
#include <linux/mempolicy.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "terra/alloc.h"
#include "terra/options.h"

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

enum { HUGE_PAGE = 2 << 20, GROW_LIMIT = 8 << 20, MOST_NODES = 1024 };

struct tr_arena {
    extent_hooks_t hooks; // first: jemalloc hands its address back to the hooks
    unsigned index;       // jemalloc's number for the arena
    int flags;            // for mallocx
    int os_node;
    bool returns; // pages may go back to the system

    // Written by the executor thread (or, through the hooks, by jemalloc inside its calls), read by any: relaxed.
    _Atomic int64_t live_bytes, peak_bytes, live_blocks, allocations, touched_bytes;
    _Atomic bool bound, huge;
};

static void add(_Atomic int64_t *counter, int64_t change) {
    // One writer: a load and a store are enough, and cheaper than a locked add.
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + change, memory_order_relaxed);
}

static int64_t read_counter(const _Atomic int64_t *counter) {
    return atomic_load_explicit(counter, memory_order_relaxed);
}

// ---- pages

static void *map(void *wanted, size_t bytes) {
    // Reserved (no MAP_NORESERVE): a tensor larger than the machine is refused here, not killed when it is touched.
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | (wanted != NULL ? MAP_FIXED_NOREPLACE : 0);
    void *pages = mmap(wanted, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (pages == MAP_FAILED)
        return NULL;
    if (wanted != NULL && pages != wanted) { // a kernel older than the flag takes the address for a hint
        munmap(pages, bytes);
        return NULL;
    }
    return pages;
}

// Maps `bytes` at a multiple of `alignment`: maps more and cuts off both ends.
static void *map_aligned(size_t bytes, size_t alignment) {
    if (bytes + alignment < bytes)
        return NULL;
    unsigned char *pages = map(NULL, bytes + alignment);
    if (pages == NULL)
        return NULL;
    size_t before = -(uintptr_t) pages & (alignment - 1);
    if (before > 0)
        munmap(pages, before);
    munmap(pages + before + bytes, alignment - before);
    return pages + before;
}

// Without libnuma: one system call. Before the first touch, so nothing has to move.
static bool bind_to_node(void *pages, size_t bytes, int node) {
    enum { BITS = 8 * sizeof(unsigned long) };
    unsigned long mask[MOST_NODES / BITS] = {0};
    if (node < 0 || node >= MOST_NODES)
        return false;
    mask[node / BITS] |= 1UL << (node % BITS);
    // Preferred, not bound: a full node then costs speed instead of the process.
    return syscall(SYS_mbind, pages, bytes, MPOL_PREFERRED, mask, (unsigned long) MOST_NODES + 1, 0) == 0;
}

static void touch(unsigned char *pages, size_t bytes) {
    if (madvise(pages, bytes, MADV_POPULATE_WRITE) == 0 || errno != EINVAL)
        return;
    size_t page = (size_t) sysconf(_SC_PAGESIZE); // a kernel before 5.14: by hand
    for (size_t at = 0; at < bytes; at += page)
        ((volatile unsigned char *) pages)[at] = 0;
}

// Places, touches nothing.
static void *map_for(tr_arena *arena, void *wanted, size_t bytes, size_t alignment) {
    if (bytes >= HUGE_PAGE && alignment < HUGE_PAGE && wanted == NULL)
        alignment = HUGE_PAGE;
    void *pages = wanted != NULL ? map(wanted, bytes) : map_aligned(bytes, alignment);
    if (pages == NULL)
        return NULL;
    if (arena->os_node >= 0 && bind_to_node(pages, bytes, arena->os_node))
        atomic_store_explicit(&arena->bound, true, memory_order_relaxed);
    if (tr_options_get()->huge_pages && madvise(pages, bytes, MADV_HUGEPAGE) == 0)
        atomic_store_explicit(&arena->huge, true, memory_order_relaxed);
    return pages;
}

static void touch_for(tr_arena *arena, void *pages, size_t bytes) {
    touch(pages, bytes);
    add(&arena->touched_bytes, (int64_t) bytes);
}

static void unmap(tr_arena *arena, void *pages, size_t bytes, bool touched) {
    munmap(pages, bytes);
    if (touched)
        add(&arena->touched_bytes, -(int64_t) bytes);
}

static void *extent_alloc(extent_hooks_t *hooks, void *wanted, size_t bytes, size_t alignment, bool *zero, bool *commit,
                          unsigned index) {
    (void) index;
    tr_arena *arena = (tr_arena *) hooks;
    void *pages = map_for(arena, wanted, bytes, alignment);
    if (pages == NULL)
        return NULL;
    *zero = true;
    *commit = bytes <= GROW_LIMIT;
    if (*commit)
        touch_for(arena, pages, bytes);
    return pages;
}

static bool extent_commit(extent_hooks_t *hooks, void *pages, size_t bytes, size_t at, size_t length, unsigned index) {
    (void) bytes, (void) index;
    touch_for((tr_arena *) hooks, (unsigned char *) pages + at, length);
    return false; // done
}

// True means: not done; jemalloc then retains the pages as they are. jemalloc's own metadata, which lie in pages of ours
// too, come here when the arena is destroyed; everything else to extent_destroy.
static bool extent_dalloc(extent_hooks_t *hooks, void *pages, size_t bytes, bool committed, unsigned index) {
    (void) index;
    tr_arena *arena = (tr_arena *) hooks;
    if (!arena->returns)
        return true;
    unmap(arena, pages, bytes, committed);
    return false;
}

static void extent_destroy(extent_hooks_t *hooks, void *pages, size_t bytes, bool committed, unsigned index) {
    (void) index;
    unmap((tr_arena *) hooks, pages, bytes, committed);
}

static bool extent_split(extent_hooks_t *hooks, void *pages, size_t bytes, size_t a, size_t b, bool committed, unsigned index) {
    (void) hooks, (void) pages, (void) bytes, (void) a, (void) b, (void) committed, (void) index;
    return false; // fine
}

// Neighbouring mappings may be one extent: nothing is ever unmapped piecewise, and munmap takes several at once.
static bool extent_merge(extent_hooks_t *hooks, void *a, size_t a_bytes, void *b, size_t b_bytes, bool committed,
                         unsigned index) {
    (void) hooks, (void) a, (void) a_bytes, (void) b, (void) b_bytes, (void) committed, (void) index;
    return false; // fine
}

// ---- mallctl

static void control(const tr_arena *arena, const char *what, void *value, size_t size) {
    char name[64];
    snprintf(name, sizeof name, "arena.%u.%s", arena->index, what);
    int error = tr_je_mallctl(name, NULL, NULL, value, size);
    tr_assert(error == 0);
    (void) error;
}

static void never_purge(const tr_arena *arena) {
    ssize_t never = -1;
    size_t limit = GROW_LIMIT;
    control(arena, "dirty_decay_ms", &never, sizeof never);
    control(arena, "muzzy_decay_ms", &never, sizeof never);
    control(arena, "retain_grow_limit", &limit, sizeof limit);
}

static size_t rounded(size_t bytes) {
    return bytes != 0 ? bytes : 1;
}

static size_t whole_pages(size_t bytes) {
    size_t page = (size_t) sysconf(_SC_PAGESIZE);
    return (rounded(bytes) + page - 1) & ~(page - 1);
}

// Larger than any address space: mallocx's behaviour is undefined for sizes above its largest class.
static bool is_absurd(size_t bytes) {
    return bytes > PTRDIFF_MAX / 2;
}

// ---- public

tr_status tr_arena_create(int os_node, tr_arena **out) {
    tr_arena *arena = tr_calloc(1, sizeof *arena);
    if (arena == NULL)
        return TR_FAIL(TR_E_NOMEM, "no memory for an arena");
    arena->os_node = os_node;
    arena->hooks = (extent_hooks_t){
        .alloc = extent_alloc,
        .dalloc = extent_dalloc,
        .destroy = extent_destroy,
        .commit = extent_commit,
        .split = extent_split,
        .merge = extent_merge,
    };
    extent_hooks_t *hooks = &arena->hooks;
    size_t size = sizeof arena->index;
    if (tr_je_mallctl("arenas.create", &arena->index, &size, &hooks, sizeof hooks) != 0) {
        tr_free(arena);
        return TR_FAIL(TR_E_NOMEM, "jemalloc can't create an arena");
    }
    arena->flags = MALLOCX_ARENA(arena->index) | MALLOCX_TCACHE_NONE | MALLOCX_ALIGN(TR_ARENA_ALIGNMENT);
    never_purge(arena);
    *out = arena;
    return TR_OK;
}

void tr_arena_destroy(tr_arena *arena) {
    if (arena == NULL)
        return;
    char name[64];
    snprintf(name, sizeof name, "arena.%u.destroy", arena->index);
    arena->returns = true;
    int error = tr_je_mallctl(name, NULL, NULL, NULL, 0);
    tr_assert(error == 0);
    // If jemalloc kept it, it keeps pointing at the hooks: then leak them.
    if (error == 0)
        tr_free(arena);
}

static void count_block(tr_arena *arena, size_t bytes) {
    add(&arena->live_bytes, (int64_t) bytes);
    add(&arena->live_blocks, 1);
    add(&arena->allocations, 1);
    int64_t live = read_counter(&arena->live_bytes);
    if (live > read_counter(&arena->peak_bytes))
        atomic_store_explicit(&arena->peak_bytes, live, memory_order_relaxed);
}

static void discount_block(tr_arena *arena, size_t bytes) {
    add(&arena->live_bytes, -(int64_t) bytes);
    add(&arena->live_blocks, -1);
}

void *tr_arena_alloc(tr_arena *arena, size_t bytes) {
    if (tr_fail_alloc() || TR_UNLIKELY(is_absurd(bytes)))
        return NULL;
    void *block = tr_je_mallocx(rounded(bytes), arena->flags);
    if (TR_LIKELY(block != NULL))
        count_block(arena, tr_je_sallocx(block, arena->flags));
    return block;
}

void tr_arena_free(tr_arena *arena, void *block) {
    if (block == NULL)
        return;
    discount_block(arena, tr_je_sallocx(block, arena->flags));
    tr_je_dallocx(block, arena->flags);
}

void *tr_arena_map(tr_arena *arena, size_t bytes) {
    if (tr_fail_alloc() || TR_UNLIKELY(is_absurd(bytes)))
        return NULL;
    bytes = whole_pages(bytes);
    void *block = map_for(arena, NULL, bytes, whole_pages(1));
    if (block == NULL)
        return NULL;
    touch_for(arena, block, bytes);
    count_block(arena, bytes);
    return block;
}

void tr_arena_unmap(tr_arena *arena, void *block, size_t bytes) {
    if (block == NULL)
        return;
    discount_block(arena, whole_pages(bytes));
    unmap(arena, block, whole_pages(bytes), true);
}

void tr_arena_trim(tr_arena *arena) {
    arena->returns = true;
    control(arena, "purge", NULL, 0);
    arena->returns = false;
}

size_t tr_arena_block_size(size_t bytes) {
    return is_absurd(bytes) ? 0 : tr_je_nallocx(rounded(bytes), MALLOCX_ALIGN(TR_ARENA_ALIGNMENT));
}

tr_status tr_arena_reserve(tr_arena *arena, size_t bytes) {
    void *block = tr_arena_alloc(arena, bytes);
    if (block == NULL)
        return TR_FAIL(TR_E_NOMEM, "no memory for %zu bytes", bytes);
    tr_arena_free(arena, block);
    return TR_OK;
}

void tr_arena_stats_get(const tr_arena *arena, tr_arena_stats *out) {
    *out = (tr_arena_stats){
        .live_bytes = read_counter(&arena->live_bytes),
        .peak_bytes = read_counter(&arena->peak_bytes),
        .live_blocks = read_counter(&arena->live_blocks),
        .allocations = read_counter(&arena->allocations),
        .touched_bytes = read_counter(&arena->touched_bytes),
        .os_node = arena->os_node,
        .bound = atomic_load_explicit(&arena->bound, memory_order_relaxed),
        .huge = atomic_load_explicit(&arena->huge, memory_order_relaxed),
    };
}

void tr_arena_reset_peak(tr_arena *arena) {
    atomic_store_explicit(&arena->peak_bytes, read_counter(&arena->live_bytes), memory_order_relaxed);
}
