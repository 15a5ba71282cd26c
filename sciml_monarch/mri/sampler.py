"""Which slices make a batch, in which order, in which process."""

from collections.abc import Hashable, Iterator, Sequence

import torch
from torch.utils.data import DistributedSampler

from sciml_monarch.errors import InputError


class ShapeBatches(DistributedSampler):
    """Batches of positions whose slices have one shape; the order of epoch ``e`` depends on ``seed + e`` alone.

    In training the batch of all processes together has ``batch_size`` slices, of which each process takes its share;
    a smaller batch is filled up from its beginning where the processes could not share it equally. Otherwise whole
    batches go to the processes in turn, the first ones again where they do not come out even: whoever gathers
    the results drops those that came twice.

    Args:
        keys: For each position what must agree within a batch.
        batch_size: Slices of a batch.
        shuffle: Training: new order in each epoch.
        seed: Of the order.
        world_size: Processes.
        rank: This process.

    Raises:
        InputError: The processes cannot share a training batch equally.
    """

    def __init__(
        self,
        keys: Sequence[Hashable],
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        world_size: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(keys, num_replicas=world_size, rank=rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        if shuffle and batch_size % world_size:
            raise InputError(
                f"batch_size {batch_size} is the batch of all {world_size} processes together; use a multiple of "
                f"{world_size}"
            )
        self.keys = keys
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:  # type: ignore[override]
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            order = torch.randperm(len(self.keys), generator=generator).tolist()
            batches = self._batches(order)
            batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
            for batch in batches:
                filled = [batch[i % len(batch)] for i in range(-(-len(batch) // self.num_replicas) * self.num_replicas)]
                yield self.epoch, filled[self.rank :: self.num_replicas]
        else:
            batches = self._batches(range(len(self.keys)))
            for i in range(len(self)):
                yield 0, batches[(i * self.num_replicas + self.rank) % len(batches)]

    def __len__(self) -> int:
        n_batches = sum(-(-count // self.batch_size) for count in self._counts().values())
        return n_batches if self.shuffle else -(-n_batches // self.num_replicas)

    def _counts(self) -> dict[Hashable, int]:
        counts: dict[Hashable, int] = {}
        for key in self.keys:
            counts[key] = counts.get(key, 0) + 1
        return counts

    def _batches(self, order: Sequence[int]) -> list[list[int]]:
        groups: dict[Hashable, list[int]] = {}
        for position in order:
            groups.setdefault(self.keys[position], []).append(position)
        size = self.batch_size
        return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]
