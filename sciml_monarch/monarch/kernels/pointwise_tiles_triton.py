"""What the kernels for channels at the points of a field share: tiles of fields and of weights, and GELU."""

# What a kernel is launched with types it.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

ROOT_HALF = tl.constexpr(0.7071067811865476)
PEAK = tl.constexpr(0.3989422804014327)  # of the normal density


@triton.jit
def normal(h):
    """The standard normal distribution function: GELU is ``h`` times it."""
    return 0.5 + 0.5 * tl.erf(h * ROOT_HALF)


@triton.jit
def load_fields(x, point, channel, n_points, CHANNELS: tl.constexpr):
    """Fields ``(points, channels)`` of a sample ``(CHANNELS, n_points)``."""
    inside = (point[:, None] < n_points) & (channel[None, :] < CHANNELS)
    return tl.load(x + channel.to(tl.int64)[None, :] * n_points + point[:, None], mask=inside, other=0.0)


@triton.jit
def load_weights(w, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """``(ROWS, COLUMNS)``, zeros beyond."""
    inside = (row[:, None] < ROWS) & (column[None, :] < COLUMNS)
    return tl.load(w + row[:, None] * COLUMNS + column[None, :], mask=inside, other=0.0)
