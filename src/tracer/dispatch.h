/* dispatch.h - between the files of the tracer room. */
#ifndef TR_TRACER_DISPATCH_H
#define TR_TRACER_DISPATCH_H

#include "terra/exec.h"
#include "terra/tracer.h"

#include "tracer/infer.h"

/* tensor.c */
tr_tensor *tr__tensor_over(tr_storage *s, const tr_meta *meta, int64_t offset); /* retains s; NULL: no memory */
void tr__storage_release(tr_storage *s);
extern tr_host tr__host;

/* autocast.c */
extern _Thread_local tr_autocast tr__autocast;

/* precision.c: what a product of these operands computes in, if the op is one. */
static inline bool tr__multiplies(tr_op op, const tr_op_info *info) {
    return info->op_class == TR_CLASS_MM || op == TR_OP__sdpa || op == TR_OP__sdpa_backward;
}
tr_dtype tr__product_dtype(tr_op op, const tr_operand *in);

/* trace.c: passes a call on to where the ops of this moment go, and gives its results' storages (new references) and metas.
 * In place, or when the op writes operands: no results. */
typedef struct tr_issue {
    tr_op op;
    const tr_operand *in;
    int n_in;
    const int64_t *attrs;
    const tr_meta *given;
    bool in_place;
    uint8_t cdtype;   /* what it computes in, where that is not for the shape rule to say; TR_DTYPE_COUNT */
    unsigned written; /* bit i: operand i is written, in place or by what the op is */
    /* out */
    tr_storage *storage[TR_MAX_OUTPUTS];
    const tr_meta *meta[TR_MAX_OUTPUTS];
} tr_issue;
tr_status tr__issue(tr_issue *call);
/* How many ops of the open activation must have run before s can be read; 0 outside. */
uint32_t tr__need_of(const tr_storage *s);
/* Python read it. */
void tr__note_fetch(tr_storage *s);
/* A value of the open trace died; true when its struct may be reused at once. */
void tr__note_death(tr_storage *s);
/* An executor's error reached Python: what was validated and not run is lost; the path is left. */
void tr__note_error(void);
/* Where the last recorded op was called. */
uint32_t tr__last_site(void);
/* While a node's derivative runs: where its forward call was; 0 else. */
extern uint32_t tr__forward_site;
/* Leaves the path, if one is followed. */
tr_status tr__trace_leave(const char *why);

void tr__node_clear_saved(tr_node *node);

#endif
