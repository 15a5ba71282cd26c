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
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from sciml_monarch import InputError
from sciml_monarch.monarch import sparsify, structure
from sciml_monarch.sparse_training import DenseToSparse, SparseToDense
from tests.sparse_runs import Regression, points, trainer_of


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
