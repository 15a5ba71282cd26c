"""Windows of trajectories, and pairs of fields, as map-style data sets that hand out whole batches.

A ``DataLoader`` asks a data set that has ``__getitems__`` for a batch at once. That saves the stacking of
samples: from memory a batch is one indexed copy, from files it is read into its place.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sciml_monarch.pde.formats.base import Pairs, Trajectories

Batch = tuple[Tensor, Tensor]


class Windows(Dataset[Batch]):
    """Windows of ``n_history + n_steps`` successive frames of some trajectories.

    Args:
        source: Where they are read.
        trajectories: Which ones.
        n_history: Frames in the first tensor of a batch.
        n_steps: Frames in the second, which follow on the first.
        n_starts: Windows of a trajectory; they start at the frames ``first``, ``first + 1``, ....
        stride: Keep every ``stride``-th point of each axis.
        first: Frame that the first window of a trajectory starts at.
    """

    def __init__(
        self,
        source: Trajectories,
        trajectories: range,
        n_history: int,
        n_steps: int,
        n_starts: int = 1,
        stride: int = 1,
        first: int = 0,
    ) -> None:
        self.source = source
        self.trajectories = trajectories
        self.n_history = n_history
        self.n_steps = n_steps
        self.n_starts = n_starts
        self.stride = stride
        self.first = first
        self.n_frames = n_history + n_steps + n_starts - 1  # that any window of a trajectory uses
        self.shape = (len(source.fields), *(-(-n // stride) for n in source.grid))  # (c, *grid)
        self._frames: Tensor | None = None

    def preload(self) -> None:
        """Reads all frames that the windows use into memory, once; batches are then copied from there."""
        if self._frames is None:
            frames = torch.empty(len(self.trajectories), self.n_frames, *self.shape)
            for row, trajectory in enumerate(self.trajectories):
                frames[row] = self._read(trajectory, 0, self.n_frames)
            self._frames = frames

    def to(self, device: torch.device) -> None:
        """Moves preloaded frames to a device, from which batches are handed out then."""
        if self._frames is not None:
            self._frames = self._frames.to(device)

    def frames(self, row: int) -> Tensor:
        """All frames of the ``row``-th of the trajectories that windows use, ``(time, c, *grid)``, on the CPU."""
        if self._frames is not None:
            return self._frames[row].cpu()
        return self._read(self.trajectories[row], 0, self.n_frames)

    def _read(self, trajectory: int, start: int, stop: int) -> Tensor:
        """Frames of a trajectory, counted from the first that any window uses."""
        return self.source.read(trajectory, self.first + start, self.first + stop, self.stride)

    def __len__(self) -> int:
        return len(self.trajectories) * self.n_starts

    def __getitem__(self, index: int) -> Batch:
        history, target = self.__getitems__([index])
        return history[0], target[0]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Returns ``(b, n_history, c, *grid)`` and ``(b, n_steps, c, *grid)``.

        Raises:
            IndexError: There is no such window.
        """
        for index in indices:
            if not 0 <= index < len(self):
                raise IndexError(f"window {index} of {len(self)} (they count from 0)")
        if self._frames is not None:
            return self._select(self._frames, torch.tensor(indices))
        history = torch.empty(len(indices), self.n_history, *self.shape)
        target = torch.empty(len(indices), self.n_steps, *self.shape)
        for row, index in enumerate(indices):
            which, start = divmod(index, self.n_starts)
            stop = start + self.n_history + self.n_steps
            window = self._read(self.trajectories[which], start, stop)
            history[row], target[row] = window[: self.n_history], window[self.n_history :]
        return history, target

    def _select(self, frames: Tensor, indices: Tensor) -> Batch:
        rows = frames.flatten(0, 1).flatten(1)  # (trajectory time, c * points)
        first = indices // self.n_starts * self.n_frames + indices % self.n_starts
        batch = []
        for start, count in ((0, self.n_history), (self.n_history, self.n_steps)):
            wanted = (first[:, None] + torch.arange(start, start + count)).flatten()
            wanted = wanted.to(rows.device, non_blocking=True)
            batch.append(rows.index_select(0, wanted).view(len(indices), count, *self.shape))
        return batch[0], batch[1]


class PairSamples(Dataset[Batch]):
    """Pairs of fields as batches with one time: ``(b, 1, c, *grid)``, ``(b, 1, c', *grid)``.

    Args:
        source: Where they are read.
        pairs: Which ones.
        stride: Keep every ``stride``-th point of each axis.
    """

    def __init__(self, source: Pairs, pairs: range, stride: int = 1) -> None:
        self.source = source
        self.pairs = pairs
        self.stride = stride
        self._loaded: Batch | None = None

    def preload(self) -> None:
        """Reads all pairs into memory, once."""
        if self._loaded is None:
            self._loaded = self.__getitems__(range(len(self)))

    def to(self, device: torch.device) -> None:
        """Moves preloaded pairs to a device, from which batches are handed out then."""
        if self._loaded is not None:
            self._loaded = self._loaded[0].to(device), self._loaded[1].to(device)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Batch:
        inputs, targets = self.__getitems__([index])
        return inputs[0], targets[0]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Returns the batch of the pairs ``indices``.

        Raises:
            IndexError: There is no such pair.
        """
        for index in indices:
            if not 0 <= index < len(self):
                raise IndexError(f"pair {index} of {len(self)} (they count from 0)")
        if self._loaded is not None:
            wanted = torch.tensor(indices).to(self._loaded[0].device, non_blocking=True)
            return self._loaded[0].index_select(0, wanted), self._loaded[1].index_select(0, wanted)
        grid = tuple(-(-n // self.stride) for n in self.source.grid)
        inputs = torch.empty(len(indices), 1, len(self.source.input_fields), *grid)
        targets = torch.empty(len(indices), 1, len(self.source.target_fields), *grid)
        for row, index in enumerate(indices):
            inputs[row, 0], targets[row, 0] = self.source.read(self.pairs[index], self.stride)
        return inputs, targets


class ChannelMoments:
    """Mean and standard deviation per channel of values that come in pieces, in float64.

    Pieces are merged pairwise (Chan, Golub and LeVeque 1983), so that a mean far from zero costs no digits.
    """

    def __init__(self, n_channels: int) -> None:
        self._count = 0
        self._mean = torch.zeros(n_channels, dtype=torch.float64)
        self._squares = torch.zeros(n_channels, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Takes in values ``(time, c, *grid)``."""
        channels = values.cpu().double().movedim(1, 0).flatten(1)
        count = channels.shape[1]
        mean = channels.mean(1)
        total = self._count + count
        delta = mean - self._mean
        self._squares += (channels - mean[:, None]).square().sum(1) + delta.square() * self._count * count / total
        self._mean += delta * count / total
        self._count = total

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation ``(c,)``, float32; 1 as the deviation of a constant channel."""
        std = (self._squares / max(self._count, 1)).sqrt()
        constant = std <= 1e-7 * self._mean.abs()  # below what float32 values can show
        return self._mean.float(), torch.where(constant, torch.ones_like(std), std).float()
