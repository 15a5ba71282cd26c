"""Muon: momentum whose matrices are made orthogonal before a step (Jordan et al., 2024), beside Adam for all else.

Step and polynomial are those of K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024,
https://kellerjordan.github.io/posts/muon/), the size of a step is that of J. Liu et al., "Muon is scalable for LLM
training" (arXiv 2502.16982, section 2.2). ``torch.optim.Muon`` takes two axes and real numbers only. Of a neural
operator nearly all parameters are spectral weights, a complex matrix for each mode; so this one takes batches of
matrices, real or complex.
"""

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

MOMENTUM = 0.95
# of the polynomial: steep at zero, so that singular values come to 0.7 to 1.2 and not to one (Jordan et al.)
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
N_ITERATIONS = 5
LEAST_NORM = 1e-7  # matrices below are not brought to norm one: a gradient of zero is no step
RMS = 0.2  # of Adam's steps, in units of the learning rate (Liu et al., section 2.2)

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


def orthogonalize(matrices: Tensor) -> Tensor:
    """Brings all singular values of each matrix close to one and keeps its singular vectors.

    Five Newton-Schulz iterations ``X <- a X + (b G + c G^2) X`` with ``G = X X^H`` (Jordan et al.), from a Frobenius
    norm of one. Real matrices are iterated in bfloat16, as by ``torch.optim.Muon``; complex ones in their own
    precision, since there is no complex bfloat16.

    Args:
        matrices: ``(batch, m, n)``, real or complex.

    Returns:
        ``(batch, m, n)``; bfloat16 or complex.
    """
    x = matrices if matrices.is_complex() else matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:  # the smaller of the two products
        x = x.mH
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=LEAST_NORM)
    a, b, c = COEFFICIENTS
    for _ in range(N_ITERATIONS):
        gram = x @ x.mH
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mH if tall else x


def step_factor(layout: Layout, m: int, n: int) -> float:
    """Size of a step in units of the learning rate that gives its entries the root mean square of Adam's steps.

    An orthogonal matrix has entries of mean square ``1 / max(m, n)`` (Liu et al., section 2.2; ``match_rms_adamw`` of
    ``torch.optim.Muon``). A complex entry is two parameters that share it, as those of the equivalent real matrix
    ``[[A, -B], [B, A]]`` do.

    Args:
        layout: See :data:`Layout`.
        m: Rows of a matrix.
        n: Its columns.
    """
    return RMS * (max(m, n) * (2 if layout == "modes" else 1)) ** 0.5


class Muon(Optimizer):
    """Muon for matrices and Adam for everything else, as one optimizer with groups of both.

    A step of a matrix ``W`` with the gradient ``g``, in ``torch.optim.Muon``'s order::

        B <- mu B + (1 - mu) g
        W <- (1 - rate * decay) W
        W <- W - rate * step_factor * orthogonalize(mu B + (1 - mu) g)

    Weight decay of matrices is decoupled, as in AdamW; that of Adam's groups is the L2 penalty of ``torch.optim.Adam``,
    which takes their steps. Nothing waits for the device. A CUDA graph of ``step`` needs ``capturable`` and rates that
    are tensors on it, which graph and scheduler share.
    """

    def __init__(
        self,
        matrices: Mapping[nn.Parameter, Layout],
        others: Iterable[dict[str, Any]],
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.0,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None:
        """Makes a group for each layout of matrices, then those of Adam.

        Args:
            matrices: Parameters of at least two axes, and how their matrices lie in them.
            others: Parameter groups of Adam.
            lr: Learning rate of all groups without one of their own.
            weight_decay: Of the matrices.
            fused: As in ``torch.optim.Adam``.
            capturable: As in ``torch.optim.Adam``.
        """
        adam = Adam(list(others) or [{"params": []}], lr, fused=fused, capturable=capturable)
        by_layout: dict[Layout, list[nn.Parameter]] = {}
        for parameter, layout in matrices.items():
            by_layout.setdefault(layout, []).append(parameter)
        groups = [
            {"params": parameters, "layout": layout, "momentum": MOMENTUM, "weight_decay": weight_decay}
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
                self._step_matrices(group)
        # groups and state are other objects after load_state_dict
        self._adam.param_groups = [group for group in self.param_groups if group["layout"] is None]
        self._adam.state = self.state
        self._adam.step()
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        """Takes Muon's step; matrices of one size are orthogonalised together, as one batch."""
        layout, momentum, lr = group["layout"], group["momentum"], group["lr"]
        alike: dict[tuple[Any, ...], list[tuple[nn.Parameter, Tensor]]] = {}
        for p in group["params"]:
            if p.grad is None:
                continue
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            average = self.state[p]["momentum_buffer"].lerp_(p.grad, 1 - momentum)
            matrices = as_matrices(p.grad.lerp(average, momentum), layout)  # Nesterov's
            alike.setdefault((matrices.shape[1:], matrices.dtype, matrices.device), []).append((p, matrices))
        for (size, _, _), members in alike.items():
            steps = orthogonalize(torch.cat([matrices for _, matrices in members]))
            rate = lr * step_factor(layout, *size)
            for (p, _), step in zip(members, steps.split([len(m) for _, m in members]), strict=True):
                p.mul_(1 - lr * group["weight_decay"])
                p.sub_(rate * from_matrices(step, layout, p))
