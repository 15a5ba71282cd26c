"""Launches the kernel of :mod:`pointwise_linear_kernels_triton`."""

import torch
import triton
from torch import Tensor

from sciml_monarch.monarch.kernels.backend import dot_precision
from sciml_monarch.monarch.kernels.device import device_of
from sciml_monarch.monarch.kernels.pointwise import padded
from sciml_monarch.monarch.kernels.pointwise_linear_kernels_triton import linear_gradients_kernel

N_PROGRAMS = (
    528  # that share points to be summed: four for each multiprocessor of an H200; on others only speed differs
)
POINTS, WARPS = 64, 4


def linear_gradients(
    g: Tensor, x: Tensor, weight: Tensor, activated: bool, of_x: bool, of_bias: bool
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Gradients of ``weight x + bias``, or with ``activated`` of ``weight gelu(x) + bias``, at every point.

    Args:
        g: Of the output, ``(b, o, n)``, of the dtype of ``x``.
        x: Fields ``(b, i, n)``, not empty.
        weight: ``(o, i)``, of the dtype of ``x``.
        activated: See above.
        of_x: Whether that by what ``weight`` was multiplied with is wanted.
        of_bias: Whether that by the bias is.

    Returns:
        By what ``weight`` was multiplied with, of the dtype of ``x``; by weight and bias in float32.
    """
    g, x = g.contiguous(), x.contiguous()
    n_samples, inputs, n_points = x.shape
    outputs = len(weight)
    n_programs = min(N_PROGRAMS, n_samples * triton.cdiv(n_points, POINTS))
    by_x = torch.empty_like(x) if of_x else None
    by_weight = x.new_empty(n_programs, outputs, inputs, dtype=torch.float32)
    by_bias = x.new_empty(n_programs, outputs, dtype=torch.float32) if of_bias else None
    with device_of(x):
        linear_gradients_kernel[n_programs,](
            g,
            x,
            weight.mT.contiguous() if of_x else None,
            by_x,
            by_weight,
            by_bias,
            n_points,
            n_samples,
            INPUTS=inputs,
            OUTPUTS=outputs,
            ACTIVATED=activated,
            OF_X=of_x,
            OF_BIAS=of_bias,
            PRECISION=dot_precision(x.dtype),
            POINTS=POINTS,
            IN=padded(inputs),
            OUT=padded(outputs),
            num_warps=WARPS,
        )
    return by_x, by_weight.sum(0), None if by_bias is None else by_bias.sum(0)
