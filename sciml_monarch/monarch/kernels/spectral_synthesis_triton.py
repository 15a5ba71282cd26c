"""Synthesis of a 2-D field from its modes in one kernel, with skip connection, bias and activation: written once.

The mirror image of the analysis. One program takes one image at a time. Its modes stay on chip; a tile of rows of
the leading axis' thin matrix is multiplied by them, and the result by the thin matrix of the last axis.
"""

# What a kernel is launched with types it; a branch on a constant needs its else.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from sciml_monarch.monarch.kernels.spectral_tiles_triton import (
    dot,
    last_axis,
    leading_axis,
    mode_offsets,
    operand,
)


@triton.jit
def _mode_tiles(
    modes, j, c, image, n_images, M: tl.constexpr, K: tl.constexpr, CONJUGATE: tl.constexpr, PRECISION: tl.constexpr
):
    """Modes (j, c) of one image, and the same times the imaginary unit (its conjugate with ``CONJUGATE``)."""
    inside = (j[:, None] < M) & (c[None, :] < 2 * K)
    images = tl.zeros_like(c) + image
    z = tl.load(modes + mode_offsets(j, c, images, n_images, K), mask=inside, other=0.0)
    # read again with the planes exchanged: a swap of adjacent columns in front of a TF32 product fails to compile
    turned = tl.load(modes + mode_offsets(j, c ^ 1, images, n_images, K), mask=inside, other=0.0)
    odd = 1 if CONJUGATE else 0
    turned = tl.where((c % 2 == odd)[None, :], -turned, turned)
    dtype: tl.constexpr = modes.dtype.element_ty
    return operand(z, dtype, PRECISION), operand(turned, dtype, PRECISION)


@triton.jit
def _leading_rows(
    leading,
    row,
    j,
    N1: tl.constexpr,
    M: tl.constexpr,
    POINTS_FIRST: tl.constexpr,
    dtype: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Tiles (row, j) of the real and the imaginary plane."""
    if POINTS_FIRST:
        re = leading_axis(leading, row, j, M, N1, False, dtype, PRECISION)
        im = leading_axis(leading + N1 * M, row, j, M, N1, False, dtype, PRECISION)
    else:
        re = leading_axis(leading, row, j, M, N1, True, dtype, PRECISION)
        im = leading_axis(leading + N1 * M, row, j, M, N1, True, dtype, PRECISION)
    return re, im


@triton.jit
def synthesis_2d(
    modes,
    leading,
    last,
    skip,
    bias,
    out,
    before,
    n_images,
    n_channels,
    N1: tl.constexpr,
    N2: tl.constexpr,
    M: tl.constexpr,
    K: tl.constexpr,
    POINTS_FIRST: tl.constexpr,
    CONJUGATE: tl.constexpr,
    SKIP: tl.constexpr,
    BIAS: tl.constexpr,
    GELU: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    MODES: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    STAGES: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """Fields (n_images, N1, N2) from modes (M K, n_images, 2).

    Grid: any number of programs. ``GELU`` writes what goes into the activation to ``before`` and its output to
    ``out``. With ``DESCRIPTORS`` the arguments ``skip``, ``out`` and ``before`` are tensor descriptors.
    """
    dtype: tl.constexpr = modes.dtype.element_ty
    whole: tl.constexpr = M <= MODES and 2 * K <= MAIN + REST
    resident: tl.constexpr = whole and N2 <= COLS
    j = tl.arange(0, MODES)
    c = tl.arange(0, MAIN)
    c_rest = MAIN + tl.arange(0, REST if REST > 0 else 16)
    if resident:
        d = tl.trans(last_axis(last, c, tl.arange(0, COLS), N2, K, POINTS_FIRST, dtype, PRECISION))
        if REST > 0:
            d_rest = tl.trans(last_axis(last, c_rest, tl.arange(0, COLS), N2, K, POINTS_FIRST, dtype, PRECISION))
    image = tl.program_id(0)
    if BIAS:
        shift = tl.load(bias + image % n_channels).to(tl.float32)
    if whole:
        z, turned = _mode_tiles(modes, j, c, image, n_images, M, K, CONJUGATE, PRECISION)
        if REST > 0:
            z_rest, turned_rest = _mode_tiles(modes, j, c_rest, image, n_images, M, K, CONJUGATE, PRECISION)
    for row0 in tl.range(0, N1, ROWS, num_stages=1):
        row = row0 + tl.arange(0, ROWS)
        if whole:
            re, im = _leading_rows(leading, row, j, N1, M, POINTS_FIRST, dtype, PRECISION)
            y = dot(im, turned, dot(re, z, None, PRECISION), PRECISION).to(re.dtype)
            if REST > 0:
                y_rest = dot(im, turned_rest, dot(re, z_rest, None, PRECISION), PRECISION).to(re.dtype)
        for col0 in tl.range(0, N2, COLS, num_stages=STAGES):
            col = col0 + tl.arange(0, COLS)
            at = image.to(tl.int64) * (N1 * N2) + (row[:, None] * N2 + col[None, :])
            inside = (row[:, None] < N1) & (col[None, :] < N2)
            if SKIP:
                if DESCRIPTORS:
                    shortcut = tl.reshape(skip.load([image, row0, col0]), (ROWS, COLS))
                else:
                    shortcut = tl.load(skip + at, mask=inside, other=0.0)
            if resident:
                f = dot(y, d, None, PRECISION)
                if REST > 0:
                    f = dot(y_rest, d_rest, f, PRECISION)
            elif whole:
                f = dot(y, tl.trans(last_axis(last, c, col, N2, K, POINTS_FIRST, dtype, PRECISION)), None, PRECISION)
                if REST > 0:
                    tail = tl.trans(last_axis(last, c_rest, col, N2, K, POINTS_FIRST, dtype, PRECISION))
                    f = dot(y_rest, tail, f, PRECISION)
            else:  # more modes than fit a tile: blocks of them, read again for every tile of points
                f = tl.zeros((ROWS, COLS), tl.float32)
                for c0 in tl.range(0, 2 * K, MAIN, num_stages=1):
                    part = tl.zeros((ROWS, MAIN), tl.float32)
                    for j0 in tl.range(0, M, MODES, num_stages=1):
                        z, turned = _mode_tiles(modes, j0 + j, c0 + c, image, n_images, M, K, CONJUGATE, PRECISION)
                        re, im = _leading_rows(leading, row, j0 + j, N1, M, POINTS_FIRST, dtype, PRECISION)
                        part = dot(im, turned, dot(re, z, part, PRECISION), PRECISION)
                    d = tl.trans(last_axis(last, c0 + c, col, N2, K, POINTS_FIRST, dtype, PRECISION))
                    f = dot(part.to(d.dtype), d, f, PRECISION)
            if BIAS:
                f += shift
            if SKIP:
                f += shortcut.to(tl.float32)
            stored = f.to(dtype)
            if GELU:
                if DESCRIPTORS:
                    before.store([image, row0, col0], tl.reshape(stored, (1, ROWS, COLS)))
                else:
                    tl.store(before + at, stored, mask=inside)
                f = stored.to(tl.float32)  # what the backward pass will see
                stored = (0.5 * f * (1.0 + tl.math.erf(f * 0.7071067811865476))).to(dtype)
            if DESCRIPTORS:
                out.store([image, row0, col0], tl.reshape(stored, (1, ROWS, COLS)))
            else:
                tl.store(out + at, stored, mask=inside)
