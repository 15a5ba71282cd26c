"""How programs of the transform kernels are cut, what is taken, and where the kernels are faster."""

from itertools import product
from typing import NamedTuple

from sciml_monarch.monarch.kernels.backend import DotPrecision

# what is padded on both sides of the inner vector, beyond which a tile of both factors does not fit on the chip
LARGEST_INNER_TILE = 512


class StagesTile(NamedTuple):
    """Both factors in one program.

    Attributes:
        lines: Lines that it takes, a power of two from 16.
        summed: Entries of a first block that it takes at a time, a power of two from 16.
        returned: Entries of a second block that it returns at a time, a power of two from 8.
        num_warps: Warps.
        num_stages: Depth of software pipelining.
    """

    lines: int
    summed: int
    returned: int
    num_warps: int
    num_stages: int


class FactorTile(NamedTuple):
    """One factor after the other, in programs of their own.

    Attributes:
        blocks: Blocks of the factor that a program takes, a power of two.
        lines: Lines that it takes, a power of two from 16.
        summed: Entries of a block that it takes at a time, a power of two from 16.
        returned: Entries of a block that it returns, a power of two from 8.
        num_warps: Warps.
        num_stages: Depth of software pipelining.
    """

    blocks: int
    lines: int
    summed: int
    returned: int
    num_warps: int
    num_stages: int

    @classmethod
    def choose(cls, n_blocks: int, n_summed: int, n_returned: int) -> "FactorTile":
        """Takes a tile for a factor of ``n_blocks`` blocks ``(n_returned, n_summed)``."""
        del n_blocks, n_summed  # one rule serves all as long as no measurement says otherwise
        returned = min(32, padded(n_returned))
        return cls(4, 512 // returned, 16, returned, 4, 1)  # more spills registers with three products a product


class GradientTile(NamedTuple):
    """The gradient of a factor.

    Attributes:
        blocks: Blocks of the factor that a program takes, a power of two.
        entries: Rows and columns of a block that it takes at most, a power of two from 16.
        lines: Lines that it takes at a time, a power of two from 16.
        splits: Programs that share the lines, at most.
        num_warps: Warps.
        num_stages: Depth of software pipelining.
    """

    blocks: int
    entries: int
    lines: int
    splits: int
    num_warps: int
    num_stages: int


Tile = StagesTile | FactorTile


def candidates(k: int, q: int) -> list[Tile]:
    """Tiles worth measuring for factors of ``k`` and of ``q`` blocks.

    Those of both factors hold the inner vector, two planes of 16 lines times the padded ``k q``, in 64 registers of a
    thread or fewer, and about as much again as operands; more lines need more shared memory than there is. Those of one
    factor hold 32 sums a thread at most: with three TF32 products a product, 64 spill registers.
    """
    inner = padded(k) * padded(q)
    stages = [
        StagesTile(16, 16, returned, num_warps, 1)
        for returned, num_warps in product((8, 16), (4, 8, 16))
        if inner <= LARGEST_INNER_TILE and 16 <= inner * 16 * 2 // (32 * num_warps) <= 64
    ]
    factor = [
        FactorTile(blocks, lines, 16, returned, num_warps, 1)
        for blocks, lines, returned, num_warps in product((1, 2, 4, 8), (16, 32, 64), (16, 32), (2, 4, 8))
        if blocks <= num_warps and 16 <= blocks * lines * returned * 2 // (32 * num_warps) <= 32
    ]
    return [*stages, *factor]


def choose(n_lines: int, k: int, q: int, inner: int, precision: DotPrecision) -> Tile:
    """Takes one of the :func:`candidates`.

    Args:
        n_lines: Lines in all.
        k: Blocks of the first factor.
        q: Blocks of the second.
        inner: Distance of neighbours on a line.
        precision: How products are computed.

    Returns:
        The tile.
    """
    del n_lines, inner, precision  # one rule serves all as long as no measurement says otherwise
    return FactorTile.choose(k, q, max(k, q))


def gradient_candidates(n_blocks: int, rows: int, columns: int) -> list[GradientTile]:
    """Tiles worth measuring for the gradient of a factor ``(n_blocks, rows, columns)``."""
    return [
        GradientTile(blocks, entries, lines, splits, num_warps, 1)
        for blocks, entries, lines, splits, num_warps in product((1, 2, 4, 8), (16, 32), (16, 32), (16, 64), (2, 4, 8))
        if blocks <= 2 * n_blocks
        and entries <= padded(max(rows, columns))
        and 16 <= blocks * min(entries, padded(rows)) * min(entries, padded(columns)) * 2 // (32 * num_warps) <= 32
    ]


def choose_gradient(n_lines: int, n_blocks: int, rows: int, columns: int) -> GradientTile:
    """Takes a tile for the gradient of a factor ``(n_blocks, rows, columns)`` that is summed over ``n_lines``."""
    del n_lines, n_blocks, rows, columns
    return GradientTile(4, 16, 16, 64, 4, 1)  # larger blocks spill registers


def padded(size: int) -> int:
    """The power of two, at least 16, that a tile takes for an axis: tensor cores sum over 16 entries or more."""
    return max(16, 1 << (size - 1).bit_length())


def measured_faster(n_lines: int, k: int, q: int) -> bool:
    """Whether the kernels were measured to be faster than plain torch on a GPU; none was measured yet."""
    del n_lines, k, q
    return False
