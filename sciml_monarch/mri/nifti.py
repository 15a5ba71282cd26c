"""NIfTI volumes, written and read through nibabel (extra ``mri``).

Volumes of this package are ``(slice, row, column)``; NIfTI's are ``(x, y, slice)``. Orientation and position are
nominal, and the header says so: columns are called right to left, rows anterior to posterior, slices inferior to
superior, whatever plane was scanned, and the origin is the centre of the volume. K-space files say how large a voxel is
but, as a rule, not how the patient lay; where one does (ISMRMRD), that is not used. Volumes of one scan lie on each
other in a viewer; they do not lie on images that the scanner itself reconstructed.
"""

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.files import replacing

ALIGNED = 2
"""NIfTI's code of coordinates that are not the scanner's own; 0 would make viewers ignore the affine."""


def write_nifti(path: Path, volume: Tensor, voxel_size: tuple[float, float, float] | None) -> Path:
    """Writes a magnitude volume as NIfTI-1, whole or not at all.

    Args:
        path: File to write or replace, ``.nii`` or ``.nii.gz``.
        volume: ``(slices, y, x)``, real; stored as float32 ``(x, y, slice)``.
        voxel_size: Size in mm, (slice, y, x); None where it is not known: then 1, and the header's unit is unknown.

    Returns:
        ``path``.

    Raises:
        InputError: nibabel is not installed, the name or the voxel size will not do, or the disk is full.
    """
    nibabel = _nibabel()
    if not path.name.endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: a NIfTI file is called .nii or .nii.gz")
    if volume.ndim != 3 or volume.is_complex():
        raise InputError(f"NIfTI needs a real volume (slices, y, x), not {tuple(volume.shape)} {volume.dtype}")
    if voxel_size is not None and not all(0 < size < np.inf for size in voxel_size):
        raise InputError(f"voxel size {voxel_size} mm; sizes must be positive")
    dz, dy, dx = voxel_size or (1.0, 1.0, 1.0)
    array = volume.detach().cpu().float().permute(2, 1, 0).contiguous().numpy()
    affine = np.diag([-dx, -dy, dz, 1.0])  # NIfTI's world grows to R, A, S, our axes to L, P, S
    affine[:3, 3] = -affine[:3, :3] @ (np.array(array.shape) // 2)  # the centre of the transform is the origin
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm" if voxel_size else "unknown")
    image.set_sform(affine, ALIGNED)
    image.set_qform(affine, ALIGNED)
    image.header["descrip"] = b"sciml-monarch; orientation and position are nominal"
    content = image.to_bytes()
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def read_nifti(path: Path) -> tuple[NDArray[Any], tuple[float, float, float]]:
    """Reads a magnitude volume in the orientation of this package.

    Axes are permuted and flipped to the nearest of the patient's; an oblique volume is not resampled.

    Args:
        path: A NIfTI file.

    Returns:
        ``(slices, y, x)`` float32 from inferior to superior, anterior to posterior, right to left, and the voxel
        size in mm in that order.

    Raises:
        InputError: nibabel is not installed, or the file is absent, damaged or not one real volume.
    """
    nibabel = _nibabel()
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        image = nibabel.as_closest_canonical(nibabel.load(path))
        array = np.asarray(image.dataobj)
        zooms = image.header.get_zooms()
    except (OSError, EOFError, ValueError, zlib.error, nibabel.filebasedimages.ImageFileError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: not a NIfTI volume that can be read ({reason})") from None
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3 or array.dtype.kind not in "fiu":
        raise InputError(f"{path}: holds {array.shape} {array.dtype}, not one volume of real numbers")
    upright = array.transpose(2, 1, 0)[:, ::-1, ::-1]  # from (R, A, S) to (S, P, L)
    dx, dy, dz = (float(size) for size in zooms[:3])
    return np.ascontiguousarray(upright, dtype=np.float32), (dz, dy, dx)


def check_nibabel() -> None:
    """Checks that NIfTI can be written here.

    Raises:
        InputError: nibabel is not installed.
    """
    _nibabel()


def _nibabel() -> Any:
    try:
        import nibabel
    except ModuleNotFoundError:
        raise InputError("NIfTI needs nibabel, which is not installed; pip install 'sciml-monarch[mri]'") from None
    return nibabel
