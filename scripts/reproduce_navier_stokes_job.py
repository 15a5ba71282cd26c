"""One training, or one simulation, of ``reproduce_navier_stokes.py``, and its row."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from reproduce_training import Deadline, Recorder, build, fit_row, read_config

from sciml_monarch.errors import InputError
from sciml_monarch.files import replacing
from sciml_monarch.pde import n_parameters
from sciml_monarch.provenance import provenance
from sciml_monarch.training import LAST, quiet

CONFIGS = Path(__file__).resolve().parents[1] / "configs/navier_stokes"
ROW = "row.json"
VALIDATIONS = 50  # of a training: as points on a curve; each is a roll-out without a CUDA graph


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        row: Its YAML in configs/navier_stokes, without the ending.
        epochs: Epochs that it is trained for.
        seed: Of the weights and the order of the batches.
        validation: Trajectories split off the end of the training set, for choices: a training with such is validated
            on them and not tested. 0: all are trained on, and the network is tested.
        first: The training whose network it begins from.
    """

    row: str
    epochs: int
    seed: int
    validation: int = 0
    first: "Job | None" = None

    @property
    def folder(self) -> str:
        """Its run folder in the output folder."""
        held_out = f"_validation_{self.validation}" * bool(self.validation)
        before = f"{self.first.epochs}_and_" if self.first else ""
        return f"{self.row}_{before}{self.epochs}_epochs_seed_{self.seed}{held_out}"


@dataclass(frozen=True)
class Options:
    """What all trainings of a call share.

    Attributes:
        data: Folder of the data sets.
        out: Folder of all runs.
        settings: ``--set``; see :func:`reproduce_training.read_config`.
        per_gpu: Trainings side by side on a GPU.
        threads: Of each process.
    """

    data: Path
    out: Path
    settings: list[str]
    per_gpu: int
    threads: int


def config_of(job: Job, options: Options) -> dict[str, Any]:
    """The YAML of a training with its data set in the folder of the data, its start, and validation split off.

    Raises:
        InputError: A setting is wrong, or fewer trajectories are trained on than are split off.
    """
    config = read_config(CONFIGS / f"{job.row}.yaml", options.settings)
    own = config["data"]["init_args"]
    own["path"] = str(options.data / Path(own["path"]).name)
    if job.first is not None:  # a training that is resumed has it in its own checkpoint
        resumed = (options.out / job.folder / LAST).is_file()
        start = None if resumed else str(options.out / job.first.folder / LAST)
        config["model"]["init_args"]["init_from"] = start
    if job.validation:
        if job.validation >= own["n_train"]:
            raise InputError(f"--validation {job.validation} of {own['n_train']} training trajectories leaves none")
        own["n_train"] -= job.validation
        own["n_val"] = job.validation
    return config


def first_row(name: str) -> str | None:
    """The row whose trained network a row begins from, if it does: its YAML's ``init_from`` is in that row's folder."""
    start = read_config(CONFIGS / f"{name}.yaml")["model"]["init_args"].get("init_from")
    return Path(start).parents[1].name if start else None


class LossCurve(L.Callback):
    """The mean loss of each epoch, kept in checkpoints: what tells over-fitting from a training that is too short."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes it."""
        self.losses.append(float(f"{trainer.callback_metrics['train/loss'].item():.5g}"))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training goes on from."""
        return {"losses": self.losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it back."""
        self.losses = state_dict["losses"]


def train_job(job: Job, options: Options, device: int | None, deadline: float = float("inf")) -> None:
    """Trains one row; if it gets to its last epoch in time, tests it, or validates it where some were split off.

    ``row.json`` in the run folder says how far it is.

    Args:
        job: What to train.
        options: How, and where to.
        device: Number of the GPU; ``None``: the CPU.
        deadline: Value of ``time.time()`` before which it is to end.

    Raises:
        InputError: The configuration does not fit the data, or the loss is not finite.
    """
    quiet()
    torch.set_num_threads(options.threads)
    config = config_of(job, options)
    folder = options.out / job.folder
    L.seed_everything(job.seed, verbose=False)
    task, data, callbacks = build(config)
    row = {
        "row": job.row,
        "seed": job.seed,
        "epochs": job.epochs,
        "epochs_of_first": job.first.epochs if job.first else 0,
        "epochs_done": epochs_in(folder / LAST),
        "finished": False,
        "validation": job.validation,
        "network": type(task.surrogate.net).__name__,
        "n_parameters": n_parameters(task),
        **{k: getattr(data, k) for k in ("n_train", "n_val", "n_test", "n_history", "n_steps", "batch_size")},
        "test_steps": data.description.n_test_steps,
        "settings": options.settings,
        "known_frames": data.n_history if data.loader.known_frames is None else data.loader.known_frames,
        "precision": str(config["trainer"].get("precision", "32")),
        "matmul_precision": task.matmul_precision or torch.get_float32_matmul_precision(),
        "trainings_on_the_device": options.per_gpu,
        "lightning": L.__version__,
    } | provenance(torch.device("cpu" if device is None else f"cuda:{device}"))
    _write(folder, row)  # now too: of a training that is killed it is known what it was
    recorder, curve = Recorder(), LossCurve()
    trainer = fit_row(
        config,
        task,
        data,
        [*callbacks, recorder, curve, Deadline(deadline)],
        folder,
        job.epochs,
        device,
        {"check_val_every_n_epoch": max(1, job.epochs // VALIDATIONS)} if job.validation else {},
    )
    row |= {
        "epochs_done": len(recorder.epochs),
        "wall_seconds": recorder.state_dict()["seconds"],
        "train_seconds": sum(epoch[0] for epoch in recorder.epochs),
        "phases": recorder.phases(int(trainer.num_training_batches)),
        "peak_memory_bytes": None if device is None else torch.cuda.max_memory_allocated(device),
        "validation_history": [[int(epoch), error] for epoch, _, error in recorder.history],
        "train_loss": curve.losses,
    }
    if len(recorder.epochs) >= job.epochs:
        measure = trainer.validate if job.validation else trainer.test
        name = "val/relative_l2" if job.validation else "test/relative_l2"
        found = measure(task, datamodule=data, verbose=False)[0][name]
        key = "validation_relative_l2" if job.validation else "relative_l2"
        row |= {key: found, "finished": True}
        if task.symmetry is not None:
            task.surrogate.symmetrize(task.symmetry)
            row[f"symmetrized_{key}"] = measure(task, datamodule=data, verbose=False)[0][name]
    _write(folder, row)


def _write(folder: Path, row: dict[str, Any]) -> None:
    with replacing(folder / ROW) as temporary:
        temporary.write_text(json.dumps(row))


def epochs_in(checkpoint: Path) -> int:
    """Finished epochs of a checkpoint to resume from; 0 where there is none, or none that can be read."""
    try:
        return int(torch.load(checkpoint, map_location="meta", weights_only=True)["epoch"]) + 1
    except Exception:  # torch.load raises whatever its content makes it; to go on from it fails with a reason
        return 0


def rows_in(out: Path) -> list[dict[str, Any]]:
    """The rows of all trainings in an output folder; of those that were killed with the epochs of the checkpoint."""
    rows = []
    for file in sorted(out.glob(f"*/{ROW}")):
        row = json.loads(file.read_text())
        if not row["finished"] and (file.parent / LAST).is_file():
            row["epochs_done"] = epochs_in(file.parent / LAST)
        rows.append(row)
    return rows


@dataclass(frozen=True)
class Simulation:
    """One data set.

    Attributes:
        folder: Its name.
        options: Those of :func:`sciml_monarch.pde.simulate.simulate`, without folder and device.
    """

    folder: str
    options: tuple[tuple[str, Any], ...]


def simulate_job(job: Simulation, data: Path, device: int | None) -> None:
    """Makes a data set, or what it lacks.

    Args:
        job: Which.
        data: Folder of the data sets.
        device: Number of the GPU; ``None``: the CPU.

    Raises:
        InputError: An option is wrong, or the folder holds a set made with others.
    """
    from sciml_monarch.pde.simulate import simulate

    simulate(out=data / job.folder, **dict(job.options), device="cpu" if device is None else f"cuda:{device}")


def n_threads(places: Sequence[int | None]) -> int:
    """Threads for each of the processes that run side by side.

    What is left to the processor while a GPU trains are operations too small to share.

    Args:
        places: Numbers of GPUs, or ``None`` for the CPU.
    """
    return 1 if any(place is not None for place in places) else max(1, (os.cpu_count() or 1) // max(1, len(places)))
