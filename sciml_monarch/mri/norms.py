"""Norms and normalisation with finite gradients where everything is zero.

The derivative of a root at zero is infinite, and times zero it is NaN: k-space of zeros (an empty slice, a coil
that failed) would poison a whole training run.
"""

import torch
from torch import Tensor


def safe_sqrt(x: Tensor) -> Tensor:
    """The root of a number that is not negative; its gradient at zero is zero.

    Args:
        x: Any shape, real.

    Returns:
        The same shape.
    """
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1).sqrt(), 0)


def root_sum_of_squares(images: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    """Root of the sum of squared magnitudes over an axis, such as the coils.

    Args:
        images: Complex, any shape.
        dim: The axis to sum over, counted from the end if negative.
        keepdim: Whether the axis stays, with one entry.

    Returns:
        Real, not negative, without the axis ``dim`` unless ``keepdim``.
    """
    power = images.real.square() + images.imag.square()
    return safe_sqrt(power.sum(dim, keepdim=keepdim))


def standardize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Subtracts the mean of each image and channel and divides by the standard deviation.

    ``standardized * std + mean`` is ``x`` again, also for a constant channel (its standardized form is zero).

    Args:
        x: Real images, ``(n, channel, y, x)``.

    Returns:
        The standardized images, and mean and standard deviation (of a sample: divided by the number of pixels
        less one), each ``(n, channel, 1, 1)``.
    """
    mean = x.mean(dim=(-2, -1), keepdim=True)
    centered = x - mean
    pixels = x.shape[-2] * x.shape[-1]
    std = safe_sqrt(centered.square().sum(dim=(-2, -1), keepdim=True) / max(pixels - 1, 1))
    return centered / torch.where(std > 0, std, 1), mean, std
