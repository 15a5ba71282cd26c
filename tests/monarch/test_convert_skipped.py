import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from sciml_monarch import InputError
from sciml_monarch.monarch import MonarchLinear, densify, layers, restructure, sparsify, structure
from sciml_monarch.monarch.convert import n_parameters
from tests.monarch.conversions import mlp, notes
from tests.monarch.layers import TinyGPT


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
