"""Compiles the kernels for the H200 without a GPU, in a process of its own: importing Triton settles how it runs."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sciml_monarch.monarch.kernels.backend import KERNEL_SHARED_BYTES
from sciml_monarch.monarch.kernels.spectral_configs import KERNELS as KINDS
from sciml_monarch.monarch.kernels.spectral_configs import Config, Problem, choose, fits, shared_bytes
from tests.helpers import needs_triton

ROOT = Path(__file__).parents[3]
KERNELS = {
    "product_kernel",
    "fused_kernel",
    "weight_kernel",
    "batched_weight_kernel",
    "regroup_kernel",
    "stages_kernel",
    "factor_kernel",
    "gradient_kernel",
    "round_kernel",
    "narrow_kernel",
    "widen_kernel",
    "weigh_kernel",
    "narrow_planes_kernel",
    "turn_kernel",
    "weigh_planes_kernel",
    "perceptron_kernel",
    "perceptron_gradients_kernel",
    "gated_perceptron_kernel",
    "gated_perceptron_gradients_kernel",
    "linear_gradients_kernel",
}
TOO_LARGE = (Problem("narrow", 256, 66, 4, "tf32"), Config(256, 64, 16, 8, 4))
PROBLEMS = [Problem(kernel, 256, 66, 4, precision) for kernel in KINDS for precision in ("tf32", "tf32x3")]
PROBLEMS += [Problem(kernel, 256, 66, 4, "tf32_left") for kernel in KINDS if kernel.startswith("narrow")]

pytestmark = [pytest.mark.slow, needs_triton]


def compiled(name, *arguments):
    """What the kernels take that are launched by this entry of ``compile_launches.LAUNCHES``."""
    command = [sys.executable, "-m", "tests.monarch.kernels.compile_launches", name, *map(repr, arguments)]
    environment = dict(os.environ, TRITON_INTERPRET="0", CUDA_VISIBLE_DEVICES="")
    ran = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout)


def test_every_kernel_compiles_and_fits_a_multiprocessor():
    found = compiled("every_kernel")
    assert {usage["name"] for usage in found} == KERNELS
    for usage in found:
        assert usage["shared"] <= KERNEL_SHARED_BYTES, usage
        on_tensor_cores = usage["fast_products"] + usage["slow_products"] > 0
        assert on_tensor_cores == (usage["name"] not in ("regroup_kernel", "round_kernel")), usage
        rounds = usage["name"] == "round_kernel" or usage["constants"].get("PRECISION") == "tf32"
        assert (usage["roundings"] > 0) == rounds, usage


def test_what_is_chosen_is_tensor_core_code_that_fits_a_multiprocessor():
    pairs = [(problem, choose(problem)) for problem in PROBLEMS]
    launched = compiled("spectral", TOO_LARGE, *pairs)
    too_large, *found = (usage for usage in launched if usage["name"] != "round_kernel")
    assert too_large["shared"] > KERNEL_SHARED_BYTES
    assert not fits(*TOO_LARGE)
    for (problem, config), usage in zip(pairs, found, strict=True):
        assert (usage["name"], usage["constants"]["PRECISION"]) == (f"{problem.kernel}_kernel", problem.precision)
        assert usage["roundings"] > 0 or problem.precision not in ("tf32", "tf32_left"), problem
        assert usage["shared"] <= shared_bytes(problem, config) <= KERNEL_SHARED_BYTES, problem
        assert usage["fast_products"] > 0, problem
        assert usage["slow_products"] == 0, problem
        assert usage["spilled"] <= 64, problem


def test_matrices_that_were_rounded_before_are_not_rounded_again():
    kernels = [kernel for kernel in KINDS if kernel.startswith("narrow")]
    left = [Problem(kernel, 256, 66, 4, "tf32_left") for kernel in kernels]
    pairs = [(replace(problem, precision=p), choose(problem)) for problem in left for p in ("tf32_left", "tf32")]
    found = [usage for usage in compiled("spectral", *pairs) if usage["name"] != "round_kernel"]
    for once, twice in zip(found[::2], found[1::2], strict=True):
        assert once["name"] == twice["name"]
        assert 0 < once["roundings"] < twice["roundings"]


def test_large_linear_layers_stream_their_inputs_and_store_several_numbers_at_a_time():
    found = compiled("linear", (1024, 4), (4096, 64))
    assert {usage["name"] for usage in found} == {"product_kernel"}
    assert {usage["constants"]["BATCHED"] for usage in found} == {False, True}
    for usage in found:
        assert usage["shared"] <= KERNEL_SHARED_BYTES, usage
        assert (usage["fast_products"] > 0) != usage["constants"]["BATCHED"], usage
        assert usage["async_copies"] > 0, usage  # inputs stream past the registers, 16 bytes at a time
        assert usage["stores"] <= 64, usage  # stores of several numbers


def test_the_largest_maps_of_channels_that_are_taken_fit_a_multiprocessor():
    sizes = (64, 128, 16), (128, 64, 16), (128, 16, 1)
    for usage in compiled("perceptrons", *((*size, precision) for size in sizes for precision in ("high", "highest"))):
        assert usage["shared"] <= KERNEL_SHARED_BYTES, usage
    sizes = (12, 32), (64, 128), (128, 64)
    found = compiled("pointwise_linear", *((*size, precision) for precision in ("high", "highest") for size in sizes))
    for usage in found:
        assert usage["shared"] <= KERNEL_SHARED_BYTES, usage
    assert found[0]["spilled"] == 0


def test_gated_perceptrons_fit_a_multiprocessor_and_run_on_tensor_cores():
    sizes = (64, 64, 64), (48, 64, 48), (20, 27, 20)
    for usage in compiled(
        "gated_perceptrons", *((*size, precision) for size in sizes for precision in ("high", "highest"))
    ):
        assert usage["shared"] <= KERNEL_SHARED_BYTES, usage
    forward, backward = compiled("gated_perceptrons", (48, 64, 48, "high"))
    assert (forward["spilled"], forward["slow_products"]) == (0, 0), forward
    assert backward["spilled"] <= 128, backward
    for usage in (forward, backward):
        assert usage["fast_products"] > 0, usage


def test_a_usual_projection_is_tensor_core_code():
    forward, backward = compiled("perceptrons", (32, 128, 1, "high"))
    assert forward["spilled"] == 0, forward
    for usage in (forward, backward):  # what spills there was timed to be faster than two warp groups, which do not
        assert usage["slow_products"] == 0, usage
        assert usage["fast_products"] > 0, usage
