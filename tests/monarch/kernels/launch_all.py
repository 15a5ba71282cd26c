"""Runs every kernel on odd shapes, for tools that watch memory; the tests compare the numbers.

On a GPU: ``compute-sanitizer --tool memcheck python -m tests.monarch.kernels.launch_all``. PyTorch's cache of memory is
to be off (``PYTORCH_NO_CUDA_MEMORY_CACHING=1``): it hands out larger pieces, behind whose ends nothing is noticed.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sciml_monarch.monarch import MonarchLinear, MonarchTransform
from sciml_monarch.monarch.kernels.backend import use_backend
from sciml_monarch.monarch.kernels.linear import monarch_linear
from sciml_monarch.monarch.kernels.linear_configs import Sizes
from sciml_monarch.monarch.kernels.linear_plans import alternatives, choose
from sciml_monarch.pde.perceptron import GatedPerceptron
from sciml_monarch.pde.pointwise import pointwise_linear, pointwise_mlp
from sciml_monarch.pde.spectral_conv import MonarchSpectralConv

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PRECISIONS = ("highest", "high", "medium")


def _random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype).requires_grad_()


def _layers() -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Layers and inputs, in float32."""
    for grid, modes in (((37,), (9,)), ((20, 27), (7, 10)), ((24, 24), (10, 10)), ((9, 8, 11), (4, 4, 5))):
        yield f"convolution of {grid}", MonarchSpectralConv(3, 5, modes, grid), _random(2, 3, *grid)
    if DEVICE.type == "cuda":  # large enough for its matrices to be rounded by themselves
        yield "large convolution", MonarchSpectralConv(8, 8, (10, 363), (365, 363)), _random(8, 8, 365, 363)
    for n_in, n_out, blocks in ((61, 70, 8), (250, 256, 4), (256, 256, 16)):
        yield f"linear layer {n_in} -> {n_out}", MonarchLinear(n_in, n_out, blocks=blocks), _random(37, n_in)
    for n in (12, 35, 64):
        yield f"transform of {n}", MonarchTransform(n, learnable=True), _random(3, n)


def _channels(dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Results of maps of channels at every point."""
    for i, h, o, n in ((32, 128, 1, 300), (20, 65, 3, 70), (33, 64, 16, 65), (1, 1, 1, 1)):
        weights = _random(h, i, dtype=dtype), _random(h), _random(o, h, dtype=dtype), _random(o)
        yield f"perceptron {i} -> {h} -> {o}", pointwise_mlp(_random(2, i, n, dtype=dtype), *weights)
    for i, h, o, n in ((48, 64, 48, 300), (20, 27, 33, 70), (1, 1, 1, 1)):
        net = GatedPerceptron(i, h, o, None, None).to(DEVICE, dtype)
        yield f"gated perceptron {i} -> {h} -> {o}", net(_random(2, i, n, dtype=dtype), _random(2, o, n, dtype=dtype))
    for i, o, n in ((32, 32, 300), (12, 20, 70), (128, 64, 65)):
        x = _random(2, i, n, dtype=dtype)
        before = x.detach().clone()
        yield f"linear map {i} -> {o}", pointwise_linear(x, _random(o, i, dtype=dtype), before, _random(o))


def _tiled(dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """What runs with tiles that are not chosen by themselves: both products of a layer in one kernel."""
    layer = MonarchLinear(250, 256, blocks=4).to(DEVICE, dtype)
    (k, q, p), (l, s, r) = layer.w1.shape, layer.w2.shape
    sizes = Sizes(k, q, p, l, s, r, 250, 256)
    for plan in alternatives(choose(sizes, 37, dtype.itemsize), sizes, 37, dtype.itemsize)["fused"]:
        yield "fused layer", monarch_linear(_random(37, 250, dtype=dtype), layer.w1, layer.w2, layer.bias, 256, plan)


def _staged() -> tuple[str, Tensor]:
    from sciml_monarch.monarch.kernels.transform_configs import StagesTile
    from sciml_monarch.monarch.kernels.transform_triton import apply

    lines, w1, w2 = (torch.randn(shape, device=DEVICE) for shape in ((4, 20, 3, 2), (5, 4, 4, 2), (4, 5, 5, 2)))
    place = torch.arange(20, device=DEVICE)
    return "transform in stages", apply(lines, w1, w2, place, None, 2, False, StagesTile(16, 16, 8, 4, 1))


def _rounded() -> tuple[str, Tensor]:
    from sciml_monarch.monarch.kernels.spectral_triton import round_to_tf32

    return "rounding", round_to_tf32(torch.randn(37, 41, device=DEVICE))


def run() -> int:
    """Runs all, forward and backward; returns how many results there were."""
    count = 0

    def finish(what: str, y: Tensor, **how: Any) -> None:
        nonlocal count
        if y.requires_grad:
            y.backward(torch.ones_like(y))
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        count += 1
        print(what, *how.values(), flush=True)

    before = torch.get_float32_matmul_precision()
    # what is interpreted is the same at all precisions
    halves = (torch.bfloat16, torch.float16) if DEVICE.type == "cuda" else ()
    try:
        with use_backend("triton"):
            for precision in PRECISIONS if DEVICE.type == "cuda" else PRECISIONS[:1]:
                torch.set_float32_matmul_precision(precision)
                for what, layer, x in _layers():
                    y = layer.to(DEVICE)(x)
                    finish(what, torch.view_as_real(y) if y.is_complex() else y, precision=precision)
                for what, y in (*_channels(torch.float32), *_tiled(torch.float32), _staged(), _rounded()):
                    finish(what, y, precision=precision)
            for dtype in halves:
                for what, layer, x in _layers():
                    if not isinstance(layer, MonarchTransform):  # which is of complex64 alone
                        layer = layer.to(DEVICE, dtype) if isinstance(layer, MonarchLinear) else layer.to(DEVICE)
                        finish(what, layer(x.detach().to(dtype).requires_grad_()), dtype=dtype)
                for what, y in (*_channels(dtype), *_tiled(dtype)):
                    finish(what, y, dtype=dtype)
    finally:
        torch.set_float32_matmul_precision(before)
    return count


if __name__ == "__main__":
    print(run(), "results")
