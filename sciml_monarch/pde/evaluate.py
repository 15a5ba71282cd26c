"""The job `evaluate`: trained networks on the same unseen trajectories, as tables and pictures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from sciml_monarch import hub, plots, report
from sciml_monarch.devices import choose_device, device_name
from sciml_monarch.errors import InputError
from sciml_monarch.pde.base import n_parameters
from sciml_monarch.pde.description import RECORDS, Description
from sciml_monarch.pde.plots import field_comparison
from sciml_monarch.pde.protocol import Protocol, make_protocol, open_fields
from sciml_monarch.pde.readers import Trajectories
from sciml_monarch.pde.scoring import Scores, score, spectrum_of
from sciml_monarch.pde.spectra import energy_spectrum
from sciml_monarch.pde.surrogate import Surrogate
from sciml_monarch.pde.symmetry import GROUPS, GroupName
from sciml_monarch.reading import Attribute
from sciml_monarch.version import version


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found and wrote.

    Attributes:
        rows: One dictionary a network, as in ``metrics.json``.
        pictures: Caption to PNG file.
        report: The HTML page with both.
    """

    rows: list[dict[str, object]]
    pictures: dict[str, Path]
    report: Path


def evaluate(
    checkpoints: list[Path],
    data: Path,
    out: Path = Path("runs/evaluate"),
    n_test: int | None = None,
    n_steps: int | None = None,
    n_horizons: int = 3,
    resolution: int | None = None,
    batch_size: int = 20,
    device: str = "auto",
    known_frames: int | None = None,
    symmetry: GroupName | None = None,
    fields: Sequence[str] | None = None,
) -> Evaluation:
    """Compares trained networks on the same unseen trajectories.

    All networks predict the same frames of the last trajectories of a data set, from as many known frames as
    each was trained with. Prints a table; writes metrics.json, metrics.csv, report.html and pictures (truth,
    predictions and errors; spectra; growth of the error) into a folder. Files are replaced whole or not at
    all.

    Args:
        checkpoints: Training checkpoints (.ckpt) or saved folders, one or more.
        data: Trajectories: a file, or a folder of shards, of any format that training reads.
        out: Folder for the results; earlier results in it are replaced.
        n_test: Number of test trajectories, the last ones of the data. By default, and at most, those that the
            training left alone, if it was on the same data.
        n_steps: Frames that errors are taken over. By default those of the tests of the networks' trainings.
        n_horizons: Length of the free roll-out that is watched for divergence, in roll-outs of these tests.
        resolution: Points on the first axis to run on; it must divide the data's. By default that of the
            training.
        batch_size: Trajectories at a time.
        device: Where to run: cpu, cuda, cuda:1, or auto for a GPU where there is one.
        known_frames: Frames behind which all predict, from the last that each sees. By default those of the tests
            of their trainings, the most of them.
        symmetry: Average all predictions over the isometries of these symmetries of the equation, of
            :mod:`sciml_monarch.pde.symmetry`; takes as many times as long as there are isometries.
        fields: What the fields of the data are, in their order, where its files name them otherwise than those of
            the training, or not at all: ``[vorticity]`` of the FNO authors' ``u``.

    Returns:
        The rows and the paths of the pictures.

    Raises:
        InputError: A checkpoint or the data cannot be read, they do not fit each other, or an argument is out
            of range.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    place = choose_device(device)
    repeated = sorted({str(path) for path in checkpoints if checkpoints.count(path) > 1})
    if repeated or not checkpoints:
        raise InputError(f"checkpoints given twice: {', '.join(repeated)}" if repeated else "no checkpoint is given")
    networks = {path: hub.load_surrogate(path) for path in checkpoints}
    for network in networks.values():
        network.symmetrize(None if symmetry is None else GROUPS[symmetry]())
    names = method_names({path: type(network.net).__name__ for path, network in networks.items()})
    trajectories = open_fields(data, {network.description.fields for network in networks.values()}, fields)
    try:
        task = make_protocol(networks, trajectories, n_test, n_steps, n_horizons, resolution, known_frames)
        console = Console()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        scores: dict[str, Scores] = {}
        with Progress(*columns, console=console, transient=True) as progress:
            for path, network in networks.items():
                bar = progress.add_task(names[path], total=len(task.indices))
                advance = partial(progress.advance, bar)
                scores[names[path]] = score(network, trajectories, task, batch_size, place, advance)
                network.cpu()  # leaves the device to the next
        rows = [
            _row(names[path], path, network, data, task, scores[names[path]], place) | {"symmetry": symmetry}
            for path, network in networks.items()
        ]
        pictures = _pictures(out, trajectories, task, scores, next(iter(networks.values())).description)
    finally:
        trajectories.close()
    report.write_metrics(out, rows)
    averaged = "" if symmetry is None else f"; means over the isometries of {symmetry}"
    notes = (_note(data, task, place) + averaged + _other_physics(networks, names, trajectories.attributes),)
    page = report.write_report(out, "Neural PDE solvers on unseen trajectories", rows, pictures, notes)
    console.print(notes[0], highlight=False)
    console.print(report.terminal_table(rows))
    for path in (*pictures.values(), page):
        console.print(str(path), soft_wrap=True, highlight=False)
    return Evaluation(rows, pictures, page)


def method_names(classes: Mapping[Path, str]) -> dict[Path, str]:
    """A name a network: its class, with what tells the paths apart where several are of one class.

    Args:
        classes: Checkpoint to class name. ``runs/a/checkpoints/best.ckpt`` and
            ``runs/b/checkpoints/best.ckpt``, both ``FNO``, become ``FNO (a)`` and ``FNO (b)``.

    Returns:
        Checkpoint to name; all names differ.
    """
    names = {}
    for path, name in classes.items():
        same = [other.parts for other, other_name in classes.items() if other_name == name]
        own = path.parts
        if len(same) > 1:
            shortest = min(map(len, same))
            start = next((i for i in range(shortest) if len({p[i] for p in same}) > 1), shortest)
            stop = next((i for i in range(1, shortest - start + 1) if len({p[-i] for p in same}) > 1), 1) - 1
            name = f"{name} ({'/'.join(own[start : len(own) - stop]) or path})"
        names[path] = name
    return names


def _mean(values: torch.Tensor) -> float:
    return float(values.double().mean())


def _standard_error(values: torch.Tensor) -> float | None:
    return float(values.double().std()) / math.sqrt(len(values)) if len(values) > 1 else None


def _row(
    name: str,
    path: Path,
    network: Surrogate,
    data: Path,
    task: Protocol,
    scores: Scores,
    device: torch.device,
) -> dict[str, object]:
    first = [step for step in scores.growth.first_diverged_step if step is not None]
    past = scores.growth.relative_l2_past
    return {
        "task": "pde",
        "method": name,
        "relative_l2": _mean(scores.relative_l2),
        "relative_l2_standard_error": _standard_error(scores.relative_l2),
        "relative_h1": _mean(scores.relative_h1),
        "relative_h1_standard_error": _standard_error(scores.relative_h1),
        "spectrum_error": _mean(scores.spectrum_error),
        "correlation_time": _mean(scores.correlation_time.time),
        "correlation_time_is_lower_bound": bool(scores.correlation_time.is_lower_bound.any()),
        **({} if past is None else {"relative_l2_past_horizon": _mean(past)}),
        "max_rms_ratio": float(scores.growth.rms_ratio.max()),
        "n_diverged": len(first),
        "first_diverged_step": min(first, default=None),
        "n_parameters": n_parameters(network.net),
        "ms_per_step": scores.ms_per_step,
        "device": device_name(device),
        "n_test": len(task.indices),
        "n_history": network.description.n_history,
        "known_frames": task.first,
        "n_steps": task.n_steps,
        "n_trained_steps": network.description.n_steps,
        "n_free_steps": task.n_free,
        "grid": list(task.grid),
        "dt": task.dt,
        "checkpoint": str(path),
        "data": str(data),
        "version": version(),
        "torch": torch.__version__,
        "relative_l2_per_step": scores.relative_l2_per_step.double().mean(0).tolist(),
        "correlation_per_step": scores.correlation.double().mean(0).tolist(),
    }


def _note(data: Path, task: Protocol, device: torch.device) -> str:
    grid = " x ".join(map(str, task.grid))
    return (
        f"The last {len(task.indices)} trajectories of {data}, grid {grid}, {task.n_steps} steps of "
        f"{task.dt:g} s behind {task.first} known frames; "
        f"free roll-out of {task.n_free} steps; device: {device_name(device)}"
    )


def _other_physics(
    networks: Mapping[Path, Surrogate], names: Mapping[Path, str], attributes: Mapping[str, Attribute]
) -> str:
    """What the data has other values of than that of the networks' trainings: their errors are then of another task."""
    found = []
    for path, network in networks.items():
        theirs = network.description.attributes
        for name in sorted(theirs.keys() & attributes.keys() - RECORDS - {"dataset_name", "seed"}):
            if theirs[name] != attributes[name]:
                found.append(f"; {names[path]} was trained with {name} {theirs[name]}, tested with {attributes[name]}")
    return "".join(found)


def _pictures(
    out: Path, data: Trajectories, task: Protocol, scores: Mapping[str, Scores], description: Description
) -> dict[str, Path]:
    """Writes the pictures of each field and of the growth of errors."""
    written: dict[str, Path] = {}
    last = task.first + task.n_steps
    truth = data.read(task.indices[0], task.first, last, task.stride)
    for channel, (field, unit) in enumerate(zip(description.fields, description.units, strict=True)):
        suffix = f"_{field}" if len(description.fields) > 1 else ""
        label = field if unit == "1" else f"{field} ({unit})"
        figure = field_comparison(
            truth[:, channel],
            {name: s.sample[:, channel] for name, s in scores.items()},
            task.times[: task.n_steps],
            label,
            task.lengths,
            f"Test trajectory {task.indices[0]}: truth, prediction, error",
        )
        caption = f"Truth, predictions and errors of {field}; percentages are relative L2 errors of the frame"
        written[caption] = plots.save(figure, out / f"fields{suffix}.png")
        known = next(iter(scores.values())).truth_spectrum
        figure = plots.spectra(
            known.wavenumbers,
            known.values[channel],
            {name: s.spectrum.values[channel] for name, s in scores.items()},
            _spectrum_label(description, task, field, unit),
            f"Spectrum at t = {task.times[task.n_steps - 1]:.4g} s",
        )
        caption = f"Spectrum of {field} at the last predicted frame, mean over the test trajectories"
        written[caption] = plots.save(figure, out / f"spectra{suffix}.png")
    any_scores = next(iter(scores.values()))
    figure = plots.error_growth(
        [task.dt * (i + 1) for i in range(task.n_free)],
        {name: s.relative_l2_per_step for name, s in scores.items()},
        {name: s.correlation for name, s in scores.items()},
        {"truth": any_scores.truth_rms} | {name: s.growth.rms_ratio for name, s in scores.items()},
        task.dt * task.horizon,
    )
    caption = "Growth of the error, loss of correlation and amplitude of the free roll-out"
    written[caption] = plots.save(figure, out / "error_growth.png")
    return written


def _spectrum_label(description: Description, task: Protocol, field: str, unit: str) -> str:
    if spectrum_of(description.fields, task.grid) is energy_spectrum:
        return "kinetic energy of the shell" + (" (m²/s²)" if unit == "1/s" else "")
    return f"power of {field}" + (f" (({unit})²)" if unit != "1" else "")
