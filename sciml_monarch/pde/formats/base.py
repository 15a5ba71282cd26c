"""What every reader of trajectories and of pairs has in common: shapes, bounds, checks of the values."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.reading import Attribute


@dataclass(frozen=True)
class Layout:
    """What a file says about its trajectories before any of them is read.

    Attributes:
        fields: Channel names.
        units: One unit per channel, ``"1"`` where unknown or dimensionless.
        n_trajectories: Number of trajectories.
        grid: Points per axis.
        lengths: Domain length per axis; points lie on ``[0, L)``; 1.0 where unknown.
        times: Time of each frame in seconds; 0, 1, 2, ... where unknown.
        attributes: Physical and numerical parameters.
    """

    fields: tuple[str, ...]
    units: tuple[str, ...]
    n_trajectories: int
    grid: tuple[int, ...]
    lengths: tuple[float, ...]
    times: tuple[float, ...]
    attributes: dict[str, Attribute] = field(default_factory=dict)


class Trajectories(ABC):
    """Trajectories in one file or folder, read a window at a time.

    Nothing but the sizes is read when it is opened. The object can be pickled and used in forked or spawned
    worker processes: file handles are opened when the first window is read, in each process anew, and are
    never pickled.

    Attributes:
        path: File or folder.
        name: Field names joined, for messages.
        fields: Channel names, for example ``("vorticity",)``.
        units: One unit per channel.
        n_trajectories: Number of trajectories.
        n_times: Number of frames of a trajectory.
        grid: Points per axis.
        lengths: Domain length per axis, in metres or dimensionless.
        times: Time of each frame in seconds.
        attributes: Parameters such as viscosity and seed.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path = path
        self.name = ", ".join(layout.fields)
        self.fields = layout.fields
        self.units = layout.units
        self.n_trajectories = layout.n_trajectories
        self.n_times = len(layout.times)
        self.grid = layout.grid
        self.lengths = layout.lengths
        self.times = layout.times
        self.attributes = dict(layout.attributes)
        empty = [n for n in (self.n_trajectories, self.n_times, *self.grid, len(self.grid)) if n < 1]
        if empty or not self.fields:
            raise InputError(
                f"{path}: no data: {self.n_trajectories} trajectories of {self.n_times} times on the grid "
                f"{self.grid} with the fields {self.fields}"
            )

    def rename(self, fields: Sequence[str]) -> None:
        """Gives the channels other names, such as of arrays that have none.

        Args:
            fields: One name per channel.

        Raises:
            InputError: There are more channels or fewer.
        """
        if len(fields) != len(self.fields):
            raise InputError(f"{self.path}: has the fields {list(self.fields)}; {list(fields)} are not as many names")
        self.fields, self.name = tuple(fields), ", ".join(fields)

    def read(self, index: int, start: int, stop: int, stride: int = 1) -> Tensor:
        """Reads the frames ``start`` to ``stop - 1`` of one trajectory, and nothing else.

        Args:
            index: Trajectory, from 0.
            start: First frame.
            stop: Frame after the last.
            stride: Keep every ``stride``-th point of each axis, the first included.

        Returns:
            ``(stop - start, channel, *grid[::stride])``, float32, in the units of the file.

        Raises:
            IndexError: No such trajectory or frames.
            InputError: The file is damaged, or holds a value that is not a finite number.
        """
        if not 0 <= index < self.n_trajectories:
            raise IndexError(f"{self.path}: trajectory {index} of {self.n_trajectories} (they count from 0)")
        if not 0 <= start < stop <= self.n_times:
            raise IndexError(f"{self.path}: frames {start} to {stop} of a trajectory of {self.n_times} times")
        _check_stride(stride)
        window = self._read(index, start, stop, stride)
        values, bad = _float32(window)
        if bad is not None:
            frame, channel, *point = bad
            raise InputError(
                f"{self.path}: field '{self.fields[channel]}' holds {window[bad]} in "
                f"trajectory {index} at time "
                f"index {start + frame} (t = {self.times[start + frame]:g}), grid point "
                f"{_strided(point, stride)}; "
                "finite numbers were expected"
            )
        return values

    @abstractmethod
    def _read(self, index: int, start: int, stop: int, stride: int) -> np.ndarray:
        """Returns ``(stop - start, channel, *grid[::stride])`` in any real type; bounds are checked."""

    @abstractmethod
    def close(self) -> None:
        """Closes the file; the next ``read`` opens it again."""


class Pairs(ABC):
    """Pairs of input and target fields (for example permeability and pressure), read one at a time.

    Handles behave as in :class:`Trajectories`.

    Attributes:
        path: File.
        name: The two names joined, for messages.
        input_fields: Channel names of the input.
        target_fields: Channel names of the target.
        n_pairs: Number of pairs.
        grid: Points per axis, the same for input and target.
        lengths: Domain length per axis.
        attributes: Parameters such as viscosity.
    """

    def __init__(self, path: Path, layout: Layout, input_fields: tuple[str, ...]) -> None:
        self.path = path
        self.name = f"{', '.join(input_fields)} -> {', '.join(layout.fields)}"
        self.input_fields = input_fields
        self.target_fields = layout.fields
        self.units = layout.units
        self.n_pairs = layout.n_trajectories
        self.grid = layout.grid
        self.lengths = layout.lengths
        self.attributes = dict(layout.attributes)
        if min((self.n_pairs, *self.grid)) < 1:
            raise InputError(f"{path}: no data: {self.n_pairs} pairs on the grid {self.grid}")

    def read(self, index: int, stride: int = 1) -> tuple[Tensor, Tensor]:
        """Reads one pair.

        Args:
            index: Pair, from 0.
            stride: Keep every ``stride``-th point of each axis, the first included.

        Returns:
            Input ``(c, *grid[::stride])`` and target ``(c', *grid[::stride])``, float32.

        Raises:
            IndexError: No such pair.
            InputError: The file is damaged, or holds a value that is not a finite number.
        """
        if not 0 <= index < self.n_pairs:
            raise IndexError(f"{self.path}: pair {index} of {self.n_pairs} (they count from 0)")
        _check_stride(stride)
        inputs, targets = self._read(index, stride)
        return (
            self._checked(inputs, self.input_fields, index, stride),
            self._checked(targets, self.target_fields, index, stride),
        )

    def _checked(self, sample: np.ndarray, fields: tuple[str, ...], index: int, stride: int) -> Tensor:
        values, bad = _float32(sample)
        if bad is not None:
            raise InputError(
                f"{self.path}: field '{fields[bad[0]]}' holds {sample[bad]} in pair {index}, grid point "
                f"{_strided(bad[1:], stride)}; finite numbers were expected"
            )
        return values

    @abstractmethod
    def _read(self, index: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns input and target ``(c, *grid[::stride])`` in any real type; bounds are checked."""

    @abstractmethod
    def close(self) -> None:
        """Closes the file; the next ``read`` opens it again."""


def subsample(values: np.ndarray, n_axes: int, stride: int) -> np.ndarray:
    """Keeps every ``stride``-th point of the last ``n_axes`` axes.

    Done after a contiguous read: measured on chunked HDF5 (256², stride 4), strided selections in the file
    took three times as long, since HDF5 reads the whole chunk in either case.
    """
    everywhere: tuple[Any, ...] = (..., *(slice(None, None, stride),) * n_axes)
    return values if stride == 1 else values[everywhere]


def domain_length(coordinates: np.ndarray) -> float:
    """Length of an axis whose points each stand for a cell: their number times the spacing; 1.0 for one."""
    if coordinates.size < 2:
        return 1.0
    length = abs(float(coordinates[-1]) - float(coordinates[0])) * coordinates.size / (coordinates.size - 1)
    return float(f"{length:.6g}")  # coordinates are often float32: 0.99999994 is 1


def seconds(times: np.ndarray) -> tuple[float, ...]:
    """Times as Python numbers, free of the digits that float32 adds (0.1 instead of 0.10000000149)."""
    return tuple(float(f"{t:.7g}") if times.dtype == np.float32 else float(t) for t in times)


def _float32(window: np.ndarray) -> tuple[Tensor, tuple[int, ...] | None]:
    """Returns the values as float32 and the index of the first one that is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):  # reported below, with its place
        values = np.array(window, dtype=np.float32, order="C")
    finite = np.isfinite(values)
    if finite.all():
        return torch.from_numpy(values), None
    first = np.unravel_index(int(np.argmin(finite)), finite.shape)
    return torch.from_numpy(values), tuple(int(i) for i in first)


def _check_stride(stride: int) -> None:
    if stride < 1:
        raise InputError(f"stride {stride}: must be 1 or more")


def _strided(point: tuple[int, ...] | list[int], stride: int) -> tuple[int, ...]:
    return tuple(i * stride for i in point)
