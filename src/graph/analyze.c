/* analyze.c - who touches which storage, and what must run before what.
 *
 * Offsets are run-time arguments, so any two operands of one storage may overlap: a read depends on the storage's last
 * write, a write on that and on every read since. An op that never changes a value's bytes after its birth costs one edge
 * per read; edges are linear in the number of operands. */
#include "graph/pass.h"

#include <string.h>

bool tr__operand_written(const tr_path_op *op, uint32_t i) {
    if (i >= op->n_in)
        return true;
    if (op->in_place && i == 0)
        return true;
    return i < TR_MAX_FIXED && (tr_op_info_of((tr_op) op->op)->written >> i & 1);
}

bool tr__operand_read(const tr_path_op *op, uint32_t i) {
    if (i >= op->n_in)
        return false;
    return !(i == 0 && (op->op == TR_OP_copy_ || op->op == TR_OP_fill_));
}

/* Calls once per operand that names a storage. */
#define FOR_EACH_REF(path, op, i, o)                                             \
    for (uint32_t i = 0, n_##i = tr__operand_count(op); i < n_##i; i++)          \
        for (const tr_path_operand *o = &tr__operands(path, op)[i]; o; o = NULL) \
            if (o->ref != TR_REF_NONE)

static void find_touches(tr__graph *g) {
    const tr_path *p = g->path;
    uint32_t *last = g->ref_stamp; // op + 1 that was counted last
    uint32_t *at = tr__pool_take(&g->pool, g->n_refs + 2, sizeof *at);
    if (!at)
        return;
    for (uint32_t k = 0; k < p->n_ops; k++)
        FOR_EACH_REF(p, &p->ops[k], i, o) {
            uint32_t r = tr__ref_index(p, o->ref);
            if (last[r] != k + 1) {
                last[r] = k + 1;
                at[r + 2]++;
            }
            if (tr__operand_born(&p->ops[k], i))
                g->birth[r] = k;
            else if (tr__operand_written(&p->ops[k], i))
                g->writes[r] = 1;
        }
    for (uint32_t r = 0; r < g->n_refs; r++)
        at[r + 2] += at[r + 1];
    uint32_t *item = tr__pool_take(&g->pool, at[g->n_refs + 1], sizeof *item);
    if (!item)
        return;
    memset(last, 0, g->n_refs * sizeof *last);
    for (uint32_t k = 0; k < p->n_ops; k++)
        FOR_EACH_REF(p, &p->ops[k], i, o) {
            uint32_t r = tr__ref_index(p, o->ref);
            if (last[r] != k + 1) {
                last[r] = k + 1;
                item[at[r + 1]++] = k;
            }
        }
    memset(last, 0, g->n_refs * sizeof *last);
    g->touch = (tr__lists){at, item};
}

/* How an op uses a storage, all its operands together. */
static bool op_writes(const tr_path *p, uint32_t k, uint32_t r) {
    const tr_path_op *op = &p->ops[k];
    FOR_EACH_REF(p, op, i, o)
    if (tr__ref_index(p, o->ref) == r && tr__operand_written(op, i))
        return true;
    return false;
}

typedef struct edges {
    tr__graph *g;
    uint32_t *seen; /* per op: 1 + the op whose predecessors are being listed */
    uint32_t *pred;
    uint32_t n, room;
} edges;

static void add_edge(edges *e, uint32_t from, uint32_t to) {
    if (from == to || e->seen[from] == to + 1)
        return;
    e->seen[from] = to + 1;
    if (e->n == e->room) {
        uint32_t room = e->room * 2;
        uint32_t *grown = tr__pool_take(&e->g->pool, room, sizeof *grown);
        if (!grown)
            return;
        memcpy(grown, e->pred, e->n * sizeof *grown);
        e->pred = grown;
        e->room = room;
    }
    e->pred[e->n++] = from;
}

/* Who writes an external writes the copy beside it, a value that others read. */
static void add_readers_of_copy(edges *e, uint32_t k, uint32_t r) {
    const tr__graph *g = e->g;
    uint32_t v = g->copied ? g->copied[r] : 0;
    for (uint32_t t = v ? g->touch.at[v - 1] : 0; v && t < g->touch.at[v]; t++)
        add_edge(e, g->touch.item[t], k);
}

/* Per ref: its last writer so far, and how far back in its touches the reads since then go. */
static void find_edges(tr__graph *g) {
    const tr_path *p = g->path;
    uint32_t *at = tr__pool_take(&g->pool, p->n_ops + 1, sizeof *at);
    uint32_t *writer = tr__pool_take(&g->pool, g->n_refs, sizeof *writer); // op + 1
    uint32_t *from = tr__pool_take(&g->pool, g->n_refs, sizeof *from);     // first touch after it
    uint32_t *now = tr__pool_take(&g->pool, g->n_refs, sizeof *now);       // touches passed
    edges e = {.g = g, .room = p->n_operands * 2 + 16};
    e.seen = tr__pool_take(&g->pool, p->n_ops, sizeof *e.seen);
    e.pred = tr__pool_take(&g->pool, e.room, sizeof *e.pred);
    if (g->pool.failed)
        return;
    for (uint32_t r = 0; r < g->n_refs; r++)
        from[r] = now[r] = g->touch.at[r];
    for (uint32_t k = 0; k < p->n_ops && !g->pool.failed; k++) {
        at[k] = e.n;
        FOR_EACH_REF(p, &p->ops[k], i, o) {
            uint32_t r = tr__ref_index(p, o->ref);
            if (now[r] == g->touch.at[r + 1] || g->touch.item[now[r]] != k)
                continue; // seen at an earlier operand
            if (writer[r])
                add_edge(&e, writer[r] - 1, k);
            if (g->birth[r] == k || op_writes(p, k, r)) {
                for (uint32_t t = from[r]; t < now[r]; t++)
                    add_edge(&e, g->touch.item[t], k);
                writer[r] = k + 1;
                from[r] = now[r] + 1;
                add_readers_of_copy(&e, k, r);
            }
            now[r]++;
        }
    }
    at[p->n_ops] = e.n;
    g->pred = (tr__lists){at, e.pred};
}

static void find_successors(tr__graph *g) {
    uint32_t n = g->path->n_ops, m = g->pred.at[n];
    uint32_t *at = tr__pool_take(&g->pool, n + 2, sizeof *at);
    uint32_t *item = tr__pool_take(&g->pool, m, sizeof *item);
    if (g->pool.failed)
        return;
    for (uint32_t e = 0; e < m; e++)
        at[g->pred.item[e] + 2]++;
    for (uint32_t k = 0; k < n; k++)
        at[k + 2] += at[k + 1];
    for (uint32_t k = 0; k < n; k++)
        for (uint32_t e = g->pred.at[k]; e < g->pred.at[k + 1]; e++)
            item[at[g->pred.item[e] + 1]++] = k;
    g->succ = (tr__lists){at, item};
}

/* Python waits for a fetched value: what makes it, and all of that's cone, must be ready when its maker is validated. */
static void find_deadlines(tr__graph *g) {
    const tr_path *p = g->path;
    for (uint32_t k = 0; k < p->n_ops; k++)
        g->deadline[k] = p->n_ops + 1;
    for (uint32_t v = 0; v < p->n_values; v++)
        for (uint32_t t = g->touch.at[v]; p->fetched[v] && t < g->touch.at[v + 1]; t++)
            if (op_writes(p, g->touch.item[t], v))
                g->deadline[g->touch.item[t]] = g->touch.item[t] + 1;
    for (uint32_t k = p->n_ops; k-- > 0;)
        for (uint32_t e = g->pred.at[k]; e < g->pred.at[k + 1]; e++)
            if (g->deadline[k] < g->deadline[g->pred.item[e]])
                g->deadline[g->pred.item[e]] = g->deadline[k];
}

static void make_groups(tr__graph *g) {
    for (uint32_t k = 0; k < g->path->n_ops; k++) {
        g->group[k] = g->order[k] = k;
        g->next[k] = TR__NIL;
        g->groups[k] =
            (tr__group){.kind = TR_INSTR_OP, .head = k, .tail = k, .n_ops = 1, .rank = k, .deadline = g->deadline[k]};
    }
    for (uint32_t v = 0; g->copy_of && v < g->path->n_values; v++)
        if (g->copy_of[v])
            g->groups[g->birth[v]].kind = TR_INSTR_COPY;
}

bool tr__is_passing(const tr__graph *g, tr_ref v, uint32_t maker, uint32_t reader, uint32_t patience) {
    const tr_path *p = g->path;
    uint32_t deadline = g->deadline[maker] < g->deadline[reader] ? g->deadline[maker] : g->deadline[reader];
    if (p->fetched[v] || p->death[v] == TR_DEATH_NEVER || p->death[v] + 1 > deadline || p->death[v] > reader + patience)
        return false;
    for (uint32_t t = g->touch.at[v]; t < g->touch.at[v + 1]; t++)
        if (g->touch.item[t] != maker && g->touch.item[t] != reader)
            return false;
    return true;
}

tr_status tr__analyze(tr__graph *g, const tr_path *path) {
    g->path = path;
    g->n_refs = path->n_values + path->n_externals;
    uint32_t n = path->n_ops;
    g->birth = tr__pool_take(&g->pool, g->n_refs, sizeof *g->birth);
    g->writes = tr__pool_take(&g->pool, g->n_refs, 1);
    g->elided = tr__pool_take(&g->pool, path->n_values, sizeof *g->elided);
    g->spared = tr__pool_take(&g->pool, path->n_values, sizeof *g->spared);
    g->deadline = tr__pool_take(&g->pool, n, sizeof *g->deadline);
    g->group = tr__pool_take(&g->pool, n, sizeof *g->group);
    g->next = tr__pool_take(&g->pool, n, sizeof *g->next);
    g->order = tr__pool_take(&g->pool, n, sizeof *g->order);
    g->groups = tr__pool_take(&g->pool, n, sizeof *g->groups);
    g->stack = tr__pool_take(&g->pool, n, sizeof *g->stack);
    g->ref_stamp = tr__pool_take(&g->pool, g->n_refs, sizeof *g->ref_stamp);
    if (!g->pool.failed) {
        memset(g->birth, 0xff, g->n_refs * sizeof *g->birth);
        find_touches(g);
    }
    if (!g->pool.failed)
        TR_TRY(tr__find_copies(g));
    if (!g->pool.failed)
        find_edges(g);
    if (!g->pool.failed)
        find_successors(g);
    if (g->pool.failed)
        return TR_FAIL(TR_E_NOMEM, "no memory to compile a path of %u ops", n);
    find_deadlines(g);
    make_groups(g);
    return TR_OK;
}
