"""Runs trainings side by side: a process each, on the GPUs there are, until all are done or the time is up."""

import multiprocessing.context
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch

MOST_BROKEN = 2  # GPUs that a training may find broken before it counts as what breaks them
PROBE_SECONDS = 120.0


class Named(Protocol):
    """What can be run: something with a name of its own."""

    @property
    def folder(self) -> str:
        """The name: the run folder in the output folder."""


J = TypeVar("J", bound=Named)


@dataclass
class Outcome:
    """How a run of jobs ended.

    Attributes:
        failed: Jobs that failed.
        paused: Jobs that stopped by themselves before they were finished.
        stranded: Jobs that no device was left for.
        is_late: Whether the time was up before all were done.
    """

    failed: set[str] = field(default_factory=set)
    paused: set[str] = field(default_factory=set)
    stranded: list[str] = field(default_factory=list)
    is_late: bool = False

    def errors(self) -> list[str]:
        """What did not work, a phrase each."""
        found = [f"{key} failed" for key in sorted(self.failed)]
        return found + [f"no GPU that works is left for {', '.join(self.stranded)}"] * bool(self.stranded)


def slots(devices: int | None = None, per_gpu: int = 1) -> list[int | None]:
    """Places that a job can run in at a time: numbers of GPUs, or once the CPU where there is no GPU.

    Args:
        devices: GPUs to use at most; ``None``: all.
        per_gpu: Jobs side by side on each.
    """
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    n_gpus = n_gpus if devices is None else min(n_gpus, devices)
    gpus: list[int | None] = [*range(n_gpus)]
    return gpus * per_gpu or [None]


def probe(device: int) -> None:
    """Computes something on a GPU; raises where it cannot."""
    torch.ones(1, device=f"cuda:{device}").sum().item()


def usable(context: multiprocessing.context.BaseContext, device: int) -> bool:
    """Whether a new process can compute on a GPU; one that is broken, or serves too many, cannot."""
    process = context.Process(target=probe, args=(device,))  # type: ignore[attr-defined]
    process.start()
    process.join(PROBE_SECONDS)
    if process.is_alive():
        process.kill()
        return False
    return process.exitcode == 0


class _Run(Generic[J]):
    """The state of :func:`run_jobs`, whose arguments it has."""

    def __init__(self, places: list[int | None], context: Any, is_finished: Callable[[J], bool]) -> None:
        self.free = list(places)
        self.context = context
        self.is_finished = is_finished
        self.running: dict[str, tuple[Any, J, int | None]] = {}
        self.outcome = Outcome()
        self.broken: Counter[str] = Counter()
        self.start = time.monotonic()

    def settle(self) -> bool:
        """Takes note of processes that have ended; returns whether a job was finished."""
        news = False
        for key, (process, job, device) in list(self.running.items()):
            if process.is_alive():
                continue
            process.join()
            del self.running[key]
            if self.is_finished(job):
                print(f"{key}: finished after {time.monotonic() - self.start:.0f} s", flush=True)
                news = True
            elif process.exitcode == 0:
                self.outcome.paused.add(key)
                print(f"{key}: stopped before the time is up; run again to go on", flush=True)
            elif not self._works(key, process.exitcode, device):
                continue  # its place is given up
            self.free.append(device)
        return news

    def _works(self, key: str, status: int, device: int | None) -> bool:
        """Whether the place of a job that ended with an error still works; only then the error is the job's."""
        print(f"{key}: stopped with exit status {status}", flush=True)
        works = device is None or usable(self.context, device)
        self.broken[key] += not works
        if works or self.broken[key] >= MOST_BROKEN:
            self.outcome.failed.add(key)
        if not works:  # or it would fail at all that is left, and faster than the others train
            print(f"GPU {device} does not work: one place fewer", flush=True)
        return works

    def stop(self) -> None:
        """Ends what still runs, politely at first."""
        for process, _, _ in self.running.values():
            process.terminate()
        for process, _, _ in self.running.values():
            process.join(60)
            if process.is_alive():
                process.kill()


def run_jobs(
    plan: Callable[[], list[J]],
    work: Callable[..., None],
    arguments: Callable[[J, int | None, float], tuple[Any, ...]],
    is_finished: Callable[[J], bool],
    places: list[int | None],
    context: Any,
    end: float,
    margin: float = 0.0,
    collect: Callable[[], None] = lambda: None,
    poll: float = 0.5,
) -> Outcome:
    """Runs jobs, each in a process of its own.

    Args:
        plan: The jobs that are left and can be done now, the first to begin first; asked again and again.
        work: What a process calls; exit status 0 of a job that is not finished means that it can go on another time.
        arguments: Its arguments from the job, the number of the GPU (``None``: the CPU) and the value of
            ``time.time()`` before which it is to stop by itself.
        is_finished: Whether a job is.
        places: What :func:`slots` returned. A GPU that fails a job and then fails at the smallest sum loses its place,
            and the job begins again in another.
        context: Of multiprocessing.
        end: Value of ``time.monotonic()`` at which what still runs is ended.
        margin: Seconds before the end after which nothing begins and jobs are asked to stop.
        collect: Called after a job has finished, and at the end.
        poll: Seconds between two looks at the processes.

    Returns:
        What failed, and what is left.
    """
    run = _Run(places, context, is_finished)
    outcome = run.outcome
    deadline = time.time() + end - margin - time.monotonic()
    try:
        while True:
            if run.settle():
                collect()
            left = [j for j in plan() if j.folder not in {*run.running, *outcome.failed, *outcome.paused}]
            # a job that has stopped by itself says that the time is nearly up: what would begin now came to little
            begins = time.monotonic() < end - margin and not outcome.paused
            while run.free and left and begins:
                job, device = left.pop(0), run.free.pop(0)
                process = context.Process(target=work, args=arguments(job, device, deadline))
                process.start()
                run.running[job.folder] = (process, job, device)
            late = [*run.running, *(job.folder for job in left)]
            if (run.running and time.monotonic() >= end) or (late and not run.running and not begins):
                print(f"time is up; run again for {', '.join(late)} and what follows", flush=True)
                outcome.is_late = True
                break
            if not run.running:
                outcome.stranded = [job.folder for job in left]
                break
            time.sleep(poll)
    finally:
        run.stop()
        collect()
    return outcome
