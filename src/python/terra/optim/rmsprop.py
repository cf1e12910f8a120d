"""RMSprop."""

from .. import _C
from .optimizer import Optimizer, _no_grad_step, _number

_rmsprop = _C.op._rmsprop_


class RMSprop(Optimizer):
    """Gradients over the root of their mean square."""

    def __init__(self, params, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0, momentum=0, centered=False, capturable=False,
                 foreach=None, maximize=False, differentiable=False):
        for name, value in (("learning rate", lr), ("epsilon value", eps), ("momentum value", momentum),
                            ("weight_decay value", weight_decay), ("alpha value", alpha)):
            if not 0.0 <= value:
                raise ValueError(f"Invalid {name}: {value}")
        super().__init__(params, dict(lr=lr, momentum=momentum, alpha=alpha, eps=eps, centered=centered, weight_decay=weight_decay,
                                      capturable=capturable, foreach=foreach, maximize=maximize, differentiable=differentiable))

    @_no_grad_step
    def step(self):
        for group, p, g in self._each():
            state = self.state[p]
            if not state:
                state["step"] = 0.0
                state["square_avg"] = _C._new_full(p.shape, p.dtype, 0)
                if group["momentum"] > 0:
                    state["momentum_buffer"] = _C._new_full(p.shape, p.dtype, 0)
                if group["centered"]:
                    state["grad_avg"] = _C._new_full(p.shape, p.dtype, 0)
            state["step"] += 1
            _rmsprop(p, g, state["square_avg"], state.get("momentum_buffer") if group["momentum"] > 0 else None,
                     state.get("grad_avg") if group["centered"] else None, _number(group["lr"]), group["alpha"], group["eps"],
                     group["weight_decay"], group["momentum"], group["maximize"])
