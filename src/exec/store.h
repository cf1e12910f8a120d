/* store.h - storages and slabs inside the exec room.
 *
 * A storage struct is made by Python's side and, once a command named it, freed by the executor, which hands it back
 * through a list: Python's side then frees what only it may free (feeds' memory, owners of shared memory) and reuses the
 * struct. A slab is a counted block that several values lie in. */
#ifndef TR_EXEC_STORE_H
#define TR_EXEC_STORE_H

#include "terra/arena.h"
#include "terra/exec.h"

struct tr_slab {
    int64_t refs; /* the executor's: 1 while its activation runs, 1 for each storage that lies in it */
    size_t bytes;
    void *base;
    bool pooled;  /* stays in its pool instead of being freed */
    tr_slab *next;
};

/* Executor: gives back what the storage holds and hands the struct to Python's side. */
void tr__store_free(tr_arena *arena, tr_storage *s);
/* Executor: refs 1; NULL: no memory. */
tr_slab *tr__slab_create(tr_arena *arena, size_t bytes);
void tr__slab_release(tr_arena *arena, tr_slab *slab);

/* Python: takes back what the executor has freed. */
void tr__store_collect(void);
tr_status tr__store_init(void);
void tr__store_fini(void);

#endif
