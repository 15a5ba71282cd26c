import pytest
import torch
from neuralop.layers.spectral_convolution import SpectralConv

from sciml_monarch import InputError
from sciml_monarch.monarch.kernels.backend import use_backend
from sciml_monarch.pde import MonarchSpectralConv
from sciml_monarch.pde.spectral_conv import kept_frequencies
from tests.helpers import needs_triton


def pair(grid, n_modes, i=3, o=4, learn=False):
    """neuraloperator's layer and ours with the same weights."""
    theirs = SpectralConv(i, o, n_modes)
    ours = MonarchSpectralConv(i, o, n_modes, grid, learn_transforms=learn)
    with torch.no_grad():
        ours.weight.copy_(torch.view_as_real(theirs.weight.tensor))
        ours.bias.copy_(theirs.bias)
    return theirs, ours


CASES = [
    ((32,), (12,)),
    ((30,), (30,)),
    ((16,), (2,)),
    ((16, 24), (8, 12)),
    ((16, 16), (16, 16)),
    ((8, 12, 16), (4, 6, 8)),
]


@pytest.mark.parametrize(("grid", "n_modes"), CASES, ids=str)
def test_frozen_layer_equals_neuraloperator_with_all_gradients(grid, n_modes):
    theirs, ours = pair(grid, n_modes)
    x = torch.randn(2, 3, *grid)
    results = []
    for layer in (theirs, ours):
        inputs = x.clone().requires_grad_()
        y = layer(inputs)
        weight = layer.weight.tensor if layer is theirs else layer.weight
        gradients = torch.autograd.grad(
            (y * torch.linspace(-1, 2, y.numel()).view_as(y)).sum(), [inputs, weight, layer.bias]
        )
        results.append((y, gradients))
    (y, (gx, gw, gb)), (y2, (gx2, gw2, gb2)) = results
    torch.testing.assert_close(y2, y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gx2, gx, rtol=1e-5, atol=1e-5 * gx.abs().max().item())
    torch.testing.assert_close(gw2, torch.view_as_real(gw), rtol=1e-5, atol=1e-5 * gw.abs().max().item())
    torch.testing.assert_close(gb2, gb, rtol=1e-5, atol=1e-5 * gb.abs().max().item())


@pytest.mark.parametrize("n", [12, 18, 24, 40, 64])
def test_frozen_layer_on_another_grid_equals_neuraloperator(n):
    theirs, ours = pair((24, 24), (8, 8))
    x = torch.randn(2, 3, n, n)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_layer_learns_its_transforms_and_then_differs():
    theirs, ours = pair((16, 16), (8, 8), learn=True)
    x, target = torch.randn(4, 3, 16, 16), torch.randn(4, 4, 16, 16)
    start = torch.nn.functional.mse_loss(theirs(x), target).item()
    factors = [p for t in (*ours.analysis, *ours.synthesis) for p in t.parameters()]
    optimizer = torch.optim.Adam(factors, lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(ours(x), target)
        loss.backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in factors)
    assert loss.item() < 0.9 * start


def test_learned_layer_agrees_across_resolutions_on_smooth_fields():
    """A learned transform is resampled, not re-initialised: on a band-limited field the output is the same function."""
    layer = MonarchSpectralConv(1, 1, (8,), (32,), bias=False)
    with torch.no_grad():
        for transform in (*layer.analysis, *layer.synthesis):
            for p in transform.parameters():
                p.add_(0.05 * torch.randn_like(p))

    def wave(n):
        t = 2 * torch.pi * torch.arange(n) / n
        return (torch.sin(3 * t) + torch.cos(5 * t + 1))[None, None]

    coarse, fine = layer(wave(32)), layer(wave(128))
    # the learned synthesis has content up to the trained grid's Nyquist frequency, where grids differ
    band = torch.fft.rfft(coarse[0, 0], norm="forward")[:16]
    torch.testing.assert_close(torch.fft.rfft(fine[0, 0], norm="forward")[:16], band, rtol=1e-4, atol=1e-5)
    assert (coarse - MonarchSpectralConv(1, 1, (8,), (32,), bias=False)(wave(32))).abs().max() > 1e-3


def test_prepared_matrices_give_the_same_output_and_gradients():
    layer = MonarchSpectralConv(2, 2, (6, 6), (12, 12))
    x = torch.randn(3, 2, 12, 12)
    direct, prepared = layer(x), layer(x, layer.prepare((12, 12)))
    torch.testing.assert_close(prepared, direct)
    for a, b in zip(
        torch.autograd.grad(direct.square().sum(), list(layer.parameters())),
        torch.autograd.grad(prepared.square().sum(), list(layer.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)], ids=str)
def test_half_precision_under_autocast(dtype, tolerance):
    layer = MonarchSpectralConv(4, 4, (12, 12), (32, 32))
    x = torch.randn(2, 4, 32, 32)
    reference = layer(x)
    with torch.autocast("cpu", dtype=dtype):
        y = layer(x)
    assert y.dtype == dtype
    assert (y.float() - reference).norm() < tolerance * reference.norm()


def test_skip_connection_and_activation_are_those_of_a_fourier_layer():
    layer = MonarchSpectralConv(3, 3, (6, 6), (12, 12))
    x, skip = torch.randn(2, 3, 12, 12), torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(layer(x, skip=skip, activation="gelu"), torch.nn.functional.gelu(layer(x) + skip))
    torch.testing.assert_close(layer(x, skip=skip), layer(x) + skip)


@needs_triton
@pytest.mark.parametrize(("grid", "n_modes"), [((10, 12), (5, 6)), ((4, 6, 8), (3, 3, 4))], ids=str)
def test_kernels_give_the_same_output_and_gradients(grid, n_modes):
    layer = MonarchSpectralConv(2, 3, n_modes, grid)
    x, skip = torch.randn(2, 2, *grid), torch.randn(2, 3, *grid)
    results = []
    for choice in ("torch", "triton"):
        inputs = [t.clone().requires_grad_() for t in (x, skip)]
        with use_backend(choice):
            y = layer(inputs[0], skip=inputs[1], activation="gelu")
            y.square().sum().backward()
        results.append([y, *(t.grad for t in inputs), *(p.grad.clone() for p in layer.parameters())])
        layer.zero_grad()
    for ours, expected in zip(*reversed(results), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_float32_agrees_with_float64():
    layer = MonarchSpectralConv(4, 4, (12, 12), (32, 32))
    double = MonarchSpectralConv(4, 4, (12, 12), (32, 32)).double()
    double.load_state_dict(layer.state_dict())
    x = torch.randn(2, 4, 32, 32)
    reference = double(x.double())
    assert (layer(x) - reference).norm() < 1e-5 * reference.norm()


def test_modes_and_grids_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="axis 1 keeps 20 modes of a grid of 16 points"):
        MonarchSpectralConv(1, 1, (8, 20), (16, 16))
    with pytest.raises(InputError, match="one entry an axis"):
        MonarchSpectralConv(1, 1, (8,), (16, 16))
    with pytest.raises(InputError, match="2 axes cannot take a grid"):
        MonarchSpectralConv(1, 1, (8, 8), (16, 16)).prepare((16,))


def test_kept_frequencies_are_counted_as_neuraloperator_counts_them():
    leading, last = kept_frequencies((6, 6))
    assert leading.tolist() == [-3, -2, -1, 0, 1, 2]
    assert last.tolist() == [0, 1, 2, 3]
