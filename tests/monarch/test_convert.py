import copy

import pytest
import torch
from torch import nn

from sciml_monarch.monarch import (
    MonarchConv1D,
    MonarchConv1x1,
    MonarchLinear,
    densify,
    project,
    restructure,
    sparsify,
    structure,
)
from tests.helpers import randn, relative_error
from tests.monarch.conversions import TOKENS, mlp, notes
from tests.monarch.layers import LoRA, TinyGPT


def count(net):
    return sum(p.numel() for p in net.parameters())


def gradients(net, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(net(x).square().sum(), x)[0]


def test_projects_every_layer_but_the_head_and_counts_right():
    net = mlp(16, 32, 32, 5)
    dense = copy.deepcopy(net)
    report = sparsify(net, 4)
    assert [type(m) for m in net[::2]] == [MonarchLinear, MonarchLinear, nn.Linear]
    assert torch.equal(net[4].weight, dense[4].weight)
    assert [row.layer for row in report.converted] == ["0", "2"]
    assert "taken for the output head" in notes(report)["4"]
    assert report.parameters_before == count(dense) == 16 * 32 + 32 * 32 + 32 * 5 + 32 + 32 + 5
    assert report.parameters_after == count(net)
    for row, old, new in zip(report.rows, dense[::2], net[::2], strict=True):
        assert (row.parameters_before, row.parameters_after) == (count(old), count(new))
        assert row.shape == tuple(old.weight.shape)
        assert row.kind == "Linear"
    _, error = project(dense[2].weight.detach(), 4)
    assert report.rows[1].error == pytest.approx(float(error / dense[2].weight.detach().norm()), rel=1e-4)
    assert report.rows[2].error is None
    text = str(report)
    assert "2 of 3 layers converted" in text
    assert f"{report.parameters_after:,}" in text
    assert "32x16" in text


@pytest.mark.parametrize("options", [{}, {"rank": 2}, {"init": "random"}, {"blocks": (2, 4)}], ids=str)
def test_densify_computes_the_same(options):
    net = nn.Sequential(mlp(13, 30, 16), nn.Unflatten(-1, (16, 1)), nn.Conv1d(16, 8, 1), nn.Flatten())
    sparsify(net, **options, head=True)
    x = randn(4, 13, dtype=torch.float32)
    y, g = net(x), gradients(net, x)
    report = densify(net)
    assert [row.kind for row in report.rows] == ["MonarchLinear", "MonarchLinear", "MonarchConv1x1"]
    assert {type(m) for m in net.modules()} & {MonarchLinear, MonarchConv1x1} == set()
    assert report.parameters_after == count(net)
    assert relative_error(net(x), y) < 1e-5
    assert relative_error(gradients(net, x), g) < 1e-5


def test_round_trip_at_full_rank_is_exact():
    net = TinyGPT().double()
    dense = copy.deepcopy(net)
    report = sparsify(net, 2, rank=8)
    assert len(report.converted) == 8
    assert max(row.error for row in report.converted) < 1e-12
    assert relative_error(net(TOKENS), dense(TOKENS)) < 1e-12
    densify(net)
    for (name, p), (other, q) in zip(net.named_parameters(), dense.named_parameters(), strict=True):
        assert name == other
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_tied_head_and_embedding_stay_dense():
    net = TinyGPT()
    report = sparsify(net, 4, head=True)
    assert net.head.weight is net.embedding.weight
    assert notes(report)["head"] == "its weight is shared with embedding.weight"
    assert notes(report)["embedding"] == "is an embedding"
    assert isinstance(net.blocks[0].attention, MonarchConv1D)
    assert isinstance(net.blocks[1].up, MonarchLinear)
    assert report.parameters_before == count(TinyGPT())
    assert report.parameters_after == count(net)
    net(TOKENS).sum().backward()
    untied = TinyGPT(tied=False)
    assert notes(sparsify(copy.deepcopy(untied), 4))["head"].startswith("is taken for the output head")
    assert notes(sparsify(copy.deepcopy(untied), 4, head=True))["head"] == ""
    assert notes(sparsify(copy.deepcopy(untied), 4, only=["head"]))["head"] == ""


def test_head_is_found_by_its_name_or_as_the_last_layer():
    named = nn.ModuleDict({"lm_head": nn.Linear(16, 16), "blocks": nn.Linear(16, 16), "skip": nn.Linear(16, 16)})
    assert [row.layer for row in sparsify(named).converted] == ["blocks", "skip"]
    last = nn.Sequential(nn.Linear(16, 16), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3))
    assert [row.layer for row in sparsify(last).converted] == ["0"]


def test_shared_layer_is_converted_once_and_stays_shared():
    base = nn.Linear(16, 16)
    net = nn.Sequential(LoRA(base), LoRA(base), nn.Linear(16, 3))
    report = sparsify(net, 4)
    assert net[0].base is net[1].base
    assert isinstance(net[0].base, MonarchLinear)
    assert [row.layer for row in report.converted] == ["0.base"]
    assert notes(report)["0.a"] == "4 x 4 blocks do not fit 16 inputs and 2 outputs"
    assert report.parameters_after == count(net)
    assert report.parameters_before - report.parameters_after == 16 * 16 - 2 * 4 * 4 * 4
    x = torch.randn(2, 16)
    y = net(x)
    densify(net)
    assert net[0].base is net[1].base
    torch.testing.assert_close(net(x), y, rtol=1e-5, atol=1e-6)
    assert notes(sparsify(net, 4, only=["1.base"]))["0.base"] == ""


def test_random_layers_are_as_large_as_those_that_they_replace():
    net = mlp(256, 256, 256, 4)
    with torch.no_grad():
        net[0].weight.mul_(0.1)
        net[2].weight.zero_()
    x = torch.randn(512, 256)
    expected = (net[0](x) - net[0].bias).var()
    bias = net[0].bias
    report = sparsify(net, 4, init="random")
    assert all(row.error is None for row in report.rows)
    assert net[0].bias is bias
    assert float((net[0](x) - bias).var().detach()) == pytest.approx(float(expected.detach()), rel=0.15)
    assert torch.equal(net[2](x), net[2].bias.expand(512, 256))
    net[2](x).sum().backward()
    assert net[2].w2.grad.abs().sum() > 0, "a layer that starts at zero must be able to learn"


def test_dtype_mode_and_hooks_are_kept():
    net = mlp(16, 16, 4).to(torch.bfloat16).eval()
    calls = []
    handle = net[0].register_forward_hook(lambda *args: calls.append(1))
    sparsify(net, 4)
    assert net[0].w1.dtype == torch.bfloat16
    assert not net[0].training
    x = torch.randn(2, 16, dtype=torch.bfloat16)
    net(x)
    densify(net)
    assert net[0].weight.dtype == torch.bfloat16
    net(x)
    assert len(calls) == 2
    handle.remove()
    net(x)
    assert len(calls) == 2


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_fused_transformer_layers_still_run(activation):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation=activation)
    net = nn.TransformerEncoder(layer, 2).eval()
    x, padding = torch.randn(3, 5, 16), torch.arange(5) >= torch.tensor([[5], [3], [2]])

    def run(**options):
        with torch.no_grad():
            return net(x, **options)[~padding]

    before = [run(), run(src_key_padding_mask=padding)]
    flags = [(m.activation_relu_or_gelu, net.use_nested_tensor) for m in net.layers]
    report = sparsify(net, 4, rank=4, head=True)
    assert {row.layer for row in report.converted} == {f"layers.{i}.linear{j}" for i in range(2) for j in (1, 2)}
    for options, expected in zip(({}, {"src_key_padding_mask": padding}), before, strict=True):
        torch.testing.assert_close(run(**options), expected, rtol=1e-4, atol=1e-5)  # full rank
    sparse = copy.deepcopy(net)
    assert torch.equal(sparse(x), net(x))
    densify(net)
    assert [(m.activation_relu_or_gelu, net.use_nested_tensor) for m in net.layers] == flags
    torch.testing.assert_close(run(src_key_padding_mask=padding), before[1], rtol=1e-4, atol=1e-5)
    again = copy.deepcopy(net)
    restructure(again, structure(sparse))
    again.load_state_dict(sparse.state_dict())
    with torch.no_grad():
        assert torch.equal(again(x), sparse(x))
