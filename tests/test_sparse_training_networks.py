import json

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn

from sciml_monarch import load, mri, optimization, save
from sciml_monarch.cli import main
from sciml_monarch.monarch import sparsify, structure
from sciml_monarch.mri.data import MRIData
from sciml_monarch.mri.masks import RandomMask
from sciml_monarch.mri.task import ReconTask
from sciml_monarch.pde import MonarchFNO
from sciml_monarch.pde.data import Loader, TrajectoryData
from sciml_monarch.pde.task import Optimization, PDETask
from sciml_monarch.sparse_training import DenseToSparse, SparseToDense, network
from sciml_monarch.training import BEST, LAST, fit
from tests.sparse_runs import CPU, Regression, points, trainer_of

OPTIONS = {"blocks": 2, "rank": 1, "head": True}


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


def test_network_is_that_of_the_task_or_the_task():
    task = PDETask(operator())
    assert network(task) is task.surrogate.net
    other = Regression()
    assert network(other) is other
