"""SKM-TEA's raw-data track (Desai et al., NeurIPS 2021): double-echo knees, hybrid k-space (x, ky, kz)."""

from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.hdf5 import Hdf5File
from sciml_monarch.mri.formats.base import Layout, Scan, pad_center
from sciml_monarch.reading import reading


class SKMTEAScan(Scan):
    """One echo of a SKM-TEA file.

    The readout is transformed already, so a slice is one x and its two axes, y and x of this package, are the
    phase encodings (ky, kz). ``kspace`` (Nx, Ny, Nz, echoes, coils), ``maps`` (Nx, Ny, Nz, coils, sets),
    ``target`` (Nx, Ny, Nz, echoes, sets), ``masks/poisson_4.0x`` and so on (416, 80): the acquired part, which
    stands in the middle of k-space that was filled up with zeros, mostly to 512 x 160. Rows and columns of this part
    are :attr:`acquired`; a file without masks counts as acquired everywhere. The file has no voxel size.

    Args:
        path: The file.
        echo: Echo, from 0.

    Raises:
        InputError: The file is truncated, lacks ``kspace`` or the echo, or holds arrays of other shapes or types.
    """

    def __init__(self, path: Path, echo: int) -> None:
        self._hdf5 = Hdf5File(path)
        shape = _check_arrays(self._hdf5)
        n_x, n_y, n_z, n_echoes, n_coils = shape
        if not 0 <= echo < n_echoes:
            raise InputError(f"{path}: echo {echo} of {n_echoes} (they count from 0)")
        self._echo = echo
        self._has_maps, self._has_target = self._hdf5.has("maps"), self._hdf5.has("target")
        row_padding, padding = _padding(self._hdf5, (n_y, n_z))
        layout = Layout(
            name=f"{path.stem}_echo{echo + 1}",
            n_slices=n_x,
            n_coils=n_coils,
            shape=(n_y, n_z),
            crop=(n_y, n_z),
            acquisition=f"qDESS echo {echo + 1}",
            padding=padding,
            row_padding=row_padding,
            attributes={**self._hdf5.attributes(), "echo": echo + 1},
        )
        self._hdf5.close()
        super().__init__(path, layout)

    def close(self) -> None:
        """Closes the file; the next read opens it again."""
        self._hdf5.close()

    def masks(self) -> dict[str, Tensor]:
        """Reads the masks of the benchmark, zero-padded centrally to the volume.

        Returns:
            Bool ``(ny, nx)`` by name, for example ``"poisson_4.0x"``.

        Raises:
            InputError: A mask is damaged or larger than k-space.
        """
        padded = {}
        for name in _mask_names(self._hdf5):
            mask = self._hdf5.read(f"masks/{name}") != 0
            mask = mask.reshape([n for n in mask.shape if n > 1])
            if mask.ndim != 2 or mask.shape[0] > self.shape[0] or mask.shape[1] > self.shape[1]:
                raise InputError(
                    f"{self.path}: the mask 'masks/{name}' {mask.shape} does not fit into k-space {self.shape}"
                )
            padded[name] = torch.from_numpy(pad_center(mask, self.shape))
        return padded

    def _kspace(self, index: int) -> np.ndarray:
        values = self._hdf5.read("kspace", (index, slice(None), slice(None), self._echo))
        return values.transpose(2, 0, 1)

    def _target(self, index: int) -> np.ndarray | None:
        if not self._has_target:
            return None
        values = self._hdf5.read("target", (index, slice(None), slice(None), self._echo))
        magnitude: np.ndarray = np.sqrt(np.sum(np.abs(values) ** 2, axis=-1))  # over the sets of maps
        return magnitude

    def _maps(self, index: int) -> np.ndarray | None:
        return self._hdf5.read("maps", (index,)).transpose(3, 2, 0, 1) if self._has_maps else None


def open_skmtea(path: Path) -> list[SKMTEAScan]:
    """Opens the echoes of a SKM-TEA file.

    Args:
        path: The file.

    Returns:
        One scan an echo.

    Raises:
        InputError: The file is not of this kind.
    """
    hdf5 = Hdf5File(path)
    n_echoes = _check_arrays(hdf5)[3]
    hdf5.close()
    return [SKMTEAScan(path, echo) for echo in range(n_echoes)]


def _check_arrays(hdf5: Hdf5File) -> tuple[int, int, int, int, int]:
    """Checks that the arrays fit each other; returns the shape of ``kspace``."""
    kspace = hdf5.complex_dataset("kspace", (5,), "(Nx, Ny, Nz, echoes, coils)").shape
    n_x, n_y, n_z, n_echoes, n_coils = kspace
    for key, axis, axes in (("maps", n_coils, "coils"), ("target", n_echoes, "echoes")):
        if hdf5.has(key):
            shape = hdf5.complex_dataset(key, (5,), f"(Nx, Ny, Nz, {axes}, sets)").shape
            if shape[:4] != (n_x, n_y, n_z, axis):
                raise InputError(f"{hdf5.path}: data set '{key}' {shape} does not fit 'kspace' {kspace}")
    return n_x, n_y, n_z, n_echoes, n_coils


def _mask_names(hdf5: Hdf5File) -> list[str]:
    with reading(hdf5.path, "the group 'masks'"):
        group = hdf5.file.get("masks")
        return sorted(group) if isinstance(group, h5py.Group) else []


def _padding(hdf5: Hdf5File, shape: tuple[int, int]) -> list[tuple[int, int] | None]:
    """Rows and columns of the acquired part, as the size of the masks says; None where it is as large as k-space."""
    names = _mask_names(hdf5)
    sizes = [n for n in hdf5.dataset(f"masks/{names[0]}").shape if n > 1] if names else []
    if len(sizes) != 2:
        return [None, None]
    return [(n // 2 - m // 2, n // 2 - m // 2 + m) if m < n else None for n, m in zip(shape, sizes, strict=True)]
