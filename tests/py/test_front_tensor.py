"""Tensor's Python face against torch: indexing, conversion, printing, attributes, autograd."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest

import terra
from both import both

X = lambda m: m.arange(60, dtype=m.float32).reshape(3, 4, 5)  # noqa: E731

KEYS = {
    "int": lambda m: 1, "negative": lambda m: -1, "slice": lambda m: slice(1, 3), "open": lambda m: slice(None),
    "step": lambda m: slice(0, 3, 2), "beyond": lambda m: slice(1, 99), "backwards": lambda m: slice(2, 1),
    "from_end": lambda m: slice(-2, None), "none": lambda m: None, "ellipsis": lambda m: ..., "true": lambda m: True,
    "false": lambda m: False, "ints": lambda m: (1, 2, 3), "mixed": lambda m: (slice(None), 1, slice(1, 4)),
    "columns": lambda m: (..., 2), "new_axis": lambda m: (slice(None), None, 1), "list": lambda m: [0, 2],
    "list_of_lists": lambda m: ([0, 1], [2, 3]), "array": lambda m: np.array([2, 0]), "np_int": lambda m: np.int64(2),
    "tensor": lambda m: m.tensor([2, 0, 1]), "tensor_2d": lambda m: m.tensor([[0, 1], [2, 0]]), "tensor_0d": lambda m: m.tensor(2),
    "int32": lambda m: m.tensor([1, 0], dtype=m.int32), "negative_tensor": lambda m: m.tensor([-1, 0]),
    "two": lambda m: (m.tensor([0, 1]), m.tensor([2, 3])), "apart": lambda m: (m.tensor([0, 1]), slice(None), m.tensor([2, 3])),
    "broadcast": lambda m: (m.tensor([[0], [1]]), m.tensor([2, 3])), "after_slice": lambda m: (slice(None), m.tensor([0, 3])),
    "with_int": lambda m: (1, m.tensor([0, 3])), "int_between": lambda m: (m.tensor([0, 1]), 1, m.tensor([2, 3])),
    "mask_1d": lambda m: m.tensor([True, False, True]), "mask_2d": lambda m: X(m)[:, :, 0] > 20, "mask_3d": lambda m: X(m) > 30,
    "mask_second": lambda m: (slice(None), m.tensor([True, False, True, True])), "mask_none": lambda m: X(m) > 99,
    "empty_list": lambda m: [], "uint8": lambda m: m.tensor([1, 0, 1], dtype=m.uint8),
    "tensor_in_slice": lambda m: slice(m.tensor(1), m.tensor(3)), "list_of_bools": lambda m: [True, False, True],
    "too_far": lambda m: 3, "too_many": lambda m: (0, 0, 0, 0), "float": lambda m: 1.5, "text": lambda m: "a",
    "negative_step": lambda m: slice(None, None, -1), "two_ellipses": lambda m: (..., 0, ...),
    "wrong_mask": lambda m: m.tensor([True, False]), "float_tensor": lambda m: m.tensor([0.0, 1.0]),
}
SKIP_GET = {"text"}  # torch words it by a detour through tensor()


@pytest.mark.parametrize("name", [k for k in KEYS if k not in SKIP_GET])
def test_get(name):
    both(lambda m: X(m)[KEYS[name](m)])


@pytest.mark.parametrize("name", [k for k in KEYS if k not in SKIP_GET])
@pytest.mark.parametrize("value", ["number", "scalar", "tensor"])
def test_set(name, value):
    def fn(m):
        x, key = X(m), KEYS[name](m)
        v = {"number": lambda: -1.5, "scalar": lambda: m.tensor(7.0), "tensor": lambda: m.full_like(x[key], 0.5)}[value]()
        x[key] = v
        return x

    both(fn)


# Gradients of slices: tiling their base (in any order), overlapping, with gaps, along two dimensions, beside other uses.
PIECES = {
    "split": lambda x: x.split(2, 1), "unequal": lambda x: x.split([1, 3], 1), "reversed": lambda x: x.chunk(3, -1)[::-1],
    "unbind": lambda x: x.unbind(0), "unbind_last": lambda x: x.unbind(-1), "some": lambda x: x.chunk(2, 1)[:1],
    "one": lambda x: [x[:, 2:]], "whole": lambda x: [x[:, 0:]], "overlap": lambda x: [x[:, :3], x[:, 2:]],
    "twice": lambda x: [x[0], x[1], x[2], x[0]], "gap": lambda x: [x[0], x[2]], "step": lambda x: [x[:, ::2], x[:, 1::2]],
    "two_dims": lambda x: [*x.unbind(0), *x.unbind(2)], "others": lambda x: [x, x[:, :1], x[:, 1:], x * 2],
    "mixed": lambda x: [x[0:1], x[1], x[2:]], "nested": lambda x: [p for q in x.unbind(0) for p in q.split(2, 0)],
}


@pytest.mark.parametrize("name", PIECES)
@pytest.mark.parametrize("leaf", [False, True])
def test_gradients_of_pieces(name, leaf):
    def fn(m):
        x = X(m).requires_grad_()
        seen = []
        base = x if leaf else x * 1.5
        base.register_hook(lambda g: seen.append(g.clone()))
        loss = sum((k + 1) * (p**2).sum() for k, p in enumerate(PIECES[name](base)))
        (once,) = m.autograd.grad(loss, x, create_graph=True)
        (once**2).sum().backward()
        return once, x.grad, seen

    both(fn)


@pytest.mark.parametrize("name", ["int", "mixed", "tensor", "apart", "mask_3d", "after_slice", "list"])
def test_get_gradient(name):
    def fn(m):
        x = X(m).requires_grad_()
        (x[KEYS[name](m)] ** 2).sum().backward()
        return x.grad

    both(fn)


def test_set_gradient():
    def fn(m):
        x, v = m.ones(3, 4, requires_grad=True), m.ones(4, requires_grad=True)
        y = x * 2
        y[1] = v * 3
        y[:, 2] = 0
        (y * y).sum().backward()
        return x.grad, v.grad

    both(fn)


DATA = [3, 2.5, True, [1, 2], [1, 2.5], [True, False], [[1, 2], [3, 4]], [], [[]], (1, 2), [np.float32(1), np.float32(2)], np.float64(3),
        np.arange(3), np.ones((2, 2), dtype=np.float32), np.array([True]), [np.ones(2), np.zeros(2)], np.int32(4), range(3)]


@pytest.mark.parametrize("i", range(len(DATA)))
def test_tensor_of(i):
    both(lambda m: m.tensor(DATA[i]))


@pytest.mark.parametrize("bad", [[[1, 2], [3]], "a", [None], {"a": 1}, [1, "b"], [[1], 2]])
def test_tensor_of_nonsense(bad):
    both(lambda m: m.tensor(bad))


def test_nested_tensors():
    both(lambda m: m.tensor([m.tensor(1.5), m.tensor(2.5)]))
    both(lambda m: m.tensor([1, 2], dtype=m.float64))
    both(lambda m: m.as_tensor(np.arange(4.0)).mul(2))


PRINTED = [
    lambda m: m.tensor(3), lambda m: m.tensor(2.5), lambda m: m.tensor([1.0, 2.0]), lambda m: m.tensor([1.5, float("nan"), float("inf")]),
    lambda m: m.tensor([[1, 200], [3, 4]]), lambda m: m.tensor([True, False]), lambda m: m.tensor([1e-8, 1.0]), lambda m: m.zeros(3),
    lambda m: m.tensor([1e10, 1.0]), lambda m: m.arange(2000), lambda m: m.arange(40.0).reshape(2, 4, 5) / 7, lambda m: m.zeros(0),
    lambda m: m.zeros(0, 3), lambda m: m.ones(2, dtype=m.float64), lambda m: m.ones(2, requires_grad=True), lambda m: m.ones(2, requires_grad=True) * 2,
    lambda m: m.arange(30) * 1000, lambda m: m.nn.Parameter(m.ones(2, 2)), lambda m: m.ones(30, 40), lambda m: m.tensor([-1.0, 2.25]),
    lambda m: m.tensor(1e-7), lambda m: m.tensor([0.1, 1000.5]), lambda m: m.tensor([1, 2], dtype=m.uint8), lambda m: m.tensor(1e5),
    lambda m: m.ones(1, 1, 1, 2), lambda m: m.zeros(2, 0, dtype=m.int64), lambda m: m.tensor([123456789.0]), lambda m: m.tensor([float("nan")]),
    lambda m: m.tensor([0.0, float("inf")]), lambda m: m.arange(10.0) * 12345.678,
]


@pytest.mark.parametrize("i", range(len(PRINTED)))
def test_printing(i):
    both(lambda m: repr(PRINTED[i](m)))


def test_print_options():
    def fn(m):
        m.set_printoptions(precision=2, linewidth=40, threshold=10, edgeitems=2)
        try:
            return repr(m.arange(30) / 7), repr(m.arange(6) / 7)
        finally:
            m.set_printoptions(profile="default")

    both(fn)


@pytest.mark.parametrize("fn", [
    lambda t, m: t.shape, lambda t, m: t.size(), lambda t, m: t.size(-1), lambda t, m: t.size(7), lambda t, m: t.stride(), lambda t, m: t.dim(),
    lambda t, m: t.numel(), lambda t, m: len(t), lambda t, m: t.T, lambda t, m: t.mT, lambda t, m: t.dtype, lambda t, m: str(t.device), lambda t, m: t.is_leaf,
    lambda t, m: t.requires_grad, lambda t, m: t.grad, lambda t, m: t.type(), lambda t, m: t.type("torch.LongTensor"), lambda t, m: t.type(m.DoubleTensor),
    lambda t, m: t.tolist(), lambda t, m: t[0, 0].item(), lambda t, m: t.item(), lambda t, m: bool(t), lambda t, m: bool(t[0, 0]), lambda t, m: int(t[1, 1]),
    lambda t, m: float(t[1, 1]), lambda t, m: [1, 2, 3][t[0, 1].long()], lambda t, m: range(3)[t[0, 1]], lambda t, m: f"{t[1, 2]:.3f}", lambda t, m: [r.tolist() for r in t],
    lambda t, m: 5.0 in t, lambda t, m: 99 in t, lambda t, m: t.numpy(), lambda t, m: np.asarray(t), lambda t, m: np.add(t.numpy(), 1), lambda t, m: t.to(m.int64),
    lambda t, m: t.to("cpu") is t, lambda t, m: t.to("cuda"), lambda t, m: t.cuda(), lambda t, m: t.double().to(t), lambda t, m: t.float() is t,
    lambda t, m: t.new_zeros(2), lambda t, m: t.new_tensor([1, 2]), lambda t, m: t.new([1, 2]), lambda t, m: t.view(-1), lambda t, m: t.view(5), lambda t, m: t.view("a"),
    lambda t, m: t.reshape(4, 3), lambda t, m: t.reshape((2, -1)), lambda t, m: t.expand(2, 3, 4), lambda t, m: t.permute(1, 0), lambda t, m: t.permute(0, 0),
    lambda t, m: t.t().contiguous(), lambda t, m: t.unbind(1), lambda t, m: t.split(2), lambda t, m: t.split([1, 2]), lambda t, m: t.chunk(2, 1), lambda t, m: t.max(1),
    lambda t, m: t.max(), lambda t, m: t.max(t.flip(0)), lambda t, m: t.std(), lambda t, m: t.std(0, unbiased=False), lambda t, m: t.norm(), lambda t, m: t.norm(1, 0),
    lambda t, m: t.sort(descending=True), lambda t, m: t.topk(2), lambda t, m: t.argsort(), lambda t, m: t.repeat(2, 1, 2), lambda t, m: t.flatten(), lambda t, m: t.softmax(1),
    lambda t, m: t.narrow(1, 1, 2), lambda t, m: t.where(t > 3, m.zeros(())), lambda t, m: m.where(t > 3), lambda t, m: t.nonzero(), lambda t, m: t.masked_select(t > 3),
    lambda t, m: t.cumsum(1), lambda t, m: t.roll(1, 0), lambda t, m: t.diagonal(), lambda t, m: t.tril(), lambda t, m: t.clamp(2, 5), lambda t, m: t.clamp(max=2), lambda t, m: t ** 2,
    lambda t, m: 2 ** t, lambda t, m: 2 - t, lambda t, m: 1 / (t + 1), lambda t, m: t // 2, lambda t, m: t % 3, lambda t, m: -t, lambda t, m: abs(-t), lambda t, m: t + "a", lambda t, m: t @ t,
    lambda t, m: t @ t.t(), lambda t, m: t == None, lambda t, m: t != "a", lambda t, m: ~(t > 2), lambda t, m: (t > 2) & (t < 5), lambda t, m: t.foo, lambda t, m: hasattr(t, "foo"),  # noqa: E711
    lambda t, m: m.stack([t, t], 1), lambda t, m: m.cat([t, t], -1), lambda t, m: m.cat([1]), lambda t, m: m.cat(t), lambda t, m: m.einsum("ij,kj->ik", t, t),
    lambda t, m: m.einsum("ij->j", t), lambda t, m: m.einsum("bi,bj->bij", t, t), lambda t, m: m.meshgrid(t[0], t[:, 0], indexing="ij"), lambda t, m: m.outer(t[0], t[1]),
    lambda t, m: m.linspace(0, 1, 5), lambda t, m: m.eye(3), lambda t, m: m.full((2,), 3), lambda t, m: m.full((2,), 2.5), lambda t, m: m.zeros(-1), lambda t, m: m.zeros("a"),
    lambda t, m: m.arange(1, 2, 0.25), lambda t, m: m.arange(5, 1, -2), lambda t, m: m.arange(3, dtype=m.float32), lambda t, m: m.randn(4), lambda t, m: m.rand(3, 2),
    lambda t, m: m.randint(10, (5,)), lambda t, m: m.randperm(7), lambda t, m: m.randn(20), lambda t, m: m.normal(0.0, 1.0, (3,)), lambda t, m: m.bernoulli(t / 12),
    lambda t, m: m.tensor([1, 2]) + 1.5, lambda t, m: m.tensor([1, 2]) / 2, lambda t, m: m.tensor([True]) + 1, lambda t, m: m.tensor(2.0, dtype=m.float64) * t, lambda t, m: m.tensor([1]) + m.tensor(1.5),
    lambda t, m: t.add_(1), lambda t, m: t.mul_(t), lambda t, m: t.sqrt_(), lambda t, m: t.zero_(), lambda t, m: t.copy_(m.ones(4)), lambda t, m: t.add_(m.ones(7)),
    lambda t, m: t.long().add_(1.5), lambda t, m: m.finfo(m.float32).eps, lambda t, m: m.iinfo(m.int64).max, lambda t, m: m.is_tensor(t), lambda t, m: m.allclose(t, t + 1e-9),
    lambda t, m: m.equal(t, t), lambda t, m: t.unique(), lambda t, m: t.var(1), lambda t, m: t.mean(-1, keepdim=True), lambda t, m: t.sum(dim=(0, 1)), lambda t, m: t.all(), lambda t, m: t.any(1),
    lambda t, m: t.long().mean(), lambda t, m: t.sum(foo=1), lambda t, m: m.add(t), lambda t, m: m.relu(1), lambda t, m: t.tanh(3), lambda t, m: t.gather(1, m.tensor([[0], [1], [2]])),
    lambda t, m: t.scatter(1, m.tensor([[0], [1], [2]]), 9.0), lambda t, m: t.index_select(0, m.tensor([1])), lambda t, m: t.masked_fill(t > 3, 0), lambda t, m: t.logsumexp(1), lambda t, m: t.prod(),
    lambda t, m: t.squeeze(), lambda t, m: t.unsqueeze(1).squeeze(1), lambda t, m: t.unsqueeze(-1), lambda t, m: t.squeeze(5), lambda t, m: t.movedim(0, 1), lambda t, m: m.tensordot(t, t.t(), 1),
    lambda t, m: t.median(), lambda t, m: t.median(1), lambda t, m: m.promote_types(m.int64, m.float32), lambda t, m: m.result_type(t, 1), lambda t, m: t.untyped_storage().nbytes(), lambda t, m: t.nbytes,
    lambda t, m: t.resize_(2, 2), lambda t, m: m.FloatTensor([1, 2]), lambda t, m: m.LongTensor([1, 2]), lambda t, m: m.Tensor([1, 2]), lambda t, m: m.Tensor(2, 3).shape, lambda t, m: isinstance(t, m.FloatTensor),
    lambda t, m: t.is_contiguous(), lambda t, m: t.t().is_contiguous(), lambda t, m: t.element_size(), lambda t, m: t.data_ptr() == t.view(-1).data_ptr(), lambda t, m: t.index_add(0, m.tensor([0]), m.ones(1, 4)),
    lambda t, m: m.broadcast_tensors(t, m.ones(4)), lambda t, m: t.unfold(1, 2, 1), lambda t, m: t.as_strided((2, 2), (1, 2)), lambda t, m: m.searchsorted(t[0], m.tensor([1.5, 9.0])), lambda t, m: m.bincount(t[0].long()),
])
def test_attribute_or_method(fn):
    both(lambda m: fn(m.arange(12, dtype=m.float32).reshape(3, 4), m))


@pytest.mark.parametrize("fn", [
    lambda m: m.zeros(2).foo, lambda m: m.not_there, lambda m: m.nn.NotThere, lambda m: m.optim.Nope, lambda m: m.nn.functional.nope,
])
def test_missing_names(fn):
    both(fn)


def test_identity_dict_and_weakrefs():
    x = terra.ones(2, requires_grad=True)
    (x * 2).sum().backward()
    assert x.grad is x.grad
    x.note = "here"
    assert x.note == "here"
    ref = weakref.ref(x)
    del x
    gc.collect()
    assert ref() is None


def test_hook_cycles_are_collected():
    x = terra.ones(2, requires_grad=True)
    x.register_hook(lambda g, x=x: g * x.detach())
    ref = weakref.ref(x)
    del x
    gc.collect()
    assert ref() is None


def test_copies():
    def fn(m):
        x = m.ones(2, requires_grad=True)
        x.tag = 3
        y = copy.deepcopy([x, x])
        z = pickle.loads(pickle.dumps(x))
        y[0].data[0] = 5
        return y[0] is y[1], y[0].requires_grad, x, y[0], z, z.requires_grad

    both(fn)


def test_shared_memory():
    def fn(m):
        a = np.arange(4.0, dtype=np.float32)
        t = m.from_numpy(a)
        t[0] = 10
        a[1] = 20
        y = t * 2
        a[2] = 30
        b = m.ones(3)
        n = b.numpy()
        b.add_(1)
        n[0] = 7
        return a, t, y, b, n, m.as_tensor(a)

    both(fn)


def test_from_numpy_errors():
    both(lambda m: m.from_numpy(np.ones(3)[::-1]))
    both(lambda m: m.from_numpy([1]))
    both(lambda m: m.from_numpy(np.array(["a"])))
    both(lambda m: m.ones(2, requires_grad=True).numpy())


def test_dlpack():
    a = np.arange(6.0).reshape(2, 3)
    t = terra.from_dlpack(a)
    t[0, 0] = 9
    assert a[0, 0] == 9
    b = np.from_dlpack(terra.ones(2, 3))
    assert b.shape == (2, 3) and b.sum() == 6


# ---- autograd ----


class _Square:
    """A Function for either module."""

    def __new__(cls, m):
        class Square(m.autograd.Function):
            @staticmethod
            def forward(ctx, x, k):
                y = x ** 2 * k
                ctx.save_for_backward(x, y)
                ctx.k = k
                return y

            @staticmethod
            def backward(ctx, g):
                x, y = ctx.saved_tensors
                assert ctx.needs_input_grad == (True, False)
                return 2 * x * ctx.k * g, None

        return Square


AUTOGRAD = {
    "function": lambda m: _run(m, lambda x: _Square(m).apply(x, 3)),
    "function_twice": lambda m: _twice(m, lambda x: _Square(m).apply(x, 3)),
    "double": lambda m: _twice(m, lambda x: x.exp() * x.sin()),
    "hook": lambda m: _hooked(m),
    "retain_grad": lambda m: _retained(m),
    "no_grad": lambda m: _modes(m),
    "backward_twice": lambda m: _again(m),
    "no_graph": lambda m: m.ones(2).sum().backward(),
    "not_scalar": lambda m: m.ones(2, requires_grad=True).backward(),
    "unused": lambda m: m.autograd.grad(m.ones(1, requires_grad=True).sum(), m.ones(1, requires_grad=True)),
    "allow_unused": lambda m: m.autograd.grad(m.ones(1, requires_grad=True).sum(), m.ones(1, requires_grad=True), allow_unused=True),
    "in_place_on_leaf": lambda m: m.ones(2, requires_grad=True).add_(1),
    "changed_saved": lambda m: _changed(m),
    "int_grad": lambda m: m.ones(2, dtype=m.int64).requires_grad_(),
    "set_grad": lambda m: _set_grad(m),
    "next_functions": lambda m: [f[0].name() for f in (m.ones(2, requires_grad=True) * 2).sum().grad_fn.next_functions],
    "checkpoint": lambda m: _checkpoint(m),
    "post_accumulate": lambda m: _post(m),
    "inputs": lambda m: _inputs(m),
    "jacobian": lambda m: m.autograd.functional.jacobian(lambda x: x ** 2, m.arange(3.0)),
    "detach": lambda m: (m.ones(2, requires_grad=True) * 2).detach().requires_grad,
    "data_write": lambda m: _data(m),
}


def _run(m, f):
    x = m.arange(1.0, 4.0, requires_grad=True)
    f(x).sum().backward()
    return x.grad


def _twice(m, f):
    x = m.arange(1.0, 4.0, requires_grad=True)
    g, = m.autograd.grad(f(x).sum(), x, create_graph=True)
    h, = m.autograd.grad((g * g).sum(), x)
    return g, h


def _hooked(m):
    x, seen = m.ones(3, requires_grad=True), []
    y = x * 2
    y.register_hook(lambda g: seen.append(g.clone()) or g * 10)
    h = x.register_hook(lambda g: g + 1)
    (y * y).sum().backward()
    first = x.grad.clone()
    h.remove()
    (x * 3).sum().backward()
    return seen, first, x.grad


def _retained(m):
    x = m.ones(3, requires_grad=True)
    y = x * 2
    y.retain_grad()
    (y ** 2).sum().backward()
    return y.grad, x.grad, y.retains_grad


def _modes(m):
    x, out = m.ones(1, requires_grad=True), []
    with m.no_grad():
        out.append((x * 2).requires_grad)
        with m.enable_grad():
            out.append((x * 2).requires_grad)
    with m.set_grad_enabled(False):
        out.append(m.is_grad_enabled())

    @m.no_grad()
    def f():
        return (x * 2).requires_grad

    @m.no_grad()
    def g():
        yield (x * 2).requires_grad

    return out, f(), list(g()), m.is_grad_enabled()


def _again(m):
    x = m.ones(2, requires_grad=True)
    y = (x * x).sum()
    y.backward()
    y.backward()


def _changed(m):
    x = m.ones(2, requires_grad=True)
    y = x.exp()
    z = y * y
    y.add_(1)
    z.sum().backward()


def _set_grad(m):
    x = m.ones(2, requires_grad=True)
    x.grad = m.zeros(2)
    (x * 3).sum().backward()
    first = x.grad.clone()
    x.grad = None
    return first, x.grad


def _checkpoint(m):
    from importlib import import_module

    checkpoint = import_module(m.__name__ + ".utils.checkpoint").checkpoint
    m.manual_seed(0)
    layer = m.nn.Sequential(m.nn.Linear(3, 4), m.nn.Dropout(0.5), m.nn.ReLU())
    x = m.randn(5, 3, requires_grad=True)
    checkpoint(layer, x, use_reentrant=True).sum().backward()
    return x.grad, [p.grad for p in layer.parameters()], m.rand(2)


def _post(m):
    x, seen = m.ones(2, requires_grad=True), []
    x.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    (x * 4).sum().backward()
    return seen


def _inputs(m):
    x, w = m.ones(2, requires_grad=True), m.ones(2, requires_grad=True)
    (x * w * 3).sum().backward(inputs=[x])
    return x.grad, w.grad


def _data(m):
    x = m.ones(2, requires_grad=True)
    y = (x * x * 3).sum()
    x.data.mul_(2)
    y.backward()
    return x, x.grad


@pytest.mark.parametrize("name", AUTOGRAD)
def test_autograd(name):
    both(AUTOGRAD[name])


def test_function_that_saves_its_output_is_collected():
    Square = _Square(terra)
    x = terra.ones(2, requires_grad=True)
    y = Square.apply(x, 3)
    ref = weakref.ref(y)
    y.sum().backward()
    count = len(gc.get_objects())
    for _ in range(20):
        Square.apply(x, 3).sum().backward()
    gc.collect()
    assert len(gc.get_objects()) - count < 20
    del y
    assert ref() is None


def test_leaf_whose_data_changes_shape_after_it_was_used():
    def program(m):
        x = m.ones(2, requires_grad=True)
        (x * 2).sum().backward()
        x.data, x.grad = m.ones(3), None
        (x * 3).sum().backward()
        (x * x).sum().backward()
        return x.grad

    both(program)


def test_accumulator_outlives_its_leaf():
    def program(m):
        x = m.ones(2, requires_grad=True)
        y = (x * 2).sum()
        del x
        gc.collect()
        y.backward()
        return y

    both(program)
