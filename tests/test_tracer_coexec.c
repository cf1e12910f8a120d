/* test_tracer_coexec.c - random programs: co-execution gives what sync mode gives, bit for bit. (With chains of rows: nearly.) */
#include "random_program.h"

#include <criterion/criterion.h>

static void compare(uint64_t first, uint64_t last, bool rows) {
    setenv("TERRA_ROWS", rows ? "1" : "0", 1); // products of a few rows at a time round otherwise
    RP_OK(tr_tracer_init(&(tr_host){.site = rp_site}));
    for (uint64_t seed = first; seed <= last; seed++) {
        cr_expect(rp_same(seed, 150, !rows), "program %llu", (unsigned long long) seed);
    }
    tr_stats s;
    tr_stats_get(&s);
    cr_expect_gt(s.iterations_coexecuted, 0);
    cr_expect_gt(s.side_exits, 0);
    RP_OK(tr_tracer_shutdown());
}

Test(coexec, programs_1) { compare(1, 12, false); }
Test(coexec, programs_2) { compare(13, 24, false); }
Test(coexec, programs_in_rows) { compare(25, 34, true); }
/* Debug builds deal the instructions out; release builds share what seems worth it. */
Test(coexec, programs_with_two_executors) {
    setenv("TERRA_EXECUTORS", "2", 1);
    setenv("TERRA_THREADS", "1", 1);
    compare(35, 44, false);
}
