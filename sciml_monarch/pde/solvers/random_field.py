"""Gaussian random fields on the unit torus: the starts of the Fourier neural operator's data sets.

Every field has its own seed and is drawn and synthesised on the CPU in float64, one by one, so that it is
equal bit by bit whatever the batch it is asked for in and whatever the device that will use it.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sciml_monarch.errors import InputError

Seed = int | Sequence[int]


def _modes_by_shell(n: int) -> NDArray[np.int64]:
    """Half of the non-zero wave numbers below Nyquist, coarse before fine: (n_modes, 2).

    The other half follows by complex conjugation. Ordering by shells max(|kx|, |ky|) makes the modes of a
    coarse grid the first modes of a fine one, so that one seed gives the same large scales on every grid.
    """
    m = (n - 1) // 2
    kx, ky = np.meshgrid(np.arange(-m, m + 1), np.arange(0, m + 1), indexing="ij")
    half = (ky > 0) | (kx > 0)
    kx, ky = kx[half], ky[half]
    order = np.lexsort((ky, kx, np.maximum(np.abs(kx), ky)))
    return np.stack((kx[order], ky[order]), axis=1)


def gaussian_random_field(
    n: int,
    seeds: Sequence[Seed],
    *,
    tau: float = 7.0,
    alpha: float = 2.5,
    sigma: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draws periodic fields from N(0, sigma^2 (-Laplacian + tau^2)^-alpha) without their mean.

    The defaults are the initial vorticity of Li et al., "Fourier Neural Operator for Parametric Partial
    Differential Equations" (ICLR 2021), section 5.3, with the amplitude of the authors' published data, sigma =
    sqrt(2) tau^(alpha - 1). The paper prints a smaller one, later versions of the authors' code lack the factor
    sqrt(2); ``data/navier_stokes.md`` says how all three compare with the data.

    Args:
        n: Points per axis.
        seeds: One seed a field, an integer or a sequence of them such as (data set, trajectory). A seed gives
            the same low modes on every grid.
        tau: Inverse length scale of the field, in 1/m.
        alpha: Decay of the spectrum: coefficients fall off like |k|^-alpha.
        sigma: Amplitude; None is sqrt(2) tau^(alpha - 1), which keeps the variance independent of tau for fine grids.
        dtype: Floating-point type of the result; the field is computed in float64.

    Returns:
        The fields on the CPU, (len(seeds), n, n), in the unit of vorticity (1/s) when used as one.

    Raises:
        InputError: If n is below 4, a seed is negative, or tau or alpha does not give a finite variance.
    """
    if n < 4:
        raise InputError(f"a random field needs at least 4 points per axis, not n={n}")
    if not (tau > 0 and alpha > 1):
        raise InputError(f"the field has a finite variance for tau > 0 and alpha > 1, not tau={tau}, alpha={alpha}")
    amplitude = math.sqrt(2) * tau ** (alpha - 1) if sigma is None else sigma
    modes = _modes_by_shell(n)
    wave_square = 4 * math.pi**2 * (modes**2).sum(axis=1)
    # E|coefficient|^2 is the eigenvalue; half of it for the real and half for the imaginary part
    deviation = amplitude * (wave_square + tau**2) ** (-alpha / 2) / math.sqrt(2)
    rows, columns = modes[:, 0] % n, modes[:, 1]
    mirrored = columns == 0  # the inverse real FFT needs both halves of its zeroth column
    fields = torch.empty(len(seeds), n, n, dtype=dtype)
    for field, seed in zip(fields, seeds, strict=True):
        entropy = [seed] if isinstance(seed, int) else list(seed)
        if any(word < 0 for word in entropy):
            raise InputError(f"a seed must not be negative, got {seed}")
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
        noise = generator.standard_normal((len(modes), 2))
        coefficients = deviation * (noise[:, 0] + 1j * noise[:, 1])
        spectrum = np.zeros((n, n // 2 + 1), dtype=np.complex128)
        spectrum[rows, columns] = coefficients
        spectrum[-rows[mirrored] % n, 0] = coefficients[mirrored].conj()
        field.copy_(torch.from_numpy(np.fft.irfft2(spectrum, s=(n, n), norm="forward")))
    return fields
