import pytest
import torch

from tests.helpers import interpreted_wrongly, needs_triton

pytestmark = needs_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# of the mean of many products of positive numbers; in TF32 dropped bits would make each factor smaller by 3e-4 in the
# mean. The interpreter has no TF32: that kernels round at all, test_compiled.py sees without a GPU
BIAS = {"tf32x3": 1e-6, "tf32": 5e-5, "tf32_left": 5e-5, "bf16": 4e-4, "native": 1e-6}


@pytest.mark.parametrize(
    "precision",
    [
        "tf32x3",
        "tf32",
        "tf32_left",
        "native",
        pytest.param("bf16", marks=interpreted_wrongly),
    ],
)
@pytest.mark.parametrize("batch", [0, 2])
def test_operands_are_rounded_and_not_cut_off(precision, batch):
    from sciml_monarch.monarch.kernels.spectral_triton import round_to_tf32
    from tests.monarch.kernels.product_kernel import product

    n = 64
    shape = (batch, n, n) if batch else (n, n)
    generator = torch.Generator().manual_seed(0)
    a, b, start = (torch.rand(shape, generator=generator).to(DEVICE) + 0.5 for _ in range(3))
    if precision == "native":
        a, b = a.half(), b.half()
    given = round_to_tf32(b) if precision == "tf32_left" else b
    found = product(a, given, start, precision)
    exact = a.double() @ b.double() + start.double()
    error = found.double() / exact - 1
    assert abs(error.mean()) < BIAS[precision]
    assert error.abs().max() < 40 * BIAS[precision]
