"""The centred, orthonormal Fourier transform of MRI: what the scanner does, never learned."""

import torch
from torch import Tensor


def fft2c(x: Tensor) -> Tensor:
    """Images to k-space, origin at ``n // 2`` on both axes, ``norm="ortho"``.

    Args:
        x: Images, ``(..., y, x)``, complex.

    Returns:
        K-space of the same shape.
    """
    return torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(x, dim=(-2, -1)), norm="ortho"), dim=(-2, -1))


def ifft2c(y: Tensor) -> Tensor:
    """K-space to images; inverse and adjoint of :func:`fft2c`.

    Args:
        y: K-space, ``(..., y, x)``, complex.

    Returns:
        Images of the same shape.
    """
    return torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(y, dim=(-2, -1)), norm="ortho"), dim=(-2, -1))


def centering_phases(shape: tuple[int, int], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Phases that make a transform with its origin in the corner a centred one.

    ``fft2c(x) == after * fft2(before * x)``: with ``c = n // 2`` and ``w = exp(-2 pi i / n)``,
    ``w^((k-c)(j-c)) = w^(kj) w^(-cj) w^(-ck) w^(cc)`` on each axis. A product with unit numbers costs less than
    moving the quadrants, and the phases vanish from normal equations or merge with the coil maps.

    Args:
        shape: Points on the two axes.
        device: Where to.
        dtype: Complex dtype.

    Returns:
        ``before`` and ``after``, each ``(y, x)`` of unit modulus.
    """
    axes = []
    for n in shape:
        c = n // 2
        index = torch.arange(n, device=device)

        def unit(turns: Tensor, n: int = n) -> Tensor:
            angle = -2 * torch.pi / n * (turns % n).double()  # reduced in integers; floats would lose digits
            return torch.polar(torch.ones_like(angle), angle)

        axes.append((unit(-c * index), unit(c * c - c * index)))
    before, after = (axes[0][i][:, None] * axes[1][i][None, :] for i in range(2))
    return before.to(dtype), after.to(dtype)
