"""Training on a handful of slices in memory, the same for every network that is compared.

For the tables of data efficiency: hundreds of trainings of seconds each, with one fixed sampling pattern, early
stopping on validation slices and the loss and scores of :mod:`sciml_monarch.mri.task`, which is for folders of scans.
"""

import copy
import math
import time
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.mri.base import Recon, magnitude
from sciml_monarch.mri.fourier import fft2c, ifft2c
from sciml_monarch.mri.losses import Loss, image_loss
from sciml_monarch.mri.metrics import nmse, psnr, ssim

WARM_UP_PASSES = 3  # before a recording; libraries choose and prepare their kernels in these


@dataclass(frozen=True)
class Slices:
    """Fully sampled slices and what is to be reconstructed from them.

    Attributes:
        kspace: ``(n, coil, y, x)`` complex, fully sampled.
        maps: ``(n, set, coil, y, x)`` complex.
        target: Magnitudes, ``(n, y, x)``.
    """

    kspace: Tensor
    maps: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.target)

    def select(self, index: Tensor | slice) -> "Slices":
        """Some of the slices."""
        return Slices(self.kspace[index], self.maps[index], self.target[index])

    def to(self, device: torch.device | str) -> "Slices":
        """The slices on another device."""
        return Slices(self.kspace.to(device), self.maps.to(device), self.target.to(device))

    def undersampled(self, mask: Tensor) -> Tensor:
        """K-space with zeros where ``mask`` ``(1, 1, 1|y, x)`` is False."""
        return self.kspace.where(mask, 0.0)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        n_steps: Optimiser steps.
        learning_rate: Of Adam at the start; falls to zero as a cosine, once for each stage.
        transform_rate: Rate of transforms relative to the others.
        batch_size: Slices of a step, drawn at random; at most as many as there are.
        loss: What is minimised.
        unlock: Fraction of the steps after which each further stage of ``net.stages()`` learns as well; a stage starts
            from the best network so far.
        augment: Whether each slice is flipped, transposed and moved by whole pixels at random, coils and all, before
            it is undersampled.
        n_validations: How often the validation slices are looked at, evenly; the best network is kept.
        cuda_graph: Whether loss and gradients are recorded once a stage and replayed as one CUDA graph, because the
            launches of thousands of tiny kernels dominate a step; the optimiser is then fused. The same numbers but
            for roundings. Changes nothing on a CPU, nor for a network that is not ``graphable``.
    """

    n_steps: int = 600
    learning_rate: float = 1e-3
    transform_rate: float = 1.0
    batch_size: int = 2
    loss: Loss = "l1"
    unlock: tuple[float, ...] = ()
    augment: bool = False
    n_validations: int = 30
    cuda_graph: bool = False


@dataclass
class Fit:
    """What a training did.

    Attributes:
        best_step: Step of the network that was kept; 0: the untrained one.
        best_psnr: Its PSNR in dB on the validation slices.
        seconds: Wall-clock time, validation included.
        history: ``(step, validation PSNR)``.
    """

    best_step: int = 0
    best_psnr: float = -math.inf
    seconds: float = 0.0
    history: list[tuple[int, float]] = field(default_factory=list)


def fit_slices(net: Recon, train: Slices, validation: Slices, mask: Tensor, recipe: Recipe, seed: int = 0) -> Fit:
    """Trains a network; it is left as it was best on the validation slices.

    Args:
        net: The network, on the device of the slices.
        train: Slices to learn from.
        validation: Slices that choose the step to stop at.
        mask: Sampling pattern of both, bool ``(1, 1, 1|y, x)``.
        recipe: How.
        seed: Of the drawing of slices and of what the network draws.

    Returns:
        Steps, scores and time.
    """
    torch.manual_seed(seed)
    start = time.perf_counter()
    maximum = train.target.amax(dim=(-2, -1))
    stages = net.stages()
    bounds = [0, *(round(u * recipe.n_steps) for u in recipe.unlock), recipe.n_steps]
    n_stages = len(bounds) - 1
    every = max(1, recipe.n_steps // recipe.n_validations)
    found = Fit()
    best = copy.deepcopy(net.state_dict())
    graphed = recipe.cuda_graph and net.graphable and maximum.is_cuda

    def look(step: int) -> None:
        nonlocal best
        value = score_slices(net, validation, mask)["psnr"]
        found.history.append((step, value))
        if value > found.best_psnr:
            found.best_psnr, found.best_step = value, step
            best = copy.deepcopy(net.state_dict())

    look(0)
    for number, (first, last) in enumerate(pairwise(bounds), 1):
        net.load_state_dict(best)
        free = [p for stage in (stages[:number] if n_stages > 1 else stages) for p in stage]
        find_gradients = (_GraphedGradients if graphed else _Gradients)(net, free, mask, recipe.loss)
        optimizer = _optimizer(net, free, recipe, fused=graphed)
        rates = [group["lr"] for group in optimizer.param_groups]
        for step in range(first, last):
            fall = 0.5 * (1 + math.cos(math.pi * (step - first) / (last - first)))
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * fall
            index = torch.randperm(len(train))[: recipe.batch_size].to(maximum.device, non_blocking=True)
            batch = train.select(index)
            if recipe.augment:
                batch = augmented(batch)
            net.train()
            find_gradients(batch.undersampled(mask), batch.maps, batch.target, maximum[index])
            torch.nn.utils.clip_grad_norm_(free, 1.0)
            optimizer.step()
            if (step + 1) % every == 0 or step + 1 == last:
                look(step + 1)
    net.load_state_dict(best)
    net.eval()
    found.seconds = time.perf_counter() - start
    return found


class _Gradients:
    """Finds the gradients of the loss on a batch and leaves them at the parameters.

    Args:
        net: The network, in training mode.
        free: Parameters that learn; what is found of others is of no use.
        mask: Sampling pattern.
        loss: What is minimised.
    """

    def __init__(self, net: Recon, free: list[torch.nn.Parameter], mask: Tensor, loss: Loss) -> None:
        self._net, self._free, self._mask, self._name = net, free, mask, loss

    def __call__(self, kspace: Tensor, maps: Tensor, target: Tensor, maximum: Tensor) -> None:
        for parameter in self._free:
            parameter.grad = None
        self._loss(kspace, maps, target, maximum).backward()

    def _loss(self, kspace: Tensor, maps: Tensor, target: Tensor, maximum: Tensor) -> Tensor:
        return image_loss(self._net(kspace, self._mask, maps), target, maximum, self._name)


class _GraphedGradients(_Gradients):
    """The same on a CUDA device: recorded at the first call, replayed at every call.

    A replay reads and writes where the recording did. Batches, all of one shape, and what the network draws are copied
    to where it reads; gradients are overwritten, not added up.
    """

    def __init__(self, net: Recon, free: list[torch.nn.Parameter], mask: Tensor, loss: Loss) -> None:
        super().__init__(net, [p for p in free if p.requires_grad], mask, loss)
        self._batch: list[Tensor] = []
        self._drawn: Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, kspace: Tensor, maps: Tensor, target: Tensor, maximum: Tensor) -> None:
        batch, drawn = (kspace, maps, target, maximum), self._net.draw()
        if self._graph is None:
            self._batch = [x.clone(memory_format=torch.contiguous_format) for x in batch]
            self._drawn = None if drawn is None else drawn.to(kspace.device)
            self._graph = self._record(kspace.device)
        for static, x in zip(self._batch, batch, strict=True):
            static.copy_(x)
        if self._drawn is not None and drawn is not None:
            self._drawn.copy_(drawn, non_blocking=True)  # pageable memory: it is read before this returns
        self._graph.replay()

    def _record(self, device: torch.device) -> torch.cuda.CUDAGraph:
        """Records a pass; leaves the network's buffers and all random numbers as they were."""
        graph, side = torch.cuda.CUDAGraph(), _side_stream(device)
        buffers = list(self._net.buffers())
        before = [buffer.clone() for buffer in buffers]
        self._net.drawn = self._drawn
        try:
            with torch.cuda.device(device), torch.random.fork_rng([device], device_type="cuda"):
                self._warm_up(side)
                with torch.cuda.graph(graph, stream=side):
                    found = zip(self._free, self._pass(), strict=True)
                    pairs = [(p.grad, g) for p, g in found if p.grad is not None and g is not None]
                    torch._foreach_copy_([kept for kept, _ in pairs], [g for _, g in pairs])
        finally:
            self._net.drawn = None
        for buffer, content in zip(buffers, before, strict=True):
            buffer.copy_(content)
        return graph

    def _warm_up(self, side: torch.cuda.Stream) -> None:
        """Passes on the stream of the recording, and places for the gradients of the parameters that take part."""
        current, host = torch.cuda.current_stream(), torch.get_rng_state()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_PASSES):
                taking_part = [gradient is not None for gradient in self._pass()]
        current.wait_stream(side)
        if not torch.equal(host, torch.get_rng_state()):
            raise InputError(
                f"{type(self._net).__name__} draws random numbers on the host, which a CUDA graph would repeat: "
                "train without cuda_graph, or let draw() draw them, or set graphable to False"
            )
        for parameter, takes_part in zip(self._free, taking_part, strict=True):
            parameter.grad = torch.zeros_like(parameter) if takes_part else None

    def _pass(self) -> tuple[Tensor | None, ...]:
        # not backward(): it would keep the gradients in memory of the graph, and find those of all parameters
        return torch.autograd.grad(self._loss(*self._batch), self._free, allow_unused=True)


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream for all recordings: cuBLAS keeps memory of its own for every stream that it meets."""
    return torch.cuda.Stream(device)


def augmented(slices: Slices) -> Slices:
    """Flips, transposes (square images) and moves fully sampled slices by whole pixels, all in the same way.

    Coils move with the object: what results is another scan that the same scanner could have made.
    """
    images, maps, target = ifft2c(slices.kspace), slices.maps, slices.target
    ny, nx = target.shape[-2:]
    flip_y, flip_x, swap = (torch.rand(3) < 0.5).tolist()
    shift = [int(torch.randint(-(n // 8), n // 8 + 1, ())) for n in (ny, nx)]

    def moved(x: Tensor) -> Tensor:
        axes = [axis for axis, flip in ((-2, flip_y), (-1, flip_x)) if flip]
        x = x.flip(axes) if axes else x
        x = x.transpose(-2, -1) if swap and ny == nx else x
        return x.roll(shift, dims=(-2, -1))

    return Slices(fft2c(moved(images)), moved(maps), moved(target))


def _optimizer(net: Recon, free: list[torch.nn.Parameter], recipe: Recipe, fused: bool) -> torch.optim.Optimizer:
    transforms = {id(p) for p in net.transform_parameters()}
    groups = [
        {"params": [p for p in free if id(p) not in transforms], "lr": recipe.learning_rate},
        {"params": [p for p in free if id(p) in transforms], "lr": recipe.learning_rate * recipe.transform_rate},
    ]
    return torch.optim.Adam([g for g in groups if g["params"]], foreach=not fused, fused=fused)


@torch.no_grad()
def reconstruct_slices(net: Recon, slices: Slices, mask: Tensor, batch_size: int = 8) -> Tensor:
    """Magnitude images of all slices, ``(n, y, x)``, by a network in evaluation mode."""
    net.eval()
    parts = [slices.select(slice(i, i + batch_size)) for i in range(0, len(slices), batch_size)]
    return torch.cat([magnitude(net(part.undersampled(mask), mask, part.maps)) for part in parts])


def score_slices(net: Recon, slices: Slices, mask: Tensor) -> dict[str, float]:
    """NMSE, PSNR (dB) and SSIM of the slices taken as one volume."""
    return score_images(reconstruct_slices(net, slices, mask), slices.target)


def score_images(images: Tensor, target: Tensor) -> dict[str, float]:
    """NMSE, PSNR (dB) and SSIM of magnitude images ``(n, y, x)`` taken as one volume."""
    return {"nmse": nmse(target, images), "psnr": psnr(target, images), "ssim": ssim(target, images)}
