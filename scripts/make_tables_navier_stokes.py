"""Tables of the Navier-Stokes rows, from what is in results/navier_stokes."""

import json
import statistics
from pathlib import Path
from typing import Any

import compare_bands
import reproduce_navier_stokes_table as rows_table
from json_lines import read_rows
from reproduce_navier_stokes_ablation import ablation

FOLDER = Path(__file__).resolve().parents[1] / "results/navier_stokes"
RESOLUTIONS = (64, 32, 128, 256)  # that of the training first
AFTER = (1, 5, 10, 15, 20, 30)  # frames, a second each
TITLES = {
    "fno_1e-5": "FNO",
    "monarch_fno_1e-5": "MonarchFNO",
    "monarch_fno_symmetry_1e-5": "MonarchFNO, symmetries as augmentation",
}


def _rows() -> list[dict[str, Any]]:
    return read_rows(FOLDER / "rows.jsonl")


def trainings() -> str:
    """The paper's table, other rows, and each training; one change a row where such are there."""
    return "\n\n".join(part for part in (rows_table.table(_rows()), ablation(_rows())) if part)


def _scores(resolution: int | str) -> dict[str, dict[str, Any]]:
    """By row, what the network of seed 0 scored on a grid, or "symmetrized"."""
    found = json.loads((FOLDER / f"metrics_{resolution}.json").read_text())
    return {Path(row["checkpoint"]).name: row for row in found}


def resolutions() -> str:
    """Networks of seed 0 on the same trajectories at the grid of the training and at others."""
    scores, averaged = {n: _scores(n) for n in RESOLUTIONS}, _scores("symmetrized")
    lines = [
        "| network | 64² (trained) | averaged over symmetries | 32² | 128² | 256² | single frames at 64² | H1 at 64² "
        "| spectrum error (log10) at 64² | at 256² |",
        "|---" * 10 + "|",
    ]
    for name, title in TITLES.items():
        own = scores[64][name]
        errors = [f"{scores[n][name]['relative_l2']:.4f}" for n in RESOLUTIONS]
        spectra = [f"{scores[n][name]['spectrum_error']:.2f}" for n in (64, 256)]
        frames = statistics.mean(own["relative_l2_per_step"])
        errors.insert(1, f"{averaged[name]['relative_l2']:.4f}")
        cells = " | ".join([*errors, f"{frames:.4f}", f"{own['relative_h1']:.3f}", *spectra])
        lines.append(f"| {title} | {cells} |")
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
        row = found[name]
        errors = [f"{row['relative_l2_per_step'][n - 1]:.3f}" for n in AFTER]
        time = f"{row['correlation_time']:.1f}" + " or more" * row["correlation_time_is_lower_bound"]
        lines.append(f"| {title} | {' | '.join([*errors, time])} |")
    return "\n".join(lines)


def summary() -> str:
    """What the project's README shows: errors over seeds, and of seed 0 on other grids."""
    rows = rows_table.furthest(_rows())
    scores = {n: _scores(n) for n in RESOLUTIONS}
    lines = ["| network | parameters | seeds | 64² (trained) | 32² | 128² | 256² | published |", "|---" * 8 + "|"]
    for name, title in TITLES.items():
        n_parameters = next(row["n_parameters"] for row in rows if row["row"] == name)
        others = " | ".join(f"{scores[n][name]['relative_l2']:.4f}" for n in RESOLUTIONS[1:])
        published = rows_table.PUBLISHED.get(name.removesuffix("_1e-5"))
        lines.append(
            f"| {title} | {n_parameters:,} | {len(rows_table.errors_of(name, rows))} | {rows_table.cell(name, rows)} "
            f"| {others} "
            f"| {'' if published is None else f'{published[-1]:.3f}'} |"
        )
    return "\n".join(lines)
