"""Compiles for a Hopper GPU, without one, whatever kernels a call launches: the launches are caught.

``python -m tests.monarch.kernels.compile_launches NAME ARGUMENTS`` prints what the kernels of one of ``LAUNCHES`` take,
as JSON.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor, empty
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from sciml_monarch.monarch.kernels import (
    gated_perceptron_triton,
    linear_gradients_triton,
    linear_triton,
    perceptron_triton,
    pointwise_linear_triton,
    spectral_triton,
    transform_triton,
)
from sciml_monarch.monarch.kernels.linear_configs import Sizes
from sciml_monarch.monarch.kernels.linear_plans import alternatives, choose
from sciml_monarch.monarch.kernels.spectral_configs import Config, Problem
from sciml_monarch.monarch.kernels.transform_configs import StagesTile

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int64: "i64"}
KERNEL_NAMES = "_kernel"  # other jitted functions are parts of these
MODULES = (
    gated_perceptron_triton,
    linear_triton,
    linear_gradients_triton,
    perceptron_triton,
    pointwise_linear_triton,
    spectral_triton,
    transform_triton,
)
ALIGNED = [["tt.divisibility", 16]]
MATMUL_PRECISION = {"tf32x3": "highest", "tf32": "high", "tf32_left": "high"}


class Usage(NamedTuple):
    """What a compiled kernel takes of the GPU.

    Attributes:
        name: Of the kernel.
        constants: That it was compiled with.
        shared: Shared memory in bytes.
        fast_products: Instructions that multiply on Hopper's tensor cores.
        slow_products: Those that multiply as older GPUs do.
        spilled: Bytes of registers that a thread keeps in memory.
        async_copies: Instructions that copy past the registers, 16 bytes at a time.
        stores: Instructions that store to the GPU's memory.
        roundings: Instructions that round to TF32.
    """

    name: str
    constants: dict[str, Any]
    shared: int
    fast_products: int
    slow_products: int
    spilled: int
    async_copies: int
    stores: int
    roundings: int


class Caught:
    """In place of a kernel: launches compile it and compute nothing."""

    def __init__(self, kernel: Any, found: list[Usage]) -> None:
        self.kernel, self.found = kernel, found

    def __getitem__(self, grid: object) -> Any:
        return self._compile

    def _compile(self, *given: Any, num_warps: int = 4, num_stages: int = 3, **named: Any) -> None:
        values = dict(zip(self.kernel.arg_names, given, strict=False)) | named
        types, constants, attributes = {}, {}, {}
        for i, parameter in enumerate(self.kernel.params):
            value = values[parameter.name]
            if parameter.is_constexpr or value is None:
                types[parameter.name], constants[parameter.name] = "constexpr", value
            elif isinstance(value, Tensor):
                types[parameter.name] = f"*{NAMES[value.dtype]}"
                attributes[(i,)] = ALIGNED
            elif isinstance(value, TensorDescriptor):
                types[parameter.name] = f"tensordesc<{NAMES[value.base.dtype]}{list(value.block_shape)}>"
            else:
                types[parameter.name] = "i32"
                if value % 16 == 0:  # Triton, too, compiles for it
                    attributes[(i,)] = ALIGNED
        compiled = triton.compile(
            ASTSource(fn=self.kernel, signature=types, constexprs=constants, attrs=attributes),
            target=GPUTarget("cuda", 90, 32),
            options={"num_warps": num_warps, "num_stages": num_stages},
        )
        self.found.append(_usage(self.kernel.__name__, constants, compiled))


def _usage(name: str, constants: dict[str, Any], compiled: Any) -> Usage:
    ptx = compiled.asm["ptx"]
    fast_products, slow_products = map(ptx.count, ("wgmma.mma_async", "mma.sync"))
    async_copies, stores, roundings = map(ptx.count, ("cp.async.cg", "st.global", "cvt.rna.tf32"))
    spilled, shared = _stack_bytes(compiled.asm["cubin"]), compiled.metadata.shared
    return Usage(name, constants, shared, fast_products, slow_products, spilled, async_copies, stores, roundings)


def _stack_bytes(cubin: bytes) -> int:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        report = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", report)[1])


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


def every_kernel() -> None:
    """Launches each kernel at least once, on small inputs."""
    torch.set_float32_matmul_precision("high")
    half = dict(dtype=torch.bfloat16)
    for blocks, m, n_tokens in ((4, 64, 512), (16, 16, 64)):
        n = blocks * m
        sizes = Sizes(blocks, m, m, blocks, m, m, n, n)
        plan = choose(sizes, n_tokens, 2)
        x, w, bias = empty(n_tokens, n, **half), empty(blocks, m, m, **half), empty(n, **half)
        _, h = linear_triton.forward(x, w, w, bias, sizes, plan)
        linear_gradients_triton.backward(x, x, h, w, w, sizes, plan, [True] * 4)
        if blocks == 4:
            fused = alternatives(plan, sizes, n_tokens, 2)["fused"][0]
            linear_triton.forward(x, w, w, bias, sizes, fused)
            tiled = plan._replace(first=plan.first._replace(programs=0, depth=32))
            linear_triton.product(x, w, None, h, *linear_triton.sides(sizes, plan.regrouped)[:2], tiled.first, "native")
    lines, w1, w2 = empty(4, 20, 3, 2), empty(5, 4, 4, 2), empty(4, 5, 5, 2)
    place = torch.arange(20)
    transform_triton.apply(lines, w1, w2, place, None, 2, False, StagesTile(16, 16, 8, 4, 1))
    transform_triton.apply(lines, w1, w2, place, None, 2, True)
    h = transform_triton.first_factor(lines, w1, w2, place, None, False)
    transform_triton.gradients(lines, h, lines, h, w1, w2, place, None)
    skip, matrix = empty(1, 256, 64), empty(18, 64)
    spectral_triton.narrow(skip, matrix)
    spectral_triton.round_to_tf32(matrix)
    spectral_triton.widen(empty(1, 18, 256), matrix.mT, spectral_triton.End(skip, empty(2), 128, True))
    spectral_triton.weigh(empty(1, 18, 256), skip)
    z, y, planes = empty(2, 128, 64), empty(2, 32, 128), empty(2, 32, 64)
    spectral_triton.narrow_planes(z, planes, False, 16)
    spectral_triton.turn(y, planes.mT, True)
    spectral_triton.weigh_planes(y, z, False)
    perceptrons((64, 128, 1, "high"))
    gated_perceptrons((48, 64, 48, "high"))
    pointwise_linear((32, 64, "high"))


def perceptrons(*tasks: tuple[int, int, int, str]) -> None:
    """Launches both kernels of perceptrons in float32: channels in, hidden and out, precision."""
    for inputs, hidden, outputs, precision in tasks:
        torch.set_float32_matmul_precision(precision)
        x, g = empty(2, inputs, 4096), empty(2, outputs, 4096)
        w1, b1, w2, b2 = empty(hidden, inputs), empty(hidden), empty(outputs, hidden), empty(outputs)
        perceptron_triton.perceptron(x, w1, b1, w2, b2)
        perceptron_triton.perceptron_gradients(g, x, w1, b1, w2)


def gated_perceptrons(*tasks: tuple[int, int, int, str]) -> None:
    """Launches both kernels of gated perceptrons in float32: channels in, hidden and out, precision."""
    for inputs, hidden, outputs, precision in tasks:
        torch.set_float32_matmul_precision(precision)
        x, g = empty(2, inputs, 4096), empty(2, outputs, 4096)
        up, up_bias, down, down_bias = (
            empty(2 * hidden, inputs),
            empty(2 * hidden),
            empty(outputs, hidden),
            empty(outputs),
        )
        gated_perceptron_triton.gated_perceptron(x, up, up_bias, down, down_bias, g)
        gated_perceptron_triton.gated_perceptron_gradients(g, x, up, up_bias, down)


def pointwise_linear(*tasks: tuple[int, int, str]) -> None:
    """Launches the backward pass of linear maps of the channels in float32: channels in and out, precision."""
    for inputs, outputs, precision in tasks:
        torch.set_float32_matmul_precision(precision)
        g, x, weight = empty(2, outputs, 4096), empty(2, inputs, 4096), empty(outputs, inputs)
        pointwise_linear_triton.linear_gradients(g, x, weight, True, True, True)


def spectral(*tasks: tuple[Problem, Config]) -> None:
    """Launches the kernels of spectral problems in float32 with given configurations."""
    for problem, config in tasks:
        torch.set_float32_matmul_precision(MATMUL_PRECISION[problem.precision])
        rows = 4096 if problem.precision != "tf32_left" else spectral_triton.ROUND_FIRST // problem.columns
        x, y = empty(1, rows, problem.columns), empty(1, problem.modes, rows)
        matrix = empty(problem.modes, problem.columns)
        if problem.kernel == "narrow":
            spectral_triton.narrow(x, matrix, config)
        elif problem.kernel == "widen":
            spectral_triton.widen(y, matrix.mT, spectral_triton.End(x, empty(2), 128, True), config)
        elif problem.kernel == "weigh":
            spectral_triton.weigh(y, x, config)
        else:
            z, y, planes = (t.expand(2, -1, -1) for t in (x, y, matrix))
            if problem.kernel == "narrow_planes":
                spectral_triton.narrow_planes(z, planes, False, 64, config)
            elif problem.kernel == "turn":
                spectral_triton.turn(y, planes.mT, False, config)
            else:
                spectral_triton.weigh_planes(y, z, False, config)


def linear(*layers: tuple[int, int]) -> None:
    """Launches the forward pass of square layers, of sizes and numbers of blocks, on many tokens in bfloat16."""
    half = dict(dtype=torch.bfloat16, device="meta")
    for n, blocks in layers:
        m = n // blocks
        sizes = Sizes(blocks, m, m, blocks, m, m, n, n)
        x, w1, w2 = empty(16384, n, **half), empty(blocks, m, m, **half), empty(blocks, m, m, **half)
        linear_triton.forward(x, w1, w2, empty(n, **half), sizes, choose(sizes, 16384, 2))


LAUNCHES = {
    "every_kernel": every_kernel,
    "spectral": spectral,
    "linear": linear,
    "perceptrons": perceptrons,
    "gated_perceptrons": gated_perceptrons,
    "pointwise_linear": pointwise_linear,
}

if __name__ == "__main__":
    with caught() as found:
        LAUNCHES[sys.argv[1]](*map(eval, sys.argv[2:]))
    print(json.dumps([usage._asdict() for usage in found]))
