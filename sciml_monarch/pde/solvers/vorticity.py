"""The incompressible Navier–Stokes equations in vorticity form on the unit torus, by Fourier modes.

    dw/dt + u . grad w = viscosity * Laplacian w + f,     u = (d psi/dy, -d psi/dx),     -Laplacian psi = w

A state is the half spectrum of the vorticity, truncated by the 2/3 rule: complex (b, 2m+1, m+1) with
m = (n-1)//3, rows kx = 0..m, -m..-1, columns ky = 0..m, normalised so that w(x, y) is the sum of
state * exp(2 pi i (kx x + ky y)).

The advection term costs two complex FFTs (the four real ones of Basdevant, J. Comput. Phys. 50 (1983) 209, in
pairs). With z = u + iv and K = 2 pi (kx + i ky), the spectrum of z is K / |K|^2 times that of w, and

    u . grad w = (d_xx - d_yy)(uv) - d_xy(u^2 - v^2)

needs only z^2 = (u^2 - v^2) + 2i uv, of which one forward FFT is Q: the tendency is a Q(k) + conj(a Q(-k))
with a = -i conj(K)^2 / 4. Time steps are the classical fourth-order Runge–Kutta method with the viscous term
integrated exactly by an integrating factor (Canuto et al., "Spectral Methods in Fluid Dynamics", chapter 4).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sciml_monarch.errors import InputError

Forcing = Callable[[Tensor, Tensor], Tensor] | Tensor | None


def fno_forcing(x: Tensor, y: Tensor) -> Tensor:
    """Forcing of the Fourier neural operator's data, 0.1 (sin 2 pi (x + y) + cos 2 pi (x + y)), in 1/s^2.

    Li et al., "Fourier Neural Operator for Parametric Partial Differential Equations" (ICLR 2021), section
    5.3.
    """
    phase = 2 * math.pi * (x + y)
    return 0.1 * (torch.sin(phase) + torch.cos(phase))


def highest_mode(n: int) -> int:
    """The highest wave number m that n points carry without aliasing of a product: 3m < n."""
    return (n - 1) // 3


@dataclass(frozen=True)
class Equation:
    """Everything of the discretised equation that does not change in time.

    Attributes:
        n: Points per axis.
        m: Highest wave number kept per axis.
        velocity: Spectrum of u + iv for unit vorticity, complex (2m+1, m+1), in metres.
        stress: The factor a of the tendency over n^2, the scale of an unnormalised FFT; complex (2m+1, m+1).
        damping: Viscous decay rate, real float64 (2m+1, m+1), in 1/s.
        forcing: Spectrum of the forcing, complex (2m+1, m+1), in 1/s^2.
    """

    n: int
    m: int
    velocity: Tensor
    stress: Tensor
    damping: Tensor
    forcing: Tensor


def make_equation(
    n: int, viscosity: float, forcing: Forcing, device: torch.device | str, dtype: torch.dtype
) -> Equation:
    """Tabulates the equation in float64 and rounds it once.

    Args:
        n: Points per axis.
        viscosity: Kinematic viscosity, in m^2/s.
        forcing: Source of vorticity (1/s^2): a function of the grid coordinates x and y, each (n, n) float64
            in metres, that returns (n, n); or such a tensor; or None.
        device: Where the tables live.
        dtype: float32 or float64.

    Raises:
        InputError: If the viscosity is not a positive number, n is too small or the forcing has a wrong
            shape, a non-finite value or a mean.
    """
    if not (math.isfinite(viscosity) and viscosity > 0):
        raise InputError(f"viscosity must be a positive number, not {viscosity}")
    m = highest_mode(n)
    if m < 1:
        raise InputError(f"the grid needs at least 4 points per axis, not {n}")
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"the solver computes in float32 or float64, not {dtype}")
    kx = 2 * math.pi * torch.fft.fftfreq(2 * m + 1, 1 / (2 * m + 1), dtype=torch.float64)[:, None]
    ky = 2 * math.pi * torch.arange(m + 1, dtype=torch.float64)[None, :]
    square = kx**2 + ky**2
    inverse = torch.where(square > 0, 1 / square, 0.0)
    wave = torch.complex(kx.expand_as(square), ky.expand_as(square))
    complex_dtype = torch.complex64 if dtype == torch.float32 else torch.complex128
    source = torch.zeros(1, n, n, dtype=torch.float64) if forcing is None else _forcing_on_grid(forcing, n)
    return Equation(
        n=n,
        m=m,
        velocity=(wave * inverse).to(device, complex_dtype),
        stress=(-0.25j * wave.conj() ** 2 / n**2).to(device, complex_dtype),
        damping=(viscosity * square).to(device),
        forcing=to_spectrum(source, m)[0].to(device, complex_dtype),
    )


def _forcing_on_grid(forcing: Callable[[Tensor, Tensor], Tensor] | Tensor, n: int) -> Tensor:
    """Evaluates and checks a forcing, (1, n, n) float64 on the CPU."""
    if not isinstance(forcing, Tensor):
        points = torch.arange(n, dtype=torch.float64) / n
        x, y = torch.meshgrid(points, points, indexing="ij")
        forcing = forcing(x, y)
    values = forcing.detach().to("cpu", torch.float64)
    if values.shape != (n, n):
        raise InputError(f"the forcing must have the shape {(n, n)} of the grid, not {tuple(values.shape)}")
    if not torch.isfinite(values).all():
        raise InputError("the forcing has values that are not finite: correct them before the run")
    if values.mean().abs() > 1e-5 * values.abs().max():
        raise InputError(
            f"the forcing has the mean {values.mean().item():.3g}, but the curl of a force on a torus has "
            "none: subtract it"
        )
    return values[None]


def to_spectrum(vorticity: Tensor, m: int) -> Tensor:
    """The state of a vorticity field: (b, n, n) real to (b, 2m+1, m+1) complex."""
    spectrum = torch.fft.rfft2(vorticity, norm="forward")
    return torch.cat((spectrum[:, : m + 1, : m + 1], spectrum[:, -m:, : m + 1]), dim=1)


def to_grid(state: Tensor, n: int) -> Tensor:
    """The vorticity field of a state: (b, 2m+1, m+1) complex to (b, n, n) real, for any n > 2m."""
    m = state.shape[-1] - 1
    spectrum = state.new_zeros(state.shape[0], n, n // 2 + 1)
    spectrum[:, : m + 1, : m + 1] = state[:, : m + 1]
    spectrum[:, -m:, : m + 1] = state[:, m + 1 :]
    return torch.fft.irfft2(spectrum, s=(n, n), norm="forward")


def velocity(state: Tensor, equation: Equation) -> Tensor:
    """The velocity u + iv on the grid, complex (b, n, n), in m/s."""
    m = equation.m
    positive = equation.velocity * state
    negative = (-equation.velocity * state.conj())[:, :, 1:].flip(-1)  # the modes -k, columns -m..-1
    spectrum = state.new_zeros(state.shape[0], equation.n, equation.n)
    spectrum[:, : m + 1, : m + 1] = positive[:, : m + 1]
    spectrum[:, -m:, : m + 1] = positive[:, m + 1 :]
    spectrum[:, 0, -m:] = negative[:, 0]
    spectrum[:, 1 : m + 1, -m:] = negative[:, m + 1 :].flip(1)
    spectrum[:, -m:, -m:] = negative[:, 1 : m + 1].flip(1)
    return torch.fft.ifft2(spectrum, norm="forward")


def tendency(flow: Tensor, equation: Equation) -> Tensor:
    """Advection and forcing, the spectrum of f - u . grad w, (b, 2m+1, m+1) complex.

    Args:
        flow: The velocity from ``velocity``, (b, n, n) complex; overwritten with its square.
        equation: The discretised equation.
    """
    m = equation.m
    stress = torch.fft.fft2(flow.mul_(flow))
    plus = torch.cat((stress[:, : m + 1, : m + 1], stress[:, -m:, : m + 1]), dim=1)
    columns = torch.cat((stress[:, :, :1], stress[:, :, -m:].flip(-1)), dim=2)
    minus = torch.cat((columns[:, :1], columns[:, -m:].flip(1), columns[:, 1 : m + 1].flip(1)), dim=1)
    return torch.addcmul(equation.forcing, plus, equation.stress).add_((minus * equation.stress).conj())


@dataclass(frozen=True)
class StepFactors:
    """What a step of a given length multiplies with; half, full and loss are real (2m+1, m+1).

    Attributes:
        step: Length of the step, in seconds.
        half: Viscous decay over half a step.
        full: Viscous decay over the step.
        loss: full - 1. Adding it, instead of multiplying by full, keeps the rounding of factors close to 1
            from adding up over many steps.
    """

    step: float
    half: Tensor
    full: Tensor
    loss: Tensor


def make_factors(equation: Equation, step: float) -> StepFactors:
    """The factors of a step of ``step`` seconds, computed in float64 and rounded once."""
    dtype = equation.velocity.real.dtype
    half = torch.exp(-0.5 * step * equation.damping)
    loss = torch.expm1(-step * equation.damping)
    return StepFactors(step=step, half=half.to(dtype), full=(half * half).to(dtype), loss=loss.to(dtype))


def advance(state: Tensor, equation: Equation, factors: StepFactors) -> tuple[Tensor, Tensor]:
    """One step of the integrating-factor Runge–Kutta method.

    Returns:
        The next state (b, 2m+1, m+1) and the largest |u| + |v| on the grid at the start of the step, (b,), in
        m/s.
    """
    h, half, full = factors.step, factors.half, factors.full
    flow = velocity(state, equation)
    speed = (flow.real.abs() + flow.imag.abs()).amax(dim=(1, 2))
    a = tendency(flow, equation)
    b = tendency(velocity(half * torch.add(state, a, alpha=h / 2), equation), equation)
    c = tendency(velocity(torch.add(half * state, b, alpha=h / 2), equation), equation)
    d = tendency(velocity(torch.addcmul(full * state, half, c, value=h), equation), equation)
    slopes = torch.addcmul(d, half, b.add_(c), value=2).addcmul_(full, a)
    change = torch.addcmul(slopes.mul_(h / 6), factors.loss, state)
    return state + change, speed


class EagerSteps:
    """Takes many equal time steps, one after the other, for a batch of any size on any device."""

    def __init__(self, equation: Equation) -> None:
        self._equation = equation

    def __call__(self, state: Tensor, step: float, n_steps: int) -> tuple[Tensor, Tensor]:
        """Takes ``n_steps`` steps of ``step`` seconds.

        Returns:
            The last state (b, 2m+1, m+1) and the largest |u| + |v| of each trajectory on the way, (b,), NaN
            where a value was not finite.
        """
        factors = make_factors(self._equation, step)
        peak = state.real.new_zeros(state.shape[0])
        for _ in range(n_steps):
            state, speed = advance(state, self._equation, factors)
            peak = torch.maximum(peak, speed)
        return state, peak
