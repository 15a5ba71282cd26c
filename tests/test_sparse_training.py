import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from sciml_monarch import InputError, load, mri, optimization, save
from sciml_monarch.cli import main
from sciml_monarch.monarch import MonarchLinear, sparsify, structure
from sciml_monarch.mri.data import MRIData
from sciml_monarch.mri.masks import RandomMask
from sciml_monarch.mri.task import ReconTask
from sciml_monarch.pde import MonarchFNO
from sciml_monarch.pde.data import Loader, TrajectoryData
from sciml_monarch.pde.task import Optimization, PDETask
from sciml_monarch.sparse_training import DenseToSparse, SparseToDense, network
from sciml_monarch.training import BEST, LAST, fit

CPU = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
OPTIONS = {"blocks": 2, "rank": 1, "head": True}


class Regression(L.LightningModule):
    """A task of somebody else's."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))
        self.losses, self.kinds = [], []

    def training_step(self, batch, index):
        x, y = batch
        loss = (self.net(x) - y).square().mean()
        self.losses.append(float(loss.detach()))
        self.kinds.append((self.global_step, isinstance(self.net[0], MonarchLinear)))
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)]


def points(n=40, batch_size=4):
    x = torch.randn(n, 8, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, torch.sin(x[:, :3] + x[:, 3:6])), batch_size)


def trainer_of(folder, *callbacks, **options):
    return L.Trainer(
        **CPU | {"max_epochs": 2, "logger": False, "default_root_dir": folder, "num_sanity_val_steps": 0} | options,
        callbacks=list(callbacks),
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
    )


def train(folder, *callbacks, **options):
    task = Regression()
    trainer_of(folder, *callbacks, **options).fit(task, points())
    return task


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("way", [SparseToDense, DenseToSparse])
def test_switches_once_between_two_steps(way, accumulate, tmp_path):
    callback = way(0.7, blocks=2, head=True)
    task = train(tmp_path, callback, accumulate_grad_batches=accumulate)
    total = 2 * math.ceil(10 / accumulate)
    sparse = [step for step, is_sparse in task.kinds if is_sparse]
    dense = [step for step, is_sparse in task.kinds if not is_sparse]
    first, second = (sparse, dense) if way is SparseToDense else (dense, sparse)
    assert max(first) == round(0.7 * total) - 1
    assert min(second) == round(0.7 * total), "batches whose gradients are accumulated are of the same network"
    assert [row.layer for row in callback.report.converted] == ["net.0", "net.2"]
    assert callback.switched


@pytest.mark.parametrize(("at", "steps"), [(0.0, 0), (0.99, 19), (0.29, 6)])
def test_fraction_of_the_steps(at, steps, tmp_path):
    task = train(tmp_path, DenseToSparse(at, blocks=2))
    assert [is_sparse for _, is_sparse in task.kinds] == [False] * steps + [True] * (20 - steps)


@pytest.mark.parametrize("way", [SparseToDense, DenseToSparse])
def test_optimizer_follows_and_the_loss_does_not_jump(way, tmp_path):
    options = {"rank": 4} if way is DenseToSparse else {}

    def losses(**carry):
        callback = way(0.5, blocks=2, **options, **carry)
        task = Regression()
        trainer = trainer_of(tmp_path, callback, max_epochs=8)
        trainer.fit(task, points())
        params = [id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]]
        assert params == [id(p) for p in task.parameters()]
        assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-2 * 0.5**4)
        return task.losses

    carried, reset = losses(), losses(carry=False)
    assert carried[:41] == pytest.approx(reset[:41])
    assert carried[41:] != reset[41:]
    assert sum(carried[41:50]) < 1.1 * sum(carried[31:40])


def test_random_start_is_sparse_from_the_first_step_and_a_sparse_network_is_left(tmp_path):
    first = train(tmp_path, SparseToDense(0.5, blocks=2, rank=1))
    assert first.kinds[0] == (0, True)
    task = Regression()
    sparsify(task.net, 4)
    weight = task.net[0].w1
    trainer_of(tmp_path, SparseToDense(0.5, blocks=2), max_epochs=1).fit(task, points())
    assert weight.shape == (4, 2, 2)
    assert task.kinds[0] == (0, True)
    assert structure(task) == {}
    again = train(tmp_path, SparseToDense(0.5, blocks=2, init="project"), limit_train_batches=1)
    assert math.isfinite(again.losses[0])


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("way", [SparseToDense, DenseToSparse])
def test_averaged_weights_are_switched_too(way, order, tmp_path):
    class Watch(L.Callback):
        """Errors of the averaged network on the points, step by step."""

        def __init__(self):
            self.errors, self.distances = [], []

        def on_train_batch_start(self, trainer, module, batch, index):
            average = ema._average_model.module.net
            x, y = points(40, 40).dataset.tensors
            with torch.no_grad():
                self.errors.append(float((average(x) - y).square().mean()))
            assert structure(average) == structure(module.net)

    ema, watch, switch = EMAWeightAveraging(decay=0.8, use_buffers=False), Watch(), way(0.5, blocks=2, head=True)
    if way is DenseToSparse:
        switch = way(0.5, blocks=2, rank=4, only=["net.0", "net.2"])
    callbacks = [switch, ema] if order == "before" else [ema, switch]
    task = Regression()
    if way is DenseToSparse:  # singular values that are equal, so that neighbouring matrices have unlike factors
        switch.at = 2 / 60
        for layer in (task.net[0], task.net[2]):
            for row, column in itertools.product(range(2), range(2)):
                block = layer.weight.data[row::2].chunk(2, 1)[column]
                block.copy_(nn.init.orthogonal_(torch.empty_like(block)))
    trainer_of(tmp_path, *callbacks, watch, max_epochs=6).fit(task, points())
    jumps = [abs(b - a) / a for a, b in itertools.pairwise(watch.errors)]
    assert max(jumps[:12] if way is DenseToSparse else jumps[20:40]) < 0.15, "averaged factors of unlike decompositions"
    assert structure(task) == structure(ema._average_model.module)


class Stop(Exception):
    pass


class Interrupt(L.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.global_step == self.step:
            raise Stop


def states(path):
    return torch.load(path, weights_only=True)


def equal(a, b):
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return a == b or (a != a and b != b)


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.parametrize("way", [SparseToDense, DenseToSparse])
@pytest.mark.parametrize(("stop", "ema"), [(13, True), (27, False), (33, True)])
def test_resuming_a_foreign_task_on_either_side_equals_an_uninterrupted_run(stop, way, ema, tmp_path):
    def fit_(name, *more, resume=None):
        save_ = ModelCheckpoint(tmp_path / name, save_last=True, every_n_train_steps=10, save_on_train_epoch_end=False)
        averages = [EMAWeightAveraging(decay=0.8)] if ema else []
        trainer = trainer_of(tmp_path, *averages, way(0.5, blocks=2), save_, *more, max_epochs=4)
        trainer.fit(Regression(), points(), ckpt_path=resume, weights_only=True)
        trainer.save_checkpoint(tmp_path / name / "end.ckpt")

    fit_("whole")
    with pytest.raises(Stop):
        fit_("parts", Interrupt(stop))
    last = states(tmp_path / "parts/last.ckpt")
    assert last["global_step"] == 10 * (stop // 10)
    assert any(key.endswith(".w1") for key in last["state_dict"]) == (
        (way is SparseToDense) == (last["global_step"] <= 20)
    )
    torch.rand(7)
    fit_("parts", resume=tmp_path / "parts/last.ckpt")
    whole, again = states(tmp_path / "whole/end.ckpt"), states(tmp_path / "parts/end.ckpt")
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert equal(whole[key], again[key]), key


def data(folder):
    return TrajectoryData(
        folder, n_train=6, n_val=2, n_test=2, n_history=3, n_steps=3, batch_size=2, loader=Loader(preload=True)
    )


def operator():
    torch.manual_seed(1)
    return MonarchFNO(3, 1, 6, (8, 8), (16, 16), n_layers=2, projection_channels=8)


@pytest.mark.parametrize("way", [SparseToDense, DenseToSparse])
@pytest.mark.parametrize(("epoch", "ema_decay"), [(1, 0.9), (3, None), (3, 0.9)])
def test_resuming_an_operator_on_either_side_equals_an_uninterrupted_run(
    epoch, way, ema_decay, vorticity_folder, tmp_path
):
    def train_(name, *more, resume=False):
        task = PDETask(operator(), Optimization(learning_rate=1e-2), ema_decay)
        options = CPU | {"max_epochs": 4, "callbacks": [way(0.5, **OPTIONS), *more]}
        fit(task, data(vorticity_folder), tmp_path / name, resume, trainer_options=options)
        return task

    whole = train_("whole")
    with pytest.raises(Stop):
        train_("parts", Interrupt(3 * epoch + 1))
    sparse = (way is SparseToDense) == (epoch < 2)
    early = load(tmp_path / "parts" / LAST)
    assert bool(structure(early)) == sparse
    early.rollout(torch.randn(1, 3, 1, 16, 16), 2)
    train_("parts", resume=True)
    first, second = (states(tmp_path / name / LAST) for name in ("whole", "parts"))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "sciml_monarch"):
        assert equal(first[key], second[key]), key
    assert (tmp_path / "parts" / BEST).is_file()
    network_ = load(tmp_path / "whole" / LAST)
    assert bool(structure(network_)) == (way is DenseToSparse)
    history = torch.randn(1, 3, 1, 16, 16)
    torch.testing.assert_close(network_.rollout(history, 2), whole.surrogate.eval().rollout(history, 2))
    save(network_, tmp_path / "shared")
    config = json.loads((tmp_path / "shared/config.json").read_text())
    assert bool(config["structure"]) == (way is DenseToSparse)
    assert torch.equal(load(tmp_path / "shared").rollout(history, 2), network_.rollout(history, 2))


@pytest.mark.parametrize("way", [SparseToDense, DenseToSparse])
def test_a_network_of_before_the_switch_can_be_tested_after_it_and_conversely(way, vorticity_folder, tmp_path):
    class Keep(L.Callback):
        def on_train_epoch_end(self, trainer, module):
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt", weights_only=False)

    source, task = data(vorticity_folder), PDETask(operator(), Optimization(learning_rate=1e-2))
    options = CPU | {"max_epochs": 2, "callbacks": [way(0.5, **OPTIONS), Keep()]}
    trainer = fit(task, source, tmp_path / "run", trainer_options=options)
    inputs, targets = next(iter(source.val_dataloader()))
    for epoch in (0, 1, 0):
        path = tmp_path / f"{epoch}.ckpt"
        trainer.test(task, source, ckpt_path=path, verbose=False, weights_only=True)
        assert bool(structure(task)) == ((way is SparseToDense) == (epoch == 0))
        assert torch.equal(task.surrogate(inputs), load(path)(inputs))
        assert targets.shape[1] == 3


def test_a_converted_network_is_trained_and_resumed_without_any_callback(vorticity_folder, tmp_path):
    def train_(epochs, resume, ema=0.5):
        net = operator()
        if not resume:
            sparsify(net, **OPTIONS)
        task = PDETask(net, Optimization(learning_rate=1e-2), ema_decay=ema)
        fit(task, data(vorticity_folder), tmp_path, resume, trainer_options=CPU | {"max_epochs": epochs})
        return task

    first = structure(train_(1, False))
    assert len(first) == 4
    assert structure(train_(2, True)) == first
    assert len(structure(load(tmp_path / LAST))) == 4


def test_captured_graphs_and_compiled_networks_are_renewed(vorticity_folder, tmp_path):
    task = PDETask(operator(), cuda_graph=True)
    loss = task._loss
    options = CPU | {"max_epochs": 2, "callbacks": [DenseToSparse(0.5, **OPTIONS)]}
    fit(task, data(vorticity_folder), tmp_path, trainer_options=options)
    assert task._loss is not loss
    assert task._loss._module is not loss._module


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at the prepared matrices
def test_a_compiled_network_switches_like_the_plain_one(vorticity_folder, tmp_path, monkeypatch):
    # the graphs of torch.compile without the machine code, which takes a minute on a CPU
    monkeypatch.setattr(MonarchFNO, "compile", lambda net: nn.Module.compile(net, backend="aot_eager"))

    def train_(compiled):
        torch.compiler.reset()
        torch.manual_seed(1)
        net = MonarchFNO(3, 1, 6, (4, 4), (16, 16), n_layers=1, projection_channels=8)
        task = PDETask(net, Optimization(learning_rate=1e-2), compile_net=compiled)
        options = CPU | {"max_epochs": 2, "callbacks": [DenseToSparse(0.5, **OPTIONS)], "limit_val_batches": 0}
        fit(task, data(vorticity_folder), tmp_path / str(compiled), monitor=None, trainer_options=options)
        return task.state_dict()

    plain, compiled = train_(False), train_(True)
    assert plain.keys() == compiled.keys()
    for name in plain:
        torch.testing.assert_close(compiled[name], plain[name], rtol=1e-3, atol=1e-4, msg=name)


def test_fused_adam_and_clipping_go_together(vorticity_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(optimization, "_takes_fused", lambda *_: True)  # a CPU has fused Adam too
    task = PDETask(operator(), Optimization(learning_rate=1e-3))
    options = CPU | {"max_epochs": 1, "precision": "bf16-mixed", "gradient_clip_val": 1e-3}
    fit(task, data(vorticity_folder), tmp_path, monitor=None, trainer_options=options)
    assert task.optimizers().defaults["fused"]


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_gradients_are_clipped_in_every_precision(precision, vorticity_folder, tmp_path):
    options = CPU | {"accelerator": "cuda", "devices": 1, "precision": precision, "gradient_clip_val": 1e-3}
    task = PDETask(operator(), Optimization(learning_rate=1e-3))
    fit(task, data(vorticity_folder), tmp_path, monitor=None, trainer_options=options | {"max_epochs": 1})
    assert all(p.isfinite().all() for p in task.parameters())


@pytest.mark.cuda
@pytest.mark.parametrize("way", [SparseToDense, DenseToSparse])
def test_a_captured_graph_switches_like_eager(way, vorticity_folder, tmp_path):
    def train_(graph):
        task = PDETask(operator(), Optimization(learning_rate=1e-3), cuda_graph=graph)
        options = CPU | {"accelerator": "cuda", "devices": 1, "max_epochs": 4, "callbacks": [way(0.5, **OPTIONS)]}
        fit(task, data(vorticity_folder), tmp_path / str(graph), trainer_options=options)
        return load(tmp_path / str(graph) / LAST)

    eager, graphed = train_(False), train_(True)
    for (name, a), b in zip(eager.state_dict().items(), graphed.state_dict().values(), strict=True):
        assert (a - b).norm() <= 1e-3 * (a.norm() + 1e-3), name


@pytest.mark.parametrize("way", [SparseToDense, DenseToSparse])
def test_reconstruction_networks_switch_and_resume(way, scan_folder, tmp_path):
    def train_(*more, resume=False):
        callback = way(0.5, blocks=(2, 1), rank=1, head=True)
        source = MRIData(scan_folder / "train", scan_folder / "val", mask=RandomMask((3.0,), (0.125,)), batch_size=2)
        task = ReconTask(mri.UNet(4, 2, magnitude=True), loss="l1", ema_decay=0.5)
        fit(task, source, tmp_path, resume, trainer_options=CPU | {"max_epochs": 4, "callbacks": [callback, *more]})

    with pytest.raises(Stop):
        train_(Interrupt(6))
    assert bool(structure(load(tmp_path / LAST))) == (way is SparseToDense)
    train_(resume=True)
    assert bool(structure(load(tmp_path / LAST))) == (way is DenseToSparse)


@pytest.mark.parametrize("way", ["SparseToDense", "DenseToSparse"])
def test_yaml_names_the_callbacks(way, vorticity_folder, tmp_path):
    config = tmp_path / "row.yaml"
    config.write_text(f"""
model:
  class_path: PDETask
  init_args:
    net:
      class_path: MonarchFNO
      init_args: {{in_channels: 3, out_channels: 1, width: 6, n_modes: [8, 8], grid: [16, 16], n_layers: 2}}
data:
  class_path: TrajectoryData
  init_args: {{path: {vorticity_folder}, n_train: 6, n_val: 2, n_test: 2, n_history: 3, n_steps: 3, batch_size: 2}}
trainer:
  accelerator: cpu
  enable_progress_bar: false
  log_every_n_steps: 1
  max_epochs: 2
  callbacks:
    - class_path: {way}
      init_args: {{at: 0.5, blocks: 2, rank: 1, skip: [lifting]}}
""")
    out = tmp_path / "run"
    assert main(["train", "--config", str(config), "--out", str(out)]) == 0
    layers = structure(load(out / LAST))
    assert layers.keys() == (set() if way == "SparseToDense" else {"net.skips.0", "net.skips.1", "net.projection.0"})
    text = (out / "config.yaml").read_text()
    assert way in text
    assert (
        main(["train", "--config", str(out / "config.yaml"), "--out", str(out), "--resume", "--trainer.max_epochs=3"])
        == 0
    )


def test_mistakes_are_named(vorticity_folder, tmp_path, capsys):
    for at in (-0.1, 1.0, math.nan):
        with pytest.raises(InputError, match=f"at is {at}; it must be a fraction"):
            SparseToDense(at)
    for way in (SparseToDense, DenseToSparse):
        with pytest.raises(InputError, match=f"{way.__name__}: Sequential has no linear layer to"):
            way(0.5, blocks=2).setup(trainer_of(tmp_path), nn.Sequential(nn.Tanh()), "fit")
        with pytest.raises(InputError, match="only: 'layers' meets no layer"):
            train(tmp_path, way(0.5, only=["layers"]))
        with pytest.raises(InputError, match="set max_epochs or max_steps"):
            train(tmp_path, way(0.5, blocks=2), max_epochs=-1)


def test_network_is_that_of_the_task_or_the_task():
    task = PDETask(operator())
    assert network(task) is task.surrogate.net
    other = Regression()
    assert network(other) is other


class Manual(Regression):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class Two(Manual):
    def configure_optimizers(self):
        return [torch.optim.SGD(self.net[i].parameters(), lr=0.1) for i in (0, 2)], []


class Closures(Regression):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())


class Matrices(Regression):
    def configure_optimizers(self):
        return torch.optim.Muon([p for p in self.parameters() if p.ndim == 2])


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            Manual,
            "one optimizer under automatic optimization; Manual has 1 optimizers and automatic_optimization=False",
        ),
        (Two, "Two has 2 optimizers"),
        (Closures, "LBFGS cannot go on when layers are replaced"),
        (Matrices, "Muon cannot go on when layers are replaced"),
    ],
)
def test_optimizations_that_cannot_be_switched_are_refused(task, message, tmp_path):
    with pytest.raises(InputError, match=message):
        trainer_of(tmp_path, DenseToSparse(0.5, blocks=2)).fit(task(), points())


def test_a_training_that_ends_before_the_switch_says_so(tmp_path):
    class End(L.Callback):
        def on_train_epoch_end(self, trainer, module):
            trainer.should_stop = True

    with pytest.warns(UserWarning, match="DenseToSparse did not switch: the training ended after 10 steps"):
        train(tmp_path, DenseToSparse(0.9, blocks=2), End())


@pytest.mark.parametrize("way", [SparseToDense, DenseToSparse])
def test_a_callback_switches_in_each_training(way, tmp_path):
    callback = way(0.5, blocks=2)
    first, second = (train(tmp_path, callback) for _ in range(2))
    assert first.kinds == second.kinds
    assert len({is_sparse for _, is_sparse in second.kinds}) == 2
    task = Regression()
    trainer = trainer_of(tmp_path, callback)
    trainer.fit(task, points())
    report = callback.report
    trainer.fit_loop.max_epochs = 3  # goes on with the same training
    trainer.fit(task, points())
    assert len(task.kinds) == 30
    assert task.kinds[-1] == (29, way is DenseToSparse)
    assert callback.report is report
    path = tmp_path / "end.ckpt"
    trainer.save_checkpoint(path, weights_only=False)
    trainer_of(tmp_path, callback, max_epochs=4).fit(task, points(), ckpt_path=path, weights_only=False)
    assert task.kinds[-1] == (39, way is DenseToSparse)


def switch_in_processes(folder, way, devices):
    """The weights after a training whose steps see the same points, whatever the number of processes."""
    task = Regression()
    trainer = trainer_of(
        folder,
        EMAWeightAveraging(decay=0.5, use_buffers=False),
        way(0.5, blocks=2),
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=3,
        use_distributed_sampler=False,
    )
    dataset, rank = points().dataset, int(os.environ.get("LOCAL_RANK", 0))
    sampler = DistributedSampler(dataset, devices, rank, shuffle=False)
    trainer.fit(task, DataLoader(dataset, 4 // devices, sampler=sampler))
    weights = {k: v.tolist() for k, v in task.state_dict().items()}
    assert trainer.strategy.broadcast(weights) == weights, "processes have come apart"
    return weights


PROGRAM = """
import json, pathlib, sys, warnings
import torch
warnings.simplefilter("ignore")
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
from tests.test_sparse_training import DenseToSparse, SparseToDense, switch_in_processes

if __name__ == "__main__":
    weights = [switch_in_processes(sys.argv[1], way, 2) for way in (SparseToDense, DenseToSparse)]
    if torch.distributed.get_rank() == 0:
        pathlib.Path(sys.argv[1], "weights.json").write_text(json.dumps(weights))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()  # else gloo's threads may end the process with an error
"""


@pytest.mark.slow
def test_two_processes_switch_together(tmp_path):
    program = tmp_path / "train.py"
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), str(tmp_path), str(Path(__file__).parents[1])]
    environment = {k: v for k, v in os.environ.items() if k != "PL_GLOBAL_SEED"}  # of other tests; ddp would take it
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads((tmp_path / "weights.json").read_text())
    for way, weights in zip((SparseToDense, DenseToSparse), found, strict=True):
        expected = switch_in_processes(tmp_path, way, 1)
        assert weights.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(torch.tensor(weights[key]), torch.tensor(value), rtol=1e-4, atol=1e-5, msg=key)


def test_other_strategies_are_refused(tmp_path):
    class Other:
        pass

    class Trainer:
        callbacks, strategy, global_step = (), Other(), 0

    with pytest.raises(InputError, match="DenseToSparse cannot replace layers under Other; use one device or ddp"):
        DenseToSparse(0.5, blocks=2).setup(Trainer(), Regression(), "fit")
