/* isa_sort.c - sort, topk, and the places of what isn't zero. */
#include "exec/kernels/kernels.h"

/* Lines of [outer, size, inner], ordered stably; NaN is greater than all else. */
typedef struct sort_job {
    tr__axis a;
    const char *x;
    char *y;
    int64_t *at;
    int64_t k; /* elements of each line that are wanted */
    bool descending;
    tr_dtype wide;
    char *lines; /* per thread: 2 * size items */
} sort_job;

#define SORT(T)                                                                                      \
    typedef struct item_##T {                                                                        \
        T key;                                                                                       \
        int64_t at;                                                                                  \
    } item_##T;                                                                                      \
    static inline bool before_##T(T a, T b, bool descending) {                                       \
        if (descending) {                                                                            \
            T t = a;                                                                                 \
            a = b;                                                                                   \
            b = t;                                                                                   \
            return a < b || (b != b && a == a);                                                      \
        }                                                                                            \
        return a < b || (b != b && a == a);                                                          \
    }                                                                                                \
    /* bottom-up merge sort; returns which of the two arrays holds the result */                     \
    static item_##T *merge_sort_##T(item_##T *x, item_##T *t, int64_t n, bool down) {                \
        for (int64_t b = 0; b < n; b += 8)                                                           \
            for (int64_t i = b + 1; i < n && i < b + 8; i++) {                                       \
                item_##T v = x[i];                                                                   \
                int64_t k = i;                                                                       \
                for (; k > b && before_##T(v.key, x[k - 1].key, down); k--)                          \
                    x[k] = x[k - 1];                                                                 \
                x[k] = v;                                                                            \
            }                                                                                        \
        for (int64_t w = 8; w < n; w *= 2) {                                                         \
            for (int64_t b = 0; b < n; b += 2 * w) {                                                 \
                int64_t i = b, m = tr__min(b + w, n), k = m, e = tr__min(b + 2 * w, n), o = b;       \
                while (i < m && k < e)                                                               \
                    t[o++] = before_##T(x[k].key, x[i].key, down) ? x[k++] : x[i++];                 \
                while (i < m)                                                                        \
                    t[o++] = x[i++];                                                                 \
                while (k < e)                                                                        \
                    t[o++] = x[k++];                                                                 \
            }                                                                                        \
            item_##T *s = x;                                                                         \
            x = t;                                                                                   \
            t = s;                                                                                   \
        }                                                                                            \
        return x;                                                                                    \
    }                                                                                                \
    /* is a behind b in the order wanted? ties by place */                                           \
    static inline bool behind_##T(item_##T a, item_##T b, bool down) {                               \
        if (before_##T(b.key, a.key, down))                                                          \
            return true;                                                                             \
        return !before_##T(a.key, b.key, down) && a.at > b.at;                                       \
    }                                                                                                \
    /* a heap of k with the last in order on top */                                                  \
    static void sink_##T(item_##T *h, int64_t i, int64_t k, bool down) {                             \
        item_##T v = h[i];                                                                           \
        for (int64_t child; (child = 2 * i + 1) < k; i = child) {                                    \
            if (child + 1 < k && behind_##T(h[child + 1], h[child], down))                           \
                child++;                                                                             \
            if (!behind_##T(h[child], v, down))                                                      \
                break;                                                                               \
            h[i] = h[child];                                                                         \
        }                                                                                            \
        h[i] = v;                                                                                    \
    }                                                                                                \
    static void select_##T(item_##T *h, const T *x, int64_t step, int64_t n, int64_t k, bool down) { \
        for (int64_t i = 0; i < k; i++)                                                              \
            h[i] = (item_##T){x[i * step], i};                                                       \
        for (int64_t i = k / 2 - 1; i >= 0; i--)                                                     \
            sink_##T(h, i, k, down);                                                                 \
        for (int64_t i = k; i < n; i++)                                                              \
            if (before_##T(x[i * step], h[0].key, down)) {                                           \
                h[0] = (item_##T){x[i * step], i};                                                   \
                sink_##T(h, 0, k, down);                                                             \
            }                                                                                        \
        for (int64_t last = k - 1; last > 0; last--) {                                               \
            item_##T top = h[0];                                                                     \
            h[0] = h[last];                                                                          \
            h[last] = top;                                                                           \
            sink_##T(h, 0, last, down);                                                              \
        }                                                                                            \
    }                                                                                                \
    static void topk_##T(void *env, int64_t begin, int64_t end, int thread) {                        \
        const sort_job *j = env;                                                                     \
        int64_t n = j->a.size, inner = j->a.inner;                                                   \
        item_##T *h = (item_##T *) j->lines + (size_t) thread * 2 * (size_t) n;                      \
        for (int64_t l = begin; l < end; l++) {                                                      \
            const T *x = (const T *) j->x + l / inner * n * inner + l % inner;                       \
            int64_t to = l / inner * j->k * inner + l % inner;                                       \
            select_##T(h, x, inner, n, j->k, j->descending);                                         \
            for (int64_t i = 0; i < j->k; i++) {                                                     \
                ((T *) j->y)[to + i * inner] = h[i].key;                                             \
                j->at[to + i * inner] = h[i].at;                                                     \
            }                                                                                        \
        }                                                                                            \
    }                                                                                                \
    static void sort_##T(void *env, int64_t begin, int64_t end, int thread) {                        \
        const sort_job *j = env;                                                                     \
        int64_t n = j->a.size, inner = j->a.inner;                                                   \
        item_##T *line = (item_##T *) j->lines + (size_t) thread * 2 * (size_t) n;                   \
        for (int64_t l = begin; l < end; l++) {                                                      \
            const T *x = (const T *) j->x + l / inner * n * inner + l % inner;                       \
            int64_t to = l / inner * j->k * inner + l % inner;                                       \
            for (int64_t i = 0; i < n; i++)                                                          \
                line[i] = (item_##T){x[i * inner], i};                                               \
            item_##T *sorted = merge_sort_##T(line, line + n, n, j->descending);                     \
            for (int64_t i = 0; i < j->k; i++) {                                                     \
                ((T *) j->y)[to + i * inner] = sorted[i].key;                                        \
                j->at[to + i * inner] = sorted[i].at;                                                \
            }                                                                                        \
        }                                                                                            \
    }
SORT(float)
SORT(double)
SORT(int64_t)

static tr_status sort_lines(const tr_kernel_call *c, int64_t dim, int64_t k, bool descending) {
    const tr_arg *in = &c->in[0];
    sort_job j = {.a = tr__axis_of(in->meta, dim), .k = k, .descending = descending, .wide = tr__wide(in->meta->dtype)};
    const void *x;
    void *y, *at;
    if (c->out[0].meta->numel == 0)
        return TR_OK;
    TR_TRY(tr__dense_in(c, in, j.wide, &x));
    TR_TRY(tr__dense_out(c, &c->out[0], j.wide, &y));
    TR_TRY(tr__dense_out(c, &c->out[1], TR_I64, &at));
    j.lines = tr__scratch(c, (size_t) c->ctx->threads * 2 * (size_t) j.a.size * 16);
    if (!j.lines)
        return TR_E_NOMEM;
    j.x = x;
    j.y = y;
    j.at = at;
    bool some = k < j.a.size / 4;
    tr__range_fn fn = j.wide == TR_F32   ? (some ? topk_float : sort_float)
                      : j.wide == TR_F64 ? (some ? topk_double : sort_double)
                                         : (some ? topk_int64_t : sort_int64_t);
    tr__parallel(c->ctx, j.a.outer * j.a.inner, tr__max(1, TR__GRAIN / 16 / j.a.size), fn, &j);
    TR_TRY(tr__dense_out_end(c, &c->out[0], j.wide, y));
    return tr__dense_out_end(c, &c->out[1], TR_I64, at);
}

TR__ISA_KERNEL(sort) {
    int64_t dim = c->attrs[0];
    return sort_lines(c, dim, tr__axis_of(c->in[0].meta, dim).size, c->attrs[1]);
}
TR__ISA_KERNEL(topk) {
    return sort_lines(c, c->attrs[1], c->attrs[0], c->attrs[2]);
}

/* ------------------------------------------------------------------------------------------ nonzero */

TR__ISA_KERNEL(_count_nonzero) {
    const void *p;
    TR_TRY(tr__dense_in(c, &c->in[0], TR_BOOL, &p));
    const uint8_t *x = p;
    int64_t n = 0;
    for (int64_t i = 0; i < c->in[0].meta->numel; i++)
        n += x[i];
    return tr__fill(c->ctx, &c->out[0], TR_I64, (tr_number){.i = n});
}

TR__ISA_KERNEL(_nonzero) {
    const tr_meta *m = c->in[0].meta;
    const void *p;
    void *y;
    if (c->out[0].meta->numel == 0)
        return TR_OK;
    TR_TRY(tr__dense_in(c, &c->in[0], TR_BOOL, &p));
    TR_TRY(tr__dense_out(c, &c->out[0], TR_I64, &y));
    const uint8_t *x = p;
    int64_t *out = y, at[TR_MAX_DIMS] = {0}, left = c->attrs[0];
    for (int64_t i = 0; i < m->numel && left > 0; i++) {
        if (x[i]) {
            memcpy(out, at, (size_t) m->ndim * sizeof *out);
            out += m->ndim;
            left--;
        }
        for (int d = m->ndim - 1; d >= 0 && ++at[d] == m->shape[d]; d--)
            at[d] = 0;
    }
    return tr__dense_out_end(c, &c->out[0], TR_I64, y);
}
