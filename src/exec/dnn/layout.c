/* layout.c - the engine, streams, and layouts. */
#include "exec/dnn/dnn.h"
#include "exec/kernels/kernels.h"

#include "terra/alloc.h"

#include <oneapi/dnnl/dnnl_graph.h>

#include <omp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pthread_once_t engine_once = PTHREAD_ONCE_INIT;
static dnnl_engine_t engine;
static dnnl_status_t engine_status;
static pthread_key_t stream_key;
static _Thread_local dnnl_stream_t own_stream;

tr_status tr__dnn_fail(dnnl_status_t status, const char *what) {
    switch (status) {
        case dnnl_out_of_memory:
            return TR_FAIL(TR_E_NOMEM, "oneDNN: no memory (%s)", what);
        case dnnl_unimplemented:
            return TR_FAIL(TR_E_NOTIMPL, "oneDNN doesn't implement this (%s)", what);
        case dnnl_invalid_arguments:
            return TR_FAIL(TR_E_RUNTIME, "oneDNN: invalid arguments (%s)", what);
        default:
            return TR_FAIL(TR_E_RUNTIME, "oneDNN: status %d (%s)", (int) status, what);
    }
}

static void destroy_stream(void *stream) {
    dnnl_stream_destroy(stream);
}

/* Compiled partitions take their scratch from the engine's allocator, at each run, and don't look whether they got it: it is
 * the library's own memory, not among the allocations that tests make fail. */
static void *allocate(size_t bytes, size_t alignment) {
    alignment = alignment < 64 ? 64 : alignment;
    return aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}

static void make_engine(void) {
    dnnl_graph_allocator_t allocator;
    engine_status = dnnl_graph_allocator_create(&allocator, allocate, free);
    if (engine_status == dnnl_success) {
        engine_status = dnnl_graph_make_engine_with_allocator(&engine, dnnl_cpu, 0, allocator);
        dnnl_graph_allocator_destroy(allocator);
    }
    pthread_key_create(&stream_key, destroy_stream);
}

tr_status tr__dnn_engine(dnnl_engine_t *out) {
    pthread_once(&engine_once, make_engine);
    TR__DNN("engine", engine_status);
    *out = engine;
    return TR_OK;
}

tr_status tr__dnn_stream(dnnl_stream_t *out) {
    if (TR_UNLIKELY(!own_stream)) {
        dnnl_engine_t e = NULL;
        TR_TRY(tr__dnn_engine(&e));
        TR__DNN("stream", dnnl_stream_create(&own_stream, e, dnnl_stream_in_order));
        pthread_setspecific(stream_key, own_stream);
    }
    *out = own_stream;
    return TR_OK;
}

int tr_dnn_threads(int team, double flops) {
    return flops < 6e6 ? 1 : team; // some 20 us of one thread
}

void tr__dnn_set_threads(int threads) {
    if (threads > 0 && omp_get_max_threads() != threads)
        omp_set_num_threads(threads);
}

dnnl_data_type_t tr__dnn_type(tr_dtype dtype) {
    switch (dtype) {
        case TR_F32:
            return dnnl_f32;
        case TR_BF16:
            return dnnl_bf16;
        case TR_I32:
            return dnnl_s32;
        case TR_U8:
            return dnnl_u8;
        default:
            return dnnl_data_type_undef;
    }
}

tr_status tr__dnn_layout_of(dnnl_memory_desc_t md, tr_dnn_layout **out) {
    tr_dnn_layout *l = tr_malloc(sizeof *l);
    if (!l) {
        dnnl_memory_desc_destroy(md);
        return TR_FAIL(TR_E_NOMEM, "no memory for a layout");
    }
    l->md = md;
    *out = l;
    return TR_OK;
}

/* Does each dimension start beyond the ones below it? */
static bool is_sane(int n, const int64_t *shape, const int64_t *strides) {
    unsigned left = (1u << n) - 1;
    int64_t covered = 1;
    while (left) {
        int next = -1;
        for (int d = 0; d < n; d++)
            if ((left >> d & 1) && (next < 0 || strides[d] < strides[next]))
                next = d;
        left &= ~(1u << next);
        if (shape[next] <= 1)
            continue;
        if (strides[next] < covered)
            return false;
        covered = strides[next] * (shape[next] - 1) + covered;
    }
    return true;
}

static tr_status make(int n, const int64_t *shape, const int64_t *strides, tr_dtype dtype, tr_dnn_layout **out) {
    dnnl_dims_t dims, steps;
    dnnl_data_type_t type = tr__dnn_type(dtype);
    if (type == dnnl_data_type_undef || n == 0 || !is_sane(n, shape, strides))
        return TR_FAIL(TR_E_NOTIMPL, "oneDNN can't describe this tensor");
    for (int d = 0; d < n; d++) {
        dims[d] = shape[d];
        steps[d] = strides[d];
    }
    dnnl_memory_desc_t md;
    TR__DNN("layout", dnnl_memory_desc_create_with_strides(&md, n, dims, type, steps));
    return tr__dnn_layout_of(md, out);
}

tr_status tr_dnn_layout_create(const tr_meta *m, tr_dnn_layout **out) {
    return make(m->ndim, m->shape, m->strides, (tr_dtype) m->dtype, out);
}

tr_status tr_dnn_layout_create_weights(const tr_meta *m, int64_t groups, tr_dnn_layout **out) {
    if (groups == 1)
        return tr_dnn_layout_create(m, out);
    int64_t per = m->shape[0] / groups;
    int64_t shape[] = {groups, per, m->shape[1], m->shape[2], m->shape[3]};
    int64_t strides[] = {per * m->strides[0], m->strides[0], m->strides[1], m->strides[2], m->strides[3]};
    return make(5, shape, strides, (tr_dtype) m->dtype, out);
}

tr_status tr__dnn_layout_panels(const tr_meta *m, tr_dnn_layout **out) {
    _Static_assert(TR__CONV_PANEL == 16, "the tag says so");
    dnnl_format_tag_t tag = tr__conv_panel(m->shape[0]) == TR__CONV_PANEL ? dnnl_Acdb16a : dnnl_Acdb64a;
    dnnl_memory_desc_t md;
    dnnl_dims_t shape = {m->shape[0], m->shape[1], m->shape[2], m->shape[3]};
    TR__DNN("layout", dnnl_memory_desc_create_with_tag(&md, 4, shape, dnnl_f32, tag));
    return tr__dnn_layout_of(md, out);
}

tr_status tr_dnn_layout_clone(const tr_dnn_layout *layout, tr_dnn_layout **out) {
    dnnl_memory_desc_t md;
    TR__DNN("layout", dnnl_memory_desc_clone(&md, layout->md));
    return tr__dnn_layout_of(md, out);
}

void tr_dnn_layout_destroy(tr_dnn_layout *layout) {
    if (!layout)
        return;
    dnnl_memory_desc_destroy(layout->md);
    tr_free(layout);
}

bool tr_dnn_layout_equal(const tr_dnn_layout *a, const tr_dnn_layout *b) {
    return a == b || dnnl_memory_desc_equal(a->md, b->md);
}

size_t tr_dnn_layout_bytes(const tr_dnn_layout *layout) {
    return dnnl_memory_desc_get_size(layout->md);
}

static int inner_blocks(const tr_dnn_layout *l) {
    int n = 0;
    return dnnl_memory_desc_query(l->md, dnnl_query_inner_nblks_s32, &n) == dnnl_success ? n : 0;
}

bool tr_dnn_layout_is_plain(const tr_dnn_layout *l) {
    dnnl_format_kind_t kind;
    dnnl_memory_desc_query(l->md, dnnl_query_format_kind, &kind);
    return kind == dnnl_blocked && inner_blocks(l) == 0;
}

bool tr__dnn_layout_columns(const tr_dnn_layout *l, tr__columns *out) {
    static const dnnl_dim_t order[] = {0, 1, 0}; // blocks of rows, of columns, pairs of rows
    dnnl_dims_t *dims, *padded, *strides, *blocks, *index;
    int n = 0, inner = inner_blocks(l);
    dnnl_data_type_t type;
    dnnl_memory_desc_query(l->md, dnnl_query_ndims_s32, &n);
    dnnl_memory_desc_query(l->md, dnnl_query_data_type, &type);
    if (n != 2 || dnnl_memory_desc_query(l->md, dnnl_query_dims, &dims) != dnnl_success ||
        dnnl_memory_desc_query(l->md, dnnl_query_padded_dims, &padded) != dnnl_success ||
        dnnl_memory_desc_query(l->md, dnnl_query_strides, &strides) != dnnl_success ||
        dnnl_memory_desc_query(l->md, dnnl_query_inner_blks, &blocks) != dnnl_success ||
        dnnl_memory_desc_query(l->md, dnnl_query_inner_idxs, &index) != dnnl_success)
        return false;
    bool pairs = type == dnnl_bf16;
    if (inner != (pairs ? 3 : 2) || (!pairs && type != dnnl_f32) || (pairs && (*blocks)[2] != 2))
        return false;
    dnnl_dim_t width = (*blocks)[1], rows = (*blocks)[0] * (pairs ? 2 : 1);
    if (memcmp(*index, order, (size_t) inner * sizeof *order) != 0 || (*strides)[0] != rows * width ||
        (*strides)[1] != (*padded)[0] * width)
        return false;
    out->n = (*dims)[1];
    out->width = width;
    out->rows = (*padded)[0];
    out->pairs = pairs;
    return true;
}

/* The order of dimensions by stride as letters, outermost first, upper case where a dimension is blocked; then the blocks. */
const char *tr_dnn_layout_print(const tr_dnn_layout *l, char *text, size_t size) {
    dnnl_dims_t *dims, *strides, *blocks, *index;
    int n = 0, inner = inner_blocks(l);
    dnnl_data_type_t type;
    size_t at = 0;
    unsigned left, blocked = 0;
    dnnl_memory_desc_query(l->md, dnnl_query_ndims_s32, &n);
    dnnl_memory_desc_query(l->md, dnnl_query_dims, &dims);
    dnnl_memory_desc_query(l->md, dnnl_query_data_type, &type);
    if (dnnl_memory_desc_query(l->md, dnnl_query_strides, &strides) != dnnl_success ||
        dnnl_memory_desc_query(l->md, dnnl_query_inner_blks, &blocks) != dnnl_success ||
        dnnl_memory_desc_query(l->md, dnnl_query_inner_idxs, &index) != dnnl_success) {
        snprintf(text, size, "opaque");
        return text;
    }
#define PUT(...)                                                        \
    do {                                                                \
        if (at < size)                                                  \
            at += (size_t) snprintf(text + at, size - at, __VA_ARGS__); \
    } while (0)
    PUT("%s ", type == dnnl_f32 ? "f32" : type == dnnl_bf16 ? "bf16" : "other");
    for (int d = 0; d < n; d++)
        PUT("%s%lld", d ? "x" : "", (long long) (*dims)[d]);
    PUT(":");
    for (int i = 0; i < inner; i++)
        blocked |= 1u << (*index)[i];
    for (left = (1u << n) - 1; left;) {
        int next = -1;
        for (int d = 0; d < n; d++)
            if ((left >> d & 1) && (next < 0 || (*strides)[d] > (*strides)[next]))
                next = d;
        left &= ~(1u << next);
        PUT("%c", (blocked >> next & 1 ? 'A' : 'a') + next);
    }
    for (int i = 0; i < inner; i++)
        PUT("%lld%c", (long long) (*blocks)[i], (char) ('a' + (*index)[i]));
#undef PUT
    return text;
}
