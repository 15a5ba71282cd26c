"""Coil sensitivity maps from physics: receive loops around the object, by the law of Biot and Savart."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sciml_monarch.errors import InputError

_RING = 1.9  # distance of the loops' centres from the axis, in half fields of view; the corners are at 1.41
_RING_GAP = 1.0  # distance between rings along the axis
_SEGMENTS = 48  # straight pieces of a loop; its field at the nearest pixel is then exact to 1e-4


def simulate_maps(
    shape: tuple[int, int],
    n_coils: int,
    seed: int | Sequence[int],
    n_rings: int = 1,
    disorder: float = 1.0,
) -> Tensor:
    """Computes the sensitivities of circular loops on one or several rings around the field of view.

    By reciprocity (Hoult and Richards, J. Magn. Reson. 24:71-85, 1976) a loop receives from a spot with the
    sensitivity with which a unit current in it would rotate spins there. In the quasi-static limit its field is

        B(r) = mu0 / (4 pi) * sum over pieces dl at r' of dl x (r - r') / |r - r'|^3,

    and with the static field along z the sensitivity is the rotating part B_x + i B_y. The maps are divided by
    their root sum of squares, which makes the unit of the field irrelevant.

    The field of view counts as a square of half width 1 around the origin ``n // 2``, in the plane z = 0. Loops sit
    at 1.9 from its centre, face it, are as wide as their share of the ring, and are moved and tilted at random. A
    coil keeps its place whatever the grid: maps of one seed on two grids are the same functions.

    Args:
        shape: Points of the grid, ``(ny, nx)``.
        n_coils: Number of loops.
        seed: Of a private generator; not negative.
        n_rings: Rings along the axis over which the loops are spread.
        disorder: Scale of the random displacements (5% of the distance, a fifth of the loops' spacing), tilts (10
            degrees) and of the angle of the first loop; 0: a perfect ring whose first loop is on the x axis.

    Returns:
        Maps ``(coil, y, x)`` complex64 with sum over coils of |S|^2 equal to 1.

    Raises:
        InputError: A number is out of range.
    """
    if n_coils < 1 or not 1 <= n_rings <= n_coils or min(shape) < 1:
        raise InputError(
            f"{n_coils} coils on {n_rings} rings and {shape[0]} x {shape[1]} points: each must be 1 or more"
        )
    if not 0 <= disorder <= 1:
        raise InputError(f"disorder={disorder} must be between 0 and 1")
    words = [seed] if isinstance(seed, int) else list(seed)
    if not words or any(word < 0 for word in words):
        raise InputError(f"a seed must not be negative, got {seed}")
    generator = np.random.default_rng(words)
    y, x = ((np.arange(n) - n // 2) / (n / 2) for n in shape)
    maps = np.empty((n_coils, *shape), dtype=np.complex128)
    turn = disorder * generator.uniform(0, 2 * math.pi)
    for coil in range(n_coils):
        ring, place = coil % n_rings, coil // n_rings
        n_on_ring = len(range(ring, n_coils, n_rings))
        spacing = 2 * math.pi / n_on_ring
        shift = generator.uniform(-1, 1, size=5) * disorder  # angle, distance, height, two tilts
        # rings are turned against each other by half a spacing, as in real arrays
        angle = turn + spacing * (place + 0.5 * (ring % 2) + 0.2 * shift[0])
        distance = _RING * (1 + 0.05 * shift[1])
        height = _RING_GAP * (ring - (n_rings - 1) / 2) + 0.05 * shift[2]
        width = min(0.6 * spacing * _RING, 1.2) / 2
        tilts = math.radians(10) * shift[3:]
        maps[coil] = _loop_field(x[None, :], y[:, None], angle, distance, height, width, (tilts[0], tilts[1]))
    maps /= np.sqrt((np.abs(maps) ** 2).sum(0))
    return torch.from_numpy(maps.astype(np.complex64))


def _loop_field(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    angle: float,
    distance: float,
    height: float,
    radius: float,
    tilts: tuple[float, float],
) -> NDArray[np.complex128]:
    """B_x + i B_y in the plane z = 0 of a loop of unit current, ``(y, x)``, up to mu0 / (4 pi)."""
    around, upwards = angle + tilts[0], tilts[1]
    # the loop's axis and two directions in its plane
    axis = np.array([math.cos(around) * math.cos(upwards), math.sin(around) * math.cos(upwards), math.sin(upwards)])
    side = np.array([-math.sin(around), math.cos(around), 0.0])
    up = np.cross(axis, side)
    center = np.array([distance * math.cos(angle), distance * math.sin(angle), height])
    turns = 2 * math.pi * (np.arange(_SEGMENTS) + 0.5) / _SEGMENTS
    field = np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=np.complex128)
    for t in turns:  # the midpoint rule on a closed curve converges exponentially
        where = center + radius * (math.cos(t) * side + math.sin(t) * up)
        along = radius * (math.cos(t) * up - math.sin(t) * side) * (2 * math.pi / _SEGMENTS)
        rx, ry, rz = x - where[0], y - where[1], -where[2]
        square = rx * rx + ry * ry + rz * rz
        cross_x = along[1] * rz - along[2] * ry
        cross_y = along[2] * rx - along[0] * rz
        field += (cross_x + 1j * cross_y) / (square * np.sqrt(square))
    return field
