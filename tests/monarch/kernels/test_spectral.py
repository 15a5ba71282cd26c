from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import gelu

from sciml_monarch import InputError
from sciml_monarch.monarch.kernels import backend as backends
from sciml_monarch.monarch.kernels import spectral_operators as operators
from sciml_monarch.monarch.kernels import spectral_products as products
from sciml_monarch.monarch.kernels import spectral_reference as reference
from sciml_monarch.monarch.kernels import transform, transform_blocked
from sciml_monarch.monarch.kernels.backend import dot_precision, use_backend
from sciml_monarch.monarch.kernels.spectral import spectral_analysis, spectral_synthesis
from tests.helpers import (
    TOLERANCE,
    interpreted_wrongly,
    let_the_compiler_learn_torch,
    needs_triton,
    randn,
    relative_error,
)
from tests.monarch.kernels import spectral_layers
from tests.monarch.kernels.spectral_layers import BACKENDS, DEVICE, layer, tensors

exact_products = spectral_layers.exact_products  # a fixture, of every test

# grid, kept modes, batch, channels: odd points, one mode, half of them, one channel, one sample, more modes than a tile
CASES = [
    ((9,), (3,), 2, 3),
    ((16,), (9,), 1, 1),
    ((8, 12), (4, 3), 2, 3),
    ((7, 9), (1, 1), 1, 2),
    ((5, 6), (5, 4), 2, 1),
    ((16, 16), (16, 9), 1, 2),
    ((70, 36), (66, 17), 1, 1),
    ((6, 5, 8), (3, 2, 5), 2, 2),
]


@pytest.fixture
def poisoned(monkeypatch):
    """Whatever is allocated and not written is NaN."""
    let_the_compiler_learn_torch()
    empty, empty_like = torch.empty, torch.empty_like

    def nan(t: Tensor) -> Tensor:
        return t.fill_(float("nan")) if t.is_floating_point() else t

    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: nan(empty(*args, **kwargs)))
    monkeypatch.setattr(torch, "empty_like", lambda *args, **kwargs: nan(empty_like(*args, **kwargs)))


def results(analyse, synthesise, inputs, weight, d):
    inputs = [t.detach().requires_grad_() for t in inputs]
    y = layer(analyse, synthesise, inputs[0], inputs[1 : 1 + d], inputs[1 + d : 1 + 2 * d], inputs[-1])
    return [y, *torch.autograd.grad(y, inputs, weight.to(y.dtype))]


def both(case, dtype, backend, matrix_dtype=None):
    """Output and all gradients: as computed, and those of the reference in float64."""
    x, analysis, synthesis, bias, weight = tensors(*case)
    inputs = [x, *analysis, *synthesis, bias]
    kinds = [dtype] + [matrix_dtype or dtype] * (len(inputs) - 1)
    inputs = [t.to(kind).to(DEVICE) for t, kind in zip(inputs, kinds, strict=True)]
    d = len(analysis)
    weight = weight.to(dtype).to(DEVICE)
    with use_backend(backend):
        actual = results(spectral_analysis, spectral_synthesis, inputs, weight, d)
    exact = [t.double() for t in inputs]
    return actual, results(reference.analysis, reference.synthesis, exact, weight.double(), d)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_reference_in_float64_with_all_gradients(case, backend, poisoned):
    actual, expected = both(case, torch.float32, backend)
    for a, b in zip(actual, expected, strict=True):
        assert relative_error(a, b) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_plain_torch_is_exact_in_float64(case):
    for a, b in zip(*both(case, torch.float64, "torch"), strict=True):
        assert relative_error(a, b) < TOLERANCE[torch.float64]


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("torch", torch.bfloat16),
        ("torch", torch.float16),
        pytest.param("triton", torch.bfloat16, marks=[needs_triton, interpreted_wrongly]),
        pytest.param("triton", torch.float16, marks=needs_triton),
    ],
    ids=str,
)
def test_half_precision_fields_with_float32_matrices(backend, dtype):
    case = ((16, 12), (6, 4), 2, 3)
    actual, expected = both(case, dtype, backend, torch.float32)
    assert actual[0].dtype == dtype
    assert all(g.dtype == torch.float32 for g in actual[2:])
    plain, _ = both(case, dtype, "torch", torch.float32)
    for a, p, b in zip(actual, plain, expected, strict=True):
        assert relative_error(a, b) < max(2 * relative_error(p, b), TOLERANCE[dtype])


@needs_triton
@interpreted_wrongly
def test_medium_precision_rounds_operands_to_bfloat16():
    torch.set_float32_matmul_precision("medium")
    actual, expected = both(((16, 12), (6, 4), 2, 3), torch.float32, "triton")
    error = relative_error(actual[0], expected[0])
    assert 1e-4 < error < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
        lambda t: t.contiguous(memory_format=torch.channels_last),
        lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
        lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),  # 4 bytes off an aligned address
    ],
    ids=["transposed", "channels last", "every second row", "unaligned"],
)
def test_any_memory_layout(backend, change):
    x, analysis, synthesis, bias, _ = tensors((8, 12), (4, 3), 2, 3)
    x, bias = x.float().to(DEVICE), bias.float().to(DEVICE)
    analysis, synthesis = ([t.float().to(DEVICE) for t in ts] for ts in (analysis, synthesis))
    with use_backend(backend):
        modes = spectral_analysis(x, analysis)
        y, before = spectral_synthesis(modes, synthesis, x, bias, "gelu")
        torch.testing.assert_close(spectral_analysis(change(x), analysis), modes)
        spread = torch.stack([modes, modes], -1).unbind(-1)[0]
        views = [m.mT.contiguous().mT for m in synthesis]
        y2, before2 = spectral_synthesis(spread, views, change(x), bias, "gelu")
    torch.testing.assert_close(y2, y)
    torch.testing.assert_close(before2, before)
    torch.testing.assert_close(gelu(before), y)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("grid", [(9,), (8, 12), (4, 6, 8)], ids=str)
def test_empty_batch(backend, grid):
    x, analysis, synthesis, bias, _ = tensors(grid, (3,) * len(grid), 1, 2)
    x, *rest = (t.float().to(DEVICE).requires_grad_() for t in (x[:0], *analysis, *synthesis, bias))
    d = len(grid)
    with use_backend(backend):
        modes = spectral_analysis(x, rest[:d])
        y, _ = spectral_synthesis(modes, rest[d:-1], None, rest[-1], "gelu")
        gradients = torch.autograd.grad(y.sum(), [x, *rest])
    assert modes.shape == (3 ** len(grid), 2, 0, 2)
    assert y.shape == x.shape
    assert all(g.shape == t.shape and not g.any() for g, t in zip(gradients, [x, *rest], strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_operators_are_well_formed(backend):
    x, analysis, synthesis, bias, _ = tensors((6, 8), (3, 2), 1, 2)
    x, bias = (t.float().to(DEVICE).requires_grad_() for t in (x, bias))
    analysis, synthesis = ([t.float().to(DEVICE).requires_grad_() for t in ts] for ts in (analysis, synthesis))
    modes = reference.analysis(x, analysis).detach().requires_grad_()
    with use_backend(backend):
        torch.library.opcheck(operators._analysis, (x, analysis, False, None, False))
        torch.library.opcheck(operators._analysis, (x, synthesis, True, None, False))
        torch.library.opcheck(operators._synthesis, (modes, synthesis, False, x, bias, True, False))
        torch.library.opcheck(operators._synthesis, (modes, analysis, True, None, None, False, False))
        for matrices, adjoint in ((analysis, False), (synthesis, True)):
            for asked in ((True, False), (False, True), (False, False)):
                inputs = (x.detach(), modes.detach(), [m.detach() for m in matrices], adjoint, True, *asked, False)
                torch.library.opcheck(operators._gradients, inputs)


@pytest.mark.parametrize("conjugate", [False, True])
def test_sums_in_parts_are_the_same(conjugate):
    """As GPUs compute them."""
    y, x = randn(1, 5, 24), randn(1, 24, 7)
    torch.testing.assert_close(products.weigh_in_parts(y, x, 4), products.TORCH.weigh(y, x))
    g, z = randn(2, 3, 24), randn(2, 24, 7, seed=1)
    expected = products.TORCH.weigh_planes(g, z, conjugate)
    for n_parts in (1, 4):
        torch.testing.assert_close(products.weigh_planes_in_parts(g, z, conjugate, n_parts), expected)
    with FakeTensorMode():
        found = [products.parts_of_rows(torch.empty(1, rows, 2, device="cuda")) for rows in (40960, 8320, 99, 8)]
    assert found == [64, 52, 1, 2]


def test_precision_set_the_newer_way():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    assert dot_precision(torch.float32) == "tf32x3"
    try:
        matmul.fp32_precision = "tf32"
        assert dot_precision(torch.float32) == "tf32"
        matmul.fp32_precision = "ieee"
        assert dot_precision(torch.float32) == "tf32x3"
    finally:
        matmul.fp32_precision = before
    torch.set_float32_matmul_precision("medium")
    assert dot_precision(torch.float32) == "bf16"


@pytest.mark.parametrize(("shared_bytes", "usable"), [(232_448, True), (166_912, False)], ids=["Hopper", "Ampere"])
def test_kernels_are_for_multiprocessors_that_their_configurations_fit(shared_bytes, usable, monkeypatch):
    monkeypatch.setattr(backends, "_has_triton", lambda: True)
    monkeypatch.setattr(backends, "_fits", backends._fits.__wrapped__)  # answers are kept otherwise
    properties = SimpleNamespace(shared_memory_per_block_optin=shared_bytes)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    with FakeTensorMode():
        x = torch.empty(3, device="cuda")
        assert backends.triton_usable(x) is usable
        with use_backend("triton"), nullcontext() if usable else pytest.raises(InputError, match="shared memory"):
            assert backends.wants_triton(x, measured_faster=False)


def test_without_gradients_the_results_are_the_same():
    x, analysis, synthesis, bias, _ = tensors((8, 12), (4, 3), 2, 2)
    inputs = [t.requires_grad_() for t in (x, *analysis, *synthesis, bias)]
    expected = layer(spectral_analysis, spectral_synthesis, inputs[0], inputs[1:3], inputs[3:5], inputs[5])
    with torch.no_grad():
        y = layer(spectral_analysis, spectral_synthesis, inputs[0], inputs[1:3], inputs[3:5], inputs[5])
    assert relative_error(y, expected) < TOLERANCE[torch.float64]


def test_a_transform_asks_nothing_of_a_gpu():
    """The answer would have to be waited for; a tensor that is none has no answer."""
    with FakeTensorMode():
        w1, w2, place = (torch.empty(shape, device="cuda") for shape in ((2, 2, 3), (2, 3, 2), (6,)))
        before, _ = transform_blocked.sides(w1, w2, place, None)
        assert before.view(torch.empty(6, 4, device="cuda")).shape == (2, 3, 4)
        with use_backend("auto"):
            assert not transform._served(torch.empty(2, 6, device="cuda"), w1, w2)


def test_autocast_gives_half_precision():
    x, analysis, synthesis, bias, _ = tensors((8, 8), (4, 3), 2, 2)
    x, bias = x.float(), bias.float()
    analysis, synthesis = ([t.float() for t in ts] for ts in (analysis, synthesis))
    expected, _ = spectral_synthesis(spectral_analysis(x, analysis), synthesis, x, bias, "gelu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, before = spectral_synthesis(spectral_analysis(x, analysis), synthesis, x, bias, "gelu")
    assert y.dtype == before.dtype == torch.bfloat16
    assert relative_error(y, expected) < TOLERANCE[torch.bfloat16]


def test_shapes_that_do_not_fit_are_named():
    x, analysis, synthesis, _, _ = tensors((6, 8), (3, 2), 1, 2)
    with pytest.raises(InputError, match=r"grid \(6, 8\) cannot take fields of shape \(1, 2, 6, 7\)"):
        spectral_analysis(x[..., :7], analysis)
    modes = spectral_analysis(x, analysis)
    with pytest.raises(InputError, match="matrices for 6 modes"):
        spectral_synthesis(modes[:5], synthesis)
    with pytest.raises(InputError, match="skip connection of shape"):
        spectral_synthesis(modes, synthesis, x[:, :1])
    with use_backend("triton"), pytest.raises(InputError, match=r"cannot take a torch\.float64"):
        spectral_analysis(x, analysis)


@pytest.mark.parametrize("backend", ["auto", "torch", pytest.param("triton", marks=needs_triton)])
def test_a_compiler_takes_the_layer_whole(backend):
    """Plain torch, which it fuses, or the operators, which it calls and which keep less."""
    x, analysis, synthesis, bias, weight = tensors((6, 8), (3, 5), 2, 2)
    inputs = [t.float().to(DEVICE) for t in (x, *analysis, *synthesis, bias)]
    weight = weight.float().to(DEVICE)
    graphs = []

    def watch(graph, example):
        graphs.append(str(graph.graph))
        return graph

    def whole(*tensors):
        return layer(spectral_analysis, spectral_synthesis, tensors[0], tensors[1:3], tensors[3:5], tensors[5])

    with use_backend(backend):
        expected = results(spectral_analysis, spectral_synthesis, inputs, weight, 2)
        inputs = [t.requires_grad_() for t in inputs]
        y = torch.compile(whole, fullgraph=True, backend=watch)(*inputs)
        found = [y, *torch.autograd.grad(y, inputs, weight)]
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < TOLERANCE[torch.float32]
    assert ("sciml_monarch" in graphs[0]) == (backend != "torch")
