/* vjp_rules.h - declares every derivative that the op table names; a row without one fails to compile here, one without a
 * definition to link. */
#ifndef TR_TRACER_VJP_RULES_H
#define TR_TRACER_VJP_RULES_H

#include "tracer/tape.h"

#define TR_OP(id, expose, class, rule, vjp, schema) extern const tr_vjp_rule tr__vjp_##vjp;
#include "terra/ops.def"
#undef TR_OP

#endif
