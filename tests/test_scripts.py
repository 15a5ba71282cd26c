import json
import subprocess
import sys
from pathlib import Path

import pytest

from sciml_monarch.monarch.kernels.spectral_products import ThinProducts
from sciml_monarch.pde.simulate import simulate
from tests.helpers import needs_triton

SCRIPTS = Path(__file__).parents[1] / "scripts"


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPTS / script), *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_training_benchmark_writes_a_row_a_network(tmp_path):
    simulate(out=tmp_path / "data", n_trajectories=20, viscosity=1e-3, simulation_resolution=16, resolution=16)
    out = tmp_path / "benchmark.json"
    result = run(
        "benchmark_training.py",
        "--data",
        tmp_path / "data",
        "--out",
        out,
        "--n_train",
        20,
        "--n_epochs",
        2,
        "--n_warm_up",
        1,
        "--width",
        4,
        "--n_modes",
        8,
        "--device",
        "cpu",
    )
    assert result.returncode == 0, result.stderr
    rows = json.loads(out.read_text())
    assert [row["method"] for row in rows] == ["FNO", "MonarchFNO"]
    assert all(row["seconds_per_epoch"] > 0 and row["batches"] == 1 for row in rows)


def test_solver_benchmark_writes_its_rows(tmp_path):
    out = tmp_path / "solver.json"
    result = run(
        "benchmark_solver.py",
        "--out",
        out,
        "--device",
        "cpu",
        "--n",
        16,
        "--resolution",
        16,
        "--chunks",
        2,
        "--backends",
        "eager",
        "--eager-chunk",
        2,
        "--n-trajectories",
        4,
        "--final-time",
        1,
        "--seconds-per-row",
        0.05,
        "--scratch",
        tmp_path,
    )
    assert result.returncode == 0, result.stderr
    rows = json.loads(out.read_text())["rows"]
    assert rows
    assert all(row["relative_error_against_float64"] < 1e-4 for row in rows)


def test_scripts_name_the_mistake(tmp_path):
    result = run("benchmark_training.py", "--data", tmp_path / "absent", "--out", tmp_path / "x.json")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "absent" in result.stderr


def test_a_line_that_was_cut_off_is_left_out_and_ended(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    from json_lines import add_row, read_rows

    file = tmp_path / "rows.jsonl"
    add_row(file, {"row": 1})
    with file.open("a") as stream:
        stream.write('{"row": 2')
    add_row(file, {"row": 3})
    with file.open("a") as stream:
        stream.write('{"row": 4')
    assert read_rows(file) == [{"row": 1}, {"row": 3}]
    with file.open("a") as stream:
        stream.write('{"row": 5}\n')
    assert read_rows(file) == [{"row": 1}, {"row": 3}, {"row": 5}]


@needs_triton
def test_every_thin_product_is_timed_both_ways(tmp_path):
    out = tmp_path / "products.json"
    result = run("compare_products.py", "--device", "cpu", "--repeats", "1", "--quick", "true", "--out", out)
    assert result.returncode == 0, result.stderr
    rows = json.loads(out.read_text())["rows"]
    assert {row["product"] for row in rows} == set(ThinProducts._fields)
    assert all(row["kernel"] > 0 and row["torch"] > 0 for row in rows)
    assert result.stdout.count("\n") == 4


@needs_triton
def test_maps_of_channels_are_timed_both_ways(tmp_path):
    out = tmp_path / "pointwise.json"
    result = run("compare_pointwise.py", "--device", "cpu", "--repeats", "1", "--quick", "true", "--out", out)
    assert result.returncode == 0, result.stderr
    rows = json.loads(out.read_text())["rows"]
    assert {(row["hidden"], row["gated"]) for row in rows} == {(0, False), (16, False), (4, True)}
    for row in rows:
        timed = [f"{step}, {way}" for step in ("forward", "forward and backward") for way in ("triton", "torch")]
        assert all(row[key] > 0 for key in timed)
    assert result.stdout.count("\n") == 2 + len(rows)
    result = run(
        "compare_pointwise.py", "--device", "cpu", "--quick", "true", "--kinds", "[gated, other]", "--out", out
    )
    assert (result.returncode, "no kinds other" in result.stderr) == (2, True), result.stderr


def test_ways_to_map_channels_are_timed(tmp_path):
    out = tmp_path / "maps.json"
    result = run("compare_channel_maps.py", "--device", "cpu", "--repeats", "1", "--quick", "true", "--out", out)
    assert result.returncode == 0, result.stderr
    (row,) = json.loads(out.read_text())["rows"]
    assert all(
        row[f"{step}, {way}"] > 0 for step in ("forward", "forward and backward") for way in ("factors", "matrix")
    )
    assert result.stdout.count("\n") == 3


def test_steps_of_rows_are_timed(tmp_path):
    out = tmp_path / "rows.json"
    options = "--device", "cpu", "--repeats", "1", "--quick", "true", "--out", out
    result = run("benchmark_rows.py", *options, "--rows", "[fno_1e-5]", "--precisions", "[row, bf16]")
    assert result.returncode == 0, result.stderr
    rows = json.loads(out.read_text())["rows"]
    assert [(row["row"], row["precision"], row["backend"]) for row in rows] == [
        ("fno_1e-5", precision, backend) for precision in ("row", "bf16") for backend in ("auto", "torch")
    ]
    assert all(row["milliseconds"] > 0 for row in rows)
    assert result.stdout.count("\n") == 2 + len(rows)
    for wrong in (("--rows", "[no_row]"), ("--precisions", "[row, fp8]")):
        result = run("benchmark_rows.py", *options, *wrong)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr


def test_on_a_cpu_the_inverse_fft_goes_an_axis_at_a_time(tmp_path):
    """The other device is to be compared with this."""
    out = tmp_path / "ffts.json"
    result = run("compare_inverse_ffts.py", "--device", "cpu", "--out", out)
    assert result.returncode == 0, result.stderr
    rows = json.loads(out.read_text())["rows"]
    assert [row.pop("grid") for row in rows] == [32, 48, 64, 96, 128, 192, 256]
    assert all(value < 1e-6 for row in rows for value in row.values())
