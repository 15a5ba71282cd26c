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
from sciml_monarch.pde.resample import resampling_matrix


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


def analysis_real(re: Tensor, im: Tensor) -> Tensor:
    """Planes ``(K, n)`` of the thin analysis matrix of a real axis as one matrix ``(2 K, n)``: rows (plane, mode)."""
    return torch.cat([re, im])


def synthesis_real(re: Tensor, im: Tensor, multiplicity: Tensor) -> Tensor:
    """Planes ``(n, K)`` of a thin synthesis matrix as the ``(n, 2 K)`` that gives the real part of the sum.

    Args:
        re: Real plane.
        im: Imaginary plane.
        multiplicity: ``(K,)``; 1 for frequencies that are their own conjugate (DC, Nyquist), 2 for the others.
    """
    return torch.cat([re * multiplicity, -im * multiplicity], 1)


def mixing_matrices(weight: Tensor) -> Tensor:
    """Mode weights ``(i, o, *modes, 2)`` in the order of :func:`mixed`, ``(F, i, 2 o)``: columns (plane, output)."""
    i, o = weight.shape[:2]
    return weight.reshape(i, o, -1, 2).permute(2, 0, 3, 1).reshape(-1, i, 2 * o)


def mixed(modes: Tensor, matrices: Tensor) -> Tensor:
    """Mixes the channels of every mode: complex products in real arithmetic that read each weight once.

    Args:
        modes: ``(F, 2, b, i)``, real and imaginary part.
        matrices: Of :func:`mixing_matrices`.

    Returns:
        ``(F, 2, b, o)``.
    """
    n_modes, _, batch, i = modes.shape
    terms = torch.bmm(modes.reshape(n_modes, 2 * batch, i), matrices).view(n_modes, 2, batch, 2, matrices.shape[2] // 2)
    (by_real, by_imaginary), (turned_by_real, turned_by_imaginary) = terms.permute(1, 3, 0, 2, 4)
    return torch.stack([by_real - turned_by_imaginary, by_imaginary + turned_by_real], 1)


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
    modes = mixed(modes, matrices[d].to(modes.dtype))  # (F, 2, b, o)
    return spectral_synthesis(modes, matrices[d + 1 :], skip, bias, activation)


def _planes(planes: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor]:
    real, imaginary = planes
    return real, torch.zeros_like(real) if imaginary is None else imaginary


class MonarchSpectralConv(nn.Module):
    """Spectral convolution whose transforms are learned Monarch matrices that start as the truncated DFT.

    Each axis has an analysis and a synthesis transform of its own. On the grid that it is built for and with the
    transforms frozen it equals neuraloperator's ``SpectralConv`` with the same weights. On another grid the field
    is resampled within its band before the analysis and after the synthesis, both multiplied into the thin
    matrices: exact for modes below both Nyquist frequencies.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        n_modes: Frequencies kept per axis; of the last axis' ``m``, ``m//2 + 1`` are stored.
        grid: Points per axis of the grid to train on.
        learn_transforms: Whether the transforms learn, or stay the DFT.
        bias: Whether to add a bias per channel.

    Raises:
        InputError: An axis keeps more modes than it has points.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        n_modes: Sequence[int],
        grid: Sequence[int],
        learn_transforms: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.multiplicity: Tensor
        self.n_modes, self.grid = tuple(n_modes), tuple(grid)
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
        self.weight = nn.Parameter(torch.randn(shape) * (std / 2**0.5))
        self.bias = nn.Parameter(torch.randn(out_channels, *(1,) * len(self.grid)) * std) if bias else None
        for axis, (f, n) in enumerate(zip(frequencies, self.grid, strict=True)):
            self.register_buffer(f"index{axis}", f % n, persistent=False)
        last = frequencies[-1]
        own_conjugate = (last == 0) | (2 * last == self.grid[-1])
        self.register_buffer("multiplicity", torch.where(own_conjugate, 1.0, 2.0), persistent=False)

    def prepare(self, grid: Sequence[int] | None = None) -> tuple[Tensor, ...]:
        """Multiplies the transforms out to the thin real matrices of one grid.

        Args:
            grid: Points per axis; by default those it was built for.

        Returns:
            ``d`` analysis matrices: planes ``(2, m, n)`` of the leading axes, ``(2 K, n)`` of the last; the mixing
            matrices ``(F, i, 2 o)``; ``d`` synthesis matrices: ``(2, n, m)`` and ``(n, 2 K)``.
        """
        grid = self.grid if grid is None else tuple(grid)
        if len(grid) != len(self.grid):
            raise InputError(f"a network for fields of {len(self.grid)} axes cannot take a grid {grid}")
        analysis, synthesis = [], []
        for axis, (n, n_new) in enumerate(zip(self.grid, grid, strict=True)):
            index: Tensor = getattr(self, f"index{axis}")
            thin = _planes(self.analysis[axis].thin_planes(index))  # (m, n) each
            columns = _planes(self.synthesis[axis].thin_columns_planes(index))  # (n, m) each
            if n_new != n:
                down, up = (resampling_matrix(*sizes).to(columns[0]) for sizes in ((n, n_new), (n_new, n)))
                thin = thin[0] @ down, thin[1] @ down
                columns = up @ columns[0], up @ columns[1]
            if axis < len(grid) - 1:
                analysis.append(torch.stack(thin))
                synthesis.append(torch.stack(columns))
            else:
                analysis.append(analysis_real(*thin))
                synthesis.append(synthesis_real(*columns, self.multiplicity))
        return (*analysis, mixing_matrices(self.weight), *synthesis)

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
