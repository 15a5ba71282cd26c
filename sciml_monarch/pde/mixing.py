"""Linear maps of channels, dense or Monarch: the layers that networks are made of besides their transforms."""

from typing import TypedDict

from torch import Tensor, nn
from torch.nn.functional import gelu

from sciml_monarch.errors import InputError
from sciml_monarch.monarch import MonarchLinear
from sciml_monarch.monarch.conv import MonarchConv1x1
from sciml_monarch.monarch.shapes import is_smaller


def linear(
    in_features: int, out_features: int, bias: bool = True, blocks: int | None = None, rank: int | None = None
) -> nn.Linear | MonarchLinear:
    """Makes a linear layer on the last axis.

    Args:
        in_features: Entries of an input.
        out_features: Entries of an output.
        bias: Whether to add a bias.
        blocks: Blocks of the Monarch matrix; ``None``: dense.
        rank: Rank of its sub-blocks; ``None``: as in the Monarch paper.

    Returns:
        The Monarch layer where it is asked for and smaller (:func:`~sciml_monarch.monarch.shapes.is_smaller`), else the
        dense one.
    """
    if blocks is not None and is_smaller(in_features, out_features, blocks, rank):
        return MonarchLinear(in_features, out_features, bias, blocks, rank)
    return nn.Linear(in_features, out_features, bias)


def pointwise(
    in_channels: int, out_channels: int, bias: bool = True, blocks: int | None = None, rank: int | None = None
) -> nn.Conv1d | MonarchConv1x1:
    """Makes a linear map of the channels at every point, ``(b, in_channels, n) -> (b, out_channels, n)``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        bias: Whether to add a bias.
        blocks: Blocks of the Monarch matrix; ``None``: dense, a convolution with kernel size 1.
        rank: Rank of its sub-blocks; ``None``: as in the Monarch paper.

    Returns:
        The Monarch map where it is asked for and smaller (:func:`~sciml_monarch.monarch.shapes.is_smaller`), else the
        dense one.
    """
    if blocks is not None and is_smaller(in_channels, out_channels, blocks, rank):
        return MonarchConv1x1(MonarchLinear(in_channels, out_channels, bias, blocks, rank), stride=(1,))
    return nn.Conv1d(in_channels, out_channels, 1, bias=bias)


class ChannelMLP(nn.Module):
    """A perceptron of two layers on the channels of every point, beside an identity.

    Args:
        channels: Channels of input and output.
        hidden_channels: Channels between the layers.
        blocks: As in :func:`pointwise`.
        rank: As in :func:`pointwise`.
    """

    def __init__(self, channels: int, hidden_channels: int, blocks: int | None = None, rank: int | None = None) -> None:
        super().__init__()
        self.up = pointwise(channels, hidden_channels, blocks=blocks, rank=rank)
        self.down = pointwise(hidden_channels, channels, blocks=blocks, rank=rank)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(b, channels, n)`` to the same shape."""
        return x + self.down(gelu(self.up(x)))


class Mixing(TypedDict, total=False):
    """How the layers between the transforms of a neural operator mix channels.

    Attributes:
        blocks: Blocks of the Monarch matrices of lifting, skips, channel MLPs and projection; ``None``: dense.
        rank: Rank of their sub-blocks; ``None``: as in the Monarch paper.
        mlp_channels: Hidden channels of a :class:`ChannelMLP` behind each layer; 0: none.
    """

    blocks: int | None
    rank: int | None
    mlp_channels: int


def mixing_options(mixing: Mixing | None) -> tuple[int | None, int | None, int]:
    """The three values of :class:`Mixing`, with the defaults where they are left out.

    Args:
        mixing: What was asked for; ``None``: nothing.

    Returns:
        Blocks, rank, hidden channels of the channel MLPs.

    Raises:
        InputError: A name or a number is wrong.
    """
    given = {} if mixing is None else dict(mixing)
    unknown = set(given) - set(Mixing.__annotations__)
    if unknown:
        raise InputError(f"mixing has {sorted(unknown)}; it takes {sorted(Mixing.__annotations__)}")
    options: Mixing = {"blocks": None, "rank": None, "mlp_channels": 0, **given}  # type: ignore[typeddict-item]
    blocks, rank, mlp_channels = options["blocks"], options["rank"], options["mlp_channels"]
    if mlp_channels < 0 or (blocks is not None and blocks < 1):
        raise InputError(f"mixing has blocks {blocks} and mlp_channels {mlp_channels}; give 1 block or more, 0 or more")
    if rank is not None and blocks is None:
        raise InputError(f"mixing has rank {rank} without blocks, which means dense layers; give blocks too")
    return blocks, rank, mlp_channels
