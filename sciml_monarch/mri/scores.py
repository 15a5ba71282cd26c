"""Scores of whole volumes from slices that arrive in any order, in any process, some of them twice."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from sciml_monarch.mri.metrics import ssim_per_slice


class SliceScore(NamedTuple):
    """Sums over a slice, from which those of its volume follow.

    Attributes:
        error: ``|target - image|^2``.
        energy: ``|target|^2``.
        ssim: Structural similarity, range that of the volume.
        n_points: Pixels.
        maximum: Largest value of the volume.
    """

    error: float
    energy: float
    ssim: float
    n_points: int
    maximum: float


class VolumeScore(NamedTuple):
    """fastMRI's scores of a volume, as :mod:`sciml_monarch.mri.metrics` defines them."""

    nmse: float
    psnr: float
    ssim: float


Place = tuple[str, int]
"""Name of a volume and number of a slice in it."""


@torch.no_grad()
def score_slices(image: Tensor, target: Tensor, maximum: Tensor) -> list[SliceScore]:
    """Sums of each slice, in double precision.

    Args:
        image: Magnitudes, ``(b, h, w)``.
        target: ``(b, h, w)``.
        maximum: Largest value of each slice's volume, ``(b,)``.
    """
    image, target, maximum = image.double(), target.double(), maximum.double()
    error, energy = (image - target).square().sum((1, 2)), target.square().sum((1, 2))
    rows = torch.stack([error, energy, ssim_per_slice(target, image, maximum), maximum], 1).tolist()
    n_points = target[0].numel()
    return [SliceScore(error, energy, ssim, n_points, peak) for error, energy, ssim, peak in rows]


def score_volumes(slices: Iterable[tuple[Place, SliceScore]]) -> dict[str, VolumeScore]:
    """Puts slices together to volumes; a slice that came twice counts once.

    Args:
        slices: Sums of slices, in any order.
    """
    volumes: dict[str, list[SliceScore]] = {}
    for (name, _), score in sorted(dict(slices).items()):
        volumes.setdefault(name, []).append(score)
    return {name: _volume(scores) for name, scores in volumes.items()}


def _volume(scores: list[SliceScore]) -> VolumeScore:
    error, energy = sum(s.error for s in scores), sum(s.energy for s in scores)
    peak = max(s.maximum for s in scores)
    mean = error / sum(s.n_points for s in scores)
    return VolumeScore(
        nmse=error / energy if energy else math.inf,
        psnr=10 * math.log10(peak**2 / mean) if mean > 0 else (math.inf if mean == 0 else math.nan),
        ssim=sum(s.ssim for s in scores) / len(scores),
    )
