/* store.c - storages on both sides of the ring. See store.h. */
#include "exec/store.h"

#include "terra/alloc.h"

/* Freed by the executor, not yet collected: a stack that the executor pushes onto and Python takes whole. */
static _Atomic(tr_storage *) returned;
/* Python's: structs ready for use, and the arena that feeds come from (an arena is one thread's; the GIL makes it so). */
static tr_storage *unused;
static tr_arena *feeds;

tr_status tr__store_init(void) {
    return feeds ? TR_OK : tr_arena_create(-1, &feeds);
}

void tr__store_fini(void) {
    tr__store_collect();
    while (unused) {
        tr_storage *s = unused;
        unused = s->next;
        tr_free(s);
    }
}

void tr_storage_recycle(tr_storage *s) {
    if (s->host_filled)
        tr_arena_free(feeds, s->data);
    if (s->release)
        s->release(s->owner);
    s->next = unused;
    unused = s;
}

void tr__store_collect(void) {
    // Acquire: pairs with the release in hand_back; the executor is done with what the list holds.
    tr_storage *s = atomic_exchange_explicit(&returned, NULL, memory_order_acquire);
    while (s) {
        tr_storage *next = s->next;
        tr_storage_recycle(s);
        s = next;
    }
}

static void hand_back(tr_storage *s) {
    tr_storage *head = atomic_load_explicit(&returned, memory_order_relaxed);
    do
        s->next = head;
    // Release: all that the executor did with s happened before Python reuses it. Only Python takes from the list, and it
    // takes all of it, so the head can't have been away and back (no ABA).
    while (!atomic_compare_exchange_weak_explicit(&returned, &head, s, memory_order_release, memory_order_relaxed));
}

tr_storage *tr_storage_create(size_t bytes) {
    if (!unused)
        tr__store_collect();
    tr_storage *s = unused;
    if (s && !tr_fail_alloc())
        unused = s->next;
    else if (!(s = tr_aligned_alloc(_Alignof(tr_storage), sizeof *s))) {
        TR_FAIL(TR_E_NOMEM, "no memory for a storage");
        return NULL;
    }
    tr_clear_words(s, TR_WORDS(tr_storage));
    s->refs = 1;
    s->bytes = bytes;
    s->ref = TR_REF_NONE;
    return s;
}

tr_storage *tr_storage_create_filled(size_t bytes, void **data) {
    tr__store_collect();
    tr_storage *s = tr_storage_create(bytes);
    if (!s)
        return NULL;
    s->data = tr_arena_alloc(feeds, bytes);
    if (!s->data) {
        tr_storage_recycle(s);
        TR_FAIL(TR_E_NOMEM, "no memory for a tensor of %zu bytes", bytes);
        return NULL;
    }
    s->host_filled = true;
    *data = s->data;
    return s;
}

tr_storage *tr_storage_create_shared(void *data, size_t bytes, void *owner, void (*release)(void *)) {
    tr_storage *s = tr_storage_create(bytes);
    if (!s)
        return NULL;
    s->data = data;
    s->shared = true;
    s->owner = owner;
    s->release = release;
    return s;
}

void tr__store_free(tr_arena *arena, tr_storage *s) {
    if (s->slab)
        tr__slab_release(arena, s->slab);
    else if (s->data && !s->host_filled && !s->shared)
        tr_arena_free(arena, s->data);
    if (s->copy)
        tr_arena_free(arena, s->copy);
    s->copy = NULL;
    hand_back(s);
}

enum { LARGE = 2 << 20 };

tr_slab *tr__slab_create(tr_arena *arena, size_t bytes) {
    tr_slab *slab = tr_malloc(sizeof *slab);
    if (!slab)
        return NULL;
    if (bytes >= LARGE)
        tr_arena_trim(arena); // it takes over from what ran op by op
    void *base = bytes >= LARGE ? tr_arena_map(arena, bytes) : tr_arena_alloc(arena, bytes);
    if (!base) {
        tr_free(slab);
        return NULL;
    }
    *slab = (tr_slab){.refs = 1, .bytes = bytes, .base = base};
    return slab;
}

void tr__slab_release(tr_arena *arena, tr_slab *slab) {
    if (--slab->refs > 0 || slab->pooled)
        return;
    if (slab->bytes >= LARGE)
        tr_arena_unmap(arena, slab->base, slab->bytes);
    else
        tr_arena_free(arena, slab->base);
    tr_free(slab);
}
