"""Lightning data modules: trajectories for roll-out training, pairs for stationary problems."""

from pathlib import Path

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader

from sciml_monarch.errors import InputError
from sciml_monarch.pde.description import Description
from sciml_monarch.pde.loading import (
    DEFAULT_LOADER,
    Loader,
    at_least,
    evaluation_loader,
    preload,
    skip_validation,
    training_loader,
)
from sciml_monarch.pde.pair_data import PairData
from sciml_monarch.pde.readers import Trajectories, open_trajectories
from sciml_monarch.pde.windows import Batch, ChannelMoments, Windows

__all__ = ["Loader", "PairData", "TrajectoryData"]


class TrajectoryData(L.LightningDataModule):
    """Windows of trajectories: from ``n_history`` frames the next ``n_steps`` are to be predicted.

    Training takes the first trajectories of the file, the test takes the last ones, validation those just
    before the test. The test part therefore stays the same when ``n_train`` or ``n_val`` changes.

    Batches are ``(history (b, n_history, c, *grid), target (b, n_steps, c, *grid))``, float32, in the units
    of the file.

    Args:
        path: File or folder that ``open_trajectories`` reads.
        n_train: Trajectories to train on.
        n_val: Trajectories for validation.
        n_test: Trajectories for the test.
        n_history: Frames given.
        n_steps: Frames to predict.
        batch_size: Windows of a training batch, all processes together; of a batch in each, elsewhere.
        loader: How the data are read.

    Raises:
        InputError: A number is out of range.
    """

    def __init__(
        self,
        path: str | Path,
        n_train: int,
        n_val: int,
        n_test: int,
        n_history: int = 10,
        n_steps: int = 10,
        batch_size: int = 20,
        loader: Loader = DEFAULT_LOADER,
    ) -> None:
        super().__init__()
        at_least(0, n_train=n_train, n_val=n_val, n_test=n_test)
        at_least(1, n_history=n_history, n_steps=n_steps, batch_size=batch_size)
        self.path = Path(path)
        self.n_train = n_train
        self.n_val = n_val
        self.n_test = n_test
        self.n_history = n_history
        self.n_steps = n_steps
        self.batch_size = batch_size
        self.loader = loader
        self._source: Trajectories | None = None
        self._parts: dict[str, Windows] = {}
        self._statistics: tuple[Tensor, Tensor] | None = None

    @property
    def source(self) -> Trajectories:
        """The open file or folder.

        Raises:
            InputError: It cannot be read, or has too few trajectories, times or points for the arguments.
        """
        if self._source is None:
            source = open_trajectories(self.path, self.loader.field)
            self._check(source)
            # One frame now: a damaged file stops the program here and not in a worker, and what a reader
            # unpacks (MATLAB) is unpacked before workers are forked, who then share it.
            source.read(0, 0, 1)
            self._source = source
        return self._source

    @property
    def description(self) -> Description:
        """Fields, units, grid and time step of the batches, after the stride."""
        source, stride = self.source, self.loader.stride
        return Description(
            fields=source.fields,
            units=source.units,
            grid=tuple(n // stride for n in source.grid),
            lengths=source.lengths,
            dt=_time_step(source),
            n_history=self.n_history,
            n_steps=self.n_steps,
            attributes=dict(source.attributes),
            split={
                "n_trajectories": source.n_trajectories,
                "n_train": self.n_train,
                "n_test": self.n_test,
                "known_frames": self._n_known(),
                "test_steps": self._n_test_steps(),
            },
        )

    def setup(self, stage: str | None = None) -> None:
        """Opens the data and checks that they suffice; called by Lightning, may be called again.

        Args:
            stage: Not used: the parts are set up alike, and read when their loaders are made.

        Raises:
            InputError: As for ``source``.
        """
        skip_validation(self, self.n_val)
        if not self._parts:
            source = self.source
            n_total = source.n_trajectories
            first_val = n_total - self.n_test - self.n_val
            starts, first = 1, self._n_known() - self.n_history
            if self.loader.windows == "all":
                starts, first = source.n_times - self.n_history - self.n_steps + 1, 0
            self._parts = {
                "train": self._windows(range(self.n_train), self.n_steps, starts, first),
                "val": self._windows(range(first_val, first_val + self.n_val), self._n_val_steps()),
                "test": self._windows(range(first_val + self.n_val, n_total), self._n_test_steps()),
            }

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches; under several processes each gets its share of every global batch.

        Raises:
            InputError: There are no training trajectories.
        """
        return training_loader(self, self._part("train"), self.batch_size, self.loader)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Batches in the order of the file, with ``val_steps`` frames to predict; none without such trajectories."""
        return evaluation_loader(self._part("val"), self.batch_size, self.loader) if self.n_val else []

    def test_dataloader(self) -> DataLoader[Batch]:
        """Batches in the order of the file, with ``test_steps`` frames to predict.

        Raises:
            InputError: There are no test trajectories.
        """
        return evaluation_loader(self._part("test"), self.batch_size, self.loader)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The same batches as for the test."""
        return self.test_dataloader()

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the training part, per channel.

        Each frame that a training window uses counts once. Read lazily, summed in float64.

        Returns:
            Mean ``(c,)`` and standard deviation ``(c,)``, float32; 1 for a constant channel.

        Raises:
            InputError: There are no training trajectories.
        """
        if self._statistics is None:
            windows = self._part("train")
            moments = ChannelMoments(windows.shape[0])
            for row in range(len(windows.trajectories)):
                moments.add(windows.frames(row))
            self._statistics = moments.result()
        mean, std = self._statistics
        return mean.clone(), std.clone()

    def close(self) -> None:
        """Closes the files; they open again when needed."""
        if self._source is not None:
            self._source.close()

    def _part(self, name: str) -> Windows:
        self.setup()
        windows = self._parts[name]
        if not len(windows):
            raise InputError(f"n_{name} 0: there are no trajectories for this part; set n_{name}")
        preload(self, windows, self.loader)
        return windows

    def _windows(self, trajectories: range, n_steps: int, n_starts: int = 1, first: int | None = None) -> Windows:
        first = self._n_known() - self.n_history if first is None else first
        return Windows(self.source, trajectories, self.n_history, n_steps, n_starts, self.loader.stride, first)

    def _n_known(self) -> int:
        return self.n_history if self.loader.known_frames is None else self.loader.known_frames

    def _n_val_steps(self) -> int:
        return self.n_steps if self.loader.val_steps is None else self.loader.val_steps

    def _n_test_steps(self) -> int:
        return max(self.n_steps, self._n_val_steps()) if self.loader.test_steps is None else self.loader.test_steps

    def _check(self, source: Trajectories) -> None:
        wanted = self.n_train + self.n_val + self.n_test
        if wanted > source.n_trajectories:
            raise InputError(
                f"n_train {self.n_train} + n_val {self.n_val} + n_test {self.n_test} = "
                f"{wanted} trajectories, but "
                f"{source.path} has {source.n_trajectories}: the parts would overlap; lower one of them"
            )
        known = self._n_known()
        if known < self.n_history:
            raise InputError(f"known_frames {known}: the network sees n_history {self.n_history} of them")
        name = "n_history" if self.loader.known_frames is None else "known_frames"
        needs = [("n_history", self.n_history, self.n_steps)]
        needs += [(name, known, self.n_steps)] * (self.loader.windows == "first")
        needs += [(name, known, self._n_val_steps())] * bool(self.n_val)
        needs += [(name, known, self._n_test_steps())] * bool(self.n_test)
        name, frames, n_steps = max(needs, key=lambda need: need[1] + need[2])
        if frames + n_steps > source.n_times:
            raise InputError(
                f"{name} {frames} + {n_steps} steps of roll-out need {frames + n_steps} times, "
                f"but {source.path} has {source.n_times}; lower {name}, n_steps, val_steps or test_steps"
            )
        if any(n % self.loader.stride for n in source.grid):
            raise InputError(
                f"stride {self.loader.stride} does not divide the grid {source.grid} of "
                f"{source.path}: the points "
                "kept would not be evenly spaced on the periodic domain; use a divisor"
            )
        _time_step(source)


def _time_step(source: Trajectories) -> float:
    """Time between two frames, rounded to nine digits.

    Raises:
        InputError: The frames are not evenly spaced, which a network applied again and again relies on.
    """
    steps = [b - a for a, b in zip(source.times[:-1], source.times[1:], strict=True)]
    if not steps:
        return 0.0
    mean = sum(steps) / len(steps)
    worst = max(steps, key=lambda step: abs(step - mean))
    if mean <= 0 or abs(worst - mean) > 1e-3 * mean:
        raise InputError(
            f"{source.path}: the times are not evenly spaced: a step of {worst:g} s, {mean:g} s "
            "on average; a roll-out "
            "needs equal steps"
        )
    return float(f"{mean:.9g}")
