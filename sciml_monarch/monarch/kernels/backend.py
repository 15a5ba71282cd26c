"""Which implementation of an operation runs: plain torch, or a Triton kernel."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sciml_monarch.errors import InputError

Backend = Literal["auto", "torch", "triton"]
DotPrecision = Literal["tf32x3", "tf32", "tf32_left", "bf16", "native"]

# of the process and not of the thread: backward passes run in threads of their own
_chosen: Backend = "auto"
_replayed = False
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KERNEL_SHARED_BYTES = 232_448  # that a program may take: kernels are tuned for Hopper's multiprocessors, which have it


def backend() -> Backend:
    """What :func:`use_backend` asks for at the moment; ``auto`` outside of it."""
    return _chosen


@contextmanager
def use_backend(choice: Backend) -> Iterator[None]:
    """Overrides the choice of implementation inside a ``with`` block, in all threads.

    Operations ask when they run, not when they are traced: a compiled network follows too, a captured CUDA graph
    keeps what it was captured with. A backward pass outside of any block follows the forward pass' choice.

    Args:
        choice: "torch", "triton", or "auto" for what was measured to be faster at the shape at hand.

    Raises:
        InputError: The choice is none of these.
    """
    if choice not in ("auto", "torch", "triton"):
        raise InputError(f'backend {choice!r} is none of "auto", "torch", "triton"')
    global _chosen
    before, _chosen = _chosen, choice
    try:
        yield
    finally:
        _chosen = before


def is_replayed() -> bool:
    """Whether what runs will be replayed as a CUDA graph, for which :func:`replayed` says it."""
    return _replayed


@contextmanager
def replayed() -> Iterator[None]:
    """Tells ``auto`` that what runs inside the ``with`` block, in all threads, is captured as a CUDA graph.

    A kernel is then chosen where it takes less of the GPU's time. Outside of graphs the time counts that a processor
    takes to begin it, which is longer for a Triton kernel than for an operation of torch. What warms up belongs inside
    too: Triton must not load kernels during the capture.
    """
    global _replayed
    before, _replayed = _replayed, True
    try:
        yield
    finally:
        _replayed = before


def triton_usable(x: Tensor) -> bool:
    """Whether a Triton kernel can take this tensor: real, at most float32, on a Hopper GPU, Triton installed.

    A device whose multiprocessors have less shared memory than Hopper's could not start most kernels. Triton's
    interpreter (``TRITON_INTERPRET=1``) takes tensors of the CPU, but not bfloat16, whose products it gets wrong (3.7).
    """
    interpreted = x.device.type == "cpu" and _interpreted() and x.dtype != torch.bfloat16
    if x.dtype not in KERNEL_DTYPES or not _has_triton():
        return False
    return _fits(x.device.index) if x.is_cuda else interpreted


def wants_triton(x: Tensor, measured_faster: bool) -> bool:
    """Decides for one call.

    Args:
        x: The input of the operation.
        measured_faster: What ``auto`` stands for at this shape.

    Raises:
        InputError: "triton" was asked for and cannot take ``x``.
    """
    choice = backend()
    if choice == "triton" and not triton_usable(x):
        raise InputError(
            f"the Triton kernel was asked for, but cannot take a {x.dtype} tensor on {x.device}: it needs Triton, "
            f"a CUDA device with {KERNEL_SHARED_BYTES} bytes of shared memory a program, as Hopper's have, and "
            "float32, bfloat16 or float16"
        )
    return choice == "triton" or (choice == "auto" and measured_faster and triton_usable(x))


def transformed() -> bool:
    """Whether ``torch.func`` or forward-mode derivatives are at work, which see through plain torch only.

    Operators have formulas for reverse mode alone: ``vmap`` and ``grad`` would raise, ``jvp`` give zero in silence.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def plain_wanted() -> bool:
    """Whether the caller is to see plain torch.

    Under :func:`transformed`; while exporting, because an exported program runs without this package; and while
    compiling if plain torch is asked for: the compiler then fuses all that it sees, and keeps more for the backward
    pass than the operators do.
    """
    return transformed() or exporting() or (torch.compiler.is_compiling() and backend() == "torch")


def exporting() -> bool:
    """Whether ``torch.export`` is at work: its programs run without this package."""
    # torch.compiler.is_exporting() is the same, but torch 2.11 traces it as true in everything that is compiled
    return torch.compiler._is_exporting_flag


def autocast_dtype(x: Tensor) -> torch.dtype:
    """What :func:`autocast` makes of a tensor's dtype."""
    kind = x.device.type
    wanted = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if wanted else x.dtype


def autocast(x: Tensor) -> Tensor:
    """Casts as autocast does, where it is on; float64 stays."""
    return x.to(autocast_dtype(x))


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Switches autocast off where it is on: to enter its context takes longer than to ask."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def dot_precision(dtype: torch.dtype) -> DotPrecision:
    """How kernels multiply: float32 follows ``torch.get_float32_matmul_precision()``.

    Or ``torch.backends.cuda.matmul.fp32_precision``, where that is what was set ("tf32", or "ieee" for "highest").

    Returns:
        "tf32x3" (three TF32 products, float32's accuracy) for "highest", "tf32" for "high", "bf16" (operands
        rounded to bfloat16) for "medium"; "native" for half precisions. Sums are float32 throughout. A kernel may ask
        for "tf32_left" in place of "tf32": see ``products_triton.dot``.
    """
    if dtype != torch.float32:
        return "native"
    precisions: dict[str, DotPrecision] = {"highest": "tf32x3", "high": "tf32", "medium": "bf16"}
    try:
        return precisions[torch.get_float32_matmul_precision()]
    except RuntimeError:  # torch refuses the question once the newer setting differs from it
        return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _fits(device: int | None) -> bool:
    """Whether the kernels' configurations fit this CUDA device; AMD's have no such property."""
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", 0) >= KERNEL_SHARED_BYTES


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
