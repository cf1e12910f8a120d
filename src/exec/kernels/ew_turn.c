/* ew_turn.c - operands that lie in another order than the result: turned over by squares. */
#include "exec/kernels/ew.h"

/* A copy between two orders, neither conversion nor arithmetic: squares of EDGE x EDGE keep both sides in the cache. */
enum { EDGE = 32 };

typedef struct turn {
    const run *r;
    const argument *from, *to;
    int other;              /* the dimension along which `from` is contiguous */
    int64_t blocks, across; /* blocks per plane; of them, along the innermost dimension */
    size_t size;
} turn;

#define TURN_BLOCK(T)                                                                                                           \
    /* through a buffer, so that each line of either side is touched once: steps that are powers of two share few cache sets */ \
    static void turn_block_##T(T *to, int64_t to_step, const T *from, int64_t from_step, int64_t rows, int64_t columns) {       \
        T block[EDGE][EDGE + 1];                                                                                                \
        for (int64_t k = 0; k < columns; k++)                                                                                   \
            for (int64_t i = 0; i < rows; i++)                                                                                  \
                block[i][k] = from[i + k * from_step];                                                                          \
        for (int64_t i = 0; i < rows; i++)                                                                                      \
            memcpy(to + i * to_step, block[i], (size_t) columns * sizeof *to);                                                  \
    }
TURN_BLOCK(uint8_t)
TURN_BLOCK(uint16_t)
TURN_BLOCK(uint32_t)
TURN_BLOCK(uint64_t)

static void turn_blocks(void *env, int64_t begin, int64_t end, int thread) {
    const turn *t = env;
    const run *r = t->r;
    int inner = r->ndim - 1;
    for (int64_t b = begin; b < end; b++) {
        int64_t plane = b / t->blocks, at = b % t->blocks, f = 0, o = 0;
        for (int d = inner - 1; d >= 0; d--) {
            if (d == t->other)
                continue;
            f += plane % r->shape[d] * t->from->strides[d];
            o += plane % r->shape[d] * t->to->strides[d];
            plane /= r->shape[d];
        }
        int64_t row = at / t->across * EDGE, col = at % t->across * EDGE;
        int64_t rows = tr__min(EDGE, r->shape[t->other] - row), columns = tr__min(EDGE, r->shape[inner] - col);
        int64_t to_step = t->to->strides[t->other], from_step = t->from->strides[inner];
        char *to = t->to->data + (o + row * to_step + col) * (int64_t) t->size;
        const char *from = t->from->data + (f + row + col * from_step) * (int64_t) t->size;
        switch (t->size) {
            case 1:
                turn_block_uint8_t((uint8_t *) to, to_step, (const uint8_t *) from, from_step, rows, columns);
                break;
            case 2:
                turn_block_uint16_t((uint16_t *) to, to_step, (const uint16_t *) from, from_step, rows, columns);
                break;
            case 4:
                turn_block_uint32_t((uint32_t *) to, to_step, (const uint32_t *) from, from_step, rows, columns);
                break;
            default:
                turn_block_uint64_t((uint64_t *) to, to_step, (const uint64_t *) from, from_step, rows, columns);
        }
    }
}

/* Copies `from` into `to`, both of one dtype, when their orders differ in the way that squares help with. */
static bool turn_over(const run *r, const argument *from, const argument *to, tr_kernel_ctx *ctx, int64_t numel) {
    int inner = r->ndim - 1;
    turn t = {.r = r, .from = from, .to = to, .other = -1};
    if (r->ndim < 2 || from->dtype != to->dtype || to->strides[inner] != 1 || from->strides[inner] <= 1)
        return false;
    for (int d = 0; d < inner; d++)
        if (from->strides[d] == 1)
            t.other = d;
    if (t.other < 0 || r->shape[t.other] < 8 || r->shape[inner] < 8)
        return false;
    t.size = tr_dtype_size((tr_dtype) from->dtype);
    t.across = (r->shape[inner] + EDGE - 1) / EDGE;
    t.blocks = t.across * ((r->shape[t.other] + EDGE - 1) / EDGE);
    tr__parallel_pieces(ctx, t.blocks * (numel / (r->shape[inner] * r->shape[t.other])), TR__GRAIN / (EDGE * EDGE), turn_blocks, &t);
    return true;
}

/* Does the program only copy, from one order of dimensions into another? Then it is done here. */
bool tr__ew_run_turn(const tr_ew_program *p, const run *r, tr_kernel_ctx *ctx, int64_t numel) {
    const tr_ew_step *s = &p->steps[0];
    if (p->n_steps != 1 || !tr__ew_is_identity(s->op) || s->in[tr__ew_first_operand(s->op)] < 0)
        return false;
    const argument *from = &r->args[s->in[tr__ew_first_operand(s->op)]];
    return from->data && turn_over(r, from, &r->args[s->store], ctx, numel);
}

/* Big operands that lie across the tiles are turned over into scratch first: a column read element by element touches a
 * cache line for each. Nothing happens when there is no scratch. */
enum { TURN_MIN = 64 * 1024 };
void tr__ew_straighten(const tr_ew_program *p, run *r, tr_kernel_ctx *ctx, int64_t numel) {
    int inner = r->ndim - 1;
    for (int k = 0; k < r->n_args; k++) {
        argument *g = &r->args[k], straight = *g;
        bool stored = false;
        for (int s = 0; s < p->n_steps; s++)
            stored |= p->steps[s].store == k;
        if (stored || !g->data || numel < TURN_MIN || r->ndim < 2 || g->strides[inner] < 16)
            continue;
        int64_t step = 1;
        for (int d = inner; d >= 0; d--) {
            if (g->strides[d] == 0 && r->shape[d] > 1)
                step = 0; // broadcast: its copy would be bigger than itself
            straight.strides[d] = step;
            step *= r->shape[d];
        }
        if (step == 0 || !(straight.data = ctx->scratch(ctx, (size_t) numel * tr_dtype_size((tr_dtype) g->dtype))))
            continue;
        straight.linear = true;
        if (turn_over(r, g, &straight, ctx, numel))
            *g = straight;
    }
}
