"""Scores of one reconstructed volume, and of many: means, spreads and groups."""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.mri.io import read_complex_image, read_reconstruction
from sciml_monarch.mri.matching import Truth, number_in
from sciml_monarch.mri.metrics import hfen, nmse, psnr, residual_energy, ssim

METRICS = ("nmse", "psnr", "ssim", "hfen", "data_consistency")


@dataclass(frozen=True)
class VolumeScores:
    """One volume of one method.

    Attributes:
        volume: Name of the scan.
        acquisition: Kind of scan; empty if unknown.
        acceleration: Nominal acceleration; None if neither reconstruction nor truth says it.
        n_slices: Number of slices.
        nmse: See :mod:`sciml_monarch.mri.metrics`, as the following.
        psnr: In dB.
        ssim: Volume-wise range.
        hfen: Relative.
        data_consistency: Residual; None if it was neither stored nor asked for.
    """

    volume: str
    acquisition: str
    acceleration: float | None
    n_slices: int
    nmse: float
    psnr: float
    ssim: float
    hfen: float
    data_consistency: float | None

    @property
    def group(self) -> str:
        """What it is compared with: acquisition and acceleration, ``"AXT2, 4x"``."""
        parts = (self.acquisition, "" if self.acceleration is None else f"{self.acceleration:g}x")
        return ", ".join(part for part in parts if part) or "unknown acquisition"


def fitted(truth: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
    """Cuts both volumes to the middle square of the truth's width, as fastMRI's evaluation does.

    Args:
        truth: ``(slices, y, x)``.
        prediction: ``(slices, y', x')``, at least as large as what is compared.

    Returns:
        Both, ``(slices, min(y, x), x)``: a truth that is wider than high keeps its height, which fastMRI refuses.

    Raises:
        InputError: The numbers of slices differ, or the reconstruction is too small.
    """
    if len(truth) != len(prediction):
        raise InputError(f"has {len(prediction)} slices, but the truth has {len(truth)}")
    _, ny, nx = truth.shape
    size = (min(ny, nx), nx)
    if any(have < need for have, need in zip(prediction.shape[1:], size, strict=True)):
        raise InputError(f"has images of {tuple(prediction.shape[1:])}, but {size} of the truth are compared")
    return _center(truth, size), _center(prediction, size)


def score_volume(truth: Truth, target: Tensor, path: Path, consistency: bool) -> VolumeScores:
    """Scores one file.

    Args:
        truth: Where the truth comes from.
        target: Its volume.
        path: File of the reconstruction.
        consistency: Compute the data-consistency residual from the complex image in the file and the k-space of the
            truth's file, instead of taking what the file says.

    Returns:
        The scores.

    Raises:
        InputError: A file is damaged or does not fit; the message names it.
    """
    found = read_reconstruction(path)
    residual = found.attributes.get("data_consistency")
    try:
        reference, volume = fitted(target, found.volume)
        residual = measured_consistency(truth, path) if consistency else residual
        acceleration = number_in(found.attributes.get("acceleration"))
        return VolumeScores(
            volume=truth.name,
            acquisition=truth.acquisition or str(found.attributes.get("acquisition", "")),
            acceleration=truth.acceleration if acceleration is None else acceleration,
            n_slices=len(reference),
            nmse=nmse(reference, volume),
            psnr=psnr(reference, volume),
            ssim=ssim(reference, volume),
            hfen=hfen(reference, volume),
            data_consistency=None if residual is None else float(residual),
        )
    except (InputError, ValueError) as error:
        text = str(error)
        raise InputError(text if str(path) in text else f"{path}: {text}") from None


def measured_consistency(truth: Truth, path: Path) -> float:
    """Data-consistency residual of a stored complex image, a slice at a time.

    Args:
        truth: Scan whose file has the k-space.
        path: File of the reconstruction, with ``image``, ``mask`` and ``maps``.

    Returns:
        ``|A x - y| / |y|`` of the volume; NaN where nothing but zeros was measured.

    Raises:
        InputError: Either file lacks what is needed, or they do not fit.
    """
    from sciml_monarch.mri.readers import open_scans

    stored = read_complex_image(path)
    if stored is None:
        raise InputError(
            "holds no complex image with mask and maps, of which the data consistency is computed; reconstruct with "
            "--complex true"
        )
    scan = next((scan for scan in open_scans(truth.path) if scan.name == truth.name), None)
    if scan is None or scan.n_slices != len(stored.image):
        raise InputError(f"its {len(stored.image)} complex slices do not fit the k-space of {truth.path}")
    residual = measured = 0.0
    mask = stored.mask[None, None]
    with scan:
        for index in range(scan.n_slices):
            image = stored.image[index : index + 1]
            energies = residual_energy(image, scan.kspace(index)[None], mask, stored.maps[index : index + 1])
            residual, measured = residual + float(energies[0]), measured + float(energies[1])
    return math.sqrt(residual / measured) if measured > 0 else math.nan


def summary(scores: Iterable[VolumeScores]) -> dict[str, object]:
    """Means over volumes and twice their sample standard deviations, which is what fastMRI prints.

    Args:
        scores: Volumes of one method, at least one.

    Returns:
        ``nmse``, ``nmse_2std`` and so on, and the numbers of volumes and slices; a metric that a volume lacks is
        left out, a spread of a single volume or of values that are not finite is None.
    """
    volumes = list(scores)
    row: dict[str, object] = {}
    for metric in METRICS:
        values = [getattr(volume, metric) for volume in volumes]
        if any(value is None for value in values):
            continue
        row[metric] = math.fsum(values) / len(values) if all(map(math.isfinite, values)) else sum(values)
        spread = len(values) > 1 and all(map(math.isfinite, values))
        row[f"{metric}_2std"] = 2 * statistics.stdev(values) if spread else None
    return row | {"n_volumes": len(volumes), "n_slices": sum(volume.n_slices for volume in volumes)}


def grouped(scores: Mapping[str, list[VolumeScores]]) -> dict[str, dict[str, list[VolumeScores]]]:
    """Sorts volumes by acquisition and acceleration.

    Args:
        scores: Method to its volumes.

    Returns:
        Group to method to the volumes of that group; a method without any in a group is not in it.
    """
    names = sorted({volume.group for volumes in scores.values() for volume in volumes})
    return {
        name: {
            method: chosen for method, volumes in scores.items() if (chosen := [v for v in volumes if v.group == name])
        }
        for name in names
    }


def _center(volume: Tensor, size: tuple[int, int]) -> Tensor:
    top, left = ((have - need) // 2 for have, need in zip(volume.shape[1:], size, strict=True))
    return volume[:, top : top + size[0], left : left + size[1]]
