"""The Monarch linear layer, ``y = M x + bias``: public operation, plain torch beside the Triton kernels."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sciml_monarch.errors import InputError
from sciml_monarch.monarch.functional import Factors, multiply
from sciml_monarch.monarch.kernels.backend import autocast, backend, is_replayed, transformed, wants_triton
from sciml_monarch.monarch.kernels.linear_configs import Plan, Sizes
from sciml_monarch.monarch.kernels.linear_plans import choose, dense_pays, measured_faster


def monarch_linear(
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    bias: Tensor | None = None,
    out_features: int | None = None,
    plan: Plan | None = None,
) -> Tensor:
    """Computes ``M x + bias`` for the real Monarch matrix ``M`` of the factors, cut to the sizes of input and output.

    Inputs with fewer entries than ``M`` has columns count as padded with zeros; outputs are the first
    ``out_features`` of the rows. Neither costs a copy in the kernels. Under autocast all is cast as in
    ``torch.nn.functional.linear``.

    Args:
        x: Inputs, ``(..., n_in)`` with ``n_in <= k * p``.
        w1: First factor, ``(k, q, p)``.
        w2: Second factor, ``(l, s, r)`` with ``l * r == k * q``.
        bias: ``(out_features,)`` or ``None``.
        out_features: Entries of an output, at most ``s * l``; ``None``: all.
        plan: Tile sizes of the kernels; ``None``: chosen by shape. Plain torch ignores it.

    Returns:
        Outputs, ``(..., out_features)``, contiguous unless the output is cut.

    Raises:
        InputError: If the shapes do not fit each other (not checked while compiling), or the Triton kernel was asked
            for and cannot run.
    """
    n_out = w2.shape[0] * w2.shape[1] if out_features is None else out_features
    if not torch.compiler.is_compiling():
        _check(x, w1, w2, bias, n_out)
    if x.dtype != torch.float64:
        x, w1, w2 = (autocast(t) for t in (x, w1, w2))
    bias = None if bias is None else bias.to(x.dtype)
    if not _takes_kernel(x, w1, w2, n_out):
        plain = _multiplied_out if _pays_dense(x, w1, w2, n_out) else _plain
        return plain(x, w1, w2, bias, n_out)
    packed = [] if plan is None else plan.pack()
    rows = x.reshape(-1, x.shape[-1])
    if torch.compiler.is_compiling():
        y, _ = _op(rows, w1, w2, bias, n_out, packed)
    else:
        y = _Layer.apply(rows, w1, w2, bias, n_out, packed)
    return y.reshape(*x.shape[:-1], n_out)


def reference(x: Tensor, w1: Tensor, w2: Tensor, bias: Tensor | None, n_out: int) -> Tensor:
    """The definition, slow: what the operation and its kernels are tested against.

    Args:
        x: Inputs, ``(..., n_in)``.
        w1: First factor, ``(k, q, p)``.
        w2: Second factor, ``(l, s, r)``.
        bias: ``(n_out,)`` or ``None``.
        n_out: Entries of an output.

    Returns:
        Outputs, ``(..., n_out)``.
    """
    y = multiply(Factors(w1, w2), _padded(x, w1))[..., :n_out]
    return y if bias is None else y + bias


def _plain(x: Tensor, w1: Tensor, w2: Tensor, bias: Tensor | None, n_out: int) -> Tensor:
    """Two batched products of torch whose operands are views: only the output is brought into another order."""
    k, _, p = w1.shape
    l, s, r = w2.shape
    tokens = _padded(x, w1).reshape(-1, k, p)
    if not torch.compiler.is_compiling() and not x.is_cuda and tokens.shape[0] < 8:
        # blocks times a few columns are slow on a CPU, rows times blocks are not; the copy is as small as the rows
        h = torch.bmm(tokens.transpose(0, 1), w1.mT).transpose(0, 1).reshape(-1, r, l).permute(2, 0, 1)
    else:
        # tokens last: the regrouping is a view
        h = torch.bmm(w1, tokens.permute(1, 2, 0)).view(r, l, tokens.shape[0]).permute(1, 2, 0)
    y = torch.bmm(h, w2.mT)  # (l, tokens, s)
    y = y.permute(1, 2, 0).reshape(*x.shape[:-1], s * l)[..., :n_out]
    return y if bias is None else y + bias


def _multiplied_out(x: Tensor, w1: Tensor, w2: Tensor, bias: Tensor | None, n_out: int) -> Tensor:
    """One dense product: for so many tokens that the small products that make its matrix do not count."""
    matrix = _plain(torch.eye(x.shape[-1], dtype=x.dtype, device=x.device), w1, w2, None, n_out)
    return nn.functional.linear(x, matrix.mT, bias)


def _padded(x: Tensor, w1: Tensor) -> Tensor:
    padding = w1.shape[0] * w1.shape[2] - x.shape[-1]
    return nn.functional.pad(x, (0, padding)) if padding else x


def _check(x: Tensor, w1: Tensor, w2: Tensor, bias: Tensor | None, n_out: int) -> None:
    if w1.ndim != 3 or w2.ndim != 3 or w1.shape[0] * w1.shape[1] != w2.shape[0] * w2.shape[2]:
        raise InputError(
            f"the factors must be (k, q, p) and (l, s, r) with k * q == l * r, "
            f"but are {tuple(w1.shape)} and {tuple(w2.shape)}"
        )
    n_in, n_rows = w1.shape[0] * w1.shape[2], w2.shape[0] * w2.shape[1]
    if x.ndim < 1 or x.shape[-1] > n_in:
        raise InputError(f"the last axis of an input of shape {tuple(x.shape)} must have at most {n_in} entries")
    if not 1 <= n_out <= n_rows:
        raise InputError(f"out_features = {n_out} is outside 1..{n_rows}, the rows of the matrix")
    if bias is not None and bias.shape != (n_out,):
        raise InputError(f"the bias of {n_out} outputs must have the shape {(n_out,)}, but has {tuple(bias.shape)}")


def _sizes(n_in: int, w1: Tensor, w2: Tensor, n_out: int) -> Sizes:
    k, q, p = w1.shape
    l, s, r = w2.shape
    return Sizes(k, q, p, l, s, r, n_in, n_out)


def _takes_kernel(x: Tensor, w1: Tensor, w2: Tensor, n_out: int) -> bool:
    if transformed():
        return False
    if backend() != "auto":
        return backend() == "triton"
    if not x.is_cuda:
        return False
    n_tokens = x.numel() // x.shape[-1]
    faster = measured_faster(_sizes(x.shape[-1], w1, w2, n_out), n_tokens, x.dtype.itemsize, is_replayed())
    return wants_triton(x, faster)


def _pays_dense(x: Tensor, w1: Tensor, w2: Tensor, n_out: int) -> bool:
    if backend() != "auto" or not x.is_cuda or transformed():
        return False
    sizes, n_tokens = _sizes(x.shape[-1], w1, w2, n_out), x.numel() // x.shape[-1]
    return dense_pays(sizes, n_tokens, x.dtype.itemsize, is_replayed())


def _computed(
    x: Tensor, w1: Tensor, w2: Tensor, bias: Tensor | None, n_out: int, plan: list[int]
) -> tuple[Tensor, Tensor]:
    """``(tokens, n_in)`` to the outputs ``(tokens, n_out)`` and the inner vectors in the plan's order."""
    sizes, chosen = _plan(x, w1, w2, n_out, plan)
    if x.shape[0] == 0:
        return x.new_empty(0, n_out), x.new_empty(0, sizes.l * sizes.r)
    if not wants_triton(x, True):
        h = torch.einsum("kqp,tkp->tkq", w1, _padded(x, w1).unflatten(1, (sizes.k, sizes.p))).flatten(1)
        h = h.unflatten(1, (sizes.r, sizes.l))
        y = torch.einsum("lsr,trl->tsl", w2, h).flatten(1)[:, :n_out]
        y = y.clone(memory_format=torch.contiguous_format) if bias is None else y + bias
        return y, (h.mT if chosen.regrouped else h).flatten(1).clone()
    from sciml_monarch.monarch.kernels.linear_triton import forward

    return forward(_rows(x), w1.contiguous(), w2.contiguous(), _contiguous(bias), sizes, chosen)


_op = torch.library.custom_op("sciml_monarch::monarch_linear", mutates_args=())(_computed)


@_op.register_fake
def _(x: Tensor, w1: Tensor, w2: Tensor, bias: Tensor | None, n_out: int, plan: list[int]) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], n_out), x.new_empty(x.shape[0], w2.shape[0] * w2.shape[2])


def _gradients(
    dy: Tensor, x: Tensor, h: Tensor, w1: Tensor, w2: Tensor, plan: list[int], needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of ``x``, ``w1``, ``w2`` and the bias; empty where not wanted."""
    n_out = dy.shape[1]
    sizes, chosen = _plan(x, w1, w2, n_out, plan)
    shapes = (x.shape, w1.shape, w2.shape, (n_out,))
    if x.shape[0] == 0:
        dx, dw1, dw2, dbias = (
            x.new_zeros(shape) if wanted else None for shape, wanted in zip(shapes, needs, strict=True)
        )
    elif wants_triton(x, True):
        from sciml_monarch.monarch.kernels.linear_gradients_triton import backward

        dx, dw1, dw2, dbias = backward(
            _rows(dy), _rows(x), h.contiguous(), w1.contiguous(), w2.contiguous(), sizes, chosen, needs
        )
    else:
        # as the kernels keep the inner vector; its own order is (r, l)
        inner = h.unflatten(1, (sizes.l, sizes.r)).mT if chosen.regrouped else h.unflatten(1, (sizes.r, sizes.l))
        wide = nn.functional.pad(dy, (0, sizes.s * sizes.l - n_out)).unflatten(1, (sizes.s, sizes.l))
        dh = torch.einsum("lsr,tsl->trl", w2, wide).flatten(1).unflatten(1, (sizes.k, sizes.q))
        dx = torch.einsum("kqp,tkq->tkp", w1, dh).flatten(1)[:, : sizes.n_in]
        dw1 = torch.einsum("tkq,tkp->kqp", dh, _padded(x, w1).unflatten(1, (sizes.k, sizes.p)))
        dw2 = torch.einsum("tsl,trl->lsr", wide, inner)
        dbias = dy.sum(0)
        dx, dw1, dw2, dbias = (
            grad.contiguous() if wanted else None for grad, wanted in zip((dx, dw1, dw2, dbias), needs, strict=True)
        )
    nothing = [x.new_empty(0) if grad is None else grad for grad in (dx, dw1, dw2, dbias)]
    return nothing[0], nothing[1], nothing[2], nothing[3]


_backward_op = torch.library.custom_op("sciml_monarch::monarch_linear_backward", mutates_args=())(_gradients)


@_backward_op.register_fake
def _(
    dy: Tensor, x: Tensor, h: Tensor, w1: Tensor, w2: Tensor, plan: list[int], needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shapes = (tuple(x.shape), tuple(w1.shape), tuple(w2.shape), (dy.shape[1],))
    dx, dw1, dw2, dbias = (x.new_empty(shape if wanted else (0,)) for shape, wanted in zip(shapes, needs, strict=True))
    return dx, dw1, dw2, dbias


def _setup_context(
    ctx: Any,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor | None, int, list[int]],
    output: tuple[Tensor, Tensor],
) -> None:
    x, w1, w2, _, _, plan = inputs
    ctx.save_for_backward(x, output[1], w1, w2)
    ctx.plan = plan


def _backward(
    ctx: Any, dy: Tensor, dh: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, None, None]:
    x, h, w1, w2 = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:4])
    grads = _backward_op(dy, x, h, w1, w2, ctx.plan, needs)
    dx, dw1, dw2, dbias = (grad if wanted else None for grad, wanted in zip(grads, needs, strict=True))
    return dx, dw1, dw2, dbias, None, None


_op.register_autograd(_backward, setup_context=_setup_context)


class _Layer(torch.autograd.Function):
    """The operator for eager mode, where one of :mod:`torch.library` takes longer to begin than its kernels."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w1: Tensor, w2: Tensor, bias: Tensor | None, n_out: int, plan: list[int]
    ) -> Tensor:
        y, h = _computed(x, w1, w2, bias, n_out, plan)
        ctx.save_for_backward(x, h, w1, w2)
        ctx.plan = plan
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, h, w1, w2 = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[:4])
        grads = _gradients(dy, x, h, w1, w2, ctx.plan, needs)
        return *(grad if wanted else None for grad, wanted in zip(grads, needs, strict=True)), None, None


def _plan(x: Tensor, w1: Tensor, w2: Tensor, n_out: int, plan: list[int]) -> tuple[Sizes, Plan]:
    sizes = _sizes(x.shape[1], w1, w2, n_out)
    return sizes, Plan.unpack(plan) if plan else choose(sizes, x.shape[0], x.dtype.itemsize)


def _rows(x: Tensor) -> Tensor:
    """Rows that are contiguous, at any positive distance from each other."""
    return x if x.stride(1) == 1 and x.stride(0) >= x.shape[1] else x.contiguous()


def _contiguous(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.contiguous()
