"""Launches the Triton kernels of a Monarch transform; :mod:`.transform` decides when."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from sciml_monarch.monarch.kernels.backend import dot_precision
from sciml_monarch.monarch.kernels.device import device_of
from sciml_monarch.monarch.kernels.transform_configs import (
    FactorTile,
    GradientTile,
    StagesTile,
    Tile,
    choose,
    choose_gradient,
    padded,
)
from sciml_monarch.monarch.kernels.transform_kernels_triton import factor_kernel, gradient_kernel, stages_kernel

# With so many neighbours of a line beside each other in memory, threads run across lines and not along them.
INNER_FROM = 8


class Side(NamedTuple):
    """Where a factor's entries lie on a line: ``block * step + entry * entry_step``, or ``place`` of that."""

    step: int
    entry_step: int
    place: Tensor | None = None


class Sides(NamedTuple):
    """The two sides of each factor."""

    input: Side
    inner_first: Side
    inner_second: Side
    output: Side


def sides(w1: Tensor, place_in: Tensor | None, place_out: Tensor | None) -> Sides:
    """The layout of lines before, between and behind factors ``(k, q, p)`` and ``(q, s, k)``."""
    _, q, p = w1.shape[:3]
    return Sides(Side(p, 1, place_in), Side(q, 1), Side(1, q), Side(1, q, place_out))


def apply(
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    place_in: Tensor | None,
    place_out: Tensor | None,
    out_planes: int,
    adjoint: bool,
    tile: Tile | None = None,
) -> Tensor:
    """Applies both factors, or the adjoint.

    Args:
        x: Contiguous float32 lines, ``(outer, n, inner, planes)``; one plane is real, two are pairs.
        w1: ``(k, q, p)`` or as pairs ``(k, q, p, 2)``.
        w2: ``(q, s, k)`` or as pairs.
        place_in: Where the factors' input ``i`` lies on a line of the input side, ``(k * p,)``; ``None``: at ``i``.
        place_out: Where the factors' output ``i`` lies on the output side, ``(s * q,)``; ``None``: at ``i``.
        out_planes: Planes of the result, of which one takes the real part.
        adjoint: Whether to apply the conjugate transpose.
        tile: How programs are cut; chosen by shape if ``None``.

    Returns:
        ``(outer, n', inner, out_planes)``.
    """
    n_lines, inner = x.shape[0] * x.shape[2], x.shape[2]
    tile = tile or choose(n_lines, w1.shape[0], w1.shape[1], inner, dot_precision(torch.float32))
    if isinstance(tile, StagesTile):
        return _both_factors(x, w1, w2, sides(w1, place_in, place_out), out_planes, adjoint, tile)
    return apply_keeping(x, w1, w2, place_in, place_out, out_planes, adjoint, tile)[0]


def apply_keeping(
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    place_in: Tensor | None,
    place_out: Tensor | None,
    out_planes: int,
    adjoint: bool,
    tile: FactorTile | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`apply`, one factor after the other, and what is between them, ``(outer, k * q, inner, planes)``."""
    layout = sides(w1, place_in, place_out)
    h = first_factor(x, w1, w2, place_in, place_out, adjoint, tile)
    if adjoint:
        return _one_factor(h, w1, layout.inner_first, layout.input, out_planes, True, tile), h
    return _one_factor(h, w2, layout.inner_second, layout.output, out_planes, False, tile), h


def first_factor(
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    place_in: Tensor | None,
    place_out: Tensor | None,
    adjoint: bool,
    tile: FactorTile | None = None,
) -> Tensor:
    """The first half of :func:`apply`: ``(outer, k * q, inner, planes)``."""
    layout = sides(w1, place_in, place_out)
    planes = 2 if w1.ndim == 4 else x.shape[3]
    if adjoint:
        return _one_factor(x, w2, layout.output, layout.inner_second, planes, True, tile)
    return _one_factor(x, w1, layout.input, layout.inner_first, planes, False, tile)


def gradients(
    u: Tensor,
    h: Tensor,
    v: Tensor,
    v_inner: Tensor,
    w1: Tensor,
    w2: Tensor,
    place_in: Tensor | None,
    place_out: Tensor | None,
    tile: GradientTile | None = None,
) -> tuple[Tensor, Tensor]:
    """Sums the gradients of the factors over all lines.

    Args:
        u: Lines on the input side, ``(outer, k * p, inner, planes)``.
        h: What the first factor made of them, ``(outer, k * q, inner, planes)``.
        v: Gradients on the output side, ``(outer, s * q, inner, planes)``.
        v_inner: What the adjoint of the second factor made of them, ``(outer, k * q, inner, planes)``.
        w1: First factor; its shape counts.
        w2: Second factor; its shape counts.
        place_in: As in :func:`apply`.
        place_out: As in :func:`apply`.
        tile: How programs are cut; chosen by shape if ``None``.

    Returns:
        Gradients of ``w1`` and ``w2``.
    """
    layout = sides(w1, place_in, place_out)
    return (
        _gradient(v_inner, layout.inner_first, u, layout.input, w1, tile),
        _gradient(v, layout.output, h, layout.inner_second, w2, tile),
    )


def _both_factors(
    x: Tensor, w1: Tensor, w2: Tensor, layout: Sides, out_planes: int, adjoint: bool, tile: StagesTile
) -> Tensor:
    k, q, p = w1.shape[:3]
    s = w2.shape[1]
    a, b, c, d = (q, s, k, p) if adjoint else (k, p, q, s)
    source, target = (layout.output, layout.input) if adjoint else (layout.input, layout.output)
    first, second = (w2, w1) if adjoint else (w1, w2)
    inner, n_lines = x.shape[2], x.shape[0] * x.shape[2]
    y = x.new_empty(x.shape[0], c * d, inner, out_planes)
    if n_lines:
        with device_of(x):
            stages_kernel[(triton.cdiv(n_lines, tile.lines),)](
                x, first, second, _pointer(source, x), _pointer(target, x), y, n_lines, inner, a, b, c, d,
                source.step, source.entry_step, target.step, target.entry_step,
                x.shape[3] == 2, w1.ndim == 4, out_planes == 2, source.place is not None, target.place is not None,
                adjoint, inner >= INNER_FROM, dot_precision(torch.float32),
                padded(a), padded(c), tile.lines, min(tile.summed, padded(b)), min(tile.returned, padded(d)),
                num_warps=tile.num_warps, num_stages=tile.num_stages,
            )  # fmt: skip
    return y


def _one_factor(
    x: Tensor, w: Tensor, source: Side, target: Side, out_planes: int, adjoint: bool, tile: FactorTile | None
) -> Tensor:
    n_blocks, rows, columns = w.shape[:3]
    n_summed, n_returned = (rows, columns) if adjoint else (columns, rows)
    inner, n_lines = x.shape[2], x.shape[0] * x.shape[2]
    tile = tile or FactorTile.choose(n_blocks, n_summed, n_returned)
    returned = min(tile.returned, padded(n_returned))
    y = x.new_empty(x.shape[0], n_blocks * n_returned, inner, out_planes)
    if n_lines:
        grid = triton.cdiv(n_lines, tile.lines), triton.cdiv(n_blocks, tile.blocks), triton.cdiv(n_returned, returned)
        with device_of(x):
            factor_kernel[grid](
                x, w, _pointer(source, x), _pointer(target, x), y, n_lines, inner, n_blocks, n_summed, n_returned,
                source.step, source.entry_step, target.step, target.entry_step,
                x.shape[3] == 2, w.ndim == 4, out_planes == 2, source.place is not None, target.place is not None,
                adjoint, inner >= INNER_FROM, dot_precision(torch.float32),
                tile.blocks, tile.lines, min(tile.summed, padded(n_summed)), returned,
                num_warps=tile.num_warps, num_stages=tile.num_stages,
            )  # fmt: skip
    return y


def _gradient(
    left: Tensor, left_side: Side, right: Tensor, right_side: Side, w: Tensor, tile: GradientTile | None
) -> Tensor:
    n_blocks, n_rows, n_columns = w.shape[:3]
    inner, n_lines = left.shape[2], left.shape[0] * left.shape[2]
    if not n_lines:
        return torch.zeros_like(w)
    tile = tile or choose_gradient(n_lines, n_blocks, n_rows, n_columns)
    rows, columns = min(tile.entries, padded(n_rows)), min(tile.entries, padded(n_columns))
    n_programs = max(1, min(tile.splits, triton.cdiv(n_lines, tile.lines)))
    per_program = triton.cdiv(triton.cdiv(n_lines, n_programs), tile.lines) * tile.lines
    n_programs = triton.cdiv(n_lines, per_program)
    sums = w.new_empty(n_programs, *w.shape)
    grid = triton.cdiv(n_rows, rows) * triton.cdiv(n_columns, columns), n_programs, triton.cdiv(n_blocks, tile.blocks)
    with device_of(left):
        gradient_kernel[grid](
            left, right, _pointer(left_side, left), _pointer(right_side, left), sums, n_lines, per_program, inner,
            n_blocks, n_rows, n_columns,
            left_side.step, left_side.entry_step, right_side.step, right_side.entry_step,
            left.shape[3] == 2, right.shape[3] == 2, w.ndim == 4,
            left_side.place is not None, right_side.place is not None, inner >= INNER_FROM,
            dot_precision(torch.float32), rows, columns, tile.blocks, tile.lines,
            num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    return sums.sum(0)


def _pointer(side: Side, otherwise: Tensor) -> Tensor:
    """The table of places; where there is none, any pointer does, since it is not read."""
    return otherwise if side.place is None else side.place
