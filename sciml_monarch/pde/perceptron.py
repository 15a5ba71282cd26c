"""Linear maps of the channels at every point, two of them as a perceptron, computed in the way that keeps the least."""

from typing import TypeGuard

from torch import Tensor, nn
from torch.nn.functional import gelu

from sciml_monarch.monarch.conv import MonarchConv1x1
from sciml_monarch.monarch.hooks import is_only, is_watched
from sciml_monarch.monarch.kernels.backend import autocast, is_replayed
from sciml_monarch.monarch.kernels.pointwise import gated_asked, linear_asked
from sciml_monarch.pde.gated import gated_mlp, gated_mlp_wanted
from sciml_monarch.pde.mixing import pointwise
from sciml_monarch.pde.pointwise import pointwise_linear, pointwise_mlp


def perceptron(
    in_channels: int, hidden_channels: int, out_channels: int, blocks: int | None, rank: int | None
) -> nn.Sequential:
    """Makes two linear maps of the channels of every point with a GELU between them, dense or Monarch.

    Args:
        in_channels: Channels of the input.
        hidden_channels: Channels between the maps.
        out_channels: Channels of the output.
        blocks: As in :func:`~sciml_monarch.pde.mixing.pointwise`.
        rank: As there.
    """
    return nn.Sequential(
        pointwise(in_channels, hidden_channels, blocks=blocks, rank=rank),
        nn.GELU(),
        pointwise(hidden_channels, out_channels, blocks=blocks, rank=rank),
    )


class GatedPerceptron(nn.Module):
    """A linear map of the channels of every point to twice as many, a half times the GELU of the other, and another.

    GEGLU (Shazeer, arXiv 2002.05202, eq. 6), with biases. Products of two hidden fields, such as those of a velocity
    and a gradient in the transport by a flow, need one hidden channel each.

    Args:
        in_channels: Channels of the input.
        hidden_channels: Channels of each half.
        out_channels: Channels of the output.
        blocks: As in :func:`~sciml_monarch.pde.mixing.pointwise`.
        rank: As there.
    """

    def __init__(
        self, in_channels: int, hidden_channels: int, out_channels: int, blocks: int | None, rank: int | None
    ) -> None:
        super().__init__()
        self.up = pointwise(in_channels, 2 * hidden_channels, blocks=blocks, rank=rank)
        self.down = pointwise(hidden_channels, out_channels, blocks=blocks, rank=rank)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Maps fields ``(b, in_channels, *grid)`` to ``(b, out_channels, *grid)``; ``skip`` is added to these."""
        maps = _with_bias(self.up, self.down, x) if gated_asked(x) else None
        if maps is not None and gated_mlp_wanted(x, maps[0], maps[2]):
            return gated_mlp(x, *maps, skip=skip)
        value, gate = apply_linear(self.up, x).chunk(2, 1)
        found = apply_linear(self.down, value * gelu(gate))
        return found if skip is None else skip + found


def apply_gated(module: GatedPerceptron, x: Tensor, skip: Tensor | None) -> Tensor:
    """Applies one to fields ``(b, channels, *grid)`` and adds others, in one where its call does nothing else."""
    if type(module) is GatedPerceptron and not is_watched(module):
        return module(x, skip)
    y = apply_perceptron(module, x)
    return y if skip is None else skip + y


def apply_perceptron(module: nn.Module, x: Tensor) -> Tensor:
    """Applies such maps to fields ``(b, channels, *grid)``; two matrices without keeping the hidden channels."""
    maps = _matrices(module, x)
    return module(x.flatten(2)).unflatten(2, x.shape[2:]) if maps is None else pointwise_mlp(x, *maps)


def apply_linear(module: nn.Module, x: Tensor) -> Tensor:
    """Applies a linear map of the channels to fields ``(b, channels, *grid)``.

    In CUDA graphs its gradients are never those of the convolution that it is: cuDNN's of the weight takes several
    times as long as products do.
    """
    if isinstance(module, MonarchConv1x1 | nn.Conv1d):
        channels = module.out_channels, module.in_channels
        asked = is_replayed() or linear_asked(autocast(x), channels)
        map_ = matrix_of(module, x) if asked else None
        if map_ is not None:
            return pointwise_linear(x, map_[0], bias=map_[1])
    return module(x.flatten(2)).unflatten(2, x.shape[2:])


def matrix_of(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """The matrix ``(o, i)`` and bias of a linear map of the channels at every point, dense or Monarch.

    Args:
        module: The map.
        x: Fields ``(b, .., *grid)``, with as many points as those that it is to be applied to.

    Returns:
        ``None`` where the module's call does more, or where it takes less time than a product with its matrix.
    """
    if is_plain_map(module):
        return module.weight[..., 0], module.bias
    if not isinstance(module, MonarchConv1x1) or not is_only(module, MonarchConv1x1, None):
        return None
    fits = module.stride == (1,) and module.padding == (0,)
    matrix = module.matrix(x.numel() // max(1, x.shape[1])) if fits else None
    return None if matrix is None else (matrix, module.linear.bias)


def is_plain_map(module: nn.Module) -> TypeGuard[nn.Conv1d]:
    """Whether a module is a linear map of the channels at every point and may be computed as one."""
    if not isinstance(module, nn.Conv1d) or not is_only(module, nn.Conv1d):
        return False
    return module.kernel_size == module.stride == (1,) and module.groups == 1 and module.padding in ((0,), "valid")


def _matrices(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Those of the two linear maps of a module that is these and a GELU between them, and may be computed as such."""
    if type(module) is not nn.Sequential or len(module) != 3:
        return None
    first, activation, last = module
    exact = type(activation) is nn.GELU and activation.approximate == "none"
    if not exact or is_watched(module) or is_watched(activation):
        return None
    return _with_bias(first, last, x)


def _with_bias(first: nn.Module, last: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Matrix and bias of one map, and of another, if both are linear maps with a bias and may be computed as such."""
    one, other = matrix_of(first, x), matrix_of(last, x)
    if one is None or other is None or one[1] is None or other[1] is None:
        return None
    return one[0], one[1], other[0], other[1]
