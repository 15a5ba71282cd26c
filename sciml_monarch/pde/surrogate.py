"""A trained network together with everything that its use needs."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sciml_monarch.errors import InputError
from sciml_monarch.pde.base import Operator, rollout
from sciml_monarch.pde.description import Description
from sciml_monarch.pde.symmetry import SymmetryGroup


class Surrogate(nn.Module):
    """A network, the normalisation it was trained with and the description of its data.

    Fields go in and come out in physical units; in between they have zero mean and unit standard deviation.

    With ``increment`` the network predicts the change from one frame to the next, as an explicit step in time does
    (MeshGraphNets, Pfaff et al., ICLR 2021): ``frame = last frame + increment_scale * output``.
    ``increment_scale`` is the root mean square of the changes in the training data, so that the network's output is of
    unit size, and an output of zero is persistence. That is part of what the weights mean: the state dict has
    ``increment_scale`` then and only then, and a surrogate that loads it predicts increments.

    Args:
        net: The network.
        description: What the data is; may follow by :meth:`describe`.
        increment: Whether the network predicts increments.

    Raises:
        InputError: As :meth:`describe`.
    """

    input_mean: Tensor
    input_std: Tensor
    output_mean: Tensor
    output_std: Tensor
    increment_scale: Tensor | None

    def __init__(self, net: Operator, description: Description | None = None, increment: bool = False) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("input_mean", torch.zeros(net.in_channels))
        self.register_buffer("input_std", torch.ones(net.in_channels))
        self.register_buffer("output_mean", torch.zeros(net.out_channels))
        self.register_buffer("output_std", torch.ones(net.out_channels))
        self.register_buffer("increment_scale", torch.ones(net.out_channels) if increment else None)
        self.register_load_state_dict_pre_hook(_take_on_increment)
        self._description: Description | None = None
        self._symmetry: SymmetryGroup | None = None
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
            InputError: The network's channels are not those of the data, or it predicts increments of other fields
                than those of a frame.
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
        if self.increment_scale is not None and self.net.in_channels != description.n_history * n_output:
            raise InputError(
                f"increments are added to the last frame, but a frame has "
                f"{self.net.in_channels // description.n_history} fields and the network predicts {n_output}; "
                "set increment to false"
            )
        self._description = description

    @torch.no_grad()
    def set_normalization(
        self,
        mean: Tensor,
        std: Tensor,
        output_mean: Tensor,
        output_std: Tensor,
        increment_scale: Tensor | None = None,
    ) -> None:
        """Sets the statistics of the training data.

        Args:
            mean: Mean of each field of a history frame, ``(c,)``.
            std: Standard deviation of each of these, positive.
            output_mean: Mean of each predicted field.
            output_std: Standard deviation of each predicted field, positive.
            increment_scale: Root mean square of each field's change from one frame to the next ``(c,)``, positive;
                for a network that predicts increments, and for no other.

        Raises:
            InputError: A statistic is not finite, a deviation or scale not positive, or the numbers of fields do not
                fit; ``increment_scale`` is missing or not of use; with it, the statistics of predicted fields are not
                those of a history frame.
        """
        if (increment_scale is None) != (self.increment_scale is None):
            raise InputError(
                "increment_scale is needed: the network predicts increments"
                if increment_scale is None
                else f"increment_scale is {increment_scale.tolist()}, but the network predicts frames, not increments"
            )
        if self.net.in_channels != mean.numel() * self.description.n_history:
            raise InputError(
                f"the network takes {self.net.in_channels} channels, but the data has {self.description.n_history} "
                f"history frames of {mean.numel()} fields; set in_channels to "
                f"{mean.numel() * self.description.n_history}"
            )
        statistics = {
            "input_mean": mean.repeat(self.description.n_history),
            "input_std": std.repeat(self.description.n_history),
            "output_mean": output_mean,
            "output_std": output_std,
        }
        if increment_scale is not None:
            if not (torch.equal(mean, output_mean) and torch.equal(std, output_std)):
                raise InputError(
                    f"increments are added to frames of mean {mean.tolist()} and std {std.tolist()}, but the predicted "
                    f"fields have {output_mean.tolist()} and {output_std.tolist()}; they must be the same"
                )
            statistics["increment_scale"] = increment_scale
        for name, value in statistics.items():
            if not torch.isfinite(value).all() or (not name.endswith("mean") and not (value > 0).all()):
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

    def symmetrize(self, group: SymmetryGroup | None) -> None:
        """Lets roll-outs be means over the isometries of a group (:meth:`SymmetryGroup.symmetrized`).

        Neither checkpoints nor saved folders keep it.

        Args:
            group: Symmetries of the equation; ``None``: roll-outs of the network as it is.

        Raises:
            InputError: The group does not act on the data that the network is for.
        """
        if group is not None:
            group.check_data(self.description)
        self._symmetry = group

    def rollout(self, history: Tensor, n_steps: int) -> Tensor:
        """Predicts from known frames.

        Args:
            history: ``(b, n_history, c, *grid)`` in physical units, on any grid that the network accepts.
            n_steps: Frames to predict, 1 or more.

        Returns:
            ``(b, n_steps, c, *grid)`` in physical units.

        Raises:
            InputError: The history does not fit the network, or there are no frames to predict.
        """
        if n_steps < 1:
            raise InputError(f"n_steps is {n_steps}; it must be at least 1")
        if history.shape[1] * history.shape[2] != self.net.in_channels:
            raise InputError(
                f"the network takes {self.net.in_channels} channels, but the history has {history.shape[1]} frames "
                f"of {history.shape[2]} fields"
            )
        if self._symmetry is None:
            return self._rollout(history, n_steps)
        return self._symmetry.symmetrized(lambda moved: self._rollout(moved, n_steps), history)

    def _rollout(self, history: Tensor, n_steps: int) -> Tensor:
        scale = None if self.increment_scale is None else self.increment_scale / self.output_std
        return self.denormalize(rollout(self.net, self.normalize(history), n_steps, scale))

    def forward(self, history: Tensor) -> Tensor:
        """Rolls out the number of steps that the network was trained for."""
        return self.rollout(history, self.description.n_steps)


def _take_on_increment(surrogate: Surrogate, state: Mapping[str, Tensor], prefix: str, *rest: object) -> None:
    """Lets a surrogate that is made anew predict increments where the weights that it loads do."""
    if surrogate.increment_scale is None and f"{prefix}increment_scale" in state:
        surrogate.increment_scale = torch.ones_like(surrogate.output_std)
