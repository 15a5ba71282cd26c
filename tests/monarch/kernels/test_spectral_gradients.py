import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.functional import gelu

from sciml_monarch.monarch.kernels import spectral_reference as reference
from sciml_monarch.monarch.kernels.backend import use_backend
from sciml_monarch.monarch.kernels.spectral import spectral_analysis, spectral_synthesis
from sciml_monarch.monarch.kernels.spectral_mixing import spectral_mixing
from tests.helpers import TOLERANCE, needs_triton, randn, relative_error
from tests.monarch.kernels import spectral_layers
from tests.monarch.kernels.spectral_layers import BACKENDS, DEVICE, layer, tensors

exact_products = spectral_layers.exact_products  # a fixture, of every test


def test_mixing_is_a_complex_product_with_gradients_of_gradients():
    modes, weights = randn(4, 2, 3, 2).requires_grad_(), randn(4, 2, 2, 5, seed=1).requires_grad_()
    # planes last, as torch's complex numbers have them; the weights' columns are (plane, output)
    z, w = (torch.view_as_complex(t.movedim(dim, -1).contiguous()) for t, dim in ((modes, 1), (weights, 2)))
    expected = torch.view_as_real(z @ w).movedim(-1, 1)
    torch.testing.assert_close(spectral_mixing(modes, weights.flatten(2)), expected)
    with torch.no_grad():
        torch.testing.assert_close(spectral_mixing(modes, weights.flatten(2)), expected)
    inputs = (modes, weights.detach().flatten(2).requires_grad_())
    assert torch.autograd.gradcheck(spectral_mixing, inputs)
    assert torch.autograd.gradgradcheck(spectral_mixing, inputs)


def test_the_fields_in_front_of_an_activation_are_kept_in_place_of_those_behind():
    x, analysis, _, _, _ = tensors((8, 8), (4, 3), 1, 2)
    x.requires_grad_()
    h = gelu(x)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        spectral_analysis(h, [m.requires_grad_() for m in analysis], x)
    assert x.data_ptr() in kept
    assert h.data_ptr() not in kept


@pytest.mark.parametrize(("grid", "kept"), [((5,), (2,)), ((4, 6), (3, 2)), ((2, 3, 4), (2, 1, 2))], ids=str)
def test_gradients_of_gradients_are_exact(grid, kept):
    x, analysis, synthesis, bias, _ = tensors(grid, kept, 1, 2)
    inputs = [t.requires_grad_() for t in (x, *analysis, *synthesis, bias)]
    d = len(grid)

    def function(x, *rest):
        return layer(spectral_analysis, spectral_synthesis, x, rest[:d], rest[d:-1], rest[-1])

    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_transforms_of_torch_func_see_through_the_layer(backend):
    """They are shown plain torch; the operators would give a tangent of zero in silence, or raise."""
    x, analysis, synthesis, bias, _ = tensors((4, 6), (3, 2), 3, 2)
    x, bias = (t.float().to(DEVICE) for t in (x, bias))
    analysis, synthesis = ([t.float().to(DEVICE) for t in ts] for ts in (analysis, synthesis))

    def run(analyse, synthesise):
        def function(x, *matrices):
            return layer(analyse, synthesise, x, matrices, synthesis, bias)

        def loss(matrices, x):
            return function(x[None], *matrices).square().sum()

        inputs = (x, *analysis)
        _, tangent = torch.func.jvp(function, inputs, tuple(torch.ones_like(t) for t in inputs))
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(t, torch.ones_like(t)) for t in inputs]
            dual = forward_ad.unpack_dual(function(*duals)).tangent
        return tangent, dual, *torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(analysis, x)

    expected = run(reference.analysis, reference.synthesis)
    with use_backend(backend):
        found = run(spectral_analysis, spectral_synthesis)
    for a, b in zip(found, expected, strict=True):
        assert a is not None
        assert relative_error(a, b) < TOLERANCE[torch.float32]


@needs_triton
def test_a_backward_pass_outside_of_the_choice_runs_the_kernels_too(monkeypatch):
    from sciml_monarch.monarch.kernels import spectral_configs, spectral_triton

    x, analysis, synthesis, bias, _ = tensors((8, 12), (4, 3), 1, 2)
    x, bias, *matrices = (t.float().to(DEVICE).requires_grad_() for t in (x, bias, *analysis, *synthesis))
    with use_backend("triton"):
        y = layer(spectral_analysis, spectral_synthesis, x, matrices[:2], matrices[2:], bias)
    ran = []
    problem = spectral_triton.problem  # of which every launch asks
    monkeypatch.setattr(spectral_triton, "problem", lambda kernel, *args: ran.append(kernel) or problem(kernel, *args))
    y.sum().backward(retain_graph=True)
    assert set(ran) == set(spectral_configs.KERNELS)
    ran.clear()
    with use_backend("torch"):
        y.sum().backward()
    assert not ran


def test_nothing_is_kept_for_gradients_of_frozen_matrices():
    x, analysis, synthesis, _, _ = tensors((8, 8), (4, 3), 1, 2)
    x.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        modes = spectral_analysis(x, analysis)
        y, _ = spectral_synthesis(modes, synthesis)
    assert {m.data_ptr() for m in (*analysis, *synthesis)} == set(kept)
    assert torch.autograd.grad(y.sum(), x)[0].any()


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_the_gradient_of_a_bias_does_not_overflow_in_half_precision(compiled):
    """A sum of 70 x 36 ones times 64 is more than half precision has, and less than float32 has."""
    _, _, synthesis, bias, _ = tensors((70, 36), (2, 3), 1, 2)
    modes, bias = torch.zeros(6, 2, 1, 2, requires_grad=True), bias.float().requires_grad_()
    synthesis = [t.float() for t in synthesis]

    def function(modes, bias):
        return spectral_synthesis(modes, synthesis, None, bias)[0]

    with torch.autocast("cpu", dtype=torch.float16):
        y = (torch.compile(function, fullgraph=True, backend="aot_eager") if compiled else function)(modes, bias)
    assert y.dtype == torch.float16
    y.backward(torch.full_like(y, 64))
    torch.testing.assert_close(bias.grad, torch.full((2,), 64 * 70 * 36.0))
