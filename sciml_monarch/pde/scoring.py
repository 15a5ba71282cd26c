"""Networks rolled out over the same test trajectories and measured: the numbers behind `evaluate`."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.pde import metrics, spectra
from sciml_monarch.pde.protocol import Protocol
from sciml_monarch.pde.readers import Trajectories
from sciml_monarch.pde.surrogate import Surrogate


@dataclass(frozen=True)
class Scores:
    """Measurements of one network, one value a trajectory where the shape has ``n``.

    Attributes:
        relative_l2: Whole trajectory over ``n_steps``, ``(n,)``.
        relative_l2_per_step: ``(n, n_known)``.
        relative_h1: ``(n,)``.
        spectrum_error: ``(n,)``.
        correlation: ``(n, n_known)``.
        correlation_time: When the correlation falls below 0.9, within the known frames.
        growth: Behaviour of the free roll-out.
        truth_rms: RMS of the truth over that of its training horizon, ``(n, n_known)``.
        spectrum: Of the last scored frame, mean over trajectories, ``(channel, n_shells)``, complete shells
            only.
        truth_spectrum: The same of the truth.
        sample: Prediction of the first test trajectory, ``(n_steps, channel, *grid)``.
        ms_per_step: Median time of a step of one trajectory in milliseconds.
    """

    relative_l2: Tensor
    relative_l2_per_step: Tensor
    relative_h1: Tensor
    spectrum_error: Tensor
    correlation: Tensor
    correlation_time: metrics.CorrelationTime
    growth: metrics.Growth
    truth_rms: Tensor
    spectrum: spectra.Spectrum
    truth_spectrum: spectra.Spectrum
    sample: Tensor
    ms_per_step: float


@torch.no_grad()
def score(
    network: Surrogate,
    data: Trajectories,
    task: Protocol,
    batch_size: int = 20,
    device: torch.device | str = "cpu",
    advance: Callable[[int], object] = lambda n: None,
) -> Scores:
    """Rolls a network out over the test trajectories and measures it.

    Args:
        network: The network; it is moved to ``device``.
        data: The trajectories.
        task: What `make_protocol` settled.
        batch_size: Trajectories at a time.
        device: Where to.
        advance: Called with the number of trajectories done after each batch.

    Returns:
        The measurements, on the CPU.
    """
    network = network.to(device).eval()
    n_history = network.description.n_history
    reference = min(task.horizon, task.n_known)
    spectrum = spectrum_of(network.description.fields, task.grid)
    shells = spectra.n_complete_shells(task.grid, task.lengths)
    parts: dict[str, list[Tensor]] = {}
    diverged: list[int | None] = []
    sample, ms_per_step = torch.empty(0), math.nan
    for batch in _batches(task.indices, batch_size):
        frames = torch.stack([data.read(i, 0, task.first + task.n_known, task.stride) for i in batch]).to(device)
        history = frames[:, task.first - n_history : task.first]
        truth = frames[:, task.first :]
        free = network.rollout(history, task.n_free)
        known = free[:, : task.n_known]
        scored, target = free[:, : task.n_steps], truth[:, : task.n_steps]
        growth = metrics.rollout_growth(free, truth, reference)
        times = metrics.correlation_time(known, truth, task.dt)
        values = {
            "l2": metrics.relative_l2(scored, target),
            "per_step": metrics.relative_l2_per_step(known, truth),
            "h1": metrics.relative_h1(scored, target, task.lengths),
            "spectrum_error": metrics.spectrum_error(scored, target, task.lengths, spectrum),
            "correlation": metrics.correlation(known, truth),
            "time": times.time,
            "bound": times.is_lower_bound,
            "rms": growth.rms_ratio,
            "truth_rms": metrics.rollout_growth(truth, truth, reference).rms_ratio,
            "spectrum": spectrum(scored[:, -1], task.lengths).values[..., :shells],
            "truth_spectrum": spectrum(target[:, -1], task.lengths).values[..., :shells],
        }
        if growth.relative_l2_past is not None:
            values["past"] = growth.relative_l2_past
        for name, value in values.items():
            parts.setdefault(name, []).append(value.cpu())
        diverged += growth.first_diverged_step
        if not sample.numel():
            sample = scored[0].cpu()
            ms_per_step = _ms_per_step(network, history[:1], min(task.horizon, 10))
        advance(len(batch))
    all_of = {name: torch.cat(values) for name, values in parts.items()}
    wavenumbers = spectrum(target[:1, -1], task.lengths).wavenumbers[:shells].cpu()
    return Scores(
        relative_l2=all_of["l2"],
        relative_l2_per_step=all_of["per_step"],
        relative_h1=all_of["h1"],
        spectrum_error=all_of["spectrum_error"],
        correlation=all_of["correlation"],
        correlation_time=metrics.CorrelationTime(all_of["time"], all_of["bound"]),
        growth=metrics.Growth(all_of["rms"], tuple(diverged), all_of.get("past")),
        truth_rms=all_of["truth_rms"],
        spectrum=spectra.Spectrum(wavenumbers, all_of["spectrum"].mean(0)),
        truth_spectrum=spectra.Spectrum(wavenumbers, all_of["truth_spectrum"].mean(0)),
        sample=sample,
        ms_per_step=ms_per_step,
    )


def spectrum_of(fields: Sequence[str], grid: Sequence[int]) -> Callable[[Tensor, Sequence[float]], spectra.Spectrum]:
    """Kinetic energy for two-dimensional vorticity, power for any other fields."""
    vorticity = tuple(fields) == ("vorticity",) and len(grid) == 2
    return spectra.energy_spectrum if vorticity else spectra.power_spectrum


def _batches(indices: range, size: int) -> list[range]:
    if size < 1:
        raise InputError(f"batch_size is {size}; it must be at least 1")
    return [indices[i : i + size] for i in range(0, len(indices), size)]


def _ms_per_step(network: Surrogate, history: Tensor, n_steps: int, n_warm_up: int = 2, n_repeats: int = 7) -> float:
    """Median over roll-outs of one trajectory, after a warm-up; waits for the device."""

    def seconds() -> float:
        start = time.perf_counter()
        network.rollout(history, n_steps)
        if history.is_cuda:
            torch.cuda.synchronize(history.device)
        return time.perf_counter() - start

    measured = [seconds() for _ in range(n_warm_up + n_repeats)][n_warm_up:]
    return 1e3 * statistics.median(measured) / n_steps
