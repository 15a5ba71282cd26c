"""Gated perceptrons of the channels at every point by kernels, which keep no hidden channels for the backward pass."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu

from sciml_monarch.monarch.kernels.backend import autocast, transformed
from sciml_monarch.monarch.kernels.pointwise import wants_gated


def gated_mlp_wanted(x: Tensor, up: Tensor, down: Tensor) -> bool:
    """Whether :func:`gated_mlp` is to compute it, of whose fields ``gated_asked`` is true.

    A compiler, exports and transforms see plain torch. What does not fit together is left to torch, which says so.

    Args:
        x: Fields ``(b, i, *grid)``.
        up: ``(2 h, i)``.
        down: ``(o, h)``.

    Raises:
        InputError: Kernels are asked for and cannot take ``x``.
    """
    if torch.compiler.is_compiling() or transformed() or x.numel() == 0:
        return False
    like, up, down = (autocast(t) for t in (x[:0], up, down))  # no field is cast for the question
    if x.shape[1] != up.shape[1] or not like.dtype == up.dtype == down.dtype:
        return False
    return wants_gated(like, up, down)


def gated_mlp(
    x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor, *, skip: Tensor | None
) -> Tensor:
    """``down (v gelu(g)) + down_bias + skip`` with ``v`` and ``g`` the halves of ``up x + up_bias``, in one kernel.

    Computes in autocast's dtype.

    Args:
        x: Fields ``(b, i, *grid)``.
        up: ``(2 h, i)``.
        up_bias: ``(2 h,)``.
        down: ``(o, h)``.
        down_bias: ``(o,)``.
        skip: Fields ``(b, o, *grid)``.

    Returns:
        ``(b, o, *grid)``.
    """
    # not the biases: half precision would overflow in the sums that are their gradients
    x, up, down = (autocast(t) for t in (x, up, down))
    grid = x.shape[2:]
    # fields that autocast leaves in float32 are added in it, and such as are to be expanded by torch
    fits = skip is not None and skip.dtype == x.dtype and skip.shape == (len(x), len(down), *grid)
    added = skip.flatten(2) if skip is not None and fits else None
    found: Tensor = _GatedMLP.apply(x.flatten(2), up, up_bias, down, down_bias, added).unflatten(2, grid)
    return found if skip is None or added is not None else skip + found


def _plain(x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor) -> Tensor:
    """The slow reference, without ``skip``: fields ``(b, i, n)``."""
    value, gate = (torch.einsum("hi,bin->bhn", up, x) + up_bias[:, None]).to(x.dtype).chunk(2, 1)
    return (torch.einsum("oh,bhn->bon", down, value * gelu(gate)) + down_bias[:, None]).to(x.dtype)


class _GatedMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor, skip: Tensor | None
    ) -> Tensor:
        from sciml_monarch.monarch.kernels.gated_perceptron_triton import gated_perceptron

        ctx.save_for_backward(x, up, up_bias, down, down_bias)
        return gated_perceptron(x, up, up_bias, down, down_bias, skip)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        by_skip = gradient if ctx.needs_input_grad[5] else None
        needs = ctx.needs_input_grad[:5]
        if torch.is_grad_enabled() or not all(needs):  # to be differentiated again, or of weights that are frozen
            return *_plain_gradients(gradient, inputs, needs), by_skip
        from sciml_monarch.monarch.kernels.gated_perceptron_triton import gated_perceptron_gradients

        found = gated_perceptron_gradients(gradient, *inputs[:4])
        return *(t.to(like.dtype) for t, like in zip(found, inputs, strict=True)), by_skip


def _plain_gradients(gradient: Tensor, inputs: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    """By those inputs that need them; can be differentiated again where that is asked for."""
    again = torch.is_grad_enabled()
    with torch.enable_grad(), torch.autocast(gradient.device.type, enabled=False):
        if again:  # by views: derivatives by parameters themselves would go through fields that depend on them, too
            inputs = [t.view_as(t) for t in inputs]
        else:
            inputs = [t.detach().requires_grad_(need) for t, need in zip(inputs, needs, strict=True)]
        wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
        found = iter(torch.autograd.grad(_plain(*inputs), wanted, gradient, create_graph=again) if wanted else ())
    return [next(found) if need else None for need in needs]
