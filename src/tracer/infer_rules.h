/* infer_rules.h - rules that live in another file than the table of infer.c. */
#ifndef TR_TRACER_INFER_RULES_H
#define TR_TRACER_INFER_RULES_H

#include "tracer/infer.h"

#define infer_view tr__infer_view
#define infer_expand tr__infer_expand
#define infer_permute tr__infer_permute
#define infer_transpose tr__infer_transpose
#define infer_unsqueeze tr__infer_unsqueeze
#define infer_squeeze tr__infer_squeeze
#define infer_slice tr__infer_slice
#define infer_select tr__infer_select
#define infer_diagonal tr__infer_diagonal
#define infer_unfold tr__infer_unfold
#define infer_as_strided tr__infer_as_strided
#define infer_alias tr__infer_alias

tr_status infer_view(tr_infer *c);
tr_status infer_expand(tr_infer *c);
tr_status infer_permute(tr_infer *c);
tr_status infer_transpose(tr_infer *c);
tr_status infer_unsqueeze(tr_infer *c);
tr_status infer_squeeze(tr_infer *c);
tr_status infer_slice(tr_infer *c);
tr_status infer_select(tr_infer *c);
tr_status infer_diagonal(tr_infer *c);
tr_status infer_unfold(tr_infer *c);
tr_status infer_as_strided(tr_infer *c);
tr_status infer_alias(tr_infer *c);

/* Strides for viewing x as `shape`; false where no view can. */
bool tr__view_strides(const tr_meta *x, int ndim, const int64_t *shape, int64_t *strides);

#endif
