"""The three ways of sparse training on a neural PDE solver: the tables of results/sparse_training.

    python scripts/reproduce_sparse_training.py train --out runs/sparse_training
    python scripts/reproduce_sparse_training.py table runs/sparse_training/rows.jsonl

Each YAML in configs/sparse_training is a row. ``train`` trains all of them, or ``--rows``, one on each GPU at a time;
it simulates the data where there is none, goes on where it was stopped, and stops by itself after ``--time_limit``.
First every row is trained for the same number of epochs. Rows that start from a trained dense network wait for
``dense``; their ``max_epochs`` is their share of those of ``dense.yaml``, and ``--epochs`` scales all alike. Then
(``--budgets time``) every row is trained anew for as many epochs as fit into the time that ``dense`` took.

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
from reproduce_sparse_job import CONFIGS, ROW, Job, folder_name, read_config, train_job

from sciml_monarch.cli import guarded
from sciml_monarch.errors import InputError
from sciml_monarch.files import replacing
from sciml_monarch.pde.readers import open_trajectories

DENSE = "dense"


def row_names(configs: Path = CONFIGS) -> list[str]:
    """All rows, the dense one first."""
    return sorted((path.stem for path in configs.glob("*.yaml")), key=lambda name: (name != DENSE, name))


def starts_from_dense(config: dict[str, Any]) -> bool:
    """Whether a row goes on from the trained dense network."""
    return any(c["class_path"] == "DenseToSparse" for c in config["trainer"].get("callbacks") or ())


def finished(out: Path) -> list[dict[str, Any]]:
    """The rows of all finished trainings in an output folder."""
    return [json.loads(path.read_text()) for path in sorted(out.glob(f"*/{ROW}"))]


def plan(names: list[str], budgets: list[str], epochs: int | None, seed: int, rows: list[dict[str, Any]]) -> list[Job]:
    """The trainings that are still to do and can be done now.

    Args:
        names: Rows that are asked for.
        budgets: "epochs", "time" or both.
        epochs: Epochs of the dense row; ``None``: those of its YAML.
        seed: Of the trainings.
        rows: What is finished.
    """
    of_dense = read_config(CONFIGS / f"{DENSE}.yaml")["trainer"]["max_epochs"]
    wanted = epochs or of_dense
    done = {(row["row"], row["epochs"]): row for row in rows if row["seed"] == seed}
    dense = done.get((DENSE, wanted))
    jobs = []
    for name in names:
        config = read_config(CONFIGS / f"{name}.yaml")
        own = max(1, round(config["trainer"]["max_epochs"] * wanted / of_dense))
        start = folder_name(DENSE, wanted, seed) if starts_from_dense(config) else None
        row = done.get((name, own))
        if row is None and "epochs" in budgets and (start is None or dense is not None):
            jobs.append(Job(name, own, "epochs", start, seed))
        if row is None or dense is None or "time" not in budgets or name == DENSE or start is not None:
            continue
        fitting = fitting_epochs(row, dense)
        if (name, fitting) not in done:
            jobs.append(Job(name, fitting, "time", None, seed))
    return jobs


def fitting_epochs(row: dict[str, Any], dense: dict[str, Any]) -> int:
    """Epochs of a row that fit into the time of the dense one."""
    return max(1, round(row["epochs"] * dense["train_seconds"] / row["train_seconds"]))


def _work(job: Job, out: Path, settings: list[str], device: int | None) -> None:
    if device is None:
        torch.set_num_threads(1)
    raise SystemExit(guarded(job.folder, lambda: train_job(job, out, settings, device)))


def train(arguments: argparse.Namespace) -> None:
    """Trains what the output folder lacks, one training on each device at a time, until the time is up."""
    start = time.monotonic()
    out: Path = arguments.out
    names = arguments.rows or row_names()
    unknown = set(names) - set(row_names())
    if unknown:
        raise InputError(f"there are no rows {sorted(unknown)}; rows are {', '.join(row_names())}")
    ensure_data([read_config(CONFIGS / f"{name}.yaml", arguments.set) for name in names])
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if arguments.devices is not None:
        n_gpus = min(n_gpus, arguments.devices)
    free: list[int | None] = list(range(n_gpus)) or [None]
    context = mp.get_context("spawn")
    running: dict[str, tuple[Any, Job, int | None]] = {}
    failed: set[str] = set()
    try:
        while True:
            for key, (process, _, device) in list(running.items()):
                if process.is_alive():
                    continue
                process.join()
                del running[key]
                free.append(device)
                if not (out / key / ROW).is_file():
                    failed.add(key)
                    print(f"{key}: stopped with exit status {process.exitcode}", flush=True)
                else:
                    print(f"{key}: finished after {time.monotonic() - start:.0f} s", flush=True)
                    write_rows(out)
            jobs = plan(names, arguments.budgets, arguments.epochs, arguments.seed, finished(out))
            waiting = [job for job in jobs if job.folder not in running and job.folder not in failed]
            while free and waiting:
                job, device = waiting.pop(0), free.pop(0)
                process = context.Process(target=_work, args=(job, out, arguments.set, device))
                process.start()
                running[job.folder] = (process, job, device)
            if not running:
                break
            if time.monotonic() - start > arguments.time_limit:
                print(f"time is up; run again for {', '.join(running)} and what follows", flush=True)
                break
            time.sleep(arguments.poll)
    finally:
        for process, _, _ in running.values():
            process.terminate()
        for process, _, _ in running.values():
            process.join(60)
            if process.is_alive():
                process.kill()
        write_rows(out)


def write_rows(out: Path) -> None:
    """Writes the finished trainings into one file, a row a line."""
    rows = finished(out)
    if rows:
        with replacing(out / "rows.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))


def ensure_data(configs: list[dict[str, Any]]) -> None:
    """Simulates the data sets that are not there, or not whole, with the defaults of the job: viscosity 1e-5."""
    from sciml_monarch.pde.simulate import simulate

    for config in configs:
        options = config["data"]["init_args"]
        path = Path(options["path"])
        try:
            data = open_trajectories(path)
            n_trajectories = data.n_trajectories
            data.close()
        except (InputError, OSError):
            n_trajectories = 0
        if n_trajectories < sum(options[part] for part in ("n_train", "n_val", "n_test")):
            print(f"simulating {path}", flush=True)
            simulate(out=path)


def table(rows: list[dict[str, Any]], names: list[str] | None = None) -> str:
    """Markdown tables: at equal epochs, at equal time, and from a trained network.

    Args:
        rows: Finished trainings; of several with other epochs, those with most.
        names: Rows to list; those without a training say so. By default all.
    """
    names = names or row_names()
    dense = max((row for row in rows if row["row"] == DENSE), key=lambda row: row["epochs"], default=None)
    short = [name for name in names if name.startswith("dense_to_sparse")]
    tables = {
        "epochs": ("At equal epochs", [name for name in names if name not in short]),
        "time": ("At equal time", [name for name in names if name not in short]),
        "short": ("Dense to sparse, fine-tuned for a part of the epochs", [DENSE, *short]),
    }
    lines = []
    for kind, (title, listed) in tables.items():
        lines += [
            f"### {title}",
            "",
            "| row | parameters | step (ms) | speed-up of a step | epochs | training (s) | validation | test |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name in listed:
            own = [row for row in rows if row["row"] == name]
            if dense is not None:
                of_dense = (None, folder_name(DENSE, dense["epochs"], dense["seed"]))
                own = [row for row in own if row["start"] in of_dense]
            if kind == "time" and name != DENSE and dense is not None:
                own = [r for r in own if r["budget"] == "time" or fitting_epochs(r, dense) == r["epochs"]]
            else:
                own = [row for row in own if row["budget"] == "epochs"]
            row = max(own, key=lambda row: row["epochs"], default=None)
            lines.append(_line(name, row, dense))
        lines.append("")
    if dense is not None:
        lines.append(
            f"{dense['device']}, precision {dense['precision']}, torch {dense['torch']}, seed {dense['seed']}, commit "
            f"{dense['commit']}."
        )
    return "\n".join(lines)


def _line(name: str, row: dict[str, Any] | None, dense: dict[str, Any] | None) -> str:
    if row is None:
        return f"| {name} | not measured yet | | | | | | |"
    counts = " -> ".join(f"{phase['n_parameters']:,}" for phase in row["phases"])
    steps = [phase["step_seconds"] for phase in row["phases"]]
    reference = dense["phases"][-1]["step_seconds"] if dense else None
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
    step.set_defaults(
        run=lambda a: print(table([json.loads(line) for line in a.rows.read_text().splitlines() if line.strip()]))
    )
    arguments = parser.parse_args()
    raise SystemExit(guarded("reproduce_sparse_training", lambda: arguments.run(arguments)))


if __name__ == "__main__":
    main()
