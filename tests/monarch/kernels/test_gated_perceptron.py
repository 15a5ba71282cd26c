"""Gated perceptrons of the channels at every point, in one kernel."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import conv1d, gelu

from sciml_monarch.monarch.conv import FEWEST_POINTS
from sciml_monarch.monarch.kernels.backend import replayed, use_backend
from sciml_monarch.monarch.kernels.pointwise import gated_asked, gated_fits
from sciml_monarch.pde.perceptron import GatedPerceptron
from sciml_monarch.pde.residual_block import ResidualBlock
from tests.helpers import HALF, TOLERANCE, needs_triton, randn, relative_error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# batch, channels in, hidden, out, points
SHAPES = [(2, 48, 64, 48, 130), (3, 20, 27, 20, 70), (1, 1, 1, 1, 1), (2, 33, 16, 64, 65), (1, 64, 40, 2, 129)]

pytestmark = needs_triton


@pytest.fixture
def launches(monkeypatch):
    """Names of the kernels that ran, one after the other."""
    from sciml_monarch.monarch.kernels import gated_perceptron_triton

    seen = []
    for name in ("gated_perceptron", "gated_perceptron_gradients"):
        launch = getattr(gated_perceptron_triton, name)
        monkeypatch.setattr(
            gated_perceptron_triton, name, lambda *a, launch=launch, name=name: (seen.append(name), launch(*a))[1]
        )
    return seen


def network(shape, dtype=torch.float32):
    """A perceptron, its fields, fields to be added, and the gradient of the output."""
    b, i, h, o, n = shape
    torch.manual_seed(0)
    net = GatedPerceptron(i, h, o, None, None)
    net.up.bias.data.normal_()
    net.down.bias.data.normal_()
    for layer in (net.up, net.down):  # biases are never rounded to half precision
        layer.weight.data = layer.weight.data.to(dtype)
    drawn = [randn(b, c, n, seed=k).to(dtype).to(DEVICE) for k, c in enumerate((i, o, o))]
    return net.to(DEVICE), *drawn


def plain(x, up, up_bias, down, down_bias, skip):
    value, gate = conv1d(x, up, up_bias).chunk(2, 1)
    return skip + conv1d(value * gelu(gate), down, down_bias)


def results(net, x, skip, g):
    """Output and the gradients of fields, parameters and what is added."""
    leaves = [x.detach().requires_grad_(), skip.detach().requires_grad_()]
    y = net(*leaves)
    return [y.detach(), *torch.autograd.grad(y, [leaves[0], *net.parameters(), leaves[1]], g)]


def exact(net, x, skip, g):
    leaves = [t.detach().double().requires_grad_() for t in (x, *net.parameters(), skip)]
    y = plain(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, g.double())]


def check(shape, dtype, allowed):
    net, x, skip, g = network(shape, dtype)
    with use_backend("triton"):
        found = results(net, x, skip, g)
    wanted = exact(net, x, skip, g)
    for ours, e in zip(found, wanted, strict=True):
        assert relative_error(ours, e) < allowed
    assert [t.dtype for t in found] == [dtype, dtype, dtype, torch.float32, dtype, torch.float32, dtype]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_exact_as_float32(shape, poisoned, precision, launches):
    precision("highest")
    check(shape, torch.float32, TOLERANCE[torch.float32])
    assert launches == ["gated_perceptron", "gated_perceptron_gradients"]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_half_precision(shape, dtype, poisoned, launches):
    check(shape, dtype, TOLERANCE[dtype])
    assert len(launches) == 2


@pytest.mark.cuda
@pytest.mark.parametrize(("wanted", "allowed"), [("high", 3e-3), ("medium", 2e-2)])
# a single number may be the small difference of two, with a relative error as large as that is small
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if math.prod(shape) > 1], ids=str)
def test_lower_precisions(shape, wanted, allowed, precision, poisoned):
    precision(wanted)
    check(shape, torch.float32, allowed)


@pytest.mark.parametrize("tile", [(16, 4, 3), (32, 4, 1), (64, 4, 264)], ids=str)
def test_tiles_and_numbers_of_programs_compute_the_same(tile, poisoned, precision):
    from sciml_monarch.monarch.kernels import gated_perceptron_triton as kernels

    precision("highest")
    net, x, skip, g = network(SHAPES[0])
    weights = net.up.weight[..., 0], net.up.bias, net.down.weight[..., 0], net.down.bias
    tile = kernels.GatedTile(*tile)
    with torch.no_grad():
        found = [
            kernels.gated_perceptron(x, *weights, skip, tile),
            *kernels.gated_perceptron_gradients(g, x, *weights[:3], tile),
        ]
        alone = kernels.gated_perceptron(x, *weights, None, tile)
    y, by_x, by_up, by_up_bias, by_down, by_down_bias, _ = exact(net, x, skip, g)
    for ours, e in zip(found, (y, by_x, by_up[..., 0], by_up_bias, by_down[..., 0], by_down_bias), strict=True):
        assert relative_error(ours, e) < TOLERANCE[torch.float32]
    assert relative_error(alone, y - skip) < TOLERANCE[torch.float32]


def test_fields_of_a_grid_and_rows_that_are_not_contiguous(precision, launches):
    precision("highest")
    net, x, skip, g = network((2, 20, 16, 20, 64))
    grid = [t.reshape(2, 20, 4, 16).transpose(2, 3).contiguous().transpose(2, 3) for t in (x, skip, g)]
    with use_backend("triton"):
        found = results(net, *grid)
    wanted = results(net, x, skip, g)
    assert len(launches) == 2
    for ours, e in zip(found, wanted, strict=True):
        assert relative_error(ours.reshape(e.shape), e) < TOLERANCE[torch.float32]


def test_the_residual_stream_stays_in_float32_under_autocast(launches):
    net, x, skip, g = network(SHAPES[1])
    with use_backend("triton"), torch.autocast(DEVICE, torch.float16):
        y = net(x, skip)
        usual = net(x)
    assert (y.dtype, usual.dtype, len(launches)) == (torch.float32, torch.float16, 2)
    torch.testing.assert_close(y, skip + usual)
    wanted = exact(net, x, skip, g)
    for ours, e in zip(torch.autograd.grad(y, list(net.parameters()), g), wanted[2:-1], strict=True):
        assert relative_error(ours, e) < 10 * TOLERANCE[torch.float16]


def test_frozen_weights_cost_no_gradients_and_gradients_can_be_differentiated_again(precision, launches):
    precision("highest")
    net, x, skip, g = network((2, 5, 4, 5, 6))
    net.requires_grad_(False)
    with use_backend("triton"):
        (found,) = torch.autograd.grad(net(x.requires_grad_(), skip), x, g)
    assert relative_error(found, exact(net, x, skip, g)[1]) < TOLERANCE[torch.float32]
    net.requires_grad_(True)

    def norm_of_gradient(net, x, skip, g):
        leaves = [x, *net.parameters()]
        first = torch.autograd.grad(net(x, skip), leaves, g, create_graph=True)
        return torch.autograd.grad(sum(t.square().sum() for t in first), leaves[:-1])  # no gradient has the last bias

    with use_backend("triton"):
        second = norm_of_gradient(net, x, skip, g)
    assert launches == ["gated_perceptron"] * 2
    wide = [t.detach().double().requires_grad_(t is x) for t in (x, skip, g)]
    for ours, e in zip(second, norm_of_gradient(net.double(), *wide), strict=True):
        assert relative_error(ours, e) < 10 * TOLERANCE[torch.float32]


def test_gradients_of_several_applications_are_the_same_where_they_can_be_differentiated_again(precision, launches):
    precision("highest")
    net, x, skip, g = network((2, 5, 4, 5, 6))
    x.requires_grad_()

    def gradients(create_graph):
        y = net(net(net(x, skip), skip), skip)
        return torch.autograd.grad(y, list(net.parameters()), g, create_graph=create_graph)

    with use_backend("triton"):
        once, again = gradients(False), gradients(True)
    assert launches == ["gated_perceptron"] * 3 + ["gated_perceptron_gradients"] * 3 + ["gated_perceptron"] * 3
    for usual, kept in zip(once, again, strict=True):
        assert relative_error(kept, usual) < TOLERANCE[torch.float32]


def test_monarch_maps_are_multiplied_out(precision, launches):
    precision("highest")
    torch.manual_seed(0)
    net = GatedPerceptron(16, 24, 16, 4, None).to(DEVICE)
    x, skip, g = (randn(2, 16, FEWEST_POINTS // 2, seed=k).float().to(DEVICE) for k in range(3))
    with use_backend("triton"):
        found = results(net, x, skip, g)
    assert launches == ["gated_perceptron", "gated_perceptron_gradients"]
    with use_backend("torch"):
        wanted = results(net.double(), *(t.double() for t in (x, skip, g)))
    for ours, e in zip(found, wanted, strict=True):
        assert relative_error(ours, e) < TOLERANCE[torch.float32]


def test_what_does_not_belong_together_is_left_to_torch(launches):
    net, x, skip, _ = network(SHAPES[1])
    usual = net(x)
    with use_backend("triton"):
        for wrong in (x[:, :19], torch.cat([x, x[:, :1]], 1), x.half()):
            with pytest.raises(RuntimeError):
                net(wrong)
        assert launches == []
        for part in (skip[:1], skip[..., :1], skip[:, :1]):  # is expanded, as by torch
            torch.testing.assert_close(net(x, part), part + usual)
    assert len(launches) == 3


def test_a_hook_sees_the_branch_and_not_what_it_is_added_to():
    block = ResidualBlock(4, (4, 4), (8, 8), 8, "none", 1, False, True, True, "identity", None, None, gated=True)
    x = torch.randn(2, 4, 8, 8)
    prepared = block.spectral.prepare((8, 8))
    block.mlp.register_forward_hook(lambda module, inputs, output: 0 * output)
    for backend in ("torch", "triton"):
        with use_backend(backend):
            assert torch.equal(block(x, prepared), x)


def test_what_does_not_fit_or_is_watched_goes_another_way_and_is_right(launches):
    for shape in ((2, 65, 16, 5, 20), (2, 16, 65, 5, 20), (2, 16, 16, 65, 20), (0, 16, 16, 16, 20)):
        net, x, skip, _ = network(shape)
        with use_backend("triton"):
            y = net(x, skip)
        torch.testing.assert_close(y, plain(x, *net.parameters(), skip))
    net, x, skip, _ = network(SHAPES[1])
    net.down.register_forward_hook(lambda module, inputs, output: 2 * output)
    with use_backend("triton"):
        torch.testing.assert_close(net(x), 2 * (plain(x, *net.parameters(), skip) - skip))
    assert launches == []


def asked(points=4096, kind="cuda", dtype=torch.float32):
    with FakeTensorMode():
        return gated_asked(torch.empty(32, 32, points, device=kind, dtype=dtype))


def test_auto_takes_them_where_they_were_timed(launches):
    with replayed():
        assert asked()
        assert not asked(kind="cpu")
        assert asked(dtype=torch.bfloat16)
        assert not asked(dtype=torch.float16)
        with use_backend("torch"):
            assert not asked()
    assert not asked()
    assert asked(points=2**16)
    assert not asked(points=2**16, dtype=torch.bfloat16)
    assert not asked(points=2**16, kind="cpu")
    net, x, skip, _ = network(SHAPES[0])
    net(x, skip)
    assert launches == []


@pytest.mark.cuda
def test_auto_takes_them_in_a_graph(launches):
    net, x, skip, g = network(SHAPES[0])
    with replayed():
        results(net, x, skip, g)
    assert launches == ["gated_perceptron", "gated_perceptron_gradients"]


def test_sizes_that_fit():
    sizes = (64, 64, 64, True), (65, 64, 64, False), (64, 65, 64, False), (8, 8, 65, False)
    for inputs, hidden, outputs, taken in sizes:
        assert gated_fits(torch.empty(2 * hidden, inputs), torch.empty(outputs, hidden)) == taken
