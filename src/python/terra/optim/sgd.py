"""Stochastic gradient descent."""

from .. import _C
from .optimizer import Optimizer, _no_grad_step, _number

_sgd = _C.op._sgd_


class SGD(Optimizer):
    """p -= lr * (momentum of (grad + weight_decay * p))"""

    def __init__(self, params, lr=1e-3, momentum=0, dampening=0, weight_decay=0, nesterov=False, *, maximize=False, foreach=None,
                 differentiable=False, fused=None):
        for name, value in (("learning rate", lr), ("momentum value", momentum), ("weight_decay value", weight_decay)):
            if value < 0.0:
                raise ValueError(f"Invalid {name}: {value}")
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        super().__init__(params, dict(lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov,
                                      maximize=maximize, foreach=foreach, differentiable=differentiable, fused=fused))

    def __setstate__(self, state):
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("nesterov", False)
            group.setdefault("maximize", False)

    @_no_grad_step
    def step(self):
        for group, p, g in self._each():
            buffer, first = None, False
            if group["momentum"] != 0:
                state = self.state[p]
                buffer = state.get("momentum_buffer")
                if buffer is None:
                    # Without dampening, the first time is what every time is from zeros: no path of its own.
                    buffer, first = _C._new_full(p.shape, p.dtype, 0), group["dampening"] != 0
                    state["momentum_buffer"] = buffer
            _sgd(p, g, buffer, _number(group["lr"]), group["momentum"], group["dampening"], group["weight_decay"],
                 group["nesterov"], group["maximize"], first)
