/* The list scheduler over plans that are nothing but durations and what must have run before: every schedule can be run, and
 * work that may be shared is. */
#include "exec/schedule.h"
#include "terra/alloc.h"

#include <criterion/criterion.h>

enum { MOST = 200, EDGES = 4 };

typedef struct work {
    tr_plan plan;
    uint32_t before_at[MOST + 1], before[MOST * EDGES];
    tr_instr_guess guess[MOST];
} work;

static void start(work *w) {
    *w = (work){0};
    w->plan = (tr_plan){.before_at = w->before_at, .before = w->before, .guess = w->guess};
}

/* An instruction behind up to two others (MOST: none). */
static uint32_t add(work *w, float us, uint32_t a, uint32_t b) {
    uint32_t i = w->plan.n_instrs++, *n = &w->before_at[i + 1];
    *n = w->before_at[i];
    w->guess[i] = (tr_instr_guess){us * 1000, us * 1000};
    if (a < MOST)
        w->before[(*n)++] = a;
    if (b < MOST)
        w->before[(*n)++] = b;
    return i;
}

static tr_schedule *scheduled(const work *w, uint32_t n, bool deal) {
    static const int same[8] = {0};
    tr_schedule *s;
    cr_assert_eq(tr__schedule_create(&w->plan, n, same, deal, &s), TR_OK);
    return s;
}

/* Executors run what they may until nobody can: all must have run, none before what it hangs on. */
static void run(const work *w, const tr_schedule *s) {
    uint32_t done[TR_MAX_EXECUTORS] = {0}, n = 0;
    bool ran[MOST] = {false}, moved = true;
    while (moved) {
        moved = false;
        for (uint32_t e = 0; e < s->n; e++) {
            if (done[e] == s->first[e + 1] - s->first[e])
                continue;
            uint32_t i = s->list[s->first[e] + done[e]];
            bool turn = true;
            for (uint32_t o = 0; o < s->n; o++)
                turn &= done[o] >= tr__schedule_await(s, i)[o];
            if (!turn)
                continue;
            cr_assert_eq(s->executor[i], e);
            cr_assert_eq(s->place[i], done[e]);
            for (uint32_t b = w->before_at[i]; b < w->before_at[i + 1]; b++)
                cr_assert(ran[w->before[b]], "%u runs before %u", i, w->before[b]);
            ran[i] = moved = true;
            done[e]++;
            n++;
        }
    }
    cr_assert_eq(n, w->plan.n_instrs);
}

Test(schedule, two_chains_share_two_executors) {
    work w;
    start(&w);
    for (uint32_t i = 0; i < 100; i++)
        add(&w, 20, i < 2 ? MOST : i - 2, MOST);
    tr_schedule *s = scheduled(&w, 2, false);
    cr_assert_not_null(s);
    cr_assert_float_eq(s->alone_ns, 2e6, 1);
    cr_assert_lt(s->ns, 1.01e6);
    run(&w, s);
    tr__schedule_destroy(s);
}

Test(schedule, a_chain_stays_with_one_executor) {
    work w;
    start(&w);
    for (uint32_t i = 0; i < 50; i++)
        add(&w, 20, i ? i - 1 : MOST, MOST);
    cr_assert_null(scheduled(&w, 4, false));
}

Test(schedule, short_instructions_are_not_worth_handing_over) {
    work w;
    start(&w);
    for (uint32_t i = 0; i + 2 < 99; i += 3) {
        uint32_t a = add(&w, 0.1f, i ? i - 1 : MOST, MOST), b = add(&w, 0.1f, i ? i - 1 : MOST, MOST);
        add(&w, 0.1f, a, b);
    }
    cr_assert_null(scheduled(&w, 2, false));
}

Test(schedule, far_nodes_cost_more_than_near_ones) {
    work w;
    start(&w);
    uint32_t fork = add(&w, 10, MOST, MOST), a = add(&w, 30, fork, MOST), b = add(&w, 30, fork, MOST);
    add(&w, 10, a, b);
    w.guess[fork].bytes = w.guess[a].bytes = w.guess[b].bytes = 1e6f; // 0.1 ms to another node
    tr_schedule *s = scheduled(&w, 2, false);
    cr_assert_not_null(s);
    run(&w, s);
    tr__schedule_destroy(s);
    cr_assert_eq(tr__schedule_create(&w.plan, 2, (int[]){0, 1}, false, &s), TR_OK);
    cr_assert_null(s);
}

Test(schedule, what_was_measured_counts) {
    work w;
    start(&w);
    uint32_t a = add(&w, 1, MOST, MOST), b = add(&w, 1, MOST, MOST);
    cr_assert_eq(add(&w, 1, a, b), 2);
    _Atomic int64_t ns[3] = {500000, 500000, 1000};
    w.plan.ns = ns;
    tr_schedule *s = scheduled(&w, 2, false);
    cr_assert_not_null(s);
    cr_assert_float_eq(s->alone_ns, 1001000, 1);
    tr__schedule_destroy(s);
}

static uint32_t roll(uint64_t *dice, uint32_t n) {
    *dice = *dice * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t) (*dice >> 33) % n;
}

Test(schedule, any_work_can_be_run) {
    int64_t live = tr_alloc_live();
    uint64_t dice = 1;
    for (int round = 0; round < 300; round++) {
        work w;
        start(&w);
        uint32_t n = 1 + roll(&dice, MOST - 1);
        for (uint32_t i = 0; i < n; i++) {
            float us = (float) roll(&dice, 100);
            uint32_t a = i && roll(&dice, 4) ? roll(&dice, i) : MOST;
            add(&w, us, a, i > 1 && roll(&dice, 3) == 0 ? roll(&dice, i) : MOST);
        }
        for (uint32_t executors = 1; executors <= 5; executors++)
            for (int deal = 0; deal < 2; deal++) {
                tr_schedule *s = scheduled(&w, executors, deal);
                if (s)
                    run(&w, s);
                tr__schedule_destroy(s);
            }
    }
    cr_assert_eq(tr_alloc_live(), live);
}
