/* compile.c - from a path to a plan: the passes in order, each verified where asked, and who frees what. */
#include "graph/pass.h"

#include "terra/alloc.h"
#include "terra/event.h"
#include "terra/exec.h"
#include "terra/options.h"
#include "terra/timeline.h"


void tr_path_destroy(tr_path *path) {
    if (!path)
        return;
    tr_free(path->ops);
    tr_free(path->operands);
    tr_free(path->attrs);
    tr_free(path->args);
    tr_free(path->death);
    tr_free(path->deaths);
    tr_free(path->value_bytes);
    tr_free(path->fetched);
    tr_free(path);
}

/* All but the path and what else it was given. */
static void free_plan(tr_plan *plan) {
    for (uint32_t i = 0; plan->instrs && i < plan->n_instrs; i++) {
        tr_free(plan->instrs[i].program);
        tr_free(plan->instrs[i].args);
        tr__rows_free(plan->instrs[i].rows);
    }
    tr_free(plan->instrs);
    tr_free(plan->covered);
    tr_free(plan->instr_of);
    tr_free(plan->slot);
    tr_free(plan->carry);
    tr_free(plan->before_at);
    tr_free(plan->before);
    tr_free(plan->guess);
    tr_free(plan->ns);
    tr_free(plan);
}

void tr_plan_destroy(tr_plan *plan) {
    if (!plan)
        return;
    tr_path_destroy((tr_path *) plan->path);
    tr_free(plan->looks);
    tr_free(plan->relaid);
    tr_free(plan->metas);
    tr_free(plan->homes);
    tr_free(plan->copy_of);
    for (uint32_t i = 0; i < plan->n_partitions; i++)
        tr_dnn_partition_destroy(plan->partitions[i]);
    tr_free(plan->partitions);
    free_plan(plan);
}

static tr_status lower(tr__graph *g, tr_plan **out) {
    tr_plan *plan = tr_calloc(1, sizeof *plan);
    if (!plan)
        return TR_FAIL(TR_E_NOMEM, "no memory for a plan");
    plan->path = g->original;
    plan->executors = g->executors;
    plan->looks = g->relaid.looks;
    plan->relaid = g->relaid.value;
    plan->metas = g->relaid.metas;
    plan->homes = g->homes;
    plan->copy_of = g->copy_of;
    tr_status status = tr__lower(g, plan);
    if (status == TR_OK)
        status = tr__plan_memory(plan);
    if (status != TR_OK) {
        free_plan(plan);
        return status;
    }
    *out = plan;
    return TR_OK;
}

/* Lowers what there is after a pass and looks at it: the pass that broke a rule is the one named. */
static tr_status verify_after(tr__graph *g, const char *pass) {
    tr_plan *plan = NULL;
    TR_TRY(lower(g, &plan));
    tr_status status = tr_plan_verify(plan);
    free_plan(plan);
    return status == TR_OK ? TR_OK : TR_FAIL(status, "after pass %s: %s", pass, tr_status_detail());
}

static const struct {
    const char *name;
    tr_status (*run)(tr__graph *g);
} passes[] = {
    {"layout", tr__pass_layout},
    {"home", tr__pass_home},
    {"dead", tr__pass_dead},
    {"norm", tr__pass_norm},
    {"partition", tr__pass_partition},
    {"narrow", tr__pass_narrow},
    {"multi", tr__pass_multi},
    {"elementwise", tr__pass_elementwise},
    {"rows", tr__pass_rows},
};

static tr_status run_passes(tr__graph *g, const tr_path *path, tr_plan **out) {
    bool verify = tr_options_get()->verify;
    TR_TRY(tr__analyze(g, path));
    for (size_t i = 0; i < sizeof passes / sizeof *passes; i++) {
        TR_TRY(passes[i].run(g));
        if (verify)
            TR_TRY(verify_after(g, passes[i].name));
    }
    tr_plan *plan = NULL;
    TR_TRY(lower(g, &plan));
    tr_status status = verify ? tr_plan_verify(plan) : TR_OK;
    if (status == TR_OK && g->executors > 1)
        status = tr__depend(g, plan);
    if (status != TR_OK) {
        free_plan(plan);
        return status;
    }
    *out = plan;
    return TR_OK;
}

tr_status tr_graph_compile(tr_path *path, tr_plan **out) {
    int64_t start = tr_now_ns();
    tr__graph g = {.original = path, .executors = tr_exec_executors()};
    tr_plan *plan = NULL;
    tr_status status = run_passes(&g, path, &plan);
    tr__pool_fini(&g.pool);
    if (status != TR_OK) {
        tr_free(g.relaid.looks);
        tr_free(g.relaid.value);
        tr_free(g.relaid.metas);
        tr_free(g.homes);
        tr_free(g.copy_of);
        for (uint32_t i = 0; i < g.partitions.n; i++)
            tr_dnn_partition_destroy(g.partitions.item[i]);
        tr_free(g.partitions.item);
        return status;
    }
    plan->partitions = g.partitions.item;
    plan->n_partitions = g.partitions.n;
    int64_t end = tr_now_ns();
    plan->compile_ns = end - start;
    if (TR_UNLIKELY(tr_timeline_on))
        tr_timeline_add(TR_TRACK_COMPILER, "compiles a path", NULL, path->n_ops, 0, 0, start, end);
    *out = plan;
    return TR_OK;
}
