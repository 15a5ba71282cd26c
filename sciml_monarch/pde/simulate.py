"""The job that makes a Navier–Stokes data set: starts, solver and files put together."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from sciml_monarch.devices import choose_device, device_name
from sciml_monarch.errors import InputError
from sciml_monarch.pde.shards import Contents, Parameter, Shard, check_space
from sciml_monarch.pde.solvers.navier_stokes import NavierStokesSolver
from sciml_monarch.pde.solvers.random_field import gaussian_random_field
from sciml_monarch.version import version

Work = tuple[Shard, slice]  # trajectories of a file, by their rows in it


def simulate(
    out: Path,
    n_trajectories: int = 1200,
    viscosity: float = 1e-5,
    final_time: float = 20.0,
    interval: float = 1.0,
    simulation_resolution: int = 256,
    resolution: int = 64,
    seed: int = 0,
    first: int = 0,
    include_start: bool = False,
    step: float | None = None,
    shard_size: int = 100,
    chunk: int | None = None,
    device: str = "auto",
) -> None:
    """Simulates a Navier–Stokes data set: vorticity on the unit torus, starts and forcing of the FNO paper.

    The defaults are the set with viscosity 1e-5 of Li et al., "Fourier Neural Operator for Parametric Partial
    Differential Equations" (ICLR 2021). Every trajectory has its own seed, (seed, number), and does not
    depend on the others. The files follow The Well's layout. An interrupted run goes on where it stopped when
    it is started again with the same options.

    Args:
        out: Folder for the files, shard_0000.hdf5 and so on.
        n_trajectories: Number of trajectories.
        viscosity: Kinematic viscosity, in m^2/s.
        final_time: Time of the last frame, in seconds.
        interval: Time between frames, in seconds.
        simulation_resolution: Points per axis of the grid on which the equations are solved.
        resolution: Points per axis that are kept; divides simulation_resolution.
        seed: Seed of the data set.
        first: Number of the first trajectory; parts of one set can so be made by themselves, with other resolutions.
        include_start: Keep the frame at t = 0 too, which the FNO paper's data lack.
        step: Time step in seconds; by default it follows from the grid and the velocity of such flows.
        shard_size: Trajectories in a file.
        chunk: Trajectories solved at once; by default as many as keep the solver within the cache.
        device: "cpu", "cuda", "cuda:1" ...; "auto" is a GPU if there is one.

    Raises:
        InputError: An option is outside its range, the folder holds a data set made with other options, the
            disk is full, or a trajectory is unstable.
    """
    times = _frame_times(final_time, interval, include_start)
    _check_at_least("n_trajectories", n_trajectories, 1)
    _check_at_least("shard_size", shard_size, 1)
    _check_at_least("seed", seed, 0)
    _check_at_least("first", first, 0)
    _check_at_least("chunk", 1 if chunk is None else chunk, 1)
    if resolution < 1 or simulation_resolution % resolution:
        raise InputError(
            f"resolution {resolution} must divide simulation_resolution {simulation_resolution}: points are left out"
        )
    solver = NavierStokesSolver(simulation_resolution, viscosity, step=step, device=choose_device(device))
    bound = solver.step_size.bound
    parameters: dict[str, Parameter] = {
        "viscosity": viscosity,
        "forcing": "0.1 (sin 2 pi (x + y) + cos 2 pi (x + y))",
        "final_time": final_time,
        "interval": interval,
        "include_start": include_start,
        "simulation_resolution": simulation_resolution,
        "resolution": resolution,
        "seed": seed,
        "first_trajectory_of_set": first,
        "step": step or 0.0,  # 0: derived from the grid and the velocity bound
        "velocity_bound_start": bound.start,
        "velocity_bound_growth": bound.growth,
        "velocity_bound_limit": bound.limit,
        "shard_size": shard_size,
        "n_trajectories_total": n_trajectories,
        "dtype": "float32",
    }
    notes: dict[str, Parameter] = {
        "solver": "pseudo-spectral, 2/3 rule, integrating-factor RK4",
        "version": version(),
        "device": device_name(solver.device),
    }
    contents = Contents(f"navier_stokes_viscosity_{viscosity:g}", parameters, notes, times, resolution)
    _make_folder(out)
    shards = [
        Shard(out / f"shard_{i:04d}.hdf5", first + begin, min(shard_size, n_trajectories - begin), contents)
        for i, begin in enumerate(range(0, n_trajectories, shard_size))
    ]
    for shard in shards:
        if shard.complete().all():
            shard.finish()  # one that was stopped between its last trajectory and its name
    check_space(out, sum(shard.n_missing_bytes() for shard in shards))
    batch = chunk or _even_split(min(shard_size, n_trajectories), solver.default_chunk())
    work = _work(shards, batch)
    n_left = sum(rows.stop - rows.start for _, rows in work)
    with _progress_bar(n_trajectories * len(times), (n_trajectories - n_left) * len(times)) as progress:
        _fill(work, solver, batch, seed, progress)


def _work(shards: list[Shard], batch: int) -> list[Work]:
    """The batches that hold an unfinished trajectory.

    The division does not depend on what is finished, so that a resumed run repeats the batches of the first.
    """
    work = []
    for shard in shards:
        complete = shard.complete()
        for begin in range(0, shard.n_trajectories, batch):
            rows = slice(begin, min(begin + batch, shard.n_trajectories))
            if not complete[rows].all():
                work.append((shard, rows))
    return work


def _fill(work: list[Work], solver: NavierStokesSolver, batch: int, seed: int, progress: Callable[[int], None]) -> None:
    """Computes and writes batches."""
    for (shard, rows), starts in _with_starts(work, solver.equation.n, seed):
        shard.create()
        solution = solver.run(
            starts,
            shard.contents.times,
            resolution=shard.contents.resolution,
            chunk=batch,
            first_trajectory=shard.first + rows.start,
            progress=progress,
        )
        shard.write(rows, solution.vorticity.numpy(), solution.longest_step.numpy())
        if shard.complete().all():
            shard.finish()


def _with_starts(work: list[Work], n: int, seed: int) -> Iterator[tuple[Work, Tensor]]:
    """Goes through batches with their starts (rows, n, n), drawing the next ones while the caller works."""

    def draw(shard: Shard, rows: slice) -> Tensor:
        return gaussian_random_field(n, [(seed, shard.first + row) for row in range(rows.start, rows.stop)])

    with ThreadPoolExecutor(max_workers=1) as pool:
        drawn = [pool.submit(draw, *work[0])] if work else []
        for index, batch in enumerate(work):
            starts = drawn.pop().result()
            if index + 1 < len(work):
                drawn.append(pool.submit(draw, *work[index + 1]))
            yield batch, starts


@contextmanager
def _progress_bar(total: int, done: int) -> Iterator[Callable[[int], None]]:
    """A bar over frames on standard error; without rich nothing is shown."""
    try:
        from rich import progress as rich_progress
        from rich.console import Console
    except ModuleNotFoundError:
        yield lambda _: None
        return
    columns = (
        rich_progress.TextColumn("simulate"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("frames, left"),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("simulate", total=total, completed=done)
        yield lambda n_frames: bar.advance(task, n_frames)


def _frame_times(final_time: float, interval: float, include_start: bool) -> list[float]:
    if not (math.isfinite(final_time) and math.isfinite(interval) and final_time > 0 and interval > 0):
        raise InputError(f"final_time and interval must be positive, not {final_time} and {interval}")
    n_intervals = round(final_time / interval)
    if abs(n_intervals * interval - final_time) > 1e-6 * interval:
        raise InputError(f"final_time {final_time:g} s must be a multiple of interval {interval:g} s")
    return [i * interval for i in range(0 if include_start else 1, n_intervals + 1)]


def _even_split(size: int, most: int) -> int:
    """The size of the largest of the fewest nearly equal parts of at most ``most``."""
    return -(-size // -(-size // most))


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise InputError(f"{name} must be at least {least}, not {value}")


def _make_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: --out must be a folder")
    out.mkdir(parents=True, exist_ok=True)
