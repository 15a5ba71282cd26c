"""Fourier neural operators: neuraloperator's, and the same network with learned Monarch transforms.

Both have the block of the FNO paper (Li et al., ICLR 2021, sec. 4): spectral convolution plus a pointwise linear
map, GELU after each layer but the last, no normalisation, no channel MLP, coordinates appended to the input, a
linear lifting and a two-layer projection.
"""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from sciml_monarch.errors import InputError
from sciml_monarch.monarch.hooks import is_only
from sciml_monarch.monarch.kernels.spectral_layout import Activation
from sciml_monarch.pde.base import Operator, Prepared, check_counts
from sciml_monarch.pde.mixing import ChannelMLP, Mixing, mixing_options, pointwise
from sciml_monarch.pde.perceptron import apply_linear, apply_perceptron, matrix_of, perceptron
from sciml_monarch.pde.pointwise import pointwise_linear
from sciml_monarch.pde.positions import coordinates
from sciml_monarch.pde.resample import Interpolation
from sciml_monarch.pde.spectral_conv import MonarchSpectralConv, prepare_alike

_COUNTS = ("in_channels", "out_channels", "width", "n_layers", "projection_channels")


class FNO(Operator):
    """neuraloperator's FNO with the options of the FNO paper, as the baseline.

    The modules are neuraloperator's. Its own ``forward`` applies the activation twice between blocks when the
    channel MLP is off (2.0.0), which the paper's block does not; so the blocks are chained here.

    Args:
        in_channels: History frames times fields.
        out_channels: Fields.
        width: Channels of the hidden fields.
        n_modes: Frequencies kept per axis, even; ``(24, 24)`` is the paper's "12 modes".
        n_layers: Fourier layers.
        projection_channels: Hidden channels of the projection to the output.
        padding: Zeros at the end of each axis of the hidden fields, as a share of its points: for fields that are not
            periodic.

    Raises:
        InputError: ``n_modes`` is odd somewhere, ``padding`` not between 0 and 1, or a number less than 1.
        ImportError: neuraloperator is not installed.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int,
        n_modes: Sequence[int],
        n_layers: int = 4,
        projection_channels: int = 128,
        padding: float = 0.0,
    ) -> None:
        config = dict(
            in_channels=in_channels,
            out_channels=out_channels,
            width=width,
            n_modes=list(n_modes),
            n_layers=n_layers,
            projection_channels=projection_channels,
        )
        check_counts(**{name: config[name] for name in _COUNTS})
        super().__init__(config | _padding_option(padding))
        self.padding = padding
        from neuralop.models import FNO as NeuralopFNO

        if any(m < 2 or m % 2 for m in n_modes):
            raise InputError(f"n_modes {tuple(n_modes)} must be even and positive: neuraloperator rounds odd ones down")
        self.net = NeuralopFNO(
            n_modes=tuple(n_modes),
            in_channels=in_channels,
            out_channels=out_channels,
            hidden_channels=width,
            n_layers=n_layers,
            lifting_channel_ratio=0,  # a linear lifting
            projection_channel_ratio=projection_channels / width,
            positional_embedding="grid",
            non_linearity=gelu,
            norm=None,
            use_channel_mlp=False,
            fno_skip="linear",
            domain_padding=None,
            factorization=None,
        )
        self.register_state_dict_post_hook(_drop_metadata)

    def forward(self, x: Tensor, prepared: Prepared | None = None) -> Tensor:
        """Applies the network; see :class:`Operator`."""
        self.check_channels(x)
        blocks = self.net.fno_blocks
        _check_modes(self.config["n_modes"], x.shape[2:])
        grid = x.shape[2:]
        x = _with_zeros(self.net.lifting(self.net.positional_embedding(x)), padded(grid, self.padding))
        for i, (conv, skip) in enumerate(zip(blocks.convs, blocks.fno_skips, strict=True)):
            with torch.autocast(x.device.type, enabled=False):  # cuFFT has no bfloat16, MKL no half precision
                spectral = conv(x.float())
            x = spectral + skip(x)
            if i < len(blocks.convs) - 1:
                x = gelu(x)
        return self.net.projection(_cut(x, grid))


def padded(grid: Sequence[int], padding: float) -> tuple[int, ...]:
    """Points per axis with a share of them appended: that of the domain on every grid where it is whole points."""
    return tuple(n + round(padding * n) for n in grid)


def _padding_option(padding: float) -> dict[str, float]:
    """What a configuration says of padding: nothing where there is none, as in checkpoints of before there was any."""
    if not 0 <= padding <= 1:
        raise InputError(f"padding is {padding}; it must lie between 0 and 1, a share of the points of an axis")
    return {"padding": padding} if padding else {}


def _with_zeros(x: Tensor, grid: Sequence[int]) -> Tensor:
    more = [(0, n - old) for n, old in zip(grid, x.shape[2:], strict=True)]
    return nn.functional.pad(x, [*chain.from_iterable(reversed(more))]) if any(n for _, n in more) else x


def _cut(x: Tensor, grid: Sequence[int]) -> Tensor:
    for axis, n in enumerate(grid, start=2):
        if x.shape[axis] != n:  # the gradient of a cut that leaves all as it is would be copied to zeros
            x = x.narrow(axis, 0, n)
    return x


def _drop_metadata(module: nn.Module, state_dict: dict[str, object], prefix: str, local_metadata: object) -> None:
    """Removes neuraloperator's ``_metadata``: not a tensor, it breaks strict loading and safetensors."""
    for key in [key for key in state_dict if key.endswith("_metadata")]:
        del state_dict[key]


def _check_modes(n_modes: Sequence[int], grid: Sequence[int]) -> None:
    if len(n_modes) != len(grid):
        raise InputError(
            f"a network with modes {tuple(n_modes)} takes fields of {len(n_modes)} axes, not {tuple(grid)}"
        )


class MonarchFNO(Operator):
    """The FNO with learned Monarch transforms: analysis and synthesis of their own per layer and axis.

    They start exactly at the truncated DFT: a fresh network is an FNO. In 1, 2 or 3 dimensions.

    Args:
        in_channels: History frames times fields.
        out_channels: Fields.
        width: Channels of the hidden fields.
        n_modes: Frequencies kept per axis; ``(24, 24)`` is the paper's "12 modes".
        grid: Points per axis of the grid to train on. On other grids it runs by interpolation.
        n_layers: Fourier layers.
        projection_channels: Hidden channels of the projection to the output.
        learn_transforms: Whether the transforms learn, or stay the DFT.
        mixing: Monarch matrices for the layers that mix channels, and a channel MLP behind each layer; ``None``: the
            FNO paper's dense layers, and no MLP.
        padding: As in :class:`FNO`; the transforms are of the padded grid.
        interpolation: Of hidden fields on other grids than that of the training. "fourier": within the band, as the FNO
            does; for periodic fields. "cubic": by piecewise cubic polynomials; for fields that are not periodic, where
            the former rings at the ends.

    Raises:
        InputError: An axis keeps more modes than it has points, ``padding`` is not between 0 and 1, a number
            is less than 1, or there is no such interpolation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int,
        n_modes: Sequence[int],
        grid: Sequence[int],
        n_layers: int = 4,
        projection_channels: int = 128,
        learn_transforms: bool = True,
        mixing: Mixing | None = None,  # one argument for three
        padding: float = 0.0,
        interpolation: Interpolation = "fourier",
    ) -> None:
        config = dict(
            in_channels=in_channels,
            out_channels=out_channels,
            width=width,
            n_modes=list(n_modes),
            grid=list(grid),
            n_layers=n_layers,
            projection_channels=projection_channels,
            learn_transforms=learn_transforms,
        )
        # left out by default: checkpoints of before there was this option are of the same network
        config |= {} if mixing is None else {"mixing": dict(mixing)}
        config |= {} if interpolation == "fourier" else {"interpolation": interpolation}
        check_counts(**{name: config[name] for name in _COUNTS})
        super().__init__(config | _padding_option(padding))
        self.padding = padding
        d = len(grid)
        blocks, rank, mlp_channels = mixing_options(mixing)
        self.lifting = pointwise(in_channels + d, width, blocks=blocks, rank=rank)
        self.convs: Sequence[MonarchSpectralConv] = nn.ModuleList(  # type: ignore[assignment]
            MonarchSpectralConv(
                width, width, n_modes, padded(grid, padding), learn_transforms, interpolation=interpolation
            )
            for _ in range(n_layers)
        )
        self.skips = nn.ModuleList(pointwise(width, width, False, blocks, rank) for _ in range(n_layers))
        # one a layer, or none
        self.mlps = nn.ModuleList(
            ChannelMLP(width, mlp_channels, blocks, rank) for _ in range(n_layers if mlp_channels else 0)
        )
        self.projection = perceptron(width, projection_channels, out_channels, blocks, rank)

    @classmethod
    @torch.no_grad()
    def from_fno(cls, fno: FNO, grid: Sequence[int], learn_transforms: bool = True) -> "MonarchFNO":
        """Builds the Monarch form of an FNO: equal outputs on ``grid`` until the transforms learn.

        Args:
            fno: The network to copy, trained or not.
            grid: Points per axis, even.
            learn_transforms: Whether the transforms are to learn.
        """
        net = cls(**fno.config, grid=grid, learn_transforms=learn_transforms)
        source, blocks = fno.net, fno.net.fno_blocks
        net.lifting.load_state_dict(source.lifting.fcs[0].state_dict())
        for theirs, ours in zip(source.projection.fcs, (net.projection[0], net.projection[2]), strict=True):
            ours.load_state_dict(theirs.state_dict())
        for i, conv in enumerate(net.convs):
            conv.weight.copy_(torch.view_as_real(blocks.convs[i].weight.tensor))
            conv.bias.copy_(blocks.convs[i].bias)  # type: ignore[union-attr]
            net.skips[i].load_state_dict(blocks.fno_skips[i].conv.state_dict())
        return net

    def prepare(self, grid: tuple[int, ...]) -> Prepared:
        """Multiplies out the transforms of every layer; see :class:`Operator`."""
        domain = (tuple(self.config["grid"]), tuple(grid))
        grid = padded(grid, self.padding)
        first = self.convs[0]
        if all(type(conv) is MonarchSpectralConv and _are_alike(conv, first) for conv in self.convs):
            return tuple(chain.from_iterable(prepare_alike(self.convs, grid, domain)))
        return tuple(chain.from_iterable(conv.prepare(grid, domain) for conv in self.convs))

    def forward(self, x: Tensor, prepared: Prepared | None = None) -> Tensor:
        """Applies the network; see :class:`Operator`."""
        self.check_channels(x)
        grid = x.shape[2:]
        if prepared is None:
            prepared = self.prepare(tuple(grid))
        per_layer = len(prepared) // len(self.convs)
        x = torch.cat([x, coordinates(grid, x).expand(x.shape[0], -1, *grid)], 1)
        x = _with_zeros(apply_linear(self.lifting, x), padded(grid, self.padding))
        inner = x.shape[2:]
        source = None  # the fields whose GELU x is: kept for the backward pass in place of x
        for i, (conv, skip) in enumerate(zip(self.convs, self.skips, strict=True)):
            map_ = matrix_of(skip, x)
            if map_ is not None and map_[1] is None:
                shortcut = pointwise_linear(x, map_[0], source)
            else:
                shortcut = skip(x.flatten(2)).unflatten(2, inner)
            matrices = prepared[i * per_layer : (i + 1) * per_layer]
            activation: Activation = "gelu" if i < len(self.convs) - 1 else "identity"
            if is_only(conv, MonarchSpectralConv):
                x, source = conv.forward_with_source(x, matrices, shortcut, activation, source)
            else:
                x, source = conv(x, matrices, shortcut, activation), None
            if self.mlps:
                x, source = self.mlps[i](x.flatten(2)).unflatten(2, inner), None
        x = _cut(x, grid)
        return apply_perceptron(self.projection, x)

    def transform_parameters(self) -> list[nn.Parameter]:
        """The factors of all transforms; see :class:`Operator`."""
        transforms = chain.from_iterable((*conv.analysis, *conv.synthesis) for conv in self.convs)
        return [p for transform in transforms for p in transform.parameters()]


def _are_alike(conv: MonarchSpectralConv, other: MonarchSpectralConv) -> bool:
    return all(getattr(conv, key) == getattr(other, key) for key in ("grid", "n_modes", "interpolation"))
