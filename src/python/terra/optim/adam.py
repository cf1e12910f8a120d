"""Adam and AdamW."""

from .. import _C
from .optimizer import Optimizer, _no_grad_step, _number

_adam = _C.op._adam_


class Adam(Optimizer):
    """First and second moments of the gradient."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, amsgrad=False, *, foreach=None,
                 maximize=False, capturable=False, differentiable=False, fused=None, decoupled_weight_decay=False):
        if not 0.0 <= lr:
            raise ValueError(f"Invalid learning rate: {lr}")
        if not 0.0 <= eps:
            raise ValueError(f"Invalid epsilon value: {eps}")
        for i in (0, 1):
            if not 0.0 <= betas[i] < 1.0:
                raise ValueError(f"Invalid beta parameter at index {i}: {betas[i]}")
        if not 0.0 <= weight_decay:
            raise ValueError(f"Invalid weight_decay value: {weight_decay}")
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad, maximize=maximize,
                                      foreach=foreach, capturable=capturable, differentiable=differentiable, fused=fused,
                                      decoupled_weight_decay=decoupled_weight_decay))

    def __setstate__(self, state):
        super().__setstate__(state)
        for group in self.param_groups:
            for name in ("amsgrad", "maximize", "decoupled_weight_decay"):
                group.setdefault(name, name == "decoupled_weight_decay" and isinstance(self, AdamW))

    @_no_grad_step
    def step(self):
        for group, p, g in self._each():
            state = self.state[p]
            if not state:
                state["step"] = 0.0
                state["exp_avg"] = _C._new_full(p.shape, p.dtype, 0)
                state["exp_avg_sq"] = _C._new_full(p.shape, p.dtype, 0)
                if group["amsgrad"]:
                    state["max_exp_avg_sq"] = _C._new_full(p.shape, p.dtype, 0)
            state["step"] += 1
            beta1, beta2 = group["betas"]
            _adam(p, g, state["exp_avg"], state["exp_avg_sq"], state["max_exp_avg_sq"] if group["amsgrad"] else None,
                  _number(group["lr"]), beta1, beta2, group["eps"], group["weight_decay"], state["step"],
                  group["decoupled_weight_decay"], group["maximize"])


class AdamW(Adam):
    """Adam with decoupled weight decay."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, amsgrad=False, *, maximize=False,
                 foreach=None, capturable=False, differentiable=False, fused=None):
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, foreach=foreach, maximize=maximize, capturable=capturable,
                         differentiable=differentiable, fused=fused, decoupled_weight_decay=True)
