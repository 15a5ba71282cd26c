import os
import subprocess
import sys
from pathlib import Path

import pytest

from sciml_monarch import InputError, load
from sciml_monarch.cli import call, main
from tests import command_line
from tests.command_line import one_line

run = command_line.run  # a fixture; imported by its name, it would be unused to Ruff


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


def test_a_switch_stands_without_a_value(run, vorticity_folder, tmp_path):
    out = tmp_path / "p.hdf5"
    command = ["predict", str(run / "checkpoints/last.ckpt"), "--input", str(vorticity_folder), "--steps", "1"]
    assert main([*command, "--out", str(out)]) == 0
    assert main([*command, "--out", str(out)]) == 2
    assert main([*command, "--out", str(out), "--force"]) == 0
    assert main([*command, "--force", "--out", str(out)]) == 0


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
