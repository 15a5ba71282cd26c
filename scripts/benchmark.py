"""Speed of Monarch layers against FFTs and dense layers: ``python scripts/benchmark.py --device cuda``.

Each row is one method on one piece of work: milliseconds (median and quartiles, caches cold), bytes that have to move
and the share of the measured copy bandwidth that this makes, speed-up over the first method of the work, how near it
comes to its own ceiling (bytes at the copy bandwidth or operations at the rate of large products, whichever takes
longer), peak of memory, and the error against the same method's family in float64: the largest relative error among
results and gradients. A row of our convolution also says how far its result is from neuraloperator's with the same
weights, one of an analysis or a synthesis how many times as long as reading the field it takes. On a GPU a process of
its own measures; where a row ends it or breaks the device, another one goes on behind that row. A picture shows time
against grid and modes.
"""

import gc
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from benchmark_cases import OURS, Method, methods, works
from benchmark_children import At, Reporter, broken, leave, supervised
from benchmark_jobs import Build, Work, neuralop_conv
from benchmark_picture import draw
from benchmark_timing import Limits, Rates, captured, distance, measure, memory_in_use, peak_memory, rates, settings
from benchmark_tune import tune as tune_kernels
from torch import Tensor

from sciml_monarch.devices import choose_device
from sciml_monarch.errors import InputError
from sciml_monarch.files import replacing
from sciml_monarch.monarch.kernels.backend import replayed
from sciml_monarch.provenance import provenance

QUICK = Limits(1, 0.0)
SILENCE = 300.0  # seconds for a row; compiling a network takes long


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
        if self.limits != QUICK:  # which compiles nothing
            torch.compiler.reset()
        _collect(self.device)
        before = memory_in_use(self.device)
        graph = work.graph and self.device.type == "cuda"
        with settings(method.precision, method.backend), replayed() if graph else nullcontext():
            job = method.build(work, self.device, work.dtype, method.compiled)
            # before anything is timed: an optimiser's step changes the weights
            found = [t.detach() for t in job.check()]
            error = max(distance(a, b) for a, b in zip(found, exact, strict=True))
            from_theirs = self._from_neuraloperator(work, method, found[0])
            del found
            job.run()
            memory = peak_memory(job.run, self.device, before)
            times = measure(captured(job.run) if graph else job.run, self.device, self.limits)
        return {
            "milliseconds": 1e3 * times.median,
            "quartiles": [1e3 * times.lower, 1e3 * times.upper],
            "n_runs": times.n_runs,
            **self._compared_with_ceiling(work, method, times.median),
            "peak_memory_bytes": memory,
            "relative_error": _finite(error),
            "difference_from_neuraloperator": from_theirs,
        }

    def _compared_with_ceiling(self, work: Work, method: Method, seconds: float) -> dict[str, Any]:
        cost = method.cost
        if cost is None:
            return {}
        by_bytes = cost.bytes / self.rates.bandwidth
        by_operations = cost.operations / self.rates.operations(method.precision, work.dtype, cost.tensor_cores)
        ceiling = max(by_bytes, by_operations)
        found = {
            "bytes": cost.bytes,
            "operations": cost.operations,
            "of_copy_bandwidth": by_bytes / seconds,
            "ceiling_milliseconds": 1e3 * ceiling,
            "bound_by": "bytes" if by_bytes >= by_operations else "operations",
            "times_ceiling": seconds / ceiling,
        }
        if work.kind in ("analysis", "synthesis"):  # whose field is read, or written, once
            batch, width, n, _ = work.sizes
            field = work.dtype.itemsize * batch * width * n * n
            found["times_reading_the_field"] = seconds * self.rates.bandwidth / field
        return found

    def _from_neuraloperator(self, work: Work, method: Method, found: Tensor) -> float | None:
        """How far our result is from theirs for the same weights; they drop the same modes on even grids only."""
        if work.kind != "spectral" or method.package != OURS or work.sizes[2] % 2 or 2 * work.sizes[3] >= work.sizes[2]:
            return None
        with suppress(ModuleNotFoundError):
            return _finite(distance(found, self._exactly(work, neuralop_conv)[0]))
        return None

    def _exactly(self, work: Work, build: Build) -> list[Tensor]:
        """Results and gradients in float64, computed once for all precisions."""
        if (work, build) not in self._exact:
            with settings("highest", "torch"):
                exact = build(work, self.device, torch.float64, False).check()
            self._exact[work, build] = [t.detach() for t in exact]
        return self._exact[work, build]


def _finite(number: float) -> float | None:
    """JSON has no infinity."""
    return number if math.isfinite(number) else None


def _collect(device: torch.device) -> None:
    """Frees memory of a GPU; that of a CPU is not measured."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def benchmark(
    out: Path = Path("results/benchmark.json"),
    device: str = "auto",
    only: list[str] | None = None,
    skip: list[str] | None = None,
    quick: bool = False,
    tune: bool = False,
    n_processes: int = 1,
    seconds_per_kernel: float = 10.0,
    n_threads: int | None = None,
    repeats: int = 100,
    seconds_per_row: float = 2.0,
    time_limit: float = math.inf,
) -> None:
    """Measures every method on every piece of work, and draws a picture of the sweep beside the results.

    Args:
        out: JSON file for the results, written after every row; the picture lies beside it.
        device: auto, cpu or cuda.
        only: Measure only rows in whose work, method, package or precision one of these words occurs.
        skip: Leave out rows in which one of these words occurs, "compiled" for example.
        quick: Tiny works, one run each: does every row run?
        tune: Instead, time every candidate configuration of every kernel at the shapes of the table and write the
            best.
        n_processes: Processes that compile at a time when tuning; a GPU machine has cores to spare.
        seconds_per_kernel: Seconds after which no further configuration of a kernel is begun when tuning.
        n_threads: Threads of a CPU; torch's choice if not given.
        repeats: Runs of a row.
        seconds_per_row: Seconds after which a row is not run again.
        time_limit: Seconds after which no row is begun.

    Raises:
        InputError: Nothing is left to measure, or there is no such device.
    """
    deadline = time.time() + time_limit
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
            temporary.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")

    if tune:
        table = works(on_gpu, quick)
        tune_kernels(where, table, limits, only, deadline, n_processes, seconds_per_kernel, results, write)
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
    print(f"{results['device']}, copy {found.bandwidth / 1e9:.0f} GB/s, TF32 {found.tf32 / 1e12:.1f} TFLOP/s")
    _collect(where)
    previous: Work | None = None
    baseline: float | None = None
    for (work, method), row in zip(rows, _all_rows(rows, where, limits, found, deadline, time_limit), strict=True):
        if work != previous:
            previous, baseline = work, None
            print(f"\n{work.name}" + (f"; to reach: {work.target}" if work.target and on_gpu else ""))
            print(_HEADER)
        if row["status"] == "measured":
            if baseline is None and method == methods(work, on_gpu)[0]:
                baseline = row["milliseconds"]
            row["speed_up"] = baseline / row["milliseconds"] if baseline else None
        results["rows"].append(_described(work, method) | row)
        _show(results["rows"][-1])
        write()
    draw(results, out.with_suffix(".png"))


def _all_rows(
    rows: list[tuple[Work, Method]], device: torch.device, limits: Limits, found: Rates, deadline: float,
    time_limit: float,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Yields the measured rows in their order, on a GPU from a child process, and says it of those not begun."""
    n_done = 0
    if device.type == "cuda":
        for _, row in supervised(measure_from, (str(device), rows, limits, found, deadline), deadline, SILENCE):
            yield row
            n_done += 1
    else:
        run = Benchmark(device, limits, found)
        for i, (work, method) in enumerate(rows):
            if time.time() > deadline:
                break
            if i and work != rows[i - 1][0]:
                run.forget()
            yield run.row(work, method)
            n_done += 1
    for _ in rows[n_done:]:
        yield {"status": f"not begun within {time_limit:g} s"}


def measure_from(
    connection: Connection, start: At, device: str, rows: list[tuple[Work, Method]], limits: Limits, found: Rates,
    deadline: float,
) -> None:  # fmt: skip
    """Measures from a row on; runs in a child.

    Args:
        connection: To the parent.
        start: The row; its part 1 is what follows it.
        device: Where.
        rows: All rows.
        limits: How long a row is measured.
        found: What the device does at best.
        deadline: On the clock of ``time.time``.
    """
    warnings.simplefilter("ignore")
    reporter, where = Reporter(connection), torch.device(device)
    run = Benchmark(where, limits, found)
    for i, (work, method) in enumerate(rows):
        if i < start[0] + (start[1] > 0):
            continue
        if time.time() > deadline:
            break
        if i and work != rows[i - 1][0]:
            run.forget()
        reporter.begun(i, 0)
        row = run.row(work, method)
        why = broken(where)
        reporter.result(**(row if why is None else {"status": f"failed: {why}"}))
        if why is not None:
            leave()
    reporter.finished()


def _occurs(words: list[str], work: Work, method: Method) -> bool:
    return any(word in f"{work.name} {method.name} {method.package} {method.precision}" for word in words)


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
    f"{'x ceiling':>10}{'x reading':>10}{'peak MB':>9}{'error':>9}{'to theirs':>10}"
)


def _show(row: dict[str, Any]) -> None:
    line = f"{row['method']:40}{row['precision']:>9}"
    if row["status"] != "measured":
        print(f"{line}  {row['status']}", flush=True)
        return
    quartiles = "{:.3f}-{:.3f}".format(*row["quartiles"])
    memory = row["peak_memory_bytes"]
    print(
        f"{line}{row['milliseconds']:10.3f}{quartiles:>18}"
        f"{_or_dash(row.get('bytes', math.nan) / 1e6, '.0f'):>8}{_or_dash(row.get('of_copy_bandwidth'), '.0%'):>9}"
        f"{_or_dash(row['speed_up'], '.2f'):>9}{_or_dash(row.get('times_ceiling'), '.2f'):>10}"
        f"{_or_dash(row.get('times_reading_the_field'), '.2f'):>10}"
        f"{'-' if memory is None else round(memory / 1e6):>9}{_or_dash(row['relative_error'], '.1e'):>9}"
        f"{_or_dash(row['difference_from_neuraloperator'], '.1e'):>10}",
        flush=True,
    )


def _or_dash(number: float | None, shape: str) -> str:
    return "-" if number is None or math.isnan(number) else format(number, shape)


if __name__ == "__main__":
    from sciml_monarch.cli import call, guarded

    raise SystemExit(guarded("benchmark", lambda: call(benchmark, sys.argv[1:])))
