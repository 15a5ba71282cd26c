"""The program that trains a peer in its authors' recipe, with a small network in the place of theirs."""

import json
import sys

import pytest
import torch

from sciml_monarch import InputError
from sciml_monarch.pde import relative_l2
from sciml_monarch.pde.simulate import simulate
from tests.programs import script

NETWORK = """
import torch

class Model(torch.nn.Module):
    def __init__(self, fun_dim, out_dim, H, W, **sizes):
        super().__init__()
        assert sizes["n_hidden"] == 256 and (H, W) == (16, 16)
        self.map = torch.nn.Linear(fun_dim, out_dim)

    def forward(self, x, fx):
        assert x.shape == (*fx.shape[:2], 2)
        return fx[..., -1:] + self.map(fx)
"""


@pytest.fixture(scope="module")
def program():
    return script("compare_transolver")


@pytest.fixture
def code(tmp_path, monkeypatch):
    (tmp_path / "code/model").mkdir(parents=True)
    (tmp_path / "code/model/Transolver_Structured_Mesh_2D.py").write_text(NETWORK)
    for name in ("model", "model.Transolver_Structured_Mesh_2D"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield tmp_path / "code"
    for name in ("model", "model.Transolver_Structured_Mesh_2D"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transolver") / "data"
    simulate(out=folder, n_trajectories=6, viscosity=1e-3, simulation_resolution=16, resolution=16, final_time=20.0)
    return folder


def test_single_steps_are_those_of_a_forced_roll_out(program, code):
    net = program.network(code, (16, 16))
    frames = torch.randn(2, 20, 16, 16)
    expected = 0.0
    history = frames[:, :10].flatten(2).mT  # as the authors' loop has it
    for step in range(10):
        true = frames[:, 10 + step].flatten(1)[..., None]
        found = net(history.new_empty(2, 256, 2), fx=history)
        expected += relative_l2(found, true).sum()
        history = torch.cat([history[..., 1:], true], -1)
    torch.testing.assert_close(program.loss(net, frames), expected)


def test_a_roll_out_feeds_predictions_back(program, code):
    net = program.network(code, (16, 16))
    with torch.no_grad():
        net.map.weight.zero_()
        net.map.bias.fill_(0.5)  # each frame is the one before and a half
    frames = torch.randn(3, 20, 16, 16)
    steps = 0.5 * torch.arange(1, 11).view(1, 10, 1, 1)
    torch.testing.assert_close(program.roll_out(net, frames), frames[:, 9:10] + steps)


def test_a_training_that_was_stopped_goes_on_and_is_tested_at_its_end(program, code, data, tmp_path):
    def row(out, **options):
        program.run(code, data, out, **{"epochs": 4, "n_train": 4, "n_test": 2, "device": "cpu"} | options)
        return json.loads((out / "row.json").read_text())

    whole = row(tmp_path / "whole")
    assert (whole["epochs_done"], whole["n_parameters"], len(whole["train_loss"])) == (4, 11, 4)
    assert 0 < whole["relative_l2"] < 10
    stopped = row(tmp_path / "parts", time_limit=0.0)
    assert stopped["epochs_done"] == 1
    assert "relative_l2" not in stopped
    assert row(tmp_path / "parts")["relative_l2"] == whole["relative_l2"]
    assert torch.load(tmp_path / "parts/last.ckpt", weights_only=True)["schedule"]["last_epoch"] == 8
    with pytest.raises(InputError, match="the checkpoint has epochs 4, not 5"):
        row(tmp_path / "parts", epochs=5)
    with pytest.raises(InputError, match="the checkpoint has seed 0, not 1"):
        row(tmp_path / "parts", seed=1)
    with pytest.raises(InputError, match="the checkpoint has n_train 4, not 2"):
        row(tmp_path / "parts", n_train=2)
    with pytest.raises(InputError, match="the checkpoint has compiled False, not True"):
        row(tmp_path / "parts", compiled=True)
    again = row(tmp_path / "whole")  # nothing is left to train
    assert (again["epoch_seconds"], again["relative_l2"]) == (whole["epoch_seconds"], whole["relative_l2"])
    half = row(tmp_path / "half", precision="bf16")
    assert half["train_loss"][0] == pytest.approx(whole["train_loss"][0], rel=0.05)
    assert half["relative_l2"] != whole["relative_l2"]


def test_a_compiled_network_is_trained_where_it_is_asked_for(program, code, data, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda net: compiled.append(net))
    options = {"epochs": 1, "n_train": 4, "n_test": 2, "device": "cpu"}
    for asked in (False, True):
        program.run(code, data, tmp_path / str(asked), compiled=asked, **options)
        assert json.loads((tmp_path / str(asked) / "row.json").read_text())["compiled"] is asked
        assert len(compiled) == asked


def test_code_and_data_that_are_not_there_are_named(program, code, tmp_path, data):
    options = {"n_train": 4, "n_test": 2, "device": "cpu"}
    with pytest.raises(InputError, match="Transolver's code cannot be imported from"):
        program.run(tmp_path, data, tmp_path / "out", **options)
    with pytest.raises(InputError, match="has 6 trajectories, not 1000 to train on and 200 more"):
        program.run(code, data, tmp_path / "out", device="cpu")
