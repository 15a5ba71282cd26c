import json

import pytest
import torch
from torch import nn

from sciml_monarch import InputError
from sciml_monarch.monarch import MonarchLinear
from sciml_monarch.monarch.conv import MonarchConv1x1
from sciml_monarch.pde import FNO, MonarchFNO, n_parameters, rollout
from sciml_monarch.pde.mixing import ChannelMLP, is_smaller, linear, pointwise
from tests.helpers import relative_error

PUBLISHED = {  # state dict of the default network before there were options of mixing
    "lifting.weight": (8, 6, 1),
    "lifting.bias": (8,),
    "projection.0.weight": (16, 8, 1),
    "projection.0.bias": (16,),
    "projection.2.weight": (1, 16, 1),
    "projection.2.bias": (1,),
    **{f"skips.{i}.weight": (8, 8, 1) for i in range(2)},
}


def fno(mixing=None, **arguments):
    given = dict(n_layers=2, projection_channels=16) | arguments
    return MonarchFNO(4, 1, 8, (4, 4), (8, 8), **given, mixing=mixing)


@pytest.mark.parametrize(("n_in", "n_out"), [(64, 64), (16, 64), (64, 16), (10, 7), (4, 4), (3, 64)])
@pytest.mark.parametrize(("blocks", "rank"), [(2, None), (4, None), (4, 1), (8, None), (1, None), (1, 3)])
def test_smaller_is_what_parameters_say(n_in, n_out, blocks, rank):
    asked = linear(n_in, n_out, False, blocks, rank)
    try:
        monarch = MonarchLinear(n_in, n_out, False, blocks, rank)
    except InputError:
        assert not is_smaller(n_in, n_out, blocks, rank)
        assert isinstance(asked, nn.Linear)
        return
    smaller = n_parameters(monarch) < n_in * n_out
    assert is_smaller(n_in, n_out, blocks, rank) == smaller
    assert type(asked) is (MonarchLinear if smaller else nn.Linear)
    assert asked(torch.randn(2, 3, n_in)).shape == (2, 3, n_out)


def test_without_blocks_layers_are_dense_with_the_weights_that_the_seed_gives():
    torch.manual_seed(3)
    ours = linear(5, 7).weight, pointwise(5, 7).weight
    torch.manual_seed(3)
    theirs = nn.Linear(5, 7).weight, nn.Conv1d(5, 7, 1).weight
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("bias", [True, False])
def test_pointwise_is_the_linear_layer_at_every_point(bias):
    layer = pointwise(16, 32, bias, blocks=4, rank=2)
    assert isinstance(layer, MonarchConv1x1)
    x = torch.randn(2, 16, 9)
    y = layer(x)
    torch.testing.assert_close(y[1, :, 4], layer.linear(x[1, :, 4]))
    assert (layer.linear.bias is not None) == bias
    assert isinstance(pointwise(16, 1, blocks=4), nn.Conv1d)


def test_channel_mlp_is_an_identity_and_a_perceptron():
    mlp = ChannelMLP(8, 32, blocks=4)
    x = torch.randn(2, 8, 5)
    dense = [layer.to_conv() for layer in (mlp.up, mlp.down)]
    torch.testing.assert_close(mlp(x), x + dense[1](nn.functional.gelu(dense[0](x))), rtol=1e-5, atol=1e-6)


def test_the_default_network_and_its_checkpoints_are_as_they_were():
    net = fno()
    shapes = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    assert {k: v for k, v in shapes.items() if not k.startswith("convs.")} == PUBLISHED
    assert "mixing" not in net.config
    x = torch.randn(2, 4, 8, 8)
    dense = fno({"blocks": None, "rank": None, "mlp_channels": 0})
    dense.load_state_dict(net.state_dict())
    assert relative_error(dense(x), net(x)) == 0
    assert n_parameters(MonarchFNO.from_fno(FNO(4, 1, 8, (4, 4), 2, 16), (8, 8))) == n_parameters(net)


ALL = ["lifting", "projection.0", "skips.0", "skips.1"]
MLPS = ["mlps.0.down", "mlps.0.up", "mlps.1.down", "mlps.1.up"]


@pytest.mark.parametrize(
    ("mixing", "monarch"),
    [
        ({"blocks": 2}, ["lifting", "projection.0"]),  # two blocks do not make square layers smaller
        ({"blocks": 4}, ALL),
        ({"blocks": 4, "rank": 1}, ["projection.0"]),  # sub-blocks of 2 x 2
        ({"mlp_channels": 12}, []),
        ({"blocks": 4, "mlp_channels": 32}, [*ALL[:1], *MLPS, *ALL[1:]]),
    ],
    ids=str,
)
def test_fno_with_monarch_mixing(mixing, monarch):
    net = fno(mixing)
    assert sorted(name for name, module in net.named_modules() if isinstance(module, MonarchConv1x1)) == monarch
    again = MonarchFNO(**json.loads(json.dumps(net.config)))
    again.load_state_dict(net.state_dict())
    history = torch.randn(2, 4, 1, 8, 8)
    y = rollout(net, history, 2)
    assert relative_error(rollout(again, history, 2), y) == 0
    y.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())
    if not mixing.get("mlp_channels"):
        assert n_parameters(net) < n_parameters(fno())


def test_channel_mlps_stand_behind_their_layers():
    net = fno({"mlp_channels": 12})
    x = torch.randn(1, 4, 8, 8)
    plain = fno()
    plain.load_state_dict(net.state_dict(), strict=False)
    assert relative_error(net(x), plain(x)) > 1e-3
    with torch.no_grad():
        for mlp in net.mlps:
            mlp.down.weight.zero_()
            mlp.down.bias.zero_()
    torch.testing.assert_close(net(x), plain(x))


def test_mixed_network_compiles_whole():
    torch._dynamo.reset()
    net = MonarchFNO(2, 1, 8, (4, 4), (8, 8), n_layers=1, mixing={"blocks": 4, "mlp_channels": 16})
    x = torch.randn(2, 2, 8, 8)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), net(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("mixing", "message"),
    [
        ({"block": 4}, r"mixing has \['block'\]; it takes \['blocks', 'mlp_channels', 'rank'\]"),
        ({"blocks": 0}, "blocks 0"),
        ({"mlp_channels": -1}, "mlp_channels -1"),
        ({"rank": 2}, "rank 2 without blocks"),
    ],
    ids=str,
)
def test_options_that_do_not_exist_are_named(mixing, message):
    with pytest.raises(InputError, match=message):
        fno(mixing)


def test_yaml_takes_the_options_and_refuses_others(tmp_path):
    from jsonargparse import ArgumentError, ArgumentParser

    from sciml_monarch.pde import Operator

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Operator, "net")
    arguments = {"in_channels": 4, "out_channels": 1, "width": 8, "n_modes": [4, 4], "grid": [8, 8]}
    options = {"class_path": "sciml_monarch.pde.MonarchFNO", "init_args": arguments | {"mixing": {"blocks": 4}}}
    net = parser.instantiate(parser.parse_object({"net": options})).net
    assert isinstance(net.lifting, MonarchConv1x1)
    options["init_args"]["mixing"] = {"blokcs": 4}
    with pytest.raises(ArgumentError, match="blokcs"):
        parser.parse_object({"net": options})
