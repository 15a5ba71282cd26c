"""A folder of files that together are one data set."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from sciml_monarch.errors import InputError
from sciml_monarch.pde.formats.base import Layout, Trajectories
from sciml_monarch.reading import Attribute

_N_OPEN = 16  # files kept open at a time: operating systems allow some hundred to a process


class Folder(Trajectories):
    """Trajectories of several files with the same fields, grid and times, numbered through in that order.

    Parameters that differ between the files are left out of ``attributes``, but for the number of the first trajectory.

    Args:
        folder: Where the files lie, for messages.
        shards: Its files, opened.

    Raises:
        InputError: Two files differ in fields, grid, domain or times; the message names both with their
            values.
    """

    def __init__(self, folder: Path, shards: Sequence[Trajectories]) -> None:
        first = shards[0]
        for shard in shards[1:]:
            for what in ("fields", "units", "grid", "lengths", "times"):
                _check_same(what, first, shard)
        self._shards = list(shards)
        self._ends = list(accumulate(shard.n_trajectories for shard in shards))
        self._open: list[int] = []
        layout = Layout(
            fields=first.fields,
            units=first.units,
            n_trajectories=self._ends[-1],
            grid=first.grid,
            lengths=first.lengths,
            times=first.times,
            attributes={
                name: value
                for name, value in first.attributes.items()
                if all(shard.attributes.get(name) == value for shard in shards)
            }
            | _first_of(shards),
        )
        super().__init__(folder, layout)

    def _read(self, index: int, start: int, stop: int, stride: int) -> np.ndarray:
        number = bisect_right(self._ends, index)
        if number in self._open:
            self._open.remove(number)
        elif len(self._open) == _N_OPEN:
            self._shards[self._open.pop(0)].close()
        self._open.append(number)
        shard = self._shards[number]
        # ``read`` rather than ``_read``: an error then names the file and the trajectory's number in it.
        return shard.read(index - (self._ends[number] - shard.n_trajectories), start, stop, stride).numpy()

    def close(self) -> None:
        """Closes all files; the next ``read`` opens the one that it needs."""
        for number in self._open:
            self._shards[number].close()
        self._open = []


def _first_of(shards: Sequence[Trajectories]) -> dict[str, Attribute]:
    """Number of the first trajectory in the set that all are of, if files of a simulation follow one another."""
    firsts = [shard.attributes.get("first_trajectory") for shard in shards]
    numbers = [first for first in firsts if isinstance(first, int)]
    sizes = [shard.n_trajectories for shard in shards]
    expected = [numbers[0] + n for n in (0, *accumulate(sizes[:-1]))] if numbers else []
    return {"first_trajectory": numbers[0]} if numbers and numbers == expected else {}


def _check_same(what: str, first: Trajectories, other: Trajectories) -> None:
    values = getattr(first, what), getattr(other, what)
    if what in ("lengths", "times"):
        same = len(values[0]) == len(values[1]) and np.allclose(values[0], values[1], rtol=1e-5)
    else:
        same = values[0] == values[1]
    if not same:
        here, there = (_short(value) for value in values)
        raise InputError(
            f"the files of a folder must have the same {what}: {first.path} has {here}, "
            f"{other.path} has {there}; "
            "move one of them to another folder"
        )


def _short(values: tuple[object, ...]) -> str:
    return str(values) if len(values) <= 6 else f"{len(values)} from {values[0]} to {values[-1]}"
