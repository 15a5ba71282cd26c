"""Training of a reconstruction network, as a Lightning module."""

import math
import warnings
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.hub import CHECKPOINT_KEY, recon_config
from sciml_monarch.monarch.structure import follow_state_dicts
from sciml_monarch.mri.base import Recon, rss
from sciml_monarch.mri.batches import Batch
from sciml_monarch.mri.data import MRIData
from sciml_monarch.mri.description import describe
from sciml_monarch.mri.formats.base import center_crop
from sciml_monarch.mri.losses import Loss, compared, image_loss
from sciml_monarch.mri.scores import Place, SliceScore, score_slices, score_volumes
from sciml_monarch.optimization import Optimization, go_on_with_schedule, make_optimizer

DEFAULT_OPTIMIZATION = Optimization()
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
SEED_KEY = "sciml_monarch_seed"
N_PICTURES = 4
"""Volumes of which validation shows a slice in TensorBoard."""


class ReconTask(L.LightningModule):
    """Trains a network to reconstruct undersampled k-space.

    The checkpoint carries the network's class and arguments and a description of the data;
    :func:`sciml_monarch.load` needs nothing else. Validation logs ``val/nmse``, ``val/psnr`` and ``val/ssim``,
    fastMRI's scores of whole volumes, mean over volumes, and shows slices in TensorBoard: zero-filled, reconstruction,
    target, five times the error.

    Args:
        net: The network.
        optimization: Optimiser and schedule.
        loss: ``ssim`` (fastMRI's), ``l1``, ``mse`` or ``normalized_l1``; see
            :func:`~sciml_monarch.mri.losses.image_loss`.
        ema_decay: Decay per step of an exponential moving average of the weights, used in validation and saved as
            the weights of the checkpoint; ``None`` for no averaging.
        unlock: Fractions of the training's steps after which the second, third, ... stage of the network
            (``net.stages()``) starts to learn; empty: everything learns from the start.
    """

    MONITORS: ClassVar = {"val/nmse": "min", "val/psnr": "max", "val/ssim": "max"}

    def __init__(
        self,
        net: Recon,
        optimization: Optimization = DEFAULT_OPTIMIZATION,
        loss: Loss = "ssim",
        ema_decay: float | None = None,
        unlock: tuple[float, ...] = (),
    ) -> None:
        super().__init__()
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise InputError(f"ema_decay is {ema_decay}; it must lie between 0 and 1")
        unlock = tuple(unlock)
        if list(unlock) != sorted(unlock) or any(not 0 <= u <= 1 for u in unlock):
            raise InputError(f"unlock is {list(unlock)}; it must be fractions between 0 and 1 that do not fall")
        n_stages = len(net.stages())
        if unlock and len(unlock) != n_stages - 1:
            raise InputError(
                f"unlock names {len(unlock)} fractions, but {type(net).__name__} has {n_stages} stages, of which the "
                f"first is free from the start; give {n_stages - 1}"
            )
        self.net = net
        self.optimization = optimization
        self.loss: Loss = loss
        self.ema_decay = ema_decay
        self.unlock = unlock
        self._seed: int | None = None
        self._slices: list[tuple[Place, SliceScore]] = []
        self._pictures: dict[str, tuple[float, Tensor]] = {}
        follow_state_dicts(self)

    @property
    def network(self) -> Recon:
        """The network: what sparse training converts."""
        return self.net

    def setup(self, stage: str) -> None:
        """Checks that data, network and precision go together.

        Raises:
            InputError: They do not; the message says what to set.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, MRIData):
            raise InputError(f"ReconTask trains on MRIData, not on {type(data).__name__}")
        if self.net.needs_maps and data.maps is None:
            raise InputError(f"{type(self.net).__name__} needs coil maps; set maps of the data, for example to {{}}")
        if not self.net.needs_maps and data.maps is not None and data.target != "sense":
            raise InputError(
                f"{type(self.net).__name__} takes no coil maps, which are long to make; set maps of the data to null"
            )
        if self.trainer.precision not in PRECISIONS:
            raise InputError(
                f"k-space is complex, which does not exist in precision {self.trainer.precision}; use one of "
                f"{', '.join(PRECISIONS)}"
            )
        n_coils = self.net.config.get("n_coils")
        for scan in data.scans() if n_coils is not None else ():
            if scan.n_coils != n_coils:
                raise InputError(
                    f"{scan.path}: {scan.n_coils} coils, but {type(self.net).__name__} has a transform for each of "
                    f"{n_coils}; leave the scan out, or set n_coils of the network to null"
                )
        self._check_shape(data)
        if stage == "fit":
            describe(self.net, data.description)

    def _check_shape(self, data: MRIData) -> None:
        """Compares the points of learned transforms with those of the scans: only where they agree is learned."""
        shape = self.net.config.get("shape")
        if shape is None:
            return
        scans = data.scans()
        fitting = [sum(n == m for n, m in zip(scan.shape, shape, strict=True)) for scan in scans]
        others = [scan for scan, n in zip(scans, fitting, strict=True) if n < 2]
        if not others:
            return
        name, (ny, nx) = type(self.net).__name__, others[0].shape
        if not any(fitting):
            raise InputError(
                f"{others[0].path}: k-space of {ny} x {nx}, but {name} has transforms for {shape[0]} x {shape[1]}, "
                f"and no scan has either; set shape of the network to [{ny}, {nx}]"
            )
        warnings.warn(
            f"{len(others)} of {len(scans)} scans, such as {others[0].path}, have k-space of another size ({ny} x "
            f"{nx}) than {shape[0]} x {shape[1]}, where the learned transform has its points; on such axes nothing is "
            "learned",
            stacklevel=2,
        )

    def on_train_start(self) -> None:
        """Takes over the seed of the run, unless it goes on from a checkpoint."""
        self._seed = torch.initial_seed() if self._seed is None else self._seed

    def on_train_epoch_start(self) -> None:
        """Seeds what networks draw in training (shifts, dropout), so that a resumed run draws the same."""
        assert self._seed is not None
        torch.manual_seed((self._seed + 1_000_003 * self.current_epoch + self.global_rank) % 2**63)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        image = self.net(batch.kspace, batch.mask, batch.maps)
        loss = image_loss(image, batch.target, batch.maximum, self.loss)
        self.log(
            "train/loss",
            loss.detach(),
            on_step=False,
            on_epoch=True,
            prog_bar=True,
            sync_dist=True,
            batch_size=len(batch.target),
        )
        if not loss.requires_grad:
            # Scans of other sizes than the transforms of a network that consists of them teach it nothing. A loss of
            # gradient zero, rather than none, keeps processes that train together in step.
            loss = loss + 0 * sum(p.sum() for p in self.net.parameters() if p.requires_grad)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leaves the stages alone that are not to learn yet.

        Their gradients are dropped rather than never computed: processes that train together agree at the start on
        what has a gradient.
        """
        if not self.unlock:
            return
        done = self.global_step / max(int(self.trainer.estimated_stepping_batches), 1)
        locked = [stage for stage, at in zip(self.net.stages()[1:], self.unlock, strict=True) if done < at]
        for parameter in (p for stage in locked for p in stage):
            parameter.grad = None

    def on_train_epoch_end(self) -> None:
        """Stops a training that has diverged, which would otherwise run on for hours."""
        loss = self.trainer.callback_metrics.get("train/loss")
        if loss is not None:
            self._check_finite("the loss", loss.item())

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise InputError(
                f"{what} is {value} in epoch {self.current_epoch}; lower the learning rate "
                f"({self.optimization.learning_rate}) or set trainer.gradient_clip_val"
            )

    def on_validation_epoch_start(self) -> None:
        """Forgets the slices of the epoch before."""
        self._slices = []
        self._pictures = {}

    def on_test_epoch_start(self) -> None:
        """As in validation."""
        self.on_validation_epoch_start()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keeps the sums of each slice until its volume is complete."""
        image = self._score(batch)
        for i, name in enumerate(batch.name):
            energy = float(batch.target[i].square().sum())  # of a volume the slice with most in it is shown
            if energy > self._pictures[name][0] if name in self._pictures else len(self._pictures) < N_PICTURES:
                self._pictures[name] = energy, _strip(batch, image, i).cpu()

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As in validation."""
        self._score(batch)

    def _score(self, batch: Batch) -> Tensor:
        image = compared(self.net(batch.kspace, batch.mask, batch.maps), batch.target)
        self._slices += zip(_places(batch), score_slices(image, batch.target, batch.maximum), strict=True)
        return image

    def on_validation_epoch_end(self) -> None:
        """Logs the scores of the volumes."""
        self._log_scores("val")
        self._show()

    def on_test_epoch_end(self) -> None:
        """Logs the scores of the volumes."""
        self._log_scores("test")

    def _log_scores(self, part: str) -> None:
        volumes = list(score_volumes(gather(self._slices, self.trainer.world_size)).values())
        for metric in ("nmse", "psnr", "ssim") if volumes else ():
            mean = sum(getattr(volume, metric) for volume in volumes) / len(volumes)
            # every process has all volumes, so that their mean over processes is the same number
            value = torch.tensor(mean, dtype=torch.float32, device=self.device)
            self.log(f"{part}/{metric}", value, prog_bar=metric == "nmse", sync_dist=True)
            if (
                metric == "nmse" and self.trainer.state.fn == "fit"
            ):  # the weights of the epoch's last step, unseen above
                self._check_finite(f"{part}/nmse", mean)

    def _show(self) -> None:
        """Adds the slices of the first volumes to the logs that take pictures."""
        found = gather([(name, *rest) for name, rest in self._pictures.items()], self.trainer.world_size)
        # a volume may be spread over processes: of its pictures the one with the largest energy comes last and stays
        strips = {name: strip for name, _, strip in sorted(found, key=lambda item: item[:2])}
        for logger in self.trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and self.trainer.is_global_zero:
                for name, strip in list(strips.items())[:N_PICTURES]:
                    logger.experiment.add_image(f"val/{name}", strip, self.global_step, dataformats="HW")

    def configure_callbacks(self) -> list[L.Callback]:
        """Weight averaging where asked for."""
        from sciml_monarch.averaging import Averaging

        return [] if self.ema_decay is None else [Averaging(self.ema_decay)]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam with a parameter group without weight decay for the transforms."""
        return make_optimizer(self, self.net.transform_parameters(), self.optimization)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses to go on from a checkpoint of another network or schedule, or with averaging switched on or off.

        Raises:
            InputError: Schedule, network, arguments or averaging differ from those of the checkpoint.
        """
        theirs, ours = checkpoint[CHECKPOINT_KEY], recon_config(self.net)
        for key in ("net", "arguments"):
            if theirs[key] != ours[key]:
                raise InputError(f"a checkpoint of another network: its {key} is {theirs[key]}, not {ours[key]}")
        if ("current_model_state" in checkpoint) != (self.ema_decay is not None):
            raise InputError(
                f"ema_decay is {self.ema_decay}, but the checkpoint was trained "
                f"{'without' if self.ema_decay is not None else 'with'} averaging; resume as it was started"
            )
        self._seed = checkpoint[SEED_KEY]
        go_on_with_schedule(checkpoint, self.optimization, self._trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what :func:`sciml_monarch.load` needs to rebuild the network."""
        checkpoint[CHECKPOINT_KEY] = recon_config(self.net)
        checkpoint[SEED_KEY] = self._seed


def gather(items: list[Any], world_size: int) -> list[Any]:
    """Joins the lists of all processes, in each of them."""
    if world_size == 1:
        return items
    lists: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(lists, items)
    return [item for part in lists for item in part]


def _places(batch: Batch) -> list[Place]:
    return list(zip(batch.name, batch.index.tolist(), strict=True))


@torch.no_grad()
def _strip(batch: Batch, image: Tensor, i: int) -> Tensor:
    """Zero-filled image, reconstruction, target and five times the error side by side, ``(h, 4 w)`` from 0 to 1."""
    target = batch.target[i]
    input_ = center_crop(rss(batch.kspace[i : i + 1])[0], (target.shape[0], target.shape[1]))
    panels = torch.cat([input_, image[i], target, 5 * (image[i] - target).abs()], dim=1)
    return (panels.float() / target.max().clamp_min(torch.finfo(torch.float32).tiny)).nan_to_num(0, 1, 0).clamp(0, 1)
