"""The discretised equation against the textbook form, u . grad w from five real FFTs."""

import math

import pytest
import torch

from sciml_monarch.errors import InputError
from sciml_monarch.pde.solvers import vorticity as ns
from sciml_monarch.pde.solvers.random_field import gaussian_random_field


def grid(n):
    points = torch.arange(n, dtype=torch.float64) / n
    return torch.meshgrid(points, points, indexing="ij")


def textbook(w, forcing):
    """Velocity u, v and the de-aliased f - u . grad w of fields (b, n, n)."""
    n = w.shape[-1]
    kx = 2 * math.pi * torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)[:, None]
    ky = 2 * math.pi * torch.arange(n // 2 + 1, dtype=torch.float64)[None, :]
    square = kx**2 + ky**2
    inverse = torch.where(square > 0, 1 / square, 0.0)
    highest = 2 * math.pi * ((n - 1) // 3) + 1e-9
    kept = (kx.abs() <= highest) & (ky <= highest)
    spectrum = torch.fft.rfft2(w) * kept
    u, v, wx, wy = (
        torch.fft.irfft2(factor * spectrum, s=(n, n))
        for factor in (1j * ky * inverse, -1j * kx * inverse, 1j * kx, 1j * ky)
    )
    return u, v, torch.fft.irfft2(kept * torch.fft.rfft2(forcing - u * wx - v * wy), s=(n, n))


@pytest.mark.parametrize("n", [8, 31, 32, 33])
def test_velocity_and_tendency_equal_the_textbook_form(n):
    w = gaussian_random_field(n, [1, 2], dtype=torch.float64)
    equation = ns.make_equation(n, 1e-3, ns.fno_forcing, "cpu", torch.float64)
    flow = ns.velocity(ns.to_spectrum(w, equation.m), equation)
    u, v, slope = textbook(w, ns.fno_forcing(*grid(n)))
    torch.testing.assert_close(flow.real, u, rtol=0, atol=1e-15)
    torch.testing.assert_close(flow.imag, v, rtol=0, atol=1e-15)
    torch.testing.assert_close(ns.to_grid(ns.tendency(flow, equation), n), slope, rtol=0, atol=1e-13)


def test_nothing_is_aliased():
    """On a grid twice as fine the same modes have the same tendency."""
    n = 24
    equation = ns.make_equation(n, 1e-3, None, "cpu", torch.float64)
    state = ns.to_spectrum(gaussian_random_field(n, [4], dtype=torch.float64), equation.m)
    fine = ns.make_equation(2 * n, 1e-3, None, "cpu", torch.float64)
    fine_state = ns.to_spectrum(ns.to_grid(state, 2 * n), fine.m)
    expected = ns.to_spectrum(ns.to_grid(ns.tendency(ns.velocity(fine_state, fine), fine), 2 * n), equation.m)
    torch.testing.assert_close(ns.tendency(ns.velocity(state, equation), equation), expected, rtol=0, atol=1e-15)


def test_spectrum_and_grid_are_inverse():
    n, m = 16, 5
    w = ns.to_grid(ns.to_spectrum(gaussian_random_field(n, [0], dtype=torch.float64), m), n)
    torch.testing.assert_close(ns.to_grid(ns.to_spectrum(w, m), n), w, rtol=0, atol=1e-15)
    torch.testing.assert_close(ns.to_grid(ns.to_spectrum(w, m), 48)[:, ::3, ::3], w, rtol=0, atol=1e-15)


def test_forcing_is_that_of_the_paper():
    x, y = grid(8)
    expected = 0.1 * (torch.sin(2 * math.pi * (x + y)) + torch.cos(2 * math.pi * (x + y)))
    equation = ns.make_equation(8, 1.0, ns.fno_forcing, "cpu", torch.float64)
    torch.testing.assert_close(ns.to_grid(equation.forcing[None], 8)[0], expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"viscosity": 0.0}, "viscosity.*0.0"),
        ({"viscosity": -1e-3}, "viscosity.*-0.001"),
        ({"viscosity": math.nan}, "viscosity.*nan"),
        ({"n": 3}, "4 points.*3"),
        ({"dtype": torch.float16}, "float16"),
        ({"forcing": torch.ones(4, 4)}, r"\(8, 8\).*\(4, 4\)"),
        ({"forcing": torch.ones(8, 8)}, "mean 1"),
        ({"forcing": torch.full((8, 8), math.inf)}, "not finite"),
    ],
)
def test_bad_arguments_are_named(arguments, named):
    defaults = {"n": 8, "viscosity": 1.0, "forcing": None, "device": "cpu", "dtype": torch.float64}
    with pytest.raises(InputError, match=named):
        ns.make_equation(**{**defaults, **arguments})
