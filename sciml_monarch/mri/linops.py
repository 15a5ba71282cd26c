"""The SENSE model of a scan, ``A = mask . F . S``, and its adjoint."""

from typing import Protocol

import torch
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.mri.fourier import centering_phases


class Transform2d(Protocol):
    """A pair of transforms between images and k-space, each the other's adjoint."""

    def forward(self, image: Tensor) -> Tensor:
        """Images ``(..., y, x)`` to k-space."""

    def inverse(self, kspace: Tensor) -> Tensor:
        """K-space ``(..., y, x)`` to images; the adjoint of :meth:`forward`."""


class SenseOperator:
    """Multi-coil Fourier encoding of an image (Pruessmann et al., MRM 1999).

    ``forward(x) = where(mask, F(sum over sets of S x), 0)``. Without ``transform`` F is the centred, orthonormal
    Fourier transform, exact; its centring is absorbed into the maps and costs nothing in :meth:`normal`.

    A learned transform may stand for F in an initial estimate or a regulariser, not in a data-consistency residual:
    iterations then converge to an image that is consistent with the wrong physics.
    """

    def __init__(self, maps: Tensor, mask: Tensor, transform: Transform2d | None = None) -> None:
        """Describes the scan.

        Args:
            maps: Coil sensitivities, ``(b, set, coil, y, x)`` complex; ``b`` may be 1.
            mask: What is sampled, bool ``(b, 1, 1|y, x)``; ``b`` may be 1.
            transform: What stands for the Fourier transform.

        Raises:
            InputError: Shapes do not fit.
        """
        if maps.ndim != 5 or not maps.is_complex():
            raise InputError(f"maps are {tuple(maps.shape)} {maps.dtype}; they must be (b, set, coil, y, x), complex")
        ny, nx = maps.shape[-2:]
        if mask.ndim != 4 or mask.shape[1] != 1 or mask.shape[2] not in (1, ny) or mask.shape[3] != nx:
            raise InputError(f"a mask {tuple(mask.shape)} does not fit maps {tuple(maps.shape)}")
        self.mask = mask.bool()
        self.transform = transform
        if transform is None:
            before, self._after = centering_phases((ny, nx), maps.device, maps.dtype)
            maps = maps * before
        self._maps = maps

    @property
    def bound(self) -> Tensor:
        """An upper bound of the largest eigenvalue of :meth:`normal`, at least 1, ``(b|1, 1, 1, 1)``.

        1 for maps whose squares sum to 1 or less, as ESPIRiT's do.
        """
        power = self._maps.real.square() + self._maps.imag.square()
        return power.sum((1, 2)).amax((-2, -1)).clamp(min=1.0)[:, None, None, None]

    def forward(self, image: Tensor) -> Tensor:
        """Scans an image.

        Args:
            image: ``(b, set, y, x)`` complex.

        Returns:
            K-space ``(b, coil, y, x)``, zero where not sampled.
        """
        coils = self._weighted(image)
        kspace = (
            torch.fft.fft2(coils, norm="ortho") * self._after
            if self.transform is None
            else self.transform.forward(coils)
        )
        return self._sampled(kspace)

    def adjoint(self, kspace: Tensor) -> Tensor:
        """Applies the conjugate transpose of :meth:`forward`: zero-filled SENSE.

        Args:
            kspace: ``(b, coil, y, x)`` complex.

        Returns:
            Images ``(b, set, y, x)``.
        """
        kspace = self._sampled(kspace)
        if self.transform is None:
            return self._combined(torch.fft.ifft2(kspace * self._after.conj(), norm="ortho"))
        return self._combined(self.transform.inverse(kspace))

    def normal(self, image: Tensor) -> Tensor:
        """Applies ``adjoint(forward(image))``; Hermitian and positive semidefinite.

        Args:
            image: ``(b, set, y, x)`` complex.

        Returns:
            Images of the same shape.
        """
        if self.transform is not None:
            return self.adjoint(self.forward(image))
        # of whole columns every row is sampled, and the transform along it cancels with its inverse
        axes = (-1,) if self.mask.shape[-2] == 1 else (-2, -1)
        kspace = self._sampled(torch.fft.fftn(self._weighted(image), dim=axes, norm="ortho"))
        return self._combined(torch.fft.ifftn(kspace, dim=axes, norm="ortho"))

    def _sampled(self, kspace: Tensor) -> Tensor:
        return kspace.where(self.mask, 0.0)

    def _weighted(self, image: Tensor) -> Tensor:
        if self._maps.shape[1] == 1:  # a sum over one set would be one more copy
            return self._maps[:, 0] * image
        return (self._maps * image.unsqueeze(2)).sum(1)

    def _combined(self, coils: Tensor) -> Tensor:
        return (self._maps.conj() * coils.unsqueeze(1)).sum(2)
