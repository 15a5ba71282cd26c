"""SOAP: its step against the algorithm written out for one matrix, what it is invariant to, and trainings with it."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import AdamW

from sciml_monarch import InputError, soap
from sciml_monarch.monarch.convert_optimizer import check_optimizers
from sciml_monarch.pde.task import Optimization, PDETask
from sciml_monarch.soap import Soap
from sciml_monarch.training import LAST, fit
from tests.pde.rollout_runs import CPU, data, monarch
from tests.test_configs import CONFIGS, build
from tests.test_optimization import residual

N_STEPS = 25  # bases are corrected twice


def gradients(shape, dtype=torch.float64, n=N_STEPS):
    """Gradients whose entries depend on each other and drift."""
    generator = torch.Generator().manual_seed(3)
    mix = torch.randn(shape[0], shape[0], generator=generator, dtype=dtype)
    steady = torch.randn(shape, generator=generator, dtype=dtype)
    noise = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(n))
    return [torch.tensordot(mix, 0.3 * steady + g, 1) for g in noise]


def train(optimizer, parameter, all_gradients):
    for g in all_gradients:
        parameter.grad = g.clone()
        optimizer.step()
    return parameter.detach()


def algorithm(weight, all_gradients, rate, decay, b1=0.95, b2=0.95, eps=1e-8):
    """Algorithm 3 of the paper for one matrix, in NumPy; complex entries count as two numbers."""
    weight = weight.copy()
    for k, g in enumerate(all_gradients):
        if k == 0:
            left, right = (1 - b2) * g @ g.conj().T, (1 - b2) * g.conj().T @ g
            ql, qr = np.linalg.eigh(left)[1], np.linalg.eigh(right)[1]
            m, v = np.zeros_like(g), np.zeros(g.shape)
            continue
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(ql.conj().T @ g @ qr) ** 2 / (2 if np.iscomplexobj(g) else 1)
        inner = ql.conj().T @ m @ qr / (1 - b1**k) / (np.sqrt(v / (1 - b2**k)) + eps)
        weight -= rate * decay * weight
        weight -= rate * ql @ inner @ qr.conj().T
        left, right = b2 * left + (1 - b2) * g @ g.conj().T, b2 * right + (1 - b2) * g.conj().T @ g
        if k % 10 == 0:
            for side in ("left", "right"):
                gram, q = (left, ql) if side == "left" else (right, qr)
                order = np.argsort(-np.real(np.diag(q.conj().T @ gram @ q)))
                v = v[order] if side == "left" else v[:, order]
                q = np.linalg.qr(gram @ q[:, order])[0]
                ql, qr = (q, qr) if side == "left" else (ql, q)
    return weight


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("n", [5, 8])
def test_a_step_is_the_algorithms(n, dtype):
    shape = (n, n)  # else the longer side's first eigenvectors of the eigenvalue zero are anyone's
    weight = torch.randn(shape, dtype=dtype)
    expected = algorithm(weight.numpy(), [g.numpy() for g in gradients(shape, dtype)], 0.01, 0.1)
    if dtype.is_complex:  # a mode of one frequency
        parameter = nn.Parameter(torch.view_as_real(weight)[:, :, None].clone())
        steps = [torch.view_as_real(g)[:, :, None] for g in gradients(shape, dtype)]
        found = train(Soap({parameter: "modes"}, [], 0.01, 0.1), parameter, steps)
        found = torch.view_as_complex(found[:, :, 0].contiguous())
    else:
        parameter = nn.Parameter(weight.clone())
        found = train(Soap({parameter: "rows"}, [], 0.01, 0.1), parameter, gradients(shape, dtype))
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-8, atol=1e-10)


def test_without_bases_it_is_adam(monkeypatch):
    monkeypatch.setattr(soap, "LARGEST_SIDE", 3)
    ours = nn.Parameter(torch.randn(4, 6, dtype=torch.float64))
    theirs = nn.Parameter(ours.detach().clone())
    adam = AdamW([theirs], 0.01, soap.BETAS, soap.EPSILON, weight_decay=0.1)
    steps = gradients((4, 6))
    # the first gradient makes the bases
    torch.testing.assert_close(
        train(Soap({ours: "rows"}, [], 0.01, 0.1), ours, steps), train(adam, theirs, steps[1:]), rtol=1e-12, atol=0
    )


def test_a_side_that_is_too_long_is_not_rotated(monkeypatch):
    monkeypatch.setattr(soap, "LARGEST_SIDE", 5)
    parameter = nn.Parameter(torch.randn(4, 6))
    optimizer = Soap({parameter: "rows"}, [])
    train(optimizer, parameter, gradients((4, 6), torch.float32))
    assert "left_basis" in optimizer.state[parameter]
    assert "right_basis" not in optimizer.state[parameter]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_turning_the_channels_turns_the_steps(dtype):
    """What Adam has not: another orthonormal basis of channels in front and behind gives the same training."""
    u, v = (torch.linalg.qr(torch.randn(5, 5, dtype=dtype)).Q for _ in range(2))
    start, steps = torch.randn(5, 5, dtype=dtype), gradients((5, 5), dtype)

    def trained(weight, all_gradients):
        if dtype.is_complex:
            weight, all_gradients = weight[..., None], [g[..., None] for g in all_gradients]
        parameter = nn.Parameter(weight.clone())
        found = train(Soap({parameter: "modes" if dtype.is_complex else "rows"}, [], 0.01), parameter, all_gradients)
        return found[..., 0] if dtype.is_complex else found

    turned = trained(u @ start @ v.mH, [u @ g @ v.mH for g in steps])
    torch.testing.assert_close(turned, u @ trained(start, steps) @ v.mH, rtol=1e-7, atol=1e-9)


def test_bases_come_to_the_eigenvectors_and_stay_orthonormal():
    parameter = nn.Parameter(torch.zeros(2, 6, 5, dtype=torch.float64))
    scale = torch.tensor([1.0, 2, 4, 8, 16], dtype=torch.float64)  # eigenvalues far from each other
    optimizer = Soap({parameter: "batch"}, [], 0.01)
    train(optimizer, parameter, [torch.randn(2, 6, 5, dtype=torch.float64) * scale for _ in range(400)])
    state = optimizer.state[parameter]
    basis = state["right_basis"]
    torch.testing.assert_close(basis.mT @ basis, torch.eye(5, dtype=torch.float64).expand(2, 5, 5))
    inner = basis.mT @ state["right"] @ basis
    values = torch.linalg.diagonal(inner)
    assert (values.diff(dim=-1) < 0).all()
    assert (inner - torch.diag_embed(values)).norm() < 0.2 * values.norm()  # the last ten steps' are not in it yet


def test_matrices_of_a_batch_do_not_know_of_each_other():
    steps = [torch.stack([g, 100 * g.flip(0)]) for g in gradients((5, 4))]
    together = nn.Parameter(torch.zeros(2, 5, 4, dtype=torch.float64))
    train(Soap({together: "batch"}, []), together, steps)
    for i in range(2):
        alone = nn.Parameter(torch.zeros(1, 5, 4, dtype=torch.float64))
        train(Soap({alone: "batch"}, []), alone, [step[i : i + 1] for step in steps])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-9, atol=1e-12)


def test_gradients_of_zero_are_no_steps():
    parameter = nn.Parameter(torch.randn(4, 4))
    before = parameter.detach().clone()
    train(Soap({parameter: "rows"}, []), parameter, [torch.zeros(4, 4)] * 12)
    assert torch.equal(parameter, before)


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_a_step_has_the_size_of_adams(kind):
    parameter = nn.Parameter(torch.zeros(32, 24, *[1, 2] * (kind == "complex")))
    optimizer = Soap({parameter: "modes" if kind == "complex" else "rows"}, [], 1.0)
    sizes = []
    for _ in range(100):
        before = parameter.detach().clone()
        train(optimizer, parameter, [torch.randn(parameter.shape)])
        sizes.append((parameter - before).square().mean().sqrt().item())
    adam = nn.Parameter(torch.zeros_like(parameter))
    reference, expected = torch.optim.Adam([adam], 1.0, soap.BETAS), []
    for _ in range(100):
        before = adam.detach().clone()
        train(reference, adam, [torch.randn(adam.shape)])
        expected.append((adam - before).square().mean().sqrt().item())
    assert sum(sizes[50:]) == pytest.approx(sum(expected[50:]), rel=0.1)


@pytest.mark.parametrize("precision", ["32", "bf16-true"])
def test_a_stopped_training_resumes_exactly(precision, vorticity_folder, tmp_path):
    def run(out, epochs, **options):
        task = PDETask(residual(), Optimization(learning_rate=1e-2, schedule="constant", optimizer="soap"))
        trainer_options = CPU | {"max_epochs": epochs, "precision": precision}
        fit(task, data(vorticity_folder), out, trainer_options=trainer_options, **options)
        return torch.load(out / LAST, weights_only=True)["state_dict"]

    whole = run(tmp_path / "whole", 6)
    run(tmp_path / "parts", 4)
    resumed = run(tmp_path / "parts", 6, resume=True)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_a_training_that_diverges_at_once_says_so(vorticity_folder, tmp_path):
    task = PDETask(monarch(), Optimization(optimizer="soap"))
    with torch.no_grad():
        task.network.lifting.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="the loss is nan in epoch 0"):
        fit(task, data(vorticity_folder), tmp_path, trainer_options=CPU | {"max_epochs": 1})


def test_layers_cannot_be_replaced_in_a_training_with_soap():
    with pytest.raises(InputError, match="Soap cannot go on when layers are replaced"):
        check_optimizers([Soap({nn.Parameter(torch.eye(3)): "rows"}, [])])


def iterated(shape, dtype, smallest=1e-2):
    """What an orthogonal iteration makes orthonormal: a preconditioner's product with what were its eigenvectors.

    Args:
        shape: ``(batch, n, n)``.
        dtype: Of the matrices.
        smallest: Singular value of the gradients, of which the largest are about 1.
    """
    scale = torch.logspace(0, np.log10(smallest), shape[-1])
    steps = [torch.randn(shape, dtype=dtype) * scale for _ in range(2)]
    before, now = (g @ g.mH for g in steps)
    return (0.6 * before + 0.4 * now) @ soap._eigenvectors(before)


@pytest.mark.parametrize(
    ("dtype", "smallest"),
    [
        (torch.float32, 1e-2),
        (torch.float32, 1e-5),
        (torch.float64, 1e-2),
        (torch.complex64, 1e-2),
        (torch.complex64, 1e-5),
    ],
)
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_cholesky_finds_the_columns_of_qr(dtype, smallest, size, monkeypatch):
    matrices = iterated((7, 48, 48), dtype, smallest) * size
    expected = torch.linalg.qr(matrices).Q
    monkeypatch.setattr(torch.linalg, "qr", None)
    found = soap.by_cholesky(matrices)
    assert found.dtype == dtype
    eps = torch.finfo(dtype).eps
    identity = torch.eye(48, dtype=dtype).expand(7, 48, 48)
    torch.testing.assert_close(found.mH @ found, identity, rtol=0, atol=20 * eps)
    # signs and phases are anyone's; what float32 does not resolve, QR finds otherwise
    if smallest == 1e-2:
        torch.testing.assert_close((expected.mH @ found).abs(), identity.abs(), rtol=0, atol=1e4 * eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_columns_that_depend_on_each_other_are_left_to_qr(dtype):
    matrices = iterated((4, 12, 12), dtype)
    matrices[1] = 0
    matrices[2] = torch.outer(matrices[2, :, 0], matrices[2, 0].conj())
    found = soap.by_cholesky(matrices)
    identity = torch.eye(12, dtype=dtype).expand(4, 12, 12)
    torch.testing.assert_close(found.mH @ found, identity, rtol=0, atol=2e-5)
    assert torch.equal(found[1:3], torch.linalg.qr(matrices[1:3]).Q)
    matrices[3] = torch.nan  # of a training that diverges, which the task says
    assert soap.by_cholesky(matrices)[3].isnan().any()


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_bases_on_a_gpu_are_those_on_a_cpu(dtype, precision, monkeypatch):
    matrices = iterated((64, 48, 48), dtype)
    expected = torch.linalg.qr(matrices).Q
    identity = torch.eye(48, dtype=dtype).expand(64, 48, 48)
    degenerate = matrices[:2].clone()
    degenerate[1] = torch.outer(degenerate[1, :, 0], degenerate[1, 0].conj())
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)  # of products in a training, TF32's
    try:
        some = soap.orthonormal(degenerate.cuda()).cpu()
        monkeypatch.setattr(torch.linalg, "qr", None)
        found = soap.orthonormal(matrices.cuda()).cpu()
    finally:
        torch.set_float32_matmul_precision(before)
    for bases in (found, some):
        torch.testing.assert_close(bases.mH @ bases, identity[: len(bases)], rtol=0, atol=2e-5)
    torch.testing.assert_close((expected.mH @ found).abs(), identity.abs(), rtol=0, atol=1e-2)


@pytest.mark.cuda
def test_a_step_on_a_gpu_is_that_on_a_cpu():
    steps = gradients((6, 6))
    start = torch.randn(6, 6, dtype=torch.float64)
    found = []
    for device in ("cpu", "cuda"):
        parameter = nn.Parameter(start.to(device, copy=True))
        found.append(train(Soap({parameter: "rows"}, [], 0.01), parameter, [g.to(device) for g in steps]).cpu())
    torch.testing.assert_close(*found, rtol=1e-7, atol=1e-9)


def test_the_shipped_row_changes_the_optimizer_alone():
    task, _, values = build(CONFIGS / "navier_stokes/residual_soap_1e-5.yaml")
    _, _, base = build(CONFIGS / "navier_stokes/residual_1e-5.yaml")
    assert values["model"]["init_args"]["optimization"].pop("optimizer") == "soap"
    assert values == base
    assert task.optimization.optimizer == "soap"


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_bases_are_found_where_a_device_does_not_find_them(dtype, monkeypatch):
    """cuSOLVER gives up on matrices of many equal eigenvalues, which those of the first gradient are."""
    g = torch.randn(3, 6, 2, dtype=dtype)
    gram = g @ g.mH
    expected = soap._eigenvectors(gram)
    eigh = torch.linalg.eigh

    def gives_up(matrix):
        if matrix.dtype in (torch.float32, torch.complex64):
            raise torch.linalg.LinAlgError
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", gives_up)
    found = soap._eigenvectors(gram)
    assert found.dtype == dtype
    torch.testing.assert_close(found.mH @ found, torch.eye(6, dtype=dtype).expand(3, 6, 6), atol=1e-5, rtol=0)
    values = (found.mH @ gram @ found).diagonal(dim1=-2, dim2=-1).real
    assert (values.diff() < 1e-4).all()
    # signs are anyone's
    agree = (found.mH @ expected).abs()[:, :2, :2]
    torch.testing.assert_close(agree, torch.eye(2).expand(3, 2, 2), atol=1e-3, rtol=0)
