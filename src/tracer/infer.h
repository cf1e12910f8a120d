/* infer.h - shape and dtype rules: what a call's results look like, and every error that the looks alone can tell. */
#ifndef TR_TRACER_INFER_H
#define TR_TRACER_INFER_H

#include "terra/op.h"

typedef struct tr_infer {
    tr_op op;
    int n_in;
    const tr_operand *in;       /* storage says: a tensor; only metas and numbers are read */
    int64_t *attrs;             /* in PyTorch's terms; rules may normalise them (a -1 size) */
    const tr_meta *given;
    bool in_place;
    /* what the rule finds */
    const tr_meta *out[TR_MAX_OUTPUTS];
    tr_dtype cdtype;
    int64_t offset;             /* views: elements from operand 0's first */
} tr_infer;

/* Applies the op's rule. In place, out[0] is operand 0's meta, checked. */
tr_status tr__infer(tr_infer *c);

tr_dtype tr__promote(const tr_operand *in, int n);
/* Broadcasts b into shape[*ndim]; PyTorch's error. */
tr_status tr__broadcast(int64_t *shape, int *ndim, const tr_meta *b);

#endif
