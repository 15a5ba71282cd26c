"""Mixing of channels, mode by mode, between the two transforms of a spectral convolution, with its gradients.

Complex products in real arithmetic that read each weight once: real and imaginary part of the modes are so many more
samples, and four real products are put together afterwards.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sciml_monarch.monarch.kernels.backend import plain_wanted, without_autocast
from sciml_monarch.monarch.kernels.spectral_products import joined, joined_in_place


def spectral_mixing(modes: Tensor, matrices: Tensor) -> Tensor:
    """Multiplies the channels of every mode with its complex matrix.

    Args:
        modes: ``(F, 2, b, i)``, real and imaginary part; as ``(F, b, 2, i)`` in memory they are taken as they are.
        matrices: ``(F, i, 2 o)``, columns (plane, output), of the dtype of ``modes``.

    Returns:
        ``(F, 2, b, o)``; ``(2, F, b, o)`` in memory, as a synthesis takes them.
    """
    if plain_wanted() or torch.compiler.is_compiling():
        return _mixed(modes, matrices, joined)
    if not torch.is_grad_enabled():  # the other would do nothing else, and take longer
        return _mixed(modes, matrices, joined_in_place)
    return _Mixing.apply(modes, matrices)


def _mixed(modes: Tensor, matrices: Tensor, join: Callable[[Tensor, int, bool], Tensor]) -> Tensor:
    n_modes, _, batch, _ = modes.shape
    terms = torch.bmm(_rows(modes), matrices).view(n_modes, batch, 2, 2, matrices.shape[2] // 2)
    return join(terms.permute(2, 3, 0, 1, 4), 0, False).transpose(0, 1)


def _rows(modes: Tensor) -> Tensor:
    """``(F, 2 b, i)``, rows (sample, plane)."""
    return modes.transpose(1, 2).flatten(1, 2)


class _Mixing(torch.autograd.Function):
    """For eager mode: an operator of :mod:`torch.library` takes several times as long to begin."""

    @staticmethod
    def forward(ctx: Any, modes: Tensor, matrices: Tensor) -> Tensor:
        of_modes, of_matrices = ctx.needs_input_grad
        ctx.save_for_backward(modes if of_matrices else None, matrices if of_modes else None)
        with without_autocast(modes):
            return _mixed(modes, matrices, joined_in_place)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        modes, matrices = ctx.saved_tensors
        by_modes, by_matrices = None, None
        with without_autocast(gradient):
            re, im = gradient.transpose(1, 2).split(1, 2)  # (F, b, 1, o) each
            by_terms = torch.cat([re, im, im, -re], 2).flatten(2)  # (F, b, (plane, plane, o))
            by_terms = by_terms.view(len(by_terms), -1, by_terms.shape[2] // 2)
            if ctx.needs_input_grad[0]:
                by_modes = torch.bmm(by_terms, matrices.mT).unflatten(1, (-1, 2)).transpose(1, 2)
            if ctx.needs_input_grad[1]:
                by_matrices = torch.bmm(_rows(modes).mT, by_terms)
        return by_modes, by_matrices
