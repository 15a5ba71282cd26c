import random
import warnings
from argparse import ArgumentError
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from fastmri.data import subsample

from sciml_monarch.errors import InputError
from sciml_monarch.mri.file_mask import FileMask
from sciml_monarch.mri.mask_box import draw_within, within_box
from sciml_monarch.mri.masks import (
    EquispacedFractionMask,
    EquispacedMask,
    Mask,
    PoissonMask,
    RandomMask,
    acceleration_of,
    calibration_region,
    seed_of,
)

PAIRS = [
    (RandomMask, subsample.RandomMaskFunc),
    (EquispacedMask, subsample.EquiSpacedMaskFunc),
    (EquispacedFractionMask, subsample.EquispacedMaskFractionFunc),
]
CHOICES = [((4,), (0.08,)), ((8,), (0.04,)), ((4, 8), (0.08, 0.04)), ((2, 3, 6), (0.1, 0.0, 0.02))]


@pytest.mark.parametrize(("accelerations", "center_fractions"), CHOICES)
@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_column_masks_equal_those_of_fastmri_bit_by_bit(ours, theirs, accelerations, center_fractions):
    mask, reference = ours(accelerations, center_fractions), theirs(center_fractions, accelerations)
    seen = set()
    for width in (7, 8, 19, 64, 101, 320, 368, 372, 373, 640):
        for seed in (0, 1, 17, (3,), (1, 2, 3), seed_of("file1000017.h5")):
            expected, _ = reference((1, 16, width, 2), seed=seed)
            drawn = mask((16, width), seed)
            assert drawn.dtype == torch.bool
            assert drawn.shape == (1, width)
            assert torch.equal(drawn, expected.reshape(1, width).bool()), (width, seed)
            seen.add((width, bytes(drawn.numpy().tobytes())))
    assert len(seen) > 20  # they do depend on the seed


def test_fractional_accelerations_equal_those_of_fastmri():
    for ours, theirs in (PAIRS[0], PAIRS[2]):
        expected, _ = theirs((0.06,), (3.7,))((1, 8, 333, 2), seed=5)
        assert torch.equal(ours((3.7,), (0.06,))((8, 333), 5), expected.reshape(1, 333).bool())


@pytest.mark.parametrize("mask", [RandomMask(), EquispacedMask(), EquispacedFractionMask(), PoissonMask(4, 8)])
def test_global_generators_are_left_alone(mask):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    first = mask((40, 44), (9, 9))
    after = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    assert before[0] == after[0]
    assert all(np.array_equal(a, b) for a, b in zip(before[1], after[1], strict=True))
    assert torch.equal(before[2], after[2])
    np.random.seed(7)  # noqa: NPY002
    assert torch.equal(first, mask((40, 44), (9, 9)))


def test_masks_are_built_from_yaml():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--mask", type=Mask)
    for name, init, expected in (
        ("RandomMask", "{accelerations: [4, 8], center_fractions: [0.08, 0.04]}", RandomMask((4, 8), (0.08, 0.04))),
        ("EquispacedMask", "{accelerations: [6]}", EquispacedMask((6,))),
        ("PoissonMask", "{acceleration: 8, calibration: [10, 8]}", PoissonMask(8.0, (10, 8))),
    ):
        text = f"{{class_path: sciml_monarch.mri.masks.{name}, init_args: {init}}}"
        built = parser.instantiate(parser.parse_args([f"--mask={text}"])).mask
        assert built((40, 50), 1).equal(expected((40, 50), 1))
    with pytest.raises(ArgumentError, match="acceleratons"):
        parser.parse_args(["--mask={class_path: sciml_monarch.mri.masks.RandomMask, init_args: {acceleratons: [4]}}"])


def test_masks_are_values():
    assert RandomMask() == RandomMask((4.0,), (0.08,))
    with pytest.raises(AttributeError):
        RandomMask().accelerations = (8,)
    mask = PoissonMask(4, 8)
    drawn = mask((32, 32), 0)
    drawn[:] = False  # what one caller does to a pattern does not reach the next
    assert mask((32, 32), 0).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomMask((4, 8), (0.08,)), "2 accelerations and 1 center_fractions"),
        (lambda: RandomMask((), ()), "0 accelerations"),
        (lambda: RandomMask((0.5,), (0.08,)), "acceleration 0.5 must be at least 1"),
        (lambda: RandomMask((4,), (1.5,)), "center fraction 1.5"),
        (lambda: EquispacedMask((2.5,), (0.08,)), "2.5 apart"),
        (lambda: EquispacedFractionMask((8,), (0.2,))((4, 100), 0), "20 central of 100 columns leave none"),
        (lambda: RandomMask((40,), (0.25,))((4, 32), 0), "8 central of 32 columns leave none for acceleration 40"),
        (lambda: EquispacedMask((8,), (0.2,))((4, 100), 0), "20 central of 100 columns leave none"),
        (lambda: RandomMask()((4, 100), -1), "not -1"),
        (lambda: PoissonMask()((100, 100), (1, -2)), "whole numbers"),
        (lambda: seed_of(""), "without a name"),
        (lambda: acceleration_of(torch.zeros(1, 5, dtype=torch.bool)), "samples nothing"),
        (lambda: calibration_region(torch.ones(1, 5), (4, 6)), "does not fit"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_seed_of_a_name_is_its_code_points():
    assert seed_of("ab1") == (97, 98, 49)


def test_what_lies_outside_the_box_is_removed():
    mask = torch.ones(1, 10, dtype=torch.bool)
    assert within_box(mask, (0, 4, 2, 7), 4)[0].tolist() == [False] * 2 + [True] * 5 + [False] * 3
    assert torch.equal(within_box(mask, (0, 4, 0, 10), 4), mask)
    assert within_box(torch.ones(4, 10, dtype=torch.bool), (0, 4, 2, 7), 4).sum() == 20
    for rows in (1, 4):
        cut = within_box(torch.ones(rows, 10, dtype=torch.bool), (1, 3, 2, 7), 4)
        assert cut.shape == (4, 10)
        assert cut[1:3, 2:7].all()
        assert cut.sum() == 10


@pytest.mark.parametrize("box", [(6, 58, 10, 30), (6, 58, 0, 40), (0, 64, 10, 30), (7, 58, 10, 29), (0, 64, 0, 40)])
def test_poisson_masks_are_drawn_inside_the_box(box):
    """52 x 20 of 64 x 40, as SKM-TEA's 416 x 80 of 512 x 160: the acceleration is that of what was acquired."""
    top, bottom, left, right = box
    mask = draw_within(PoissonMask(6.0, 8), (64, 40), box, 3)
    inside = mask[top:bottom, left:right]
    assert mask.sum() == inside.sum() > 0
    assert acceleration_of(inside) == pytest.approx(6.0, rel=0.05)
    assert mask[28:36, 16:24].all()  # the calibration box is around the centre of k-space
    if box == (6, 58, 10, 30):
        assert torch.equal(inside, PoissonMask(6.0, 8)((52, 20), 3))


def test_column_masks_are_drawn_on_the_whole_width_and_cut():
    mask = EquispacedFractionMask((4,), (0.1,))
    drawn = draw_within(mask, (64, 40), (0, 64, 10, 30), 5)
    assert torch.equal(drawn, within_box(mask((64, 40), 5), (0, 64, 10, 30), 64))
    assert drawn.shape == (1, 40)
    assert draw_within(mask, (64, 40), (6, 58, 10, 30), 5).shape == (64, 40)


def test_a_scan_that_reaches_further_on_one_side_keeps_its_centre():
    mask = draw_within(PoissonMask(3.0, 8), (64, 40), (0, 64, 0, 30), 0)
    assert not mask[:, 30:].any()
    assert mask[28:36, 16:24].all()
    assert acceleration_of(mask[:, :30]) == pytest.approx(3.0, rel=0.25)


@pytest.mark.parametrize("kind", [RandomMask, EquispacedMask, EquispacedFractionMask])
def test_a_mask_says_which_acceleration_it_drew(kind):
    mask = kind((3, 6), (0.1, 0.05))
    seeds = [seed_of(f"file{i}.h5") for i in range(12)]
    found = [mask.nominal((64, 320), seed) for seed in seeds]
    assert set(found) == {3.0, 6.0}
    for seed, nominal in zip(seeds, found, strict=True):
        alone = acceleration_of(mask((64, 320), seed))
        assert abs(alone - nominal) < abs(alone - (9.0 - nominal))
    assert PoissonMask(5.0).nominal((64, 64), 0) == 5.0
    assert FileMask(Path("mask.npy")).nominal((64, 64), 0) is None


def brute_force_region(mask):
    ny, nx = mask.shape
    best = (0, 0)
    for cy in range(1, ny + 1):
        for cx in range(1, nx + 1):
            top, left = ny // 2 - cy // 2, nx // 2 - cx // 2
            full = mask[top : top + cy, left : left + cx].all()
            if full and (min(cy, cx), cy * cx) > (min(best), best[0] * best[1]):
                best = (cy, cx)
    return best


def test_calibration_region_is_the_largest_central_box():
    generator = np.random.default_rng(0)
    for ny, nx in ((8, 8), (9, 12), (11, 7), (6, 13)):
        for density in (0.7, 0.95, 1.0):
            for _ in range(10):
                mask = torch.from_numpy(generator.random((ny, nx)) < density)
                cy, cx = calibration_region(mask)
                expected = brute_force_region(mask)
                assert (min(cy, cx), cy * cx) == (min(expected), expected[0] * expected[1])
                assert (
                    brute_force_region(mask)[0] == 0
                    or mask[
                        ny // 2 - cy // 2 : ny // 2 - cy // 2 + cy, nx // 2 - cx // 2 : nx // 2 - cx // 2 + cx
                    ].all()
                )


def test_calibration_region_of_columns_is_as_high_as_k_space():
    mask = torch.zeros(1, 320, dtype=torch.bool)
    mask[0, 147:173] = True  # fastMRI's 26 central columns
    assert calibration_region(mask, (640, 320)) == (640, 26)
    assert calibration_region(mask[None, None], (640, 320)) == (640, 26)
    assert calibration_region(mask) == (1, 26)
    mask[0, 160] = False
    assert calibration_region(mask, (640, 320)) == (0, 0)
    assert calibration_region(PoissonMask(4, (10, 14), True)((65, 64), 0)) >= (10, 10)


def test_acceleration_counts_points():
    mask = torch.zeros(4, 10, dtype=torch.bool)
    mask[0, :8] = True
    assert acceleration_of(mask) == 5.0


def test_file_masks(tmp_path):
    columns = np.arange(12) % 3 == 0
    np.save(tmp_path / "columns.npy", columns.astype(np.float32))
    np.save(tmp_path / "points.npy", np.tile(columns, (5, 1)))
    acquired = np.ones((4, 6), dtype=np.uint8)
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["mask"] = columns
        file["masks/poisson_4.0x"] = acquired
    expected = torch.from_numpy(columns)[None]
    assert torch.equal(FileMask(tmp_path / "columns.npy")((7, 12), 3), expected)
    assert torch.equal(FileMask(tmp_path / "points.npy")((5, 12), 3), expected.expand(5, -1))
    assert torch.equal(FileMask(tmp_path / "scan.h5")((7, 12), (1, 2)), expected)
    padded = FileMask(tmp_path / "scan.h5", "poisson_4.0x")((8, 10), 0)
    assert torch.equal(padded[2:6, 2:8], torch.ones(4, 6, dtype=torch.bool))
    assert padded.sum() == 24
    np.save(tmp_path / "columns.npy", ~columns)  # a file written anew is read anew
    assert torch.equal(FileMask(tmp_path / "columns.npy")((7, 12), 3), ~expected)


def test_bad_file_masks_are_named(tmp_path):
    np.save(tmp_path / "columns.npy", np.ones(12, dtype=bool))
    np.save(tmp_path / "empty.npy", np.zeros(12, dtype=bool))
    np.save(tmp_path / "cube.npy", np.ones((2, 3, 12)))
    np.save(tmp_path / "nan.npy", np.full(12, np.nan))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "columns.npy").read_bytes()[:-4])
    (tmp_path / "text.h5").write_text("no HDF5")
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["kspace"] = np.ones(3)
        file["masks/poisson_4.0x"] = np.ones((20, 20))
    for name, key, message in (
        ("columns.npy", None, "1 x 12, k-space 7 x 13; a mask has 13 columns"),
        ("empty.npy", None, "samples nothing"),
        ("cube.npy", None, "one or two axes"),
        ("nan.npy", None, "one or two axes of numbers"),
        ("cut.npy", None, "cannot be read"),
        ("text.h5", None, "cannot be read"),
        ("absent.npy", None, "no such file"),
        ("scan.h5", None, "no mask 'mask'; the file holds kspace, masks, masks/poisson_4.0x"),
        ("scan.h5", "poisson_4.0x", "20 x 20, k-space 7 x 13"),
    ):
        with warnings.catch_warnings(), pytest.raises(InputError, match=message) as error:
            FileMask(tmp_path / name, key)((7, 13), 0)
        assert "\n" not in str(error.value)
        assert name in str(error.value)
