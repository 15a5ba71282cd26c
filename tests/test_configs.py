from pathlib import Path

import pytest
import torch
import yaml

from sciml_monarch import load
from sciml_monarch.cli import main

CONFIGS = Path(__file__).parents[1] / "configs"
ROWS = sorted(p for p in CONFIGS.rglob("*.yaml") if p.name != "base.yaml")
SMOKE = sorted((CONFIGS / "smoke").glob("*.yaml"))
MRI_SMOKE = [p for p in SMOKE if p.stem.startswith("mri_")]
PDE_SMOKE = [p for p in SMOKE if p not in MRI_SMOKE]


def build(config):
    """Task and data module that a configuration describes."""
    from jsonargparse import ArgumentParser

    from sciml_monarch.mri.data import MRIData
    from sciml_monarch.mri.task import ReconTask
    from sciml_monarch.pde.data import TrajectoryData
    from sciml_monarch.pde.pair_data import PairData
    from sciml_monarch.pde.task import PDETask

    values = yaml.safe_load(config.read_text())
    mri = values["data"]["class_path"] == "MRIData"
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ReconTask if mri else PDETask, "model")
    parser.add_subclass_arguments(MRIData if mri else (TrajectoryData, PairData), "data")
    model = {"class_path": "PDETask"} | values["model"]
    arguments = {key: value for key, value in model["init_args"].items() if key != "init_from"}  # not trained here
    model |= {"init_args": arguments}
    parsed = parser.instantiate(parser.parse_object({"model": model, "data": values["data"]}))
    return parsed.model, parsed.data, values


@pytest.mark.parametrize("config", ROWS, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_every_configuration_builds_its_network(config):
    task, data, values = build(config)
    assert values["trainer"]["max_epochs"] > 0
    if start := values["model"]["init_args"].get("init_from"):  # of the same network, in the folder of its row
        other, _, theirs = build(config.parent / f"{Path(start).parents[1].name}.yaml")
        assert other.surrogate.net.config == task.surrogate.net.config
        assert "init_from" not in theirs["model"]["init_args"]
    if hasattr(task, "surrogate"):
        assert task.surrogate.net.in_channels == getattr(data, "n_history", 1)  # of pairs one
        assert (values.get("monitor", "auto") is None) == (data.n_val == 0)
    else:
        assert not (task.net.needs_maps and data.maps is None)
        assert data.mask is not None
        assert (values.get("monitor", "auto") is None) == (data.paths["val"] is None)


def test_sizes_of_the_networks_are_those_that_the_configurations_claim():
    def n_parameters(name):
        return sum(p.numel() for p in build(CONFIGS / "mri" / name)[0].net.parameters())

    assert n_parameters("varnet.yaml") == 29_936_966
    assert n_parameters("monarch_sense.yaml") == 57_472


def train(config, out, *options):
    command = ["train", "--config", str(config), "--out", str(out), *map(str, options)]
    return main([*command, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"])


@pytest.mark.parametrize("config", PDE_SMOKE, ids=lambda p: p.stem)
def test_smoke_configurations_train_and_reload(config, vorticity_folder, tmp_path):
    out = tmp_path / "run"
    assert train(config, out, "--data.init_args.path", vorticity_folder) == 0
    surrogate = load(out / "checkpoints/best.ckpt")
    frames = surrogate.rollout(torch.randn(1, 3, 1, 16, 16), 5)
    assert frames.shape == (1, 5, 1, 16, 16)
    assert torch.isfinite(frames).all()


@pytest.mark.filterwarnings("ignore:.*where the learned transform has")  # one scan is narrower
@pytest.mark.parametrize("config", MRI_SMOKE, ids=lambda p: p.stem)
def test_mri_smoke_configurations_train_and_reconstruct(config, scan_folder, tmp_path):
    import h5py

    out = tmp_path / "run"
    parts = [f"--data.init_args.{part}={scan_folder / part}" for part in ("train", "val")]
    assert train(config, out, *parts) == 0
    net = load(out / "checkpoints/best.ckpt")
    assert net.description.n_volumes == 3
    maps = ["--maps.source", "espirit", "--maps.kernel", "4"] if net.needs_maps else []
    scan = scan_folder / "test" / "test_0.h5"
    command = ["reconstruct", str(scan), "--checkpoint", str(out / "checkpoints/best.ckpt"), *maps]
    assert main([*command, "--out", str(tmp_path / "volumes"), "--device", "cpu", "--nifti", "false"]) == 0
    with h5py.File(tmp_path / "volumes" / "test_0.h5") as file:
        assert file["reconstruction"].shape == (2, 32, 32)
        assert file["reconstruction"][()].max() > 0


def test_readme_of_the_configurations_names_every_one():
    text = (CONFIGS / "README.md").read_text()
    for config in ROWS:
        assert str(config.relative_to(CONFIGS)) in text
