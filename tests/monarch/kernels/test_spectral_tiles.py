"""How thin products are cut, whatever the number of modes, and that each way to cut them computes the same."""

from itertools import product

import pytest
import torch

from sciml_monarch.monarch.kernels.backend import KERNEL_SHARED_BYTES
from sciml_monarch.monarch.kernels.spectral_configs import (
    KERNELS,
    Config,
    Problem,
    candidates,
    choose,
    fits,
    shared_bytes,
    tiles,
)
from sciml_monarch.monarch.kernels.spectral_products import TORCH
from tests.helpers import needs_triton, randn, relative_error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
N_MODES = (1, 2, 18, 26, 34, 48, 66, 97, 128, 130, 258)
COLUMNS = (5, 64, 100, 256, 1024)
PRECISIONS = ((4, "tf32x3"), (4, "tf32"), (4, "bf16"), (2, "native"))


@pytest.mark.parametrize(("itemsize", "precision"), PRECISIONS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_number_of_modes_is_served(kernel, itemsize, precision):
    for modes, columns in product(N_MODES, COLUMNS):
        problem = Problem(kernel, columns, modes, itemsize, precision)
        offered = list(candidates(problem))
        assert len(offered) == len(set(offered))
        assert choose(problem) in offered, problem
        assert all(fits(problem, config) for config in offered)
        assert all(shared_bytes(problem, config) <= KERNEL_SHARED_BYTES for config in offered)


def test_modes_are_padded_no_more_than_they_have_to():
    assert tiles(66) == (64, 16)
    assert tiles(26) == (32, 0)
    assert tiles(1) == (16, 0)
    assert tiles(128) == (128, 0)
    assert tiles(130) == (128, 0)  # two programs


@pytest.fixture
def precision():
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


@needs_triton
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_candidate_computes_the_same(kernel, precision):
    """On shapes with tails in all directions; warps and stages do not exist in the interpreter."""
    from sciml_monarch.monarch.kernels import spectral_triton

    precision("highest")
    for columns, modes in ((100, 66), (36, 130)):
        configs = list(candidates(Problem(kernel, columns, modes, 4, "tf32x3")))
        if DEVICE == "cpu":
            configs = list({Config(c.rows, c.cols, c.depth, 4, 1) for c in configs})
        assert len(configs) >= 3
        x, y = randn(2, 150, columns, seed=1).to(DEVICE), randn(2, modes, 150, seed=2).to(DEVICE)
        matrix = randn(modes, columns, seed=3).to(DEVICE)
        for config in configs:
            if kernel == "narrow":
                found = spectral_triton.narrow(x.float(), matrix.float(), config)
                expected = TORCH.narrow(x, matrix)
            elif kernel == "widen":
                found, _ = spectral_triton.widen(y.float(), matrix.mT.float(), None, config)
                expected = TORCH.widen(y, matrix.mT)
            else:
                found, expected = spectral_triton.weigh(y.float(), x.float(), config), TORCH.weigh(y, x)
            assert relative_error(found, expected) < 2e-6, config


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_kernels_run_where_their_tensors_lie():
    """The current device is another one."""
    from sciml_monarch.monarch import MonarchLinear, MonarchTransform
    from sciml_monarch.monarch.kernels.backend import use_backend
    from sciml_monarch.pde import MonarchSpectralConv

    assert torch.cuda.current_device() == 0
    cases = [
        (MonarchLinear(64, 64), randn(8, 64).float()),
        (MonarchTransform(20), randn(3, 20, dtype=torch.complex64)),
        (MonarchSpectralConv(2, 2, (4, 4), (16, 16)), randn(1, 2, 16, 16).float()),
    ]
    for layer, x in cases:
        with use_backend("torch"):
            expected = layer(x)
        layer, x = layer.to("cuda:1"), x.to("cuda:1").requires_grad_()
        with use_backend("triton"):
            y = layer(x)
            y.abs().sum().backward()
        assert y.device == torch.device("cuda", 1)
        assert relative_error(y.cpu(), expected) < 1e-5
        assert x.grad.isfinite().all()
