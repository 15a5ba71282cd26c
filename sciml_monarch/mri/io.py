"""Reconstructions on disk: HDF5 that fastMRI's evaluation reads, and PNG mosaics.

An HDF5 file holds the data set ``reconstruction`` (slices, y, x) float32 and attributes that say where it comes from.
Optionally also ``image`` (slices, set, y, x) complex, ``mask`` (1|y, x) bool and ``maps`` (slices, set, coil, y, x),
from which the data-consistency residual can be computed again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.files import replacing
from sciml_monarch.version import version

Attribute = float | int | str | bool
SUFFIXES = (".h5", ".hdf5")


@dataclass(frozen=True)
class Provenance:
    """Where a reconstruction comes from; the attributes of its file.

    Attributes:
        method: What tables call it, such as ``CG-SENSE``.
        source: Name of the file with the k-space.
        network: Class of the network and name of its checkpoint, without folders, which are a machine's; empty for a
            classical method.
        settings: What a classical method was run with, where that was not its default.
        acceleration: Nominal acceleration, if known.
        acquisition: Kind of scan, such as fastMRI's ``AXT2``; empty if unknown.
        voxel_size: In mm, (slice, y, x), if known.
        data_consistency: Residual ``|A x - y| / |y|`` of the volume, if measured.
    """

    method: str
    source: str
    network: str = ""
    settings: str = ""
    acceleration: float | None = None
    acquisition: str = ""
    voxel_size: tuple[float, float, float] | None = None
    data_consistency: float | None = None


@dataclass(frozen=True)
class Reconstruction:
    """A reconstructed volume as it was read.

    Attributes:
        volume: ``(slices, y, x)`` float32.
        attributes: All attributes of the file; numbers, strings and booleans.
    """

    volume: Tensor
    attributes: dict[str, Attribute]


@dataclass(frozen=True)
class ComplexImage:
    """What the data-consistency residual of a reconstruction is computed from.

    Attributes:
        image: Complex images, ``(slices, set, y, x)``, of the size of k-space.
        mask: What was sampled, bool ``(1|y, x)``.
        maps: Coil sensitivities, ``(slices, set, coil, y, x)``.
    """

    image: Tensor
    mask: Tensor
    maps: Tensor

    def __post_init__(self) -> None:
        n, sets, ny, nx = self.image.shape if self.image.ndim == 4 else (0, 0, 0, 0)
        fits = self.maps.ndim == 5 and (*self.maps.shape[:2], *self.maps.shape[3:]) == (n, sets, ny, nx)
        if not fits or tuple(self.mask.shape) not in ((1, nx), (ny, nx)):
            raise InputError(
                f"an image {tuple(self.image.shape)}, a mask {tuple(self.mask.shape)} and maps "
                f"{tuple(self.maps.shape)} do not fit; give (slices, set, y, x), (1|y, x) and (slices, set, coil, y, x)"
            )


def write_reconstruction(
    path: Path, volume: Tensor, provenance: Provenance, consistency: ComplexImage | None = None
) -> Path:
    """Writes a reconstructed volume as HDF5, whole or not at all.

    Args:
        path: File to write or replace, ``.h5`` or ``.hdf5``.
        volume: Magnitudes ``(slices, y, x)``; stored as float32.
        provenance: Stored as attributes.
        consistency: The complex image with its mask and maps; stored if given.

    Returns:
        ``path``.

    Raises:
        InputError: The name, the shape or the values will not do, or the disk is full.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: a reconstruction is called {' or '.join(SUFFIXES)}")
    if volume.ndim != 3 or volume.is_complex() or volume.numel() == 0:
        raise InputError(f"a reconstruction is a real volume (slices, y, x), not {tuple(volume.shape)} {volume.dtype}")
    bad = (~volume.detach().isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
    if bad:
        raise InputError(f"{path.name}: slice {bad[0]} of the reconstruction is not finite; it is not written")
    with replacing(path) as temporary:
        try:
            with h5py.File(temporary, "w") as file:
                file["reconstruction"] = volume.detach().cpu().float().numpy()
                file.attrs.update(_attributes(provenance))
                if consistency is not None:
                    file["image"] = consistency.image.detach().cpu().to(torch.complex64).resolve_conj().numpy()
                    file["mask"] = consistency.mask.detach().cpu().numpy()
                    file["maps"] = consistency.maps.detach().cpu().to(torch.complex64).resolve_conj().numpy()
        except (OSError, RuntimeError) as error:  # HDF5 reports a full disk as either
            raise InputError(f"{path}: cannot write HDF5 there, is the disk full? ({error})") from error
    return path


def read_reconstruction(path: Path) -> Reconstruction:
    """Reads a reconstructed volume and its attributes.

    Args:
        path: HDF5 file with a data set ``reconstruction``: of this package, or of any that writes what fastMRI's
            evaluation reads.

    Returns:
        Volume and attributes.

    Raises:
        InputError: The file is absent, damaged, or has no such volume.
    """
    with opened(path) as file:
        volume = read_volume(file, "reconstruction")
        attributes = {key: _plain(value) for key, value in file.attrs.items()}
        return Reconstruction(volume, {key: value for key, value in attributes.items() if value is not None})


def read_complex_image(path: Path) -> ComplexImage | None:
    """Reads what the data-consistency residual is computed from; None where the file does not have all of it.

    Args:
        path: File of :func:`write_reconstruction`.

    Raises:
        InputError: The file is absent or damaged.
    """
    with opened(path) as file:
        if not all(key in file for key in ("image", "mask", "maps")):
            return None
        image, mask, maps = (torch.from_numpy(file[key][()]) for key in ("image", "mask", "maps"))
        return ComplexImage(image, mask.bool(), maps)


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Opens an HDF5 file to read it; what is wrong with it becomes one line that names it.

    Args:
        path: The file.

    Yields:
        The open file.

    Raises:
        InputError: The file is absent, not HDF5 or damaged, or an OSError comes out of the body.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except InputError as error:
        text = str(error)
        raise (error if str(path) in text else InputError(f"{path}: {text}")) from None
    except (OSError, RuntimeError, KeyError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{path}: damaged or not HDF5 ({reason})") from None


def read_volume(file: h5py.File, key: str) -> Tensor:
    """Reads a real volume ``(slices, y, x)`` of an open file as float32.

    Raises:
        InputError: There is no such data set or it is not a real volume; complex ones become magnitudes.
    """
    data = file.get(key)
    if not isinstance(data, h5py.Dataset):
        raise InputError(f"there is no data set {key!r}; there are {', '.join(sorted(file)) or 'none'}")
    if data.ndim != 3 or data.dtype.kind not in "fiuc" or data.size == 0:
        raise InputError(f"{key!r} is {data.shape} {data.dtype}, not a volume (slices, y, x)")
    array = data[()]
    return torch.from_numpy(np.abs(array).astype(np.float32) if array.dtype.kind == "c" else array.astype(np.float32))


def write_mosaic(
    path: Path, volume: Tensor, voxel_size: tuple[float, float, float] | None = None, n_tiles: int = 36
) -> Path:
    """Writes slices of a volume side by side as a grey PNG of one pixel a voxel, whole or not at all.

    Black is 0 and white the 99.9th percentile of the volume, so that a few bright voxels do not darken the rest.
    Slices run in lines from the top left, the first one inferior by this package's convention.

    Args:
        path: File to write or replace.
        volume: Magnitudes ``(slices, y, x)``.
        voxel_size: In mm, (slice, y, x); where voxels are not square in the plane, the shorter side is stretched.
        n_tiles: Most slices shown; thicker volumes are thinned evenly, with first and last slice.

    Returns:
        ``path``.

    Raises:
        InputError: The volume is not one, ``n_tiles`` is below 1, or the disk is full.
    """
    from matplotlib.image import imsave

    if volume.ndim != 3 or volume.is_complex() or volume.numel() == 0:
        raise InputError(f"a mosaic needs a real volume (slices, y, x), not {tuple(volume.shape)} {volume.dtype}")
    if n_tiles < 1:
        raise InputError(f"n_tiles is {n_tiles}; it must be at least 1")
    n = len(volume)
    shown = np.unique(np.linspace(0, n - 1, min(n, n_tiles)).round().astype(int))
    tiles = volume.detach().cpu().float()[shown].nan_to_num(0, 0, 0)
    white = float(np.quantile(tiles.numpy(), 0.999)) or float(tiles.max()) or 1.0
    if voxel_size is not None and abs(voxel_size[1] / voxel_size[2] - 1) > 0.01:
        _, dy, dx = voxel_size
        size = [round(side * mm / min(dy, dx)) for side, mm in zip(tiles.shape[1:], (dy, dx), strict=True)]
        tiles = F.interpolate(tiles[:, None], size=size, mode="bilinear")[:, 0]
    _, height, width = tiles.shape
    # As many columns as make the longer side of the picture shortest.
    columns = min(range(1, len(shown) + 1), key=lambda n: max(-(-len(shown) // n) * height, n * width))
    rows = -(-len(shown) // columns)
    padded = F.pad(tiles, (0, 0, 0, 0, 0, rows * columns - len(shown)))
    picture = padded.reshape(rows, columns, height, width).transpose(1, 2).reshape(rows * height, columns * width)
    with replacing(path) as temporary:
        imsave(temporary, picture.numpy(), cmap="gray", vmin=0, vmax=white, format="png")
    return path


def _attributes(provenance: Provenance) -> dict[str, Any]:
    values = {key: value for key, value in vars(provenance).items() if value is not None}
    return values | {"software": f"sciml-monarch {version()}"}


def _plain(value: Any) -> Attribute | None:
    """Attributes as Python values; arrays and what else there may be are left out."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.generic):
        value = value.item()
    return value if isinstance(value, float | int | str | bool) else None
