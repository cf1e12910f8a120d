"""Functions of neural networks. Shapes and errors as in PyTorch; each is one row of the op table or a few."""

import math
import warnings

from .. import _autocast, _C
from .._ops import _need
from .._ops import log_softmax as _log_softmax
from .._ops import softmax as _softmax

Tensor = _C.Tensor
_op = _C.op
_dropout_op = _op._dropout


def _pair(x):
    return (x, x) if isinstance(x, int) else tuple(x) * 2 if len(x) == 1 else tuple(x)


# ---- linear ----


def linear(input, weight, bias=None):
    """input @ weight.T + bias"""
    return _C._linear(input, weight, bias)


@_autocast.untouched
def bilinear(input1, input2, weight, bias=None):
    from .._ops import einsum

    out = einsum("...i,oij,...j->...o", input1, weight, input2)
    return out if bias is None else out + bias


def embedding(input, weight, padding_idx=None, max_norm=None, norm_type=2.0, scale_grad_by_freq=False, sparse=False):
    """Rows of weight."""
    if max_norm is not None or scale_grad_by_freq or sparse:
        raise NotImplementedError("embedding(max_norm=, scale_grad_by_freq=, sparse=) is not in Terra's subset yet")
    if padding_idx is None:
        padding_idx = -1
    elif padding_idx < 0:
        padding_idx += weight.shape[0]
    return _op.embedding(weight, input, padding_idx)


def one_hot(tensor, num_classes=-1):
    if num_classes == -1:
        num_classes = int(tensor.max()) + 1
    out = _C._new_full((*tensor.shape, num_classes), _C.int64, 0)
    return out.scatter_(-1, tensor.unsqueeze(-1), 1)


# ---- activations ----


def _activation(name, in_place=True):
    run, run_ = getattr(_C, name), getattr(Tensor, name + "_", None) if in_place else None

    def fn(input, inplace=False):
        return run_(input) if inplace and run_ is not None else run(input)

    fn.__name__ = fn.__qualname__ = name
    return fn


relu, silu = _activation("relu"), _activation("silu")
sigmoid, tanh, logsigmoid = _C.sigmoid, _C.tanh, _C.logsigmoid
relu_ = Tensor.relu_


def gelu(input, approximate="none"):
    return _C.gelu(input, approximate=approximate)


def leaky_relu(input, negative_slope=0.01, inplace=False):
    return input.leaky_relu_(negative_slope) if inplace else _C.leaky_relu(input, negative_slope)


def elu(input, alpha=1.0, inplace=False):
    return input.elu_(alpha) if inplace else _C.elu(input, alpha)


def selu(input, inplace=False):
    scale, alpha = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
    out = _C.elu(input, alpha) * scale
    return input.copy_(out) if inplace else out


def celu(input, alpha=1.0, inplace=False):
    out = _C.elu(input / alpha, 1.0) * alpha
    return input.copy_(out) if inplace else out


def hardtanh(input, min_val=-1.0, max_val=1.0, inplace=False):
    return input.hardtanh_(min_val, max_val) if inplace else _C.hardtanh(input, min_val, max_val)


def relu6(input, inplace=False):
    return hardtanh(input, 0.0, 6.0, inplace)


def hardsigmoid(input, inplace=False):
    out = hardtanh(input + 3.0, 0.0, 6.0) / 6.0
    return input.copy_(out) if inplace else out


def hardswish(input, inplace=False):
    out = input * (hardtanh(input + 3.0, 0.0, 6.0) / 6.0)
    return input.copy_(out) if inplace else out


def mish(input, inplace=False):
    return input * _C.tanh(_C.softplus(input))


def softplus(input, beta=1.0, threshold=20.0):
    return _C.softplus(input, beta, threshold)


def softsign(input):
    return input / (_C.abs(input) + 1)


def tanhshrink(input):
    return input - _C.tanh(input)


@_autocast.lower
def prelu(input, weight):
    if weight.numel() > 1:
        weight = weight.view([-1 if d == 1 else 1 for d in range(input.ndim)])
    return _C.where(input > 0, input, input * weight)


def glu(input, dim=-1):
    a, b = input.chunk(2, dim)
    return a * _C.sigmoid(b)


def threshold(input, threshold, value, inplace=False):
    out = _C.where(input > threshold, input, value)
    return input.copy_(out) if inplace else out


def _dim(name, dim, ndim):
    if dim is not None:
        return dim
    warnings.warn(f"Implicit dimension choice for {name} has been deprecated. Change the call to include dim=X as an argument.",
                  stacklevel=3)
    return 0 if ndim in (0, 1, 3) else 1


def softmax(input, dim=None, _stacklevel=3, dtype=None):
    return _softmax(input, _dim("softmax", dim, input.ndim), dtype)


def softmin(input, dim=None, _stacklevel=3, dtype=None):
    return _softmax(-input, _dim("softmin", dim, input.ndim), dtype)


def log_softmax(input, dim=None, _stacklevel=3, dtype=None):
    return _log_softmax(input, _dim("log_softmax", dim, input.ndim), dtype)


def gumbel_softmax(logits, tau=1, hard=False, eps=1e-10, dim=-1):
    noise = -_C._new_empty(logits.shape, logits.dtype).exponential_().log()
    soft = _softmax((logits + noise) / tau, dim)
    if not hard:
        return soft
    index = _op.max_dim(soft, dim, True)[1]
    one = _C._new_full(logits.shape, logits.dtype, 0).scatter_(dim, index, 1.0)
    return one - soft.detach() + soft


# ---- dropout ----


def dropout(input, p=0.5, training=True, inplace=False):
    """Zeroes elements with probability p and scales the rest by 1 / (1 - p)."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    _need("dropout", "input", 1, input, "Tensor", Tensor)
    if not training or p == 0 or input.numel() == 0:
        return input
    if p == 1:
        return input.mul_(0.0) if inplace else input * 0.0
    out = _dropout_op(input, p, None)[0]
    return input.copy_(out) if inplace else out


def _feature_dropout(input, p, training, inplace, keep):
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    if not training or p == 0:
        return input
    shape = tuple(input.shape[:keep]) + (1,) * (input.ndim - keep)
    noise = _op._bernoulli_(_C._new_empty(shape, input.dtype), 1 - p)
    return input.mul_(noise.div_(1 - p)) if inplace else input * noise.div_(1 - p)


def dropout1d(input, p=0.5, training=True, inplace=False):
    return _feature_dropout(input, p, training, inplace, 2 if input.ndim == 3 else 1)


def dropout2d(input, p=0.5, training=True, inplace=False):
    return _feature_dropout(input, p, training, inplace, 2)


def dropout3d(input, p=0.5, training=True, inplace=False):
    return _feature_dropout(input, p, training, inplace, 2)


# ---- convolution and pooling ----


def _same_padding(kernel, dilation):
    total = [d * (k - 1) for k, d in zip(kernel, dilation)]
    return [(t // 2, t - t // 2) for t in total]


def _string_padding(input, weight, padding, stride, dilation, n):
    """padding='valid' or 'same': the padded input, and what is left to pad."""
    if padding == "valid":
        return input, (0,) * n
    if padding != "same":
        raise RuntimeError(f"Invalid padding string: '{padding}'")
    if any(s != 1 for s in stride):
        raise RuntimeError("padding='same' is not supported for strided convolutions")
    sides = _same_padding(weight.shape[2:], dilation)
    if all(a == b for a, b in sides):
        return input, tuple(a for a, _ in sides)
    return pad(input, [v for a, b in reversed(sides) for v in (a, b)]), (0,) * n


def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    if isinstance(padding, str):
        input, padding = _string_padding(input, weight, padding, _pair(stride), _pair(dilation), 2)
    if input.ndim == 3:
        return _op.conv2d(input.unsqueeze(0), weight, bias, stride, padding, dilation, groups).squeeze(0)
    return _op.conv2d(input, weight, bias, stride, padding, dilation, groups)


def _one(x):
    return x if isinstance(x, int) else x[0]


def conv1d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    stride, dilation = _one(stride), _one(dilation)
    if isinstance(padding, str):
        input, padding = _string_padding(input, weight, padding, (stride,), (dilation,), 1)
    if input.ndim not in (2, 3):
        raise RuntimeError(f"Expected 2D (unbatched) or 3D (batched) input to conv1d, but got input of size: {list(input.shape)}")
    x = input.unsqueeze(-2) if input.ndim == 3 else input.unsqueeze(0).unsqueeze(-2)
    out = _op.conv2d(x, weight.unsqueeze(2), bias, (1, stride), (0, _one(padding)), (1, dilation), groups).squeeze(2)
    return out if input.ndim == 3 else out.squeeze(0)


def _batched(input, n, fn):
    return fn(input.unsqueeze(0)).squeeze(0) if input.ndim == n else fn(input)


def max_pool2d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    stride = kernel_size if stride is None or stride == [] else stride
    if input.ndim == 3:
        out = _op.max_pool2d(input.unsqueeze(0), kernel_size, stride, padding, dilation, ceil_mode)
        out = (out[0].squeeze(0), out[1].squeeze(0))
    else:
        out = _op.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode)
    return out if return_indices else out[0]


def max_pool1d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    k, p, d = _one(kernel_size), _one(padding), _one(dilation)
    s = k if stride is None else _one(stride)
    out = max_pool2d(input.unsqueeze(-2), (1, k), (1, s), (0, p), (1, d), ceil_mode, True)
    return (out[0].squeeze(-2), out[1].squeeze(-2)) if return_indices else out[0].squeeze(-2)


def avg_pool2d(input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None):
    stride = kernel_size if stride is None or stride == [] else stride
    if input.ndim < 3:
        raise IndexError(f"Dimension out of range (expected to be in range of [{-input.ndim}, {input.ndim - 1}], but got -3)")
    return _batched(input, 3, lambda x: _op.avg_pool2d(x, kernel_size, stride, padding, ceil_mode, count_include_pad,
                                                       divisor_override or 0))


def avg_pool1d(input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True):
    k, p = _one(kernel_size), _one(padding)
    s = k if stride is None else _one(stride)
    return avg_pool2d(input.unsqueeze(-2), (1, k), (1, s), (0, p), ceil_mode, count_include_pad).squeeze(-2)


def adaptive_avg_pool2d(input, output_size):
    h, w = _pair(output_size) if not isinstance(output_size, int) else (output_size, output_size)
    size = (input.shape[-2] if h is None else h, input.shape[-1] if w is None else w)
    return _batched(input, 3, lambda x: _op.adaptive_avg_pool2d(x, size))


def adaptive_avg_pool1d(input, output_size):
    return adaptive_avg_pool2d(input.unsqueeze(-2), (1, _one(output_size))).squeeze(-2)


def pad(input, pad, mode="constant", value=None):
    """Pads the last dimensions, two numbers each, the last first."""
    _need("pad", "pad", 2, pad, "tuple of ints", tuple, list)
    if len(pad) % 2:
        raise RuntimeError("Padding length must be divisible by 2")
    if len(pad) // 2 > input.ndim:
        raise RuntimeError(f"Padding length should be less than or equal to two times the input dimension but got padding length "
                           f"{len(pad)} and input of dimension {input.ndim}")
    if mode != "constant":
        return _pad_by_index(input, pad, mode)
    n = input.ndim
    before, after = [0] * n, [0] * n
    for i in range(len(pad) // 2):
        before[n - 1 - i], after[n - 1 - i] = int(pad[2 * i]), int(pad[2 * i + 1])
    return _C.constant_pad_nd(input, 0.0 if value is None else value, before, after)


def _pad_by_index(input, pad, mode):
    if mode != "circular":
        input = _C._autocast_float32(input)
    for i in range(len(pad) // 2):
        dim = input.ndim - 1 - i
        n, a, b = input.shape[dim], pad[2 * i], pad[2 * i + 1]
        at = range(-a, n + b)
        if mode == "reflect":
            rows = [n - 1 - abs(n - 1 - abs(k)) for k in at]
        elif mode == "replicate":
            rows = [min(max(k, 0), n - 1) for k in at]
        elif mode == "circular":
            rows = [k % n for k in at]
        else:
            raise NotImplementedError(f"Unrecognised padding mode {mode}")
        input = _C.index_select(input, dim, _C._from_data(rows, _C.int64))
    return input


def interpolate(input, size=None, scale_factor=None, mode="nearest", align_corners=None, recompute_scale_factor=None,
                antialias=False):
    """Nearest neighbour only."""
    if mode != "nearest":
        raise NotImplementedError(f"interpolate(mode='{mode}') is not in Terra's subset yet")
    n = input.ndim - 2
    if size is None:
        factors = (scale_factor,) * n if isinstance(scale_factor, (int, float)) else scale_factor
        size = [int(s * f) for s, f in zip(input.shape[2:], factors)]
    size = (size,) * n if isinstance(size, int) else size
    for d in range(n):
        have = input.shape[2 + d]
        rows = [min(int(i * have / size[d]), have - 1) for i in range(size[d])]
        input = _C.index_select(input, 2 + d, _C._from_data(rows, _C.int64))
    return input


upsample = interpolate


def unfold(input, kernel_size, dilation=1, padding=0, stride=1):
    (kh, kw), (dh, dw), (ph, pw), (sh, sw) = map(_pair, (kernel_size, dilation, padding, stride))
    if (dh, dw) != (1, 1):
        raise NotImplementedError("unfold(dilation=) is not in Terra's subset yet")
    x = pad(input, (pw, pw, ph, ph)).unfold(2, kh, sh).unfold(3, kw, sw)
    n, c, oh, ow = x.shape[:4]
    return x.permute(0, 1, 4, 5, 2, 3).reshape(n, c * kh * kw, oh * ow)


def pixel_shuffle(input, upscale_factor):
    r = upscale_factor
    *lead, c, h, w = input.shape
    x = input.reshape(*lead, c // (r * r), r, r, h, w)
    k = len(lead)
    return x.permute(*range(k), k, k + 3, k + 1, k + 4, k + 2).reshape(*lead, c // (r * r), h * r, w * r)


# ---- normalisation ----


def _check_batch(size):
    n = size[0]
    for d in size[2:]:
        n *= d
    if n == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {size}")


def batch_norm(input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-05):
    if training:
        _check_batch(input.shape)
    return _op.batch_norm(input, weight, bias, running_mean, running_var, momentum, eps, training)[0]


def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-05):
    _need("layer_norm", "normalized_shape", 2, normalized_shape, "tuple of ints", tuple, list)
    n = len(normalized_shape)
    if tuple(input.shape[input.ndim - n:]) != tuple(normalized_shape):
        raise RuntimeError(f"Given normalized_shape={list(normalized_shape)}, expected input with shape "
                           f"[*{''.join(f', {s}' for s in normalized_shape)}], but got input of size{list(input.shape)}")
    return _op.layer_norm(input, weight, bias, eps, n)[0]


def _channels(weight, ndim):
    return weight.view([-1 if d == 1 else 1 for d in range(ndim)])


def group_norm(input, num_groups, weight=None, bias=None, eps=1e-05):
    if input.shape[1] % num_groups:
        raise RuntimeError(f"Expected number of channels in input to be divisible by num_groups, but got input of shape "
                           f"{list(input.shape)} and num_groups={num_groups}")
    if input.dtype is _C.bfloat16:  # rounded once
        return group_norm(input.float(), num_groups, weight, bias, eps).to(input.dtype)
    shape = input.shape
    n = input.reshape(shape[0], num_groups, -1)
    out = _op.layer_norm(n, None, None, eps, 1)[0].reshape(shape)
    if weight is not None:
        out = out * _channels(weight, input.ndim)
    return out if bias is None else out + _channels(bias, input.ndim)


def instance_norm(input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1,
                  eps=1e-05):
    if not use_input_stats:
        return batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    return group_norm(input, input.shape[1], weight, bias, eps)


def rms_norm(input, normalized_shape, weight=None, eps=None):
    if input.dtype is _C.bfloat16:  # rounded once
        return rms_norm(input.float(), normalized_shape, weight, eps).to(input.dtype)
    dims = list(range(-len(normalized_shape), 0))
    eps = 1.1920928955078125e-07 if eps is None else eps
    out = input * _C.rsqrt(_C.mean(input * input, dims, True) + eps)
    return out if weight is None else out * weight


def normalize(input, p=2.0, dim=1, eps=1e-12, out=None):
    return input / input.norm(p, dim, True).clamp_min(eps).expand_as(input)


def cosine_similarity(x1, x2, dim=1, eps=1e-8):
    n1, n2 = x1.norm(2, dim).clamp_min(eps), x2.norm(2, dim).clamp_min(eps)
    return _C.sum(x1 * x2, dim) / (n1 * n2)


def pairwise_distance(x1, x2, p=2.0, eps=1e-6, keepdim=False):
    return (x1 - x2 + eps).norm(p, -1, keepdim)


# ---- losses ----


def _reduction(size_average, reduce, reduction):
    if size_average is None and reduce is None:
        return reduction
    reduce = True if reduce is None else reduce
    return "none" if not reduce else "mean" if size_average in (None, True) else "sum"


def _reduce(loss, reduction):
    if reduction == "mean":
        return _C.mean(loss)
    if reduction == "sum":
        return _C.sum(loss)
    if reduction != "none":
        raise ValueError(f"{reduction} is not a valid value for reduction")
    return loss


def nll_loss(input, target, weight=None, size_average=None, ignore_index=-100, reduce=None, reduction="mean"):
    """-input[n, target[n]], weighted; input [N, C, d1, …] or [C]"""
    reduction = _reduction(size_average, reduce, reduction)
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"{reduction} is not a valid value for reduction")
    if input.ndim <= 2:
        return _op.nll_loss(input, target, weight, ignore_index, reduction)[0]
    if tuple(target.shape) != (input.shape[0], *input.shape[2:]):
        raise RuntimeError(f"Expected target size {[input.shape[0], *input.shape[2:]]}, got {list(target.shape)}")
    flat = input.movedim(1, -1).reshape(-1, input.shape[1])
    loss = _op.nll_loss(flat, target.reshape(-1), weight, ignore_index, reduction)[0]
    return loss.reshape(target.shape) if reduction == "none" else loss


def cross_entropy(input, target, weight=None, size_average=None, ignore_index=-100, reduce=None, reduction="mean",
                  label_smoothing=0.0):
    """nll_loss of log_softmax; targets are class indices or probabilities."""
    reduction = _reduction(size_average, reduce, reduction)
    if input.dtype is _C.bfloat16 and _C._autocast_enabled() and input.ndim == 2 and target.ndim == 1 and label_smoothing == 0.0:
        # The op computes in float32 by itself: logits are large, and their copies would be larger.
        return _op._cross_entropy(input, target, _C._autocast_float32(weight), ignore_index, reduction)[0]
    return _cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing)


@_autocast.float32
def _cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing):
    dim = 0 if input.ndim == 1 else 1
    if target.dtype.is_floating_point and target.shape == input.shape:
        return _soft_cross_entropy(input, target, weight, reduction, label_smoothing, dim)
    if label_smoothing == 0.0 and input.ndim == 2 and (input.dtype is _C.float32 or input.dtype is _C.float64):
        return _op._cross_entropy(input, target, weight, ignore_index, reduction)[0]
    if label_smoothing == 0.0:
        return nll_loss(_op._log_softmax(input, dim), target, weight, None, ignore_index, None, reduction)
    return _smoothed(input, target, weight, ignore_index, reduction, label_smoothing, dim)


def _soft_cross_entropy(input, target, weight, reduction, smoothing, dim):
    if smoothing:
        target = target * (1 - smoothing) + smoothing / input.shape[dim]
    logs = _op._log_softmax(input, dim) * target
    if weight is not None:
        logs = logs * (weight if input.ndim == 1 else _channels(weight, input.ndim))
    if reduction == "mean":
        return -_C.sum(logs) / (input.numel() // input.shape[dim])
    return -_C.sum(logs) if reduction == "sum" else -_C.sum(logs, dim)


def _smoothed(input, target, weight, ignore_index, reduction, smoothing, dim):
    logs = _op._log_softmax(input, dim)
    nll = nll_loss(logs, target, weight, None, ignore_index, None, reduction)
    w = None if weight is None else weight if input.ndim == 1 else _channels(weight, input.ndim)
    smooth = -_C.sum(logs if w is None else logs * w, dim)
    ignored = target == ignore_index
    smooth = _C.masked_fill(smooth, ignored, 0.0)
    if reduction == "mean":
        if weight is not None:
            total = _C.sum(_C.masked_fill(weight[_C.masked_fill(target, ignored, 0)], ignored, 0.0))
        else:
            total = _C.sum((~ignored).to(logs.dtype))
        smooth = _C.sum(smooth) / total
    elif reduction == "sum":
        smooth = _C.sum(smooth)
    return nll * (1 - smoothing) + smooth * (smoothing / input.shape[dim])


def _warn_size(name, input, target):
    if input.shape != target.shape:
        warnings.warn(f"Using a target size ({target.shape}) that is different to the input size ({input.shape}). This will likely "
                      "lead to incorrect results due to broadcasting. Please ensure they have the same size.", stacklevel=3)


@_autocast.float32
def mse_loss(input, target, size_average=None, reduce=None, reduction="mean", weight=None):
    _warn_size("mse_loss", input, target)
    loss = _C.square(input - target)
    return _reduce(loss if weight is None else loss * weight, _reduction(size_average, reduce, reduction))


@_autocast.float32
def l1_loss(input, target, size_average=None, reduce=None, reduction="mean", weight=None):
    _warn_size("l1_loss", input, target)
    return _reduce(_C.abs(input - target), _reduction(size_average, reduce, reduction))


@_autocast.float32
def smooth_l1_loss(input, target, size_average=None, reduce=None, reduction="mean", beta=1.0):
    _warn_size("smooth_l1_loss", input, target)
    if beta == 0.0:
        return l1_loss(input, target, size_average, reduce, reduction)
    d = _C.abs(input - target)
    return _reduce(_C.where(d < beta, 0.5 * d * d / beta, d - 0.5 * beta), _reduction(size_average, reduce, reduction))


@_autocast.float32
def huber_loss(input, target, reduction="mean", delta=1.0, weight=None):
    d = _C.abs(input - target)
    return _reduce(_C.where(d <= delta, 0.5 * d * d, delta * (d - 0.5 * delta)), reduction)


@_autocast.float32
def binary_cross_entropy(input, target, weight=None, size_average=None, reduce=None, reduction="mean"):
    if target.shape != input.shape:
        raise ValueError(f"Using a target size ({target.shape}) that is different to the input size ({input.shape}) is deprecated. "
                         "Please ensure they have the same size.")
    loss = (target - 1) * _C.clamp(_C.log(1 - input), -100.0) - target * _C.clamp(_C.log(input), -100.0)
    return _reduce(loss if weight is None else loss * weight, _reduction(size_average, reduce, reduction))


@_autocast.float32
def binary_cross_entropy_with_logits(input, target, weight=None, size_average=None, reduce=None, reduction="mean",
                                     pos_weight=None):
    if target.shape != input.shape:
        raise ValueError(f"Target size ({target.shape}) must be the same as input size ({input.shape})")
    if pos_weight is not None:
        w = (pos_weight - 1) * target + 1
        loss = (1 - target) * input - w * _C.logsigmoid(input)
    else:
        loss = (1 - target) * input - _C.logsigmoid(input)
    return _reduce(loss if weight is None else loss * weight, _reduction(size_average, reduce, reduction))


@_autocast.float32
def kl_div(input, target, size_average=None, reduce=None, reduction="mean", log_target=False):
    if log_target:
        loss = _C.exp(target) * (target - input)
    else:
        safe = _C.where(target > 0, target, 1.0)
        loss = target * (_C.log(safe) - input)
    if reduction == "batchmean":
        return _C.sum(loss) / input.shape[0]
    return _reduce(loss, _reduction(size_average, reduce, reduction))


@_autocast.float32
def hinge_embedding_loss(input, target, margin=1.0, size_average=None, reduce=None, reduction="mean"):
    loss = _C.where(target == 1, input, _C.clamp(margin - input, 0))
    return _reduce(loss, reduction)


@_autocast.float32
def margin_ranking_loss(input1, input2, target, margin=0, size_average=None, reduce=None, reduction="mean"):
    return _reduce(_C.clamp(-target * (input1 - input2) + margin, 0), reduction)


@_autocast.float32
def triplet_margin_loss(anchor, positive, negative, margin=1.0, p=2, eps=1e-6, swap=False, size_average=None, reduce=None,
                        reduction="mean"):
    near, far = pairwise_distance(anchor, positive, p, eps), pairwise_distance(anchor, negative, p, eps)
    if swap:
        far = _C.minimum(far, pairwise_distance(positive, negative, p, eps))
    return _reduce(_C.clamp(near - far + margin, 0), reduction)


@_autocast.float32
def cosine_embedding_loss(input1, input2, target, margin=0, size_average=None, reduce=None, reduction="mean"):
    cos = cosine_similarity(input1, input2, -1)
    return _reduce(_C.where(target == 1, 1 - cos, _C.clamp(cos - margin, 0)), reduction)


# ---- attention ----


def _sdpa_fits(query, key, value, mask, p, causal):
    """Is there a kernel for these operands? Others are composed of ops."""
    q, k, v = query.shape, key.shape, value.shape
    if len(q) != 4 or len(k) != 4 or len(v) != 4 or q[:2] != k[:2] or q[:2] != v[:2] or q[3] != k[3] or k[2] != v[2]:
        return False
    dtype = query.dtype
    if dtype is not _C.float32 and dtype is not _C.bfloat16 or key.dtype is not dtype or value.dtype is not dtype:
        return False
    if not 0.0 <= p < 1.0 or not query.numel() or not value.numel():
        return False
    if mask is None:
        return True
    if causal or mask.requires_grad or mask.dtype is not _C.bool and mask.dtype is not dtype:
        return False
    scores, own = (q[0], q[1], q[2], k[2]), mask.shape
    return len(own) <= 4 and all(a == 1 or a == b for a, b in zip(own[::-1], scores[::-1]))


@_autocast.lower
def scaled_dot_product_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None,
                                 enable_gqa=False):
    """softmax(query key^T * scale + mask) value; [..., L, E], [..., S, E], [..., S, Ev]"""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    if _sdpa_fits(query, key, value, attn_mask, dropout_p, is_causal):
        keep = None
        if dropout_p > 0.0:  # drawn as dropout draws for the probabilities
            keep = _op._bernoulli_(_C._new_empty((*query.shape[:3], key.shape[2]), _C.bool), 1 - dropout_p)
        return _op._sdpa(query, key, value, attn_mask, keep, scale, dropout_p, is_causal)[0]
    scores = query.matmul(_C.transpose(key, -2, -1)) * scale
    if is_causal:
        if attn_mask is not None:
            raise RuntimeError("_scaled_dot_product_attention: Explicit attn_mask should not be set when is_causal=True")
        keep = _C._new_full((query.shape[-2], key.shape[-2]), _C.bool, True).tril()
        scores = _C.masked_fill(scores, ~keep, -math.inf)
    elif attn_mask is not None:
        scores = _C.masked_fill(scores, ~attn_mask, -math.inf) if attn_mask.dtype is _C.bool else scores + attn_mask
    probabilities = _op._softmax(scores, -1)
    if dropout_p > 0.0:
        probabilities = dropout(probabilities, dropout_p)
    return probabilities.matmul(value)


def _packed_projection(query, key, value, weight, bias):
    e = query.shape[-1]
    if key is value:
        if query is key:
            qkv = linear(query, weight, bias).unflatten(-1, (3, e)).unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous()
            return qkv[0], qkv[1], qkv[2]
        wq, wkv = weight.split([e, 2 * e])
        bq, bkv = (None, None) if bias is None else bias.split([e, 2 * e])
        kv = linear(key, wkv, bkv).unflatten(-1, (2, e)).unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous()
        return linear(query, wq, bq), kv[0], kv[1]
    ws = weight.chunk(3)
    bs = (None,) * 3 if bias is None else bias.chunk(3)
    return tuple(linear(x, w, b) for x, w, b in zip((query, key, value), ws, bs))


def _additive(mask, dtype):
    if mask is None or mask.dtype is not _C.bool:
        return mask
    return _C.masked_fill(_C._new_full(mask.shape, dtype, 0), mask, -math.inf)


def multi_head_attention_forward(query, key, value, embed_dim_to_check, num_heads, in_proj_weight, in_proj_bias, bias_k, bias_v,
                                 add_zero_attn, dropout_p, out_proj_weight, out_proj_bias, training=True, key_padding_mask=None,
                                 need_weights=True, attn_mask=None, use_separate_proj_weight=False, q_proj_weight=None,
                                 k_proj_weight=None, v_proj_weight=None, static_k=None, static_v=None,
                                 average_attn_weights=True, is_causal=False):
    """Attention of several heads; [L, N, E] or, unbatched, [L, E]."""
    batched = query.ndim == 3
    if not batched:
        query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
        if key_padding_mask is not None:
            key_padding_mask = key_padding_mask.unsqueeze(0)
    length, n, e = query.shape
    if e != embed_dim_to_check:
        raise AssertionError(f"was expecting embedding dimension of {embed_dim_to_check}, but got {e}")
    head = e // num_heads
    if head * num_heads != e:
        raise AssertionError(f"embed_dim {e} not divisible by num_heads {num_heads}")
    if is_causal and attn_mask is None:
        raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
    if use_separate_proj_weight:
        bs = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
        q, k, v = (linear(x, w, b) for x, w, b in zip((query, key, value), (q_proj_weight, k_proj_weight, v_proj_weight), bs))
    else:
        q, k, v = _packed_projection(query, key, value, in_proj_weight, in_proj_bias)
    dtype = q.dtype
    attn_mask, key_padding_mask = _additive(attn_mask, dtype), _additive(key_padding_mask, dtype)
    if bias_k is not None:
        from .._ops import cat

        k, v = cat([k, bias_k.repeat(1, n, 1)]), cat([v, bias_v.repeat(1, n, 1)])
        attn_mask = None if attn_mask is None else pad(attn_mask, (0, 1))
        key_padding_mask = None if key_padding_mask is None else pad(key_padding_mask, (0, 1))
    q, k, v = (x.reshape(x.shape[0], n * num_heads, head).transpose(0, 1) for x in (q, k, v))
    if add_zero_attn:
        k, v = pad(k, (0, 0, 0, 1)), pad(v, (0, 0, 0, 1))
        attn_mask = None if attn_mask is None else pad(attn_mask, (0, 1))
        key_padding_mask = None if key_padding_mask is None else pad(key_padding_mask, (0, 1))
    sources = k.shape[1]
    if attn_mask is not None and attn_mask.ndim == 2:
        attn_mask = attn_mask.unsqueeze(0)
    if key_padding_mask is not None:
        padding = key_padding_mask.view(n, 1, 1, sources).expand(-1, num_heads, -1, -1).reshape(n * num_heads, 1, sources)
        attn_mask = padding if attn_mask is None else attn_mask + padding
    p = dropout_p if training else 0.0
    if need_weights:
        scores = _C.bmm(q * math.sqrt(1.0 / head), k.transpose(-2, -1))
        if attn_mask is not None:
            scores = scores + attn_mask
        weights = _op._softmax(scores, -1)
        if p > 0.0:
            weights = dropout(weights, p)
        out = _C.bmm(weights, v)
        out = linear(out.transpose(0, 1).contiguous().view(length * n, e), out_proj_weight, out_proj_bias).view(length, n, -1)
        weights = weights.view(n, num_heads, length, sources)
        if average_attn_weights:
            weights = weights.mean(1)
        return (out, weights) if batched else (out.squeeze(1), weights.squeeze(0))
    if attn_mask is not None:
        attn_mask = attn_mask.unsqueeze(0) if attn_mask.shape[0] == 1 else attn_mask.view(n, num_heads, -1, sources)
    q, k, v = (x.view(n, num_heads, -1, head) for x in (q, k, v))
    out = scaled_dot_product_attention(q, k, v, attn_mask, p)
    out = out.permute(2, 0, 1, 3).contiguous().view(n * length, e)
    out = linear(out, out_proj_weight, out_proj_bias).view(length, n, -1)
    return (out, None) if batched else (out.squeeze(1), None)


