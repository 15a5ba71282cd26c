"""What the tests share: how exact a result must be, random numbers, distances, and what needs Triton."""

import platform
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

# The test group of pyproject.toml installs Triton on Linux x86_64: there, a test fails that does not find it.
needs_triton = pytest.mark.skipif(
    find_spec("triton") is None and (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="Triton is installed on Linux x86_64 alone",
)

interpreted_wrongly = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="Triton's interpreter multiplies bfloat16 wrongly"
)
HALF = [
    pytest.param(torch.float16, id="float16"),
    pytest.param(torch.bfloat16, id="bfloat16", marks=interpreted_wrongly),
]

# Relative error allowed between a result of a dtype and its float64 reference: a few hundred roundings.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
    torch.complex128: 1e-12,
    torch.complex64: 1e-5,
}


def randn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Draws normal numbers from a seed; half precisions are rounded from the same float32 draw."""
    generator = torch.Generator().manual_seed(seed)
    drawn = dtype if dtype.is_complex or dtype == torch.float64 else torch.float32
    return torch.randn(shape, generator=generator, dtype=drawn).to(dtype)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Computes ``||actual - expected|| / ||expected||`` in double precision."""
    wide = torch.complex128 if actual.is_complex() or expected.is_complex() else torch.float64
    actual, expected = actual.detach().to(wide), expected.detach().to(wide)
    assert actual.shape == expected.shape
    return float((actual - expected).norm() / expected.norm())


def adjoint_mismatch(y: Tensor, mx: Tensor, x: Tensor, mhy: Tensor) -> float:
    """Computes ``|<Mx, y> - <x, M^H y>| / (||Mx|| ||y||)``, the products summed in double precision."""
    y, mx, x, mhy = (v.detach().to(torch.complex128).flatten() for v in (y, mx, x, mhy))
    return float((torch.vdot(mx, y) - torch.vdot(x, mhy)).abs() / (mx.norm() * y.norm()))


def let_the_compiler_learn_torch() -> None:
    """To be called before functions of torch are replaced: the compiler lists them once, by what they are then."""
    from torch._dynamo import trace_rules

    trace_rules.get_torch_obj_rule_map()
