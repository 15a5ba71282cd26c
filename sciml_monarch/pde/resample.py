"""Interpolation between uniform grids of one domain, as a matrix."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from sciml_monarch.errors import InputError

Interpolation = Literal["fourier", "cubic"]


def check_interpolation(kind: str) -> None:
    """Refuses a kind of interpolation that there is not.

    Raises:
        InputError: It is none of :data:`Interpolation`.
    """
    if kind not in get_args(Interpolation):
        raise InputError(f"there is no interpolation {kind!r}; choose one of {', '.join(get_args(Interpolation))}")


def interpolation_matrix(kind: Interpolation, n_out: int, n_in: int, domain: tuple[int, int] | None = None) -> Tensor:
    """Interpolation from ``n_in`` to ``n_out`` points.

    Args:
        kind: "fourier": :func:`fourier_matrix`, for periodic fields. "cubic": :func:`cubic_matrix`, for fields that
            are not, where the former rings.
        n_out: Points of the grid to interpolate to.
        n_in: Points of the grid to interpolate from.
        domain: How many of either, out and in, belong to the domain; padding follows. Fields jump between the two, so
            that cubics interpolate each by itself. By default there is no padding.

    Returns:
        ``(n_out, n_in)`` in float64.
    """
    if kind == "fourier":
        return fourier_matrix(n_out, n_in)
    if domain is None or domain == (n_out, n_in):
        return cubic_matrix(n_out, n_in)
    return torch.block_diag(cubic_matrix(*domain), cubic_matrix(n_out - domain[0], n_in - domain[1]))


def cubic_matrix(n_out: int, n_in: int) -> Tensor:
    """Interpolation from ``n_in`` to ``n_out`` points by the cubic polynomial through the four nearest points.

    Grids have the left end of the domain, not the right one, and nothing is periodic: near the ends the four outermost
    points are taken, and behind the last one their polynomial goes on. Exact for cubic polynomials; for smooth fields
    the error falls with the fourth power of the step. Going to a coarser grid removes no frequencies: those that it
    cannot hold are aliased.

    Args:
        n_out: Points of the grid to interpolate to.
        n_in: Points of the grid to interpolate from; with fewer than four the degree is lower, from none come zeros.

    Returns:
        ``(n_out, n_in)`` in float64, at most four entries a row.
    """
    if n_in == 0:
        return torch.zeros(n_out, 0, dtype=torch.float64)
    n_near = min(4, n_in)
    near = torch.arange(n_near)
    x = torch.arange(n_out, dtype=torch.float64) * n_in / n_out  # in steps of the grid to interpolate from
    first = (x.floor().long() - 1).clamp(0, n_in - n_near)
    distance = x[:, None] - first[:, None] - near  # to each of the nearest points
    others = torch.tensor([[j for j in range(n_near) if j != i] for i in range(n_near)], dtype=torch.long)
    weights = (distance[:, others] / (near[:, None] - others)).prod(2)  # Lagrange's polynomials
    return torch.zeros(n_out, n_in, dtype=torch.float64).scatter_(1, first[:, None] + near, weights)


def fourier_matrix(n_out: int, n_in: int) -> Tensor:
    """Trigonometric, band-limited interpolation from ``n_in`` to ``n_out`` points of one period, left end included.

    Frequencies at and above the lower of the two Nyquist frequencies are dropped, except that an even grid's own
    Nyquist cosine is kept, so that the matrix of ``n_out == n_in`` is the identity. Up to the factor
    ``n_out / n_in`` the matrix of the opposite direction is its transpose.

    Args:
        n_out: Points of the grid to interpolate to.
        n_in: Points of the grid to interpolate from.

    Returns:
        ``(n_out, n_in)`` in float64.
    """
    n = min(n_out, n_in)
    frequencies = torch.arange(1, (n - 1) // 2 + 1, dtype=torch.float64)
    x_out = 2 * math.pi * torch.arange(n_out, dtype=torch.float64) / n_out
    x_in = 2 * math.pi * torch.arange(n_in, dtype=torch.float64) / n_in
    phase_out, phase_in = torch.outer(x_out, frequencies), torch.outer(x_in, frequencies)
    matrix = 1 + 2 * (phase_out.cos() @ phase_in.cos().mT + phase_out.sin() @ phase_in.sin().mT)
    if n % 2 == 0:
        # cos(f (x - y)); the product of sines vanishes on the coarser grid, so that only this term is needed
        matrix = matrix + torch.outer((n // 2 * x_out).cos(), (n // 2 * x_in).cos())
    return matrix / n_in
