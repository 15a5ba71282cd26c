import numpy as np
import pytest
import torch

from sciml_monarch import InputError
from sciml_monarch.pde.readers import open_pairs
from sciml_monarch.pde.solvers.burgers import N_SINES, solve_burgers, start
from tests.programs import script


def test_a_layer_that_stands_still_stays():
    """The exact steady solution ``-a tanh(a (x - 1/2) / 2 nu)``, to the second order of the grid."""
    errors = []
    for n in (128, 256, 512):
        x = np.linspace(0, 1, n + 1)
        exact = -0.8 * np.tanh(0.8 * (x - 0.5) / 0.08)
        errors.append(np.abs(solve_burgers(exact, 0.04, 1.0) - exact).max())
    assert errors[-1] < 1e-4
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.2)


def test_a_small_sine_decays_as_heat_does():
    x = np.linspace(0, 1, 257)
    end = solve_burgers(0.01 * np.sin(np.pi * x), 0.1, 0.5)
    decayed = 0.01 * np.exp(-0.1 * np.pi**2 * 0.5) * np.sin(np.pi * x)
    assert np.abs(end - decayed).max() < 5e-5  # what the nonlinear term does to so small a wave
    assert np.abs(decayed).max() > 5e-3


def test_starts_on_a_finer_grid_are_the_same_and_walls_keep_their_values():
    coarse, fine = start(64, 7), start(128, 7)
    assert np.allclose(coarse, fine[::2], atol=1e-14)
    assert not np.allclose(start(64, 8), coarse)
    assert np.abs(coarse[[0, -1]]).max() <= 1
    end = solve_burgers(coarse, 0.04, 0.1)
    assert end[0] == coarse[0]
    assert end[-1] == coarse[-1]
    line = np.linspace(coarse[0], coarse[-1], 65)
    sines = np.sin(np.pi * np.outer(np.arange(1, 64), np.arange(1, 64)) / 64)
    amplitudes = 2 / 64 * sines @ (coarse - line)[1:-1]
    assert np.abs(amplitudes[N_SINES:]).max() < 1e-12
    assert (np.abs(amplitudes[:N_SINES]) > 1e-6).all()


@pytest.mark.parametrize(("n", "viscosity", "time"), [(8, 0.0, 1.0), (8, 0.1, 0.0), (1, 0.1, 1.0)])
def test_what_cannot_be_solved_is_refused(n, viscosity, time):
    with pytest.raises(InputError, match="must be"):
        solve_burgers(np.zeros(n + 1), viscosity, time)


def test_files_are_those_of_the_configurations(tmp_path):
    program = script("simulate_burgers")
    program.simulate_burgers(tmp_path, 16, n_train=2, n_test=1)
    files = {path.name: open_pairs(path) for path in tmp_path.iterdir()}
    assert {name: (pairs.n_pairs, pairs.grid) for name, pairs in files.items()} == {
        "burgers_walls_train_16.pt": (2, (16,)),
        "burgers_walls_test_16.pt": (1, (16,)),
        "burgers_walls_test_32.pt": (1, (32,)),
    }
    (x, y), (x_fine, y_fine) = (files[f"burgers_walls_test_{n}.pt"].read(0) for n in (16, 32))
    assert torch.equal(x, x_fine[:, ::2])
    assert torch.equal(y, y_fine[:, ::2])
    assert torch.allclose(x[0], torch.from_numpy(start(16, 2)[:-1]).float(), atol=1e-6)
    assert x[0, 0] == y[0, 0]
    with pytest.raises(InputError, match="must divide"):
        program.simulate_burgers(tmp_path, 48)
