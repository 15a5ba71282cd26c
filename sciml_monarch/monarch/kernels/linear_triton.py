"""Launches of the Monarch linear layer's products, one factor a kernel or both in one."""

# What a kernel is launched with types it.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, assignment, union-attr"

import triton
import triton.language as tl
from torch import Tensor

from sciml_monarch.monarch.kernels.backend import DotPrecision, dot_precision
from sciml_monarch.monarch.kernels.device import device_of
from sciml_monarch.monarch.kernels.linear_configs import Plan, ProductConfig, Side, Sides, Sizes, sides
from sciml_monarch.monarch.kernels.linear_tiles_triton import batched_stream, product_stream, product_tile


@triton.jit
def product_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    y_ptr,
    tokens,
    x_row,
    y_row,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    W: tl.constexpr,
    N_BLOCKS: tl.constexpr,
    BIAS: tl.constexpr,
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUPS: tl.constexpr,
    BATCHED: tl.constexpr,
    RESIDENT: tl.constexpr,
):
    """One block-diagonal product."""
    parts: tl.constexpr = (OUT[2] + COLUMNS - 1) // COLUMNS * ((N_BLOCKS + GROUPS - 1) // GROUPS)
    # programs of the same tokens follow each other, so that they find them in the cache
    part = tl.program_id(0) % parts
    first = tl.program_id(0) // parts
    step = tl.num_programs(0) // parts
    n_tiles = tl.cdiv(tokens, TOKENS)
    if BATCHED:
        batched_stream(
            x_ptr, w_ptr, bias_ptr, y_ptr, part, first, n_tiles, step, tokens, x_row, y_row,
            IN, OUT, W, N_BLOCKS, BIAS, REVERSE, PRECISION, TOKENS, COLUMNS, DEPTH, GROUPS, RESIDENT,
        )  # fmt: skip
    elif RESIDENT:
        product_stream(
            x_ptr, w_ptr, bias_ptr, y_ptr, part, first, step, tokens, x_row, y_row,
            IN, OUT, W, N_BLOCKS, BIAS, REVERSE, PRECISION, TOKENS, COLUMNS, DEPTH, GROUPS,
        )  # fmt: skip
    else:
        tile = n_tiles - 1 - first if REVERSE else first
        product_tile(
            x_ptr, w_ptr, bias_ptr, y_ptr, tile, part, tokens, x_row, y_row,
            IN, OUT, W, N_BLOCKS, BIAS, PRECISION, TOKENS, COLUMNS, DEPTH, GROUPS,
        )  # fmt: skip


@triton.jit
def fused_kernel(
    x_ptr,
    w1_ptr,
    w2_ptr,
    bias_ptr,
    h_ptr,
    y_ptr,
    tokens,
    x_row,
    h_row,
    y_row,
    X: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    Y: tl.constexpr,
    W1: tl.constexpr,
    W2: tl.constexpr,
    N_FIRST: tl.constexpr,
    N_SECOND: tl.constexpr,
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS_1: tl.constexpr,
    DEPTH_1: tl.constexpr,
    TOKENS_2: tl.constexpr,
    COLUMNS_2: tl.constexpr,
    DEPTH_2: tl.constexpr,
    GROUPS_2: tl.constexpr,
    BATCHED: tl.constexpr,
    RESIDENT: tl.constexpr,
):
    """Both products of a tile of tokens: the inner vectors are written for the backward pass and read from the cache.

    The weights are read anew for every tile.
    """
    tile = tl.program_id(0)
    for part in range((FIRST[2] + COLUMNS_1 - 1) // COLUMNS_1 * N_FIRST):
        product_tile(
            x_ptr, w1_ptr, bias_ptr, h_ptr, tile, part, tokens, x_row, h_row,
            X, FIRST, W1, N_FIRST, False, PRECISION, TOKENS, COLUMNS_1, DEPTH_1, 1,
        )  # fmt: skip
    tl.debug_barrier()  # all threads see what all have written
    for part in range((Y[2] + COLUMNS_2 - 1) // COLUMNS_2 * ((N_SECOND + GROUPS_2 - 1) // GROUPS_2)):
        if BATCHED:
            first = tile * (TOKENS // TOKENS_2)
            last = tl.minimum(first + TOKENS // TOKENS_2, tl.cdiv(tokens, TOKENS_2))
            batched_stream(
                h_ptr, w2_ptr, bias_ptr, y_ptr, part, first, last, 1, tokens, h_row, y_row,
                SECOND, Y, W2, N_SECOND, BIAS, False, PRECISION, TOKENS_2, COLUMNS_2, DEPTH_2, GROUPS_2, RESIDENT,
            )  # fmt: skip
        else:
            product_tile(
                h_ptr, w2_ptr, bias_ptr, y_ptr, tile, part, tokens, h_row, y_row,
                SECOND, Y, W2, N_SECOND, BIAS, PRECISION, TOKENS, COLUMNS_2, DEPTH_2, GROUPS_2,
            )  # fmt: skip


def product(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    y: Tensor,
    inside: Side,
    outside: Side,
    config: ProductConfig,
    precision: DotPrecision,
    transposed: bool = False,
    reverse: bool = False,
) -> None:
    """Writes one block-diagonal product of every row of ``x`` into ``y``.

    Args:
        x: Inputs, ``(tokens, ...)``, the last axis contiguous.
        w: Blocks, ``(blocks, outputs, inputs)``, contiguous; ``(blocks, inputs, outputs)`` if ``transposed``.
        bias: Added to the outputs by their columns, contiguous, or ``None``.
        y: Outputs, ``(tokens, ...)``, the last axis contiguous; every column is written.
        inside: Where blocks read.
        outside: Where blocks write.
        config: Tile sizes.
        precision: How float32 is multiplied.
        transposed: Whether the blocks are transposed.
        reverse: Whether the last tokens come first: what the product before wrote last is still in the cache.
    """
    n_blocks = w.shape[0]
    parts = -(-outside.size // config.columns) * -(-n_blocks // config.groups)
    n_tiles = -(-x.shape[0] // config.tokens)
    streams = n_tiles
    if config.programs:
        streams = min(n_tiles, max(1, config.programs // parts))
    strides = (w.stride(0), w.stride(2), w.stride(1)) if transposed else w.stride()
    with device_of(x):
        product_kernel[(parts * streams,)](
            x,
            w,
            x if bias is None else bias,
            y,
            x.shape[0],
            x.stride(0),
            y.stride(0),
            IN=tuple(inside),
            OUT=tuple(outside),
            W=tuple(strides),
            N_BLOCKS=n_blocks,
            BIAS=bias is not None,
            REVERSE=reverse,
            PRECISION=precision,
            TOKENS=config.tokens,
            COLUMNS=config.columns,
            DEPTH=config.depth,
            GROUPS=config.groups,
            BATCHED=bool(config.batched),
            RESIDENT=bool(config.programs),
            num_warps=config.warps,
            num_stages=config.stages,
        )


def forward(x: Tensor, w1: Tensor, w2: Tensor, bias: Tensor | None, sizes: Sizes, plan: Plan) -> tuple[Tensor, Tensor]:
    """Computes ``M x + bias``.

    Args:
        x: Inputs, ``(tokens, n_in)``, the last axis contiguous.
        w1: First factor, ``(k, q, p)``, contiguous.
        w2: Second factor, ``(l, s, r)``, contiguous.
        bias: ``(n_out,)``, contiguous, or ``None``.
        sizes: Sizes of the layer.
        plan: Tile sizes, and the order of the inner vector.

    Returns:
        The output ``(tokens, n_out)`` and the inner vectors ``(tokens, l * r)`` in the plan's order.
    """
    h = x.new_empty(x.shape[0], sizes.l * sizes.r)
    y = x.new_empty(x.shape[0], sizes.n_out)
    where = sides(sizes, plan.regrouped)
    precision = dot_precision(x.dtype)
    if plan.fused:
        _fused(x, w1, w2, bias, h, y, where, plan, precision)
        return y, h
    product(x, w1, None, h, where.x, where.first, plan.first, precision)
    product(h, w2, bias, y, where.second, where.y, plan.second, precision, reverse=True)
    return y, h


def _fused(
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    bias: Tensor | None,
    h: Tensor,
    y: Tensor,
    where: Sides,
    plan: Plan,
    precision: DotPrecision,
) -> None:
    first, second = plan.first, plan.second
    with device_of(x):
        fused_kernel[(-(-x.shape[0] // plan.fused),)](
            x,
            w1,
            w2,
            x if bias is None else bias,
            h,
            y,
            x.shape[0],
            x.stride(0),
            h.stride(0),
            y.stride(0),
            X=tuple(where.x),
            FIRST=tuple(where.first),
            SECOND=tuple(where.second),
            Y=tuple(where.y),
            W1=w1.stride(),
            W2=w2.stride(),
            N_FIRST=w1.shape[0],
            N_SECOND=w2.shape[0],
            BIAS=bias is not None,
            PRECISION=precision,
            TOKENS=plan.fused,
            COLUMNS_1=first.columns,
            DEPTH_1=first.depth,
            TOKENS_2=min(second.tokens, plan.fused),
            COLUMNS_2=second.columns,
            DEPTH_2=second.depth,
            GROUPS_2=second.groups,
            BATCHED=bool(second.batched),
            RESIDENT=bool(second.programs),
            num_warps=second.warps,
            num_stages=second.stages,
        )
