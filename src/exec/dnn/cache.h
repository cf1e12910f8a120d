/* cache.h - compiled ops of this thread, by what they were compiled for. Bounded: the least recently used of a set goes. */
#ifndef TERRA_EXEC_DNN_CACHE_H
#define TERRA_EXEC_DNN_CACHE_H

#include "exec/kernels/kernels.h"
#include "terra/dnn.h"

/* All bytes count: start from zero. */
typedef struct tr__dnn_key {
    uint16_t op;
    uint8_t dtype, flags;
    int32_t threads;
    float a, b;
    int64_t v[30];
} tr__dnn_key;

enum { TR__DNN_REORDERS = 3 };

typedef struct tr__dnn_entry {
    tr__dnn_key key;
    uint64_t used; /* clock; 0: empty */
    int32_t seen;  /* how often looked up */
    bool refused;  /* the library can't */
    tr_dnn_op *op; /* NULL: not compiled yet */
    /* to and from the op's layouts: SRC, WEIGHTS, DST; NULL where the tensor already has it */
    tr_dnn_op *reorders[TR__DNN_REORDERS];
} tr__dnn_entry;

/* The entry of a key, made if need be; `seen` counts this call. Borrowed until the next find. NULL: no memory. */
tr__dnn_entry *tr__dnn_find(const tr__dnn_key *key);

/* Runs an op, its scratch being the call's. */
tr_status tr__dnn_run(const tr_kernel_call *c, tr_dnn_op *op, void *const data[TR_DNN_PORTS]);

/* Destroys what it holds. */
void tr__dnn_entry_clear(tr__dnn_entry *e);

#endif
