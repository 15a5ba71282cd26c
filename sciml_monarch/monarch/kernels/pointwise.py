"""Which maps of the channels at every point of a field are computed by kernels that keep all channels on the chip."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sciml_monarch.monarch.kernels.backend import autocast_dtype, backend, is_replayed, wants_triton

MOST_CHANNELS = 128
MOST_WEIGHTS = 64 * 128  # padded: what a multiprocessor holds next to a tile of fields
MOST_OUTPUTS = 16  # of a perceptron
# what `auto` takes, timed on an H200 (results/speed_h200), channels padded but the last ones
TIMED_PERCEPTRONS = ((32, 128, 1), (64, 128, 1))
MOST_TIMED = 64  # channels of a linear map
LARGE = 2**26  # numbers of a field from which on the time counts that a GPU takes, not that to begin a kernel
MOST_GATED = 64  # channels of a gated perceptron, padded: three matrices and three of their gradients


def padded(n: int) -> int:
    """Channels that a program takes for ``n``."""
    return 1 << (max(16, n) - 1).bit_length()


def linear_fits(weight: Tensor) -> bool:
    """Whether the kernel takes a linear map ``(o, i)``."""
    outputs, inputs = map(padded, weight.shape)
    return max(outputs, inputs) <= MOST_CHANNELS and outputs * inputs <= MOST_WEIGHTS


def perceptron_fits(w1: Tensor, w2: Tensor) -> bool:
    """Whether the kernels take weights ``(h, i)`` and ``(o, h)``."""
    return linear_fits(w1) and len(w2) <= MOST_OUTPUTS


def gated_fits(up: Tensor, down: Tensor) -> bool:
    """Whether the kernels take weights ``(2 h, i)`` and ``(o, h)`` of a gated perceptron."""
    return max(map(padded, (up.shape[1], *down.shape))) <= MOST_GATED


def gated_asked(x: Tensor) -> bool:
    """Whether kernels of gated perceptrons were asked for, or ``auto`` takes them, for which see :func:`linear_asked`.

    Args:
        x: Fields ``(b, i, *grid)``, before autocast.
    """
    if backend() != "auto":
        return backend() == "triton"
    return _pays(x, autocast_dtype(x))


def wants_gated(x: Tensor, up: Tensor, down: Tensor) -> bool:
    """Whether a gated perceptron is computed by the kernels, of whose fields :func:`gated_asked` was true.

    Args:
        x: Fields ``(b, i, *grid)`` as they will be multiplied, or none of their samples.
        up: ``(2 h, i)``.
        down: ``(o, h)``.

    Raises:
        InputError: Kernels are asked for and cannot take ``x``.
    """
    return gated_fits(up, down) and wants_triton(x, measured_faster=True)


def linear_asked(x: Tensor, channels: Sequence[int]) -> bool:
    """Whether the kernel was asked for, or ``auto`` takes it.

    In float32 the GPU takes less time for it at all sizes that were timed; the processor takes longer to begin it, so
    that outside of a CUDA graph it is for fields as large as those for which convolutions take theirs. In bfloat16 it
    takes between half of torch's time and 7% more, and is for CUDA graphs without a compiler, where whole training
    steps were timed.

    Args:
        x: Fields ``(b, i, *grid)``.
        channels: Of the outputs, and of the inputs.
    """
    if backend() != "auto":
        return backend() == "triton"
    return max(map(padded, channels)) <= MOST_TIMED and _pays(x, x.dtype)


def _pays(x: Tensor, dtype: torch.dtype) -> bool:
    """What ``auto`` stands for, of kernels for fields ``x`` that are multiplied as ``dtype``."""
    if not x.is_cuda or dtype not in (torch.float32, torch.bfloat16):
        return False
    if dtype == torch.bfloat16:
        return is_replayed() and not torch.compiler.is_compiling()
    return is_replayed() or (not torch.compiler.is_compiling() and x.numel() >= LARGE)


def perceptron_asked(x: Tensor, w1: Tensor, w2: Tensor) -> bool:
    """Whether kernels were asked for, or ``auto`` takes them."""
    if backend() != "auto":
        return backend() == "triton"
    sizes = padded(w1.shape[1]), padded(w1.shape[0]), len(w2)
    if sizes not in TIMED_PERCEPTRONS:
        return False
    return _pays(x, x.dtype) or (x.is_cuda and x.dtype == torch.float32)  # which pay outside of graphs too


def wants_linear(x: Tensor, weight: Tensor, was_asked: bool) -> bool:
    """Whether the backward pass of a linear map is computed by the kernel.

    Args:
        x: Fields ``(b, i, n)``.
        weight: ``(o, i)``.
        was_asked: What :func:`linear_asked` said of the call whose backward pass this is.

    Raises:
        InputError: The kernel is asked for and cannot take ``x``.
    """
    return linear_fits(weight) and x.numel() > 0 and wants_triton(x, measured_faster=was_asked)


def wants_perceptron(x: Tensor, w1: Tensor, w2: Tensor, was_asked: bool) -> bool:
    """Whether a perceptron, or its backward pass, is computed by the kernels.

    Args:
        x: Fields ``(b, i, n)``.
        w1: ``(h, i)``.
        w2: ``(o, h)``.
        was_asked: What :func:`perceptron_asked` said of the call whose backward pass this may be.

    Raises:
        InputError: Kernels are asked for and cannot take ``x``.
    """
    return perceptron_fits(w1, w2) and x.numel() > 0 and wants_triton(x, measured_faster=was_asked)
