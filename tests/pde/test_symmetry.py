"""A symmetry of an equation maps solutions to solutions: shown with the solver."""

import pytest
import torch

from sciml_monarch.errors import InputError
from sciml_monarch.pde import Description, gaussian_random_field, simulate_navier_stokes
from sciml_monarch.pde.solvers.vorticity import fno_forcing
from sciml_monarch.pde.symmetry import (
    FNO_FORCING,
    NO_FORCING,
    Isometry,
    SymmetryGroup,
    fno_forced_navier_stokes,
    free_navier_stokes,
    identity,
)
from tests.helpers import relative_error

N = 32


@pytest.fixture(scope="module")
def starts():
    return gaussian_random_field(N, seeds=range(3)).double()


def solve(starts, forcing):
    # a viscosity that the grid resolves: the solver's own error is far below the bound
    return simulate_navier_stokes(starts, viscosity=1e-2, times=[0.5, 2.0], forcing=forcing)


@pytest.mark.parametrize(
    ("group", "forcing"), [(fno_forced_navier_stokes(), fno_forcing), (free_navier_stokes(), None)]
)
def test_every_element_maps_solutions_to_solutions(starts, group, forcing):
    solutions = solve(starts, forcing)
    for i in range(len(group.isometries)):
        choice = torch.full((len(starts),), i)
        _, steps = group.draw(len(starts), (N, N))
        moved = group.apply(starts, choice, steps)
        assert relative_error(solve(moved, forcing), group.apply(solutions, choice, steps)) < 1e-8, i
        # and it is no symmetry of the other equation, unless both have it: the test can fail
    if forcing is not None:
        wrong = torch.roll(starts, 5, dims=-1)
        assert relative_error(solve(wrong, forcing), torch.roll(solutions, 5, dims=-1)) > 1e-3


@pytest.mark.parametrize("group", [fno_forced_navier_stokes(), free_navier_stokes()])
def test_elements_are_closed_up_to_translations(group):
    """The isometries are one of each coset: compositions are an isometry of the list and a translation."""
    kinds = {(i.axes, i.directions, i.sign) for i in group.isometries}
    assert len(kinds) == len(group.isometries)
    for a in group.isometries:
        for b in group.isometries:
            c = a.after(b)
            assert (c.axes, c.directions, c.sign) in kinds


def test_an_isometry_is_what_its_formula_says():
    x = torch.arange(8) / 8
    x, y = torch.meshgrid(x, x, indexing="ij")

    def w(x, y):
        return torch.sin(2 * torch.pi * x) + 0.3 * torch.cos(2 * torch.pi * (2 * x + y))

    group = fno_forced_navier_stokes()
    expected = [w(x, y), -w(y, x + 0.5), w(0.25 - x, -y)]
    for i, field in enumerate(expected):
        moved = group.apply(w(x, y)[None], torch.tensor([i]), torch.zeros(1, 1, dtype=torch.int64))
        torch.testing.assert_close(moved[0], field, atol=1e-6, rtol=0)
    moved = group.apply(w(x, y)[None], torch.tensor([0]), torch.tensor([[3]]))
    torch.testing.assert_close(moved[0], w(x + 3 / 8, y - 3 / 8), atol=1e-6, rtol=0)


def test_composition_is_one_map_after_the_other():
    swap, rotation = fno_forced_navier_stokes().isometries[1:3]
    field, none = torch.randn(1, 8, 8), torch.zeros(1, 0, dtype=torch.int64)
    both = SymmetryGroup((swap.after(rotation),)).apply(field, torch.tensor([0]), none)
    first = SymmetryGroup((rotation,)).apply(field, torch.tensor([0]), none)
    torch.testing.assert_close(both, SymmetryGroup((swap,)).apply(first, torch.tensor([0]), none))


GROUPS = [fno_forced_navier_stokes(), free_navier_stokes()]


@pytest.mark.parametrize("group", GROUPS)
def test_an_inverse_undoes_its_isometry(group):
    back = SymmetryGroup([isometry.inverse() for isometry in group.isometries])
    fields = torch.randn(2, 3, 8, 8)
    none = torch.zeros(2, len(group.translations), dtype=torch.int64)
    for i, isometry in enumerate(group.isometries):
        assert isometry.after(isometry.inverse()) == isometry.inverse().after(isometry) == identity(2)
        choice = torch.full((2,), i)
        assert torch.equal(back.apply(group.apply(fields, choice, none), choice, none), fields)


def test_the_inverse_of_a_turn_of_three_axes():
    turn = Isometry((1, 2, 0), (1, -1, 1), (0.25, 0.5, 0.0), -1)
    assert turn.after(turn.inverse()) == turn.inverse().after(turn) == identity(3)


@pytest.mark.parametrize("group", GROUPS)
def test_a_mean_over_a_group_commutes_with_its_isometries(group):
    def predict(fields):  # knows directions and signs, not places
        return (fields + 0.5 * fields.roll(1, -1)).clamp(min=0)[:, -1:]

    fields = torch.randn(2, 3, 8, 8)
    mean = group.symmetrized(predict, fields)
    assert mean.shape == (2, 1, 8, 8)
    none = torch.zeros(2, len(group.translations), dtype=torch.int64)
    for i in range(len(group.isometries)):
        moved = [group.apply(f, torch.full((2,), i), none) for f in (fields, mean, predict(fields))]
        torch.testing.assert_close(group.symmetrized(predict, moved[0]), moved[1], rtol=1e-5, atol=1e-6)
        assert i == 0 or relative_error(predict(moved[0]), moved[2]) > 0.1  # which the prediction itself does not
    same = group.symmetrized(lambda f: 2 * f, fields)  # what commutes stays what it is
    torch.testing.assert_close(same, 2 * fields)


def test_frames_and_fields_of_a_trajectory_move_together_and_trajectories_apart():
    group = free_navier_stokes()
    fields = torch.randn(4, 3, 2, 8, 8)
    choice, steps = torch.tensor([0, 1, 5, 7]), torch.randint(8, (4, 2))
    moved = group.apply(fields, choice, steps)
    for b in range(4):
        for t in range(3):
            alone = group.apply(fields[b : b + 1, t, 1], choice[b : b + 1], steps[b : b + 1])
            torch.testing.assert_close(moved[b, t, 1], alone[0])
    assert sorted(moved[1].abs().flatten().tolist()) == sorted(fields[1].abs().flatten().tolist())  # values only move


def test_three_axes_of_different_lengths():
    mirror = Isometry((0, 1, 2), (1, 1, -1), (0.0, 0.0, 0.0))
    group = SymmetryGroup((identity(3), mirror), ((1, 0, 0),))
    field = torch.randn(1, 2, 4, 5, 6)
    moved = group.apply(field, torch.tensor([1]), torch.tensor([[1]]))
    expected = torch.roll(field.flip(-1), 1, dims=-1).roll(-1, dims=-3)
    torch.testing.assert_close(moved, expected)


def test_draws_follow_the_generator_and_reach_every_element():
    group = fno_forced_navier_stokes()
    draws = [group.draw(400, (16, 16), torch.Generator().manual_seed(5)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*draws, strict=True))
    choice, steps = draws[0]
    assert len(set(zip(choice.tolist(), steps[:, 0].tolist(), strict=True))) == 4 * 16


@pytest.mark.parametrize(
    ("grid", "message"),
    [((30, 30), "multiple of 4"), ((8, 16), "8 and 16|16 and 8"), ((8,), "2 axes")],
)
def test_grids_that_are_not_mapped_to_themselves(grid, message):
    with pytest.raises(InputError, match=message):
        fno_forced_navier_stokes().check(grid)


def test_a_group_of_no_or_mixed_axes_is_refused():
    with pytest.raises(InputError, match="one number of axes"):
        SymmetryGroup((identity(2),), ((1, 0, 0),))


@pytest.mark.parametrize(
    ("group", "fields", "lengths", "forcing", "message"),
    [
        (free_navier_stokes(), ("u", "v"), (1.0, 1.0), None, "one scalar field; the data has u, v"),
        (free_navier_stokes(), ("w",), (1.0, 2.0), None, "lengths 2.0 and 1.0|lengths 1.0 and 2.0"),
        (free_navier_stokes(), ("w",), (1.0, 1.0), FNO_FORCING, "forcing 'none', the data's is '0.1"),
        (fno_forced_navier_stokes(), ("w",), (1.0, 1.0), NO_FORCING, "the data's is 'none'"),
        (free_navier_stokes(), ("w",), (1.0, 1.0), None, ""),
        (free_navier_stokes(), ("w",), (1.0, 1.0), NO_FORCING, ""),
        (fno_forced_navier_stokes(), ("w",), (1.0, 1.0), FNO_FORCING, ""),
        (SymmetryGroup((identity(2),), ((0, 1),)), ("w",), (1.0, 2.0), FNO_FORCING, ""),
    ],
)
def test_data_of_another_equation_or_domain_is_refused(group, fields, lengths, forcing, message):
    attributes = {} if forcing is None else {"forcing": forcing}
    units = ("1",) * len(fields)
    described = Description(fields, units, (16, 16), lengths, dt=1.0, n_history=1, n_steps=1, attributes=attributes)
    if not message:
        group.check_data(described)
        return
    with pytest.raises(InputError, match=message):
        group.check_data(described)
