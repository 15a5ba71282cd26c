"""The fused step, in real arithmetic, against the plain one."""

import functools

import pytest
import torch

from sciml_monarch.pde.solvers import fused
from sciml_monarch.pde.solvers.navier_stokes import NavierStokesSolver
from sciml_monarch.pde.solvers.random_field import gaussian_random_field
from sciml_monarch.pde.solvers.vorticity import EagerSteps, fno_forcing, make_equation, to_spectrum

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14}


def compare(n, dtype, device="cpu", **options):
    equation = make_equation(n, 1e-3, fno_forcing, device, dtype)
    start = to_spectrum(gaussian_random_field(n, [1, 2, 3], dtype=dtype).to(device), equation.m)
    expected, expected_peak = EagerSteps(equation)(start, 0.02, 20)
    steps = fused.FusedSteps(equation, 3, **options)
    steps(start, 0.01, 3)  # another step length before: nothing of it may remain
    state, peak = steps(start, 0.02, 20)
    assert ((state - expected).norm() / expected.norm()).item() < TOLERANCE[dtype]
    torch.testing.assert_close(peak, expected_peak, rtol=TOLERANCE[dtype], atol=0)
    assert (expected_peak > 0.01).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [15, 32, 33])
def test_equals_the_plain_step(n, dtype):
    compare(n, dtype, compiled=False)


def test_traces_whole(monkeypatch):
    monkeypatch.setattr(fused, "_compile", functools.partial(fused._compile, backend="aot_eager"))
    compare(16, torch.float64, compiled=True)


def test_not_finite_is_reported():
    equation = make_equation(16, 1e-3, fno_forcing, "cpu", torch.float32)
    start = to_spectrum(gaussian_random_field(16, [1, 2]), equation.m)
    start[1, 2, 3] = torch.nan
    for steps in (fused.FusedSteps(equation, 2, compiled=False), EagerSteps(equation)):
        _, peak = steps(start, 0.01, 2)
        assert torch.isfinite(peak).tolist() == [True, False]


@pytest.mark.cuda
@pytest.mark.parametrize("graph", [False, True])
def test_compiled_equals_the_plain_step(graph):
    compare(64, torch.float32, device="cuda", compiled=True, graph=graph)


@pytest.mark.cuda
def test_gpu_and_cpu_agree_in_any_batch():
    starts = gaussian_random_field(64, range(5))
    expected = NavierStokesSolver(64, 1e-3).run(starts, [1.0, 2.0]).vorticity
    for chunk in (2, 5):
        solver = NavierStokesSolver(64, 1e-3, device="cuda")
        assert solver.backend == "graph"
        vorticity = solver.run(starts, [1.0, 2.0], chunk=chunk).vorticity
        assert ((vorticity - expected).norm() / expected.norm()).item() < 1e-5
