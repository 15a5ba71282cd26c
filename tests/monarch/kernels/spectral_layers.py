"""A layer of spectral analysis and synthesis, and its inputs."""

import pytest
import torch
from torch.nn.functional import gelu

from sciml_monarch.monarch.kernels.spectral import spectral_analysis
from tests.helpers import needs_triton, randn

BACKENDS = ["torch", pytest.param("triton", marks=needs_triton)]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def exact_products():
    """The interpreter does not round to TF32, a GPU does."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def transposed(matrices):
    """Matrices of an analysis as those of the synthesis that is its transpose, and the reverse: ``A^H``."""
    *leading, last = matrices
    return [*(torch.stack([re.mT, -im.mT]) for re, im in leading), last.mT.contiguous()]


def tensors(grid, kept, batch, channels):
    """Fields, analysis matrices, synthesis matrices, bias, a weight for the loss; float64."""
    shapes = [(2, m, n) for m, n in zip(kept[:-1], grid[:-1], strict=True)] + [(2 * kept[-1], grid[-1])]
    analysis = [randn(*shape, seed=i) / shape[-1] ** 0.5 for i, shape in enumerate(shapes)]
    synthesis = transposed([randn(*shape, seed=9 + i) / shape[-2] ** 0.5 for i, shape in enumerate(shapes)])
    fields = randn(2, batch, channels, *grid, seed=20).unbind()
    return fields[0], analysis, synthesis, randn(channels, seed=21), fields[1]


def layer(analyse, synthesise, x, analysis, synthesis, bias):
    """A layer that uses everything: GELU in front, of which the analysis knows, skip connection, bias, GELU."""
    h = gelu(x)
    modes = analyse(h, analysis, x) if analyse is spectral_analysis else analyse(h, analysis)
    out = synthesise(torch.tanh(modes), synthesis, h, bias, "gelu")
    return out[0] if isinstance(out, tuple) else out
