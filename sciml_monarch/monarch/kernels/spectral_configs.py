"""Tile sizes of the spectral kernels: which exist, which fit a problem, which is taken."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Literal, NamedTuple

from sciml_monarch.monarch.kernels.backend import KERNEL_SHARED_BYTES, DotPrecision

Kernel = Literal["narrow", "widen", "weigh", "narrow_planes", "turn", "weigh_planes"]
KERNELS: tuple[Kernel, ...] = ("narrow", "widen", "weigh", "narrow_planes", "turn", "weigh_planes")
PLANES: tuple[Kernel, ...] = ("narrow_planes", "turn", "weigh_planes")  # of complex numbers

MAX_MODES = 128  # of a tile; more are computed by several programs, each of which reads the field
MAX_PLANE_MODES = 64  # of a tile of complex numbers
MAX_SUMS = 128  # float32 sums of a thread, which has 255 registers


@dataclass(frozen=True)
class Problem:
    """What a kernel has to do, as far as the choice of its tiles depends on it.

    Attributes:
        kernel: Which of the kernels.
        columns: Length of the axis that is transformed.
        modes: Modes of the other side; of kernels of real numbers real and imaginary ones counted each.
        itemsize: Bytes of a number.
        precision: How products are computed.
    """

    kernel: Kernel
    columns: int
    modes: int
    itemsize: int
    precision: DotPrecision


class Tiles(NamedTuple):
    """How the modes are cut: into a power of two, and another one where that pads less, 0 for none."""

    main: int
    rest: int


@dataclass(frozen=True)
class Config:
    """How rows and columns are cut and what runs on them.

    Attributes:
        rows: Rows of a tile.
        cols: Columns of a tile; of kernels that narrow those of a step.
        depth: Modes of a step of kernels that widen; of no meaning to the others.
        warps: Warps of a program.
        stages: Steps whose loads are in flight.
    """

    rows: int
    cols: int
    depth: int
    warps: int
    stages: int


@cache
def plane_tile(modes: int) -> int:
    """Modes of a tile of complex numbers."""
    return min(MAX_PLANE_MODES, _power_of_two(modes, 16))


@cache
def tiles(modes: int) -> Tiles:
    """Cuts modes: 66 to 64 + 16, not to 128."""
    whole = _power_of_two(modes, 16)
    if whole > MAX_MODES:
        return Tiles(MAX_MODES, 0)
    main = whole // 2
    rest = _power_of_two(modes - main, 16) if main >= 16 else whole
    return Tiles(main, rest) if main + rest < whole else Tiles(whole, 0)


def shared_bytes(problem: Problem, config: Config) -> int:
    """Estimates the shared memory of a program from above; the tests compare it with what the compiler takes."""
    kind, n_planes = problem.kernel.removesuffix("_planes"), 1 + (problem.kernel in PLANES)
    cut = plane_tile(problem.modes) if n_planes == 2 else sum(tiles(problem.modes))
    if kind in ("widen", "turn"):
        step, sums = config.depth * (config.rows + config.cols), config.rows * config.cols
    elif kind == "narrow":
        step, sums = config.cols * (config.rows + cut), config.rows * cut
    else:
        step, sums = config.rows * (config.cols + cut), config.cols * cut
    # operands in parts, and in another order, beside the loads in flight; sums are put in order for the stores
    parts = 2 if problem.precision == "tf32x3" else 1
    return max((config.stages + parts) * n_planes * step * problem.itemsize, 4 * n_planes * sums) + 1024


def sums_of_thread(problem: Problem, config: Config) -> int:
    """Float32 sums that a thread keeps."""
    cut = sum(tiles(problem.modes))
    height, width = {
        "narrow": (config.rows, cut),
        "widen": (config.rows, config.cols),
        "weigh": (config.cols, cut),
        "narrow_planes": (config.rows, 2 * plane_tile(problem.modes)),
        "turn": (config.rows, 2 * config.cols),
        "weigh_planes": (config.cols, 2 * plane_tile(problem.modes)),
    }[problem.kernel]
    return height * width // (32 * config.warps)


def fits(problem: Problem, config: Config) -> bool:
    """Whether a configuration can run a problem: shared memory, registers, a warp group for every 64 rows of sums."""
    height = config.cols if problem.kernel.startswith("weigh") else config.rows
    return (
        # Triton 3.6 compiles two warp groups that share 64 rows wrongly: illegal memory accesses were seen on an H200
        16 * config.warps <= height
        and sums_of_thread(problem, config) <= MAX_SUMS
        and shared_bytes(problem, config) <= KERNEL_SHARED_BYTES
    )


def candidates(problem: Problem) -> Iterator[Config]:
    """Yields every configuration worth measuring on a problem, each of which fits it.

    Args:
        problem: What is computed.

    Yields:
        Configurations, :func:`choose`'s among them.
    """
    widest = _power_of_two(problem.columns, 16)
    shapes: dict[Kernel, list[tuple[int, int, int]]] = {
        "narrow": [(rows, cols, 16) for rows in (64, 128, 256) for cols in (16, 32, 64)],
        "widen": [(rows, cols, depth) for rows in (64, 128) for cols in (16, 32, 64, 128, 256) for depth in (16, 32)],
        "weigh": [(rows, cols, 16) for rows in (16, 32, 64) for cols in (64, 128)],
        "narrow_planes": [(rows, cols, 16) for rows in (64, 128) for cols in (16, 32, 64)],
        "turn": [(rows, cols, depth) for rows in (64, 128) for cols in (16, 32, 64, 128) for depth in (16, 32)],
        "weigh_planes": [(rows, cols, 16) for rows in (16, 32, 64) for cols in (64, 128)],
    }
    for (rows, cols, depth), warps, stages in product(shapes[problem.kernel], (4, 8), (1, 2, 3, 4)):
        config = Config(rows, cols, depth, warps, stages)
        if (cols <= widest or problem.kernel.startswith("weigh")) and fits(problem, config):
            yield config


@cache
def choose(problem: Problem) -> Config:
    """The configuration that is taken where none is given: the first of a list that fits.

    Args:
        problem: What is computed.

    Returns:
        One of the :func:`candidates`.
    """
    widest = _power_of_two(problem.columns, 16)
    measured = _MEASURED.get((problem.kernel, problem.precision))
    offered = ([measured] if measured else []) + [Config(*numbers) for numbers in _PREFERRED[problem.kernel]]
    whole = problem.kernel.startswith("weigh")
    preferred = (c if whole else replace(c, cols=min(c.cols, widest)) for c in offered)
    return next(config for config in preferred if fits(problem, config))


# the fastest on an H200 for 64 channels, 16 samples, 256^2 points, 32 modes (results/speed_h200/tune_spectral.json); of
# "tf32_left" and of planes that are narrowed in TF32 also for 8 samples of 512^2 points, timed later (decision 66). So
# large a product has its matrix rounded first, and "tf32" is left for smaller ones, which take these tiles too
_MEASURED: dict[tuple[Kernel, DotPrecision], Config] = {
    ("narrow", "tf32x3"): Config(64, 32, 16, 4, 3),
    ("narrow", "tf32"): Config(128, 32, 16, 4, 4),
    ("narrow", "tf32_left"): Config(128, 32, 16, 8, 4),
    ("narrow", "bf16"): Config(128, 64, 16, 4, 3),
    ("widen", "tf32x3"): Config(64, 128, 16, 4, 3),
    ("widen", "tf32"): Config(64, 128, 16, 4, 1),
    ("widen", "bf16"): Config(128, 128, 32, 8, 1),
    ("weigh", "tf32x3"): Config(32, 128, 16, 4, 3),
    ("weigh", "tf32"): Config(64, 64, 16, 4, 1),
    ("weigh", "bf16"): Config(64, 128, 16, 8, 1),
    ("narrow_planes", "tf32x3"): Config(64, 16, 16, 4, 4),
    ("narrow_planes", "tf32"): Config(64, 32, 16, 4, 3),
    ("narrow_planes", "tf32_left"): Config(64, 32, 16, 4, 3),
    ("narrow_planes", "bf16"): Config(128, 32, 16, 4, 3),
    ("turn", "tf32x3"): Config(64, 64, 16, 4, 3),
    ("turn", "tf32"): Config(64, 128, 32, 4, 1),
    ("turn", "bf16"): Config(128, 64, 32, 8, 1),
    ("weigh_planes", "tf32x3"): Config(16, 64, 16, 4, 4),
    ("weigh_planes", "tf32"): Config(64, 64, 16, 4, 1),
    ("weigh_planes", "bf16"): Config(64, 64, 16, 4, 1),
}
# where those do not fit, and for half precisions: best first
_PREFERRED: dict[Kernel, list[tuple[int, int, int, int, int]]] = {
    "narrow": [(128, 32, 16, 8, 3), (64, 32, 16, 4, 2), (64, 16, 16, 4, 1)],
    "widen": [(64, 128, 16, 4, 3), (64, 64, 16, 4, 1)],
    "weigh": [(32, 128, 16, 8, 3), (32, 64, 16, 4, 1), (16, 64, 16, 4, 1)],
    "narrow_planes": [(128, 16, 16, 8, 3), (64, 16, 16, 4, 1)],
    "turn": [(64, 64, 16, 4, 2), (64, 64, 16, 4, 1)],
    "weigh_planes": [(32, 64, 16, 4, 2), (16, 64, 16, 4, 1)],
}


def _power_of_two(n: int, least: int) -> int:
    return max(least, 1 << (n - 1).bit_length())
