"""The program behind the Navier-Stokes table, on tiny sets: trainings that stop and go on, tables, and pieces."""

import json
import math
import multiprocessing
import os
import sys
import time
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sciml_monarch import InputError, load
from sciml_monarch.pde import n_parameters
from sciml_monarch.pde.readers import open_trajectories
from tests.programs import Inline, script

TINY = [
    "data.init_args={n_train: 6, n_val: 0, n_test: 2, n_history: 3, n_steps: 2, batch_size: 2}",
    "model.init_args.net.init_args={in_channels: 3, width: 4, n_modes: [4, 4]}",
]
LAST = "checkpoints/last.ckpt"
RESULTS = Path(__file__).resolve().parents[1] / "results"


@pytest.fixture(scope="module")
def program():
    return script("reproduce_navier_stokes")


@pytest.fixture(scope="module")
def job(program):
    return sys.modules["reproduce_navier_stokes_job"]


@pytest.fixture(scope="module")
def runner(program):
    return sys.modules["reproduce_runner"]


@pytest.fixture(scope="module")
def pieces(program):
    return sys.modules["checkpoint_pieces"]


@pytest.fixture
def inline(monkeypatch):
    monkeypatch.setattr("torch.multiprocessing.get_context", lambda kind: Inline())


@pytest.fixture(scope="module")
def data(tmp_path_factory, vorticity_folder):
    """A folder with one set, under the name that the YAMLs of 1e-5 have."""
    folder = tmp_path_factory.mktemp("sets")
    (folder / "navier_stokes_1e-5").symlink_to(vorticity_folder)
    return folder


def arguments(data, out, **options):
    usual = {
        "rows": ["fno_1e-5"],
        "seeds": [0],
        "epochs": 3,
        "validation": 0,
        "devices": None,
        "per_gpu": 1,
        "time_limit": 600.0,
        "set": TINY,
        "poll": 0.0,
    }
    return Namespace(data=data, out=out, **usual | options)


@pytest.fixture(scope="module")
def trained(program, data, tmp_path_factory):
    """An output folder with one finished training."""
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.multiprocessing.get_context", lambda kind: Inline())
        program.train(arguments(data, out))
    return out


def states(folder):
    content = torch.load(folder / LAST, weights_only=True)
    return content["state_dict"], content["optimizer_states"][0]["state"]


def row_of(name, seed=0, error=None, done=500, epochs=500, **others):
    row = {
        "row": name,
        "seed": seed,
        "epochs": epochs,
        "epochs_done": done,
        "finished": error is not None,
        "validation": 0,
        "n_parameters": 1000,
        "n_train": 1000,
        "settings": [],
        "precision": "32",
        "trainings_on_the_device": 1,
        "torch": "2",
        "commit": "abc",
        "device": "a GPU",
    }
    return row | ({"relative_l2": error, "wall_seconds": 60.0, "train_loss": [0.5, 0.125]} if error else {}) | others


def test_rows_are_the_protocols(program, job):
    options = job.Options(Path("elsewhere"), Path("runs"), [], 1, 1)
    planned = program.plan(program.NAMES, None, None, 0, options)
    assert len(planned) == 9 + 4
    assert {j.seed for j, _ in planned if j.row == "monarch_fno_1e-5"} == {0, 1, 2}
    assert [j.row.endswith("1e-3") for j, _ in planned] == [True] * 3 + [False] * 10  # the longest first
    sizes = {}
    for j, config in planned:
        with torch.device("meta"):
            task, parts, _ = sys.modules["reproduce_training"].build(config)
        sizes[task.surrogate.net.__class__.__name__] = job.n_parameters(task)
        viscosity = j.row.rpartition("_")[2]
        assert parts.path == Path("elsewhere") / f"navier_stokes_{viscosity}"
        assert parts.n_history + parts.n_steps == program.SETS[parts.path.name][1]
        assert f"{program.SETS[parts.path.name][0]:.0e}" == f"{float(viscosity):.0e}"
        assert (parts.n_train, parts.n_val, parts.n_test, parts.batch_size) == (1000, 0, 200, 20)
        assert (j.epochs, task.symmetry, task.cuda_graph) == (500, None, True)
    assert abs(sizes["FNO"] / sizes["MonarchFNO"] - 1) < 0.05
    ((_, config),) = program.plan(["fno_1e-5"], [7], 3, 100, options)
    assert [config["data"]["init_args"][k] for k in ("n_train", "n_val", "n_test")] == [900, 100, 200]
    with pytest.raises(InputError, match="--validation 1000 of 1000 training trajectories leaves none"):
        program.plan(["fno_1e-5"], None, None, 1000, options)
    with pytest.raises(InputError, match=r"there are no rows \['fmo'\]; rows are unet_1e-3, "):
        program.plan(["fmo"], None, None, 0, options)


@pytest.mark.slow
def test_a_training_that_was_stopped_goes_on_and_equals_one_that_was_not(
    program, job, pieces, data, trained, tmp_path, inline, monkeypatch, capsys
):
    deadline = job.Deadline
    monkeypatch.setattr(job, "Deadline", lambda at: deadline(at - 600.0))
    out = tmp_path / "runs"
    program.train(arguments(data, out))
    assert "fno_1e-5_3_epochs_seed_0: stopped before the time is up" in capsys.readouterr().out
    (row,) = program.read_rows(out / "rows.jsonl")
    assert (row["finished"], row["epochs_done"], row["epochs"]) == (False, 1, 3)
    assert "relative_l2" not in row
    assert "not yet (1 of 3 epochs)" in program.table([row])
    monkeypatch.setattr(job, "Deadline", deadline)
    pieces.pack(out, tmp_path / "packed", program.ROW)
    # a killed training has the row of its beginning, and the epochs of its checkpoint
    (out / "fno_1e-5_3_epochs_seed_0" / program.ROW).write_text(json.dumps(row | {"epochs_done": 0}))
    assert [r["epochs_done"] for r in program.rows_in(out)] == [1]
    program.train(arguments(data, out))
    (row,), (unbroken,) = (program.read_rows(folder / "rows.jsonl") for folder in (out, trained))
    same = ("relative_l2", "train_loss", "n_parameters", "epochs_done", "finished", "seed", "commit")
    assert {k: row[k] for k in same} == {k: unbroken[k] for k in same}
    assert row["finished"]
    assert len(row["train_loss"]) == 3
    assert 0 < row["relative_l2"] < 2
    assert row["train_seconds"] <= row["wall_seconds"]
    ours, theirs = (states(folder / "fno_1e-5_3_epochs_seed_0") for folder in (out, trained))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    carried = tmp_path / "carried"  # and so does one that went on at another place
    pieces.unpack(tmp_path / "packed", carried, program.ROW)
    program.train(arguments(data, carried))
    torch.testing.assert_close(states(carried / "fno_1e-5_3_epochs_seed_0"), theirs, rtol=0, atol=0)
    before = (out / "rows.jsonl").read_text()
    program.train(arguments(data, out))  # nothing is left
    assert (out / "rows.jsonl").read_text() == before


def test_nothing_begins_when_the_time_is_up(program, data, tmp_path, inline, capsys):
    program.train(arguments(data, tmp_path, time_limit=0.0))
    assert "time is up; run again for fno_1e-5_3_epochs_seed_0" in capsys.readouterr().out
    assert not list(tmp_path.glob("fno*"))


def test_a_row_that_fails_does_not_stop_the_others(program, data, tmp_path, inline, capsys):
    rows = ["unet_1e-5", "fno_1e-5"]  # a U-Net has no modes
    options = {"rows": rows, "epochs": 2, "validation": 2}
    with pytest.raises(InputError, match=r"^unet_1e-5_2_epochs_seed_0_validation_2 failed$"):
        program.train(arguments(data, tmp_path, **options))
    assert "n_modes" in capsys.readouterr().err
    (row,) = program.read_rows(tmp_path / "rows.jsonl")
    assert (row["row"], row["n_train"], row["n_val"], row["finished"]) == ("fno_1e-5", 4, 2, True)
    assert "relative_l2" not in row  # choices do not see the test
    assert row["validation_history"][-1] == [2, pytest.approx(row["validation_relative_l2"], rel=1e-5)]
    text = program.table([row])
    assert f"| fno_1e-5 | 0 | {row['n_parameters']:,} | 4 | 2 | {row['validation_relative_l2']:.4f} |" in text
    assert "| FNO | not yet | not yet | not yet |" in text
    with pytest.raises(InputError, match=r"with --set data.*, not nothing; give the same, or another --out"):
        program.train(arguments(data, tmp_path, **options | {"set": []}))
    with pytest.raises(InputError, match="--per_gpu 0: must be at least 1"):
        program.train(arguments(data, tmp_path, per_gpu=0))


def test_missing_sets_are_simulated_and_whole_ones_are_left(program, tmp_path, inline, capsys):
    options = {"sets": ["navier_stokes_1e-3", "navier_stokes_1e-5"], "n_trajectories": 3, "final_time": 2.0}
    small = {"simulation_resolution": 16, "resolution": 8, "seed": None, "devices": None, "time_limit": 600.0}
    program.simulate(Namespace(data=tmp_path, **options, **small))
    for name, viscosity in (("navier_stokes_1e-3", 1e-3), ("navier_stokes_1e-5", 1e-5)):
        found = open_trajectories(tmp_path / name)
        assert (found.n_trajectories, found.n_times, found.grid) == (3, 2, (8, 8))
        assert float(found.attributes["viscosity"]) == viscosity
        found.close()
    capsys.readouterr()
    program.simulate(Namespace(data=tmp_path, **options, **small))
    assert capsys.readouterr().out == ""
    with pytest.raises(InputError, match="simulation: navier_stokes_1e-3 failed; navier_stokes_1e-5 failed"):
        program.simulate(Namespace(data=tmp_path, **options | {"n_trajectories": 4}, **small))
    with pytest.raises(InputError, match=r"there are no data sets \['x'\]; data sets are navier_stokes_1e-3"):
        program.simulate(Namespace(data=tmp_path, **options | {"sets": ["x"]}, **small))


def test_tables_say_what_is_missing(program):
    rows = [row_of("monarch_fno_1e-5", seed, error) for seed, error in enumerate((0.1, 0.11, 0.12))] + [
        row_of("fno_1e-5", 0, 0.2),
        row_of("fno_1e-5", 1, 0.22),
        row_of("fno_1e-5", 1, done=100),  # an older record of the same training
        row_of("fno_1e-5", 2, done=250),
        row_of("unet_1e-4", done=20),
        row_of("monarch_fno_1e-5", 0, 0.3, epochs=100, done=100),  # a shorter training does not count beside a whole
        row_of("monarch_fno_1e-5", 0, validation=100, n_train=900, finished=True, validation_relative_l2=0.15),
        row_of("monarch_fno_symmetry_1e-5", 0, 0.115, epochs=300, done=300),
        row_of("unet_1e-5", 0, 0.25, epochs=44, done=44),
    ]
    text = program.table(rows)
    standard_error = 0.01 / math.sqrt(3)
    assert f"| MonarchFNO | not yet | not yet | 0.1100 ± {standard_error:.4f} | 0.010 / 0.145 / 0.136 |" in text
    fno = "| FNO | not yet | not yet | 0.2100 ± 0.0100 (2 of 3 seeds) | 0.017 / 0.178 / 0.155 "
    assert fno + "(FNO paper, best: 0.0086 / 0.1559 / 0.1556) |" in text
    assert "| U-Net | not yet | not yet (20 of 500 epochs) | 0.2500 (44 epochs) | 0.025 / 0.205 / 0.198 |" in text
    assert "| MonarchFNO below FNO by | not yet | not yet | 47.6 % | 41.2 % / 18.5 % / 12.3 % |" in text
    assert "| monarch_fno_symmetry_1e-5 | 0.1150 |" in text
    trainings, choices = text.split("### ")[1:]
    assert "| fno_1e-5 | 2 | 1,000 | 1000 | 250 of 500 | not yet |  | ? | ? | 1 |" in trainings
    assert "| fno_1e-5 | 0 | 1,000 | 1000 | 500 | 0.2000 |  | 0.1250 | 60 | 1 |" in trainings
    assert trainings.count("| fno_1e-5 | 1 |") == 1
    assert "a GPU, precision 32, torch 2, commit abc." in trainings
    assert "| monarch_fno_1e-5 | 0 | 1,000 | 900 | 500 | 0.1500 |" in choices
    assert program.table([]).count("not yet") == 12
    with pytest.raises(InputError, match="with --set nothing and x=1: they do not belong into one table"):
        program.table([*rows, row_of("unet_1e-3", settings=["x=1"])])
    other = [row_of("fno_1e-4", 0, 0.2, commit=None), row_of("unet_1e-4", 0, 0.3)]
    assert "- fno_1e-4 (seed 0): a GPU, precision 32, torch 2, commit None" in program.table(other)


def test_checkpoints_in_pieces_come_back_exactly(program, pieces, trained, data, tmp_path, inline):
    name = "fno_1e-5_3_epochs_seed_0"
    packed, out = tmp_path / "packed", tmp_path / "runs"
    files = pieces.pack(trained, packed, program.ROW, piece_bytes=10_000)
    assert len(files) > 4
    assert max(file.stat().st_size for file in files[:-1]) == 10_000
    assert pieces.unpack(packed, out, program.ROW) == [out / name / LAST]
    for file in (LAST, program.ROW):
        assert (out / name / file).read_bytes() == (trained / name / file).read_bytes()
    (out / name / program.ROW).unlink()  # tested anew, on the weights that were carried
    program.train(arguments(data, out))
    assert program.rows_in(out)[0]["relative_l2"] == program.rows_in(trained)[0]["relative_l2"]
    with pytest.raises(InputError, match=f"has checkpoints of {name} already"):
        pieces.unpack(packed, out, program.ROW)
    # a training that began elsewhere and got to no checkpoint leaves a row that is not of this one
    (out / name / LAST).unlink()
    (out / name / program.ROW).write_text('{"finished": false}')
    pieces.unpack(packed, out, program.ROW)
    assert (out / name / program.ROW).read_bytes() == (trained / name / program.ROW).read_bytes()
    # packed again into the same folder, in fewer pieces
    pieces.pack(trained, packed, program.ROW, rows=["fno_1e-5"])
    assert sorted(file.name for file in packed.iterdir()) == ["manifest.json", "piece_000"]
    with pytest.raises(InputError, match="holds no runs with checkpoints of these rows"):
        pieces.pack(trained, tmp_path / "none", program.ROW, rows=["no_1e-5"])
    with pytest.raises(InputError, match=r"holds other files, or a packing that was cut short"):
        pieces.pack(trained, out, program.ROW)


def test_incomplete_pieces_are_refused(program, pieces, trained, tmp_path):
    packed, out = tmp_path / "packed", tmp_path / "runs"
    files = pieces.pack(trained, packed, program.ROW, piece_bytes=10_000)
    content = files[1].read_bytes()
    files[1].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    files[2].unlink()
    with pytest.raises(
        InputError, match=rf"2 of {len(files) - 1} pieces are missing or damaged: piece_001, piece_002$"
    ):
        pieces.unpack(packed, out, program.ROW)
    files[-1].unlink()
    with pytest.raises(InputError, match=r"lacks manifest.json; this is no packing, or not all of it"):
        pieces.unpack(packed, out, program.ROW)
    assert not out.exists()


def test_pieces_go_across_checkpoints(pieces, tmp_path):
    sizes = {"a": 25, "b": 3, "c": 12}
    for name, size in sizes.items():
        (tmp_path / "runs" / name / "checkpoints").mkdir(parents=True)
        (tmp_path / "runs" / name / LAST).write_bytes(bytes(range(size)))
    files = pieces.pack(tmp_path / "runs", tmp_path / "packed", "row.json", piece_bytes=10)
    assert [file.stat().st_size for file in files[:-1]] == [10] * 4
    pieces.unpack(tmp_path / "packed", tmp_path / "again", "row.json")
    for name, size in sizes.items():
        assert (tmp_path / "again" / name / LAST).read_bytes() == bytes(range(size))


@pytest.mark.parametrize("bf16", [False, True], ids=["exact", "bf16"])
def test_weights_alone_can_be_carried(program, pieces, trained, tmp_path, bf16):
    whole = pieces.pack(trained, tmp_path / "whole", program.ROW)
    files = pieces.pack(trained, tmp_path / "packed", program.ROW, weights_only=True, bf16=bf16)
    assert sum(f.stat().st_size for f in files[:-1]) < sum(f.stat().st_size for f in whole[:-1]) / (3 if bf16 else 2)
    (restored,) = pieces.unpack(tmp_path / "packed", tmp_path / "runs", program.ROW)
    ours, theirs = load(restored).state_dict(), load(trained / "fno_1e-5_3_epochs_seed_0" / LAST).state_dict()
    assert any(value.is_complex() for value in ours.values())
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype
        tolerance = 2**-8 if bf16 and value.ndim >= 2 else 0
        parts = [torch.view_as_real(v) if v.is_complex() else v for v in (ours[key], value)]
        torch.testing.assert_close(*parts, rtol=tolerance, atol=0)
    assert not (tmp_path / "runs" / "fno_1e-5_3_epochs_seed_0" / LAST).exists()  # no training goes on from it
    if bf16:
        with pytest.raises(InputError, match="give --weights_only too"):
            pieces.pack(trained, tmp_path / "x", program.ROW, bf16=True)
        with pytest.raises(InputError, match=r"the weights of fno_1e-5 were rounded after the test"):
            program.share(tmp_path / "runs", tmp_path / "shared")
    else:
        assert program.share(tmp_path / "runs", tmp_path / "shared") == [tmp_path / "shared/fno_1e-5"]


class Ends(Inline):
    """Processes that end with an exit status, and probes that find GPU 0 broken."""

    def Process(self, target, args):
        device = args[-1]
        return SimpleNamespace(
            exitcode=1 if device == 0 else 0,
            start=lambda: target(*args) if device != 0 and len(args) > 1 else None,
            is_alive=lambda: False,
            join=lambda timeout=None: None,
        )


def test_a_broken_gpu_loses_its_places_and_its_jobs_begin_again_elsewhere(runner, capsys):
    jobs = [SimpleNamespace(folder=f"job_{i}") for i in range(5)]
    done = []

    def run(places):
        return runner.run_jobs(
            lambda: [job for job in jobs if job.folder not in done],
            lambda folder, device: done.append(folder),
            lambda job, device, deadline: (job.folder, device),
            lambda job: job.folder in done,
            places,
            Ends(),
            time.monotonic() + 60,
            poll=0.0,
        )

    outcome = run([0, 1])
    assert sorted(done) == [job.folder for job in jobs]
    assert outcome.errors() == []
    assert capsys.readouterr().out.count("GPU 0 does not work: one place fewer") == 1
    # two at once meet it: each begins again, in the place that is left
    done.clear()
    assert run([0, 0, 1]).errors() == []
    assert len(done) == 5
    done.clear()
    outcome = run([0])
    assert outcome.errors() == [f"no GPU that works is left for {', '.join(job.folder for job in jobs)}"]


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # from Python 3.12 on; they do not return
def test_processes_run_side_by_side_and_are_ended_in_time(runner):
    """Real processes: one ends well, one fails, one does not end."""
    context = multiprocessing.get_context("fork")  # children that import nothing
    jobs = [SimpleNamespace(folder=name, work=work) for name, work in {"good": 0, "bad": 3, "endless": None}.items()]
    ended = []

    def work(status):
        if status is None:
            time.sleep(60)
        os._exit(status)

    start = time.monotonic()
    outcome = runner.run_jobs(
        lambda: [job for job in jobs if job.folder not in ended],
        work,
        lambda job, device, deadline: (job.work,),
        lambda job: job.work == 0 and (ended.append(job.folder) or True),
        [None, None, None],
        context,
        start + 1.5,
        poll=0.02,
    )
    assert time.monotonic() - start < 10
    assert ended == ["good"]
    assert outcome.failed == {"bad"}
    assert outcome.is_late
    assert outcome.errors() == ["bad failed"]


def test_the_command_line_ends_in_one_line(program, tmp_path, monkeypatch, capsys):
    for line, message in {
        f"train --out {tmp_path} --rows x": "reproduce_navier_stokes: there are no rows ['x']; rows are unet_1e-3",
        f"table {tmp_path / 'none.jsonl'}": f"reproduce_navier_stokes: {tmp_path}/none.jsonl: No such file",
        f"unpack {tmp_path} --out {tmp_path}": f"reproduce_navier_stokes: {tmp_path}: lacks manifest.json",
        f"pack {tmp_path} --out {tmp_path}": f"reproduce_navier_stokes: {tmp_path}: holds no runs",
    }.items():
        monkeypatch.setattr(sys, "argv", ["reproduce_navier_stokes.py", *line.split()])
        with pytest.raises(SystemExit) as stopped:
            program.main()
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith(message)
        assert error.count("\n") == 1
    monkeypatch.setattr(sys, "argv", ["reproduce_navier_stokes.py", "table", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        program.main()
    assert stopped.value.code == 0
    assert "| FNO | not yet |" in capsys.readouterr().out


def test_nothing_begins_after_a_job_has_stopped_for_the_time(runner, capsys):
    jobs = [SimpleNamespace(folder="long"), SimpleNamespace(folder="next")]

    def stops(device):
        raise SystemExit(0)

    outcome = runner.run_jobs(
        lambda: jobs,
        stops,
        lambda job, device, deadline: (device,),
        lambda job: False,
        [None],
        Inline(),
        time.monotonic() + 60,
        poll=0.0,
    )
    assert (outcome.paused, outcome.is_late, outcome.errors()) == ({"long"}, True, [])
    assert "time is up; run again for next" in capsys.readouterr().out


def test_tested_networks_are_shared_with_what_they_were_tested_to(program, trained, tmp_path):
    (folder,) = program.share(trained, tmp_path / "shared", ["fno_1e-5"])
    assert folder == tmp_path / "shared/fno_1e-5"
    ours, theirs = (load(path).state_dict() for path in (folder, trained / "fno_1e-5_3_epochs_seed_0" / LAST))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    (row,) = program.read_rows(trained / "rows.jsonl")
    text = (folder / "README.md").read_text()
    assert f"mean over 2 test trajectories: **{row['relative_l2']:.4f}**" in text
    assert "6 trajectories, 3 epochs, seed 0" in text
    assert "whole roll-out, 2 frames behind 3" in text
    card = script("reproduce_navier_stokes_share").card
    assert "whole roll-out, 2 frames behind 3" in card(row | {"n_steps": 1})
    # rows that do not say what they were tested on: the configuration does
    older = {name: value for name, value in row.items() if name != "test_steps"}
    assert "whole roll-out, 2 frames behind 3" in card(older)
    of_single_steps = older | {"row": "one_step_gated_1e-5", "n_steps": 1, "settings": []}
    assert "whole roll-out, 10 frames behind 3" in card(of_single_steps)
    assert load(folder).description.n_test_steps == 2
    assert program.share(trained, tmp_path / "all") == [tmp_path / "all/fno_1e-5"]
    with pytest.raises(InputError, match=r"holds no tested network of seed 0 of monarch_fno_1e-5$"):
        program.share(trained, tmp_path / "none", ["fno_1e-5", "monarch_fno_1e-5"])
    with pytest.raises(InputError, match=r"holds no tested network of seed 1$"):
        program.share(trained, tmp_path / "none", seed=1)
    assert not (tmp_path / "none").exists()


def test_networks_that_are_shared_are_those_of_the_table(program):
    rows = {row["row"]: row for row in program.read_rows(RESULTS / "navier_stokes/rows.jsonl") if row["seed"] == 0}
    folders = sorted((RESULTS / "checkpoints").iterdir())
    assert folders
    for folder in folders:
        assert n_parameters(load(folder)) == rows[folder.name]["n_parameters"]
        assert f"**{rows[folder.name]['relative_l2']:.4f}**" in (folder / "README.md").read_text()
