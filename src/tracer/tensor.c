/* tensor.c - tensors and their storages on the Python side: lifetimes, feeds, fetches, memory shared with the outside. */
#include "tracer/clock.h"
#include "tracer/dispatch.h"
#include "tracer/tape.h"

#include "terra/alloc.h"

#include <stdlib.h>
#include <stdio.h>
#include <string.h>

tr_host tr__host;

/* Structs of dead tensors, for reuse. */
static tr_tensor *unused;

static tr_tensor *tensor_new(void) {
    tr_tensor *t = unused;
    if (t && !tr_fail_alloc())
        unused = (tr_tensor *) t->py;
    else if (!(t = tr_malloc(sizeof *t))) {
        TR_FAIL(TR_E_NOMEM, "no memory for a tensor");
        return NULL;
    }
    tr_clear_words(t, TR_WORDS(tr_tensor));
    t->refs = 1;
    return t;
}

tr_tensor *tr__tensor_over(tr_storage *s, const tr_meta *meta, int64_t offset) {
    tr_tensor *t = tensor_new();
    if (!t)
        return NULL;
    t->storage = s;
    s->refs++;
    t->meta = meta;
    t->offset = offset;
    t->view_version = s->version;
    return t;
}

void tr__storage_release(tr_storage *s) {
    if (--s->refs > 0)
        return;
    tr__note_death(s);
    if (s->sent)
        tr_exec_free(s);
    else
        tr_storage_recycle(s);
}

void tr_storage_retain(tr_storage *s) {
    s->refs++;
}

void tr_storage_unexport(tr_storage *s) {
    s->exports--;
    tr__storage_release(s);
}

void tr_tensor_retain(tr_tensor *t) {
    t->refs++;
}

static void tensor_dies(tr_tensor *t) {
    // The storage first: it is what memory plans wait for. Then what may run the program's code.
    tr__storage_release(t->storage);
    tr_tensor *grad = t->grad, *base = t->base;
    t->grad = t->base = NULL;
    tr__tape_tensor_dies(t);
    tr_tensor_release(grad);
    tr_tensor_release(base);
    t->py = unused;
    unused = t;
}

void tr_tensor_release(tr_tensor *t) {
    if (!t || --t->refs > 0)
        return;
    bool timed = tr__clock_enter();
    tensor_dies(t);
    tr__clock_leave(timed);
}

/* Takes s. */
static tr_status over_new(tr_storage *s, const tr_meta *meta, tr_tensor **out) {
    if (!s)
        return TR_E_NOMEM;
    tr_tensor *t = tr__tensor_over(s, meta, 0);
    tr__storage_release(s);
    if (!t)
        return TR_E_NOMEM;
    *out = t;
    return TR_OK;
}

tr_status tr_tensor_empty(const tr_meta *meta, tr_tensor **out) {
    tr_tensor *t = NULL;
    TR_TRY(tr_apply(TR_OP__empty, NULL, 0, NULL, meta, false, &t));
    *out = t;
    return TR_OK;
}

static size_t bytes_of(const tr_meta *meta) {
    return (size_t) meta->extent * tr_dtype_size((tr_dtype) meta->dtype);
}

tr_status tr_tensor_from_host(const tr_meta *meta, const void *data, tr_tensor **out) {
    void *to;
    tr_storage *s = tr_storage_create_filled(bytes_of(meta), &to);
    if (s && meta->numel)
        memcpy(to, data, s->bytes);
    return over_new(s, meta, out);
}

tr_status tr_tensor_from_shared(const tr_meta *meta, void *data, size_t bytes, void *owner, void (*release)(void *),
                                tr_tensor **out) {
    return over_new(tr_storage_create_shared(data, bytes, owner, release), meta, out);
}

tr_status tr_tensor_alias(tr_tensor *t, const tr_meta *meta, int64_t offset, tr_tensor **out) {
    tr_tensor *alias = tr__tensor_over(t->storage, meta, offset);
    if (!alias)
        return TR_E_NOMEM;
    *out = alias;
    return TR_OK;
}

tr_status tr_tensor_set_data(tr_tensor *t, tr_tensor *other) {
    if (t->meta->dtype != other->meta->dtype && t->requires_grad && !tr_dtype_is_float((tr_dtype) other->meta->dtype))
        return TR_FAIL(TR_E_RUNTIME, "data set to a tensor that requires gradients must be floating point or complex dtype");
    tr_storage *old = t->storage;
    t->storage = other->storage;
    t->storage->refs++;
    t->meta = other->meta;
    t->offset = other->offset;
    t->view_version = t->storage->version;
    tr__storage_release(old);
    return TR_OK;
}

uint32_t tr_tensor_version(const tr_tensor *t) {
    return t->storage->version;
}

void tr_tensor_bump_version(tr_tensor *t) {
    t->storage->version++;
}

bool tr_tensor_same_storage(const tr_tensor *a, const tr_tensor *b) {
    return a->storage == b->storage;
}

size_t tr_tensor_storage_bytes(const tr_tensor *t) {
    return t->storage->bytes;
}

/* ------------------------------------------------------------------------------------------------ values leave */

static tr_status fetch(tr_tensor *t, void *data, size_t bytes, void **address) {
    tr_storage *s = t->storage;
    tr_operand o = {s, t->meta, {.i = t->offset}};
    tr__note_fetch(s);
    tr_status status = tr_exec_fetch(&o, tr__need_of(s), data, bytes, address);
    if (status != TR_OK && status != TR_E_PYTHON)
        tr__note_error();
    return status;
}

tr_status tr_tensor_read(tr_tensor *t, void *data) {
    size_t bytes = (size_t) t->meta->numel * tr_dtype_size((tr_dtype) t->meta->dtype);
    return bytes ? fetch(t, data, bytes, NULL) : TR_OK;
}

tr_status tr_tensor_item(tr_tensor *t, tr_number *out) {
    unsigned char raw[8] = {0};
    if (t->meta->numel != 1)
        return TR_FAIL(TR_E_RUNTIME, "a Tensor with %lld elements cannot be converted to Scalar", (long long) t->meta->numel);
    TR_TRY(tr_tensor_read(t, raw));
    union {
        uint8_t u8;
        int32_t i32;
        int64_t i64;
        uint16_t bf16;
        uint32_t bits;
        float f32;
        double f64;
    } v;
    memcpy(&v, raw, sizeof v);
    switch ((tr_dtype) t->meta->dtype) {
    case TR_BOOL:
    case TR_U8:
        out->i = v.u8;
        break;
    case TR_I32:
        out->i = v.i32;
        break;
    case TR_BF16:
        v.bits = (uint32_t) v.bf16 << 16;
        out->d = (double) v.f32;
        break;
    case TR_F32:
        out->d = (double) v.f32;
        break;
    case TR_F64:
        out->d = v.f64;
        break;
    default:
        out->i = v.i64;
    }
    return TR_OK;
}

tr_status tr_tensor_export(tr_tensor *t, void **data) {
    void *address = NULL;
    TR_TRY(fetch(t, NULL, 0, &address));
    t->storage->exports++;
    *data = address;
    return TR_OK;
}

tr_status tr_synchronize(void) {
    tr_status status = tr_exec_synchronize(tr__need_of(NULL));
    if (status != TR_OK && status != TR_E_PYTHON)
        tr__note_error();
    return status;
}

/* ------------------------------------------------------------------------------------------------ sites */

typedef struct site {
    char text[120];
    uint32_t line;
    uint32_t hash;
} site;

static site *sites;
static uint32_t n_sites, sites_size;
static uint32_t *site_table; /* open addressing, sites_size * 2 slots of id */

static uint32_t *site_slot(uint32_t hash, const char *text) {
    uint32_t mask = 2 * sites_size - 1;
    for (uint32_t at = hash & mask;; at = (at + 1) & mask)
        if (site_table[at] == 0 || (sites[site_table[at]].hash == hash && strcmp(sites[site_table[at]].text, text) == 0))
            return &site_table[at];
}

static bool site_grow(void) {
    uint32_t size = sites_size ? 2 * sites_size : 1024;
    site *more = tr_realloc(sites, size * sizeof *more);
    if (!more)
        return false;
    sites = more;
    uint32_t *table = tr_calloc(2 * (size_t) size, sizeof *table);
    if (!table)
        return false;
    tr_free(site_table);
    site_table = table;
    sites_size = size;
    if (n_sites == 0)
        n_sites = 1; // 0 is "unknown"
    for (uint32_t i = 1; i < n_sites; i++)
        *site_slot(sites[i].hash, sites[i].text) = i;
    return true;
}

uint32_t tr_site_intern(const char *file, int line, const char *function) {
    if (n_sites + 1 >= sites_size && !site_grow())
        return 0;
    const char *slash = strrchr(file, '/');
    site s = {.line = (uint32_t) line};
    snprintf(s.text, sizeof s.text, "%s:%d", slash ? slash + 1 : file, line);
    s.hash = 2166136261u;
    for (const char *c = s.text; *c; c++)
        s.hash = (s.hash ^ (unsigned char) *c) * 16777619u;
    uint32_t *slot = site_slot(s.hash, s.text);
    if (*slot == 0) {
        sites[n_sites] = s;
        *slot = n_sites++;
    }
    return *slot;
}

const char *tr_site_text(uint32_t id) {
    return id && id < n_sites ? sites[id].text : "?";
}
