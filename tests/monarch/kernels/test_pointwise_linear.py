"""The backward pass of a linear map of the channels at every point, in one kernel."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import conv1d, gelu

from sciml_monarch.monarch.kernels.backend import replayed, use_backend
from sciml_monarch.monarch.kernels.pointwise import linear_asked, linear_fits
from sciml_monarch.pde import pointwise
from sciml_monarch.pde.pointwise import pointwise_linear
from tests.helpers import HALF, TOLERANCE, needs_triton, randn, relative_error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# batch, channels in, out, points
SHAPES = [(2, 32, 32, 300), (3, 12, 20, 70), (1, 1, 1, 1), (2, 33, 64, 65), (1, 128, 64, 129), (2, 64, 128, 64)]


def tensors(shape, dtype=torch.float32):
    """Fields before the activation, weight, bias, and the gradient of the output."""
    b, i, o, n = shape
    drawn = randn(b, i, n, seed=1), randn(o, i, seed=2) / i**0.5, randn(o, seed=3), randn(b, o, n, seed=4)
    # a bias is never rounded to half precision
    return [t.to(torch.float32 if k == 2 else dtype).to(DEVICE) for k, t in enumerate(drawn)]


def results(shape, dtype, activated, with_bias, given, function):
    source, weight, bias, g = given
    inputs = [t.detach().requires_grad_() for t in (source, weight, bias)[: 2 + with_bias]]
    y = function(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, g)]


def ours(activated):
    def run(source, weight, bias=None):
        x, before = (gelu(source), source) if activated else (source, None)
        return pointwise_linear(x, weight, before, bias)

    return run


def plain(activated):
    return lambda source, weight, bias=None: conv1d(gelu(source) if activated else source, weight[..., None], bias)


def check(shape, dtype, activated, with_bias, backend="triton", allowed=None):
    given = tensors(shape, dtype)
    exact = results(shape, dtype, activated, with_bias, [t.double() for t in given], plain(activated))
    with use_backend("torch"):
        usual = results(shape, dtype, activated, with_bias, given, ours(activated))
    with use_backend(backend):
        found = results(shape, dtype, activated, with_bias, given, ours(activated))
    for a, b, e in zip(found, usual, exact, strict=True):
        assert a.dtype == b.dtype
        assert relative_error(a, e) < (allowed or 2 * relative_error(b, e) + 0.1 * TOLERANCE[dtype])


@needs_triton
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("activated", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_exact_as_torch(shape, activated, with_bias, poisoned, precision):
    precision("highest")
    check(shape, torch.float32, activated, with_bias)


@needs_triton
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_as_exact_as_torch_in_half_precision(shape, dtype, poisoned):
    check(shape, dtype, True, True)


@pytest.mark.cuda
@pytest.mark.parametrize(("wanted", "allowed"), [("high", 3e-3), ("medium", 2e-2)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_lower_precisions(shape, wanted, allowed, precision, poisoned):
    precision(wanted)
    check(shape, torch.float32, True, True, allowed=allowed)


@needs_triton
def test_inputs_that_need_no_gradient_cost_none(poisoned):
    source, weight, bias, g = tensors((2, 12, 32, 70))
    weight, bias = weight.requires_grad_(), bias.requires_grad_()
    with use_backend("triton"):
        found = torch.autograd.grad(pointwise_linear(source, weight, None, bias), (weight, bias), g)
    source, weight, bias, g = (t.detach().double().requires_grad_() for t in (source, weight, bias, g))
    exact = torch.autograd.grad(conv1d(source, weight[..., None], bias), (weight, bias), g)
    for a, b in zip(found, exact, strict=True):
        assert relative_error(a, b) < TOLERANCE[torch.float32]


@needs_triton
def test_pointers_that_are_not_aligned_and_gradients_that_are_not_contiguous(precision):
    precision("highest")
    source, weight, bias, g = tensors((2, 12, 32, 64))
    exact = results(None, None, True, True, [t.double() for t in (source, weight, bias, g)], plain(True))

    def shifted(t):
        room = t.new_zeros(t.numel() + 1)
        room[1:] = t.flatten()
        return room[1:].view(t.shape)

    turned = g.mT.contiguous().mT
    for given in ([*(shifted(t) for t in (source, weight, bias)), turned], [source, weight, bias, shifted(g)]):
        with use_backend("triton"):
            found = results(None, None, True, True, given, ours(True))
        for a, b in zip(found, exact, strict=True):
            assert relative_error(a, b) < TOLERANCE[torch.float32]


@needs_triton
def test_what_a_program_cannot_hold_goes_another_way_and_is_right(monkeypatch):
    from sciml_monarch.monarch.kernels import pointwise_linear_triton

    wrong = "took what does not fit"
    monkeypatch.setattr(pointwise_linear_triton, "linear_gradients", lambda *_: pytest.fail(wrong))
    for shape in ((2, 129, 16, 20), (2, 16, 129, 20), (2, 65, 128, 20)):
        check(shape, torch.float32, True, True)
    source, weight, bias, g = tensors((0, 16, 8, 20))
    with use_backend("triton"):
        y, *gradients = results(None, None, True, True, (source, weight, bias, g), ours(True))
    assert y.shape == (0, 8, 20)
    assert not any(t.any() for t in gradients)


def test_sizes_that_fit():
    sizes = {(64, 128): True, (128, 64): True, (128, 16): True, (65, 128): False, (16, 129): False}
    for shape, taken in sizes.items():
        assert linear_fits(torch.empty(shape)) == taken


def asked(points=4096, width=32, outputs=32, kind="cuda", dtype=torch.float32):
    with FakeTensorMode():
        return linear_asked(torch.empty(16, width, points, device=kind, dtype=dtype), (outputs, width))


def test_auto_takes_the_kernel_where_it_was_timed(monkeypatch):
    with replayed():
        assert asked()
        assert asked(width=12)
        assert asked(width=64, outputs=64)
        assert not asked(width=65)
        assert not asked(outputs=65)
        assert not asked(kind="cpu")
        assert asked(dtype=torch.bfloat16)
        assert not asked(dtype=torch.float16)
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            assert asked()
            assert not asked(dtype=torch.bfloat16)
        with use_backend("torch"):
            assert not asked()
    assert not asked()
    assert asked(points=2**17)
    assert not asked(points=2**17, dtype=torch.bfloat16)
    with use_backend("triton"):
        assert asked(kind="cpu")


@needs_triton
def test_the_operators_are_well_formed_with_the_kernel():
    source, weight, bias, g = tensors((2, 12, 32, 64))
    inputs = [t.requires_grad_() for t in (source, weight, bias)]
    with use_backend("triton"):
        torch.library.opcheck(pointwise._linear, (inputs[0], inputs[1], source.detach().clone(), inputs[2], True))
        kept, weight = source.detach(), weight.detach()
        torch.library.opcheck(pointwise._linear_gradients, (g, kept, weight, True, True, True, True))
        torch.library.opcheck(pointwise._linear_gradients, (g, kept, weight, False, False, False, True))
