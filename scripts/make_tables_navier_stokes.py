"""Tables of the Navier-Stokes rows, from what is in results/navier_stokes."""

import json
import statistics
from pathlib import Path
from typing import Any

import compare_bands
import reproduce_navier_stokes_table as rows_table
from json_lines import read_rows
from reproduce_navier_stokes_ablation import ablation
from reproduce_navier_stokes_job import first_row

FOLDER = Path(__file__).resolve().parents[1] / "results/navier_stokes"
RESOLUTIONS = (64, 32, 128, 256)  # that of the training first
AFTER = (1, 5, 10, 15, 20, 30)  # frames, a second each
TITLES = {
    "fno_1e-5": "FNO",
    "monarch_fno_1e-5": "MonarchFNO",
    "monarch_fno_symmetry_1e-5": "MonarchFNO, symmetries as augmentation",
    "one_step_gated_1e-5": "ResidualMonarchFNO on single steps, symmetries as augmentation",
}
NUMBERS = (100, 300, 1000)  # of trajectories
FEWER = {  # trained on fewer trajectories too
    "fno": TITLES["fno_1e-5"],
    "monarch_fno": TITLES["monarch_fno_1e-5"],
    "monarch_fno_symmetry": TITLES["monarch_fno_symmetry_1e-5"],
    "one_step_no_norm": f"{TITLES['one_step_gated_1e-5']}, no normalisation",
}
NOT_YET = "not yet"
# published at a viscosity of 1e-5 on the FNO paper's data since Monarch; AMO's second hand
PUBLISHED_SINCE = {
    "Transolver": 0.0900,
    "LNO": 0.0830,
    "Transolver++": 0.0719,
    "LaMO": 0.0460,
    "LRSA": 0.0484,
    "AMO": 0.0278,
}
STATE_OF_THE_ART = {  # rows to stand beside these
    "monarch_fno_symmetry_1e-5": TITLES["monarch_fno_symmetry_1e-5"],
    "one_step_gated_1e-5": TITLES["one_step_gated_1e-5"],
    "rolled_out_gated_1e-5": "the same, then on roll-outs",
    "one_step_no_norm_1e-5": FEWER["one_step_no_norm"],
}


def _rows() -> list[dict[str, Any]]:
    return read_rows(FOLDER / "rows.jsonl")


def trainings() -> str:
    """The paper's table, other rows, and each training; one change a row where such are there."""
    return "\n\n".join(part for part in (rows_table.table(_rows()), ablation(_rows())) if part)


def state_of_the_art() -> str:
    """Ours of seed 0 beside a peer on the same data, and what was published since the paper."""
    rows = [row for row in rows_table.furthest(_rows()) if not row["validation"] and row["seed"] == 0]
    by_name = {row["row"]: row for row in rows if row["finished"]}  # of several the one of the most epochs is the last
    seconds = {name: row["wall_seconds"] for name, row in by_name.items()}
    lines = [
        "| network | parameters | epochs | training on one GPU (s) | side by side | test | averaged over symmetries "
        "| published, on the FNO paper's data |",
        "|---" * 8 + "|",
    ]
    for name, title in STATE_OF_THE_ART.items():
        row = by_name[name]
        epochs, time = str(row["epochs"]), seconds[name]
        if before := first_row(name):  # the network that it began from is part of the training
            epochs = f"{row['epochs_of_first']} + {epochs}"
            time += seconds[before]
        averaged = f"{row['symmetrized_relative_l2']:.4f}" if "symmetrized_relative_l2" in row else ""
        lines.append(
            f"| {title} | {row['n_parameters']:,} | {epochs} | {time:.0f} "
            f"| {row['trainings_on_the_device']} | {row['relative_l2']:.4f} | {averaged} | |"
        )
    peer = json.loads((FOLDER / "transolver.json").read_text())
    lines.append(
        f"| {peer['network']}, {peer['epochs']} of its 500 epochs, {peer['precision']} | {peer['n_parameters']:,} "
        f"| {peer['epochs']} | {peer['train_seconds']:.0f} | 1 | {peer['relative_l2']:.4f} | "
        f"| {PUBLISHED_SINCE[peer['network']]:.4f} |"
    )
    others = [(name, error) for name, error in PUBLISHED_SINCE.items() if name != peer["network"]]
    return "\n".join([*lines, *(f"| {name} | | | | | | | {error:.4f} |" for name, error in others)])


def numbers_of_trajectories() -> str:
    """Networks trained on fewer trajectories, for as many steps as the longest training on 1,000, or as many epochs."""
    rows = [row for row in rows_table.furthest(_rows()) if not row["validation"]]
    lines = [f"| network | trained for | {' | '.join(f'{n:,}' for n in NUMBERS)} |", "|---" * (len(NUMBERS) + 2) + "|"]
    for network, title in FEWER.items():
        names = {n: f"{network}{f'_{n}' * (n < max(NUMBERS))}_1e-5" for n in NUMBERS}
        whole = names[max(NUMBERS)]
        epochs = max((row["epochs"] for row in rows if row["row"] == whole and row["finished"]), default=0)
        of_steps = {n: round(epochs * max(NUMBERS) / n) for n in NUMBERS}
        for what, wanted in (("as many steps", of_steps), (f"{epochs} epochs", dict.fromkeys(NUMBERS, epochs))):
            cells = [
                rows_table.cell(name, [row for row in rows if (row["row"], row["epochs"]) == (name, wanted[n])])
                for n, name in names.items()
            ]
            if what == "as many steps" or any(cell != NOT_YET for cell in cells[:-1]):
                lines.append(f"| {title} | {what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _scores(resolution: int | str) -> dict[str, dict[str, Any]]:
    """By row, what the network of seed 0 scored on a grid, or "symmetrized"."""
    found = json.loads((FOLDER / f"metrics_{resolution}.json").read_text())
    return {Path(row["checkpoint"]).name: row for row in found}


def _cell(scores: dict[str, dict[str, Any]], name: str, key: str, digits: int = 4) -> str:
    """A score of a row, of several steps their mean; "not yet" where the row was not scored."""
    if name not in scores:
        return NOT_YET
    value = scores[name][key]
    return f"{statistics.mean(value) if isinstance(value, list) else value:.{digits}f}"


def resolutions() -> str:
    """Networks of seed 0 on the same trajectories at the grid of the training and at others."""
    scores = {n: _scores(n) for n in (*RESOLUTIONS, "symmetrized")}
    lines = [
        "| network | 64² (trained) | averaged over symmetries | 32² | 128² | 256² | single frames at 64² | H1 at 64² "
        "| spectrum error (log10) at 64² | at 256² |",
        "|---" * 10 + "|",
    ]
    for name, title in TITLES.items():
        errors = [_cell(scores[n], name, "relative_l2") for n in (64, "symmetrized", *RESOLUTIONS[1:])]
        frames = _cell(scores[64], name, "relative_l2_per_step")
        h1 = _cell(scores[64], name, "relative_h1", 3)
        spectra = [_cell(scores[n], name, "spectrum_error", 2) for n in (64, 256)]
        lines.append(f"| {title} | {' | '.join([*errors, frames, h1, *spectra])} |")
    return "\n".join(lines)


def bands() -> str:
    """Errors by band of frequencies."""
    found = json.loads((FOLDER / "bands.json").read_text())
    return compare_bands.table(found["rows"], found["edges"], TITLES)


def long_roll_outs() -> str:
    """The same networks rolled out for three times as many frames as they were trained for."""
    found = {Path(row["checkpoint"]).name: row for row in json.loads((FOLDER / "metrics_long.json").read_text())}
    lines = ["| network | " + " | ".join(f"after {n} s" for n in AFTER) + " | correlated above 0.9 for (s) |"]
    lines.append("|---" * (len(AFTER) + 2) + "|")
    for name, title in TITLES.items():
        if name not in found:
            lines.append(f"| {title} |" + f" {NOT_YET} |" * (len(AFTER) + 1))
            continue
        row = found[name]
        errors = [f"{row['relative_l2_per_step'][n - 1]:.3f}" for n in AFTER]
        time = f"{row['correlation_time']:.1f}" + " or more" * row["correlation_time_is_lower_bound"]
        lines.append(f"| {title} | {' | '.join([*errors, time])} |")
    return "\n".join(lines)


def authors() -> str:
    """Networks that were trained on simulated data, on a trajectory of the FNO paper's."""
    alone, averaged = (_scores(name) for name in ("authors", "authors_symmetrized"))
    lines = ["| network | after 1 s | after 5 s | after 10 s | after 20 s | relative L2 | averaged over symmetries |"]
    lines.append("|---" * 7 + "|")
    for name, title in (("fno_1e-4", "FNO"), ("monarch_fno_1e-4", "MonarchFNO")):
        errors = [f"{alone[name]['relative_l2_per_step'][n - 1]:.3f}" for n in (1, 5, 10, 20)]
        cells = [*errors, _cell(alone, name, "relative_l2"), _cell(averaged, name, "relative_l2")]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def summary() -> str:
    """What the project's README shows: errors over seeds, and of seed 0 on other grids."""
    rows = rows_table.furthest(_rows())
    scores = {n: _scores(n) for n in RESOLUTIONS}
    lines = ["| network | parameters | seeds | 64² (trained) | 32² | 128² | 256² | published |", "|---" * 8 + "|"]
    for name, title in TITLES.items():
        n_parameters = next(row["n_parameters"] for row in rows if row["row"] == name)
        others = " | ".join(_cell(scores[n], name, "relative_l2") for n in RESOLUTIONS[1:])
        published = rows_table.PUBLISHED.get(name.removesuffix("_1e-5"))
        lines.append(
            f"| {title} | {n_parameters:,} | {len(rows_table.errors_of(name, rows))} | {rows_table.cell(name, rows)} "
            f"| {others} "
            f"| {'' if published is None else f'{published[-1]:.3f}'} |"
        )
    return "\n".join([*lines, *_at_other_viscosities(rows)])


def _at_other_viscosities(rows: list[dict[str, Any]]) -> list[str]:
    """A table of the paper's other viscosities that both networks are trained at for all epochs."""
    rows = [row for row in rows if row["epochs"] == rows_table.EPOCHS]
    networks = ("fno", "monarch_fno")
    lines = []
    for at, viscosity in enumerate(rows_table.VISCOSITIES[:-1]):
        names = [f"{network}_{viscosity}" for network in networks]
        if all(rows_table.errors_of(name, rows) for name in names):
            steps = next(row["n_steps"] for row in rows if row["row"] == names[0])
            seeds = len(rows_table.errors_of(names[0], rows))
            published = " / ".join(f"{rows_table.PUBLISHED[network][at]:.3f}" for network in networks)
            cells = " | ".join(rows_table.cell(name, rows) for name in names)
            lines.append(f"| {viscosity} | {steps} | {seeds} | {cells} | {published} |")
    if not lines:
        return []
    header = "| other viscosity | frames behind 10 | seeds | FNO | MonarchFNO | published |"
    return ["", header, "|---" * 6 + "|", *lines]
