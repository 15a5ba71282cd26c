"""Tile sizes of the spectral kernels: which exist, which fit a problem, which is taken."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

from sciml_monarch.monarch.kernels.backend import DotPrecision

Kernel = Literal["analysis", "synthesis", "leading_gradient", "last_gradient"]
GRADIENTS: tuple[Kernel, Kernel] = ("leading_gradient", "last_gradient")

ANALYSIS_REGISTER_BYTES = 720  # of a thread, beyond which finer tiles are taken: compiled, the others spill
MAX_REGISTER_BYTES = 800  # of a thread, which has 1020
SHARED_BYTES = 232_448  # of a Hopper multiprocessor, for one program
MAX_MODES = 128  # rows of a tile of modes: more are computed by several programs, each of which reads the field
MAX_COLUMNS = 128  # of a tile of modes, likewise
MAX_RESIDENT = 10_240  # numbers of a tile of modes that the synthesis keeps


@dataclass(frozen=True)
class Problem:
    """What a kernel has to do, as far as the choice of its tiles depends on it.

    Attributes:
        kernel: Which of the kernels.
        n1: Points of the leading axis.
        n2: Points of the last axis.
        m: Modes kept on the leading axis.
        k: Modes kept on the last axis.
        itemsize: Bytes of a number of the field.
        precision: How products are computed.
    """

    kernel: Kernel
    n1: int
    n2: int
    m: int
    k: int
    itemsize: int
    precision: DotPrecision

    @property
    def operand_bytes(self) -> int:
        """Bytes of a number that is multiplied."""
        return 2 if self.precision == "bf16" else self.itemsize


@dataclass(frozen=True)
class Tiles:
    """How the modes are cut; a consequence of their number.

    Attributes:
        modes: Modes of the leading axis in a tile, a power of two.
        main: Columns (two a mode) of the last axis in the first product, a power of two.
        rest: Columns in the second product; 0 for none.
    """

    modes: int
    main: int
    rest: int


@dataclass(frozen=True)
class Config:
    """How the field is cut and what runs on it.

    Attributes:
        images: Images that one program takes side by side, which then share the thin matrices (analysis only).
        rows: Rows of a tile of the field.
        cols: Columns of it.
        warps: Warps of a program; tiles of 64 rows (of all images) keep four of them busy in the synthesis.
        stages: Tiles in flight.
        descriptors: Whether tiles are moved by the tensor memory accelerator, which needs aligned rows.
    """

    images: int
    rows: int
    cols: int
    warps: int
    stages: int
    descriptors: bool


@cache
def tiles(problem: Problem) -> Tiles:
    """Cuts the modes of a problem: as coarsely as some configuration can run it.

    The columns are padded to a power of two, or to the sum of two where that is less: 66 to 64 + 16, not to 128. An
    analysis that takes several tiles reads the field once for each; a synthesis goes through blocks of modes.
    """
    cuts = list(_cuts(problem))
    return next((cut for cut in cuts if _first_fitting(problem, cut) is not None), cuts[0])


def _cuts(problem: Problem) -> Iterator[Tiles]:
    """Yields ways to cut the modes, coarse ones first."""
    m, k = problem.m, problem.k
    modes = min(_power_of_two(m, 16), MAX_MODES)
    whole = _power_of_two(2 * k, 16)
    main = whole // 2
    rest = _power_of_two(2 * k - main, 16)
    if main < 16 or main + rest >= whole:
        main, rest = whole, 0
    if main > MAX_COLUMNS:
        main, rest = MAX_COLUMNS, 0
    if problem.kernel != "synthesis" or (modes * (main + rest) <= MAX_RESIDENT and m <= modes and 2 * k <= main + rest):
        yield Tiles(modes, main, rest)
    if problem.kernel in GRADIENTS:  # which need all modes of an image in a tile
        return
    # a single column tile from here on: halves the larger of both as long as there is one
    if problem.kernel == "synthesis":
        modes, main = min(modes, 64), min(main, 64)
        yield Tiles(modes, main, 0)
    elif rest:
        yield Tiles(modes, main, 0)
    while max(modes, main) > 16:
        modes, main = (modes // 2, main) if modes > main else (modes, main // 2)
        yield Tiles(modes, main, 0)


def shared_bytes(problem: Problem, config: Config) -> int:
    """Estimates the shared memory of a program from above.

    Args:
        problem: What is computed.
        config: With which tiles.

    Returns:
        Bytes. The tests compare it with what the compiler takes.
    """
    return _shared_bytes(problem, tiles(problem), config)


def _shared_bytes(problem: Problem, t: Tiles, config: Config) -> int:
    size, columns = problem.operand_bytes, t.main + t.rest
    rows = config.images * config.rows
    split = 2 if problem.precision == "tf32x3" else 1  # large and small parts of every operand
    field = rows * config.cols * problem.itemsize
    last = columns * config.cols * size
    leading = 2 * t.modes * config.rows * size
    sums = rows * columns * size
    modes = 2 * t.modes * columns * size
    if problem.kernel == "synthesis":
        loads = split * config.stages * last + config.stages * field
        return split * modes + max(split * leading, loads) + 1024  # for barriers, here and below
    # what is written is brought into another order through shared memory
    if problem.kernel == "analysis":
        needed = max(config.stages * (field + last), split * leading) + split * sums
        written = 2 * t.modes * t.main * config.images * 4
    elif problem.kernel == "leading_gradient":
        needed = max(config.stages * split * (field + last), split * modes) + split * sums
        written = 2 * t.modes * rows * 4
    else:
        needed = split * (config.stages * (field + leading + modes) + sums)
        written = config.cols * t.main * 4
    return max(needed, written) + 1024


def register_bytes(problem: Problem, config: Config) -> int:
    """Estimates how much of the registers the sums and the tiles in flight take, in bytes of a thread."""
    return _register_bytes(problem, tiles(problem), config)


def _register_bytes(problem: Problem, t: Tiles, config: Config) -> int:
    columns, threads = t.main + t.rest, 32 * config.warps
    rows = config.images * config.rows
    if problem.kernel == "analysis":
        numbers = (2 * t.modes * config.images + rows) * columns + 2 * t.modes * config.rows // 2
        if problem.precision == "tf32x3":  # operands in two parts
            numbers += rows * columns + 2 * t.modes * config.rows
    elif problem.kernel == "leading_gradient":
        numbers = (t.modes + rows) * columns + 2 * t.modes * rows
    elif problem.kernel == "last_gradient":
        numbers = (config.cols + rows) * columns + 2 * t.modes * rows // 2 + rows * config.cols
    else:
        numbers = 2 * t.modes * columns + config.rows * (columns + 2 * config.cols)
    return 4 * numbers // threads


def fits(problem: Problem, config: Config) -> bool:
    """Whether a configuration can run a problem: shared memory, registers, alignment, no idle warps."""
    return _fits(problem, tiles(problem), config)


def _fits(problem: Problem, t: Tiles, config: Config) -> bool:
    rows = config.images * config.rows
    if config.descriptors and (config.images > 1 or not aligned(problem)):
        return False
    if problem.kernel != "analysis" and config.images > 1:
        return False
    if problem.kernel in GRADIENTS and (config.descriptors or not _holds_modes(problem, t)):
        return False
    # chained products spread warps over rows only: more would compute the same again
    if 16 * config.warps > _busy_rows(problem, t, rows):
        return False
    shared = _shared_bytes(problem, t, config)
    return shared <= SHARED_BYTES and _register_bytes(problem, t, config) <= MAX_REGISTER_BYTES


def holds_modes(problem: Problem) -> bool:
    """Whether a tile takes all modes of an image, without which there is no kernel for the gradients."""
    return _holds_modes(problem, tiles(problem))


def _holds_modes(problem: Problem, t: Tiles) -> bool:
    return problem.m <= t.modes and 2 * problem.k <= t.main + t.rest


def candidates(problem: Problem) -> Iterator[Config]:
    """Yields every configuration worth measuring on a problem, each of which fits it.

    Args:
        problem: What is computed.

    Yields:
        Configurations, :func:`choose`'s first choice among them.
    """
    yield from _candidates(problem, tiles(problem))


def _candidates(problem: Problem, t: Tiles) -> Iterator[Config]:
    rows_needed, cols_needed = _power_of_two(problem.n1, 64), _power_of_two(problem.n2, 16)
    for descriptors in (True, False):
        for images, rows in ((1, 64), (1, 128), (1, 256), (2, 64), (2, 128)):
            for cols in (16, 32, 64, 128, 256):
                for warps in (4, 8, 16):
                    for stages in (1, 2, 3, 4):
                        config = Config(images, rows, cols, warps, stages, descriptors)
                        useful = rows <= rows_needed and cols <= cols_needed and (stages == 1 or cols < cols_needed)
                        if useful and _fits(problem, t, config):
                            yield config


@cache
def choose(problem: Problem) -> Config:
    """The configuration that is taken where none is given.

    Args:
        problem: What is computed.

    Returns:
        The first of a list that fits, or else the first of the :func:`candidates`.

    Raises:
        LookupError: None fits; :func:`served` says so beforehand.
    """
    config = _first_fitting(problem, tiles(problem))
    if config is None:
        raise LookupError(f"no configuration fits {problem}")
    return config


def served(problem: Problem) -> bool:
    """Whether a kernel can run a problem; a gradient of more modes than a tile has none (:func:`holds_modes`)."""
    return _first_fitting(problem, tiles(problem)) is not None


@cache
def _first_fitting(problem: Problem, t: Tiles) -> Config | None:
    for preferred in _PREFERRED[problem.kernel]:
        for descriptors in (True, False):
            rows = min(preferred[0], _power_of_two(problem.n1, 64))
            cols = min(preferred[1], _power_of_two(problem.n2, 16))
            stages = 1 if cols >= problem.n2 else preferred[3]
            warps = min(preferred[2], _busy_rows(problem, t, rows) // 16)
            config = Config(1, rows, cols, warps, stages, descriptors)
            if _fits(problem, t, config):
                return config
    limit = ANALYSIS_REGISTER_BYTES if problem.kernel == "analysis" else MAX_REGISTER_BYTES
    return next((c for c in _candidates(problem, t) if _register_bytes(problem, t, c) <= limit), None)


# rows, columns, warps, stages: best first as far as registers, spills and shared memory tell
_PREFERRED: dict[Kernel, tuple[tuple[int, int, int, int], ...]] = {
    "analysis": ((128, 32, 8, 3), (64, 32, 8, 3), (64, 32, 4, 3), (64, 32, 16, 3), (64, 16, 4, 2)),
    "synthesis": ((128, 64, 8, 1), (64, 64, 4, 1), (64, 32, 4, 1), (64, 16, 4, 1)),
    "leading_gradient": ((128, 32, 8, 3), (64, 32, 8, 3), (64, 32, 4, 2), (64, 16, 4, 2)),
    "last_gradient": ((64, 128, 8, 1), (64, 64, 4, 1), (64, 32, 8, 1), (64, 16, 4, 1)),
}


def _busy_rows(problem: Problem, t: Tiles, rows: int) -> int:
    """Rows of the largest product that warps can share."""
    return rows if problem.kernel == "synthesis" else max(rows, 2 * t.modes)


def aligned(problem: Problem) -> bool:
    """Whether rows start at multiples of 16 bytes, in the field and in the matrices."""
    return problem.n2 * problem.operand_bytes % 16 == 0 and problem.n1 * problem.operand_bytes % 16 == 0


def _power_of_two(n: int, least: int) -> int:
    return max(least, 1 << (n - 1).bit_length())
