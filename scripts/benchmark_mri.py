"""Time and memory of MRI reconstruction, a slice at a time: ``python scripts/benchmark_mri.py --device cuda``.

This package against fastMRI, deepinv, mrpro and sigpy, as far as these are installed, on the same slice of 15 coils,
and with the same weights where the network is the same. On a CPU each row runs in a process of its own, so that its
peak of memory is its own. Each row carries its error against a reference: the same in float64 or the same network of
another package.
"""

import ctypes
import gc
import importlib
import json
import math
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
import warnings
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmark_mri_methods import METHODS, OURS, SMALL, Build, Job, Method, Scene, Sizes, UnavailableError, make_scene
from torch import Tensor

from sciml_monarch.devices import choose_device
from sciml_monarch.errors import InputError
from sciml_monarch.files import replacing
from sciml_monarch.provenance import provenance

SHAPES, N_COILS = ((320, 320), (640, 372)), 15
QUICK_SHAPES, N_QUICK_COILS = ((48, 40),), 4
SMALL_SCENE = ((96, 80), 6)  # for float64: in float32 the gradients of an untrained VarNet have two digits
SHORTEST = 0.02  # seconds: what is faster is run so often in a row that clock and waiting do not count


class Limits(NamedTuple):
    """How long a row is measured."""

    repeats: int
    seconds: float
    n_threads: int


def measure(method: Method, scene: Scene, sizes: Sizes, limits: Limits, scratch: Path) -> dict[str, Any]:
    """Runs a method; returns its figures and leaves its result in a file."""
    device = scene.kspace.device
    for module in method.modules:
        importlib.import_module(module)
    # a first run on next to nothing, so that code which is loaded or compiled on demand counts nowhere
    method.build(make_scene(QUICK_SHAPES[0], N_QUICK_COILS).to(device, torch.complex64), SMALL).run()
    before = _begin_memory(device)
    torch.manual_seed(0)
    job = method.build(scene, sizes)
    first, later, found = _time(job, limits, device)
    runs = later or [first]
    row: dict[str, Any] = {
        "milliseconds": 1e3 * statistics.median(run.wall for run in runs),
        "fastest": 1e3 * min(run.wall for run in runs),
        "slowest": 1e3 * max(run.wall for run in runs),
        # what others do on the machine lengthens this less
        "cpu_milliseconds": None if device.type == "cuda" else 1e3 * statistics.median(run.cpu for run in runs),
        "n_runs": len(later),  # 0: nothing but the first run, in which memory is fetched
        "first": 1e3 * first.wall,
        "peak_memory_bytes": None if device.type == "cuda" and method.package == "sigpy" else _peak(device) - before,
    }
    if job.net is not None:
        row["parameters"] = sum((1 + p.is_complex()) * p.numel() for p in job.net.parameters())
    if device.type == "cuda":
        found = _run_precisely(job)
    torch.save(_result(job, found), scratch / "result.pt")
    return row


class Seconds(NamedTuple):
    """How long a run lasted, by the clock and in time of this process on all cores."""

    wall: float
    cpu: float


def _time(job: Job, limits: Limits, device: torch.device) -> tuple[Seconds, list[Seconds], Any]:
    """The first run, those after it, and what the last one returned."""
    found: Any = None

    def seconds(n: int) -> Seconds:
        nonlocal found
        found = None
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(n):
            found = job.run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return Seconds((time.perf_counter() - wall) / n, (time.process_time() - cpu) / n)

    if device.type == "cuda":
        seconds(1)  # libraries make their plans for a size when they first see it
    begin = time.perf_counter()
    first = seconds(1)
    n = max(1, math.ceil(SHORTEST / max(seconds(1).wall, 1e-6))) if first.wall < SHORTEST * 10 else 1
    later: list[Seconds] = []
    while len(later) < limits.repeats:
        if time.perf_counter() - begin + n * (later[-1] if later else first).wall > limits.seconds:
            break
        later.append(seconds(n))
    return first, later, found


def _run_precisely(job: Job) -> Any:
    """A run without TF32 in convolutions, unlike what is timed: its rounding would hide mistakes."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return job.run()


def _result(job: Job, found: Any) -> Tensor:
    return (job.result(found) if job.result else found).detach().cpu()


def _begin_memory(device: torch.device) -> int:
    """Bytes in use, from which growth counts; the peak is forgotten."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with suppress(AttributeError, OSError):  # glibc: what is free is given back, so that taking it again counts
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):  # Linux: the peak becomes what is in use
        Path("/proc/self/clear_refs").write_text("5")
    return _from_status("VmRSS")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _from_status("VmHWM")


def _from_status(field: str) -> int:
    """A size in bytes from Linux's account of this process; elsewhere its peak."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _reference(build: Build, scene: Scene, sizes: Sizes) -> Tensor:
    """The result of a method in float64 on the device of the scene."""
    torch.manual_seed(0)
    job = build(scene.to(scene.kspace.device, torch.complex128), sizes)
    return _result(job, job.run())


@cache
def _error_in_float64(method: Method, other: Method, device: torch.device, sizes: Sizes) -> float:
    """How two networks of the same weights differ where rounding plays no part."""
    scene = make_scene(*SMALL_SCENE).to(device, torch.complex128)
    return _error(_reference(method.build, scene, sizes), _reference(other.build, scene, sizes))


def _error(result: Tensor, reference: Tensor) -> float:
    return ((result - reference.reshape(result.shape)).norm() / reference.norm()).item()


def _row(key: tuple[str, str], scene_file: Path, sizes: Sizes, limits: Limits, device: str, scratch: Path) -> None:
    """Measures a row and writes it to ``scratch``; runs in a process of its own on a CPU."""
    torch.set_num_threads(limits.n_threads)
    warnings.simplefilter("ignore")  # of peers
    method = _find(key)
    scene = Scene(*torch.load(scene_file)).to(torch.device(device), torch.complex64)
    try:
        row = measure(method, scene, sizes, limits, scratch)
    except UnavailableError as error:
        row = {"status": str(error)}
    except ModuleNotFoundError as error:
        row = {"status": "not installed", "reason": str(error)}
    except Exception as error:  # of a peer, whose row then says so; the others are measured
        if method.package == OURS:
            raise
        row = {"status": f"failed: {' '.join(str(error).split())[:200]}"}
    (scratch / "row.json").write_text(json.dumps({"status": "measured", **row}))


def _find(key: tuple[str, str]) -> Method:
    return next(m for m in METHODS if (m.name, m.package) == key)


class Errors:
    """Errors of results against references, which are computed once and in this process."""

    def __init__(self, scene: Scene, sizes: Sizes) -> None:
        self.scene, self.sizes = scene, sizes
        self.results: dict[tuple[str, str], Tensor] = {}
        self._exact: dict[Build, Tensor] = {}

    def of(self, method: Method, result: Tensor) -> dict[str, Any]:
        """The entries of a row that say how well its result agrees with what."""
        self.results[method.name, method.package] = result
        if method.exact is not None:
            if method.exact not in self._exact:
                self._exact[method.exact] = _reference(method.exact, self.scene, self.sizes)
            return {"relative_error": _error(result, self._exact[method.exact]), "reference": "float64"}
        if method.same_as is None or method.same_as not in self.results:
            return {"relative_error": None, "reference": None}
        return {
            "relative_error": _error(result, self.results[method.same_as]),
            "relative_error_in_float64": _error_in_float64(
                method, _find(method.same_as), self.scene.kspace.device, self.sizes
            ),
            "reference": f"{method.same_as[0]} by {method.same_as[1]}, same weights",
        }


def benchmark(
    out: Path = Path("results/benchmark_mri.json"),
    device: str = "auto",
    repeats: int = 5,
    only: list[str] | None = None,
    quick: bool = False,
    n_threads: int = 1,
    seconds_per_row: float = 20.0,
    time_limit: float = math.inf,
) -> None:
    """Times every method on a slice of 15 coils of 320 x 320 and of 640 x 372 points.

    Args:
        out: JSON file for the results, written after every row.
        device: auto, cpu or cuda.
        repeats: Runs that are timed after a first one; fewer where they would last longer than ``seconds_per_row``.
        only: Measure only rows in whose name or package one of these words occurs.
        quick: Tiny slice, tiny networks, one process: does every row run?
        n_threads: Threads of a CPU.
        seconds_per_row: Seconds after which a row is not run again.
        time_limit: Seconds after which no row is begun.

    Raises:
        InputError: Nothing is left to measure, or there is no such device.
    """
    begin = time.perf_counter()
    where = choose_device(device)
    methods = [m for m in METHODS if only is None or any(word in f"{m.name} {m.package}" for word in only)]
    if not methods:
        raise InputError(
            f"only {only}: no row has such a name; rows are {', '.join(dict.fromkeys(m.name for m in METHODS))}"
        )
    for name in ("OMP", "MKL", "OPENBLAS", "NUMBA"):  # read by the processes that are started from here on
        os.environ[f"{name}_NUM_THREADS"] = str(n_threads)
    torch.set_num_threads(n_threads)
    limits = Limits(1 if quick else repeats, seconds_per_row, n_threads)
    sizes, n_coils = (SMALL, N_QUICK_COILS) if quick else (Sizes(), N_COILS)
    isolated = where.type == "cpu" and not quick
    rows: list[dict[str, Any]] = []
    results: dict[str, Any] = {
        **provenance(where),
        "cores": os.cpu_count(),
        "tf32_convolutions": where.type == "cuda" and torch.backends.cudnn.allow_tf32,
        "packages": _versions(),
        "n_coils": n_coils,
        "processes": "one a row" if isolated else "one for all",
        "rows": rows,
    }
    print(f"{'method':36}{'package':15}{'ms':>10}{'fastest':>10}{'slowest':>10}{'CPU':>10}{'MB':>9}{'error':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for shape in QUICK_SHAPES if quick else SHAPES:
            scene = make_scene(shape, n_coils)
            scene_file = Path(folder) / "scene.pt"
            torch.save((scene.kspace, scene.mask, scene.maps), scene_file)
            errors = Errors(scene.to(where, torch.complex64), sizes)
            for method in methods:
                if time.perf_counter() - begin > time_limit:
                    row: dict[str, Any] = {"status": f"not begun within {time_limit:g} s"}
                else:
                    arguments = ((method.name, method.package), scene_file, sizes, limits, str(where), Path(folder))
                    row = run_row(arguments, isolated)
                    if row["status"] == "measured":
                        row |= errors.of(method, torch.load(Path(folder) / "result.pt"))
                rows.append({"method": method.name, "package": method.package, "shape": shape, **row})
                _show(rows[-1])
                with replacing(out) as temporary:
                    temporary.write_text(json.dumps(results, indent=2) + "\n")


def run_row(arguments: tuple[Any, ...], isolated: bool) -> dict[str, Any]:
    """A row, measured here or in a process of its own, with the load of the machine before."""
    found = arguments[-1] / "row.json"
    found.unlink(missing_ok=True)
    load = os.getloadavg()[0]
    if isolated:
        process = multiprocessing.get_context("spawn").Process(target=_row, args=arguments)
        process.start()
        process.join()
        if process.exitcode:
            return {"status": f"failed: its process ended with status {process.exitcode}"}
    else:
        _row(*arguments)
    row: dict[str, Any] = json.loads(found.read_text())
    return row | {"load_average_before": load}


def _versions() -> dict[str, str]:
    """Versions of what is installed of this package and its peers."""
    found = {}
    for name in ("fastmri", "deepinv", "mrpro", "sigpy", "numpy"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _show(row: dict[str, Any]) -> None:
    line = f"{row['method']:36}{row['package']:15}"
    if row["status"] != "measured":
        print(f"{line}{row['status']}", flush=True)
        return
    line += f"{row['milliseconds']:10.2f}{row['fastest']:10.2f}{row['slowest']:10.2f}"
    cpu, memory, error = row["cpu_milliseconds"], row["peak_memory_bytes"], row["relative_error"]
    line += f"{'-':>10}" if cpu is None else f"{cpu:10.2f}"
    line += f"{'-' if memory is None else round(memory / 1e6):>9}"
    print(line + (f"{'-':>10}" if error is None else f"{error:10.1e}"), flush=True)


if __name__ == "__main__":
    from sciml_monarch.cli import call, guarded

    raise SystemExit(guarded("benchmark_mri", lambda: call(benchmark, sys.argv[1:])))
