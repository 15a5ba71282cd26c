"""The viscous Burgers equation between two walls, by finite volumes and SciPy's stiff integrator."""

import numpy as np
from scipy.integrate import solve_ivp

from sciml_monarch.errors import InputError

N_SINES = 8
TOLERANCE = 1e-6  # of a time step, relative and absolute


def start(n: int, seed: int) -> np.ndarray:
    """Draws a start: a straight line between random values on the walls, and sines that vanish there.

    Args:
        n: Intervals of the unit interval.
        seed: Of the random numbers.

    Returns:
        ``(n + 1,)``, walls included: uniform in -1 to 1 there, the k-th of the sines normal with deviation ``1 / 2k``.
    """
    generator = np.random.default_rng(seed)
    left, right = generator.uniform(-1, 1, 2)
    k = np.arange(1, N_SINES + 1)
    amplitudes = generator.standard_normal(N_SINES) / (2 * k)
    x = np.linspace(0, 1, n + 1)
    return left + (right - left) * x + np.sin(np.pi * np.outer(x, k)) @ amplitudes


def solve_burgers(u: np.ndarray, viscosity: float, time: float) -> np.ndarray:
    """Solves ``u_t + (u^2 / 2)_x = viscosity u_xx`` on the unit interval; values on the walls stay as they are.

    Second order in space: fluxes of cells around the points, from means of neighbours (LeVeque, *Finite Volume Methods
    for Hyperbolic Problems*, 2002, chapter 4; no limiter, which resolved fields do not need). In time LSODA
    (Petzold, 1983), of tolerance 1e-6.

    Args:
        u: Start, ``(n + 1,)``, walls included.
        viscosity: Positive.
        time: End, positive, in units in which velocity and length are one.

    Returns:
        The end, ``(n + 1,)``.

    Raises:
        InputError: Viscosity or time are not positive, there are fewer than two intervals, or the integrator gives up.
    """
    n = len(u) - 1
    if viscosity <= 0 or time <= 0 or n < 2:
        raise InputError(f"viscosity {viscosity} and time {time} must be positive, intervals {n} at least 2")
    left, right = u[0], u[-1]

    def rate(_: float, inner: np.ndarray) -> np.ndarray:
        whole = np.concatenate([[left], inner, [right]])
        flux = 0.5 * (0.5 * (whole[1:] + whole[:-1])) ** 2 - viscosity * n * np.diff(whole)
        return -n * np.diff(flux)

    found = solve_ivp(
        rate, (0.0, time), u[1:-1], "LSODA", t_eval=[time], lband=1, uband=1, rtol=TOLERANCE, atol=TOLERANCE
    )
    if not found.success:
        raise InputError(f"Burgers equation of viscosity {viscosity}: {found.message}")
    return np.concatenate([[left], found.y[:, -1], [right]])
