/* Under ThreadSanitizer: the ring between two threads, with the eventcounts that the executor uses: tiny and ordinary
 * capacities (so that it wraps at every record, or seldom), records of every size, single and batched commits, waits that
 * spin and that sleep at once. Contents, order and sizes are checked. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "terra/event.h"
#include "terra/ring.h"

typedef struct run {
    tr_ring *ring;
    tr_event filled, drained;
    uint64_t records;
    int64_t spin_ns;
    unsigned batch;
} run;

typedef struct room {
    run *run;
    size_t bytes;
} room;

static bool can_reserve(const void *arg) {
    const room *wanted = arg;
    return tr_ring_can_reserve(wanted->run->ring, wanted->bytes);
}

static bool is_filled(const void *arg) {
    return !tr_ring_is_empty(((const run *) arg)->ring);
}

static size_t size_of(const run *r, uint64_t number) {
    return (size_t) (number * 2654435761u >> 7) % (tr_ring_max_record(r->ring) + 1);
}

static void publish(run *r) {
    tr_ring_commit(r->ring);
    tr_event_notify(&r->filled);
}

static void *produces(void *arg) {
    run *r = arg;
    for (uint64_t number = 0; number < r->records; number++) {
        room wanted = {r, size_of(r, number)};
        unsigned char *record = tr_ring_reserve(r->ring, wanted.bytes);
        if (record == NULL) {
            publish(r); // the batch so far, or nobody ever makes room
            tr_check(tr_event_wait(&r->drained, can_reserve, &wanted, r->spin_ns, TR_FOREVER) == TR_OK);
            record = tr_ring_reserve(r->ring, wanted.bytes);
            tr_check(record != NULL);
        }
        memset(record, (int) (number & 255), wanted.bytes);
        if (number % r->batch == 0)
            publish(r);
    }
    publish(r);
    return NULL;
}

static void consumes(run *r) {
    for (uint64_t number = 0; number < r->records; number++) {
        tr_check(tr_event_wait(&r->filled, is_filled, r, r->spin_ns, TR_FOREVER) == TR_OK);
        size_t bytes;
        const unsigned char *record = tr_ring_peek(r->ring, &bytes);
        tr_check(record != NULL && bytes == size_of(r, number));
        for (size_t i = 0; i < bytes; i++)
            tr_check(record[i] == (number & 255));
        tr_ring_release(r->ring);
        tr_event_notify(&r->drained);
    }
}

int main(void) {
    alarm(200); // a lost wake-up
    uint64_t total = 0;
    for (size_t capacity = 64; capacity <= 4096; capacity *= 8) {
        for (unsigned batch = 1; batch <= 3; batch++) {
            for (int64_t spin_ns = 0; spin_ns <= 2000; spin_ns += 1000) {
                run r = {.records = 4000, .spin_ns = spin_ns, .batch = batch};
                tr_check(tr_ring_create(capacity, &r.ring) == TR_OK);
                pthread_t thread;
                tr_check(pthread_create(&thread, NULL, produces, &r) == 0);
                consumes(&r);
                pthread_join(thread, NULL);
                tr_check(tr_ring_is_empty(r.ring));
                tr_ring_destroy(r.ring);
                total += r.records;
            }
        }
    }
    printf("%llu records\n", (unsigned long long) total);
    return 0;
}
