"""Muon: which parameters it takes, and trainings with it and with SOAP."""

import math

import lightning as L
import pytest
import torch
import yaml
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from sciml_monarch import InputError
from sciml_monarch.cli import main
from sciml_monarch.matrix_optimizer import hidden_matrices
from sciml_monarch.monarch.convert_optimizer import check_optimizers
from sciml_monarch.mri import MonarchISTA
from sciml_monarch.mri.task import ReconTask
from sciml_monarch.muon import Muon
from sciml_monarch.pde import FNO, MonarchFNO, OperatorTransformer, ResidualMonarchFNO, UNet
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


class Rates(L.Callback):
    """Notes that of each step."""

    def __init__(self):
        self.found = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.found[trainer.global_step] = [group["lr"] for group in trainer.optimizers[0].param_groups]


@pytest.mark.parametrize("warmup", [0.0, 0.1])
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_more_epochs_take_a_cosine_to_zero_at_their_end(optimizer, warmup, vorticity_folder, tmp_path):
    def train(epochs, out, **options):
        rates = Rates()
        task = PDETask(monarch(), Optimization(1e-2, warmup=warmup, transform_rate=0.1, optimizer=optimizer))
        own = CPU | {"max_epochs": epochs, "callbacks": [rates]}
        fit(task, data(vorticity_folder), tmp_path / out, trainer_options=own, **options)
        return rates.found

    whole = train(4, "whole")  # three steps each
    train(2, "parts")  # ends at zero
    later = train(4, "parts", resume=True)
    assert sorted(later) == [*range(6, 12)]
    assert sorted(train(3, "parts", resume=True)) == []
    for step, rates in later.items():
        assert rates == pytest.approx(whole[step], rel=1e-6), step


def test_a_cosine_does_not_go_on_with_epochs_of_other_lengths(vorticity_folder, tmp_path):
    def train(source, epochs=2, schedule="cosine", more=None, **options):
        task = PDETask(monarch(), Optimization(1e-2, schedule=schedule))
        fit(task, source, tmp_path / schedule, trainer_options=CPU | {"max_epochs": epochs} | (more or {}), **options)

    def batches_of(n):
        source = data(vorticity_folder)
        source.batch_size = n
        return source

    train(data(vorticity_folder), 1)
    message = "an epoch has {} steps, but the checkpoint's had 3; resume with the batches and trajectories"
    for source, more, steps in ((batches_of(1), {}, 6), (data(vorticity_folder), {"accumulate_grad_batches": 3}, 1)):
        with pytest.raises(InputError, match=message.format(steps)):
            train(source, resume=True, more=more)
    with pytest.raises(InputError, match="give max_epochs or max_steps"):
        train(data(vorticity_folder), -1, resume=True, more={"max_time": {"seconds": 1}})
    train(data(vorticity_folder), 1, "constant")
    train(batches_of(1), 2, "constant", resume=True)


def test_a_rate_that_a_callback_has_changed_is_no_other_rate(vorticity_folder, tmp_path):
    class Halved(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            for group in trainer.optimizers[0].param_groups:
                group["lr"] *= 0.5

    rates = Rates()
    for epochs in (1, 2):
        task = PDETask(monarch(), Optimization(1e-2, schedule="constant"))
        own = CPU | {"max_epochs": epochs, "callbacks": [Halved(), rates]}
        fit(task, data(vorticity_folder), tmp_path, trainer_options=own, resume=epochs > 1)
    assert [max(rates.found[step]) for step in (0, 5)] == [1e-2, 5e-3]


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 1e-4}, "learning rate is 0.0001, but the checkpoint was trained with 0.01; resume"),
        ({"weight_decay": 0.5}, "weight_decay is 0.5, but the checkpoint was trained with 0.1; resume"),
    ],
)
def test_going_on_with_another_rate_or_decay_is_refused(schedule, change, message, vorticity_folder, tmp_path):
    def train(epochs, change, **options):
        own = {"learning_rate": 1e-2, "weight_decay": 0.1, "schedule": schedule} | change
        options |= {"trainer_options": CPU | {"max_epochs": epochs}}
        fit(PDETask(monarch(), Optimization(**own)), data(vorticity_folder), tmp_path, **options)

    train(1, {})
    with pytest.raises(InputError, match=message):
        train(2, change, resume=True)


@pytest.mark.parametrize("options", [{"schedule": "cosine"}, {"schedule": "constant", "warmup": 0.1}], ids=str)
def test_rates_that_follow_all_steps_need_a_number_of_them(options, vorticity_folder, tmp_path):
    unlimited = CPU | {"max_epochs": -1, "max_time": {"seconds": 5}}
    with pytest.raises(InputError, match="give max_epochs or max_steps"):
        fit(PDETask(monarch(), Optimization(**options)), data(vorticity_folder), tmp_path, trainer_options=unlimited)
