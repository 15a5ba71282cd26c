"""Operators of the truncated spectral transforms with their gradients, for compilers, and the same for eager mode.

Each map is the other's transpose for suitable matrices: the gradient of either is the other. Matrices and values are
those of :mod:`~sciml_monarch.monarch.kernels.spectral`.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu as apply_gelu

from sciml_monarch.monarch.kernels import spectral_products as products
from sciml_monarch.monarch.kernels.backend import wants_triton, without_autocast
from sciml_monarch.monarch.kernels.spectral_layout import sizes


def _analysed(field: Tensor, matrices: Sequence[Tensor], adjoint: bool, source: Tensor | None, asked: bool) -> Tensor:
    """``asked``, here and below: whether kernels were asked for, of the call whose backward pass this may be."""
    if field.numel() == 0:
        return _analysis_fake(field, matrices, adjoint, source, asked)
    with without_autocast(field):
        cast = [matrix.to(field.dtype) for matrix in matrices]
        return products.analysis(field, cast, _by(field, asked), adjoint)


_analysis = torch.library.custom_op("sciml_monarch::spectral_analysis", mutates_args=())(_analysed)


@_analysis.register_fake
def _analysis_fake(
    field: Tensor, matrices: Sequence[Tensor], adjoint: bool, source: Tensor | None, asked: bool
) -> Tensor:
    _, kept = sizes(matrices, points_first=adjoint)
    return field.new_empty(prod(kept), field.shape[0], 2, field.shape[1]).transpose(1, 2)


def _synthesised(
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
    with without_autocast(modes):
        cast = [matrix.to(modes.dtype) for matrix in matrices]
        if wants_triton(modes, measured_faster=asked):
            from sciml_monarch.monarch.kernels import spectral_triton

            out, kept = spectral_triton.synthesis(modes, cast, adjoint, skip, bias, gelu, spectral_triton.products())
        else:
            out, kept = plain_synthesis(modes, cast, adjoint, skip, bias, gelu)
        return out, modes.new_empty(0) if kept is None else kept


def plain_synthesis(
    modes: Tensor, matrices: Sequence[Tensor], adjoint: bool, skip: Tensor | None, bias: Tensor | None, gelu: bool
) -> tuple[Tensor, Tensor | None]:
    """Plain torch, in place where it can be: not to be differentiated."""
    out = products.synthesis(modes, matrices, adjoint=adjoint)
    if bias is not None:
        out += bias.to(out.dtype).view(-1, *(1,) * len(matrices))
    if skip is not None:
        out += skip
    return (apply_gelu(out), out) if gelu else (out, None)


_synthesis = torch.library.custom_op("sciml_monarch::spectral_synthesis", mutates_args=())(_synthesised)


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


def _found_gradients(
    field: Tensor,
    modes: Tensor,
    matrices: Sequence[Tensor],
    adjoint: bool,
    activated: bool,
    of_field: bool,
    of_modes: bool,
    asked: bool,
) -> list[Tensor]:
    """Gradients of ``<modes, analysis(field, matrices, adjoint)>``; of ``gelu(field)`` with ``activated``.

    With respect to field and modes, empty where they are not asked for, and to the matrices.
    """
    if field.numel() == 0:
        found = _gradients_fake(field, modes, matrices, adjoint, activated, of_field, of_modes, asked)
        return [gradient.zero_() for gradient in found]
    with without_autocast(field):
        by = _by(field, asked)
        found = _gradients_of_all(field, modes, matrices, adjoint, activated, by, of_field, of_modes)
        both = [modes.new_empty(0) if gradient is None else gradient for gradient in (found.field, found.modes)]
        return [*both, *found.matrices]


def _gradients_of_all(
    field: Tensor,
    modes: Tensor,
    matrices: Sequence[Tensor],
    adjoint: bool,
    activated: bool,
    by: products.ThinProducts = products.TORCH,
    of_field: bool = False,
    of_modes: bool = False,
) -> products.Gradients:
    field = apply_gelu(field) if activated else field
    cast = [matrix.to(field.dtype) for matrix in matrices]
    found = products.gradients(field, modes, cast, by, adjoint, of_field, of_modes)
    return found._replace(matrices=[g.to(m.dtype) for g, m in zip(found.matrices, matrices, strict=True)])


_gradients = torch.library.custom_op("sciml_monarch::spectral_gradients", mutates_args=())(_found_gradients)


@_gradients.register_fake
def _gradients_fake(
    field: Tensor,
    modes: Tensor,
    matrices: Sequence[Tensor],
    adjoint: bool,
    activated: bool,
    of_field: bool,
    of_modes: bool,
    asked: bool,
) -> list[Tensor]:
    transposed = [m.mT if adjoint else m for m in matrices]
    empty = [torch.empty_like(m, memory_format=torch.contiguous_format) for m in transposed]
    return [
        field.new_empty(field.shape if of_field else 0),
        _analysis_fake(field, matrices, adjoint, None, asked) if of_modes else modes.new_empty(0),
        *(m.mT if adjoint else m for m in empty),
    ]


class Operations(NamedTuple):
    """Forms of the operations: operators for compilers, and what takes less time to begin."""

    analysis: Callable[..., Tensor]
    synthesis: Callable[..., tuple[Tensor, Tensor]]
    gradients: Callable[..., list[Tensor]]


def _save_analysis(ctx: Any, inputs: tuple[Any, ...], output: Tensor | None = None) -> None:
    field, matrices, ctx.adjoint, source, ctx.asked = inputs
    ctx.activated = source is not None
    learned = any(matrix.requires_grad for matrix in matrices)  # else nothing in the backward pass needs the field
    ctx.save_for_backward((source if ctx.activated else field) if learned else None, *matrices)


def _by_analysis(ctx: Any, gradient: Tensor, of_field: bool, of_matrices: bool, by: Operations) -> tuple[Any, ...]:
    kept, *matrices = ctx.saved_tensors
    by_field: Tensor | None = None
    if of_matrices and not torch.is_grad_enabled():
        by_field, _, *by_matrices = by.gradients(
            kept, gradient, matrices, ctx.adjoint, ctx.activated, of_field, False, ctx.asked
        )
        return by_field if of_field else None, by_matrices
    if of_field:
        by_field, _ = by.synthesis(gradient, matrices, not ctx.adjoint, None, None, False, ctx.asked)
    by_all = _nothing(matrices)
    if of_matrices:
        by_all = _differentiably(kept, gradient, matrices, ctx.adjoint, ctx.activated)
    return by_field, by_all


def _analysis_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    of_field, of_matrices, *_ = ctx.needs_input_grad
    return *_by_analysis(ctx, gradient, of_field, _any(of_matrices), OPERATORS), None, None, None


def _save_synthesis(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    modes, matrices, ctx.adjoint, _, bias, ctx.gelu, ctx.asked = inputs
    ctx.set_materialize_grads(False)  # the fields before the activation as a rule have no gradient: no zeros for them
    ctx.bias_dtype = None if bias is None else bias.dtype
    learned = any(matrix.requires_grad for matrix in matrices)
    ctx.save_for_backward(modes if learned else None, output[1] if ctx.gelu else None, *matrices)


def _by_synthesis(
    ctx: Any,
    by_out: Tensor | None,
    by_before: Tensor | None,
    of_modes: bool,
    of_matrices: bool,
    of_bias: bool,
    by: Operations,
) -> tuple[Any, ...]:
    """By modes, matrices, skip connection and bias."""
    modes, before, *matrices = ctx.saved_tensors
    by_modes, by_matrices, by_bias = None, _nothing(matrices), None
    if by_out is None and by_before is None:
        return None, by_matrices, None, None
    if ctx.gelu:
        gradient = None if by_out is None else torch.ops.aten.gelu_backward(by_out, before)
        if by_before is not None:
            gradient = by_before if gradient is None else gradient + by_before
    else:
        gradient = by_out
    assert gradient is not None
    if of_matrices and not torch.is_grad_enabled():
        _, by_modes, *by_matrices = by.gradients(
            gradient, modes, matrices, not ctx.adjoint, False, False, of_modes, ctx.asked
        )
        by_modes = by_modes if of_modes else None
    else:
        if of_modes:
            by_modes = by.analysis(gradient, matrices, not ctx.adjoint, None, ctx.asked)
        if of_matrices:
            by_matrices = _differentiably(gradient, modes, matrices, not ctx.adjoint, False)
    if of_bias:
        wide = torch.promote_types(gradient.dtype, torch.float32)  # half precision would overflow
        # points first: a GPU sums what lies in a row at the rate at which it reads, samples and points at once at half
        by_bias = gradient.flatten(2).sum(2, dtype=wide).sum(0).to(ctx.bias_dtype)
    return by_modes, by_matrices, gradient, by_bias


def _synthesis_backward(ctx: Any, by_out: Tensor | None, by_before: Tensor | None) -> tuple[Any, ...]:
    of_modes, of_matrices, _, of_skip, of_bias, *_ = ctx.needs_input_grad
    by_modes, by_matrices, by_skip, by_bias = _by_synthesis(
        ctx, by_out, by_before, of_modes, _any(of_matrices), of_bias, OPERATORS
    )
    return by_modes, by_matrices, None, by_skip if of_skip else None, by_bias, None, None


def _differentiably(
    field: Tensor, modes: Tensor, matrices: Sequence[Tensor], adjoint: bool, activated: bool
) -> list[Tensor]:
    """Gradients of the matrices that can be differentiated again."""
    with without_autocast(field):
        return _gradients_of_all(field, modes, matrices, adjoint, activated).matrices


_analysis.register_autograd(_analysis_backward, setup_context=_save_analysis)
_synthesis.register_autograd(_synthesis_backward, setup_context=_save_synthesis)


class _Analysis(torch.autograd.Function):
    """What ``_analysis`` is to a compiler, for eager mode: an operator takes longer to begin than small fields take."""

    @staticmethod
    def forward(
        ctx: Any, field: Tensor, adjoint: bool, source: Tensor | None, asked: bool, *matrices: Tensor
    ) -> Tensor:
        _save_analysis(ctx, (field, matrices, adjoint, source, asked))
        return _analysed(field, matrices, adjoint, source, asked)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        of_field, _, _, _, *of_matrices = ctx.needs_input_grad
        by_field, by_matrices = _by_analysis(ctx, gradient, of_field, any(of_matrices), EAGER)
        return by_field, None, None, None, *by_matrices


class _Synthesis(torch.autograd.Function):
    """The same of ``_synthesis``."""

    @staticmethod
    def forward(
        ctx: Any,
        modes: Tensor,
        adjoint: bool,
        skip: Tensor | None,
        bias: Tensor | None,
        gelu: bool,
        asked: bool,
        *matrices: Tensor,
    ) -> tuple[Tensor, Tensor]:
        output = _synthesised(modes, matrices, adjoint, skip, bias, gelu, asked)
        _save_synthesis(ctx, (modes, matrices, adjoint, skip, bias, gelu, asked), output)
        return output

    @staticmethod
    def backward(ctx: Any, by_out: Tensor | None, by_before: Tensor | None) -> tuple[Any, ...]:
        of_modes, _, of_skip, of_bias, _, _, *of_matrices = ctx.needs_input_grad
        by_modes, by_matrices, by_skip, by_bias = _by_synthesis(
            ctx, by_out, by_before, of_modes, any(of_matrices), of_bias, EAGER
        )
        return by_modes, None, by_skip if of_skip else None, by_bias, None, None, *by_matrices


OPERATORS = Operations(_analysis, _synthesis, _gradients)
EAGER = Operations(
    lambda field, matrices, *others: _Analysis.apply(field, *others, *matrices),
    lambda modes, matrices, *others: _Synthesis.apply(modes, *others, *matrices),
    _found_gradients,
)


def operations() -> Operations:
    """Those for whoever calls: a compiler or Python."""
    return OPERATORS if torch.compiler.is_compiling() else EAGER


def _by(like: Tensor, asked: bool) -> products.ThinProducts:
    """Kernels, or plain torch; an ask for kernels outlives its block, for the backward pass, unless overridden."""
    if not wants_triton(like, measured_faster=asked):
        return products.AT_ONCE
    from sciml_monarch.monarch.kernels import spectral_triton

    return spectral_triton.products()


def _nothing(matrices: Sequence[Tensor]) -> Sequence[Tensor | None]:
    return [None] * len(matrices)


def _any(needs: bool | Sequence[bool]) -> bool:
    return needs if isinstance(needs, bool) else any(needs)
