"""Recurrent layers, transformers, weight normalisation and distributions, against torch."""

import numpy as np
import pytest
from both import both

RNG = np.random.RandomState(3)
SEQUENCE = RNG.randn(5, 3, 4).astype("float32")


def grads(module):
    return {name: p.grad for name, p in module.named_parameters()}


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}, {"bias": False},
                                     {"num_layers": 2, "dropout": 0.5}], ids=str)
def test_recurrent(kind, options):
    def run(m):
        layer = getattr(m.nn, kind)(4, 6, **options)
        x = m.tensor(SEQUENCE, requires_grad=True)
        out, state = layer(x)
        again, _ = layer(x, state)
        (out.square().sum() + again.sum()).backward()
        return layer.state_dict(), out, state, again, x.grad, grads(layer), repr(layer)

    both(run, 2e-5)


def test_recurrent_others():
    both(lambda m: m.nn.RNN(4, 6, nonlinearity="relu")(m.tensor(SEQUENCE)), 1e-5)
    both(lambda m: m.nn.LSTM(4, 6, proj_size=2)(m.tensor(SEQUENCE)), 1e-5)
    both(lambda m: m.nn.GRU(4, 6)(m.tensor(SEQUENCE[:, 0])), 1e-5)
    both(lambda m: m.nn.GRU(4, 6)(m.zeros(5, 3, 7)))
    both(lambda m: m.nn.LSTM(4, 6)(m.tensor(SEQUENCE), (m.zeros(1, 2, 6), m.zeros(1, 3, 6))))
    both(lambda m: m.nn.LSTM(4, 6, proj_size=6))
    both(lambda m: m.nn.RNN(4, 6, nonlinearity="gelu"))
    for kind in ("RNNCell", "LSTMCell", "GRUCell"):
        both(lambda m, kind=kind: getattr(m.nn, kind)(4, 6)(m.tensor(SEQUENCE[0])), 1e-5)


@pytest.mark.parametrize("options", [{}, {"norm_first": True, "batch_first": True, "activation": "gelu"}, {"bias": False}], ids=str)
def test_transformer(options):
    def run(m):
        model = m.nn.Transformer(8, 2, 2, 2, 16, **options)
        at = 1 if options.get("batch_first") else 0
        src, tgt = (m.randn(*((3, t) if at else (t, 3)), 8) for t in (5, 4))
        mask = m.nn.Transformer.generate_square_subsequent_mask(4)
        padding = m.zeros(3, 5, dtype=m.bool)
        padding[0, -1] = True
        out = model(src, tgt, tgt_mask=mask, src_key_padding_mask=padding)
        out.square().sum().backward()
        return model.state_dict(), out, grads(model)

    both(run, 1e-4)


def test_weight_norm():
    def run(m):
        layer = m.nn.utils.weight_norm(m.nn.Conv1d(4, 3, 2))
        out = layer(m.tensor(SEQUENCE).transpose(1, 2))
        out.square().sum().backward()
        found = layer.state_dict(), out, grads(layer)
        return *found, list(m.nn.utils.remove_weight_norm(layer).state_dict())

    both(run)
    both(lambda m: m.nn.utils.remove_weight_norm(m.nn.Linear(2, 2)))


def test_distributions():
    def run(m):
        d = m.distributions
        p = m.tensor([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]], requires_grad=True)
        found = []
        for make in (lambda: d.Categorical(p), lambda: d.Categorical(logits=p.log() + 2), lambda: d.Bernoulli(p),
                     lambda: d.Bernoulli(logits=p), lambda: d.Normal(p, p + 1)):
            x = make()
            sample = x.sample((4,))
            log_p = x.log_prob(sample)
            p.grad = None
            (log_p.sum() + x.entropy().sum()).backward()
            found += [sample, log_p, x.entropy(), p.grad, x.batch_shape, x.mode if hasattr(x, "mode") else None, repr(x)]
        return found

    both(run)
    both(lambda m: m.distributions.Categorical(m.tensor([-0.5, 1.5])))
    both(lambda m: m.distributions.Categorical(m.tensor([0.5, 0.5])).log_prob(m.tensor(2)))
    both(lambda m: m.distributions.Normal(0.0, -1.0))
    both(lambda m: m.distributions.Bernoulli(0.25).log_prob(m.tensor(1.0)))
