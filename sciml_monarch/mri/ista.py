"""Unrolled proximal gradient with a learned sparsifying transform, and a CNN on top where there is data for it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sciml_monarch.errors import InputError
from sciml_monarch.mri.base import SMALLEST, Recon, check_shapes, peak
from sciml_monarch.mri.linops import SenseOperator
from sciml_monarch.mri.norms import safe_sqrt
from sciml_monarch.mri.sparsity import BlockSparsity, Freedom, Move, Start
from sciml_monarch.mri.unet import UNet2d

# Logarithms are stored divided by this, so that Adam moves them as much faster than the weights of a CNN.
SPEED = 16.0
N_POOLS = 3
# Thresholds to start from, relative to the largest value of the zero-filled image. The mean of a block is no
# detail, so it starts at almost nothing.
THRESHOLD, MEAN_THRESHOLD = 3e-3, 1e-5


class MonarchISTA(Recon):
    """Proximal gradient steps that sparsify in a learned Monarch transform.

    Step k of n::

        r = z - eta_k A^H (A z - y)                        physics, exact
        x' = r - sum_j a_kj W_j^H clip(W_j r, theta_kj)    W: Monarch matrix on each axis, theta: one per coefficient
        z = x' + beta_k (x' - x)                           momentum

    It starts as FISTA (Beck & Teboulle 2009) with soft thresholding in a block DCT or Haar transform; the transform,
    thresholds, the form of the shrinkage (:meth:`~sciml_monarch.mri.sparsity.BlockSparsity.clipped`), step sizes and
    momentum learn, with end-to-end gradients as in ISTA-Net (Zhang & Ghanem 2018). Blocks of several sizes j share the
    work with learned weights, equal at first. Blocks are shifted at random in training; in use the thresholding is
    averaged over ``n_shifts`` of them (cycle spinning, Coifman & Donoho 1995). With ``n_cascades`` U-Nets refine the
    result in as many further gradient steps, as in a variational network; step sizes and the last layers start at zero,
    so that training begins at the sparse model. (Without sparse steps the step sizes start at one.)

    All images are scaled by the maximum of the zero-filled one, and steps by the largest sum of squares of the coil
    maps where that is above 1. Tied blocks serve any image size. ``torch.compile`` takes the network in evaluation
    mode; in training the shifts are drawn on the host, or taken from ``drawn``, ``(n_steps, number of sizes, 2)``.

    Args:
        n_steps: Proximal gradient steps; without any the network is a variational network on images.
        block: Samples of a block on each axis; several for transforms of several sizes.
        start: Transform that W starts as.
        shape: Points of the images; needed where blocks are not tied, and then the only shape on which W is the
            learned one: on an axis of another size the blocks fall back to the exact transform, with a warning.
        freedom: ``tied``: one block serves all positions; ``free``: each position has its own; ``coupled``: a second
            Monarch factor, the identity at first, mixes blocks.
        n_shifts: Shifts that are averaged in use.
        n_cascades: Refining steps with a U-Net.
        channels: Width of these U-Nets.

    Raises:
        InputError: ``shape`` is missing for blocks that are not tied, or a count is not positive.
    """

    def __init__(
        self,
        n_steps: int = 20,
        block: int | Sequence[int] = 8,
        start: Start = "dct",
        shape: tuple[int, int] | None = None,
        freedom: Freedom = "tied",
        n_shifts: int = 4,
        n_cascades: int = 0,
        channels: int = 8,
    ) -> None:
        super().__init__(
            {
                "n_steps": n_steps,
                "block": block if isinstance(block, int) else list(block),
                "start": start,
                "shape": None if shape is None else list(shape),
                "freedom": freedom,
                "n_shifts": n_shifts,
                "n_cascades": n_cascades,
                "channels": channels,
            }
        )
        if n_shifts < 1 or min(n_steps, n_cascades) < 0:
            raise InputError(
                f"n_shifts {n_shifts} must be positive, n_steps {n_steps} and n_cascades {n_cascades} not negative"
            )
        sizes = [block] if isinstance(block, int) else list(block)
        if not sizes:
            raise InputError("block is empty; give the size of a block, or several")
        self.sparsity: Sequence[BlockSparsity] = nn.ModuleList(  # type: ignore[assignment]
            BlockSparsity(size, start, shape, freedom) for size in sizes
        )
        self.n_shifts = n_shifts
        self.step = nn.Parameter(torch.zeros(n_steps))
        self.momentum = nn.Parameter(_fista_momentum(n_steps) / SPEED)
        self.threshold = nn.ParameterList(_thresholds(n_steps, size) for size in sizes)
        self.power = nn.Parameter(torch.zeros(n_steps))
        self.share = nn.Parameter(torch.zeros(n_steps, len(sizes))) if len(sizes) > 1 else None
        self.refine_step = nn.Parameter(torch.full((n_cascades,), 0.0 if n_steps else 1 / SPEED))
        self.refine = nn.ModuleList(Refinement(channels) for _ in range(n_cascades))

    def forward(self, kspace: Tensor, mask: Tensor, maps: Tensor | None = None) -> Tensor:
        """See :class:`~sciml_monarch.mri.base.Recon`."""
        check_shapes(kspace, mask, maps, self.needs_maps)
        assert maps is not None
        operator = SenseOperator(maps, mask)
        kspace = kspace.where(mask, 0)
        top = peak(kspace)
        b = operator.adjoint(kspace / top.where(top > SMALLEST, 1.0))
        x = z = b
        step = (self.step * SPEED).exp()[:, None, None, None, None] / operator.bound
        power = (self.power * SPEED).exp()
        thresholds = [(threshold * SPEED).exp() for threshold in self.threshold]
        shares = None if self.share is None else (self.share * SPEED).softmax(1)
        moves = self._moves((kspace.shape[-2], kspace.shape[-1]))
        for k, momentum in enumerate(self.momentum * SPEED):
            r = z - step[k] * (operator.normal(z) - b)
            x, before = r, x
            for j, (sparsity, threshold) in enumerate(zip(self.sparsity, thresholds, strict=True)):
                shifts = self._shifts(k, j) if moves is None else [moves[j][k]]
                clipped = [sparsity.clipped(r, threshold[k], shift, power[k]) for shift in shifts]
                mean = sum(clipped) / len(clipped)
                x = x - (mean if shares is None else shares[k, j] * mean)
            z = x + momentum * (x - before)
        x = z
        for size, refine in zip(self.refine_step * SPEED, self.refine, strict=True):
            gradient = operator.normal(x) - b
            x = x - size / operator.bound * gradient - refine(x, gradient)
        return x * top

    def _shifts(self, step: int, number: int) -> list[tuple[int, int]]:
        p = self.sparsity[number].block
        if self.training:
            drawn = torch.randint(p, (2,)).tolist()
            return [(drawn[0], drawn[1])]
        # a lattice that spreads over the block, moved on with the step so that all positions come up in turn
        golden = 0.6180339887498949
        return [
            ((step + j * p // self.n_shifts) % p, int(p * ((step * self.n_shifts + j) * golden % 1)))
            for j in range(self.n_shifts)
        ]

    def _moves(self, shape: tuple[int, int]) -> list[list[Move]] | None:
        """The shifts of training that are given: for each size of blocks, for each step."""
        if not self.training or self.drawn is None:
            return None
        return [sparsity.moves(self.drawn[:, j], shape) for j, sparsity in enumerate(self.sparsity)]

    def draw(self) -> Tensor | None:
        """The shifts of a pass, ``(n_steps, number of sizes, 2)``."""
        n_steps = len(self.step)
        shifts = [torch.randint(sparsity.block, (2,)) for _ in range(n_steps) for sparsity in self.sparsity]
        return torch.stack(shifts).unflatten(0, (n_steps, -1)) if shifts else None

    def transform_parameters(self) -> list[nn.Parameter]:
        """The factors of the sparsifying transform."""
        return [parameter for sparsity in self.sparsity for parameter in sparsity.parameters()]

    def stages(self) -> list[list[nn.Parameter]]:
        """First the sparse model, then the U-Nets as well."""
        refining = [*self.refine.parameters(), self.refine_step]
        refining_ids = {id(parameter) for parameter in refining}
        sparse = [parameter for parameter in self.parameters() if id(parameter) not in refining_ids]
        return [sparse, refining] if len(self.refine) else [sparse]


class Refinement(nn.Module):
    """A U-Net that sees an image and the gradient of its data consistency; nothing at first.

    Both are divided by the image's root mean square, and the result multiplied by it, so that
    ``D(a x, a g) = a D(x, g)`` for ``a >= 0``.

    Args:
        channels: Channels of the finest of four levels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.unet = UNet2d(4, 2, channels, N_POOLS)
        for parameter in self.unet.up_conv[-1][-1].parameters():  # type: ignore[index, union-attr]
            nn.init.zeros_(parameter)

    def forward(self, image: Tensor, gradient: Tensor) -> Tensor:
        """Computes what is to be taken from the image.

        Args:
            image: ``(b, set, y, x)`` complex.
            gradient: ``A^H (A image - y)``, of the same shape.

        Returns:
            Images ``(b, set, y, x)``.
        """
        size = safe_sqrt((image.real.square() + image.imag.square()).mean(dim=(-2, -1), keepdim=True))
        planes = torch.stack([image.real, image.imag, gradient.real, gradient.imag], 2)
        planes = planes / torch.where(size > SMALLEST, size, 1)[:, :, None]
        change = self.unet(planes.flatten(0, 1)).float().unflatten(0, image.shape[:2])
        return torch.complex(change[:, :, 0], change[:, :, 1]) * size


def _thresholds(n_steps: int, block: int) -> nn.Parameter:
    """Logarithms of the thresholds to start from, ``(n_steps, block, block)``."""
    logarithms = torch.full((n_steps, block, block), math.log(THRESHOLD) / SPEED)
    logarithms[:, 0, 0] = math.log(MEAN_THRESHOLD) / SPEED
    return nn.Parameter(logarithms)


def _fista_momentum(n: int) -> Tensor:
    """Weights ``(t_k - 1) / t_{k+1}`` of FISTA; the last step has none, since nothing follows it."""
    t, weights = 1.0, []
    for _ in range(n):
        after = (1 + math.sqrt(1 + 4 * t * t)) / 2
        weights.append((t - 1) / after)
        t = after
    weights[-1:] = [0.0] * min(n, 1)
    return torch.tensor(weights)
