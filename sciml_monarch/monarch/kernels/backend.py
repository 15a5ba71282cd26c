"""Which implementation of an operation runs: plain torch, or a Triton kernel."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from sciml_monarch.errors import InputError

Backend = Literal["auto", "torch", "triton"]
DotPrecision = Literal["tf32x3", "tf32", "bf16", "native"]

# of the process and not of the thread: backward passes run in threads of their own
_chosen: Backend = "auto"
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def backend() -> Backend:
    """What :func:`use_backend` asks for at the moment; ``auto`` outside of it."""
    return _chosen


@contextmanager
def use_backend(choice: Backend) -> Iterator[None]:
    """Overrides the choice of implementation inside a ``with`` block, in all threads.

    Operations ask when they run, not when they are traced: a compiled network follows too, a captured CUDA graph
    keeps what it was captured with.

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


def triton_usable(x: Tensor) -> bool:
    """Whether a Triton kernel can take this tensor: real, at most float32, on a CUDA device, Triton installed.

    Triton's interpreter (``TRITON_INTERPRET=1``) takes tensors of the CPU, but not bfloat16, whose products it gets
    wrong (3.7).
    """
    interpreted = x.device.type == "cpu" and _interpreted() and x.dtype != torch.bfloat16
    return x.dtype in KERNEL_DTYPES and (x.is_cuda or interpreted) and _has_triton()


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
            "a CUDA device and float32, bfloat16 or float16"
        )
    return choice == "triton" or (choice == "auto" and measured_faster and triton_usable(x))


def dot_precision(dtype: torch.dtype) -> DotPrecision:
    """How kernels multiply: float32 follows ``torch.get_float32_matmul_precision()``.

    Returns:
        "tf32x3" (three TF32 products, float32's accuracy) for "highest", "tf32" for "high", "bf16" (operands
        rounded to bfloat16) for "medium"; "native" for half precisions. Sums are float32 throughout.
    """
    if dtype != torch.float32:
        return "native"
    precisions: dict[str, DotPrecision] = {"highest": "tf32x3", "high": "tf32", "medium": "bf16"}
    return precisions[torch.get_float32_matmul_precision()]


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
