/* ring.h - the command ring: a bounded queue of byte records from one producer thread to one consumer thread.
 *
 *     producer (Python)                              consumer (executor)
 *     command *c = tr_ring_reserve(ring, bytes);     command *c = tr_ring_peek(ring, &bytes);
 *     fill in *c                                     act on *c
 *     tr_ring_commit(ring);                          tr_ring_release(ring);
 *
 * Records lie in the ring itself, contiguous, 16-byte aligned, of any size up to tr_ring_max_record(). Several may be
 * reserved before one commit publishes them all. Neither side ever blocks or allocates: NULL says full, or empty, and
 * the caller decides how to wait (event.h; tr_ring_can_reserve and tr_ring_is_empty are its conditions).
 *
 * reserve, commit, can_reserve: producer only. peek, release, is_empty: consumer only. */
#ifndef TERRA_RING_H
#define TERRA_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "terra/status.h"

typedef struct tr_ring tr_ring;

/* `capacity` in bytes: a power of two, at least 64. TR_E_VALUE, TR_E_NOMEM. */
TR_API tr_status tr_ring_create(size_t capacity, tr_ring **out);
TR_API void tr_ring_destroy(tr_ring *ring); /* takes it; NULL is fine; neither side may be using it */

/* Largest record that always fits sooner or later. */
TR_API size_t tr_ring_max_record(const tr_ring *ring);

/* Room for `bytes` (<= tr_ring_max_record), uninitialised; NULL while there is too little. The pointer is good until the
 * commit that publishes it. */
TR_API void *tr_ring_reserve(tr_ring *ring, size_t bytes);

/* Publishes everything reserved since the last commit, in order. Wakes nobody. */
TR_API void tr_ring_commit(tr_ring *ring);

/* Whether tr_ring_reserve(ring, bytes) would succeed. */
TR_API bool tr_ring_can_reserve(tr_ring *ring, size_t bytes);

/* The oldest record not released, and its size as it was reserved; NULL if there is none. The same one until release. */
TR_API void *tr_ring_peek(tr_ring *ring, size_t *bytes);

/* Gives the peeked record's room back to the producer. */
TR_API void tr_ring_release(tr_ring *ring);

TR_API bool tr_ring_is_empty(tr_ring *ring);

/* Bytes published and not yet released, an estimate at once out of date. Any thread. */
TR_API size_t tr_ring_used(const tr_ring *ring);

#endif
