"""The job `predict`: a trained network rolled out from a user's own start."""

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from sciml_monarch import hub, plots
from sciml_monarch.devices import choose_device
from sciml_monarch.errors import InputError
from sciml_monarch.files import replacing
from sciml_monarch.pde.description import Description
from sciml_monarch.pde.protocol import check_fields, check_rolls_out, check_time_step, open_fields
from sciml_monarch.version import version


def predict(
    checkpoint: Path,
    input: Path,  # noqa: A002  (the option is called --input)
    steps: int = 10,
    out: Path = Path("prediction.hdf5"),
    index: int = 0,
    start: int = 0,
    force: bool = False,
    device: str = "auto",
    fields: Sequence[str] | None = None,
) -> list[Path]:
    """Rolls a trained network out from known frames.

    Writes the known and the predicted frames as HDF5 in The Well's layout and, beside it under the same name,
    each field as a PNG overview and an animated GIF. Files are written whole or not at all.

    Args:
        checkpoint: Training checkpoint (.ckpt) or saved folder.
        input: Known frames: trajectories in any format that training reads, or a NumPy array (.npy) of the
            shape (time, *grid), (time, field, *grid) or, of one field, (trajectory, time, *grid), in the units of
            the training data. The grid may differ from that of the training where the network allows it.
        steps: Frames to predict.
        out: HDF5 file to write.
        index: Trajectory of the input, from 0.
        start: First known frame that the network sees; it takes as many as it was trained with.
        force: Replace files that exist.
        device: Where to run: cpu, cuda, cuda:1, or auto for a GPU where there is one.
        fields: What the fields of the input are, in their order, where its files name them otherwise than those of
            the training; a NumPy array names none.

    Returns:
        The files written.

    Raises:
        InputError: The input does not fit the network, has too few frames, an argument is out of range, a
            file exists, or the prediction stops being finite.
    """
    from rich.console import Console

    place = choose_device(device)
    if steps < 1:
        raise InputError(f"steps is {steps}; it must be at least 1")
    network = hub.load_surrogate(checkpoint).to(place)
    description = network.description
    check_rolls_out(checkpoint, network)
    pictures = {
        suffix: [_beside(out, field if len(description.fields) > 1 else "", suffix) for field in description.fields]
        for suffix in (".png", ".gif")
    }
    files = [out, *pictures[".png"], *pictures[".gif"]]
    taken = [str(path) for path in files if path.exists()]
    if taken and not force:
        raise InputError(f"{', '.join(taken)}: exists; give --force or another --out")
    history, first_time, lengths = _read_history(checkpoint, description, input, index, start, fields)
    with torch.no_grad():
        prediction = network.rollout(history[None].to(place), steps)[0].cpu()
    finite = prediction.flatten(1).isfinite().all(1)
    if not finite.all():
        n_finite = int(finite.int().argmin())
        raise InputError(
            f"{checkpoint}: the prediction from {input} is not finite from step {n_finite + 1} on; "
            + (f"ask for at most {n_finite} steps" if n_finite else "check the units of the input")
        )
    frames = torch.cat([history, prediction])
    # Rounded, since 10 + 3 * 0.1 is not 10.3 and coordinates are read by people.
    times = [float(f"{first_time + i * description.dt:.12g}") for i in range(len(frames))]
    attributes: dict[str, str | int | float] = {
        "dataset_name": f"{type(network.net).__name__} prediction",
        "network": type(network.net).__name__,
        "checkpoint": str(checkpoint),
        "input": str(input),
        "input_trajectory": index,
        "input_first_frame": start,
        "n_history": description.n_history,
        "n_predicted": steps,
        "software": f"sciml-monarch {version()}",
    }
    with replacing(out) as path:
        write_well(path, frames, times, lengths, description, attributes)
    title = f"{type(network.net).__name__}: {steps} steps from {input.name}"
    for channel, (field, unit) in enumerate(zip(description.fields, description.units, strict=True)):
        label = field if unit == "1" else f"{field} ({unit})"
        shown = (frames[:, channel], times, description.n_history, label, lengths)
        plots.save(plots.contact_sheet(*shown, title), pictures[".png"][channel])
        plots.animate(pictures[".gif"][channel], *shown)
    console = Console()
    for path in files:
        console.print(str(path), soft_wrap=True, highlight=False)
    return files


def write_well(
    path: Path,
    frames: Tensor,
    times: list[float],
    lengths: tuple[float, ...],
    description: Description,
    attributes: dict[str, str | int | float],
) -> None:
    """Writes one trajectory in The Well's layout (PolymathicAI/the_well, ``docs/data_format.md``).

    Args:
        path: File to write.
        frames: ``(time, field, *grid)``.
        times: Time of each frame in seconds.
        lengths: Domain length per axis.
        description: Names, units and physical parameters of the fields. The domain is taken to be periodic.
        attributes: More attributes of the file.

    Raises:
        InputError: The disk is full.
    """
    grid = tuple(frames.shape[2:])
    axes = ["x", "y", "z"][: len(grid)]
    physics = {k: v for k, v in description.attributes.items() if k not in attributes}
    try:
        with h5py.File(path, "w") as file:
            file.attrs.update(attributes)
            file.attrs.update(physics)
            file.attrs["grid_type"] = "cartesian"
            file.attrs["n_spatial_dims"] = len(grid)
            file.attrs["n_trajectories"] = 1
            file.attrs["simulation_parameters"] = list(physics)
            dimensions = file.create_group("dimensions")
            dimensions.attrs["spatial_dims"] = axes
            time = dimensions.create_dataset("time", data=np.asarray(times, dtype=np.float64))
            time.attrs["sample_varying"] = False
            conditions = file.create_group("boundary_conditions")
            for axis, n, length in zip(axes, grid, lengths, strict=True):
                coordinate = dimensions.create_dataset(axis, data=np.arange(n, dtype=np.float64) * length / n)
                coordinate.attrs["sample_varying"] = coordinate.attrs["time_varying"] = False
                _periodic(conditions, axis, n, list(description.fields))
            file.create_group("scalars").attrs["field_names"] = []
            for order, names in enumerate((list(description.fields), [], [])):
                file.create_group(f"t{order}_fields").attrs["field_names"] = names
            for channel, (field, unit) in enumerate(zip(description.fields, description.units, strict=True)):
                data = file["t0_fields"].create_dataset(field, data=frames[None, :, channel].float().numpy())
                data.attrs["dim_varying"] = [True] * len(grid)
                data.attrs["sample_varying"] = data.attrs["time_varying"] = True
                data.attrs["units"] = unit
    except (OSError, RuntimeError) as error:  # HDF5 reports a full disk as either
        raise InputError(f"{path.parent}: cannot write HDF5 there, is the disk full? ({error})") from error


def _periodic(conditions: h5py.Group, axis: str, n: int, fields: list[str]) -> None:
    group = conditions.create_group(f"{axis}_periodic")
    group.attrs["bc_type"] = "PERIODIC"
    group.attrs["associated_dims"] = [axis]
    group.attrs["associated_fields"] = fields
    group.attrs["sample_varying"] = group.attrs["time_varying"] = False
    mask = np.zeros(n, dtype=bool)
    mask[[0, -1]] = True
    group.create_dataset("mask", data=mask)


def _beside(out: Path, field: str, suffix: str) -> Path:
    """``prediction.hdf5`` to ``prediction.png``, or ``prediction_density.png`` of one field of several."""
    return out.with_name(f"{out.stem}_{field}{suffix}" if field else f"{out.stem}{suffix}")


def _read_history(
    checkpoint: Path, description: Description, source: Path, index: int, start: int, fields: Sequence[str] | None
) -> tuple[Tensor, float, tuple[float, ...]]:
    """Frames that the network sees ``(n_history, field, *grid)``, time of the first, domain lengths."""
    n_history = description.n_history
    if source.suffix == ".npy":
        frames = _read_array(checkpoint, description, source, index)
        _check_frames(source, len(frames), n_history, start)
        history = torch.from_numpy(np.array(frames[start : start + n_history], dtype=np.float32))
        if not history.isfinite().all():
            raise InputError(f"{source}: holds values that are not finite numbers")
        return history, start * description.dt, description.lengths
    data = open_fields(source, {description.fields}, fields)
    try:
        check_fields(checkpoint, description, data)
        if not 0 <= index < data.n_trajectories:
            raise InputError(f"index is {index}, but {source} has {data.n_trajectories} trajectories, from 0 on")
        _check_frames(source, data.n_times, n_history, start)
        check_time_step(checkpoint, description.dt, source, data.times[start : start + n_history])
        return data.read(index, start, start + n_history), data.times[start], data.lengths
    finally:
        data.close()


def _check_frames(source: Path, n_frames: int, n_history: int, start: int) -> None:
    if start < 0 or start + n_history > n_frames:
        raise InputError(f"{source}: has {n_frames} frames, but the network needs {n_history}, from frame {start} on")


def _read_array(checkpoint: Path, description: Description, source: Path, index: int) -> np.ndarray:
    """A trajectory ``(time, field, *grid)``, mapped into memory, of an array with these axes, or without fields.

    Of one field also of several trajectories ``(N, time, *grid)``, which data to train on is.
    """
    try:
        frames = np.load(source, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{source}: not a NumPy array that can be read: {error}") from None
    n_axes, n_fields = len(description.grid), len(description.fields)
    several = n_fields == 1 and frames.ndim == n_axes + 2 and frames.shape[1] != 1
    if index and not several:
        raise InputError(f"index is {index}, but {source} holds one trajectory; leave it at 0")
    if several:
        if not 0 <= index < len(frames):
            raise InputError(f"index is {index}, but {source} has {len(frames)} trajectories, from 0 on")
        frames = frames[index]
    if frames.ndim == n_axes + 1 and n_fields == 1:
        frames = frames[:, None]
    if frames.ndim != n_axes + 2 or frames.shape[1] != n_fields or frames.dtype.kind not in "fiu":
        raise InputError(
            f"{source}: holds an array of {frames.dtype} of the shape {frames.shape}, but {checkpoint} needs "
            f"numbers (time, {n_fields} fields, {n_axes} grid axes)"
        )
    return frames
