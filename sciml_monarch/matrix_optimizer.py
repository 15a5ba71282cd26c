"""What optimizers of matrices share: which parameters of a network are matrices, how they lie, Adam for the rest."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import Adam, Optimizer

from sciml_monarch.monarch import MonarchLinear
from sciml_monarch.pde.residual_block import PeriodicConv
from sciml_monarch.pde.spectral_conv import MonarchSpectralConv

# "rows": one matrix, its rows along the first axis; "batch": matrices in the last two axes; "modes": a complex matrix
# (i, o) for each mode, of weights (i, o, *modes, 2), or complex ones (i, o, *modes)
Layout = Literal["rows", "batch", "modes"]

# what stands between fields and hidden channels in the networks of this package
_ENDS = (
    "lifting.", "projection.",
    "net.lifting.", "net.projection.",  # neuraloperator's
    "embed.", "head.", "skip.",  # of the transformer; the head also of the U-Net
    "down.0.conv1.",  # of the U-Net
)  # fmt: skip


def hidden_matrices(net: nn.Module) -> dict[nn.Parameter, Layout]:
    """Finds the parameters of a network that are matrices between hidden channels.

    These are the weights of linear layers, convolutions, Monarch linear layers and spectral convolutions. Not among
    them are those of first and last layers (Jordan et al. leave them to Adam), biases, normalisations, and the factors
    of transforms, which start near unitary and keep a rate of their own.

    Args:
        net: A neural operator of this package. In others all layers count as hidden whose names are not those of first
            and last layers here.

    Returns:
        How each lies in memory.
    """
    found: dict[nn.Parameter, Layout] = {}
    for name, module in net.named_modules():
        if f"{name}.".startswith(_ENDS):
            continue
        for local, parameter in module.named_parameters(recurse=False):
            layout = _layout(module, local, parameter)
            if layout is not None:
                found.setdefault(parameter, layout)
    return found


def _layout(module: nn.Module, name: str, parameter: nn.Parameter) -> Layout | None:
    if parameter.is_complex():  # neuraloperator's spectral weights
        return "modes" if parameter.ndim > 2 else None
    if isinstance(module, MonarchSpectralConv):
        return "modes" if name == "weight" else None
    if isinstance(module, MonarchLinear):
        return "batch" if name in ("w1", "w2") else None
    # a convolution is the matrix that takes its stencil's points to channels (Jordan et al.)
    if isinstance(module, nn.Linear | PeriodicConv | _ConvNd) and getattr(module, "groups", 1) == 1:
        return "rows" if name == "weight" else None
    return None


def as_matrices(values: Tensor, layout: Layout) -> Tensor:
    """Gives a parameter, or a gradient, as its matrices.

    Args:
        values: ``(m, ...)``, ``(..., m, n)``, ``(m, n, *modes, 2)`` or complex ``(m, n, *modes)``, by the layout.
        layout: See :data:`Layout`.

    Returns:
        ``(batch, m, n)``; complex with "modes".
    """
    if layout == "rows":
        return values.flatten(1).unsqueeze(0)
    if layout == "modes":
        if not values.is_complex():
            wide = values.to(torch.promote_types(values.dtype, torch.float32))  # there are no complex bfloat16 numbers
            values = torch.complex(wide[..., 0], wide[..., 1])
        values = values.movedim((0, 1), (-2, -1))
    return values.flatten(0, -3)


def from_matrices(matrices: Tensor, layout: Layout, like: Tensor) -> Tensor:
    """Inverse of :func:`as_matrices`.

    Args:
        matrices: ``(batch, m, n)``.
        layout: See :data:`Layout`.
        like: A tensor of the shape and the dtype that the result is to have.

    Returns:
        The values in the shape of the parameter.
    """
    if layout == "modes":
        modes = like.shape[2:] if like.is_complex() else like.shape[2:-1]
        matrices = matrices.unflatten(0, modes).movedim((-2, -1), (0, 1))
        matrices = matrices if like.is_complex() else torch.view_as_real(matrices)
    return matrices.reshape(like.shape).to(like.dtype)


class MatrixOptimizer(Optimizer):
    """Steps of its own for matrices, and Adam for everything else, as one optimizer with groups of both.

    Weight decay of matrices is decoupled, as in AdamW; that of Adam's groups is the L2 penalty of ``torch.optim.Adam``.

    Args:
        matrices: Parameters of at least two axes, and how their matrices lie in them.
        others: Parameter groups of Adam.
        lr: Learning rate of all groups without one of their own.
        weight_decay: Of the matrices.
        options: Further entries of the groups of matrices.
        fused: As in ``torch.optim.Adam``.
        capturable: As in ``torch.optim.Adam``.
    """

    def __init__(
        self,
        matrices: Mapping[nn.Parameter, Layout],
        others: Iterable[dict[str, Any]],
        lr: float | Tensor,
        weight_decay: float,
        options: dict[str, Any],
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None:
        adam = Adam(list(others) or [{"params": []}], lr, fused=fused, capturable=capturable)
        by_layout: dict[Layout, list[nn.Parameter]] = {}
        for parameter, layout in matrices.items():
            by_layout.setdefault(layout, []).append(parameter)
        groups = [
            {"params": parameters, "layout": layout, "weight_decay": weight_decay, **options}
            for layout, parameters in by_layout.items()
        ]
        super().__init__([*groups, *adam.param_groups], {"lr": lr, "layout": None})
        self._adam = adam

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_adam": self._adam}  # copies are made of this

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Takes a step of all parameters that have gradients.

        Args:
            closure: Computes loss and gradients anew.

        Returns:
            What the closure does.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["layout"] is not None:
                self.step_matrices(group)
        # groups and state are other objects after load_state_dict
        self._adam.param_groups = [group for group in self.param_groups if group["layout"] is None]
        self._adam.state = self.state
        self._adam.step()
        return loss

    @abstractmethod
    def step_matrices(self, group: dict[str, Any]) -> None:
        """Takes a step of a group of matrices of one layout, those that have gradients."""
