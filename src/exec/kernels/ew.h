/* ew.h - an elementwise program while it runs: the coalesced space, the program's arguments in it, and the instructions that
 * it was compiled into. Shared by ew_compile.c, ew_turn.c and ew.c. */
#ifndef TERRA_EXEC_EW_H
#define TERRA_EXEC_EW_H

#include "exec/kernels/kernels.h"

enum {
    MAX_VALUES = TR_EW_MAX_STEPS * 12 + TR_EW_MAX_ARGS * 2, /* five operands cast and filled, result, rounding */
    MAX_INSTRUCTIONS = MAX_VALUES + TR_EW_MAX_STEPS,
    ROOM = 48 * 1024, /* of a thread's registers */
    TILE_MAX = 2048,
    TILE_MIN = 64,
    TILE_FREE = 16 * 1024, /* where no register is needed */
    LONG_ROW = 512,
};

typedef enum kind { K_LOAD, K_FILL, K_STEP, K_ROUND, K_STORE } kind;

/* A value: what a register, a direct pointer or a constant holds during a tile. */
typedef struct value {
    int16_t slot; /* -1: none (constant or direct) */
    int16_t arg;  /* loaded from; -1 */
    int16_t last; /* instruction that uses it last */
    uint8_t cls;
    bool constant; /* one value for the whole run */
    double number; /* its bits, of the class */
} value;

typedef struct instruction {
    uint8_t kind;
    uint8_t cls;    /* K_STEP: class of the table's row; K_STORE: of the value */
    uint8_t dtype;  /* K_ROUND: to; K_LOAD, K_STORE: in memory; K_STEP: cdtype */
    int16_t arg;    /* K_LOAD, K_STORE */
    int16_t out;    /* value */
    int16_t in[5];  /* values; -1 absent */
    int16_t direct; /* K_STEP, K_ROUND: the argument whose memory may be the result's register; -1 */
    int64_t attr;
    tr__ew_entry entry;
} instruction;

typedef struct argument {
    char *data;
    int64_t strides[TR_MAX_DIMS]; /* elements, of the coalesced space */
    uint8_t dtype;
    bool linear;   /* element i of the space lies at data + i */
    bool constant; /* strides all 0, or a number */
} argument;

typedef struct run {
    int ndim;
    int64_t shape[TR_MAX_DIMS]; /* coalesced; innermost last */
    int64_t rows;               /* product of all but the innermost */
    int64_t tile;               /* elements */
    int64_t tiles_per_row;      /* long rows */
    int64_t rows_per_tile;      /* short rows; 0: long */
    int n_args, n_values, n_instructions, n_slots;
    size_t slot_bytes;
    argument args[TR_EW_MAX_ARGS];
    value values[MAX_VALUES];
    instruction code[MAX_INSTRUCTIONS];
} run;

/* Fills in a run: the space sorted and merged (`first`: the argument that decides the order), then code and registers. */
void tr__ew_coalesce(run *r, int first);
void tr__ew_compile(run *r, const tr_ew_program *p, const tr_arg *args);
/* Does an op only copy its operand, whose place is given? */
bool tr__ew_is_identity(int op);
int tr__ew_first_operand(int op);

/* A program that only copies between two orders is done here, true; operands that lie across the tiles are turned over into
 * scratch. */
bool tr__ew_run_turn(const tr_ew_program *p, const run *r, tr_kernel_ctx *ctx, int64_t numel);
void tr__ew_straighten(const tr_ew_program *p, run *r, tr_kernel_ctx *ctx, int64_t numel);

/* Is this memory's element its register's? */
static inline bool same_bits(tr_dtype d, tr__class cls) {
    return tr__class_of(d) == cls && tr_dtype_size(d) == tr__class_size(cls);
}

#endif
