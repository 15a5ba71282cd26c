"""Channel mixing at every point of a field, keeping less for the backward pass than the modules it stands for.

At a point of a 256^2 grid a projection through 128 channels holds more numbers than all Fourier layers of a network
together. It is computed by one kernel, or in pieces, here, forward and, again, backward. The linear map of a Fourier
layer's skip connection keeps the fields before the activation in place of those after it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv1d, gelu

from sciml_monarch.monarch.kernels.backend import autocast, dot_precision, exporting, transformed, without_autocast
from sciml_monarch.monarch.kernels.pointwise import linear_asked, perceptron_asked, wants_linear, wants_perceptron

PIECE_BYTES = 2**25  # of hidden channels: stays in the second-level cache of a large GPU


def pointwise_linear(x: Tensor, weight: Tensor, source: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Maps the channels at every point. Computes in autocast's dtype.

    Args:
        x: Fields ``(b, i, *grid)``.
        weight: ``(o, i)``.
        source: The fields whose GELU ``x`` is, if it is one; kept for the backward pass in place of ``x``.
        bias: ``(o,)``.

    Returns:
        ``(b, o, *grid)``.
    """
    grid = x.shape[2:]
    x, weight = autocast(x).flatten(2), autocast(weight)
    if _plain_wanted():
        out = torch.einsum("oi,bin->bon", weight, x)
        return (out if bias is None else (out + bias[:, None]).to(x.dtype)).unflatten(2, grid)
    if _undifferentiated():
        return _map(weight, x, bias).unflatten(2, grid)
    source = None if source is None else autocast(source).flatten(2)
    linear = _linear if torch.compiler.is_compiling() else _Linear.apply
    return linear(x, weight, source, bias, linear_asked(x, weight.shape)).unflatten(2, grid)


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
    # not the biases: half precision would overflow in the sums that are their gradients
    x, w1, w2 = (autocast(t) for t in (x, w1, w2))
    x = x.flatten(2)
    if _plain_wanted():
        hidden = gelu((torch.einsum("hi,bin->bhn", w1, x) + b1[:, None]).to(x.dtype))
        return (torch.einsum("oh,bhn->bon", w2, hidden) + b2[:, None]).to(x.dtype).unflatten(2, grid)
    asked = perceptron_asked(x, w1, w2)
    if _undifferentiated():
        return _mapped(x, w1, b1, w2, b2, asked).unflatten(2, grid)
    mlp = _mlp if torch.compiler.is_compiling() else _MLP.apply
    return mlp(x, w1, b1, w2, b2, asked).unflatten(2, grid)


def _undifferentiated() -> bool:
    """Whether the operators, which are there for their gradients and for compilers, are left out: they take time."""
    return not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _plain_wanted() -> bool:
    """Whether the caller is to see plain torch.

    A compiler is not to: it would keep hidden channels and activations, which the operators compute again. An exported
    program is to run without this package, ``torch.func`` and forward-mode derivatives see through plain torch only.
    """
    return transformed() or exporting()


@torch.library.custom_op("sciml_monarch::pointwise_linear", mutates_args=())
def _linear(x: Tensor, weight: Tensor, source: Tensor | None, bias: Tensor | None, asked: bool) -> Tensor:
    """``asked``, here and below: whether kernels were, of the call whose backward pass this may be."""
    with torch.autocast(x.device.type, enabled=False):
        return _map(weight, x, bias)


@_linear.register_fake
def _linear_fake(x: Tensor, weight: Tensor, source: Tensor | None, bias: Tensor | None, asked: bool) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], x.shape[2])


def _map(weight: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    # a convolution, which adds the bias in the same pass; but cuDNN's are in TF32 whatever is asked of products
    if bias is None or (x.is_cuda and dot_precision(x.dtype) == "tf32x3"):
        return _each(weight, x, bias)
    return conv1d(x, weight[..., None], bias.to(x.dtype))


def _save_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor | None = None) -> None:
    x, weight, source, bias, ctx.asked = inputs
    ctx.activated = source is not None
    ctx.bias_dtype = None if bias is None else bias.dtype
    # a frozen weight's gradient, for which alone the field is there, is not wanted
    ctx.save_for_backward((source if ctx.activated else x) if weight.requires_grad else None, weight)


def _found_linear_gradients(
    gradient: Tensor, kept: Tensor, weight: Tensor, activated: bool, of_x: bool, of_bias: bool, asked: bool
) -> list[Tensor]:
    """By what was mapped, weight and bias, empty where not wanted; weight and bias in float32 or wider."""
    if wants_linear(kept, weight, asked):
        from sciml_monarch.monarch.kernels.pointwise_linear_triton import linear_gradients

        found: Sequence[Tensor | None] = linear_gradients(gradient, kept, weight, activated, of_x, of_bias)
    else:
        found = _plain_linear_gradients(gradient, kept, weight, activated, of_x, of_bias)
    return [kept.new_empty(0) if t is None else t for t in found]


_linear_gradients = torch.library.custom_op("sciml_monarch::pointwise_linear_gradients", mutates_args=())(
    _found_linear_gradients
)


@_linear_gradients.register_fake
def _linear_gradients_fake(
    gradient: Tensor, kept: Tensor, weight: Tensor, activated: bool, of_x: bool, of_bias: bool, asked: bool
) -> list[Tensor]:
    wide = _wide(kept)
    return [
        kept.new_empty(kept.shape if of_x else 0),
        kept.new_empty(weight.shape, dtype=wide),
        kept.new_empty(weight.shape[:1], dtype=wide) if of_bias else kept.new_empty(0),
    ]


def _plain_linear_gradients(
    gradient: Tensor, kept: Tensor, weight: Tensor, activated: bool, of_x: bool, of_bias: bool
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """The same of operations that can be differentiated again."""
    by_x = _each(weight.mT, gradient) if of_x else None
    by_weight = _by_weight(gradient, gelu(kept) if activated else kept)
    return by_x, by_weight, gradient.sum((0, 2), dtype=_wide(kept)) if of_bias else None


def _by_linear(ctx: Any, gradient: Tensor, by: Callable[..., list[Tensor]]) -> tuple[Tensor | None, ...]:
    """By all arguments of the forward pass; ``by`` is how kernels are reached."""
    kept, weight = ctx.saved_tensors
    of_x, of_weight, _, of_bias, _ = ctx.needs_input_grad
    by_x, by_weight, by_bias = None, None, None
    if of_weight and ctx.asked and not torch.is_grad_enabled():
        by_x, by_weight, by_bias = by(gradient, kept, weight, ctx.activated, of_x, of_bias, ctx.asked)
    elif of_weight:  # what a compiler sees through, and fuses
        by_x, by_weight, by_bias = _plain_linear_gradients(gradient, kept, weight, ctx.activated, of_x, of_bias)
    else:
        by_x = _each(weight.mT, gradient) if of_x else None
        by_bias = gradient.sum((0, 2), dtype=_wide(gradient)) if of_bias else None
    return (
        by_x if of_x else None,
        None if by_weight is None else by_weight.to(weight.dtype),
        None,
        by_bias.to(ctx.bias_dtype) if of_bias and by_bias is not None else None,
        None,
    )


def _linear_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return _by_linear(ctx, gradient, _linear_gradients)


@torch.library.custom_op("sciml_monarch::pointwise_mlp", mutates_args=())
def _mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, asked: bool) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return _mapped(x, w1, b1, w2, b2, asked)


def _mapped(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, asked: bool) -> Tensor:
    if wants_perceptron(x, w1, w2, asked):
        from sciml_monarch.monarch.kernels.perceptron_triton import perceptron

        return perceptron(x, w1, b1, w2, b2)
    out = x.new_empty(x.shape[0], w2.shape[0], x.shape[2])
    for piece in _pieces(x, w1):
        out[piece] = _each(w2, gelu(_each(w1, x[piece], b1)), b2)
    return out


@_mlp.register_fake
def _mlp_fake(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, asked: bool) -> Tensor:
    return x.new_empty(x.shape[0], w2.shape[0], x.shape[2])


@torch.library.custom_op("sciml_monarch::pointwise_mlp_gradients", mutates_args=())
def _mlp_gradients(
    gradient: Tensor,
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2_dtype: torch.dtype,
    needs: list[bool],
    asked: bool,
) -> list[Tensor]:
    """Gradients by the arguments of the forward pass, whose hidden channels are computed again; empty if unwanted."""
    found = _mlp_gradients_fake(gradient, x, w1, b1, w2, b2_dtype, needs, asked)
    if all(needs) and wants_perceptron(x, w1, w2, asked):
        from sciml_monarch.monarch.kernels.perceptron_triton import perceptron_gradients

        by_all = *perceptron_gradients(gradient, x, w1, b1, w2), gradient.sum((0, 2), dtype=torch.float32)
        return [t.to(like.dtype) for t, like in zip(by_all, found, strict=True)]
    by_x, *sums = found
    sums = [torch.zeros_like(t, dtype=_wide(x)) for t in sums]
    with torch.autocast(x.device.type, enabled=False):
        for piece in _pieces(x, w1):
            of_x, *of_others = _gradients_of_piece(gradient[piece], x[piece], w1, b1, w2, needs)
            if of_x is not None:
                by_x[piece] = of_x
            for total, part in zip(sums, of_others, strict=True):
                if part is not None:
                    total += part
    return [by_x, *(total.to(t.dtype) for total, t in zip(sums, found[1:], strict=True))]


@_mlp_gradients.register_fake
def _mlp_gradients_fake(
    gradient: Tensor,
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2_dtype: torch.dtype,
    needs: list[bool],
    asked: bool,
) -> list[Tensor]:
    shapes = (x.shape, w1.shape, b1.shape, w2.shape, w2.shape[:1])
    dtypes = (x.dtype, w1.dtype, b1.dtype, w2.dtype, b2_dtype)
    wanted = (shape if need else (0,) for shape, need in zip(shapes, needs, strict=True))
    return [x.new_empty(shape, dtype=dtype) for shape, dtype in zip(wanted, dtypes, strict=True)]


def _gradients_of_piece(
    g: Tensor, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, needs: Sequence[bool]
) -> list[Tensor | None]:
    """The same for some samples, ``None`` if unwanted; of operations that can be differentiated again."""
    by_x = by_w1 = by_b1 = by_w2 = by_b2 = None
    if any(needs[:4]):
        before = _each(w1, x, b1)
    if needs[3]:
        by_w2 = _by_weight(g, gelu(before))
    if needs[4]:
        by_b2 = g.sum((0, 2), dtype=_wide(x))
    if any(needs[:3]):
        by_before = torch.ops.aten.gelu_backward(_each(w2.mT, g), before)
        by_w1 = _by_weight(by_before, x) if needs[1] else None
        by_b1 = by_before.sum((0, 2), dtype=_wide(x)) if needs[2] else None
        by_x = _each(w1.mT, by_before) if needs[0] else None
    return [by_x, by_w1, by_b1, by_w2, by_b2]


def _save_mlp(ctx: Any, inputs: tuple[Any, ...], output: Tensor | None = None) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.b2_dtype, ctx.asked = inputs[4].dtype, inputs[5]


def _mlp_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, w1, b1, w2 = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:5])
    if not torch.is_grad_enabled():
        found = _mlp_gradients(gradient, x, w1, b1, w2, ctx.b2_dtype, needs, ctx.asked)
        return (*(t if need else None for t, need in zip(found, needs, strict=True)), None)
    with torch.autocast(x.device.type, enabled=False):  # a gradient that is to be differentiated again
        parts = _gradients_of_piece(gradient, x, w1, b1, w2, needs)
    dtypes = (x.dtype, w1.dtype, b1.dtype, w2.dtype, ctx.b2_dtype)
    return (*(None if t is None else t.to(dtype) for t, dtype in zip(parts, dtypes, strict=True)), None)


_linear.register_autograd(_linear_backward, setup_context=_save_linear)
_mlp.register_autograd(_mlp_backward, setup_context=_save_mlp)


class _Linear(torch.autograd.Function):
    """What ``_linear`` is to a compiler, for eager mode: an operator takes longer to begin than small fields take."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, source: Tensor | None, bias: Tensor | None, asked: bool) -> Tensor:
        _save_linear(ctx, (x, weight, source, bias, asked))
        with without_autocast(x):
            return _map(weight, x, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _by_linear(ctx, gradient, _found_linear_gradients)


class _MLP(torch.autograd.Function):
    """The same of ``_mlp``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, asked: bool) -> Tensor:
        _save_mlp(ctx, (x, w1, b1, w2, b2, asked))
        with without_autocast(x):
            return _mapped(x, w1, b1, w2, b2, asked)

    backward = staticmethod(_mlp_backward)


def _pieces(x: Tensor, w1: Tensor) -> Iterator[slice]:
    """Slices of the batch whose hidden channels take about ``PIECE_BYTES``."""
    size = max(1, PIECE_BYTES // max(1, w1.shape[0] * x.shape[2] * x.element_size()))
    return (slice(start, start + size) for start in range(0, x.shape[0], size))


def _each(weight: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """``weight x + bias`` for every sample of a batch ``(b, i, n)``."""
    weight = weight.expand(x.shape[0], -1, -1)
    return torch.bmm(weight, x) if bias is None else torch.baddbmm(bias[:, None].to(x.dtype), weight, x)


def _by_weight(g: Tensor, x: Tensor) -> Tensor:
    """The gradient of the weight of :func:`_each`, summed over the batch at float32's range or better."""
    return torch.bmm(g, x.mT).sum(0, dtype=_wide(x))


def _wide(x: Tensor) -> torch.dtype:
    """The dtype for sums over pieces."""
    return torch.promote_types(x.dtype, torch.float32)
