import pytest
import torch
import yaml

from sciml_monarch import load
from sciml_monarch.cli import main
from tests import command_line
from tests.command_line import CONFIGS, CPU, one_line

run = command_line.run  # a fixture; imported by its name, it would be unused to Ruff


def train_mri(folder, out, *options, config="smoke/mri_monarch_ista.yaml"):
    parts = [f"--data.init_args.{part}={folder / part}" for part in ("train", "val")]
    return main(["train", "--config", str(CONFIGS / config), *parts, "--out", str(out), *CPU, *options])


@pytest.fixture(scope="module")
def mri_run(scan_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "mri"
    assert train_mri(scan_folder, out) == 0
    return out


def test_an_mri_training_leaves_a_run_folder_that_can_be_repeated_and_resumed(mri_run, scan_folder, tmp_path):
    config = yaml.safe_load((mri_run / "config.yaml").read_text())
    assert config["model"]["init_args"]["optimization"]["weight_decay"] == 0.0  # a default
    assert (mri_run / "checkpoints/best.ckpt").is_file()  # by val/nmse, which nothing had to name
    again = tmp_path / "again"
    assert main(["train", "--config", str(mri_run / "config.yaml"), "--out", str(again)]) == 0
    first, second = (load(folder / "checkpoints/last.ckpt").state_dict() for folder in (mri_run, again))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert train_mri(scan_folder, again, "--resume", "--trainer.max_epochs", "3") == 0
    assert torch.load(again / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.init_args.net.init_args.n_stps", "3"], "n_stps"),
        (["--model.init_args.net.init_args.n_steps", "many"], "many"),
        (["--model.init_args.loss", "l3"], "l3"),
        (["--data.init_args.mask.init_args.accelerations", "[0]"], "acceleration 0"),
        (["--data.init_args.maps", "null"], "needs coil maps"),
        (["--data.init_args.maps.source", "file", "--data.init_args.maps.n_sets", "2"], "at least that many sets"),
        (["--data.init_args.loader.n_train", "100"], "n_train is 100"),
        (["--data.init_args.val", "{tmp}/nowhere"], "nowhere"),
        (["--trainer.precision", "bf16-true"], "use one of 32-true"),
        (["--model.init_args.unlock", "[0.5, 0.6, 0.7]"], "unlock names 3 fractions"),
    ],
    ids=lambda x: x if isinstance(x, str) else x[0].split(".")[-1],
)
def test_mistakes_in_an_mri_configuration_give_one_line_and_status_2(options, message, scan_folder, tmp_path, capsys):
    out = tmp_path / "run"
    given = [option.format(tmp=tmp_path) for option in options]
    assert train_mri(scan_folder, out, *given) == 2
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[-1]
    assert len(lines) == 1
    assert not out.exists() or list(out.iterdir()) == []  # so that the mended command runs without --overwrite


def test_a_network_of_one_task_does_not_train_on_data_of_the_other(scan_folder, vorticity_folder, tmp_path, capsys):
    config = yaml.safe_load((CONFIGS / "smoke/fno.yaml").read_text())
    config["data"] = yaml.safe_load((CONFIGS / "smoke/mri_unet.yaml").read_text())["data"]
    config["data"]["init_args"] |= {part: str(scan_folder / part) for part in ("train", "val")}
    file = tmp_path / "mixed.yaml"
    file.write_text(yaml.safe_dump(config | {"model": {"class_path": "PDETask"} | config["model"]}))
    assert main(["train", "--config", str(file), "--out", str(tmp_path / "run"), *CPU]) == 2
    assert "PDETask trains on TrajectoryData or PairData, not on MRIData" in one_line(capsys)
    config = yaml.safe_load((CONFIGS / "smoke/mri_unet.yaml").read_text())
    config["data"] = yaml.safe_load((CONFIGS / "smoke/fno.yaml").read_text())["data"]
    config["data"]["init_args"]["path"] = str(vorticity_folder)
    file.write_text(yaml.safe_dump(config))
    assert main(["train", "--config", str(file), "--out", str(tmp_path / "run"), *CPU]) == 2
    assert "ReconTask trains on MRIData, not on TrajectoryData" in one_line(capsys)


def test_scans_are_reconstructed_and_evaluated_from_the_command_line(mri_run, scan_folder, tmp_path, capsys):
    import json

    mask = ["--mask", "RandomMask", "--mask.accelerations", "[3]", "--mask.center_fractions", "[0.25]"]
    common = [str(scan_folder / "val"), "--device", "cpu", "--nifti", "false", "--png", "false", *mask]
    network = ["--checkpoint", str(mri_run / "checkpoints/best.ckpt"), "--out", str(tmp_path / "ista")]
    assert main(["reconstruct", *common, *network]) == 0
    rss = ["--method", "zero_filled_rss", "--out", str(tmp_path / "rss")]
    assert main(["reconstruct", *common, *rss]) == 0
    out = tmp_path / "evaluation"
    command = ["evaluate", str(tmp_path / "ista"), str(tmp_path / "rss"), "--target", str(scan_folder / "val")]
    assert main([*command, "--out", str(out)]) == 0
    rows = {row["method"]: row for row in json.loads((out / "metrics.json").read_text())}
    assert rows.keys() == {"MonarchISTA", "zero-filled RSS"}
    assert rows["MonarchISTA"]["nmse"] < rows["zero-filled RSS"]["nmse"]
    assert "MonarchISTA" in capsys.readouterr().out


def test_checkpoints_of_the_other_task_give_one_line_and_status_2(
    run, mri_run, vorticity_folder, scan_folder, tmp_path, capsys
):
    pde, mri = (str(folder / "checkpoints/last.ckpt") for folder in (run, mri_run))
    out = str(tmp_path / "out")
    for command, message in (
        (["evaluate", mri, "--data", str(vorticity_folder), "--out", out], "an MRI network; a PDE network is needed"),
        (["predict", mri, "--input", str(vorticity_folder), "--out", out], "an MRI network; a PDE network is needed"),
        (["reconstruct", str(scan_folder), "--checkpoint", pde, "--out", out], "a PDE network; an MRI network is need"),
    ):
        assert main(command) == 2
        assert message in one_line(capsys)
    assert train_mri(scan_folder, run, "--resume", "--trainer.max_epochs", "9") == 2
    assert "checkpoint of another network" in one_line(capsys)
    assert not (tmp_path / "out").exists()
