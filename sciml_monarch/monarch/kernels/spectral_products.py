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
    """The products that everything consists of; kernels may stand in for plain torch.

    Attributes:
        narrow: ``(groups, rows, columns)`` and a matrix ``(modes, columns)`` to ``(groups, modes, rows)``.
        widen: ``(groups, modes, rows)`` and a matrix ``(columns, modes)`` to ``(groups, rows, columns)``.
        weigh: ``(groups, modes, rows)`` and ``(groups, rows, columns)`` to ``(modes, columns)``, summed over groups.
        narrow_planes: ``(2, rows, n)`` and planes ``(2, m, n)``, or their conjugate, to the complex product
            ``(2, m, rows)``; or ``(m rows / inner, 2, inner)``, where the planes are to lie ``inner`` numbers apart.
        turn: ``(2, m, *rows)`` and planes ``(2, n, m)``, or their conjugate, to the complex product ``(2, rows, n)``.
        weigh_planes: ``(2, m, rows)`` and ``(2, rows, n)`` to the gradient of planes ``(2, m, n)``, or of conjugate
            ones, of which the product with the second has the first for a gradient.
    """

    narrow: Callable[[Tensor, Tensor], Tensor]
    widen: Callable[[Tensor, Tensor], Tensor]
    weigh: Callable[[Tensor, Tensor], Tensor]
    narrow_planes: Callable[[Tensor, Tensor, bool, int | None], Tensor]
    turn: Callable[[Tensor, Tensor, bool], Tensor]
    weigh_planes: Callable[[Tensor, Tensor, bool], Tensor]


def joined(terms: Tensor, dim: int, conjugate: bool) -> Tensor:
    """Puts a complex product together from its four real ones.

    Args:
        terms: ``(2, 2, ..)``: planes of the one factor, planes of the other.
        dim: Where the planes are to lie in the result.
        conjugate: Whether the product is with the conjugate of the other factor.

    Returns:
        The two planes, contiguous.
    """
    (a, b), (c, d) = terms
    return torch.stack([a + d, c - b] if conjugate else [a - d, b + c], dim)


def joined_in_place(terms: Tensor, dim: int, conjugate: bool) -> Tensor:
    """As :func:`joined`, in two passes less; neither differentiable nor for a compiler."""
    (a, b), (c, d) = terms
    shape = list(a.shape)
    shape.insert(dim, 2)
    out = terms.new_empty(shape)
    real, imaginary = out.unbind(dim)
    if conjugate:
        torch.add(a, d, out=real)
        torch.sub(c, b, out=imaginary)
    else:
        torch.sub(a, d, out=real)
        torch.add(b, c, out=imaginary)
    return out


def _narrow(x: Tensor, matrix: Tensor) -> Tensor:
    # contiguous, here and below: the rows of the matrix as it is may have odd lengths
    return torch.bmm(matrix.contiguous().expand(x.shape[0], -1, -1), x.mT)


def _widen(y: Tensor, matrix: Tensor) -> Tensor:
    return torch.bmm(y.mT, matrix.mT.contiguous().expand(y.shape[0], -1, -1))


def _weigh(y: Tensor, x: Tensor) -> Tensor:
    products = torch.bmm(y, x)
    return products.sum(0) if len(products) > 1 else products[0]


def _narrow_planes(
    z: Tensor, planes: Tensor, conjugate: bool, inner: int | None, join: Callable[[Tensor, int, bool], Tensor] = joined
) -> Tensor:
    m, n = planes.shape[1:]
    terms = _narrow(z, planes.reshape(2 * m, n))  # (plane of z, (plane, m), rows)
    if inner is None:
        return join(terms.view(2, 2, m, -1), 0, conjugate)
    return join(terms.view(2, 2, -1, inner), 1, conjugate)


def _turn(y: Tensor, planes: Tensor, conjugate: bool) -> Tensor:
    """The signs go into the matrix, which is smaller than what it is multiplied with."""
    re, im = planes.mT
    if conjugate:
        matrix = torch.cat([re, im, -im, re])
    else:
        matrix = torch.cat([re, -im, im, re])
    rows = y.reshape(2 * y.shape[1], -1).mT  # (.., (plane, m))
    return torch.bmm(rows.expand(2, -1, -1), matrix.view(2, rows.shape[1], -1))


def _weigh_planes(g: Tensor, z: Tensor, conjugate: bool) -> Tensor:
    m, n = g.shape[1], z.shape[2]
    terms = torch.bmm(g.flatten(0, 1).expand(2, -1, -1), z).view(2, 2, m, n)
    return joined(terms if conjugate else terms.transpose(0, 1), 0, True)


def weigh_in_parts(y: Tensor, x: Tensor, n_parts: int | None = None) -> Tensor:
    """As ``weigh``, in parts of the rows that are added up.

    The result is so small that a GPU would have work for a few of its multiprocessors only, which would sum very many
    rows one after the other: slowly, and with the rounding of so long a sum.

    Args:
        y: ``(groups, modes, rows)``.
        x: ``(groups, rows, columns)``.
        n_parts: How many, a divisor of ``rows``; by default one on a CPU.

    Returns:
        ``(modes, columns)``; where there are parts, in at least float32.
    """
    (groups, modes, rows), columns = y.shape, x.shape[2]
    n = n_parts or parts_of_rows(x)
    if groups > 1 or n == 1:
        return _weigh(y, x)
    return torch.bmm(y.reshape(modes, n, rows // n).transpose(0, 1), x.reshape(n, rows // n, columns)).sum(
        0, dtype=_wide(x)
    )


def weigh_planes_in_parts(g: Tensor, z: Tensor, conjugate: bool, n_parts: int | None = None) -> Tensor:
    """As ``weigh_planes``, not differentiable; see :func:`weigh_in_parts`."""
    (_, m, rows), columns = g.shape, z.shape[2]
    n = n_parts or parts_of_rows(z)
    if n == 1:
        terms = torch.bmm(g.flatten(0, 1).expand(2, -1, -1), z)
    else:
        parts = z.new_empty(2, n, 2 * m, columns)
        left = g.reshape(2 * m, n, rows // n).transpose(0, 1)
        for plane, out in zip(z.reshape(2, n, rows // n, columns), parts, strict=True):
            torch.bmm(left, plane, out=out)
        terms = parts.sum(1, dtype=_wide(z))
    terms = terms.view(2, 2, m, columns)
    return joined_in_place(terms if conjugate else terms.transpose(0, 1), 0, True)


def parts_of_rows(x: Tensor) -> int:
    """Into how many parts to cut the rows of ``(groups, rows, columns)``: as many aligned ones as a GPU keeps busy."""
    rows = x.shape[1]
    return next(n for n in range(MOST_PARTS, 0, -1) if rows % (4 * n) == 0 or n == 1) if x.is_cuda else 1


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


MOST_PARTS = 64  # two multiprocessors of an H200 each; not measured
TORCH = ThinProducts(
    _narrow,
    _widen,
    _weigh,
    lambda z, planes, conjugate, inner: _narrow_planes(z, planes, conjugate, inner),
    _turn,
    _weigh_planes,
)
# where nothing is differentiated or traced
AT_ONCE = TORCH._replace(
    weigh=weigh_in_parts,
    narrow_planes=lambda z, planes, conjugate, inner: _narrow_planes(z, planes, conjugate, inner, joined_in_place),
    weigh_planes=weigh_planes_in_parts,
)


def analysis(field: Tensor, matrices: Sequence[Tensor], by: ThinProducts = TORCH, adjoint: bool = False) -> Tensor:
    """Transforms all axes; the other arguments and the result as in ``spectral_reference.analysis``.

    With ``adjoint`` the matrices are those of a synthesis, whose transpose this then is.
    """
    *leading, last = _of_analysis(matrices, adjoint)
    z = by.narrow(field.reshape(1, -1, last.shape[1]), last)
    for planes in reversed(leading[1:]):
        z = by.narrow_planes(z.reshape(2, -1, planes.shape[2]), planes, adjoint, None)
    return _modes(z, leading, field, by, adjoint)


def synthesis(modes: Tensor, matrices: Sequence[Tensor], by: ThinProducts = TORCH, adjoint: bool = False) -> Tensor:
    """Forms fields; the other arguments and the result as in ``spectral_reference.synthesis`` less its end.

    With ``adjoint`` the matrices are those of an analysis, whose transpose this then is.
    """
    y, grid = synthesis_but_last(modes, matrices, by, adjoint)
    last = matrices[-1].mT if adjoint else matrices[-1]
    return by.widen(y[None], last).view(*modes.shape[2:], *grid)


def synthesis_but_last(
    modes: Tensor, matrices: Sequence[Tensor], by: ThinProducts, adjoint: bool
) -> tuple[Tensor, tuple[int, ...]]:
    """All of a synthesis but its last product.

    Args:
        modes: ``(F, 2, b, c)``.
        matrices: Those of the synthesis, or of the analysis whose transpose it is.
        by: How products are computed.
        adjoint: Whether they are an analysis'.

    Returns:
        ``(2 K, rows)``, which the last product takes to ``(rows, n)``, and the grid.
    """
    *leading, last = [matrix.mT for matrix in matrices] if adjoint else matrices
    y = modes.transpose(0, 1)
    for planes in leading:
        y = by.turn(y.unflatten(1, (planes.shape[2], -1)), planes, adjoint)  # (plane, .., n)
    return y.reshape(last.shape[1], -1), (*(planes.shape[1] for planes in leading), last.shape[0])


class Gradients(NamedTuple):
    """Gradients of ``<modes, analysis(field, matrices)>``, and what is computed on the way to them.

    Attributes:
        matrices: In the shapes of the matrices; transposes of contiguous ones where these are a synthesis'.
        field: With respect to the field: the synthesis that is the analysis' transpose; where it was asked for.
        modes: With respect to ``modes``: the analysis; where it was asked for.
    """

    matrices: list[Tensor]
    field: Tensor | None
    modes: Tensor | None


def gradients(
    field: Tensor,
    modes: Tensor,
    matrices: Sequence[Tensor],
    by: ThinProducts = TORCH,
    adjoint: bool = False,
    of_field: bool = False,
    of_modes: bool = False,
) -> Gradients:
    """Computes them all in one, since they have products in common.

    Args:
        field: ``(b, c, *grid)``.
        modes: Gradient of the analysis' result, ``(F, 2, b, c)``.
        matrices: Those of the analysis.
        by: How products are computed.
        adjoint: As in :func:`analysis`.
        of_field: Whether to compute the field's gradient too.
        of_modes: Whether to compute the analysis too.
    """
    *leading, last = _of_analysis(matrices, adjoint)
    rows = field.reshape(1, -1, last.shape[1])
    z = by.narrow(rows, last)
    inputs = []  # of each leading axis' product, in the order of the analysis
    for planes in reversed(leading):
        inputs.append(z)
        if len(inputs) < len(leading):
            z = by.narrow_planes(z.reshape(2, -1, planes.shape[2]), planes, adjoint, None)
    analysed = _modes(z, leading, field, by, adjoint) if of_modes else None
    g = modes.transpose(0, 1)
    found = []
    for planes, z in zip(leading, reversed(inputs), strict=True):
        m, n = planes.shape[1:]
        g = g.reshape(2, m, -1)
        found.append(by.weigh_planes(g, z.reshape(2, -1, n), adjoint))
        g = by.turn(g, planes.mT, not adjoint)
    g = g.reshape(1, last.shape[0], -1)
    found.append(by.weigh(g, rows))
    formed = by.widen(g, last.mT).view(field.shape) if of_field else None
    return Gradients(_of_analysis(found, adjoint), formed, analysed)


def _of_analysis(matrices: Sequence[Tensor], adjoint: bool) -> list[Tensor]:
    """The matrices as ``(2, m, n)`` and ``(2 K, n)``; they are to be conjugated yet where they are a synthesis'."""
    return [matrix.mT for matrix in matrices] if adjoint else list(matrices)


def _modes(z: Tensor, leading: Sequence[Tensor], field: Tensor, by: ThinProducts, conjugate: bool) -> Tensor:
    """Transforms the first axis, if it is not the last one too; ``(F, 2, b, c)``, in memory ``(F, b, 2, c)``.

    Planes are so many more samples to the mixing of channels; behind the samples, so that those of its gradient can be
    put there in one pass.
    """
    if not leading:
        return z.view(2, -1, *field.shape[:2]).permute(1, 2, 0, 3).contiguous().transpose(1, 2)
    batch, channels = field.shape[:2]
    z = by.narrow_planes(z.reshape(2, -1, leading[0].shape[2]), leading[0], conjugate, channels)
    return z.view(-1, batch, 2, channels).transpose(1, 2)
