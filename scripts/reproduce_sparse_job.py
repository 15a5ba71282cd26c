"""One training of ``reproduce_sparse_training.py``: a YAML as task, data and callbacks, its clock, and its row."""

import json
import statistics
import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml

import sciml_monarch.sparse_training  # noqa: F401  (its callbacks become names that a YAML can use)
from sciml_monarch import load
from sciml_monarch.errors import InputError
from sciml_monarch.files import replacing
from sciml_monarch.pde import Surrogate, n_parameters
from sciml_monarch.pde.data import TrajectoryData
from sciml_monarch.pde.task import PDETask
from sciml_monarch.provenance import provenance
from sciml_monarch.training import LAST, fit, quiet

CONFIGS = Path(__file__).resolve().parents[1] / "configs/sparse_training"
ROW = "row.json"
EPOCHS_A_CHECKPOINT = 5  # weights and moments of 76 million parameters are 0.9 GB


def folder_name(row: str, epochs: int, seed: int) -> str:
    """Run folder of a training."""
    return f"{row}_{epochs}_epochs_seed_{seed}"


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        row: Its YAML in configs/sparse_training, without the ending.
        epochs: Epochs that it is trained for.
        budget: "epochs": as many as every other row; "time": as many as fit into the time of the dense row.
        start: Run folder of the network whose weights it starts from; ``None``: fresh weights.
        seed: Of the weights and the order of the batches.
    """

    row: str
    epochs: int
    budget: str
    start: str | None
    seed: int

    @property
    def folder(self) -> str:
        """Its run folder in the output folder."""
        return folder_name(self.row, self.epochs, self.seed)


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


def build(config: dict[str, Any]) -> tuple[PDETask, TrajectoryData, list[L.Callback]]:
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
    parser.add_subclass_arguments(TrajectoryData, "data")
    parser.add_argument("--callbacks", type=list[L.Callback], default=[])
    values = {key: config[key] for key in ("model", "data")} | {"callbacks": config["trainer"].get("callbacks") or []}
    try:
        parsed = parser.parse_object(deepcopy(values))  # it writes whole class paths into what it is given
    except ArgumentError as error:
        raise InputError(" ".join(str(error).split())) from None
    made = parser.instantiate(parsed)
    return made.model, made.data, made.callbacks


def train_job(job: Job, out: Path, settings: list[str], device: int | None, deadline: float = float("inf")) -> None:
    """Trains one row and tests it; writes ``row.json`` into its run folder if it gets to its last epoch in time.

    Args:
        job: What to train.
        out: Folder of all runs.
        settings: See :func:`read_config`.
        device: Number of the GPU; ``None``: the CPU.
        deadline: Value of ``time.time()`` before which it is to end.
    """
    quiet()
    config = read_config(CONFIGS / f"{job.row}.yaml", settings)
    folder = out / job.folder
    resume = (folder / LAST).is_file()
    L.seed_everything(job.seed, verbose=False)
    task, data, callbacks = build(config)
    n_start = n_parameters(task)
    if job.start is not None and not resume:
        trained = load(out / job.start / LAST)
        assert isinstance(trained, Surrogate)
        task.surrogate.net.load_state_dict(trained.net.state_dict())
    recorder = Recorder()
    trainer_config = {k: v for k, v in config["trainer"].items() if k not in ("callbacks", "accelerator", "devices")}
    options = trainer_config | {
        "accelerator": "cpu" if device is None else "gpu",
        "devices": 1 if device is None else [device],
        "max_epochs": job.epochs,
        "callbacks": [*callbacks, recorder, Deadline(deadline)],
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    # what is tested is the last network: the best one is not kept
    trainer = fit(task, data, folder, resume, not resume, None, options, EPOCHS_A_CHECKPOINT)
    if len(recorder.epochs) < job.epochs:
        return
    seconds = recorder.state_dict()["seconds"]
    tested = trainer.test(task, datamodule=data, verbose=False)[0]
    phases = recorder.phases(int(trainer.num_training_batches))
    row = {
        "row": job.row,
        "budget": job.budget,
        "epochs": job.epochs,
        "start": job.start,
        "seed": job.seed,
        "relative_l2": tested["test/relative_l2"],
        "validation_relative_l2": recorder.history[-1][2] if recorder.history else None,
        "train_seconds": sum(epoch[0] for epoch in recorder.epochs),
        "wall_seconds": seconds,
        "phases": phases,
        "batches": int(trainer.num_training_batches),
        "batch_size": data.batch_size,
        "n_parameters": phases[-1]["n_parameters"] if phases else n_parameters(task),
        "n_parameters_of_the_configuration": n_start,
        "peak_memory_bytes": None if device is None else torch.cuda.max_memory_allocated(device),
        "history": recorder.history,
        "settings": settings,
        "precision": trainer_config.get("precision", "32"),
        "lightning": L.__version__,
    } | provenance(torch.device("cpu" if device is None else f"cuda:{device}"))
    with replacing(folder / ROW) as temporary:
        temporary.write_text(json.dumps(row))
