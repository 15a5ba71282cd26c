import math

import numpy as np
import pytest
import torch

from sciml_monarch.errors import InputError
from sciml_monarch.pde.solvers.random_field import gaussian_random_field


def spectrum(fields):
    return torch.fft.fft2(fields.double(), norm="forward")


def test_a_field_depends_on_its_seed_alone():
    together = gaussian_random_field(24, [(5, 2), (5, 0), (5, 1)])
    alone = torch.cat([gaussian_random_field(24, [(5, i)]) for i in (2, 0, 1)])
    assert torch.equal(together, alone)
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(gaussian_random_field(24, [(6, 2)])[0], together[0])


def test_the_draw_is_the_one_of_earlier_versions():
    field = gaussian_random_field(16, [(0, 0)], dtype=torch.float64)[0]
    expected = torch.tensor(
        [-0.2515681761452727, -0.20760103960673232, -0.1522907538462358, -0.19446154831188345],
        dtype=torch.float64,
    )
    torch.testing.assert_close(field[0, :4], 2**0.5 * expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("fine", [33, 64])
def test_a_finer_grid_has_the_same_low_modes(fine):
    coarse = spectrum(gaussian_random_field(16, [3], dtype=torch.float64))[0]
    finer = spectrum(gaussian_random_field(fine, [3], dtype=torch.float64))[0]
    modes = list(range(-7, 8))
    for kx in modes:
        torch.testing.assert_close(finer[kx, modes], coarse[kx, modes], rtol=0, atol=1e-14)


def test_the_covariance_is_the_stated_one():
    n, n_fields = 16, 2000
    power = spectrum(gaussian_random_field(n, range(n_fields), dtype=torch.float64)).abs().square().mean(dim=0)
    k = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)
    square = k[:, None] ** 2 + k[None, :] ** 2
    expected = 2 * 7.0**3 * (4 * math.pi**2 * square + 49) ** -2.5
    assert power[0, 0] < 1e-30  # no mean
    for shell in (1, 2, 4, 5, 8, 9, 10, 13, 25):
        chosen = square == shell
        # each power is exponentially distributed: 4 to 12 modes, half of them independent, 2000 fields
        assert power[chosen].mean().item() == pytest.approx(expected[chosen].mean().item(), rel=0.08)


def test_real_and_imaginary_parts_are_independent():
    coefficients = spectrum(gaussian_random_field(8, range(2000), dtype=torch.float64))[:, 1, 2]
    correlation = np.corrcoef(coefficients.real.numpy(), coefficients.imag.numpy())
    assert abs(correlation[0, 1]) < 0.1
    assert coefficients.real.var().item() == pytest.approx(coefficients.imag.var().item(), rel=0.15)


def test_amplitude_scales_the_field():
    one = gaussian_random_field(8, [0], sigma=1.0, dtype=torch.float64)
    torch.testing.assert_close(gaussian_random_field(8, [0], sigma=2.5, dtype=torch.float64), 2.5 * one)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"n": 3}, "n=3"),
        ({"seeds": [-1]}, "-1"),
        ({"seeds": [(0, -4)]}, "-4"),
        ({"tau": 0.0}, "tau=0.0"),
        ({"alpha": 1.0}, "alpha=1.0"),
    ],
)
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(InputError, match=named.replace("(", r"\(")):
        gaussian_random_field(**{"n": 8, "seeds": [0], **arguments})
