"""Compiles every kernel for the H200 without a GPU, in a process of its own: importing Triton settles how it runs."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from sciml_monarch.monarch.kernels.linear_configs import SHARED_BYTES

PROGRAM = """
import json
import torch
from sciml_monarch.monarch.kernels import linear_gradients_triton, linear_triton, spectral_triton, transform_triton
from sciml_monarch.monarch.kernels.linear_configs import Sizes
from sciml_monarch.monarch.kernels.linear_plans import alternatives, choose
from sciml_monarch.monarch.kernels.transform_configs import StagesTile
from tests.monarch.kernels.compile_launches import caught

torch.set_float32_matmul_precision("high")
e = torch.empty
half = dict(dtype=torch.bfloat16)
with caught() as found:
    for blocks, m, n_tokens in ((4, 64, 512), (16, 16, 64)):
        n = blocks * m
        sizes = Sizes(blocks, m, m, blocks, m, m, n, n)
        plan = choose(sizes, n_tokens, 2)
        x, w, bias = e(n_tokens, n, **half), e(blocks, m, m, **half), e(n, **half)
        _, h = linear_triton.forward(x, w, w, bias, sizes, plan)
        linear_gradients_triton.backward(x, x, h, w, w, sizes, plan, [True] * 4)
        if blocks == 4:
            fused = alternatives(plan, sizes, n_tokens, 2)["fused"][0]
            linear_triton.forward(x, w, w, bias, sizes, fused)
            tiled = plan._replace(first=plan.first._replace(programs=0, depth=32))
            linear_triton.product(x, w, None, h, *linear_triton.sides(sizes, plan.regrouped)[:2], tiled.first, "native")
    lines, w1, w2 = e(4, 20, 3, 2), e(5, 4, 4, 2), e(4, 5, 5, 2)
    place = torch.arange(20)
    transform_triton.apply(lines, w1, w2, place, None, 2, False, StagesTile(16, 16, 8, 4, 1))
    transform_triton.apply(lines, w1, w2, place, None, 2, True)
    h = transform_triton.first_factor(lines, w1, w2, place, None, False)
    transform_triton.gradients(lines, h, lines, h, w1, w2, place, None)
    x, z = e(1, 2, 64, 64), e(16 * 9, 1, 4)
    leading, last = e(2, 16, 64), e(18, 64)
    spectral_triton.analysis(x, leading, last, False)
    spectral_triton.synthesis(z, leading.mT.contiguous(), last.mT.contiguous(), False, x, e(2), True)
    spectral_triton.matrix_gradients(x, z, leading, last, True)
print(json.dumps(found))
"""
KERNELS = {
    "product_kernel",
    "fused_kernel",
    "weight_kernel",
    "batched_weight_kernel",
    "regroup_kernel",
    "stages_kernel",
    "factor_kernel",
    "gradient_kernel",
    "analysis_2d",
    "synthesis_2d",
    "leading_gradient_2d",
    "last_gradient_2d",
}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not part of torch's CPU build")
def test_every_kernel_compiles_and_fits_a_multiprocessor():
    environment = dict(os.environ, TRITON_INTERPRET="0", CUDA_VISIBLE_DEVICES="")
    command = [sys.executable, "-c", PROGRAM]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads(ran.stdout)
    assert {name for name, _, _ in found} == KERNELS
    for name, shared, tensor_cores in found:
        assert shared <= SHARED_BYTES, name
        assert tensor_cores == (name != "regroup_kernel"), name
