"""Tables of what ``benchmark.py`` measured; :mod:`make_tables` puts them into the README files.

A file may hold rows of several runs (:mod:`merge_benchmark`); each but the first has a number, ``run``, and rows are
compared within theirs.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmark_rows import table as steps_table
from compare_channel_maps import table as channel_maps_table
from compare_pointwise import table as pointwise_table
from compare_products import table as products_table

RESULTS = Path(__file__).resolve().parents[1] / "results"
TITLES = {  # of rows of the Navier-Stokes table whose steps were timed, and their batches
    "fno_1e-5": ("FNO", 20),
    "monarch_fno_1e-5": ("MonarchFNO", 20),
    "unet_1e-5": ("U-Net", 20),
    "one_step_gated_1e-5": ("ResidualMonarchFNO of 19 million parameters, products in TF32", 50),
}
THEIRS = ("SpectralConv", "FFT form", "FNO", "F.linear", "FFT, centred by shifts", "FFT, not centred")


def works(file: str) -> str:
    """Every work but those of the sweep: milliseconds of each method, and ours against the fastest of the others."""
    rows = [r for r in json.loads((RESULTS / file).read_text())["rows"] if r["status"] == "measured" and not r["sweep"]]
    lines = [
        "| work | method | precision | ms | quartiles | fastest other / this | error |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        same = [r for r in rows if r["work"] == row["work"] and r.get("run") == row.get("run")]
        others = [r["milliseconds"] for r in same if r["method"] in THEIRS]
        ratio = f"{min(others) / row['milliseconds']:.2f}" if row["method"] not in THEIRS and others else ""
        low, high = row["quartiles"]
        lines.append(
            f"| {row['work']} | {row['method']} | {row['precision']} | {row['milliseconds']:.2f} | "
            f"{low:.2f} to {high:.2f} | {ratio} | {row['relative_error']:.0e} |"
        )
    return "\n".join(lines)


def sweep(file: str) -> str:
    """Forward pass against size and modes: how many times as fast as the fastest of the others."""
    rows = [r for r in json.loads((RESULTS / file).read_text())["rows"] if r["status"] == "measured" and r["sweep"]]
    modes = sorted({_modes(row) for row in rows})
    lines = ["| grid | " + " | ".join(f"{m} modes" for m in modes) + " |", "|---|" + "---|" * len(modes)]
    for n in sorted({row["sizes"][2] for row in rows}):
        cells = []
        for m in modes:
            found = [r for r in rows if r["sizes"][2] == n and _modes(r) == m]
            others = [r["milliseconds"] for r in found if r["method"] in THEIRS]
            ours = [r["milliseconds"] for r in found if r["method"] not in THEIRS]
            cells.append(f"{min(others) / min(ours):.1f}" if others and ours else "")
        lines.append(f"| {n} x {n} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _modes(row: dict[str, Any]) -> int:
    return int(row["sizes"][3])


class Target(NamedTuple):
    """What a kernel, a layer or a network is to reach.

    Attributes:
        work: Beginning of the work's name; with "CUDA graph" in it only as one.
        precision: Of our rows.
        wanted: Times as fast as the fastest of the others; with ``of_field`` at most so many times the time of reading
            or writing the field once, with ``memory`` at most this share of the others' peak memory.
        of_field: See ``wanted``; by the bandwidth that was measured with a large copy.
        memory: See ``wanted``.
        error: Largest relative error allowed; of half precision none is set.
        frozen: Whether transforms do not learn, as those that it is compared with.
        compiled: Compare compiled networks alone, not the fastest.
    """

    work: str
    precision: str
    wanted: float
    of_field: bool = False
    memory: bool = False
    error: float = 3e-3
    frozen: bool = False
    compiled: bool = False


LARGE = "spectral of batch 16, width 64, 256^2, 32 modes, "
SMALL = "spectral of batch 20, width 32, 64^2, 12 modes, forward and backward, CUDA graph"
STEP = "fno of batch 16, width 32, {}, training step"
LINEAR = "linear {} blocks, 16384 tokens, bfloat16, forward and backward, CUDA graph"
TARGETS = (
    *(
        Target(LARGE + "forward" + graph, precision, wanted, error=error)
        for graph in ("", ", CUDA graph")
        for precision, wanted, error in (("high", 6.0, 3e-3), ("highest", 3.0, 2e-6))
    ),
    *(
        Target(LARGE + "forward and backward" + graph, precision, wanted, frozen=frozen, error=error)
        for graph in ("", ", CUDA graph")
        for frozen in (False, True)
        for precision, wanted, error in (("high", 5.0, 3e-3), ("highest", 2.5, 2e-6))
    ),
    *(Target(SMALL, precision, 5.0, frozen=f) for f in (False, True) for precision in ("high", "highest")),
    *(
        Target(f"{half} of batch {shape}, 32 modes, forward, CUDA graph", "high", 1.6, of_field=True)
        for half in ("analysis", "synthesis")
        for shape in ("16, width 64, 256^2", "8, width 64, 512^2")
    ),
    *(
        Target(STEP.format(shape) + graph, "high", wanted, memory=memory, compiled=compiled)
        for shape in ("64^2, 12 modes", "256^2, 32 modes")
        for graph, wanted, memory, compiled in (
            ("", 3.0, False, True),
            (", CUDA graph", 3.0, False, True),
            ("", 3.0, False, False),
            (", CUDA graph", 3.0, False, False),
            ("", 0.6, True, True),
        )
    ),
    *(
        Target(LINEAR.format(shape), "highest", wanted, error=math.inf)
        for shape, wanted in (
            ("1024 -> 1024, 4", 1.5),
            ("768 -> 3072, 4", 1.5),
            ("4096 -> 4096, 4", 1.8),
            ("4096 -> 4096, 64", 5.0),
        )
    ),
)


def targets(*files: str) -> str:
    """Each row that was to be reached: the fastest of ours, whichever way it is computed, with its own ceiling."""
    rows = [row for file in files for row in json.loads((RESULTS / file).read_text())["rows"]]
    lines = ["| work | precision | wanted | reached | by | ms | ceiling (ms) | error |", "|---" * 8 + "|"]
    return "\n".join([*lines, *(_target_line(target, rows) for target in TARGETS)])


def _target_line(target: Target, rows: list[dict[str, Any]]) -> str:
    own = [row for row in rows if row["work"].split(";")[0] == target.work and row["status"] == "measured"]
    ours = [row for row in _ours(target, own) if row["precision"] == target.precision]
    wanted = f"{'at most ' if target.of_field or target.memory else ''}{target.wanted}x"
    what = target.work + ", peak memory" * target.memory + ", frozen transforms" * target.frozen
    what += ", both compiled" * target.compiled
    theirs = [row for row in own if row["method"] in (*THEIRS, *(f"{name}, compiled" for name in THEIRS))]
    key = "peak_memory_bytes" if target.memory else "milliseconds"
    theirs, ours = ([row for row in rows if not target.compiled or row["compiled"]] for rows in (theirs, ours))
    compared = {row.get("run") for row in theirs}
    ours = [row for row in ours if target.of_field or row.get("run") in compared]
    if not ours:
        return f"| {what} | {target.precision} | {wanted} | not measured | | | | |"
    exact = [row for row in ours if row["relative_error"] <= target.error]
    best = min(exact or ours, key=lambda row: row[key])
    theirs = [row for row in theirs if row.get("run") == best.get("run")]
    if target.of_field:
        reached = best["times_reading_the_field"]
    elif target.memory:
        reached = best[key] / min(row[key] for row in theirs)
    else:
        reached = min(row[key] for row in theirs) / best[key]
    met = reached <= target.wanted if target.of_field or target.memory else reached >= target.wanted
    error = best["relative_error"]
    met = met and bool(exact)
    return (
        f"| {what} | {target.precision} | {wanted} | {'**' * met}{reached:.2f}x{'**' * met} | {best['method']} "
        f"| {best['milliseconds']:.3f} | {best['ceiling_milliseconds']:.3f} | {error:.0e} |"
    )


def _ours(target: Target, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        if row["method"].startswith("Monarch") and ("frozen" in row["method"]) == target.frozen:
            yield row


def pointwise(file: str) -> str:
    """Maps of channels by their kernels and by torch."""
    return pointwise_table(json.loads((RESULTS / file).read_text())["rows"])


def _steps() -> list[dict[str, Any]]:
    files = ("rows.json", "rows_others.json", "rows_bf16.json")  # of the same row the last
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for file in files:
        for row in json.loads((RESULTS / "speed_h200" / file).read_text())["rows"]:
            found[row["row"], row["precision"], row["backend"]] = row
    return list(found.values())


def steps() -> str:
    """Training steps of rows of the Navier-Stokes table, by precision and kernels."""
    return steps_table(_steps())


def networks() -> str:
    """Training steps by network, with the kernels that ``auto`` takes."""
    lines = [
        "| loss and gradients of a batch as a CUDA graph, ms a predicted frame | batch | float32 | bf16-mixed |",
        "|---|---|---|---|",
    ]
    found = {(row["row"], row["precision"]): row["milliseconds"] for row in _steps() if row["backend"] == "auto"}
    for row, (title, batch) in TITLES.items():
        lines.append(f"| {title} | {batch} | {found[row, 'row']:.2f} | {found[row, 'bf16']:.2f} |")
    return "\n".join(lines)


def channel_maps(file: str) -> str:
    """Monarch maps of channels by their factors, multiplied out, and dense ones."""
    return channel_maps_table(json.loads((RESULTS / file).read_text())["rows"])


def products(file: str) -> str:
    """Microseconds of each thin product, kernel / torch."""
    return products_table(json.loads((RESULTS / file).read_text())["rows"])
