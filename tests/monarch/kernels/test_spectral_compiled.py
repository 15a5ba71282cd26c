"""Compiles the spectral kernels without a GPU, in a process of its own: Triton chooses its interpreter at import."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from sciml_monarch.monarch.kernels.spectral_configs import SHARED_BYTES, Config, Problem, choose, fits, shared_bytes

SHAPE = (256, 256, 64, 33)
PROGRAM = """
import sys
from tests.monarch.kernels.compile_spectral import usage
from sciml_monarch.monarch.kernels.spectral_configs import Config, Problem

for line in sys.argv[1:]:
    print(*usage(*eval(line)))
"""
TOO_LARGE = (Problem("analysis", *SHAPE, 4, "tf32"), Config(1, 256, 64, 8, 3, True))
PROBLEMS = [
    Problem("analysis", *SHAPE, 4, "tf32"),
    Problem("analysis", *SHAPE, 4, "tf32x3"),
    Problem("synthesis", *SHAPE, 4, "tf32"),
    Problem("leading_gradient", *SHAPE, 4, "tf32"),
    Problem("last_gradient", *SHAPE, 4, "tf32"),
]
# bytes of a thread: most kernels spill nothing
SPILLS = {"last_gradient": 640}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not part of torch's CPU build")
def test_what_is_chosen_is_tensor_core_code_that_fits_a_multiprocessor():
    pairs = [TOO_LARGE, *((problem, choose(problem)) for problem in PROBLEMS)]
    environment = dict(os.environ, TRITON_INTERPRET="0")
    command = [sys.executable, "-c", PROGRAM, *map(repr, pairs)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    too_large, *used = ([int(number) for number in line.split()] for line in ran.stdout.splitlines())
    assert too_large[0] > SHARED_BYTES
    assert not fits(*TOO_LARGE)
    assert len(used) == len(PROBLEMS)
    for (problem, config), (shared, fast_products, slow_products, spilled) in zip(pairs[1:], used, strict=True):
        assert shared <= shared_bytes(problem, config) <= SHARED_BYTES, problem
        assert fast_products > 0, problem
        assert slow_products == 0, problem
        assert spilled <= SPILLS.get(problem.kernel, 64), problem
