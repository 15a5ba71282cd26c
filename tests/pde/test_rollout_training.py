"""Increments and noise: neutral settings change nothing, bit by bit, and what is drawn is drawn again on a resume."""

import dataclasses
import json

import lightning as L
import pytest
import torch

from sciml_monarch import InputError, load, save
from sciml_monarch.cli import main
from sciml_monarch.pde import (
    MonarchFNO,
    Surrogate,
    gaussian_random_field,
    rollout,
)
from sciml_monarch.pde.data import PairData
from sciml_monarch.pde.rollout_training import RolloutCurriculum, generator_at, increment_scale, with_noise
from sciml_monarch.pde.symmetry import fno_forced_navier_stokes
from sciml_monarch.pde.synthetic import write_neuralop_darcy
from sciml_monarch.pde.task import Optimization, PDETask, RolloutLoss
from sciml_monarch.training import LAST
from tests.pde.rollout_runs import (
    BUFFERS,
    CPU,
    OPTIMIZATION,
    TWO_FIELDS,
    Watch,
    data,
    gradients,
    monarch,
    same,
    train,
    zero,
)

# neutral settings


def test_without_options_loss_and_gradients_are_those_of_a_plain_rollout():
    surrogate = Surrogate(MonarchFNO(6, 2, 4, (4,), (16,), n_layers=1), TWO_FIELDS)
    mean, std = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5])
    surrogate.set_normalization(mean, std, mean, std)
    history, target = torch.randn(2, 3, 2, 16), torch.randn(2, 4, 2, 16)
    prepared = surrogate.net.prepare((16,))
    x, frames = surrogate.normalize(history).flatten(1, 2), []
    for _ in range(4):
        frames.append(surrogate.net(x, prepared))
        x = torch.cat([x[:, 2:], frames[-1]], 1)
    difference = (surrogate.denormalize(torch.stack(frames, 1)) - target).flatten(2).norm(dim=2)
    expected = (difference / target.flatten(2).norm(dim=2)).mean()
    loss = RolloutLoss(surrogate)(history, target)
    assert torch.equal(loss, expected)
    for a, b in zip(gradients(loss, surrogate.net), gradients(expected, surrogate.net), strict=True):
        assert torch.equal(a, b)


def test_neutral_settings_train_the_same_weights(vorticity_folder, tmp_path):
    plain = train(PDETask(monarch(), OPTIMIZATION), data(vorticity_folder), tmp_path / "plain")
    task = PDETask(monarch(), OPTIMIZATION, increment=False, noise=0.0, init_from=None)
    neutral = train(task, data(vorticity_folder), tmp_path / "neutral", callbacks=[RolloutCurriculum([3], [0.0])])
    assert same(plain, neutral)


def test_checkpoints_without_increments_hold_what_they_always_held(vorticity_folder, tmp_path):
    train(PDETask(monarch()), data(vorticity_folder), tmp_path, 1)
    checkpoint = torch.load(tmp_path / LAST, weights_only=True)
    names = {n.removeprefix("surrogate.") for n in checkpoint["state_dict"]}
    assert {n for n in names if not n.startswith("net.")} == BUFFERS
    assert set(checkpoint["sciml_monarch"]) == {
        "format", "version", "task", "net", "arguments", "structure", "description",
    }  # fmt: skip
    assert load(tmp_path / LAST).increment_scale is None


# increments


def test_increments_are_added_to_the_last_frame():
    surrogate = Surrogate(MonarchFNO(6, 2, 4, (4,), (16,), n_layers=1), TWO_FIELDS, increment=True)
    mean, std, scale = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5]), torch.tensor([0.3, 0.2])
    surrogate.set_normalization(mean, std, mean, std, scale)
    frames = torch.randn(2, 3, 2, 16)
    for _ in range(3):
        x = ((frames[:, -3:] - mean[:, None]) / std[:, None]).flatten(1, 2)
        new = frames[:, -1] + scale[:, None] * surrogate.net(x)
        frames = torch.cat([frames, new[:, None]], 1)
    torch.testing.assert_close(surrogate.rollout(frames[:, :3], 3), frames[:, 3:])


def test_the_increment_of_a_zero_network_is_persistence():
    surrogate = Surrogate(zero(MonarchFNO(6, 2, 4, (4,), (16,), n_layers=1)), TWO_FIELDS, increment=True)
    mean, std = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5])
    surrogate.set_normalization(mean, std, mean, std, torch.tensor([0.3, 0.2]))
    history = torch.randn(2, 3, 2, 16)
    torch.testing.assert_close(surrogate(history), history[:, -1:].expand(-1, 4, -1, -1))
    assert torch.equal(rollout(surrogate.net, history, 2, torch.ones(2)), history[:, -1:].expand(-1, 2, -1, -1))


@pytest.mark.parametrize(("windows", "n_steps", "n_frames"), [("first", 2, 5), ("all", 2, 6)])
def test_the_scale_of_increments_is_their_root_mean_square(windows, n_steps, n_frames, vorticity_folder):
    source = data(vorticity_folder, n_steps, windows=windows)
    frames = torch.stack([source.source.read(i, 0, n_frames) for i in range(6)]).double()
    expected = frames.diff(dim=1).square().mean().sqrt().float()
    torch.testing.assert_close(increment_scale(source), expected[None])
    assert expected < 0.5 * source.statistics()[1]  # what makes the scale worth while


def test_a_field_that_never_changes_has_a_scale_of_one(vorticity_folder):
    source = data(vorticity_folder)
    windows = source.train_dataloader().dataset
    windows._frames = torch.ones_like(windows._frames)
    assert torch.equal(increment_scale(source), torch.ones(1))


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_trained_increments_survive_checkpoint_and_folder(ema_decay, vorticity_folder, tmp_path):
    source = data(vorticity_folder)
    task = PDETask(monarch(), OPTIMIZATION, ema_decay=ema_decay, increment=True)
    loaded = train(task, source, tmp_path)
    assert torch.equal(loaded.increment_scale, increment_scale(source))
    history, _ = next(iter(source.val_dataloader()))
    expected = task.surrogate.eval()(history)
    assert torch.equal(loaded(history), expected)
    assert torch.equal(load(save(loaded, tmp_path / "shared"))(history), expected)
    frames = Surrogate(loaded.net, loaded.description)  # what forgetting the increments would give
    frames.set_normalization(*source.statistics(), *source.statistics())
    assert (frames(history) - expected).norm() > 0.1 * expected.norm()


def test_increments_are_not_switched_on_a_resume(vorticity_folder, tmp_path):
    for increment in (False, True):
        out = tmp_path / str(increment)
        train(PDETask(monarch(), increment=increment), data(vorticity_folder), out, 1)
        with pytest.raises(InputError, match=f"increment is {not increment}, but the checkpoint's network predicts"):
            train(PDETask(monarch(), increment=not increment), data(vorticity_folder), out, resume=True)


def test_increments_of_other_fields_are_refused(tmp_path):
    net = MonarchFNO(6, 2, 4, (4,), (16,), n_layers=1)
    with pytest.raises(InputError, match="a frame has 6 fields and the network predicts 2; set increment to false"):
        Surrogate(net, dataclasses.replace(TWO_FIELDS, n_history=1), increment=True)
    with pytest.raises(InputError, match="frames of 6 fields, but the network has 2 output channels"):
        rollout(net, torch.randn(1, 1, 6, 16), 1, torch.ones(6))
    surrogate, one = Surrogate(net, TWO_FIELDS, increment=True), torch.ones(2)
    with pytest.raises(InputError, match="increment_scale is needed"):
        surrogate.set_normalization(one, one, one, one)
    with pytest.raises(InputError, match="they must be the same"):
        surrogate.set_normalization(one, one, one, 2 * one, one)
    with pytest.raises(InputError, match=r"increment_scale of the training data is \[0.0, 0.0\]"):
        surrogate.set_normalization(one, one, one, one, 0 * one)
    with pytest.raises(InputError, match="predicts frames, not increments"):
        Surrogate(net, TWO_FIELDS).set_normalization(one, one, one, one, one)
    field = gaussian_random_field(16, range(8), alpha=4.0, tau=3.0).numpy()
    write_neuralop_darcy(tmp_path / "darcy_16.pt", field, field)
    pairs = PairData(tmp_path / "darcy_16.pt", [tmp_path / "darcy_16.pt"], 4, 2, n_test=2, batch_size=2)
    with pytest.raises(InputError, match="pairs lack; set increment to false"):
        train(PDETask(MonarchFNO(1, 1, 4, (8, 8), (16, 16)), increment=True), pairs, tmp_path / "run")


# noise


def test_noise_has_the_deviation_asked_for_in_each_field_and_frame():
    history = torch.zeros(64, 3, 2, 64)
    std = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    noise = with_noise(history, std, generator_at(0))
    torch.testing.assert_close(noise.std((0, 3)).flatten(), std, rtol=0.05, atol=0)
    assert torch.corrcoef(noise.movedim(0, 2).flatten(2).flatten(0, 1)).fill_diagonal_(0).abs().max() < 0.06


def test_draws_depend_on_every_number_of_the_place():
    places = [(0, 0, 0, 0), (1, 0, 0, 0), (2**32, 0, 0, 0), (0, 1, 0, 0), (0, 256, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    draws = [torch.rand(1, generator=generator_at(*p)).item() for p in places]
    assert len(set(draws)) == len(places)
    many = {torch.rand(1, generator=generator_at(0, 0, batch, 0), dtype=torch.float64).item() for batch in range(1000)}
    assert len(many) == 1000
    assert draws == [torch.rand(1, generator=generator_at(*p)).item() for p in places]


def test_noise_is_on_the_known_frames_in_training_alone_and_anew_in_each_epoch(vorticity_folder, tmp_path):
    plain, noisy = (PDETask(monarch(), Optimization(learning_rate=1e-12), noise=n) for n in (0.0, 0.25))
    watches = Watch(plain), Watch(noisy)
    for task, watch, name in zip((plain, noisy), watches, ("plain", "noisy"), strict=True):
        train(task, data(vorticity_folder), tmp_path / name, callbacks=[watch])
    assert len(watches[0].trained) == 6
    draws = []
    for (before, _), (after, _) in zip(watches[0].trained, watches[1].trained, strict=True):
        draws.append((after - before) / noisy.surrogate.input_std[0])
        assert draws[-1].std().item() == pytest.approx(0.25, rel=0.1)
    products = torch.corrcoef(torch.stack(draws).flatten(1)).fill_diagonal_(0)
    assert products.abs().max() < 0.1
    for (before, _), (after, _) in zip(watches[0].validated, watches[1].validated, strict=True):
        assert torch.equal(before, after)
    source = data(vorticity_folder)  # targets have none: the loss is that of noisy history and clean target
    source.setup()
    assert len(watches[1].losses) == 6
    clean = {tuple(h.flatten(1)[:, 0].tolist()): t for h, t in source.train_dataloader()}
    histories = [h for h, _ in watches[0].trained[:3]]
    order = [next(t for key, t in clean.items() if torch.tensor(key).equal(h.flatten(1)[:, 0])) for h in histories]
    for (history, _), target, loss in zip(watches[1].trained, order, watches[1].losses, strict=False):
        assert RolloutLoss(noisy.surrogate)(history, target).item() == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf")])
def test_noise_out_of_range_is_refused(noise):
    with pytest.raises(InputError, match=f"noise is {noise}"):
        PDETask(monarch(), noise=noise)


class Precisions(L.Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, *_):
        self.seen.append(("train", torch.get_float32_matmul_precision()))

    def on_validation_batch_start(self, *_):
        self.seen.append(("validate", torch.get_float32_matmul_precision()))


@pytest.mark.parametrize("wanted", [None, "high", "medium"])
def test_the_precision_of_products_is_set_for_the_training_alone(vorticity_folder, tmp_path, wanted):
    watch = Precisions()
    train(PDETask(monarch(), matmul_precision=wanted), data(vorticity_folder), tmp_path, callbacks=[watch])
    assert set(watch.seen) == {("train", wanted or "highest"), ("validate", wanted or "highest")}
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_precision_of_products_is_put_back_after_a_training_that_failed(vorticity_folder, tmp_path):
    class Failure(L.Callback):
        def on_train_batch_end(self, *_):
            raise RuntimeError("no more")

    task = PDETask(monarch(), matmul_precision="high")
    with pytest.raises(RuntimeError, match="no more"):
        train(task, data(vorticity_folder), tmp_path / "a", callbacks=[Failure()])
    assert torch.get_float32_matmul_precision() == "highest"
    group = fno_forced_navier_stokes()
    group.forcing = "another"
    refused = PDETask(monarch(), matmul_precision="high", symmetry=group)
    with pytest.raises(InputError, match="the symmetry is of an equation with forcing"):  # while it is set up
        train(refused, data(vorticity_folder), tmp_path / "b")
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_newer_setting_of_precision_is_refused_beside_the_tasks(vorticity_folder, tmp_path, monkeypatch):
    def mixed():
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", mixed)
    with pytest.raises(InputError, match=r"torch.backends.cuda.matmul.fp32_precision is set"):
        train(PDETask(monarch(), matmul_precision="high"), data(vorticity_folder), tmp_path)


def test_a_precision_of_products_that_there_is_not_is_refused():
    with pytest.raises(InputError, match="matmul_precision 'tf32' is none of"):
        PDETask(monarch(), matmul_precision="tf32")


# resuming


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_resumed_run_equals_an_uninterrupted_one(epoch, vorticity_folder, tmp_path):
    def begin(name, epochs=4, callbacks=(), **options):
        task = PDETask(monarch(), OPTIMIZATION, symmetry=fno_forced_navier_stokes(), increment=True, noise=0.1)
        curriculum = RolloutCurriculum([1, 2, 3], [0.0, 0.25, 0.6])  # from epochs 0, 1, 2
        return train(task, data(vorticity_folder), tmp_path / name, epochs, [curriculum, *callbacks], **options)

    class Stop(Exception):
        pass

    class Interrupt(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            if trainer.current_epoch == epoch and index == 1:
                raise Stop

    whole = begin("whole")
    with pytest.raises(Stop):
        begin("parts", callbacks=[Interrupt()])
    torch.rand(17)
    assert same(begin("parts", resume=True), whole)


# from the command line


def test_a_configuration_can_name_all_of_it(vorticity_folder, tmp_path, capsys):
    def configured(out, **options):
        net = {"class_path": "MonarchFNO", "init_args": monarch().config}
        model = {"class_path": "PDETask", "init_args": {"net": net, "increment": True, **options}}
        arguments = {"path": str(vorticity_folder), "n_train": 6, "n_val": 2, "n_test": 2}
        arguments |= {"n_history": 3, "n_steps": 3, "batch_size": 2}
        curriculum = {"class_path": "RolloutCurriculum", "init_args": {"steps": [1, 3], "at": [0.0, 0.5]}}
        config = {
            "model": model,
            "data": {"class_path": "TrajectoryData", "init_args": arguments},
            "trainer": CPU | {"max_epochs": 2, "log_every_n_steps": 1, "callbacks": [curriculum]},
        }
        file = tmp_path / "config.json"
        file.write_text(json.dumps(config))
        assert main(["train", "--config", str(file), "--out", str(tmp_path / out)]) == 0, capsys.readouterr().err

    configured("first", noise=0.1)
    first = tmp_path / "first" / LAST
    configured("second", init_from=str(first))
    assert load(first).increment_scale is not None
    assert torch.equal(load(tmp_path / "second" / LAST).increment_scale, load(first).increment_scale)
