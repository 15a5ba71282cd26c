"""Muon: its step, which parameters it takes, and trainings with it and with SOAP."""

import math
from copy import deepcopy

import lightning as L
import pytest
import torch
import yaml
from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from sciml_monarch import InputError
from sciml_monarch.cli import main
from sciml_monarch.matrix_optimizer import as_matrices, from_matrices, hidden_matrices
from sciml_monarch.monarch.convert_optimizer import check_optimizers
from sciml_monarch.mri import MonarchISTA
from sciml_monarch.mri.task import ReconTask
from sciml_monarch.muon import Muon, orthogonalize, step_factor
from sciml_monarch.pde import FNO, MonarchFNO, OperatorTransformer, ResidualMonarchFNO, UNet
from sciml_monarch.pde.spectral_conv import in_mixing_order
from sciml_monarch.pde.task import Optimization, PDETask
from sciml_monarch.training import LAST, fit
from tests.pde.rollout_runs import CPU, data, monarch
from tests.test_configs import CONFIGS, build

MUON = Optimization(learning_rate=1e-2, weight_decay=0.1, schedule="constant", optimizer="muon")


def residual(**options):
    torch.manual_seed(1)
    grid = {"n_modes": (8, 8), "grid": (16, 16)}
    return ResidualMonarchFNO(3, 1, 6, **grid, n_layers=2, projection_channels=8, **{"local_kernel": 1} | options)


def names(net):
    """Names of the matrices, by layout."""
    found = hidden_matrices(net)
    return {
        layout: {name for name, p in net.named_parameters() if found.get(p) == layout}
        for layout in ("rows", "batch", "modes")
    }


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


def test_matrices_of_the_residual_network():
    of_layers = {f"layers.{i}.{name}.weight" for i in range(2) for name in ("local", "mlp.0", "mlp.2")}
    modes = {f"layers.{i}.spectral.weight" for i in range(2)}
    assert names(residual()) == {"rows": of_layers, "batch": set(), "modes": modes}
    assert names(residual(normalization="instance", share_transforms=True))["rows"] == of_layers
    factorized = names(residual(factorized=True))
    assert factorized["modes"] == {f"layers.{i}.spectral.convs.{axis}.weight" for i in range(2) for axis in range(2)}
    assert "layers.0.local.weight" in names(residual(local_kernel=3))["rows"]


def test_matrices_of_the_other_networks():
    assert names(monarch()) == {
        "rows": {"skips.0.weight", "skips.1.weight"},
        "batch": set(),
        "modes": {"convs.0.weight", "convs.1.weight"},
    }
    fno = names(FNO(3, 1, 6, (4, 4), n_layers=1, projection_channels=8))
    assert fno == {
        "rows": {"net.fno_blocks.fno_skips.0.conv.weight"},
        "batch": set(),
        "modes": {"net.fno_blocks.convs.0.weight.tensor"},
    }
    mixing = MonarchFNO(1, 1, 16, (4,), (16,), n_layers=1, mixing={"blocks": 4, "mlp_channels": 16})
    assert names(mixing)["batch"] == {
        f"{name}.linear.{w}" for name in ("skips.0", "mlps.0.up", "mlps.0.down") for w in ("w1", "w2")
    }
    transformer = names(OperatorTransformer(1, 1, 16, 1, 2))["rows"]
    assert transformer == {f"layers.0.{name}.weight" for name in ("query", "key", "value", "out", "up", "down")}
    unet = names(UNet(1, 1, 4))["rows"]
    assert "down.0.conv2.weight" in unet
    assert not {"down.0.conv1.weight", "head.weight"} & unet


def test_a_task_trains_matrices_with_muon_and_the_rest_with_adam_as_before():
    net = residual(normalization="instance")
    groups = PDETask(net, MUON).configure_optimizers().param_groups
    options = Optimization(learning_rate=1e-2, weight_decay=0.1, schedule="constant", transform_rate=0.5)
    of_adam = PDETask(net, options).configure_optimizers().param_groups
    layouts = [group["layout"] for group in groups]
    assert sorted(layouts, key=str) == [None, None, "modes", "rows"]
    assert all(group["lr"] == 1e-2 for group in groups)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1, 0.1, 0.0]
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in net.parameters())
    assert {id(p) for p in groups[-1]["params"]} == {id(p) for p in of_adam[-1]["params"]}  # the transforms


def test_frozen_transforms_are_in_no_group():
    net = residual(learn_transforms=False)
    groups = PDETask(net, MUON).configure_optimizers().param_groups
    trained = [p for p in net.parameters() if p.requires_grad]
    assert len(trained) < len(list(net.parameters()))
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in trained}


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


def test_training_goes_on_from_a_state_dict_bit_by_bit(tmp_path):
    def make():
        net = residual(normalization="instance")
        optimizer = PDETask(net, MUON).configure_optimizers()
        return net, optimizer, CosineAnnealingLR(optimizer, 10)

    def train(net, optimizer, schedule, n):
        for _ in range(n):
            generator = torch.Generator().manual_seed(round(1e6 * schedule.get_last_lr()[0]))
            x = torch.randn(2, 3, 16, 16, generator=generator)
            optimizer.zero_grad()
            (net(x) - x[:, :1]).square().mean().backward()
            optimizer.step()
            schedule.step()

    whole = make()
    train(*whole, 6)
    first = make()
    train(*first, 3)
    torch.save([part.state_dict() for part in first], tmp_path / "state.pt")
    second = make()
    for part, state in zip(second, torch.load(tmp_path / "state.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    train(*second, 3)
    for ours, theirs in zip(second[0].parameters(), whole[0].parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_stopped_training_resumes_exactly(vorticity_folder, tmp_path):
    def train(out, epochs, **options):
        task = PDETask(monarch(), Optimization(learning_rate=1e-2, schedule="step", step_epochs=1, optimizer="muon"))
        fit(task, data(vorticity_folder), out, trainer_options=CPU | {"max_epochs": epochs}, **options)
        return torch.load(out / LAST, weights_only=True)["state_dict"]

    whole = train(tmp_path / "whole", 3)
    train(tmp_path / "parts", 1)
    resumed = train(tmp_path / "parts", 3, resume=True)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


@pytest.mark.parametrize(
    ("first", "second"), [("adam", "muon"), ("muon", "adam"), ("muon", "soap"), ("soap", "muon"), ("soap", "adam")]
)
def test_going_on_with_the_other_optimizer_is_refused(first, second, vorticity_folder, tmp_path):
    def train(optimizer, epochs, **options):
        task = PDETask(monarch(), Optimization(optimizer=optimizer))
        fit(task, data(vorticity_folder), tmp_path, trainer_options=CPU | {"max_epochs": epochs}, **options)

    train(first, 1)
    with pytest.raises(InputError, match=f"optimizer is {second}, but the checkpoint was trained with {first}"):
        train(second, 2, resume=True)


def test_a_copy_steps_as_the_original_does():
    bias, matrix = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.eye(4))
    original = Muon({matrix: "rows"}, [{"params": [bias]}])
    step_with(original, [bias, matrix])
    copied = deepcopy(original)
    copies = [p for group in reversed(copied.param_groups) for p in group["params"]]
    for optimizer, parameters in ((original, [bias, matrix]), (copied, copies)):
        step_with(optimizer, parameters)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(copies, [bias, matrix], strict=True))


@pytest.mark.parametrize(("optimizer", "last"), [("muon", 6), ("soap", 8)])
@pytest.mark.parametrize("make", [residual, monarch, lambda: FNO(3, 1, 4, (4, 4), n_layers=2)])
def test_a_few_epochs_lower_the_loss(make, optimizer, last, vorticity_folder, tmp_path):
    losses = []
    for epochs in (1, last):
        task = PDETask(make(), Optimization(learning_rate=1e-2, optimizer=optimizer))
        options = CPU | {"max_epochs": epochs, "gradient_clip_val": 1.0}
        trainer = fit(task, data(vorticity_folder), tmp_path / str(epochs), trainer_options=options)
        losses.append(trainer.callback_metrics["train/loss"].item())
    assert losses[1] < 0.8 * losses[0]


@pytest.mark.parametrize("optimizer", ["muon", "soap"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision_trains(precision, optimizer, vorticity_folder, tmp_path):
    task = PDETask(monarch(), Optimization(optimizer=optimizer))
    fit(task, data(vorticity_folder), tmp_path, trainer_options=CPU | {"max_epochs": 2, "precision": precision})
    assert all(torch.isfinite(p).all() for p in task.parameters())


def test_complex_parameters_train(vorticity_folder, tmp_path):
    net = FNO(3, 1, 4, (4, 4), n_layers=2, projection_channels=8)
    before = [p.detach().clone() for p in net.parameters()]
    fit(PDETask(net, MUON), data(vorticity_folder), tmp_path, trainer_options=CPU | {"max_epochs": 1})
    assert all(torch.isfinite(p).all() for p in net.parameters())
    assert not any(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(InputError, match="optimizer is 'sgd'; it must be one of adam, muon, soap"):
        Optimization(optimizer="sgd")


def test_networks_whose_layers_are_not_known_are_refused():
    task = ReconTask(MonarchISTA(2), MUON)
    with pytest.raises(InputError, match="MonarchISTA is not a neural operator; take adam"):
        task.configure_optimizers()


def test_layers_cannot_be_replaced_in_a_training_with_muon():
    with pytest.raises(InputError, match="Muon cannot go on when layers are replaced"):
        check_optimizers([Muon({nn.Parameter(torch.eye(3)): "rows"}, [])])


def test_the_command_line_trains_with_it(vorticity_folder, tmp_path, capsys):
    config = yaml.safe_load((CONFIGS / "smoke/monarch_fno.yaml").read_text())
    config["data"]["init_args"]["path"] = str(vorticity_folder)
    (tmp_path / "base.yaml").write_text((CONFIGS / "base.yaml").read_text())
    config["model"]["init_args"]["optimization"] = {"optimizer": "muon"}
    file, out = tmp_path / "muon.yaml", tmp_path / "run"
    quiet = {"accelerator": "cpu", "enable_progress_bar": False}
    file.write_text(yaml.safe_dump(config | {"trainer": config["trainer"] | quiet}))
    assert main(["train", "--config", str(file), "--out", str(out)]) == 0
    assert (
        yaml.safe_load((out / "config.yaml").read_text())["model"]["init_args"]["optimization"]["optimizer"] == "muon"
    )
    groups = torch.load(out / LAST, weights_only=True)["optimizer_states"][0]["param_groups"]
    assert "modes" in [group["layout"] for group in groups]
    wrong = "--model.init_args.optimization.optimizer=sgd"
    assert main(["train", "--config", str(file), "--out", str(tmp_path / "other"), wrong]) == 2
    assert "sgd" in capsys.readouterr().err


def test_nearly_all_parameters_of_the_shipped_row_are_matrices():
    with torch.device("meta"):
        task, _, _ = build(CONFIGS / "navier_stokes/residual_muon_1e-5.yaml")
    net = task.network
    assert task.optimization.optimizer == "muon"
    assert sum(p.numel() for p in hidden_matrices(net)) > 0.99 * sum(p.numel() for p in net.parameters())


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


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("cosine", 0.35, [0.25, 0.5, 0.75, *((1 + math.cos(math.pi * i / 6)) / 2 for i in range(6))]),
        ("constant", 0.35, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1]),
        ("cosine", 0.1, [0.5, *((1 + math.cos(math.pi * i / 8)) / 2 for i in range(8))]),  # of at least one step
        ("cosine", 0.99, [*((i + 1) / 9 for i in range(8)), 1]),
    ],
)
def test_rates_rise_before_the_schedule(schedule, warmup, expected, vorticity_folder, tmp_path):
    rates = []

    class Noted(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    options = Optimization(1e-2, schedule=schedule, warmup=warmup, transform_rate=0.1)
    own = CPU | {"max_epochs": 3, "callbacks": [Noted()]}
    fit(PDETask(monarch(), options), data(vorticity_folder), tmp_path, trainer_options=own)
    for rate, of_transforms in rates:
        assert of_transforms == pytest.approx(rate / 10, abs=1e-12)
    assert [rate for rate, _ in rates] == pytest.approx([1e-2 * x for x in expected], abs=1e-9)


@pytest.mark.parametrize("first", ["cosine", "constant", "step", "cosine with warmup", "constant with warmup"])
@pytest.mark.parametrize("second", ["cosine", "constant", "step", "cosine with warmup", "constant with warmup"])
def test_going_on_with_another_schedule_is_refused(first, second, vorticity_folder, tmp_path):
    def train(what, epochs, **options):
        name, *more = what.split(" with ")
        task = PDETask(monarch(), Optimization(schedule=name, warmup=0.1 * len(more)))
        fit(task, data(vorticity_folder), tmp_path, trainer_options=CPU | {"max_epochs": epochs}, **options)

    train(first, 1)
    if first == second:
        train(second, 2, resume=True)
        return
    with pytest.raises(InputError, match=f"the schedule is {second}, but the checkpoint was trained with {first};"):
        train(second, 2, resume=True)


@pytest.mark.parametrize("options", [{"schedule": "cosine"}, {"schedule": "constant", "warmup": 0.1}], ids=str)
def test_rates_that_follow_all_steps_need_a_number_of_them(options, vorticity_folder, tmp_path):
    unlimited = CPU | {"max_epochs": -1, "max_time": {"seconds": 5}}
    with pytest.raises(InputError, match="give max_epochs or max_steps"):
        fit(PDETask(monarch(), Optimization(**options)), data(vorticity_folder), tmp_path, trainer_options=unlimited)
