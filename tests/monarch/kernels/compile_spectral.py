"""Compiles spectral kernels for a Hopper GPU without one, and reads off what they take of it."""

import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sciml_monarch.monarch.kernels.spectral_analysis_triton import analysis_2d
from sciml_monarch.monarch.kernels.spectral_configs import Config, Problem, tiles
from sciml_monarch.monarch.kernels.spectral_matrix_grad_triton import last_gradient_2d, leading_gradient_2d
from sciml_monarch.monarch.kernels.spectral_synthesis_triton import synthesis_2d


def usage(problem: Problem, config: Config) -> tuple[int, int, int, int]:
    """Shared memory in bytes, products on Hopper's tensor cores, products on older ones, bytes of spilled registers."""
    kernel, signature, constants = _source(problem, config)
    names = kernel.arg_names
    types = {name: signature.get(name, "constexpr" if name in constants else "i32") for name in names}
    pointers = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if types[name].startswith("*")}
    compiled = triton.compile(
        ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=pointers),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": config.warps},
    )
    ptx = compiled.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        report = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    stack = int(re.search(r"STACK:(\d+)", report)[1])
    return compiled.metadata.shared, ptx.count("wgmma.mma_async"), ptx.count("mma.sync"), stack


def _source(problem, config):
    t = tiles(problem)
    number = "fp32" if problem.itemsize == 4 else "bf16"
    operand = "bf16" if problem.precision == "bf16" else number
    constants = dict(N1=problem.n1, N2=problem.n2, M=problem.m, K=problem.k, PRECISION=problem.precision)
    constants |= dict(ROWS=config.rows, COLS=config.cols, MODES=t.modes, MAIN=t.main, REST=t.rest)
    constants |= dict(STAGES=config.stages)
    if problem.kernel in ("leading_gradient", "last_gradient"):
        matrix = {"last" if problem.kernel == "leading_gradient" else "leading": "*fp32"}
        signature = dict(field=f"*{number}", forms=f"*{number}", partial="*fp32") | matrix
        kernel = leading_gradient_2d if problem.kernel == "leading_gradient" else last_gradient_2d
        return kernel, signature, constants | dict(ACTIVATED=True)
    constants |= dict(DESCRIPTORS=config.descriptors, CONJUGATE=False)
    tile = (
        f"tensordesc<{number}[{config.images}, {config.rows}, {config.cols}]>" if config.descriptors else f"*{number}"
    )
    if problem.kernel == "synthesis":
        signature = dict(modes=f"*{number}", leading="*fp32", last="*fp32", bias="*fp32")
        signature |= dict(skip=tile, out=tile, before=tile)
        return synthesis_2d, signature, constants | dict(POINTS_FIRST=True, SKIP=True, BIAS=True, GELU=True)
    signature = dict(field=tile, leading="*fp32", last="*fp32", last_rest="*fp32", modes=f"*{number}")
    if config.descriptors:
        signature["leading"] = f"tensordesc<{operand}[2, {t.modes}, {config.rows}]>"
        signature["last"] = f"tensordesc<{operand}[{t.main // 2}, 2, {config.cols}]>"
        signature["last_rest"] = f"tensordesc<{operand}[{max(t.rest, 2) // 2}, 2, {config.cols}]>"
    return analysis_2d, signature, constants | dict(POINTS_FIRST=False, IMAGES=config.images)
