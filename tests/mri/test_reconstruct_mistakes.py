import shutil
import warnings

import h5py
import numpy as np
import pytest
import torch

from sciml_monarch import hub, save
from sciml_monarch.mri.base import rss
from sciml_monarch.mri.description import Description, describe
from sciml_monarch.mri.readers import open_scans
from sciml_monarch.mri.sense import MonarchSENSE
from sciml_monarch.mri.writing import write_ismrmrd
from tests.command_line import one_line
from tests.mri.reconstructions import DESCRIPTION, QUICK, files, run
from tests.mri.scans import make_scan, write_scan


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


def test_magnitudes_have_no_complex_image(scan_folder, tmp_path, capsys):
    assert run(scan_folder / "val", "--out", tmp_path / "out", *QUICK, "--complex", "true") == 2
    assert "--complex: zero-filled RSS gives magnitudes" in one_line(capsys)
    assert files(tmp_path) == []


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
