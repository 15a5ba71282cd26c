"""The three ways of sparse training on a neural PDE solver: the tables of results/sparse_training.

    python scripts/reproduce_sparse_training.py train --out runs/sparse_training
    python scripts/reproduce_sparse_training.py table runs/sparse_training/rows.jsonl

Each YAML in configs/sparse_training is a row. ``train`` trains all of them, or ``--rows``, one on each GPU at a time;
it simulates the data of the YAMLs where there is none, goes on where it was stopped (checkpoints are written every few
epochs), and stops by itself before ``--time_limit``. First every row is trained for the same number of epochs. Rows
that start from a trained dense network wait for ``dense``; their ``max_epochs`` is their share of those of
``dense.yaml``, and ``--epochs`` scales all alike. Then (``--budgets time``) every row of that many epochs is trained
anew for as many epochs as fit into the time that ``dense`` took. An output folder has one list of ``--set``.

Validation errors are those of 40 trajectories while training; the test set is used once, at the end, on the last
weights.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from json_lines import read_rows
from reproduce_runner import run_jobs, slots
from reproduce_sparse_job import CONFIGS, ROW, Job, folder_name, train_job
from reproduce_training import check_settings, read_config

from sciml_monarch.cli import guarded
from sciml_monarch.errors import InputError
from sciml_monarch.files import replacing
from sciml_monarch.pde.readers import open_trajectories

DENSE = "dense"
CONTINUED = "dense_continued"
SHORT = (CONTINUED, "dense_to_sparse")  # rows that begin so are trained for a part of the epochs


def row_names(configs: Path = CONFIGS) -> list[str]:
    """All rows, the dense one first."""
    return sorted((path.stem for path in configs.glob("*.yaml")), key=lambda name: (name != DENSE, name))


def starts_from_dense(name: str) -> bool:
    """Whether a row goes on from the trained dense network."""
    callbacks = read_config(CONFIGS / f"{name}.yaml")["trainer"].get("callbacks") or ()
    return name == CONTINUED or any(c["class_path"] == "DenseToSparse" for c in callbacks)


def has_equal_time(name: str) -> bool:
    """Whether a row is also trained for the time of the dense one."""
    return name != DENSE and not name.startswith(SHORT)


def epochs_of(name: str, dense: int | None) -> int:
    """Epochs of a row where the dense one has so many; ``None``: those of its YAML."""
    own, full = (read_config(CONFIGS / f"{n}.yaml")["trainer"]["max_epochs"] for n in (name, DENSE))
    return max(1, round(own * (dense or full) / full))


def finished(out: Path) -> list[dict[str, Any]]:
    """The rows of all finished trainings in an output folder."""
    return [json.loads(path.read_text()) for path in sorted(out.glob(f"*/{ROW}"))]


def plan(
    names: list[str],
    budgets: list[str],
    epochs: int | None,
    seed: int,
    rows: list[dict[str, Any]],
    settings: list[str],
) -> list[Job]:
    """The trainings that are still to do and can be done now.

    Args:
        names: Rows that are asked for.
        budgets: "epochs", "time" or both.
        epochs: Epochs of the dense row; ``None``: those of its YAML.
        seed: Of the trainings.
        rows: What is finished.
        settings: ``--set``.

    Raises:
        InputError: What is finished was trained with other settings.
    """
    for finished_row in rows:
        check_settings(finished_row["row"], finished_row["settings"], settings)
    wanted = epochs_of(DENSE, epochs)
    done = {(row["row"], row["epochs"]): row for row in rows if row["seed"] == seed}
    dense = done.get((DENSE, wanted))
    jobs = []
    for name in names:
        own = epochs_of(name, wanted)
        start = folder_name(DENSE, wanted, seed) if starts_from_dense(name) else None
        row = done.get((name, own))
        if row is None and "epochs" in budgets and (start is None or dense is not None):
            jobs.append(Job(name, own, "epochs", start, seed))
        if row is None or dense is None or "time" not in budgets or not has_equal_time(name):
            continue
        fitting = fitting_epochs(row, dense)
        if (name, fitting) not in done:
            jobs.append(Job(name, fitting, "time", None, seed))
    return jobs


def fitting_epochs(row: dict[str, Any], dense: dict[str, Any]) -> int:
    """Epochs of a row that fit into the time of the dense one."""
    return max(1, int(row["epochs"] * dense["train_seconds"] / row["train_seconds"]))


def waiting(
    names: list[str], budgets: list[str], epochs: int | None, seed: int, rows: list[dict[str, Any]]
) -> list[str]:
    """Rows that cannot be trained because another is not finished, and which; arguments as of :func:`plan`."""
    wanted = epochs_of(DENSE, epochs)
    done = {(row["row"], row["epochs"]) for row in rows if row["seed"] == seed}
    found = []
    for name in names:
        from_dense = "epochs" in budgets and starts_from_dense(name) and (name, epochs_of(name, wanted)) not in done
        timed = "time" in budgets and has_equal_time(name)
        if (from_dense or timed) and (DENSE, wanted) not in done:
            found.append(f"{name}{'' if from_dense else ' at equal time'} waits for {DENSE} of {wanted} epochs")
        elif timed and "epochs" not in budgets and (name, epochs_of(name, wanted)) not in done:
            found.append(f"{name} at equal time waits for {name} at equal epochs")
    return found


def _work(job: Job, out: Path, settings: list[str], device: int | None, deadline: float) -> None:
    if device is None:
        torch.set_num_threads(1)
    raise SystemExit(guarded(job.folder, lambda: train_job(job, out, settings, device, deadline)))


def train(arguments: argparse.Namespace) -> None:
    """Trains what the output folder lacks, one training on each device at a time, until the time is up.

    Raises:
        InputError: A training failed, or one waits for another that is not there; other settings than before.
    """
    start = time.monotonic()
    out: Path = arguments.out
    names = arguments.rows or row_names()
    unknown = set(names) - set(row_names())
    if unknown:
        raise InputError(f"there are no rows {sorted(unknown)}; rows are {', '.join(row_names())}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    stored = out / "settings.json"  # also of trainings that are not finished
    if stored.is_file():
        check_settings(f"what {out} holds", json.loads(stored.read_text()), arguments.set)
    plan(names, arguments.budgets, arguments.epochs, arguments.seed, finished(out), arguments.set)
    ensure_data(names, arguments.set)
    with replacing(stored) as temporary:
        temporary.write_text(json.dumps(arguments.set))
    outcome = run_jobs(
        lambda: plan(names, arguments.budgets, arguments.epochs, arguments.seed, finished(out), arguments.set),
        _work,
        lambda job, device, deadline: (job, out, arguments.set, device, deadline),
        lambda job: (out / job.folder / ROW).is_file(),
        slots(arguments.devices),
        mp.get_context("spawn"),
        start + arguments.time_limit,
        collect=lambda: write_rows(out),
        poll=arguments.poll,
    )
    missing = outcome.errors()
    if DENSE not in names or not (outcome.is_late or outcome.paused):
        missing += waiting(names, arguments.budgets, arguments.epochs, arguments.seed, finished(out))
    if missing:
        raise InputError("; ".join(missing))


def write_rows(out: Path) -> None:
    """Writes the finished trainings into one file, a row a line."""
    rows = finished(out)
    if rows:
        with replacing(out / "rows.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))


def ensure_data(names: list[str], settings: list[str]) -> None:
    """Simulates the data sets of the YAMLs that are not there, with the defaults of the job: viscosity 1e-5.

    Raises:
        InputError: A data set is too small or cannot be read, or one that ``--set`` names is not there.
    """
    from sciml_monarch.pde.simulate import simulate

    for name in names:
        file = CONFIGS / f"{name}.yaml"
        options = read_config(file, settings)["data"]["init_args"]
        path = Path(options["path"])
        own = Path(read_config(file)["data"]["init_args"]["path"])
        if path == own and not (path.exists() and (path.is_file() or any(path.iterdir()))):
            print(f"simulating {path}", flush=True)
            simulate(out=path)
        data = open_trajectories(path)
        found, wanted = data.n_trajectories, sum(options[part] for part in ("n_train", "n_val", "n_test"))
        data.close()
        if found < wanted:
            raise InputError(
                f"{path} has {found} trajectories, {name} takes {wanted}; `sciml-monarch simulate --out {path}` "
                "finishes a simulation that was interrupted"
            )


def table(rows: list[dict[str, Any]], names: list[str] | None = None) -> str:
    """Markdown tables: at equal epochs, at equal time, and from a trained network.

    Args:
        rows: Finished trainings. Of several dense ones that with most epochs counts, and of the others those with its
            seed and settings, and with epochs in proportion to its, or as many as fit into its time.
        names: Rows to list; those without a training say so. By default all.
    """
    names = names or row_names()
    dense = max((row for row in rows if row["row"] == DENSE), key=lambda row: row["epochs"], default=None)
    if dense is None:
        return f"not measured yet: there is no row {DENSE}"
    starts = (None, folder_name(DENSE, dense["epochs"], dense["seed"]))
    same = ("seed", "settings")
    found = {
        (row["row"], row["epochs"]): row
        for row in rows
        if row["start"] in starts and all(row[key] == dense[key] for key in same)
    }
    long = [name for name in names if not name.startswith(SHORT)]
    short = [DENSE, *(name for name in names if name.startswith(SHORT))]
    own = {name: found.get((name, epochs_of(name, dense["epochs"]))) for name in {*long, *short}}
    timed = {name: row and found.get((name, fitting_epochs(row, dense))) for name, row in own.items()}
    tables: dict[str, dict[str, dict[str, Any] | None]] = {
        "At equal epochs": {name: own[name] for name in long},
        "At equal time": {name: timed[name] for name in long},
        "From a trained dense network, for a part of the epochs": {name: own[name] for name in short},
    }
    lines = []
    origins: dict[str, dict[str, None]] = {}  # of each device and commit, the trainings
    for title, listed in tables.items():
        lines += [
            f"### {title}",
            "",
            "| row | parameters | step (ms) | speed-up of a step | epochs | training (s) | validation | test |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, row in listed.items():
            lines.append(_line(name, row, dense))
            if row is not None:
                origin = (
                    f"{row['device']}, precision {row['precision']}, torch {row['torch']}, seed {row['seed']}, commit "
                    f"{row['commit']}"
                )
                origins.setdefault(origin, {})[f"{name} ({row['epochs']} epochs)"] = None
        lines.append("")
    if len(origins) == 1:
        lines.append(f"{next(iter(origins))}.")
    else:
        lines += [f"- {', '.join(trainings)}: {origin}" for origin, trainings in origins.items()]
    return "\n".join(lines)


def _line(name: str, row: dict[str, Any] | None, dense: dict[str, Any]) -> str:
    if row is None:
        return f"| {name} | not measured yet | | | | | | |"
    counts = " -> ".join(f"{phase['n_parameters']:,}" for phase in row["phases"])
    steps = [phase["step_seconds"] for phase in row["phases"]]
    reference = dense["phases"][-1]["step_seconds"]
    speed = [f"{reference / s:.2f}" if s and reference else "?" for s in steps]
    validation = row["validation_relative_l2"]
    return (
        f"| {name} | {counts} "
        f"| {' -> '.join('?' if s is None else f'{1e3 * s:.1f}' for s in steps)} | {' -> '.join(speed)} "
        f"| {row['epochs']} | {row['train_seconds']:.0f} "
        f"| {'' if validation is None else f'{validation:.4f}'} | {row['relative_l2']:.4f} |"
    )


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(required=True)
    step = steps.add_parser("train", help="train the rows that are not finished yet")
    step.add_argument("--out", type=Path, required=True, help="folder for a run folder a training, and rows.jsonl")
    step.add_argument("--rows", nargs="+", help="YAMLs of configs/sparse_training, without the ending; default: all")
    step.add_argument("--budgets", nargs="+", choices=("epochs", "time"), default=["epochs", "time"])
    step.add_argument("--epochs", type=int, help="of the dense row; others in proportion")
    step.add_argument("--devices", type=int, help="GPUs to use at most; default: all")
    step.add_argument("--time_limit", type=float, default=float("inf"), help="in seconds")
    step.add_argument("--seed", type=int, default=0)
    step.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="for every row: trainer.precision=32")
    step.add_argument("--poll", type=float, default=0.5, help=argparse.SUPPRESS)
    step.set_defaults(run=train)
    step = steps.add_parser("table", help="print the tables of what is finished")
    step.add_argument("rows", type=Path, help="rows.jsonl that train wrote")
    step.set_defaults(run=lambda a: print(table(read_rows(a.rows))))
    arguments = parser.parse_args()
    raise SystemExit(guarded("reproduce_sparse_training", lambda: arguments.run(arguments)))


if __name__ == "__main__":
    main()
