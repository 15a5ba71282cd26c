"""The job ``demo``: everything that this package does, once, on problems small enough for two CPU cores."""

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sciml_monarch import demo_mri, demo_pde
from sciml_monarch.demo_mri import MRIProblem
from sciml_monarch.demo_pde import PDEProblem
from sciml_monarch.errors import InputError

WRITTEN = {"metrics.json", "metrics.csv", "report.html"} | demo_pde.WRITTEN | demo_mri.WRITTEN


@dataclass(frozen=True)
class Problem:
    """Sizes of the demo's problems.

    Attributes:
        pde: Of the Navier-Stokes problem.
        mri: Of the reconstruction problem.
    """

    pde: PDEProblem = field(default_factory=PDEProblem)
    mri: MRIProblem = field(default_factory=MRIProblem)


def demo(out: Path = Path("runs/demo"), overwrite: bool = False, problem: Problem | None = None) -> None:
    """Solves one problem of each kind from data to report: Navier-Stokes flows and accelerated MRI.

    PDE: an FNO and a Monarch operator of the same size learn to predict simulated flows. MRI: scans of synthetic heads
    are made, a small Monarch network learns to reconstruct one of them from a part of its k-space, and is compared on
    another with zero-filled SENSE, CG-SENSE and L1-wavelet. What is tested on was seen by no training and no choice.

    Args:
        out: Folder for data, runs, volumes, table (metrics.json, metrics.csv), report.html and pictures.
        overwrite: Delete what an earlier demo left there.
        problem: Sizes; by default such that it takes some minutes on two CPU cores.

    Raises:
        InputError: ``out`` holds an earlier demo and ``overwrite`` is not set, or anything else.
    """
    from sciml_monarch import report
    from sciml_monarch.training import quiet

    p = problem or Problem()
    quiet()
    _clear(out, overwrite)
    start = time.monotonic()
    pde = demo_pde.demo_pde(out, p.pde, _say)
    between = time.monotonic()
    mri = demo_mri.demo_mri(out, p.mri, _say)
    end = time.monotonic()
    rows = [*pde.rows, *mri.rows]
    verdict = [_compare_operators(pde.rows), _compare_reconstructions(mri.rows)]
    minutes = [f"{part} {seconds / 60:.1f}" for part, seconds in (("PDE", between - start), ("MRI", end - between))]
    took = f"Minutes with {torch.get_num_threads()} threads: {', '.join(minutes)}"
    report.write_metrics(out, rows)
    page = report.write_report(
        out,
        "Demo: flows and heads",
        rows,
        pde.pictures | mri.pictures,
        [*verdict, f"The MRI scans are semi-synthetic: phantoms, simulated coils, known truth. {took}"],
    )
    for line in (*verdict, took, str(page)):
        _say(line)


def _compare_operators(rows: Sequence[Mapping[str, object]]) -> str:
    fno, monarch = (float(str(row["relative_l2"])) for row in rows)
    comparison = "lower" if monarch < fno else "higher"
    return f"PDE: MonarchFNO's error is {abs(monarch / fno - 1):.0%} {comparison} than FNO's"


def _compare_reconstructions(rows: Sequence[Mapping[str, object]]) -> str:
    """The network, which is the last row, against each of the others."""
    *others, learned = ((str(row["method"]), float(str(row["psnr"]))) for row in rows)
    gains = [
        f"{abs(learned[1] - psnr):.1f} dB {'above' if learned[1] > psnr else 'below'} {name}" for name, psnr in others
    ]
    return f"MRI: {learned[0]} is {', '.join(gains)} on an unseen head"


def _clear(out: Path, overwrite: bool) -> None:
    """Deletes an earlier demo, and nothing that a demo does not write."""
    if not out.exists():
        return
    foreign = sorted(path.name for path in out.iterdir() if path.name not in WRITTEN)
    if foreign:
        raise InputError(f"{out}: holds {foreign[0]}, which no demo has written; give another --out")
    if any(out.iterdir()) and not overwrite:
        raise InputError(f"{out}: holds an earlier demo; give --overwrite or another --out")
    shutil.rmtree(out)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
