"""Pictures of fields, spectra and errors: functions that return matplotlib figures or write one file.

Nothing here touches pyplot's global state or needs a display. Fields are ``(time, *grid)`` of one channel;
three-dimensional ones are shown by their middle slice along the last axis. A field that takes both signs,
such as vorticity, has a diverging colour map with zero in its middle; any other a sequential one.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray
from torch import Tensor

from sciml_monarch.files import replacing

DPI = 130
PANEL = 1.75
"""Width and height of one panel in inches."""
LEGEND_LETTERS = 120
"""How many fit beside each other below the panels of :func:`error_growth`."""
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
"""One per network (Okabe and Ito's palette, told apart by colour-blind readers); the truth is black."""


def spectra(wavenumbers: Tensor, truth: Tensor, predictions: Mapping[str, Tensor], label: str, title: str) -> Figure:
    """Spectra on logarithmic axes.

    Args:
        wavenumbers: ``(n_shells,)`` in rad per unit of length; zero is left out.
        truth: ``(n_shells,)``.
        predictions: Network name to ``(n_shells,)``.
        label: Name and unit of the spectrum.
        title: Title of the figure.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axes = figure.subplots()
    k = to_numpy(wavenumbers)[1:]
    axes.loglog(k, _positive(truth)[1:], color="black", linewidth=2.5, alpha=0.8, label="truth")
    for name, values in predictions.items():
        axes.loglog(k, _positive(values)[1:], color=colours(predictions)[name], label=name)
    axes.set(xlabel="wavenumber |k| (rad per unit length)", ylabel=label, title=title)
    axes.grid(which="major", alpha=0.3)
    axes.legend(frameon=False)
    return figure


def error_growth(
    times: Sequence[float],
    errors: Mapping[str, Tensor],
    correlations: Mapping[str, Tensor],
    rms_ratios: Mapping[str, Tensor],
    horizon: float,
    threshold: float = 0.9,
) -> Figure:
    """Error, correlation and amplitude over time: mean over trajectories, shaded by its standard error.

    Args:
        times: Times since the last known frame in seconds, at least as many as any roll-out has steps.
        errors: Network name to relative L2 of each step, ``(b, n_known)``.
        correlations: Network name to correlation of each step, ``(b, n_known)``.
        rms_ratios: Network name to RMS over that of the truth, ``(b, n_steps)``; the name "truth" may be
            among them.
        horizon: Time up to which the networks' trainings tested them; marked by a line.
        threshold: Correlation that counts as lost; marked by a line.

    Returns:
        The figure with three panels.
    """
    figure = Figure(figsize=(11.5, 4.0), layout="constrained")
    panels = figure.subplots(1, 3)
    quantities = (errors, correlations, rms_ratios)
    titles = ("relative L2 error", "correlation with the truth", "amplitude: RMS / RMS of the truth")
    for axes, quantity, title in zip(panels, quantities, titles, strict=True):
        for name, values in quantity.items():
            _mean_and_error(axes, times, to_numpy(values), colours(quantity)[name], name)
        axes.axvline(horizon, color="black", linestyle=":", linewidth=1)
        axes.set(xlabel="time since the last known frame (s)", title=title)
        axes.grid(alpha=0.3)
    panels[0].set_ylim(bottom=0)
    panels[1].axhline(threshold, color="black", linestyle="--", linewidth=1)
    panels[1].set_ylim(top=1.02)
    if max((float(np.nanmax(_positive(v), initial=0)) for v in rms_ratios.values()), default=0) > 5:
        panels[2].set_yscale("log")
    else:
        panels[2].set_ylim(bottom=0)
    # below the panels, which long names would cover; the last panel has all of them
    entries = panels[2].get_legend_handles_labels()
    columns = max(1, LEGEND_LETTERS // (max(map(len, rms_ratios)) + 6))
    figure.legend(*entries, loc="outside lower center", ncols=min(columns, len(rms_ratios)), frameon=False)
    panels[0].annotate(
        "tested in training",
        (horizon, 0.02),
        xycoords=("data", "axes fraction"),
        rotation=90,
        fontsize=7,
        ha="right",
    )
    return figure


def contact_sheet(
    frames: Tensor,
    times: Sequence[float],
    n_history: int,
    label: str,
    lengths: Sequence[float],
    title: str,
    n_columns: int = 5,
    n_rows: int = 3,
) -> Figure:
    """The frames of a prediction, row by row, begun by the last known one.

    Args:
        frames: ``(time, *grid)``: known frames, then predicted ones.
        times: Time of each frame in seconds.
        n_history: Number of known frames.
        label: Name and unit of the field.
        lengths: Domain length per axis.
        title: Title of the figure.
        n_columns: Panels in a row.
        n_rows: Largest number of rows; longer predictions are thinned evenly.

    Returns:
        The figure.
    """
    first = n_history - 1
    n_panels = min(len(times) - first, n_columns * n_rows)
    shown = np.unique(np.linspace(first, len(times) - 1, n_panels).round().astype(int))
    fields = middle_slice(to_numpy(frames))
    limits = colour_limits(fields[first:])
    rows = -(-len(shown) // n_columns)
    height = PANEL + 0.25
    figure = Figure(figsize=(PANEL * n_columns + 0.9, height * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, n_columns, squeeze=False, sharex=True, sharey=True)
    image: AxesImage | None = None
    for axes, i in zip(panels.flat, shown, strict=False):
        image = draw_panel(axes, fields[i], lengths, limits) or image
        known = " (given)" if i < n_history else ""
        axes.set_title(f"t = {times[i]:.4g} s{known}", fontsize=9)
    for axes in panels.flat[len(shown) :]:
        axes.set_visible(False)
    _finish(figure, panels, image, label)
    figure.suptitle(title)
    return figure


def save(figure: Figure, path: Path, dpi: int = DPI) -> Path:
    """Writes a figure as PNG, whole or not at all.

    Args:
        figure: The figure.
        path: File to write or replace.
        dpi: Dots per inch.

    Returns:
        ``path``.
    """
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")
    return path


def animate(
    path: Path,
    frames: Tensor,
    times: Sequence[float],
    n_history: int,
    label: str,
    lengths: Sequence[float],
    frames_per_second: int = 5,
) -> Path:
    """Writes an animated GIF of a prediction, whole or not at all.

    Args:
        path: File to write or replace.
        frames: ``(time, *grid)``: known frames, then predicted ones.
        times: Time of each frame in seconds.
        n_history: Number of known frames; titles say which are given and which predicted.
        label: Name and unit of the field.
        lengths: Domain length per axis.
        frames_per_second: Speed.

    Returns:
        ``path``.
    """
    from matplotlib.animation import PillowWriter
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    fields = middle_slice(to_numpy(frames))
    limits = colour_limits(fields)
    figure = Figure(figsize=(4.2, 3.7), layout="constrained")
    FigureCanvasAgg(figure)  # the writer takes its pixels from the figure's canvas
    axes = figure.subplots()
    image = draw_panel(axes, fields[0], lengths, limits)
    _finish(figure, np.array([[axes]]), image, label)
    writer = PillowWriter(fps=frames_per_second)
    with replacing(path) as temporary, writer.saving(figure, str(temporary), dpi=90):
        for i, time in enumerate(times):
            if image is None:
                axes.lines[0].set_ydata(fields[i])
            else:
                image.set_data(fields[i].T)
            axes.set_title(f"t = {time:.4g} s, {'given' if i < n_history else 'predicted'}", fontsize=10)
            writer.grab_frame()
    return path


def to_numpy(values: Tensor) -> NDArray[Any]:
    """Float64 copy of a tensor on any device."""
    return values.detach().double().cpu().numpy()


def _positive(values: Tensor) -> NDArray[Any]:
    """Values for a logarithmic axis: what cannot be shown there becomes a gap."""
    array = to_numpy(values)
    return np.where(np.isfinite(array) & (array > 0), array, np.nan)


def middle_slice(fields: NDArray[Any]) -> NDArray[Any]:
    """``(time, x, y, z) -> (time, x, y)`` at the middle of z; fields of fewer axes as they are."""
    return fields[..., fields.shape[-1] // 2] if fields.ndim == 4 else fields


def colours(names: Iterable[str]) -> dict[str, str]:
    """One colour a network, in the order given; the name ``"truth"`` is black and takes none away."""
    networks = [name for name in names if name != "truth"]
    return {"truth": "black"} | {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(networks)}


def colour_limits(fields: NDArray[Any]) -> tuple[float, float, str]:
    """Lower and upper end of the colour scale and the colour map that suit some fields."""
    finite = fields[np.isfinite(fields)]
    if finite.size == 0:
        return 0.0, 1.0, "viridis"
    low, high = float(finite.min()), float(finite.max())
    if low < 0 < high:
        return -max(-low, high), max(-low, high), "RdBu_r"
    return (low, high, "viridis") if low < high else (low - 0.5, high + 0.5, "viridis")


def draw_panel(
    axes: Axes, field: NDArray[Any], lengths: Sequence[float], limits: tuple[float, float, str]
) -> AxesImage | None:
    """One panel: an image of a plane, or a line (and None) of a one-dimensional field."""
    low, high, colour_map = limits
    if field.ndim == 1:
        axes.plot(np.arange(len(field)) * lengths[0] / len(field), field, color=COLOURS[1], linewidth=1.2)
        axes.set_ylim(low, high)
        return None
    axes.set_facecolor("0.8")  # what is not finite stays grey
    axes.set(xticks=[], yticks=[])
    # Axis 0 of a field is x, to the right; y points up.
    extent = (0.0, lengths[0], 0.0, lengths[1])
    return axes.imshow(field.T, origin="lower", extent=extent, vmin=low, vmax=high, cmap=colour_map)


def _finish(figure: Figure, panels: NDArray[Any], image: AxesImage | None, label: str) -> None:
    """Colour bar of planes, axis labels of lines."""
    if image is not None:
        figure.colorbar(image, ax=panels.ravel().tolist(), label=label, shrink=0.8)
        return
    for axes in panels[:, 0]:
        axes.set_ylabel(label)
    for axes in panels[-1]:
        axes.set_xlabel("x")


def _mean_and_error(axes: Axes, times: Sequence[float], values: NDArray[Any], colour: str, name: str) -> None:
    """Line of the mean over trajectories, band of its standard error (not of the truth)."""
    shown = np.where(np.isfinite(values).all(0), values, np.nan)
    mean = shown.mean(0)
    t = np.asarray(times[: len(mean)])
    axes.plot(t, mean, color=colour, label=name, marker="o" if len(t) < 12 else "", markersize=3)
    if len(values) > 1 and name != "truth":
        band = shown.std(0, ddof=1) / np.sqrt(len(values))
        axes.fill_between(t, mean - band, mean + band, color=colour, alpha=0.2, linewidth=0)
