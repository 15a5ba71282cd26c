"""Averaged weights: the network after a fit, and exact through validation."""

import pytest
import torch

from sciml_monarch import load
from sciml_monarch.averaging import Averaging, move_average
from sciml_monarch.pde.task import PDETask
from sciml_monarch.training import LAST, fit
from tests.pde.rollout_runs import CPU, OPTIMIZATION, data, monarch, same


def run(folder, out, epochs=3, n_val=0, resume=False, **options):
    task = PDETask(monarch(), OPTIMIZATION, ema_decay=0.99)
    source = data(folder)
    source.n_val = n_val
    trainer = fit(task, source, out, resume, monitor=None, trainer_options=CPU | {"max_epochs": epochs, **options})
    return task, trainer, source


def test_a_training_that_is_resumed_at_its_end_has_the_average(vorticity_folder, tmp_path):
    task, trainer, source = run(vorticity_folder, tmp_path)
    (first,) = trainer.test(task, source, verbose=False)
    again, trainer, source = run(vorticity_folder, tmp_path, resume=True)
    assert same(again.surrogate, task.surrogate)
    assert same(again.surrogate, load(tmp_path / LAST))
    assert trainer.test(again, source, verbose=False) == [first]
    # and not the weights of the last step
    state = torch.load(tmp_path / LAST, weights_only=True)
    assert any(not torch.equal(state["state_dict"][k], v) for k, v in state["current_model_state"].items())


@pytest.mark.parametrize("precision", ["32", "bf16-true"])
def test_validation_changes_no_training(precision, vorticity_folder, tmp_path):
    states = []
    for n_val in (0, 2):
        run(vorticity_folder, tmp_path / str(n_val), 4, n_val, precision=precision)
        state = torch.load(tmp_path / str(n_val) / LAST, weights_only=True)
        states.append((state["state_dict"], state["current_model_state"]))
    for without, validated in zip(*states, strict=True):
        assert all(torch.equal(validated[name], value) for name, value in without.items())


@pytest.mark.parametrize(("decay", "second"), [(0.9, 2 / 11), (0.1, 0.1)])
def test_an_average_begins_with_the_first_weights_and_slows_down(decay, second):
    average = [torch.full((2,), 5.0), torch.full((1,), 5.0)]
    move_average(average, [torch.ones(2), torch.ones(1)], 0, decay)
    assert [a.tolist() for a in average] == [[1, 1], [1]]
    move_average(average, [torch.zeros(2), torch.zeros(1)], 1, decay)
    assert average[0].tolist() == pytest.approx([second] * 2)
    move_average(average, [torch.zeros(2), torch.ones(1)], 1000, decay)
    assert average[0].tolist() == pytest.approx([second * decay] * 2)
    assert average[1].tolist() == pytest.approx([1 - decay + second * decay])


def test_weights_of_other_dtypes_are_averaged_too():
    average = [torch.ones(1, dtype=torch.complex64), torch.ones(1)]
    move_average(average, [torch.tensor([3j]), torch.tensor([2.0], dtype=torch.bfloat16)], 100, 0.5)
    assert average[0].item() == pytest.approx(0.5 + 1.5j)
    assert average[1].item() == 1.5


@pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_the_average_lies_where_the_network_is_trained(device):
    averaging, task = Averaging(0.9), PDETask(monarch())
    averaging.setup(None, task, "fit")
    averaging.on_fit_start(None, task.to(device))
    assert {tensor.device.type for tensor in averaging._averages()} == {device}
    assert averaging._average_model.n_averaged.device.type == "cpu"


def test_every_step_of_the_optimiser_is_averaged_once(vorticity_folder, tmp_path):
    _, trainer, _ = run(vorticity_folder, tmp_path, accumulate_grad_batches=2)
    state = torch.load(tmp_path / LAST, weights_only=True)
    assert state["averaging_state"]["n_averaged"] == trainer.global_step > 1


def test_the_average_has_the_buffers_of_the_network_where_it_is_used():
    averaging, task = Averaging(0.9), PDETask(monarch())
    averaging.setup(None, task, "fit")
    averaging.on_fit_start(None, task)
    task.surrogate.input_std.fill_(7.0)  # as a data set does once training begins
    averaging.on_validation_epoch_start(None, task)
    assert task.surrogate.input_std.eq(7).all()
    averaging.on_validation_epoch_end(None, task)
    checkpoint = {"state_dict": task.state_dict()}
    task.surrogate.input_std.fill_(8.0)
    averaging.on_save_checkpoint(None, task, checkpoint)
    assert checkpoint["state_dict"]["surrogate.input_std"].eq(8).all()
