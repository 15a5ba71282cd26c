from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from sciml_monarch import save
from sciml_monarch.mri.base import rss
from sciml_monarch.mri.classical import cg_sense
from sciml_monarch.mri.coils import CoilMaps
from sciml_monarch.mri.description import describe
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
from sciml_monarch.mri.writing import write_npy, write_skmtea
from tests.command_line import one_line
from tests.mri.reconstructions import DESCRIPTION, files, run
from tests.mri.scans import make_scan

FILE = CoilMaps(source="file")
MAPS = CoilMaps(kernel=4)
MASK = RandomMask((3.0,), (0.25,))


def volume(path):
    with h5py.File(path) as file:
        return torch.from_numpy(file["reconstruction"][()]), dict(file.attrs)


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


def test_networks_without_maps_get_none(scan_folder, tmp_path, capsys):
    save(VarNet(1, 4, 2, 2), tmp_path / "net")
    command = [scan_folder / "val" / "val_0.h5", "--checkpoint", tmp_path / "net", "--nifti=false"]
    # two central columns: from such maps could not be estimated
    options = ["--maps.source", "espirit", "--mask", "RandomMask", "--mask.center_fractions", "[0.06]"]
    assert run(*command, "--out", tmp_path / "out", *options) == 0
    assert "note: VarNet takes no coil maps; none are made, and --maps has no effect" in capsys.readouterr().out
