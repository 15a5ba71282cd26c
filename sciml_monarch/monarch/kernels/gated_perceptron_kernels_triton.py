"""Linear map of the channels at every point to twice as many, a half times the GELU of the other, linear map.

Hidden channels stay on the chip, where they are computed again for the gradients. Matrices are rounded to the tensor
cores' precision once, before the loop over tiles of points; fields once a tile, for all products that they are in.
"""

# What a kernel is launched with types it.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from sciml_monarch.monarch.kernels.pointwise_tiles_triton import PEAK, load_fields, load_weights, normal
from sciml_monarch.monarch.kernels.products_triton import dot_rounded, rounded


@triton.jit
def gated_perceptron_kernel(
    x,
    up,
    up_bias,
    down,
    down_bias,
    skip,
    out,
    n_points,
    n_samples,
    INPUTS: tl.constexpr,
    HIDDEN: tl.constexpr,
    OUTPUTS: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    PRECISION: tl.constexpr,
    POINTS: tl.constexpr,
    IN: tl.constexpr,
    MIDDLE: tl.constexpr,
    OUT: tl.constexpr,
):
    """Writes ``(samples, OUTPUTS, n_points)`` of ``(samples, INPUTS, n_points)``. Grid: programs.

    ``up`` is ``(2 HIDDEN, INPUTS)``, the halves that are not activated first. ``IN``, ``MIDDLE`` and ``OUT`` are the
    numbers of channels, padded. ``skip``, of the shape of the output, is added to it.
    """
    i, h, o = tl.arange(0, IN), tl.arange(0, MIDDLE), tl.arange(0, OUT)
    to_value = rounded(tl.trans(load_weights(up, h, i, HIDDEN, INPUTS)), PRECISION)
    to_gate = rounded(tl.trans(load_weights(up + HIDDEN * INPUTS, h, i, HIDDEN, INPUTS)), PRECISION)
    to_out = rounded(tl.trans(load_weights(down, o, h, OUTPUTS, HIDDEN)), PRECISION)
    value_bias = tl.load(up_bias + h, mask=h < HIDDEN, other=0.0).to(tl.float32)
    gate_bias = tl.load(up_bias + HIDDEN + h, mask=h < HIDDEN, other=0.0).to(tl.float32)
    out_bias = tl.load(down_bias + o, mask=o < OUTPUTS, other=0.0).to(tl.float32)
    tiles = tl.cdiv(n_points, POINTS)
    for tile in tl.range(tl.program_id(0), tiles * n_samples, tl.num_programs(0), num_stages=1):
        sample = (tile // tiles).to(tl.int64)
        point = tile % tiles * POINTS + tl.arange(0, POINTS)
        fields = load_fields(x + sample * INPUTS * n_points, point, i, n_points, INPUTS)
        dtype: tl.constexpr = fields.dtype
        fields = rounded(fields, PRECISION)
        value = dot_rounded(fields, to_value, tl.zeros((POINTS, MIDDLE), tl.float32), PRECISION) + value_bias[None, :]
        gate = dot_rounded(fields, to_gate, tl.zeros((POINTS, MIDDLE), tl.float32), PRECISION) + gate_bias[None, :]
        hidden = rounded((value * gate * normal(gate)).to(dtype), PRECISION)
        found = dot_rounded(hidden, to_out, tl.zeros((POINTS, OUT), tl.float32), PRECISION) + out_bias[None, :]
        at = sample * OUTPUTS * n_points + o.to(tl.int64)[None, :] * n_points + point[:, None]
        inside = (point[:, None] < n_points) & (o[None, :] < OUTPUTS)
        if HAS_SKIP:
            found += tl.load(skip + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + at, found.to(out.dtype.element_ty), mask=inside)


@triton.jit
def gated_perceptron_gradients_kernel(
    g,
    x,
    up,
    up_bias,
    down,
    by_x,
    sums,
    n_points,
    n_samples,
    INPUTS: tl.constexpr,
    HIDDEN: tl.constexpr,
    OUTPUTS: tl.constexpr,
    PRECISION: tl.constexpr,
    POINTS: tl.constexpr,
    IN: tl.constexpr,
    MIDDLE: tl.constexpr,
    OUT: tl.constexpr,
):
    """Writes the gradient by the input, and partial sums of those by matrices and biases.

    From that of the output, ``(samples, OUTPUTS, n_points)``. Partial sums of a program lie one behind the other:
    ``(2 HIDDEN, INPUTS)``, ``(2 HIDDEN,)``, ``(HIDDEN, OUTPUTS)`` and ``(OUTPUTS,)``. Points are the columns of hidden
    fields, so that sums over them are products of what lies in registers. Grid: programs.
    """
    program = tl.program_id(0)
    i, h, o = tl.arange(0, IN), tl.arange(0, MIDDLE), tl.arange(0, OUT)
    to_value = rounded(load_weights(up, h, i, HIDDEN, INPUTS), PRECISION)
    to_gate = rounded(load_weights(up + HIDDEN * INPUTS, h, i, HIDDEN, INPUTS), PRECISION)
    from_out = rounded(tl.trans(load_weights(down, o, h, OUTPUTS, HIDDEN)), PRECISION)
    value_bias = tl.load(up_bias + h, mask=h < HIDDEN, other=0.0).to(tl.float32)
    gate_bias = tl.load(up_bias + HIDDEN + h, mask=h < HIDDEN, other=0.0).to(tl.float32)
    sum_value, sum_gate = tl.zeros((MIDDLE, IN), tl.float32), tl.zeros((MIDDLE, IN), tl.float32)
    sum_down = tl.zeros((MIDDLE, OUT), tl.float32)
    sum_value_bias, sum_gate_bias = tl.zeros((MIDDLE,), tl.float32), tl.zeros((MIDDLE,), tl.float32)
    sum_down_bias = tl.zeros((OUT,), tl.float32)
    tiles = tl.cdiv(n_points, POINTS)
    for tile in tl.range(program, tiles * n_samples, tl.num_programs(0), num_stages=1):
        sample = (tile // tiles).to(tl.int64)
        point = tile % tiles * POINTS + tl.arange(0, POINTS)
        fields = load_fields(x + sample * INPUTS * n_points, point, i, n_points, INPUTS)
        by_out = load_fields(g + sample * OUTPUTS * n_points, point, o, n_points, OUTPUTS)
        dtype: tl.constexpr = fields.dtype
        sum_down_bias += tl.sum(by_out.to(tl.float32), 0)
        fields, by_out = rounded(fields, PRECISION), rounded(by_out, PRECISION)
        turned = tl.trans(fields)
        empty = tl.zeros((MIDDLE, POINTS), tl.float32)
        value = dot_rounded(to_value, turned, empty, PRECISION) + value_bias[:, None]
        gate = dot_rounded(to_gate, turned, empty, PRECISION) + gate_bias[:, None]
        by_hidden = dot_rounded(from_out, tl.trans(by_out), empty, PRECISION)
        share = normal(gate)
        activated = gate * share
        # beyond the last point the biases alone are activated: they might not fit float16, and times zero be no number
        hidden = tl.where((point < n_points)[None, :], value * activated, 0.0)
        sum_down = dot_rounded(rounded(hidden.to(dtype), PRECISION), by_out, sum_down, PRECISION)
        slope = share + gate * PEAK * tl.exp(-0.5 * gate * gate)
        by_gate = by_hidden * value * slope
        by_value = by_hidden * activated
        sum_value_bias += tl.sum(by_value, 1)
        sum_gate_bias += tl.sum(by_gate, 1)
        by_value, by_gate = rounded(by_value.to(dtype), PRECISION), rounded(by_gate.to(dtype), PRECISION)
        sum_value = dot_rounded(by_value, fields, sum_value, PRECISION)
        sum_gate = dot_rounded(by_gate, fields, sum_gate, PRECISION)
        by_fields = dot_rounded(tl.trans(by_value), to_value, tl.zeros((POINTS, IN), tl.float32), PRECISION)
        by_fields = dot_rounded(tl.trans(by_gate), to_gate, by_fields, PRECISION)
        at = by_x + sample * INPUTS * n_points + i.to(tl.int64)[None, :] * n_points + point[:, None]
        inside = (point[:, None] < n_points) & (i[None, :] < INPUTS)
        tl.store(at, by_fields.to(by_x.dtype.element_ty), mask=inside)
    sums += program * (2 * HIDDEN * INPUTS + 2 * HIDDEN + HIDDEN * OUTPUTS + OUTPUTS)
    at = h[:, None] * INPUTS + i[None, :]
    inside = (h[:, None] < HIDDEN) & (i[None, :] < INPUTS)
    tl.store(sums + at, sum_value, mask=inside)
    tl.store(sums + HIDDEN * INPUTS + at, sum_gate, mask=inside)
    sums += 2 * HIDDEN * INPUTS
    tl.store(sums + h, sum_value_bias, mask=h < HIDDEN)
    tl.store(sums + HIDDEN + h, sum_gate_bias, mask=h < HIDDEN)
    sums += 2 * HIDDEN
    inside = (h[:, None] < HIDDEN) & (o[None, :] < OUTPUTS)
    tl.store(sums + h[:, None] * OUTPUTS + o[None, :], sum_down, mask=inside)
    tl.store(sums + HIDDEN * OUTPUTS + o, sum_down_bias, mask=o < OUTPUTS)
