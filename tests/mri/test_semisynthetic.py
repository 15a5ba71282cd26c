"""Semi-synthetic scans: exact physics without noise, noise as announced, honest labels, anatomies, coils, mistakes."""

import json
import math
import runpy
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from sciml_monarch import InputError
from sciml_monarch.mri import anatomy as anatomies
from sciml_monarch.mri.anatomy import Anatomy, choose_slices, find_anatomies, onto_grid, open_anatomy, phantom
from sciml_monarch.mri.base import rss
from sciml_monarch.mri.evaluate import evaluate_mri
from sciml_monarch.mri.fourier import fft2c, ifft2c
from sciml_monarch.mri.io import Provenance, write_reconstruction
from sciml_monarch.mri.measured_coils import measured_maps, read_measurement
from sciml_monarch.mri.nifti import write_nifti
from sciml_monarch.mri.phantom import phantom_voxel_size
from sciml_monarch.mri.readers import open_scans
from sciml_monarch.mri.semisynthetic import make_semisynthetic, semi_synthetic, smooth_phase

SCRIPT = Path(__file__).parents[2] / "scripts/make_semisynthetic_mri.py"
REAL = Path(__file__).resolve().parents[2] / "../shared/data/mri/pulseq_brain_16ch.npy"
needs_real_data = pytest.mark.skipif(not REAL.is_file(), reason="the measured k-space is not on this machine")


def smooth_maps(n_coils=4, shape=(32, 24)):
    """Maps of low order with a sum of squares of 1."""
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    angles = [2 * math.pi * i / n_coils for i in range(n_coils)]
    maps = torch.stack([torch.exp((1 + 0.5j) * (math.cos(a) * x + math.sin(a) * y)) for a in angles])
    return maps / maps.abs().square().sum(0).sqrt()


def ellipse(n_slices=3, shape=(32, 24)):
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    return ((y / 0.8) ** 2 + (x / 0.6) ** 2 < 1).float() * torch.linspace(0.5, 1, n_slices)[:, None, None]


# Physics


def test_without_noise_the_scan_is_the_transform_of_the_truth_seen_by_each_coil():
    magnitude, maps = ellipse(), smooth_maps()
    scan = semi_synthetic(magnitude, maps, noise=0.0, seed=3)
    assert len(scan) == 3
    torch.testing.assert_close(scan.truth.abs(), magnitude)
    for index in range(3):
        kspace = scan.kspace(index)
        torch.testing.assert_close(ifft2c(kspace), maps * scan.truth[index], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(rss(kspace), magnitude[index], atol=1e-6, rtol=1e-5)


def test_noise_is_white_complex_and_of_the_deviation_asked_for():
    magnitude, maps = 5 * ellipse(2, (64, 48)), smooth_maps(8, (64, 48))
    clean, noisy = (semi_synthetic(magnitude, maps, noise, seed=3) for noise in (0.0, 0.02))
    noise = torch.stack([noisy.kspace(i) - clean.kspace(i) for i in range(2)]) / (0.02 * 5)
    assert noise.abs().square().mean().item() == pytest.approx(1, abs=0.02)
    assert noise.real.square().mean().item() == pytest.approx(0.5, abs=0.02)
    assert (noise.real * noise.imag).mean().abs() < 0.01
    neighbours = (noise[..., 1:].conj() * noise[..., :-1]).mean().abs()
    coils = (noise[:, 1:].conj() * noise[:, :-1]).mean().abs()
    slices = (noise[1].conj() * noise[0]).mean().abs()
    assert max(neighbours, coils, slices) < 0.02
    torch.testing.assert_close(noisy.kspace(1), noisy.kspace(1), rtol=0, atol=0)


def test_seeds_make_phase_and_noise_and_nothing_else_does():
    magnitude, maps = ellipse(), smooth_maps()
    one, same, other = (semi_synthetic(magnitude, maps, seed=seed) for seed in (1, 1, 2))
    before = torch.random.get_rng_state()
    assert torch.equal(one.kspace(0), same.kspace(0))
    assert not torch.equal(one.truth, other.truth)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_phase_is_a_smooth_polynomial_of_the_deviation_asked_for():
    magnitude = ellipse(9, (40, 30))
    phase = smooth_phase(magnitude, 0.7, seed=4).double()
    weight = magnitude.double() / magnitude.sum()
    mean = (weight * phase).sum()
    assert (weight * (phase - mean).square()).sum().sqrt().item() == pytest.approx(0.7, rel=1e-4)
    for axis in range(3):
        assert phase.diff(4, axis).abs().max() < 1e-4  # nothing above degree three, but for rounding
        assert phase.diff(1, axis).abs().max() > 1e-3
    assert torch.equal(semi_synthetic(magnitude, smooth_maps(2, (40, 30)), phase=0.0).truth.imag, 0 * magnitude)


def test_what_does_not_fit_is_refused():
    magnitude, maps = ellipse(), smooth_maps()
    for arguments, message in (
        ((magnitude, maps[:, 1:]), "do not fit"),
        ((magnitude[0], maps[None]), "do not fit"),
        ((magnitude, maps, -1.0), "noise -1"),
        ((magnitude, maps, math.nan), "noise nan"),
        ((magnitude, maps, 0.1, -1.0), "phase -1"),
        ((magnitude, maps, 0.1, 1.0, -1), "seed is -1"),
        ((0 * magnitude, maps), "zero everywhere"),
    ):
        with pytest.raises(InputError, match=message):
            semi_synthetic(*arguments)
    with pytest.raises(IndexError):
        semi_synthetic(magnitude, maps).kspace(3)


# Anatomies


def test_the_phantom_is_a_head_with_fine_structure_that_seeds_change():
    head = phantom((3, 96, 80), seed=1)
    assert head.shape == (3, 96, 80)
    assert head.dtype == torch.float32
    assert head.min() >= 0
    assert 0.8 < head.max() <= 1
    assert head[:, :3].max() < 1e-3  # air around it
    assert head[:, :, :3].max() < 1e-3
    assert torch.equal(head, phantom((3, 96, 80), seed=1))
    assert (head - phantom((3, 96, 80), seed=2)).abs().mean() > 0.02
    dark, bright = (phantom((1, 96, 80), 1, contrast)[0, 40:56, 30:36].median() for contrast in ("T2", "T1"))
    assert bright > dark + 0.2  # white matter
    # An ellipse of this size has 99.9% of its energy in the middle quarter of each axis of k-space; a head has not.
    power = fft2c(head[1] + 0j).abs().square()
    power[48, 40] = 0
    assert power[36:60, 30:50].sum() / power.sum() < 0.9
    with pytest.raises(InputError, match="at least 1 slice of 16 x 16"):
        phantom((1, 8, 64))


def test_a_finer_phantom_is_the_same_head():
    coarse, fine = phantom((2, 64, 64), seed=3), phantom((2, 128, 128), seed=3)
    reduced = torch.nn.functional.avg_pool2d(fine[:, None], 3, stride=2, padding=1)[:, 0]
    assert torch.corrcoef(torch.stack([coarse.flatten(), reduced.flatten()]))[0, 1] > 0.95
    assert phantom_voxel_size((2, 64, 64))[1] == pytest.approx(2 * phantom_voxel_size((2, 128, 128))[1])


def marked_head(n=40):
    """A ball in (superior, posterior, left) with a bright spot at its front, upper, right."""
    at = torch.linspace(-1, 1, n)
    z, y, x = torch.meshgrid(at, at, at, indexing="ij")
    ball = (x**2 + y**2 + z**2 < 0.7).float()
    return ball + 3 * ((z - 0.4) ** 2 + (y + 0.4) ** 2 + (x + 0.3) ** 2 < 0.02).float()


@pytest.mark.parametrize(
    ("plane", "place"),  # where the spot is: slice, row, column, from -1 to 1
    [("axial", (0.4, -0.4, -0.3)), ("coronal", (-0.4, -0.4, -0.3)), ("sagittal", (-0.3, -0.4, -0.4))],
)
def test_planes_are_upright_whatever_the_file(tmp_path, plane, place):
    head = marked_head()
    write_nifti(tmp_path / "head.nii.gz", head, (1.0, 2.0, 3.0))
    np.save(tmp_path / "head.npy", head.numpy())
    sizes = {"axial": (1, 2, 3), "coronal": (2, 1, 3), "sagittal": (3, 1, 2)}
    for name in ("head.nii.gz", "head.npy"):
        found = open_anatomy(str(tmp_path / name), plane)
        assert found.volume.max() == 1
        assert found.name == name
        spot = (found.volume > 0.9).nonzero().double().mean(0) / 39 * 2 - 1
        assert spot.tolist() == pytest.approx(place, abs=0.05)
        assert found.voxel_size == pytest.approx(sizes[plane] if "nii" in name else (1, 1, 1))


def test_slices_without_the_head_are_left_out():
    head = Anatomy("ball", marked_head(), (2.0, 1.0, 1.0))
    full = choose_slices(head, min_signal=0.4)
    assert 20 < len(full.volume) < 32
    assert (full.volume > 0.1).float().mean((1, 2)).min() > 0.2
    three = choose_slices(head, 3)
    assert len(three.volume) == 3
    assert torch.equal(three.volume[[0, 2]], full.volume[[0, -1]])
    assert three.voxel_size == ((len(full.volume) - 1) / 2 * 2.0, 1.0, 1.0)
    assert choose_slices(head, 1).voxel_size[0] == 2.0
    for wrong, message in ((0, "n_slices is 0, but ball has"), (41, "n_slices is 41, but ball has")):
        with pytest.raises(InputError, match=message):
            choose_slices(head, wrong)
    with pytest.raises(InputError, match=r"min_signal is 1\.5"):
        choose_slices(head, None, 1.5)


def test_a_head_is_laid_into_the_middle_of_the_grid_and_shrunk_only_if_it_must():
    head = Anatomy("ball", marked_head().roll(3, 2), (2.0, 1.0, 1.0))
    grid = onto_grid(head, (64, 48))
    assert grid.volume.shape == (40, 64, 48)
    assert grid.voxel_size == head.voxel_size
    shown = (grid.volume > 0.1).any(0)
    assert shown.any(1).nonzero().double().mean().item() == pytest.approx(32, abs=1)
    assert shown.any(0).nonzero().double().mean().item() == pytest.approx(24, abs=1)
    assert grid.volume.double().sum() == pytest.approx((head.volume / head.volume.max()).double().sum())
    small = onto_grid(head, (24, 48))
    shown = (small.volume > 0.1).any(0)
    assert 20 <= shown.any(1).sum() <= 24
    assert abs(int(shown.any(1).sum()) - int(shown.any(0).sum())) <= 1  # still a ball
    assert small.voxel_size[1] == pytest.approx(small.voxel_size[2], rel=0.05)
    assert small.voxel_size[1] * shown.any(1).sum() == pytest.approx(33, abs=2)  # mm, as before
    with pytest.raises(InputError, match="too small for a head"):
        onto_grid(head, (8, 48))


def test_installed_packages_are_found_by_name(tmp_path, monkeypatch):
    folder = tmp_path / "pydeface/data"
    folder.mkdir(parents=True)
    (tmp_path / "pydeface/__init__.py").write_text("raise AssertionError('must not be imported')")
    write_nifti(folder / "mean_reg2mean.nii.gz", marked_head(20), (1.0, 1.0, 1.0))
    monkeypatch.syspath_prepend(tmp_path)
    assert find_anatomies()["pydeface"] == folder / "mean_reg2mean.nii.gz"
    assert open_anatomy("pydeface").name == "pydeface"
    monkeypatch.setattr(anatomies, "find_spec", lambda package: None)
    assert "pydeface" not in find_anatomies()


def test_mistakes_with_anatomies_are_one_line(tmp_path):
    np.save(tmp_path / "flat.npy", np.ones((4, 4)))
    np.save(tmp_path / "negative.npy", -np.ones((4, 4, 4)))
    np.save(tmp_path / "zero.npy", np.zeros((4, 4, 4)))
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "head.jpg").write_text("hello")
    for name, message in (
        ("absent", "absent: no such file, and no anatomy of this name; here are: .*phantom"),
        ("flat.npy", r"flat\.npy: holds \(4, 4\) float64"),
        ("negative.npy", "finite, not negative and not all zero"),
        ("zero.npy", "finite, not negative and not all zero"),
        ("text.npy", r"text\.npy: not a NumPy array"),
        ("head.jpg", r"head\.jpg: an anatomy is \.nii"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            open_anatomy(str(tmp_path / name))
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="the phantom is axial"):
        open_anatomy("phantom", "coronal")


# Measured coils


@needs_real_data
def test_measured_maps_explain_the_measurement_and_are_smooth_on_another_grid():
    kspace = read_measurement(REAL)
    maps = measured_maps(kspace, (128, 96))
    assert maps.shape == (16, 128, 96)
    torch.testing.assert_close(maps.abs().square().sum(0), torch.ones(128, 96), atol=1e-5, rtol=0)
    for axis in (1, 2):
        assert maps.diff(dim=axis).abs().max() < 0.15
    same = measured_maps(kspace, (128, 128))
    images = ifft2c(kspace)
    inside = rss(kspace) > 0.2 * rss(kspace).max()
    seen = same * (same.conj() * images).sum(0)
    assert (seen - images)[:, inside].norm() / images[:, inside].norm() < 0.15
    # The grid changes where maps are sampled, not what they are: every second point of a finer one.
    finer = measured_maps(kspace, (256, 128))
    overlap = (finer[:, ::2].conj() * same).sum(0).abs()
    assert overlap[inside].min() > 0.99


def test_measured_maps_of_known_coils_are_these_coils():
    shape = (48, 40)
    known = smooth_maps(4, shape)
    scan = semi_synthetic(ellipse(1, shape), known, noise=1e-4)
    maps = measured_maps(scan.kspace(0), shape)
    inside = ellipse(1, shape)[0] > 0
    assert (maps.conj() * known).sum(0).abs()[inside].min() > 0.99
    assert (maps.conj() * known).sum(0).abs().min() > 0.85  # continued into the corners


def test_mistakes_with_measured_coils_are_one_line(tmp_path):
    np.save(tmp_path / "real.npy", np.ones((4, 32, 32)))
    np.save(tmp_path / "small.npy", np.ones((4, 16, 32), complex))
    np.save(tmp_path / "nan.npy", np.full((4, 32, 32), np.nan + 0j))
    (tmp_path / "text.npy").write_text("hello")
    for name, message in (
        ("absent.npy", "no such file"),
        ("real.npy", r"holds \(4, 32, 32\) float64; coil maps need complex"),
        ("small.npy", "24 x 24 points"),
        ("nan.npy", "not finite"),
        ("text.npy", "not a NumPy array"),
    ):
        with pytest.raises(InputError, match=message):
            read_measurement(tmp_path / name)
    with pytest.raises(InputError, match="too small for measured coil maps"):
        measured_maps(torch.ones(4, 32, 32, dtype=torch.complex64), (16, 64))


# The program


def test_the_file_is_fastmris_and_says_what_it_is(tmp_path):
    out = make_semisynthetic(
        tmp_path / "head.h5", shape=(48, 40), n_slices=2, n_coils=5, noise=0.02, with_maps=True, seed=7
    )
    scan = open_scans(out)[0]
    assert (scan.n_slices, scan.n_coils, scan.shape, scan.crop) == (2, 5, (48, 40), (48, 40))
    assert scan.voxel_size == pytest.approx(phantom_voxel_size((2, 48, 40)), rel=1e-4)
    assert scan.acquisition == "semi-synthetic"
    with h5py.File(out) as file:
        truth, maps = (torch.from_numpy(file[key][()]) for key in ("truth", "maps"))
        attributes = dict(file.attrs)
        assert file.attrs["max"] == pytest.approx(file["reconstruction_rss"][()].max())
    assert attributes["semi_synthetic"]
    assert attributes["anatomy_is_synthetic"]
    assert attributes["anatomy"] == "phantom (seed 7)"
    assert (attributes["coil_source"], attributes["noise"], attributes["seed"]) == ("simulated", 0.02, 7)
    torch.testing.assert_close(truth.abs(), phantom((2, 48, 40), 7), atol=1e-6, rtol=0)
    for index in range(2):
        kspace = scan.kspace(index)
        torch.testing.assert_close(scan.target(index), rss(kspace), atol=1e-6, rtol=1e-5)
        noise = kspace - fft2c(maps[index] * truth[index])
        assert noise.abs().square().mean().sqrt().item() == pytest.approx(0.02 * truth.abs().max().item(), rel=0.05)
    stored = scan.maps(index)
    assert stored is not None
    torch.testing.assert_close(stored, maps[index][None])
    assert [p.name for p in tmp_path.iterdir()] == ["head.h5"]


def test_a_perfect_image_has_no_error_against_the_truth_but_against_the_noisy_reference(tmp_path):
    out = make_semisynthetic(tmp_path / "targets/head.h5", shape=(48, 40), n_slices=2, noise=0.02)
    image = phantom((2, 48, 40), 0)
    write_reconstruction(tmp_path / "perfect/head.h5", image, Provenance("perfect", "head.h5"))
    against = {
        key: evaluate_mri([tmp_path / "perfect"], out.parent, tmp_path / "out", key, n_pictures=0).rows[0]["nmse"]
        for key in ("truth", "reconstruction_rss")
    }
    assert against["truth"] < 1e-10
    assert against["reconstruction_rss"] > 1e-4


@needs_real_data
def test_a_file_with_measured_coils(tmp_path):
    np.save(tmp_path / "ball.npy", marked_head().numpy())
    out = make_semisynthetic(
        tmp_path / "ball.h5", str(tmp_path / "ball.npy"), (64, 48), 3, "coronal", coils=REAL, noise=0.0
    )
    with h5py.File(out) as file:
        assert file["kspace"].shape == (3, 16, 64, 48)
        assert file.attrs["coil_source"] == f"measured, {REAL.name}"
        assert file.attrs["anatomy"] == "ball.npy"
        assert not file.attrs["anatomy_is_synthetic"]
        np.testing.assert_allclose(file["reconstruction_rss"][()], np.abs(file["truth"][()]), atol=1e-5)


def script(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return ended.value.code


def test_the_program_does_what_the_function_does_and_names_mistakes(tmp_path, monkeypatch, capsys):
    out = tmp_path / "head.h5"
    few = ("--shape", json.dumps([32, 32]), "--n_slices", 1, "--n_coils", 2)
    assert script(monkeypatch, "--out", out, *few) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "1 slices of phantom (seed 0), 32 x 32, 2 coils (simulated), noise 0.01; semi-synthetic" in shown.out
    before = out.read_bytes()
    for arguments, message in (
        ((), "exists; give --force"),
        (("--force", "--n_slices", 0), "n_slices is 0"),
        (("--force", "--noise", -1), "noise -1"),
        (("--force", "--n_coils", 0), "n_coils is 0"),
        (("--force", "--shape", "[8, 8]"), "16 x 16"),
        (("--force", "--anatomy", "nobody"), "no anatomy of this name"),
        (("--force", "--coils", tmp_path / "none.npy"), "none.npy: no such file"),
        (("--force", "--seed", -1), "seed"),
        (("--force", "--plane", "coronal"), "the phantom is axial"),
    ):
        assert script(monkeypatch, "--out", out, *few, *arguments) == 2, message
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert script(monkeypatch, "--out", tmp_path / "head.txt") == 2
    assert "called .h5" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["head.h5"]
