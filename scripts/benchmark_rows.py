"""What a training step of rows of the Navier–Stokes table takes on a GPU, kernel by kernel.

    python scripts/benchmark_rows.py --rows '[one_step_gated_1e-5, unet_1e-5]' --backends '[auto, torch]'

Loss and all gradients of one batch of random fields, as the training has them: on a GPU as one CUDA graph.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from benchmark_timing import Limits, measure
from reproduce_training import build, read_config

from sciml_monarch.devices import choose_device
from sciml_monarch.errors import InputError
from sciml_monarch.files import replacing
from sciml_monarch.monarch.kernels.backend import use_backend
from sciml_monarch.pde.description import Description
from sciml_monarch.pde.graph import GraphedLoss
from sciml_monarch.pde.task import RolloutLoss
from sciml_monarch.provenance import provenance

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "navier_stokes"
ROWS = ("one_step_gated_1e-5", "one_step_no_norm_1e-5", "fno_1e-5", "monarch_fno_1e-5", "unet_1e-5")
PRECISIONS = ("row", "bf16")
GRID = (64, 64)
N_PROFILED = 3
LONGEST_NAME = 160  # of a kernel: templates have thousands of letters


@contextmanager
def products_in(precision: str | None) -> Iterator[None]:
    """Sets the precision of float32 products, if one is given; that of convolutions stays, as in a training."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision or before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def step_of(row: str, precision: str, device: torch.device, quick: bool) -> tuple[Callable[[], None], int]:
    """Loss and gradients of a row's batch, and the frames that are predicted in it one after the other."""
    config = read_config(CONFIGS / f"{row}.yaml")
    settings = config["data"]["init_args"]
    task, _, _ = build(config)
    history, steps, batch = settings["n_history"], 1 if quick else settings["n_steps"], settings["batch_size"]
    task.surrogate.describe(Description(("vorticity",), ("1/s",), GRID, (1.0, 1.0), 1.0, history, steps))
    task.to(device)
    loss = RolloutLoss(task.surrogate)
    run = GraphedLoss(loss) if device.type == "cuda" else loss
    generator = torch.Generator(device).manual_seed(0)
    known, target = (
        torch.randn(1 if quick else batch, n, 1, *GRID, generator=generator, device=device) for n in (history, steps)
    )

    mixed = precision == "bf16" or config["trainer"].get("precision") == "bf16-mixed"

    def step() -> None:
        for parameter in task.parameters():
            parameter.grad = None
        cast = torch.autocast(device.type, torch.bfloat16) if mixed else nullcontext()
        with cast, products_in(task.matmul_precision):
            run(known, target).backward()

    return step, steps


def kernels_of(step: Callable[[], None], n_frames: int) -> list[dict[str, Any]]:
    """What ran on the GPU, calls and microseconds for each frame, the longest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(N_PROFILED):
            step()
        torch.cuda.synchronize()
    n = N_PROFILED * n_frames
    found = [
        {"kernel": e.key[:LONGEST_NAME], "calls": e.count / n, "microseconds": e.self_device_time_total / n}
        for e in profiler.key_averages()
    ]
    return sorted((k for k in found if k["microseconds"] > 0), key=lambda k: -k["microseconds"])


def time_row(
    row: str, precision: str, backend: Any, device: torch.device, limits: Limits, quick: bool
) -> dict[str, Any]:
    """Milliseconds a frame, the memory at most, and the kernels."""
    on_gpu = device.type == "cuda"
    with use_backend(backend):
        step, n_frames = step_of(row, precision, device, quick)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        times = measure(step, device, limits)
        return {
            "row": row,
            "precision": precision,
            "backend": backend,
            "milliseconds": 1e3 * times.median / n_frames,
            "peak_bytes": torch.cuda.max_memory_allocated(device) if on_gpu else None,
            "kernels": kernels_of(step, n_frames) if on_gpu else [],
        }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: milliseconds of a step for each predicted frame."""
    lines = ["| row | precision | kernels by | ms a frame | peak memory (GB) |", "|---|---|---|---|---|"]
    for row in rows:
        memory = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.1f}"
        lines.append(f"| {row['row']} | {row['precision']} | {row['backend']} | {row['milliseconds']:.2f} | {memory} |")
    return "\n".join(lines)


def run(
    out: Path = Path("results/benchmark_rows.json"),
    rows: Sequence[str] = ROWS,
    precisions: Sequence[str] = ("row",),
    backends: Sequence[str] = ("auto", "torch"),
    device: str = "auto",
    repeats: int = 30,
    quick: bool = False,
) -> None:
    """Times every row in every way.

    Args:
        out: JSON file to write.
        rows: Names of YAMLs in configs/navier_stokes.
        precisions: "row", that of the YAML, and "bf16", automatic mixed precision.
        backends: "auto", "torch", "triton": how what has kernels of ours is computed.
        device: "cpu", "cuda", "cuda:1" ...; "auto" is a GPU if there is one.
        repeats: Of each measurement.
        quick: One sample and one frame, to try the program.

    Raises:
        InputError: There is no such row or precision.
    """
    if unknown := sorted({row for row in rows if not (CONFIGS / f"{row}.yaml").is_file()}):
        raise InputError(f"there are no rows {', '.join(unknown)} in configs/navier_stokes")
    if unknown := sorted(set(precisions) - set(PRECISIONS)):
        raise InputError(f"there are no precisions {', '.join(unknown)}; they are {', '.join(PRECISIONS)}")
    where = choose_device(device)
    limits = Limits(repeats, 2.0)
    timed = [time_row(row, p, b, where, limits, quick) for row in rows for p in precisions for b in backends]
    with replacing(out) as temporary:
        temporary.write_text(json.dumps(provenance(where) | {"rows": timed}, indent=1))
    print(table(timed))


if __name__ == "__main__":
    from sciml_monarch.cli import call, guarded

    raise SystemExit(guarded("benchmark_rows", lambda: call(run, sys.argv[1:])))
