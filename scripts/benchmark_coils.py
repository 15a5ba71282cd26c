"""Times ESPIRiT against sigpy's on the same k-space, with the agreement of the maps in the same row.

Example, on a machine with a GPU (its times are added to those of one CPU thread; the variables hold NumPy, which
sigpy computes with, to one thread too):

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python scripts/benchmark_coils.py --out results/coils.json
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from sciml_monarch.mri.coil_simulation import simulate_maps
from sciml_monarch.mri.coils import sigpy_espirit
from sciml_monarch.mri.espirit import espirit
from sciml_monarch.mri.fourier import fft2c
from sciml_monarch.provenance import provenance


def make_kspace(n_coils: int, shape: tuple[int, int], noise: float) -> Tensor:
    """K-space ``(1, coil, y, x)`` of three ellipses behind simulated coils; noise relative to its largest value."""
    y, x = ((torch.arange(n) - n // 2) / (n / 2) for n in shape)
    y, x = y[:, None], x[None, :]
    image = torch.zeros(shape)
    for value, cy, cx, ry, rx in ((1.0, 0.0, 0.0, 0.85, 0.7), (-0.6, 0.05, 0.0, 0.75, 0.6), (0.4, 0.2, 0.15, 0.2, 0.3)):
        image += value * (((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1)
    kspace = fft2c(simulate_maps(shape, n_coils, 0) * image * torch.exp(1j * (0.7 * y + 0.4 * x)))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(kspace.shape, generator=generator, dtype=torch.complex64)
    return (kspace + noise * kspace.abs().max() * drawn)[None]


def milliseconds(work: Callable[[], Tensor], repeats: int, warm_up: bool) -> tuple[Tensor, list[float]]:
    """The result of a call and the durations of ``repeats`` calls."""

    def synchronise() -> None:
        if result.is_cuda:
            torch.cuda.synchronize()

    result = torch.empty(0)
    if warm_up:
        result = work()
        synchronise()
    durations = []
    for _ in range(repeats):
        begin = time.perf_counter()
        result = work()
        synchronise()
        durations.append(1e3 * (time.perf_counter() - begin))
    return result, durations


def agreement(maps: Tensor, reference: Tensor) -> dict[str, float]:
    """How maps differ from the reference where that is not zero, and on which share of pixels only one is zero."""
    maps, reference = maps.cpu(), reference.cpu()
    inside, here = (m.abs().sum(2) > 0 for m in (reference, maps))
    difference = (maps - reference).abs().amax(2)[inside & here]
    return {
        "largest_difference": difference.max().item() if len(difference) else float("nan"),
        "support_differs_on": (inside != here).float().mean().item(),
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the results")
    parser.add_argument("--n_coils", type=int, default=15)
    parser.add_argument("--shape", type=int, nargs=2, default=[320, 320], help="points of k-space, y and x")
    parser.add_argument("--calibration", type=int, default=24)
    parser.add_argument("--noise", type=float, default=2e-5, help="relative to the largest value of k-space")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sigpy_repeats", type=int, default=3)
    parser.add_argument("--devices", nargs="+", default=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
    return parser.parse_args()


def main() -> None:
    """Runs the benchmark, writing after every row so that an interruption loses nothing."""
    options = parse()
    torch.set_num_threads(1)
    shape = (options.shape[0], options.shape[1])
    kspace = make_kspace(options.n_coils, shape, options.noise)
    rows: list[dict[str, object]] = []
    results = {
        "torch_threads": 1,
        "numpy_threads": os.environ.get("OPENBLAS_NUM_THREADS", "all"),
        **provenance(torch.device(options.devices[-1])),
        "n_coils": options.n_coils,
        "shape": shape,
        "calibration": options.calibration,
        "noise": options.noise,
        "rows": rows,
    }

    def add(method: str, device: str, maps: Tensor, durations: list[float]) -> None:
        median = statistics.median(durations)
        row: dict[str, object] = {"method": method, "device": device, "milliseconds": median, "all": durations}
        if rows and reference is not None:
            row["times_faster_than_sigpy"] = sigpy_median / median
            row |= agreement(maps, reference)
        rows.append(row)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=2) + "\n")
        name = torch.cuda.get_device_name() if device.startswith("cuda") else f"{device}, 1 thread"
        line = f"{method:16}{name:24}{median:10.1f}"
        if "largest_difference" in row:
            line += f"{sigpy_median / median:10.1f}{row['largest_difference']:14.1e}{row['support_differs_on']:14.1e}"
        print(line, flush=True)

    print(f"{options.n_coils} coils, {shape[0]} x {shape[1]}, calibration {options.calibration}, one CPU thread")
    print(f"{'method':16}{'device':24}{'ms':>10}{'faster':>10}{'difference':>14}{'support':>14}")
    reference, sigpy_median = None, 0.0
    if find_spec("sigpy"):
        sigpy_espirit(make_kspace(2, (16, 16), options.noise), 8, 4)  # loads and compiles what sigpy needs
        reference, durations = milliseconds(
            partial(sigpy_espirit, kspace, options.calibration), options.sigpy_repeats, warm_up=False
        )
        sigpy_median = statistics.median(durations)
        add("sigpy", "cpu", reference, durations)
    for device in options.devices:
        given = kspace.to(device)
        for method, n_sets in (("espirit", 1), ("espirit, 2 sets", 2)):
            work = partial(espirit, given, options.calibration, n_sets=n_sets)
            maps, durations = milliseconds(work, options.repeats, warm_up=True)
            add(method, device, maps[:, :1], durations)


if __name__ == "__main__":
    main()
