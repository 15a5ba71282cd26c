"""Maps of the channels at every point by their kernels and by torch: ``python scripts/compare_pointwise.py``.

What ``auto`` takes for them is decided by it. On a GPU both run as CUDA graphs: only its time counts.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from benchmark_timing import Limits, Precision, captured, measure, peak_memory, settings
from torch import Tensor
from torch.nn.functional import gelu

from sciml_monarch.devices import choose_device
from sciml_monarch.errors import InputError
from sciml_monarch.files import replacing
from sciml_monarch.monarch.kernels.backend import Backend, replayed, triton_usable
from sciml_monarch.pde.perceptron import GatedPerceptron
from sciml_monarch.pde.pointwise import pointwise_linear, pointwise_mlp
from sciml_monarch.provenance import provenance

PRECISIONS: tuple[Precision, ...] = ("highest", "high")
WAYS: tuple[Backend, ...] = ("triton", "torch")


class Size(NamedTuple):
    """A map of channels: samples, points of a field, channels; no hidden ones: linear, behind an activation.

    Of a gated perceptron the fields that its output is added to are part of it, and ``hidden`` are those of each half.
    """

    batch: int
    points: int
    inputs: int
    hidden: int
    outputs: int
    gated: bool = False


WIDTHS = (20, 32, 48, 64)
SIZES = tuple(
    Size(16, n * n, width, hidden, 1 if hidden else width) for n in (64, 256) for hidden in (128, 0) for width in WIDTHS
) + tuple(Size(16, n * n, 12, 0, 32) for n in (64, 256))  # a lifting
GATED = ((20, 27), (32, 43), (48, 64), (64, 64))  # widths and hidden channels
SIZES += tuple(Size(n, p * p, i, h, i, True) for n, p in ((50, 64), (8, 256)) for i, h in GATED)
KINDS = ("linear", "perceptron", "gated")


def kind_of(size: Size) -> str:
    """One of :data:`KINDS`."""
    return "gated" if size.gated else "perceptron" if size.hidden else "linear"


def job(size: Size, device: torch.device) -> tuple[Callable[[], Tensor], Callable[[], Any]]:
    """The map, and the map with all gradients."""
    b, n, i, h, o, gated = size
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int, fan: int = 1) -> Tensor:
        return torch.randn(shape, generator=generator, device=device) / fan**0.5

    x, g = draw(b, i, n), draw(b, o, n)
    if gated:
        return gated_job(GatedPerceptron(i, h, o, None, None).to(device), x, draw(b, o, n), g)
    weights = [draw(h, i, fan=i), draw(h), draw(o, h, fan=h), draw(o)] if h else [draw(o, i, fan=i)]
    leaves = [t.requires_grad_() for t in (x, *weights)]
    activated = gelu(x).detach().requires_grad_()

    def forward() -> Tensor:
        return pointwise_mlp(x, *weights) if h else pointwise_linear(activated, weights[0], x.detach())

    def undifferentiated() -> Tensor:
        with torch.no_grad():
            return forward()

    wanted = leaves if h else [activated, *weights]
    return undifferentiated, lambda: torch.autograd.grad(forward(), wanted, g)


def gated_job(
    net: GatedPerceptron, x: Tensor, skip: Tensor, g: Tensor
) -> tuple[Callable[[], Tensor], Callable[[], Any]]:
    """The same of a gated perceptron of fields, and the fields it is added to."""
    leaves = [t.requires_grad_() for t in (x, *net.parameters(), skip)]

    def undifferentiated() -> Tensor:
        with torch.no_grad():
            return net(x, skip)

    return undifferentiated, lambda: torch.autograd.grad(net(x, skip), leaves, g)


def compare(size: Size, precision: Precision | Literal["bf16"], device: torch.device, limits: Limits) -> dict[str, Any]:
    """Milliseconds of a map, without and with its gradients, each way, and the memory that the latter takes."""
    row: dict[str, Any] = {**size._asdict(), "precision": precision}
    cast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)
    products: Precision = "high" if precision == "bf16" else precision
    for way in WAYS:
        with settings(products, way), replayed(), cast:
            for name, run in zip(("forward", "forward and backward"), job(size, device), strict=True):
                timed = captured(run) if device.type == "cuda" else run
                row[f"{name}, {way}"] = 1e3 * measure(timed, device, limits).median
            run()
            before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
            row[f"bytes, {way}"] = peak_memory(run, device, before)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for each map and precision, microseconds of kernel / torch."""
    lines = ["| map | samples x points | precision | forward | forward and backward |", "|---|---|---|---|---|"]
    for row in rows:
        channels = " -> ".join(str(c) for c in (row["inputs"], row["hidden"], row["outputs"]) if c)
        cells = [
            f"{1e3 * row[f'{name}, triton']:.0f} / {1e3 * row[f'{name}, torch']:.0f}"
            for name in ("forward", "forward and backward")
        ]
        lines.append(
            f"| {channels}{', gated' * row.get('gated', False)} | {row['batch']} x {row['points']:,} "
            f"| {row['precision']} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def run(
    out: Path = Path("results/compare_pointwise.json"),
    device: str = "auto",
    repeats: int = 50,
    quick: bool = False,
    kinds: Sequence[str] = KINDS,
    precisions: Sequence[Precision | Literal["bf16"]] = PRECISIONS,
) -> None:
    """Times every map.

    Args:
        out: JSON file to write.
        device: "cpu" (Triton's interpreter), "cuda", "cuda:1" ...; "auto" is a GPU if there is one.
        repeats: Of each measurement.
        quick: Three tiny sizes, to try the program.
        kinds: Of maps: "linear", "perceptron", "gated".
        precisions: "highest", "high", "medium": of products in float32. "bf16": automatic mixed precision.

    Raises:
        InputError: Triton cannot run on the device, or there is no such kind.
    """
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise InputError(f"there are no kinds {', '.join(unknown)}; kinds are {', '.join(KINDS)}")
    where = choose_device(device)
    if not triton_usable(torch.empty(0, device=where)):
        raise InputError("comparing maps needs Triton and a CUDA device")
    sizes = (Size(1, 20, 3, 16, 1), Size(1, 20, 3, 0, 4), Size(1, 20, 3, 4, 5, True)) if quick else SIZES
    limits = Limits(repeats, 0.3)
    rows = [
        compare(size, precision, where, limits) for size in sizes if kind_of(size) in kinds for precision in precisions
    ]
    with replacing(out) as temporary:
        temporary.write_text(json.dumps(provenance(where) | {"rows": rows}, indent=1))
    print(table(rows))


if __name__ == "__main__":
    from sciml_monarch.cli import call, guarded

    raise SystemExit(guarded("compare_pointwise", lambda: call(run, sys.argv[1:])))
