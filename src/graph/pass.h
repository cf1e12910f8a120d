/* pass.h - what the passes share while a path becomes a plan.
 *
 * Analysis finds who touches which storage and derives the order that memory demands (RAW, WAR, WAW per storage; two
 * operands of one storage may always overlap). Every op starts as a group of its own; passes merge groups, each merge
 * keeping the graph of groups free of cycles; lowering makes one instruction of a group. Groups lie in a topological order
 * all the time (order.c), so a merge only looks at the groups between the two.
 *
 * Everything lives in one pool that goes with the compilation; the plan's own arrays are separate blocks. */
#ifndef TERRA_GRAPH_PASS_H
#define TERRA_GRAPH_PASS_H

#include "terra/dnn.h"
#include "terra/graph.h"

#define TR__NIL UINT32_MAX

/* ---- memory ---- */
typedef struct tr__pool {
    struct tr__chunk *chunks;
    char *at, *end;
    bool failed; /* sticky: callers look once */
} tr__pool;
/* Zeroed, 16-byte aligned; NULL when there is no memory. */
void *tr__pool_take(tr__pool *p, size_t count, size_t bytes);
void tr__pool_fini(tr__pool *p);

/* Lists of op indices, by key: item[at[k] .. at[k + 1]). */
typedef struct tr__lists {
    uint32_t *at, *item;
} tr__lists;

typedef struct tr__group {
    uint8_t kind;        /* tr_instr_kind */
    uint32_t head, tail; /* members in program order, through graph->next */
    uint32_t n_ops;
    uint32_t rank;     /* place in graph->order */
    uint32_t deadline; /* ready may not exceed it: somebody fetches what hangs on it */
    uint32_t patience; /* a ready point worth waiting for: an operand's death, whose memory a result may take */
    uint32_t ready;    /* set by tr__order */
    uint32_t stamp;
    uint32_t partition; /* DNN: index into graph->partitions */
    uint32_t *stages;   /* ROWS: the groups that its stages were, in order */
    uint32_t n_stages;
    int64_t units;
} tr__group;

/* Compiled for groups; the final plan takes them all. */
typedef struct tr__partitions {
    tr_dnn_partition **item;
    uint32_t n, size;
} tr__partitions;

/* What pass_layout.c chose; the plan takes looks, value and metas. */
typedef struct tr__relaid {
    tr_path_operand *looks;
    uint32_t *value;
    tr_meta *metas;
    const tr_meta **from; /* per meta: what it replaces */
    uint32_t n_metas;
} tr__relaid;

typedef struct tr__graph {
    const tr_path *path;
    const tr_path *original;
    int executors;  /* that will share the plan */
    tr_path shadow; /* `path`, once values are relaid: the original with other operands */
    tr__relaid relaid;
    const tr_home **homes; /* the plan takes it: per ref, or NULL */
    tr__partitions partitions;
    tr__pool pool;
    uint32_t n_refs;      /* values, then externals */
    tr__lists pred, succ; /* ops that must run before, after (no duplicates) */
    tr__lists touch;      /* per ref: ops that name it, in program order */
    uint32_t *birth;      /* per ref: the op that makes it; NIL for externals */
    uint32_t *deadline;   /* per op */
    uint8_t *writes;      /* per ref: somebody writes it after its birth */
    bool *elided;         /* per value: it has no slot */
    uint32_t *copy_of;    /* the plan takes it: per value, 1 + the external whose copy it is; or NULL */
    tr_ref *copied;       /* per ref, an external's: 1 + the value that is its copy; NULL where copy_of is */
    bool *spared;         /* per value: elided, but stages pass it on through their thread's memory */
    uint32_t *stage;      /* per op: the group that it was in when that became a stage */
    int64_t *spare_at;    /* per value, while rows are lowered */
    /* groups: an op's group, and its next member */
    uint32_t *group, *next;
    tr__group *groups; /* indexed by an op that it had first */
    uint32_t *order;   /* rank to group; NIL where a group was merged away */
    uint32_t stamp;
    uint32_t *stack;     /* scratch of n_ops */
    uint32_t *ref_stamp; /* scratch per ref */
    struct tr__ew_scratch *ew;
} tr__graph;

static inline uint32_t tr__ref_index(const tr_path *p, tr_ref r) {
    return tr_ref_is_value(r) ? r : p->n_values + tr_ref_slot(r);
}
static inline const tr_path_operand *tr__operands(const tr_path *p, const tr_path_op *op) {
    return p->operands + op->operand;
}
/* The path as a plan's instructions see it. */
static inline tr_path tr__path_seen(const tr_plan *plan) {
    tr_path p = *plan->path;
    if (plan->looks)
        p.operands = plan->looks;
    return p;
}
static inline uint32_t tr__operand_count(const tr_path_op *op) {
    return (uint32_t) op->n_in + op->n_out;
}
/* Does operand i (results included) of this op get written? */
bool tr__operand_written(const tr_path_op *op, uint32_t i);
/* Is its present value read? copy_ and fill_ only write what they cover. */
/* Can running it fail on a value? */
bool tr__may_fail(const tr_path_op *op);
bool tr__operand_read(const tr_path_op *op, uint32_t i);
/* Is operand i the first appearance of a value? */
static inline bool tr__operand_born(const tr_path_op *op, uint32_t i) {
    return i >= op->n_in && !op->in_place;
}

/* Do two looks name the same elements in the same order, given the same offset? */
bool tr__same_look(const tr_meta *a, const tr_meta *b);
/* Does this look cover all of its value, so that its offset can only be 0? */
bool tr__is_whole(const tr_path *p, tr_ref r, const tr_meta *m);

/* How a stage of rows takes an operand (pass_rows.c; the verifier asks as well). */
typedef enum tr__row_kind {
    TR__ROW_NOT,
    TR__ROW_SLICED,
    TR__ROW_WHOLE,
    TR__ROW_DRAWN, /* a generator: used before the first slice */
} tr__row_kind;
enum { TR__ROW_OPERANDS = 16 };
tr__row_kind tr__row_kind_of(const tr_path *p, uint32_t op, uint32_t operand);
/* Is each of so many equal slices of this look, along its leading dimension, within its own slice of the value's bytes? */
bool tr__row_is_apart(const tr_path *p, tr_ref r, const tr_meta *m, int64_t offset, int64_t units);

/* How many ops of Python's an instruction may wait for what spares it this much memory traffic: an op takes Python some
 * microseconds, in which tens of kilobytes are written and read back. */
static inline uint32_t tr__patience(size_t bytes) {
    size_t ops = 8 + bytes / (16 << 10);
    return ops < 256 ? (uint32_t) ops : 256;
}

/* ---- passes, in order ---- */
tr_status tr__analyze(tr__graph *g, const tr_path *path);
/* Its part: g->copy_of, g->copied, the homes that go with them. */
tr_status tr__find_copies(tr__graph *g);
/* g->homes, if there are none yet: nobody has one. */
tr_status tr__open_homes(tr__graph *g);

/* Is v made by one op, read by another, touched by no third, and dead soon enough for both to be one? `patience`: ops of Python's
 * behind the reader that they may wait for that. */
bool tr__is_passing(const tr__graph *g, tr_ref v, uint32_t maker, uint32_t reader, uint32_t patience);

/* Makes one group of two. False, nothing changed: a path leads from one to the other through a third. */
bool tr__merge(tr__graph *g, uint32_t a, uint32_t b);

tr_status tr__pass_layout(tr__graph *g);
tr_status tr__pass_home(tr__graph *g);
tr_status tr__pass_dead(tr__graph *g);
tr_status tr__pass_elementwise(tr__graph *g);
tr_status tr__pass_norm(tr__graph *g);
tr_status tr__pass_partition(tr__graph *g);
tr_status tr__pass_narrow(tr__graph *g);
tr_status tr__pass_multi(tr__graph *g);
tr_status tr__pass_rows(tr__graph *g);

/* Ready points, and the list order: `list` gets the groups; returns how many. */
uint32_t tr__order(tr__graph *g, uint32_t *list);

/* Instructions, their programs; then the memory of values. */
tr_status tr__lower(tr__graph *g, tr_plan *plan);
tr_status tr__plan_memory(tr_plan *plan);
/* Then, for several executors: what must have run before each instruction. */
tr_status tr__depend(tr__graph *g, tr_plan *plan);

/* The argument whose elements step s of a program passes on as they are; -1: it computes something. */
int tr__passed_on(const tr_ew_program *e, int s);
/* What a group's elementwise program would be. Shared by the pass (does it fit?) and lowering. */
tr_status tr__elementwise_lower(tr__graph *g, uint32_t group, tr_instr *instr);
/* Can the group be an elementwise program? */
bool tr__is_program(tr__graph *g, uint32_t group);
/* The same of a list of ops, in program order. */
bool tr__elementwise_fits(tr__graph *g, uint32_t op); /* a single one */
tr_status tr__elementwise_lower_ops(tr__graph *g, const uint32_t *ops, uint32_t n, tr_instr *instr);
tr_status tr__rows_lower(tr__graph *g, uint32_t group, tr_instr *instr);
void tr__rows_free(tr_rows *rows);
tr_status tr__norm_lower(const tr__graph *g, uint32_t group, tr_instr *instr);
tr_status tr__partition_lower(const tr__graph *g, uint32_t group, tr_instr *instr);

/* Of each instruction, from the shapes: floating-point operations (products, convolutions and attention as they are defined,
 * of anything else that computes one for each element of its largest operand), how many of them multiply bfloat16, and bytes that go between it and values that
 * are not elided. */
typedef struct tr__cost {
    double flop, flop_bf16, bytes;
} tr__cost;
tr_status tr__plan_cost(const tr_plan *plan, tr__cost *costs);

#endif
