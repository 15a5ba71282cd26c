"""Times the Navier–Stokes solver: batch sizes and backends in short runs, then one whole data set.

Needs PyTorch and h5py only. Example, on a machine with a GPU:

    python scripts/benchmark_solver.py --out results/solver.json
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import h5py
import torch
from torch import Tensor

from sciml_monarch.pde.simulate import simulate
from sciml_monarch.pde.solvers.fused import FusedSteps
from sciml_monarch.pde.solvers.random_field import gaussian_random_field
from sciml_monarch.pde.solvers.step_size import StepSize
from sciml_monarch.pde.solvers.vorticity import EagerSteps, Equation, fno_forcing, make_equation, to_spectrum
from sciml_monarch.provenance import provenance

N_REFERENCE_STEPS = 50


def synchronise(device: torch.device) -> None:
    """Waits for what has been started on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def make_steps(backend: str, equation: Equation, chunk: int) -> EagerSteps | FusedSteps:
    """The stepper of a backend for a batch."""
    if backend == "eager":
        return EagerSteps(equation)
    return FusedSteps(equation, chunk, compiled=True, graph=backend == "graph")


def starts(n: int, chunk: int, m: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A batch of states at t = 0; a few distinct ones, since drawing them would take longer than the run."""
    fields = gaussian_random_field(n, [(0, i) for i in range(min(chunk, 4))], dtype=dtype)
    return to_spectrum(fields[torch.arange(chunk) % len(fields)].to(device), m)


def short_run(options: argparse.Namespace, device: torch.device, backend: str, chunk: int) -> dict[str, object]:
    """Times one backend and batch size, and compares it with the plain step in float64."""
    n, viscosity = options.n, options.viscosity
    equation = make_equation(n, viscosity, fno_forcing, device, torch.float32)
    legs = StepSize(equation.m).legs([float(i + 1) for i in range(round(options.final_time))], 0)
    n_steps_in_all = sum(leg.n_steps for leg in legs)
    step = legs[-1].step
    begin = time.perf_counter()
    steps = make_steps(backend, equation, chunk)
    state = starts(n, chunk, equation.m, device, torch.float32)
    with torch.no_grad():
        result, _ = steps(state, step, N_REFERENCE_STEPS)
        synchronise(device)
        preparation = time.perf_counter() - begin
        n_steps = 10
        while True:  # doubled until the measurement is long enough to be steady
            begin = time.perf_counter()
            steps(state, step, n_steps)
            synchronise(device)
            seconds = time.perf_counter() - begin
            if seconds > options.seconds_per_row / 2:
                break
            n_steps *= 2
        exact_equation = make_equation(n, viscosity, fno_forcing, device, torch.float64)
        exact, _ = EagerSteps(exact_equation)(starts(n, 1, equation.m, device, torch.float64), step, N_REFERENCE_STEPS)
    n_chunks = options.n_trajectories / chunk
    return {
        "backend": backend,
        "chunk": chunk,
        "milliseconds_per_step": 1e3 * seconds / n_steps,
        "microseconds_per_trajectory_step": 1e6 * seconds / n_steps / chunk,
        "extrapolated_seconds": seconds / n_steps * n_steps_in_all * n_chunks,
        "preparation_seconds": preparation,
        "relative_error_against_float64": ((result[:1] - exact).norm() / exact.norm()).item(),
        "n_steps_to_final_time": n_steps_in_all,
    }


def whole_run(options: argparse.Namespace, chunk: int, shard_size: int) -> dict[str, object]:
    """Makes the data set as a user would, drawing of starts, compilation and files included."""
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        begin = time.perf_counter()
        simulate(
            Path(folder),
            n_trajectories=options.n_trajectories,
            viscosity=options.viscosity,
            final_time=options.final_time,
            simulation_resolution=options.n,
            resolution=options.resolution,
            shard_size=shard_size,
            chunk=chunk,
            device=options.device,
        )
        seconds = time.perf_counter() - begin
        longest_steps = [dt for path in sorted(Path(folder).glob("*.hdf5")) for dt in read_steps(path)]
    usual = max(longest_steps)
    return {
        "seconds": seconds,
        "chunk": chunk,
        "shard_size": shard_size,
        "n_trajectories": len(longest_steps),
        "n_with_smaller_steps": sum(dt < 0.99 * usual for dt in longest_steps),
        "longest_step": usual,
    }


def read_steps(path: Path) -> list[float]:
    """The longest steps of the trajectories of a shard."""
    with h5py.File(path, "r") as file:
        return [float(dt) for dt in file["dt"][:]]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the results")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--n", type=int, default=256, help="points per axis of the solver's grid")
    parser.add_argument("--resolution", type=int, default=64, help="points per axis that are kept")
    parser.add_argument("--viscosity", type=float, default=1e-5)
    parser.add_argument("--final-time", type=float, default=20.0, help="simulated seconds")
    parser.add_argument("--n-trajectories", type=int, default=1200)
    parser.add_argument("--chunks", type=int, nargs="+", default=[16, 25, 34, 50, 100, 200])
    parser.add_argument("--backends", nargs="+", default=["eager", "compiled", "graph"])
    parser.add_argument("--eager-chunk", type=int, default=50, help="the one batch size tried without graphs")
    parser.add_argument("--seconds-per-row", type=float, default=2.0, help="length of a short measurement")
    parser.add_argument("--time-limit", type=float, default=480.0, help="seconds after which nothing new is begun")
    parser.add_argument("--scratch", type=Path, default=None, help="folder for the data of the whole run")
    parser.add_argument("--no-whole-run", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Runs the benchmark, writing after every row so that an interruption loses nothing."""
    options = parse()
    begin = time.perf_counter()
    device = torch.device(options.device)
    rows: list[dict[str, object]] = []
    results: dict[str, object] = {
        **provenance(device),
        "n": options.n,
        "viscosity": options.viscosity,
        "final_time": options.final_time,
        "n_trajectories": options.n_trajectories,
        "rows": rows,
    }

    def save() -> None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=2) + "\n")

    print(f"{results['device']}, torch {torch.__version__}, {options.n}^2, T = {options.final_time:g} s")
    print(f"{'backend':10}{'chunk':>6}{'ms/step':>10}{'us/traj-step':>14}{'s in all':>10}{'ready s':>9}{'error':>10}")
    fastest: tuple[float, int] = (float("inf"), 0)
    for backend in options.backends:
        for chunk in options.chunks if backend == "graph" or device.type == "cpu" else [options.eager_chunk]:
            if time.perf_counter() - begin > options.time_limit:
                print(f"time limit of {options.time_limit:g} s reached: {backend} {chunk} not run")
                continue
            row = short_run(options, device, backend, chunk)
            rows.append(row)
            save()
            print(
                f"{backend:10}{chunk:6}{row['milliseconds_per_step']:10.3f}"
                f"{row['microseconds_per_trajectory_step']:14.2f}{row['extrapolated_seconds']:10.1f}"
                f"{row['preparation_seconds']:9.1f}{row['relative_error_against_float64']:10.1e}",
                flush=True,
            )
            fastest = min(fastest, (float(str(row["extrapolated_seconds"])), chunk))
            if device.type == "cuda":
                torch.cuda.empty_cache()
    left = options.time_limit - (time.perf_counter() - begin)
    if options.no_whole_run or fastest[0] > left:
        print(f"whole run left out: {fastest[0]:.0f} s expected, {left:.0f} s left")
    else:
        shard_size = fastest[1] * max(1, round(100 / fastest[1]))
        results["whole_run"] = whole_run(options, fastest[1], min(shard_size, options.n_trajectories))
        print(f"whole run, files included: {results['whole_run']}")
    save()


if __name__ == "__main__":
    main()
