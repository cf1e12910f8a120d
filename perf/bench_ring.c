/* The command ring between two pinned threads: messages per second, and the round trip of a fetch (a command through the
 * ring, a future back), spinning and sleeping. Exit status 1 if the median round trip is beyond SPINNING_US or SLEEPING_US. */
#include <pthread.h>
#include <string.h>

#include "bench.h"
#include "terra/event.h"
#include "terra/future.h"
#include "terra/ring.h"

enum { CAPACITY = 1 << 20, BURST = 8000, MESSAGES = 4000000, TRIPS = 20000, SLEEPING_TRIPS = 2000, LATE_US = 400 };
enum { SPINNING_US = 2, SLEEPING_US = 80 };

typedef struct command {
    tr_future *answer; // NULL: none wanted
    bool last;
    char arguments[40]; // what an op call takes, about
} command;

typedef struct link {
    tr_ring *ring;
    tr_event filled, drained;
    int64_t spin_ns; // of the consumer
    int64_t sum;
} link;

static bool is_filled(const void *arg) {
    return !tr_ring_is_empty(((const link *) arg)->ring);
}

static bool has_room(const void *arg) {
    return tr_ring_can_reserve(((const link *) arg)->ring, sizeof(command));
}

static void *executor(void *arg) {
    link *l = arg;
    bench_pin(1);
    for (;;) {
        tr_event_wait(&l->filled, is_filled, l, l->spin_ns, TR_FOREVER);
        size_t bytes;
        command c = *(command *) tr_ring_peek(l->ring, &bytes);
        tr_ring_release(l->ring);
        tr_event_notify(&l->drained);
        l->sum += c.arguments[0];
        if (c.answer != NULL)
            tr_future_complete(c.answer, &(tr_payload){.i64 = 1});
        if (c.last)
            return NULL;
    }
}

static void send(link *l, tr_future *answer, bool last) {
    command *c;
    while ((c = tr_ring_reserve(l->ring, sizeof *c)) == NULL)
        tr_event_wait(&l->drained, has_room, l, 50000, TR_FOREVER);
    c->answer = answer;
    c->last = last;
    c->arguments[0] = 1;
    tr_ring_commit(l->ring);
    tr_event_notify(&l->filled);
}

static pthread_t start(link *l, int64_t spin_ns) {
    *l = (link){.spin_ns = spin_ns};
    tr_check(tr_ring_create(CAPACITY, &l->ring) == TR_OK);
    pthread_t thread;
    tr_check(pthread_create(&thread, NULL, executor, l) == 0);
    return thread;
}

static void stop(link *l, pthread_t thread) {
    send(l, NULL, true);
    pthread_join(thread, NULL);
    tr_ring_destroy(l->ring);
}

static void bench_throughput(void) {
    link l;
    pthread_t thread = start(&l, 50000);
    int64_t begin = tr_now_ns();
    for (int i = 0; i < MESSAGES; i++)
        send(&l, NULL, false);
    int64_t sent = tr_now_ns() - begin;
    stop(&l, thread);
    int64_t done = tr_now_ns() - begin;
    printf("messages of %zu bytes:  %.1f M/s  (%.0f ns each for the producer, with its notification)\n", sizeof(command),
           MESSAGES * 1e3 / (double) done, (double) sent / MESSAGES);
}

// What a command costs Python while the executor is busy with kernels and doesn't look at the ring.
static void bench_burst(void) {
    link l = {0};
    tr_check(tr_ring_create(CAPACITY, &l.ring) == TR_OK);
    static int64_t times[100];
    for (int i = 0; i < 100; i++) {
        int64_t begin = tr_now_ns();
        for (int k = 0; k < BURST; k++)
            send(&l, NULL, false);
        times[i] = tr_now_ns() - begin;
        for (size_t bytes; tr_ring_peek(l.ring, &bytes) != NULL;)
            tr_ring_release(l.ring);
    }
    printf("producer alone:  %.1f ns each, with its notification\n", (double) bench_median(times, 100) / BURST);
    tr_ring_destroy(l.ring);
}

/* Whether the median is within the limit. */
static bool bench_round_trip(const char *name, int64_t spin_ns, int trips, int pause_us, int limit_us) {
    static int64_t times[TRIPS];
    link l;
    pthread_t thread = start(&l, spin_ns);
    for (int i = 0; i < trips; i++) {
        // So that the other side has gone to sleep when the command comes.
        for (int64_t until = tr_now_ns() + pause_us * 1000; tr_now_ns() < until;)
            tr_pause();
        tr_future answer;
        tr_future_init(&answer);
        int64_t begin = tr_now_ns();
        send(&l, &answer, false);
        tr_future_wait(&answer, spin_ns, TR_FOREVER);
        times[i] = tr_now_ns() - begin;
    }
    stop(&l, thread);
    int64_t median = bench_median(times, trips);
    bool fine = median <= limit_us * 1000;
    printf("round trip of a fetch, %-9s median %6.2f us, 90 %% below %6.2f us, least %6.2f us (limit %d us%s)\n", name,
           (double) median / 1e3, (double) times[trips * 9 / 10] / 1e3, (double) times[0] / 1e3, limit_us, fine ? "" : ": MISSED");
    return fine;
}

int main(void) {
    bench_pin(0);
    bench_burst();
    bench_throughput();
    bool spinning = bench_round_trip("spinning:", 1000000, TRIPS, 0, SPINNING_US);
    bool sleeping = bench_round_trip("sleeping:", 0, SLEEPING_TRIPS, LATE_US, SLEEPING_US);
    return spinning && sleeping ? 0 : 1;
}
