"""How data sets become loaders: the options, and batches whose order is the same on every resume."""

from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
import torch
from torch.utils.data import DataLoader, DistributedSampler

from sciml_monarch.errors import InputError
from sciml_monarch.pde.windows import Batch, PairSamples, Windows

Samples = Windows | PairSamples


def at_least(minimum: int, **counts: int) -> None:
    """Raises ``InputError`` naming the first of the counts that is below ``minimum``."""
    for name, value in counts.items():
        if value < minimum:
            raise InputError(f"{name} {value}: must be {minimum} or more")


@dataclass(frozen=True)
class Loader:
    """How the data are read.

    Attributes:
        n_workers: Worker processes that read ahead.
        stride: Train and test on every ``stride``-th point of each axis (256² to 64² with 4).
        preload: Keep the frames in memory instead of reading them in each epoch; needs no workers. "device": in that
            of the device that is trained on (of several each has all), for networks that are quicker than a processor
            that copies batches.
        field: Read this field only; by default all fields of the file, as channels.
        windows: Train on the first window of each trajectory, as FNO's protocol has it, or on all. Validation
            and test use the first window in either case.
        known_frames: Frames behind which validation and test predict, ``n_history`` by default. With more, a network
            that looks at fewer frames is tested on the frames that others are tested on: the first window ends with
            the last of the known frames, and all windows are those from the start of the trajectory on.
        test_steps: Frames to predict in the test, by default as many as in training or in validation, whichever are
            more; more than these show where a roll-out diverges.
        val_steps: Frames to predict in validation, ``n_steps`` by default; more validates roll-outs of a network that
            is trained on single steps.
        seed: Of the order of training windows; that of epoch ``e`` depends on ``seed + e`` and nothing else.
        drop_last: Leave a last, smaller training batch out, so that all have one size (CUDA graphs need
            that).
    """

    n_workers: int = 0
    stride: int = 1
    preload: bool | Literal["device"] = False
    field: str | None = None
    windows: Literal["first", "all"] = "first"
    test_steps: int | None = None
    seed: int = 0
    drop_last: bool = False
    val_steps: int | None = None
    known_frames: int | None = None

    def __post_init__(self) -> None:
        at_least(0, n_workers=self.n_workers)
        at_least(1, stride=self.stride)
        at_least(1, **{k: v for k in ("test_steps", "val_steps") if (v := getattr(self, k)) is not None})
        if self.windows not in ("first", "all"):
            raise InputError(f"windows {self.windows!r}: must be 'first' or 'all'")
        if self.preload not in (False, True, "device"):
            raise InputError(f"preload {self.preload!r}: must be true, false or 'device'")
        if self.preload and self.n_workers:
            raise InputError(
                f"preload keeps the data in memory: {self.n_workers} workers would copy them; set n_workers 0"
            )


DEFAULT_LOADER = Loader()


def training_loader(
    module: L.LightningDataModule, samples: Samples, batch_size: int, loader: Loader
) -> DataLoader[Batch]:
    """Loader whose order in epoch ``e`` depends on ``seed + e`` alone, whatever ran before.

    The sampler is the distributed one for a single process too: Lightning calls its ``set_epoch``, does not
    replace it, and rank ``r`` of ``R`` takes every ``R``-th window of the same permutation. So the union of
    the ranks' batches of ``batch_size / R`` windows is the batch of ``batch_size`` of one process. If the
    number of windows is no multiple of ``R``, the first ones of the permutation are repeated in the last
    batch (or some left out, with ``drop_last``).

    Args:
        module: Data module whose trainer knows the number of processes; one process without a trainer.
        samples: Training part.
        batch_size: Samples of a batch, all processes together.
        loader: Options.

    Raises:
        InputError: ``drop_last`` would leave no batch, or the processes cannot share one equally.
    """
    world_size, rank = (1, 0) if module.trainer is None else (module.trainer.world_size, module.trainer.global_rank)
    if batch_size % world_size:
        raise InputError(
            f"batch_size {batch_size} is the batch of all {world_size} processes together; use a multiple of "
            f"{world_size}"
        )
    share = batch_size // world_size
    sampler: DistributedSampler[Batch] = DistributedSampler(
        samples,
        num_replicas=world_size,
        rank=rank,
        shuffle=True,
        seed=loader.seed,
        drop_last=loader.drop_last,
    )
    if loader.drop_last and len(sampler) < share:
        raise InputError(
            f"drop_last with {len(samples)} training samples and batches of {batch_size}: no batch would be "
            "left; lower batch_size"
        )
    return _loader(samples, share, loader, sampler, drop_last=loader.drop_last)


def evaluation_loader(samples: Samples, batch_size: int, loader: Loader) -> DataLoader[Batch]:
    """Loader in the order of the file, the last batch included however small."""
    return _loader(samples, batch_size, loader, sampler=None, drop_last=False)


def skip_validation(module: L.LightningDataModule, n_val: int) -> None:
    """Tells the trainer, if there is one, to run no validation when there is nothing to validate on.

    An empty list of loaders says so too, but Lightning warns of it in every run.
    """
    if n_val == 0 and module.trainer is not None:
        module.trainer.limit_val_batches = 0


def preload(module: L.LightningDataModule, samples: Samples, loader: Loader) -> None:
    """Reads samples into memory where that is asked for: the device's, once there is a trainer that knows it."""
    if loader.preload:
        samples.preload()
    if loader.preload == "device" and module.trainer is not None:
        samples.to(module.trainer.strategy.root_device)


def _loader(
    samples: Samples,
    batch_size: int,
    loader: Loader,
    sampler: DistributedSampler[Batch] | None,
    drop_last: bool,
) -> DataLoader[Batch]:
    return DataLoader(
        samples,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=loader.n_workers,
        collate_fn=_as_batch,
        pin_memory=torch.cuda.is_available() and loader.preload != "device",
        drop_last=drop_last,
        persistent_workers=loader.n_workers > 0,
    )


def _as_batch(batch: Any) -> Any:  # DataLoader types what it collates as a list of anything
    """Collates nothing: the data sets hand out batches already."""
    return batch
