"""The U-Net of fastMRI: from a zero-filled image to an image, without physics."""

from collections.abc import Sequence
from types import EllipsisType
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad, pixel_shuffle

from sciml_monarch.errors import InputError
from sciml_monarch.monarch import MonarchLinear
from sciml_monarch.monarch.conv import MonarchConv1x1
from sciml_monarch.mri.base import Recon, check_shapes
from sciml_monarch.mri.fourier import ifft2c
from sciml_monarch.mri.norms import root_sum_of_squares, standardize

# fastMRI's UnetDataTransform: added to the standard deviation, and the largest normalised value that is let in.
_EPSILON = 1e-11
_LARGEST = 6.0


class _Layers(nn.Module):
    """Layers in a row, under the name that they have in fastMRI's state dicts."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def _activation(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.InstanceNorm2d(channels), nn.LeakyReLU(0.2, inplace=True)  # in place: a third of the memory


def _double_conv(in_channels: int, out_channels: int, dropout: float) -> _Layers:
    """Twice: 3x3 convolution, instance normalisation, LeakyReLU, dropout of whole channels."""
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        conv = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        layers += [conv, *_activation(out_channels), nn.Dropout2d(dropout)]
    return _Layers(*layers)


class _MonarchUpsampling(nn.Module):
    """A Monarch matrix from the channels of each point to those of the 2 x 2 points in its place.

    The structured form of a transposed convolution whose stride is its size.
    """

    def __init__(self, in_channels: int, out_channels: int, blocks: int) -> None:
        super().__init__()
        self.linear = MonarchLinear(in_channels, 4 * out_channels, False, blocks)

    def forward(self, x: Tensor) -> Tensor:
        return pixel_shuffle(self.linear(x.movedim(1, -1)).movedim(-1, 1), 2)


def _upsampling(in_channels: int, out_channels: int, blocks: int | None) -> _Layers:
    """Twice the points on each axis: transposed 2x2 convolution, instance normalisation, LeakyReLU."""
    if blocks is None:
        conv: nn.Module = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2, bias=False)
    else:
        conv = _MonarchUpsampling(in_channels, out_channels, blocks)
    return _Layers(conv, *_activation(out_channels))


def _head(in_channels: int, out_channels: int, blocks: int | None) -> nn.Module:
    """The 1x1 convolution at the end."""
    if blocks is None or blocks > min(in_channels, out_channels):
        return nn.Conv2d(in_channels, out_channels, 1)
    return MonarchConv1x1(MonarchLinear(in_channels, out_channels, True, blocks), stride=(1, 1))


class UNet2d(nn.Module):
    """U-Net (Ronneberger et al., 2015) in the variant of fastMRI (Zbontar et al., 2018).

    3x3 convolutions without bias, instance normalisation without weights, LeakyReLU of slope 0.2, average pooling,
    transposed convolutions. Parameters have the names and shapes of ``fastmri.models.Unet``.

    An axis that is odd at some level is continued there by reflection, as in fastMRI. An image that is too small
    for the poolings is surrounded by zeros first (fastMRI's network fails on it).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        channels: Channels of the finest level; they double at each pooling.
        n_pools: Poolings, at least 1.
        dropout: Probability with which a channel is dropped.
        blocks: Blocks of Monarch matrices in place of the convolutions that act on each point by itself: the
            transposed ones, and the last, of size 1, where it has that many outputs. ``None``: dense, as in fastMRI.

    Raises:
        InputError: ``n_pools`` or ``channels`` is less than 1, or there are more ``blocks`` than channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: int = 32,
        n_pools: int = 4,
        dropout: float = 0.0,
        blocks: int | None = None,
    ) -> None:
        super().__init__()
        if n_pools < 1:
            raise InputError(f"n_pools is {n_pools}; a U-Net has at least 1 pooling")
        if channels < 1:
            raise InputError(f"channels is {channels}; a U-Net has at least 1 at its finest level")
        self.n_pools = n_pools
        widths = [channels * 2**level for level in range(n_pools + 1)]  # of the levels, finest first
        self.down_sample_layers = nn.ModuleList(
            _double_conv(i, o, dropout) for i, o in zip([in_channels, *widths[:-2]], widths[:-1], strict=True)
        )
        self.conv = _double_conv(widths[-2], widths[-1], dropout)
        rising = widths[-2::-1]
        self.up_conv = nn.ModuleList(_double_conv(2 * width, width, dropout) for width in rising)
        self.up_transpose_conv = nn.ModuleList(_upsampling(2 * width, width, blocks) for width in rising)
        self.up_conv[-1] = nn.Sequential(self.up_conv[-1], _head(channels, out_channels, blocks))

    def forward(self, x: Tensor) -> Tensor:
        """Applies the network.

        Args:
            x: ``(n, in_channels, y, x)``, any number of points.

        Returns:
            ``(n, out_channels, y, x)``.
        """
        x, inside = surround(x, _at_least(tuple(x.shape[-2:]), self.n_pools))
        skips = []
        for block in self.down_sample_layers:
            x = block(x)
            skips.append(x)
            x = avg_pool2d(x, 2)
        x = self.conv(x)
        for up, merge in zip(self.up_transpose_conv, self.up_conv, strict=True):
            skip = skips.pop()
            x = up(x)
            missing = [skip.shape[axis] - x.shape[axis] for axis in (-2, -1)]  # one where the level is odd
            if any(missing):
                x = pad(x, (0, missing[1], 0, missing[0]), "reflect")
            x = merge(torch.cat([x, skip], 1))
        return x[inside]


def _at_least(size: tuple[int, ...], n_pools: int) -> tuple[int, int]:
    """The size to which an image grows so that the coarsest level has two points, which its normalisation needs."""
    ny, nx = (max(n, 2**n_pools) for n in size)
    if ny >> n_pools == 1 and nx >> n_pools == 1:
        return 2 ** (n_pools + 1), 2 ** (n_pools + 1)
    return ny, nx


def surround(x: Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple[EllipsisType, slice, slice]]:
    """Surrounds images by zeros; of an odd number of them the last side gets one more.

    Args:
        x: ``(..., y, x)``.
        size: Points to have on the two axes, at least those of ``x``.

    Returns:
        Images ``(..., *size)``, and the index that cuts the original part out of an array of that size.
    """
    before = [(n - own) // 2 for n, own in zip(size, x.shape[-2:], strict=True)]
    rows, columns = (slice(start, start + own) for start, own in zip(before, x.shape[-2:], strict=True))
    if size != tuple(x.shape[-2:]):
        after = [n - own - start for n, own, start in zip(size, x.shape[-2:], before, strict=True)]
        x = pad(x, (before[1], after[1], before[0], after[0]))
    return x, (..., rows, columns)


def central_crop(shape: Sequence[int], crop: Sequence[int] | None) -> tuple[EllipsisType, slice, slice]:
    """The part of an image that fastMRI shows and scores.

    Args:
        shape: Shape of the image, ``(..., y, x)``.
        crop: Rows and columns of the part; ``None``: everything. Where an image has fewer columns than that, the
            part is a square of its columns, as fastMRI does for the scans of its protocol "FLAIR 203".

    Returns:
        An index into the image.
    """
    ny, nx = shape[-2:]
    h, w = crop or (ny, nx)
    if nx < w:
        h, w = nx, nx
    h = min(h, ny)
    top, left = (ny - h) // 2, (nx - w) // 2
    return ..., slice(top, top + h), slice(left, left + w)


class UNet(Recon):
    """A U-Net on zero-filled images, one by one (fastMRI's baseline); 7,756,418 parameters by default.

    Complex images (the default): zero-filled SENSE ``S^H F^H y``, real and imaginary part as two channels, each
    standardised over the image. Magnitudes: the zero-filled root sum of squares, standardised, clamped to six
    standard deviations to either side, as fastMRI's ``UnetDataTransform`` does it, so that fastMRI's trained
    networks can be loaded. Like theirs, the result may be slightly negative in the background.

    ``U(a y) = a U(y)`` for every factor ``a > 0`` by construction (magnitudes: as long as the standard deviation is
    far above fastMRI's constant 1e-11). Each set of coil maps gives an image of its own.

    Args:
        channels: Channels of the finest level; they double at each pooling.
        n_pools: Poolings.
        dropout: Probability with which a channel is dropped.
        magnitude: Whether to work on magnitudes, without coil maps.
        crop: Rows and columns of the central part on which the network works; outside it the zero-filled image
            stays. ``None``: everywhere. fastMRI's networks were trained on crops (knees: 320 x 320).
        blocks: Blocks of Monarch matrices in place of the convolutions on single points; see :class:`UNet2d`.
    """

    def __init__(
        self,
        channels: int = 32,
        n_pools: int = 4,
        dropout: float = 0.0,
        magnitude: bool = False,
        crop: Sequence[int] | None = None,
        blocks: int | None = None,
    ) -> None:
        config = dict(
            channels=channels,
            n_pools=n_pools,
            dropout=dropout,
            magnitude=magnitude,
            crop=None if crop is None else list(crop),
        )
        # left out by default: checkpoints of before there was this option are of the same network
        super().__init__(config if blocks is None else config | {"blocks": blocks})
        if crop is not None and (len(crop) != 2 or min(crop) < 1):
            raise InputError(f"crop is {tuple(crop)}; it must be two positive numbers, rows and columns")
        self.is_magnitude = magnitude
        self.needs_maps = not magnitude
        n = 1 if magnitude else 2
        self.unet = UNet2d(n, n, channels, n_pools, dropout, blocks)

    def forward(self, kspace: Tensor, mask: Tensor, maps: Tensor | None = None) -> Tensor:
        """Reconstructs; see :class:`Recon`.

        Returns:
            Images, ``(b, set, y, x)`` complex; with ``magnitude`` ``(b, 1, y, x)`` real.
        """
        check_shapes(kspace, mask, maps, self.needs_maps)
        coils = ifft2c(kspace.where(mask, 0))  # (b, coil, y, x)
        if self.is_magnitude:
            return self._denoise(root_sum_of_squares(coils, dim=1, keepdim=True))
        zero_filled = (cast(Tensor, maps).conj() * coils[:, None]).sum(2)  # (b, set, y, x)
        planes = torch.view_as_real(zero_filled).movedim(-1, 2).flatten(0, 1)  # (b * set, 2, y, x)
        planes = self._denoise(planes).unflatten(0, zero_filled.shape[:2])
        return torch.complex(planes[:, :, 0], planes[:, :, 1])

    def _denoise(self, images: Tensor) -> Tensor:
        """Standardises, applies the U-Net and undoes the standardisation, all within the crop."""
        part = central_crop(images.shape, self.config["crop"])
        x, mean, std = standardize(images[part])
        if self.is_magnitude:
            x = (x * (std / (std + _EPSILON))).clamp(-_LARGEST, _LARGEST)
        x = self.unet(x).to(images.dtype) * std + mean  # autocast: the network's output has few digits
        if self.config["crop"] is None:
            return x
        result = images.clone()
        result[part] = x
        return result
