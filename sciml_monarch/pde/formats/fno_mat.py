"""The FNO authors' MATLAB files (Li et al. 2021): ``u`` (N, x, y, t), in MATLAB v5 and v7.3.

A v5 file cannot be sliced on disk (its arrays are zlib streams as a rule), and a v7.3 file is HDF5 with
reversed axes, ``u`` (t, y, x, N), so that one trajectory is scattered over all of it. Both are therefore
unpacked once, a block of some 8 MiB at a time, into an unnamed temporary file (see ``sample_major``);
afterwards a window is one short read. This happens at the first ``read``, in each spawned process anew;
forked workers share the copy of their parent.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sciml_monarch.errors import InputError
from sciml_monarch.hdf5 import Hdf5File
from sciml_monarch.pde.formats.base import Layout, Pairs, Trajectories, seconds, subsample
from sciml_monarch.pde.formats.mat_v5 import Variable, is_mat_v5, list_variables, stream
from sciml_monarch.pde.formats.sample_major import BLOCK_BYTES, Block, SampleMajor
from sciml_monarch.reading import missing, reading

_PAIR_KEYS = (("coeff", "sol"), ("a", "u"), ("x", "y"))  # Darcy, Burgers, others


def is_mat_v73(path: Path) -> bool:
    """Whether an HDF5 file was written by MATLAB (it says so in the user block)."""
    with path.open("rb") as file:
        return file.read(19) == b"MATLAB 7.3 MAT-file"


class MatFile:
    """The arrays of a MATLAB file of either version; ``sample`` reads a part of one sample of one of them.

    Args:
        path: The file.

    Raises:
        InputError: The file is truncated or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._v5 = list_variables(path) if is_mat_v5(path) else None
        self._hdf5 = Hdf5File(path)
        self._copies: dict[str, SampleMajor] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        if self._v5 is not None:
            self.shapes = {name: v.shape for name, v in self._v5.items() if not v.problem}
        else:
            with reading(path, "the data sets of the MATLAB v7.3 file"):
                for name, item in self._hdf5.file.items():
                    if isinstance(item, h5py.Dataset) and item.dtype.kind in "biuf" and item.shape:
                        self.shapes[name] = item.shape[::-1]
            self._hdf5.close()

    def shape(self, key: str) -> tuple[int, ...]:
        """Sizes of the array ``key`` as MATLAB shows them.

        Raises:
            InputError: There is no such array of real numbers.
        """
        if key not in self.shapes:
            if self._v5 is not None and key in self._v5:
                raise InputError(f"{self.path}: array '{key}' {self._v5[key].problem}, real numbers were expected")
            raise missing(self.path, f"the array '{key}'", sorted(self.shapes))
        return self.shapes[key]

    def sample(self, key: str, index: int, start: int, stop: int) -> np.ndarray:
        """Reads ``start`` to ``stop - 1`` of the last axis of one sample: ``(stop - start, ..., y, x)``."""
        shape = self.shape(key)
        n_rows = int(np.prod(shape[1:]))
        with reading(self.path, f"array '{key}'"):
            if key not in self._copies:
                self._copies[key] = SampleMajor(shape[0], n_rows, self._blocks(key), self.path)
            step = n_rows // shape[-1]
            values = self._copies[key].read(index, start * step, stop * step)
        return values.reshape(stop - start, *shape[-2:0:-1])

    def vector(self, key: str) -> np.ndarray | None:
        """Returns a small array as a vector, or ``None`` if there is none of this name."""
        if key not in self.shapes:
            return None
        with reading(self.path, f"array '{key}'"):
            if self._v5 is not None:
                return np.concatenate([block.ravel() for _, _, block in stream(self.path, self._v5[key])])
            return self._hdf5.read_real(key).ravel()

    def close(self) -> None:
        """Closes the file and gives the temporary copies back; the next ``sample`` makes them again."""
        self._hdf5.close()
        for copy in self._copies.values():
            copy.close()
        self._copies = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_copies": {}}

    def _blocks(self, key: str) -> Iterator[Block]:
        if self._v5 is not None:
            variable: Variable = self._v5[key]
            return stream(self.path, variable)
        return _hdf5_blocks(self._hdf5.dataset(key))


class MatTrajectories(Trajectories):
    """Trajectories of an array (N, *grid, t); times from ``t`` where it has one entry a frame.

    Args:
        path: The file.
        field: Name of the array, ``u`` by default.

    Raises:
        InputError: The array is missing or has no axes of space and time.
    """

    def __init__(self, path: Path, field: str | None = None) -> None:
        self._file = MatFile(path)
        self._key = field or "u"
        shape = self._file.shape(self._key)
        if not 3 <= len(shape) <= 5:
            raise InputError(
                f"{path}: array '{self._key}' has the shape {shape}, expected (N, x, t), (N, x, y, t) "
                "or (N, x, y, z, t); "
                "pairs without time are opened with open_pairs or PairData"
            )
        times = self._file.vector("t")
        if times is None or times.size != shape[-1]:
            times = np.arange(shape[-1], dtype=np.float64)
        layout = Layout(
            fields=(self._key,),
            units=("1",),
            n_trajectories=shape[0],
            grid=shape[1:-1],
            lengths=(1.0,) * (len(shape) - 2),
            times=seconds(times),
        )
        super().__init__(path, layout)

    def _read(self, index: int, start: int, stop: int, stride: int) -> np.ndarray:
        values = self._file.sample(self._key, index, start, stop)  # (t, ..., y, x)
        values = values.transpose(0, *range(values.ndim - 1, 0, -1))
        return subsample(values[:, None], len(self.grid), stride)

    def close(self) -> None:
        """Closes the file and gives the temporary copy back; the next ``read`` makes it again."""
        self._file.close()


class MatPairs(Pairs):
    """Pairs of arrays (N, *grid): ``coeff`` and ``sol`` (Darcy), ``a`` and ``u`` (Burgers).

    Args:
        path: The file.
        keys: Names of input and target; by default the first of the pairs above that the file holds.

    Raises:
        InputError: The arrays are missing, or have different shapes.
    """

    def __init__(self, path: Path, keys: tuple[str, str] | None = None) -> None:
        self._file = MatFile(path)
        present = [pair for pair in _PAIR_KEYS if set(pair) <= set(self._file.shapes)]
        if keys is None and not present:
            raise missing(path, "arrays 'coeff' and 'sol', 'a' and 'u' or 'x' and 'y'", sorted(self._file.shapes))
        self._keys = keys or present[0]
        inputs, targets = (self._file.shape(key) for key in self._keys)
        if inputs != targets or len(inputs) < 2:
            raise InputError(
                f"{path}: arrays '{self._keys[0]}' {inputs} and '{self._keys[1]}' {targets}: the "
                "same shape (N, *grid) "
                "was expected of both; name others with keys"
            )
        layout = Layout((self._keys[1],), ("1",), inputs[0], inputs[1:], (1.0,) * (len(inputs) - 1), (0.0,))
        super().__init__(path, layout, (self._keys[0],))

    def _read(self, index: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
        inputs, targets = (
            subsample(self._file.sample(key, index, 0, self.grid[-1]).T[None], len(self.grid), stride)
            for key in self._keys
        )
        return inputs, targets

    def close(self) -> None:
        """Closes the file and gives the temporary copies back; the next ``read`` makes them again."""
        self._file.close()


def _hdf5_blocks(dataset: h5py.Dataset) -> Iterator[Block]:
    """Yields a data set (t, ..., N) as blocks of the matrix (t ..., N), aligned with the chunks of the file.

    A block is a range of times times a range of samples; whole chunks, so that none is unpacked twice.
    """
    chunks = dataset.chunks or (1,) * dataset.ndim
    n_times, n_samples = dataset.shape[0], dataset.shape[-1]
    step = int(np.prod(dataset.shape[1:-1]))
    per_sample = chunks[0] * step * dataset.dtype.itemsize
    samples = max(BLOCK_BYTES // per_sample // chunks[-1], 1) * chunks[-1]
    for first_time in range(0, n_times, chunks[0]):
        for first in range(0, n_samples, samples):
            values = dataset[first_time : first_time + chunks[0], ..., first : first + samples]
            yield first_time * step, first, values.reshape(-1, values.shape[-1])
