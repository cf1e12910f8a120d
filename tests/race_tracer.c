/* race_tracer.c - the whole of Terra's C side under ThreadSanitizer: random programs, traced, compiled on the compile thread
 * and co-executed, by one executor and by two, against the same programs in sync mode. One OpenMP thread each: libgomp is not
 * instrumented. */
#include "random_program.h"

#include "terra/options.h"

int main(void) {
    setenv("TERRA_THREADS", "1", 1);
    RP_OK(tr_tracer_init(&(tr_host){.site = rp_site}));
    int wrong = 0;
    for (uint64_t seed = 1; seed <= 6; seed++) {
        if (seed == 4)
            RP_OK(tr_set_executors(2, 1));
        if (!rp_same(seed, 120, false)) {
            fprintf(stderr, "program %llu: co-execution differs from sync mode\n", (unsigned long long) seed);
            wrong++;
        }
    }
    tr_stats s;
    tr_stats_get(&s);
    printf("%lld iterations traced, %lld co-executed, %lld side exits, %lld of %lld ops from plans\n",
           (long long) s.iterations_traced, (long long) s.iterations_coexecuted, (long long) s.side_exits,
           (long long) s.ops_from_plans, (long long) s.ops);
    printf("%lld of %lld instructions by the second executor\n", (long long) s.instructions_shared, (long long) s.instructions);
    if (s.iterations_coexecuted == 0 || (s.executors > 1 && s.instructions_shared == 0))
        wrong++;
    RP_OK(tr_tracer_shutdown());
    return wrong != 0;
}
