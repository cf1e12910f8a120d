/* trace.h - what tracer.c and dispatch.c need of trace.c. */
#ifndef TR_TRACER_TRACE_H
#define TR_TRACER_TRACE_H

#include "terra/tracer.h"

tr_status tr__trace_init(const tr_host *host);
void tr__trace_shutdown(void);
bool tr__following(void);
void tr__note_skeleton(int64_t ns, int64_t ops);
void tr__note_view(void);
/* Computing ones and views. */
int64_t tr__ops_so_far(void);

#endif
