"""Linear maps of the channels at every point, two of them as a perceptron, computed in the way that keeps the least."""

from typing import TypeGuard

from torch import Tensor, nn
from torch.nn.functional import gelu

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
        maps = _with_bias(self.up, self.down) if gated_asked(x) else None
        if maps is not None:
            up, up_bias, down, down_bias = (t for m in maps for t in (m.weight[..., 0], m.bias) if t is not None)
            if gated_mlp_wanted(x, up, down):
                return gated_mlp(x, up, up_bias, down, down_bias, skip=skip)
        value, gate = apply_linear(self.up, x).chunk(2, 1)
        found = apply_linear(self.down, value * gelu(gate))
        return found if skip is None else skip + found


def apply_gated(module: GatedPerceptron, x: Tensor, skip: Tensor | None) -> Tensor:
    """Applies one to fields ``(b, channels, *grid)`` and adds others, in one where its call does nothing else."""
    if type(module) is GatedPerceptron and not _is_watched(module):
        return module(x, skip)
    y = apply_perceptron(module, x)
    return y if skip is None else skip + y


def apply_perceptron(module: nn.Module, x: Tensor) -> Tensor:
    """Applies such maps to fields ``(b, channels, *grid)``; two dense ones without keeping the hidden channels."""
    layers = _dense(module)
    if layers is None:
        return module(x.flatten(2)).unflatten(2, x.shape[2:])
    first, last = layers
    assert first.bias is not None  # as such a perceptron has
    assert last.bias is not None
    return pointwise_mlp(x, first.weight[..., 0], first.bias, last.weight[..., 0], last.bias)


def apply_linear(module: nn.Module, x: Tensor) -> Tensor:
    """Applies a linear map of the channels to fields ``(b, channels, *grid)``.

    In CUDA graphs its gradients are never those of the convolution that it is: cuDNN's of the weight takes several
    times as long as products do.
    """
    if is_plain_map(module) and (is_replayed() or linear_asked(autocast(x), module.weight)):
        return pointwise_linear(x, module.weight[..., 0], bias=module.bias)
    return module(x.flatten(2)).unflatten(2, x.shape[2:])


def is_only(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling a module does what its class does and nothing else, so that another way may be taken.

    Subclasses, parametrised modules (which are subclasses), hooks, weights that a hook computes, and a ``forward`` of
    the object's own are what the call is for.
    """
    return type(module) is kind and "weight" in module._parameters and not _is_watched(module)


def _is_watched(module: nn.Module) -> bool:
    """Whether a call of a module runs more, or other, than its class' ``forward``."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return "forward" in module.__dict__ or any(hooks)


def is_plain_map(module: nn.Module) -> TypeGuard[nn.Conv1d]:
    """Whether a module is a linear map of the channels at every point and may be computed as one."""
    if not isinstance(module, nn.Conv1d) or not is_only(module, nn.Conv1d):
        return False
    return module.kernel_size == module.stride == (1,) and module.groups == 1 and module.padding in ((0,), "valid")


def _dense(module: nn.Module) -> tuple[nn.Conv1d, nn.Conv1d] | None:
    """The two linear maps of a module that is these and a GELU between them, and may be computed as such."""
    if type(module) is not nn.Sequential or len(module) != 3:
        return None
    first, activation, last = module
    exact = type(activation) is nn.GELU and activation.approximate == "none"
    if not exact or _is_watched(module) or _is_watched(activation):
        return None
    return _with_bias(first, last)


def _with_bias(first: nn.Module, last: nn.Module) -> tuple[nn.Conv1d, nn.Conv1d] | None:
    """The two modules if both are linear maps with a bias and may be computed as such."""
    if not is_plain_map(first) or not is_plain_map(last) or first.bias is None or last.bias is None:
        return None
    return first, last
