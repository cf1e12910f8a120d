/* status.h - how a failure travels.
 *
 * What can fail returns a tr_status: 0 or a negative code of the table below. The text that explains it is kept per
 * thread, set where the failure happens (TR_FAIL) and read where it is reported (tr_status_detail). It does not cross
 * threads by itself: the executor copies status and text into a future, and the Python side raises both at the next
 * synchronisation.
 *
 * A user's mistake is a status. A bug of ours is tr_assert (debug builds) or tr_check (always; not for hot paths).
 *
 * Everything in this header may be called from any thread and never blocks. */
#ifndef TERRA_STATUS_H
#define TERRA_STATUS_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TR_API __attribute__((visibility("default")))
#define TR_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define TR_LIKELY(x) __builtin_expect(!!(x), 1)
#define TR_UNLIKELY(x) __builtin_expect(!!(x), 0)

/* X(name, value, message). Each code stands for one Python exception; the comment names it. */
#define TR_STATUS_MAP(X)                                                                                    \
    X(NOMEM, -1, "out of memory")                   /* MemoryError */                                       \
    X(VALUE, -2, "invalid value")                   /* ValueError */                                        \
    X(TYPE, -3, "wrong type")                       /* TypeError */                                         \
    X(INDEX, -4, "index out of range")              /* IndexError */                                        \
    X(KEY, -5, "no such key")                       /* KeyError */                                          \
    X(ATTRIBUTE, -6, "no such attribute")           /* AttributeError */                                    \
    X(SHAPE, -7, "shapes do not fit")               /* RuntimeError, as in PyTorch */                       \
    X(RUNTIME, -8, "operation failed")              /* RuntimeError */                                      \
    X(NOTIMPL, -9, "not implemented")               /* NotImplementedError */                               \
    X(IO, -10, "input or output failed")            /* OSError */                                           \
    X(OVERFLOW, -11, "number does not fit")         /* OverflowError */                                     \
    X(INTERRUPT, -12, "interrupted")                /* KeyboardInterrupt, raised by the signal handler */   \
    X(TIMEOUT, -13, "timed out")                    /* TimeoutError */                                      \
    X(AGAIN, -14, "not now")                        /* never leaves the runtime */                          \
    X(SKIPPED, -15, "skipped, because an earlier operation failed") /* RuntimeError, when it is read */     \
    X(PYTHON, -16, "a Python exception is already set") /* the Python error indicator holds it */           \
    X(INTERNAL, -17, "internal error")              /* SystemError */

enum {
    TR_OK = 0,
#define X(name, value, message) TR_E_##name = (value),
    TR_STATUS_MAP(X)
#undef X
};

typedef int tr_status;

/* Longest detail kept, its final NUL included; longer text is cut. */
enum { TR_STATUS_DETAIL_MAX = 512 };

/* "NOMEM" for TR_E_NOMEM, "OK" for TR_OK, "UNKNOWN" for anything else. Static storage. */
TR_API const char *tr_status_name(tr_status status);

/* The table's message. Static storage. */
TR_API const char *tr_status_message(tr_status status);

/* What the last failure in this thread said; "" if nothing. Borrowed: valid until the next failure in this thread. */
TR_API const char *tr_status_detail(void);

/* Forgets this thread's text. */
TR_API void tr_status_clear(void);

/* Sets this thread's text and returns `status`, so that the caller can say `return TR_FAIL(...)`. Allocates nothing. The
 * arguments may include tr_status_detail() itself, to put words before an inner failure. */
TR_API tr_status tr_status_fail(tr_status status, const char *fmt, ...) TR_PRINTF(2, 3) __attribute__((cold));
TR_API tr_status tr_status_vfail(tr_status status, const char *fmt, va_list args) TR_PRINTF(2, 0)
    __attribute__((cold));

#define TR_FAIL(status, ...) tr_status_fail((status), __VA_ARGS__)

/* Evaluates `expr` once; returns its status from the enclosing function unless it is TR_OK. */
#define TR_TRY(expr)                              \
    do {                                          \
        tr_status tr_try_status_ = (expr);        \
        if (TR_UNLIKELY(tr_try_status_ != TR_OK)) \
            return tr_try_status_;                \
    } while (0)

/* Prints the failed condition and its place to standard error and aborts. */
TR_API void tr_check_failed(const char *expr, const char *file, int line, const char *func)
    __attribute__((noreturn, cold));

#define tr_check(expr) (TR_LIKELY(expr) ? (void) 0 : tr_check_failed(#expr, __FILE__, __LINE__, __func__))

#ifdef TR_DEBUG
#define tr_assert(expr) tr_check(expr)
#else
#define tr_assert(expr) ((void) sizeof(!(expr)))
#endif

#ifdef __cplusplus
}
#endif

#endif
