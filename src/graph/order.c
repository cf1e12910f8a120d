/* order.c - groups in topological order, kept while they merge; ready points; the order of instructions.
 *
 * g->order is a topological order of the groups. Two groups at ranks lo < hi may become one if no path leads from the first
 * to the second through others; such a path stays within the ranks between. Merging moves the ancestors of the second
 * that lie between before the merged group and leaves the rest behind it, in their order. */
#include "graph/pass.h"

#include <string.h>

#define FOR_EACH_PRED_GROUP(g, grp, from)                                           \
    for (uint32_t m_ = (g)->groups[grp].head; m_ != TR__NIL; m_ = (g)->next[m_])    \
        for (uint32_t e_ = (g)->pred.at[m_], from; e_ < (g)->pred.at[m_ + 1]; e_++) \
            if ((from = (g)->group[(g)->pred.item[e_]]) != (grp))

/* Stamps the ancestors of `hi` that rank behind `lo`. False when one of them hangs on `lo`. */
static bool stamp_between(tr__graph *g, uint32_t lo, uint32_t hi) {
    uint32_t rank = g->groups[lo].rank, n = 0;
    uint32_t stamp = ++g->stamp;
    g->stack[n++] = hi;
    while (n) {
        uint32_t x = g->stack[--n];
        FOR_EACH_PRED_GROUP(g, x, from) {
            tr__group *f = &g->groups[from];
            if (from == lo && x != hi)
                return false;
            if (f->rank <= rank || f->stamp == stamp)
                continue;
            f->stamp = stamp;
            g->stack[n++] = from;
        }
    }
    return true;
}

static void reorder(tr__graph *g, uint32_t lo, uint32_t hi) {
    uint32_t from = g->groups[lo].rank, to = g->groups[hi].rank, n = 0, at = from;
    for (uint32_t r = from; r <= to; r++) {
        uint32_t x = g->order[r];
        if (x == TR__NIL || x == lo || x == hi)
            continue;
        if (g->groups[x].stamp == g->stamp) {
            g->order[at] = x;
            g->groups[x].rank = at++;
        } else {
            g->stack[n++] = x;
        }
    }
    g->order[at] = lo;
    g->groups[lo].rank = at++;
    for (uint32_t k = 0; k < n; k++) {
        g->order[at] = g->stack[k];
        g->groups[g->stack[k]].rank = at++;
    }
    while (at <= to)
        g->order[at++] = TR__NIL;
}

/* Two lists of members, each in program order, into one. */
static void join_members(tr__graph *g, uint32_t into, uint32_t from) {
    tr__group *a = &g->groups[into], *b = &g->groups[from];
    uint32_t x = a->head, y = b->head, tail = TR__NIL;
    uint32_t *link = &a->head;
    for (uint32_t k = y; k != TR__NIL; k = g->next[k])
        g->group[k] = into;
    while (x != TR__NIL || y != TR__NIL) {
        uint32_t *least = y == TR__NIL || (x != TR__NIL && x < y) ? &x : &y;
        *link = tail = *least;
        link = &g->next[tail];
        *least = g->next[tail];
    }
    a->tail = tail;
    a->n_ops += b->n_ops;
    b->head = TR__NIL;
    if (b->deadline < a->deadline)
        a->deadline = b->deadline;
}

bool tr__merge(tr__graph *g, uint32_t a, uint32_t b) {
    uint32_t lo = g->groups[a].rank < g->groups[b].rank ? a : b, hi = lo == a ? b : a;
    if (!stamp_between(g, lo, hi))
        return false;
    reorder(g, lo, hi);
    join_members(g, lo, hi);
    return true;
}

/* What the group itself demands: behind its ops, and behind the death of what it elides. */
static uint32_t own_ready(const tr__graph *g, uint32_t group) {
    const tr_path *p = g->path;
    uint32_t ready = g->groups[group].tail + 1;
    if (ready < g->groups[group].patience)
        ready = g->groups[group].patience;
    for (uint32_t k = g->groups[group].head; k != TR__NIL; k = g->next[k]) {
        const tr_path_op *op = &p->ops[k];
        for (uint32_t i = op->n_in; !op->in_place && i < tr__operand_count(op); i++) {
            tr_ref v = tr__operands(p, op)[i].ref;
            if (tr_ref_is_value(v) && g->elided[v] && p->death[v] + 1 > ready)
                ready = p->death[v] + 1;
        }
    }
    return ready;
}

uint32_t tr__order(tr__graph *g, uint32_t *list) {
    uint32_t n_ops = g->path->n_ops, n = 0;
    uint32_t *at = tr__pool_take(&g->pool, n_ops + 3, sizeof *at);
    if (!at)
        return 0;
    for (uint32_t r = 0; r < n_ops; r++) {
        uint32_t x = g->order[r];
        if (x == TR__NIL)
            continue;
        tr__group *group = &g->groups[x];
        group->ready = own_ready(g, x);
        FOR_EACH_PRED_GROUP(g, x, from)
        if (g->groups[from].ready > group->ready)
            group->ready = g->groups[from].ready;
        at[group->ready + 1]++;
        n++;
    }
    // Ready points grow along dependencies: sorting a topological order by them, stably, keeps it one.
    for (uint32_t r = 0; r <= n_ops + 1; r++)
        at[r + 1] += at[r];
    for (uint32_t r = 0; r < n_ops; r++)
        if (g->order[r] != TR__NIL)
            list[at[g->groups[g->order[r]].ready]++] = g->order[r];
    return n;
}
