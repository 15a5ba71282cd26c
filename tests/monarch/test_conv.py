import copy

import pytest
import torch
from torch import nn

from sciml_monarch import InputError
from sciml_monarch.monarch import MonarchConv1D, MonarchConv1x1, MonarchLinear
from sciml_monarch.monarch.conv import FEWEST_POINTS, MOST_MULTIPLIED
from sciml_monarch.monarch.layers import to_dense_layer, to_monarch
from tests.helpers import TOLERANCE, randn, relative_error
from tests.monarch.layers import Conv1D

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 0), ((1, 3, 2), (2, 0, 1))], ids=str)
@pytest.mark.parametrize("n_dim", [1, 2, 3])
def test_full_rank_convolution_computes_the_same(n_dim, stride, padding, bias):
    stride, padding = (v if isinstance(v, int) else v[:n_dim] for v in (stride, padding))
    conv = CONVS[n_dim](6, 10, 1, stride, padding, bias=bias, dtype=torch.float64)
    layer, error = to_monarch(conv, 2, 3, "project")
    assert isinstance(layer, MonarchConv1x1)
    assert error < 1e-12
    for shape in ((2, 6, 7, 5, 4), (6, 7, 5, 4)):
        x = randn(*shape[: len(shape) - 3 + n_dim]).requires_grad_()
        y = layer(x)
        torch.testing.assert_close(y, conv(x), rtol=1e-12, atol=1e-12)
        assert y.is_contiguous()
        torch.testing.assert_close(*(torch.autograd.grad(f(x).square().sum(), x)[0] for f in (layer, conv)))
    again = to_dense_layer(layer)
    assert type(again) is type(conv)
    assert (again.stride, again.padding, again.kernel_size) == (conv.stride, conv.padding, conv.kernel_size)
    torch.testing.assert_close(again.weight, conv.weight, rtol=1e-12, atol=1e-12)
    assert again.bias is conv.bias


@pytest.mark.parametrize(
    ("n_dim", "memory_format"), [(2, torch.channels_last), (3, torch.channels_last_3d)], ids=["2d", "3d"]
)
def test_memory_format_is_that_of_the_input(n_dim, memory_format):
    conv = CONVS[n_dim](8, 8, 1)
    layer, _ = to_monarch(conv, 2, None, "project")
    x = torch.randn(2, 8, *(3,) * n_dim).contiguous(memory_format=memory_format)
    assert layer(x).is_contiguous(memory_format=memory_format)
    assert layer(x.contiguous()).is_contiguous()
    torch.testing.assert_close(layer(x), layer(x.contiguous()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_precision(dtype):
    conv = nn.Conv2d(12, 20, 1, dtype=torch.float64)
    layer, _ = to_monarch(conv, 4, None, "project")
    for p in layer.parameters():
        p.data = p.to(dtype).double()
    x = randn(2, 12, 4, 4, dtype=dtype)
    expected = layer(x.double())
    assert relative_error(copy.deepcopy(layer).to(dtype)(x), expected) < TOLERANCE[dtype]


def test_transposed_weights_of_hugging_face():
    dense = Conv1D(10, 6).double()
    layer, error = to_monarch(dense, 2, 3, "project")
    assert isinstance(layer, MonarchConv1D)
    assert (layer.nf, layer.nx) == (10, 6)
    assert error < 1e-12
    x = randn(2, 3, 6)
    torch.testing.assert_close(layer(x), dense(x), rtol=1e-12, atol=1e-12)
    again = to_dense_layer(layer)
    assert type(again) is Conv1D
    torch.testing.assert_close(again(x), dense(x), rtol=1e-12, atol=1e-12)
    assert again.weight.is_contiguous()


def test_convolution_exports():
    layer = MonarchConv1x1(MonarchLinear(8, 8, blocks=2), (2, 2))
    x = torch.randn(2, 8, 6, 6)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    x = torch.randn(3, 8, 6, 6)
    torch.testing.assert_close(program.module()(x), layer(x))


def test_convolution_exports_for_all_grids():
    layer = MonarchConv1x1(MonarchLinear(8, 12, blocks=2), (1, 1))
    axes = {i: torch.export.Dim(name, min=4) for i, name in ((2, "h"), (3, "w"))}
    program = torch.export.export(layer, (torch.randn(3, 8, 40, 40),), dynamic_shapes=(axes,))
    for shape in ((3, 8, 6, 50), (3, 8, 60, 40)):
        x = torch.randn(shape)
        torch.testing.assert_close(program.module()(x), layer(x))


def by_factors(layer, x):
    d = len(layer.stride)
    return layer.linear(x.movedim(-d - 1, -1)).movedim(-1, -d - 1)


@pytest.fixture
def calls(monkeypatch):
    """How often a Monarch matrix was applied by its factors."""
    seen = []
    forward = MonarchLinear.forward
    monkeypatch.setattr(MonarchLinear, "forward", lambda self, x: (seen.append(1), forward(self, x))[1])
    return seen


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 6, FEWEST_POINTS), (3, 6, 20, 20), (6, 12, 12, 12), (2, 6, 8, 8, 8)], ids=str)
def test_of_many_points_the_matrix_is_multiplied_out(shape, bias, calls):
    n_dim = len(shape) - 1 if shape[0] == 6 else len(shape) - 2
    layer = MonarchConv1x1(MonarchLinear(6, 10, bias, blocks=2, dtype=torch.float64), (1,) * n_dim)
    x, g = randn(*shape).requires_grad_(), randn(*shape[: -n_dim - 1], 10, *shape[-n_dim:])
    leaves = [x, *layer.parameters()]
    found, wanted = layer(x), by_factors(layer, x)
    assert calls == [1]  # by the reference
    assert found.is_contiguous()
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(*(torch.autograd.grad(y, leaves, g) for y in (found, wanted)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_the_factors_are_applied_where_that_is_faster_or_more_is_done(calls):
    def layer(channels=8):
        return MonarchConv1x1(MonarchLinear(channels, channels, blocks=2), (1,))

    few, many = torch.randn(1, 8, FEWEST_POINTS - 1), torch.randn(1, 8, FEWEST_POINTS)
    layer()(few)
    layer(MOST_MULTIPLIED + 2)(torch.randn(1, MOST_MULTIPLIED + 2, FEWEST_POINTS))
    assert len(calls) == 2
    watched = layer()
    watched.linear.register_forward_hook(lambda module, inputs, output: 2 * output)
    torch.testing.assert_close(watched(many), 2 * watched.linear.forward(many.mT).mT)
    assert len(calls) == 4
    layer()(many)
    assert len(calls) == 4
    assert layer()(many[:0]).shape == (0, 8, FEWEST_POINTS)


def test_under_autocast_factors_are_rounded_once_and_the_bias_not_at_all():
    layer = MonarchConv1x1(MonarchLinear(8, 8, blocks=2), (1,))
    x = torch.randn(4, 8, FEWEST_POINTS)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    with torch.no_grad():
        matrix = layer.linear.weight.bfloat16().float()
        exact = matrix @ x.bfloat16().float() + layer.linear.bias[:, None]
    assert relative_error(y, exact) < TOLERANCE[torch.bfloat16]
    (found,) = torch.autograd.grad(y, layer.linear.bias, torch.ones_like(y))
    assert torch.equal(found, torch.full((8,), 4.0 * FEWEST_POINTS))


def test_bad_input_is_named():
    layer = MonarchConv1x1(MonarchLinear(8, 8, blocks=2), (1, 1))
    for shape in ((8, 5), (2, 7, 5, 5), (1, 2, 8, 5, 5)):
        with pytest.raises(InputError, match=r"must be \(b, 8, \*grid\) or \(8, \*grid\) with 2 axes"):
            layer(torch.zeros(shape))
    for stride, padding in (((), None), ((1,) * 4, None), ((1, 1), (0,)), ((0, 1), None), ((1, 1), (-1, 0))):
        with pytest.raises(InputError, match="must have one entry for each of 1 to 3 axes"):
            MonarchConv1x1(MonarchLinear(8, 8), stride, padding)
