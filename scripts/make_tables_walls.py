"""Tables of flow with walls, from what ``reproduce_walls.py`` wrote; ``make_tables.py`` puts them into a README.

Of the trainings of a row those count whose rate was chosen on validation pairs.
"""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from json_lines import read_rows
from reproduce_walls import chosen, n_epochs

ROWS = Path(__file__).resolve().parents[1] / "results/walls/rows.jsonl"
NETWORKS = {
    "fno": "FNO",
    "fno_padded": "padded FNO",
    "monarch_fno": "MonarchFNO",
    "monarch_fno_padded": "padded MonarchFNO",
}
DIFFERENCES = (
    *((name, "fno") for name in NETWORKS if name != "fno"),
    ("monarch_fno", "fno_padded"),
    ("monarch_fno_padded", "monarch_fno"),
)
PARTS = ("everywhere", "near walls", "elsewhere")
NOTHING = "not measured yet"
Row = dict[str, Any]


def errors() -> str:
    """Relative L2 errors, mean and standard error over the seeds."""
    return _for_each_resolution(_errors)


def differences() -> str:
    """Differences of the errors of two networks with the same seed, mean and standard error, and in percent."""
    return _for_each_resolution(_differences)


def rates() -> str:
    """Validation error of each learning rate."""
    return _for_each_resolution(_rates)


def _for_each_resolution(table: Callable[[list[Row], int], str]) -> str:
    rows = read_rows(ROWS) if ROWS.exists() else []
    rows = [row for row in rows if row["row"] in NETWORKS and row["epochs"] == n_epochs(row["row"], None)]
    resolutions = sorted({row["resolution"] for row in rows})
    return "\n\n".join(f"Trained at {n}²:\n\n{table(rows, n)}" for n in resolutions) or "Not measured yet."


def _rate(rows: list[Row], name: str, n: int) -> float | None:
    """The rate that was chosen; ``None`` where none has been tried."""
    tried = any((row["row"], row["resolution"]) == (name, n) and "validation" in row for row in rows)
    return chosen(rows, name, n, n_epochs(name, None)) if tried else None


def _tested(rows: list[Row], name: str, n: int) -> dict[int, list[float]]:
    """For each seed the errors of the network that was trained with the chosen rate, a column each."""
    own = (name, n, _rate(rows, name, n))
    return {
        row["seed"]: [row["errors"][f"darcy_test_{m}"][part] for m, part in _columns(n)]
        for row in rows
        if "errors" in row and (row["row"], row["resolution"], row["learning_rate"]) == own
    }


def _columns(n: int) -> list[tuple[int, str]]:
    """Resolution of the test, part of the domain."""
    return [(m, part) for m in (n, 2 * n) for part in PARTS]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _head(*titles: str) -> list[str]:
    return [_line(*titles), "|" + "---|" * len(titles)]


def _errors(rows: list[Row], n: int) -> str:
    titles = [f"{m}², {part}" for m, part in _columns(n)]
    lines = _head("network", "parameters", "learning rate", "seeds", *titles)
    for name, label in NETWORKS.items():
        own = _tested(rows, name, n)
        if len(own) < 2:  # no standard error
            lines.append(_line(label, NOTHING, *[""] * (2 + len(titles))))
            continue
        size = next(row["n_parameters"] for row in rows if (row["row"], row["resolution"]) == (name, n))
        cells = [_mean(column, ".4f") for column in zip(*own.values(), strict=True)]
        lines.append(_line(label, f"{size:,}", f"{_rate(rows, name, n):g}", str(len(own)), *cells))
    return "\n".join(lines)


def _differences(rows: list[Row], n: int) -> str:
    titles = [f"{m}², {part}" for m, part in _columns(n)]
    lines = _head("difference", *titles)
    for pair in DIFFERENCES:
        this, other = (_tested(rows, name, n) for name in pair)
        seeds = sorted(this.keys() & other.keys())
        label = " − ".join(NETWORKS[name] for name in pair)
        if len(seeds) < 2:
            lines.append(_line(label, NOTHING, *[""] * (len(titles) - 1)))
            continue
        cells = []
        for i in range(len(titles)):
            apart = [this[seed][i] - other[seed][i] for seed in seeds]
            percent = 100 * sum(apart) / sum(other[seed][i] for seed in seeds)
            cells.append(f"{_mean(apart, '+.4f')} ({percent:+.1f}%)")
        lines.append(_line(label, *cells))
    return "\n".join(lines)


def _rates(rows: list[Row], n: int) -> str:
    tried = {
        (row["row"], row["learning_rate"]): row["validation"]
        for row in rows
        if row["resolution"] == n and "validation" in row
    }
    columns = sorted({rate for _, rate in tried})
    lines = _head("network", *(f"{rate:g}" for rate in columns))
    for name, label in NETWORKS.items():
        best = _rate(rows, name, n)
        cells = [f"{tried[name, rate]:.4f}" if (name, rate) in tried else NOTHING for rate in columns]
        lines.append(
            _line(label, *(f"**{cell}**" if rate == best else cell for rate, cell in zip(columns, cells, strict=True)))
        )
    return "\n".join(lines)


def _mean(values: Sequence[float], form: str) -> str:
    return f"{statistics.mean(values):{form}} ± {statistics.stdev(values) / len(values) ** 0.5:.4f}"
