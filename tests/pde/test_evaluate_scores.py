"""Scores of pde.evaluate: known answers of known networks."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from sciml_monarch import InputError
from sciml_monarch.pde import relative_l2
from sciml_monarch.pde.evaluate import evaluate
from sciml_monarch.pde.protocol import make_protocol
from sciml_monarch.pde.readers import open_trajectories
from sciml_monarch.pde.scoring import score
from tests.pde import decaying_waves
from tests.pde.decaying_waves import DECAY, DT, N_TIMES, Scale, exact, network, write_data

# fixtures; imported by their names, they would be unused to Ruff
data, checkpoints = decaying_waves.data, decaying_waves.checkpoints


def scores_of(net, data, n_test=2, n_steps=None, **changes):
    source = open_trajectories(data)
    surrogate = network(net, **changes)
    return score(surrogate, source, make_protocol({Path("net"): surrogate}, source, n_test, n_steps), batch_size=2)


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
