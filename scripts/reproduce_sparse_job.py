"""One training of ``reproduce_sparse_training.py`` and its row."""

import json
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
from reproduce_training import Deadline, Recorder, build, fit_row, read_config

from sciml_monarch import load
from sciml_monarch.files import replacing
from sciml_monarch.pde import Surrogate, n_parameters
from sciml_monarch.provenance import provenance
from sciml_monarch.training import LAST, quiet

CONFIGS = Path(__file__).resolve().parents[1] / "configs/sparse_training"
ROW = "row.json"


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
    callbacks = [*callbacks, recorder, Deadline(deadline)]
    trainer = fit_row(config, task, data, callbacks, folder, job.epochs, device)
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
        "precision": config["trainer"].get("precision", "32"),
        "lightning": L.__version__,
    } | provenance(torch.device("cpu" if device is None else f"cuda:{device}"))
    with replacing(folder / ROW) as temporary:
        temporary.write_text(json.dumps(row))
