from contextlib import nullcontext

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.functional import conv1d, gelu

from sciml_monarch.monarch import MonarchConv1x1
from sciml_monarch.monarch.kernels.backend import replayed
from sciml_monarch.pde import mixing, pointwise
from sciml_monarch.pde import perceptron as perceptrons
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
    torch.library.opcheck(pointwise._mlp, (flat, w1, b1, w2, b2, False))
    torch.library.opcheck(pointwise._linear, (flat, w1, None, None, False))
    torch.library.opcheck(pointwise._linear, (flat, w1, flat.detach().clone(), b1, False))


def test_gradients_of_gradients_are_exact():
    shapes = [(2, 2, 2, 3), (3, 2), (3,), (2, 3), (2,)]
    inputs = [randn(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    assert torch.autograd.gradgradcheck(pointwise_mlp, inputs)

    def behind_an_activation(source, weight):
        return pointwise_linear(gelu(source), weight, source)

    assert torch.autograd.gradgradcheck(behind_an_activation, inputs[:2])


def test_only_wanted_gradients_are_computed_and_the_same():
    for wanted in range(5):
        inputs = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(arguments())]
        (found,) = torch.autograd.grad(pointwise_mlp(*inputs).square().sum(), inputs[wanted])
        (expected,) = torch.autograd.grad(plain_mlp(*inputs).square().sum(), inputs[wanted])
        assert relative_error(found, expected) < TOLERANCE[torch.float64]
    x, w1, b1, w2, b2 = (t.detach().flatten(2) if t.ndim == 4 else t.detach() for t in arguments())
    gradient, needs = torch.ones(3, 2, 30).double(), [False] * 4 + [True]
    found = pointwise._mlp_gradients(gradient, x, w1, b1, w2, b2.dtype, needs, False)
    assert [t.numel() for t in found] == [0, 0, 0, 0, 2]


def test_fields_are_not_kept_for_frozen_weights():
    x, weight, *_ = arguments()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        pointwise_linear(x, weight.detach())
    assert x.data_ptr() not in kept


def test_transforms_of_torch_func_see_through_both_maps():
    x, *rest = arguments()
    for function, plain, weights in (
        (pointwise_mlp, plain_mlp, rest),
        (pointwise_linear, lambda x, w: conv1d(x.flatten(2), w[..., None]).view(3, 7, 5, 6), rest[:1]),
    ):
        inputs = [t.detach() for t in (x, *weights)]
        tangents = tuple(torch.ones_like(t) for t in inputs)
        _, tangent = torch.func.jvp(function, tuple(inputs), tangents)
        assert relative_error(tangent, torch.func.jvp(plain, tuple(inputs), tangents)[1]) < TOLERANCE[torch.float64]
        with forward_ad.dual_level():
            y = function(*(forward_ad.make_dual(t, v) for t, v in zip(inputs, tangents, strict=True)))
            assert relative_error(forward_ad.unpack_dual(y).tangent, tangent) < TOLERANCE[torch.float64]

        def loss(w, x, function=function, others=inputs[2:]):
            return function(x[None], w, *others).square().sum()

        found = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(inputs[1], inputs[0])
        w = inputs[1].requires_grad_()
        (expected,) = torch.autograd.grad(plain(inputs[0], w, *inputs[2:]).square().sum(), w)
        assert relative_error(found.sum(0), expected) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_gradients_of_biases_do_not_overflow_in_half_precision(compiled):
    """A sum of 4 x 5 x 6 times 1000 is more than half precision has, and less than float32 has."""
    inputs = [t.detach().requires_grad_() for t in arguments(torch.float32, batch=4)]
    function = torch.compile(pointwise_mlp, fullgraph=True, backend="aot_eager") if compiled else pointwise_mlp
    with torch.autocast("cpu", dtype=torch.float16):
        y = function(*inputs)
    assert y.dtype == torch.float16
    y.backward(torch.full_like(y, 1000))
    torch.testing.assert_close(inputs[4].grad, torch.full((2,), 120_000.0))
    assert all(t.grad.dtype == torch.float32 for t in inputs)
    assert inputs[2].grad.isfinite().all()


def test_without_gradients_the_results_are_the_same():
    x, w1, b1, w2, b2 = arguments()
    with torch.no_grad():
        found = pointwise_mlp(x, w1, b1, w2, b2), pointwise_linear(x, w1)
    for a, b in zip(found, (pointwise_mlp(x, w1, b1, w2, b2), pointwise_linear(x, w1)), strict=True):
        assert relative_error(a, b) < TOLERANCE[torch.float64]


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


@pytest.mark.parametrize("traced_as_exported", [False, True])
def test_a_compiler_is_given_operators_whatever_torch_says_of_exporting(traced_as_exported, monkeypatch):
    """torch 2.11 traces ``torch.compiler.is_exporting()`` as true in everything that is compiled."""
    if traced_as_exported:
        monkeypatch.setattr(torch.compiler, "is_exporting", lambda: torch.compiler.is_compiling())
    x, w1, b1, w2, b2 = arguments(torch.float32)
    seen = []

    def keep(module, _):
        seen.extend(str(node.target) for node in module.graph.nodes)
        return module.forward

    def network(x):
        return pointwise_mlp(x, w1, b1, w2, b2) + pointwise_linear(x, w2 @ w1)

    torch.compiler.reset()
    found = torch.compile(network, backend=keep, fullgraph=True)(x)
    torch.compiler.reset()
    assert {"sciml_monarch.pointwise_mlp.default", "sciml_monarch.pointwise_linear.default"} <= set(seen)
    assert relative_error(found, network(x)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("bias", [False, True])
def test_a_monarch_map_of_many_points_is_one_matrix_in_a_graph_too(bias, monkeypatch):
    layer, x = mixing.pointwise(16, 24, bias, blocks=4), torch.randn(2, 16, 32, 32, requires_grad=True)
    assert isinstance(layer, MonarchConv1x1)
    taken = []
    monkeypatch.setattr(perceptrons, "pointwise_linear", lambda *a, **k: taken.append(a) or pointwise_linear(*a, **k))
    found = []
    for context in (nullcontext(), replayed()):
        with context:
            y = perceptrons.apply_linear(layer, x)
        found.append([y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])])
    with replayed():
        perceptrons.apply_linear(layer, x[:, :, :2, :2])  # few points
    assert len(taken) == 1
    for plain, graphed in zip(*found, strict=True):
        torch.testing.assert_close(graphed, plain, rtol=1e-4, atol=1e-3)


def test_a_monarch_perceptron_of_many_points_keeps_no_hidden_channels(monkeypatch):
    net, x = perceptrons.perceptron(16, 64, 8, 2, None), torch.randn(2, 16, 32, 32)
    assert isinstance(net[0], MonarchConv1x1)
    taken = []
    monkeypatch.setattr(perceptrons, "pointwise_mlp", lambda *a: taken.append(a) or pointwise_mlp(*a))
    torch.testing.assert_close(perceptrons.apply_perceptron(net, x), net(x.flatten(2)).unflatten(2, (32, 32)))
    assert len(taken) == 1


@pytest.mark.parametrize("bias", [False, True])
def test_in_a_graph_a_map_of_channels_has_the_operators_gradients_and_not_a_convolutions(bias, monkeypatch):
    layer, x = torch.nn.Conv1d(5, 70, 1, bias=bias), torch.randn(2, 5, 4, 6, requires_grad=True)
    taken = []
    monkeypatch.setattr(perceptrons, "pointwise_linear", lambda *a, **k: taken.append(a) or pointwise_linear(*a, **k))
    found = []
    for context in (nullcontext(), replayed()):
        with context:
            y = perceptrons.apply_linear(layer, x)
        found.append([y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])])
    assert len(taken) == 1
    for plain, graphed in zip(*found, strict=True):
        torch.testing.assert_close(graphed, plain, rtol=1e-5, atol=1e-4)
