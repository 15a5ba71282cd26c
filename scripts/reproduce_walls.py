"""Are learned transforms better where fields are not periodic? Darcy flow with walls, FNO and MonarchFNO.

    python scripts/reproduce_walls.py --data DIR --out results/walls

Each YAML in configs/darcy is a row: either network, with and without zeros appended to the hidden fields. DIR holds
neuraloperator's ``darcy_train_16.pt``, ``darcy_test_16.pt`` and ``darcy_test_32.pt``, or with ``--resolution 32`` what
``simulate_darcy.py`` makes. A learning rate is chosen for each row with one seed by the last 100 training pairs, which
are then trained on too, with each seed. Networks of the last epoch are tested, at the resolution of the training and
at twice that, everywhere and near the walls. ``rows.jsonl`` gets a line for each training; what is there is left out:
an interrupted run goes on.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
import torch.multiprocessing as mp
from json_lines import read_rows
from reproduce_training import build, fit_row, read_config
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.pde import n_parameters
from sciml_monarch.pde.metrics import relative_l2
from sciml_monarch.pde.readers import open_pairs
from sciml_monarch.pde.surrogate import Surrogate
from sciml_monarch.provenance import provenance
from sciml_monarch.training import quiet

CONFIGS = Path(__file__).resolve().parents[1] / "configs/darcy"
N_VALIDATION = 100
WALL = 1 / 8  # of the domain, from each wall
Job = tuple[str, int, float, int, bool]  # row, resolution, learning rate, seed, whether it is tested


def near_walls(n: int) -> Tensor:
    """Which points of an ``n x n`` grid lie near a wall."""
    edge = round(WALL * n)
    near = torch.ones(n, n, dtype=torch.bool)
    near[edge:-edge, edge:-edge] = False
    return near


@torch.no_grad()
def errors(surrogate: Surrogate, file: Path) -> dict[str, float]:
    """Mean relative L2 error over the pairs of a file: everywhere, near the walls and elsewhere."""
    source = open_pairs(file)
    inputs, target = (torch.stack(fields) for fields in zip(*map(source.read, range(source.n_pairs)), strict=True))
    device = next(surrogate.parameters()).device
    found = surrogate.eval()(inputs[:, None].to(device)).cpu()[:, 0, 0]
    target, near = target[:, 0], near_walls(target.shape[-1])
    return {
        "everywhere": relative_l2(found, target).mean().item(),
        "near walls": relative_l2(found[:, near], target[:, near]).mean().item(),
        "elsewhere": relative_l2(found[:, ~near], target[:, ~near]).mean().item(),
    }


def train(job: Job, data: Path, epochs: int | None, device: int | None) -> dict[str, Any]:
    """Trains once; returns a row.

    Args:
        job: What.
        data: Folder of the files.
        epochs: Instead of the YAML's.
        device: Number of the GPU; ``None``: the CPU.
    """
    name, n, rate, seed, tested = job
    quiet()
    torch.set_num_threads(1)
    config = read_config(CONFIGS / f"{name}.yaml")
    config["model"]["init_args"]["optimization"]["learning_rate"] = rate
    arguments, own = config["model"]["init_args"]["net"]["init_args"], config["data"]["init_args"]
    if "grid" in arguments:
        arguments["grid"] = [n, n]
    own["train_path"] = str(data / f"darcy_train_{n}.pt")
    own["test_paths"] = [str(data / f"darcy_test_{m}.pt") for m in (n, 2 * n)]
    if not tested:
        own |= {"n_train": own["n_train"] - N_VALIDATION, "n_val": N_VALIDATION}
    epochs = n_epochs(name, epochs)
    L.seed_everything(seed, verbose=False)
    task, pairs, callbacks = build(config)
    start = time.monotonic()
    with TemporaryDirectory() as folder:
        more = {"check_val_every_n_epoch": epochs}
        trainer = fit_row(config, task, pairs, callbacks, Path(folder) / "run", epochs, device, more)
    row: dict[str, Any] = {"row": name, "resolution": n, "learning_rate": rate, "seed": seed, "epochs": epochs}
    row |= {"n_parameters": n_parameters(task), "n_train": own["n_train"], "seconds": time.monotonic() - start}
    if tested:
        row["errors"] = {Path(path).stem: errors(task.surrogate, Path(path)) for path in own["test_paths"]}
    else:
        row["validation"] = trainer.callback_metrics["val/relative_l2"].item()
    return row | provenance(torch.device("cpu" if device is None else f"cuda:{device}"))


def n_epochs(name: str, epochs: int | None) -> int:
    """Epochs of a row: the YAML's, or those that are given instead."""
    return epochs or int(read_config(CONFIGS / f"{name}.yaml")["trainer"]["max_epochs"])


def chosen(rows: Sequence[dict[str, Any]], name: str, resolution: int, epochs: int) -> float:
    """The learning rate of a row that is best on validation pairs; trainings of other lengths do not count."""
    own = (name, resolution, epochs)
    tried = [row for row in rows if (row["row"], row["resolution"], row["epochs"]) == own and "validation" in row]
    return float(min(tried, key=lambda row: row["validation"])["learning_rate"])


def _work(jobs: Any, found: Any, data: Path, epochs: int | None, device: int | None) -> None:
    while (job := jobs.get()) is not None:
        found.put(train(job, data, epochs, device))


def _run(todo: list[Job], out: Path, data: Path, epochs: int | None, workers: int) -> None:
    """Trains what is not there yet, several at a time.

    Raises:
        SystemExit: A process ended with an error.
    """
    if not todo:
        return
    n_gpus = torch.cuda.device_count()
    context = mp.get_context("spawn")
    jobs, found = context.Queue(), context.Queue()
    for job in [*todo, *[None] * workers]:
        jobs.put(job)
    processes = [
        context.Process(target=_work, args=(jobs, found, data, epochs, i % n_gpus if n_gpus else None), daemon=True)
        for i in range(workers)
    ]
    for process in processes:
        process.start()
    with (out / "rows.jsonl").open("a") as file:
        for number in range(len(todo)):
            while found.empty():
                if any(process.exitcode for process in processes):
                    raise SystemExit("a training failed; its error is above")
                time.sleep(0.2)
            row = found.get()
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(f"{number + 1} of {len(todo)}: {row['row']}, rate {row['learning_rate']:g}, {row['seconds']:.0f} s")


def reproduce_walls(
    data: Path,
    out: Path = Path("results/walls"),
    rows: list[str] | None = None,
    resolution: int = 16,
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2),
    seeds: tuple[int, ...] = (0, 1, 2),
    epochs: int | None = None,
    workers: int = 1,
) -> None:
    """Trains all rows; see the head of the file.

    Args:
        data: Folder of the files.
        out: Folder of ``rows.jsonl``.
        rows: Names of YAMLs in configs/darcy; all by default.
        resolution: Points per axis of the training.
        rates: Learning rates to choose from.
        seeds: Seeds of the trainings that are tested.
        epochs: Instead of the YAMLs'.
        workers: Trainings at a time, each with one thread or on a GPU in turn.

    Raises:
        InputError: There is no such row.
    """
    known = sorted(file.stem for file in CONFIGS.glob("*.yaml"))
    names = rows or known
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f"there are no rows {unknown}; rows are {', '.join(known)}")
    out.mkdir(parents=True, exist_ok=True)

    def done() -> list[dict[str, Any]]:
        return read_rows(out / "rows.jsonl") if (out / "rows.jsonl").exists() else []

    def left(jobs: list[Job]) -> list[Job]:
        keys = ("row", "resolution", "learning_rate", "seed")
        have = {(*(row[key] for key in keys), "errors" in row, row["epochs"]) for row in done()}
        return [job for job in jobs if (*job, n_epochs(job[0], epochs)) not in have]

    trials = [(name, resolution, rate, seeds[0], False) for name in names for rate in rates]
    _run(left(trials), out, data, epochs, workers)
    best = {name: chosen(done(), name, resolution, n_epochs(name, epochs)) for name in names}
    tested = [(name, resolution, best[name], seed, True) for seed in seeds for name in names]
    _run(left(tested), out, data, epochs, workers)


if __name__ == "__main__":
    from sciml_monarch.cli import call, guarded

    raise SystemExit(guarded("reproduce_walls", lambda: call(reproduce_walls, sys.argv[1:])))
