"""The job pde.evaluate: equal treatment of all networks, files, mistakes."""

import csv
import dataclasses
import errno
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sciml_monarch import InputError, load, save
from sciml_monarch.cli import main
from sciml_monarch.pde import FNO, Surrogate, n_parameters, relative_l2
from sciml_monarch.pde.evaluate import choose_device, evaluate, method_names
from sciml_monarch.pde.predict import write_well
from sciml_monarch.pde.protocol import make_protocol
from sciml_monarch.pde.readers import open_trajectories
from tests.pde import decaying_waves
from tests.pde.decaying_waves import DESCRIPTION, DT, N_TIMES, Scale, network

# fixtures; imported by their names, they would be unused to Ruff
data, checkpoints = decaying_waves.data, decaying_waves.checkpoints


# The job


def test_rows_agree_with_the_metrics_and_files_with_the_rows(data, checkpoints, tmp_path, capsys):
    paths = [checkpoints["a"], checkpoints["monarch"], checkpoints["b"]]
    found = evaluate(paths, data, tmp_path / "out", n_test=3, batch_size=2, device="cpu")
    assert [row["method"] for row in found.rows] == ["FNO (a)", "MonarchFNO", "FNO (b)"]
    source = open_trajectories(data)
    frames = torch.stack([source.read(i, 0, N_TIMES) for i in (2, 3, 4)])
    for path, row in zip(paths, found.rows, strict=True):
        from sciml_monarch import load

        surrogate = load(path)
        with torch.no_grad():
            errors = relative_l2(surrogate.rollout(frames[:, :2], 3), frames[:, 2:5])
        assert row["task"] == "pde"
        assert row["relative_l2"] == pytest.approx(errors.mean().item(), rel=1e-5)
        assert row["relative_l2_standard_error"] == pytest.approx(errors.std().item() / math.sqrt(3), rel=1e-3)
        assert row["n_parameters"] == n_parameters(surrogate.net)
        assert row["ms_per_step"] > 0
        assert row["device"].startswith("cpu")
        assert (row["n_test"], row["n_steps"], row["n_free_steps"]) == (3, 3, 9)
    written = json.loads((tmp_path / "out/metrics.json").read_text())
    assert [row["relative_l2"] for row in written] == [row["relative_l2"] for row in found.rows]
    with (tmp_path / "out/metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(row["relative_h1"]) for row in table] == [row["relative_h1"] for row in found.rows]
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == [
        "error_growth.png",
        "fields.png",
        "metrics.csv",
        "metrics.json",
        "report.html",
        "spectra.png",
    ]
    for picture in found.pictures.values():
        assert picture.read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "MonarchFNO" in shown
    assert str(found.report) in shown


def test_all_networks_see_the_same_data_whatever_the_batches(data, checkpoints, tmp_path):
    paths = [checkpoints["a"], checkpoints["b"]]
    together = evaluate(paths, data, tmp_path / "1", n_test=5, batch_size=5, device="cpu").rows
    alone = [evaluate([p], data, tmp_path / "2", n_test=5, batch_size=2, device="cpu").rows[0] for p in paths]
    for one, other in zip(together, alone, strict=True):
        for key in ("relative_l2", "relative_h1", "spectrum_error", "correlation_time", "max_rms_ratio"):
            assert one[key] == pytest.approx(other[key], rel=1e-5), key
    assert alone[0]["method"] == "FNO"


def test_several_fields_have_a_picture_each(tmp_path):
    description = dataclasses.replace(DESCRIPTION, fields=("u", "v"), units=("m/s", "1"))
    (tmp_path / "data").mkdir()
    frames, times = torch.randn(6, 2, 16, 16), [DT * i for i in range(6)]
    for i in range(2):
        write_well(tmp_path / f"data/{i}.hdf5", frames, times, (1.0, 1.0), description, {})
    path = save(Surrogate(FNO(4, 2, 4, (4, 4), n_layers=1), description), tmp_path / "net")
    found = evaluate([path], tmp_path / "data", tmp_path / "out", n_test=1, device="cpu")
    names = {p.name for p in found.pictures.values()}
    assert names == {"fields_u.png", "fields_v.png", "spectra_u.png", "spectra_v.png", "error_growth.png"}
    assert "relative_l2_standard_error" in found.rows[0]
    assert found.rows[0]["relative_l2_standard_error"] is None


def test_arrays_without_names_are_evaluated_by_names_that_are_given(checkpoints, data, tmp_path):
    frames = torch.stack([open_trajectories(data).read(i, 0, N_TIMES)[:, 0] for i in range(2)])
    np.save(tmp_path / "waves.npy", frames.numpy())
    net = save(network(FNO(2, 1, 4, (4, 4), n_layers=1), dt=1.0), tmp_path / "net")
    options = {"n_test": 1, "n_steps": 3, "device": "cpu"}
    with pytest.raises(InputError, match=r"trained on the fields \['vorticity'\], but"):
        evaluate([net], tmp_path / "waves.npy", tmp_path / "out", **options)
    (row,) = evaluate([net], tmp_path / "waves.npy", tmp_path / "out", fields=["vorticity"], **options).rows
    with torch.no_grad():
        predicted = load(net).rollout(frames[1:, :2, None], 3)
    assert row["relative_l2"] == pytest.approx(relative_l2(predicted, frames[1:, 2:5, None]).item(), rel=1e-5)


def test_data_of_other_parameters_is_said_to_be_so(data, tmp_path, capsys):
    nets = {
        name: save(
            network(FNO(2, 1, 4, (4, 4), n_layers=1), attributes={"viscosity": value, "seed": 3}), tmp_path / name
        )
        for name, value in (("same", 1e-3), ("other", 1e-4))
    }
    evaluate([*nets.values()], data, tmp_path / "out", n_test=1, device="cpu")
    shown = " ".join(capsys.readouterr().out.split())
    assert "; FNO (other) was trained with viscosity 0.0001, tested with 0.001" in shown
    assert shown.count("was trained with") == 1
    assert "was trained with" in (tmp_path / "out/report.html").read_text()


def test_a_network_that_is_not_finite_is_reported_as_such(data, tmp_path):
    net = FNO(2, 1, 4, (4, 4), n_layers=1)
    with torch.no_grad():
        next(net.parameters()).fill_(math.nan)
    found = evaluate([save(network(net), tmp_path / "net")], data, tmp_path / "out", n_test=2, device="cpu")
    assert found.rows[0]["n_diverged"] == 2
    assert found.rows[0]["first_diverged_step"] == 1
    written = json.loads((tmp_path / "out/metrics.json").read_text())[0]
    assert written["relative_l2"] is None
    assert written["relative_l2_per_step"] == [None] * 7
    assert "not finite" in (tmp_path / "out/report.html").read_text()


# Names and devices


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["runs/a/checkpoints/best.ckpt", "runs/b/checkpoints/best.ckpt"], ["FNO (a)", "FNO (b)"]),
        (
            ["runs/a/checkpoints/best.ckpt", "runs/a/checkpoints/last.ckpt"],
            ["FNO (best.ckpt)", "FNO (last.ckpt)"],
        ),
        (["runs/a", "runs/a/checkpoints/best.ckpt"], ["FNO (runs/a)", "FNO (checkpoints/best.ckpt)"]),
        (["x/fno", "y/fno", "z"], ["FNO (x/fno)", "FNO (y/fno)", "FNO (z)"]),
        (["runs/a"], ["FNO"]),
    ],
)
def test_method_names_tell_runs_apart(paths, expected):
    assert list(method_names({Path(p): "FNO" for p in paths}).values()) == expected


def test_method_names_leave_different_classes_alone():
    assert list(method_names({Path("a/x"): "FNO", Path("b/x"): "UNet"}).values()) == ["FNO", "UNet"]


def test_devices():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("cuda:99", "toaster"):
        with pytest.raises(InputError, match=f"device '{name}' cannot be used"):
            choose_device(name)


# Mistakes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fields": ("u",)}, r"net: trained on the fields \['u'\], but .*waves holds \['vorticity'\]"),
        ({"dt": 1.0}, "net: trained on frames 1 s apart, but those of .*waves are 0.5 s apart"),
        ({"grid": (24, 24)}, r"net: trained on the grid \(24, 24\), which is not .* \(16, 16\) of .*waves"),
        ({"grid": (16,), "lengths": (1.0,)}, r"net: trained on the grid \(16,\), but .*waves has \(16, 16\)"),
        ({"n_steps": 8}, "waves: 9 times are too few for 2 known and 8 predicted frames"),
        ({"dt": 0.0}, "net: maps one field to another"),
    ],
)
def test_data_that_does_not_fit_the_network_is_refused_with_both_named(data, changes, message):
    surrogate = network(Scale(1.0), **changes)
    with pytest.raises(InputError, match=message):
        make_protocol({Path("net"): surrogate}, open_trajectories(data), 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_test": 6}, "n_test is 6, but .*waves has 5 trajectories"),
        ({"n_test": 0}, "n_test is 0; it must be at least 1"),
        ({"n_test": 1, "n_steps": -1}, "n_steps is -1"),
        ({"n_test": 1, "n_horizons": 0}, "n_horizons is 0"),
    ],
)
def test_numbers_out_of_range_are_refused(data, arguments, message):
    with pytest.raises(InputError, match=message):
        make_protocol({Path("net"): network(Scale(1.0))}, open_trajectories(data), **arguments)


def test_networks_that_cannot_be_compared_without_a_choice_are_refused(data):
    source = open_trajectories(data)
    grids = {Path("a"): network(Scale(1.0)), Path("b"): network(Scale(1.0), grid=(8, 8))}
    with pytest.raises(InputError, match=r"different grids \(a: \(16, 16\), b: \(8, 8\)\); give resolution"):
        make_protocol(grids, source, 1)
    assert make_protocol(grids, source, 1, resolution=8).stride == 2
    steps = {Path("a"): network(Scale(1.0)), Path("b"): network(Scale(1.0), n_steps=2)}
    with pytest.raises(InputError, match=r"roll-outs of \[2, 3\] steps; give n_steps"):
        make_protocol(steps, source, 1)
    assert make_protocol(steps, source, 1, n_steps=2).n_steps == 2


def run(capsys, *arguments):
    status = main(["evaluate", *map(str, arguments)])
    return status, capsys.readouterr().err


def test_mistakes_on_the_command_line_are_one_line_and_leave_nothing(data, checkpoints, tmp_path, capsys):
    out = tmp_path / "out"
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    good = checkpoints["a"]
    for arguments, message in (
        ((tmp_path / "none.ckpt", "--data", data), "none.ckpt: no such checkpoint"),
        ((tmp_path / "text.ckpt", "--data", data), "text.ckpt: not a checkpoint"),
        ((good, tmp_path / "foreign.ckpt", "--data", data), "foreign.ckpt: a checkpoint of another program"),
        ((good, good, "--data", data), "given twice"),
        ((good, "--data", tmp_path / "none"), "none: no such file"),
        ((good, "--data", data, "--n_test", 200), "n_test is 200, but"),
        ((good, "--data", data, "--n_test", 2, "--batch_size", 0), "batch_size is 0"),
        ((good, "--data", data, "--n_tests", 2), "n_tests"),
    ):
        status, error = run(capsys, *arguments, "--out", out)
        assert status == 2, arguments
        assert message in error
        assert error.count("\n") == 1
        assert not out.exists()


def test_the_program_does_what_the_function_does(data, checkpoints, tmp_path, capsys):
    out = tmp_path / "out"
    status, error = run(capsys, checkpoints["a"], checkpoints["b"], "--data", data, "--n_test", 2, "--out", out)
    assert (status, error) == (0, "")
    assert [row["method"] for row in json.loads((out / "metrics.json").read_text())] == ["FNO (a)", "FNO (b)"]


def test_a_full_disk_leaves_earlier_results_whole(data, checkpoints, tmp_path, monkeypatch):
    out = tmp_path / "out"
    evaluate([checkpoints["a"]], data, out, n_test=2, device="cpu")
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(InputError, match="no space left on device"):
        evaluate([checkpoints["b"]], data, out, n_test=2, device="cpu")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
