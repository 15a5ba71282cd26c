"""A training loss as one CUDA graph: a roll-out is hundreds of small kernels whose launches would dominate."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from sciml_monarch.monarch.kernels.backend import replayed


class GraphedLoss:
    """Captures ``loss(history, target)`` and its backward pass at the first call; replays them afterwards.

    Calls with other shapes, without gradients or off the GPU run the module eagerly. Gradients land in static
    buffers, so one backward pass belongs to each optimiser step (no gradient accumulation).

    Args:
        module: Scalar loss with all trained parameters in it; deterministic control flow.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._shapes: tuple[torch.Size, torch.Size] | None = None
        self._graphed: Callable[[Tensor, Tensor], Tensor] | None = None

    def __call__(self, history: Tensor, target: Tensor) -> Tensor:
        """Returns the loss, from the graph where it can."""
        if not (history.is_cuda and torch.is_grad_enabled()):
            return self._module(history, target)
        if self._graphed is None:
            self._graphed = self._capture(history, target)
            self._shapes = (history.shape, target.shape)
        if (history.shape, target.shape) != self._shapes:
            # make_graphed_callables has replaced the instance's forward, not the class's
            return type(self._module).forward(self._module, history, target)
        return self._graphed(history, target)

    def _capture(self, history: Tensor, target: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        # parameters that were used before meet the capture's own stream; their gradients are static buffers
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        # weights that autocast cached outside of the graph would be freed under it
        autocast = torch.autocast(
            "cuda",
            dtype=torch.get_autocast_dtype("cuda"),
            enabled=torch.is_autocast_enabled("cuda"),
            cache_enabled=False,
        )
        with autocast, replayed():
            graphed = torch.cuda.make_graphed_callables(
                self._module, (history.clone(), target.clone()), allow_unused_input=True
            )
        return cast(Callable[[Tensor, Tensor], Tensor], graphed)
