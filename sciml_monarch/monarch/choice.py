"""Which layers of a network are converted, and why the others are not."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import cast

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from sciml_monarch.errors import InputError
from sciml_monarch.monarch.layers import CONVS, Blocks, Layer, is_dense, is_monarch, matrix, owners
from sciml_monarch.monarch.shapes import is_smaller

_STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
HEADS = ("head", "lm_head", "classifier")
"""Names that layers have in a network which are its output head."""

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # that can be decomposed


def notes_of(
    net: nn.Module,
    layers: list[Layer],
    blocks: Blocks,
    rank: int | None,
    only: Sequence[str] | None,
    skip: Sequence[str] | None,
    head: bool,
) -> dict[nn.Module, str]:
    """Decides for each module that has a matrix.

    Args:
        net: The network.
        layers: All its modules.
        blocks: See :func:`~sciml_monarch.monarch.sparsify`, as all that follow.
        rank: Rank of the sub-blocks.
        only: Patterns of the layers to convert.
        skip: Patterns of layers to leave.
        head: Whether to convert the head too.

    Returns:
        Why each is left; empty for those that are to be converted.

    Raises:
        InputError: ``blocks`` or ``rank`` below 1, or a pattern that meets no layer.
    """
    k, l = (blocks, blocks) if isinstance(blocks, int) else blocks
    if min(k, l) < 1 or (rank is not None and rank < 1):
        raise InputError(f"blocks {blocks} and rank {rank} must be 1 or more")
    candidates = [layer for layer in layers if _has_matrix(layer.module)]
    _check_patterns(candidates, only, "only")
    _check_patterns(candidates, skip, "skip")
    shared = owners(net)
    linear = [layer for layer in candidates if is_dense(layer.module) and _kernel_size(layer.module) == 1]
    heads = [layer for layer in linear if layer.name.rpartition(".")[2] in HEADS] or linear[-1:]
    notes: dict[nn.Module, str] = {}
    for layer in candidates:
        if only is not None and not _matches(layer, only):
            note = "is not among those asked for (only)"
        elif skip is not None and _matches(layer, skip):
            note = "is to be left (skip)"
        else:
            note = _why_not(layer, shared, k, l, rank)
        if not note and not head and only is None and layer in heads:
            note = "is taken for the output head; convert it with head=True"
        notes[layer.module] = note
    return notes


def _why_not(layer: Layer, shared: dict[nn.Parameter, list[str]], k: int, l: int, rank: int | None) -> str:
    """Why a layer cannot be converted; empty where it can."""
    module = layer.module
    if is_monarch(module):
        return "is a Monarch layer"
    if is_parametrized(module) or (is_dense(module) and "weight" not in module._parameters):
        return "its weight is made from other tensors (parametrisation, weight norm or pruning)"
    if any(is_lazy(p) for p in module._parameters.values() if p is not None):
        return "is not initialised yet: run a forward pass first"
    if not is_dense(module):
        return _why_not_dense(module)
    if isinstance(module, CONVS):
        if _kernel_size(module) != 1:
            return f"kernel size {'x'.join(map(str, module.kernel_size))}, not 1"
        if module.groups > 1:
            return f"{module.groups} groups"
        if module.padding_mode != "zeros" and any(n != 0 for n in module.padding if not isinstance(n, str)):
            return f"padding mode {module.padding_mode}"
    weight = cast(nn.Parameter, module.weight)
    others = [name for name in shared[weight] if name.rpartition(".")[0] not in layer.names]
    if others:
        return f"its weight is shared with {', '.join(others)}"
    more = _more(module)
    if more:
        return f"holds more than a weight and a bias: {', '.join(more)}"
    if weight.dtype not in _DTYPES:
        return f"its weight is {weight.dtype}"
    if weight.is_meta:
        return "its weight has no values yet (device meta)"
    if any(getattr(module, hooks, None) for hooks in _STATE_HOOKS):
        return "hooks on its state dict, which name its weight"
    if weight._backward_hooks or weight._post_accumulate_grad_hooks:  # type: ignore[attr-defined]
        return "hooks on its weight"
    if layer.fixed:
        return layer.fixed
    n_out, n_in = matrix(weight, module).shape
    if k > n_in or l > n_out:
        return f"{k} x {l} blocks do not fit {n_in} inputs and {n_out} outputs"
    full = min(-(-n_in // k), -(-n_out // l))
    if rank is not None and rank > full:
        return f"rank {rank} does not fit sub-blocks of rank {full}"
    if rank is None and not is_smaller(n_in, n_out, (k, l)):  # a rank that is given is meant
        return f"would not become smaller with {k} x {l} blocks"
    if not weight.isfinite().all():
        return "its weight has entries that are not finite"
    return ""


def _more(module: nn.Module) -> list[str]:
    """Names of what a layer holds besides a weight and a bias, which its Monarch form would lose."""
    parameters = {name: p for name, p in module._parameters.items() if name not in ("weight", "bias")}
    held = {**parameters, **module._buffers, **module._modules}
    return [name for name, value in held.items() if value is not None]


def _why_not_dense(module: nn.Module) -> str:
    if isinstance(module, nn.MultiheadAttention):
        return "its projections are packed into one parameter; its out_proj is read as a weight"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "is an embedding"
    if "quantized" in type(module).__module__:
        return "is quantised"
    for base in (nn.Linear, *CONVS):
        if isinstance(module, base):
            return f"is a subclass of {base.__name__}, whose forward may be another"
    return "has no Monarch form here"


def _has_matrix(module: nn.Module) -> bool:
    """Whether a module is to be spoken of: it has a matrix of its own, or sizes like a linear layer or convolution."""
    if is_monarch(module) or is_dense(module):
        return True
    if isinstance(module, ParametrizationList):  # of the layer that it parametrises
        return False
    sizes = hasattr(module, "in_features") or hasattr(module, "in_channels")
    own = [p for p in module._parameters.values() if p is not None]
    quantised = sizes and not any(True for _ in module.parameters())  # the values are packed into something else
    return quantised or is_parametrized(module) or any(is_lazy(p) or p.ndim > 1 for p in own)


def _kernel_size(module: nn.Module) -> int:
    """Points of the kernel; 1 for what is no convolution."""
    return max(module.kernel_size) if isinstance(module, CONVS) else 1


def _matches(layer: Layer, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, p) or fnmatchcase(name, f"{p}.*") for name in layer.names for p in patterns)


def _check_patterns(layers: list[Layer], patterns: Sequence[str] | None, option: str) -> None:
    if isinstance(patterns, str):
        raise InputError(f'{option} is {patterns!r}; it must be a list of patterns: ["{patterns}"]')
    for pattern in patterns or ():
        if not any(_matches(layer, [pattern]) for layer in layers):
            names = [name for layer in layers for name in layer.names]
            known = (
                f"layers are {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}" if names else "there is none"
            )
            raise InputError(f"{option}: {pattern!r} meets no layer of the network; {known}")
