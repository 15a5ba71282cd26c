"""Pieces that the spectral kernels share: products at a precision, tiles of the thin matrices, complex pairs.

Inside the kernels a mode of the last axis is a pair of adjacent columns (real, imaginary), so that a product with
the imaginary unit is a swap within a thread. ``C`` columns are ``C / 2`` modes.
"""

# What a kernel is launched with types it; a branch on a constant needs its else.
# ruff: noqa: ANN001, ANN201, RET505
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """``acc + a b`` with float32 sums; ``acc`` may be ``None``."""
    if PRECISION == "tf32" or PRECISION == "tf32x3":
        return tl.dot(a, b, acc, input_precision=PRECISION)
    else:
        return tl.dot(a, b, acc)


@triton.jit
def operand(t, dtype: tl.constexpr, PRECISION: tl.constexpr):
    """Casts a tile to what is multiplied: the field's dtype, or bfloat16 where float32 is to be rounded to it."""
    if PRECISION == "bf16":
        return t.to(tl.bfloat16)
    else:
        return t.to(dtype)


@triton.jit
def last_axis(
    ptr,
    c,
    point,
    N: tl.constexpr,
    K: tl.constexpr,
    POINTS_FIRST: tl.constexpr,
    dtype: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Tile (point, c) of a last axis' matrix, stored (2 K, N), or (N, 2 K) with ``POINTS_FIRST``."""
    stored = (c % 2) * K + c // 2  # planes are stored one after the other
    if POINTS_FIRST:
        offset = point[:, None] * (2 * K) + stored[None, :]
    else:
        offset = stored[None, :] * N + point[:, None]
    t = tl.load(ptr + offset, mask=(point[:, None] < N) & (c[None, :] < 2 * K), other=0.0)
    return operand(t, dtype, PRECISION)


@triton.jit
def leading_axis(
    ptr,
    mode,
    point,
    N: tl.constexpr,
    M: tl.constexpr,
    POINTS_FIRST: tl.constexpr,
    dtype: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Tile (mode, point) of one plane of a leading axis' matrix, stored (M, N), or (N, M) with ``POINTS_FIRST``."""
    if POINTS_FIRST:
        offset = mode[:, None] + point[None, :] * M
    else:
        offset = mode[:, None] * N + point[None, :]
    t = tl.load(ptr + offset, mask=(mode[:, None] < M) & (point[None, :] < N), other=0.0)
    return operand(t, dtype, PRECISION)


@triton.jit
def times_i(z, ROWS: tl.constexpr, C: tl.constexpr):
    """Multiplies the pairs of a tile (ROWS, C) by the imaginary unit."""
    re, im = tl.split(tl.reshape(z, (ROWS, C // 2, 2)))
    return tl.reshape(tl.join(-im, re), (ROWS, C))


@triton.jit
def images_beside(z, IMAGES: tl.constexpr, ROWS: tl.constexpr, C: tl.constexpr):
    """Tiles of several images from one above the other (IMAGES ROWS, C) to side by side (ROWS, IMAGES C)."""
    if IMAGES == 1:
        return z
    else:
        return tl.reshape(tl.permute(tl.reshape(z, (IMAGES, ROWS, C)), (1, 0, 2)), (ROWS, IMAGES * C))


@triton.jit
def mode_offsets(j, c, image, n_images, K: tl.constexpr):
    """Offsets (j, c) into modes stored (M K, n_images, 2); the launch sees to it that they fit 32 bits."""
    return (j[:, None] * K + c[None, :] // 2) * (2 * n_images) + (2 * image + c % 2)[None, :]
