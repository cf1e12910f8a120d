/* cost.c - what an instruction computes and moves, from the shapes of its operators: for the text of a plan. */
#include "graph/pass.h"

#include "terra/alloc.h"

/* A product's inner size is the last of its first factor. */
static double product_flop(const tr_path_op *op, const tr_path_operand *o) {
    const tr_meta *a = o[op->op == TR_OP_addmm || op->op == TR_OP_baddbmm ? 1 : 0].meta;
    return 2.0 * (double) o[op->n_in].meta->numel * (double) a->shape[a->ndim - 1];
}

/* A pixel, of the result's side, and the weights of its channel. */
static double conv_flop(const tr_path_op *op, const tr_path_operand *o) {
    const tr_meta *pixels = o[op->op == TR_OP_conv2d ? op->n_in : 0].meta;
    const tr_meta *weights = o[op->op == TR_OP_conv2d_backward_weights ? op->n_in : 1].meta;
    return weights->shape[0] ? 2.0 * (double) pixels->numel * (double) weights->numel / (double) weights->shape[0] : 0;
}

/* Two products forward; five backward, which computes the scores again. Causal: each position looks at those before it. */
static double attention_flop(const tr_path_op *op, const tr_path_operand *o, bool causal) {
    bool backward = op->op == TR_OP__sdpa_backward;
    const tr_meta *q = o[backward].meta, *v = o[backward + 2].meta;
    double scores = (double) q->shape[0] * (double) q->shape[1] * (double) q->shape[2] * (double) v->shape[2];
    double d = (double) q->shape[3], e = (double) v->shape[3];
    return 2 * scores * (backward ? 3 * d + 2 * e : d + e) / (causal ? 2 : 1);
}

/* One for each element of the largest operand. */
static double element_flop(const tr_path_op *op, const tr_path_operand *o) {
    int64_t most = 0;
    for (uint32_t i = 0; i < tr__operand_count(op); i++)
        if (o[i].meta && o[i].meta->numel > most)
            most = o[i].meta->numel;
    return (double) most;
}

static double op_flop(const tr_path *p, const tr_path_op *op) {
    const tr_path_operand *o = tr__operands(p, op);
    if (op->op == TR_OP__sdpa || op->op == TR_OP__sdpa_backward)
        return attention_flop(op, o, p->attrs[op->attr] != 0);
    switch (tr_op_info_of((tr_op) op->op)->op_class) {
    case TR_CLASS_MM:
        return product_flop(op, o);
    case TR_CLASS_CONV:
        return conv_flop(op, o);
    case TR_CLASS_IDX:
    case TR_CLASS_NEW:
        return 0;
    default:
        return element_flop(op, o);
    }
}

static bool multiplies_bf16(const tr_path_op *op) {
    tr_op_class class = tr_op_info_of((tr_op) op->op)->op_class;
    bool product = class == TR_CLASS_MM || class == TR_CLASS_CONV || op->op == TR_OP__sdpa || op->op == TR_OP__sdpa_backward;
    return product && op->cdtype == TR_BF16;
}

/* The bytes of what it names; an expanded dimension repeats the same ones. */
static double look_bytes(const tr_meta *m) {
    int64_t n = m->numel ? 1 : 0;
    for (int d = 0; d < m->ndim; d++)
        n *= m->strides[d] ? m->shape[d] : 1;
    return (double) n * (double) tr_dtype_size((tr_dtype) m->dtype);
}

/* Of one storage, by one instruction: bytes read and written, the largest look's. */
typedef struct traffic {
    double read, written, largest;
    bool born;
} traffic;

static void add_traffic(traffic *of, const tr_path *p, const tr_path_op *op) {
    const tr_path_operand *o = tr__operands(p, op);
    bool picks = op->op == TR_OP_embedding || op->op == TR_OP_index_select || op->op == TR_OP_gather || op->op == TR_OP_index;
    for (uint32_t i = 0; i < tr__operand_count(op); i++) {
        if (o[i].ref == TR_REF_NONE || !o[i].meta)
            continue;
        traffic *t = &of[tr__ref_index(p, o[i].ref)];
        double bytes = look_bytes(o[i].meta), result = picks && i == 0 ? look_bytes(o[op->n_in].meta) : bytes;
        if (result < bytes) // of a table, the rows that are asked for
            bytes = result;
        t->largest = bytes > t->largest ? bytes : t->largest;
        t->born |= tr__operand_born(op, i);
        if (i < op->n_in && tr__operand_read(op, i))
            t->read += bytes;
        if (tr__operand_written(op, i) && !(op->in_place && i >= op->n_in))
            t->written += bytes;
    }
}

static double least(double a, double b) {
    return a < b ? a : b;
}

/* Takes what was added for these ops, and leaves zeros. Looks may overlap: no more than the storage counts. */
static double take_traffic(traffic *of, const tr_plan *plan, const tr_path_op *op) {
    const tr_path *p = plan->path;
    double sum = 0;
    for (uint32_t i = 0; i < tr__operand_count(op); i++) {
        tr_ref r = tr__operands(p, op)[i].ref;
        if (r == TR_REF_NONE)
            continue;
        traffic *t = &of[tr__ref_index(p, r)];
        bool value = tr_ref_is_value(r);
        double all = value ? (double) p->value_bytes[r] : t->largest;
        const tr_home *home = plan->homes ? plan->homes[tr__ref_index(p, r)] : NULL;
        double part = tr_home_is_bf16(home) ? 0.5 : 1, copies = tr_home_has_copy(home) ? 1.5 : 1;
        if (!value || plan->slot[r] != TR_SLOT_ELIDED)
            sum += part * ((t->born ? 0 : least(t->read, all)) + copies * least(t->written, all));
        *t = (traffic){0};
    }
    return sum;
}

tr_status tr__plan_cost(const tr_plan *plan, tr__cost *costs) {
    const tr_path *p = plan->path;
    traffic *of = tr_calloc(p->n_values + p->n_externals + 1, sizeof *of);
    if (!of)
        return TR_FAIL(TR_E_NOMEM, "no memory to count what a plan moves");
    for (uint32_t i = 0; i < plan->n_instrs; i++) {
        const tr_instr *instr = &plan->instrs[i];
        const uint32_t *ops = plan->covered + instr->first;
        costs[i] = (tr__cost){0};
        if (instr->kind == TR_INSTR_SKIP || instr->kind == TR_INSTR_COPY)
            continue;
        for (uint32_t c = 0; c < instr->n_ops; c++) {
            double flop = op_flop(p, &p->ops[ops[c]]);
            costs[i].flop += flop;
            costs[i].flop_bf16 += multiplies_bf16(&p->ops[ops[c]]) ? flop : 0;
            add_traffic(of, p, &p->ops[ops[c]]);
        }
        for (uint32_t c = 0; c < instr->n_ops; c++)
            costs[i].bytes += take_traffic(of, plan, &p->ops[ops[c]]);
    }
    tr_free(of);
    return TR_OK;
}
