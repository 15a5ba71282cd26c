"""Truncated spectral analysis and synthesis as plain sums: the slow reference of what the kernels compute.

Matrices: one of the last axis, ``(2 K, n)`` for an analysis and ``(n, 2 K)`` for a synthesis, rows (columns) ordered
(plane, mode); one of each leading axis, real and imaginary plane ``(2, m, n)`` for an analysis and ``(2, n, m)`` for a
synthesis. In two dimensions, with ``A1 = re + i im`` complex and ``A2`` real, the analysis of a field ``X`` is

    Z = A1 (X A2^T), the two halves of whose columns are real and imaginary part,

and the synthesis of modes ``Z`` is ``Y = [Re W, Im W] S2^T`` with ``W = S1 Z``. Between real vector spaces the
analysis with ``(A1, A2)`` and the synthesis with ``(A1^H, A2^T)`` are transposes of each other.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import gelu

from sciml_monarch.monarch.kernels.spectral_layout import Activation


def analysis(field: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Transforms all axes, the last first, and keeps only some modes of each.

    Args:
        field: Real fields ``(b, c, *grid)``.
        matrices: Per axis, see the module's description.

    Returns:
        Modes ``(F, 2, b, c)``: kept modes of all axes flattened; real and imaginary part.
    """
    *leading, last = matrices
    re, im = torch.einsum("...n,kn->k...", field, last).chunk(2)  # (K, b, c, *leading) each
    for planes in reversed(leading):
        # the axis to transform is the last one left; its modes go in front of those that are done
        parts = [torch.einsum("...n,mn->m...", part, plane) for part in (re, im) for plane in planes]
        re, im = parts[0] - parts[3], parts[1] + parts[2]
    return torch.stack([re, im], len(matrices)).flatten(0, len(matrices) - 1)


def synthesis(
    modes: Tensor,
    matrices: Sequence[Tensor],
    skip: Tensor | None = None,
    bias: Tensor | None = None,
    activation: Activation = "identity",
) -> Tensor:
    """Forms fields from modes.

    Args:
        modes: ``(F, 2, b, c)``; see :func:`analysis`.
        matrices: Per axis, see the module's description.
        skip: Fields ``(b, c, *grid)`` to add.
        bias: ``(c,)`` to add.
        activation: What to apply at the end.

    Returns:
        Real fields ``(b, c, *grid)``.
    """
    *leading, last = matrices
    n_kept = [planes.shape[2] for planes in leading] + [last.shape[1] // 2]
    re, im = modes.unflatten(0, n_kept).unbind(len(matrices))  # (*modes, b, c)
    for planes in leading:
        parts = [torch.einsum("m...,nm->...n", part, plane) for part in (re, im) for plane in planes]
        re, im = parts[0] - parts[3], parts[1] + parts[2]
    field = torch.einsum("k...,nk->...n", torch.cat([re, im]), last)  # (b, c, *grid)
    if bias is not None:
        field = field + bias.view(-1, *(1,) * len(matrices))
    if skip is not None:
        field = field + skip
    return gelu(field) if activation == "gelu" else field
