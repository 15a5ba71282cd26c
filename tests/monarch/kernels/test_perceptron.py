"""Two linear maps of the channels at every point with a GELU between them, in one kernel."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import conv1d, gelu

from sciml_monarch.errors import InputError
from sciml_monarch.monarch.kernels.backend import replayed, use_backend
from sciml_monarch.monarch.kernels.pointwise import perceptron_asked, perceptron_fits
from sciml_monarch.pde import pointwise
from sciml_monarch.pde.pointwise import pointwise_mlp
from tests.helpers import HALF, TOLERANCE, needs_triton, randn, relative_error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# batch, channels in, hidden, out, points
SHAPES = [
    (2, 32, 128, 1, 300),  # the projection of a network of one field
    (3, 20, 128, 3, 70),
    (1, 1, 1, 1, 1),
    (2, 33, 64, 16, 65),
    (1, 64, 120, 2, 129),
    (2, 5, 40, 1, 64),
]


def tensors(shape, dtype=torch.float32):
    """Fields, weights and biases, and the gradient of the output, of size one."""
    b, i, h, o, n = shape
    sizes = [((b, i, n), 1), ((h, i), i), ((h,), 1), ((o, h), h), ((o,), 1), ((b, o, n), 1)]
    drawn = [randn(*size, seed=k) / fan**0.5 for k, (size, fan) in enumerate(sizes)]
    # biases are never rounded to half precision
    return [t.to(torch.float32 if k in (2, 4) else dtype).to(DEVICE) for k, t in enumerate(drawn)]


def plain(x, w1, b1, w2, b2):
    return conv1d(gelu(conv1d(x, w1[..., None], b1)), w2[..., None], b2)


def results(function, inputs, g):
    """Output and the gradients of all inputs."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    y = function(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, g)]


def check(shape, dtype):
    *inputs, g = tensors(shape, dtype)
    exact = results(plain, [t.double() for t in inputs], g.double())
    with use_backend("torch"):
        usual = results(pointwise_mlp, inputs, g)
    with use_backend("triton"):
        found = results(pointwise_mlp, inputs, g)
    for ours, theirs, e in zip(found, usual, exact, strict=True):
        assert ours.dtype == theirs.dtype
        assert relative_error(ours, e) < 2 * relative_error(theirs, e) + 0.1 * TOLERANCE[dtype]


@needs_triton
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_exact_as_torch(shape, poisoned, precision):
    precision("highest")
    check(shape, torch.float32)


@needs_triton
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_as_exact_as_torch_in_half_precision(shape, dtype, poisoned):
    check(shape, dtype)


@pytest.mark.cuda
@pytest.mark.parametrize(("wanted", "allowed"), [("high", 3e-3), ("medium", 2e-2)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_lower_precisions(shape, wanted, allowed, precision, poisoned):
    precision(wanted)
    *inputs, g = tensors(shape)
    exact = results(plain, [t.double() for t in inputs], g.double())
    with use_backend("triton"):
        found = results(pointwise_mlp, inputs, g)
    for ours, e in zip(found, exact, strict=True):
        assert relative_error(ours, e) < allowed


@needs_triton
@pytest.mark.parametrize("points", [32, 64])
@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_tiles_compute_the_same(shape, points, poisoned, precision):
    from sciml_monarch.monarch.kernels import perceptron_triton
    from sciml_monarch.monarch.kernels.perceptron_triton import Tile

    precision("highest")
    *inputs, g = tensors(shape)
    exact = results(plain, [t.double() for t in inputs], g.double())
    y = perceptron_triton.perceptron(*inputs, Tile(points, points // 16))
    sums = perceptron_triton.perceptron_gradients(g, *inputs[:4], Tile(points, points // 16))
    for ours, e in zip((y, *sums), exact, strict=False):
        assert relative_error(ours, e) < TOLERANCE[torch.float32]


@needs_triton
def test_rows_that_are_not_contiguous_and_pointers_that_are_not_aligned():
    *inputs, g = tensors((2, 5, 40, 3, 64))
    exact = results(plain, [t.double() for t in inputs], g.double())

    def shifted(t):
        room = t.new_zeros(t.numel() + 1)
        room[1:] = t.flatten()
        return room[1:].view(t.shape)

    x, *others = inputs
    turned = x.mT.contiguous().mT
    assert not turned.is_contiguous()
    for given in ([turned, *others], [shifted(t) for t in inputs]):
        with use_backend("triton"):
            found = results(pointwise_mlp, given, g)
        for ours, e in zip(found, exact, strict=True):
            assert relative_error(ours, e) < TOLERANCE[torch.float32]


@needs_triton
def test_what_a_program_cannot_hold_goes_another_way_and_is_right(monkeypatch):
    from sciml_monarch.monarch.kernels import perceptron_triton

    monkeypatch.setattr(perceptron_triton, "perceptron", lambda *_: pytest.fail("took what does not fit"))
    for shape in ((2, 16, 129, 1, 20), (2, 65, 128, 1, 20), (2, 16, 64, 17, 20), (0, 16, 64, 1, 20)):
        *inputs, _ = tensors(shape)
        with use_backend("triton"):
            y = pointwise_mlp(*inputs)
        exact = plain(*(t.double() for t in inputs))
        assert relative_error(y, exact) < TOLERANCE[torch.float32] if shape[0] else y.shape == (0, 1, 20)


def test_sizes_that_fit():
    for inputs, hidden, outputs, taken in (
        (64, 128, 16, True),
        (128, 64, 1, True),
        (128, 16, 1, True),
        (129, 16, 1, False),
        (65, 128, 1, False),
        (16, 129, 1, False),
        (16, 16, 17, False),
    ):
        w1, w2 = torch.empty(hidden, inputs), torch.empty(outputs, hidden)
        assert perceptron_fits(w1, w2) == taken


def test_auto_takes_the_kernels_where_they_were_timed():
    def asked(inputs, hidden, outputs=1, **kind):
        with FakeTensorMode():
            x = torch.empty(16, inputs, 4096, **({"device": "cuda"} | kind))
            return perceptron_asked(x, torch.empty(hidden, inputs), torch.empty(outputs, hidden))

    assert all(asked(inputs, 128) for inputs in (20, 32, 48, 64))
    assert not any(asked(*sizes) for sizes in ((16, 128), (65, 128), (32, 64), (32, 129), (32, 128, 2)))
    assert not asked(32, 128, device="cpu")
    assert not asked(32, 128, dtype=torch.bfloat16)
    with replayed():
        assert asked(32, 128, dtype=torch.bfloat16)
        assert not asked(32, 128, dtype=torch.float16)


@needs_triton
def test_a_backward_pass_follows_the_forward_pass_unless_it_is_told_otherwise(monkeypatch):
    from sciml_monarch.monarch.kernels import perceptron_triton

    calls = []
    gradients = perceptron_triton.perceptron_gradients
    monkeypatch.setattr(perceptron_triton, "perceptron_gradients", lambda *a: calls.append(1) or gradients(*a))
    *inputs, g = tensors((2, 5, 40, 1, 64))
    inputs = [t.requires_grad_() for t in inputs]
    with use_backend("triton"):
        y = pointwise_mlp(*inputs)
    torch.autograd.grad(y, inputs, g, retain_graph=True)
    assert len(calls) == 1
    with use_backend("torch"):
        torch.autograd.grad(y, inputs, g, retain_graph=True)
    assert len(calls) == 1


@needs_triton
def test_kernels_compute_no_gradients_that_are_not_wanted(monkeypatch):
    from sciml_monarch.monarch.kernels import perceptron_triton

    wrong = "computed gradients of frozen weights"
    monkeypatch.setattr(perceptron_triton, "perceptron_gradients", lambda *_: pytest.fail(wrong))
    x, w1, *others, g = tensors((2, 5, 40, 1, 64))
    with use_backend("triton"):
        (found,) = torch.autograd.grad(pointwise_mlp(x.requires_grad_(), w1, *others), x, g)
    (expected,) = torch.autograd.grad(plain(x, w1, *others), x, g)
    assert relative_error(found, expected) < TOLERANCE[torch.float32]


@needs_triton
def test_the_operators_are_well_formed_with_kernels():
    *inputs, g = tensors((2, 5, 40, 1, 64))
    with use_backend("triton"):
        torch.library.opcheck(pointwise._mlp, ([t.requires_grad_() for t in inputs] + [True])[:6])
        x, w1, b1, w2, _ = (t.detach() for t in inputs)
        torch.library.opcheck(pointwise._mlp_gradients, (g, x, w1, b1, w2, torch.float32, [True] * 5, True))


def test_kernels_that_cannot_run_are_refused():
    *inputs, _ = tensors((2, 5, 40, 1, 64))
    with use_backend("triton"), pytest.raises(InputError, match="float32"):
        pointwise_mlp(*(t.double() for t in inputs))
