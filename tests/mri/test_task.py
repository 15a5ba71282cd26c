import math

import lightning as L
import pytest
import torch
from torch import nn

from sciml_monarch import InputError, load
from sciml_monarch.mri.base import Recon, rss
from sciml_monarch.mri.data import Loader, MRIData
from sciml_monarch.mri.losses import image_loss
from sciml_monarch.mri.modl import MoDL
from sciml_monarch.mri.sense import MonarchSENSE
from sciml_monarch.mri.task import Optimization, ReconTask
from sciml_monarch.mri.unet import UNet
from sciml_monarch.mri.varnet import MonarchVarNet, VarNet
from sciml_monarch.training import BEST, LAST, fit
from tests.mri.scans import make_scan, write_scan
from tests.mri.trainings import CPU, FILE, MASK, data, ista, train

# slices of 28 columns in a folder of 32 take the exact transform on that axis, and the networks say so
pytestmark = pytest.mark.filterwarnings("ignore:.*where the learned transform has")


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
