/* clock.c - see clock.h. */
#include "tracer/clock.h"

#include "tracer/trace.h"

#include "terra/event.h"
#include "terra/exec.h"
#include "terra/options.h"

#include <time.h>

tr_clock tr__clock;

static struct {
    int64_t least;    /* that a second reading ever took */
    int64_t overhead; /* ... right before this start */
    int64_t start, waited, ops;
} now_timed;

static int64_t read_clock(void) {
    if (tr__clock.every)
        return tr_now_ns();
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (int64_t) t.tv_sec * 1000000000 + t.tv_nsec;
}

static int64_t waited_ns(void) {
    tr_exec_waits w;
    tr_exec_waits_get(&w);
    return w.room_ns + w.activation_ns + w.answer_ns;
}

void tr__clock_init(void) {
    tr__clock.every = tr_options_get()->time_calls;
    now_timed.least = INT64_MAX;
    for (int i = 0; i < 200; i++) {
        int64_t start = read_clock(), ns = read_clock() - start;
        if (ns < now_timed.least)
            now_timed.least = ns;
    }
}

bool tr__clock_start(void) {
    if (!tr__clock.every && !tr__following())
        return false;
    tr__clock.depth++;
    now_timed.waited = waited_ns();
    now_timed.ops = tr__ops_so_far();
    int64_t before = read_clock();
    now_timed.start = read_clock();
    now_timed.overhead = now_timed.start - before;
    if (now_timed.overhead > 4 * now_timed.least) // the thread lost its core in between
        now_timed.overhead = now_timed.least;
    return true;
}

void tr__clock_stop(void) {
    int64_t ns = read_clock() - now_timed.start - now_timed.overhead;
    int64_t waited = waited_ns() - now_timed.waited;
    tr__clock.depth--;
    if (tr__clock.every)
        tr__note_skeleton(ns > waited ? ns - waited : 0, tr__ops_so_far() - now_timed.ops);
    else if (waited == 0 && tr__following())
        tr__note_skeleton(ns > 0 ? ns : 0, 1);
}
