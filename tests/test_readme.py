import importlib.util
import re
from pathlib import Path

import pytest

from tests.navier_stokes_runs import row_of

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_readme_has_an_example():
    assert BLOCKS


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: b.split("\n")[0][:40])
def test_python_blocks_run(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})


PAGES = [page for page in sorted((README.parent / "docs/guide").glob("*.md")) if "```python" in page.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_blocks_of_a_guide_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    exec(compile("\n".join(blocks), page.name, "exec"), {})


def test_figures_and_results_that_the_readme_names_exist():
    names = re.findall(r"\]\(((?:results|docs)/[^)#]+)", README.read_text())
    assert names
    for name in names:
        assert (README.parent / name).exists(), name


def test_tables_are_those_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(README.parent / "scripts")
    spec = importlib.util.spec_from_file_location("make_tables", README.parent / "scripts/make_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for file in module.TABLES:
        assert module.fill(file) == (README.parent / file).read_text(), "run python scripts/make_tables.py"


@pytest.mark.parametrize(
    ("milliseconds", "error", "reached"), [(1.0, 1e-4, "**6.00x**"), (1.5, 1e-4, "4.00x"), (1.0, 1e-2, "6.00x")]
)
def test_a_target_is_reached_by_speed_and_accuracy(milliseconds, error, reached, monkeypatch):
    monkeypatch.syspath_prepend(README.parent / "scripts")
    speed = importlib.import_module("make_tables_speed")
    target = speed.Target("work", "high", 5.0)
    row = {"work": "work; to reach: 5x", "status": "measured", "compiled": False, "relative_error": error}
    rows = [
        row | {"method": "SpectralConv", "precision": "highest", "milliseconds": 6.0},
        row | {"method": "SpectralConv, compiled", "precision": "high", "milliseconds": 8.0},
        row
        | {"method": "Monarch, auto", "precision": "high", "milliseconds": milliseconds, "ceiling_milliseconds": 0.5},
        row
        | {"method": "Monarch, frozen, auto", "precision": "high", "milliseconds": 0.1, "ceiling_milliseconds": 0.5},
        row | {"method": "Monarch, auto", "precision": "highest", "milliseconds": 0.1, "ceiling_milliseconds": 0.5},
    ]
    assert f"| 5.0x | {reached} | Monarch, auto |" in speed._target_line(target, rows)
    assert "not measured" in speed._target_line(target, rows[2:])


def test_rows_of_fewer_trajectories_stand_by_steps_and_by_epochs(monkeypatch):
    monkeypatch.syspath_prepend(README.parent / "scripts")
    flow = importlib.import_module("make_tables_navier_stokes")
    rows = [
        row_of("fno_100_1e-5", 0, 0.3, epochs=5000),
        row_of("fno_100_1e-5", 0, 0.2),
        row_of("fno_1e-5", 0, 0.1),
        row_of("monarch_fno_300_1e-5", 0, 0.15, epochs=1667),
        row_of("monarch_fno_1e-5", 0, 0.12),
        row_of("one_step_no_norm_100_1e-5", 0, 0.4, epochs=300),
        row_of("one_step_no_norm_300_1e-5", 0, 0.35, epochs=1000),
        row_of("one_step_no_norm_1e-5", 0, 0.06, epochs=16),
        row_of("one_step_no_norm_1e-5", 0, 0.05, epochs=300),
    ]
    monkeypatch.setattr(flow, "_rows", lambda: rows)
    text = flow.numbers_of_trajectories()
    assert "| FNO | as many steps | 0.3000 | not yet | 0.1000 (1 of 3 seeds) |" in text
    assert "| FNO | 500 epochs | 0.2000 | not yet | 0.1000 (1 of 3 seeds) |" in text
    assert "| MonarchFNO | as many steps | not yet | 0.1500 | 0.1200 (1 of 3 seeds) |" in text
    assert "no normalisation | as many steps | not yet | 0.3500 | 0.0500 |" in text
    assert "no normalisation | 300 epochs | 0.4000 | not yet | 0.0500 |" in text
    assert "| MonarchFNO | 500 epochs" not in text
