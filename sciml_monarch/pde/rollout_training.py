"""Ways to train a roll-out besides its whole length from the start: noise, increments, a growing length.

A network that is trained on single steps meets its own errors only in use. Noise on the inputs stands in for them
(F-FNO, Tran et al., ICLR 2023, section 3; MeshGraphNets, Pfaff et al., ICLR 2021); a roll-out whose length
grows in the course of the training leads over to the real ones (GraphCast, Lam et al., Science 2023). In a YAML::

    trainer:
      callbacks:
        - class_path: RolloutCurriculum
          init_args: {steps: [1, 2, 5, 10], at: [0.0, 0.2, 0.5, 0.8]}
"""

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import lightning as L
import torch
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.pde.data import TrajectoryData
from sciml_monarch.pde.windows import Windows


def generator_at(*place: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Generator whose draws depend on what is given and on the kind of device, and on nothing that ran before.

    Args:
        place: For example purpose, seed, epoch, batch and rank.
        device: That it draws for.
    """
    # a hash, as torch's generator on the CPU takes no more than the lowest 32 bits of a seed
    digest = hashlib.blake2b(repr(place).encode(), digest_size=4).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big"))


def with_noise(history: Tensor, std: Tensor, generator: torch.Generator) -> Tensor:
    """Adds Gaussian noise to known frames, independent at each point, frame and field.

    Args:
        history: ``(b, n_history, c, *grid)``.
        std: Standard deviation of the noise for each field of each frame, ``(n_history * c,)``, in the units of
            ``history``.
        generator: On the device of ``history``: a CPU takes longer to draw so many numbers than a GPU to train on them.

    Returns:
        The frames with noise, of the same shape.
    """
    draws = torch.randn(history.shape, generator=generator, device=history.device, dtype=history.dtype)
    return history + draws * std.view(*history.shape[1:3], *(1,) * (history.ndim - 3))


def increment_scale(data: TrajectoryData) -> Tensor:
    """Root mean square of the change from one frame to the next, over the training part.

    The mean of the changes is not taken off: so an output of zero is persistence.

    Args:
        data: Trajectories; each two successive frames that a training window uses count once.

    Returns:
        One scale for each field ``(c,)``, in its units, float32; 1 for a field that never changes.

    Raises:
        InputError: There are no training trajectories.
    """
    windows = data.train_dataloader().dataset
    assert isinstance(windows, Windows)
    total = torch.zeros(windows.shape[0], dtype=torch.float64)
    for row in range(len(windows.trajectories)):
        change = windows.frames(row).double().diff(dim=0)  # (time - 1, c, *grid)
        total += change.square().movedim(1, 0).flatten(1).mean(1)
    scale = (total / len(windows.trajectories)).sqrt().float()
    return torch.where(scale > 0, scale, torch.ones_like(scale))


class RolloutCurriculum(L.Callback):
    """Lets the roll-out that is trained on grow in the course of a training.

    The training loss covers the first ``steps[i]`` target frames from epoch ``round(at[i] * max_epochs)`` on, at the
    latest from the last epoch on. Validation and test have the whole length throughout, and so has ``n_steps`` of the
    checkpoints. The length follows from the epoch alone: a training that is resumed goes on with the right one. A
    CUDA graph is captured anew at each change.

    Args:
        steps: Frames of each stage, between 1 and the data's ``n_steps``.
        at: Where the stages begin, as fractions of the training's epochs: the first is 0, each is greater than the
            one before, and all are less than 1.

    Raises:
        InputError: There is no stage, the lists are not of one length, a number of frames is less than 1, or the
            fractions are not as they should be.
    """

    def __init__(self, steps: Sequence[int], at: Sequence[float]) -> None:
        if not steps or len(steps) != len(at):
            raise InputError(
                f"a curriculum of {len(steps)} steps {list(steps)} at {len(at)} fractions {list(at)}: give as many of "
                "one as of the other, 1 or more"
            )
        if min(steps) < 1:
            raise InputError(f"steps {list(steps)}: a stage has {min(steps)} frames; it must be 1 or more")
        if not all(0 <= a < 1 for a in at):
            raise InputError(f"at {list(at)}: each must be a fraction of the epochs, from 0 to less than 1")
        if at[0] != 0:
            raise InputError(f"at {list(at)}: the first stage must begin at 0, not at {at[0]}")
        for before, after in pairwise(at):
            if after <= before:
                raise InputError(f"at {list(at)}: {after} follows {before}; each must be greater than the one before")
        self.steps = tuple(steps)
        self.at = tuple(at)

    def n_steps(self, epoch: int, max_epochs: int) -> int:
        """Frames that the loss covers.

        Args:
            epoch: Which epoch, from 0.
            max_epochs: Epochs of the training.
        """
        begun = [
            n for n, at in zip(self.steps, self.at, strict=True) if min(round(at * max_epochs), max_epochs - 1) <= epoch
        ]
        return begun[-1]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Checks the curriculum against task, training and data.

        Raises:
            InputError: The task is no ``PDETask``, the training has no number of epochs, or a stage has more frames
                than the targets.
        """
        from sciml_monarch.pde.task import PDETask  # which imports this module

        if not isinstance(pl_module, PDETask):
            raise InputError(f"RolloutCurriculum is for roll-outs of PDETask, not for {type(pl_module).__name__}")
        if trainer.max_epochs is None or trainer.max_epochs < 1:
            raise InputError(
                f"RolloutCurriculum needs the number of epochs, but max_epochs is {trainer.max_epochs}; set it"
            )
        length = pl_module.surrogate.description.n_steps
        if max(self.steps) > length:
            raise InputError(
                f"steps {list(self.steps)}: a stage has {max(self.steps)} frames, but the data has n_steps {length}; "
                "raise n_steps or shorten the stage"
            )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Sets the length: before each batch, as a training resumed within an epoch skips the hook of its start."""
        from sciml_monarch.pde.task import PDETask

        assert isinstance(pl_module, PDETask)
        assert trainer.max_epochs is not None
        pl_module.train_on_first(self.n_steps(trainer.current_epoch, trainer.max_epochs))
