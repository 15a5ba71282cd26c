"""The one interface of every neural PDE solver in this package."""

from abc import ABC, abstractmethod
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from sciml_monarch.errors import InputError

Prepared = tuple[Tensor, ...]


class Operator(nn.Module, ABC):
    """A map between fields on uniform grids, ``(b, in_channels, *grid) -> (b, out_channels, *grid)``.

    A subclass is final. It passes its own constructor arguments, as JSON values, to ``super().__init__``; they
    are stored in checkpoints as :attr:`config`, so that ``type(net)(**net.config)`` builds the same network.

    Args:
        config: Constructor arguments of the subclass, JSON values only.
    """

    config: dict[str, Any]

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config

    @property
    def in_channels(self) -> int:
        """Channels that the network takes: history frames times fields."""
        return int(self.config["in_channels"])

    @property
    def out_channels(self) -> int:
        """Channels that the network returns: fields."""
        return int(self.config["out_channels"])

    def prepare(self, grid: tuple[int, ...]) -> Prepared:
        """Computes what depends on the weights and the grid but not on the fields.

        A roll-out calls this once and hands the result to each of its steps, so that learned transforms are
        multiplied out once per optimiser step and not once per frame. Gradients flow through it.

        Args:
            grid: Points per axis of the fields to come.

        Returns:
            Tensors for :meth:`forward`; nothing by default.
        """
        del grid
        return ()

    def check_channels(self, x: Tensor) -> None:
        """Refuses fields that the network does not take.

        Args:
            x: What is to be ``(b, in_channels, *grid)``.

        Raises:
            InputError: It has another number of channels.
        """
        if x.shape[1] != self.in_channels:
            raise InputError(
                f"the input has {x.shape[1]} channels, but the network takes {self.in_channels} (history frames times "
                "fields; it adds coordinates by itself)"
            )

    @abstractmethod
    def forward(self, x: Tensor, prepared: Prepared | None = None) -> Tensor:
        """Applies the network.

        Args:
            x: Fields ``(b, in_channels, *grid)``.
            prepared: What :meth:`prepare` returned for this grid; computed here if ``None``.

        Returns:
            Fields ``(b, out_channels, *grid)``.

        Raises:
            InputError: See :meth:`check_channels`, and the networks for what else they ask of a grid.
        """

    def transform_parameters(self) -> list[nn.Parameter]:
        """Parameters of learned transforms; weight decay would pull these to zero, so they get none."""
        return []


def rollout(net: Operator, history: Tensor, n_steps: int, increment: Tensor | None = None) -> Tensor:
    """Feeds a network its own predictions.

    Args:
        net: The network; it maps ``n_history * c`` channels to ``c``.
        history: Known frames ``(b, n_history, c, *grid)``.
        n_steps: Frames to predict, at least 1.
        increment: Scale ``(c,)`` of increments, in the units of ``history``: a frame is the frame before it plus
            ``increment`` times the network's output. ``None``: a frame is the output itself.

    Returns:
        Predicted frames ``(b, n_steps, c, *grid)``.

    Raises:
        InputError: The channels do not fit the network, or more than one step, or increments, are asked of a network
            whose output cannot be its next input.
    """
    n_history, channels = history.shape[1:3]
    if n_history * channels != net.in_channels:
        raise InputError(
            f"the network takes {net.in_channels} channels, but the data has {n_history} frames of {channels} "
            f"fields = {n_history * channels}; set in_channels to that"
        )
    if n_steps > 1 and net.out_channels != channels:
        raise InputError(
            f"a roll-out of {n_steps} steps needs as many output channels as fields ({channels}), "
            f"but the network has {net.out_channels}"
        )
    if increment is not None:
        if net.out_channels != channels:
            raise InputError(
                f"increments are added to frames of {channels} fields, but the network has {net.out_channels} output "
                "channels"
            )
        increment = increment.view(-1, *(1,) * (history.ndim - 3))  # (c, 1, ...)
    prepared = net.prepare(tuple(history.shape[3:]))
    x = history.flatten(1, 2)  # (b, n_history * c, *grid)
    frames = []
    for _ in range(n_steps):
        frame = net(x, prepared)  # (b, c, *grid)
        if increment is not None:
            frame = x[:, -channels:] + increment * frame
        frames.append(frame)
        if len(frames) < n_steps:
            x = torch.cat([x[:, channels:], frame], 1)
    return torch.stack(frames, 1)


def check_counts(**counts: object) -> None:
    """Refuses what is no number of channels, of layers and the like.

    Args:
        counts: The numbers, by their names.

    Raises:
        InputError: One is no whole number, or less than 1.
    """
    for name, number in counts.items():
        if not isinstance(number, Integral) or number < 1:
            raise InputError(f"{name} is {number}; it must be 1 or more, a whole number")


def n_parameters(net: nn.Module) -> int:
    """Counts real numbers in a network's parameters: a complex parameter counts twice, a shared one once."""
    return sum(p.numel() * (2 if p.is_complex() else 1) for p in net.parameters())
