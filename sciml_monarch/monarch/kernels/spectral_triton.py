"""Launches the spectral kernels."""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from sciml_monarch.monarch.kernels import spectral_products
from sciml_monarch.monarch.kernels.backend import backend, dot_precision
from sciml_monarch.monarch.kernels.device import device_of
from sciml_monarch.monarch.kernels.products_triton import round_kernel
from sciml_monarch.monarch.kernels.spectral_configs import Config, Kernel, Problem, choose, plane_tile, tiles
from sciml_monarch.monarch.kernels.spectral_kernels_triton import narrow_kernel, weigh_kernel, widen_kernel
from sciml_monarch.monarch.kernels.spectral_planes_triton import (
    narrow_planes_kernel,
    turn_kernel,
    weigh_planes_kernel,
)
from sciml_monarch.monarch.kernels.spectral_products import AT_ONCE, ThinProducts

LARGE = 2**21  # numbers of an operand
ROUND_FIRST = 2**23  # numbers that are narrowed: a kernel more, which rounds the matrix, is not noticed
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
    """Describes what is to be computed on numbers like those that are narrowed, widened or weighed."""
    precision = dot_precision(like.dtype)
    if precision == "tf32" and kernel in ("narrow", "narrow_planes") and like.numel() >= ROUND_FIRST:
        precision = "tf32_left"
    return Problem(kernel, columns, modes, like.element_size(), precision)


def round_to_tf32(matrix: Tensor) -> Tensor:
    """Computes the nearest TF32 numbers of a contiguous float32 matrix, in float32."""
    out, n, block = torch.empty_like(matrix), matrix.numel(), 1024
    with device_of(matrix):
        round_kernel[(triton.cdiv(n, block),)](matrix, out, n, BLOCK=block)
    return out


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
    if task.precision == "tf32_left":
        matrix = round_to_tf32(matrix)
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


def narrow_planes(
    z: Tensor, planes: Tensor, conjugate: bool, inner: int | None = None, config: Config | None = None
) -> Tensor:
    """Computes the complex product of planes, or of their conjugate, with rows.

    Args:
        z: ``(2, rows, n)``, not empty.
        planes: ``(2, m, n)``, of the dtype of ``z``.
        conjugate: Whether to take the conjugate of ``planes``.
        inner: Numbers after which the other plane follows, a divisor of ``rows``; ``None``: all.
        config: Tiles; by default what :func:`choose` takes.

    Returns:
        ``(2, m, rows)``, or ``(m rows / inner, 2, inner)``.
    """
    z, planes = z.contiguous(), planes.contiguous()
    (_, rows, columns), modes = z.shape, planes.shape[1]
    task = problem("narrow_planes", z, columns, modes)
    c, main = config or choose(task), plane_tile(modes)
    if task.precision == "tf32_left":
        planes = round_to_tf32(planes)
    out = z.new_empty((2, modes, rows) if inner is None else (modes * rows // inner, 2, inner))
    with device_of(z):
        narrow_planes_kernel[(triton.cdiv(rows, c.rows), triton.cdiv(modes, main))](
            z,
            planes,
            out,
            rows,
            COLUMNS=columns,
            MODES=modes,
            INNER=inner or 0,
            CONJUGATE=conjugate,
            PRECISION=task.precision,
            ROWS=c.rows,
            DEPTH=c.cols,
            MAIN=main,
            STAGES=c.stages,
            num_warps=c.warps,
        )
    return out


def turn(y: Tensor, planes: Tensor, conjugate: bool, config: Config | None = None) -> Tensor:
    """Computes the complex product of rows with planes, or with their conjugate.

    Args:
        y: ``(2, m, *rows)``, not empty.
        planes: ``(2, n, m)``, of the dtype of ``y``.
        conjugate: Whether to take the conjugate of ``planes``.
        config: Tiles; by default what :func:`choose` takes.

    Returns:
        ``(2, rows, n)``.
    """
    y, planes = y.contiguous(), planes.contiguous()
    modes, rows, columns = y.shape[1], y[0, 0].numel(), planes.shape[1]
    task = problem("turn", y, columns, modes)
    c = config or choose(task)
    out = y.new_empty(2, rows, columns)
    with device_of(y):
        turn_kernel[(triton.cdiv(rows, c.rows), triton.cdiv(columns, c.cols))](
            y,
            planes,
            out,
            rows,
            COLUMNS=columns,
            MODES=modes,
            CONJUGATE=conjugate,
            PRECISION=task.precision,
            ROWS=c.rows,
            COLS=c.cols,
            DEPTH=c.depth,
            STAGES=c.stages,
            num_warps=c.warps,
        )
    return out


def weigh_planes(g: Tensor, z: Tensor, conjugate: bool, config: Config | None = None) -> Tensor:
    """Computes the gradient of planes, or of conjugate ones.

    Args:
        g: Gradient of a product with them, ``(2, m, rows)``, not empty.
        z: What they were multiplied with, ``(2, rows, n)``, of the dtype of ``g``.
        conjugate: Whether the product was with their conjugate.
        config: Tiles; by default what :func:`choose` takes.

    Returns:
        ``(2, m, n)`` in float32.
    """
    g, z = g.contiguous(), z.contiguous()
    (_, modes, rows), columns = g.shape, z.shape[2]
    task = problem("weigh_planes", g, columns, modes)
    c, main = config or choose(task), plane_tile(modes)
    grid = [triton.cdiv(columns, c.cols), triton.cdiv(modes, main)]
    n_splits = max(1, min(triton.cdiv(rows, c.rows), N_PROGRAMS // (grid[0] * grid[1])))
    partial = torch.empty(n_splits, 2, modes, columns, dtype=torch.float32, device=g.device)
    with device_of(g):
        weigh_planes_kernel[(*grid, n_splits)](
            g,
            z,
            partial,
            rows,
            COLUMNS=columns,
            MODES=modes,
            CONJUGATE=conjugate,
            PRECISION=task.precision,
            ROWS=c.rows,
            COLS=c.cols,
            MAIN=main,
            STAGES=c.stages,
            num_warps=c.warps,
        )
    return partial.sum(0)


KERNELS = ThinProducts(narrow, lambda y, matrix: widen(y, matrix)[0], weigh, narrow_planes, turn, weigh_planes)


def _left_to_cublas(x: Tensor) -> bool:
    """Whether torch was measured to be faster: TF32 takes operands in one order of memory only.

    Triton turns them around as slowly as it reads them; cuBLAS does not, but takes longer for small ones.
    """
    return dot_precision(x.dtype) == "tf32" and x.numel() >= LARGE


FASTEST = ThinProducts(
    narrow,
    lambda y, matrix: (AT_ONCE.widen if _left_to_cublas(y) else KERNELS.widen)(y, matrix),
    lambda y, x: (AT_ONCE if _left_to_cublas(y) else KERNELS).weigh(y, x),
    narrow_planes,
    lambda y, planes, conjugate: (AT_ONCE if _left_to_cublas(y) else KERNELS).turn(y, planes, conjugate),
    lambda g, z, conjugate: (AT_ONCE if _left_to_cublas(g) else KERNELS).weigh_planes(g, z, conjugate),
)


def products() -> ThinProducts:
    """All kernels where they are asked for; else each product by what was measured to be faster on an H200."""
    return KERNELS if backend() == "triton" else FASTEST


def synthesis(
    modes: Tensor,
    matrices: Sequence[Tensor],
    adjoint: bool,
    skip: Tensor | None,
    bias: Tensor | None,
    gelu: bool,
    by: ThinProducts = KERNELS,
) -> tuple[Tensor, Tensor | None]:
    """The synthesis and the end of a Fourier layer, which is part of the last product.

    Args:
        modes: ``(F, 2, b, c)``, not empty.
        matrices: Those of a synthesis, of the dtype of ``modes``; or of the analysis whose transpose it is.
        adjoint: Whether they are an analysis'.
        skip: Fields ``(b, c, *grid)`` to add.
        bias: ``(c,)`` to add.
        gelu: Whether to apply GELU.
        by: How products are computed; the last one, where there is something to add or to apply, by its kernel.

    Returns:
        The fields ``(b, c, *grid)`` and, with GELU, what went into it.
    """
    if skip is None and bias is None and not gelu:
        return spectral_products.synthesis(modes, matrices, by, adjoint), None
    y, grid = spectral_products.synthesis_but_last(modes, matrices, by, adjoint)
    shape = (*modes.shape[2:], *grid)
    out, before = widen(y[None], matrices[-1].mT if adjoint else matrices[-1], End(skip, bias, prod(grid[:-1]), gelu))
    return out.view(shape), None if before is None else before.view(shape)
