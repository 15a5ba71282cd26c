"""ISMRMRD raw data (Inati et al., MRM 2017), Cartesian: sorted, prewhitened, without readout oversampling.

Files are read with h5py alone (see ``acquisitions``) and written with the package ``ismrmrd`` (``ismrmrd_writer``).
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sciml_monarch.errors import InputError
from sciml_monarch.hdf5 import Hdf5File
from sciml_monarch.mri.formats.acquisitions import COUNTERS, Lines, find_group, read_lines, read_samples
from sciml_monarch.mri.formats.axis_fourier import fft_axis, ifft_axis
from sciml_monarch.mri.formats.base import Layout, Scan, column_mask
from sciml_monarch.mri.formats.header import Header, Limits, Space, parse_header
from sciml_monarch.reading import missing, reading

_SUFFIX = {"contrast": "echo", "phase": "phase", "repetition": "rep", "set": "set"}


@dataclass(frozen=True)
class _Grid:
    """Where the samples go.

    Attributes:
        encoded: Points of the readout, of phase and of partition encoding.
        keep: How many points of the readout remain without oversampling.
        origin: Column of phase count 0 and partition of partition count 0.
        show: Points of the image along phase and partition encoding.
        extent: Fields of view of ``encoded`` in mm; None if unknown.
    """

    encoded: tuple[int, int, int]
    keep: int
    origin: tuple[int, int]
    show: tuple[int, int]
    extent: tuple[float, float, float] | None


class IsmrmrdScan(Scan):
    """One contrast of an ISMRMRD file.

    Lines of the same place (averages) are averaged. Noise scans make the coils' noise white with unit variance;
    oversampling along the readout is cut off in image space. Asymmetric echoes stay zero where the readout did
    not reach. K-space is ``(coil, readout, phase encoding)``.

    A three-dimensional scan whose lines are the same in every partition is transformed along the partitions, which
    become the slices. If it was undersampled in both directions, its readout is transformed instead, slices
    are cut across it, and k-space is ``(coil, phase encoding, partition encoding)`` with a two-dimensional mask.
    The volume is then transformed whole at the first read, into a temporary file without a name.

    Args:
        path: The file.
        group: Group of the acquisitions.
        header: Header of the file.
        lines: Image lines of this contrast.
        whitening: Matrix ``(coil, coil)`` for the coil axis; None to leave it.
        name: What outputs are called.

    Raises:
        InputError: Lines lie outside the encoded matrix, or differ between slices.
    """

    def __init__(
        self, path: Path, group: str, header: Header, lines: Lines, whitening: np.ndarray | None, name: str
    ) -> None:
        self._hdf5 = Hdf5File(path)
        self._group = group
        self._lines = lines
        self._whitening = whitening
        self._grid = grid = _grid(path, header)
        self._starts = _first_samples(path, lines, grid.encoded[0])
        self._slices = np.unique(lines.slice)
        self._is_3d = grid.encoded[2] > 1 and len(np.unique(lines.step_2)) > 1
        self._volume: np.memmap | None = None
        sampled = self._sampled(path)
        by_column: np.ndarray = np.any(sampled, axis=1)
        by_partition: np.ndarray = np.any(sampled, axis=0)
        n, nx, nz = grid.encoded
        mm = grid.extent or (0.0, 0.0, 0.0)
        pixel = (mm[0] / n, mm[1] / nx, mm[2] / nz)
        columns = _encoded_columns(by_column, header.step_1, grid.origin[0])
        rows: tuple[int, int] | None = None
        self._across_readout = self._is_3d and not _is_product(sampled)
        n_slices, shape, crop = len(self._slices), (grid.keep, nx), (grid.keep, grid.show[0])
        voxel = (_slice_distance(lines) or pixel[2], pixel[0], pixel[1])
        if self._across_readout:
            n_slices, shape, crop, voxel = grid.keep, (nx, nz), grid.show, pixel
            rows, columns = columns, _encoded_columns(by_partition, header.step_2, grid.origin[1])
        elif self._is_3d:
            n_slices, voxel = grid.show[1], (pixel[2], pixel[0], pixel[1])
        pattern = sampled if self._across_readout else by_column[None]
        inside = pattern[slice(*rows or (None,)), columns[0] : columns[1]]
        layout = Layout(
            name=name,
            n_slices=n_slices,
            n_coils=lines.n_coils,
            shape=shape,
            crop=crop,
            voxel_size=voxel if grid.extent else None,
            acquisition=str(header.attributes.get("protocol", "")),
            mask=None if inside.all() else column_mask(pattern),
            padding=columns if columns != (0, shape[1]) else None,
            row_padding=rows if rows != (0, shape[0]) else None,
            attributes={**header.attributes, "prewhitened": whitening is not None},
        )
        super().__init__(path, layout)

    def close(self) -> None:
        """Closes the file; the next read opens it again."""
        self._hdf5.close()
        self._volume = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_volume": None}

    def _kspace(self, index: int) -> np.ndarray:
        if not self._is_3d:
            image = self._plane(self._lines.slice == self._slices[index])
            return fft_axis(image, axis=1)
        if self._volume is None:
            self._volume = self._transform_volume()
        if self._across_readout:
            return self._volume[:, :, index].transpose(1, 2, 0)
        n_z = self._grid.encoded[2]
        return fft_axis(self._volume[n_z // 2 - self._grid.show[1] // 2 + index], axis=1)

    def _plane(self, which: np.ndarray) -> np.ndarray:
        """Puts lines into a plane ``(coil, readout, phase)``, the readout in image space without oversampling."""
        n, nx, _ = self._grid.encoded
        lines, starts = self._lines.select(which), self._starts[which]
        plane = np.zeros((lines.n_coils, n, nx), dtype=np.complex64)
        count = np.zeros(nx)
        columns = lines.step_1 + self._grid.origin[0]
        samples = read_samples(self._hdf5, self._group, lines)
        for line, values in enumerate(samples):
            start, (pre, post), column = starts[line], lines.discard[line], columns[line]
            bad = values[~np.isfinite(values)]
            if bad.size:  # told here: a transform would spread it over the whole slice
                raise InputError(
                    f"{self.path}: k-space of slice {lines.slice[line]} holds {bad[0]} in acquisition "
                    f"{lines.row[line]}; finite numbers were expected: copy the file again or leave it out"
                )
            stop = values.shape[1] - post
            plane[:, start + pre : start + stop, column] += values[:, pre:stop]
            count[column] += 1
        plane /= np.maximum(count, 1).astype(np.float32)
        if self._whitening is not None:
            plane = np.einsum("dc,cyx->dyx", self._whitening, plane)
        first = n // 2 - self._grid.keep // 2
        return ifft_axis(plane, axis=1)[:, first : first + self._grid.keep]

    def _transform_volume(self) -> np.memmap:
        """Writes ``(partition, coil, readout, phase)``, readout and, for slices along it, partitions transformed."""
        _, nx, n_z = self._grid.encoded
        shape = (n_z, self.n_coils, self._grid.keep, nx)
        partitions = self._lines.step_2 + self._grid.origin[1]
        with reading(self.path, "the volume"), tempfile.TemporaryFile() as file:
            for z in range(n_z):
                file.write(np.ascontiguousarray(self._plane(partitions == z)).tobytes())
            file.flush()  # written, not mapped: a full disk is an error here and would be a crash in a mapping
            volume = np.memmap(file, dtype=np.complex64, mode="r+", shape=shape)
        if not self._across_readout:
            for coil in range(self.n_coils):
                volume[:, coil] = ifft_axis(volume[:, coil], axis=0)
        return volume

    def _sampled(self, path: Path) -> np.ndarray:
        """Which phase and partition encodings were measured, bool ``(nx, nz)``; the same in each slice."""
        _, nx, nz = self._grid.encoded
        lines = self._lines
        column, partition = lines.step_1 + self._grid.origin[0], lines.step_2 + self._grid.origin[1]
        if not self._is_3d:
            partition, nz = np.zeros_like(column), 1
        outside = np.flatnonzero((column < 0) | (column >= nx) | (partition < 0) | (partition >= nz))
        if outside.size:
            i = outside[0]
            raise InputError(
                f"{path}: acquisition {lines.row[i]} has encoding steps {lines.step_1[i]}, {lines.step_2[i]}, which "
                f"lie outside the encoded matrix {self._grid.encoded} (x, y, z) of the header"
            )
        if self._is_3d and len(self._slices) > 1:
            raise InputError(
                f"{path}: {len(self._slices)} slabs of three-dimensional k-space; write each slab to a file of its own"
            )
        sampled = np.zeros((len(self._slices), nx, nz), dtype=bool)
        sampled[np.searchsorted(self._slices, lines.slice), column, partition] = True
        for number, here in zip(self._slices, sampled, strict=True):
            if (here != sampled[0]).any():
                raise InputError(
                    f"{path}: slice {number} has {here.sum()} lines, not the {sampled[0].sum()} of slice "
                    f"{self._slices[0]}; the slices of one file must have the same lines (was the scan aborted?)"
                )
        return sampled[0]


def open_ismrmrd(path: Path) -> list[IsmrmrdScan]:
    """Opens the scans of an ISMRMRD file: one for each echo, repetition, cardiac phase and set.

    Args:
        path: The file.

    Returns:
        Scans named by the file; ``_echo2``, ``_rep1``, ``_phase1``, ``_set1`` are appended where there are several.

    Raises:
        InputError: The file is damaged, not Cartesian, or of a kind that is not read; the message says which.
    """
    hdf5 = Hdf5File(path)
    group = find_group(hdf5)
    if group is None:
        raise missing(path, "an ISMRMRD group with 'xml' and 'data'", sorted(hdf5.file))
    header = parse_header(path, f"{group}/xml", hdf5.text(f"{group}/xml"))
    if header.trajectory not in ("", "cartesian"):
        raise InputError(f"{path}: the trajectory is '{header.trajectory}'; only Cartesian scans are read")
    lines, whitening = read_lines(hdf5, group, header)
    hdf5.close()
    scans = []
    values = np.unique(lines.counters, axis=0)
    several = [len(np.unique(column)) > 1 for column in values.T]
    for value in values:
        parts = [f"_{_SUFFIX[c]}{n + 1}" for c, n, many in zip(COUNTERS, value, several, strict=True) if many]
        own = lines.select((lines.counters == value).all(axis=1))
        scans.append(IsmrmrdScan(path, group, header, own, whitening, path.stem + "".join(parts)))
    return scans


def _grid(path: Path, header: Header) -> _Grid:
    if header.encoded is None:
        raise InputError(f"{path}: the ISMRMRD header has no encodedSpace with a matrixSize")
    encoded = header.encoded
    recon = header.recon or encoded
    keep, *show = (_kept(encoded, recon, axis) for axis in range(3))
    origin = []
    for axis, limits in ((1, header.step_1), (2, header.step_2)):
        n = encoded.matrix[axis]
        origin.append(n // 2 - limits.center if limits is not None else 0)
    return _Grid(encoded.matrix, keep, (origin[0], origin[1]), (show[0], show[1]), encoded.field_of_view)


def _kept(encoded: Space, recon: Space, axis: int) -> int:
    """Points of the encoded field of view that lie in the reconstructed one."""
    n = encoded.matrix[axis]
    if encoded.field_of_view is not None and recon.field_of_view is not None:
        kept = round(n * recon.field_of_view[axis] / encoded.field_of_view[axis])
    else:
        kept = recon.matrix[axis]
    return min(max(kept, 1), n)


def _first_samples(path: Path, lines: Lines, n: int) -> np.ndarray:
    """Point of the readout at which each line starts, so that its centre comes to ``n // 2``."""
    # Some converters leave the centre at 0; in a full readout that can only mean the middle.
    unset = (lines.center == 0) & (lines.n_samples == n)
    starts: np.ndarray = np.where(unset, 0, n // 2 - lines.center)
    first, last = starts + lines.discard[:, 0], starts + lines.n_samples - lines.discard[:, 1]
    wrong = np.flatnonzero((first < 0) | (last > n) | (first >= last))
    if wrong.size:
        i = wrong[0]
        raise InputError(
            f"{path}: acquisition {lines.row[i]} has {lines.n_samples[i]} samples with k = 0 at sample "
            f"{lines.center[i]}, which do not fit into the {n} points of the encoded readout"
        )
    return starts


def _encoded_columns(measured: np.ndarray, limits: Limits | None, origin: int) -> tuple[int, int]:
    """First encoded column and the one after the last; all that was measured lies between them."""
    found = np.flatnonzero(measured)
    left, right = int(found[0]), int(found[-1]) + 1
    if limits is None:
        return 0, len(measured)
    first, last = max(origin + limits.minimum, 0), min(origin + limits.maximum + 1, len(measured))
    return min(left, first), max(right, last)


def _is_product(sampled: np.ndarray) -> bool:
    """Whether every partition from the first to the last one measured has the same lines."""
    columns: np.ndarray = np.any(sampled, axis=1)
    partitions: np.ndarray = np.any(sampled, axis=0)
    found = np.flatnonzero(partitions)
    whole = len(found) == found[-1] - found[0] + 1
    return bool(whole and (sampled == columns[:, None] & partitions).all())


def _slice_distance(lines: Lines) -> float:
    """Distance between the centres of neighbouring slices in mm, gaps included; 0 if unknown."""
    _, first = np.unique(lines.slice, return_index=True)
    if len(first) < 2:
        return 0.0
    steps = np.diff(lines.position[first], axis=0)
    return float(np.median(np.linalg.norm(steps, axis=1)))
