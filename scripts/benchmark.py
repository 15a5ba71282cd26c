"""Speed of Monarch layers against FFTs and dense layers: ``python scripts/benchmark.py --device cuda``.

Each row is one method on one piece of work: milliseconds (median and quartiles, caches cold), bytes that have to move
and the share of the measured copy bandwidth that this makes, speed-up over the first method of the work, how near it
comes to its own ceiling (bytes at the copy bandwidth or operations at the rate of large products, whichever takes
longer), peak of memory, and the error against the same method's family in float64: the largest relative error among
results and gradients. A picture shows time against grid and modes.
"""

import gc
import json
import math
import os
import sys
import time
import warnings
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from benchmark_cases import Method, methods, works
from benchmark_jobs import Build, Work
from benchmark_picture import draw
from benchmark_timing import Limits, Rates, captured, measure, memory_in_use, peak_memory, rates, settings
from benchmark_tune import tune as tune_kernels
from torch import Tensor

from sciml_monarch.devices import choose_device
from sciml_monarch.errors import InputError
from sciml_monarch.files import replacing
from sciml_monarch.provenance import provenance

QUICK = Limits(1, 0.0)


class Benchmark:
    """A run: the device, what it can do, and the float64 results that several rows are compared with."""

    def __init__(self, device: torch.device, limits: Limits, found: Rates) -> None:
        self.device, self.limits, self.rates = device, limits, found
        self._exact: dict[tuple[Work, Build], list[Tensor]] = {}

    def row(self, work: Work, method: Method) -> dict[str, Any]:
        """Measures a method, or says why not."""
        if method.backend == "triton" and self.device.type != "cuda":
            return {"status": "needs a CUDA device"}
        if method.compiled and self.limits == QUICK:
            return {"status": "left out of a quick run"}
        try:
            return {"status": "measured", **self._measured(work, method)}
        except ModuleNotFoundError as error:
            return {"status": "not installed", "reason": str(error)}
        except Exception as error:  # the row says so, the others are measured
            return {"status": f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"}

    def forget(self) -> None:
        """Frees the float64 results of a work that is done."""
        self._exact.clear()

    def _measured(self, work: Work, method: Method) -> dict[str, Any]:
        exact = self._exactly(work, method.build)
        torch.compiler.reset()
        _collect(self.device)
        before = memory_in_use(self.device)
        with settings(method.precision, method.backend):
            job = method.build(work, self.device, work.dtype, method.compiled)
            # before anything is timed: an optimiser's step changes the weights
            error = max(_distance(a.detach(), b) for a, b in zip(job.check(), exact, strict=True))
            job.run()
            memory = peak_memory(job.run, self.device, before)
            graph = work.graph and self.device.type == "cuda"
            times = measure(captured(job.run) if graph else job.run, self.device, self.limits)
        cost = method.cost
        by_bytes = cost.bytes / self.rates.bandwidth
        by_operations = cost.operations / self.rates.operations(method.precision, work.dtype, cost.tensor_cores)
        ceiling = max(by_bytes, by_operations)
        return {
            "milliseconds": 1e3 * times.median,
            "quartiles": [1e3 * times.lower, 1e3 * times.upper],
            "n_runs": times.n_runs,
            "bytes": cost.bytes,
            "operations": cost.operations,
            "of_copy_bandwidth": by_bytes / times.median,
            "ceiling_milliseconds": 1e3 * ceiling,
            "bound_by": "bytes" if by_bytes >= by_operations else "operations",
            "times_ceiling": times.median / ceiling,
            "peak_memory_bytes": memory,
            "relative_error": error,
        }

    def _exactly(self, work: Work, build: Build) -> list[Tensor]:
        """Results and gradients in float64, computed once for all precisions."""
        if (work, build) not in self._exact:
            with settings("highest", "torch"):
                exact = build(work, self.device, torch.float64, False).check()
            self._exact[work, build] = [t.detach() for t in exact]
        return self._exact[work, build]


def _distance(found: Tensor, exact: Tensor) -> float:
    difference = (found.to(exact.dtype) - exact).norm()
    return float(difference / exact.norm().clamp(min=torch.finfo(torch.float64).tiny))


def _collect(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def benchmark(
    out: Path = Path("results/benchmark.json"),
    device: str = "auto",
    only: list[str] | None = None,
    skip: list[str] | None = None,
    quick: bool = False,
    tune: bool = False,
    n_processes: int = 1,
    n_threads: int | None = None,
    repeats: int = 100,
    seconds_per_row: float = 2.0,
    time_limit: float = math.inf,
) -> None:
    """Measures every method on every piece of work, and draws a picture of the sweep beside the results.

    Args:
        out: JSON file for the results, written after every row; the picture lies beside it.
        device: auto, cpu or cuda.
        only: Measure only rows in whose work, method or package one of these words occurs.
        skip: Leave out rows in which one of these words occurs, "compiled" for example.
        quick: Tiny works, one run each: does every row run?
        tune: Instead, time every candidate configuration of every kernel at the shapes of the table and write the
            best.
        n_processes: Processes that compile at a time when tuning; a GPU machine has cores to spare.
        n_threads: Threads of a CPU; torch's choice if not given.
        repeats: Runs of a row.
        seconds_per_row: Seconds after which a row is not run again.
        time_limit: Seconds after which no row is begun.

    Raises:
        InputError: Nothing is left to measure, or there is no such device.
    """
    begin = time.perf_counter()
    where = choose_device(device)
    on_gpu = where.type == "cuda"
    if n_threads is not None:
        torch.set_num_threads(n_threads)
    limits = QUICK if quick else Limits(repeats, seconds_per_row)
    warnings.simplefilter("ignore")  # of peers and compilers
    results: dict[str, Any] = {
        **provenance(where),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": _versions(),
        "cuda": torch.version.cuda,
        "load_average": os.getloadavg()[0],
    }

    def write() -> None:
        with replacing(out) as temporary:
            temporary.write_text(json.dumps(results, indent=2) + "\n")

    if tune:
        tune_kernels(where, works(on_gpu, quick), limits, only, begin + time_limit, n_processes, results, write)
        return
    rows = [
        (work, method)
        for work in works(on_gpu, quick)
        for method in methods(work, on_gpu)
        if (only is None or _occurs(only, work, method)) and not _occurs(skip or [], work, method)
    ]
    if not rows:
        names = dict.fromkeys(m.name for w in works(on_gpu, quick) for m in methods(w, on_gpu))
        raise InputError(f"only {only}: no row has such a name; methods are {', '.join(names)}")
    found = rates(where, quick)
    results["measured_rates"] = {"bytes_per_second": found.bandwidth} | {
        f"{name}_operations_per_second": getattr(found, name) for name in ("fp32", "tf32", "bf16")
    }
    results["rows"] = []
    run = Benchmark(where, limits, found)
    print(f"{results['device']}, copy {found.bandwidth / 1e9:.0f} GB/s, TF32 {found.tf32 / 1e12:.1f} TFLOP/s")
    previous: Work | None = None
    baseline: float | None = None
    for work, method in rows:
        if work != previous:
            previous, baseline = work, None
            run.forget()
            print(f"\n{work.name}" + (f"; to reach: {work.target}" if work.target and on_gpu else ""))
            print(_HEADER)
        if time.perf_counter() - begin > time_limit:
            row: dict[str, Any] = {"status": f"not begun within {time_limit:g} s"}
        else:
            row = run.row(work, method)
        if row["status"] == "measured":
            if baseline is None and method == methods(work, on_gpu)[0]:
                baseline = row["milliseconds"]
            row["speed_up"] = baseline / row["milliseconds"] if baseline else None
        results["rows"].append(_described(work, method) | row)
        _show(results["rows"][-1])
        write()
    draw(results, out.with_suffix(".png"))


def _occurs(words: list[str], work: Work, method: Method) -> bool:
    return any(word in f"{work.name} {method.name} {method.package}" for word in words)


def _described(work: Work, method: Method) -> dict[str, Any]:
    return {
        "work": work.name,
        "kind": work.kind,
        "sizes": work.sizes,
        "backward": work.backward,
        "cuda_graph": work.graph,
        "dtype": str(work.dtype)[6:],
        "target": work.target,
        "sweep": work.sweep,
        "method": method.name,
        "package": method.package,
        "precision": method.precision,
        "compiled": method.compiled,
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in ("triton", "neuraloperator", "numpy"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


_HEADER = (
    f"{'method':40}{'precision':>9}{'ms':>10}{'quartiles':>18}{'MB':>8}{'of copy':>9}{'speed-up':>9}"
    f"{'x ceiling':>10}{'peak MB':>9}{'error':>9}"
)


def _show(row: dict[str, Any]) -> None:
    line = f"{row['method']:40}{row['precision']:>9}"
    if row["status"] != "measured":
        print(f"{line}  {row['status']}", flush=True)
        return
    quartiles = "{:.3f}-{:.3f}".format(*row["quartiles"])
    speed_up, memory = row["speed_up"], row["peak_memory_bytes"]
    print(
        f"{line}{row['milliseconds']:10.3f}{quartiles:>18}{row['bytes'] / 1e6:8.0f}{row['of_copy_bandwidth']:9.0%}"
        f"{'-' if speed_up is None else f'{speed_up:.2f}':>9}{row['times_ceiling']:10.2f}"
        f"{'-' if memory is None else round(memory / 1e6):>9}{row['relative_error']:9.1e}",
        flush=True,
    )


if __name__ == "__main__":
    from sciml_monarch.cli import call, guarded

    raise SystemExit(guarded("benchmark", lambda: call(benchmark, sys.argv[1:])))
