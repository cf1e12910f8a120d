/* cache.c - a set-associative table per thread, so that it needs no lock; freed when the thread ends. */
#include "exec/dnn/cache.h"

#include "terra/alloc.h"

#include <pthread.h>
#include <string.h>

enum { SETS = 128, WAYS = 8 };

typedef struct cache {
    uint64_t clock;
    tr__dnn_entry entries[SETS][WAYS];
} cache;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t key_of_cache;
static _Thread_local cache *own;

void tr__dnn_entry_clear(tr__dnn_entry *e) {
    tr_dnn_op_destroy(e->op);
    for (int i = 0; i < TR__DNN_REORDERS; i++)
        tr_dnn_op_destroy(e->reorders[i]);
    memset(e, 0, sizeof *e);
}

static void destroy(void *p) {
    cache *c = p;
    for (int s = 0; s < SETS; s++)
        for (int w = 0; w < WAYS; w++)
            tr__dnn_entry_clear(&c->entries[s][w]);
    tr_free(c);
}

static void make_key(void) {
    pthread_key_create(&key_of_cache, destroy);
}

static uint64_t hash(const tr__dnn_key *key) {
    const uint64_t *p = (const uint64_t *) key;
    uint64_t h = 0x9e3779b97f4a7c15u;
    _Static_assert(sizeof(tr__dnn_key) % 8 == 0, "hashed by words");
    for (size_t i = 0; i < sizeof *key / 8; i++)
        h = (h ^ p[i] ^ h >> 29) * 0xff51afd7ed558ccdu;
    return h ^ h >> 32;
}

tr__dnn_entry *tr__dnn_find(const tr__dnn_key *key) {
    if (!own) {
        pthread_once(&once, make_key);
        own = tr_calloc(1, sizeof *own);
        if (!own)
            return NULL;
        pthread_setspecific(key_of_cache, own);
    }
    tr__dnn_entry *set = own->entries[hash(key) % SETS], *oldest = set;
    for (int w = 0; w < WAYS; w++) {
        if (set[w].used && memcmp(&set[w].key, key, sizeof *key) == 0) {
            set[w].used = ++own->clock;
            set[w].seen++;
            return &set[w];
        }
        if (set[w].used < oldest->used)
            oldest = &set[w];
    }
    tr__dnn_entry_clear(oldest);
    oldest->key = *key;
    oldest->used = ++own->clock;
    oldest->seen = 1;
    return oldest;
}

tr_status tr__dnn_run(const tr_kernel_call *c, tr_dnn_op *op, void *const data[TR_DNN_PORTS]) {
    void *scratch = NULL;
    if (tr_dnn_op_scratch(op) && !(scratch = tr__scratch(c, tr_dnn_op_scratch(op))))
        return TR_E_NOMEM;
    return tr_dnn_op_run(op, data, scratch);
}
