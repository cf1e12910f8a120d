/* vjp_elementwise.c - derivatives of elementwise ops. Formulas are PyTorch's (derivatives.yaml), so that rounding agrees. */
#include "tracer/vjp_rules.h"

#include "tracer/vjp.h"

#include <math.h>

/* ---- one operand ---- */

VJP(zero, 0, 0) { GIVE(0, full_like(v, META(0), 0)); }
VJP(neg, 0, 0) { GIVE(0, neg(v, G)); }
VJP(clone, 0, 0) { GIVE(0, G); }
VJP(cast, 0, 0) { GIVE(0, G); } // the engine casts back
VJP(abs, BIT(0), 0) { GIVE(0, mul(v, G, WORD(sign, X(0)))); }
VJP(square, BIT(0), 0) { GIVE(0, mul(v, G, scale(v, IN(0), 2))); }
VJP(exp, 0, BIT(0)) { GIVE(0, mul(v, G, OUT(0))); }
VJP(expm1, 0, BIT(0)) { GIVE(0, mul(v, G, shift(v, OUT(0), 1))); }
VJP(log, BIT(0), 0) { GIVE(0, divide(v, G, IN(0))); }
VJP(log2, BIT(0), 0) { GIVE(0, divide(v, G, scale(v, IN(0), 0.6931471805599453))); }
VJP(log10, BIT(0), 0) { GIVE(0, divide(v, G, scale(v, IN(0), 2.3025850929940456))); }
VJP(log1p, BIT(0), 0) { GIVE(0, divide(v, G, shift(v, IN(0), 1))); }
VJP(sqrt, 0, BIT(0)) { GIVE(0, divide(v, G, scale(v, OUT(0), 2))); }
VJP(rsqrt, 0, BIT(0)) {
    T out = OUT(0);
    GIVE(0, mul(v, scale(v, G, -0.5), mul(v, mul(v, out, out), out)));
}
VJP(reciprocal, 0, BIT(0)) {
    T out = OUT(0);
    GIVE(0, mul(v, neg(v, G), mul(v, out, out)));
}
VJP(sin, BIT(0), 0) { GIVE(0, mul(v, G, WORD(cos, X(0)))); }
VJP(cos, BIT(0), 0) { GIVE(0, mul(v, G, neg(v, WORD(sin, X(0))))); }
VJP(tan, 0, BIT(0)) { GIVE(0, mul(v, G, shift(v, square(v, OUT(0)), 1))); }
VJP(asin, BIT(0), 0) { GIVE(0, mul(v, G, WORD(rsqrt, tr_in(rshift(v, 1, square(v, IN(0))))))); }
VJP(acos, BIT(0), 0) { GIVE(0, mul(v, G, neg(v, WORD(rsqrt, tr_in(rshift(v, 1, square(v, IN(0)))))))); }
VJP(atan, BIT(0), 0) { GIVE(0, divide(v, G, shift(v, square(v, IN(0)), 1))); }
VJP(sinh, BIT(0), 0) { GIVE(0, mul(v, G, WORD(cosh, X(0)))); }
VJP(cosh, BIT(0), 0) { GIVE(0, mul(v, G, WORD(sinh, X(0)))); }
VJP(tanh, 0, BIT(0)) { GIVE(0, mul(v, G, rshift(v, 1, square(v, OUT(0))))); }
VJP(sigmoid, 0, BIT(0)) {
    T out = OUT(0);
    GIVE(0, mul(v, mul(v, G, rshift(v, 1, out)), out));
}
VJP(erf, BIT(0), 0) { GIVE(0, mul(v, scale(v, WORD(exp, tr_in(neg(v, square(v, IN(0))))), 1.1283791670955126), G)); }
VJP(relu, 0, BIT(0)) { GIVE(0, WORD(threshold_backward, tr_in(G), tr_in(OUT(0)), tr_in_int(0))); }
VJP(threshold_backward, 0x2, 0) {
    if (NEEDS(0))
        GIVE(0, WORD(threshold_backward, tr_in(G), tr_in(IN(1)), (tr_input){.meta = META(2), .number = v->node->edges[2].number}));
}
VJP(silu, BIT(0), 0) {
    T x = IN(0), s = WORD(sigmoid, tr_in(x));
    GIVE(0, mul(v, mul(v, G, s), shift(v, mul(v, x, rshift(v, 1, s)), 1)));
}
VJP(gelu, BIT(0), 0) { GIVE(0, WORD_A(gelu_backward, A(ATTR(0)), tr_in(G), X(0))); }

/* The second derivative of gelu, by the formula of its approximation. */
static T gelu_second(tr_vjp *v, T x, bool tanh_form) {
    if (!tanh_form) { // phi(x) (2 - x^2)
        T density = scale(v, WORD(exp, tr_in(scale(v, square(v, x), -0.5))), 0.3989422804014327);
        return mul(v, density, rshift(v, 2, square(v, x)));
    }
    double k = 0.7978845608028654, c = 0.044715;
    T x2 = square(v, x);
    T t = WORD(tanh, tr_in(scale(v, mul(v, x, shift(v, scale(v, x2, c), 1)), k)));
    T du = scale(v, shift(v, scale(v, x2, 3 * c), 1), k), d2u = scale(v, x, 6 * k * c);
    T s = rshift(v, 1, square(v, t));
    T inner = sub(v, mul(v, s, d2u), scale(v, mul(v, mul(v, t, s), square(v, du)), 2));
    return add(v, mul(v, s, du), scale(v, mul(v, x, inner), 0.5));
}
VJP(gelu_backward, 0x3, 0) {
    if (NEEDS(0))
        GIVE(0, WORD_A(gelu_backward, A(ATTR(0)), tr_in(G), X(1)));
    if (NEEDS(1))
        GIVE(1, mul(v, mul(v, G, IN(0)), gelu_second(v, IN(1), ATTR(0) == 1)));
}
VJP(softplus, BIT(0), 0) {
    T z = scale(v, IN(0), NUMBER(1));
    T steep = WORD(gt, tr_in(z), tr_in_double(NUMBER(2)));
    GIVE(0, WORD(where, tr_in(steep), tr_in(G), tr_in(mul(v, G, WORD(sigmoid, tr_in(z))))));
}
VJP(leaky_relu, BIT(0), 0) {
    GIVE(0, WORD(where, tr_in(WORD(gt, X(0), tr_in_int(0))), tr_in(G), tr_in(scale(v, G, NUMBER(1)))));
}
VJP(elu, BIT(0), 0) {
    T below = mul(v, scale(v, G, NUMBER(1)), WORD(exp, X(0)));
    GIVE(0, WORD(where, tr_in(WORD(gt, X(0), tr_in_int(0))), tr_in(G), tr_in(below)));
}
VJP(hardtanh, BIT(0), 0) {
    T low = WORD(gt, X(0), tr_in_double(NUMBER(1))), high = WORD(lt, X(0), tr_in_double(NUMBER(2)));
    GIVE(0, where0(v, WORD(logical_and, tr_in(low), tr_in(high)), G));
}
VJP(logsigmoid, BIT(0), 0) { GIVE(0, mul(v, G, WORD(sigmoid, tr_in(neg(v, IN(0)))))); }

/* ---- several operands ---- */

VJP(add, 0, 0) {
    if (NEEDS(0))
        GIVE(0, G);
    if (NEEDS(1))
        GIVE(1, NUMBER(2) == 1 ? G : scale(v, G, NUMBER(2)));
}
VJP(sub, 0, 0) {
    if (NEEDS(0))
        GIVE(0, G);
    if (NEEDS(1))
        GIVE(1, NUMBER(2) == 1 ? neg(v, G) : scale(v, G, -NUMBER(2)));
}
VJP_WITH(mul, 0x3, 0, true, false) {
    if (NEEDS(0))
        GIVE(0, WORD(mul, tr_in(G), X(1)));
    if (NEEDS(1))
        GIVE(1, WORD(mul, tr_in(G), X(0)));
}
VJP(div, 0x3, 0) {
    if (ATTR(0) != 0) { // rounded: flat
        if (NEEDS(0))
            GIVE(0, full_like(v, META(0), 0));
        if (NEEDS(1))
            GIVE(1, full_like(v, META(1), 0));
        return;
    }
    if (NEEDS(0))
        GIVE(0, WORD_A(div, A(0), tr_in(G), X(1)));
    if (NEEDS(1))
        GIVE(1, mul(v, neg(v, G), WORD_A(div, A(0), tr_in(WORD_A(div, A(0), X(0), X(1))), X(1))));
}
VJP(remainder, 0x3, 0) {
    if (NEEDS(0))
        GIVE(0, G);
    if (NEEDS(1))
        GIVE(1, mul(v, neg(v, G), WORD_A(div, A(2), X(0), X(1))));
}
VJP(fmod, 0x3, 0) {
    if (NEEDS(0))
        GIVE(0, G);
    if (NEEDS(1))
        GIVE(1, mul(v, neg(v, G), WORD_A(div, A(1), X(0), X(1))));
}
static bool is_tensor(const tr_vjp *v, int i) {
    return tr__node_saves(v->node, i);
}
VJP(pow, 0x3, BIT(0)) {
    if (NEEDS(0)) {
        if (!is_tensor(v, 1)) {
            double e = NUMBER(1);
            GIVE(0, e == 0 ? full_like(v, META(0), 0)
                           : mul(v, G, scale(v, WORD(pow, X(0), tr_in_double(e - 1)), e)));
        } else {
            T e = IN(1);
            T d = mul(v, G, mul(v, e, WORD(pow, X(0), tr_in(shift(v, e, -1)))));
            GIVE(0, where1(v, WORD(eq, tr_in(e), tr_in_int(0)), d));
        }
    }
    if (NEEDS(1)) {
        T out = OUT(0);
        if (!is_tensor(v, 0)) {
            double b = NUMBER(0);
            GIVE(1, b == 0 ? where1(v, WORD(ge, X(1), tr_in_int(0)), scale(v, mul(v, G, out), -INFINITY))
                           : mul(v, G, scale(v, out, log(b))));
        } else {
            T flat = WORD(logical_and, tr_in(WORD(eq, X(0), tr_in_int(0))), tr_in(WORD(ge, X(1), tr_in_int(0))));
            GIVE(1, mul(v, G, where1(v, flat, mul(v, out, WORD(log, X(0))))));
        }
    }
}
VJP(atan2, 0x3, 0) {
    T norm = WORD(add, tr_in(WORD(mul, X(0), X(0))), tr_in(WORD(mul, X(1), X(1))), tr_in_int(1));
    T r = divide(v, G, norm);
    if (NEEDS(0))
        GIVE(0, WORD(mul, tr_in(r), X(1)));
    if (NEEDS(1))
        GIVE(1, neg(v, WORD(mul, tr_in(r), X(0))));
}
/* The gradient goes to the larger (smaller) one, halved where they are equal. */
static void extremum(tr_vjp *v, tr_op loses) {
    T half = WORD(where, tr_in(WORD(eq, X(0), X(1))), tr_in(scale(v, G, 0.5)), tr_in(G));
    for (int i = 0; i < 2; i++)
        if (NEEDS(i)) {
            T lost = tr__word(v, loses, (tr_input[]){X(i), X(1 - i)}, 2, NULL, NULL, 0);
            GIVE(i, where1(v, lost, half));
        }
}
VJP(maximum, 0x3, 0) { extremum(v, TR_OP_lt); }
VJP(minimum, 0x3, 0) { extremum(v, TR_OP_gt); }
VJP(where, BIT(0), 0) {
    if (NEEDS(1))
        GIVE(1, where0(v, IN(0), G));
    if (NEEDS(2))
        GIVE(2, where1(v, IN(0), G));
}
VJP(masked_fill, BIT(1), 0) {
    if (NEEDS(0))
        GIVE(0, WORD(masked_fill, tr_in(G), X(1), tr_in_int(0)));
    if (NEEDS(2))
        GIVE(2, where0(v, IN(1), G));
}
VJP(clamp, 0x7, 0) {
    bool low = META(1) != NULL, high = META(2) != NULL;
    if (NEEDS(0)) {
        T inside = low ? WORD(ge, X(0), X(1)) : NULL, below = high ? WORD(le, X(0), X(2)) : NULL;
        T both = low && high ? WORD(logical_and, tr_in(inside), tr_in(below)) : low ? inside : below;
        GIVE(0, where0(v, both, G));
    }
    if (low && NEEDS(1)) {
        T under = WORD(lt, X(0), X(1));
        if (high)
            under = WORD(logical_and, tr_in(under), tr_in(WORD(lt, X(1), X(2))));
        GIVE(1, where0(v, under, G));
    }
    if (high && NEEDS(2)) {
        T over = WORD(gt, X(0), X(2));
        if (low)
            over = WORD(logical_or, tr_in(over), tr_in(WORD(ge, X(1), X(2))));
        GIVE(2, where0(v, over, G));
    }
}
VJP(lerp, 0x7, 0) {
    if (NEEDS(0))
        GIVE(0, WORD(mul, tr_in(G), is_tensor(v, 2) ? tr_in(rshift(v, 1, IN(2))) : tr_in_double(1 - NUMBER(2))));
    if (NEEDS(1))
        GIVE(1, WORD(mul, tr_in(G), X(2)));
    if (is_tensor(v, 2) && NEEDS(2))
        GIVE(2, mul(v, G, sub(v, IN(1), IN(0))));
}
VJP(addcmul, 0x6, 0) {
    if (NEEDS(0))
        GIVE(0, G);
    if (NEEDS(1))
        GIVE(1, mul(v, G, scale(v, IN(2), NUMBER(3))));
    if (NEEDS(2))
        GIVE(2, mul(v, G, scale(v, IN(1), NUMBER(3))));
}
VJP(addcdiv, 0x6, 0) {
    if (NEEDS(0))
        GIVE(0, G);
    if (NEEDS(1))
        GIVE(1, mul(v, G, WORD_A(div, A(0), tr_in_double(NUMBER(3)), X(2))));
    if (NEEDS(2)) {
        T t2 = IN(2);
        GIVE(2, mul(v, neg(v, G), divide(v, scale(v, IN(1), NUMBER(3)), mul(v, t2, t2))));
    }
}
VJP(masked_scale, BIT(1), 0) { GIVE(0, WORD(masked_scale, tr_in(G), X(1), tr_in_double(NUMBER(2)))); }
VJP(copy_, 0, 0) {
    if (NEEDS(1))
        GIVE(1, G);
}
VJP(fill_, 0, 0) {
    if (NEEDS(1))
        GIVE(1, G);
}
VJP(fill_random, 0, 0) {}
VJP(dropout, 0, BIT(1)) {
    double p = NUMBER(1);
    if (G)
        GIVE(0, p == 1 ? full_like(v, META(0), 0) : WORD(masked_scale, tr_in(G), tr_in(OUT(1)), tr_in_double(1 / (1 - p))));
}
