/* home.c - homes: how tensors are kept between the ops of plans that like it better than the program's order. One of the library's
 * layouts; of float32 tensors that hold nothing else, bfloat16; or the program's order with a bfloat16 copy beside it. */
#include "exec/dnn/dnn.h"

#include "terra/alloc.h"

#include <pthread.h>
#include <string.h>

typedef enum home_kind { OF_THE_LIBRARY, OF_BF16, WITH_COPY } home_kind;

struct tr_home {
    home_kind kind;
    tr_dnn_layout *layout, *plain; /* `plain`: the program's order. NULL: not the library's */
    const tr_meta *meta;
    tr_dnn_op *enter, *leave;
    bool panels;
    char text[96];
    struct tr_home *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards the list; what is in it doesn't change */
static tr_home *homes;
static pthread_mutex_t reordering = PTHREAD_MUTEX_INITIALIZER; /* guards the memory that their reorders name, for executors that come at once */

static void destroy(tr_home *h) {
    tr_dnn_layout_destroy(h->layout);
    tr_dnn_layout_destroy(h->plain);
    tr_dnn_op_destroy(h->enter);
    tr_dnn_op_destroy(h->leave);
    tr_free(h);
}

static tr_home *find(home_kind kind, const tr_meta *meta, const tr_dnn_layout *layout) {
    for (tr_home *h = homes; h; h = h->next)
        if (h->kind == kind && h->meta == meta && (!layout || tr_dnn_layout_equal(h->layout, layout)))
            return h;
    return NULL;
}

static tr_status find_whether_panels(tr_home *h, int64_t groups) {
    tr_dnn_layout *panels;
    if (groups != 1)
        return TR_OK;
    TR_TRY(tr__dnn_layout_panels(h->meta, &panels));
    h->panels = tr_dnn_layout_equal(h->layout, panels);
    tr_dnn_layout_destroy(panels);
    return TR_OK;
}

static tr_status make(const tr_meta *meta, int64_t groups, const tr_dnn_layout *layout, int threads, tr_home **out) {
    tr_home *h = tr_calloc(1, sizeof *h);
    if (!h)
        return TR_FAIL(TR_E_NOMEM, "no memory for a layout");
    h->meta = meta;
    tr_status s = tr_dnn_layout_clone(layout, &h->layout);
    if (s == TR_OK)
        s = tr_dnn_layout_create_weights(meta, groups, &h->plain);
    if (s == TR_OK)
        s = tr_dnn_reorder_create(h->plain, h->layout, threads, &h->enter);
    if (s == TR_OK)
        s = tr_dnn_reorder_create(h->layout, h->plain, threads, &h->leave);
    if (s == TR_OK)
        s = find_whether_panels(h, groups);
    if (s == TR_OK && (tr_dnn_op_scratch(h->enter) || tr_dnn_op_scratch(h->leave)))
        s = TR_FAIL(TR_E_NOTIMPL, "a reorder that needs scratch");
    if (s != TR_OK) {
        destroy(h);
        return s;
    }
    tr_dnn_layout_print(h->layout, h->text, sizeof h->text);
    *out = h;
    return TR_OK;
}

tr_status tr__home_intern(const tr_meta *meta, int64_t groups, const tr_dnn_layout *layout, int threads, const tr_home **out) {
    size_t bytes = (size_t) meta->numel * tr_dtype_size((tr_dtype) meta->dtype);
    if (tr_dnn_layout_is_plain(layout) || tr_dnn_layout_bytes(layout) != bytes)
        return TR_FAIL(TR_E_NOTIMPL, "the library takes these weights as they are, or padded");
    tr_status s = TR_OK;
    pthread_mutex_lock(&lock);
    tr_home *h = find(OF_THE_LIBRARY, meta, layout);
    if (!h && (s = make(meta, groups, layout, threads, &h)) == TR_OK) {
        h->next = homes;
        homes = h;
    }
    pthread_mutex_unlock(&lock);
    if (s == TR_OK)
        *out = h;
    return s;
}

static tr_status intern(home_kind kind, const tr_meta *meta, const tr_home **out) {
    tr_check(meta->dtype == TR_F32 && meta->contiguous);
    pthread_mutex_lock(&lock);
    tr_home *h = find(kind, meta, NULL);
    if (!h && (h = tr_calloc(1, sizeof *h))) {
        *h = (tr_home){.kind = kind, .meta = meta, .text = "bf16", .next = homes};
        homes = h;
    }
    pthread_mutex_unlock(&lock);
    *out = h;
    return h ? TR_OK : TR_FAIL(TR_E_NOMEM, "no memory for a layout");
}

tr_status tr_home_of_bf16(const tr_meta *meta, const tr_home **out) {
    return intern(OF_BF16, meta, out);
}

bool tr_home_is_bf16(const tr_home *h) {
    return h && h->kind == OF_BF16;
}

tr_status tr_home_with_copy(const tr_meta *meta, const tr_home **out) {
    return intern(WITH_COPY, meta, out);
}

bool tr_home_has_copy(const tr_home *h) {
    return h && h->kind == WITH_COPY;
}

bool tr__home_is_panels(const tr_home *h) {
    return h->panels;
}

static tr_status reorder(tr_dnn_op *op, void *data, void *spare, size_t bytes) {
    void *ports[TR_DNN_PORTS] = {[TR_DNN_SRC] = data, [TR_DNN_DST] = spare};
    pthread_mutex_lock(&reordering);
    tr_status s = tr_dnn_op_run(op, ports, NULL);
    pthread_mutex_unlock(&reordering);
    if (s == TR_OK)
        memcpy(data, spare, bytes);
    return s;
}

/* Exact, as the elements are bfloat16. From the front on: what is written lies behind what has been read. */
static void narrow(void *data, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        float f;
        memcpy(&f, (char *) data + 4 * i, sizeof f);
        uint16_t half = tr__f32_to_bf16(f);
        memcpy((char *) data + 2 * i, &half, sizeof half);
    }
}

static void widen(void *data, const uint16_t *spare, int64_t n) {
    float *to = data;
    for (int64_t i = 0; i < n; i++)
        to[i] = tr__bf16_to_f32(spare[i]);
}

tr_status tr_home_enter(const tr_home *h, void *data, void *spare) {
    if (h->layout)
        return reorder(h->enter, data, spare, tr_home_bytes(h));
    if (tr_home_is_bf16(h))
        narrow(data, h->meta->numel);
    return TR_OK;
}

tr_status tr_home_leave(const tr_home *h, void *data, void *spare) {
    if (h->layout)
        return reorder(h->leave, data, spare, tr_home_bytes(h));
    if (tr_home_is_bf16(h)) {
        memcpy(spare, data, (size_t) h->meta->numel * sizeof(uint16_t));
        widen(data, spare, h->meta->numel);
    }
    return TR_OK;
}

size_t tr_home_bytes(const tr_home *h) {
    return (size_t) h->meta->numel * tr_dtype_size((tr_dtype) h->meta->dtype);
}

const tr_dnn_layout *tr_home_layout(const tr_home *h) {
    return h->layout;
}

const tr_meta *tr_home_meta(const tr_home *h) {
    return h->meta;
}

const char *tr_home_print(const tr_home *h) {
    return h->text;
}
