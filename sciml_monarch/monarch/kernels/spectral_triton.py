"""Launches the spectral kernels."""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from sciml_monarch.monarch.kernels import spectral_products as products
from sciml_monarch.monarch.kernels.backend import dot_precision
from sciml_monarch.monarch.kernels.device import device_of
from sciml_monarch.monarch.kernels.spectral_configs import Config, Kernel, Problem, choose, tiles
from sciml_monarch.monarch.kernels.spectral_kernels_triton import narrow_kernel, weigh_kernel, widen_kernel
from sciml_monarch.monarch.kernels.spectral_products import ThinProducts, joined_in_place

N_PROGRAMS = 264  # that share rows to be summed: two for each multiprocessor of an H200; on others only speed differs


class End(NamedTuple):
    """The end of a Fourier layer.

    Attributes:
        skip: To add, of as many numbers as the result.
        bias: ``(channels,)`` to add, a number to ``rows_of_channel`` rows, then the next, over and over.
        rows_of_channel: Rows of a channel of a sample.
        gelu: Whether to apply GELU.
    """

    skip: Tensor | None
    bias: Tensor | None
    rows_of_channel: int
    gelu: bool


def problem(kernel: Kernel, like: Tensor, columns: int, modes: int) -> Problem:
    """Describes what is to be computed on numbers of a dtype."""
    return Problem(kernel, columns, modes, like.element_size(), dot_precision(like.dtype))


def narrow(x: Tensor, matrix: Tensor, config: Config | None = None) -> Tensor:
    """Computes ``matrix x^T``.

    Args:
        x: ``(groups, rows, columns)``, not empty.
        matrix: ``(modes, columns)``, of the dtype of ``x``.
        config: Tiles; by default what :func:`choose` takes.

    Returns:
        ``(groups, modes, rows)``.
    """
    x, matrix = x.contiguous(), matrix.contiguous()
    groups, rows, columns = x.shape
    modes = matrix.shape[0]
    task = problem("narrow", x, columns, modes)
    c, t = config or choose(task), tiles(modes)
    out = x.new_empty(groups, modes, rows)
    grid = (triton.cdiv(rows, c.rows), triton.cdiv(modes, t.main + t.rest), groups)
    with device_of(x):
        narrow_kernel[grid](
            x,
            matrix,
            out,
            rows,
            COLUMNS=columns,
            MODES=modes,
            PRECISION=task.precision,
            ROWS=c.rows,
            DEPTH=c.cols,
            MAIN=t.main,
            REST=t.rest,
            STAGES=c.stages,
            num_warps=c.warps,
        )
    return out


def widen(
    y: Tensor, matrix: Tensor, end: End | None = None, config: Config | None = None
) -> tuple[Tensor, Tensor | None]:
    """Computes ``y^T matrix^T`` and applies the end of a Fourier layer.

    Args:
        y: ``(groups, modes, rows)``, not empty.
        matrix: ``(columns, modes)``, of the dtype of ``y``.
        end: What to add and to apply.
        config: Tiles; by default what :func:`choose` takes.

    Returns:
        ``(groups, rows, columns)`` and, with GELU, what went into it.
    """
    end = end or End(None, None, 1, False)
    y, matrix = y.contiguous(), matrix.contiguous()
    groups, modes, rows = y.shape
    columns = matrix.shape[0]
    task = problem("widen", y, columns, modes)
    c = config or choose(task)
    out = y.new_empty(groups, rows, columns)
    before = torch.empty_like(out) if end.gelu else None
    grid = (triton.cdiv(rows, c.rows), triton.cdiv(columns, c.cols), groups)
    with device_of(y):
        widen_kernel[grid](
            y,
            matrix,
            None if end.skip is None else end.skip.contiguous(),
            None if end.bias is None else end.bias.contiguous(),
            out,
            before,
            rows,
            end.rows_of_channel,
            1 if end.bias is None else len(end.bias),
            COLUMNS=columns,
            MODES=modes,
            GELU=end.gelu,
            PRECISION=task.precision,
            ROWS=c.rows,
            COLS=c.cols,
            DEPTH=c.depth,
            STAGES=c.stages,
            num_warps=c.warps,
        )
    return out, before


def weigh(y: Tensor, x: Tensor, config: Config | None = None) -> Tensor:
    """Computes ``y x``, summed over groups.

    Args:
        y: ``(groups, modes, rows)``, not empty.
        x: ``(groups, rows, columns)``, of the dtype of ``y``.
        config: Tiles; by default what :func:`choose` takes.

    Returns:
        ``(modes, columns)`` in float32.
    """
    y, x = y.contiguous(), x.contiguous()
    groups, modes, rows = y.shape
    columns = x.shape[-1]
    task = problem("weigh", y, columns, modes)
    c, t = config or choose(task), tiles(modes)
    grid = [triton.cdiv(columns, c.cols), triton.cdiv(modes, t.main + t.rest)]
    n_splits = max(1, min(groups * triton.cdiv(rows, c.rows), N_PROGRAMS // (grid[0] * grid[1])))
    partial = torch.empty(n_splits, modes, columns, dtype=torch.float32, device=y.device)
    with device_of(y):
        weigh_kernel[(*grid, n_splits)](
            y,
            x,
            partial,
            rows,
            groups,
            COLUMNS=columns,
            MODES=modes,
            PRECISION=task.precision,
            ROWS=c.rows,
            COLS=c.cols,
            MAIN=t.main,
            REST=t.rest,
            STAGES=c.stages,
            num_warps=c.warps,
        )
    return partial.sum(0)


def turn(y: Tensor, planes: Tensor, conjugate: bool) -> Tensor:
    """Complex product of ``(2, m, *rows)`` and planes ``(2, n, m)``, or their conjugate: ``(2, rows, n)``."""
    re, im = y
    terms = torch.stack([re, im, im, -re] if conjugate else [re, -im, im, re])
    return widen(terms.view(2, 2 * planes.shape[2], -1), torch.cat([*planes], 1))[0]  # (plane, (plane, m), ..)


def weigh_planes(g: Tensor, z: Tensor, conjugate: bool) -> Tensor:
    """Gradient ``(2, m, n)`` of planes, from that of a product with them, ``(2, m, rows)``, and ``(2, rows, n)``."""
    re, im = g
    terms = torch.stack([re, -im, im, re] if conjugate else [re, im, im, -re])
    return weigh(terms.view(2, 2 * g.shape[1], -1), z).view(2, g.shape[1], -1)


KERNELS = ThinProducts(narrow, lambda y, matrix: widen(y, matrix)[0], weigh, turn, weigh_planes, joined_in_place)


def synthesis(
    modes: Tensor, matrices: Sequence[Tensor], adjoint: bool, skip: Tensor | None, bias: Tensor | None, gelu: bool
) -> tuple[Tensor, Tensor | None]:
    """The synthesis and the end of a Fourier layer, which is part of the last product.

    Args:
        modes: ``(F, 2, b, c)``, not empty.
        matrices: Those of a synthesis, of the dtype of ``modes``; or of the analysis whose transpose it is.
        adjoint: Whether they are an analysis'.
        skip: Fields ``(b, c, *grid)`` to add.
        bias: ``(c,)`` to add.
        gelu: Whether to apply GELU.

    Returns:
        The fields ``(b, c, *grid)`` and, with GELU, what went into it.
    """
    y, grid = products.synthesis_but_last(modes, matrices, KERNELS, adjoint)
    shape = (*modes.shape[2:], *grid)
    out, before = widen(y[None], matrices[-1].mT if adjoint else matrices[-1], End(skip, bias, prod(grid[:-1]), gelu))
    return out.view(shape), None if before is None else before.view(shape)
