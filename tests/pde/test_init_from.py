"""A training that begins from the weights of another."""

import json

import pytest
import torch

from sciml_monarch import InputError, load, save
from sciml_monarch.monarch import sparsify
from sciml_monarch.pde import (
    MonarchFNO,
    OperatorTransformer,
    UNet,
)
from sciml_monarch.pde.task import Optimization, PDETask
from sciml_monarch.training import LAST
from tests.pde.rollout_runs import (
    OPTIMIZATION,
    Watch,
    data,
    monarch,
    same,
    train,
    zero,
)


@pytest.mark.parametrize("increment", [False, True])
@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_fine_tuning_begins_with_weights_and_normalisation_of_the_checkpoint(
    increment, ema_decay, vorticity_folder, tmp_path
):
    single = data(vorticity_folder, n_steps=1)
    task = PDETask(monarch(), OPTIMIZATION, ema_decay=ema_decay, increment=increment, noise=0.05)
    before = train(task, single, tmp_path / "single")
    source = data(vorticity_folder)
    assert not torch.equal(source.statistics()[1], single.statistics()[1])  # of 6 frames, of 4
    for path in (tmp_path / "single" / LAST, save(before, tmp_path / "shared")):
        tuned = PDETask(monarch(), increment=increment, init_from=path)
        assert same(tuned.surrogate, before)
    options = Optimization(learning_rate=1e-12, weight_decay=0.0)
    tuned = PDETask(zero(monarch()), options, increment=increment, init_from=tmp_path / "single" / LAST)
    watch = Watch(tuned)
    after = train(tuned, source, tmp_path / "tuned", 1, [watch])
    for (name, a), b in zip(before.state_dict().items(), after.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name, rtol=1e-6, atol=1e-9)
        assert name.startswith("net.") or torch.equal(a, b), name
    assert {n for _, n in watch.trained} == {3}
    assert after.description.n_steps == 3
    again = PDETask(monarch(), options, increment=increment, init_from=tmp_path / "single" / LAST)
    train(again, source, tmp_path / "tuned", 2, resume=True)
    assert same(again.surrogate, load(tmp_path / "tuned" / LAST))
    assert torch.equal(again.surrogate.input_std, before.input_std)


def test_fine_tuning_takes_on_the_monarch_layers_of_the_checkpoint(vorticity_folder, tmp_path):
    def transformer():
        return OperatorTransformer(3, 1, width=16, n_layers=1, n_heads=2)

    sparse = transformer()
    assert sparsify(sparse, blocks=2).converted
    task = PDETask(sparse)
    train(task, data(vorticity_folder), tmp_path, 1)
    assert same(PDETask(transformer(), init_from=tmp_path / LAST).surrogate, task.surrogate)


def test_beginning_from_another_network_is_refused(vorticity_folder, tmp_path):
    train(PDETask(monarch()), data(vorticity_folder), tmp_path / "run", 1)
    path = tmp_path / "run" / LAST
    with pytest.raises(InputError, match="its class is MonarchFNO, not UNet"):
        PDETask(UNet(3, 1, width=4), init_from=path)
    with pytest.raises(InputError, match="its arguments"):
        PDETask(MonarchFNO(3, 1, 4, (8, 8), (16, 16), n_layers=2, projection_channels=8), init_from=path)
    with pytest.raises(InputError, match="its increment is False, not True"):
        PDETask(monarch(), increment=True, init_from=path)
    with pytest.raises(InputError, match="no such checkpoint"):
        PDETask(monarch(), init_from=tmp_path / "none.ckpt")
    shared = save(load(path), tmp_path / "shared")
    config = json.loads((shared / "config.json").read_text())
    config["description"]["fields"] = ["temperature"]
    (shared / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"trained on fields \('temperature',\), but the data has \('vorticity',\)"):
        train(PDETask(monarch(), init_from=shared), data(vorticity_folder), tmp_path / "other", 1)
