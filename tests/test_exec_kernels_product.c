/* Products in bfloat16 by AMX's tiles (isa_product.c), against sums in double of the rounded factors: all ways that factors lie,
 * both dtypes, edges of tiles, sums in several pieces. Memory behind each operand can't be read. */
#include "kernel_call.h"

#include "exec/kernels/kernels.h"

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
static void fill(numbers *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        float f = (float) pick(-1000, 1000) / 512;
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

static void run(const tr__bf16_product *p, int threads) {
    tr_kernel_ctx ctx = kc_ctx;
    ctx.threads = threads;
    tr_kernel_call call = {.op = TR_OP_mm, .ctx = &ctx};
    cr_assert_eq(tr__isa_now->multiply(&call, p), TR_OK);
    kc_release();
}

static void check(int64_t m, int64_t n, int64_t k) {
    bool a_turned = pick(0, 1), b_turned = pick(0, 1);
    int64_t a_lines = a_turned ? k : m, a_row = (a_turned ? m : k) + pick(0, 1) * pick(1, 40);
    int64_t b_lines = b_turned ? n : k, b_row = (b_turned ? k : n) + pick(0, 1) * pick(1, 40);
    int64_t a_count = (a_lines - 1) * a_row + (a_turned ? m : k), b_count = (b_lines - 1) * b_row + (b_turned ? k : n);
    bool wide = pick(0, 1);
    numbers a = take(a_count, pick(0, 1)), b = take(b_count, pick(0, 1)), bias = take(n, wide);
    numbers y = take(m * n, wide), old = take(m * n, wide);
    fill(&a, a_count);
    fill(&b, b_count);
    fill(&bias, n);
    fill(&old, m * n);
    tr__bf16_product p = {.m = m, .n = n, .k = k, .a = a.data, .b = b.data, .y = y.data,
                          .a_wide = a.wide, .b_wide = b.wide, .wide = wide, .bias_wide = wide,
                          .a_row = a_turned ? 1 : a_row, .a_column = a_turned ? a_row : 1, .b_row = b_turned ? 1 : b_row,
                          .b_column = b_turned ? b_row : 1, .bias = pick(0, 1) ? bias.data : NULL, .alpha = pick(0, 1) ? 1 : 0.5f,
                          .beta = pick(0, 2) ? 0 : -1.5f};
    size_t bytes = (size_t) (m * n) * (wide ? 4 : 2);
    char *first = malloc(bytes);
    for (int threads = 1; threads <= 3; threads++) {
        memcpy(y.data, old.data, bytes);
        run(&p, threads);
        if (threads == 1)
            memcpy(first, y.data, bytes);
        cr_assert_eq(memcmp(first, y.data, bytes), 0, "%d threads", threads);
    }
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = 0, size = 0;
            for (int64_t s = 0; s < k; s++) {
                double term = rounded(&a, i * p.a_row + s * p.a_column) * rounded(&b, s * p.b_row + j * p.b_column);
                sum += term;
                size += fabs(term);
            }
            double want = p.alpha * sum + (p.bias ? number(&bias, j) : 0) + (p.beta != 0 ? p.beta * number(&old, i * n + j) : 0);
            double far = fabs(number(&y, i * n + j) - want), room = 1e-6 * (size + 4) + (wide ? 0 : fabs(want) / 256);
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
        check(pick(1, 100), pick(1, 100), pick(1, 150));
}

Test(product, whole_tiles_are_read_where_they_lie) {
    for (int time = 0; time < 40 && has_tiles(); time++)
        check(32 * pick(1, 3) + pick(0, 1) * pick(1, 31), 32 * pick(1, 8), 32 * pick(1, 6));
}

Test(product, sums_in_several_pieces) {
    static const int64_t depths[] = {2048, 2049, 2080, 4095, 4128, 6150};
    for (int i = 0; i < 6 && has_tiles(); i++)
        check(pick(1, 70), pick(1, 140), depths[i]);
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
    tr__bf16_product p = {.m = M, .n = N, .k = K, .a = a, .b = b, .y = y, .a_wide = true, .b_wide = true, .wide = true, .a_row = K,
                          .a_column = 1, .b_row = N, .b_column = 1, .alpha = 1};
    run(&p, 2);
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++)
            if (j == N - 1)
                cr_assert(isnan(y[i * N + j]));
            else
                cr_assert_eq(y[i * N + j], i == M - 1 ? INFINITY : 2 * K);
}
