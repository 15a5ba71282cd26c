"""Fused truncated spectral transforms: public functions and choice of backend.

``spectral_analysis`` and ``spectral_synthesis`` are the ends of a Fourier layer (Li et al., ICLR 2021, eq. 5). Modes
lie as ``(F, 2, b, c)``, real and imaginary part as so many more samples to the mixing of channels, one ``torch.bmm``.
The matrices are those that :mod:`~sciml_monarch.monarch.kernels.spectral_reference` describes, in one, two or three
dimensions.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import gelu as apply_gelu

from sciml_monarch.errors import InputError
from sciml_monarch.monarch.kernels import spectral_products as products
from sciml_monarch.monarch.kernels.backend import (
    autocast,
    backend,
    dot_precision,
    is_replayed,
    plain_wanted,
)
from sciml_monarch.monarch.kernels.spectral_layout import Activation, sizes
from sciml_monarch.monarch.kernels.spectral_operators import OPERATORS, operations, plain_synthesis

MOST_TIMED_BFLOAT16 = 50 * 48 * 64**2  # entries of a batch of fields


def spectral_analysis(field: Tensor, matrices: Sequence[Tensor], source: Tensor | None = None) -> Tensor:
    """Transforms all axes of real fields, keeping only some modes. Computes in autocast's dtype.

    Args:
        field: ``(b, c, *grid)``.
        matrices: Per axis, see ``spectral_reference``; float32, or of the field's dtype.
        source: The fields whose GELU ``field`` is, if it is one. They are then kept for the backward pass in place of
            ``field``, which is computed again: a network whose activation keeps them anyway keeps one field a layer.

    Returns:
        Modes ``(F, 2, b, c)``, real and imaginary part.

    Raises:
        InputError: The matrices do not fit the field.
    """
    grid, _ = sizes(matrices, points_first=False)
    if tuple(field.shape[2:]) != grid:
        raise InputError(f"matrices for a grid {grid} cannot take fields of shape {tuple(field.shape)}")
    field = autocast(field)
    if plain_wanted() or _undifferentiated(field):
        return products.analysis(field, [matrix.to(field.dtype) for matrix in matrices], _plainly())
    source = None if source is None else autocast(source)
    return operations().analysis(field, list(matrices), False, source, _asked(field))


def spectral_synthesis(
    modes: Tensor,
    matrices: Sequence[Tensor],
    skip: Tensor | None = None,
    bias: Tensor | None = None,
    activation: Activation = "identity",
) -> tuple[Tensor, Tensor | None]:
    """Forms real fields from modes, adds a skip connection and a bias, applies an activation.

    Args:
        modes: ``(F, 2, b, c)``, as from :func:`spectral_analysis`.
        matrices: Per axis, see ``spectral_reference``; float32, or of the dtype of ``modes``.
        skip: Fields ``(b, c, *grid)``.
        bias: ``(c,)``.
        activation: "identity" or "gelu".

    Returns:
        The fields ``(b, c, *grid)`` and, with GELU, the fields before it: the ``source`` of a next analysis.

    Raises:
        InputError: The matrices do not fit the modes, or the skip connection not the result.
    """
    grid, kept = sizes(matrices, points_first=True)
    if modes.shape[0] != prod(kept):
        raise InputError(f"matrices for {prod(kept)} modes cannot take modes of shape {tuple(modes.shape)}")
    modes = autocast(modes)
    shape = (*modes.shape[2:], *grid)
    if skip is not None and tuple(skip.shape) != shape:
        raise InputError(f"a skip connection of shape {tuple(skip.shape)} cannot be added to fields {shape}")
    skip = None if skip is None else skip.to(modes.dtype)
    gelu = activation == "gelu"
    if plain_wanted():
        return _end(products.synthesis(modes, [matrix.to(modes.dtype) for matrix in matrices]), skip, bias, gelu)
    if _undifferentiated(modes, prod(shape)):
        return plain_synthesis(modes, [matrix.to(modes.dtype) for matrix in matrices], False, skip, bias, gelu)
    if torch.compiler.is_compiling() and backend() != "triton":  # the compiler fuses the end of the layer
        out, _ = OPERATORS.synthesis(modes, list(matrices), False, None, None, False, _pays(modes, prod(shape)))
        return _end(out, skip, bias, gelu)
    out, before = operations().synthesis(modes, list(matrices), False, skip, bias, gelu, _asked(modes, prod(shape)))
    return out, before if gelu else None


def _end(out: Tensor, skip: Tensor | None, bias: Tensor | None, gelu: bool) -> tuple[Tensor, Tensor | None]:
    """The end of a layer, where it is differentiated or fused by others."""
    # the bias in its own precision: half precision would overflow in the sum that is its gradient
    out = out if bias is None else (out + bias.view(-1, *(1,) * (out.ndim - 2))).to(out.dtype)
    out = out if skip is None else out + skip
    return (apply_gelu(out), out) if gelu else (out, None)


def _asked(like: Tensor, n_points: int | None = None) -> bool:
    """Whether kernels were asked for, or were measured to be faster for so many points of fields."""
    return backend() == "triton" or _pays(like, like.numel() if n_points is None else n_points)


def _pays(like: Tensor, n_points: int) -> bool:
    """What ``auto`` stands for, measured on an H200 (``results/speed_h200/``).

    The GPU takes less time for the kernels at all sizes in float32; the processor takes longer to begin them. In
    bfloat16 they were timed as parts of training steps at 64^2, in CUDA graphs without a compiler, in batches of up to
    so many entries.
    """
    if backend() != "auto" or not like.is_cuda:
        return False
    if like.dtype == torch.bfloat16:
        return is_replayed() and not torch.compiler.is_compiling() and n_points <= MOST_TIMED_BFLOAT16
    if like.dtype != torch.float32:
        return False
    if is_replayed() or torch.compiler.is_compiling():
        return is_replayed()
    return n_points >= 2**26 and dot_precision(like.dtype) == "tf32x3"


def _undifferentiated(like: Tensor, n_points: int | None = None) -> bool:
    """Whether an operator would do nothing but call plain torch, which takes longer than products of small fields."""
    return not torch.is_grad_enabled() and not _asked(like, n_points)


def _plainly() -> products.ThinProducts:
    """Plain torch as those want it who differentiate, trace or only run it."""
    return products.TORCH if plain_wanted() or torch.compiler.is_compiling() else products.AT_ONCE
