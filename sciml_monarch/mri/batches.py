"""From scans to batches: a slice is read, undersampled and given its target; slices of one shape are stacked."""

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
from sciml_monarch.mri.masks import Mask, acceleration_of, seed_of, within_padding

Target = Literal["truth", "rss", "sense"]


class Batch(NamedTuple):
    """Slices of equal shape, ready for a network.

    Attributes:
        kspace: Undersampled k-space, ``(b, coil, y, x)`` complex64, zero where not sampled.
        mask: What was sampled, bool ``(b, 1, 1|y, x)``.
        maps: Coil sensitivities, ``(b, set, coil, y, x)`` complex64; ``None`` where no network asks for them.
        target: Magnitude to be reached, ``(b, h, w)`` float32.
        maximum: Largest value of the target's volume, ``(b,)``.
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

    A scan that is undersampled itself has its own pattern. Columns that were not encoded are never sampled.

    Args:
        scan: The volume.
        mask: Draws a pattern; ``None``: all is sampled.
        seed: Of the drawing.
        file_mask: Name of a pattern in the file that is taken instead, such as SKM-TEA's ``poisson_8.0x``.

    Returns:
        Bool ``(1, x)`` or ``(y, x)``.

    Raises:
        InputError: The pattern does not fit k-space or samples nothing, or the file has none of this name.
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
        pattern = torch.ones(1, nx, dtype=torch.bool) if mask is None else mask(scan.shape, seed)
    if pattern.ndim != 2 or pattern.shape[0] not in (1, ny) or pattern.shape[1] != nx:
        raise InputError(f"{scan.path}: a mask of {tuple(pattern.shape)} points does not fit k-space of {ny} x {nx}")
    pattern = within_padding(pattern, scan.padding)
    if not pattern.any():
        raise InputError(f"{scan.path}: the mask samples nothing of k-space")
    return pattern


def acceleration(mask: Tensor, padding: tuple[int, int] | None = None) -> float:
    """Points of encoded k-space for each sample.

    Args:
        mask: Bool ``(1|y, x)``.
        padding: Columns ``[left, right)`` that are encoded; ``None``: all.
    """
    return acceleration_of(mask if padding is None else mask[:, slice(*padding)])


@dataclass(frozen=True)
class Acquisition:
    """How a slice of a scan becomes input and target of a network.

    Attributes:
        mask: Draws the sampling pattern; ``None``: everything is sampled.
        file_mask: Name of a pattern in the files that is taken instead.
        maps: How coil maps are got; ``None``: there are none.
        target: ``truth``: the image in the file, or the RSS image where it has none; ``rss``: root sum of squares of
            the fully sampled k-space; ``sense``: its combination by coil maps.
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

    def truth(self, scan: Scan, index: int) -> Tensor:
        """Target of a slice, ``(h, w)`` float32.

        Raises:
            InputError: There is none: the scan is undersampled and brings no image.
        """
        image = scan.target(index) if self.target == "truth" else None
        if image is None:
            if scan.mask is not None:
                raise InputError(f"{scan.path}: is undersampled and holds no image to train on or compare with")
            kspace = scan.kspace(index)[None]
            if self.target == "sense":
                full = sampling(scan, None, 0)
                maps = self.coil_maps(scan, index, kspace[0], full)
                assert maps is not None
                image = magnitude(zero_filled_sense(kspace, full[None, None], maps[None]))[0]
            else:
                image = rss(kspace)[0]
            image = center_crop(image, scan.crop)
        return image

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
    """

    def __init__(self, scans: Sequence[Scan], places: Sequence[tuple[int, int]], acquisition: Acquisition) -> None:
        self.scans = scans
        self.places = places
        self.acquisition = acquisition
        self._maxima: dict[int, float] = {}

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
            target=self.acquisition.truth(scan, index),
            maximum=torch.tensor(self._maximum(volume), dtype=torch.float32),
            name=[scan.name],
            index=torch.tensor(index),
        )

    def _maximum(self, volume: int) -> float:
        if volume not in self._maxima:
            scan = self.scans[volume]
            stored = scan.attributes.get("max") if self.acquisition.target == "truth" else None
            if stored is None:
                used = [index for v, index in self.places if v == volume]
                stored = max(float(self.acquisition.truth(scan, index).max()) for index in used)
            if not 0 < float(stored) < float("inf"):
                raise InputError(f"{scan.path}: the largest value of its images is {stored}; it must be positive")
            self._maxima[volume] = float(stored)
        return self._maxima[volume]

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
