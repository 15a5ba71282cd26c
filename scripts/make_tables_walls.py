"""Tables of flow with walls, from what ``reproduce_walls.py`` wrote; ``make_tables.py`` puts them into a README.

Of the trainings of a row those count whose rate was chosen on validation pairs.
"""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from json_lines import read_rows
from reproduce_training import read_config
from reproduce_walls import WAYS, SetName, chosen, n_epochs, yaml_of

ROWS = Path(__file__).resolve().parents[1] / "results/walls/rows.jsonl"
TITLES: dict[SetName, str] = {"darcy": "Darcy flow", "burgers_walls": "Burgers' equation"}
AXES: dict[SetName, int] = {"darcy": 2, "burgers_walls": 1}
NETWORKS = {
    "fno": "FNO",
    "fno_wide": "wider FNO",
    "fno_padded": "padded FNO",
    "monarch_fno": "MonarchFNO",
    "monarch_fno_padded": "padded MonarchFNO",
}
DIFFERENCES = (
    *((name, "fno") for name in NETWORKS if name != "fno"),
    ("monarch_fno", "fno_wide"),
    ("monarch_fno", "fno_padded"),
    ("monarch_fno_padded", "monarch_fno"),
)
WAY_TITLES = {  # of WAYS
    "fourier": "a grid twice as fine, hidden fields within the band",
    "cubic": "the same, hidden fields by cubics",
    "output": "the same, output of the own grid by cubics",
}
PARTS = ("everywhere", "near walls", "elsewhere")
NOTHING = "not measured yet"
Row = dict[str, Any]


def errors(name: SetName) -> str:
    """Relative L2 errors of a set, mean and standard error over the seeds."""
    return _for_each_resolution(name, _errors)


def differences(name: SetName) -> str:
    """Differences of the errors of two networks with the same seed, mean and standard error, and in percent."""
    return _for_each_resolution(name, _differences)


def grids(name: SetName) -> str:
    """Errors everywhere on a grid of twice the points, in each of the ways to it."""
    return _for_each_resolution(name, _grids)


def rates(name: SetName) -> str:
    """Validation error of each learning rate."""
    return _for_each_resolution(name, _rates)


class Runs(NamedTuple):
    """Trainings of one set at one resolution."""

    name: SetName
    n: int
    rows: list[Row]

    @property
    def networks(self) -> list[str]:
        """Rows that the set has."""
        return [row for row in NETWORKS if yaml_of(self.name, row).exists()]

    def rate(self, row: str) -> float | None:
        """The rate that was chosen; ``None`` where none has been tried."""
        tried = any(found["row"] == row and "validation" in found for found in self.rows)
        return chosen(self.rows, self.name, row, self.n, n_epochs(self.name, row, None)) if tried else None

    def tested(self, row: str) -> dict[int, list[float]]:
        """For each seed the errors of the network that was trained with the chosen rate, a column each."""
        way = read_config(yaml_of(self.name, row))["model"]["init_args"]["net"]["init_args"].get("interpolation")
        end = {self.n: "", 2 * self.n: WAYS[way or "fourier"]}
        return {
            seed: [found[f"{self.name}_test_{m}{end[m]}"][part] for m, part in self.columns]
            for seed, found in self.errors(row).items()
        }

    def errors(self, row: str) -> dict[int, dict[str, dict[str, float]]]:
        """For each seed what was tested of the network that was trained with the chosen rate."""
        own = (row, self.rate(row))
        return {
            found["seed"]: found["errors"]
            for found in self.rows
            if "errors" in found and (found["row"], found["learning_rate"]) == own
        }

    @property
    def columns(self) -> list[tuple[int, str]]:
        """Resolution of the test, part of the domain."""
        return [(m, part) for m in (self.n, 2 * self.n) for part in PARTS]

    @property
    def titles(self) -> list[str]:
        """Of the columns."""
        return [f"{_points(self.name, m)}, {part}" for m, part in self.columns]


def _points(name: SetName, n: int) -> str:
    return f"{n}²" if AXES[name] == 2 else f"{n} points"


def _for_each_resolution(name: SetName, table: Callable[[Runs], str]) -> str:
    rows = read_rows(ROWS) if ROWS.exists() else []
    rows = [row for row in rows if row["set"] == name and row["row"] in NETWORKS]
    rows = [row for row in rows if row["epochs"] == n_epochs(name, row["row"], None)]
    parts = []
    for n in sorted({row["resolution"] for row in rows}):
        own = Runs(name, n, [row for row in rows if row["resolution"] == n])
        parts.append(f"{TITLES[name]}, trained at {_points(name, n)}:\n\n{table(own)}")
    return "\n\n".join(parts) or "Not measured yet."


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _head(*titles: str) -> list[str]:
    return [_line(*titles), "|" + "---|" * len(titles)]


def _errors(runs: Runs) -> str:
    lines = _head("network", "parameters", "learning rate", "seeds", *runs.titles)
    for row in runs.networks:
        label, own = NETWORKS[row], runs.tested(row)
        if len(own) < 2:  # no standard error
            lines.append(_line(label, NOTHING, *[""] * (2 + len(runs.titles))))
            continue
        size = next(found["n_parameters"] for found in runs.rows if found["row"] == row)
        cells = [_mean(column, ".4f") for column in zip(*own.values(), strict=True)]
        lines.append(_line(label, f"{size:,}", f"{runs.rate(row):g}", str(len(own)), *cells))
    return "\n".join(lines)


def _differences(runs: Runs) -> str:
    lines = _head("difference", *runs.titles)
    for pair in DIFFERENCES:
        if not set(pair) <= set(runs.networks):
            continue
        this, other = map(runs.tested, pair)
        seeds = sorted(this.keys() & other.keys())
        label = " − ".join(NETWORKS[row] for row in pair)
        if len(seeds) < 2:
            lines.append(_line(label, NOTHING, *[""] * (len(runs.titles) - 1)))
            continue
        cells = []
        for i in range(len(runs.titles)):
            apart = [this[seed][i] - other[seed][i] for seed in seeds]
            percent = 100 * sum(apart) / sum(other[seed][i] for seed in seeds)
            cells.append(f"{_mean(apart, '+.4f')} ({percent:+.1f}%)")
        lines.append(_line(label, *cells))
    return "\n".join(lines)


def _grids(runs: Runs) -> str:
    lines = _head("network", f"its own grid of {_points(runs.name, runs.n)}", *WAY_TITLES.values())
    for row in runs.networks:
        found = [*runs.errors(row).values()]
        ends = ["", *(WAYS[way] for way in WAY_TITLES)]
        names = [f"{runs.name}_test_{runs.n * (1 + bool(end))}{end}" for end in ends]
        columns = [[errors[name]["everywhere"] for errors in found if name in errors] for name in names]
        cells = [_mean(column, ".4f") if len(column) > 1 else "" for column in columns]
        lines.append(_line(NETWORKS[row], *(cells if any(cells) else [NOTHING, *cells[1:]])))
    return "\n".join(lines)


def _rates(runs: Runs) -> str:
    tried = {(row["row"], row["learning_rate"]): row["validation"] for row in runs.rows if "validation" in row}
    columns = sorted({rate for _, rate in tried})
    lines = _head("network", *(f"{rate:g}" for rate in columns))
    for row in runs.networks:
        best = runs.rate(row)
        cells = [f"{tried[row, rate]:.4f}" if (row, rate) in tried else NOTHING for rate in columns]
        cells = [f"**{cell}**" if rate == best else cell for rate, cell in zip(columns, cells, strict=True)]
        lines.append(_line(NETWORKS[row], *cells))
    return "\n".join(lines)


def _mean(values: Sequence[float], form: str) -> str:
    return f"{statistics.mean(values):{form}} ± {statistics.stdev(values) / len(values) ** 0.5:.4f}"
