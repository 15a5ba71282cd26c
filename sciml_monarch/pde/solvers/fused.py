"""The time step of ``vorticity.advance`` for CUDA devices: fused real arithmetic, replayed as a CUDA graph.

Each of the four stages is one kernel that spreads the state over the plane of wave numbers as a velocity, an
inverse FFT, one kernel that squares, an FFT, and one kernel that gathers the tendency and updates. Real and
imaginary parts are separate numbers here because the compiler that fuses the kernels has no complex type. The
kernels compute wave numbers instead of reading tables of the size of the field: the step is bound by memory,
and most of it should be the field. ``vorticity.advance`` stays the reference that this file is tested
against.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from sciml_monarch.pde.solvers.vorticity import Equation, make_factors

WARM_UP_STEPS = 3  # before capture: compiles, and makes the plans of cuFFT, which may not be made while capturing


@dataclass(frozen=True)
class Axes:
    """Wave numbers and where their modes lie, one small tensor each, to be broadcast inside the kernels.

    Attributes:
        kx, ky: Wave numbers of the rows (n, 1, 1) and columns (n, 1) of the plane; 0 outside the kept modes.
        keep_x, keep_y: Whether they are kept, bool.
        row, mirrored_row: Row of the state that holds kx, and -kx; (n, 1).
        column: Column of the state that holds |ky|; (n,).
        real, imaginary: (1, 0) and (0, 1): pick a part on the last axis.
        plus_row, plus_column, minus_row, minus_column: Where the modes k and -k of the state lie in the
            plane.
    """

    kx: Tensor
    ky: Tensor
    keep_x: Tensor
    keep_y: Tensor
    row: Tensor
    mirrored_row: Tensor
    column: Tensor
    real: Tensor
    imaginary: Tensor
    plus_row: Tensor
    plus_column: Tensor
    minus_row: Tensor
    minus_column: Tensor


def make_axes(n: int, m: int, device: torch.device | str, dtype: torch.dtype) -> Axes:
    """Tabulates ``Axes`` for n points and the modes up to m."""
    wave = torch.arange(n, device=device)
    wave = torch.where(wave > n // 2, wave - n, wave)
    keep = wave.abs() <= m
    wave = torch.where(keep, wave, 0)
    state_wave = torch.cat((torch.arange(m + 1), torch.arange(-m, 0))).to(device)
    return Axes(
        kx=wave.to(dtype)[:, None, None],
        ky=wave.to(dtype)[:, None],
        keep_x=keep[:, None, None],
        keep_y=keep[:, None],
        row=(wave % (2 * m + 1))[:, None],
        mirrored_row=(-wave % (2 * m + 1))[:, None],
        column=wave.abs(),
        real=torch.tensor([1.0, 0.0], device=device, dtype=dtype),
        imaginary=torch.tensor([0.0, 1.0], device=device, dtype=dtype),
        plus_row=(state_wave % n)[:, None],
        plus_column=state_wave[: m + 1],
        minus_row=(-state_wave % n)[:, None],
        minus_column=-state_wave[: m + 1] % n,
    )


def spread(state: Tensor, axes: Axes) -> Tensor:
    """Spectrum of the velocity u + iv: states (b, 2m+1, m+1, 2) to the plane (b, n, n, 2)."""
    square = axes.kx**2 + axes.ky**2
    kept = axes.keep_x & axes.keep_y & (square > 0)
    inverse = torch.where(kept, 1 / (2 * math.pi * torch.where(kept, square, 1.0)), 0.0)
    negative = axes.ky[:, 0] < 0  # those modes are the conjugates of the stored ones at -k
    row = torch.where(negative, axes.mirrored_row, axes.row)
    sign = torch.where(axes.ky < 0, -1.0, 1.0)
    real = state[:, row, axes.column, 0][..., None]
    imaginary = state[:, row, axes.column, 1][..., None]
    along = axes.kx * axes.real + axes.ky * axes.imaginary
    across = sign * (axes.kx * axes.imaginary - axes.ky * axes.real)
    return inverse * (along * real + across * imaginary)


def top_speed(flow: Tensor) -> Tensor:
    """The largest |u| + |v|: (b, n, n, 2) to (b,)."""
    return flow.abs().sum(dim=-1).flatten(1).amax(dim=1)


def gather(stress: Tensor, forcing: Tensor, axes: Axes) -> Tensor:
    """The tendency from the FFT of (u + iv)^2: the plane (b, n, n, 2) to states (b, 2m+1, m+1, 2)."""
    n = stress.shape[1]
    kx, ky = axes.kx[axes.plus_row, 0, 0], axes.ky[axes.plus_column, 0]
    scale = math.pi**2 / n**2  # (2 pi)^2 / 4, and the unnormalised FFT
    a_real, a_imaginary = -2 * scale * kx * ky, -scale * (kx**2 - ky**2)
    plus_real = stress[:, axes.plus_row, axes.plus_column, 0]
    plus_imaginary = stress[:, axes.plus_row, axes.plus_column, 1]
    minus_real = stress[:, axes.minus_row, axes.minus_column, 0]
    minus_imaginary = stress[:, axes.minus_row, axes.minus_column, 1]
    real = a_real * (plus_real + minus_real) - a_imaginary * (plus_imaginary + minus_imaginary)
    imaginary = a_real * (plus_imaginary - minus_imaginary) + a_imaginary * (plus_real - minus_real)
    return forcing + real[..., None] * axes.real + imaginary[..., None] * axes.imaginary


def update(
    stress: Tensor, forcing: Tensor, axes: Axes, state: Tensor, total: Tensor, factors: Tensor
) -> tuple[Tensor, Tensor]:
    """The argument of the next stage and the change of the state so far.

    The factors (4, 2m+1, m+1, 1) multiply the state and the slope in the argument, then ``total`` (the change
    so far, or the state itself in the first stage) and the slope in the change.
    """
    slope = gather(stress, forcing, axes)
    return factors[0] * state + factors[1] * slope, factors[2] * total + factors[3] * slope


def finish(stress: Tensor, forcing: Tensor, axes: Axes, state: Tensor, total: Tensor, factors: Tensor) -> None:
    """Adds the whole change to ``state``."""
    state.add_(total + factors[3] * gather(stress, forcing, axes))


class FusedSteps:
    """Takes many equal time steps of a batch of fixed size.

    Args:
        equation: The discretised equation; its tables' device is where the steps run.
        batch: Trajectories stepped at once.
        compiled: Fuse the kernels with ``torch.compile``; otherwise they run operation by operation, which is
            for tests on machines without a compiler.
        graph: Record one step as a CUDA graph at the first call and replay it.
    """

    def __init__(self, equation: Equation, batch: int, *, compiled: bool = True, graph: bool = False) -> None:
        device = equation.velocity.device
        dtype = equation.velocity.real.dtype
        self.batch = batch
        self._equation = equation
        self._axes = make_axes(equation.n, equation.m, device, dtype)
        self._forcing = torch.view_as_real(equation.forcing)
        shape = (2 * equation.m + 1, equation.m + 1)
        self._state = torch.zeros(batch, *shape, 2, device=device, dtype=dtype)
        self._peak = torch.zeros(batch, device=device, dtype=dtype)
        self._factors = torch.zeros(4, 4, *shape, 1, device=device, dtype=dtype)
        self._spread = _compile(spread) if compiled else spread
        self._top_speed = _compile(top_speed) if compiled else top_speed
        self._update = _compile(update) if compiled else update
        self._finish = _compile(finish) if compiled else finish
        self._with_graph = graph
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, state: Tensor, step: float, n_steps: int) -> tuple[Tensor, Tensor]:
        """Takes ``n_steps`` steps of ``step`` seconds; see ``vorticity.EagerSteps``."""
        self._set_factors(step)
        if self._with_graph and self._graph is None:
            self._graph = self._capture()
        self._state.copy_(torch.view_as_real(state))
        self._peak.zero_()
        for _ in range(n_steps):
            if self._graph is None:
                self._take_step()
            else:
                self._graph.replay()
        return torch.view_as_complex(self._state.clone()), self._peak.clone()

    def _set_factors(self, step: float) -> None:
        """Fills in the factors of the four stages, in the order that ``update`` takes them."""
        factors = make_factors(self._equation, step)
        half, full, one = factors.half, factors.full, torch.ones_like(factors.half)
        stages = (
            (half, step / 2 * half, factors.loss, step / 6 * full),
            (half, step / 2 * one, one, step / 3 * half),
            (full, step * half, one, step / 3 * half),
            (one, one, one, step / 6 * one),
        )
        self._factors.copy_(torch.stack([torch.stack(stage) for stage in stages])[..., None])

    def _flow(self, state: Tensor) -> Tensor:
        return torch.fft.ifft2(torch.view_as_complex(self._spread(state, self._axes)), norm="forward")

    def _stress(self, flow: Tensor) -> Tensor:
        return torch.view_as_real(torch.fft.fft2(flow.mul_(flow)))

    def _take_step(self) -> None:
        flow = self._flow(self._state)
        torch.maximum(self._peak, self._top_speed(torch.view_as_real(flow)), out=self._peak)
        argument, total = self._update(
            self._stress(flow), self._forcing, self._axes, self._state, self._state, self._factors[0]
        )
        for stage in (1, 2):
            stress = self._stress(self._flow(argument))
            argument, total = self._update(stress, self._forcing, self._axes, self._state, total, self._factors[stage])
        stress = self._stress(self._flow(argument))
        self._finish(stress, self._forcing, self._axes, self._state, total, self._factors[3])

    def _capture(self) -> torch.cuda.CUDAGraph:
        device = self._state.device
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device):
            side = torch.cuda.Stream()  # work before a capture must not run on the default stream
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP_STEPS):
                    self._take_step()
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph):
                self._take_step()
        return graph


def _compile(function: Callable[..., Any], backend: str = "inductor") -> Callable[..., Any]:
    """Fuses a function for the shapes that it meets.

    Every stepper compiles its own copy: the compiler allows a piece of code few recompilations, and each
    batch size takes two.
    """
    assert isinstance(function, FunctionType)
    copy = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    return torch.compile(copy, fullgraph=True, dynamic=False, backend=backend)
