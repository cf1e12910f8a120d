/* clock.h - what the skeleton costs: time of the Python thread inside the tracer, per op.
 *
 * Off the benchmark, one call of tr_apply in 64 is timed while a path is followed, by the thread's CPU time: the wall clock would
 * count being preempted by the executor's team, which on a full machine is most of it. Reading that clock is a system call, so it is
 * not done more often. With TERRA_TIME_CALLS every outermost call (ops, backward, marks, the death of tensors) is timed by the
 * monotonic clock. In both cases what two readings take is measured right before and subtracted, and what was spent waiting for the
 * executor is left out: waits have counters of their own (tr_exec_stats). */
#ifndef TR_TRACER_CLOCK_H
#define TR_TRACER_CLOCK_H

#include "terra/status.h"

#include <stdint.h>

typedef struct tr_clock {
    bool every;   /* TERRA_TIME_CALLS */
    int depth;    /* calls that are being timed, within each other */
    uint32_t calls;
} tr_clock;
extern tr_clock tr__clock;

void tr__clock_init(void);
bool tr__clock_start(void);
void tr__clock_stop(void);

/* Around a call that may be the outermost. Pass the result to tr__clock_leave. */
static inline bool tr__clock_enter(void) {
    return TR_UNLIKELY(tr__clock.every) && tr__clock.depth == 0 && tr__clock_start();
}
/* Around an op. */
static inline bool tr__clock_enter_op(void) {
    return (TR_UNLIKELY(tr__clock.every) || TR_UNLIKELY((++tr__clock.calls & 63) == 0)) && tr__clock.depth == 0 && tr__clock_start();
}
static inline void tr__clock_leave(bool timed) {
    if (TR_UNLIKELY(timed))
        tr__clock_stop();
}

#endif
