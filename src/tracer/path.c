/* path.c - recording traces, merging them into graphs, predicting. */
#include "tracer/path.h"

#include "terra/alloc.h"
#include "terra/graph.h"

#include <string.h>

/* ------------------------------------------------------------------------------------------------ recording */

static bool room(void **array, uint32_t *size, uint32_t need, size_t item) {
    if (need <= *size)
        return true;
    uint32_t more = *size ? *size : 256;
    while (more < need)
        more *= 2;
    void *p = tr_realloc(*array, more * item);
    if (!p)
        return false;
    *array = p;
    *size = more;
    return true;
}

void tr__recorder_reset(tr_recorder *r) {
    tr_path *p = &r->path;
    p->n_ops = p->n_operands = p->n_attrs = p->n_values = p->n_externals = 0;
    r->hash = 0x243f6a8885a308d3u;
}

/* Two arrays of one growing size. */
static bool room2(void **a, size_t item_a, void **b, size_t item_b, uint32_t *size, uint32_t need) {
    uint32_t size_b = *size;
    return room(b, &size_b, need, item_b) && room(a, size, need, item_a);
}

tr_path_op *tr__recorder_add(tr_recorder *r, int n_in, int n_out, int n_attrs) {
    tr_path *p = &r->path;
    uint32_t n = (uint32_t) (n_in + n_out);
    if (!room((void **) &p->ops, &r->ops_size, p->n_ops + 1, sizeof *p->ops) ||
        !room2((void **) &p->operands, sizeof *p->operands, (void **) &p->args, sizeof *p->args, &r->operands_size,
               p->n_operands + n) ||
        !room((void **) &p->attrs, &r->attrs_size, p->n_attrs + (uint32_t) n_attrs, sizeof *p->attrs))
        return NULL;
    tr_path_op *op = &p->ops[p->n_ops++];
    *op = (tr_path_op){.n_in = (uint16_t) n_in, .n_out = (uint8_t) n_out, .n_attrs = (uint8_t) n_attrs, .operand = p->n_operands,
                       .attr = p->n_attrs};
    p->n_operands += n;
    p->n_attrs += (uint32_t) n_attrs;
    return op;
}

tr_ref tr__recorder_value(tr_recorder *r, size_t bytes) {
    tr_path *p = &r->path;
    uint32_t n = p->n_values + 1, a = r->values_size, b = r->values_size, c = r->values_size;
    if (!room((void **) &p->death, &a, n, sizeof *p->death) || !room((void **) &p->value_bytes, &b, n, sizeof *p->value_bytes) ||
        !room((void **) &p->fetched, &c, n, sizeof *p->fetched))
        return TR_REF_NONE;
    r->values_size = a;
    p->death[p->n_values] = TR_DEATH_NEVER;
    p->value_bytes[p->n_values] = bytes;
    p->fetched[p->n_values] = 0;
    return p->n_values++;
}

static uint64_t mix(uint64_t h, uint64_t x) {
    h = (h ^ x) * 0x9fb21c651e98df25u;
    return h ^ (h >> 32);
}

static uint64_t hash_op(uint64_t h, const tr_path *p, const tr_path_op *op) {
    h = mix(h, (uint64_t) op->op | (uint64_t) op->n_in << 16 | (uint64_t) op->in_place << 32 | (uint64_t) op->cdtype << 40);
    for (int i = 0; i < op->n_attrs; i++)
        h = mix(h, (uint64_t) p->attrs[op->attr + (uint32_t) i]);
    for (uint32_t i = 0; i < (uint32_t) (op->n_in + op->n_out); i++) {
        const tr_path_operand *o = &p->operands[op->operand + i];
        h = mix(h, (uint64_t) o->ref ^ (uint64_t) (uintptr_t) o->meta * 31);
    }
    return h;
}

void tr__recorder_hash(tr_recorder *r, const tr_path_op *op) {
    r->hash = hash_op(r->hash, &r->path, op);
}

uint64_t tr__path_prefix(const tr_path *path, uint32_t n) {
    uint64_t h = 0x243f6a8885a308d3u;
    for (uint32_t i = 0; i < n; i++)
        h = hash_op(h, path, &path->ops[i]);
    return h;
}

tr_status tr__recorder_prefix(tr_recorder *r, const tr_path *path, uint32_t n, uint32_t n_values, uint32_t n_externals,
                              const int64_t *args) {
    tr__recorder_reset(r);
    for (uint32_t i = 0; i < n; i++) {
        const tr_path_op *from = &path->ops[i];
        tr_path_op *op = tr__recorder_add(r, from->n_in, from->n_out, from->n_attrs);
        if (!op)
            return TR_FAIL(TR_E_NOMEM, "no memory for a trace");
        uint32_t operand = op->operand, attr = op->attr;
        *op = *from;
        op->operand = operand;
        op->attr = attr;
        size_t k = (size_t) (op->n_in + op->n_out);
        memcpy(r->path.operands + operand, path->operands + from->operand, k * sizeof *path->operands);
        memcpy(r->path.args + operand, args + from->operand, k * sizeof *args);
        if (op->n_attrs)
            memcpy(r->path.attrs + attr, path->attrs + from->attr, op->n_attrs * sizeof *path->attrs);
    }
    for (uint32_t v = 0; v < n_values; v++) {
        if (tr__recorder_value(r, path->value_bytes[v]) == TR_REF_NONE)
            return TR_FAIL(TR_E_NOMEM, "no memory for a trace");
        r->path.death[v] = path->death[v];
        r->path.fetched[v] = path->fetched[v];
    }
    r->path.n_externals = n_externals;
    r->hash = tr__path_prefix(path, n);
    return TR_OK;
}

/* ------------------------------------------------------------------------------------------------ paths */

static void *copy_block(const void *from, size_t bytes, bool *ok) {
    void *to = tr_malloc(bytes);
    if (!to)
        *ok = false;
    else if (bytes)
        memcpy(to, from, bytes);
    return to;
}

tr_path *tr__path_copy(const tr_path *p) {
    tr_path *c = tr_malloc(sizeof *c);
    if (!c)
        return NULL;
    bool ok = true;
    *c = *p;
    c->ops = copy_block(p->ops, p->n_ops * sizeof *p->ops, &ok);
    c->operands = copy_block(p->operands, p->n_operands * sizeof *p->operands, &ok);
    c->attrs = copy_block(p->attrs, p->n_attrs * sizeof *p->attrs, &ok);
    c->args = copy_block(p->args, p->n_operands * sizeof *p->args, &ok);
    c->death = copy_block(p->death, p->n_values * sizeof *p->death, &ok);
    c->value_bytes = copy_block(p->value_bytes, p->n_values * sizeof *p->value_bytes, &ok);
    c->fetched = copy_block(p->fetched, p->n_values * sizeof *p->fetched, &ok);
    c->deaths = tr_malloc((p->n_values + 1) * sizeof *c->deaths);
    if (!ok || !c->deaths) {
        tr_path_destroy(c);
        return NULL;
    }
    tr__path_index_deaths(c);
    return c;
}

void tr__path_index_deaths(tr_path *p) {
    // A counting sort by death: count, then running sums in `die`, then place.
    for (uint32_t i = 0; i < p->n_ops; i++)
        p->ops[i].n_die = 0;
    for (uint32_t v = 0; v < p->n_values; v++)
        if (p->death[v] < p->n_ops)
            p->ops[p->death[v]].n_die++;
    uint32_t at = 0;
    for (uint32_t i = 0; i < p->n_ops; i++) {
        p->ops[i].die = at;
        at += p->ops[i].n_die;
        p->ops[i].n_die = 0;
    }
    for (uint32_t v = 0; v < p->n_values; v++)
        if (p->death[v] < p->n_ops) {
            tr_path_op *op = &p->ops[p->death[v]];
            p->deaths[op->die + op->n_die++] = v;
        }
}

/* ------------------------------------------------------------------------------------------------ the second time */

/* Storages of a path under the names that they will have when its end comes again by itself. */
typedef struct renaming {
    const tr_path *path;
    tr_recorder *to;
    uint32_t first;         /* the repeated part begins with this op */
    tr_ref *of_value, *of_external; /* NONE: not met yet */
    uint32_t *before;       /* per op: how many ops ahead of it are repeated; one entry more than ops */
    uint8_t *state;         /* per value: made once, then kept */
} renaming;

static bool makes_from_nothing(const tr_path *p, const tr_path_op *op) {
    if (op->in_place || op->n_out != 1)
        return false;
    for (uint32_t i = 0; i < op->n_in; i++)
        if (p->operands[op->operand + i].ref != TR_REF_NONE)
            return false;
    return p->death[p->operands[op->operand + op->n_in].ref] == TR_DEATH_NEVER;
}

/* What was made from nothing, then written, and is alive at the mark: an optimizer's state, which is there the second time. */
static void find_state(renaming *n) {
    const tr_path *p = n->path;
    for (uint32_t i = n->first; i < p->n_ops; i++) {
        const tr_path_op *op = &p->ops[i];
        unsigned written = tr_op_info_of((tr_op) op->op)->written | (unsigned) op->in_place;
        for (unsigned left = written; left; left &= left - 1) {
            uint32_t at = (uint32_t) __builtin_ctz(left);
            tr_ref ref = at < op->n_in ? p->operands[op->operand + at].ref : TR_REF_NONE;
            if (tr_ref_is_value(ref))
                n->state[ref] |= 2;
        }
        if (makes_from_nothing(p, op))
            n->state[p->operands[op->operand + op->n_in].ref] |= 1;
    }
}

static bool is_repeated(const renaming *n, uint32_t i) {
    const tr_path_op *op = &n->path->ops[i];
    return i >= n->first && !(makes_from_nothing(n->path, op) && n->state[n->path->operands[op->operand + op->n_in].ref] == 3);
}

static tr_ref renamed_read(renaming *n, tr_ref ref) {
    if (ref == TR_REF_NONE)
        return ref;
    tr_ref *name = tr_ref_is_value(ref) ? &n->of_value[ref] : &n->of_external[tr_ref_slot(ref)];
    if (*name == TR_REF_NONE)
        *name = TR_REF_EXTERNAL | n->to->path.n_externals++;
    return *name;
}

static bool renamed_birth(renaming *n, tr_ref ref) {
    tr_path *to = &n->to->path;
    tr_ref name = tr__recorder_value(n->to, n->path->value_bytes[ref]);
    if (name == TR_REF_NONE)
        return false;
    uint32_t death = n->path->death[ref];
    to->death[name] = death == TR_DEATH_NEVER ? death : n->before[death];
    to->fetched[name] = n->path->fetched[ref];
    n->of_value[ref] = name;
    return true;
}

static bool repeat_op(renaming *n, const tr_path_op *from) {
    const tr_path *p = n->path;
    tr_path_op *op = tr__recorder_add(n->to, from->n_in, from->n_out, from->n_attrs);
    if (!op)
        return false;
    tr_path *to = &n->to->path;
    uint32_t operand = op->operand, attr = op->attr;
    *op = *from;
    op->operand = operand;
    op->attr = attr;
    if (op->n_attrs)
        memcpy(to->attrs + attr, p->attrs + from->attr, op->n_attrs * sizeof *p->attrs);
    for (uint32_t i = 0; i < (uint32_t) (op->n_in + op->n_out); i++) {
        tr_path_operand o = p->operands[from->operand + i];
        if (i >= op->n_in && !op->in_place && !renamed_birth(n, o.ref))
            return false;
        o.ref = renamed_read(n, o.ref);
        to->operands[operand + i] = o;
        to->args[operand + i] = p->args[from->operand + i];
    }
    tr__recorder_hash(n->to, op);
    return true;
}

static bool repeat(renaming *n) {
    const tr_path *p = n->path;
    if (!n->of_value || !n->of_external || !n->before || !n->state)
        return false;
    memset(n->of_value, 0xff, p->n_values * sizeof *n->of_value);
    memset(n->of_external, 0xff, p->n_externals * sizeof *n->of_external);
    find_state(n);
    for (uint32_t i = 0; i < p->n_ops; i++)
        n->before[i + 1] = n->before[i] + is_repeated(n, i);
    for (uint32_t i = n->first; i < p->n_ops; i++)
        if (is_repeated(n, i) && !repeat_op(n, &p->ops[i]))
            return false;
    return true;
}

bool tr__recorder_repeat(tr_recorder *r, const tr_path *path, uint32_t first) {
    tr__recorder_reset(r);
    renaming n = {.path = path, .to = r, .first = first};
    n.of_value = tr_malloc((path->n_values + 1) * sizeof *n.of_value);
    n.of_external = tr_malloc((path->n_externals + 1) * sizeof *n.of_external);
    n.before = tr_calloc(path->n_ops + 1, sizeof *n.before);
    n.state = tr_calloc(path->n_values + 1, sizeof *n.state);
    bool done = repeat(&n);
    tr_free(n.of_value);
    tr_free(n.of_external);
    tr_free(n.before);
    tr_free(n.state);
    return done;
}

/* ------------------------------------------------------------------------------------------------ graphs */

static tr_graph *graphs;

tr_graph *tr__graph_first(void) {
    return graphs;
}

tr_graph *tr__graph_at(uint64_t key, uint32_t site, int kind) {
    for (tr_graph *g = graphs; g; g = g->next)
        if (g->key == key)
            return g;
    tr_graph *g = tr_calloc(1, sizeof *g);
    if (!g)
        return NULL;
    g->key = key;
    g->site = site;
    g->kind = (uint8_t) kind;
    g->next = graphs;
    graphs = g;
    return g;
}

static bool same_path(const tr_path *a, const tr_path *b) {
    if (a->n_ops != b->n_ops || a->n_operands != b->n_operands || a->n_attrs != b->n_attrs || a->n_values != b->n_values)
        return false;
    for (uint32_t i = 0; i < a->n_ops; i++) {
        const tr_path_op *x = &a->ops[i], *y = &b->ops[i];
        if (x->op != y->op || x->n_in != y->n_in || x->n_out != y->n_out || x->cdtype != y->cdtype || x->in_place != y->in_place)
            return false;
    }
    for (uint32_t i = 0; i < a->n_operands; i++)
        if (a->operands[i].ref != b->operands[i].ref || a->operands[i].meta != b->operands[i].meta)
            return false;
    return memcmp(a->attrs, b->attrs, a->n_attrs * sizeof *a->attrs) == 0;
}

tr_known *tr__graph_find(tr_graph *g, const tr_recorder *r) {
    for (tr_known *k = g->known; k; k = k->next)
        if (k->hash == r->hash && same_path(k->path, &r->path))
            return k;
    return NULL;
}

void tr__graph_remove(tr_graph *g, tr_known *k) {
    tr_known **at = &g->known;
    while (*at != k)
        at = &(*at)->next;
    *at = k->next;
    for (int o = 0; o < TR_ORDERS; o++)
        for (int i = 0; i < TR_PREDICTIONS; i++)
            if (g->after[o][i] == k)
                g->after[o][i] = NULL;
    if (g->last == k)
        g->last = NULL;
    tr_path_destroy(k->path);
    tr_free(k);
    g->n_known--;
}

/* Makes room by forgetting the path that was seen least and has no plan. */
static void forget_one(tr_graph *g) {
    tr_known *victim = NULL;
    for (tr_known *k = g->known; k; k = k->next)
        if (!k->plan && !k->compiling && (!victim || k->seen <= victim->seen))
            victim = k;
    if (victim)
        tr__graph_remove(g, victim);
}

tr_known *tr__graph_add(tr_graph *g, const tr_recorder *r) {
    static uint32_t next_id = 1;
    if (g->n_known >= TR_MAX_KNOWN)
        forget_one(g);
    tr_known *k = tr_calloc(1, sizeof *k);
    tr_path *path = k && g->n_known < TR_MAX_KNOWN ? tr__path_copy(&r->path) : NULL;
    if (!path) {
        tr_free(k);
        return NULL;
    }
    k->id = next_id++;
    k->hash = r->hash;
    k->path = path;
    k->graph = g;
    k->next = g->known;
    g->known = k;
    g->n_known++;
    return k;
}

static uint32_t history[TR_HISTORY]; /* ids of the latest paths of all graphs, newest first; 0 none */
static const int orders[TR_ORDERS] = {8, 4, 2, 1};

static uint32_t slot(int n) {
    uint64_t h = (uint64_t) n;
    for (int i = 0; i < n; i++)
        h = mix(h, history[i]);
    return (uint32_t) (h % TR_PREDICTIONS);
}

tr_known *tr__graph_predict(tr_graph *g, int guess) {
    return guess < TR_ORDERS ? g->after[guess][slot(orders[guess])] : g->last;
}

void tr__graph_taken(tr_graph *g, tr_known *k) {
    for (int i = 0; i < TR_ORDERS; i++)
        g->after[i][slot(orders[i])] = k;
    memmove(history + 1, history, sizeof history - sizeof *history);
    history[0] = k->id;
    g->last = k;
    k->taken = ++g->iterations;
}

/* ------------------------------------------------------------------------------------------------ cuts */

static uint32_t cuts[2 * TR_MAX_CUTS]; /* open addressing; 0: free */
static uint32_t n_cuts;

static uint32_t *cut_slot(uint32_t location) {
    uint32_t at = location * 0x9e3779b1u % (2 * TR_MAX_CUTS);
    while (cuts[at] && cuts[at] != location)
        at = (at + 1) % (2 * TR_MAX_CUTS);
    return &cuts[at];
}

bool tr__is_cut(uint32_t location) {
    return n_cuts && *cut_slot(location) == location;
}

/* Does a piece end within the path? */
static bool is_crossed(const tr_path *p) {
    for (uint32_t i = 1; i < p->n_ops; i++)
        if (tr__is_cut(p->ops[i].location))
            return true;
    return false;
}

static void add_cut(uint32_t location) {
    if (location == 0 || n_cuts == TR_MAX_CUTS || tr__is_cut(location))
        return;
    *cut_slot(location) = location;
    n_cuts++;
    for (tr_graph *g = graphs; g; g = g->next)
        for (tr_known *k = g->known; k; k = k->next)
            k->crossed |= is_crossed(k->path);
}

/* A fork is cut after 2 misses, if it was missed in one of 40 iterations. Traces that part are laid side by side again within
 * REJOIN ops, MAX_PARTINGS times at most. */
enum { CUT_MISSES = 2, CUT_RATE = 40, REJOIN = 128, MAX_PARTINGS = 32 };

static tr_fork *fork_after(tr_graph *g, uint32_t after) {
    for (uint32_t i = 0; i < g->n_forks; i++)
        if (g->forks[i].after == after)
            return &g->forks[i];
    if (g->n_forks == TR_MAX_FORKS)
        return NULL;
    tr_fork *f = &g->forks[g->n_forks++];
    *f = (tr_fork){.after = after};
    return f;
}

/* How two traces are walked: one op of each at a time while they agree. */
typedef struct walk {
    const tr_path *a, *b;
    uint32_t i, j;
} walk;

static bool is_same_call(const walk *w, uint32_t i, uint32_t j) {
    if (i == w->a->n_ops || j == w->b->n_ops)
        return i == w->a->n_ops && j == w->b->n_ops; // both end here
    return w->a->ops[i].op == w->b->ops[j].op && w->a->ops[i].location == w->b->ops[j].location;
}

/* To the first difference, in any respect. */
static void walk_equal(walk *w) {
    uint64_t a = 0, b = 0;
    while (w->i < w->a->n_ops && w->j < w->b->n_ops) {
        a = hash_op(a, w->a, &w->a->ops[w->i]);
        b = hash_op(b, w->b, &w->b->ops[w->j]);
        if (a != b)
            return;
        w->i++;
        w->j++;
    }
}

/* To the next place where the same calls come, in the nearest way; behind a fork values have other numbers, so that calls are
 * all there is to compare. False: nowhere near. */
static bool rejoin(walk *w) {
    for (uint32_t sum = 1; sum <= REJOIN; sum++)
        for (uint32_t di = 0; di <= sum; di++) {
            uint32_t i = w->i + di, j = w->j + sum - di;
            if (i > w->a->n_ops || j > w->b->n_ops || !is_same_call(w, i, j))
                continue;
            if (i < w->a->n_ops && !is_same_call(w, i + 1, j + 1))
                continue;
            w->i = i;
            w->j = j;
            return i < w->a->n_ops;
        }
    return false;
}

/* The walk stands before a fork: one more miss, but for a loop that parts at one place many times. */
static void count_miss(tr_graph *g, const walk *w, tr_fork **counted, int *n_counted) {
    tr_fork *f = fork_after(g, w->i ? w->a->ops[w->i - 1].location : 0);
    if (!f)
        return;
    const tr_path_op *came = w->i < w->a->n_ops ? &w->a->ops[w->i] : NULL;
    const tr_path_op *expected = w->j < w->b->n_ops ? &w->b->ops[w->j] : NULL;
    bool again = false;
    for (int k = 0; k < *n_counted; k++)
        again |= counted[k] == f;
    if (!again) {
        counted[(*n_counted)++] = f;
        f->misses++;
        f->op = w->i;
        f->site = came ? came->site : expected ? expected->site : 0;
    }
    if (f->misses < CUT_MISSES || f->misses * CUT_RATE < g->iterations)
        return;
    add_cut(expected ? expected->location : 0);
    add_cut(came ? came->location : 0);
}

void tr__graph_missed(tr_graph *g, const tr_path *trace, const tr_path *predicted) {
    walk w = {.a = trace, .b = predicted};
    tr_fork *counted[MAX_PARTINGS];
    int n_counted = 0;
    walk_equal(&w);
    for (int n = 0; n < MAX_PARTINGS && !(w.i == trace->n_ops && w.j == predicted->n_ops); n++) {
        count_miss(g, &w, counted, &n_counted);
        // The same call with other operands or shapes: it is the fork, not what follows from it.
        if (is_same_call(&w, w.i, w.j))
            w.i++, w.j++;
        else if (!rejoin(&w))
            return;
        while (w.i < trace->n_ops && w.j < predicted->n_ops && is_same_call(&w, w.i, w.j))
            w.i++, w.j++;
    }
}
