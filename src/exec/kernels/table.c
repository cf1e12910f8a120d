/* table.c - the choice of instruction set. The kernel tables themselves, made from the op table, are in isa_ew.c. */
#include "exec/kernels/kernels.h"

#if defined __x86_64__ && defined __linux__
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

static bool amx; /* may tiles be used? Set once, before there are other threads */

bool tr__has_amx(void) {
    return amx;
}

#ifdef TR_HAVE_ISA_v2
extern const tr__isa tr__isa_v2, tr__isa_v3, tr__isa_v4;
#else
extern const tr__isa tr__isa_generic;
#endif

const tr__isa *tr__isa_now;

#ifdef TR_HAVE_ISA_v2
static const tr__isa *best_isa(void) {
    __builtin_cpu_init();
    bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd");
    return v4 ? &tr__isa_v4 : v3 ? &tr__isa_v3 : &tr__isa_v2;
}

bool tr__has_avx512_bf16(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512bf16");
}

/* Does the processor multiply tiles of bfloat16, and does the system keep them for this process? It must be asked to. */
static bool take_amx(void) {
#ifdef __linux__
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18, AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24 };
    unsigned a, b, c, d;
    return tr__has_avx512_bf16() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & AMX_BF16) && (d & AMX_TILE) &&
           syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
#else
    return false;
#endif
}

/* "amx" is v4 and tiles. */
static const tr__isa *find_isa(const char *name) {
    static const tr__isa *const all[] = {&tr__isa_v2, &tr__isa_v3, &tr__isa_v4};
    const tr__isa *best = best_isa();
    amx = (!name || strcmp(name, "amx") == 0) && best == &tr__isa_v4 && take_amx();
    if (!name || amx)
        return best;
    for (int i = 0; i < 3; i++) {
        if (strcmp(all[i]->name, name) == 0)
            return all[i];
        if (all[i] == best)
            break;
    }
    return NULL;
}
#else
bool tr__has_avx512_bf16(void) {
    return false;
}

static const tr__isa *find_isa(const char *name) {
    return !name || strcmp(name, "generic") == 0 ? &tr__isa_generic : NULL;
}
#endif

tr_status tr_kernel_init(const char *isa) {
    const tr__isa *found = find_isa(isa);
    if (!found)
        return TR_FAIL(TR_E_VALUE, "instruction set '%s' is unknown, or this machine doesn't have it", isa);
    tr__isa_now = found;
    return TR_OK;
}

const char *tr_kernel_isa(void) {
    return !tr__isa_now ? "none" : amx ? "amx" : tr__isa_now->name;
}

tr_kernel tr_kernel_of(tr_op op) {
    return tr__isa_now->kernel[op];
}

tr_status tr_dropout_draw(const tr_kernel_call *c) {
    return tr__isa_now->dropout_draw(c);
}

tr_status tr_dropout_apply(const tr_kernel_call *c) {
    return tr__isa_now->dropout_apply(c);
}

tr_status tr_norm_forward_fused(const tr_norm_forward *f, tr_kernel_ctx *ctx) {
    return tr__isa_now->norm_forward(f, ctx);
}

tr_status tr_norm_backward_fused(const tr_norm_backward *f, tr_kernel_ctx *ctx) {
    return tr__isa_now->norm_backward(f, ctx);
}

tr_status tr_layer_norm_fused(const tr_layer_norm_forward *f, tr_kernel_ctx *ctx) {
    if (!tr__absent(&f->other) && tr__is_bf16(&f->x))
        return TR_FAIL(TR_E_NOTIMPL, "layer_norm of a sum: bfloat16 is not supported");
    return tr__isa_now->layer_norm_forward(f, ctx);
}

tr_status tr_kernel_multi(tr_op op, const tr_kernel_call *calls, int n) {
    if (n > 0 && tr_op_info_of(op)->op_class == TR_CLASS_OPTIM)
        return tr__isa_now->update_all(op, calls, n);
    for (int k = 0; k < n; k++)
        TR_TRY(tr__isa_now->kernel[op](&calls[k]));
    return TR_OK;
}
