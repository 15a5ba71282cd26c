"""A whole network to Monarch matrices and back, in place."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from sciml_monarch.errors import InputError
from sciml_monarch.monarch.choice import notes_of
from sciml_monarch.monarch.layers import (
    Blocks,
    Init,
    Layer,
    MonarchLayer,
    inner,
    is_monarch,
    settle_fast_paths,
    to_dense_layer,
    to_monarch,
    walk,
)


@dataclass(frozen=True)
class Row:
    """What became of one layer.

    Attributes:
        layer: Its qualified name; of a shared layer the first.
        kind: Its class.
        shape: Shape of its weight.
        parameters_before: Real numbers in its parameters, bias included.
        parameters_after: The same after the conversion.
        error: Of a projection, the Frobenius norm of the difference relative to that of the weight.
        note: Why it was left; empty where it was converted.
    """

    layer: str
    kind: str
    shape: tuple[int, ...]
    parameters_before: int
    parameters_after: int
    error: float | None
    note: str


@dataclass(frozen=True)
class Report:
    """What became of a network.

    Attributes:
        rows: All layers that have a matrix, in the order of the network.
        parameters_before: Real numbers in the parameters of the whole network, shared ones counted once.
        parameters_after: The same after the conversion.
    """

    rows: tuple[Row, ...]
    parameters_before: int
    parameters_after: int

    @property
    def converted(self) -> tuple[Row, ...]:
        """The layers that were converted."""
        return tuple(row for row in self.rows if not row.note)

    @property
    def skipped(self) -> tuple[Row, ...]:
        """The layers that were left, each with a note why."""
        return tuple(row for row in self.rows if row.note)

    def __str__(self) -> str:
        """A table: one line a layer, and the whole network in the last."""
        lines = [("layer", "kind", "weight", "before", "after", "error", "")]
        for row in self.rows:
            error = "" if row.error is None else f"{row.error:.2e}"
            shape, before, after = (
                "x".join(map(str, row.shape)),
                f"{row.parameters_before:,}",
                f"{row.parameters_after:,}",
            )
            lines.append((row.layer, row.kind, shape, before, after, error, row.note))
        total = f"{len(self.converted)} of {len(self.rows)} layers converted"
        lines.append((total, "", "", f"{self.parameters_before:,}", f"{self.parameters_after:,}", "", ""))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def sparsify(
    net: nn.Module,
    blocks: Blocks = 4,
    rank: int | None = None,
    init: Init = "project",
    only: Sequence[str] | None = None,
    skip: Sequence[str] | None = None,
    head: bool = False,
) -> Report:
    """Replaces the linear layers of a network by their Monarch form, in place.

    These are ``torch.nn.Linear``, ``Conv1d``, ``Conv2d`` and ``Conv3d`` with kernel size 1, and Hugging Face's
    ``Conv1D``. A layer that stands in several places is converted once and stays shared; biases, ``requires_grad``,
    devices, dtypes, training mode and hooks of the forward and backward pass are kept. Left as they are, and named in
    the report with the reason: layers whose weight is shared with another (an output head tied to an embedding),
    subclasses (their forward may be another), layers whose weight is made from other tensors (weight norm, pruning,
    quantisation) or is not finite, layers that are compiled by themselves, layers that would not become smaller
    (unless ``rank`` is given), other layers with matrices. An optimizer that was made before is made to follow with
    :func:`~sciml_monarch.monarch.convert_optimizer.carry_over`.

    The head is each layer of these kinds that its parent has as ``head``, ``lm_head`` or ``classifier``; if there is
    none the last in the order of ``named_modules``, which is that of construction. It stays dense unless ``head`` is
    set, or ``only`` is given and meets it.

    Args:
        net: The network; itself no linear layer, which cannot be replaced in place.
        blocks: Blocks of both factors, or ``(k, l)``; sizes that they do not divide are padded.
        rank: Rank of the sub-blocks; ``None``: as in :func:`~sciml_monarch.monarch.project`.
        init: "project": the nearest Monarch matrix; "random": fresh factors whose product is as large as the weight.
        only: Patterns of the layers to convert, as of a shell, matched against qualified names or those of modules
            that they stand in: ``"encoder"``, ``"blocks.*.mlp"``. ``None``: all.
        skip: Patterns of layers to leave.
        head: Whether to convert the head too.

    Returns:
        What was done to each layer.

    Raises:
        InputError: ``blocks`` or ``rank`` below 1, another ``init``, or a pattern that meets no layer. The network is
            unchanged then.
    """
    if init not in ("project", "random"):
        raise InputError(f'init is {init!r}; it must be "project" or "random"')
    layers = walk(net)
    notes = notes_of(net, layers, blocks, rank, only, skip, head)
    before = n_parameters(net)
    rows, made = [], []
    for layer in layers:
        note = notes.get(layer.module)
        if note is None:
            continue
        old, new, error = layer.module, layer.module, None
        if not note:
            new, error = to_monarch(old, blocks, rank, init)
            made.append((layer, new))
        rows.append(_row(layer.name, old, new, error, note))
    _replace(net, made)
    return Report(tuple(rows), before, n_parameters(net))


def densify(net: nn.Module) -> Report:
    """Multiplies the factors of all Monarch layers of a network out, in place; the inverse of :func:`sparsify`.

    What a fast transform is made of (:class:`~sciml_monarch.monarch.MonarchTransform`) is no linear layer and stays.

    Args:
        net: The network; itself no Monarch layer.

    Returns:
        The layers that were Monarch.
    """
    before = n_parameters(net)
    rows, made = [], []
    for layer in walk(net):
        old = layer.module
        if not is_monarch(old):
            continue
        new = old if layer.fixed else to_dense_layer(cast(MonarchLayer, old))
        if new is not old:
            made.append((layer, new))
        rows.append(_row(layer.name, old, new, None, layer.fixed))
    _replace(net, made)
    return Report(tuple(rows), before, n_parameters(net))


def plan(
    net: nn.Module,
    blocks: Blocks = 4,
    rank: int | None = None,
    only: Sequence[str] | None = None,
    skip: Sequence[str] | None = None,
    head: bool = False,
) -> list[str]:
    """The names of the layers that :func:`sparsify` would convert; arguments and errors are the same."""
    layers = walk(net)
    notes = notes_of(net, layers, blocks, rank, only, skip, head)
    return [layer.name for layer in layers if notes.get(layer.module) == ""]


def n_parameters(net: nn.Module) -> int:
    """Counts the real numbers in the parameters of a network, shared ones once, uninitialised ones as none."""
    return sum(map(_numel, net.parameters()))


def _replace(net: nn.Module, made: Sequence[tuple[Layer, nn.Module]]) -> None:
    """Puts new layers in, once all of them are made: a failure in between leaves the network whole."""
    for layer, new in made:
        layer.replace(new)
    settle_fast_paths(net)


def _row(name: str, old: nn.Module, new: nn.Module, error: float | None, note: str) -> Row:
    if is_monarch(old):
        map_ = inner(cast(MonarchLayer, old))
        shape: tuple[int, ...] = (map_.out_features, map_.in_features)
    else:
        shape = _shape(old)
    return Row(name, type(old).__name__, shape, _own_parameters(old), _own_parameters(new), error, note)


def _shape(module: nn.Module) -> tuple[int, ...]:
    """Shape of the weight, or of the largest parameter of what has no weight."""
    weight = module._parameters.get("weight")
    if weight is None:
        weight = max((p for p in module._parameters.values() if p is not None), key=_numel, default=None)
    return () if weight is None or is_lazy(weight) else tuple(weight.shape)


def _own_parameters(module: nn.Module) -> int:
    own = module.parameters() if is_monarch(module) else module.parameters(recurse=is_parametrized(module))
    return sum(map(_numel, own))


def _numel(parameter: Tensor) -> int:
    if is_lazy(parameter):
        return 0
    return parameter.numel() * (2 if parameter.is_complex() else 1)
