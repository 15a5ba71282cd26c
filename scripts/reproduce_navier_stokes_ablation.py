"""The tables of one change a row, to the configurations that are in :data:`BASES`."""

import statistics
from pathlib import Path

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
    """Markdown: a table for each base and number of epochs, validated or tested; empty where no such row is finished.

    Errors are means over the seeds that a row and the unchanged one both have.

    Args:
        rows: As of :func:`reproduce_navier_stokes_table.table`.

    Raises:
        InputError: See :func:`reproduce_navier_stokes_table.furthest`.
    """
    finished = [row for row in furthest(rows) if row["finished"]]
    parts = []
    for base, what in BASES.items():
        own = [row for row in finished if row["row"] in changes(base)]
        kinds = {(_epochs(row), row["validation"]) for row in own if row["row"] != base}  # a base alone shows no change
        if kinds:
            parts += [f"### One change a row, {what}"]
            parts += [_one(own, base, *kind) for kind in sorted(kinds, reverse=True)]
    return "\n\n".join(parts)


def _epochs(row: Row) -> int:
    """Of the whole training, with that of the network it began from."""
    return int(row["epochs"] + row.get("epochs_of_first", 0))


def _one(rows: list[Row], unchanged: str, epochs: int, validation: int) -> str:
    key, what = ("validation_relative_l2", "validation") if validation else ("relative_l2", "test")
    held_out = f", {validation} training trajectories held out for validation" if validation else ""
    own = [row for row in rows if (_epochs(row), row["validation"]) == (epochs, validation)]
    base = {row["seed"]: row[key] for row in own if row["row"] == unchanged}
    lines = [
        f"{epochs} epochs{held_out}:",
        "",
        f"| change | parameters | seeds | {what} | against no change | last loss | wall clock (s) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, changed in changes(unchanged).items():
        found = [row for row in own if row["row"] == name]
        if not found:
            continue
        both = [row for row in found if row["seed"] in base]
        mean = statistics.mean(row[key] for row in both or found)
        against = ""
        if both and name != unchanged:
            against = f"{100 * (mean / statistics.mean(base[row['seed']] for row in both) - 1):+.1f} %"
        loss = statistics.mean(row["train_loss"][-1] for row in both or found)
        seconds = statistics.mean(row["wall_seconds"] for row in both or found)
        lines.append(
            f"| {changed} | {found[0]['n_parameters']:,} | {len(both or found)} | {mean:.4f} | {against} "
            f"| {loss:.4f} | {seconds:.0f} |"
        )
    return "\n".join(lines)
