"""Coil maps by a network, from the fully sampled centre of k-space (Sriram et al., 2020, sec. 3.2)."""

import torch
from torch import Tensor, nn

from sciml_monarch.mri.fourier import ifft2c
from sciml_monarch.mri.norm_unet import NormUNet
from sciml_monarch.mri.norms import root_sum_of_squares


def calibration_mask(mask: Tensor) -> Tensor:
    """The fully sampled centre of k-space, found in the mask of each sample.

    Columns are chosen as fastMRI does: the largest even number of sampled columns around ``x // 2``, but at least
    one. (fastMRI takes a single column where a half of k-space has no gap at all; here the half counts in full.)
    Two-dimensional masks: of all boxes of sampled points around the centre, that of the largest area.

    Args:
        mask: What was sampled, bool ``(b, 1, 1|y, x)``.

    Returns:
        The region, bool, of the same shape.
    """
    ny, nx = mask.shape[-2:]
    width = _central_run(mask[:, 0])  # (b, 1|y): sampled columns around the centre of each row
    if ny == 1:
        return _columns(width, nx)[:, None]
    middle = ny // 2
    below = width[:, middle:]  # rows in the order of their distance from the centre, to both sides
    above = width[:, :middle].flip(1)
    above = torch.cat([above, below[:, above.shape[1] :]], 1)  # an odd height has one row more below
    narrowest = torch.minimum(above, below).cummin(1).values  # (b, h): width of a box of h rows to either side
    height = torch.arange(1, below.shape[1] + 1, device=mask.device)
    half = (height * narrowest).argmax(1, keepdim=True)  # (b, 1), less one
    row = torch.arange(ny, device=mask.device)
    distance = torch.where(row < middle, middle - 1 - row, row - middle)
    rows = distance[None] <= half  # (b, y)
    return (rows[:, :, None] & _columns(narrowest.gather(1, half), nx))[:, None]


def _central_run(line: Tensor) -> Tensor:
    """Points of the largest even sampled run around the centre of lines, ``(..., n) -> (...)``.

    Where there is none it is 1 if the centre itself is sampled, else 0.
    """
    middle = line.shape[-1] // 2
    right = line[..., middle:].long().cumprod(-1).sum(-1)
    left = line[..., :middle].flip(-1).long().cumprod(-1).sum(-1)
    return torch.maximum(2 * torch.minimum(left, right), right.clamp(max=1))


def _columns(width: Tensor, nx: int) -> Tensor:
    """The central columns, ``(b, 1) -> (b, 1, x)`` bool; at least one."""
    width = width.clamp(min=1)[..., None]
    first = (nx - width + 1) // 2
    column = torch.arange(nx, device=width.device)
    return (column >= first) & (column < first + width)


class SensitivityNet(nn.Module):
    """Estimates coil maps: a U-Net applied to each coil image of the calibration region, then normalised.

    Parameters have the names of fastMRI's ``SensitivityModel``.

    Args:
        channels: Channels of the finest level of the U-Net.
        n_pools: Its poolings.
    """

    def __init__(self, channels: int, n_pools: int) -> None:
        super().__init__()
        self.norm_unet = NormUNet(channels, n_pools)

    def forward(self, kspace: Tensor, mask: Tensor) -> Tensor:
        """Estimates maps.

        Args:
            kspace: Undersampled k-space, ``(b, coil, y, x)`` complex, of any scale.
            mask: What was sampled, bool ``(b|1, 1, 1|y, x)``.

        Returns:
            ``(b, coil, y, x)`` complex with unit sum of squares over the coils; zero where all coils are zero.
        """
        images = ifft2c(torch.where(calibration_mask(mask), kspace, 0))
        maps = self.norm_unet(images.flatten(0, 1)).view_as(images)
        norm = root_sum_of_squares(maps, dim=1, keepdim=True)
        return maps / torch.where(norm > 0, norm, 1)
