"""The two-dimensional Fourier transform of MRI as a pair of Monarch matrices that may learn."""

import copy
import warnings
from typing import Literal

import torch
from torch import Tensor, nn

from sciml_monarch.errors import InputError
from sciml_monarch.monarch import MonarchTransform

Direction = Literal["forward", "inverse"]


class MonarchFourier2d(nn.Module):
    """A learned inverse Fourier transform of images, one Monarch matrix an axis, and its adjoint.

    A fresh module is the exact, centred, orthonormal pair of :mod:`sciml_monarch.mri.fourier`. :meth:`forward` is
    always the adjoint of :meth:`inverse`, by the same factors. An axis of another size than it was built for takes
    the exact transform, with a warning: a learned matrix serves one size.

    Args:
        shape: Points on the two axes, ``(y, x)``.
        n_coils: One pair of matrices for each of so many coils (axis -3); ``None``: one pair for all.
        learnable: Whether the factors require gradients.

    Raises:
        InputError: ``shape`` or ``n_coils`` is not positive.
    """

    def __init__(self, shape: tuple[int, int], n_coils: int | None = None, learnable: bool = True) -> None:
        super().__init__()
        if min(shape) < 1 or (n_coils is not None and n_coils < 1):
            raise InputError(f"shape {tuple(shape)} and n_coils {n_coils} must be positive")
        self.shape = (int(shape[0]), int(shape[1]))
        self.n_coils = n_coils

        def axis(n: int) -> nn.ModuleList:
            first = MonarchTransform(n, "dft", inverse=True, centered=True, learnable=learnable)
            return nn.ModuleList([first, *(copy.deepcopy(first) for _ in range((n_coils or 1) - 1))])

        self.rows, self.columns = axis(self.shape[0]), axis(self.shape[1])

    def inverse(self, kspace: Tensor) -> Tensor:
        """K-space to images.

        Args:
            kspace: ``(..., y, x)`` complex; ``(..., coil, y, x)`` where there is a pair for each coil.

        Returns:
            Images of the same shape.

        Raises:
            InputError: The coils are not as many as the pairs.
        """
        return self._along(self._along(kspace, self.rows, -2, "inverse"), self.columns, -1, "inverse")

    def forward(self, image: Tensor) -> Tensor:
        """Images to k-space: the adjoint of :meth:`inverse`, as it is now.

        Args:
            image: ``(..., y, x)`` complex; ``(..., coil, y, x)`` where there is a pair for each coil.

        Returns:
            K-space of the same shape.

        Raises:
            InputError: The coils are not as many as the pairs.
        """
        return self._along(self._along(image, self.columns, -1, "forward"), self.rows, -2, "forward")

    def _along(self, x: Tensor, bank: nn.ModuleList, dim: int, direction: Direction) -> Tensor:
        if self.n_coils is not None and x.shape[-3] != self.n_coils:
            raise InputError(f"k-space of {x.shape[-3]} coils, but the network has transforms for {self.n_coils}")
        if x.shape[dim] != bank[0].n:
            if not torch.compiler.is_compiling():
                warnings.warn(
                    f"{x.shape[dim]} points on axis {dim} where the learned transform has {bank[0].n}: the exact "
                    "Fourier transform that it started from is used on this axis",
                    stacklevel=3,
                )
            return _exact(x, dim, direction)

        def apply(transform: nn.Module, y: Tensor) -> Tensor:
            assert isinstance(transform, MonarchTransform)
            return transform(y, dim) if direction == "inverse" else transform.adjoint(y, dim)

        if self.n_coils is None:
            return apply(bank[0], x)
        return torch.stack([apply(t, y) for t, y in zip(bank, x.unbind(-3), strict=True)], dim=-3)

    def deviation(self) -> float:
        """How far learning has moved it: the mean over its matrices of ``||M - F|| / ||F||``, Frobenius norms."""
        moved = []
        with torch.no_grad():
            for transform in self.modules():
                if isinstance(transform, MonarchTransform):
                    exact = MonarchTransform(transform.n, "dft", inverse=True, centered=True).to_dense()
                    difference = transform.to_dense().cpu() - exact
                    moved.append(float(difference.norm() / exact.norm()))
        return sum(moved) / len(moved)


def _exact(x: Tensor, dim: int, direction: Direction) -> Tensor:
    fft = torch.fft.ifft if direction == "inverse" else torch.fft.fft
    return torch.fft.fftshift(fft(torch.fft.ifftshift(x, dim=dim), dim=dim, norm="ortho"), dim=dim)
