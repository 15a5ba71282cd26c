"""The job evaluate: known answers of known networks, equal treatment of all, files, mistakes."""

import csv
import dataclasses
import errno
import json
import math
from pathlib import Path

import pytest
import torch

from sciml_monarch import InputError, save
from sciml_monarch.cli import main
from sciml_monarch.pde import FNO, Description, MonarchFNO, Operator, Surrogate, n_parameters, relative_l2
from sciml_monarch.pde.evaluate import choose_device, evaluate, method_names
from sciml_monarch.pde.predict import write_well
from sciml_monarch.pde.protocol import make_protocol
from sciml_monarch.pde.readers import open_trajectories
from sciml_monarch.pde.scoring import score

DT, DECAY, N_TIMES, N_TRAJECTORIES = 0.5, 0.25, 9, 5
DESCRIPTION = Description(
    fields=("vorticity",),
    units=("1/s",),
    grid=(16, 16),
    lengths=(1.0, 1.0),
    dt=DT,
    n_history=2,
    n_steps=3,
    attributes={"viscosity": 1e-3},
)


class Scale(Operator):
    """The last frame times a factor: with ``exp(-DECAY DT)`` the exact answer to the data below."""

    def __init__(self, factor, n_history=2):
        super().__init__({"in_channels": n_history, "out_channels": 1})
        self.factor = factor

    def forward(self, x, prepared=None):
        return x[:, -1:] * self.factor


def exact(t=DT):
    return math.exp(-DECAY * t)


def write_data(folder, description=DESCRIPTION, n=16, n_times=N_TIMES, n_trajectories=N_TRAJECTORIES):
    """Waves that decay: trajectory i is i + 1 waves in x times ``exp(-DECAY t)``, a shard each."""
    folder.mkdir(parents=True)
    x = torch.arange(n, dtype=torch.float64) / n
    times = [i * description.dt for i in range(n_times)]
    for i in range(n_trajectories):
        wave = torch.sin(2 * math.pi * (i + 1) * x)[:, None].expand(n, n)
        frames = torch.stack([wave * math.exp(-DECAY * t) for t in times])[:, None]
        write_well(folder / f"{i}.hdf5", frames, times, (1.0, 1.0), description, {"dataset_name": "waves"})
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "waves")


def network(net, **changes):
    return Surrogate(net, dataclasses.replace(DESCRIPTION, **changes)).eval()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Two FNOs and a Monarch operator with random weights, saved."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("runs")
    nets = {
        "a": FNO(2, 1, 4, (4, 4), n_layers=1),
        "b": FNO(2, 1, 4, (4, 4), n_layers=1),
        "monarch": MonarchFNO(2, 1, 4, (4, 4), (16, 16), n_layers=1),
    }
    return {name: save(network(net), folder / name / "net") for name, net in nets.items()}


def scores_of(net, data, n_test=2, n_steps=None, **changes):
    source = open_trajectories(data)
    surrogate = network(net, **changes)
    return score(surrogate, source, make_protocol({Path("net"): surrogate}, source, n_test, n_steps), batch_size=2)


# Known answers


def test_an_exact_network_has_no_error(data):
    scores = scores_of(Scale(exact()), data)
    for value in (scores.relative_l2, scores.relative_h1, scores.spectrum_error, scores.relative_l2_per_step):
        assert value.abs().max() < 1e-6
    assert scores.relative_l2_per_step.shape == (2, 7)  # 9 times less 2 of history: more than the 3 scored
    torch.testing.assert_close(scores.correlation, torch.ones(2, 7))
    assert scores.correlation_time.time.tolist() == [7 * DT, 7 * DT]
    assert scores.correlation_time.is_lower_bound.all()
    assert scores.growth.first_diverged_step == (None, None)
    torch.testing.assert_close(scores.growth.rms_ratio[:, :7], scores.truth_rms)
    assert scores.growth.relative_l2_past is not None
    assert scores.growth.relative_l2_past.abs().max() < 1e-6


def test_persistence_has_the_error_of_the_decay(data):
    scores = scores_of(Scale(1.0), data)
    steps = [exact(DT * k) for k in range(1, 8)]
    whole = math.sqrt(sum((1 - s) ** 2 for s in steps[:3]) / sum(s**2 for s in steps[:3]))
    past = math.sqrt(sum((1 - s) ** 2 for s in steps[3:]) / sum(s**2 for s in steps[3:]))
    torch.testing.assert_close(scores.relative_l2, torch.full((2,), whole))
    torch.testing.assert_close(scores.relative_h1, torch.full((2,), whole))
    torch.testing.assert_close(scores.relative_l2_per_step, torch.tensor([[1 / s - 1 for s in steps]] * 2))
    torch.testing.assert_close(scores.growth.relative_l2_past, torch.full((2,), past))
    # E_prediction / E_truth = exp(2 DECAY t), mean over the three steps.
    log_ratio = 2 * DECAY * DT * (1 + 2 + 3) / 3 / math.log(10)
    torch.testing.assert_close(scores.spectrum_error, torch.full((2,), log_ratio))


def test_a_network_that_grows_is_seen_to_diverge(data):
    scores = scores_of(Scale(4.0), data)
    # RMS of the truth over steps 1 to 3 relative to the last known frame.
    scale = math.sqrt(sum(exact(DT * k) ** 2 for k in (1, 2, 3)) / 3)
    torch.testing.assert_close(scores.growth.rms_ratio[0], torch.tensor([4.0**k / scale for k in range(1, 10)]))
    assert scores.growth.first_diverged_step == (2, 2)


def test_a_network_that_flips_the_sign_loses_the_correlation_at_once(data):
    scores = scores_of(Scale(-1.0), data)
    # From 1 at the last known frame to -1 one step later: 0.9 after a twentieth of it.
    torch.testing.assert_close(scores.correlation_time.time, torch.full((2,), DT / 20), rtol=1e-4, atol=0)


def test_spectrum_and_sample_are_those_of_the_test_trajectories(data):
    scores = scores_of(Scale(exact()), data)  # trajectories 3 and 4: waves 4 and 5
    last = exact(DT * 4) ** 2
    energies = {k: last / 4 / (2 * math.pi * k) ** 2 / 2 for k in (4, 5)}  # mean over two trajectories
    spectrum = scores.spectrum.values[0]
    assert len(spectrum) == 8
    for k, energy in energies.items():
        assert spectrum[k].item() == pytest.approx(energy, rel=1e-4)
        assert scores.truth_spectrum.values[0, k].item() == pytest.approx(energy, rel=1e-4)
    assert scores.sample.shape == (3, 1, 16, 16)
    truth = open_trajectories(data).read(3, 2, 5)
    torch.testing.assert_close(scores.sample, truth)


def test_means_over_symmetries_are_scored_where_they_are_asked_for(data, checkpoints, tmp_path):
    from sciml_monarch import load
    from sciml_monarch.pde.symmetry import fno_forced_navier_stokes

    name, options = "fno_forced_navier_stokes", {"n_test": 3, "device": "cpu"}
    paths = [checkpoints["a"], checkpoints["monarch"]]
    found = evaluate(paths, data, tmp_path / "mean", symmetry=name, **options)
    plain = evaluate(paths, data, tmp_path / "plain", **options)
    source = open_trajectories(data)
    frames = torch.stack([source.read(i, 0, N_TIMES) for i in (2, 3, 4)])
    for path, row, other in zip(paths, found.rows, plain.rows, strict=True):
        surrogate = load(path)
        surrogate.symmetrize(fno_forced_navier_stokes())
        n_history, n_steps = surrogate.description.n_history, surrogate.description.n_steps
        prediction = surrogate.rollout(frames[:, :n_history], n_steps)
        error = relative_l2(prediction, frames[:, n_history : n_history + n_steps]).mean().item()
        assert row["relative_l2"] == pytest.approx(error, rel=1e-5)
        assert abs(row["relative_l2"] - other["relative_l2"]) > 1e-3 * error
        assert (row["symmetry"], other["symmetry"]) == (name, None)
    assert f"means over the isometries of {name}" in found.report.read_text()


def test_a_finer_grid_is_thinned_to_that_of_the_training(tmp_path, data):
    fine = open_trajectories(write_data(tmp_path / "fine", n=32))
    surrogate = network(Scale(exact()))
    nets = {Path("net"): surrogate}
    task = make_protocol(nets, fine, 2)
    assert (task.stride, task.grid) == (2, (16, 16))
    torch.testing.assert_close(
        score(surrogate, fine, task).sample, scores_of(Scale(exact()), data).sample, rtol=1e-5, atol=1e-6
    )
    assert make_protocol(nets, fine, 2, resolution=32).grid == (32, 32)
    assert make_protocol(nets, fine, 2, resolution=8).stride == 4
    for wrong in (12, 64, 0):
        with pytest.raises(InputError, match=f"resolution {wrong} is not every n-th point of the grid"):
            make_protocol(nets, fine, 2, resolution=wrong)


def test_errors_are_taken_over_the_frames_of_the_tests_in_training(data):
    source = open_trajectories(data)
    net, other = network(Scale(1.0)), network(Scale(1.0))
    trained = net.description.n_steps
    single = dataclasses.replace(net.description, n_steps=1, split={"test_steps": trained})
    other.describe(dataclasses.replace(single, split={}))  # as of a checkpoint from before it was noted
    net.describe(single)
    task = make_protocol({Path("net"): net}, source, 2)
    assert (task.n_steps, task.n_free, task.horizon) == (trained, 3 * trained, trained)
    assert make_protocol({Path("net"): net}, source, 2, n_steps=1).n_steps == 1
    # "past the horizon" is the same frames for all networks, whatever they were trained on
    rolled = network(Scale(1.0))
    of_steps, of_roll_outs = (score(n, source, task).growth for n in (net, rolled))
    assert of_steps.relative_l2_past is not None
    torch.testing.assert_close(of_steps.relative_l2_past, of_roll_outs.relative_l2_past)
    torch.testing.assert_close(of_steps.rms_ratio, of_roll_outs.rms_ratio)
    assert make_protocol({Path("other"): other}, source, 2).n_steps == 1
    with pytest.raises(InputError, match=rf"tested roll-outs of \[1, {trained}\] steps; give n_steps"):
        make_protocol({Path("net"): net, Path("other"): other}, source, 2)


def test_networks_of_different_history_predict_the_same_frames(data):
    source = open_trajectories(data)
    long, short = network(Scale(1.0, 4), n_history=4), network(Scale(1.0))
    task = make_protocol({Path("long"): long, Path("short"): short}, source, 2)
    assert (task.first, task.n_known) == (4, 5)
    torch.testing.assert_close(score(long, source, task).sample, score(short, source, task).sample, rtol=0, atol=0)
    short.describe(
        dataclasses.replace(short.description, split={"known_frames": 4})
    )  # alone too it predicts what it is tested on
    assert make_protocol({Path("short"): short}, source, 2).first == 4
    assert make_protocol({Path("short"): short}, source, 2, known_frames=3).first == 3
    with pytest.raises(InputError, match="known_frames is 3, but a network sees 4 frames; give that or more"):
        make_protocol({Path("long"): long, Path("short"): short}, source, 2, known_frames=3)
    with pytest.raises(InputError, match=r"\(12\); give fewer n_steps or known_frames \(2 or more\)"):
        make_protocol({Path("short"): short}, source, 2, n_steps=8)


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
