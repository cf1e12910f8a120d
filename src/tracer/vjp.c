/* vjp.c - the table of derivatives, from the op table. */
#include "tracer/vjp_rules.h"

#define tr__vjp_none tr__vjp_of_none
const tr_vjp_rule tr__vjp_of_none = {0};
#define NONE_OR(vjp) (&tr__vjp_##vjp == &tr__vjp_of_none ? NULL : &tr__vjp_##vjp)

const tr_vjp_rule *const tr__vjp_rules[TR_OP_COUNT] = {
#define TR_OP(id, expose, class, rule, vjp, schema) [TR_OP_##id] = NONE_OR(vjp),
#include "terra/ops.def"
#undef TR_OP
};
