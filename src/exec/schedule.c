/* schedule.c - the list scheduler. See schedule.h. */
#include "exec/schedule.h"

#include "terra/alloc.h"

/* A result reaches another executor some hundred ns later; another node at so many bytes per ns. */
enum { HANDOVER_NS = 500, FAR_BYTES_PER_NS = 10 };

typedef struct scheduler {
    const tr_plan *plan;
    tr_schedule *s;
    const int *node;
    bool deal;
    double *end;                    /* per instruction */
    double free[TR_MAX_EXECUTORS];  /* per executor: when its last instruction ends */
    uint32_t count[TR_MAX_EXECUTORS];
} scheduler;

static double duration(const tr_plan *plan, uint32_t i) {
    // Relaxed: a number that this thread's members wrote before they let go of the plan's last run.
    int64_t ns = plan->ns ? atomic_load_explicit(&plan->ns[i], memory_order_relaxed) : 0;
    return ns ? (double) ns : plan->guess[i].ns;
}

static double handover(const scheduler *k, uint32_t from, uint32_t to, uint32_t executor) {
    uint32_t other = k->s->executor[from];
    if (other == executor)
        return 0;
    float a = k->plan->guess[from].bytes, b = k->plan->guess[to].bytes;
    return HANDOVER_NS + (k->node[other] == k->node[executor] ? 0 : (double) (a < b ? a : b) / FAR_BYTES_PER_NS);
}

static double start_of(const scheduler *k, uint32_t i, uint32_t executor) {
    double start = k->free[executor];
    for (uint32_t b = k->plan->before_at[i]; b < k->plan->before_at[i + 1]; b++) {
        uint32_t from = k->plan->before[b];
        double at = k->end[from] + handover(k, from, i, executor);
        if (at > start)
            start = at;
    }
    return start;
}

static uint32_t choose(const scheduler *k, uint32_t i) {
    if (k->deal)
        return (i * 2654435761u >> 16) % k->s->n;
    uint32_t best = 0;
    double first = start_of(k, i, 0);
    for (uint32_t e = 1; e < k->s->n; e++) {
        double start = start_of(k, i, e);
        if (start < first) {
            first = start;
            best = e;
        }
    }
    return best;
}

static void place(scheduler *k) {
    tr_schedule *s = k->s;
    for (uint32_t i = 0; i < k->plan->n_instrs; i++) {
        uint32_t e = choose(k, i), *await = s->await + (size_t) i * s->n;
        double ns = duration(k->plan, i);
        k->end[i] = k->free[e] = start_of(k, i, e) + ns;
        s->executor[i] = (uint8_t) e;
        s->place[i] = k->count[e]++;
        for (uint32_t b = k->plan->before_at[i]; b < k->plan->before_at[i + 1]; b++) {
            uint32_t from = k->plan->before[b], other = s->executor[from];
            if (other != e && s->place[from] + 1 > await[other])
                await[other] = s->place[from] + 1;
        }
        s->alone_ns += ns;
        s->ns = k->end[i] > s->ns ? k->end[i] : s->ns;
    }
    for (uint32_t e = 0; e < s->n; e++)
        s->first[e + 1] = s->first[e] + k->count[e];
    for (uint32_t i = 0; i < k->plan->n_instrs; i++)
        s->list[s->first[s->executor[i]] + s->place[i]] = i;
}

static tr_schedule *make(uint32_t n_instrs, uint32_t n) {
    size_t words = (size_t) n_instrs * (2 + n);
    char *at = tr_calloc(1, sizeof(tr_schedule) + words * sizeof(uint32_t) + n_instrs);
    if (!at)
        return NULL;
    tr_schedule *s = (tr_schedule *) (void *) at;
    s->n = n;
    s->place = (uint32_t *) (void *) (s + 1);
    s->list = s->place + n_instrs;
    s->await = s->list + n_instrs;
    s->executor = (uint8_t *) (s->place + words);
    return s;
}

tr_status tr__schedule_create(const tr_plan *plan, uint32_t n, const int *node, bool deal, tr_schedule **out) {
    scheduler k = {.plan = plan, .node = node, .deal = deal, .s = make(plan->n_instrs, n)};
    k.end = tr_calloc(plan->n_instrs + 1, sizeof *k.end);
    if (!k.s || !k.end) {
        tr_free(k.s);
        tr_free(k.end);
        return TR_FAIL(TR_E_NOMEM, "no memory to place %u instructions on executors", plan->n_instrs);
    }
    place(&k);
    tr_free(k.end);
    if (!deal && !tr__is_worth_sharing(k.s->ns, k.s->alone_ns)) {
        tr_free(k.s);
        k.s = NULL;
    }
    *out = k.s;
    return TR_OK;
}

void tr__schedule_destroy(tr_schedule *s) {
    tr_free(s);
}
