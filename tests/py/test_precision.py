"""torch.set_float32_matmul_precision and its newer names: PyTorch's settings; what large float32 products are then computed from."""

import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

import terra

with open("/proc/cpuinfo") as f:
    HAS_BF16 = "avx512_bf16" in f.read().split() and "ONEDNN_MAX_CPU_ISA" not in os.environ


@pytest.fixture(autouse=True)
def settings():
    yield
    for t in (torch, terra):
        t.set_float32_matmul_precision("highest")
        t.backends.mkldnn.matmul.fp32_precision = "ieee"


# ------------------------------------------------------------------------------------------------ settings


def state(t):
    b = t.backends
    return (b.mkldnn.matmul.fp32_precision, b.mkldnn.conv.fp32_precision, b.cuda.matmul.fp32_precision, b.cuda.matmul.allow_tf32)


def test_names_are_torchs():
    def program(t):
        found = []
        for name in ("medium", "high", "highest"):
            t.set_float32_matmul_precision(name)
            found.append((t.get_float32_matmul_precision(), state(t)))
        t.backends.cuda.matmul.allow_tf32 = True
        found.append((t.get_float32_matmul_precision(), state(t)))
        t.backends.cuda.matmul.allow_tf32 = False
        found.append((t.get_float32_matmul_precision(), state(t)))
        for name in ("bf16", "tf32", "ieee"):
            t.backends.mkldnn.matmul.fp32_precision = name
            found.append(state(t))
        return found

    assert program(terra) == program(torch)


def test_settings_above_are_heeded_where_there_is_none():
    def program(t):
        t.backends.mkldnn.matmul.fp32_precision = "none"
        found = []
        for above in (t.backends.mkldnn, t.backends):
            for name in ("bf16", "none"):
                above.fp32_precision = name
                found.append((t.backends.mkldnn.matmul.fp32_precision, t.backends.mkldnn.fp32_precision))
        return found

    assert program(terra) == program(torch)


@pytest.mark.parametrize("wrong", ["bfloat16", "Highest", None, 1])
def test_what_is_no_name_changes_nothing(wrong):
    def program(t):
        t.set_float32_matmul_precision("high")
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            try:
                t.set_float32_matmul_precision(wrong)
                raised = None
            except Exception as error:  # noqa: BLE001: compared, not hidden
                raised = type(error), str(error)
        with pytest.raises(RuntimeError, match="Unknown precision: 17"):
            t.backends.mkldnn.matmul.fp32_precision = "17"
        return raised, bool(heard), t.get_float32_matmul_precision()

    assert program(terra) == program(torch)


# ------------------------------------------------------------------------------------------------ values


def noise(*shape):
    return np.random.RandomState(len(shape) + shape[-1]).standard_normal(shape).astype(np.float32)


M, K, N = 160, 192, 224
OPERANDS = {"a": (M, K), "b": (K, N), "at": (K, M), "bt": (N, K), "A": (3, M, K), "B": (3, K, N), "row": (N,), "y": (M, N), "Y": (3, M, N)}
PRODUCTS = {
    "mm": ("ab", lambda t, a, b: t.mm(a, b)),
    "mm, transposed": (("at", "bt"), lambda t, a, b: a.t() @ b.t()),
    "mm, every other row": (("y", "b"), lambda t, y, b: y[::2, :K] @ b),
    "addmm, a row": (("row", "a", "b"), lambda t, c, a, b: t.addmm(c, a, b)),
    "addmm, scaled": (("y", "a", "b"), lambda t, c, a, b: t.addmm(c, a, b, beta=0.5, alpha=2)),
    "bmm": ("AB", lambda t, a, b: t.bmm(a, b)),
    "bmm, transposed": (("A", "Y"), lambda t, a, y: t.bmm(a.transpose(1, 2), y)),
    "bmm, expanded": (("A", "b"), lambda t, a, b: t.bmm(a, b.expand(3, K, N))),
    "baddbmm": ("YAB", lambda t, y, a, b: t.baddbmm(y, a, b)),
    "linear": (("a", "bt", "row"), lambda t, x, w, c: t.nn.functional.linear(x, w, c)),
    "linear, without bias": (("A", "bt"), lambda t, x, w: t.nn.functional.linear(x, w)),
}


H, L, S, E = 4, 64, 192, 32  # heads, queries, keys, columns
OPERANDS |= {"q": (2, H, L, E), "k": (2, H, S, E), "v": (2, H, S, E)}
PRODUCTS |= {
    "attention": ("qkv", lambda t, q, k, v: t.nn.functional.scaled_dot_product_attention(q, k, v)),
    "attention, causal": ("kkk", lambda t, q, k, v: t.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)),
    "attention, odd": ("qkv", lambda t, q, k, v: t.nn.functional.scaled_dot_product_attention(*(x[:, :, 3:, :27] for x in (q, k, v)))),
}


def rounded(x):
    return torch.from_numpy(x).bfloat16().float().numpy()


def run(t, names, fn, precision, change=lambda x: x):
    """The result, and the operands' gradients where its own is noise."""
    t.set_float32_matmul_precision(precision)
    leaves = [t.tensor(change(noise(*OPERANDS[n]))).requires_grad_() for n in names]
    y = fn(t, *leaves)
    t.autograd.backward(y, t.tensor(change(noise(*y.shape))))
    return [x.detach().numpy().copy() for x in (y, *(leaf.grad for leaf in leaves))]


def near(have, want, tol):
    for h, w in zip(have, want, strict=True):
        assert h.dtype == w.dtype == np.float32
        np.testing.assert_allclose(h, w, rtol=0, atol=tol * float(np.abs(w).max()))


def is_float32(have, want):
    """Is it computed as `want` is? The library's float32 product of one shape is not always the same to the last bit."""
    return np.abs(have - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_and_derivatives(name):
    names, fn = PRODUCTS[name]
    highest, medium = run(terra, names, fn, "highest"), run(terra, names, fn, "medium")
    near(highest, run(torch, names, fn, "highest"), 1e-5)
    near(medium, highest, 1e-2)
    for kind, h, m, like in zip(["result", *names], highest, medium, run(terra, names, fn, "high"), strict=True):
        is_product = kind not in ("row", "y", "Y") or "add" not in name and kind != "row"  # what is added is no factor
        assert is_float32(like, h) and is_float32(m, h) != (is_product and HAS_BF16), kind


@pytest.mark.skipif(not HAS_BF16, reason="no instructions for bfloat16")
def test_factors_alone_are_rounded():
    """Once, to the nearest; sums and results are float32."""
    fn = PRODUCTS["mm"][1]
    have, want = run(terra, "ab", fn, "medium"), run(torch, "ab", fn, "highest", rounded)
    near(have[:1], want[:1], 1e-5)
    names, fn = PRODUCTS["addmm, scaled"]
    product = run(torch, "ab", PRODUCTS["mm"][1], "highest", rounded)[0]
    near(run(terra, names, fn, "medium")[:1], [0.5 * noise(M, N) + 2 * product], 1e-5)


def test_what_is_small_or_not_float32_stays():
    for dtype, (m, k, n) in ((terra.float32, (2, 4096, 4096)), (terra.float32, (5, 5, 5)), (terra.float64, (256, 256, 256)),
                             (terra.bfloat16, (256, 256, 256))):
        found = []
        for precision in ("highest", "medium"):
            terra.set_float32_matmul_precision(precision)
            found.append((terra.tensor(noise(m, k)).to(dtype) @ terra.tensor(noise(k, n)).to(dtype)).double().numpy())
        assert is_float32(*found)


def test_newer_name_does_the_same():
    terra.set_float32_matmul_precision("medium")
    a, b = terra.tensor(noise(M, K)), terra.tensor(noise(K, N))
    medium = (a @ b).numpy()
    terra.set_float32_matmul_precision("highest")
    terra.backends.mkldnn.matmul.fp32_precision = "bf16"
    np.testing.assert_array_equal((a @ b).numpy(), medium)


WITHOUT = """
import numpy as np, terra
a, b = (terra.tensor(np.random.RandomState(s).standard_normal((256, 256)).astype(np.float32)) for s in (1, 2))
highest = (a @ b).numpy()
terra.set_float32_matmul_precision("medium")
assert abs((a @ b).numpy() - highest).max() < 1e-5 * abs(highest).max()
"""


@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_without_instructions_it_is_float32(isa):
    subprocess.run([sys.executable, "-c", WITHOUT], check=True, env={**os.environ, "ONEDNN_MAX_CPU_ISA": isa})


# ------------------------------------------------------------------------------------------------ runners


def model():
    terra.manual_seed(3)
    return terra.nn.Sequential(terra.nn.Linear(K, N), terra.nn.GELU(), terra.nn.Linear(N, 128), terra.nn.ReLU(), terra.nn.Linear(128, 1))


def losses(precisions):
    """Of equal steps, each under its precisions forward and backward, and the norm of the gradients."""
    m, x, found = model(), terra.tensor(noise(M, K)), []
    still = terra.optim.SGD(m.parameters(), lr=0.0)
    for forward, backward in precisions:
        terra.set_float32_matmul_precision(forward)
        still.zero_grad()
        loss = m(x).square().mean()
        terra.set_float32_matmul_precision(backward)
        loss.backward()
        still.step()
        found.append([loss.item(), float(sum(p.grad.square().sum() for p in m.parameters()).item())])
    return np.array(found)


def losses_from_plans(precisions):
    """The same of a run in which iterations came from plans: compiling may take longer than a dozen steps."""
    for _ in range(50):
        before = terra.stats()["iterations_coexecuted"]
        found = losses(precisions)
        if terra.stats()["iterations_coexecuted"] > before:
            break
    assert terra.stats()["iterations_coexecuted"] > before
    return found


MEDIUM, HIGHEST, MIXED = ("medium", "medium"), ("highest", "highest"), ("medium", "highest")


def test_same_by_itself_and_from_plans():
    found = losses_from_plans([MEDIUM] * 12)
    np.testing.assert_allclose(found, np.broadcast_to(found[0], found.shape), rtol=2e-6)


def test_another_setting_is_another_path():
    """It counts where an operator is called, derivatives included."""
    alone = {p: losses([p])[0] for p in (HIGHEST, MEDIUM, MIXED)}
    for a, b, i in ((HIGHEST, MEDIUM, 0), (HIGHEST, MEDIUM, 1), (HIGHEST, MIXED, 0), (MEDIUM, MIXED, 1)):
        assert np.allclose(alone[a][i], alone[b][i], rtol=2e-6, atol=0) != HAS_BF16
    turns = [HIGHEST, MEDIUM, MIXED] * 8
    np.testing.assert_allclose(losses_from_plans(turns), [alone[p] for p in turns], rtol=2e-6)


def test_threads_change_nothing():
    found = []
    for n in ("1", "2", "3"):
        line = [sys.executable, "-c", "import test_precision as t; print(t.losses([t.MEDIUM] * 8).tolist())"]
        env = {**os.environ, "TERRA_THREADS": n, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        ran = subprocess.run(line, check=True, capture_output=True, text=True, env=env)
        found.append(json.loads(ran.stdout))
    for f in found[1:]:
        np.testing.assert_allclose(f, found[0], rtol=2e-6)
