"""How thin products are cut, whatever the number of modes, and that each way to cut them computes the same."""

from contextlib import nullcontext
from itertools import product
from math import prod
from types import SimpleNamespace

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
PRECISIONS = ((4, "tf32x3"), (4, "tf32"), (4, "tf32_left"), (4, "bf16"), (2, "native"))


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
        x, y = randn(2, 70, columns, seed=1).to(DEVICE), randn(2, modes, 70, seed=2).to(DEVICE)
        matrix, planes = randn(modes, columns, seed=3).to(DEVICE), randn(2, modes, columns, seed=4).to(DEVICE)
        runs = {
            "narrow": (spectral_triton.narrow, TORCH.narrow, (x, matrix)),
            "widen": (lambda *a: spectral_triton.widen(*a[:2], None, a[2])[0], TORCH.widen, (y, matrix.mT)),
            "weigh": (spectral_triton.weigh, TORCH.weigh, (y, x)),
            "narrow_planes": (spectral_triton.narrow_planes, TORCH.narrow_planes, (x, planes, True, 14)),
            "turn": (spectral_triton.turn, TORCH.turn, (y, planes.mT, True)),
            "weigh_planes": (spectral_triton.weigh_planes, TORCH.weigh_planes, (y, x, True)),
        }
        run, plain, given = runs[kernel]
        single = [t.float() if isinstance(t, torch.Tensor) else t for t in given]
        for config in configs:
            assert relative_error(run(*single, config), plain(*given)) < 2e-6, config


@needs_triton
@pytest.mark.parametrize("conjugate", [False, True])
@pytest.mark.parametrize("inner", [None, 6])
def test_planes_are_complex_numbers(conjugate, inner, precision):
    """The formulas of plain torch against complex products, and the kernels against both."""
    from sciml_monarch.monarch.kernels import spectral_triton

    precision("highest")
    z, matrix = randn(2, 12, 20, seed=1).to(DEVICE), randn(2, 7, 20, seed=2).to(DEVICE)
    whole, rows = torch.complex(*matrix), torch.complex(*z)
    whole = whole.conj() if conjugate else whole
    modes = torch.view_as_real(whole @ rows.mT).movedim(-1, 0)
    expected = modes if inner is None else modes.reshape(2, -1, inner).transpose(0, 1)
    back = torch.view_as_real(torch.complex(*modes).mT @ whole).movedim(-1, 0)
    g = torch.complex(*modes) @ rows.conj()
    weights = torch.view_as_real((g.conj() if conjugate else g).resolve_conj()).movedim(-1, 0)
    for by, kind in ((TORCH, torch.float64), (spectral_triton.KERNELS, torch.float32)):
        a, b, c = (t.to(kind) for t in (z, matrix, modes.contiguous()))
        for found, right in (
            (by.narrow_planes(a, b, conjugate, inner), expected),
            (by.turn(c, b.mT, conjugate), back),
            (by.weigh_planes(c, a, conjugate), weights),
        ):
            assert relative_error(found, right) < (1e-14 if kind == torch.float64 else 1e-6)


@needs_triton
@pytest.mark.parametrize("left_to_cublas", [False, True])
def test_what_is_measured_to_be_fastest_computes_the_same(left_to_cublas, monkeypatch):
    from sciml_monarch.monarch.kernels import spectral_triton

    monkeypatch.setattr(spectral_triton, "_left_to_cublas", lambda *_: left_to_cublas)
    x, y, matrix = randn(1, 12, 20, seed=1), randn(1, 7, 12, seed=2), randn(7, 20, seed=3)
    z, g, planes = randn(2, 12, 20, seed=4), randn(2, 7, 12, seed=5), randn(2, 7, 20, seed=6)
    inputs = ((x, matrix), (y, matrix.mT), (y, x), (z, planes, False, 6), (g, planes.mT, False), (g, z, False))
    for name, fast, plain, given in zip(TORCH._fields, spectral_triton.FASTEST, TORCH, inputs, strict=True):
        single = [t.float().to(DEVICE) if isinstance(t, torch.Tensor) else t for t in given]
        assert relative_error(fast(*single).cpu(), plain(*given)) < 2e-6, name


@needs_triton
@pytest.mark.parametrize(
    ("wanted", "n", "left"), [("high", 2**21, True), ("high", 2**21 - 1, False), ("highest", 2**21, False)]
)
def test_cublas_has_large_products_in_tf32(wanted, n, left, precision):
    from sciml_monarch.monarch.kernels import spectral_triton

    precision(wanted)
    assert spectral_triton._left_to_cublas(torch.empty(n, device="meta")) == left


@needs_triton
@pytest.mark.parametrize("wanted", ["highest", "high", "medium"])
@pytest.mark.parametrize("large", [False, True])
def test_matrices_of_large_products_in_tf32_are_rounded_before(large, wanted, precision, monkeypatch):
    from sciml_monarch.monarch.kernels import spectral_triton

    rounded = []

    def noted(matrix):
        rounded.append(matrix)
        return round_to_tf32(matrix)

    round_to_tf32 = spectral_triton.round_to_tf32
    monkeypatch.setattr(spectral_triton, "round_to_tf32", noted)
    monkeypatch.setattr(spectral_triton, "ROUND_FIRST", 12 * 20 if large else 2 * 12 * 20 + 1)
    x, matrix = randn(1, 12, 20, seed=1), randn(7, 20, seed=2)
    z, planes = randn(2, 12, 20, seed=3), randn(2, 7, 20, seed=4)
    precision(wanted)
    products = spectral_triton.narrow, spectral_triton.narrow_planes
    for product_, plain, given in zip(
        products, (TORCH.narrow, TORCH.narrow_planes), ((x, matrix), (z, planes, False, 6)), strict=True
    ):
        single = [t.float().to(DEVICE) if isinstance(t, torch.Tensor) else t for t in given]
        error = relative_error(product_(*single).cpu(), plain(*given))
        if DEVICE == "cuda":  # of rounding both operands; to drop bits would be twice that
            assert error < {"highest": 2e-6, "high": 4.2e-4, "medium": 3.5e-3}[wanted]
        elif wanted != "medium":  # whose products the interpreter gets wrong
            assert error < 2e-6
    assert len(rounded) == (2 if large and wanted == "high" else 0)


@needs_triton
@pytest.mark.cuda
@pytest.mark.skipif(
    DEVICE == "cpu", reason="Triton's interpreter rounds nothing; that it is compiled, test_compiled sees"
)
def test_rounded_numbers_are_the_nearest_in_tf32():
    from sciml_monarch.monarch.kernels.spectral_triton import round_to_tf32

    x = torch.cat([randn(3000, seed=1).float(), torch.tensor([0.0, -0.0, 1.0, 3e38, 1e-38, float("inf")])]).to(DEVICE)
    bits = x.view(torch.int32)
    expected = ((bits + 0x1000) & ~0x1FFF).view(torch.float32)  # halves away from zero
    assert torch.equal(round_to_tf32(x), expected)


@pytest.mark.parametrize(
    ("shape", "graph", "precision", "kernels"),
    [
        ((20, 32, 64, 64), True, "high", True),
        ((20, 32, 64, 64), False, "highest", False),
        ((16, 64, 256, 256), False, "highest", True),
        ((16, 64, 256, 256), False, "high", False),
    ],
)
def test_auto_is_for_what_was_measured(shape, graph, precision, kernels, monkeypatch):
    """Without a GPU: a tensor that says that it is on one."""
    from sciml_monarch.monarch.kernels import spectral
    from sciml_monarch.monarch.kernels.backend import replayed, use_backend

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    field = SimpleNamespace(is_cuda=True, dtype=torch.float32, numel=lambda: prod(shape))
    try:
        with replayed() if graph else nullcontext():
            assert spectral._asked(field) == kernels
            with use_backend("torch"):
                assert not spectral._asked(field)
        field.dtype = torch.bfloat16
        with replayed() if graph else nullcontext():
            assert spectral._asked(field) == graph
        with replayed():
            assert spectral._asked(field, spectral.MOST_TIMED_BFLOAT16)
            assert not spectral._asked(field, spectral.MOST_TIMED_BFLOAT16 + 1)
            monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
            assert not spectral._asked(field, 2**20)
            monkeypatch.undo()
        field.dtype = torch.float16
        with replayed():
            assert not spectral._asked(field)
    finally:
        torch.set_float32_matmul_precision(before)


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
