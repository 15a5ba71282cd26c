"""Writes scans in the field's own formats, slice by slice, each file whole or not at all."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import h5py
import numpy as np
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.files import replacing
from sciml_monarch.mri.formats.cfl import cfl_base
from sciml_monarch.mri.formats.header import cartesian_header, header_xml
from sciml_monarch.mri.formats.ismrmrd_writer import write_ismrmrd
from sciml_monarch.reading import Attribute

__all__ = ["FastMRIWriter", "write_cfl", "write_fastmri", "write_ismrmrd", "write_npy", "write_skmtea"]

Array = Tensor | np.ndarray


class FastMRIWriter:
    """Writes a volume as fastMRI does, with a complete ``ismrmrd_header``, one slice at a time.

    A context manager: the file takes its place when the block ends, and nothing is left if the block fails. ::

        with FastMRIWriter(path, crop=(320, 320), voxel_size=(3.0, 0.5, 0.5)) as writer:
            for kspace, target in slices:
                writer.append(kspace, target)

    Args:
        path: File to write or replace.
        crop: Rows and columns of the image to show: the header's ``reconSpace``.
        voxel_size: Size of a voxel in mm, ``(slice, y, x)``.
        acquisition: Name of the protocol, as fastMRI's ``CORPD_FBK`` or ``AXT2``.
        padding: First encoded column and the one after the last; None: all.
        attributes: More attributes of the file, such as ``acceleration``, ``patient_id``, or how it was simulated.
        datasets: Data sets of the whole volume, such as ``mask``.
    """

    def __init__(
        self,
        path: Path,
        *,
        crop: tuple[int, int],
        voxel_size: tuple[float, float, float],
        acquisition: str = "",
        padding: tuple[int, int] | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        datasets: Mapping[str, Array] | None = None,
    ) -> None:
        self._path = path
        self._crop, self._voxel_size, self._padding = crop, voxel_size, padding
        self._attributes = {"acquisition": acquisition, **(attributes or {})}
        self._datasets = dict(datasets or {})
        self._file: h5py.File | None = None
        self._names: set[str] = set()
        self._n_slices, self._shape = 0, (0, 0, 0)
        self._largest, self._energy = 0.0, 0.0
        self._stack = ExitStack()

    def append(self, kspace: Array, target: Array | None = None, extra: Mapping[str, Array] | None = None) -> None:
        """Writes the next slice.

        Args:
            kspace: ``(coil, ny, nx)``, or ``(ny, nx)`` of a single-coil volume, complex, centred.
            target: Reference image ``(h, w)``, real; written as ``reconstruction_rss``, or ``reconstruction_esc`` for
                a single coil, with maximum and norm of the volume as ``max`` and ``norm``. None on a test volume.
            extra: More data sets by name, for example ``maps`` ``(coil, ny, nx)``; one entry a slice.

        Raises:
            InputError: A shape or the set of data sets differs from that of the slice before; k-space is not complex.
        """
        if self._file is None:
            raise RuntimeError("FastMRIWriter is a context manager: append inside of its 'with' block")
        values = _complex(kspace)
        if values.ndim not in (2, 3):
            raise InputError(f"{self._path}: k-space of slice {self._n_slices} is {values.shape}, not (coil, ny, nx)")
        entries = {"kspace": values}
        if target is not None:
            image = _numpy(target).astype(np.float32)
            self._largest = max(self._largest, float(image.max()))
            self._energy += float((image.astype(float) ** 2).sum())
            entries["reconstruction_rss" if values.ndim == 3 else "reconstruction_esc"] = image
        entries |= {name: _numpy(array) for name, array in (extra or {}).items()}
        if self._n_slices and set(entries) != self._names:
            differ = ", ".join(sorted(set(entries) ^ self._names))
            raise InputError(f"{self._path}: slice {self._n_slices} and those before it do not all have: {differ}")
        for name, entry in entries.items():
            _append(self._path, self._file, name, entry, self._n_slices)
        self._names = set(entries)
        self._shape = (values.shape[0] if values.ndim == 3 else 1, *values.shape[-2:])
        self._n_slices += 1

    def __enter__(self) -> Self:
        temporary = self._stack.enter_context(replacing(self._path))
        self._file = self._stack.enter_context(h5py.File(temporary, "w"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:  # closes the file, which then takes its place; an error in here removes it instead
            if error is not None:
                raise error
            self._finish()

    def _finish(self) -> None:
        file = self._file
        if file is None or not self._n_slices:
            raise InputError(f"{self._path}: no slices to write")
        for name, values in self._datasets.items():
            file.create_dataset(name, data=_numpy(values))
        n_coils, ny, nx = self._shape
        header = cartesian_header((ny, nx), self._crop, self._voxel_size, self._padding)
        if self._attributes["acquisition"]:
            header.attributes["protocol"] = self._attributes["acquisition"]
        file["ismrmrd_header"] = np.bytes_(header_xml(header, self._n_slices, n_coils))
        if self._names & {"reconstruction_rss", "reconstruction_esc"}:
            file.attrs.update({"max": self._largest, "norm": math.sqrt(self._energy)})
        file.attrs.update(self._attributes)


def write_fastmri(
    path: Path,
    kspace: Iterable[Array],
    targets: Iterable[Array] | None = None,
    *,
    crop: tuple[int, int],
    voxel_size: tuple[float, float, float],
    acquisition: str = "",
    attributes: Mapping[str, Attribute] | None = None,
    maps: Iterable[Array] | None = None,
) -> None:
    """Writes a volume with :class:`FastMRIWriter`, where its parts are there to be iterated over side by side.

    Args:
        path: File to write or replace.
        kspace: Slices ``(coil, ny, nx)`` or ``(ny, nx)``, complex.
        targets: Reference images ``(h, w)``, as many as slices; None on a test volume.
        crop: Rows and columns of the image to show.
        voxel_size: Size of a voxel in mm, ``(slice, y, x)``.
        acquisition: Name of the protocol.
        attributes: More attributes of the file.
        maps: Coil maps ``(coil, ny, nx)`` or ``(set, coil, ny, nx)`` of each slice.

    Raises:
        InputError: Shapes change between slices, numbers of slices differ, or the file cannot be written. Nothing
            is left behind.
    """
    columns = {"kspace": kspace, "targets": targets, "maps": maps}
    with FastMRIWriter(
        path, crop=crop, voxel_size=voxel_size, acquisition=acquisition, attributes=attributes
    ) as writer:
        for entry in _side_by_side(path, columns):
            extra = {"maps": entry["maps"]} if "maps" in entry else None
            writer.append(entry["kspace"], entry.get("targets"), extra)


def write_skmtea(
    path: Path,
    kspace: Iterable[Array],
    maps: Iterable[Array] | None = None,
    targets: Iterable[Array] | None = None,
    masks: Mapping[str, Array] | None = None,
    attributes: Mapping[str, Attribute] | None = None,
) -> None:
    """Writes a volume in the layout of SKM-TEA's raw-data track, one x at a time.

    Args:
        path: File to write or replace.
        kspace: For each x, ``(echo, coil, ny, nz)``, complex: transformed along x, k-space along y and z.
        maps: For each x, ``(set, coil, ny, nz)``, complex.
        targets: For each x, ``(echo, set, ny, nz)``, complex.
        masks: Masks by name (``poisson_4.0x``), of k-space or of its acquired middle part.
        attributes: Attributes of the file.

    Raises:
        InputError: Shapes change, numbers of slices differ, or the file cannot be written. Nothing is left behind.
    """
    orders = {"kspace": (2, 3, 0, 1), "maps": (2, 3, 1, 0), "target": (2, 3, 0, 1)}
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        index = -1
        for index, entry in enumerate(_side_by_side(path, {"kspace": kspace, "maps": maps, "target": targets})):
            for name, values in entry.items():
                _append(path, file, name, _complex(values).transpose(orders[name]), index)
        if index < 0:
            raise InputError(f"{path}: no slices to write")
        for name, mask in (masks or {}).items():
            file[f"masks/{name}"] = _numpy(mask)
        file.attrs.update(dict(attributes or {}))


def write_cfl(path: Path, kspace: Iterable[Array], maps: Iterable[Array] | None = None) -> None:
    """Writes a volume as BART's pair ``name.cfl`` and ``name.hdr``, maps beside it as ``name_maps``.

    Args:
        path: ``name.cfl`` or the base name.
        kspace: Slices ``(coil, ny, nx)``, complex.
        maps: For each slice, ``(set, coil, ny, nx)``, complex.

    Raises:
        InputError: Shapes change, there are no slices, or the files cannot be written.
    """
    base = cfl_base(path)
    if maps is not None:
        _write_cfl(base.with_name(base.name + "_maps"), (_complex(values) for values in maps))
    _write_cfl(base, (_complex(values)[None] for values in kspace))


def write_npy(path: Path, kspace: Array) -> None:
    """Writes k-space as NumPy does.

    Args:
        path: File to write or replace.
        kspace: ``(coil, ny, nx)`` or ``(slice, coil, ny, nx)``, complex.

    Raises:
        InputError: Another number of axes, or the file cannot be written.
    """
    values = _complex(kspace)
    if values.ndim not in (3, 4):
        raise InputError(f"{path}: k-space is {values.shape}, expected (coil, ny, nx) or (slice, coil, ny, nx)")
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, values)


def _append(path: Path, file: h5py.File, name: str, values: np.ndarray, index: int) -> None:
    """Adds one entry to a data set that grows along its first axis; each entry is a chunk with a check sum."""
    if index == 0:
        limits = (None, *values.shape)
        file.create_dataset(
            name, (0, *values.shape), values.dtype, maxshape=limits, chunks=(1, *values.shape), fletcher32=True
        )
    dataset = file[name]
    if dataset.shape[1:] != values.shape:
        raise InputError(f"{path}: '{name}' of slice {index} is {values.shape}, that of slice 0 {dataset.shape[1:]}")
    dataset.resize(index + 1, axis=0)
    dataset[index] = values


def _write_cfl(base: Path, slices: Iterator[np.ndarray]) -> None:
    """Writes ``(set, coil, y, x)`` arrays, slices along axis 13, which Fortran order makes the slowest."""
    header = base.with_name(base.name + ".hdr")
    with replacing(base.with_name(base.name + ".cfl")) as data, replacing(header) as text:
        shape: tuple[int, ...] = ()
        n_slices = 0
        with data.open("wb") as file:
            for values in slices:
                if values.ndim != 4 or (shape and values.shape != shape):
                    raise InputError(f"{base}: slice {n_slices} is {values.shape}, that of slice 0 {shape}")
                shape = values.shape
                file.write(np.ascontiguousarray(values.transpose(0, 1, 3, 2)).tobytes())
                n_slices += 1
        if not n_slices:
            raise InputError(f"{base}: no slices to write")
        n_sets, n_coils, ny, nx = shape
        dims = [ny, nx, 1, n_coils, n_sets, *[1] * 8, n_slices, 1, 1]
        text.write_text("# Dimensions\n" + " ".join(map(str, dims)) + "\n")


def _side_by_side(path: Path, columns: Mapping[str, Iterable[Array] | None]) -> Iterator[dict[str, Array]]:
    """One entry of each iterable at a time; those that are None are left out."""
    given = {name: iter(column) for name, column in columns.items() if column is not None}
    index = 0
    while True:
        entry = {name: next(column, None) for name, column in given.items()}
        found = {name: values for name, values in entry.items() if values is not None}
        if not found:
            return
        if len(found) < len(entry):
            short = ", ".join(sorted(set(entry) - set(found)))
            raise InputError(f"{path}: {short}: only {index} entries, fewer than {', '.join(sorted(found))}")
        yield found
        index += 1


def _numpy(values: Array) -> np.ndarray:
    return values.detach().cpu().resolve_conj().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _complex(values: Array) -> np.ndarray:
    array = _numpy(values)
    if array.dtype.kind != "c":
        raise InputError(f"k-space and maps must be complex, not {array.dtype}")
    return array.astype(np.complex64)
