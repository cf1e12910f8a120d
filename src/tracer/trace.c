/* trace.c - where an op goes: recorded and sent by itself (tracing, tier 0), or compared with the next node of the predicted
 * path (the skeleton), which then only moves the cursor.
 *
 * An iteration lies between two marks. When its first op comes, the graph of the mark before it predicts a path; if that has
 * a plan, an activation of it begins. As long as op after op equals the path's, nothing is sent. The first that differs, a
 * value that outlives the death that the path knows, or a mark too early: the path is left (a side exit). What was validated
 * until then will have run exactly so; the rest of the iteration is recorded and sent op by op. */
#include "tracer/clock.h"
#include "tracer/dispatch.h"
#include "tracer/path.h"
#include "tracer/trace.h"

#include "terra/alloc.h"
#include "terra/event.h"
#include "terra/graph.h"
#include "terra/options.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

enum { MIN_MARK_OPS = 8, AUTO_MARK_OPS = 4096, COMPILE_AFTER = 2, FIRST_PATHS = 3, MAX_COMPILES = 20, COMPILE_HERE_OPS = 64,
       PUBLISH_AFTER = 16 };

static struct {
    uint32_t epoch;            /* of the iteration; storages that carry it are known to its trace */
    uint32_t ended;            /* the latest epoch that ended with its plan: the executor may still be running it */
    bool open;                 /* the iteration has had an op */
    bool explicit_marks;       /* the program marks its iterations itself */
    pthread_t owner;
    bool owned;
    tr_graph *graph;
    tr_recorder recorder;      /* the trace, while no path is followed */
    tr_known *known;           /* the path being followed */
    tr_known *predicted;       /* the path expected of this iteration, whether or not it can be followed; NULL: none */
    tr_known *guess;           /* predicted, but never seen; until the iteration ends */
    const tr_known *latest;    /* the path of the iteration before; NULL: unknown */
    tr_activation *act;
    uint32_t cursor, n_values, n_externals;
    uint32_t published;        /* the cursor that the executor sees */
    uint32_t next_instr, next_ready; /* the plan's first instruction that the cursor has not made ready, and where it will be */
    uint32_t since_mark;       /* ops since the last mark, in pieces that cuts ended */
    uint32_t site, location;   /* of the last op that was not followed */
    bool off, sync;            /* co-execution switched off; TERRA_SYNC */
    uint32_t other_marks;      /* marks so far that are not backward()'s */
    bool broken;               /* no memory for the trace: this iteration teaches nothing */
    bool marked;               /* a real mark has been seen */
    int64_t exits_before;      /* stats.side_exits when the last iteration ended */
    uint64_t cut_next;         /* the next op begins a piece of its own: its graph's key */
    uint32_t (*host_site)(void);
} tr = {.epoch = 1};

static tr_stats stats;
static struct {
    char text[200];
    uint32_t site;
    int64_t count;
} exits[32];
static int n_exits;

uint32_t tr__forward_site;

/* Where in the program this call is: cheap enough at tier 0 and at the end of a piece, not for every op. */
static uint32_t location_of(tr_op op) {
    tr.site = tr.host_site ? tr.host_site() : 0;
    return (tr.site + tr__forward_site * 0x9e3779b1u) * 251 + (uint32_t) op;
}

static uint64_t cut_key(uint32_t location) {
    return (uint64_t) location << 8 | 3;
}

uint32_t tr__last_site(void) {
    return tr.site;
}

/* ------------------------------------------------------------------------------------------------ compiling */

typedef struct job {
    tr_known *known;
    uint32_t changes; /* known->changes when `path` was copied */
    tr_path *path;
    tr_plan *plan;
    tr_status status;
    char text[200];
    struct job *next;
} job;

static pthread_mutex_t job_lock = PTHREAD_MUTEX_INITIALIZER; /* guards todo, done, stopping, compiler_runs */
static pthread_cond_t job_wake = PTHREAD_COND_INITIALIZER, job_idle = PTHREAD_COND_INITIALIZER;
static job *todo, *done;
static bool stopping, compiler_runs, compiler_busy;
static pthread_t compiler;
static _Atomic bool any_done; /* a hint that spares Python the lock */

/* Any thread: pure functions of the job's copy of the path. */
static void compile(job *j) {
    j->status = tr_graph_compile(j->path, &j->plan);
    if (j->status != TR_OK) {
        snprintf(j->text, sizeof j->text, "%s", tr_status_detail());
        tr_status_clear();
        tr_path_destroy(j->path);
    }
}

static void *compiler_main(void *arg) {
    pthread_mutex_lock(&job_lock);
    for (;;) {
        while (!todo && !stopping)
            pthread_cond_wait(&job_wake, &job_lock);
        if (stopping)
            break;
        job *j = todo;
        todo = j->next;
        compiler_busy = true;
        pthread_mutex_unlock(&job_lock);
        compile(j);
        pthread_mutex_lock(&job_lock);
        compiler_busy = false;
        j->next = done;
        done = j;
        // Relaxed: only a hint; the list itself is read under the lock.
        atomic_store_explicit(&any_done, true, memory_order_relaxed);
        pthread_cond_broadcast(&job_idle);
    }
    pthread_mutex_unlock(&job_lock);
    return NULL;
}

static tr_plan *dropped; /* replaced by newer ones; the executor may still be running them */

/* Destroys those that the executor is done with. */
static void reap_plans(void) {
    for (tr_plan **at = &dropped; *at;) {
        tr_plan *plan = *at;
        if (!tr_exec_drop_plan(plan)) {
            at = &plan->next;
            continue;
        }
        *at = plan->next;
        tr_plan_destroy(plan);
    }
}

static void drop_plan(tr_known *k) {
    if (!k->plan)
        return;
    k->plan->next = dropped;
    dropped = k->plan;
    k->plan = NULL;
    reap_plans();
}

static void write_file(const char *folder, uint32_t plan, const char *ending, char *text) {
    char path[512];
    snprintf(path, sizeof path, "%s/plan-%u.%s", folder, plan, ending);
    FILE *f = text ? fopen(path, "w") : NULL;
    if (!f || fputs(text, f) < 0)
        fprintf(stderr, "terra: can't write %s (TERRA_DUMP)\n", path);
    if (f)
        fclose(f);
    tr_free(text);
}

static void dump(const tr_plan *plan) {
    const char *folder = tr_options_get()->dump;
    if (!folder)
        return;
    write_file(folder, plan->id, "txt", tr_plan_text(plan, tr_site_text));
    write_file(folder, plan->id, "dot", tr_plan_graphviz(plan, tr_site_text));
}

/* Takes j. Not while a path is followed. */
static void adopt(job *j) {
    tr_known *k = j->known;
    k->compiling = false;
    if (j->status == TR_OK) {
        static uint32_t next_plan = 1;
        drop_plan(k);
        k->plan = j->plan;
        k->planned_for = j->changes;
        k->plan->id = next_plan++;
        dump(k->plan);
        stats.plans++;
        stats.compile_ns += j->plan->compile_ns;
    } else {
        fprintf(stderr, "terra: a path of %u ops could not be compiled and runs op by op: %s\n", k->path->n_ops, j->text);
        k->compiles = MAX_COMPILES;
    }
    tr_free(j);
}

/* Adopts what the compile thread has finished. */
static void adopt_plans(void) {
    if (!atomic_load_explicit(&any_done, memory_order_relaxed))
        return;
    pthread_mutex_lock(&job_lock);
    job *list = done;
    done = NULL;
    atomic_store_explicit(&any_done, false, memory_order_relaxed);
    pthread_mutex_unlock(&job_lock);
    while (list) {
        job *j = list;
        list = j->next;
        adopt(j);
    }
}

static void queue_job(job *j) {
    pthread_mutex_lock(&job_lock);
    job **at = &todo;
    while (*at)
        at = &(*at)->next;
    *at = j;
    if (!compiler_runs) {
        compiler_runs = pthread_create(&compiler, NULL, compiler_main, NULL) == 0;
    }
    pthread_cond_signal(&job_wake);
    pthread_mutex_unlock(&job_lock);
}

/* A piece between cuts compiles in some tens of microseconds, about what waking a thread takes: it is done here, once, so that
 * the piece is followed from its second time on, however busy the machine is. Whole iterations go to the compile thread. */
static bool is_compiled_here(const tr_known *k) {
    return k == tr.guess || ((k->cut || k->graph->is_piece) && k->path->n_ops <= COMPILE_HERE_OPS);
}

static void request_plan(tr_known *k) {
    if (k->compiling || k->compiles >= MAX_COMPILES)
        return;
    job *j = tr_calloc(1, sizeof *j);
    tr_path *path = j ? tr__path_copy(k->path) : NULL;
    if (!path) {
        tr_free(j);
        return; // it stays at tier 0
    }
    *j = (job){.known = k, .path = path, .changes = k->changes};
    k->compiling = true;
    k->compiles++;
    k->improvable = false;
    if (is_compiled_here(k)) {
        compile(j);
        adopt(j);
    } else
        queue_job(j);
}

static void stop_compiler(void) {
    pthread_mutex_lock(&job_lock);
    bool runs = compiler_runs;
    stopping = true;
    pthread_cond_signal(&job_wake);
    pthread_mutex_unlock(&job_lock);
    if (runs)
        pthread_join(compiler, NULL);
    compiler_runs = stopping = false;
}

/* ------------------------------------------------------------------------------------------------ values */

static bool in_trace(const tr_storage *s) {
    return s->epoch == tr.epoch;
}

/* A storage that the trace meets for the first time. */
static tr_ref name(tr_storage *s, uint32_t *n_externals) {
    s->epoch = tr.epoch;
    s->ref = TR_REF_EXTERNAL | (*n_externals)++;
    s->last_write = 0;
    return s->ref;
}

/* The trace's name of a storage. */
static tr_ref ref_of(tr_storage *s, uint32_t *n_externals) {
    return in_trace(s) ? s->ref : name(s, n_externals);
}

/* Shows the executor the cursor. */
static void publish(void) {
    if (tr.published == tr.cursor)
        return;
    tr.published = tr.cursor;
    tr_exec_advance(tr.act, tr.cursor);
}

uint32_t tr__need_of(const tr_storage *s) {
    if (!tr.act)
        return s && s->epoch == tr.ended ? s->last_write : 0;
    publish();
    if (!s)
        return tr.cursor;
    return in_trace(s) ? s->last_write : 0;
}

void tr__note_fetch(tr_storage *s) {
    stats.fetches++;
    if (!in_trace(s) || !tr_ref_is_value(s->ref))
        return;
    if (!tr.act) {
        if (s->ref < tr.recorder.path.n_values)
            tr.recorder.path.fetched[s->ref] = 1;
    } else if (!tr.known->path->fetched[s->ref]) {
        tr.known->path->fetched[s->ref] = 1;
        tr.known->improvable = true;
    }
}

void tr__note_death(tr_storage *s) {
    if (!in_trace(s) || !tr_ref_is_value(s->ref))
        return;
    if (tr.act)
        tr.act->storage_of[s->ref] = NULL;
    else if (s->ref < tr.recorder.path.n_values && tr.open)
        tr.recorder.path.death[s->ref] = tr.recorder.path.n_ops;
}

/* ------------------------------------------------------------------------------------------------ leaving */

static void note_exit(const char *why, uint32_t site) {
    for (int i = 0; i < n_exits; i++)
        if (exits[i].site == site && strcmp(exits[i].text, why) == 0) {
            exits[i].count++;
            return;
        }
    if (n_exits < (int) (sizeof exits / sizeof *exits)) {
        snprintf(exits[n_exits].text, sizeof exits[n_exits].text, "%s", why);
        exits[n_exits].site = site;
        exits[n_exits++].count = 1;
    }
}

/* From now on the executor frees these structs: it knows them through storage_of. */
static void mark_survivors_sent(void) {
    for (uint32_t v = 0; v < tr.n_values; v++)
        if (tr.act->storage_of[v])
            tr.act->storage_of[v]->sent = true;
}

/* Values alive now died later than the path knows, or never: forget their deaths in the trace. */
static void revive(tr_path *trace) {
    for (uint32_t v = 0; v < tr.n_values; v++)
        if (tr.act->storage_of[v])
            trace->death[v] = TR_DEATH_NEVER;
        else if (trace->death[v] > tr.cursor)
            trace->death[v] = tr.cursor;
}

static tr_status leave(const char *why) {
    tr_activation *act = tr.act;
    tr_known *k = tr.known;
    tr_status status = tr__recorder_prefix(&tr.recorder, k->path, tr.cursor, tr.n_values, tr.n_externals, act->args);
    if (status == TR_OK)
        revive(&tr.recorder.path);
    mark_survivors_sent();
    publish();
    TR_TRY(tr_exec_exit(act));
    stats.side_exits++;
    stats.ops_from_plans += tr.cursor;
    k->left++;
    note_exit(why, tr.host_site ? tr.host_site() : 0);
    tr.act = NULL;
    tr.known = NULL;
    if (status != TR_OK)
        tr.broken = true; // the trace of this iteration is lost, not its ops
    return TR_OK;
}

tr_status tr__trace_leave(const char *why) {
    return tr.act ? leave(why) : TR_OK;
}

void tr__note_error(void) {
    if (tr.act)
        leave("an error was raised");
}

/* ------------------------------------------------------------------------------------------------ following */

typedef enum match { MATCH, DIFFERS, OUTLIVED } match;

/* Does the call equal the op? With an activation, its run-time arguments and the storages that the path names here first are
 * written to it on the way: nobody reads them before the cursor publishes them, and if the path is left here nobody ever does. */
static inline bool is_same(const tr_issue *c, const tr_path *path, const tr_path_op *op, tr_activation *act,
                           uint32_t *n_externals) {
    int64_t *args = act ? act->args + op->operand : NULL;
    if (op->op != c->op || op->n_in != c->n_in || op->in_place != c->in_place)
        return false;
    for (int i = 0; i < op->n_attrs; i++)
        if (c->attrs[i] != path->attrs[op->attr + (uint32_t) i])
            return false;
    const tr_path_operand *want = path->operands + op->operand;
    for (int i = 0; i < c->n_in; i++) {
        const tr_operand *o = &c->in[i];
        tr_storage *s = o->storage;
        if (s && !in_trace(s)) {
            tr_ref ref = name(s, n_externals);
            if (act && ref == want[i].ref) {
                act->external[tr_ref_slot(ref)] = s;
                s->sent = true; // the executor will look at it: only it may let go of it
            }
        }
        if (o->meta != want[i].meta || (s ? s->ref : TR_REF_NONE) != want[i].ref)
            return false;
        if (args && args[i] != o->at.i) // mostly what it was: the line stays in the executor's cache, too
            args[i] = o->at.i;
    }
    if (c->cdtype != op->cdtype && c->cdtype != TR_DTYPE_COUNT)
        return false;
    return !c->given || c->given == want[op->n_in].meta;
}

static bool is_outlived(const tr_path *path, const tr_path_op *op) {
    for (uint32_t i = 0; i < op->n_die; i++)
        if (tr.act->storage_of[path->deaths[op->die + i]])
            return true;
    return false;
}

static match compare(const tr_issue *c, const tr_path *path, uint32_t *n_externals) {
    if (tr.cursor == path->n_ops)
        return DIFFERS;
    const tr_path_op *op = &path->ops[tr.cursor];
    if (!is_same(c, path, op, tr.act, n_externals))
        return DIFFERS;
    return op->n_die && is_outlived(path, op) ? OUTLIVED : MATCH;
}

/* Undoes the naming of externals by a comparison that failed. */
static void unname(const tr_issue *c, uint32_t n_externals) {
    for (int i = 0; i < c->n_in; i++) {
        tr_storage *s = c->in[i].storage;
        if (s && in_trace(s) && tr_ref_is_external(s->ref) && tr_ref_slot(s->ref) >= n_externals)
            s->epoch = 0;
    }
}

static void note_writes(const tr_issue *c, uint32_t index) {
    for (unsigned left = c->written; left; left &= left - 1) {
        tr_storage *s = c->in[__builtin_ctz(left)].storage;
        if (s)
            s->last_write = index + 1;
    }
}

/* Moves the cursor. The executor is shown it, and woken, where that makes an instruction ready: it waits for nothing else of an
 * activation, and each look that it has had at the cursor makes the next write to it dear. In between it is shown now and then, for
 * a Python that goes away for long (starvation). */
static void advance(void) {
    const tr_plan *plan = tr.act->plan;
    if (++tr.cursor < tr.next_ready) {
        if (tr.cursor - tr.published >= PUBLISH_AFTER)
            publish();
        return;
    }
    publish();
    while (tr.next_instr < plan->n_instrs && plan->instrs[tr.next_instr].ready <= tr.cursor)
        tr.next_instr++;
    tr.next_ready = tr.next_instr < plan->n_instrs ? plan->instrs[tr.next_instr].ready : UINT32_MAX;
    tr_exec_notify();
}

/* The op equals the next node: gives its results and moves the cursor. */
static tr_status accept(tr_issue *c, const tr_path_op *op, uint32_t n_externals) {
    const tr_path *path = tr.known->path;
    const tr_path_operand *born = path->operands + op->operand + op->n_in;
    tr_activation *act = tr.act;
    int n_out = c->in_place ? 0 : op->n_out;
    for (int i = 0; i < n_out; i++) {
        tr_ref v = born[i].ref;
        tr_storage *s = tr_storage_create(path->value_bytes[v]);
        if (!s) {
            while (i--)
                tr_storage_recycle(c->storage[i]);
            unname(c, tr.n_externals);
            return TR_E_NOMEM;
        }
        s->bound = true;
        s->value = v;
        s->epoch = tr.epoch;
        s->ref = v;
        s->last_write = tr.cursor + 1;
        c->storage[i] = s;
        c->meta[i] = born[i].meta;
    }
    int64_t *args = act->args + op->operand;
    tr.n_externals = n_externals;
    if (c->in_place && args[c->n_in] != args[0])
        args[c->n_in] = args[0];
    for (int i = 0; i < n_out; i++) // results' args stay 0: they begin at their storage's first element
        act->storage_of[born[i].ref] = c->storage[i];
    tr.n_values += (uint32_t) n_out;
    note_writes(c, tr.cursor);
    tr.site = op->site;
    advance();
    stats.ops++;
    return TR_OK;
}

/* TR_E_AGAIN: the path was left, the op is to be sent by itself. */
static tr_status follow(tr_issue *c, const tr_op_info *info) {
    const tr_path *path = tr.known->path;
    uint32_t n_externals = tr.n_externals;
    match m = compare(c, path, &n_externals);
    if (TR_LIKELY(m == MATCH))
        return accept(c, &path->ops[tr.cursor], n_externals);
    unname(c, tr.n_externals);
    char why[200];
    if (m == OUTLIVED) {
        const tr_path_op *op = &path->ops[tr.cursor];
        for (uint32_t i = 0; i < op->n_die; i++)
            if (tr.act->storage_of[path->deaths[op->die + i]])
                tr.known->path->death[path->deaths[op->die + i]] = TR_DEATH_NEVER;
        tr__path_index_deaths(tr.known->path);
        tr.known->changes++;
        snprintf(why, sizeof why, "a temporary lives longer than before %s", info->name);
    } else {
        uint32_t at = tr.cursor;
        bool over = at == path->n_ops;
        snprintf(why, sizeof why, "%s instead of %s%s", info->name, over ? "the end" : tr_op_info_of(path->ops[at].op)->name,
                 !over && path->ops[at].op == c->op ? " (other operands, shapes or attributes)" : "");
        if (!over && path->ops[at].op == c->op)
            stats.shape_misses++;
    }
    TR_TRY(leave(why));
    return TR_E_AGAIN;
}

/* ------------------------------------------------------------------------------------------------ tier 0 */

static tr_status infer(tr_issue *c, const tr_op_info *info, tr_dtype *cdtype) {
    int64_t attrs[TR_MAX_ATTRS];
    tr_copy_words(attrs, c->attrs, info->n_attrs);
    tr_infer i = {.op = c->op, .n_in = c->n_in, .in = c->in, .attrs = attrs, .given = c->given, .in_place = c->in_place};
    TR_TRY(tr__infer(&i));
    // Only views' rules normalise attributes: a path's are compared with the call's own.
    tr_assert(info->n_attrs == 0 || memcmp(attrs, c->attrs, info->n_attrs * sizeof *attrs) == 0);
    *cdtype = c->cdtype == TR_DTYPE_COUNT ? i.cdtype : (tr_dtype) c->cdtype;
    memcpy(c->meta, i.out, sizeof c->meta);
    return TR_OK;
}

static tr_status make_results(tr_issue *c, int n_out) {
    for (int i = 0; i < n_out; i++) {
        c->storage[i] = tr_storage_create((size_t) c->meta[i]->extent * tr_dtype_size((tr_dtype) c->meta[i]->dtype));
        if (!c->storage[i]) {
            while (i--)
                tr_storage_recycle(c->storage[i]);
            return TR_E_NOMEM;
        }
    }
    return TR_OK;
}

static void record(const tr_issue *c, const tr_op_info *info, tr_dtype cdtype, int n_out) {
    tr_recorder *r = &tr.recorder;
    tr_path_op *op = tr.broken ? NULL : tr__recorder_add(r, c->n_in, c->in_place ? 1 : n_out, info->n_attrs);
    if (!op) {
        tr.broken = true;
        return;
    }
    op->op = (uint16_t) c->op;
    op->cdtype = (uint8_t) cdtype;
    op->in_place = c->in_place;
    op->site = tr.site;
    op->location = tr.location;
    if (info->n_attrs)
        memcpy(r->path.attrs + op->attr, c->attrs, info->n_attrs * sizeof *c->attrs);
    tr_path_operand *o = r->path.operands + op->operand;
    int64_t *args = r->path.args + op->operand;
    for (int i = 0; i < c->n_in; i++) {
        o[i].ref = c->in[i].storage ? ref_of(c->in[i].storage, &r->path.n_externals) : TR_REF_NONE;
        o[i].meta = c->in[i].meta;
        args[i] = c->in[i].at.i;
    }
    if (c->in_place) {
        o[c->n_in] = (tr_path_operand){o[0].ref, c->meta[0]};
        args[c->n_in] = args[0];
    }
    for (int i = 0; i < n_out; i++) {
        tr_ref v = tr__recorder_value(r, c->storage[i]->bytes);
        if (v == TR_REF_NONE) {
            tr.broken = true;
            return;
        }
        c->storage[i]->epoch = tr.epoch;
        c->storage[i]->ref = v;
        o[c->n_in + i] = (tr_path_operand){v, c->meta[i]};
        args[c->n_in + i] = 0;
    }
    tr__recorder_hash(r, op);
}

static tr_status send_call(const tr_issue *c, const tr_op_info *info, tr_dtype cdtype, int n_out, uint32_t need) {
    tr_status status = TR_OK;
    int n_results = c->in_place ? 1 : n_out;
    tr_call *call = tr_exec_call_reserve(info->n_attrs, c->n_in, n_results, need, &status);
    if (!call)
        return status;
    *call = (tr_call){.op = (uint16_t) c->op, .n_in = (uint16_t) c->n_in, .n_out = (uint8_t) n_results,
                      .n_attrs = info->n_attrs, .cdtype = (uint8_t) cdtype, .in_place = c->in_place, .site = tr.site};
    if (info->n_attrs)
        memcpy(tr_call_attrs(call), c->attrs, info->n_attrs * sizeof *c->attrs);
    tr_operand *o = tr_call_in(call);
    for (int i = 0; i < c->n_in; i++) {
        o[i] = c->in[i];
        if (o[i].storage)
            o[i].storage->sent = true;
    }
    o += c->n_in;
    if (c->in_place)
        o[0] = c->in[0];
    for (int i = 0; i < n_out; i++) {
        o[i] = (tr_operand){c->storage[i], c->meta[i], {.i = 0}};
        c->storage[i]->sent = true;
    }
    tr_exec_call_commit();
    return TR_OK;
}

static tr_status issue_single(tr_issue *c, const tr_op_info *info, bool recorded, uint32_t need) {
    tr_dtype cdtype = TR_F32;
    TR_TRY(infer(c, info, &cdtype));
    int n_out = c->in_place ? 0 : info->n_outputs;
    TR_TRY(make_results(c, n_out));
    tr_status status = send_call(c, info, cdtype, n_out, need);
    if (status != TR_OK) {
        for (int i = 0; i < n_out; i++)
            tr_storage_recycle(c->storage[i]);
        return status;
    }
    if (recorded)
        record(c, info, cdtype, n_out);
    stats.ops++;
    return tr.sync ? tr_synchronize() : TR_OK;
}

/* ------------------------------------------------------------------------------------------------ iterations */

static tr_status finish_iteration(uint64_t cut);

/* Does a path begin with this op? Names no externals. */
static bool begins_with(const tr_known *k, const tr_issue *c) {
    uint32_t n_externals = 0;
    bool same = is_same(c, k->path, k->path->ops, NULL, &n_externals);
    unname(c, 0);
    return same;
}

/* The path to expect from its first op on: the predicted one, or, as that op already tells branches apart, the latest that begins
 * so. Whether it has a plan yet decides nothing: what is learnt of the program must not depend on how fast plans come. */
static tr_known *choose(const tr_issue *c) {
    for (int guess = 0; guess <= TR_ORDERS; guess++) {
        tr_known *k = tr__graph_predict(tr.graph, guess);
        if (k && !k->crossed && begins_with(k, c))
            return k;
    }
    tr_known *best = NULL;
    for (tr_known *k = tr.graph->known; k; k = k->next)
        if (!k->crossed && (!best || k->taken > best->taken) && begins_with(k, c))
            best = k;
    return best;
}

/* Where a path has this call first. */
static uint32_t first_call(const tr_path *path, const tr_issue *c) {
    uint32_t i = 0;
    while (i < path->n_ops && (path->ops[i].op != c->op || path->ops[i].location != tr.location))
        i++;
    return i;
}

/* The first iteration of a loop comes from elsewhere, with all that was done before the loop, and makes what later ones only use.
 * Its end tells what the second will be, nevertheless: from the call on that begins this one. Compiled here, in about a
 * millisecond, which Python mostly has, as it is ahead; and so that it hangs on no thread whether the guess is followed. */
static tr_known *guess(const tr_issue *c) {
    if (tr.graph->is_piece || !tr.latest || tr.latest->crossed || tr.latest->graph == tr.graph || !tr_options_get()->plans)
        return NULL;
    const tr_path *path = tr.latest->path;
    uint32_t first = first_call(path, c);
    if (path->n_ops - first < MIN_MARK_OPS)
        return NULL;
    tr_known *k = tr__recorder_repeat(&tr.recorder, path, first) ? tr__graph_add(tr.graph, &tr.recorder) : NULL;
    tr__recorder_reset(&tr.recorder);
    tr.guess = k;
    if (k && begins_with(k, c))
        request_plan(k);
    return k;
}

/* Forgets the guess, unless the iteration went so. */
static void judge_guess(const tr_known *went) {
    tr_known *k = tr.guess;
    tr.guess = NULL;
    if (!k || k == went)
        return;
    drop_plan(k);
    tr__graph_remove(k->graph, k);
    tr.predicted = NULL;
}

static void open_iteration(const tr_issue *c) {
    tr.epoch++;
    tr.open = true;
    tr.broken = false;
    tr.predicted = NULL;
    tr.cursor = tr.published = tr.n_values = tr.n_externals = 0;
    tr__recorder_reset(&tr.recorder);
    if (!tr.owned) {
        tr.owner = pthread_self();
        tr.owned = true;
    }
    adopt_plans();
    if (TR_UNLIKELY(dropped != NULL))
        reap_plans();
    if (!tr.graph && !(tr.graph = tr__graph_at(1, 0, TR_MARK_EXPLICIT)))
        return;
    if (tr.off || tr.sync)
        return;
    tr_known *k = tr.predicted = tr.graph->known ? choose(c) : guess(c);
    if (!k || !tr__known_usable(k))
        return;
    tr_activation *act = tr_exec_begin(k->plan);
    if (!act) {
        tr_status_clear(); // tier 0 goes on; a real lack of memory will show there
        return;
    }
    memset(act->storage_of, 0, k->path->n_values * sizeof *act->storage_of);
    tr.next_instr = 0;
    tr.next_ready = 0;
    tr.act = act;
    tr.known = k;
}

tr_status tr__issue(tr_issue *c) {
    const tr_op_info *info = tr_op_info_of(c->op);
    if (TR_UNLIKELY(tr.owned && !pthread_equal(tr.owner, pthread_self()))) {
        tr.site = tr.host_site ? tr.host_site() : 0;
        return issue_single(c, info, false, tr__need_of(NULL));
    }
    for (;;) {
        if (TR_UNLIKELY(tr.act && tr.cursor == tr.known->path->n_ops && tr.known->cut))
            tr.cut_next = cut_key(location_of(c->op));
        if (!tr.act) {
            tr.location = location_of(c->op);
            if (TR_UNLIKELY(tr.open && tr.recorder.path.n_ops && tr__is_cut(tr.location)))
                tr.cut_next = cut_key(tr.location);
        }
        if (TR_UNLIKELY(tr.cut_next))
            TR_TRY(finish_iteration(tr.cut_next));
        if (TR_UNLIKELY(!tr.open))
            open_iteration(c);
        if (!tr.act)
            break;
        tr_status status = follow(c, info);
        if (status != TR_E_AGAIN)
            return status;
        // The path was left, and another piece may begin here.
    }
    TR_TRY(issue_single(c, info, true, 0));
    if (TR_UNLIKELY(tr.recorder.path.n_ops >= AUTO_MARK_OPS && !tr.marked))
        tr.cut_next = cut_key(tr.location);
    return TR_OK;
}

static void merge_deaths(tr_known *k, const tr_path *trace) {
    bool changed = false;
    for (uint32_t v = 0; v < trace->n_values; v++) {
        if (trace->death[v] > k->path->death[v]) {
            k->path->death[v] = trace->death[v];
            changed = true;
        }
        if (trace->fetched[v] && !k->path->fetched[v])
            k->path->fetched[v] = k->improvable = true;
    }
    if (!changed)
        return;
    tr__path_index_deaths(k->path);
    k->changes++;
}

/* Would a new plan be another one, while the present one holds? */
static bool is_outdated(const tr_known *k) {
    return k->plan && (k->improvable || k->plan->executors != tr_exec_executors());
}

/* The iteration was recorded: it joins its graph. */
static void learn(uint64_t cut) {
    tr.latest = NULL;
    if (tr.broken || tr.recorder.path.n_ops == 0 || !tr.graph)
        return;
    stats.iterations_traced++;
    tr_known *k = tr__graph_find(tr.graph, &tr.recorder);
    judge_guess(k);
    // A path never seen, where nothing was expected, is a miss of the last one.
    tr_known *expected = tr.predicted || k ? tr.predicted : tr.graph->last;
    if (expected && expected != k)
        tr__graph_missed(tr.graph, &tr.recorder.path, expected->path);
    if (k)
        merge_deaths(k, &tr.recorder.path);
    else if (!(k = tr__graph_add(tr.graph, &tr.recorder)))
        return;
    k->seen++;
    tr.latest = k;
    if (cut)
        k->cut = cut;
    tr__graph_taken(tr.graph, k);
    if (tr.off || tr.sync || !tr_options_get()->plans)
        return;
    // Worth a plan at first sight: a piece between cuts, which is short and one of few; and the first paths of a graph, which mostly
    // come again (an optimizer makes its state in the first iteration, the second is the one that stays).
    bool early = cut || tr.graph->is_piece || tr.graph->n_known <= FIRST_PATHS;
    if ((k->seen >= (early ? 1 : COMPILE_AFTER) && !k->plan) || tr__known_is_stale(k) || is_outdated(k))
        request_plan(k);
}

/* A value that the plan takes for dead at the mark, but that lives. */
static bool someone_outlives(void) {
    bool found = false;
    for (uint32_t v = 0; v < tr.n_values; v++)
        if (tr.act->storage_of[v] && !tr.known->plan->carry[v]) {
            tr.known->path->death[v] = TR_DEATH_NEVER;
            found = true;
        }
    if (found) {
        tr__path_index_deaths(tr.known->path);
        tr.known->changes++;
    }
    return found;
}

static tr_status finish_followed(void) {
    tr_known *k = tr.known;
    if (tr.cursor < k->path->n_ops)
        return leave("the iteration ends earlier");
    if (someone_outlives())
        return leave("a temporary lives beyond the iteration");
    mark_survivors_sent();
    publish();
    TR_TRY(tr_exec_end(tr.act));
    tr.ended = tr.epoch;
    tr.act = NULL;
    tr.known = NULL;
    k->followed++;
    tr.latest = k;
    tr.guess = NULL;
    stats.iterations_coexecuted++;
    stats.ops_from_plans += k->path->n_ops;
    tr__graph_taken(tr.graph, k);
    if (tr__known_is_stale(k) || is_outdated(k))
        request_plan(k);
    return TR_OK;
}

static tr_status finish_iteration(uint64_t cut) {
    tr.cut_next = 0;
    if (!tr.open)
        return TR_OK;
    bool followed = tr.act != NULL;
    tr.since_mark = cut ? tr.since_mark + (followed ? tr.cursor : tr.recorder.path.n_ops) : 0;
    if (followed)
        TR_TRY(finish_followed());
    if (!followed || stats.side_exits != tr.exits_before)
        learn(cut);
    tr.exits_before = stats.side_exits;
    tr.open = false;
    tr.epoch++;
    if (cut)
        if ((tr.graph = tr__graph_at(cut, tr.site, TR_MARK_EXPLICIT)))
            tr.graph->is_piece = true;
    tr__recorder_reset(&tr.recorder);
    return TR_OK;
}

/* A return of backward() ends an iteration only where nothing else does: when neither an optimizer's step nor a next batch has
 * lain between it and the last return at the same place. */
static bool backward_marks(uint32_t site) {
    static struct {
        uint32_t site, others;
    } seen[64];
    uint32_t at = site % 64;
    bool marks = seen[at].site == site && seen[at].others == tr.other_marks;
    seen[at].site = site;
    seen[at].others = tr.other_marks;
    return marks;
}

static tr_status mark(tr_mark_kind kind, uint32_t site) {
    if (kind != TR_MARK_BACKWARD)
        tr.other_marks++;
    else if (!backward_marks(site))
        return TR_OK;
    if (tr.owned && !pthread_equal(tr.owner, pthread_self())) {
        if (tr.open && tr.act)
            return TR_OK;
        tr.owner = pthread_self(); // between iterations the trace goes to whoever marks
    }
    uint32_t n = tr.since_mark + (tr.act ? tr.cursor : tr.recorder.path.n_ops);
    if (!tr.open || (kind != TR_MARK_EXPLICIT && (tr.explicit_marks || n < MIN_MARK_OPS)))
        return TR_OK;
    tr.marked = true;
    tr.explicit_marks |= kind == TR_MARK_EXPLICIT;
    TR_TRY(finish_iteration(0));
    tr.graph = tr__graph_at((uint64_t) site << 32 | (uint64_t) kind << 8 | 1, site, kind);
    return TR_OK;
}

tr_status tr_mark(tr_mark_kind kind, uint32_t site) {
    bool timed = tr__clock_enter();
    tr_status status = mark(kind, site);
    tr__clock_leave(timed);
    return status;
}

/* ------------------------------------------------------------------------------------------------ start, stop, fork */

tr_status tr__trace_init(const tr_host *host) {
    tr.host_site = host->site;
    tr__clock_init();
    tr.sync = tr_options_get()->sync;
    return TR_OK;
}

void tr__trace_shutdown(void) {
    if (tr.act)
        leave("the program ends");
    stop_compiler();
}

void tr_set_coexecution(bool on) {
    if (!on && tr.act)
        leave("co-execution was switched off");
    tr.off = !on;
}

void tr_set_sync(bool on) {
    if (on && tr.act)
        leave("TERRA_SYNC");
    tr.sync = on;
}

bool tr__following(void) {
    return tr.act != NULL;
}

void tr__note_skeleton(int64_t ns, int64_t ops) {
    stats.skeleton_ns += ns;
    stats.skeleton_ops += ops;
}

void tr__note_view(void) {
    stats.views++;
}

int64_t tr__ops_so_far(void) {
    return stats.ops + stats.views;
}

void tr_fork_prepare(void) {
    pthread_mutex_lock(&job_lock);
    while (compiler_busy)
        pthread_cond_wait(&job_idle, &job_lock);
    tr_exec_fork_prepare();
}

void tr_fork_parent(void) {
    tr_exec_fork_parent();
    pthread_mutex_unlock(&job_lock);
}

void tr_fork_child(void) {
    tr_exec_fork_child();
    compiler_runs = false;
    tr.owned = false;
    // They know of waiters that this process doesn't have.
    job_wake = job_idle = (pthread_cond_t) PTHREAD_COND_INITIALIZER;
    pthread_mutex_unlock(&job_lock);
    if (tr.act)
        leave("fork");
}

/* ------------------------------------------------------------------------------------------------ to see it */

void tr_stats_get(tr_stats *out) {
    tr_exec_stats e;
    tr_exec_stats_get(&e);
    *out = stats;
    out->instructions = e.instructions - stats.instructions;
    out->instructions_shared = e.instructions_shared - stats.instructions_shared;
    out->ops_covered = e.ops_covered - stats.ops_covered;
    out->bytes_elided = e.bytes_elided - stats.bytes_elided;
    out->demands = e.demands - stats.demands;
    out->starvations = e.starvations - stats.starvations;
    out->bytes_live = e.bytes_live;
    out->bytes_peak = e.bytes_peak;
    out->bytes_touched = e.bytes_touched;
    out->allocations = e.allocations - stats.allocations;
    out->executors = e.executors;
    out->threads = e.threads;
}

/* What the executor counted so far is kept as what to subtract. */
void tr_stats_reset(void) {
    tr_exec_stats e;
    tr_exec_stats_get(&e);
    stats = (tr_stats){.instructions = e.instructions, .instructions_shared = e.instructions_shared,
                       .ops_covered = e.ops_covered, .bytes_elided = e.bytes_elided,
                       .demands = e.demands, .starvations = e.starvations, .allocations = e.allocations};
    tr.exits_before = 0;
}

/* A growing text. */
typedef struct text {
    char *at;
    size_t used, size;
} text;

static void say(text *t, const char *fmt, ...) {
    va_list args;
    for (;;) {
        va_start(args, fmt);
        size_t left = t->size - t->used;
        int n = vsnprintf(t->at ? t->at + t->used : NULL, left, fmt, args);
        va_end(args);
        if (n < 0 || (size_t) n < left) {
            t->used += n > 0 ? (size_t) n : 0;
            return;
        }
        size_t size = 2 * t->size + (size_t) n + 1024;
        char *more = tr_realloc(t->at, size);
        if (!more)
            return;
        t->at = more;
        t->size = size;
    }
}

char *tr_explain(void) {
    static const char *const kinds[] = {"mark_step()", "optimizer step", "next batch", "backward"};
    text t = {0};
    say(&t, "%lld iterations traced, %lld co-executed, %lld side exits\n", (long long) stats.iterations_traced,
        (long long) stats.iterations_coexecuted, (long long) stats.side_exits);
    tr_exec_waits w;
    tr_exec_waits_get(&w);
    say(&t, "Python waited %.1f ms for values, %.1f ms for the oldest of too many plans under way, %.1f ms for room in the ring\n",
        (double) w.answer_ns / 1e6, (double) w.activation_ns / 1e6, (double) w.room_ns / 1e6);
    for (tr_graph *g = tr__graph_first(); g; g = g->next) {
        say(&t, "\n%s that begin %s %s: %u known path%s\n", g->is_piece ? "pieces" : "iterations after the",
            g->is_piece ? "at" : kinds[g->kind], tr_site_text(g->site), g->n_known, g->n_known == 1 ? "" : "s");
        for (tr_known *k = g->known; k; k = k->next) {
            say(&t, "  path %u: %u ops, %u values; seen %u times, followed %u, left %u%s%s\n", k->id, k->path->n_ops,
                k->path->n_values, k->seen, k->followed, k->left, k->plan ? "" : k->compiling ? ", being compiled" : ", no plan",
                k->cut ? ", ends at a cut" : "");
            char *plan = k->plan ? tr_plan_text(k->plan, tr_site_text) : NULL;
            if (plan)
                say(&t, "%s", plan);
            tr_free(plan);
        }
        for (uint32_t i = 0; i < g->n_forks; i++)
            say(&t, "  fork at op %u (%s): missed %u times\n", g->forks[i].op, tr_site_text(g->forks[i].site), g->forks[i].misses);
    }
    for (int i = 0; i < n_exits; i++)
        say(&t, "side exit at %s, %lld times: %s\n", tr_site_text(exits[i].site), (long long) exits[i].count, exits[i].text);
    return t.at;
}

char *tr_graphviz(void) {
    text t = {0};
    for (tr_graph *g = tr__graph_first(); g; g = g->next)
        for (tr_known *k = g->known; k; k = k->next) {
            char *plan = k->plan ? tr_plan_graphviz(k->plan, tr_site_text) : NULL;
            if (plan)
                say(&t, "%s\n", plan);
            tr_free(plan);
        }
    return t.at ? t.at : tr_strdup("");
}
