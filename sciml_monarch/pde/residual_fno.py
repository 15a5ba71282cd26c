"""A deep Fourier neural operator of residual blocks with learned Monarch transforms."""

from collections.abc import Sequence
from itertools import chain
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from sciml_monarch.errors import InputError
from sciml_monarch.pde.base import Operator, Prepared, check_counts
from sciml_monarch.pde.mixing import pointwise
from sciml_monarch.pde.perceptron import apply_linear, apply_perceptron, perceptron
from sciml_monarch.pde.positions import coordinates, periodic_coordinates
from sciml_monarch.pde.residual_block import NormalizationKind, ResidualBlock
from sciml_monarch.pde.spectral_conv import MonarchSpectralConv, mixing_matrices, prepare_alike

LOCAL_KERNELS = (0, 1, 3, 5)
Positions = Literal["linear", "periodic"]


class ResidualMonarchFNO(Operator):
    """What helped Fourier neural operators since the first, each by an argument that can switch it off.

    Layers are residual blocks, ``x + mlp(gelu(spectral(norm(x)) + local(norm(x))))``, after F-FNO (Tran et al., ICLR
    2023; see :class:`~sciml_monarch.pde.residual_block.ResidualBlock`), between a linear lifting of fields and
    coordinates and a two-layer projection. With ``residual=False, mlp_ratio=0, normalization="none", local_kernel=1``
    and the other defaults it is :class:`~sciml_monarch.pde.fno.MonarchFNO`, which has no GELU in its last layer; with
    ``learn_transforms=False`` in addition it is the FNO.

    In a fresh network the last layer of every branch is divided by ``sqrt(n_layers)`` (GPT-2's scaling, Radford et al.,
    2019, section 2.3): each of the layers adds about ``1 / n_layers`` of the variance of one, whatever their number.

    Args:
        in_channels: History frames times fields.
        out_channels: Fields.
        width: Channels of the hidden fields.
        n_modes: Frequencies kept per axis; ``(24, 24)`` is the FNO paper's "12 modes".
        grid: Points per axis of the grid to train on, 1 to 3 axes. It runs on other grids by resampling in the band.
        n_layers: Residual blocks.
        projection_channels: Hidden channels of the projection to the output.
        mlp_ratio: Hidden channels of the blocks' channel MLPs in units of ``width``; 0: no MLP.
        normalization: In front of each branch: "none"; "instance": over the points of each channel; "layer": over the
            channels at each point.
        local_kernel: A branch beside the spectral convolution. 0: none; 1: a linear map at every point, FNO's skip; 3
            or 5: a periodic convolution with a stencil of so many points of the training's grid an axis. Its points
            keep their distance in space on a grid of a whole number of times as many points, not exactly on others
            (:class:`~sciml_monarch.pde.residual_block.PeriodicConv`).
        factorized: A sum of spectral convolutions along one axis each (F-FNO, eq. 7) in place of one along all axes.
        share_transforms: Whether all layers use the transforms of the first. Spectral weights are of each layer still.
        learn_transforms: Whether the transforms learn, or stay the DFT.
        residual: Whether the blocks have residual connections.
        blocks: Blocks of Monarch matrices for the linear maps of channels; ``None``: dense.
        rank: Rank of their sub-blocks; ``None``: as in the Monarch paper.
        gated: Channel MLPs that multiply two hidden fields, ``down(value * gelu(gate))`` with ``value`` and ``gate``
            linear in ``spectral(norm(x)) + local(norm(x))``; see
            :class:`~sciml_monarch.pde.perceptron.GatedPerceptron`. ``mlp_ratio`` counts the channels of one.
        positions: What is appended to the fields: "linear", the coordinates; "periodic", their sines and cosines as
            angles, for periodic domains.

    Raises:
        InputError: An argument is out of range, or an axis keeps more modes than it has points.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int,
        n_modes: Sequence[int],
        grid: Sequence[int],
        n_layers: int = 8,
        projection_channels: int = 128,
        mlp_ratio: float = 2.0,
        normalization: NormalizationKind = "none",
        local_kernel: int = 0,
        factorized: bool = False,
        share_transforms: bool = False,
        learn_transforms: bool = True,
        residual: bool = True,
        blocks: int | None = None,
        rank: int | None = None,
        gated: bool = False,
        positions: Positions = "linear",
    ) -> None:
        super().__init__(
            dict(
                in_channels=in_channels,
                out_channels=out_channels,
                width=width,
                n_modes=list(n_modes),
                grid=list(grid),
                n_layers=n_layers,
                projection_channels=projection_channels,
                mlp_ratio=mlp_ratio,
                normalization=normalization,
                local_kernel=local_kernel,
                factorized=factorized,
                share_transforms=share_transforms,
                learn_transforms=learn_transforms,
                residual=residual,
                blocks=blocks,
                rank=rank,
                gated=gated,
                positions=positions,
            )
        )
        _check(self.config)
        self.grid, self.share_transforms = tuple(grid), share_transforms
        self.positions = positions
        n_positions = len(grid) if positions == "linear" else 2 * len(grid)
        self.lifting = pointwise(in_channels + n_positions, width, blocks=blocks, rank=rank)
        self.layers: Sequence[ResidualBlock] = nn.ModuleList(  # type: ignore[assignment]
            ResidualBlock(
                width,
                n_modes,
                grid,
                round(mlp_ratio * width),
                normalization,
                local_kernel,
                factorized,
                learn_transforms,
                residual,
                "gelu" if not gated and (residual or i < n_layers - 1) else "identity",
                blocks,
                rank,
                gated,
            )
            for i in range(n_layers)
        )
        if residual:
            for layer in self.layers:
                layer.scale_branch(n_layers**-0.5)
        if share_transforms:
            for layer in self.layers[1:]:
                for conv, first in zip(layer.spectral_convs, self.layers[0].spectral_convs, strict=True):
                    _share_transforms(conv, first)
        self.projection = perceptron(width, projection_channels, out_channels, blocks, rank)

    def prepare(self, grid: tuple[int, ...]) -> Prepared:
        """Multiplies out the transforms of every layer, those of one form together; see :class:`Operator`."""
        if len(grid) != len(self.grid):
            raise InputError(f"a network for fields of {len(self.grid)} axes cannot take a grid {tuple(grid)}")
        first = self.layers[0].spectral_convs
        targets = [(n,) for n in grid] if len(first[0].grid) < len(grid) else [grid]
        own = self.layers[:1] if self.share_transforms else self.layers
        # layers are alike if grid and modes are, and if they are to run on one grid
        groups: dict[tuple[tuple[int, ...], ...], list[MonarchSpectralConv]] = {}
        for layer in own:
            for conv, target in zip(layer.spectral_convs, targets, strict=True):
                groups.setdefault((conv.grid, conv.n_modes, target), []).append(conv)
        matrices = {
            conv: found
            for (_, _, target), convs in groups.items()
            for conv, found in zip(convs, prepare_alike(convs, target), strict=True)
        }
        if not self.share_transforms:
            return tuple(chain.from_iterable(matrices[c] for layer in self.layers for c in layer.spectral_convs))
        prepared: list[Tensor] = []
        for layer in self.layers:
            for conv, source in zip(layer.spectral_convs, first, strict=True):
                *analysis, _ = matrices[source][: len(source.grid) + 1]
                synthesis = matrices[source][len(source.grid) + 1 :]
                prepared += (*analysis, mixing_matrices(conv.weight), *synthesis)
        return tuple(prepared)

    def forward(self, x: Tensor, prepared: Prepared | None = None) -> Tensor:
        """Applies the network; see :class:`Operator`."""
        self.check_channels(x)
        grid = x.shape[2:]
        if prepared is None:
            prepared = self.prepare(tuple(grid))
        per_layer = len(prepared) // len(self.layers)
        places = coordinates(grid, x) if self.positions == "linear" else periodic_coordinates(grid, x)
        x = torch.cat([x, places.expand(x.shape[0], -1, *grid)], 1)
        x = apply_linear(self.lifting, x)
        for i, layer in enumerate(self.layers):
            x = layer(x, prepared[i * per_layer : (i + 1) * per_layer])
        return apply_perceptron(self.projection, x)

    def transform_parameters(self) -> list[nn.Parameter]:
        """The factors of all transforms, shared ones once; see :class:`Operator`."""
        layers = self.layers[:1] if self.share_transforms else self.layers
        convs = chain.from_iterable(layer.spectral_convs for layer in layers)
        return [p for conv in convs for transform in (*conv.analysis, *conv.synthesis) for p in transform.parameters()]


def _share_transforms(conv: MonarchSpectralConv, first: MonarchSpectralConv) -> None:
    """Lets a layer use the transforms of another, which alone has them as modules: state dicts name them once."""
    del conv.analysis, conv.synthesis
    conv.__dict__.update(analysis=first.analysis, synthesis=first.synthesis)


def _check(config: dict[str, object]) -> None:
    """Refuses arguments that no network has; what is wrong with modes, the layers themselves say."""
    grid, n_modes = config["grid"], config["n_modes"]
    assert isinstance(grid, list)
    assert isinstance(n_modes, list)
    if not 1 <= len(grid) <= 3 or len(n_modes) != len(grid):
        raise InputError(f"n_modes {n_modes} and grid {grid} must have one entry an axis each, 1 to 3 axes")
    counts = ("in_channels", "out_channels", "width", "n_layers", "projection_channels")
    check_counts(**{name: config[name] for name in counts})
    ratio, width = config["mlp_ratio"], config["width"]
    assert isinstance(ratio, int | float)
    assert isinstance(width, int)
    if ratio != 0 and not 1 <= ratio * width <= 2**20:
        raise InputError(f"mlp_ratio is {ratio} at width {width}; it must be 0, or give the MLP 1 channel or more")
    if config["normalization"] not in get_args(NormalizationKind):
        names = ", ".join(get_args(NormalizationKind))
        raise InputError(f"normalization is {config['normalization']!r}; it must be one of {names}")
    if config["gated"] and ratio == 0:
        raise InputError("gated is the form of the channel MLPs, which mlp_ratio 0 leaves out; set one of them")
    if config["positions"] not in get_args(Positions):
        raise InputError(f"positions is {config['positions']!r}; it must be one of {', '.join(get_args(Positions))}")
    kernel = config["local_kernel"]
    if kernel not in LOCAL_KERNELS:
        raise InputError(f"local_kernel is {kernel}; it must be one of {', '.join(map(str, LOCAL_KERNELS))}")
    if kernel in (3, 5) and min(grid) < kernel:
        raise InputError(f"local_kernel is {kernel}, which a grid {grid} has not the points for")
    blocks, rank = config["blocks"], config["rank"]
    if isinstance(blocks, int) and blocks < 1:
        raise InputError(f"blocks is {blocks}; it must be 1 or more, or null for dense layers")
    if rank is not None and blocks is None:
        raise InputError(f"rank is {rank} without blocks, which means dense layers; give blocks too")
