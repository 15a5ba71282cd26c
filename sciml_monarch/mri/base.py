"""The one interface of every MRI reconstruction network in this package."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from sciml_monarch.errors import InputError
from sciml_monarch.mri.fourier import ifft2c
from sciml_monarch.mri.norms import root_sum_of_squares

SMALLEST = 1e-18
"""Scans below this count as zero: squares of their values are no longer numbers of full precision in float32."""


class Recon(nn.Module, ABC):
    """A map from undersampled k-space to an image.

    A subclass is final. It passes its own constructor arguments, as JSON values, to ``super().__init__``; they
    are stored in checkpoints as :attr:`config`, so that ``type(net)(**net.config)`` builds the same network.

    Args:
        config: Constructor arguments of the subclass, JSON values only.

    Attributes:
        is_magnitude: Whether the image is real and not negative, with a single set, because the definition of
            the network says so (fastMRI's U-Net and VarNet); else it is complex.
        needs_maps: Whether ``maps`` must be given.
        graphable: Whether a training pass may be recorded as a CUDA graph: nothing in it is decided on the host by
            values on the device, and nothing is drawn on the host but what :meth:`draw` draws.
        drawn: What a training pass uses instead of drawing it, on the device; ``None``: it draws.
    """

    is_magnitude: bool = False
    needs_maps: bool = True
    graphable: bool = True
    drawn: Tensor | None = None
    config: dict[str, Any]

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, kspace: Tensor, mask: Tensor, maps: Tensor | None = None) -> Tensor:
        """Reconstructs.

        Args:
            kspace: Undersampled k-space, ``(b, coil, y, x)`` complex, centred. Only what ``mask`` says is
                used. Any positive scale: networks scale by :func:`intensity` where their arithmetic needs it.
            mask: What was sampled, bool ``(b, 1, 1, x)`` (whole columns) or ``(b, 1, y, x)``; ``b`` may be 1.
            maps: Coil sensitivities, ``(b, set, coil, y, x)`` complex.

        Returns:
            Images, ``(b, set, y, x)``, of the scale of ``kspace``.
        """

    def transform_parameters(self) -> list[nn.Parameter]:
        """Parameters of learned transforms; weight decay would pull these to zero, so they get none."""
        return []

    def draw(self) -> Tensor | None:
        """Draws on the host what a training pass would draw there, in the same order; ``None``: it draws nothing.

        A recorded pass draws no more when it is replayed: it reads :attr:`drawn`, into which this is copied.
        """
        return None

    def stages(self) -> list[list[nn.Parameter]]:
        """Parameters in the order in which training may set them free: few and structured ones first.

        Training with a single stage trains all. A network whose freedom grows returns several lists.
        """
        return [list(self.parameters())]


def magnitude(image: Tensor) -> Tensor:
    """What is looked at and scored: the root of the sum of squares over the sets of maps.

    Args:
        image: Images of a network, ``(b, set, y, x)``, complex or real.

    Returns:
        ``(b, y, x)``, real; not negative, except where a network's real image is.
    """
    if not image.is_complex() and image.shape[1] == 1:
        return image[:, 0]  # fastMRI scores the slightly negative background of its U-Net as it is
    if image.shape[1] == 1:  # abs has a gradient down to the smallest numbers, a norm of squares has not
        return image[:, 0].abs()
    return root_sum_of_squares(image, dim=1)


def rss(kspace: Tensor) -> Tensor:
    """Root-sum-of-squares image of k-space, ``(..., coil, y, x) -> (..., y, x)``; what fastMRI calls RSS."""
    return root_sum_of_squares(ifft2c(kspace), dim=-3)


def peak(kspace: Tensor) -> Tensor:
    """Scale of a scan: the largest value of its zero-filled RSS image.

    Args:
        kspace: ``(b, coil, y, x)``.

    Returns:
        ``(b, 1, 1, 1)``; 0 where k-space is zero.
    """
    # magnitudes do not depend on where the origin is, nor does their maximum
    images = torch.fft.ifft2(kspace, norm="ortho")
    return root_sum_of_squares(images, dim=-3).amax(dim=(-2, -1))[:, None, None, None]


def intensity(kspace: Tensor) -> Tensor:
    """The scale to divide a scan by: :func:`peak`, but 1 where k-space is zero.

    Networks that scale their input by it multiply their image by :func:`peak`, so that nothing comes of nothing.

    Args:
        kspace: ``(b, coil, y, x)``.

    Returns:
        ``(b, 1, 1, 1)``, positive.
    """
    top = peak(kspace)
    return top.where(top > SMALLEST, 1.0)


def check_shapes(kspace: Tensor, mask: Tensor, maps: Tensor | None, needs_maps: bool) -> None:
    """Checks what a network is given.

    Args:
        kspace: ``(b, coil, y, x)`` complex.
        mask: Bool ``(b|1, 1, 1|y, x)``.
        maps: ``(b|1, set, coil, y, x)`` complex, or None.
        needs_maps: Whether None is refused.

    Raises:
        InputError: Shapes or dtypes do not fit; the message names them.
    """
    if kspace.ndim != 4 or not kspace.is_complex():
        raise InputError(f"k-space is {tuple(kspace.shape)} {kspace.dtype}; it must be (b, coil, y, x) and complex")
    b, coils, ny, nx = kspace.shape
    fits = mask.ndim == 4 and mask.shape[0] in (1, b) and mask.shape[1] == 1 and mask.shape[2] in (1, ny)
    if not fits or mask.shape[3] != nx:
        raise InputError(f"a mask {tuple(mask.shape)} does not fit k-space {tuple(kspace.shape)}")
    if mask.dtype != torch.bool:
        raise InputError(f"a mask of {mask.dtype}; it must be bool")
    if maps is None:
        if needs_maps:
            raise InputError("this network needs coil maps; estimate them with sciml_monarch.mri.espirit")
    elif not maps.is_complex():
        raise InputError(f"coil maps of {maps.dtype}; they must be complex")
    elif maps.ndim != 5 or maps.shape[0] not in (1, b) or tuple(maps.shape[2:]) != (coils, ny, nx):
        raise InputError(f"coil maps {tuple(maps.shape)} do not fit k-space {tuple(kspace.shape)}")
