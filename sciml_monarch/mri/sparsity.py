"""Learned block transforms in which images are sparse, as Monarch matrices on each axis."""

import math
import warnings
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sciml_monarch.errors import InputError
from sciml_monarch.monarch import Factors, adjoint, multiply

Start = Literal["dct", "haar"]
Freedom = Literal["tied", "free", "coupled"]


class Move(NamedTuple):
    """A shift that only the device knows, so that a recorded pass can be replayed with another one.

    Attributes:
        rows: Where each row of the moved image comes from.
        columns: Where each column comes from.
        rows_back: The inverse of ``rows``.
        columns_back: The inverse of ``columns``.
    """

    rows: Tensor
    columns: Tensor
    rows_back: Tensor
    columns_back: Tensor


class BlockSparsity(nn.Module):
    """A separable transform ``W`` of blocks of an image, and clipping in it.

    On each axis of n samples W is a Monarch matrix whose first factor holds the n / p blocks (each p x p, at first the
    orthonormal DCT-II or Haar matrix) and whose second is the identity, or, if blocks are coupled, starts as it.

    Attributes:
        w1: First factors of the two axes, ``(1, p, p)`` where tied, else ``(blocks, p, p)``.
        w2: Second factors where coupled, ``(p, blocks, blocks)``.
    """

    def __init__(
        self,
        block: int = 8,
        start: Start = "dct",
        shape: tuple[int, int] | None = None,
        freedom: Freedom = "tied",
    ) -> None:
        """Builds the exact transform.

        Args:
            block: Samples p of a block; a power of two for "haar".
            start: Exact transform to start from.
            shape: Points of the images, where blocks are not tied.
            freedom: ``tied``, ``free`` or ``coupled``; see :class:`~sciml_monarch.mri.ista.MonarchISTA`.

        Raises:
            InputError: ``shape`` is missing, or ``block`` does not suit.
        """
        super().__init__()
        if freedom != "tied" and shape is None:
            raise InputError(f"freedom {freedom!r} binds the blocks to positions; give the shape of the images")
        self.block, self.start, self.freedom, self.shape = block, start, freedom, shape
        first = block_matrix(block, start).float()
        copies = (1, 1) if freedom == "tied" or shape is None else tuple(-(-n // block) for n in shape)
        self.w1 = nn.ParameterList(nn.Parameter(first.repeat(k, 1, 1)) for k in copies)
        self.w2 = nn.ParameterList(
            nn.Parameter(torch.eye(k).repeat(block, 1, 1)) for k in (copies if freedom == "coupled" else ())
        )

    def moves(self, shifts: Tensor, shape: tuple[int, int]) -> list[Move]:
        """Prepares shifts on the device for :meth:`clipped`, all at once: tiny kernels cost their launches.

        Args:
            shifts: ``(n, 2)`` int64, ``(y, x)``.
            shape: Points of the images.

        Returns:
            n shifts.
        """
        tables = []
        for axis, n in enumerate(n + -n % self.block for n in shape):
            shift, index = shifts[:, axis, None], torch.arange(n, device=shifts.device)
            tables.append((((index - shift) % n).unbind(), ((index + shift) % n).unbind()))
        (rows, rows_back), (columns, columns_back) = tables
        return [Move(*each) for each in zip(rows, columns, rows_back, columns_back, strict=True)]

    def clipped(
        self, image: Tensor, threshold: Tensor, shift: tuple[int, int] | Move = (0, 0), power: Tensor | float = 1.0
    ) -> Tensor:
        """What shrinkage takes away: ``W^T clip(W image, threshold)``, with the blocks moved.

        A coefficient c longer than the threshold t is shortened by ``t (t / |c|)^(power - 1)``: soft thresholding at
        power 1, where, with an orthonormal W, ``image - clipped(image)`` is the proximal map of the weighted L1 norm;
        less of the long ones at higher powers (p-shrinkage with p = 2 - power, Voronin & Chartrand, ICASSP 2013). The
        real and imaginary parts, and several sets of maps, share one magnitude, so that they are shortened jointly.

        Args:
            image: ``(b, set, y, x)`` complex.
            threshold: ``(p, p)``, real, not negative.
            shift: Samples by which the blocks are moved, ``(y, x)``, or one of :meth:`moves`.
            power: Positive.

        Returns:
            Images ``(b, set, y, x)``.
        """
        ny, nx = image.shape[-2:]
        p = self.block
        planes = torch.view_as_real(image).movedim(-1, 2).flatten(1, 2)  # (b, 2 set, y, x)
        pad_y, pad_x = -ny % p, -nx % p
        if pad_y or pad_x:
            planes = F.pad(planes, (0, pad_x, 0, pad_y))
        planes = _rolled(planes, shift)
        patches = planes.unflatten(-1, (-1, p)).unflatten(-3, (-1, p))  # (b, c, k, p, l, p)
        if self.freedom == "tied":
            back = self._tied(patches, threshold, power)
        else:
            back = self._placed(patches, threshold, power, (ny, nx))
        planes = back.flatten(-2).flatten(-3, -2)
        planes = _rolled(planes, shift, back=True)
        planes = planes[..., :ny, :nx].unflatten(1, (-1, 2)).movedim(2, -1)
        return torch.view_as_complex(planes.contiguous())

    def _tied(self, patches: Tensor, threshold: Tensor, power: Tensor | float) -> Tensor:
        # all blocks alike: the two axes are one matrix, one product for all patches
        p = self.block
        both = torch.kron(self.w1[0][0], self.w1[1][0])
        coefficients = patches.transpose(-3, -2).flatten(-2) @ both.T  # (b, c, k, l, p p)
        clipped = _clip(coefficients, threshold.flatten(), power)
        return (clipped @ both).unflatten(-1, (p, p)).transpose(-3, -2)

    def _placed(self, patches: Tensor, threshold: Tensor, power: Tensor | float, shape: tuple[int, int]) -> Tensor:
        rows, columns = (self._axis(axis, shape[axis], patches) for axis in range(2))
        x = patches.flatten(-2).flatten(-3, -2)  # (b, c, y, x)
        y = columns.analysis(rows.analysis(x.transpose(-2, -1)).transpose(-2, -1))
        blocks = y.unflatten(-1, (-1, self.block)).unflatten(-3, (-1, self.block))
        clipped = _clip(blocks, threshold[:, None, :], power)
        z = columns.synthesis(clipped.flatten(-2).flatten(-3, -2))
        z = rows.synthesis(z.transpose(-2, -1)).transpose(-2, -1)
        return z.unflatten(-1, (-1, self.block)).unflatten(-3, (-1, self.block))

    def _axis(self, axis: int, n: int, like: Tensor) -> "_Axis":
        """The transform of an axis of n points."""
        assert self.shape is not None
        if n == self.shape[axis]:
            return _Axis(self.w1[axis], self.w2[axis] if len(self.w2) else None)
        if not torch.compiler.is_compiling():
            warnings.warn(
                f"{n} points on axis {axis - 2} where the learned blocks have {self.shape[axis]}: the exact "
                f"{self.start} that they started from is used on this axis",
                stacklevel=4,
            )
        exact = block_matrix(self.block, self.start).to(like)
        return _Axis(exact.expand(-(-n // self.block), -1, -1), None)


class _Axis(NamedTuple):
    """The Monarch matrix of one axis; without a second factor the blocks are not mixed."""

    w1: Tensor
    w2: Tensor | None

    def analysis(self, x: Tensor) -> Tensor:
        if self.w2 is not None:
            return multiply(Factors(self.w1, self.w2), x)
        return torch.einsum("kqp,...kp->...kq", self.w1, x.unflatten(-1, (len(self.w1), -1))).flatten(-2)

    def synthesis(self, y: Tensor) -> Tensor:
        if self.w2 is not None:
            return adjoint(Factors(self.w1, self.w2), y)
        return torch.einsum("kqp,...kq->...kp", self.w1, y.unflatten(-1, (len(self.w1), -1))).flatten(-2)


def block_matrix(n: int, start: Start) -> Tensor:
    """An orthonormal matrix whose rows are basis vectors, the constant one first.

    Args:
        n: Samples of a block.
        start: "dct": the DCT-II; "haar": the Haar wavelets of all scales.

    Returns:
        ``(n, n)`` float64.

    Raises:
        InputError: n is below 2, or no power of two for "haar".
    """
    if n < 2 or (start == "haar" and n & (n - 1)):
        raise InputError(f"block is {n}; it must be at least 2, and a power of two for haar")
    if start == "dct":
        index = torch.arange(n, dtype=torch.float64)
        matrix = torch.cos(math.pi / n * (index + 0.5) * index[:, None]) * math.sqrt(2 / n)
        matrix[0] /= math.sqrt(2)
        return matrix
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < n:
        smooth = torch.kron(matrix, torch.tensor([[1.0, 1.0]]).double())
        detail = torch.kron(torch.eye(len(matrix)).double(), torch.tensor([[1.0, -1.0]]).double())
        matrix = torch.cat([smooth, detail]) / math.sqrt(2)
    return matrix


def _rolled(planes: Tensor, shift: tuple[int, int] | Move, back: bool = False) -> Tensor:
    """Planes ``(..., y, x)``, shifted around the edges, or back."""
    if isinstance(shift, Move):
        there, again = shift[:2], shift[2:]
        return _Taken.apply(planes, *again, *there) if back else _Taken.apply(planes, *there, *again)
    if not any(shift):
        return planes
    return planes.roll((-shift[0], -shift[1]) if back else shift, dims=(-2, -1))


class _Taken(torch.autograd.Function):
    """Rows and columns in another order; the gradient is taken in the inverse order and not added up by atomics."""

    @staticmethod
    def forward(
        ctx: Any, planes: Tensor, rows: Tensor, columns: Tensor, rows_back: Tensor, columns_back: Tensor
    ) -> Tensor:
        ctx.save_for_backward(rows_back, columns_back)
        return planes[..., rows[:, None], columns]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns = ctx.saved_tensors
        return gradient[..., rows[:, None], columns], None, None, None, None


def _clip(coefficients: Tensor, threshold: Tensor, power: Tensor | float) -> Tensor:
    """What shrinkage takes away of coefficients, their length taken over the channels."""
    # 1e-20: the gradient at zero is zero, not NaN; 1e-12: so is that of a power below 1
    length = (coefficients.square().sum(1, keepdim=True) + 1e-20).sqrt()
    return coefficients * (threshold / length).clamp(1e-12, 1.0) ** power
