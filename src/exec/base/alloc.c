/* The allocator for everything that isn't a tensor: malloc, with fault injection and, in debug builds, a live count. */
#include "terra/alloc.h"

#include <stdlib.h>
#include <string.h>

_Atomic int64_t tr__fail_alloc_countdown;

#ifdef TR_DEBUG
static _Atomic int64_t live;
#endif

static void count(int64_t change) {
#ifdef TR_DEBUG
    atomic_fetch_add_explicit(&live, change, memory_order_relaxed);
#else
    (void) change;
#endif
}

static void *counted(void *block) {
    if (block != NULL)
        count(1);
    return block;
}

// Never malloc(0), which may be NULL and would read as failure.
static size_t at_least_one(size_t bytes) {
    return bytes != 0 ? bytes : 1;
}

void *tr_malloc(size_t bytes) {
    return tr_fail_alloc() ? NULL : counted(malloc(at_least_one(bytes)));
}

void *tr_calloc(size_t number, size_t bytes) {
    return tr_fail_alloc() ? NULL : counted(calloc(at_least_one(number), at_least_one(bytes)));
}

void *tr_realloc(void *block, size_t bytes) {
    if (block == NULL)
        return tr_malloc(bytes);
    return tr_fail_alloc() ? NULL : realloc(block, at_least_one(bytes));
}

void *tr_aligned_alloc(size_t alignment, size_t bytes) {
    void *block = NULL;
    if (tr_fail_alloc() || posix_memalign(&block, alignment, at_least_one(bytes)) != 0)
        return NULL;
    return counted(block);
}

void tr_free(void *block) {
    if (block == NULL)
        return;
    count(-1);
    free(block);
}

char *tr_strdup(const char *text) {
    size_t bytes = strlen(text) + 1;
    char *copy = tr_malloc(bytes);
    return copy != NULL ? memcpy(copy, text, bytes) : NULL;
}

int64_t tr_alloc_live(void) {
#ifdef TR_DEBUG
    return atomic_load_explicit(&live, memory_order_relaxed);
#else
    return -1;
#endif
}

void tr_fail_alloc_set(int64_t n) {
    atomic_store_explicit(&tr__fail_alloc_countdown, n > 0 ? n : 0, memory_order_relaxed);
}

int64_t tr_fail_alloc_left(void) {
    return atomic_load_explicit(&tr__fail_alloc_countdown, memory_order_relaxed);
}

// A CAS loop instead of a fetch_sub: of two threads that meet at 1, one fails and neither takes the count below 0.
bool tr__fail_alloc_step(void) {
    int64_t left = atomic_load_explicit(&tr__fail_alloc_countdown, memory_order_relaxed);
    while (left > 0) {
        if (atomic_compare_exchange_weak_explicit(&tr__fail_alloc_countdown, &left, left - 1, memory_order_relaxed,
                                                  memory_order_relaxed))
            return left == 1;
    }
    return false;
}
