"""Pictures that compare reconstructions: truth, images, errors and a zoom, one row a method; scores by volume."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from sciml_monarch.plots import PANEL, colours, to_numpy

GAIN = 5
"""Factor by which errors are shown brighter than images."""


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, image: NDArray[Any]) -> NDArray[Any]:
        """The part of an image ``(y, x)``."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]


def image_comparison(
    truth: Tensor,
    reconstructions: Mapping[str, Tensor],
    scores: Mapping[str, str],
    title: str,
    box: Box | None = None,
) -> Figure:
    """Truth and reconstructions of a slice with their errors and a zoom, one row a method.

    Images share the grey scale of the truth, from 0 to its 99.8th percentile; errors are absolute, five times
    brighter. A reconstruction whose scale is wrong therefore looks wrong.

    Args:
        truth: Magnitude ``(y, x)``.
        reconstructions: Method to magnitude of the same shape.
        scores: Method to the text of its scores, shown above its image.
        title: Title of the figure.
        box: What the zoom shows; by default the part with the most detail.

    Returns:
        The figure.
    """
    reference = to_numpy(truth)
    images = {name: to_numpy(image) for name, image in reconstructions.items()}
    part = box or detail(reference)
    white = intensity_window(reference)
    height = PANEL * 1.25 * reference.shape[0] / reference.shape[1]
    n_rows = 1 + len(images)
    figure = Figure(figsize=(PANEL * 1.25 * 3 + 0.5, (height + 0.3) * n_rows + 0.4), layout="constrained")
    panels = figure.subplots(n_rows, 3, squeeze=False)
    _show(panels[0, 0], reference, white)
    _mark(panels[0, 0], part)
    _show(panels[0, 2], part.of(reference), white)
    panels[0, 1].set_axis_off()
    panels[0, 1].text(0.5, 0.5, f"errors: {GAIN}x", ha="center", va="center", transform=panels[0, 1].transAxes)
    panels[0, 0].set_title("truth", fontsize=9)
    panels[0, 2].set_title("zoom", fontsize=9)
    for row, (name, image) in zip(panels[1:], images.items(), strict=True):
        _show(row[0], image, white)
        _show(row[1], GAIN * np.abs(image - reference), white)
        _show(row[2], part.of(image), white)
        row[0].set_ylabel(name, fontsize=9)
        row[0].set_title(scores.get(name, ""), fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def scores_by_volume(values: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Scores of all volumes as points over the methods, with their means as bars.

    Args:
        values: Title of a metric to method to its score of each volume, the same volumes in one order. What is not
            finite is left out.

    Returns:
        The figure, one panel a metric.
    """
    figure = Figure(figsize=(3.4 * len(values) + 0.4, 3.4), layout="constrained")
    panels = figure.subplots(1, len(values), squeeze=False)
    for axes, (title, methods) in zip(panels[0], values.items(), strict=True):
        for at, (name, numbers) in enumerate(methods.items()):
            shown = np.asarray(numbers, dtype=float)
            finite = np.isfinite(shown)
            # The same shift for the same volume in every column: pairs can be followed by eye.
            shift = np.linspace(-0.25, 0.25, len(shown)) if len(shown) > 1 else np.zeros(1)
            axes.scatter((at + shift)[finite], shown[finite], s=12, color=colours(methods)[name], alpha=0.8)
            if finite.any():
                mean = shown[finite].mean()
                axes.plot([at - 0.35, at + 0.35], [mean, mean], color="black", linewidth=1.2)
        axes.set_xticks(range(len(methods)), list(methods), rotation=30, ha="right", fontsize=8)
        axes.set_xlim(-0.6, len(methods) - 0.4)
        axes.set_title(title, fontsize=9)
        axes.grid(axis="y", alpha=0.3)
    return figure


def intensity_window(truth: NDArray[Any]) -> float:
    """What is shown as white: the 99.8th percentile of an image, or 1 where that is not positive."""
    finite = truth[np.isfinite(truth)]
    top = float(np.quantile(finite, 0.998)) if finite.size else 0.0
    top = top or float(finite.max(initial=0))
    return top if top > 0 else 1.0


def detail(truth: NDArray[Any], fraction: float = 1 / 3) -> Box:
    """Finds the part of an image with the most fine structure.

    Args:
        truth: Magnitude ``(y, x)``.
        fraction: Side of the part over that of the image.

    Returns:
        The box whose sum of absolute second differences is largest, away from the outer eighth of the image, where
        the skin and what lies outside are; such differences count up to a tenth of the grey scale, since else a
        single bright edge would decide.
    """
    ny, nx = truth.shape
    height, width = (max(1, round(n * fraction)) for n in truth.shape)
    clean = np.nan_to_num(truth, nan=0.0, posinf=0.0, neginf=0.0)
    second = np.zeros_like(clean)
    second[1:-1] += np.abs(np.diff(clean, 2, axis=0))
    second[:, 1:-1] += np.abs(np.diff(clean, 2, axis=1))
    second = np.minimum(second, 0.1 * intensity_window(clean))
    total = np.pad(second.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums = total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    edge_y, edge_x = (min(n // 8, (n - side) // 2) for n, side in ((ny, height), (nx, width)))
    inner = sums[edge_y : sums.shape[0] - edge_y, edge_x : sums.shape[1] - edge_x]
    top, left = np.unravel_index(int(inner.argmax()), inner.shape)
    return Box(int(top) + edge_y, int(left) + edge_x, height, width)


def _show(axes: Axes, image: NDArray[Any], white: float) -> None:
    axes.set_facecolor("#804040")  # what is not finite is not grey
    axes.imshow(image, cmap="gray", vmin=0, vmax=white, interpolation="nearest")
    axes.set(xticks=[], yticks=[])


def _mark(axes: Axes, box: Box) -> None:
    at = (box.left - 0.5, box.top - 0.5)
    axes.add_patch(Rectangle(at, box.width, box.height, fill=False, edgecolor="#e69f00", linewidth=1))
