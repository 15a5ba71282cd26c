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
    """

    n: int
    which: Tensor
    columns: bool
    scale: Tensor


class ThinMatrices(nn.Module):
    """Computes parts of transforms, which are given in the call; holds the places of everything, no parameters."""

    places: Tensor
    signs: Tensor

    def __init__(self, wanted: Sequence[Wanted]) -> None:
        super().__init__()
        device = torch.get_default_device()
        with torch.device("cpu"):
            wanted = [w._replace(which=w.which.cpu(), scale=w.scale.cpu()) for w in wanted]
            self.columns = [w.columns for w in wanted]
            self.groups = _grouped([_form(w) for w in wanted])
            chosen, tables = _tables(wanted, self.groups)
            self.blocks = [(*dft(w.n).factors.w1.shape, 2) for w in wanted]
        self.shapes = [place.shape[1:] for place, _ in tables]
        for i, rows in enumerate(chosen):
            self.register_buffer(f"chosen{i}", rows.to(device), persistent=False)
        places, signs = (torch.cat([t.flatten(1) for t in ts], 1) for ts in zip(*tables, strict=True))
        self.register_buffer("places", places.to(device), persistent=False)
        self.register_buffer("signs", signs.to(device, torch.get_default_dtype()), persistent=False)

    def forward(self, layers: Sequence[Sequence[MonarchTransform]]) -> list[Tensor]:
        """Computes what is wanted of the transforms of each layer.

        Args:
            layers: Of each layer as many transforms as there are wanted parts, of kind "dft" or any other whose factors
                have the same shapes and input permutation.

        Returns:
            Of each part ``(layers, 2, m, n)``: real and imaginary plane of rows, or of columns, as rows too: the
            transpose; at least float32.

        Raises:
            InputError: A transform has other blocks than a new one has (not checked while compiling).
        """
        if not torch.compiler.is_compiling():
            for transforms in layers:
                for transform, shape in zip(transforms, self.blocks, strict=True):
                    if transform.takes_real or transform.w1.shape != shape:
                        raise InputError(f"{transform} must have w1 of shape {tuple(shape)} and a complex result")
        n_layers = len(layers)
        products = []
        for i, members in enumerate(self.groups):
            pairs = [_sides(transforms[j], self.columns[j]) for transforms in layers for j in members]
            some, every = (torch.stack(side).unflatten(0, (n_layers, -1)) for side in zip(*pairs, strict=True))
            chosen: Tensor = getattr(self, f"chosen{i}")
            if len(chosen) < some.shape[1] * some.shape[2]:
                some = some.flatten(1, 2).index_select(1, chosen).unflatten(1, (len(members), -1))
            # some (layer, t, chosen, plane, l, k), every (layer, t, plane, l, k, p)
            products.append((some[:, :, :, :, None, :, :, None] * every[:, :, None, None]).flatten(1))
        terms = products[0] if len(products) == 1 else torch.cat(products, 1)
        picked = terms.index_select(1, self.places.flatten()).unflatten(1, self.places.shape)
        entries = (picked * self.signs).sum(1)
        sizes = [prod(shape) for shape in self.shapes]
        return [m.view(n_layers, *shape) for m, shape in zip(entries.split(sizes, 1), self.shapes, strict=True)]


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


def _sides(transform: MonarchTransform, columns: bool) -> tuple[Tensor, Tensor]:
    """The factor of which some are chosen, ``(.., plane, l, k)``, and the other one, ``(plane, l, k, ..)``."""
    precision = torch.promote_types(transform.w1.dtype, torch.float32)
    w1, w2 = transform.w1.to(precision), transform.w2.to(precision)  # (k, l, p, plane), (l, s, k, plane)
    if columns:
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
        n_chosen = form.some if 2 * n_chosen >= form.some else n_chosen  # all of them are one operation less
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
