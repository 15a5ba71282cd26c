import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import needs_triton

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from benchmark_children import Reporter, supervised  # noqa: E402


def command(*arguments):
    return [str(SCRIPTS / "benchmark.py"), "--device", "cpu", "--quick", "true", *map(str, arguments)]


@pytest.fixture
def run_here(monkeypatch):
    """Runs the program in this process, which has imported what takes seconds; returns its exit status."""
    from benchmark import benchmark  # here, so that children below need not import it

    from sciml_monarch.cli import call, guarded

    def run_here(*arguments):
        monkeypatch.setattr(sys, "argv", command(*arguments))
        return guarded("benchmark", lambda: call(benchmark, sys.argv[1:]))

    return run_here


def run(*arguments, **environment):
    """Runs the program in a process of its own: Triton's interpreter is chosen by the environment."""
    line = [sys.executable, *command(*arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False, env=os.environ | environment)


def test_every_row_is_measured_or_says_why_not(tmp_path, run_here):
    out = tmp_path / "benchmark.json"
    assert run_here("--out", out) == 0
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
        if row["method"].startswith("FNO"):  # its cost is not counted
            assert "times_ceiling" not in row
            continue
        assert row["bytes"] > 0
        ratio = row["milliseconds"] / row["ceiling_milliseconds"]
        assert row["times_ceiling"] == pytest.approx(ratio)
        halves = row["kind"] in ("analysis", "synthesis")
        assert ("times_reading_the_field" in row) == halves
        assert not halves or row["times_reading_the_field"] > 0
    theirs = {row["difference_from_neuraloperator"] for row in measured if row["kind"] == "spectral"} - {None}
    assert max(theirs, default=0.0) < 2e-6
    assert theirs or "not installed" in {row["status"] for row in rows}
    assert (tmp_path / "benchmark.png").stat().st_size > 10_000


def test_rows_can_be_chosen_and_the_time_limited(tmp_path, run_here, capsys):
    out = tmp_path / "benchmark.json"
    assert run_here("--out", out, "--only", '["F.linear"]', "--time_limit", 0) == 0
    rows = json.loads(out.read_text())["rows"]
    assert {row["kind"] for row in rows} == {"linear"}
    assert {row["status"] for row in rows} == {"not begun within 0 s"}
    capsys.readouterr()
    assert run_here("--out", tmp_path / "other.json", "--only", '["Fouier"]') == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "Fouier" in said


@pytest.mark.slow
@needs_triton
def test_tuning_times_configurations(tmp_path):
    """In Triton's interpreter, as far as a few seconds go."""
    out, names = tmp_path / "tune.json", ("spectral weigh,", "linear second_back", "adjoint, 2 coils")
    options = "--tune", "true", "--only", json.dumps(names), "--time_limit", 120, "--seconds_per_kernel", 0.1
    result = run("--out", out, *options, TRITON_INTERPRET="1")
    assert result.returncode == 0, result.stderr
    text = out.read_text()
    assert "Infinity" not in text
    kernels = json.loads(text)["kernels"]
    assert all(any(name in entry["kernel"] for name in names) for entry in kernels)
    measured = [entry for entry in kernels if entry["best"]]
    assert all(any(name in entry["kernel"] for entry in measured) for name in names)
    for entry in measured:
        first = entry["configurations"][0]
        assert first["configuration"] == entry["chosen"]
        assert first["milliseconds"] > 0
        assert 0 < first["error"] < 2e-2
        assert first["right"]
        assert entry["best"]["milliseconds"] <= first["milliseconds"]


def child(connection, start):
    """Reports the squares of a few numbers, two parts each; hangs at one of them and dies at another."""
    reporter = Reporter(connection)
    for i in range(start[0], 3):
        reporter.begun(i, -1)
        reporter.result(item=i)
        for j in range(start[1] if i == start[0] else 0, 2):
            if j < 0:
                continue
            reporter.begun(i, j)
            if (i, j) == (1, 0):
                time.sleep(60)
            if (i, j) == (2, 0):
                os._exit(7)
            reporter.result(square=(2 * i + j) ** 2)
    reporter.finished()


@pytest.mark.slow
def test_a_child_that_breaks_off_is_replaced_behind_what_broke_it():
    found = list(supervised(child, (), math.inf, 8.0))
    results = dict(entry for entry in found if entry[0][1] >= 0)
    assert list(results) == [(i, j) for i in range(3) for j in range(2)]
    assert results.pop((1, 0))["status"] == "failed: no answer within 8 s"
    assert results.pop((2, 0))["status"] == "failed: the process ended with exit code 7"
    assert all(row == {"square": (2 * i + j) ** 2} for (i, j), row in results.items())


def test_tuning_without_a_gpu_is_refused(tmp_path, run_here, capsys, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert run_here("--out", tmp_path / "tune.json", "--tune", "true") == 2
    assert "tuning needs Triton and a CUDA device" in capsys.readouterr().err
