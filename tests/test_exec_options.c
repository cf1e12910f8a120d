#include "terra/options.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "terra/alloc.h"

Test(options, defaults) {
    const tr_options *options = tr_options_get();
    cr_assert_eq(options->sync, false);
    cr_assert_eq(options->pin, -1);
    cr_assert_null(options->dump);
}

Test(options, the_environment_is_read) {
    setenv("TERRA_SYNC", "yes", 1);
    setenv("TERRA_THREADS", "3", 1);
    setenv("TERRA_DUMP", "/tmp/x", 1);
    cr_assert_eq(tr_options_load(), TR_OK);
    setenv("TERRA_DUMP", "/tmp/y", 1);
    cr_assert_eq(tr_options_get()->sync, true);
    cr_assert_eq(tr_options_get()->threads, 3);
    cr_assert_str_eq(tr_options_get()->dump, "/tmp/x");
}

Test(options, nonsense_is_named_and_the_rest_still_read) {
    setenv("TERRA_EXECUTORS", "two", 1);
    setenv("TERRA_SYNC", "1", 1);
    cr_assert_eq(tr_options_load(), TR_E_VALUE);
    cr_assert_not_null(strstr(tr_status_detail(), "TERRA_EXECUTORS=two"));
    cr_assert_eq(tr_options_get()->executors, 0);
    cr_assert_eq(tr_options_get()->sync, true);
}

Test(options, set_by_name) {
    cr_assert_eq(tr_options_set("TERRA_NONE", "1"), TR_E_KEY);
    cr_assert_eq(tr_options_set("TERRA_SYNC", "maybe"), TR_E_VALUE);
    cr_assert_eq(tr_options_set("TERRA_SPIN_US", "7"), TR_OK);
    cr_assert_eq(tr_options_get()->spin_us, 7);
}

Test(options, every_row_describes_itself) {
    for (int i = 0; i < TR_OPTION_COUNT; i++) {
        char text[64];
        tr_option_format(i, text, sizeof text);
        cr_assert_eq(strncmp(tr_option_describe(i)->name, "TERRA_", 6), 0);
        cr_assert_gt(strlen(tr_option_describe(i)->doc), 10);
    }
}

Test(options, fault_injection_is_armed) {
    setenv("TERRA_FAIL_ALLOC", "2", 1);
    cr_assert_eq(tr_options_load(), TR_OK);
    cr_assert_eq(tr_fail_alloc_left(), 2);
}
