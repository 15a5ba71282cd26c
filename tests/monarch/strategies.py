"""Hypothesis strategies for factors of every shape."""

import math

import torch
from hypothesis import strategies as st

from sciml_monarch.monarch import Factors
from tests.helpers import randn

DTYPES = st.sampled_from([torch.float64, torch.complex128])


@st.composite
def factors(draw, batch=()):
    """Draws factors: square or not, ``k != l`` or equal, real or complex."""
    k, l, p, s = (draw(st.integers(1, 5)) for _ in range(4))
    q = l // math.gcd(k, l) * draw(st.integers(1, 3))
    dtype, seed = draw(DTYPES), draw(st.integers(0, 1000))
    w1 = randn(*batch, k, q, p, dtype=dtype, seed=seed)
    return Factors(w1, randn(*batch, l, s, k * q // l, dtype=dtype, seed=seed + 1))


@st.composite
def matrices(draw):
    """Draws ``(matrix, (k, l), rank)``: a dense matrix that the blocks divide, and a valid rank."""
    k, l, p, s = (draw(st.integers(1, 5)) for _ in range(4))
    rank = draw(st.one_of(st.none(), st.integers(1, min(p, s))))
    matrix = randn(s * l, k * p, dtype=draw(DTYPES), seed=draw(st.integers(0, 1000)))
    return matrix, (k, l), rank
