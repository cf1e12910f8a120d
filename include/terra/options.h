/* options.h - the environment options of options.def, read once.
 *
 * tr_options_load() reads the environment when the runtime starts; tr_options_get() is a load from then on. */
#ifndef TERRA_OPTIONS_H
#define TERRA_OPTIONS_H

#include <stdint.h>

#include "terra/status.h"

#ifdef TR_DEBUG
#define TR_OPTIONS_DEBUG true
#else
#define TR_OPTIONS_DEBUG false
#endif

typedef bool tr_option_BOOL;
typedef int64_t tr_option_INT;
typedef const char *tr_option_TEXT;

typedef struct tr_options {
#define X(field, name, type, default_, doc) tr_option_##type field;
#include "terra/options.def"
#undef X
} tr_options;

enum {
#define X(field, name, type, default_, doc) TR_OPTION_##field,
#include "terra/options.def"
#undef X
    TR_OPTION_COUNT
};

/* Reads the environment. The options that can't be parsed keep their defaults, and the first of them is TR_E_VALUE with
 * a text that names it. Copies texts: later setenv calls change nothing. Call once, before other threads exist. */
TR_API tr_status tr_options_load(void);

/* The options; the defaults before tr_options_load. Borrowed, static. Any thread. */
TR_API const tr_options *tr_options_get(void);

/* Sets one by its environment name ("TERRA_SYNC", "1"): for tests and for the front's own switches. Not while another
 * thread may read it. TR_E_KEY: no such option; TR_E_VALUE: not a value for it. */
TR_API tr_status tr_options_set(const char *name, const char *value);

typedef struct tr_option_info {
    const char *name, *type, *default_text, *doc; /* static */
} tr_option_info;

/* Row `option` (0 .. TR_OPTION_COUNT - 1) of the table, and its present value as text. Static / into `text`. */
TR_API const tr_option_info *tr_option_describe(int option);
TR_API void tr_option_format(int option, char *text, size_t size);

#endif
