"""Patterns on k-space of which a scanner measured only a box, and which was filled up with zeros around it."""

import torch
from torch import Tensor

from sciml_monarch.mri.masks import Mask, Seed

Box = tuple[int, int, int, int]  # rows [top, bottom) and columns [left, right)


def within_box(mask: Tensor, box: Box, ny: int) -> Tensor:
    """Removes what lies outside a box, which the scanner never measured.

    Args:
        mask: Bool ``(1|ny, nx)``.
        box: Rows and columns that were acquired, ``(top, bottom, left, right)``.
        ny: Rows of k-space.

    Returns:
        Bool ``(1|ny, nx)``; a mask of whole columns remains one where the box has all rows.
    """
    top, bottom, left, right = box
    column = torch.arange(mask.shape[-1], device=mask.device)
    mask = mask & (column >= left) & (column < right)
    if (top, bottom) == (0, ny):
        return mask
    row = torch.arange(ny, device=mask.device)[:, None]
    return mask & (row >= top) & (row < bottom)


def draw_within(mask: Mask, shape: tuple[int, int], box: Box, seed: Seed) -> Tensor:
    """Draws a pattern for k-space of which only a box was acquired.

    Column patterns are drawn on the whole width, bit-equal to fastMRI's. Patterns of both axes get their number of
    samples and their density inside the box: they are drawn on the smallest box that contains it and whose centre is
    that of k-space (the same one, unless a scan was acquired on one side further than on the other).

    Args:
        mask: Recipe.
        shape: Points of k-space, ``(ny, nx)``.
        box: Rows and columns that were acquired, ``(top, bottom, left, right)``.
        seed: Of the pattern.

    Returns:
        Bool ``(1|ny, nx)``, False outside the box; another shape if the mask itself does not fit.

    Raises:
        InputError: No such pattern exists.
    """
    (ny, nx), (top, bottom, left, right) = shape, box
    if not mask.fits_box:
        pattern = mask(shape, seed)
    else:
        height, width = _around_centre(ny, top, bottom), _around_centre(nx, left, right)
        drawn = mask((height, width), seed)
        pattern = torch.zeros(shape, dtype=torch.bool)
        first = (ny // 2 - height // 2, nx // 2 - width // 2)
        pattern[first[0] : first[0] + height, first[1] : first[1] + width] = drawn
    return within_box(pattern, box, ny) if pattern.shape in ((1, nx), (ny, nx)) else pattern


def _around_centre(n: int, first: int, last: int) -> int:
    """Size of the smallest stretch around n // 2 that contains ``[first, last)``."""
    return next(m for m in range(last - first, n + 1) if n // 2 - m // 2 <= first and n // 2 - m // 2 + m >= last)
