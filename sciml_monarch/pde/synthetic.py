"""Writes tiny files in the real layouts of the field, with a known solution in them, for tests and demos.

The field is a sum of waves that travel at constant speed; nothing here solves an equation. Arrays are
``(trajectory, time, *grid)`` unless said otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch

from sciml_monarch.reading import Attribute

_AXES = ("x", "y", "z")


def travelling_waves(n_trajectories: int, n_times: int, grid: Sequence[int], seed: int = 0) -> np.ndarray:
    """Periodic waves of three wave numbers an axis, with amplitudes, phases and speeds from the seed.

    Args:
        n_trajectories: Number of trajectories; the first ones do not depend on it.
        n_times: Number of frames, at the times 0, 1, 2, ...
        grid: Points per axis.
        seed: Of the first trajectory; trajectory ``i`` has ``seed + i``.

    Returns:
        ``(n_trajectories, n_times, *grid)``, float32.
    """
    times = np.arange(n_times).reshape(-1, *(1,) * len(grid))
    points = np.meshgrid(*(np.arange(n) / n for n in grid), indexing="ij")
    waves = np.zeros((n_trajectories, n_times, *grid))
    for trajectory, wave in enumerate(waves):
        random = np.random.default_rng(seed + trajectory)
        for _ in range(3):
            numbers = random.integers(1, 4, size=len(grid))
            phase = sum(number * axis for number, axis in zip(numbers, points, strict=True))
            speed, offset, amplitude = random.uniform(-0.1, 0.1), random.uniform(), random.normal()
            wave += amplitude * np.sin(2 * np.pi * (phase + offset - speed * times))
    return waves.astype(np.float32)


@dataclass(frozen=True)
class WellField:
    """A field as The Well stores it.

    Attributes:
        values: ``(trajectory, time, *grid, *(dim,) * order)``, less the axes along which it does not vary.
        order: 0 for a scalar, 1 for a vector, 2 for a tensor.
        sample_varying: Whether there is an axis of trajectories.
        time_varying: Whether there is an axis of time.
        dim_varying: Which axes of space there are; all by default.
        unit: Unit.
    """

    values: np.ndarray
    order: int = 0
    sample_varying: bool = True
    time_varying: bool = True
    dim_varying: tuple[bool, ...] | None = None
    unit: str = "1"


def write_well(
    path: Path,
    fields: Mapping[str, WellField],
    grid: Sequence[int],
    times: Sequence[float],
    n_trajectories: int,
    attributes: Mapping[str, Attribute] | None = None,
) -> Path:
    """Writes an HDF5 file in The Well's layout on the periodic unit box and returns its path.

    Args:
        path: Where to write.
        fields: Fields by name.
        grid: Points per axis.
        times: Time of each frame in seconds.
        n_trajectories: Number of trajectories.
        attributes: Simulation parameters.
    """
    dims = _AXES[: len(grid)]
    parameters = dict(attributes or {})
    with h5py.File(path, "w") as file:
        file.attrs["dataset_name"] = path.stem
        file.attrs["grid_type"] = "cartesian"
        file.attrs["n_spatial_dims"] = len(grid)
        file.attrs["n_trajectories"] = n_trajectories
        file.attrs["simulation_parameters"] = list(parameters)
        for name, value in parameters.items():
            file.attrs[name] = value
        dimensions = file.create_group("dimensions")
        dimensions.attrs["spatial_dims"] = list(dims)
        dimensions.create_dataset("time", data=np.asarray(times, dtype=np.float32))
        for dim, n in zip(dims, grid, strict=True):
            dimensions.create_dataset(dim, data=(np.arange(n) / n).astype(np.float32))
            boundary = file.create_group(f"boundary_conditions/{dim}_periodic")
            boundary.attrs["bc_type"] = "PERIODIC"
            boundary.attrs["associated_dims"] = [dim]
            boundary.create_dataset("mask", data=np.zeros(n, dtype=bool))
        scalars = file.create_group("scalars")
        scalars.attrs["field_names"] = [k for k, v in parameters.items() if isinstance(v, float)]
        for name in scalars.attrs["field_names"]:
            scalar = scalars.create_dataset(name, data=parameters[name])
            scalar.attrs["sample_varying"] = scalar.attrs["time_varying"] = False
        for order in range(3):
            group = file.create_group(f"t{order}_fields")
            chosen = {name: field for name, field in fields.items() if field.order == order}
            group.attrs["field_names"] = list(chosen)
            for name, field in chosen.items():
                dataset = group.create_dataset(name, data=field.values)
                dataset.attrs["sample_varying"] = field.sample_varying
                dataset.attrs["time_varying"] = field.time_varying
                dataset.attrs["dim_varying"] = list(field.dim_varying or (True,) * len(grid))
                dataset.attrs["units"] = field.unit
    return path


def write_mat_v5(path: Path, arrays: Mapping[str, np.ndarray], compressed: bool = False) -> Path:
    """Writes a MATLAB v5 file of arrays (N, *grid[, t]), as the FNO authors share, and returns its path."""
    from scipy.io import savemat

    savemat(path, dict(arrays), do_compression=compressed)
    return path


def write_mat_v73(path: Path, arrays: Mapping[str, np.ndarray], chunks: tuple[int, ...] | None = None) -> Path:
    """Writes a MATLAB v7.3 file: HDF5 behind a user block of 512 bytes, with the axes reversed.

    Args:
        path: Where to write.
        arrays: Arrays (N, *grid[, t]).
        chunks: Chunk of the arrays that have as many axes, in the reversed order; contiguous by default.
    """
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in arrays.items():
            fits = chunks if chunks is not None and len(chunks) == values.ndim else None
            dataset = file.create_dataset(name, data=values.T, chunks=fits)
            dataset.attrs["MATLAB_class"] = np.bytes_("single" if values.dtype == np.float32 else "double")
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, HDF5 schema 1.00 .".ljust(124) + b"\x00\x02IM"
    with path.open("r+b") as raw:
        raw.write(header)
    return path


def write_neuralop_darcy(path: Path, permeability: np.ndarray, pressure: np.ndarray) -> Path:
    """Writes a Darcy file of neuraloperator, ``x`` and ``y`` (N, n, n), and returns its path."""
    torch.save({"x": torch.from_numpy(permeability), "y": torch.from_numpy(pressure)}, path)
    return path


def write_neuralop_burgers(path: Path, waves: np.ndarray, viscosity: float = 0.01) -> Path:
    """Writes a Burgers file of neuraloperator: ``x`` (N, n), ``y`` (N, T, n), ``visc``; returns the path."""
    solution = torch.from_numpy(waves).double()
    visc = torch.full((1, 1), viscosity, dtype=torch.float64)
    torch.save({"x": solution[:, 0].clone(), "y": solution, "visc": visc}, path)
    return path


def write_pdebench(path: Path, fields: Mapping[str, np.ndarray], coordinates: bool = True) -> Path:
    """Writes a PDEBench file with one data set (N, T, *grid) a field: ``tensor``, or ``density``, ``Vx``, ...

    Coordinates are centres of cells of the unit box; as in PDEBench there is one time more than frames.
    """
    n_times, *grid = next(iter(fields.values())).shape[1:]
    with h5py.File(path, "w") as file:
        for name, values in fields.items():
            file.create_dataset(name, data=values)
        if coordinates:
            for axis, n in zip(_AXES, grid, strict=False):
                file.create_dataset(f"{axis}-coordinate", data=((np.arange(n) + 0.5) / n).astype(np.float32))
            file.create_dataset("t-coordinate", data=(0.1 * np.arange(n_times + 1)).astype(np.float32))
        file.attrs["eta"] = 0.01
    return path


def write_pdebench_incompressible(path: Path, velocity: np.ndarray, particles: np.ndarray) -> Path:
    """Writes ``velocity`` (N, T, X, Y, 2), ``particles`` (N, T, X, Y, 1), ``t`` (N, T); returns the path."""
    with h5py.File(path, "w") as file:
        file.create_dataset("velocity", data=velocity)
        file.create_dataset("particles", data=particles)
        file.create_dataset("t", data=np.tile(0.005 * np.arange(velocity.shape[1]), (len(velocity), 1)))
    return path


def write_pdebench_groups(path: Path, fields: np.ndarray) -> Path:
    """Writes ``fields`` (N, T, *grid, C) as a group a trajectory: ``0000/data``, ``0000/grid``."""
    n_times, *grid = fields.shape[1:-1]
    with h5py.File(path, "w") as file:
        for number, values in enumerate(fields):
            group = file.create_group(f"{number:04d}")
            group.create_dataset("data", data=values)
            group.create_dataset("grid/t", data=np.linspace(0, 1, n_times, dtype=np.float32))
            for axis, n in zip(_AXES, grid, strict=False):
                group.create_dataset(f"grid/{axis}", data=(5 * (np.arange(n) + 0.5) / n - 2.5).astype(np.float32))
    return path


def write_pdebench_darcy(path: Path, permeability: np.ndarray, pressure: np.ndarray) -> Path:
    """Writes ``nu`` (N, X, Y) and ``tensor`` (N, 1, X, Y) on the unit square and returns the path."""
    with h5py.File(path, "w") as file:
        file.create_dataset("nu", data=permeability)
        file.create_dataset("tensor", data=pressure[:, None])
        for axis, n in zip(_AXES, permeability.shape[1:], strict=False):
            file.create_dataset(f"{axis}-coordinate", data=((np.arange(n) + 0.5) / n).astype(np.float32))
        file.attrs["beta"] = 1.0
    return path
