"""Modules, losses, initial values, optimizers and schedules against torch: values, gradients, draws, state, printing."""

import copy

import pytest

from both import both


def grads(m, layer, *inputs, pick=lambda y: y):
    y = pick(layer(*inputs))
    (y * m.arange(1.0, y.numel() + 1).reshape(y.shape)).sum().backward()
    return [y, [x.grad for x in inputs if x.is_floating_point()], {k: p.grad for k, p in layer.named_parameters()}, dict(layer.named_buffers())]


def leaf(m, *shape):
    return m.randn(*shape).requires_grad_()


MODULES = {
    "Linear": lambda m: grads(m, m.nn.Linear(4, 3), leaf(m, 5, 4)),
    "Linear3d": lambda m: grads(m, m.nn.Linear(4, 3, bias=False), leaf(m, 2, 5, 4)),
    "Bilinear": lambda m: grads(m, m.nn.Bilinear(3, 4, 2), leaf(m, 5, 3), leaf(m, 5, 4)),
    "Conv2d": lambda m: grads(m, m.nn.Conv2d(3, 4, 3, stride=2, padding=1), leaf(m, 2, 3, 7, 8)),
    "Conv2d_groups": lambda m: grads(m, m.nn.Conv2d(4, 4, 3, groups=2, dilation=2), leaf(m, 2, 4, 7, 8)),
    "Conv2d_same": lambda m: grads(m, m.nn.Conv2d(2, 4, (2, 3), padding="same"), leaf(m, 2, 2, 5, 6)),
    "Conv2d_reflect": lambda m: grads(m, m.nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), leaf(m, 2, 2, 5, 6)),
    "Conv2d_unbatched": lambda m: grads(m, m.nn.Conv2d(2, 4, 3), leaf(m, 2, 5, 6)),
    "Conv1d": lambda m: grads(m, m.nn.Conv1d(3, 4, 3, padding=2, dilation=2), leaf(m, 2, 3, 9)),
    "BatchNorm1d": lambda m: grads(m, m.nn.BatchNorm1d(4), leaf(m, 6, 4)),
    "BatchNorm1d_3d": lambda m: grads(m, m.nn.BatchNorm1d(4), leaf(m, 6, 4, 3)),
    "BatchNorm2d": lambda m: grads(m, m.nn.BatchNorm2d(3), leaf(m, 4, 3, 5, 5)),
    "BatchNorm2d_eval": lambda m: grads(m, m.nn.BatchNorm2d(3).eval(), leaf(m, 4, 3, 5, 5)),
    "BatchNorm2d_no_stats": lambda m: grads(m, m.nn.BatchNorm2d(3, track_running_stats=False), leaf(m, 4, 3, 5, 5)),
    "BatchNorm2d_cumulative": lambda m: grads(m, m.nn.BatchNorm2d(3, momentum=None), leaf(m, 4, 3, 5, 5)),
    "LayerNorm": lambda m: grads(m, m.nn.LayerNorm(6), leaf(m, 2, 3, 6)),
    "LayerNorm_2": lambda m: grads(m, m.nn.LayerNorm((3, 6)), leaf(m, 2, 3, 6)),
    "LayerNorm_plain": lambda m: grads(m, m.nn.LayerNorm(6, elementwise_affine=False), leaf(m, 2, 6)),
    "GroupNorm": lambda m: grads(m, m.nn.GroupNorm(2, 4), leaf(m, 2, 4, 3, 3)),
    "InstanceNorm2d": lambda m: grads(m, m.nn.InstanceNorm2d(3), leaf(m, 2, 3, 4, 4)),
    "RMSNorm": lambda m: grads(m, m.nn.RMSNorm(6), leaf(m, 2, 6)),
    "Embedding": lambda m: grads(m, m.nn.Embedding(7, 3, padding_idx=2), m.tensor([[1, 2], [2, 6]])),
    "Dropout": lambda m: grads(m, m.nn.Dropout(0.3), leaf(m, 5, 40)),
    "Dropout2d": lambda m: grads(m, m.nn.Dropout2d(0.3), leaf(m, 5, 4, 2, 2)),
    "MaxPool2d": lambda m: grads(m, m.nn.MaxPool2d(2), leaf(m, 2, 3, 5, 6)),
    "MaxPool2d_pad": lambda m: grads(m, m.nn.MaxPool2d(3, 2, 1), leaf(m, 2, 3, 5, 6)),
    "AvgPool2d": lambda m: grads(m, m.nn.AvgPool2d(3, 2, 1), leaf(m, 2, 3, 5, 6)),
    "AdaptiveAvgPool2d": lambda m: grads(m, m.nn.AdaptiveAvgPool2d((2, 3)), leaf(m, 2, 3, 5, 7)),
    "MaxPool1d": lambda m: grads(m, m.nn.MaxPool1d(2), leaf(m, 2, 3, 6)),
    "Flatten": lambda m: grads(m, m.nn.Flatten(), leaf(m, 2, 3, 4)),
    "PReLU": lambda m: grads(m, m.nn.PReLU(3), leaf(m, 2, 3)),
    "MHA": lambda m: grads(m, m.nn.MultiheadAttention(8, 2), leaf(m, 5, 3, 8), leaf(m, 4, 3, 8), leaf(m, 4, 3, 8), pick=lambda y: y[0]),
    "MHA_weights": lambda m: m.nn.MultiheadAttention(8, 2, batch_first=True)(*[m.randn(3, 5, 8)] * 3)[1],
    "MHA_self": lambda m: _self_attention(m),
    "MHA_kdim": lambda m: grads(m, m.nn.MultiheadAttention(8, 2, kdim=6, vdim=7), leaf(m, 5, 3, 8), leaf(m, 4, 3, 6), leaf(m, 4, 3, 7), pick=lambda y: y[0]),
    "Sequential": lambda m: grads(m, m.nn.Sequential(m.nn.Linear(4, 8), m.nn.ReLU(inplace=True), m.nn.Dropout(), m.nn.Linear(8, 2)), leaf(m, 6, 4)),
}
for _name in ("ReLU", "GELU", "Tanh", "Sigmoid", "LeakyReLU", "SiLU", "ELU", "Softplus", "Hardtanh", "LogSigmoid", "Softsign", "Mish", "SELU", "Hardswish",
              "ReLU6", "CELU", "Identity"):
    MODULES[_name] = lambda m, _name=_name: grads(m, getattr(m.nn, _name)(), leaf(m, 4, 5))
for _name in ("Softmax", "LogSoftmax"):
    MODULES[_name] = lambda m, _name=_name: grads(m, getattr(m.nn, _name)(dim=1), leaf(m, 4, 5))


def _self_attention(m):
    layer = m.nn.MultiheadAttention(8, 2, dropout=0.2, batch_first=True)
    x = leaf(m, 3, 5, 8)
    mask = m.ones(5, 5).triu(1).bool()
    padding = m.tensor([[False] * 5, [False] * 4 + [True], [False] * 5])
    y, w = layer(x, x, x, attn_mask=mask, key_padding_mask=padding, need_weights=False)
    y.sum().backward()
    return y, w, x.grad, layer.in_proj_weight.grad


@pytest.mark.parametrize("name", MODULES)
def test_module(name):
    both(MODULES[name], 2e-4)


LOSSES = {
    "ce": lambda m, x, t: m.nn.CrossEntropyLoss()(x, t), "ce_sum": lambda m, x, t: m.nn.CrossEntropyLoss(reduction="sum")(x, t),
    "ce_none": lambda m, x, t: m.nn.CrossEntropyLoss(reduction="none")(x, t).sum(), "ce_weight": lambda m, x, t: m.nn.CrossEntropyLoss(weight=m.arange(1.0, 6.0))(x, t),
    "ce_ignore": lambda m, x, t: m.nn.CrossEntropyLoss(ignore_index=1)(x, t), "ce_smooth": lambda m, x, t: m.nn.CrossEntropyLoss(label_smoothing=0.1)(x, t),
    "ce_soft": lambda m, x, t: m.nn.CrossEntropyLoss()(x, m.softmax(x.detach() * 2, 1)), "ce_one": lambda m, x, t: m.nn.CrossEntropyLoss()(x[0], t[0]),
    "ce_smooth_weight": lambda m, x, t: m.nn.CrossEntropyLoss(weight=m.arange(1.0, 6.0), label_smoothing=0.1, ignore_index=2)(x, t),
    "nll": lambda m, x, t: m.nn.NLLLoss()(m.log_softmax(x, 1), t), "mse": lambda m, x, t: m.nn.MSELoss()(x, x.detach() * 2), "l1": lambda m, x, t: m.nn.L1Loss()(x, x.detach() * 2),
    "smooth_l1": lambda m, x, t: m.nn.SmoothL1Loss(beta=0.5)(x, x.detach() * 2), "huber": lambda m, x, t: m.nn.HuberLoss()(x, x.detach() * 3),
    "bce": lambda m, x, t: m.nn.BCELoss()(m.sigmoid(x), (x > 0).float()), "bce_logits": lambda m, x, t: m.nn.BCEWithLogitsLoss()(x, (x > 0).float()),
    "bce_pos": lambda m, x, t: m.nn.BCEWithLogitsLoss(pos_weight=m.arange(1.0, 6.0))(x, (x > 0).float()), "kl": lambda m, x, t: m.nn.KLDivLoss(reduction="batchmean")(m.log_softmax(x, 1), m.softmax(x.detach() * 2, 1)),
    "images": lambda m, x, t: m.nn.CrossEntropyLoss()(x.reshape(2, 5, 2, 1).expand(2, 5, 2, 3), t.reshape(2, 2, 1).expand(2, 2, 3)),
    "cosine": lambda m, x, t: m.nn.functional.cosine_similarity(x, x.flip(0)).sum(), "normalize": lambda m, x, t: m.nn.functional.normalize(x).sum(),
    "bad_batch": lambda m, x, t: m.nn.CrossEntropyLoss()(x, t[:2]), "bad_bce": lambda m, x, t: m.nn.BCELoss()(m.sigmoid(x), x[0]), "bad_index": lambda m, x, t: m.nn.CrossEntropyLoss()(x, t + 90).item(),
    "sdpa": lambda m, x, t: m.nn.functional.scaled_dot_product_attention(*[x.reshape(1, 2, 2, 5)] * 3, is_causal=True).pow(2).sum(),
    "sdpa_mask": lambda m, x, t: m.nn.functional.scaled_dot_product_attention(*[x.reshape(1, 2, 2, 5)] * 3, attn_mask=m.tensor([[True, False], [True, True]])).pow(2).sum(),
    "pad": lambda m, x, t: (m.nn.functional.pad(x, (1, -1), value=2.0) ** 2).sum(), "one_hot": lambda m, x, t: (m.nn.functional.one_hot(t, 5) * x).sum(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss(name):
    def fn(m):
        x, t = leaf(m, 4, 5), m.tensor([1, 0, 4, 2])
        loss = LOSSES[name](m, x, t)
        loss.backward()
        return loss, x.grad

    both(fn, 1e-4)


@pytest.mark.parametrize("call", [
    lambda i, t: i.uniform_(t, -1, 2), lambda i, t: i.normal_(t, 1, 0.5), lambda i, t: i.constant_(t, 3), lambda i, t: i.ones_(t), lambda i, t: i.eye_(t),
    lambda i, t: i.xavier_uniform_(t), lambda i, t: i.xavier_normal_(t, 2.0), lambda i, t: i.kaiming_uniform_(t, nonlinearity="relu"),
    lambda i, t: i.kaiming_normal_(t, mode="fan_out"), lambda i, t: i.trunc_normal_(t, std=0.02), lambda i, t: i.orthogonal_(t), lambda i, t: i.calculate_gain("tanh"),
    lambda i, t: i.calculate_gain("nope"), lambda i, t: i.xavier_uniform_(t[0]),
])
def test_init(call):
    both(lambda m: (call(m.nn.init, m.empty(6, 5)), m.rand(1)), 1e-5)


class Net:
    def __new__(cls, m):
        class Net(m.nn.Module):
            def __init__(self):
                super().__init__()
                self.body = m.nn.Sequential(m.nn.Linear(4, 8), m.nn.BatchNorm1d(8), m.nn.ReLU())
                self.heads = m.nn.ModuleList([m.nn.Linear(8, 2), m.nn.Linear(8, 2)])
                self.named = m.nn.ModuleDict({"a": m.nn.Identity()})
                self.scale = m.nn.Parameter(m.ones(2))
                self.register_buffer("seen", m.zeros(1))
                self.register_buffer("scratch", m.zeros(1), persistent=False)

            def forward(self, x):
                self.seen += 1
                h = self.named["a"](self.body(x))
                return sum(head(h) for head in self.heads) * self.scale

        return Net()


def test_module_tree():
    def fn(m):
        net = Net(m)
        other = copy.deepcopy(net)
        net(m.randn(5, 4))
        keys = list(net.state_dict())
        result = other.load_state_dict(net.state_dict())
        return (keys, [n for n, _ in net.named_modules()], [n for n, _ in net.named_parameters()], [n for n, _ in net.named_buffers()], repr(net).replace("Net", "N"),
                str(result), other.seen, other.scale is net.scale, net.training, net.eval().training, net.body[0].training, sum(p.numel() for p in net.parameters()),
                [type(c).__name__ for c in net.children()], hasattr(net, "nope"), net.double().scale.dtype, net.get_parameter("body.0.weight").shape)

    both(fn)


@pytest.mark.parametrize("call", [
    lambda m, net: setattr(net, "scale", m.ones(2)), lambda m, net: net.nope, lambda m, net: net.load_state_dict({}), lambda m, net: net.load_state_dict({"x": m.ones(1)}, strict=False),
    lambda m, net: net.load_state_dict({**net.state_dict(), "scale": m.ones(3)}), lambda m, net: net.register_buffer("seen.x", None), lambda m, net: net.add_module("", None),
    lambda m, net: net.heads[5], lambda m, net: m.nn.Module()(1), lambda m, net: net.train("yes"), lambda m, net: m.nn.Linear(2, 3)(m.ones(2, 5)), lambda m, net: m.nn.Linear(2, 3, foo=1),
    lambda m, net: m.nn.Conv2d(3, 4, 3)(m.ones(1, 2, 5, 5)), lambda m, net: m.nn.BatchNorm2d(3)(m.ones(2, 3)), lambda m, net: m.nn.BatchNorm1d(3)(m.ones(1, 3)),
    lambda m, net: m.nn.Embedding(3, 2)(m.ones(2)), lambda m, net: m.nn.Embedding(3, 2)(m.tensor([7])).sum().item(), lambda m, net: m.nn.Dropout(2.0), lambda m, net: net.to(m.int64),
])
def test_module_errors(call):
    both(lambda m: call(m, Net(m)) and None)


def test_hooks():
    def fn(m):
        layer, seen = m.nn.Linear(3, 2), []
        layer.register_forward_pre_hook(lambda mod, args: seen.append(len(args)) or (args[0] * 2,))
        h = layer.register_forward_hook(lambda mod, args, out: seen.append(tuple(out.shape)) or out + 1)
        layer.register_full_backward_hook(lambda mod, gi, go: seen.append((gi[0], go[0])))
        x = leaf(m, 4, 3)
        y = layer(x)
        y.sum().backward()
        h.remove()
        return y, x.grad, seen, layer(x)

    both(fn)


OPTIMIZERS = {
    "sgd": lambda m, p: m.optim.SGD(p, lr=0.1), "momentum": lambda m, p: m.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda m, p: m.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), "dampening": lambda m, p: m.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
    "maximize": lambda m, p: m.optim.SGD(p, lr=0.1, maximize=True), "adam": lambda m, p: m.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "amsgrad": lambda m, p: m.optim.Adam(p, lr=0.01, amsgrad=True), "adamw": lambda m, p: m.optim.AdamW(p, lr=0.01, betas=(0.8, 0.9)), "adam_max": lambda m, p: m.optim.Adam(p, maximize=True),
    "rmsprop": lambda m, p: m.optim.RMSprop(p, lr=0.01), "rmsprop_all": lambda m, p: m.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True, weight_decay=0.1),
    "adagrad": lambda m, p: m.optim.Adagrad(p, lr=0.1),
    "groups": lambda m, p: m.optim.SGD([{"params": p[:1], "lr": 0.5}, {"params": p[1:]}], lr=0.1, momentum=0.5),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer(name):
    def fn(m):
        layer = m.nn.Linear(4, 3)
        opt = OPTIMIZERS[name](m, list(layer.parameters()))
        x, y = m.randn(8, 4), m.randn(8, 3)
        losses = []
        for i in range(6):
            opt.zero_grad()
            loss = m.nn.functional.mse_loss(layer(x), y)
            loss.backward()
            opt.step()
            losses.append(loss.item())
            if i == 2:
                state = copy.deepcopy(opt.state_dict())
                opt = OPTIMIZERS[name](m, list(layer.parameters()))
                opt.load_state_dict(state)
        state = opt.state_dict()
        for g in state["param_groups"]:
            g.pop("decoupled_weight_decay", None)
        return losses, list(layer.parameters()), state["state"], [sorted(g) for g in state["param_groups"]]

    both(fn, 2e-5)


def test_closure_and_hooks():
    def fn(m):
        p = m.nn.Parameter(m.ones(2))
        opt, seen = m.optim.SGD([p], lr=0.1), []
        opt.register_step_pre_hook(lambda o, a, k: seen.append("before"))
        opt.register_step_post_hook(lambda o, a, k: seen.append("after"))

        def closure():
            opt.zero_grad()
            loss = (p ** 2).sum()
            loss.backward()
            return loss

        return opt.step(closure).item(), p, seen, repr(opt)

    both(fn)


@pytest.mark.parametrize("call", [
    lambda m: m.optim.SGD([], lr=0.1), lambda m: m.optim.SGD(m.ones(2), lr=0.1), lambda m: m.optim.SGD([m.ones(2)], lr=-1), lambda m: m.optim.SGD([1], lr=0.1),
    lambda m: m.optim.Adam([m.ones(2, requires_grad=True) * 2]), lambda m: m.optim.Adam([m.ones(2)], betas=(1.5, 0.9)),
    lambda m: m.optim.SGD([m.ones(2)], lr=0.1).load_state_dict({"state": {}, "param_groups": []}),
])
def test_optimizer_errors(call):
    both(lambda m: call(m) and None)


SCHEDULES = {
    "step": lambda s, o: s.StepLR(o, 3, 0.5), "multi": lambda s, o: s.MultiStepLR(o, [2, 5, 5], 0.1), "lambda": lambda s, o: s.LambdaLR(o, lambda e: 0.9 ** e),
    "exp": lambda s, o: s.ExponentialLR(o, 0.8), "cosine": lambda s, o: s.CosineAnnealingLR(o, 4, 0.01), "linear": lambda s, o: s.LinearLR(o, 0.25, total_iters=5),
    "constant": lambda s, o: s.ConstantLR(o, 0.5, 3), "poly": lambda s, o: s.PolynomialLR(o, 6, 2.0), "restarts": lambda s, o: s.CosineAnnealingWarmRestarts(o, 3, 2),
    "cycle": lambda s, o: s.OneCycleLR(o, 0.5, total_steps=14), "sequential": lambda s, o: s.SequentialLR(o, [s.LinearLR(o, 0.1, total_iters=3), s.ExponentialLR(o, 0.9)], [3]),
    "chained": lambda s, o: s.ChainedScheduler([s.ExponentialLR(o, 0.9), s.StepLR(o, 2)]), "multiplicative": lambda s, o: s.MultiplicativeLR(o, lambda e: 0.95),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(name):
    def fn(m):
        p = m.nn.Parameter(m.ones(1))
        opt = m.optim.SGD([{"params": [p]}, {"params": [m.nn.Parameter(m.ones(1))], "lr": 0.3}], lr=1.0, momentum=0.9)
        schedule = SCHEDULES[name](m.optim.lr_scheduler, opt)
        rates = []
        for _ in range(12):
            rates.append(([g["lr"] for g in opt.param_groups], schedule.get_last_lr()))
            opt.step()
            schedule.step()
        return rates

    both(fn, 1e-9)


def test_plateau():
    def fn(m):
        opt = m.optim.SGD([m.nn.Parameter(m.ones(1))], lr=1.0)
        schedule = m.optim.lr_scheduler.ReduceLROnPlateau(opt, patience=1, factor=0.5)
        rates = []
        for value in (5, 4, 4, 4, 4, 3, 3, 3, 3):
            schedule.step(value)
            rates.append(opt.param_groups[0]["lr"])
        return rates

    both(fn)


def test_clipping():
    def fn(m):
        p = [m.nn.Parameter(m.ones(3)), m.nn.Parameter(m.ones(2))]
        (p[0].sum() * 3 + p[1].sum() * 4).backward()
        total = m.nn.utils.clip_grad_norm_(p, 2.0)
        first = [q.grad.clone() for q in p]
        m.nn.utils.clip_grad_value_(p, 0.5)
        vector = m.nn.utils.parameters_to_vector(p)
        m.nn.utils.vector_to_parameters(vector * 2, p)
        return total, first, [q.grad for q in p], vector, p

    both(fn)
