"""Gradients of the thin matrices of a 2-D analysis: a kernel each, which reads the field once.

One program goes through images and keeps the sums of its points on the chip; it writes a partial sum, which torch
adds up: no atomic additions, the same result every time. Of the gradient ``g`` of an image's modes the kernels take
``forms``, ``(2, M, 2 K)``: ``[re g, im g]`` and ``-i g = [im g, -re g]``. All of an image's modes must fit a tile.
One kernel for both gradients would read the field once instead of twice, but holds more sums and tiles than a
multiprocessor has registers.
"""

# What a kernel is launched with types it; a branch on a constant needs its else.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from sciml_monarch.monarch.kernels.spectral_tiles_triton import dot, operand


@triton.jit
def _points(
    field, image, row, col, N1: tl.constexpr, N2: tl.constexpr, ACTIVATED: tl.constexpr, PRECISION: tl.constexpr
):
    """Tile (row, col) of an image, or of its GELU; rows and columns of two dimensions, in either order."""
    at = field + image.to(tl.int64) * (N1 * N2) + (row * N2 + col)
    x = tl.load(at, mask=(row < N1) & (col < N2), other=0.0)
    if ACTIVATED:
        f = x.to(tl.float32)
        x = (0.5 * f * (1.0 + tl.math.erf(f * 0.7071067811865476))).to(field.dtype.element_ty)
    return operand(x, field.dtype.element_ty, PRECISION)


@triton.jit
def _forms(forms, image, q, c, M: tl.constexpr, K: tl.constexpr, MODES: tl.constexpr, PRECISION: tl.constexpr):
    """Both forms of an image one above the other, rows ``q`` (form, mode) of 2 MODES, columns ``c``."""
    j = q % MODES
    at = forms + image.to(tl.int64) * (4 * M * K) + ((q // MODES * M + j) * (2 * K))[:, None] + c[None, :]
    t = tl.load(at, mask=(j[:, None] < M) & (c[None, :] < 2 * K), other=0.0)
    return operand(t, forms.dtype.element_ty, PRECISION)


@triton.jit
def leading_gradient_2d(
    field,
    forms,
    last,
    partial,
    n_images,
    N1: tl.constexpr,
    N2: tl.constexpr,
    M: tl.constexpr,
    K: tl.constexpr,
    ACTIVATED: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    MODES: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Partial sums ``(splits, 2, M, N1)``; grid: row tiles, splits of the images."""
    dtype: tl.constexpr = field.dtype.element_ty
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(1)
    q = tl.arange(0, 2 * MODES)
    c = tl.arange(0, MAIN)
    acc = tl.zeros((2 * MODES, ROWS), tl.float32)
    c_rest = MAIN + tl.arange(0, REST if REST > 0 else 16)
    image = split
    while image < n_images:
        u = tl.zeros((ROWS, MAIN), tl.float32)
        if REST > 0:
            u_rest = tl.zeros((ROWS, REST), tl.float32)
        for col0 in tl.range(0, N2, COLS, num_stages=STAGES):
            col = col0 + tl.arange(0, COLS)
            x = _points(field, image, row[:, None], col[None, :], N1, N2, ACTIVATED, PRECISION)
            inside = (c[None, :] < 2 * K) & (col[:, None] < N2)
            a = tl.load(last + c[None, :] * N2 + col[:, None], mask=inside, other=0.0)
            u = dot(x, operand(a, dtype, PRECISION), u, PRECISION)
            if REST > 0:
                inside = (c_rest[None, :] < 2 * K) & (col[:, None] < N2)
                a = tl.load(last + c_rest[None, :] * N2 + col[:, None], mask=inside, other=0.0)
                u_rest = dot(x, operand(a, dtype, PRECISION), u_rest, PRECISION)
        p = _forms(forms, image, q, c, M, K, MODES, PRECISION)
        acc = dot(p, tl.trans(u.to(p.dtype)), acc, PRECISION)
        if REST > 0:
            p_rest = _forms(forms, image, q, c_rest, M, K, MODES, PRECISION)
            acc = dot(p_rest, tl.trans(u_rest.to(p.dtype)), acc, PRECISION)
        image += tl.num_programs(1)
    j = q % MODES
    at = partial + split.to(tl.int64) * (2 * M * N1) + ((q // MODES * M + j) * N1)[:, None] + row[None, :]
    tl.store(at, acc, mask=(j[:, None] < M) & (row[None, :] < N1))


@triton.jit
def last_gradient_2d(
    field,
    forms,
    leading,
    partial,
    n_images,
    N1: tl.constexpr,
    N2: tl.constexpr,
    M: tl.constexpr,
    K: tl.constexpr,
    ACTIVATED: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    MODES: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Partial sums ``(splits, 2 K, N2)``; grid: column tiles, splits of the images."""
    dtype: tl.constexpr = field.dtype.element_ty
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)
    split = tl.program_id(1)
    q = tl.arange(0, 2 * MODES)
    c = tl.arange(0, MAIN)
    acc = tl.zeros((COLS, MAIN), tl.float32)
    c_rest = MAIN + tl.arange(0, REST if REST > 0 else 16)
    if REST > 0:
        acc_rest = tl.zeros((COLS, REST), tl.float32)
    image = split
    while image < n_images:
        for row0 in tl.range(0, N1, ROWS, num_stages=STAGES):
            row = row0 + tl.arange(0, ROWS)
            mode = q % MODES
            inside = (mode[None, :] < M) & (row[:, None] < N1)
            at = leading + ((q // MODES * M + mode) * N1)[None, :] + row[:, None]
            b = operand(tl.load(at, mask=inside, other=0.0), dtype, PRECISION)  # (rows, (plane, mode))
            x = _points(field, image, row[None, :], col[:, None], N1, N2, ACTIVATED, PRECISION)  # (cols, rows)
            v = dot(b, _forms(forms, image, q, c, M, K, MODES, PRECISION), None, PRECISION)
            acc = dot(x, v.to(x.dtype), acc, PRECISION)
            if REST > 0:
                v = dot(b, _forms(forms, image, q, c_rest, M, K, MODES, PRECISION), None, PRECISION)
                acc_rest = dot(x, v.to(x.dtype), acc_rest, PRECISION)
        image += tl.num_programs(1)
    base = partial + split.to(tl.int64) * (2 * K * N2)
    tl.store(base + c[None, :] * N2 + col[:, None], acc, mask=(c[None, :] < 2 * K) & (col[:, None] < N2))
    if REST > 0:
        inside = (c_rest[None, :] < 2 * K) & (col[:, None] < N2)
        tl.store(base + c_rest[None, :] * N2 + col[:, None], acc_rest, mask=inside)
