"""HDF5 files opened lazily, once in each process, and the plain Python values of their attributes."""

import os
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sciml_monarch.errors import InputError
from sciml_monarch.pde.description import Attribute
from sciml_monarch.pde.formats.base import missing, reading

_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def has_hdf5_signature(path: Path) -> bool:
    """Whether the file starts as HDF5 does, at byte 0 or after a user block (MATLAB's has 512 bytes)."""
    with path.open("rb") as file:
        for offset in (0, 512, 1024, 2048):
            file.seek(offset)
            if file.read(8) == _SIGNATURE:
                return True
    return False


class Hdf5File:
    """An HDF5 file that opens itself on first use in each process and is pickled as its path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: h5py.File | None = None
        self._pid = 0

    @property
    def file(self) -> h5py.File:
        """The open file.

        Raises:
            InputError: The file is missing, truncated or damaged.
        """
        if self._file is None or self._pid != os.getpid():
            # A handle inherited by fork shares HDF5's internal state with the parent's: open a fresh one.
            self._file, self._pid = _open(self.path), os.getpid()
        return self._file

    def dataset(self, key: str) -> h5py.Dataset:
        """Returns the data set ``key``.

        Raises:
            InputError: There is none of this name; the message lists those that exist.
        """
        with reading(self.path, f"data set '{key}'"):
            found = self.file.get(key)
        if not isinstance(found, h5py.Dataset):
            parent = self.file.get(key.rpartition("/")[0] or "/")
            raise missing(self.path, f"the data set '{key}'", sorted(parent) if parent is not None else [])
        return found

    def read(self, key: str, selection: tuple[Any, ...] = ()) -> np.ndarray:
        """Reads a part of the data set ``key``.

        Raises:
            InputError: The data set is missing, damaged or does not hold real numbers.
        """
        dataset = self.dataset(key)
        with reading(self.path, f"data set '{key}'"):
            values = np.asarray(dataset[selection])
        if values.dtype.kind not in "biuf":
            raise InputError(f"{self.path}: data set '{key}' holds {values.dtype}, real numbers were expected")
        return values

    def close(self) -> None:
        """Closes the file; the next use opens it again."""
        if self._file is not None and self._pid == os.getpid():
            self._file.close()
        self._file = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_file": None, "_pid": 0}


def plain(value: object) -> Attribute | None:
    """An HDF5 attribute or scalar as a Python number, text or bool; ``None`` if it is anything larger."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, np.ndarray):
        return plain(value.reshape(-1)[0]) if value.size == 1 else None
    if isinstance(value, np.generic):
        return plain(value.item())
    return value if isinstance(value, bool | int | float | str) else None


def plain_attributes(attributes: h5py.AttributeManager) -> dict[str, Attribute]:
    """All attributes that are single numbers, texts or bools."""
    found = {name: plain(value) for name, value in attributes.items()}
    return {name: value for name, value in found.items() if value is not None}


def names(value: object) -> tuple[str, ...]:
    """A list of names stored as an attribute, in any of the ways in which h5py returns text."""
    if value is None:
        return ()
    if isinstance(value, str | bytes):
        value = [value]
    return tuple(item.decode() if isinstance(item, bytes) else str(item) for item in np.asarray(value).reshape(-1))


def _open(path: Path) -> h5py.File:
    with reading(path, "the HDF5 structure"):
        try:
            return h5py.File(path, "r", locking="best-effort")  # some network file systems have no locks
        except OSError as error:
            sizes = re.search(r"truncated file: .*stored_eof = (\d+)", str(error))
            if sizes is None:
                raise
            size = path.stat().st_size  # the library's own count leaves a user block out
            raise InputError(
                f"{path}: the HDF5 file is truncated: {size} of {sizes[1]} bytes are there; copy it again"
            ) from error
