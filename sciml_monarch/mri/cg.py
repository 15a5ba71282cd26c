"""Batched conjugate gradients with implicit gradients."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LinearMap = Callable[[Tensor], Tensor]


def cg(
    normal: LinearMap,
    b: Tensor,
    x0: Tensor | None = None,
    n_iterations: int = 30,
    tolerance: float = 0.0,
) -> Tensor:
    """Solves ``normal(x) = b`` for each entry of a batch (Hestenes & Stiefel 1952).

    Gradients are those of the exact solution, by the implicit function theorem: backward solves the same system
    once more, so that memory does not grow with the iterations. They reach ``b`` and every tensor that ``normal``
    uses. They are as exact as the two solutions are converged.

    Args:
        normal: Hermitian positive definite map, shape to shape, that treats the entries of the batch independently.
        b: Right-hand sides, ``(b, ...)`` real or complex.
        x0: Where to start; zero by default. The solution does not depend on it, so it gets no gradient.
        n_iterations: Most iterations.
        tolerance: An entry is done when its residual is at most this times that of zero; 0 never asks, so that the
            device is not waited for.

    Returns:
        Solutions, of the shape of ``b``.
    """
    with torch.no_grad():
        x = _iterate(normal, b, x0, n_iterations, tolerance)
    if not torch.is_grad_enabled():
        return x
    # to first order the solution moves by normal^-1 of what the residual at x moves by, whatever moved it
    return _Solution.apply(b - normal(x), x, normal, n_iterations, tolerance)


class _Solution(torch.autograd.Function):
    """Returns ``x``; a gradient g of it reaches the residual as ``normal^-1 g``."""

    @staticmethod
    def forward(
        ctx: Any, residual: Tensor, x: Tensor, normal: LinearMap, n_iterations: int, tolerance: float
    ) -> Tensor:
        del residual
        ctx.solve = lambda g: _iterate(normal, g, None, n_iterations, tolerance)
        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        with torch.no_grad():
            return ctx.solve(gradient), None, None, None, None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Real part of the inner product of each entry, ``(b, 1, ...)``."""
    product = (a.conj() * b).real if a.is_complex() else a * b
    return product.sum(dim=tuple(range(1, a.ndim)), keepdim=True)


def _iterate(normal: LinearMap, b: Tensor, x0: Tensor | None, n_iterations: int, tolerance: float) -> Tensor:
    if x0 is None:
        x, r = torch.zeros_like(b), b
    else:
        x, r = x0, b - normal(x0)
    p, rr = r, _dot(r, r)
    limit = tolerance**2 * _dot(b, b)
    for _ in range(n_iterations):
        if tolerance > 0 and bool((rr <= limit).all()):
            break
        q = normal(p)
        pq = _dot(p, q)
        # an entry that is solved to the last digit has p = 0; it stays where it is
        alpha = torch.where(pq > 0, rr / pq.where(pq > 0, 1.0), 0.0)
        x = x + alpha * p
        r = r - alpha * q
        rr, before = _dot(r, r), rr
        p = r + torch.where(before > 0, rr / before.where(before > 0, 1.0), 0.0) * p
    return x
