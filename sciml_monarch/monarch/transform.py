"""A transform that starts as the exact one and may learn."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Self

import torch
from torch import Tensor, nn

from sciml_monarch.errors import InputError
from sciml_monarch.monarch import init
from sciml_monarch.monarch.functional import Factors, select_columns, select_rows
from sciml_monarch.monarch.kernels.transform import transform as kernel
from sciml_monarch.monarch.parts import Parts, dense, inverse_permutation, scatter

Kind = Literal["dft", "dct", "dst", "hadamard", "block_dct", "haar"]


class MonarchTransform(nn.Module):
    """An orthonormal transform along one axis, as a Monarch matrix with fixed permutations, that may learn.

    A fresh module is the exact transform, or the exact inverse, to rounding. Several axes take one module
    each: ``rows(columns(image, dim=-2))``. A prime ``n`` is exact too, but is one dense block.

    Complex factors are stored as real pairs, so that no parameter is complex (optimisers, AMP and DDP treat
    complex parameters in differing ways). The factors should be kept out of weight decay, which pulls them to
    zero.

    The products are computed in at least float32, also under autocast, and also when the module was converted
    to a half precision: the stored factors are then rounded, the arithmetic and the results are float32 or
    complex64. A transform that has not learned is exact in double precision too, whether asked for in the
    constructor or converted later by ``.double()``; one that has learned keeps the rounding of its factors.

    Attributes:
        w1: First factor, ``(k, q, p)``, or ``(k, q, p, 2)`` for the complex kinds "dft", "dct" and "dst".
        w2: Second factor, ``(l, s, r)`` or ``(l, s, r, 2)``.
    """

    w1: nn.Parameter
    w2: nn.Parameter
    permutation_in: Tensor | None
    permutation_out: Tensor | None

    def __init__(
        self,
        n: int,
        kind: Kind = "dft",
        inverse: bool = False,
        centered: bool = False,
        learnable: bool = True,
        *,
        blocks: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Builds the exact transform.

        Args:
            n: Number of points.
            kind: "dft" (complex), "dct" (II, inverse III), "dst" (II, inverse III), "hadamard" (a power of
                two), "block_dct" (blocks of at most 8 samples) or "haar" (two levels), as in
                ``sciml_monarch.monarch.init``.
            inverse: Whether to start as the inverse transform.
            centered: Whether position and frequency zero lie at ``n // 2`` ("dft" only).
            learnable: Whether the factors require gradients. Frozen factors stay in the ``state_dict``.
            blocks: Blocks of the first factor, a divisor of ``n``; ``None``: nearly square blocks.
            dtype: Real or complex dtype; its precision is that of the stored factors. ``None``: torch's
                default.
            device: Where the parameters live; ``None``: torch's default.

        Raises:
            InputError: If ``n`` or ``blocks`` does not suit the kind, or ``centered`` is asked of another
                than "dft".
        """
        super().__init__()
        if centered and kind != "dft":
            raise InputError(f'only the kind "dft" can be centered, not "{kind}"; leave out centered=True')
        dtype = dtype or torch.get_default_dtype()
        if not (dtype.is_floating_point or dtype.is_complex):
            raise InputError(f"the factors need a real or complex dtype, but got {dtype}; take torch.float32")
        device = torch.get_default_device() if device is None else device
        self.n = n
        self.kind = kind
        self.inverse = inverse
        self.centered = centered
        with torch.device("cpu"):  # double precision, which some devices lack
            parts = _exact(n, kind, inverse, centered, blocks)
        self.takes_real = parts.takes_real
        self.is_complex = parts.factors.w1.is_complex()
        self.blocks = blocks
        self.w1, self.w2 = (
            nn.Parameter(w.to(device=device, dtype=dtype.to_real()).contiguous(), requires_grad=learnable)
            for w in _as_real(parts.factors)
        )
        for name, permutation in (("in", parts.permutation_in), ("out", parts.permutation_out)):
            moved = None if permutation is None else permutation.to(device)
            self.register_buffer(f"permutation_{name}", moved, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Conversions of ``nn.Module``; on the way to double precision fresh factors are computed anew."""
        before = self.w1.data, self.w2.data
        super()._apply(fn, recurse)
        if self.w1.dtype == torch.float64 != before[0].dtype and not before[0].is_meta:
            with torch.device("cpu"):
                exact = _as_real(_exact(self.n, self.kind, self.inverse, self.centered, self.blocks).factors)
            if all(torch.equal(old.cpu(), new.to(old.dtype)) for old, new in zip(before, exact, strict=True)):
                self.w1.data.copy_(exact[0])
                self.w2.data.copy_(exact[1])
        return self

    def forward(self, x: Tensor, dim: int = -1) -> Tensor:
        """Transforms one axis.

        Args:
            x: Input, ``(..., n, ...)``, real or complex.
            dim: The axis of ``n`` points.

        Returns:
            The transform, of the shape of ``x``; complex for "dft", as ``x`` for the other kinds.

        Raises:
            InputError: If the axis does not have ``n`` entries (not checked while compiling).
        """
        return self._apply_along(x, dim, adjoint=False)

    def adjoint(self, y: Tensor, dim: int = -1) -> Tensor:
        """Applies the conjugate transpose of the transform as it is now, learned or not.

        For the kinds that are a real part ("dct", "dst") it is the transpose of the real matrix.

        Args:
            y: Input, ``(..., n, ...)``, real or complex.
            dim: The axis of ``n`` points.

        Returns:
            The adjoint transform, of the shape of ``y``; complex for "dft", as ``y`` for the other kinds.

        Raises:
            InputError: If the axis does not have ``n`` entries (not checked while compiling).
        """
        return self._apply_along(y, dim, adjoint=True)

    def to_dense(self) -> Tensor:
        """Multiplies the transform out.

        Returns:
            Its matrix, ``(n, n)``: complex for "dft", else real.
        """
        with _without_autocast(self.w1):
            return dense(self._parts(self._precision()))

    def thin(self, rows: Tensor) -> Tensor:
        """Computes some rows of the matrix from the factors, such as the kept frequencies of a DFT.

        Args:
            rows: Which rows, ``(c,)`` int64 on the device of the factors; negative ones count from the end.

        Returns:
            ``to_dense()[rows]``, ``(c, n)``.
        """
        return _joined(*self.thin_planes(rows))

    def thin_columns(self, columns: Tensor) -> Tensor:
        """Computes some columns of the matrix from the factors, such as an inverse DFT of few frequencies.

        Args:
            columns: Which columns, ``(c,)`` int64 on the device of the factors; negative ones count from the
                end.

        Returns:
            ``to_dense()[:, columns]``, ``(n, c)``.
        """
        return _joined(*self.thin_columns_planes(columns))

    def thin_planes(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Computes ``thin`` as real and imaginary part, in real arithmetic throughout.

        Args:
            rows: As in ``thin``.

        Returns:
            Two real matrices ``(c, n)``; the second is ``None`` where ``to_dense()`` is real.
        """
        index = _wrapped(rows, self.n)
        if self.permutation_out is not None:
            index = self.permutation_out.index_select(0, index)
        real, imaginary = self._planes(select_rows, index)
        order = self.permutation_in
        return scatter(real, order), None if imaginary is None else scatter(imaginary, order)

    def thin_columns_planes(self, columns: Tensor) -> tuple[Tensor, Tensor | None]:
        """Computes ``thin_columns`` as real and imaginary part, in real arithmetic throughout.

        Args:
            columns: As in ``thin_columns``.

        Returns:
            Two real matrices ``(n, c)``; the second is ``None`` where ``to_dense()`` is real.
        """
        index = _wrapped(columns, self.n)
        if self.permutation_in is not None:
            index = inverse_permutation(self.permutation_in).index_select(0, index)
        real, imaginary = self._planes(select_columns, index)
        order = self.permutation_out
        return _gather_rows(real, order), None if imaginary is None else _gather_rows(imaginary, order)

    def extra_repr(self) -> str:
        """Describes the transform for ``print``."""
        return (
            f"{self.n}, kind={self.kind!r}, inverse={self.inverse}, centered={self.centered}, "
            f"learnable={self.w1.requires_grad}, w1={tuple(self.w1.shape)}, w2={tuple(self.w2.shape)}"
        )

    def _apply_along(self, x: Tensor, dim: int, adjoint: bool) -> Tensor:
        """Checks an input, brings it and the factors to one precision, and applies them or their adjoint."""
        if not torch.compiler.is_compiling() and (not -x.ndim <= dim < x.ndim or x.shape[dim] != self.n):
            raise InputError(
                f"axis {dim} of an input of shape {tuple(x.shape)} must have n = {self.n} entries; "
                "one transform serves one n"
            )
        x = x.to(torch.promote_types(self._precision(), x.dtype))
        precision = torch.float64 if x.dtype in (torch.float64, torch.complex128) else torch.float32
        with _without_autocast(x):
            return kernel(
                x, self.w1.to(precision), self.w2.to(precision), self.permutation_in, self.permutation_out,
                self.takes_real, adjoint, dim,
            )  # fmt: skip

    def _precision(self) -> torch.dtype:
        """The real dtype to compute in: no half precision has complex arithmetic."""
        return torch.promote_types(self.w1.dtype, torch.float32)

    def _parts(self, precision: torch.dtype) -> Parts:
        w1, w2 = self.w1.to(precision), self.w2.to(precision)
        if self.is_complex:
            w1, w2 = torch.view_as_complex(w1), torch.view_as_complex(w2)
        return Parts(self.permutation_in, Factors(w1, w2), self.permutation_out, self.takes_real)

    def _planes(self, select: Callable[[Factors, Tensor], Tensor], index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Selects rows or columns of the product of the factors, without the permutations."""
        w1, w2 = self.w1.to(self._precision()), self.w2.to(self._precision())
        with _without_autocast(w1):
            if not self.is_complex:
                return select(Factors(w1, w2), index), None
            # The product is bilinear: (a1 + i b1)(a2 + i b2), with a and b as a batch of two.
            w1, w2 = w1.movedim(-1, 0), w2.movedim(-1, 0)
            if self.takes_real:
                straight = select(Factors(w1, w2), index)
                return straight[0] - straight[1], None
            straight, crossed = select(Factors(torch.stack([w1, w1.flip(0)]), w2), index)
            return straight[0] - straight[1], crossed[0] + crossed[1]


def _exact(n: int, kind: Kind, inverse: bool, centered: bool, blocks: int | None) -> Parts:
    double = torch.float64
    match kind:
        case "dft":
            return init.dft(n, inverse=inverse, centered=centered, blocks=blocks, dtype=double)
        case "dct":
            return init.dct(n, inverse=inverse, blocks=blocks, dtype=double)
        case "dst":
            return init.dst(n, inverse=inverse, blocks=blocks, dtype=double)
        case "hadamard":
            return init.hadamard(n, blocks=blocks, dtype=double)
        case "block_dct":
            return init.block_dct(n, inverse=inverse, blocks=blocks, dtype=double)
        case "haar":
            return init.haar(n, inverse=inverse, blocks=blocks, dtype=double)
    raise InputError(f'kind {kind!r} is none of "dft", "dct", "dst", "hadamard", "block_dct", "haar"')


def _as_real(factors: Factors) -> list[Tensor]:
    """The factors as they are stored: complex ones as real pairs."""
    return [torch.view_as_real(w) if w.is_complex() else w for w in factors]


def _without_autocast(x: Tensor) -> AbstractContextManager[object]:
    device = x.device.type  # autocast knows all but "meta"; to ask it is more than torch 2.11 can trace
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def _wrapped(index: Tensor, n: int) -> Tensor:
    return torch.where(index < 0, index + n, index)


def _gather_rows(matrix: Tensor, order: Tensor | None) -> Tensor:
    return matrix if order is None else matrix.index_select(-2, order)


def _joined(real: Tensor, imaginary: Tensor | None) -> Tensor:
    return real if imaginary is None else torch.complex(real, imaginary)
