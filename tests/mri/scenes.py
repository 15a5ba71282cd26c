"""Small scans for tests: an ellipse seen by smooth coils."""

import torch

from sciml_monarch.mri.fourier import fft2c
from tests.helpers import randn


def coil_maps(n_coils, ny, nx, n_sets=1, batch=1, dtype=torch.complex128, seed=0):
    """Draws smooth maps with sum |S|^2 = 1 over coils and sets, ``(batch, n_sets, n_coils, ny, nx)``."""
    y = torch.linspace(-1, 1, ny, dtype=torch.float64)[:, None]
    x = torch.linspace(-1, 1, nx, dtype=torch.float64)
    c = randn(batch, n_sets, n_coils, 6, dtype=torch.complex128, seed=seed)[..., None, None]
    maps = c[..., 0, :, :] + c[..., 1, :, :] * x + c[..., 2, :, :] * y + c[..., 3, :, :] * x * y
    maps = maps / maps.abs().square().sum((1, 2), keepdim=True).sqrt()
    return maps.to(dtype)


def scan(ny=32, nx=28, n_coils=4, n_sets=1, batch=2, keep=0.4, two_d=False, dtype=torch.complex64, seed=0):
    """Makes ``(kspace, mask, maps, image)`` of a smooth random image with a fully sampled centre."""
    maps = coil_maps(n_coils, ny, nx, n_sets, batch, dtype, seed)
    coarse = torch.view_as_real(randn(batch, n_sets, 5, 5, dtype=torch.complex128, seed=seed + 1))
    planes = coarse.movedim(-1, 2).flatten(1, 2)
    smooth = torch.nn.functional.interpolate(planes, (ny, nx), mode="bicubic").unflatten(1, (n_sets, 2))
    image = torch.view_as_complex(smooth.movedim(2, -1).contiguous()).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, 1, ny if two_d else 1, nx, generator=generator) < keep
    rows = slice(ny // 2 - 4, ny // 2 + 4) if two_d else slice(None)
    mask[..., rows, nx // 2 - 4 : nx // 2 + 4] = True
    kspace = fft2c((maps * image[:, :, None]).sum(1)).where(mask, 0)
    return kspace, mask, maps, image
