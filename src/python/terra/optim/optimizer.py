"""Optimizer: parameter groups, state, hooks."""

import functools
from collections import OrderedDict, defaultdict
from copy import deepcopy
from itertools import chain

from .. import _C, _marks
from .._tensor import RemovableHandle

Tensor = _C.Tensor


class _Required:
    def __repr__(self):
        return "<required parameter>"


required = _Required()


def _no_grad_step(fn):
    """Runs step() without recording; a closure records."""

    @functools.wraps(fn)
    def run(self, closure=None):
        was = _C._set_grad_enabled(False)
        try:
            loss = None
            if closure is not None:
                _C._set_grad_enabled(True)
                try:
                    loss = closure()
                finally:
                    _C._set_grad_enabled(False)
            fn(self)
            return loss
        finally:
            _C._set_grad_enabled(was)

    return run


def _hooked(fn):
    """Hooks around step(); the outermost one ends an iteration."""

    @functools.wraps(fn)
    def step(self, *args, **kwargs):
        for hook in list(self._optimizer_step_pre_hooks.values()):
            changed = hook(self, args, kwargs)
            if changed is not None:
                args, kwargs = changed
        with _marks.step():
            out = fn(self, *args, **kwargs)
            for hook in list(self._optimizer_step_post_hooks.values()):
                hook(self, args, kwargs)
        return out

    step.hooked = True
    return step


def _add(table, hook):
    handle = RemovableHandle()
    table[handle.id] = hook
    handle._remove = lambda: table.pop(handle.id, None)
    return handle


class Optimizer:
    """The base of all optimizers."""

    def __init__(self, params, defaults):
        self.defaults = defaults
        self._tables()
        if isinstance(params, Tensor):
            raise TypeError("params argument given to the optimizer should be an iterable of Tensors or dicts, but got " +
                            "torch." + params.dtype._legacy + "Tensor")
        self.state = defaultdict(dict)
        self.param_groups = []
        groups = list(params)
        if not groups:
            raise ValueError("optimizer got an empty parameter list")
        if not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        for group in groups:
            self.add_param_group(group)

    def _tables(self):
        for name in ("step_pre_hooks", "step_post_hooks", "state_dict_pre_hooks", "state_dict_post_hooks",
                     "load_state_dict_pre_hooks", "load_state_dict_post_hooks"):
            setattr(self, "_optimizer_" + name, OrderedDict())
        cls = type(self)
        if not getattr(cls.step, "hooked", False):
            cls.step = _hooked(cls.step)

    def __getstate__(self):
        return {"defaults": self.defaults, "state": self.state, "param_groups": self.param_groups}

    def __setstate__(self, state):
        self.__dict__.update(state)
        if "_optimizer_step_pre_hooks" not in self.__dict__:
            self._tables()

    def __repr__(self):
        s = type(self).__name__ + " ("
        for i, group in enumerate(self.param_groups):
            s += f"\nParameter Group {i}\n" + "".join(f"    {k}: {group[k]}\n" for k in sorted(group) if k != "params")
        return s + ")"

    def register_step_pre_hook(self, hook):
        """Calls hook(optimizer, args, kwargs) before step."""
        return _add(self._optimizer_step_pre_hooks, hook)

    def register_step_post_hook(self, hook):
        """Calls hook(optimizer, args, kwargs) after step."""
        return _add(self._optimizer_step_post_hooks, hook)

    def register_state_dict_pre_hook(self, hook, prepend=False):
        return _add(self._optimizer_state_dict_pre_hooks, hook)

    def register_state_dict_post_hook(self, hook, prepend=False):
        return _add(self._optimizer_state_dict_post_hooks, hook)

    def register_load_state_dict_pre_hook(self, hook, prepend=False):
        return _add(self._optimizer_load_state_dict_pre_hooks, hook)

    def register_load_state_dict_post_hook(self, hook, prepend=False):
        return _add(self._optimizer_load_state_dict_post_hooks, hook)

    def _numbers(self):
        """Parameters numbered in the order of the groups."""
        numbers = {}
        for group in self.param_groups:
            for p in group["params"]:
                numbers.setdefault(id(p), len(numbers))
        return numbers

    def state_dict(self):
        """State by the number of the parameter, and the groups."""
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        numbers = self._numbers()
        groups = [{**{k: v for k, v in g.items() if k != "params"}, "params": [numbers[id(p)] for p in g["params"]]}
                  for g in self.param_groups]
        state = {numbers[id(k)] if isinstance(k, Tensor) else k: self._out(v) for k, v in self.state.items()}
        out = {"state": state, "param_groups": groups}
        for hook in self._optimizer_state_dict_post_hooks.values():
            changed = hook(self, out)
            out = out if changed is None else changed
        return out

    @staticmethod
    def _out(state):
        """A step count is a number here, a tensor in files, as in PyTorch."""
        if isinstance(state, dict) and isinstance(state.get("step"), (int, float)):
            return {**state, "step": _C._from_data(float(state["step"]), _C.float32)}
        return state

    def load_state_dict(self, state_dict):
        """Takes over state and options by the number of the parameter."""
        state_dict = state_dict.copy()
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        saved = deepcopy(state_dict["param_groups"])
        if len(saved) != len(self.param_groups):
            raise ValueError("loaded state dict has a different number of parameter groups")
        if any(len(g["params"]) != len(s["params"]) for g, s in zip(self.param_groups, saved)):
            raise ValueError("loaded state dict contains a parameter group that doesn't match the size of optimizer's group")
        by_number = dict(zip(chain.from_iterable(g["params"] for g in saved),
                             chain.from_iterable(g["params"] for g in self.param_groups)))
        state = defaultdict(dict)
        for k, v in state_dict["state"].items():
            state[by_number.get(k, k)] = _take(by_number.get(k), v)
        groups = [{**s, "params": g["params"]} for g, s in zip(self.param_groups, saved)]
        self.__setstate__({"state": state, "param_groups": groups})
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def zero_grad(self, set_to_none=True):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    if set_to_none:
                        p.grad = None
                    else:
                        if p.grad.grad_fn is not None:
                            p.grad = p.grad.detach()
                        p.grad.zero_()

    def step(self, closure=None):
        raise NotImplementedError

    def add_param_group(self, param_group):
        """Adds a group with options of its own."""
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        params = param_group["params"]
        if isinstance(params, Tensor):
            params = [params]
        elif isinstance(params, set):
            raise TypeError("optimizer parameters need to be organized in ordered collections, but the ordering of tensors in sets "
                            "will change between runs. Please use a list instead.")
        params = [p[1] if isinstance(p, tuple) else p for p in params]
        param_group = {**param_group, "params": params}
        for p in params:
            if not isinstance(p, Tensor):
                raise TypeError(f"optimizer can only optimize Tensors, but one of the params is {type(p).__name__}")
            if not p.is_leaf:
                raise ValueError("can't optimize a non-leaf Tensor")
        for name, default in self.defaults.items():
            if default is required and name not in param_group:
                raise ValueError(f"parameter group didn't specify a value of required optimization parameter {name}")
            param_group.setdefault(name, default)
        mine = {id(p) for p in params}
        if len(mine) != len(params):
            import warnings

            warnings.warn("optimizer contains a parameter group with duplicate parameters", stacklevel=3)
        if any(id(p) in mine for g in self.param_groups for p in g["params"]):
            raise ValueError("some parameters appear in more than one parameter group")
        self.param_groups.append(param_group)

    def _each(self):
        """(group, parameter, gradient) of all parameters that have one."""
        for group in self.param_groups:
            for p in group["params"]:
                g = p.grad
                if g is not None:
                    yield group, p, g


def _take(param, value, key=None):
    if isinstance(value, Tensor):
        if key == "step":
            return float(value.item())
        value = value.detach().clone()
        return value.to(param.dtype) if param is not None and param.is_floating_point() else value
    if isinstance(value, dict):
        return {k: _take(param, v, k) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_take(param, v) for v in value)
    return deepcopy(value)


def _number(x):
    return x.item() if isinstance(x, Tensor) else x
