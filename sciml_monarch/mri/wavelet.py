"""The orthogonal wavelet transform of compressed sensing, batched, on any device."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Daubechies' filter with four vanishing moments (Ten Lectures on Wavelets, table 6.1), normalised to sum sqrt(2)
DB4 = (
    0.23037781330889650086,
    0.71484657055291564708,
    0.63088076792985890788,
    -0.02798376941685985421,
    -0.18703481171909308407,
    0.03084138183556076363,
    0.03288301166688519974,
    -0.01059740178506903211,
)
MIN_LENGTH = len(DB4) - 1
"""The coarsest level that is split has at least twice as many samples, as in PyWavelets."""


class Coefficients(NamedTuple):
    """Wavelet coefficients of images.

    Attributes:
        smooth: The coarsest approximation, ``(..., y, x)``.
        details: For each level, coarsest first: three bands ``(..., 3, y, x)``.
        shapes: For each level, coarsest first: points of the image that it splits.
    """

    smooth: Tensor
    details: list[Tensor]
    shapes: list[tuple[int, int]]

    def soft_threshold(self, threshold: Tensor | float) -> "Coefficients":
        """Shrinks the magnitude of every coefficient, that of the approximation too (as sigpy does).

        Args:
            threshold: A number, or one for each entry of the batch, ``(b, ...)`` of one element each.
        """

        def shrunk(c: Tensor) -> Tensor:
            size = c.abs()
            limit = threshold.reshape(-1, *[1] * (c.ndim - 1)) if isinstance(threshold, Tensor) else threshold
            return c * ((size - limit).clamp(min=0) / size.where(size > 0, 1.0))

        return Coefficients(shrunk(self.smooth), [shrunk(d) for d in self.details], self.shapes)


def wavelet(images: Tensor) -> Coefficients:
    """Splits images into Daubechies-4 wavelets of as many levels as fit; beyond the edges they count as zero.

    Args:
        images: ``(..., y, x)``, real or complex.

    Returns:
        The coefficients: an isometry, ``||W x|| = ||x||``.
    """
    n_levels = max(0, min(_levels(n) for n in images.shape[-2:]))
    smooth, details, shapes = images, [], []
    for _ in range(n_levels):
        shapes.append((smooth.shape[-2], smooth.shape[-1]))
        low, high = _split(smooth, -2)
        (smooth, detail), others = _split(low, -1), _split(high, -1)
        details.append(torch.stack([detail, *others], dim=-3))
    return Coefficients(smooth, details[::-1], shapes[::-1])


def wavelet_adjoint(coefficients: Coefficients) -> Tensor:
    """Adjoint of :func:`wavelet`, which is its inverse on what it returns.

    Args:
        coefficients: Of :func:`wavelet`.

    Returns:
        Images ``(..., y, x)``.
    """
    smooth = coefficients.smooth
    for detail, shape in zip(coefficients.details, coefficients.shapes, strict=True):
        low = _merge(smooth, detail[..., 0, :, :], shape[1], -1)
        high = _merge(detail[..., 1, :, :], detail[..., 2, :, :], shape[1], -1)
        smooth = _merge(low, high, shape[0], -2)
    return smooth


def _levels(n: int) -> int:
    levels = 0
    while n // 2 ** (levels + 1) >= MIN_LENGTH:
        levels += 1
    return levels


def _filters(x: Tensor) -> Tensor:
    """Low and high pass as kernels of a correlation, ``(2, 1, 8)``."""
    low = torch.tensor(DB4, dtype=torch.float64)
    sign = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(len(DB4) // 2)
    return torch.stack([low, low.flip(0) * -sign])[:, None].to(x.device, x.real.dtype)


def _split(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """One level along one axis: every second value of the two filtered signals, ``(n + 7) // 2`` of them."""
    moved, planes = _planes(x, dim)
    bands = F.conv1d(F.pad(planes, (len(DB4) - 2, len(DB4) - 1)), _filters(x), stride=2)
    bands = bands[..., : (x.shape[dim] + len(DB4) - 1) // 2]
    return tuple(_from_planes(bands[:, i], moved, x, dim) for i in range(2))  # type: ignore[return-value]


def _merge(low: Tensor, high: Tensor, n: int, dim: int) -> Tensor:
    """Adjoint of :func:`_split` for a signal of n samples."""
    moved, low_planes = _planes(low, dim)
    bands = torch.cat([low_planes, _planes(high, dim)[1]], dim=1)
    start = len(DB4) - 2
    signal = F.conv_transpose1d(bands, _filters(low), stride=2)[:, 0]
    signal = F.pad(signal, (0, max(0, start + n - signal.shape[-1])))[..., start : start + n]
    return _from_planes(signal, moved, low, dim)


def _planes(x: Tensor, dim: int) -> tuple[torch.Size, Tensor]:
    """A real signal a row, ``(rows, 1, n)``; and the shape to return to."""
    moved = x.movedim(dim, -1)
    real = torch.view_as_real(moved).movedim(-1, 0) if x.is_complex() else moved[None]
    return moved.shape[:-1], real.reshape(-1, 1, x.shape[dim])


def _from_planes(signal: Tensor, lead: torch.Size, like: Tensor, dim: int) -> Tensor:
    if like.is_complex():
        parts = signal.reshape(2, *lead, signal.shape[-1])
        return torch.complex(parts[0], parts[1]).movedim(-1, dim)
    return signal.reshape(*lead, signal.shape[-1]).movedim(-1, dim)
