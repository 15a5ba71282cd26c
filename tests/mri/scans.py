"""Semi-synthetic scans for tests: ellipses seen by smooth coils."""

from typing import NamedTuple

import torch
from torch import Tensor

from sciml_monarch.mri.base import rss
from sciml_monarch.mri.formats.base import center_crop
from sciml_monarch.mri.fourier import fft2c
from sciml_monarch.mri.writing import FastMRIWriter


class Scanned(NamedTuple):
    kspace: Tensor  # (slices, coil, y, x)
    maps: Tensor  # (slices, set, coil, y, x)
    target: Tensor  # (slices, h, w)


def make_scan(n_slices, shape, n_coils=4, seed=0, scale=1e-5, noise=0.002):
    """A volume of random ellipses with a smooth phase, of the small values that fastMRI's files have."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low, high):
        return low + (high - low) * torch.rand((), generator=generator)

    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    images = []
    for _ in range(n_slices):
        image = 0.6 * ((x / 0.8) ** 2 + (y / 0.6) ** 2 < 1).float()
        for _ in range(5):
            inside = ((x - uniform(-0.4, 0.4)) / uniform(0.1, 0.35)) ** 2
            image += uniform(0.1, 0.5) * (inside + ((y - uniform(-0.3, 0.3)) / uniform(0.1, 0.3)) ** 2 < 1)
        images.append(torch.polar(image, 0.8 * x + 0.5 * y * y))
    angles = torch.arange(n_coils) * 2 * torch.pi / n_coils
    places = torch.stack([angles.cos(), angles.sin()], 1)
    coils = torch.stack([torch.exp(-((x - a) ** 2 + (y - b) ** 2) / 1.5) for a, b in places.tolist()])
    coils = torch.polar(coils, torch.stack([a * x + 0.5 * b * y for a, b in places.tolist()]))
    coils = coils / coils.abs().square().sum(0).sqrt()
    kspace = fft2c(torch.stack(images)[:, None] * coils)
    kspace = kspace + noise * torch.randn(kspace.shape, dtype=kspace.dtype, generator=generator)
    side = min(shape)
    return Scanned(
        scale * kspace, coils.expand(n_slices, 1, -1, -1, -1), center_crop(rss(scale * kspace), (side, side))
    )


def write_scan(path, scan, with_maps=False, mask=None, **options):
    """Writes a volume in fastMRI's format; with a mask (columns) undersampled and without targets."""
    side = scan.target.shape[-1]
    defaults = {"crop": (side, side), "voxel_size": (3.0, 1.5, 1.0), "acquisition": "AXT2"}
    datasets = {} if mask is None else {"mask": mask}
    with FastMRIWriter(path, **{**defaults, **options}, datasets=datasets) as writer:
        for kspace, maps, target in zip(scan.kspace, scan.maps, scan.target, strict=True):
            extra = {"maps": maps} if with_maps else {}
            if mask is None:
                writer.append(kspace, target, extra)
            else:
                writer.append(torch.where(mask, kspace, 0), None, extra)
