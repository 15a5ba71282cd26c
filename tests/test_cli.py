import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from sciml_monarch import InputError, load
from sciml_monarch.cli import call, main
from sciml_monarch.training import check_folder
from tests.programs import heed_interrupts

CONFIGS = Path(__file__).parents[1] / "configs"
CPU = [
    "--trainer.accelerator",
    "cpu",
    "--trainer.enable_progress_bar",
    "false",
    "--trainer.enable_model_summary",
    "false",
]


def train(folder, out, *options, config="smoke/monarch_fno.yaml"):
    return main(
        [
            "train",
            "--config",
            str(CONFIGS / config),
            "--data.init_args.path",
            str(folder),
            "--out",
            str(out),
            *CPU,
            *options,
        ]
    )


def one_line(capsys):
    """The single line that a mistake leaves on standard error."""
    text = capsys.readouterr().err
    assert text.count("\n") == 1, text
    return text


@pytest.fixture(scope="module")
def run(vorticity_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "monarch"
    assert train(vorticity_folder, out) == 0
    return out


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


def test_evaluate_and_predict_from_the_command_line(run, vorticity_folder, tmp_path, capsys):
    checkpoint = str(run / "checkpoints/last.ckpt")
    assert (
        main(
            [
                "evaluate",
                checkpoint,
                "--data",
                str(vorticity_folder),
                "--n_test",
                "2",
                "--out",
                str(tmp_path / "evaluation"),
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    assert (tmp_path / "evaluation/metrics.json").is_file()
    assert "MonarchFNO" in capsys.readouterr().out
    out = tmp_path / "prediction.hdf5"
    assert main(["predict", checkpoint, "--input", str(vorticity_folder), "--steps", "2", "--out", str(out)]) == 0
    assert out.is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate", "--viscosity", "-1", "--out", "{tmp}/d"], "viscosity"),
        (["simulate", "--viscosity", "thick", "--out", "{tmp}/d"], "thick"),
        (["simulate", "--vicsosity", "1e-3", "--out", "{tmp}/d"], "vicsosity"),
        (["evaluate", "{tmp}/absent.ckpt", "--data", "{tmp}"], "absent.ckpt"),
        (["evaluate"], "checkpoints"),
        (["predict", "{tmp}/absent.ckpt", "--input", "{tmp}/x.npy"], "absent.ckpt"),
        (["evaluate", "{tmp}/absent", "--target", "{tmp}"], ".h5"),
        (["evaluate", "{tmp}/absent", "--target", "{tmp}", "--n_test", "2"], "n_test"),
        (["reconstruct", "{tmp}/absent.h5", "--out", "{tmp}/out"], "absent.h5"),
        (["reconstruct", "--out", "{tmp}/out"], "inputs"),
        (["fly"], "there is no job 'fly'"),
    ],
    ids=lambda x: x if isinstance(x, str) else " ".join(x[:2]),
)
def test_mistakes_on_the_command_line_give_one_line_and_status_2(arguments, message, tmp_path, capsys):
    assert main([a.format(tmp=tmp_path) for a in arguments]) == 2
    assert message in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("job", ["train", "simulate", "reconstruct"])
@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x80", b"\x00\x01"])
def test_a_configuration_that_is_no_text_is_one_line(job, content, tmp_path, capsys):
    file = tmp_path / "net.yaml"
    file.write_bytes(content)
    assert main([job, "--config", str(file), "--out", str(tmp_path / "out")]) == 2
    line = one_line(capsys)
    if content[0] == 0xFF:
        assert f"{file}: is not a text file" in line
    assert [path.name for path in tmp_path.iterdir()] == ["net.yaml"]


def test_help_of_every_job_shows_its_options(capsys):
    for job, option in {
        "simulate": "--viscosity",
        "train": "--resume",
        "evaluate": "--data",
        "predict": "--steps",
        "reconstruct": "--checkpoint",
        "demo": "--overwrite",
    }.items():
        with pytest.raises(SystemExit) as status:
            main([job, "--help"])
        assert status.value.code == 0
        text = capsys.readouterr().out
        assert option in text
        assert job != "evaluate" or "--target_key" in text  # of both tasks


def test_the_module_and_the_scripts_are_the_same_program():
    root = Path(__file__).parents[1]
    programs = [["-m", "sciml_monarch", "fly"]]
    result = subprocess.run([sys.executable, *programs[0]], capture_output=True, text=True, check=False, cwd=root)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    for script in (
        "simulate_navier_stokes",
        "train_pde",
        "evaluate_pde",
        "predict_pde",
        "train_mri",
        "reconstruct_mri",
    ):
        result = subprocess.run(
            [sys.executable, f"scripts/{script}.py", "--nonsense"],
            capture_output=True,
            text=True,
            check=False,
            cwd=root,
            env=os.environ,
        )
        assert result.returncode == 2, result.stderr
        assert result.stderr.count("\n") == 1, result.stderr


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


def test_a_switch_stands_without_a_value(run, vorticity_folder, tmp_path):
    out = tmp_path / "p.hdf5"
    command = ["predict", str(run / "checkpoints/last.ckpt"), "--input", str(vorticity_folder), "--steps", "1"]
    assert main([*command, "--out", str(out)]) == 0
    assert main([*command, "--out", str(out)]) == 2
    assert main([*command, "--out", str(out), "--force"]) == 0
    assert main([*command, "--force", "--out", str(out)]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_an_interrupted_training_can_be_resumed(name, vorticity_folder, tmp_path):
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "sciml_monarch",
        "train",
        "--config",
        str(CONFIGS / "smoke/monarch_fno.yaml"),
        "--data.init_args.path",
        str(vorticity_folder),
        "--out",
        str(out),
        *CPU,
    ]
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
        "train",
        "--config",
        str(CONFIGS / "smoke/fno.yaml"),
        "--data.init_args.path",
        str(vorticity_folder),
        "--out",
        str(tmp_path / "run"),
        *CPU,
    ]
    result = subprocess.run([*command, "--trainer.precision", "bf16-true"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "FNO has complex parameters" in result.stderr.splitlines()[-1]


def test_evaluation_on_trajectories_of_the_training_is_refused(run, vorticity_folder, tmp_path, capsys):
    import json

    command = ["evaluate", str(run / "checkpoints/last.ckpt"), "--data", str(vorticity_folder), "--device", "cpu"]
    assert main([*command, "--n_test", "3", "--out", str(tmp_path / "no")]) == 2
    assert "left its last 2 trajectories" in one_line(capsys)
    assert not (tmp_path / "no").exists()
    assert main([*command, "--out", str(tmp_path / "yes")]) == 0
    assert json.loads((tmp_path / "yes/metrics.json").read_text())[0]["n_test"] == 2


def test_a_run_folder_in_place_of_its_network_is_told_apart(run):
    with pytest.raises(InputError, match=r"lacks config\.json; give .*checkpoints/last\.ckpt"):
        load(run)


@pytest.mark.parametrize(
    ("started", "shown"),
    [
        ("/bin/sciml-monarch", "sciml-monarch evaluate"),
        ("a/__main__.py", "sciml-monarch evaluate"),
        ("b/own.py", "own.py"),
    ],
)
def test_help_shows_the_program_that_was_started(started, shown, monkeypatch, capsys):
    def evaluate_mri(out: Path = Path()):
        """Does nothing."""

    monkeypatch.setattr(sys, "argv", [started])
    with pytest.raises(SystemExit):
        call(evaluate_mri, ["--help"])
    assert capsys.readouterr().out.startswith(f"usage: {shown} [")


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
