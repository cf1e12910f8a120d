/* schedule.h - which executor runs which instruction of a plan, and what it waits for.
 *
 * A list scheduler: instructions in the plan's order, each to the executor where it ends first. Its operands cost time to
 * reach another executor, and more on another NUMA node. Every executor keeps to the plan's order, and an instruction hangs
 * only on those before it, so that waiting never goes in circles. */
#ifndef TR_EXEC_SCHEDULE_H
#define TR_EXEC_SCHEDULE_H

#include "terra/plan.h"

enum { TR_MAX_EXECUTORS = 64 };

typedef struct tr_schedule {
    uint32_t n;          /* executors */
    uint8_t *executor;   /* per instruction */
    uint32_t *place;     /* per instruction: how many of its executor's come before it */
    uint32_t *list;      /* instructions by executor, each in the plan's order: list[first[e] .. first[e + 1]) */
    uint32_t first[TR_MAX_EXECUTORS + 1];
    uint32_t *await;     /* [instruction][executor]: how many of that executor's must have run before it */
    double ns, alone_ns; /* what a run may take, and with one executor */
} tr_schedule;

/* By plan->before and what instructions took, plan->ns, or may take. `node`: of each executor. `deal`: no matter what they
 * take, all over the place, so that tests see every order that may happen. *out NULL: one executor does as well. TR_E_NOMEM. Any
 * thread; pure. */
tr_status tr__schedule_create(const tr_plan *plan, uint32_t n, const int *node, bool deal, tr_schedule **out);
void tr__schedule_destroy(tr_schedule *s); /* takes it; NULL is fine */

/* Sharing takes cores from Python: it must gain something. */
static inline bool tr__is_worth_sharing(double shared_ns, double alone_ns) { return shared_ns <= 0.97 * alone_ns; }

static inline const uint32_t *tr__schedule_await(const tr_schedule *s, uint32_t instr) {
    return s->await + (size_t) instr * s->n;
}

#endif
