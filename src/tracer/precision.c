/* precision.c - torch.set_float32_matmul_precision: which products of float32 are computed in bfloat16.
 *
 * Their factors are rounded once, sums and results stay float32. The choice is made here, of the whole operands, and is part of
 * the call: an op's kernel, which a plan may run slice by slice, does as it is told, so that results are the same everywhere;
 * and a path with other choices is another path. Derivatives are products like any other. */
#include "tracer/dispatch.h"

#include "terra/dnn.h"

#ifdef TR_DEBUG
enum { LARGE = 1 << 12, THICK = 8 };
#else
/* Multiplications from which on a product outweighs the rounding of its factors; rows and columns of the result, of which each
 * reads a factor once more. (Zen 5, one thread: 128x128x128 gains a tenth, 1024x768x768 takes half the time.) */
enum { LARGE = 1 << 21, THICK = 32 };
#endif

static bool lower; /* under the GIL */

void tr_set_products_lower(bool on) {
    lower = on && tr_dnn_has_fast_bf16();
}

/* `across`: b's dimension, from the last, that the product keeps. The shapes have not been checked yet. */
static bool is_large(const tr_meta *a, const tr_meta *b, int across) {
    if (a->ndim < 2 || a->ndim != b->ndim)
        return false;
    int64_t rows = a->shape[a->ndim - 2], columns = b->shape[b->ndim - across];
    return rows >= THICK && columns >= THICK && (double) a->numel * (double) columns >= LARGE;
}

/* Of attention, queries by keys decide for all of its products. */
tr_dtype tr__product_dtype(tr_op op, const tr_operand *in) {
    int first = op == TR_OP_addmm || op == TR_OP_baddbmm || op == TR_OP__sdpa_backward;
    bool attention = op == TR_OP__sdpa || op == TR_OP__sdpa_backward;
    const tr_meta *a = in[first].meta, *b = in[first + 1].meta;
    bool lowered = lower && a->dtype == TR_F32 && b->dtype == TR_F32 && is_large(a, b, attention ? 2 : 1);
    return lowered ? TR_BF16 : (tr_dtype) a->dtype;
}
