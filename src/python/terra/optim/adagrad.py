"""Adagrad."""

from .. import _C
from .optimizer import Optimizer, _no_grad_step, _number


class Adagrad(Optimizer):
    """Gradients over the root of the sum of their squares."""

    def __init__(self, params, lr=1e-2, lr_decay=0, weight_decay=0, initial_accumulator_value=0, eps=1e-10, foreach=None, *,
                 maximize=False, differentiable=False, fused=None):
        for name, value in (("learning rate", lr), ("lr_decay value", lr_decay), ("weight_decay value", weight_decay),
                            ("initial_accumulator_value value", initial_accumulator_value), ("epsilon value", eps)):
            if not 0.0 <= value:
                raise ValueError(f"Invalid {name}: {value}")
        super().__init__(params, dict(lr=lr, lr_decay=lr_decay, eps=eps, weight_decay=weight_decay,
                                      initial_accumulator_value=initial_accumulator_value, foreach=foreach, maximize=maximize,
                                      differentiable=differentiable, fused=fused))
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {"step": 0.0, "sum": _C._new_full(p.shape, p.dtype, initial_accumulator_value)}

    @_no_grad_step
    def step(self):
        for group, p, g in self._each():
            state = self.state[p]
            state["step"] += 1
            g = -g if group["maximize"] else g
            if group["weight_decay"] != 0:
                g = g.add(p, alpha=group["weight_decay"])
            state["sum"].addcmul_(g, g, value=1)
            rate = _number(group["lr"]) / (1 + (state["step"] - 1) * group["lr_decay"])
            p.addcdiv_(g, state["sum"].sqrt().add_(group["eps"]), value=-rate)
