"""What training minimises: distances of magnitude images that do not depend on the scanner's units."""

from typing import Literal

import torch
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.mri.base import magnitude
from sciml_monarch.mri.formats.base import center_crop
from sciml_monarch.mri.metrics import ssim_per_slice

Loss = Literal["ssim", "l1", "mse", "normalized_l1"]


def compared(image: Tensor, target: Tensor) -> Tensor:
    """What is compared with a target: the centre of an image's magnitude, float32.

    Args:
        image: Images of a network, ``(b, set, y, x)``.
        target: ``(b, h, w)``.

    Returns:
        ``(b, h, w)``.

    Raises:
        InputError: The image is smaller than the target.
    """
    size = magnitude(image)
    cropped = center_crop(size, (target.shape[-2], target.shape[-1])).float()
    if cropped.shape != target.shape:
        raise InputError(f"the network's image {tuple(size.shape)} is smaller than the target {tuple(target.shape)}")
    return cropped


def image_loss(image: Tensor, target: Tensor, maximum: Tensor, loss: Loss) -> Tensor:
    """Distance of images to their targets, mean over the batch, in float32 whatever the precision of the network.

    Args:
        image: Images of a network, ``(b, set, y, x)``.
        target: Magnitudes, ``(b, h, w)``.
        maximum: Largest value of each target's volume, ``(b,)``.
        loss: ``ssim``: 1 - SSIM, 7 x 7 windows, range ``maximum`` (fastMRI's loss); ``l1`` and ``mse``: mean absolute
            and mean squared difference in units of ``maximum``; ``normalized_l1``: sum of absolute differences over
            the sum of the target.

    Returns:
        A scalar.

    Raises:
        InputError: The image is smaller than the target.
    """
    with torch.autocast(target.device.type, enabled=False):
        ours, truth = compared(image, target), target.float()
        if loss == "ssim":
            return 1 - ssim_per_slice(truth, ours, maximum.float()).mean()
        difference = (ours - truth).flatten(1)
        if loss == "normalized_l1":
            return (difference.abs().sum(1) / truth.abs().flatten(1).sum(1)).mean()
        difference = difference / maximum.float()[:, None]
        return difference.abs().mean() if loss == "l1" else difference.square().mean()
