"""Periodic padding whose gradient is a few additions.

PyTorch's own writes slice by slice into an empty field, and autograd copies the whole field for every slice: in a
U-Net's training that is more than half of all bytes that are moved.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.monarch.kernels.backend import transformed


def periodic_pad(x: Tensor, reach: Sequence[int]) -> Tensor:
    """Continues fields periodically, on both sides of each axis of the grid.

    Args:
        x: Fields ``(b, channels, *grid)``.
        reach: How many points, for each axis of the grid.

    Returns:
        ``(b, channels, *larger)``, each axis larger by twice its reach: what ``torch.nn.functional.pad`` makes in mode
        "circular".

    Raises:
        InputError: An axis has fewer points than it is to be continued by.
    """
    grid = x.shape[2:]
    if len(reach) != len(grid) or any(not 0 <= r <= n for r, n in zip(reach, grid, strict=True)):
        raise InputError(f"a grid {tuple(grid)} cannot be continued periodically by {tuple(reach)} points")
    # a compiler fuses what autograd makes of it; transforms and forward-mode derivatives see through plain torch only
    if torch.compiler.is_compiling() or transformed():
        return _continued(x, reach)
    return _PeriodicPad.apply(x, tuple(reach))  # type: ignore[no-any-return]


def _continued(x: Tensor, reach: Sequence[int]) -> Tensor:
    for axis in reversed(range(2, x.ndim)):
        r, n = reach[axis - 2], x.shape[axis]
        if r:
            x = torch.cat([x.narrow(axis, n - r, r), x, x.narrow(axis, 0, r)], axis)
    return x


class _PeriodicPad(torch.autograd.Function):
    """Adds the gradients of the points that were added to those of the points that they are copies of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, reach: tuple[int, ...]) -> Tensor:
        ctx.reach = reach
        return _continued(x, reach)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        for axis in range(2, gradient.ndim):
            r = ctx.reach[axis - 2]
            n = gradient.shape[axis] - 2 * r
            if r:
                inner = gradient.narrow(axis, r, n).clone(memory_format=torch.contiguous_format)
                inner.narrow(axis, n - r, r).add_(gradient.narrow(axis, 0, r))
                inner.narrow(axis, 0, r).add_(gradient.narrow(axis, r + n, r))
                gradient = inner
        return gradient, None
