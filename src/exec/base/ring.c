/* The single-producer, single-consumer ring.
 *
 * `tail` counts the bytes ever published, `head` the bytes ever released; both only grow (64 bits don't wrap), and
 * position & mask is the offset. Always head <= tail <= write <= head + capacity.
 *
 * A record is a header and its payload, together a multiple of 16 bytes. One that would cross the end of the buffer is
 * preceded by a padding record that fills it, which the consumer skips. As a record takes at most half of the capacity,
 * padding and record together always fit into an empty ring.
 *
 * Memory order. Two pairs suffice:
 *   commit: tail.store(release)   ->  fetch_tail: tail.load(acquire)   the payload is seen before it is read
 *   release: head.store(release)  ->  fetch_head: head.load(acquire)   the payload has been read before it is overwritten
 * Each side owns its own index, so it reads that relaxed, and keeps a copy of the other's, reading the shared one only
 * when the copy says full or empty: in steady state the two lines move once per batch, not once per record. */
#include "terra/ring.h"

#include "terra/alloc.h"

enum { LINE = 128, ALIGNMENT = 16 }; // two 64-byte lines: the adjacent-line prefetcher fetches pairs

typedef struct record {
    uint32_t payload_bytes; // as reserved
    uint32_t is_padding;
    uint64_t total_bytes; // header and payload, rounded up
} record;

_Static_assert(sizeof(record) == ALIGNMENT, "the payload after the header must be aligned");

struct tr_ring {
    // Fixed at creation.
    unsigned char *bytes;
    uint64_t capacity, mask;

    // The producer's.
    _Alignas(LINE) _Atomic uint64_t tail;
    uint64_t write;     // tail plus what is reserved and not committed
    uint64_t head_seen; // head when last looked at

    // The consumer's.
    _Alignas(LINE) _Atomic uint64_t head;
    uint64_t tail_seen; // tail when last looked at
};

static uint64_t round_up(uint64_t bytes) {
    return (bytes + ALIGNMENT - 1) & ~(uint64_t) (ALIGNMENT - 1);
}

static record *record_at(const tr_ring *ring, uint64_t position) {
    return (record *) (void *) (ring->bytes + (position & ring->mask));
}

// Bytes between `position` and the end of the buffer if a record of `total` would cross it, else 0.
static uint64_t padding_before(const tr_ring *ring, uint64_t position, uint64_t total) {
    uint64_t to_end = ring->capacity - (position & ring->mask);
    return total <= to_end ? 0 : to_end;
}

static bool has_room(tr_ring *ring, uint64_t total) {
    if (TR_LIKELY(ring->write + total - ring->head_seen <= ring->capacity))
        return true;
    ring->head_seen = atomic_load_explicit(&ring->head, memory_order_acquire); // pairs with tr_ring_release
    return ring->write + total - ring->head_seen <= ring->capacity;
}

static bool has_record(tr_ring *ring, uint64_t head) {
    if (TR_LIKELY(head != ring->tail_seen))
        return true;
    ring->tail_seen = atomic_load_explicit(&ring->tail, memory_order_acquire); // pairs with tr_ring_commit
    return head != ring->tail_seen;
}

tr_status tr_ring_create(size_t capacity, tr_ring **out) {
    if (capacity < 4 * ALIGNMENT || (capacity & (capacity - 1)) != 0 || capacity > UINT32_MAX)
        return TR_FAIL(TR_E_VALUE, "ring: capacity %zu is not a power of two of at least 64", capacity);
    tr_ring *ring = tr_aligned_alloc(_Alignof(tr_ring), sizeof *ring);
    unsigned char *bytes = tr_aligned_alloc(LINE, capacity);
    if (ring == NULL || bytes == NULL) {
        tr_free(bytes);
        tr_free(ring);
        return TR_FAIL(TR_E_NOMEM, "no memory for a ring of %zu bytes", capacity);
    }
    *ring = (tr_ring){.bytes = bytes, .capacity = capacity, .mask = capacity - 1};
    *out = ring;
    return TR_OK;
}

void tr_ring_destroy(tr_ring *ring) {
    if (ring == NULL)
        return;
    tr_free(ring->bytes);
    tr_free(ring);
}

size_t tr_ring_max_record(const tr_ring *ring) {
    return ring->capacity / 2 - sizeof(record);
}

void *tr_ring_reserve(tr_ring *ring, size_t bytes) {
    tr_assert(bytes <= tr_ring_max_record(ring));
    uint64_t total = round_up(sizeof(record) + bytes);
    uint64_t padding = padding_before(ring, ring->write, total);
    if (!has_room(ring, padding + total))
        return NULL;
    if (padding != 0) {
        *record_at(ring, ring->write) = (record){.is_padding = 1, .total_bytes = padding};
        ring->write += padding;
    }
    record *new = record_at(ring, ring->write);
    *new = (record){.payload_bytes = (uint32_t) bytes, .total_bytes = total};
    ring->write += total;
    return new + 1;
}

void tr_ring_commit(tr_ring *ring) {
    atomic_store_explicit(&ring->tail, ring->write, memory_order_release); // pairs with has_record
}

bool tr_ring_can_reserve(tr_ring *ring, size_t bytes) {
    uint64_t total = round_up(sizeof(record) + bytes);
    return has_room(ring, padding_before(ring, ring->write, total) + total);
}

// A padding record is always published together with the record that it makes room for.
void *tr_ring_peek(tr_ring *ring, size_t *bytes) {
    uint64_t head = atomic_load_explicit(&ring->head, memory_order_relaxed); // our own
    if (!has_record(ring, head))
        return NULL;
    record *oldest = record_at(ring, head);
    if (oldest->is_padding) {
        head += oldest->total_bytes;
        atomic_store_explicit(&ring->head, head, memory_order_release);
        oldest = record_at(ring, head);
    }
    *bytes = oldest->payload_bytes;
    return oldest + 1;
}

void tr_ring_release(tr_ring *ring) {
    uint64_t head = atomic_load_explicit(&ring->head, memory_order_relaxed); // our own
    tr_assert(head != ring->tail_seen && !record_at(ring, head)->is_padding);
    head += record_at(ring, head)->total_bytes;
    atomic_store_explicit(&ring->head, head, memory_order_release); // pairs with has_room
}

bool tr_ring_is_empty(tr_ring *ring) {
    return !has_record(ring, atomic_load_explicit(&ring->head, memory_order_relaxed));
}

size_t tr_ring_used(const tr_ring *ring) {
    uint64_t head = atomic_load_explicit(&ring->head, memory_order_acquire);
    uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    return tail > head ? tail - head : 0;
}
