"""Monarch forms of two layers that are linear maps in another shape: 1x1 convolutions and transposed weights."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sciml_monarch.errors import InputError
from sciml_monarch.monarch.hooks import is_only
from sciml_monarch.monarch.kernels.backend import backend, without_autocast
from sciml_monarch.monarch.linear import MonarchLinear

_CONV: dict[int, Callable[..., nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
# channels, and points, of which a matrix is multiplied out: results/compare_channel_maps_cpu.json
MOST_MULTIPLIED, FEWEST_POINTS = 512, 1024
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class MonarchConv1x1(nn.Module):
    """Drop-in replacement of ``torch.nn.Conv1d``, ``Conv2d`` or ``Conv3d`` with kernel size 1 and one group.

    Such a convolution maps the channels of each point by one matrix, here a Monarch matrix.

    Attributes:
        linear: The map of the channels.
        stride: Every how many points are kept, for each axis.
        padding: Points of zeros added on both sides of each axis; they come out as the bias.
    """

    def __init__(self, linear: MonarchLinear, stride: Sequence[int], padding: Sequence[int] | None = None) -> None:
        """Makes a convolution of a map of the channels.

        Args:
            linear: The map of the channels.
            stride: Stride of each axis; there are as many axes as entries, 1 to 3.
            padding: Zeros on both sides of each axis; ``None``: none.

        Raises:
            InputError: Strides and padding are of different numbers of axes, or not 1 to 3.
        """
        super().__init__()
        padding = [0] * len(stride) if padding is None else padding
        if len(stride) not in _CONV or len(padding) != len(stride) or min(stride) < 1 or min(padding) < 0:
            raise InputError(
                f"stride {tuple(stride)} and padding {tuple(padding)} must have one entry for each of 1 to 3 axes, "
                "strides from 1 and paddings from 0"
            )
        self.linear = linear
        self.stride = tuple(stride)
        self.padding = tuple(padding)

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.linear.in_features

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.linear.out_features

    def to_conv(self) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
        """Multiplies the factors out; a dense convolution that computes the same."""
        dense = self.linear.to_linear()
        d = len(self.stride)
        conv = _CONV[d](
            self.in_channels,
            self.out_channels,
            1,
            self.stride,
            self.padding,
            bias=dense.bias is not None,
            device="meta",
        )
        conv.weight = nn.Parameter(dense.weight.detach()[(..., *(None,) * d)], dense.weight.requires_grad)
        conv.bias = dense.bias
        return conv.train(self.training)

    def matrix(self, n_points: int) -> Tensor | None:
        """The matrix, multiplied out, where a product with it is the faster way; gradients flow to the factors.

        Channels lie far apart in memory. To be multiplied with blocks they are brought together, and back, which takes
        longer than all the products of a few hundred channels.

        Args:
            n_points: Of all samples.

        Returns:
            ``(out_channels, in_channels)``; ``None`` of many channels or few points, or where the call of the linear
            layer does more than to multiply.
        """
        many = max(self.in_channels, self.out_channels) > MOST_MULTIPLIED
        few = not torch.compiler.is_compiling() and n_points < FEWEST_POINTS
        if many or few or not is_only(self.linear, MonarchLinear, "w1"):
            return None
        with without_autocast(self.linear.w1):  # which would round the factors and their product
            return self.linear.weight

    def forward(self, x: Tensor) -> Tensor:
        """Maps the channels of each point.

        Args:
            x: ``(b, in_channels, *grid)`` or ``(in_channels, *grid)``.

        Returns:
            ``(b, out_channels, *grid')`` or without ``b``, ``grid'`` after padding and stride; in the memory format
            of ``x``.

        Raises:
            InputError: The axes or channels of ``x`` do not fit (not checked while compiling).
        """
        d = len(self.stride)
        if not torch.compiler.is_compiling() and (x.ndim not in (d + 1, d + 2) or x.shape[-d - 1] != self.in_channels):
            raise InputError(
                f"an input of shape {tuple(x.shape)} must be (b, {self.in_channels}, *grid) or "
                f"({self.in_channels}, *grid) with {d} axes of the grid"
            )
        if any(self.padding):
            x = nn.functional.pad(x, [n for n in reversed(self.padding) for _ in range(2)])
        if any(n > 1 for n in self.stride):
            for axis, n in enumerate(self.stride, -d):
                x = x.index_select(axis, torch.arange(0, x.shape[axis], n, device=x.device)) if n > 1 else x
        apart = backend() != "triton" and x.is_contiguous()  # else channels may lie side by side already
        matrix = self.matrix(x.numel() // self.in_channels) if apart else None
        if matrix is not None:
            fields = x.flatten(-d) if x.ndim == d + 2 else x.flatten(-d)[None]
            y = _mapped(matrix, self.linear.bias, fields).unflatten(-1, x.shape[-d:])
            return y if x.ndim == d + 2 else y[0]
        y = self.linear(x.movedim(-d - 1, -1)).movedim(-1, -d - 1)
        # torch's convolutions keep the memory format, and code behind them may rely on it (``view``)
        last = _CHANNELS_LAST.get(x.ndim if x.ndim == d + 2 else 0)
        if last is not None and not x.is_contiguous() and x.is_contiguous(memory_format=last):
            return y.contiguous(memory_format=last)
        return y.contiguous()

    def extra_repr(self) -> str:
        """Describes the layer for ``print``."""
        return f"stride={self.stride}, padding={self.padding}"


def _mapped(matrix: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """``(o, i)`` times each of ``(b, i, n)``, and a bias ``(o,)``."""
    each = matrix.expand(x.shape[0], -1, -1)  # not its length: exports keep that as a number
    if bias is None:
        return torch.bmm(each, x)
    if torch.is_autocast_enabled(x.device.type):  # not the bias: its gradient is a sum that half precision cannot hold
        y = torch.bmm(each, x)
        return (y + bias[:, None]).to(y.dtype)
    return torch.baddbmm(bias[:, None], each, x)


class MonarchConv1D(nn.Module):
    """Drop-in replacement of Hugging Face's ``Conv1D``: a linear layer whose weight is ``(in, out)``.

    Attributes:
        linear: The map of the features.
        nf: Features of the output, under Hugging Face's name.
        nx: Features of the input, under Hugging Face's name.
    """

    def __init__(self, linear: MonarchLinear, dense_type: Callable[[int, int], nn.Module]) -> None:
        """Wraps a map of the features.

        Args:
            linear: The map of the features, with a bias.
            dense_type: The class ``Conv1D``, called with ``(nf, nx)``; :meth:`to_conv1d` makes one.
        """
        super().__init__()
        self.linear = linear
        self.nf, self.nx = linear.out_features, linear.in_features
        self._dense_type = dense_type

    def to_conv1d(self) -> nn.Module:
        """Multiplies the factors out; a dense layer that computes the same."""
        dense = self.linear.to_linear()
        layer = self._dense_type(self.nf, self.nx)
        layer.weight = nn.Parameter(dense.weight.detach().mT.contiguous(), dense.weight.requires_grad)
        layer.bias = dense.bias
        return layer.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(..., nx)`` to ``(..., nf)``."""
        return self.linear(x)
