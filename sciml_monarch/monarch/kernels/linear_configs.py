"""Tile sizes of the Monarch linear layer's kernels, and where their blocks read and write.

Four products (forward through either factor, back through either) and two weight gradients make up a layer; each has
a configuration of its own, and :class:`Plan` holds the six.
"""

from functools import cache
from typing import NamedTuple

from sciml_monarch.monarch.kernels.backend import KERNEL_SHARED_BYTES

SCRATCH_BYTES = 16_384  # of the shared memory, what stores rearrange at a time


class Sizes(NamedTuple):
    """The sizes of a layer, in the letters of ``monarch.functional``, and of its input and output.

    Attributes:
        k: Blocks of the first factor.
        q: Outputs of each.
        p: Inputs of each.
        l: Blocks of the second factor.
        s: Outputs of each.
        r: Inputs of each.
        n_in: Entries of an input, at most ``k * p``.
        n_out: Entries of an output, at most ``s * l``.
    """

    k: int
    q: int
    p: int
    l: int
    s: int
    r: int
    n_in: int
    n_out: int


class ProductConfig(NamedTuple):
    """How one block-diagonal product is cut into programs.

    Attributes:
        tokens: Tokens of a tile.
        columns: Outputs of a block in a tile.
        depth: Inputs of a block that are multiplied at a time.
        groups: Neighbouring blocks in a tile.
        batched: Whether the groups are one batched product (many small blocks) or products one after another.
        programs: 0: one program a tile. Else programs in all, each with its weights on the chip (``depth`` must reach
            the inputs of a block) while tokens stream by.
        warps: Warps of a program.
        stages: Tiles of inputs in flight.
    """

    tokens: int
    columns: int
    depth: int
    groups: int = 1
    batched: int = 0
    programs: int = 0
    warps: int = 4
    stages: int = 2

    def shared_bytes(self, itemsize: int) -> int:
        """About how much shared memory a program takes, for inputs of ``itemsize`` bytes."""
        x, w = self.tokens * self.depth, self.depth * self.columns
        if self.programs:  # float32 weights may be split into two summands that both stay
            return itemsize * self.groups * (w * (2 if itemsize == 4 else 1) + self.stages * x)
        return itemsize * self.groups * self.stages * (x + w)

    def registers(self) -> int:
        """Registers of a thread that hold sums."""
        return self.groups * self.tokens * self.columns // (32 * self.warps)


class WeightConfig(NamedTuple):
    """How the gradient of one factor is cut into programs.

    Attributes:
        rows: Outputs of a block in a tile.
        columns: Inputs of a block in a tile.
        tokens: Tokens that are multiplied at a time.
        groups: Neighbouring blocks in a tile; more than one are one batched product.
        splits: Parts of the tokens; their sums are added up at the end, always in the same order.
        warps: Warps of a program.
        stages: Tiles of inputs in flight.
    """

    rows: int
    columns: int
    tokens: int
    groups: int = 1
    splits: int = 1
    warps: int = 4
    stages: int = 3

    def shared_bytes(self, itemsize: int) -> int:
        """About how much shared memory a program takes, for inputs of ``itemsize`` bytes."""
        return itemsize * self.groups * self.stages * self.tokens * (self.rows + self.columns)

    def registers(self) -> int:
        """Registers of a thread that hold sums."""
        return self.groups * self.rows * self.columns // (32 * self.warps)


class Plan(NamedTuple):
    """How a layer runs, forward and backward.

    Attributes:
        fused: 0, or the tokens of a program that does the whole forward pass with the tiles of ``first`` and ``second``
            (whose tokens must divide these).
        regrouped: Whether the inner vector is kept block after block of the second factor, in runs of ``q / l``
            entries, and the gradient of the output is brought to that order first. Else all stays in place and the
            products of the second factor read and write neighbouring blocks together.
        first: ``x`` to the inner vector.
        second: The inner vector to ``y``.
        second_back: The gradient of ``y`` to that of the inner vector.
        first_back: The gradient of the inner vector to that of ``x``.
        first_weight: Gradient of ``w1``.
        second_weight: Gradient of ``w2``.
    """

    fused: int
    regrouped: int
    first: ProductConfig
    second: ProductConfig
    second_back: ProductConfig
    first_back: ProductConfig
    first_weight: WeightConfig
    second_weight: WeightConfig

    def pack(self) -> list[int]:
        """As integers, which a custom operation takes."""
        return [self.fused, self.regrouped, *(number for config in self[2:] for number in config)]

    @classmethod
    def unpack(cls, numbers: list[int]) -> "Plan":
        """Undoes :meth:`pack`."""
        fused, regrouped, *rest = numbers
        n, m = len(ProductConfig._fields), len(WeightConfig._fields)
        first, second, second_back, first_back = (ProductConfig(*rest[i * n : (i + 1) * n]) for i in range(4))
        first_weight, second_weight = (WeightConfig(*rest[i : i + m]) for i in (4 * n, 4 * n + m))
        return cls(fused, regrouped, first, second, second_back, first_back, first_weight, second_weight)


def run_length(sizes: Sizes) -> int:
    """Entries of the inner vector that a block of the first factor gives to one of the second, at most."""
    return -(-sizes.q // sizes.l)


def fits(config: ProductConfig | WeightConfig, itemsize: int) -> bool:
    """Whether a program's tiles fit into shared memory and its sums into registers."""
    return config.shared_bytes(itemsize) + SCRATCH_BYTES <= KERNEL_SHARED_BYTES and config.registers() <= 128


class Side(NamedTuple):
    """Which columns of a token's vector a block reads or writes: ``block * group + index * step``, or runs.

    Attributes:
        group: Distance of the first columns of two neighbouring blocks.
        step: Distance of two neighbouring columns of a block.
        size: Columns of a block, counted with the gaps at the ends of runs.
        limit: Columns of the vector; a block's columns from there on are zeros that are not stored.
        run: 0, or the run length of an inner vector in regrouped order, seen from the first factor.
        q: Outputs of a block of the first factor; this and the following matter for runs only.
        l: Blocks of the second factor.
        r: Inputs of a block of the second factor.
    """

    group: int
    step: int
    size: int
    limit: int
    run: int = 0
    q: int = 1
    l: int = 1
    r: int = 1


class Sides(NamedTuple):
    """The four places that blocks read and write.

    Attributes:
        x: Input, seen from the first factor.
        first: Inner vector, seen from the first factor.
        second: Inner vector, seen from the second factor.
        y: Output, seen from the second factor.
        y_regrouped: Output, block after block of the second factor.
    """

    x: Side
    first: Side
    second: Side
    y: Side
    y_regrouped: Side


@cache
def sides(sizes: Sizes, regrouped: int) -> Sides:
    """The places of a layer whose inner vector is in regrouped order or in its own."""
    k, q, p, l, s, r, n_in, n_out = sizes
    run = run_length(sizes)
    first = Side(0, 0, run * l, l * r, run, q, l, r) if regrouped else Side(q, 1, q, k * q)
    second = Side(r, 1, r, l * r) if regrouped else Side(1, l, r, l * r)
    return Sides(Side(p, 1, p, n_in), first, second, Side(1, l, s, n_out), Side(s, 1, s, l * s))
