"""HDF5 of PDEBench (Takamoto et al. 2022, NeurIPS Datasets and Benchmarks), in all its layouts.

=====================  =======================================================  =================
data                   data sets, shapes                                        times
=====================  =======================================================  =================
1-D equations          ``tensor`` (N, T, X)                                     ``t-coordinate``
compressible flow      ``density``, ``pressure``, ``Vx``, ... (N, T, X, Y, Z)   ``t-coordinate``
incompressible flow    ``velocity`` (N, T, X, Y, 2), ``particles``              ``t`` (N, T)
shallow water, others  one group a trajectory: ``0000/data`` (T, X, Y, C)       ``0000/grid/t``
Darcy flow (pairs)     ``nu`` (N, X, Y) and ``tensor`` (N, 1, X, Y)             none
=====================  =======================================================  =================

The finite-volume solvers store one time more than frames; the surplus is ignored. Coordinates are centres of
cells.
"""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from sciml_monarch.errors import InputError
from sciml_monarch.hdf5 import Hdf5File, plain_attributes
from sciml_monarch.pde.formats.base import Layout, Pairs, Trajectories, domain_length, seconds, subsample
from sciml_monarch.reading import missing, reading

_AXES = ("x", "y", "z")
_FLOW = ("density", "pressure", "Vx", "Vy", "Vz")  # data sets of the compressible solver, in PDEBench's order
_INCOMPRESSIBLE = ("velocity", "particles")


def is_pdebench(file: h5py.File) -> bool:
    """Whether the keys are those of one of PDEBench's layouts."""
    return "tensor" in file or set(_FLOW[:2]) <= set(file) or "velocity" in file or bool(_sample_groups(file))


@dataclass(frozen=True)
class _Part:
    """A data set with the axes (trajectory, time, *grid) and, if ``channels_last``, its components."""

    key: str
    fields: tuple[str, ...]
    channels_last: bool


class PDEBenchTrajectories(Trajectories):
    """Trajectories whose data sets hold all of them: (N, T, X[, Y[, Z]][, C]).

    Args:
        path: The file.
        field: Read this data set or channel only; all by default.

    Raises:
        InputError: The file does not follow a layout of PDEBench, or lacks ``field``.
    """

    def __init__(self, path: Path, field: str | None = None) -> None:
        self._hdf5 = Hdf5File(path)
        with reading(path, "the data sets of PDEBench"):
            parts = self._parts()
            shape = self._hdf5.dataset(parts[0].key).shape
            n_axes = len(shape) - 2 - parts[0].channels_last
            for part in parts[1:]:
                other = self._hdf5.dataset(part.key).shape
                if other[: 2 + n_axes] != shape[: 2 + n_axes]:
                    raise InputError(
                        f"{path}: data set '{part.key}' has the shape {other}, but "
                        f"'{parts[0].key}' has {shape}; "
                        "the same trajectories, times and grid were expected"
                    )
            if "nu" in self._hdf5.file and shape[1] == 1:
                raise InputError(
                    f"{path}: data set 'tensor' has one time and 'nu' holds inputs: these are "
                    "pairs (Darcy flow), "
                    "not trajectories; open them with open_pairs or PairData"
                )
            chosen = [p for p in parts if field in (None, p.key) or field in p.fields]
            if not chosen:
                raise missing(path, f"the field '{field}'", [name for part in parts for name in part.fields])
            layout = Layout(
                fields=tuple(name for part in chosen for name in part.fields),
                units=tuple("1" for part in chosen for _ in part.fields),
                n_trajectories=shape[0],
                grid=shape[2 : 2 + n_axes],
                lengths=_lengths(self._hdf5, [f"{axis}-coordinate" for axis in _AXES[:n_axes]]),
                times=_times(self._hdf5, ("t-coordinate", "t"), shape[1]),
                attributes=plain_attributes(self._hdf5.file.attrs),
            )
        self._hdf5.close()
        super().__init__(path, layout)
        # One channel of a data set with several is cut out after the read.
        self._parts_read = chosen
        self._channel = None
        if field is not None and len(self.fields) > 1 and field in self.fields:
            self._channel = self.fields.index(field)
            self.fields, self.units, self.name = (field,), ("1",), field

    def _read(self, index: int, start: int, stop: int, stride: int) -> np.ndarray:
        windows = []
        for part in self._parts_read:
            values = self._hdf5.read_real(part.key, (index, slice(start, stop)))
            values = np.moveaxis(values, -1, 1) if part.channels_last else values[:, None]
            windows.append(subsample(values, len(self.grid), stride))
        window = np.concatenate(windows, axis=1)
        return window if self._channel is None else window[:, self._channel : self._channel + 1]

    def close(self) -> None:
        """Closes the file; the next ``read`` opens it again."""
        self._hdf5.close()

    def _parts(self) -> list[_Part]:
        file = self._hdf5.file
        if "tensor" in file:
            n_dims = self._hdf5.dataset("tensor").ndim
            n_axes = sum(f"{axis}-coordinate" in file for axis in _AXES) or n_dims - 2
            if n_dims == 3 + n_axes:
                n_channels = self._hdf5.dataset("tensor").shape[-1]
                return [_Part("tensor", _numbered("tensor", n_channels), channels_last=True)]
            if n_dims != 2 + n_axes or n_axes < 1:
                raise InputError(
                    f"{self._hdf5.path}: data set 'tensor' has {n_dims} axes, expected (N, T, "
                    "X[, Y[, Z]]) with "
                    f"{n_axes} axes of space"
                )
            return [_Part("tensor", ("tensor",), channels_last=False)]
        if "velocity" in file:
            keys = [key for key in _INCOMPRESSIBLE if key in file]
            shapes = {key: self._hdf5.dataset(key).shape for key in keys}
            return [
                _Part(
                    key,
                    _components(key, shapes[key][-1]) if key == "velocity" else (key,),
                    channels_last=True,
                )
                for key in keys
            ]
        return [_Part(key, (key,), channels_last=False) for key in _FLOW if key in file]


class PDEBenchGroups(Trajectories):
    """Trajectories that have a group each: ``0000/data`` (T, X[, Y], C) and ``0000/grid``.

    The shapes of all groups but the first are checked when they are read: a file has thousands of groups.

    Args:
        path: The file.
        field: Read this channel only ("data_0"); all by default.

    Raises:
        InputError: The file does not follow this layout, or lacks ``field``.
    """

    def __init__(self, path: Path, field: str | None = None) -> None:
        self._hdf5 = Hdf5File(path)
        with reading(path, "the groups of PDEBench"):
            self._groups = _sample_groups(self._hdf5.file)
            first = self._groups[0]
            self._shape = self._hdf5.dataset(f"{first}/data").shape
            n_axes = len(self._shape) - 2
            fields = _numbered("data", self._shape[-1])
            if field is not None and field not in fields:
                raise missing(path, f"the field '{field}'", list(fields))
            self._channels = slice(None) if field is None else slice(fields.index(field), fields.index(field) + 1)
            layout = Layout(
                fields=fields[self._channels],
                units=("1",) * len(fields[self._channels]),
                n_trajectories=len(self._groups),
                grid=self._shape[1:-1],
                lengths=_lengths(self._hdf5, [f"{first}/grid/{axis}" for axis in _AXES[:n_axes]]),
                times=_times(self._hdf5, (f"{first}/grid/t",), self._shape[0]),
                attributes=plain_attributes(self._hdf5.file.attrs),
            )
        self._hdf5.close()
        super().__init__(path, layout)

    def _read(self, index: int, start: int, stop: int, stride: int) -> np.ndarray:
        key = f"{self._groups[index]}/data"
        shape = self._hdf5.dataset(key).shape
        if shape != self._shape:
            raise InputError(
                f"{self.path}: data set '{key}' has the shape {shape}, but '{self._groups[0]}/data' has {self._shape}"
            )
        values = np.moveaxis(self._hdf5.read_real(key, (slice(start, stop),)), -1, 1)
        return subsample(values[:, self._channels], len(self.grid), stride)

    def close(self) -> None:
        """Closes the file; the next ``read`` opens it again."""
        self._hdf5.close()


class PDEBenchPairs(Pairs):
    """Darcy flow: ``nu`` (N, X, Y) to ``tensor`` (N, 1, X, Y).

    Raises:
        InputError: The file holds other data sets or shapes.
    """

    def __init__(self, path: Path) -> None:
        self._hdf5 = Hdf5File(path)
        with reading(path, "the data sets 'nu' and 'tensor'"):
            inputs, targets = self._hdf5.dataset("nu").shape, self._hdf5.dataset("tensor").shape
            if targets != (inputs[0], 1, *inputs[1:]):
                raise InputError(
                    f"{path}: data set 'tensor' has the shape {targets}, expected "
                    f"{(inputs[0], 1, *inputs[1:])} "
                    f"as 'nu' has {inputs}"
                )
            grid = inputs[1:]
            layout = Layout(
                fields=("tensor",),
                units=("1",),
                n_trajectories=inputs[0],
                grid=grid,
                lengths=_lengths(self._hdf5, [f"{axis}-coordinate" for axis in _AXES[: len(grid)]]),
                times=(0.0,),
                attributes=plain_attributes(self._hdf5.file.attrs),
            )
        self._hdf5.close()
        super().__init__(path, layout, ("nu",))

    def _read(self, index: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
        n_axes = len(self.grid)
        inputs = self._hdf5.read_real("nu", (index,))[None]
        targets = self._hdf5.read_real("tensor", (index,))
        return subsample(inputs, n_axes, stride), subsample(targets, n_axes, stride)

    def close(self) -> None:
        """Closes the file; the next ``read`` opens it again."""
        self._hdf5.close()


def _sample_groups(file: h5py.File) -> list[str]:
    return sorted(key for key in file if isinstance(file[key], h5py.Group) and "data" in file[key])


def _numbered(name: str, n_channels: int) -> tuple[str, ...]:
    return (name,) if n_channels == 1 else tuple(f"{name}_{i}" for i in range(n_channels))


def _components(name: str, n_channels: int) -> tuple[str, ...]:
    return tuple(f"{name}_{axis}" for axis in _AXES[:n_channels])


def _lengths(hdf5: Hdf5File, keys: list[str]) -> tuple[float, ...]:
    return tuple(domain_length(hdf5.read_real(key)) if key in hdf5.file else 1.0 for key in keys)


def _times(hdf5: Hdf5File, keys: tuple[str, ...], n_times: int) -> tuple[float, ...]:
    for key in keys:
        if key in hdf5.file:
            values = hdf5.read_real(key)
            values = values.reshape(-1, values.shape[-1])[0]
            if len(values) < n_times:
                raise InputError(f"{hdf5.path}: data set '{key}' has {len(values)} times, expected {n_times}")
            return seconds(values[:n_times])
    return tuple(float(t) for t in range(n_times))
