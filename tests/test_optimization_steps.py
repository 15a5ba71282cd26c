"""Muon's step: of real, complex and batched matrices, and of parameters that are none."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.optim import Adam

from sciml_monarch.matrix_optimizer import as_matrices, from_matrices
from sciml_monarch.muon import Muon, orthogonalize, step_factor
from sciml_monarch.pde.spectral_conv import in_mixing_order


def step_with(optimizer, parameters, n=3):
    """Takes steps with gradients drawn from a seed."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(n):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        optimizer.step()


@pytest.mark.parametrize("shape", [(12, 12), (24, 12), (12, 40), (7, 5), (3, 1)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_step_of_a_real_matrix_is_that_of_torchs_muon(shape, decay):
    theirs = nn.Parameter(torch.randn(shape))
    ours = nn.Parameter(theirs.detach().clone())
    reference = torch.optim.Muon([theirs], lr=0.01, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    for parameter, optimizer in ((theirs, reference), (ours, Muon({ours: "rows"}, [], 0.01, decay))):
        step_with(optimizer, [parameter])
    # a rate multiplies the step here and is an argument of the sum there, which rounds once
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_a_convolution_steps_as_its_matrix_does():
    conv = nn.Parameter(torch.randn(6, 4, 3, 3))
    matrix = nn.Parameter(conv.detach().flatten(1).clone())
    generator = torch.Generator().manual_seed(2)
    optimizer = Muon({conv: "rows", matrix: "rows"}, [], 0.01)
    conv.grad = torch.randn(conv.shape, generator=generator)
    matrix.grad = conv.grad.flatten(1).clone()
    optimizer.step()
    assert torch.equal(conv.flatten(1), matrix)


@pytest.mark.parametrize("kind", [torch.float32, torch.complex64])
@pytest.mark.parametrize("shape", [(6, 6), (9, 5), (5, 9)])
def test_matrices_of_a_batch_do_not_know_of_each_other(kind, shape):
    scales = 10.0 ** torch.arange(-3, 4).view(-1, 1, 1)
    matrices = torch.randn(7, *shape, dtype=kind) * scales
    alone = torch.cat([orthogonalize(m.unsqueeze(0)) for m in matrices])
    together = orthogonalize(matrices)
    assert together.shape == matrices.shape
    tolerance = 0.02 if kind == torch.float32 else 1e-5  # bfloat16
    torch.testing.assert_close(together, alone, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", [torch.float32, torch.complex64, torch.complex128])
@pytest.mark.parametrize("shape", [(8, 6), (6, 8)])
def test_singular_values_come_near_one_and_singular_vectors_stay(kind, shape):
    torch.manual_seed(0)
    matrices = torch.randn(20, *shape, dtype=kind)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    out = orthogonalize(matrices)
    found = u.mH @ out.to(kind) @ vh.mH
    values = torch.linalg.diagonal(found)
    assert values.real.min() > 0.6
    assert values.real.max() < 1.25
    rest = (found - torch.diag_embed(values)).abs().max()
    assert rest < (0.05 if kind == torch.float32 else 1e-4)


def test_a_complex_matrix_is_orthogonalized_as_its_real_form():
    torch.manual_seed(0)
    z = torch.randn(4, 5, 7, dtype=torch.complex64)
    form = torch.cat([torch.cat([z.real, -z.imag], -1), torch.cat([z.imag, z.real], -1)], -2)
    out = orthogonalize(form).float()
    # the norm that the iteration begins from is larger by sqrt(2): neither ends at one, nor at the same values
    torch.testing.assert_close(torch.complex(out[:, :5, :7], out[:, 5:, :7]), orthogonalize(z), rtol=0, atol=0.3)
    size = torch.linalg.svd(z, full_matrices=False)
    exact = size.U @ size.Vh
    rms = torch.view_as_real(exact).square().mean().sqrt() * step_factor("modes", 5, 7)
    assert rms == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("shape", "layout", "kind"),
    [
        ((4, 6), "rows", torch.float32),
        ((4, 6, 3, 3), "rows", torch.float32),
        ((2, 4, 6), "batch", torch.float32),
        ((4, 6, 5, 3, 2), "modes", torch.float32),
        ((4, 6, 5, 2), "modes", torch.bfloat16),
        ((4, 6, 5, 3), "modes", torch.complex64),
    ],
)
def test_parameters_are_matrices_and_back(shape, layout, kind):
    values = torch.randn(shape, dtype=kind)
    matrices = as_matrices(values, layout)
    assert matrices.ndim == 3
    assert torch.equal(from_matrices(matrices, layout, values), values)
    if layout == "modes":
        assert matrices.shape[1:] == (4, 6)
        first = values[:, :, 0, 0] if kind == torch.complex64 else torch.view_as_complex(values.float())[:, :, 0]
        assert torch.equal(matrices[0], first if first.ndim == 2 else first[:, :, 0])


def test_the_order_of_weights_in_memory_changes_no_step():
    plain = nn.Parameter(torch.randn(4, 6, 5, 3, 2))
    mixing = nn.Parameter(in_mixing_order(plain.detach()))
    assert mixing.stride() != plain.stride()
    for parameter in (plain, mixing):
        step_with(Muon({parameter: "modes"}, [], 0.01), [parameter])
    torch.testing.assert_close(plain, mixing)


def test_a_gradient_of_zero_is_no_step():
    parameter = nn.Parameter(torch.randn(3, 4, 5, 2))
    before = parameter.detach().clone()
    parameter.grad = torch.zeros_like(parameter)
    Muon({parameter: "modes"}, [], 0.1).step()
    assert torch.equal(parameter, before)


def test_parameters_that_are_no_matrices_step_as_with_adam():
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 6)) for _ in range(2))
    matrix = nn.Parameter(torch.randn(4, 4))
    both = Muon({matrix: "rows"}, [{"params": [ours], "weight_decay": 0.1, "lr": 0.02}], 0.01)
    step_with(both, [ours, matrix])
    alone = Adam([theirs], 0.02, weight_decay=0.1)
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        theirs.grad = torch.randn(theirs.shape, generator=generator)
        torch.randn(matrix.shape, generator=generator)
        alone.step()
    assert torch.equal(ours, theirs)


def test_parameters_without_gradients_stay():
    parameters = {nn.Parameter(torch.randn(4, 4)): "rows" for _ in range(2)}
    first, second = parameters
    first.grad = torch.randn(4, 4)
    before = second.detach().clone()
    Muon(parameters, [], weight_decay=0.5).step()
    assert torch.equal(second, before)


def test_a_closure_is_called_with_gradients():
    parameter = nn.Parameter(torch.randn(4, 4))
    optimizer = Muon({parameter: "rows"}, [])

    def closure():
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    before = closure().item()
    assert optimizer.step(closure).item() == before
    assert parameter.square().sum() < before


def test_a_rate_in_a_tensor_steps_as_a_number_does():
    number, tensor = (nn.Parameter(torch.eye(4)) for _ in range(2))
    step_with(Muon({number: "rows"}, [], 0.01, 0.1), [number])
    step_with(Muon({tensor: "rows"}, [], torch.tensor(0.01), 0.1), [tensor])
    torch.testing.assert_close(number, tensor)


def test_a_copy_steps_as_the_original_does():
    bias, matrix = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.eye(4))
    original = Muon({matrix: "rows"}, [{"params": [bias]}])
    step_with(original, [bias, matrix])
    copied = deepcopy(original)
    copies = [p for group in reversed(copied.param_groups) for p in group["params"]]
    for optimizer, parameters in ((original, [bias, matrix]), (copied, copies)):
        step_with(optimizer, parameters)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(copies, [bias, matrix], strict=True))


@pytest.mark.cuda
def test_a_step_is_captured_by_a_cuda_graph():
    def make():
        torch.manual_seed(0)
        matrices = {
            nn.Parameter(torch.randn(8, 8, 4, 2, device="cuda")): "modes",
            nn.Parameter(torch.randn(8, 6, device="cuda")): "rows",
        }
        bias = nn.Parameter(torch.zeros(8, device="cuda"))
        rate = torch.tensor(1e-2, device="cuda")
        optimizer = Muon(matrices, [{"params": [bias]}], rate, 0.1, capturable=True)
        for p in (*matrices, bias):
            p.grad = torch.randn_like(p)
        return optimizer, [*matrices, bias], rate

    (eager, expected, rate), (captured, found, graphed_rate) = make(), make()
    eager.step()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # makes the state
        captured.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()
    for scale in (1.0, 0.5):
        for r in (rate, graphed_rate):
            r.mul_(scale)
        eager.step()
        graph.replay()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
