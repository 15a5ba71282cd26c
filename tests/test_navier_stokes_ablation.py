"""Rows that change one thing, rows that begin from another's network, and their table."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from sciml_monarch import load
from sciml_monarch.pde import relative_l2
from sciml_monarch.pde.readers import open_trajectories
from sciml_monarch.pde.symmetry import fno_forced_navier_stokes
from tests.navier_stokes_runs import LAST, arguments, row_of
from tests.programs import Inline, script
from tests.test_configs import CONFIGS

TINY = [
    "data.init_args={n_train: 4, n_test: 2, n_history: 3, n_steps: 2, batch_size: 2}",
    "data.init_args.loader={val_steps: null, test_steps: null}",
    "model.init_args.net.init_args={in_channels: 3, width: 4, n_modes: [4, 4], grid: [16, 16], n_layers: 1}",
]
FIRST, LATER = "residual_single_step_1e-5_4_epochs_seed_0", "residual_fine_tuned_1e-5_4_and_1_epochs_seed_0"


@pytest.fixture(scope="module")
def program():
    return script("reproduce_navier_stokes")


@pytest.fixture(scope="module")
def tables():
    return script("reproduce_navier_stokes_ablation")


def test_a_row_waits_for_the_one_it_begins_from_and_begins_there(program, vorticity_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.multiprocessing.get_context", lambda kind: Inline())
    data = tmp_path / "sets"
    data.mkdir()
    (data / "navier_stokes_1e-5").symlink_to(vorticity_folder)
    options = arguments(data, tmp_path, rows=["residual_fine_tuned_1e-5"], epochs=5, set=TINY)
    (first, _), (later, config) = program.plan(options.rows, [0], 5, 0, program.Options(data, tmp_path, TINY, 1, 1))
    assert (first.folder, later.folder, later.first) == (FIRST, LATER, first)
    assert config["model"]["init_args"]["init_from"] == str(tmp_path / FIRST / LAST)
    assert program.can_begin(tmp_path, first)
    assert not program.can_begin(tmp_path, later)
    program.train(options)
    rows = {row["row"]: row for row in program.read_rows(tmp_path / "rows.jsonl")}
    assert [rows[name]["finished"] for name in ("residual_single_step_1e-5", "residual_fine_tuned_1e-5")] == [True] * 2
    assert [row["epochs_of_first"] for row in rows.values()] == [4, 0]
    before, after = (torch.load(tmp_path / folder / LAST, weights_only=True) for folder in (FIRST, LATER))
    assert before["epoch"] == 3
    pairs = [(value, before["state_dict"][name]) for name, value in after["state_dict"].items()]
    moved = sum((new - old).abs().sum().item() for new, old in pairs)
    assert 0 < moved < 0.02 * sum(new.abs().sum().item() for new, _ in pairs)  # two steps at 3e-4
    # without the first: it goes on from its own checkpoint
    shutil.rmtree(tmp_path / FIRST)
    unfinished = json.loads((tmp_path / LATER / "row.json").read_text()) | {"finished": False}
    (tmp_path / LATER / "row.json").write_text(json.dumps(unfinished))
    assert program.can_begin(tmp_path, later)
    config = sys.modules["reproduce_navier_stokes_job"].config_of(later, program.Options(data, tmp_path, TINY, 1, 1))
    assert config["model"]["init_args"]["init_from"] is None


def test_rows_share_epochs_as_their_yamls_do(program):
    options = program.Options(Path("data"), Path("runs"), [], 1, 1)
    rows = ["residual_1e-5", "residual_fine_tuned_1e-5"]
    for epochs, expected in ((None, (500, 100, 400)), (50, (50, 10, 40)), (1, (1, 1, 1))):
        found = {job.row: job.epochs for job, _ in program.plan(rows, [0], epochs, 0, options)}
        assert tuple(found[name] for name in (*rows, "residual_single_step_1e-5")) == expected
    planned = program.plan(["residual_fine_tuned_1e-5", "residual_single_step_1e-5"], [0], None, 0, options)
    assert [job.row for job, _ in planned] == ["residual_single_step_1e-5", "residual_fine_tuned_1e-5"]  # no third


@pytest.mark.parametrize(("base", "rows"), [("residual_1e-5", "residual_*.yaml"), ("one_step_gated_1e-5", None)])
def test_every_row_says_what_it_changes(tables, base, rows):
    changes = tables.changes(base)
    assert next(iter(changes)) == base
    assert len(set(changes.values())) == len(changes) > 10
    assert changes[f"{'residual' if rows else 'one_step'}_no_norm_1e-5"] == "no normalisation"
    if rows:  # no row is forgotten whose name says that it is one
        assert set(changes) == {path.stem for path in (CONFIGS / "navier_stokes").glob(rows)}


def _leaves(tree, place=()):
    if not isinstance(tree, dict):
        return {place: tree}
    return {key: value for name, below in tree.items() for key, value in _leaves(below, (*place, name)).items()}


# what comes with a change: histories of another length have other windows, large batches another rate, and so on
TOGETHER = {
    "history": 5,
    "batch_200": 2,
    "batch_80": 2,
    "plain": 2,
    "gated_1e": 2,
    "all": 2,
    "frequencies": 2,
    "wide": 2,
    "deep": 2,
    "shallow": 2,
    "single_step": 7,
    "fine_tuned": 3,
}


@pytest.mark.parametrize("base", ["residual_1e-5", "one_step_gated_1e-5"])
def test_rows_of_one_change_differ_in_one_argument(program, tables, base):
    read = sys.modules["reproduce_training"].read_config
    unchanged = _leaves(read(CONFIGS / f"navier_stokes/{base}.yaml"))
    for name in list(tables.changes(base))[1:]:
        own = _leaves(read(CONFIGS / f"navier_stokes/{name}.yaml"))
        own[("trainer", "max_epochs")] = unchanged[("trainer", "max_epochs")]
        differ = {place[-1] for place in unchanged.keys() | own.keys() if unchanged.get(place) != own.get(place)}
        allowed = max((n for part, n in TOGETHER.items() if part in name), default=1)
        assert 1 <= len(differ) <= allowed


def test_changes_are_compared_at_equal_epochs_and_seeds(tables):
    def trial(name, seed, error, **others):
        phases = [{"step_seconds": 9.0}, {"step_seconds": others.pop("step_seconds", 0.02)}]
        more = {"train_loss": [0.2, 0.1], "batch_size": 20, "n_steps": 10, "phases": phases}
        errors = {"validation_relative_l2": error, "symmetrized_validation_relative_l2": error / 2}
        return row_of(name, seed, validation=100, finished=True) | more | errors | others

    base, other, tuned = "residual_1e-5", "residual_no_norm_1e-5", "residual_fine_tuned_1e-5"
    plain, single = "residual_local_1e-5", "residual_single_step_1e-5"
    rows = [
        trial(base, 0, 0.10),
        trial(base, 1, 0.14),
        trial(other, 0, 0.11, step_seconds=0.015, batch_size=10),
        trial(tuned, 1, 0.07, epochs=100, epochs_of_first=400, phases=[]),
        trial(other, 0, 0.3, epochs=50),
        trial(base, 0, 0.9, commit="later", step_seconds=0.02),
        trial(base, 0, 0.9, commit="later", step_seconds=0.04),
        trial(plain, 0, 0.12, commit="later", step_seconds=0.01),
        trial(single, 0, 0.12, n_steps=1),
        row_of(base, 0, done=30),
        row_of(base, 0, 0.1),
        row_of(other, 0, 0.2),
    ]
    text = tables.ablation(rows)
    _, held, tested = text.split(" epochs")  # what was trained for 50 has nothing to be compared with
    assert "100 training trajectories held out for validation" in held
    assert "| nothing | 1,000 | 2 | 0.1200 |  | 0.0600 |  | 0.1000 |  |" in held
    assert "| no normalisation | 1,000 | 1 | 0.1100 | +10.0 % | 0.0550 | +10.0 % | 0.1000 | 1.5 |" in held
    assert "| 1,000 | 1 | 0.0700 | -50.0 % | 0.0350 | -50.0 % | 0.1000 |  |" in held
    # one of a later version has its error against the first unchanged one, its time against those of its version
    assert "| 1,000 | 1 | 0.1200 | +20.0 % | 0.0600 | +20.0 % | 0.1000 | 0.3 |" in held
    assert "| 1,000 | 1 | 0.1200 | +20.0 % | 0.0600 | +20.0 % | 0.1000 |  |" in held  # samples of other lengths
    assert "| no normalisation | 1,000 | 1 | 0.2000 | +100.0 % |  |  |" in tested
    assert tables.ablation([row_of(base, 0, done=30)]) == ""
    assert tables.ablation([row_of(base, 0, 0.1)]) == tables.ablation([row_of(other, 0, 0.1)]) == ""


def test_what_two_versions_trained_for_choices_stands_twice_and_what_one_did_not_finish_does_not(program):
    kind = {"validation": 100, "finished": True, "wall_seconds": 60.0}
    rows = [
        row_of("residual_1e-5", **kind, validation_relative_l2=0.11),
        row_of("residual_1e-5", **kind, validation_relative_l2=0.12, commit="later"),
        row_of("residual_1e-5", done=30, validation=100, commit="earlier"),
        row_of("residual_gated_1e-5", done=30, validation=100),
    ]
    lines = [line for line in program.table(rows).split("\n") if line.startswith("| residual")]
    assert [line.split(" | ")[5] for line in lines] == ["0.1100", "0.1200", "not yet"]


@pytest.mark.parametrize(
    ("base", "row"),
    [
        *(("residual_1e-5", f"residual_history_{n}_1e-5") for n in (1, 2, 4)),
        *(("one_step_gated_1e-5", f"one_step_history_{n}_1e-5") for n in (1, 4)),
    ],
)
@pytest.mark.parametrize("n_train", [1000, 900])
def test_epochs_of_short_histories_have_as_many_batches_as_others(program, base, row, n_train):
    read = sys.modules["reproduce_training"].read_config

    def batches(name):
        config = read(CONFIGS / f"navier_stokes/{name}.yaml")
        data = config["data"]["init_args"]
        windows = 20 - data["n_history"] - data["n_steps"] + 1 if data["loader"].get("windows") == "all" else 1
        whole = n_train * windows // data["batch_size"]
        return int(whole * config["trainer"].get("limit_train_batches", 1.0)), data

    (others, _), (own, data) = batches(base), batches(row)
    assert own == others > 0
    assert data["n_history"] == int(row.split("_")[-2])
    assert data["loader"]["known_frames"] == 10


@pytest.mark.slow
def test_a_network_that_sees_one_frame_trains_on_all_windows_and_is_tested_on_the_same_frames(
    program, vorticity_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("torch.multiprocessing.get_context", lambda kind: Inline())
    (tmp_path / "navier_stokes_1e-5").symlink_to(vorticity_folder)
    settings = [
        "data.init_args={n_train: 4, n_test: 2, n_steps: 2, batch_size: 2}",
        "data.init_args.loader={known_frames: 3}",
        "model.init_args.net.init_args={width: 4, n_modes: [4, 4], grid: [16, 16], n_layers: 1}",
        "trainer.limit_train_batches=0.5",
    ]
    out = tmp_path / "runs"
    program.train(arguments(tmp_path, out, rows=["residual_history_1_1e-5"], epochs=2, set=settings))
    (row,) = program.read_rows(out / "rows.jsonl")
    assert (row["finished"], row["n_history"], row["epochs"]) == (True, 1, 2)
    checkpoint = torch.load(out / "residual_history_1_1e-5_2_epochs_seed_0" / LAST, weights_only=True)
    assert checkpoint["global_step"] == 2 * 4  # of 4 trajectories with 4 windows each half, two at a time
    network = load(out / "residual_history_1_1e-5_2_epochs_seed_0" / LAST)
    source = open_trajectories(vorticity_folder)
    frames = torch.stack([source.read(i, 2, 5) for i in (8, 9)])
    error = relative_l2(network.rollout(frames[:, :1], 2), frames[:, 1:]).mean().item()
    assert error == pytest.approx(row["relative_l2"], rel=1e-5)
    network.symmetrize(fno_forced_navier_stokes())
    error = relative_l2(network.rollout(frames[:, :1], 2), frames[:, 1:]).mean().item()
    assert error == pytest.approx(row["symmetrized_relative_l2"], rel=1e-5)
    assert row["symmetrized_relative_l2"] != row["relative_l2"]
    assert f"| {row['relative_l2']:.4f} | {row['symmetrized_relative_l2']:.4f} |" in program.table([row])


@pytest.mark.parametrize("network", ["fno", "monarch_fno"])
def test_networks_that_see_one_frame_are_those_with_symmetries_but_for_that(program, network):
    read = sys.modules["reproduce_training"].read_config
    base, own = (read(CONFIGS / f"navier_stokes/{network}_{kind}_1e-5.yaml") for kind in ("symmetry", "history_1"))
    assert own["trainer"].pop("limit_train_batches") == 0.1
    for config, n_frames in ((base, 10), (own, 1)):
        assert config["model"]["init_args"]["net"]["init_args"].pop("in_channels") == n_frames
        assert config["data"]["init_args"].pop("n_history") == n_frames
    loader = own["data"]["init_args"]["loader"]
    assert (loader.pop("windows"), loader.pop("known_frames")) == ("all", 10)
    assert own == base


def test_trainings_on_gpus_have_a_thread_each_and_share_a_processor_otherwise(program, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 32)
    assert [program.n_threads(places) for places in ([0], [0, 1, 0, 1], [None], [None, None, None])] == [1, 1, 32, 10]
