"""The tables of ``reproduce_navier_stokes.py``: what is finished, what is not, and what was published."""

import math
import statistics
from typing import Any

from sciml_monarch.errors import InputError

Row = dict[str, Any]

VISCOSITIES = ("1e-3", "1e-4", "1e-5")
NETWORKS = {"unet": "U-Net", "fno": "FNO", "monarch_fno": "MonarchFNO"}
# the Monarch paper (arXiv 2204.00595), Table 3; of FNO also the best for each viscosity in the FNO paper (its Table 1)
PUBLISHED = {
    "unet": (0.025, 0.205, 0.198),
    "fno": (0.017, 0.178, 0.155),
    "monarch_fno": (0.010, 0.145, 0.136),
}
PUBLISHED_BEST_FNO = (0.0086, 0.1559, 0.1556)
NAMES = [f"{network}_{viscosity}" for network in NETWORKS for viscosity in VISCOSITIES]
EPOCHS = 500  # of the paper's rows
SEEDS = {"fno_1e-5": (0, 1, 2), "monarch_fno_1e-5": (0, 1, 2)}  # of all others one


def seeds_of(name: str) -> tuple[int, ...]:
    """The seeds that a row is trained with."""
    return SEEDS.get(name, (0,))


def furthest(rows: list[Row], by_version: bool = False) -> list[Row]:
    """Of several records of one training the one that is furthest.

    Args:
        rows: In any order.
        by_version: Whether what several versions of the code finished is kept of each.

    Raises:
        InputError: Trainings of different settings are to stand in one table.
    """
    settings = {tuple(row["settings"]) for row in rows}
    if len(settings) > 1:
        listed = " and ".join(sorted(" ".join(s) or "nothing" for s in settings))
        raise InputError(f"these rows were trained with --set {listed}: they do not belong into one table")
    best: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        key = (*(row[k] for k in ("row", "epochs", "seed", "validation")), row.get("epochs_of_first", 0))
        if by_version and row["finished"]:
            best.setdefault((*key, row["commit"]), row)
            continue
        held = best.get(key)
        if held is None or (row["finished"], row["epochs_done"]) > (held["finished"], held["epochs_done"]):
            best[key] = row
    finished = {key[:5] for key in best if len(key) > 5}
    return [best[key] for key in sorted(best) if len(key) > 5 or key not in finished]


def _longest(name: str, rows: list[Row]) -> list[Row]:
    """The trainings of a row that are tested, of the most epochs that any of them is finished with, or is to have."""
    own = [row for row in rows if row["row"] == name and not row["validation"]]
    epochs = max((row["epochs"] for row in own if row["finished"]), default=max((r["epochs"] for r in own), default=0))
    return [row for row in own if row["epochs"] == epochs]


def errors_of(name: str, rows: list[Row]) -> list[float]:
    """Relative L2 errors on the test of a row's finished trainings."""
    return [row["relative_l2"] for row in _longest(name, rows) if row["finished"]]


def cell(name: str, rows: list[Row]) -> str:
    """Mean and standard error over the seeds of a row; how far it is where none is finished.

    Of a row of the paper's table also how many epochs it was trained for, where that is not what the others were.
    """
    errors = errors_of(name, rows)
    own = _longest(name, rows)
    if not errors:
        done = ", ".join(f"{row['epochs_done']} of {row['epochs']} epochs" for row in own)
        return f"not yet ({done})" if done else "not yet"
    text = f"{statistics.mean(errors):.4f}"
    if len(errors) > 1:
        text += f" ± {statistics.stdev(errors) / math.sqrt(len(errors)):.4f}"
    wanted = len(seeds_of(name))
    text += f" ({len(errors)} of {wanted} seeds)" * (len(errors) < wanted)
    return text + f" ({own[0]['epochs']} epochs)" * (name in NAMES and own[0]["epochs"] != EPOCHS)


def _below(rows: list[Row], viscosity: str) -> str:
    """By how much MonarchFNO is below FNO, both trained for the same number of epochs."""
    names = [f"{network}_{viscosity}" for network in ("monarch_fno", "fno")]
    monarch, fno = (errors_of(name, rows) for name in names)
    if not monarch or not fno or len({_longest(name, rows)[0]["epochs"] for name in names}) > 1:
        return "not yet"
    return _percent(statistics.mean(monarch), statistics.mean(fno))


def _percent(error: float, reference: float) -> str:
    return f"{100 * (1 - error / reference):.1f} %"


def table(rows: list[Row]) -> str:
    """Markdown: the paper's table, what each training took, and what was validated for choices.

    Args:
        rows: Finished trainings and those that are not, in any order; of one training several records may be given.

    Raises:
        InputError: See :func:`furthest`.
    """
    versions, rows = furthest(rows, by_version=True), furthest(rows)
    lines = [
        "Relative L2 error of the whole roll-out on the test trajectories, mean ± standard error over seeds.",
        "",
        f"| network | {' | '.join(VISCOSITIES)} | published |",
        "|---|---|---|---|---|",
    ]
    for network, title in NETWORKS.items():
        cells = " | ".join(cell(f"{network}_{viscosity}", rows) for viscosity in VISCOSITIES)
        published = " / ".join(f"{value:.3f}" for value in PUBLISHED[network])
        if network == "fno":
            published += f" (FNO paper, best: {' / '.join(f'{v:.4f}' for v in PUBLISHED_BEST_FNO)})"
        lines.append(f"| {title} | {cells} | {published} |")
    cells = " | ".join(_below(rows, viscosity) for viscosity in VISCOSITIES)
    published = " / ".join(_percent(*pair) for pair in zip(PUBLISHED["monarch_fno"], PUBLISHED["fno"], strict=True))
    lines.append(f"| MonarchFNO below FNO by | {cells} | {published} |")
    others = sorted({row["row"] for row in rows if not row["validation"]} - set(NAMES))
    if others:
        lines += ["", "| other row | relative L2 |", "|---|---|"]
        lines += [f"| {name} | {cell(name, rows)} |" for name in others]
    lines += _trainings("Trainings", "relative_l2", "test", [row for row in rows if not row["validation"]])
    chosen = "Trainings for choices, on fewer trajectories, not tested"
    lines += _trainings(chosen, "validation_relative_l2", "validation", [row for row in versions if row["validation"]])
    return "\n".join(lines)


def precision(row: Row) -> str:
    """In which a row was trained, with that of float32 products where it is not float32's own."""
    products = row.get("matmul_precision", "highest")  # which the first rows do not say
    return row["precision"] + (f", products in precision {products}" if products != "highest" else "")


def _trainings(title: str, key: str, what: str, rows: list[Row]) -> list[str]:
    """A table of single trainings, and what they ran on."""
    if not rows:
        return []
    lines = [
        "",
        f"### {title}",
        "",
        f"| row | seed | parameters | trained on | epochs | {what} | averaged over symmetries | last loss "
        "| wall clock (s) | side by side |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    origins: dict[str, dict[str, None]] = {}
    for row in rows:
        error = f"{row[key]:.4f}" if row["finished"] else "not yet"
        averaged = f"{row[f'symmetrized_{key}']:.4f}" if f"symmetrized_{key}" in row else ""
        epochs = row["epochs"] if row["finished"] else f"{row['epochs_done']} of {row['epochs']}"
        loss = f"{row['train_loss'][-1]:.4f}" if row.get("train_loss") else "?"
        seconds = f"{row['wall_seconds']:.0f}" if "wall_seconds" in row else "?"
        cells = [
            row["row"],
            row["seed"],
            f"{row['n_parameters']:,}",
            row["n_train"],
            epochs,
            error,
            averaged,
            loss,
            seconds,
        ]
        lines.append(f"| {' | '.join(map(str, cells))} | {row['trainings_on_the_device']} |")
        origin = f"{row['device']}, precision {precision(row)}, torch {row['torch']}, commit {row['commit']}"
        origins.setdefault(origin, {})[f"{row['row']} (seed {row['seed']})"] = None
    lines.append("")
    if len(origins) == 1:
        return [*lines, f"{next(iter(origins))}."]
    return [*lines, *(f"- {', '.join(trainings)}: {origin}" for origin, trainings in origins.items())]
