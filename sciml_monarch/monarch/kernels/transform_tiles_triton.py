"""What the Triton kernels of a transform share: products, and tiles of points and of factors.

A tile of points is ``(block, line, entry)``: which block of a factor, which line, which entry of the block. Complex
numbers are pairs in memory and two planes in registers.
"""

# What a kernel is launched with types it; its branches are decided when it is compiled.
# ruff: noqa: ANN001, ANN201, RET505
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from sciml_monarch.monarch.kernels.products_triton import dot


@triton.jit
def load_tile(pointer, offset, mask, COMPLEX: tl.constexpr):
    """Loads three axes: the planes of complex numbers, or a real number twice."""
    if COMPLEX:
        pair = tl.expand_dims(offset * 2, 3) + tl.arange(0, 2)[None, None, None, :]
        return tl.split(tl.load(pointer + pair, mask=tl.expand_dims(mask, 3), other=0.0))
    else:
        value = tl.load(pointer + offset, mask=mask, other=0.0)
        return value, value


@triton.jit
def store_tile(pointer, offset, mask, real, imaginary, COMPLEX: tl.constexpr):
    """Stores three axes: complex numbers, or the real plane."""
    if COMPLEX:
        pair = tl.expand_dims(offset * 2, 3) + tl.arange(0, 2)[None, None, None, :]
        tl.store(pointer + pair, tl.join(real, imaginary), mask=tl.expand_dims(mask, 3))
    else:
        tl.store(pointer + offset, real, mask=mask)


@triton.jit
def first_points(line, n_points, inner):
    """Where lines begin in an array ``(outer, n_points, inner)``; lines count ``(outer, inner)``."""
    return (line // inner).to(tl.int64) * n_points * inner + line % inner


@triton.jit
def points(
    line, n_lines, block, entry, place, inner, N_BLOCKS: tl.constexpr, N_ENTRIES: tl.constexpr,
    BLOCK_STEP: tl.constexpr, ENTRY_STEP: tl.constexpr, PLACED: tl.constexpr, INNER_FAST: tl.constexpr,
):  # fmt: skip
    """Offsets and mask of a tile, its axes in the order of memory, the fastest last.

    Entry ``e`` of block ``g`` is the line's point ``i = g * BLOCK_STEP + e * ENTRY_STEP``, or ``place[i]``. Without
    ``INNER_FAST`` the axes are (line, entry, block) where neighbouring blocks are neighbours on the line, as the
    permutation of a Fourier transform makes them, else (line, block, entry); with it (block, entry, line).
    """
    start = first_points(line, N_BLOCKS * N_ENTRIES, inner)
    if INNER_FAST or (BLOCK_STEP != 1 and not PLACED):
        i = block[:, None] * BLOCK_STEP + entry[None, :] * ENTRY_STEP
        fits = (block < N_BLOCKS)[:, None] & (entry < N_ENTRIES)[None, :]
    else:
        i = block[None, :] * BLOCK_STEP + entry[:, None] * ENTRY_STEP
        fits = (block < N_BLOCKS)[None, :] & (entry < N_ENTRIES)[:, None]
    if PLACED:
        i = tl.load(place + i, mask=fits, other=0).to(tl.int32)
    if INNER_FAST:
        offset = tl.expand_dims(i.to(tl.int64) * inner, 2) + start[None, None, :]
        mask = tl.expand_dims(fits, 2) & (line < n_lines)[None, None, :]
    else:
        offset = tl.expand_dims(i.to(tl.int64) * inner, 0) + start[:, None, None]
        mask = tl.expand_dims(fits, 0) & (line < n_lines)[:, None, None]
    return offset, mask


@triton.jit
def from_memory(tile, BLOCK_STEP: tl.constexpr, PLACED: tl.constexpr, INNER_FAST: tl.constexpr):
    """Brings the axes of a tile of :func:`points` into the order (block, line, entry)."""
    if INNER_FAST:
        return tl.permute(tile, (0, 2, 1))
    elif BLOCK_STEP != 1 and not PLACED:
        return tl.permute(tile, (1, 0, 2))
    else:
        return tl.permute(tile, (2, 0, 1))


@triton.jit
def to_memory(tile, BLOCK_STEP: tl.constexpr, PLACED: tl.constexpr, INNER_FAST: tl.constexpr):
    """Undoes :func:`from_memory`."""
    if INNER_FAST:
        return tl.permute(tile, (0, 2, 1))
    elif BLOCK_STEP != 1 and not PLACED:
        return tl.permute(tile, (1, 0, 2))
    else:
        return tl.permute(tile, (1, 2, 0))


@triton.jit
def load_points(
    pointer, line, n_lines, block, entry, place, inner, N_BLOCKS: tl.constexpr, N_ENTRIES: tl.constexpr,
    BLOCK_STEP: tl.constexpr, ENTRY_STEP: tl.constexpr, COMPLEX: tl.constexpr, PLACED: tl.constexpr,
    INNER_FAST: tl.constexpr,
):  # fmt: skip
    """Loads a tile (block, line, entry) as two planes; zeros where there is nothing. See :func:`points`."""
    offset, mask = points(
        line, n_lines, block, entry, place, inner, N_BLOCKS, N_ENTRIES, BLOCK_STEP, ENTRY_STEP, PLACED, INNER_FAST
    )
    real, imaginary = load_tile(pointer, offset, mask, COMPLEX)
    real = from_memory(real, BLOCK_STEP, PLACED, INNER_FAST)
    return real, from_memory(imaginary, BLOCK_STEP, PLACED, INNER_FAST)


@triton.jit
def store_points(
    pointer, line, n_lines, block, entry, place, inner, real, imaginary,
    N_BLOCKS: tl.constexpr, N_ENTRIES: tl.constexpr, BLOCK_STEP: tl.constexpr, ENTRY_STEP: tl.constexpr,
    COMPLEX: tl.constexpr, PLACED: tl.constexpr, INNER_FAST: tl.constexpr,
):  # fmt: skip
    """Stores a tile (block, line, entry). See :func:`points`."""
    offset, mask = points(
        line, n_lines, block, entry, place, inner, N_BLOCKS, N_ENTRIES, BLOCK_STEP, ENTRY_STEP, PLACED, INNER_FAST
    )
    real = to_memory(real, BLOCK_STEP, PLACED, INNER_FAST)
    imaginary = to_memory(imaginary, BLOCK_STEP, PLACED, INNER_FAST)
    store_tile(pointer, offset, mask, real, imaginary, COMPLEX)


@triton.jit
def load_factor(
    pointer, block, summed, returned, N_BLOCKS: tl.constexpr, N_SUMMED: tl.constexpr, N_RETURNED: tl.constexpr,
    COMPLEX: tl.constexpr, ADJOINT: tl.constexpr,
):  # fmt: skip
    """Loads blocks of a factor, or of its conjugate transpose, as two planes ``(block, summed, returned)``.

    Threads run along the axis that is contiguous in memory, which the transposition exchanges.
    """
    if ADJOINT:
        offset = (block[:, None, None] * N_SUMMED + summed[None, :, None]) * N_RETURNED + returned[None, None, :]
        mask = (block < N_BLOCKS)[:, None, None] & (summed < N_SUMMED)[None, :, None]
        real, imaginary = load_tile(pointer, offset, mask & (returned < N_RETURNED)[None, None, :], COMPLEX)
        return real, -imaginary
    else:
        offset = (block[:, None, None] * N_RETURNED + returned[None, :, None]) * N_SUMMED + summed[None, None, :]
        mask = (block < N_BLOCKS)[:, None, None] & (returned < N_RETURNED)[None, :, None]
        real, imaginary = load_tile(pointer, offset, mask & (summed < N_SUMMED)[None, None, :], COMPLEX)
        return tl.permute(real, (0, 2, 1)), tl.permute(imaginary, (0, 2, 1))


@triton.jit
def multiply_complex(
    a_real, a_imaginary, b_real, b_imaginary, real, imaginary,
    A_COMPLEX: tl.constexpr, B_COMPLEX: tl.constexpr, BOTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds ``a b`` onto ``real`` and, where ``BOTH`` are wanted, ``imaginary``."""
    real = dot(a_real, b_real, real, PRECISION)
    if A_COMPLEX and B_COMPLEX:
        real = dot(-a_imaginary, b_imaginary, real, PRECISION)
    if BOTH and A_COMPLEX:
        imaginary = dot(a_imaginary, b_real, imaginary, PRECISION)
    if BOTH and B_COMPLEX:
        imaginary = dot(a_real, b_imaginary, imaginary, PRECISION)
    return real, imaginary
