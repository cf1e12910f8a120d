/* pass_dead.c - ops whose results nobody sees: not read by an op that counts, not fetched, not alive at the mark.
 *
 * An op that writes an operand always counts (parameters, running statistics, a generator's draws), and so does one that
 * may fail on a value. Dead ops that hang together become one instruction that does nothing, ready behind the deaths: until
 * then Python could still leave the path and look. */
#include "graph/pass.h"

bool tr__may_fail(const tr_path_op *op) {
    switch (op->op) {
        case TR_OP_div: // of integers, by zero
        case TR_OP_remainder:
        case TR_OP_fmod:
        case TR_OP_pow:
            return !tr_dtype_is_float((tr_dtype) op->cdtype);
        case TR_OP_cat:
        case TR_OP_constant_pad_nd:
        case TR_OP_flip:
        case TR_OP_roll:
        case TR_OP_tril:
        case TR_OP_triu:
        case TR_OP_as_strided_scatter:
            return false;
        default:
            break;
    }
    switch (tr_op_info_of((tr_op) op->op)->op_class) {
        case TR_CLASS_EW:
        case TR_CLASS_RED:
        case TR_CLASS_MM:
        case TR_CLASS_CONV:
        case TR_CLASS_POOL:
        case TR_CLASS_NORM:
        case TR_CLASS_SOFT:
        case TR_CLASS_NEW:
            return false;
        default:
            return true;
    }
}

static bool has_effect(const tr__graph *g, const tr_path_op *op) {
    if (tr__may_fail(op) || op->n_out == 0)
        return true;
    for (uint32_t i = 0; i < op->n_in; i++)
        if (tr__operands(g->path, op)[i].ref != TR_REF_NONE && tr__operand_written(op, i))
            return true;
    return false;
}

enum { PATIENCE = 32 }; /* ops: what overwrites a dead op's operands waits for its death */

static bool nobody_looks(const tr__graph *g, uint32_t k) {
    const tr_path *p = g->path;
    const tr_path_op *op = &p->ops[k];
    if (has_effect(g, op))
        return false;
    for (uint32_t i = op->n_in; i < tr__operand_count(op); i++) {
        tr_ref v = tr__operands(p, op)[i].ref;
        uint32_t death = p->death[v];
        if (op->in_place || p->fetched[v] || death == TR_DEATH_NEVER || death > k + PATIENCE || death >= g->deadline[k])
            return false;
        for (uint32_t t = g->touch.at[v]; t < g->touch.at[v + 1]; t++)
            if (g->touch.item[t] != k && g->groups[g->group[g->touch.item[t]]].kind != TR_INSTR_SKIP)
                return false;
    }
    return true;
}

/* A dead op and the dead ones that read its results must be skipped together: one of them alone would lack an input. The
 * readers first: they are skipped anyway. */
static bool join_readers(tr__graph *g, uint32_t k) {
    const tr_path_op *op = &g->path->ops[k];
    uint32_t readers = TR__NIL; // an op of theirs
    for (uint32_t i = op->n_in; i < tr__operand_count(op); i++) {
        tr_ref v = tr__operands(g->path, op)[i].ref;
        for (uint32_t t = g->touch.at[v]; t < g->touch.at[v + 1]; t++) {
            uint32_t reader = g->touch.item[t];
            if (reader == k)
                continue;
            if (readers != TR__NIL && g->group[reader] != g->group[readers] &&
                !tr__merge(g, g->group[reader], g->group[readers]))
                return false;
            readers = reader;
        }
    }
    return readers == TR__NIL || tr__merge(g, g->group[k], g->group[readers]);
}

tr_status tr__pass_dead(tr__graph *g) {
    const tr_path *p = g->path;
    for (uint32_t k = p->n_ops; k-- > 0;) {
        if (!nobody_looks(g, k) || !join_readers(g, k))
            continue;
        const tr_path_op *op = &p->ops[k];
        g->groups[g->group[k]].kind = TR_INSTR_SKIP;
        for (uint32_t i = op->n_in; i < tr__operand_count(op); i++)
            g->elided[tr__operands(p, op)[i].ref] = true;
    }
    return TR_OK;
}
