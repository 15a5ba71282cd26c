"""From scans to batches: a slice is read, undersampled and given its target; slices of one shape are stacked."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sciml_monarch.errors import InputError
from sciml_monarch.mri.base import magnitude, rss
from sciml_monarch.mri.classical import zero_filled_sense
from sciml_monarch.mri.coils import CoilMaps
from sciml_monarch.mri.formats.base import Scan, center_crop
from sciml_monarch.mri.mask_box import Box, draw_within, within_box
from sciml_monarch.mri.masks import Mask, acceleration_of, seed_of

Target = Literal["reference", "rss", "sense"]


class Batch(NamedTuple):
    """Slices of equal shape, ready for a network.

    Attributes:
        kspace: Undersampled k-space, ``(b, coil, y, x)`` complex64, zero where not sampled.
        mask: What was sampled, bool ``(b, 1, 1|y, x)``.
        maps: Coil sensitivities, ``(b, set, coil, y, x)`` complex64; ``None`` where no network asks for them.
        target: Magnitude to be reached, ``(b, h, w)`` float32.
        maximum: Largest value of the volume, ``(b,)``; see :func:`volume_maximum`.
        name: Name of each slice's volume.
        index: Number of each slice in its volume, ``(b,)``.
    """

    kspace: Tensor
    mask: Tensor
    maps: Tensor | None
    target: Tensor
    maximum: Tensor
    name: list[str]
    index: Tensor  # type: ignore[assignment]  # tuples have a method of this name, which nothing here needs


def sampling(scan: Scan, mask: Mask | None, seed: int | tuple[int, ...], file_mask: str | None = None) -> Tensor:
    """What is taken as sampled of a scan.

    A scan that is undersampled itself has its own pattern. Rows and columns that were not encoded are never sampled.

    Args:
        scan: The volume.
        mask: Draws a pattern; ``None``: all is sampled.
        seed: Of the drawing.
        file_mask: Name of a pattern in the file that is taken instead, such as SKM-TEA's ``poisson_8.0x``.

    Returns:
        Bool ``(1, x)`` or ``(y, x)``.

    Raises:
        InputError: The pattern does not fit k-space, does not exist or samples nothing, or the file has none of this
            name.
    """
    ny, nx = scan.shape
    if scan.mask is not None:
        pattern = scan.mask
    elif file_mask is not None:
        stored = scan.masks()
        if file_mask not in stored:
            raise InputError(f"{scan.path}: holds no mask {file_mask!r}; its masks: {', '.join(stored) or 'none'}")
        pattern = stored[file_mask]
    else:
        whole = torch.ones(1, nx, dtype=torch.bool)
        pattern = whole if mask is None else draw_within(mask, scan.shape, scan.acquired, seed)
    if pattern.ndim != 2 or pattern.shape[0] not in (1, ny) or pattern.shape[1] != nx:
        raise InputError(f"{scan.path}: a mask of {tuple(pattern.shape)} points does not fit k-space of {ny} x {nx}")
    pattern = within_box(pattern, scan.acquired, ny)
    if not pattern.any():
        raise InputError(f"{scan.path}: the mask samples nothing of k-space")
    return pattern


def acceleration(mask: Tensor, box: Box | None = None) -> float:
    """Points of encoded k-space for each sample.

    Args:
        mask: Bool ``(1|y, x)``.
        box: Rows and columns that were encoded, ``(top, bottom, left, right)``; ``None``: all.

    Raises:
        InputError: Nothing is sampled there.
    """
    if box is None:
        return acceleration_of(mask)
    top, bottom, left, right = box
    return acceleration_of((mask if len(mask) == 1 else mask[top:bottom])[:, left:right])


def volume_maximum(scan: Scan) -> float:
    """Largest value of a volume, the scale of SSIM and PSNR: cheap to read, and the same for any choice of its slices.

    It is the file's attribute ``max``; without such a number, that of the images in the file; without images, that of
    the root sum of squares of the fully sampled k-space. For the target ``sense`` too: a combination by coil maps
    differs from these by little more than noise, and its own maximum would need the coil maps of every slice.

    Raises:
        InputError: There is no image and the scan is undersampled, no slice can be read, or no value is positive.
    """
    stored = scan.attributes.get("max")
    if isinstance(stored, int | float) and not isinstance(stored, bool) and 0 < stored < math.inf:
        return float(stored)
    highest = 0.0
    failure = InputError(f"{scan.path}: the largest value of its images is 0; it must be positive")
    for index in range(scan.n_slices):
        try:
            image = scan.target(index)
            image = _fully_sampled_rss(scan, index) if image is None else image
        except InputError as error:  # whoever uses that slice meets the error where it is read; it may be left out
            failure = error
            continue
        highest = max(highest, float(image.max()))
    if highest <= 0:
        raise failure
    return highest


def _fully_sampled_rss(scan: Scan, index: int) -> Tensor:
    _require_full(scan)
    return center_crop(rss(scan.kspace(index)[None])[0], scan.crop)


def _require_full(scan: Scan) -> None:
    if scan.mask is not None:
        raise InputError(f"{scan.path}: is undersampled and holds no image to train on or compare with")


@dataclass(frozen=True)
class Acquisition:
    """How a slice of a scan becomes input and target of a network.

    Attributes:
        mask: Draws the sampling pattern; ``None``: everything is sampled.
        file_mask: Name of a pattern in the files that is taken instead.
        maps: How coil maps are got; ``None``: there are none.
        target: ``reference``: the image in the file, or the RSS image where it has none; ``rss``: root sum of squares
            of the fully sampled k-space; ``sense``: its combination by coil maps.
        seed: Of the patterns in training.
        fixed_mask: One pattern a volume, drawn from the name of its file, instead of a fresh one at each access.
    """

    mask: Mask | None
    file_mask: str | None
    maps: CoilMaps | None
    target: Target
    seed: int
    fixed_mask: bool

    def pattern(self, scan: Scan, epoch: int, position: int) -> Tensor:
        """Sampling pattern of a slice, bool ``(1|y, x)``; see :func:`sampling`.

        Args:
            scan: The volume.
            epoch: Of the training; fresh patterns depend on it.
            position: Position of the slice in its data set; fresh patterns depend on it.
        """
        # the name of the file with its suffix, as fastMRI has it: bit-equal patterns for validation
        seed = seed_of(scan.path.name) if self.fixed_mask else (self.seed, epoch, position)
        return sampling(scan, self.mask, seed, self.file_mask)

    def reference(self, scan: Scan, index: int) -> Tensor:
        """Target of a slice, ``(h, w)`` float32.

        Raises:
            InputError: There is none: the scan is undersampled and brings no image.
        """
        image = scan.target(index) if self.target == "reference" else None
        if image is not None:
            return image
        if self.target != "sense":
            return _fully_sampled_rss(scan, index)
        _require_full(scan)
        kspace, full = scan.kspace(index), sampling(scan, None, 0)
        maps = self.coil_maps(scan, index, kspace, full)
        assert maps is not None  # MRIData sees to it
        image = magnitude(zero_filled_sense(kspace[None], full[None, None], maps[None]))[0]
        return center_crop(image, scan.crop)

    def coil_maps(self, scan: Scan, index: int, kspace: Tensor, mask: Tensor) -> Tensor | None:
        """Coil maps of a slice, ``(set, coil, y, x)``.

        Raises:
            InputError: They cannot be estimated, or do not fit k-space.
        """
        return None if self.maps is None else self.maps(scan, index, kspace, mask)


class Slices(Dataset[Batch]):
    """Slices of volumes; an item is a batch, named by an epoch and positions.

    Args:
        scans: Volumes.
        places: Volume and slice of each position.
        acquisition: How a slice becomes input and target.

    Attributes:
        maxima: :func:`volume_maximum` of each volume, NaN before one of its slices was asked for.
    """

    def __init__(self, scans: Sequence[Scan], places: Sequence[tuple[int, int]], acquisition: Acquisition) -> None:
        self.scans = scans
        self.places = places
        self.acquisition = acquisition
        # in memory that worker processes share: each volume is gone through once, by whichever meets it first
        self.maxima = torch.full((len(scans),), math.nan, dtype=torch.float64).share_memory_()

    def __len__(self) -> int:
        return len(self.places)

    def keys(self) -> list[Hashable]:
        """For each position what slices of one batch must have in common: coils, k-space and image sizes."""
        scans = [self.scans[volume] for volume, _ in self.places]
        return [(scan.n_coils, scan.shape, scan.crop) for scan in scans]

    def __getitem__(self, key: tuple[int, Sequence[int]]) -> Batch:
        epoch, positions = key
        return _stack([self._slice(epoch, position) for position in positions])

    def _slice(self, epoch: int, position: int) -> Batch:
        volume, index = self.places[position]
        scan = self.scans[volume]
        mask = self.acquisition.pattern(scan, epoch, position)
        kspace = torch.where(mask, scan.kspace(index), 0)
        maps = self.acquisition.coil_maps(scan, index, kspace, mask)
        return Batch(
            kspace=kspace,
            mask=mask[None],
            maps=maps,
            target=self.acquisition.reference(scan, index),
            maximum=torch.tensor(self._maximum(volume), dtype=torch.float32),
            name=[scan.name],
            index=torch.tensor(index),
        )

    def _maximum(self, volume: int) -> float:
        if self.maxima[volume].isnan():
            self.maxima[volume] = volume_maximum(self.scans[volume])
        return float(self.maxima[volume])

    def close(self) -> None:
        """Closes the files; they open again when needed."""
        for scan in self.scans:
            scan.close()


def _stack(slices: list[Batch]) -> Batch:
    first = slices[0]
    rows = max(s.mask.shape[1] for s in slices)
    for other in slices:
        for part in ("kspace", "maps", "target"):
            ours, theirs = getattr(first, part), getattr(other, part)
            if ours is not None and ours.shape != theirs.shape:
                raise InputError(
                    f"{part} of {other.name[0]} is {tuple(theirs.shape)}, but that of {first.name[0]} in the same "
                    f"batch is {tuple(ours.shape)}; set batch_size to 1"
                )
    return Batch(
        kspace=torch.stack([s.kspace for s in slices]),
        mask=torch.stack([s.mask.expand(1, rows, -1) for s in slices]),
        maps=None if first.maps is None else torch.stack([s.maps for s in slices if s.maps is not None]),
        target=torch.stack([s.target for s in slices]),
        maximum=torch.stack([s.maximum for s in slices]),
        name=[s.name[0] for s in slices],
        index=torch.stack([s.index for s in slices]),
    )
