import copy
import json
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from sciml_monarch import InputError, load, mri, pde, save
from sciml_monarch.monarch import (
    MonarchConv1D,
    MonarchConv1x1,
    MonarchLinear,
    densify,
    layers,
    project,
    restructure,
    sparsify,
    structure,
)
from sciml_monarch.monarch.convert import n_parameters
from sciml_monarch.monarch.structure import follow_state_dicts, structure_of_state
from tests.helpers import randn, relative_error
from tests.monarch.layers import Conv1D, LoRA, TinyGPT

TOKENS = torch.randint(24, (3, 7), generator=torch.Generator().manual_seed(1))


def mlp(*sizes):
    layers = [layer for i, o in pairwise(sizes) for layer in (nn.Linear(i, o), nn.GELU())]
    return nn.Sequential(*layers[:-1])


def count(net):
    return sum(p.numel() for p in net.parameters())


def notes(report):
    return {row.layer: row.note for row in report.rows}


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


def test_what_has_no_monarch_form_is_left_and_named():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    frozen = nn.Linear(16, 16)
    frozen.weight.requires_grad_(False)
    hooked = nn.Linear(16, 16)
    hooked.weight.register_hook(lambda g: g)
    named = nn.Linear(16, 16)
    named._register_state_dict_hook(lambda *args: None)
    pruned = nn.Linear(16, 16)
    prune.l1_unstructured(pruned, "weight", 0.5)
    net = nn.ModuleDict(
        {
            "scaled": Scaled(16, 16),
            "weight_norm": parametrizations.weight_norm(nn.Linear(16, 16)),
            "spectral_norm": parametrizations.spectral_norm(nn.Linear(16, 16)),
            "pruned": pruned,
            "lazy": nn.LazyLinear(16),
            "frozen": frozen,
            "hooked": hooked,
            "named": named,
            "complex": nn.Linear(16, 16, dtype=torch.complex64),
            "groups": nn.Conv1d(16, 16, 1, groups=2),
            "kernel": nn.Conv2d(16, 16, (1, 3)),
            "reflect": nn.Conv2d(16, 16, 1, padding=1, padding_mode="reflect"),
            "transposed": nn.ConvTranspose2d(16, 16, 2),
            "small": nn.Linear(3, 16),
            "attention": nn.MultiheadAttention(16, 2),
            "recurrent": nn.GRU(16, 16),
            "bilinear": nn.Bilinear(4, 4, 4),
            "norm": nn.LayerNorm(16),
            "monarch": MonarchLinear(16, 16),
            "same": nn.Conv1d(16, 16, 1, padding="same"),
            "head": nn.Linear(16, 4),
        }
    )
    types = {name: type(module) for name, module in net.items()}
    report = sparsify(net, 4)
    assert [row.layer for row in report.converted] == ["frozen", "same"]
    assert {name for name, module in net.items() if type(module) is not types[name]} == {"frozen", "same"}
    assert not net["frozen"].w1.requires_grad
    assert net["frozen"].bias.requires_grad
    expected = {
        "scaled": "subclass of Linear",
        "weight_norm": "made from other tensors",
        "spectral_norm": "made from other tensors",
        "pruned": "made from other tensors",
        "lazy": "not initialised yet",
        "hooked": "hooks on its weight",
        "named": "hooks on its state dict",
        "complex": "torch.complex64",
        "groups": "2 groups",
        "kernel": "kernel size 1x3, not 1",
        "reflect": "padding mode reflect",
        "transposed": "no Monarch form here",
        "small": "4 x 4 blocks do not fit 3 inputs and 16 outputs",
        "attention": "packed into one parameter",
        "attention.out_proj": "subclass of Linear",
        "recurrent": "no Monarch form here",
        "bilinear": "no Monarch form here",
        "monarch": "is a Monarch layer",
        "head": "output head",
    }
    left = {row.layer: row.note for row in report.skipped}
    assert left.keys() == expected.keys()
    for name, part in expected.items():
        assert part in left[name], (name, left[name])
    assert report.parameters_after == n_parameters(net)
    assert {row.layer for row in densify(net).converted} == {"frozen", "monarch", "same"}
    assert not net["frozen"].weight.requires_grad


def test_layers_that_are_compiled_by_themselves_are_left_and_parts_of_a_compiled_network_are_not():
    torch.compiler.reset()
    for make, name, left in (
        (lambda: nn.Sequential(torch.compile(nn.Linear(16, 16), backend="eager"), nn.Linear(16, 4)), "0._orig_mod", 1),
        (lambda: torch.compile(mlp(16, 16, 4), backend="eager"), "_orig_mod.0", 0),
        (lambda: nn.Sequential(torch.compile(mlp(16, 16), backend="eager"), nn.Linear(16, 4)), "0._orig_mod.0", 0),
    ):
        net, x = make(), torch.randn(2, 16)
        before = net(x)
        report = sparsify(net, 4)
        assert bool(notes(report)[name]) == bool(left)
        assert torch.equal(net(x), before) == bool(left)
        assert len(structure(net)) == 1 - left
    net = nn.Sequential(torch.compile(MonarchLinear(16, 16), backend="eager"), nn.Linear(16, 4))
    assert "compiled by itself" in notes(densify(net))["0._orig_mod"]
    with pytest.raises(InputError, match="compiled by itself"):
        restructure(net, {})
    restructure(net, structure(net))
    torch.compiler.reset()


@pytest.mark.parametrize("init", ["project", "random"])
def test_layers_that_would_not_become_smaller_are_left_unless_a_rank_is_given(init):
    for blocks, left in ((1, {"0", "2", "4"}), (2, {"2"}), ((4, 2), set())):
        report = sparsify(mlp(8, 64, 64, 8), blocks, init=init, head=True)
        assert {row.layer for row in report.skipped} == left
        assert all("would not become smaller" in row.note for row in report.skipped)
        assert all(row.parameters_after < row.parameters_before for row in report.converted)
    report = sparsify(mlp(64, 64, 64), 2, rank=32, init=init, head=True)
    assert len(report.converted) == 2


@pytest.mark.parametrize("init", ["project", "random"])
def test_weights_that_cannot_be_decomposed_are_left(init):
    net = mlp(16, 16, 16, 16, 4)
    with torch.no_grad():
        net[2].weight[3, 4] = float("nan")
    net[4].weight = nn.Parameter(net[4].weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    report = sparsify(net, 4, init=init)
    assert [row.layer for row in report.converted] == ["0"]
    assert notes(report)["2"] == "its weight has entries that are not finite"
    assert notes(report)["4"] == "its weight is torch.float8_e4m3fn"


@pytest.mark.parametrize("way", ["sparsify", "densify", "restructure"])
def test_a_failure_in_between_leaves_the_network_as_it_was(way, monkeypatch):
    net = mlp(16, 16, 16, 4)
    described = {"0": {"shape": [16, 16], "blocks": [4, 4], "rank": None}}
    described["2"] = described["0"] | {"blocks": [17, 17]} if way == "restructure" else described["0"]
    if way != "restructure":
        name = {"sparsify": "to_monarch", "densify": "to_dense_layer"}[way]
        original, calls = getattr(layers, name), []

        def fails(*args):
            calls.append(args)
            if len(calls) == 2:
                raise RuntimeError("out of memory")
            return original(*args)

        if way == "densify":
            sparsify(net, 4)
        monkeypatch.setattr(f"sciml_monarch.monarch.convert.{name}", fails)
    before = list(net)
    run = {"sparsify": sparsify, "densify": densify, "restructure": lambda net: restructure(net, described)}[way]
    with pytest.raises(InputError if way == "restructure" else RuntimeError):
        run(net)
    assert all(a is b for a, b in zip(net, before, strict=True))


def test_two_parameters_of_the_same_values_are_tied():
    net = nn.Sequential(nn.Embedding(16, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4))
    net[1].weight = nn.Parameter(net[0].weight.detach())
    report = sparsify(net, 4)
    assert notes(report)["1"] == "its weight is shared with 0.weight"
    assert notes(report)["2"] == ""
    on_meta = mlp(16, 16, 16, 4).to("meta")
    assert "no values yet" in notes(sparsify(on_meta, 4))["0"]


def test_layers_that_hold_more_than_weight_and_bias_are_left():
    net = mlp(16, 16, 16, 16, 16, 4)
    net[0].register_buffer("scale", torch.ones(16))
    net[2].adapter = nn.Identity()
    net[4].gain = nn.Parameter(torch.ones(16))
    net[6].register_buffer("unused", None)
    report = sparsify(net, 4)
    assert [notes(report)[i][-5:] for i in "024"] == ["scale", "apter", " gain"]
    assert [row.layer for row in report.converted] == ["6"]


def test_rank_that_does_not_fit_leaves_the_layer():
    net = mlp(16, 64, 64, 5)
    report = sparsify(net, 4, rank=8)
    assert notes(report)["0"] == "rank 8 does not fit sub-blocks of rank 4"
    assert notes(report)["2"] == ""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_quantised_layers_are_named():
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this build of torch quantises nothing")
    net = torch.ao.quantization.quantize_dynamic(mlp(16, 16, 16), {nn.Linear}, dtype=torch.qint8)
    report = sparsify(net, 4)
    assert not report.converted
    assert [row.layer for row in report.skipped] == ["0", "2"]
    assert all(row.note == "is quantised" for row in report.skipped)


def test_empty_networks_and_those_without_linear_layers_say_so():
    empty = sparsify(nn.Sequential())
    assert empty.rows == ()
    assert (empty.parameters_before, empty.parameters_after) == (0, 0)
    assert "0 of 0 layers converted" in str(empty)
    assert sparsify(nn.Sequential(nn.ReLU(), nn.LayerNorm(4))).rows == ()
    report = sparsify(nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()))
    assert notes(report) == {"0": "kernel size 3x3, not 1"}
    assert densify(nn.Sequential(nn.Linear(4, 4))).rows == ()
    assert structure(nn.Sequential(nn.Linear(4, 4))) == {}
    for net in (nn.Linear(16, 16), MonarchLinear(16, 16)):
        for convert in (lambda net: sparsify(net, head=True), densify):
            report = convert(net)
            assert not report.converted
    assert "put it into a torch.nn.Sequential" in notes(sparsify(nn.Linear(16, 16), head=True))[""]


def test_only_and_skip_take_patterns_and_modules():
    def converted(**options):
        return {row.layer for row in sparsify(TinyGPT(), 4, **options).converted}

    both = {f"blocks.{i}.{name}" for i in range(2) for name in ("attention", "out", "up", "down")}
    assert converted() == both
    assert converted(only=["blocks.0"]) == {name for name in both if name.startswith("blocks.0")}
    assert converted(only=["blocks.*.up", "*.down"]) == {name for name in both if name.endswith(("up", "down"))}
    assert converted(skip=["*.attention"]) == {name for name in both if not name.endswith("attention")}
    assert converted(only=["blocks"], skip=["blocks.1"]) == {name for name in both if name.startswith("blocks.0")}
    assert converted(only=[]) == set()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": ["block.0"]}, r"only: 'block\.0' meets no layer of the network; layers are embedding, blocks\.0"),
        ({"skip": ["heads"]}, "skip: 'heads' meets no layer"),
        ({"only": "blocks"}, r"only is 'blocks'; it must be a list of patterns"),
        ({"blocks": 0}, "blocks 0 and rank None must be 1 or more"),
        ({"blocks": (4, 0)}, r"blocks \(4, 0\)"),
        ({"rank": 0}, "rank 0 must be 1 or more"),
        ({"init": "zero"}, 'init is \'zero\'; it must be "project" or "random"'),
    ],
    ids=str,
)
def test_mistakes_are_named_and_change_nothing(options, message):
    net = TinyGPT()
    with pytest.raises(InputError, match=message):
        sparsify(net, **options)
    assert structure(net) == {}


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


DESCRIPTION = pde.Description(("u",), ("1",), (16, 16), (1.0, 1.0), dt=1.0, n_history=2, n_steps=1)
OPERATORS = {
    "FNO": lambda: pde.FNO(2, 1, 8, (4, 4), n_layers=1, projection_channels=8),
    "MonarchFNO": lambda: pde.MonarchFNO(2, 1, 8, (4, 4), (16, 16), n_layers=1, projection_channels=8),
    "UNet": lambda: pde.UNet(2, 1, width=4),
    "OperatorTransformer": lambda: pde.OperatorTransformer(2, 1, 16, 1, 2),
    "sparse OperatorTransformer": lambda: pde.OperatorTransformer(2, 1, 16, 1, 2, blocks=4),
    "sparse MonarchFNO": lambda: pde.MonarchFNO(2, 1, 8, (4, 4), (16, 16), 1, 8, mixing={"blocks": 2, "rank": 1}),
}
FIELDS = torch.randn(2, 2, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", OPERATORS)
def test_pde_networks_convert_train_and_come_back(name, tmp_path):
    net = OPERATORS[name]()
    report = sparsify(net, (2, 1), rank=1, head=True)
    assert report.converted
    _trains(net, lambda net: net(FIELDS))
    described = json.loads(json.dumps(structure(net)))
    assert {row.layer for row in report.converted} <= described.keys()
    again = OPERATORS[name]()
    restructure(again, described)
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(FIELDS), net(FIELDS))
    save(pde.Surrogate(net, DESCRIPTION), tmp_path)
    assert torch.equal(load(tmp_path).net(FIELDS), net(FIELDS))
    assert structure(load(tmp_path).net) == described
    exported = torch.export.export(net, (FIELDS,)).module()
    torch.testing.assert_close(exported(FIELDS), net(FIELDS), rtol=1e-4, atol=1e-5)
    expected = net(FIELDS)
    densify(net)
    assert relative_error(net(FIELDS), expected) < 1e-5
    save(pde.Surrogate(net, DESCRIPTION), tmp_path)
    assert torch.equal(load(tmp_path).net(FIELDS), net(FIELDS))
    assert structure(load(tmp_path).net) == {}


RECONS = {
    "UNet": lambda: mri.UNet(4, 2),
    "VarNet": lambda: mri.VarNet(1, 4, 2, 2),
    "MonarchVarNet": lambda: mri.MonarchVarNet((16, 12), 1, 4, 2, 2),
    "sparse UNet": lambda: mri.UNet(4, 2, blocks=2),
    "MoDL": lambda: mri.MoDL(1, 2, 2, 4),
    "MonarchISTA": lambda: mri.MonarchISTA(2, 4),
    "MonarchSENSE": lambda: mri.MonarchSENSE((16, 12)),
}


@pytest.mark.parametrize("name", RECONS)
def test_reconstruction_networks_convert_train_and_come_back(name, tmp_path):
    torch.manual_seed(1)
    kspace, maps = (torch.randn(*shape, dtype=torch.complex64) for shape in ((1, 3, 16, 12), (1, 1, 3, 16, 12)))
    mask = torch.ones(1, 1, 1, 12, dtype=torch.bool)

    def run(net):
        torch.manual_seed(3)
        return net(kspace, mask, maps)

    net = RECONS[name]()
    report = sparsify(net, 2, head=True)
    assert bool(report.converted) == (name in ("UNet", "VarNet", "MonarchVarNet"))
    assert bool(structure(net)) == (bool(report.converted) or name == "sparse UNet")
    _trains(net, run)
    net.eval()
    save(net, tmp_path)
    assert torch.equal(run(load(tmp_path)), run(net))
    assert structure(load(tmp_path)) == structure(net)
    expected = run(net)
    if report.converted:
        exported = torch.export.export(net, (kspace, mask, maps)).module()
        assert relative_error(exported(kspace, mask, maps), expected) < 1e-4
    densify(net)
    assert relative_error(run(net), expected) < 1e-4


def _trains(net, run):
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
    losses = []
    for _ in range(2):
        loss = (run(net) - 1).abs().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] < losses[0]


def test_converted_network_exports():
    net = TinyGPT().eval()
    sparsify(net, 4)
    program = torch.export.export(net, (TOKENS,))
    torch.testing.assert_close(program.module()(TOKENS), net(TOKENS))


def test_structure_is_followed_exactly():
    net = nn.Sequential(mlp(16, 16, 16), Conv1D(16, 16), nn.Linear(16, 16))
    sparsify(net, (2, 4), rank=2, head=True)
    assert structure(net)["0.0"] == {
        "kind": "MonarchLinear",
        "shape": [16, 16],
        "blocks": [2, 4],
        "rank": 2,
        "bias": True,
    }
    other = nn.Sequential(mlp(16, 16, 16), Conv1D(16, 16), nn.Linear(16, 16))
    sparsify(other, 4, only=["0"])
    state = torch.random.get_rng_state()
    restructure(other, structure(net))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert structure(other) == structure(net)
    other.load_state_dict(net.state_dict())
    x = torch.randn(2, 16)
    assert torch.equal(other(x), net(x))
    restructure(other, {})
    assert structure(other) == {}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"5": {"shape": [16, 16], "blocks": [4, 4], "rank": None}}, "'5', but the network has no linear layer"),
        ({"1": {"shape": [16, 16], "blocks": [4, 4], "rank": None}}, "'1', but the network has no linear layer"),
        ({"0": {"shape": [16, 8], "blocks": [4, 4], "rank": None}}, r"'0' is \(16, 16\), but the structure has"),
        ({"0": {"shape": [16, 16], "rank": None}}, "structure of layer '0' is .*blocks"),
        ({"0": 7}, "structure of layer '0' is 7"),
    ],
    ids=str,
)
def test_structure_of_another_network_is_refused(entry, message):
    net = mlp(16, 16, 16)
    with pytest.raises(InputError, match=message):
        restructure(net, entry)
    assert structure(net) == {}


@pytest.mark.parametrize("options", [{"blocks": 4}, {"blocks": (2, 4), "rank": 2}, {"blocks": 3, "rank": 1}], ids=str)
def test_state_dict_tells_the_structure(options):
    def make():
        return nn.Sequential(mlp(16, 20, 16), nn.Unflatten(-1, (16, 1)), nn.Conv1d(16, 9, 1))

    net = make()
    sparsify(net, **options, head=True)
    prefixed = {f"net.{key}": value for key, value in net.state_dict().items()}
    found = structure_of_state(make(), prefixed, "net.")
    other = make()
    restructure(other, found)
    other.load_state_dict(net.state_dict())
    follower = nn.ModuleDict({"net": make()})
    follow_state_dicts(follower)
    follow_state_dicts(follower)
    assert len(follower._load_state_dict_pre_hooks) == 1
    follower = copy.deepcopy(follower)
    dense = copy.deepcopy(follower.state_dict())
    follower.load_state_dict(prefixed)
    assert follower.state_dict().keys() == prefixed.keys()
    x = torch.randn(2, 16)
    assert torch.equal(follower["net"](x), net(x))
    follower.load_state_dict(dense)
    assert structure(follower) == {}
    kept = follower["net"][0][0]
    follower.load_state_dict(dense)
    assert follower["net"][0][0] is kept
