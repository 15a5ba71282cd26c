"""A training run in a folder: fixed layout, resumable, never overwritten by accident.

``OUT/config.yaml`` is what ran, where the run came from a YAML; ``OUT/checkpoints/{best,last}.ckpt`` the networks;
``OUT/csv/`` and ``OUT/tensorboard/`` the logs.
"""

import logging
import re
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from sciml_monarch.errors import InputError
from sciml_monarch.hub import read_checkpoint

PARTS = ("checkpoints", "csv", "tensorboard", "config.yaml")
EARLIER, MOVING = ".earlier", ".earlier_in_part"
LAST = Path("checkpoints/last.ckpt")
BEST = Path("checkpoints/best.ckpt")


def quiet() -> None:
    """Silences what Lightning says of devices, seeds and products; its warnings stay."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


@rank_zero_only
def check_folder(out: Path, resume: bool, overwrite: bool) -> None:
    """Checks that a run may use a folder, before any data loads.

    Args:
        out: Run folder.
        resume: Whether to go on from the last checkpoint in it.
        overwrite: Whether an earlier run in it may be replaced.

    Raises:
        InputError: Nothing to resume from or not a checkpoint, or an earlier run and neither ``resume`` nor
            ``overwrite``.
    """
    _settle(out)
    if resume:
        if not (out / LAST).is_file():
            raise InputError(f"{out / LAST}: nothing to resume from; run without --resume")
        read_checkpoint(out / LAST)
    elif not overwrite and any((out / name).exists() for name in PARTS):
        raise InputError(f"{out}: holds an earlier run; give --resume, --overwrite or another --out")


@contextmanager
def _replacing_earlier_run(out: Path) -> Iterator[None]:
    """Puts an earlier run aside, and back again if the new one does not get as far as a checkpoint.

    Of a run that does not get so far nothing stays, so that it can be started again once its mistake is mended.
    """
    present = [name for name in PARTS if (out / name).exists()]
    if present:
        (out / MOVING).mkdir()
        for name in present:
            (out / name).rename(out / MOVING / name)
        (out / MOVING).rename(out / EARLIER)  # from here on the folder is the new run's
    try:
        yield
    except BaseException:
        if not (out / LAST).is_file():
            for name in PARTS:
                _remove(out / name)
        raise
    finally:
        _settle(out)


def _settle(out: Path) -> None:
    """Decides between a run and the one put aside for it, also after a process that was killed in between."""
    if (out / MOVING).exists():  # killed while it was put aside: the rest of it is in its place still
        for part in (out / MOVING).iterdir():
            part.rename(out / part.name)
        (out / MOVING).rmdir()
    aside = out / EARLIER
    if not aside.exists():
        return
    if not (out / LAST).is_file():
        for name in PARTS:
            _remove(out / name)
            if (aside / name).exists():
                (aside / name).rename(out / name)
    shutil.rmtree(aside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class _Seldom(ModelCheckpoint):
    """Writes at the end of an epoch some time after it has written, and when a training ends or is told to."""

    def __init__(self, folder: Path, seconds: float) -> None:
        super().__init__(folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
        self._seconds = seconds
        self._written = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        super().on_train_start(trainer, pl_module)
        self._written = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes, or not."""
        epochs = trainer.current_epoch + 1
        ends = epochs == trainer.max_epochs or trainer.global_step == trainer.max_steps or trainer.should_stop
        is_time = time.monotonic() - self._written >= self._seconds
        if trainer.strategy.broadcast(ends or is_time):  # all processes write together: their clocks differ
            super().on_train_epoch_end(trainer, pl_module)
            self._written = time.monotonic()


class Monitor(NamedTuple):
    """What marks the best network.

    Attributes:
        name: Of a value that is logged in validation.
        mode: Whether the smallest or the largest is the best.
    """

    name: str
    mode: Literal["min", "max"]


def checkpointing(out: Path, monitor: Monitor | None, seconds_apart: float = 0.0) -> list[Callback]:
    """Callbacks that keep the best network and, at the end of each epoch or of some, the state to resume from.

    Args:
        out: Run folder.
        monitor: What marks the best network; ``None`` keeps only the last.
        seconds_apart: From one state to resume from to the end of the epoch that has the next one, at least; the last
            epoch has one in any case.
    """
    folder = out / "checkpoints"
    last: ModelCheckpoint
    if seconds_apart:
        last = _Seldom(folder, seconds_apart)
    else:
        last = ModelCheckpoint(folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
    if monitor is None:
        return [last]
    best = ModelCheckpoint(
        folder,
        filename="best",
        monitor=monitor.name,
        mode=monitor.mode,
        save_on_train_epoch_end=False,
        enable_version_counter=False,
    )
    return [best, last]


def monitor_of(task: L.LightningModule, monitor: str | None) -> Monitor | None:
    """What marks the best network.

    Args:
        task: What is trained. Its ``MONITORS`` are the values that it logs in validation, and whether the smallest or
            the largest is the best; of a task without, the smallest of any value is.
        monitor: One of them, or ``auto``: the first, which is ``val/nmse`` of a reconstruction and ``val/relative_l2``
            of a PDE; ``None`` where nothing is validated.

    Raises:
        InputError: The task logs no such value.
    """
    known: dict[str, Literal["min", "max"]] = getattr(task, "MONITORS", {})
    if monitor is None:
        return None
    name = next(iter(known), "val/relative_l2") if monitor == "auto" else monitor
    if known and name not in known:
        raise InputError(f"monitor is {name}, but {type(task).__name__} validates {', '.join(known)}")
    return Monitor(name, known.get(name, "min"))


def loggers(out: Path) -> list[CSVLogger | TensorBoardLogger]:
    """CSV and TensorBoard logs in a run folder."""
    return [CSVLogger(out, name="csv"), TensorBoardLogger(out, name="tensorboard", version="")]


def fit(
    task: L.LightningModule,
    data: L.LightningDataModule,
    out: Path,
    resume: bool = False,
    overwrite: bool = False,
    monitor: str | None = "auto",
    trainer_options: dict[str, Any] | None = None,
    seconds_apart: float = 0.0,
) -> L.Trainer:
    """Trains in a run folder; what ``sciml-monarch train`` does after it has read its configuration.

    Args:
        task: What is trained.
        data: What on.
        out: Run folder.
        resume: Go on from the last checkpoint in it.
        overwrite: Delete an earlier run in it.
        monitor: Name of the logged value that marks the best network, ``auto``: the task's own (:func:`monitor_of`);
            ``None`` where nothing is validated.
        trainer_options: Arguments of Lightning's ``Trainer``.
        seconds_apart: See :func:`checkpointing`.

    Returns:
        The trainer after the fit.

    Raises:
        InputError: See :func:`check_folder` and :func:`monitor_of`.
    """
    check_folder(out, resume, overwrite)
    options = {"num_sanity_val_steps": 0, "log_every_n_steps": 1, **(trainer_options or {})}
    saving = checkpointing(out, monitor_of(task, monitor), seconds_apart)
    trainer = L.Trainer(
        **options | {"callbacks": [*options.get("callbacks", []), *saving]},
        default_root_dir=out,
        logger=loggers(out),
    )
    run(trainer, task, data, out, resume)
    return trainer


def run(trainer: L.Trainer, task: L.LightningModule, data: L.LightningDataModule, out: Path, resume: bool) -> None:
    """Fits, from the last checkpoint where ``resume``; an interruption ends as ``KeyboardInterrupt``.

    Raises:
        InputError: The checkpoint to resume from is of another network or task.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the last finished epoch can be resumed from.
    """
    aside = nullcontext() if resume or not trainer.is_global_zero else _replacing_earlier_run(out)
    try:
        with aside, warnings.catch_warnings():
            if resume:  # the folder is to have checkpoints in it
                warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
            warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")  # Lightning's, not to be mended here
            # checkpoints hold tensors and plain values only: nothing is unpickled
            trainer.fit(task, datamodule=data, ckpt_path=out / LAST if resume else None, weights_only=True)
    except SystemExit:  # Lightning's answer to an interruption; the caller decides what that means
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    except RuntimeError as error:
        if resume and "state_dict" in str(error):
            message = " ".join(str(error).split())
            raise InputError(f"{out / LAST}: a checkpoint of another network: {message}") from None
        raise
    except InputError as error:
        # a worker hands on its traceback as the message
        in_worker = re.search(r"in DataLoader worker .*errors\.InputError: (.*)", str(error), re.DOTALL)
        if in_worker is None:
            raise
        raise InputError(in_worker[1].strip()) from None
    except MisconfigurationException as error:
        raise InputError(" ".join(str(error).split())) from None
