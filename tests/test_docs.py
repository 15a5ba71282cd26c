"""The commands that README and guide show are run: the tour as it stands, those of fastMRI's brains on tiny files laid
out as these are, the others up to the data that they lack."""

import json
import re
import shlex
from pathlib import Path

import pytest

from sciml_monarch.cli import call, main
from tests.mri.scans import make_scan, write_scan

ROOT = Path(__file__).parents[1]
TOUR = "Try it without any data"


def commands(page):
    """Commands of this package in the code blocks of a page: heading and arguments."""
    heading, found = "", []
    for part in re.split(r"^(?=#+ |```)", (ROOT / page).read_text(), flags=re.MULTILINE):
        first, _, rest = part.partition("\n")
        if first.startswith("#"):
            heading = first.lstrip("# ")
        elif first == "```":
            lines = rest.replace("\\\n", " ").split("\n")
            shown = [line for line in lines if line.startswith(("sciml-monarch ", "python scripts/"))]
            found += [(heading, shlex.split(line, comments=True)) for line in shown]
    return found


def run(words):
    """Runs a command in this process."""
    if words[0] == "sciml-monarch":
        return main(words[1:])
    assert words[1] == "scripts/make_semisynthetic_mri.py", words
    assert (ROOT / words[1]).is_file()
    from sciml_monarch.mri.semisynthetic import make_semisynthetic

    call(make_semisynthetic, words[2:])
    return 0


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """An empty folder with the configurations in it."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_tour_of_mri_runs_as_it_stands(checkout, capsys):
    tour = [words for heading, words in commands("docs/guide/mri.md") if heading == TOUR]
    assert len(tour) == 7
    quick = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    for words in tour:
        on_cpu = {"train": ["--trainer.accelerator", "cpu", *quick], "reconstruct": ["--device", "cpu"]}
        assert run([*words, *on_cpu.get(words[1], [])]) == 0, capsys.readouterr().err
    assert (checkout / "runs/tour_scores/report.html").is_file()
    shown = capsys.readouterr().out
    assert "MonarchISTA" in shown
    assert "CG-SENSE" in shown


BRAINS = "data/fastmri_brain"
SHORT = ["--trainer.max_epochs", "1", "--data.init_args.loader.n_train", "2", "--data.init_args.loader.n_val", "2"]
SHORT += ["--data.init_args.loader.n_workers", "0", "--model.init_args.net.init_args.n_steps", "2"]


@pytest.mark.parametrize(
    ("page", "trained"),
    [("README.md", "runs/ista"), ("docs/guide/mri.md", "runs/monarch_ista")],
    ids=["README", "guide"],
)
def test_the_workflow_of_fastmri_runs_from_training_to_scores(page, trained, checkout, capsys):
    for part, seeds in {"train": (0, 1), "val": (2, 3)}.items():
        for seed in seeds:
            scan = make_scan(1, (64, 192), seed=seed)
            write_scan(checkout / BRAINS / f"multicoil_{part}" / f"file{seed}.h5", scan)
    workflow = [
        words
        for _, words in commands(page)
        if trained in words or any(word.startswith(BRAINS) for word in words)  # what trains, and what follows from it
    ]
    assert [words[1] for words in workflow][:4] == ["train", "reconstruct", "reconstruct", "evaluate"]
    quick = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false", *SHORT]
    for words in workflow:
        more = {"train": ["--trainer.accelerator", "cpu", *quick], "reconstruct": ["--device", "cpu"]}
        assert main([*words[1:], *more.get(words[1], [])]) == 0, capsys.readouterr().err
    scores = json.loads((checkout / "runs/scores/metrics.json").read_text())
    assert [row["method"] for row in scores] == ["MonarchISTA", "CG-SENSE"]
    assert all(row["n_volumes"] == 2 and row["nmse"] < 0.1 for row in scores)
    assert all(volume["acceleration"] == 4 for row in scores for volume in row["volumes"])


LACKING = [
    pytest.param(words, id=" ".join(words)[:60])
    for page in ("README.md", "docs/guide/mri.md", "docs/guide/training.md")
    for heading, words in commands(page)
    if heading != TOUR and words[1] in ("train", "evaluate", "predict", "reconstruct")
]


def test_commands_are_found():
    assert {words.values[0][1] for words in LACKING} == {"train", "evaluate", "predict", "reconstruct"}


@pytest.mark.parametrize("words", LACKING)
def test_commands_fail_for_the_lack_of_data_alone(words, checkout, capsys):
    assert main(words[1:]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1, line
    assert re.search(r"(data|runs)/\S+: .*no such|(\.h5|\.npy): .*no such", line), line
    assert not [path for path in checkout.glob("runs/**/*") if path.is_file()]
