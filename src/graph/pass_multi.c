/* pass_multi.c - optimizer updates of many parameters in one instruction.
 *
 * An optimizer's loop gives one update per parameter, all alike and independent: one parallel region for many of them,
 * balanced by elements, instead of one each. A chunk ends when it has work enough, so that the first ones may run while
 * Python still walks through the loop, and where somebody waits for what an update leads to. */
#include "graph/pass.h"

#include <string.h>

enum {
    ENOUGH = 1 << 20,        /* elements of a chunk: milliseconds */
    ENOUGH_SHARED = 1 << 17, /* that several executors share out */
    MAX_UPDATES = 512,
    MAX_GAP = 8, /* ops between two updates of one chunk */
};

static bool is_update(const tr_path *p, uint32_t k) {
    return tr_op_info_of((tr_op) p->ops[k].op)->op_class == TR_CLASS_OPTIM;
}

static bool are_alike(const tr_path *p, uint32_t a, uint32_t b) {
    const tr_path_op *x = &p->ops[a], *y = &p->ops[b];
    return x->op == y->op && x->n_in == y->n_in && x->n_out == y->n_out && x->cdtype == y->cdtype &&
           x->in_place == y->in_place && x->n_attrs == y->n_attrs &&
           memcmp(p->attrs + x->attr, p->attrs + y->attr, (size_t) x->n_attrs * 8) == 0;
}

static int64_t elements(const tr_path *p, uint32_t k) {
    return tr__operands(p, &p->ops[k])[0].meta->numel;
}

/* Does op k touch a storage that a member writes, or write one that a member touches? Then an edge leads there. (Merging
 * only looks for paths through others.) */
static bool hangs_on(const tr__graph *g, uint32_t k, uint32_t group) {
    for (uint32_t e = g->pred.at[k]; e < g->pred.at[k + 1]; e++)
        if (g->group[g->pred.item[e]] == group)
            return true;
    return false;
}

tr_status tr__pass_multi(tr__graph *g) {
    const tr_path *p = g->path;
    uint32_t chunk = TR__NIL; // the open one
    int64_t work = 0, enough = g->executors > 1 ? ENOUGH_SHARED : ENOUGH;
    for (uint32_t k = 0; k < p->n_ops; k++) {
        if (!is_update(p, k) || g->groups[g->group[k]].n_ops > 1)
            continue;
        bool fits = chunk != TR__NIL && are_alike(p, g->groups[chunk].head, k) && work < enough &&
                    g->groups[chunk].n_ops < MAX_UPDATES && k - g->groups[chunk].tail <= MAX_GAP &&
                    k < g->groups[chunk].deadline && !hangs_on(g, k, chunk);
        if (fits && tr__merge(g, chunk, k)) {
            chunk = g->group[k];
            g->groups[chunk].kind = TR_INSTR_MULTI;
            work += elements(p, k);
        } else {
            chunk = g->group[k];
            work = elements(p, k);
        }
    }
    return TR_OK;
}
