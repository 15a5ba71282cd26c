"""Adam, its schedule and its parameter groups: the same for every task."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import lightning as L
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR

from sciml_monarch.errors import InputError


@dataclass(frozen=True)
class Optimization:
    """Adam and its schedule.

    Attributes:
        learning_rate: Rate at the start.
        weight_decay: L2 penalty of Adam; transforms get none.
        schedule: ``cosine`` falls to zero at the last step, ``step`` multiplies by ``step_factor`` every
            ``step_epochs`` epochs, ``constant`` does neither.
        step_epochs: Epochs between two reductions.
        step_factor: Factor of a reduction.
        transform_rate: Learning rate of the transforms relative to the others.

    Raises:
        InputError: A number is out of range.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    step_epochs: int = 40
    step_factor: float = 0.1
    transform_rate: float = 1.0

    def __post_init__(self) -> None:
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


def make_optimizer(
    module: L.LightningModule, transforms: Iterable[nn.Parameter], options: Optimization
) -> OptimizerLRScheduler:
    """Makes Adam with a group of its own, without weight decay, for the parameters of learned transforms.

    Args:
        module: Task whose parameters are trained.
        transforms: Those of them that belong to transforms.
        options: Rates and schedule.

    Returns:
        What Lightning's ``configure_optimizers`` returns.
    """
    own = {id(p) for p in transforms}
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in own], "weight_decay": options.weight_decay},
        {
            "params": [p for p in trained if id(p) in own],
            "weight_decay": 0.0,
            "lr": options.learning_rate * options.transform_rate,
        },
    ]
    # it does not go with gradient clipping where gradients are scaled
    fused = _takes_fused(trained) and module.trainer.precision != "16-mixed"
    optimizer = Adam([g for g in groups if g["params"]], lr=options.learning_rate, fused=fused or None)
    if fused:  # else Lightning refuses to clip gradients in "bf16-mixed" too, where nothing scales them
        optimizer._step_supports_amp_scaling = False
    if options.schedule == "constant":
        return optimizer
    if options.schedule == "cosine":
        cosine = CosineAnnealingLR(optimizer, T_max=int(module.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}
    step = StepLR(optimizer, options.step_epochs, options.step_factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": step, "interval": "epoch"}}


def _takes_fused(trained: Iterable[nn.Parameter]) -> bool:
    """Fused Adam has no complex kernels."""
    return all(p.is_cuda and not p.is_complex() for p in trained)
