/* Status codes and the thread-local text that explains the last failure. */
#include "terra/status.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local char detail[TR_STATUS_DETAIL_MAX];

const char *tr_status_name(tr_status status) {
    switch (status) {
        case TR_OK:
            return "OK";
#define X(name, value, message) \
    case TR_E_##name:           \
        return #name;
            TR_STATUS_MAP(X)
#undef X
        default:
            return "UNKNOWN";
    }
}

const char *tr_status_message(tr_status status) {
    switch (status) {
        case TR_OK:
            return "success";
#define X(name, value, message) \
    case TR_E_##name:           \
        return message;
            TR_STATUS_MAP(X)
#undef X
        default:
            return "unknown status";
    }
}

const char *tr_status_detail(void) {
    return detail;
}

void tr_status_clear(void) {
    detail[0] = '\0';
}

tr_status tr_status_vfail(tr_status status, const char *fmt, va_list args) {
    // Formatted aside first: an argument may point into `detail`.
    char text[TR_STATUS_DETAIL_MAX];
    int length = vsnprintf(text, sizeof text, fmt, args);
    if (length < 0)
        text[0] = '\0';
    memcpy(detail, text, strlen(text) + 1);
    return status;
}

tr_status tr_status_fail(tr_status status, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    tr_status_vfail(status, fmt, args);
    va_end(args);
    return status;
}

void tr_check_failed(const char *expr, const char *file, int line, const char *func) {
    fprintf(stderr, "terra: %s:%d: %s: check failed: %s\n", file, line, func, expr);
    fflush(stderr);
    abort();
}
