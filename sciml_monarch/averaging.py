"""Averaged weights in a training: Lightning's moving average, and what it leaves to be mended."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


@torch.no_grad()
def move_average(averages: Sequence[Tensor], tensors: Sequence[Tensor], n_averaged: int, decay: float) -> None:
    """One step of an exponential moving average, which begins with fast steps.

    The decay is at most ``(1 + t) / (10 + t)`` after ``t`` steps, so that the average of a short training is not one
    of its start (as in TensorFlow's ``ExponentialMovingAverage``). The first step takes over the tensors.

    Args:
        averages: Moved in place.
        tensors: What they are averages of, of the same shapes, on the same device, in any floating or complex dtype.
        n_averaged: Steps before this one, ``t``.
        decay: Of the average at each step, once that is less.
    """
    wide = [tensor.detach().to(average.dtype) for average, tensor in zip(averages, tensors, strict=True)]
    kept = min(decay, (1 + n_averaged) / (10 + n_averaged)) if n_averaged else 0.0
    torch._foreach_lerp_([average.detach() for average in averages], wide, 1 - kept)


class Averaging(WeightAveraging):
    """An exponential moving average of the weights, which is validated and saved, and is the network after the fit.

    See :func:`move_average`.

    Lightning's own (2.6) leaves the weights of the last step in the task where a training that is resumed has no step
    left. And it swaps average and network for validation through the network's dtype, which rounds an average that is
    kept more exactly. And it keeps the average on the CPU, where the network is when Lightning sets callbacks up, so
    that every step waits for all weights to be copied there. Buffers are the network's, not averages of permutations.

    Args:
        decay: Of the average at each step.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(use_buffers=False)
        self._decay = decay
        self._exact: list[Tensor] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes the average to the network's device, and the number of steps to the CPU: nothing waits for it."""
        if self._average_model is not None:
            self._average_model.module.to(pl_module.device)
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the average where the batch ended with a step of the optimiser."""
        if self._average_model is None or trainer.global_step <= self._latest_update_step:
            return
        n_averaged = self._average_model.n_averaged
        move_average(self._averages(), [*pl_module.parameters()], int(n_averaged), self._decay)
        n_averaged += 1
        self._latest_update_step = trainer.global_step

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Puts the average into the network."""
        self._take_buffers(pl_module)
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
            self._take_buffers(pl_module)
            self._copy_average_to_current(pl_module)
            self._average_model.module.cpu()  # where the network is by now

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Saves the average as the weights, with the network's buffers."""
        self._take_buffers(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    @torch.no_grad()
    def _take_buffers(self, network: L.LightningModule) -> None:
        """Copies the network's buffers where the average is used: not in every step, in which they do not change."""
        if self._average_model is not None:
            for average, own in zip(self._average_model.module.buffers(), network.buffers(), strict=True):
                average.copy_(own)

    def _averages(self) -> list[Any]:
        return [] if self._average_model is None else list(self._average_model.module.parameters())
