"""A Monarch transform along any axis, with its adjoint and its gradients, without a transposed copy of the array.

The operator ``sciml_monarch::transform`` works on real arrays ``(outer, n, inner, planes)``, complex numbers being
pairs: any axis of any array is the second of such a view. On a CPU it goes through a few lines at a time
(:mod:`.transform_blocked`), on a GPU through Triton kernels (:mod:`.transform_kernels_triton`). The reference is
:func:`sciml_monarch.monarch.parts.apply`, which also serves wherever the operator does not: double precision, sizes
that the factors of a transform do not have, second derivatives, forward-mode derivatives, ``torch.func``, exported
programs.
"""

import math

import torch
from torch import Tensor

from sciml_monarch.monarch import parts
from sciml_monarch.monarch.functional import Factors
from sciml_monarch.monarch.kernels import transform_blocked as blocked
from sciml_monarch.monarch.kernels.backend import backend, exporting, transformed, triton_usable, wants_triton
from sciml_monarch.monarch.kernels.transform_configs import measured_faster


def transform(
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    permutation_in: Tensor | None = None,
    permutation_out: Tensor | None = None,
    takes_real: bool = False,
    adjoint: bool = False,
    dim: int = -1,
) -> Tensor:
    """Computes ``T x`` or ``T^H x`` along one axis, ``T = P_out M P_in`` or its real part.

    Args:
        x: Real or complex, ``(..., n, ...)``, in the precision of the factors.
        w1: First factor, real ``(k, q, p)`` or as pairs ``(k, q, p, 2)``.
        w2: Second factor, real ``(l, s, r)`` or as pairs ``(l, s, r, 2)``.
        permutation_in: ``x[permutation_in]`` is what the factors see, ``(k p,)`` int64; ``None``: the natural order.
        permutation_out: ``y = h[permutation_out]`` of the factors' output ``h``, ``(l s,)`` int64; ``None`` likewise.
        takes_real: Whether ``T`` is the real part of the product, which acts on real and imaginary parts separately.
        adjoint: Whether to apply the conjugate transpose.
        dim: The axis of ``n`` points.

    Returns:
        The transform, ``(..., n', ...)``: complex where ``x`` or ``T`` is.

    Raises:
        InputError: The Triton kernels are asked for and cannot run.
    """
    if not _served(x, w1, w2):
        return _reference(x, w1, w2, permutation_in, permutation_out, takes_real, adjoint, dim)
    dim = dim % x.ndim
    outer, inner = math.prod(x.shape[:dim]), math.prod(x.shape[dim + 1 :])
    real_matrix = takes_real or w1.ndim == 3
    pairs = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x.unsqueeze(-1)
    planes = pairs.shape[-1]
    # a real matrix acts on the two numbers of a pair as on neighbouring lines
    lines = (outer, x.shape[dim], inner * planes, 1) if real_matrix else (outer, x.shape[dim], inner, planes)
    place_out = None if permutation_out is None else parts.inverse_permutation(permutation_out)
    y = torch.ops.sciml_monarch.transform(
        pairs.reshape(lines).contiguous(), w1.contiguous(), w2.contiguous(), permutation_in, place_out,
        1 if real_matrix else 2, adjoint,
    )  # fmt: skip
    y = y.reshape(*x.shape[:dim], y.shape[1], *x.shape[dim + 1 :], planes if real_matrix else 2)
    return torch.view_as_complex(y) if y.shape[-1] == 2 else y.squeeze(-1)


def _served(x: Tensor, w1: Tensor, w2: Tensor) -> bool:
    """Whether the operator takes this call, or else the reference."""
    if not torch.compiler.is_compiling():
        wants_triton(x.real if x.is_complex() else x, False)  # where it cannot run, the user is told
    if transformed():
        return False
    k, q = w1.shape[:2]
    # the blocks of the second factor take one entry of each block of the first
    if w1.dtype != torch.float32 or x.dtype not in (torch.float32, torch.complex64) or w2.shape[0] != q:
        return False
    if exporting() or not (x.is_cuda or x.device.type == "cpu"):
        return False
    if backend() == "triton":
        return True
    if x.is_cuda:
        if backend() != "auto" or not measured_faster(x.numel() // (k * w1.shape[2]), k, q):
            return False
        # a compiler cannot trace what asks the device; the operator asks again when it runs
        return torch.compiler.is_compiling() or triton_usable(x.real if x.is_complex() else x)
    return min(k, q) > 1  # one dense block is one product already


def _reference(
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    permutation_in: Tensor | None,
    permutation_out: Tensor | None,
    takes_real: bool,
    adjoint: bool,
    dim: int,
) -> Tensor:
    factors = Factors(*(torch.view_as_complex(w) if w.ndim == 4 else w for w in (w1, w2)))
    of_transform = parts.Parts(permutation_in, factors, permutation_out, takes_real)
    apply = parts.apply_adjoint if adjoint else parts.apply
    return apply(of_transform, x.movedim(dim, -1)).movedim(-1, dim)


@torch.library.custom_op("sciml_monarch::transform", mutates_args=())
def _transform(
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    place_in: Tensor | None,
    place_out: Tensor | None,
    out_planes: int,
    adjoint: bool,
) -> Tensor:
    if _runs_triton(x):
        from sciml_monarch.monarch.kernels import transform_triton

        return transform_triton.apply(x, w1, w2, place_in, place_out, out_planes, adjoint)
    return blocked.apply(x, w1, w2, place_in, place_out, out_planes, adjoint)


@_transform.register_fake
def _(
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    place_in: Tensor | None,
    place_out: Tensor | None,
    out_planes: int,
    adjoint: bool,
) -> Tensor:
    n = w1.shape[0] * w1.shape[2] if adjoint else w2.shape[0] * w2.shape[1]
    return x.new_empty(x.shape[0], n, x.shape[2], out_planes)


@torch.library.custom_op("sciml_monarch::transform_gradients", mutates_args=())
def _transform_gradients(
    x: Tensor,
    gradient: Tensor,
    w1: Tensor,
    w2: Tensor,
    place_in: Tensor | None,
    place_out: Tensor | None,
    adjoint: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``x``, ``w1`` and ``w2``; with the adjoint ``x`` and ``gradient`` change places at the factors."""
    u, v = (gradient, x) if adjoint else (x, gradient)
    if not _runs_triton(x):
        return blocked.gradients(u, v, w1, w2, place_in, place_out, adjoint)
    from sciml_monarch.monarch.kernels import transform_triton as kernels

    planes = x.shape[3]
    if adjoint:
        of_x, h = kernels.apply_keeping(u, w1, w2, place_in, place_out, planes, False)
        g = kernels.first_factor(v, w1, w2, place_in, place_out, True)
    else:
        of_x, g = kernels.apply_keeping(v, w1, w2, place_in, place_out, planes, True)
        h = kernels.first_factor(u, w1, w2, place_in, place_out, False)
    return of_x, *kernels.gradients(u, h, v, g, w1, w2, place_in, place_out)


@_transform_gradients.register_fake
def _(
    x: Tensor,
    gradient: Tensor,
    w1: Tensor,
    w2: Tensor,
    place_in: Tensor | None,
    place_out: Tensor | None,
    adjoint: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(w1), torch.empty_like(w2)


def _setup(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    x, w1, w2, place_in, place_out, out_planes, adjoint = inputs
    ctx.save_for_backward(x, w1, w2, place_in, place_out)
    ctx.out_planes, ctx.adjoint = out_planes, adjoint  # type: ignore[attr-defined]


def _backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, w1, w2, place_in, place_out = ctx.saved_tensors  # type: ignore[attr-defined]
    out_planes, adjoint = ctx.out_planes, ctx.adjoint  # type: ignore[attr-defined]
    needs = ctx.needs_input_grad[:3]  # type: ignore[attr-defined]
    if torch.is_grad_enabled():  # of a gradient that is to be differentiated again
        # by views: derivatives by the factors themselves would go through an input that depends on them, too
        x, w1, w2 = (t.view_as(t) for t in (x, w1, w2))
        y = _reference_of_lines(x, w1, w2, place_in, place_out, out_planes, adjoint)
        wanted = [v for v, need in zip((x, w1, w2), needs, strict=True) if need]
        found = iter(torch.autograd.grad(y, wanted, gradient, create_graph=True))
        return (*(next(found) if need else None for need in needs), None, None, None, None)
    gradient = gradient.contiguous()
    if needs[1] or needs[2]:
        of_x, of_w1, of_w2 = torch.ops.sciml_monarch.transform_gradients(
            x, gradient, w1, w2, place_in, place_out, adjoint
        )
        return of_x, of_w1, of_w2, None, None, None, None
    of_x = torch.ops.sciml_monarch.transform(gradient, w1, w2, place_in, place_out, x.shape[3], not adjoint)
    return of_x, None, None, None, None, None, None


_transform.register_autograd(_backward, setup_context=_setup)


def _reference_of_lines(
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    place_in: Tensor | None,
    place_out: Tensor | None,
    out_planes: int,
    adjoint: bool,
) -> Tensor:
    """What ``sciml_monarch::transform`` computes, from operations that can be differentiated again."""
    lines = torch.view_as_complex(x) if x.shape[3] == 2 else x.squeeze(-1)
    permutation_out = None if place_out is None else parts.inverse_permutation(place_out)
    takes_real = w1.ndim == 4 and out_planes == 1
    if takes_real and lines.is_complex():  # the gradient of a real input of a complex transform
        y = _reference(lines, w1, w2, place_in, permutation_out, False, adjoint, 1).real
    else:
        y = _reference(lines, w1, w2, place_in, permutation_out, takes_real, adjoint, 1)
    return torch.view_as_real(y) if out_planes == 2 else y.unsqueeze(-1)


def _runs_triton(x: Tensor) -> bool:
    """Whether the kernels run; on a CPU, in Triton's interpreter, only if they are asked for."""
    return triton_usable(x) and (x.is_cuda or backend() == "triton")
