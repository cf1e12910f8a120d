/* dump.c - a plan as text, one line per instruction, and as a Graphviz graph. */
#include "graph/pass.h"

#include "terra/alloc.h"

#include <stdio.h>
#include <string.h>

typedef struct text {
    char *at;
    size_t n, room;
    bool failed;
} text;

static void TR_PRINTF(2, 3) put(text *t, const char *fmt, ...) {
    while (!t->failed) {
        va_list args;
        va_start(args, fmt);
        int n = vsnprintf(t->at + t->n, t->room - t->n, fmt, args);
        va_end(args);
        if (t->at && t->n + (size_t) n < t->room) {
            t->n += (size_t) n;
            return;
        }
        size_t room = (t->room + (size_t) n + 1) * 2;
        char *grown = tr_realloc(t->at, room);
        if (!grown) {
            tr_free(t->at);
            *t = (text){.failed = true};
            return;
        }
        t->at = grown;
        t->room = room;
    }
}

static const char *const kinds[] = {
    [TR_INSTR_OP] = "op", [TR_INSTR_EW] = "ew", [TR_INSTR_MULTI] = "multi", [TR_INSTR_DNN] = "dnn", [TR_INSTR_SKIP] = "skip",
    [TR_INSTR_NORM] = "norm",
    [TR_INSTR_NARROW] = "narrow",
    [TR_INSTR_COPY] = "copy",
    [TR_INSTR_ROWS] = "rows",
};

static const tr_meta *result_meta(const tr_path *p, const tr_path_op *op) {
    return tr__operand_count(op) ? tr__operands(p, op)[op->n_out ? op->n_in : 0].meta : NULL;
}

static void put_op(text *t, const tr_path *p, uint32_t k) {
    const tr_path_op *op = &p->ops[k];
    const tr_meta *m = result_meta(p, op);
    char shape[128] = "";
    if (m)
        tr_shape_print(m, shape, sizeof shape);
    put(t, "%s%s%s", tr_op_info_of((tr_op) op->op)->name, op->in_place ? "_" : "", shape);
}

static void put_bytes(text *t, double bytes) {
    static const char *const units[] = {"B", "KB", "MB", "GB"};
    int u = 0;
    for (; bytes >= 1000 && u < 3; u++)
        bytes /= 1000;
    put(t, u ? "%.1f %s" : "%.0f %s", bytes, units[u]);
}

static void put_elided(text *t, const tr_plan *plan, const tr_instr *instr) {
    if (!instr->n_elided)
        return;
    put(t, "  elides");
    for (uint32_t c = instr->first; c < instr->first + instr->n_ops; c++) {
        const tr_path_op *op = &plan->path->ops[plan->covered[c]];
        for (uint32_t i = op->n_in; !op->in_place && i < tr__operand_count(op); i++) {
            tr_ref v = tr__operands(plan->path, op)[i].ref;
            if (plan->slot[v] == TR_SLOT_ELIDED)
                put(t, " v%u", v);
        }
    }
    put(t, " (");
    put_bytes(t, (double) instr->bytes_elided);
    put(t, ")");
}

/* The layout of a convolution's weights, where they are kept in the library's. */
static void put_home(text *t, const tr_plan *plan, const tr_instr *instr) {
    const tr_path_op *op = &plan->path->ops[plan->covered[instr->first]];
    if (!instr->has_homes || tr_op_info_of((tr_op) op->op)->op_class != TR_CLASS_CONV)
        return;
    const tr_path_operand *weights = &tr__operands(plan->path, op)[op->op == TR_OP_conv2d_backward_weights ? op->n_in : 1];
    const tr_home *home = plan->homes[tr__ref_index(plan->path, weights->ref)];
    if (home) // the weights of a narrow instruction have none, but what they are cast to
        put(t, "  weights at home (%s)", tr_home_print(home));
}

static void put_instr(text *t, const tr_plan *plan, uint32_t i, const tr__cost *cost, const char *(*site_text)(uint32_t)) {
    const tr_instr *instr = &plan->instrs[i];
    put(t, "%5u %-5s %5u  ", i, kinds[instr->kind], instr->ready);
    uint32_t same = 0;
    for (uint32_t c = instr->first; c < instr->first + instr->n_ops; c += same) {
        uint32_t k = plan->covered[c];
        for (same = 1; instr->kind == TR_INSTR_MULTI && c + same < instr->first + instr->n_ops;)
            same++;
        put(t, "%s", c > instr->first ? " " : "");
        put_op(t, plan->path, k);
        if (same > 1)
            put(t, " x%u", same);
        put(t, " @%u", k);
    }
    put_elided(t, plan, instr);
    put_home(t, plan, instr);
    put(t, "  %.6g kFLOP, ", cost->flop * 1e-3);
    if (cost->flop_bf16 > 0)
        put(t, "%.6g of them bf16, ", cost->flop_bf16 * 1e-3);
    put(t, "%.6g kB", cost->bytes * 1e-3);
    int64_t ns = plan->ns ? atomic_load_explicit(&plan->ns[i], memory_order_relaxed) : 0; // relaxed: see plan.h
    if (ns)
        put(t, "  %.1f us", (double) ns * 1e-3);
    uint32_t site = plan->path->ops[plan->covered[instr->first]].site;
    if (site_text && site)
        put(t, "  %s", site_text(site));
    put(t, "\n");
}

typedef struct totals {
    uint32_t count[TR_INSTR_KINDS], elided;
    double values, elided_bytes;
} totals;

static totals sum_up(const tr_plan *plan) {
    totals s = {0};
    for (uint32_t i = 0; i < plan->n_instrs; i++) {
        s.count[plan->instrs[i].kind]++;
        s.elided += plan->instrs[i].n_elided;
        s.elided_bytes += (double) plan->instrs[i].bytes_elided;
    }
    for (uint32_t v = 0; v < plan->path->n_values; v++)
        s.values += (double) plan->path->value_bytes[v];
    return s;
}

/* The first instruction that is ready at `point`. */
static uint32_t first_ready(const tr_plan *plan, uint32_t point) {
    uint32_t lo = 0, hi = plan->n_instrs;
    while (lo < hi) {
        uint32_t mid = (lo + hi) / 2;
        if (plan->instrs[mid].ready < point)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

/* The bytes of slab values that exist at once: a slab is smaller only where results take the memory of operands. -1: no
 * memory to tell. */
static double most_alive(const tr_plan *plan) {
    const tr_path *p = plan->path;
    double *change = tr_calloc(plan->n_instrs + 1, sizeof *change);
    uint32_t *last = tr_calloc(p->n_values, sizeof *last);
    for (uint32_t k = 0; change && last && k < p->n_ops; k++)
        for (uint32_t i = 0; i < tr__operand_count(&p->ops[k]); i++) {
            tr_ref v = tr__operands(p, &p->ops[k])[i].ref;
            if (!tr_ref_is_value(v) || plan->slot[v] < 0 || plan->carry[v])
                continue;
            if (tr__operand_born(&p->ops[k], i))
                change[plan->instr_of[k]] += (double) p->value_bytes[v];
            if (plan->instr_of[k] + 1 > last[v])
                last[v] = plan->instr_of[k] + 1;
        }
    for (uint32_t v = 0; change && last && v < p->n_values; v++) {
        if (!last[v])
            continue;
        uint32_t at = first_ready(plan, p->death[v] + 1);
        change[at > last[v] ? at : last[v]] -= (double) p->value_bytes[v];
    }
    double now = 0, most = change && last ? 0 : -1;
    for (uint32_t i = 0; most >= 0 && i < plan->n_instrs; i++) {
        now += change[i];
        if (now > most)
            most = now;
    }
    tr_free(change);
    tr_free(last);
    return most;
}

static void put_totals(text *t, const tr_plan *plan) {
    totals s = sum_up(plan);
    put(t, "plan %u: %u ops in %u instructions (", plan->id, plan->path->n_ops, plan->n_instrs);
    const char *comma = "";
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        if (s.count[k]) {
            put(t, "%s%u %s", comma, s.count[k], kinds[k]);
            comma = ", ";
        }
    put(t, "); %.2f ops each; %u of %u values elided, ",
        plan->n_instrs ? (double) plan->path->n_ops / (double) plan->n_instrs : 0.0, s.elided, plan->path->n_values);
    put_bytes(t, s.elided_bytes);
    uint32_t relaid = 0;
    for (uint32_t v = 0; plan->relaid && v < plan->path->n_values; v++)
        relaid += plan->relaid[v] != 0;
    if (relaid)
        put(t, "; %u channels last", relaid);
    uint32_t at_home = 0;
    for (uint32_t r = 0; plan->homes && r < plan->path->n_values + plan->path->n_externals; r++)
        at_home += plan->homes[r] != NULL;
    if (at_home)
        put(t, "; %u tensors at home", at_home);
    put(t, "; slab ");
    put_bytes(t, (double) plan->slab_bytes);
    double most = most_alive(plan);
    if (most >= 0) {
        put(t, " (");
        put_bytes(t, most);
        put(t, " alive at once)");
    }
    put(t, ", carried ");
    put_bytes(t, (double) plan->carry_bytes);
    put(t, ", sum of values ");
    put_bytes(t, s.values);
    put(t, "; compiled in %.2f ms\n", (double) plan->compile_ns * 1e-6);
}

char *tr_plan_text(const tr_plan *plan, const char *(*site_text)(uint32_t site)) {
    tr__cost *costs = tr_calloc(plan->n_instrs + 1, sizeof *costs);
    if (!costs || tr__plan_cost(plan, costs) != TR_OK) {
        tr_free(costs);
        return NULL;
    }
    text t = {0};
    put_totals(&t, plan);
    put(&t, "    # kind  ready  ops @index  what it computes, moves, and took at its least  call\n");
    for (uint32_t i = 0; i < plan->n_instrs; i++)
        put_instr(&t, plan, i, &costs[i], site_text);
    tr_free(costs);
    return t.at;
}

static void put_node(text *t, const tr_plan *plan, uint32_t i, const char *(*site_text)(uint32_t)) {
    static const char *const colours[] = {
        [TR_INSTR_OP] = "white",       [TR_INSTR_EW] = "lightblue",   [TR_INSTR_MULTI] = "lightyellow", [TR_INSTR_DNN] = "lightgreen",
        [TR_INSTR_NORM] = "lightpink", [TR_INSTR_ROWS] = "lightcyan", [TR_INSTR_SKIP] = "lightgrey",
        [TR_INSTR_NARROW] = "orange",  [TR_INSTR_COPY] = "lightgrey",
    };
    const tr_instr *instr = &plan->instrs[i];
    put(t, "  i%u [style=filled, fillcolor=%s, label=\"%u: %s, ready %u", i, colours[instr->kind], i, kinds[instr->kind],
        instr->ready);
    for (uint32_t c = instr->first; c < instr->first + instr->n_ops; c++) {
        if (c - instr->first == 12) {
            put(t, "\\n… %u more", instr->n_ops - 12);
            break;
        }
        put(t, "\\n");
        put_op(t, plan->path, plan->covered[c]);
    }
    put(t, "\"");
    uint32_t site = plan->path->ops[plan->covered[instr->first]].site;
    if (site_text && site) {
        put(t, ", tooltip=\"");
        for (const char *s = site_text(site); *s; s++)
            put(t, *s == '"' || *s == '\\' ? "\\%c" : "%c", *s);
        put(t, "\"");
    }
    put(t, "];\n");
}

/* An arrow from the instruction that wrote a storage last to each that reads it, once. */
static tr_status put_arrows(text *t, const tr_plan *plan) {
    const tr_path *p = plan->path;
    uint32_t n = p->n_values + p->n_externals;
    uint32_t *writer = tr_calloc(n, sizeof *writer); // 1 + instruction
    uint32_t *drawn = tr_calloc(plan->n_instrs, sizeof *drawn);
    for (uint32_t c = 0; writer && drawn && c < p->n_ops; c++) {
        const tr_path_op *op = &p->ops[plan->covered[c]];
        uint32_t to = plan->instr_of[plan->covered[c]];
        for (uint32_t i = 0; i < tr__operand_count(op); i++) {
            tr_ref r = tr__operands(p, op)[i].ref;
            if (r == TR_REF_NONE)
                continue;
            uint32_t from = writer[tr__ref_index(p, r)];
            if (i < op->n_in && from && from - 1 != to && drawn[from - 1] != to + 1) {
                drawn[from - 1] = to + 1;
                put(t, "  i%u -> i%u;\n", from - 1, to);
            }
            if (tr__operand_written(op, i))
                writer[tr__ref_index(p, r)] = to + 1;
        }
    }
    bool fine = writer && drawn;
    tr_free(writer);
    tr_free(drawn);
    return fine ? TR_OK : TR_E_NOMEM;
}

char *tr_plan_graphviz(const tr_plan *plan, const char *(*site_text)(uint32_t site)) {
    text t = {0};
    put(&t, "digraph plan {\n  node [shape=box, fontname=monospace, fontsize=10];\n");
    for (uint32_t i = 0; i < plan->n_instrs; i++)
        put_node(&t, plan, i, site_text);
    tr_status status = put_arrows(&t, plan);
    put(&t, "}\n");
    if (status != TR_OK) {
        tr_free(t.at);
        return NULL;
    }
    return t.at;
}
