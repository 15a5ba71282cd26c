"""A roll-out that grows in the course of a training."""

import lightning as L
import pytest
import torch

from sciml_monarch import InputError, load
from sciml_monarch.pde.rollout_training import RolloutCurriculum
from sciml_monarch.pde.task import Optimization, PDETask, RolloutLoss
from sciml_monarch.training import LAST, fit
from tests.pde.rollout_runs import (
    CPU,
    Watch,
    data,
    gradients,
    monarch,
    train,
)


def test_stages_begin_at_their_fractions_of_the_epochs():
    curriculum = RolloutCurriculum([1, 2, 5, 10], [0.0, 0.2, 0.5, 0.8])
    assert [curriculum.n_steps(e, 10) for e in range(10)] == [1, 1, 2, 2, 2, 5, 5, 5, 10, 10]
    assert [curriculum.n_steps(e, 2) for e in range(2)] == [
        2,
        10,
    ]  # rounded: 0.4 to 0; 1.6 to 2, but epoch 1 is the last
    assert RolloutCurriculum([1, 2], [0.0, 0.07]).n_steps(7, 100) == 2  # 0.07 * 100 is a little more than 7


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_the_loss_of_each_stage_is_that_of_a_truncated_target(cuda_graph, vorticity_folder, tmp_path):
    task = PDETask(monarch(), Optimization(learning_rate=1e-12), cuda_graph=cuda_graph)
    watch, losses = Watch(task), []

    class Graphs(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            losses.append(module._loss)
            length = (1, 2, 3)[trainer.current_epoch]
            expected = RolloutLoss(module.surrogate)(batch[0], batch[1][:, :length]).item()
            assert outputs["loss"].item() == pytest.approx(expected, rel=1e-6)
            assert expected != RolloutLoss(module.surrogate)(batch[0], batch[1][:, : length % 3 + 1]).item()
            del watch.trained[-2:]

    callbacks = [RolloutCurriculum([1, 2, 3], [0.0, 0.3, 0.7]), watch, Graphs()]
    train(task, data(vorticity_folder), tmp_path, 3, callbacks)
    assert [n for _, n in watch.trained] == [1] * 3 + [2] * 3 + [3] * 3
    assert {n for _, n in watch.validated} == {3}
    assert load(tmp_path / LAST).description.n_steps == 3
    if cuda_graph:  # one capture of each length
        assert [losses.index(loss) for loss in losses] == [0] * 3 + [3] * 3 + [6] * 3


def test_no_gradient_comes_from_later_frames(vorticity_folder):
    source = data(vorticity_folder)
    task = PDETask(monarch())
    task.surrogate.describe(source.description)
    task.log = lambda *arguments, **options: None
    history, target = next(iter(source.train_dataloader()))
    whole = gradients(task.training_step((history, target), 0), task.network)
    spoilt = target.clone()
    spoilt[:, 2:] = torch.nan
    task.train_on_first(2)
    first = gradients(task.training_step((history, spoilt), 0), task.network)
    expected = gradients(RolloutLoss(task.surrogate)(history, target[:, :2]), task.network)
    assert all(torch.equal(a, b) for a, b in zip(first, expected, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, whole, strict=True))
    task.train_on_first(None)
    again = gradients(task.training_step((history, target), 0), task.network)
    assert all(torch.equal(a, b) for a, b in zip(again, whole, strict=True))
    with pytest.raises(InputError, match="first 4 frames: the data has n_steps 3; take 1 to 3"):
        task.train_on_first(4)


@pytest.mark.cuda
def test_a_graph_captured_anew_trains_like_eager(vorticity_folder, tmp_path):
    def begin(graph):
        task = PDETask(monarch(), Optimization(learning_rate=1e-3), cuda_graph=graph, increment=True, noise=0.1)
        options = {"accelerator": "cuda", "devices": 1, "max_epochs": 3}
        callbacks = [RolloutCurriculum([1, 2, 3], [0.0, 0.3, 0.7])]
        fit(
            task,
            data(vorticity_folder),
            tmp_path / str(graph),
            trainer_options=CPU | options | {"callbacks": callbacks},
        )
        return load(tmp_path / str(graph) / LAST).state_dict()

    eager, graphed = begin(False), begin(True)
    for name, value in eager.items():
        assert (value - graphed[name]).norm() <= 1e-3 * (value.norm() + 1e-3), name


@pytest.mark.parametrize(
    ("steps", "at", "message"),
    [
        ([], [], "1 or more"),
        ([1, 2], [0.0], "2 steps .* at 1 fractions"),
        ([0, 2], [0.0, 0.5], "a stage has 0 frames"),
        ([1, 2], [0.0, 1.0], "from 0 to less than 1"),
        ([1, 2], [0.0, float("nan")], "from 0 to less than 1"),
        ([1, 2], [0.1, 0.5], "must begin at 0, not at 0.1"),
        ([1, 2, 3], [0.0, 0.5, 0.2], "0.2 follows 0.5; each must be greater"),
        ([1, 2], [0.0, 0.0], "0.0 follows 0.0"),
    ],
)
def test_curricula_that_make_no_sense_are_refused(steps, at, message):
    with pytest.raises(InputError, match=message):
        RolloutCurriculum(steps, at)


def test_a_curriculum_that_does_not_fit_the_training_is_refused(vorticity_folder, tmp_path):
    with pytest.raises(InputError, match=r"a stage has 5 frames, but the data has n_steps 3"):
        train(PDETask(monarch()), data(vorticity_folder), tmp_path, 1, [RolloutCurriculum([1, 5], [0.0, 0.5])])
    options = CPU | {"max_steps": 2, "callbacks": [RolloutCurriculum([1], [0.0])]}
    with pytest.raises(InputError, match="max_epochs is -1"):
        fit(PDETask(monarch()), data(vorticity_folder), tmp_path, trainer_options=options)
    trainer = L.Trainer(**CPU, max_epochs=1, logger=False, enable_checkpointing=False)
    with pytest.raises(InputError, match="not for LightningModule"):
        RolloutCurriculum([1], [0.0]).on_fit_start(trainer, L.LightningModule())
