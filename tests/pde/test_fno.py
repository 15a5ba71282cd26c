import pytest
import torch
from torch.nn.functional import gelu

from sciml_monarch import InputError
from sciml_monarch.pde import FNO, MonarchFNO, UNet, n_parameters, rollout


def perturb_transforms(net, scale=0.05):
    with torch.no_grad():
        for p in net.transform_parameters():
            p.add_(scale * torch.randn_like(p))


@pytest.mark.parametrize(
    ("grid", "n_modes"),
    [((32,), (12,)), ((16, 16), (8, 8)), ((16, 16), (16, 16)), ((8, 8, 8), (4, 4, 4))],
    ids=str,
)
def test_fresh_monarch_fno_equals_fno_with_all_gradients(grid, n_modes):
    fno = FNO(3, 2, 6, n_modes, n_layers=3, projection_channels=16)
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


@pytest.mark.parametrize("n", [12, 20, 32, 48])
def test_frozen_monarch_fno_runs_on_other_grids_like_fno(n):
    fno = FNO(2, 1, 4, (8, 8), n_layers=2)
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
        lambda: UNet(4, 1, width=4),
    ],
    ids=["FNO", "MonarchFNO", "UNet"],
)
def test_network_is_rebuilt_from_its_config_and_state(make, tmp_path):
    net = make()
    x = torch.randn(2, 4, 16, 16)
    torch.save(net.state_dict(), tmp_path / "state.pt")
    again = type(net)(**net.config)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.testing.assert_close(again(x), net(x), rtol=0, atol=0)


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


def test_network_exports():
    net = MonarchFNO(2, 1, 4, (4, 4), (8, 8), n_layers=2)
    x = torch.randn(2, 2, 8, 8)
    exported = torch.export.export(net, (x,))
    torch.testing.assert_close(exported.module()(x), net(x), rtol=1e-5, atol=1e-6)


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
