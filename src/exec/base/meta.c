/* meta.c - dtypes' names and the intern table of metas. The table only grows: a process sees few distinct looks, and an
 * entry is ~170 bytes. Written under the GIL only; readers follow pointers handed to them, never the table. */
#include "terra/alloc.h"
#include "terra/types.h"

#include <stdio.h>
#include <string.h>

enum { META_BUCKETS = 1 << 14 };

static tr_meta *meta_table[META_BUCKETS];

const char *tr_dtype_name(tr_dtype dtype) {
    static const char *const name[] = {
#define X(id, name, bytes, ctype, legacy) name,
        TR_DTYPE_MAP(X)
#undef X
    };
    return dtype < TR_DTYPE_COUNT ? name[dtype] : "?";
}

const char *tr_dtype_legacy(tr_dtype dtype) {
    static const char *const name[] = {
#define X(id, name, bytes, ctype, legacy) legacy,
        TR_DTYPE_MAP(X)
#undef X
    };
    return dtype < TR_DTYPE_COUNT ? name[dtype] : "?";
}

static void row_major(int ndim, const int64_t *shape, int64_t *strides) {
    int64_t step = 1;
    for (int d = ndim - 1; d >= 0; d--) {
        strides[d] = step;
        step *= shape[d] > 1 ? shape[d] : 1;
    }
}

static bool is_contiguous(const tr_meta *m) {
    int64_t step = 1;
    if (m->numel == 0)
        return true;
    for (int d = m->ndim - 1; d >= 0; d--) {
        if (m->shape[d] == 1)
            continue;
        if (m->strides[d] != step)
            return false;
        step *= m->shape[d];
    }
    return true;
}

/* Non-overlapping and without gaps: sorted by stride, every dimension starts where the one below it ends. */
static bool is_dense(const tr_meta *m) {
    int64_t step = 1;
    unsigned left = 0;
    if (m->numel == 0)
        return true;
    for (int d = 0; d < m->ndim; d++)
        if (m->shape[d] > 1)
            left |= 1u << d;
    while (left) {
        int next = -1;
        for (int d = 0; d < m->ndim; d++)
            if ((left >> d & 1) && m->strides[d] == step)
                next = d;
        if (next < 0)
            return false;
        step *= m->shape[next];
        left &= ~(1u << next);
    }
    return true;
}

static void fill_derived(tr_meta *m) {
    m->numel = 1;
    m->extent = 1;
    for (int d = 0; d < m->ndim; d++) {
        m->numel *= m->shape[d];
        m->extent += m->shape[d] > 0 ? (m->shape[d] - 1) * m->strides[d] : 0;
    }
    if (m->numel == 0)
        m->extent = 0;
    m->contiguous = is_contiguous(m);
    m->dense = is_dense(m);
}

const tr_meta *tr_meta_get(tr_dtype dtype, int ndim, const int64_t *shape, const int64_t *strides) {
    if (ndim > TR_MAX_DIMS) {
        TR_FAIL(TR_E_NOTIMPL, "tensors of more than %d dimensions are not supported, got %d", TR_MAX_DIMS, ndim);
        return NULL;
    }
    int64_t own[TR_MAX_DIMS];
    if (!strides) {
        row_major(ndim, shape, own);
        strides = own;
    }
    uint64_t h = 0x9e3779b97f4a7c15u * (unsigned) (dtype * 16 + ndim + 1);
    for (int d = 0; d < ndim; d++) {
        h = (h ^ (uint64_t) shape[d]) * 0xff51afd7ed558ccdu;
        h = (h ^ (h >> 29) ^ (uint64_t) strides[d]) * 0xc4ceb9fe1a85ec53u;
    }
    uint32_t hash = (uint32_t) (h >> 32);
    size_t bytes = (size_t) ndim * sizeof *shape;
    tr_meta **bucket = &meta_table[hash & (META_BUCKETS - 1)];
    for (tr_meta *m = *bucket; m; m = m->next)
        if (m->hash == hash && m->dtype == dtype && m->ndim == ndim && memcmp(m->shape, shape, bytes) == 0 &&
            memcmp(m->strides, strides, bytes) == 0)
            return m;
    tr_meta *m = tr_calloc(1, sizeof *m);
    if (!m) {
        TR_FAIL(TR_E_NOMEM, "no memory for a tensor's description");
        return NULL;
    }
    m->dtype = (uint8_t) dtype;
    m->ndim = (uint8_t) ndim;
    m->hash = hash;
    if (bytes) {
        memcpy(m->shape, shape, bytes);
        memcpy(m->strides, strides, bytes);
    }
    fill_derived(m);
    m->next = *bucket;
    *bucket = m;
    return m;
}

const tr_meta *tr_meta_with_dtype(const tr_meta *meta, tr_dtype dtype) {
    return meta->dtype == dtype ? meta : tr_meta_get(dtype, meta->ndim, meta->shape, meta->strides);
}

const tr_meta *tr_meta_as_contiguous(const tr_meta *meta, tr_dtype dtype) {
    return tr_meta_get(dtype, meta->ndim, meta->shape, NULL);
}

const char *tr_shape_print(const tr_meta *meta, char *text, size_t size) {
    size_t at = 0;
    at += (size_t) snprintf(text, size, "[");
    for (int d = 0; d < meta->ndim && at < size; d++)
        at += (size_t) snprintf(text + at, size - at, "%s%lld", d ? ", " : "", (long long) meta->shape[d]);
    if (at < size)
        snprintf(text + at, size - at, "]");
    return text;
}
