/* isa_index.c - indexing: rows, gather and scatter, advanced indexing.
 *
 * Indices are checked before anything is written, so that a failure leaves written operands as they were. Where several
 * elements may land on one place, each place belongs to one thread, which takes them in order: results don't depend on
 * the number of threads. */
#include "exec/kernels/isa_index.h"

/* ------------------------------------------------------------------------------------------ common parts */

static tr_status read_indices(const tr_kernel_call *c, const tr_arg *a, const int64_t **out) {
    const void *p;
    TR_TRY(tr__dense_in(c, a, TR_I64, &p));
    *out = p;
    return TR_OK;
}

static inline void move(void *dst, const void *src, size_t size) {
    switch (size) {
        case 4:
            memcpy(dst, src, 4);
            break;
        case 8:
            memcpy(dst, src, 8);
            break;
        case 2:
            memcpy(dst, src, 2);
            break;
        case 1:
            memcpy(dst, src, 1);
            break;
        default:
            memcpy(dst, src, size);
    }
}

static tr_status check_range(const int64_t *index, int64_t n, int64_t size, bool wraps, int64_t *out) {
    for (int64_t i = 0; i < n; i++) {
        int64_t k = index[i];
        if (k < (wraps ? -size : 0) || k >= size)
            return TR_FAIL(TR_E_INDEX, "index out of range in self");
        if (out)
            out[i] = k < 0 ? k + size : k;
    }
    return TR_OK;
}

/* ------------------------------------------------------------------------------------------ rows */

/* y[o, i, :] = x[o, index[i], :]; a row has `bytes` bytes. */
typedef struct rows_job {
    const char *x;
    char *y;
    const int64_t *index;
    int64_t n, size; /* indices, rows of x per outer step */
    size_t bytes;
} rows_job;

static void take_rows(void *env, int64_t begin, int64_t end, int thread) {
    const rows_job *j = env;
    for (int64_t k = begin; k < end; k++) {
        int64_t o = k / j->n, i = k % j->n;
        move(j->y + (size_t) k * j->bytes, j->x + (size_t) (o * j->size + j->index[i]) * j->bytes, j->bytes);
    }
}

static tr_status select_rows(const tr_kernel_call *c, const tr_arg *x, const int64_t *index, int64_t n, tr__axis a) {
    const tr_arg *out = &c->out[0];
    tr_dtype dtype = (tr_dtype) x->meta->dtype;
    const void *from;
    void *to;
    if (out->meta->numel == 0)
        return TR_OK;
    TR_TRY(tr__dense_in(c, x, dtype, &from));
    TR_TRY(tr__dense_out(c, out, dtype, &to));
    rows_job j = {from, to, index, n, a.size, (size_t) a.inner * tr_dtype_size(dtype)};
    tr__parallel(c->ctx, a.outer * n, tr__max(1, TR__GRAIN / a.inner), take_rows, &j);
    return tr__dense_out_end(c, out, dtype, to);
}

TR__ISA_KERNEL(embedding) {
    const tr_meta *w = c->in[0].meta;
    int64_t n = c->in[1].meta->numel;
    const int64_t *index;
    TR_TRY(read_indices(c, &c->in[1], &index));
    TR_TRY(check_range(index, n, w->shape[0], false, NULL));
    return select_rows(c, &c->in[0], index, n, tr__axis_of(w, 0));
}

TR__ISA_KERNEL(index_select) {
    const tr_meta *x = c->in[0].meta;
    int64_t n = c->in[1].meta->numel;
    const int64_t *index;
    tr__axis a = tr__axis_of(x, c->attrs[0]);
    TR_TRY(read_indices(c, &c->in[1], &index));
    TR_TRY(check_range(index, n, a.size, false, NULL));
    return select_rows(c, &c->in[0], index, n, a);
}

/* y[o, index[i], :] += x[o, i, :] * s; a thread owns a range of rows of y. */
typedef struct add_job {
    tr__axis a;
    const char *x;
    char *y;
    const int64_t *index;
    int64_t n, skip; /* skip: an index to leave out; -1 none */
    double s;
    int64_t whole;
    tr_dtype wide;
    bool clear;
} add_job;

static void add_rows(void *env, int64_t begin, int64_t end, int thread) {
    const add_job *j = env;
    size_t row = (size_t) j->a.inner * tr_dtype_size(j->wide);
    if (j->clear)
        memset(j->y + (size_t) begin * row, 0, (size_t) (end - begin) * row);
    for (int64_t o = begin / j->a.size; o <= (end - 1) / j->a.size; o++)
        for (int64_t i = 0; i < j->n; i++) {
            int64_t at = o * j->a.size + j->index[i];
            if (at >= begin && at < end && j->index[i] != j->skip)
                add_row(j->wide, j->y + (size_t) at * row, j->x + (size_t) (o * j->n + i) * row, j->a.inner, j->s, j->whole);
        }
}

static void run_add(const tr_kernel_call *c, add_job *j) {
    int64_t rows = j->a.outer * j->a.size, work = j->a.outer * j->n * j->a.inner + (j->clear ? rows * j->a.inner : 0);
    tr__parallel(c->ctx, rows, tr__max(1, (int64_t) ((double) TR__GRAIN * (double) rows / (double) tr__max(1, work))), add_rows,
                 j);
}

TR__ISA_KERNEL(embedding_backward) {
    const tr_arg *grad = &c->in[0], *out = &c->out[0];
    int64_t weights = c->attrs[0], columns = out->meta->shape[1];
    add_job j = {.a = {1, weights, columns},
                 .n = c->in[1].meta->numel,
                 .skip = c->attrs[1],
                 .s = 1,
                 .whole = 1,
                 .wide = tr__wide(out->meta->dtype),
                 .clear = true};
    const void *x;
    void *y;
    if (out->meta->numel == 0)
        return TR_OK;
    TR_TRY(read_indices(c, &c->in[1], &j.index));
    TR_TRY(check_range(j.index, j.n, weights, false, NULL));
    TR_TRY(tr__dense_in(c, grad, j.wide, &x));
    TR_TRY(tr__dense_out(c, out, j.wide, &y));
    j.x = x;
    j.y = y;
    run_add(c, &j);
    return tr__dense_out_end(c, out, j.wide, y);
}

TR__ISA_KERNEL(index_add) {
    const tr_arg *out = &c->out[0];
    add_job j = {.a = tr__axis_of(out->meta, c->attrs[0]),
                 .n = c->in[1].meta->numel,
                 .skip = -1,
                 .s = tr_arg_double(&c->in[3]),
                 .whole = tr_arg_int(&c->in[3]),
                 .wide = tr__wide(out->meta->dtype)};
    const void *x;
    void *y;
    TR_TRY(read_indices(c, &c->in[1], &j.index));
    TR_TRY(check_range(j.index, j.n, j.a.size, false, NULL));
    TR_TRY(tr__dense_in(c, &c->in[2], j.wide, &x));
    TR_TRY(open_changed(c, j.wide, &y));
    j.x = x;
    j.y = y;
    if (out->meta->numel)
        run_add(c, &j);
    return tr__dense_out_end(c, out, j.wide, y);
}

/* ------------------------------------------------------------------------------------------ gather, scatter */

/* Lines along a dimension of `index`; line k lies at `at` in a row-major tensor of shape `shape`. */
typedef struct lines {
    const tr_meta *index;
    int64_t dim, n, step;       /* length of a line, its step in the index */
    int64_t other_step;         /* step along dim in the other tensor */
    int64_t other[TR_MAX_DIMS]; /* its strides */
} lines;

static lines lines_of(const tr_meta *index, const tr_meta *other, int64_t dim) {
    lines l = {.index = index, .dim = dim, .n = index->ndim ? index->shape[dim] : 1, .step = 1};
    int64_t step = 1;
    for (int d = other->ndim - 1; d >= 0; d--) {
        l.other[d] = step;
        step *= other->shape[d];
    }
    for (int d = index->ndim - 1; d > dim; d--)
        l.step *= index->shape[d];
    l.other_step = other->ndim ? l.other[dim] : 0;
    return l;
}

static int64_t line_count(const lines *l) {
    return l->n ? l->index->numel / l->n : 0;
}

static void line_at(const lines *l, int64_t k, int64_t *in_index, int64_t *in_other) {
    int64_t step = 1;
    *in_index = *in_other = 0;
    for (int d = l->index->ndim - 1; d >= 0; d--) {
        if (d != l->dim) {
            *in_index += k % l->index->shape[d] * step;
            *in_other += k % l->index->shape[d] * l->other[d];
            k /= l->index->shape[d];
        }
        step *= l->index->shape[d];
    }
}

typedef struct line_job {
    lines index, src; /* src: where the values of a scatter lie */
    const int64_t *i;
    const char *x;
    char *y;
    size_t size;
    tr_dtype wide;
    bool one; /* scatter one value, at x */
} line_job;

/* One line of each, by the size of an element: T is an integer of that size. */
#define LINES(T)                                                                                       \
    static void gather_line_##T(const line_job *j, int64_t at, int64_t other) {                        \
        const int64_t *i = j->i + at, n = j->index.n, step = j->index.step, far = j->index.other_step; \
        const T *x = (const T *) j->x + other;                                                         \
        T *y = (T *) j->y + at;                                                                        \
        for (int64_t k = 0; k < n; k++)                                                                \
            y[k * step] = x[i[k * step] * far];                                                        \
    }                                                                                                  \
    static void scatter_line_##T(const line_job *j, int64_t at, int64_t other, int64_t from) {         \
        const int64_t *i = j->i + at, n = j->index.n, step = j->index.step, far = j->index.other_step; \
        const T *x = (const T *) j->x + (j->one ? 0 : from);                                           \
        const int64_t near = j->one ? 0 : j->src.other_step;                                           \
        T *y = (T *) j->y + other;                                                                     \
        for (int64_t k = 0; k < n; k++)                                                                \
            y[i[k * step] * far] = x[k * near];                                                        \
    }
#define ADD_LINE(T)                                                                                    \
    static void add_line_##T(const line_job *j, int64_t at, int64_t other, int64_t from) {             \
        const int64_t *i = j->i + at, n = j->index.n, step = j->index.step, far = j->index.other_step; \
        const int64_t near = j->src.other_step;                                                        \
        const T *x = (const T *) j->x + from;                                                          \
        T *y = (T *) j->y + other;                                                                     \
        for (int64_t k = 0; k < n; k++)                                                                \
            y[i[k * step] * far] += x[k * near];                                                       \
    }
LINES(uint8_t)
LINES(uint16_t)
LINES(uint32_t)
LINES(uint64_t)
ADD_LINE(float)
ADD_LINE(double)
ADD_LINE(uint64_t)

static void gather_lines(void *env, int64_t begin, int64_t end, int thread) {
    const line_job *j = env;
    for (int64_t k = begin; k < end; k++) {
        int64_t at, other;
        line_at(&j->index, k, &at, &other);
        switch (j->size) {
            case 1:
                gather_line_uint8_t(j, at, other);
                break;
            case 2:
                gather_line_uint16_t(j, at, other);
                break;
            case 4:
                gather_line_uint32_t(j, at, other);
                break;
            default:
                gather_line_uint64_t(j, at, other);
        }
    }
}

static void scatter_lines(void *env, int64_t begin, int64_t end, int thread) {
    const line_job *j = env;
    for (int64_t k = begin; k < end; k++) {
        int64_t at, other, again, from;
        line_at(&j->index, k, &at, &other);
        line_at(&j->src, k, &again, &from);
        switch (j->size) {
            case 1:
                scatter_line_uint8_t(j, at, other, from);
                break;
            case 2:
                scatter_line_uint16_t(j, at, other, from);
                break;
            case 4:
                scatter_line_uint32_t(j, at, other, from);
                break;
            default:
                scatter_line_uint64_t(j, at, other, from);
        }
    }
}

static void scatter_add_lines(void *env, int64_t begin, int64_t end, int thread) {
    const line_job *j = env;
    for (int64_t k = begin; k < end; k++) {
        int64_t at, other, again, from;
        line_at(&j->index, k, &at, &other);
        line_at(&j->src, k, &again, &from);
        if (j->wide == TR_F32)
            add_line_float(j, at, other, from);
        else if (j->wide == TR_F64)
            add_line_double(j, at, other, from);
        else
            add_line_uint64_t(j, at, other, from);
    }
}

/* Its own words: "index 5 is out of bounds for dimension 0 with size 3". */
static tr_status check_lines(const int64_t *i, int64_t n, int64_t dim, int64_t size) {
    for (int64_t k = 0; k < n; k++)
        if (i[k] < 0 || i[k] >= size)
            return TR_FAIL(TR_E_RUNTIME, "index %lld is out of bounds for dimension %lld with size %lld", (long long) i[k],
                           (long long) dim, (long long) size);
    return TR_OK;
}

TR__ISA_KERNEL(gather) {
    const tr_arg *in = &c->in[0], *index = &c->in[1], *out = &c->out[0];
    tr_dtype dtype = (tr_dtype) in->meta->dtype;
    const void *x;
    void *y;
    line_job j = {.index = lines_of(index->meta, in->meta, c->attrs[0]), .size = tr_dtype_size(dtype)};
    if (out->meta->numel == 0)
        return TR_OK;
    TR_TRY(read_indices(c, index, &j.i));
    TR_TRY(check_lines(j.i, index->meta->numel, c->attrs[0], in->meta->ndim ? in->meta->shape[c->attrs[0]] : 1));
    TR_TRY(tr__dense_in(c, in, dtype, &x));
    TR_TRY(tr__dense_out(c, out, dtype, &y));
    j.x = x;
    j.y = y;
    tr__parallel(c->ctx, line_count(&j.index), tr__max(1, TR__GRAIN / j.index.n), gather_lines, &j);
    return tr__dense_out_end(c, out, dtype, y);
}

static tr_status run_scatter(const tr_kernel_call *c, tr_dtype dtype, tr__range_fn fn) {
    const tr_arg *index = &c->in[1], *src = &c->in[2], *out = &c->out[0];
    const void *x;
    void *y;
    uint64_t value = 0;
    line_job j = {.index = lines_of(index->meta, out->meta, c->attrs[0]),
                  .size = tr_dtype_size(dtype),
                  .wide = dtype,
                  .one = !src->data && src->meta->ndim == 0};
    j.src = j.one ? j.index : lines_of(index->meta, src->meta, c->attrs[0]);
    TR_TRY(read_indices(c, index, &j.i));
    TR_TRY(check_lines(j.i, index->meta->numel, c->attrs[0], out->meta->ndim ? out->meta->shape[c->attrs[0]] : 1));
    if (j.one) {
        tr_meta m;
        tr__meta_make(&m, dtype, 0, NULL, NULL);
        tr_arg one = {&value, &m, {0}};
        TR_TRY(tr__copy(c->ctx, &one, src));
        x = &value;
    } else {
        TR_TRY(tr__dense_in(c, src, dtype, &x));
    }
    TR_TRY(open_changed(c, dtype, &y));
    j.x = x;
    j.y = y;
    if (index->meta->numel)
        tr__parallel(c->ctx, line_count(&j.index), tr__max(1, TR__GRAIN / j.index.n), fn, &j);
    return tr__dense_out_end(c, out, dtype, y);
}

TR__ISA_KERNEL(scatter) {
    return run_scatter(c, (tr_dtype) c->out[0].meta->dtype, scatter_lines);
}
TR__ISA_KERNEL(scatter_add) {
    return run_scatter(c, tr__wide(c->out[0].meta->dtype), scatter_add_lines);
}

/* ------------------------------------------------------------------------------------------ advanced indexing */

/* The indexed tensor as [before..., (indexed), after...]; an access is base + before + place + after. */
typedef struct places {
    int n_before, n_after;
    int64_t before[TR_MAX_DIMS], before_strides[TR_MAX_DIMS];
    int64_t after[TR_MAX_DIMS], after_strides[TR_MAX_DIMS];
    int64_t n_b, n_a, n; /* products; places */
    int64_t *at;         /* offset of each place, in elements */
    int64_t run;         /* elements of `after` that lie side by side */
} places;

static bool is_adjacent(int64_t mask) {
    while (!(mask & 1))
        mask >>= 1;
    return (mask & (mask + 1)) == 0;
}

static tr_status add_places(const tr_kernel_call *c, places *p, const tr_arg *index, const tr_meta *x, int d) {
    const int64_t *i;
    int64_t size = x->shape[d];
    TR_TRY(read_indices(c, index, &i));
    for (int64_t k = 0; k < p->n; k++) {
        if (i[k] < -size || i[k] >= size)
            return TR_FAIL(TR_E_INDEX, "index %lld is out of bounds for dimension %d with size %lld", (long long) i[k], d,
                           (long long) size);
        p->at[k] += (i[k] < 0 ? i[k] + size : i[k]) * x->strides[d];
    }
    return TR_OK;
}

static tr_status open_places(const tr_kernel_call *c, places *p, const tr_meta *x, int64_t mask, const tr_arg *indices) {
    bool first = !is_adjacent(mask);
    bool seen = false;
    *p = (places){.n_b = 1, .n_a = 1, .n = indices[0].meta->numel};
    p->at = tr__scratch(c, (size_t) p->n * sizeof *p->at);
    if (!p->at)
        return TR_E_NOMEM;
    memset(p->at, 0, (size_t) p->n * sizeof *p->at);
    for (int d = 0, k = 0; d < x->ndim; d++) {
        if (mask >> d & 1) {
            TR_TRY(add_places(c, p, &indices[k++], x, d));
            seen = true;
        } else if (!seen && !first) {
            p->before[p->n_before] = x->shape[d];
            p->before_strides[p->n_before++] = x->strides[d];
            p->n_b *= x->shape[d];
        } else {
            p->after[p->n_after] = x->shape[d];
            p->after_strides[p->n_after++] = x->strides[d];
            p->n_a *= x->shape[d];
        }
    }
    p->run = 1;
    for (int d = p->n_after - 1; d >= 0 && p->after_strides[d] == p->run; d--)
        p->run *= p->after[d];
    return TR_OK;
}

typedef struct place_job {
    places p;
    char *x; /* the indexed tensor */
    char *y; /* [before, places, after], row-major */
    size_t size;
    tr_dtype dtype;
} place_job;

/* Rows are (before, place) pairs. */
static void take_places(void *env, int64_t begin, int64_t end, int thread) {
    const place_job *j = env;
    const places *p = &j->p;
    for (int64_t k = begin; k < end; k++) {
        int64_t base = offset_of(p->n_before, p->before, p->before_strides, k / p->n) + p->at[k % p->n];
        for (int64_t a = 0; a < p->n_a; a += p->run) {
            int64_t at = base + (p->run == p->n_a ? 0 : offset_of(p->n_after, p->after, p->after_strides, a));
            move(j->y + (size_t) (k * p->n_a + a) * j->size, j->x + at * (int64_t) j->size, (size_t) p->run * j->size);
        }
    }
}

static void put_places(void *env, int64_t begin, int64_t end, int thread) {
    const place_job *j = env;
    const places *p = &j->p;
    for (int64_t k = begin; k < end; k++) {
        int64_t base = offset_of(p->n_before, p->before, p->before_strides, k / p->n) + p->at[k % p->n];
        for (int64_t a = 0; a < p->n_a; a += p->run) {
            int64_t at = base + (p->run == p->n_a ? 0 : offset_of(p->n_after, p->after, p->after_strides, a));
            move(j->x + at * (int64_t) j->size, j->y + (size_t) (k * p->n_a + a) * j->size, (size_t) p->run * j->size);
        }
    }
}

/* x = x + y, rounded to the dtype each time. */
static void add_elements(tr_dtype dtype, char *x, const char *y, int64_t n) {
    switch (dtype) {
        case TR_BF16:
            for (int64_t i = 0; i < n; i++) {
                uint16_t *a = (uint16_t *) x + i;
                *a = tr__f32_to_bf16(tr__bf16_to_f32(*a) + tr__bf16_to_f32(((const uint16_t *) y)[i]));
            }
            break;
        case TR_I32:
            for (int64_t i = 0; i < n; i++)
                ((uint32_t *) x)[i] += ((const uint32_t *) y)[i];
            break;
        case TR_U8:
            for (int64_t i = 0; i < n; i++)
                ((uint8_t *) x)[i] = (uint8_t) (((uint8_t *) x)[i] + ((const uint8_t *) y)[i]);
            break;
        case TR_BOOL:
            for (int64_t i = 0; i < n; i++)
                ((uint8_t *) x)[i] |= ((const uint8_t *) y)[i];
            break;
        default:
            add_row(dtype, x, y, n, 1, 1);
    }
}

/* A thread owns a range of the `after` runs, or else of `before`: no two threads meet in a place. */
static void add_places_range(const place_job *j, int64_t b0, int64_t b1, int64_t r0, int64_t r1) {
    const places *p = &j->p;
    for (int64_t b = b0; b < b1; b++) {
        int64_t base = offset_of(p->n_before, p->before, p->before_strides, b);
        for (int64_t k = 0; k < p->n; k++)
            for (int64_t r = r0; r < r1; r++) {
                int64_t a = r * p->run;
                int64_t at = base + p->at[k] + offset_of(p->n_after, p->after, p->after_strides, a);
                add_elements(j->dtype, j->x + at * (int64_t) j->size, j->y + (size_t) ((b * p->n + k) * p->n_a + a) * j->size,
                             p->run);
            }
    }
}

static void add_over_before(void *env, int64_t begin, int64_t end, int thread) {
    const place_job *j = env;
    add_places_range(j, begin, end, 0, j->p.n_a / j->p.run);
}
static void add_over_after(void *env, int64_t begin, int64_t end, int thread) {
    const place_job *j = env;
    add_places_range(j, 0, j->p.n_b, begin, end);
}

TR__ISA_KERNEL(index) {
    const tr_arg *in = &c->in[0], *out = &c->out[0];
    tr_dtype dtype = (tr_dtype) in->meta->dtype;
    place_job j = {.x = in->data, .size = tr_dtype_size(dtype), .dtype = dtype};
    void *y;
    TR_TRY(open_places(c, &j.p, in->meta, c->attrs[0], &c->in[1]));
    if (out->meta->numel == 0)
        return TR_OK;
    TR_TRY(tr__dense_out(c, out, dtype, &y));
    j.y = y;
    tr__parallel(c->ctx, j.p.n_b * j.p.n, tr__max(1, TR__GRAIN / j.p.n_a), take_places, &j);
    return tr__dense_out_end(c, out, dtype, y);
}

/* The shape that the value is broadcast to: index dimensions in place when adjacent, else first. */
static void put_shape(const tr_kernel_call *c, const places *p, tr_meta *m) {
    const tr_meta *index = c->in[2].meta;
    int64_t shape[TR_MAX_DIMS * 2];
    int n = 0;
    for (int d = 0; d < p->n_before; d++)
        shape[n++] = p->before[d];
    for (int d = 0; d < index->ndim; d++)
        shape[n++] = index->shape[d];
    for (int d = 0; d < p->n_after; d++)
        shape[n++] = p->after[d];
    tr__meta_make(m, (tr_dtype) c->in[0].meta->dtype, n, shape, NULL);
}

TR__ISA_KERNEL(index_put_) {
    const tr_arg *in = &c->in[0], *value = &c->in[1];
    tr_dtype dtype = (tr_dtype) in->meta->dtype;
    place_job j = {.x = in->data, .size = tr_dtype_size(dtype), .dtype = dtype};
    tr_meta m;
    TR_TRY(open_places(c, &j.p, in->meta, c->attrs[0], &c->in[2]));
    put_shape(c, &j.p, &m);
    if (m.numel == 0)
        return TR_OK;
    j.y = value->data;
    if (!value->data || value->meta->dtype != dtype || !value->meta->contiguous || !tr_meta_same_shape(value->meta, &m)) {
        tr_arg all = {tr__scratch(c, (size_t) m.numel * j.size), &m, {0}};
        if (!all.data)
            return TR_E_NOMEM;
        TR_TRY(tr__copy(c->ctx, &all, value));
        j.y = all.data;
    }
    if (!c->attrs[1]) {
        // In order, on one thread: of two values for one place the last stays.
        put_places(&j, 0, j.p.n_b * j.p.n, 0);
        return TR_OK;
    }
    int64_t runs = j.p.n_a / j.p.run;
    if (j.p.n_b >= runs)
        tr__parallel(c->ctx, j.p.n_b, tr__max(1, TR__GRAIN / tr__max(1, j.p.n * j.p.n_a)), add_over_before, &j);
    else
        tr__parallel(c->ctx, runs, tr__max(1, TR__GRAIN / tr__max(1, j.p.n * j.p.run * j.p.n_b)), add_over_after, &j);
    return TR_OK;
}
