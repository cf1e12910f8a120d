/* path.h - recorded traces and what is known of the paths that a program takes.
 *
 * A graph belongs to a mark location: the place in the program where an iteration ended, so that the next began. It knows
 * the paths that were seen to start there (equal prefixes are equal nodes: together they are the TraceGraph), predicts which
 * one comes, and remembers forks that were mispredicted too often: those cut the iteration, like a mark. */
#ifndef TR_TRACER_PATH_H
#define TR_TRACER_PATH_H

#include "terra/plan.h"

/* A trace being recorded. Arrays grow; `path` holds the counts. */
typedef struct tr_recorder {
    tr_path path;
    uint32_t ops_size, operands_size, attrs_size, values_size;
    uint64_t hash;
} tr_recorder;

typedef struct tr_known {
    uint32_t id;               /* within its graph */
    uint64_t hash;
    tr_path *path;             /* owned */
    tr_plan *plan;             /* owned; NULL: none yet */
    uint32_t seen, followed, left;
    uint64_t taken;            /* when last, by a clock of its graph */
    bool crossed;              /* a cut lies within it: it is not followed any more */
    bool compiling;
    /* How often something changed that a plan relies on: deaths. A plan made for an earlier state is not used any more, nor one
     * that is being replaced: memory would be overwritten that the program still sees. */
    uint32_t changes, planned_for;
    bool improvable;           /* compile again when convenient: the plan holds, but more is known by now */
    uint32_t compiles;
    uint64_t cut;              /* ends at a cut: its graph's key; 0: ends at a mark */
    struct tr_known *next;
    struct tr_graph *graph;
} tr_known;

/* Where an iteration went on otherwise than predicted: behind a call, known by its location (0: at the start), whichever way the
 * program had come there. */
typedef struct tr_fork {
    uint32_t after;
    uint32_t op, misses;       /* op: its index when last missed */
    uint32_t site;
} tr_fork;

/* How many of the latest paths a prediction looks at, of all graphs: what a program chose early in an iteration decides what it
 * does later. */
enum { TR_ORDERS = 4, TR_HISTORY = 8, TR_PREDICTIONS = 1024, TR_MAX_FORKS = 64, TR_MAX_CUTS = 1024, TR_MAX_KNOWN = 256 };

typedef struct tr_graph {
    uint64_t key;
    uint32_t site;
    uint8_t kind;
    bool is_piece;             /* begins at a cut */
    uint32_t n_known, iterations;
    tr_known *known;
    tr_known *after[TR_ORDERS][TR_PREDICTIONS];          /* what came last after the latest 8, 4, 2, 1 paths */
    tr_known *last;
    tr_fork forks[TR_MAX_FORKS];
    uint32_t n_forks;
    struct tr_graph *next;
} tr_graph;

/* recorder */
void tr__recorder_reset(tr_recorder *r);
/* Appends an op and returns it (NULL: no memory); operands and attrs to be filled in by the caller at its indices. */
tr_path_op *tr__recorder_add(tr_recorder *r, int n_in, int n_out, int n_attrs);
/* A new value; TR_REF_NONE: no memory. */
tr_ref tr__recorder_value(tr_recorder *r, size_t bytes);
/* Takes the op just filled in into the hash. */
void tr__recorder_hash(tr_recorder *r, const tr_path_op *op);
/* Starts with the first n ops of a path. */
tr_status tr__recorder_prefix(tr_recorder *r, const tr_path *path, uint32_t n, uint32_t n_values, uint32_t n_externals,
                              const int64_t *args);

/* Starts with what a path will be when it comes again from its op `first` on: what was made ahead of that, or made once and kept
 * (an optimizer's state), comes from outside then. False: no memory. */
bool tr__recorder_repeat(tr_recorder *r, const tr_path *path, uint32_t first);

tr_path *tr__path_copy(const tr_path *path);
/* Sorts the values by death and gives each op its part of them. */
void tr__path_index_deaths(tr_path *path);

/* graphs */
tr_graph *tr__graph_at(uint64_t key, uint32_t site, int kind);
tr_graph *tr__graph_first(void);
tr_known *tr__graph_find(tr_graph *g, const tr_recorder *r);
tr_known *tr__graph_add(tr_graph *g, const tr_recorder *r);
/* Forgets a path without a plan that nobody compiles. */
void tr__graph_remove(tr_graph *g, tr_known *k);
/* The path that comes, by the latest ones: guess 0 is the best, up to TR_ORDERS (the last one taken); NULL: none. */
tr_known *tr__graph_predict(tr_graph *g, int guess);
static inline bool tr__known_is_stale(const tr_known *k) { return k->plan && k->planned_for != k->changes; }
static inline bool tr__known_usable(const tr_known *k) { return k->plan && !tr__known_is_stale(k) && !k->crossed; }
void tr__graph_taken(tr_graph *g, tr_known *k);
/* Cuts are calls, by their location and operator: wherever the program comes to one, a piece ends and another begins. */
bool tr__is_cut(uint32_t location);
/* An iteration of g went as `trace`, where `predicted` was expected (followed or not): the forks at which they part are missed
 * once more each. One missed often enough becomes two cuts, at the call that was expected and at the one that came. */
void tr__graph_missed(tr_graph *g, const tr_path *trace, const tr_path *predicted);
/* The hash of a path's first n ops. */
uint64_t tr__path_prefix(const tr_path *path, uint32_t n);

#endif
