"""The program behind the Navier-Stokes table, on tiny sets: trainings that stop and go on, and tables."""

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

from sciml_monarch import InputError
from sciml_monarch.pde.readers import open_trajectories
from tests import navier_stokes_runs
from tests.navier_stokes_runs import LAST, arguments, row_of
from tests.programs import Inline

# fixtures; imported by their names, they would be unused to Ruff
program, pieces, inline = navier_stokes_runs.program, navier_stokes_runs.pieces, navier_stokes_runs.inline
data, trained = navier_stokes_runs.data, navier_stokes_runs.trained


@pytest.fixture(scope="module")
def job(program):
    return sys.modules["reproduce_navier_stokes_job"]


@pytest.fixture(scope="module")
def runner(program):
    return sys.modules["reproduce_runner"]


def states(folder):
    content = torch.load(folder / LAST, weights_only=True)
    return content["state_dict"], content["optimizer_states"][0]["state"]


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


def test_a_setting_that_no_row_takes_is_refused_before_anything_is_simulated(program, tmp_path, inline):
    wrong = arguments(tmp_path / "data", tmp_path / "out", rows=["fno_1e-5"])
    wrong.set = [*wrong.set, "data.init_args.ntrain=4"]
    with pytest.raises(InputError, match="ntrain"):
        program.train(wrong)
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "out").exists()  # what is right may be trained there


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
