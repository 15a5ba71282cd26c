import copy
import json

import pytest
import torch
from torch import nn

from sciml_monarch import InputError, load, mri, pde, save
from sciml_monarch.monarch import densify, restructure, sparsify, structure
from sciml_monarch.monarch.structure import follow_state_dicts, structure_of_state
from tests.helpers import relative_error
from tests.monarch.conversions import TOKENS, mlp
from tests.monarch.layers import Conv1D, TinyGPT

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
