"""Times every candidate configuration of every kernel at the shapes of the table: ``benchmark.py --tune true``."""

import contextlib
import itertools
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from benchmark_jobs import Work
from benchmark_timing import Limits, Precision, captured, measure, settings
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.monarch import MonarchLinear, MonarchTransform
from sciml_monarch.monarch.kernels import linear_plans, spectral_configs, transform_configs
from sciml_monarch.monarch.kernels.backend import dot_precision, triton_usable
from sciml_monarch.monarch.kernels.linear import monarch_linear
from sciml_monarch.monarch.kernels.linear_configs import Sizes
from sciml_monarch.pde import MonarchSpectralConv


class Kernel(NamedTuple):
    """A kernel at a shape."""

    name: str
    configs: Sequence[Any]
    chosen: Any
    run: Callable[[Any], Any]  # with a configuration


def tune(
    device: torch.device,
    works: list[Work],
    limits: Limits,
    only: list[str] | None,
    deadline: float,
    n_processes: int,
    results: dict[str, Any],
    write: Callable[[], None],
) -> None:
    """Fills ``results["kernels"]``, a configuration at a time.

    Args:
        device: A GPU; on a CPU, Triton's interpreter shows whether configurations run.
        works: Shapes.
        limits: How long a configuration is measured.
        only: Words of which a kernel's name has to contain one.
        deadline: On the clock of ``time.perf_counter``; nothing is begun later.
        n_processes: Processes that compile at a time, before anything is timed.
        results: What is written.
        write: Writes it.

    Raises:
        InputError: Triton cannot run here.
    """
    if not triton_usable(torch.empty(0, device=device)):
        raise InputError("tuning needs Triton and a CUDA device")
    kernels: list[dict[str, Any]] = []
    results["kernels"] = kernels
    if n_processes > 1:
        context = multiprocessing.get_context("spawn")
        shares = [
            (str(device), works, only, deadline - time.perf_counter(), i, n_processes) for i in range(n_processes)
        ]
        workers = [context.Process(target=_compile, args=share) for share in shares]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    for kernel, precision in _all_kernels(device, works, only):
        entry: dict[str, Any] = {"kernel": kernel.name, "precision": precision, "configurations": [], "best": None}
        kernels.append(entry)
        if time.perf_counter() > deadline:
            entry["status"] = "not begun within the time limit"
        else:
            _tune(kernel, entry, device, limits, deadline, write)
        print(f"{kernel.name:70}{precision:9}", "not measured" if entry["best"] is None else _line(entry), flush=True)
    write()


def _all_kernels(device: torch.device, works: list[Work], only: list[str] | None) -> Iterator[tuple[Kernel, Precision]]:
    """Every kernel at every shape of the table, with the precision to run it at set while it is in hand."""
    seen = set()
    for work in works:
        precisions: tuple[Precision, ...] = ("highest", "high") if work.dtype == torch.float32 else ("highest",)
        for precision in precisions if not work.sweep else ():
            with settings(precision, "triton"):
                for kernel in _kernels(work, device):
                    wanted = only is None or any(word in kernel.name for word in only)
                    if wanted and (kernel.name, precision) not in seen:
                        seen.add((kernel.name, precision))
                        yield kernel, precision


def _compile(device: str, works: list[Work], only: list[str] | None, seconds: float, index: int, n: int) -> None:
    """Runs one in ``n`` configurations once, in a process of its own, so that Triton finds all of them compiled."""
    deadline = time.perf_counter() + seconds
    count = itertools.count()
    for kernel, _ in _all_kernels(torch.device(device), works, only):
        for config in kernel.configs:
            if next(count) % n == index and time.perf_counter() < deadline:
                with contextlib.suppress(Exception):  # said where it is measured
                    kernel.run(config)


def _line(entry: dict[str, Any]) -> str:
    best, chosen = entry["best"], entry["chosen_milliseconds"]
    found = f"{best['milliseconds']:.4f} ms with {best['configuration']}"
    return found if chosen is None else f"{found}; chosen now {chosen:.4f} ms"


def _tune(
    kernel: Kernel, entry: dict[str, Any], device: torch.device, limits: Limits, deadline: float,
    write: Callable[[], None],
) -> None:  # fmt: skip
    expected = _tensors(kernel.run(kernel.chosen))
    entry |= {"chosen": repr(kernel.chosen), "chosen_milliseconds": None}
    for config in [kernel.chosen, *(c for c in kernel.configs if c != kernel.chosen)]:  # the chosen one first
        if time.perf_counter() > deadline:
            entry["status"] = "not finished within the time limit"
            break
        row: dict[str, Any] = {"configuration": repr(config)}
        try:
            row["difference"] = max(
                _distance(a, b) for a, b in zip(_tensors(kernel.run(config)), expected, strict=True)
            )

            def run(config: Any = config) -> None:
                kernel.run(config)

            times = measure(captured(run) if device.type == "cuda" else run, device, limits)
            row["milliseconds"] = 1e3 * times.median
        except Exception as error:  # more shared memory than there is, for example
            row["status"] = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        entry["configurations"].append(row)
        if config == kernel.chosen:
            entry["chosen_milliseconds"] = row.get("milliseconds")
        # what differs by more than roundings at this precision computes something else
        right = "milliseconds" in row and row["difference"] < 0.05
        if right and (entry["best"] is None or row["milliseconds"] < entry["best"]["milliseconds"]):
            entry["best"] = row
        write()


def _tensors(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else [t for t in found if t is not None and t.numel()]


def _distance(a: Tensor, b: Tensor) -> float:
    distance = float((a.double() - b.double()).norm() / b.double().norm())
    return distance if math.isfinite(distance) else math.inf


def _kernels(work: Work, device: torch.device) -> Iterator[Kernel]:
    """The kernels that do a work."""
    if work.kind in ("spectral", "fno"):
        yield from _spectral(work, device)
    elif work.kind == "linear":
        yield from _linear(work, device)
    elif work.kind == "transform":
        yield from _transform(work, device)


def _spectral(work: Work, device: torch.device) -> Iterator[Kernel]:
    from sciml_monarch.monarch.kernels import spectral_triton

    batch, width, n, modes = work.sizes
    conv = MonarchSpectralConv(1, 1, (2 * modes, 2 * modes), (n, n)).to(device)
    with torch.no_grad():
        analysis_1, analysis_2, _, synthesis_1, synthesis_2 = (m.contiguous() for m in conv.prepare())
    x = torch.randn(batch, width, n, n, device=device)
    z = torch.randn(2 * modes * (modes + 1), batch, 2 * width, device=device)
    where = f"batch {batch}, width {width}, {n}^2, {modes} modes"
    problem = spectral_triton.problem("analysis", x, 2 * modes, modes + 1)
    yield Kernel(
        f"spectral analysis, {where}", list(spectral_configs.candidates(problem)), spectral_configs.choose(problem),
        lambda config: spectral_triton.analysis(x, analysis_1, analysis_2, False, config=config),
    )  # fmt: skip
    problem = spectral_triton.problem("synthesis", x, 2 * modes, modes + 1)
    yield Kernel(
        f"spectral synthesis, {where}", list(spectral_configs.candidates(problem)), spectral_configs.choose(problem),
        lambda config: spectral_triton.synthesis(z, synthesis_1, synthesis_2, False, config=config),
    )  # fmt: skip


def _linear(work: Work, device: torch.device) -> Iterator[Kernel]:
    tokens, n_in, n_out, blocks = work.sizes
    layer = MonarchLinear(n_in, n_out, bias=False, blocks=blocks, device=device, dtype=work.dtype)
    x = torch.randn(tokens, n_in, device=device, dtype=work.dtype, requires_grad=True)
    gradient = torch.randn(tokens, n_out, device=device, dtype=work.dtype)
    (k, q, p), (l, s, r) = layer.w1.shape, layer.w2.shape
    sizes = Sizes(k, q, p, l, s, r, n_in, n_out)

    def run(plan: Any) -> list[Tensor]:
        y = monarch_linear(x, layer.w1, layer.w2, None, n_out, plan)
        return [y.detach(), *torch.autograd.grad(y, (x, layer.w1, layer.w2), gradient)]

    yield Kernel(
        f"linear {n_in} -> {n_out}, {blocks} blocks, {tokens} tokens, {str(work.dtype)[6:]}, forward and backward",
        list(linear_plans.candidates(sizes, tokens, x.element_size())),
        linear_plans.choose(sizes, tokens, x.element_size()),
        run,
    )


def _transform(work: Work, device: torch.device) -> Iterator[Kernel]:
    from sciml_monarch.monarch.kernels import transform_triton

    coils, ny, nx = work.sizes
    for n, shape in ((nx, (coils * ny, nx, 1, 2)), (ny, (coils, ny, nx, 2))):
        t = MonarchTransform(n, centered=True, learnable=False, device=device)
        x = torch.randn(shape, device=device)
        operands = x, t.w1.detach(), t.w2.detach(), t.permutation_in, None
        k, q = t.w1.shape[:2]
        axis = "last axis" if shape[2] == 1 else "last axis but one"
        where = f"{coils} coils of {ny} x {nx}, {axis}"
        chosen = transform_configs.choose(shape[0] * shape[2], k, q, shape[2], dot_precision(torch.float32))

        def run(tile: Any, operands: Any = operands) -> Tensor:
            x, w1, w2, place_in, place_out = operands
            return transform_triton.apply(x, w1, w2, place_in, place_out, 2, False, tile)

        yield Kernel(f"transform, {where}", transform_configs.candidates(k, q), chosen, run)
        h = transform_triton.first_factor(*operands, False)
        g = transform_triton.first_factor(*operands, True)

        def gradients(tile: Any, h: Tensor = h, g: Tensor = g, operands: Any = operands) -> Any:
            x, w1, w2, place_in, place_out = operands
            return transform_triton.gradients(x, h, x, g, w1, w2, place_in, place_out, tile)

        yield Kernel(
            f"gradients of the factors, {where}",
            transform_configs.gradient_candidates(k, q, q),
            transform_configs.choose_gradient(shape[0] * shape[2], k, q, q),
            gradients,
        )
