"""Parameters of convolutions stay in the library's blocked layout between iterations, and under autocast gradients stay bfloat16 on
their way to the optimizer (terra/dnn.h: homes). Whoever looks from outside the plan sees the program's order and type: every kind
of look, in the middle of a step and between steps, against the same program in sync mode."""

import itertools
import time
import types

import numpy as np
import pytest

import terra as torch
from terra import _C

STEPS = 14


number = itertools.count()


def afresh(function):
    """The function as if it had been written once more: its iterations have paths of their own, whatever other tests did in theirs."""
    code = function.__code__.replace(co_filename=f"{next(number)}.py")
    return types.FunctionType(code, function.__globals__)


def network():
    torch.manual_seed(5)
    nn = torch.nn
    return nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.Tanh(), nn.Conv2d(32, 32, 3, padding=1, groups=2), nn.Tanh(),
                         nn.Conv2d(32, 16, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(16 * 9, 4))


def look_at_weights(model, step, seen):
    seen.append(model[2].weight.detach().abs().sum().item())


def look_in_the_middle(model, step, seen):
    pass


def export(model, step, seen):
    if step == 8:
        seen.append(model[0].weight.detach().numpy())  # shares memory from now on
    if len(seen) > 0:
        seen.append(seen[0].copy())


def save(model, step, seen):
    if step % 5 == 0:
        seen.append({k: v.clone() for k, v in model.state_dict().items()}["2.weight"].numpy())


def load(model, step, seen):
    if step == 9:
        state = {k: v * 0.5 for k, v in model.state_dict().items()}
        model.load_state_dict(state)


def clip(model, step, seen):
    pass


def evaluate(model, step, seen):
    with torch.no_grad():
        seen.append(model(torch.ones(2, 3, 8, 8)).numpy().copy())


def rebind(model, step, seen):
    if step == 8:
        model[4].weight.data = model[4].weight.data.flip(0).contiguous()


def new_shape(model, step, seen):
    pass


def look_at_gradients(model, step, seen):
    if step % 3 == 1:
        seen.append(model[2].weight.grad.numpy().copy())
        seen.append(model[7].weight.grad.sum().item())


def keep_gradients(model, step, seen):
    seen.append(model[7].weight.grad)
    if len(seen) > 3:
        seen[-3] = seen[-3].numpy().copy()


def export_gradient(model, step, seen):
    if step == 8:
        seen.append(model[7].weight.grad.numpy())  # shares memory, which the next backward pass leaves alone
    if len(seen) > 0:
        seen.append(seen[0].copy())


def change_gradient(model, step, seen):
    pass


def accumulate(model, step, seen):
    pass


def zero_in_place(model, step, seen):
    pass


def nothing(model, step, seen):
    time.sleep(0.02)  # time for the compile thread, on a machine that has none to spare


def train(act, optimizer_of, sync, bf16):
    _C._set_sync(sync)
    try:
        model, seen = network(), []
        optimizer = optimizer_of(model.parameters())
        losses = []
        for step in range(STEPS):
            rng = np.random.RandomState(step)
            batch = 6 if act is new_shape and step % 4 == 3 else 4
            x, y = torch.tensor(rng.randn(batch, 3, 8, 8).astype("f")), torch.tensor(rng.randint(0, 4, batch))
            optimizer.zero_grad(set_to_none=act is not zero_in_place)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                h = model[:4](x)
                if act is look_in_the_middle and step % 3 == 2:
                    seen.append(model[4].weight.detach().numpy().copy().sum())
                loss = torch.nn.functional.cross_entropy(model[4:](h), y)
            loss.backward(retain_graph=True)
            if act is look_in_the_middle and step % 4 == 3:
                seen.append(model[2].weight.grad.numpy().copy())
            if act is change_gradient and step % 5 == 4:
                model[7].weight.grad.mul_(1.1)  # no longer bfloat16
            if act is accumulate and step % 3 == 2:
                loss.backward()
            if act is clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            losses.append(loss.item())
            act(model, step, seen)
        state = [p.detach().numpy().copy() for p in model.parameters()] + [p.grad.numpy().copy() for p in model.parameters()]
        for s in optimizer.state.values():
            state += [v.numpy().copy() for v in s.values() if isinstance(v, torch.Tensor) and v.dim()]
        return losses, [np.asarray(s) for s in seen], state, torch.explain()
    finally:
        _C._set_sync(False)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True),
}


ACTS = [nothing, look_at_weights, look_in_the_middle, export, save, load, clip, evaluate, rebind, new_shape, look_at_gradients,
        keep_gradients, export_gradient, change_gradient, accumulate, zero_in_place]


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("act", ACTS)
def test_same_as_sync(act, optimizer, bf16):
    have, want = (afresh(train)(act, OPTIMIZERS[optimizer], sync, bf16) for sync in (False, True))
    np.testing.assert_allclose(have[0], want[0], rtol=1e-5)
    assert len(have[1]) == len(want[1])
    for a, b in zip(have[1] + have[2], want[1] + want[2]):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)
    if act is nothing:
        assert (" narrow " if bf16 else "weights at home") in have[3], have[3]


# ---- parameters with a bfloat16 copy beside them, which a program casts itself and may keep

def read_parameter(w, cast, step, kept):
    kept.append(w.detach().sum().item())  # leaves home in the middle of an iteration


def keep_cast(w, cast, step, kept):
    if step in (9, 18):
        kept.append(cast)  # outlives the update, and must not follow it


def read_cast(w, cast, step, kept):
    if step in (9, 18):
        kept.append(cast.detach().float().numpy().copy())


def change_cast(w, cast, step, kept):
    if step in (9, 18):
        cast.mul_(2)
        kept.append(cast)


def change_parameter(w, cast, step, kept):
    if step in (9, 18):
        w.mul_(0.5)


def fail(w, cast, step, kept):
    if step in (9, 18):
        with pytest.raises(IndexError):
            w[torch.tensor([1000])].sum().item()


def as_it_is(w, cast, step, kept):
    pass


def train_cast(act, optimizer_of, sync, when):
    _C._set_sync(sync)
    try:
        torch.manual_seed(3)
        w, kept, losses = torch.nn.Parameter(torch.randn(96, 64)), [], []
        optimizer = optimizer_of([w])
        for step in range(2 * STEPS):
            x = torch.tensor(np.random.RandomState(step).randn(32, 64).astype("f"))
            optimizer.zero_grad()
            cast = w.to(torch.bfloat16)
            loss = (x.to(torch.bfloat16) @ cast.t()).float().square().mean()
            loss.backward()
            if when == "before":
                with torch.no_grad():
                    act(w, cast, step, kept)
            if when == "before" or step not in (9, 18) or act not in (keep_cast, read_cast, change_cast):
                cast = None  # dead before the update, as autocast's casts are
            optimizer.step()
            if when == "after":
                with torch.no_grad():
                    act(w, cast, step, kept)
            losses.append(loss.item())
            time.sleep(0.01)
        state = [w.detach().numpy().copy(), w.grad.numpy().copy()]
        return losses, [np.asarray(k.float().detach().numpy() if isinstance(k, torch.Tensor) else k) for k in kept], state, torch.explain()
    finally:
        _C._set_sync(False)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("act", [as_it_is, read_parameter, keep_cast, read_cast, change_cast, change_parameter, fail])
def test_casts_of_parameters(act, when, optimizer):
    have, want = (afresh(train_cast)(act, OPTIMIZERS[optimizer], sync, when) for sync in (False, True))
    np.testing.assert_array_equal(have[0], want[0])
    for a, b in zip(have[1] + have[2], want[1] + want[2], strict=True):
        np.testing.assert_array_equal(a, b)
    if act is as_it_is:
        assert " copy " in have[3] and " narrow " in have[3], have[3]
