/* pass_partition.c - what oneDNN's Graph API runs as one: a product with the activation that follows it. (Convolutions
 * keep their weights in the library's blocked layout, which the Graph API can't take; its batch norm with relu takes ten times
 * as long as ours over channels-last images.)
 *
 * Only where nobody else sees what lies between the two, so that it is never stored. The library compiles the pair here, on
 * the compile thread; what it refuses stays two instructions. Numbers that the library bakes in (alpha, beta) become
 * guards: should they differ when the instruction's turn comes, its ops run one by one. */
#include "graph/pass.h"

#include "terra/alloc.h"
#include "terra/exec.h"
#include "terra/kernel.h"
#include "terra/options.h"

#include <string.h>

enum { PATIENCE = 32 }; /* ops of Python's that the pair may wait for the death of what lies between */

static bool is_root(const tr_path *p, const tr_path_op *op) {
    if (op->cdtype != TR_F32 || (op->op != TR_OP_mm && op->op != TR_OP_addmm))
        return false;
    const tr_path_operand *o = tr__operands(p, op);
    const int64_t *n = o[op->n_in].meta->shape; // kernels of our own know no activation, but are faster by more than that
    return !tr_product_by_tiles(TR_F32, n[0], n[1], o[op->op == TR_OP_mm ? 0 : 1].meta->shape[1]);
}

static bool is_activation(const tr_path *p, const tr_path_op *op) {
    switch (op->op) {
        case TR_OP_relu:
        case TR_OP_tanh:
        case TR_OP_sigmoid:
            return !op->in_place;
        case TR_OP_gelu:
            return !op->in_place && p->attrs[op->attr] == 0;
        default:
            return false;
    }
}

/* The one op that reads result v of op k; NIL. */
static uint32_t sole_reader(const tr__graph *g, uint32_t k, tr_ref v) {
    uint32_t reader = TR__NIL;
    if (g->writes[v])
        return TR__NIL;
    for (uint32_t t = g->touch.at[v]; t < g->touch.at[v + 1]; t++) {
        uint32_t user = g->touch.item[t];
        if (user == k)
            continue;
        if (reader != TR__NIL)
            return TR__NIL;
        reader = user;
    }
    return reader;
}

/* Operands are named by their place in the path, but for `link`, what the activation reads: by that of its birth. */
static tr_status node_of(const tr_path *p, uint32_t k, uint32_t link, tr_dnn_node *n) {
    const tr_path_op *op = &p->ops[k];
    *n = (tr_dnn_node){.op = (tr_op) op->op, .n_in = op->n_in, .n_out = op->n_out, .attrs = p->attrs + op->attr};
    if (op->n_in > TR_MAX_FIXED || op->n_out > TR_MAX_OUTPUTS)
        return TR_E_NOTIMPL;
    for (uint32_t i = 0; i < tr__operand_count(op); i++) {
        uint32_t at = op->operand + i;
        const tr_path_operand *o = &p->operands[at];
        uint32_t name = o->ref == p->operands[link].ref ? link : at;
        tr_dnn_operand d = {.value = o->ref == TR_REF_NONE ? -1 : (int32_t) name, .meta = o->meta, .at = {.i = p->args[at]}};
        *(i < op->n_in ? &n->in[i] : &n->out[i - op->n_in]) = d;
    }
    return TR_OK;
}

/* Do other operands of the two ops share a storage that one of them writes? The library could not know. */
static bool is_tangled(const tr_path *p, uint32_t k, uint32_t reader) {
    const tr_path_op *ops[] = {&p->ops[k], &p->ops[reader]};
    for (int a = 0; a < 2; a++)
        for (uint32_t i = 0; i < tr__operand_count(ops[a]); i++) {
            tr_ref r = tr__operands(p, ops[a])[i].ref;
            if (r == TR_REF_NONE || !tr__operand_written(ops[a], i) || tr__operand_born(ops[a], i))
                continue;
            for (int b = 0; b < 2; b++)
                for (uint32_t j = 0; j < tr__operand_count(ops[b]); j++)
                    if ((a != b || i != j) && tr__operands(p, ops[b])[j].ref == r)
                        return true;
        }
    return false;
}

static int threads_for(const tr_path *p, const tr_path_op *op) {
    const tr_path_operand *o = tr__operands(p, op);
    double k = (double) o[op->op == TR_OP_mm ? 0 : 1].meta->shape[1];
    return tr_dnn_threads(tr_exec_team(), 2.0 * k * (double) o[op->n_in].meta->numel);
}

static tr_status compile(tr__graph *g, uint32_t k, uint32_t reader, tr_dnn_partition **out) {
    const tr_path *p = g->path;
    tr_dnn_node nodes[2];
    uint32_t link = p->ops[k].operand + p->ops[k].n_in;
    TR_TRY(node_of(p, k, link, &nodes[0]));
    TR_TRY(node_of(p, reader, link, &nodes[1]));
    int32_t kept[TR_MAX_OUTPUTS + 1];
    int n_kept = 0;
    for (int i = 1; i < nodes[0].n_out; i++)
        kept[n_kept++] = nodes[0].out[i].value;
    kept[n_kept++] = nodes[1].out[0].value;
    return tr_dnn_partition_create(nodes, 2, kept, n_kept, threads_for(p, &p->ops[k]), out);
}

static tr_status keep(tr__graph *g, uint32_t group, tr_dnn_partition *partition) {
    tr__partitions *list = &g->partitions;
    if (list->n == list->size) {
        uint32_t size = list->size ? 2 * list->size : 16;
        tr_dnn_partition **more = tr_realloc(list->item, size * sizeof *more);
        if (!more)
            return TR_FAIL(TR_E_NOMEM, "no memory for a plan's partitions");
        list->item = more;
        list->size = size;
    }
    g->groups[group].partition = list->n;
    g->groups[group].kind = TR_INSTR_DNN;
    list->item[list->n++] = partition;
    return TR_OK;
}

static tr_status join(tr__graph *g, uint32_t k) {
    const tr_path *p = g->path;
    const tr_path_op *op = &p->ops[k];
    if (!is_root(p, op) || op->in_place)
        return TR_OK;
    tr_ref v = tr__operands(p, op)[op->n_in].ref;
    uint32_t reader = sole_reader(g, k, v);
    if (reader == TR__NIL || !is_activation(p, &p->ops[reader]) || reader - k > PATIENCE ||
        !tr__is_passing(g, v, k, reader, PATIENCE) ||
        g->groups[g->group[k]].n_ops > 1 || g->groups[g->group[reader]].n_ops > 1 || is_tangled(p, k, reader) ||
        tr__operands(p, &p->ops[reader])[0].meta != tr__operands(p, op)[op->n_in].meta)
        return TR_OK;
    tr_dnn_partition *partition;
    tr_status status = compile(g, k, reader, &partition);
    if (status != TR_OK)
        return status == TR_E_NOMEM ? status : TR_OK;
    if (!tr__merge(g, g->group[k], g->group[reader])) {
        tr_dnn_partition_destroy(partition);
        return TR_OK;
    }
    g->elided[v] = true;
    status = keep(g, g->group[k], partition);
    if (status != TR_OK)
        tr_dnn_partition_destroy(partition);
    return status;
}

tr_status tr__pass_partition(tr__graph *g) {
    if (!tr_options_get()->partitions)
        return TR_OK;
    for (uint32_t k = 0; k < g->path->n_ops; k++)
        TR_TRY(join(g, k));
    return TR_OK;
}

tr_status tr__partition_lower(const tr__graph *g, uint32_t group, tr_instr *instr) {
    const tr_path *p = g->path;
    const int32_t *values;
    tr_dnn_partition *partition = g->partitions.item[g->groups[group].partition];
    int n = tr_dnn_partition_values(partition, &values);
    instr->dnn = partition;
    instr->args = tr_malloc(((size_t) n + TR_MAX_FIXED) * sizeof *instr->args);
    if (!instr->args)
        return TR_FAIL(TR_E_NOMEM, "no memory for a partition's operands");
    for (int i = 0; i < n; i++)
        instr->args[instr->n_args++] = (uint32_t) values[i];
    const tr_path_op *root = &p->ops[g->groups[group].head];
    for (uint32_t i = 0; i < root->n_in; i++)
        if (root->op == TR_OP_addmm && i >= 3)
            instr->args[instr->n_args + instr->n_guards++] = root->operand + i;
    return TR_OK;
}
