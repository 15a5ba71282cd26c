"""The backward pass of a linear map of the channels at every point: both operands are read once for all gradients."""

# What a kernel is launched with types it.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from sciml_monarch.monarch.kernels.pointwise_tiles_triton import load_fields, load_weights, normal
from sciml_monarch.monarch.kernels.products_triton import dot


@triton.jit
def linear_gradients_kernel(
    g,
    x,
    weight_turned,
    by_x,
    by_weight,
    by_bias,
    n_points,
    n_samples,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    ACTIVATED: tl.constexpr,
    OF_X: tl.constexpr,
    OF_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    POINTS: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
):
    """Writes the gradient by the input, and partial sums of those by the weight and the bias.

    From that of the output, ``(samples, OUTPUTS, n_points)``, and what was mapped, ``(samples, INPUTS, n_points)``:
    with ``ACTIVATED`` the GELU of it. ``weight_turned`` is ``(INPUTS, OUTPUTS)``. Partial sums are ``(programs,
    OUTPUTS, INPUTS)`` and ``(programs, OUTPUTS)``. Grid: programs.
    """
    program = tl.program_id(0)
    i, o = tl.arange(0, IN), tl.arange(0, OUT)
    sum_weight = tl.zeros((OUT, IN), tl.float32)
    if OF_X:
        turned = tl.trans(load_weights(weight_turned, i, o, INPUTS, OUTPUTS))
    if OF_BIAS:
        sum_bias = tl.zeros((OUT,), tl.float32)
    tiles = tl.cdiv(n_points, POINTS)
    for tile in tl.range(program, tiles * n_samples, tl.num_programs(0), num_stages=2):
        sample = (tile // tiles).to(tl.int64)
        point = tile % tiles * POINTS + tl.arange(0, POINTS)
        by_out = tl.trans(load_fields(g + sample * OUTPUTS * n_points, point, o, n_points, OUTPUTS))
        fields = load_fields(x + sample * INPUTS * n_points, point, i, n_points, INPUTS)
        if ACTIVATED:
            before = fields.to(tl.float32)
            fields = (before * normal(before)).to(fields.dtype)
        sum_weight = dot(by_out, fields, sum_weight, PRECISION)
        if OF_BIAS:
            sum_bias += tl.sum(by_out.to(tl.float32), 1)
        if OF_X:
            acc = tl.zeros((POINTS, IN), tl.float32)
            by_fields = dot(tl.trans(by_out), turned, acc, PRECISION)
            at = by_x + sample * INPUTS * n_points + i.to(tl.int64)[None, :] * n_points + point[:, None]
            inside = (point[:, None] < n_points) & (i[None, :] < INPUTS)
            tl.store(at, by_fields.to(by_x.dtype.element_ty), mask=inside)
    inside = (o[:, None] < OUTPUTS) & (i[None, :] < INPUTS)
    tl.store(by_weight + program * OUTPUTS * INPUTS + o[:, None] * INPUTS + i[None, :], sum_weight, mask=inside)
    if OF_BIAS:
        tl.store(by_bias + program * OUTPUTS + o, sum_bias, mask=o < OUTPUTS)
