import itertools
import time

import numpy as np
import pytest
from scipy.spatial import cKDTree

from sciml_monarch.errors import InputError
from sciml_monarch.mri import poisson
from sciml_monarch.mri.masks import PoissonMask, acceleration_of
from sciml_monarch.mri.poisson import calibration_box, k_radius, least_distance, poisson_disc

SHAPES = [(64, 64), (65, 97), (128, 128), (320, 320), (512, 160), (640, 372)]


def margins(mask, box, slope, shape):
    """Distances of pairs of samples outside the box, minus what they must be at least."""
    y, x = np.nonzero(mask & ~box)
    least = least_distance(k_radius(shape), slope)[y, x]
    pairs = cKDTree(np.c_[y, x]).query_pairs(float(least.max()), output_type="ndarray")
    if not len(pairs):
        return np.array([np.inf])
    p, q = pairs.T
    return np.hypot(y[p] - y[q], x[p] - x[q]) - (least[p] + least[q]) / 2


@pytest.mark.parametrize("acceleration", [2, 4, 8, 16])
@pytest.mark.parametrize("shape", SHAPES)
def test_pattern_has_what_it_promises(shape, acceleration):
    calibration = (24, 24) if shape[0] * shape[1] / acceleration > 1200 else (8, 8)
    mask, slope = poisson_disc(shape, acceleration, calibration, True, (1, 2))
    box, radius = calibration_box(shape, calibration), k_radius(shape)
    assert mask.size / mask.sum() == pytest.approx(acceleration, rel=2e-3)
    assert mask[box].all()
    assert not mask[(radius > 1) & ~box].any()
    assert margins(mask, box, slope, shape).min() >= 0
    assert slope > 0.1
    rings = [mask[(radius >= r) & (radius < r + 0.2) & ~box].mean() for r in (0.2, 0.4, 0.6, 0.8)]
    assert all(inner > outer for inner, outer in itertools.pairwise(rings)), rings
    # no holes: every point of the ellipse has a sample within the largest drawn distance
    y, x = np.nonzero((radius <= 1) & ~mask)
    gaps, _ = cKDTree(np.argwhere(mask)).query(np.c_[y, x])
    allowed = np.sqrt(2) * least_distance(radius, slope).max()
    assert (gaps <= allowed).mean() > 0.98  # all but those whose nearest sample was trimmed away


def test_random_points_of_the_same_density_would_fail():
    mask, slope = poisson_disc((128, 128), 4.0, (0, 0), True, 0)
    radius = k_radius((128, 128))
    generator = np.random.default_rng(0)
    drawn = np.zeros_like(mask)
    for r in np.arange(0, 1, 0.05):
        ring = (radius >= r) & (radius < r + 0.05)
        drawn[ring] = generator.random(ring.sum()) < mask[ring].mean()
    assert (margins(drawn, np.zeros_like(mask), slope, mask.shape) < 0).sum() > 500


def test_parallel_and_sequential_dart_throwing_agree(monkeypatch):
    monkeypatch.setattr(poisson, "_WIDEST", 10**6)
    generator = np.random.default_rng(0)
    for shape in ((64, 64), (50, 81)):
        stretch = 1 + 0.41 * generator.random(shape)
        order = generator.permutation(shape[0] * shape[1]).reshape(shape)
        candidates = k_radius(shape) <= 1
        for slope in (0.0, 0.5, 3.0, 8.0, 20.0, 60.0):
            least = least_distance(k_radius(shape), slope)
            fast = poisson._throw_darts(least, stretch, order, candidates)
            slow = poisson._throw_few_darts(least * stretch, order, candidates)
            assert np.array_equal(fast, slow)
            assert fast.sum() >= 1


def test_seeds_shapes_and_corners():
    mask = PoissonMask(5.0, (8, 12), crop_corners=False)
    first, again, other = mask((60, 90), 3), mask((60, 90), (3,)), mask((60, 90), 4)
    assert first.equal(again)  # a number and a tuple of one are one seed
    assert not first.equal(other)
    assert first.equal(PoissonMask(5.0, (8, 12), crop_corners=False)((60, 90), 3))
    assert first.numpy()[k_radius((60, 90)) > 1].any()
    assert acceleration_of(first) == pytest.approx(5.0, rel=1e-3)
    assert first.numpy()[calibration_box((60, 90), (8, 12))].all()


def test_the_pattern_of_a_seed_never_changes():
    mask, _ = poisson_disc((32, 32), 4.0, (6, 6), True, (10, 20))
    assert mask.sum() == 256
    assert np.flatnonzero(mask)[[0, 50, 100, 150, 200]].tolist() == [16, 312, 445, 561, 703]


def test_extreme_requests_end_soon():
    begin = time.perf_counter()
    for shape, acceleration, calibration in (
        ((320, 320), 1000.0, 0),
        ((320, 320), 177.0, 24),
        ((64, 64), 4096.0, 0),
        ((64, 64), 64 * 64 / 576, 24),  # the calibration box and nothing else
        ((1, 300), 4.0, 0),
        ((2, 3), 2.0, 0),
        ((320, 372), 1.28, 24),
    ):
        mask, _ = poisson_disc.__wrapped__(shape, acceleration, (min(calibration, shape[0]),) * 2, True, 0)
        assert mask.sum() == round(shape[0] * shape[1] / acceleration)
    assert poisson_disc.__wrapped__((64, 64), 1.0, (24, 24), False, 0)[0].all()
    assert time.perf_counter() - begin < 10


def test_320_points_squared_take_less_than_two_seconds():
    begin = time.perf_counter()
    poisson_disc.__wrapped__((320, 320), 8.0, (24, 24), True, 11)
    assert time.perf_counter() - begin < 2


@pytest.mark.parametrize(
    ("acceleration", "calibration", "corners", "message"),
    [
        (0.5, 8, True, "acceleration=0.5 must be at least 1"),
        (float("nan"), 8, True, "must be at least 1"),
        (1.1, 8, True, "at least 1.2.*not 1.1; raise it or set crop_corners"),
        (16.0, 24, True, "leaves 256 samples .* 24 x 24 calibration box alone has 576"),
        (4.0, 65, True, "65 x 65 does not fit a 64 x 64 grid"),
        (4.0, -1, True, "does not fit"),
    ],
)
def test_impossible_requests_are_refused(acceleration, calibration, corners, message):
    with pytest.raises(InputError, match=message):
        PoissonMask(acceleration, calibration, corners)((64, 64), 0)
