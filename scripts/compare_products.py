"""Each thin product of a spectral convolution by its kernel and by torch: ``python scripts/compare_products.py``.

What ``auto`` takes for a product is decided by it. On a GPU products run as CUDA graphs: only its time counts.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmark_timing import Limits, Precision, captured, measure, settings
from torch import Tensor

from sciml_monarch.devices import choose_device
from sciml_monarch.errors import InputError
from sciml_monarch.files import replacing
from sciml_monarch.monarch.kernels.backend import triton_usable
from sciml_monarch.monarch.kernels.spectral_products import AT_ONCE
from sciml_monarch.provenance import provenance

PRECISIONS: tuple[Precision, ...] = ("highest", "high")


class Size(NamedTuple):
    """A convolution: samples, channels, points of an axis, modes as neuraloperator counts half of them."""

    batch: int
    width: int
    n: int
    modes: int


SIZES = (Size(16, 64, 256, 32), Size(8, 64, 512, 32), Size(16, 32, 256, 32), Size(20, 32, 64, 12), Size(16, 32, 64, 12))


def pairs(size: Size, device: torch.device) -> Iterator[tuple[str, Callable[[], Tensor], Callable[[], Tensor]]]:
    """Of each product its name, its kernel and torch."""
    from sciml_monarch.monarch.kernels.spectral_triton import KERNELS

    images, columns = size.batch * size.width, 2 * (size.modes + 1)
    rows, m, n = images * columns // 2, 2 * size.modes, size.n
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    x, y, matrix = draw(1, images * n, n), draw(1, columns, images * n), draw(columns, n)
    z, g, planes = draw(2, rows, n), draw(2, m, rows), draw(2, m, n)
    inputs: dict[str, tuple[Any, ...]] = {
        "narrow": (x, matrix),
        "widen": (y, matrix.mT.contiguous()),
        "weigh": (y, x),
        "narrow_planes": (z, planes, False, size.width),
        "turn": (g, planes.mT.contiguous(), False),
        "weigh_planes": (g, z, False),
    }
    for name, given in inputs.items():
        kernel, torchs = getattr(KERNELS, name), getattr(AT_ONCE, name)
        yield name, lambda f=kernel, a=given: f(*a), lambda f=torchs, a=given: f(*a)  # type: ignore[misc]


def compare(size: Size, precision: Precision, device: torch.device, limits: Limits) -> list[dict[str, Any]]:
    """Milliseconds of each product of a size, each way."""
    rows = []
    with settings(precision, "triton"):
        for name, *ways in pairs(size, device):
            row: dict[str, Any] = {**size._asdict(), "precision": precision, "product": name}
            for key, run in zip(("kernel", "torch"), ways, strict=True):
                row[key] = 1e3 * measure(captured(run) if device.type == "cuda" else run, device, limits).median
            rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for each size and precision, microseconds of kernel / torch."""
    products = list(dict.fromkeys(row["product"] for row in rows))
    lines = ["| convolution | precision | " + " | ".join(products) + " |", "|---" * (2 + len(products)) + "|"]
    for key in dict.fromkeys((*(row[name] for name in Size._fields), row["precision"]) for row in rows):
        size, precision = Size(*key[:4]), key[4]
        own = {r["product"]: r for r in rows if (*(r[name] for name in Size._fields), r["precision"]) == key}
        cells = [f"{1e3 * own[name]['kernel']:.0f} / {1e3 * own[name]['torch']:.0f}" for name in products]
        name = f"batch {size.batch}, width {size.width}, {size.n}², {size.modes} modes"
        lines.append(f"| {name} | {precision} | {' | '.join(cells)} |")
    return "\n".join(lines)


def run(
    out: Path = Path("results/compare_products.json"), device: str = "auto", repeats: int = 50, quick: bool = False
) -> None:
    """Times every product.

    Args:
        out: JSON file to write.
        device: "cpu" (Triton's interpreter), "cuda", "cuda:1" ...; "auto" is a GPU if there is one.
        repeats: Of each measurement.
        quick: One tiny size, to try the program.

    Raises:
        InputError: Triton cannot run on the device.
    """
    where = choose_device(device)
    if not triton_usable(torch.empty(0, device=where)):
        raise InputError("comparing products needs Triton and a CUDA device")
    sizes = (Size(1, 2, 8, 2),) if quick else SIZES
    limits = Limits(repeats, 0.3)
    rows = [row for size in sizes for precision in PRECISIONS for row in compare(size, precision, where, limits)]
    with replacing(out) as temporary:
        temporary.write_text(json.dumps(provenance(where) | {"rows": rows}, indent=1))
    print(table(rows))


if __name__ == "__main__":
    from sciml_monarch.cli import call, guarded

    raise SystemExit(guarded("compare_products", lambda: call(run, sys.argv[1:])))
