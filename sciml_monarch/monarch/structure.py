"""Which layers of a network are Monarch, as JSON values: so that a checkpoint fits a network made anew."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from sciml_monarch.errors import InputError
from sciml_monarch.monarch.layers import (
    Layer,
    MonarchLayer,
    inner,
    is_dense,
    is_monarch,
    matrix,
    settle_fast_paths,
    to_dense_layer,
    to_monarch,
    walk,
)
from sciml_monarch.monarch.shapes import inner_width

Structure = dict[str, Any]


def structure(net: nn.Module) -> Structure:
    """Describes the Monarch layers of a network.

    Args:
        net: The network.

    Returns:
        For the name of each Monarch layer, in JSON values: ``kind`` (its class), ``shape`` ``[out, in]``, ``blocks``
        ``[k, l]``, ``rank`` (or ``None``), ``bias``. A shared layer stands under the first of its names.
    """
    return {
        layer.name: _describe(cast(MonarchLayer, layer.module)) for layer in _placed(net) if is_monarch(layer.module)
    }


def restructure(net: nn.Module, structure: Mapping[str, Any]) -> None:
    """Gives a network the Monarch layers of another one of the same class and arguments, in place.

    Layers that are not in the structure become dense. The weights of those that change are of no meaning: a state
    dict is to follow. The states of the random number generators are kept.

    Args:
        net: The network.
        structure: What :func:`structure` said of the other one.

    Raises:
        InputError: A layer is not in the network, of another kind or size, or compiled by itself. The network is
            unchanged then.
    """
    layers = {layer.name: layer for layer in _placed(net)}
    wanted = {name: _read(name, layers.get(name), entry) for name, entry in structure.items()}
    devices = {p.device.index for p in net.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=[d for d in devices if d is not None]):
        made = [(layer, _brought(layer, wanted.get(name))) for name, layer in layers.items()]
    for layer, new in made:
        if new is not layer.module and layer.fixed:
            raise InputError(f"layer {layer.name!r} has another structure, but it {layer.fixed}")
    for layer, new in made:
        if new is not layer.module:
            layer.replace(new)
    settle_fast_paths(net)


def structure_of_state(net: nn.Module, state: Mapping[str, Tensor], prefix: str = "") -> Structure:
    """Reads off a state dict which layers of a network were Monarch when it was written.

    Args:
        net: A network of the same class and arguments.
        state: The state dict.
        prefix: What its keys begin with.

    Returns:
        As of :func:`structure`; layers that the state dict lacks are described as they are in ``net``.
    """
    found: Structure = {}
    for layer in _placed(net):
        module = layer.module
        if not (is_monarch(module) or is_dense(module)):
            continue
        names = [f"{prefix}{layer.name}{infix}" for infix in (".", ".linear.")]
        key = next((n for n in names if f"{n}w1" in state and f"{n}w2" in state), None)
        if key is not None:
            n_out, n_in = _sizes(module)
            (k, q, _), l = state[f"{key}w1"].shape, len(state[f"{key}w2"])
            m, n = n_out + -n_out % l, n_in + -n_in % k
            rank = None if inner_width(m, n, k, l, None) == q else q // l
            found[layer.name] = {"shape": [n_out, n_in], "blocks": [k, l], "rank": rank}
        elif is_monarch(module) and f"{prefix}{layer.name}.weight" not in state:
            found[layer.name] = _describe(cast(MonarchLayer, module))
    return found


def follow_state_dicts(net: nn.Module) -> None:
    """Makes a network take on the structure of every state dict that is loaded into it from now on.

    So a checkpoint of before or after a switch between dense and Monarch layers loads in either state.

    Args:
        net: The network, or a module that holds it; copies of it follow too.
    """
    if not any(getattr(hook, "hook", None) is _follow for hook in net._load_state_dict_pre_hooks.values()):
        net.register_load_state_dict_pre_hook(_follow)


def _follow(net: nn.Module, state: Mapping[str, Tensor], prefix: str, *rest: object) -> None:
    found = structure_of_state(net, state, prefix)
    now = {name: (entry["blocks"], _rank(entry)) for name, entry in structure(net).items()}
    if now != {name: (entry["blocks"], _rank(entry)) for name, entry in found.items()}:
        restructure(net, found)


def _placed(net: nn.Module) -> list[Layer]:
    """All modules but the network itself, which cannot be replaced in place."""
    return [layer for layer in walk(net) if layer.places]


def _rank(entry: Mapping[str, Any]) -> int:
    """Inner width of an entry: of two ranks that mean the same it is the same."""
    (n_out, n_in), (k, l) = entry["shape"], entry["blocks"]
    return inner_width(n_out + -n_out % l, n_in + -n_in % k, k, l, entry["rank"])


def _describe(layer: MonarchLayer) -> dict[str, Any]:
    map_ = inner(layer)
    return {
        "kind": type(layer).__name__,
        "shape": [map_.out_features, map_.in_features],
        "blocks": list(map_.blocks),
        "rank": map_.rank,
        "bias": map_.bias is not None,
    }


def _sizes(module: nn.Module) -> tuple[int, int]:
    """Outputs and inputs."""
    if is_monarch(module):
        map_ = inner(cast(MonarchLayer, module))
        return map_.out_features, map_.in_features
    n_out, n_in = matrix(cast(Tensor, module.weight), module).shape
    return n_out, n_in


def _read(name: str, layer: Layer | None, entry: Any) -> tuple[tuple[int, int], int | None]:
    """Blocks and rank of an entry, checked against the layer that it is of."""
    if layer is None or not (is_dense(layer.module) or is_monarch(layer.module)):
        raise InputError(f"the structure has a Monarch layer {name!r}, but the network has no linear layer there")
    try:
        k, l = map(int, entry["blocks"])
        shape, rank = tuple(map(int, entry["shape"])), None if entry["rank"] is None else int(entry["rank"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the structure of layer {name!r} is {entry!r}: {type(error).__name__} {error}") from None
    if shape != _sizes(layer.module):
        raise InputError(f"layer {name!r} is {_sizes(layer.module)}, but the structure has it as {shape}")
    return (k, l), rank


def _brought(layer: Layer, wanted: tuple[tuple[int, int], int | None] | None) -> nn.Module:
    """The module that is wanted in the place of a layer: itself where it is already."""
    module = layer.module
    if is_monarch(module):
        map_ = inner(cast(MonarchLayer, module))
        if wanted == (map_.blocks, map_.rank):
            return module
        module = to_dense_layer(cast(MonarchLayer, module))
    return module if wanted is None else to_monarch(module, *wanted, init="random")[0]
