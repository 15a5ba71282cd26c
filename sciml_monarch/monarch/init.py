r"""Exact starting points: the classical transforms, written as Monarch matrices.

Transforms come as ``Parts`` and are orthonormal; ``inverse=True`` gives the inverse as a second starting
point. They are computed in double precision and rounded to ``dtype`` last: a real or complex dtype, of which
only the precision counts, ``None`` for that of ``torch.get_default_dtype()``. Matrices without permutations
are ``Factors``.
"""

import math

import torch
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.monarch.fourier import circulant, dct, dft, dst, toeplitz
from sciml_monarch.monarch.functional import Factors
from sciml_monarch.monarch.parts import Parts, apply, apply_adjoint, dense, inverse_permutation, rounded
from sciml_monarch.monarch.shapes import block_counts, inner_width

__all__ = [
    "Parts",
    "apply",
    "apply_adjoint",
    "block_dct",
    "circulant",
    "dct",
    "dense",
    "dft",
    "dst",
    "haar",
    "hadamard",
    "identity",
    "random",
    "toeplitz",
]


def hadamard(n: int, *, blocks: int | None = None, dtype: torch.dtype | None = None) -> Parts:
    """Writes the orthonormal Walsh-Hadamard transform in natural (Sylvester) order; it is its own inverse.

    ``H_n`` is the Kronecker product of ``H_k`` and ``H_p``: a Monarch matrix without a permutation.

    Args:
        n: Number of points, a power of two.
        blocks: Blocks ``k`` of the first factor, a divisor of ``n``; ``None``: the larger of the factor pair.
        dtype: Precision of the real factors.

    Returns:
        Parts equal to ``scipy.linalg.hadamard(n) / sqrt(n)``.

    Raises:
        InputError: If ``n`` is no power of two or ``blocks`` does not divide it.
    """
    if n < 1 or n & (n - 1):
        raise InputError(f"the Hadamard transform needs a power of two, but got n = {n}")
    k = block_counts(n, n, blocks)[0]
    p = n // k
    w1, w2 = _sylvester(p).repeat(k, 1, 1), _sylvester(k).repeat(p, 1, 1)
    return rounded(Parts(None, Factors(w1 / math.sqrt(p), w2 / math.sqrt(k)), None, False), dtype)


def block_dct(n: int, *, inverse: bool = False, blocks: int | None = None, dtype: torch.dtype | None = None) -> Parts:
    """Writes the DCT-II of consecutive blocks of samples, as in JPEG, or its inverse.

    Args:
        n: Number of points. A block has 8 samples, or the largest divisor of ``n`` between 2 and 8.
        inverse: Whether to take the inverse.
        blocks: Blocks of the first factor; each holds whole blocks of samples. ``None``: fewest parameters.
        dtype: Precision of the real factors.

    Returns:
        Parts with real factors, ``I`` (Kronecker) ``DCT``.

    Raises:
        InputError: If no block size from 2 to 8 divides ``n``, or ``blocks`` does not fit.
    """
    size = next((b for b in range(8, 1, -1) if n > 0 and n % b == 0), None)
    if size is None:
        raise InputError(f"the block DCT needs a block size from 2 to 8 that divides n, but n = {n} has none")
    index = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * (index + 0.5) * index[:, None]) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    factors = _block_diagonal(matrix.T if inverse else matrix, n, blocks)
    return rounded(Parts(None, factors, None, False), dtype)


def haar(n: int, *, inverse: bool = False, blocks: int | None = None, dtype: torch.dtype | None = None) -> Parts:
    """Writes the orthonormal Haar wavelet transform of two levels, or its inverse.

    The coefficients are in Mallat's order: approximation and detail of level 2 (``n / 4`` each), detail of
    level 1 (``n / 2``). A detail is the first sample minus the second.

    Args:
        n: Number of points, divisible by 4.
        inverse: Whether to take the inverse.
        blocks: Blocks of the first factor; each holds whole groups of 4 samples. ``None``: fewest parameters.
        dtype: Precision of the real factors.

    Returns:
        Parts with real factors; the permutation is behind the factors, for the inverse in front of them.

    Raises:
        InputError: If 4 does not divide ``n``, or ``blocks`` does not fit.
    """
    if n < 4 or n % 4:
        raise InputError(f"the two-level Haar transform needs n divisible by 4, but got n = {n}")
    half, root = 0.5, math.sqrt(0.5)
    group = torch.tensor(
        [[half, half, half, half], [half, half, -half, -half], [root, -root, 0, 0], [0, 0, root, -root]],
        dtype=torch.float64,
    )
    by_group = torch.arange(n).unflatten(0, (n // 4, 4))
    mallat = torch.cat([by_group[:, 0], by_group[:, 1], by_group[:, 2:].flatten()])
    if inverse:
        parts = Parts(inverse_permutation(mallat), _block_diagonal(group.T, n, blocks), None, False)
    else:
        parts = Parts(None, _block_diagonal(group, n, blocks), mallat, False)
    return rounded(parts, dtype)


def identity(n: int, blocks: int | tuple[int, int] | None = None, *, dtype: torch.dtype | None = None) -> Factors:
    """Writes the identity as a Monarch matrix of any block numbers.

    Args:
        n: Size.
        blocks: Blocks of both factors, or ``(k, l)``, each a divisor of ``n``; ``None``: the factor pair.
        dtype: Precision of the real factors.

    Returns:
        Identity blocks: ``w1`` ``(k, n/k, n/k)`` and ``w2`` ``(l, n/l, n/l)``.

    Raises:
        InputError: If the blocks do not divide ``n``.
    """
    k, l = block_counts(n, n, blocks)
    w1, w2 = torch.eye(n // k).repeat(k, 1, 1), torch.eye(n // l).repeat(l, 1, 1)
    return rounded(Parts(None, Factors(w1, w2), None, False), dtype).factors


def random(
    out_features: int,
    in_features: int,
    blocks: int | tuple[int, int] | None = None,
    rank: int | None = None,
    *,
    generator: torch.Generator | None = None,
    gain: float = 1.0,
    dtype: torch.dtype | None = None,
) -> Factors:
    """Draws normal factors such that outputs have ``gain ** 2`` times the variance of independent inputs.

    Args:
        out_features: Rows of the matrix.
        in_features: Columns of the matrix.
        blocks: As in ``project``.
        rank: As in ``project``.
        generator: Source of the random numbers; ``None``: torch's own.
        gain: Ratio of the standard deviations of output and input.
        dtype: Dtype of the factors, real or complex (a complex entry has the variance of a real one).

    Returns:
        The factors.

    Raises:
        InputError: If the blocks do not divide the sizes or the rank is out of range.
    """
    k, l = block_counts(out_features, in_features, blocks)
    p, s = in_features // k, out_features // l
    q = inner_width(out_features, in_features, k, l, rank)
    r = k * q // l
    device = None if generator is None else generator.device
    w1 = torch.randn(k, q, p, generator=generator, dtype=dtype, device=device) / math.sqrt(p)
    w2 = torch.randn(l, s, r, generator=generator, dtype=dtype, device=device) * (gain / math.sqrt(r))
    return Factors(w1, w2)


def _sylvester(n: int) -> Tensor:
    """Builds the Hadamard matrix of 1 and -1; the sign is the parity of the bits shared by row and column."""
    shared = torch.arange(n)[:, None] & torch.arange(n)
    sign = torch.ones(n, n, dtype=torch.float64)
    for bit in range(n.bit_length()):
        sign = torch.where((shared >> bit) % 2 == 1, -sign, sign)
    return sign


def _block_diagonal(block: Tensor, n: int, blocks: int | None) -> Factors:
    """Writes ``I`` (Kronecker) ``block`` of size ``n``; the second factor consists of identities."""
    size = block.shape[0]
    if blocks is None:
        k = min((k for k in range(1, n // size + 1) if n // size % k == 0), key=lambda k: k + n // k)
    else:
        k = block_counts(n, n, blocks)[0]
    p = n // k
    if p % size:
        raise InputError(
            f"each of the {k} blocks of the first factor has {p} of {n} points, no multiple of "
            f"the {size} that the transform takes together; take a number of blocks that divides {n // size}"
        )
    w1 = torch.kron(torch.eye(p // size, dtype=block.dtype), block.contiguous()).repeat(k, 1, 1)
    return Factors(w1, torch.eye(k, dtype=block.dtype).repeat(p, 1, 1))
