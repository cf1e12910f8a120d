/* test_tracer_coexec.c - random programs: co-execution gives what sync mode gives, bit for bit. */
#include "random_program.h"

#include <criterion/criterion.h>

static void compare(uint64_t first, uint64_t last) {
    RP_OK(tr_tracer_init(&(tr_host){.site = rp_site}));
    for (uint64_t seed = first; seed <= last; seed++) {
        rp_run(seed, 150, true); // shapes seen for the first time use other kernels: not compared
        uint64_t want = rp_run(seed, 150, true);
        uint64_t have = rp_run(seed, 150, false);
        cr_expect_eq(want, have, "program %llu", (unsigned long long) seed);
    }
    tr_stats s;
    tr_stats_get(&s);
    cr_expect_gt(s.iterations_coexecuted, 0);
    cr_expect_gt(s.side_exits, 0);
    RP_OK(tr_tracer_shutdown());
}

Test(coexec, programs_1) { compare(1, 12); }
Test(coexec, programs_2) { compare(13, 24); }
