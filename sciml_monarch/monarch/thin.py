"""Some rows or columns of several discrete Fourier transforms at once, from their factors, in a few operations.

Where the inner width of a Monarch matrix is its number of output blocks, ``q == l``, as that of a DFT is, every
sub-block has rank one and every entry is one complex product (letters of :mod:`~sciml_monarch.monarch.functional`)

    M[(s, l), (k, p)] = w2[l, s, k] w1[k, l, p].

Rows need all of ``w1`` and some ``s`` of ``w2``, columns all of ``w2`` and some ``p`` of ``w1``: two products of the
same form, so that transforms of one size are computed together. Sums of their real products are then picked into the
places where they are wanted. A GPU would take longer to begin many small operations than to compute them.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sciml_monarch.errors import InputError
from sciml_monarch.monarch.fourier import dft
from sciml_monarch.monarch.parts import inverse_permutation
from sciml_monarch.monarch.transform import MonarchTransform


class Wanted(NamedTuple):
    """Which part of a transform is wanted, and in what form.

    Attributes:
        n: Points of the transform.
        which: Rows or columns, ``(m,)`` int64.
        columns: Whether they are columns.
        scale: Factors of the real and of the imaginary plane, ``(2, m)``.
        stacked: Whether the planes are to be one matrix, one above the other.
    """

    n: int
    which: Tensor
    columns: bool
    scale: Tensor
    stacked: bool = False


class ThinMatrices(nn.Module):
    """Computes parts of transforms, which are given in the call; holds the places of everything, no parameters."""

    operands: Tensor
    places: Tensor
    signs: Tensor

    def __init__(self, wanted: Sequence[Wanted]) -> None:
        super().__init__()
        device = torch.get_default_device()
        with torch.device("cpu"):
            wanted = [w._replace(which=w.which.cpu(), scale=w.scale.cpu()) for w in wanted]
            groups = _grouped([_form(w) for w in wanted])
            chosen, tables = _tables(wanted, groups)
            operands = _operands(wanted, groups, chosen)
            self.blocks = [_factor_shapes(w.n)[0] for w in wanted]
        self.operand_shapes = [tuple(operand.shape) for operand in operands]
        self.operand_sizes = [operand.numel() for operand in operands]
        self.shapes = [(2 * len(w.which), w.n) if w.stacked else (2, len(w.which), w.n) for w in wanted]
        self.sizes = [prod(shape) for shape in self.shapes]
        places, signs = (torch.cat([t.flatten(1) for t in ts], 1) for ts in zip(*tables, strict=True))
        self.register_buffer("operands", torch.cat([t.flatten() for t in operands]).to(device), persistent=False)
        self.register_buffer("places", places.flatten().to(device), persistent=False)
        self.register_buffer("signs", signs.to(device, torch.get_default_dtype()), persistent=False)

    def forward(self, layers: Sequence[Sequence[MonarchTransform]]) -> list[list[Tensor]]:
        """Computes what is wanted of the transforms of each layer.

        Args:
            layers: Of each layer as many transforms as there are wanted parts, of kind "dft" or any other whose factors
                have the same shapes and input permutation.

        Returns:
            Of each layer of each part ``(2, m, n)``, or ``(2 m, n)``: real and imaginary plane of rows, or of columns,
            as rows too: the transpose; at least float32.

        Raises:
            InputError: A transform has other blocks than a new one has (not checked while compiling).
        """
        compiling = torch.compiler.is_compiling()
        factors = []
        for transforms in layers:
            for transform, shape in zip(transforms, self.blocks, strict=True):
                w1 = transform.w1
                if not compiling and (transform.takes_real or w1.shape != shape):
                    raise InputError(f"{transform} must have w1 of shape {shape} and a complex result")
                factors += [w1.flatten(), transform.w2.flatten()]
        # one copy of all factors as they lie in memory, as then do their gradients
        entries = torch.cat(factors)
        entries = entries.to(torch.promote_types(entries.dtype, torch.float32)).view(len(layers), -1)
        parts = entries.index_select(1, self.operands).split(self.operand_sizes, 1)
        sides = [part.view(-1, *shape) for part, shape in zip(parts, self.operand_shapes, strict=True)]
        products = [(some * every).flatten(1) for some, every in zip(sides[::2], sides[1::2], strict=True)]
        terms = products[0] if len(products) == 1 else torch.cat(products, 1)
        picked = terms.index_select(1, self.places).view(-1, *self.signs.shape)
        found = iter((picked * self.signs).sum(1).flatten().split(self.sizes * len(layers)))
        return [[next(found).view(shape) for shape in self.shapes] for _ in layers]


class _Form(NamedTuple):
    """Sizes of the two sides of a product: those of which some are chosen, blocks ``l`` and ``k``, the others."""

    some: int
    l: int
    k: int
    every: int


def _form(wanted: Wanted) -> _Form:
    (k, q, p), (_, s, _) = (w.shape for w in dft(wanted.n).factors)
    return _Form(p, q, k, s) if wanted.columns else _Form(s, q, k, p)


def _grouped(forms: Sequence[_Form]) -> list[list[int]]:
    """Numbers of those that have one form, and so can be multiplied together."""
    return [[i for i, form in enumerate(forms) if form == each] for each in dict.fromkeys(forms)]


def _factor_shapes(n: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the factors as a transform stores them: complex numbers as pairs."""
    w1, w2 = dft(n).factors
    return (*w1.shape, 2), (*w2.shape, 2)


def _operands(wanted: Sequence[Wanted], groups: Sequence[Sequence[int]], chosen: Sequence[Tensor]) -> list[Tensor]:
    """Of each group two operands whose product, broadcast, is ``(t, chosen, plane, plane, l, k, ..)``.

    As places in the concatenation of the factors of all transforms. No place occurs twice.
    """
    numbers, offset = [], 0
    for w in wanted:
        for shape in _factor_shapes(w.n):
            numbers.append(offset + torch.arange(prod(shape)).view(shape))
            offset += prod(shape)
    operands = []
    for members, rows in zip(groups, chosen, strict=True):
        sides = [_sides(numbers[2 * j], numbers[2 * j + 1], wanted[j].columns) for j in members]
        some, every = (torch.stack(side) for side in zip(*sides, strict=True))
        some = some.flatten(0, 1)[rows].unflatten(0, (len(members), -1))
        operands += [some[:, :, :, None, :, :, None], every[:, None, None]]
    return operands


def _sides(w1: Tensor, w2: Tensor, columns: bool) -> tuple[Tensor, Tensor]:
    """The factor of which some are chosen, ``(.., plane, l, k)``, and the other one, ``(plane, l, k, ..)``."""
    if columns:  # of (k, l, p, plane) and (l, s, k, plane)
        return w1.permute(2, 3, 1, 0), w2.permute(3, 0, 2, 1)
    return w2.permute(1, 3, 0, 2), w1.permute(3, 1, 0, 2)


def _tables(
    wanted: Sequence[Wanted], groups: Sequence[Sequence[int]]
) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
    """What is chosen in each group; for each matrix ``(2, *shape)`` the places of the two products and their signs."""
    chosen, tables = [], {}
    offset = 0
    for members in groups:
        form = _form(wanted[members[0]])
        needed = [_coordinates(wanted[j])[0].unique() for j in members]
        n_chosen = max(len(values) for values in needed)
        for t, (j, values) in enumerate(zip(members, needed, strict=True)):
            # those that lack a few are filled up, all are different: no two gradients fall on one entry
            others = torch.tensor([i for i in range(form.some) if i not in set(values.tolist())], dtype=torch.int64)
            values = torch.cat([values, others])[:n_chosen].sort().values
            chosen.append(values + t * form.some)
            tables[j] = _places(wanted[j], form, values, t, offset)
        offset += len(members) * n_chosen * 4 * form.l * form.k * form.every
    ends = [0, *accumulate(map(len, groups))]
    return (
        [torch.cat(chosen[start:end]) for start, end in pairwise(ends)],
        [tables[j] for j in range(len(wanted))],
    )


def _coordinates(wanted: Wanted) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of every entry ``(m, n)``: the coordinate that is chosen by, ``l``, ``k``, the other coordinate."""
    parts = dft(wanted.n)
    assert parts.permutation_in is not None
    _, l, p = parts.factors.w1.shape
    every = torch.arange(wanted.n)
    column = inverse_permutation(parts.permutation_in)
    if wanted.columns:
        row, column = torch.broadcast_tensors(every, column[wanted.which][:, None])
    else:
        row, column = torch.broadcast_tensors(wanted.which[:, None], column)
    by_row, by_column = row // l, column % p
    first, second = (by_column, by_row) if wanted.columns else (by_row, by_column)
    return first, row % l, column // p, second


def _places(wanted: Wanted, form: _Form, chosen: Tensor, t: int, offset: int) -> tuple[Tensor, Tensor]:
    some, l, k, every = _coordinates(wanted)
    position = torch.zeros(form.some, dtype=torch.int64)
    position[chosen] = torch.arange(len(chosen))

    def place(plane: int, other: int) -> Tensor:
        group = ((t * len(chosen) + position[some]) * 2 + plane) * 2 + other
        return offset + ((group * form.l + l) * form.k + k) * form.every + every

    # real plane: re re - im im; imaginary plane: re im + im re
    places = torch.stack([torch.stack([place(0, 0), place(0, 1)]), torch.stack([place(1, 1), place(1, 0)])])
    signs = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=wanted.scale.dtype)[..., None, None] * wanted.scale[..., None]
    return places, signs.expand_as(places)
