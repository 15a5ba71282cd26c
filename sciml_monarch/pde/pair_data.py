"""Lightning data module of pairs of fields, for problems without time."""

from collections.abc import Sequence
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
from sciml_monarch.pde.readers import Pairs, open_pairs
from sciml_monarch.pde.windows import Batch, ChannelMoments, PairSamples


class PairData(L.LightningDataModule):
    """Pairs of input and target fields, such as permeability and pressure (Darcy) or start and end (Burgers).

    Training takes the first pairs of its file and validation the last ones. Each test file gives a loader of
    its own, in the order given, so that one network is tested at several resolutions.

    Batches have one time: ``(input (b, 1, c, *grid), target (b, 1, c', *grid))``, float32.

    Args:
        train_path: File that ``open_pairs`` reads.
        test_paths: Files of test pairs.
        n_train: Pairs to train on.
        n_val: Pairs for validation.
        n_test: Pairs of each test file, its first ones; all by default.
        batch_size: Pairs of a training batch, all processes together; of a batch in each, elsewhere.
        loader: How the data are read. ``stride`` applies to the training file alone; ``windows``, ``val_steps``,
            ``test_steps``, ``known_frames`` and ``field`` belong to trajectories and keep their defaults.

    Raises:
        InputError: A number is out of range.
    """

    def __init__(
        self,
        train_path: str | Path,
        test_paths: Sequence[str | Path],
        n_train: int,
        n_val: int = 0,
        n_test: int | None = None,
        batch_size: int = 20,
        loader: Loader = DEFAULT_LOADER,
    ) -> None:
        super().__init__()
        at_least(0, n_train=n_train, n_val=n_val)
        at_least(1, n_test=1 if n_test is None else n_test, batch_size=batch_size)
        of_trajectories = (loader.val_steps, loader.test_steps, loader.known_frames, loader.field)
        if loader.windows != "first" or any(option is not None for option in of_trajectories):
            raise InputError(
                "windows, val_steps, test_steps, known_frames and field select parts of trajectories; pairs have none"
            )
        self.train_path = Path(train_path)
        self.test_paths = [Path(path) for path in test_paths]
        self.n_train = n_train
        self.n_val = n_val
        self.n_test = n_test
        self.batch_size = batch_size
        self.loader = loader
        self._source: Pairs | None = None
        self._parts: dict[str, PairSamples] = {}
        self._tests: list[PairSamples] = []
        self._statistics: list[tuple[Tensor, Tensor]] = []

    @property
    def source(self) -> Pairs:
        """The open training file.

        Raises:
            InputError: It cannot be read or has too few pairs.
        """
        if self._source is None:
            source = open_pairs(self.train_path)
            wanted = self.n_train + self.n_val
            if wanted > source.n_pairs:
                raise InputError(
                    f"n_train {self.n_train} + n_val {self.n_val} = {wanted} pairs, but {source.path} has "
                    f"{source.n_pairs}: the parts would overlap; lower one of them"
                )
            source.read(0)
            self._source = source
        return self._source

    @property
    def description(self) -> Description:
        """Target fields, units and grid of the training batches; ``attributes`` names the input fields."""
        source, stride = self.source, self.loader.stride
        grid = tuple(-(-n // stride) for n in source.grid)
        return Description(
            fields=source.target_fields,
            units=source.units,
            grid=grid,
            lengths=tuple(a * n * stride / m for a, n, m in zip(source.lengths, grid, source.grid, strict=True)),
            dt=0.0,
            n_history=1,
            n_steps=1,
            attributes=source.attributes | {"input_fields": ", ".join(source.input_fields)},
        )

    def setup(self, stage: str | None = None) -> None:
        """Opens all files and checks that they belong together; called by Lightning, may be called again.

        Args:
            stage: Not used: the parts are set up alike, and read when their loaders are made.

        Raises:
            InputError: A file cannot be read, has too few pairs or other fields than the training file.
        """
        skip_validation(self, self.n_val)
        if self._parts:
            return
        source, stride = self.source, self.loader.stride
        tests = []
        for path in self.test_paths:
            test = open_pairs(path)
            here, there = ((len(s.input_fields), len(s.target_fields), len(s.grid), s.name) for s in (source, test))
            if here[:3] != there[:3]:
                raise InputError(
                    f"{source.path} has the fields {here[3]} on {here[2]} axes, {path} has {there[3]} on {there[2]}"
                )
            n_test = test.n_pairs if self.n_test is None else self.n_test
            if n_test > test.n_pairs:
                raise InputError(f"n_test {n_test}: {path} has {test.n_pairs} pairs; lower n_test")
            test.read(0)
            tests.append(PairSamples(test, range(n_test)))
        self._tests = tests
        self._parts = {
            "train": PairSamples(source, range(self.n_train), stride),
            "val": PairSamples(source, range(source.n_pairs - self.n_val, source.n_pairs), stride),
        }

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches; under several processes each gets its share of every global batch.

        Raises:
            InputError: There are no training pairs.
        """
        return training_loader(self, self._part("train"), self.batch_size, self.loader)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Batches in the order of the file; no loader without validation pairs."""
        return evaluation_loader(self._part("val"), self.batch_size, self.loader) if self.n_val else []

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        """A loader for each test file.

        Raises:
            InputError: There are no test files.
        """
        self.setup()
        if not self._tests:
            raise InputError("test_paths is empty: there is nothing to test on; name a file")
        for samples in self._tests:
            preload(self, samples, self.loader)
        return [evaluation_loader(samples, self.batch_size, self.loader) for samples in self._tests]

    def predict_dataloader(self) -> list[DataLoader[Batch]]:
        """The same batches as for the test."""
        return self.test_dataloader()

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean ``(c,)`` and standard deviation ``(c,)`` of the training inputs; 1 where constant."""
        mean, std = self._moments()[0]
        return mean.clone(), std.clone()

    def target_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean ``(c',)`` and standard deviation ``(c',)`` of the training targets; 1 where constant."""
        mean, std = self._moments()[1]
        return mean.clone(), std.clone()

    def close(self) -> None:
        """Closes the files; they open again when needed."""
        for samples in [*self._parts.values(), *self._tests]:
            samples.source.close()

    def _moments(self) -> list[tuple[Tensor, Tensor]]:
        if not self._statistics:
            samples = self._part("train")
            moments = [
                ChannelMoments(len(samples.source.input_fields)),
                ChannelMoments(len(samples.source.target_fields)),
            ]
            for index in range(len(samples)):
                for moment, values in zip(moments, samples[index], strict=True):
                    moment.add(values)
            self._statistics = [moment.result() for moment in moments]
        return self._statistics

    def _part(self, name: str) -> PairSamples:
        self.setup()
        samples = self._parts[name]
        if not len(samples):
            raise InputError(f"n_{name} 0: there are no pairs for this part; set n_{name}")
        preload(self, samples, self.loader)
        return samples
