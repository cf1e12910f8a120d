/* tracer.c - starting and stopping, generators, what info() says. */
#include "tracer/dispatch.h"
#include "tracer/trace.h"

#include "terra/alloc.h"
#include "terra/options.h"

#include <stdio.h>
#include <string.h>

static tr_tensor *default_generator;

tr_status tr_tracer_init(const tr_host *host) {
    tr__host = *host;
    TR_TRY(tr_exec_init());
    tr_exec_set_site_text(tr_site_text);
    tr_exec_set_wait_host(&(tr_wait_host){host->release, host->acquire, host->check_signals});
    TR_TRY(tr__trace_init(host));
    return tr_generator_create(67280421310721u, &default_generator); // PyTorch's default seed
}

tr_status tr_tracer_shutdown(void) {
    tr__trace_shutdown();
    return tr_exec_shutdown();
}

/* ------------------------------------------------------------------------------------------------ generators */

tr_tensor *tr_default_generator(void) {
    return default_generator;
}

static const tr_meta *state_meta(void) {
    return tr_meta_get(TR_U8, 1, (int64_t[]){(int64_t) sizeof(tr_generator)}, NULL);
}

tr_status tr_generator_create(uint64_t seed, tr_tensor **out) {
    tr_generator g;
    tr_generator_seed(&g, seed);
    return tr_tensor_from_host(state_meta(), &g, out);
}

/* In order with the draws: a copy into the state, like any other op. */
static tr_status replace_state(tr_tensor *generator, const tr_generator *g) {
    tr_tensor *state = NULL, *same = NULL;
    TR_TRY(tr_tensor_from_host(state_meta(), g, &state));
    tr_status status = tr_apply(TR_OP_copy_, (tr_input[]){tr_in(generator), tr_in(state)}, 2, NULL, NULL, false, &same);
    tr_tensor_release(same);
    tr_tensor_release(state);
    return status;
}

tr_status tr_generator_set_seed(tr_tensor *generator, uint64_t seed) {
    tr_generator g;
    tr_generator_seed(&g, seed);
    return replace_state(generator, &g);
}

tr_status tr_generator_draw64(tr_tensor *generator, uint64_t *out) {
    tr_generator g;
    TR_TRY(tr_tensor_read(generator, &g));
    uint64_t high = tr_generator_word(&g);
    uint64_t low = tr_generator_word(&g);
    TR_TRY(replace_state(generator, &g));
    *out = high << 32 | low;
    return TR_OK;
}

/* ------------------------------------------------------------------------------------------------ info */

char *tr_info(void) {
    char *text = tr_malloc(8192);
    if (!text)
        return NULL;
    size_t at = (size_t) snprintf(text, 8192, "terra %s\nkernels: %s\n%s\n", TR_VERSION, tr_kernel_isa(), tr_exec_placement());
    for (int i = 0; i < TR_OPTION_COUNT && at < 8000; i++) {
        char value[256];
        const tr_option_info *o = tr_option_describe(i);
        tr_option_format(i, value, sizeof value);
        at += (size_t) snprintf(text + at, 8192 - at, "%-20s %-10s %s\n", o->name, value, o->doc);
    }
    return text;
}

tr_status tr_set_executors(int n, int threads) {
    TR_TRY(tr_exec_place(n, threads));
    char text[32];
    snprintf(text, sizeof text, "%d", n);
    TR_TRY(tr_options_set("TERRA_EXECUTORS", text));
    snprintf(text, sizeof text, "%d", threads);
    return tr_options_set("TERRA_THREADS", text);
}
