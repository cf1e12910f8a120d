/* partition.c - several ops as one compiled partition of oneDNN's Graph API.
 *
 * Nodes become Graph ops over logical tensors with explicit strides. The library's batch norm hands out mean and variance,
 * and running statistics after its own convention; ours wants the inverse deviation and PyTorch's convention: those vectors
 * are made after the partition has run, from its batch statistics. */
#include "exec/dnn/dnn.h"
#include "exec/kernels/kernels.h"

#include "terra/alloc.h"

#include <oneapi/dnnl/dnnl_graph.h>

#include <math.h>

enum { MAX_NODES = 8, MAX_TENSORS = 48, MAX_NORMS = 2 };

/* A tensor of the graph; its index is its id. */
typedef struct tensor {
    dnnl_graph_logical_tensor_t lt;
    int32_t value; /* the caller's; -1: ours, in `own` */
    void *own;
} tensor;

/* Statistics of a batch norm: what is left to do after the run. Values are the caller's, -1 absent. */
typedef struct norm {
    int64_t channels, count;
    double eps, momentum;
    int batch_mean, batch_var; /* tensors */
    int32_t mean, inv, running_mean, running_var;
} norm;

typedef struct side {
    size_t n;
    int tensor[MAX_TENSORS];
    dnnl_graph_tensor_t at[MAX_TENSORS];
} side;

struct tr_dnn_partition {
    int n_tensors, n_values, n_norms, threads;
    tensor tensors[MAX_TENSORS];
    int32_t values[TR_DNN_MAX_VALUES];
    norm norms[MAX_NORMS];
    side in, out;
    dnnl_graph_graph_t graph;
    dnnl_graph_partition_t partition;
    dnnl_graph_compiled_partition_t compiled;
    dnnl_graph_op_t ops[MAX_NODES];
    int n_ops;
};

/* ------------------------------------------------------------------------------------------ tensors */

static int value_index(const tr_dnn_partition *p, int32_t value) {
    for (int i = 0; i < p->n_values; i++)
        if (p->values[i] == value)
            return i;
    return -1;
}

static tr_status note_value(tr_dnn_partition *p, int32_t value) {
    if (value < 0 || value_index(p, value) >= 0)
        return TR_OK;
    if (p->n_values == TR_DNN_MAX_VALUES)
        return TR_FAIL(TR_E_NOTIMPL, "too many values for a partition");
    p->values[p->n_values++] = value;
    return TR_OK;
}

/* A tensor of the graph, `own` if the caller has none: then of `m`'s size, with zeros. */
static tr_status add_tensor(tr_dnn_partition *p, const tr_meta *m, int32_t value, int *out) {
    dnnl_dims_t dims = {0}, strides = {0};
    dnnl_data_type_t type = tr__dnn_type((tr_dtype) m->dtype);
    if (p->n_tensors == MAX_TENSORS || type == dnnl_data_type_undef || m->ndim == 0 || m->numel == 0)
        return TR_FAIL(TR_E_NOTIMPL, "a partition can't take this tensor");
    tensor *t = &p->tensors[p->n_tensors];
    for (int d = 0; d < m->ndim; d++) {
        dims[d] = m->shape[d];
        strides[d] = m->strides[d];
    }
    TR__DNN("tensor", dnnl_graph_logical_tensor_init_with_strides(&t->lt, (size_t) p->n_tensors, type, m->ndim, dims, strides,
                                                                  dnnl_graph_tensor_property_undef));
    t->value = value;
    if (value < 0) {
        size_t bytes = (size_t) m->extent * tr_dtype_size((tr_dtype) m->dtype);
        t->own = tr_aligned_alloc(64, bytes);
        if (!t->own)
            return TR_FAIL(TR_E_NOMEM, "no memory for a partition");
        memset(t->own, 0, bytes);
    }
    *out = p->n_tensors++;
    return TR_OK;
}

static tr_status tensor_of(tr_dnn_partition *p, const tr_dnn_operand *o, int *out) {
    for (int i = 0; i < p->n_tensors; i++)
        if (p->tensors[i].value == o->value && o->value >= 0) {
            *out = i;
            return TR_OK;
        }
    return add_tensor(p, o->meta, o->value, out);
}

static tr_status own_vector(tr_dnn_partition *p, int64_t n, float fill, int *out) {
    tr_meta m;
    tr__meta_make(&m, TR_F32, 1, &n, NULL);
    TR_TRY(add_tensor(p, &m, -1, out));
    for (int64_t i = 0; i < n; i++)
        ((float *) p->tensors[*out].own)[i] = fill;
    return TR_OK;
}

/* ------------------------------------------------------------------------------------------ nodes */

static tr_status add_op(tr_dnn_partition *p, dnnl_graph_op_kind_t kind, const char *name, dnnl_graph_op_t *out) {
    TR__DNN(name, dnnl_graph_op_create(&p->ops[p->n_ops], (size_t) p->n_ops, kind, name));
    *out = p->ops[p->n_ops++];
    return TR_OK;
}

static tr_status connect_in(tr_dnn_partition *p, dnnl_graph_op_t op, const tr_dnn_operand *o) {
    int t;
    TR_TRY(tensor_of(p, o, &t));
    TR__DNN("input", dnnl_graph_op_add_input(op, &p->tensors[t].lt));
    return TR_OK;
}

static tr_status connect_out(tr_dnn_partition *p, dnnl_graph_op_t op, const tr_dnn_operand *o) {
    int t;
    TR_TRY(tensor_of(p, o, &t));
    TR__DNN("output", dnnl_graph_op_add_output(op, &p->tensors[t].lt));
    return TR_OK;
}

static tr_status add_conv(tr_dnn_partition *p, const tr_dnn_node *n) {
    dnnl_graph_op_t op = NULL;
    const int64_t *a = n->attrs, *x = n->in[0].meta->shape, *w = n->in[1].meta->shape, *y = n->out[0].meta->shape;
    int64_t end[2];
    for (int i = 0; i < 2; i++)
        end[i] = (y[2 + i] - 1) * a[i] + (w[2 + i] - 1) * a[4 + i] + 1 - x[2 + i] - a[2 + i];
    TR_TRY(add_op(p, dnnl_graph_op_convolution, "conv", &op));
    TR__DNN("conv", dnnl_graph_op_set_attr_s64(op, dnnl_graph_op_attr_strides, a, 2));
    TR__DNN("conv", dnnl_graph_op_set_attr_s64(op, dnnl_graph_op_attr_pads_begin, a + 2, 2));
    TR__DNN("conv", dnnl_graph_op_set_attr_s64(op, dnnl_graph_op_attr_pads_end, end, 2));
    TR__DNN("conv", dnnl_graph_op_set_attr_s64(op, dnnl_graph_op_attr_dilations, a + 4, 2));
    TR__DNN("conv", dnnl_graph_op_set_attr_s64(op, dnnl_graph_op_attr_groups, a + 6, 1));
    TR__DNN("conv", dnnl_graph_op_set_attr_str(op, dnnl_graph_op_attr_data_format, "NCX", 1));
    TR__DNN("conv", dnnl_graph_op_set_attr_str(op, dnnl_graph_op_attr_weights_format, "OIX", 1));
    for (int i = 0; i < 3; i++)
        if (n->in[i].meta)
            TR_TRY(connect_in(p, op, &n->in[i]));
    return connect_out(p, op, &n->out[0]);
}

static int32_t value_of(const tr_dnn_operand *o) {
    return o->meta ? o->value : -1;
}

static double number_of(const tr_dnn_operand *o) {
    return o->meta->dtype == TR_F64 ? o->at.d : (double) o->at.i;
}

static tr_status add_product(tr_dnn_partition *p, const tr_dnn_node *n) {
    dnnl_graph_op_t op = NULL;
    bool adds = n->op == TR_OP_addmm;
    if (adds && (n->in[0].meta->ndim != 1 || n->in[0].meta->numel != n->out[0].meta->shape[1] ||
                 number_of(&n->in[3]) != 1 || number_of(&n->in[4]) != 1))
        return TR_FAIL(TR_E_NOTIMPL, "a partition adds rows only");
    TR_TRY(add_op(p, dnnl_graph_op_matmul, "matmul", &op));
    TR_TRY(connect_in(p, op, &n->in[adds ? 1 : 0]));
    TR_TRY(connect_in(p, op, &n->in[adds ? 2 : 1]));
    if (adds)
        TR_TRY(connect_in(p, op, &n->in[0]));
    return connect_out(p, op, &n->out[0]);
}

static tr_status add_simple(tr_dnn_partition *p, const tr_dnn_node *n, dnnl_graph_op_kind_t kind, int operands) {
    dnnl_graph_op_t op = NULL;
    TR_TRY(add_op(p, kind, tr_op_info_of(n->op)->name, &op));
    for (int i = 0; i < operands; i++)
        TR_TRY(connect_in(p, op, &n->in[i]));
    return connect_out(p, op, &n->out[0]);
}

static tr_status add_batch_norm(tr_dnn_partition *p, const tr_dnn_node *n) {
    dnnl_graph_op_t op = NULL;
    const tr_meta *x = n->in[0].meta;
    int64_t c = x->shape[1];
    int spare[4];
    if (!n->attrs[0] || p->n_norms == MAX_NORMS || !n->in[1].meta || !n->in[2].meta)
        return TR_FAIL(TR_E_NOTIMPL, "a partition's batch norm trains and has weight and bias");
    norm *r = &p->norms[p->n_norms++];
    *r = (norm){c, x->numel / c,    number_of(&n->in[6]), number_of(&n->in[5]), 0,
                0, n->out[1].value, n->out[2].value,      value_of(&n->in[3]),  value_of(&n->in[4])};
    float eps = (float) r->eps, momentum = 0;
    TR_TRY(add_op(p, dnnl_graph_op_batch_norm_forward_training, "batch_norm", &op));
    TR__DNN("batch_norm", dnnl_graph_op_set_attr_f32(op, dnnl_graph_op_attr_epsilon, &eps, 1));
    TR__DNN("batch_norm", dnnl_graph_op_set_attr_f32(op, dnnl_graph_op_attr_momentum, &momentum, 1));
    TR__DNN("batch_norm", dnnl_graph_op_set_attr_str(op, dnnl_graph_op_attr_data_format, "NCX", 1));
    TR_TRY(connect_in(p, op, &n->in[0]));
    for (int i = 0; i < 2; i++) { // running statistics, which we keep ourselves
        TR_TRY(own_vector(p, c, 1, &spare[0]));
        TR__DNN("batch_norm", dnnl_graph_op_add_input(op, &p->tensors[spare[0]].lt));
    }
    TR_TRY(connect_in(p, op, &n->in[1]));
    TR_TRY(connect_in(p, op, &n->in[2]));
    TR_TRY(connect_out(p, op, &n->out[0]));
    for (int i = 0; i < 4; i++) {
        TR_TRY(own_vector(p, c, 0, &spare[i]));
        TR__DNN("batch_norm", dnnl_graph_op_add_output(op, &p->tensors[spare[i]].lt));
    }
    r->batch_mean = spare[2];
    r->batch_var = spare[3];
    TR_TRY(note_value(p, r->mean));
    TR_TRY(note_value(p, r->inv));
    TR_TRY(note_value(p, r->running_mean));
    return note_value(p, r->running_var);
}

static tr_status add_node(tr_dnn_partition *p, const tr_dnn_node *n) {
    switch (n->op) {
        case TR_OP_conv2d:
            return add_conv(p, n);
        case TR_OP_mm:
        case TR_OP_addmm:
            return add_product(p, n);
        case TR_OP_batch_norm:
            return add_batch_norm(p, n);
        case TR_OP_relu:
            return add_simple(p, n, dnnl_graph_op_relu, 1);
        case TR_OP_tanh:
            return add_simple(p, n, dnnl_graph_op_tanh, 1);
        case TR_OP_sigmoid:
            return add_simple(p, n, dnnl_graph_op_sigmoid, 1);
        case TR_OP_gelu:
            if (n->attrs[0] == 0)
                return add_simple(p, n, dnnl_graph_op_gelu, 1);
            break;
        case TR_OP_add:
            if (n->in[0].value >= 0 && n->in[1].value >= 0 && tr_meta_same_shape(n->in[0].meta, n->in[1].meta))
                return add_simple(p, n, dnnl_graph_op_add, 2);
            break;
        default:
            break;
    }
    return TR_FAIL(TR_E_NOTIMPL, "%s can't be in a partition", tr_op_info_of(n->op)->name);
}

/* ------------------------------------------------------------------------------------------ compiling */

static tr_status cut(tr_dnn_partition *p) {
    size_t n = 0, ops = 0;
    uint8_t supported = 0;
    TR__DNN("graph", dnnl_graph_graph_create(&p->graph, dnnl_cpu));
    for (int i = 0; i < p->n_ops; i++)
        TR__DNN("graph", dnnl_graph_add_op(p->graph, p->ops[i]));
    TR__DNN("graph", dnnl_graph_graph_finalize(p->graph));
    TR__DNN("graph", dnnl_graph_graph_filter(p->graph, dnnl_graph_partition_policy_fusion));
    TR__DNN("graph", dnnl_graph_graph_get_partition_num(p->graph, &n));
    if (n != 1)
        return TR_FAIL(TR_E_NOTIMPL, "oneDNN makes %zu partitions of this", n);
    TR__DNN("graph", dnnl_graph_graph_get_partitions(p->graph, 1, &p->partition));
    TR__DNN("graph", dnnl_graph_partition_get_op_num(p->partition, &ops));
    TR__DNN("graph", dnnl_graph_partition_is_supported(p->partition, &supported));
    if (ops != (size_t) p->n_ops || !supported)
        return TR_FAIL(TR_E_NOTIMPL, "oneDNN doesn't support this partition");
    return TR_OK;
}

/* Ports in the library's order, each bound to memory at the run. */
static tr_status bind(tr_dnn_partition *p, side *s, const dnnl_graph_logical_tensor_t *lts) {
    dnnl_engine_t engine;
    TR_TRY(tr__dnn_engine(&engine));
    for (size_t i = 0; i < s->n; i++) {
        dnnl_graph_logical_tensor_t lt;
        int t = s->tensor[i] = (int) lts[i].id;
        TR__DNN("ports", dnnl_graph_compiled_partition_query_logical_tensor(p->compiled, lts[i].id, &lt));
        TR__DNN("ports", dnnl_graph_tensor_create(&s->at[i], &lt, engine, p->tensors[t].own));
        TR_TRY(note_value(p, p->tensors[t].value));
    }
    return TR_OK;
}

static tr_status compile(tr_dnn_partition *p) {
    dnnl_engine_t engine;
    dnnl_graph_logical_tensor_t in[MAX_TENSORS], out[MAX_TENSORS];
    const dnnl_graph_logical_tensor_t *ins[MAX_TENSORS], *outs[MAX_TENSORS];
    TR_TRY(tr__dnn_engine(&engine));
    TR__DNN("ports", dnnl_graph_partition_get_input_ports_num(p->partition, &p->in.n));
    TR__DNN("ports", dnnl_graph_partition_get_output_ports_num(p->partition, &p->out.n));
    TR__DNN("ports", dnnl_graph_partition_get_input_ports(p->partition, p->in.n, in));
    TR__DNN("ports", dnnl_graph_partition_get_output_ports(p->partition, p->out.n, out));
    for (size_t i = 0; i < p->in.n; i++)
        ins[i] = &p->tensors[in[i].id].lt;
    for (size_t i = 0; i < p->out.n; i++)
        outs[i] = &p->tensors[out[i].id].lt;
    TR__DNN("partition", dnnl_graph_compiled_partition_create(&p->compiled, p->partition));
    TR__DNN("partition", dnnl_graph_partition_compile(p->partition, p->compiled, p->in.n, ins, p->out.n, outs, engine));
    TR_TRY(bind(p, &p->in, in));
    return bind(p, &p->out, out);
}

/* Is everything that must be stored an output? An intermediate that was fused away isn't. */
static tr_status check_kept(const tr_dnn_partition *p, const int32_t *kept, int n) {
    for (int k = 0; k < n; k++)
        if (value_index(p, kept[k]) < 0)
            return TR_FAIL(TR_E_NOTIMPL, "the partition doesn't store value %d", (int) kept[k]);
    return TR_OK;
}

static tr_status create(tr_dnn_partition *p, const tr_dnn_node *nodes, int n, const int32_t *kept, int n_kept) {
    if (n < 1 || n > MAX_NODES)
        return TR_FAIL(TR_E_NOTIMPL, "a partition of %d ops", n);
    for (int i = 0; i < n; i++)
        TR_TRY(add_node(p, &nodes[i]));
    TR_TRY(cut(p));
    TR_TRY(compile(p));
    return check_kept(p, kept, n_kept);
}

tr_status tr_dnn_partition_create(const tr_dnn_node *nodes, int n, const int32_t *kept, int n_kept, int threads,
                                  tr_dnn_partition **out) {
    tr_dnn_partition *p = tr_calloc(1, sizeof *p);
    if (!p)
        return TR_FAIL(TR_E_NOMEM, "no memory for a partition");
    p->threads = threads;
    tr__dnn_set_threads(threads);
    tr_status s = create(p, nodes, n, kept, n_kept);
    if (s != TR_OK) {
        tr_dnn_partition_destroy(p);
        return s;
    }
    *out = p;
    return TR_OK;
}

static void destroy_side(side *s) {
    for (size_t i = 0; i < s->n; i++)
        if (s->at[i])
            dnnl_graph_tensor_destroy(s->at[i]);
}

void tr_dnn_partition_destroy(tr_dnn_partition *p) {
    if (!p)
        return;
    destroy_side(&p->in);
    destroy_side(&p->out);
    if (p->compiled)
        dnnl_graph_compiled_partition_destroy(p->compiled);
    if (p->partition)
        dnnl_graph_partition_destroy(p->partition);
    if (p->graph)
        dnnl_graph_graph_destroy(p->graph);
    for (int i = 0; i < p->n_ops; i++)
        dnnl_graph_op_destroy(p->ops[i]);
    for (int i = 0; i < p->n_tensors; i++)
        tr_free(p->tensors[i].own);
    tr_free(p);
}

int tr_dnn_partition_values(const tr_dnn_partition *p, const int32_t **values) {
    *values = p->values;
    return p->n_values;
}

/* ------------------------------------------------------------------------------------------ running */

static float *vector_of(const tr_dnn_partition *p, void *const *data, int32_t value) {
    return value < 0 ? NULL : data[value_index(p, value)];
}

static void finish_norm(const tr_dnn_partition *p, const norm *r, void *const *data) {
    const float *m = p->tensors[r->batch_mean].own, *v = p->tensors[r->batch_var].own;
    float *mean = vector_of(p, data, r->mean), *inv = vector_of(p, data, r->inv);
    float *running_mean = vector_of(p, data, r->running_mean), *running_var = vector_of(p, data, r->running_var);
    double unbiased = (double) r->count / ((double) r->count - 1);
    for (int64_t c = 0; c < r->channels; c++) {
        if (mean)
            mean[c] = m[c];
        if (inv)
            inv[c] = (float) (1 / sqrt((double) v[c] + r->eps));
        if (running_mean)
            running_mean[c] = (float) ((1 - r->momentum) * running_mean[c] + r->momentum * m[c]);
        if (running_var)
            running_var[c] = (float) ((1 - r->momentum) * running_var[c] + r->momentum * v[c] * unbiased);
    }
}

static tr_status set_data(const tr_dnn_partition *p, const side *s, void *const *data) {
    for (size_t i = 0; i < s->n; i++) {
        const tensor *t = &p->tensors[s->tensor[i]];
        if (t->value >= 0)
            TR__DNN("data", dnnl_graph_tensor_set_data_handle(s->at[i], data[value_index(p, t->value)]));
    }
    return TR_OK;
}

tr_status tr_dnn_partition_run(tr_dnn_partition *p, void *const *data) {
    dnnl_stream_t stream;
    TR_TRY(tr__dnn_stream(&stream));
    tr__dnn_set_threads(p->threads);
    TR_TRY(set_data(p, &p->in, data));
    TR_TRY(set_data(p, &p->out, data));
    TR__DNN("partition",
            dnnl_graph_compiled_partition_execute(p->compiled, stream, p->in.n, (const_dnnl_graph_tensor_t *) p->in.at,
                                                  p->out.n, (const_dnnl_graph_tensor_t *) p->out.at));
    for (int i = 0; i < p->n_norms; i++)
        finish_norm(p, &p->norms[i], data);
    return TR_OK;
}
