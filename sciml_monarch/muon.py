"""Muon: momentum whose matrices are made orthogonal before a step (Jordan et al., 2024).

Step and polynomial are those of K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024,
https://kellerjordan.github.io/posts/muon/), the size of a step is that of J. Liu et al., "Muon is scalable for LLM
training" (arXiv 2502.16982, section 2.2). ``torch.optim.Muon`` takes two axes and real numbers only. Of a neural
operator nearly all parameters are spectral weights, a complex matrix for each mode; so this one takes batches of
matrices, real or complex.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sciml_monarch.matrix_optimizer import Layout, MatrixOptimizer, as_matrices, from_matrices

MOMENTUM = 0.95
# of the polynomial: steep at zero, so that singular values come to 0.7 to 1.2 and not to one (Jordan et al.)
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
N_ITERATIONS = 5
LEAST_NORM = 1e-7  # matrices below are not brought to norm one: a gradient of zero is no step
RMS = 0.2  # of Adam's steps, in units of the learning rate (Liu et al., section 2.2)


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


class Muon(MatrixOptimizer):
    """Muon for matrices and Adam for everything else, as one optimizer with groups of both.

    A step of a matrix ``W`` with the gradient ``g``, in ``torch.optim.Muon``'s order::

        B <- mu B + (1 - mu) g
        W <- (1 - rate * decay) W
        W <- W - rate * step_factor * orthogonalize(mu B + (1 - mu) g)

    Nothing waits for the device. A CUDA graph of ``step`` needs ``capturable`` and rates that are tensors on it, which
    graph and scheduler share.

    Args:
        matrices: Parameters of at least two axes, and how their matrices lie in them.
        others: Parameter groups of Adam.
        lr: Learning rate of all groups without one of their own.
        weight_decay: Of the matrices, decoupled.
        fused: As in ``torch.optim.Adam``.
        capturable: As in ``torch.optim.Adam``.
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
        super().__init__(matrices, others, lr, weight_decay, {"momentum": MOMENTUM}, fused, capturable)

    def step_matrices(self, group: dict[str, Any]) -> None:
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
