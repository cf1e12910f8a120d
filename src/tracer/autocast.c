/* autocast.c - PyTorch's automatic casts. In a region, an op whose row of the op table has a policy is given its floating-point
 * operands in the region's lower precision, or in float32; float64 stays. The casts are ops, called before it.
 *
 * A leaf that wants a gradient is cast once in a region, however often it is used: `lower` of the tensor keeps the cast, and the
 * list here what has one. Both are the process's, under the GIL; the rest of the state is a thread's. */
#include "tracer/dispatch.h"

#include "terra/alloc.h"

_Thread_local tr_autocast tr__autocast = {.cache = true, .lower = TR_BF16};

static struct {
    tr_tensor **leaves; /* retained; each has a `lower` */
    int n, size;
} kept;

tr_autocast *tr_autocast_state(void) {
    return &tr__autocast;
}

void tr_autocast_clear(void) {
    while (kept.n) {
        tr_tensor *leaf = kept.leaves[--kept.n], *lower = leaf->lower;
        leaf->lower = NULL;
        tr_tensor_release(lower);
        tr_tensor_release(leaf);
    }
    tr_free(kept.leaves);
    kept.leaves = NULL;
    kept.size = 0;
}

/* Without memory for the list the cast is not kept. */
static void keep(tr_tensor *leaf, tr_tensor *lower) {
    if (kept.n == kept.size) {
        int size = 2 * kept.size + 64;
        tr_tensor **more = tr_realloc(kept.leaves, (size_t) size * sizeof *more);
        if (!more)
            return;
        kept.leaves = more;
        kept.size = size;
    }
    kept.leaves[kept.n++] = leaf;
    leaf->lower = lower;
    tr_tensor_retain(leaf);
    tr_tensor_retain(lower);
}

tr_status tr_autocast_operand(tr_autocast_policy policy, tr_tensor *t, tr_tensor **out) {
    tr_dtype have = (tr_dtype) t->meta->dtype, to = policy == TR_AUTOCAST_LOWER ? tr__autocast.lower : TR_F32;
    if (have == to || !tr_dtype_is_float(have) || have == TR_F64 || policy == TR_AUTOCAST_NONE) {
        tr_tensor_retain(t);
        *out = t;
        return TR_OK;
    }
    // A cast made while nothing is recorded would cut its later users off.
    bool keeps = policy == TR_AUTOCAST_LOWER && t->requires_grad && tr_tensor_is_leaf(t) && !t->base && tr__autocast.cache &&
                 tr_grad_enabled();
    if (!keeps || !t->lower) {
        TR_TRY(tr_to_dtype(t, to, out));
        if (keeps)
            keep(t, *out);
        return TR_OK;
    }
    tr_tensor_retain(t->lower);
    *out = t->lower;
    return TR_OK;
}
