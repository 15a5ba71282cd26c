import numpy as np
import pytest
import torch

from sciml_monarch import InputError
from sciml_monarch.pde.readers import open_pairs
from sciml_monarch.pde.solvers.darcy import permeability, solve_darcy
from tests.programs import script


def square(n):
    x = np.arange(n + 1) / n
    return np.meshgrid(x, x, indexing="ij")


def of_constant_permeability(n, n_terms=60):
    """The series of the Poisson equation with right side one."""
    x, y = square(n)
    u = np.zeros_like(x)
    for i in range(1, n_terms, 2):
        for j in range(1, n_terms, 2):
            u += 16 / (np.pi**4 * i * j * (i**2 + j**2)) * np.sin(np.pi * i * x) * np.sin(np.pi * j * y)
    return u


def test_the_poisson_equation_at_second_order():
    errors = []
    for n in (8, 16, 32):
        exact = of_constant_permeability(n)
        errors.append(np.abs(solve_darcy(np.ones((n + 1, n + 1))) - exact).max() / exact.max())
    assert errors[0] < 0.02
    assert np.log2(errors[0] / errors[1]) > 1.9
    assert np.log2(errors[1] / errors[2]) > 1.8


def test_twice_the_permeability_is_half_the_pressure_and_walls_are_at_zero():
    a = permeability(16, 0)
    u = solve_darcy(a)
    np.testing.assert_allclose(solve_darcy(2 * a), u / 2, rtol=1e-12)
    assert (u[1:-1, 1:-1] > 0).all()
    for wall in (u[0], u[-1], u[:, 0], u[:, -1]):
        assert (wall == 0).all()
    np.testing.assert_allclose(solve_darcy(a.T), u.T, rtol=1e-10)


def test_what_flows_in_flows_out():
    """The source is one on every inner cell; all of it leaves through the walls."""
    n = 16
    a = permeability(n, 3)
    u = solve_darcy(a)
    edges = [(a[1], a[0], u[1]), (a[-2], a[-1], u[-2]), (a[:, 1], a[:, 0], u[:, 1]), (a[:, -2], a[:, -1], u[:, -2])]
    out = sum((2 * inner * wall / (inner + wall) * pressure)[1:-1].sum() for inner, wall, pressure in edges)
    assert out == pytest.approx((n - 1) ** 2 / n**2, rel=1e-10)


def test_fields_of_a_seed_agree_between_grids():
    coarse, fine = permeability(32, 5), permeability(128, 5)[::4, ::4]
    assert set(np.unique(coarse)) == {3.0, 12.0}
    assert (coarse == fine).mean() > 0.95
    assert (permeability(32, 6) == coarse).mean() < 0.9


@pytest.mark.parametrize(("a", "reason"), [(np.ones((4, 5)), "square"), (np.zeros((4, 4)), "positive")])
def test_bad_input(a, reason):
    with pytest.raises(InputError, match=reason):
        solve_darcy(a)


def test_the_program_writes_files_that_the_reader_takes(tmp_path):
    script("simulate_darcy").simulate_darcy(tmp_path, 8, n_train=2, n_test=1)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["darcy_test_16.pt", "darcy_test_8.pt", "darcy_train_8.pt"]
    x, y = open_pairs(tmp_path / "darcy_test_16.pt").read(0)
    coarse_x, coarse_y = open_pairs(tmp_path / "darcy_test_8.pt").read(0)
    assert torch.equal(x[:, ::2, ::2], coarse_x)
    assert torch.equal(y[:, ::2, ::2], coarse_y)
    assert (y[:, 0] == 0).all()
    assert (y[:, -1, 1:] > 0).all()
    other, _ = open_pairs(tmp_path / "darcy_train_8.pt").read(1)
    assert not torch.equal(other, coarse_x)
