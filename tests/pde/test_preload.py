"""Data sets in memory: of the processor, or of the device that is trained on."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sciml_monarch.pde import synthetic
from sciml_monarch.pde.data import Loader, PairData, TrajectoryData
from sciml_monarch.pde.synthetic import WellField

DEVICES = pytest.mark.parametrize("device", ["cpu", "meta", pytest.param("cuda", marks=pytest.mark.cuda)])


def on(device):
    """As much of a trainer as loaders ask for."""
    return SimpleNamespace(world_size=1, global_rank=0, strategy=SimpleNamespace(root_device=torch.device(device)))


def trajectories(path, **loader):
    frames = np.random.default_rng(0).normal(size=(6, 7, 4, 4)).astype(np.float32)
    file = synthetic.write_well(path / "a.hdf5", {"w": WellField(frames)}, (4, 4), range(7), 6)
    return TrajectoryData(file, 4, 1, 1, 3, 2, 2, Loader(windows="all", **loader))


@DEVICES
def test_batches_come_from_the_device_that_is_trained_on(device, tmp_path):
    plain = trajectories(tmp_path)
    data = trajectories(tmp_path, preload="device")
    statistics = data.statistics()  # which are asked for before there is a device, and after
    data.trainer = on(device)
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        batches = list(getattr(data, name)())
        expected = list(getattr(plain, name)())
        assert len(batches) == len(expected)
        for batch, wanted in zip(batches, expected, strict=True):
            for found, exact in zip(batch, wanted, strict=True):
                assert found.device.type == device
                assert found.shape == exact.shape
                if device != "meta":
                    assert torch.equal(found.cpu(), exact)
    if device != "meta":
        data._statistics = None
        assert all(map(torch.equal, data.statistics(), statistics))


def test_what_lies_on_the_device_is_not_pinned(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    pinned = [trajectories(tmp_path, preload=how).train_dataloader().pin_memory for how in (True, "device")]
    assert pinned == [True, False]


@DEVICES
def test_so_do_pairs(device, tmp_path):
    fields = {name: torch.randn(5, 4, 4) for name in ("x", "y")}
    torch.save(fields, tmp_path / "a.pt")
    data = PairData(tmp_path / "a.pt", [tmp_path / "a.pt"], 3, 2, loader=Loader(preload="device"))
    data.trainer = on(device)
    for batch in (*data.train_dataloader(), *data.val_dataloader(), *data.test_dataloader()[0]):
        assert {t.device.type for t in batch} == {device}
    if device != "meta":
        for mean, exact in zip((data.statistics()[0], data.target_statistics()[0]), fields.values(), strict=True):
            torch.testing.assert_close(mean, exact[:3].mean().view(1))


def test_preloaded_epoch_is_fast(tmp_path):
    """A twentieth of an epoch of 1,000 windows of 20 frames of 64²; a whole one takes 0.1 s on two cores."""
    frames = np.zeros((50, 20, 64, 64), dtype=np.float32)
    path = synthetic.write_well(tmp_path / "a.hdf5", {"w": WellField(frames)}, (64, 64), range(20), 50)
    data = TrajectoryData(path, 50, 0, 0, batch_size=20, loader=Loader(preload=True))
    loader = data.train_dataloader()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        n_windows = sum(len(history) for history, _ in loader)
        seconds.append(time.perf_counter() - start)
    assert n_windows == 50
    assert min(seconds) < 0.05  # several times what was measured: other work may share the cores
