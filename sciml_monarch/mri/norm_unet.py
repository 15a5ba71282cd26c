"""The U-Net of the end-to-end variational network: complex images of any scale in, complex images out."""

import torch
from torch import Tensor, nn

from sciml_monarch.mri.norms import standardize
from sciml_monarch.mri.unet import UNet2d, surround

_MULTIPLE = 16  # fastMRI pads to this multiple whatever the number of poolings


class NormUNet(nn.Module):
    """A U-Net between a standardisation and its inverse (Sriram et al., 2020, sec. 3).

    Real and imaginary part are two channels, each brought to mean 0 and standard deviation 1 over the image. So
    ``N(a x) = a N(x)`` for every ``a > 0``: a network made of these needs no scaling of k-space. (``N`` does not
    commute with a global phase.) Zeros are mapped to zeros, with finite gradients. Parameters have the names of
    fastMRI's ``NormUnet``.

    Args:
        channels: Channels of the finest level.
        n_pools: Poolings.
    """

    def __init__(self, channels: int, n_pools: int) -> None:
        super().__init__()
        self.unet = UNet2d(2, 2, channels, n_pools)

    def forward(self, images: Tensor) -> Tensor:
        """Applies the network to each image.

        Args:
            images: ``(n, y, x)`` complex, any number of points.

        Returns:
            ``(n, y, x)`` complex.
        """
        planes = torch.stack([images.real, images.imag], 1)  # (n, 2, y, x)
        x, mean, std = standardize(planes)
        ny, nx = (-(-n // _MULTIPLE) * _MULTIPLE for n in x.shape[-2:])
        x, inside = surround(x, (ny, nx))
        x = self.unet(x)[inside].to(planes.dtype) * std + mean  # autocast: the network's output has few digits
        return torch.complex(x[:, 0], x[:, 1])
