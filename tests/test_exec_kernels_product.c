/* Products by AMX's tiles (isa_product.c), against sums in double of the factors, rounded or as they are: all ways that factors
 * lie, both dtypes, edges of tiles, sums in several pieces. Memory behind each operand can't be read. */
#include "kernel_call.h"

#include "exec/kernels/kernels.h"

#include <float.h>
#include <sys/mman.h>
#include <unistd.h>

static unsigned seed;
static int64_t pick(int64_t low, int64_t high) {
    seed = seed * 1664525u + 1013904223u;
    return low + (int64_t) (seed >> 8) % (high - low + 1);
}

/* Numbers that end where a page that isn't there begins. */
typedef struct numbers {
    char *map;
    size_t mapped;
    void *data;
    bool wide;
} numbers;

static numbers take(int64_t n, bool wide) {
    size_t page = (size_t) sysconf(_SC_PAGESIZE), bytes = (size_t) n * (wide ? 4 : 2), whole = (bytes + page - 1) / page * page;
    numbers x = {.mapped = whole + page, .wide = wide};
    x.map = mmap(NULL, x.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq(x.map, MAP_FAILED);
    cr_assert_eq(mprotect(x.map + whole, page, PROT_NONE), 0);
    x.data = x.map + whole - bytes;
    return x;
}
static void release(numbers *x) {
    munmap(x->map, x->mapped);
}
/* Numbers that need all of a float32's bits. */
static void fill(numbers *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        float f = (float) pick(-(1 << 23), (1 << 23) - 1) / (1 << 22);
        if (x->wide)
            memcpy((char *) x->data + 4 * i, &f, 4);
        else
            ((uint16_t *) x->data)[i] = tr__f32_to_bf16(f);
    }
}
static double number(const numbers *x, int64_t i) {
    float f;
    if (!x->wide)
        return tr__bf16_to_f32(((const uint16_t *) x->data)[i]);
    memcpy(&f, (const char *) x->data + 4 * i, 4);
    return f;
}
/* As it is multiplied. */
static double rounded(const numbers *x, int64_t i) {
    return tr__bf16_to_f32(tr__f32_to_bf16((float) number(x, i)));
}

static bool run(const tr__tile_product *p, int threads) {
    tr_kernel_ctx ctx = kc_ctx;
    ctx.threads = threads;
    tr_kernel_call call = {.op = TR_OP_mm, .ctx = &ctx};
    bool exact;
    cr_assert_eq(tr__isa_now->multiply(&call, p, &exact), TR_OK);
    kc_release();
    return exact;
}

static void check(int64_t m, int64_t n, int64_t k, bool split) {
    bool a_turned = pick(0, 1), b_turned = pick(0, 1);
    int64_t a_lines = a_turned ? k : m, a_row = (a_turned ? m : k) + pick(0, 1) * pick(1, 40);
    int64_t b_lines = b_turned ? n : k, b_row = (b_turned ? k : n) + pick(0, 1) * pick(1, 40);
    int64_t a_count = (a_lines - 1) * a_row + (a_turned ? m : k), b_count = (b_lines - 1) * b_row + (b_turned ? k : n);
    bool wide = split || pick(0, 1);
    numbers a = take(a_count, split || pick(0, 1)), b = take(b_count, split || pick(0, 1)), bias = take(n, wide);
    numbers y = take(m * n, wide), old = take(m * n, wide);
    fill(&a, a_count);
    fill(&b, b_count);
    fill(&bias, n);
    fill(&old, m * n);
    tr__tile_product p = {.m = m, .n = n, .k = k, .a = a.data, .b = b.data, .y = y.data,
                          .a_wide = a.wide, .b_wide = b.wide, .split = split, .wide = wide, .bias_wide = wide,
                          .a_row = a_turned ? 1 : a_row, .a_column = a_turned ? a_row : 1, .b_row = b_turned ? 1 : b_row,
                          .b_column = b_turned ? b_row : 1, .bias = pick(0, 1) ? bias.data : NULL, .alpha = pick(0, 1) ? 1 : 0.5f,
                          .beta = pick(0, 2) ? 0 : -1.5f};
    size_t bytes = (size_t) (m * n) * (wide ? 4 : 2);
    char *first = malloc(bytes);
    for (int threads = 1; threads <= 3; threads++) {
        memcpy(y.data, old.data, bytes);
        cr_assert(run(&p, threads));
        if (threads == 1)
            memcpy(first, y.data, bytes);
        cr_assert_eq(memcmp(first, y.data, bytes), 0, "%d threads", threads);
    }
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = 0, size = 0;
            for (int64_t s = 0; s < k; s++) {
                int64_t at = i * p.a_row + s * p.a_column, by = s * p.b_row + j * p.b_column;
                double term = split ? number(&a, at) * number(&b, by) : rounded(&a, at) * rounded(&b, by);
                sum += term;
                size += fabs(term);
            }
            double want = p.alpha * sum + (p.bias ? number(&bias, j) : 0) + (p.beta != 0 ? p.beta * number(&old, i * n + j) : 0);
            double far = fabs(number(&y, i * n + j) - want);
            double room = (split ? 4e-7 : 1e-6) * (size + 4) + (wide ? 0 : fabs(want) / 256);
            cr_assert(far <= room, "[%ld, %ld] of %ldx%ldx%ld: %g, expected %g", (long) i, (long) j, (long) m, (long) n, (long) k,
                      number(&y, i * n + j), want);
        }
    free(first);
    numbers *all[] = {&a, &b, &bias, &y, &old};
    for (int i = 0; i < 5; i++)
        release(all[i]);
}

static bool has_tiles(void) {
    return tr__isa_now->multiply && tr__has_amx();
}

TestSuite(product, .init = kc_init);

Test(product, any_sizes) {
    for (int time = 0; time < 150 && has_tiles(); time++)
        check(pick(1, 100), pick(1, 100), pick(1, 150), pick(0, 1));
}

Test(product, whole_tiles_are_read_where_they_lie) {
    for (int time = 0; time < 40 && has_tiles(); time++)
        check(32 * pick(1, 3) + pick(0, 1) * pick(1, 31), 32 * pick(1, 8), 32 * pick(1, 6), false);
}

Test(product, sums_in_several_pieces) {
    static const int64_t depths[] = {2048, 2049, 2080, 4095, 4128, 6150};
    for (int i = 0; i < 6 && has_tiles(); i++) {
        check(pick(1, 70), pick(1, 140), depths[i], false);
        check(pick(1, 70), pick(1, 140), depths[i] - 1300, true);
    }
}

/* More panels than are packed at a time. */
Test(product, many_panels) {
    for (int time = 0; time < 8 && has_tiles(); time++)
        check(pick(150, 300), pick(300, 600), pick(1, 70), time % 2);
}

/* An infinite or undefined factor reaches the sums that it belongs to, and no other: what lies beyond an edge is zero. */
Test(product, infinite_and_undefined) {
    enum { M = 33, N = 35, K = 37 };
    static float a[M * K], b[K * N], y[M * N];
    if (!has_tiles())
        return;
    for (int i = 0; i < M * K; i++)
        a[i] = 1;
    for (int i = 0; i < K * N; i++)
        b[i] = 2;
    a[(M - 1) * K + K - 1] = INFINITY;
    b[(K - 1) * N + N - 1] = NAN;
    tr__tile_product p = {.m = M, .n = N, .k = K, .a = a, .b = b, .y = y, .a_wide = true, .b_wide = true, .wide = true, .a_row = K,
                          .a_column = 1, .b_row = N, .b_column = 1, .alpha = 1};
    run(&p, 2);
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++)
            if (j == N - 1)
                cr_assert(isnan(y[i * N + j]));
            else
                cr_assert_eq(y[i * N + j], i == M - 1 ? INFINITY : 2 * K);
}

/* Numbers that have no three pieces, wherever they are, and sums that may have lost some, are told; zeros have. */
Test(product, no_pieces) {
    enum { M = 40, N = 70, K = 75 };
    static float a[M * K], b[K * N], y[M * N];
    const struct {
        float value;
        bool exact;
    } cases[] = {{0, true},
                 {-0.0f, true},
                 {0x1p-102f, true},
                 {-0x1.fffffep126f, true},
                 {0x1.fffffep-103f, false},
                 {1e-40f, false},
                 {-1e-45f, false},
                 {0x1p127f, false},
                 {-FLT_MAX, false},
                 {INFINITY, false},
                 {NAN, false}};
    if (!has_tiles())
        return;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int turned = 0; turned < 4; turned++)
            for (int time = 0; time < 4; time++) {
                for (int64_t j = 0; j < M * K; j++)
                    a[j] = 1.5f;
                for (int64_t j = 0; j < K * N; j++)
                    b[j] = 0.75f;
                *(time % 2 ? &a[pick(0, M * K - 1)] : &b[pick(0, K * N - 1)]) = cases[i].value;
                tr__tile_product p = {.m = M, .n = N, .k = K, .a = a, .b = b, .y = y, .a_wide = true, .b_wide = true, .split = true,
                                      .wide = true, .a_row = turned & 1 ? 1 : K, .a_column = turned & 1 ? M : 1,
                                      .b_row = turned & 2 ? 1 : N, .b_column = turned & 2 ? K : 1, .alpha = 1};
                cr_assert_eq(run(&p, 1 + time / 2), cases[i].exact, "%g", cases[i].value);
            }
    for (int64_t j = 0; j < K; j++)
        a[j] = 0x1p-60f, b[j * N] = 0x1p-60f;
    tr__tile_product p = {.m = 1, .n = 1, .k = K, .a = a, .b = b, .y = y, .a_wide = true, .b_wide = true, .split = true,
                          .wide = true, .a_row = K, .a_column = 1, .b_row = N, .b_column = 1, .alpha = 1};
    cr_assert(!run(&p, 1));
}
