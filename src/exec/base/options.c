/* The table of options, read from the environment. */
#include "terra/options.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <string.h>

#include "terra/alloc.h"

static tr_options options = {
#define X(field, name, type, default_, doc) .field = (default_),
#include "terra/options.def"
#undef X
};

static const tr_option_info infos[TR_OPTION_COUNT] = {
#define X(field, name, type, default_, doc) {#name, #type, #default_, doc},
#include "terra/options.def"
#undef X
};

static bool parse_BOOL(const char *text, tr_option_BOOL *out) {
    static const char *const words[2][4] = {{"0", "no", "off", "false"}, {"1", "yes", "on", "true"}};
    for (int value = 0; value < 2; value++) {
        for (int i = 0; i < 4; i++) {
            if (strcasecmp(text, words[value][i]) == 0) {
                *out = value;
                return true;
            }
        }
    }
    return false;
}

static bool parse_INT(const char *text, tr_option_INT *out) {
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0)
        return false;
    *out = value;
    return true;
}

// The copy is never freed: a reader may have kept the pointer.
static bool parse_TEXT(const char *text, tr_option_TEXT *out) {
    char *copy = *text != '\0' ? strdup(text) : NULL;
    if (copy == NULL && *text != '\0')
        return false;
    *out = copy;
    return true;
}

static void format_BOOL(char *text, size_t size, tr_option_BOOL value) {
    snprintf(text, size, "%d", value);
}

static void format_INT(char *text, size_t size, tr_option_INT value) {
    snprintf(text, size, "%lld", (long long) value);
}

static void format_TEXT(char *text, size_t size, tr_option_TEXT value) {
    snprintf(text, size, "%s", value != NULL ? value : "");
}

tr_status tr_options_set(const char *name, const char *value) {
#define X(field, name_, type, default_, doc)               \
    if (strcmp(name, #name_) == 0)                         \
        return parse_##type(value, &options.field) ? TR_OK \
                                                   : TR_FAIL(TR_E_VALUE, "%s=%s: not a value of type " #type, name, value);
#include "terra/options.def"
#undef X
    return TR_FAIL(TR_E_KEY, "no option is called %s", name);
}

tr_status tr_options_load(void) {
    tr_status first = TR_OK;
    char detail[TR_STATUS_DETAIL_MAX] = "";
    for (int i = 0; i < TR_OPTION_COUNT; i++) {
        const char *value = getenv(infos[i].name);
        tr_status status = value != NULL ? tr_options_set(infos[i].name, value) : TR_OK;
        if (status != TR_OK && first == TR_OK) {
            first = status;
            snprintf(detail, sizeof detail, "%s", tr_status_detail());
        }
    }
    tr_fail_alloc_set(options.fail_alloc);
    return first == TR_OK ? TR_OK : TR_FAIL(first, "%s", detail);
}

const tr_options *tr_options_get(void) {
    return &options;
}

const tr_option_info *tr_option_describe(int option) {
    tr_check(option >= 0 && option < TR_OPTION_COUNT);
    return &infos[option];
}

void tr_option_format(int option, char *text, size_t size) {
    switch (option) {
#define X(field, name, type, default_, doc)       \
    case TR_OPTION_##field:                       \
        format_##type(text, size, options.field); \
        return;
#include "terra/options.def"
#undef X
        default:
            tr_check(false);
    }
}
