"""Recurrent layers, written out in time: a step's products and its gates are operators like any other."""

import math
import warnings

from ... import _C, _creation, _ops
from .. import functional as F
from .. import init
from ..parameter import Parameter
from .module import Module

_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


def _lstm(gates, state, w_hh, b_hh, w_hr=None):
    h, c = state
    i, f, g, o = (gates + F.linear(h, w_hh, b_hh)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (F.linear(h, w_hr) if w_hr is not None else h), c


def _gru(gates, state, w_hh, b_hh):
    h = state[0]
    r, z, n = gates.chunk(3, -1)
    r_h, z_h, n_h = F.linear(h, w_hh, b_hh).chunk(3, -1)
    r, z = (r + r_h).sigmoid(), (z + z_h).sigmoid()
    n = (n + r * n_h).tanh()
    return ((h - n) * z + n,)


def _tanh(gates, state, w_hh, b_hh):
    return ((gates + F.linear(state[0], w_hh, b_hh)).tanh(),)


def _relu(gates, state, w_hh, b_hh):
    return ((gates + F.linear(state[0], w_hh, b_hh)).relu(),)


_STEPS = {"LSTM": _lstm, "GRU": _gru, "RNN_TANH": _tanh, "RNN_RELU": _relu}


class RNNBase(Module):
    """Layers of one kind of cell over a sequence, forward or both ways."""

    def __init__(self, mode, input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0, bidirectional=False,
                 proj_size=0, device=None, dtype=None):
        super().__init__()
        if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout <= 1:
            raise ValueError("dropout should be a number in range [0, 1] representing the probability of an element being zeroed")
        if dropout > 0 and num_layers == 1:
            warnings.warn("dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects num_layers "
                          f"greater than 1, but got dropout={dropout} and num_layers={num_layers}", stacklevel=2)
        for what, value, kind in (("bias", bias, bool), ("batch_first", batch_first, bool), ("input_size", input_size, int),
                                  ("hidden_size", hidden_size, int)):
            if not isinstance(value, kind):
                raise TypeError(f"{what} should be of type {kind.__name__}, got: {type(value).__name__}")
        for what, value in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            if value <= 0:
                raise ValueError(f"{what} must be greater than zero")
        if proj_size < 0:
            raise ValueError("proj_size should be a positive integer or zero to disable projections")
        if proj_size >= hidden_size:
            raise ValueError("proj_size has to be smaller than hidden_size")
        if mode not in _GATES:
            raise ValueError("Unrecognized RNN mode: " + mode)
        self.mode, self.input_size, self.hidden_size, self.num_layers = mode, input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, float(dropout)
        self.bidirectional, self.proj_size = bidirectional, proj_size
        self._all_weights = []
        out, rows = proj_size or hidden_size, _GATES[mode] * hidden_size
        for layer in range(num_layers):
            n_in = input_size if layer == 0 else out * (2 if bidirectional else 1)
            for suffix in ("", "_reverse")[:2 if bidirectional else 1]:
                shapes = {"weight_ih": (rows, n_in), "weight_hh": (rows, out)}
                if bias:
                    shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
                if proj_size:
                    shapes |= {"weight_hr": (proj_size, hidden_size)}
                names = {f"{name}_l{layer}{suffix}": shape for name, shape in shapes.items()}
                for name, shape in names.items():
                    setattr(self, name, Parameter(_creation.empty(shape, dtype=dtype, device=device)))
                self._all_weights.append(list(names))
        self.reset_parameters()

    def reset_parameters(self):
        bound = 1.0 / math.sqrt(self.hidden_size)
        for weight in self.parameters():
            init.uniform_(weight, -bound, bound)

    @property
    def all_weights(self):
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    def flatten_parameters(self):
        """Nothing: no library here wants weights in one piece."""

    def _check(self, input, states):
        if not _C._autocast_enabled() and input.dtype != getattr(self, self._all_weights[0][0]).dtype:
            raise ValueError(f"RNN input dtype ({input.dtype}) does not match weight dtype "
                             f"({getattr(self, self._all_weights[0][0]).dtype}).")
        if input.shape[-1] != self.input_size:
            raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.shape[-1]}")
        batch = input.shape[0 if self.batch_first else 1]
        for i, s in enumerate(states):
            size = self.hidden_size if i else self.proj_size or self.hidden_size
            want = (len(self._all_weights), batch, size)
            if tuple(s.shape) != want:
                raise RuntimeError(f"Expected hidden{f'[{i}]' if self.mode == 'LSTM' else ''} size {want}, got {list(s.shape)}")

    def _initial(self, input, hx):
        """States as a tuple of [layers * directions, N, size]."""
        if hx is not None:
            return tuple(hx) if self.mode == "LSTM" else (hx,)
        batch = input.shape[0 if self.batch_first else 1]
        sizes = (self.proj_size or self.hidden_size, self.hidden_size)[:2 if self.mode == "LSTM" else 1]
        return tuple(_creation.zeros((len(self._all_weights), batch, size), dtype=input.dtype) for size in sizes)

    def forward(self, input, hx=None):
        if not isinstance(input, _C.Tensor):
            raise NotImplementedError(f"Terra's {type(self).__name__} takes tensors, not {type(input).__name__}")
        if input.ndim not in (2, 3):
            raise ValueError(f"{self._get_name()}: Expected input to be 2D or 3D, got {input.ndim}D instead")
        batched = input.ndim == 3
        if not batched:
            input = input.unsqueeze(0 if self.batch_first else 1)
            if hx is not None:
                hx = tuple(s.unsqueeze(1) for s in hx) if self.mode == "LSTM" else hx.unsqueeze(1)
        states = self._initial(input, hx)
        self._check(input, states)
        x = input.transpose(0, 1) if self.batch_first else input
        last = []
        directions = 2 if self.bidirectional else 1
        for layer in range(self.num_layers):
            outs = []
            for direction in range(directions):
                k = layer * directions + direction
                out, state = self._run(x, tuple(s[k] for s in states), self.all_weights[k], direction == 1)
                outs.append(out)
                last.append(state)
            x = outs[0] if directions == 1 else _ops.cat(outs, -1)
            if self.dropout and self.training and layer < self.num_layers - 1:
                x = F.dropout(x, self.dropout)
        states = [_ops.stack([state[i] for state in last]) for i in range(len(states))]
        out = x.transpose(0, 1) if self.batch_first else x
        if not batched:
            out = out.squeeze(0 if self.batch_first else 1)
            states = [s.squeeze(1) for s in states]
        return out, (tuple(states) if self.mode == "LSTM" else states[0])

    def _run(self, x, state, weights, backwards):
        """One layer, one direction: x [T, N, in] -> [T, N, out], and the last state."""
        step = _STEPS[self.mode]
        w_ih, w_hh = weights[:2]
        b_ih, b_hh = weights[2:4] if self.bias else (None, None)
        gates = F.linear(x, w_ih, b_ih).unbind(0)  # of all times in one product
        more = weights[-1:] if self.proj_size else ()
        outs = []
        for g in (reversed(gates) if backwards else gates):
            state = step(g, state, w_hh, b_hh, *more)
            outs.append(state[0])
        return _ops.stack(outs[::-1] if backwards else outs), state

    def extra_repr(self):
        s = f"{self.input_size}, {self.hidden_size}"
        for name, usual in (("proj_size", 0), ("num_layers", 1), ("bias", True), ("batch_first", False), ("dropout", 0.0),
                            ("bidirectional", False)):
            if getattr(self, name) != usual:
                s += f", {name}={getattr(self, name)}"
        return s


class RNN(RNNBase):
    def __init__(self, input_size, hidden_size, num_layers=1, nonlinearity="tanh", *args, **kwargs):
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        super().__init__("RNN_" + nonlinearity.upper(), input_size, hidden_size, num_layers, *args, **kwargs)
        self.nonlinearity = nonlinearity


class LSTM(RNNBase):
    def __init__(self, *args, **kwargs):
        super().__init__("LSTM", *args, **kwargs)


class GRU(RNNBase):
    def __init__(self, *args, **kwargs):
        if kwargs.get("proj_size"):
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        super().__init__("GRU", *args, **kwargs)


class RNNCellBase(Module):
    """One step of a cell, batched or not."""

    def __init__(self, input_size, hidden_size, bias, num_chunks, device=None, dtype=None):
        super().__init__()
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias

        def parameter(*shape):
            return Parameter(_creation.empty(shape, dtype=dtype, device=device))

        self.weight_ih = parameter(num_chunks * hidden_size, input_size)
        self.weight_hh = parameter(num_chunks * hidden_size, hidden_size)
        if bias:
            self.bias_ih, self.bias_hh = parameter(num_chunks * hidden_size), parameter(num_chunks * hidden_size)
        else:
            self.register_parameter("bias_ih", None)
            self.register_parameter("bias_hh", None)
        self.reset_parameters()

    def reset_parameters(self):
        bound = 1.0 / math.sqrt(self.hidden_size) if self.hidden_size > 0 else 0
        for weight in self.parameters():
            init.uniform_(weight, -bound, bound)

    def _step(self, mode, input, states):
        if input.ndim not in (1, 2):
            raise ValueError(f"{self._get_name()}: Expected input to be 1D or 2D, got {input.ndim}D instead")
        if states[0] is None:
            states = [_creation.zeros((*input.shape[:-1], self.hidden_size), dtype=input.dtype)] * len(states)
        return _STEPS[mode](F.linear(input, self.weight_ih, self.bias_ih), states, self.weight_hh, self.bias_hh)

    def extra_repr(self):
        return f"{self.input_size}, {self.hidden_size}" + (", bias=False" if not self.bias else "")


class RNNCell(RNNCellBase):
    def __init__(self, input_size, hidden_size, bias=True, nonlinearity="tanh", device=None, dtype=None):
        super().__init__(input_size, hidden_size, bias, 1, device, dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input, hx=None):
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return self._step("RNN_" + self.nonlinearity.upper(), input, (hx,))[0]


class LSTMCell(RNNCellBase):
    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        super().__init__(input_size, hidden_size, bias, 4, device, dtype)

    def forward(self, input, hx=None):
        return self._step("LSTM", input, (None, None) if hx is None else tuple(hx))


class GRUCell(RNNCellBase):
    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        super().__init__(input_size, hidden_size, bias, 3, device, dtype)

    def forward(self, input, hx=None):
        return self._step("GRU", input, (hx,))[0]
