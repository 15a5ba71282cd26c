"""Compiles for a Hopper GPU, without one, whatever kernels a call launches: the launches are caught."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from sciml_monarch.monarch.kernels import (
    linear_gradients_triton,
    linear_triton,
    spectral_triton,
    transform_triton,
)

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int64: "i64"}
KERNEL_NAMES = "_kernel", "_2d"  # other jitted functions are parts of these
MODULES = linear_triton, linear_gradients_triton, spectral_triton, transform_triton


class Usage(NamedTuple):
    """What a kernel takes of the GPU: shared memory in bytes, and whether it multiplies on tensor cores."""

    name: str
    shared: int
    tensor_cores: bool


class Caught:
    """In place of a kernel: launches compile it and compute nothing."""

    def __init__(self, kernel: Any, found: list[Usage]) -> None:
        self.kernel, self.found = kernel, found

    def __getitem__(self, grid: object) -> Any:
        return self._compile

    def _compile(self, *given: Any, num_warps: int = 4, num_stages: int = 3, **named: Any) -> None:
        parameters = self.kernel.params
        values = dict(zip(self.kernel.arg_names, given, strict=False)) | named
        types, constants, attributes = {}, {}, {}
        for i, parameter in enumerate(parameters):
            value = values[parameter.name]
            if parameter.is_constexpr or value is None:
                types[parameter.name], constants[parameter.name] = "constexpr", value
            elif isinstance(value, Tensor):
                types[parameter.name] = f"*{NAMES[value.dtype]}"
                attributes[(i,)] = [["tt.divisibility", 16]]
            elif isinstance(value, TensorDescriptor):
                types[parameter.name] = f"tensordesc<{NAMES[value.base.dtype]}{list(value.block_shape)}>"
            else:
                types[parameter.name] = "i32"
        compiled = triton.compile(
            ASTSource(fn=self.kernel, signature=types, constexprs=constants, attrs=attributes),
            target=GPUTarget("cuda", 90, 32),
            options={"num_warps": num_warps, "num_stages": num_stages},
        )
        ptx = compiled.asm["ptx"]
        self.found.append(Usage(self.kernel.__name__, compiled.metadata.shared, "mma" in ptx))


@contextmanager
def caught() -> Iterator[list[Usage]]:
    """Compiles what is launched inside the ``with`` block."""
    found: list[Usage] = []
    before = []
    for module in MODULES:
        for name, value in list(vars(module).items()):
            if isinstance(value, triton.runtime.JITFunction) and name.endswith(KERNEL_NAMES):
                before.append((module, name, value))
                setattr(module, name, Caught(value, found))
    try:
        yield found
    finally:
        for module, name, value in before:
            setattr(module, name, value)
