"""MRI reconstruction: data, coil maps, physics, networks, metrics. Training is in :mod:`sciml_monarch.mri.task`."""

from sciml_monarch.mri.base import Recon, magnitude, rss
from sciml_monarch.mri.cg import cg
from sciml_monarch.mri.classical import cg_sense, l1_wavelet, zero_filled_rss, zero_filled_sense
from sciml_monarch.mri.coil_simulation import simulate_maps
from sciml_monarch.mri.espirit import espirit
from sciml_monarch.mri.fastmri_checkpoint import load_fastmri_checkpoint
from sciml_monarch.mri.fourier import fft2c, ifft2c
from sciml_monarch.mri.ista import MonarchISTA
from sciml_monarch.mri.linops import SenseOperator
from sciml_monarch.mri.masks import EquispacedFractionMask, EquispacedMask, Mask, PoissonMask, RandomMask
from sciml_monarch.mri.metrics import hfen, nmse, psnr, ssim
from sciml_monarch.mri.modl import MoDL, MonarchMoDL
from sciml_monarch.mri.sense import DensityCompensation, MonarchSENSE
from sciml_monarch.mri.transforms import MonarchFourier2d
from sciml_monarch.mri.unet import UNet
from sciml_monarch.mri.varnet import MonarchVarNet, VarNet

__all__ = [
    "DensityCompensation",
    "EquispacedFractionMask",
    "EquispacedMask",
    "Mask",
    "MoDL",
    "MonarchFourier2d",
    "MonarchISTA",
    "MonarchMoDL",
    "MonarchSENSE",
    "MonarchVarNet",
    "PoissonMask",
    "RandomMask",
    "Recon",
    "SenseOperator",
    "UNet",
    "VarNet",
    "cg",
    "cg_sense",
    "espirit",
    "fft2c",
    "hfen",
    "ifft2c",
    "l1_wavelet",
    "load_fastmri_checkpoint",
    "magnitude",
    "nmse",
    "psnr",
    "rss",
    "simulate_maps",
    "ssim",
    "zero_filled_rss",
    "zero_filled_sense",
]
