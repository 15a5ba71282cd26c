"""The Monarch matrix nearest to a dense one, in closed form."""

import torch
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.monarch.functional import Factors
from sciml_monarch.monarch.shapes import block_counts, inner_width


def project(
    matrix: Tensor, blocks: int | tuple[int, int] | None = None, rank: int | None = None
) -> tuple[Factors, Tensor]:
    r"""Finds the Monarch matrix nearest to ``matrix`` in the Frobenius norm, the global optimum.

    Seen as sub-blocks ``(j, kk)``, those rows that are ``j`` modulo ``l`` and the ``kk``-th group of columns,
    the factors of different sub-blocks share no entry: each takes its best low-rank approximation, a
    truncated SVD (Dao et al., arXiv 2204.00595, theorem 1 and algorithm 1, there for rank 1 and square
    matrices).

    Args:
        matrix: Dense matrix, ``(*batch, m, n)``, real or complex. Half precision is decomposed in float32.
        blocks: Blocks of both factors, or ``(k, l)``; ``k`` divides ``n`` and ``l`` divides ``m``. ``None``:
            the factor pairs nearest to the square roots of ``n`` and ``m``.
        rank: Rank of every sub-block, from 1 to ``min(n / k, m / l)``, at which every matrix is met exactly.
            ``None`` is the paper's inner width ``q = min(n / k, m / l)`` (for ``k != l`` the nearest equal
            rank below).

    Returns:
        The factors, in the dtype of ``matrix``, each singular value split evenly between the two, and the
        error ``||M - matrix||_F``, ``(*batch,)``: the root of the sum of the squares of the singular values
        left out.

    Raises:
        InputError: If the blocks do not divide the matrix or the rank is out of range.
    """
    if matrix.ndim < 2:
        raise InputError(f"a matrix needs two axes, but got shape {tuple(matrix.shape)}")
    m, n = matrix.shape[-2:]
    k, l = block_counts(m, n, blocks)
    p, s = n // k, m // l
    q = inner_width(m, n, k, l, rank)

    # (*batch, l, k, s, p): sub-block (j, kk)
    sub_blocks = matrix.unflatten(-2, (s, l)).unflatten(-1, (k, p)).movedim((-3, -2), (-4, -3))
    if matrix.dtype not in (torch.float32, torch.float64, torch.complex64, torch.complex128):
        sub_blocks = sub_blocks.to(torch.complex64 if matrix.is_complex() else torch.float32)
    u, sigma, vh = torch.linalg.svd(sub_blocks, full_matrices=False)
    half = sigma.sqrt()[..., None]
    left, right = (
        half * u.mT,
        half * vh,
    )  # (*batch, l, k, t, s) and (*batch, l, k, t, p), t the singular triplet

    # Inner coordinate kk * q + i belongs to the sub-block ((kk * q + i) % l, kk), and is its (i // l)-th one.
    inner = torch.arange(k * q, device=matrix.device)
    column, order, row = inner // q, (inner % q) // l, inner % l
    w1 = right[..., row, column, order, :].unflatten(-2, (k, q))  # (*batch, k, q, p)
    w2 = left[..., row, column, order, :].unflatten(-2, (k * q // l, l)).movedim(-3, -1)  # (*batch, l, s, r)

    left_out = torch.ones(sigma.shape[-3:], dtype=torch.bool, device=matrix.device)
    left_out[row, column, order] = False
    error = torch.where(left_out, sigma, 0).flatten(-3).norm(dim=-1)
    return Factors(w1.to(matrix.dtype).contiguous(), w2.to(matrix.dtype).contiguous()), error
