import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, str(SCRIPTS / "benchmark.py"), "--device", "cpu", "--quick", "true", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


@pytest.mark.slow
def test_every_row_is_measured_or_says_why_not(tmp_path):
    out = tmp_path / "benchmark.json"
    result = run("--out", out)
    assert result.returncode == 0, result.stderr
    results = json.loads(out.read_text())
    assert results["torch"]
    assert "--quick true" in results["command"]
    rows = results["rows"]
    statuses = {"measured", "needs a CUDA device", "left out of a quick run", "not installed"}
    assert {row["status"] for row in rows} <= statuses, [r["status"] for r in rows if r["status"] not in statuses]
    measured = [row for row in rows if row["status"] == "measured"]
    plain = {row["work"] for row in measured if row["method"] == "Monarch, plain torch"}
    assert plain | {row["work"] for row in measured if row["kind"] == "fno"} == {row["work"] for row in rows}
    for row in measured:
        assert row["quartiles"][0] <= row["milliseconds"] <= row["quartiles"][1]
        assert row["relative_error"] < (2e-2 if row["dtype"] == "bfloat16" else 2e-6)
        assert row["bytes"] > 0
        ratio = row["milliseconds"] / row["ceiling_milliseconds"]
        assert row["times_ceiling"] == pytest.approx(ratio)
    assert (tmp_path / "benchmark.png").stat().st_size > 10_000


def test_rows_can_be_chosen_and_the_time_limited(tmp_path):
    out = tmp_path / "benchmark.json"
    assert run("--out", out, "--only", '["F.linear"]', "--time_limit", 0).returncode == 0
    rows = json.loads(out.read_text())["rows"]
    assert {row["kind"] for row in rows} == {"linear"}
    assert {row["status"] for row in rows} == {"not begun within 0 s"}
    result = run("--out", tmp_path / "other.json", "--only", '["Fouier"]')
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "Fouier" in result.stderr


def test_tuning_times_configurations(tmp_path):
    """In Triton's interpreter, as far as a few seconds go."""
    pytest.importorskip("triton")
    out = tmp_path / "tune.json"
    options = "--tune", "true", "--only", '["gradients of the factors"]', "--time_limit", 3
    result = run("--out", out, *options, TRITON_INTERPRET="1")
    assert result.returncode == 0, result.stderr
    kernels = json.loads(out.read_text())["kernels"]
    first = kernels[0]["configurations"][0]
    assert first["configuration"] == kernels[0]["chosen"]
    assert first["milliseconds"] > 0
    assert first["difference"] == 0
    assert kernels[0]["best"]["milliseconds"] <= first["milliseconds"]
    assert kernels[-1]["status"] == "not begun within the time limit"


def test_tuning_without_a_gpu_is_refused(tmp_path):
    result = run("--out", tmp_path / "tune.json", "--tune", "true", TRITON_INTERPRET="0")
    assert result.returncode == 2
    assert "tuning needs Triton and a CUDA device" in result.stderr
