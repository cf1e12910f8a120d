/* Plans against program order: hand-made paths, then random ones through the simulator. */
#include "graph_sim.h"

#include "exec/runner.h"

Test(plan, empty_path) {
    builder b;
    builder_init(&b);
    tr_plan *plan = builder_compile(&b);
    cr_assert_eq(plan->n_instrs, 0);
    tr_plan_destroy(plan);
}

static void make_and_destroy(uint64_t seed) {
    builder b;
    random_path(&b, seed, 100);
    tr_plan_destroy(builder_compile(&b));
}

Test(plan, frees_all_that_it_took) {
    make_and_destroy(5); // interns the looks
    int64_t before = tr_alloc_live();
    make_and_destroy(5);
    cr_assert_eq(tr_alloc_live(), before);
}

Test(plan, slots_are_reused_behind_deaths_only) {
    builder b;
    builder_init(&b);
    const tr_meta *m = shape(TR_F32, 2, 64, 64);
    tr_ref x = external(&b), v[4];
    v[0] = product(&b, on(x, m), on(x, m), m);
    v[1] = product(&b, on(x, m), on(v[0], m), m); // as the second operand: no chain of rows
    kill(&b, v[0]); // dies when 2 ops are validated: op 2 is ready at 3
    v[2] = product(&b, on(x, m), on(v[1], m), m);
    v[3] = product(&b, on(x, m), on(v[2], m), m);
    kill(&b, v[1]);
    kill(&b, v[2]);
    tr_plan *plan = builder_compile(&b);
    cr_assert_eq(plan->slot[v[2]], plan->slot[v[0]]);
    cr_assert_eq(plan->carry[v[3]], 1);
    cr_assert_eq(plan->slab_bytes, 2 * 64 * 64 * 4);
    for (uint32_t i = 0; i < 4; i++)
        cr_assert_eq(plan->instrs[i].ready, i + 1);
    tr_plan_destroy(plan);
}

Test(plan, verifier_sees_what_is_wrong) {
    builder b;
    random_path(&b, 3, 60);
    tr_plan *plan = builder_compile(&b);
    uint32_t n = plan->n_instrs;
    plan->instrs[n - 1].ready = 1;
    cr_assert_eq(tr_plan_verify(plan), TR_E_INTERNAL);
    plan->instrs[n - 1].ready = plan->path->n_ops + 1;
    cr_assert_eq(tr_plan_verify(plan), TR_OK);
    for (uint32_t v = 0; v < plan->path->n_values; v++) {
        int64_t slot = plan->slot[v];
        if (slot == TR_SLOT_ELIDED)
            continue;
        uint32_t death = plan->path->death[v];
        plan->path->death[v] = plan->path->n_ops + 5;
        plan->slot[v] = TR_SLOT_ELIDED;
        cr_assert_eq(tr_plan_verify(plan), TR_E_INTERNAL, "value %u", v);
        plan->slot[v] = slot;
        plan->path->death[v] = death;
    }
    cr_assert_eq(tr_plan_verify(plan), TR_OK);
    tr_plan_destroy(plan);
}

static void text_says(builder *b, const char *what) {
    tr_plan *plan = builder_compile(b);
    char *text = tr_plan_text(plan, NULL);
    cr_assert_not_null(strstr(text, what), "%s", text);
    tr_free(text);
    tr_plan_destroy(plan);
}

Test(plan, text_says_what_is_computed_and_moved) {
    builder b;
    builder_init(&b);
    const tr_meta *x = shape(TR_F32, 2, 2, 3), *y = shape(TR_F32, 2, 3, 4), *z = shape(TR_F32, 2, 2, 4);
    add_op(&b, TR_OP_mm, TR_F32, 2, (tr_path_operand[]){on(external(&b), x), on(external(&b), y)}, 1, &z, false);
    text_says(&b, "mm[2, 4] @0  0.048 kFLOP, 0.104 kB"); // 2 * 24 operations on 6, 12 and 8 elements
    builder_init(&b);
    add_op(&b, TR_OP_mm, TR_BF16, 2, (tr_path_operand[]){on(external(&b), x), on(external(&b), y)}, 1, &z, false);
    text_says(&b, "mm[2, 4] @0  0.048 kFLOP, 0.048 of them bf16, 0.104 kB"); // float32, told to multiply bfloat16
    builder_init(&b);
    const tr_meta *table = shape(TR_F32, 2, 100, 4), *ids = shape(TR_I64, 1, 5), *rows = shape(TR_F32, 2, 5, 4);
    add_op(&b, TR_OP_embedding, TR_F32, 2, (tr_path_operand[]){on(external(&b), table), on(external(&b), ids)}, 1, &rows, false);
    text_says(&b, "embedding[5, 4] @0  0 kFLOP, 0.2 kB"); // of the table, 5 rows
    builder_init(&b);
    const tr_meta *images = shape(TR_F32, 4, 2, 3, 8, 8), *filters = shape(TR_F32, 4, 5, 3, 3, 3), *out = shape(TR_F32, 4, 2, 5, 6, 6);
    add_op(&b, TR_OP_conv2d, TR_F32, 3, (tr_path_operand[]){on(external(&b), images), on(external(&b), filters), absent()}, 1, &out,
           false);
    memcpy(b.path.attrs + b.path.ops[0].attr, (int64_t[]){1, 1, 0, 0, 1, 1, 1}, 7 * sizeof(int64_t));
    text_says(&b, "conv2d[2, 5, 6, 6] @0  19.44 kFLOP, 3.516 kB"); // 2 * 27 operations for each of 360 pixels
}

Test(plan, dumps) {
    builder b;
    random_path(&b, 4, 80);
    tr_plan *plan = builder_compile(&b);
    char *text = tr_plan_text(plan, NULL), *dot = tr_plan_graphviz(plan, NULL);
    cr_assert_not_null(strstr(text, "80 ops in"));
    cr_assert_not_null(strstr(dot, "digraph plan"));
    tr_free(text);
    tr_free(dot);
    tr_plan_destroy(plan);
}

Test(plan, every_allocation_may_fail) {
    builder b;
    random_path(&b, 9, 120);
    tr_path *path = builder_path(&b);
    for (int64_t n = 1;; n++) {
        tr_plan *plan = NULL;
        tr_fail_alloc_set(n);
        tr_status status = tr_graph_compile(path, &plan);
        bool reached = tr_fail_alloc_left() == 0;
        tr_fail_alloc_set(0);
        if (!reached) {
            cr_assert_eq(status, TR_OK);
            tr_plan_destroy(plan);
            break;
        }
        cr_assert_eq(status, TR_E_NOMEM);
    }
}

static void random_plans(uint64_t from, uint64_t to, uint32_t n_ops, uint32_t stride) {
    for (uint64_t seed = from; seed < to; seed++) {
        builder b;
        random_path(&b, seed, n_ops + (uint32_t) (seed % 7));
        tr_plan *plan = builder_compile(&b);
        dice d = {seed + 17};
        bool good = simulate(plan, &d, stride);
        if (!good) {
            char *text = tr_plan_text(plan, NULL);
            cr_log_error("seed %llu\n%s", (unsigned long long) seed, text);
            tr_free(text);
        }
        cr_assert(good);
        tr_plan_destroy(plan);
    }
}

Test(plan, random_short, .timeout = 120) {
    random_plans(1, 1500, 12, 1);
}
/* With several executors, any order will do that keeps to what plans say must have run before. */
Test(plan, random_in_any_order, .timeout = 120) {
    tr__crew_size = 2;
    random_plans(9000, 9400, 12, 1);
    random_plans(9400, 9500, 60, 3);
    images = true;
    random_plans(9500, 9600, 20, 1);
}
Test(plan, random_images, .timeout = 120) {
    images = true;
    random_plans(1, 600, 20, 1);
    random_plans(5000, 5100, 80, 1);
}
Test(plan, random_middling, .timeout = 120) {
    random_plans(5000, 5300, 60, 1);
}
Test(plan, random_long, .timeout = 120) {
    random_plans(7000, 7020, 400, 37);
}
