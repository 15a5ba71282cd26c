"""How thin matrices of a spectral convolution are laid out."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

Activation = Literal["identity", "gelu"]


def sizes(matrices: Sequence[Tensor], points_first: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Reads the grid and the numbers of kept modes off thin matrices.

    Args:
        matrices: Of an analysis, or of a synthesis.
        points_first: Whether they are a synthesis'.

    Returns:
        Points per axis, kept modes per axis.
    """
    *leading, last = matrices
    shapes = [planes.shape[1:] for planes in leading] + [last.shape]
    points, kept = zip(*((s[0], s[1]) if points_first else (s[1], s[0]) for s in shapes), strict=True)
    return tuple(points), (*kept[:-1], kept[-1] // 2)
