"""The job evaluate of MRI: fastMRI's numbers, equal treatment of methods, what is missing, files, mistakes."""

import argparse
import csv
import errno
import json
import math
import runpy
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from fastmri import evaluate as oracle

from sciml_monarch import InputError
from sciml_monarch.mri.evaluate import evaluate_mri
from sciml_monarch.mri.fourier import fft2c
from sciml_monarch.mri.io import ComplexImage, Provenance, write_reconstruction
from sciml_monarch.mri.matching import Predictions, method_names
from sciml_monarch.mri.metrics import data_consistency, hfen
from sciml_monarch.mri.plots import detail, image_comparison

SCRIPT = Path(__file__).parents[2] / "scripts/evaluate_mri.py"
ACQUISITIONS = ("AXT2", "AXT2", "AXFLAIR", "AXFLAIR")


def target_volume(i, shape=(3, 40, 32)):
    y, x = np.meshgrid(np.linspace(-1, 1, shape[1]), np.linspace(-1, 1, shape[2]), indexing="ij")
    disc = (np.hypot(y, x) < 0.8) * (1 + 0.3 * np.sin((7 + i) * x + 3 * y))
    return (1e-4 * (i + 1) * disc * np.linspace(0.5, 1, shape[0])[:, None, None]).astype(np.float32)


def write_targets(folder):
    folder.mkdir(parents=True)
    for i, acquisition in enumerate(ACQUISITIONS):
        with h5py.File(folder / f"file{i}.h5", "w") as file:
            volume = target_volume(i)
            file["reconstruction_rss"] = volume
            file["truth"] = volume * np.exp(1j)  # complex, as semi-synthetic files have it
            file.attrs["acquisition"] = acquisition
            file.attrs["max"] = volume.max()
    return folder


def write_method(folder, noise, method="CG-SENSE", names=range(4), accelerations=(4.0, 8.0, 4.0, 4.0), **extra):
    for i in names:
        truth = target_volume(i)
        generator = np.random.default_rng(i)
        wrong = truth + noise * truth.max() * generator.standard_normal(truth.shape)
        larger = np.pad(wrong, ((0, 0), (3, 3), (2, 2)))  # reconstructions may show more than the truth
        provenance = Provenance(method, f"file{i}.h5", acceleration=accelerations[i], **extra)
        write_reconstruction(folder / f"file{i}.h5", torch.from_numpy(larger), provenance)
    return folder


@pytest.fixture
def targets(tmp_path):
    return write_targets(tmp_path / "targets")


def test_the_numbers_are_those_that_fastmri_prints(targets, tmp_path):
    method = write_method(tmp_path / "cg", 0.05)
    arguments = argparse.Namespace(target_path=targets, predictions_path=method, acquisition=None, acceleration=None)
    reference = oracle.evaluate(arguments, "reconstruction_rss")
    row = evaluate_mri([method], targets, tmp_path / "out", n_pictures=0).rows[0]
    for key in ("nmse", "psnr", "ssim"):
        assert row[key] == pytest.approx(np.squeeze(reference.means()[key.upper()]).item(), abs=1e-6, rel=1e-6)
        spread = 2 * np.squeeze(reference.stddevs()[key.upper()]).item()
        assert row[f"{key}_2std"] == pytest.approx(spread, abs=1e-6, rel=1e-5)
    arguments.acquisition = "AXFLAIR"
    reference = oracle.evaluate(arguments, "reconstruction_rss").means()
    only = evaluate_mri([method], targets, tmp_path / "out", acquisition="AXFLAIR", n_pictures=0).rows[0]
    assert only["ssim"] == pytest.approx(reference["SSIM"].item(), abs=1e-6)
    group = next(g for g in row["groups"] if g["group"] == "AXFLAIR, 4x")
    assert {k: only[k] for k in group if k != "group"} == {k: v for k, v in group.items() if k != "group"}


def test_methods_are_compared_volume_by_volume_and_group_by_group(targets, tmp_path, capsys):
    good = write_method(tmp_path / "a", 0.02, data_consistency=0.1)
    bad = write_method(tmp_path / "b", 0.1, "zero-filled")
    found = evaluate_mri([good, bad], targets, tmp_path / "out")
    assert [row["method"] for row in found.rows] == ["CG-SENSE", "zero-filled"]
    first, second = found.rows
    assert first["nmse"] < second["nmse"]
    assert first["hfen"] == pytest.approx(
        np.mean([hfen(target_volume(i)[:, 4:-4], read(good, i)[:, 7:-7, 2:-2]) for i in range(4)]), rel=1e-6
    )
    assert first["data_consistency"] == pytest.approx(0.1)
    assert "data_consistency" not in second
    assert (first["n_volumes"], first["n_slices"], first["acceleration"]) == (4, 12, None)
    assert [g["group"] for g in first["groups"]] == ["AXFLAIR, 4x", "AXT2, 4x", "AXT2, 8x"]
    assert found.remarks == []
    written = json.loads((tmp_path / "out/metrics.json").read_text())
    assert written == found.rows
    with (tmp_path / "out/volumes.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["method"], line["volume"]) for line in lines] == [
        (m, f"file{i}") for m in ("CG-SENSE", "zero-filled") for i in range(4)
    ]
    assert np.mean([float(line["ssim"]) for line in lines[:4]]) == pytest.approx(first["ssim"])
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {
        "comparison_file0.png",
        "comparison_file3.png",
        "metrics.csv",
        "metrics.json",
        "report.html",
        "volumes.csv",
        "volumes.png",
    }
    for picture in found.pictures.values():
        assert picture.read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    for text in ("CG-SENSE", "AXT2, 8x", "HFEN", "two standard deviations", str(found.report)):
        assert text in shown
    page = found.report.read_text()
    assert page.count("<table>") == 4
    assert "<h2>AXT2, 8x</h2>" in page


def read(folder, i):
    with h5py.File(folder / f"file{i}.h5") as file:
        return file["reconstruction"][()]


def test_a_chosen_acceleration_and_another_reference(targets, tmp_path):
    method = write_method(tmp_path / "a", 0.02)
    all_of_them = evaluate_mri([method], targets, tmp_path / "out", target_key="truth", n_pictures=0)
    assert all_of_them.rows[0]["target_key"] == "truth"
    assert [p.name for p in all_of_them.pictures.values()] == ["volumes.png"]
    fast = evaluate_mri([method], targets, tmp_path / "out", acceleration=8.0, n_pictures=0)
    assert [v["volume"] for v in fast.rows[0]["volumes"]] == ["file1"]
    assert fast.rows[0]["acceleration"] == 8.0
    assert fast.rows[0]["nmse_2std"] is None
    assert fast.rows[0]["nmse"] == pytest.approx(all_of_them.rows[0]["volumes"][1]["nmse"], rel=1e-4)


def test_single_files_pair_whatever_their_names(targets, tmp_path):
    method = write_method(tmp_path / "a", 0.02)
    other = (method / "file2.h5").rename(tmp_path / "mine.h5")
    found = evaluate_mri([other], targets / "file2.h5", tmp_path / "out")
    assert found.rows[0]["volumes"][0]["volume"] == "file2"


def test_an_emulated_single_coil_is_compared_with_its_own_reference(tmp_path):
    (tmp_path / "targets").mkdir()
    with h5py.File(tmp_path / "targets/file0.h5", "w") as file:
        file["kspace"] = np.zeros((3, 40, 32), np.complex64)
        file["reconstruction_rss"] = 2 * target_volume(0)
        file["reconstruction_esc"] = target_volume(0)
    found = evaluate_mri([write_method(tmp_path / "a", 0.0, names=[0])], tmp_path / "targets", tmp_path / "out")
    assert found.rows[0]["target_key"] == "reconstruction_esc"
    assert found.rows[0]["nmse"] < 1e-12
    assert found.rows[0]["acquisition"] is None


def test_what_is_missing_damaged_or_does_not_fit_is_named_and_the_rest_compared(targets, tmp_path, capsys):
    good = write_method(tmp_path / "good", 0.02)
    bad = write_method(tmp_path / "bad", 0.1, "zero-filled")
    (good / "file0.h5").unlink()
    (bad / "file1.h5").write_bytes((bad / "file1.h5").read_bytes()[:3000])
    write_reconstruction(bad / "file2.h5", torch.rand(2, 40, 32), Provenance("zero-filled", "file2.h5"))
    write_reconstruction(bad / "extra.h5", torch.rand(2, 40, 32), Provenance("zero-filled", "extra.h5"))
    with h5py.File(targets / "test_only.h5", "w") as file:
        file["kspace"] = np.zeros(3)
    stranger = tmp_path / "stranger"
    write_reconstruction(stranger / "other.h5", torch.rand(2, 40, 32), Provenance("U-Net", "other.h5"))
    with pytest.raises(InputError, match="7 files or volumes were left out") as caught:
        evaluate_mri([good, bad, stranger], targets, tmp_path / "out", n_pictures=0)
    assert "\n" not in str(caught.value)
    rows = json.loads((tmp_path / "out/metrics.json").read_text())
    assert [row["method"] for row in rows] == ["CG-SENSE", "zero-filled"]
    assert [v["volume"] for row in rows for v in row["volumes"]] == ["file3", "file3"]
    expected = (
        "test_only.h5: there is no data set 'reconstruction_rss' or 'reconstruction_esc'",
        "extra.h5: there is no truth of this name",
        "stranger: no file is called as any of the 4 volumes; U-Net is left out",
        "file0: no reconstruction of CG-SENSE; not compared",
        "file1.h5: damaged or not HDF5",
        "file2.h5: has 2 slices, but the truth has 3; file2 is not compared",
    )
    shown = capsys.readouterr().out
    for text in expected:
        assert text in shown
    assert "1 volume of " in shown
    lines = shown.split("7 files or volumes were left out or are not finite:\n")[1].splitlines()
    assert len(lines) == len(expected) + 1  # other.h5 has no truth either


def test_a_reconstruction_that_is_not_finite_or_too_small_does_not_pass_unseen(targets, tmp_path, capsys):
    method = write_method(tmp_path / "a", 0.02)
    with h5py.File(method / "file0.h5", "r+") as file:
        file["reconstruction"][1, 20, 20] = math.nan
    write_reconstruction(method / "file1.h5", torch.rand(3, 30, 32), Provenance("CG-SENSE", "file1.h5"))
    with h5py.File(targets / "file2.h5", "r+") as file:
        file["reconstruction_rss"][0, 0, 0] = math.inf
    with pytest.raises(InputError, match="3 files or volumes were left out or are not finite"):
        evaluate_mri([method], targets, tmp_path / "out", n_pictures=0)
    shown = capsys.readouterr().out
    assert "file0.h5: the error of CG-SENSE is not finite" in shown
    assert "file1.h5: has images of (30, 32), but (32, 32)" in shown
    assert "file2.h5: 'reconstruction_rss' holds values that are not finite" in shown
    written = json.loads((tmp_path / "out/metrics.json").read_text())[0]
    assert written["nmse"] is None
    assert written["volumes"][0]["nmse"] is None
    assert "not finite" in (tmp_path / "out/report.html").read_text()


def test_methods_at_different_accelerations_are_compared_with_a_warning(targets, tmp_path):
    fast = write_method(tmp_path / "fast", 0.05, accelerations=(8.0,) * 4)
    slow = write_method(tmp_path / "slow", 0.02, accelerations=(4.0,) * 4)
    found = evaluate_mri([fast, slow], targets, tmp_path / "out", n_pictures=0)
    assert [row["method"] for row in found.rows] == ["CG-SENSE (fast)", "CG-SENSE (slow)"]
    assert "file0: methods are compared across accelerations (CG-SENSE (fast): 8.0, CG-SENSE (slow): 4.0)" in (
        found.remarks
    )


def test_the_data_residual_is_computed_from_what_the_files_hold(tmp_path):
    maps = torch.randn(3, 1, 4, 40, 32, dtype=torch.complex64)
    image = torch.randn(3, 1, 40, 32, dtype=torch.complex64)
    kspace = fft2c((maps * image[:, :, None]).sum(1)) + 0.1 * torch.randn(3, 4, 40, 32, dtype=torch.complex64)
    mask = torch.rand(1, 32) < 0.5
    (tmp_path / "targets").mkdir()
    with h5py.File(tmp_path / "targets/file0.h5", "w") as file:
        file["kspace"] = kspace.numpy()
        file["reconstruction_rss"] = image[:, 0].abs().numpy()
        file.attrs["acquisition"] = "AXT2"
    provenance = Provenance("CG-SENSE", "file0.h5", data_consistency=0.5)
    stored = ComplexImage(image, mask, maps)
    path = write_reconstruction(tmp_path / "a/file0.h5", image[:, 0].abs(), provenance, stored)
    expected = data_consistency(image, kspace, mask[None, None], maps)
    row = evaluate_mri([path.parent], tmp_path / "targets", tmp_path / "out", consistency=True, n_pictures=0).rows[0]
    assert row["data_consistency"] == pytest.approx(expected, rel=1e-5)
    assert (
        evaluate_mri([path.parent], tmp_path / "targets", tmp_path / "out", n_pictures=0).rows[0]["data_consistency"]
        == 0.5
    )
    write_reconstruction(path, image[:, 0].abs(), provenance)
    with pytest.raises(InputError, match="holds no complex image with mask and maps"):
        evaluate_mri([path.parent], tmp_path / "targets", tmp_path / "out", consistency=True, n_pictures=0)


@pytest.mark.parametrize("spoilt", ["4x", [4.0, 8.0], "group"])
def test_attributes_of_others_that_are_no_numbers_stop_nothing(spoilt, targets, tmp_path):
    with h5py.File(targets / "file0.h5", "r+") as file:
        if spoilt == "group":
            file.create_group("kspace")
        else:
            file.attrs["acceleration"] = spoilt
    method = write_method(tmp_path / "a", 0.02)
    with h5py.File(method / "file1.h5", "r+") as file:
        file.attrs["acceleration"] = "4x"
    found = evaluate_mri([method], targets, tmp_path / "out", n_pictures=0)
    assert [v["acceleration"] for v in found.rows[0]["volumes"]] == [4.0, None, 4.0, 4.0]


def test_accelerations_that_were_counted_are_near_what_is_asked_for(targets, tmp_path):
    method = write_method(tmp_path / "a", 0.02, accelerations=(3.98, 4.05, 4.4, 8.0))
    found = evaluate_mri([method], targets, tmp_path / "out", acceleration=4.0, n_pictures=0)
    assert [v["volume"] for v in found.rows[0]["volumes"]] == ["file0", "file1"]


def test_names_with_brackets_are_shown_as_they_are(targets, tmp_path, capsys):
    for file in targets.iterdir():
        with h5py.File(file, "r+") as opened:
            opened.attrs["acquisition"] = "T2[/red]"
    method = write_method(tmp_path / "cg[/x]", 0.02, "CG [bold]")
    write_reconstruction(method / "odd[red].h5", torch.rand(3, 40, 32), Provenance("CG [bold]", "odd.h5"))
    with pytest.raises(InputError, match="1 files or volumes were left out"):
        evaluate_mri([method], targets, tmp_path / "out[/z]", n_pictures=0)
    shown = capsys.readouterr().out
    for text in ("odd[red].h5", "out[/z]/report.html", "CG [bold]", "T2[/red], 8x"):
        assert text in shown


# Names and pictures


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([("runs/a", "CG"), ("runs/b", "L1")], ["CG", "L1"]),
        ([("runs/a", ""), ("runs/b", "L1")], ["a", "L1"]),
        ([("runs/a", "CG"), ("runs/b", "CG")], ["CG (a)", "CG (b)"]),
        ([("x/a", "CG"), ("y/a", "CG"), ("z", "L1")], ["CG (x/a)", "CG (y/a)", "L1"]),
    ],
)
def test_method_names_tell_folders_apart(given, expected):
    assert method_names([Predictions(Path(path), {}, method) for path, method in given]) == expected


def test_the_picture_shows_the_errors_five_times_brighter_on_the_scale_of_the_truth():
    truth = torch.rand(30, 24)
    figure = image_comparison(truth, {"a": truth + 0.1, "b": truth * math.nan}, {"a": "PSNR 20 dB"}, "title")
    panels = np.array(figure.axes).reshape(3, 3)
    error = panels[1, 1].images[0]
    np.testing.assert_allclose(error.get_array(), 0.5, rtol=1e-5)
    white = np.quantile(truth.double(), 0.998)
    assert {image.get_clim() for axes in figure.axes for image in axes.images} == {(0.0, white)}
    assert panels[1, 0].get_title() == "PSNR 20 dB"
    assert [axes.get_ylabel() for axes in panels[1:, 0]] == ["a", "b"]


def test_the_zoom_finds_the_detail():
    image = np.ones((90, 60))
    image[50:70, 30:45] += 0.1 * np.random.default_rng(0).standard_normal((20, 15))
    box = detail(image)
    assert (box.height, box.width) == (30, 20)
    assert box.of(image).std() > 0.9 * np.sqrt(20 * 15 / 600) * 0.1  # all of the detail is in the box
    assert detail(np.zeros((8, 8))).of(np.zeros((8, 8))).shape == (3, 3)


# Mistakes


def test_nothing_to_compare_is_one_line(targets, tmp_path):
    method = write_method(tmp_path / "a", 0.02)
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    for arguments, message in (
        (([], targets), "no reconstructions are given"),
        (([method, method], targets), "given twice"),
        (([tmp_path / "none"], targets), "none: no such file or folder"),
        (([method], tmp_path / "none"), "none: no such file or folder"),
        (([tmp_path / "empty"], targets), r"empty: there is no \.h5 or \.hdf5 file"),
        (
            ([method], targets, out, "esc"),
            r"no data set 'esc'; there are reconstruction_rss, truth \(and 8 more problems\)",
        ),
        (([method], targets, out, None, "AXT1"), "no volume of acquisition 'AXT1'; there are: AXFLAIR, AXT2"),
        (([method], targets, out, None, None, 16.0), "no volume of acceleration 16 can be compared"),
        (([method], targets, out, None, None, None, False, -1), "n_pictures is -1"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            evaluate_mri(*arguments)
        assert "\n" not in str(caught.value)
        assert not out.exists()


def test_a_full_disk_leaves_earlier_results_whole(targets, tmp_path, monkeypatch):
    out = tmp_path / "out"
    evaluate_mri([write_method(tmp_path / "a", 0.02)], targets, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(InputError, match="no space left on device"):
        evaluate_mri([write_method(tmp_path / "b", 0.2)], targets, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def script(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return ended.value.code


def test_the_program_does_what_the_function_does(targets, tmp_path, monkeypatch, capsys):
    method, out = write_method(tmp_path / "a", 0.02), tmp_path / "out"
    assert script(monkeypatch, method, "--target", targets, "--out", out, "--acceleration", 8) == 0
    assert json.loads((out / "metrics.json").read_text())[0]["n_volumes"] == 1
    assert capsys.readouterr().err == ""
    assert script(monkeypatch, tmp_path / "none", "--target", targets) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no such file or folder" in error
