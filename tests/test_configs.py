from pathlib import Path

import pytest
import torch
import yaml

from sciml_monarch import load
from sciml_monarch.cli import main

CONFIGS = Path(__file__).parents[1] / "configs"
ROWS = sorted(p for p in CONFIGS.rglob("*.yaml") if p.name != "base.yaml")


@pytest.mark.parametrize("config", ROWS, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_every_configuration_builds_its_network(config):
    from jsonargparse import ArgumentParser

    from sciml_monarch.pde.data import TrajectoryData
    from sciml_monarch.pde.task import PDETask

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(PDETask, "model")
    parser.add_subclass_arguments(TrajectoryData, "data")
    values = yaml.safe_load(config.read_text())
    model = {"class_path": "PDETask"} | values["model"]
    parsed = parser.instantiate(parser.parse_object({"model": model, "data": values["data"]}))
    task, data = parsed.model, parsed.data
    assert task.surrogate.net.in_channels == data.n_history
    assert values["trainer"]["max_epochs"] > 0
    assert (values.get("monitor", "val/relative_l2") is None) == (data.n_val == 0)


@pytest.mark.parametrize("config", sorted((CONFIGS / "smoke").glob("*.yaml")), ids=lambda p: p.stem)
def test_smoke_configurations_train_and_reload(config, vorticity_folder, tmp_path):
    out = tmp_path / "run"
    assert (
        main(
            [
                "train",
                "--config",
                str(config),
                "--data.init_args.path",
                str(vorticity_folder),
                "--out",
                str(out),
                "--trainer.accelerator",
                "cpu",
                "--trainer.enable_progress_bar",
                "false",
            ]
        )
        == 0
    )
    surrogate = load(out / "checkpoints/best.ckpt")
    frames = surrogate.rollout(torch.randn(1, 3, 1, 16, 16), 5)
    assert frames.shape == (1, 5, 1, 16, 16)
    assert torch.isfinite(frames).all()


def test_readme_of_the_configurations_names_every_one():
    text = (CONFIGS / "README.md").read_text()
    for config in ROWS:
        assert str(config.relative_to(CONFIGS)) in text
