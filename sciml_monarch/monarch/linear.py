"""A linear layer with a Monarch matrix for its weight."""

import math

import torch
from torch import Tensor, nn

from sciml_monarch.errors import InputError
from sciml_monarch.monarch.functional import Factors, to_dense
from sciml_monarch.monarch.kernels.linear import monarch_linear
from sciml_monarch.monarch.project import project
from sciml_monarch.monarch.shapes import inner_width


class MonarchLinear(nn.Module):
    """Drop-in replacement of ``torch.nn.Linear``: ``y = M x + bias`` with a Monarch matrix ``M``.

    Sizes that the blocks do not divide are padded with zeros to the next multiple. A fresh layer gives
    outputs of the variance that a fresh ``torch.nn.Linear`` gives.

    Attributes:
        w1: First factor, ``(k, q, p)``.
        w2: Second factor, ``(l, s, r)``.
        bias: ``(out_features,)`` or ``None``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        blocks: int | tuple[int, int] = 4,
        rank: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Draws fresh weights.

        Args:
            in_features: Entries of an input.
            out_features: Entries of an output.
            bias: Whether to add a bias.
            blocks: Blocks of both factors, or ``(k, l)`` for the first (inputs) and the second (outputs).
            rank: Rank of every sub-block of ``M``; ``None``: the Monarch paper's, as in ``project``.
            device: Where the parameters live.
            dtype: Real dtype of the parameters.

        Raises:
            InputError: If there are more blocks than features, or the rank or the dtype does not fit.
        """
        super().__init__()
        k, l = (blocks, blocks) if isinstance(blocks, int) else blocks
        for count, size, name in ((k, in_features, "in_features"), (l, out_features, "out_features")):
            if not 1 <= count <= size:
                raise InputError(f"{count} blocks do not fit {name} = {size}; take 1 to {size} blocks")
        if dtype is not None and not dtype.is_floating_point:
            raise InputError(f"the parameters must be real, but dtype = {dtype}; take torch.float32, for example")
        self.in_features = in_features
        self.out_features = out_features
        self.blocks = (k, l)
        self.rank = rank
        p, s = -(-in_features // k), -(-out_features // l)
        q = inner_width(s * l, p * k, k, l, rank)
        self.w1 = nn.Parameter(torch.empty(k, q, p, dtype=dtype, device=device))
        self.w2 = nn.Parameter(torch.empty(l, s, k * q // l, dtype=dtype, device=device))
        self.bias = nn.Parameter(torch.empty(out_features, dtype=dtype, device=device)) if bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the parameters anew.

        Outputs have the variance that ``torch.nn.Linear`` gives: a third of the inputs', and the bias.
        """
        # in_features / k is the number of inputs of a block without the padding, averaged over the blocks.
        nn.init.normal_(self.w1, std=math.sqrt(self.blocks[0] / self.in_features))
        nn.init.normal_(self.w2, std=math.sqrt(1 / (3 * self.w2.shape[-1])))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features)
            nn.init.uniform_(self.bias, -bound, bound)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, blocks: int | tuple[int, int] = 4, rank: int | None = None
    ) -> "MonarchLinear":
        """Projects the weight of a dense layer onto the nearest Monarch matrix; the bias is kept.

        Args:
            linear: Dense layer.
            blocks: As in the constructor.
            rank: As in the constructor.

        Returns:
            The layer with the device, dtype, training mode and ``requires_grad`` of ``linear``.

        Raises:
            InputError: If there are more blocks than features, or the rank does not fit.
        """
        weight = linear.weight.detach()
        bias = linear.bias is not None
        layer = cls(linear.in_features, linear.out_features, bias, blocks, rank, weight.device, weight.dtype)
        k, l = layer.blocks
        padding = (0, -linear.in_features % k, 0, -linear.out_features % l)
        factors, _ = project(nn.functional.pad(weight, padding), layer.blocks, rank)
        with torch.no_grad():
            layer.w1.copy_(factors.w1)
            layer.w2.copy_(factors.w2)
            if layer.bias is not None:
                layer.bias.copy_(linear.bias)
                layer.bias.requires_grad_(linear.bias.requires_grad)
        for w in (layer.w1, layer.w2):
            w.requires_grad_(linear.weight.requires_grad)
        return layer.train(linear.training)

    @torch.no_grad()
    def to_linear(self) -> nn.Linear:
        """Multiplies the factors out.

        Returns:
            A dense layer that computes the same, with the device, dtype, training mode and ``requires_grad``
            of this.
        """
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, self.w1.device, self.w1.dtype)
        linear.weight.copy_(self.weight)
        linear.weight.requires_grad_(self.w1.requires_grad or self.w2.requires_grad)
        if self.bias is not None:
            linear.bias.copy_(self.bias)
            linear.bias.requires_grad_(self.bias.requires_grad)
        return linear.train(self.training)

    @property
    def weight(self) -> Tensor:
        """The matrix, ``(out_features, in_features)``, multiplied out anew at each access.

        For code that reads the weight of a layer that it did not make; gradients flow to the factors.
        """
        return to_dense(self.factors)[: self.out_features, : self.in_features]

    @property
    def factors(self) -> Factors:
        """The factors of the zero-padded matrix."""
        return Factors(self.w1, self.w2)

    def forward(self, x: Tensor) -> Tensor:
        """Computes ``M x + bias``.

        Args:
            x: Input, ``(..., in_features)``.

        Returns:
            Output, ``(..., out_features)``.

        Raises:
            InputError: If the last axis of ``x`` has another size (not checked while compiling).
        """
        if not torch.compiler.is_compiling() and (x.ndim < 1 or x.shape[-1] != self.in_features):
            raise InputError(
                f"the last axis of an input of shape {tuple(x.shape)} must have "
                f"in_features = {self.in_features} entries"
            )
        return monarch_linear(x, self.w1, self.w2, self.bias, self.out_features)

    def extra_repr(self) -> str:
        """Describes the layer for ``print``."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, blocks={self.blocks}, rank={self.rank}"
        )
