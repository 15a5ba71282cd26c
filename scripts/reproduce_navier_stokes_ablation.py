"""The table of one change a row to ``residual_1e-5.yaml``."""

import statistics
from pathlib import Path

from reproduce_navier_stokes_table import Row, furthest

CONFIGS = Path(__file__).resolve().parents[1] / "configs/navier_stokes"
BASE = "residual_1e-5"
CHANGE = "with one change: "  # what the head of a YAML says it is


def change(name: str) -> str:
    """What a row changes, as the head of its YAML says it; "nothing" for the row that the others change.

    Raises:
        ValueError: It does not say it.
    """
    if name == BASE:
        return "nothing"
    _, found, text = (CONFIGS / f"{name}.yaml").read_text().split("\n")[0].partition(CHANGE)
    if not found:
        raise ValueError(f"the first line of {name}.yaml does not say what it changes")
    return text.rstrip(".")


def names() -> list[str]:
    """The rows, the one that the others change first."""
    found = sorted(path.stem for path in CONFIGS.glob("residual_*.yaml"))
    return sorted(found, key=lambda name: name != BASE)


def ablation(rows: list[Row]) -> str:
    """Markdown: a table for each number of epochs, validated or tested; empty where no such row is finished.

    Errors are means over the seeds that a row and the unchanged one both have.

    Args:
        rows: As of :func:`reproduce_navier_stokes_table.table`.

    Raises:
        InputError: See :func:`reproduce_navier_stokes_table.furthest`.
    """
    finished = [row for row in furthest(rows) if row["row"] in names() and row["finished"]]
    kinds = sorted({(_epochs(row), row["validation"]) for row in finished}, reverse=True)
    parts = [_one(finished, *kind) for kind in kinds]
    return "\n\n".join(["### One change a row", *parts]) if parts else ""


def _epochs(row: Row) -> int:
    """Of the whole training, with that of the network it began from."""
    return int(row["epochs"] + row.get("epochs_of_first", 0))


def _one(rows: list[Row], epochs: int, validation: int) -> str:
    key, what = ("validation_relative_l2", "validation") if validation else ("relative_l2", "test")
    held_out = f", {validation} training trajectories held out for validation" if validation else ""
    own = [row for row in rows if (_epochs(row), row["validation"]) == (epochs, validation)]
    base = {row["seed"]: row[key] for row in own if row["row"] == BASE}
    lines = [
        f"{epochs} epochs{held_out}:",
        "",
        f"| change | parameters | seeds | {what} | against no change | last loss | wall clock (s) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names():
        found = [row for row in own if row["row"] == name]
        if not found:
            continue
        both = [row for row in found if row["seed"] in base]
        mean = statistics.mean(row[key] for row in both or found)
        against = ""
        if both and name != BASE:
            against = f"{100 * (mean / statistics.mean(base[row['seed']] for row in both) - 1):+.1f} %"
        loss = statistics.mean(row["train_loss"][-1] for row in both or found)
        seconds = statistics.mean(row["wall_seconds"] for row in both or found)
        lines.append(
            f"| {change(name)} | {found[0]['n_parameters']:,} | {len(both or found)} | {mean:.4f} | {against} "
            f"| {loss:.4f} | {seconds:.0f} |"
        )
    return "\n".join(lines)
