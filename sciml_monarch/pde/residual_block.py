"""The residual block of a deep neural operator: normalisation, spectral convolution, local branch, channel MLP."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, conv2d, conv3d, gelu, instance_norm

from sciml_monarch.monarch import MonarchLinear
from sciml_monarch.monarch.conv import MonarchConv1x1
from sciml_monarch.monarch.kernels.spectral_layout import Activation
from sciml_monarch.pde.mixing import pointwise
from sciml_monarch.pde.padding import periodic_pad
from sciml_monarch.pde.perceptron import GatedPerceptron, apply_gated, apply_linear, apply_perceptron, perceptron
from sciml_monarch.pde.spectral_conv import MonarchSpectralConv

EPSILON = 1e-5  # added to variances, as torch's layers do
NormalizationKind = Literal["none", "instance", "layer"]


class Normalization(nn.Module):
    """Zero mean and unit variance with a learned scale and shift per channel; computes in at least float32.

    Nothing of it depends on the number of points but through the mean over them, which is that over the domain for
    fields that the grid resolves.

    Args:
        channels: Channels of the fields.
        kind: "instance": over the points, of each sample and channel (Ulyanov et al., 2016). "layer": over the
            channels, at each sample and point (Ba et al., 2016).
    """

    def __init__(self, channels: int, kind: Literal["instance", "layer"]) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(b, channels, *grid)`` to the same shape and dtype."""
        if not len(x):
            return x  # of which torch would warn that it has no variance
        if self.kind == "instance" and x.shape[2:].numel() > 1:  # torch's own kernels take no single point
            return instance_norm(x, weight=self.weight, bias=self.bias, eps=EPSILON).to(x.dtype)
        over = tuple(range(2, x.ndim)) if self.kind == "instance" else (1,)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(wide, over, correction=0, keepdim=True)
        weight, bias = (p.view(-1, *(1,) * (x.ndim - 2)) for p in (self.weight, self.bias))
        return ((wide - mean) * (variance + EPSILON).rsqrt() * weight + bias).to(x.dtype)

    def extra_repr(self) -> str:
        """Sizes for ``print``."""
        return f"{len(self.weight)}, {self.kind!r}"


class PeriodicConv(nn.Module):
    """A convolution of all channels with a small periodic stencil, whose width is that on the grid of the training.

    On a grid of ``r`` times the points of an axis, the points of the stencil lie ``r`` points apart, as those of a
    finite difference with a fixed step would: where ``r`` is a whole number the layer is the same map of the fields.
    Else ``r`` is rounded, to 1 at least: the stencil is then narrower or wider than the trained one, and on coarser
    grids always wider.

    Args:
        channels: Channels of input and output.
        kernel_size: Points of the stencil on each axis, odd.
        grid: Points per axis of the grid to train on.
    """

    def __init__(self, channels: int, kernel_size: int, grid: Sequence[int]) -> None:
        super().__init__()
        self.grid = tuple(grid)
        bound = (channels * kernel_size ** len(self.grid)) ** -0.5  # as torch's convolutions start
        shape = (channels, channels, *(kernel_size,) * len(self.grid))
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(b, channels, *grid)`` to the same shape."""
        apart = [max(1, round(n / trained)) for n, trained in zip(x.shape[2:], self.grid, strict=True)]
        reach = self.weight.shape[-1] // 2
        conv = (conv1d, conv2d, conv3d)[len(self.grid) - 1]
        return conv(periodic_pad(x, [r * reach for r in apart]), self.weight, dilation=apart)

    def extra_repr(self) -> str:
        """Sizes for ``print``."""
        return f"{len(self.weight)}, kernel_size={self.weight.shape[-1]}, grid={self.grid}"


class FactorizedSpectralConv(nn.Module):
    """A sum over the axes of spectral convolutions along one axis each (F-FNO, Tran et al., ICLR 2023, eq. 7).

    Weights grow with the sum of the modes of the axes, not with their product. A mode of one axis holds all
    frequencies of the others.

    Args:
        channels: Channels of input and output.
        n_modes: Frequencies kept per axis; of each axis' ``m``, ``m//2 + 1`` are stored.
        grid: Points per axis of the grid to train on.
        learn_transforms: Whether the transforms learn, or stay the DFT.

    Raises:
        InputError: An axis keeps more modes than it has points.
    """

    def __init__(self, channels: int, n_modes: Sequence[int], grid: Sequence[int], learn_transforms: bool) -> None:
        super().__init__()
        self.convs: Sequence[MonarchSpectralConv] = nn.ModuleList(  # type: ignore[assignment]
            MonarchSpectralConv(channels, channels, [m], [n], learn_transforms, bias=axis == 0)
            for axis, (m, n) in enumerate(zip(n_modes, grid, strict=True))
        )
        with torch.no_grad():
            for conv in self.convs:
                conv.weight.mul_(len(self.convs) ** -0.5)  # a sum of as many as large as one

    def forward(
        self,
        x: Tensor,
        prepared: Sequence[Tensor],
        skip: Tensor | None = None,
        activation: Activation = "identity",
    ) -> Tensor:
        """Applies the layer.

        Args:
            x: Real fields ``(b, channels, *grid)``.
            prepared: Matrices of the axes' layers for this grid, three an axis.
            skip: Fields ``(b, channels, *grid)`` to add.
            activation: "identity" or "gelu", applied last.

        Returns:
            ``(b, channels, *grid)``.
        """
        total = skip
        for axis, conv in enumerate(self.convs):
            # the other axes are so many more samples
            lines = x.movedim(axis + 2, -1).movedim(1, -2)  # (b, *others, channels, n)
            y = conv(lines.flatten(0, -3), tuple(prepared[3 * axis : 3 * axis + 3])).reshape(lines.shape)
            y = y.movedim(-2, 1).movedim(-1, axis + 2)
            total = y if total is None else total + y
        assert total is not None  # there is an axis
        return gelu(total) if activation == "gelu" else total


class ResidualBlock(nn.Module):
    """One layer of a deep neural operator: ``x + mlp(gelu(spectral(norm(x)) + local(norm(x))))``.

    The residual connection goes around the non-linearity and the two-layer feed-forward network, as in F-FNO (Tran et
    al., ICLR 2023, eq. 4 and 7), which has no GELU between spectral convolution and network. The normalisation stands
    in the branch, so that the identity reaches from the first layer to the last (pre-norm: He et al., ECCV 2016; Xiong
    et al., ICML 2020). With ``gated`` it is ``x + gated_mlp(spectral(norm(x)) + local(norm(x)))``.

    Args:
        width: Channels.
        n_modes: Frequencies kept per axis.
        grid: Points per axis of the grid to train on.
        hidden_channels: Of the channel MLP; 0: none.
        normalization: In front of the branch; see :class:`Normalization`.
        local_kernel: 0: no local branch; 1: a linear map at every point; else a :class:`PeriodicConv` of this size.
        factorized: Whether the spectral convolution is a :class:`FactorizedSpectralConv`.
        learn_transforms: Whether the transforms learn, or stay the DFT.
        residual: Whether ``x`` is added.
        activation: Behind the spectral convolution, "identity" or "gelu".
        blocks: Blocks of Monarch matrices for the linear maps at every point; ``None``: dense.
        rank: Rank of their sub-blocks; ``None``: as in the Monarch paper.
        gated: Whether the channel MLP is a :class:`~sciml_monarch.pde.perceptron.GatedPerceptron`.
    """

    def __init__(
        self,
        width: int,
        n_modes: Sequence[int],
        grid: Sequence[int],
        hidden_channels: int,
        normalization: NormalizationKind,
        local_kernel: int,
        factorized: bool,
        learn_transforms: bool,
        residual: bool,
        activation: Activation,
        blocks: int | None,
        rank: int | None,
        gated: bool,
    ) -> None:
        super().__init__()
        self.residual, self.activation = residual, activation
        self.norm = nn.Identity() if normalization == "none" else Normalization(width, normalization)
        self.spectral: MonarchSpectralConv | FactorizedSpectralConv
        if factorized:
            self.spectral = FactorizedSpectralConv(width, n_modes, grid, learn_transforms)
        else:
            self.spectral = MonarchSpectralConv(width, width, n_modes, grid, learn_transforms)
        self.local: nn.Module | None = None
        if local_kernel == 1:
            self.local = pointwise(width, width, False, blocks, rank)
        elif local_kernel:
            self.local = PeriodicConv(width, local_kernel, grid)
        self.mlp: nn.Sequential | GatedPerceptron | None = None
        if hidden_channels and gated:
            self.mlp = GatedPerceptron(width, hidden_channels, width, blocks, rank)
        elif hidden_channels:
            self.mlp = perceptron(width, hidden_channels, width, blocks, rank)

    @property
    def spectral_convs(self) -> Sequence[MonarchSpectralConv]:
        """The spectral convolutions: one, or one an axis."""
        return self.spectral.convs if isinstance(self.spectral, FactorizedSpectralConv) else [self.spectral]

    @torch.no_grad()
    def scale_branch(self, factor: float) -> None:
        """Multiplies weights and biases of the last layer of the branch: of the MLP's, or of all in front of the GELU.

        Args:
            factor: By which.
        """
        last: list[nn.Module]
        if self.mlp is not None:
            last = [self.mlp.down if isinstance(self.mlp, GatedPerceptron) else self.mlp[-1]]
        else:
            last = [*self.spectral_convs, *([] if self.local is None else [self.local])]
        for module in last:
            inner = module.linear if isinstance(module, MonarchConv1x1) else module
            for name in ("w2" if isinstance(inner, MonarchLinear) else "weight", "bias"):
                if getattr(inner, name, None) is not None:
                    getattr(inner, name).mul_(factor)

    def forward(self, x: Tensor, prepared: Sequence[Tensor]) -> Tensor:
        """Applies the layer.

        Args:
            x: Fields ``(b, width, *grid)``.
            prepared: Matrices of :attr:`spectral_convs` for this grid, one layer's after the other's.

        Returns:
            Fields of the same shape.
        """
        y = self.norm(x)
        if isinstance(self.local, PeriodicConv):
            shortcut = self.local(y)
        else:
            shortcut = None if self.local is None else apply_linear(self.local, y)
        y = self.spectral(y, tuple(prepared), shortcut, self.activation)
        if isinstance(self.mlp, GatedPerceptron):
            return apply_gated(self.mlp, y, x if self.residual else None)
        if self.mlp is not None:
            y = apply_perceptron(self.mlp, y)
        return x + y if self.residual else y
