/* arena.h - tensor memory: one heap per executor, on its NUMA node.
 *
 * A jemalloc arena whose pages come from hooks of ours: bound to the node where there are several, huge where the system
 * grants it, and returned to the system only by tr_arena_trim (measured: ResNet-50's step 157 ms so, 212 ms with glibc's
 * defaults, 320 ms with a mapping per buffer). So in steady state an allocation neither makes a system call nor faults a page
 * in.
 *
 * An arena belongs to its executor thread: create, alloc, free, destroy are that thread's. tr_arena_stats: any thread.
 * Nothing blocks. Fault injection (alloc.h) counts tr_arena_alloc too. */
#ifndef TERRA_ARENA_H
#define TERRA_ARENA_H

#include <stddef.h>
#include <stdint.h>

#include "terra/status.h"

typedef struct tr_arena tr_arena;

enum { TR_ARENA_ALIGNMENT = 64 };

/* `os_node`: the system's number of the NUMA node to bind memory to; -1: don't. TR_E_NOMEM. */
TR_API tr_status tr_arena_create(int os_node, tr_arena **out);

/* Takes it, and with it every block that still lives. NULL is fine. */
TR_API void tr_arena_destroy(tr_arena *arena);

/* `bytes` of uninitialised memory, aligned to 64; NULL if there is none. 0 bytes give a block too. */
TR_API void *tr_arena_alloc(tr_arena *arena, size_t bytes) __attribute__((alloc_size(2), assume_aligned(64)));

/* Takes a block of this arena; NULL is fine. */
TR_API void tr_arena_free(tr_arena *arena, void *block);

/* A block outside of the heap, for what is large and kept: exactly as many pages as it needs, which go back to the system with
 * it. The caller remembers its size, and unmaps it before the arena is destroyed. NULL: no memory. */
TR_API void *tr_arena_map(tr_arena *arena, size_t bytes) __attribute__((alloc_size(2), assume_aligned(64)));
TR_API void tr_arena_unmap(tr_arena *arena, void *block, size_t bytes);

/* Gives the system back the pages that no block lies in, as far as blocks have used them. */
TR_API void tr_arena_trim(tr_arena *arena);

/* What a block of `bytes` really takes (jemalloc's size class): planners that compare sizes use this. */
TR_API size_t tr_arena_block_size(size_t bytes);

/* Makes the arena large enough for `bytes` in one piece, so that later allocations of up to that much make no system call.
 * TR_E_NOMEM. */
TR_API tr_status tr_arena_reserve(tr_arena *arena, size_t bytes);

typedef struct tr_arena_stats {
    int64_t live_bytes; /* allocated and not freed, size classes included */
    int64_t peak_bytes; /* most that live_bytes ever was */
    int64_t live_blocks;
    int64_t allocations;   /* blocks ever made */
    int64_t touched_bytes; /* of the system's pages that it holds, those that were ever used */
    int os_node;          /* as given */
    bool bound;           /* its memory is bound to that node */
    bool huge;            /* the system accepted our asking for huge pages */
} tr_arena_stats;

TR_API void tr_arena_stats_get(const tr_arena *arena, tr_arena_stats *out);

/* Makes live_bytes the new peak. Executor thread. */
TR_API void tr_arena_reset_peak(tr_arena *arena);

#endif
