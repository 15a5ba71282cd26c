"""Lightning callbacks that train a part of the steps with Monarch and a part with dense layers.

``SparseToDense`` begins with Monarch layers and multiplies them out ("reverse sparsification", Dao et al., arXiv
2204.00595, section 4.2: 70 to 90% of the steps are sparse); ``DenseToSparse`` begins dense, projects, and fine-tunes.
Both switch between two optimizer steps, take the state of the optimizers and of weight averages along, and go on from
checkpoints of either side. In a YAML::

    trainer:
      callbacks:
        - class_path: SparseToDense
          init_args: {at: 0.7, blocks: 4}

What is converted is ``task.network`` where a task has it, as those of this package do, else the whole task. A task that
keeps anything that refers to single parameters, such as a CUDA graph, renews it in a method ``on_network_change()``,
which is called after the switch if there is one.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sciml_monarch.errors import InputError
from sciml_monarch.monarch.convert import Report, densify, plan, sparsify
from sciml_monarch.monarch.convert_optimizer import carry_over, check_optimizers
from sciml_monarch.monarch.layers import Blocks, Init
from sciml_monarch.monarch.structure import follow_state_dicts, restructure, structure
from sciml_monarch.monarch.sub_blocks import align_layers


class Switch(L.Callback, ABC):
    """Converts the network once, between two optimizer steps.

    Attributes:
        at: Fraction of the training's optimizer steps before the switch.
        carry: Whether the state of the optimizers is carried over.
        switched: Whether the switch is done.
        report: What it did to each layer, in the process that did it.
    """

    def __init__(self, at: float, carry: bool) -> None:
        if not 0 <= at < 1:
            raise InputError(f"at is {at}; it must be a fraction of the steps, from 0 to less than 1")
        self.at = at
        self.carry = carry
        self.switched = False
        self.report: Report | None = None
        self._step = 0

    @abstractmethod
    def prepare(self, net: nn.Module) -> None:
        """Brings a new network into the state that it is trained in first, or says why it cannot be."""

    @abstractmethod
    def check(self, net: nn.Module) -> None:
        """Says so if there is nothing to switch, once checkpoints are loaded."""

    @abstractmethod
    def convert(self, net: nn.Module) -> Report:
        """Brings the network into the state that it is trained in to the end."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Prepares the network, and makes it take on the structure of checkpoints.

        Raises:
            InputError: The network cannot be converted, or not with this strategy of several processes.
        """
        modules = [pl_module, *_averages(trainer)]
        for module in modules:
            follow_state_dicts(module)
        if stage != "fit":
            return
        if trainer.global_step == 0:  # what was done in another training is not done here, unless a checkpoint says so
            self.switched, self.report = False, None
        if self.switched:
            return
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            name = type(trainer.strategy).__name__
            raise InputError(f"{type(self).__name__} cannot replace layers under {name}; use one device or ddp")
        before = structure(pl_module)
        self.prepare(network(pl_module))
        if structure(pl_module) != before:
            for average in modules[1:]:
                restructure(average, structure(pl_module))
                average.load_state_dict(pl_module.state_dict())

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Finds the step of the switch.

        Raises:
            InputError: The training has no end, the network nothing to switch, or the optimisation is none that can be
                switched between two steps.
        """
        total = trainer.estimated_stepping_batches
        if not 0 < total < math.inf:
            raise InputError(f"{type(self).__name__} needs to know the number of steps; set max_epochs or max_steps")
        self._step = min(round(self.at * total), int(total) - 1)
        if not self.switched:
            if not pl_module.automatic_optimization or len(trainer.optimizers) != 1:
                raise InputError(
                    f"{type(self).__name__} switches between two steps of one optimizer under automatic optimization; "
                    f"{type(pl_module).__name__} has {len(trainer.optimizers)} optimizers and automatic_optimization="
                    f"{pl_module.automatic_optimization}"
                )
            check_optimizers(trainer.optimizers)
            self.check(network(pl_module))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Switches before the first batch of the step: checkpoints until then are of before the switch."""
        # global_step has just grown, so that no gradients have been accumulated for the step to come
        if not self.switched and trainer.global_step >= self._step:
            self._switch(trainer, pl_module)
            self.switched = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Warns where the training has ended before the switch, as early stopping may make it."""
        if not self.switched:
            rank_zero_warn(
                f"{type(self).__name__} did not switch: the training ended after {trainer.global_step} steps, "
                f"before step {self._step}"
            )

    def _switch(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        net = network(pl_module)
        with carry_over(net, *trainer.optimizers, reset=not self.carry):
            self.report = self.convert(net)
            _share(net)  # processes may decompose differently; moments belong to the factors that are kept
        for average in map(network, _averages(trainer)):
            self.convert(average)
            align_layers(average, net, [row.layer for row in self.report.converted])
            _share(average)
        for parameter in pl_module.parameters():
            parameter.grad = None
        if isinstance(trainer.strategy, DDPStrategy):
            cast(DistributedDataParallel, trainer.strategy.model).reducer._remove_autograd_hooks()  # of the old layers
            trainer.strategy.model = pl_module
            trainer.strategy.configure_ddp()
        changed = getattr(pl_module, "on_network_change", None)
        if callable(changed):
            changed()

    def state_dict(self) -> dict[str, Any]:
        """What checkpoints keep: whether the switch is done."""
        return {"switched": self.switched}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.switched = bool(state_dict["switched"])


class SparseToDense(Switch):
    """Trains with Monarch layers, then multiplies them out and trains dense to the end.

    A network that has Monarch layers already is trained as it is; another one is given them at the start.
    """

    def __init__(
        self,
        at: float = 0.7,
        blocks: Blocks = 4,
        rank: int | None = None,
        init: Init = "random",
        only: Sequence[str] | None = None,
        skip: Sequence[str] | None = None,
        head: bool = False,
        carry: bool = True,
    ) -> None:
        """Configures the switch; see :func:`~sciml_monarch.monarch.sparsify` for all but ``at`` and ``carry``.

        Args:
            at: Fraction of the training's optimizer steps that are sparse.
            blocks: Blocks of both factors.
            rank: Rank of the sub-blocks.
            init: "random" for a network that is new, "project" for one that is trained.
            only: Patterns of the layers to convert.
            skip: Patterns of layers to leave dense.
            head: Whether to convert the output head too.
            carry: Carry the state of the optimizers over
                (:func:`~sciml_monarch.monarch.convert_optimizer.carry_over`); else it starts anew for these layers.

        Raises:
            InputError: ``at`` is no fraction.
        """
        super().__init__(at, carry)
        self.blocks, self.rank, self.init, self.only, self.skip, self.head = blocks, rank, init, only, skip, head

    def prepare(self, net: nn.Module) -> None:
        """Gives the network Monarch layers if it has none."""
        if not structure(net):
            sparsify(net, self.blocks, self.rank, self.init, self.only, self.skip, self.head)
        self.check(net)

    def check(self, net: nn.Module) -> None:
        """Refuses a network without Monarch layers."""
        if not structure(net):
            raise InputError(f"SparseToDense: {type(net).__name__} has no linear layer to train as a Monarch matrix")

    def convert(self, net: nn.Module) -> Report:
        """Multiplies the factors out."""
        return densify(net)


class DenseToSparse(Switch):
    """Trains dense, then projects the linear layers onto Monarch matrices and fine-tunes these to the end."""

    def __init__(
        self,
        at: float = 0.9,
        blocks: Blocks = 4,
        rank: int | None = None,
        only: Sequence[str] | None = None,
        skip: Sequence[str] | None = None,
        head: bool = False,
        carry: bool = True,
    ) -> None:
        """Configures the switch; see :func:`~sciml_monarch.monarch.sparsify` for all but ``at`` and ``carry``.

        Args:
            at: Fraction of the training's optimizer steps that are dense.
            blocks: Blocks of both factors.
            rank: Rank of the sub-blocks.
            only: Patterns of the layers to convert.
            skip: Patterns of layers to leave dense.
            head: Whether to convert the output head too.
            carry: Carry the state of the optimizers over
                (:func:`~sciml_monarch.monarch.convert_optimizer.carry_over`); else it starts anew for these layers.

        Raises:
            InputError: ``at`` is no fraction.
        """
        super().__init__(at, carry)
        self.blocks, self.rank, self.only, self.skip, self.head = blocks, rank, only, skip, head

    def prepare(self, net: nn.Module) -> None:
        """Leaves the network as it is; one that is sparse may become dense with a checkpoint."""
        if not structure(net):
            self.check(net)

    def check(self, net: nn.Module) -> None:
        """Refuses a network without layers to project."""
        if not plan(net, self.blocks, self.rank, self.only, self.skip, self.head):
            raise InputError(f"DenseToSparse: {type(net).__name__} has no linear layer to project")

    def convert(self, net: nn.Module) -> Report:
        """Projects."""
        return sparsify(net, self.blocks, self.rank, "project", self.only, self.skip, self.head)


def network(task: nn.Module) -> nn.Module:
    """What of a task is converted: its ``network``, or all of it."""
    net = getattr(task, "network", None)
    return net if isinstance(net, nn.Module) else task


def _averages(trainer: L.Trainer) -> list[nn.Module]:
    """Copies of the task that callbacks keep as averages of its weights."""
    kept = [getattr(callback, "_average_model", None) for callback in trainer.callbacks]  # type: ignore[attr-defined]
    return [k.module if isinstance(k, torch.optim.swa_utils.AveragedModel) else k for k in kept if k is not None]


def _share(net: nn.Module) -> None:
    """Gives all processes the parameters of the first."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for parameter in net.parameters():
            torch.distributed.broadcast(parameter.data, 0)
