"""A vision transformer for fields: patches become tokens, attention mixes them, every linear layer may be Monarch.

The block is that of ViT (Dosovitskiy et al., ICLR 2021, eqs. 1-4): pre-norm attention and a two-layer perceptron of
four times the width. As in the Monarch paper (Dao et al., arXiv 2204.00595) queries, keys and values are
linear maps of their own, each of which can be a Monarch matrix.
"""

from collections.abc import Sequence
from itertools import chain
from math import pi, prod

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from sciml_monarch.errors import InputError
from sciml_monarch.pde.base import Operator, Prepared
from sciml_monarch.pde.mixing import linear, pointwise
from sciml_monarch.pde.positions import coordinates, periodic_coordinates

MLP_RATIO = 4
# Harmonics of the domain that positions turn queries and keys by: all that 16 tokens an axis resolve. Higher ones
# would mean another displacement on a finer grid than on the one of the training.
N_HARMONICS = 8


def position_features(grid: Sequence[int], device: torch.device | None = None) -> Tensor:
    """What is known of each point of a grid: its coordinates in units of the domain, and their sine and cosine.

    The periodic pair has no jump where a periodic domain closes; the coordinate tells the two ends of others apart.

    Args:
        grid: Points per axis.
        device: Where to.

    Returns:
        ``(1, 3 d, *grid)``, float32.
    """
    like = torch.empty(0, device=device, dtype=torch.float32)
    return torch.cat([coordinates(grid, like), periodic_coordinates(grid, like)], 1)


def rotations(tokens: Sequence[int], head_width: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Angles by which the pairs of a query's or key's entries are turned, as their cosines and sines.

    Rotary embedding (Su et al., arXiv 2104.09864, eq. 34) of each axis in turn, with whole harmonics of the domain for
    frequencies: the product of a query and a key depends on their displacement only, and a displacement by the whole
    domain is none. Positions are fractions of the domain, so that they mean the same on every grid.

    Args:
        tokens: Tokens per axis.
        head_width: Entries of a query, even.
        device: Where to.

    Returns:
        Cosines and sines, ``(prod(tokens), head_width // 2)`` each, float32.
    """
    d = len(tokens)
    axes = [torch.arange(n, device=device, dtype=torch.float32) / n for n in tokens]
    x = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, d)  # (tokens, d)
    pair = torch.arange(head_width // 2, device=device)
    angle = 2 * pi * x[:, pair % d] * (pair // d % N_HARMONICS)  # pairs are dealt to the axes in turn
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns pair ``j``, which is the entries ``j`` and ``j + half``, by its angle.

    Args:
        x: ``(..., tokens, head_width)``.
        cos: ``(tokens, head_width // 2)``.
        sin: The same shape.
    """
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def to_patches(x: Tensor, patch: Sequence[int]) -> Tensor:
    """Cuts fields into patches.

    Args:
        x: ``(b, c, *grid)``; ``patch`` divides the grid.
        patch: Points per axis of a patch.

    Returns:
        ``(b, tokens, c * prod(patch))``, tokens in the order of the grid.
    """
    b, c, d = x.shape[0], x.shape[1], len(patch)
    sizes = chain.from_iterable((n // p, p) for n, p in zip(x.shape[2:], patch, strict=True))
    x = x.reshape(b, c, *sizes)  # (b, c, t1, p1, t2, p2, ..)
    x = x.permute(0, *range(2, 2 + 2 * d, 2), 1, *range(3, 3 + 2 * d, 2))
    return x.reshape(b, -1, c * prod(patch))


def overlap_add(windows: Tensor, tokens: Sequence[int], patch: Sequence[int]) -> Tensor:
    """Puts fields together from windows of twice the size of a patch, which fade into each other.

    A window of ``2 p`` points begins half a patch before its patch and is weighted by a squared sine; the weights of
    the two windows over a point sum to one. So there are no seams between patches, which show as a checkerboard in a
    roll-out. Windows over an end of the domain go on at its other end.

    Args:
        windows: ``(b, tokens, c * prod(2 p))``.
        tokens: Tokens per axis.
        patch: Points per axis of a patch.

    Returns:
        ``(b, c, *grid)``.
    """
    d = len(patch)
    x = windows.reshape(windows.shape[0], *tokens, -1, *(2 * p for p in patch))
    x = x.movedim(1 + d, 1)  # (b, c, *tokens, 2 p1, 2 p2, ..)
    for axis, p in enumerate(patch):
        weight = torch.sin(pi * (torch.arange(2 * p, device=x.device, dtype=torch.float32) + 0.5) / (2 * p)) ** 2
        first, second = (x * weight.to(x.dtype).view(-1, *(1,) * (d - 1 - axis))).chunk(2, 2 + d + axis)
        x = first + second.roll(1, 2 + axis)
    order = chain.from_iterable((2 + axis, 2 + d + axis) for axis in range(d))
    x = x.permute(0, 1, *order).reshape(x.shape[0], x.shape[1], *(t * p for t, p in zip(tokens, patch, strict=True)))
    return x.roll([-(p // 2) for p in patch], list(range(2, 2 + d)))


class _Block(nn.Module):
    """Attention and perceptron, each behind a normalisation and beside an identity."""

    def __init__(self, width: int, n_heads: int, blocks: int | None, rank: int | None) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = linear(width, width, blocks=blocks, rank=rank)
        self.key = linear(width, width, blocks=blocks, rank=rank)
        self.value = linear(width, width, blocks=blocks, rank=rank)
        self.out = linear(width, width, blocks=blocks, rank=rank)
        self.up = linear(width, MLP_RATIO * width, blocks=blocks, rank=rank)
        self.down = linear(MLP_RATIO * width, width, blocks=blocks, rank=rank)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Maps tokens ``(b, n, width)`` to tokens."""
        h = self.norm1(x)
        q, k, v = (f(h).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        cos, sin = cos.to(q.dtype), sin.to(q.dtype)
        h = scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v)  # (b, heads, n, head width)
        x = x + self.out(h.transpose(1, 2).flatten(2))
        return x + self.down(gelu(self.up(self.norm2(x))))


class OperatorTransformer(Operator):
    """A vision transformer that maps fields to fields, in 1, 2 or 3 dimensions.

    Fields and what is known of each point's position are cut into patches, one token each. Attention knows positions
    by rotations (:func:`rotations`). The output is put together from overlapping windows (:func:`overlap_add`), and a
    linear map of the input's channels at each point is added to it, so that details smaller than a token can hold do
    not have to pass through one. Periodic domains are closed; others only see this at their ends in the output windows.

    It runs on every grid that the patch divides: positions are in units of the domain. But a patch of a finer grid
    covers less of the domain, so that errors on other grids than that of the training are larger.

    Args:
        in_channels: History frames times fields.
        out_channels: Fields.
        width: Entries of a token; ``n_heads`` divides it.
        n_layers: Transformer blocks.
        n_heads: Heads of the attention.
        patch: Points per axis of a patch; its length is the number of dimensions.
        blocks: Blocks of the Monarch matrices of all linear layers; ``None``: dense layers. Layers that have fewer
            features than blocks, or would not become smaller, stay dense.
        rank: Rank of the sub-blocks of the Monarch matrices; ``None``: as in the Monarch paper. With one block the
            layers are products of two thin matrices of this rank.

    Raises:
        InputError: The sizes do not fit each other.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int = 256,
        n_layers: int = 6,
        n_heads: int = 8,
        patch: Sequence[int] = (4, 4),
        blocks: int | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__(
            dict(
                in_channels=in_channels,
                out_channels=out_channels,
                width=width,
                n_layers=n_layers,
                n_heads=n_heads,
                patch=list(patch),
                blocks=blocks,
                rank=rank,
            )
        )
        self.patch = tuple(patch)
        if not 1 <= len(self.patch) <= 3 or min(self.patch) < 1:
            raise InputError(f"patch is {self.patch}; it must be 1 to 3 positive numbers, points per axis")
        if n_heads < 1 or n_layers < 1 or width < 1 or width % (2 * n_heads):
            raise InputError(
                f"width {width} must be an even multiple of n_heads {n_heads}, and n_layers {n_layers} at least 1"
            )
        if rank is not None and blocks is None:
            raise InputError(f"rank is {rank}, but blocks is null, which means dense layers; give blocks too")
        d, points = len(self.patch), prod(self.patch)
        self.embed = linear((in_channels + 3 * d) * points, width, blocks=blocks, rank=rank)
        self.layers = nn.ModuleList(_Block(width, n_heads, blocks, rank) for _ in range(n_layers))
        self.norm = nn.LayerNorm(width)
        self.head = linear(width, out_channels * 2**d * points, blocks=blocks, rank=rank)
        self.skip = pointwise(in_channels, out_channels, bias=False, blocks=blocks, rank=rank)
        if blocks is not None and all(isinstance(m, nn.Linear) for m in (self.layers[0].query, self.layers[0].up)):
            raise InputError(
                f"blocks {blocks} with rank {rank} do not make layers of width {width} smaller; take 2 blocks or more, "
                "or a smaller rank"
            )

    def _tokens(self, grid: Sequence[int]) -> tuple[int, ...]:
        if len(grid) != len(self.patch) or any(n % p or n < p for n, p in zip(grid, self.patch, strict=True)):
            raise InputError(
                f"a transformer with patches of {self.patch} points cannot take a grid {tuple(grid)}; the patch must "
                "divide it, axis by axis"
            )
        return tuple(n // p for n, p in zip(grid, self.patch, strict=True))

    def prepare(self, grid: tuple[int, ...]) -> Prepared:
        """Position features of the grid, cosines and sines of the attention; see :class:`Operator`."""
        tokens = self._tokens(grid)
        device = self.norm.weight.device
        head_width = self.config["width"] // self.config["n_heads"]
        return (position_features(grid, device), *rotations(tokens, head_width, device))

    def forward(self, x: Tensor, prepared: Prepared | None = None) -> Tensor:
        """Applies the network; see :class:`Operator`.

        Raises:
            InputError: The grid has another number of axes than the patch, or the patch does not divide it.
        """
        self.check_channels(x)
        grid = tuple(x.shape[2:])
        tokens = self._tokens(grid)
        features, cos, sin = self.prepare(grid) if prepared is None else prepared
        known = torch.cat([x, features.to(x.dtype).expand(x.shape[0], *features.shape[1:])], 1)
        h = self.embed(to_patches(known, self.patch))
        for layer in self.layers:
            h = layer(h, cos, sin)
        y = overlap_add(self.head(self.norm(h)), tokens, self.patch)
        return y + self.skip(x.flatten(2)).unflatten(2, grid)
