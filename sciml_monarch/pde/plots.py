"""The picture that compares networks: truth, predictions and errors, one column a time."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray
from torch import Tensor

from sciml_monarch.plots import PANEL, colour_limits, colours, draw_panel, middle_slice, to_numpy

LETTERS = 22  # of 9 points that are as long as a panel is high


def field_comparison(
    truth: Tensor,
    predictions: Mapping[str, Tensor],
    times: Sequence[float],
    label: str,
    lengths: Sequence[float],
    title: str,
    n_columns: int = 5,
) -> Figure:
    """Truth, predictions and errors side by side, one column a time.

    Truth and predictions share one colour scale, the errors another, which is at most as wide as the first: a
    network that has diverged does not hide the errors of the others.

    Args:
        truth: ``(time, *grid)``, one to three grid axes.
        predictions: Network name to prediction of the same shape.
        times: Time of each frame in seconds.
        label: Name and unit of the field, for the colour bar.
        lengths: Domain length per axis.
        title: Title of the figure.
        n_columns: Largest number of times shown; they are spread evenly and include first and last.

    Returns:
        The figure.
    """
    shown = np.unique(np.linspace(0, len(times) - 1, min(n_columns, len(times))).round().astype(int))
    reference = to_numpy(truth)[shown]
    fields = {name: to_numpy(field)[shown] for name, field in predictions.items()}
    errors = {name: field - reference for name, field in fields.items()}
    headers = [f"t = {times[i]:.4g} s" for i in shown]
    compare = _compare_lines if reference.ndim == 2 else _compare_images
    figure = compare(middle_slice(reference), fields, errors, headers, label, lengths)
    figure.suptitle(title)
    return figure


def _row_label(name: str) -> tuple[str, float]:
    """A label no longer than its panel is high: what is in brackets on a line of its own, in letters that fit."""
    text = name.replace(" (", "\n(")
    longest = max(map(len, text.split("\n")))
    return text, min(9.0, 9.0 * LETTERS / longest)


def _compare_images(
    truth: NDArray[Any],
    fields: Mapping[str, NDArray[Any]],
    errors: Mapping[str, NDArray[Any]],
    headers: Sequence[str],
    label: str,
    lengths: Sequence[float],
) -> Figure:
    n_columns = len(headers)
    rows = {"truth": truth} | {name: middle_slice(field) for name, field in fields.items()}
    error_rows = {f"{name}\nminus truth": middle_slice(error) for name, error in errors.items()}
    n_rows = len(rows) + len(error_rows)
    size = (PANEL * n_columns + 1.4, PANEL * n_rows + 0.7)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(n_rows, n_columns, squeeze=False)
    limits = colour_limits(truth)
    finite = np.abs(np.concatenate([e[np.isfinite(e)] for e in error_rows.values()] or [np.zeros(0)]))
    widest = min(float(finite.max(initial=0)), max(abs(limits[0]), abs(limits[1]))) or 1.0
    error_limits = (-widest, widest, "PuOr_r")
    blocks = ((0, rows, limits, label), (len(rows), error_rows, error_limits, f"error of {label}"))
    for first, block, block_limits, block_label in blocks:
        image: AxesImage | None = None
        for row, (name, values) in enumerate(block.items(), start=first):
            for axes, field in zip(panels[row], values, strict=True):
                image = draw_panel(axes, field, lengths, block_limits)
            text, points = _row_label(name)
            panels[row, 0].set_ylabel(text, fontsize=points)
        if image is not None:
            figure.colorbar(image, ax=panels[first : first + len(block)].ravel().tolist(), label=block_label)
    for axes, header in zip(panels[0], headers, strict=True):
        axes.set_title(header, fontsize=9)
    for row, error in enumerate(errors.values(), start=len(rows)):
        for axes, e, t in zip(panels[row], error, truth, strict=True):
            _write_relative_error(axes, e, t)
    return figure


def _write_relative_error(axes: Axes, error: NDArray[Any], truth: NDArray[Any]) -> None:
    scale = float(np.linalg.norm(truth))
    ratio = float(np.linalg.norm(error)) / scale if scale > 0 else np.nan
    text = f"{100 * ratio:.3g} %" if np.isfinite(ratio) else "not finite"
    box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5}
    axes.text(0.04, 0.05, text, transform=axes.transAxes, fontsize=8, bbox=box)


def _compare_lines(
    truth: NDArray[Any],
    fields: Mapping[str, NDArray[Any]],
    errors: Mapping[str, NDArray[Any]],
    headers: Sequence[str],
    label: str,
    lengths: Sequence[float],
) -> Figure:
    figure = Figure(figsize=(2.3 * len(headers) + 1.2, 4.4), layout="constrained")
    panels = figure.subplots(2, len(headers), squeeze=False, sharex=True, sharey="row")
    x = np.arange(truth.shape[1]) * lengths[0] / truth.shape[1]
    for column, header in enumerate(headers):
        panels[0, column].plot(x, truth[column], color="black", linewidth=2.5, alpha=0.8, label="truth")
        for name in fields:
            colour = colours(fields)[name]
            panels[0, column].plot(x, fields[name][column], color=colour, linewidth=1.2, label=name)
            panels[1, column].plot(x, errors[name][column], color=colour, linewidth=1.2)
        panels[0, column].set_title(header, fontsize=9)
        panels[1, column].set_xlabel("x")
    panels[0, 0].set_ylabel(label)
    panels[1, 0].set_ylabel("prediction minus truth")
    panels[0, 0].legend(frameon=False, fontsize=8)
    return figure
