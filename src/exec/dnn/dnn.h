/* dnn.h - between the files that call oneDNN: its status as ours, the engine, this thread's stream. */
#ifndef TERRA_EXEC_DNN_H
#define TERRA_EXEC_DNN_H

#include "exec/kernels/kernels.h"
#include "terra/dnn.h"

#include <oneapi/dnnl/dnnl.h>

struct tr_dnn_layout {
    dnnl_memory_desc_t md;
};

tr_status tr__dnn_fail(dnnl_status_t status, const char *what);
#define TR__DNN(what, expr)                           \
    do {                                              \
        dnnl_status_t dnn_status_ = (expr);           \
        if (TR_UNLIKELY(dnn_status_ != dnnl_success)) \
            return tr__dnn_fail(dnn_status_, what);   \
    } while (0)

/* One CPU engine for the process; a stream for each thread, destroyed with it. */
tr_status tr__dnn_engine(dnnl_engine_t *engine);
tr_status tr__dnn_stream(dnnl_stream_t *stream);
/* The library keys and runs primitives by this thread's team size. */
void tr__dnn_set_threads(int threads);

/* home.c: the home of this look and layout. TR_E_NOTIMPL: it is plain, or padded. */
tr_status tr__home_intern(const tr_meta *meta, int64_t groups, const tr_dnn_layout *layout, int threads, const tr_home **out);
/* Is it the layout of our own convolutions, whoever chose it? */
bool tr__home_is_panels(const tr_home *home);

dnnl_data_type_t tr__dnn_type(tr_dtype dtype);
/* Weights [CO, CI, KH, KW] as our own convolutions take them (tr__conv). */
tr_status tr__dnn_layout_panels(const tr_meta *meta, tr_dnn_layout **out);
/* Is it one of a matrix in panels of columns, as tr__columns has them? Fills in n, width, rows and pairs, if so. */
bool tr__dnn_layout_columns(const tr_dnn_layout *layout, tr__columns *out);
/* A layout that takes over `md`. */
tr_status tr__dnn_layout_of(dnnl_memory_desc_t md, tr_dnn_layout **out);

#endif
