"""Are learned transforms better where fields are not periodic? FNO and MonarchFNO with walls.

    python scripts/reproduce_walls.py --set darcy --data data/darcy --out results/walls
    python scripts/reproduce_walls.py --set burgers_walls --data data/burgers_walls --out results/walls

Each YAML in the configs' folder of the set is a row: either network, with and without zeros appended to the hidden
fields. Of Darcy flow the data are neuraloperator's ``darcy_train_16.pt``, ``darcy_test_16.pt`` and
``darcy_test_32.pt``, or with ``--resolution 32`` what ``simulate_darcy.py`` makes; of Burgers' equation what
``simulate_burgers.py`` makes. A learning rate is chosen for each row with one seed by the last 100 training pairs,
which are then trained on too, with each seed. Networks of the last epoch are tested, at the resolution of the training
and at twice that, everywhere and near the walls. To the finer grid there are three ways (``WAYS``), and each is tested
where it exists. ``rows.jsonl`` gets a line for each training; what is there is left out: an interrupted run goes on.
"""

import copy
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple, get_args

import lightning as L
import torch
import torch.multiprocessing as mp
from json_lines import read_rows
from reproduce_training import build, fit_row, read_config
from torch import Tensor

from sciml_monarch.errors import DivergedError, InputError
from sciml_monarch.pde import MonarchFNO, n_parameters
from sciml_monarch.pde.metrics import relative_l2
from sciml_monarch.pde.readers import open_pairs
from sciml_monarch.pde.resample import cubic_matrix
from sciml_monarch.pde.surrogate import Surrogate
from sciml_monarch.provenance import provenance
from sciml_monarch.training import quiet

SetName = Literal["darcy", "burgers_walls"]
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RESOLUTIONS: dict[SetName, int] = {"darcy": 16, "burgers_walls": 128}  # of the training
N_VALIDATION = 100
WALL = 1 / 8  # of the domain, from each wall
WAYS = {  # to a grid of twice the points, and how the name of its errors ends
    "cubic": ", cubic",  # the network on that grid, its hidden fields interpolated by cubics
    "fourier": ", fourier",  # the same within the band, as an FFT does it
    "output": ", output",  # the network on its own grid, on every second point; its output interpolated by cubics
}


class Job(NamedTuple):
    """A training.

    Attributes:
        set: Name of the set, its folder of YAMLs and its files.
        row: Its YAML, without the ending.
        resolution: Points per axis.
        learning_rate: At the start.
        seed: Of the weights and the order of the batches.
        tested: Whether it is tested, or validated.
    """

    set: SetName
    row: str
    resolution: int
    learning_rate: float
    seed: int
    tested: bool


def near_walls(grid: Sequence[int]) -> Tensor:
    """Which points of a grid lie near a wall."""
    near = torch.ones(tuple(grid), dtype=torch.bool)
    edges = [round(WALL * n) for n in grid]
    near[tuple(slice(edge, n - edge) for edge, n in zip(edges, grid, strict=True))] = False
    return near


def ways(surrogate: Surrogate) -> dict[str, Callable[[Tensor], Tensor]]:
    """Maps inputs ``(b, 1, c, *grid)`` on a grid of twice the points to outputs on it, in each of the ways there are.

    An FNO, whose FFT cuts the band of any grid, has no interpolation to choose.
    """

    def through_own_grid(x: Tensor) -> Tensor:
        y = x
        for axis in range(3, x.ndim):
            y = y.index_select(axis, torch.arange(0, x.shape[axis], 2, device=x.device))
        y = surrogate(y)
        for axis in range(3, x.ndim):
            finer = cubic_matrix(x.shape[axis], y.shape[axis]).to(y)
            y = torch.tensordot(y, finer, ([axis], [1])).movedim(-1, axis)
        return y

    found: dict[str, Callable[[Tensor], Tensor]] = {"fourier": surrogate, "output": through_own_grid}
    if isinstance(net := surrogate.net, MonarchFNO):
        for interpolation in ("fourier", "cubic"):
            other = copy.deepcopy(surrogate)
            other.net = MonarchFNO(**net.config | {"interpolation": interpolation}).to(next(net.parameters()))
            other.net.load_state_dict(net.state_dict())
            found[interpolation] = other
    return found


@torch.no_grad()
def errors(predict: Callable[[Tensor], Tensor], file: Path, device: torch.device) -> dict[str, float]:
    """Mean relative L2 error over the pairs of a file: everywhere, near the walls and elsewhere."""
    source = open_pairs(file)
    inputs, target = (torch.stack(fields) for fields in zip(*map(source.read, range(source.n_pairs)), strict=True))
    found = predict(inputs[:, None].to(device)).cpu()[:, 0, 0]
    target, near = target[:, 0], near_walls(target.shape[2:])
    return {
        "everywhere": relative_l2(found, target).mean().item(),
        "near walls": relative_l2(found[:, near], target[:, near]).mean().item(),
        "elsewhere": relative_l2(found[:, ~near], target[:, ~near]).mean().item(),
    }


def test_errors(surrogate: Surrogate, same: Path, finer: Path) -> dict[str, dict[str, float]]:
    """Errors on the grid of the training, and on the finer one in each of the ways there are."""
    device = next(surrogate.parameters()).device
    found = {way: errors(predict, finer, device) for way, predict in ways(surrogate).items()}
    return {same.stem: errors(surrogate, same, device)} | {f"{finer.stem}{WAYS[way]}": found[way] for way in found}


def train(job: Job, data: Path, epochs: int | None, device: int | None) -> dict[str, Any]:
    """Trains once; returns a row.

    Args:
        job: What.
        data: Folder of the files.
        epochs: Instead of the YAML's.
        device: Number of the GPU; ``None``: the CPU.
    """
    n = job.resolution
    quiet()
    torch.set_num_threads(1)
    config = read_config(yaml_of(job.set, job.row))
    config["model"]["init_args"]["optimization"]["learning_rate"] = job.learning_rate
    arguments, own = config["model"]["init_args"]["net"]["init_args"], config["data"]["init_args"]
    if "grid" in arguments:
        arguments["grid"] = [n] * len(arguments["grid"])
    own["train_path"] = str(data / f"{job.set}_train_{n}.pt")
    own["test_paths"] = [str(data / f"{job.set}_test_{m}.pt") for m in (n, 2 * n)]
    if not job.tested:
        own |= {"n_train": own["n_train"] - N_VALIDATION, "n_val": N_VALIDATION}
    epochs = n_epochs(job.set, job.row, epochs)
    L.seed_everything(job.seed, verbose=False)
    task, pairs, callbacks = build(config)
    start = time.monotonic()
    with TemporaryDirectory() as folder:
        more = {"check_val_every_n_epoch": epochs}
        try:
            trainer = fit_row(config, task, pairs, callbacks, Path(folder) / "run", epochs, device, more)
            validation = trainer.callback_metrics["val/relative_l2"].item() if not job.tested else None
        except DivergedError:
            if job.tested:
                raise
            validation = math.inf  # a rate that is not chosen
    row = {key: value for key, value in job._asdict().items() if key != "tested"} | {"epochs": epochs}
    row |= {"n_parameters": n_parameters(task), "n_train": own["n_train"], "seconds": time.monotonic() - start}
    if job.tested:
        row["errors"] = test_errors(task.surrogate.eval(), *map(Path, own["test_paths"]))
    else:
        row["validation"] = validation
    return row | provenance(torch.device("cpu" if device is None else f"cuda:{device}"))


def yaml_of(name: SetName, row: str) -> Path:
    """The file of a row."""
    return CONFIGS / name / f"{row}.yaml"


def n_epochs(name: SetName, row: str, epochs: int | None) -> int:
    """Epochs of a row of a set: the YAML's, or those that are given instead."""
    return epochs or int(read_config(yaml_of(name, row))["trainer"]["max_epochs"])


def chosen(rows: Sequence[dict[str, Any]], name: SetName, row: str, resolution: int, epochs: int) -> float:
    """The learning rate of a row that is best on validation pairs; trainings of other lengths do not count.

    Raises:
        InputError: None was finite.
    """
    own, keys = (name, row, resolution, epochs), ("set", "row", "resolution", "epochs")
    tried = [found for found in rows if tuple(found[key] for key in keys) == own and "validation" in found]
    errors_of_rates = {found["learning_rate"]: found["validation"] for found in tried}
    finite = {rate: error for rate, error in errors_of_rates.items() if math.isfinite(error)}
    if not finite:
        raise InputError(f"every training of {name}, {row} diverged; give smaller --rates")
    return float(min(finite, key=lambda rate: finite[rate]))


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
    set: SetName = "darcy",  # noqa: A002
    out: Path = Path("results/walls"),
    rows: list[str] | None = None,
    resolution: int | None = None,
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2),
    seeds: tuple[int, ...] = (0, 1, 2),
    epochs: int | None = None,
    workers: int = 1,
) -> None:
    """Trains all rows; see the head of the file.

    Args:
        data: Folder of the files.
        set: "darcy" or "burgers_walls".
        out: Folder of ``rows.jsonl``.
        rows: Names of YAMLs in the set's folder of configs; all by default.
        resolution: Points per axis of the training; by default 16 of Darcy flow, 128 of Burgers' equation.
        rates: Learning rates to choose from.
        seeds: Seeds of the trainings that are tested.
        epochs: Instead of the YAMLs'.
        workers: Trainings at a time, each with one thread or on a GPU in turn.

    Raises:
        InputError: There is no such set, row or file of data.
    """
    if set not in get_args(SetName):
        raise InputError(f"there is no set {set}; sets are {', '.join(get_args(SetName))}")
    known = sorted(file.stem for file in (CONFIGS / set).glob("*.yaml"))
    names = rows or known
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f"there are no rows {unknown}; rows are {', '.join(known)}")
    n = resolution or RESOLUTIONS[set]
    files = [data / f"{set}_{part}.pt" for part in (f"train_{n}", f"test_{n}", f"test_{2 * n}")]
    if missing := [file.name for file in files if not file.is_file()]:
        raise InputError(f"{data}: lacks {', '.join(missing)}; the head of this program says where they come from")
    out.mkdir(parents=True, exist_ok=True)

    def done() -> list[dict[str, Any]]:
        return read_rows(out / "rows.jsonl") if (out / "rows.jsonl").exists() else []

    def left(jobs: list[Job]) -> list[Job]:
        keys = Job._fields[:-1]
        have = {(*(row[key] for key in keys), "errors" in row, row["epochs"]) for row in done()}
        return [job for job in jobs if (*job, n_epochs(set, job.row, epochs)) not in have]

    _run(
        left([Job(set, name, n, rate, seeds[0], False) for name in names for rate in rates]), out, data, epochs, workers
    )
    best = {name: chosen(done(), set, name, n, n_epochs(set, name, epochs)) for name in names}
    _run(
        left([Job(set, name, n, best[name], seed, True) for seed in seeds for name in names]),
        out,
        data,
        epochs,
        workers,
    )


if __name__ == "__main__":
    from sciml_monarch.cli import call, guarded

    raise SystemExit(guarded("reproduce_walls", lambda: call(reproduce_walls, sys.argv[1:])))
