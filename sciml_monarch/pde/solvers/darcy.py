r"""Darcy flow on the unit square, ``-div(a grad u) = 1`` with ``u = 0`` on the walls.

The FNO paper's second example (Li et al., ICLR 2021, section 5.2): the permeability ``a`` is 12 where a Gaussian random
field is positive and 3 elsewhere; the field has covariance ``(-Laplace + 9)^-2`` with zero slope at the walls.
"""

import numpy as np
import scipy.sparse as sparse
from scipy.sparse.linalg import spsolve

from sciml_monarch.errors import InputError

HIGH, LOW = 12.0, 3.0
INVERSE_LENGTH_SQUARED = 9.0


def permeability(n: int, seed: int) -> np.ndarray:
    """Draws a permeability.

    Args:
        n: Intervals per axis.
        seed: Of the random field; the field does not depend on ``n`` but for what a finer grid adds.

    Returns:
        12 or 3 at the points ``i / n``, ``i = 0 .. n`` of each axis, ``(n + 1, n + 1)`` float64.
    """
    rng = np.random.default_rng(seed)
    k = np.arange(n + 1)
    # drawn in shells, so that another n has the same coarse part
    noise = np.zeros((n + 1, n + 1))
    for shell in range(n + 1):
        values = rng.standard_normal(2 * shell + 1)
        noise[shell, : shell + 1] = values[: shell + 1]
        noise[:shell, shell] = values[shell + 1 :]
    noise[0, 0] = 0.0  # no mean: half of the domain is of each kind
    spectrum = noise / (np.pi**2 * (k[:, None] ** 2 + k**2) + INVERSE_LENGTH_SQUARED)
    cosines = np.cos(np.pi * np.outer(k, k) / n)
    field = cosines @ spectrum @ cosines.T
    return np.where(field > 0, HIGH, LOW)


def solve_darcy(a: np.ndarray) -> np.ndarray:
    """Solves for the pressure with the conservative five-point scheme, fluxes by the harmonic mean of neighbours.

    Second order where ``a`` is smooth; exact fluxes across layers that end between two points.

    Args:
        a: Permeability at the points ``i / n`` of each axis, walls included, ``(n + 1, n + 1)``, positive.

    Returns:
        Pressure at the same points.

    Raises:
        InputError: ``a`` is not square, has fewer than three points an axis, or is not positive.
    """
    if a.ndim != 2 or a.shape[0] != a.shape[1] or a.shape[0] < 3:
        raise InputError(f"the permeability must be square with 3 points an axis at least, but has shape {a.shape}")
    if not np.all(a > 0):
        raise InputError("the permeability must be positive everywhere")
    n = len(a) - 1
    number = np.arange((n + 1) ** 2).reshape(n + 1, n + 1)
    rows, columns, fluxes = [], [], []
    for a_along, number_along in ((a, number), (a.T, number.T)):
        one, other = a_along[:-1].ravel(), a_along[1:].ravel()
        first, second = number_along[:-1].ravel(), number_along[1:].ravel()
        through = 2 * one * other / (one + other)
        rows += [first, second, first, second]
        columns += [first, second, second, first]
        fluxes += [through, through, -through, -through]
    matrix = sparse.csc_matrix(
        (np.concatenate(fluxes), (np.concatenate(rows), np.concatenate(columns))), shape=(number.size, number.size)
    )
    inside = number[1:-1, 1:-1].ravel()
    u = np.zeros(number.size)
    u[inside] = spsolve(matrix[inside][:, inside], np.full(len(inside), 1 / n**2))
    return u.reshape(n + 1, n + 1)
