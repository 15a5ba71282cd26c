"""End-to-end variational networks: with the Fourier transform, and with a learned transform in the regulariser.

One cascade refines k-space (Sriram et al., MICCAI 2020, eq. 6):

    k  <-  k - w M (k - y) - F S U(S^H F^-1 k)

The first correction is data consistency; its mask ``M`` and data ``y`` are what the scanner measured. The second is
the regulariser, where a learned transform may stand for ``F`` without changing what data means.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from sciml_monarch.errors import InputError
from sciml_monarch.mri.base import Recon, check_shapes
from sciml_monarch.mri.fourier import fft2c, ifft2c
from sciml_monarch.mri.norm_unet import NormUNet
from sciml_monarch.mri.norms import root_sum_of_squares
from sciml_monarch.mri.sensitivity import SensitivityNet
from sciml_monarch.mri.transforms import MonarchFourier2d


class Cascade(nn.Module):
    """One step of the network. Parameters have the names of fastMRI's ``VarNetBlock``.

    Args:
        channels: Channels of the finest level of the U-Net.
        n_pools: Its poolings.
    """

    def __init__(self, channels: int, n_pools: int) -> None:
        super().__init__()
        self.model = NormUNet(channels, n_pools)
        self.dc_weight = nn.Parameter(torch.ones(1))

    def forward(
        self, kspace: Tensor, measured: Tensor, mask: Tensor, maps: Tensor, transform: MonarchFourier2d | None = None
    ) -> Tensor:
        """Refines k-space.

        Args:
            kspace: The estimate so far, ``(b, coil, y, x)`` complex.
            measured: The data, of the same shape.
            mask: What was sampled, bool ``(b|1, 1, 1|y, x)``.
            maps: Coil maps, ``(b|1, set, coil, y, x)``.
            transform: Stands for the Fourier transform in the regulariser; ``None``: the FFT.

        Returns:
            ``(b, coil, y, x)``.
        """
        consistency = torch.where(mask, kspace - measured, 0) * self.dc_weight
        coils = ifft2c(kspace) if transform is None else transform.inverse(kspace)
        images = (maps.conj() * coils[:, None]).sum(2)  # (b, set, y, x)
        images = self.model(images.flatten(0, 1)).view_as(images)
        coils = (maps * images[:, :, None]).sum(1)
        return kspace - consistency - (fft2c(coils) if transform is None else transform(coils))


class VarNet(Recon):
    """The end-to-end variational network (Sriram et al., 2020); 29,936,966 parameters by default.

    Parameters have the names of ``fastmri.models.VarNet``, and outputs are equal to its. K-space is used at the
    scale at which it comes: each U-Net standardises its input, so that ``net(a y) = a net(y)`` for ``a > 0``.

    Args:
        n_cascades: Cascades, each with a U-Net of its own.
        channels: Channels of the finest level of their U-Nets.
        n_pools: Poolings of all U-Nets; two numbers: of the cascades, of the sensitivity network.
        sens_channels: Channels of the finest level of the sensitivity network.
        estimate_maps: Whether a network of its own estimates the coil maps from the calibration region, and maps that
            are given are ignored; else they must be given, with any number of sets.
        combine_coils: Whether to return the complex SENSE combination of the coil images by the given maps, and
            not the root of their sum of squares.

    Raises:
        InputError: ``combine_coils`` with estimated maps, or no cascade.
    """

    def __init__(
        self,
        n_cascades: int = 12,
        channels: int = 18,
        n_pools: int | Sequence[int] = 4,
        sens_channels: int = 8,
        estimate_maps: bool = True,
        combine_coils: bool = False,
    ) -> None:
        pools = _pools(n_pools)
        super().__init__(
            dict(
                n_cascades=n_cascades,
                channels=channels,
                n_pools=pools[0] if pools[0] == pools[1] else list(pools),
                sens_channels=sens_channels,
                estimate_maps=estimate_maps,
                combine_coils=combine_coils,
            )
        )
        _check(n_cascades, estimate_maps, combine_coils)
        self.is_magnitude = not combine_coils
        self.needs_maps = not estimate_maps
        self.sens_net = SensitivityNet(sens_channels, pools[1]) if estimate_maps else None
        self.cascades = nn.ModuleList(Cascade(channels, pools[0]) for _ in range(n_cascades))

    def forward(self, kspace: Tensor, mask: Tensor, maps: Tensor | None = None) -> Tensor:
        """Reconstructs; see :class:`Recon`.

        Returns:
            Root of the sum of squares of the coil images, ``(b, 1, y, x)`` real; with ``combine_coils`` complex
            images ``(b, set, y, x)``.
        """
        check_shapes(kspace, mask, maps, self.needs_maps)
        kspace = kspace.where(mask, 0)
        maps = _maps(self.sens_net, kspace, mask, maps)
        refined = kspace
        for cascade in self.cascades:
            refined = cascade(refined, kspace, mask, maps)
        return _images(refined, maps, self.config["combine_coils"])

    def to_monarch(self, shape: Sequence[int], shared: bool = False) -> "MonarchVarNet":
        """Builds the Monarch form with these weights: equal outputs until its transforms learn.

        Args:
            shape: Rows and columns of the k-space to fine-tune on.
            shared: Whether all cascades share one learned transform.

        Returns:
            A new network on the same device; nothing is shared with this one.
        """
        net = MonarchVarNet(shape, **self.config, shared=shared).to(next(self.parameters()))
        net.load_state_dict({**net.state_dict(), **self.state_dict()})
        return net.train(self.training)


class MonarchVarNet(Recon):
    """The variational network with a learned Monarch transform in the regulariser of each cascade.

    ``k <- k - w M (k - y) - F_t S U(S^H F_t^H k)``: the learned ``F_t`` starts as the Fourier transform, and its
    adjoint is tied to the same blocks. Data consistency and the last inverse transform are exact. The learned
    transforms depend on the position and over-fit few slices: the network has two stages of training.

    Args:
        shape: Rows and columns of the k-space to train on. On other sizes the exact transform stands in.
        n_cascades: As for :class:`VarNet`, like the following.
        channels: Channels of the finest level of the U-Nets of the cascades.
        n_pools: Poolings of all U-Nets; two numbers: of the cascades, of the sensitivity network.
        sens_channels: Channels of the finest level of the sensitivity network.
        estimate_maps: Whether the network estimates the coil maps; else they must be given.
        combine_coils: Whether to return the complex SENSE combination by the given maps.
        shared: Whether all cascades share one transform, or have one each.

    Raises:
        InputError: ``combine_coils`` with estimated maps, or no cascade.
    """

    def __init__(
        self,
        shape: Sequence[int],
        n_cascades: int = 12,
        channels: int = 18,
        n_pools: int | Sequence[int] = 4,
        sens_channels: int = 8,
        estimate_maps: bool = True,
        combine_coils: bool = False,
        shared: bool = False,
    ) -> None:
        pools = _pools(n_pools)
        super().__init__(
            dict(
                shape=list(shape),
                n_cascades=n_cascades,
                channels=channels,
                n_pools=pools[0] if pools[0] == pools[1] else list(pools),
                sens_channels=sens_channels,
                estimate_maps=estimate_maps,
                combine_coils=combine_coils,
                shared=shared,
            )
        )
        _check(n_cascades, estimate_maps, combine_coils)
        self.is_magnitude = not combine_coils
        self.needs_maps = not estimate_maps
        self.sens_net = SensitivityNet(sens_channels, pools[1]) if estimate_maps else None
        self.cascades = nn.ModuleList(Cascade(channels, pools[0]) for _ in range(n_cascades))
        ny, nx = shape
        self.transforms = nn.ModuleList(MonarchFourier2d((ny, nx)) for _ in range(1 if shared else n_cascades))

    def forward(self, kspace: Tensor, mask: Tensor, maps: Tensor | None = None) -> Tensor:
        """Reconstructs; see :class:`Recon` and :meth:`VarNet.forward`."""
        check_shapes(kspace, mask, maps, self.needs_maps)
        kspace = kspace.where(mask, 0)
        maps = _maps(self.sens_net, kspace, mask, maps)
        refined = kspace
        for i, cascade in enumerate(self.cascades):
            transform = self.transforms[i % len(self.transforms)]
            refined = cascade(refined, kspace, mask, maps, transform)
        return _images(refined, maps, self.config["combine_coils"])

    def transform_parameters(self) -> list[nn.Parameter]:
        """The blocks of the learned transforms; see :class:`Recon`."""
        return list(self.transforms.parameters())

    def stages(self) -> list[list[nn.Parameter]]:
        """The U-Nets first, then the transforms; see :class:`Recon`."""
        first = [p for name, p in self.named_parameters() if not name.startswith("transforms.")]
        return [first, self.transform_parameters()]


def _pools(n_pools: int | Sequence[int]) -> tuple[int, int]:
    """Poolings of the cascades and of the sensitivity network."""
    if isinstance(n_pools, int):
        return n_pools, n_pools
    if len(n_pools) != 2:
        raise InputError(f"n_pools is {list(n_pools)}; it must be one number, or two: cascades, sensitivity network")
    return n_pools[0], n_pools[1]


def _check(n_cascades: int, estimate_maps: bool, combine_coils: bool) -> None:
    if n_cascades < 1:
        raise InputError(f"n_cascades is {n_cascades}; a variational network has at least 1 cascade")
    if combine_coils and estimate_maps:
        raise InputError("combine_coils: true needs coil maps that are given; set estimate_maps: false")


def _maps(sens_net: nn.Module | None, kspace: Tensor, mask: Tensor, maps: Tensor | None) -> Tensor:
    """Coil maps, ``(b, set, coil, y, x)``, estimated or given."""
    return cast(Tensor, maps) if sens_net is None else sens_net(kspace, mask)[:, None]


def _images(kspace: Tensor, maps: Tensor, combine_coils: bool) -> Tensor:
    coils = ifft2c(kspace)
    if combine_coils:
        return (maps.conj() * coils[:, None]).sum(2)
    return root_sum_of_squares(coils, dim=1, keepdim=True)
