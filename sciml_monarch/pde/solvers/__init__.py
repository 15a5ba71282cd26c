"""Reference solvers that make the data which neural operators learn from."""

from sciml_monarch.pde.solvers.navier_stokes import NavierStokesSolver, Solution, simulate_navier_stokes
from sciml_monarch.pde.solvers.random_field import gaussian_random_field
from sciml_monarch.pde.solvers.step_size import VelocityBound
from sciml_monarch.pde.solvers.vorticity import fno_forcing

__all__ = [
    "NavierStokesSolver",
    "Solution",
    "VelocityBound",
    "fno_forcing",
    "gaussian_random_field",
    "simulate_navier_stokes",
]
