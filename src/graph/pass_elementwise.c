/* pass_elementwise.c - chains of elementwise ops in one instruction. */
#include "graph/pass.h"

tr_status tr__pass_elementwise(tr__graph *g) {
    return TR_OK;
}
tr_status tr__elementwise_lower(tr__graph *g, uint32_t group, tr_instr *instr) {
    return TR_FAIL(TR_E_INTERNAL, "no elementwise programs yet");
}
