"""Spectral convolution with learned Monarch transforms, in real arithmetic and thin matrix products.

A Fourier layer (Li et al., ICLR 2021, eq. 5) is transform, mixing of channels per mode, inverse transform. Only a
few modes are kept, so each transform is a thin matrix: rows (columns) of a Monarch matrix that starts as the DFT.
It is multiplied out once per optimiser step (:meth:`MonarchSpectralConv.prepare`) and applied as a matrix product
that never computes a mode which is then dropped. Complex numbers are pairs of real planes throughout, so the layer
compiles whole, exports, and runs in half precision.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sciml_monarch.errors import InputError
from sciml_monarch.monarch import MonarchTransform
from sciml_monarch.monarch.kernels.spectral import spectral_analysis, spectral_synthesis
from sciml_monarch.monarch.kernels.spectral_layout import Activation
from sciml_monarch.monarch.kernels.spectral_mixing import spectral_mixing
from sciml_monarch.monarch.thin import ThinMatrices, Wanted
from sciml_monarch.pde.resample import Interpolation, check_interpolation, interpolation_matrix

Domain = tuple[Sequence[int], Sequence[int]]  # points per axis without padding: of the layer's grid, of the fields'


def kept_frequencies(n_modes: tuple[int, ...]) -> list[Tensor]:
    """Frequencies that a spectral convolution keeps on each axis, in the order of its weights.

    Counted as neuraloperator counts them: ``m`` frequencies around zero on each axis, ascending, but ``m//2 + 1``
    from zero up on the last, whose other half follows from the field being real.

    Args:
        n_modes: Modes per axis.

    Returns:
        Integer tensors, one an axis.
    """
    leading = [torch.arange(-(m // 2), m - m // 2) for m in n_modes[:-1]]
    return [*leading, torch.arange(n_modes[-1] // 2 + 1)]


def _wanted(frequencies: Sequence[Tensor], grid: Sequence[int]) -> list[Wanted]:
    """Rows of each axis' analysis, then columns of each synthesis: of the last axis' those that give the real part."""
    *leading, last = frequencies
    index = [f % n for f, n in zip(frequencies, grid, strict=True)]
    both = [torch.ones(2, len(f)) for f in leading]
    # the field is real: frequencies that are their own conjugate (DC, Nyquist) count once, the others twice
    times = torch.where((last == 0) | (2 * last == grid[-1]), 1.0, 2.0)
    scales = [*both, torch.ones(2, len(last))], [*both, torch.stack([times, -times])]
    return [
        Wanted(n, i, columns, scale, axis == len(grid) - 1)
        for columns, scales_of_axes in zip((False, True), scales, strict=True)
        for axis, (n, i, scale) in enumerate(zip(grid, index, scales_of_axes, strict=True))
    ]


def in_mixing_order(weight: Tensor) -> Tensor:
    """The same weights ``(i, o, *modes, 2)``, as ``(*modes, i, 2, o)`` in memory.

    :func:`mixing_matrices` is then a view: neither the weights nor their gradients are copied at every step.
    """
    order = (*range(2, weight.ndim - 1), 0, weight.ndim - 1, 1)
    back = sorted(range(weight.ndim), key=order.__getitem__)
    return weight.permute(order).contiguous().permute(back)


def mixing_matrices(weight: Tensor) -> Tensor:
    """Mode weights ``(i, o, *modes, 2)`` as ``(F, i, 2 o)``: columns (plane, output)."""
    i, o = weight.shape[:2]
    return weight.permute(*range(2, weight.ndim - 1), 0, -1, 1).reshape(-1, i, 2 * o)


def spectral_conv(
    x: Tensor,
    matrices: Sequence[Tensor],
    skip: Tensor | None = None,
    bias: Tensor | None = None,
    activation: Activation = "identity",
    source: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Applies the three stages of a spectral convolution and the end of a Fourier layer.

    Args:
        x: Real fields ``(b, i, *grid)``.
        matrices: Per axis those of the analysis, the mixing's ``(F, i, 2 o)`` for ``F`` kept modes, per axis those
            of the synthesis, on the grid that they lead to; see :meth:`MonarchSpectralConv.prepare`.
        skip: Fields ``(b, o, *grid)`` to add.
        bias: ``(o,)`` to add.
        activation: "identity" or "gelu", applied last.
        source: The fields whose GELU ``x`` is, if it is one; kept for the backward pass in place of ``x``.

    Returns:
        ``(b, o, *grid)`` and, with GELU, the fields before it.
    """
    d = len(matrices) // 2
    modes = spectral_analysis(x, matrices[:d], source)  # (F, 2, b, i)
    modes = spectral_mixing(modes, matrices[d].to(modes.dtype))  # (F, 2, b, o)
    return spectral_synthesis(modes, matrices[d + 1 :], skip, bias, activation)


class MonarchSpectralConv(nn.Module):
    """Spectral convolution whose transforms are learned Monarch matrices that start as the truncated DFT.

    Each axis has an analysis and a synthesis transform of its own. On the grid that it is built for and with the
    transforms frozen it equals neuraloperator's ``SpectralConv`` with the same weights. On another grid the field
    is interpolated to the own one before the analysis and back after the synthesis, both multiplied into the thin
    matrices: within the band, which is exact for modes below both Nyquist frequencies of periodic fields, or by cubics.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        n_modes: Frequencies kept per axis; of the last axis' ``m``, ``m//2 + 1`` are stored.
        grid: Points per axis of the grid to train on.
        learn_transforms: Whether the transforms learn, or stay the DFT.
        bias: Whether to add a bias per channel.
        interpolation: To and from other grids: "fourier", for periodic fields, or "cubic", for others.

    Raises:
        InputError: An axis keeps more modes than it has points, or there is no such interpolation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        n_modes: Sequence[int],
        grid: Sequence[int],
        learn_transforms: bool = True,
        bias: bool = True,
        interpolation: Interpolation = "fourier",
    ) -> None:
        super().__init__()
        self.n_modes, self.grid = tuple(n_modes), tuple(grid)
        check_interpolation(interpolation)
        self.interpolation: Interpolation = interpolation
        if len(self.n_modes) != len(self.grid):
            raise InputError(f"n_modes {self.n_modes} and grid {self.grid} must have one entry an axis each")
        for axis, (m, n) in enumerate(zip(self.n_modes, self.grid, strict=True)):
            if not 1 <= m <= n:
                raise InputError(
                    f"axis {axis} keeps {m} modes of a grid of {n} points; n_modes must lie between 1 and {n}"
                )
        frequencies = kept_frequencies(self.n_modes)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.analysis: Sequence[MonarchTransform] = nn.ModuleList(  # type: ignore[assignment]
            MonarchTransform(n, learnable=learn_transforms) for n in self.grid
        )
        self.synthesis: Sequence[MonarchTransform] = nn.ModuleList(  # type: ignore[assignment]
            MonarchTransform(n, inverse=True, learnable=learn_transforms) for n in self.grid
        )
        std = (2 / (in_channels + out_channels)) ** 0.5  # of a complex weight, as in neuraloperator
        shape = (in_channels, out_channels, *map(len, frequencies), 2)
        self.weight = nn.Parameter(in_mixing_order(torch.randn(shape) * (std / 2**0.5)))
        self.bias = nn.Parameter(torch.randn(out_channels, *(1,) * len(self.grid)) * std) if bias else None
        with torch.device("cpu"):  # numbers, whatever the layer is built on
            wanted = _wanted(kept_frequencies(self.n_modes), self.grid)
        self.thin = ThinMatrices(wanted)

    def prepare(self, grid: Sequence[int] | None = None, domain: Domain | None = None) -> tuple[Tensor, ...]:
        """Multiplies the transforms out to the thin real matrices of one grid.

        Args:
            grid: Points per axis; by default those it was built for.
            domain: As of :func:`prepare_alike`.

        Returns:
            ``d`` analysis matrices: planes ``(2, m, n)`` of the leading axes, ``(2 K, n)`` of the last; the mixing
            matrices ``(F, i, 2 o)``; ``d`` synthesis matrices: ``(2, n, m)`` and ``(n, 2 K)``.
        """
        return prepare_alike([self], self.grid if grid is None else tuple(grid), domain)[0]

    def forward(
        self,
        x: Tensor,
        prepared: tuple[Tensor, ...] | None = None,
        skip: Tensor | None = None,
        activation: Activation = "identity",
    ) -> Tensor:
        """Applies the layer. Under autocast the result has autocast's dtype, as that of torch's convolutions has.

        Args:
            x: Real fields ``(b, in_channels, *grid)``.
            prepared: Matrices of :meth:`prepare` for this grid; computed here if ``None``.
            skip: Fields ``(b, out_channels, *grid)`` to add.
            activation: "identity" or "gelu", applied last.

        Returns:
            ``(b, out_channels, *grid)``.
        """
        return self.forward_with_source(x, prepared, skip, activation)[0]

    def forward_with_source(
        self,
        x: Tensor,
        prepared: tuple[Tensor, ...] | None = None,
        skip: Tensor | None = None,
        activation: Activation = "identity",
        source: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Applies the layer in a chain of such layers, which keeps one field a layer for the backward pass.

        Args:
            x: As in :meth:`forward`, like all but the last.
            prepared: See there.
            skip: See there.
            activation: See there.
            source: The fields whose GELU ``x`` is, if it is one; kept for the backward pass in place of ``x``.

        Returns:
            ``(b, out_channels, *grid)`` and, with GELU, the fields before it: the ``source`` of a next layer.
        """
        matrices = self.prepare(x.shape[2:]) if prepared is None else prepared
        bias = None if self.bias is None else self.bias.flatten()
        return spectral_conv(x, matrices, skip, bias, activation, source)

    def extra_repr(self) -> str:
        """Sizes for ``print``."""
        return f"{self.in_channels}, {self.out_channels}, n_modes={self.n_modes}, grid={self.grid}"


def prepare_alike(
    layers: Sequence[MonarchSpectralConv], grid: Sequence[int], domain: Domain | None = None
) -> list[tuple[Tensor, ...]]:
    """What :meth:`MonarchSpectralConv.prepare` returns for each layer, computed together.

    Args:
        layers: Layers that were built for one grid, with the same modes and interpolation.
        grid: Points per axis.
        domain: Points per axis without the padding at their end, of the layers' grid and of this one; by default there
            is none.

    Raises:
        InputError: The grid has another number of axes.
    """
    first = layers[0]
    if len(grid) != len(first.grid):
        raise InputError(f"a network for fields of {len(first.grid)} axes cannot take a grid {tuple(grid)}")
    d = len(grid)
    matrices = first.thin([(*layer.analysis, *layer.synthesis) for layer in layers])
    own, new = domain or (first.grid, grid)
    interpolations = {}
    for axis, (n, n_new) in enumerate(zip(first.grid, grid, strict=True)):
        if n_new != n:
            ways = ((n, n_new, (own[axis], new[axis])), (n_new, n, (new[axis], own[axis])))
            interpolations[axis] = [interpolation_matrix(first.interpolation, *way).to(matrices[0][0]) for way in ways]
    prepared = []
    for layer, thin in zip(layers, matrices, strict=True):
        # in memory columns lie as rows: so the products take them as they are, forward and backward
        analysis, synthesis = thin[:d], [matrix.mT for matrix in thin[d:]]
        for axis, (to_own, back) in interpolations.items():
            analysis[axis], synthesis[axis] = analysis[axis] @ to_own, back @ synthesis[axis]
        prepared.append((*analysis, mixing_matrices(layer.weight), *synthesis))
    return prepared
