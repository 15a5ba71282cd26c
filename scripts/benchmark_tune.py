"""Times the candidate configurations of every kernel at the shapes of the table: ``benchmark.py --tune true``.

The kernels run in a process of its own, which is started anew behind a configuration that breaks the device or hangs.
"""

import gc
import math
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from benchmark_children import At, Reporter, broken, leave, supervised
from benchmark_jobs import Work
from benchmark_kernels import Kernel, Spec, prepare, specs, tensors, tolerance
from benchmark_timing import Limits, captured, distance, measure, settings

from sciml_monarch.errors import InputError
from sciml_monarch.monarch.kernels.backend import triton_usable

SILENCE = 60.0  # seconds for one configuration, which is compiled and run a few dozen times
WRITE_EVERY = 1.0
LIMITS = Limits(30, 0.5)  # of a configuration; there are many


def tune(
    device: torch.device,
    works: list[Work],
    limits: Limits,
    only: list[str] | None,
    deadline: float,
    n_processes: int,
    seconds_per_kernel: float,
    results: dict[str, Any],
    write: Callable[[], None],
) -> None:
    """Fills ``results["kernels"]``, a configuration at a time, and ``results["plans"]`` of linear layers.

    Args:
        device: A GPU; on a CPU, Triton's interpreter shows whether configurations run.
        works: Shapes.
        limits: How long a configuration is measured, at most :data:`LIMITS`.
        only: Words of which a kernel's name or precision has to contain one.
        deadline: On the clock of ``time.time``; nothing is begun later.
        n_processes: Processes that compile at a time, before anything is timed, in at most half of the time.
        seconds_per_kernel: After which no further configuration of a kernel is begun.
        results: What is written.
        write: Writes it.

    Raises:
        InputError: Triton cannot run here, or no kernel has such a name.
    """
    if not triton_usable(torch.empty(0, device=device)):
        raise InputError("tuning needs Triton and a CUDA device")
    wanted = specs(works, only)
    if device.type == "cpu":  # Triton's interpreter gets products of bfloat16 wrong
        wanted = [s._replace(dtype=torch.float16) if s.dtype == torch.bfloat16 else s for s in wanted]
    if not wanted:
        raise InputError(f"only {only}: no kernel has such a name; the first is {specs(works, None)[0].name}")
    limits = Limits(min(limits.repeats, LIMITS.repeats), min(limits.seconds, LIMITS.seconds))
    if n_processes > 1:
        _compile_all(device, wanted, deadline, n_processes, seconds_per_kernel)
    entries: list[dict[str, Any]] = [
        {"kernel": spec.name, "precision": spec.precision, "status": "not begun within the time limit",
         "chosen": None, "chosen_milliseconds": None, "best": None, "configurations": []}
        for spec in wanted
    ]  # fmt: skip
    results["kernels"] = entries
    best: dict[int, Any] = {}
    written, previous = time.time(), 0
    arguments = str(device), wanted, limits, deadline, seconds_per_kernel
    for at, found in supervised(measure_from, arguments, deadline, SILENCE):
        if at[0] != previous:
            _show(entries[previous])
        previous = at[0]
        config = found.pop("config", None)
        if _enter(entries[at[0]], at, found):
            best[at[0]] = config
        if time.time() - written > WRITE_EVERY:
            results["plans"] = _plans(wanted, entries, best)
            write()
            written = time.time()
    _show(entries[previous])
    results["plans"] = _plans(wanted, entries, best)
    write()


def _enter(entry: dict[str, Any], at: At, found: dict[str, Any]) -> bool:
    """Notes what was found; whether it is the best so far."""
    if at[1] < 0 or "stopped" in found:  # of the kernel, not of a configuration
        entry["status"] = found.get("stopped", found.get("status", "not finished within the time limit"))
        entry |= {key: value for key, value in found.items() if key in ("chosen", "n_candidates")}
        return False
    entry["configurations"].append({"number": at[1]} | found)
    if at[1] == 0:
        entry["chosen_milliseconds"] = found.get("milliseconds")
    if at[1] + 1 == entry.get("n_candidates"):
        entry["status"] = "finished"
    if not found.get("right") or (entry["best"] and entry["best"]["milliseconds"] <= found["milliseconds"]):
        return False
    entry["best"] = entry["configurations"][-1]
    return True


def _show(entry: dict[str, Any]) -> None:
    best, chosen = entry["best"], entry["chosen_milliseconds"]
    line = entry["status"]
    if best is not None:
        line = f"{best['milliseconds']:.4f} ms with {best['configuration']}"
        line += "; the chosen one failed" if chosen is None else f"; chosen now {chosen:.4f} ms"
    n_failed = sum(not row.get("right") for row in entry["configurations"])
    line += f"; {len(entry['configurations'])} tried" + (f", {n_failed} of them failed or wrong" if n_failed else "")
    print(f"{entry['kernel']:80}{entry['precision']:9}{line}", flush=True)


def _plans(wanted: list[Spec], entries: list[dict[str, Any]], best: dict[int, Any]) -> list[dict[str, Any]]:
    """Puts the best of each product of a linear layer together; the products act on each other by the order alone."""
    found = []
    for work, order in dict.fromkeys((s.work, s.variant) for s in wanted if s.work.kind == "linear"):
        parts = {
            spec.part: (best[i], entries[i]["best"]["milliseconds"])
            for i, spec in enumerate(wanted)
            if (spec.work, spec.variant) == (work, order) and i in best
        }
        if not parts.keys() >= {"first", "second", "second_back", "first_back", "first_weight", "second_weight"}:
            continue
        plan = parts["first"][0]._replace(**{
            name: getattr(config, name) for name, (config, _) in parts.items() if name != "fused"
        })  # fmt: skip
        forward = parts["first"][1] + parts["second"][1]
        backward = sum(parts[name][1] for name in ("second_back", "first_back", "first_weight", "second_weight"))
        if "fused" in parts and parts["fused"][1] < forward:
            fused, forward = parts["fused"]
            plan = plan._replace(fused=fused.fused, first=fused.first, second=fused.second)
        found.append({
            "work": work.name, "regrouped": order, "plan": repr(plan), "packed": plan.pack(),
            "forward_milliseconds": forward, "products_backward_milliseconds": backward,
        })  # fmt: skip
    return found


def measure_from(
    connection: Connection, start: At, device: str, wanted: list[Spec], limits: Limits, deadline: float, seconds: float
) -> None:
    """Measures from a configuration of a kernel on; runs in a child.

    Args:
        connection: To the parent.
        start: Kernel and configuration.
        device: Where.
        wanted: All kernels.
        limits: How long a configuration is measured.
        deadline: On the clock of ``time.time``.
        seconds: After which no further configuration of a kernel is begun.
    """
    reporter, where = Reporter(connection), torch.device(device)
    for i, spec in enumerate(wanted):
        if i < start[0]:
            continue
        if time.time() > deadline:
            break
        reporter.begun(i, -1)
        try:
            with settings(spec.precision, "triton"):
                first = max(0, start[1]) if i == start[0] else 0
                _measure_kernel(reporter, spec, i, first, where, limits, deadline, seconds)
        except Exception as error:  # of what is prepared: the next kernel may be well
            reporter.result(status=_failed(error))
            if broken(where):
                leave()
        if where.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
    reporter.finished()


def _measure_kernel(
    reporter: Reporter, spec: Spec, i: int, first: int, device: torch.device, limits: Limits, deadline: float,
    seconds: float,
) -> None:  # fmt: skip
    kernel = prepare(spec, device)
    exact = list(kernel.exact())
    if not kernel.configs:
        reporter.result(status="no configuration", n_candidates=0)
        return
    reporter.result(chosen=repr(kernel.configs[0]), n_candidates=len(kernel.configs))
    begin = time.time()
    for j, config in enumerate(kernel.configs):
        if j < first:
            continue
        if time.time() > deadline or (j > first and time.time() - begin > seconds):
            reporter.begun(i, j)
            reporter.result(stopped=f"{j} of {len(kernel.configs)} configurations within the time limit")
            return
        reporter.begun(i, j)
        row: dict[str, Any] = {"configuration": repr(config), "config": config}
        try:
            found = kernel.check(config)
            errors = [distance(a, b) for a, b in zip(found, exact, strict=True)]
            error = max(errors) if all(map(math.isfinite, errors)) else None
            row |= {"error": error, "right": error is not None and error <= tolerance(spec)}
            del found

            def run(config: Any = config, kernel: Kernel = kernel) -> None:
                kernel.run(config)

            row["milliseconds"] = 1e3 * measure(captured(run) if device.type == "cuda" else run, device, limits).median
        except Exception as error:  # more shared memory than there is, for example
            row |= {"status": _failed(error), "right": False}
        why = broken(device)
        if why:
            row |= {"status": f"failed: {why}", "right": False}
        reporter.result(**row)
        if why:
            leave()


def _failed(error: Exception) -> str:
    return f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _compile_all(
    device: torch.device, wanted: list[Spec], deadline: float, n_processes: int, seconds_per_kernel: float
) -> None:
    context = multiprocessing.get_context("spawn")
    now = time.time()
    end = now + (deadline - now) / 2
    workers = [
        context.Process(
            target=_compile, args=(str(device), wanted, end, seconds_per_kernel, i, n_processes), daemon=True
        )
        for i in range(n_processes)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(None if math.isinf(end) else max(0.0, end + SILENCE - time.time()))
        if worker.is_alive():
            worker.kill()


def _compile(device: str, wanted: list[Spec], end: float, seconds: float, index: int, n: int) -> None:
    """Runs one in ``n`` configurations once, in a process of its own, so that Triton finds all of them compiled."""
    where = torch.device(device)
    for spec in wanted:
        begin = time.time()
        with settings(spec.precision, "triton"):
            try:
                kernel = prepare(spec, where)
            except Exception:
                if broken(where):
                    leave()
                continue  # said where it is measured
            for config in kernel.configs[index::n]:
                if time.time() > min(end, begin + seconds):
                    break
                try:
                    tensors(kernel.check(config))
                except Exception:
                    if broken(where):
                        leave()
