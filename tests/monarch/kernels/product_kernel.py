"""A kernel that does nothing but multiply two tiles."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sciml_monarch.monarch.kernels.backend import DotPrecision
from sciml_monarch.monarch.kernels.products_triton import dot


@triton.jit
def _product_kernel(a, b, start, out, BATCH: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr):
    i = tl.arange(0, N)
    at = i[:, None] * N + i[None, :]
    if BATCH:
        at = tl.arange(0, BATCH)[:, None, None] * N * N + tl.expand_dims(at, 0)
    tl.store(out + at, dot(tl.load(a + at), tl.load(b + at), tl.load(start + at), PRECISION))


def product(a: Tensor, b: Tensor, start: Tensor, precision: DotPrecision) -> Tensor:
    """``start + a b`` of square matrices, or of batches of them."""
    out = torch.empty_like(start)
    _product_kernel[(1,)](a, b, start, out, a.shape[0] if a.ndim == 3 else 0, a.shape[-1], precision)
    return out
