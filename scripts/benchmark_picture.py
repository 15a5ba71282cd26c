"""The picture of ``benchmark.py``: time of a spectral convolution against grid and modes."""

from pathlib import Path
from typing import Any


def draw(results: dict[str, Any], file: Path) -> None:
    """Draws a panel for each number of modes; nothing if no row of the sweep was measured.

    Args:
        results: What the benchmark writes.
        file: PNG to write.
    """
    rows = [row for row in results["rows"] if row["sweep"] and row["status"] == "measured"]
    if not rows:
        return
    from matplotlib.figure import Figure

    modes = sorted({row["sizes"][3] for row in rows})
    labels = list(dict.fromkeys((row["method"], row["package"], row["precision"]) for row in rows))
    figure = Figure(figsize=(4 * len(modes), 4.2), layout="constrained")
    panels = figure.subplots(1, len(modes), sharey=True, squeeze=False)[0]
    for panel, m in zip(panels, modes, strict=True):
        for label in labels:
            points = sorted(
                (row["sizes"][2], row["milliseconds"], *row["quartiles"])
                for row in rows
                if row["sizes"][3] == m and (row["method"], row["package"], row["precision"]) == label
            )
            if not points:
                continue
            grid, middle, lower, upper = zip(*points, strict=True)
            (line,) = panel.plot(grid, middle, marker="o", markersize=3, label=f"{label[0]} ({label[1]}, {label[2]})")
            panel.fill_between(grid, lower, upper, color=line.get_color(), alpha=0.2, linewidth=0)
        panel.set_title(f"{m} modes")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xlabel("points per axis")
        panel.grid(alpha=0.3, which="both")
    panels[0].set_ylabel("milliseconds, forward")
    handles = {label: h for panel in panels for h, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle(f"spectral convolution, {results['device']}")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
