"""SOAP: Adam in the eigenbases of Shampoo's preconditioners (Vyas et al., 2024), for batches of matrices.

N. Vyas et al., "SOAP: Improving and stabilizing Shampoo using Adam" (arXiv 2409.11321, algorithm 3). No dependency of
this package has it. Spectral weights of a neural operator are a complex matrix for each mode, whose eigenbases are
unitary, so matrices are real or complex here.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sciml_monarch.matrix_optimizer import Layout, MatrixOptimizer, as_matrices, from_matrices

BETAS = (0.95, 0.95)  # of first and second moment; the preconditioners decay as the latter
EPSILON = 1e-8
REFRESH_EVERY = 10  # steps between two corrections of the eigenbases
LARGEST_SIDE = 1024  # a side of more rows (columns) is not rotated: its eigenbasis takes the cube of them


class Soap(MatrixOptimizer):
    """SOAP for matrices and Adam for everything else, as one optimizer with groups of both.

    A step of a matrix ``W`` with the gradient ``G``, in the eigenbases ``Q_L`` and ``Q_R`` of the averages ``L`` of
    ``G G^H`` and ``R`` of ``G^H G``::

        M <- b1 M + (1 - b1) G
        V <- b2 V + (1 - b2) |Q_L^H G Q_R|^2
        W <- (1 - rate * decay) W
        W <- W - rate * Q_L (Q_L^H M Q_R / (sqrt(V) + eps)) Q_R^H

    with Adam's corrections of the bias of both averages. Every ten steps the bases take an iteration of orthogonal
    iteration, ``Q <- qr(L Q)``, with its columns by falling eigenvalues. The first gradient makes the bases and is no
    step: in its own eigenbases most of its entries are rounding, which the division would blow up.

    Of a complex entry, which is two parameters, ``V`` is half of the square of the modulus. So its parts take steps of
    the size of Adam's, and the phase of an eigenvector, which is arbitrary, does not matter.

    Args:
        matrices: Parameters of at least two axes, and how their matrices lie in them.
        others: Parameter groups of Adam.
        lr: Learning rate of all groups without one of their own.
        weight_decay: Of the matrices, decoupled.
        fused: As in ``torch.optim.Adam``.
    """

    def __init__(
        self,
        matrices: Mapping[nn.Parameter, Layout],
        others: Iterable[dict[str, Any]],
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.0,
        fused: bool | None = None,
    ) -> None:
        super().__init__(matrices, others, lr, weight_decay, {"soap_betas": BETAS}, fused)

    def step_matrices(self, group: dict[str, Any]) -> None:
        """Takes SOAP's step of each parameter."""
        for p in group["params"]:
            if p.grad is None:
                continue
            gradients = as_matrices(p.grad, group["layout"])
            gradients = gradients.to(torch.promote_types(gradients.dtype, torch.float32))
            state = _State(self.state[p], gradients)
            step = state.update(gradients, *group["soap_betas"])
            if step is not None:
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * from_matrices(step, group["layout"], p))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a state, its matrices' in their own dtypes, which PyTorch casts to those of the parameters."""
        super().load_state_dict(state_dict)
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for p, number in zip(group["params"], saved["params"], strict=True):
                if group["layout"] is not None and number in state_dict["state"]:
                    entries = state_dict["state"][number].items()
                    self.state[p] = {k: v.to(p.device, copy=True) if torch.is_tensor(v) else v for k, v in entries}


class _State:
    """The state of one parameter: ``(batch, m, n)`` matrices, and their sides' preconditioners and eigenbases.

    Args:
        stored: Entry of the optimizer's state; complex numbers are pairs there.
        like: The gradients as matrices.
    """

    def __init__(self, stored: dict[str, Any], like: Tensor) -> None:
        self.stored = stored
        self.is_complex = like.is_complex()
        _, m, n = like.shape
        self.sides = [side for side, size in (("left", m), ("right", n)) if size <= LARGEST_SIDE]

    def __getitem__(self, name: str) -> Tensor:
        is_complex = self.is_complex and name != "second_moment"
        return torch.view_as_complex(self.stored[name]) if is_complex else self.stored[name]

    def __setitem__(self, name: str, value: Tensor) -> None:
        self.stored[name] = torch.view_as_real(value) if value.is_complex() else value

    def update(self, g: Tensor, first: float, second: float) -> Tensor | None:
        """Takes a gradient ``(batch, m, n)`` in; returns the step in units of the rate, of the first gradient none."""
        grams = {"left": lambda: g @ g.mH, "right": lambda: g.mH @ g}
        if not self.stored:
            if not torch.isfinite(g).all():  # of a training that diverges at once; that is for the task to say
                return None
            self.stored["step"] = 0
            self["momentum_buffer"] = torch.zeros_like(g)
            self["second_moment"] = torch.zeros_like(g.real if self.is_complex else g)
            for side in self.sides:
                self[side] = (1 - second) * grams[side]()
                self[f"{side}_basis"] = _eigenvectors(self[side])
            return None
        self.stored["step"] += 1
        k = self.stored["step"]
        momentum, rotated = self["momentum_buffer"].lerp(g, 1 - first), self._rotate(g)
        self["momentum_buffer"] = momentum
        square = (rotated.real.square() + rotated.imag.square()) / 2 if self.is_complex else rotated.square()
        variance = self["second_moment"].lerp(square, 1 - second)
        self["second_moment"] = variance
        scale = (variance / (1 - second**k)).sqrt() + EPSILON
        step = self._rotate(self._rotate(momentum) / (1 - first**k) / scale, back=True)
        for side in self.sides:
            self[side] = self[side].lerp(grams[side](), 1 - second)
        if k % REFRESH_EVERY == 0:
            self._refresh()
        return step

    def _rotate(self, matrices: Tensor, back: bool = False) -> Tensor:
        """Takes matrices to the eigenbases, or back from them."""
        for side in self.sides:
            basis = self[f"{side}_basis"]
            if side == "left":
                matrices = (basis if back else basis.mH) @ matrices
            else:
                matrices = matrices @ (basis.mH if back else basis)
        return matrices

    def _refresh(self) -> None:
        """An orthogonal iteration of each basis, its columns and the second moment ordered by falling eigenvalues."""
        for side, axis in (("left", -2), ("right", -1)):
            if side not in self.sides:
                continue
            preconditioner, basis = self[side], self[f"{side}_basis"]
            towards = preconditioner @ basis
            values = (basis.conj() * towards).sum(-2)  # Rayleigh quotients (batch, columns)
            order = (values.real if self.is_complex else values).argsort(-1, descending=True)
            self[f"{side}_basis"] = orthonormal(towards.gather(-1, order.unsqueeze(-2).expand_as(towards)))
            variance = self["second_moment"]
            self["second_moment"] = variance.gather(axis, order.unsqueeze(-1 if axis == -2 else -2).expand_as(variance))


def orthonormal(matrices: Tensor) -> Tensor:
    """Orthonormal columns ``(batch, n, n)`` that span what the columns up to each of ``(batch, n, n)`` matrices span.

    Those of a QR decomposition, up to phases. On a GPU, where that takes one matrix after the other, of all of them at
    once by two Cholesky decompositions of ``A^H A`` (CholeskyQR2: Y. Yamamoto et al., 2015), and by QR of those whose
    columns depend too much on each other for that.
    """
    return by_cholesky(matrices) if matrices.is_cuda else torch.linalg.qr(matrices).Q


def by_cholesky(matrices: Tensor) -> Tensor:
    """:func:`orthonormal` as on a GPU.

    In double precision: ``A^H A`` squares a condition number that is up to a few thousand in the columns of an
    orthogonal iteration, and products of float32 may be TF32's.
    """
    columns = matrices.to(torch.promote_types(matrices.dtype, torch.float64))
    for _ in range(2):
        # of length one: columns of an orthogonal iteration are as long as their eigenvalues
        columns = columns / torch.linalg.vector_norm(columns, dim=-2, keepdim=True)
        factor = torch.linalg.cholesky_ex(columns.mH @ columns).L
        columns = torch.linalg.solve_triangular(factor.mH, columns, upper=True, left=False)
    identity = torch.eye(columns.shape[-1], dtype=columns.dtype, device=columns.device)
    deviation = torch.linalg.matrix_norm(columns.mH @ columns - identity)
    failed = ~(deviation < 10 * len(identity) * torch.finfo(matrices.dtype).eps)  # true of what is not a number
    columns = columns.to(matrices.dtype)
    if failed.any():
        columns[failed] = torch.linalg.qr(matrices[failed]).Q
    return columns


def _eigenvectors(gram: Tensor) -> Tensor:
    """Those of ``(batch, n, n)`` Hermitian matrices, by falling eigenvalues."""
    try:
        vectors = torch.linalg.eigh(gram).eigenvectors
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        # one gradient leaves many eigenvalues zero, with which cuSOLVER may not converge
        wide = gram.to("cpu", torch.promote_types(gram.dtype, torch.float64))
        vectors = torch.linalg.eigh(wide).eigenvectors.to(gram)
    return vectors.flip(-1)
