import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.command_line import one_line
from tests.mri.reconstructions import QUICK, files, run
from tests.mri.scans import make_scan, write_scan
from tests.programs import heed_interrupts


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
