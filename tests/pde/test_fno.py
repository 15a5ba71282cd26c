import pytest
import torch
import torch.nn.utils.prune
from torch.nn.functional import gelu

from sciml_monarch import InputError
from sciml_monarch.pde import (
    FNO,
    MonarchFNO,
    OperatorTransformer,
    ResidualMonarchFNO,
    UNet,
    n_parameters,
    rollout,
)


def perturb_transforms(net, scale=0.05):
    with torch.no_grad():
        for p in net.transform_parameters():
            p.add_(scale * torch.randn_like(p))


@pytest.mark.parametrize(
    ("grid", "n_modes", "padding"),
    [
        ((32,), (12,), 0.0),
        ((16, 16), (8, 8), 0.0),
        ((16, 16), (16, 16), 0.0),
        ((8, 8, 8), (4, 4, 4), 0.0),
        ((16, 8), (8, 6), 0.25),
    ],
    ids=str,
)
def test_fresh_monarch_fno_equals_fno_with_all_gradients(grid, n_modes, padding):
    fno = FNO(3, 2, 6, n_modes, n_layers=3, projection_channels=16, padding=padding)
    monarch = MonarchFNO.from_fno(fno, grid, learn_transforms=False)
    x = torch.randn(2, 3, *grid)
    outputs, gradients = [], []
    for net in (fno, monarch):
        inputs = x.clone().requires_grad_()
        y = net(inputs)
        y.square().sum().backward()
        outputs.append(y)
        gradients.append(inputs.grad)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-5 * gradients[0].abs().max().item())
    blocks, theirs = fno.net.fno_blocks, fno.net
    pairs = [(theirs.lifting.fcs[0].weight, monarch.lifting.weight)]
    pairs += [(theirs.projection.fcs[i].weight, monarch.projection[j].weight) for i, j in ((0, 0), (1, 2))]
    pairs += [(theirs.projection.fcs[i].bias, monarch.projection[j].bias) for i, j in ((0, 0), (1, 2))]
    for i, conv in enumerate(monarch.convs):
        pairs += [
            (blocks.convs[i].weight.tensor, conv.weight),
            (blocks.convs[i].bias, conv.bias),
            (blocks.fno_skips[i].conv.weight, monarch.skips[i].weight),
        ]
    for a, b in pairs:
        g = torch.view_as_real(a.grad) if a.is_complex() else a.grad
        torch.testing.assert_close(b.grad, g, rtol=1e-5, atol=1e-5 * g.abs().max().item())


def test_every_parameter_of_the_fno_is_in_the_monarch_fno():
    fno = FNO(10, 1, 20, (24, 24))
    frozen = MonarchFNO.from_fno(fno, (64, 64))
    transforms = sum(p.numel() for p in frozen.transform_parameters())
    assert n_parameters(frozen) - transforms == n_parameters(fno)
    # 4 layers, 2 axes, analysis and synthesis: 8 blocks of 8 x 8 on each side, complex
    assert transforms == 4 * 2 * 2 * 2 * (8 * 8 * 8) * 2


def test_published_parameter_count():
    """The FNO paper's network (8 modes, width 20) has 414,517 parameters, 409,600 of them spectral weights."""
    batch_norm, spectral = 160, 409_600  # the paper's network normalises; it stores 2 x 8 x 8 frequencies per layer
    stored_here = 4 * 20 * 20 * 16 * 9 * 2  # neuraloperator stores 16 x 9 of them
    assert n_parameters(FNO(10, 1, 20, (16, 16))) == 414_517 - batch_norm - spectral + stored_here


def test_block_has_one_activation_where_neuraloperators_forward_has_two():
    """neuraloperator 2.0 applies the activation twice without a channel MLP; the paper's block applies it once."""
    fno = FNO(2, 1, 4, (4, 4), n_layers=2, projection_channels=8)
    x = torch.randn(1, 2, 8, 8)
    blocks = fno.net.fno_blocks
    h = fno.net.lifting(fno.net.positional_embedding(x))
    once = gelu(blocks.convs[0](h) + blocks.fno_skips[0](h))

    def rest(h):
        return fno.net.projection(blocks.convs[1](h) + blocks.fno_skips[1](h))

    torch.testing.assert_close(fno(x), rest(once))
    torch.testing.assert_close(fno.net(x), rest(gelu(once)))


@pytest.mark.parametrize(("n", "padding"), [(12, 0.0), (20, 0.0), (32, 0.0), (48, 0.0), (32, 0.25)])
def test_frozen_monarch_fno_runs_on_other_grids_like_fno(n, padding):
    fno = FNO(2, 1, 4, (8, 8), n_layers=2, padding=padding)
    monarch = MonarchFNO.from_fno(fno, (16, 16), learn_transforms=False)
    x = torch.randn(1, 2, n, n)
    torch.testing.assert_close(monarch(x), fno(x), rtol=1e-5, atol=1e-5)


def test_learned_monarch_fno_runs_on_other_grids_with_a_bounded_change():
    net = MonarchFNO(1, 1, 4, (8, 8), (16, 16), n_layers=2)
    perturb_transforms(net, 0.02)

    def wave(n):
        t = 2 * torch.pi * torch.arange(n) / n
        return torch.sin(t)[:, None].mul(torch.cos(2 * t))[None, None]

    coarse, fine = net(wave(16)), net(wave(64))[..., ::4, ::4]
    assert (fine - coarse).norm() < 0.2 * coarse.norm()


@pytest.mark.parametrize(
    "make",
    [
        lambda: FNO(4, 1, 4, (4, 4), n_layers=2),
        lambda: MonarchFNO(4, 1, 4, (4, 4), (16, 16), n_layers=2),
        lambda: MonarchFNO(4, 1, 4, (4, 4), (16, 16), n_layers=2, mixing={"mlp_channels": 3}, padding=0.5),
        lambda: UNet(4, 1, width=4),
        lambda: ResidualMonarchFNO(4, 1, 4, (4, 4), (16, 16), n_layers=2),
        lambda: OperatorTransformer(4, 1, 16, n_layers=1, n_heads=2),
    ],
    ids=["FNO", "MonarchFNO", "MonarchFNO, padded, with MLPs", "UNet", "ResidualMonarchFNO", "OperatorTransformer"],
)
def test_network_is_rebuilt_from_its_config_and_state(make, tmp_path):
    net = make()
    x = torch.randn(2, 4, 16, 16)
    torch.save(net.state_dict(), tmp_path / "state.pt")
    again = type(net)(**net.config)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.testing.assert_close(again(x), net(x), rtol=0, atol=0)
    with pytest.raises(InputError, match="the input has 5 channels, but the network takes 4 "):
        net(torch.randn(2, 5, 16, 16))


@pytest.mark.parametrize(
    "make", [lambda p: FNO(1, 1, 4, (4, 4), padding=p), lambda p: MonarchFNO(1, 1, 4, (4, 4), (8, 8), padding=p)]
)
def test_padding_breaks_the_period_and_is_a_share_of_the_points(make):
    torch.manual_seed(0)
    x = torch.randn(1, 1, 8, 8)
    moved = x.roll(1, -1)

    def error(net):  # coordinates, which are appended, are of no period: they are taken out
        with torch.no_grad():
            first = net.net.lifting.fcs[0] if isinstance(net, FNO) else net.lifting
            first.weight[:, 1:] = 0
            y = net(x).roll(1, -1)
            return (net(moved) - y).norm() / y.norm()

    assert error(make(0.0)) < 1e-5
    assert error(make(0.5)) > 1e-3
    with pytest.raises(InputError, match=r"padding is 1\.5"):
        make(1.5)


def test_a_network_without_layers_is_refused():
    with pytest.raises(InputError, match="n_layers is 0"):
        MonarchFNO(1, 1, 4, (4,), (8,), n_layers=0)


def test_rollout_feeds_predictions_back():
    net = MonarchFNO(3, 1, 4, (4, 4), (8, 8), n_layers=1)
    history = torch.randn(2, 3, 1, 8, 8)
    frames = rollout(net, history, 3)
    x = history[:, :, 0]
    for step in range(3):
        y = net(x)
        torch.testing.assert_close(frames[:, step], y)
        x = torch.cat([x[:, 1:], y], 1)


def test_rollout_of_two_fields_keeps_time_and_field_apart():
    net = MonarchFNO(4, 2, 4, (4,), (8,), n_layers=1)
    history = torch.randn(1, 2, 2, 8)
    frames = rollout(net, history, 2)
    first = net(history.flatten(1, 2))
    second = net(torch.cat([history[:, 1], first], 1))
    torch.testing.assert_close(frames, torch.stack([first, second], 1))


def test_no_parameter_of_the_monarch_network_is_complex():
    net = MonarchFNO(2, 1, 4, (4, 4), (8, 8))
    assert not any(t.is_complex() for t in net.state_dict().values())


def test_one_field_a_layer_is_kept_for_the_backward_pass():
    """Fields of ``width`` channels: the first layer's input, one in front of each GELU, the last layer's output."""
    width, n_layers, hidden = 5, 4, 7
    net = MonarchFNO(2, 1, width, (4, 4), (16, 16), n_layers=n_layers, projection_channels=hidden)
    kept = {}

    def keep(t):
        kept[t.untyped_storage().data_ptr()] = t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        net(torch.randn(3, 2, 16, 16, requires_grad=True))
    sizes = list(kept.values())
    assert sizes.count(3 * width * 256) == n_layers + 1
    assert 3 * hidden * 256 not in sizes


def test_network_compiles_whole():
    torch._dynamo.reset()
    net = MonarchFNO(2, 1, 4, (4, 4), (8, 8), n_layers=2)
    x = torch.randn(2, 2, 8, 8)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), net(x), rtol=1e-5, atol=1e-6)


def test_a_compiled_network_keeps_little_more_than_an_eager_one():
    """Hidden channels of the projection are not among it: the operator stays one while compiling."""
    torch._dynamo.reset()
    width, hidden = 5, 32
    net = MonarchFNO(2, 1, width, (4, 4), (16, 16), projection_channels=hidden)
    x = torch.randn(3, 2, 16, 16)

    def kept(call):
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.update({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() // 4}) or t,
            lambda t: t,
        ):
            call(x)
        return list(sizes.values())

    compiled = torch.compile(net, fullgraph=True, backend="aot_eager_decomp_partition")
    compiled(x)
    sizes = kept(compiled)
    assert 3 * hidden * 256 not in sizes
    assert sum(sizes) < 1.2 * sum(kept(net))


def test_transforms_of_torch_func_see_through_the_network():
    net = MonarchFNO(2, 1, 3, (4, 4), (8, 8), n_layers=2, projection_channels=4).double()
    parameters = {k: v.detach() for k, v in net.named_parameters()}
    x = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    direction = torch.randn_like(x)
    step = 1e-5
    with torch.no_grad():
        difference = (net(x + step * direction) - net(x - step * direction)) / (2 * step)
    _, tangent = torch.func.jvp(net, (x,), (direction,))
    torch.testing.assert_close(tangent, difference, rtol=1e-6, atol=1e-8)

    def loss(parameters, x):
        return torch.func.functional_call(net, parameters, (x[None],)).square().sum()

    per_sample = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    net(x).square().sum().backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(per_sample[name].sum(0), p.grad, rtol=1e-8, atol=1e-10)
    several = {k: torch.stack([v, 2 * v]) for k, v in parameters.items()}
    both = torch.vmap(lambda p: torch.func.functional_call(net, p, (x,)))(several)
    torch.testing.assert_close(both[0], net(x))


def test_a_gradient_of_a_gradient_reaches_every_parameter():
    net = MonarchFNO(2, 1, 3, (4, 4), (8, 8), n_layers=2, projection_channels=4).double()
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    parameters = list(net.parameters())

    def squared_norm():
        gradients = torch.autograd.grad(net(x).square().sum(), parameters, create_graph=True)
        return sum(g.square().sum() for g in gradients)

    found = torch.autograd.grad(squared_norm(), parameters)
    step = 1e-5
    for p, g in zip(parameters, found, strict=True):
        direction, values = torch.randn_like(p), []
        for sign in (1, -1):
            with torch.no_grad():
                p.add_(sign * step * direction)
            values.append(squared_norm().item())
            with torch.no_grad():
                p.sub_(sign * step * direction)
        difference = (values[0] - values[1]) / (2 * step)
        torch.testing.assert_close((g * direction).sum().item(), difference, rtol=1e-5, atol=1e-6 * abs(values[0]))


def test_hooks_of_submodules_fire_and_change_nothing():
    net = MonarchFNO(2, 1, 4, (4, 4), (8, 8), n_layers=2, projection_channels=6)
    x = torch.randn(2, 2, 8, 8)
    expected = net(x)
    called = []
    watched = [net.lifting, *net.convs, *net.skips, net.projection, *net.projection]
    for module in watched:
        module.register_forward_hook(lambda module, inputs, output: called.append((module, output.shape[1])))
    torch.testing.assert_close(net(x), expected)
    assert sorted(id(m) for m, _ in called) == sorted(map(id, watched))
    assert dict(called)[net.convs[0]] == 4
    doubled = net.convs[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    changed = net(x)
    doubled.remove()
    assert (changed - expected).abs().max() > 1e-3


class Doubled(torch.nn.Conv1d):
    def forward(self, x):
        return 2 * super().forward(x)


def test_layers_that_a_user_changes_are_called():
    x = torch.randn(2, 2, 8, 8)

    def fresh():
        torch.manual_seed(1)
        return MonarchFNO(2, 1, 4, (4, 4), (8, 8), n_layers=2, projection_channels=6)

    plain = fresh()
    twice = fresh()
    with torch.no_grad():
        for layer in (twice.skips[0], twice.projection[2]):
            for p in layer.parameters():
                p.mul_(2)

    def doubled(layer):
        new = Doubled(layer.in_channels, layer.out_channels, 1, bias=layer.bias is not None)
        new.load_state_dict(layer.state_dict())
        return new

    net = fresh()
    net.skips[0], net.projection[2] = doubled(net.skips[0]), doubled(net.projection[2])
    torch.testing.assert_close(net(x), twice(x))
    net = fresh()
    for layer in (net.skips[0], net.projection[0]):
        torch.nn.utils.parametrizations.weight_norm(layer)
    torch.testing.assert_close(net(x), plain(x))
    net = fresh()
    torch.nn.utils.prune.identity(net.skips[0], "weight")
    torch.nn.utils.prune.l1_unstructured(net.projection[0], "weight", 0.5)
    torch.nn.utils.parametrizations.spectral_norm(net.projection[2])
    assert (net(x) - plain(x)).abs().max() > 1e-3
    net(x).sum().backward()
    assert net.projection[0].weight_orig.grad.any()
    net = fresh()
    net.skips[1] = torch.nn.Conv1d(4, 4, 3, padding=1, bias=False)
    net.projection[1] = torch.nn.Tanh()
    assert (net(x) - plain(x)).abs().max() > 1e-3


def test_network_exports():
    net = MonarchFNO(2, 1, 4, (4, 4), (8, 8), n_layers=2)
    x = torch.randn(2, 2, 8, 8)
    exported = torch.export.export(net, (x,))
    torch.testing.assert_close(exported.module()(x), net(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [FNO, MonarchFNO, UNet])
@pytest.mark.parametrize("width", [0, -4, 6.5])
def test_a_width_that_is_none_is_named(make, width):
    more = {} if make is UNet else {"n_modes": (4, 4)} | ({"grid": (8, 8)} if make is MonarchFNO else {})
    with pytest.raises(InputError, match=rf"width is {width}; it must be 1 or more, a whole number"):
        make(2, 1, width=width, **more)


def test_mismatches_name_the_numbers():
    net = MonarchFNO(3, 1, 4, (4, 4), (8, 8))
    with pytest.raises(InputError, match="takes 3 channels, but the data has 2 frames of 1"):
        rollout(net, torch.randn(1, 2, 1, 8, 8), 1)
    with pytest.raises(InputError, match="as many output channels as fields"):
        rollout(MonarchFNO(4, 1, 4, (4, 4), (8, 8)), torch.randn(1, 2, 2, 8, 8), 2)
    with pytest.raises(InputError, match="2 axes, not"):
        FNO(1, 1, 4, (4, 4))(torch.randn(1, 1, 8))
    with pytest.raises(InputError, match="must be even"):
        FNO(1, 1, 4, (5, 4))


def test_unet_has_the_size_that_the_fno_paper_compares_with():
    assert abs(n_parameters(UNet(10, 1)) / 24_950_491 - 1) < 0.02


@pytest.mark.parametrize("n_dim", [1, 2, 3])
def test_unet_maps_fields_to_fields_and_is_translation_equivariant(n_dim):
    net = UNet(2, 3, width=4, n_dim=n_dim)
    x = torch.randn(1, 2, *(16,) * n_dim)
    y = net(x)
    assert y.shape == (1, 3, *(16,) * n_dim)
    shifted = net(x.roll(16, -1))
    torch.testing.assert_close(shifted, y)  # a full period
    wider = net(torch.cat([x, x], -1))
    torch.testing.assert_close(wider[..., :16], y, rtol=1e-4, atol=1e-5)  # periodic continuation changes nothing


def test_unet_refuses_grids_that_it_cannot_halve():
    with pytest.raises(InputError, match="multiple of 16"):
        UNet(1, 1, width=4)(torch.randn(1, 1, 24, 24))
    with pytest.raises(InputError, match="n_dim is 4"):
        UNet(1, 1, n_dim=4)
