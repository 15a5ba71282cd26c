"""How the modes of spectral kernels are cut, whatever their number, and what descriptors are kept from."""

from itertools import product

import pytest
import torch

from sciml_monarch.monarch.kernels import spectral_products as products
from sciml_monarch.monarch.kernels.spectral_configs import (
    GRADIENTS,
    SHARED_BYTES,
    Config,
    Problem,
    candidates,
    choose,
    fits,
    served,
    shared_bytes,
    tiles,
)
from tests.helpers import needs_triton, randn, relative_error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
N_MODES = (16, 24, 32, 48, 64, 96, 128)
PRECISIONS = ((4, "tf32x3"), (4, "tf32"), (4, "bf16"), (2, "native"))


@pytest.mark.parametrize(("itemsize", "precision"), PRECISIONS)
@pytest.mark.parametrize("kernel", ["analysis", "synthesis", *GRADIENTS])
def test_ordinary_numbers_of_modes_are_served(kernel, itemsize, precision):
    """A gradient may be left to plain torch, a transform not; what is said beforehand is what is chosen."""
    for m, last in product(N_MODES, N_MODES):
        problem = Problem(kernel, 256, 256, m, last // 2 + 1, itemsize, precision)
        assert served(problem) == any(True for _ in candidates(problem)), problem
        if not served(problem):
            assert kernel in GRADIENTS, problem
            with pytest.raises(LookupError):
                choose(problem)
            continue
        assert fits(problem, choose(problem)), problem
        assert shared_bytes(problem, choose(problem)) <= SHARED_BYTES


def test_modes_are_cut_no_finer_than_they_have_to():
    whole = tiles(Problem("synthesis", 256, 256, 64, 33, 4, "tf32"))
    assert (whole.modes, whole.main, whole.rest) == (64, 64, 16)
    cut = tiles(Problem("analysis", 256, 256, 32, 65, 4, "tf32x3"))
    assert cut.modes == 32
    assert cut.main + cut.rest < 2 * 65


@needs_triton
@pytest.mark.parametrize("precision", ["high", "highest"])
@pytest.mark.parametrize("shape", [(16, 65), (48, 49), (128, 33)])
def test_cut_modes_are_computed_right(shape, precision):
    """Tiles that nothing but a cut lets run; in the interpreter, which multiplies exactly."""
    from sciml_monarch.monarch.kernels import spectral_triton

    (m, k), (n1, n2) = shape, (32, 32)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        x = randn(1, 1, n1, n2).float().to(DEVICE)
        z = randn(m * k, 1, 2, seed=1).float().to(DEVICE)
        analysis = [randn(2, m, n1, seed=2).float().to(DEVICE), randn(2 * k, n2, seed=3).float().to(DEVICE)]
        synthesis = [randn(2, n1, m, seed=4).float().to(DEVICE), randn(n2, 2 * k, seed=5).float().to(DEVICE)]
        modes = spectral_triton.analysis(x, *analysis, False)
        field, _ = spectral_triton.synthesis(z, *synthesis, False)
    finally:
        torch.set_float32_matmul_precision(before)
    tolerance = 3e-3 if precision == "high" and DEVICE == "cuda" else 4e-6
    assert relative_error(modes, products.analysis(x.double(), [a.double() for a in analysis])) < tolerance
    assert relative_error(field, products.synthesis(z.double(), [s.double() for s in synthesis])) < tolerance


@needs_triton
@pytest.mark.parametrize("unaligned", ["leading", "last"])
def test_matrices_that_start_anywhere_go_by_pointers(unaligned):
    from sciml_monarch.monarch.kernels import spectral_triton

    x = randn(1, 1, 16, 16).float().to(DEVICE)
    matrices = {"leading": randn(2, 4, 16, seed=2).float(), "last": randn(6, 16, seed=3).float()}
    matrices = {name: matrix.to(DEVICE) for name, matrix in matrices.items()}
    shape = matrices[unaligned].shape
    moved = torch.cat([torch.zeros(1, device=DEVICE), matrices[unaligned].flatten()])[1:].view(shape)
    assert moved.is_contiguous()
    assert moved.data_ptr() % 16
    matrices[unaligned] = moved
    config = Config(1, 64, 16, 4, 1, descriptors=True)
    modes = spectral_triton.analysis(x, matrices["leading"], matrices["last"], False, config)
    expected = products.analysis(x.double(), [matrix.double() for matrix in matrices.values()])
    assert relative_error(modes, expected) < 2e-6


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
