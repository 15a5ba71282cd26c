"""fastMRI's HDF5 (Zbontar et al., arXiv:1811.08839): raw k-space of knees and brains, slice by slice."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.hdf5 import Hdf5File
from sciml_monarch.mri.formats.base import Layout, Scan
from sciml_monarch.mri.formats.header import Header, parse_header

_HEADER = "ismrmrd_header"


class FastMRIScan(Scan):
    """A volume of fastMRI: ``kspace`` (slices, coils, H, W), or (slices, H, W) of a single coil.

    The image to show has the size of the reference image (``reconstruction_rss``, or ``reconstruction_esc`` of
    a single coil) or, where there is none, of the header's ``reconSpace``. Where k-space is narrower than that
    the crop is a square of its width; a few FLAIR brains (``file_brain_AXFLAIR_203_*``) need this, and fastMRI's
    own programs have the same rule. Without a header, voxel size and padding are unknown. Two optional data sets
    extend the format: ``maps`` (slices, coils, H, W) or (slices, sets, coils, H, W), and a two-dimensional
    ``mask`` (H, W).

    Args:
        path: The file.

    Attributes:
        encoding_size: The header's ``encodedSpace`` (x, y, z): readout, phase encoding, partitions; None
            without a header.
        recon_size: The header's ``reconSpace`` (x, y, z); None without a header.

    Raises:
        InputError: The file is truncated, lacks ``kspace``, or holds arrays of other shapes or types.
    """

    encoding_size: tuple[int, int, int] | None
    recon_size: tuple[int, int, int] | None

    def __init__(self, path: Path) -> None:
        self._hdf5 = Hdf5File(path)
        kspace = self._hdf5.complex_dataset("kspace", (3, 4), "(slices, coils, H, W) or (slices, H, W)")
        self._is_single = kspace.ndim == 3
        n_slices, *coils, ny, nx = kspace.shape
        header = parse_header(path, _HEADER, self._hdf5.text(_HEADER)) if self._hdf5.has(_HEADER) else Header()
        self.encoding_size = header.encoded.matrix if header.encoded else None
        self.recon_size = header.recon.matrix if header.recon else None
        self._target_key = self._find_target(n_slices)
        self._check_maps(kspace.shape)
        padding = _padding(header, nx)
        attributes = {**header.attributes, **self._hdf5.attributes()}
        layout = Layout(
            name=path.stem,
            n_slices=n_slices,
            n_coils=coils[0] if coils else 1,
            shape=(ny, nx),
            crop=self._crop(ny, nx),
            voxel_size=_voxel_size(header, ny, nx),
            acquisition=str(attributes.get("acquisition", "")),
            mask=self._mask(ny, nx, padding),
            padding=padding,
            attributes=attributes,
        )
        self._hdf5.close()
        super().__init__(path, layout)

    def close(self) -> None:
        """Closes the file; the next read opens it again."""
        self._hdf5.close()

    def _kspace(self, index: int) -> np.ndarray:
        values = self._hdf5.read("kspace", (index,))
        return values[None] if self._is_single else values

    def _target(self, index: int) -> np.ndarray | None:
        return self._hdf5.read(self._target_key, (index,)) if self._target_key else None

    def _maps(self, index: int) -> np.ndarray | None:
        if not self._has_maps:
            return None
        values = self._hdf5.read("maps", (index,))
        return values[None] if values.ndim == 3 else values

    def _find_target(self, n_slices: int) -> str | None:
        # A single-coil file has both; its reference is the emulated single coil ("ESC"), not the multi-coil RSS.
        keys = ("reconstruction_esc", "reconstruction_rss")
        for key in keys if self._is_single else keys[::-1]:
            if self._hdf5.has(key):
                shape = self._hdf5.dataset(key).shape
                if len(shape) != 3 or shape[0] != n_slices:
                    raise InputError(
                        f"{self._hdf5.path}: data set '{key}' is {shape}, expected ({n_slices}, h, w) as of 'kspace'"
                    )
                return key
        return None

    def _check_maps(self, kspace: tuple[int, ...]) -> None:
        self._has_maps = self._hdf5.has("maps")
        if not self._has_maps:
            return
        axes = "(slices, coils, H, W) or (slices, sets, coils, H, W)"
        shape = self._hdf5.complex_dataset("maps", (4, 5), axes).shape
        coils = (1,) if self._is_single else kspace[1:2]
        if (shape[0], *shape[-3:]) != (kspace[0], *coils, *kspace[-2:]):
            raise InputError(f"{self._hdf5.path}: coil maps 'maps' {shape} do not fit 'kspace' {kspace}")

    def _crop(self, ny: int, nx: int) -> tuple[int, int]:
        h, w = ny, nx
        if self._target_key:
            h, w = self._hdf5.dataset(self._target_key).shape[1:]
        elif self.recon_size:
            h, w = self.recon_size[:2]
        if nx < w:
            h, w = nx, nx
        return min(h, ny), w

    def _mask(self, ny: int, nx: int, padding: tuple[int, int] | None) -> Tensor | None:
        if not self._hdf5.has("mask"):
            return None
        values = self._hdf5.read("mask") != 0
        mask = torch.from_numpy(values.reshape(-1, values.shape[-1]) if values.ndim else values.reshape(1, 1))
        if values.ndim not in (1, 2) or mask.shape[1] != nx or mask.shape[0] not in (1, ny):
            raise InputError(
                f"{self._hdf5.path}: the mask {values.shape} does not fit k-space {ny} x {nx}: one value a column "
                f"({nx},) was expected"
            )
        if padding is not None:
            columns = torch.arange(nx)
            mask = mask & (columns >= padding[0]) & (columns < padding[1])
        return mask


def _padding(header: Header, nx: int) -> tuple[int, int] | None:
    """Columns that were encoded; beyond them k-space is zero. The formula is fastMRI's, kept inside the array."""
    if header.encoded is None or header.step_1 is None:
        return None
    left = header.encoded.matrix[1] // 2 - header.step_1.center
    right = left + header.step_1.maximum + 1
    left, right = max(left, 0), min(right, nx)
    return (left, right) if left < right else None


def _voxel_size(header: Header, ny: int, nx: int) -> tuple[float, float, float] | None:
    """K-space of n points over a field of view L gives pixels of L / n, however many of them are shown."""
    if header.encoded is None or header.encoded.field_of_view is None:
        return None
    x, y, z = header.encoded.field_of_view
    if header.recon is not None and header.recon.field_of_view is not None:
        z = header.recon.field_of_view[2] / header.recon.matrix[2]
    else:
        z = z / header.encoded.matrix[2]
    return z, x / ny, y / nx
