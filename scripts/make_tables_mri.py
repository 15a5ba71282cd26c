"""The MRI tables of the README files, from what is in results/."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from reproduce_mri_protocol import cells, read_rows

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "results/mri_few_slices"
MASKS, SLICES, N_HEADS = ("equispaced", "poisson"), (1, 2, 5, 20, 100), 3
UNTRAINED = "MonarchISTA, untrained"
CLASSICAL = ("zero-filled SENSE", "CG-SENSE", "L1-wavelet", UNTRAINED)
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
OURS = "MonarchISTA, growing"  # the one recipe that is compared
BASELINES = (*CLASSICAL[:3], *UNROLLED[:4])
TABLES = ("linear", "unrolled", "real")
LINEAR = ("density compensation", "U-Net", "MonarchSENSE")
LINEAR_SLICES = (1, 2, 3, 5)
LINEAR_BASELINES = ("zero-filled SENSE", "U-Net", "density compensation", "CG-SENSE")
ROOM = ("density compensation", "CG-SENSE")  # how much above zero-filled one can be
COMPARED = {"times_faster_than_sigpy": ".0f", "largest_difference": ".0e"}
NOT_YET, NOT_PLANNED = "not yet", "–"
NOTHING = "Not measured yet."
PLANNED = {(c.network, c.mask, c.acceleration, c.n_slices) for table in TABLES for c in cells(table)}
Row = dict[str, Any]


def rows_of(*tables: str) -> list[Row]:
    """Rows of ``classical`` and of ``train``; what does not learn has the same cells in every table."""
    rows = [row for file in ("classical.jsonl", "rows.jsonl") for row in read_rows(FOLDER / file)]
    return [row for row in rows if row["table"] in tables or not row["n_slices"]]


class Column(NamedTuple):
    """What a column shows.

    Attributes:
        mask: Kind of the mask of the training.
        acceleration: Its acceleration.
        n_slices: Trained on; what does not learn is the same for any number.
        test: Name of the test.
    """

    mask: str
    acceleration: int
    n_slices: int
    test: str


def _by_head(rows: list[Row], name: str, column: Column) -> dict[int, float]:
    """PSNR of a method in a column, by the head that was tested on."""
    return {
        row["head"]: row["scores"][column.test]["psnr"]
        for row in rows
        if row["network"] == name
        and (row["mask"], row["acceleration"]) == column[:2]
        and row["n_slices"] in (0, column.n_slices)
        and column.test in row["scores"]
    }


def _cell(rows: list[Row], name: str, column: Column) -> str:
    """Mean and standard error of the PSNR over the runs, each on a head of its own."""
    found = _by_head(rows, name, column).values()
    if len(found) == N_HEADS:
        return f"{statistics.mean(found):.1f} ± {statistics.stdev(found) / N_HEADS**0.5:.1f}"
    planned = name in CLASSICAL or (name, *column[:3]) in PLANNED
    return NOT_YET if planned else NOT_PLANNED


def _table(rows: list[Row], names: Sequence[str], columns: dict[str, Column]) -> str:
    """A line for each method that has rows or is planned, a column for each title."""
    lines = [f"| method | parameters | {' | '.join(columns)} |", "|---|---|" + "---|" * len(columns)]
    for name in names:
        own = [row for row in rows if row["network"] == name]
        cells = [_cell(own, name, column) for column in columns.values()]
        if not own and set(cells) == {NOT_PLANNED}:
            continue
        count = next((f"{row['n_parameters']:,}" for row in own if row.get("n_parameters")), "")
        lines.append(f"| {name} | {count} | {' | '.join(cells)} |")
    return "\n".join(lines)


def progress() -> str:
    """How much of the protocol is done."""
    done = sum(bool(row["n_slices"]) for row in read_rows(FOLDER / "rows.jsonl"))
    return f"**{done} of {sum(len(cells(table)) for table in TABLES)} trainings are done.**"


def margins(test: str) -> str:
    """Of the one recipe over tuned L1-wavelet, over the best of all baselines, and over its untrained start.

    Mean of the differences on the same head, and in brackets the least of them.
    """
    rows = rows_of("unrolled")
    lines = [
        "| mask | training slices | over L1-wavelet | over the best baseline | which | over its untrained start |",
        "|---|---|---|---|---|---|",
    ]
    for mask, acceleration, n in ((m, r, n) for m in MASKS for r in (4, 8) for n in SLICES):
        column = Column(mask, acceleration, n, test)
        found = {name: _by_head(rows, name, column) for name in (OURS, *BASELINES, UNTRAINED)}
        whole = {name: scores for name, scores in found.items() if len(scores) == N_HEADS}
        best = max((name for name in BASELINES if name in whole), key=lambda name: sum(whole[name].values()))
        cells = [_difference(whole.get(OURS), whole.get(name)) for name in ("L1-wavelet", best, UNTRAINED)]
        lines.append(f"| {mask} {acceleration}x | {n} | {cells[0]} | {cells[1]} | {best} | {cells[2]} |")
    return "\n".join(lines)


def _difference(ours: dict[int, float] | None, theirs: dict[int, float] | None) -> str:
    if ours is None or theirs is None:
        return NOT_YET
    by_head = [ours[head] - theirs[head] for head in ours]
    return f"{statistics.mean(by_head):+.1f} ({min(by_head):+.1f})"


def linear(test: str) -> str:
    """Few slices, linear reconstruction: mSENSE's table; a line that says so where nothing is trained."""
    rows = rows_of("linear")
    if not any(row["network"] in LINEAR for row in rows):
        return NOTHING
    columns = {f"{r}x, {n}": Column("poisson", r, n, test) for r in (2, 3, 4) for n in LINEAR_SLICES}
    return _table(rows, (*CLASSICAL[:2], *LINEAR), columns)


def linear_margins(test: str) -> str:
    """Of MonarchSENSE over what it is compared with, and of two of these over zero-filled; as in :func:`margins`."""
    rows, zero_filled = rows_of("linear"), LINEAR_BASELINES[0]
    pairs = [("MonarchSENSE", name) for name in LINEAR_BASELINES] + [(name, zero_filled) for name in ROOM]
    titles = [f"over {name}" for name in LINEAR_BASELINES] + [f"{name} over zero-filled" for name in ROOM]
    lines = [f"| acceleration | training slices | {' | '.join(titles)} |", "|---|---|" + "---|" * len(titles)]
    for acceleration, n in ((r, n) for r in (2, 3, 4) for n in LINEAR_SLICES):
        column = Column("poisson", acceleration, n, test)
        found = {name: _by_head(rows, name, column) for name in ("MonarchSENSE", *LINEAR_BASELINES)}
        whole = {name: scores for name, scores in found.items() if len(scores) == N_HEADS}
        cells = [_difference(whole.get(first), whole.get(second)) for first, second in pairs]
        lines.append(f"| {acceleration}x | {n} | {' | '.join(cells)} |")
    return "\n".join(lines)


def unrolled(mask: str, test: str) -> str:
    """Few slices, unrolled networks, of one kind of mask."""
    columns = {f"{r}x, {n}": Column(mask, r, n, test) for r in (4, 8) for n in SLICES}
    return _table(rows_of("unrolled"), (*CLASSICAL, *UNROLLED), columns)


def summary() -> str:
    """Few and many slices, the mask of the training: what the README shows."""
    columns = {
        f"{mask} {r}x, {n}": Column(mask, r, n, "same")
        for mask in MASKS
        for r in (4, 8)
        for n in (SLICES[0], SLICES[2])
    }
    return _table(rows_of("unrolled"), (*CLASSICAL, "MoDL", OURS), columns)


def real(scan: str) -> str:
    """A real brain slice that nothing was trained on; a line that says so where no network was tested on it."""
    rows = rows_of("unrolled", "real")
    if not any(row["network"] in UNROLLED and row["n_slices"] == 100 and scan in row["scores"] for row in rows):
        return NOTHING
    names = (*CLASSICAL, "MoDL", "VarNet on images", "MonarchISTA", OURS)
    return _table(rows, names, {f"{mask} {r}x": Column(mask, r, 100, scan) for mask in MASKS for r in (2, 4, 8)})


def coils(*files: str) -> str:
    """Milliseconds of coil maps by ESPIRiT beside sigpy's, and the largest difference from sigpy's."""
    lines = ["| method | device | ms | times faster than sigpy | largest difference |", "|---|---|---|---|---|"]
    for file in files:
        found = json.loads((ROOT / "results" / file).read_text())
        beside = " beside it" if any(row["device"] == "cuda" for row in found["rows"]) else ""
        for row in sorted(found["rows"], key=lambda row: row["device"] == "cpu"):
            processor = f"CPU{beside}, {found['torch_threads']} thread"
            device = found["device"] if row["device"] == "cuda" else processor
            cells = [f"{row[key]:{form}}" if key in row else "" for key, form in COMPARED.items()]
            lines.append(f"| {row['method']} | {device} | {row['milliseconds']:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


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
            cells += [_milliseconds(row["cpu_milliseconds"] or row["milliseconds"]) if measured else row["status"]]
            cells += [f"{memory / 1e6:.0f}" if memory else ""]
        error = rows[shapes[0]].get("relative_error")
        cells.append("" if error is None else f"{error:.0e}")
        count = next((f"{row['parameters']:,}" for row in rows.values() if row.get("parameters")), "")
        lines.append(f"| {method} | {package} | {count} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _milliseconds(value: float) -> str:
    """Of what takes less than 10 ms, as on a GPU, two decimals."""
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
