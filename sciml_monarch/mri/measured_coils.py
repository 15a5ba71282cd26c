"""Sensitivity maps of a real coil array, from one measured slice, for semi-synthetic scans of any anatomy."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.mri.espirit import espirit
from sciml_monarch.mri.fourier import ifft2c

CALIBRATION = 24
SUPPORT = 0.1
"""Where the measured slice counts as signal: above this part of its largest value."""
WIDTHS = (0.03, 0.06, 0.12, 0.25, 0.5)
"""Standard deviations of the means that smooth and continue maps, as fractions of the field of view."""


def read_measurement(path: Path) -> Tensor:
    """Reads one slice of fully sampled k-space.

    Args:
        path: NumPy file (.npy) of complex ``(coil, y, x)``, centred.

    Returns:
        ``(coil, y, x)`` complex64.

    Raises:
        InputError: The file is absent, damaged or holds something else.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not a NumPy array that can be read: {error}") from None
    if array.ndim != 3 or array.dtype.kind != "c" or array.shape[0] < 2 or min(array.shape[1:]) < CALIBRATION:
        raise InputError(
            f"{path}: holds {array.shape} {array.dtype}; coil maps need complex k-space (coil, y, x) of at least two "
            f"coils and {CALIBRATION} x {CALIBRATION} points"
        )
    if not np.isfinite(array).all():
        raise InputError(f"{path}: holds values that are not finite")
    return torch.from_numpy(array.astype(np.complex64))


def measured_maps(kspace: Tensor, shape: tuple[int, int]) -> Tensor:
    """Estimates coil maps with ESPIRiT, smoothed and continued to where nothing was measured.

    The field of view of the measurement becomes that of the grid. ESPIRiT works on the middle 24 x 24 points, so that
    maps on a finer grid are interpolated by its own Fourier sums. Their common phase, which ESPIRiT leaves to the
    first coil, is chosen such that a virtual coil, the principal component over the object, is real: it is smooth
    where the first coil sees nothing. Air and bone leave their marks in ESPIRiT's maps, and another head has them
    elsewhere. The maps are therefore replaced by means over their surroundings (3% of the field of view), weighted by
    signal, which also continue them to where nothing was measured, there over wider and wider surroundings.

    Args:
        kspace: ``(coil, y, x)`` complex, centred, fully sampled.
        shape: Rows and columns of the maps.

    Returns:
        ``(coil, *shape)`` complex64 with a sum of squares over the coils of 1 everywhere.

    Raises:
        InputError: The grid is smaller than the calibration region.
    """
    if min(shape) < CALIBRATION:
        raise InputError(f"a grid of {shape} is too small for measured coil maps; use at least {CALIBRATION} points")
    fitted = _resize(kspace, shape)
    maps = espirit(fitted[None], calibration=CALIBRATION, crop=0.0)[0, 0]
    low = ifft2c(_window(fitted)).abs().square().sum(0).sqrt()
    weight = torch.where(low > SUPPORT * low.max(), low / low.max(), 0.0)
    values = maps.flatten(1)
    covariance = (values * weight.flatten()) @ values.mH
    principal = torch.linalg.eigh(covariance).eigenvectors[:, -1]
    phase = torch.einsum("c,cyx->yx", principal.conj(), maps).angle()
    smooth = _smooth(maps * torch.polar(torch.ones_like(phase), -phase), weight)
    return (smooth / smooth.abs().square().sum(0).sqrt()).to(torch.complex64)


def _smooth(maps: Tensor, weight: Tensor) -> Tensor:
    """Means of the maps weighted by signal and distance: narrow ones where there is signal, wide ones elsewhere."""
    above, below = torch.zeros_like(maps), torch.zeros_like(weight)
    for level, width in enumerate(WIDTHS):
        # Wider means have a much smaller say: they decide only where the narrower ones see no signal.
        share = 1e-3**level
        above = above + share * _blur(maps * weight, width)
        below = below + share * _blur(weight, width)
    return above / below


def _blur(values: Tensor, width: float) -> Tensor:
    """Gaussian mean, its standard deviation a fraction of the field of view; zero beyond the border."""
    for axis in (-2, -1):
        n = values.shape[axis]
        distance = torch.arange(n)[:, None] - torch.arange(n)[None, :]
        kernel = torch.exp(-distance.square() / (2 * (width * n) ** 2)) / (math.sqrt(2 * math.pi) * width * n)
        values = torch.movedim(torch.movedim(values, axis, -1) @ kernel.to(values.dtype), -1, axis)
    return values


def _resize(kspace: Tensor, shape: tuple[int, int]) -> Tensor:
    """Cuts or continues k-space with zeros about its origin ``n // 2``: another grid over the same field of view."""
    for axis, n in zip((-2, -1), shape, strict=True):
        have = kspace.shape[axis]
        kept = min(have, n)
        part = kspace.narrow(axis, have // 2 - kept // 2, kept)
        size = list(kspace.shape)
        size[axis] = n
        kspace = part.new_zeros(size)
        kspace.narrow(axis, n // 2 - kept // 2, kept).copy_(part)
    return kspace


def _window(kspace: Tensor) -> Tensor:
    """Keeps the calibration region, faded out towards its border (Hann)."""
    for axis in (-2, -1):
        n = kspace.shape[axis]
        at = (torch.arange(n) - n // 2) / (CALIBRATION / 2)
        fade = torch.where(at.abs() < 1, (math.pi / 2 * at).cos().square(), 0)
        kspace = kspace * (fade[:, None] if axis == -2 else fade)
    return kspace
