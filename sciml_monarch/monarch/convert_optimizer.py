r"""The state of an optimizer at a switch between dense and Monarch layers, so that training goes on without a jump.

An optimizer keeps averages of gradients and of their squares. A sub-block ``A = U V`` of a Monarch matrix (see
``sub_blocks``) ties the gradients of its factors to that of the matrix by the chain rule,

    dU = G V^T,    dV = U^T G,    G = dA.

**First moments** (``exp_avg``, ``momentum_buffer``) are averages of gradients, so that they transform like these:

- dense to Monarch by the chain rule, with the factors of the switch: exact;
- Monarch to dense the smallest ``G`` that explains both moments best,
  ``min |G V^T - m_U|^2 + |U^T G - m_V|^2``: in the singular bases ``U = P diag(a) ..`` and ``V = .. diag(b) R^T``
  ``G = P [(b_j (P^T m_U ..)_ij + a_i (.. m_V R)_ij) / (a_i^2 + b_j^2)] R^T``. What neither factor sees is zero.

**Second moments** (``exp_avg_sq``) are averages of squares of gradients: a variance and the square of the mean, which
is the first moment where the optimizer has one (both freed of Adam's bias towards zero). The deviations of the entries
of ``G`` from their means are taken as uncorrelated, so that their variances ``v`` add:

- dense to Monarch ``v_U[s, t] = sum_p V[t, p]^2 v_A[s, p]``, likewise ``v_V``;
- Monarch to dense each inner coordinate estimates the mean of ``v_A`` along its row, ``v_U[s, t] / |V_t|^2``, or
  column, ``v_V[t, p] / |U_t|^2``; an entry takes the mean of its estimates, weighted by its own share ``V[t, p]^2``,
  ``U[s, t]^2``. So a uniform ``v_A`` comes back as it was, and none is negative.

Step counts stay. The gradient of an L2 penalty inside of Adam is carried along with that of the loss.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sciml_monarch.errors import InputError
from sciml_monarch.monarch.functional import Factors
from sciml_monarch.monarch.layers import MonarchLayer, as_weight, inner, is_dense, is_monarch, matrix, walk
from sciml_monarch.monarch.sub_blocks import SubBlocks, join, join_matrix, split, split_matrix

_FIRST = ("exp_avg", "momentum_buffer", "grad_avg")
_SECOND = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")
_MEAN = {"exp_avg_sq": "exp_avg", "max_exp_avg_sq": "exp_avg", "square_avg": "grad_avg"}
_MARGIN = 1 + 1e-5  # rounding must not make a second moment smaller than the square of the mean
_CUTOFF = 1e-2  # singular directions below this part of the largest are not inverted: they amplify rounding


@contextmanager
def carry_over(net: nn.Module, *optimizers: Optimizer, reset: bool = False) -> Iterator[None]:
    """Makes optimizers follow what happens to a network inside a ``with`` block.

    ::

        with carry_over(net, optimizer):
            densify(net)

    New parameters take the places of the old ones in their groups, so that learning rates, weight decay and
    schedulers stay theirs. Moments are carried over as the module says, of Adam, AdamW, NAdam, RAdam, RMSprop, Adagrad
    and SGD; other optimizers start anew for the layers that were replaced.

    Args:
        net: The network; in the block it goes through :func:`~sciml_monarch.monarch.sparsify`,
            :func:`~sciml_monarch.monarch.densify` or both.
        optimizers: Those that train it.
        reset: Start anew for the layers that were replaced, whatever the optimizer.

    Raises:
        InputError: The two factors of a layer are in different groups, or in a group only in part; an optimizer
            cannot follow (:func:`check_optimizers`).
    """
    check_optimizers(optimizers)
    before = {layer.name: layer.module for layer in walk(net) if is_dense(layer.module) or is_monarch(layer.module)}
    yield
    after = {layer.name: layer.module for layer in walk(net) if layer.name in before}
    for name, old in before.items():
        new = after.get(name, old)
        if new is not old and is_monarch(old) != is_monarch(new):
            for optimizer in optimizers:
                _follow(optimizer, name, old, new, reset)


def check_optimizers(optimizers: Iterable[Optimizer]) -> None:
    """Refuses optimizers that cannot follow a network whose layers are replaced.

    Raises:
        InputError: LBFGS, whose state is of all parameters at once, or Muon and SOAP, whose parameters are matrices.
    """
    for optimizer in optimizers:
        for name in (cls.__name__ for cls in type(optimizer).__mro__):
            if name in ("LBFGS", "Muon", "Soap"):
                reason = "its state is of all parameters at once" if name == "LBFGS" else "it trains matrices only"
                raise InputError(f"{name} cannot go on when layers are replaced: {reason}; use Adam, AdamW or SGD")


def _follow(optimizer: Optimizer, name: str, old: nn.Module, new: nn.Module, reset: bool) -> None:
    before, after = _weights(old), _weights(new)
    for group in optimizer.param_groups:
        _rename(group, old, new)
        places = [i for i, p in enumerate(group["params"]) if any(p is w for w in before)]
        if not places:
            continue
        if len(places) < len(before):
            raise InputError(
                f"layer {name!r}: of its {len(before)} weights {len(places)} are in a group of the optimizer; "
                "put both factors of a Monarch layer into the same group"
            )
        states = [optimizer.state.pop(w, {}) for w in before]
        group["params"][places[0] : places[-1] + 1] = [
            *after,
            *(p for p in group["params"][places[0] : places[-1] + 1] if all(p is not w for w in before)),
        ]
        if "param_names" in group:  # of an optimizer made from named parameters
            names, of_old, of_new = group["param_names"], _local_names(old), _local_names(new)
            stem = names[places[0]].removesuffix(of_old[before[0]])
            names[places[0] : places[-1] + 1] = [
                *(stem + of_new[w] for w in after),
                *(names[i] for i in range(places[0], places[-1] + 1) if i not in places),
            ]
        if all(states) and not reset:
            for weight, state in zip(after, _carried(states, old, new, group.get("betas")), strict=True):
                if state:
                    optimizer.state[weight] = state


def _weights(module: nn.Module) -> list[nn.Parameter]:
    if is_monarch(module):
        map_ = inner(cast(MonarchLayer, module))
        return [map_.w1, map_.w2]
    return [cast(nn.Parameter, module.weight)]


def _rename(group: dict[str, Any], old: nn.Module, new: nn.Module) -> None:
    """Gives what both layers have, the bias, its new name in a group made from named parameters."""
    of_old, of_new = _local_names(old), _local_names(new)
    for i, name in enumerate(group.get("param_names", ())):
        p = group["params"][i]
        if p in of_old and p in of_new:
            group["param_names"][i] = name.removesuffix(of_old[p]) + of_new[p]


def _local_names(module: nn.Module) -> dict[nn.Parameter, str]:
    """The names of the parameters inside of a layer."""
    return {p: name for name, p in module.named_parameters()}


def _is_count(value: Any) -> bool:
    """Whether a value is that of the whole weight, such as a step count, and no statistic of its entries."""
    return value is None or isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)


@torch.no_grad()
def _carried(
    states: list[dict[str, Any]], old: nn.Module, new: nn.Module, betas: tuple[float, float] | None
) -> list[dict[str, Any]]:
    """The states of the new weights, in their order; empty where there is something unknown in the old ones."""
    before, after = _weights(old), _weights(new)
    carried: list[dict[str, Any]] = [{} for _ in after]
    for key in states[0]:
        values: list[Any] = [state.get(key) for state in states]
        if all(isinstance(v, Tensor) and v.shape == w.shape for v, w in zip(values, before, strict=True)):
            if key in _FIRST:
                moments = _transformed([_wide(v) for v in values], old, new, squares=False)
            elif key in _SECOND:
                means = [state.get(_MEAN.get(key, "")) for state in states]
                moments = _second_moments(values, means, old, new, _bias(betas, float(states[0].get("step", 0))))
            else:
                return [{} for _ in after]
            values = [moment.to(values[0].dtype) for moment in moments]
        elif not all(map(_is_count, values)):  # means over rows and columns, a history, ...
            return [{} for _ in after]
        else:
            values = [values[0].clone() if isinstance(values[0], Tensor) else values[0] for _ in after]
        for state, value in zip(carried, values, strict=True):
            state[key] = value
    return carried


def _bias(betas: tuple[float, float] | None, step: float) -> float:
    """Square of a mean in the scale of a second moment: both averages of Adam start at zero, each grows its own way."""
    if betas is None or step < 1:
        return 1.0
    return (1 - betas[1] ** step) / (1 - betas[0] ** step) ** 2


def _second_moments(
    values: list[Tensor], means: list[Tensor | None], old: nn.Module, new: nn.Module, bias: float
) -> list[Tensor]:
    squares, known = [_wide(v) for v in values], [_wide(m) for m in means if m is not None]
    if not known:
        return _transformed(squares, old, new, squares=True)
    variances = [(v - bias * m.square()).clamp_min(0) for v, m in zip(squares, known, strict=True)]
    after = zip(
        _transformed(variances, old, new, squares=True), _transformed(known, old, new, squares=False), strict=True
    )
    return [variance + _MARGIN * bias * mean.square() for variance, mean in after]


def _transformed(values: list[Tensor], old: nn.Module, new: nn.Module, squares: bool) -> list[Tensor]:
    """Moments of the weights of one layer from those of the other."""
    if is_monarch(new):
        factors = inner(cast(MonarchLayer, new)).factors
        return list(to_factors(matrix(values[0], old), Factors(*map(_wide, factors)), squares))
    map_ = inner(cast(MonarchLayer, old))
    shape = map_.out_features, map_.in_features
    return [as_weight(to_matrix(Factors(*values), Factors(*map(_wide, map_.factors)), shape, squares), new)]


def _wide(values: Tensor) -> Tensor:
    """Double precision, where the device has it."""
    return values.detach().to(torch.float32 if values.device.type == "mps" else torch.float64)


def to_factors(moment: Tensor, factors: Factors, squares: bool) -> Factors:
    """Moments of the factors from that of a dense matrix.

    Args:
        moment: First or second moment of the matrix, ``(m, n)``.
        factors: The factors of the matrix, padded or not.
        squares: Whether it is a second moment.

    Returns:
        The moments, in the shapes of the factors.
    """
    k, q, _ = factors.w1.shape
    u, v = split(factors)
    a = split_matrix(moment, k, len(factors.w2))
    if squares:
        u, v = u.square(), v.square()
    return join(SubBlocks(v @ a.mT, u @ a), q)


def to_matrix(moments: Factors, factors: Factors, shape: tuple[int, int], squares: bool) -> Tensor:
    """Moment of a dense matrix from those of its factors.

    Args:
        moments: First or second moments of the factors.
        factors: The factors of the matrix, padded or not.
        shape: Of the matrix without padding, ``(m, n)``.
        squares: Whether they are second moments.

    Returns:
        The moment, ``(m, n)``.
    """
    k, l = len(factors.w1), len(factors.w2)
    inside = split_matrix(torch.ones(shape, dtype=factors.w1.dtype, device=factors.w1.device), k, l)  # (l, k, s, p)
    u, v = split(factors)
    u, v = u * inside[..., :1].mT, v * inside[..., :1, :]  # the padding has no gradient
    m_u, m_v = split(moments)
    back = _second(u, v, m_u, m_v) if squares else _first(u, v, m_u, m_v)
    return join_matrix(back, *shape)


def _first(u: Tensor, v: Tensor, m_u: Tensor, m_v: Tensor) -> Tensor:
    """The smallest ``G`` nearest to ``G V^T = m_U``, ``U^T G = m_V``: ``U U^T G + G V^T V = m_U V + U m_V``."""
    left, a, _ = torch.linalg.svd(u.mT, full_matrices=False)  # (l, k, s, t)
    _, b, right = torch.linalg.svd(v, full_matrices=False)  # (l, k, t, p)
    a2, b2 = a.square()[..., :, None], b.square()[..., None, :]
    least = _CUTOFF**2 * (a2.amax((-2, -1), keepdim=True) + b2.amax((-2, -1), keepdim=True))
    known = m_u.mT @ v + u.mT @ m_v  # (l, k, s, p)
    rows, columns = left.mT @ known, known @ right.mT
    both = rows @ right.mT
    # seen by both factors; by U alone, right of the span of V; by V alone, left of the span of U; the rest is zero
    of_both = left @ _inverted(both, a2 + b2, least) @ right
    of_u = left @ _inverted(rows - both @ right, a2, least)
    of_v = _inverted(columns - left @ both, b2, least) @ right
    return of_both + of_u + of_v


def _inverted(values: Tensor, seen: Tensor, least: Tensor) -> Tensor:
    """The quotient; 0 where what is seen is too little."""
    return torch.where(seen > least, values / seen.where(seen > least, 1), 0)


def _second(u: Tensor, v: Tensor, m_u: Tensor, m_v: Tensor) -> Tensor:
    """The mean of what the inner coordinates say of each entry, weighted by its share in them."""
    u2, v2 = u.square(), v.square()
    of_rows = _ratio(m_u, v2.sum(-1, keepdim=True))  # (l, k, t, s)
    of_columns = _ratio(m_v, u2.sum(-1, keepdim=True))  # (l, k, t, p)
    shares = u2.sum(-2)[..., :, None] + v2.sum(-2)[..., None, :]  # (l, k, s, p)
    means = _ratio(of_rows.mT @ v2 + u2.mT @ of_columns, shares)
    known = shares > 0
    return means.where(known, _ratio(means.sum(), known.sum()))


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient; 0 where the denominator is."""
    return torch.where(denominator > 0, numerator / denominator.where(denominator > 0, 1), 0)
