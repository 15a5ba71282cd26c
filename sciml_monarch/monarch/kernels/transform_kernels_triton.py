"""Triton kernels of a Monarch transform along one axis; :mod:`.transform_triton` launches them.

The permutations are index arithmetic of loads and stores, the phases of a centred transform are in the factors, so
that a centred transform costs what any costs. Two ways through the two factors:

- :func:`stages_kernel` takes some lines through both. Between the two, the inner vector stays on the chip: the blocks
  of the second factor are dealt one entry of each block of the first, which is a transposition of the outer axes of a
  register tile (block, line, entry) padded to powers of two. Every point is read once and written once; few programs,
  each with both factors.
- :func:`factor_kernel` takes some lines through some blocks of one factor; a transform is two launches, the inner
  vector goes through memory (the second-level cache, for a slice of MRI): twice the traffic, but many small programs.
"""

# What a kernel is launched with types it; its branches are decided when it is compiled.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from sciml_monarch.monarch.kernels.transform_tiles_triton import (
    load_factor,
    load_points,
    multiply_complex,
    store_points,
    store_tile,
)


@triton.jit
def stages_kernel(
    x, first, second, place_x, place_y, y, n_lines, inner,
    A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
    X_STEP: tl.constexpr, X_ENTRY_STEP: tl.constexpr, Y_STEP: tl.constexpr, Y_ENTRY_STEP: tl.constexpr,
    X_COMPLEX: tl.constexpr, W_COMPLEX: tl.constexpr, Y_COMPLEX: tl.constexpr,
    X_PLACED: tl.constexpr, Y_PLACED: tl.constexpr, ADJOINT: tl.constexpr, INNER_FAST: tl.constexpr,
    PRECISION: tl.constexpr,
    A_PAD: tl.constexpr, C_PAD: tl.constexpr, LINES: tl.constexpr, SUMMED: tl.constexpr, RETURNED: tl.constexpr,
):  # fmt: skip
    """Both factors on ``LINES`` lines.

    ``A`` blocks take ``B`` entries and return ``C``, then ``C`` blocks take ``A`` entries and return ``D``.
    """
    line = tl.program_id(0) * LINES + tl.arange(0, LINES)
    a = tl.arange(0, A_PAD)
    c = tl.arange(0, C_PAD)
    h_real = tl.zeros((A_PAD, LINES, C_PAD), tl.float32)
    h_imaginary = tl.zeros((A_PAD, LINES, C_PAD), tl.float32)
    for b_first in tl.range(0, B, SUMMED):
        b = b_first + tl.arange(0, SUMMED)
        x_real, x_imaginary = load_points(
            x, line, n_lines, a, b, place_x, inner, A, B, X_STEP, X_ENTRY_STEP, X_COMPLEX, X_PLACED, INNER_FAST
        )
        u_real, u_imaginary = load_factor(first, a, b, c, A, B, C, W_COMPLEX, ADJOINT)
        h_real, h_imaginary = multiply_complex(
            x_real, x_imaginary, u_real, u_imaginary, h_real, h_imaginary, X_COMPLEX, W_COMPLEX, True, PRECISION
        )
    h_real = tl.permute(h_real, (2, 1, 0))  # (c, line, a)
    h_imaginary = tl.permute(h_imaginary, (2, 1, 0))
    for d_first in tl.range(0, D, RETURNED):
        d = d_first + tl.arange(0, RETURNED)
        v_real, v_imaginary = load_factor(second, c, a, d, C, A, D, W_COMPLEX, ADJOINT)
        y_real, y_imaginary = multiply_complex(
            h_real, h_imaginary, v_real, v_imaginary,
            tl.zeros((C_PAD, LINES, RETURNED), tl.float32), tl.zeros((C_PAD, LINES, RETURNED), tl.float32),
            X_COMPLEX or W_COMPLEX, W_COMPLEX, Y_COMPLEX, PRECISION,
        )  # fmt: skip
        store_points(
            y, line, n_lines, c, d, place_y, inner, y_real, y_imaginary,
            C, D, Y_STEP, Y_ENTRY_STEP, Y_COMPLEX, Y_PLACED, INNER_FAST,
        )  # fmt: skip


@triton.jit
def factor_kernel(
    x, w, place_x, place_y, y, n_lines, inner,
    N_BLOCKS: tl.constexpr, N_SUMMED: tl.constexpr, N_RETURNED: tl.constexpr,
    X_STEP: tl.constexpr, X_ENTRY_STEP: tl.constexpr, Y_STEP: tl.constexpr, Y_ENTRY_STEP: tl.constexpr,
    X_COMPLEX: tl.constexpr, W_COMPLEX: tl.constexpr, Y_COMPLEX: tl.constexpr,
    X_PLACED: tl.constexpr, Y_PLACED: tl.constexpr, ADJOINT: tl.constexpr, INNER_FAST: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCKS: tl.constexpr, LINES: tl.constexpr, SUMMED: tl.constexpr, RETURNED: tl.constexpr,
):  # fmt: skip
    """One factor: ``BLOCKS`` of its blocks on ``LINES`` lines, ``RETURNED`` entries of each."""
    line = tl.program_id(0) * LINES + tl.arange(0, LINES)
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    returned = tl.program_id(2) * RETURNED + tl.arange(0, RETURNED)
    real = tl.zeros((BLOCKS, LINES, RETURNED), tl.float32)
    imaginary = tl.zeros((BLOCKS, LINES, RETURNED), tl.float32)
    for first in tl.range(0, N_SUMMED, SUMMED):
        summed = first + tl.arange(0, SUMMED)
        x_real, x_imaginary = load_points(
            x, line, n_lines, block, summed, place_x, inner,
            N_BLOCKS, N_SUMMED, X_STEP, X_ENTRY_STEP, X_COMPLEX, X_PLACED, INNER_FAST,
        )  # fmt: skip
        w_real, w_imaginary = load_factor(
            w, block, summed, returned, N_BLOCKS, N_SUMMED, N_RETURNED, W_COMPLEX, ADJOINT
        )
        real, imaginary = multiply_complex(
            x_real, x_imaginary, w_real, w_imaginary, real, imaginary, X_COMPLEX, W_COMPLEX, Y_COMPLEX, PRECISION
        )
    store_points(
        y, line, n_lines, block, returned, place_y, inner, real, imaginary,
        N_BLOCKS, N_RETURNED, Y_STEP, Y_ENTRY_STEP, Y_COMPLEX, Y_PLACED, INNER_FAST,
    )  # fmt: skip


@triton.jit
def gradient_kernel(
    left, right, place_left, place_right, sums, n_lines, lines_per_program, inner,
    N_BLOCKS: tl.constexpr, N_ROWS: tl.constexpr, N_COLUMNS: tl.constexpr,
    LEFT_STEP: tl.constexpr, LEFT_ENTRY_STEP: tl.constexpr, RIGHT_STEP: tl.constexpr, RIGHT_ENTRY_STEP: tl.constexpr,
    LEFT_COMPLEX: tl.constexpr, RIGHT_COMPLEX: tl.constexpr, W_COMPLEX: tl.constexpr,
    LEFT_PLACED: tl.constexpr, RIGHT_PLACED: tl.constexpr, INNER_FAST: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCKS: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """Sums ``left[row] conj(right[column])`` over some lines, for some blocks of a factor.

    Partial sums are written apart and summed later in a fixed order, so that results repeat. Grid: tiles of a block,
    of which a prime number of points has more than the 65535 that the other two axes of a grid take; parts; blocks.
    """
    block = tl.program_id(2) * BLOCKS + tl.arange(0, BLOCKS)
    n_tiles: tl.constexpr = (N_COLUMNS + COLUMNS - 1) // COLUMNS
    row = tl.program_id(0) // n_tiles * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) % n_tiles * COLUMNS + tl.arange(0, COLUMNS)
    real = tl.zeros((BLOCKS, ROWS, COLUMNS), tl.float32)
    imaginary = tl.zeros((BLOCKS, ROWS, COLUMNS), tl.float32)
    begin = tl.program_id(1) * lines_per_program
    end = tl.minimum(begin + lines_per_program, n_lines)
    for first in tl.range(begin, end, LINES):
        line = first + tl.arange(0, LINES)
        left_real, left_imaginary = load_points(
            left, line, end, block, row, place_left, inner,
            N_BLOCKS, N_ROWS, LEFT_STEP, LEFT_ENTRY_STEP, LEFT_COMPLEX, LEFT_PLACED, INNER_FAST,
        )  # fmt: skip
        right_real, right_imaginary = load_points(
            right, line, end, block, column, place_right, inner,
            N_BLOCKS, N_COLUMNS, RIGHT_STEP, RIGHT_ENTRY_STEP, RIGHT_COMPLEX, RIGHT_PLACED, INNER_FAST,
        )  # fmt: skip
        left_real = tl.permute(left_real, (0, 2, 1))  # (block, row, line)
        left_imaginary = tl.permute(left_imaginary, (0, 2, 1))
        real, imaginary = multiply_complex(
            left_real, left_imaginary, right_real, -right_imaginary, real, imaginary,
            LEFT_COMPLEX, RIGHT_COMPLEX, W_COMPLEX, PRECISION,
        )  # fmt: skip
    offset = (block[:, None, None] * N_ROWS + row[None, :, None]) * N_COLUMNS + column[None, None, :]
    kept = (block < N_BLOCKS)[:, None, None] & (row < N_ROWS)[None, :, None] & (column < N_COLUMNS)[None, None, :]
    store_tile(
        sums + tl.program_id(1).to(tl.int64) * (N_BLOCKS * N_ROWS * N_COLUMNS * (2 if W_COMPLEX else 1)),
        offset, kept, real, imaginary, W_COMPLEX,
    )  # fmt: skip
