"""What every reader of scans has in common: shapes, bounds, checks of the values."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.reading import Attribute


@dataclass(frozen=True)
class Layout:
    """What a file says about a scan before any slice of it is read.

    Attributes:
        name: What outputs are called.
        n_slices: Number of slices.
        n_coils: Number of receiver coils.
        shape: Points of k-space, ``(ny, nx)``; readout and phase encoding.
        crop: Rows and columns of the image to show.
        voxel_size: Size of a voxel in mm, ``(slice, y, x)``; None if unknown.
        acquisition: Name of the protocol; empty if unknown.
        mask: Sampling pattern that the file brings, bool ``(1|ny, nx)``; None if fully sampled.
        padding: First encoded column and the one after the last; None if all were encoded.
        row_padding: The same of rows.
        attributes: Everything else that is a number or a text.
    """

    name: str
    n_slices: int
    n_coils: int
    shape: tuple[int, int]
    crop: tuple[int, int]
    voxel_size: tuple[float, float, float] | None = None
    acquisition: str = ""
    mask: Tensor | None = None
    padding: tuple[int, int] | None = None
    row_padding: tuple[int, int] | None = None
    attributes: dict[str, Attribute] = field(default_factory=dict)


class Scan(ABC):
    """One volume of k-space, read a slice at a time.

    Nothing but sizes is read when it is opened. The object can be pickled and used in forked or spawned worker
    processes: file handles are opened when the first slice is read, in each process anew, and are never pickled.

    Attributes:
        path: The file.
        name: What outputs are called: the file name without its suffix, ``_echo1`` and the like appended where
            one file holds several scans.
        n_slices: Number of slices.
        n_coils: Number of receiver coils.
        shape: Points of k-space, ``(ny, nx)``; readout and phase encoding.
        crop: Rows and columns of the image to show, at most ``shape``.
        voxel_size: Size of a voxel in mm, ``(slice, y, x)``; None if unknown.
        acquisition: Name of the protocol; empty if unknown.
        mask: Sampling pattern that the file brings, bool ``(1|ny, nx)``; None if fully sampled.
        padding: First encoded column and the one after the last (the rest is zero); None if all were encoded.
        row_padding: The same of rows.
        attributes: Everything else that is a number or a text.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        sizes = (layout.n_slices, layout.n_coils, *layout.shape, *layout.crop)
        if min(sizes) < 1:
            raise InputError(
                f"{path}: no data: {layout.n_slices} slices of {layout.n_coils} coils, {layout.shape[0]} x "
                f"{layout.shape[1]} points, image {layout.crop[0]} x {layout.crop[1]}"
            )
        if layout.mask is not None and not layout.mask.any():
            raise InputError(f"{path}: the sampling mask in the file is False everywhere")
        self.path = path
        self.name = layout.name
        self.n_slices = layout.n_slices
        self.n_coils = layout.n_coils
        self.shape = layout.shape
        self.crop = (min(layout.crop[0], layout.shape[0]), min(layout.crop[1], layout.shape[1]))
        self.voxel_size = layout.voxel_size
        self.acquisition = layout.acquisition
        self.mask = layout.mask
        self.padding = layout.padding
        self.row_padding = layout.row_padding
        self.attributes = dict(layout.attributes)

    @property
    def acquired(self) -> tuple[int, int, int, int]:
        """Rows ``[top, bottom)`` and columns ``[left, right)`` that were encoded; zeros stand around them."""
        return *(self.row_padding or (0, self.shape[0])), *(self.padding or (0, self.shape[1]))

    def kspace(self, index: int) -> Tensor:
        """Reads the k-space of one slice, and nothing else.

        Args:
            index: Slice, from 0.

        Returns:
            ``(coil, ny, nx)``, complex64, centred; zero where ``mask`` is False.

        Raises:
            IndexError: No such slice.
            InputError: The file is damaged, or the slice is zero or not finite.
        """
        self._check_index(index)
        values = self._tensor(self._kspace(index), "k-space", index, (self.n_coils, *self.shape))
        if self.mask is not None:
            values = torch.where(self.mask, values, torch.zeros((), dtype=values.dtype))
        if not values.any():
            raise InputError(
                f"{self.path}: k-space of slice {index} is zero everywhere; copy the file again or leave the slice out"
            )
        return values

    def target(self, index: int) -> Tensor | None:
        """Reads the reference image of one slice.

        Args:
            index: Slice, from 0.

        Returns:
            ``(h, w)`` of :attr:`crop`, float32, not negative; None if the file has none.

        Raises:
            IndexError: No such slice.
            InputError: The file is damaged, or the image is not finite.
        """
        self._check_index(index)
        image = self._target(index)
        if image is None:
            return None
        magnitude = np.abs(image)
        values = self._tensor(magnitude, "the reference image", index, magnitude.shape[-2:])
        return center_crop(values, self.crop).clone()

    def maps(self, index: int) -> Tensor | None:
        """Reads the coil maps of one slice.

        Args:
            index: Slice, from 0.

        Returns:
            ``(set, coil, ny, nx)``, complex64; None if the file has none.

        Raises:
            IndexError: No such slice.
            InputError: The file is damaged, or the maps are not finite.
        """
        self._check_index(index)
        maps = self._maps(index)
        if maps is None:
            return None
        return self._tensor(maps, "the coil maps", index, (len(maps), self.n_coils, *self.shape))

    def masks(self) -> dict[str, Tensor]:
        """Reads the named sampling masks that are shipped in the file.

        Returns:
            Bool ``(1|ny, nx)`` by name, for example ``"poisson_4.0x"``; empty if there are none.
        """
        return {}

    @abstractmethod
    def close(self) -> None:
        """Closes the file; the next read opens it again."""

    @abstractmethod
    def _kspace(self, index: int) -> np.ndarray:
        """Returns ``(coil, ny, nx)``, complex; the bounds are checked."""

    def _target(self, index: int) -> np.ndarray | None:
        """Returns an image of at least the size of the crop, real or complex; the bounds are checked."""
        return None

    def _maps(self, index: int) -> np.ndarray | None:
        """Returns ``(set, coil, ny, nx)``, complex; the bounds are checked."""
        return None

    def _check_index(self, index: int) -> None:
        if not 0 <= index < self.n_slices:
            raise IndexError(f"{self.path}: slice {index} of {self.n_slices} (they count from 0)")

    def _tensor(self, values: np.ndarray, what: str, index: int, shape: tuple[int, ...]) -> Tensor:
        """Copies into memory that torch owns, and checks shape and values."""
        if values.shape != shape:
            raise InputError(f"{self.path}: {what} of slice {index} is {values.shape}, expected {shape}")
        dtype = np.complex64 if values.dtype.kind == "c" else np.float32
        with np.errstate(over="ignore", invalid="ignore"):  # reported below, with its place
            # A copy in every case: memory of HDF5 that a tensor keeps alive is what leaks in fastMRI's issue 215.
            copied = np.array(values, dtype=dtype, order="C")
        finite = np.isfinite(copied)
        if not finite.all():
            place = tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), finite.shape))
            raise InputError(
                f"{self.path}: {what} of slice {index} holds {copied[place]} at {place}; finite numbers were "
                "expected: copy the file again or leave it out"
            )
        return torch.from_numpy(copied)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def center_crop(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Cuts the middle out of the last two axes, rounded as fastMRI rounds.

    Args:
        values: ``(..., y, x)``.
        size: Rows and columns to keep; an axis that is smaller stays whole.

    Returns:
        ``(..., min(y, size[0]), min(x, size[1]))``, a view.
    """
    for axis, n in zip((-2, -1), size, strict=True):
        have = values.shape[axis]
        if n < have:
            values = values.narrow(axis, (have - n) // 2, n)
    return values


def pad_center(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Puts a mask into the middle of a larger one that is False elsewhere; the origin stays at ``n // 2``.

    Args:
        mask: Bool ``(y, x)``.
        shape: Points of the larger one, each at least as many.

    Returns:
        Bool of this shape.
    """
    wide = np.zeros(shape, dtype=bool)
    top, left = (n // 2 - m // 2 for n, m in zip(shape, mask.shape, strict=True))
    wide[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return wide


def column_mask(sampled: np.ndarray) -> Tensor | None:
    """A pattern of sampled points in its shortest form.

    Args:
        sampled: Bool ``(ny, nx)``.

    Returns:
        None if all points were sampled, ``(1, nx)`` if whole columns were, else ``(ny, nx)``.
    """
    if sampled.all():
        return None
    if (sampled == sampled[:1]).all():
        sampled = sampled[:1]
    return torch.from_numpy(np.array(sampled, dtype=bool))
