"""Sampling patterns that were fixed beforehand, from files."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.mri.masks import Mask, Seed


@dataclass(frozen=True)
class FileMask(Mask):
    """The pattern in a file, whatever the seed.

    Args:
        path: ``.npy`` file, or HDF5 file such as a scan. One axis: columns; two: ``(ny, nx)``. Not zero is sampled.
        name: HDF5 only: name of the data set; None is ``mask``, fastMRI's. A name that stands in the group ``masks``
            (SKM-TEA's ``poisson_4.0x``) is found there; such a pattern of the acquired matrix is surrounded with
            zeros up to the volume, which was zero-filled.
    """

    path: Path
    name: str | None = None

    def __call__(self, shape: tuple[int, int], seed: Seed = 0) -> Tensor:
        """Returns the pattern, ``(1, nx)`` or ``(ny, nx)``.

        Raises:
            InputError: The file or data set is absent, damaged, no pattern, or one of another size.
        """
        try:
            changed = Path(self.path).stat().st_mtime_ns
        except OSError as error:
            raise InputError(f"{self.path}: no such file") from error
        pattern, is_acquired = _read(str(self.path), self.name, changed)
        ny, nx = shape
        if is_acquired and pattern.shape[0] <= ny and pattern.shape[1] <= nx:
            whole = np.zeros(shape, dtype=bool)
            top, left = (n // 2 - m // 2 for n, m in zip(shape, pattern.shape, strict=True))
            whole[top : top + pattern.shape[0], left : left + pattern.shape[1]] = pattern
            pattern = whole
        if pattern.shape not in ((1, nx), (ny, nx)):
            raise InputError(
                f"{self.path}: the mask is {pattern.shape[0]} x {pattern.shape[1]}, k-space {ny} x {nx}; "
                f"a mask has {nx} columns and 1 or {ny} rows"
            )
        return torch.from_numpy(pattern.copy())


@lru_cache(maxsize=16)  # one small file is asked for at every slice
def _read(path: str, name: str | None, _changed: int) -> tuple[NDArray[np.bool_], bool]:
    """The pattern as ``(1|ny, nx)`` bool, and whether it is one of the acquired matrix (in the group ``masks``).

    The time of the last change is an argument so that a file written anew is read anew.
    """
    is_acquired = False
    try:
        if path.endswith(".npy"):
            values = np.load(path, allow_pickle=False)
        else:
            import h5py

            with h5py.File(path, "r") as file:
                key = "mask" if name is None else name
                if key not in file:
                    is_acquired = f"masks/{key}" in file
                    key = f"masks/{key}"
                if key not in file or not isinstance(file[key], h5py.Dataset):
                    found = [*file, *(f"masks/{k}" for k in file.get("masks", ()))]
                    raise InputError(f"{path}: no mask {name or 'mask'!r}; the file holds {', '.join(found)}")
                is_acquired = is_acquired or key.startswith("masks/")
                values = file[key][()]
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read as a mask ({error})") from error
    values = np.atleast_2d(values)
    if values.ndim != 2 or values.dtype.kind not in "biufc" or not np.isfinite(values).all():
        raise InputError(f"{path}: {values.shape} {values.dtype} is no mask; it must have one or two axes of numbers")
    pattern = values != 0
    if not pattern.any():
        raise InputError(f"{path}: the mask samples nothing")
    return pattern, is_acquired
