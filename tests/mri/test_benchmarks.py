import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPTS / script), *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_every_row_is_measured_or_names_what_is_not_installed(tmp_path):
    out = tmp_path / "mri.json"
    result = run("benchmark_mri.py", "--quick", "true", "--device", "cpu", "--out", out)
    assert result.returncode == 0, result.stderr
    results = json.loads(out.read_text())
    ours = [row for row in results["rows"] if row["package"] == "sciml-monarch"]
    assert {row["method"] for row in ours} >= {"ESPIRiT", "E2E-VarNet, forward and backward", "MonarchISTA, forward"}
    assert {row["status"] for row in ours} == {"measured"}
    # a peer that is there and fails would be a mistake in its row
    assert {row["status"] for row in results["rows"]} <= {"measured", "not installed"}
    measured = [row for row in results["rows"] if row["status"] == "measured"]
    for row in measured:
        assert 0 < row["fastest"] <= row["milliseconds"] <= row["slowest"]
        assert row["n_runs"] == 1
        # 5e-3: deepinv adds 1e-8 to the denominators of its conjugate gradients
        assert row["relative_error"] is None or row["relative_error"] < (1e-2 if row["package"] == "deepinv" else 1e-3)
    same = [row["relative_error_in_float64"] for row in measured if "relative_error_in_float64" in row]
    assert same
    assert max(same) < 1e-9
    if "fastmri" in results["packages"]:
        assert sum(row["package"] == "fastmri" for row in measured) == 3


def test_a_row_has_a_process_and_a_peak_of_memory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import benchmark_mri
    import torch
    from benchmark_mri_methods import OURS, SMALL, make_scene

    scene = make_scene((256, 256), 128)  # so large that what libraries fetch is little beside it
    torch.save((scene.kspace, scene.mask, scene.maps), tmp_path / "scene.pt")
    limits = benchmark_mri.Limits(1, 1.0, 1)
    arguments = (("centred FFT", OURS), tmp_path / "scene.pt", SMALL, limits, "cpu", tmp_path)
    row = benchmark_mri.run_row(arguments, isolated=True)
    assert row["status"] == "measured"
    coils = scene.kspace.numel() * 8  # bytes
    # the shifted copy, its transform and the result, of which two or three are alive at a time, and what libraries
    # fetch on their first large call, which differs between machines; with imports, 250 MB and more, it were 6 * coils
    assert coils < row["peak_memory_bytes"] < 5 * coils
    result = torch.load(tmp_path / "result.pt")
    assert torch.allclose(result, benchmark_mri.METHODS[0].build(scene, SMALL).run())


def test_an_unknown_row_is_named(tmp_path):
    result = run("benchmark_mri.py", "--only", '["Fouier"]', "--out", tmp_path / "mri.json")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "Fouier" in result.stderr
    assert not (tmp_path / "mri.json").exists()


def test_coil_benchmark_agrees_with_sigpy(tmp_path):
    out = tmp_path / "coils.json"
    options = ["--n_coils", 4, "--shape", 32, 28, "--calibration", 12, "--repeats", 1, "--sigpy_repeats", 1]
    result = run("benchmark_coils.py", "--out", out, "--devices", "cpu", *options)
    assert result.returncode == 0, result.stderr
    rows = json.loads(out.read_text())["rows"]
    assert [row["method"] for row in rows] == ["sigpy", "espirit", "espirit, 2 sets"]
    for row in rows[1:]:
        assert row["largest_difference"] < 1e-3
        assert row["support_differs_on"] < 0.01
