import shutil

import pytest
import torch
from torch import nn

from sciml_monarch.monarch import MonarchLinear, to_dense
from tests.helpers import TOLERANCE, randn, relative_error


@pytest.mark.parametrize("blocks", [1, 4, (3, 5)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("n_in", "n_out"), [(16, 16), (13, 29), (30, 7)])
def test_to_linear_computes_the_same(n_in, n_out, bias, blocks):
    torch.manual_seed(0)
    layer = MonarchLinear(n_in, n_out, bias, blocks, dtype=torch.float64)
    x = randn(2, 3, n_in)
    dense = layer.to_linear()
    assert (dense.bias is not None) == bias
    torch.testing.assert_close(dense(x), layer(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("blocks", [2, (3, 4)])
@pytest.mark.parametrize(("n_in", "n_out"), [(12, 12), (13, 29), (30, 7)])
def test_full_rank_from_linear_computes_the_same(n_in, n_out, blocks):
    linear = nn.Linear(n_in, n_out, dtype=torch.float64).eval()
    k, l = (blocks, blocks) if isinstance(blocks, int) else blocks
    layer = MonarchLinear.from_linear(linear, blocks, rank=min(-(-n_in // k), -(-n_out // l)))
    x = randn(5, n_in)
    torch.testing.assert_close(layer(x), linear(x), rtol=1e-12, atol=1e-12)
    assert not layer.training


def test_from_linear_is_the_nearest_matrix_and_keeps_what_is_frozen():
    linear = nn.Linear(32, 32)
    linear.weight.requires_grad_(False)
    layer = MonarchLinear.from_linear(linear, 4, rank=2)
    assert not layer.w1.requires_grad
    assert not layer.w2.requires_grad
    assert layer.bias.requires_grad
    again = MonarchLinear.from_linear(layer.to_linear(), 4, rank=2)
    assert relative_error(to_dense(again.factors), to_dense(layer.factors)) < 1e-5
    assert not layer.to_linear().weight.requires_grad


@pytest.mark.parametrize(("n_in", "n_out", "blocks"), [(256, 256, 4), (250, 130, 4), (64, 256, (4, 8)), (9, 128, 4)])
def test_fresh_outputs_have_the_variance_of_nn_linear(n_in, n_out, blocks):
    torch.manual_seed(0)
    x = randn(64, n_in, dtype=torch.float32)

    def variance(layer):
        return float(torch.stack([layer()(x).detach().var() for _ in range(30)]).mean())

    monarch = variance(lambda: MonarchLinear(n_in, n_out, blocks=blocks))
    assert monarch == pytest.approx(variance(lambda: nn.Linear(n_in, n_out)), rel=0.12)


def test_parameters_are_fewer_by_the_rank():
    layer = MonarchLinear(1024, 1024, bias=False)
    assert sum(p.numel() for p in layer.parameters()) == 1024 * 1024 // 2
    assert tuple(layer.w1.shape) == (4, 256, 256)
    assert tuple(MonarchLinear(1024, 1024, rank=8).w1.shape) == (4, 32, 256)


def test_learns_a_monarch_map():
    torch.manual_seed(0)
    target = MonarchLinear(12, 20, blocks=2)
    layer = MonarchLinear(12, 20, blocks=2)
    adam = torch.optim.Adam(layer.parameters(), lr=0.01)
    x = randn(256, 12, dtype=torch.float32)
    for _ in range(600):
        loss = (layer(x) - target(x).detach()).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert float(loss.detach()) < 5e-3 * float(target(x).detach().var())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_precision(dtype):
    torch.manual_seed(0)
    layer = MonarchLinear(100, 130, dtype=torch.float64)
    for parameter in layer.parameters():
        parameter.data = parameter.to(dtype).double()
    x = randn(8, 100, dtype=dtype)
    expected = layer(x.double())
    y = layer.to(dtype)(x)
    assert y.dtype == dtype
    assert relative_error(y, expected) < TOLERANCE[dtype]


def test_autocast_gives_what_nn_linear_gives():
    layer = MonarchLinear(16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(randn(4, 16, dtype=torch.float32))
    assert y.dtype == torch.bfloat16


def test_state_dict_round_trip():
    first, second = MonarchLinear(13, 17, rank=1), MonarchLinear(13, 17, rank=1)
    second.load_state_dict(first.state_dict())
    x = randn(3, 13, dtype=torch.float32)
    assert torch.equal(first(x), second(x))


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler, as torch.compile does on a CPU")
@pytest.mark.slow
def test_compiles_whole():
    torch.compiler.reset()
    layer = MonarchLinear(13, 17)
    x = randn(5, 13, dtype=torch.float32)
    compiled = torch.compile(layer, fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    grads = [torch.autograd.grad(f(x).square().sum(), layer.w1)[0] for f in (compiled, layer)]
    torch.testing.assert_close(*grads)


def test_exports_with_any_batch():
    layer = MonarchLinear(13, 17)
    batch = torch.export.Dim("batch")
    program = torch.export.export(layer, (randn(5, 13, dtype=torch.float32),), dynamic_shapes=({0: batch},))
    x = randn(9, 13, dtype=torch.float32)
    torch.testing.assert_close(program.module()(x), layer(x))


def test_repr_names_the_sizes():
    text = repr(MonarchLinear(6, 8, bias=False, blocks=2, rank=1))
    assert text == "MonarchLinear(in_features=6, out_features=8, bias=False, blocks=(2, 2), rank=1)"


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="4 blocks do not fit in_features = 3; take 1 to 3 blocks"):
        MonarchLinear(3, 8)
    with pytest.raises(ValueError, match="8 blocks do not fit out_features = 4"):
        MonarchLinear(8, 4, blocks=8)
    with pytest.raises(ValueError, match=r"rank 3 is outside 1\.\.2"):
        MonarchLinear(8, 8, rank=3)
    with pytest.raises(ValueError, match=r"must be real, but dtype = torch\.complex64"):
        MonarchLinear(8, 8, dtype=torch.complex64)
    with pytest.raises(ValueError, match=r"\(2, 9\) must have in_features = 8 entries"):
        MonarchLinear(8, 8)(torch.zeros(2, 9))


def test_the_weight_is_the_matrix_and_hands_gradients_on():
    layer = MonarchLinear(10, 7, bias=False, blocks=(4, 2), dtype=torch.float64)
    x = torch.randn(5, 10, dtype=torch.float64)
    torch.testing.assert_close(torch.nn.functional.linear(x, layer.weight), layer(x))
    own = torch.autograd.grad(layer(x).square().sum(), [layer.w1, layer.w2])
    through_weight = torch.autograd.grad(
        torch.nn.functional.linear(x, layer.weight).square().sum(), [layer.w1, layer.w2]
    )
    torch.testing.assert_close(own, through_weight)
    assert "weight" not in layer.state_dict()
