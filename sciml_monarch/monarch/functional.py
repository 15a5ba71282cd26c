r"""Products with Monarch matrices: pure functions, no state.

A Monarch matrix is ``M = P2 L P1 R``: two block-diagonal matrices with a fixed regrouping of the coordinates
after each (Dao et al., arXiv 2204.00595, section 3; the rectangular form of appendix A). In the letters used
here

    h[k, q]   = sum_p w1[k, q, p] x[k, p]          x viewed as (k, p)
    y[s, l]   = sum_r w2[l, s, r] h[r, l]          h, flattened, viewed as (r, l); y flattened from (s, l)
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sciml_monarch.errors import InputError


class Factors(NamedTuple):
    """The two block-diagonal factors of a Monarch matrix of size ``(s * l, k * p)``, real or complex.

    Attributes:
        w1: First factor (applied first), ``(*batch, k, q, p)``: ``k`` blocks of size ``q x p``.
        w2: Second factor, ``(*batch, l, s, r)``: ``l`` blocks of size ``s x r``, with ``l * r == k * q``.
    """

    w1: Tensor
    w2: Tensor


def n_params(factors: Factors) -> int:
    """Counts the real numbers in the factors; a complex entry counts twice."""
    return sum(w.numel() * (2 if w.is_complex() else 1) for w in factors)


def multiply(factors: Factors, x: Tensor) -> Tensor:
    """Computes ``M x`` in ``k q (p + s)`` multiplications a vector instead of ``k p * l s``.

    Args:
        factors: The two factors of ``M``. Batched factors are broadcast against the batch of ``x``.
        x: Input, ``(..., k * p)``. A real input of complex factors is taken as complex, and conversely.

    Returns:
        ``M x``, ``(..., s * l)``.

    Raises:
        InputError: If the factors do not fit each other or ``x`` does not fit them (not checked while
            compiling).
    """
    w1, w2 = factors
    if not torch.compiler.is_compiling():
        _check_factors(factors)
        _check_size(x, w1.shape[-3] * w1.shape[-1], "columns")
    w1, w2, x = _promote(w1, w2, x)
    k, _, p = w1.shape[-3:]
    l, _, r = w2.shape[-3:]
    h = _contract("kqp", "kp", "kq", w1, x.unflatten(-1, (k, p)))  # (..., k, q)
    h = h.flatten(-2).unflatten(-1, (r, l))  # (..., r, l)
    return _contract("lsr", "rl", "sl", w2, h).flatten(-2)  # (..., s * l)


def adjoint(factors: Factors, y: Tensor) -> Tensor:
    """Computes ``M^H y``: the conjugate transposes of the two factors in reverse order.

    Args:
        factors: The two factors of ``M``. Batched factors are broadcast against the batch of ``y``.
        y: Input, ``(..., s * l)``. A real input of complex factors is taken as complex, and conversely.

    Returns:
        ``M^H y``, ``(..., k * p)``.

    Raises:
        InputError: If the factors do not fit each other or ``y`` does not fit them (not checked while
            compiling).
    """
    w1, w2 = factors
    if not torch.compiler.is_compiling():
        _check_factors(factors)
        _check_size(y, w2.shape[-3] * w2.shape[-2], "rows")
    w1, w2, y = _promote(w1, w2, y)
    k, q, _ = w1.shape[-3:]
    l, s, _ = w2.shape[-3:]
    h = _contract("lsr", "sl", "rl", w2.conj(), y.unflatten(-1, (s, l)))  # (..., r, l)
    h = h.flatten(-2).unflatten(-1, (k, q))  # (..., k, q)
    return _contract("kqp", "kq", "kp", w1.conj(), h).flatten(-2)  # (..., k * p)


def to_dense(factors: Factors) -> Tensor:
    """Multiplies the factors out.

    Args:
        factors: The two factors of ``M``.

    Returns:
        The matrix ``M``, ``(*batch, s * l, k * p)``.

    Raises:
        InputError: If the factors do not fit each other (not checked while compiling).
    """
    w1, w2 = factors
    k, q, p = w1.shape[-3:]
    l = w2.shape[-3]
    if q % l:
        return select_columns(factors, torch.arange(k * p, device=w1.device))
    if not torch.compiler.is_compiling():
        _check_factors(factors)
    # inner coordinates are dealt to the sub-blocks in turn: each has as many, of which it is a product
    sub_blocks = torch.einsum("...lskj,...kjlp->...slkp", w2.unflatten(-1, (k, q // l)), w1.unflatten(-2, (q // l, l)))
    return sub_blocks.flatten(-4, -3).flatten(-2)


def select_columns(factors: Factors, columns: Tensor) -> Tensor:
    """Computes some columns of ``M`` without the others.

    A column of the identity meets one column of one block of the first factor only, so that this is gathered
    instead of multiplied.

    Args:
        factors: The two factors of ``M``.
        columns: Which columns, ``(c,)``, int64, each in ``0 .. k * p - 1``.

    Returns:
        ``M[:, columns]``, ``(*batch, s * l, c)``.

    Raises:
        InputError: If the factors do not fit each other (not checked while compiling).
    """
    w1, w2 = factors
    if not torch.compiler.is_compiling():
        _check_factors(factors)
    k, _, p = w1.shape[-3:]
    l, _, r = w2.shape[-3:]
    inner = w1.mT.flatten(-3, -2).index_select(-2, columns)  # (*batch, c, q): block k's part of the inner vector
    inner = _one_hot(columns // p, k, inner.dtype)[..., None] * inner[..., None, :]  # (*batch, c, k, q)
    inner = inner.flatten(-2).unflatten(-1, (r, l))  # (*batch, c, r, l)
    return torch.einsum("...lsr,...crl->...slc", w2, inner).flatten(-3, -2)


def select_rows(factors: Factors, rows: Tensor) -> Tensor:
    """Computes some rows of ``M`` without the others.

    Args:
        factors: The two factors of ``M``.
        rows: Which rows, ``(c,)``, int64, each in ``0 .. s * l - 1``.

    Returns:
        ``M[rows]``, ``(*batch, c, k * p)``.

    Raises:
        InputError: If the factors do not fit each other (not checked while compiling).
    """
    w1, w2 = factors
    if not torch.compiler.is_compiling():
        _check_factors(factors)
    k, q, _ = w1.shape[-3:]
    l = w2.shape[-3]
    inner = w2.transpose(-3, -2).flatten(-3, -2).index_select(-2, rows)  # (*batch, c, r): rows count as (s, l)
    inner = inner[..., None] * _one_hot(rows % l, l, inner.dtype)[..., None, :]  # (*batch, c, r, l)
    inner = inner.flatten(-2).unflatten(-1, (k, q))  # (*batch, c, k, q)
    return torch.einsum("...kqp,...ckq->...ckp", w1, inner).flatten(-2)


def _contract(block: str, source: str, target: str, w: Tensor, x: Tensor) -> Tensor:
    """Multiplies each block of ``w`` with its part of ``x``; the batch of ``w``, if any, is broadcast."""
    # An ellipsis on unbatched blocks would still be right but hides from einsum that this is one bmm over
    # blocks.
    batch = "..." if w.ndim > len(block) else ""
    return torch.einsum(f"{batch}{block},...{source}->...{target}", w, x)


def _one_hot(index: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    return (index[:, None] == torch.arange(size, device=index.device)).to(dtype)


def _promote(w1: Tensor, w2: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Takes real tensors as complex where the other side is complex; precisions are left as they are."""
    if w1.is_complex() == x.is_complex():
        return w1, w2, x
    dtype = torch.promote_types(w1.dtype, x.dtype)
    return w1.to(dtype), w2.to(dtype), x.to(dtype)


def _check_factors(factors: Factors) -> None:
    w1, w2 = factors
    if w1.ndim < 3 or w2.ndim < 3:
        raise InputError(
            f"factors need three axes, w1 (k, q, p) and w2 (l, s, r), but got {tuple(w1.shape)} and {tuple(w2.shape)}"
        )
    k, q, _ = w1.shape[-3:]
    l, _, r = w2.shape[-3:]
    if k * q != l * r:
        raise InputError(
            f"factors do not fit: w1 has k * q = {k} * {q} = {k * q} outputs, "
            f"but w2 has l * r = {l} * {r} = {l * r} inputs; the two must be equal"
        )


def _check_size(x: Tensor, size: int, side: str) -> None:
    if x.ndim < 1 or x.shape[-1] != size:
        raise InputError(
            f"the last axis of an input of shape {tuple(x.shape)} must have {size} entries, "
            f"as many as the matrix has {side}"
        )
