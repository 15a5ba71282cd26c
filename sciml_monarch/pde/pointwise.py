"""Channel mixing at every point of a field, keeping less for the backward pass than the modules it stands for.

At a point of a 256^2 grid a projection through 128 channels holds more numbers than all Fourier layers of a network
together. It is computed in pieces here, forward and, again, backward. The linear map of a Fourier layer's skip
connection keeps the fields before the activation in place of those after it.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu

PIECE_BYTES = 2**25  # of hidden channels: stays in the second-level cache of a large GPU


def pointwise_linear(x: Tensor, weight: Tensor, source: Tensor | None = None) -> Tensor:
    """Maps the channels at every point. Computes in autocast's dtype.

    Args:
        x: Fields ``(b, i, *grid)``.
        weight: ``(o, i)``.
        source: The fields whose GELU ``x`` is, if it is one; kept for the backward pass in place of ``x``.

    Returns:
        ``(b, o, *grid)``.
    """
    grid = x.shape[2:]
    x, weight = _autocast(x), _autocast(weight)
    if torch.compiler.is_compiling():  # a compiler, or an exported program, is to see plain torch
        return torch.einsum("oi,bin->bon", weight, x.flatten(2)).unflatten(2, grid)
    source = None if source is None else _autocast(source).flatten(2)
    return _linear(x.flatten(2), weight, source).unflatten(2, grid)


def pointwise_mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """Linear map, GELU, linear map of the channels at every point. Computes in autocast's dtype.

    Args:
        x: Fields ``(b, i, *grid)``.
        w1: ``(h, i)``.
        b1: ``(h,)``.
        w2: ``(o, h)``.
        b2: ``(o,)``.

    Returns:
        ``(b, o, *grid)``.
    """
    grid = x.shape[2:]
    x, w1, b1, w2, b2 = (_autocast(t) for t in (x, w1, b1, w2, b2))
    x = x.flatten(2)
    if torch.compiler.is_compiling():  # a compiler, or an exported program, is to see plain torch
        hidden = gelu(torch.einsum("hi,bin->bhn", w1, x) + b1[:, None])
        return (torch.einsum("oh,bhn->bon", w2, hidden) + b2[:, None]).unflatten(2, grid)
    return _mlp(x, w1, b1, w2, b2).unflatten(2, grid)


@torch.library.custom_op("sciml_monarch::pointwise_linear", mutates_args=())
def _linear(x: Tensor, weight: Tensor, source: Tensor | None) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return _each(weight, x)


@_linear.register_fake
def _linear_fake(x: Tensor, weight: Tensor, source: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], x.shape[2])


def _save_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, source = inputs
    ctx.activated = source is not None
    ctx.save_for_backward(source if ctx.activated else x, weight)


def _linear_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    kept, weight = ctx.saved_tensors
    by_x = _each(weight.mT, gradient) if ctx.needs_input_grad[0] else None
    by_weight = None
    if ctx.needs_input_grad[1]:
        by_weight = torch.bmm(gradient, (gelu(kept) if ctx.activated else kept).mT).sum(0)
    return by_x, by_weight, None


@torch.library.custom_op("sciml_monarch::pointwise_mlp", mutates_args=())
def _mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    out = x.new_empty(x.shape[0], w2.shape[0], x.shape[2])
    with torch.autocast(x.device.type, enabled=False):
        for piece in _pieces(x, w1):
            out[piece] = _each(w2, gelu(_each(w1, x[piece], b1)), b2)
    return out


@_mlp.register_fake
def _mlp_fake(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], w2.shape[0], x.shape[2])


@torch.library.custom_op("sciml_monarch::pointwise_mlp_gradients", mutates_args=())
def _mlp_gradients(gradient: Tensor, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor) -> list[Tensor]:
    """Gradients by all arguments of the forward pass, whose hidden channels are computed again."""
    by_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    shapes = (w1.shape, b1.shape, w2.shape, w2.shape[:1])
    by_w1, by_b1, by_w2, by_b2 = (torch.zeros(s, dtype=_wide(x), device=x.device) for s in shapes)
    with torch.autocast(x.device.type, enabled=False):
        for piece in _pieces(x, w1):
            before, g = _each(w1, x[piece], b1), gradient[piece]
            by_w2 += torch.bmm(g, gelu(before).mT).sum(0)
            by_b2 += g.sum((0, 2), dtype=_wide(x))
            by_before = torch.ops.aten.gelu_backward(_each(w2.mT, g), before)
            by_w1 += torch.bmm(by_before, x[piece].mT).sum(0)
            by_b1 += by_before.sum((0, 2), dtype=_wide(x))
            by_x[piece] = _each(w1.mT, by_before)
    return [by_x, *(t.to(x.dtype) for t in (by_w1, by_b1, by_w2, by_b2))]


@_mlp_gradients.register_fake
def _mlp_gradients_fake(gradient: Tensor, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor) -> list[Tensor]:
    shapes = (x.shape, w1.shape, b1.shape, w2.shape, w2.shape[:1])
    return [x.new_empty(shape) for shape in shapes]


def _save_mlp(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])


def _mlp_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
    return tuple(_mlp_gradients(gradient, *ctx.saved_tensors))


_linear.register_autograd(_linear_backward, setup_context=_save_linear)
_mlp.register_autograd(_mlp_backward, setup_context=_save_mlp)


def _pieces(x: Tensor, w1: Tensor) -> Iterator[slice]:
    """Slices of the batch whose hidden channels take about ``PIECE_BYTES``."""
    size = max(1, PIECE_BYTES // max(1, w1.shape[0] * x.shape[2] * x.element_size()))
    return (slice(start, start + size) for start in range(0, x.shape[0], size))


def _each(weight: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """``weight x + bias`` for every sample of a batch ``(b, i, n)``."""
    weight = weight.expand(x.shape[0], -1, -1)
    return torch.bmm(weight, x) if bias is None else torch.baddbmm(bias[:, None], weight, x)


def _wide(x: Tensor) -> torch.dtype:
    """The dtype for sums over pieces."""
    return torch.promote_types(x.dtype, torch.float32)


def _autocast(x: Tensor) -> Tensor:
    """Casts as autocast does; float64 stays."""
    kind = x.device.type
    wanted = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    return x.to(torch.get_autocast_dtype(kind)) if wanted else x
