"""Triton kernels of the Monarch linear layer's backward pass, beside the products that the forward pass has too.

The gradient of a block of a factor is a sum over all tokens, ``sum_t dy[t, i] x[t, j]``. The tokens are cut into parts,
one program each, whose float32 sums are added up afterwards in a fixed order: results do not change from run to run.
"""

# What a kernel is launched with types it.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, assignment, union-attr"

import torch
import triton
import triton.language as tl
from torch import Tensor

from sciml_monarch.monarch.kernels.backend import DotPrecision, dot_precision
from sciml_monarch.monarch.kernels.device import device_of
from sciml_monarch.monarch.kernels.linear_configs import Plan, Side, Sizes, WeightConfig, sides
from sciml_monarch.monarch.kernels.linear_tiles_triton import columns_of
from sciml_monarch.monarch.kernels.linear_triton import product
from sciml_monarch.monarch.kernels.products_triton import dot

REGROUP_TOKENS = 32  # tokens of a tile that is regrouped
REGROUP_COLUMNS = 1024  # and its columns, about


@triton.jit
def weight_kernel(
    dy_ptr,  # (tokens, ...), row stride dy_row
    x_ptr,  # (tokens, ...), row stride x_row
    dw_ptr,  # (parts, blocks, outputs, inputs), contiguous
    tokens,
    part_tokens,  # tokens of a part, a multiple of TOKENS
    dy_row,
    x_row,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    N_BLOCKS: tl.constexpr,
    N_OUT: tl.constexpr,  # of a block
    N_IN: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Gradient of one block, a tile of it and a part of the tokens a program."""
    n_rows: tl.constexpr = (OUT[2] + ROWS - 1) // ROWS
    n_columns: tl.constexpr = (IN[2] + COLUMNS - 1) // COLUMNS
    n_tiles: tl.constexpr = n_rows * n_columns * N_BLOCKS
    part = tl.program_id(0) // n_tiles
    tile = tl.program_id(0) % n_tiles
    block = tile // (n_rows * n_columns)
    a = tile // n_columns % n_rows * ROWS + tl.arange(0, ROWS)
    b = tile % n_columns * COLUMNS + tl.arange(0, COLUMNS)
    ac, wa, has_a = columns_of(a, block, OUT)
    bc, wb, has_b = columns_of(b, block, IN)
    start = part * part_tokens
    dy_ptr += start.to(tl.int64) * dy_row
    x_ptr += start.to(tl.int64) * x_row
    left = tl.minimum(part_tokens, tokens - start)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for t0 in range(0, left, TOKENS):
        t = t0 + tl.arange(0, TOKENS)
        rows = t.to(tl.int64)[:, None]
        dy = tl.load(dy_ptr + rows * dy_row + ac[None, :], mask=(t < left)[:, None] & has_a[None, :], other=0.0)
        x = tl.load(x_ptr + rows * x_row + bc[None, :], mask=(t < left)[:, None] & has_b[None, :], other=0.0)
        acc = dot(tl.trans(dy), x, acc, PRECISION)
    place = wa[:, None] * N_IN + wb[None, :]
    here = dw_ptr + (part * N_BLOCKS + block).to(tl.int64) * (N_OUT * N_IN) + place
    exists = (a < OUT[2]) & (wa < N_OUT)  # a column that is cut off is there as a weight, with the gradient zero
    if OUT[4] > 0:
        exists = has_a
    tl.store(here, acc.to(dw_ptr.dtype.element_ty), mask=exists[:, None] & (b < N_IN)[None, :])


@triton.jit
def batched_weight_kernel(
    dy_ptr,  # as in weight_kernel
    x_ptr,
    dw_ptr,
    tokens,
    part_tokens,
    dy_row,
    x_row,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    N_BLOCKS: tl.constexpr,
    N_OUT: tl.constexpr,
    N_IN: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Gradients of GROUPS blocks whose neighbouring columns belong to neighbouring blocks."""
    n_rows: tl.constexpr = (OUT[2] + ROWS - 1) // ROWS
    n_columns: tl.constexpr = (IN[2] + COLUMNS - 1) // COLUMNS
    n_groups: tl.constexpr = (N_BLOCKS + GROUPS - 1) // GROUPS
    n_tiles: tl.constexpr = n_rows * n_columns * n_groups
    part = tl.program_id(0) // n_tiles
    tile = tl.program_id(0) % n_tiles
    g = tile % n_groups * GROUPS + tl.arange(0, GROUPS)
    a = tile // n_groups % n_rows * ROWS + tl.arange(0, ROWS)
    b = tile // (n_groups * n_rows) * COLUMNS + tl.arange(0, COLUMNS)
    ac, _, has_a = columns_of(a[None, :], g[:, None], OUT)
    bc, _, has_b = columns_of(b[None, :], g[:, None], IN)
    has_a = (has_a & (g < N_BLOCKS)[:, None])[:, None, :]
    has_b = (has_b & (g < N_BLOCKS)[:, None])[:, None, :]
    start = part * part_tokens
    dy_ptr += start.to(tl.int64) * dy_row
    x_ptr += start.to(tl.int64) * x_row
    left = tl.minimum(part_tokens, tokens - start)
    acc = tl.zeros((GROUPS, ROWS, COLUMNS), tl.float32)
    for t0 in range(0, left, TOKENS):
        t = t0 + tl.arange(0, TOKENS)
        rows = t.to(tl.int64)[None, :, None]
        has_t = (t < left)[None, :, None]
        dy = tl.load(dy_ptr + rows * dy_row + ac[:, None, :], mask=has_t & has_a, other=0.0)
        x = tl.load(x_ptr + rows * x_row + bc[:, None, :], mask=has_t & has_b, other=0.0)
        acc = dot(tl.permute(dy, (0, 2, 1)), x, acc, PRECISION)
    place = g[:, None, None] * (N_OUT * N_IN) + a[None, :, None] * N_IN + b[None, None, :]
    here = dw_ptr + part.to(tl.int64) * (N_BLOCKS * N_OUT * N_IN) + place
    exists = (g < N_BLOCKS)[:, None, None] & (a < N_OUT)[None, :, None] & (b < N_IN)[None, None, :]
    tl.store(here, acc.to(dw_ptr.dtype.element_ty), mask=exists)


@triton.jit
def regroup_kernel(
    y_ptr,  # (tokens, n_out), row stride y_row
    out_ptr,  # (tokens, l, s), contiguous
    sum_ptr,  # (tiles of tokens, n_out), contiguous
    tokens,
    y_row,
    N_OUT: tl.constexpr,
    L: tl.constexpr,
    S: tl.constexpr,
    SUM: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Brings columns ``i * l + block`` into the order of blocks and sums them over a tile of tokens on the way."""
    tile = tl.program_id(0)
    t = tl.arange(0, TOKENS)[:, None, None]
    i = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :, None]
    g = (tl.program_id(2) * GROUPS + tl.arange(0, GROUPS))[None, None, :]
    has_t = tile * TOKENS + t < tokens
    start = tile.to(tl.int64) * TOKENS
    column = i * L + g
    has_y = (g < L) & (column < N_OUT)
    y = tl.load(y_ptr + start * y_row + t * y_row + column, mask=has_t & has_y, other=0.0)
    tl.store(out_ptr + start * (L * S) + t * (L * S) + g * S + i, y, mask=has_t & (g < L) & (i < S))
    if SUM:
        total = tl.sum(y.to(tl.float32), axis=0, keep_dims=True)
        tl.store(sum_ptr + tile.to(tl.int64) * N_OUT + column, total, mask=has_y)


def weight_gradient(
    dy: Tensor, x: Tensor, w: Tensor, outside: Side, inside: Side, config: WeightConfig, precision: DotPrecision
) -> Tensor:
    """Computes the gradient of the blocks of one factor.

    Args:
        dy: Gradients of the outputs, ``(tokens, ...)``, the last axis contiguous.
        x: Inputs, ``(tokens, ...)``, the last axis contiguous.
        w: The factor, ``(blocks, outputs, inputs)``.
        outside: Where blocks write.
        inside: Where blocks read.
        config: Tile sizes.
        precision: How float32 is multiplied.

    Returns:
        The gradient, like ``w``, contiguous.
    """
    n_blocks, n_out, n_in = w.shape
    part_tokens = -(-x.shape[0] // (config.splits * config.tokens)) * config.tokens
    parts = -(-x.shape[0] // part_tokens)
    dw = x.new_empty(parts, *w.shape, dtype=w.dtype if parts == 1 else torch.float32)
    tiles = -(-outside.size // config.rows) * -(-inside.size // config.columns) * -(-n_blocks // config.groups)
    kernel = batched_weight_kernel if config.groups > 1 else weight_kernel
    with device_of(x):
        kernel[(tiles * parts,)](
            dy,
            x,
            dw,
            x.shape[0],
            part_tokens,
            dy.stride(0),
            x.stride(0),
            OUT=tuple(outside),
            IN=tuple(inside),
            N_BLOCKS=n_blocks,
            N_OUT=n_out,
            N_IN=n_in,
            PRECISION=precision,
            ROWS=config.rows,
            COLUMNS=config.columns,
            TOKENS=config.tokens,
            GROUPS=config.groups,
            num_warps=config.warps,
            num_stages=config.stages,
        )
    return dw[0] if parts == 1 else dw.sum(0).to(w.dtype)


def regroup(dy: Tensor, sizes: Sizes, summed: bool) -> tuple[Tensor, Tensor]:
    """Brings the gradient of the output into the order of the second factor's blocks.

    Args:
        dy: ``(tokens, n_out)``, the last axis contiguous.
        sizes: Sizes of the layer.
        summed: Whether the sum over the tokens is wanted as well.

    Returns:
        ``(tokens, l * s)``, with zeros where the output was cut off; and parts of the sum, float32
        ``(parts, n_out)``, without parts if not wanted.
    """
    n_tokens = dy.shape[0]
    groups = min(16, triton.next_power_of_2(sizes.l))
    columns = min(triton.next_power_of_2(sizes.s), max(16, REGROUP_COLUMNS // groups))
    tiles = triton.cdiv(n_tokens, REGROUP_TOKENS)
    out = dy.new_empty(n_tokens, sizes.l * sizes.s)
    sums = dy.new_empty(tiles if summed else 0, sizes.n_out, dtype=torch.float32)
    with device_of(dy):
        regroup_kernel[(tiles, triton.cdiv(sizes.s, columns), triton.cdiv(sizes.l, groups))](
            dy,
            out,
            sums,
            n_tokens,
            dy.stride(0),
            N_OUT=sizes.n_out,
            L=sizes.l,
            S=sizes.s,
            SUM=summed,
            TOKENS=REGROUP_TOKENS,
            COLUMNS=columns,
            GROUPS=groups,
            num_warps=8,
        )
    return out, sums


def backward(
    dy: Tensor, x: Tensor, h: Tensor, w1: Tensor, w2: Tensor, sizes: Sizes, plan: Plan, needs: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Computes the gradients of a layer.

    Args:
        dy: Gradient of the output, ``(tokens, n_out)``, the last axis contiguous.
        x: Inputs, ``(tokens, n_in)``, the last axis contiguous.
        h: Inner vectors, ``(tokens, l * r)``, in the plan's order, contiguous.
        w1: First factor, ``(k, q, p)``, contiguous.
        w2: Second factor, ``(l, s, r)``, contiguous.
        sizes: Sizes of the layer.
        plan: What the forward pass ran with.
        needs: Whether the gradients of ``x``, ``w1``, ``w2`` and the bias are wanted.

    Returns:
        These gradients, ``None`` for one that is not wanted.
    """
    where = sides(sizes, plan.regrouped)
    precision = dot_precision(x.dtype)
    outside, dbias = where.y, None
    if plan.regrouped and sizes.l > 1:
        dy, sums = regroup(dy, sizes, needs[3])
        outside = where.y_regrouped
        dbias = sums.sum(0).to(dy.dtype) if needs[3] else None
    elif needs[3]:
        dbias = dy.sum(0)
    dx = dw1 = dw2 = None
    if needs[2]:
        dw2 = weight_gradient(dy, h, w2, outside, where.second, plan.second_weight, precision)
    if needs[0] or needs[1]:
        dh = torch.empty_like(h)
        product(dy, w2, None, dh, outside, where.second, plan.second_back, precision, transposed=True, reverse=True)
        if needs[0]:
            dx = x.new_empty(x.shape[0], sizes.n_in)
            product(dh, w1, None, dx, where.first, where.x, plan.first_back, precision, transposed=True)
        if needs[1]:
            dw1 = weight_gradient(dh, x, w1, where.first, where.x, plan.first_weight, precision)
    return dx, dw1, dw2, dbias
