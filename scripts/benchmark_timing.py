"""How ``benchmark.py`` measures: time of one run with cold caches, rates of the device, peak of memory."""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sciml_monarch.monarch.kernels.backend import Backend, use_backend

Precision = Literal["highest", "high", "medium"]
FLUSH_BYTES = 256 << 20  # five times the second-level cache of an H200
SHORTEST = 0.02  # seconds on a CPU: what is faster is run so often in a row that the clock does not count
N_WARM_UP = 3


class Limits(NamedTuple):
    """How long a row is measured."""

    repeats: int
    seconds: float


class Times(NamedTuple):
    """Seconds of a run: median, quartiles, and how many were timed."""

    median: float
    lower: float
    upper: float
    n_runs: int


class Rates(NamedTuple):
    """What the device does at best, measured: bytes a second of a copy, operations a second of large products."""

    bandwidth: float
    fp32: float
    tf32: float
    bf16: float

    def operations(self, precision: Precision, dtype: torch.dtype, tensor_cores: bool) -> float:
        """Operations a second for work of a precision; three TF32 products make one of float32's accuracy."""
        if dtype != torch.float32:
            return self.bf16
        if not tensor_cores or precision == "highest":
            return max(self.fp32, self.tf32 / 3) if tensor_cores else self.fp32
        return self.tf32 if precision == "high" else self.bf16


@contextmanager
def settings(precision: Precision, backend: Backend) -> Iterator[None]:
    """Sets what decides how products are computed, and restores it."""
    before, before_cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = precision != "highest"
    try:
        with use_backend(backend):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = before_cudnn


def captured(run: Callable[[], Any]) -> Callable[[], None]:
    """Records what ``run`` starts on the GPU; calling the result starts all of it at once."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(N_WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()

    def replay(kept: Callable[[], Any] = run) -> None:
        # the graph reads and writes what only ``run`` may hold: the moments of an optimiser
        graph.replay()

    return replay


def measure(run: Callable[[], Any], device: torch.device, limits: Limits) -> Times:
    """Times single runs: on a GPU between events, the cache emptied before each."""
    for _ in range(N_WARM_UP if device.type == "cuda" else 1):
        run()
    seconds = _on_gpu(run, device, limits) if device.type == "cuda" else _on_cpu(run, limits)
    cuts = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
    return Times(statistics.median(seconds), cuts[0], cuts[2], len(seconds))


def _on_gpu(run: Callable[[], Any], device: torch.device, limits: Limits) -> list[float]:
    written, read = (torch.zeros(FLUSH_BYTES // 4, device=device) for _ in range(2))
    seconds: list[float] = []
    begin = time.perf_counter()
    while len(seconds) < limits.repeats and (not seconds or time.perf_counter() - begin < limits.seconds):
        events = []
        for _ in range(min(10, limits.repeats - len(seconds))):
            # Both last long enough for the processor to be ahead of the GPU. What is written would have to be written
            # back while the run is timed, were it not for what is read after it.
            written.zero_()
            read.amax()
            events.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
            events[-1][0].record()
            run()
            events[-1][1].record()
        torch.cuda.synchronize(device)
        seconds += [1e-3 * first.elapsed_time(last) for first, last in events]
    return seconds


def _on_cpu(run: Callable[[], Any], limits: Limits) -> list[float]:
    def once(n: int) -> float:
        begin = time.perf_counter()
        for _ in range(n):
            run()
        return (time.perf_counter() - begin) / n

    n = 1 if limits.repeats == 1 else max(1, math.ceil(SHORTEST / max(once(1), 1e-6)))
    seconds: list[float] = []
    begin = time.perf_counter()
    while len(seconds) < limits.repeats and (not seconds or time.perf_counter() - begin < limits.seconds):
        seconds.append(once(n))
    return seconds


def _copy(n_bytes: int, device: torch.device) -> Callable[[], Any]:
    source = torch.ones(n_bytes // 4, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def rates(device: torch.device, quick: bool) -> Rates:
    """Measures the device: a copy of 1 GiB and square products, of less on a CPU."""
    on_gpu = device.type == "cuda"
    n, n_bytes = (8192, 1 << 30) if on_gpu else (256, 1 << 24) if quick else (2048, 1 << 28)
    limits = Limits(20 if on_gpu else 1 if quick else 5, 2.0)
    bandwidth = 2 * n_bytes / measure(_copy(n_bytes, device), device, limits).median

    def product(dtype: torch.dtype, precision: Precision) -> float:
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        with settings(precision, "torch"):
            return 2 * n**3 / measure(lambda: a @ b, device, limits).median

    return Rates(
        bandwidth,
        product(torch.float32, "highest"),
        product(torch.float32, "high"),
        product(torch.bfloat16, "highest"),
    )


def peak_memory(run: Callable[[], Any], device: torch.device, before: int) -> int | None:
    """Bytes in use at most while ``run`` runs, beyond ``before``; ``None`` on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def distance(found: Tensor, exact: Tensor) -> float:
    """Relative error in the 2-norm."""
    difference = (found.to(exact.dtype) - exact).norm()
    return float(difference / exact.norm().clamp(min=torch.finfo(torch.float64).tiny))


def memory_in_use(device: torch.device) -> int:
    """Bytes of the GPU that tensors take."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
