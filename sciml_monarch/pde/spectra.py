"""Spectra of fields by wavenumber, summed over shells: pure functions.

Fields are real, ``(..., *grid)`` with one to three grid axes, sampled uniformly on ``[0, L)`` per axis and
periodic. The coefficients ``u_k`` are those of the Fourier series, so that sums over all shells are means
over the domain (Parseval).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Spectrum(NamedTuple):
    """A spectrum summed over spherical shells of wavenumbers."""

    wavenumbers: Tensor
    """Centres of the shells, ``(n_shells,)``, in radians per unit of length; the first is zero."""
    values: Tensor
    """Sum of the shell, ``(..., n_shells)``."""


def power_spectrum(field: Tensor, lengths: Sequence[float]) -> Spectrum:
    r"""Power of a field by wavenumber: ``P(s) = sum of |u_k|^2 over round(|k| / k_0) = s``.

    ``u_k`` are the coefficients of the Fourier series, so that the sum over all shells is the mean of ``u^2``
    over the domain (Parseval). ``k_0 = 2 pi / max(lengths)`` is the lowest wavenumber. Shells beyond the
    Nyquist frequency of an axis are incomplete; `n_complete_shells` says where they begin.

    Args:
        field: ``(..., *grid)``, real.
        lengths: Length of the domain along each grid axis.

    Returns:
        Wavenumbers ``(n_shells,)`` and power ``(..., n_shells)`` in units of the field squared.
    """
    return _shell_sum(mode_power(field, len(lengths)), lengths)


def energy_spectrum(vorticity: Tensor, lengths: Sequence[float]) -> Spectrum:
    r"""Kinetic energy by wavenumber of a two-dimensional incompressible flow, from its vorticity.

    ``E(s) = 1/2 sum of |w_k|^2 / |k|^2 over round(|k| / k_0) = s``, since ``|u_k| = |w_k| / |k|``. The sum
    over all shells is the mean kinetic energy ``1/2 mean(|u|^2)`` of the flow without its mean wind, which
    vorticity does not see.

    Args:
        vorticity: ``(..., n_x, n_y)``, real, in 1/s.
        lengths: The two lengths of the domain in metres.

    Returns:
        Wavenumbers ``(n_shells,)`` in rad/m and energies ``(..., n_shells)`` in m^2/s^2.

    Raises:
        ValueError: If the domain does not have two axes.
    """
    if len(lengths) != 2:
        raise ValueError(
            f"energy_spectrum needs two-dimensional vorticity, not {len(lengths)} axes; use power_spectrum"
        )
    k = wavenumber_norm(vorticity.shape[-2:], lengths, vorticity)
    inverse = torch.where(k > 0, k, torch.inf).square().reciprocal()
    return _shell_sum(0.5 * mode_power(vorticity, 2) * inverse, lengths)


def n_complete_shells(grid: Sequence[int], lengths: Sequence[float]) -> int:
    """Number of shells of a spectrum, the zeroth included, that lie wholly below every Nyquist frequency."""
    nyquist = min(n / (2 * length) for n, length in zip(grid, lengths, strict=True)) * max(lengths)
    return math.floor(nyquist + 0.5)  # shell s reaches up to s + 1/2


def wavenumber_norm(grid: Sequence[int], lengths: Sequence[float], like: Tensor) -> Tensor:
    """``|k|`` of every Fourier mode, ``(*grid)``, in radians per unit of length."""
    axes = [
        torch.fft.fftfreq(n, length / n, dtype=torch.float64, device=like.device) * 2 * math.pi
        for n, length in zip(grid, lengths, strict=True)
    ]
    return torch.stack([k.square() for k in torch.meshgrid(*axes, indexing="ij")]).sum(0).sqrt().to(like.dtype)


def mode_power(field: Tensor, n_axes: int) -> Tensor:
    """``|u_k|^2`` of the Fourier series over the last ``n_axes`` axes, same shape as ``field``."""
    modes = torch.fft.fftn(field, dim=tuple(range(-n_axes, 0)), norm="forward")
    return modes.real.square() + modes.imag.square()


def _shell_sum(power: Tensor, lengths: Sequence[float]) -> Spectrum:
    """Sums ``(..., *grid)`` over shells of width ``k_0``."""
    lowest = 2 * math.pi / max(lengths)
    norm = wavenumber_norm(power.shape[-len(lengths) :], lengths, power)
    shell = (norm / lowest).round().long().flatten()
    n_shells = int(shell.max()) + 1
    flat = power.flatten(-len(lengths))
    values = torch.zeros(*flat.shape[:-1], n_shells, dtype=power.dtype, device=power.device)
    values.index_add_(-1, shell, flat)
    return Spectrum(torch.arange(n_shells, device=power.device, dtype=power.dtype) * lowest, values)
