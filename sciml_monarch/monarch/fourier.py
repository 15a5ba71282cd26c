r"""Exact starting points made of the Fourier transform: DFT, DCT, DST, circulant and Toeplitz matrices.

Everything is computed in double precision, the phases from integers modulo ``n``, and rounded last.
"""

import math

import torch
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.monarch.functional import Factors
from sciml_monarch.monarch.parts import (
    Parts,
    inverse_permutation,
    permute_input,
    permute_output,
    rounded,
    scale_columns,
    scale_rows,
)
from sciml_monarch.monarch.shapes import block_counts, factor_pair


def dft(
    n: int,
    *,
    inverse: bool = False,
    centered: bool = False,
    blocks: int | None = None,
    dtype: torch.dtype | None = None,
) -> Parts:
    r"""Writes the discrete Fourier transform as an input permutation and one Monarch matrix.

    With ``n = k p``, input ``k n1 + n2``, output ``k1 + p k2`` and ``w = exp(-2 pi i / n)`` (Cooley and
    Tukey)

        w1[n2][k1, n1] = w^(k n1 k1) / sqrt(p)            w2[k1][k2, n2] = w^(p n2 k2 + n2 k1) / sqrt(k)

    The inverse has ``exp(+2 pi i / n)``. Centring on ``c = n // 2``, ``w^((a - c)(b - c))`` for output ``a``
    and input ``b``, only multiplies rows and columns by phases, which the blocks take up for odd ``n`` too.

    Args:
        n: Number of points. A prime has one dense block.
        inverse: Whether to take the inverse transform.
        centered: Whether zero position and zero frequency lie at ``n // 2`` instead of at 0.
        blocks: Blocks ``k`` of the first factor, a divisor of ``n``; ``None``: the larger of the factor pair.
        dtype: Precision of the complex factors.

    Returns:
        Parts with ``w1`` ``(k, p, p)`` and ``w2`` ``(p, k, k)``, equal to ``torch.fft.fft(norm="ortho")``.

    Raises:
        InputError: If ``n`` is below 1 or ``blocks`` does not divide it.
    """
    k, p = _split(n, blocks)
    c = n // 2 if centered else 0
    n2, k1, n1 = torch.meshgrid(torch.arange(k), torch.arange(p), torch.arange(p), indexing="ij")
    w1 = _roots_of_unity(k * n1 * k1 - c * (k * n1 + n2), n, inverse) / math.sqrt(p)
    k1, k2, n2 = torch.meshgrid(torch.arange(p), torch.arange(k), torch.arange(k), indexing="ij")
    w2 = _roots_of_unity(n2 * (p * k2 + k1) - c * (p * k2 + k1) + c * c, n, inverse) / math.sqrt(k)
    permutation = torch.arange(n).unflatten(0, (p, k)).T.flatten()
    return rounded(Parts(permutation, Factors(w1, w2), None, False), dtype)


def dct(n: int, *, inverse: bool = False, blocks: int | None = None, dtype: torch.dtype | None = None) -> Parts:
    """Writes the orthonormal DCT-II, or its inverse, the DCT-III, as a real part.

    DCT-II is ``Re(D F P)``: even samples forwards, odd ones backwards (``P``), a DFT and a diagonal (Makhoul,
    1980, doi 10.1109/TASSP.1980.1163351). DCT-III is its transpose. The diagonal is folded into the factors.

    Args:
        n: Number of points.
        inverse: Whether to take the DCT-III.
        blocks: Blocks of the first factor, a divisor of ``n``; ``None``: the larger of the factor pair.
        dtype: Precision of the complex factors.

    Returns:
        Parts equal to ``scipy.fft.dct(type=2, norm="ortho")``, or ``type=3``.

    Raises:
        InputError: If ``n`` is below 1 or ``blocks`` does not divide it.
    """
    fourier = dft(n, blocks=blocks, dtype=torch.float64)
    turns = torch.arange(n, dtype=torch.float64) / (2 * n)
    diagonal = torch.polar(torch.full_like(turns, math.sqrt(2)), -math.pi * turns)
    diagonal[0] = 1
    order = torch.cat([torch.arange(0, n, 2), torch.arange(1, n, 2).flip(0)])
    if inverse:
        parts = permute_output(scale_columns(fourier, diagonal), inverse_permutation(order))
    else:
        parts = permute_input(scale_rows(fourier, diagonal), order)
    return rounded(parts._replace(takes_real=True), dtype)


def dst(n: int, *, inverse: bool = False, blocks: int | None = None, dtype: torch.dtype | None = None) -> Parts:
    """Writes the orthonormal DST-II, or its inverse, the DST-III, as a real part.

    DST-II is the DCT-II of the samples with alternating signs, in reversed order.

    Args:
        n: Number of points.
        inverse: Whether to take the DST-III.
        blocks: Blocks of the first factor, a divisor of ``n``; ``None``: the larger of the factor pair.
        dtype: Precision of the complex factors.

    Returns:
        Parts equal to ``scipy.fft.dst(type=2, norm="ortho")``, or ``type=3``.

    Raises:
        InputError: If ``n`` is below 1 or ``blocks`` does not divide it.
    """
    cosine = dct(n, inverse=inverse, blocks=blocks, dtype=torch.float64)
    signs = 1.0 - 2.0 * (torch.arange(n) % 2)
    reverse = torch.arange(n).flip(0)
    if inverse:
        parts = scale_rows(permute_input(cosine, reverse), signs)
    else:
        parts = permute_output(scale_columns(cosine, signs), reverse)
    return rounded(parts, dtype)


def circulant(c: Tensor) -> tuple[Parts, Parts]:
    r"""Writes the circulant matrix with first column ``c`` as two Monarch matrices (class MM*).

    ``C = F^-1 diag(fft(c)) F``; the diagonal is folded into the first.

    Args:
        c: First column, ``(n,)``, real or complex. Gradients flow back to it.

    Returns:
        ``(first, second)``, complex: ``apply(second, apply(first, x))`` is ``scipy.linalg.circulant(c) @ x``,
        of which the imaginary part is rounding where ``c`` and ``x`` are real.

    Raises:
        InputError: If ``c`` is not one row of numbers.
    """
    n = _length(c, "c")
    first = scale_rows(_moved(dft(n, dtype=torch.float64), c.device), _spectrum(c))
    second = _moved(dft(n, inverse=True, dtype=torch.float64), c.device)
    return rounded(first, c.dtype), rounded(second, c.dtype)


def toeplitz(c: Tensor, r: Tensor) -> tuple[Parts, Parts]:
    """Writes a square Toeplitz matrix as two rectangular Monarch matrices (class MM*).

    It is a corner of the circulant matrix of size ``2n``. Padding with zeros drops columns of the first
    factors, cropping drops rows of the second, so that nothing of size ``2n`` is read or written.

    Args:
        c: First column, ``(n,)``, real or complex.
        r: First row, ``(n,)``; ``r[0]`` is ignored, as in ``scipy.linalg.toeplitz``.

    Returns:
        ``(first, second)``, complex, of sizes ``2n x n`` and ``n x 2n``: ``apply(second, apply(first, x))``
        is ``scipy.linalg.toeplitz(c, r) @ x``.

    Raises:
        InputError: If ``c`` and ``r`` are not two rows of numbers of one length.
    """
    n = _length(c, "c")
    if _length(r, "r") != n:
        raise InputError(f"a square Toeplitz matrix needs c and r of one length, but got {n} and {r.shape[0]}")
    # Half of the input is dropped inside every block of w1, so its size p must be even; the same holds for
    # the k rows of the blocks of w2. One of the two numbers always is: the inverse takes the pair the other
    # way round.
    larger, smaller = factor_pair(2 * n)
    even, other = (larger, smaller) if larger % 2 == 0 else (smaller, larger)
    dtype = torch.promote_types(c.dtype, r.dtype)
    embedded = torch.cat([c.to(dtype), c.new_zeros(1, dtype=dtype), r.to(dtype)[1:].flip(0)])
    first = _moved(dft(2 * n, blocks=other, dtype=torch.float64), c.device)
    second = _moved(dft(2 * n, inverse=True, blocks=even, dtype=torch.float64), c.device)
    (w1, w2), order = scale_rows(first, _spectrum(embedded)).factors, first.permutation_in
    if order is not None:
        order = order.unflatten(0, (other, even))[:, : even // 2].flatten()
    first = Parts(order, Factors(w1[..., : even // 2], w2), None, False)
    w1, w2 = second.factors
    second = second._replace(factors=Factors(w1, w2[:, : even // 2]))
    return rounded(first, dtype), rounded(second, dtype)


def _roots_of_unity(exponent: Tensor, n: int, inverse: bool) -> Tensor:
    """Computes ``w ** exponent``; reduced modulo ``n`` first, so that large exponents lose no digits."""
    angle = (exponent % n).double() * (2 * math.pi / n)
    return torch.polar(torch.ones_like(angle), angle if inverse else -angle)


def _split(n: int, blocks: int | None) -> tuple[int, int]:
    """Splits ``n`` into ``(k, p)``, ``k`` blocks of size ``p``."""
    k = block_counts(n, n, blocks)[0]
    return k, n // k


def _spectrum(c: Tensor) -> Tensor:
    return torch.fft.fft(c.to(torch.complex128))


def _moved(parts: Parts, device: torch.device) -> Parts:
    order = parts.permutation_in
    factors = Factors(*(w.to(device) for w in parts.factors))
    return parts._replace(permutation_in=None if order is None else order.to(device), factors=factors)


def _length(c: Tensor, name: str) -> int:
    if c.ndim != 1 or c.numel() == 0 or not (c.is_floating_point() or c.is_complex()):
        raise InputError(
            f"{name} must be one row of real or complex numbers, but has shape {tuple(c.shape)} and dtype {c.dtype}"
        )
    return c.shape[0]
