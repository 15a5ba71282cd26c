import pytest
import torch
from torch.nn.functional import conv1d, gelu

from sciml_monarch.pde import pointwise
from sciml_monarch.pde.pointwise import pointwise_linear, pointwise_mlp
from tests.helpers import TOLERANCE, randn, relative_error


def arguments(dtype=torch.float64, batch=3):
    shapes = [(batch, 4, 5, 6), (7, 4), (7,), (2, 7), (2,)]
    return [randn(*shape, seed=i).to(dtype).requires_grad_() for i, shape in enumerate(shapes)]


def plain_mlp(x, w1, b1, w2, b2):
    hidden = gelu(conv1d(x.flatten(2), w1[..., None], b1))
    return conv1d(hidden, w2[..., None], b2).unflatten(2, x.shape[2:])


@pytest.mark.parametrize("piece_bytes", [1, 2 * 7 * 30 * 8, 10**9], ids=["one sample", "two samples", "all"])
def test_perceptron_in_pieces_equals_convolutions_with_all_gradients(piece_bytes, monkeypatch):
    monkeypatch.setattr(pointwise, "PIECE_BYTES", piece_bytes)
    inputs = arguments()
    y, expected = pointwise_mlp(*inputs), plain_mlp(*inputs)
    weight = randn(*y.shape, seed=9)
    for a, b in zip(
        (y, *torch.autograd.grad(y, inputs, weight)),
        (expected, *torch.autograd.grad(expected, inputs, weight)),
        strict=True,
    ):
        assert relative_error(a, b) < TOLERANCE[torch.float64]


def test_linear_map_of_an_activation_keeps_what_is_in_front_of_it():
    source, weight, *_ = arguments()
    x = gelu(source)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        y = pointwise_linear(x, weight, source)
    assert source.data_ptr() in kept
    assert x.data_ptr() not in kept
    expected = conv1d(gelu(source).flatten(2), weight[..., None]).view_as(y)
    g = randn(*y.shape, seed=9)
    for a, b in zip(
        (y, *torch.autograd.grad(y, (source, weight), g)),
        (expected, *torch.autograd.grad(expected, (source, weight), g)),
        strict=True,
    ):
        assert relative_error(a, b) < TOLERANCE[torch.float64]


def test_operators_are_well_formed():
    x, w1, b1, w2, b2 = arguments(torch.float32)
    flat = x.flatten(2).detach().requires_grad_()
    torch.library.opcheck(pointwise._mlp, (flat, w1, b1, w2, b2))
    torch.library.opcheck(pointwise._linear, (flat, w1, None))
    torch.library.opcheck(pointwise._linear, (flat, w1, flat.detach().clone()))


def test_empty_batch():
    inputs = arguments(batch=0)
    y = pointwise_mlp(*inputs)
    assert y.shape == (0, 2, 5, 6)
    assert all(g.shape == t.shape for g, t in zip(torch.autograd.grad(y.sum(), inputs), inputs, strict=True))


def test_autocast_gives_half_precision():
    inputs = arguments(torch.float32)
    expected = plain_mlp(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = pointwise_mlp(*inputs)
        assert pointwise_linear(inputs[0], inputs[1]).dtype == y.dtype == torch.bfloat16
    assert relative_error(y, expected) < TOLERANCE[torch.bfloat16]
    y.float().sum().backward()
    assert all(t.grad.dtype == torch.float32 for t in inputs)
