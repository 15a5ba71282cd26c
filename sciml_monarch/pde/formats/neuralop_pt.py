"""The ``.pt`` files of neuraloperator: a dict of tensors, mapped into memory and never loaded whole.

Darcy: ``x`` (N, n, n) bool or float, ``y`` (N, n, n). Burgers: ``x`` (N, n), ``y`` (N, T, n) whose first time
    is
``x``, and ``visc``, the viscosity.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.pde.formats.base import Layout, Pairs, Trajectories, subsample
from sciml_monarch.reading import Attribute, missing, reading


class TensorFile:
    """A dict of tensors saved with ``torch.save``, mapped on first use and pickled as its path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors: dict[str, Tensor] | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All real tensors of the file.

        Raises:
            InputError: The file is damaged, holds other objects than tensors, or no dict.
        """
        if self._tensors is None:
            with reading(self.path, "the dict of tensors"):
                content = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
            if not isinstance(content, dict):
                raise InputError(f"{self.path}: holds a {type(content).__name__}, a dict of tensors was expected")
            self._tensors = {
                key: value for key, value in content.items() if isinstance(value, Tensor) and not value.is_complex()
            }
        return self._tensors

    def tensor(self, key: str) -> Tensor:
        """Returns one tensor, still mapped.

        Raises:
            InputError: There is no such real tensor.
        """
        if key not in self.tensors:
            raise missing(self.path, f"the tensor '{key}'", sorted(self.tensors))
        return self.tensors[key]

    def attributes(self) -> dict[str, Attribute]:
        """Single numbers in the file; neuraloperator's ``visc`` is named viscosity."""
        numbers = {key: float(value) for key, value in self.tensors.items() if value.numel() == 1}
        return {("viscosity" if key == "visc" else key): value for key, value in numbers.items()}

    def close(self) -> None:
        """Gives the mapping back; the next use maps the file again."""
        self._tensors = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_tensors": None}


class TensorTrajectories(Trajectories):
    """Trajectories ``y`` (N, T, *grid) beside the starts ``x`` (N, *grid), as in the Burgers files.

    Args:
        path: The file.
        field: Name of the tensor, ``y`` by default.

    Raises:
        InputError: The file holds pairs without time, or lacks the tensor.
    """

    def __init__(self, path: Path, field: str | None = None) -> None:
        self._file = TensorFile(path)
        self._key = field or "y"
        shape = tuple(self._file.tensor(self._key).shape)
        starts = tuple(self._file.tensors["x"].shape) if "x" in self._file.tensors else (shape[:1] + shape[2:])
        if len(shape) < 3 or starts != shape[:1] + shape[2:]:
            raise InputError(
                f"{path}: tensor '{self._key}' {shape} beside 'x' {starts} has no axis of time, "
                "expected (N, T, *grid) "
                "beside (N, *grid); pairs are opened with open_pairs or PairData"
            )
        layout = Layout(
            fields=(self._key,),
            units=("1",),
            n_trajectories=shape[0],
            grid=shape[2:],
            lengths=(1.0,) * (len(shape) - 2),
            times=tuple(float(t) for t in range(shape[1])),
            attributes=self._file.attributes(),
        )
        self._file.close()
        super().__init__(path, layout)

    def _read(self, index: int, start: int, stop: int, stride: int) -> np.ndarray:
        window = _numpy(self._file.tensor(self._key)[index, start:stop])
        return subsample(window[:, None], len(self.grid), stride)

    def close(self) -> None:
        """Gives the mapping back; the next ``read`` maps the file again."""
        self._file.close()


class TensorPairs(Pairs):
    """Pairs ``x`` (N, *grid) to ``y`` (N, *grid); of ``y`` (N, T, *grid), as in Burgers, the last time.

    Args:
        path: The file.
        keys: Names of input and target.

    Raises:
        InputError: A tensor is missing, or the shapes do not belong together.
    """

    def __init__(self, path: Path, keys: tuple[str, str] | None = None) -> None:
        self._file = TensorFile(path)
        self._keys = keys or ("x", "y")
        inputs, targets = (tuple(self._file.tensor(key).shape) for key in self._keys)
        self._in_time = len(targets) == len(inputs) + 1
        if len(inputs) < 2 or inputs != (targets[:1] + targets[2:] if self._in_time else targets):
            raise InputError(
                f"{path}: tensors '{self._keys[0]}' {inputs} and '{self._keys[1]}' {targets}: "
                "expected (N, *grid) and "
                "(N, *grid) or (N, T, *grid)"
            )
        layout = Layout(
            fields=(self._keys[1],),
            units=("1",),
            n_trajectories=inputs[0],
            grid=inputs[1:],
            lengths=(1.0,) * (len(inputs) - 1),
            times=(0.0,),
            attributes=self._file.attributes(),
        )
        self._file.close()
        super().__init__(path, layout, (self._keys[0],))

    def _read(self, index: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
        inputs, targets = (self._file.tensor(key)[index] for key in self._keys)
        if self._in_time:
            targets = targets[-1]
        n_axes = len(self.grid)
        return subsample(_numpy(inputs)[None], n_axes, stride), subsample(_numpy(targets)[None], n_axes, stride)

    def close(self) -> None:
        """Gives the mapping back; the next ``read`` maps the file again."""
        self._file.close()


def _numpy(values: Tensor) -> np.ndarray:
    return values.to(torch.float32).numpy()  # NumPy lacks bfloat16
