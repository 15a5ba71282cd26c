"""Monarch maps of the channels at every point: by their factors, multiplied out, and dense ones of the same size.

    python scripts/compare_channel_maps.py --out results/compare_channel_maps_cpu.json

What ``MonarchConv1x1`` does is decided by it.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmark_timing import Limits, captured, measure
from torch import Tensor

from sciml_monarch.devices import choose_device
from sciml_monarch.files import replacing
from sciml_monarch.monarch import MonarchConv1x1, MonarchLinear
from sciml_monarch.provenance import provenance


class Size(NamedTuple):
    """Channels of inputs and outputs, blocks, samples, points."""

    inputs: int
    outputs: int
    blocks: int
    batch: int
    points: int


CHANNELS = ((20, 20), (48, 128), (64, 48), (128, 128), (256, 256), (512, 512))
SIZES = (
    *(Size(i, o, 4, 2, n) for i, o in CHANNELS for n in (64, 256, 1024, 4096)),
    Size(256, 256, 16, 2, 4096),
    Size(512, 512, 16, 2, 4096),
)
ON_GPU = tuple(Size(i, o, 4, 50, 4096) for i, o in CHANNELS)


def ways(size: Size, device: torch.device) -> dict[str, tuple[Callable[[], Tensor], list[Tensor]]]:
    """Each way to compute the map, and what it is differentiated by."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size.batch, size.inputs, size.points, generator=generator).to(device).requires_grad_()
    linear = MonarchLinear(size.inputs, size.outputs, True, size.blocks, device=device)
    dense = MonarchConv1x1(linear, (1,)).to_conv().to(device)

    def by_factors() -> Tensor:
        return linear(x.movedim(1, 2)).movedim(2, 1).contiguous()

    def multiplied_out() -> Tensor:
        assert linear.bias is not None
        return torch.baddbmm(linear.bias[:, None], linear.weight.expand(len(x), -1, -1), x)

    return {
        "factors": (by_factors, [x, *linear.parameters()]),
        "matrix": (multiplied_out, [x, *linear.parameters()]),
        "dense": (lambda: dense(x), [x, *dense.parameters()]),
    }


def compare(size: Size, device: torch.device, limits: Limits) -> dict[str, Any]:
    """Milliseconds of each way, without and with its gradients; on a GPU as CUDA graphs."""
    row: dict[str, Any] = size._asdict()
    for name, (run, leaves) in ways(size, device).items():
        g = torch.ones_like(run())

        def forward(run: Callable[[], Tensor] = run) -> Tensor:
            with torch.no_grad():
                return run()

        def both(run: Callable[[], Tensor] = run, leaves: list[Tensor] = leaves, g: Tensor = g) -> Any:
            return torch.autograd.grad(run(), leaves, g)

        for step, job in (("forward", forward), ("forward and backward", both)):
            timed = captured(job) if device.type == "cuda" else job
            row[f"{step}, {name}"] = 1e3 * measure(timed, device, limits).median
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: microseconds by factors / by their matrix / dense."""
    lines = ["| channels | blocks | samples x points | forward | forward and backward |", "|---|---|---|---|---|"]
    for row in rows:
        cells = [
            " / ".join(f"{1e3 * row[f'{step}, {way}']:.0f}" for way in ("factors", "matrix", "dense"))
            for step in ("forward", "forward and backward")
        ]
        lines.append(
            f"| {row['inputs']} -> {row['outputs']} | {row['blocks']} | {row['batch']} x {row['points']:,} "
            f"| {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def run(
    out: Path = Path("results/compare_channel_maps.json"), device: str = "auto", repeats: int = 20, quick: bool = False
) -> None:
    """Times every map.

    Args:
        out: JSON file to write.
        device: "cpu", "cuda", "cuda:1" ...; "auto" is a GPU if there is one.
        repeats: Of each measurement.
        quick: The smallest map alone, to try the program.
    """
    where = choose_device(device)
    sizes = SIZES[:1] if quick else ON_GPU if where.type == "cuda" else SIZES
    rows = [compare(size, where, Limits(repeats, 1.0)) for size in sizes]
    with replacing(out) as temporary:
        temporary.write_text(json.dumps(provenance(where) | {"rows": rows}, indent=1))
    print(table(rows))


if __name__ == "__main__":
    from sciml_monarch.cli import call, guarded

    raise SystemExit(guarded("compare_channel_maps", lambda: call(run, sys.argv[1:])))
