/* timeline.h - what both runners did when: TERRA_TIMELINE=file.json writes it for Chrome's tracing page or Perfetto.
 *
 * A track belongs to one thread at a time (Python's: whoever holds the GIL), which alone appends to it; the file is written
 * when all have stopped. Off, an event costs one load of a flag. Bounded: TR_TIMELINE_EVENTS per track, later ones are counted
 * only. */
#ifndef TERRA_TIMELINE_H
#define TERRA_TIMELINE_H

#include <stdbool.h>
#include <stdint.h>

#include "terra/status.h"

/* Executor i > 0 has track TR_TRACK_MORE + i. */
typedef enum tr_track { TR_TRACK_PYTHON, TR_TRACK_EXECUTOR, TR_TRACK_COMPILER, TR_TRACK_MORE = TR_TRACK_COMPILER, TR_TRACK_COUNT = TR_TRACK_MORE + 64 } tr_track;

enum { TR_TIMELINE_EVENTS = 1 << 20 };

extern TR_API bool tr_timeline_on; /* set once, before threads start */

/* Appends: `name` and `last` (NULL: none) live for ever; `n` ops; times of tr_now_ns. */
TR_API void tr_timeline_add(tr_track track, const char *name, const char *last, uint32_t n, uint32_t plan, uint32_t instr,
                            int64_t start, int64_t end);
TR_API void tr_timeline_start(void);
/* Writes the file; all tracks are still. TR_E_RUNTIME: it can't be written. */
TR_API tr_status tr_timeline_write(const char *path);

#endif
