import json

import pytest
import torch
from torch import nn

from sciml_monarch import InputError, load, save
from sciml_monarch.monarch import MonarchLinear
from sciml_monarch.pde import Description, OperatorTransformer, Surrogate, n_parameters, rollout
from sciml_monarch.pde.transformer import overlap_add, position_features, rotate, rotations, to_patches
from tests.helpers import randn, relative_error

SETTINGS = [(None, None), (4, None), (2, 3), (1, 4)]


def make(blocks=None, rank=None, patch=(4, 4), in_channels=3, out_channels=2):
    return OperatorTransformer(in_channels, out_channels, 32, 2, 2, patch, blocks, rank)


@pytest.mark.parametrize(("patch", "grid"), [((4,), (24,)), ((4, 3), (8, 9)), ((1, 2), (5, 4)), ((2, 1, 2), (4, 3, 4))])
def test_patches_and_windows_keep_the_order_of_the_grid(patch, grid):
    d = len(grid)
    tokens = tuple(n // p for n, p in zip(grid, patch, strict=True))
    x = torch.randn(2, 3, *grid)
    patches = to_patches(x, patch)
    index = torch.randint(0, patches.shape[1], ())
    corner = [int(t) * p for t, p in zip(torch.unravel_index(index, tokens), patch, strict=True)]
    slices = [slice(c, c + p) for c, p in zip(corner, patch, strict=True)]
    torch.testing.assert_close(patches[:, index], x[(..., *slices)].flatten(1), rtol=0, atol=0)
    # windows that show the field around each patch, half a patch farther to each side, fade into that field
    shifted = x.roll([p // 2 for p in patch], list(range(2, 2 + d)))
    windows = shifted
    for axis, p in enumerate(patch):
        windows = torch.cat([windows, windows.narrow(2 + axis, 0, p)], 2 + axis).unfold(2 + axis, 2 * p, p)
    windows = windows.movedim(1, 1 + d).reshape(2, patches.shape[1], -1)
    torch.testing.assert_close(overlap_add(windows, tokens, patch), x, rtol=1e-5, atol=1e-6)


def test_neighbouring_windows_fade_into_each_other():
    """One token that says 1 among others that say 0 makes a smooth bump of twice the patch."""
    windows = torch.zeros(1, 8, 16)
    windows[:, 3] = 1
    y = overlap_add(windows, (8,), (8,))[0, 0]
    assert y.nonzero().flatten().tolist() == list(range(20, 36))
    assert y.diff().abs().max() < 0.2
    assert abs(y.sum() - 8) < 1e-5


@pytest.mark.parametrize("tokens", [(8,), (4, 6), (2, 3, 4)], ids=str)
def test_attention_sees_displacements_on_the_closed_domain_only(tokens):
    cos, sin = rotations(tokens, 24)
    q, k = randn(24, dtype=torch.float32), randn(24, dtype=torch.float32, seed=1)
    scores = (rotate(q, cos, sin) @ rotate(k, cos, sin).mT).reshape(*tokens, *tokens)
    d = len(tokens)
    for axis in range(d):
        torch.testing.assert_close(scores.roll((1, 1), (axis, d + axis)), scores, rtol=1e-4, atol=1e-4)
        assert (scores.roll(1, axis) - scores).abs().max() > 0.1  # every axis is seen
    torch.testing.assert_close(rotate(q, cos, sin).norm(dim=-1), q.norm().expand(len(cos)))


def test_a_block_follows_fields_that_move_on_the_closed_domain():
    tokens = (4, 6)
    block = make().layers[0]
    x = torch.randn(2, 4 * 6, 32)
    angles = rotations(tokens, 16)

    def moved(t):
        return t.unflatten(1, tokens).roll((1, 2), (1, 2)).flatten(1, 2)

    y = block(x, *angles)
    torch.testing.assert_close(block(moved(x), *angles), moved(y), rtol=1e-4, atol=1e-5)
    shuffled = torch.randperm(24)  # not only because it ignores positions
    assert relative_error(block(x[:, shuffled], *angles), y[:, shuffled]) > 1e-3


def test_positions_mean_the_same_on_every_grid():
    coarse, fine = position_features((4, 6)), position_features((8, 18))
    torch.testing.assert_close(fine[..., ::2, ::3], coarse)
    for a, b in zip(rotations((4, 6), 16), rotations((8, 18), 16), strict=True):
        torch.testing.assert_close(b.reshape(8, 18, -1)[::2, ::3], a.reshape(4, 6, -1))


@pytest.mark.parametrize(("blocks", "rank"), SETTINGS)
@pytest.mark.parametrize(("patch", "grid"), [((4,), (16,)), ((4, 4), (16, 8)), ((2, 2, 4), (4, 4, 8))])
def test_maps_fields_to_fields_and_every_parameter_learns(blocks, rank, patch, grid):
    net = make(blocks, rank, patch)
    x = torch.randn(2, 3, *grid)
    y = net(x)
    assert y.shape == (2, 2, *grid)
    assert relative_error(net(x, net.prepare(grid)), y) == 0
    y.square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
    # the bias of the keys adds the same to all scores of a query, but for the rotations
    assert all(p.grad.abs().max() > 0 for p in net.parameters())


@pytest.mark.parametrize("blocks", [None, 2, 4, 8])
def test_parameters_are_those_of_the_layers(blocks):
    w, n = 64, 3
    net = OperatorTransformer(10, 1, w, n, 4, (4, 4), blocks)
    features, windows = 16 * (10 + 6), 4 * 16
    sizes = [(w, w)] * 4 * n + [(w, 4 * w), (4 * w, w)] * n + [(features, w), (w, windows)]
    # min(a, b) (a + b) / blocks is the Monarch paper's; two blocks do not make a square layer smaller
    weights = [a * b if blocks is None else min(a * b, min(a, b) * (a + b) // blocks) for a, b in sizes]
    layers = [m for m in net.modules() if isinstance(m, nn.Linear | MonarchLinear)]
    n_square = 4 * n + 1
    n_dense = {None: len(sizes), 2: n_square}.get(blocks, 0)
    assert [len(layers), sum(isinstance(m, nn.Linear) for m in layers)] == [len(sizes), n_dense]
    rest = (4 * w + 4 * w + w + 4 * w) * n + w + windows + 2 * w + 10  # biases, norms, the point-wise map
    assert n_parameters(net) == sum(weights) + rest


def test_low_rank_of_one_block_has_as_many_weights_as_four_blocks():
    four, low = (OperatorTransformer(10, 1, 64, 4, 4, (4, 4), *setting) for setting in ((4, None), (1, 16)))
    assert n_parameters(low.layers) == n_parameters(four.layers)


@pytest.mark.parametrize(("blocks", "rank"), SETTINGS)
def test_is_rebuilt_from_its_configuration_and_from_a_shared_folder(blocks, rank, tmp_path):
    net = make(blocks, rank, in_channels=4)
    again = OperatorTransformer(**json.loads(json.dumps(net.config)))
    again.load_state_dict(net.state_dict())
    x = torch.randn(2, 4, 16, 8)
    assert relative_error(again(x), net(x)) == 0
    description = Description(("a", "b"), ("1", "1"), (16, 8), (1.0, 1.0), 1.0, 2, 3, {}, {})
    loaded = load(save(Surrogate(net, description), tmp_path / "shared"))
    history = torch.randn(2, 2, 2, 16, 8)
    with torch.no_grad():
        torch.testing.assert_close(loaded.rollout(history, 2), rollout(net, history, 2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("blocks", "rank"), [(None, None), (4, None)])
def test_compiles_whole_and_exports(blocks, rank):
    torch._dynamo.reset()
    net = OperatorTransformer(3, 2, 32, 1, 2, (4, 4), blocks, rank)
    x = torch.randn(2, 3, 8, 8)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), net(x), rtol=1e-5, atol=1e-6)
    exported = torch.export.export(net, (x,))
    torch.testing.assert_close(exported.module()(x), net(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("blocks", [None, 4])
def test_bfloat16_stays_near_float32(blocks):
    net = make(blocks)
    x = torch.randn(2, 3, 16, 8)
    y = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = net(x)
    assert relative_error(mixed, y) < 3e-2
    half = net.to(torch.bfloat16)(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert relative_error(half, y) < 3e-2


def test_runs_on_other_grids_and_says_which_it_cannot_take():
    net = make()
    assert net(torch.randn(1, 3, 32, 20)).shape == (1, 2, 32, 20)
    with pytest.raises(InputError, match=r"patches of \(4, 4\) points cannot take a grid \(16, 18\)"):
        net(torch.randn(1, 3, 16, 18))
    with pytest.raises(InputError, match="cannot take a grid"):
        net(torch.randn(1, 3, 16))
    with pytest.raises(InputError, match="cannot take a grid"):
        rollout(net, torch.randn(1, 3, 1, 2, 2), 1)


def test_is_a_function_of_the_field_that_knows_where_it_is():
    net = make()
    x = torch.randn(1, 3, 16, 16)
    moved = net(x.roll(4, -1)).roll(-4, -1)
    assert relative_error(moved, net(x)) > 1e-3  # forces and boundaries may depend on the place


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 30, "n_heads": 4}, "width 30 must be an even multiple of n_heads 4"),
        ({"n_layers": 0}, "n_layers 0"),
        ({"patch": ()}, "patch is"),
        ({"patch": (4, 0)}, "patch is"),
        ({"rank": 2}, "give blocks too"),
        ({"blocks": 1}, "do not make layers of width 256 smaller"),
        ({"blocks": 0}, "must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        OperatorTransformer(1, 1, **arguments)
