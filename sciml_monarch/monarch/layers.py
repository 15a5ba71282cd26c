"""The layers of a network that have a Monarch form: finding, converting and replacing them."""

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from sciml_monarch.monarch.conv import MonarchConv1D, MonarchConv1x1
from sciml_monarch.monarch.functional import to_dense
from sciml_monarch.monarch.linear import MonarchLinear

Init = Literal["project", "random"]
Blocks = int | tuple[int, int]
MonarchLayer = MonarchLinear | MonarchConv1x1 | MonarchConv1D
MONARCH = (MonarchLinear, MonarchConv1x1, MonarchConv1D)
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


ITSELF = "is the network itself, which cannot be replaced in place: put it into a torch.nn.Sequential"
COMPILED = "is compiled by itself (torch.compile), which goes on calling it: convert first, then compile"


@dataclass(frozen=True, eq=False)
class Layer:
    """A module of a network and where it stands.

    Attributes:
        module: The module.
        names: Its qualified names: several where it is shared.
        places: Its parents, each with its name in them; none for the network itself.
    """

    module: nn.Module
    names: tuple[str, ...]
    places: tuple[tuple[nn.Module, str], ...]

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]

    @property
    def fixed(self) -> str:
        """Why it cannot be replaced; empty where it can."""
        if not self.places:
            return ITSELF
        # torch.compile's wrapper is bound to the module that it was made of
        return COMPILED if any(name == "_orig_mod" for _, name in self.places) else ""

    def replace(self, new: nn.Module) -> None:
        """Puts another module in all its places, with the hooks of its forward and backward pass."""
        for hooks in _HOOKS:  # the same dictionaries, so that the handles of the hooks still remove them
            setattr(new, hooks, getattr(self.module, hooks))
        for parent, name in self.places:
            setattr(parent, name, new)


def walk(net: nn.Module) -> list[Layer]:
    """All modules in the order of ``named_modules``, each once; the map inside a Monarch convolution is not one."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in net.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    places: dict[nn.Module, list[tuple[nn.Module, str]]] = {module: [] for module in names}
    for parent in names:
        for name, child in parent._modules.items():
            if child is not None:
                places[child].append((parent, name))
    inside = {module.linear for module in names if isinstance(module, MonarchConv1x1 | MonarchConv1D)}
    return [Layer(m, tuple(names[m]), tuple(places[m])) for m in names if m not in inside]


def is_transposed(module: nn.Module) -> bool:
    """Whether this is Hugging Face's ``Conv1D``; transformers is not imported to find out."""
    cls = type(module)
    return cls.__name__ == "Conv1D" and cls.__module__.partition(".")[0] == "transformers"


def is_dense(module: nn.Module) -> bool:
    """Whether this is a linear layer, a convolution or a ``Conv1D``, and no subclass, whose forward may differ."""
    return type(module) in (nn.Linear, *CONVS) or is_transposed(module)


def is_monarch(module: nn.Module) -> bool:
    """Whether this is a Monarch layer that has a dense form."""
    return isinstance(module, MONARCH)


def inner(layer: MonarchLayer) -> MonarchLinear:
    """The map that a Monarch layer applies to features or channels."""
    return layer if isinstance(layer, MonarchLinear) else layer.linear


def matrix(weight: Tensor, module: nn.Module) -> Tensor:
    """The weight of a dense layer, or what has its shape, as ``(out, in)``; a view."""
    return weight.mT if is_transposed(module) else weight.flatten(1)


def as_weight(values: Tensor, module: nn.Module) -> Tensor:
    """Inverse of :func:`matrix`: ``(out, in)`` in the shape of the weight of a dense layer."""
    if is_transposed(module):
        return values.mT.contiguous()
    return values.unflatten(1, (values.shape[1], *(1,) * (cast(Tensor, module.weight).ndim - 2)))


@torch.no_grad()
def to_monarch(module: nn.Module, blocks: Blocks, rank: int | None, init: Init) -> tuple[MonarchLayer, float | None]:
    """The Monarch form of a dense layer; the bias is the same parameter.

    Args:
        module: Layer that :func:`is_dense`, of kernel size 1 and one group.
        blocks: Blocks of both factors, or ``(k, l)``.
        rank: Rank of the sub-blocks.
        init: "project": the nearest Monarch matrix; "random": fresh factors whose product is as large as the weight
            (root mean square of the entries), so that layers that start small or at zero still do.

    Returns:
        The layer, and of a projection the error relative to the norm of the weight.

    Raises:
        InputError: More blocks than features, or the rank does not fit.
    """
    weight = matrix(cast(nn.Parameter, module.weight), module)
    bias = cast(nn.Parameter | None, module.bias)
    n_out, n_in = weight.shape
    error = None
    if init == "project":
        linear = nn.Linear(n_in, n_out, bias=False, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        map_ = MonarchLinear.from_linear(linear, blocks, rank)
        error = _relative_error(to_dense(map_.factors)[:n_out, :n_in], weight)
    else:
        map_ = MonarchLinear(n_in, n_out, False, blocks, rank, weight.device, weight.dtype)
        # a fresh layer has entries of mean square 1 / (3 n_in); the first factor stays, else nothing would ever
        # learn where the weight is zero
        map_.w2.mul_(weight.float().square().mean().mul(3 * n_in).sqrt().to(weight.dtype))
    for factor in (map_.w1, map_.w2):
        factor.requires_grad_(cast(Tensor, module.weight).requires_grad)
    map_.bias = bias  # type: ignore[assignment]
    layer: MonarchLayer = map_
    if isinstance(module, CONVS):
        layer = MonarchConv1x1(
            map_, module.stride, [0] * len(module.stride) if isinstance(module.padding, str) else module.padding
        )
    elif is_transposed(module):
        layer = MonarchConv1D(map_, type(module))
    return layer.train(module.training), error


def to_dense_layer(layer: MonarchLayer) -> nn.Module:
    """The dense form of a Monarch layer; the bias is the same parameter."""
    if isinstance(layer, MonarchConv1x1):
        dense: nn.Module = layer.to_conv()
    elif isinstance(layer, MonarchConv1D):
        dense = layer.to_conv1d()
    else:
        dense = layer.to_linear()
    dense.bias = cast(nn.Parameter, inner(layer).bias)  # or None, which stays None
    return dense.train(layer.training)


def settle_fast_paths(net: nn.Module) -> None:
    """Switches torch's fused transformer layers off where they would read the weight of a layer that has none.

    In evaluation ``nn.TransformerEncoderLayer`` and ``nn.TransformerEncoder`` hand the weights of their linear
    layers to a fused kernel. Where these layers are dense (again) the kernel is left on, or switched on again.
    """
    for module in net.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            _switch(module, "activation_relu_or_gelu", any(map(is_monarch, (module.linear1, module.linear2))))
    for module in net.modules():
        if isinstance(module, nn.TransformerEncoder) and hasattr(module, "use_nested_tensor"):
            _switch(module, "use_nested_tensor", any(map(is_monarch, module.layers.modules())))


def _switch(module: nn.Module, flag: str, off: bool) -> None:
    """Sets a flag of a module to 0, or back to what it was."""
    kept = f"_{flag}_of_dense"
    if off and not hasattr(module, kept):
        setattr(module, kept, getattr(module, flag))
        setattr(module, flag, 0)
    elif not off and hasattr(module, kept):
        setattr(module, flag, getattr(module, kept))
        delattr(module, kept)


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    wide = torch.promote_types(expected.dtype, torch.float32)
    difference, norm = (actual.to(wide) - expected.to(wide)).norm().item(), expected.to(wide).norm().item()
    if norm == 0:
        return 0.0 if difference == 0 else math.inf
    return difference / norm


def owners(net: nn.Module) -> dict[nn.Parameter, list[str]]:
    """The names under which the values of each parameter stand in a network, a shared module counted once."""
    found: dict[nn.Parameter, list[str]] = {}
    of_values: dict[object, list[str]] = {}
    for name, module in net.named_modules():
        for own, parameter in module._parameters.items():
            if parameter is not None:
                found[parameter] = of_values.setdefault(_values(parameter), [])
                found[parameter].append(f"{name}.{own}" if name else own)
    return found


def _values(parameter: nn.Parameter) -> object:
    """The memory of a parameter, which two of them may share; itself where it has none of its own to speak of."""
    if type(parameter) is not nn.Parameter or parameter.layout != torch.strided or parameter.is_meta:
        return parameter
    return parameter.untyped_storage().data_ptr() or parameter
