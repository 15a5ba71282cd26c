"""Lightning data module: folders of scans in any format that the readers know, undersampled as they are read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch.utils.data import DataLoader

from sciml_monarch.errors import InputError
from sciml_monarch.mri.batches import Acquisition, Batch, Slices, Target, acceleration
from sciml_monarch.mri.coils import CoilMaps
from sciml_monarch.mri.description import Description, options_of
from sciml_monarch.mri.file_mask import FileMask  # noqa: F401  (a name for configurations)
from sciml_monarch.mri.formats.base import Scan
from sciml_monarch.mri.masks import Mask
from sciml_monarch.mri.readers import list_scans, open_scans
from sciml_monarch.mri.sampler import ShapeBatches

__all__ = ["Batch", "Loader", "MRIData"]

Part = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Loader:
    """How the data are read.

    Attributes:
        n_workers: Worker processes that read ahead.
        seed: Of the order of training slices and of fresh masks; those of epoch ``e`` depend on it and ``e`` alone.
        fixed_mask: Train with one mask a volume, as in validation, instead of a fresh one at each access.
        file_mask: Name of a mask in each file that is taken instead of ``mask``, such as ``poisson_8.0x``.
        slices: Slices ``[first, last)`` of each volume that are used; negative numbers count from its end.
        n_train: Use at most so many training slices, spread evenly over all.
        n_val: Use at most so many validation slices, spread evenly over all.
    """

    n_workers: int = 0
    seed: int = 0
    fixed_mask: bool = False
    file_mask: str | None = None
    slices: tuple[int, int] | None = None
    n_train: int | None = None
    n_val: int | None = None

    def __post_init__(self) -> None:
        if self.n_workers < 0:
            raise InputError(f"n_workers {self.n_workers}: must be 0 or more")
        for name in ("n_train", "n_val"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise InputError(f"{name} {count}: must be 1 or more, or null for all slices")


DEFAULT_LOADER = Loader()


class MRIData(L.LightningDataModule):
    """Slices of the scans in folders, for training, validation and test.

    Folders hold fastMRI, SKM-TEA or ISMRMRD files, BART ``.cfl`` pairs or ``.npy`` arrays; all are read a slice at a
    time. Batches are :class:`~sciml_monarch.mri.batches.Batch`; slices of different shape or number of coils never
    share one. In training a fresh mask is drawn at each access, in validation and test one a volume, from the name of
    its file (as fastMRI does). A scan that is undersampled itself keeps its own pattern.

    Args:
        train: Folder or file to train on.
        val: Folder or file for validation; without one nothing is validated.
        test: Folder or file for the test.
        mask: Draws sampling patterns; without one scans stay as they are.
        maps: How coil maps are got, from the undersampled k-space or a file; without, batches have none.
        target: What is to be reached: ``reference`` is the image in the file (RSS where it has none), ``rss`` the root
            sum of squares of the fully sampled k-space, ``sense`` its combination by coil maps.
        batch_size: Slices of a training batch, all processes together; of a batch in each, elsewhere.
        loader: How the data are read.

    Raises:
        InputError: A number is out of range, or the target needs coil maps and there are none.
    """

    def __init__(
        self,
        train: str | Path | None = None,
        val: str | Path | None = None,
        test: str | Path | None = None,
        mask: Mask | None = None,
        maps: CoilMaps | None = None,
        target: Target = "reference",
        batch_size: int = 1,
        loader: Loader = DEFAULT_LOADER,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise InputError(f"batch_size {batch_size}: must be 1 or more")
        if target == "sense" and maps is None:
            raise InputError("target sense is a combination by coil maps, but maps is null; give maps, or target rss")
        self.paths = {name: None if p is None else Path(p) for name, p in zip(_PARTS, (train, val, test), strict=True)}
        self.mask = mask
        self.maps = maps
        self.target = target
        self.batch_size = batch_size
        self.loader = loader
        self._parts: dict[Part, Slices] = {}

    def setup(self, stage: str | None = None) -> None:
        """Opens the files; called by Lightning, may be called again.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``; ``None`` opens all parts.

        Raises:
            InputError: A file is damaged or a folder holds no scans.
        """
        if self.paths["val"] is None and self.trainer is not None:
            self.trainer.limit_val_batches = 0  # an empty list of loaders says so too, but Lightning warns of it
        for name in _PARTS if stage is None else _STAGES[stage]:
            if self.paths[name] is not None:
                self.part(name)

    def part(self, name: Part) -> Slices:
        """Slices for training (``train``), validation (``val``) or test (``test``).

        Raises:
            InputError: No folder is given for it, it holds no scans, or one of its files is damaged.
        """
        if name not in self._parts:
            path = self.paths[name]
            if path is None:
                raise InputError(f"no folder is given for this part; set {name}")
            scans = [scan for file in list_scans(path) for scan in open_scans(file)]
            if not scans:
                raise InputError(f"{path}: holds no scans")
            repeated = sorted({s.name for s in scans if sum(t.name == s.name for t in scans) > 1})
            if repeated:
                raise InputError(f"{path}: two volumes are called {repeated[0]}; give each its own name")
            places = self._places(name, path, scans)
            first = scans[places[0][0]]
            first.kspace(places[0][1])  # what is damaged as a whole stops the program here and not in a worker
            first.close()
            self._parts[name] = Slices(scans, places, self._acquisition(fresh=name == "train"))
        return self._parts[name]

    def scans(self) -> list[Scan]:
        """Volumes of the parts that are set up."""
        return [scan for part in self._parts.values() for scan in part.scans]

    @property
    def description(self) -> Description:
        """What is trained on.

        Raises:
            InputError: There is nothing to train on, or it cannot be read.
        """
        part = self.part("train")
        used = sorted({volume for volume, _ in part.places})
        scans = [part.scans[volume] for volume in used]
        own = scans[0].mask is not None or self.loader.file_mask is not None
        options = {"file_mask": self.loader.file_mask} if self.loader.file_mask else {}
        if self.mask is not None and not own:
            options = {"class": type(self.mask).__name__, **options_of(self.mask)}
        return Description(
            shapes=tuple(sorted({scan.shape for scan in scans})),
            n_coils=tuple(sorted({scan.n_coils for scan in scans})),
            mask=options,
            acceleration=acceleration(part.acquisition.pattern(scans[0], 0, 0), scans[0].acquired),
            maps=None if self.maps is None else options_of(replace(self.maps, cache=None)),
            target=self.target,
            n_volumes=len(scans),
            n_slices=len(part.places),
            acquisitions=tuple(sorted({scan.acquisition for scan in scans} - {""})),
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches; under several processes each gets its share of every global batch.

        Raises:
            InputError: There is no training folder.
        """
        return self._dataloader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Batches volume by volume; no loader without a validation folder."""
        return [] if self.paths["val"] is None else self._dataloader("val", shuffle=False)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Batches volume by volume.

        Raises:
            InputError: There is no test folder.
        """
        return self._dataloader("test", shuffle=False)

    def close(self) -> None:
        """Closes the files; they open again when needed."""
        for part in self._parts.values():
            part.close()

    def _acquisition(self, fresh: bool) -> Acquisition:
        fixed = self.loader.fixed_mask or not fresh
        return Acquisition(self.mask, self.loader.file_mask, self.maps, self.target, self.loader.seed, fixed)

    def _places(self, name: Part, path: Path, scans: Sequence[Scan]) -> list[tuple[int, int]]:
        window = slice(*self.loader.slices) if self.loader.slices else slice(None)
        places = [(v, index) for v, scan in enumerate(scans) for index in range(scan.n_slices)[window]]
        if not places:
            raise InputError(f"slices {self.loader.slices}: leave none of the {scans[0].n_slices} slices in {path}")
        count = {"train": self.loader.n_train, "val": self.loader.n_val}.get(name)
        if count is not None and count > len(places):
            raise InputError(f"n_{name} is {count}, but {path} has {len(places)} slices; lower it or give null")
        return places if count is None else spread(places, count)

    def _dataloader(self, name: Part, shuffle: bool) -> DataLoader[Batch]:
        part = self.part(name)
        world_size, rank = (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)
        sampler = ShapeBatches(part.keys(), self.batch_size, shuffle, self.loader.seed, world_size, rank)
        return DataLoader(
            part,
            batch_size=None,  # the sampler's items are batches
            sampler=sampler,
            num_workers=self.loader.n_workers,
            collate_fn=_as_batch,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.loader.n_workers > 0,
            generator=torch.Generator(),  # else each start of an epoch would draw from the global one
        )


_PARTS: tuple[Part, ...] = ("train", "val", "test")
_STAGES: dict[str, tuple[Part, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("test",),
}


def spread(places: Sequence[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """Takes ``count`` of the slices, evenly spaced, each in the middle of its share.

    Args:
        places: Volume and number of each slice, in order.
        count: How many, at most all.
    """
    return [places[(2 * i + 1) * len(places) // (2 * count)] for i in range(count)]


def _as_batch(batch: Any) -> Any:  # DataLoader types what it collates as a list of anything
    """Collates nothing: the data set hands out batches already."""
    return batch
