"""HDF5 shards in The Well's layout that are written while a simulation runs and can be resumed.

A shard has the suffix ``.partial`` until its last trajectory is written. All its space and structure are laid
out when it is created, and it is closed after every batch, so that a process killed at any time leaves a file
that opens; the data set ``complete`` says which trajectories it holds. Layout: ``docs/data_format.md`` of
PolymathicAI/the_well (Ohana et al. 2024), with three data sets more, one entry a trajectory: ``seeds``,
``dt``, ``complete``.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from sciml_monarch.errors import InputError

Parameter = bool | int | float | str
FIELD = "t0_fields/vorticity"
CHUNK_BYTES = 2**20  # of one trajectory's consecutive frames: HDF5's chunk cache holds one such chunk
HEADER_BYTES = 2**16  # room for the structure of one file in estimates of space


@dataclass(frozen=True)
class Contents:
    """What all shards of a data set have in common.

    Attributes:
        name: Name of the data set.
        parameters: What determines the data, physics and numerics; a shard with other values is refused.
        notes: What is recorded besides, such as the version of the program.
        times: Times of the frames, in seconds.
        resolution: Points per axis.
    """

    name: str
    parameters: Mapping[str, Parameter]
    notes: Mapping[str, Parameter]
    times: Sequence[float]
    resolution: int

    @property
    def trajectory_bytes(self) -> int:
        """Size of one trajectory's frames."""
        return 4 * len(self.times) * self.resolution**2


class Shard:
    """One file of a data set, complete or being written.

    Args:
        path: Its name once it is complete.
        first: Number of its first trajectory.
        n_trajectories: How many it holds.
        contents: What it has in common with the others.
    """

    def __init__(self, path: Path, first: int, n_trajectories: int, contents: Contents) -> None:
        self.path = path
        self.partial = path.with_name(path.name + ".partial")
        self.first = first
        self.n_trajectories = n_trajectories
        self.contents = contents

    def n_missing_bytes(self) -> int:
        """Space that the file still has to take on the disk."""
        total = self.n_trajectories * self.contents.trajectory_bytes + HEADER_BYTES
        for path in (self.path, self.partial):
            if path.exists():
                return max(0, total - 512 * path.stat().st_blocks)
        return total

    def complete(self) -> NDArray[np.bool_]:
        """Which trajectories are written, (n_trajectories,).

        Raises:
            InputError: The file was made with other parameters, or is damaged though its name says it is
                complete.
        """
        if self.path.exists():
            try:
                flags = self._read_flags(self.path)
            except OSError as error:
                raise InputError(f"{self.path} is damaged ({error}): delete it and run again") from None
            if not flags.all():
                raise InputError(f"{self.path} is complete by name but not by content: delete it and run again")
            return flags
        if self.partial.exists():
            try:
                return self._read_flags(self.partial)
            except (OSError, KeyError):
                self.partial.unlink()  # damaged, say by a power cut: computed again
        return np.zeros(self.n_trajectories, dtype=bool)

    def create(self) -> None:
        """Lays out the file, if there is none yet.

        Raises:
            InputError: The disk is full.
        """
        if self.partial.exists():
            return
        unready = self.path.with_name(self.path.name + ".new")
        try:
            with full_disk_as_input_error(self.path), h5py.File(unready, "w") as file:
                self._lay_out(file)
            unready.replace(self.partial)
        finally:
            unready.unlink(missing_ok=True)

    def write(self, rows: slice, vorticity: NDArray[np.float32], step: NDArray[np.float64]) -> None:
        """Writes finished trajectories and then marks them as complete.

        Args:
            rows: Their place in the file.
            vorticity: (len(rows), len(times), resolution, resolution).
            step: Their longest time steps in seconds, (len(rows),).

        Raises:
            InputError: The disk is full, or a value is not finite.
        """
        if not np.isfinite(vorticity).all():
            raise InputError(f"{self.path}: trajectories {rows.start} to {rows.stop - 1} are not finite: not written")
        with full_disk_as_input_error(self.path), h5py.File(self.partial, "r+") as file:
            file[FIELD][rows] = vorticity
            file["dt"][rows] = step
            file.flush()
            _to_disk(self.partial)
            file["complete"][rows] = True

    def finish(self) -> None:
        """Gives the file its name, if it does not have it yet."""
        if self.partial.exists():
            _to_disk(self.partial)
            self.partial.replace(self.path)

    def _read_flags(self, path: Path) -> NDArray[np.bool_]:
        with h5py.File(path, "r") as file:
            wanted = {
                **self.contents.parameters,
                "first_trajectory": self.first,
                "n_trajectories": self.n_trajectories,
            }
            for name, value in wanted.items():
                found = file.attrs.get(name)
                if found is None:
                    raise InputError(f"{path} was not made by this simulation: choose another folder")
                if found != value:
                    raise InputError(
                        f"{path} was made with {name}={found}, not {value}: choose another folder or the same value"
                    )
            return np.asarray(file["complete"][:], dtype=bool)

    def _lay_out(self, file: h5py.File) -> None:
        contents = self.contents
        n, n_times, resolution = self.n_trajectories, len(contents.times), contents.resolution
        file.attrs.update({**contents.parameters, **contents.notes})
        file.attrs["dataset_name"] = contents.name
        file.attrs["grid_type"] = "cartesian"
        file.attrs["n_spatial_dims"] = 2
        file.attrs["n_trajectories"] = n
        file.attrs["first_trajectory"] = self.first
        file.attrs["simulation_parameters"] = list(contents.parameters)
        dimensions = file.create_group("dimensions")
        dimensions.attrs["spatial_dims"] = ["x", "y"]
        _add(dimensions, "time", np.asarray(contents.times, dtype=np.float32), sample_varying=False)
        boundaries = file.create_group("boundary_conditions")
        edge = np.zeros(resolution, dtype=bool)
        edge[[0, -1]] = True
        for dim in ("x", "y"):
            points = np.arange(resolution, dtype=np.float32) / resolution
            _add(dimensions, dim, points, sample_varying=False, time_varying=False)
            boundary = boundaries.create_group(f"{dim}_periodic")
            boundary.attrs.update(bc_type="PERIODIC", associated_dims=[dim], sample_varying=False, time_varying=False)
            boundary.attrs["associated_fields"] = np.array([], dtype=h5py.string_dtype())
            boundary.create_dataset("mask", data=edge)
        scalars = file.create_group("scalars")
        scalars.attrs["field_names"] = ["viscosity"]
        viscosity = np.float64(contents.parameters["viscosity"])
        _add(scalars, "viscosity", viscosity, sample_varying=False, time_varying=False)
        for order in range(3):
            names = ["vorticity"] if order == 0 else []
            group = file.create_group(f"t{order}_fields")
            group.attrs["field_names"] = np.array(names, dtype=h5py.string_dtype())
        n_frames = min(n_times, max(1, CHUNK_BYTES // (4 * resolution**2)))
        early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        field = file.create_dataset(
            FIELD,
            shape=(n, n_times, resolution, resolution),
            dtype=np.float32,
            chunks=(1, n_frames, resolution, resolution),
            fill_time="never",  # the space is taken, not filled: ``complete`` says what is valid
            dcpl=early,
        )
        field.attrs.update(dim_varying=[True, True], sample_varying=True, time_varying=True, units="1/s")
        file.create_dataset("seeds", data=np.arange(self.first, self.first + n, dtype=np.int64))
        file.create_dataset("dt", data=np.zeros(n, dtype=np.float64)).attrs["units"] = "s"
        file.create_dataset("complete", data=np.zeros(n, dtype=bool))


def check_space(folder: Path, n_bytes: int) -> None:
    """Refuses to begin what will not fit.

    Raises:
        InputError: The file system of ``folder`` has less than ``n_bytes`` free.
    """
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise InputError(
            f"{folder} has {free / 1e9:.2f} GB free, the data set needs {n_bytes / 1e9:.2f} GB more: "
            "free some space, or choose fewer trajectories or a lower resolution"
        )


@contextmanager
def full_disk_as_input_error(path: Path) -> Iterator[None]:
    """Turns the errors with which the system and HDF5 report a full disk or quota into one clear line."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        codes = {getattr(error, "errno", None), *map(int, re.findall(r"errno = (\d+)", str(error)))}
        if codes & {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise InputError(
                f"no space left for {path}: free some and run the same command again, it resumes where it stopped"
            ) from None
        raise


def _add(group: h5py.Group, name: str, values: NDArray[np.generic] | np.generic, **attributes: bool) -> None:
    group.create_dataset(name, data=values).attrs.update(attributes)


def _to_disk(path: Path) -> None:
    """Waits until the file is on the disk: ``complete`` must not precede the data that it vouches for."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
