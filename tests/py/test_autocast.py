"""torch.autocast("cpu"): dtypes, values and gradients of every operator, and of programs, against torch's."""

import importlib
import importlib.util
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import terra
from both import both
from op_rows import ROWS
from test_ops import inputs_of, leaves, scalar, to_numpy, to_terra

BOTH = (torch, terra)


def region(t, **kw):
    return t.autocast("cpu", dtype=t.bfloat16, **kw)


def near(have, want, what, tol=1.0):
    """Within bfloat16's rounding of the largest value."""
    assert tuple(have.shape) == tuple(want.shape), what
    assert str(have.dtype) == str(want.dtype), f"{what}: {have.dtype}, torch {want.dtype}"
    a, b = to_numpy(have), to_numpy(want)
    if a.dtype.kind in "biu":
        np.testing.assert_array_equal(a, b, err_msg=what)
    elif a.size:
        atol = 1.6e-2 * tol * max(1.0, float(np.abs(np.nan_to_num(b, posinf=0, neginf=0)).max()))
        np.testing.assert_allclose(a, b, rtol=2e-2 * tol, atol=atol, err_msg=what)


CASES = [(n, d, i) for n, r in ROWS.items() for d in r.dtypes if d in ("float32", "bfloat16") for i in range(len(r.inputs))]


def run_row(t, r, xs, wants):
    t.manual_seed(5)
    xs = [x.requires_grad_(True) if w else x for x, w in zip(xs, wants)]
    of = [x for x, w in zip(xs, wants) if w]
    with region(t):
        out = r.call(t, t.nn.functional, *xs)
    loss = scalar(t, out, 11) if r.grad and of else 0
    if not hasattr(loss, "backward"):
        return out, []
    return out, t.autograd.grad(loss, of, allow_unused=True)


@pytest.mark.parametrize("name,dtype,i", CASES, ids=[f"{n}-{d}-{i}" for n, d, i in CASES])
def test_every_operator_has_torchs_dtypes(name, dtype, i):
    r = ROWS[name]
    xs = inputs_of(r, dtype, i)
    ys = [to_terra(x) for x in xs]
    wants = [x.differentiable and r.grad for x in r.inputs[i]]
    try:
        want, want_grads = run_row(torch, r, xs, wants)
    except Exception as error:  # noqa: BLE001: compared, not hidden
        with pytest.raises(Exception) as have:
            run_row(terra, r, ys, wants)
            terra.synchronize()
        assert issubclass(have.type, type(error)) or issubclass(type(error), have.type), f"{have.value!r}, torch: {error!r}"
        return
    have, have_grads = run_row(terra, r, ys, wants)
    for h, w in zip(leaves(have), leaves(want), strict=True):
        near(h, w, name, r.tol)
    for h, w in zip(have_grads, want_grads, strict=True):
        assert (h is None) == (w is None), name
        if h is not None:
            near(h, w, f"{name}: gradient", 4 * r.tol)


# ---- functions that are composed of several rows

COMPOSED = {
    "mse_loss": lambda t, F, A: F.mse_loss(A["x"], A["y"]),
    "l1_loss": lambda t, F, A: F.l1_loss(A["x"], A["y"]),
    "smooth_l1_loss": lambda t, F, A: F.smooth_l1_loss(A["x"], A["y"]),
    "huber_loss": lambda t, F, A: F.huber_loss(A["x"], A["y"]),
    "kl_div": lambda t, F, A: F.kl_div(A["x"], A["y"].detach().exp()),
    "binary_cross_entropy": lambda t, F, A: F.binary_cross_entropy(A["x"].sigmoid(), A["y"].detach().sigmoid()),
    "binary_cross_entropy_with_logits": lambda t, F, A: F.binary_cross_entropy_with_logits(A["x"], A["y"].detach().sigmoid()),
    "cross_entropy": lambda t, F, A: F.cross_entropy(A["x"], t.tensor([0, 1, 2])),
    "cross_entropy, smoothed": lambda t, F, A: F.cross_entropy(A["x"], t.tensor([0, 1, 2]), label_smoothing=0.1),
    "cross_entropy, weighed": lambda t, F, A: F.cross_entropy(A["x"], t.tensor([0, 1, 2]), weight=A["v"].detach().exp()),
    "nll_loss": lambda t, F, A: F.nll_loss(A["x"].log_softmax(-1), t.tensor([0, 1, 2])),
    "triplet_margin_loss": lambda t, F, A: F.triplet_margin_loss(A["x"], A["y"], A["x"] * 0.5),
    "cosine_embedding_loss": lambda t, F, A: F.cosine_embedding_loss(A["x"], A["y"], t.tensor([1, -1, 1])),
    "margin_ranking_loss": lambda t, F, A: F.margin_ranking_loss(A["x"], A["y"], t.ones(3, 4)),
    "prelu": lambda t, F, A: F.prelu(A["x"], A["v"]),
    "matmul": lambda t, F, A: (A["x"] @ A["w"], A["x"] @ A["v"], A["x"][0] @ A["v"], A["q"] @ A["w"]),
    "linear": lambda t, F, A: [F.linear(*(A[k] for k in args)) for args in ("xwv", "qw", "qwv")],
    "einsum": lambda t, F, A: (t.einsum("ij,kj->ik", A["x"], A["y"]), t.einsum("i,j->ij", A["x"][0], A["y"][0])),
    "vecdot": lambda t, F, A: t.linalg.vecdot(A["x"], A["y"]),
    "dot": lambda t, F, A: t.dot(A["x"][0], A["y"][0]),
    "outer": lambda t, F, A: t.outer(A["x"][0], A["y"][0]),
    "trace, prod": lambda t, F, A: (t.trace(A["x"]), A["x"].prod(), A["x"].prod(0)),
    "stack, cat": lambda t, F, A: (t.stack([A["x"], A["w"][:3]]), t.cat([A["x"], A["w"]])),
    "norms": lambda t, F, A: (A["x"].norm(), F.normalize(A["x"]), F.cosine_similarity(A["x"], A["y"])),
    "pad": lambda t, F, A: tuple(F.pad(A["s"], (1, 1), mode=m) for m in ("reflect", "replicate", "circular", "constant")),
    "layer_norm, rms_norm": lambda t, F, A: (F.layer_norm(A["x"], (4,), A["v"], A["v"]), F.rms_norm(A["x"], (4,), A["v"])),
    "group_norm, instance_norm": lambda t, F, A: (F.group_norm(A["c"], 3, A["v"][:3], A["v"][:3]), F.instance_norm(A["c"])),
    "batch_norm": lambda t, F, A: F.batch_norm(A["c"], None, None, A["v"][:3], A["v"][:3], True),
    "conv2d": lambda t, F, A: (F.conv2d(A["c"], A["k"]), F.conv2d(A["c"], A["k"], A["b"], padding="same")),
    "conv1d": lambda t, F, A: F.conv1d(A["s"], A["k"][:, :, 0], A["b"], padding=1),
    "attention": lambda t, F, A: F.scaled_dot_product_attention(A["q"], A["q"], A["q"]),
    "attention, causal": lambda t, F, A: F.scaled_dot_product_attention(A["q"], A["q"], A["q"], is_causal=True),
    "attention, masked": lambda t, F, A: F.scaled_dot_product_attention(A["q"], A["q"], A["q"], attn_mask=A["m"].detach()),
    "attention, learned mask": lambda t, F, A: F.scaled_dot_product_attention(A["q"], A["q"], A["q"], attn_mask=A["m"]),
    "attention, bool mask": lambda t, F, A: F.scaled_dot_product_attention(A["q"], A["q"], A["q"], attn_mask=A["m"] > -1),
    "pools": lambda t, F, A: (F.max_pool2d(A["c"], 2), F.avg_pool2d(A["c"], 2), F.adaptive_avg_pool2d(A["c"], 1)),
    "MultiheadAttention": lambda t, F, A: t.nn.MultiheadAttention(6, 2)(A["s"], A["s"], A["s"]),
    "TransformerEncoderLayer": lambda t, F, A: t.nn.TransformerEncoderLayer(6, 2, 12, 0.0, batch_first=True)(A["s"]),
    "GRU, RNN": lambda t, F, A: [y for m in ("GRU", "RNN") for y in getattr(t.nn, m)(6, 5)(A["s"])],
    "bilinear": lambda t, F, A: F.bilinear(A["w"], A["w"], A["w"].view(4, 2, 2).repeat(1, 2, 2)),
    "mv": lambda t, F, A: t.mv(A["w"], A["v"]),
    "mixed": lambda t, F, A: F.gelu(A["x"] @ A["w"] + A["v"]) * A["y"] + (A["x"] @ A["w"]).softmax(-1),
}
LOWERED = ("x", "y", "q", "c", "s")  # in bfloat16 already, where activations are
SHAPES = dict(x=(3, 4), y=(3, 4), w=(4, 4), v=(4,), c=(2, 3, 6, 6), k=(5, 3, 3, 3), b=(5,), s=(2, 3, 6), q=(2, 2, 5, 4),
              m=(5, 5))


@pytest.mark.parametrize("low", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", COMPOSED)
def test_composed_functions_have_torchs_dtypes(name, low):
    rng = np.random.default_rng(7)
    arrays = {k: rng.standard_normal(s).astype("f") for k, s in SHAPES.items()}
    results = []
    for t in BOTH:
        leaf = {k: t.from_numpy(a.copy()).clone().requires_grad_(True) for k, a in arrays.items()}
        given = {k: v.to(t.bfloat16) if low and k in LOWERED else v for k, v in leaf.items()}
        t.manual_seed(3)
        with region(t):
            try:
                out = leaves(COMPOSED[name](t, t.nn.functional, given))
            except (RuntimeError, ValueError) as error:
                results.append(error)
                continue
        sum(y.float().sum() for y in out if y.requires_grad).backward()
        results.append((out, {k: v.grad for k, v in leaf.items() if v.grad is not None}))
    want, have = results
    if isinstance(want, Exception) or isinstance(have, Exception):
        assert type(want) is type(have), f"{have!r}, torch: {want!r}"
        return
    for h, w in zip(have[0], want[0], strict=True):
        near(h, w, name)
    assert list(have[1]) == list(want[1])
    for k in want[1]:
        near(have[1][k], want[1][k], f"{name}: gradient of {k}", 2)


# ---- regions


def test_state_and_nesting():
    def program(t):
        x = t.ones(2, 2)
        seen = []

        def look():
            seen.append((t.is_autocast_enabled("cpu"), t.get_autocast_dtype("cpu"), t.is_autocast_cache_enabled(),
                         (x @ x).dtype))

        look()
        with t.autocast("cpu"):
            look()
            with t.autocast("cpu", enabled=False, cache_enabled=False):
                look()
                with t.amp.autocast("cpu", dtype=t.bfloat16):
                    look()
            look()
        with t.autocast("cpu", enabled=False):
            look()
        try:
            with region(t):
                raise KeyError
        except KeyError:
            look()
        return [[str(v) for v in line] for line in seen]

    both(program)


def test_decorator_and_reuse_of_one_object():
    def program(t):
        mode = region(t)

        @mode
        def product(x):
            return x @ x

        x = t.eye(3)
        with mode:
            inside = x @ x
        return product(x), product(x), product.__name__, inside, x @ x

    both(program)


def test_one_object_may_be_nested():
    """In torch, this leaves autocast on."""
    mode = region(terra)
    with mode, mode:
        pass
    assert not terra.is_autocast_enabled("cpu")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_older_names():
    def program(t):
        x = t.eye(3)
        with t.cpu.amp.autocast():
            a = x @ x
        with t.cpu.amp.autocast(enabled=False):
            b = x @ x
        return a, b, t.amp.is_autocast_available("cpu")

    both(program)


BAD = {
    "device of another type": lambda t: t.autocast(3),
    "unknown device": lambda t: t.autocast("nowhere"),
    "no dtype there": lambda t: t.get_autocast_dtype("nowhere"),
    "not callable": lambda t: region(t)(3),
    "float64 and bfloat16": lambda t: region(t)(lambda: t.ones(2, 2).double() @ t.ones(2, 2))(),
    "mixed, outside": lambda t: t.ones(2, 2) @ t.ones(2, 2).bfloat16(),
    "mixed, disabled inside": lambda t: region(t)(t.autocast("cpu", enabled=False)(
        lambda: t.ones(2, 2) @ t.ones(2, 2).bfloat16()))(),
    "custom_fwd": lambda t: t.amp.custom_fwd(device_type=3),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_are_torchs(name):
    with pytest.raises(Exception) as want:
        BAD[name](torch)
    with pytest.raises(Exception) as have:
        BAD[name](terra)
    assert have.type is want.type, f"{have.value!r}, torch: {want.value!r}"
    for t in BOTH:
        assert not t.is_autocast_enabled("cpu")


@pytest.mark.parametrize("device,dtype", [("cpu", "float32"), ("cuda", "bfloat16")])
def test_what_is_not_supported_is_disabled_with_a_warning(device, dtype):
    for t in BOTH:
        with pytest.warns(UserWarning, match="Disabling autocast"):
            mode = t.autocast(device, dtype=getattr(t, dtype))
        with mode:
            assert (t.eye(2) @ t.eye(2)).dtype is t.float32


def test_the_state_is_a_threads_own():
    seen = []
    with region(terra):
        thread = threading.Thread(target=lambda: seen.append(terra.is_autocast_enabled("cpu")))
        thread.start()
        thread.join()
        assert terra.is_autocast_enabled("cpu")
    assert seen == [False]


# ---- casts of parameters


def test_a_leaf_is_cast_once_in_a_region():
    def program(t):
        w, x = t.eye(3).requires_grad_(True), t.ones(2, 3)
        out = []
        for cache in (True, False):
            with region(t, cache_enabled=cache):
                a = x @ w
                with t.no_grad():
                    w.mul_(2.0)
                with t.autocast("cpu", enabled=False):
                    pass
                b = t.nn.functional.linear(x, w)  # what was kept
                out += [a, b]
                t.clear_autocast_cache()
                out.append(x @ w)
            (a + b).sum().backward()
        return out, w.grad

    both(program)


def test_a_cast_without_gradient_is_not_kept():
    def program(t):
        w, x = t.eye(3).requires_grad_(True), t.ones(2, 3)
        with region(t):
            with t.no_grad():
                a = x @ w
            b = x @ w
        b.sum().backward()
        return a.requires_grad, b.requires_grad, w.grad

    both(program)


def test_two_losses_in_one_region_accumulate():
    def program(t):
        w, x = t.eye(3).requires_grad_(True), t.ones(2, 3)
        with region(t):
            for _ in range(2):
                (x @ w).sum().backward()
        return w.grad

    both(program)


def test_double_backward():
    def program(t):
        rng = np.random.default_rng(0)
        w, x = (t.from_numpy(rng.standard_normal((4, 4)).astype("f")).clone().requires_grad_(True) for _ in range(2))
        with region(t):
            y = t.tanh(x @ w) @ w
            loss = (y.float() ** 2).mean()
        gw, gx = t.autograd.grad(loss, (w, x), create_graph=True)
        ((gw ** 2).sum() + (gx ** 2).sum()).backward()
        return gw, gx, w.grad, x.grad

    both(program, tol=6e-2)


def test_custom_functions():
    def program(t):
        class Scaled(t.autograd.Function):
            @staticmethod
            @t.amp.custom_fwd(device_type="cpu", cast_inputs=t.float32)
            def forward(ctx, x, w):
                ctx.save_for_backward(x, w)
                return x @ w

            @staticmethod
            @t.amp.custom_bwd(device_type="cpu")
            def backward(ctx, g):
                x, w = ctx.saved_tensors
                return g @ w.t(), x.t() @ g

        class Plain(t.autograd.Function):
            @staticmethod
            @t.amp.custom_fwd(device_type="cpu")
            def forward(ctx, x):
                return (x @ x).float()

            @staticmethod
            @t.amp.custom_bwd(device_type="cpu")
            def backward(ctx, g):
                return (g @ g).float() * t.is_autocast_enabled("cpu")

        x, w = t.full((2, 2), 1.001).requires_grad_(True), t.eye(2).requires_grad_(True)
        with region(t):
            a, b = Scaled.apply(x.bfloat16(), w), Plain.apply(x)
        (a.sum() + b.sum()).backward()
        return a, b, x.grad, w.grad, Scaled.apply(x, w)

    both(program, tol=2e-3)


def test_checkpoint_recomputes_in_the_region():
    def program(t):
        checkpoint = importlib.import_module(t.__name__ + ".utils.checkpoint").checkpoint
        w, x = t.eye(3).mul(1.001).requires_grad_(True), t.ones(2, 3).requires_grad_(True)
        with region(t):
            y = checkpoint(lambda x: t.tanh(x @ w), x, use_reentrant=True)
        y.float().sum().backward()
        return y, x.grad, w.grad

    both(program, tol=1e-2)


def test_grad_scaler():
    def program(t):
        t.manual_seed(0)
        w = t.ones(3, 3).requires_grad_(True)
        opt = t.optim.SGD([w], lr=0.1)
        scaler = t.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        out = []
        for i in range(6):
            opt.zero_grad()
            with region(t):
                loss = (t.ones(2, 3) @ w).float().mean()
            if i == 3:
                loss = loss * float("inf")
            scaler.scale(loss).backward()
            if i % 2:
                scaler.unscale_(opt)
            scaler.step(opt)
            scaler.update()
            out += [scaler.get_scale(), w.detach().clone()]
        off = t.amp.GradScaler("cpu", enabled=False)
        return out, scaler.state_dict(), off.scale(3), off.get_scale(), off.is_enabled(), off.state_dict()

    both(program)


# ---- training


class Course:
    """The models of perf/programs, small, in fifty steps."""

    def __init__(self, t):
        self.t = t
        folder = Path(__file__).parents[2] / "perf/programs"
        names = {"torch": t, "torch.nn": t.nn, "torch.nn.functional": t.nn.functional, "common": types.ModuleType("common")}
        before = {k: sys.modules.get(k) for k in names}
        sys.modules.update(names)
        sys.path.insert(0, str(folder))
        try:
            for name in ("bert_qa", "gpt2", "resnet"):
                spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                setattr(self, name, module)
        finally:
            sys.path.remove(str(folder))
            for k, v in before.items():
                sys.modules[k] = v
                if v is None:
                    del sys.modules[k]

    def make(self, name):
        t, F = self.t, self.t.nn.functional
        whole = lambda rng, high, *shape: t.from_numpy(rng.randint(0, high, shape))
        real = lambda rng, *shape: t.from_numpy(rng.randn(*shape).astype("f"))
        if name == "mlp":
            net = t.nn.Sequential(t.nn.Linear(32, 64), t.nn.ReLU(), t.nn.Linear(64, 64), t.nn.ReLU(), t.nn.Linear(64, 8))
            return net, lambda rng: F.mse_loss(net(real(rng, 16, 32)), real(rng, 16, 8))
        if name == "gpt2":
            net = self.gpt2.GPT2(64, 16, 32, 2, 2, 0.1)

            def loss(rng):
                w = whole(rng, 64, 4, 17)
                return F.cross_entropy(net(w[:, :-1]).reshape(-1, 64), w[:, 1:].reshape(-1))
        elif name == "bert_qa":
            net = self.bert_qa.BertForAnswers(64, 16, 32, 2, 2, 0.1)

            def loss(rng):
                start, end = net(whole(rng, 64, 4, 16), whole(rng, 2, 4, 16))
                return F.cross_entropy(start, whole(rng, 16, 4)) + F.cross_entropy(end, whole(rng, 16, 4))
        else:
            net = self.resnet.ResNet(self.resnet.Basic, (1, 1), 10)
            return net, lambda rng: F.cross_entropy(net(real(rng, 8, 3, 24, 24)), whole(rng, 10, 8))
        return net, loss

    def run(self, name, steps=50):
        t = self.t
        t.manual_seed(3)
        net, loss_of = self.make(name)
        kind, more = (t.optim.SGD, {"momentum": 0.9}) if name == "resnet" else (t.optim.AdamW, {})
        optimizer = kind(net.parameters(), lr=1e-3, **more)
        rng, losses = np.random.RandomState(1), []
        for _ in range(steps):
            optimizer.zero_grad()
            with region(t):
                loss = loss_of(rng)
            assert loss.dtype is t.float32
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert all(p.grad.dtype is t.float32 for p in net.parameters())
        return np.array(losses)


MODELS = ("mlp", "gpt2", "bert_qa", "resnet")


@pytest.mark.parametrize("name", MODELS)
def test_training_takes_torchs_course(name):
    want, have = (Course(t).run(name) for t in BOTH)
    np.testing.assert_allclose(have, want, rtol=1e-2)


@pytest.mark.parametrize("name", MODELS)
def test_plans_give_what_op_by_op_gives(name):
    course = Course(terra)
    terra.reset_stats()
    planned = course.run(name, 20)
    assert terra.stats()["iterations_coexecuted"] > 5
    terra._C._set_sync(True)
    try:
        single = course.run(name, 20)
    finally:
        terra._C._set_sync(False)
    np.testing.assert_array_equal(planned, single)


def test_casts_are_fused_with_their_neighbours():
    """Between two products there is one pass, whatever is cast in it."""
    terra.manual_seed(0)
    net = terra.nn.Sequential(terra.nn.Linear(64, 256), terra.nn.Linear(256, 64))
    scale = terra.randn(256)
    x = terra.randn(512, 64)
    optimizer = terra.optim.SGD([terra.zeros(1, requires_grad=True)], lr=0.1)
    optimizer.param_groups[0]["params"][0].grad = terra.zeros(1)

    def step():
        with region(terra), terra.no_grad():
            h = net[0](x)
            y = net[1](terra.tanh(h * scale + 1.0) * scale)  # float32 in between
            y.sum().item()
        optimizer.step()  # where an iteration ends

    for _ in range(8):
        step()
    terra.reset_stats()
    for _ in range(8):
        step()
    s = terra.stats()
    assert s["iterations_coexecuted"] == 8 and s["ops_covered"] - s["instructions"] >= 8 * 4, s
