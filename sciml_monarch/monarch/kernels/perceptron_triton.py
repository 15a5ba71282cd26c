"""Launches the kernels of :mod:`perceptron_kernels_triton`."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from sciml_monarch.monarch.kernels.backend import DotPrecision, dot_precision
from sciml_monarch.monarch.kernels.device import device_of
from sciml_monarch.monarch.kernels.perceptron_kernels_triton import perceptron_gradients_kernel, perceptron_kernel
from sciml_monarch.monarch.kernels.pointwise import padded

N_PROGRAMS = 264  # that share points to be summed: two for each multiprocessor of an H200; on others only speed differs


class Tile(NamedTuple):
    """What a program takes at a time: points, and the warps for them.

    Triton 3.6 compiles two warp groups that share 64 rows wrongly: 16 points a warp at least.
    """

    points: int
    warps: int


FORWARD = Tile(64, 4)
BACKWARD: dict[DotPrecision, Tile] = {"tf32x3": Tile(32, 4)}  # three products take more registers


def perceptron(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, config: Tile = FORWARD) -> Tensor:
    """Computes ``w2 gelu(w1 x + b1) + b2`` at every point.

    Args:
        x: Fields ``(b, i, n)``, not empty.
        w1: ``(h, i)``, of the dtype of ``x``.
        b1: ``(h,)``.
        w2: ``(o, h)``, of the dtype of ``x``.
        b2: ``(o,)``.
        config: Tile.

    Returns:
        ``(b, o, n)``.
    """
    x, w1, b1, w2, b2 = (t.contiguous() for t in (x, w1, b1, w2, b2))
    n_samples, _, n_points = x.shape
    out = x.new_empty(n_samples, len(w2), n_points)
    with device_of(x):
        perceptron_kernel[n_samples * triton.cdiv(n_points, config.points),](
            x, w1, b1, w2, b2, out, n_points, **constants(x, w2, *config)
        )
    return out


def perceptron_gradients(
    g: Tensor, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, config: Tile | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of :func:`perceptron` by ``x``, ``w1``, ``b1`` and ``w2``.

    Args:
        g: Of the output, ``(b, o, n)``, of the dtype of ``x``; the others as there.
        x: See there.
        w1: See there.
        b1: See there.
        w2: See there.
        config: Tile; by default what was measured to be fastest.

    Returns:
        By ``x`` in its dtype, by the others in float32.
    """
    g, x, w1, b1, w2 = (t.contiguous() for t in (g, x, w1, b1, w2))
    n_samples, inputs, n_points = x.shape
    hidden, outputs = len(w1), len(w2)
    config = config or BACKWARD.get(dot_precision(x.dtype), FORWARD)
    n_programs = min(N_PROGRAMS, n_samples * triton.cdiv(n_points, config.points))
    by_x = torch.empty_like(x)
    shapes = (hidden, inputs), (hidden,), (hidden, outputs)
    by_w1, by_b1, by_w2 = (x.new_empty(n_programs, *shape, dtype=torch.float32) for shape in shapes)
    with device_of(x):
        perceptron_gradients_kernel[n_programs,](
            g, x, w1, w1.mT.contiguous(), b1, w2, by_x, by_w1, by_b1, by_w2, n_points, n_samples,
            **constants(x, w2, *config),
        )  # fmt: skip
    return by_x, by_w1.sum(0), by_b1.sum(0), by_w2.sum(0).mT


def constants(x: Tensor, last: Tensor, points: int, warps: int) -> dict[str, object]:
    """What kernels of two linear maps are compiled with.

    Args:
        x: Fields ``(b, i, n)``.
        last: Weights of the last map, ``(o, h)``.
        points: That a program takes at a time.
        warps: For them.
    """
    inputs, (outputs, hidden) = x.shape[1], last.shape
    return {
        "INPUTS": inputs,
        "HIDDEN": hidden,
        "OUTPUTS": outputs,
        "PRECISION": dot_precision(x.dtype),
        "POINTS": points,
        "IN": padded(inputs),
        "MIDDLE": padded(hidden),
        "OUT": padded(outputs),
        "num_warps": warps,
    }
