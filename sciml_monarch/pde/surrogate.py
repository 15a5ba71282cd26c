"""A trained network together with everything that its use needs."""

import torch
from torch import Tensor, nn

from sciml_monarch.errors import InputError
from sciml_monarch.pde.base import Operator, rollout
from sciml_monarch.pde.description import Description


class Surrogate(nn.Module):
    """A network, the normalisation it was trained with and the description of its data.

    Fields go in and come out in physical units; in between they have zero mean and unit standard deviation.

    Args:
        net: The network.
        description: What the data is; may follow by :meth:`describe`.
    """

    input_mean: Tensor
    input_std: Tensor
    output_mean: Tensor
    output_std: Tensor

    def __init__(self, net: Operator, description: Description | None = None) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("input_mean", torch.zeros(net.in_channels))
        self.register_buffer("input_std", torch.ones(net.in_channels))
        self.register_buffer("output_mean", torch.zeros(net.out_channels))
        self.register_buffer("output_std", torch.ones(net.out_channels))
        self._description: Description | None = None
        if description is not None:
            self.describe(description)

    @property
    def description(self) -> Description:
        """What the training data is."""
        if self._description is None:
            raise InputError("the network has no description of its data yet: train it, or call describe()")
        return self._description

    def describe(self, description: Description) -> None:
        """Ties the network to a kind of data.

        Args:
            description: What the data is.

        Raises:
            InputError: The network's channels are not those of the data.
        """
        n_output = len(description.fields)
        if self.net.in_channels % description.n_history:
            raise InputError(
                f"the network takes {self.net.in_channels} channels, which {description.n_history} history frames "
                "do not divide; set in_channels to history frames times fields"
            )
        if self.net.out_channels != n_output:
            raise InputError(
                f"the network returns {self.net.out_channels} channels, but the data has {n_output} fields "
                f"{description.fields}; set out_channels to {n_output}"
            )
        self._description = description

    @torch.no_grad()
    def set_normalization(self, mean: Tensor, std: Tensor, output_mean: Tensor, output_std: Tensor) -> None:
        """Sets the statistics of the training data.

        Args:
            mean: Mean of each field of a history frame, ``(c,)``.
            std: Standard deviation of each of these, positive.
            output_mean: Mean of each predicted field.
            output_std: Standard deviation of each predicted field, positive.

        Raises:
            InputError: A statistic is not finite, a deviation not positive, or the numbers of fields do not fit.
        """
        if self.net.in_channels != mean.numel() * self.description.n_history:
            raise InputError(
                f"the network takes {self.net.in_channels} channels, but the data has {self.description.n_history} "
                f"history frames of {mean.numel()} fields; set in_channels to "
                f"{mean.numel() * self.description.n_history}"
            )
        for name, value in (
            ("input_mean", mean.repeat(self.description.n_history)),
            ("input_std", std.repeat(self.description.n_history)),
            ("output_mean", output_mean),
            ("output_std", output_std),
        ):
            if not torch.isfinite(value).all() or (name.endswith("std") and not (value > 0).all()):
                raise InputError(f"{name} of the training data is {value.tolist()}; it must be finite, std positive")
            getattr(self, name).copy_(value)

    def normalize(self, history: Tensor) -> Tensor:
        """Input fields ``(b, n_history, c, *grid)`` with zero mean in units of their standard deviation."""
        shape = (1, *history.shape[1:3], *(1,) * (history.ndim - 3))
        return (history - self.input_mean.view(shape)) / self.input_std.view(shape)

    def denormalize(self, prediction: Tensor) -> Tensor:
        """Predicted fields ``(b, time, c, *grid)`` in physical units."""
        shape = (1, 1, -1, *(1,) * (prediction.ndim - 3))
        return prediction * self.output_std.view(shape) + self.output_mean.view(shape)

    def rollout(self, history: Tensor, n_steps: int) -> Tensor:
        """Predicts from known frames.

        Args:
            history: ``(b, n_history, c, *grid)`` in physical units, on any grid that the network accepts.
            n_steps: Frames to predict.

        Returns:
            ``(b, n_steps, c, *grid)`` in physical units.

        Raises:
            InputError: The history does not fit the network.
        """
        if history.shape[1] * history.shape[2] != self.net.in_channels:
            raise InputError(
                f"the network takes {self.net.in_channels} channels, but the history has {history.shape[1]} frames "
                f"of {history.shape[2]} fields"
            )
        return self.denormalize(rollout(self.net, self.normalize(history), n_steps))

    def forward(self, history: Tensor) -> Tensor:
        """Rolls out the number of steps that the network was trained for."""
        return self.rollout(history, self.description.n_steps)
