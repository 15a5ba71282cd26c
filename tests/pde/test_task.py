import math
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from sciml_monarch import InputError, load, training
from sciml_monarch.hub import CHECKPOINT_KEY
from sciml_monarch.pde import FNO, MonarchFNO, UNet, gaussian_random_field
from sciml_monarch.pde.data import Loader, PairData, TrajectoryData
from sciml_monarch.pde.symmetry import (
    FNO_FORCING,
    SymmetryGroup,
    fno_forced_navier_stokes,
    free_navier_stokes,
    identity,
)
from sciml_monarch.pde.synthetic import write_neuralop_darcy
from sciml_monarch.pde.task import Optimization, PDETask, RolloutLoss
from sciml_monarch.training import BEST, LAST, fit

CPU = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


def data(folder, **options):
    return TrajectoryData(
        folder,
        n_train=6,
        n_val=2,
        n_test=2,
        n_history=3,
        n_steps=3,
        **{"batch_size": 2, "loader": Loader(preload=True), **options},
    )


def monarch():
    torch.manual_seed(1)
    return MonarchFNO(3, 1, 6, (8, 8), (16, 16), n_layers=2, projection_channels=8)


def weights(path):
    return load(path).state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FNO(3, 1, 6, (8, 8), n_layers=2, projection_channels=8),
        monarch,
        lambda: UNet(3, 1, width=4),
    ],
    ids=["FNO", "MonarchFNO", "UNet"],
)
def test_training_lowers_the_error_and_the_checkpoint_rebuilds_the_network(make, vorticity_folder, tmp_path):
    source = data(vorticity_folder)
    task = PDETask(make(), Optimization(learning_rate=1e-2))
    before = PDETask(make())
    before.surrogate.describe(source.description)
    source.setup()
    before.surrogate.set_normalization(*source.statistics(), *source.statistics())
    history, target = next(iter(source.val_dataloader()))
    start = RolloutLoss(before.surrogate)(history, target).item()
    fit(task, source, tmp_path, trainer_options=CPU | {"max_epochs": 12})
    again = load(tmp_path / LAST)
    assert RolloutLoss(again)(history, target).item() < 0.8 * start
    torch.testing.assert_close(again(history), task.surrogate.eval()(history), rtol=0, atol=0)
    assert again.description == source.description
    assert again.description.attributes["viscosity"] == 1e-3
    assert (tmp_path / BEST).is_file()
    assert list((tmp_path / "csv").rglob("metrics.csv"))
    assert list((tmp_path / "tensorboard").glob("events*"))


@pytest.mark.parametrize(("schedule", "warmup"), [("cosine", 0.0), ("cosine", 0.6), ("step", 0.0)])
@pytest.mark.parametrize(("ema_decay", "symmetry"), [(None, None), (0.9, None), (None, fno_forced_navier_stokes())])
def test_resumed_run_equals_an_uninterrupted_one(schedule, warmup, ema_decay, symmetry, vorticity_folder, tmp_path):
    def task():
        optimization = Optimization(learning_rate=1e-2, schedule=schedule, step_epochs=1, warmup=warmup)
        return PDETask(monarch(), optimization, ema_decay=ema_decay, symmetry=symmetry)

    class Stop(Exception):
        pass

    class Interrupt(L.Callback):
        """Dies in the middle of the third epoch, as a killed process would."""

        def on_train_batch_start(self, trainer, module, batch, index):
            if trainer.current_epoch == 2 and index == 1:
                raise Stop

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = CPU | {"max_epochs": 4}
    fit(task(), data(vorticity_folder), whole, trainer_options=options)
    with pytest.raises(Stop):
        fit(task(), data(vorticity_folder), parts, trainer_options=options | {"callbacks": [Interrupt()]})
    torch.rand(17)  # the process that resumes has another state of its generators
    fit(task(), data(vorticity_folder), parts, resume=True, trainer_options=options)
    assert same(weights(whole / LAST), weights(parts / LAST))
    first = torch.load(whole / LAST, weights_only=True)
    second = torch.load(parts / LAST, weights_only=True)
    assert first["global_step"] == second["global_step"] == 12


@pytest.mark.parametrize(
    ("ends", "written"),
    [({"max_epochs": 7}, [2, 5, 6]), ({"max_epochs": 7, "max_steps": 12}, [2, 3]), ({"max_epochs": 99}, [2, 4])],
    ids=["epochs", "steps", "told to stop"],
)
def test_checkpoints_lie_apart_in_time_and_the_last_epoch_has_one(
    ends, written, vorticity_folder, tmp_path, monkeypatch
):
    epochs = []

    class Clock(L.Callback):
        def on_train_epoch_end(self, trainer, module):
            seconds[0] += 10.0
            trainer.should_stop = trainer.max_epochs == 99 and trainer.current_epoch == 4

    seconds, save = [1000.0], L.Trainer.save_checkpoint
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    monkeypatch.setattr(L.Trainer, "save_checkpoint", lambda t, *a, **k: (epochs.append(t.current_epoch), save(t, *a)))
    options = CPU | ends | {"callbacks": [Clock()]}
    fit(PDETask(monarch()), data(vorticity_folder), tmp_path, monitor=None, trainer_options=options, seconds_apart=30.0)
    assert epochs == written


def test_trajectories_are_moved_in_training_only_and_anew_in_each_epoch(vorticity_folder, tmp_path, monkeypatch):
    seen = {"train": [], "val": []}
    group = fno_forced_navier_stokes()

    class Watch(L.Callback):
        def on_validation_batch_start(self, trainer, module, batch, *rest):
            seen["val"].append(torch.cat(batch, 1))

    task = PDETask(monarch(), symmetry=group)
    moved = task._moved
    monkeypatch.setattr(task, "_moved", lambda *a: seen["train"].append((torch.cat(a[0], 1), moved(*a))) or moved(*a))
    source = data(vorticity_folder)
    fit(task, source, tmp_path, trainer_options=CPU | {"max_epochs": 2, "callbacks": [Watch()]})
    assert len(seen["train"]) == 6
    places = []
    for before, after in seen["train"]:
        after = torch.cat(after, 1)
        assert not torch.equal(before, after)
        # the same values elsewhere, the same for all frames: some element of the group takes the one to the other
        for one, other in zip(before, after, strict=True):
            found = [
                (i, j)
                for i in range(4)
                for j in range(16)
                if torch.equal(group.apply(one[None], torch.tensor([i]), torch.tensor([[j]]))[0], other)
            ]
            assert len(found) >= 1
            places.append(found[0])
    assert len(set(places)) > 6  # of twelve draws from 64
    assert torch.equal(seen["val"][0], seen["val"][-1])


def test_a_symmetry_of_another_grid_is_refused(vorticity_folder, tmp_path):
    task = PDETask(monarch(), symmetry=SymmetryGroup((identity(3),)))
    with pytest.raises(InputError, match="3 axes"):
        fit(task, data(vorticity_folder), tmp_path, trainer_options=CPU | {"max_epochs": 1})


def test_a_symmetry_of_another_forcing_is_refused(vorticity_folder, tmp_path):
    assert data(vorticity_folder).description.attributes["forcing"] == FNO_FORCING
    task = PDETask(monarch(), symmetry=free_navier_stokes())
    with pytest.raises(InputError, match="of an equation with forcing 'none', the data's is"):
        fit(task, data(vorticity_folder), tmp_path, trainer_options=CPU | {"max_epochs": 1})


def test_averaged_weights_are_those_of_the_checkpoint(vorticity_folder, tmp_path):
    task = PDETask(monarch(), Optimization(learning_rate=1e-2), ema_decay=0.5)
    fit(task, data(vorticity_folder), tmp_path, trainer_options=CPU | {"max_epochs": 2})
    checkpoint = torch.load(tmp_path / LAST, weights_only=True)
    name = "surrogate.net.convs.0.weight"
    assert not torch.equal(checkpoint["state_dict"][name], checkpoint["current_model_state"][name])
    assert torch.equal(load(tmp_path / LAST).net.convs[0].weight, checkpoint["state_dict"][name])
    buffers = dict(load(tmp_path / LAST).named_buffers())
    for key, value in monarch().named_buffers():
        assert torch.equal(buffers[f"net.{key}"], value), "averaging must not touch permutations and indices"


def test_transform_factors_have_a_group_without_weight_decay():
    net = monarch()
    task = PDETask(net, Optimization(schedule="constant", weight_decay=0.1, transform_rate=0.5, learning_rate=0.01))
    groups = task.configure_optimizers().param_groups
    factors = {id(p) for conv in net.convs for t in (*conv.analysis, *conv.synthesis) for p in (t.w1, t.w2)}
    assert {id(p) for p in groups[1]["params"]} == factors
    assert groups[1]["weight_decay"] == 0
    assert groups[1]["lr"] == pytest.approx(0.005)
    assert groups[0]["weight_decay"] == 0.1
    assert len(groups[0]["params"]) + len(groups[1]["params"]) == len(list(net.parameters()))


def test_weight_decay_alone_leaves_the_transforms_exact():
    net = monarch()
    task = PDETask(net, Optimization(schedule="constant", weight_decay=0.1))
    optimizer = task.configure_optimizers()
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    before = [p.clone() for p in net.transform_parameters()]
    lifting = net.lifting.weight.clone()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, net.transform_parameters(), strict=True))
    assert not torch.equal(lifting, net.lifting.weight)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision_trains(precision, vorticity_folder, tmp_path):
    task = PDETask(monarch())
    fit(
        task,
        data(vorticity_folder),
        tmp_path,
        trainer_options=CPU | {"max_epochs": 2, "precision": precision},
    )
    assert all(torch.isfinite(p).all() for p in task.parameters())


def test_gradient_clipping_limits_the_step(vorticity_folder, tmp_path):
    def moved(clip):
        task = PDETask(monarch(), Optimization(schedule="constant"))
        start = [p.detach().clone() for p in task.parameters()]
        options = {"max_epochs": 1, "limit_train_batches": 1, "gradient_clip_val": clip}
        fit(task, data(vorticity_folder), tmp_path / str(clip), trainer_options=CPU | options)
        return sum((p - q).norm().item() for p, q in zip(task.parameters(), start, strict=True))

    assert moved(1e-9) < 0.5 * moved(None)  # Adam's epsilon dominates gradients clipped that far


def test_diverged_training_stops_with_the_mend(vorticity_folder, tmp_path):
    task = PDETask(monarch(), Optimization(learning_rate=1e30))
    with pytest.raises(InputError, match="lower the learning rate"):
        fit(task, data(vorticity_folder), tmp_path, trainer_options=CPU | {"max_epochs": 3})


def test_run_folder_is_not_overwritten_by_accident(vorticity_folder, tmp_path):
    options = CPU | {"max_epochs": 1}
    with pytest.raises(InputError, match="nothing to resume from"):
        fit(PDETask(monarch()), data(vorticity_folder), tmp_path, resume=True, trainer_options=options)
    fit(PDETask(monarch()), data(vorticity_folder), tmp_path, trainer_options=options)
    before = (tmp_path / LAST).read_bytes()
    with pytest.raises(InputError, match="holds an earlier run"):
        fit(PDETask(monarch()), data(vorticity_folder), tmp_path, trainer_options=options)
    assert (tmp_path / LAST).read_bytes() == before
    fit(
        PDETask(monarch(), ema_decay=0.1),
        data(vorticity_folder),
        tmp_path,
        overwrite=True,
        trainer_options=options,
    )
    assert (tmp_path / LAST).read_bytes() != before


def test_checkpoint_of_another_network_is_refused_on_resume(vorticity_folder, tmp_path):
    options = CPU | {"max_epochs": 1}
    fit(PDETask(monarch()), data(vorticity_folder), tmp_path, trainer_options=options)
    other = PDETask(UNet(3, 1, width=4))
    with pytest.raises(InputError, match="checkpoint of another network"):
        fit(other, data(vorticity_folder), tmp_path, resume=True, trainer_options=options | {"max_epochs": 2})


def test_going_on_with_other_data_is_refused(vorticity_folder, tmp_path):
    """But not with the same that another machine has simulated."""
    from sciml_monarch.pde.simulate import simulate

    def train(source, epochs=2, **options):
        fit(PDETask(monarch()), source, tmp_path, trainer_options=CPU | {"max_epochs": epochs}, **options)

    def simulated(name, **options):
        own = {"viscosity": 1e-3, "n_trajectories": 10, "simulation_resolution": 32, "resolution": 16}
        simulate(out=tmp_path / name, final_time=6.0, **own | options)
        return data(tmp_path / name)

    def changed(name, value):
        source = data(vorticity_folder)
        setattr(source, name, value)
        return source

    train(data(vorticity_folder), 1)
    for source, message in (
        (simulated("other", viscosity=1e-4), "with attributes .*'viscosity': 0.001.*, but this has .*0.0001"),
        (simulated("seed", seed=1), "with attributes {'seed': 0}, but this has {'seed': 1}"),
        (changed("n_steps", 2), "with n_steps 3, but this has 2"),
        (changed("n_test", 1), "with split {'n_test': 2}, but this has {'n_test': 1}"),
        (changed("n_train", 4), "with split {'n_train': 6}, but this has {'n_train': 4}"),
    ):
        with pytest.raises(InputError, match=f"the checkpoint was trained on data {message}"):
            train(source, resume=True)
    state = torch.load(tmp_path / LAST, weights_only=True)
    state[CHECKPOINT_KEY]["description"]["attributes"] |= {
        "device": "another",
        "version": "another",
        "missing": math.nan,
    }
    torch.save(state, tmp_path / LAST)
    source = data(vorticity_folder)
    source.source.attributes["missing"] = math.nan
    source.loader = Loader(preload=True, test_steps=2)  # of which only the test is another
    train(source, resume=True)


@pytest.mark.parametrize("refused", [False, True])
def test_a_checkpoint_from_before_an_argument_is_of_a_network_that_has_its_default(refused, vorticity_folder, tmp_path):
    options = CPU | {"max_epochs": 1}
    fit(PDETask(monarch()), data(vorticity_folder), tmp_path, trainer_options=options)
    state = torch.load(tmp_path / LAST, weights_only=True)
    own = state[CHECKPOINT_KEY]["arguments"]
    del own["learn_transforms"]
    own["width"] += refused
    torch.save(state, tmp_path / LAST)
    with pytest.raises(InputError, match="checkpoint of another network") if refused else nullcontext():
        fit(PDETask(monarch()), data(vorticity_folder), tmp_path, resume=True, trainer_options=options)


def test_network_for_other_channels_is_refused_before_training(vorticity_folder, tmp_path):
    net = MonarchFNO(4, 1, 4, (4, 4), (16, 16))
    with pytest.raises(InputError, match="set in_channels to"):
        fit(PDETask(net), data(vorticity_folder), tmp_path, trainer_options=CPU | {"max_epochs": 1})


def test_a_network_of_another_grid_is_trained_with_a_warning(vorticity_folder, tmp_path):
    net = MonarchFNO(3, 1, 4, (8, 8), (12, 12), n_layers=1)
    with pytest.warns(UserWarning, match="made for a grid of 12 x 12 points, but the data has 16 x 16"):
        fit(PDETask(net), data(vorticity_folder), tmp_path, trainer_options=CPU | {"max_epochs": 1})


@pytest.mark.parametrize("options", [{"learning_rate": 0.0}, {"weight_decay": -1.0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InputError, match="must be positive"):
        Optimization(**options)
    with pytest.raises(InputError, match="ema_decay is 1"):
        PDETask(monarch(), ema_decay=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": math.nan}, "learning_rate nan must be positive"),
        ({"learning_rate": math.inf}, "all finite"),
        ({"weight_decay": math.nan}, "weight_decay nan"),
        ({"transform_rate": math.inf}, "transform_rate inf"),
        ({"schedule": "step", "step_epochs": 0}, "step_epochs is 0; it must be 1 or more"),
        ({"step_factor": 0.0}, "step_factor is 0.0"),
        ({"step_factor": math.nan}, "step_factor is nan"),
        ({"warmup": -0.1}, "warmup is -0.1; it must be a share of the steps"),
        ({"warmup": 1.0}, "warmup is 1.0; it must be a share"),
        ({"warmup": math.nan}, "warmup is nan; it must be a share"),
        ({"warmup": 0.1, "schedule": "step"}, "warmup goes with the schedules cosine and constant"),
    ],
)
def test_schedules_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Optimization(**options)


def test_cuda_graph_is_for_the_gpu_alone_and_says_what_it_does_not_go_with(vorticity_folder, tmp_path):
    def train(graph, **options):
        out = tmp_path / f"{graph}{len(options)}"
        fit(
            PDETask(monarch(), cuda_graph=graph),
            data(vorticity_folder),
            out,
            trainer_options=CPU | {"max_epochs": 1} | options,
        )
        return weights(out / LAST)

    assert same(train(True), train(False))
    with pytest.raises(InputError, match="no gradient accumulation"):
        train(True, accumulate_grad_batches=2)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at the prepared matrices
def test_a_compiled_network_trains_like_the_plain_one(vorticity_folder, tmp_path):
    def train(compiled):
        task = PDETask(monarch(), Optimization(learning_rate=1e-2), compile_net=compiled)
        fit(task, data(vorticity_folder), tmp_path / str(compiled), trainer_options=CPU | {"max_epochs": 2})
        return weights(tmp_path / str(compiled) / LAST)

    plain, compiled = train(False), train(True)
    assert plain.keys() == compiled.keys()
    for name in plain:
        torch.testing.assert_close(compiled[name], plain[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_cuda_graph_trains_like_eager(precision, vorticity_folder, tmp_path):
    def train(graph):
        task = PDETask(monarch(), Optimization(learning_rate=1e-3), cuda_graph=graph)
        options = CPU | {"accelerator": "cuda", "devices": 1, "max_epochs": 3, "precision": precision}
        fit(task, data(vorticity_folder), tmp_path / str(graph), trainer_options=options)
        return load(tmp_path / str(graph) / LAST)

    eager, graphed = train(False), train(True)
    tolerance = 1e-3 if precision == "32" else 5e-2
    for (name, a), b in zip(eager.state_dict().items(), graphed.state_dict().values(), strict=True):
        assert (a - b).norm() <= tolerance * (a.norm() + 1e-3), name


def test_pairs_are_trained_on_and_tested_at_two_resolutions(tmp_path):
    for n, count in ((16, 24), (32, 4)):
        field = gaussian_random_field(n, range(count), alpha=4.0, tau=3.0)
        shifted = 5 + 2 * field.roll(n // 4, 1)  # the same map on both grids
        write_neuralop_darcy(tmp_path / f"darcy_{n}.pt", field.numpy(), shifted.numpy())
    source = PairData(
        tmp_path / "darcy_16.pt", [tmp_path / "darcy_16.pt", tmp_path / "darcy_32.pt"], 20, 4, n_test=4, batch_size=5
    )
    moved = PDETask(MonarchFNO(1, 1, 4, (8, 8), (16, 16)), symmetry=SymmetryGroup((identity(2),)))
    with pytest.raises(InputError, match="pairs"):  # whose inputs may transform in another way than the targets
        fit(moved, source, tmp_path / "moved", trainer_options=CPU | {"max_epochs": 1})
    task = PDETask(
        MonarchFNO(1, 1, 8, (8, 8), (16, 16), n_layers=2, projection_channels=16), Optimization(learning_rate=1e-2)
    )
    trainer = fit(task, source, tmp_path / "run", trainer_options=CPU | {"max_epochs": 15})
    scores = trainer.test(task, datamodule=source, verbose=False)
    errors = [score[f"test/relative_l2/dataloader_idx_{i}"] for i, score in enumerate(scores)]
    assert len(errors) == 2
    assert errors[0] < 0.5
    assert errors[1] < 1.2 * errors[0]  # the finer grid is new to the network
    surrogate = load(tmp_path / "run" / LAST)
    inputs, targets = next(iter(source.val_dataloader()))
    mean, std = source.target_statistics()
    assert torch.equal(surrogate.output_mean, mean)
    assert torch.equal(surrogate.output_std, std)
    assert surrogate.rollout(inputs, 1).shape == targets.shape
