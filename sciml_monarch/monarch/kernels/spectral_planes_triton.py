"""The thin products of :mod:`spectral_kernels_triton` for complex numbers that lie as two planes.

A tile of both planes is read once and both planes of the result are kept, so that the four real products of a complex
one are never written. With ``CONJUGATE`` the product is with the conjugate of the matrix.
"""

# What a kernel is launched with types it.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from sciml_monarch.monarch.kernels.products_triton import dot


@triton.jit
def _multiply(a_re, a_im, b_re, b_im, re, im, CONJUGATE: tl.constexpr, PRECISION: tl.constexpr):
    """``re + i im`` and the product of ``a`` and ``b``, or of ``a`` and the conjugate of ``b``."""
    # signs are changed on the left: tensor cores take that operand from registers, the other from shared memory only
    re = dot(a_re, b_re, re, PRECISION)
    re = dot(a_im if CONJUGATE else -a_im, b_im, re, PRECISION)
    im = dot(-a_re if CONJUGATE else a_re, b_im, im, PRECISION)
    return re, dot(a_im, b_re, im, PRECISION)


@triton.jit
def narrow_planes_kernel(
    z,
    planes,
    out,
    n_rows,
    COLUMNS: tl.constexpr,
    MODES: tl.constexpr,
    INNER: tl.constexpr,
    CONJUGATE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    MAIN: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Writes ``(MODES, n_rows)`` complex numbers of rows ``(2, n_rows, COLUMNS)`` and planes ``(2, MODES, COLUMNS)``.

    As ``(2, MODES, n_rows)``, or with ``INNER`` as ``(MODES, n_rows / INNER, 2, INNER)``. Grid: row tiles, mode tiles.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mode = tl.program_id(1) * MAIN + tl.arange(0, MAIN)
    first = row.to(tl.int64)[:, None] * COLUMNS
    other = tl.cast(n_rows, tl.int64) * COLUMNS
    re = tl.zeros((ROWS, MAIN), tl.float32)
    im = tl.zeros((ROWS, MAIN), tl.float32)
    for column0 in tl.range(0, COLUMNS, DEPTH, num_stages=STAGES):
        column = column0 + tl.arange(0, DEPTH)
        inside = column[None, :] < COLUMNS
        at = z + first + column[None, :]
        real = tl.load(at, mask=inside & (row[:, None] < n_rows), other=0.0)
        imaginary = tl.load(at + other, mask=inside & (row[:, None] < n_rows), other=0.0)
        at = planes + mode[:, None] * COLUMNS + column[None, :]
        m_real = tl.load(at, mask=inside & (mode[:, None] < MODES), other=0.0)
        m_imaginary = tl.load(at + MODES * COLUMNS, mask=inside & (mode[:, None] < MODES), other=0.0)
        re, im = _multiply(
            real, imaginary, tl.trans(m_real), tl.trans(m_imaginary), re, im, CONJUGATE, PRECISION
        )  # fmt: skip
    dtype: tl.constexpr = out.dtype.element_ty
    inside = (row[:, None] < n_rows) & (mode[None, :] < MODES)
    if INNER > 0:
        at = out + mode.to(tl.int64)[None, :] * (2 * n_rows) + (row // INNER * (2 * INNER) + row % INNER)[:, None]
        other = tl.cast(INNER, tl.int64)
    else:
        at = out + mode.to(tl.int64)[None, :] * n_rows + row[:, None]
        other = tl.cast(n_rows, tl.int64) * MODES
    tl.store(at, re.to(dtype), mask=inside)
    tl.store(at + other, im.to(dtype), mask=inside)


@triton.jit
def turn_kernel(
    y,
    planes,
    out,
    n_rows,
    COLUMNS: tl.constexpr,
    MODES: tl.constexpr,
    CONJUGATE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Writes rows ``(2, n_rows, COLUMNS)`` from ``(2, MODES, n_rows)`` and planes ``(2, COLUMNS, MODES)``.

    Grid: row tiles, column tiles.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLS + tl.arange(0, COLS)
    other = tl.cast(n_rows, tl.int64) * MODES
    re = tl.zeros((ROWS, COLS), tl.float32)
    im = tl.zeros((ROWS, COLS), tl.float32)
    for mode0 in tl.range(0, MODES, DEPTH, num_stages=STAGES):
        mode = mode0 + tl.arange(0, DEPTH)
        inside = (mode[:, None] < MODES) & (row[None, :] < n_rows)
        at = y + mode.to(tl.int64)[:, None] * n_rows + row[None, :]
        real = tl.load(at, mask=inside, other=0.0)
        imaginary = tl.load(at + other, mask=inside, other=0.0)
        inside = (column[:, None] < COLUMNS) & (mode[None, :] < MODES)
        at = planes + column[:, None] * MODES + mode[None, :]
        m_real = tl.load(at, mask=inside, other=0.0)
        m_imaginary = tl.load(at + COLUMNS * MODES, mask=inside, other=0.0)
        re, im = _multiply(
            tl.trans(real), tl.trans(imaginary), tl.trans(m_real), tl.trans(m_imaginary), re, im, CONJUGATE, PRECISION
        )
    dtype: tl.constexpr = out.dtype.element_ty
    at = out + row.to(tl.int64)[:, None] * COLUMNS + column[None, :]
    inside = (row[:, None] < n_rows) & (column[None, :] < COLUMNS)
    tl.store(at, re.to(dtype), mask=inside)
    tl.store(at + tl.cast(n_rows, tl.int64) * COLUMNS, im.to(dtype), mask=inside)


@triton.jit
def weigh_planes_kernel(
    g,
    z,
    partial,
    n_rows,
    COLUMNS: tl.constexpr,
    MODES: tl.constexpr,
    CONJUGATE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    MAIN: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Writes partial sums ``(splits, 2, MODES, COLUMNS)`` of the gradient of planes.

    From that of a product with them, ``(2, MODES, n_rows)``, and what they were multiplied with, ``(2, n_rows,
    COLUMNS)``. Grid: column tiles, mode tiles, splits.
    """
    column = tl.program_id(0) * COLS + tl.arange(0, COLS)
    mode = tl.program_id(1) * MAIN + tl.arange(0, MAIN)
    split = tl.program_id(2)
    rows = tl.cast(n_rows, tl.int64)
    re = tl.zeros((COLS, MAIN), tl.float32)
    im = tl.zeros((COLS, MAIN), tl.float32)
    for tile in tl.range(split, tl.cdiv(n_rows, ROWS), tl.num_programs(2), num_stages=STAGES):
        row = tile * ROWS + tl.arange(0, ROWS)
        at = z + row.to(tl.int64)[:, None] * COLUMNS + column[None, :]
        inside = (row[:, None] < n_rows) & (column[None, :] < COLUMNS)
        real = tl.load(at, mask=inside, other=0.0)
        imaginary = tl.load(at + rows * COLUMNS, mask=inside, other=0.0)
        at = g + mode.to(tl.int64)[:, None] * n_rows + row[None, :]
        inside = (mode[:, None] < MODES) & (row[None, :] < n_rows)
        g_real = tl.load(at, mask=inside, other=0.0)
        g_imaginary = tl.load(at + rows * MODES, mask=inside, other=0.0)
        # conj(z) g, or its conjugate
        re = dot(tl.trans(real), tl.trans(g_real), re, PRECISION)
        re = dot(tl.trans(imaginary), tl.trans(g_imaginary), re, PRECISION)
        if CONJUGATE:
            im = dot(tl.trans(-real), tl.trans(g_imaginary), im, PRECISION)
            im = dot(tl.trans(imaginary), tl.trans(g_real), im, PRECISION)
        else:
            im = dot(tl.trans(real), tl.trans(g_imaginary), im, PRECISION)
            im = dot(tl.trans(-imaginary), tl.trans(g_real), im, PRECISION)
    at = partial + split.to(tl.int64) * (2 * MODES * COLUMNS) + mode[None, :] * COLUMNS + column[:, None]
    inside = (column[:, None] < COLUMNS) & (mode[None, :] < MODES)
    tl.store(at, re, mask=inside)
    tl.store(at + MODES * COLUMNS, im, mask=inside)
