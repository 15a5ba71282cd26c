"""Exact symmetries of an equation, as augmentation of its trajectories.

An isometry of the periodic domain maps a field w to ``w'(x) = sign * w(A x + t)`` with a signed permutation A of the
axes. It is a symmetry of an equation if it maps every solution to a solution. On a uniform grid such a map only moves
points, so that augmented data is as exact as the data itself; symmetries that do not map the grid to itself are left
out.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.pde.description import Description

FNO_FORCING = "0.1 (sin 2 pi (x + y) + cos 2 pi (x + y))"
"""The forcing of FNO's data, as the attribute ``forcing`` of simulated data has it."""
NO_FORCING = "none"
"""The attribute ``forcing`` of data without one."""


@dataclass(frozen=True)
class Isometry:
    """A map of fields, ``w'(x) = sign * w(y)`` with ``y[a] = direction[a] * x[axes[a]] + shift[a]``, periodic.

    Attributes:
        axes: For each axis of the old field, the axis of the new one whose coordinate it follows.
        directions: 1 or -1 for each axis.
        shift: For each axis, in units of the domain's length.
        sign: 1 or -1; what the map does to the values.
    """

    axes: tuple[int, ...]
    directions: tuple[int, ...]
    shift: tuple[float, ...]
    sign: int = 1

    def after(self, first: "Isometry") -> "Isometry":
        """The composition: applies ``first``, then this."""
        d = range(len(self.axes))
        return Isometry(
            tuple(self.axes[first.axes[a]] for a in d),
            tuple(first.directions[a] * self.directions[first.axes[a]] for a in d),
            tuple((first.directions[a] * self.shift[first.axes[a]] + first.shift[a]) % 1.0 for a in d),
            self.sign * first.sign,
        )

    def inverse(self) -> "Isometry":
        """The map that undoes this one."""
        old = [self.axes.index(a) for a in range(len(self.axes))]  # by each axis of the new field
        return Isometry(
            tuple(old),
            tuple(self.directions[a] for a in old),
            tuple(-self.directions[a] * self.shift[a] % 1.0 for a in old),
            self.sign,
        )


def identity(n_axes: int) -> Isometry:
    """The map that changes nothing."""
    return Isometry(tuple(range(n_axes)), (1,) * n_axes, (0.0,) * n_axes)


class SymmetryGroup:
    """Symmetries of an equation on a periodic domain: some isometries, and translations along some directions.

    A draw is one of the isometries followed by a translation by a random number of grid points along each direction,
    the same for all frames and fields of a trajectory.

    Args:
        isometries: One of each coset of the translations, the identity among them.
        translations: Directions in whole grid steps, for example ``(1, -1)``; empty for none.
        forcing: The forcing of the equation, as the attribute ``forcing`` of data names it; ``None``: any.

    Raises:
        InputError: The isometries or directions have different numbers of axes.
    """

    def __init__(
        self,
        isometries: Sequence[Isometry],
        translations: Sequence[tuple[int, ...]] = (),
        forcing: str | None = None,
    ) -> None:
        self.isometries = tuple(isometries)
        self.forcing = forcing
        self.translations = tuple(translations)
        counts = {len(i.axes) for i in self.isometries} | {len(t) for t in self.translations}
        if len(counts) != 1 or not self.isometries:
            raise InputError(f"a symmetry group needs isometries and directions of one number of axes, not {counts}")
        self.n_axes = counts.pop()

    def draw(self, n: int, grid: Sequence[int], generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draws an element of the group for each of ``n`` trajectories.

        Args:
            n: Trajectories.
            grid: Points per axis.
            generator: Of the draws, on the CPU; torch's own if ``None``.

        Returns:
            ``choice (n,)``, which isometry, and ``steps (n, n_translations)``, how many grid steps along each
            direction; int64 on the CPU.
        """
        choice = torch.randint(len(self.isometries), (n,), generator=generator)
        steps = torch.randint(math.lcm(*grid), (n, len(self.translations)), generator=generator)
        return choice, steps

    def apply(self, fields: Tensor, choice: Tensor, steps: Tensor) -> Tensor:
        """Applies one element to each trajectory.

        Args:
            fields: ``(b, ..., *grid)``: any frames and fields of ``b`` trajectories.
            choice: ``(b,)`` of :meth:`draw`.
            steps: ``(b, n_translations)`` of :meth:`draw`.

        Returns:
            The transformed fields, of the same shape.

        Raises:
            InputError: An isometry does not map this grid to itself.
        """
        grid = tuple(fields.shape[-self.n_axes :])
        self.check(grid)
        device = fields.device
        shifts = torch.tensor([[round(t * n) for t, n in zip(i.shift, grid, strict=True)] for i in self.isometries])
        shift = shifts[choice]
        if self.translations:
            shift = shift + steps @ torch.tensor(self.translations)
        elements = torch.tensor([[*i.axes, *i.directions, i.sign] for i in self.isometries])[choice]
        # one copy, and none that waits until the GPU has done what it was given before
        elements = torch.cat([elements, shift], 1).to(device, non_blocking=True)
        axes, directions, sign, shift = elements.split([self.n_axes, self.n_axes, 1, self.n_axes], 1)
        axes_of_points = (torch.arange(n, device=device) for n in grid)
        points = torch.stack(torch.meshgrid(*axes_of_points, indexing="ij")).flatten(1)  # (d, points)
        source = torch.zeros(len(fields), points.shape[1], dtype=torch.int64, device=device)
        for a, n in enumerate(grid):
            along = directions[:, a, None] * points[axes[:, a]] + shift[:, a, None]  # (b, points)
            source = source * n + along % n
        flat = fields.flatten(-self.n_axes).reshape(len(fields), -1, points.shape[1])
        moved = flat.gather(2, source[:, None].expand_as(flat)) * sign[:, :, None].to(fields.dtype)
        return moved.reshape(fields.shape)

    def symmetrized(self, predict: Callable[[Tensor], Tensor], fields: Tensor) -> Tensor:
        """The mean of ``g^-1 predict(g fields)`` over the isometries ``g``.

        A solution moved by a symmetry is a solution, a network's prediction is not quite: the mean has less error, as
        that of several networks has. It commutes with the isometries as far as predictions commute with translations,
        over which no mean is taken: a mean over them too was no better.

        Args:
            predict: From fields to fields, of the same grid.
            fields: ``(b, ..., *grid)``.

        Returns:
            The mean, of the shape of a prediction; it takes as many predictions as there are isometries.

        Raises:
            InputError: An isometry does not map this grid to itself.
        """
        back = SymmetryGroup([isometry.inverse() for isometry in self.isometries])
        moved_back = []
        for number in range(len(self.isometries)):
            choice = torch.full((len(fields),), number)
            unmoved = torch.zeros(len(fields), len(self.translations), dtype=torch.int64)
            moved_back.append(back.apply(predict(self.apply(fields, choice, unmoved)), choice, unmoved))
        return torch.stack(moved_back).mean(0)

    def check(self, grid: Sequence[int]) -> None:
        """Checks that every isometry maps a grid to itself.

        Raises:
            InputError: A shift is no whole number of grid steps, axes that are swapped differ in length, or the
                number of axes is another.
        """
        if len(grid) != self.n_axes:
            raise InputError(f"a symmetry group of {self.n_axes} axes does not act on the grid {tuple(grid)}")
        for i in self.isometries:
            for a, n in enumerate(grid):
                if grid[i.axes[a]] != n:
                    raise InputError(f"a symmetry swaps axes of {grid[i.axes[a]]} and {n} points; they must be equal")
                if abs(i.shift[a] * n - round(i.shift[a] * n)) > 1e-9:
                    raise InputError(
                        f"a symmetry shifts by {i.shift[a]:g} of the domain, which is no whole number of steps of "
                        f"{n} points; take a multiple of {round(1 / i.shift[a])}"
                    )

    def check_data(self, description: Description) -> None:
        """Checks that the group acts on trajectories of some data.

        Args:
            description: Of the data.

        Raises:
            InputError: There are several fields (an isometry moves one scalar field, no components of vectors), the
                domain or the grid is not mapped to itself, or the data is of another forcing.
        """
        if len(description.fields) != 1:
            raise InputError(f"a symmetry moves one scalar field; the data has {', '.join(description.fields)}")
        self.check(description.grid)
        lengths = description.lengths
        for i in self.isometries:
            for a, length in enumerate(lengths):
                if not math.isclose(lengths[i.axes[a]], length, rel_tol=1e-6):
                    raise InputError(
                        f"a symmetry swaps axes of the lengths {lengths[i.axes[a]]} and {length}; they must be equal"
                    )
        forcing = description.attributes.get("forcing")
        if self.forcing is not None and forcing is not None and forcing != self.forcing:
            raise InputError(f"the symmetry is of an equation with forcing {self.forcing!r}, the data's is {forcing!r}")


def fno_forced_navier_stokes() -> SymmetryGroup:
    """Symmetries of the 2-D vorticity equation with the forcing of FNO's data, which depends on x + y alone.

    Translations along (1, -1); the swap of the axes with a change of sign and half a period along one of them,
    ``w'(x, y) = -w(y, x + 1/2)``; the rotation by 180 degrees with a quarter of a period,
    ``w'(x, y) = w(1/4 - x, -y)``. Grids of a multiple of 4 points.
    """
    swap = Isometry((1, 0), (1, 1), (0.0, 0.5), -1)
    rotation = Isometry((0, 1), (-1, -1), (0.25, 0.0))
    return SymmetryGroup((identity(2), swap, rotation, swap.after(rotation)), ((1, -1),), FNO_FORCING)


def free_navier_stokes() -> SymmetryGroup:
    """Symmetries of the 2-D vorticity equation without forcing: translations, quarter turns, and reflections.

    A reflection changes the sign of vorticity.
    """
    turn = Isometry((1, 0), (1, -1), (0.0, 0.0))
    mirror = Isometry((0, 1), (-1, 1), (0.0, 0.0), -1)
    turns = [identity(2)]
    for _ in range(3):
        turns.append(turn.after(turns[-1]))
    return SymmetryGroup((*turns, *(mirror.after(t) for t in turns)), ((1, 0), (0, 1)), NO_FORCING)


GroupName = Literal["fno_forced_navier_stokes", "free_navier_stokes"]
GROUPS: dict[GroupName, Callable[[], SymmetryGroup]] = {
    "fno_forced_navier_stokes": fno_forced_navier_stokes,
    "free_navier_stokes": free_navier_stokes,
}
