"""Scales the loss, so that small gradients survive a narrow exponent; skips steps whose gradients overflow."""

import warnings
from collections.abc import Iterable

from .. import _C
from ..autograd import no_grad

_READY, _UNSCALED, _STEPPED = "ready", "unscaled", "stepped"


class GradScaler:
    """scaler.scale(loss).backward(); scaler.step(optimizer); scaler.update()"""

    def __init__(self, device="cuda", init_scale=2.0**16, growth_factor=2.0, backoff_factor=0.5, growth_interval=2000,
                 enabled=True):
        self._device, self._enabled = device, enabled
        if enabled and device != "cpu":
            warnings.warn(f"torch.{device}.amp.GradScaler is enabled, but {device.upper()} is not available.  Disabling.",
                          stacklevel=2)
            self._enabled = False
        if not self._enabled:
            return
        if growth_factor <= 1.0:
            raise AssertionError("The growth factor must be > 1.0.")
        if backoff_factor >= 1.0:
            raise AssertionError("The backoff factor must be < 1.0.")
        self._scale, self._growth_tracker = float(init_scale), 0
        self._growth_factor, self._backoff_factor, self._growth_interval = growth_factor, backoff_factor, growth_interval
        self._optimizers = {}  # id: (state, whether a gradient is infinite or not a number)

    def scale(self, outputs):
        """Tensors, and what holds them, times the scale."""
        if not self._enabled:
            return outputs
        if isinstance(outputs, _C.Tensor):
            return outputs * self._scale
        if isinstance(outputs, Iterable):
            scaled = map(self.scale, outputs)
            return type(outputs)(scaled) if isinstance(outputs, (list, tuple)) else scaled
        raise ValueError("outputs must be a Tensor or an iterable of Tensors")

    def _state(self, optimizer):
        return self._optimizers.get(id(optimizer), (_READY, None))

    def unscale_(self, optimizer):
        """Divides the optimizer's gradients by the scale, and looks for overflow."""
        if not self._enabled:
            return
        state, _ = self._state(optimizer)
        if state is not _READY:
            raise RuntimeError("unscale_() has already been called on this optimizer since the last update()."
                               if state is _UNSCALED else "unscale_() is being called after step().")
        finite = []
        with no_grad():
            for group in optimizer.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.grad.mul_(1.0 / self._scale)
                        finite.append(_C.all(_C.isfinite(p.grad)))
        if not finite:
            raise AssertionError("No inf checks were recorded for this optimizer.")
        self._optimizers[id(optimizer)] = (_UNSCALED, finite)

    def step(self, optimizer, *args, **kwargs):
        """optimizer.step(), unless a gradient is infinite or not a number."""
        if not self._enabled:
            return optimizer.step(*args, **kwargs)
        if "closure" in kwargs:
            raise RuntimeError("Closure use is not currently supported if GradScaler is enabled.")
        if self._state(optimizer)[0] is _STEPPED:
            raise RuntimeError("step() has already been called since the last update().")
        if self._state(optimizer)[0] is _READY:
            self.unscale_(optimizer)
        finite = all(x.item() for x in self._state(optimizer)[1])
        self._optimizers[id(optimizer)] = (_STEPPED, finite)
        return optimizer.step(*args, **kwargs) if finite else None

    def update(self, new_scale=None):
        """The next iteration's scale: smaller after an overflow, larger after growth_interval steps without one."""
        if not self._enabled:
            return
        if new_scale is not None:
            self._scale = float(new_scale)
        elif not self._optimizers:
            raise AssertionError("No inf checks were recorded prior to update.")
        elif all(f if isinstance(f, bool) else all(x.item() for x in f) for _, f in self._optimizers.values()):
            self._growth_tracker += 1
            if self._growth_tracker == self._growth_interval:
                self._scale, self._growth_tracker = self._scale * self._growth_factor, 0
        else:
            self._scale, self._growth_tracker = self._scale * self._backoff_factor, 0
        self._optimizers = {}

    def get_scale(self):
        return self._scale if self._enabled else 1.0

    def get_growth_factor(self):
        return self._growth_factor

    def set_growth_factor(self, new_factor):
        self._growth_factor = new_factor

    def get_backoff_factor(self):
        return self._backoff_factor

    def set_backoff_factor(self, new_factor):
        self._backoff_factor = new_factor

    def get_growth_interval(self):
        return self._growth_interval

    def set_growth_interval(self, new_interval):
        self._growth_interval = new_interval

    def is_enabled(self):
        return self._enabled

    def state_dict(self):
        if not self._enabled:
            return {}
        return {"scale": self._scale, "growth_factor": self._growth_factor, "backoff_factor": self._backoff_factor,
                "growth_interval": self._growth_interval, "_growth_tracker": self._growth_tracker}

    def load_state_dict(self, state_dict):
        if not self._enabled:
            return
        if not state_dict:
            raise RuntimeError("The source state dict is empty, possibly because it was saved from a disabled instance of "
                               "GradScaler.")
        self._scale, self._growth_factor = state_dict["scale"], state_dict["growth_factor"]
        self._backoff_factor, self._growth_interval = state_dict["backoff_factor"], state_dict["growth_interval"]
        self._growth_tracker = state_dict["_growth_tracker"]
