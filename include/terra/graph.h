/* graph.h - from a path to a plan: passes, instructions, memory, ready points. Pure functions of their arguments: called on
 * the compile thread (or by tests), never under the GIL, no Python, no executor state, no parallel region. */
#ifndef TERRA_GRAPH_H
#define TERRA_GRAPH_H

#include "terra/plan.h"

/* Compiles `path`, which the plan takes on success (allocated by tr_path_create, or the equivalent of one block each by
 * tr_malloc). TR_E_NOMEM, TR_E_INTERNAL (the verifier found a bug of ours: the text says which rule, op and value). */
TR_API tr_status tr_graph_compile(tr_path *path, tr_plan **out);
/* Frees the plan and its path. The executor's state must have been dropped. */
TR_API void tr_plan_destroy(tr_plan *plan);
TR_API void tr_path_destroy(tr_path *path);

/* Checks every rule of the plan at every cursor position; TR_E_INTERNAL with text. */
TR_API tr_status tr_plan_verify(const tr_plan *plan);

/* Text in tr_malloc memory, the caller's; NULL: no memory. `site_text` names call locations. */
TR_API char *tr_plan_text(const tr_plan *plan, const char *(*site_text)(uint32_t site));
TR_API char *tr_plan_graphviz(const tr_plan *plan, const char *(*site_text)(uint32_t site));

#endif
