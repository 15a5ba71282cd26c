"""Factors seen as the low-rank sub-blocks that they deal their inner coordinates to.

With ``k`` and ``l`` blocks a Monarch matrix consists of ``l * k`` sub-blocks ``A = U V`` of size ``s x p``: the rows
that are ``j`` modulo ``l`` and the ``kk``-th group of columns (see :func:`~sciml_monarch.monarch.project`). No two
share an entry of the factors, so that what is done to factors is done to each pair ``(U, V)`` by itself.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sciml_monarch.monarch.functional import Factors
from sciml_monarch.monarch.layers import MONARCH, inner


class SubBlocks(NamedTuple):
    """The sub-blocks ``U V`` of a Monarch matrix.

    Attributes:
        u: Left factors, transposed, ``(l, k, t, s)``, ``t`` the largest rank; zeros where a sub-block has less.
        v: Right factors, ``(l, k, t, p)``.
    """

    u: Tensor
    v: Tensor


def split(factors: Factors) -> SubBlocks:
    """Sorts the entries of unbatched factors, or of tensors of their shapes, by sub-block."""
    w1, w2 = factors
    (k, q, p), (l, s, _) = w1.shape, w2.shape
    row, column, order = _places(k, q, l, w1.device)
    t = -(-q // l)
    u, v = w2.new_zeros(l, k, t, s), w1.new_zeros(l, k, t, p)
    u[row, column, order] = w2.permute(2, 0, 1).reshape(k * q, s)
    v[row, column, order] = w1.reshape(k * q, p)
    return SubBlocks(u, v)


def join(blocks: SubBlocks, q: int) -> Factors:
    """Inverse of :func:`split`.

    Args:
        blocks: The sub-blocks.
        q: Inner width: rows of each block of the first factor.
    """
    u, v = blocks
    l, k = u.shape[:2]
    row, column, order = _places(k, q, l, u.device)
    w1 = v[row, column, order].unflatten(0, (k, q))
    w2 = u[row, column, order].unflatten(0, (k * q // l, l)).permute(1, 2, 0)
    return Factors(w1.contiguous(), w2.contiguous())


def split_matrix(matrix: Tensor, k: int, l: int) -> Tensor:
    """Sub-blocks ``(l, k, s, p)`` of a matrix ``(m, n)``, padded with zeros to multiples of ``l`` and ``k``."""
    m, n = matrix.shape
    padded = torch.nn.functional.pad(matrix, (0, -n % k, 0, -m % l))
    return padded.unflatten(0, (-1, l)).unflatten(2, (k, -1)).permute(1, 2, 0, 3)


def join_matrix(blocks: Tensor, m: int, n: int) -> Tensor:
    """Inverse of :func:`split_matrix`; ``(m, n)``."""
    return blocks.permute(2, 0, 1, 3).flatten(2).flatten(0, 1)[:m, :n].contiguous()


def align(factors: Factors, reference: Factors) -> Factors:
    """Rotates factors so that they are nearest to others of the same shape; their product stays.

    ``U V = (U Q) (Q^T V)`` for every orthogonal ``Q``; the one that minimises ``|U Q - U'|^2 + |Q^T V - V'|^2`` is the
    polar factor of ``U^T U' + V V'^T`` (orthogonal Procrustes problem, Schönemann, Psychometrika 31, 1966). Averages
    of factors are of use only after this: two decompositions of one matrix may differ by any such ``Q``.

    Args:
        factors: Real factors, unbatched.
        reference: Factors of the same shapes.

    Returns:
        Factors of the same matrix.
    """
    q = factors.w1.shape[1]
    wide = torch.promote_types(factors.w1.dtype, torch.float32)
    (u, v), (u0, v0) = (split(Factors(f.w1.to(wide), f.w2.to(wide))) for f in (factors, reference))
    cross = u @ u0.mT + v @ v0.mT  # (l, k, t, t)
    # singular triplets that a sub-block does not have stay among themselves
    missing = torch.diag_embed(1 - split(Factors(*map(torch.ones_like, (factors.w1, factors.w2)))).v[..., 0].to(wide))
    left, _, right = torch.linalg.svd(cross + missing)
    rotation = (left @ right).mT
    aligned = join(SubBlocks(rotation @ u, rotation @ v), q)
    return Factors(aligned.w1.to(factors.w1.dtype), aligned.w2.to(factors.w2.dtype))


@torch.no_grad()
def align_layers(net: nn.Module, reference: nn.Module, names: Sequence[str]) -> None:
    """Aligns Monarch layers of a network with those of a copy of it, in place; see :func:`align`.

    Args:
        net: The network.
        reference: The copy.
        names: Qualified names of the layers; those that are not Monarch are left.
    """
    for layer, other in ((net.get_submodule(name), reference.get_submodule(name)) for name in names):
        if isinstance(layer, MONARCH) and isinstance(other, MONARCH):
            aligned = align(inner(layer).factors, inner(other).factors)
            for own, new in zip(inner(layer).factors, aligned, strict=True):
                own.copy_(new)


def _places(k: int, q: int, l: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Row and column of the sub-block of each inner coordinate, and its number among those of the sub-block."""
    inner = torch.arange(k * q, device=device)
    return inner % l, inner // q, (inner % q) // l
