"""NumPy ``.npy``: one trajectory (T, x, y) or several (N, T, x, y), mapped into memory."""

from pathlib import Path

import numpy as np

from sciml_monarch.errors import InputError
from sciml_monarch.pde.formats.base import Layout, Trajectories, subsample
from sciml_monarch.reading import missing, reading


class NpyTrajectories(Trajectories):
    """Trajectories of one two-dimensional scalar field; the file names neither field, times nor lengths.

    Args:
        path: The file.
        field: Must be ``None`` or "field".

    Raises:
        InputError: The file is truncated or holds another kind of array.
    """

    def __init__(self, path: Path, field: str | None = None) -> None:
        if field not in (None, "field"):
            raise missing(path, f"the field '{field}'", ["field"])
        array = _map(path)
        if array.ndim not in (3, 4) or array.dtype.kind not in "biuf":
            raise InputError(
                f"{path}: an array {array.shape} of {array.dtype}, expected real numbers in (T, x, y) or (N, T, x, y)"
            )
        self._single = array.ndim == 3
        layout = Layout(
            fields=("field",),
            units=("1",),
            n_trajectories=1 if self._single else array.shape[0],
            grid=array.shape[-2:],
            lengths=(1.0, 1.0),
            times=tuple(float(t) for t in range(array.shape[-3])),
        )
        super().__init__(path, layout)

    def _read(self, index: int, start: int, stop: int, stride: int) -> np.ndarray:
        array = _map(self.path)
        window = array[start:stop] if self._single else array[index, start:stop]
        # A copy, so that the mapping ends here: pages once touched would count as memory of this process.
        return subsample(window[:, None], 2, stride).copy()

    def close(self) -> None:
        """Does nothing: the file is mapped for the time of a ``read`` only."""


def _map(path: Path) -> np.ndarray:
    with reading(path, "the NumPy array"):
        return np.load(path, mmap_mode="r", allow_pickle=False)
