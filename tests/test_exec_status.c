#include "terra/status.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <string.h>

Test(status, names_and_messages) {
    cr_assert_str_eq(tr_status_name(TR_E_SHAPE), "SHAPE");
    cr_assert_str_eq(tr_status_name(TR_OK), "OK");
    cr_assert_str_eq(tr_status_name(-9999), "UNKNOWN");
    cr_assert_str_eq(tr_status_message(TR_E_NOMEM), "out of memory");
}

#define X(name, value, message) TR_E_##name,
static const int codes[] = {TR_STATUS_MAP(X)};
#undef X

Test(status, codes_are_negative_and_differ) {
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        cr_assert_lt(codes[i], 0);
        for (size_t k = 0; k < i; k++)
            cr_assert_neq(codes[i], codes[k]);
    }
}

static tr_status inner(void) {
    return TR_FAIL(TR_E_SHAPE, "inner sizes %d and %d differ", 3, 4);
}

static tr_status outer(int *reached) {
    TR_TRY(inner());
    *reached = 1;
    return TR_OK;
}

Test(status, try_returns_at_the_failure) {
    int reached = 0;
    cr_assert_eq(outer(&reached), TR_E_SHAPE);
    cr_assert_eq(reached, 0);
    cr_assert_str_eq(tr_status_detail(), "inner sizes 3 and 4 differ");
    tr_status_clear();
    cr_assert_str_eq(tr_status_detail(), "");
}

Test(status, detail_may_be_wrapped_and_is_cut) {
    (void) inner();
    cr_assert_eq(TR_FAIL(TR_E_SHAPE, "matmul: %s", tr_status_detail()), TR_E_SHAPE);
    cr_assert_str_eq(tr_status_detail(), "matmul: inner sizes 3 and 4 differ");

    char longer[2 * TR_STATUS_DETAIL_MAX];
    memset(longer, 'x', sizeof longer);
    longer[sizeof longer - 1] = '\0';
    (void) TR_FAIL(TR_E_VALUE, "%s", longer);
    cr_assert_eq(strlen(tr_status_detail()), TR_STATUS_DETAIL_MAX - 1);
}

static void *fails_elsewhere(void *arg) {
    (void) arg;
    (void) TR_FAIL(TR_E_IO, "elsewhere");
    return NULL;
}

Test(status, detail_belongs_to_its_thread) {
    (void) inner();
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, fails_elsewhere, NULL), 0);
    pthread_join(thread, NULL);
    cr_assert_str_eq(tr_status_detail(), "inner sizes 3 and 4 differ");
}
