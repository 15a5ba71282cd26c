"""HDF5 files opened lazily, once in each process and few at a time."""

import os
import re
import weakref
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sciml_monarch.errors import InputError
from sciml_monarch.reading import Attribute, missing, reading

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# A folder of fastMRI has a thousand volumes, a process may open 1,024 files, and each open HDF5 file keeps
# buffers of some megabytes: the least recently opened file is closed when there would be more.
_MOST_OPEN = 32
_opened: list[weakref.ref["Hdf5File"]] = []


def has_hdf5_signature(path: Path) -> bool:
    """Whether the file starts as HDF5 does, at byte 0 or after a user block (MATLAB's has 512 bytes)."""
    with path.open("rb") as file:
        for offset in (0, 512, 1024, 2048):
            file.seek(offset)
            if file.read(8) == _SIGNATURE:
                return True
    return False


class Hdf5File:
    """An HDF5 file that opens itself on first use in each process and is pickled as its path.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: h5py.File | None = None
        self._pid = 0
        self._datasets: dict[str, h5py.Dataset] = {}  # finding one by name takes h5py longer than a small slice

    @property
    def file(self) -> h5py.File:
        """The open file; keep no reference to it.

        Raises:
            InputError: The file is missing, truncated or damaged.
        """
        if self._file is None or self._pid != os.getpid():
            # A handle inherited by fork shares HDF5's internal state with the parent's: open a fresh one.
            self._file, self._pid, self._datasets = _open(self.path), os.getpid(), {}
            _forget(self)
            _opened.append(weakref.ref(self))
            while len(_opened) > _MOST_OPEN:
                oldest = _opened[0]()
                if oldest is not None:
                    oldest.close()
        return self._file

    def dataset(self, key: str) -> h5py.Dataset:
        """Returns the data set ``key``.

        Raises:
            InputError: There is none of this name; the message lists those that exist.
        """
        file = self.file
        if key in self._datasets:
            return self._datasets[key]
        with reading(self.path, f"data set '{key}'"):
            found = file.get(key)
        if not isinstance(found, h5py.Dataset):
            parent = file.get(key.rpartition("/")[0] or "/")
            raise missing(self.path, f"the data set '{key}'", sorted(parent) if parent is not None else [])
        self._datasets[key] = found
        return found

    def has(self, key: str) -> bool:
        """Whether there is a data set ``key``."""
        with reading(self.path, f"data set '{key}'"):
            return isinstance(self.file.get(key), h5py.Dataset)

    def complex_dataset(self, key: str, dims: tuple[int, ...], axes: str) -> h5py.Dataset:
        """Returns the data set ``key`` of complex numbers.

        Args:
            key: Its name.
            dims: Numbers of axes that it may have.
            axes: The axes in words, for the error message.

        Raises:
            InputError: It is missing, has other axes, or does not hold complex numbers.
        """
        found = self.dataset(key)
        if found.ndim not in dims or not _is_complex(found.dtype):
            raise InputError(
                f"{self.path}: data set '{key}' is {found.shape} of {found.dtype}, expected complex numbers in {axes}"
            )
        return found

    def read(self, key: str, selection: tuple[Any, ...] = ()) -> np.ndarray:
        """Reads a part of the data set ``key``, real or complex.

        Raises:
            InputError: The data set is missing, damaged or does not hold numbers.
        """
        dataset = self.dataset(key)
        with reading(self.path, f"data set '{key}'"):
            values = np.asarray(dataset[selection])
        if _is_complex(values.dtype) and values.dtype.names:
            return _from_pairs(values)
        if values.dtype.kind not in "biufc":
            raise InputError(f"{self.path}: data set '{key}' holds {values.dtype}, numbers were expected")
        return values

    def read_real(self, key: str, selection: tuple[Any, ...] = ()) -> np.ndarray:
        """Reads a part of the data set ``key``.

        Raises:
            InputError: The data set is missing, damaged or does not hold real numbers.
        """
        values = self.read(key, selection)
        if values.dtype.kind == "c":
            raise InputError(f"{self.path}: data set '{key}' holds {values.dtype}, real numbers were expected")
        return values

    def attributes(self) -> dict[str, Attribute]:
        """All attributes of the file that are single numbers, texts or bools."""
        with reading(self.path, "the attributes"):
            return plain_attributes(self.file.attrs)

    def text(self, key: str) -> bytes:
        """Reads a data set that holds one text.

        Raises:
            InputError: It is missing, damaged or holds something else.
        """
        dataset = self.dataset(key)
        with reading(self.path, f"data set '{key}'"):
            value = dataset[()]
        while isinstance(value, np.ndarray) and value.size == 1:
            value = value.reshape(-1)[0]
        if isinstance(value, str):
            return value.encode()
        if not isinstance(value, bytes):
            raise InputError(f"{self.path}: data set '{key}' holds {dataset.dtype} {dataset.shape}, expected one text")
        return bytes(value)

    def close(self) -> None:
        """Closes the file; the next use opens it again."""
        _forget(self)
        if self._file is not None and self._pid == os.getpid():
            self._file.close()
        self._file, self._datasets = None, {}

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_file": None, "_pid": 0, "_datasets": {}}


def _forget(file: Hdf5File) -> None:
    """Strikes a file, and those that no longer exist, off the list of what is open."""
    _opened[:] = [other for other in _opened if other() not in (None, file)]


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


def _is_complex(dtype: np.dtype) -> bool:
    """Complex, or pairs under names other than h5py's own (ISMRMRD and MATLAB call them real and imag)."""
    pair = dtype.names is not None and len(dtype.names) == 2
    return dtype.kind == "c" or (pair and all(dtype[name].kind == "f" for name in dtype.names or ()))


def _from_pairs(values: np.ndarray) -> np.ndarray:
    real, imaginary = values.dtype.names or ("", "")
    return values[real] + 1j * values[imaginary]


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
