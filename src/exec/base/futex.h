/* futex.h - the two futex calls that event.c and future.c are built from. Linux only. */
#ifndef TR_EXEC_BASE_FUTEX_H
#define TR_EXEC_BASE_FUTEX_H

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "terra/event.h"

enum { TR_NS_PER_S = 1000000000 };

/* Sleeps while *word == expected, until the absolute time deadline_ns on the monotonic clock (TR_FOREVER: no end).
 * Returns 0 when woken, or because *word differed, or spuriously; TR_E_TIMEOUT; TR_E_INTERRUPT. */
static inline tr_status tr__futex_wait(_Atomic uint32_t *word, uint32_t expected, int64_t deadline_ns) {
    struct timespec deadline = {.tv_sec = deadline_ns / TR_NS_PER_S, .tv_nsec = deadline_ns % TR_NS_PER_S};
    long rc = syscall(SYS_futex, word, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, expected,
                      deadline_ns == TR_FOREVER ? NULL : &deadline, NULL, FUTEX_BITSET_MATCH_ANY);
    if (rc == 0 || errno == EAGAIN)
        return TR_OK;
    return errno == ETIMEDOUT ? TR_E_TIMEOUT : errno == EINTR ? TR_E_INTERRUPT : TR_OK;
}

/* Wakes everybody who sleeps on the word. Uses only its address: it may be gone already. */
static inline void tr__futex_wake_all(_Atomic uint32_t *word) {
    syscall(SYS_futex, word, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, INT_MAX, NULL, NULL, 0);
}

/* In a spin loop, with the time just read: whoever is waited for may be waiting for this very core (say while a library's threads
 * spin on another), and would get it only once we sleep. *next_ns: when to step aside again; 0 at first. Returns whether it was so
 * long that, unless what is waited for has come, a stranger has had the core: then tr__was_stranger, and none is taken for a while. */
bool tr__step_aside(int64_t *next_ns, int64_t now_ns);
void tr__was_stranger(void);

/* now + timeout, kept below TR_FOREVER. */
static inline int64_t tr__deadline(int64_t now_ns, int64_t timeout_ns) {
    return timeout_ns >= TR_FOREVER - now_ns ? TR_FOREVER : now_ns + timeout_ns;
}

#endif
