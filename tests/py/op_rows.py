"""One row per operator of include/terra/ops.def: how to call it, on what, and what else must hold.

A row drives everything: values, dtypes, broadcasting, non-contiguous, empty and zero-dimensional inputs, gradients, double
gradients, and bad inputs. `call(t, F, *tensors)` gets the module under test (torch or terra), its nn.functional, and
tensors; it must be the same program on both.
"""

from dataclasses import dataclass, field
from typing import Callable

import numpy as np


@dataclass
class In:
    """One input: shape, how to fill it, and whether a gradient is taken."""

    shape: tuple
    kind: str = "normal"  # normal, positive, unit (in (-1, 1)), prob (in (0, 1)), distinct, holed, bool, index:<n>
    grad: bool = True
    dtype: str | None = None  # fixed dtype; None: the dtype under test

    def make(self, rng):
        n = self.shape
        if self.kind == "normal":
            return rng.standard_normal(n)
        if self.kind == "positive":
            return rng.uniform(0.3, 2.5, n)
        if self.kind == "holed":  # rows with no, one and several zeros, at all places
            x = rng.uniform(0.3, 2.5, n)
            x[rng.uniform(size=n) < 0.25] = 0
            return x
        if self.kind == "unit":
            return rng.uniform(-0.9, 0.9, n)
        if self.kind == "prob":
            return rng.uniform(0.05, 0.95, n)
        if self.kind == "distinct":
            return (rng.permutation(int(np.prod(n))).reshape(n) - int(np.prod(n)) / 2) / 3.0
        if self.kind == "bool":
            return rng.integers(0, 2, n).astype(bool)
        if self.kind.startswith("index:"):
            return rng.integers(0, int(self.kind[6:]), n)
        raise ValueError(self.kind)

    @property
    def differentiable(self):
        return self.grad and self.kind not in ("bool",) and not self.kind.startswith("index") and self.dtype is None


@dataclass
class Row:
    call: Callable
    inputs: list  # list of lists of In: samples
    bad: list = field(default_factory=list)  # calls (t, F) that must raise, in both, the same class
    dtypes: tuple = ("float32", "float64", "bfloat16")
    grad: bool = True
    gradgrad: bool = True
    tol: float = 1.0  # multiplies the tolerance
    elementwise: bool = False  # strides of the result are compared as well
    random: bool = False  # draws: both sides are seeded alike
    exact: bool = False
    layouts: tuple = ("contiguous", "strided")


ROWS: dict[str, Row] = {}

INTS = ("int64", "int32", "uint8")
FLOATS = ("float32", "float64", "bfloat16")


def row(name, call, *inputs, **kw):
    assert name not in ROWS, name
    ROWS[name] = Row(call, [list(i) for i in inputs], **kw)


def shapes(kind="normal", n=1, **kw):
    """The usual shapes for n tensors of one shape: matrix, empty, zero-dimensional, 4-d."""
    return [[In(s, kind, **kw) for _ in range(n)] for s in ((3, 5), (0, 4), (), (2, 3, 4, 5), (67,))]


def broadcast(n=2, kind="normal"):
    sets = [((3, 5), (3, 5)), ((3, 5), (5,)), ((3, 1), (1, 5)), ((4, 3, 5), ()), ((0, 5), (1, 5)), ((), ()), ((2, 1, 4), (3, 1))]
    return [[In(s[min(i, 1)], kind) for i in range(n)] for s in sets]


def unary_bad(name):
    return [
        lambda t, F: getattr(t, name)("x"),
        lambda t, F: getattr(t, name)(),
        lambda t, F: getattr(t, name)(t.ones(2), t.ones(2), t.ones(2), t.ones(2)),
    ]


def method(name):
    return lambda t, F, x: getattr(t, name)(x)


# ---- elementwise, one tensor
for _name, _kind, _dtypes in [
    ("neg", "normal", FLOATS + ("int64", "int32")), ("abs", "normal", FLOATS + ("int64", "int32")),
    ("sign", "normal", FLOATS + ("int64",)), ("square", "normal", FLOATS + ("int64", "int32")),
    ("exp", "normal", FLOATS + INTS), ("expm1", "normal", FLOATS + ("int64",)), ("log", "positive", FLOATS),
    ("log2", "positive", FLOATS), ("log10", "positive", FLOATS), ("log1p", "positive", FLOATS),
    ("sqrt", "positive", FLOATS + ("int64",)), ("rsqrt", "positive", FLOATS), ("reciprocal", "positive", FLOATS),
    ("sin", "normal", FLOATS + ("int64",)), ("cos", "normal", FLOATS + ("int64",)), ("tan", "unit", FLOATS),
    ("asin", "unit", FLOATS), ("acos", "unit", FLOATS), ("atan", "normal", FLOATS), ("sinh", "normal", FLOATS),
    ("cosh", "normal", FLOATS), ("tanh", "normal", FLOATS + INTS), ("sigmoid", "normal", FLOATS + INTS),
    ("erf", "normal", FLOATS + ("int64",)), ("floor", "normal", FLOATS + ("int64",)), ("ceil", "normal", FLOATS),
    ("round", "normal", FLOATS), ("trunc", "normal", FLOATS),
]:
    row(_name, method(_name), *shapes(_kind), dtypes=_dtypes, elementwise=True, bad=unary_bad(_name))
for _name in ("isnan", "isinf", "isfinite", "logical_not"):
    row(_name, lambda t, F, x, _n=_name: getattr(t, _n)(t.where(x > 0.5, x / 0, x) if x.dtype.is_floating_point else x),
        *shapes(), dtypes=FLOATS + INTS, grad=False, elementwise=True, bad=unary_bad(_name))
row("bitwise_not", method("bitwise_not"), *shapes("index:100"), dtypes=("int64", "int32", "uint8", "bool"), grad=False,
    elementwise=True, bad=[lambda t, F: t.bitwise_not(t.ones(2)), lambda t, F: t.bitwise_not("x"), lambda t, F: t.bitwise_not()])
for _name, _f in [
    ("relu", lambda t, F, x: F.relu(x)), ("silu", lambda t, F, x: F.silu(x)), ("gelu", lambda t, F, x: F.gelu(x)),
    ("softplus", lambda t, F, x: F.softplus(x, beta=2.0, threshold=1.5)),
    ("leaky_relu", lambda t, F, x: F.leaky_relu(x, 0.2)), ("elu", lambda t, F, x: F.elu(x, 1.3)),
    ("hardtanh", lambda t, F, x: F.hardtanh(x, -0.7, 0.8)), ("logsigmoid", lambda t, F, x: F.logsigmoid(x)),
]:
    row(_name, _f, *shapes(), elementwise=True, tol=2,
        bad=[lambda t, F, _n=_name: getattr(F, _n)("x"), lambda t, F, _n=_name: getattr(F, _n)(),
             lambda t, F, _n=_name: getattr(F, _n)(t.ones(2), nonsense=1)])
row("gelu_backward", lambda t, F, x: F.gelu(x, approximate="tanh"), *shapes(), elementwise=True, tol=4,
    bad=[lambda t, F: F.gelu(t.ones(2), approximate="cubic"), lambda t, F: F.gelu(None), lambda t, F: F.gelu(t.ones(2), 3)])
row("threshold_backward", lambda t, F, x: F.relu(F.relu(x) - 0.1) * 2, *shapes(), tol=2,
    bad=[lambda t, F: F.relu(3), lambda t, F: F.relu(None), lambda t, F: F.relu([1.0])])
row("clone", lambda t, F, x: x.clone(), *shapes(), dtypes=FLOATS + INTS, elementwise=True, exact=True,
    bad=[lambda t, F: t.clone(3), lambda t, F: t.clone(), lambda t, F: t.clone(None)])
row("_contiguous", lambda t, F, x: x.t().contiguous() if x.dim() == 2 else x.contiguous(), *shapes(), dtypes=FLOATS + INTS,
    exact=True, bad=[lambda t, F: t.ones(2).contiguous(1, 2, 3), lambda t, F: t.ones(2).contiguous("x"),
                     lambda t, F: t.Tensor.contiguous(3)])
row("_cast", lambda t, F, x: x.to(t.float64) * 2 + x.to(t.float32).to(t.float64), *shapes(), dtypes=FLOATS + INTS,
    bad=[lambda t, F: t.ones(2).to("nowhere"), lambda t, F: t.ones(2).to([1]), lambda t, F: t.ones(2).type("torch.NoTensor")])

# ---- elementwise, several operands
_two_bad = lambda f: [lambda t, F: f(t, t.ones(2, 3), t.ones(4)), lambda t, F: f(t, t.ones(2), "x"), lambda t, F: f(t, t.ones(2), None)]
_f = lambda t, a, b: t.add(a, b, alpha=2)
row("add", lambda t, F, a, b: t.add(a, b, alpha=2) + 3, *broadcast(), dtypes=FLOATS + INTS, elementwise=True, bad=_two_bad(_f))
row("sub", lambda t, F, a, b: t.sub(a, b, alpha=3) - 1, *broadcast(), dtypes=FLOATS + ("int64", "int32"), elementwise=True,
    bad=_two_bad(lambda t, a, b: t.sub(a, b)))
row("mul", lambda t, F, a, b: t.mul(a, b) * 2, *broadcast(), dtypes=FLOATS + INTS, elementwise=True,
    bad=_two_bad(lambda t, a, b: t.mul(a, b)))
row("div", lambda t, F, a, b: t.div(a, b), *broadcast(kind="positive"), dtypes=FLOATS, elementwise=True,
    bad=_two_bad(lambda t, a, b: t.div(a, b)))
row("remainder", lambda t, F, a, b: t.remainder(a, b), *[[In(i[0].shape), In(i[1].shape, "positive")] for i in broadcast()],
    dtypes=("float32", "float64"), gradgrad=False, bad=_two_bad(lambda t, a, b: t.remainder(a, b)))
row("fmod", lambda t, F, a, b: t.fmod(a, b), *[[In(i[0].shape), In(i[1].shape, "positive")] for i in broadcast()],
    dtypes=("float32", "float64"), gradgrad=False, bad=_two_bad(lambda t, a, b: t.fmod(a, b)))
row("pow", lambda t, F, a, b: t.pow(a, b) + a**3 + a**-0.5 + 2.5**b, *broadcast(kind="positive"), dtypes=("float32", "float64"), tol=4,
    bad=_two_bad(lambda t, a, b: t.pow(a, b)))
row("atan2", lambda t, F, a, b: t.atan2(a, b), *broadcast(), dtypes=("float32", "float64"),
    bad=_two_bad(lambda t, a, b: t.atan2(a, b)))
for _name in ("maximum", "minimum"):
    row(_name, lambda t, F, a, b, _n=_name: getattr(t, _n)(a, b), *broadcast(), dtypes=FLOATS + INTS, elementwise=True,
        bad=_two_bad(lambda t, a, b, _n=_name: getattr(t, _n)(a, b)))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    row(_name, lambda t, F, a, b, _n=_name: getattr(t, _n)(a, b) | getattr(t, _n)(a, 1), *broadcast(), dtypes=FLOATS + INTS, grad=False,
        elementwise=True, exact=True, bad=_two_bad(lambda t, a, b, _n=_name: getattr(t, _n)(a, b)))
for _name in ("logical_and", "logical_or", "logical_xor"):
    row(_name, lambda t, F, a, b, _n=_name: getattr(t, _n)(a > 0, b > 0), *broadcast(), dtypes=("float32", "int64"), grad=False, exact=True,
        bad=_two_bad(lambda t, a, b, _n=_name: getattr(t, _n)(a, b)))
for _name in ("bitwise_and", "bitwise_or", "bitwise_xor"):
    row(_name, lambda t, F, a, b, _n=_name: getattr(t, _n)(a, b), *broadcast(kind="index:50"), dtypes=INTS + ("bool",), grad=False, exact=True,
        bad=[lambda t, F, _n=_name: getattr(t, _n)(t.ones(2), t.ones(2)), lambda t, F, _n=_name: getattr(t, _n)(t.tensor([1, 2]), t.tensor([1, 2, 3])),
             lambda t, F, _n=_name: getattr(t, _n)(t.tensor([1]), "x")])
row("where", lambda t, F, c, a, b: t.where(c, a, b), [In((3, 5), "bool"), In((3, 5)), In((5,))], [In((), "bool"), In((2,)), In(())],
    [In((0, 3), "bool"), In((0, 3)), In((3,))], dtypes=FLOATS + INTS,
    bad=[lambda t, F: t.where(t.ones(2) > 0, t.ones(3), t.ones(2)), lambda t, F: t.where(t.ones(2), t.ones(2), t.ones(2)),
         lambda t, F: t.where("x", t.ones(2), t.ones(2))])
row("masked_fill", lambda t, F, x, m: x.masked_fill(m, 2.0), [In((3, 5)), In((3, 5), "bool")], [In((3, 5)), In((5,), "bool")],
    [In(()), In((), "bool")], [In((0, 2)), In((2,), "bool")], dtypes=FLOATS,
    bad=[lambda t, F: t.ones(2).masked_fill(t.ones(2), 1.0), lambda t, F: t.ones(2).masked_fill(t.ones(3) > 0, 1.0),
         lambda t, F: t.ones(2).masked_fill(t.ones(2) > 0, t.ones(2))])
row("clamp", lambda t, F, x: t.clamp(x, -0.5, 0.7) + t.clamp(x, min=-0.2) + x.clamp(max=0.4), *shapes(), dtypes=FLOATS + ("int64",),
    bad=[lambda t, F: t.clamp(t.ones(2)), lambda t, F: t.clamp(t.ones(2), "a"), lambda t, F: t.clamp(t.ones(2), t.ones(3))])
row("lerp", lambda t, F, a, b: t.lerp(a, b, 0.3) + t.lerp(a, b, a), *broadcast(), dtypes=("float32", "float64"), tol=2,
    bad=[lambda t, F: t.lerp(t.ones(2), t.ones(3), 0.5), lambda t, F: t.lerp(t.ones(2), 3, 0.5), lambda t, F: t.lerp(t.ones(2), t.ones(2))])
for _name in ("addcmul", "addcdiv"):
    row(_name, lambda t, F, a, b, c, _n=_name: getattr(t, _n)(a, b, c, value=0.5), *broadcast(3, "positive"), dtypes=("float32", "float64"), tol=2,
        bad=[lambda t, F, _n=_name: getattr(t, _n)(t.ones(2), t.ones(3), t.ones(2)), lambda t, F, _n=_name: getattr(t, _n)(t.ones(2), t.ones(2)),
             lambda t, F, _n=_name: getattr(t, _n)(t.ones(2), 1, 2)])
row("copy_", lambda t, F, a, b: (a * 1).copy_(b) + a, [In((3, 5)), In((5,))], [In((3, 5)), In((3, 5))], [In(()), In(())], [In((0, 2)), In((2,))],
    dtypes=FLOATS, bad=[lambda t, F: t.ones(2).copy_(t.ones(3)), lambda t, F: t.ones(2).copy_("x"), lambda t, F: t.ones(2).copy_()])
row("fill_", lambda t, F, a: (a * 1).fill_(3) + a, *shapes(), dtypes=FLOATS + INTS,
    bad=[lambda t, F: t.ones(2).fill_(t.ones(2)), lambda t, F: t.ones(2).fill_("x"), lambda t, F: t.ones(2).fill_()])

# ---- reductions
def reduced(kind="normal"):
    return [[In((3, 5), kind)], [In((2, 3, 4), kind)], [In((), kind)], [In((1, 7), kind)]]


_dim_bad = lambda f: [lambda t, F: f(t, t.ones(2, 3), 2), lambda t, F: f(t, t.ones(2, 3), -3), lambda t, F: f(t, t.ones(2, 3), "x")]
row("sum", lambda t, F, x: t.sum(x) + t.sum(x, -1, keepdim=True) if x.dim() else x.sum(), *reduced(), [In((0, 3))], dtypes=FLOATS + INTS, tol=4,
    bad=_dim_bad(lambda t, x, d: t.sum(x, d)))
row("mean", lambda t, F, x: x.mean() + x.mean(0) if x.dim() else x.mean(), *reduced(), tol=4, bad=_dim_bad(lambda t, x, d: t.mean(x, d)))
row("prod", lambda t, F, x: x.prod() + x.prod(0) if x.dim() else x.prod(), *reduced("positive"), dtypes=("float32", "float64"), tol=8,
    gradgrad=False, bad=_dim_bad(lambda t, x, d: t.prod(x, d)))
for _name in ("amax", "amin"):
    row(_name, lambda t, F, x, _n=_name: getattr(t, _n)(x, -1) + getattr(t, _n)(x) if x.dim() else getattr(t, _n)(x), *reduced("distinct"),
        dtypes=FLOATS + ("int64",), bad=_dim_bad(lambda t, x, d, _n=_name: getattr(t, _n)(x, d)))
for _name in ("any", "all"):
    row(_name, lambda t, F, x, _n=_name: getattr(t, _n)(x > 0, -1) if x.dim() else getattr(t, _n)(x > 0), *reduced(), [In((0, 3))],
        dtypes=("float32", "int64"), grad=False, exact=True, bad=_dim_bad(lambda t, x, d, _n=_name: getattr(t, _n)(x, d)))
row("var", lambda t, F, x: x.var(-1, unbiased=False) + x.std(-1), [In((3, 5))], [In((2, 3, 4))], dtypes=("float32", "float64"), tol=8,
    bad=_dim_bad(lambda t, x, d: t.var(x, d)))
row("vector_norm", lambda t, F, x: x.norm() + x.norm(1, dim=-1) + x.norm(3, dim=-1) + x.norm(float("inf"), dim=-1), [In((3, 5), "distinct")],
    [In((2, 3, 4), "distinct")], dtypes=("float32", "float64"), tol=8, gradgrad=False, bad=_dim_bad(lambda t, x, d: x.norm(2, dim=d)))
row("logsumexp", lambda t, F, x: t.logsumexp(x, -1), [In((3, 5))], [In((2, 3, 4))], dtypes=("float32", "float64"), tol=4,
    bad=_dim_bad(lambda t, x, d: t.logsumexp(x, d)))
for _name in ("argmax", "argmin"):
    row(_name, lambda t, F, x, _n=_name: getattr(t, _n)(x, -1) if x.dim() else getattr(t, _n)(x), *reduced("distinct"), dtypes=FLOATS + ("int64",),
        grad=False, exact=True, bad=_dim_bad(lambda t, x, d, _n=_name: getattr(t, _n)(x, d)))
for _name in ("max", "min"):
    row(_name + "_dim", lambda t, F, x, _n=_name: getattr(t, _n)(x, -1), [In((3, 5), "distinct")], [In((2, 3, 4), "distinct")], [In((), "distinct")],
        dtypes=FLOATS + ("int64",), bad=_dim_bad(lambda t, x, d, _n=_name: getattr(t, _n)(x, d)))
for _name in ("cumsum", "cumprod"):
    row(_name, lambda t, F, x, _n=_name: getattr(t, _n)(x, -1), [In((3, 5), "positive")], [In((2, 3, 4), "positive")], [In((), "positive")], [In((0, 3))],
        [In((8, 5), "holed")], [In((3, 1), "holed")], dtypes=("float32", "float64", "int64"), tol=8, bad=_dim_bad(lambda t, x, d, _n=_name: getattr(t, _n)(x, d)))

# ---- softmax, losses
row("_softmax", lambda t, F, x: F.softmax(x, -1), [In((3, 5))], [In((2, 3, 4))], [In(())], [In((0, 3))], [In((2, 70))], tol=2,
    bad=_dim_bad(lambda t, x, d: F_softmax(t, x, d)))
row("_softmax_backward", lambda t, F, x: F.softmax(x, 0) * F.softmax(x * 2, 1), [In((3, 5))], [In((2, 3, 4))], tol=4,
    bad=_dim_bad(lambda t, x, d: F_softmax(t, x, d)))
row("_log_softmax", lambda t, F, x: F.log_softmax(x, -1), [In((3, 5))], [In((2, 3, 4))], [In(())], [In((0, 3))], [In((2, 70))], tol=4,
    bad=_dim_bad(lambda t, x, d: t.nn.functional.log_softmax(x, d)))
row("_log_softmax_backward", lambda t, F, x: F.log_softmax(x, 0) * F.log_softmax(x, 1), [In((3, 5))], [In((2, 3, 4))], tol=8,
    bad=_dim_bad(lambda t, x, d: t.nn.functional.log_softmax(x, d)))


def F_softmax(t, x, d):
    return t.nn.functional.softmax(x, d)


_nll_bad = [lambda t, F: F.nll_loss(t.ones(2, 3), t.tensor([0, 1, 2])), lambda t, F: F.nll_loss(t.ones(2, 3), t.ones(2)),
            lambda t, F: F.nll_loss(t.ones(2, 3), t.tensor([0, 7])).item()]
row("nll_loss", lambda t, F, x, y: F.nll_loss(x, y) + F.nll_loss(x, y, reduction="sum") + F.nll_loss(x, y, reduction="none", ignore_index=1).sum(),
    [In((6, 4)), In((6,), "index:4")], dtypes=("float32", "float64"), bad=_nll_bad)
row("nll_loss_backward", lambda t, F, x, y, w: F.cross_entropy(x, y, weight=w.detach()), [In((6, 4)), In((6,), "index:4"), In((4,), "positive", grad=False)],
    dtypes=("float32", "float64"), tol=4, bad=_nll_bad)

_ce_bad = [lambda t, F: F.cross_entropy(t.ones(2, 3), t.tensor([0, 1, 2])), lambda t, F: F.cross_entropy(t.ones(2, 3), t.ones(2)),
           lambda t, F: F.cross_entropy(t.ones(2, 3), t.tensor([0, 7])).item()]
row("_cross_entropy", lambda t, F, x, y: (F.cross_entropy(x, y), F.cross_entropy(x * 30, y, reduction="sum", ignore_index=1), F.cross_entropy(x, y, reduction="none")),
    [In((6, 4)), In((6,), "index:4")], [In((3, 2070)), In((3,), "index:2070")], [In((5, 1)), In((5,), "index:1")], dtypes=("float32", "float64"), tol=4, bad=_ce_bad)
row("_cross_entropy_backward", lambda t, F, x, y, w: F.cross_entropy(x, y, weight=w.detach(), ignore_index=2) + F.cross_entropy(x, y, w.detach(), reduction="none").sum(),
    [In((6, 4)), In((6,), "index:4"), In((4,), "positive", grad=False)], [In((4, 37)), In((4,), "index:37"), In((37,), "positive", grad=False)],
    dtypes=("float32", "float64"), tol=4, bad=_ce_bad)

# ---- attention
_sdpa_bad = [lambda t, F: F.scaled_dot_product_attention(t.ones(1, 1, 2, 3), t.ones(1, 1, 2, 4), t.ones(1, 1, 2, 3)),
             lambda t, F: F.scaled_dot_product_attention(t.ones(1, 1, 2, 3), t.ones(1, 1, 2, 3), t.ones(1, 1, 2, 3), t.ones(3, 3)),
             lambda t, F: F.scaled_dot_product_attention(t.ones(1, 1, 2, 3), t.ones(1, 1, 2, 3), t.ones(1, 1, 2, 3, dtype=t.float64))]
# torch's fused form can't be differentiated twice: see below.
row("_sdpa", lambda t, F, q, k, v: F.scaled_dot_product_attention(q, k, v) + F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.7)
    + F.scaled_dot_product_attention(q, k, v, dropout_p=0.4),
    [In((2, 3, 5, 4)), In((2, 3, 7, 4)), In((2, 3, 7, 6))], [In((1, 2, 9, 3)), In((1, 2, 9, 3)), In((1, 2, 9, 3))],
    [In((1, 1, 61, 20)), In((1, 1, 40, 20)), In((1, 1, 40, 20))], [In((0, 2, 3, 4)), In((0, 2, 3, 4)), In((0, 2, 3, 4))],
    dtypes=FLOATS, tol=8, random=True, gradgrad=False, bad=_sdpa_bad)


def _sdpa_masked(t, F, q, k, v, m, b):
    first = t.tensor([True] + [False] * (k.shape[2] - 1))  # no row without a key
    y = (F.scaled_dot_product_attention(q, k, v, m.detach(), 0.2) + F.scaled_dot_product_attention(q, k, v, b | first)
         + F.scaled_dot_product_attention(q, k, v, m))
    if q.requires_grad:  # double gradients in float32 as well, where there is a kernel
        y = y + sum(g.sum() for g in t.autograd.grad(t.square(y).sum(), (q, k, v), create_graph=True))
    return y


row("_sdpa_backward", _sdpa_masked,
    [In((2, 3, 5, 4)), In((2, 3, 7, 4)), In((2, 3, 7, 6)), In((2, 1, 5, 7)), In((5, 7), "bool")],
    [In((1, 2, 50, 8)), In((1, 2, 20, 8)), In((1, 2, 20, 6)), In((1, 1, 1, 20)), In((1, 2, 1, 20), "bool")],
    dtypes=FLOATS, tol=16, random=True, bad=_sdpa_bad)

# ---- products
_mm_bad = lambda f: [lambda t, F: f(t, t.ones(2, 3), t.ones(2, 3)), lambda t, F: f(t, t.ones(2, 3), t.ones(3)),
                     lambda t, F: f(t, t.ones(2, 3), t.ones(3, 2, dtype=t.float64))]
row("mm", lambda t, F, a, b: t.mm(a, b) + t.mm(b.t(), a.t()).t(), [In((3, 5)), In((5, 4))], [In((0, 5)), In((5, 4))], [In((3, 0)), In((0, 4))],
    [In((33, 65)), In((65, 17))], dtypes=FLOATS + ("int64",), tol=8, bad=_mm_bad(lambda t, a, b: t.mm(a, b)))
row("bmm", lambda t, F, a, b: t.bmm(a, b), [In((2, 3, 5)), In((2, 5, 4))], [In((0, 3, 5)), In((0, 5, 4))], dtypes=FLOATS + ("int64",), tol=8,
    bad=[lambda t, F: t.bmm(t.ones(2, 3, 4), t.ones(2, 3, 4)), lambda t, F: t.bmm(t.ones(3, 4), t.ones(4, 3)), lambda t, F: t.bmm(t.ones(1, 3, 4), t.ones(2, 4, 3))])
row("addmm", lambda t, F, c, a, b: t.addmm(c, a, b, beta=0.5, alpha=2) + F.linear(a, b.t(), c), [In((4,)), In((3, 5)), In((5, 4))],
    [In((4,)), In((0, 5)), In((5, 4))], tol=8,
    bad=[lambda t, F: t.addmm(t.ones(3), t.ones(2, 3), t.ones(3, 2)), lambda t, F: t.addmm(t.ones(2), t.ones(2, 3), t.ones(2, 2)), lambda t, F: F.linear(t.ones(2, 3), t.ones(4, 5))])
row("baddbmm", lambda t, F, c, a, b: t.baddbmm(c, a, b, beta=0.5, alpha=2), [In((2, 3, 4)), In((2, 3, 5)), In((2, 5, 4))], dtypes=("float32", "float64"), tol=8,
    bad=[lambda t, F: t.baddbmm(t.ones(2, 2, 2), t.ones(2, 2, 3), t.ones(2, 2, 2)), lambda t, F: t.baddbmm(t.ones(7), t.ones(2, 2, 3), t.ones(2, 3, 2)),
         lambda t, F: t.baddbmm(t.ones(2), t.ones(2, 3, 1), t.ones(3, 1, 2))])

# ---- convolution, pooling, normalisation
_conv_bad = [lambda t, F: F.conv2d(t.ones(1, 3, 5, 5), t.ones(4, 2, 3, 3)), lambda t, F: F.conv2d(t.ones(1, 3, 2, 2), t.ones(4, 3, 3, 3)),
             lambda t, F: F.conv2d(t.ones(1, 3, 5, 5), t.ones(4, 3, 3, 3), t.ones(3)), lambda t, F: F.conv2d(t.ones(1, 4, 5, 5), t.ones(3, 2, 3, 3), groups=2)]
row("conv2d", lambda t, F, x, w, b: F.conv2d(x, w, b, stride=2, padding=1) .sum(0) + F.conv2d(x, w, None, stride=2, padding=1).sum(0),
    [In((2, 3, 8, 7)), In((4, 3, 3, 3)), In((4,))], [In((1, 3, 5, 5)), In((2, 3, 1, 1)), In((2,))], dtypes=("float32", "float64"), tol=16, bad=_conv_bad)
row("conv2d_backward_data", lambda t, F, x, w: F.conv2d(x, w, padding=2, dilation=2, groups=2), [In((2, 4, 9, 8)), In((6, 2, 3, 3))], dtypes=("float32", "float64"), tol=16,
    bad=_conv_bad)
row("conv2d_backward_weights", lambda t, F, x, w: F.conv2d(x, w, padding=(1, 0), stride=(1, 2)), [In((2, 16, 9, 8)), In((32, 16, 3, 2))],
    dtypes=("float32", "float64"), tol=32, gradgrad=False, bad=_conv_bad)
_pool_bad = lambda f: [lambda t, F: f(F, t.ones(1, 1, 4, 4), 0), lambda t, F: f(F, t.ones(1, 1, 1, 4, 4), 2), lambda t, F: f(F, t.ones(1, 1, 2, 2), 5)]
row("max_pool2d", lambda t, F, x: F.max_pool2d(x, 2), [In((2, 3, 8, 8), "distinct")], [In((1, 2, 7, 5), "distinct")], bad=_pool_bad(lambda F, x, k: F.max_pool2d(x, k)))
row("max_pool2d_backward", lambda t, F, x: F.max_pool2d(x, 3, stride=2, padding=1, dilation=1, ceil_mode=True), [In((2, 3, 8, 8), "distinct")], [In((1, 2, 7, 6), "distinct")],
    bad=_pool_bad(lambda F, x, k: F.max_pool2d(x, k)))
row("avg_pool2d", lambda t, F, x: F.avg_pool2d(x, 2), [In((2, 3, 8, 8))], [In((1, 2, 7, 5))], tol=2, bad=_pool_bad(lambda F, x, k: F.avg_pool2d(x, k)))
row("avg_pool2d_backward", lambda t, F, x: F.avg_pool2d(x, 3, stride=2, padding=1, ceil_mode=True, count_include_pad=False), [In((2, 3, 8, 8))], [In((1, 2, 7, 6))], tol=2,
    bad=_pool_bad(lambda F, x, k: F.avg_pool2d(x, k)))
row("adaptive_avg_pool2d", lambda t, F, x: F.adaptive_avg_pool2d(x, (3, 2)), [In((2, 3, 8, 8))], [In((1, 2, 7, 5))], tol=2,
    bad=[lambda t, F: F.adaptive_avg_pool2d(t.ones(4), 2), lambda t, F: F.adaptive_avg_pool2d("x", 2), lambda t, F: F.adaptive_avg_pool2d(t.ones(1, 1, 4, 4), "x")])
row("adaptive_avg_pool2d_backward", lambda t, F, x: F.adaptive_avg_pool2d(x, 1) * F.adaptive_avg_pool2d(x, 1), [In((2, 3, 8, 8))], tol=4,
    bad=[lambda t, F: F.adaptive_avg_pool2d(t.ones(4), 2), lambda t, F: F.adaptive_avg_pool2d(None, 2), lambda t, F: F.adaptive_avg_pool2d(t.ones(4))])


def _bn(t, F, x, w, b, training):
    mean, var = t.zeros(x.shape[1], dtype=x.dtype), t.ones(x.shape[1], dtype=x.dtype)
    y = F.batch_norm(x, mean, var, w, b, training=training, momentum=0.2)
    return y, mean, var


_bn_bad = [lambda t, F: F.batch_norm(t.ones(2, 3), t.ones(2), t.ones(3)), lambda t, F: F.batch_norm(t.ones(2, 3), None, None, t.ones(4), training=True),
           lambda t, F: F.batch_norm(t.ones(2, 3), None, None)]
row("batch_norm", lambda t, F, x, w, b: _bn(t, F, x, w, b, True), [In((4, 3, 5, 5)), In((3,)), In((3,))], [In((6, 3)), In((3,)), In((3,))], dtypes=("float32", "float64"),
    tol=16, bad=_bn_bad)
row("batch_norm_backward", lambda t, F, x, w, b: _bn(t, F, x, w, b, False), [In((4, 3, 5, 5)), In((3,)), In((3,))], dtypes=("float32", "float64"), tol=16, bad=_bn_bad)
_ln_bad = [lambda t, F: F.layer_norm(t.ones(2, 3), (4,)), lambda t, F: F.layer_norm(t.ones(2, 3), (3,), t.ones(2)), lambda t, F: F.layer_norm(t.ones(2, 3), "x")]
row("layer_norm", lambda t, F, x, w, b: F.layer_norm(x, w.shape, w, b), [In((4, 6)), In((6,)), In((6,))], [In((2, 3, 4)), In((3, 4)), In((3, 4))], dtypes=("float32", "float64"), tol=16, bad=_ln_bad)
row("layer_norm_backward", lambda t, F, x: F.layer_norm(x, (x.shape[-1],), eps=1e-3), [In((4, 6))], [In((2, 3, 33))], dtypes=("float32", "float64"), tol=16, bad=_ln_bad)

# ---- indexing
_emb_bad = [lambda t, F: F.embedding(t.tensor([0, 9]), t.ones(4, 3)).sum().item(), lambda t, F: F.embedding(t.ones(2), t.ones(4, 3)), lambda t, F: F.embedding(t.tensor([0]), t.ones(4))]
row("embedding", lambda t, F, i, w: F.embedding(i, w), [In((2, 5), "index:7"), In((7, 4))], [In((0,), "index:7"), In((7, 4))], [In((), "index:7"), In((7, 4))], bad=_emb_bad)
row("embedding_backward", lambda t, F, i, w: F.embedding(i, w, padding_idx=2), [In((3, 9), "index:4"), In((4, 5))], dtypes=("float32", "float64"), tol=4, bad=_emb_bad)
row("index_select", lambda t, F, x, i: t.index_select(x, 1, i), [In((3, 5)), In((4,), "index:5")], [In((3, 5)), In((0,), "index:5")], dtypes=FLOATS + INTS,
    bad=[lambda t, F: t.index_select(t.ones(2, 3), 2, t.tensor([0])), lambda t, F: t.index_select(t.ones(2, 3), 0, t.tensor([[0]])), lambda t, F: t.index_select(t.ones(2, 3), 0, t.ones(1))])
row("index_add", lambda t, F, x, i, s: x.index_add(0, i, s, alpha=2), [In((5, 3)), In((4,), "index:5"), In((4, 3))], dtypes=("float32", "float64", "int64"), tol=2,
    bad=[lambda t, F: t.ones(3, 2).index_add(0, t.tensor([0, 1]), t.ones(3, 2)), lambda t, F: t.ones(3).index_add(1, t.tensor([0]), t.ones(1)), lambda t, F: t.ones(3).index_add(0, t.ones(1), t.ones(1))])
row("gather", lambda t, F, x, i: t.gather(x, 1, i), [In((3, 5)), In((3, 4), "index:5")], [In((3, 5)), In((2, 7), "index:5")], dtypes=FLOATS + INTS,
    bad=[lambda t, F: t.gather(t.ones(2, 3), 2, t.tensor([[0]])), lambda t, F: t.gather(t.ones(2, 3), 0, t.tensor([0])), lambda t, F: t.gather(t.ones(2, 3), 0, t.ones(1, 1))])
row("scatter", lambda t, F, x, s: x.scatter(1, t.tensor([[0, 2], [1, 3], [4, 0]]), s) + x.scatter(0, t.tensor([[0, 1, 2, 0, 1]]), 2.0), [In((3, 5)), In((3, 2))], dtypes=("float32", "float64"),
    bad=[lambda t, F: t.ones(2, 3).scatter(2, t.tensor([[0]]), 1.0), lambda t, F: t.ones(2, 3).scatter(0, t.tensor([0]), 1.0), lambda t, F: t.ones(2, 3).scatter(0, t.ones(1, 1), 1.0)])
row("scatter_add", lambda t, F, x, i, s: x.scatter_add(1, i, s), [In((3, 5)), In((3, 4), "index:5"), In((3, 4))], dtypes=("float32", "float64", "int64"), tol=2,
    bad=[lambda t, F: t.ones(2, 3).scatter_add(2, t.tensor([[0]]), t.ones(1, 1)), lambda t, F: t.ones(2, 3).scatter_add(0, t.tensor([0]), t.ones(1)),
         lambda t, F: t.ones(2, 3).scatter_add(0, t.tensor([[0]]), t.ones(1, 1, dtype=t.float64))])
row("index", lambda t, F, x, i, j: (x[i, j], x[:, i], x[i], x[None, i, ..., 1:3]), [In((4, 5, 6)), In((3,), "index:4"), In((3,), "index:4")], [In((4, 5, 6)), In((2, 2), "index:4"), In((2,), "index:4")],
    dtypes=FLOATS + INTS, bad=[lambda t, F: t.ones(3)[t.tensor([0]), t.tensor([0])], lambda t, F: t.ones(3, 3)[t.tensor([0, 1]), t.tensor([0, 1, 2])], lambda t, F: t.ones(3)[t.tensor([5])].sum().item(),
                               lambda t, F: t.ones(3)[t.ones(2)]])


def _put(t, F, x, i, v):
    y = x * 1
    y[i] = v
    z = x * 1
    z.index_put_((i,), v, accumulate=True)
    z[x > 0.3] = 0.5
    return y, z


row("index_put_", _put, [In((5, 3)), In((2,), "index:5"), In((3,))], [In((5, 3)), In((1,), "index:5"), In((1, 3))], dtypes=("float32", "float64"), tol=2, gradgrad=False,
    bad=[lambda t, F: t.ones(3).index_put_((t.tensor([0, 1]),), t.ones(3)), lambda t, F: t.ones(3).__setitem__(t.tensor([7]), 1.0) or t.ones(3).__setitem__(9, 1.0),
         lambda t, F: t.ones(3, 3).__setitem__((0, 0, 0), 1.0)])
row("cat", lambda t, F, a, b: t.cat([a, b, a], 0) .sum() + t.cat((a.t(), b.t()), dim=-1), [In((3, 5)), In((2, 5))], [In((0, 5)), In((2, 5))], dtypes=FLOATS + INTS, tol=4,
    bad=[lambda t, F: t.cat([]), lambda t, F: t.cat([t.ones(2, 3), t.ones(2, 4)]), lambda t, F: t.cat([t.ones(2)], 1), lambda t, F: t.cat([t.tensor(1.0)])])
row("constant_pad_nd", lambda t, F, x: F.pad(x, (1, 2, -1, 0), value=0.5), [In((3, 5))], [In((2, 3, 4))], dtypes=FLOATS + INTS,
    bad=[lambda t, F: F.pad(t.ones(2), (1, 2, 3, 4)), lambda t, F: F.pad(t.ones(2), (-3, 0)), lambda t, F: F.pad(t.ones(2), "x")])
row("flip", lambda t, F, x: t.flip(x, (0, 1)), [In((3, 5))], [In((0, 5))], [In((2, 3, 4))], dtypes=FLOATS + INTS, bad=[lambda t, F: t.flip(t.ones(2), (1,)), lambda t, F: t.flip(t.ones(2), ("x",)), lambda t, F: t.flip(t.ones(2), (0, 0))])
row("roll", lambda t, F, x: t.roll(x, 2, 1) + t.roll(x, -1, 0), [In((3, 5))], [In((2, 3, 4))], dtypes=FLOATS + INTS, bad=[lambda t, F: t.roll(t.ones(2), 1, 1), lambda t, F: t.roll(t.ones(2), "x"), lambda t, F: t.roll(t.ones(2), (1, 2), (0,)),
         lambda t, F: t.roll(t.ones(2, 2), (1, 2)), lambda t, F: t.roll(t.ones(2), ())])
for _name in ("tril", "triu"):
    row(_name, lambda t, F, x, _n=_name: getattr(t, _n)(x) + getattr(t, _n)(x, 1), [In((4, 5))], [In((2, 3, 3))], [In((0, 3))], dtypes=FLOATS + INTS,
        bad=[lambda t, F, _n=_name: getattr(t, _n)(t.ones(2)), lambda t, F, _n=_name: getattr(t, _n)(t.ones(2, 2), "x"), lambda t, F, _n=_name: getattr(t, _n)(3)])
row("sort", lambda t, F, x: t.sort(x, -1, True), [In((3, 5), "distinct")], [In((2, 3, 4), "distinct")], dtypes=FLOATS + ("int64",), bad=_dim_bad(lambda t, x, d: t.sort(x, d)))
row("topk", lambda t, F, x: t.topk(x, 2, -1), [In((3, 5), "distinct")], [In((2, 3, 4), "distinct")], dtypes=FLOATS + ("int64",),
    bad=[lambda t, F: t.topk(t.ones(3), 4), lambda t, F: t.topk(t.ones(3), 1, 1), lambda t, F: t.topk(t.ones(3), "x")])
row("_count_nonzero", lambda t, F, x: x[x > 0], [In((3, 5))], [In((0,))], dtypes=FLOATS + INTS, gradgrad=False,
    bad=[lambda t, F: t.ones(3)[t.ones(2) > 0], lambda t, F: t.ones(2, 2)[t.ones(2, 2, 2) > 0], lambda t, F: t.ones(3)[t.ones(4) > 0]])
row("_nonzero", lambda t, F, x: t.nonzero(x > 0), [In((3, 5))], [In((0, 2))], [In((2, 3, 4))], dtypes=("float32", "int64"), grad=False, exact=True,
    bad=[lambda t, F: t.nonzero(3), lambda t, F: t.nonzero(), lambda t, F: t.nonzero("x")])
row("as_strided_scatter", lambda t, F, x: x[1:, ::2] * x.diagonal()[:2].sum() + x[0, 1], [In((3, 4))], tol=4,
    bad=[lambda t, F: t.ones(3)[3], lambda t, F: t.ones(3)[0, 0], lambda t, F: t.ones(3)[::0]])
row("masked_scale", lambda t, F, x: F.dropout(x, 0.4, training=True), [In((16, 20))], [In((3,))], dtypes=("float32", "float64"), random=True,
    bad=[lambda t, F: F.dropout(t.ones(2), 1.5), lambda t, F: F.dropout(t.ones(2), -0.5), lambda t, F: F.dropout("x")])

# ---- random
def _drawn(f):
    return lambda t, F, x: f(t, t.empty(x.shape, dtype=x.dtype))


_r = dict(grad=False, random=True, dtypes=("float32", "float64"))
_big = [[In((5, 9))], [In((3,))], [In((0, 2))], [In((17,))], [In(())]]
row("uniform_", _drawn(lambda t, e: e.uniform_(-1, 2)), *_big, exact=True, **_r, bad=[lambda t, F: t.ones(2).uniform_(2, 1), lambda t, F: t.tensor([1]).uniform_(), lambda t, F: t.ones(2).uniform_("x")])
row("normal_", _drawn(lambda t, e: e.normal_(1, 2)), *_big, **_r, bad=[lambda t, F: t.ones(2).normal_(0, -1), lambda t, F: t.tensor([1]).normal_(), lambda t, F: t.ones(2).normal_("x")])
row("exponential_", _drawn(lambda t, e: e.exponential_(1.5)), *_big, **_r, bad=[lambda t, F: t.ones(2).exponential_(-1), lambda t, F: t.tensor([1]).exponential_(), lambda t, F: t.ones(2).exponential_("x")])
row("_bernoulli_", _drawn(lambda t, e: e.bernoulli_(0.3)), *_big, exact=True, **_r, bad=[lambda t, F: t.ones(2).bernoulli_(1.5), lambda t, F: t.ones(2).bernoulli_(-1), lambda t, F: t.ones(2).bernoulli_("x")])
row("_random_", lambda t, F, x: t.randint(3, 90, tuple(x.shape)), *_big, exact=True, grad=False, random=True, dtypes=("float32",),
    bad=[lambda t, F: t.randint(3, 3, (2,)), lambda t, F: t.randint(5, 3, (2,)), lambda t, F: t.randint(5, "x")])
# torch draws in the order of the probabilities' memory; Terra in row-major order.
row("bernoulli", lambda t, F, x: t.bernoulli(x), [In((5, 9), "prob")], [In((3,), "prob")], exact=True, **_r, layouts=("contiguous",), bad=[lambda t, F: t.bernoulli("x"), lambda t, F: t.bernoulli(), lambda t, F: t.bernoulli(3)])
row("_randperm", lambda t, F, x: t.randperm(37), [In((1,))], exact=True, grad=False, random=True, dtypes=("float32",), bad=[lambda t, F: t.randperm(-1), lambda t, F: t.randperm("x"), lambda t, F: t.randperm()])
# torch draws in the order of the weights' memory; Terra in row-major order.
row("multinomial", lambda t, F, x: t.multinomial(x, 3), [In((7,), "prob")], [In((2, 7), "prob")], exact=True, **_r, layouts=("contiguous",),
    bad=[lambda t, F: t.multinomial(t.ones(2), 3), lambda t, F: t.multinomial(t.ones(2), 0), lambda t, F: t.multinomial(t.tensor([1, 2]), 1)])
row("_dropout", lambda t, F, x: F.dropout(x, 0.25, training=True), [In((16, 20))], [In((3,))], [In((0,))], dtypes=("float32", "float64"), random=True,
    bad=[lambda t, F: F.dropout(t.ones(2), 1.5), lambda t, F: F.dropout(t.ones(2), -0.5), lambda t, F: F.dropout("x")])

# ---- new tensors
row("_empty", lambda t, F, x: t.empty(3, 4).zero_() + x, [In(())], bad=[lambda t, F: t.empty(-1), lambda t, F: t.empty("x"), lambda t, F: t.empty(2, dtype=3)])
row("_full", lambda t, F, x: (t.full((2, 3), 1.5), t.zeros(2, dtype=t.int64), t.ones(())), [In(())], grad=False, exact=True, bad=[lambda t, F: t.full((-1,), 1), lambda t, F: t.full("x", 1), lambda t, F: t.full((2,), "x")])
row("_arange", lambda t, F, x: (t.arange(5), t.arange(1.0, 3.0, 0.5), t.arange(5, 0, -2), t.arange(0)), [In(())], grad=False, exact=True,
    bad=[lambda t, F: t.arange(1, 5, 0), lambda t, F: t.arange(1, 5, -1), lambda t, F: t.arange("x")])
row("_linspace", lambda t, F, x: (t.linspace(0, 1, 7), t.linspace(3, -2, 1)), [In(())], grad=False, bad=[lambda t, F: t.linspace(0, 1, -1), lambda t, F: t.linspace("x", 1, 2), lambda t, F: t.linspace(0)])
row("_eye", lambda t, F, x: (t.eye(3), t.eye(2, 4)), [In(())], grad=False, exact=True, bad=[lambda t, F: t.eye(-1), lambda t, F: t.eye("x"), lambda t, F: t.eye()])


# ---- optimizers: three steps, parameters and state compared
def _opt(make):
    def call(t, F, p, g):
        q = p.detach().clone().requires_grad_(True)
        opt = make(t, [q])
        for i in range(3):
            q.grad = g.detach() * (1 + i)
            opt.step()
        return q.detach()

    return call


_o = dict(grad=False, dtypes=("float32", "float64"), tol=8)
_pg = [[In((7, 9)), In((7, 9))], [In(()), In(())], [In((0,)), In((0,))]]
row("_sgd_", _opt(lambda t, p: t.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)), *_pg, **_o,
    bad=[lambda t, F: t.optim.SGD([t.ones(2, requires_grad=True)], lr=-1.0), lambda t, F: t.optim.SGD([], lr=0.1), lambda t, F: t.optim.SGD([t.ones(2, requires_grad=True)], lr=0.1, nesterov=True)])
row("_adam_", _opt(lambda t, p: t.optim.AdamW(p, lr=0.1, amsgrad=True)), *_pg, **_o,
    bad=[lambda t, F: t.optim.Adam([t.ones(2, requires_grad=True)], lr=-1.0), lambda t, F: t.optim.Adam([t.ones(2, requires_grad=True)], betas=(1.5, 0.9)), lambda t, F: t.optim.Adam([3])])
row("_rmsprop_", _opt(lambda t, p: t.optim.RMSprop(p, lr=0.1, momentum=0.5, centered=True)), *_pg, **_o,
    bad=[lambda t, F: t.optim.RMSprop([t.ones(2, requires_grad=True)], lr=-1.0), lambda t, F: t.optim.RMSprop([t.ones(2, requires_grad=True)], alpha=-1.0), lambda t, F: t.optim.RMSprop([])])

# ---- views
_v = dict(dtypes=FLOATS + INTS, elementwise=True)
row("view", lambda t, F, x: x.view(-1) if x.numel() else x.view(0, 2), [In((3, 5))], [In((2, 3, 4))], [In(())], [In((0, 2))], **_v, layouts=("contiguous",),
    bad=[lambda t, F: t.ones(2, 3).view(4), lambda t, F: t.ones(2, 3).t().view(6), lambda t, F: t.ones(2).view(-1, -1)])
row("expand", lambda t, F, x: x.expand(4, 3, 5), [In((3, 5))], [In((3, 1))], [In((1, 1, 5))], **_v, bad=[lambda t, F: t.ones(2).expand(3), lambda t, F: t.ones(2, 2).expand(2), lambda t, F: t.ones(2).expand(-1, 2)])
row("permute", lambda t, F, x: x.permute(2, 0, 1), [In((2, 3, 4))], [In((0, 3, 4))], **_v, bad=[lambda t, F: t.ones(2, 3).permute(0), lambda t, F: t.ones(2, 3).permute(0, 0), lambda t, F: t.ones(2, 3).permute(0, 2)])
row("transpose", lambda t, F, x: x.transpose(0, -1), [In((3, 5))], [In((2, 3, 4))], [In(())], **_v, bad=_dim_bad(lambda t, x, d: x.transpose(0, d)))
row("unsqueeze", lambda t, F, x: x.unsqueeze(0).unsqueeze(-1), [In((3, 5))], [In(())], [In((0, 2))], **_v, bad=[lambda t, F: t.ones(2).unsqueeze(3), lambda t, F: t.ones(2).unsqueeze(-3), lambda t, F: t.ones(2).unsqueeze("x")])
row("squeeze", lambda t, F, x: x.squeeze() * x.squeeze(0).sum(), [In((1, 5, 1))], [In((1,))], [In((2, 1))], dtypes=FLOATS, tol=4, bad=_dim_bad(lambda t, x, d: x.squeeze(d)))
row("slice", lambda t, F, x: (x[1:, :3], x[::2], x[..., 1:], x[-2:]), [In((3, 5))], [In((0, 5))], [In((4, 2, 3))], **_v, bad=[lambda t, F: t.ones(3)[::-1], lambda t, F: t.ones(3)["a":], lambda t, F: t.tensor(1.0)[1:]])
row("select", lambda t, F, x: (x[0], x[-1, 1], x.select(1, 2)), [In((3, 5))], [In((2, 3, 4))], **_v, bad=[lambda t, F: t.ones(3)[3], lambda t, F: t.ones(3)[-4], lambda t, F: t.tensor(1.0)[0]])
row("diagonal", lambda t, F, x: (x.diagonal(), x.diagonal(1), x.diagonal(-1, 0, 1)), [In((4, 5))], [In((3, 4, 2))], **_v, bad=[lambda t, F: t.ones(3).diagonal(), lambda t, F: t.ones(3, 3).diagonal(0, 1, 1), lambda t, F: t.ones(3, 3).diagonal(0, 5, 1)])
row("unfold", lambda t, F, x: x.unfold(1, 3, 2), [In((3, 7))], [In((2, 5, 4))], dtypes=FLOATS, tol=2, bad=[lambda t, F: t.ones(3).unfold(0, 4, 1), lambda t, F: t.ones(3).unfold(1, 1, 1), lambda t, F: t.ones(3).unfold(0, 2, 0)])
row("as_strided", lambda t, F, x: t.as_strided(x, (2, 2), (1, 2), 1), [In((3, 5))], [In((12,))], dtypes=FLOATS, layouts=("contiguous",), bad=[lambda t, F: t.as_strided(t.ones(3), (2,), (1, 1)), lambda t, F: t.as_strided(t.ones(3), (5,), (1,)), lambda t, F: t.as_strided(t.ones(3), (2,), (-1,))])
row("detach", lambda t, F, x: x.detach() * 2, *shapes(), dtypes=FLOATS + INTS, grad=False, bad=[lambda t, F: t.detach(3), lambda t, F: t.detach(), lambda t, F: t.detach("x")])
row("alias", lambda t, F, x: x.view_as(x) + x.expand_as(x), *shapes(), dtypes=FLOATS, bad=[lambda t, F: t.ones(2).view_as(t.ones(3)), lambda t, F: t.ones(2).view_as(3), lambda t, F: t.ones(2).expand_as(t.ones(3))])
