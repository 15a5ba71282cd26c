"""Band-limited resampling between uniform periodic grids, as a matrix."""

import math

import torch
from torch import Tensor


def resampling_matrix(n_out: int, n_in: int) -> Tensor:
    """Trigonometric interpolation from ``n_in`` to ``n_out`` points of one period, left end included.

    Frequencies at and above the lower of the two Nyquist frequencies are dropped, except that an even grid's own
    Nyquist cosine is kept, so that the matrix of ``n_out == n_in`` is the identity. Up to the factor
    ``n_out / n_in`` the matrix of the opposite direction is its transpose.

    Args:
        n_out: Points of the grid to resample to.
        n_in: Points of the grid to resample from.

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
