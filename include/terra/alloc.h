/* alloc.h - memory outside the arenas, and failing it on purpose.
 *
 * All C code of ours that doesn't allocate tensor memory (arena.h) or Python objects allocates here. Blocks are aligned
 * to 16 bytes. Failure is NULL (the caller says TR_FAIL(TR_E_NOMEM, ...)); a size of 0 gives a block that can be freed.
 *
 * Fault injection: after tr_fail_alloc_set(n) the nth allocation from now, by any thread, here or in an arena, fails,
 * once. A test fails n = 1, 2, ... until tr_fail_alloc_left() says that the nth was never reached. Off, it costs one
 * relaxed load and a predicted branch.
 *
 * Any thread; nothing blocks (beyond malloc's own locks). */
#ifndef TERRA_ALLOC_H
#define TERRA_ALLOC_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "terra/status.h"

TR_API void *tr_malloc(size_t bytes) __attribute__((malloc, alloc_size(1)));
TR_API void *tr_calloc(size_t count, size_t bytes) __attribute__((malloc, alloc_size(1, 2)));

/* On failure the old block stays as it is and the caller's. */
TR_API void *tr_realloc(void *block, size_t bytes) __attribute__((alloc_size(2)));

/* `alignment` is a power of two, at least sizeof(void *). Freed by tr_free. */
TR_API void *tr_aligned_alloc(size_t alignment, size_t bytes) __attribute__((malloc, alloc_size(2)));

/* Takes `block`, which may be NULL. */
TR_API void tr_free(void *block);

/* A copy of `text`; the caller's, NULL when there is no memory. */
TR_API char *tr_strdup(const char *text);

/* The next part of a block that several things share: 16-byte aligned if the block is. */
static inline void *tr_carve(char **at, size_t bytes) {
    void *part = *at;
    *at += (bytes + 15) & ~(size_t) 15;
    return part;
}

/* Clearing and copying some words. Compilers make string instructions of such loops, of memset and of assigning structs, and those
 * take longer to start than some words take. */
#define TR_WORDS(type) (sizeof(type) / 8 + 0 * sizeof(char[sizeof(type) % 8 ? -1 : 1]))
typedef uint64_t tr_word __attribute__((may_alias));
typedef uint64_t tr_word_pair __attribute__((vector_size(16), aligned(8), may_alias));
static inline void tr_clear_words(void *at, size_t n) {
    tr_word_pair *pair = at;
    if (__builtin_constant_p(n)) {
#pragma GCC unroll 16
        for (size_t i = 0; i < n / 2; i++)
            pair[i] = (tr_word_pair){0};
    } else
        for (size_t i = 0; i < n / 2; i++) {
            pair[i] = (tr_word_pair){0};
            __asm__("" : "+r"(pair) : : "memory"); // keeps it a loop
        }
    if (n % 2)
        ((tr_word *) at)[n - 1] = 0;
}
static inline void tr_copy_words(void *to, const void *from, size_t n) {
    tr_word *word = to;
    for (size_t i = 0; i < n; i++) {
        word[i] = ((const tr_word *) from)[i];
        __asm__("" : "+r"(word) : : "memory");
    }
}

/* Blocks not yet freed: counted in debug builds, -1 in others. */
TR_API int64_t tr_alloc_live(void);

/* The nth allocation from now fails; 0 turns injection off. */
TR_API void tr_fail_alloc_set(int64_t n);

/* How many allocations lie before the one that fails; 0 once it has failed or when injection is off. */
TR_API int64_t tr_fail_alloc_left(void);

extern TR_API _Atomic int64_t tr__fail_alloc_countdown;
TR_API bool tr__fail_alloc_step(void);

/* For allocators: counts one allocation and says whether it is the one to fail. */
static inline bool tr_fail_alloc(void) {
    // Relaxed: a counter; no other data is published by it.
    return TR_UNLIKELY(atomic_load_explicit(&tr__fail_alloc_countdown, memory_order_relaxed) != 0) && tr__fail_alloc_step();
}

#endif
