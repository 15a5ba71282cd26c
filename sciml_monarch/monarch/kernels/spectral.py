"""Fused truncated spectral transforms: public functions, their torch operators, gradients and choice of backend.

``spectral_analysis`` and ``spectral_synthesis`` are the ends of a Fourier layer (Li et al., ICLR 2021, eq. 5). Modes
lie as ``(F, b, 2 c)``, which the mixing of channels, one ``torch.bmm`` with ``(F, 2 c, 2 o)``, reads and writes.
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
from sciml_monarch.monarch.kernels.backend import backend, wants_triton
from sciml_monarch.monarch.kernels.spectral_layout import Activation, sizes, transposed

MAX_KERNEL_NUMBERS = 2**31  # modes of all images, which kernels address with 32 bits


def spectral_analysis(field: Tensor, matrices: Sequence[Tensor], source: Tensor | None = None) -> Tensor:
    """Transforms all axes of real fields, keeping only some modes. Computes in autocast's dtype.

    Args:
        field: ``(b, c, *grid)``.
        matrices: Per axis, see ``spectral_reference``; float32, or of the field's dtype.
        source: The fields whose GELU ``field`` is, if it is one. They are then kept for the backward pass in place of
            ``field``, which is computed again: a network whose activation keeps them anyway keeps one field a layer.

    Returns:
        Modes ``(F, b, 2 c)``; real and imaginary part of a channel are neighbours.

    Raises:
        InputError: The matrices do not fit the field.
    """
    grid, _ = sizes(matrices, points_first=False)
    if tuple(field.shape[2:]) != grid:
        raise InputError(f"matrices for a grid {grid} cannot take fields of shape {tuple(field.shape)}")
    field = _autocast(field)
    if _inlined():
        return products.analysis(field, [matrix.to(field.dtype) for matrix in matrices])
    return _analysis(field, list(matrices), False, None if source is None else _autocast(source))


def spectral_synthesis(
    modes: Tensor,
    matrices: Sequence[Tensor],
    skip: Tensor | None = None,
    bias: Tensor | None = None,
    activation: Activation = "identity",
) -> tuple[Tensor, Tensor | None]:
    """Forms real fields from modes, adds a skip connection and a bias, applies an activation.

    Args:
        modes: ``(F, b, 2 c)``, as from :func:`spectral_analysis`.
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
    modes = _autocast(modes)
    shape = (modes.shape[1], modes.shape[2] // 2, *grid)
    if skip is not None and tuple(skip.shape) != shape:
        raise InputError(f"a skip connection of shape {tuple(skip.shape)} cannot be added to fields {shape}")
    skip = None if skip is None else skip.to(modes.dtype)
    gelu = activation == "gelu"
    if _inlined():
        out = products.synthesis(modes, [matrix.to(modes.dtype) for matrix in matrices])
        out = out if bias is None else out + bias.to(out.dtype).view(-1, *(1,) * len(grid))
        out = out if skip is None else out + skip
        return (apply_gelu(out), out) if gelu else (out, None)
    out, before = _synthesis(modes, list(matrices), False, skip, bias, gelu)
    return out, before if gelu else None


@torch.library.custom_op("sciml_monarch::spectral_analysis", mutates_args=())
def _analysis(field: Tensor, matrices: Sequence[Tensor], adjoint: bool, source: Tensor | None) -> Tensor:
    if field.numel() == 0:
        return _analysis_fake(field, matrices, adjoint, source)
    with torch.autocast(field.device.type, enabled=False):
        if not _takes_kernel(field, field.shape[0] * field.shape[1], matrices, adjoint):
            cast = [matrix.to(field.dtype) for matrix in matrices]
            return products.analysis(field, transposed(cast) if adjoint else cast).contiguous()
        from sciml_monarch.monarch.kernels import spectral_triton

        leading, last = (matrix.float().contiguous() for matrix in matrices[-2:])
        if len(matrices) == 2:
            return spectral_triton.analysis(field.contiguous(), leading, last, adjoint)
        # the first of three axes, whose input is already small, by a product of torch
        inner = spectral_triton.analysis(field.flatten(1, 2).contiguous(), leading, last, adjoint)
        first = _first(matrices, adjoint).to(field.dtype)
        return products.first_axis_analysis(inner.unflatten(-1, (*field.shape[1:3], 2)), first).contiguous()


@_analysis.register_fake
def _analysis_fake(field: Tensor, matrices: Sequence[Tensor], adjoint: bool, source: Tensor | None) -> Tensor:
    _, kept = sizes(matrices, points_first=adjoint)
    return field.new_empty(prod(kept), field.shape[0], 2 * field.shape[1])


@torch.library.custom_op("sciml_monarch::spectral_synthesis", mutates_args=())
def _synthesis(
    modes: Tensor, matrices: Sequence[Tensor], adjoint: bool, skip: Tensor | None, bias: Tensor | None, gelu: bool
) -> tuple[Tensor, Tensor]:
    if modes.numel() == 0:
        return _synthesis_fake(modes, matrices, adjoint, skip, bias, gelu)
    with torch.autocast(modes.device.type, enabled=False):
        if _takes_kernel(modes, modes.shape[1] * modes.shape[2] // 2, matrices, not adjoint):
            return _synthesis_kernel(modes, matrices, adjoint, skip, bias, gelu)
        cast = [matrix.to(modes.dtype) for matrix in matrices]
        before = products.synthesis(modes, transposed(cast) if adjoint else cast)
        if bias is not None:
            before += bias.to(before.dtype).view(-1, *(1,) * len(matrices))
        if skip is not None:
            before += skip
        return (apply_gelu(before), before) if gelu else (before, modes.new_empty(0))


def _synthesis_kernel(
    modes: Tensor, matrices: Sequence[Tensor], adjoint: bool, skip: Tensor | None, bias: Tensor | None, gelu: bool
) -> tuple[Tensor, Tensor]:
    from sciml_monarch.monarch.kernels import spectral_triton

    leading, last = (matrix.float().contiguous() for matrix in matrices[-2:])
    skip, bias = (None if t is None else t.contiguous() for t in (skip, bias))
    shape = None
    if len(matrices) == 3:
        first = _first(matrices, adjoint).to(modes.dtype)
        n, shape = first.shape[1], (modes.shape[2] // 2, first.shape[1])
        modes = products.first_axis_synthesis(modes, first)
        skip = None if skip is None else skip.flatten(1, 2)
        bias = None if bias is None else bias.repeat_interleave(n)
    out, before = spectral_triton.synthesis(modes.contiguous(), leading, last, adjoint, skip, bias, gelu)
    if shape is not None:
        out = out.unflatten(1, shape)
        before = None if before is None else before.unflatten(1, shape)
    return out, modes.new_empty(0) if before is None else before


@_synthesis.register_fake
def _synthesis_fake(
    modes: Tensor, matrices: Sequence[Tensor], adjoint: bool, skip: Tensor | None, bias: Tensor | None, gelu: bool
) -> tuple[Tensor, Tensor]:
    grid, _ = sizes(matrices, points_first=not adjoint)
    out = modes.new_empty(modes.shape[1], modes.shape[2] // 2, *grid)
    return out, torch.empty_like(out) if gelu else modes.new_empty(0)


@torch.library.custom_op("sciml_monarch::spectral_matrix_gradients", mutates_args=())
def _matrix_gradients(
    field: Tensor, modes: Tensor, matrices: Sequence[Tensor], adjoint: bool, activated: bool
) -> list[Tensor]:
    """Gradients of ``<modes, analysis(field, matrices, adjoint)>``; of ``gelu(field)`` with ``activated``."""
    if field.numel() == 0:
        return [torch.zeros_like(matrix) for matrix in matrices]
    with torch.autocast(field.device.type, enabled=False):
        if len(matrices) == 2 and _takes_kernel(field, field.shape[0] * field.shape[1], matrices, adjoint):
            from sciml_monarch.monarch.kernels import spectral_triton

            wide = [matrix.float() for matrix in matrices]
            leading, last = (matrix.contiguous() for matrix in (transposed(wide) if adjoint else wide))
            if spectral_triton.gradients_fit(field, leading, last):
                found = spectral_triton.matrix_gradients(field.contiguous(), modes, leading, last, activated)
                gradients = transposed(found) if adjoint else list(found)
                return [g.to(matrix.dtype) for g, matrix in zip(gradients, matrices, strict=True)]
        field = apply_gelu(field) if activated else field
        cast = [matrix.to(field.dtype) for matrix in matrices]
        gradients = products.matrix_gradients(field, modes, transposed(cast) if adjoint else cast)
        gradients = transposed(gradients) if adjoint else gradients
        return [g.to(matrix.dtype) for g, matrix in zip(gradients, matrices, strict=True)]


@_matrix_gradients.register_fake
def _matrix_gradients_fake(
    field: Tensor, modes: Tensor, matrices: Sequence[Tensor], adjoint: bool, activated: bool
) -> list[Tensor]:
    return [torch.empty_like(matrix, memory_format=torch.contiguous_format) for matrix in matrices]


def _save_analysis(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    field, matrices, ctx.adjoint, source = inputs
    ctx.activated = source is not None
    ctx.save_for_backward(source if ctx.activated else field, *matrices)


def _analysis_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    kept, *matrices = ctx.saved_tensors
    by_field, by_matrices = None, [None] * len(matrices)
    if ctx.needs_input_grad[0]:
        by_field, _ = _synthesis(gradient.contiguous(), matrices, not ctx.adjoint, None, None, False)
    if _any(ctx.needs_input_grad[1]):
        by_matrices = _matrix_gradients(kept, gradient, matrices, ctx.adjoint, ctx.activated)
    return by_field, by_matrices, None, None


def _save_synthesis(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    modes, matrices, ctx.adjoint, _, bias, ctx.gelu = inputs
    ctx.set_materialize_grads(False)  # the fields before the activation as a rule have no gradient: no zeros for them
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(modes, output[1], *matrices)


def _synthesis_backward(ctx: Any, by_out: Tensor | None, by_before: Tensor | None) -> tuple[Any, ...]:
    modes, before, *matrices = ctx.saved_tensors
    by_modes, by_matrices, by_bias = None, [None] * len(matrices), None
    if by_out is None and by_before is None:
        return None, by_matrices, None, None, None, None
    if ctx.gelu:
        gradient = None if by_out is None else torch.ops.aten.gelu_backward(by_out, before)
        if by_before is not None:
            gradient = by_before if gradient is None else gradient + by_before
    else:
        gradient = by_out
    assert gradient is not None
    if ctx.needs_input_grad[0]:
        by_modes = _analysis(gradient, matrices, not ctx.adjoint, None)
    if _any(ctx.needs_input_grad[1]):
        by_matrices = _matrix_gradients(gradient, modes, matrices, not ctx.adjoint, False)
    if ctx.needs_input_grad[4]:
        by_bias = gradient.sum([0, *range(2, gradient.ndim)]).to(ctx.bias_dtype)
    return by_modes, by_matrices, None, gradient if ctx.needs_input_grad[3] else None, by_bias, None


_analysis.register_autograd(_analysis_backward, setup_context=_save_analysis)
_synthesis.register_autograd(_synthesis_backward, setup_context=_save_synthesis)


def _autocast(x: Tensor) -> Tensor:
    """Casts as autocast does; float64 stays."""
    kind = x.device.type
    wanted = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    return x.to(torch.get_autocast_dtype(kind)) if wanted else x


def _inlined() -> bool:
    """Whether the caller is to see plain torch.

    An exported program runs without this package, and a compiler fuses what it can see; an operator it cannot.
    """
    return torch.compiler.is_compiling() and backend() != "triton"


def _takes_kernel(like: Tensor, n_images: int, matrices: Sequence[Tensor], points_first: bool) -> bool:
    """Whether the Triton kernels run: of two axes, or the last two of three."""
    grid, kept = sizes(matrices, points_first)
    n_numbers = 2 * prod(kept[-2:]) * n_images * (grid[0] if len(grid) == 3 else 1)
    return wants_triton(like, measured_faster=False) and len(grid) > 1 and n_numbers < MAX_KERNEL_NUMBERS


def _first(matrices: Sequence[Tensor], adjoint: bool) -> Tensor:
    """The first axis' matrix, transposed where the matrices are those of the other map."""
    return transposed(matrices)[0] if adjoint else matrices[0]


def _any(needs: bool | Sequence[bool]) -> bool:
    return needs if isinstance(needs, bool) else any(needs)
