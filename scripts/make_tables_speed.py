"""Tables of what ``benchmark.py`` measured; :mod:`make_tables` puts them into the README files."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results"
THEIRS = ("SpectralConv", "FFT form", "FNO", "F.linear", "FFT, centred by shifts", "FFT, not centred")


def works(file: str) -> str:
    """Every work but those of the sweep: milliseconds of each method, and ours against the fastest of the others."""
    rows = [r for r in json.loads((RESULTS / file).read_text())["rows"] if r["status"] == "measured" and not r["sweep"]]
    lines = [
        "| work | method | precision | ms | quartiles | fastest other / this | error |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        others = [r["milliseconds"] for r in rows if r["work"] == row["work"] and r["method"] in THEIRS]
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
