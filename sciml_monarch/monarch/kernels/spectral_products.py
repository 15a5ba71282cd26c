"""Truncated spectral analysis and synthesis as dense matrix products of plain torch: what runs without a kernel.

The formulas are those of :mod:`~sciml_monarch.monarch.kernels.spectral_reference`. The order of the contractions and
the layouts in between are those that were fastest on a CPU: a field is read once by one product over its last axis,
complex products of the leading axes are one real product each with rows and columns arranged so that nothing is
permuted in between.
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
    z = linear(field, last)  # (b, c, *leading, (plane, K))
    done = last.shape[0] // 2  # modes of the axes already transformed, flattened
    for planes in reversed(leading):
        matrix = expanded_rows(planes)
        z = _each(matrix, z.reshape(-1, matrix.shape[1], done))  # (.., (plane, m), done)
        done *= planes.shape[1]
    return z.view(batch, channels, 2, done).permute(3, 0, 1, 2).reshape(done, batch, 2 * channels)


def synthesis(modes: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Forms fields; arguments and result as in ``spectral_reference.synthesis`` without its last steps."""
    left, batch, pairs = modes.shape
    *leading, last = matrices
    z = modes.view(left, batch, pairs // 2, 2).permute(1, 2, 3, 0)  # (b, c, plane, F)
    for planes in leading:
        matrix = expanded_columns(planes)
        left //= planes.shape[2]
        z = _each(matrix, z.reshape(-1, matrix.shape[1], left))  # (.., (n, plane), left)
    grid = [planes.shape[1] for planes in leading]
    return linear(z.reshape(batch, pairs // 2, *grid, last.shape[1]), last)


def matrix_gradients(field: Tensor, modes: Tensor, matrices: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of ``<modes, analysis(field, matrices)>`` with respect to the matrices.

    Args:
        field: ``(b, c, *grid)``.
        modes: Gradient of the analysis' result, ``(F, b, 2 c)``.
        matrices: Those of the analysis.

    Returns:
        Gradients in the shapes of the matrices.
    """
    batch, channels = field.shape[:2]
    *leading, last = matrices
    z = linear(field, last)
    done = last.shape[0] // 2
    inputs = []  # of each leading axis' product, in the order of the analysis
    for planes in reversed(leading):
        inputs.append(z.view(-1, planes.shape[2], 2, done))
        done *= planes.shape[1]
        if len(inputs) < len(leading):
            z = _each(expanded_rows(planes), inputs[-1].flatten(1, 2))
    g = modes.view(done, batch, channels, 2).permute(1, 2, 3, 0).reshape(batch * channels, 2, done)
    gradients = []
    for planes, z in zip(leading, reversed(inputs), strict=True):
        m = planes.shape[1]
        done //= m
        g = g.view(-1, 2, m, done)
        re, im = g.permute(1, 2, 0, 3)  # (m, .., done) each
        rows = torch.stack([torch.stack([re, im], -1), torch.stack([im, -re], -1)])  # (plane, m, .., done, plane)
        columns = z.permute(0, 3, 2, 1)  # (.., done, plane, n)
        gradients.append((rows.view(2 * m, -1) @ columns.reshape(-1, planes.shape[2])).view_as(planes))
        g = _each(expanded_rows(planes).mT, g.flatten(1, 2))  # (.., (n, plane), done), which is (.., n, 2, modes)
        g = g.view(-1, 2, done)
    gradients.append(g.reshape(-1, last.shape[0]).mT @ field.reshape(-1, last.shape[1]))
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


def _each(matrix: Tensor, x: Tensor) -> Tensor:
    """Multiplies every matrix of a batch ``(x, n, k)`` from the left by one ``(m, n)``."""
    return torch.bmm(matrix.expand(x.shape[0], -1, -1), x)
