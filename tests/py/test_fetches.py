"""What is read right behind the mark: the loss at a step's end, parameters, gradients."""

import pytest
from both import both


def train(read):
    def program(m):
        w, b = m.nn.Parameter(m.randn(24, 24) * 0.3), m.nn.Parameter(m.zeros(24))
        kept = m.arange(24.0)
        optimizer = m.optim.Adam([w, b], lr=1e-2)
        seen = []
        for step in range(40):
            x = m.full((8, 24), 0.1 * (step % 7)) + kept / 24
            hidden = m.tanh(x @ w + b)
            loss = (hidden @ w).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += read(m, step, loss, w, b, kept)
        return seen

    return program


READS = {
    "loss": lambda m, step, loss, w, b, kept: [loss.item()],
    "parameter": lambda m, step, loss, w, b, kept: [w[3, 4].item(), loss.item()],
    "gradient": lambda m, step, loss, w, b, kept: [b.grad[5].item(), w.grad[1, 1].item()],
    "from outside": lambda m, step, loss, w, b, kept: [kept[3].item(), loss.item()],
    "an op between": lambda m, step, loss, w, b, kept: [(loss * 2).item(), loss.item(), (w.detach() + 1)[0, 0].item()],
    "arrays": lambda m, step, loss, w, b, kept: [w.detach().clone(), b.detach().numpy().copy()[7].item(), loss.item()],
    "now and then": lambda m, step, loss, w, b, kept: [loss.item(), b[0].item()] if step % 3 == 0 else [],
    "a write, then": lambda m, step, loss, w, b, kept: [kept.add_(1.0)[2].item(), loss.item()],
}


@pytest.mark.parametrize("read", READS)
def test_behind_the_mark(read):
    both(train(READS[read]), tol=1e-4)
