import math

import numpy as np
import pytest
import torch

from sciml_monarch.errors import InputError
from sciml_monarch.mri import coil_simulation
from sciml_monarch.mri.coil_simulation import _loop_field, simulate_maps


def test_the_field_on_the_axis_of_a_loop_is_the_textbooks():
    """B = mu0 I a^2 / (2 (a^2 + d^2)^(3/2)) along the axis, that is 2 pi a^2 / (...) in units of mu0 I / (4 pi)."""
    x, a = np.linspace(-1, 1, 9)[None, :], 0.45
    field = _loop_field(x, np.zeros((1, 1)), angle=0.0, distance=1.9, height=0.0, radius=a, tilts=(0.0, 0.0))
    expected = 2 * math.pi * a**2 / (a**2 + (1.9 - x) ** 2) ** 1.5
    assert np.allclose(np.abs(field), expected, rtol=1e-12)
    assert np.allclose(field.imag, 0, atol=1e-12)  # the loop faces x: no component along y


def test_the_pieces_of_a_loop_are_fine_enough(monkeypatch):
    few = simulate_maps((24, 24), 12, 3)
    monkeypatch.setattr(coil_simulation, "_SEGMENTS", 960)
    many = simulate_maps((24, 24), 12, 3)
    assert (few - many).abs().max() < 1e-4


def test_the_field_in_the_plane_has_no_divergence_and_no_curl_there():
    """Outside the wire curl B = 0; in the plane of symmetry of an upright loop, d By / dx = d Bx / dy."""
    h = 1e-4
    x, y = np.linspace(-0.9, 0.9, 7)[None, :], np.linspace(-0.8, 0.8, 6)[:, None]

    def field(dx, dy):
        return _loop_field(x + dx, y + dy, 0.7, 1.9, 0.0, 0.5, (0.1, 0.0))

    curl = (field(h, 0) - field(-h, 0)).imag - (field(0, h) - field(0, -h)).real
    assert np.abs(curl).max() / (2 * h) < 1e-5 * np.abs(field(0, 0)).max()


@pytest.mark.parametrize("n_rings", [1, 2, 3])
def test_maps_are_normalised_smooth_and_reproducible(n_rings):
    maps = simulate_maps((64, 48), 12, (5, 1), n_rings)
    assert maps.shape == (12, 64, 48)
    assert maps.dtype == torch.complex64
    assert torch.allclose(maps.abs().square().sum(0), torch.ones(64, 48), atol=1e-5)
    assert maps.diff(dim=1).abs().max() < 0.12
    assert maps.diff(dim=2).abs().max() < 0.16
    spectrum = torch.fft.fft2(maps * torch.hann_window(64)[:, None] * torch.hann_window(48)).abs().square()
    low = torch.fft.fftfreq(64).abs()[:, None].mul(64).le(6) & torch.fft.fftfreq(48).abs().mul(48).le(6)
    assert spectrum[:, ~low].sum() < 1e-3 * spectrum.sum()
    assert torch.equal(maps, simulate_maps((64, 48), 12, (5, 1), n_rings))
    assert (maps - simulate_maps((64, 48), 12, (5, 2), n_rings)).abs().max() > 0.1
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    simulate_maps((8, 8), 4, 0)
    assert torch.equal(state[0], torch.get_rng_state())
    assert np.array_equal(state[1], np.random.get_state()[1])  # noqa: NPY002
    # one seed on a finer grid: the same functions
    fine = simulate_maps((128, 96), 12, (5, 1), n_rings)
    assert (fine[:, ::2, ::2] - maps).abs().max() < 1e-5


def test_coils_of_a_perfect_ring_are_turned_copies():
    maps = simulate_maps((41, 41), 4, 0, disorder=0.0)
    for coil in range(3):
        # a quarter turn of the coil turns its pattern, and the field direction with it: a factor exp(i pi / 2);
        # on an odd grid the centre is a pixel, so that quarter turns map pixels to pixels
        turned = 1j * torch.rot90(maps[coil], 1, dims=(1, 0))
        assert (turned - maps[coil + 1]).abs().max() < 1e-5
    # the first loop stands on the positive x axis: it is strongest there
    assert maps[0].abs().argmax() % 41 == 40
    assert maps[0].abs()[20].argmax() == 40


def test_one_coil_and_bad_numbers():
    assert torch.allclose(simulate_maps((8, 8), 1, 0).abs(), torch.ones(1, 8, 8), atol=1e-6)
    for arguments, message in (
        (((8, 8), 0, 0), "0 coils"),
        (((8, 8), 4, 0, 5), "4 coils on 5 rings"),
        (((0, 8), 4, 0), "0 x 8 points"),
        (((8, 8), 4, -1), "not be negative"),
        (((8, 8), 4, 0, 1, 2.0), "disorder=2.0"),
    ):
        with pytest.raises(InputError, match=message):
            simulate_maps(*arguments)
