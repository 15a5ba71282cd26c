import json
import math
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch

from sciml_monarch import InputError
from sciml_monarch.mri import metrics
from sciml_monarch.mri.formats.base import center_crop
from sciml_monarch.mri.losses import image_loss
from sciml_monarch.mri.scores import SliceScore, score_volumes
from sciml_monarch.mri.task import Optimization, ReconTask
from sciml_monarch.training import BEST, fit, monitor_of
from tests.mri.trainings import CPU, data, ista, train

# slices of 28 columns in a folder of 32 take the exact transform on that axis, and the networks say so
pytestmark = pytest.mark.filterwarnings("ignore:.*where the learned transform has")


def test_scores_are_those_of_whole_volumes(scan_folder, tmp_path):
    """Against the metrics of the evaluation, volumes stacked; batches mix the ends of volumes."""
    source = data(scan_folder, batch_size=3)
    task = ReconTask(ista())
    trainer = L.Trainer(**CPU, logger=False, enable_checkpointing=False)
    found = trainer.validate(task, datamodule=source, verbose=False)[0]
    task.eval()
    pairs, peaks = {}, {}
    for b in source.val_dataloader():
        image = center_crop(task.net(b.kspace, b.mask, b.maps).abs()[:, 0], (32, 32))
        for i, name in enumerate(b.name):
            pairs.setdefault(name, []).append((b.target[i], image[i].detach()))
            peaks[name] = float(b.maximum[i])
    volumes = [[torch.stack(part) for part in zip(*pairs[name], strict=True)] for name in pairs]
    assert len(volumes) == 2
    for name, metric in (("nmse", metrics.nmse), ("psnr", metrics.psnr), ("ssim", metrics.ssim)):
        expected = sum(metric(*volume) for volume in volumes) / 2
        assert found[f"val/{name}"] == pytest.approx(expected, rel=1e-5)
    assert all(peaks[n] == pytest.approx(float(v[0].max())) for n, v in zip(pairs, volumes, strict=True))


def test_a_slice_that_comes_twice_counts_once():
    first, second = SliceScore(1.0, 10.0, 0.5, 4, 2.0), SliceScore(3.0, 30.0, 0.7, 4, 2.0)
    found = score_volumes([(("a", 0), first), (("a", 1), second), (("b", 0), second), (("a", 0), first)])
    assert found["a"].nmse == 0.1
    assert found["a"].ssim == pytest.approx(0.6)
    assert found["a"].psnr == pytest.approx(10 * math.log10(4 / (4 / 8)))
    assert found["b"].nmse == 0.1


@pytest.mark.parametrize("loss", ["ssim", "l1", "mse", "normalized_l1"])
def test_losses(loss):
    target = torch.rand(2, 12, 10) + 0.1
    maximum = torch.tensor([1.5, 3.0])
    wide = torch.zeros(2, 2, 16, 14, dtype=torch.complex64)
    wide[:, 0, 2:14, 2:12] = 0.6 * target * 1j
    wide[:, 1, 2:14, 2:12] = 0.8 * target
    assert image_loss(wide, target, maximum, loss).item() == pytest.approx(0, abs=1e-6)
    ours = (target * 1.1)[:, None]
    expected = {
        "ssim": 1
        - sum(metrics.ssim(t[None], 1.1 * t[None], float(m)) for t, m in zip(target, maximum, strict=True)) / 2,
        "l1": float((0.1 * target / maximum[:, None, None]).mean()),
        "mse": float((0.1 * target / maximum[:, None, None]).square().mean()),
        "normalized_l1": 0.1,
    }[loss]
    assert image_loss(ours, target, maximum, loss).item() == pytest.approx(expected, rel=1e-4)
    scaled = image_loss(1e-5 * ours, 1e-5 * target, 1e-5 * maximum, loss)
    assert scaled.item() == pytest.approx(expected, rel=1e-3)
    wide.requires_grad_()
    image_loss(wide, target, maximum, loss).backward()
    assert torch.isfinite(torch.view_as_real(wide.grad)).all()  # the rim is zero in both sets
    with pytest.raises(InputError, match="smaller than the target"):
        image_loss(ours[..., :8], target, maximum, loss)


def test_pictures_of_the_validation_are_in_tensorboard(scan_folder, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(ReconTask(ista()), data(scan_folder), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"images": 0})
    events.Reload()
    assert sorted(events.Tags()["images"]) == ["val/val_0", "val/val_1"]
    shown = events.Images("val/val_0")
    assert len(shown) == 2
    assert (shown[0].height, shown[0].width) == (32, 4 * 32)


def test_the_best_network_is_chosen_by_the_task():
    assert monitor_of(ReconTask(ista()), "auto") == ("val/nmse", "min")
    assert monitor_of(ReconTask(ista()), "val/ssim") == ("val/ssim", "max")
    assert monitor_of(ReconTask(ista()), None) is None
    with pytest.raises(
        InputError, match="monitor is val/relative_l2, but ReconTask validates val/nmse, val/psnr, val/s"
    ):
        monitor_of(ReconTask(ista()), "val/relative_l2")
    # of a task that does not say what it logs
    assert monitor_of(L.LightningModule(), "auto") == ("val/relative_l2", "min")
    assert monitor_of(L.LightningModule(), "val/loss") == ("val/loss", "min")


PROGRAM = """
import json, sys, warnings
import torch
warnings.simplefilter("ignore")
from pathlib import Path
from sciml_monarch.mri.coils import CoilMaps
from sciml_monarch.mri.data import MRIData
from sciml_monarch.mri.masks import RandomMask
from sciml_monarch.mri.modl import MoDL
from sciml_monarch.mri.task import Optimization, ReconTask
from sciml_monarch.training import fit

if __name__ == "__main__":
    folder, out, devices = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    task = ReconTask(MoDL(2, 2, 2, 4), Optimization(learning_rate=1e-2))
    data = MRIData(folder / "train", folder / "val", mask=RandomMask((3.0,), (0.125,)), maps=CoilMaps(source="file"),
                   batch_size=2)
    options = {"accelerator": "cpu", "devices": devices, "max_epochs": 2, "enable_progress_bar": False,
               "enable_model_summary": False, "strategy": "ddp" if devices > 1 else "auto"}
    trainer = fit(task, data, out, trainer_options=options)
    if trainer.is_global_zero:
        Path(out, "result.json").write_text(json.dumps({k: v.item() for k, v in trainer.callback_metrics.items()}))
    if devices > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()  # else gloo's threads may end the process with an error
"""


@pytest.mark.slow
def test_two_processes_score_the_volumes_of_one(scan_folder, tmp_path):
    """Each volume of two slices in batches of one is spread over both processes."""
    program = tmp_path / "train.py"
    program.write_text(PROGRAM)
    results = {}
    for devices in (1, 2):
        out = tmp_path / str(devices)
        command = [sys.executable, str(program), str(scan_folder), str(out), str(devices)]
        subprocess.run(command, check=True, capture_output=True, timeout=240)
        results[devices] = json.loads(Path(out, "result.json").read_text())
    one, two = results[1], results[2]
    assert one.keys() == two.keys() == {"train/loss", "val/nmse", "val/psnr", "val/ssim"}
    for name in ("val/nmse", "val/psnr", "val/ssim"):
        assert two[name] == pytest.approx(one[name], rel=1e-3)


@pytest.mark.parametrize("name", ["val/nmse", "val/ssim"])
def test_the_kept_network_is_the_best_of_its_epochs(name, scan_folder, tmp_path):
    """A rate that ruins it later: of the errors the smallest, of the similarities the largest is the first epoch's."""

    class Ruin(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                for group in trainer.optimizers[0].param_groups:
                    group["lr"] = 0.2

    scores = []

    class Noted(L.Callback):
        def on_validation_end(self, trainer, pl_module):
            scores.append(trainer.callback_metrics[name].item())

    task = ReconTask(ista(), Optimization(learning_rate=1e-4, schedule="constant"))
    options = CPU | {"max_epochs": 2, "callbacks": [Ruin(), Noted()]}
    fit(task, data(scan_folder), tmp_path, monitor=name, trainer_options=options)
    assert (scores[0] < scores[1]) == (name == "val/nmse")
    assert torch.load(tmp_path / BEST, weights_only=True)["epoch"] == 0
