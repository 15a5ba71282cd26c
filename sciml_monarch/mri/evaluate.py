"""The job `evaluate` of MRI: reconstructions of several methods against the truth, as tables and pictures."""

import csv
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from sciml_monarch import plots, report
from sciml_monarch.errors import InputError
from sciml_monarch.files import replacing
from sciml_monarch.mri.io import read_reconstruction
from sciml_monarch.mri.matching import Predictions, Truth, compared, find_predictions, find_truths, method_names
from sciml_monarch.mri.metrics import psnr, ssim
from sciml_monarch.mri.plots import image_comparison, scores_by_volume
from sciml_monarch.mri.scoring import VolumeScores, fitted, grouped, score_volume, summary
from sciml_monarch.version import version

SPREAD = "Means over volumes ± two standard deviations, as fastMRI's evaluation prints them."


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_mri` found and wrote.

    Attributes:
        rows: One dictionary a method, as in ``metrics.json``.
        pictures: Caption to PNG file.
        report: The HTML page with both.
        remarks: A line for each volume of which methods are compared across accelerations.
    """

    rows: list[dict[str, object]]
    pictures: dict[str, Path]
    report: Path
    remarks: list[str]


def evaluate_mri(
    predictions: list[Path],
    target: Path,
    out: Path = Path("runs/evaluate_mri"),
    target_key: str | None = None,
    acquisition: str | None = None,
    acceleration: float | None = None,
    consistency: bool = False,
    n_pictures: int = 2,
) -> Evaluation:
    """Compares reconstructed volumes with the truth, by the metrics of fastMRI's evaluation.

    A folder of reconstructions is a method; all methods are compared on the volumes that all of them have, paired
    with the truth by file name. Prints tables, one more for each acquisition and acceleration where there are
    several; writes metrics.json, metrics.csv, volumes.csv, report.html and pictures (truth, reconstructions, errors
    and a zoom; scores by volume) into a folder. Files that are missing, damaged or do not fit are named at the end,
    and the others are compared; the exit status is then 2, as where an error is not finite.

    Args:
        predictions: Folders of HDF5 files with a data set `reconstruction`, or single files, one a method.
        target: Folder of fastMRI or SKM-TEA files, or one file, with the reference volumes; all of them are expected
            to have been reconstructed.
        out: Folder for the results; files of the same names are replaced.
        target_key: Data set of the reference, such as `truth` of semi-synthetic files (without noise). By default
            reconstruction_rss, or reconstruction_esc of single-coil files.
        acquisition: Compare volumes of this acquisition only, for example AXT2.
        acceleration: Compare volumes of this acceleration only, to 5 %: counted accelerations are not round.
        consistency: Compute the data-consistency residual from complex images, masks and maps in the files of the
            reconstructions (`reconstruct --complex true`) and from the k-space of the target files, instead of
            showing what the former say.
        n_pictures: Number of volumes of which a picture is made, spread evenly.

    Returns:
        The rows, the paths of the pictures and remarks.

    Raises:
        InputError: Nothing can be compared, or an argument is out of range; or, after everything else is written and
            shown, files or volumes were left out or are not finite.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if n_pictures < 0:
        raise InputError(f"n_pictures is {n_pictures}; it must not be negative")
    truths, methods, problems = _matched(predictions, target, target_key, acquisition)
    console = Console()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("volumes", total=len(truths) * len(methods))
        scores, failures, remarks = _score(truths, methods, acceleration, consistency, partial(progress.advance, bar))
    problems += failures
    volumes = {v.volume for v in next(iter(scores.values()))}
    if not volumes:
        wanted = "" if acceleration is None else f" of acceleration {acceleration:g}"
        raise InputError(_nothing(f"no volume{wanted} can be compared", problems))
    truths = [truth for truth in truths if truth.name in volumes]
    groups = grouped(scores)
    rows = [_row(name, methods[name], target, truths, scores[name], groups) for name in methods]
    pictures = _pictures(out, truths, methods, scores, n_pictures)
    report.write_metrics(out, rows)
    _write_volumes(out / "volumes.csv", scores)
    tables = {"": rows} if len(groups) == 1 else {"": rows} | {g: _group_rows(g, of) for g, of in groups.items()}
    keys = ", ".join(sorted({truth.key or "target" for truth in truths}))
    count = f"{len(truths)} volume{'s' if len(truths) > 1 else ''}"
    notes = [f"{count} of {target} ({keys}). {SPREAD}", *remarks, *problems]
    page = report.write_report(
        out, "MRI reconstructions against the truth", [r for t in tables.values() for r in t], pictures, notes
    )
    say = partial(console.print, soft_wrap=True, highlight=False, markup=False)
    say(notes[0])
    for title, table in tables.items():
        console.print(report.terminal_table(table, escape(title) or None))
    for path in (*pictures.values(), page):
        say(str(path))
    for line in remarks:
        say(f"note: {line}")
    if problems:
        words = f"{len(problems)} files or volumes were left out or are not finite"
        say(f"{words}:")
        for line in problems:
            say(f"  {line}")
        raise InputError(f"{words}; {problems[0]}")
    return Evaluation(rows, pictures, page, remarks)


def _matched(
    predictions: list[Path], target: Path, key: str | None, acquisition: str | None
) -> tuple[list[Truth], dict[str, Predictions], list[str]]:
    repeated = sorted({str(path) for path in predictions if predictions.count(path) > 1})
    if repeated or not predictions:
        raise InputError(f"given twice: {', '.join(repeated)}" if repeated else "no reconstructions are given")
    truths, problems = find_truths(target, key)
    names = {truth.name for truth in truths}
    found = [find_predictions(path, names) for path in predictions]
    methods = dict(zip(method_names(found), found, strict=True))
    common, present, left_out = compared(truths, methods)
    problems += left_out
    if common and acquisition is not None:
        chosen = [truth for truth in common if truth.acquisition == acquisition]
        if not chosen:
            there = ", ".join(sorted({truth.acquisition or "unknown" for truth in common}))
            raise InputError(f"{target}: no volume of acquisition {acquisition!r}; there are: {there}")
        common = chosen
    if not common:
        raise InputError(_nothing("no volume can be compared", problems))
    return common, {name: methods[name] for name in present}, problems


def _nothing(what: str, problems: list[str]) -> str:
    more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
    return f"{what}: {problems[0]}{more}" if problems else what


def _score(
    truths: list[Truth],
    methods: Mapping[str, Predictions],
    acceleration: float | None,
    consistency: bool,
    advance: Callable[[], None],
) -> tuple[dict[str, list[VolumeScores]], list[str], list[str]]:
    """Scores of the volumes that every method's file of fits, in one order; what went wrong; remarks."""
    scores: dict[str, list[VolumeScores]] = {name: [] for name in methods}
    problems: list[str] = []
    remarks: list[str] = []
    for truth in truths:
        found: dict[str, VolumeScores] = {}
        try:
            volume = truth.read()
            for name, method in methods.items():
                found[name] = score_volume(truth, volume, method.files[truth.name], consistency)
                advance()
        except InputError as error:
            problems.append(f"{error}; {truth.name} is not compared")
            continue
        if acceleration is not None and not all(_is_near(v.acceleration, acceleration) for v in found.values()):
            continue
        for name, v in found.items():
            scores[name].append(v)
            if not math.isfinite(v.nmse):
                problems.append(f"{methods[name].files[truth.name]}: the error of {name} is not finite")
        if len({v.acceleration for v in found.values()}) > 1:
            each = ", ".join(f"{name}: {v.acceleration}" for name, v in found.items())
            remarks.append(f"{truth.name}: methods are compared across accelerations ({each})")
    return scores, problems, remarks


def _is_near(acceleration: float | None, wanted: float) -> bool:
    return acceleration is not None and math.isclose(acceleration, wanted, rel_tol=0.05)


def _row(
    name: str,
    method: Predictions,
    target: Path,
    truths: list[Truth],
    scores: list[VolumeScores],
    groups: Mapping[str, Mapping[str, list[VolumeScores]]],
) -> dict[str, object]:
    attributes = read_reconstruction(method.files[truths[0].name]).attributes
    accelerations = {v.acceleration for v in scores}
    return {
        "task": "mri",
        "method": name,
        **summary(scores),
        "acquisition": ", ".join(sorted({v.acquisition for v in scores} - {""})) or None,
        "acceleration": accelerations.pop() if len(accelerations) == 1 else None,
        "network": attributes.get("network") or None,
        "made_by": attributes.get("software"),
        "predictions": str(method.path),
        "target": str(target),
        "target_key": ", ".join(sorted({truth.key or "target" for truth in truths})),
        "version": version(),
        "groups": [{"group": group, **summary(of[name])} for group, of in groups.items() if name in of],
        "volumes": [asdict(v) for v in scores],
    }


def _group_rows(group: str, scores: Mapping[str, list[VolumeScores]]) -> list[dict[str, object]]:
    """Rows of a table of their own: the task is its heading."""
    return [{"task": group, "method": name, **summary(volumes)} for name, volumes in scores.items()]


def _write_volumes(path: Path, scores: Mapping[str, list[VolumeScores]]) -> None:
    text = io.StringIO(newline="")
    rows = [{"method": name, **asdict(v)} for name, volumes in scores.items() for v in volumes]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with replacing(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def _pictures(
    out: Path,
    truths: list[Truth],
    methods: Mapping[str, Predictions],
    scores: Mapping[str, list[VolumeScores]],
    n_pictures: int,
) -> dict[str, Path]:
    """Writes the middle slice of some volumes, and the scores of all where there are several."""
    written: dict[str, Path] = {}
    shown = np.unique(np.linspace(0, len(truths) - 1, min(n_pictures, len(truths))).round().astype(int))
    for truth in (truths[i] for i in shown):
        target = truth.read()
        at = len(target) // 2
        images, texts = {}, {}
        for name, method in methods.items():
            reference, volume = fitted(target, read_reconstruction(method.files[truth.name]).volume)
            pair, top = (reference[at : at + 1], volume[at : at + 1]), float(reference.max())
            images[name] = volume[at]
            texts[name] = f"PSNR {psnr(*pair, top):.2f} dB, SSIM {ssim(*pair, top):.3f}"
        group = next(v.group for v in next(iter(scores.values())) if v.volume == truth.name)
        figure = image_comparison(reference[at], images, texts, f"{truth.name}, slice {at} ({group})")
        caption = f"{truth.name}, slice {at}: truth, reconstructions, errors and zoom; scores are those of the slice"
        written[caption] = plots.save(figure, out / f"comparison_{truth.name}.png")
    if len(truths) > 1:
        titles = {"psnr": "PSNR (dB)", "ssim": "SSIM", "hfen": "HFEN"}
        values = {
            title: {name: [getattr(v, key) for v in volumes] for name, volumes in scores.items()}
            for key, title in titles.items()
        }
        written["Scores of all volumes and their means"] = plots.save(scores_by_volume(values), out / "volumes.png")
    return written
