"""Launches the kernels of :mod:`gated_perceptron_kernels_triton`."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from sciml_monarch.monarch.kernels.device import device_of
from sciml_monarch.monarch.kernels.gated_perceptron_kernels_triton import (
    gated_perceptron_gradients_kernel,
    gated_perceptron_kernel,
)
from sciml_monarch.monarch.kernels.perceptron_triton import constants


class GatedTile(NamedTuple):
    """What a program takes at a time: points, the warps for them, and how many programs share all points.

    Triton 3.6 compiles two warp groups that share 64 rows wrongly: of four warps at most are as many rows.
    """

    points: int
    warps: int
    programs: int


FORWARD = GatedTile(64, 4, 528)  # of an H200's 132 multiprocessors; on others only speed differs
BACKWARD = GatedTile(32, 4, 264)


def gated_perceptron(
    x: Tensor,
    up: Tensor,
    up_bias: Tensor,
    down: Tensor,
    down_bias: Tensor,
    skip: Tensor | None = None,
    config: GatedTile = FORWARD,
) -> Tensor:
    """Computes ``down (v gelu(g)) + down_bias + skip`` with ``v`` and ``g`` the halves of ``up x + up_bias``.

    Args:
        x: Fields ``(b, i, n)``, not empty.
        up: ``(2 h, i)``, of the dtype of ``x``.
        up_bias: ``(2 h,)``.
        down: ``(o, h)``, of the dtype of ``x``.
        down_bias: ``(o,)``.
        skip: ``(b, o, n)``, of the dtype of ``x``.
        config: Tile.

    Returns:
        ``(b, o, n)``.
    """
    x, up, up_bias, down, down_bias = (t.contiguous() for t in (x, up, up_bias, down, down_bias))
    n_samples, _, n_points = x.shape
    out = x.new_empty(n_samples, len(down), n_points)
    with device_of(x):
        gated_perceptron_kernel[_programs(x, config),](
            x, up, up_bias, down, down_bias, x if skip is None else skip.contiguous(), out, n_points, n_samples,
            HAS_SKIP=skip is not None, **constants(x, down, config.points, config.warps),
        )  # fmt: skip
    return out


def gated_perceptron_gradients(
    g: Tensor, x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, config: GatedTile = BACKWARD
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of :func:`gated_perceptron` by ``x``, ``up``, ``up_bias``, ``down`` and ``down_bias``.

    Args:
        g: Of the output, ``(b, o, n)``, of the dtype of ``x``; the others as there.
        x: See there.
        up: See there.
        up_bias: See there.
        down: See there.
        config: Tile.

    Returns:
        By ``x`` in its dtype, by the others in float32.
    """
    g, x, up, up_bias, down = (t.contiguous() for t in (g, x, up, up_bias, down))
    n_samples, _, n_points = x.shape
    outputs, hidden = down.shape
    n_programs = _programs(x, config)
    by_x = torch.empty_like(x)
    sizes = [up.numel(), up_bias.numel(), down.numel(), outputs]
    sums = x.new_empty(n_programs, sum(sizes), dtype=torch.float32)  # of all parameters: added up by one kernel
    with device_of(x):
        gated_perceptron_gradients_kernel[n_programs,](
            g, x, up, up_bias, down, by_x, sums, n_points, n_samples, **constants(x, down, config.points, config.warps)
        )
    by_up, by_up_bias, by_down, by_down_bias = sums.sum(0).split(sizes)
    return by_x, by_up.view_as(up), by_up_bias, by_down.view(hidden, outputs).mT, by_down_bias


def _programs(x: Tensor, config: GatedTile) -> int:
    return min(config.programs, len(x) * triton.cdiv(x.shape[2], config.points))
