/* plan.h - the contract between graph and exec: a path's ops, and the plan that runs them.
 *
 * A path is one iteration, mark to mark, as the program was seen to run it: ops in program order, over values (storages
 * born in the iteration, numbered by birth) and externals (storages that came from outside, numbered by first use). Views
 * are gone: operands carry their metas. A plan covers the path by instructions; each op belongs to exactly one.
 *
 * The readiness rule (design, section 4): an instruction may run when Python's validated cursor has reached its ready point,
 * which lies behind every op that it covers and behind the death of every value that it elides or overwrites. Instructions
 * are sorted by ready point, dependencies included, so running them in order never holds back one that is ready. */
#ifndef TERRA_PLAN_H
#define TERRA_PLAN_H

#include <stdatomic.h>

#include "terra/kernel.h"

/* Names a storage within a path: a value, or with the top bit an external; NONE for numbers and absent operands. */
typedef uint32_t tr_ref;
#define TR_REF_EXTERNAL 0x80000000u
#define TR_REF_NONE 0xffffffffu
static inline bool tr_ref_is_value(tr_ref r) { return !(r & TR_REF_EXTERNAL); }
static inline bool tr_ref_is_external(tr_ref r) { return (r & TR_REF_EXTERNAL) && r != TR_REF_NONE; }
static inline uint32_t tr_ref_slot(tr_ref r) { return r & ~TR_REF_EXTERNAL; }

typedef struct tr_path_operand {
    tr_ref ref;
    const tr_meta *meta;
} tr_path_operand;

/* An op of a path. Its operands, inputs then results, start at path->operands[operand]; the run-time arguments (offsets and
 * numbers) of an activation are parallel to them. */
typedef struct tr_path_op {
    uint16_t op, n_in;
    uint8_t n_out, n_attrs, cdtype, in_place;
    uint32_t site;
    uint32_t operand;   /* index into operands and args */
    uint32_t attr;      /* index into attrs */
    uint32_t die;       /* deaths[die .. die + n_die): values whose death Python must have seen before this op is validated */
    uint32_t n_die;
    uint32_t location;  /* of the call in the program: for a derivative, of backward() and of the forward call */
} tr_path_op;

enum { TR_DEATH_NEVER = 0xffffffffu };

typedef struct tr_path {
    uint32_t n_ops, n_operands, n_attrs, n_values, n_externals;
    tr_path_op *ops;
    tr_path_operand *operands;
    int64_t *attrs;
    int64_t *args;          /* as first seen: a hint for layouts only */
    uint32_t *death;        /* per value: how many ops had been validated when it died (the latest ever seen), or NEVER: alive
                               at the mark */
    uint32_t *deaths;       /* values sorted by death, for `die` */
    size_t *value_bytes;    /* size of its storage */
    uint8_t *fetched;       /* per value: Python has read it */
} tr_path;

typedef enum tr_instr_kind {
    TR_INSTR_OP,        /* one op by its kernel */
    TR_INSTR_EW,        /* a fused elementwise program */
    TR_INSTR_MULTI,     /* optimizer updates of many parameters in one pass */
    TR_INSTR_DNN,       /* a oneDNN partition */
    TR_INSTR_NORM,      /* batch norm, then addition, relu; or a sum, the relu's derivative, then batch norm's */
    TR_INSTR_NARROW,    /* an op, and the cast of its bfloat16 result to float32, which stays bfloat16: its home */
    TR_INSTR_COPY,      /* a cast to the bfloat16 copy that its operand has beside it: nothing to do, if that is right */
    TR_INSTR_ROWS,      /* stages, run slice by slice of their leading dimension */
    TR_INSTR_SKIP,      /* nothing: ops whose results nobody sees; all elided */
    TR_INSTR_KINDS,
} tr_instr_kind;

/* An operand of a stage, as one slice sees it. Slice c starts `step * c` bytes behind the operand's address; step 0: all of it
 * in every slice. scratch >= 0: it has no address, but lies there in the thread's own memory. */
typedef struct tr_row_arg {
    uint32_t operand; /* index into path->operands */
    const tr_meta *meta;
    int64_t step, scratch;
} tr_row_arg;

/* One op, or an elementwise program of several. */
typedef struct tr_row_stage {
    uint32_t n_ops, n_args;
    uint32_t *ops;          /* in program order */
    tr_ew_program *program; /* NULL: the op's kernel */
    const tr_meta *space;   /* of the program, a slice of it */
    tr_row_arg *args;       /* the program's, or the op's operands */
} tr_row_stage;

typedef struct tr_rows {
    uint32_t n_stages, n_metas;
    tr_row_stage *stages;   /* in an order that respects what they hang on */
    int64_t chunk, n_chunks; /* units in each slice; slices */
    size_t scratch;         /* bytes of each thread's memory */
    bool draws;             /* a stage draws random words: all of them before the first slice, in program order */
    tr_meta *metas;         /* what slices see, of */
    const tr_meta **from;   /* these */
} tr_rows;

/* Where an argument of an instruction comes from: operand index into path->operands (address of its storage plus the
 * activation's offset). */
typedef struct tr_instr {
    uint8_t kind;
    uint32_t ready;         /* cursor position */
    uint32_t first, n_ops;  /* plan->covered[first .. first + n_ops): ops in program order */
    bool has_homes;         /* an operand has a home */
    uint32_t n_elided;
    int64_t bytes_elided;
    /* EW */
    tr_ew_program *program;
    const tr_meta *space;
    /* EW: operand index of each program argument. DNN: of each value of the partition, in its order. Then the guards: operands
     * whose run-time argument the instruction relies on being what path->args has; should it differ, the ops run one by one */
    uint32_t *args;
    uint32_t n_args, n_guards;
    struct tr_dnn_partition *dnn; /* DNN: one of plan->partitions */
    tr_rows *rows;                /* ROWS; owned */
} tr_instr;

/* Runs all slices on the calling thread and its team. args: the operands of all stages one after the other, whole; those in
 * scratch have no data. Error: the first slice's that failed; others may have run. */
typedef struct tr_rows_run {
    const tr_rows *rows;
    const struct tr_path *path;
    const tr_arg *args;
    tr_kernel_ctx *ctx; /* the team's, and scratch for what comes before the slices */
} tr_rows_run;
TR_API tr_status tr_rows_run_all(const tr_rows_run *run);

typedef struct tr_instr_guess {
    float ns, bytes;
} tr_instr_guess;

enum { TR_SLOT_ELIDED = -1, TR_SLOT_COPY = -2 };

typedef struct tr_plan {
    const tr_path *path;
    uint32_t n_instrs;
    tr_instr *instrs;
    uint32_t *covered;      /* op indices by instruction */
    uint32_t *instr_of;     /* per op */
    int64_t *slot;          /* per value: offset in the slab, or in the carry region when carry[v]; ELIDED; COPY: see copy_of */
    uint8_t *carry;         /* per value: alive at the mark */
    uint32_t *copy_of;      /* per value: 1 + the external whose bfloat16 copy it is, 0: none. That has a home with a copy, and of
                               what writes it, an optimizer, nothing runs before all that read the value. NULL: there are none */
    /* Values that the plan keeps in another order than the program sees (channels last). Instructions, and single ops of an
     * activation, see operands by `looks`; a value becomes what the program sees by a copy from looks[relaid[v] - 1].meta to
     * path->operands[relaid[v] - 1].meta, after which path->operands are right for it. NULL where nothing is relaid. */
    tr_path_operand *looks; /* parallel to path->operands */
    uint32_t *relaid;       /* per value: 1 + operand of its birth; 0: as the program sees it */
    tr_meta *metas;         /* what looks have and path->operands have not */
    /* Per value, then per external: the home that instructions find it in and leave it in; NULL: the program's order. NULL
     * where nothing has one. Single ops see the program's order always. */
    const tr_home **homes;
    struct tr_dnn_partition **partitions; /* owned */
    uint32_t n_partitions;
    size_t slab_bytes, carry_bytes;
    int64_t compile_ns;
    uint32_t id;
    int executors;               /* for how many it was compiled */
    /* Where there are several executors (NULL otherwise): the instructions that must have run before instruction i, whoever
     * runs them: before[before_at[i] .. before_at[i + 1]), all smaller than i; and what running i may take, and moves. */
    uint32_t *before_at, *before;
    tr_instr_guess *guess;
    _Atomic int64_t *ns;         /* per instruction, with TERRA_PROFILE or several executors: the least time it took, relaxed */
    struct tr_plan_state *state; /* the executor's: pools of slabs */
    struct tr_plan *next;        /* among those that are being dropped */
    bool dropping;               /* the executor has been told */
    _Atomic bool dropped;        /* the executor holds nothing of it any more */
} tr_plan;

#endif
