"""Sampling patterns: which points of k-space an accelerated scan measures.

The column patterns equal those of ``fastmri.data.subsample`` for the same seed, bit by bit, so that scores can be
compared; they are drawn from generators of their own and leave the global ones alone. Rows and columns that a scanner
never measured are removed by ``mask_box``, as fastMRI does with columns.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.mri.poisson import poisson_disc

Seed = int | tuple[int, ...]


class Mask(ABC):
    """A recipe for sampling patterns.

    Attributes:
        fits_box: Whether patterns are drawn on the acquired part of k-space alone, where the rest was filled up with
            zeros. Else they are drawn on the whole and cut, as fastMRI does with columns.
    """

    fits_box: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, shape: tuple[int, int], seed: Seed) -> Tensor:
        """Draws a pattern.

        Args:
            shape: Points of k-space, ``(ny, nx)``.
            seed: The same seed gives the same pattern; see :func:`seed_of`. Patterns from files ignore it.

        Returns:
            Bool, ``(1, nx)`` for whole columns or ``(ny, nx)``; True is sampled.

        Raises:
            InputError: No such pattern exists on this grid, or the seed is negative.
        """

    def nominal(self, shape: tuple[int, int], seed: Seed) -> float | None:
        """The acceleration that was asked for in the pattern of these arguments; ``None`` if the mask has no such one.

        Args:
            shape: Points of k-space, ``(ny, nx)``.
            seed: That of the pattern: of several accelerations it draws one.
        """
        return None


@dataclass(frozen=True)
class RandomMask(Mask):
    """Columns drawn independently, besides a fully sampled centre: fastMRI's ``RandomMaskFunc``.

    Args:
        accelerations: Columns over sampled columns, on average; of several, one is drawn a pattern.
        center_fractions: Share of the columns that is fully sampled in the centre; one for each acceleration.
    """

    accelerations: tuple[float, ...] = (4.0,)
    center_fractions: tuple[float, ...] = (0.08,)

    def __post_init__(self) -> None:
        _check_choices(self.accelerations, self.center_fractions)

    def __call__(self, shape: tuple[int, int], seed: Seed) -> Tensor:
        """Draws a pattern ``(1, nx)``; see :meth:`Mask.__call__`."""

        def columns(n: int, acceleration: float, n_center: int, generator: np.random.RandomState) -> NDArray[np.bool_]:
            probability = (n / acceleration - n_center) / (n - n_center)
            return generator.uniform(size=n) < probability

        return _draw_columns(shape[1], seed, self.accelerations, self.center_fractions, columns)

    def nominal(self, shape: tuple[int, int], seed: Seed) -> float:
        """The acceleration that the seed draws; see :meth:`Mask.nominal`."""
        return float(self.accelerations[_draw_choice(seed, len(self.accelerations))[0]])


@dataclass(frozen=True)
class EquispacedMask(Mask):
    """Every R-th column from a random first one, besides a fully sampled centre: fastMRI's ``EquiSpacedMaskFunc``.

    The centre comes on top, so that the acceleration is below R.

    Args:
        accelerations: Distances R between columns, whole numbers; of several, one is drawn a pattern.
        center_fractions: Share of the columns that is fully sampled in the centre; one for each acceleration.
    """

    accelerations: tuple[int, ...] = (4,)
    center_fractions: tuple[float, ...] = (0.08,)

    def __post_init__(self) -> None:
        _check_choices(self.accelerations, self.center_fractions)
        for acceleration in self.accelerations:
            if acceleration != int(acceleration):
                raise InputError(
                    f"columns cannot be {acceleration} apart; give a whole number, or use EquispacedFractionMask"
                )

    def __call__(self, shape: tuple[int, int], seed: Seed) -> Tensor:
        """Draws a pattern ``(1, nx)``; see :meth:`Mask.__call__`."""

        def columns(n: int, acceleration: float, n_center: int, generator: np.random.RandomState) -> NDArray[np.bool_]:
            distance = int(acceleration)
            return np.arange(n) % distance == generator.randint(distance)

        return _draw_columns(shape[1], seed, self.accelerations, self.center_fractions, columns)

    def nominal(self, shape: tuple[int, int], seed: Seed) -> float:
        """The acceleration that the seed draws; see :meth:`Mask.nominal`."""
        return float(self.accelerations[_draw_choice(seed, len(self.accelerations))[0]])


@dataclass(frozen=True)
class EquispacedFractionMask(Mask):
    """Evenly spread columns that reach the acceleration together with the centre: ``EquispacedMaskFractionFunc``.

    The distance is not a whole number as a rule, so that the gaps differ by one column; fastMRI's public data was
    made in this way.

    Args:
        accelerations: Columns over sampled columns; of several, one is drawn a pattern.
        center_fractions: Share of the columns that is fully sampled in the centre; one for each acceleration.
    """

    accelerations: tuple[float, ...] = (4.0,)
    center_fractions: tuple[float, ...] = (0.08,)

    def __post_init__(self) -> None:
        _check_choices(self.accelerations, self.center_fractions)

    def __call__(self, shape: tuple[int, int], seed: Seed) -> Tensor:
        """Draws a pattern ``(1, nx)``; see :meth:`Mask.__call__`."""

        def columns(n: int, acceleration: float, n_center: int, generator: np.random.RandomState) -> NDArray[np.bool_]:
            # (n - n_center) columns share what the centre leaves of n / acceleration; this order of operations
            # rounds as fastMRI's does
            distance = (acceleration * (n_center - n)) / (n_center * acceleration - n)
            first = generator.randint(round(distance))
            sampled = np.zeros(n, dtype=bool)
            sampled[np.around(np.arange(first, n - 1, distance)).astype(np.intp)] = True
            return sampled

        return _draw_columns(shape[1], seed, self.accelerations, self.center_fractions, columns)

    def nominal(self, shape: tuple[int, int], seed: Seed) -> float:
        """The acceleration that the seed draws; see :meth:`Mask.nominal`."""
        return float(self.accelerations[_draw_choice(seed, len(self.accelerations))[0]])


@dataclass(frozen=True)
class PoissonMask(Mask):
    """Points of both axes, at random with a least distance that grows away from the centre.

    For scans with two phase-encoded axes (3-D scans, cut into slices across the readout); see
    :func:`sciml_monarch.mri.poisson.poisson_disc`.

    Args:
        acceleration: Points of the grid over samples, met exactly up to rounding to whole samples.
        calibration: Size of the fully sampled box in the centre, for both axes or for each ``(y, x)``.
        crop_corners: Whether nothing is sampled outside the ellipse that touches the edges.
    """

    fits_box: ClassVar[bool] = True
    acceleration: float = 4.0
    calibration: int | tuple[int, int] = 24
    crop_corners: bool = True

    def __call__(self, shape: tuple[int, int], seed: Seed) -> Tensor:
        """Draws a pattern ``(ny, nx)``; see :meth:`Mask.__call__`."""
        both = self.calibration
        calibration = (both, both) if isinstance(both, int) else (both[0], both[1])
        _check_seed(seed)
        pattern, _ = poisson_disc((shape[0], shape[1]), float(self.acceleration), calibration, self.crop_corners, seed)
        return torch.from_numpy(pattern.copy())

    def nominal(self, shape: tuple[int, int], seed: Seed) -> float:
        """The acceleration; see :meth:`Mask.nominal`."""
        return float(self.acceleration)


def seed_of(name: str) -> tuple[int, ...]:
    """Seed of a volume from its file name, as in fastMRI's validation: the code points of its characters."""
    if not name:
        raise InputError("a volume without a name has no seed; name it, or give a seed")
    return tuple(map(ord, name))


def calibration_region(mask: Tensor, shape: tuple[int, int] | None = None) -> tuple[int, int]:
    """Finds the largest fully sampled box around the centre n // 2 of k-space.

    Args:
        mask: Bool, ``(..., 1|ny, nx)`` with one pattern.
        shape: ``(ny, nx)``; a pattern of whole columns is as high as that. None: as the mask is.

    Returns:
        ``(cy, cx)``: of all such boxes the one whose shorter side is longest, then the largest; (0, 0) where the
        centre is not sampled.
    """
    pattern = mask.reshape(mask.shape[-2:]).bool().cpu().numpy()
    ny, nx = pattern.shape if shape is None else shape
    if pattern.shape not in ((1, nx), (ny, nx)):
        raise InputError(f"a mask {tuple(mask.shape)} does not fit k-space of {ny} x {nx}")
    widths = [_central_run(row) for row in pattern]
    best = (0, 0)
    cx = nx
    for cy in range(1, ny + 1):
        # boxes of growing height gain one row each, alternately above and below the centre
        row = ny // 2 - cy // 2 if cy % 2 == 0 else ny // 2 + cy // 2
        cx = min(cx, widths[row if len(widths) > 1 else 0])
        if (min(cy, cx), cy * cx) > (min(best), best[0] * best[1]):
            best = (cy, cx)
    return best


def acceleration_of(mask: Tensor) -> float:
    """Points of the pattern over sampled points.

    Raises:
        InputError: Nothing is sampled.
    """
    n_samples = int(mask.count_nonzero())
    if n_samples == 0:
        raise InputError("the mask samples nothing, so that it has no acceleration")
    return mask.numel() / n_samples


def _central_run(row: NDArray[np.bool_]) -> int:
    """Length of the longest all-True stretch [n//2 - c//2, n//2 - c//2 + c)."""
    center = len(row) // 2
    if not row[center]:
        return 0
    left, right = row[:center][::-1], row[center:]
    n_left = len(left) if left.all() else int(left.argmin())
    n_right = len(right) if right.all() else int(right.argmin())
    # c points need c // 2 on the left and c - c // 2 from the centre on
    return min(2 * n_left + 1, 2 * n_right)


def _draw_columns(
    n: int,
    seed: Seed,
    accelerations: tuple[float, ...],
    center_fractions: tuple[float, ...],
    columns: Callable[[int, float, int, np.random.RandomState], NDArray[np.bool_]],
) -> Tensor:
    """Draws which of the accelerations, then the columns outside the centre: fastMRI's order of random numbers."""
    choice, generator = _draw_choice(seed, len(center_fractions))
    n_center = round(n * center_fractions[choice])
    # fastMRI draws with a negative probability here, or spreads columns that are too many already
    if n_center * accelerations[choice] >= n:
        raise InputError(
            f"{n_center} central of {n} columns leave none for acceleration {accelerations[choice]:g}; "
            "lower center_fractions or the acceleration"
        )
    sampled = columns(n, accelerations[choice], n_center, generator)
    first = (n - n_center + 1) // 2
    sampled[first : first + n_center] = True
    return torch.from_numpy(sampled)[None]


def _draw_choice(seed: Seed, n: int) -> tuple[int, np.random.RandomState]:
    """Which of n choices a seed draws, and the generator after that."""
    _check_seed(seed)
    generator = np.random.RandomState(seed)
    return int(generator.randint(n)), generator


def _check_choices(accelerations: tuple[float, ...], center_fractions: tuple[float, ...]) -> None:
    if len(accelerations) != len(center_fractions) or not accelerations:
        raise InputError(
            f"{len(accelerations)} accelerations and {len(center_fractions)} center_fractions; one of each a choice"
        )
    for acceleration in accelerations:
        if not 1 <= acceleration < float("inf"):
            raise InputError(f"acceleration {acceleration} must be at least 1")
    for fraction in center_fractions:
        if not 0 <= fraction <= 1:
            raise InputError(f"center fraction {fraction} must be between 0 and 1")


def _check_seed(seed: Seed) -> None:
    words = (seed,) if isinstance(seed, int) else seed
    if not words or any(not 0 <= word < 2**32 for word in words):
        raise InputError(f"a seed is one or several whole numbers from 0 to 2^32 - 1, not {seed}")
