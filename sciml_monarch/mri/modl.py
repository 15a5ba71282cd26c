"""Model-based deep learning: a learned denoiser alternating with exact data consistency by conjugate gradients.

One iteration (Aggarwal et al., IEEE Trans. Med. Imaging 38(2), 2019, eqs. 9 and 10):

    z  <-  D(x),      x  <-  argmin |A x - y|^2 + w |x - z|^2  =  (A^H A + w)^-1 (A^H y + w z)

``A`` is the true encoding in every iteration. A learned transform stands only in the first estimate and in ``D``.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from sciml_monarch.errors import InputError
from sciml_monarch.mri.base import SMALLEST, Recon, check_shapes, peak
from sciml_monarch.mri.cg import cg
from sciml_monarch.mri.linops import SenseOperator, Transform2d
from sciml_monarch.mri.transforms import MonarchFourier2d

_WEIGHT = 0.05  # of the denoised image in the least-squares problem at the start of training, as the authors' code
_N_BANDS = 16  # per axis, of a spectral filter


class ResidualCNN(nn.Module):
    """The denoiser of MoDL: ``D(x) = x + N(x)``, ``N`` some 3x3 convolutions with ReLU between them.

    The paper has batch normalisation in ``N``. Here there is none: k-space is scaled to the intensity 1 before, the
    statistics of a batch of one or two slices are noise, and averages learned on one scanner are wrong on another.
    The last convolution starts at zero, so that a fresh network is iterated regularised SENSE.

    Args:
        n_layers: Convolutions, at least 2.
        channels: Channels between them.
    """

    def __init__(self, n_layers: int, channels: int) -> None:
        super().__init__()
        widths = [2, *[channels] * (n_layers - 1), 2]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in pairwise(widths))
        nn.init.zeros_(cast(Tensor, self.convs[-1].weight))
        nn.init.zeros_(cast(Tensor, self.convs[-1].bias))

    def forward(self, images: Tensor) -> Tensor:
        """Denoises each set of each image.

        Args:
            images: ``(b, set, y, x)`` complex, of intensity about 1.

        Returns:
            Images of the same shape.
        """
        x = torch.stack([images.real, images.imag], 2).flatten(0, 1)  # (b * set, 2, y, x)
        for conv in self.convs[:-1]:
            x = conv(x).relu()
        x = self.convs[-1](x).to(images.real.dtype).unflatten(0, images.shape[:2])  # autocast: of few digits
        return images + torch.complex(x[:, :, 0], x[:, :, 1])


class SpectralFilter(nn.Module):
    """What a cheap regulariser adds: ``U^H (g * U x)`` with a learned transform ``U`` and learned gains ``g``.

    The gains are real and smooth over frequencies: 16 x 16 numbers, interpolated linearly to the size of the image.
    They start at zero. For a transform that has not learned, this is filtering; with gains between -1 and 0 it
    shrinks, as Wiener's filter.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(_N_BANDS, _N_BANDS))

    def forward(self, images: Tensor, transform: Transform2d) -> Tensor:
        """Filters.

        Args:
            images: ``(b, set, y, x)`` complex.
            transform: ``U``; its ``inverse`` is the adjoint.

        Returns:
            What to add to the images, of the same shape.
        """
        gain = interpolate(self.gain[None, None], images.shape[-2:], mode="bilinear", align_corners=True)
        return transform.inverse(gain * transform.forward(images))


class MoDL(Recon):
    """MoDL (Aggarwal et al., 2019) with gradients of conjugate gradients by the implicit function theorem.

    The default is the paper's network without batch normalisation, 113,155 parameters. K-space is scaled to the
    intensity 1 inside, so that ``net(a y) = a net(y)`` for ``a > 0``.

    Args:
        n_iterations: Alternations of denoiser and data consistency.
        n_cg: Iterations of conjugate gradients in each, started at the denoised image.
        n_layers: Convolutions of the denoiser, at least 2.
        channels: Channels between them.
        shared: Whether all iterations share the denoiser and its weight, as in the paper.

    Raises:
        InputError: ``n_iterations``, ``n_cg`` or ``n_layers`` is too small.
    """

    def __init__(
        self, n_iterations: int = 10, n_cg: int = 10, n_layers: int = 5, channels: int = 64, shared: bool = True
    ) -> None:
        super().__init__(
            dict(n_iterations=n_iterations, n_cg=n_cg, n_layers=n_layers, channels=channels, shared=shared)
        )
        _check(n_iterations, n_cg, n_layers)
        n = 1 if shared else n_iterations
        self.denoisers = nn.ModuleList(ResidualCNN(n_layers, channels) for _ in range(n))
        self.log_weight = nn.Parameter(torch.full((n,), math.log(_WEIGHT)))

    def forward(self, kspace: Tensor, mask: Tensor, maps: Tensor | None = None) -> Tensor:
        """Reconstructs; see :class:`Recon`."""
        check_shapes(kspace, mask, maps, self.needs_maps)
        kspace = kspace.where(mask, 0)
        top = peak(kspace)
        operator = SenseOperator(cast(Tensor, maps), mask)
        measured = operator.adjoint(kspace / top.where(top > SMALLEST, 1.0))
        x = measured
        for i in range(self.config["n_iterations"]):
            i %= len(self.denoisers)
            z = self.denoisers[i](x)
            x = _data_consistency(operator, measured, z, self.log_weight[i].exp(), self.config["n_cg"])
        return x * top

    def to_monarch(self, shape: Sequence[int], spectral_filter: bool = False) -> "MonarchMoDL":
        """Builds the Monarch form with these weights: equal outputs until its transforms and filters learn.

        Args:
            shape: Rows and columns of the k-space to fine-tune on.
            spectral_filter: Whether the denoiser gets a learned spectral filter.

        Returns:
            A new network on the same device; nothing is shared with this one.
        """
        net = MonarchMoDL(shape, **self.config, spectral_filter=spectral_filter).to(self.log_weight)
        net.load_state_dict({**net.state_dict(), **self.state_dict()})
        return net.train(self.training)


class MonarchMoDL(Recon):
    """MoDL whose first estimate is :class:`~sciml_monarch.mri.sense.MonarchSENSE`, with a learned spectral filter.

    The first estimate is ``S^H G y`` with a learned ``G`` that starts as the inverse Fourier transform, and the
    denoiser may be ``x + N(x) + U^H (g * U x)`` with a learned transform ``U``, its adjoint tied to the same blocks.
    Data consistency has the true Fourier transform. There are two stages of training.

    Args:
        shape: Rows and columns of the k-space to train on. On other sizes the exact transform stands in.
        n_iterations: As for :class:`MoDL`, like the following.
        n_cg: Iterations of conjugate gradients in each.
        n_layers: Convolutions of the denoiser, at least 2.
        channels: Channels between them.
        shared: Whether all iterations share the denoiser, its weight and its filter. The transforms are always shared.
        spectral_filter: Whether the denoiser has the filter.

    Raises:
        InputError: ``n_iterations``, ``n_cg`` or ``n_layers`` is too small.
    """

    def __init__(
        self,
        shape: Sequence[int],
        n_iterations: int = 10,
        n_cg: int = 10,
        n_layers: int = 5,
        channels: int = 64,
        shared: bool = True,
        spectral_filter: bool = False,
    ) -> None:
        super().__init__(
            dict(
                shape=list(shape),
                n_iterations=n_iterations,
                n_cg=n_cg,
                n_layers=n_layers,
                channels=channels,
                shared=shared,
                spectral_filter=spectral_filter,
            )
        )
        _check(n_iterations, n_cg, n_layers)
        n = 1 if shared else n_iterations
        self.denoisers = nn.ModuleList(ResidualCNN(n_layers, channels) for _ in range(n))
        self.log_weight = nn.Parameter(torch.full((n,), math.log(_WEIGHT)))
        ny, nx = shape
        self.start = MonarchFourier2d((ny, nx))
        self.filters = nn.ModuleList(SpectralFilter() for _ in range(n if spectral_filter else 0))
        self.filter_transform = MonarchFourier2d((ny, nx)) if spectral_filter else None

    def forward(self, kspace: Tensor, mask: Tensor, maps: Tensor | None = None) -> Tensor:
        """Reconstructs; see :class:`Recon`."""
        check_shapes(kspace, mask, maps, self.needs_maps)
        kspace = kspace.where(mask, 0)
        top = peak(kspace)
        kspace, maps = kspace / top.where(top > SMALLEST, 1.0), cast(Tensor, maps)
        operator = SenseOperator(maps, mask)
        measured = operator.adjoint(kspace)
        x = SenseOperator(maps, mask, self.start).adjoint(kspace)
        for i in range(self.config["n_iterations"]):
            i %= len(self.denoisers)
            z = self.denoisers[i](x)
            if self.filter_transform is not None:
                z = z + self.filters[i](x, self.filter_transform)
            x = _data_consistency(operator, measured, z, self.log_weight[i].exp(), self.config["n_cg"])
        return x * top

    def transform_parameters(self) -> list[nn.Parameter]:
        """The blocks of the learned transforms; see :class:`Recon`."""
        transforms = [self.start, *([] if self.filter_transform is None else [self.filter_transform])]
        return [p for transform in transforms for p in transform.parameters()]

    def stages(self) -> list[list[nn.Parameter]]:
        """Denoisers, weights and gains first, then the transforms; see :class:`Recon`."""
        first = [*self.denoisers.parameters(), self.log_weight, *self.filters.parameters()]
        return [first, self.transform_parameters()]


def _check(n_iterations: int, n_cg: int, n_layers: int) -> None:
    if n_iterations < 1 or n_cg < 1 or n_layers < 2:
        raise InputError(
            f"n_iterations {n_iterations}, n_cg {n_cg}, n_layers {n_layers}: MoDL has at least 1 iteration, 1 step of "
            "conjugate gradients in it and 2 layers"
        )


def _data_consistency(operator: SenseOperator, measured: Tensor, z: Tensor, weight: Tensor, n_cg: int) -> Tensor:
    """Solves ``(A^H A + weight) x = measured + weight * z`` from ``z``; gradients reach ``z`` and ``weight``."""

    def normal(x: Tensor) -> Tensor:
        return operator.normal(x) + weight * x

    return cg(normal, measured + weight * z, x0=z.detach(), n_iterations=n_cg)
