"""Conjugate gradients: the solution, each entry for itself, and gradients of the solution."""

import pytest
import torch

from sciml_monarch.mri.cg import cg
from sciml_monarch.mri.linops import SenseOperator
from tests.helpers import randn, relative_error
from tests.mri.scenes import scan


def systems(b=3, n=6, dtype=torch.complex128):
    a = randn(b, n, n, dtype=dtype)
    return a @ a.mH + 0.5 * torch.eye(n, dtype=dtype), randn(b, n, dtype=dtype, seed=1)


def times(matrix):
    return lambda x: (matrix @ x[..., None])[..., 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_solves_each_system_in_as_many_steps_as_unknowns(dtype):
    matrix, b = systems(dtype=dtype)
    assert relative_error(cg(times(matrix), b, n_iterations=9), torch.linalg.solve(matrix, b)) < 1e-9


def test_entries_of_a_batch_do_not_see_each_other():
    matrix, b = systems()
    b[1] *= 1e6
    together = cg(times(matrix), b, n_iterations=4)
    for i in range(3):
        alone = cg(times(matrix[i : i + 1]), b[i : i + 1], n_iterations=4)
        assert relative_error(together[i : i + 1], alone) < 1e-12


def test_solved_or_zero_entries_stay_finite():
    matrix, b = systems()
    b[0] = 0
    x = cg(times(matrix), b, n_iterations=200)
    assert torch.isfinite(torch.view_as_real(x)).all()
    assert (x[0] == 0).all()


def test_start_and_tolerance():
    matrix, b = systems()
    exact = torch.linalg.solve(matrix, b)
    count = []

    def counted(x):
        count.append(1)
        return times(matrix)(x)

    x = cg(counted, b, x0=exact + 1e-6, n_iterations=50, tolerance=1e-4)
    assert len(count) == 2  # the residual, and that of the implicit gradient: the start was good enough
    assert relative_error(x, exact) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gradients_are_those_of_the_solution(dtype):
    matrix, b = systems(2, 4, dtype)
    root = torch.linalg.cholesky(matrix).requires_grad_()
    b.requires_grad_()
    assert torch.autograd.gradcheck(lambda r, b: cg(times(r @ r.mH), b, n_iterations=12), (root, b), atol=1e-5)


def test_gradients_of_cg_sense_reach_maps_weight_and_data():
    kspace, mask, maps, _ = scan(12, 10, 3, batch=2, dtype=torch.complex128)
    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    maps.requires_grad_()
    kspace.requires_grad_()

    def direct(maps, kspace, weight):
        operator = SenseOperator(maps, mask)
        eye = torch.eye(120, dtype=torch.complex128).view(120, 1, 12, 10)
        columns = [SenseOperator(maps[i : i + 1], mask[i : i + 1]).normal(eye).flatten(1).T for i in range(2)]
        matrix = torch.stack(columns) + weight * torch.eye(120, dtype=torch.float64)
        return torch.linalg.solve(matrix, operator.adjoint(kspace).flatten(1)).view(2, 1, 12, 10)

    def iterative(maps, kspace, weight):
        operator = SenseOperator(maps, mask)
        return cg(
            lambda x: operator.normal(x) + weight * x, operator.adjoint(kspace), n_iterations=300, tolerance=1e-13
        )

    inputs, wanted = (maps, kspace, weight), randn(2, 1, 12, 10, dtype=torch.complex128)
    results = []
    for solve in (direct, iterative):
        x = solve(*inputs)
        loss = (x - wanted).abs().square().sum()
        results.append([x, *torch.autograd.grad(loss, inputs)])
    for expected, found in zip(*results, strict=True):
        assert relative_error(found, expected) < 1e-8


def test_memory_of_the_graph_does_not_grow_with_the_iterations():
    matrix, b = systems()
    b.requires_grad_()
    calls = []

    def normal(x):
        calls.append(torch.is_grad_enabled())
        return times(matrix)(x)

    cg(normal, b, n_iterations=25)
    assert sum(calls) == 1
