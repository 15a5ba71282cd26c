"""Variable-density Poisson-disc sampling of a Cartesian grid, in bounded time.

Random sampling leaves clumps and holes; holes are what parallel imaging cannot fill. A Poisson-disc pattern is random
with a least distance between samples (Cook, "Stochastic sampling in computer graphics", ACM TOG 5:51-72, 1986);
in MRI the distance grows with the distance from the centre of k-space (Vasanawala et al., "Practical parallel imaging
compressed sensing MRI", IEEE ISBI 2011).

Dart throwing: points are visited in a random order and kept if no kept point is too near. Whether two points are too
near is symmetric, so the result is the first maximal independent set of the conflict graph in that order, and it is
found in parallel: all points that stand before every rival of theirs are kept at once, their rivals leave, and so on
(Luby, SIAM J. Comput. 15:1036-1053, 1986). Every round keeps at least one point, so it cannot hang.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sciml_monarch.errors import InputError

_SPREAD = math.sqrt(2)  # largest ratio between successive distances on the grid: 1, sqrt 2, 2, sqrt 5, ...
_MAX_TRIALS = 40
_WIDEST = 16  # sampling steps; beyond, the discs hold too many points to go through them all


def least_distance(radius: NDArray[np.float64], slope: float) -> NDArray[np.float64]:
    """Least distance between samples, in sampling steps, at a k-space radius (1: half the grid on each axis).

    (1 + slope radius) / sqrt(2): at the centre all points are kept, since drawn distances stay below 1 there.
    """
    return (1 + slope * radius) / _SPREAD


def k_radius(shape: tuple[int, int]) -> NDArray[np.float64]:
    """Elliptical distance from the centre n // 2 of the grid, 1 on the ellipse that touches its edges: ``(ny, nx)``."""
    y, x = ((np.arange(n) - n // 2) / (n / 2) for n in shape)
    return np.sqrt(y[:, None] ** 2 + x[None, :] ** 2)


def calibration_box(shape: tuple[int, int], calibration: tuple[int, int]) -> NDArray[np.bool_]:
    """Where the central ``calibration`` points are, bool ``(ny, nx)``."""
    box = np.zeros(shape, dtype=bool)
    (ny, nx), (cy, cx) = shape, calibration
    box[ny // 2 - cy // 2 : ny // 2 - cy // 2 + cy, nx // 2 - cx // 2 : nx // 2 - cx // 2 + cx] = True
    return box


@lru_cache(maxsize=64)
def poisson_disc(
    shape: tuple[int, int],
    acceleration: float,
    calibration: tuple[int, int],
    crop_corners: bool,
    seed: int | tuple[int, ...],
) -> tuple[NDArray[np.bool_], float]:
    """Draws a pattern with exactly ``round(ny nx / acceleration)`` samples.

    Any two samples p, q outside the calibration box have a distance of at least the mean of
    ``least_distance(k_radius, slope)`` at p and q. Each point multiplies its own least distance by a random number
    between 1 and sqrt(2): distances on a grid are few, and without it the density would fall in steps. The slope is
    the one with which the same random numbers give slightly more samples than asked for; the surplus, at most a few
    per mille as a rule, is then taken away at random. Results are remembered, since a volume's slices share a mask.

    Args:
        shape: Points of the grid, ``(ny, nx)``.
        acceleration: Points of the grid over samples, at least 1.
        calibration: Size of the fully sampled box in the centre, ``(cy, cx)``; 0 for none.
        crop_corners: Whether nothing is sampled outside the ellipse that touches the edges.
        seed: Seed of a private generator.

    Returns:
        The pattern, read-only bool ``(ny, nx)``, and the slope of :func:`least_distance`.

    Raises:
        InputError: No pattern has these properties, or an option is out of range.
    """
    ny, nx = shape
    if min(calibration) < 0 or calibration[0] > ny or calibration[1] > nx:
        raise InputError(f"a calibration box of {calibration[0]} x {calibration[1]} does not fit a {ny} x {nx} grid")
    if not (math.isfinite(acceleration) and acceleration >= 1):
        raise InputError(f"acceleration={acceleration} must be at least 1")
    radius = k_radius(shape)
    box = calibration_box(shape, calibration)
    allowed = box | (radius <= 1) if crop_corners else np.ones(shape, dtype=bool)
    n_samples = round(ny * nx / acceleration)
    if n_samples > allowed.sum():
        raise InputError(
            f"without the corners a {ny} x {nx} grid has {allowed.sum()} points: the acceleration is at least "
            f"{ny * nx / allowed.sum():.4g}, not {acceleration:g}; raise it or set crop_corners to false"
        )
    if n_samples < max(box.sum(), 1):
        raise InputError(
            f"acceleration {acceleration:g} leaves {n_samples} samples of a {ny} x {nx} grid, but the {calibration[0]} "
            f"x {calibration[1]} calibration box alone has {box.sum()}; lower the acceleration or the box"
        )
    generator = np.random.default_rng(seed)
    order = generator.permutation(ny * nx).reshape(shape)
    stretch = 1 + (_SPREAD - 1) * generator.random(shape)
    candidates = allowed & ~box
    n_wanted = n_samples - int(box.sum())

    def pattern(slope: float) -> NDArray[np.bool_]:
        return _throw_darts(least_distance(radius, slope), stretch, order, candidates)

    chosen, slope = _search(pattern, candidates, n_wanted) if n_wanted else (np.zeros_like(box), 0.0)
    surplus = np.flatnonzero(chosen)
    chosen.flat[generator.permutation(surplus)[: len(surplus) - n_wanted]] = False
    mask = chosen | box
    mask.setflags(write=False)  # it is shared by all who ask for it
    return mask, slope


def _search(
    pattern: Callable[[float], NDArray[np.bool_]], candidates: NDArray[np.bool_], n_wanted: int
) -> tuple[NDArray[np.bool_], float]:
    """Finds the slope whose pattern has n_wanted samples or a few more; the count falls as the slope grows."""
    below, chosen = 0.0, candidates.copy()  # at slope 0 everything is kept
    above, n_above = math.inf, 0
    guess = max(1.0, 2 * math.sqrt(candidates.sum() / max(n_wanted, 1)))
    for _ in range(_MAX_TRIALS):
        n_below = int(chosen.sum())
        if n_below - n_wanted <= max(0.004 * n_wanted, 1):
            break
        trial = pattern(guess)
        n = int(trial.sum())
        if n >= n_wanted:
            below, chosen, n_below = guess, trial, n
        else:
            above, n_above = guess, n
        if math.isinf(above):
            guess *= 2
        else:
            # straight line through the two counts, aimed a little above the wanted one; kept off the ends
            aim = (n_below - 1.002 * n_wanted) / max(n_below - n_above, 1)
            guess = below + (above - below) * min(max(aim, 0.1), 0.9)
    return chosen, below


def _throw_darts(
    least: NDArray[np.float64],
    stretch: NDArray[np.float64],
    order: NDArray[np.int64],
    candidates: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Keeps candidates in their order unless a kept one is nearer than the mean of the two drawn distances."""
    drawn = least * stretch
    margin = math.ceil(float(drawn[candidates].max(initial=0.0)))
    if margin > _WIDEST:
        return _throw_few_darts(drawn, order, candidates)
    ny, nx = least.shape
    width = nx + 2 * margin
    never = np.iinfo(order.dtype).max  # the place in the order of what is no candidate any more
    place = np.full((ny + 2 * margin, width), never)
    place[margin : margin + ny, margin : margin + nx] = np.where(candidates, order, never)
    reach = np.pad(drawn, margin).ravel()
    place = place.ravel()
    steps = np.arange(-margin, margin + 1)
    dy, dx = (a.ravel() for a in np.meshgrid(steps, steps, indexing="ij"))
    distance = np.sqrt(dy * dy + dx * dx)
    near = (distance > 0) & (distance < drawn[candidates].max(initial=0.0))
    nearest_first = np.lexsort((dx[near], dy[near], distance[near]))
    offsets = (dy * width + dx)[near][nearest_first]
    distance = distance[near][nearest_first]

    # An upper bound of the distance at which a point may still have a rival, from the steepest growth of `least`.
    growth = _SPREAD * max(_steepest(least, 0), _steepest(least, 1)) * math.sqrt(2)
    farthest = np.full(least.shape, np.inf) if growth >= 2 else (drawn + _SPREAD * least) / (2 - growth)
    farthest = np.pad(farthest, margin).ravel()

    kept = np.zeros(place.shape, dtype=bool)
    active = np.flatnonzero(place < never)
    while len(active):
        first = active
        winners = []
        for offset, d in zip(offsets, distance, strict=True):
            beyond = farthest[first] <= d
            if beyond.any():
                winners.append(first[beyond])
                first = first[~beyond]
            if not len(first):
                break
            rival = first + offset
            beaten = (place[rival] < place[first]) & (reach[rival] + reach[first] > 2 * d)
            first = first[~beaten]
        new = np.concatenate((*winners, first))
        kept[new] = True
        place[new] = never
        for offset, d in zip(offsets, distance, strict=True):
            new = new[farthest[new] > d]
            rival = new + offset
            place[rival[reach[rival] + reach[new] > 2 * d]] = never
        active = active[place[active] < never]
    return kept.reshape(ny + 2 * margin, width)[margin : margin + ny, margin : margin + nx].copy()


def _throw_few_darts(
    drawn: NDArray[np.float64], order: NDArray[np.int64], candidates: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """The same one dart at a time: faster where distances are so large that few are kept."""
    kept = np.zeros(drawn.shape, dtype=bool)
    y, x = np.nonzero(candidates)
    sequence = np.argsort(order[y, x])
    y, x = y[sequence], x[sequence]
    reach = drawn[y, x]
    while len(y):
        kept[y[0], x[0]] = True
        away = 2 * np.sqrt((y - y[0]) ** 2 + (x - x[0]) ** 2) >= reach + reach[0]
        away[0] = False
        y, x, reach = y[away], x[away], reach[away]
    return kept


def _steepest(least: NDArray[np.float64], axis: int) -> float:
    return float(np.abs(np.diff(least, axis=axis)).max(initial=0.0))
