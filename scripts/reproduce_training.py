"""What the trainings behind a table share: a YAML as task, data and callbacks, their clock, and the fit itself."""

import statistics
import time
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml

import sciml_monarch.sparse_training  # noqa: F401  (its callbacks become names that a YAML can use)
from sciml_monarch.errors import InputError
from sciml_monarch.pde import n_parameters
from sciml_monarch.pde.data import TrajectoryData
from sciml_monarch.pde.pair_data import PairData
from sciml_monarch.pde.task import PDETask
from sciml_monarch.training import LAST, fit

SECONDS_APART = 30.0  # of checkpoints: epochs may take a tenth of a second, and checkpoints hold 0.9 GB


class Recorder(L.Callback):
    """Seconds of each epoch's training batches, waited for, and what was validated; kept in checkpoints."""

    def __init__(self) -> None:
        self.epochs: list[list[float]] = []  # seconds, parameters at the end, whether its time is that of any epoch
        self.history: list[list[float]] = []  # epoch, training seconds so far, validation error
        self.seconds = 0.0  # of earlier fits, validation and checkpoints included
        self._fit_start = self._start = 0.0
        self._warm = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock of the whole fit."""
        self._fit_start, self._warm = time.perf_counter(), False

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock when the device is idle."""
        self._wait(pl_module)
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stops the clock after the last batch of an epoch, before anything is validated."""
        if batch_idx + 1 < trainer.num_training_batches:
            return
        self._wait(pl_module)
        count = n_parameters(pl_module)
        # the first epoch of a network captures graphs or compiles
        same = self._warm and bool(self.epochs) and self.epochs[-1][1] == count
        self.epochs.append([time.perf_counter() - self._start, count, float(same)])
        self._warm = True

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes the error."""
        error = trainer.callback_metrics.get("val/relative_l2")
        if error is not None and trainer.state.fn == "fit":
            self.history.append([trainer.current_epoch + 1, sum(e[0] for e in self.epochs), error.item()])

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training goes on from."""
        passed = time.perf_counter() - self._fit_start if self._fit_start else 0.0
        return {"epochs": self.epochs, "history": self.history, "seconds": self.seconds + passed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it back."""
        self.epochs, self.history = state_dict["epochs"], state_dict["history"]
        self.seconds = state_dict["seconds"]

    def phases(self, n_batches: int) -> list[dict[str, Any]]:
        """Steps with the same number of parameters in a row: before and after a switch."""
        found: list[dict[str, Any]] = []
        for seconds, count, usual in self.epochs:
            if not found or found[-1]["n_parameters"] != count:
                found.append({"n_parameters": int(count), "epochs": 0, "_times": []})
            found[-1]["epochs"] += 1
            found[-1]["_times"] += [seconds / n_batches] if usual else []
        for phase in found:
            times = phase.pop("_times")
            phase["step_seconds"] = statistics.median(times) if times else None
        return found

    def _wait(self, module: L.LightningModule) -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)


class Deadline(L.Callback):
    """Stops after the last epoch that ends before a time, so that its checkpoint can be resumed from."""

    def __init__(self, at: float) -> None:
        """``at``: what ``time.time()`` will be then."""
        self.at = at
        self._start = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes when."""
        self._start = time.time()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stops where another epoch as long as this one would be too long, its checkpoint written."""
        now = time.time()
        if now + 1.2 * (now - self._start) > self.at:
            trainer.should_stop = True


def read_config(file: Path, settings: list[str] | None = None) -> dict[str, Any]:
    """Reads a YAML with base.yaml under it and settings on top of it.

    Args:
        file: The YAML.
        settings: ``data.init_args.n_train=20`` and the like; values are YAML.

    Raises:
        InputError: A setting has no value.
    """
    config: dict[str, Any] = {}
    for part in (file.parent.parent / "base.yaml", file):
        _merge(config, yaml.safe_load(part.read_text()))
    for setting in settings or ():
        name, found, value = setting.partition("=")
        if not found:
            raise InputError(f"--set {setting}: give a name and a value, such as trainer.precision=32")
        keys = name.split(".")
        inner: Any = yaml.safe_load(value)
        for key in reversed(keys):
            inner = {key: inner}
        _merge(config, inner)
    return config


def _merge(config: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            _merge(config[key], value)
        else:
            config[key] = value


def build(config: dict[str, Any]) -> tuple[PDETask, Any, list[L.Callback]]:
    """Task, data and callbacks of a configuration, checked against their signatures.

    It needs jsonargparse, which comes with the package but not with torch and Lightning alone.

    Raises:
        InputError: A name or value is wrong, or jsonargparse is not installed.
    """
    try:
        from jsonargparse import ArgumentError, ArgumentParser
    except ImportError as error:
        raise InputError(f"YAMLs need jsonargparse: pip install 'jsonargparse[signatures]' ({error})") from None

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(PDETask, "model")
    parser.add_subclass_arguments((TrajectoryData, PairData), "data")
    parser.add_argument("--callbacks", type=list[L.Callback], default=[])
    values = {key: config[key] for key in ("model", "data")} | {"callbacks": config["trainer"].get("callbacks") or []}
    try:
        parsed = parser.parse_object(deepcopy(values))  # it writes whole class paths into what it is given
    except ArgumentError as error:
        raise InputError(" ".join(str(error).split())) from None
    made = parser.instantiate(parsed)
    return made.model, made.data, made.callbacks


def fit_row(
    config: dict[str, Any],
    task: PDETask,
    data: TrajectoryData | PairData,
    callbacks: list[L.Callback],
    folder: Path,
    epochs: int,
    device: int | None,
    more: dict[str, Any] | None = None,
) -> L.Trainer:
    """Trains one row, from its last checkpoint where there is one.

    Args:
        config: What :func:`read_config` returned; its trainer's options hold but for epochs, device and callbacks.
        task: What is trained.
        data: What on.
        callbacks: Those of the configuration and of the program.
        folder: Run folder.
        epochs: Epochs of the whole training.
        device: Number of the GPU; ``None``: the CPU.
        more: Further options of the trainer.

    Returns:
        The trainer after the fit, at the last epoch or where a callback stopped it. Of networks the last alone is
        kept, which is what is tested: nothing is chosen by what is validated.
    """
    options = {k: v for k, v in config["trainer"].items() if k not in ("callbacks", "accelerator", "devices")}
    options |= {
        "accelerator": "cpu" if device is None else "gpu",
        "devices": 1 if device is None else [device],
        "max_epochs": epochs,
        "callbacks": callbacks,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    resume = (folder / LAST).is_file()
    with warnings.catch_warnings():
        # of a run that was carried here: what Lightning then leaves out is about the best network, which is not kept
        warnings.filterwarnings("ignore", "The dirpath has changed from")
        return fit(task, data, folder, resume, not resume, None, options | (more or {}), SECONDS_APART)


def check_settings(what: str, stored: list[str], given: list[str]) -> None:
    """Refuses what was trained with another ``--set``.

    Raises:
        InputError: So it was.
    """
    if stored != given:
        had, now = (" ".join(settings) or "nothing" for settings in (stored, given))
        raise InputError(f"{what} was trained with --set {had}, not {now}; give the same, or another --out")
