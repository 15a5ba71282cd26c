"""How far a reconstruction is from the truth: pure functions, fastMRI's definitions.

Volumes are magnitudes ``(slices, y, x)``, tensors or arrays; scores of a volume are computed in double precision and
are Python numbers. NMSE, PSNR and SSIM are those of fastMRI's evaluation (Zbontar et al. 2018, arXiv:1811.08839,
section 6; ``fastmri/evaluate.py``): norms run over the whole volume, and the range of PSNR and SSIM is the largest
value of the **volume**, not of the slice. A value that is not finite in either volume makes every score of it NaN.
"""

import math
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.mri.fourier import fft2c

WINDOW = 7
"""Width of SSIM's uniform window, the default of scikit-image and what fastMRI takes."""
K1, K2 = 0.01, 0.03
"""Constants of Wang et al. 2004 (IEEE TIP 13:600), below their equations 6 and 9."""


def nmse(target: ArrayLike | Tensor, prediction: ArrayLike | Tensor) -> float:
    r"""Normalised mean squared error ``|target - prediction|^2 / |target|^2`` of a volume.

    Args:
        target: The truth, ``(slices, y, x)``.
        prediction: The reconstruction, of the same shape.

    Returns:
        The error; of a target that is zero, 0 for a prediction that is zero as well and infinity for any other.

    Raises:
        InputError: The two are not real volumes of one shape.
    """
    truth, image = _volumes(target, prediction)
    return _ratio(float((truth - image).square().sum()), float(truth.square().sum()))


def psnr(target: ArrayLike | Tensor, prediction: ArrayLike | Tensor, maximum: float | None = None) -> float:
    r"""Peak signal-to-noise ratio ``10 log10(maximum^2 / mean(|target - prediction|^2))`` of a volume, in dB.

    Args:
        target: The truth, ``(slices, y, x)``.
        prediction: The reconstruction, of the same shape.
        maximum: The peak; by default the largest value of the target volume.

    Returns:
        The ratio; infinity for a perfect reconstruction, minus infinity for a wrong one of a target that is zero.

    Raises:
        InputError: The two are not real volumes of one shape, or ``maximum`` is negative.
    """
    truth, image = _volumes(target, prediction)
    error = float((truth - image).square().mean())
    peak = _peak(truth, maximum)
    if math.isnan(error) or math.isnan(peak):
        return math.nan
    if error == 0:
        return math.inf
    return 10 * math.log10(peak**2 / error) if peak > 0 else -math.inf


def ssim(target: ArrayLike | Tensor, prediction: ArrayLike | Tensor, maximum: float | None = None) -> float:
    """Structural similarity of a volume: the mean over its slices (see :func:`ssim_map`).

    Args:
        target: The truth, ``(slices, y, x)``, at least 7 pixels wide and high.
        prediction: The reconstruction, of the same shape.
        maximum: The range of the values; by default the largest value of the target volume.

    Returns:
        At most 1. Of a target that is zero, the fraction of windows in which the prediction is zero as well.

    Raises:
        InputError: The two are not real volumes of one shape, are too small, or ``maximum`` is negative.
    """
    truth, image = _volumes(target, prediction)
    peak = truth.new_full((len(truth),), _peak(truth, maximum))
    return float(ssim_per_slice(truth, image, peak).mean())


def ssim_map(target: Tensor, prediction: Tensor, maximum: Tensor) -> Tensor:
    """Structural similarity of images around each pixel, differentiable, in the precision of the input.

    Wang et al. 2004, equation 13, with a uniform window of 7 x 7 and unbiased variances (factor 49/48), at the pixels
    whose window lies inside the image: what scikit-image averages over, and fastMRI's ``SSIMLoss``.

    Args:
        target: ``(b, y, x)``, real.
        prediction: ``(b, y, x)``, real.
        maximum: Range of the values of each image, ``(b,)``: that of its volume.

    Returns:
        ``(b, y - 6, x - 6)``, at most 1. Where the range is 0 and a window is zero in both images, 1.

    Raises:
        InputError: Shapes differ or an image is smaller than the window.
    """
    if target.shape != prediction.shape or target.ndim != 3 or maximum.shape != target.shape[:1]:
        raise InputError(
            f"SSIM needs images (b, y, x) of one shape and maxima (b,), not {tuple(target.shape)}, "
            f"{tuple(prediction.shape)} and {tuple(maximum.shape)}"
        )
    if min(target.shape[1:]) < WINDOW:
        raise InputError(f"SSIM needs images of at least {WINDOW} x {WINDOW} pixels, not {tuple(target.shape[1:])}")
    # On the scale of the range, since its fourth power underflows in float32 for the 1e-5 of fastMRI's files.
    flat = maximum == 0
    scale = maximum.masked_fill(flat, 1)[:, None, None]
    c1, c2 = ((~flat).to(target.dtype)[:, None, None] * k**2 for k in (K1, K2))
    x, y = target / scale, prediction / scale
    moments = F.avg_pool2d(torch.stack([x, y, x * x, y * y, x * y], dim=1), WINDOW, stride=1)
    mean_x, mean_y, xx, yy, xy = moments.unbind(1)
    unbiased = WINDOW**2 / (WINDOW**2 - 1)
    var_x, var_y = unbiased * (xx - mean_x.square()), unbiased * (yy - mean_y.square())
    covariance = unbiased * (xy - mean_x * mean_y)
    luminance = _quotient(2 * mean_x * mean_y + c1, mean_x.square() + mean_y.square() + c1)
    structure = _quotient(2 * covariance + c2, var_x + var_y + c2)
    return luminance * structure


def ssim_per_slice(target: Tensor, prediction: Tensor, maximum: Tensor) -> Tensor:
    """Structural similarity of each image, differentiable; one minus its mean is fastMRI's training loss.

    Args:
        target: ``(b, y, x)``, real.
        prediction: ``(b, y, x)``, real.
        maximum: Range of the values of each image, ``(b,)``: that of its volume.

    Returns:
        ``(b,)``.

    Raises:
        InputError: As :func:`ssim_map`.
    """
    return ssim_map(target, prediction, maximum).mean(dim=(-2, -1))


def hfen(target: ArrayLike | Tensor, prediction: ArrayLike | Tensor) -> float:
    """High-frequency error norm: relative error of edges and fine structure.

    Both volumes are filtered slice by slice with a Laplacian of Gaussian of 15 x 15 pixels and standard deviation
    1.5 pixels, zero beyond the border (Ravishankar and Bresler 2011, IEEE TMI 30:1028, section IV-A; their norm of
    the difference is here divided by that of the filtered target, so that volumes compare).

    Args:
        target: The truth, ``(slices, y, x)``.
        prediction: The reconstruction, of the same shape.

    Returns:
        The error; of a target that is zero, 0 for a prediction that is zero as well and infinity for any other.

    Raises:
        InputError: The two are not real volumes of one shape.
    """
    truth, image = _volumes(target, prediction)
    kernel = _laplacian_of_gaussian(15, 1.5)
    return _ratio(float(_filter(truth - image, kernel).norm()), float(_filter(truth, kernel).norm()))


def data_consistency(image: Tensor, kspace: Tensor, mask: Tensor, maps: Tensor) -> float:
    r"""Residual ``|A x - y| / |y|`` of all images given, with ``A = mask . F . S`` and the true Fourier transform.

    Args:
        image: Complex images ``x`` in the units of ``kspace``, ``(b, set, y, x)``, of the size of k-space.
        kspace: Measured k-space ``y``, ``(b, coil, y, x)``; what the mask leaves out is not looked at.
        mask: What was sampled, bool ``(b|1, 1, 1|y, x)``.
        maps: Coil sensitivities, ``(b|1, set, coil, y, x)``.

    Returns:
        The residual: 0 where the image explains every sample, 1 for an image of zeros; where nothing but zeros was
        measured, 0 for an image of zeros and infinity for any other.

    Raises:
        InputError: Shapes do not fit.
    """
    residual, measured = residual_energy(image, kspace, mask, maps)
    return math.sqrt(_ratio(float(residual.sum()), float(measured.sum())))


def residual_energy(image: Tensor, kspace: Tensor, mask: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    r"""The two squared norms behind :func:`data_consistency`, for sums over the slices of a volume.

    Args:
        image: As there.
        kspace: As there.
        mask: As there.
        maps: As there.

    Returns:
        ``|A x - y|^2`` and ``|y|^2`` of each slice, ``(b,)`` float64 each.

    Raises:
        InputError: Shapes do not fit.
    """
    b, _, ny, nx = kspace.shape if kspace.ndim == 4 else (0, 0, 0, 0)
    fits = image.ndim == 4 and image.shape[0] == b and tuple(image.shape[2:]) == (ny, nx)
    fits = fits and maps.ndim == 5 and maps.shape[0] in (1, b) and tuple(maps.shape[2:]) == tuple(kspace.shape[1:])
    fits = fits and maps.shape[1] == image.shape[1]
    fits = fits and mask.ndim == 4 and mask.shape[0] in (1, b) and mask.shape[1] == 1
    if not fits or mask.shape[2] not in (1, ny) or mask.shape[3] != nx:
        raise InputError(
            f"an image {tuple(image.shape)}, k-space {tuple(kspace.shape)}, a mask {tuple(mask.shape)} and maps "
            f"{tuple(maps.shape)} do not fit; give (b, set, y, x), (b, coil, y, x), (b, 1, 1|y, x), "
            "(b, set, coil, y, x)"
        )
    predicted = fft2c((maps * image[:, :, None]).sum(1))
    residual, measured = (torch.where(mask, v, 0).abs().double() for v in (predicted - kspace, kspace))
    return residual.square().sum((1, 2, 3)), measured.square().sum((1, 2, 3))


def _volumes(target: ArrayLike | Tensor, prediction: ArrayLike | Tensor) -> tuple[Tensor, Tensor]:
    truth, image = (_volume(v) for v in (target, prediction))
    if truth.shape != image.shape or truth.ndim != 3 or truth.numel() == 0:
        raise InputError(
            f"metrics need two volumes (slices, y, x) of one shape, not {tuple(truth.shape)} and {tuple(image.shape)}"
        )
    if not (truth.isfinite().all() and image.isfinite().all()):
        image = torch.full_like(image, math.nan)
    return truth, image


def _volume(values: ArrayLike | Tensor) -> Tensor:
    if not isinstance(values, Tensor):
        array = np.asarray(values)
        # Copied in any case: arrays of files may be big-endian or not writable, which torch does not take.
        values = torch.from_numpy(array.astype(np.complex128 if np.iscomplexobj(array) else np.float64))
    if values.is_complex():
        raise InputError("metrics compare magnitudes; give the absolute value of a complex volume")
    return values.detach().cpu().double()


def _peak(truth: Tensor, maximum: float | None) -> float:
    peak = float(truth.max()) if maximum is None else float(maximum)
    if peak < 0:
        raise InputError(f"the maximum is {peak:g}; it must not be negative, since metrics compare magnitudes")
    return peak


def _quotient(above: Tensor, below: Tensor) -> Tensor:
    """``above / below``, where ``0 / 0`` is 1: replaced before the division, whose gradient would be NaN."""
    empty = (below == 0) & (above == 0)
    return above.masked_fill(empty, 1) / below.masked_fill(empty, 1)


def _ratio(above: float, below: float) -> float:
    """``above / below`` of two norms, where ``0 / 0`` is 0."""
    if below != 0:  # NaN included
        return above / below
    return math.inf if above > 0 else above


def _filter(volume: Tensor, kernel: Tensor) -> Tensor:
    """Convolves each slice, zero beyond the border; by FFT, ten times as fast as ``conv2d`` in double precision."""
    (ny, nx), width = volume.shape[1:], len(kernel)
    size = (ny + width - 1, nx + width - 1)
    filtered = torch.fft.irfft2(torch.fft.rfft2(volume, s=size) * torch.fft.rfft2(kernel, s=size), s=size)
    return filtered[:, width // 2 : width // 2 + ny, width // 2 : width // 2 + nx]


@cache
def _laplacian_of_gaussian(width: int, sigma: float) -> Tensor:
    """``(width, width)`` float64, of sum zero; that of MATLAB's ``fspecial("log", width, sigma)``."""
    at = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    squares = at[:, None].square() + at[None, :].square()
    gaussian = torch.exp(-squares / (2 * sigma**2))
    kernel = (squares - 2 * sigma**2) / sigma**4 * gaussian / gaussian.sum()
    return kernel - kernel.mean()
