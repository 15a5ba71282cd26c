"""The solver against exact solutions, conservation laws, symmetries and another solver's data."""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from sciml_monarch.errors import InputError
from sciml_monarch.pde.solvers.navier_stokes import NavierStokesSolver, simulate_navier_stokes
from sciml_monarch.pde.solvers.random_field import gaussian_random_field
from sciml_monarch.pde.solvers.step_size import VelocityBound
from sciml_monarch.pde.solvers.vorticity import fno_forcing, make_equation, to_grid, to_spectrum, velocity
from tests.helpers import relative_error

SAMPLE = Path(__file__).resolve().parents[3] / "../shared/data/pde/fno_navier_stokes_sample.npy"


def grid(n):
    points = torch.arange(n, dtype=torch.float64) / n
    return torch.meshgrid(points, points, indexing="ij")


def start(n, *seeds, dtype=torch.float64):
    return gaussian_random_field(n, seeds or [0], dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kx", "ky"), [(1, 1), (3, 2)])
def test_taylor_green_vortices_decay_exactly(dtype, kx, ky):
    x, y = grid(32)
    viscosity, times = 2e-3, [0.5, 3.0]
    w = (torch.cos(2 * math.pi * kx * x) * torch.cos(2 * math.pi * ky * y)).to(dtype)[None]
    computed = simulate_navier_stokes(w, viscosity, times, None)
    for time, frame in zip(times, computed[0], strict=True):
        decay = math.exp(-viscosity * 4 * math.pi**2 * (kx**2 + ky**2) * time)
        assert relative_error(frame, w[0] * decay) < 1e-6


def test_a_single_forced_mode_grows_as_it_should():
    """From rest, one mode of forcing f drives w = f (1 - exp(-a t)) / a with a = viscosity * 8 pi^2."""
    x, y = grid(16)
    rate = 0.05 * 8 * math.pi**2
    computed = simulate_navier_stokes(torch.zeros(1, 16, 16, dtype=torch.float64), 0.05, [0.7])
    expected = fno_forcing(x, y) * (1 - math.exp(-rate * 0.7)) / rate
    assert relative_error(computed[0, 0], expected) < 1e-6


def test_the_time_step_is_of_fourth_order():
    w = 20 * start(32, 1, 2)

    def solve(n_steps):
        return simulate_navier_stokes(w, 1e-3, [0.5], step=0.5 / n_steps)

    exact = solve(640)
    errors = [relative_error(solve(n_steps), exact) for n_steps in (40, 80, 160)]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) > 3.75
    assert errors[-1] > 1e-12  # the orders above are not those of rounding


def test_energy_and_enstrophy_budgets_close():
    """dE/dt = <psi f> - 2 viscosity Z and dZ/dt = <w f> - viscosity <|grad w|^2>, by Simpson's rule."""
    n, viscosity, interval, n_intervals = 32, 1e-3, 0.02, 100
    equation = make_equation(n, viscosity, fno_forcing, "cpu", torch.float64)
    times = [i * interval for i in range(n_intervals + 1)]
    frames = simulate_navier_stokes(start(n, 3), viscosity, times, step=0.01)[0]
    states = to_spectrum(frames, equation.m)
    square = equation.damping / viscosity
    inverse = torch.where(square > 0, 1 / square, 0.0)

    def mean(a, b):  # of a product over the torus; columns ky > 0 stand for -ky too
        weight = torch.full((equation.m + 1,), 2.0, dtype=torch.float64)
        weight[0] = 1
        return (weight * (a * b.conj()).real).sum(dim=(-1, -2))

    energy, enstrophy = 0.5 * mean(inverse * states, states), 0.5 * mean(states, states)
    power = mean(inverse * states, equation.forcing) - 2 * viscosity * enstrophy
    production = mean(states, equation.forcing) - viscosity * mean(square * states, states)
    weights = torch.ones(n_intervals + 1, dtype=torch.float64)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    for quantity, rate in ((energy, power), (enstrophy, production)):
        change = (weights * rate).sum() * interval / 3
        assert abs(quantity[-1] - quantity[0] - change) < 1e-7 * quantity[0]
        assert abs(change) > 1e-2 * quantity[0]  # there is something to balance


def test_without_viscosity_and_forcing_energy_and_enstrophy_are_conserved():
    n = 32
    equation = make_equation(n, 1e-12, None, "cpu", torch.float64)
    frames = simulate_navier_stokes(10 * start(n, 3), 1e-12, [0.0, 1.0], None, step=0.01)[0]
    enstrophy = frames.square().mean(dim=(1, 2))
    energy = velocity(to_spectrum(frames, equation.m), equation).abs().square().mean(dim=(1, 2))
    assert relative_error(frames[1], frames[0]) > 0.3  # the flow has changed
    assert energy[1].item() == pytest.approx(energy[0].item(), rel=1e-6)
    assert enstrophy[1].item() == pytest.approx(enstrophy[0].item(), rel=1e-6)


def test_agrees_with_the_published_sample():
    if not SAMPLE.exists():
        pytest.skip(f"the sample trajectory {SAMPLE.name} does not lie beside the checkout")
    frames = torch.from_numpy(np.load(SAMPLE)).double().transpose(1, 2) / 0.6544
    upsampled = to_grid(to_spectrum(frames[:1], 31), 128)
    computed = simulate_navier_stokes(upsampled, 1e-4, [1.0, 10.0], resolution=64)[0]
    assert relative_error(computed[0], frames[1]) < 1e-3
    assert relative_error(computed[1], frames[10]) < 3e-3


def test_float32_follows_float64():
    """Viscosity 1e-3, so that chaos does not amplify the rounding."""
    w = start(64, 0, 1)
    exact = simulate_navier_stokes(w, 1e-3, [10.0])
    assert relative_error(simulate_navier_stokes(w.float(), 1e-3, [10.0]), exact) < 1e-5


def test_mean_vorticity_is_conserved_and_frames_are_real_fields_of_the_start():
    w = start(24, 1) + 0.3
    frames = simulate_navier_stokes(w, 1e-2, [0.0, 2.0])[0]
    assert frames.dtype == torch.float64
    assert frames.mean(dim=(1, 2)).tolist() == pytest.approx([0.3, 0.3], abs=1e-14)
    assert relative_error(frames[0], to_grid(to_spectrum(w, 7), 24)[0]) < 1e-13


@pytest.mark.parametrize("shift", [1, 7])
def test_the_solution_moves_with_its_start_along_the_forcing(shift):
    w = start(32, 5)
    moved = simulate_navier_stokes(w.roll((shift, -shift), (1, 2)), 1e-3, [2.0])[0, 0]
    expected = simulate_navier_stokes(w, 1e-3, [2.0])[0, 0].roll((shift, -shift), (0, 1))
    assert relative_error(moved, expected) < 1e-12


def test_the_solution_mirrors_with_its_start():
    """Swapping x and y reverses the sign of vorticity; half a period along x reverses that of the forcing."""

    def mirror(w):
        return -w.transpose(-1, -2).roll(16, -2)

    w = start(32, 6)
    mirrored = simulate_navier_stokes(mirror(w), 1e-3, [2.0])
    assert relative_error(mirrored, mirror(simulate_navier_stokes(w, 1e-3, [2.0]))) < 1e-12


@pytest.mark.parametrize("chunk", [1, 2, 5, None])
def test_chunks_change_the_result_by_rounding_only(chunk):
    w = start(32, 0, 1, 2, 3, 4, dtype=torch.float32)
    together = simulate_navier_stokes(w, 1e-4, [2.0, 4.0], chunk=5)
    computed = simulate_navier_stokes(w, 1e-4, [2.0, 4.0], chunk=chunk)
    for one, other in zip(computed, together, strict=True):
        assert relative_error(one, other) < 2e-6


def test_output_times_and_resolution_change_nothing():
    w = start(32, 1)
    full = simulate_navier_stokes(w, 1e-3, [0.25, 1.0, 2.5])
    coarse = simulate_navier_stokes(w, 1e-3, [0.25, 1.0, 2.5], resolution=8)
    assert torch.equal(coarse, full[:, :, ::4, ::4])
    assert relative_error(simulate_navier_stokes(w, 1e-3, [2.5])[:, 0], full[:, 2]) < 1e-7


def test_forcing_as_function_tensor_and_none():
    w = start(16, 1)
    default = simulate_navier_stokes(w, 1e-2, [1.0])
    assert torch.equal(simulate_navier_stokes(w, 1e-2, [1.0], fno_forcing(*grid(16))), default)
    assert relative_error(simulate_navier_stokes(w, 1e-2, [1.0], None), default) > 0.1
    doubled = simulate_navier_stokes(w, 1e-2, [1.0], lambda x, y: 2 * fno_forcing(x, y))
    assert relative_error(doubled, default) > 0.1


def test_a_trajectory_that_becomes_too_fast_is_redone_alone():
    def wind(x, y):
        return 40 * fno_forcing(x, y)

    calm, strong = start(64, 1), 8.5 * start(64, 2)
    equation = make_equation(64, 1e-3, None, "cpu", torch.float64)
    flow = velocity(to_spectrum(strong, equation.m), equation)
    speed = 1.05 * (flow.real.abs() + flow.imag.abs()).max().item()  # the forcing drives the second beyond it
    bound = VelocityBound(start=speed, growth=0.0, limit=speed)
    solver = NavierStokesSolver(64, 1e-3, wind, bound=bound, dtype=torch.float64)
    times = [0.25, 0.5]
    together = solver.run(torch.cat((calm, strong)), times)
    alone = solver.run(strong, times)
    assert together.longest_step[1] < together.longest_step[0]
    assert together.longest_step[1] == alone.longest_step[0]
    assert torch.equal(together.vorticity[1], alone.vorticity[0])
    for one, other in zip(torch.cat((calm, strong)), together.vorticity, strict=True):
        exact = simulate_navier_stokes(one[None], 1e-3, times, wind, step=0.002)
        assert relative_error(other, exact[0]) < 1e-5


def test_a_fast_start_gets_a_smaller_step_at_once():
    w = torch.cat((start(64, 1), 28 * start(64, 2)))
    solution = NavierStokesSolver(64, 1e-3, dtype=torch.float64).run(w, [0.25])
    slow, fast = solution.longest_step.tolist()
    assert fast < slow / 3
    exact = simulate_navier_stokes(w, 1e-3, [0.25], step=5e-4)
    for one, other in zip(solution.vorticity, exact, strict=True):
        assert relative_error(one, other) < 5e-5


@pytest.mark.parametrize("amplitude", [100.0, 1e4])
def test_too_large_a_step_names_trajectory_time_and_a_step_that_works(amplitude):
    w = torch.cat((start(32, 0), amplitude * start(32, 1)))
    with pytest.raises(InputError) as caught:
        simulate_navier_stokes(w, 1e-3, [0.1], step=0.05)
    found = re.fullmatch(
        r"trajectory 1 is unstable between t = 0 and 0\.1 s with a time step of 0\.05 s "
        r"\(\|u\| \+ \|v\| reached \S+ m/s\): try step=(\S+)",
        str(caught.value),
    )
    assert found, str(caught.value)
    assert torch.isfinite(simulate_navier_stokes(w, 1e-3, [0.1], step=float(found[1]))).all()


def test_what_no_halving_saves_is_an_error_and_not_a_nan():
    def storm(x, y):
        return 1e4 * fno_forcing(x, y)

    with pytest.raises(InputError, match=r"trajectory 7 is unstable between t = 0 and 1 s .* try step="):
        NavierStokesSolver(32, 1e-3, storm).run(start(32, 0), [1.0], first_trajectory=7)


def test_progress_counts_every_frame_of_every_trajectory():
    counts = []
    NavierStokesSolver(16, 1e-2).run(start(16, *range(5)), [0.1, 0.2, 0.3], chunk=2, progress=counts.append)
    assert sum(counts) == 15
    assert len(counts) == 9


def test_backends_are_checked():
    with pytest.raises(InputError, match="CUDA"):
        NavierStokesSolver(16, 1e-2, backend="graph")
    assert NavierStokesSolver(16, 1e-2).backend == "eager"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"vorticity": torch.zeros(1, 8, 9)}, r"\(1, 8, 9\)"),
        ({"vorticity": torch.zeros(8, 8)}, r"\(8, 8\)"),
        ({"vorticity": torch.zeros(0, 8, 8)}, r"\(0, 8, 8\)"),
        ({"vorticity": torch.randn(1, 8, 8).sign() * 3e38}, "overflows"),
        ({"vorticity": torch.zeros(1, 8, 8, dtype=torch.int64)}, "int64"),
        ({"vorticity": torch.tensor([0.0, math.nan]).reshape(2, 1, 1).expand(2, 8, 8)}, "trajectory 1"),
        ({"viscosity": 0.0}, "viscosity.*0.0"),
        ({"viscosity": -1.0}, "viscosity.*-1.0"),
        ({"times": [1.0, 1.0]}, "1 s follows 1 s"),
        ({"times": [2.0, 1.0]}, "1 s follows 2 s"),
        ({"times": [-1.0, 1.0]}, "-1.0"),
        ({"times": [math.inf]}, "inf"),
        ({"times": []}, r"\[\]"),
        ({"resolution": 3}, "resolution 3.*8"),
        ({"resolution": 0}, "resolution 0"),
        ({"chunk": 0}, "chunk.*0"),
        ({"step": -0.1}, "step.*-0.1"),
    ],
)
def test_bad_input_gives_one_line_that_names_it(arguments, named):
    defaults = {"vorticity": torch.zeros(1, 8, 8), "viscosity": 1e-2, "times": [1.0]}
    with pytest.raises(InputError, match=named) as caught:
        simulate_navier_stokes(**{**defaults, **arguments})
    assert "\n" not in str(caught.value)
