"""Magnitude volumes of heads that semi-synthetic scans are made from: files, packages that carry one, a phantom."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.mri.nifti import read_nifti
from sciml_monarch.mri.phantom import phantom, phantom_voxel_size

__all__ = ["Anatomy", "choose_slices", "find_anatomies", "onto_grid", "open_anatomy", "phantom"]

Plane = Literal["axial", "coronal", "sagittal"]
MARGIN = 0.96
"""The largest part of the grid that a head may fill, on either axis."""


@dataclass(frozen=True)
class Anatomy:
    """A head.

    Attributes:
        name: What it is called in the files made from it.
        volume: Magnitudes ``(slices, y, x)`` float32, from 0 to 1.
        voxel_size: In mm, (slice, y, x).
        is_synthetic: Whether no part of it was ever measured.
    """

    name: str
    volume: Tensor
    voxel_size: tuple[float, float, float]
    is_synthetic: bool = False


def find_anatomies() -> dict[str, Path]:
    """Finds the heads that installed packages carry; see the data card for versions and licences.

    Returns:
        ``"pydeface"`` (mean T1 head of the PyPI package ``pydeface``), ``"mni152"`` (template of ``nilearn``) and
        ``"colin27"`` (Debian's ``mricron-data``), as far as they are there.
    """
    packages = {
        "pydeface": ("pydeface", "data/mean_reg2mean.nii.gz"),
        "mni152": ("nilearn", "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"),
    }
    found = {"colin27": Path("/usr/share/mricron/templates/ch2.nii.gz")}
    for name, (package, file) in packages.items():
        specification = find_spec(package)  # looks for a top-level package without importing it
        for folder in (specification.submodule_search_locations if specification else None) or ():
            found[name] = Path(folder) / file
    return {name: path for name, path in sorted(found.items()) if path.is_file()}


def open_anatomy(
    source: str, plane: Plane = "axial", shape: tuple[int, int] = (256, 256), n_slices: int = 16, seed: int = 0
) -> Anatomy:
    """Opens a head by file or by name.

    Args:
        source: A NIfTI file; a NumPy file (.npy) of magnitudes ``(slices, rows, columns)``, axial, from inferior to
            superior, anterior to posterior, right to left, its voxels taken to be 1 mm wide; the name of a head of
            :func:`find_anatomies`; or ``"phantom"``.
        plane: How slices are cut. The phantom is axial.
        shape: Rows and columns of the phantom; files keep their own.
        n_slices: Slices of the phantom; files keep all.
        seed: Seed of the phantom.

    Returns:
        The head, scaled to a maximum of 1.

    Raises:
        InputError: There is no such file or name, or the file is not a volume of magnitudes.
    """
    if source == "phantom":
        if plane != "axial":
            raise InputError(f"plane is {plane!r}, but the phantom is axial")
        full = (n_slices, *shape)
        return Anatomy(f"phantom (seed {seed})", phantom(full, seed), phantom_voxel_size(full), is_synthetic=True)
    named = find_anatomies()
    path = named.get(source, Path(source))
    if not path.is_file():
        known = ", ".join([*named, "phantom"])
        raise InputError(f"{source}: no such file, and no anatomy of this name; here are: {known}")
    if path.suffix == ".npy":
        array, voxel_size = _read_npy(path), (1.0, 1.0, 1.0)
    elif path.name.endswith((".nii", ".nii.gz")):
        array, voxel_size = read_nifti(path)
    else:
        raise InputError(f"{path}: an anatomy is .nii, .nii.gz or .npy")
    if not np.isfinite(array).all() or array.min() < 0 or array.max() == 0:
        raise InputError(f"{path}: an anatomy holds magnitudes: finite, not negative and not all zero")
    volume = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    volume, voxel_size = _cut(volume / volume.max(), voxel_size, plane)
    name = source if source in named else path.name
    return Anatomy(name, volume, voxel_size)


def choose_slices(anatomy: Anatomy, n_slices: int | None = None, min_signal: float = 0.4) -> Anatomy:
    """Keeps the slices that show enough of the head.

    Args:
        anatomy: The head.
        n_slices: How many of these to keep, spread evenly; None: all.
        min_signal: Least area of the head in a slice, as a fraction of that of the fullest slice.

    Returns:
        The head with fewer slices; their distance grows accordingly.

    Raises:
        InputError: There are not as many slices, or a number is out of range.
    """
    if not 0 <= min_signal <= 1:
        raise InputError(f"min_signal is {min_signal}; it is a fraction from 0 to 1")
    area = _head(anatomy.volume).float().mean((1, 2))
    full = (area >= min_signal * area.max()).nonzero().flatten()
    if n_slices is not None and not 1 <= n_slices <= len(full):
        raise InputError(
            f"n_slices is {n_slices}, but {anatomy.name} has {len(full)} slices with enough of the head; ask for 1 to "
            f"{len(full)}, or lower min_signal"
        )
    count = len(full) if n_slices is None else n_slices
    kept = full[torch.linspace(0, len(full) - 1, count).round().long()]
    step = float(kept[-1] - kept[0]) / (count - 1) if count > 1 else 1.0
    dz, dy, dx = anatomy.voxel_size
    return Anatomy(anatomy.name, anatomy.volume[kept], (dz * step, dy, dx), anatomy.is_synthetic)


def onto_grid(anatomy: Anatomy, shape: tuple[int, int]) -> Anatomy:
    """Puts a head into the middle of a grid: cut or continued with zeros; made smaller only where it does not fit.

    Args:
        anatomy: The head.
        shape: Rows and columns of the grid.

    Returns:
        The head on the grid; its voxels are larger where it had to be made smaller.

    Raises:
        InputError: The grid is smaller than 16 x 16.
    """
    if min(shape) < 16:
        raise InputError(f"a grid of {shape[0]} x {shape[1]} points is too small for a head; use at least 16 x 16")
    volume = anatomy.volume
    dz, dy, dx = anatomy.voxel_size
    (top, bottom), (left, right) = _extent(volume)
    shrink = min(1.0, MARGIN * shape[0] / (bottom - top), MARGIN * shape[1] / (right - left))
    if shrink < 1:
        size = [max(1, round(n * shrink)) for n in volume.shape[1:]]
        ratios = [m / n for m, n in zip(size, volume.shape[1:], strict=True)]
        # Bilinear with a filter as wide as the new pixels: nothing aliases.
        volume = F.interpolate(volume[:, None], size=size, mode="bilinear", antialias=True)[:, 0]
        (top, bottom), (left, right) = _extent(volume)
        dy, dx = dy / ratios[0], dx / ratios[1]
    grid = volume.new_zeros(len(volume), *shape)
    rows, columns = (
        _overlap(n, m, low, high)
        for n, m, (low, high) in zip(volume.shape[1:], shape, ((top, bottom), (left, right)), strict=True)
    )
    grid[:, rows[1], columns[1]] = volume[:, rows[0], columns[0]]
    return Anatomy(anatomy.name, grid / grid.max(), (dz, dy, dx), anatomy.is_synthetic)


def _read_npy(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not a NumPy array that can be read: {error}") from None
    if array.ndim != 3 or array.dtype.kind not in "fiu" or array.size == 0:
        raise InputError(f"{path}: holds {array.shape} {array.dtype}, not real numbers (slices, rows, columns)")
    return array


def _cut(
    volume: Tensor, voxel_size: tuple[float, float, float], plane: Plane
) -> tuple[Tensor, tuple[float, float, float]]:
    """From (superior, posterior, left) to slices of a plane, upright."""
    if plane == "axial":
        return volume, voxel_size
    order, upside = ((1, 0, 2), (1,)) if plane == "coronal" else ((2, 0, 1), (1,))
    sizes = (voxel_size[order[0]], voxel_size[order[1]], voxel_size[order[2]])
    return volume.permute(order).flip(upside).contiguous(), sizes  # the rows run from superior to inferior


def _head(volume: Tensor) -> Tensor:
    """Where there is signal: above a tenth of what is bright."""
    bright = float(np.quantile(volume[volume > 0].numpy(), 0.99))
    return volume > 0.1 * bright


def _extent(volume: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
    """First row and column of the head, and those after the last."""
    shown = _head(volume).any(0)
    ends = []
    for axis in (1, 0):
        at = shown.any(axis).nonzero().flatten()
        ends.append((int(at[0]), int(at[-1]) + 1))
    return ends[0], ends[1]


def _overlap(n: int, m: int, low: int, high: int) -> tuple[slice, slice]:
    """Parts of an axis of n points and of one of m onto which it is laid with ``[low, high)`` in the middle."""
    shift = m // 2 - (low + high) // 2
    first, last = max(0, -shift), min(n, m - shift)
    return slice(first, last), slice(first + shift, last + shift)
