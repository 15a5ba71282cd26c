"""The MRI tables of the README files, from what is in results/."""

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from json_lines import read_rows

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "results/mri_few_slices"
CLASSICAL = ("zero-filled SENSE", "CG-SENSE", "L1-wavelet", "MonarchISTA, untrained")
UNROLLED = (
    "VarNet",
    "VarNet, zero start",
    "VarNet on images",
    "MoDL",
    "MonarchVarNet, free pair",
    "MonarchISTA, transform frozen",
    "MonarchISTA, blocks of 8",
    "MonarchISTA",
    "MonarchISTA, growing",
)
LINEAR = ("density compensation", "U-Net", "MonarchSENSE")
MISSING = "not yet"
NOTHING = "Not measured yet."
Row = dict[str, Any]


def rows_of(*tables: str) -> list[Row]:
    """Rows of ``classical`` and of ``train``; what does not learn has the same cells in every table."""
    rows = [row for file in ("classical.jsonl", "rows.jsonl") for row in read_rows(FOLDER / file)]
    return [row for row in rows if row["table"] in tables or not row["n_slices"]]


def _mean(rows: Sequence[Row], test: str, digits: int = 1) -> str:
    """Mean and standard error of the PSNR over the runs, each on a head of its own."""
    by_head = {row["head"]: row["scores"][test]["psnr"] for row in rows if test in row["scores"]}
    if len(by_head) < 3:
        return MISSING
    error = statistics.stdev(by_head.values()) / len(by_head) ** 0.5
    return f"{statistics.mean(by_head.values()):.{digits}f} ± {error:.{digits}f}"


def _table(
    rows: list[Row], names: Sequence[str], titles: Sequence[str], columns: Sequence[tuple[Callable[[Row], bool], str]]
) -> str:
    """A line for each method, a column for each condition on rows and the test that it shows."""
    lines = [f"| method | parameters | {' | '.join(titles)} |", "|---|---|" + "---|" * len(titles)]
    for name in names:
        own = [row for row in rows if row["network"] == name]
        if not own:
            continue
        count = next((f"{row['n_parameters']:,}" for row in own if row.get("n_parameters")), "")
        cells = [_mean([row for row in own if condition(row)], test) for condition, test in columns]
        lines.append(f"| {name} | {count} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _is(mask: str, acceleration: int, n_slices: int) -> Callable[[Row], bool]:
    """Whether a row is of a cell; methods that do not learn are the same for any number of slices."""
    return lambda row: (row["mask"], row["acceleration"]) == (mask, acceleration) and row["n_slices"] in (0, n_slices)


def linear(test: str) -> str:
    """Few slices, linear reconstruction: mSENSE's table; a line that says so where nothing is trained."""
    rows = rows_of("linear")
    if not any(row["network"] in LINEAR for row in rows):
        return NOTHING
    numbers = [(r, n) for r in (2, 3, 4) for n in (1, 2, 3, 5)]
    titles = [f"{r}x, {n}" for r, n in numbers]
    return _table(rows, (*CLASSICAL[:2], *LINEAR), titles, [(_is("poisson", r, n), test) for r, n in numbers])


def unrolled(mask: str, test: str) -> str:
    """Few slices, unrolled networks, of one kind of mask."""
    rows = rows_of("unrolled")
    numbers = [(r, n) for r in (4, 8) for n in (1, 2, 5, 20, 100)]
    titles = [f"{r}x, {n}" for r, n in numbers]
    return _table(rows, (*CLASSICAL, *UNROLLED), titles, [(_is(mask, r, n), test) for r, n in numbers])


def real(scan: str) -> str:
    """A real brain slice that nothing was trained on; a line that says so where no network was tested on it."""
    rows = rows_of("unrolled", "real")
    if not any(row["network"] in UNROLLED and row["n_slices"] == 100 and scan in row["scores"] for row in rows):
        return NOTHING
    numbers = [(mask, r) for mask in ("equispaced", "poisson") for r in (2, 4, 8)]
    titles = [f"{mask} {r}x" for mask, r in numbers]
    names = (*CLASSICAL, "MoDL", "VarNet on images", "MonarchISTA", "MonarchISTA, growing")
    return _table(rows, names, titles, [(_is(mask, r, 100), scan) for mask, r in numbers])


def time_and_memory(file: str) -> str:
    """Milliseconds (on a CPU those of its own) and peak of memory of a slice of 15 coils, error of the smaller."""
    found = json.loads((ROOT / "results" / file).read_text())
    shapes = [tuple(shape) for shape in dict.fromkeys(tuple(row["shape"]) for row in found["rows"])]
    titles = " | ".join(f"{y} x {x}: ms | MB" for y, x in shapes)
    lines = [
        f"| method | package | parameters | {titles} | error |",
        "|---|---|---|" + "---|---|" * len(shapes) + "---|",
    ]
    for method, package in dict.fromkeys((row["method"], row["package"]) for row in found["rows"]):
        rows = {tuple(r["shape"]): r for r in found["rows"] if (r["method"], r["package"]) == (method, package)}
        cells = []
        for shape in shapes:
            row = rows[shape]
            memory = row.get("peak_memory_bytes")
            measured = row["status"] == "measured"
            # what else a machine does lengthens the time by the clock, hardly that of the processor
            cells += [f"{row['cpu_milliseconds'] or row['milliseconds']:.1f}" if measured else row["status"]]
            cells += [f"{memory / 1e6:.0f}" if memory else ""]
        error = rows[shapes[0]].get("relative_error")
        cells.append("" if error is None else f"{error:.0e}")
        count = next((f"{row['parameters']:,}" for row in rows.values() if row.get("parameters")), "")
        lines.append(f"| {method} | {package} | {count} | {' | '.join(cells)} |")
    return "\n".join(lines)
