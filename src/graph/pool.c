/* pool.c - memory of one compilation: taken in pieces, given back at once. */
#include "graph/pass.h"

#include "terra/alloc.h"

typedef struct tr__chunk {
    struct tr__chunk *next;
    size_t size; /* keeps what follows aligned to 16 */
} tr__chunk;

enum { CHUNK = 1 << 18 };

void *tr__pool_take(tr__pool *p, size_t count, size_t bytes) {
    size_t n = (count * bytes + 15) & ~(size_t) 15;
    if (n == 0)
        n = 16;
    if ((size_t) (p->end - p->at) < n || !p->at) {
        size_t room = n > CHUNK ? n : CHUNK;
        tr__chunk *c = tr_calloc(1, sizeof *c + room);
        if (!c) {
            p->failed = true;
            return NULL;
        }
        c->next = p->chunks;
        p->chunks = c;
        p->at = (char *) (c + 1);
        p->end = p->at + room;
    }
    void *block = p->at;
    p->at += n;
    return block;
}

void tr__pool_fini(tr__pool *p) {
    for (tr__chunk *c = p->chunks; c;) {
        tr__chunk *next = c->next;
        tr_free(c);
        c = next;
    }
    *p = (tr__pool){0};
}
