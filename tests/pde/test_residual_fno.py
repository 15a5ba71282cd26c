import re
from copy import deepcopy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional as F

from sciml_monarch import InputError
from sciml_monarch.pde import MonarchFNO, MonarchSpectralConv, ResidualMonarchFNO, n_parameters, rollout
from sciml_monarch.pde.positions import coordinates
from sciml_monarch.pde.residual_block import FactorizedSpectralConv, Normalization, PeriodicConv
from tests.pde.test_fno import perturb_transforms

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "navier_stokes").glob("residual_*.yaml"))
EVERYTHING = dict(normalization="instance", local_kernel=3, mlp_ratio=1.5)


def make(grid=(8, 8), n_modes=(6, 4), width=4, **options):
    """A small network of 3 layers that takes 2 channels."""
    torch.manual_seed(0)
    return ResidualMonarchFNO(2, 1, width, n_modes, grid, **{"n_layers": 3, "projection_channels": 8} | options)


def fft_conv(conv, x):
    """The spectral convolution with torch.fft: kept frequencies, those whose conjugate is not stored counted twice."""
    grid = x.shape[2:]
    axes = tuple(range(2, x.ndim))
    kept = [torch.arange(-(m // 2), m - m // 2) % n for m, n in zip(conv.n_modes, grid, strict=True)]
    kept[-1] = torch.arange(conv.n_modes[-1] // 2 + 1)
    places = (slice(None), slice(None), *torch.meshgrid(*kept, indexing="ij"))
    modes = torch.fft.fftn(x, dim=axes)[places]
    mixed = torch.einsum("bi...,io...->bo...", modes, torch.view_as_complex(conv.weight.contiguous()))
    mixed = mixed * torch.where((kept[-1] == 0) | (2 * kept[-1] == grid[-1]), 1, 2)
    spectrum = mixed.new_zeros(x.shape[0], mixed.shape[1], *grid)
    spectrum[places] = mixed
    y = torch.fft.ifftn(spectrum, dim=axes).real
    return y if conv.bias is None else y + conv.bias.view(-1, *(1,) * len(grid))


def fft_spectral(spectral, x):
    if not isinstance(spectral, FactorizedSpectralConv):
        return fft_conv(spectral, x)
    total = 0
    for axis, conv in enumerate(spectral.convs, start=2):
        lines = x.transpose(axis, -1).transpose(1, -2)
        y = fft_conv(conv, lines.reshape(-1, *lines.shape[-2:])).view(lines.shape)
        total = total + y.transpose(1, -2).transpose(axis, -1)
    return total


def stencil(weight, x):
    """A periodic convolution as a sum of shifted fields."""
    reach = weight.shape[-1] // 2
    total = 0
    for place in torch.cartesian_prod(*[torch.arange(weight.shape[-1])] * (x.ndim - 2)).view(-1, x.ndim - 2).tolist():
        shifted = x.roll([reach - p for p in place], tuple(range(2, x.ndim)))
        total = total + torch.einsum("oi,bi...->bo...", weight[(..., *place)], shifted)
    return total


def at_points(linear, x):
    y = torch.einsum("oi,bi...->bo...", linear.weight[..., 0], x)
    return y if linear.bias is None else y + linear.bias.view(-1, *(1,) * (x.ndim - 2))


def reference(net, x):
    """The network of frozen transforms, with torch.fft and torch's own layers."""
    places = coordinates(x.shape[2:], x)
    if net.config["positions"] == "periodic":
        angles = 2 * torch.pi * places
        places = torch.cat([angles.sin(), angles.cos()], 1)
    x = at_points(net.lifting, torch.cat([x, places.expand(len(x), -1, *x.shape[2:])], 1))
    for layer in net.layers:
        kind, norm = getattr(layer.norm, "kind", None), layer.norm
        y = x
        if kind == "instance":
            over = tuple(range(2, x.ndim))
            y = (x - x.mean(over, keepdim=True)) / (x.var(over, correction=0, keepdim=True) + 1e-5).sqrt()
            y = y * norm.weight.view(-1, *(1,) * len(over)) + norm.bias.view(-1, *(1,) * len(over))
        elif kind == "layer":
            y = F.layer_norm(x.movedim(1, -1), x.shape[1:2], norm.weight, norm.bias).movedim(-1, 1)
        z = fft_spectral(layer.spectral, y)
        if isinstance(layer.local, PeriodicConv):
            z = z + stencil(layer.local.weight, y)
        elif layer.local is not None:
            z = z + at_points(layer.local, y)
        if net.config["gated"]:
            value, gate = at_points(layer.mlp.up, z).chunk(2, 1)
            x = x + at_points(layer.mlp.down, value * F.gelu(gate))
            continue
        z = F.gelu(z)
        if layer.mlp is not None:
            z = at_points(layer.mlp[2], F.gelu(at_points(layer.mlp[0], z)))
        x = x + z
    return at_points(net.projection[2], F.gelu(at_points(net.projection[0], x)))


def output_and_gradients(apply, x, parameters):
    x = x.clone().requires_grad_()
    y = apply(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *parameters])]


def assert_equal(found, expected, tolerance=1e-5):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * b.abs().max().item())


@pytest.mark.parametrize("factorized", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        EVERYTHING,
        EVERYTHING | dict(gated=True, positions="periodic"),
        dict(normalization="layer", local_kernel=1, mlp_ratio=0),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("grid", "n_modes"), [((8, 8), (6, 4)), ((8, 6), (4, 6)), ((16,), (7,)), ((6, 6, 6), (4, 2, 4))], ids=str
)
def test_frozen_transforms_are_the_fft_with_all_gradients(grid, n_modes, options, factorized):
    net = make(grid, n_modes, learn_transforms=False, factorized=factorized, **options)
    x = torch.randn(2, 2, *grid)
    trained = [p for p in net.parameters() if p.requires_grad]
    with torch.no_grad():
        for p in trained:  # nothing stays at a special value
            p.add_(0.1 * torch.randn_like(p))
    found = output_and_gradients(net, x, trained)
    assert_equal(found, output_and_gradients(lambda x: reference(net, x), x, trained))


def test_with_everything_off_it_is_the_monarch_fno_with_all_gradients():
    net = make(residual=False, mlp_ratio=0, normalization="none", local_kernel=1)
    fno = MonarchFNO(2, 1, 4, (6, 4), (8, 8), n_layers=3, projection_channels=8)
    perturb_transforms(fno)
    names = [name for name, _ in fno.named_parameters()]
    for theirs, ours in (("convs", "spectral"), ("skips", "local")):
        names = [re.sub(rf"^{theirs}\.(\d+)", rf"layers.\1.{ours}", name) for name in names]
    net.load_state_dict(dict(zip(names, fno.parameters(), strict=True)))
    parameters = dict(net.named_parameters())
    x = torch.randn(2, 2, 8, 8)
    expected = output_and_gradients(fno, x, fno.parameters())
    assert_equal(output_and_gradients(net, x, [parameters[name] for name in names]), expected, 1e-6)


def test_a_local_branch_of_zeros_is_none():
    without, with_it = make(), make(local_kernel=3)
    with_it.load_state_dict(without.state_dict(), strict=False)
    x = torch.randn(2, 2, 8, 8)
    assert (with_it(x) - without(x)).abs().max() > 1e-4
    for layer in with_it.layers:
        torch.nn.init.zeros_(layer.local.weight)
    torch.testing.assert_close(with_it(x), without(x), rtol=0, atol=1e-6)


def test_along_one_axis_the_factorized_convolution_is_the_full_one():
    full, factorized = make((16,), (6,)), make((16,), (6,), factorized=True)
    state = {name.replace("spectral.", "spectral.convs.0."): value for name, value in full.state_dict().items()}
    factorized.load_state_dict(state)
    x = torch.randn(2, 2, 16)
    torch.testing.assert_close(factorized(x), full(x), rtol=1e-6, atol=1e-6)


def test_factorized_weights_are_of_each_axis_and_start_with_unit_variance_in_sum():
    torch.manual_seed(0)
    layer = FactorizedSpectralConv(32, (16, 8), (16, 8), learn_transforms=False)
    trained = [p for p in layer.parameters() if p.requires_grad]
    assert sorted(p.numel() for p in trained) == [32, 32 * 32 * 5 * 2, 32 * 32 * 9 * 2]
    full = MonarchSpectralConv(32, 32, (16, 8), (16, 8)).weight.var()
    for conv in layer.convs:
        torch.testing.assert_close(conv.weight.var(), full / 2, rtol=0.05, atol=0)


@pytest.mark.parametrize("factorized", [False, True])
def test_shared_transforms_are_the_same_in_all_layers_and_their_gradients_add_up(factorized):
    shared = make(share_transforms=True, factorized=factorized)
    separate = make(factorized=factorized)
    perturb_transforms(shared)
    state = shared.state_dict()
    missing = separate.load_state_dict(state, strict=False).missing_keys
    assert len(missing) == 2 * 2 * 4  # of two layers: two factors of four transforms
    for name in missing:
        separate.state_dict()[name].copy_(state[f"layers.0.{name.split('.', 2)[2]}"])
    x = torch.randn(2, 2, 8, 8)
    y = [net(x) for net in (shared, separate)]
    torch.testing.assert_close(*y)
    for out in y:
        out.square().sum().backward()
    n = len(shared.transform_parameters())
    assert n == 8
    assert len({id(p) for p in shared.transform_parameters()}) == n
    theirs = [p.grad for p in separate.transform_parameters()]
    sums = [sum(theirs[i::n]) for i in range(n)]
    assert_equal([p.grad for p in shared.transform_parameters()], sums)
    assert n_parameters(separate) - n_parameters(shared) == 2 * sum(p.numel() for p in shared.transform_parameters())
    # layers stay usable on their own, and a copy shares with itself alone
    conv = shared.layers[2].spectral_convs[0]
    field = torch.randn(1, 4, *conv.grid)
    torch.testing.assert_close(conv(field), separate.layers[2].spectral_convs[0](field))
    other = deepcopy(shared)
    perturb_transforms(shared)
    torch.testing.assert_close(other(x), y[0])
    assert other.layers[1].spectral_convs[0].analysis is other.layers[0].spectral_convs[0].analysis


@pytest.mark.parametrize("n", [8, 12, 16, 24])
@pytest.mark.parametrize("factorized", [False, True])
def test_frozen_network_runs_on_other_grids_like_the_fft(n, factorized):
    net = make((12, 12), learn_transforms=False, factorized=factorized, normalization="instance")
    x = torch.randn(1, 2, n, n)
    torch.testing.assert_close(net(x), reference(net, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normalization", ["none", "instance", "layer"])
def test_learned_network_changes_little_with_the_resolution(normalization):
    net = make((16, 16), local_kernel=3, normalization=normalization)
    perturb_transforms(net, 0.02)

    def wave(n):
        t = 2 * torch.pi * torch.arange(n) / n
        return torch.stack([torch.sin(t)[:, None] * torch.cos(2 * t), torch.cos(t)[:, None] * torch.sin(t)])[None]

    coarse, fine = net(wave(16)), net(wave(64))[..., ::4, ::4]
    assert (fine - coarse).norm() < 0.1 * coarse.norm()


@pytest.mark.parametrize("normalization", ["instance", "layer"])
def test_an_empty_batch_and_a_single_point_are_normalised_too(normalization):
    layer = Normalization(4, normalization)
    torch.nn.init.normal_(layer.bias)
    assert layer(torch.zeros(0, 4, 3, 3)).shape == (0, 4, 3, 3)
    point = layer(torch.ones(2, 4, 1, 1))
    torch.testing.assert_close(point, layer.bias.view(1, 4, 1, 1).expand(2, -1, -1, -1))


def test_stencil_keeps_its_width_on_finer_grids():
    layer = PeriodicConv(3, 5, (8, 6))
    fine = torch.randn(2, 3, 24, 12)
    torch.testing.assert_close(layer(fine)[..., ::3, ::2], layer(fine[..., ::3, ::2]))
    assert layer(torch.randn(1, 3, 10, 7)).shape == (1, 3, 10, 7)


@pytest.mark.parametrize("normalization", ["none", "instance", "layer"])
@pytest.mark.parametrize(
    "options", [{}, dict(local_kernel=3), dict(mlp_ratio=0), dict(factorized=True), dict(gated=True)], ids=str
)
@torch.no_grad()
def test_variance_stays_in_a_fresh_deep_network(normalization, options):
    net = make((16, 16), (12, 12), 16, n_layers=16, normalization=normalization, **options)
    variances = []
    for layer in net.layers:
        layer.register_forward_hook(lambda _, inputs, output: variances.append((inputs[0].var(), output.var())))
    net(torch.randn(4, 2, 16, 16))
    values = torch.tensor([variances[0][0], *(after for _, after in variances)])
    assert len(values) == 17
    assert values.max() < 4 * values.min()
    assert all(a != b for a, b in pairwise(values))  # every layer does something


def test_layer_is_equivariant_to_translations():
    layer = make(factorized=False, **EVERYTHING).layers[1]
    lines = make(factorized=True, normalization="layer").layers[1]
    x = torch.randn(2, 4, 8, 8)
    for block in (layer, lines):
        prepared = [
            m for conv, grid in zip(block.spectral_convs, grids(block), strict=True) for m in conv.prepare(grid)
        ]
        moved = block(x.roll((3, 2), (2, 3)), prepared)
        torch.testing.assert_close(moved, block(x, prepared).roll((3, 2), (2, 3)), rtol=1e-5, atol=1e-5)


def grids(block):
    return [conv.grid for conv in block.spectral_convs]


@pytest.mark.parametrize(
    "options",
    [
        {},
        EVERYTHING,
        dict(factorized=True, share_transforms=True, normalization="layer"),
        dict(gated=True, positions="periodic", normalization="instance", width=16, blocks=4),
        dict(share_transforms=True, local_kernel=1, mlp_ratio=4, width=16, blocks=4, rank=1),
    ],
    ids=str,
)
def test_network_is_rebuilt_compiled_exported_and_rolled_out(options, tmp_path):
    net = make(**options)
    perturb_transforms(net)
    x = torch.randn(2, 2, 8, 8)
    expected = net(x)
    torch.testing.assert_close(net(x, net.prepare((8, 8))), expected)
    torch.save(net.state_dict(), tmp_path / "state.pt")
    again = ResidualMonarchFNO(**net.config)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.testing.assert_close(again(x), expected, rtol=0, atol=0)
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-6)
    exported = torch.export.export(net, (x,))
    torch.testing.assert_close(exported.module()(x), expected, rtol=1e-5, atol=1e-6)
    frames = rollout(net, x[:, :, None], 3)
    torch.testing.assert_close(frames[:, 0], expected)
    torch.testing.assert_close(frames[:, 2], net(frames[:, :2, 0]))
    frames.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("options", [EVERYTHING, dict(factorized=True, normalization="layer")], ids=str)
def test_half_precision_of_autocast_is_near(options):
    net = make(**options)
    x = torch.randn(2, 2, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x)
    assert y.dtype == torch.bfloat16
    assert (y.float() - net(x)).norm() < 0.03 * net(x).norm()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(normalization="batch"), "normalization is 'batch'"),
        (dict(local_kernel=2), "local_kernel is 2; it must be one of 0, 1, 3, 5"),
        (dict(local_kernel=5, grid=(8, 4)), r"local_kernel is 5, which a grid \[8, 4\]"),
        (dict(mlp_ratio=-1), "mlp_ratio is -1 at width 4"),
        (dict(mlp_ratio=0.1), "mlp_ratio is 0.1 at width 4"),
        (dict(mlp_ratio=float("nan")), "mlp_ratio is nan"),
        (dict(n_layers=0), "n_layers is 0; it must be 1 or more"),
        (dict(width=0), "width is 0"),
        (dict(blocks=0), "blocks is 0"),
        (dict(gated=True, mlp_ratio=0), "gated is the form of the channel MLPs, which mlp_ratio 0"),
        (dict(positions="polar"), "positions is 'polar'; it must be one of linear, periodic"),
        (dict(rank=2), "rank is 2 without blocks"),
        (dict(n_modes=(4,)), r"n_modes \[4\] and grid \[8, 8\]"),
        (dict(n_modes=(10, 4)), "axis 0 keeps 10 modes of a grid of 8 points"),
    ],
    ids=str,
)
def test_bad_arguments_name_the_numbers(options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


@pytest.mark.parametrize("factorized", [False, True])
def test_fields_of_other_dimensions_are_refused(factorized):
    with pytest.raises(InputError, match="fields of 2 axes cannot take a grid"):
        make(factorized=factorized)(torch.randn(1, 2, 8))


# ways to train, of which one can be more than one setting
SETTINGS_OF_WAYS = {
    "residual_all_1e-5.yaml": {"width", "n_modes"},
    "residual_batch_80_1e-5.yaml": {"optimization", "batch_size"},
    "residual_factorized_all_1e-5.yaml": {"factorized", "n_modes"},
    "residual_gated_1e-5.yaml": {"gated", "mlp_ratio"},
    "residual_single_step_1e-5.yaml": {"noise", "n_steps", "batch_size", "loader", "max_epochs"},
    "residual_fine_tuned_1e-5.yaml": {"init_from", "optimization", "max_epochs"},
    **{
        f"residual_history_{n}_1e-5.yaml": {"in_channels", "n_history", "loader", "limit_train_batches"}
        for n in (1, 2, 4)
    },
}


def test_shipped_configurations_have_at_most_20_million_parameters_and_change_one_thing():
    settings = {}
    for config in CONFIGS:
        values = yaml.safe_load(config.read_text())
        model, data = (values[part]["init_args"] for part in ("model", "data"))
        net = model.pop("net")["init_args"]
        with torch.device("meta"):
            assert n_parameters(ResidualMonarchFNO(**net)) <= 20_000_000, config.name
        settings[config.name] = {**model, **net, **data, **values["trainer"]}
    base = settings.pop("residual_1e-5.yaml")
    assert settings.keys() > SETTINGS_OF_WAYS.keys()
    for name, other in settings.items():
        differing = {key for key in {*base, *other} if base.get(key) != other.get(key)}
        assert differing == SETTINGS_OF_WAYS.get(name, differing), name
        assert len(differing) == len(SETTINGS_OF_WAYS.get(name, ["one"])), (name, differing)
