"""Truncated spectral analysis and synthesis as a few large products with thin matrices.

The formulas are those of :mod:`~sciml_monarch.monarch.kernels.spectral_reference`. Complex values lie as planes, real
and imaginary part one after the other, in front of everything else: ``(plane, modes so far, b, c, axes left)``. The
axis to transform is then always the last one, one product transforms it, and what it writes begins with the new modes:
nothing is permuted between the axes, and no number of modes spoils the alignment that GPUs need for fast products
(rows of 66 numbers do not begin at multiples of 16 bytes).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class ThinProducts(NamedTuple):
    """The three products that everything consists of; kernels may stand in for plain torch.

    Attributes:
        narrow: ``(groups, rows, columns)`` and a matrix ``(modes, columns)`` to ``(groups, modes, rows)``.
        widen: ``(groups, modes, rows)`` and a matrix ``(columns, modes)`` to ``(groups, rows, columns)``.
        weigh: ``(groups, modes, rows)`` and ``(groups, rows, columns)`` to ``(modes, columns)``, summed over groups.
    """

    narrow: Callable[[Tensor, Tensor], Tensor]
    widen: Callable[[Tensor, Tensor], Tensor]
    weigh: Callable[[Tensor, Tensor], Tensor]


def _narrow(x: Tensor, matrix: Tensor) -> Tensor:
    return torch.bmm(matrix.expand(x.shape[0], -1, -1), x.mT)


def _widen(y: Tensor, matrix: Tensor) -> Tensor:
    # contiguous: the rows of the matrix as it is may have odd lengths
    return torch.bmm(y.mT, matrix.mT.contiguous().expand(y.shape[0], -1, -1))


def _weigh(y: Tensor, x: Tensor) -> Tensor:
    return torch.bmm(y, x).sum(0)


TORCH = ThinProducts(_narrow, _widen, _weigh)


def analysis(field: Tensor, matrices: Sequence[Tensor], by: ThinProducts = TORCH) -> Tensor:
    """Transforms all axes; the other arguments and the result as in ``spectral_reference.analysis``."""
    *leading, last = matrices
    z = by.narrow(field.reshape(1, -1, last.shape[1]), last)
    for planes in reversed(leading[1:]):
        z = torch.stack(_transformed(planes, z, by))
    parts = _transformed(leading[0], z, by) if leading else z.view(2, -1).unbind()
    return torch.stack([part.reshape(-1, *field.shape[:2]) for part in parts], 1)


def synthesis(modes: Tensor, matrices: Sequence[Tensor], by: ThinProducts = TORCH) -> Tensor:
    """Forms fields; the other arguments and the result as in ``spectral_reference.synthesis`` less its end."""
    y, grid = synthesis_but_last(modes, matrices, by)
    return by.widen(y[None], matrices[-1]).view(*modes.shape[2:], *grid)


def synthesis_but_last(modes: Tensor, matrices: Sequence[Tensor], by: ThinProducts) -> tuple[Tensor, tuple[int, ...]]:
    """All of a synthesis but its last product.

    Args:
        modes: ``(F, 2, b, c)``.
        matrices: Those of the synthesis.
        by: How products are computed.

    Returns:
        ``(2 K, rows)``, which the last product takes to ``(rows, n)``, and the grid.
    """
    *leading, last = matrices
    y = modes.transpose(0, 1)
    for planes in leading:
        re, im = y
        terms = torch.stack([re, -im, im, re]).view(2, 2 * planes.shape[2], -1)  # (plane, (plane, m), ..)
        y = by.widen(terms, torch.cat([*planes], 1))  # (plane, .., n)
    return y.reshape(last.shape[1], -1), (*(planes.shape[1] for planes in leading), last.shape[0])


def matrix_gradients(
    field: Tensor, modes: Tensor, matrices: Sequence[Tensor], by: ThinProducts = TORCH
) -> list[Tensor]:
    """Gradients of ``<modes, analysis(field, matrices)>`` with respect to the matrices.

    Args:
        field: ``(b, c, *grid)``.
        modes: Gradient of the analysis' result, ``(F, 2, b, c)``.
        matrices: Those of the analysis.
        by: How products are computed.

    Returns:
        Gradients in the shapes of the matrices.
    """
    *leading, last = matrices
    field = field.reshape(1, -1, last.shape[1])
    z = by.narrow(field, last)
    inputs = []  # of each leading axis' product, in the order of the analysis
    for planes in reversed(leading):
        inputs.append(z)
        if len(inputs) < len(leading):
            z = torch.stack(_transformed(planes, z, by))
    g = modes.transpose(0, 1)
    gradients = []
    for planes, z in zip(leading, reversed(inputs), strict=True):
        m, n = planes.shape[1:]
        re, im = g
        terms = torch.stack([re, im, im, -re]).view(2, 2 * m, -1)  # (plane, (plane, m), ..)
        gradients.append(by.weigh(terms, z.reshape(2, -1, n)).view_as(planes))
        g = by.widen(terms, planes.reshape(2 * m, n).mT)
    gradients.append(by.weigh(g.reshape(1, last.shape[0], -1), field))
    return gradients


def _transformed(planes: Tensor, z: Tensor, by: ThinProducts) -> tuple[Tensor, Tensor]:
    """Real and imaginary plane ``(m, ..)`` of the transform of the last axis of ``z``, which has two planes."""
    m, n = planes.shape[1:]
    terms = by.narrow(z.reshape(2, -1, n), planes.reshape(2 * m, n)).view(2, 2, m, -1)  # (plane, plane, m, ..)
    (by_real, by_imaginary), (turned_by_real, turned_by_imaginary) = terms
    return by_real - turned_by_imaginary, by_imaginary + turned_by_real
