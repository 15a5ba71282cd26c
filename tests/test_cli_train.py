import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from sciml_monarch import load
from sciml_monarch.cli import main
from sciml_monarch.training import check_folder
from tests import command_line
from tests.command_line import CONFIGS, one_line, train, train_command
from tests.programs import heed_interrupts

run = command_line.run  # a fixture; imported by its name, it would be unused to Ruff


def test_train_leaves_a_run_folder_that_can_be_repeated(run, vorticity_folder, tmp_path):
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 2
    assert config["model"]["init_args"]["optimization"]["learning_rate"] == 1e-3  # a default
    again = tmp_path / "again"
    assert main(["train", "--config", str(run / "config.yaml"), "--out", str(again)]) == 0
    first, second = (load(folder / "checkpoints/last.ckpt").state_dict() for folder in (run, again))
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_resume_goes_on(vorticity_folder, tmp_path):
    out = tmp_path / "run"
    assert train(vorticity_folder, out, "--trainer.max_epochs", "1") == 0
    assert train(vorticity_folder, out, "--resume", "--trainer.max_epochs", "3") == 0
    assert torch.load(out / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.init_args.net.init_args.widht", "3"], "widht"),
        (["--model.init_args.net.init_args.width", "wide"], "wide"),
        (["--trainer.max_epoch", "3"], "max_epoch"),
        (["--model.init_args.net.init_args.n_modes", "[8, 99]"], "keeps 99 modes of a grid of 16 points"),
        (["--data.init_args.n_steps", "4"], "need 7 times"),
        (["--data.init_args.n_train", "60"], "parts would overlap"),
        (["--data.init_args.n_history", "2"], "in_channels"),
    ],
    ids=lambda x: x if isinstance(x, str) else x[0].split(".")[-1],
)
def test_mistakes_in_a_configuration_give_one_line_and_status_2(options, message, vorticity_folder, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(vorticity_folder, out, *options) == 2
    assert message in one_line(capsys)
    assert not (out / "checkpoints").exists()


def test_unknown_key_in_a_yaml_is_refused_before_the_data_is_read(tmp_path, capsys):
    config = yaml.safe_load((CONFIGS / "smoke/fno.yaml").read_text())
    config["data"]["init_args"]["path"] = str(tmp_path / "absent")
    config["model"]["init_args"]["net"]["init_args"]["depth"] = 4
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump(config | {"model": {"class_path": "PDETask"} | config["model"]}))
    assert main(["train", "--config", str(file), "--out", str(tmp_path / "run")]) == 2
    line = one_line(capsys)
    assert "depth" in line
    assert "absent" not in line


def test_a_run_is_not_overwritten(run, vorticity_folder, capsys):
    before = (run / "checkpoints/last.ckpt").read_bytes()
    assert train(vorticity_folder, run) == 2
    assert "holds an earlier run" in one_line(capsys)
    assert (run / "checkpoints/last.ckpt").read_bytes() == before


def spoil(kind, folder, tmp_path):
    """A copy of the data set that is wrong in one way."""
    import h5py
    import numpy as np
    import scipy.io

    if kind == "truncated .mat":
        file = tmp_path / "u.mat"
        scipy.io.savemat(file, {"u": np.random.default_rng(0).normal(size=(4, 16, 16, 8)).astype(np.float32)})
        file.write_bytes(file.read_bytes()[:-5000])
        return file
    wrong = tmp_path / "wrong"
    shutil.copytree(folder, wrong)
    shard = next(wrong.iterdir())
    if kind == "truncated HDF5":
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    else:
        main(
            [
                "simulate",
                "--out",
                str(tmp_path / "other"),
                "--n_trajectories",
                "1",
                "--viscosity",
                "1e-3",
                "--final_time",
                "6",
                "--simulation_resolution",
                "32",
                "--resolution",
                "32",
            ]
        )
        with h5py.File(next((tmp_path / "other").iterdir())) as file:
            assert file["t0_fields/vorticity"].shape[-1] == 32
        shutil.copy(next((tmp_path / "other").iterdir()), wrong / "shard_0001.hdf5")
    return wrong


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated HDF5", "shard_0000.hdf5"),
        ("truncated .mat", "u.mat"),
        ("other grid", "shard_0001.hdf5"),
    ],
)
def test_spoilt_data_gives_one_line_and_status_2(kind, message, vorticity_folder, tmp_path, capsys):
    data = spoil(kind, vorticity_folder, tmp_path)
    capsys.readouterr()
    out = tmp_path / "run"
    assert train(data, out) == 2
    assert message in one_line(capsys)
    assert not (out / "config.yaml").exists()
    assert not list(out.rglob("*.ckpt"))


def test_a_checkpoint_of_another_network_gives_one_line_and_status_2(run, vorticity_folder, tmp_path, capsys):
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, tmp_path / "other.ckpt")
    assert (
        main(
            [
                "evaluate",
                str(tmp_path / "other.ckpt"),
                "--data",
                str(vorticity_folder),
                "--n_test",
                "2",
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 2
    )
    assert "other.ckpt: a checkpoint of another program" in one_line(capsys)
    assert not (tmp_path / "out").exists()
    assert train(vorticity_folder, run, "--resume", "--trainer.max_epochs", "9", config="smoke/unet.yaml") == 2
    assert "checkpoint of another network" in one_line(capsys)


def test_a_disk_that_fills_up_while_training_leaves_no_half_checkpoint(vorticity_folder, tmp_path, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lightning.fabric.utilities.cloud_io.torch.save", full)
    assert train(vorticity_folder, tmp_path / "run") == 2
    assert "No space left on device" in one_line(capsys)
    assert not list((tmp_path / "run").rglob("*.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_an_interrupted_training_can_be_resumed(name, vorticity_folder, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "sciml_monarch", *train_command(vorticity_folder, out)]
    process = subprocess.Popen(
        [*command, "--trainer.max_epochs", "100000"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    try:
        deadline = time.monotonic() + 90
        while not (out / "checkpoints/last.ckpt").is_file():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(getattr(signal, name))
        _, text = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, text
    assert text.rstrip().endswith("sciml-monarch train: interrupted")
    done = torch.load(out / "checkpoints/last.ckpt", weights_only=True)["epoch"]
    assert train(vorticity_folder, out, "--resume", "--trainer.max_epochs", str(done + 3)) == 0
    assert torch.load(out / "checkpoints/last.ckpt", weights_only=True)["epoch"] == done + 2


def test_overwriting_with_a_mistake_keeps_the_earlier_run(vorticity_folder, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(vorticity_folder, out, "--trainer.max_epochs", "1") == 0
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    capsys.readouterr()
    assert train(tmp_path / "nowhere", out, "--overwrite") == 2
    assert "nowhere" in one_line(capsys)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert train(vorticity_folder, out, "--overwrite", "--trainer.max_epochs", "2") == 0
    assert torch.load(out / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 1
    assert not (out / ".earlier").exists()


def test_resuming_from_what_is_no_checkpoint_of_this_run(run, vorticity_folder, tmp_path, capsys):
    def resume(content, *options):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(run, out)
        if isinstance(content, bytes):
            (out / "checkpoints/last.ckpt").write_bytes(content)
        elif content is not None:
            torch.save(content, out / "checkpoints/last.ckpt")
        capsys.readouterr()
        assert train(vorticity_folder, out, "--resume", "--trainer.max_epochs", "9", *options) == 2
        return one_line(capsys)

    whole = (run / "checkpoints/last.ckpt").read_bytes()
    assert "last.ckpt: not a checkpoint" in resume(whole[: len(whole) // 2])
    assert "last.ckpt: not a checkpoint" in resume(b"text")
    assert "checkpoint of another program" in resume({"state_dict": {}})
    assert "another network: its arguments" in resume(None, "--model.init_args.net.init_args.learn_transforms", "false")
    assert "ema_decay is 0.9" in resume(None, "--model.init_args.ema_decay", "0.9")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--trainer.precision", "nonsense"], ["trainer.precision", "nonsense"]),
        (["--monitor", "val/nothing"], ["val/nothing", "PDETask validates val/relative_l2"]),
        (["--trainer.accelerator", "abacus"], ["abacus"]),
    ],
)
def test_refusals_of_lightning_are_one_line_too(options, parts, vorticity_folder, tmp_path, capsys):
    assert train(vorticity_folder, tmp_path / "run", *options) == 2
    line = one_line(capsys)
    assert all(part in line for part in parts)


def test_networks_with_complex_parameters_are_refused_in_true_half_precision(vorticity_folder, tmp_path):
    command = [
        sys.executable,
        "-m",
        "sciml_monarch",
        *train_command(vorticity_folder, tmp_path / "run", config="smoke/fno.yaml"),
    ]
    result = subprocess.run([*command, "--trainer.precision", "bf16-true"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "FNO has complex parameters" in result.stderr.splitlines()[-1]


def test_an_earlier_run_is_whole_after_a_kill_while_it_was_put_aside(run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    files = sorted(path.relative_to(out) for path in out.rglob("*"))
    (out / ".earlier_in_part").mkdir()
    (out / "checkpoints").rename(out / ".earlier_in_part/checkpoints")
    check_folder(out, resume=True, overwrite=False)
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == files


def test_an_earlier_run_comes_back_after_its_successor_was_killed(run, vorticity_folder, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(run, out / ".earlier")
    (out / "csv").mkdir()  # what the killed run left, before its first checkpoint
    assert train(vorticity_folder, out) == 2
    assert "holds an earlier run" in one_line(capsys)
    assert (out / "checkpoints/last.ckpt").read_bytes() == (run / "checkpoints/last.ckpt").read_bytes()
    assert not (out / ".earlier").exists()
