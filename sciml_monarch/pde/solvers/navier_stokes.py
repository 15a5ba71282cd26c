"""Solves the two-dimensional Navier–Stokes equations on the unit torus for many starts at once.

``simulate_navier_stokes`` is the whole of it; ``NavierStokesSolver`` keeps what can be reused between calls.
What the equations are and how they are discretised is in ``vorticity.py``.
"""

import importlib.util
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.pde.solvers.fused import FusedSteps
from sciml_monarch.pde.solvers.step_size import Leg, StepSize, VelocityBound
from sciml_monarch.pde.solvers.vorticity import (
    EagerSteps,
    Forcing,
    fno_forcing,
    make_equation,
    to_grid,
    to_spectrum,
    velocity,
)

Backend = Literal["auto", "eager", "compiled", "graph"]

# Bytes that one batch of trajectories should touch, so that a step stays within the last-level cache.
WORKING_SET = {"cuda": 50_000_000, "cpu": 1_500_000}


@dataclass(frozen=True)
class Solution:
    """What ``NavierStokesSolver.run`` gives back.

    Attributes:
        vorticity: (b, len(times), resolution, resolution), in 1/s.
        longest_step: Longest time step taken by each trajectory, (b,) float64 on the CPU, in seconds.
    """

    vorticity: Tensor
    longest_step: Tensor


class NavierStokesSolver:
    """A solver for one grid, viscosity and forcing, to be used for any number of starts.

    Args:
        n: Points per axis of the grid on which the equations are solved.
        viscosity: Kinematic viscosity, in m^2/s; positive.
        forcing: Source of vorticity in 1/s^2, constant in time: a function of the coordinates x and y (each
            (n, n), metres, x along the first axis) that returns (n, n), such a tensor, or None.
        step: The time step in seconds, or None to derive it from the grid and ``bound``. A step that is given
            is never changed except to divide the intervals between outputs.
        bound: The velocity that the time step is made for.
        device: Where to compute.
        dtype: float32 or float64.
        backend: ``"eager"``, the reference; ``"compiled"`` with fused kernels, ``"graph"`` with fused kernels
            replayed as a CUDA graph; ``"auto"`` is graph on CUDA devices with Triton and eager elsewhere.

    Raises:
        InputError: If an argument is outside its range.
    """

    def __init__(
        self,
        n: int,
        viscosity: float,
        forcing: Forcing = fno_forcing,
        *,
        step: float | None = None,
        bound: VelocityBound | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        backend: Backend = "auto",
    ) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        self.equation = make_equation(n, viscosity, forcing, self.device, dtype)
        self.step_size = StepSize(self.equation.m, step, bound or VelocityBound())
        self.backend = _choose(backend, self.device)
        self._eager = EagerSteps(self.equation)
        self._fused: dict[int, FusedSteps] = {}

    def default_chunk(self) -> int:
        """How many trajectories to step at once, so that a step stays within the cache."""
        n, m = self.equation.n, self.equation.m
        size = 8 if self.dtype == torch.float32 else 16  # bytes of a complex number
        one = size * (2 * n * n + 3 * (2 * m + 1) * (m + 1))
        return max(1, WORKING_SET.get(self.device.type, WORKING_SET["cpu"]) // one)

    def run(
        self,
        vorticity: Tensor,
        times: Sequence[float],
        *,
        resolution: int | None = None,
        chunk: int | None = None,
        first_trajectory: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> Solution:
        """Integrates starts at t = 0 and returns the vorticity at given times.

        Args:
            vorticity: Starts, (b, n, n), in 1/s, on any device; modes above the 2/3 rule are dropped.
            times: Output times in seconds, increasing; 0 gives the start back.
            resolution: Points per axis of the result, a divisor of n: every n/resolution-th point. None is n.
            chunk: Trajectories stepped at once; None is ``default_chunk()``. It changes results only by
                rounding.
            first_trajectory: Number of the first start, for messages.
            progress: Called with the number of trajectories whenever they reach an output time.

        Raises:
            InputError: If a start is not square or not finite, the times do not increase, the resolution does
                not divide n, or a trajectory stays unstable; the message names the trajectory, the time and a
                step to try.
        """
        times = _check_times(times)
        _check_starts(vorticity, self.equation.n, first_trajectory)
        resolution = self.equation.n if resolution is None else resolution
        if resolution < 1 or self.equation.n % resolution:
            raise InputError(f"resolution {resolution} must divide the {self.equation.n} points of the grid")
        if chunk is not None and chunk < 1:
            raise InputError(f"chunk must be at least 1 trajectory, not {chunk}")
        n_trajectories = vorticity.shape[0]
        if chunk is None:
            chunk = -(-n_trajectories // max(1, -(-n_trajectories // self.default_chunk())))
        shape = (n_trajectories, len(times), resolution, resolution)
        fields = torch.empty(shape, dtype=self.dtype, device=vorticity.device)
        longest = torch.zeros(n_trajectories, dtype=torch.float64)
        report = progress or (lambda _: None)
        for begin in range(0, n_trajectories, chunk):
            part = slice(begin, min(begin + chunk, n_trajectories))
            starts = vorticity[part].to(self.device, self.dtype)
            target = Solution(fields[part], longest[part])
            self._solve_chunk(starts, times, target, chunk, first_trajectory + begin, report)
        return Solution(fields, longest)

    @torch.no_grad()
    def _solve_chunk(
        self,
        starts: Tensor,
        times: Sequence[float],
        target: Solution,
        chunk: int,
        first: int,
        report: Callable[[int], None],
    ) -> None:
        """Solves the trajectories together, then alone and with smaller steps those that became too fast."""
        flow = velocity(to_spectrum(starts, self.equation.m), self.equation)
        speeds = (flow.real.abs() + flow.imag.abs()).amax(dim=(1, 2)).tolist()
        levels = [self.step_size.start_level(speed) for speed in speeds]
        self._check_given_step(speeds, times, first)
        steps = self._steps(chunk)
        for level in sorted(set(levels)):
            members = [i for i, own in enumerate(levels) if own == level]
            broken = self._integrate(steps, starts, members, times, target, level, report)
            halvings = 0
            while broken:
                halvings += 1
                if halvings > self.step_size.n_halvings:
                    member, (leg, speed) = next(iter(broken.items()))
                    raise InputError(f"trajectory {first + member} is {self.step_size.advice(leg, speed)}")
                again: dict[int, tuple[Leg, float]] = {}
                for member in broken:
                    again |= self._integrate(
                        self._eager, starts, [member], times, target, level + halvings, lambda _: None
                    )
                broken = again

    def _integrate(
        self,
        steps: EagerSteps | FusedSteps,
        starts: Tensor,
        members: list[int],
        times: Sequence[float],
        target: Solution,
        level: int,
        report: Callable[[int], None],
    ) -> dict[int, tuple[Leg, float]]:
        """Solves some members of a chunk with equal steps into ``target``.

        Returns:
            The members that became too fast for the step: in which leg, and how fast (NaN if not finite).
            Their rows of ``target`` are to be overwritten.
        """
        # Fused steps have a fixed batch, filled up with copies: a result never depends on how many there are.
        n_copies = steps.batch - len(members) if isinstance(steps, FusedSteps) else 0
        state = to_spectrum(starts[members + members[-1:] * n_copies], self.equation.m)
        stride = self.equation.n // target.vorticity.shape[-1]
        legs = self.step_size.legs(times, level)
        target.longest_step[members] = max(leg.step for leg in legs)
        broken: dict[int, tuple[Leg, float]] = {}
        n_written = 0
        for leg in legs:
            if leg.n_steps:
                state, peak = steps(state, leg.step, leg.n_steps)
                finite = torch.isfinite(torch.view_as_real(state)).flatten(1).all(dim=1)
                speeds = torch.where(finite, peak, math.nan).tolist()
                limit = self.step_size.speed_limit(leg.step)
                for member, speed in zip(members, speeds, strict=False):  # the copies come last
                    if member not in broken and not speed <= limit:
                        broken[member] = (leg, speed)
                if len(broken) == len(members):
                    report(len(members) * (len(times) - n_written))
                    break
            if leg.output is not None:
                frame = to_grid(state[: len(members)], self.equation.n)[:, ::stride, ::stride]
                target.vorticity[members, leg.output] = frame.to(target.vorticity.device)
                report(len(members))
                n_written += 1
        return broken

    def _check_given_step(self, speeds: list[float], times: Sequence[float], first: int) -> None:
        """Refuses a given step that the starts already are too fast for."""
        leg = next((leg for leg in self.step_size.legs(times, 0) if leg.n_steps), None)
        if self.step_size.step is None or leg is None:
            return
        for member, speed in enumerate(speeds):
            if speed > self.step_size.speed_limit(leg.step):
                raise InputError(f"trajectory {first + member} is {self.step_size.advice(leg, speed)}")

    def _steps(self, batch: int) -> EagerSteps | FusedSteps:
        if self.backend == "eager":
            return self._eager
        if batch not in self._fused:
            self._fused[batch] = FusedSteps(self.equation, batch, graph=self.backend == "graph")
        return self._fused[batch]


def simulate_navier_stokes(
    vorticity: Tensor,
    viscosity: float,
    times: Sequence[float],
    forcing: Forcing = fno_forcing,
    *,
    step: float | None = None,
    bound: VelocityBound | None = None,
    resolution: int | None = None,
    chunk: int | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Solves the forced two-dimensional Navier–Stokes equations on the unit torus in vorticity form.

    Pseudo-spectral with 2/3 de-aliasing; fourth-order Runge–Kutta with the viscous term integrated exactly.
    The time step follows from the grid and ``bound`` alone, so that a trajectory does not depend on the
    others; one that is faster than the bound is solved again alone with a smaller step.

    Args:
        vorticity: Starts at t = 0, (b, n, n), float32 or float64, in 1/s; solved on their device and in their
            precision.
        viscosity: Kinematic viscosity, in m^2/s; positive.
        times: Output times in seconds, increasing; 0 gives the start back, without the modes above the 2/3
            rule.
        forcing: Source of vorticity in 1/s^2, constant in time: a function of the coordinates x and y (each
            (n, n), metres, x along the first axis) that returns (n, n), such a tensor, or None.
        step: The time step in seconds; None derives it.
        bound: The velocity that a derived time step is made for; None is that of the Fourier neural
            operator's data.
        resolution: Points per axis of the result, a divisor of n; None is n.
        chunk: Trajectories stepped at once; None fits a step into the cache. It changes results only by
            rounding.
        backend: As in ``NavierStokesSolver``.

    Returns:
        The vorticity, (b, len(times), resolution, resolution), on the device of the starts, in 1/s.

    Raises:
        InputError: If an argument is outside its range, or a trajectory stays unstable; the message names the
            trajectory, the time and a step to try.
    """
    if vorticity.ndim != 3:
        raise InputError(f"vorticity must have the shape (b, n, n), not {tuple(vorticity.shape)}")
    solver = NavierStokesSolver(
        vorticity.shape[-1],
        viscosity,
        forcing,
        step=step,
        bound=bound,
        device=vorticity.device,
        dtype=vorticity.dtype,
        backend=backend,
    )
    return solver.run(vorticity, times, resolution=resolution, chunk=chunk).vorticity


def _choose(backend: Backend, device: torch.device) -> Backend:
    if backend == "graph" and device.type != "cuda":
        raise InputError(f"backend graph needs a CUDA device, not {device}: use eager or compiled")
    if backend != "auto":
        return backend
    return "graph" if device.type == "cuda" and importlib.util.find_spec("triton") is not None else "eager"


def _check_times(times: Sequence[float]) -> list[float]:
    checked = [float(time) for time in times]
    if not checked or checked[0] < 0 or not all(math.isfinite(time) for time in checked):
        raise InputError(f"times must be one or more finite numbers of seconds from 0 on, not {checked}")
    for before, after in itertools.pairwise(checked):
        if after <= before:
            raise InputError(f"times must increase, but {after:g} s follows {before:g} s")
    return checked


def _check_starts(vorticity: Tensor, n: int, first: int) -> None:
    if vorticity.ndim != 3 or vorticity.shape[1:] != (n, n) or vorticity.shape[0] == 0:
        raise InputError(f"vorticity must have the shape (b, {n}, {n}), b > 0, not {tuple(vorticity.shape)}")
    finite = torch.isfinite(vorticity).flatten(1).all(dim=1)
    if not bool(finite.all()):
        bad = int((~finite).nonzero()[0])
        raise InputError(f"the start of trajectory {first + bad} has values that are not finite: correct or drop it")
