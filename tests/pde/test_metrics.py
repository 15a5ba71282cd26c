"""Metrics against hand-made numbers and analytic fields."""

import math

import pytest
import torch

from sciml_monarch.pde.metrics import (
    correlation,
    correlation_time,
    relative_h1,
    relative_l2,
    relative_l2_per_step,
    rollout_growth,
    spectrum_error,
)
from sciml_monarch.pde.spectra import energy_spectrum, n_complete_shells, power_spectrum

GRIDS = {1: (48,), 2: (32, 24), 3: (12, 16, 10)}
LENGTHS = {1: (3.0,), 2: (2.0, 5.0), 3: (1.0, 2.0, 0.5)}


def axes(grid, lengths):
    """Coordinates of the sample points, left end included."""
    return torch.meshgrid(
        *[torch.arange(n, dtype=torch.float64) * length / n for n, length in zip(grid, lengths, strict=True)],
        indexing="ij",
    )


def sine(m, n=32, length=1.0):
    """``sin(2 pi m x / L)`` on an n^2 grid as a trajectory of one frame and channel."""
    x, _ = axes((n, n), (length, length))
    return torch.sin(2 * math.pi * m * x / length)[None, None, None]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trajectory(correlations, n=16):
    """A truth and a prediction that correlates with it by given amounts."""
    truth, other = sine(1, n), sine(2, n)
    c = torch.tensor(correlations, dtype=torch.float64).view(1, -1, 1, 1, 1)
    return c * truth + (1 - c.square()).sqrt() * other, truth.expand(-1, len(correlations), -1, -1, -1)


# relative L2


def test_relative_l2_by_hand():
    target = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    prediction = torch.tensor([[3.0, 3.0], [1.0, 2.0]])
    torch.testing.assert_close(relative_l2(prediction, target), torch.tensor([1 / 5, 1 / 2]))


def test_relative_l2_is_over_the_whole_trajectory_and_not_a_mean_of_steps():
    target = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
    prediction = torch.tensor([2.0, 3.0]).view(1, 2, 1, 1)
    assert relative_l2(prediction, target).item() == pytest.approx(1 / math.sqrt(10))
    torch.testing.assert_close(relative_l2_per_step(prediction, target), torch.tensor([[1.0, 0.0]]))


@pytest.mark.parametrize("n_axes", [1, 2, 3])
def test_relative_errors_do_not_depend_on_units(n_axes):
    shape = (3, 4, 2, *GRIDS[n_axes])
    prediction, target, lengths = noise(*shape), noise(*shape, seed=1), LENGTHS[n_axes]
    for metric in (
        relative_l2,
        relative_l2_per_step,
        correlation,
        lambda p, t: relative_h1(p, t, lengths),
        lambda p, t: spectrum_error(p, t, lengths),
    ):
        torch.testing.assert_close(metric(1e3 * prediction, 1e3 * target), metric(prediction, target))


def test_relative_l2_of_zero_is_finite_and_of_the_truth_is_zero():
    zero = torch.zeros(1, 1, 1, 4)
    assert relative_l2(zero, zero).item() == 0
    assert relative_l2(zero + 1, zero).item() > 1e10
    assert relative_l2(torch.zeros(1, 4), torch.ones(1, 4)).item() == 1


def test_relative_l2_has_the_gradient_of_the_formula():
    target = noise(2, 5)
    prediction = noise(2, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: relative_l2(p, target), prediction)


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match="same shape"):
        relative_l2(torch.zeros(2, 1, 4), torch.zeros(2, 3, 4))


# H1


@pytest.mark.parametrize("m", [1, 3, 7])
@pytest.mark.parametrize("length", [1.0, 2 * math.pi])
def test_h1_of_a_sine_added_to_a_sine(m, length):
    """|sin(kx)|_H1^2 = (1 + k^2) / 2, so that the error has a closed form."""
    k1, km = 2 * math.pi / length, 2 * math.pi * m / length
    truth, error = sine(1, length=length), 0.1 * sine(m, length=length)
    expected = 0.1 * math.sqrt((1 + km**2) / (1 + k1**2))
    assert relative_h1(truth + error, truth, (length, length)).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n_axes", [1, 2, 3])
def test_h1_agrees_with_the_analytic_gradient(n_axes):
    x, lengths = axes(GRIDS[n_axes], LENGTHS[n_axes]), LENGTHS[n_axes]
    waves = [2 * math.pi * (i + 1) / length for i, length in enumerate(lengths)]
    phase = sum(k * x_i for k, x_i in zip(waves, x, strict=True))
    target = torch.sin(phase)[None, None, None]
    prediction = target + torch.cos(phase) / 2
    # Both are single waves of the same k: gradients scale both norms alike.
    assert relative_h1(prediction, target, lengths).item() == pytest.approx(0.5, rel=1e-12)
    slow = torch.cos(waves[0] * x[0])[None, None, None]
    expected = math.sqrt((1 + sum(k**2 for k in waves)) / (1 + waves[0] ** 2))
    assert relative_h1(slow + target, slow, lengths).item() == pytest.approx(expected, rel=1e-12)


# Spectra


@pytest.mark.parametrize("n_axes", [1, 2, 3])
def test_power_spectrum_obeys_parseval(n_axes):
    field = noise(2, 3, *GRIDS[n_axes])
    spectrum = power_spectrum(field, LENGTHS[n_axes])
    torch.testing.assert_close(spectrum.values.sum(-1), field.square().flatten(2).mean(-1))
    assert spectrum.values.shape == (2, 3, len(spectrum.wavenumbers))


def test_energy_spectrum_of_a_wave_sits_in_its_shell():
    """w = A sin(kx): u = -A/k cos(kx), kinetic energy A^2 / (4 k^2)."""
    length, m, amplitude = 2.0, 5, 3.0
    spectrum = energy_spectrum(amplitude * sine(m, length=length), (length, length))
    k = 2 * math.pi * m / length
    assert spectrum.wavenumbers[m].item() == pytest.approx(k)
    assert spectrum.values[0, 0, 0, m].item() == pytest.approx(amplitude**2 / (4 * k**2), rel=1e-12)
    assert spectrum.values.sum().item() == pytest.approx(amplitude**2 / (4 * k**2), rel=1e-12)


def test_energy_spectrum_sums_to_the_kinetic_energy_of_the_velocity():
    """Stream function by hand: w = -laplace(psi), u = d(psi)/dy, v = -d(psi)/dx."""
    x, y = axes((32, 24), (2.0, 5.0))
    kx, ky = 2 * math.pi * 2 / 2.0, 2 * math.pi * 3 / 5.0
    vorticity = (kx**2 + ky**2) * torch.sin(kx * x) * torch.cos(ky * y) + 7
    u, v = -ky * torch.sin(kx * x) * torch.sin(ky * y), -kx * torch.cos(kx * x) * torch.cos(ky * y)
    energy = 0.5 * (u.square() + v.square()).mean()
    torch.testing.assert_close(energy_spectrum(vorticity, (2.0, 5.0)).values.sum(), energy)


def test_energy_spectrum_is_isotropic():
    field = noise(16, 16)
    torch.testing.assert_close(energy_spectrum(field.T, (1.0, 1.0)).values, energy_spectrum(field, (1.0, 1.0)).values)


def test_energy_spectrum_refuses_other_dimensions():
    with pytest.raises(ValueError, match="power_spectrum"):
        energy_spectrum(noise(2, 16), (1.0,))


@pytest.mark.parametrize(
    ("grid", "lengths", "expected"),
    [((64, 64), (1.0, 1.0), 32), ((7,), (1.0,), 4), ((64, 16), (1.0, 1.0), 8), ((64, 16), (4.0, 1.0), 32)],
)
def test_n_complete_shells_ends_below_the_nyquist_frequency(grid, lengths, expected):
    assert n_complete_shells(grid, lengths) == expected


def test_spectrum_error_of_a_factor_two_everywhere():
    field = noise(2, 3, 1, 32, 32)
    for spectrum in (power_spectrum, energy_spectrum):
        error = spectrum_error(math.sqrt(2) * field, field, (1.0, 1.0), spectrum)
        torch.testing.assert_close(error, torch.full((2,), math.log10(2), dtype=torch.float64))
        assert spectrum_error(field, field, (1.0, 1.0), spectrum).tolist() == [0, 0]


def test_spectrum_error_ignores_phase_and_counts_only_resolved_shells():
    truth = sine(1) + 0.1 * sine(2)
    shifted = truth.roll(5, dims=3)
    assert spectrum_error(shifted, truth, (1.0, 1.0)).item() == pytest.approx(0, abs=1e-10)
    # Shell 9 holds nothing of the truth: energy there is no error of this metric; in shell 2 it is
    # log10(100), over two shells.
    assert spectrum_error(truth + sine(9), truth, (1.0, 1.0)).item() == pytest.approx(0, abs=1e-10)
    assert spectrum_error(sine(1) + sine(2), truth, (1.0, 1.0)).item() == pytest.approx(1.0, abs=1e-10)


def test_spectrum_error_of_a_prediction_without_energy_is_finite_and_of_nan_infinite():
    truth = sine(1)
    # All of the truth is in one shell: it is short by the floor of 1e-10.
    assert spectrum_error(0 * truth, truth, (1.0, 1.0)).item() == pytest.approx(10)
    assert spectrum_error(math.nan * truth, truth, (1.0, 1.0)).item() == math.inf
    assert spectrum_error(truth, 0 * truth, (1.0, 1.0)).item() == 0


def test_spectrum_error_in_float32_sees_no_rounding_noise():
    x, y = axes((64, 64), (1.0, 1.0))
    truth = (torch.sin(2 * math.pi * x) * torch.cos(4 * math.pi * y))[None, None, None].float()
    turned = truth.roll((3, 7), dims=(3, 4)) * (1 + 1e-7)
    assert spectrum_error(turned, truth, (1.0, 1.0)).item() < 1e-5


# Correlation


def test_correlation_by_hand():
    prediction = torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 1, 3)
    target = torch.tensor([1.0, 3.0, 2.0]).view(1, 1, 1, 3)
    assert correlation(prediction, target).item() == pytest.approx(0.5)
    assert correlation(5 - 2 * target, target).item() == pytest.approx(-1)
    assert correlation(target, prediction).item() == pytest.approx(0.5)


def test_correlation_averages_channels():
    target = noise(1, 2, 2, 8, 8)
    prediction = target.clone()
    prediction[:, :, 1] *= -1
    torch.testing.assert_close(correlation(prediction, target), torch.zeros(1, 2, dtype=torch.float64))


def test_correlation_is_zero_where_undefined_and_survives_huge_values():
    target = noise(1, 4, 1, 8).float()
    prediction = target.clone()
    prediction[0, 1] = 3.0
    prediction[0, 2] = math.nan
    prediction[0, 3] *= 1e25
    torch.testing.assert_close(correlation(prediction, target), torch.tensor([[1.0, 0.0, 0.0, 1.0]]))


def test_correlation_time_interpolates_between_frames():
    found = correlation_time(*trajectory([0.98, 0.94, 0.86, 0.5]), dt=2.0)
    # 0.94 at 4 s, 0.86 at 6 s: 0.9 half-way.
    assert found.time.item() == pytest.approx(5.0, rel=1e-10)
    assert not found.is_lower_bound.item()


def test_correlation_time_before_the_first_frame_starts_from_one():
    assert correlation_time(*trajectory([0.8, 0.95]), dt=1.0).time.item() == pytest.approx(0.5, rel=1e-10)


def test_correlation_time_takes_the_first_crossing_and_the_given_threshold():
    pair = trajectory([0.95, 0.85, 0.95, 0.2])
    assert correlation_time(*pair, dt=1.0).time.item() == pytest.approx(1.5, rel=1e-10)
    assert correlation_time(*pair, dt=1.0, threshold=0.5).time.item() == pytest.approx(3.6, rel=1e-10)


def test_correlation_time_that_never_ends_is_a_lower_bound():
    lost, kept = trajectory([0.95, 0.85]), trajectory([0.99, 0.95])
    both = [torch.cat(pair) for pair in zip(lost, kept, strict=True)]
    found = correlation_time(*both, dt=3.0)
    torch.testing.assert_close(found.time, torch.tensor([4.5, 6.0], dtype=torch.float64))
    assert found.is_lower_bound.tolist() == [False, True]


# Growth


def test_growth_by_hand():
    target = torch.ones(2, 3, 1, 4)
    prediction = (
        torch.tensor([[1.0, 1.0, 2.0, 11.0, 5.0], [1.0, 1.0, 1.0, 1.0, 3.0]]).view(2, 5, 1, 1).expand(2, 5, 1, 4)
    )
    growth = rollout_growth(prediction, target, n_train_steps=2)
    assert growth.rms_ratio.tolist() == [[1, 1, 2, 11, 5], [1, 1, 1, 1, 3]]
    assert growth.first_diverged_step == (4, None)
    # The truth reaches one step past the horizon: 2 against 1 and 1 against 1.
    assert growth.relative_l2_past is not None
    assert growth.relative_l2_past.tolist() == [1, 0]


def test_growth_is_relative_to_the_truth_of_the_training_horizon():
    target = torch.tensor([3.0, 3.0, 100.0]).view(1, 3, 1, 1)
    growth = rollout_growth(10 * target, target, n_train_steps=2, limit=400)
    assert growth.rms_ratio[0, 2].item() == pytest.approx(1000 / 3)
    assert growth.first_diverged_step == (None,)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_growth_counts_what_is_not_finite_as_diverged(bad):
    prediction = torch.ones(1, 4, 1, 4)
    prediction[0, 2, 0, 1] = bad
    growth = rollout_growth(prediction, torch.ones(1, 2, 1, 4), n_train_steps=2)
    assert growth.rms_ratio.tolist() == [[1, 1, math.inf, 1]]
    assert growth.first_diverged_step == (3,)
    assert growth.relative_l2_past is None


def test_growth_needs_the_truth_of_the_training_horizon():
    with pytest.raises(ValueError, match="2 steps, the training horizon 3"):
        rollout_growth(torch.ones(1, 4, 1, 4), torch.ones(1, 2, 1, 4), n_train_steps=3)
    with pytest.raises(ValueError, match="do not match"):
        rollout_growth(torch.ones(1, 4, 1, 4), torch.ones(1, 4, 1, 8), n_train_steps=3)
