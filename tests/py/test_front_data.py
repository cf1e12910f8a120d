"""Data loading, checkpoints and the launcher against torch: batches, draws, files both ways, whole scripts."""

import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

import terra
from both import both, plain, same

ROOT = Path(__file__).parents[2]


def squares(m, n=23):
    x = m.arange(n)
    return m.utils.data.TensorDataset(x.float(), x * x)


LOADERS = {
    "plain": {}, "batches": dict(batch_size=5), "last": dict(batch_size=5, drop_last=True), "shuffled": dict(batch_size=4, shuffle=True), "single": dict(batch_size=None),
    "workers": dict(batch_size=4, shuffle=True, num_workers=2), "persistent": dict(batch_size=4, shuffle=True, num_workers=2, persistent_workers=True),
    "collate": dict(batch_size=4, collate_fn=lambda rows: len(rows)), "pinned": dict(batch_size=4, pin_memory=False, num_workers=1, prefetch_factor=3),
}


@pytest.mark.parametrize("name", LOADERS)
def test_loader(name):
    def fn(m):
        loader = m.utils.data.DataLoader(squares(m), **LOADERS[name])
        return len(loader), [list(loader) for _ in range(2)], m.rand(3)

    both(fn)


def test_loader_generator_and_samplers():
    def fn(m):
        g = m.Generator().manual_seed(3)
        d, data = squares(m), m.utils.data
        loader = data.DataLoader(d, batch_size=7, shuffle=True, generator=g)
        parts = data.random_split(d, [20, 3], generator=m.Generator().manual_seed(1))
        return (list(loader), list(loader), m.rand(1, generator=g), [p.indices for p in parts], [len(p) for p in data.random_split(d, [0.5, 0.5])],
                list(data.DataLoader(d, sampler=data.SubsetRandomSampler([1, 5, 9]))), list(data.RandomSampler(d, replacement=True, num_samples=40)),
                list(data.BatchSampler(range(7), 3, False)), list(data.WeightedRandomSampler([0.1, 0.9, 0.5], 6)), len(data.ConcatDataset([d, d])),
                (data.ConcatDataset([d, d]))[30], data.Subset(d, [4])[0], m.rand(2))

    both(fn)


def test_collate():
    def fn(m):
        c = m.utils.data.default_collate
        return (c([1, 2]), c([1.5, 2.5]), c(["a", "b"]), c([(1, m.ones(2)), (2, m.zeros(2))]), c([{"x": 1}, {"x": 2}]), c([np.float32(1), np.float32(2)]),
                c([np.ones(2), np.zeros(2)]), c([[1, 2], [3, 4]]), c([True, False]))

    both(fn)


class Stream:
    def __new__(cls, m):
        class Stream(m.utils.data.IterableDataset):
            def __iter__(self):
                info = m.utils.data.get_worker_info()
                start, step = (0, 1) if info is None else (info.id, info.num_workers)
                return iter(range(start, 17, step))

        return Stream()


@pytest.mark.parametrize("workers", [0, 2])
def test_iterable(workers):
    both(lambda m: list(m.utils.data.DataLoader(Stream(m), batch_size=4, num_workers=workers)))


class Broken:
    def __len__(self):
        return 8

    def __getitem__(self, i):
        if i == 5:
            raise KeyError("five")
        return i


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_datasets(workers):
    both(lambda m: list(m.utils.data.DataLoader(Broken(), batch_size=2, num_workers=workers)))


class Drawing:
    def __init__(self, m):
        self.m = m

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return self.m.rand(2), float(np.random.rand() > 2)


def test_workers_have_their_own_streams():
    both(lambda m: list(m.utils.data.DataLoader(Drawing(m), batch_size=2, num_workers=2)))


@pytest.mark.parametrize("kwargs", [dict(num_workers=-1), dict(batch_size=0), dict(shuffle=True, sampler=[1]), dict(batch_sampler=[[1]], batch_size=2),
                                    dict(prefetch_factor=2), dict(persistent_workers=True), dict(batch_size=None, drop_last=True)])
def test_loader_errors(kwargs):
    both(lambda m: m.utils.data.DataLoader(squares(m), **kwargs) and None)


# ---- files ----


def content(m):
    base = m.arange(6.0).reshape(2, 3)
    return OrderedDict(a=base, view=base[:, 1:], same=base, half=m.ones(2, dtype=m.bfloat16), flags=m.tensor([True, False]), n=3, text="x", deep=[{"k": m.zeros(0)}],
                       count=m.tensor(5), dtype=m.float32, size=base.shape, p=m.nn.Parameter(m.ones(2)), t=(1, None, 2.5))


def read_back(writer, reader, obj):
    file = io.BytesIO()
    writer.save(obj, file)
    file.seek(0)
    return reader.load(file)


@pytest.mark.parametrize("writer,reader", [(terra, terra), (torch, terra), (terra, torch)])
def test_files_go_both_ways(writer, reader):
    back = read_back(writer, reader, content(writer))
    same(plain(content(torch)), plain(dict(back)), 0)
    assert isinstance(back["p"], reader.nn.Parameter) and isinstance(back["a"], reader.Tensor) and isinstance(back["size"], reader.Size)
    back["a"][0, 1] = 42
    assert back["view"][0, 0].item() == 42 and back["same"][0, 1].item() == 42


def test_model_and_optimizer_files(tmp_path):
    def make(m):
        net = m.nn.Sequential(m.nn.Linear(3, 4), m.nn.BatchNorm1d(4))
        opt = m.optim.AdamW(net.parameters(), lr=0.1)
        net(m.randn(5, 3)).sum().backward()
        opt.step()
        return net, opt

    torch.manual_seed(0)
    net, opt = make(torch)
    torch.save({"net": net.state_dict(), "opt": opt.state_dict()}, tmp_path / "a.pt")
    mine, my_opt = make(terra)
    saved = terra.load(tmp_path / "a.pt")
    mine.load_state_dict(saved["net"])
    my_opt.load_state_dict(saved["opt"])
    same(plain(dict(net.state_dict())), plain(dict(mine.state_dict())), 0)
    terra.save({"net": mine.state_dict(), "opt": my_opt.state_dict()}, tmp_path / "b.pt")
    back = torch.load(tmp_path / "b.pt")
    opt.load_state_dict(back["opt"])
    same(plain(opt.state_dict()["state"]), plain(my_opt.state_dict()["state"]), 1e-7)


def test_whole_models():
    net = terra.nn.Sequential(terra.nn.Linear(3, 4), terra.nn.ReLU(), terra.nn.Dropout(0.1), terra.nn.Linear(4, 2)).eval()
    file = io.BytesIO()
    terra.save(net, file)
    file.seek(0)
    theirs = torch.load(file, weights_only=False)
    x = np.ones((2, 3), dtype=np.float32)
    np.testing.assert_allclose(theirs(torch.from_numpy(x)).detach().numpy(), net(terra.from_numpy(x)).detach().numpy(), rtol=1e-5)
    file = io.BytesIO()
    torch.save(theirs, file)
    file.seek(0)
    mine = terra.load(file, weights_only=False)
    np.testing.assert_allclose(mine(terra.from_numpy(x)).detach().numpy(), net(terra.from_numpy(x)).detach().numpy(), rtol=1e-5)


class Evil:
    def __reduce__(self):
        return (os.system, ("touch /tmp/terra-was-here",))


def test_malicious_files():
    file = io.BytesIO()
    torch.save({"a": torch.ones(2), "b": Evil()}, file)
    file.seek(0)
    with pytest.raises(pickle.UnpicklingError, match="Unsupported global"):
        terra.load(file)
    assert not os.path.exists("/tmp/terra-was-here")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_truncated_files(tmp_path, share):
    torch.save({"a": torch.arange(1000)}, tmp_path / "x.pt")
    data = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(data[:int(len(data) * share)])
    with pytest.raises((RuntimeError, EOFError)):
        terra.load(tmp_path / "x.pt")


def test_sizes_that_lie():
    file = io.BytesIO()
    terra.save(terra.ones(4), file)
    with zipfile.ZipFile(file) as z:
        records = {n: z.read(n) for n in z.namelist()}
    for cut in (lambda n, b: b[:8] if "/data/" in n else b, lambda n, b: b.replace(b"K\x04\x85", b"K\x7f\x85") if n.endswith("data.pkl") else b):
        bad = io.BytesIO()
        with zipfile.ZipFile(bad, "w") as z:
            for n, b in records.items():
                z.writestr(n, cut(n, b))
        bad.seek(0)
        with pytest.raises((RuntimeError, pickle.UnpicklingError)):
            terra.load(bad)


def test_missing_file():
    both(lambda m: m.load("/nowhere/at/all.pt"))
    both(lambda m: m.save(1, "/nowhere/at/all.pt"))


def test_safetensors(tmp_path):
    import safetensors.torch as theirs

    mine = {"a": terra.randn(2, 3), "b": terra.arange(4), "c": terra.ones(3, dtype=terra.bfloat16), "d": terra.tensor([True]), "e": terra.zeros(0, 2)}
    terra.safetensors.save_file(mine, tmp_path / "x.safetensors", metadata={"k": "v"})
    back = theirs.load_file(tmp_path / "x.safetensors")
    same(plain({k: back[k] for k in sorted(back)}), plain(mine), 0)
    theirs.save_file(back, tmp_path / "y.safetensors")
    again = terra.safetensors.load_file(tmp_path / "y.safetensors")
    same(plain({k: again[k] for k in sorted(again)}), plain(mine), 0)
    data = terra.safetensors.save(mine)
    for bad in (data[:20], data[:-4], b"\xff" * 40):
        with pytest.raises(Exception, match="[Hh]eader|Safetensor|Error"):
            terra.safetensors.load(bad)
    net = terra.nn.Linear(2, 2)
    terra.safetensors.save_model(net, tmp_path / "m.safetensors")
    assert terra.safetensors.load_model(terra.nn.Linear(2, 2), tmp_path / "m.safetensors") == ([], [])
    with pytest.raises(RuntimeError, match="share memory"):
        terra.safetensors.save({"a": mine["a"], "b": mine["a"]})


# ---- the launcher ----

SCRIPT = """
import sys, torch, torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torch.optim.lr_scheduler import StepLR
from torch.autograd import Variable
print(torch.nn is nn, F.relu(torch.ones(1)).item(), sys.argv[1:], __name__, hasattr(torch, "stats"))
print(torch.rand(1).item())
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(2, 2)
net = Net()
torch.save(net, "net.pt")
print(type(torch.load("net.pt", weights_only=False)).__name__)
try:
    import torch.not_there
except ImportError as e:
    print(type(e).__name__)
"""


def launch(*args, cwd):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.run([sys.executable, *args], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def test_launcher(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    done = launch("-m", "terra", "--seed", "3", "train.py", "--x", "1", cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[0] == "True 1.0 ['--x', '1'] __main__ True"
    torch.manual_seed(3)
    assert float(lines[1]) == torch.rand(1).item()
    assert lines[2:] == ["Net", "ModuleNotFoundError"]
    as_module = launch("-m", "terra", "--seed=3", "-m", "train", "--x", "1", cwd=tmp_path)
    assert as_module.stdout.splitlines()[:2] == lines[:2], as_module.stderr


def test_launcher_says_what_is_wrong(tmp_path):
    done = launch("-m", "terra", "nothing.py", cwd=tmp_path)
    assert done.returncode == 2 and "can't open file 'nothing.py'" in done.stderr and not done.stdout
    (tmp_path / "raises.py").write_text("import torch\ntorch.ones(2) + torch.ones(3)\n")
    done = launch("-m", "terra", "raises.py", cwd=tmp_path)
    assert done.returncode == 1 and 'raises.py", line 2' in done.stderr and "RuntimeError" in done.stderr


def test_info(tmp_path):
    done = launch("-m", "terra", "info", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


# ---- generators ----


def test_generators():
    def fn(m):
        g = m.Generator()
        g.manual_seed(5)
        state = g.get_state()
        a = m.rand(3, generator=g)
        g.set_state(state)
        b = m.rand(3, generator=g)
        m.manual_seed(11)
        before = m.get_rng_state()
        c = m.randn(20)
        m.set_rng_state(before)
        with m.random.fork_rng():
            m.rand(5)
        return a, b, g.initial_seed(), m.initial_seed(), c, m.randn(20), m.randn(3), m.randn(5), m.randint(0, 100, (4,)), m.randperm(6), m.rand(2, dtype=m.float64)

    both(fn)
