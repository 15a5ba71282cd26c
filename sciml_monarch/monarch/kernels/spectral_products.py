"""Truncated spectral analysis and synthesis as a few large products of plain torch: what runs without a kernel.

The formulas are those of :mod:`~sciml_monarch.monarch.kernels.spectral_reference`. Complex values lie as planes, real
and imaginary part one after the other, in front of everything else: ``(plane, modes so far, b, c, axes left)``. The
axis to transform is then always the last one, one product transforms it, and what it writes begins with the new modes:
nothing is permuted between the axes, and no number of modes spoils the alignment that GPUs need for fast products (a
result of 66 columns takes them twice as long as one of 72).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from sciml_monarch.monarch.kernels.spectral_layout import expanded_columns, expanded_rows


def analysis(field: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Transforms all axes; arguments and result as in ``spectral_reference.analysis``."""
    batch, channels = field.shape[:2]
    *leading, last = matrices
    z = last @ field.reshape(-1, last.shape[1]).mT
    for planes in reversed(leading):
        z = torch.stack(_transformed(planes, z))
    return z.view(2, -1, batch, channels).permute(1, 2, 3, 0).reshape(-1, batch, 2 * channels)


def synthesis(modes: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Forms fields; arguments and result as in ``spectral_reference.synthesis`` without its last steps."""
    batch, pairs = modes.shape[1:]
    *leading, last = matrices
    re, im = modes.reshape(-1, 2).unbind(-1)
    y = torch.stack([re, im])
    for planes in leading:
        re, im = y.view(2, planes.shape[2], -1)
        terms = torch.stack([re, -im, im, re]).view(2, 2 * planes.shape[2], -1)  # (plane, (plane, m), ..)
        y = torch.bmm(terms.mT, torch.cat([*planes], 1).mT.expand(2, -1, -1))  # (plane, .., n)
    # contiguous: the rows of the matrix as it is have odd lengths
    out = y.view(last.shape[1], -1).mT @ last.mT.contiguous()
    return out.view(batch, pairs // 2, *(planes.shape[1] for planes in leading), last.shape[0])


def matrix_gradients(field: Tensor, modes: Tensor, matrices: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of ``<modes, analysis(field, matrices)>`` with respect to the matrices.

    Args:
        field: ``(b, c, *grid)``.
        modes: Gradient of the analysis' result, ``(F, b, 2 c)``.
        matrices: Those of the analysis.

    Returns:
        Gradients in the shapes of the matrices.
    """
    *leading, last = matrices
    field = field.reshape(-1, last.shape[1])
    z = last @ field.mT
    inputs = []  # of each leading axis' product, in the order of the analysis
    for planes in reversed(leading):
        inputs.append(z)
        if len(inputs) < len(leading):
            z = torch.stack(_transformed(planes, z))
    re, im = modes.reshape(-1, 2).unbind(-1)
    g = torch.stack([re, im])
    gradients = []
    for planes, z in zip(leading, reversed(inputs), strict=True):
        m, n = planes.shape[1:]
        re, im = g.view(2, m, -1)
        terms = torch.stack([re, im, im, -re]).view(2, 2 * m, -1)  # (plane, (plane, m), ..)
        gradients.append(torch.bmm(terms, z.reshape(2, -1, n)).sum(0).view_as(planes))
        g = torch.bmm(terms.mT, planes.reshape(1, 2 * m, n).expand(2, -1, -1))
    gradients.append(g.view(last.shape[0], -1) @ field)
    return gradients


def first_axis_analysis(inner: Tensor, planes: Tensor) -> Tensor:
    """Transforms the first axis of three after the others.

    Args:
        inner: Modes of the other axes, ``(F', b, c, n, 2)``.
        planes: Matrix of the first axis, ``(2, m, n)``.

    Returns:
        Modes ``(m F', b, 2 c)``.
    """
    z = linear(inner.flatten(-2), expanded_rows(planes)).unflatten(-1, (2, -1))  # (F', b, c, plane, m)
    return z.permute(4, 0, 1, 2, 3).reshape(-1, inner.shape[1], 2 * inner.shape[2])


def first_axis_synthesis(modes: Tensor, planes: Tensor) -> Tensor:
    """The mirror image of :func:`first_axis_analysis`.

    Args:
        modes: ``(m F', b, 2 c)``.
        planes: Matrix of the first axis, ``(2, n, m)``.

    Returns:
        Modes of the other axes for every channel and point of the first, ``(F', b, 2 c n)``.
    """
    z = modes.unflatten(-1, (-1, 2)).unflatten(0, (planes.shape[2], -1))  # (m, F', b, c, plane)
    return linear(z.permute(1, 2, 3, 4, 0).flatten(-2), expanded_columns(planes)).flatten(2)


def _transformed(planes: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary plane ``(m, ..)`` of the transform of the last axis of ``z``, which has two planes."""
    m, n = planes.shape[1:]
    terms = torch.bmm(planes.reshape(1, 2 * m, n).expand(2, -1, -1), z.reshape(2, -1, n).mT)
    (by_real, by_imaginary), (turned_by_real, turned_by_imaginary) = terms.view(2, 2, m, -1)
    return by_real - turned_by_imaginary, by_imaginary + turned_by_real
