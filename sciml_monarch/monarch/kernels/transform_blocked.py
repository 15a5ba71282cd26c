"""A Monarch transform along one axis in plain torch, a few lines at a time, so that they stay in a CPU's cache.

Each factor is one batched matrix product over columns of ``(n, lines)``: an array ``(..., n, lines)`` is used where it
lies, lines along the last axis are transposed a few at a time. The permutation of a Fourier transform is a stride.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

N_LINES = 320  # of a block; with n = 320 its three arrays take 2.5 MB
SHORTEST_RUN = 32  # lines beside each other in memory from which they are used where they lie


class Side(NamedTuple):
    """Which rows of ``(n, lines)`` are entries of which block: row ``place[i]``, ``i`` counting (outer, inner)."""

    n_outer: int
    n_inner: int
    swapped: bool  # whether i counts (entry, block) instead of (block, entry)
    place: Tensor | None

    def view(self, rows: Tensor) -> Tensor:
        """Rows ``(n, lines)`` as ``(block, entry, lines)``; a copy if they are permuted."""
        if self.place is not None:
            rows = rows.index_select(0, self.place)
        blocks = rows.unflatten(0, (self.n_outer, self.n_inner))
        return blocks.transpose(0, 1) if self.swapped else blocks

    def write(self, rows: Tensor, w: Tensor, h: Tensor) -> None:
        """Computes ``rows[...] = w h``, of which a real target takes the real part."""
        if self.place is None and rows.dtype == h.dtype:
            torch.bmm(w, h, out=self.view(rows))
            return
        product = torch.bmm(w, h)
        product = product if rows.is_complex() or not product.is_complex() else product.real
        if self.place is None:
            self.view(rows).copy_(product)
        else:
            product = product.transpose(0, 1) if self.swapped else product
            rows.index_copy_(0, self.place, product.reshape(rows.shape))


def sides(w1: Tensor, w2: Tensor, place_in: Tensor | None, place_out: Tensor | None) -> tuple[Side, Side]:
    """The input and the output side of factors ``(k, q, p)`` and ``(q, s, k)``."""
    k, q, p = w1.shape[:3]
    s = w2.shape[1]
    before = Side(k, p, False, place_in)
    # not asked of a GPU, whose answer would have to be waited for
    if (
        place_in is not None
        and place_in.device.type == "cpu"
        and torch.equal(place_in.view(k, p), torch.arange(k * p).view(p, k).T)
    ):
        before = Side(p, k, True, None)  # a Fourier transform: block k takes every k-th point
    return before, Side(s, q, True, place_out)


def apply(
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    place_in: Tensor | None,
    place_out: Tensor | None,
    out_planes: int,
    adjoint: bool,
) -> Tensor:
    """Applies both factors, or the adjoint.

    Args:
        x: Contiguous lines, ``(outer, n, inner, planes)``; one plane is real, two are pairs.
        w1: ``(k, q, p)`` or as pairs ``(k, q, p, 2)``.
        w2: ``(q, s, k)`` or as pairs.
        place_in: Where the factors' input ``i`` lies on a line of the input side, ``(k * p,)``; ``None``: at ``i``.
        place_out: Where the factors' output ``i`` lies on the output side, ``(s * q,)``; ``None``: at ``i``.
        out_planes: Planes of the result, of which one takes the real part.
        adjoint: Whether to apply the conjugate transpose.

    Returns:
        ``(outer, n', inner, out_planes)``.
    """
    before, after = sides(w1, w2, place_in, place_out)
    first, second = _numbers(w1), _numbers(w2)
    if adjoint:
        before, after = after, before
        first, second = second.mH.contiguous(), first.mH.contiguous()
    n_out = second.shape[0] * second.shape[1]
    y = x.new_empty(x.shape[0], n_out, x.shape[2], out_planes)
    dtype = torch.promote_types(first.dtype, _lines(x).dtype)
    for source, target in _blocks((_lines(x),), (_lines(y),)):
        h = torch.bmm(first.to(dtype), before.view(source[0]).to(dtype))
        after.write(target[0], second.to(dtype), h.transpose(0, 1))
    return y


def gradients(
    u: Tensor,
    v: Tensor,
    w1: Tensor,
    w2: Tensor,
    place_in: Tensor | None,
    place_out: Tensor | None,
    adjoint: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``apply``, where ``u`` lies on the input side of the factors and ``v`` on their output side.

    Args:
        u: The lines that went in, or for the adjoint the gradient of what came out.
        v: The gradient of what came out, or for the adjoint the lines that went in.
        w1: As in :func:`apply`.
        w2: As in :func:`apply`.
        place_in: As in :func:`apply`.
        place_out: As in :func:`apply`.
        adjoint: Whether the adjoint was applied.

    Returns:
        Gradients of the lines that went in, of ``w1`` and of ``w2``.
    """
    before, after = sides(w1, w2, place_in, place_out)
    first, second = _numbers(w1), _numbers(w2)
    first_adjoint, second_adjoint = first.mH.contiguous(), second.mH.contiguous()
    of_first, of_second = torch.zeros_like(first), torch.zeros_like(second)
    x = v if adjoint else u
    of_x = x.new_empty(x.shape)
    dtype = torch.promote_types(first.dtype, torch.promote_types(_lines(u).dtype, _lines(v).dtype))
    first, second, first_adjoint, second_adjoint = (w.to(dtype) for w in (first, second, first_adjoint, second_adjoint))
    for source, target in _blocks((_lines(u), _lines(v)), (_lines(of_x),)):
        a, b = before.view(source[0]).to(dtype), after.view(source[1]).to(dtype)  # (k, p, lines), (q, s, lines)
        h = torch.bmm(first, a).transpose(0, 1)  # (q, k, lines)
        g = torch.bmm(second_adjoint, b).transpose(0, 1)  # (k, q, lines)
        _add(of_first, torch.bmm(g, a.mH))
        _add(of_second, torch.bmm(b, h.mH))
        if adjoint:
            after.write(target[0], second, h)
        else:
            before.write(target[0], first_adjoint, g)
    return of_x, _real(of_first), _real(of_second)


def _add(total: Tensor, product: Tensor) -> None:
    total += product if total.is_complex() else product.real


def _numbers(w: Tensor) -> Tensor:
    """A factor ``(k, q, p)`` or ``(k, q, p, 2)`` as real or complex numbers ``(k, q, p)``."""
    return torch.view_as_complex(w) if w.ndim == 4 else w


def _real(w: Tensor) -> Tensor:
    return torch.view_as_real(w) if w.is_complex() else w


def _lines(x: Tensor) -> Tensor:
    return torch.view_as_complex(x) if x.shape[3] == 2 else x[..., 0]


def _blocks(sources: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Cuts arrays ``(outer, n, inner)`` into blocks of lines ``(n, lines)``; what is written to targets is kept."""
    n_outer, _, n_inner = sources[0].shape
    if n_inner >= SHORTEST_RUN:
        for outer in range(n_outer):
            for i in range(0, n_inner, N_LINES):
                yield [x[outer, :, i : i + N_LINES] for x in sources], [y[outer, :, i : i + N_LINES] for y in targets]
        return
    step = max(1, N_LINES // max(n_inner, 1))
    for i in range(0, n_outer if n_inner else 0, step):
        taken = [x[i : i + step].transpose(0, 1).flatten(1).contiguous() for x in sources]
        lines = [y.new_empty(y.shape[1], taken[0].shape[1]) for y in targets]
        yield taken, lines
        for y, written in zip(targets, lines, strict=True):
            y[i : i + step].copy_(written.unflatten(1, (-1, n_inner)).transpose(0, 1))
