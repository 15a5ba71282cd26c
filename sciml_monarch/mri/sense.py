"""Linear reconstructions that learn: MonarchSENSE and learned density compensation."""

import torch
from torch import Tensor, nn

from sciml_monarch.errors import InputError
from sciml_monarch.mri.base import Recon, check_shapes
from sciml_monarch.mri.linops import SenseOperator
from sciml_monarch.mri.transforms import MonarchFourier2d


class MonarchSENSE(Recon):
    """Zero-filled SENSE whose inverse Fourier transform is learned (Dao et al., ICML 2022, section 5.2).

    ``x = sum over coils of conj(S) M y``, M a pair of Monarch matrices that starts as the inverse Fourier transform.
    At 512 x 160 it has 57,472 parameters, counted as real numbers. It is linear: the scale of k-space does not
    matter. There is no data consistency: the image need not agree with the samples.

    Args:
        shape: Points of k-space, ``(y, x)``.
        n_coils: One pair of matrices for each of so many coils; ``None``, the paper's: one pair for all.
        learnable: Whether the transform learns.
    """

    def __init__(self, shape: tuple[int, int], n_coils: int | None = None, learnable: bool = True) -> None:
        super().__init__({"shape": list(shape), "n_coils": n_coils, "learnable": learnable})
        self.transform = MonarchFourier2d(shape, n_coils, learnable)

    def forward(self, kspace: Tensor, mask: Tensor, maps: Tensor | None = None) -> Tensor:
        """See :class:`~sciml_monarch.mri.base.Recon`."""
        check_shapes(kspace, mask, maps, self.needs_maps)
        assert maps is not None
        return SenseOperator(maps, mask, self.transform).adjoint(kspace)

    def transform_parameters(self) -> list[nn.Parameter]:
        """The factors."""
        return list(self.transform.parameters())


class DensityCompensation(Recon):
    """Zero-filled SENSE with a learned weight for each point of k-space.

    The smallest learned baseline: ``x = sum over coils of conj(S) F^-1 (d y)`` with real, positive ``d = exp(w)``
    that starts at 1. It serves one shape and learns the sampling density of its masks and the spectrum of its
    images.

    Args:
        shape: Points of k-space, ``(y, x)``.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__({"shape": list(shape)})
        self.log_weight = nn.Parameter(torch.zeros(shape[0], shape[1]))

    def forward(self, kspace: Tensor, mask: Tensor, maps: Tensor | None = None) -> Tensor:
        """See :class:`~sciml_monarch.mri.base.Recon`.

        Raises:
            InputError: K-space has another shape than the weights.
        """
        check_shapes(kspace, mask, maps, self.needs_maps)
        assert maps is not None
        if kspace.shape[-2:] != self.log_weight.shape:
            trained, given = tuple(self.log_weight.shape), tuple(kspace.shape[-2:])
            raise InputError(f"k-space of {given} points, but the density weights were learned for {trained}")
        return SenseOperator(maps, mask).adjoint(kspace * self.log_weight.exp())

    def transform_parameters(self) -> list[nn.Parameter]:
        """The weights: decay would be right at 1, but the rate is that of transforms."""
        return [self.log_weight]
