"""Training of an operator by roll-out, as a Lightning module."""

import inspect
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from sciml_monarch import optimization
from sciml_monarch.errors import DivergedError, InputError
from sciml_monarch.hub import CHECKPOINT_KEY, load_surrogate, surrogate_config
from sciml_monarch.monarch.structure import follow_state_dicts
from sciml_monarch.optimization import go_on_with_schedule, make_optimizer
from sciml_monarch.pde.base import Operator
from sciml_monarch.pde.data import PairData, TrajectoryData
from sciml_monarch.pde.description import Description, first_number, origin
from sciml_monarch.pde.graph import GraphedLoss
from sciml_monarch.pde.metrics import relative_l2, relative_l2_per_step
from sciml_monarch.pde.precision import MatmulPrecision, ProductPrecision
from sciml_monarch.pde.rollout_training import generator_at, increment_scale, with_noise
from sciml_monarch.pde.surrogate import Surrogate
from sciml_monarch.pde.symmetry import SymmetryGroup

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Optimization(optimization.Optimization):
    """Optimizer and schedule, with the defaults of FNO's recipe."""

    weight_decay: float = 1e-4
    step_epochs: int = 100
    step_factor: float = 0.5


DEFAULT_OPTIMIZATION = Optimization()


class RolloutLoss(nn.Module):
    """Relative L2 error of each frame of a roll-out, averaged over frames and batch.

    That is the loss of FNO's released training, divided by the number of frames; gradients pass through the
    whole roll-out.
    """

    def __init__(self, surrogate: Surrogate) -> None:
        super().__init__()
        self.surrogate = surrogate

    def forward(self, history: Tensor, target: Tensor) -> Tensor:
        """Rolls out over the frames of ``target`` from ``history``; returns a scalar."""
        prediction = self.surrogate.rollout(history, target.shape[1])
        return relative_l2_per_step(prediction.float(), target).mean()


class PDETask(L.LightningModule):
    """Trains an operator to roll out trajectories, or to map one field to another.

    The checkpoint carries the network's class and arguments, the normalisation and the description of the data;
    :func:`sciml_monarch.load` needs nothing else.

    Args:
        net: The network.
        optimization: Optimiser and schedule.
        ema_decay: Decay per step of an exponential moving average of the weights, used in validation and saved as
            the weights of the checkpoint; ``None`` for no averaging.
        cuda_graph: Replay the loss and its gradient as one CUDA graph (one device, no gradient accumulation). Without a
            GPU it changes nothing, so that one configuration serves both.
        compile_net: Fuse the network's pointwise operations with ``torch.compile``; pays with ``cuda_graph``; compiles
            at the first step. Not for ``FNO``, whose FFTs are complex.
        symmetry: Symmetries of the equation; each trajectory of a batch is moved by a random one of them before the
            network sees it. For data of one scalar field. Validation and test data stay as they are.
        increment: Predict the change from the last frame instead of the frame (:class:`Surrogate`); for trajectories.
        noise: Standard deviation, in units of each field's own, of Gaussian noise on the known frames in training;
            the target stays, so that the network learns to correct errors of the size that it makes itself (F-FNO,
            Tran et al., ICLR 2023, section 3). See :func:`~sciml_monarch.pde.rollout_training.with_noise`.
        init_from: Checkpoint or folder of a network of the same class and arguments to begin from. Weights and
            normalisation are taken from there; optimiser, schedule, epochs and all other options are those of this
            training. It must be there on a resume too.
        matmul_precision: How float32 matrices are multiplied while this task is fitted, validated and tested, as in
            ``torch.set_float32_matmul_precision``: "high" is TF32 on a GPU. ``None``: as it is set.

    Raises:
        InputError: An option is out of range, or ``init_from`` holds another network.
    """

    MONITORS: ClassVar = {"val/relative_l2": "min"}

    def __init__(
        self,
        net: Operator,
        optimization: Optimization = DEFAULT_OPTIMIZATION,
        ema_decay: float | None = None,
        cuda_graph: bool = False,
        compile_net: bool = False,
        symmetry: SymmetryGroup | None = None,
        increment: bool = False,
        noise: float = 0.0,
        init_from: str | Path | None = None,
        matmul_precision: MatmulPrecision | None = None,
    ) -> None:
        super().__init__()
        if matmul_precision not in (None, "highest", "high", "medium"):
            raise InputError(f'matmul_precision {matmul_precision!r} is none of "highest", "high", "medium"')
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise InputError(f"ema_decay is {ema_decay}; it must lie between 0 and 1")
        if not 0 <= noise < math.inf:
            raise InputError(f"noise is {noise}; it must be a standard deviation, 0 or more and finite")
        self.surrogate = Surrogate(net, increment=increment)
        self.optimization = optimization
        self.ema_decay = ema_decay
        self.cuda_graph = cuda_graph
        self.compile_net = compile_net
        self.symmetry = symmetry
        self.noise = noise
        self.init_from = init_from
        self.matmul_precision = matmul_precision
        self._n_trained: int | None = None
        # asked before the precision plugin converts the parameters
        self._is_complex = any(p.is_complex() for p in net.parameters())
        # a plain attribute: the loss shares the surrogate's parameters, which are registered once
        self._loss = GraphedLoss(RolloutLoss(self.surrogate)) if cuda_graph else None
        follow_state_dicts(self)
        if init_from is not None:
            self._begin_from(init_from)

    def _begin_from(self, path: str | Path) -> None:
        """Takes weights, normalisation and description of a trained network.

        Raises:
            InputError: It cannot be loaded, or class, arguments or ``increment`` are not those of this network.
        """
        theirs = load_surrogate(path)
        for name, their, our in (
            ("class", type(theirs.net).__name__, type(self.network).__name__),
            ("arguments", theirs.net.config, self.network.config),
            ("increment", theirs.increment_scale is not None, self.surrogate.increment_scale is not None),
        ):
            if their != our:
                raise InputError(f"{path}: init_from is of another network: its {name} is {their}, not {our}")
        # through the task, which takes on the Monarch layers of the state
        self.load_state_dict({f"surrogate.{name}": value for name, value in theirs.state_dict().items()})
        self.surrogate.describe(theirs.description)

    @property
    def network(self) -> Operator:
        """The network: what sparse training converts."""
        return self.surrogate.net

    def on_network_change(self) -> None:
        """Captures and compiles anew after layers of the network were replaced."""
        if self.cuda_graph:
            self._loss = GraphedLoss(RolloutLoss(self.surrogate))
        if self.compile_net:
            self.surrogate.net.compile()

    def train_on_first(self, n_steps: int | None) -> None:
        """Lets the training loss cover the first target frames only; the roll-out ends there too.

        Validation and test keep their whole length. :class:`~sciml_monarch.pde.rollout_training.RolloutCurriculum`
        calls this in the course of a training, which begins with all of them.

        Args:
            n_steps: How many; ``None``: all.

        Raises:
            InputError: The targets have fewer frames.
        """
        length = self.surrogate.description.n_steps
        if n_steps is not None and not 1 <= n_steps <= length:
            raise InputError(f"a loss on the first {n_steps} frames: the data has n_steps {length}; take 1 to {length}")
        if n_steps == self._n_trained:
            return
        self._n_trained = n_steps
        if self.cuda_graph:
            for parameter in self.parameters():  # gradients lie in the memory of the graph that goes
                parameter.grad = None
            self._loss = GraphedLoss(RolloutLoss(self.surrogate))

    def setup(self, stage: str) -> None:
        """Takes description and normalisation from the data; the latter is kept with ``init_from``."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, TrajectoryData | PairData):
            raise InputError(f"PDETask trains on TrajectoryData or PairData, not on {type(data).__name__}")
        if self.surrogate.increment_scale is not None and isinstance(data, PairData):
            raise InputError("increments are changes from frame to frame, which pairs lack; set increment to false")
        if self.init_from is not None:
            self._check_same_fields(data.description)
        self.surrogate.describe(data.description)
        if self.symmetry is not None:
            if isinstance(data, PairData):
                raise InputError("symmetry moves trajectories; inputs and targets of pairs may change in other ways")
            self.symmetry.check_data(data.description)
        if self.compile_net:
            self.surrogate.net.compile()
        if stage == "fit":
            self._warn_of_another_grid(data.description.grid)
            self.train_on_first(None)  # whatever an earlier training ended with
            if self.init_from is None:  # else the weights are of use with their own normalisation alone
                self._normalize_for(data)
            if self._is_complex and self.trainer.precision not in ("32-true", "64-true", "bf16-mixed"):
                name = type(self.surrogate.net).__name__
                raise InputError(
                    f"{name} has complex parameters, which do not exist in {self.trainer.precision}; "
                    "use bf16-mixed or 32"
                )
            if self.cuda_graph and (self.trainer.world_size > 1 or self.trainer.accumulate_grad_batches > 1):
                raise InputError("cuda_graph needs one device and no gradient accumulation; switch one of them off")

    def _warn_of_another_grid(self, grid: tuple[int, ...]) -> None:
        own = self.surrogate.net.config.get("grid")
        if own is not None and tuple(own) != tuple(grid):
            rank_zero_warn(
                f"the network is made for a grid of {' x '.join(map(str, own))} points, but the data has "
                f"{' x '.join(map(str, grid))}: it is trained through an interpolation; give it the grid of the data"
            )

    def _normalize_for(self, data: TrajectoryData | PairData) -> None:
        statistics = data.statistics()
        if isinstance(data, PairData):
            self.surrogate.set_normalization(*statistics, *data.target_statistics())
        elif self.surrogate.increment_scale is None:
            self.surrogate.set_normalization(*statistics, *statistics)
        else:
            self.surrogate.set_normalization(*statistics, *statistics, increment_scale(data))

    def _check_same_fields(self, new: Description) -> None:
        """Refuses data whose frames are not those of the network that the training begins from."""
        old = self.surrogate.description
        for name in ("fields", "units", "n_history"):
            if getattr(old, name) != getattr(new, name):
                raise InputError(
                    f"{self.init_from}: init_from was trained on {name} {getattr(old, name)}, "
                    f"but the data has {getattr(new, name)}"
                )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch ``(history, target)``."""
        history, target = self._moved(batch, batch_idx)
        history = self._noisy(history, batch_idx)
        if self._n_trained is not None:
            target = target[:, : self._n_trained]
        loss = self._loss(history, target) if self._loss else RolloutLoss(self.surrogate)(history, target)
        self.log(
            "train/loss",
            loss.detach(),
            on_step=False,
            on_epoch=True,
            prog_bar=True,
            sync_dist=True,
            batch_size=len(history),
        )
        return loss

    def _moved(self, batch: Batch, batch_idx: int) -> Batch:
        """The batch with each trajectory moved by a symmetry, drawn anew in each epoch."""
        history, target = batch
        if self.symmetry is None:
            return batch
        drawn = self.symmetry.draw(len(history), history.shape[3:], self._generator("symmetry", batch_idx))
        moved = self.symmetry.apply(torch.cat([history, target], 1), *drawn)
        return moved[:, : history.shape[1]], moved[:, history.shape[1] :]

    def _noisy(self, history: Tensor, batch_idx: int) -> Tensor:
        """The known frames with noise, drawn anew in each epoch."""
        if self.noise == 0:
            return history
        generator = self._generator("noise", batch_idx, history.device)
        return with_noise(history, self.noise * self.surrogate.input_std, generator)

    def _generator(self, purpose: str, batch_idx: int, device: torch.device | str = "cpu") -> torch.Generator:
        """One for each batch: a training that is resumed draws what one without a break draws."""
        place = purpose, torch.initial_seed(), self.current_epoch, batch_idx, self.global_rank
        return generator_at(*place, device=device)

    def on_train_epoch_end(self) -> None:
        """Stops a training that has diverged, which would otherwise run on for hours."""
        loss = self.trainer.callback_metrics.get("train/loss")
        if loss is not None and not torch.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss.item()} in epoch {self.current_epoch}; lower the learning rate "
                f"({self.optimization.learning_rate}) or set trainer.gradient_clip_val"
            )

    def _evaluate(self, batch: Batch, part: str) -> None:
        history, target = batch
        prediction = self.surrogate.rollout(history, target.shape[1])
        self.log(
            f"{part}/relative_l2",
            relative_l2(prediction.float(), target).mean(),
            on_epoch=True,
            prog_bar=True,
            sync_dist=True,
            batch_size=len(history),
        )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Relative L2 of the whole trajectory, the FNO paper's metric."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As in validation; of several test sets each has its own value."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Roll-out of the batch's length in physical units."""
        return self.surrogate.rollout(batch[0], batch[1].shape[1])

    def configure_callbacks(self) -> list[L.Callback]:
        """Weight averaging and a precision of products where asked for."""
        from sciml_monarch.averaging import Averaging

        averaging = [] if self.ema_decay is None else [Averaging(self.ema_decay)]
        precision = [] if self.matmul_precision is None else [ProductPrecision(self.matmul_precision)]
        return [*precision, *averaging]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, with a parameter group without weight decay for the transform factors."""
        return make_optimizer(self, self.surrogate.net.transform_parameters(), self.optimization)

    def _refuse_other_data(self, theirs: Description) -> None:
        """Refuses to go on with other data than a training was started with, whose normalisation it would keep."""
        ours = self.surrogate.description
        found: dict[str, tuple[Any, Any]] = {
            name: (getattr(theirs, name), getattr(ours, name))
            for name in ("fields", "units", "grid", "lengths", "dt", "n_history", "n_steps")
        }
        both = (theirs.attributes, ours.attributes)
        found["attributes"] = origin(both[0]), origin(both[1])
        # some came later; what only the test is made of may change
        known = {"n_trajectories", "n_train", "n_test"} & theirs.split.keys() & ours.split.keys()
        found["split"] = {k: theirs.split[k] for k in known}, {k: ours.split[k] for k in known}
        if "n_trajectories" in known:
            their_first, our_first = (first_number(d.attributes, d.split["n_trajectories"]) for d in (theirs, ours))
            found["first trajectory"] = their_first, our_first
        for name, (their, our) in found.items():
            if isinstance(their, dict) and isinstance(our, dict):
                # as texts: what is no number is not equal to itself
                different = [k for k in their.keys() | our.keys() if repr(their.get(k)) != repr(our.get(k))]
                their, our = ({k: side.get(k) for k in sorted(different)} for side in (their, our))
            if their != our:
                raise InputError(
                    f"the checkpoint was trained on data with {name} {their}, but this has {our}; resume as it was "
                    "started"
                )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses to go on as another training than was started.

        Raises:
            InputError: Schedule, data, network, arguments, averaging or ``increment`` differ from those of the
                checkpoint.
        """
        theirs, ours = checkpoint[CHECKPOINT_KEY], surrogate_config(self.surrogate)
        known = {name: p.default for name, p in inspect.signature(type(self.network)).parameters.items()}
        later = {name: known.get(name) for name in ours["arguments"].keys() - theirs["arguments"].keys()}
        theirs = theirs | {"arguments": later | theirs["arguments"]}  # arguments that came after the checkpoint
        for key in ("net", "arguments"):
            if theirs[key] != ours[key]:
                raise InputError(f"a checkpoint of another network: its {key} is {theirs[key]}, not {ours[key]}")
        increments = "surrogate.increment_scale" in checkpoint["state_dict"]
        if increments != (self.surrogate.increment_scale is not None):
            raise InputError(
                f"increment is {not increments}, but the checkpoint's network predicts "
                f"{'increments' if increments else 'frames'}; resume as it was started"
            )
        if ("current_model_state" in checkpoint) != (self.ema_decay is not None):
            raise InputError(
                f"ema_decay is {self.ema_decay}, but the checkpoint was trained "
                f"{'without' if self.ema_decay is not None else 'with'} averaging; resume as it was started"
            )
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            self._refuse_other_data(Description.from_dict(checkpoint[CHECKPOINT_KEY]["description"]))
        go_on_with_schedule(checkpoint, self.optimization, self._trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what :func:`sciml_monarch.load` needs to rebuild the network."""
        checkpoint[CHECKPOINT_KEY] = surrogate_config(self.surrogate)
