"""Analysis of both axes of a 2-D field in one kernel: the field is read once, only kept modes are written.

One program takes one or a few images. It walks down their rows; a tile of rows is multiplied by the thin matrix of
the last axis, chunk of columns after chunk, and the result, still on chip, by that of the leading axis.
"""

# What a kernel is launched with types it; a branch on a constant needs its else.
# ruff: noqa: ANN001, ANN201, ANN202, RET505
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from sciml_monarch.monarch.kernels.spectral_tiles_triton import (
    dot,
    images_beside,
    last_axis,
    mode_offsets,
    operand,
    times_i,
)


@triton.jit
def _combined(acc, M: tl.constexpr, C: tl.constexpr, CONJUGATE: tl.constexpr):
    """From the products with the real rows (first half) and the imaginary rows of the leading matrix to the modes."""
    by_real, by_imaginary = tl.split(tl.permute(tl.reshape(acc, (2, M, C)), (1, 2, 0)))
    turned = times_i(by_imaginary, M, C)
    if CONJUGATE:
        return by_real - turned
    else:
        return by_real + turned


@triton.jit
def analysis_2d(
    field,
    leading,
    last,
    last_rest,
    modes,
    n_images,
    N1: tl.constexpr,
    N2: tl.constexpr,
    M: tl.constexpr,
    K: tl.constexpr,
    POINTS_FIRST: tl.constexpr,
    CONJUGATE: tl.constexpr,
    PRECISION: tl.constexpr,
    IMAGES: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    MODES: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    STAGES: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """Modes (M K, n_images, 2) of fields (n_images, N1, N2).

    Grid: images / IMAGES, M / MODES, 2 K / (MAIN + REST). MAIN and REST are powers of two: columns of the last axis
    are computed in two products, which pads 66 columns to 80 and not to 128. With ``DESCRIPTORS`` the first four
    arguments are tensor descriptors, which the tensor memory accelerator reads, else pointers.
    """
    first_image = tl.program_id(0) * IMAGES
    j0 = tl.program_id(1) * MODES
    c0 = tl.program_id(2) * (MAIN + REST)
    dtype: tl.constexpr = modes.dtype.element_ty
    line = tl.arange(0, IMAGES * ROWS)
    image_of_line = first_image + line // ROWS
    q = tl.arange(0, 2 * MODES)  # rows (plane, mode) of the leading matrix
    j = j0 + tl.arange(0, MODES)
    c = c0 + tl.arange(0, MAIN)
    acc = tl.zeros((2 * MODES, IMAGES * MAIN), tl.float32)
    if REST > 0:
        c_rest = c0 + MAIN + tl.arange(0, REST)
        acc_rest = tl.zeros((2 * MODES, IMAGES * REST), tl.float32)
    for row0 in tl.range(0, N1, ROWS, num_stages=1):
        z = tl.zeros((IMAGES * ROWS, MAIN), tl.float32)
        if REST > 0:
            z_rest = tl.zeros((IMAGES * ROWS, REST), tl.float32)
        for col0 in tl.range(0, N2, COLS, num_stages=STAGES):
            col = col0 + tl.arange(0, COLS)
            if DESCRIPTORS:
                x = tl.reshape(field.load([first_image, row0, col0]), (IMAGES * ROWS, COLS))
                a = tl.trans(tl.reshape(last.load([c0 // 2, 0, col0]), (MAIN, COLS)))
            else:
                row = row0 + line % ROWS
                x = tl.load(
                    field + image_of_line.to(tl.int64)[:, None] * (N1 * N2) + (row[:, None] * N2 + col[None, :]),
                    mask=(image_of_line[:, None] < n_images) & (row[:, None] < N1) & (col[None, :] < N2),
                    other=0.0,
                )
                a = last_axis(last, c, col, N2, K, POINTS_FIRST, dtype, PRECISION)
            x = operand(x, dtype, PRECISION)
            z = dot(x, a, z, PRECISION)
            if REST > 0:
                if DESCRIPTORS:
                    a_rest = tl.trans(tl.reshape(last_rest.load([(c0 + MAIN) // 2, 0, col0]), (REST, COLS)))
                else:
                    a_rest = last_axis(last, c_rest, col, N2, K, POINTS_FIRST, dtype, PRECISION)
                z_rest = dot(x, a_rest, z_rest, PRECISION)
        if DESCRIPTORS:
            b = tl.reshape(leading.load([0, j0, row0]), (2 * MODES, ROWS))
        else:
            plane = q // MODES
            mode = j0 + q % MODES
            row = row0 + tl.arange(0, ROWS)
            if POINTS_FIRST:
                offset = (plane * (N1 * M) + mode)[:, None] + row[None, :] * M
            else:
                offset = ((plane * M + mode) * N1)[:, None] + row[None, :]
            b = tl.load(leading + offset, mask=(mode[:, None] < M) & (row[None, :] < N1), other=0.0)
            b = operand(b, dtype, PRECISION)
        acc = dot(b, images_beside(z, IMAGES, ROWS, MAIN).to(b.dtype), acc, PRECISION)
        if REST > 0:
            acc_rest = dot(b, images_beside(z_rest, IMAGES, ROWS, REST).to(b.dtype), acc_rest, PRECISION)
    column = tl.arange(0, IMAGES * MAIN)
    image = first_image + column // MAIN
    c = c0 + column % MAIN
    tl.store(
        modes + mode_offsets(j, c, image, n_images, K),
        _combined(acc, MODES, IMAGES * MAIN, CONJUGATE).to(dtype),
        mask=(j[:, None] < M) & ((c < 2 * K) & (image < n_images))[None, :],
    )
    if REST > 0:
        column = tl.arange(0, IMAGES * REST)
        image = first_image + column // REST
        c = c0 + MAIN + column % REST
        tl.store(
            modes + mode_offsets(j, c, image, n_images, K),
            _combined(acc_rest, MODES, IMAGES * REST, CONJUGATE).to(dtype),
            mask=(j[:, None] < M) & ((c < 2 * K) & (image < n_images))[None, :],
        )
