"""Averaged weights in a training: Lightning's moving average, and what it leaves to be mended."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class MovingAverage:
    """An exponential moving average of many tensors at once, that begins with fast steps.

    The decay is at most ``(1 + t) / (10 + t)`` after ``t`` steps, so that the average of a short training is not one
    of its start (as in TensorFlow's ``ExponentialMovingAverage``).

    Args:
        decay: Of the average at each step, once that is less.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay

    @torch.no_grad()
    def __call__(self, averages: list[Tensor], tensors: list[Tensor], n_averaged: Tensor) -> None:
        """Moves the averages towards the tensors.

        Args:
            averages: Moved in place.
            tensors: Of the same shapes and device, in any floating dtype.
            n_averaged: Steps before this one, on that device: nothing waits for it.
        """
        t = n_averaged.double()
        share = (1 - ((1 + t) / (10 + t)).clamp(max=self.decay)).to(averages[0].dtype.to_real())
        wide = [tensor.to(average.dtype) for average, tensor in zip(averages, tensors, strict=True)]
        moves = torch._foreach_sub(wide, averages)
        torch._foreach_mul_(moves, share)
        torch._foreach_add_(averages, moves)


class Averaging(WeightAveraging):
    """A :class:`MovingAverage` of the weights, which is validated and saved, and is the network after the fit.

    Lightning's own (2.6) leaves the weights of the last step in the task where a training that is resumed has no step
    left. And it swaps average and network for validation through the network's dtype, which rounds an average that is
    kept more exactly. And it keeps the average on the CPU, where the network is when Lightning sets callbacks up, so
    that every step waits for all weights to be copied there. Buffers are the network's, not averages of permutations.

    Args:
        decay: Of the average at each step.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(use_buffers=False, multi_avg_fn=MovingAverage(decay))
        self._exact: list[Tensor] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes the average to the network's device; the number of steps stays, so that nothing waits for it."""
        if self._average_model is not None:
            self._average_model.module.to(pl_module.device)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Puts the average into the network."""
        self._exact = [tensor.detach().clone() for tensor in self._averages()]
        super().on_validation_epoch_start(trainer, pl_module)

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Puts either back, as it was."""
        super().on_validation_epoch_end(trainer, pl_module)
        for tensor, exact in zip(self._averages(), self._exact, strict=True):
            tensor.copy_(exact)
        self._exact = []

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Puts the average into the network for good, also where nothing was left to train."""
        if self._average_model is not None:
            self._copy_average_to_current(pl_module)

    def _averages(self) -> list[Any]:
        return [] if self._average_model is None else list(self._average_model.module.parameters())
