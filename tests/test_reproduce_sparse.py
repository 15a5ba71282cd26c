"""The protocol of the sparse-training tables: what is trained when, for how long, and what the tables say of it."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import lightning
import pytest
import torch

from sciml_monarch import InputError, load
from sciml_monarch.monarch import MonarchLinear
from sciml_monarch.monarch.convert import sparsify
from sciml_monarch.pde import n_parameters
from tests.programs import Inline, script

TINY = [
    "data.init_args={n_train: 6, n_val: 2, n_test: 2, n_history: 3, n_steps: 2, batch_size: 2}",
    "model.init_args.net.init_args={in_channels: 3, width: 32, n_layers: 1, n_heads: 2}",
    "trainer.precision=32",
]


@pytest.fixture(scope="module")
def program():
    return script("reproduce_sparse_training")


@pytest.fixture(scope="module")
def job(program):
    return sys.modules["reproduce_sparse_job"]


def finished_row(program, name, epochs, seconds, budget="epochs", start=None, steps=(0.1,), seed=0):
    phases = [{"n_parameters": 10 * (i + 1), "epochs": 1, "step_seconds": s} for i, s in enumerate(steps)]
    return {
        "row": name,
        "epochs": epochs,
        "train_seconds": seconds,
        "budget": budget,
        "start": start,
        "seed": seed,
        "settings": [],
        "phases": phases,
        "relative_l2": 0.125,
        "validation_relative_l2": 0.25,
        "device": "a GPU",
        "precision": "32",
        "torch": "2",
        "commit": None,
    }


def test_every_row_builds_with_its_callbacks(program, job):
    assert program.row_names()[0] == "dense"
    parameters = {}
    for name in program.row_names():
        config = program.read_config(program.CONFIGS / f"{name}.yaml")
        with torch.device("meta"):  # sizes only
            task, data, callbacks = job.build(config)
        assert [type(c).__name__ for c in callbacks] == [
            c["class_path"] for c in config["trainer"].get("callbacks", [])
        ]
        assert data.n_train + data.n_val + data.n_test == 1200
        assert data.n_val > 0
        assert data.batch_size == 20
        assert (task.optimization.learning_rate, config["trainer"]["precision"]) == (3e-4, "bf16-mixed")
        parameters[name] = n_parameters(task)
    assert parameters["dense"] == parameters["dense_to_sparse"] == parameters["dense_continued"] == 75_908_170
    assert parameters["monarch_4_blocks"] == parameters["sparse_to_dense_90"] == 28_493_898


def test_settings_are_read_as_yaml(program, job):
    config = program.read_config(program.CONFIGS / "dense.yaml", ["data.init_args.n_val=2", "trainer.precision=32"])
    assert config["data"]["init_args"]["n_val"] == 2
    assert config["data"]["init_args"]["n_test"] == 200
    assert config["trainer"]["precision"] == 32
    with pytest.raises(InputError, match="give a name and a value"):
        program.read_config(program.CONFIGS / "dense.yaml", ["x"])
    with pytest.raises(InputError, match="n_vall"):
        job.build(program.read_config(program.CONFIGS / "dense.yaml", ["data.init_args.n_vall=2"]))


def test_what_is_trained_next(program):
    names = ["dense", "dense_to_sparse", "dense_to_sparse_5", "dense_to_sparse_random", "monarch_4_blocks"]
    both = ["epochs", "time"]

    def todo(rows, budgets=both, epochs=40, seed=0):
        return [(j.row, j.epochs, j.budget, j.start) for j in program.plan(names, budgets, epochs, seed, rows, [])]

    first = [("dense", 40, "epochs", None), ("dense_to_sparse_random", 4, "epochs", None)]
    assert todo([]) == [*first, ("monarch_4_blocks", 40, "epochs", None)]
    dense = finished_row(program, "dense", 40, 100.0)
    start = program.folder_name("dense", 40, 0)
    short = [("dense_to_sparse", 4, "epochs", start), ("dense_to_sparse_5", 2, "epochs", start)]
    monarch = finished_row(program, "monarch_4_blocks", 40, 80.0)
    assert todo([dense]) == [*short, first[1], ("monarch_4_blocks", 40, "epochs", None)]
    assert todo([dense, monarch])[-1] == ("monarch_4_blocks", 50, "time", None)
    assert todo([dense, monarch], ["epochs"]) == [*short, first[1]]
    again = finished_row(program, "monarch_4_blocks", 50, 101.0, "time")
    assert todo([dense, monarch, again]) == [*short, first[1]]
    assert todo([dense, monarch, again], seed=1) == todo([])
    # without --epochs those of the YAMLs
    assert [j.epochs for j in program.plan(names, both, None, 0, [], [])] == [100, 10, 100]
    # no equal time for what is trained for a part of the epochs, fresh or not
    random = finished_row(program, "dense_to_sparse_random", 4, 2.0)
    assert todo([dense, monarch, random]) == [*short, ("monarch_4_blocks", 50, "time", None)]
    slow = finished_row(program, "monarch_4_blocks", 40, 100.4)  # 39.8 epochs fit: not 40
    assert todo([dense, slow])[-1] == ("monarch_4_blocks", 39, "time", None)
    continued = program.plan(["dense_continued"], both, 40, 0, [dense], [])
    assert [(j.row, j.epochs, j.start) for j in continued] == [("dense_continued", 4, start)]
    with pytest.raises(
        InputError, match=r"dense was trained with --set nothing, not trainer.precision=32; give the same"
    ):
        program.plan(names, both, 40, 0, [dense], ["trainer.precision=32"])


def test_what_waits_for_what_is_named(program):
    names = ["dense", "dense_to_sparse", "dense_to_sparse_random", "monarch_4_blocks"]
    assert program.waiting(names, ["epochs"], 40, 0, []) == ["dense_to_sparse waits for dense of 40 epochs"]
    assert program.waiting(names, ["time"], 40, 0, []) == [
        "monarch_4_blocks at equal time waits for dense of 40 epochs"
    ]
    dense = finished_row(program, "dense", 40, 100.0)
    assert program.waiting(names, ["epochs", "time"], 40, 0, [dense]) == []
    assert len(program.waiting(names, ["epochs"], 40, 1, [dense])) == 1
    assert program.waiting(names, ["time"], 40, 0, [dense]) == [
        "monarch_4_blocks at equal time waits for monarch_4_blocks at equal epochs"
    ]


def test_projected_networks_have_as_many_weights_as_those_of_low_rank(program, job):
    counts = []
    for name in ("dense_to_sparse", "dense_to_sparse_5", "dense_to_sparse_low_rank"):
        config = program.read_config(program.CONFIGS / f"{name}.yaml")
        config["model"]["init_args"]["net"]["init_args"]["n_layers"] = 1
        task, _, (callback,) = job.build(config)
        net = task.surrogate.net
        sparsify(net, callback.blocks, callback.rank, "random", callback.only, callback.skip, callback.head)
        assert isinstance(net.layers[0].down, MonarchLinear)
        assert not isinstance(net.embed, MonarchLinear)
        counts.append(n_parameters(net))
    assert counts[0] == counts[1] == counts[2]


def test_only_the_data_of_the_yamls_are_simulated(program, vorticity_folder, tmp_path, monkeypatch):
    simulated = []
    monkeypatch.setattr("sciml_monarch.pde.simulate.simulate", lambda out: simulated.append(out))
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InputError, OSError)):
        program.ensure_data(["dense"], ["data.init_args.path=elsewhere"])
    assert simulated == []
    with pytest.raises(InputError, match=r"trajectories, dense takes 1200; `sciml-monarch simulate"):
        program.ensure_data(["dense"], [f"data.init_args.path={vorticity_folder}"])
    own = tmp_path / "data/navier_stokes_1e-5"
    own.parent.mkdir()
    own.symlink_to(vorticity_folder)
    with pytest.raises(InputError, match="dense takes 1200"):
        program.ensure_data(["dense"], [])
    assert simulated == []
    own.unlink()
    with pytest.raises((InputError, OSError)):  # this simulation leaves nothing
        program.ensure_data(["dense"], [])
    assert simulated == [Path("data/navier_stokes_1e-5")]


def test_tables_say_what_is_missing_and_keep_trainings_of_one_length_together(program):
    start = program.folder_name("dense", 40, 0)
    rows = [
        finished_row(program, "dense", 40, 100.0, steps=(0.2,)),
        finished_row(program, "dense", 4, 10.0, steps=(0.3,)),
        finished_row(program, "monarch_4_blocks", 40, 80.0),
        finished_row(program, "monarch_4_blocks", 50, 101.0, "time"),
        finished_row(program, "monarch_2_blocks", 40, 100.0),  # as fast as the dense one: both at once
        finished_row(program, "sparse_to_dense_70", 40, 90.0, steps=(0.1, 0.2)),
        finished_row(program, "dense_to_sparse", 4, 8.0, start=start),
        finished_row(program, "dense_to_sparse_5", 2, 4.0, start=program.folder_name("dense", 4, 0)),
    ]
    others = [
        finished_row(program, "monarch_4_blocks", 45, 90.0),  # neither in proportion nor of equal time
        finished_row(program, "sparse_to_dense_90", 40, 80.0, seed=1),
        finished_row(program, "dense_to_sparse_low_rank", 4, 8.0, start=start) | {"settings": ["trainer.precision=32"]},
    ]
    assert program.table(rows + others) == program.table(rows)
    assert "\na GPU, precision 32, torch 2, seed 0, commit None." in program.table(rows)
    rows[2]["commit"] = "abc"
    assert "\n- monarch_4_blocks (40 epochs): a GPU, precision 32, torch 2, seed 0, commit abc" in program.table(rows)
    epochs, times, short = (part.splitlines() for part in program.table(rows).split("### ")[1:])
    assert "| monarch_4_blocks | 10 | 100.0 | 2.00 | 40 | 80 | 0.2500 | 0.1250 |" in epochs
    assert "| sparse_to_dense_70 | 10 -> 20 | 100.0 -> 200.0 | 2.00 -> 1.00 | 40 | 90 | 0.2500 | 0.1250 |" in epochs
    assert "| sparse_to_dense_90 | not measured yet | | | | | | |" in epochs
    assert "| monarch_4_blocks | 10 | 100.0 | 2.00 | 50 | 101 | 0.2500 | 0.1250 |" in times
    assert any(line.startswith("| monarch_2_blocks | 10 ") for line in times)
    assert "| sparse_to_dense_70 | not measured yet | | | | | | |" in times
    assert any(line.startswith("| dense_to_sparse | 10 ") for line in short)
    assert "| dense_to_sparse_5 | not measured yet | | | | | | |" in short  # only from another dense network
    assert all(line.startswith("| dense | 10 | 200.0") for part in (epochs, times, short) for line in part[4:5])
    assert "not measured yet" in program.table([])


def test_phases_leave_out_epochs_that_capture(job):
    recorder = job.Recorder()
    epochs = [(9.0, 10, 0.0), (1.0, 10, 1.0), (3.0, 10, 1.0), (2.0, 10, 1.0), (8.0, 20, 0.0), (4.0, 20, 1.0)]
    recorder.epochs = [list(e) for e in epochs]
    assert recorder.phases(2) == [
        {"n_parameters": 10, "epochs": 4, "step_seconds": 1.0},
        {"n_parameters": 20, "epochs": 2, "step_seconds": 2.0},
    ]
    again = job.Recorder()
    again.load_state_dict(recorder.state_dict())
    assert again.phases(2) == recorder.phases(2)


@pytest.mark.slow
def test_all_three_ways_are_trained_and_go_on_where_they_stopped(program, vorticity_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(program.mp, "get_context", lambda kind: Inline())
    arguments = Namespace(
        out=tmp_path / "runs",
        rows=["dense"],
        budgets=["epochs"],
        epochs=4,
        devices=None,
        time_limit=60.0,
        seed=0,
        set=[*TINY, f"data.init_args.path={vorticity_folder}"],
        poll=0.0,
    )
    written, save = [], lightning.Trainer.save_checkpoint
    monkeypatch.setattr(lightning.Trainer, "save_checkpoint", lambda *a, **k: (written.append(a[1]), save(*a, **k)))
    program.train(arguments)
    assert len(written) == 1  # a checkpoint of such a network is large: after half a minute, and at the end
    monkeypatch.setattr(lightning.Trainer, "save_checkpoint", save)
    checkpoint = arguments.out / program.folder_name("dense", 4, 0) / "checkpoints/last.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["surrogate.net.skip.weight"].fill_(7)  # no other network has it so
    torch.save(content, checkpoint)
    arguments.rows = ["dense", "sparse_to_dense_70", "dense_to_sparse"]
    program.train(arguments)
    rows = {r["row"]: r for r in map(json.loads, (arguments.out / "rows.jsonl").read_text().splitlines())}
    assert set(rows) == set(arguments.rows)
    assert all(r["validation_relative_l2"] > 0 for r in rows.values())
    assert all(0 < rows[name]["relative_l2"] < 2 for name in ("dense", "sparse_to_dense_70"))
    assert {k: r["epochs"] for k, r in rows.items()} == {"dense": 4, "sparse_to_dense_70": 4, "dense_to_sparse": 1}
    assert not (arguments.out / program.folder_name("dense", 4, 0) / "checkpoints/best.ckpt").exists()
    sizes = {k: [p["n_parameters"] for p in r["phases"]] for k, r in rows.items()}
    assert sizes["sparse_to_dense_70"][-1] == sizes["dense"][0] > sizes["sparse_to_dense_70"][0]
    assert len(sizes["dense_to_sparse"]) == 1
    # its first and last layer stay dense
    assert sizes["dense"][0] > sizes["dense_to_sparse"][0] > sizes["sparse_to_dense_70"][0]
    assert len(rows["dense"]["history"]) == 4
    runs = {name: arguments.out / program.folder_name(name, rows[name]["epochs"], 0) for name in arguments.rows}
    sparse = load(runs["dense_to_sparse"] / "checkpoints/last.ckpt").net
    assert isinstance(sparse.layers[0].query, MonarchLinear)
    torch.testing.assert_close(sparse.skip.weight, torch.full((1, 3, 1), 7.0), rtol=0, atol=2e-3)  # 3 steps of 3e-4
    # a run that lacks its row is taken up again, and not trained anew
    (runs["dense"] / program.ROW).unlink()
    before = rows["dense"]
    program.train(arguments)
    after = json.loads((runs["dense"] / program.ROW).read_text())
    assert after["history"] == before["history"]
    assert after["train_seconds"] == before["train_seconds"]
    assert after["relative_l2"] > 2 * before["relative_l2"]  # tested anew, with the weights of the checkpoint
    with pytest.raises(InputError, match=r"with --set data.*, not nothing; give the same, or another --out"):
        program.train(Namespace(**{**vars(arguments), "set": []}))


@pytest.mark.slow
def test_a_training_stops_before_the_time_is_up_and_failures_are_named(
    program, job, vorticity_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(program.mp, "get_context", lambda kind: Inline())
    options = {"out": tmp_path, "rows": ["dense", "dense_continued"], "budgets": ["epochs"], "epochs": 3, "seed": 0}
    settings = [*TINY, f"data.init_args.path={vorticity_folder}"]
    arguments = Namespace(**options, devices=None, time_limit=60.0, set=settings, poll=0.0)
    deadline = job.Deadline
    monkeypatch.setattr(job, "Deadline", lambda at: deadline(at - 60.0))
    program.train(arguments)
    monkeypatch.setattr(job, "Deadline", deadline)
    folder = tmp_path / program.folder_name("dense", 3, 0)
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 0
    assert not (folder / program.ROW).exists()
    assert "dense_3_epochs_seed_0: stopped before the time is up" in capsys.readouterr().out
    program.train(arguments)
    rows = {row["row"]: row for row in program.finished(tmp_path)}
    assert [epoch for epoch, _, _ in rows["dense"]["history"]] == [1, 2, 3]
    assert rows["dense_continued"]["start"] == folder.name
    assert rows["dense_continued"]["n_parameters"] == rows["dense"]["n_parameters"]
    # a dense row that fails, and one that waits for it
    (folder / program.ROW).unlink()
    (folder / "checkpoints/last.ckpt").write_text("no checkpoint")
    (tmp_path / program.folder_name("dense_continued", 1, 0) / program.ROW).unlink()
    with pytest.raises(InputError, match=r"dense_3_epochs_seed_0 failed; dense_continued waits for dense of 3 epochs"):
        program.train(arguments)


def test_unknown_rows_are_named(program, tmp_path):
    with pytest.raises(InputError, match=r"there are no rows \['denes'\]; rows are dense"):
        program.train(Namespace(out=tmp_path, rows=["denes"]))
