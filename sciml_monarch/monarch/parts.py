"""A transform as data: input permutation, factors, output permutation, whether to take the real part."""

from typing import NamedTuple

import torch
from torch import Tensor

from sciml_monarch.monarch.functional import Factors, adjoint, multiply, to_dense


class Parts(NamedTuple):
    """The parts of a transform ``T = P_out M P_in``, or of its real part.

    Attributes:
        permutation_in: ``x[permutation_in]`` is what the factors see, ``(n,)`` int64; ``None`` for the
            natural order.
        factors: The Monarch matrix ``M``, unbatched.
        permutation_out: ``y = h[permutation_out]`` of the factors' output ``h``, ``(m,)`` int64; ``None``
            likewise.
        takes_real: Whether ``T`` is the real part of that product. ``T`` is then a real matrix: it acts on
            the real and the imaginary part of a complex input separately.
    """

    permutation_in: Tensor | None
    factors: Factors
    permutation_out: Tensor | None
    takes_real: bool


def apply(parts: Parts, x: Tensor) -> Tensor:
    """Computes ``T x``.

    Args:
        parts: The parts of ``T``.
        x: Input, ``(..., n)``, real or complex.

    Returns:
        ``T x``, ``(..., m)``.
    """
    if parts.takes_real and x.is_complex():
        real, imaginary = apply(parts, torch.view_as_real(x).movedim(-1, 0))
        return torch.complex(real.contiguous(), imaginary.contiguous())
    h = multiply(parts.factors, gather(x, parts.permutation_in))
    return gather(h.real if parts.takes_real else h, parts.permutation_out)


def apply_adjoint(parts: Parts, y: Tensor) -> Tensor:
    """Computes ``T^H y``, for a real part the transpose of the real matrix ``T``.

    Args:
        parts: The parts of ``T``.
        y: Input, ``(..., m)``, real or complex.

    Returns:
        ``T^H y``, ``(..., n)``.
    """
    if parts.takes_real and y.is_complex():
        real, imaginary = apply_adjoint(parts, torch.view_as_real(y).movedim(-1, 0))
        return torch.complex(real.contiguous(), imaginary.contiguous())
    h = adjoint(parts.factors, scatter(y, parts.permutation_out))
    return scatter(h.real if parts.takes_real else h, parts.permutation_in)


def dense(parts: Parts) -> Tensor:
    """Multiplies the parts out to the matrix ``T``, ``(m, n)``."""
    matrix = to_dense(parts.factors)
    matrix = matrix.real if parts.takes_real else matrix
    if parts.permutation_out is not None:
        matrix = matrix.index_select(-2, parts.permutation_out)
    return scatter(matrix, parts.permutation_in)


def inverse_permutation(permutation: Tensor) -> Tensor:
    """Inverts a permutation ``(n,)``: ``inverse[permutation[i]] == i``."""
    positions = torch.arange(permutation.numel(), device=permutation.device)
    return torch.empty_like(permutation).index_copy(0, permutation, positions)


def gather(x: Tensor, permutation: Tensor | None) -> Tensor:
    """Permutes the last axis, ``x[..., permutation]``; ``None`` stands for the natural order."""
    return x if permutation is None else x.index_select(-1, permutation)


def scatter(x: Tensor, permutation: Tensor | None) -> Tensor:
    """Undoes ``gather``; it is its adjoint too."""
    return x if permutation is None else torch.empty_like(x).index_copy(-1, permutation, x)


def scale_rows(parts: Parts, diagonal: Tensor) -> Parts:
    """Folds a diagonal behind the transform, ``diag(diagonal) T``, into the second factor."""
    w1, w2 = parts.factors
    if parts.permutation_out is not None:
        diagonal = diagonal[inverse_permutation(parts.permutation_out)]
    l, s, _ = w2.shape
    return parts._replace(factors=Factors(w1, w2 * diagonal.unflatten(0, (s, l)).T[..., None]))


def scale_columns(parts: Parts, diagonal: Tensor) -> Parts:
    """Folds a diagonal in front of the transform, ``T diag(diagonal)``, into the first factor."""
    w1, w2 = parts.factors
    if parts.permutation_in is not None:
        diagonal = diagonal[parts.permutation_in]
    k, _, p = w1.shape
    return parts._replace(factors=Factors(w1 * diagonal.unflatten(0, (k, p))[:, None], w2))


def permute_input(parts: Parts, permutation: Tensor) -> Parts:
    """Lets the transform see ``x[permutation]``."""
    inner = parts.permutation_in
    return parts._replace(permutation_in=permutation if inner is None else permutation[inner])


def permute_output(parts: Parts, permutation: Tensor) -> Parts:
    """Lets the transform return ``y[permutation]``."""
    inner = parts.permutation_out
    return parts._replace(permutation_out=permutation if inner is None else inner[permutation])


def rounded(parts: Parts, dtype: torch.dtype | None) -> Parts:
    """Rounds the factors to the precision of ``dtype``, real or complex as they are.

    Args:
        parts: Parts with factors in double precision.
        dtype: Real or complex dtype; ``None``: ``torch.get_default_dtype()``. Half precisions give single.

    Returns:
        The parts with rounded factors.
    """
    real = torch.promote_types((dtype or torch.get_default_dtype()).to_real(), torch.float32)
    w1, w2 = (w.to(real.to_complex() if w.is_complex() else real) for w in parts.factors)
    return parts._replace(factors=Factors(w1, w2))
