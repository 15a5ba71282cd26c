"""The tables of one change a row, to the configurations that are in :data:`BASES`."""

import statistics
from pathlib import Path
from typing import Any

from reproduce_navier_stokes_table import Row, furthest

CONFIGS = Path(__file__).resolve().parents[1] / "configs/navier_stokes"
BASES = {"residual_1e-5": "trained on roll-outs", "one_step_gated_1e-5": "trained on single steps"}


def changes(base: str) -> dict[str, str]:
    """Rows that change one thing of another, and what, as the heads of their YAMLs say; that row first: "nothing"."""
    found = {base: "nothing"}
    for path in sorted(CONFIGS.glob("*.yaml")):
        _, is_one, what = path.read_text().split("\n")[0].partition(f"{base}.yaml with one change: ")
        if is_one:
            found[path.stem] = what.rstrip(".")
    return found


def ablation(rows: list[Row]) -> str:
    """Markdown: a table for each base and number of epochs, validated or tested, where both it and a change are there.

    Errors are means over the seeds that a row and the unchanged one both have; of an unchanged row that was trained by
    several versions of the code the first counts. Times are those of a sample in the median epoch, and compared between
    trainings of one version on samples of as many frames, as many trainings side by side. Which these were is not
    known, so that a fifth more or less says little.

    Args:
        rows: As of :func:`reproduce_navier_stokes_table.table`.

    Raises:
        InputError: See :func:`reproduce_navier_stokes_table.furthest`.
    """
    finished = [row for row in furthest(rows) if row["finished"]]
    timed = [row for row in rows if row["finished"]]
    parts = []
    for base, what in BASES.items():
        own = [row for row in finished if row["row"] in changes(base)]
        unchanged, changed = (
            {(_epochs(row), row["validation"]) for row in own if (row["row"] == base) is is_base}
            for is_base in (True, False)
        )
        if kinds := unchanged & changed:
            parts += [f"### One change a row, {what}"]
            parts += [_one(own, timed, base, *kind) for kind in sorted(kinds, reverse=True)]
    return "\n\n".join(parts)


def _epochs(row: Row) -> int:
    """Of the whole training, with that of the network it began from."""
    return int(row["epochs"] + row.get("epochs_of_first", 0))


def _relative_time(rows: list[Row], timed: list[Row], unchanged: str) -> str:
    """Of a sample in trainings relative to unchanged ones, see :func:`ablation`; empty where there are none."""

    def kind(row: Row) -> tuple[Any, ...]:
        return tuple(row.get(k) for k in ("commit", "device", "trainings_on_the_device", "n_steps", "n_train"))

    def seconds(row: Row) -> float:
        return float(row["phases"][-1]["step_seconds"] / row["batch_size"])

    base: dict[tuple[Any, ...], list[float]] = {}
    for row in timed:
        if row["row"] == unchanged and row.get("phases"):
            base.setdefault(kind(row), []).append(seconds(row))
    ratios = [seconds(r) / statistics.mean(base[kind(r)]) for r in rows if r.get("phases") and kind(r) in base]
    return f"{statistics.mean(ratios):.1f}" if ratios else ""


def _one(rows: list[Row], timed: list[Row], unchanged: str, epochs: int, validation: int) -> str:
    key, what = ("validation_relative_l2", "validation") if validation else ("relative_l2", "test")
    held_out = f", {validation} training trajectories held out for validation" if validation else ""
    own = [row for row in rows if (_epochs(row), row["validation"]) == (epochs, validation)]
    base = {row["seed"]: row for row in own if row["row"] == unchanged}
    lines = [
        f"{epochs} epochs{held_out}:",
        "",
        f"| change | parameters | seeds | {what} | against no change | averaged over symmetries | against no change "
        "| last loss | time of a sample, times no change |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, changed in changes(unchanged).items():
        found = [row for row in own if row["row"] == name]
        if not found:
            continue
        both = [row for row in found if row["seed"] in base]
        shown = both or found
        references = [base[row["seed"]] for row in both] if name != unchanged else []
        cells = [changed, f"{found[0]['n_parameters']:,}", str(len(shown))]
        cells += _error(shown, references, key) + _error(shown, references, f"symmetrized_{key}")
        cells += [f"{statistics.mean(row['train_loss'][-1] for row in shown):.4f}"]
        cells += ["" if name == unchanged else _relative_time(shown, timed, unchanged)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _error(rows: list[Row], references: list[Row], key: str) -> list[str]:
    """The mean error of trainings, and by how much it differs from that of unchanged ones; empty where not measured."""
    if any(key not in row for row in rows):
        return ["", ""]
    mean = statistics.mean(row[key] for row in rows)
    if not references or any(key not in row for row in references):
        return [f"{mean:.4f}", ""]
    return [f"{mean:.4f}", f"{100 * (mean / statistics.mean(row[key] for row in references) - 1):+.1f} %"]
