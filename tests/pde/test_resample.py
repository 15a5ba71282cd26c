import math

import pytest
import torch

from sciml_monarch import InputError
from sciml_monarch.pde import MonarchFNO, MonarchSpectralConv
from sciml_monarch.pde.resample import cubic_matrix, fourier_matrix, interpolation_matrix


def points(n):
    return torch.arange(n, dtype=torch.float64) / n


@pytest.mark.parametrize(("n_out", "n_in"), [(8, 8), (7, 7), (16, 8), (8, 16), (9, 16), (16, 9), (15, 7)])
def test_fourier_interpolation_is_exact_for_frequencies_below_both_nyquists(n_out, n_in):
    matrix = fourier_matrix(n_out, n_in)
    assert matrix.shape == (n_out, n_in)
    for f in range((min(n_out, n_in) - 1) // 2 + 1):
        x_in, x_out = (2 * torch.pi * torch.arange(n, dtype=torch.float64) / n for n in (n_in, n_out))
        torch.testing.assert_close(matrix @ torch.cos(f * x_in + 1), torch.cos(f * x_out + 1), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["fourier", "cubic"])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 8])
def test_interpolation_to_the_same_grid_is_the_identity(kind, n):
    identity = torch.eye(n, dtype=torch.float64)
    torch.testing.assert_close(interpolation_matrix(kind, n, n), identity, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("n_out", "n_in"), [(9, 8), (32, 8), (7, 16), (8, 16), (64, 3), (10, 2), (5, 1)])
def test_cubics_are_exact_for_polynomials_up_to_the_ends(n_out, n_in):
    for power in range(min(4, n_in)):
        found = cubic_matrix(n_out, n_in) @ points(n_in) ** power
        torch.testing.assert_close(found, points(n_out) ** power, atol=1e-12, rtol=0)


def test_cubics_have_fourth_order():
    errors = [(cubic_matrix(960, n) @ points(n).exp() - points(960).exp()).abs().max().item() for n in (24, 48)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.15)


def test_what_is_far_from_a_jump_does_not_see_it():
    """The periodic continuation of a ramp jumps at the end of the domain."""
    near_the_end = points(96) > 0.9
    apart = {kind: interpolation_matrix(kind, 96, 24) @ points(24) - points(96) for kind in ("fourier", "cubic")}
    assert apart["cubic"].abs().max() < 1e-12
    assert apart["fourier"].abs()[~near_the_end].max() > 1e-2


def test_cubics_do_not_cross_from_the_domain_into_its_padding():
    matrix = interpolation_matrix("cubic", 30, 15, (20, 10))
    field = torch.cat([1 + points(10), -points(5)])  # linear on either side
    expected = torch.cat([1 + points(20), -points(10)])
    torch.testing.assert_close(matrix @ field, expected, atol=1e-12, rtol=0)
    assert interpolation_matrix("cubic", 2, 5, (2, 4)).shape == (2, 5)  # padding that is a share of few points is none
    assert interpolation_matrix("cubic", 5, 2, (4, 2))[4].norm() == 0


def test_padding_does_not_spoil_what_is_smooth_in_the_domain():
    """A network of one layer that keeps all modes of the DFT and returns its input has a jump at the padding."""
    net = MonarchSpectralConv(1, 1, (20,), (20,), learn_transforms=False, interpolation="cubic").double()
    with torch.no_grad():
        net.weight.zero_()[..., 0] = 1
        net.bias.zero_()

    def field(n):
        return torch.cat([1 + points(n), torch.zeros(n // 4, dtype=torch.float64)])[None, None]

    torch.testing.assert_close(net(field(16)), field(16))
    crossing, apart = (net(field(32), net.prepare((40,), domain)) for domain in (None, ((16,), (32,))))
    torch.testing.assert_close(apart, field(32))
    assert (crossing - field(32)).abs().max() > 0.1


def test_an_unknown_interpolation_is_named():
    with pytest.raises(InputError, match=r"no interpolation 'linear'; choose one of fourier, cubic"):
        MonarchFNO(1, 1, 4, (4,), (8,), interpolation="linear")


@pytest.mark.parametrize("padding", [0.0, 0.25])
@pytest.mark.parametrize("grid", [(16,), (8, 12)])
def test_with_cubics_a_grid_that_has_the_points_of_the_own_one_changes_nothing_there(grid, padding):
    """Those points are what the analysis sees, and cubics go through what the synthesis gives: in every layer."""
    net = MonarchFNO(1, 2, 6, [4] * len(grid), grid, n_layers=3, padding=padding, interpolation="cubic").double()
    with torch.no_grad():
        for p in net.transform_parameters():
            p.add_(0.1 * torch.randn_like(p))
    x = torch.randn(2, 1, *(3 * n for n in grid), dtype=torch.float64)
    every_third = (..., *[slice(None, None, 3)] * len(grid))
    torch.testing.assert_close(net(x)[every_third], net(x[every_third]))
    periodic = MonarchFNO(**net.config | {"interpolation": "fourier"}).double()
    periodic.load_state_dict(net.state_dict())
    torch.testing.assert_close(periodic(x[every_third]), net(x[every_third]))  # no interpolation on the own grid
    assert (periodic(x)[every_third] - net(x)[every_third]).norm() > 1e-3 * net(x).norm()


def test_interpolation_is_in_the_config_where_it_is_not_the_default():
    assert "interpolation" not in MonarchFNO(1, 1, 4, (4,), (8,)).config  # checkpoints of before have none
    assert MonarchFNO(1, 1, 4, (4,), (8,), interpolation="cubic").config["interpolation"] == "cubic"


@pytest.mark.parametrize("kind", ["fourier", "cubic"])
def test_a_network_on_another_grid_compiles_whole(kind):
    net = MonarchFNO(1, 1, 4, (4, 4), (8, 8), n_layers=2, interpolation=kind)
    x = torch.randn(1, 1, 12, 9)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), net(x), rtol=1e-5, atol=1e-6)
