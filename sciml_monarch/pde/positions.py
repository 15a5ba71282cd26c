"""What a network is told of where a point lies."""

from collections.abc import Sequence
from math import pi

import torch
from torch import Tensor


def coordinates(grid: Sequence[int], like: Tensor) -> Tensor:
    """Coordinates of the points in units of the domain length, ``(1, d, *grid)``, left end included."""
    axes = [torch.arange(n, device=like.device, dtype=like.dtype) / n for n in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).unsqueeze(0)


def periodic_coordinates(grid: Sequence[int], like: Tensor) -> Tensor:
    """Sines, then cosines, of the coordinates as angles, ``(1, 2 d, *grid)``: no jump where a periodic domain closes.

    Computed in float32, in ``like``'s dtype.
    """
    x = 2 * pi * coordinates(grid, like.new_empty(0, dtype=torch.promote_types(like.dtype, torch.float32)))
    return torch.cat([torch.sin(x), torch.cos(x)], 1).to(like.dtype)
