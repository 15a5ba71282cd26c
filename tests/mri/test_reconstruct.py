import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from sciml_monarch import hub, save
from sciml_monarch.cli import main
from sciml_monarch.mri.base import rss
from sciml_monarch.mri.classical import cg_sense
from sciml_monarch.mri.coils import CoilMaps
from sciml_monarch.mri.description import Description, describe
from sciml_monarch.mri.evaluate import evaluate_mri
from sciml_monarch.mri.io import read_complex_image
from sciml_monarch.mri.ista import MonarchISTA
from sciml_monarch.mri.masks import EquispacedFractionMask, EquispacedMask, PoissonMask, RandomMask, seed_of
from sciml_monarch.mri.metrics import data_consistency, nmse
from sciml_monarch.mri.readers import open_scans
from sciml_monarch.mri.reconstruct import reconstruct
from sciml_monarch.mri.sense import MonarchSENSE
from sciml_monarch.mri.unet import UNet
from sciml_monarch.mri.varnet import VarNet
from sciml_monarch.mri.writing import write_ismrmrd, write_npy, write_skmtea
from tests.mri.scans import make_scan, write_scan
from tests.programs import heed_interrupts

FILE = CoilMaps(source="file")
MAPS = CoilMaps(kernel=4)
MASK = RandomMask((3.0,), (0.25,))
DESCRIPTION = Description(((48, 32),), (4,), {}, 3.0, {"source": "file"}, "reference", 1, 1)


def run(*arguments):
    return main(["reconstruct", *map(str, arguments), "--device", "cpu"])


def one_line(capsys):
    """The single line that a mistake leaves on standard error."""
    text = capsys.readouterr().err
    assert text.count("\n") == 1, text
    return text


def volume(path):
    with h5py.File(path) as file:
        return torch.from_numpy(file["reconstruction"][()]), dict(file.attrs)


def files(folder):
    return sorted(p.name for p in folder.rglob("*")) if folder.exists() else []


def test_a_fully_sampled_scan_is_reconstructed_as_it_is(scan_folder, tmp_path):
    pytest.importorskip("nibabel")
    source = scan_folder / "val" / "val_0.h5"
    written = reconstruct([source], tmp_path, method="zero_filled_rss", device="cpu", batch_size=2)
    assert [p.name for p in written] == ["val_0.h5", "val_0.nii.gz", "val_0.png"]
    found, attributes = volume(tmp_path / "val_0.h5")
    scan = open_scans(source)[0]
    truth = torch.stack([scan.target(i) for i in range(2)])
    torch.testing.assert_close(found, truth)
    assert attributes["acceleration"] == 1.0
    assert attributes["method"] == "zero-filled RSS"
    assert attributes["acquisition"] == "AXT2"
    assert attributes["source"] == "val_0.h5"
    assert "data_consistency" not in attributes

    import nibabel

    image = nibabel.load(tmp_path / "val_0.nii.gz")
    assert image.header.get_zooms() == pytest.approx((1.0, 1.5, 3.0))
    np.testing.assert_allclose(image.get_fdata(), found.numpy().transpose(2, 1, 0), rtol=1e-6)


def test_a_folder_is_undersampled_by_the_masks_of_its_names(scan_folder, tmp_path):
    mask = EquispacedFractionMask((3,), (0.25,))
    reconstruct([scan_folder / "val"], tmp_path, mask=mask, maps=FILE, device="cpu", nifti=False, png=False)
    assert files(tmp_path) == ["val_0.h5", "val_1.h5"]
    for name in ("val_0", "val_1"):
        found, attributes = volume(tmp_path / f"{name}.h5")
        scan = open_scans(scan_folder / "val" / f"{name}.h5")[0]
        pattern = mask(scan.shape, seed_of(f"{name}.h5"))[None, None]
        kspace = torch.stack([scan.kspace(i) for i in range(2)]).where(pattern, torch.zeros(()))
        maps = torch.stack([scan.maps(i) for i in range(2)])
        image = cg_sense(kspace, pattern, maps)
        torch.testing.assert_close(found, image[:, 0, 8:40].abs())
        assert attributes["method"] == "CG-SENSE"
        assert attributes["acceleration"] == 3.0
        assert attributes["data_consistency"] == pytest.approx(data_consistency(image, kspace, pattern, maps), rel=1e-4)
        assert 0 < attributes["data_consistency"] < 0.2
        assert nmse(torch.stack([scan.target(i) for i in range(2)]), found) < 0.05


def test_an_undersampled_scan_is_reconstructed_with_its_own_pattern(scan_folder, tmp_path, capsys):
    source = scan_folder / "test" / "test_0.h5"
    assert run(source, "--out", tmp_path, "--maps.kernel", "4", "--nifti", "false", "--png=false") == 0
    found, attributes = volume(tmp_path / "test_0.h5")
    assert attributes["acceleration"] == pytest.approx(32 / 17, abs=0.01)  # the 3 of the header is far from its columns
    truth = make_scan(2, (48, 32)).target  # what the fixture undersampled
    assert nmse(truth, found) < 0.05
    capsys.readouterr()
    assert run(source, "--out", tmp_path / "again", "--mask", "RandomMask", "--mask.accelerations", "[4]") == 2
    assert "is undersampled already; leave --mask" in one_line(capsys)
    assert files(tmp_path / "again") == []


@pytest.mark.parametrize("kind", ["checkpoint folder", "weights of fastMRI"])
def test_networks_reconstruct(kind, scan_folder, tmp_path):
    torch.manual_seed(0)
    if kind == "checkpoint folder":
        net = MonarchISTA(2, 4).eval()
        describe(net, DESCRIPTION)
        checkpoint = save(net, tmp_path / "net")
    else:
        net = UNet(4, 2, magnitude=True, crop=(320, 320)).eval()
        checkpoint = tmp_path / "knee_unet.pt"
        torch.save(net.unet.state_dict(), checkpoint)
    out = tmp_path / "out"
    reconstruct(
        [scan_folder / "val" / "val_0.h5"],
        out,
        checkpoint,
        mask=MASK,
        device="cpu",
        batch_size=2,
        nifti=False,
        png=False,
    )
    found, attributes = volume(out / "val_0.h5")
    assert attributes["method"] == type(net).__name__
    assert attributes["network"] == f"{type(net).__name__} {checkpoint.name}"  # no folder of this machine
    assert ("data_consistency" in attributes) == net.needs_maps
    scan = open_scans(scan_folder / "val" / "val_0.h5")[0]
    pattern = MASK(scan.shape, seed_of("val_0.h5"))[None, None]
    kspace = torch.stack([scan.kspace(i) for i in range(2)]).where(pattern, torch.zeros(()))
    maps = torch.stack([scan.maps(i) for i in range(2)]) if net.needs_maps else None  # as the description says
    with torch.no_grad():
        expected = net(kspace, pattern, maps)[:, 0, 8:40].abs()
    torch.testing.assert_close(found, expected)


def test_a_network_for_other_sizes_falls_back_and_says_so(scan_folder, tmp_path, capsys):
    net = MonarchSENSE((48, 24))
    describe(net, DESCRIPTION)
    save(net, tmp_path / "net")
    scan = scan_folder / "val" / "val_0.h5"
    assert run(scan, "--checkpoint", tmp_path / "net", "--out", tmp_path / "out", "--nifti", "false") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.count("note: 32 points on axis -1 where the learned transform has 24") == 1
    found, _ = volume(tmp_path / "out" / "val_0.h5")
    exact = reconstruct([scan], tmp_path / "sense", method="zero_filled_sense", maps=FILE, device="cpu", nifti=False)
    torch.testing.assert_close(found, volume(exact[0])[0], rtol=1e-4, atol=1e-9)


def test_echoes_become_volumes_and_masks_of_the_file_undersample(tmp_path):
    scans = [make_scan(2, (32, 24), seed=i) for i in range(2)]
    mask = PoissonMask(3.0, 8)((32, 24), 0)
    write_skmtea(
        tmp_path / "in" / "knee.h5",
        [torch.stack([scan.kspace[i] for scan in scans]) for i in range(2)],
        scans[0].maps,
        masks={"poisson_3.0x": mask},
    )
    written = reconstruct(
        [tmp_path / "in"],
        tmp_path / "out",
        file_mask="poisson_3.0x",
        maps=FILE,
        device="cpu",
        nifti=False,
        png=False,
    )
    assert [p.name for p in written] == ["knee_echo1.h5", "knee_echo2.h5"]
    assert volume(written[0])[1]["acceleration"] == pytest.approx(3.0, abs=0.1)
    assert not torch.equal(volume(written[0])[0], volume(written[1])[0])


@pytest.mark.parametrize("method", ["zero_filled_sense", "l1_wavelet"])
def test_classical_methods_need_no_checkpoint(method, scan_folder, tmp_path):
    options = ["--method", method, "--maps.source", "file", "--mask", "RandomMask", "--mask.center_fractions", "[0.25]"]
    options += ["--mask.accelerations", "[3]", "--nifti", "false"]
    assert run(scan_folder / "val" / "val_0.h5", "--out", tmp_path, *options) == 0
    found, attributes = volume(tmp_path / "val_0.h5")
    scan = open_scans(scan_folder / "val" / "val_0.h5")[0]
    assert nmse(torch.stack([scan.target(i) for i in range(2)]), found) < 0.3
    assert attributes["acceleration"] == 3.0


def test_files_are_not_overwritten_without_force(scan_folder, tmp_path, capsys):
    command = [scan_folder / "val" / "val_0.h5", "--out", tmp_path, "--method", "zero_filled_rss", "--nifti", "false"]
    assert run(*command) == 0
    before = (tmp_path / "val_0.h5").read_bytes()
    (tmp_path / "val_0.h5").write_bytes(b"years of work")
    capsys.readouterr()
    assert run(*command) == 2
    assert "val_0.h5 and 1 more: exists; give --force" in one_line(capsys)
    assert (tmp_path / "val_0.h5").read_bytes() == b"years of work"
    assert run(*command, "--force") == 0
    assert len((tmp_path / "val_0.h5").read_bytes()) == len(before)


def test_a_scan_is_never_overwritten_by_its_own_reconstruction(scan_folder, tmp_path, capsys):
    source = tmp_path / "scan.h5"
    shutil.copy(scan_folder / "val" / "val_0.h5", source)
    before = source.read_bytes()
    assert run(source, "--out", tmp_path, "--force") == 2
    assert "is a scan that would be overwritten" in one_line(capsys)
    assert source.read_bytes() == before


def spoil(kind, folder):
    """Writes a scan that is wrong in one way; returns it with what the message names and further options."""
    path, options = folder / "bad.h5", []
    scan = make_scan(2, (48, 32))
    if kind in ("NaN", "zero"):
        if kind == "NaN":
            scan.kspace[1, 0, 3, 3] = complex("nan")
        else:
            scan.kspace[1] = 0
        write_scan(path, scan)
        message = "slice 1"
    elif kind == "maps that do not match":
        write_scan(path, scan._replace(maps=scan.maps[..., :20]), with_maps=True)
        message, options = "maps", ["--maps.source", "file"]
    elif kind == "no maps":
        write_scan(path, scan)
        message, options = "brings no coil maps", ["--maps.source", "file"]
    elif kind == "missing key":
        with h5py.File(path, "w") as file:
            file["images"] = np.zeros(3)
        message = "kspace"
    elif kind == "truncated":
        write_scan(path, scan)
        path.write_bytes(path.read_bytes()[:-4000])
        message = "truncated"
    elif kind == "text":
        path.write_text("<html>not found</html>")
        message = "<html>"
    elif kind == "non-Cartesian":
        ismrmrd = pytest.importorskip("ismrmrd")
        write_ismrmrd(path, scan.kspace, voxel_size=(1, 1, 1))
        with ismrmrd.Dataset(str(path), create_if_needed=False) as file:
            header = file.read_xml_header().decode().replace("cartesian", "radial")
            file.write_xml_header(header)
        message = "radial"
    else:
        write_scan(path, scan)
        mask = folder / "mask.npy"
        np.save(mask, np.ones(20, dtype=bool))
        message, options = "20, k-space 48 x 32", ["--mask", "FileMask", "--mask.path", str(mask)]
    return path, message, options


BAD = [
    "NaN",
    "zero",
    "maps that do not match",
    "no maps",
    "missing key",
    "truncated",
    "text",
    "non-Cartesian",
    "mask of another width",
]


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_scan_is_one_line_and_leaves_nothing(kind, tmp_path, capsys):
    path, message, options = spoil(kind, tmp_path)
    out = tmp_path / "out"
    assert run(path, "--out", out, "--nifti", "false", *options) == 2
    line = one_line(capsys)
    assert message in line
    assert "bad" in line or "mask.npy" in line
    assert files(out) == []


@pytest.mark.parametrize("kind", ["NaN", "truncated", "non-Cartesian"])
def test_a_bad_scan_in_a_folder_is_named_at_the_end_and_the_others_are_done(kind, scan_folder, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    spoil(kind, folder)
    for name in ("a.h5", "z.h5"):
        shutil.copy(scan_folder / "val" / "val_0.h5", folder / name)
    write_scan(folder / "three_coils.h5", make_scan(1, (48, 32), n_coils=3))  # another number of coils is no mistake
    assert run(folder, "--out", out, "--nifti", "false", "--png", "false", "--maps.kernel", "4") == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "1 of the scans could not be reconstructed" in captured.err
    assert "left out: " in captured.out
    assert "bad.h5" in captured.out.split("left out: ")[1]
    assert files(out) == ["a.h5", "three_coils.h5", "z.h5"]


def test_a_network_for_another_number_of_coils_names_the_scan(scan_folder, tmp_path, capsys):
    net = MonarchSENSE((48, 32), n_coils=4)
    describe(net, DESCRIPTION)
    save(net, tmp_path / "net")
    write_scan(tmp_path / "three.h5", make_scan(1, (48, 32), n_coils=3), with_maps=True)
    inputs = [scan_folder / "val", tmp_path / "three.h5"]
    assert run(*inputs, "--checkpoint", tmp_path / "net", "--out", tmp_path / "out", "--nifti=false") == 2
    captured = capsys.readouterr()
    assert "three.h5: k-space of 3 coils, but the network has transforms for 4" in captured.err
    assert files(tmp_path / "out") == ["val_0.h5", "val_0.png", "val_1.h5", "val_1.png"]


def test_checkpoints_that_will_not_do_are_one_line(scan_folder, tmp_path, capsys):
    from sciml_monarch.pde import FNO, Description, Surrogate

    description = Description(("u",), ("1",), (16, 16), (1.0, 1.0), 1.0, 2, 3)
    hub.save(Surrogate(FNO(2, 1, 4, (4, 4), n_layers=1), description), tmp_path / "pde")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "foreign.pt")
    (tmp_path / "broken.ckpt").write_bytes(b"no checkpoint")
    for name, message in {
        "pde": "holds FNO, a PDE network; an MRI network is needed",
        "foreign.pt": "foreign.pt: neither a U-Net nor a VarNet",
        "broken.ckpt": "broken.ckpt",
        "absent.ckpt": "absent.ckpt: no such checkpoint",
    }.items():
        command = [scan_folder / "val", "--checkpoint", tmp_path / name, "--out", tmp_path / "out"]
        assert run(*command) == 2
        assert message in one_line(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["{scans}/nowhere.h5", "--out", "{tmp}/o"], "nowhere.h5"),
        (["{tmp}", "--out", "{tmp}/o"], "no scan"),
        (["{scans}/val/val_0.h5"], "out"),
        (["{scans}/val/val_0.h5", "{scans}/val", "--out", "{tmp}/o"], "two scans are called val_0"),
        (["{scans}/val", "--out", "{tmp}/o", "--batch_size", "0"], "batch_size is 0"),
        (["{scans}/val", "--out", "{tmp}/o", "--method", "prayer"], "prayer"),
        (["{scans}/val", "--out", "{tmp}/o", "--mask", "NoMask"], "NoMask"),
        (["{scans}/val", "--out", "{tmp}/o", "--maps.kernels", "3"], "kernels"),
        (["{scans}/val", "--out", "{tmp}/o", "--file_mask", "poisson_4.0x"], "holds no mask 'poisson_4.0x'"),
        (["{scans}/val", "--out", "{scans}/val/val_0.h5"], "is a file; --out is a folder"),
    ],
    ids=lambda x: x if isinstance(x, str) else None,
)
def test_mistakes_on_the_command_line(options, message, scan_folder, tmp_path, capsys):
    given = [o.format(scans=scan_folder, tmp=tmp_path) for o in options]
    assert run(*given) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert message in captured.err
    assert files(tmp_path) == []


def test_raw_arrays_are_scans_too(tmp_path):
    scan = make_scan(2, (32, 32))
    write_npy(tmp_path / "raw.npy", scan.kspace)
    written = reconstruct(
        [tmp_path / "raw.npy"], tmp_path / "out", method="zero_filled_rss", device="cpu", nifti=False, png=False
    )
    torch.testing.assert_close(volume(written[0])[0], rss(scan.kspace))


@pytest.mark.cuda
@pytest.mark.parametrize("method", ["zero_filled_rss", "zero_filled_sense", "cg_sense", "l1_wavelet"])
def test_a_gpu_gives_the_volumes_of_the_cpu(method, scan_folder, tmp_path):
    maps = None if method == "zero_filled_rss" else MAPS
    volumes = {}
    for device in ("cpu", "cuda"):
        options = {"method": method, "mask": MASK, "maps": maps, "device": device, "nifti": False}
        volumes[device] = volume(reconstruct([scan_folder / "val" / "val_0.h5"], tmp_path / device, **options)[0])[0]
    assert (volumes["cuda"] - volumes["cpu"]).norm() < 1e-3 * volumes["cpu"].norm()


def test_real_brain_against_its_fully_sampled_image(tmp_path):
    source = Path(__file__).resolve().parents[2] / "../shared/data/mri/pulseq_brain_16ch.npy"
    if not source.is_file():
        pytest.skip("needs ../shared/data/mri/pulseq_brain_16ch.npy beside the checkout")
    options = {"maps": CoilMaps(), "device": "cpu", "nifti": False}
    full = reconstruct([source], tmp_path / "full", method="zero_filled_sense", **options)
    mask = EquispacedMask((3,), (0.16,))
    errors = {}
    for method in ("zero_filled_sense", "cg_sense"):
        found = reconstruct([source], tmp_path / method, method=method, mask=mask, **options)
        errors[method] = nmse(volume(full[0])[0], volume(found[0])[0])
    assert errors["cg_sense"] < 0.02
    assert errors["cg_sense"] < 0.5 * errors["zero_filled_sense"]


def test_settings_of_classical_methods_are_those_asked_for_and_kept_in_the_file(scan_folder, tmp_path):
    source = scan_folder / "val" / "val_0.h5"
    options = ["--maps.source", "file", "--mask", "RandomMask", "--mask.center_fractions", "[0.125]", "--nifti=no"]
    for name, more in {"few": ["--n_iterations", "2"], "heavy": ["--regularization", "0.5"], "default": []}.items():
        assert run(source, "--out", tmp_path / name, *options, *more) == 0
    mask = RandomMask((4.0,), (0.125,))
    scan = open_scans(source)[0]
    pattern = mask(scan.shape, seed_of("val_0.h5"))[None, None]
    kspace = torch.stack([scan.kspace(i) for i in range(2)]).where(pattern, torch.zeros(()))
    maps = torch.stack([scan.maps(i) for i in range(2)])
    for name, arguments, words in (
        ("few", (2, 0.0), "n_iterations 2"),
        ("heavy", (30, 0.5), "regularization 0.5"),
        ("default", (30, 0.0), ""),
    ):
        found, attributes = volume(tmp_path / name / "val_0.h5")
        torch.testing.assert_close(found, cg_sense(kspace, pattern, maps, *arguments)[:, 0, 8:40].abs())
        assert attributes["settings"] == words


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n_iterations", "0"], "n_iterations is 0; it must be at least 1"),
        (["--regularization", "-1"], "regularization is -1.0; it must be finite and not negative"),
        (["--method", "zero_filled_sense", "--n_iterations", "3"], "n_iterations: only for cg_sense and l1_wavelet"),
        (["--checkpoint", "net.ckpt", "--regularization", "1"], "only for cg_sense and l1_wavelet, not for net.ckpt"),
    ],
)
def test_settings_that_do_not_go_with_the_method_are_refused(options, message, scan_folder, tmp_path, capsys):
    assert run(scan_folder / "val" / "val_0.h5", "--out", tmp_path / "out", *options) == 2
    assert message in one_line(capsys)
    assert files(tmp_path / "out") == []


QUICK = ["--method", "zero_filled_rss", "--nifti", "false"]


def test_the_residual_is_computed_again_from_the_complex_image(scan_folder, tmp_path):
    options = ["--complex", "true", "--maps.source", "file", "--mask", "RandomMask", "--mask.accelerations", "[3]"]
    options += ["--mask.center_fractions", "[0.25]", "--nifti=false", "--png=false"]
    out = tmp_path / "out"
    assert run(scan_folder / "val", "--out", out, *options) == 0
    stored = read_complex_image(out / "val_0.h5")
    assert stored.image.shape == (2, 1, 48, 32)
    torch.testing.assert_close(stored.image[:, 0, 8:40].abs(), volume(out / "val_0.h5")[0])
    said = [volume(out / f"val_{i}.h5")[1]["data_consistency"] for i in range(2)]
    row = evaluate_mri([out], scan_folder / "val", tmp_path / "scores", consistency=True, n_pictures=0).rows[0]
    assert [v["data_consistency"] for v in row["volumes"]] == pytest.approx(said, rel=1e-4)


def test_magnitudes_have_no_complex_image(scan_folder, tmp_path, capsys):
    assert run(scan_folder / "val", "--out", tmp_path / "out", *QUICK, "--complex", "true") == 2
    assert "--complex: zero-filled RSS gives magnitudes" in one_line(capsys)
    assert files(tmp_path) == []


def test_a_switch_may_stand_before_the_scans(scan_folder, tmp_path):
    command = [scan_folder / "val", "--out", tmp_path, *QUICK]
    assert run(*command) == 0
    assert run("--force", *command) == 0
    assert run(*command, "--force", "no") == 2


def test_names_with_brackets_are_shown_as_they_are(scan_folder, tmp_path, capsys):
    folder = tmp_path / "in[/x]"
    folder.mkdir(parents=True)
    shutil.copy(scan_folder / "val" / "val_0.h5", folder / "a[red].h5")
    (folder / "b[bold].h5").write_bytes(b"no scan")
    assert run(folder, "--out", tmp_path / "out[/y]", *QUICK) == 2
    captured = capsys.readouterr()
    assert "out[/y]/a[red].h5\n" in captured.out
    assert "in[/x]/b[bold].h5: neither HDF5" in captured.out
    assert captured.err.count("\n") == 1


def test_what_would_fail_after_hours_fails_at_once(scan_folder, tmp_path, capsys, monkeypatch):
    def never(*_):
        raise AssertionError("a scan was reconstructed")

    monkeypatch.setattr("sciml_monarch.mri.reconstruct.reconstruct_scan", never)
    (tmp_path / "file").write_text("in the way")
    assert run(scan_folder / "val", "--out", tmp_path / "file" / "out", *QUICK) == 2
    assert "out: nothing can be written there (not a directory); give another --out" in one_line(capsys)
    if os.geteuid():  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        assert run(scan_folder / "val", "--out", tmp_path / "locked", *QUICK) == 2
        assert "locked: nothing can be written there (permission denied)" in one_line(capsys)
    (tmp_path / "taken" / "val_0.png").mkdir(parents=True)
    assert run(scan_folder / "val", "--out", tmp_path / "taken", *QUICK, "--force") == 2
    assert "val_0.png: is a folder" in one_line(capsys)
    monkeypatch.setitem(sys.modules, "nibabel", None)
    assert run(scan_folder / "val", "--out", tmp_path / "new", "--method", "zero_filled_rss") == 2
    assert "pip install 'sciml-monarch[mri]', or give --nifti false" in one_line(capsys)
    assert not (tmp_path / "new").exists()


def test_stale_files_of_an_earlier_reconstruction_are_deleted(scan_folder, tmp_path, capsys):
    command = [scan_folder / "val" / "val_0.h5", "--out", tmp_path]
    assert run(*command, *QUICK) == 0
    (tmp_path / "val_0.nii.gz").write_bytes(b"of last year")
    (tmp_path / "val_01.png").write_bytes(b"another scan's")
    (tmp_path / "val_0.h5").unlink()
    assert run(*command, *QUICK, "--png", "false") == 2
    assert "exists; give --force" in one_line(capsys)
    assert run(*command, *QUICK, "--png", "false", "--force") == 0
    assert files(tmp_path) == ["val_0.h5", "val_01.png"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_the_files_of_a_scan_appear_together_or_not_at_all(error, scan_folder, tmp_path, monkeypatch):
    command = [scan_folder / "val" / "val_0.h5", "--out", tmp_path, *QUICK]
    assert run(*command) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_):
        raise error

    monkeypatch.setattr("sciml_monarch.mri.reconstruct.write_mosaic", fail)
    assert run(*command, "--force") == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_interruption_leaves_no_half_written_files(scan_folder, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    shutil.copy(scan_folder / "val" / "val_0.h5", source / "a.h5")
    write_scan(source / "b.h5", make_scan(200, (48, 32)))  # is at work for longer than the test waits
    command = [sys.executable, "-m", "sciml_monarch", "reconstruct", source, "--out", out, "--method", "l1_wavelet"]
    command += ["--n_iterations", "100", "--maps.kernel", "4", "--nifti", "false", "--device", "cpu"]
    root = Path(__file__).parents[2]
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    process = subprocess.Popen(list(map(str, command)), cwd=root, preexec_fn=heed_interrupts, **pipes)
    try:
        limit = time.monotonic() + 60
        while not (out / "a.h5").exists() and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert said.decode() == "sciml-monarch reconstruct: interrupted\n"
    assert files(out) == ["a.h5", "a.png"]


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, torch.linalg.LinAlgError, np.linalg.LinAlgError])
def test_what_one_scan_cannot_do_does_not_stop_the_others(error, scan_folder, tmp_path, capsys, monkeypatch):
    def method(kspace):
        if not calls:
            calls.append(1)
            raise error("not enough memory: you tried to allocate 9 bytes\nat aten/src/ATen")
        return rss(kspace)

    calls = []
    monkeypatch.setattr("sciml_monarch.mri.volumes.zero_filled_rss", lambda kspace: method(kspace)[:, None])
    assert run(scan_folder / "val", "--out", tmp_path, *QUICK) == 2
    captured = capsys.readouterr()
    assert captured.err.endswith("val_0.h5: not enough memory: you tried to allocate 9 bytes\n")
    assert files(tmp_path) == ["val_1.h5", "val_1.png"]


@pytest.mark.parametrize("category", [UserWarning, RuntimeWarning])
def test_warnings_of_opening_and_loading_are_notes(category, scan_folder, tmp_path, capsys, monkeypatch):
    def opening(path):
        warnings.warn("a singular covariance\nof noise", category, stacklevel=1)
        return open_scans(path)

    monkeypatch.setattr("sciml_monarch.mri.reconstruct.open_scans", opening)
    command = [scan_folder / "val", "--out", tmp_path / "out", *QUICK]
    if category is UserWarning:
        assert run(*command) == 0
        assert capsys.readouterr().out.count("note: a singular covariance of noise\n") == 1
    else:  # not the user's to mend; Python's filters decide
        with pytest.warns(RuntimeWarning, match="singular"):
            assert run(*command) == 0
        assert "note:" not in capsys.readouterr().out


def test_networks_without_maps_get_none(scan_folder, tmp_path, capsys):
    save(VarNet(1, 4, 2, 2), tmp_path / "net")
    command = [scan_folder / "val" / "val_0.h5", "--checkpoint", tmp_path / "net", "--nifti=false"]
    # two central columns: from such maps could not be estimated
    options = ["--maps.source", "espirit", "--mask", "RandomMask", "--mask.center_fractions", "[0.06]"]
    assert run(*command, "--out", tmp_path / "out", *options) == 0
    assert "note: VarNet takes no coil maps; none are made, and --maps has no effect" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "cg_sense", "--checkpoint", "net.ckpt"], "--checkpoint net.ckpt and --method cg_sense"),
        (["--method", "zero_filled_rss", "--maps.source", "file"], "zero_filled_rss combines coils without maps"),
        (["--mask", "RandomMask", "--file_mask", "poisson_4.0x"], "--mask RandomMask and --file_mask poisson_4.0x"),
        (["--checkpoint", "{tmp}/run"], "run: is a folder of a training; give {tmp}/run/checkpoints/best.ckpt"),
        (["--checkpoint", "{tmp}/net"], "net: the coil maps of its training cannot be made by this version"),
    ],
)
def test_options_without_effect_are_refused(options, message, scan_folder, tmp_path, capsys):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/checkpoints/best.ckpt").write_bytes(b"")
    net = MonarchSENSE((48, 32))
    describe(net, Description(((48, 32),), (4,), {}, 3.0, {"source": "file", "smoothing": 3}, "truth", 1, 1))
    save(net, tmp_path / "net")
    given = [option.format(tmp=tmp_path) for option in options]
    assert run(scan_folder / "val", "--out", tmp_path / "out", *given) == 2
    assert message.format(tmp=tmp_path) in one_line(capsys)
    assert not (tmp_path / "out").exists()
