"""Neural PDE solvers: data, networks, metrics. Training is in :mod:`sciml_monarch.pde.task`."""

from sciml_monarch.pde.base import Operator, n_parameters, rollout
from sciml_monarch.pde.description import Description
from sciml_monarch.pde.fno import FNO, MonarchFNO
from sciml_monarch.pde.metrics import relative_l2
from sciml_monarch.pde.residual_fno import ResidualMonarchFNO
from sciml_monarch.pde.solvers.navier_stokes import simulate_navier_stokes
from sciml_monarch.pde.solvers.random_field import gaussian_random_field
from sciml_monarch.pde.solvers.vorticity import fno_forcing
from sciml_monarch.pde.spectral_conv import MonarchSpectralConv
from sciml_monarch.pde.surrogate import Surrogate
from sciml_monarch.pde.transformer import OperatorTransformer
from sciml_monarch.pde.unet import UNet

__all__ = [
    "FNO",
    "Description",
    "MonarchFNO",
    "MonarchSpectralConv",
    "Operator",
    "OperatorTransformer",
    "ResidualMonarchFNO",
    "Surrogate",
    "UNet",
    "fno_forcing",
    "gaussian_random_field",
    "n_parameters",
    "relative_l2",
    "rollout",
    "simulate_navier_stokes",
]
