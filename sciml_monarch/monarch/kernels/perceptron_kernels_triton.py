"""Linear map, GELU, linear map of the channels at every point; hidden channels stay on the chip.

What is multiplied next, the hidden channels, lies in registers as an operand does: points are the rows in the forward
pass, and the columns in the backward pass, whose sums over points then take few registers. With one output, as a
network of one field has, products with its weights are sums of registers.
"""

# What a kernel is launched with types it.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from sciml_monarch.monarch.kernels.pointwise_tiles_triton import PEAK, load_fields, load_weights, normal
from sciml_monarch.monarch.kernels.products_triton import dot


@triton.jit
def _hidden(fields, w1, b1, PRECISION: tl.constexpr):
    """Hidden channels ``(points, hidden)`` before the activation."""
    acc = tl.zeros((fields.shape[0], w1.shape[0]), tl.float32)
    return dot(fields, tl.trans(w1), acc, PRECISION) + b1[None, :]


@triton.jit
def perceptron_kernel(
    x,
    w1,
    b1,
    w2,
    b2,
    out,
    n_points,
    INPUTS: tl.constexpr,
    HIDDEN: tl.constexpr,
    OUTPUTS: tl.constexpr,
    PRECISION: tl.constexpr,
    POINTS: tl.constexpr,
    IN: tl.constexpr,
    MIDDLE: tl.constexpr,
    OUT: tl.constexpr,
):
    """Writes ``(samples, OUTPUTS, n_points)`` of ``(samples, INPUTS, n_points)``. Grid: samples times point tiles.

    ``IN``, ``MIDDLE`` and ``OUT`` are the numbers of channels, padded.
    """
    tiles = tl.cdiv(n_points, POINTS)
    point = tl.program_id(0) % tiles * POINTS + tl.arange(0, POINTS)
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    i, h, o = tl.arange(0, IN), tl.arange(0, MIDDLE), tl.arange(0, OUT)
    fields = load_fields(x + sample * INPUTS * n_points, point, i, n_points, INPUTS)
    first = load_weights(w1, h, i, HIDDEN, INPUTS)
    before = _hidden(fields, first, tl.load(b1 + h, mask=h < HIDDEN, other=0.0).to(tl.float32), PRECISION)
    activated = before * normal(before)
    dtype: tl.constexpr = out.dtype.element_ty
    out += sample * OUTPUTS * n_points
    if OUTPUTS == 1:
        row = tl.load(w2 + h, mask=h < HIDDEN, other=0.0).to(tl.float32)
        found = tl.sum(activated * row[None, :], 1) + tl.load(b2).to(tl.float32)
        tl.store(out + point, found.to(dtype), mask=point < n_points)
    else:
        last = load_weights(w2, o, h, OUTPUTS, HIDDEN)
        acc = tl.zeros((POINTS, OUT), tl.float32)
        found = dot(activated.to(last.dtype), tl.trans(last), acc, PRECISION)
        found += tl.load(b2 + o, mask=o < OUTPUTS, other=0.0).to(tl.float32)[None, :]
        inside = (point[:, None] < n_points) & (o[None, :] < OUTPUTS)
        tl.store(out + o.to(tl.int64)[None, :] * n_points + point[:, None], found.to(dtype), mask=inside)


@triton.jit
def perceptron_gradients_kernel(
    g,
    x,
    w1,
    w1_turned,
    b1,
    w2,
    by_x,
    by_w1,
    by_b1,
    by_w2,
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
    """Writes the gradient by the input, and partial sums of those by weights and the first bias.

    From that of the output, ``(samples, OUTPUTS, n_points)``. ``w1_turned`` is ``(INPUTS, HIDDEN)``. Partial sums are
    ``(programs, HIDDEN, INPUTS)``, ``(programs, HIDDEN)`` and ``(programs, HIDDEN, OUTPUTS)``. Grid: programs.
    """
    program = tl.program_id(0)
    i, h, o = tl.arange(0, IN), tl.arange(0, MIDDLE), tl.arange(0, OUT)
    bias = tl.load(b1 + h, mask=h < HIDDEN, other=0.0).to(tl.float32)
    first = load_weights(w1, h, i, HIDDEN, INPUTS)
    turned = tl.trans(load_weights(w1_turned, i, h, INPUTS, HIDDEN))
    sum_w1 = tl.zeros((MIDDLE, IN), tl.float32)
    sum_b1 = tl.zeros((MIDDLE,), tl.float32)
    if OUTPUTS == 1:
        row = tl.load(w2 + h, mask=h < HIDDEN, other=0.0).to(tl.float32)
        sum_row = tl.zeros((MIDDLE,), tl.float32)
    else:
        last = tl.trans(load_weights(w2, o, h, OUTPUTS, HIDDEN))
        sum_w2 = tl.zeros((MIDDLE, OUT), tl.float32)
    tiles = tl.cdiv(n_points, POINTS)
    for tile in tl.range(program, tiles * n_samples, tl.num_programs(0), num_stages=1):
        sample = (tile // tiles).to(tl.int64)
        point = tile % tiles * POINTS + tl.arange(0, POINTS)
        fields = load_fields(x + sample * INPUTS * n_points, point, i, n_points, INPUTS)
        acc = tl.zeros((MIDDLE, POINTS), tl.float32)
        before = dot(first, tl.trans(fields), acc, PRECISION) + bias[:, None]
        share = normal(before)
        slope = share + before * PEAK * tl.exp(-0.5 * before * before)
        gradient = g + sample * OUTPUTS * n_points
        if OUTPUTS == 1:
            by_out = tl.load(gradient + point, mask=point < n_points, other=0.0).to(tl.float32)
            sum_row += tl.sum(before * share * by_out[None, :], 1)
            by_before = slope * by_out[None, :] * row[:, None]
        else:
            by_out = load_fields(gradient, point, o, n_points, OUTPUTS)
            sum_w2 = dot((before * share).to(by_out.dtype), by_out, sum_w2, PRECISION)
            acc = tl.zeros((MIDDLE, POINTS), tl.float32)
            by_before = slope * dot(last, tl.trans(by_out), acc, PRECISION)
        sum_b1 += tl.sum(by_before, 1)
        by_before = by_before.to(fields.dtype)
        sum_w1 = dot(by_before, fields, sum_w1, PRECISION)
        acc = tl.zeros((POINTS, IN), tl.float32)
        by_fields = dot(tl.trans(by_before), turned, acc, PRECISION)
        at = by_x + sample * INPUTS * n_points + i.to(tl.int64)[None, :] * n_points + point[:, None]
        inside = (point[:, None] < n_points) & (i[None, :] < INPUTS)
        tl.store(at, by_fields.to(by_x.dtype.element_ty), mask=inside)
    inside = (h[:, None] < HIDDEN) & (i[None, :] < INPUTS)
    tl.store(by_w1 + program * HIDDEN * INPUTS + h[:, None] * INPUTS + i[None, :], sum_w1, mask=inside)
    tl.store(by_b1 + program * HIDDEN + h, sum_b1, mask=h < HIDDEN)
    by_w2 += program * HIDDEN * OUTPUTS
    if OUTPUTS == 1:
        tl.store(by_w2 + h, sum_row, mask=h < HIDDEN)
    else:
        inside = (h[:, None] < HIDDEN) & (o[None, :] < OUTPUTS)
        tl.store(by_w2 + h[:, None] * OUTPUTS + o[None, :], sum_w2, mask=inside)
