"""How tensors print: PyTorch's format."""

import math

from . import _C


class _Options:
    precision = 4
    threshold = 1000
    edgeitems = 3
    linewidth = 80
    sci_mode = None


PRINT_OPTS = _Options()


def set_printoptions(precision=None, threshold=None, edgeitems=None, linewidth=None, profile=None, sci_mode=None):
    """How tensors are printed: digits, how many elements before `...`, width of a line."""
    o = PRINT_OPTS
    if profile is not None:
        o.precision, o.linewidth = 4, 80
        o.threshold = {"default": 1000, "short": 1000, "full": math.inf}[profile]
        o.edgeitems = {"default": 3, "short": 2, "full": 3}[profile]
        if profile == "short":
            o.precision = 2
    for name, value in dict(precision=precision, threshold=threshold, edgeitems=edgeitems, linewidth=linewidth).items():
        if value is not None:
            setattr(o, name, value)
    o.sci_mode = sci_mode


def _flat(values):
    if not isinstance(values, list):
        yield values
    else:
        for v in values:
            yield from _flat(v)


class _Formatter:
    """One width and one notation for all numbers that are shown."""

    def __init__(self, values, floating):
        self.floating, self.int_mode, self.sci_mode, self.width = floating, True, False, 1
        values = list(_flat(values))
        if not floating:
            self.width = max([1] + [len(str(v)) for v in values])
            return
        finite = [abs(v) for v in values if math.isfinite(v) and v != 0]
        if not finite:
            return
        top, bottom = max(finite), min(finite)
        self.int_mode = all(v == math.ceil(v) for v in values if math.isfinite(v))
        self.sci_mode = top / bottom > 1000.0 or top > 1.0e8 or (not self.int_mode and bottom < 1.0e-4)
        if PRINT_OPTS.sci_mode is not None:
            self.sci_mode = PRINT_OPTS.sci_mode
        self._fit([v for v in values if math.isfinite(v) and v != 0], also=values)

    def _fit(self, values, also=()):
        self.width = max([1] + [len(self._text(v)) for v in values])
        if any(not math.isfinite(v) for v in also):
            self.width = max(self.width, max(len(self._text(v)) for v in also if not math.isfinite(v)))

    def _text(self, v):
        if not self.floating:
            return str(v)
        if not math.isfinite(v):
            return "nan" if v != v else ("inf" if v > 0 else "-inf")
        if self.sci_mode:
            return f"{v:.{PRINT_OPTS.precision}e}"
        if self.int_mode:
            return f"{v:.0f}" + "."
        return f"{v:.{PRINT_OPTS.precision}f}"

    def format(self, v):
        return self._text(v).rjust(self.width)


def _vector(values, indent, formatter, summarize):
    per_line = max(1, int(math.floor((PRINT_OPTS.linewidth - indent) / (formatter.width + 2))))
    texts = [v if v == " ..." else formatter.format(v) for v in values]
    lines = [texts[i:i + per_line] for i in range(0, len(texts), per_line)] or [[]]
    return "[" + (",\n" + " " * (indent + 1)).join(", ".join(line) for line in lines) + "]"


def _nested(values, ndim, indent, formatter, summarize):
    if ndim == 0:
        return formatter.format(values)
    edge = PRINT_OPTS.edgeitems
    if ndim == 1:
        if summarize and len(values) > 2 * edge:
            values = values[:edge] + [" ..."] + values[-edge:]
        return _vector(values, indent, formatter, summarize)
    if summarize and len(values) > 2 * edge:
        rows = [_nested(v, ndim - 1, indent + 1, formatter, summarize) for v in values[:edge]] + ["..."] + [
            _nested(v, ndim - 1, indent + 1, formatter, summarize) for v in values[-edge:]]
    else:
        rows = [_nested(v, ndim - 1, indent + 1, formatter, summarize) for v in values]
    return "[" + ("," + "\n" * (ndim - 1) + " " * (indent + 1)).join(rows) + "]"


def _shown(values, ndim):
    """The elements that a summary shows."""
    if ndim == 0:
        return values
    edge = PRINT_OPTS.edgeitems
    if len(values) > 2 * edge:
        values = values[:edge] + values[-edge:]
    return [_shown(v, ndim - 1) for v in values]


def _body(t, indent):
    values = t.detach().tolist()
    summarize = t.numel() > PRINT_OPTS.threshold
    formatter = _Formatter(_shown(values, t.ndim) if summarize else values, t.dtype.is_floating_point)
    return _nested(values, t.ndim, indent, formatter, summarize)


def _str(self):
    name = "Parameter containing:\n" if getattr(type(self), "_is_parameter", False) else ""
    prefix = "tensor("
    suffixes = []
    has_default = self.dtype in (_C.get_default_dtype(), _C.int64, _C.bool)
    if self.numel() == 0 and self.ndim != 1:
        suffixes.append("size=" + str(tuple(self.shape)))
    if self.numel() == 0:
        body = "[]"
        has_default = self.dtype is _C.get_default_dtype()
    else:
        body = _body(self, len(prefix))
    if not has_default:
        suffixes.append("dtype=" + str(self.dtype))
    if self.grad_fn is not None:
        suffixes.append(f"grad_fn=<{self.grad_fn.name()}>")
    elif self.requires_grad:
        suffixes.append("requires_grad=True")
    out, length = [body], len(prefix) + len(body) - body.rfind("\n") + 1
    for s in suffixes:
        if length + len(s) + 2 > PRINT_OPTS.linewidth:
            out.append(",\n" + " " * len(prefix) + s)
            length = len(prefix) + len(s)
        else:
            out.append(", " + s)
            length += len(s) + 2
    return name + prefix + "".join(out) + ")"
