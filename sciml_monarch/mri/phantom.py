"""A synthetic head in three dimensions, made of formulas: an anatomy for machines that have no other.

Nested ellipsoids (Shepp and Logan 1974) are scalp, skull and brain; folds, foliation, vessels and texture are level
sets of random sums of plane waves, so that slices have the fine structure that a set of smooth ellipses lacks. It
looks like a head and is none: scores on it say nothing about patients.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sciml_monarch.errors import InputError


class Tissues(NamedTuple):
    """Brightness of each tissue, relative to the brightest."""

    scalp: float
    bone: float
    marrow: float
    fluid: float
    grey: float
    white: float
    nuclei: float
    vessel: float


TISSUES = {
    "T1": Tissues(scalp=0.95, bone=0.04, marrow=0.35, fluid=0.15, grey=0.50, white=0.78, nuclei=0.60, vessel=0.98),
    "T2": Tissues(scalp=0.55, bone=0.04, marrow=0.25, fluid=0.98, grey=0.60, white=0.40, nuclei=0.46, vessel=0.08),
}
LENGTH = 200.0
"""From forehead to occiput in mm; it fixes the voxel size."""
LOWEST, HIGHEST = -0.35, 0.6
"""Range of the slices, in units of half the grid's height; the centre of the head is 0."""


def phantom(shape: tuple[int, int, int], seed: int = 0, contrast: Literal["T1", "T2"] = "T2") -> Tensor:
    """Draws a head.

    Args:
        shape: Slices, rows and columns; rows run from anterior to posterior, slices from inferior to superior.
        seed: Another seed is another head: its form, folds, vessels and brightness differ.
        contrast: Which tissues are bright: fluid (T2) or white matter (T1).

    Returns:
        Magnitudes ``shape``, float32, from 0 to 1.

    Raises:
        InputError: The grid is smaller than 16 x 16 or there is no slice.
    """
    n_slices, ny, nx = shape
    if n_slices < 1 or min(ny, nx) < 16:
        raise InputError(f"a phantom of shape {shape}; it needs at least 1 slice of 16 x 16")
    head = _Head(seed, contrast)
    half = _half_height(ny, nx)
    y, x = ((torch.arange(n) - n // 2) / half for n in (ny, nx))
    heights = LOWEST + (HIGHEST - LOWEST) * (torch.arange(n_slices) + 0.5) / n_slices
    return torch.stack([head.slice(float(z), y, x, 1 / half) for z in heights])


def phantom_voxel_size(shape: tuple[int, int, int]) -> tuple[float, float, float]:
    """Voxel size of :func:`phantom` in mm, (slice, y, x), for a head of ordinary length."""
    n_slices, ny, nx = shape
    unit = LENGTH / (2 * _LENGTH_AXIS)
    pixel = unit / _half_height(ny, nx)
    return unit * (HIGHEST - LOWEST) / n_slices, pixel, pixel


_WIDTH_AXIS, _LENGTH_AXIS, _HEIGHT_AXIS = 0.68, 0.86, 0.9


def _half_height(ny: int, nx: int) -> float:
    """Pixels of one unit of length: the head fits into the grid on both axes."""
    return min(ny / 2, nx / 2 * _LENGTH_AXIS / _WIDTH_AXIS)


class _Waves:
    """A random field of zero mean and unit variance: a sum of plane waves of similar length."""

    def __init__(self, generator: torch.Generator, shortest: float, longest: float, n_waves: int = 48) -> None:
        direction = torch.randn(n_waves, 3, generator=generator)
        length = shortest + (longest - shortest) * torch.rand(n_waves, 1, generator=generator)
        self.k = 2 * math.pi / length * direction / direction.norm(dim=1, keepdim=True)
        self.phase = 2 * math.pi * torch.rand(n_waves, generator=generator)
        self.steepness = float(self.k.norm(dim=1).square().mean().sqrt())

    def __call__(self, z: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """Values at ``(y, x)`` points."""
        turns = z[..., None] * self.k[:, 0] + y[..., None] * self.k[:, 1] + x[..., None] * self.k[:, 2]
        return (turns + self.phase).cos().sum(-1) * math.sqrt(2 / len(self.phase))


class _Head:
    """One head: its random form and how a slice of it is painted."""

    def __init__(self, seed: int, contrast: Literal["T1", "T2"]) -> None:
        g = torch.Generator().manual_seed(seed)
        self.jitter = 1 + 0.03 * torch.randn(16, generator=g).clamp(-2, 2)
        self.tilt = 0.05 * float(torch.randn((), generator=g).clamp(-2, 2))
        tissue = torch.tensor(TISSUES[contrast])
        self.tissue = Tissues(*(tissue * (1 + 0.05 * torch.randn(len(tissue), generator=g).clamp(-2, 2))).tolist())
        self.warp = [_Waves(g, 0.8, 1.5, 8) for _ in range(3)]
        self.folds = _Waves(g, 0.16, 0.25)
        self.depth = _Waves(g, 0.4, 0.8, 16)
        self.foliation = _Waves(g, 0.05, 0.07, 24)
        self.vessels = (_Waves(g, 0.25, 0.4, 24), _Waves(g, 0.25, 0.4, 24))
        self.texture = (_Waves(g, 0.04, 0.08, 24), _Waves(g, 0.3, 0.8, 16))

    def slice(self, height: float, rows: Tensor, columns: Tensor, pixel: float) -> Tensor:
        """Paints ``(y, x)`` at one height; lengths are in units of half the grid."""
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        x, y = x + self.tilt * y, y - self.tilt * x
        z = torch.full_like(y, height)
        z, y, x = (v + 0.012 * wave(z, y, x) for v, wave in zip((z, y, x), self.warp, strict=True))
        t, j = self.tissue, self.jitter

        def edge(depth: Tensor) -> Tensor:
            return torch.sigmoid(4 * depth / pixel)  # about one pixel wide: no aliasing at the border

        def ellipsoid(center: tuple[float, float, float], axes: tuple[float, float, float]) -> Tensor:
            """Depth below the surface, to first order; negative outside."""
            radius = sum(((v - c) / a) ** 2 for v, c, a in zip((z, y, x), center, axes, strict=True))
            return (1 - torch.as_tensor(radius).sqrt()) * min(axes)

        below = ellipsoid((0.0, 0.0, 0.0), (_HEIGHT_AXIS, _LENGTH_AXIS * float(j[0]) ** 0.5, _WIDTH_AXIS * float(j[1])))
        scalp = 0.045 * float(j[2]) + 0.012 * self.depth(z, y, x)
        image = t.scalp * (1 + 0.25 * self.texture[1](z, y, x)).clamp(0.3, 1) * edge(below)
        image = _paint(image, t.bone, edge(below - scalp))
        image = _paint(image, t.marrow, edge(0.012 - (below - scalp - 0.028).abs()))
        image = _paint(image, t.fluid, edge(below - scalp - 0.06))

        brain = below - scalp - 0.072  # depth below the surface of the brain
        reach = 0.16 + 0.05 * self.depth(z, y, x)  # how deep a fold goes
        fold = self.folds(z, y, x).abs() / self.folds.steepness + (brain - reach).clamp(min=0)
        bridge = max(0.24 - height, 0) * torch.sigmoid((0.36 - y.abs()) / 0.02)  # the callosum joins the halves
        gap = (x + 0.008 * self.depth(z, y, 0 * x)).abs() + bridge
        ribbon = torch.minimum(torch.minimum(brain, fold - 0.004), gap - 0.006)  # distance to the nearest fluid
        image = _paint(image, t.grey, edge(ribbon))
        image = _paint(image, t.white, edge(ribbon - 0.030 * float(j[3])))

        for side in (-1, 1):
            s, k = float(side), 4 if side < 0 else 8
            image = _paint(image, t.nuclei, edge(ellipsoid((0.0, 0.05, s * 0.10), (0.13, 0.13, 0.07 * float(j[k])))))
            image = _paint(
                image, t.nuclei, edge(ellipsoid((0.02, -0.12, s * 0.20), (0.12, 0.17 * float(j[k + 1]), 0.045)))
            )
            curve = x - s * (0.07 + 0.25 * (y - 0.02).square())  # a horn that opens to the back and the front
            body = (1 - ((y - 0.0) / 0.36) ** 2 - ((z - 0.16) / 0.13) ** 2).clamp(min=-1) * 0.05 * float(j[k + 2])
            image = _paint(image, t.fluid, edge(body - curve.abs()))
            image = _paint(image, t.fluid, edge(ellipsoid((-0.3, -0.62, s * 0.27), (0.12, 0.12, 0.12))))  # eyes
            image = _paint(image, t.bone, edge(ellipsoid((-0.28, 0.12, s * 0.5), (0.1, 0.1, 0.08))))  # petrous bone
        image = _paint(image, t.fluid, edge(ellipsoid((0.0, 0.05, 0.0), (0.14, 0.12, 0.012))))  # third ventricle

        cerebellum = ellipsoid((-0.36, 0.42, 0.0), (0.24, 0.26, 0.42))
        leaves = t.grey + (t.white - t.grey) * edge(self.foliation(z, y, x) / self.foliation.steepness)
        image = _paint(image, t.fluid, edge(cerebellum + 0.012))
        image = _paint(image, leaves, edge(cerebellum))
        image = _paint(image, t.white, edge(ellipsoid((-0.3, 0.17, 0.0), (0.3, 0.11, 0.12))))  # brain stem

        tube = torch.hypot(*(wave(z, y, x) / wave.steepness for wave in self.vessels))
        image = _paint(image, t.vessel, edge(0.006 - tube) * edge(brain - 0.01))
        fine, coarse = (wave(z, y, x) for wave in self.texture)
        return (image * (1 + 0.03 * fine + 0.03 * coarse)).clamp(0, 1)


def _paint(image: Tensor, brightness: float | Tensor, share: Tensor) -> Tensor:
    """Covers a share of each pixel."""
    return image + share * (brightness - image)
