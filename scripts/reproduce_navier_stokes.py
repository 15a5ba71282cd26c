"""The Navier–Stokes table of the Monarch paper on data simulated anew: U-Net, FNO and MonarchFNO at three viscosities.

    python scripts/reproduce_navier_stokes.py simulate
    python scripts/reproduce_navier_stokes.py train --out runs/navier_stokes --per_gpu 3 --time_limit 1500
    python scripts/reproduce_navier_stokes.py table runs/navier_stokes/rows.jsonl
    python scripts/reproduce_navier_stokes.py pack runs/navier_stokes --out packed
    python scripts/reproduce_navier_stokes.py unpack packed --out runs/navier_stokes
    python scripts/reproduce_navier_stokes.py share runs/navier_stokes --out results/checkpoints

Each YAML in configs/navier_stokes is a row. ``train`` trains those of the paper's table, or ``--rows``, each with its
seeds, ``--per_gpu`` side by side on every GPU, the longest first. It simulates the data sets that are missing, stops
before ``--time_limit`` with checkpoints, and goes on from them when it is called again. A row that begins from the
network of another waits for it; that one is trained too. A row that fails is named at the end and does not stop the
others. An output folder has one list of ``--set``.

The test, the last trajectories of a set, is used once: at the end, on the last weights. What is to be chosen is chosen
with ``--validation 100``: so many trajectories at the end of the training set are held out, the network is validated
on them, and it is not tested. ``rows.jsonl`` has all trainings of the folder, those that are not finished too.
"""

import argparse
import json
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp
from checkpoint_pieces import pack, unpack
from json_lines import read_rows
from reproduce_navier_stokes_ablation import ablation
from reproduce_navier_stokes_job import (
    CONFIGS,
    ROW,
    Job,
    Options,
    Simulation,
    config_of,
    first_row,
    n_threads,
    rows_in,
    simulate_job,
    train_job,
)
from reproduce_navier_stokes_share import share
from reproduce_navier_stokes_table import NAMES, seeds_of, table
from reproduce_runner import Outcome, run_jobs, slots
from reproduce_training import build, check_settings, read_config

from sciml_monarch.cli import guarded
from sciml_monarch.errors import InputError
from sciml_monarch.files import replacing
from sciml_monarch.pde.readers import open_trajectories
from sciml_monarch.training import LAST

SETS = {  # viscosity and time of the last frame, in seconds
    "navier_stokes_1e-3": (1e-3, 50.0),
    "navier_stokes_1e-4": (1e-4, 30.0),
    "navier_stokes_1e-5": (1e-5, 20.0),
}
MARGIN = 30.0  # seconds before the time is up in which trainings write their checkpoints and end


def _check(what: str, given: list[str], known: list[str]) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise InputError(f"there are no {what} {unknown}; {what} are {', '.join(known)}")


def n_trajectories(path: Path) -> int:
    """Trajectories of a data set that are there; of a simulation that was cut short those of its finished files."""
    try:
        data = open_trajectories(path)
    except (InputError, OSError):
        return 0
    try:
        return data.n_trajectories
    finally:
        data.close()


def ensure_sets(sets: dict[str, int], data: Path, devices: int | None, end: float, more: dict[str, Any]) -> Outcome:
    """Simulates data sets that are not there, or not whole, one on each GPU at a time.

    Args:
        sets: Names of data sets and how many trajectories are wanted.
        data: Folder of the data sets.
        devices: GPUs to use at most; ``None``: all.
        end: Value of ``time.monotonic()`` at which it ends; a simulation that is cut short goes on another time.
        more: Options of :func:`sciml_monarch.pde.simulate.simulate` that replace those of :data:`SETS`.

    Returns:
        How it ended.

    Raises:
        InputError: A set is to be simulated whose viscosity is not known, or a simulation failed.
    """
    missing = {name: n for name, n in sets.items() if n_trajectories(data / name) < n}
    _check("data sets", list(missing), list(SETS))
    jobs = []
    for name, n in missing.items():
        viscosity, final_time = SETS[name]
        options = {"n_trajectories": n, "viscosity": viscosity, "final_time": final_time} | more
        jobs.append(Simulation(name, tuple(options.items())))
    if jobs:
        print(f"simulating {', '.join(missing)}", flush=True)
    outcome = run_jobs(
        lambda: [job for job in jobs if n_trajectories(data / job.folder) < missing[job.folder]],
        _simulate,
        lambda job, device, _: (job, data, device),
        lambda job: n_trajectories(data / job.folder) >= missing[job.folder],
        slots(devices),
        mp.get_context("spawn"),
        end,
    )
    problems = outcome.errors() + [f"{key} is smaller than asked for" for key in sorted(outcome.paused)]
    if problems:
        raise InputError("simulation: " + "; ".join(problems))
    return outcome


def _simulate(job: Simulation, data: Path, device: int | None) -> None:
    raise SystemExit(guarded(job.folder, lambda: simulate_job(job, data, device)))


def simulate(arguments: argparse.Namespace) -> None:
    """Makes the data sets that are missing.

    Raises:
        InputError: See :func:`ensure_sets`.
    """
    start = time.monotonic()
    names = arguments.sets or list(SETS)
    _check("data sets", names, list(SETS))
    options = ("final_time", "simulation_resolution", "resolution", "seed")
    more = {name: value for name in options if (value := getattr(arguments, name)) is not None}
    sets = dict.fromkeys(names, arguments.n_trajectories)
    ensure_sets(sets, arguments.data, arguments.devices, start + arguments.time_limit, more)


def row_names() -> list[str]:
    """All rows: those of the paper's table first."""
    others = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in NAMES)
    return NAMES + others


def plan(
    names: list[str], seeds: list[int] | None, epochs: int | None, validation: int, options: Options
) -> list[tuple[Job, dict[str, Any]]]:
    """The trainings that are asked for, with their configurations: those others begin from, then the longest, first.

    Args:
        names: Rows.
        seeds: ``None``: those of each row.
        epochs: ``None``: those of the YAMLs. A row and the one it begins from share them as their YAMLs do.
        validation: Trajectories that are split off the training set.
        options: As of the trainings.

    Raises:
        InputError: A row is unknown, or an option is out of range.
    """
    _check("rows", names, row_names())

    def job_of(name: str, seed: int) -> Job:
        chain = [row for row in (first_row(name), name) if row]
        own = [read_config(CONFIGS / f"{row}.yaml", options.settings)["trainer"]["max_epochs"] for row in chain]
        last = max(1, round((epochs or sum(own)) * own[-1] / sum(own)))
        before = max(1, (epochs or sum(own)) - last)
        return Job(name, last, seed, validation, Job(chain[0], before, seed, validation) if len(chain) > 1 else None)

    asked = [job_of(name, seed) for name in names for seed in (seeds_of(name) if seeds is None else seeds)]
    firsts = {job.first: None for job in asked if job.first}  # a set that keeps the order
    found = [(job, config_of(job, options)) for job in firsts | dict.fromkeys(asked)]
    steps = {job: job.epochs * config["data"]["init_args"]["n_steps"] for job, config in found}
    return sorted(found, key=lambda pair: (pair[0] not in firsts, -steps[pair[0]]))


def _work(job: Job, options: Options, device: int | None, deadline: float) -> None:
    raise SystemExit(guarded(job.folder, lambda: train_job(job, options, device, deadline)))


def train(arguments: argparse.Namespace) -> None:
    """Trains what the output folder lacks until the time is up.

    Raises:
        InputError: A training failed, a data set cannot be had, or the folder was made with other settings.
    """
    start = time.monotonic()
    out: Path = arguments.out
    for name in ("per_gpu", "epochs"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise InputError(f"--{name} {getattr(arguments, name)}: must be at least 1")
    places = slots(arguments.devices, arguments.per_gpu)
    options = Options(arguments.data, out, arguments.set, arguments.per_gpu, n_threads(places))
    planned = plan(arguments.rows or NAMES, arguments.seeds, arguments.epochs, arguments.validation, options)
    stored = out / "settings.json"  # also of trainings that have no row yet
    if stored.is_file():
        check_settings(f"what {out} holds", json.loads(stored.read_text()), arguments.set)
    check_rows([config for job, config in planned if not is_finished(out, job)])
    with replacing(stored) as temporary:
        temporary.write_text(json.dumps(arguments.set))
    wanted: dict[str, int] = {}
    for _, config in planned:
        own = config["data"]["init_args"]
        name = Path(own["path"]).name
        wanted[name] = max(wanted.get(name, 0), sum(own[part] for part in ("n_train", "n_val", "n_test")))
    end = start + arguments.time_limit
    if ensure_sets(wanted, arguments.data, arguments.devices, end, {}).is_late:
        return
    jobs = [job for job, _ in planned]
    outcome = run_jobs(
        lambda: [job for job in jobs if not is_finished(out, job) and can_begin(out, job)],
        _work,
        lambda job, device, deadline: (job, options, device, deadline),
        lambda job: is_finished(out, job),
        places,
        mp.get_context("spawn"),
        end,
        min(MARGIN, 0.1 * arguments.time_limit),
        lambda: write_rows(out),
        arguments.poll,
    )
    if outcome.errors():
        raise InputError("; ".join(outcome.errors()))


def check_rows(configs: list[dict[str, Any]]) -> None:
    """Says what is misspelt before anything is simulated, if it is in the way of all rows.

    Raises:
        InputError: No row can be built; see :func:`build`.
    """
    problems = []
    for config in configs:
        config = deepcopy(config)
        config["model"]["init_args"]["init_from"] = None  # may not be trained yet
        try:
            build(config)
        except InputError as error:
            problems.append(error)
        else:
            return
    if problems:
        raise problems[0]


def is_finished(out: Path, job: Job) -> bool:
    """Whether a training is done and measured."""
    file = out / job.folder / ROW
    return file.is_file() and json.loads(file.read_text())["finished"]


def can_begin(out: Path, job: Job) -> bool:
    """Whether what a training begins from is there, or it has begun."""
    return job.first is None or is_finished(out, job.first) or (out / job.folder / LAST).is_file()


def write_rows(out: Path) -> None:
    """Writes all trainings of an output folder into one file, a row a line."""
    rows = rows_in(out)
    if rows:
        with replacing(out / "rows.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))


def print_table(arguments: argparse.Namespace) -> None:
    """Prints the tables of files of rows, or of output folders as they stand.

    Raises:
        InputError: Rows of different settings.
    """
    rows = [row for path in arguments.rows for row in (rows_in(path) if path.is_dir() else read_rows(path))]
    print("\n\n".join(part for part in (table(rows), ablation(rows)) if part))


def _add_common(step: argparse.ArgumentParser) -> None:
    step.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets; default: data")
    step.add_argument("--devices", type=int, help="GPUs to use at most; default: all")
    step.add_argument("--time_limit", type=float, default=float("inf"), help="of the whole call, in seconds")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(required=True)
    step = steps.add_parser("simulate", help="make the data sets that are missing")
    _add_common(step)
    step.add_argument("--sets", nargs="+", help=f"default: {' '.join(SETS)}")
    step.add_argument("--n_trajectories", type=int, default=1200)
    step.add_argument("--final_time", type=float, help="in seconds, instead of the sets' own, for a try")
    step.add_argument("--simulation_resolution", type=int, help="default: 256")
    step.add_argument("--resolution", type=int, help="default: 64")
    step.add_argument("--seed", type=int, help="of the sets; default: 0")
    step.set_defaults(run=simulate)
    step = steps.add_parser("train", help="train the rows that are not finished yet")
    _add_common(step)
    step.add_argument("--out", type=Path, required=True, help="folder for a run folder a training, and rows.jsonl")
    step.add_argument("--rows", nargs="+", help="YAMLs of configs/navier_stokes, without the ending")
    step.add_argument("--seeds", nargs="+", type=int, help="default: three of FNO and MonarchFNO at 1e-5, else one")
    step.add_argument("--epochs", type=int, help="of each row, instead of the YAMLs'")
    step.add_argument("--validation", type=int, default=0, help="trajectories to split off; then nothing is tested")
    step.add_argument("--per_gpu", type=int, default=1, help="trainings side by side on a GPU")
    step.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="for every row: trainer.precision=32")
    step.add_argument("--poll", type=float, default=0.5, help=argparse.SUPPRESS)
    step.set_defaults(run=train)
    step = steps.add_parser("table", help="print the tables of what there is")
    step.add_argument("rows", type=Path, nargs="+", help="files rows.jsonl, or output folders")
    step.set_defaults(run=print_table)
    step = steps.add_parser("pack", help="checkpoints as files that can be carried")
    step.add_argument("runs", type=Path, help="output folder of train")
    step.add_argument("--out", type=Path, required=True, help="folder for the pieces")
    step.add_argument("--rows", nargs="+", help="default: all with checkpoints")
    step.add_argument("--weights_only", action="store_true", help="what sciml_monarch.load needs; not to go on from")
    step.add_argument("--bf16", action="store_true", help="with --weights_only: matrices rounded to bfloat16")
    step.add_argument("--piece_mib", type=float, default=16.0, help="size of the largest piece")
    step.set_defaults(
        run=lambda a: pack(a.runs, a.out, ROW, a.weights_only, a.bf16, a.rows, max(1, int(a.piece_mib * 2**20)))
    )
    step = steps.add_parser("unpack", help="packed runs as run folders again")
    step.add_argument("packed", type=Path, help="what pack wrote")
    step.add_argument("--out", type=Path, required=True, help="output folder of train")
    step.set_defaults(run=lambda a: unpack(a.packed, a.out, ROW))
    step = steps.add_parser("share", help="tested networks as folders with safetensors and a model card")
    step.add_argument("runs", type=Path, help="output folder of train, or of unpack")
    step.add_argument("--out", type=Path, required=True, help="folder for a folder a row")
    step.add_argument("--rows", nargs="+", help="default: all that are tested")
    step.add_argument("--seed", type=int, default=0, help="of several trainings of a row the one to share")
    step.set_defaults(run=lambda a: share(a.runs, a.out, a.rows, a.seed))
    arguments = parser.parse_args()
    raise SystemExit(guarded("reproduce_navier_stokes", lambda: arguments.run(arguments)))


if __name__ == "__main__":
    main()
