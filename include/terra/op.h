/* op.h - what the op table expands into, and the call: an operator with its operands, as it travels from dispatch to
 * the ring, the trace and the plan. */
#ifndef TERRA_OP_H
#define TERRA_OP_H

#include "terra/types.h"

typedef enum tr_op {
#define TR_OP(id, expose, class, rule, vjp, schema) TR_OP_##id,
#include "terra/ops.def"
#undef TR_OP
    TR_OP_COUNT
} tr_op;

typedef enum tr_op_class {
    TR_CLASS_EW,
    TR_CLASS_RED,
    TR_CLASS_VIEW,
    TR_CLASS_MM,
    TR_CLASS_CONV,
    TR_CLASS_POOL,
    TR_CLASS_NORM,
    TR_CLASS_SOFT,
    TR_CLASS_IDX,
    TR_CLASS_RAND,
    TR_CLASS_NEW,
    TR_CLASS_OPTIM,
    TR_CLASS_LOSS,
} tr_op_class;

enum {
    TR_EXPOSE_N = 0,
    TR_EXPOSE_F = 1,   /* torch.<id> */
    TR_EXPOSE_M = 2,   /* Tensor.<id> */
    TR_EXPOSE_I = 4,   /* <id>_ as well */
    TR_EXPOSE_FM = 3,
    TR_EXPOSE_FMI = 7,
};

enum {
    TR_MAX_ATTRS = 20,  /* int64 slots */
    TR_MAX_FIXED = 13,  /* operands of an op without a tensor list */
    TR_MAX_OUTPUTS = 3,
};
#define TR_NONE INT64_MIN /* an absent `dim?` */

typedef enum tr_arg_kind {
    TR_ARG_TENSOR,    /* operands ... */
    TR_ARG_OPERAND,
    TR_ARG_SCALAR,
    TR_ARG_GENERATOR,
    TR_ARG_TENSORS,   /* any number */
    TR_ARG_INT,       /* ... and attributes */
    TR_ARG_BOOL,
    TR_ARG_DIM,
    TR_ARG_DIMS,
    TR_ARG_DTYPE,
    TR_ARG_ONE_OF,
    TR_ARG_SIZES,
} tr_arg_kind;

/* One parameter of a schema. */
typedef struct tr_param {
    char name[24];
    tr_arg_kind kind;
    bool optional;      /* "?" */
    bool written;       /* "!" */
    bool keyword_only;
    bool has_default;
    uint8_t slots;      /* attribute slots taken; 0 for operands */
    uint8_t at;         /* index of its operand or of its first slot */
    char value[16];     /* default, as text: "1", "0.01", "None", "False"; "" when has_default is false */
    char choices[40];   /* one_of: "none,tanh" */
} tr_param;

/* What autocast gives an op: its lower precision, or float32. */
typedef enum tr_autocast_policy { TR_AUTOCAST_NONE, TR_AUTOCAST_LOWER, TR_AUTOCAST_FLOAT32 } tr_autocast_policy;

/* A row of the table, its schema parsed once by tr_op_init(). */
typedef struct tr_op_info {
    const char *name;
    const char *schema;
    uint8_t op_class;
    uint8_t expose;
    uint8_t n_params;
    uint8_t n_operands;  /* without the tensor list */
    uint8_t n_attrs;     /* slots */
    uint8_t n_outputs;   /* fresh results; 0 for ops that only write operands */
    bool variadic;       /* takes a tensor list after the fixed operands */
    bool differentiable;
    uint8_t autocast;    /* tr_autocast_policy */
    uint16_t written;    /* bit i: operand i is written */
    uint16_t generators; /* ... is a generator: the default one where none is given */
    uint16_t needs_tensor, needs_value; /* ... must be a tensor; must be a tensor or a number */
    tr_param params[TR_MAX_FIXED + 3];
} tr_op_info;

/* Parses the table. Once, before anything else; TR_E_INTERNAL names a malformed row. */
TR_API tr_status tr_op_init(void);
extern TR_API tr_op_info tr__op_table[TR_OP_COUNT];
static inline const tr_op_info *tr_op_info_of(tr_op op) { return &tr__op_table[op]; }

/* A call. In memory: this header, attrs[n_attrs], operands[n_in], results[n_out], in one block of tr_call_size() bytes.
 * In-place calls have results equal to operand 0 (storage, meta, offset). Ops of schema "!" without results have n_out 0. */
typedef struct tr_call {
    uint16_t op;
    uint16_t n_in;
    uint8_t n_out;
    uint8_t n_attrs;
    uint8_t cdtype;     /* what it computes in: the promoted dtype of the operands; a float32 product may be told bfloat16 */
    uint8_t in_place;   /* results[0] is operand 0 */
    uint32_t site;      /* where the program called it (tracer/site.c); 0 unknown */
    uint32_t reserved;
    int64_t words[];    /* attributes, then operands */
} tr_call;

static inline size_t tr_call_size(int n_attrs, int n_in, int n_out) {
    return sizeof(tr_call) + (size_t) n_attrs * 8 + (size_t) (n_in + n_out) * sizeof(tr_operand);
}
static inline int64_t *tr_call_attrs(const tr_call *c) { return (int64_t *) c->words; }
static inline tr_operand *tr_call_in(const tr_call *c) { return (tr_operand *) (c->words + c->n_attrs); }
static inline tr_operand *tr_call_out(const tr_call *c) { return tr_call_in(c) + c->n_in; }

#endif
