"""Fused truncated spectral transforms: public functions, their torch operators, gradients and choice of backend.

``spectral_analysis`` and ``spectral_synthesis`` are the ends of a Fourier layer (Li et al., ICLR 2021, eq. 5). Modes
lie as ``(F, 2, b, c)``, real and imaginary part as so many more samples to the mixing of channels, one ``torch.bmm``.
The matrices are those that :mod:`~sciml_monarch.monarch.kernels.spectral_reference` describes, in one, two or three
dimensions; each map is the other's transpose for suitable matrices, so that the gradient of either is the other.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu as apply_gelu

from sciml_monarch.errors import InputError
from sciml_monarch.monarch.kernels import spectral_products as products
from sciml_monarch.monarch.kernels.backend import autocast, backend, plain_wanted, wants_triton
from sciml_monarch.monarch.kernels.spectral_layout import Activation, sizes, transposed


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
    if plain_wanted() or _undifferentiated():
        return products.analysis(field, [matrix.to(field.dtype) for matrix in matrices])
    source = None if source is None else autocast(source)
    return _analysis(field, list(matrices), False, source, backend() == "triton")


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
    if _undifferentiated():
        return _plain_synthesis(modes, [matrix.to(modes.dtype) for matrix in matrices], skip, bias, gelu)
    if torch.compiler.is_compiling() and backend() != "triton":  # the compiler fuses the end of the layer
        out, _ = _synthesis(modes, list(matrices), False, None, None, False, False)
        return _end(out, skip, bias, gelu)
    out, before = _synthesis(modes, list(matrices), False, skip, bias, gelu, backend() == "triton")
    return out, before if gelu else None


def _end(out: Tensor, skip: Tensor | None, bias: Tensor | None, gelu: bool) -> tuple[Tensor, Tensor | None]:
    """The end of a layer, where it is differentiated or fused by others."""
    # the bias in its own precision: half precision would overflow in the sum that is its gradient
    out = out if bias is None else (out + bias.view(-1, *(1,) * (out.ndim - 2))).to(out.dtype)
    out = out if skip is None else out + skip
    return (apply_gelu(out), out) if gelu else (out, None)


@torch.library.custom_op("sciml_monarch::spectral_analysis", mutates_args=())
def _analysis(field: Tensor, matrices: Sequence[Tensor], adjoint: bool, source: Tensor | None, asked: bool) -> Tensor:
    """``asked``, here and below: whether kernels were asked for, of the call whose backward pass this may be."""
    if field.numel() == 0:
        return _analysis_fake(field, matrices, adjoint, source, asked)
    with torch.autocast(field.device.type, enabled=False):
        cast = [matrix.to(field.dtype) for matrix in matrices]
        return products.analysis(field, transposed(cast) if adjoint else cast, _by(field, asked)).contiguous()


@_analysis.register_fake
def _analysis_fake(
    field: Tensor, matrices: Sequence[Tensor], adjoint: bool, source: Tensor | None, asked: bool
) -> Tensor:
    _, kept = sizes(matrices, points_first=adjoint)
    return field.new_empty(prod(kept), 2, *field.shape[:2])


@torch.library.custom_op("sciml_monarch::spectral_synthesis", mutates_args=())
def _synthesis(
    modes: Tensor,
    matrices: Sequence[Tensor],
    adjoint: bool,
    skip: Tensor | None,
    bias: Tensor | None,
    gelu: bool,
    asked: bool,
) -> tuple[Tensor, Tensor]:
    if modes.numel() == 0:
        return _synthesis_fake(modes, matrices, adjoint, skip, bias, gelu, asked)
    with torch.autocast(modes.device.type, enabled=False):
        cast = [matrix.to(modes.dtype) for matrix in matrices]
        given = transposed(cast) if adjoint else cast
        if wants_triton(modes, measured_faster=asked):
            from sciml_monarch.monarch.kernels import spectral_triton

            out, kept = spectral_triton.synthesis(modes, given, skip, bias, gelu)
        else:
            out, kept = _plain_synthesis(modes, given, skip, bias, gelu)
        return out, modes.new_empty(0) if kept is None else kept


def _plain_synthesis(
    modes: Tensor, matrices: Sequence[Tensor], skip: Tensor | None, bias: Tensor | None, gelu: bool
) -> tuple[Tensor, Tensor | None]:
    out = products.synthesis(modes, matrices)
    if bias is not None:
        out += bias.to(out.dtype).view(-1, *(1,) * len(matrices))
    if skip is not None:
        out += skip
    return (apply_gelu(out), out) if gelu else (out, None)


@_synthesis.register_fake
def _synthesis_fake(
    modes: Tensor,
    matrices: Sequence[Tensor],
    adjoint: bool,
    skip: Tensor | None,
    bias: Tensor | None,
    gelu: bool,
    asked: bool,
) -> tuple[Tensor, Tensor]:
    grid, _ = sizes(matrices, points_first=not adjoint)
    out = modes.new_empty(*modes.shape[2:], *grid)
    return out, torch.empty_like(out) if gelu else modes.new_empty(0)


@torch.library.custom_op("sciml_monarch::spectral_matrix_gradients", mutates_args=())
def _matrix_gradients(
    field: Tensor, modes: Tensor, matrices: Sequence[Tensor], adjoint: bool, activated: bool, asked: bool
) -> list[Tensor]:
    """Gradients of ``<modes, analysis(field, matrices, adjoint)>``; of ``gelu(field)`` with ``activated``."""
    if field.numel() == 0:
        return [torch.zeros_like(matrix) for matrix in matrices]
    with torch.autocast(field.device.type, enabled=False):
        return _gradients_of_matrices(field, modes, matrices, adjoint, activated, _by(field, asked))


def _gradients_of_matrices(
    field: Tensor,
    modes: Tensor,
    matrices: Sequence[Tensor],
    adjoint: bool,
    activated: bool,
    by: products.ThinProducts = products.TORCH,
) -> list[Tensor]:
    field = apply_gelu(field) if activated else field
    cast = [matrix.to(field.dtype) for matrix in matrices]
    gradients = products.matrix_gradients(field, modes, transposed(cast) if adjoint else cast, by)
    gradients = transposed(gradients) if adjoint else gradients
    return [g.to(matrix.dtype) for g, matrix in zip(gradients, matrices, strict=True)]


@_matrix_gradients.register_fake
def _matrix_gradients_fake(
    field: Tensor, modes: Tensor, matrices: Sequence[Tensor], adjoint: bool, activated: bool, asked: bool
) -> list[Tensor]:
    return [torch.empty_like(matrix, memory_format=torch.contiguous_format) for matrix in matrices]


def _save_analysis(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    field, matrices, ctx.adjoint, source, ctx.asked = inputs
    ctx.activated = source is not None
    learned = any(matrix.requires_grad for matrix in matrices)  # else nothing in the backward pass needs the field
    ctx.save_for_backward((source if ctx.activated else field) if learned else None, *matrices)


def _analysis_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    kept, *matrices = ctx.saved_tensors
    by_field, by_matrices = None, _nothing(matrices)
    if ctx.needs_input_grad[0]:
        by_field, _ = _synthesis(gradient.contiguous(), matrices, not ctx.adjoint, None, None, False, ctx.asked)
    if _any(ctx.needs_input_grad[1]):
        by_matrices = _by_matrices(kept, gradient, matrices, ctx.adjoint, ctx.activated, ctx.asked)
    return by_field, by_matrices, None, None, None


def _save_synthesis(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    modes, matrices, ctx.adjoint, _, bias, ctx.gelu, ctx.asked = inputs
    ctx.set_materialize_grads(False)  # the fields before the activation as a rule have no gradient: no zeros for them
    ctx.bias_dtype = None if bias is None else bias.dtype
    learned = any(matrix.requires_grad for matrix in matrices)
    ctx.save_for_backward(modes if learned else None, output[1] if ctx.gelu else None, *matrices)


def _synthesis_backward(ctx: Any, by_out: Tensor | None, by_before: Tensor | None) -> tuple[Any, ...]:
    modes, before, *matrices = ctx.saved_tensors
    by_modes, by_matrices, by_bias = None, _nothing(matrices), None
    if by_out is None and by_before is None:
        return None, by_matrices, None, None, None, None, None
    if ctx.gelu:
        gradient = None if by_out is None else torch.ops.aten.gelu_backward(by_out, before)
        if by_before is not None:
            gradient = by_before if gradient is None else gradient + by_before
    else:
        gradient = by_out
    assert gradient is not None
    if ctx.needs_input_grad[0]:
        by_modes = _analysis(gradient, matrices, not ctx.adjoint, None, ctx.asked)
    if _any(ctx.needs_input_grad[1]):
        by_matrices = _by_matrices(gradient, modes, matrices, not ctx.adjoint, False, ctx.asked)
    if ctx.needs_input_grad[4]:
        wide = torch.promote_types(gradient.dtype, torch.float32)  # half precision would overflow
        by_bias = gradient.sum([0, *range(2, gradient.ndim)], dtype=wide).to(ctx.bias_dtype)
    return by_modes, by_matrices, None, gradient if ctx.needs_input_grad[3] else None, by_bias, None, None


def _by_matrices(
    field: Tensor, modes: Tensor, matrices: Sequence[Tensor], adjoint: bool, activated: bool, asked: bool
) -> list[Tensor]:
    """The operator, or what can be differentiated again where that is wanted."""
    if not torch.is_grad_enabled():
        return _matrix_gradients(field, modes, matrices, adjoint, activated, asked)
    with torch.autocast(field.device.type, enabled=False):
        return _gradients_of_matrices(field, modes, matrices, adjoint, activated)


_analysis.register_autograd(_analysis_backward, setup_context=_save_analysis)
_synthesis.register_autograd(_synthesis_backward, setup_context=_save_synthesis)


def _undifferentiated() -> bool:
    """Whether an operator would do nothing but call plain torch, which takes longer than products of small fields."""
    return not torch.is_grad_enabled() and backend() != "triton"


def _by(like: Tensor, asked: bool) -> products.ThinProducts:
    """Kernels, or plain torch; an ask for kernels outlives its block, for the backward pass, unless overridden."""
    if not wants_triton(like, measured_faster=asked):
        return products.TORCH
    from sciml_monarch.monarch.kernels import spectral_triton

    return spectral_triton.KERNELS


def _nothing(matrices: Sequence[Tensor]) -> Sequence[Tensor | None]:
    return [None] * len(matrices)


def _any(needs: bool | Sequence[bool]) -> bool:
    return needs if isinstance(needs, bool) else any(needs)
