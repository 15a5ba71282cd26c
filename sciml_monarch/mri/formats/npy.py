"""NumPy ``.npy``: k-space of one slice (coil, y, x) or several (slice, coil, y, x), mapped into memory."""

from pathlib import Path

import numpy as np
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.mri.formats.base import Layout, Scan, column_mask
from sciml_monarch.reading import reading


class NpyScan(Scan):
    """K-space in a NumPy file; points that are zero in all coils of the first slice were not sampled.

    Args:
        path: The file.

    Raises:
        InputError: The file is truncated or holds another kind of array.
    """

    def __init__(self, path: Path) -> None:
        array = _map(path)
        if array.ndim not in (3, 4) or array.dtype.kind != "c":
            raise InputError(
                f"{path}: an array {array.shape} of {array.dtype}, expected complex numbers in (coil, y, x) or "
                "(slice, coil, y, x)"
            )
        self._is_single = array.ndim == 3
        n_coils, ny, nx = array.shape[-3:]
        first = array if self._is_single else array[0] if len(array) else np.ones((1, ny, nx))
        layout = Layout(
            name=path.stem,
            n_slices=1 if self._is_single else array.shape[0],
            n_coils=n_coils,
            shape=(ny, nx),
            crop=(ny, nx),
            mask=sampled_mask(first),
        )
        super().__init__(path, layout)

    def close(self) -> None:
        """Does nothing: the file is mapped for the time of a read only."""

    def _kspace(self, index: int) -> np.ndarray:
        array = _map(self.path)
        # A copy, so that the mapping ends here: pages once touched would count as memory of this process.
        values = np.array(array if self._is_single else array[index])
        check_pattern(self, values, index)
        return values


def sampled_mask(kspace: np.ndarray) -> Tensor | None:
    """What was sampled of a slice in a format that has no mask: points that are not zero in all coils.

    Args:
        kspace: ``(coil, y, x)``.

    Returns:
        Bool ``(1|y, x)``; None if all points were sampled, or none (that is reported when the slice is read).
    """
    sampled = (kspace != 0).any(axis=0)
    return column_mask(sampled) if sampled.any() else None


def check_pattern(scan: Scan, kspace: np.ndarray, index: int) -> None:
    """Refuses a slice with samples where the first slice has none.

    Raises:
        InputError: The slices of a scan were sampled differently.
    """
    if scan.mask is not None and ((kspace != 0).any(axis=0) & ~scan.mask.numpy()).any():
        raise InputError(
            f"{scan.path}: slice {index} has samples where slice 0 has none; the slices of one file must have the "
            "same sampling mask: split the file"
        )


def _map(path: Path) -> np.ndarray:
    with reading(path, "the NumPy array"):
        return np.load(path, mmap_mode="r", allow_pickle=False)
