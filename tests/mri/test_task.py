import json
import math
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn

from sciml_monarch import InputError, load
from sciml_monarch.mri import metrics
from sciml_monarch.mri.base import Recon, rss
from sciml_monarch.mri.coils import CoilMaps
from sciml_monarch.mri.data import Loader, MRIData
from sciml_monarch.mri.formats.base import center_crop
from sciml_monarch.mri.ista import MonarchISTA
from sciml_monarch.mri.losses import image_loss
from sciml_monarch.mri.masks import RandomMask
from sciml_monarch.mri.modl import MoDL
from sciml_monarch.mri.scores import SliceScore, score_volumes
from sciml_monarch.mri.sense import MonarchSENSE
from sciml_monarch.mri.task import Optimization, ReconTask
from sciml_monarch.mri.unet import UNet
from sciml_monarch.mri.varnet import MonarchVarNet, VarNet
from sciml_monarch.training import BEST, LAST, fit, monitor_of
from tests.mri.scans import make_scan, write_scan

CPU = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
MASK = RandomMask((3.0,), (0.125,))
FILE = CoilMaps(source="file")
# slices of 28 columns in a folder of 32 take the exact transform on that axis, and the networks say so
pytestmark = pytest.mark.filterwarnings("ignore:.*where the learned transform has")


def data(folder, **options):
    return MRIData(folder / "train", folder / "val", **{"mask": MASK, "maps": FILE, "batch_size": 2, **options})


def ista(**options):
    torch.manual_seed(1)
    return MonarchISTA(**{"n_steps": 2, "block": 4, **options})


def train(task, source, out, **options):
    resume = options.pop("resume", False)
    return fit(task, source, out, resume=resume, trainer_options=CPU | {"max_epochs": 2} | options)


def weights(path):
    return load(path).state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


NETS = {
    "MonarchISTA": ista,
    "MonarchSENSE": lambda: MonarchSENSE((48, 32)),
    "VarNet": lambda: VarNet(2, 4, 2, 2),
    "MonarchVarNet": lambda: MonarchVarNet((48, 32), 2, 4, 2, 2),
    "UNet": lambda: UNet(4, 2, magnitude=True),
    "MoDL": lambda: MoDL(2, 3, 2, 4),
}


@pytest.mark.parametrize("name", NETS)
def test_training_lowers_the_loss_and_the_checkpoint_rebuilds_the_network(name, scan_folder, tmp_path):
    net = NETS[name]()
    source = data(scan_folder, loader=Loader(fixed_mask=True), maps=FILE if net.needs_maps else None)
    task = ReconTask(net, Optimization(learning_rate=3e-3, schedule="constant"))
    batches = list(source.train_dataloader())

    def error():
        task.net.eval()
        with torch.no_grad():
            return sum(
                image_loss(task.net(b.kspace, b.mask, b.maps), b.target, b.maximum, "ssim").item() for b in batches
            )

    before = error()
    task.net.train()
    train(task, source, tmp_path, max_epochs=4)
    assert error() < before
    again = load(tmp_path / LAST)
    assert isinstance(again, type(task.net))
    assert not again.training
    assert again.description == source.description
    assert same(again.state_dict(), task.net.state_dict())
    assert (tmp_path / BEST).is_file()
    assert list((tmp_path / "csv").rglob("metrics.csv"))


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_resumed_run_equals_an_uninterrupted_one(ema_decay, scan_folder, tmp_path):
    def task():  # random shifts in training, dropout and fresh masks: all must come again
        return ReconTask(ista(), Optimization(learning_rate=1e-2), ema_decay=ema_decay)

    class Stop(Exception):
        pass

    class Interrupt(L.Callback):
        """Dies in the middle of the third epoch, as a killed process would."""

        def on_train_batch_start(self, trainer, module, batch, index):
            if trainer.current_epoch == 2 and index == 1:
                raise Stop

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(task(), data(scan_folder), whole, max_epochs=4)
    with pytest.raises(Stop):
        train(task(), data(scan_folder), parts, max_epochs=4, callbacks=[Interrupt()])
    torch.manual_seed(77)  # the process that resumes has another seed
    train(task(), data(scan_folder), parts, max_epochs=4, resume=True)
    assert same(weights(whole / LAST), weights(parts / LAST))


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


class Staged(Recon):
    """The zero-filled image with a gain in each of three stages."""

    needs_maps = False

    def __init__(self):
        super().__init__({})
        self.gains = nn.ParameterList(nn.Parameter(torch.ones(())) for _ in range(3))

    def forward(self, kspace, mask, maps=None):
        image = rss(kspace)[:, None]
        for gain in self.gains:
            image = gain * image
        return image

    def stages(self):
        return [[gain] for gain in self.gains]


def test_freedom_grows_with_the_steps(scan_folder, tmp_path):
    moved = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, module, *rest):
            moved.append([g.item() != 1 for g in module.net.gains])

    task = ReconTask(Staged(), Optimization(learning_rate=1e-2, weight_decay=0.1), unlock=(0.25, 0.5), loss="l1")
    train(task, data(scan_folder, batch_size=3, maps=None), tmp_path, max_epochs=4, callbacks=[Watch()])
    assert len(moved) == 12
    assert moved[2] == [True, False, False]
    assert moved[3] == [True, True, False]
    assert moved[5] == [True, True, False]
    assert moved[6] == [True, True, True]
    with pytest.raises(InputError, match=r"has 3 stages, .*; give 2"):
        ReconTask(Staged(), unlock=(0.5,))
    with pytest.raises(InputError, match=r"unlock is \[0\.5, 0\.2\]"):
        ReconTask(Staged(), unlock=(0.5, 0.2))


def test_transforms_have_a_group_without_weight_decay():
    net = MonarchVarNet((16, 16), 1, 2, 1, 2)
    task = ReconTask(net, Optimization(schedule="constant", weight_decay=0.1, transform_rate=0.5, learning_rate=0.01))
    task.trainer = L.Trainer(**CPU, logger=False, enable_checkpointing=False, max_steps=1)
    groups = task.configure_optimizers().param_groups
    transforms = {id(p) for p in net.transform_parameters()}
    assert transforms
    assert {id(p) for p in groups[1]["params"]} == transforms
    assert (groups[1]["weight_decay"], groups[1]["lr"]) == (0, pytest.approx(0.005))
    assert groups[0]["weight_decay"] == 0.1
    assert sum(len(g["params"]) for g in groups) == len(list(net.parameters()))


def test_pictures_of_the_validation_are_in_tensorboard(scan_folder, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(ReconTask(ista()), data(scan_folder), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"images": 0})
    events.Reload()
    assert sorted(events.Tags()["images"]) == ["val/val_0", "val/val_1"]
    shown = events.Images("val/val_0")
    assert len(shown) == 2
    assert (shown[0].height, shown[0].width) == (32, 4 * 32)


def test_bf16_trains_and_what_has_no_complex_numbers_is_refused(scan_folder, tmp_path):
    task = ReconTask(VarNet(1, 4, 2, 2))
    train(task, data(scan_folder, maps=None), tmp_path / "mixed", precision="bf16-mixed", max_epochs=1)
    assert all(torch.isfinite(p).all() for p in task.parameters())
    for precision in ("bf16-true", "64-true"):
        with pytest.raises(InputError, match=f"does not exist in precision {precision}; use one of 32-true"):
            train(ReconTask(ista()), data(scan_folder), tmp_path / precision, precision=precision)


def test_mistakes_are_refused_before_training(scan_folder, tmp_path):
    with pytest.raises(InputError, match="MonarchISTA needs coil maps"):
        train(ReconTask(ista()), data(scan_folder, maps=None), tmp_path)
    with pytest.raises(InputError, match=r"VarNet takes no coil maps, .* set maps of the data to null"):
        train(ReconTask(VarNet(1, 4, 2, 2)), data(scan_folder), tmp_path)
    with pytest.raises(InputError, match="ema_decay is 1"):
        ReconTask(ista(), ema_decay=1.0)
    with pytest.raises(InputError, match="must be positive"):
        Optimization(learning_rate=0)
    task = ReconTask(ista(), Optimization(learning_rate=1e30))
    with pytest.raises(InputError, match="lower the learning rate"):
        train(task, data(scan_folder), tmp_path / "diverged", max_epochs=4)


def test_a_divergence_that_validation_alone_sees_is_an_error(scan_folder, tmp_path):
    class Diverge(L.Callback):
        """The last step of the epoch, whose weights no training loss has seen."""

        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            if index == trainer.num_training_batches - 1:
                next(module.net.parameters()).data.fill_(math.nan)

    with pytest.raises(InputError, match="val/nmse is nan in epoch 0; lower the learning rate"):
        train(ReconTask(ista()), data(scan_folder), tmp_path, callbacks=[Diverge()])


def test_scans_of_other_sizes_than_the_transforms_teach_nothing_and_stop_nothing(tmp_path):
    for i, shape in enumerate([(32, 32), (24, 28)]):
        write_scan(tmp_path / "in" / f"{i}.h5", make_scan(1, shape), with_maps=True)
    options = CPU | {"max_epochs": 1}
    net = MonarchSENSE((32, 32))
    source = MRIData(tmp_path / "in", mask=MASK, maps=FILE)
    with pytest.warns(UserWarning, match=r"1 of 2 scans, such as \S+1\.h5, have k-space of another size \(24 x 28\)"):
        fit(ReconTask(net), source, tmp_path / "run", monitor=None, trainer_options=options)
    assert all(p.isfinite().all() for p in net.parameters())
    before = {name: p.clone() for name, p in net.state_dict().items()}
    other = MRIData(tmp_path / "in" / "1.h5", mask=MASK, maps=FILE)
    net.zero_grad()
    task = ReconTask(net)
    task.log = lambda *args, **options: None
    loss = task.training_step(next(iter(other.train_dataloader())), 0)
    loss.backward()
    assert loss > 0
    assert all(p.grad.count_nonzero() == 0 for p in net.parameters())
    assert same(before, net.state_dict())
    with pytest.raises(InputError, match=r"1\.h5: k-space of 24 x 28, .*no scan has either; set shape .* \[24, 28\]"):
        fit(ReconTask(net), other, tmp_path / "none", monitor=None, trainer_options=options)


def test_a_scan_with_another_number_of_coils_is_named_where_the_network_counts_them(tmp_path):
    for n_coils in (4, 3):
        write_scan(tmp_path / "in" / f"{n_coils}.h5", make_scan(1, (32, 32), n_coils), with_maps=True)
    source = MRIData(tmp_path / "in", mask=MASK, maps=FILE, batch_size=2)
    options = CPU | {"max_epochs": 1}
    with pytest.raises(InputError, match=r"3\.h5: 3 coils, but MonarchSENSE has a transform for each of 4"):
        fit(ReconTask(MonarchSENSE((32, 32), 4)), source, tmp_path / "run", monitor=None, trainer_options=options)
    fit(ReconTask(MonarchSENSE((32, 32))), source, tmp_path / "run", monitor=None, trainer_options=options)
    assert load(tmp_path / "run" / LAST).description.n_coils == (3, 4)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_gpu_trains_with_workers_and_pinned_memory(precision, scan_folder, tmp_path):
    source = data(scan_folder, loader=Loader(n_workers=1), maps=None)  # VarNet estimates its own
    task = ReconTask(VarNet(1, 4, 2, 2), ema_decay=0.9)
    train(task, source, tmp_path, accelerator="cuda", devices=1, precision=precision)
    assert all(torch.isfinite(p).all() for p in task.parameters())
    assert (tmp_path / BEST).is_file()


def test_checkpoint_of_another_network_is_refused_on_resume(scan_folder, tmp_path):
    train(ReconTask(ista()), data(scan_folder), tmp_path, max_epochs=1)
    for other in (ista(n_steps=3), UNet(2, 1, magnitude=True)):
        source = data(scan_folder, maps=FILE if other.needs_maps else None)
        with pytest.raises(InputError, match="checkpoint of another network"):
            train(ReconTask(other), source, tmp_path, resume=True)
    with pytest.raises(InputError, match=r"ema_decay is 0\.5"):
        train(ReconTask(ista(), ema_decay=0.5), data(scan_folder), tmp_path, resume=True)


def test_a_damaged_slice_met_by_a_worker_is_one_line(scan_folder, tmp_path):
    scan = make_scan(2, (48, 32))
    scan.kspace[1, 0, 0, 0] = float("nan")
    write_scan(tmp_path / "data" / "spoilt.h5", scan, with_maps=True)
    source = MRIData(tmp_path / "data", mask=MASK, maps=FILE, loader=Loader(n_workers=1))
    with pytest.raises(InputError, match=r"spoilt\.h5: .*slice 1 ") as error:
        fit(ReconTask(ista()), source, tmp_path / "run", monitor=None, trainer_options=CPU | {"max_epochs": 1})
    assert "\n" not in str(error.value)
    assert "Traceback" not in str(error.value)


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
