/* timeline.c - events of each track in chunks; JSON at the end. */
#include "terra/timeline.h"

#include "terra/alloc.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { CHUNK = 4096 };

typedef struct event {
    const char *name, *last;
    uint32_t n, plan, instr;
    int64_t start, end;
} event;

typedef struct chunk {
    struct chunk *next;
    uint32_t n;
    event events[CHUNK];
} chunk;

static struct {
    chunk *first, *last;
    int64_t n, lost;
} tracks[TR_TRACK_COUNT];

bool tr_timeline_on;

void tr_timeline_start(void) {
    tr_timeline_on = true;
}

void tr_timeline_add(tr_track track, const char *name, const char *last, uint32_t n, uint32_t plan, uint32_t instr,
                     int64_t start, int64_t end) {
    chunk *c = tracks[track].last;
    if ((!c || c->n == CHUNK) && tracks[track].n < TR_TIMELINE_EVENTS) {
        chunk *more = tr_malloc(sizeof *more);
        if (more) {
            more->next = NULL;
            more->n = 0;
            *(c ? &c->next : &tracks[track].first) = more;
            tracks[track].last = c = more;
        }
    }
    if (!c || c->n == CHUNK) {
        tracks[track].lost++;
        return;
    }
    c->events[c->n++] = (event){name, last, n, plan, instr, start, end};
    tracks[track].n++;
}

static void write_event(FILE *f, int track, const event *e) {
    fprintf(f, ",\n{\"ph\":\"X\",\"pid\":1,\"tid\":%d,\"ts\":%.3f,\"dur\":%.3f,\"name\":\"%s", track, (double) e->start * 1e-3,
            (double) (e->end - e->start) * 1e-3, e->name);
    if (e->last && e->n > 1)
        fprintf(f, " %s %s", e->n > 2 ? "…" : "+", e->last);
    fprintf(f, "\"");
    if (e->plan)
        fprintf(f, ",\"args\":{\"plan\":%u,\"instruction\":%u,\"operators\":%u}", e->plan, e->instr, e->n);
    fprintf(f, "}");
}

static void name_track(int track, char *out, size_t size) {
    static const char *const names[] = {[TR_TRACK_PYTHON] = "Python", [TR_TRACK_EXECUTOR] = "executor", [TR_TRACK_COMPILER] = "compiler"};
    if (track <= TR_TRACK_COMPILER)
        snprintf(out, size, "%s", names[track]);
    else
        snprintf(out, size, "executor %d", track - TR_TRACK_MORE);
}

tr_status tr_timeline_write(const char *path) {
    FILE *f = fopen(path, "w");
    if (!f)
        return TR_FAIL(TR_E_RUNTIME, "can't write the timeline to %s: %s", path, strerror(errno));
    fprintf(f, "{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n{\"ph\":\"M\",\"pid\":1,\"name\":\"process_name\",\"args\":{\"name\":"
               "\"terra\"}}");
    for (int t = 0; t < TR_TRACK_COUNT; t++) {
        if (t > TR_TRACK_COMPILER && !tracks[t].first)
            continue;
        char name[32];
        name_track(t, name, sizeof name);
        fprintf(f, ",\n{\"ph\":\"M\",\"pid\":1,\"tid\":%d,\"name\":\"thread_name\",\"args\":{\"name\":\"%s\"}}", t, name);
        for (const chunk *c = tracks[t].first; c; c = c->next)
            for (uint32_t i = 0; i < c->n; i++)
                write_event(f, t, &c->events[i]);
        if (tracks[t].lost)
            fprintf(stderr, "terra: the timeline lacks the %s's last %lld events\n", name, (long long) tracks[t].lost);
    }
    fprintf(f, "\n]}\n");
    return fclose(f) == 0 ? TR_OK : TR_FAIL(TR_E_RUNTIME, "can't write the timeline to %s: %s", path, strerror(errno));
}
