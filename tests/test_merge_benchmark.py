"""Rows measured anew in the place of those of before."""

import json
import sys

import pytest

from sciml_monarch import InputError
from tests.programs import script


@pytest.fixture(scope="module")
def program():
    return script("merge_benchmark")


def measured(method, ms, work="conv", precision="high", status="measured"):
    package = "sciml-monarch" if method.startswith("Monarch") else "neuraloperator"
    return {"work": work, "method": method, "precision": precision, "package": package, "status": status, "ms": ms}


def file(*rows, device="GPU", **noted):
    return {
        "command": "benchmark.py --only x --out somewhere/a.json --quick true",
        "device": device,
        **noted,
        "rows": rows,
    }


def found(merged):
    return [(row["work"], row["method"], row["ms"], row.get("run")) for row in merged["rows"]]


def test_ours_are_replaced_and_others_stay_as_long_as_they_are_compared_with(program):
    before = file(
        measured("theirs", 8), measured("Monarch", 4), measured("Monarch, compiled", 3), measured("theirs", 9, "other"),
        measured("Monarch", 5, "other"),
    )  # fmt: skip
    anew = file(
        measured("theirs", 7), measured("Monarch", 2), measured("Monarch, frozen", 0, status="failed"), commit="b"
    )
    once = program.merged(before, anew)
    other = [("other", "theirs", 9, None), ("other", "Monarch", 5, None)]
    first, second = [("conv", "theirs", 8, None)], [("conv", "theirs", 7, 2), ("conv", "Monarch", 2, 2)]
    assert found(once) == [*first, ("conv", "Monarch, compiled", 3, None), *second, *other]
    assert [(run["run"], run["commit"]) for run in once["runs"]] == [(2, "b")]
    assert once["runs"][0]["command"] == "benchmark.py --only x --quick true"
    assert once["command"] == before["command"]
    # with the last of ours of the first run, what it was compared with goes too
    twice = program.merged(once, file(measured("theirs", 6), measured("Monarch, compiled", 1), commit="c"))
    assert found(twice) == [*second, ("conv", "theirs", 6, 3), ("conv", "Monarch, compiled", 1, 3), *other]
    assert [(run["run"], run["commit"]) for run in twice["runs"]] == [(2, "b"), (3, "c")]


def test_what_cannot_be_compared_is_refused(program):
    before = file(measured("Monarch", 4))
    with pytest.raises(InputError, match="these are of another, those before of GPU"):
        program.merged(before, file(measured("Monarch", 2), device="another"))
    with pytest.raises(InputError, match="no row of ours"):
        program.merged(before, file(measured("theirs", 2), measured("Monarch", 0, status="failed")))


def test_the_program_writes_the_first_file(program, tmp_path, monkeypatch):
    paths = [tmp_path / f"{n}.json" for n in range(3)]
    for path, ms in zip(paths, (4, 3, 2), strict=True):
        path.write_text(json.dumps(file(measured("Monarch", ms))))
    monkeypatch.setattr(sys, "argv", ["merge_benchmark.py", *map(str, paths)])
    with pytest.raises(SystemExit) as end:
        program.main()
    assert end.value.code == 0
    assert found(json.loads(paths[0].read_text())) == [("conv", "Monarch", 2, 3)]
