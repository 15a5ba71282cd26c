"""K-space from which coil maps are estimated: simulated ellipses, and measurements beside the checkout."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sciml_monarch.mri.coil_simulation import simulate_maps
from sciml_monarch.mri.fourier import fft2c
from tests.helpers import randn

REAL = Path(__file__).resolve().parents[2] / "../shared/data/mri"


def real_kspace(name):
    path = REAL / f"{name}.npy"
    if not path.exists():
        pytest.skip(f"the measured k-space {name}.npy is not beside the checkout")
    return torch.from_numpy(np.load(path))[None]


def phantom(shape, n_coils, noise=1e-3, seed=0):
    """K-space of ellipses with simulated maps, and the maps and object."""
    y, x = (((torch.arange(n) - n // 2) / (n / 2)) for n in shape)
    y, x = y[:, None], x[None, :]
    image = ((y / 0.8) ** 2 + (x / 0.7) ** 2 < 1).float() + 0.5 * (((y - 0.2) / 0.3) ** 2 + (x / 0.2) ** 2 < 1)
    image = image * torch.exp(1j * (0.8 * y + 0.5 * x * y))
    maps = simulate_maps(shape, n_coils, seed)
    kspace = fft2c(maps * image)
    kspace = kspace + noise * kspace.abs().max() * 1e-2 * randn(*kspace.shape, dtype=torch.complex64, seed=seed)
    return kspace[None].to(torch.complex64), maps, image
