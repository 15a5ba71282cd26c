"""The program's job train from the command line, a run folder of it, and the line that mistakes leave."""

from pathlib import Path

import pytest

from sciml_monarch.cli import main

CONFIGS = Path(__file__).parents[1] / "configs"
CPU = [
    "--trainer.accelerator",
    "cpu",
    "--trainer.enable_progress_bar",
    "false",
    "--trainer.enable_model_summary",
    "false",
]


def train_command(folder, out, *options, config="smoke/monarch_fno.yaml"):
    """What follows the program's name."""
    data = ["--data.init_args.path", str(folder)]
    return ["train", "--config", str(CONFIGS / config), *data, "--out", str(out), *CPU, *options]


def train(folder, out, *options, config="smoke/monarch_fno.yaml"):
    return main(train_command(folder, out, *options, config=config))


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
