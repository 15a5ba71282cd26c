r"""Data efficiency of MRI networks: the tables of results/mri_few_slices.

Four steps; all but the first need no package but torch and NumPy and run on any number of GPUs:

    python scripts/reproduce_mri.py prepare --heads pydeface mni152 colin27 --real DIR --out data/few_slices.npz
    python scripts/reproduce_mri.py tune data/few_slices.npz --table unrolled --out runs/rates.jsonl
    python scripts/reproduce_mri.py train data/few_slices.npz --table unrolled --rates runs/rates.jsonl \
        --out runs/rows.jsonl
    python scripts/reproduce_mri.py classical data/few_slices.npz --table unrolled --out runs/classical.jsonl

Heads are split: two to train and validate on, the third to test on, each in turn; run i tests on head i with seed i.
Everything is semi-synthetic but the slices of ``--real``, on which networks are tested that never saw real data. Coil
maps are ESPIRiT's from a separate noisy calibration scan of 24 x 24 points, the same for every method. ``tune``,
``train`` and ``classical`` append to their files and leave out what is there: an interrupted run goes on.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.multiprocessing as mp
from reproduce_mri_classical import classical, pictures
from reproduce_mri_protocol import (
    CELLS,
    RATES,
    REAL_TABLE,
    Cell,
    build,
    cells,
    done_in,
    make_mask,
    network_of,
    read_rows,
    recipe_of,
    scores_of,
    split,
    tests_of,
    tuned_table,
    tuning_cells,
)

from sciml_monarch.mri.few_slices import Recipe, Slices, fit_slices, reconstruct_slices
from sciml_monarch.provenance import provenance


def prepare(arguments: argparse.Namespace) -> None:
    """Writes slices of the heads and the real k-space into one file."""
    from sciml_monarch.mri.anatomy import choose_slices, onto_grid, open_anatomy

    content = {}
    for head in arguments.heads:
        anatomy = onto_grid(choose_slices(open_anatomy(head), arguments.n_slices), tuple(arguments.shape))
        content[f"head/{Path(head).name.split('.')[0]}"] = (anatomy.volume * 255).round().byte().numpy()
    for name in ("pulseq_brain_16ch", "iraki_brain_16ch"):
        if arguments.real:
            content[f"real/{name}"] = np.load(arguments.real / f"{name}.npy")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **content)
    print(f"{arguments.out}: {', '.join(f'{k} {v.shape}' for k, v in content.items())}")


class Job(NamedTuple):
    """A training to do.

    Attributes:
        cell: What.
        recipe: How.
        tested: Whether it is tested, or only its score on the validation slices is wanted.
    """

    cell: Cell
    recipe: Recipe
    tested: bool


def train_cell(
    job: Job, heads: list[Slices], real: dict[str, Slices], device: str, keep: Path | None = None
) -> dict[str, Any]:
    """Trains one network and tests it; returns a row."""
    cell, recipe, tested = job
    train, validation, test = (part.to(device) for part in split(heads, cell.head, cell.n_slices))
    shape = (test.target.shape[-2], test.target.shape[-1])
    mask = make_mask(cell.mask, cell.acceleration, shape, 0).to(device)
    torch.manual_seed(cell.head)
    net = network_of(cell).make(shape).to(device)
    fit = fit_slices(net, train, validation, mask, recipe, cell.head)
    row = cell._asdict() | {
        "n_parameters": sum(p.numel() for p in net.parameters() if p.requires_grad),
        "n_steps": recipe.n_steps,
        "learning_rate": recipe.learning_rate,
        "best_step": fit.best_step,
        "validation_psnr": fit.best_psnr,
        "train_seconds": fit.seconds,
        "history": [(step, round(value, 2)) for step, value in fit.history],
    }
    if not tested:
        return row
    if keep and cell.network in REAL_TABLE and cell.n_slices == 100 and cell.head == 2:
        keep.mkdir(parents=True, exist_ok=True)
        content = {"config": net.config, "state_dict": {k: v.cpu() for k, v in net.state_dict().items()}}
        torch.save(content, keep / f"{cell.network}_{cell.mask}_{cell.acceleration}x.pt")
    tests = [
        (name, slices.to(device), pattern.to(device))
        for name, slices, pattern in tests_of(test, real, cell)
        if cell.network != "MonarchVarNet, free pair" or name in ("same", "other")  # it serves one size
    ]
    return row | {"scores": scores_of(lambda s, m: reconstruct_slices(net, s, m).cpu(), tests)}


def _worker(jobs: Any, rows: Any, file: Path, device: str, keep: Path | None) -> None:
    torch.set_num_threads(1)
    if device != "cpu":
        torch.cuda.set_device(device)  # or all workers open the first GPU too, which serves no more than 48 processes
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # for every network alike
    heads, real = torch.load(file, weights_only=False, mmap=True)  # one copy for all workers
    while (job := jobs.get()) is not None:
        try:
            rows.put(train_cell(job, heads, real, device, keep))
        except Exception as error:
            rows.put(job.cell._asdict() | {"error": repr(error)})
            if not _usable(device):  # or it would fail at all that is left, and faster than the others train
                return


def _usable(device: str) -> bool:
    """Whether this process can still compute on a device; a GPU that served too many, or met an error, it cannot."""
    try:
        torch.ones(1, device=device).sum().item()
    except RuntimeError:
        return False
    return True


def chosen_rates(file: Path, n_steps: int | None = None) -> dict[tuple[str, str, int], float]:
    """The learning rate that is best on validation slices, by table, network and split.

    Args:
        file: What ``tune`` wrote.
        n_steps: Instead of the recipes'; trainings of other numbers of steps do not count.
    """
    best: dict[tuple[str, str, int], tuple[float, float]] = {}
    for row in read_rows(file):
        if row["n_steps"] != recipe_of(Cell(*(row[name] for name in Cell._fields)), n_steps=n_steps).n_steps:
            continue
        key = row["table"], row["network"], row["head"]
        best[key] = max(best.get(key, (-math.inf, 0.0)), (row["validation_psnr"], row["learning_rate"]))
    return {key: rate for key, (_, rate) in best.items()}


def seconds_a_step(file: Path) -> dict[tuple[str, str], float]:
    """The longest time that a step took while learning rates were tried, by table and network."""
    found: dict[tuple[str, str], float] = {}
    for row in read_rows(file):
        key = row["table"], row["network"]
        found[key] = max(found.get(key, 0.0), row["train_seconds"] / row["n_steps"])
    return found


def tune(arguments: argparse.Namespace) -> None:
    """Tries the learning rates; looks at validation slices only."""
    _run(
        [
            Job(cell, recipe_of(cell, rate, arguments.n_steps), False)
            for table in arguments.table
            for cell in tuning_cells(table)
            for rate in RATES
        ],
        arguments,
    )


def train(arguments: argparse.Namespace) -> None:
    """Trains and tests, with the learning rates that ``tune`` found where they are given."""
    if arguments.rates and not arguments.rates.is_file():
        raise SystemExit(f"{arguments.rates} is not there; tune first")
    rates = chosen_rates(arguments.rates, arguments.n_steps) if arguments.rates else {}
    seconds = seconds_a_step(arguments.rates) if arguments.rates else {}
    todo = []
    for table in arguments.table:
        for cell in cells(table):
            if arguments.only and cell.network not in arguments.only:
                continue
            rate = rates.get((tuned_table(table), cell.network, cell.head))
            if arguments.rates and rate is None:
                raise SystemExit(
                    f"{arguments.rates} has no learning rate for {cell.network} of {cell.table}; tune first"
                )
            todo.append(Job(cell, recipe_of(cell, rate, arguments.n_steps), True))

    def duration(job: Job) -> float:
        return job.recipe.n_steps * seconds.get((tuned_table(job.cell.table), job.cell.network), 1.0)

    # the longest first: no worker is left alone with one of them at the end
    _run(sorted(todo, key=duration, reverse=True), arguments)


def _run(todo: list[Job], arguments: argparse.Namespace) -> None:
    """Does what the output does not have yet, several trainings at once, until the time is up.

    Raises:
        SystemExit: With status 1 and their number: some failed.
    """
    start = time.monotonic()
    done = done_in(arguments.out)
    todo = [job for job in todo if (*job.cell, job.recipe.n_steps, job.recipe.learning_rate) not in done]
    if arguments.only:
        todo = [job for job in todo if job.cell.network in arguments.only]
    if not todo:
        print(f"nothing to do: {arguments.out} has all")
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    simulated = arguments.out.with_suffix(".scans")
    torch.save(build(arguments.data, device), simulated)
    print(f"{len(todo)} trainings; scans made in {time.monotonic() - start:.0f} s", flush=True)
    context = mp.get_context("spawn")
    jobs, rows = context.Queue(), context.Queue()
    for job in todo:
        jobs.put(job)
    n_devices = torch.cuda.device_count() if device == "cuda" else 1
    workers = []
    for i in range(arguments.workers):
        jobs.put(None)
        where = f"cuda:{i % n_devices}" if device == "cuda" else "cpu"
        workers.append(
            context.Process(target=_worker, args=(jobs, rows, simulated, where, arguments.keep), daemon=True)
        )
    for worker in workers:
        worker.start()
    source = provenance(torch.device(device))
    n_failed = 0
    try:
        with arguments.out.open("a") as file:
            for number in range(len(todo)):
                while (
                    rows.empty()
                    and time.monotonic() - start < arguments.time_limit
                    and any(w.is_alive() for w in workers)
                ):
                    time.sleep(0.2)
                if rows.empty():
                    print(f"{number} of {len(todo)} done in {time.monotonic() - start:.0f} s; run again for the others")
                    break
                row = rows.get()
                if "error" in row:
                    n_failed += 1
                    print(row, flush=True)
                    continue
                file.write(json.dumps(row | source) + "\n")
                file.flush()
    finally:
        for worker in workers:
            worker.terminate()
        simulated.unlink()
    if n_failed:
        raise SystemExit(f"{n_failed} of {len(todo)} trainings failed; their errors are above, run again for them")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(required=True)
    step = steps.add_parser("prepare", help="slices of heads and real k-space into one file")
    step.add_argument("--heads", nargs=3, required=True, help="names or files of three heads")
    step.add_argument("--real", type=Path, help="folder of real k-space")
    step.add_argument("--n_slices", type=int, default=64, help="of each head")
    step.add_argument("--shape", type=int, nargs=2, default=(256, 256))
    step.add_argument("--out", type=Path, required=True)
    step.set_defaults(run=prepare)
    for name, run in (("tune", tune), ("train", train), ("classical", classical)):
        step = steps.add_parser(name)
        step.add_argument("data", type=Path, help="what prepare wrote")
        step.add_argument("--table", nargs="+", choices=list(CELLS), required=True)
        step.add_argument("--out", type=Path, required=True, help="a row a line")
        step.add_argument("--only", nargs="+", help="networks or methods")
        step.set_defaults(run=run)
        if name != "classical":
            step.add_argument("--workers", type=int, default=1, help="trainings at once")
            step.add_argument("--time_limit", type=float, default=float("inf"), help="in seconds")
            step.add_argument("--n_steps", type=int, help="instead of the recipes', for a try")
            step.set_defaults(keep=None)
        if name == "train":
            step.add_argument("--rates", type=Path, help="what tune wrote")
            step.add_argument("--keep", type=Path, help="folder for networks of 100 slices, tested on the third head")
    step = steps.add_parser("pictures", help="real slices, reconstructed by all methods")
    step.add_argument("data", type=Path, help="what prepare wrote")
    step.add_argument("--nets", type=Path, required=True, help="what train kept")
    step.add_argument("--classical", type=Path, required=True, help="what classical wrote")
    step.add_argument("--mask", choices=("equispaced", "poisson"), default="equispaced")
    step.add_argument("--acceleration", type=int, default=4)
    step.add_argument("--out", type=Path, required=True, help="folder for PNG files")
    step.set_defaults(run=pictures)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
