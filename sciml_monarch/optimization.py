"""Adam, Muon or SOAP, schedule and parameter groups: the same for every task."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR, StepLR

from sciml_monarch.errors import InputError
from sciml_monarch.matrix_optimizer import MatrixOptimizer, hidden_matrices
from sciml_monarch.muon import Muon
from sciml_monarch.pde.base import Operator
from sciml_monarch.soap import Soap

OptimizerName = Literal["adam", "muon", "soap"]
OF_MATRICES: dict[str, type[Muon | Soap]] = {"muon": Muon, "soap": Soap}


@dataclass(frozen=True)
class Optimization:
    """Optimizer and schedule.

    Attributes:
        learning_rate: Rate at the start, or behind the warm-up.
        weight_decay: L2 penalty of Adam, decoupled decay of Muon's and SOAP's matrices; transforms get none.
        schedule: ``cosine`` falls to zero at the last step, ``step`` multiplies by ``step_factor`` every
            ``step_epochs`` epochs, ``constant`` does neither.
        step_epochs: Epochs between two reductions.
        step_factor: Factor of a reduction.
        warmup: Share of all steps in which the rate rises linearly before the schedule begins; not with ``step``. The
            first steps of Adam change every parameter by the whole rate, however small its gradient: what was trained
            before would be lost.
        transform_rate: Learning rate of the transforms relative to the others.
        optimizer: "adam"; or "muon" (:class:`~sciml_monarch.muon.Muon`) or "soap" (:class:`~sciml_monarch.soap.Soap`)
            for the matrices between hidden channels of a neural operator, with steps of the size of Adam's, and Adam
            for the other parameters.

    Raises:
        InputError: A number is out of range, there is no such optimizer, or warm-up is asked for with ``step``.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    step_epochs: int = 40
    step_factor: float = 0.1
    warmup: float = 0.0
    transform_rate: float = 1.0
    optimizer: OptimizerName = "adam"

    def __post_init__(self) -> None:
        if self.optimizer not in get_args(OptimizerName):
            names = ", ".join(get_args(OptimizerName))
            raise InputError(f"optimizer is {self.optimizer!r}; it must be one of {names}")
        numbers = (self.learning_rate, self.weight_decay, self.transform_rate)
        if not all(map(math.isfinite, numbers)) or self.learning_rate <= 0 or min(numbers) < 0:
            raise InputError(
                f"learning_rate {self.learning_rate} must be positive, weight_decay {self.weight_decay} and "
                f"transform_rate {self.transform_rate} not negative, all finite"
            )
        if self.step_epochs < 1:
            raise InputError(f"step_epochs is {self.step_epochs}; it must be 1 or more")
        if not 0 < self.step_factor < math.inf:
            raise InputError(f"step_factor is {self.step_factor}; it must be positive and finite")
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup is {self.warmup}; it must be a share of the steps, 0 or more and less than 1")
        if self.warmup and self.schedule == "step":
            raise InputError("warmup goes with the schedules cosine and constant, not with step")


def make_optimizer(
    module: L.LightningModule, transforms: Iterable[nn.Parameter], options: Optimization
) -> OptimizerLRScheduler:
    """Makes the optimizer with a group of its own, without weight decay, for the parameters of learned transforms.

    Args:
        module: Task whose parameters are trained.
        transforms: Those of them that belong to transforms.
        options: Optimizer, rates and schedule.

    Returns:
        What Lightning's ``configure_optimizers`` returns.

    Raises:
        InputError: Muon or SOAP is asked for, and the network is not a neural operator; or the schedule needs a number
            of steps, and the training has none.
    """
    own = {id(p) for p in transforms}
    trained = [p for p in module.parameters() if p.requires_grad]
    make = _adam if options.optimizer == "adam" else _of_matrices
    optimizer = make(module, trained, own, options)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]  # as schedules note it: a checkpoint tells it apart from what came of it
    optimizer.register_load_state_dict_pre_hook(_refuse_another)
    schedule = _of_steps(module, optimizer, options)
    if schedule is not None:
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
    if options.schedule == "constant":
        return optimizer
    step = StepLR(optimizer, options.step_epochs, options.step_factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": step, "interval": "epoch"}}


def _of_steps(module: L.LightningModule, optimizer: Optimizer, options: Optimization) -> LRScheduler | None:
    """What changes the rate at every step, if anything does."""
    if not options.warmup and options.schedule != "cosine":
        return None
    if not math.isfinite(module.trainer.estimated_stepping_batches):
        raise InputError("cosine and warmup follow the steps of the whole training: give max_epochs or max_steps")
    steps = int(module.trainer.estimated_stepping_batches)
    warmup = min(max(1, math.floor(options.warmup * steps)), steps - 1) if options.warmup else 0
    later = CosineAnnealingLR(optimizer, T_max=steps - warmup) if options.schedule == "cosine" else None
    if not warmup:
        return later
    rising = LinearLR(optimizer, 1 / (warmup + 1), 1.0, warmup)
    return rising if later is None else SequentialLR(optimizer, [rising, later], [warmup])


def _adam(module: L.LightningModule, trained: list[nn.Parameter], own: set[int], options: Optimization) -> Optimizer:
    # it does not go with gradient clipping where gradients are scaled
    fused = _takes_fused(trained) and module.trainer.precision != "16-mixed"
    optimizer = Adam(_groups(trained, own, options), lr=options.learning_rate, fused=fused or None)
    if fused:  # else Lightning refuses to clip gradients in "bf16-mixed" too, where nothing scales them
        optimizer._step_supports_amp_scaling = False
    return optimizer


def _of_matrices(
    module: L.LightningModule, trained: list[nn.Parameter], own: set[int], options: Optimization
) -> MatrixOptimizer:
    net = getattr(module, "network", module)
    if not isinstance(net, Operator):  # first and last layers are not known of others
        raise InputError(
            f"optimizer is {options.optimizer}, but {type(net).__name__} is not a neural operator; take adam"
        )
    matrices = {p: layout for p, layout in hidden_matrices(net).items() if p.requires_grad and id(p) not in own}
    others = [p for p in trained if p not in matrices]
    return OF_MATRICES[options.optimizer](
        matrices,
        _groups(others, own, options),
        options.learning_rate,
        options.weight_decay,
        fused=_takes_fused(others) or None,  # Lightning scales and clips gradients for this one, not for its Adam
    )


def _refuse_another(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Refuses to go on from the state of another optimizer, which its groups tell."""

    def name(groups: list[dict[str, Any]]) -> str:
        of_matrices = [group for group in groups if group.get("layout")]
        return ("muon" if "momentum" in of_matrices[0] else "soap") if of_matrices else "adam"

    ours, theirs = name(optimizer.param_groups), name(state["param_groups"])
    if ours != theirs:
        raise InputError(f"optimizer is {ours}, but the checkpoint was trained with {theirs}; resume as it was started")
    # what the checkpoint has would silently take the place of what is asked for
    for own, other in zip(optimizer.param_groups, state["param_groups"], strict=False):
        for what, key in (("learning rate", "initial_lr"), ("weight_decay", "weight_decay")):
            if key in own and key in other and not math.isclose(own[key], other[key], rel_tol=1e-9):
                raise InputError(
                    f"{what} is {own[key]:g}, but the checkpoint was trained with {other[key]:g}; resume as it was "
                    "started"
                )


def go_on_with_schedule(checkpoint: dict[str, Any], options: Optimization, trainer: L.Trainer | None) -> None:
    """Lets the schedule of a checkpoint go on to the end of a training, which may have another number of steps.

    A cosine goes on as that of a training that was begun with as many steps: PyTorch would take it to zero at the end
    of the first one, and up again behind it. A warm-up keeps its length.

    Args:
        checkpoint: As Lightning loads it, changed in place; of one that has weights only nothing is asked.
        options: Of the training that is to go on.
        trainer: What trains; ``None`` or one that does not train: only the kind of the schedule is checked.

    Raises:
        InputError: One rises first and the other does not, what follows differs, or an epoch has another number of
            steps, of which a cosine would not end with the training.
    """
    if "lr_schedulers" not in checkpoint:
        return
    theirs = [_kind(state) for state in checkpoint["lr_schedulers"]] or ["constant"]
    ours = options.schedule + " with warmup" * bool(options.warmup)
    if theirs != [ours]:
        raise InputError(
            f"the schedule is {ours}, but the checkpoint was trained with {theirs[0]}; resume as it was started"
        )
    if options.schedule != "cosine" or trainer is None or trainer.state.fn != TrainerFn.FITTING:
        return
    steps = trainer.estimated_stepping_batches
    if not math.isfinite(steps):
        return  # which the schedule refuses when it is made
    theirs_of_epoch = _steps_of_epoch(checkpoint)
    if trainer.max_steps == -1 and trainer.max_epochs and theirs_of_epoch is not None:
        of_epoch = steps / trainer.max_epochs
        if of_epoch != theirs_of_epoch:
            raise InputError(
                f"an epoch has {of_epoch:g} steps, but the checkpoint's had {theirs_of_epoch}; resume with the "
                "batches and trajectories that it was started with"
            )
    _stretch(checkpoint["lr_schedulers"][0], checkpoint["optimizer_states"][0]["param_groups"], int(steps))


def _steps_of_epoch(checkpoint: dict[str, Any]) -> int | None:
    """Steps of the optimizer in an epoch of a training that was stopped behind one; else it is not known."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    steps, rest = divmod(checkpoint["global_step"], checkpoint["epoch"] + 1)
    return steps if progress["is_last_batch"] and not rest else None


def _stretch(schedule: dict[str, Any], groups: list[dict[str, Any]], steps: int) -> None:
    """Changes the state of a cosine, and the rates it has come to, to those of a training of so many steps."""
    cosine, warmup = schedule, 0
    if "_schedulers" in schedule:
        cosine, warmup = schedule["_schedulers"][1], schedule["_milestones"][0]
    done = schedule["last_epoch"]
    if steps - warmup == cosine["T_max"] or steps <= max(done, warmup):
        return
    cosine["T_max"] = steps - warmup
    if done < warmup:
        return
    share = (1 + math.cos(math.pi * (done - warmup) / cosine["T_max"])) / 2
    rates = [share * base for base in cosine["base_lrs"]]
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
    for state in (schedule, cosine):
        state["_last_lr"] = rates


def _kind(schedule: dict[str, Any]) -> str:
    """What schedule a state is of."""
    for mark, kind in (
        ("_schedulers", "cosine with warmup"),
        ("T_max", "cosine"),
        ("total_iters", "constant with warmup"),
        ("step_size", "step"),
    ):
        if mark in schedule:
            return kind
    return "another"


def _groups(trained: list[nn.Parameter], own: set[int], options: Optimization) -> list[dict[str, Any]]:
    """The groups of Adam that have parameters: all but the transforms, then these."""
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if id(p) not in own], "weight_decay": options.weight_decay},
        {
            "params": [p for p in trained if id(p) in own],
            "weight_decay": 0.0,
            "lr": options.learning_rate * options.transform_rate,
        },
    ]
    return [group for group in groups if group["params"]]


def _takes_fused(trained: Iterable[nn.Parameter]) -> bool:
    """Fused Adam has no complex kernels."""
    return all(p.is_cuda and not p.is_complex() for p in trained)
