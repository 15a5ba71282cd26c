"""How far a predicted trajectory is from the true one: pure functions, no state.

Fields are ``(b, time, channel, *grid)`` with one to three grid axes, sampled uniformly on ``[0, L)`` per axis
with the left end included. Everything that differentiates or looks at wavenumbers takes the field to be
periodic on that domain. A function returns one number per trajectory, ``(b,)``, unless it says otherwise, so
that the caller has the mean and its standard error.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sciml_monarch.pde.spectra import Spectrum, mode_power, n_complete_shells, power_spectrum, wavenumber_norm


class CorrelationTime(NamedTuple):
    """When predictions lose the truth."""

    time: Tensor
    """Time since the last known frame, ``(b,)``."""
    is_lower_bound: Tensor
    """``(b,)`` bool: the threshold was never crossed, ``time`` is the horizon."""


class Growth(NamedTuple):
    """How a free roll-out behaves beyond the horizon that it was trained on."""

    rms_ratio: Tensor
    """RMS of each step over that of the truth in the training horizon, ``(b, n_steps)``; or inf."""
    first_diverged_step: tuple[int | None, ...]
    """Per trajectory the first step (from 1) beyond the limit or non-finite; None if there is none."""
    relative_l2_past: Tensor | None
    """Relative L2 past the training horizon, ``(b,)``; None where the truth ends before."""


def relative_l2(prediction: Tensor, target: Tensor, dim: int | Sequence[int] | None = None) -> Tensor:
    r"""Relative L2 error ``|prediction - target| / |target|``.

    With the default ``dim`` this is the metric of the FNO paper (Li et al. 2021, section 5): the norm runs
    over the whole trajectory, and the published number is the mean over trajectories of what is returned
    here. Differentiable.

    Args:
        prediction: Any shape with the batch first.
        target: The same shape.
        dim: Axes that the norms run over; None stands for all but the first.

    Returns:
        ``(b,)``, or the shape that is left after reducing ``dim``. Where the target is zero, zero if the
        prediction is as well and a huge number otherwise.

    Raises:
        ValueError: If the shapes differ (broadcasting would hide a mistake).
    """
    _check_same_shape(prediction, target)
    axes = tuple(range(1, target.ndim)) if dim is None else dim
    error = torch.linalg.vector_norm(prediction - target, dim=axes)
    return error / torch.linalg.vector_norm(target, dim=axes).clamp_min(torch.finfo(target.dtype).tiny)


def relative_l2_per_step(prediction: Tensor, target: Tensor) -> Tensor:
    """Relative L2 error of each time by itself, ``(b, time, channel, *grid) -> (b, time)``."""
    return relative_l2(prediction, target, dim=tuple(range(2, target.ndim)))


def relative_h1(prediction: Tensor, target: Tensor, lengths: Sequence[float]) -> Tensor:
    r"""Relative error of the whole trajectory in the norm ``|u|_H1^2 = mean(u^2) + mean(|grad u|^2)``.

    The gradient is that of the trigonometric interpolant, taken in Fourier space by Parseval's identity (the
    Nyquist mode of an even axis counts with its full wavenumber). It is exact for periodic, band-limited
    fields.

    Args:
        prediction: ``(b, time, channel, *grid)``.
        target: The same shape.
        lengths: Length of the domain along each grid axis; the gradient is per unit of it.

    Returns:
        ``(b,)``.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_same_shape(prediction, target)
    weight = 1 + wavenumber_norm(target.shape[-len(lengths) :], lengths, target).square()

    def norm(field: Tensor) -> Tensor:
        return (mode_power(field, len(lengths)) * weight).flatten(1).sum(1).sqrt()

    return norm(prediction - target) / norm(target).clamp_min(torch.finfo(target.dtype).tiny)


def spectrum_error(
    prediction: Tensor,
    target: Tensor,
    lengths: Sequence[float],
    spectrum: Callable[[Tensor, Sequence[float]], Spectrum] = power_spectrum,
    floor: float = 1e-10,
) -> Tensor:
    r"""Mean of ``|log10(E_prediction(s) / E_truth(s))|``: 0.3 is a factor of two in the typical shell.

    The mean runs over times, channels and those shells which the truth resolves: complete ones
    (`n_complete_shells`), above zero wavenumber, which hold at least ``floor`` of the truth's total at that
    time. The prediction is raised to the same floor before the logarithm, so that a shell without any energy
    costs a finite amount.

    Args:
        prediction: ``(b, time, channel, *grid)``.
        target: The same shape.
        lengths: Length of the domain along each grid axis.
        spectrum: `spectra.energy_spectrum` for vorticity, `power_spectrum` for anything else.
        floor: Smallest share of the total that counts as resolved; the default lies above float32's rounding.

    Returns:
        ``(b,)``; inf for a prediction that is not finite, zero where the truth resolves no shell.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_same_shape(prediction, target)
    shells = slice(1, n_complete_shells(target.shape[-len(lengths) :], lengths))
    truth = spectrum(target, lengths).values
    lowest = floor * truth.sum(-1, keepdim=True)
    truth, predicted = truth[..., shells], spectrum(prediction, lengths).values[..., shells]
    resolved = (truth >= lowest) & (truth > 0)
    ratio = predicted.maximum(lowest) / torch.where(resolved, truth, 1)
    error = torch.where(resolved, ratio.log10().abs().nan_to_num(nan=math.inf, posinf=math.inf), 0)
    return error.flatten(1).sum(1) / resolved.flatten(1).sum(1).clamp_min(1)


def correlation(prediction: Tensor, target: Tensor) -> Tensor:
    """Pearson correlation over the grid at each time, averaged over channels.

    Args:
        prediction: ``(b, time, channel, *grid)``.
        target: The same shape.

    Returns:
        ``(b, time)`` in [-1, 1]; zero where a field is constant over the grid or not finite, where it is
        undefined.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_same_shape(prediction, target)
    prediction, target = prediction.flatten(3), target.flatten(3)
    prediction = prediction - prediction.mean(-1, keepdim=True)
    target = target - target.mean(-1, keepdim=True)
    # Scaled before squaring: a roll-out that blows up overflows in the norms long before it does itself.
    prediction = prediction / prediction.abs().amax(-1, keepdim=True)
    target = target / target.abs().amax(-1, keepdim=True)
    norms = torch.linalg.vector_norm(prediction, dim=-1) * torch.linalg.vector_norm(target, dim=-1)
    product = (prediction * target).sum(-1) / norms
    return product.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).mean(-1)


def correlation_time(prediction: Tensor, target: Tensor, dt: float, threshold: float = 0.9) -> CorrelationTime:
    """First time that the correlation with the truth falls below a threshold.

    The first frame lies ``dt`` after the last known one, at which the correlation is one. Between frames the
    correlation is interpolated linearly.

    Args:
        prediction: ``(b, time, channel, *grid)``.
        target: The same shape.
        dt: Time between frames.
        threshold: Correlation that counts as lost, in (0, 1).

    Returns:
        Times ``(b,)`` in the unit of ``dt`` and, ``(b,)``, whether they are lower bounds: of a trajectory
        that never falls below the threshold only the horizon is known.

    Raises:
        ValueError: If the shapes differ.
    """
    known = correlation(prediction, target)
    values = torch.cat([torch.ones_like(known[:, :1]), known], dim=1)  # (b, time + 1), from the last known frame on
    below = values < threshold
    lost = below.any(1)
    last = below.int().argmax(1).clamp_min(1)  # argmax gives the first of equals; zero where nothing is below
    after, before = values.gather(1, last[:, None])[:, 0], values.gather(1, last[:, None] - 1)[:, 0]
    crossing = dt * (last - 1 + (before - threshold) / (before - after))
    return CorrelationTime(torch.where(lost, crossing, dt * known.shape[1]), ~lost)


def rollout_growth(prediction: Tensor, target: Tensor, n_train_steps: int, limit: float = 10.0) -> Growth:
    """Whether a free roll-out stays bounded past the horizon it was trained on, and how good it is there.

    Args:
        prediction: ``(b, n_steps, channel, *grid)``, usually several training horizons long.
        target: ``(b, n_known, channel, *grid)``, the truth as far as it goes: at least ``n_train_steps``.
        n_train_steps: Steps that the network was trained to roll out.
        limit: Multiple of the truth's root mean square over the training horizon that counts as divergence.

    Returns:
        The RMS ratio of each step, the first diverged step and the relative L2 error past the horizon, per
        trajectory.

    Raises:
        ValueError: If the truth is shorter than the training horizon or of other channels or grid.
    """
    if prediction.shape[2:] != target.shape[2:] or len(prediction) != len(target):
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} do not match")
    if not 1 <= n_train_steps <= target.shape[1]:
        raise ValueError(f"the truth has {target.shape[1]} steps, the training horizon {n_train_steps}")
    scale = target[:, :n_train_steps].flatten(1).square().mean(1).sqrt()
    rms = prediction.flatten(2).square().mean(2).sqrt() / scale[:, None].clamp_min(torch.finfo(target.dtype).tiny)
    rms = torch.where(rms.isnan(), math.inf, rms)  # (b, n_steps); NaN would be lost in the comparison
    diverged = rms > limit
    first = [int(steps[0]) + 1 if len(steps := row.nonzero()[:, 0]) else None for row in diverged]
    past = slice(n_train_steps, min(prediction.shape[1], target.shape[1]))
    error = relative_l2(prediction[:, past], target[:, past]) if past.start < past.stop else None
    return Growth(rms, tuple(first), error)


def _check_same_shape(prediction: Tensor, target: Tensor) -> None:
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} must have the same shape"
        )
